"""
When to stop waiting for lines: thresholds on the probability of the most probable state, for a stated error.

Verdicts are looked at after the numbers of lines that they were kept for, and nowhere between. A scan is decided at
the first of them at which its most probable state reaches the threshold, and is abstained from if none does. All looks
are counted together: what a threshold is held to is the error among the scans that it decides, early or late.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import beta

from .calibration import Calibration
from .probabilities import Probabilities

ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2)
RISK = 0.1  # probability that the error exceeds alpha all the same, over draws of the scans the threshold is found on
GRID = np.round(np.arange(0.995, 0.25, -0.005), 3)


@dataclass(frozen=True)
class Decisions:
    """
    What a threshold does with scans, `[num_scans]` each.

    Attributes:
        lines: lines seen at the decision; 0 where there is none.
        right: whether the state decided on is the label; False where there is no decision.
    """

    lines: np.ndarray
    right: np.ndarray

    @property
    def decided(self) -> np.ndarray:
        """Whether there is a decision."""
        return self.lines > 0


def decide(verdict: Probabilities, threshold: float) -> Decisions:
    """Decides each scan at the first of its line counts at which the most probable state reaches the threshold."""
    reached = np.nan_to_num(verdict.by_lines.max(axis=-1), nan=-1) >= threshold
    first = reached.argmax(axis=0)
    decided = reached.any(axis=0)
    states = verdict.by_lines[first, np.arange(len(first))].argmax(axis=-1)
    return Decisions(np.where(decided, verdict.line_counts[first], 0), decided & (states == verdict.labels))


def error_bound(num_wrong: int, num_decided: int) -> float:
    """The error that is exceeded with probability `RISK` at most (Clopper and Pearson 1934); 1 without decisions."""
    if num_wrong >= num_decided:
        return 1.0
    return float(beta.ppf(1 - RISK, num_wrong + 1, num_decided - num_wrong))


def fit_thresholds(verdicts: Sequence[Probabilities], alphas: Sequence[float] = ALPHAS) -> dict[float, float]:
    """
    The lowest threshold for each error that these verdicts bear out.

    Thresholds are tested in falling order, at the same risk each, until the first that fails: so one wrong acceptance
    is as rare as if there had been one test (fixed-sequence testing; Angelopoulos et al. 2021). Thresholds under which
    too few scans are decided for any test to pass are not tested, which says nothing about the labels. The bound takes
    scans as independent; those of a session are not, so look at the error on sessions that were held out.

    Args:
        verdicts: calibrated, of scans that the model was not trained on.
        alphas: errors among decided scans.

    Returns:
        A threshold for each of the alphas that can be borne out, rising; others are left out.
    """
    thresholds: dict[float, float] = {}
    outcomes = [[decide(verdict, threshold) for verdict in verdicts] for threshold in GRID]
    counts = [
        (sum(int(of.decided.sum()) for of in row), sum(int((of.decided & ~of.right).sum()) for of in row))
        for row in outcomes
    ]
    for alpha in sorted(alphas):
        for threshold, (num_decided, num_wrong) in zip(GRID, counts, strict=True):
            if error_bound(0, num_decided) > alpha:
                continue
            if error_bound(num_wrong, num_decided) > alpha:
                break
            thresholds[float(alpha)] = float(threshold)
    return thresholds


def _summary(parts: Sequence[Decisions]) -> dict[str, float | None]:
    """Figures of decisions; `None` where nothing was decided."""
    lines, right = (np.concatenate([getattr(part, name) for part in parts]) for name in ("lines", "right"))
    decided = lines > 0
    some = bool(decided.any())
    return {
        "error": float(1 - right[decided].mean()) if some else None,
        "abstention": float(1 - decided.mean()),
        "median_lines": float(np.median(lines[decided])) if some else None,
        "mean_lines": float(lines[decided].mean()) if some else None,
    }


def cross_decided(folds: Sequence[Probabilities], alphas: Sequence[float] = ALPHAS) -> dict[str, list[dict[str, Any]]]:
    """
    What deciding early does for sessions that neither calibration nor thresholds have seen.

    Args:
        folds: not calibrated; calibration and thresholds for each come from the others.
        alphas: errors among decided scans.

    Returns:
        `early`: for each alpha, `error` among decided scans, `abstention`, `median_lines` and `mean_lines` to the
        decision; and `fixed`: the same for deciding all scans after each number of lines.
    """
    early: dict[float, list[Decisions]] = {alpha: [] for alpha in alphas}
    fixed: dict[int, list[Decisions]] = {count: [] for count in folds[0].line_counts.tolist()}
    for fold in folds:
        others = [other for other in folds if other is not fold]
        calibration = Calibration.fit(others)
        thresholds = fit_thresholds([calibration.apply(other) for other in others], alphas)
        calibrated = calibration.apply(fold)
        for alpha, of_folds in early.items():
            of_folds.append(decide(calibrated, thresholds.get(alpha, np.inf)))  # nothing promised, nothing decided
        for index, count in enumerate(fixed):
            alone = replace(calibrated, line_counts=fold.line_counts[[index]], by_lines=calibrated.by_lines[[index]])
            fixed[count].append(decide(alone, 0.0))
    return {
        "early": [{"alpha": alpha, **_summary(of_folds)} for alpha, of_folds in early.items()],
        "fixed": [{"lines": count, **_summary(of_folds)} for count, of_folds in fixed.items()],
    }
