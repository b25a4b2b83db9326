"""A stream of raw lines gives what processor and model give of the whole scan."""

import copy
import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_scanline import ScanlineImageProcessor, ScanlineStreamer
from modeling_scanline.decoding_scanline import LineDecoder
from modeling_scanline.streaming_scanline import LineResampler

WIDTHS = (128, 300, 512, 37)
MODEL_LINES = 40
CALIBRATION = {
    "calibration_lines": [4, 16, 32], "calibration_temperatures": [3.0, 2.0, 0.5],
    "calibration_exponents": [0.5, 0.0, -0.3],
    "calibration_biases": [[0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]],
}  # fmt: skip
DECISIONS = {"decision_alphas": [0.05, 0.2], "decision_thresholds": [0.99, 0.3]}


def raw_scan(width: int, model_width: int = 32, seed: int = 0, num_scans: int | None = None) -> np.ndarray:
    """Heights in metres with tilt, an unmeasured line, one measured in part, a constant one and a jump."""
    num_lines = -(-MODEL_LINES * width // model_width)
    rng = np.random.default_rng(seed)
    scan = rng.standard_normal((num_scans or 1, num_lines, width)) + 0.1 * np.arange(num_lines)[:, None]
    for place, line in enumerate((3, num_lines // 3, num_lines // 2)):
        scan[:, line] = (np.nan, 0.7, scan[:, line])[place]
    scan[:, num_lines // 2, : width // 2] = np.nan
    scan[:, num_lines // 2 + 2 :] += 40
    scan = (1e-10 * scan).astype(np.float32)
    return scan if num_scans else scan[0]


def whole_scan(model, processor, scan):
    """Probabilities after every model line, and which of these were measured."""
    inputs = processor(scan, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).line_logits[0].softmax(-1).numpy()
    return probabilities, inputs["attention_mask"][0].bool().numpy()


def assert_streamed(results, probabilities, measured, width, model_width):
    """Each result is that of the last measured one of the model lines that are complete."""
    for number, result in enumerate(results, start=1):
        complete = number * model_width // width
        seen = np.flatnonzero(measured[:complete])
        assert (result.line, result.num_model_lines) == (number - 1, complete)
        if len(seen) == 0:
            assert result.probabilities is None and result.state is None
        else:
            np.testing.assert_allclose(result.probabilities, probabilities[seen[-1]], atol=1e-5)
            assert result.state == f"LABEL_{np.argmax(result.probabilities)}"
    assert complete == len(probabilities)


@pytest.fixture(scope="module")
def model(causal):
    return causal(**CALIBRATION, **DECISIONS)


@pytest.fixture(scope="module")
def processor():
    return ScanlineImageProcessor(pixels_per_line=32)


@pytest.mark.parametrize("model_width", [32, 128])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_stream_gives_what_the_whole_scan_gives(causal, width, model_width):
    model, processor = causal(pixels_per_line=model_width), ScanlineImageProcessor(pixels_per_line=model_width)
    scan = raw_scan(width, model_width)
    results = model.streamer(processor).update_many(scan)
    assert_streamed(results, *whole_scan(model, processor, scan), width, model_width)


@given(
    width=st.sampled_from((*WIDTHS, 9, 31, 33)),
    chunks=st.lists(st.integers(0, 30), max_size=10),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int16"]),
)
@settings(max_examples=40, deadline=None)
def test_in_chunks_of_any_size(model, processor, width, chunks, seed, dtype):
    scan = raw_scan(width, seed=seed)
    scan = scan if dtype.startswith("float") else np.nan_to_num(1e12 * scan % 200)
    scan = scan.astype(dtype)
    edges = [0, *np.minimum(np.cumsum(chunks), len(scan)).astype(int), len(scan)]
    streamer = model.streamer(processor)
    results = [r for start, end in pairwise(edges) for r in streamer.update_many(scan[start:end])]
    if len(scan) * 32 >= width:
        assert_streamed(results, *whole_scan(model, processor, scan), width, 32)


@pytest.mark.parametrize("changes", [{"position_embedding_type": "sinusoidal"}, {"tokenizer_context_lines": 1}])
def test_with_other_positions_and_context(causal, processor, changes):
    model, scan = causal(**changes), raw_scan(37)
    assert_streamed(model.streamer(processor).update_many(scan), *whole_scan(model, processor, scan), 37, 32)


@pytest.mark.parametrize("normalization", ["none", "flat_line"])
def test_other_normalizations(model, normalization):
    processor = ScanlineImageProcessor(pixels_per_line=32, normalization=normalization)
    scan = 1e10 * raw_scan(37)
    assert_streamed(model.streamer(processor).update_many(scan), *whole_scan(model, processor, scan), 37, 32)


def test_several_scans_at_once(model, processor):
    scans = raw_scan(37, num_scans=3)
    scans[1, 5:8], scans[2, -10:] = np.nan, np.nan
    streamer = model.streamer(processor, batch_size=3)
    by_line = [streamer.update_batch(lines) for lines in scans.swapaxes(0, 1)]
    for scan, results in zip(scans, zip(*by_line, strict=True), strict=True):
        assert_streamed(results, *whole_scan(model, processor, scan), 37, 32)


def test_any_kind_of_line(model, processor):
    scan = raw_scan(37)[:12].astype(np.float64)
    kinds = (list, torch.from_numpy, lambda line: line.astype(np.float32))
    results = [model.streamer(processor).update_many([kind(line) for line in scan]) for kind in kinds]
    for result in results[1:]:
        np.testing.assert_allclose(result[-1].probabilities, results[0][-1].probabilities, atol=1e-5)
    assert [result.measured for result in results[0][:5]] == [True, True, True, False, True]


def test_after_reset_nothing_is_left(model, processor):
    streamer, scan = model.streamer(processor, alpha=0.2), raw_scan(37, seed=1)
    first = streamer.update_many(scan)
    streamer.reset()
    streamer.update_many(raw_scan(300))
    streamer.reset()
    assert streamer.update_many(scan) == first


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda streamer: pickle.loads(pickle.dumps(streamer))])
def test_a_copy_goes_on_where_it_was_made(model, processor, duplicate):
    scan, streamer = raw_scan(32), model.streamer(processor)
    streamer.update_many(scan[:10])
    other = duplicate(streamer)
    assert other.update_many(scan[10:]) == streamer.update_many(scan[10:])


def test_a_model_of_more_than_its_weights_is_refused(model, processor):
    class Adapted(torch.nn.Linear):
        """As adapters are: it adds something to what its weights give."""

    adapted = copy.deepcopy(model)
    adapted.scanline.layers[0].mlp.fc1 = Adapted(32, 48)
    with pytest.raises(ValueError, match=r"Adapted in place of a Linear: merge adapters first"):
        adapted.streamer(processor)


@pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning")
def test_a_quantized_model_gives_verdicts_but_does_not_stream(model, processor):
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    inputs = processor(raw_scan(32), return_tensors="pt")
    with torch.no_grad():
        assert (quantized(**inputs).logits - model(**inputs).logits).abs().max() < 0.5
    with pytest.raises(ValueError, match="load it without quantization"):
        quantized.streamer(processor)


def test_a_folder_below_has_its_own_processor(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "below")
    processor.save_pretrained(tmp_path / "below")
    ScanlineImageProcessor(pixels_per_line=16, normalization="global").save_pretrained(tmp_path)
    streamer = ScanlineStreamer.from_pretrained(tmp_path, subfolder="below")
    assert streamer.processor.to_dict() == processor.to_dict()


@pytest.mark.parametrize("shape", [(32, 3), (4, 32), ()])
def test_what_is_no_line_is_refused(model, processor, shape):
    with pytest.raises(ValueError, match=r"shape \[1, width\]"):
        model.streamer(processor).update(np.zeros(shape))


def test_lines_of_another_width_need_a_reset(model, processor):
    streamer = model.streamer(processor)
    streamer.update(np.zeros(37))
    with pytest.raises(ValueError, match=r"lines of 37 pixels, as those before, got 40: call reset\(\)"):
        streamer.update(np.zeros(40))


@pytest.mark.parametrize("line", [np.zeros((2, 37)), np.zeros(0), 3.0, ["a", "b"]])
def test_what_is_no_line_is_refused_and_changes_nothing(model, processor, line):
    streamer, scan = model.streamer(processor), raw_scan(37)
    expected = streamer.update_many(scan[:21])[-1]
    streamer.reset()
    streamer.update_many(scan[:20])
    with pytest.raises(ValueError, match="Expected"):
        streamer.update(line)
    assert streamer.update(scan[20]) == expected


def test_a_batch_wants_its_own_method_and_shape(model, processor):
    streamer = model.streamer(processor, batch_size=2)
    with pytest.raises(ValueError, match="use update_batch"):
        streamer.update(np.zeros(37))
    with pytest.raises(ValueError, match=r"shape \[2, width\], got \[3, 37\]"):
        streamer.update_batch(np.zeros((3, 37)))


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({"normalization": "global"}, {}, "normalization='global' needs the whole scan"),
        ({"pixels_per_line": 64}, {}, "reads lines of 32 pixels, the processor makes pixels_per_line=64"),
        ({}, {"sliding_window": None}, "A stream has no end"),
    ],
)
def test_what_cannot_stream_is_refused(causal, settings, changes, reason):
    with pytest.raises(ValueError, match=reason):
        causal(**changes).streamer(ScanlineImageProcessor(**{"pixels_per_line": 32, **settings}))


def test_a_model_of_another_kind_is_refused(vit, processor, tmp_path):
    with pytest.raises(ValueError, match="got scanline_vit"):
        ScanlineStreamer(vit(), processor)
    vit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got scanline_vit"):
        ScanlineStreamer.from_pretrained(tmp_path)


# hours


def test_thousands_of_lines_leave_the_memory_as_it_is(model, processor):
    streamer, line = model.streamer(processor), raw_scan(37)[0]
    tracemalloc.start()
    streamer.update_many([line] * 100)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(2_000):
        streamer.update(line)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
    decoder = streamer.decoder
    assert decoder.hidden.shape[-1] == model.config.sliding_window
    assert all(layer.keys.shape[2] == model.config.sliding_window for layer in decoder.members[0].layers)
    assert all(stage.lines.shape[1] == model.config.tokenizer_context_lines for stage in decoder.members[0].stages)


def test_streams_of_a_batch_start_anew_one_by_one(model, make_lines):
    lines, measured = make_lines(3, 60).numpy(), np.ones(3, dtype=bool)
    decoder, undisturbed, alone = LineDecoder(model, 3), LineDecoder(model, 3), LineDecoder(model, 1)
    for place in range(25):
        decoder.step(lines[:, place], measured)
        undisturbed.step(lines[:, place], measured)
    decoder.reset(np.array([1]))
    for place in range(20, 25):  # the last lines once more, in this stream only
        decoder.step(lines[[1], place], measured[:1], np.array([1]))
    for place in range(20, 60):
        of_one = alone.step(lines[[1], place], measured[:1])
        if place >= 25:
            together, others = (each.step(lines[:, place], measured) for each in (decoder, undisturbed))
            np.testing.assert_allclose(together[[0, 2]], others[[0, 2]], atol=1e-5)
            np.testing.assert_allclose(together[[1]], of_one, atol=1e-5)


def test_half_precision_is_decoded_in_full(causal, processor):
    scan = raw_scan(37)
    streamed = causal(dtype=torch.bfloat16).streamer(processor).update_many(scan)
    model = causal(dtype=torch.bfloat16).float()
    assert_streamed(streamed, *whole_scan(model, processor, scan), 37, 32)


@pytest.mark.parametrize("width", WIDTHS)
def test_raw_lines_are_used_up_at_once(width):
    """A model line comes with the raw line that completes it, none before, and none is lost."""
    resampler = LineResampler(32)
    for number in range(1, 100):
        before = resampler.num_model_lines
        made = len(list(resampler(np.ones((1, width)))))
        assert resampler.num_model_lines == before + made == number * 32 // width


# decisions


def test_a_stream_decides_after_a_number_of_lines_that_thresholds_are_for_and_stays(model, processor):
    scan = raw_scan(32)
    plain, streamed = (model.streamer(processor, alpha=alpha).update_many(scan) for alpha in (None, 0.25))
    assert all(result.decision is None for result in plain)
    assert [result.probabilities for result in plain] == [result.probabilities for result in streamed]
    first = next(
        number for number in CALIBRATION["calibration_lines"] if max(streamed[number - 1].probabilities) >= 0.3
    )
    assert [result.decision for result in streamed[: first - 1]] == [None] * (first - 1)
    assert {result.decision for result in streamed[first - 1 :]} == {streamed[first - 1].state}


def test_a_stream_decides_the_same_of_lines_of_any_width(causal, processor):
    """Several model lines a raw line do not step over the one to decide at."""
    model = causal(**CALIBRATION, decision_alphas=[0.1], decision_thresholds=[0.0])
    results = model.streamer(processor, alpha=0.1).update_many(raw_scan(9))
    assert [result.decision is not None for result in results[:3]] == [False, True, True]


def test_an_error_that_nothing_bears_out_is_refused(model, processor):
    with pytest.raises(ValueError, match=r"alpha=0.01.*from 0.05 on"):
        model.streamer(processor, alpha=0.01)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 10.0])
def test_what_is_no_share_is_no_error(model, processor, alpha):
    with pytest.raises(ValueError, match=rf"between 0 and 1, as 0.1 for 10 %, got {alpha}"):
        model.streamer(processor, alpha=alpha)


def test_without_thresholds_no_error_is_promised(causal, processor):
    with pytest.raises(ValueError, match=r"this model has none.*Leave alpha out"):
        causal().streamer(processor, alpha=0.1)
