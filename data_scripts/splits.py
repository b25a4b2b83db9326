"""Which scans to train on and which to keep out of sight."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

SPLIT_METHODS = ("sessions", "random")
NUM_SHUFFLES = 20


@dataclass(frozen=True)
class Split:
    """
    A split of a dataset, as it is written beside a run.

    Attributes:
        method: `"sessions"` or `"random"`.
        seed: that made it.
        dataset: name of the dataset.
        parts: scan ids by part: `train`, `validation` and, where one was asked for, `test`.
        sessions: sessions by part.
        counts: scans of each class by part.
    """

    method: str
    seed: int
    dataset: str
    parts: dict[str, list[str]]
    sessions: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the split as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Reads what [`Split.save`] wrote; raises `ValueError` for anything else."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a split written by a run ({error}).") from error


def _session_folds(labels: np.ndarray, sessions: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Fold of each scan. Of a few shuffles, the one whose first fold is closest to the classes of the whole."""
    best, best_distance = np.zeros(0), np.inf
    shares = np.bincount(labels) / len(labels)
    for shuffle in range(NUM_SHUFFLES):
        folds = np.empty(len(labels), dtype=np.int64)
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=NUM_SHUFFLES * seed + shuffle)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, sessions)):
            folds[held_out] = fold
        held_out_counts = np.bincount(labels[folds == 0], minlength=len(shares))
        wanted = shares * len(labels) / num_folds
        distance = float((np.abs(held_out_counts - wanted) / np.maximum(wanted, 1)).sum())
        if distance < best_distance:
            best, best_distance = folds, distance
    return best


def split_indices(
    labels: np.ndarray,
    sessions: Sequence[str],
    method: str = "sessions",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """
    Splits labelled scans.

    Args:
        labels: class indices `[num_scans]`.
        sessions: session of each scan.
        method: `"sessions"` keeps every session on one side, with classes as even as sessions allow; `"random"` is
            by scan, stratified: scans of one session, often of one spot, then stand on both sides.
        validation_fraction: share of the scans to validate on.
        test_fraction: share of the scans to keep for one last test.
        seed: of the shuffle.

    Returns:
        Indices of `train`, `validation` and, with a `test_fraction`, `test`.

    Raises:
        ValueError: for an unknown method, impossible fractions, too few sessions, or a class that one part lacks.
    """
    if method not in SPLIT_METHODS:
        raise ValueError(f"split must be one of {', '.join(SPLIT_METHODS)}, got {method!r}.")
    if not (0 < validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise ValueError(
            "validation_fraction must lie in (0, 1) and leave scans to train on, got "
            f"{validation_fraction} with test_fraction={test_fraction}."
        )
    if len(labels) == 0:
        raise ValueError("There is no labelled scan to split.")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"All {len(labels)} labelled scans are of one class: there is nothing to tell apart.")

    sessions = np.asarray(sessions)
    rest = np.arange(len(labels))
    parts: dict[str, np.ndarray] = {}
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction / (1 - test_fraction))):
        if fraction == 0:
            continue
        held_out = _hold_out(labels[rest], sessions[rest], method, fraction, seed)
        parts[name] = rest[held_out]
        rest = rest[~held_out]
    parts = {"train": rest, **dict(reversed(parts.items()))}
    for name, indices in parts.items():
        missing = sorted(set(labels.tolist()) - set(labels[indices].tolist()))
        if missing:
            raise ValueError(
                f"No scan of class {', '.join(map(str, missing))} in the {name} part of the split by {method}: choose "
                "another split_seed or fraction, or add scans of that class from other sessions."
            )
    return parts


def _hold_out(labels: np.ndarray, sessions: np.ndarray, method: str, fraction: float, seed: int) -> np.ndarray:
    if method == "random":
        held_out = np.zeros(len(labels), dtype=bool)
        try:
            splitter = StratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
            held_out[next(splitter.split(labels, labels))[1]] = True
        except ValueError as error:
            raise ValueError(f"The random split is not possible: {error}") from error
        return held_out
    num_folds = max(2, round(1 / fraction))
    if len(np.unique(sessions)) < num_folds:
        raise ValueError(
            f"A split by sessions with a held-out share of {fraction:.2f} needs at least {num_folds} sessions, got "
            f"{len(np.unique(sessions))}: use split=random, and say so beside the result."
        )
    return _session_folds(labels, sessions, num_folds, seed) == 0
