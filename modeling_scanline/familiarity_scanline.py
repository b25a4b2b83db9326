"""Whether a scan looks like those that a model was trained on."""

import numpy as np

from .change_scanline import line_spectra, num_bands
from .configuration_scanline_causal import ScanlineCausalConfig

LAGS = (1, 2, 4, 8)  # lines
NUM_MOMENTS = 5
MEMORY = 128  # lines, over which features are averaged


def num_familiarity_features(pixels_per_line: int) -> int:
    """How many features [`familiarity_features`] gives."""
    return num_bands(pixels_per_line) + len(LAGS) + NUM_MOMENTS


def familiarity_features(windows: np.ndarray) -> np.ndarray:
    """
    What a line says of the surface and the instrument, whatever the state of the tip: its spectrum, how like the lines
    before it is, and how heights and slopes are distributed.

    Args:
        windows: normalized lines `[batch, LAGS[-1] + 1, pixels_per_line]`, the line in question last; zero before the
            first line of a scan.

    Returns:
        `[batch, num_familiarity_features(pixels_per_line)]` in float32.
    """
    lines, width = windows[:, -1], np.float32(windows.shape[-1])
    alike = [np.einsum("bp,bp->b", windows[:, -1 - lag], lines) / width for lag in LAGS]
    slopes = lines[:, 1:] - lines[:, :-1]
    squares, squared_slopes = lines * lines, slopes * slopes
    steepness = np.add.reduce(squared_slopes, axis=-1) / (width - 1) + np.float32(1e-4)
    moments = [
        np.einsum("bp,bp->b", squares, lines) / width,
        np.log(np.einsum("bp,bp->b", squares, squares) / width + np.float32(1e-3)),
        np.log(steepness),
        np.einsum("bp,bp->b", squared_slopes, slopes) / (width - 1) / steepness**1.5,
        np.log(np.einsum("bp,bp->b", squared_slopes, squared_slopes) / (width - 1) / steepness**2 + np.float32(1e-2)),
    ]
    return np.concatenate([line_spectra(lines), np.stack([*alike, *moments], axis=-1)], axis=-1)


class FeatureAverages:
    """
    Features of streams of lines, averaged over the lines so far.

    Args:
        pixels_per_line: width of a line.
        batch_size: number of streams.
    """

    def __init__(self, pixels_per_line: int, batch_size: int = 1):
        self.windows = np.zeros((batch_size, LAGS[-1] + 1, pixels_per_line), np.float32)
        self.values = np.zeros((batch_size, num_familiarity_features(pixels_per_line)), np.float32)
        self.num_lines = np.zeros(batch_size, np.int64)

    def reset(self) -> None:
        """Forgets all lines."""
        self.windows[:], self.values[:], self.num_lines[:] = 0, 0, 0

    def update(self, lines: np.ndarray, measured: np.ndarray) -> None:
        """
        Takes the next line of each stream.

        Args:
            lines: normalized line by line, `[batch, pixels_per_line]`.
            measured: `[batch]`, false for lines to pass over.
        """
        seen = slice(None) if measured.all() else np.flatnonzero(measured)
        self.windows[seen, :-1] = self.windows[seen, 1:]
        self.windows[seen, -1] = lines[seen]
        self.num_lines[seen] += 1
        share = (1 / np.clip(self.num_lines[seen], 1, MEMORY)[:, None]).astype(np.float32)
        self.values[seen] += share * (familiarity_features(self.windows[seen]) - self.values[seen])


class FamiliarityMeter:
    """
    How far streams of lines are from the scans of training: the Mahalanobis distance of their averaged features.

    Lee et al. (2018) take such a distance within the network; here that tells surfaces apart no better than chance,
    see `benchmarks/README.md`.

    Args:
        config: with `familiarity_mean` and what goes with it.
        batch_size: number of streams.

    Raises:
        ValueError: if that is for lines of another width.
    """

    def __init__(self, config: ScanlineCausalConfig, batch_size: int = 1):
        mean, lines = config.familiarity_mean or [], config.familiarity_lines or []
        if len(mean) != num_familiarity_features(config.pixels_per_line):
            raise ValueError(
                f"familiarity_mean must be {num_familiarity_features(config.pixels_per_line)} for lines of "
                f"{config.pixels_per_line} pixels, got {len(mean)}."
            )
        self.averages = FeatureAverages(config.pixels_per_line, batch_size)
        self.mean = np.asarray(mean, np.float32)
        self.whitening = np.zeros((len(mean), len(mean)), np.float32)
        self.whitening[np.tril_indices(len(mean))] = config.familiarity_whitening
        self.first = lines[0]
        up_to_last = np.log(np.arange(1, lines[-1] + 1))
        self.thresholds = np.interp(up_to_last, np.log(lines), config.familiarity_thresholds or [])

    def reset(self) -> None:
        """Forgets all lines."""
        self.averages.reset()

    def update(self, lines: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """
        Takes the next line of each stream, as [`FeatureAverages`] does.

        Returns:
            Distances `[batch]` as multiples of the threshold: more than 1 is unlike the scans of training. NaN before
            the first number of lines with a threshold.
        """
        self.averages.update(lines, measured)
        num_lines = self.averages.num_lines
        thresholds = self.thresholds[np.clip(num_lines, 1, len(self.thresholds)) - 1]
        ratios = distances(self.averages.values, self.mean, self.whitening) / thresholds
        return np.where(num_lines < self.first, np.nan, ratios)


def distances(features: np.ndarray, mean: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Mahalanobis distances of averaged features `[..., features]`, 1 for the usual deviation."""
    whitened = (features - mean) @ whitening.T
    return np.sqrt(np.square(whitened).mean(axis=-1))


__all__ = ["FamiliarityMeter", "FeatureAverages", "distances", "familiarity_features", "num_familiarity_features"]
