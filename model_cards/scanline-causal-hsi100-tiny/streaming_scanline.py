"""Scans line by line, while the microscope takes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from .change_scanline import LINES_OF_NEW_TIP, ChangeDetector, num_change_features
from .configuration_scanline_causal import ScanlineCausalConfig
from .decoding_scanline import ALL, LineDecoder, Streams
from .familiarity_scanline import FamiliarityMeter
from .image_processing_scanline import ScanlineImageProcessor, flatten_lines, normalize_heights, weights_across
from .modeling_scanline_causal import SMALLEST_LOGIT, ScanlineCausalForImageClassification

CAUSAL_NORMALIZATIONS = ("line", "flat_line", "none")


@dataclass(frozen=True)
class LineResult:
    """
    What is known of a scan after one more raw line.

    Attributes:
        line: index of the raw line since the last `reset`, from 0.
        num_model_lines: model lines that the raw lines cover completely, since the last `reset`.
        measured: whether anything of the raw line was measured.
        probabilities: of each state, in the order of `id2label`, after the last complete and measured model line;
            `None` before the first one.
        state: the most probable state; `None` without probabilities.
        decision: the state that has been decided on, and stays until the tip changes; `None` while undecided, and
            without `alpha`.
        change_probability: that the tip changed some model lines ago, `LINES_AFTER - 1` of them; the largest where the
            raw line completed several; `None` where it completed none, with too few lines, and without
            `change_weights`.
        change_line: index of the first raw line of a new tip, in the one result in which it is found; else `None`.
        unfamiliarity: how far the scan, as far as its last `MEMORY` model lines go, is from those of training: unlike
            them where more than 1; `None` with too few lines, and where the configuration says nothing of them.
    """

    line: int
    num_model_lines: int
    measured: bool
    probabilities: tuple[float, ...] | None
    state: str | None
    decision: str | None
    change_probability: float | None = None
    change_line: int | None = None
    unfamiliarity: float | None = None

    @property
    def familiar(self) -> bool | None:
        """Whether the scan looks like those of training; `None` where nobody knows."""
        return None if self.unfamiliarity is None else self.unfamiliarity <= 1


class LineResampler:
    """
    Raw lines to model lines, as they come: to the numbers of [`resample_lines`] of the lines so far.

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
        self.across = weights_across(width, self.pixels_per_line).numpy().T
        # heights times area, and area that was measured: of the model line that is not complete yet, or, of a narrow
        # scan, of the raw line before
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
        if self.scale < 1:
            yield from self._between(heights, area)
            return
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

    def _between(self, heights: np.ndarray, area: np.ndarray) -> Iterator[np.ndarray]:
        """Model lines between the raw line before and this one, see [`weights_along`]."""
        assert self.width is not None
        if self.num_raw_lines == 1:
            self.heights, self.area = heights, area
        unmeasured, before = area <= 1e-9, (self.num_raw_lines - 1) * self.pixels_per_line
        while (self.num_model_lines + 1) * self.width <= before + self.pixels_per_line:
            self.num_model_lines += 1
            share = (self.num_model_lines * self.width - before) / self.pixels_per_line
            summed = share * heights + (1 - share) * self.heights
            total = np.where(unmeasured, 1, share * area + (1 - share) * self.area)
            yield np.where(unmeasured, np.nan, summed / total).astype(np.float32)
        self.heights, self.area = heights, area


