"""Figures of merit with intervals that respect sessions: scans of one session are not independent."""

from collections.abc import Callable

import numpy as np

LEVEL = 0.95


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
        probabilities: `[num_scans, num_labels]`.
        labels: class indices `[num_scans]`.
        weights: `[num_resamples, num_scans]`. A class without weight is left out of the mean.

    Returns:
        `[num_resamples]`.
    """
    hit = probabilities.argmax(axis=1) == labels
    of_class = labels[:, None] == np.arange(probabilities.shape[1])
    support, hits = weights @ of_class, weights @ (of_class & hit[:, None])
    return _mean_over_classes(hits, support)


def auroc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Macro one-vs-rest area under the ROC curve, for each row of weights; ties count half.

    Args and result as for [`balanced_accuracy`].
    """
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
    return ratios.sum(axis=1) / np.maximum(present.sum(axis=1), 1)


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc,
}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values `[num_resamples]`."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
