"""The next lines: told from lines before them alone, learned in training alone, and no weights to be shipped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import smooth_l1_loss
from transformers import AutoModelForImageClassification

from modeling_scanline import ScanlineCausalForImageClassification

STEPS = [1, 4]
LABELS = torch.tensor([0, 3, 1])


@pytest.fixture
def model(causal):
    """A tiny model in training mode, without chance."""
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return causal(next_line_weight=0.5, next_line_steps=STEPS, **options).train()


@pytest.fixture
def lines(make_lines):
    return make_lines(3, 12)


def next_line_loss(model, lines, mask=None, labels=LABELS, **options):
    return model(lines, attention_mask=mask, labels=labels, **options).next_line_loss


@settings(max_examples=20, deadline=None)
@given(
    pixels_per_line=st.integers(8, 70),
    strides=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    num_lines=st.integers(1, 6),
)
def test_every_pixel_is_told_whatever_the_width(causal_config, pixels_per_line, strides, num_lines):
    if pixels_per_line < 8 * strides[0] * strides[1] * strides[2]:
        return
    config = causal_config(
        pixels_per_line=pixels_per_line, tokenizer_strides=strides, next_line_weight=1.0, next_line_steps=STEPS
    )
    model = ScanlineCausalForImageClassification(config)
    lines = torch.randn(2, num_lines, pixels_per_line)
    outputs = model.scanline(lines, output_line_features=True)
    assert outputs.line_features.shape[-1] == config.tokenizer_width
    told = model.next_lines(outputs.line_features, outputs.last_hidden_state, pixels_per_line)
    assert told.shape == (2, len(STEPS), num_lines, pixels_per_line)


def test_what_is_told_at_a_line_comes_of_it_and_the_lines_before(model, lines):
    lines.requires_grad_()
    outputs = model.scanline(lines, output_line_features=True)
    model.next_lines(outputs.line_features, outputs.last_hidden_state, 32)[:, :, 6].sum().backward()
    by_line = lines.grad.abs().amax(dim=(0, 2))
    assert (by_line[:7] > 0).all() and (by_line[7:] == 0).all()


def test_the_error_is_the_distance_to_what_comes(model, lines):
    outputs = model.scanline(lines, output_line_features=True)
    told = model.next_lines(outputs.line_features, outputs.last_hidden_state, 32)
    expected = sum(smooth_l1_loss(told[:, place, :-step], lines[:, step:]) for place, step in enumerate(STEPS))
    torch.testing.assert_close(next_line_loss(model, lines), 0.5 * expected)


def test_lines_that_were_not_measured_do_not_count(model, lines):
    mask = torch.ones(3, 12)
    mask[:, 8:] = 0
    spoiled = lines.clone()
    spoiled[:, 8:] = torch.nan
    torch.testing.assert_close(next_line_loss(model, spoiled, mask), next_line_loss(model, lines[:, :8]))


def test_a_scan_with_nothing_to_come_adds_nothing(model, lines):
    loss = next_line_loss(model, lines[:, :1])
    assert loss == 0
    loss.backward()


def test_it_is_a_part_of_the_loss_in_training_alone(model, lines):
    trained = model(lines, labels=LABELS)
    assert trained.next_line_loss > 0
    assert model(lines).next_line_loss is None
    scored = model.eval()(lines, labels=LABELS)
    assert scored.next_line_loss is None
    torch.testing.assert_close(trained.loss, scored.loss + trained.next_line_loss)


@pytest.mark.parametrize("kind", ["hard", "soft", "one a line"])
def test_a_batch_in_parts_gives_the_sum_of_the_whole_one(model, lines, kind):
    labels = torch.tensor([2, -100, 1])
    if kind == "soft":
        labels = torch.nn.functional.one_hot(labels.clamp(min=0), 4).float()
        labels[1] = -100
    elif kind == "one a line":
        labels = labels[:, None].repeat(1, 12)
    num_items = int((labels != -100).sum())
    whole = next_line_loss(model, lines, labels=labels)
    parts = [
        next_line_loss(model, lines[part], labels=labels[part], num_items_in_batch=num_items)
        for part in (slice(0, 2), slice(2, 3))
    ]
    torch.testing.assert_close(whole, sum(parts))
    # the scan without a label is not counted
    torch.testing.assert_close(whole, next_line_loss(model, lines[[0, 2]], labels=labels[[0, 2]]))


def test_next_lines_are_learned(model):
    rows = torch.sin(torch.arange(32) / 2 + torch.arange(12)[:, None] / 3).expand(3, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = next_line_loss(model, rows).item()
    for _ in range(30):
        optimizer.zero_grad()
        next_line_loss(model, rows).backward()
        optimizer.step()
    assert next_line_loss(model, rows).item() < before / 4


def test_models_with_and_without_next_lines_load_each_other(model, lines, tmp_path, caplog):
    model.eval().save_pretrained(tmp_path / "with")
    without = AutoModelForImageClassification.from_pretrained(tmp_path / "with", next_line_weight=0.0)
    assert without.num_parameters() < model.num_parameters()
    torch.testing.assert_close(without(lines).logits, model(lines).logits)
    without.save_pretrained(tmp_path / "without")
    again = AutoModelForImageClassification.from_pretrained(
        tmp_path / "without", next_line_weight=0.5, next_line_steps=STEPS
    )
    torch.testing.assert_close(again(lines).logits, model(lines).logits)
    assert next_line_loss(again.train(), lines).isfinite()
    assert not caplog.records
