"""The causal scanline transformer: a verdict after every line, from that line and the lines before it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_scanline_causal import ScanlineCausalConfig
from .layers_scanline import (
    ScanlineCausalOutput,
    ScanlineLayer,
    ScanlineModelOutput,
    ScanlineTransformerPreTrainedModel,
    blank_unmeasured,
    check_pixel_values,
    judge_scans,
    mean_over_scans,
)
from .next_lines_scanline import ScanlineNextLines

if TYPE_CHECKING:
    from .streaming_scanline import ScanlineStreamer


SMALLEST_LOGIT = 1e-3  # largest one that is raised to a power: of logits that are all alike, 0 would be


class ScanlineCache(Cache):
    """
    What a stream of lines leaves behind: keys and values of each layer, and the last lines at each convolution.

    Args:
        config: of the model.
        max_cache_len: number of lines to allocate at once, as `torch.compile` wants it; `None` grows as lines come.
    """

    def __init__(self, config: ScanlineCausalConfig, max_cache_len: int | None = None):
        window = config.sliding_window

        def new_layer() -> CacheLayerMixin:
            if max_cache_len is None:
                return DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)
            if window is None:
                return StaticLayer(max_cache_len=max_cache_len)
            # the library takes a smaller allocation for a smaller window
            return StaticSlidingWindowLayer(max_cache_len=max(max_cache_len, window), sliding_window=window)

        num_layers = sum(of_member.num_hidden_layers for of_member in config.member_configs)
        super().__init__(layers=[new_layer() for _ in range(num_layers)])
        self.sliding_window = window
        self.num_allocated_lines = max_cache_len if window is None else None
        self.line_buffers: dict[int, torch.Tensor] = {}
        self.line_mask: torch.Tensor | None = None

    def check_room(self, num_new_lines: int) -> None:
        """Raises `ValueError` if there is no room for the new lines; `torch.compile` cannot look, and skips this."""
        if self.num_allocated_lines is None or torch.compiler.is_compiling():
            return
        num_lines = int(self.get_seq_length()) + num_new_lines
        if num_lines > self.num_allocated_lines:
            raise ValueError(
                f"This cache holds max_cache_len={self.num_allocated_lines} lines, got {num_lines}: allocate more, or "
                "use a model with a sliding_window, which has no limit."
            )

    def extend_line_mask(self, attention_mask: torch.Tensor | None, new_lines: torch.Tensor) -> torch.Tensor | None:
        """
        The mask of all lines so far and the new ones, `[batch, seen + new]`; `None` while all were measured.

        Args:
            attention_mask: that of the new lines, `[batch, new]`, or `None` if all were measured.
            new_lines: a tensor `[batch, new, ...]` of the same lines.
        """
        if self.line_mask is None and (attention_mask is None or bool(attention_mask.all())):
            return None
        num_seen = int(self.get_seq_length())
        # what has left the window is never looked at again, and not kept
        num_kept = num_seen if self.sliding_window is None else min(num_seen, self.sliding_window - 1)
        if self.line_mask is None:
            self.line_mask = new_lines.new_ones(new_lines.shape[0], num_kept, dtype=torch.bool)
        if attention_mask is None:
            attention_mask = new_lines.new_ones(new_lines.shape[:2], dtype=torch.bool)
        line_mask = torch.cat((self.line_mask, attention_mask.bool()), dim=1)
        self.line_mask = line_mask if self.sliding_window is None else line_mask[:, 1 - self.sliding_window :].clone()
        return nn.functional.pad(line_mask, (num_seen - num_kept, 0), value=True)

    def reset(self) -> None:
        """Forgets all lines."""
        super().reset()
        for layer in self.layers:
            if isinstance(layer, DynamicLayer):  # dropped, not zeroed, which is all that transformers 5.17 does
                layer.keys = layer.values = None
                layer.is_initialized = False
        self.line_buffers.clear()
        self.line_mask = None

    def _map_line_states(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.line_buffers = {stage: function(buffer) for stage, buffer in self.line_buffers.items()}
        if self.line_mask is not None:
            self.line_mask = function(self.line_mask)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every stream of the batch."""
        super().batch_repeat_interleave(repeats)
        self._map_line_states(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some of the streams of the batch."""
        super().batch_select_indices(indices)
        self._map_line_states(lambda state: state[indices])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the streams of the batch."""
        super().reorder_cache(beam_idx)
        self._map_line_states(lambda state: state.index_select(0, beam_idx))

    def crop(self, tokens_to_remove: int) -> None:
        """Raises `ValueError`: lines that the convolutions have consumed cannot be taken back."""
        raise ValueError("A ScanlineCache cannot be cropped: call reset() and feed the lines to keep once more.")


class ScanlineTokenizerStage(nn.Module):
    """
    Convolution, max-pooling of 2 pixels, normalization over the channels, activation.

    Along the lines the convolution is causal. Normalization is of each pixel by itself: statistics over lines would
    let a line know of those after it, and statistics over the batch would make the loss depend on how the batch is
    spread over processes.
    """

    def __init__(self, config: ScanlineCausalConfig, in_channels: int, stage_idx: int):
        super().__init__()
        out_channels = config.tokenizer_channels[stage_idx]
        kernel_size = config.tokenizer_kernel_sizes[stage_idx]
        assert config.tokenizer_strides is not None  # the configuration fills it in
        self.num_context_lines = config.tokenizer_context_lines - 1
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=(config.tokenizer_context_lines, kernel_size),
            stride=(1, config.tokenizer_strides[stage_idx]),
            padding=(0, kernel_size // 2),
        )
        self.norm = nn.LayerNorm(out_channels, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, features: torch.Tensor, previous: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """`features` `[batch, in, lines, pixels]` and the lines before them, to `[batch, out, lines, pixels']`."""
        if previous is None:
            features = nn.functional.pad(features, (0, 0, self.num_context_lines, 0))
        else:
            features = torch.cat((previous, features), dim=2)
        last_lines = features[:, :, features.shape[2] - self.num_context_lines :]
        features = nn.functional.max_pool2d(self.conv(features), kernel_size=(1, 2))
        features = self.activation(self.norm(features.permute(0, 2, 3, 1)))
        return features.permute(0, 3, 1, 2), last_lines


class ScanlineTokenizer(nn.Module):
    """
    Lines `[batch, lines, pixels_per_line]` to tokens `[batch, lines, hidden]`, each from lines up to its own; and the
    last features before they are pooled, `[batch, channels, lines, places]`.
    """

    def __init__(self, config: ScanlineCausalConfig, first_buffer: int = 0):
        super().__init__()
        self.first_buffer = first_buffer
        in_channels = [1, *config.tokenizer_channels[:-1]]
        self.stages = nn.ModuleList(
            ScanlineTokenizerStage(config, channels, stage_idx) for stage_idx, channels in enumerate(in_channels)
        )
        self.with_maximum = config.tokenizer_pooling == "mean_max"
        self.projection = nn.Linear(config.tokenizer_channels[-1] * (1 + self.with_maximum), config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """That of the convolutions, in which lines come; a Linear's weights may be quantized."""
        return cast(ScanlineTokenizerStage, self.stages[0]).conv.weight.dtype

    def forward(self, pixel_values: torch.Tensor, cache: ScanlineCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        # of the cache itself: where a model is spread over devices, a bare dictionary would be copied on its way here
        line_buffers = None if cache is None else cache.line_buffers
        # channels last: the convolutions are memory-bound, and the normalization over channels needs no copy
        features = pixel_values.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        for place, stage in enumerate(self.stages, start=self.first_buffer):
            previous = None if line_buffers is None else line_buffers.get(place)
            features, last_lines = stage(features, previous)
            if line_buffers is not None:
                line_buffers[place] = last_lines.clone()  # a view would keep the whole chunk alive
        pooled = features.mean(dim=-1)
        if self.with_maximum:
            pooled = torch.cat((pooled, features.amax(dim=-1)), dim=1)
        return self.projection(pooled.transpose(1, 2)), features


class ScanlineMember(nn.Module):
    """Tokenizer, layers and normalization: one of the networks that look at a scan side by side."""

    def __init__(self, config: ScanlineCausalConfig, member: int):
        super().__init__()
        *before, sizes = config.member_configs[: member + 1]
        self.tokenizer = ScanlineTokenizer(sizes, sum(len(other.tokenizer_channels) for other in before))
        first = sum(other.num_hidden_layers for other in before)  # in the cache
        layers = [ScanlineLayer(sizes, first + place, is_causal=True) for place in range(sizes.num_hidden_layers)]
        for layer in layers:
            layer.attention.config = config  # of all members: it may be told of another implementation later
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(sizes.hidden_size, eps=config.layer_norm_eps)


class ScanlineCausalPreTrainedModel(ScanlineTransformerPreTrainedModel):
    """What the causal scanline transformer adds to the others."""

    config_class = ScanlineCausalConfig
    config: ScanlineCausalConfig
    _no_split_modules = ["ScanlineLayer", "ScanlineTokenizer"]


class ScanlineCausalModel(ScanlineCausalPreTrainedModel):
    """
    The bare causal scanline transformer: tokenizer, positions, layers, normalization.

    With `num_members`, several of them, which see the same lines and nothing of each other.
    """

    def __init__(self, config: ScanlineCausalConfig):
        super().__init__(config)
        first, *others = (ScanlineMember(config, member) for member in range(config.num_members))
        # weights have the names that they have in a model of a single member
        self.tokenizer, self.layers, self.norm = first.tokenizer, first.layers, first.norm
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.others = nn.ModuleList(others)
        self.head_dims = [sizes.hidden_size // sizes.num_attention_heads for sizes in config.member_configs]
        self.post_init()

    @property
    def members(self) -> "tuple[ScanlineCausalModel | ScanlineMember, ...]":
        """What has a `tokenizer`, `layers` and a `norm` of its own: this model itself, and those beside it."""
        return (self, *self.others)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokenizer.projection

    def sinusoids(self, positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of `positions` at `width / 2` wavelengths, each `[lines, width / 2]`, in float32."""
        # float32 would turn the millionth line of a stream by some hundredths too far; Apple's GPUs have nothing else
        dtype = torch.float32 if positions.device.type == "mps" else torch.float64
        exponents = torch.arange(0, width, 2, device=positions.device, dtype=dtype) / width
        angles = positions.to(dtype).unsqueeze(-1) * self.config.position_base**-exponents
        return angles.cos().float(), angles.sin().float()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: ScanlineCache | None = None,
        use_cache: bool | None = None,
        cache: ScanlineCache | None = None,
        output_line_features: bool = False,
        **kwargs,
    ) -> ScanlineModelOutput:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`: a scan, or the next lines of one.
            attention_mask: `[batch, lines]`, 1 where a line was measured. It describes these lines only: what is in
                `past_key_values` is remembered there.
            past_key_values: what an earlier call returned, to go on from there.
            use_cache: whether to return `past_key_values`; implied by giving them.
            cache: another name for `past_key_values`, that of transformers from 5.24 on.
            output_line_features: whether to return `line_features`.

        Returns:
            `last_hidden_state` `[batch, lines, hidden]`, those of all members side by side, and `past_key_values`. Of
            several members, `hidden_states` and `attentions` are those of one after the other, and `line_features` of
            the first.

        Raises:
            ValueError: for inputs of another shape, a cache of another kind, or one without room.
        """
        check_pixel_values(pixel_values, attention_mask, self.config.pixels_per_line)
        if cache is not None:
            if past_key_values is not None:
                raise ValueError("cache and past_key_values are two names of one thing: give one of them.")
            past_key_values = cache
        if past_key_values is None and use_cache:
            past_key_values = ScanlineCache(self.config)
        if past_key_values is not None and not hasattr(past_key_values, "line_buffers"):
            raise ValueError(
                f"past_key_values must be a ScanlineCache, got {type(past_key_values).__name__}: pass use_cache=True "
                "with the first lines, and what it returns with the next."
            )
        pixel_values = blank_unmeasured(pixel_values.to(self.tokenizer.dtype), attention_mask)

        num_lines = pixel_values.shape[1]
        if past_key_values is not None:
            past_key_values.check_room(num_lines)
        num_seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        positions = torch.arange(num_lines, device=pixel_values.device) + num_seen
        (tokens, line_features), *of_others = (
            member.tokenizer(pixel_values, past_key_values) for member in self.members
        )
        states = [tokens, *(tokens for tokens, _ in of_others)]
        turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the width of a head
        if self.config.position_embedding_type == "rotary":
            for width in dict.fromkeys(self.head_dims):
                cos, sin = self.sinusoids(positions, width)
                turns[width] = (
                    torch.cat((cos, cos), dim=-1).to(tokens.dtype),
                    torch.cat((sin, sin), dim=-1).to(tokens.dtype),
                )
        else:
            limited = positions.clamp(max=self.config.max_lines - 1)
            for place, tokens_of_member in enumerate(states):
                cos, sin = self.sinusoids(limited, tokens_of_member.shape[-1])
                states[place] = tokens_of_member + torch.cat((sin, cos), dim=-1).to(tokens.dtype)

        if past_key_values is not None:
            attention_mask = past_key_values.extend_line_mask(attention_mask, tokens)
        create_mask = create_causal_mask if self.config.sliding_window is None else create_sliding_window_causal_mask
        # by place: the library has two names for the cache, see `ScanlineModelOutput`
        mask = create_mask(self.config, tokens, attention_mask, past_key_values, positions.unsqueeze(0))
        for place, member in enumerate(self.members):
            hidden_states = self.dropout(states[place])
            for layer in member.layers:
                hidden_states = layer(
                    hidden_states,
                    mask,
                    position_embeddings=turns.get(self.head_dims[place]),
                    past_key_values=past_key_values,
                    **kwargs,
                )
            states[place] = member.norm(hidden_states)
        return ScanlineModelOutput(
            last_hidden_state=torch.cat(states, dim=-1) if len(states) > 1 else states[0],
            cache=past_key_values,
            line_features=line_features if output_line_features else None,
        )


class ScanlineCausalForImageClassification(ScanlineCausalPreTrainedModel):
    """
    The causal scanline transformer with a linear head at every line.

    With `next_line_weight`, it is trained to tell the next lines as well, see [`ScanlineNextLines`]. With
    `num_members`, the head sees the last hidden states of all members side by side: logits are sums over them.
    """

    # weights of training only: models with and without them load each other's
    _keys_to_ignore_on_load_missing = [r"^next_lines\."]
    _keys_to_ignore_on_load_unexpected = [r"^next_lines\."]

    def __init__(self, config: ScanlineCausalConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.scanline = ScanlineCausalModel(config)
        width = sum(of_member.hidden_size for of_member in config.member_configs)
        self.classifier = nn.Linear(width, self.num_labels)
        self.next_lines = ScanlineNextLines(config) if config.next_line_weight else None
        self.post_init()

    def calibration(
        self, first: int, num_lines: int, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Temperatures and exponents `[num_lines, 1]`, and biases `[num_lines, num_labels]`, after `first` and more
        lines, in float32.
        """
        known = torch.tensor(self.config.calibration_lines, device=device).float().log()
        temperatures = torch.tensor(self.config.calibration_temperatures, device=device).float().unsqueeze(-1)
        exponents = torch.tensor(self.config.calibration_exponents or [0.0] * len(known), device=device).float()
        unbiased = [[0.0] * self.num_labels] * len(known)
        biases = torch.tensor(self.config.calibration_biases or unbiased, device=device).float()
        values = torch.cat((temperatures, exponents.unsqueeze(-1), biases), dim=-1)
        place = (torch.arange(num_lines, device=device) + first).float().log().clamp(known[0], known[-1])
        right = torch.searchsorted(known, place).clamp(min=1, max=max(len(known) - 1, 1))
        left = right - 1
        right = right.clamp(max=len(known) - 1)
        share = ((place - known[left]) / (known[right] - known[left]).clamp(min=1e-6)).unsqueeze(-1)
        values = values[left] + share * (values[right] - values[left])
        return values[:, :1], values[:, 1:2], values[:, 2:]

    def streamer(self, processor: Any, **kwargs) -> "ScanlineStreamer":
        """A [`ScanlineStreamer`] of this model, which takes scans line by line; `kwargs` are its arguments."""
        from .streaming_scanline import ScanlineStreamer  # it imports this module; and so that its file travels

        return ScanlineStreamer(self, processor, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: ScanlineCache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: ScanlineCache | None = None,
        **kwargs,
    ) -> ScanlineCausalOutput:
        """
        Args:
            pixel_values: `[batch, lines, pixels_per_line]`: a scan, or the next lines of one.
            attention_mask: `[batch, lines]`, 1 where a line was measured. It describes these lines only.
            labels: class indices `[batch]`, one a line `[batch, lines]`, or scores `[batch, num_labels]`; see
                [`tip_state_loss`].
            past_key_values: what an earlier call returned, to go on from there.
            use_cache: whether to return `past_key_values`.
            num_items_in_batch: see [`tip_state_loss`].
            cache: another name for `past_key_values`, that of transformers from 5.24 on.

        Returns:
            `logits` of the last measured line `[batch, num_labels]`, `line_logits` `[batch, lines, num_labels]`,
            and the loss where there are labels.
        """
        tells_next_lines = self.next_lines is not None and self.training and labels is not None
        outputs = self.scanline(
            pixel_values,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            cache=cache,
            output_line_features=tells_next_lines,
            **kwargs,
        )
        line_logits = self.classifier(outputs.last_hidden_state)
        if self.config.calibration_temperatures and not self.training:
            seen = outputs.cache
            num_seen = 0 if seen is None else seen.get_seq_length() - line_logits.shape[1]
            temperatures, exponents, biases = (
                values.to(line_logits)
                for values in self.calibration(num_seen + 1, line_logits.shape[1], line_logits.device)
            )
            if self.config.calibration_exponents:
                line_logits = line_logits - line_logits.mean(dim=-1, keepdim=True)
                largest = line_logits.amax(dim=-1, keepdim=True).clamp(min=SMALLEST_LOGIT)
                line_logits = line_logits * largest**exponents
            line_logits = line_logits / temperatures + biases
        logits, loss = judge_scans(line_logits, attention_mask, labels, self.config, num_items_in_batch)
        next_line_loss = None
        if tells_next_lines:
            assert self.next_lines is not None and labels is not None and loss is not None
            lines = blank_unmeasured(pixel_values, attention_mask)
            error = self.next_lines.error(outputs.line_features, outputs.last_hidden_state, lines, attention_mask)
            next_line_loss = self.config.next_line_weight * mean_over_scans(error, labels, num_items_in_batch)
            loss = loss + next_line_loss
        return ScanlineCausalOutput(
            loss=loss,
            logits=logits,
            line_logits=line_logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            next_line_loss=next_line_loss,
        )


__all__ = [
    "ScanlineCache",
    "ScanlineCausalForImageClassification",
    "ScanlineCausalModel",
    "ScanlineCausalPreTrainedModel",
]
