"""What trained models say of labels: verdicts of several runs together, and the scans on which they disagree."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from matplotlib.figure import Figure

from data_scripts.look import draw_scan, empty_axes
from data_scripts.scan_dataset import LONGEST, StoredLines

from ..analysis.record import json_ready
from ..intervals import balanced_accuracy, with_intervals
from ..probabilities import Probabilities
from .rater_model import RaterModel, score_of_truth
from .votes import UNKNOWN_VOTES, count_scored

NUM_COLUMNS = 8  # of the picture sheet


def combine_runs(runs: Sequence[Probabilities]) -> Probabilities:
    """
    Verdicts of several runs: the mean over those on the same scans (seeds), others side by side (folds).

    Raises:
        ValueError: if runs share some scans only, or differ in classes, labels or numbers of lines.
    """
    by_scans: dict[frozenset[str], list[Probabilities]] = {}
    for run in runs:
        by_scans.setdefault(frozenset(run.scan_ids.tolist()), []).append(run)
    combined = []
    for first, *others in by_scans.values():
        whole, by_lines = [first.whole], [first.by_lines]
        for other in others:
            order = np.argsort(other.scan_ids)[np.argsort(np.argsort(first.scan_ids))]
            for name, values in (
                ("labels", other.labels[order]),
                ("label_names", other.label_names),
                ("line_counts", other.line_counts),
            ):
                if not np.array_equal(getattr(first, name), values):
                    raise ValueError(f"Runs on the same scans differ in {name}: they cannot be averaged.")
            whole.append(other.whole[order])
            by_lines.append(other.by_lines[:, order])
        combined.append(replace(first, whole=np.mean(whole, axis=0), by_lines=np.mean(by_lines, axis=0)))
    return Probabilities.concatenate(combined)


def describe_runs(
    verdicts: Probabilities, num_votes: np.ndarray, model: RaterModel | None, resamples: tuple[int, int]
) -> dict[str, Any]:
    """
    How well verdicts agree with labels, by number of votes.

    Args:
        verdicts: of the models.
        num_votes: on each scan, `UNKNOWN_VOTES` where nobody knows, int `[num_scans]`.
        model: of the votes, if there is one.
        resamples: how many, and their seed.
    """
    said, labels, num_labels = verdicts.whole.argmax(axis=1), verdicts.labels, len(verdicts.label_names)
    groups = {
        "all": np.ones(len(labels), bool),
        "1": num_votes == 1,
        "2+": num_votes >= 2,
        "unknown": num_votes == UNKNOWN_VOTES,
    }
    rows = {}
    for name, chosen in groups.items():
        if not chosen.any() or (name == "unknown" and chosen.all()):
            continue
        figures = with_intervals(
            partial(_accuracies, verdicts.whole[chosen], labels[chosen]),
            verdicts.groups[chosen],
            *resamples,
        )
        scored = count_scored(labels[chosen], num_votes[chosen], np.ones(chosen.sum()), num_labels)
        truth = score_of_truth(model, scored) if model is not None else {}
        confusion = np.zeros((num_labels, num_labels), int)
        np.add.at(confusion, (labels[chosen], said[chosen]), 1)
        rows[name] = {
            "num_scans": int(chosen.sum()),
            **figures,
            "truth": json_ready(truth),
            "confusion": confusion.tolist(),
        }
    return {"num_scans": len(labels), "num_disagreements": int((said != labels).sum()), "by_num_votes": rows}


def _accuracies(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    hits = probabilities.argmax(axis=1) == labels
    return {
        "accuracy": float(weights @ hits / weights.sum()),
        "balanced_accuracy": float(balanced_accuracy(probabilities, labels, weights[None])[0]),
    }


def order_by_doubt(verdicts: Probabilities) -> np.ndarray:
    """Places of the scans, that whose label is the least probable first, `[num_scans]`."""
    return np.argsort(verdicts.whole[np.arange(len(verdicts.labels)), verdicts.labels], kind="stable")


def write_list(path: Path, verdicts: Probabilities, num_votes: np.ndarray) -> None:
    """Writes all scans as `.csv`, that whose label is the least probable first."""
    names = verdicts.label_names
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["scan_id", "session", "label", "num_votes", "verdict", "probability_of_label"]
            + [f"probability_{name}" for name in names]
        )
        for place in order_by_doubt(verdicts):
            probabilities, label = verdicts.whole[place], verdicts.labels[place]
            known = num_votes[place] if num_votes[place] != UNKNOWN_VOTES else ""
            scan = verdicts.scan_ids[place], verdicts.groups[place], names[label], known, names[probabilities.argmax()]
            writer.writerow([*scan, *(f"{value:.4f}" for value in (probabilities[label], *probabilities))])


def draw_disagreements(scans: datasets.Dataset, verdicts: Probabilities, num_votes: np.ndarray, count: int) -> Figure:
    """
    Draws the scans whose label is the least probable, with label, verdict, its probability, and number of votes.

    Raises:
        ValueError: if a scan is not in the dataset.
    """
    place_of = {scan_id: place for place, scan_id in enumerate(scans["scan_id"])}
    chosen = order_by_doubt(verdicts)[:count]
    if missing := [str(scan_id) for scan_id in verdicts.scan_ids[chosen] if scan_id not in place_of]:
        raise ValueError(f"the dataset has no scan {missing[0]!r}, that the runs were scored on: is it another one?")
    num_columns = min(NUM_COLUMNS, len(chosen))
    num_rows = -(-len(chosen) // num_columns)
    figure = Figure(figsize=(2.2 * num_columns, 2.7 * num_rows), layout="constrained")
    stored, names = StoredLines(scans, LONGEST), verdicts.label_names
    for axis, place in zip(empty_axes(figure, num_rows, num_columns).ravel(), chosen, strict=False):
        scan_id, label, probabilities = verdicts.scan_ids[place], verdicts.labels[place], verdicts.whole[place]
        people = f" ({num_votes[place]})" if num_votes[place] != UNKNOWN_VOTES else ""
        said = probabilities.argmax()
        title = (
            f"{str(scan_id)[-32:]}\nlabel {names[label]}{people}: {probabilities[label]:.2f}\n"
            f"verdict {names[said]}: {probabilities[said]:.2f}"
        )
        draw_scan(axis, stored, place_of[scan_id], "line", title)
    return figure
