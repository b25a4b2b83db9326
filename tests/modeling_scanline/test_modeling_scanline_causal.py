"""The causal model: nothing flows backwards in time, and a stream of lines gives what the whole scan gives."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from modeling_scanline import ScanlineCache, ScanlineCausalForImageClassification, ScanlineCausalModel

CONTEXTS = pytest.mark.parametrize("context_lines", [1, 5])
POSITIONS = pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
WINDOW = 16
NUM_LINES = 50  # three windows


def stream(model, lines, chunks, mask=None, cache=None):
    """`line_logits` of lines that come in chunks, and what is remembered of them."""
    outputs, start = [], 0
    with torch.no_grad():
        for size in chunks:
            part = slice(start, start + size)
            output = model(
                lines[:, part],
                attention_mask=None if mask is None else mask[:, part],
                past_key_values=cache,
                use_cache=True,
            )
            outputs.append(output.line_logits)
            cache, start = output.past_key_values, start + size
    assert start == lines.shape[1]
    return torch.cat(outputs, dim=1), cache


def in_chunks_of(size, num_lines=NUM_LINES):
    return [min(size, num_lines - start) for start in range(0, num_lines, size)]


def assert_same(actual, expected, measured=None, tolerance=1e-5):
    if measured is not None:
        actual, expected = actual[measured], expected[measured]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def model(causal):
    return causal()


@pytest.fixture(scope="module")
def lines(make_lines):
    return make_lines(2, NUM_LINES)


@pytest.fixture(scope="module")
def whole(model, lines):
    with torch.no_grad():
        return model(lines).line_logits


@pytest.fixture(scope="module")
def holes(lines):
    """A mask with unmeasured lines at the start, in the middle, and over more than a tokenizer's context."""
    mask = torch.ones(lines.shape[:2], dtype=torch.bool)
    mask[0, :2] = mask[0, 20:28] = mask[1, 5] = mask[1, 33:35] = mask[1, 47:] = False
    return mask


def with_nan(lines, mask):
    return lines.masked_fill(~mask.unsqueeze(-1), float("nan"))


# shapes and outputs


def test_shapes(model, lines):
    outputs = model(lines)
    assert outputs.logits.shape == (2, 4)
    assert outputs.line_logits.shape == (2, NUM_LINES, 4)
    assert outputs.past_key_values is None and outputs.loss is None
    assert outputs.line_logits.std() > 0.1
    assert ScanlineCausalModel(model.config)(lines).last_hidden_state.shape == (2, NUM_LINES, 32)


def test_logits_are_those_of_the_last_measured_line(model, lines, whole, holes):
    torch.testing.assert_close(model(lines).logits, whole[:, -1])
    outputs = model(with_nan(lines, holes), holes.long())
    torch.testing.assert_close(outputs.logits, outputs.line_logits[[0, 1], [49, 46]], rtol=0, atol=0)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_padding_changes_nothing(model, make_lines, lengths, seed):
    padded = make_lines(len(lengths), 30, seed)
    measured = torch.arange(30) < torch.tensor(lengths).unsqueeze(1)
    with torch.no_grad():
        batch = model(with_nan(padded, measured), measured).logits
        alone = torch.cat([model(padded[row : row + 1, :length]).logits for row, length in enumerate(lengths)])
    assert_same(batch, alone)


def test_what_an_unmeasured_line_holds_does_not_matter(model, lines, holes):
    expected = model(lines.masked_fill(~holes.unsqueeze(-1), 7.0), holes).line_logits
    assert torch.equal(model(with_nan(lines, holes), holes).line_logits, expected)
    assert expected.isfinite().all()


# causality


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@POSITIONS
@CONTEXTS
def test_a_line_changes_no_logit_before_it(causal, lines, context_lines, positions, attention):
    model = causal(
        tokenizer_context_lines=context_lines, position_embedding_type=positions, attn_implementation=attention
    )
    with torch.no_grad():
        before = model(lines).line_logits
        for changed_line in (0, 1, 7, WINDOW, NUM_LINES - 1):
            changed = lines.clone()
            changed[:, changed_line] += 3.0
            after = model(changed).line_logits
            assert torch.equal(after[:, :changed_line], before[:, :changed_line])
            assert (after[:, changed_line] != before[:, changed_line]).any(-1).all()


