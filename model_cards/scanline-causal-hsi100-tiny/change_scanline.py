"""Where the tip changed: a line and the few after it, compared with the lines before it."""

from functools import lru_cache
from itertools import pairwise

import numpy as np

LINES_BEFORE = 12  # that a new tip is compared with
LINES_AFTER = 4  # the first of the new tip among them
NEIGHBOURS = 2  # lines on either side over which a change must be the most probable one
LINES_OF_NEW_TIP = LINES_AFTER + NEIGHBOURS  # have been measured when a change is found
NUM_LAGS = 3


@lru_cache
def band_weights(pixels_per_line: int) -> np.ndarray:
    """Share of each frequency in each band of a spectrum `[frequencies, bands]`; finer bands for long waves."""
    edges = np.unique(np.geomspace(1, pixels_per_line // 2 + 1, 19).round().astype(int))
    weights = np.zeros((pixels_per_line // 2 + 1, len(edges) - 1), np.float32)
    for band, (low, high) in enumerate(pairwise(edges)):
        weights[low:high, band] = 1 / (high - low)
    return weights


@lru_cache
def taper(pixels_per_line: int) -> np.ndarray:
    """A periodic Hann window `[pixels_per_line]`."""
    return np.hanning(pixels_per_line + 1)[:-1].astype(np.float32)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """`values.mean(axis)`, which takes three times as long where there is little to sum."""
    return np.add.reduce(values, axis=axis) / values.shape[axis]


def num_bands(pixels_per_line: int) -> int:
    """Bands of a spectrum."""
    return band_weights(pixels_per_line).shape[1]


def line_spectra(lines: np.ndarray) -> np.ndarray:
    """Logarithm of the power in each band of normalized lines `[..., pixels_per_line]`, `[..., bands]` in float32."""
    width = lines.shape[-1]
    spectrum = np.fft.rfft(lines * taper(width))
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return np.log(power @ band_weights(width) + np.float32(1e-3))


def num_change_features(pixels_per_line: int) -> int:
    """How many features [`change_features`] gives."""
    return 2 * num_bands(pixels_per_line) + 20


def change_features(windows: np.ndarray) -> np.ndarray:
    """
    What tells a tip change from the scan going on.

    Correlations between neighbouring lines, across the change and on either side of it; and how the spectrum differs,
    which knows nothing of where along the line features lie.

    Args:
        windows: normalized lines `[batch, LINES_BEFORE + LINES_AFTER, pixels_per_line]`.

    Returns:
        `[batch, num_change_features(pixels_per_line)]` in float32.
    """
    first, width = LINES_BEFORE, windows.shape[-1]
    features = []
    for lag in range(1, NUM_LAGS + 1):
        # place `i` compares the lines `i` and `i + lag`
        alike = np.einsum("bip,bip->bi", windows[:, lag:], windows[:, :-lag]) / np.float32(width)
        before, across, after = alike[:, : first - lag], alike[:, first - lag : first], alike[:, first:]
        features += [_mean(of) for of in (before, across, after)]
        if lag == 1:
            median = np.sort(before, axis=1)[:, (before.shape[1] - 1) // 2]
            features += [before[:, -1], median, before.min(axis=1), after[:, 0], after.min(axis=1)]
    spectra = line_spectra(windows)
    before, after = spectra[:, :first], spectra[:, first:]
    steps = _mean(np.square(spectra[:, first - 1 : first + 2] - spectra[:, first - 2 : first + 1]))
    middles = [_mean(of, axis=1) for of in (before, after)]
    variances = (
        _mean(np.square(of - middle[:, None]), axis=1) for of, middle in zip((before, after), middles, strict=True)
    )
    features += [_mean(variance) for variance in variances]
    difference = [np.abs(middles[1] - middle) for middle in (middles[0], _mean(before[:, -LINES_AFTER:], axis=1))]
    features.append(_mean(np.abs(windows[:, first] - windows[:, first - 1])))
    return np.concatenate([np.stack(features, axis=-1), steps, *difference], axis=-1)


class ChangeDetector:
    """
    Finds tip changes in streams of lines, a few lines after they happened.

    A change is found where its probability reaches the threshold and is the largest among its neighbours. The next one
    is looked for among lines of the new tip alone.

    Args:
        weights: of the features, and a constant in the end, `[num_change_features + 1]`; a logistic regression.
        threshold: probability from which on a change is found.
        pixels_per_line: width of a line.
        batch_size: number of streams.
    """

    def __init__(self, weights: list[float], threshold: float, pixels_per_line: int, batch_size: int = 1):
        self.weights = np.asarray(weights, np.float32)
        self.threshold = threshold
        self.windows = np.zeros((batch_size, LINES_BEFORE + LINES_AFTER, pixels_per_line), np.float32)
        self.numbers = np.zeros((batch_size, LINES_BEFORE + LINES_AFTER), np.int64)
        self.num_lines = np.zeros(batch_size, np.int64)
        self.recent = np.zeros((batch_size, 2 * NEIGHBOURS + 1), np.float32)

    def reset(self) -> None:
        """Forgets all lines."""
        self.num_lines[:] = 0
        self.recent[:] = 0

    def update(self, lines: np.ndarray, measured: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Takes the next line of each stream.

        Args:
            lines: normalized line by line, `[batch, pixels_per_line]`.
            measured: `[batch]`, false for lines to pass over.
            number: what to call the line where a change is found in it.

        Returns:
            Probabilities `[batch]` that the tip changed `LINES_AFTER - 1` lines before this one, NaN where there are
            too few lines to tell; and the numbers of the first lines of new tips that are found now, -1 elsewhere.
        """
        seen = np.flatnonzero(measured) if not measured.all() else slice(None)
        self.windows[seen, :-1] = self.windows[seen, 1:]
        self.windows[seen, -1] = lines[seen]
        self.numbers[seen, :-1] = self.numbers[seen, 1:]
        self.numbers[seen, -1] = number
        self.num_lines[seen] += 1
        known = self.num_lines >= self.windows.shape[1]
        probabilities = np.where(known, 0.0, np.nan)
        self.recent[seen, :-1] = self.recent[seen, 1:]
        self.recent[seen, -1] = 0
        if known.any():
            scores = change_features(self.windows) @ self.weights[:-1] + self.weights[-1]
            probabilities[known] = np.exp(-np.logaddexp(0, -scores[known]))
            self.recent[seen, -1] = np.where(known, probabilities, 0)[seen]
        middle = self.recent[:, NEIGHBOURS]
        found = measured & (middle >= self.threshold) & (middle > 0) & (middle >= self.recent.max(axis=1))
        places = np.where(found, self.numbers[:, -LINES_OF_NEW_TIP], -1)
        # what the window still holds of the new tip counts for the next change
        self.num_lines[found] = LINES_OF_NEW_TIP
        self.recent[found] = 0
        return probabilities, places


__all__ = ["ChangeDetector", "change_features", "num_change_features"]
