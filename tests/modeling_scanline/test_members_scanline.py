"""Several networks side by side in one causal model: each by itself, and all of them in a stream as well."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_scanline import ScanlineCache, ScanlineCausalForImageClassification, ScanlineImageProcessor

NUM_LINES = 40  # more than two windows


LARGER = {
    "hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1, "tokenizer_channels": [4, 8],
    "tokenizer_kernel_sizes": [5, 3], "tokenizer_strides": [2, 1], "tokenizer_context_lines": 2,
    "tokenizer_pooling": "mean",
}  # fmt: skip
SIZES = {"alike": None, "of other sizes": [{}, LARGER]}


@pytest.fixture(
    scope="module",
    params=[(position, sizes) for position in ("rotary", "sinusoidal") for sizes in SIZES],
    ids=" ".join,
)
def model(request, causal):
    position, sizes = request.param
    return causal(num_members=3, position_embedding_type=position, member_sizes=SIZES[sizes])


@pytest.fixture(scope="module")
def lines(make_lines):
    return make_lines(2, NUM_LINES)


def test_members_see_nothing_of_each_other(model, lines, causal):
    with torch.no_grad():
        widths = [config.hidden_size for config in model.config.member_configs]
        states = model.scanline(lines).last_hidden_state.split(widths, dim=-1)
        for number, member in enumerate(model.scanline.members):
            sizes = LARGER if number == 2 and model.config.member_sizes else {}
            alone = causal(position_embedding_type=model.config.position_embedding_type, **sizes).scanline
            weights = {name: weight for name, weight in member.state_dict().items() if not name.startswith("others.")}
            alone.load_state_dict(weights)
            torch.testing.assert_close(states[number], alone(lines).last_hidden_state, atol=1e-5, rtol=0)


def test_all_members_count(model, lines):
    logits = model(lines).line_logits.sum()
    logits.backward()
    for member in model.scanline.members:
        assert member.layers[0].mlp.fc1.weight.grad.abs().max() > 0 and member.tokenizer.projection.bias.grad.any()
    model.zero_grad()


@given(edges=st.sets(st.integers(1, NUM_LINES - 1), max_size=8), static=st.booleans(), with_holes=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_stream_gives_what_the_whole_scan_gives(model, lines, edges, static, with_holes):
    mask = torch.ones(lines.shape[:2], dtype=torch.bool)
    if with_holes:
        mask[0, :2] = mask[0, 17:26] = mask[1, 31:33] = False
    given_lines = lines.masked_fill(~mask.unsqueeze(-1), float("nan"))
    cache = ScanlineCache(model.config, max_cache_len=NUM_LINES if static else None)
    edges = [0, *sorted(edges), NUM_LINES]
    with torch.no_grad():
        whole = model(given_lines, mask).line_logits
        parts = [
            model(given_lines[:, start:end], mask[:, start:end], past_key_values=cache).line_logits
            for start, end in pairwise(edges)
        ]
    num_stages = sum(len(member.tokenizer.stages) for member in model.scanline.members)
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask], whole[mask], atol=1e-5, rtol=0)
    assert cache.get_seq_length() == NUM_LINES and len(cache.line_buffers) == num_stages
    assert len(cache.layers) == sum(len(member.layers) for member in model.scanline.members)


def test_streams_of_a_batch_can_be_reordered(model, lines):
    with torch.no_grad():
        whole = model(lines).line_logits
        cache = model(lines[:, :20], use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        rest = model(lines[:, 20:].flip(0), past_key_values=cache).line_logits
    torch.testing.assert_close(rest.flip(0), whole[:, 20:], atol=1e-5, rtol=0)


def test_raw_lines_one_by_one_give_what_the_whole_scan_gives(model):
    processor = ScanlineImageProcessor(pixels_per_line=32)
    scan = np.random.default_rng(0).standard_normal((NUM_LINES, 32)).astype(np.float32)
    scan[7] = np.nan
    with torch.no_grad():
        inputs = processor(scan, return_tensors="pt")
        whole = model(**inputs).line_logits[0].softmax(-1).numpy()
    streamer = model.streamer(processor)
    for _ in range(2):
        for number, result in enumerate(streamer.update_many(scan)):
            if number != 7:
                np.testing.assert_allclose(result.probabilities, whole[number], atol=1e-5)
        streamer.reset()


def test_it_is_saved_and_loaded_with_all_members(model, lines, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ScanlineCausalForImageClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.num_members == 3
    with torch.no_grad():
        torch.testing.assert_close(loaded(lines).logits, model(lines).logits, atol=0, rtol=0)


def test_members_of_other_sizes_take_the_implementation_that_is_set_later(causal, lines):
    model = causal(num_members=2, member_sizes=[LARGER])
    with torch.no_grad():
        before = model(lines).logits
        model.set_attn_implementation("eager")
        outputs = model(lines, output_attentions=True)
    assert len(outputs.attentions) == 2 + 1 and all(weights is not None for weights in outputs.attentions)
    torch.testing.assert_close(outputs.logits, before, atol=1e-5, rtol=0)


def test_layers_are_told_of_one_member_after_the_other(causal, make_lines):
    model = causal(num_members=2, attn_implementation="eager")
    outputs = model(make_lines(), output_attentions=True)
    assert len(outputs.attentions) == 2 * model.config.num_hidden_layers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_members": 0}, "num_members must be at least 1"),
        ({"num_members": 2, "next_line_weight": 0.5}, "next_line_weight=0.5 is for a single member"),
        ({"num_members": 2, "member_sizes": [{}, {}]}, "one entry for each of num_members=2 but the first, got 2"),
        ({"num_members": 2, "member_sizes": [{"max_lines": 5}]}, "member_sizes may have .*, got max_lines"),
        ({"num_members": 2, "member_sizes": [{"hidden_size": 0}]}, "hidden_size must be at least 1"),
        ({"num_members": 2, "member_sizes": [{"tokenizer_channels": [4]}]}, "one entry a convolution"),
    ],
)
def test_what_cannot_be_is_refused(causal_config, changes, says):
    with pytest.raises(Exception, match=says):
        causal_config(**changes)
