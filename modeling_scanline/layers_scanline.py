"""What the Scanline models share: attention, feed-forward network, layer, and the loss."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_scanline import ScanlineConfig


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

    def __init__(self, config: ScanlineConfig, layer_idx: int, is_causal: bool):
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

    def __init__(self, config: ScanlineConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class ScanlineLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer, `[batch, lines, hidden]` to the same."""

    def __init__(self, config: ScanlineConfig, layer_idx: int, is_causal: bool):
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
    """Loading, saving and the capabilities that all Scanline models have."""

    config_class = ScanlineConfig
    base_model_prefix = "scanline"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScanlineLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ScanlineLayer, "attentions": ScanlineAttention}


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
    if labels.is_floating_point():
        counted = (labels >= 0).all(dim=-1)
        targets = labels.float().clamp(min=0)
        items_per_scan = num_labels
    else:
        counted = labels != -100
        targets = nn.functional.one_hot(labels.masked_fill(~counted, 0), num_labels).float()
        items_per_scan = 1
    if num_items_in_batch is None:
        num_scans = counted.sum()
    else:
        num_scans = torch.as_tensor(num_items_in_batch, device=logits.device) / items_per_scan
    smoothed = targets * (1 - config.label_smoothing) + config.label_smoothing / num_labels
    if config.class_weights is not None:
        if len(config.class_weights) != num_labels:
            raise ValueError(
                f"class_weights must have one entry a label, got {len(config.class_weights)} for {num_labels} labels."
            )
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
    return losses.sum() / num_scans.clamp(min=1)


__all__ = ["ScanlineAttention", "ScanlineLayer", "ScanlineMLP", "ScanlinePreTrainedModel", "tip_state_loss"]
