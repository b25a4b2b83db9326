"""Figures of merit with intervals that respect sessions: scans of one session are not independent."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from .probabilities import Probabilities

Name = TypeVar("Name")
LEVEL = 0.95
NUM_RESAMPLES = 1000


def session_weights(groups: np.ndarray, num_resamples: int, seed: int = 0) -> np.ndarray:
    """
    How often each scan counts in each resample of whole sessions, `[num_resamples, num_scans]`.

    The cluster bootstrap (Field and Welsh 2007): as many sessions as there are, drawn with replacement.
    """
    names, places = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)
    return draws[:, places].astype(np.float64)


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Mean recall of the classes, for each row of weights.

    Args:
        probabilities: `[num_scans, num_labels]`; NaN where there is no verdict, which is never right.
        labels: class indices `[num_scans]`.
        weights: `[num_resamples, num_scans]`. A class without weight is left out of the mean.

    Returns:
        `[num_resamples]`, NaN where no class is left.
    """
    hit = (probabilities.argmax(axis=1) == labels) & np.isfinite(probabilities).all(axis=1)
    of_class = labels[:, None] == np.arange(probabilities.shape[1])
    support, hits = weights @ of_class, weights @ (of_class & hit[:, None])
    return _mean_over_classes(hits, support)


def auroc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Macro one-vs-rest area under the ROC curve, for each row of weights; ties count half.

    Args and result as for [`balanced_accuracy`]; where there is no verdict, all classes are as likely.
    """
    probabilities = np.nan_to_num(probabilities, nan=1 / probabilities.shape[-1])
    areas, pairs = np.zeros((2, len(weights), probabilities.shape[1]))
    for label in range(probabilities.shape[1]):
        order = np.argsort(probabilities[:, label], kind="stable")
        scores, positive, weight = probabilities[order, label], labels[order] == label, weights[:, order]
        # negatives below each score, and those at the same score: sums over runs of equal scores
        starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        negatives = np.add.reduceat(weight * ~positive, starts, axis=1)
        positives = np.add.reduceat(weight * positive, starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        areas[:, label] = (positives * below).sum(axis=1)
        pairs[:, label] = negatives.sum(axis=1) * positives.sum(axis=1)
    return _mean_over_classes(areas, pairs)


def _mean_over_classes(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Mean of the ratios `[num_resamples, num_labels]` over the classes whose denominator is not 0."""
    present = denominators > 0
    ratios = np.divide(numerators, denominators, out=np.zeros_like(numerators), where=present)
    number = present.sum(axis=1)
    return np.where(number > 0, ratios.sum(axis=1) / np.maximum(number, 1), np.nan)


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc,
}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values `[num_resamples]`, without those that are NaN."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def with_intervals(
    figures: Callable[[np.ndarray], dict[Name, float]], groups: np.ndarray, num_resamples: int, seed: int
) -> dict[Name, dict[str, float | list[float] | None]]:
    """
    Figures with 95 % intervals from resamples of whole groups.

    Args:
        figures: by name, of weights `[num_items]`; may be NaN where a resample lacks what they are about.
        groups: of each item `[num_items]`.
        num_resamples: 0 gives no intervals.
        seed: of the resamples.

    Returns:
        For each figure `value` and `interval`, both `None` where they cannot be told.
    """
    values = figures(np.ones(len(groups)))
    drawn = [figures(weights) for weights in session_weights(groups, num_resamples, seed)] if len(groups) else []
    result: dict[Name, dict[str, float | list[float] | None]] = {}
    for name, value in values.items():
        known = np.array([other[name] for other in drawn if np.isfinite(other[name])])
        low_high = list(interval(known)) if len(known) else None
        result[name] = {"value": float(value) if np.isfinite(value) else None, "interval": low_high}
    return result


Resampled = dict[str, dict[str, np.ndarray]]


def figures_by_lines(
    verdicts: Sequence[Probabilities], resampled_after: Collection[str] | None = None
) -> tuple[dict[str, Any], Resampled]:
    """
    Figures of the verdicts of several seeds after each number of lines, with intervals over sessions.

    Args:
        verdicts: of each seed, all with the same line counts.
        resampled_after: line counts, and `"whole"`, that are resampled, which takes its time; all without it.

    Returns:
        By line count and `"whole"`, and by figure: `mean`, `by_seed` and, where resampled, `interval`; and the
        resampled means `[NUM_RESAMPLES]`, for differences: all calls that see the same sessions draw the same ones.
    """
    groups = np.unique(np.concatenate([verdict.groups for verdict in verdicts]))
    drawn = session_weights(groups, NUM_RESAMPLES)
    figures: dict[str, Any] = {}
    resampled: Resampled = {}
    for index, key in enumerate([*map(str, verdicts[0].line_counts), "whole"]):
        values: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
        drawn_now = drawn if resampled_after is None or key in resampled_after else drawn[:0]
        for verdict in verdicts:
            probabilities = verdict.whole if key == "whole" else verdict.by_lines[index]
            weights = np.vstack([np.ones(len(verdict.groups)), drawn_now[:, np.searchsorted(groups, verdict.groups)]])
            for name, figure in FIGURES.items():
                values[name].append(figure(probabilities, verdict.labels, weights))
        means = {name: np.mean(of_seeds, axis=0) for name, of_seeds in values.items()}
        figures[key] = {
            name: {"mean": float(mean[0]), "by_seed": [float(of_seed[0]) for of_seed in values[name]]}
            for name, mean in means.items()
        }
        if len(drawn_now):
            resampled[key] = {name: mean[1:] for name, mean in means.items()}
            for name, of_name in resampled[key].items():
                figures[key][name]["interval"] = interval(of_name)
    return figures, resampled


def leads(
    first: tuple[dict[str, Any], Resampled], other: tuple[dict[str, Any], Resampled]
) -> Iterator[tuple[str, str, float, tuple[float, float]]]:
    """
    How far the one is ahead of the other on the same scans, paired over the resampled sessions.

    Args:
        first: figures and resampled means, as [`figures_by_lines`] gives them.
        other: the same.

    Yields:
        Number of lines or `"whole"`, name of the figure, the lead (negative if it is behind), its interval; for all
        numbers of lines after which both were resampled.
    """
    for lines in (lines for lines in first[1] if lines in other[1]):
        for name in FIGURES:
            lead = first[0][lines][name]["mean"] - other[0][lines][name]["mean"]
            yield lines, name, lead, interval(first[1][lines][name] - other[1][lines][name])