class ScanlineStreamer:
    """
    Classifies scans line by line: after each raw line, what the processor and the model say of the lines so far.

    Raw lines have any width, one for all lines of a scan; they become model lines as soon as these are covered
    completely, with the same factor in both directions, as [`ScanlineImageProcessor`] makes them of a whole scan. So a
    wide raw line may not complete any model line, a narrow one several. What is left of an incomplete one waits for
    the next raw line. Time and memory for a line are constant, for hours.

    Args:
        model: a causal model with a `sliding_window`. It is set to evaluation mode; its weights are read here.
        processor: its image processor, with any `normalization` but `"global"`.
        alpha: error that is accepted among decisions, in (0, 1): decides as soon as the evidence allows it by the
            thresholds in the model's configuration. `None` never decides.
        batch_size: number of scans that advance together.
        restart: whether the model forgets the lines before a tip change when it is found, so that those of the old tip
            do not drag the verdict on the new one. Without, and until a change is found, the numbers are those of the
            scan as a whole.

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
        self.decoder = LineDecoder(model, batch_size)
        # after each number of lines; after more of them as after the last
        self.temperatures, self.exponents = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
        self.biases = np.zeros((1, len(self.labels)), np.float32)
        if config.calibration_lines:
            until_last = model.calibration(1, config.calibration_lines[-1])
            self.temperatures, self.exponents, self.biases = (values.numpy() for values in until_last)
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
        self.familiarity = FamiliarityMeter(config, batch_size) if config.familiarity_mean else None
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
        of_place = ("revision", "subfolder", "cache_dir", "token", "local_files_only")
        where = {name: kwargs[name] for name in of_place if name in kwargs}
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
        self.decoder.reset()
        if self.detector is not None:
            self.detector.reset()
        if self.familiarity is not None:
            self.familiarity.reset()
        self.unfamiliarity = np.full(self.batch_size, np.nan)
        # the last measured lines, as the decoder took them
        self.recent = np.zeros((self.batch_size, LINES_OF_NEW_TIP, self.model.config.pixels_per_line), np.float32)
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
        if getattr(lines, "ndim", 2) != 2:
            raise ValueError(f"Expected lines of shape [{self.batch_size}, width], got {list(lines.shape)}.")
        heights = self.processor.process_image(lines)
        if len(heights) != self.batch_size:
            raise ValueError(f"Expected lines of shape [{self.batch_size}, width], got {list(heights.shape)}.")
        self.change_probabilities = np.full(self.batch_size, np.nan)
        self.change_lines = np.full(self.batch_size, -1)
        lines = heights
        if self.processor.normalization == "flat_line":
            lines = flatten_lines(heights)
        for model_lines in self.resampler(lines):
            self._advance(model_lines)
        measured = np.isfinite(heights).any(axis=1).tolist()
        return [self._result(scan, measured[scan]) for scan in range(self.batch_size)]

    def _advance(self, model_lines: np.ndarray) -> None:
        """One more model line of each scan, `[batch, pixels_per_line]`."""
        # flat_line: raw lines have been flattened
        normalization = "none" if self.processor.normalization == "none" else "line"
        values, measured = normalize_heights(model_lines, normalization)
        self._classify(values, measured, ALL)
        self.recent[measured, :-1], self.recent[measured, -1] = self.recent[measured, 1:], values[measured]
        if normalization == "none":
            values, _ = normalize_heights(model_lines, "line")
        if self.familiarity is not None:
            self.unfamiliarity = self.familiarity.update(values, measured)
        if self.detector is None:
            return
        assert self.resampler.width is not None
        # the first raw line of this model line
        number = (self.resampler.num_model_lines - 1) * self.resampler.width // self.resampler.pixels_per_line
        probabilities, places = self.detector.update(values, measured, number)
        self.change_probabilities = np.fmax(self.change_probabilities, probabilities)
        found = np.flatnonzero(places >= 0)
        self.change_lines[found] = places[found]
        if self.restart and len(found):
            self._restart(found)

    def _restart(self, scans: np.ndarray) -> None:
        """Forgets the old tip, and takes the lines that the new one has measured until it was found once more."""
        self.decoder.reset(scans)
        self.num_lines[scans] = 0
        for scan in scans.tolist():
            self.decisions[scan] = None
        for place in range(LINES_OF_NEW_TIP):
            self._classify(self.recent[scans, place], np.ones(len(scans), dtype=bool), scans)

    def _classify(self, values: np.ndarray, measured: np.ndarray, scans: Streams) -> None:
        """Verdicts on some scans after one more normalized line, `[scans, pixels_per_line]`."""
        logits = self.decoder.classify(self.decoder.step(values, measured, scans))
        self.num_lines[scans] += 1
        place = np.minimum(self.num_lines[scans], len(self.temperatures)) - 1
        if self.model.config.calibration_exponents:
            logits = logits - logits.mean(axis=-1, keepdims=True)
            largest = logits.max(axis=-1, keepdims=True).clip(min=SMALLEST_LOGIT)
            logits = logits * largest ** self.exponents[place]
        logits = logits / self.temperatures[place] + self.biases[place]
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
        self.probabilities[scans] = np.where(measured[:, None], probabilities, self.probabilities[scans])
        if self.threshold is not None:
            for scan in np.arange(self.batch_size)[scans].tolist():
                best = self.probabilities[scan].max()  # NaN, which is not more, before the first measured line
                at_a_look = int(self.num_lines[scan]) in self.decision_lines
                if self.decisions[scan] is None and at_a_look and best >= self.threshold:
                    self.decisions[scan] = self.labels[int(self.probabilities[scan].argmax())]

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
            unfamiliarity=None if np.isnan(self.unfamiliarity[scan]) else float(self.unfamiliarity[scan]),
        )


__all__ = ["LineResampler", "LineResult", "ScanlineStreamer"]
