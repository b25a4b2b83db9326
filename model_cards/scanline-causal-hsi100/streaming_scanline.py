"""Scans line by line, while the microscope takes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from .change_scanline import ChangeDetector, num_change_features
from .configuration_scanline import ScanlineCausalConfig
from .image_processing_scanline import ScanlineImageProcessor, normalize_lines
from .layers_scanline import ScanlineLayer
from .modeling_scanline_causal import ScanlineCausalForImageClassification

CAUSAL_NORMALIZATIONS = ("line", "none")


@dataclass(frozen=True)
class LineResult:
    """
    What is known of a scan after one more raw line.

    Attributes:
        line: index of the raw line since the last `reset`, from 0.
        num_model_lines: model lines that the raw lines cover completely, since the last `reset`.
        measured: whether anything of the raw line was measured.
        probabilities: of each state, in the order of `id2label`, after the last complete and measured model line;
            `None` before the first one, at the start and after a tip change.
        state: the most probable state; `None` without probabilities.
        decision: the state that has been decided on, and stays until the tip changes; `None` while undecided, and
            without `alpha`.
        change_probability: that the tip changed some model lines ago, `LINES_AFTER - 1` of them; the largest where the
            raw line completed several; `None` where it completed none, with too few lines, and without
            `change_weights`.
        change_line: index of the first raw line of a new tip, in the one result in which it is found; else `None`.
    """

    line: int
    num_model_lines: int
    measured: bool
    probabilities: tuple[float, ...] | None
    state: str | None
    decision: str | None
    change_probability: float | None = None
    change_line: int | None = None


class LineResampler:
    """
    Raw lines to model lines by area, as they come: to the numbers of [`resample_lines`] of the lines so far.

    Args:
        pixels_per_line: width of a model line.
    """

    def __init__(self, pixels_per_line: int):
        self.pixels_per_line = pixels_per_line
        self.reset()

    def reset(self) -> None:
        """Forgets all lines, and their width."""
        self.width: int | None = None
        self.num_raw_lines = 0
        self.num_model_lines = 0

    def _start(self, batch_size: int, width: int) -> None:
        self.width = width
        self.scale = width / self.pixels_per_line
        edges = np.arange(self.pixels_per_line + 1) * self.scale
        pixels = np.arange(width)[:, None]
        self.across = np.clip(np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels), 0, None)
        # of the model line that is not complete yet: heights times area, and area that was measured
        self.heights, self.area = np.zeros((2, batch_size, self.pixels_per_line))

    def __call__(self, lines: np.ndarray) -> Iterator[np.ndarray]:
        """
        Model lines that one more raw line completes: none, one or several.

        Args:
            lines: the next line of each scan, `[batch, width]`, NaN where nothing was measured.

        Yields:
            `[batch, pixels_per_line]` in float32, NaN where nothing of a pixel was measured.

        Raises:
            ValueError: for another width than that of the lines before.
        """
        if self.width is None:
            self._start(*lines.shape)
        elif self.width != lines.shape[1]:
            raise ValueError(
                f"Expected lines of {self.width} pixels, as those before, got {lines.shape[1]}: call reset() before "
                "another scan."
            )
        self.num_raw_lines += 1
        if lines.shape[1] == self.pixels_per_line:
            self.num_model_lines += 1
            yield lines.astype(np.float32)
            return
        measured = np.isfinite(lines)
        area = measured @ self.across
        # float64, or a constant line among lines far from its height would come out as noise
        heights = np.where(measured, lines, 0).astype(np.float64) @ self.across
        top = self.num_raw_lines - 1.0
        while top < self.num_raw_lines:
            bottom = (self.num_model_lines + 1) * self.scale
            share = min(bottom, self.num_raw_lines) - top
            self.heights += share * heights
            self.area += share * area
            if (self.num_model_lines + 1) * lines.shape[1] > self.num_raw_lines * self.pixels_per_line:
                return
            empty = self.area <= 1e-9 * self.scale**2  # relative to a whole pixel: rounding is no measurement
            complete = np.where(empty, np.nan, self.heights / np.where(empty, 1, self.area)).astype(np.float32)
            self.heights[:], self.area[:] = 0, 0
            self.num_model_lines += 1
            top = bottom
            yield complete


class LineDecoder:
    """
    One more line of each stream through a causal model, at constant time and memory: the numbers of the model with a
    [`ScanlineCache`], without what the library does at each call to be ready for anything.

    Keys and values lie in rings of `sliding_window` lines, allocated once. A stream of the batch can start anew while
    the others go on.

    Args:
        model: in evaluation mode, with a `sliding_window`. Its weights are read at construction.
        batch_size: number of streams.
    """

    def __init__(self, model: ScanlineCausalForImageClassification, batch_size: int):
        config, weight = model.config, model.classifier.weight
        assert config.sliding_window is not None
        self.model, self.config = model, config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.layers = cast(list[ScanlineLayer], list(model.scanline.layers))
        attentions = [layer.attention for layer in self.layers]
        projections = [(attention.q_proj, attention.k_proj, attention.v_proj) for attention in attentions]
        self.weights = [torch.cat([projection.weight for projection in of_layer]) for of_layer in projections]
        self.biases = [torch.cat([projection.bias for projection in of_layer]) for of_layer in projections]
        ring = (len(attentions), 2, batch_size, self.num_heads, config.sliding_window, self.head_dim)
        self.rings = weight.new_zeros(ring)
        # added to the attention weights: minus infinity where a ring holds nothing, or an unmeasured line
        self.hidden = weight.new_zeros(batch_size, 1, 1, config.sliding_window)
        self.positions = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        self.line_buffers: dict[int, torch.Tensor] = {}
        self.num_steps = 0
        self.reset()

    def reset(self, streams: slice | torch.Tensor = slice(None)) -> None:
        """Forgets all lines of some streams, by default of all."""
        self.rings[:, :, streams] = 0
        self.hidden[streams] = float("-inf")
        self.positions[streams] = 0
        for buffer in self.line_buffers.values():
            buffer[streams] = 0  # what the model pads its first lines with
        if isinstance(streams, slice):
            self.num_steps = 0  # or sums would be rounded otherwise than those of the first scan

    def step(self, lines: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        """
        Takes the next line of each stream.

        Args:
            lines: normalized, `[batch, 1, pixels_per_line]`, zero where unmeasured.
            measured: `[batch, 1]`, 0 for a line that was not measured at all.

        Returns:
            Logits `[batch, num_labels]` without temperature; meaningless for unmeasured lines.
        """
        model, width = self.model.scanline, self.config.hidden_size
        hidden_states = model.tokenizer(lines.to(self.rings), self.line_buffers)[:, 0]
        rotary = self.config.position_embedding_type == "rotary"
        if rotary:
            cos, sin = (part.to(self.rings)[:, None, None] for part in model.sinusoids(self.positions, self.head_dim))
        else:
            last = self.config.max_lines - 1
            waves = model.sinusoids(self.positions.clamp(max=last), width)
            hidden_states = hidden_states + torch.cat(waves[::-1], dim=-1).to(self.rings)
        slot = self.num_steps % self.hidden.shape[-1]
        self.hidden[..., slot] = 0  # it sees itself: of nothing at all there would be no weights
        for index, layer in enumerate(self.layers):
            projected = nn.functional.linear(
                layer.attention_norm(hidden_states), self.weights[index], self.biases[index]
            )
            by_head = projected.view(-1, 3, self.num_heads, self.head_dim)
            query_and_key, value = by_head[:, :2], by_head[:, 2]
            if rotary:
                first, second = query_and_key.chunk(2, dim=-1)
                query_and_key = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            keys, values = self.rings[index]
            keys[:, :, slot] = query_and_key[:, 1]
            values[:, :, slot] = value
            attended = nn.functional.scaled_dot_product_attention(
                query_and_key[:, 0].unsqueeze(2), keys, values, attn_mask=self.hidden, scale=layer.attention.scaling
            )
            hidden_states = hidden_states + layer.attention.o_proj(attended.reshape(-1, width))
            hidden_states = hidden_states + layer.mlp(layer.mlp_norm(hidden_states))
        self.hidden[..., slot].masked_fill_(~measured.bool().unsqueeze(-1), float("-inf"))
        self.positions += 1
        self.num_steps += 1
        return self.model.classifier(model.norm(hidden_states))


class ScanlineStreamer:
    """
    Classifies scans line by line: after each raw line, what the processor and the model say of the lines so far.

    Raw lines have any width, one for all lines of a scan; they become model lines as soon as these are covered
    completely, by area and with the same factor in both directions, as [`ScanlineImageProcessor`] does for a whole
    scan. So a wide raw line may not complete any model line, a narrow one several. What is left of an incomplete one
    waits for the next raw line. Time and memory for a line are constant, for hours.

    Args:
        model: a causal model with a `sliding_window`. It is set to evaluation mode; its weights are read here.
        processor: its image processor, with `normalization` `"line"` or `"none"`.
        alpha: error that is accepted among decisions, in (0, 1): decides as soon as the evidence allows it by the
            thresholds in the model's configuration. `None` never decides.
        batch_size: number of scans that advance together.
        restart: whether the model forgets all lines when a tip change is found, so that those of the old tip do not
            drag the verdict on the new one. Without, and until a change is found, the numbers are those of the scan as
            a whole.

    Raises:
        ValueError: for a model or a processor that cannot stream, or an `alpha` that the thresholds do not reach.
    """

    def __init__(
        self,
        model: ScanlineCausalForImageClassification,
        processor: ScanlineImageProcessor,
        alpha: float | None = None,
        batch_size: int = 1,
        restart: bool = True,
    ):
        config = model.config
        if config.model_type != ScanlineCausalConfig.model_type:
            raise ValueError(f"Only a causal model gives a verdict after every line, got {config.model_type}.")
        if config.sliding_window is None:
            raise ValueError("A stream has no end: use a model with a sliding_window, got sliding_window=None.")
        if processor.normalization not in CAUSAL_NORMALIZATIONS:
            raise ValueError(
                f"normalization={processor.normalization!r} needs the whole scan, a stream has lines only: use a "
                f"model trained with one of {', '.join(CAUSAL_NORMALIZATIONS)}."
            )
        if processor.pixels_per_line != config.pixels_per_line or processor.num_channels is not None:
            raise ValueError(
                f"The model reads lines of {config.pixels_per_line} pixels, the processor makes "
                f"pixels_per_line={processor.pixels_per_line} and num_channels={processor.num_channels}."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        self.labels = [str(name) for _, name in sorted((config.id2label or {}).items())]
        self.threshold = None if alpha is None else config.decision_threshold(alpha)
        self.decision_lines = frozenset(config.calibration_lines or ())
        with torch.inference_mode():
            self.decoder = LineDecoder(model, batch_size)
            self.temperatures = torch.ones(1, 1)
            if config.calibration_lines:
                until_last = torch.empty(1, config.calibration_lines[-1], 1)
                self.temperatures = model.temperatures(until_last, 0)
        self.resampler = LineResampler(config.pixels_per_line)
        self.restart = restart
        self.detector: ChangeDetector | None = None
        if config.change_weights is not None:
            if len(config.change_weights) != num_change_features(config.pixels_per_line) + 1:
                raise ValueError(
                    f"change_weights must be {num_change_features(config.pixels_per_line) + 1} for lines of "
                    f"{config.pixels_per_line} pixels, got {len(config.change_weights)}."
                )
            self.detector = ChangeDetector(
                config.change_weights, config.change_threshold, config.pixels_per_line, batch_size
            )
        self.reset()

    @classmethod
    def from_pretrained(cls, name_or_path: Any, **kwargs) -> "ScanlineStreamer":
        """
        Loads model and processor from a folder or a repository on the Hub.

        Args:
            name_or_path: of the folder or repository.
            kwargs: `alpha`, `batch_size` and `restart` go to the streamer, the rest (`revision`, `dtype`, ...) to the
                model.

        Raises:
            ValueError: for a model that cannot stream.
            OSError: if there is none.
        """
        ours = {name: kwargs.pop(name) for name in ("alpha", "batch_size", "restart") if name in kwargs}
        where = {
            name: kwargs[name] for name in ("revision", "cache_dir", "token", "local_files_only") if name in kwargs
        }
        model_type = PreTrainedConfig.get_config_dict(name_or_path, **where)[0].get("model_type")
        if model_type != ScanlineCausalConfig.model_type:  # the library would load it all the same
            raise ValueError(
                f"{name_or_path}: only a causal model gives a verdict after every line, got {model_type}."
            )
        model = ScanlineCausalForImageClassification.from_pretrained(name_or_path, **kwargs)
        return cls(model, ScanlineImageProcessor.from_pretrained(name_or_path, **where), **ours)

    def reset(self) -> None:
        """Forgets all lines; the next one is the first of another scan, of any width."""
        self.resampler.reset()
        with torch.inference_mode():
            self.decoder.reset()
            if self.detector is not None:
                self.detector.reset()
        self.num_lines = np.zeros(self.batch_size, dtype=np.int64)
        self.probabilities = np.full((self.batch_size, len(self.labels)), np.nan)
        self.decisions: list[str | None] = [None] * self.batch_size

    def update(self, line: Any) -> LineResult:
        """
        Takes the next raw line of a scan.

        Args:
            line: heights `[width]`, an array, a tensor or a list; NaN where nothing was measured.

        Raises:
            ValueError: for something else, another width than before, or a streamer of several scans.
        """
        if self.batch_size != 1:
            raise ValueError(f"This streamer takes {self.batch_size} scans at once: use update_batch.")
        return self.update_batch(line[None] if hasattr(line, "ndim") else np.asarray(line)[None])[0]

    def update_many(self, lines: Iterable[Any]) -> list[LineResult]:
        """Takes several raw lines `[num_lines, width]`; the same as `update` with each."""
        return [self.update(line) for line in lines]

    @torch.inference_mode()
    def update_batch(self, lines: Any) -> list[LineResult]:
        """
        Takes the next raw line of each scan.

        Args:
            lines: heights `[batch_size, width]`, NaN where nothing was measured. A scan that has ended goes on with
                NaN.

        Returns:
            One result a scan.

        Raises:
            ValueError: for lines of another shape or width than before.
        """
        heights = self.processor.process_image(lines)
        if len(heights) != self.batch_size:
            raise ValueError(f"Expected lines of shape [{self.batch_size}, width], got {list(heights.shape)}.")
        self.change_probabilities = np.full(self.batch_size, np.nan)
        self.change_lines = np.full(self.batch_size, -1)
        for model_lines in self.resampler(heights):
            self._advance(torch.from_numpy(model_lines).unsqueeze(1))
        measured = np.isfinite(heights).any(axis=1).tolist()
        return [self._result(scan, measured[scan]) for scan in range(self.batch_size)]

    def _advance(self, model_lines: torch.Tensor) -> None:
        """One more model line of each scan, `[batch, 1, pixels_per_line]`."""
        values, mask = normalize_lines(model_lines, self.processor.normalization)
        device = self.decoder.rings.device
        logits = self.decoder.step(values.to(device), mask.to(device))
        self.num_lines += 1
        place = np.minimum(self.num_lines, len(self.temperatures)) - 1
        probabilities = (logits.float().cpu() / self.temperatures[place]).softmax(dim=-1).numpy()
        np.copyto(self.probabilities, probabilities, where=mask.bool().numpy())
        if self.threshold is not None:
            for scan, number in enumerate(self.num_lines.tolist()):
                best = self.probabilities[scan].max()  # NaN, which is not more, before the first measured line
                if self.decisions[scan] is None and number in self.decision_lines and best >= self.threshold:
                    self.decisions[scan] = self.labels[int(self.probabilities[scan].argmax())]
        if self.detector is not None:
            self._look_for_changes(values if self.processor.normalization == "line" else model_lines, mask)

    def _look_for_changes(self, lines: torch.Tensor, mask: torch.Tensor) -> None:
        """Whether the tip changed, by the next lines `[batch, 1, pixels_per_line]` and their mask `[batch, 1]`."""
        assert self.detector is not None and self.resampler.width is not None
        if self.processor.normalization != "line":
            lines, _ = normalize_lines(lines, "line")
        # the first raw line of this model line
        number = (self.resampler.num_model_lines - 1) * self.resampler.width // self.resampler.pixels_per_line
        probabilities, places = self.detector.update(lines[:, 0], mask[:, 0], number)
        self.change_probabilities = np.fmax(self.change_probabilities, probabilities.numpy())
        found = places >= 0
        if bool(found.any()):
            self.change_lines = np.where(found.numpy(), places.numpy(), self.change_lines)
            if self.restart:
                self.decoder.reset(found.to(self.decoder.rings.device))
                self.num_lines[found.numpy()] = 0
                self.probabilities[found.numpy()] = np.nan
                self.decisions = [None if new else old for new, old in zip(found, self.decisions, strict=True)]

    def _result(self, scan: int, measured: bool) -> LineResult:
        probabilities = self.probabilities[scan]
        known, change = not np.isnan(probabilities[0]), self.change_probabilities[scan]
        return LineResult(
            line=self.resampler.num_raw_lines - 1,
            num_model_lines=self.resampler.num_model_lines,
            measured=measured,
            probabilities=tuple(probabilities.tolist()) if known else None,
            state=self.labels[int(probabilities.argmax())] if known else None,
            decision=self.decisions[scan],
            change_probability=None if np.isnan(change) else float(change),
            change_line=None if self.change_lines[scan] < 0 else int(self.change_lines[scan]),
        )


__all__ = ["LineDecoder", "LineResampler", "LineResult", "ScanlineStreamer"]
