"""Models that read each pixel as several finer ones."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_scanline import ScanlineImageProcessor
from modeling_scanline.image_processing_scanline import fold_lines, normalize_lines, resample_lines

PIXELS = 32  # of the tiny models


def make_processor(oversampling: int = 2, **changes) -> ScanlineImageProcessor:
    return ScanlineImageProcessor(pixels_per_line=PIXELS, oversampling=oversampling, **changes)


def noise(num_lines: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_lines, width)).astype(np.float32)


def test_a_model_line_holds_the_fine_pixels_of_each_of_its_pixels_side_by_side():
    fine = np.arange(4 * 6).reshape(4, 6)
    first, second = fold_lines(fine, 2)
    assert first.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert second.tolist() == [value + 12 for value in first.tolist()]
    assert fold_lines(fine[:3], 2).tolist() == [first.tolist()]  # half a line is none
    assert fold_lines(fine, 1).tolist() == fine.tolist()


@given(num_lines=st.integers(1, 90), width=st.sampled_from((32, 64, 75, 300)), oversampling=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_scans_have_as_many_lines_as_for_a_model_of_whole_pixels(num_lines, width, oversampling):
    scan = noise(num_lines, width)
    coarse, fine = (make_processor(factor)(scan, return_tensors="pt") for factor in (1, oversampling))
    assert fine["pixel_values"].shape == (1, coarse["pixel_values"].shape[1], PIXELS * oversampling**2)
    assert fine["attention_mask"].tolist() == coarse["attention_mask"].tolist()


def test_each_fine_line_is_normalized_by_itself_and_a_line_with_any_of_it_is_measured():
    scan = noise(8, 2 * PIXELS)
    scan[2:5] = np.nan
    inputs = make_processor()(scan, return_tensors="pt")
    assert inputs["attention_mask"].tolist() == [[1, 0, 1, 1]]
    values, _ = normalize_lines(torch.from_numpy(scan), "line")
    np.testing.assert_array_equal(inputs["pixel_values"][0], fold_lines(values.numpy(), 2))


def test_a_model_of_whole_pixels_says_the_same_of_fine_ones_that_are_alike(causal):
    model, scan = causal(), noise(20, PIXELS)
    with torch.no_grad():
        before = model(**make_processor(1)(scan, return_tensors="pt")).line_logits
        model.oversample(2)
        inputs = make_processor()(scan.repeat(2, axis=0).repeat(2, axis=1), return_tensors="pt")
        after = model(**inputs).line_logits
        torch.testing.assert_close(after, before)
        assert not torch.allclose(
            model(**make_processor()(noise(40, 2 * PIXELS), return_tensors="pt")).line_logits, before
        )
    with pytest.raises(ValueError, match="cannot be made to read 3"):
        model.oversample(3)


def test_a_line_knows_nothing_of_those_after_it(causal):
    model = causal(oversampling=2)
    scan = noise(24, 2 * PIXELS)
    other = scan.copy()
    other[12:] = noise(12, 2 * PIXELS, seed=1)
    with torch.no_grad():
        one, two = (model(**make_processor()(each, return_tensors="pt")).line_logits for each in (scan, other))
    assert torch.equal(one[:, :6], two[:, :6]) and not torch.equal(one[:, 6], two[:, 6])


@pytest.mark.parametrize("width", [32, 37, 64, 300])
@pytest.mark.parametrize("oversampling", [2, 3])
@pytest.mark.parametrize("normalization", ["line", "flat_line"])
def test_a_stream_gives_what_the_whole_scan_gives(causal, width, oversampling, normalization):
    model, processor = causal(oversampling=oversampling), make_processor(oversampling, normalization=normalization)
    scan = noise(-(-20 * width // PIXELS), width) + np.arange(width, dtype=np.float32)
    scan[width // 8] = np.nan
    results = model.streamer(processor).update_many(scan)
    inputs = processor(scan, return_tensors="pt")
    measured = inputs["attention_mask"][0].bool().numpy()
    with torch.no_grad():
        probabilities = model(**inputs).line_logits[0].softmax(-1).numpy()
    for number, result in enumerate(results, start=1):
        assert result.num_model_lines == number * PIXELS // width
        seen = np.flatnonzero(measured[: result.num_model_lines])
        if len(seen):
            np.testing.assert_allclose(result.probabilities, probabilities[seen[-1]], atol=1e-5)
        else:
            assert result.probabilities is None


def test_changes_and_familiarity_are_told_from_whole_pixels(causal):
    """Their features are those of a model of whole pixels, for the same raw lines."""
    seen = []

    class Meter:
        def update(self, values, measured):
            seen[-1].append(values.copy())
            return np.zeros(len(values))

    scan = noise(60, 96)
    for factor in (1, 3):
        streamer = causal(oversampling=factor).streamer(make_processor(factor))
        streamer.familiarity = Meter()
        seen.append([])
        streamer.update_many(scan)
    np.testing.assert_allclose(np.stack(seen[1]), np.stack(seen[0]), atol=1e-5)
    expected, _ = normalize_lines(resample_lines(torch.from_numpy(scan)[None], PIXELS), "line")
    np.testing.assert_allclose(np.stack(seen[1])[:, 0], expected[0], atol=1e-5)


def test_it_travels(causal, tmp_path):
    model = causal(oversampling=2)
    model.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    loaded, processor = type(model).from_pretrained(tmp_path), ScanlineImageProcessor.from_pretrained(tmp_path)
    inputs = processor(noise(64, 64), return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)


def test_what_does_not_fit_together_is_refused(causal):
    with pytest.raises(ValueError, match="oversampling=2, the processor makes them with oversampling=1"):
        causal(oversampling=2).streamer(make_processor(1))
    with pytest.raises(ValueError, match=r"\[batch, lines, 128\]"):
        causal(oversampling=2)(torch.zeros(1, 4, PIXELS))
    with pytest.raises(StrictDataclassError, match="oversampling must be at least 1"):
        causal(oversampling=0)
    with pytest.raises(ValueError, match="oversampling must be at least 1"):
        make_processor(0)(noise(8, 8))
    with pytest.raises(ValueError, match="whose pixels are single"):
        make_processor(2, num_channels=1, max_lines=8)(noise(8, 8))
