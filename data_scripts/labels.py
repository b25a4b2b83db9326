"""From people's votes to labels."""

from collections.abc import Mapping, Sequence

import numpy as np

LABEL_POLICIES = ("unanimous", "majority", "soft")
UNLABELLED = -1


def merge_scores(scores: np.ndarray, names: Sequence[str], members: Mapping[str, Sequence[str]]) -> np.ndarray:
    """
    Scores of merged classes: each is the largest among its members, found by name and never by position.

    Args:
        scores: mean scores `[num_scans, len(names)]`, each in [0, 1].
        names: what each column scores.
        members: names of the columns that make up each merged class.

    Returns:
        `[num_scans, len(members)]` in float32, in the order of `members`.

    Raises:
        ValueError: if a member is not among the names.
    """
    columns = {name.strip().casefold(): column for column, name in enumerate(names)}
    missing = [member for parts in members.values() for member in parts if member.casefold() not in columns]
    if missing:
        raise ValueError(f"No scores for {', '.join(missing)}: the columns are {', '.join(names)}.")
    merged = [scores[:, [columns[part.casefold()] for part in parts]].max(axis=1) for parts in members.values()]
    return np.stack(merged, axis=1).astype(np.float32)


def unanimous_labels(scores: np.ndarray) -> np.ndarray:
    """The class that scores 1 where all others score 0, `[num_scans]`, int64; -1 for all other scans."""
    clear = ((scores == 1).sum(axis=1) == 1) & ((scores == 0).sum(axis=1) == scores.shape[1] - 1)
    return np.where(clear, np.nan_to_num(scores).argmax(axis=1), UNLABELLED)


def majority_labels(scores: np.ndarray) -> np.ndarray:
    """The only class that scores at least 0.5, `[num_scans]`, int64; -1 where none or several do."""
    return np.where((scores >= 0.5).sum(axis=1) == 1, np.nan_to_num(scores).argmax(axis=1), UNLABELLED)


def soft_labels(scores: np.ndarray) -> np.ndarray:
    """Scores divided by their sum, float32 `[num_scans, num_labels]`; a row of -1 where nobody voted for any class."""
    scores = np.nan_to_num(scores)
    total = scores.sum(axis=1, keepdims=True)
    return np.where(total > 0, scores / np.maximum(total, 1e-12), UNLABELLED).astype(np.float32)


def make_labels(scores: np.ndarray, policy: str) -> np.ndarray:
    """
    Labels by one of the policies `unanimous`, `majority` or `soft`.

    Args:
        scores: `[num_scans, num_labels]`; a row of NaN for a scan that nobody has labelled.
        policy: one of `LABEL_POLICIES`.

    Returns:
        Class indices `[num_scans]`, or for `soft` distributions `[num_scans, num_labels]`; -1 where there is none.

    Raises:
        ValueError: for another policy.
    """
    makers = {"unanimous": unanimous_labels, "majority": majority_labels, "soft": soft_labels}
    if policy not in makers:
        raise ValueError(f"labels must be one of {', '.join(makers)}, got {policy!r}.")
    return makers[policy](scores)


def is_labelled(labels: np.ndarray) -> np.ndarray:
    """Which scans have a label, `[num_scans]`, for what [`make_labels`] returns."""
    labelled = labels >= 0
    return labelled if labels.ndim == 1 else np.all(labelled, axis=1)


def class_weights(labels: np.ndarray, num_labels: int, label_names: Sequence[str] = ()) -> list[float]:
    """
    Inverse frequency, `num_scans / (num_labels * count)`: the mean weight over the scans is 1.

    Args:
        labels: of the training scans, class indices or distributions, none missing.
        num_labels: number of classes.
        label_names: theirs, for what is said when one has no scan.

    Raises:
        ValueError: if a class has no scan, whose weight would be infinite.
    """
    counts = np.bincount(labels, minlength=num_labels) if labels.ndim == 1 else labels.sum(axis=0)
    if (counts <= 0).any():
        empty = ", ".join(
            label_names[label] if label_names else str(label) for label in np.flatnonzero(counts <= 0).tolist()
        )
        raise ValueError(f"Class {empty} has no scan to train on: balanced class weights need every class.")
    return (counts.sum() / (num_labels * counts)).tolist()
