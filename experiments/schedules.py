"""Learning rates over a run: linear warmup from a given rate, then constant, cosine or on plateaus."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def warmup_then(
    optimizer: torch.optim.Optimizer, shape: str, num_warmup_steps: int, num_training_steps: int, start: float
) -> LambdaLR:
    """
    Linear warmup, then a constant rate or half a cosine down to 0.

    Args:
        optimizer: whose rate at the start of this call is the largest.
        shape: `"constant_with_warmup"` or `"cosine"`.
        num_warmup_steps: optimizer steps until the largest rate.
        num_training_steps: optimizer steps of the run.
        start: share of the largest rate that the warmup begins with.
    """

    def share(step: int) -> float:
        if step < num_warmup_steps:
            return start + (1 - start) * step / num_warmup_steps
        if shape == "constant_with_warmup":
            return 1.0
        progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, share)


class WarmupReduceLROnPlateau(ReduceLROnPlateau):
    """
    Linear warmup by optimizer steps, then the rate is reduced when a metric of the validation stands still.

    The library has warmup and it has `ReduceLROnPlateau`, but not the two together, which is what the experiments
    log's reference run used.

    Args:
        optimizer: whose rate at the start of this call is the largest.
        num_warmup_steps: optimizer steps until the largest rate.
        start: share of the largest rate that the warmup begins with.
        **kwargs: of `ReduceLROnPlateau`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, num_warmup_steps: int, start: float, **kwargs: Any):
        super().__init__(optimizer, **kwargs)
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.num_warmup_steps = num_warmup_steps
        self.start = start
        self.num_steps = 0
        self._set_share(start if num_warmup_steps else 1.0)

    def _set_share(self, share: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * share
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def warmup_step(self) -> None:
        """To be called after every optimizer step."""
        self.num_steps += 1
        if self.num_steps <= self.num_warmup_steps:
            self._set_share(self.start + (1 - self.start) * self.num_steps / self.num_warmup_steps)

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """To be called with the metric after every validation; does nothing during the warmup."""
        # the constructor of older torch releases calls step() before num_steps exists
        if getattr(self, "num_steps", 0) >= getattr(self, "num_warmup_steps", 0):
            super().step(metrics, epoch)
