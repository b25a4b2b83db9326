"""The loss, against PyTorch's and against sums written out."""

import math
from itertools import pairwise

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

from modeling_scanline import ScanlineCausalConfig, line_loss_weights, tip_state_loss

WEIGHTS = [0.5, 2.0, 1.0, 0.5]


def config(**changes):
    return ScanlineCausalConfig(**{"num_labels": 4, **changes})


@pytest.fixture
def logits():
    return torch.randn(6, 4)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 1, 0])


@pytest.fixture
def line_logits():
    return torch.randn(6, 5, 4)


@pytest.fixture
def uniform():
    return torch.full((6, 5), 0.2)


def test_plain_loss_is_cross_entropy(logits, labels):
    torch.testing.assert_close(tip_state_loss(logits, labels, config()), cross_entropy(logits, labels))


def test_class_weights_multiply_each_scan(logits, labels):
    expected = cross_entropy(logits, labels, weight=torch.tensor(WEIGHTS), reduction="sum") / 6
    torch.testing.assert_close(tip_state_loss(logits, labels, config(class_weights=WEIGHTS)), expected)


def test_label_smoothing_is_that_of_pytorch(logits, labels):
    expected = cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(tip_state_loss(logits, labels, config(label_smoothing=0.1)), expected)


def test_a_scan_keeps_its_weight_when_labels_are_smoothed():
    probabilities = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    loss = tip_state_loss(probabilities.log(), torch.tensor([1]), config(class_weights=WEIGHTS, label_smoothing=0.2))
    # target 0.05, 0.85, 0.05, 0.05, times the weight 2 of class 1
    assert loss.item() == pytest.approx(-2 * (0.05 * math.log(0.7) + 0.95 * math.log(0.1)), abs=1e-6)


def test_soft_labels_are_targets(logits):
    scores = torch.rand(6, 4).softmax(-1)
    torch.testing.assert_close(tip_state_loss(logits, scores, config()), cross_entropy(logits, scores))


def test_soft_labels_of_one_class_equal_hard_labels(logits, labels):
    settings_ = config(class_weights=WEIGHTS, label_smoothing=0.1)
    expected = tip_state_loss(logits, labels, settings_)
    torch.testing.assert_close(tip_state_loss(logits, one_hot(labels, 4).float(), settings_), expected)


@pytest.mark.parametrize("lines", [False, True])
def test_ignored_scans_do_not_count(logits, labels, line_logits, uniform, lines):
    values, weights = (line_logits, uniform) if lines else (logits, None)
    ignored = labels.clone()
    ignored[[1, 4]] = -100
    scores = one_hot(labels, 4).double()
    scores[[1, 4]] = -100
    keep = torch.tensor([0, 2, 3, 5])
    expected = tip_state_loss(values[keep], labels[keep], config(), None if weights is None else weights[keep])
    torch.testing.assert_close(tip_state_loss(values, ignored, config(), weights), expected)
    torch.testing.assert_close(tip_state_loss(values, scores, config(), weights), expected)


@pytest.mark.parametrize("shape", [(6,), (6, 5)])
def test_all_labels_ignored_is_zero_and_finite(line_logits, uniform, shape):
    line_logits.requires_grad_()
    loss = tip_state_loss(line_logits, torch.full(shape, -100), config(class_weights=WEIGHTS), uniform)
    loss.backward()
    assert loss == 0 and not line_logits.grad.any()


def test_the_loss_over_lines_is_their_weighted_mean(line_logits, labels, uniform):
    expected = cross_entropy(line_logits.flatten(0, 1), labels.repeat_interleave(5))
    torch.testing.assert_close(tip_state_loss(line_logits, labels, config(), uniform), expected)
    last = torch.tensor([0.0, 0, 0, 0, 1]).repeat(6, 1)
    torch.testing.assert_close(
        tip_state_loss(line_logits, labels, config(), last), cross_entropy(line_logits[:, -1], labels)
    )


