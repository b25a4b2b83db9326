"""Learning rates over a run."""

import pytest
import torch

from experiments.schedules import WarmupReduceLROnPlateau, warmup_then


def optimizer(rate: float = 1e-4) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(shape: str, warmup: int, total: int) -> list[float]:
    sgd = optimizer()
    schedule = warmup_then(sgd, shape, warmup, total, start=0.01)
    values = []
    for _ in range(total + 1):
        values.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return values


def test_warmup_is_linear_from_the_given_rate():
    values = rates("constant_with_warmup", 10, 20)
    assert values[0] == pytest.approx(1e-6)
    assert values[5] == pytest.approx((1e-6 + 1e-4) / 2)
    assert values[10:] == pytest.approx([1e-4] * 11)


def test_the_cosine_ends_at_nothing():
    values = rates("cosine", 10, 30)
    assert values[10] == pytest.approx(1e-4)
    assert values[20] == pytest.approx(0.5e-4)
    assert values[30] == pytest.approx(0, abs=1e-12)


def test_without_warmup_the_rate_starts_at_its_largest():
    assert rates("constant_with_warmup", 0, 3) == pytest.approx([1e-4] * 4)


def plateau(sgd: torch.optim.Optimizer) -> WarmupReduceLROnPlateau:
    return WarmupReduceLROnPlateau(sgd, 4, 0.01, mode="max", factor=0.5, patience=1)


def test_a_plateau_counts_only_after_the_warmup():
    sgd = optimizer()
    schedule = plateau(sgd)
    seen = []
    for epoch in range(8):
        for _ in range(2):
            schedule.warmup_step()
        schedule.step(0.5)
        seen.append((epoch, sgd.param_groups[0]["lr"]))
    # warm after 4 steps (epoch 1), which sets the best; then two bad ones reduce, and two more again
    assert [rate for _, rate in seen] == pytest.approx(
        [0.505e-4, 1e-4, 1e-4, 0.5e-4, 0.5e-4, 0.25e-4, 0.25e-4, 0.125e-4]
    )


def test_a_resumed_plateau_goes_on_where_it_was():
    first, second = optimizer(), optimizer()
    before, after = plateau(first), plateau(second)
    for _ in range(3):
        before.warmup_step()
        before.warmup_step()
        before.step(0.5)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    for schedule in (before, after):
        schedule.step(0.1)
        schedule.step(0.1)
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"] < 1e-4
