"""What the Scanline models share: transformer layers, blocks of convolutions, the verdict at a line, the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .configuration_scanline import (
    ScanlineConfig,
    ScanlineConvolutionalConfig,
    ScanlineLRCNConfig,
    ScanlineTransformerConfig,
)
from .configuration_scanline_causal import ScanlineCausalConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, `[batch, heads, lines, head_dim]`; the only one that returns its weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def rotate_half(hidden_states: torch.Tensor) -> torch.Tensor:
    """`(a, b)` to `(-b, a)`, the two halves of the last dimension."""
    first, second = hidden_states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class ScanlineAttention(nn.Module):
    """Multi-head self-attention over scanlines, through the library's attention interface."""

    def __init__(self, config: ScanlineTransformerConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.sliding_window = getattr(config, "sliding_window", None)
        self.num_key_value_groups = 1  # read by the flash and flex interfaces
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_and_lines = hidden_states.shape[:-1]
        by_head = (*batch_and_lines, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(by_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(by_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)

        if position_embeddings is not None:
            cos, sin = position_embeddings
            query = query * cos + rotate_half(query) * sin
            key = key * cos + rotate_half(key) * sin
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_and_lines, -1)), weights


class ScanlineMLP(nn.Module):
    """The feed-forward network of a layer."""

    def __init__(self, config: ScanlineTransformerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class ScanlineLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer, `[batch, lines, hidden]` to the same."""

    def __init__(self, config: ScanlineTransformerConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ScanlineAttention(config, layer_idx, is_causal)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ScanlineMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.attention(
            self.attention_norm(hidden_states),
            attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class ScanlinePreTrainedModel(PreTrainedModel):
    """Loading, saving, initialization and the capabilities that all Scanline models have."""

    config_class = ScanlineConfig
    base_model_prefix = "scanline"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _can_compile_fullgraph = True

    def __init__(self, config: ScanlineConfig, *inputs: Any, **kwargs: Any):
        config.validate()  # once more: another number of states may have been set meanwhile
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # weights of 0.02 would let nothing through several convolutions without normalization between them
            init.kaiming_normal_(module.weight, nonlinearity="relu")


class ScanlineTransformerPreTrainedModel(ScanlinePreTrainedModel):
    """The capabilities of the transformers."""

    config_class = ScanlineTransformerConfig
    _no_split_modules = ["ScanlineLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ScanlineLayer, "attentions": ScanlineAttention}


class ScanlineConvolutionBlock(GradientCheckpointingLayer):
    """
    Two convolutions, each with its activation, and a max-pooling of 2 x 2.

    The first convolution of the first block has 7 x 7 weights and stride 2, all others have 3 x 3.
    """

    def __init__(self, config: ScanlineConvolutionalConfig, block_idx: int):
        super().__init__()
        in_channels = config.conv_channels[block_idx - 1] if block_idx else 1
        out_channels = config.conv_channels[block_idx]
        size, stride = (3, 1) if block_idx else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[batch, in, height, width]` to `[batch, out, height / 2, width / 2]`; in the first block, a quarter."""
        features = self.activation(self.conv2(self.activation(self.conv1(features))))
        return nn.functional.max_pool2d(features, kernel_size=2)


class ScanlineConvolutions(nn.Module):
    """The blocks of the published networks, `[batch, 1, lines, pixels]` to `[batch, channels, height, width]`."""

    def __init__(self, config: ScanlineConvolutionalConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            ScanlineConvolutionBlock(config, block_idx) for block_idx in range(len(config.conv_channels))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            features = block(features)
        return features


class ScanlineConvolutionalPreTrainedModel(ScanlinePreTrainedModel):
    """The capabilities of the published networks."""

    config_class = ScanlineConvolutionalConfig
    _no_split_modules = ["ScanlineConvolutionBlock"]
    _can_record_outputs = {"hidden_states": ScanlineConvolutionBlock}


class _OutputWithCache:
    """The cache by both of its names: transformers calls it `cache` from 5.24 on, `past_key_values` before."""

    cache: Cache | None

    @property
    def past_key_values(self) -> Cache | None:
        """To go on from here, where `use_cache` was set."""
        return self.cache


@dataclass
class ScanlineModelOutput(_OutputWithCache, ModelOutput):
    """
    Args:
        last_hidden_state: `[batch, lines, hidden]`.
        cache: to go on from here, where `use_cache` was set; also `past_key_values`.
        hidden_states: one `[batch, lines, hidden]` a layer and the tokens, where `output_hidden_states` was set.
        attentions: one `[batch, heads, lines, lines]` a layer, where `output_attentions` was set (eager attention).
        line_features: `[batch, channels, lines, places]`, the tokenizer's last, where `output_line_features` was set.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    line_features: torch.Tensor | None = None


@dataclass
class ScanlineCausalOutput(_OutputWithCache, ModelOutput):
    """
    Args:
        loss: where labels were given, a scalar.
        logits: `[batch, num_labels]`, at the last measured line.
        line_logits: `[batch, lines, num_labels]`, after every line; meaningless at unmeasured ones.
        cache: to go on from here, where `use_cache` was set; also `past_key_values`.
        hidden_states: one `[batch, lines, hidden]` a layer and the tokens, where `output_hidden_states` was set.
        attentions: one `[batch, heads, lines, lines]` a layer, where `output_attentions` was set (eager attention).
        next_line_loss: the part of the loss that is of the next lines, in training with `next_line_weight`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    line_logits: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    next_line_loss: torch.Tensor | None = None


def check_pixel_values(pixel_values: torch.Tensor, attention_mask: torch.Tensor | None, pixels_per_line: int) -> None:
    """Raises `ValueError` unless `pixel_values` is `[batch, lines, pixels_per_line]` and the mask `[batch, lines]`."""
    if pixel_values.ndim != 3 or pixel_values.shape[-1] != pixels_per_line or pixel_values.shape[1] == 0:
        raise ValueError(
            f"Expected pixel_values of shape [batch, lines, {pixels_per_line}] with at least one line, got "
            f"{list(pixel_values.shape)}. ScanlineImageProcessor makes them from a scan of any size."
        )
    if attention_mask is not None and attention_mask.shape != pixel_values.shape[:2]:
        raise ValueError(
            f"Expected an attention_mask of shape {list(pixel_values.shape[:2])}, one entry a line of pixel_values, "
            f"got {list(attention_mask.shape)}."
        )


def blank_unmeasured(pixel_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Zeros in the unmeasured lines of `pixel_values`: what they hold must not matter, be it NaN."""
    if attention_mask is None:
        return pixel_values
    return pixel_values.masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0)


def count_items(
    labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which `labels` are counted, and what a sum over them is divided by, a scalar: see [`tip_state_loss`]."""
    is_soft = labels.is_floating_point()
    counted = (labels >= 0).all(dim=-1) if is_soft else labels != -100
    if num_items_in_batch is None:
        num_items = counted.sum()
    else:
        # of soft labels the Trainer counts every score
        num_items = torch.as_tensor(num_items_in_batch, device=labels.device) / (labels.shape[-1] if is_soft else 1)
    return counted, num_items.clamp(min=1)


def mean_over_scans(
    values: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Mean of a value of each scan `[batch]` over the labelled ones, divided as in [`tip_state_loss`]."""
    counted, num_items = count_items(labels, num_items_in_batch)
    return (values * (counted if counted.ndim == 1 else counted.sum(dim=-1))).sum() / num_items


def tip_state_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: ScanlineConfig,
    line_weights: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Weighted cross-entropy of tip states, taken at every line or once a scan.

    The sum over scans is divided by their number, not by the sum of the class weights, so that gradient accumulation
    and several processes give what one large batch gives: the Trainer counts the labelled scans of the whole batch
    and hands the number over as `num_items_in_batch`.

    Args:
        logits: `[batch, num_labels]`, or `[batch, lines, num_labels]` with `line_weights`.
        labels: class indices `[batch]`; or, a tip state of its own for every line, `[batch, lines]` (with
            `line_weights`); or scores `[batch, num_labels]` of floating point type that sum to 1 in each row. A
            class index of -100, or a row of scores with a negative entry, is not counted.
        config: holds `class_weights` and `label_smoothing`.
        line_weights: `[batch, lines]`, sums to 1 over the lines of each scan.
        num_items_in_batch: number of labels not equal to -100 in the whole batch over all processes and
            accumulation steps; `None` counts those of this call.

    Returns:
        The loss, a scalar in float32.
    """
    num_labels = logits.shape[-1]
    log_probabilities = nn.functional.log_softmax(logits.float(), dim=-1)
    counted, num_items = count_items(labels, num_items_in_batch)
    if labels.is_floating_point():
        targets = labels.float().clamp(min=0)
    else:
        targets = nn.functional.one_hot(labels.masked_fill(~counted, 0), num_labels).float()
    smoothed = targets * (1 - config.label_smoothing) + config.label_smoothing / num_labels
    if config.class_weights is not None:
        class_weights = torch.tensor(config.class_weights, dtype=torch.float32, device=logits.device)
        smoothed = smoothed * (targets @ class_weights).unsqueeze(-1)
    if line_weights is None:
        weights = counted.float()
    elif labels.ndim == 2 and not labels.is_floating_point():
        # every line is an item of its own: the weights of a scan sum to the number of its labels
        weights = line_weights * counted
        total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights / total * counted.sum(-1, keepdim=True)
    else:
        smoothed = smoothed.unsqueeze(1)
        weights = line_weights * counted.unsqueeze(1)
    losses = -(smoothed * log_probabilities).sum(-1) * weights
    return losses.sum() / num_items


def line_loss_weights(measured: torch.Tensor, weighting: str) -> torch.Tensor:
    """
    Weight of each line in the loss; those of a scan sum to 1.

    Args:
        measured: `[batch, lines]`, 1 where a line was measured.
        weighting: `"uniform"`, `"linear"` (grows with the lines seen) or `"last"` (only the last measured line).

    Returns:
        `[batch, lines]` in float32.
    """
    measured = measured.float()
    number = measured.cumsum(dim=1)
    if weighting == "linear":
        weights = number * measured
    elif weighting == "last":
        weights = measured * (number == number[:, -1:])
    else:
        weights = measured
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1)


def judge_scans(
    line_logits: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    config: ScanlineCausalConfig | ScanlineLRCNConfig,
    num_items_in_batch: torch.Tensor | int | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    What a model with a verdict at every line says of scans, and its loss.

    Args:
        line_logits: `[batch, lines, num_labels]`.
        attention_mask: `[batch, lines]`, 1 where a line was measured; `None` if all were.
        labels: see [`tip_state_loss`]; `None` for no loss.
        config: holds `line_loss_weighting`, and what [`tip_state_loss`] needs.
        num_items_in_batch: see [`tip_state_loss`].

    Returns:
        The logits of the last measured line `[batch, num_labels]`, and the loss.
    """
    batch_size, num_lines = line_logits.shape[:2]
    if attention_mask is None:
        attention_mask = line_logits.new_ones(batch_size, num_lines)
        logits = line_logits[:, -1]
    else:
        last_measured = (torch.arange(num_lines, device=line_logits.device) * attention_mask.bool()).amax(dim=1)
        logits = line_logits[torch.arange(batch_size, device=line_logits.device), last_measured]
    if labels is None:
        return logits, None
    line_weights = line_loss_weights(attention_mask, config.line_loss_weighting)
    return logits, tip_state_loss(line_logits, labels, config, line_weights, num_items_in_batch)


__all__ = [
    "ScanlineAttention",
    "ScanlineCausalOutput",
    "ScanlineConvolutionBlock",
    "ScanlineConvolutionalPreTrainedModel",
    "ScanlineConvolutions",
    "ScanlineLayer",
    "ScanlineMLP",
    "ScanlineModelOutput",
    "ScanlinePreTrainedModel",
    "ScanlineTransformerPreTrainedModel",
    "line_loss_weights",
    "tip_state_loss",
]
