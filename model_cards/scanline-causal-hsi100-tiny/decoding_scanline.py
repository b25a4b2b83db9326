"""One more line of each stream through a causal model, at constant time and memory."""

from typing import Any, cast

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import nn

from .configuration_scanline_causal import ScanlineCausalConfig
from .layers_scanline import ScanlineLayer
from .modeling_scanline_causal import (
    ScanlineCausalForImageClassification,
    ScanlineCausalModel,
    ScanlineMember,
    ScanlineTokenizerStage,
)

Streams = slice | np.ndarray  # which streams of a batch
ALL = slice(None)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().contiguous().numpy()


def check_plain(module: nn.Module, kind: type[nn.Linear | nn.Conv2d]) -> None:
    """Raises `ValueError` for a module that computes with more, or with other things, than its weights."""
    weight = module.weight if type(module) is kind else None
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise ValueError(
            f"A stream computes with plain weights, this model has a {type(module).__name__} in place of a "
            f"{kind.__name__}: merge adapters first (`merge_and_unload()`), and load it without quantization."
        )


class _Linear:
    """Products with a matrix. numpy's take half the time of torch's where there is a single row."""

    def __init__(self, *linears: nn.Linear):
        for linear in linears:
            check_plain(linear, nn.Linear)
        self.weight = _array(torch.cat([linear.weight for linear in linears])).T
        self.bias = _array(torch.cat([linear.bias for linear in linears]))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        product = values @ self.weight
        product += self.bias
        return product


class _Norm:
    """A normalization over the last axis."""

    def __init__(self, norm: nn.LayerNorm):
        self.weight, self.bias = (torch.from_numpy(_array(part)) for part in (norm.weight, norm.bias))
        self.shape, self.eps = norm.normalized_shape, norm.eps

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return torch.layer_norm(torch.from_numpy(values), self.shape, self.weight, self.bias, self.eps).numpy()


class _Activation:
    def __init__(self, activation: nn.Module):
        self.activation = activation

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self.activation(torch.from_numpy(values)).numpy()


