"""Where the tip changed: a line and the few after it, compared with the lines before it."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

LINES_BEFORE = 12  # that a new tip is compared with
LINES_AFTER = 4  # the first of the new tip among them
NEIGHBOURS = 2  # lines on either side over which a change must be the most probable one
NUM_LAGS = 3


@lru_cache
def band_weights(pixels_per_line: int) -> torch.Tensor:
    """Share of each frequency in each band of a spectrum `[frequencies, bands]`; finer bands for long waves."""
    edges = np.unique(np.geomspace(1, pixels_per_line // 2 + 1, 19).round().astype(int))
    weights = torch.zeros(pixels_per_line // 2 + 1, len(edges) - 1)
    for band, (low, high) in enumerate(pairwise(edges)):
        weights[low:high, band] = 1 / (high - low)
    return weights


def num_change_features(pixels_per_line: int) -> int:
    """How many features [`change_features`] gives."""
    return 2 * band_weights(pixels_per_line).shape[1] + 20


def change_features(windows: torch.Tensor) -> torch.Tensor:
    """
    What tells a tip change from the scan going on.

    Correlations between neighbouring lines, across the change and on either side of it; and how the spectrum differs,
    which knows nothing of where along the line features lie.

    Args:
        windows: normalized lines `[batch, LINES_BEFORE + LINES_AFTER, pixels_per_line]`.

    Returns:
        `[batch, num_change_features(pixels_per_line)]`.
    """
    first = LINES_BEFORE
    features = []
    for lag in range(1, NUM_LAGS + 1):
        # place `i` compares the lines `i` and `i + lag`
        alike = (windows[:, lag:] * windows[:, :-lag]).mean(dim=-1)
        before, across, after = alike[:, : first - lag], alike[:, first - lag : first], alike[:, first:]
        features += [of.mean(dim=1) for of in (before, across, after)]
        if lag == 1:
            features += [
                before[:, -1],
                before.median(dim=1).values,
                before.amin(dim=1),
                after[:, 0],
                after.amin(dim=1),
            ]
    taper = torch.hann_window(windows.shape[-1], device=windows.device, dtype=windows.dtype)
    power = torch.fft.rfft(windows * taper).abs().square()
    spectra = (power @ band_weights(windows.shape[-1]) + 1e-3).log()
    before, after = spectra[:, :first], spectra[:, first:]
    steps = (spectra[:, first - 1 : first + 2] - spectra[:, first - 2 : first + 1]).square().mean(dim=-1)
    features += [of.var(dim=1, correction=0).mean(dim=-1) for of in (before, after)]
    difference = [(after.mean(dim=1) - of.mean(dim=1)).abs() for of in (before, before[:, -LINES_AFTER:])]
    step = (windows[:, first] - windows[:, first - 1]).abs().mean(dim=-1)
    return torch.cat([torch.stack([*features, step], dim=-1), steps, *difference], dim=-1)


class ChangeDetector:
    """
    Finds tip changes in streams of lines, a few lines after they happened.

    A change is found where its probability reaches the threshold and is the largest among its neighbours. After that
    the stream starts anew: the next change is looked for among lines of the new tip.

    Args:
        weights: of the features, and a constant in the end, `[num_change_features + 1]`; a logistic regression.
        threshold: probability from which on a change is found.
        pixels_per_line: width of a line.
        batch_size: number of streams.
    """

    def __init__(self, weights: list[float], threshold: float, pixels_per_line: int, batch_size: int = 1):
        self.weights = torch.tensor(weights)
        self.threshold = threshold
        self.windows = torch.zeros(batch_size, LINES_BEFORE + LINES_AFTER, pixels_per_line)
        self.numbers = torch.zeros(batch_size, LINES_BEFORE + LINES_AFTER, dtype=torch.long)
        self.num_lines = torch.zeros(batch_size, dtype=torch.long)
        self.recent = torch.zeros(batch_size, 2 * NEIGHBOURS + 1)

    def reset(self, streams: slice | torch.Tensor = slice(None)) -> None:
        """Forgets all lines of some streams, by default of all."""
        self.num_lines[streams] = 0
        self.recent[streams] = 0

    def update(self, lines: torch.Tensor, measured: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Takes the next line of each stream.

        Args:
            lines: normalized line by line, `[batch, pixels_per_line]`.
            measured: `[batch]`; unmeasured lines are passed over.
            number: what to call the line where a change is found in it.

        Returns:
            Probabilities `[batch]` that the tip changed `LINES_AFTER - 1` lines before this one, NaN where there are
            too few lines to tell; and the numbers of the first lines of new tips that are found now, -1 elsewhere.
        """
        seen = measured.bool()
        rows = seen[:, None]
        self.windows = torch.where(
            rows[..., None], torch.cat((self.windows[:, 1:], lines[:, None]), dim=1), self.windows
        )
        numbers = torch.nn.functional.pad(self.numbers[:, 1:], (0, 1), value=number)
        self.numbers = torch.where(rows, numbers, self.numbers)
        self.num_lines += seen
        known = self.num_lines >= self.windows.shape[1]
        scores = change_features(self.windows) @ self.weights[:-1] + self.weights[-1]
        probabilities = torch.where(known, scores.sigmoid(), torch.nan)
        recent = torch.cat((self.recent[:, 1:], probabilities.nan_to_num(0.0)[:, None]), dim=1)
        self.recent = torch.where(rows, recent, self.recent)
        middle = self.recent[:, NEIGHBOURS]
        found = seen & (middle >= self.threshold) & (middle > 0) & (middle >= self.recent.amax(dim=1))
        places = torch.where(found, self.numbers[:, LINES_BEFORE - NEIGHBOURS], -1)
        self.reset(found)
        return probabilities, places


__all__ = ["ChangeDetector", "change_features", "num_change_features"]
