"""From pictures and height maps of any kind and size to lines of the model's width."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import logging

from modeling_scanline import ScanlineImageProcessor, as_images, normalize_lines
from modeling_scanline.image_processing_scanline import NORMALIZATIONS


@pytest.fixture(scope="module")
def processor():
    return ScanlineImageProcessor()


@pytest.fixture(scope="module")
def unchanged():
    """Keeps sizes and heights as they are, for scans 16 pixels wide."""
    return ScanlineImageProcessor(pixels_per_line=16, normalization="none")


def heights(num_lines=20, width=16, seed=0):
    return np.random.default_rng(seed).normal(size=(num_lines, width))


def bytes_(num_lines=20, width=16):
    return np.random.default_rng(0).integers(0, 256, (num_lines, width), dtype=np.uint8)


def pixel_values(processor, images, **kwargs):
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"]


# what it takes


def test_it_returns_lines_and_their_mask(processor):
    batch = processor([heights(50, 300)], return_tensors="pt")
    assert set(batch) == {"pixel_values", "attention_mask"}
    assert batch["pixel_values"].shape == (1, 21, 128) and batch["pixel_values"].dtype == torch.float32
    assert batch["attention_mask"].shape == (1, 21) and batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].all()


@pytest.mark.parametrize(
    ("num_lines", "width", "expected"),
    [
        (47, 300, 20),
        (128, 128, 128),
        (5, 128, 5),
        (37, 37, 128),
        (1, 37, 3),
        (40, 512, 10),
        (1, 512, 1),
    ],
)
def test_pixels_stay_square(processor, num_lines, width, expected):
    assert pixel_values(processor, heights(num_lines, width)).shape == (1, expected, 128)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "I", "F", "I;16"])
def test_pictures_of_any_mode_mean_the_same(unchanged, mode):
    grey = bytes_()
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16))
        assert picture.mode == "I;16"
    else:
        picture = Image.fromarray(grey).convert(mode)
    assert torch.equal(pixel_values(unchanged, picture)[0], torch.from_numpy(grey).float())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64, ">f4"])
def test_arrays_of_any_type_mean_the_same(unchanged, dtype):
    array = bytes_().astype(dtype)
    assert torch.equal(pixel_values(unchanged, array)[0], torch.from_numpy(bytes_()).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_type_mean_the_same(unchanged, dtype):
    tensor = torch.from_numpy(bytes_()).to(dtype)
    assert torch.equal(pixel_values(unchanged, tensor)[0], tensor.float())


def test_a_tensor_with_a_gradient_is_taken(unchanged):
    assert pixel_values(unchanged, torch.randn(20, 16, requires_grad=True)).shape == (1, 20, 16)


def test_views_and_read_only_arrays_are_taken(unchanged):
    array = heights().astype(np.float32)
    array.setflags(write=False)
    assert torch.equal(pixel_values(unchanged, array[::-1, ::-1])[0], torch.from_numpy(array.copy()).flip(0, 1))


def test_lists_and_batches_mean_the_same(processor):
    scans = [heights(30, 64, seed) for seed in range(3)]
    expected = pixel_values(processor, scans)
    for batch in (tuple(scans), np.stack(scans), torch.from_numpy(np.stack(scans)), [np.stack(scans[:2]), scans[2]]):
        assert torch.equal(pixel_values(processor, batch), expected)
    assert torch.equal(pixel_values(processor, scans[1])[0], expected[1])


def test_scans_of_several_sizes_keep_their_order_and_are_padded(processor):
    scans = [heights(20, 128, 0), heights(47, 300, 1), heights(9, 128, 2), heights(20, 128, 3)]
    batch = processor(scans, return_tensors="pt")
    assert batch["pixel_values"].shape == (4, 20, 128)
    assert batch["attention_mask"].sum(dim=1).tolist() == [20, 20, 9, 20]
    assert not batch["pixel_values"][2, 9:].any()
    for index, scan in enumerate(scans):
        alone = pixel_values(processor, scan)[0]
        torch.testing.assert_close(batch["pixel_values"][index, : len(alone)], alone, atol=1e-6, rtol=0)


def test_a_scan_does_not_depend_on_what_it_is_processed_with(processor):
    first, second = heights(30, 300, 0), 1e6 + heights(30, 300, 1)
    together = pixel_values(processor, [first, second])
    torch.testing.assert_close(together[:1], pixel_values(processor, first), atol=1e-6, rtol=0)


@pytest.mark.parametrize("return_tensors", [None, "np"])
def test_arrays_come_back_where_no_tensors_are_asked_for(processor, return_tensors):
    batch = processor(heights(), return_tensors=return_tensors)
    assert isinstance(batch["pixel_values"], np.ndarray) and batch["pixel_values"].dtype == np.float32


def test_the_image_given_is_not_changed(processor):
    scan = heights(30, 128).astype(np.float32)
    scan[3] = np.nan
    before = scan.copy()
    pixel_values(processor, scan)
    np.testing.assert_array_equal(scan, before)


# colours


def orange(k):
    k = k.astype(np.int64)
    return np.stack([np.minimum(255, 2 * k), k, np.maximum(0, 2 * k - 255)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("wrap", [lambda image: image, Image.fromarray], ids=["array", "picture"])
def test_the_orange_colour_map_is_decoded_exactly(unchanged, wrap):
    every_height = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for part in (every_height, every_height[:8], every_height[8:]):
        decoded = pixel_values(unchanged, wrap(orange(part)))[0]
        assert torch.equal(decoded, torch.from_numpy(part).float())


def test_other_colours_are_read_by_luminance(unchanged):
    picture = np.zeros((4, 16, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 2] = 100, 200
    np.testing.assert_allclose(pixel_values(unchanged, picture)[0], 0.299 * 100 + 0.114 * 200, rtol=1e-5)


@pytest.mark.parametrize("colour", [orange, lambda k: np.stack([255 - k, k // 2, k], axis=-1).astype(np.uint8)])
def test_colours_between_0_and_1_are_those_between_0_and_255(unchanged, colour):
    picture = colour(np.arange(256).reshape(16, 16))
    as_floats = pixel_values(unchanged, picture.astype(np.float32) / 255)
    torch.testing.assert_close(255 * as_floats, pixel_values(unchanged, picture), rtol=1e-5, atol=1e-4)


def test_a_file_keeps_the_heights_that_it_has(unchanged, tmp_path):
    expected = heights(20, 16).astype(np.float32)
    for name, picture in {
        "sixteen_bits.png": np.uint16(np.clip(6e4 * (expected - expected.min()), 0, 65535)),
        "floating_point.tif": expected,
    }.items():
        Image.fromarray(picture).save(tmp_path / name)
        for path in (tmp_path / name, str(tmp_path / name)):
            np.testing.assert_array_equal(pixel_values(unchanged, path)[0], picture.astype(np.float32))


@pytest.mark.parametrize("picture", [np.full((20, 128, 3), 255), np.eye(128)[:20, :, None].repeat(3, axis=2)])
def test_a_picture_that_was_cut_off_is_told_of(unchanged, picture, caplog):
    logger = logging.get_logger(ScanlineImageProcessor.__module__)
    logger.addHandler(caplog.handler)
    logging.warning_once.cache_clear()
    unchanged(Image.fromarray(np.uint8(picture)))
    logger.removeHandler(caplog.handler)
    assert "Give the processor the file itself" in caplog.text


def test_what_a_mask_hides_was_not_measured(processor):
    scan = heights(20, 128)
    hidden = np.zeros(scan.shape, bool)
    hidden[3], hidden[5, :60] = True, True
    expected = processor(np.where(hidden, np.nan, scan), return_tensors="pt")
    actual = processor(np.ma.MaskedArray(scan, hidden), return_tensors="pt")
    torch.testing.assert_close(dict(actual), dict(expected))


def test_a_single_channel_may_be_the_last_dimension(processor):
    scan = heights(20, 128)
    torch.testing.assert_close(pixel_values(processor, scan[..., None]), pixel_values(processor, scan))


# partial scans


@given(
    width=st.sampled_from([37, 64, 128, 130, 300, 512]),
    num_lines=st.integers(8, 60),
    seen=st.integers(4, 60),
    normalization=st.sampled_from(["line", "flat_line", "none"]),
)
@settings(max_examples=40, deadline=None)
def test_the_lines_of_a_partial_scan_are_the_first_of_the_whole(processor, width, num_lines, seen, normalization):
    scan = heights(num_lines, width)
    whole = pixel_values(processor, scan, normalization=normalization)
    seen = min(max(seen, -(-width // 128)), num_lines)
    part = pixel_values(processor, scan[:seen], normalization=normalization)
    assert part.shape[1] == seen * 128 // width
    torch.testing.assert_close(part, whole[:, : part.shape[1]], atol=1e-5, rtol=0)


def test_max_lines_keeps_the_first(processor):
    whole = pixel_values(processor, heights(60, 300))
    cut = pixel_values(processor, heights(60, 300), max_lines=7)
    assert cut.shape[1] == 7
    torch.testing.assert_close(cut, whole[:, :7], atol=1e-6, rtol=0)


# what was not measured


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("width", [128, 300])
def test_unmeasured_lines_are_zero_and_masked(processor, width, normalization):
    scan = heights(width, width)
    scan[width // 2 :] = np.nan
    scan[0, 0] = np.inf
    batch = processor(scan, return_tensors="pt", normalization=normalization)
    assert batch["attention_mask"][0].tolist() == [1] * 64 + [0] * 64
    assert not batch["pixel_values"][0, 64:].any()
    assert batch["pixel_values"].isfinite().all()


def test_a_line_measured_in_part_is_normalized_over_that_part(processor):
    scan = heights(4, 128)
    scan[1, 40:] = np.nan
    line = pixel_values(processor, scan)[0, 1]
    assert not line[40:].any()
    assert abs(line[:40].mean()) < 1e-6 and abs(line[:40].std(correction=0) - 1) < 1e-5


def test_nothing_measured_at_all_is_all_masked(processor):
    batch = processor(np.full((12, 200), np.nan), return_tensors="pt")
    assert not batch["attention_mask"].any() and not batch["pixel_values"].any()


# normalization


@given(
    offset=st.sampled_from([0.0, 1e-7, -3.0, 1e4]),
    height=st.sampled_from([1e-10, 1e-3, 1.0, 1e6]),
    dtype=st.sampled_from([np.float32, np.float64]),
    width=st.sampled_from([128, 300]),
)
@settings(max_examples=40, deadline=None)
def test_every_line_gets_mean_0_and_deviation_1_whatever_the_unit(processor, offset, height, dtype, width):
    assume(abs(offset) <= 1e4 * height)  # float32 resolves no more
    scan = heights(40, width)
    lines = pixel_values(processor, (offset + height * scan).astype(dtype))[0]
    assert lines.mean(-1).abs().max() < 1e-4
    assert (lines.std(-1, correction=0) - 1).abs().max() < 1e-4
    torch.testing.assert_close(lines, pixel_values(processor, scan)[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-7, 1.2345e6])
@pytest.mark.parametrize("normalization", ["line", "flat_line", "global"])
@pytest.mark.parametrize("width", [128, 300])
def test_constant_lines_become_zero(processor, constant, normalization, width):
    batch = processor(np.full((width, width), constant), return_tensors="pt", normalization=normalization)
    assert not batch["pixel_values"].any() and batch["attention_mask"].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [37, 128, 300])
@pytest.mark.parametrize("filling", [0.0, 3e-10])
@pytest.mark.parametrize("measured", [1.0, 0.7])
def test_lines_filled_with_a_number_are_constant_however_far_the_scan_is_from_it(
    processor, filling, measured, width, dtype
):
    """Controllers fill what was not scanned with zeros, at heights of 100 nm and atoms of 0.1 nm."""
    scan = (1e-7 + 1e-10 * heights(width, width)).astype(dtype)
    scan[width // 2 :] = filling
    scan[:, int(measured * width) :] = np.nan
    lines = pixel_values(processor, scan)[0]
    assert not lines[66:].any()
    assert lines[:63].abs().amax(-1).min() > 1


def test_a_constant_line_leaves_the_others_alone(processor):
    scan = heights(10, 128)
    expected = pixel_values(processor, scan)[0]
    scan[4] = 7.3
    lines = pixel_values(processor, scan)[0]
    assert not lines[4].any()
    torch.testing.assert_close(lines[[3, 5]], expected[[3, 5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("normalization", ["line", "flat_line"])
def test_the_largest_number_there_is_spoils_its_own_line_at_the_most(processor, normalization, dtype):
    """Programs write it where they have no height, and what is NaN once stays in a stream for ever."""
    scan = heights(10, 128).astype(dtype)
    expected = processor(scan, return_tensors="pt", normalization=normalization)["pixel_values"][0]
    scan[4], scan[6] = np.finfo(dtype).max, np.finfo(dtype).max * np.sign(scan[6])
    batch = processor(scan, return_tensors="pt", normalization=normalization)
    lines = batch["pixel_values"][0]
    assert lines.isfinite().all() and not lines[4].any()
    others = [0, 1, 2, 3, 5, 7, 8, 9]
    assert torch.equal(lines[others], expected[others]) and batch["attention_mask"][0, others].all()


def test_line_normalization_takes_out_jumps_between_lines(processor):
    scan = heights(20, 128)
    jumps = scan + 50 * heights(20, 1)
    torch.testing.assert_close(pixel_values(processor, jumps), pixel_values(processor, scan), atol=1e-4, rtol=0)


@given(
    slope=st.sampled_from([0.0, 1e-3, 5.0, -200.0]),
    unit=st.sampled_from([1e-10, 1.0]),
    width=st.sampled_from([37, 128, 300]),
    measured=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_flat_lines_know_nothing_of_tilt(processor, slope, unit, width, measured):
    scan = heights(width, width)
    scan[:, int(measured * width) :] = np.nan
    tilted = unit * (scan + slope * np.linspace(-1, 1, width) * heights(width, 1))
    flat, other = (pixel_values(processor, of, normalization="flat_line")[0] for of in (scan, tilted))
    torch.testing.assert_close(other, flat, atol=2e-3, rtol=0)
    assert flat.mean(-1).abs().max() < 1e-5


def test_flat_lines_without_tilt_are_lines(processor):
    scan = heights(20, 128)
    places = np.arange(128) - 63.5
    scan -= np.outer(scan @ places / (places @ places), places)
    flat = pixel_values(processor, scan, normalization="flat_line")
    torch.testing.assert_close(flat, pixel_values(processor, scan), atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [37, 128, 300])
def test_a_line_with_tilt_and_nothing_else_is_constant(processor, width):
    tilt = 1e-7 + 3e-9 * np.linspace(-1, 1, width, dtype=np.float32) * heights(width, 1)
    assert not pixel_values(processor, tilt, normalization="flat_line").any()


def test_global_normalization_keeps_jumps_between_lines(processor):
    scan = heights(20, 128)
    scan[10:] += 5
    values = pixel_values(processor, scan, normalization="global")[0]
    np.testing.assert_allclose(values, (scan - scan.mean()) / scan.std(), atol=1e-5)


def test_none_leaves_heights_alone(processor):
    scan = heights(20, 128).astype(np.float32)
    assert torch.equal(pixel_values(processor, scan, normalization="none")[0], torch.from_numpy(scan))


@pytest.mark.parametrize("normalization", ["line", "flat_line", "global"])
def test_normalizing_twice_changes_nothing(normalization):
    once, mask = normalize_lines(torch.randn(2, 10, 32), normalization)
    twice, again = normalize_lines(once, normalization)
    torch.testing.assert_close(twice, once, atol=1e-5, rtol=0)
    assert torch.equal(mask, again) and mask.dtype == torch.int64


# settings and errors


def test_a_call_may_override_each_setting(processor):
    scan = heights(64, 64)
    assert pixel_values(processor, scan, pixels_per_line=32).shape == (1, 32, 32)
    assert pixel_values(processor, scan, max_lines=3).shape == (1, 3, 128)
    assert pixel_values(processor, scan).shape == (1, 128, 128)
    assert (processor.pixels_per_line, processor.normalization, processor.max_lines) == (128, "line", None)


def test_saving_and_loading_keeps_the_settings(tmp_path):
    processor = ScanlineImageProcessor(pixels_per_line=64, normalization="global", max_lines=9)
    processor.save_pretrained(tmp_path)
    loaded = ScanlineImageProcessor.from_pretrained(tmp_path)
    assert (loaded.pixels_per_line, loaded.normalization, loaded.max_lines) == (64, "global", 9)
    assert torch.equal(pixel_values(loaded, heights()), pixel_values(processor, heights()))
    assert ScanlineImageProcessor.from_pretrained(tmp_path, max_lines=2).max_lines == 2


def test_the_auto_class_finds_it_by_the_model(vit_config, tmp_path):
    vit_config().save_pretrained(tmp_path)
    ScanlineImageProcessor(pixels_per_line=32).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is ScanlineImageProcessor and loaded.pixels_per_line == 32


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"Expected at least one image, got none\."),
        (np.zeros((0, 8, 8)), r"Expected at least one image, got none\."),
        (np.zeros(16), r"2-D array .* got ndarray of shape \[16\]"),
        (np.zeros((0, 16)), r"at least one line and one pixel, got ndarray of shape \[0, 16\]"),
        (np.zeros((16, 0)), r"got ndarray of shape \[16, 0\]"),
        (torch.zeros(0, 16), r"got Tensor of shape \[0, 16\]"),
        (np.array([["high", "low"]]), r"of numbers .* type <U4"),
        (np.array([[1.0, None]]), r"of numbers .* type object"),
        (np.zeros((4, 4), dtype=complex), r"of numbers .* type complex128"),
        (np.zeros((2, 4, 4, 3)), r"got ndarray of shape \[2, 4, 4, 3\]"),
        ([np.zeros((4, 4)), np.zeros(4)], r"got ndarray of shape \[4\]"),
    ],
)
def test_what_is_no_scan_is_refused(processor, images, message):
    with pytest.raises(ValueError, match=message) as error:
        processor(images)
    assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")


@pytest.mark.parametrize("images", [None, 3.5, [None], {"scan": 1}])
def test_what_is_no_image_is_refused(processor, images):
    with pytest.raises(TypeError, match="only a single or a list of entries is supported but got type"):
        processor(images)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"normalization": "median"}, "normalization must be one of line, flat_line, global, none, got 'median'"),
        ({"pixels_per_line": 0}, "pixels_per_line must be at least 1, got 0"),
        ({"max_lines": 0}, "max_lines must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(processor, settings_, message):
    with pytest.raises(ValueError, match=message):
        processor(heights(), **settings_)


# images for models that know no lines


def test_images_hold_the_lines_and_zeros(processor):
    scans = [heights(47, 300), heights(9, 128)]
    scans[1][3] = np.nan
    lines = processor(scans, return_tensors="pt")["pixel_values"]
    batch = processor(scans, return_tensors="pt", max_lines=30, num_channels=3)
    assert set(batch) == {"pixel_values"} and batch["pixel_values"].shape == (2, 3, 30, 128)
    for channel in range(3):
        assert torch.equal(batch["pixel_values"][:, channel, :20], lines)
    assert not batch["pixel_values"][:, :, 20:].any() and not batch["pixel_values"][1, :, 3].any()


def test_images_of_long_scans_keep_the_first_lines(processor):
    scan = heights(40, 128)
    images = pixel_values(processor, scan, max_lines=8, num_channels=1)
    assert torch.equal(images[:, 0], pixel_values(processor, scan)[:, :8])


def test_images_do_not_depend_on_what_unmeasured_lines_hold():
    lines = torch.full((1, 3, 4), float("nan"))
    lines[:, 1] = 2.0
    images = as_images(lines, torch.tensor([[0, 1, 0]]), 4)
    assert images.tolist() == [[[[0.0] * 4, [2.0] * 4, [0.0] * 4, [0.0] * 4]]]
    with pytest.raises(ValueError, match=r"at most max_lines=2 lines, got 3"):
        as_images(lines, None, 2)


def test_images_without_a_height_are_refused(processor):
    with pytest.raises(ValueError, match=r"num_channels=1 makes images, whose height max_lines must be given too\."):
        processor(heights(), num_channels=1)
    with pytest.raises(ValueError, match=r"num_channels must be at least 1, got 0"):
        processor(heights(), num_channels=0, max_lines=4)


def test_a_processor_of_images_is_saved_and_loaded(tmp_path):
    ScanlineImageProcessor(max_lines=8, num_channels=3).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert (loaded.max_lines, loaded.num_channels) == (8, 3)
    assert pixel_values(loaded, heights(40, 128)).shape == (1, 3, 8, 128)