class _Stage:
    """
    A stage of the tokenizer, for one line: the pixels that a place of the convolution sees lie side by side, and one
    product does the rest. It keeps the lines that the convolution sees, with their padding, channels last.
    """

    def __init__(self, stage: ScanlineTokenizerStage, batch_size: int, width: int):
        conv = stage.conv
        check_plain(conv, nn.Conv2d)
        out_channels, in_channels, num_lines, kernel_size = conv.weight.shape
        self.padding, self.stride = cast(int, conv.padding[1]), conv.stride[1]
        self.kernel_size = kernel_size
        self.lines = np.zeros((batch_size, num_lines, width + 2 * self.padding, in_channels), np.float32)
        self.seen = self._what_is_seen()
        self.width = self.seen.shape[1] // 2  # pooled
        self.weight = _array(conv.weight.permute(2, 3, 1, 0)).reshape(-1, out_channels)
        self.bias = _array(conv.bias) if conv.bias is not None else np.zeros(out_channels, np.float32)
        self.norm, self.activation = _Norm(stage.norm), _Activation(stage.activation)

    def _what_is_seen(self) -> np.ndarray:
        """A view of the lines, `[streams, places, lines, kernel_size, channels]`."""
        batch_size, num_lines, width, in_channels = self.lines.shape
        by_stream, by_line, by_pixel, by_channel = self.lines.strides
        return as_strided(
            self.lines,
            (batch_size, (width - self.kernel_size) // self.stride + 1, num_lines, self.kernel_size, in_channels),
            (by_stream, self.stride * by_pixel, by_line, by_pixel, by_channel),
            writeable=False,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.seen = self._what_is_seen()  # of a copy: it would be one of its own, which no new line gets into

    def __call__(self, line: np.ndarray, streams: Streams) -> np.ndarray:
        """The next line of some streams `[streams, pixels, channels]`, to `[streams, pixels', channels']`."""
        self.lines[streams, :-1] = self.lines[streams, 1:]
        self.lines[streams, -1, self.padding : self.lines.shape[2] - self.padding] = line
        features = self.seen[streams].reshape(-1, len(self.weight)) @ self.weight
        features = features.reshape(len(line), -1, features.shape[-1])[:, : 2 * self.width]
        pooled = np.maximum(features[:, ::2], features[:, 1::2])
        pooled += self.bias
        return self.activation(self.norm(pooled))


class _Layer:
    """
    A layer of the transformer, for one line.

    Keys and values lie in rings `[batch, heads, sliding_window, head_dim]`, allocated once. In queries and keys the
    two parts of a rotation lie side by side, a complex number, which scores do not notice.
    """

    def __init__(self, layer: ScanlineLayer, batch_size: int, window: int):
        attention = layer.attention
        self.attention_norm, self.mlp_norm = _Norm(layer.attention_norm), _Norm(layer.mlp_norm)
        self.projections = _Linear(attention.q_proj, attention.k_proj, attention.v_proj)
        width, head_dim = attention.q_proj.out_features, attention.head_dim
        by_part = np.arange(width).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
        order = np.concatenate((by_part, width + by_part, 2 * width + np.arange(width)))
        scaling = np.where(np.arange(3 * width) < width, attention.scaling, 1).astype(np.float32)  # of the queries
        self.projections.weight = (np.ascontiguousarray(self.projections.weight.T[order]) * scaling[:, None]).T
        self.projections.bias = self.projections.bias[order] * scaling
        self.output = _Linear(attention.o_proj)
        self.fc1, self.fc2 = _Linear(layer.mlp.fc1), _Linear(layer.mlp.fc2)
        self.activation = _Activation(layer.mlp.activation)
        self.keys, self.values = np.zeros((2, batch_size, width // head_dim, window, head_dim), np.float32)

    def __call__(
        self,
        hidden_states: np.ndarray,
        turns: np.ndarray | None,
        hidden: np.ndarray,
        streams: Streams,
        slots: tuple[np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """
        Args:
            hidden_states: `[streams, hidden]`.
            turns: by which the positions rotate queries and keys, `[streams, 1, 1, head_dim / 2]`, complex.
            hidden: added to the attention weights, `[streams, 1, sliding_window]`.
            streams: of the batch, that advance.
            slots: numbers of these streams, and the place of this line in the ring of each.
        """
        _, num_heads, _, head_dim = self.keys.shape
        projected = self.projections(self.attention_norm(hidden_states)).reshape(-1, 3, num_heads, head_dim)
        if turns is not None:
            rotated = projected[:, :2].view(np.complex64)
            rotated *= turns
        numbers, places = slots
        query = projected[:, 0]
        self.keys[numbers, :, places], self.values[numbers, :, places] = projected[:, 1], projected[:, 2]
        scores = (self.keys[streams] @ query[..., None])[..., 0]
        scores += hidden
        weights = torch.softmax(torch.from_numpy(scores), dim=-1).numpy()
        attended = (weights[:, :, None] @ self.values[streams]).reshape(len(query), -1)
        hidden_states = hidden_states + self.output(attended)
        hidden_states += self.fc2(self.activation(self.fc1(self.mlp_norm(hidden_states))))
        return hidden_states


class _Member:
    """A tokenizer and its layers, for one line."""

    def __init__(self, member: ScanlineCausalModel | ScanlineMember, config: ScanlineCausalConfig, batch_size: int):
        assert config.sliding_window is not None
        tokenizer, width = member.tokenizer, config.pixels_per_line
        self.stages: list[_Stage] = []
        for stage in cast(list[ScanlineTokenizerStage], list(tokenizer.stages)):
            self.stages.append(_Stage(stage, batch_size, width))
            width = self.stages[-1].width
        self.with_maximum, self.projection = tokenizer.with_maximum, _Linear(tokenizer.projection)
        layers = cast(list[ScanlineLayer], list(member.layers))
        self.head_dim = layers[0].attention.head_dim
        self.layers = [_Layer(layer, batch_size, config.sliding_window) for layer in layers]
        self.norm = _Norm(member.norm)

    def reset(self, streams: Streams) -> None:
        """Forgets all lines of some streams."""
        for layer in self.layers:
            layer.keys[streams], layer.values[streams] = 0, 0
        for stage in self.stages:
            stage.lines[streams] = 0  # what the model pads its first lines with

    def tokens(self, lines: np.ndarray, streams: Streams) -> np.ndarray:
        """Lines `[streams, pixels_per_line]`, to tokens `[streams, hidden]`."""
        features = lines[..., None]
        for stage in self.stages:
            features = stage(features, streams)
        pooled = features.mean(axis=1)
        if self.with_maximum:
            pooled = np.concatenate((pooled, features.max(axis=1)), axis=1)
        return self.projection(pooled)


class LineDecoder:
    """
    The next line of each stream, at constant time and memory: the numbers of the model with a [`ScanlineCache`].

    What is computed for a single line is too little for torch to be quick about, whatever the device: this is done on
    the CPU and in float32, mostly by numpy. A stream of the batch can start anew while the others go on.

    Args:
        model: with a `sliding_window`. Its weights are copied.
        batch_size: number of streams.
    """

    def __init__(self, model: ScanlineCausalForImageClassification, batch_size: int):
        config = model.config
        assert config.sliding_window is not None
        self.config, self.sinusoids = config, model.scanline.sinusoids
        self.members = [_Member(member, config, batch_size) for member in model.scanline.members]
        self.classifier = _Linear(model.classifier)
        # minus infinity where a ring holds nothing, or an unmeasured line
        self.hidden = np.zeros((batch_size, 1, config.sliding_window), np.float32)
        self.positions = np.zeros(batch_size, np.int64)
        self.numbers = np.arange(batch_size)
        self.reset()

    def reset(self, streams: Streams = ALL) -> None:
        """Forgets all lines of some streams, by default of all."""
        for member in self.members:
            member.reset(streams)
        self.hidden[streams] = -np.inf
        self.positions[streams] = 0

    def step(self, lines: np.ndarray, measured: np.ndarray, streams: Streams = ALL) -> np.ndarray:
        """
        Takes the next line of some streams, by default of all.

        Args:
            lines: normalized, `[streams, pixels_per_line]` in float32, zero where unmeasured.
            measured: `[streams]`, false for a line that was not measured at all.
            streams: their numbers.

        Returns:
            Last hidden states `[streams, hidden]`, those of all members; meaningless for unmeasured lines.
        """
        states = [member.tokens(lines, streams) for member in self.members]
        positions, numbers = self.positions[streams], self.numbers[streams]
        turns: dict[int, np.ndarray] = {}  # by the width of a head
        if self.config.position_embedding_type == "rotary":
            for width in {member.head_dim for member in self.members}:
                cos_sin = self.sinusoids(torch.from_numpy(positions), width)
                turns[width] = torch.complex(*cos_sin).numpy()[:, None, None]
        else:
            limited = torch.from_numpy(positions).clamp(max=self.config.max_lines - 1)
            states = [
                tokens + torch.cat(self.sinusoids(limited, tokens.shape[-1])[::-1], dim=-1).numpy()
                for tokens in states
            ]
        places = positions % self.hidden.shape[-1]
        self.hidden[numbers, 0, places] = 0  # it sees itself: of nothing at all there would be no weights
        hidden, slots = self.hidden[streams], (numbers, places)
        for place, member in enumerate(self.members):
            for layer in member.layers:
                states[place] = layer(states[place], turns.get(member.head_dim), hidden, streams, slots)
            states[place] = member.norm(states[place])
        self.hidden[numbers, 0, places] = np.where(measured, np.float32(0), -np.float32(np.inf))
        self.positions[streams] += 1
        return np.concatenate(states, axis=1) if len(states) > 1 else states[0]

    def classify(self, hidden_states: np.ndarray) -> np.ndarray:
        """Logits `[batch, num_labels]` without temperature, of last hidden states `[batch, hidden]` of all members."""
        return self.classifier(hidden_states)


__all__ = ["LineDecoder"]
