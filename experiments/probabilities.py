"""What a model said of each scan after each number of lines: kept with a run, for whatever is asked later."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROBABILITIES_FILE = "{part}_probabilities.npz"


@dataclass
class Probabilities:
    """
    A model's verdicts on scans.

    Attributes:
        scan_ids: `[num_scans]`.
        groups: session of each scan, or a name of its own where nobody knows it, `[num_scans]`.
        labels: class indices `[num_scans]`.
        label_names: `[num_labels]`.
        line_counts: numbers of lines, rising, `[num_counts]`.
        by_lines: probabilities after the first so many lines `[num_counts, num_scans, num_labels]`; NaN where none of
            them was measured, or the model gives no verdict yet.
        whole: probabilities of the whole scan `[num_scans, num_labels]`.
    """

    scan_ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    label_names: np.ndarray
    line_counts: np.ndarray
    by_lines: np.ndarray
    whole: np.ndarray

    def save(self, folder: Path, part: str = "validation") -> None:
        """Writes them into the folder of a run."""
        np.savez_compressed(folder / PROBABILITIES_FILE.format(part=part), **vars(self))

    @classmethod
    def load(cls, folder: Path, part: str = "validation") -> "Probabilities":
        """Reads those of a run; raises `ValueError` if there are none."""
        path = folder / PROBABILITIES_FILE.format(part=part)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**arrays)
        except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not the probabilities that a run writes ({error}).") from error

    def after(self, lines: str) -> np.ndarray:
        """The probabilities after so many lines, one of `line_counts`, or of the `"whole"` scan."""
        return self.whole if lines == "whole" else self.by_lines[self.line_counts.tolist().index(int(lines))]

    def by_session(self) -> dict[str, dict[str, Any]]:
        """Of each session: `accuracy` on whole scans, and `counts` of its scans by label."""
        right = self.whole.argmax(axis=1) == self.labels
        return {
            session: {
                "accuracy": float(right[self.groups == session].mean()),
                "counts": np.bincount(self.labels[self.groups == session], minlength=len(self.label_names)).tolist(),
            }
            for session in np.unique(self.groups).tolist()
        }

    def surest_mistakes(self, limit: int = 10) -> list[dict[str, Any]]:
        """Whole scans whose verdict is not the label, the surest first, with what a card says of each."""
        verdicts = self.whole.argmax(axis=1)
        probabilities = self.whole.max(axis=1)
        wrong = np.flatnonzero(verdicts != self.labels)
        return [
            {
                "scan_id": str(self.scan_ids[place]),
                "session": str(self.groups[place]),
                "label": str(self.label_names[self.labels[place]]),
                "verdict": str(self.label_names[verdicts[place]]),
                "probability": float(probabilities[place]),
            }
            for place in wrong[np.argsort(-probabilities[wrong], kind="stable")][:limit]
        ]

    @classmethod
    def concatenate(cls, parts: Sequence["Probabilities"]) -> "Probabilities":
        """Those of several parts without a common scan, such as the folds of a split."""
        first = parts[0]
        for other in parts[1:]:
            for name in ("label_names", "line_counts"):
                if not np.array_equal(getattr(first, name), getattr(other, name)):
                    raise ValueError(f"Only probabilities of the same {name} can be put together.")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _BY_SCAN}
        if len(np.unique(joined["scan_ids"])) < len(joined["scan_ids"]):
            raise ValueError("Only probabilities of different scans can be put together.")
        by_lines = np.concatenate([part.by_lines for part in parts], axis=1)
        return cls(**joined, label_names=first.label_names, line_counts=first.line_counts, by_lines=by_lines)


_BY_SCAN = ("scan_ids", "groups", "labels", "whole")