def test_labels_of_every_line_are_items_of_their_own(line_logits, uniform):
    labels = torch.randint(4, (6, 5))
    labels[0, 2] = labels[3, :4] = -100
    expected = cross_entropy(line_logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(tip_state_loss(line_logits, labels, config(), uniform), expected)


def test_labels_of_every_line_keep_the_scale_of_the_loss_under_any_weighting(line_logits, labels):
    """A loss that is the same at all lines is so whatever lines are weighed, measured or not."""
    same = line_logits[:, :1].expand(-1, 5, -1)
    every_line = labels.unsqueeze(1).expand(-1, 5)
    expected = cross_entropy(same[:, 0], labels)
    for weights in ([0.2] * 5, [0, 0, 0, 0, 1], [1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15], [0.5, 0.5, 0, 0, 0]):
        line_weights = torch.tensor(weights, dtype=torch.float).repeat(6, 1)
        torch.testing.assert_close(tip_state_loss(same, every_line, config(), line_weights), expected)


def test_line_weightings_by_hand():
    measured = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    expected = {
        "uniform": [[1 / 3, 1 / 3, 0, 1 / 3, 0], [0.2] * 5, [0.0] * 5],
        "linear": [[1 / 6, 2 / 6, 0, 3 / 6, 0], [1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15], [0.0] * 5],
        "last": [[0, 0, 0, 1.0, 0], [0, 0, 0, 0, 1.0], [0.0] * 5],
    }
    for weighting, weights in expected.items():
        torch.testing.assert_close(line_loss_weights(measured, weighting), torch.tensor(weights))


@pytest.mark.parametrize("weighting", ["uniform", "linear", "last"])
@pytest.mark.parametrize("name", ["causal", "lrcn"])
def test_unmeasured_lines_do_not_enter_the_loss(request, make_lines, name, weighting):
    model = request.getfixturevalue(name)(line_loss_weighting=weighting)
    mask = torch.ones(2, 12)
    mask[:, 8:] = 0
    labels = torch.tensor([1, 2])
    cut = model(make_lines()[:, :8], labels=labels).loss
    torch.testing.assert_close(model(make_lines(), mask, labels=labels).loss, cut, atol=1e-6, rtol=0)


@given(cuts=st.lists(st.integers(1, 5), unique=True, max_size=3), kind=st.sampled_from(["hard", "soft", "lines"]))
@settings(max_examples=25, deadline=None)
def test_micro_batches_add_up_to_the_whole_batch(cuts, kind):
    generator = torch.Generator().manual_seed(len(cuts))
    line_logits = torch.randn(6, 5, 4, generator=generator)
    line_weights = torch.rand(6, 5, generator=generator).softmax(-1)
    labels = {
        "hard": torch.tensor([0, -100, 2, 3, 1, 0]),
        "soft": torch.rand(6, 4, generator=generator).softmax(-1),
        "lines": torch.randint(4, (6, 5), generator=generator).index_fill(1, torch.tensor([2]), -100),
    }[kind]
    settings_ = config(class_weights=WEIGHTS, label_smoothing=0.1)
    num_items = (labels != -100).sum()
    edges = [0, *sorted(cuts), 6]
    parts = [
        tip_state_loss(line_logits[a:b], labels[a:b], settings_, line_weights[a:b], num_items)
        for a, b in pairwise(edges)
    ]
    whole = tip_state_loss(line_logits, labels, settings_, line_weights)
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        tip_state_loss(line_logits, labels, settings_, line_weights, int(num_items)), whole, atol=1e-6, rtol=0
    )


def test_half_precision_logits_give_a_float32_loss(logits, labels):
    assert tip_state_loss(logits.bfloat16(), labels, config()).dtype == torch.float32


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_out_of_range_is_refused(logits, label):
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        tip_state_loss(logits, torch.full((6,), label), config())


def test_class_weights_of_another_number_are_refused(every):
    with pytest.raises(StrictDataclassError, match=r"class_weights must have one entry a label, got 3 for 4 labels"):
        config(class_weights=[1.0, 1.0, 1.0])
    model = every(class_weights=WEIGHTS)
    model.config.num_labels = 3
    with pytest.raises(StrictDataclassError, match=r"got 4 for 3 labels: from_pretrained\(..., num_labels"):
        type(model)(model.config)


def test_every_model_computes_it(every, make_lines):
    model = every(class_weights=WEIGHTS, label_smoothing=0.1)
    labels = torch.tensor([1, 2])
    outputs = model(make_lines(2, 1), labels=labels)
    torch.testing.assert_close(outputs.loss, tip_state_loss(outputs.logits, labels, model.config))
    halved = model(make_lines(2, 1), labels=labels, num_items_in_batch=4).loss
    torch.testing.assert_close(halved, outputs.loss / 2)
