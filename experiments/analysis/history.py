"""How a run went, epoch by epoch: of this project's runs, and of the earlier project's checkpoint folders."""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..run_folder import METRICS_FILE, read_metrics

PARTS = ("train", "validation")
TRAINER_STATE_FILE = "trainer_state.json"
LOWER_IS_BETTER = {"loss", "expected_calibration_error"}
# the earlier project's folders, its files, and what its figures are multiplied by: it wrote accuracy in percent
EARLIER_PARTS = {"train": "train", "validation": "valid"}
EARLIER_FILES = {"accuracy": ("Accuracy.log", 0.01), "loss": ("Loss.log", 1.0)}


class Point(NamedTuple):
    """A figure at an epoch."""

    value: float
    epoch: float


@dataclass(frozen=True)
class History:
    """
    The figures of every epoch.

    Attributes:
        epochs: rising, `[num_epochs]`.
        train: by name, each `[num_epochs]`, NaN where an epoch lacks it; accuracies lie in [0, 1].
        validation: as `train`.
    """

    epochs: np.ndarray
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]

    @classmethod
    def of(cls, figures: Mapping[float, Mapping[str, Any]]) -> "History":
        """From `{epoch: {"train": {name: value}, "validation": {name: value}}}`; what is no number is left out."""
        epochs = sorted(figures)
        by_part: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        for place, epoch in enumerate(epochs):
            for part, columns in by_part.items():
                values = figures[epoch].get(part)
                for name, value in values.items() if isinstance(values, Mapping) else ():
                    if isinstance(value, (int, float)):
                        column = columns.get(name)
                        if column is None:
                            column = columns[name] = np.full(len(epochs), np.nan)
                        column[place] = value
        return cls(np.array(epochs, dtype=np.float64), **by_part)

    def __len__(self) -> int:
        return len(self.epochs)

    def part(self, part: str) -> dict[str, np.ndarray]:
        """The figures of `"train"` or `"validation"`."""
        return self.train if part == "train" else self.validation

    def known(self, part: str, name: str) -> list[Point]:
        """A figure at the epochs that have it, in their order."""
        column = self.part(part).get(name)
        if column is None:
            return []
        there = np.isfinite(column)
        return [Point(*pair) for pair in zip(column[there].tolist(), self.epochs[there].tolist(), strict=True)]

    def best(self, part: str, name: str) -> Point | None:
        """The best value of a figure, and the first epoch that has it; `None` if no epoch does."""
        sign = 1 if name in LOWER_IS_BETTER else -1
        return min(self.known(part, name), key=lambda point: sign * point.value, default=None)

    def latest(self, part: str, name: str) -> Point | None:
        """The last value of a figure; `None` if no epoch has one."""
        points = self.known(part, name)
        return points[-1] if points else None


def is_earlier(folder: Path) -> bool:
    """Whether a folder is a checkpoint folder of the earlier project: `train|valid/epoch-N`."""
    return any(_earlier_epochs(folder / part) for part in EARLIER_PARTS.values())


def read_history(folder: Path) -> History:
    """
    The history of a run of either kind; empty if it has none yet.

    Raises:
        ValueError: for metrics without a single whole record.
        OSError: if a file cannot be read.
    """
    return _read_earlier(folder) if is_earlier(folder) else _read_ours(folder)


def _read_ours(folder: Path) -> History:
    path = folder / METRICS_FILE
    if not path.is_file():
        return _read_trainer_state(folder)
    figures = {
        float(record["epoch"]): record
        for record in read_metrics(folder)
        if isinstance(record, dict) and isinstance(record.get("epoch"), (int, float)) and np.isfinite(record["epoch"])
    }
    if not figures and path.stat().st_size:
        raise ValueError(f"{METRICS_FILE} holds no whole record.")
    return History.of(figures)


def _read_trainer_state(folder: Path) -> History:
    """Train loss of a run that was not validated on its way, as the Trainer keeps it."""
    path = folder / TRAINER_STATE_FILE
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    records = state.get("log_history") if isinstance(state, dict) else None
    return History.of(
        {
            float(record["epoch"]): {"train": {"loss": record["loss"]}}
            for record in (records if isinstance(records, list) else ())
            if isinstance(record, dict) and {"epoch", "loss"} <= record.keys()
        }
    )


def _read_earlier(folder: Path) -> History:
    figures: dict[float, dict[str, dict[str, float]]] = {}
    for part, name in EARLIER_PARTS.items():
        for epoch, of_epoch in _earlier_epochs(folder / name).items():
            of_part = figures.setdefault(epoch, {}).setdefault(part, {})
            for figure, (file, scale) in EARLIER_FILES.items():
                with contextlib.suppress(FileNotFoundError):
                    of_part[figure] = scale * weighted_mean(of_epoch / file)
    return History.of(figures)


def _earlier_epochs(folder: Path) -> dict[int, Path]:
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r"epoch-(\d+)", path.name)
        if match is not None:
            found[int(match[1])] = path
    return found


def weighted_mean(path: Path) -> float:
    """Average of the lines `value,batch_size` of a file, weighted by batch; NaN where no line is whole."""
    lines = path.read_bytes().splitlines()
    try:  # all at once: there may be millions of lines, and hardly ever a broken one
        pairs = np.array([float(text) for text in b",".join(lines).split(b",")]).reshape(len(lines), 2)
        if len(pairs) and (pairs[:, 1] > 0).all() and np.isfinite(pairs[:, 1]).all():
            return float(pairs[:, 0] @ pairs[:, 1] / pairs[:, 1].sum())
    except ValueError:
        pass
    total = weight = 0.0
    for line in lines:
        value, _, size = line.partition(b",")
        try:
            batch = float(size)
            if 0 < batch < np.inf:
                total += float(value) * batch
                weight += batch
        except ValueError:
            continue  # what a crash left half-written
    return total / weight if weight else float("nan")
