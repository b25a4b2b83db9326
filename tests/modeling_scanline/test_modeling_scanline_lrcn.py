"""The published LRCN: its layers, its windows, and that nothing flows backwards in time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_scanline import ScanlineLRCNConfig, ScanlineLRCNForImageClassification, ScanlineLRCNModel

STRIDES = pytest.mark.parametrize("stride", [1, 3, 8])


@pytest.fixture(scope="module")
def model(lrcn):
    return lrcn()


@pytest.fixture(scope="module")
def every_third(lrcn):
    return lrcn(window_stride=3)


def test_its_layers_are_the_published_ones():
    model = ScanlineLRCNForImageClassification(ScanlineLRCNConfig(num_labels=4))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [32, 32, 64, 64, 128, 128]
    assert [conv.kernel_size for conv in convolutions] == [(7, 7)] + 5 * [(3, 3)]
    lstm = model.scanline.lstm
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bidirectional) == (1024, 256, 1, False)
    assert model.classifier.weight.shape == (4, 256)
    assert model.dropout.p == 0.5


def test_shapes(model, every_third, make_lines):
    outputs = model(make_lines(3, 20))
    assert outputs.logits.shape == (3, 4) and outputs.line_logits.shape == (3, 20, 4)
    assert outputs.loss is None and outputs.past_key_values is None
    assert outputs.line_logits.std() > 0.1
    assert ScanlineLRCNModel(model.config)(make_lines(3, 20)).last_hidden_state.shape == (3, 20, 32)
    hidden_states = every_third(make_lines(3, 20), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in hidden_states] == [(18, 1, 8, 32), (18, 4, 2, 8), (18, 6, 1, 4)]


@STRIDES
def test_windows_by_hand(lrcn, make_lines, stride):
    lines = make_lines(2, 20)
    windows = lrcn(window_stride=stride).scanline.windows(lines)
    padded = torch.cat((torch.zeros(2, 8, 32), lines), dim=1)
    expected = [padded[:, end : end + 8] for end in range(stride, 21, stride)]
    assert torch.equal(windows, torch.stack(expected, dim=1))


def test_states_are_those_of_the_last_window_that_has_ended(every_third, make_lines):
    with torch.no_grad():
        line_logits = every_third(make_lines(2, 20)).line_logits
        assert not line_logits[:, :2].any()
        for line in range(2, 20):
            ended = (line + 1) // 3 * 3
            alone = every_third(make_lines(2, 20)[:, :ended]).logits
            torch.testing.assert_close(line_logits[:, line], alone, atol=1e-6, rtol=0)


@given(changed_line=st.integers(0, 29), stride=st.sampled_from([1, 3]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_all_that_follows_changes_no_logit_before_it(model, every_third, make_lines, changed_line, stride, seed):
    lines = make_lines(2, 30)
    changed = lines.clone()
    changed[:, changed_line:] = make_lines(2, 30 - changed_line, 1000 + seed)
    chosen = model if stride == 1 else every_third
    with torch.no_grad():
        before, after = chosen(lines).line_logits, chosen(changed).line_logits
    assert torch.equal(after[:, :changed_line], before[:, :changed_line])
    first_new = (changed_line // stride + 1) * stride - 1  # where the window that holds the line ends
    if first_new < 30:
        assert (after[:, first_new] != before[:, first_new]).any(-1).all()


def test_the_first_line_is_remembered_beyond_its_windows(model, make_lines):
    lines = make_lines(1, 12).requires_grad_()
    model(lines).logits.std().backward()
    assert (lines.grad.abs().sum(-1) > 0).all()


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_padding_changes_nothing(every_third, make_lines, lengths, seed):
    padded = make_lines(len(lengths), 30, seed)
    measured = torch.arange(30) < torch.tensor(lengths).unsqueeze(1)
    nan = padded.masked_fill(~measured.unsqueeze(-1), float("nan"))
    with torch.no_grad():
        batch = every_third(nan, measured).logits
        alone = torch.cat([every_third(padded[row : row + 1, :length]).logits for row, length in enumerate(lengths)])
    torch.testing.assert_close(batch, alone, atol=1e-6, rtol=0)


def test_an_unmeasured_line_is_zero_whatever_it_holds(model, make_lines):
    mask = torch.ones(2, 20)
    mask[0, :3] = mask[0, 9] = mask[1, 15:] = 0
    lines = make_lines(2, 20)
    expected = model(lines * mask.unsqueeze(-1)).line_logits
    outputs = model(lines.masked_fill(mask.unsqueeze(-1) == 0, float("nan")), mask)
    assert torch.equal(outputs.line_logits, expected)
    assert torch.equal(outputs.logits, outputs.line_logits[[0, 1], [19, 14]])


def test_before_the_first_window_has_ended_nothing_is_known(every_third, make_lines):
    outputs = every_third(make_lines(2, 2), labels=torch.tensor([0, 1]))
    assert not outputs.line_logits.any()
    torch.testing.assert_close(outputs.loss, torch.tensor(4.0).log())


def test_labels_of_every_line_are_taken(model, make_lines):
    labels = torch.tensor([1, 2])
    expected = model(make_lines(2, 20), labels=labels).loss
    torch.testing.assert_close(model(make_lines(2, 20), labels=labels.unsqueeze(1).expand(-1, 20)).loss, expected)


def test_new_weights_remember():
    lstm = ScanlineLRCNModel(ScanlineLRCNConfig(hidden_size=3)).lstm
    assert lstm.bias_ih_l0.tolist() == 3 * [0] + 3 * [1] + 6 * [0]
    assert not lstm.bias_hh_l0.any()
