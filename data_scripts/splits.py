"""Which scans to train on and which to keep out of sight."""

import contextlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

TRAINING_METHODS = ("sessions", "random", "all")
SPLIT_METHODS = (*TRAINING_METHODS, "validation")
NUM_SHUFFLES = 20
UNKNOWN = "?"  # begins the group of a scan whose session nobody knows


@dataclass(frozen=True)
class Split:
    """
    A split of a dataset, as it is written beside a run.

    Attributes:
        method: `"sessions"`, `"random"`, `"all"` or `"validation"`.
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

    @classmethod
    def of(
        cls,
        parts: dict[str, np.ndarray],
        scan_ids: np.ndarray,
        groups: np.ndarray,
        counts: dict[str, dict[str, int]],
        **made: Any,
    ) -> "Split":
        """
        A split as it is written down.

        Args:
            parts: indices of the scans of each part.
            scan_ids: of all scans.
            groups: of all scans, as [`groups_of`] names them.
            counts: scans of each class by part.
            made: how: `method`, `seed` and `dataset`.
        """
        return cls(
            parts={name: scan_ids[part].tolist() for name, part in parts.items()},
            sessions={
                name: sorted({group for group in groups[part].tolist() if not group.startswith(UNKNOWN)})
                for name, part in parts.items()
            },
            counts=counts,
            **made,
        )

    def save(self, path: Path) -> None:
        """Writes the split as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Reads what [`Split.save`] wrote; raises `ValueError` for anything else."""
        try:
            split = cls(**json.loads(path.read_text(encoding="utf-8")))
            split._check_parts()
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a split written by a run ({error}).") from error
        return split

    def indices(self, scan_ids: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Places of the scans of each part among `scan_ids`; raises `ValueError` if one is not there."""
        there = set(scan_ids)
        missing = [scan_id for ids in self.parts.values() for scan_id in ids if scan_id not in there]
        if missing:
            raise ValueError(f"{len(missing)} scans of the split are not in this dataset, {missing[0]} for one.")
        return self._indices(scan_ids)

    def _indices(self, scan_ids: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        place = {scan_id: index for index, scan_id in enumerate(scan_ids)}
        return {
            name: np.array([place[scan_id] for scan_id in ids if scan_id in place], dtype=int)
            for name, ids in self.parts.items()
        }

    def extended(
        self,
        scan_ids: np.ndarray,
        groups: np.ndarray,
        labels: np.ndarray,
        validation_fraction: float,
        test_fraction: float,
    ) -> dict[str, np.ndarray]:
        """
        Parts of a dataset that has changed since: what was trained on is trained on, what was held out stays out.

        Scans that are gone are left out. One that has its class in its name, `class/file`, and was moved to another
        keeps its part. New ones of a session that stands on one side join it there; the others are split by the same
        method, or are trained on if they are too few for that.

        Args:
            scan_ids: of all scans of the dataset.
            groups: of all scans, as [`groups_of`] names them.
            labels: class index of each scan, -1 for none.
            validation_fraction: share of the new scans to validate on; of few new sessions, one.
            test_fraction: share of the new scans for a last test, where the split has one.

        Returns:
            Indices of the scans of each part.
        """
        parts = self._indices(scan_ids)
        there = set(scan_ids.tolist())
        gone = {  # of two that share the rest of a name, the one that was trained on
            scan_id.partition("/")[2]: name
            for name, ids in reversed(self.parts.items())
            for scan_id in ids
            if "/" in scan_id and scan_id not in there
        }
        placed = np.concatenate(list(parts.values()))
        unknown = np.setdiff1d(np.flatnonzero(labels >= 0), placed)
        for place in unknown.tolist():
            if name := gone.get(str(scan_ids[place]).partition("/")[2]):
                parts[name] = np.append(parts[name], place)
        placed = np.concatenate(list(parts.values()))
        new = np.setdiff1d(np.flatnonzero(labels >= 0), placed)
        sides = {session: name for name, sessions in self.sessions.items() for session in sessions}
        for name, part in parts.items():
            if self.method == "sessions":
                joining = new[[sides.get(group) == name for group in groups[new]]]
                parts[name] = np.append(part, joining)
                new = np.setdiff1d(new, joining)
        fraction = max(validation_fraction, 1 / max(2, len(np.unique(groups[new]))))
        added = {"train": np.arange(len(new))}
        if self.method != "all" and len(new):
            with contextlib.suppress(ValueError):  # too few sessions, or too few of a class
                of_test = test_fraction if "test" in parts else 0.0
                added = _hold_out_parts(labels[new], groups[new], self.method, fraction, of_test, self.seed)
        for name, part in added.items():
            parts[name] = np.append(parts.get(name, np.empty(0, dtype=int)), new[part])
        return parts

    def _check_parts(self) -> None:
        if not isinstance(self.parts, dict) or "train" not in self.parts:
            raise ValueError("parts must hold a train part")
        for name, ids in self.parts.items():
            if not isinstance(ids, list) or not all(isinstance(scan_id, str) for scan_id in ids):
                raise ValueError(f"{name} must be a list of scan ids")
        ids = [scan_id for part in self.parts.values() for scan_id in part]
        if len(set(ids)) < len(ids):
            raise ValueError("a scan is in it twice")


def groups_of(sessions: Sequence[str | None], scan_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """What a split holds together, `[num_scans]`: the session; a scan whose session nobody knows is one of its own."""
    return np.array([session or f"{UNKNOWN}{scan_id}" for session, scan_id in zip(sessions, scan_ids, strict=True)])


def split_labelled(labels: np.ndarray, groups: np.ndarray, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
    """[`split_indices`] of those scans that have a label (not -1); the others are in no part."""
    labelled = np.flatnonzero(labels >= 0)
    parts = split_indices(labels[labelled], groups[labelled], *args, **kwargs)
    return {name: labelled[part] for name, part in parts.items()}


def _hold_out_sessions(
    labels: np.ndarray, sessions: np.ndarray, num_held_out: int, num_folds: int, seed: int
) -> np.ndarray:
    """Scans of the first folds, in the one of a few shuffles where they are closest to the classes of the whole."""
    best, best_distance = np.zeros(len(labels), dtype=bool), np.inf
    wanted = np.bincount(labels) * num_held_out / num_folds
    for shuffle in range(NUM_SHUFFLES):
        held_out = np.zeros(len(labels), dtype=bool)
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=NUM_SHUFFLES * seed + shuffle)
        for _, fold in islice(splitter.split(labels, labels, sessions), num_held_out):
            held_out[fold] = True
        held_out_counts = np.bincount(labels[held_out], minlength=len(wanted))
        distance = float((np.abs(held_out_counts - wanted) / np.maximum(wanted, 1)).sum())
        if distance < best_distance:
            best, best_distance = held_out, distance
    return best


def split_indices(
    labels: np.ndarray,
    sessions: Sequence[str] | np.ndarray,
    method: str = "sessions",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    num_folds: int = 0,
    fold: int = 0,
    label_names: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """
    Splits labelled scans.

    Args:
        labels: class indices `[num_scans]`.
        sessions: session of each scan.
        method: `"sessions"` keeps every session on one side, with classes as even as sessions allow; `"random"` is
            by scan, stratified: scans of one session, often of one spot, then stand on both sides. `"all"` trains on
            every scan and leaves none to validate on: for weights to ship, whose figures come from elsewhere.
            `"validation"` trains on none and holds out all: to score a model that there is on other scans.
        validation_fraction: share of the scans to validate on.
        test_fraction: share of the scans to keep for one last test.
        seed: of the shuffle.
        num_folds: for cross-validation: the parts that the scans are divided into; 0 for none.
        fold: the one of them that is validated on, from 0; `validation_fraction` counts for nothing then.
        label_names: of the classes, for what is said when one is missing.

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
    if num_folds and not (num_folds >= 2 and 0 <= fold < num_folds and test_fraction == 0):
        raise ValueError(
            f"Cross-validation needs at least 2 folds, a fold from 0 to num_folds - 1 and no test_fraction, got "
            f"num_folds={num_folds}, fold={fold} and test_fraction={test_fraction}."
        )
    if len(labels) == 0:
        raise ValueError("There is no labelled scan to split.")
    session_names = np.asarray(sessions)
    rest = np.arange(len(labels))
    if method == "validation":
        return {"train": rest[:0], "validation": rest}
    if len(np.unique(labels)) < 2:
        raise ValueError(f"All {len(labels)} labelled scans are of one class: there is nothing to tell apart.")
    if method == "all":
        return {"train": rest}
    if num_folds:
        held_out = find_folds(labels, session_names, method, num_folds, seed) == fold
        parts = {"train": rest[~held_out], "validation": rest[held_out]}
    else:
        parts = _hold_out_parts(labels, session_names, method, validation_fraction, test_fraction, seed)
    for name, indices in parts.items():
        missing = sorted(set(labels.tolist()) - set(labels[indices].tolist()))
        if missing:
            told = ", ".join(label_names[label] if label_names else str(label) for label in missing)
            raise ValueError(
                f"No scan of class {told} in the {name} part of the split by {method}: choose "
                "another split_seed or fraction, or add scans of that class from other sessions."
            )
    return parts


def _hold_out_parts(
    labels: np.ndarray,
    sessions: np.ndarray,
    method: str,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, np.ndarray]:
    parts: dict[str, np.ndarray] = {}
    rest = np.arange(len(labels))
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction / (1 - test_fraction))):
        if fraction == 0:
            continue
        held_out = _hold_out(labels[rest], sessions[rest], method, fraction, seed)
        parts[name] = rest[held_out]
        rest = rest[~held_out]
    return {"train": rest, **dict(reversed(parts.items()))}


def find_folds(labels: np.ndarray, sessions: np.ndarray, method: str, num_folds: int, seed: int) -> np.ndarray:
    """
    The fold of each scan, `[num_scans]`: whole sessions in one, or single scans, with classes as even as that allows.

    Raises:
        ValueError: for fewer sessions, or fewer scans of the largest class, than folds.
    """
    folds, best_distance = np.zeros(len(labels), dtype=int), np.inf
    counts = np.bincount(labels)
    if counts.max() < num_folds or (method == "sessions" and len(np.unique(sessions)) < num_folds):
        raise ValueError(
            f"{num_folds} folds need as many sessions, and scans of a class, got {len(np.unique(sessions))} sessions "
            f"and {counts.max()} scans in the largest class."
        )
    splitter = StratifiedKFold if method == "random" else StratifiedGroupKFold
    for shuffle in range(NUM_SHUFFLES if method == "sessions" else 1):
        found = np.zeros(len(labels), dtype=int)
        kfold = splitter(num_folds, shuffle=True, random_state=NUM_SHUFFLES * seed + shuffle)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class|The groups parameter", UserWarning)
            for number, (_, held_out) in enumerate(kfold.split(labels, labels, sessions)):
                found[held_out] = number
        in_folds = np.stack(
            [np.bincount(labels[found == number], minlength=len(counts)) for number in range(num_folds)]
        )
        distance = float((np.abs(in_folds - counts / num_folds) / np.maximum(counts, 1)).max())
        if distance < best_distance:
            folds, best_distance = found, distance
    return folds


def _hold_out(labels: np.ndarray, sessions: np.ndarray, method: str, fraction: float, seed: int) -> np.ndarray:
    if method == "random":
        held_out = np.zeros(len(labels), dtype=bool)
        try:
            splitter = StratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
            held_out[next(splitter.split(labels, labels))[1]] = True
        except ValueError as error:
            raise ValueError(f"The random split is not possible: {error}") from error
        return held_out
    num_held_out, num_folds = _folds(fraction)
    if len(np.unique(sessions)) < num_folds:
        raise ValueError(
            f"A split by sessions with a held-out share of {fraction:.2f} needs at least {num_folds} sessions, got "
            f"{len(np.unique(sessions))}: use split=random, and say so beside the result."
        )
    if np.bincount(labels).max() < num_folds:
        raise ValueError(
            f"A split by sessions with a held-out share of {fraction:.2f} needs at least {num_folds} scans of a "
            f"class, got {np.bincount(labels).max()} in the largest: add scans."
        )
    with warnings.catch_warnings():
        # a class of few scans may still be in every part, and split_indices looks
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return _hold_out_sessions(labels, sessions, num_held_out, num_folds, seed)


def _folds(fraction: float) -> tuple[int, int]:
    """How many of how many folds make up the fraction, to a tenth of it or of the rest: the fewest that do."""
    num_folds = 2
    while True:
        num_held_out = max(1, round(fraction * num_folds))
        if abs(num_held_out / num_folds - fraction) <= 0.1 * min(fraction, 1 - fraction):
            return num_held_out, num_folds
        num_folds += 1
