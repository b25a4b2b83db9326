"""The published CNN: its layers, the padding to a whole scan, limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_scanline import ScanlineCNNConfig, ScanlineCNNForImageClassification, ScanlineCNNModel


@pytest.fixture(scope="module")
def model(cnn):
    return cnn()


def test_its_layers_are_the_published_ones():
    model = ScanlineCNNForImageClassification(ScanlineCNNConfig(num_labels=4))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == [
        (1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128),
    ]  # fmt: skip
    assert [conv.kernel_size for conv in convolutions] == [(7, 7)] + 5 * [(3, 3)]
    assert [conv.stride for conv in convolutions] == [(2, 2)] + 5 * [(1, 1)]
    assert model.classifier.weight.shape == (4, 128 * 8 * 8)
    assert model.dropout.p == 0.5


def test_shapes(model, make_lines):
    outputs = model(make_lines(3, 10), output_hidden_states=True)
    assert outputs.logits.shape == (3, 4)
    assert outputs.loss is None
    shapes = [tuple(state.shape) for state in outputs.hidden_states]
    assert shapes == [(3, 1, 16, 32), (3, 4, 4, 8), (3, 6, 2, 4), (3, 8, 1, 2)]
    bare = ScanlineCNNModel(model.config).eval()(make_lines(3, 10))
    assert bare.last_hidden_state.shape == (3, 8, 1, 2)
    torch.testing.assert_close(bare.pooler_output, bare.last_hidden_state.flatten(1))


@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_partial_scan_is_a_whole_one_with_zeros(model, make_lines, lengths, seed):
    lines = make_lines(len(lengths), 16, seed)
    measured = torch.arange(16) < torch.tensor(lengths).unsqueeze(1)
    with torch.no_grad():
        masked = model(lines.masked_fill(~measured.unsqueeze(-1), float("nan")), measured.long()).logits
        assert torch.equal(masked, model(lines * measured.unsqueeze(-1)).logits)
        alone = torch.cat([model(lines[row : row + 1, :length]).logits for row, length in enumerate(lengths)])
    torch.testing.assert_close(masked, alone, atol=1e-5, rtol=0)


def test_every_line_counts(model, make_lines):
    lines = make_lines(1, 16).requires_grad_()
    model(lines).logits.std().backward()
    assert (lines.grad.abs().sum(-1) > 0).all()


def test_the_order_of_lines_counts(model, make_lines):
    assert not torch.allclose(model(make_lines()).logits, model(make_lines().flip(1)).logits, atol=1e-2)


def test_more_lines_than_the_image_has_are_refused(model, make_lines):
    with pytest.raises(ValueError, match=r"at most max_lines=16 lines, got 17: cut the scan, or use a causal model"):
        model(make_lines(2, 17))


def test_new_weights_keep_the_scale_of_what_passes():
    """Without normalization, features of the last block are as large as the pixels, and the head is undecided."""
    torch.manual_seed(0)
    model = ScanlineCNNForImageClassification(ScanlineCNNConfig(num_labels=4)).eval()
    outputs = model(torch.randn(4, 128, 128), output_hidden_states=True)
    assert all(0.3 < state.square().mean().sqrt() < 30 for state in outputs.hidden_states)
    assert outputs.logits.abs().max() < 2
