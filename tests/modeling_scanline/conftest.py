"""Tiny models whose weights are all far from their initial values, so that a wrong number shows."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from modeling_scanline import (
    ScanlineCausalConfig,
    ScanlineCausalForImageClassification,
    ScanlineCNNConfig,
    ScanlineCNNForImageClassification,
    ScanlineLRCNConfig,
    ScanlineLRCNForImageClassification,
    ScanlineViTConfig,
    ScanlineViTForImageClassification,
)

TINY = {
    "pixels_per_line": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_lines": 16,
    "num_labels": 4,
}
TINY_CAUSAL = {**TINY, "tokenizer_channels": [4, 6, 8], "sliding_window": 16}
TINY_CNN = {"pixels_per_line": 32, "max_lines": 16, "num_labels": 4, "conv_channels": [4, 6, 8]}
TINY_LRCN = {**TINY_CNN, "conv_channels": [4, 6], "window_lines": 8, "hidden_size": 32}


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    set_seed(0)
    yield


@pytest.fixture(scope="session")
def vit_config() -> Callable[..., ScanlineViTConfig]:
    return lambda **changes: ScanlineViTConfig(**{**TINY, **changes})


@pytest.fixture(scope="session")
def causal_config() -> Callable[..., ScanlineCausalConfig]:
    return lambda **changes: ScanlineCausalConfig(**{**TINY_CAUSAL, **changes})


@pytest.fixture(scope="session")
def cnn_config() -> Callable[..., ScanlineCNNConfig]:
    return lambda **changes: ScanlineCNNConfig(**{**TINY_CNN, **changes})


@pytest.fixture(scope="session")
def lrcn_config() -> Callable[..., ScanlineLRCNConfig]:
    return lambda **changes: ScanlineLRCNConfig(**{**TINY_LRCN, **changes})


Model = TypeVar("Model", bound=PreTrainedModel)


def lively(model_class: type[Model], config: PreTrainedConfig) -> Model:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = model_class(config)
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="session")
def vit(vit_config) -> Callable[..., ScanlineViTForImageClassification]:
    """`vit(**changes)`: a tiny ViT in evaluation mode, its configuration changed."""
    return lambda **changes: lively(ScanlineViTForImageClassification, vit_config(**changes))


@pytest.fixture(scope="session")
def causal(causal_config) -> Callable[..., ScanlineCausalForImageClassification]:
    """`causal(**changes)`: a tiny causal model in evaluation mode, its configuration changed."""
    return lambda **changes: lively(ScanlineCausalForImageClassification, causal_config(**changes))


@pytest.fixture(scope="session")
def cnn(cnn_config) -> Callable[..., ScanlineCNNForImageClassification]:
    """`cnn(**changes)`: a tiny CNN in evaluation mode, its configuration changed."""
    return lambda **changes: lively(ScanlineCNNForImageClassification, cnn_config(**changes))


@pytest.fixture(scope="session")
def lrcn(lrcn_config) -> Callable[..., ScanlineLRCNForImageClassification]:
    """`lrcn(**changes)`: a tiny LRCN in evaluation mode, its configuration changed."""
    return lambda **changes: lively(ScanlineLRCNForImageClassification, lrcn_config(**changes))


@pytest.fixture(scope="session", params=["vit", "causal"])
def either(request, vit, causal) -> Callable[..., PreTrainedModel]:
    """The one and the other transformer."""
    return vit if request.param == "vit" else causal


@pytest.fixture(scope="session", params=["vit", "causal", "cnn", "lrcn"])
def every(request, vit, causal, cnn, lrcn) -> Callable[..., PreTrainedModel]:
    """Each of the models."""
    return {"vit": vit, "causal": causal, "cnn": cnn, "lrcn": lrcn}[request.param]


@pytest.fixture(scope="session")
def make_lines() -> Callable[..., torch.Tensor]:
    """`make_lines(batch, lines)`: normalized lines `[batch, lines, 32]`."""

    def make(batch_size: int = 2, num_lines: int = 12, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch_size, num_lines, 32, generator=torch.Generator().manual_seed(seed))

    return make