@given(changed_line=st.integers(0, NUM_LINES - 1), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_all_that_follows_changes_no_logit_before_it(model, lines, whole, make_lines, changed_line, seed):
    changed = lines.clone()
    changed[:, changed_line:] = make_lines(2, NUM_LINES - changed_line, 1000 + seed)
    with torch.no_grad():
        assert torch.equal(model(changed).line_logits[:, :changed_line], whole[:, :changed_line])


@pytest.mark.parametrize("context_lines", [1, 2, 5])
def test_each_convolution_sees_the_context_lines_and_none_after(causal, make_lines, context_lines):
    tokenizer = causal(tokenizer_context_lines=context_lines).scanline.tokenizer
    pixels = make_lines(1, 30).requires_grad_()
    tokenizer(pixels, None)[0][0, 20].sum().backward()
    first = 20 - len(tokenizer.stages) * (context_lines - 1)
    seen = pixels.grad[0].abs().sum(-1) > 0
    assert seen.nonzero().flatten().tolist() == list(range(first, 21))


def test_attention_sees_the_window_and_no_line_before(causal, make_lines):
    model = causal(num_hidden_layers=1, tokenizer_context_lines=1, sliding_window=4)
    pixels = make_lines(1, 12).requires_grad_()
    model(pixels).logits.sum().backward()
    assert (pixels.grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == [8, 9, 10, 11]


# streams


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("window", [WINDOW, None])
@POSITIONS
@CONTEXTS
def test_a_stream_gives_what_the_whole_scan_gives(causal, lines, context_lines, positions, window, chunk):
    model = causal(tokenizer_context_lines=context_lines, position_embedding_type=positions, sliding_window=window)
    with torch.no_grad():
        expected = model(lines).line_logits
    assert_same(stream(model, lines, in_chunks_of(chunk))[0], expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunk", [1, 3, 7, NUM_LINES])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_a_stream_into_memory_allocated_at_once_gives_the_same(causal, lines, window, chunk, attention):
    model = causal(sliding_window=window, attn_implementation=attention)
    with torch.no_grad():
        expected = model(lines).line_logits
    cache = ScanlineCache(model.config, max_cache_len=NUM_LINES)
    assert_same(stream(model, lines, in_chunks_of(chunk), cache=cache)[0], expected)


@st.composite
def chunkings(draw):
    edges = draw(st.sets(st.integers(1, NUM_LINES - 1), max_size=12))
    edges = [0, *sorted(edges), NUM_LINES]
    return [end - start for start, end in pairwise(edges)]


@given(chunks=chunkings(), static=st.booleans(), with_holes=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_chunks_with_or_without_holes_give_the_same(model, lines, whole, holes, chunks, static, with_holes):
    cache = ScanlineCache(model.config, max_cache_len=NUM_LINES if static else None)
    if not with_holes:
        assert_same(stream(model, lines, chunks, cache=cache)[0], whole)
        return
    with torch.no_grad():
        expected = model(with_nan(lines, holes), holes).line_logits
    streamed, _ = stream(model, with_nan(lines, holes), chunks, holes, cache)
    assert streamed.isfinite().all()
    assert_same(streamed, expected, holes)


@pytest.mark.parametrize("window", [WINDOW, None])
def test_holes_with_eager_attention_and_any_window_give_the_same(causal, lines, holes, window):
    model = causal(sliding_window=window, attn_implementation="eager")
    with torch.no_grad():
        expected = model(with_nan(lines, holes), holes).line_logits
    for cache in (None, ScanlineCache(model.config, max_cache_len=NUM_LINES)):
        assert_same(stream(model, with_nan(lines, holes), in_chunks_of(3), holes, cache)[0], expected, holes)


def test_a_mask_may_come_late_and_go_again(model, lines):
    mask = torch.ones(2, NUM_LINES, dtype=torch.bool)
    mask[:, 22:24] = False
    with torch.no_grad():
        expected = model(lines, mask).line_logits
        first = model(lines[:, :20], use_cache=True)
        second = model(lines[:, 20:25], mask[:, 20:25], past_key_values=first.past_key_values)
        third = model(lines[:, 25:], past_key_values=second.past_key_values)
    streamed = torch.cat([first.line_logits, second.line_logits, third.line_logits], dim=1)
    assert_same(streamed, expected, mask)


def test_the_cache_has_the_names_of_all_supported_releases_of_the_library(model, lines, whole):
    """`cache` from 5.24 on; one that was passed by the other name must not be dropped without a word."""
    with torch.no_grad():
        first = model(lines[:, :20], use_cache=True)
        assert isinstance(first.cache, ScanlineCache) and first.past_key_values is first.cache
        second = model(lines[:, 20:], cache=first.cache)
        tokens = model.scanline(lines[:, :20], use_cache=True)
    assert_same(torch.cat([first.line_logits, second.line_logits], dim=1), whole)
    assert isinstance(tokens.cache, ScanlineCache) and tokens.past_key_values is tokens.cache
    with pytest.raises(ValueError, match="two names of one thing"):
        model(lines[:, 20:], cache=first.cache, past_key_values=first.cache)


def test_less_memory_than_the_window_is_not_a_smaller_window(model, lines, whole):
    cache = ScanlineCache(model.config, max_cache_len=4)
    assert_same(stream(model, lines, in_chunks_of(1), cache=cache)[0], whole)


def test_more_lines_than_allocated_are_refused(causal, lines):
    model = causal(sliding_window=None)
    with pytest.raises(ValueError, match=r"max_cache_len=4.*got 6"):
        stream(model, lines, in_chunks_of(3), cache=ScanlineCache(model.config, max_cache_len=4))


# what is remembered


def memory(cache):
    states = [cache.line_mask, *cache.line_buffers.values()]
    states += [state for layer in cache.layers for state in (layer.keys, layer.values)]
    return sum(state.untyped_storage().nbytes() for state in states if state is not None)


@pytest.mark.parametrize("with_holes", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_memory_stays_constant_beyond_the_window(model, make_lines, static, with_holes):
    lines = make_lines(1, 5 * WINDOW)
    mask = torch.ones(1, 5 * WINDOW, dtype=torch.bool)
    mask[:, 2] = not with_holes
    cache = ScanlineCache(model.config, max_cache_len=WINDOW if static else None)
    sizes = []
    for line in range(5 * WINDOW):
        stream(model, lines[:, line : line + 1], [1], mask[:, line : line + 1] if with_holes else None, cache)
        sizes.append(memory(cache))
    assert set(sizes[WINDOW:]) == {sizes[WINDOW]}


def test_the_cache_counts_lines(model, lines):
    _, cache = stream(model, lines, [NUM_LINES])
    assert cache.get_seq_length() == NUM_LINES


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("with_holes", [False, True])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_reset_forgets_everything(causal, lines, holes, window, with_holes, static):
    model = causal(sliding_window=window)
    mask = holes if with_holes else None
    cache = ScanlineCache(model.config, max_cache_len=NUM_LINES if static else None)
    stream(model, lines, in_chunks_of(7), mask, cache)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.line_mask is None and not cache.line_buffers
    with torch.no_grad():
        expected = model(lines.flip(1)).line_logits
    assert_same(stream(model, lines.flip(1), in_chunks_of(7), cache=cache)[0], expected)


@pytest.mark.parametrize(
    ("method", "argument", "order"),
    [
        ("batch_select_indices", torch.tensor([1]), [1]),
        ("batch_repeat_interleave", 2, [0, 0, 1, 1]),
        ("reorder_cache", torch.tensor([1, 0]), [1, 0]),
    ],
)
def test_streams_of_a_batch_can_be_chosen_repeated_and_reordered(model, lines, holes, method, argument, order):
    with torch.no_grad():
        expected = model(lines, holes).line_logits[order]
    _, cache = stream(model, lines[:, :30], [30], holes[:, :30])
    getattr(cache, method)(argument)
    streamed, _ = stream(model, lines[order, 30:], [20], holes[order, 30:], cache)
    assert_same(streamed, expected[:, 30:], holes[order, 30:])


def test_a_cache_cannot_be_cropped(model, lines):
    _, cache = stream(model, lines, [NUM_LINES])
    with pytest.raises(ValueError, match=r"cannot be cropped: call reset\(\) and feed the lines to keep once more"):
        cache.crop(-1)


def test_a_cache_of_another_kind_is_refused(model, lines):
    with pytest.raises(ValueError, match="must be a ScanlineCache, got DynamicCache"):
        model(lines, past_key_values=DynamicCache(config=model.config))


# positions beyond the trained length


def test_rotary_logits_become_periodic_where_the_scan_does(causal, make_lines):
    """128 lines trained; lines that repeat look the same at line 140 and at line 1400."""
    model = causal(max_lines=128, sliding_window=128)
    period = 20
    lines = make_lines(1, period).repeat(1, 72, 1)
    with torch.no_grad():
        logits = model(lines).line_logits[0]
    settled = 14 * period  # past two layers' windows and the tokenizer's context, 2 * 127 + 12
    periods = logits[settled:].view(-1, period, 4)
    assert periods.shape[0] > 50 and periods[0].std() > 0.1
    assert_same(periods, periods[:1].expand_as(periods), tolerance=1e-4)


class LateCache(ScanlineCache):
    """A stream that has been going on for `lines_before` lines."""

    lines_before = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) + self.lines_before

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx)


@pytest.mark.parametrize("lines_before", [1_000, 1_000_000, 10_000_000])
def test_rotary_logits_do_not_depend_on_when_the_stream_began(model, lines, whole, lines_before):
    cache = LateCache(model.config)
    cache.lines_before = lines_before
    assert_same(stream(model, lines, in_chunks_of(7), cache=cache)[0], whole, tolerance=1e-4)


def test_sinusoidal_positions_stop_at_the_last_trained_one(causal, make_lines):
    model = causal(position_embedding_type="sinusoidal")
    lines = make_lines(1, 1).repeat(1, 500, 1)
    with torch.no_grad():
        logits = model(lines).line_logits[0]
    assert logits.isfinite().all()
    # position 15, two windows and the tokenizer's context later nothing moves any more
    assert_same(logits[100:], logits[100:101].expand(400, -1))
    assert not torch.allclose(logits[15], logits[14], atol=1e-4)


@POSITIONS
def test_positions_matter_within_the_trained_length(causal, make_lines, positions):
    model = causal(position_embedding_type=positions, tokenizer_context_lines=1)
    lines = make_lines(1, 12)
    swapped = lines[:, [1, 0, *range(2, 12)]]
    assert not torch.allclose(model(lines).logits, model(swapped).logits, atol=1e-3)


# calibration

TEMPERATURES = {"calibration_lines": [4, 16, 32], "calibration_temperatures": [3.0, 2.0, 0.5]}


@pytest.fixture
def calibrated(model, causal):
    calibrated = causal(**TEMPERATURES)
    calibrated.load_state_dict(model.state_dict())
    return calibrated


def test_temperatures_divide_the_logits_after_each_line(calibrated, whole, lines):
    with torch.no_grad():
        ratio = (whole / calibrated(lines).line_logits)[0, :, 0]
    expected = {1: 3.0, 4: 3.0, 8: 2.5, 16: 2.0, 32: 0.5, 50: 0.5}
    for count, temperature in expected.items():
        assert ratio[count - 1].item() == pytest.approx(temperature, rel=1e-3)


@pytest.mark.parametrize("chunk", [1, 7])
def test_temperatures_follow_a_stream(calibrated, lines, chunk):
    with torch.no_grad():
        expected = calibrated(lines).line_logits
    assert_same(stream(calibrated, lines, in_chunks_of(chunk))[0], expected)
    static = ScanlineCache(calibrated.config, max_cache_len=NUM_LINES)
    assert_same(stream(calibrated, lines, in_chunks_of(chunk), cache=static)[0], expected)


def test_temperatures_are_not_trained_with(calibrated, model, lines):
    labels = torch.tensor([0, 1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = model.train()(lines, labels=labels).loss
        torch.manual_seed(0)
        torch.testing.assert_close(calibrated.train()(lines, labels=labels).loss, loss)
    model.eval()


def test_biases_are_added_after_each_line(calibrated, causal, lines):
    biases = [[0.0, 1.0, 0.0, -1.0], [0.0, 3.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]
    biased = causal(**TEMPERATURES, calibration_biases=biases)
    biased.load_state_dict(calibrated.state_dict())
    with torch.no_grad():
        added = (biased(lines).line_logits - calibrated(lines).line_logits)[0]
    for count, expected in {1: biases[0], 8: [0.0, 2.0, 0.0, -0.5], 16: biases[1], 50: biases[2]}.items():
        torch.testing.assert_close(added[count - 1], torch.tensor(expected), atol=1e-4, rtol=0)


def test_a_power_of_the_largest_logit_makes_sure_verdicts_surer(calibrated, causal, lines):
    powered = causal(**TEMPERATURES, calibration_exponents=[0.5, 0.5, -0.5])
    powered.load_state_dict(calibrated.state_dict())
    with torch.no_grad():
        before, after = (each(lines).line_logits[0] for each in (calibrated, powered))
    temperatures = {1: 3.0, 8: 2.5, 16: 2.0, 24: 2.0 - 1.5 * math.log(1.5) / math.log(2), 50: 0.5}
    for count, exponent in {1: 0.5, 8: 0.5, 16: 0.5, 24: 0.5 - math.log(1.5) / math.log(2), 50: -0.5}.items():
        centered = before[count - 1] - before[count - 1].mean()
        expected = centered * (centered.max() * temperatures[count]) ** exponent
        torch.testing.assert_close(after[count - 1], expected, atol=1e-4, rtol=1e-4)
    assert_same(stream(powered, lines, in_chunks_of(7))[0], powered(lines).line_logits)


def test_one_temperature_for_all_lines(causal, lines, model, whole):
    one = causal(calibration_lines=[20], calibration_temperatures=[2.0])
    one.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert_same(2 * one(lines).line_logits, whole)


@pytest.mark.parametrize("num_members", [1, 2])
def test_lines_go_on_where_a_model_is_spread_over_devices(causal, make_lines, tmp_path, num_members):
    model, lines = causal(num_members=num_members), make_lines(1, 12)
    model.save_pretrained(tmp_path / "model")
    spread = ScanlineCausalForImageClassification.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "30KB"}, offload_folder=tmp_path / "offloaded"
    )
    assert "disk" in spread.hf_device_map.values()
    with torch.no_grad():
        first = spread(lines[:, :5], use_cache=True)
        rest = spread(lines[:, 5:], past_key_values=first.past_key_values)
        torch.testing.assert_close(rest.line_logits, model(lines).line_logits[:, 5:], atol=1e-5, rtol=0)
