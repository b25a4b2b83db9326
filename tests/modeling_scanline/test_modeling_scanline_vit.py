"""The vision transformer: shapes, padding, limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_scanline import ScanlineViTModel


@pytest.fixture(scope="module")
def model(vit):
    return vit()


def test_shapes(model, make_lines):
    outputs = model(make_lines(3, 10), output_hidden_states=True)
    assert outputs.logits.shape == (3, 4)
    assert outputs.loss is None
    bare = ScanlineViTModel(model.config).eval()(make_lines(3, 10))
    assert bare.last_hidden_state.shape == (3, 11, 32)
    torch.testing.assert_close(bare.pooler_output, bare.last_hidden_state[:, 0])


@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing(model, make_lines, lengths, seed):
    lines = make_lines(len(lengths), 16, seed)
    measured = torch.arange(16) < torch.tensor(lengths).unsqueeze(1)
    with torch.no_grad():
        batch = model(lines.masked_fill(~measured.unsqueeze(-1), float("nan")), measured.long()).logits
        alone = torch.cat([model(lines[row : row + 1, :length]).logits for row, length in enumerate(lengths)])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type_mean_the_same(every, make_lines, dtype):
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    model = every()
    expected = model(make_lines()[1:, :7]).logits
    torch.testing.assert_close(model(make_lines(), mask.to(dtype)).logits[1:], expected, atol=1e-5, rtol=0)


def test_every_line_counts(model, make_lines):
    lines = make_lines(1, 12).requires_grad_()
    model(lines).logits[0, 0].backward()
    assert (lines.grad.abs().sum(-1) > 0).all()


def test_the_order_of_lines_counts(model, make_lines):
    assert not torch.allclose(model(make_lines()).logits, model(make_lines().flip(1)).logits, atol=1e-2)


def test_a_scan_without_any_measured_line_is_finite(every, make_lines):
    logits = every()(make_lines() * float("nan"), torch.zeros(2, 12, dtype=torch.long)).logits
    assert logits.isfinite().all()


def test_fewer_lines_than_positions_are_fine(model, make_lines):
    assert model(make_lines(2, 1)).logits.shape == (2, 4)
    assert model(make_lines(2, 16)).logits.shape == (2, 4)


def test_more_lines_than_positions_are_refused(model, make_lines):
    with pytest.raises(ValueError, match=r"at most max_lines=16 lines, got 17: cut the scan, or use a causal model"):
        model(make_lines(2, 17))


@pytest.mark.parametrize("shape", [(2, 12, 31), (12, 32), (2, 0, 32), (2, 1, 12, 32)])
def test_inputs_of_another_shape_are_refused(every, shape):
    with pytest.raises(ValueError, match=r"Expected pixel_values of shape \[batch, lines, 32\].*got"):
        every()(torch.zeros(shape))


def test_a_mask_of_another_shape_is_refused(every, make_lines):
    with pytest.raises(ValueError, match=r"Expected an attention_mask of shape \[2, 12\].*got \[2, 11\]"):
        every()(make_lines(), torch.ones(2, 11))


@pytest.mark.parametrize("with_hole", [False, True])
def test_gradient_reaches_every_parameter(every, make_lines, with_hole):
    model = every(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0).train()
    lines, mask = make_lines(2, 16), None
    if with_hole:
        mask = torch.ones(2, 16)
        mask[:, 0] = mask[0, 5:8] = mask[1, 12:] = 0
        lines = lines.masked_fill(mask.unsqueeze(-1) == 0, float("nan"))
    model(lines, mask, labels=torch.tensor([1, 3])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # attention does not change when all keys move by the same vector
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 1e-7, name
