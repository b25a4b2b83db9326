"""Muon: steps in which all directions of a weight matrix count the same; AdamW for all that is no such matrix."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

# Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): a quintic that takes all singular values near 1 in 5
# steps; exactness gains nothing
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
# Liu et al. 2025 (arXiv:2502.16982): steps as large as AdamW's, whose root mean square is about this, so that rates
# and weight decays found for AdamW hold
STEP_SIZE = 0.2


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """
    The nearest matrices whose singular values are all 1, roughly (between 0.7 and 1.2), by Newton's and Schulz's way.

    Args:
        matrices: `[count, rows, columns]`; on a GPU bfloat16 is exact enough, and fast.
    """
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    is_tall = matrices.shape[1] > matrices.shape[2]
    if is_tall:  # the products below are as large as the number of rows
        matrices = matrices.mT
    first, third, fifth = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        squares = matrices @ matrices.mT
        matrices = first * matrices + (third * squares + fifth * squares @ squares) @ matrices
    return matrices.mT if is_tall else matrices


def hidden_matrices(model: nn.Module) -> set[str]:
    """
    Names of the weights that Muon is for: of linear layers and convolutions between the first and the last.

    Not what reads the pixels (one input channel), and not what gives the verdict (`classifier`).
    """
    names = set()
    for name, module in model.named_modules():
        is_hidden = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.in_channels > 1)
        if is_hidden and "classifier" not in name.split("."):
            names.add(f"{name}.weight")
    return names


class Muon(torch.optim.Optimizer):
    """
    Muon for matrices (Jordan et al. 2024) and AdamW for the rest, as one optimizer.

    `torch.optim.Muon` takes no convolutions, which here are most of what a line goes through: they count as matrices
    with one row for each output channel.

    Args:
        groups: parameters; those of a group with `orthogonal` take Muon's steps.
        lr: learning rate, of AdamW's size for both.
        weight_decay: of groups that name none.
        momentum: of Muon, after Nesterov.
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, {**defaults, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            if pairs and group["orthogonal"]:
                self._step_matrices(group, pairs)
            elif pairs:
                self._step_others(group, pairs)
        return loss

    def _step_matrices(self, group: dict[str, Any], pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for parameter, gradient in pairs:
            by_shape[parameter.shape[0], parameter[0].numel()].append((parameter, gradient))
        for shape, alike in by_shape.items():  # those of all layers at once
            updates = []
            for parameter, gradient in alike:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                updates.append(gradient.lerp(state["momentum"], group["momentum"]).reshape(shape))
            stacked = torch.stack(updates)
            steps = orthogonalize(stacked.bfloat16() if stacked.is_cuda else stacked).to(stacked.dtype)
            rate = group["lr"] * STEP_SIZE * max(shape) ** 0.5
            for (parameter, _), step in zip(alike, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.view_as(parameter), alpha=-rate)

    def _step_others(self, group: dict[str, Any], pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for parameter, _ in pairs:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter)
                )
        states = [self.state[parameter] for parameter, _ in pairs]
        adamw(
            [parameter for parameter, _ in pairs],
            [gradient for _, gradient in pairs],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def muon_for(model: nn.Module, decaying: set[str], **kwargs: Any) -> Muon:
    """
    A [`Muon`] for a model.

    Args:
        model: that is trained.
        decaying: names of the parameters that weight decay is for.
        **kwargs: of `Muon`.
    """
    matrices = hidden_matrices(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = (
        {"params": [trained[name] for name in trained if name in matrices], "orthogonal": True},
        {"params": [trained[name] for name in trained if name not in matrices and name in decaying]},
        {"params": [trained[name] for name in trained if name not in matrices | decaying], "weight_decay": 0.0},
    )
    return Muon([group for group in groups if group["params"]], **kwargs)
