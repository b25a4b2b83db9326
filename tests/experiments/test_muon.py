"""Muon beside AdamW: what each weight takes, and that it goes on after a stop."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configuration import ConfigurationError, ScanlineTrainingArguments
from experiments.muon import STEP_SIZE, hidden_matrices, muon_for, orthogonalize
from experiments.trainer import ScanlineTrainer
from modeling_scanline import ScanlineCausalConfig, ScanlineCausalForImageClassification

CONFIG = ScanlineCausalConfig(
    tokenizer_channels=[4, 8],
    tokenizer_kernel_sizes=[3, 3],
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    pixels_per_line=16,
    num_labels=4,
)


@pytest.fixture
def model() -> ScanlineCausalForImageClassification:
    torch.manual_seed(0)
    return ScanlineCausalForImageClassification(CONFIG).eval()  # no dropout


def train(model, optimizer, num_steps: int) -> list[float]:
    scans = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(num_steps):
        loss = model(scans, labels=torch.arange(4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 3), rows=st.integers(1, 40), columns=st.integers(1, 40), scale=st.floats(1e-3, 1e3))
def test_all_singular_values_come_near_one(count, rows, columns, scale):
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    # far from singular: a direction that hardly appears takes more iterations
    left, _, right = torch.linalg.svd(torch.randn(count, rows, columns, generator=generator), full_matrices=False)
    values = 1 + torch.rand(count, min(rows, columns), 1, generator=generator)
    result = orthogonalize(scale * left @ (values * right))
    assert result.shape == (count, rows, columns)
    # what it makes of the same directions: the same ones, all about as large
    found = left.mT @ result @ right.mT
    sizes = found.diagonal(dim1=1, dim2=2)
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(sizes), atol=1e-3, rtol=0)


def test_muon_is_for_what_lies_between_the_pixels_and_the_verdict(model):
    names = hidden_matrices(model)
    assert {name for name, weight in model.named_parameters() if weight.ndim > 1} - names == {
        "scanline.tokenizer.stages.0.conv.weight",
        "classifier.weight",
    }
    assert "scanline.layers.1.mlp.fc2.weight" in names and "scanline.tokenizer.stages.1.conv.weight" in names
    assert all(model.get_parameter(name).ndim > 1 for name in names)


def test_all_other_weights_take_the_steps_of_adamw(model):
    twin = copy.deepcopy(model)
    matrices, decaying = hidden_matrices(model), {"classifier.weight"}
    for one in (model, twin):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(name not in matrices)
    ours = muon_for(model, decaying, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9))
    groups = [
        {"params": [parameter for name, parameter in twin.named_parameters() if name in decaying]},
        {
            "params": [p for name, p in twin.named_parameters() if p.requires_grad and name not in decaying],
            "weight_decay": 0.0,
        },
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9))
    assert train(model, ours, 4) == train(twin, theirs, 4)


def test_a_matrix_steps_as_far_as_adamw_would(model):
    weight = model.scanline.layers[0].mlp.fc1.weight
    before = weight.detach().clone()
    train(model, muon_for(model, set(), lr=1e-2), 1)
    step = (weight - before).square().mean().sqrt()
    assert step.item() == pytest.approx(1e-2 * STEP_SIZE, rel=0.35)


def test_it_learns_and_goes_on_from_its_state(model):
    optimizer = muon_for(model, set(), lr=1e-2, weight_decay=0.01)
    losses = train(model, optimizer, 12)
    assert losses[-1] < 0.5 * losses[0]
    model_state, optimizer_state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, 3)
    model.load_state_dict(model_state)
    again = muon_for(model, set(), lr=1.0)
    again.load_state_dict(optimizer_state)
    assert train(model, again, 3) == expected


@pytest.mark.parametrize(
    ("options", "says"), [({"optim": "muon"}, "muon needs whole matrices"), ({"average_epochs": 1}, "whole weights")]
)
def test_what_needs_whole_weights_is_refused_where_they_are_taken_apart(options, says, model, tmp_path):
    arguments = ScanlineTrainingArguments(
        output_dir=str(tmp_path),
        **options,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer = ScanlineTrainer(model=model, args=arguments)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ConfigurationError, match=rf"{says}, .* use DDP"):
        trainer.create_optimizer()


def test_an_unknown_optimizer_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="no optimizer 'moun'; did you mean 'muon'"):
        ScanlineTrainingArguments(output_dir=str(tmp_path), optim="moun")
