"""Asks how far labels can be trusted: `python -m experiments.label_noise --help`."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from data_scripts.builders.hsi100 import SPM_TOOLBOX_BOXES, SPM_TOOLBOX_CLASSES, find_spreadsheet, read_box_votes
from data_scripts.command_line import parse_options, run_command
from data_scripts.labels import majority_labels, unanimous_labels
from data_scripts.look import draw_scan, empty_axes
from data_scripts.near_duplicates import find_near_duplicates
from data_scripts.scan import session_of
from data_scripts.scan_dataset import LONGEST, StoredLines, lines_of
from data_scripts.source import ScanSource
from data_scripts.splits import groups_of

from .intervals import balanced_accuracy
from .label_noise_tables import print_report, to_markdown
from .probabilities import Probabilities
from .rater_model import (
    AMBIGUOUS,
    CLEAR,
    VOTE_KINDS,
    RaterModel,
    box_agreement,
    conditional,
    count_class_votes,
    fit_rater_model,
    model_from_pairs,
    pair_votes,
    score_of_truth,
    third_given_two,
    with_intervals,
)

REPORT_FILE, MARKDOWN_FILE = "label_noise.json", "label_noise.md"
LIST_FILE, PICTURE_FILE = "disagreements.csv", "disagreements.png"
NUM_COLUMNS = 8  # of the picture sheet
WITH_NUM_VOTES = "hsi100"
UNKNOWN_VOTES = 0

DESCRIPTION = f"""Asks how far the labels of a dataset can be trusted.

How often do people agree, what would a perfect model score against their votes, and on which scans do trained models
disagree with the label?

  the votes                      python -m experiments.label_noise --dataset hsi100 --data_dir path/to/SPM-Toolbox
  and near-identical pictures    ... --near_duplicates
  and trained models             ... --runs runs/seed_1/fold_0 runs/seed_2/fold_0 runs/seed_1/fold_1

Runs leave validation_probabilities.npz. Those on the same scans (seeds) are averaged, those on other scans (folds) are
put together. Numbers of votes are known for {WITH_NUM_VOTES} only; for other datasets there are --near_duplicates
and --runs.

Written to --output: {REPORT_FILE} (all numbers), {MARKDOWN_FILE} (the same to read), and with --runs
{LIST_FILE} (all scans, the least probable label first) and {PICTURE_FILE} (the first of them).
"""


@dataclass
class LabelNoiseArguments:
    """What to ask."""

    runs: list[str] | None = field(
        default=None, metadata={"help": "Folders of runs: list the scans on which they disagree with the label."}
    )
    part: str = field(default="validation", metadata={"help": "runs: which part's probabilities."})
    count: int = field(default=48, metadata={"help": "runs: how many scans to draw."})
    near_duplicates: bool = field(
        default=False, metadata={"help": "Also compare the labels of near-identical pictures (takes minutes)."}
    )
    num_resamples: int = field(
        default=500, metadata={"help": "Resamples of whole sessions that intervals (95 %%) are made of."}
    )
    seed: int = field(default=0, metadata={"help": "Of the resamples."})
    output: str = field(default="runs/label_noise", metadata={"help": "Folder to write to."})


@dataclass(frozen=True)
class PictureVotes:
    """
    Votes on pictures, one row of the spreadsheet each.

    Attributes:
        scan_ids: `[num_pictures]`.
        groups: session of each, or a name of its own, `[num_pictures]`.
        num_votes: int `[num_pictures]`, at least 1.
        ticks: how many votes tick each of `SPM_TOOLBOX_BOXES`, int `[num_pictures, num_boxes]`.
        by_class: votes for each class, int `[num_pictures, num_labels]`; see [`count_class_votes`].
        kinds: of `VOTE_KINDS` `[num_pictures]`.
        num_rows: rows of the spreadsheet.
        num_not_whole: rows left out, as their scores are no whole numbers of votes.
        num_repeated: rows whose name another row has had.
    """

    scan_ids: np.ndarray
    groups: np.ndarray
    num_votes: np.ndarray
    ticks: np.ndarray
    by_class: np.ndarray
    kinds: np.ndarray
    num_rows: int
    num_not_whole: int
    num_repeated: int


def load_votes(root: Path) -> PictureVotes:
    """
    Reads the votes of a clone of SPM-Toolbox.

    Raises:
        ScanReadError: if they cannot be read.
        ValueError: if none of the rows holds whole votes.
    """
    sheet = read_box_votes(find_spreadsheet(root))
    exact = sheet.scores * sheet.num_votes[:, None]
    ticks = np.rint(exact)
    # a spreadsheet rounds thirds; NaN is no whole number
    whole = (np.abs(exact - ticks) < 1e-3).all(axis=1) & (ticks >= 0).all(axis=1) & (sheet.num_votes >= 1)
    whole &= (ticks <= sheet.num_votes[:, None]).all(axis=1) & (sheet.num_votes % 1 == 0)
    if not whole.any():
        raise ValueError(
            f"{root}: no row of the spreadsheet holds a number of votes and scores that are shares of it."
        )
    scan_ids = np.array([Path(name).stem for name in sheet.names[whole]])
    num_votes, ticks = sheet.num_votes[whole].astype(int), ticks[whole].astype(int)
    members = [[SPM_TOOLBOX_BOXES.index(box) for box in boxes] for boxes in SPM_TOOLBOX_CLASSES.values()]
    by_class, kinds = count_class_votes(ticks, num_votes, members)
    return PictureVotes(
        scan_ids=scan_ids,
        groups=groups_of([session_of(scan_id) for scan_id in scan_ids], scan_ids),
        num_votes=num_votes,
        ticks=ticks,
        by_class=by_class,
        kinds=kinds,
        num_rows=len(whole),
        num_not_whole=int((~whole).sum()),
        num_repeated=len(sheet.names) - len(np.unique(sheet.names.astype(str))),
    )


def scored_labels(scans: datasets.Dataset, max_lines: int) -> dict[str, int]:
    """Unanimous labels of complete scans, by `scan_id`: those that models are scored on."""
    labels = unanimous_labels(np.asarray(scans["scores"], dtype=np.float32))
    stored = StoredLines(scans, max_lines)
    labels[stored.count_measured() < stored.pixels_per_line] = -1
    return {scan_id: int(label) for scan_id, label in zip(scans["scan_id"], labels, strict=True) if label >= 0}


def describe_votes(votes: PictureVotes, scan_ids: Sequence[str], scored: np.ndarray) -> dict[str, Any]:
    """
    What is in the spreadsheet, and how often people agree on boxes.

    Args:
        votes: of the spreadsheet.
        scan_ids: of the pictures.
        scored: label of each picture of `votes` that models are scored on, -1 for others, `[num_pictures]`.
    """
    by_number = []
    for number in np.unique(votes.num_votes):
        chosen = votes.num_votes == number
        kinds = {kind: int((votes.kinds[chosen] == kind).sum()) for kind in VOTE_KINDS}
        by_number.append(
            {
                "num_votes": int(number),
                "pictures": int(chosen.sum()),
                **kinds,
                "scored": int((scored[chosen] >= 0).sum()),
            }
        )
    of_one_class = (votes.by_class == votes.num_votes[:, None]).any(axis=1) & (votes.kinds == CLEAR)
    same_box = (votes.ticks == votes.num_votes[:, None]).any(axis=1)
    return {
        "num_rows": votes.num_rows,
        "num_not_whole": votes.num_not_whole,
        "num_repeated_names": votes.num_repeated,
        "num_sessions": len(np.unique(votes.groups)),
        "num_without_picture": int((~np.isin(votes.scan_ids, scan_ids)).sum()),
        "num_pictures_without_row": int((~np.isin(scan_ids, votes.scan_ids)).sum()),
        "num_agreed_on_class_but_not_on_box": int((of_one_class & ~same_box).sum()),
        "by_num_votes": by_number,
    }


def describe_agreement(votes: PictureVotes, arguments: LabelNoiseArguments) -> dict[str, Any]:
    """Agreement of two votes on each box, with intervals."""

    def figures(weights: np.ndarray) -> dict[tuple[str, ...], float]:
        agreement = box_agreement(votes.ticks, votes.num_votes, weights)
        return {
            (box, name): float(value)
            for name, values in agreement.items()
            for box, value in zip(SPM_TOOLBOX_BOXES, values, strict=True)
        }

    found = with_intervals(figures, votes.groups, arguments.num_resamples, arguments.seed)
    return {"num_pictures": int((votes.num_votes >= 2).sum()), "boxes": _nested(found)}


def _nested(figures: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """`{("a", "b"): value}` as `{"a": {"b": value}}`."""
    result: dict[str, Any] = {}
    for (*path, last), value in figures.items():
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def count_scored(labels: np.ndarray, num_votes: np.ndarray, weights: np.ndarray, num_labels: int) -> np.ndarray:
    """Scans by label and number of votes, of 1, 2, ..., `[num_labels, max_votes]`; those with neither left out."""
    known = (labels >= 0) & (num_votes > 0)
    counts = np.zeros((num_labels, max(1, int(num_votes.max(initial=1)))))
    np.add.at(counts, (labels[known], num_votes[known] - 1), weights[known])
    return counts


def fit_models(votes: PictureVotes, chosen: np.ndarray, weights: np.ndarray) -> dict[str, RaterModel]:
    """A rater model by each of `ESTIMATORS` from the pictures `chosen`, bool `[num_pictures]`, weighted."""
    by_class, weights = votes.by_class[chosen], weights[chosen]
    start = model_from_pairs(pair_votes(by_class, weights))
    fitted = fit_rater_model(by_class, weights, start) if start.prior.any() else start
    return {"pairs": start, "all_votes": fitted}


def describe_noise(
    votes: PictureVotes, scored: np.ndarray, label_names: Sequence[str], arguments: LabelNoiseArguments
) -> dict[str, Any]:
    """
    Confusion between votes, between votes and the truth, and what the truth would score.

    Args:
        votes: of the spreadsheet.
        scored: label of each picture of `votes` that models are scored on, -1 for others, `[num_pictures]`.
        label_names: `[num_labels]`.
        arguments: how many resamples.
    """
    num_labels = len(label_names)
    one, two = votes.num_votes == 1, votes.num_votes == 2

    def figures_of(chosen: np.ndarray, weights: np.ndarray) -> dict[tuple[str, ...], float]:
        pairs = pair_votes(votes.by_class[chosen], weights[chosen])
        agreement, again = np.trace(pairs) if pairs.any() else np.nan, np.diag(conditional(pairs))
        shares = [weights[chosen & of].sum() / max(weights[of].sum(), 1) for of in (one, two)]
        result: dict[tuple[str, ...], float] = {
            ("agreement",): float(agreement),
            ("agreement_root",): float(np.sqrt(agreement)),
            ("balanced_agreement",): float(again[np.isfinite(again)].mean()) if pairs.any() else np.nan,
            ("third_given_two",): third_given_two(votes.by_class[chosen], weights[chosen]),
            ("another_clear",): float(shares[1] / shares[0]) if shares[0] > 0 else np.nan,
        }
        result |= {("again", name): float(value) for name, value in zip(label_names, again, strict=True)}
        counts = count_scored(scored, votes.num_votes, weights, num_labels)
        groups = {"all": counts, "1": counts.copy(), "2+": counts.copy()}
        groups["1"][:, 1:] = 0
        groups["2+"][:, :1] = 0
        for estimator, model in fit_models(votes, chosen, weights).items():
            for group, of_group in groups.items():
                truth = score_of_truth(model, of_group)
                result |= {("truth", estimator, group, name): value for name, value in truth.items()}
        return result

    clear = votes.kinds == CLEAR
    told = clear | (votes.kinds == AMBIGUOUS)
    if not (votes.by_class[clear].sum(axis=1) >= 2).any() or not (scored >= 0).any():
        raise ValueError("no scored scan, or no picture with two votes: the noise of the labels cannot be told.")
    ones = np.ones(len(scored))
    pairs, models = pair_votes(votes.by_class[clear], ones[clear]), fit_models(votes, clear, ones)
    by_number = []
    for number in range(2, int(votes.num_votes.max()) + 1):
        chosen = clear & (votes.num_votes == number)
        if chosen.sum() >= 20:
            observed = float((votes.by_class[chosen].max(axis=1) == number).mean())
            expected = {name: model.share_unanimous(number) for name, model in models.items()}
            by_number.append(
                {"num_votes": number, "pictures": int(chosen.sum()), "observed": observed, "expected": expected}
            )
    intervals = with_intervals(partial(figures_of, clear), votes.groups, arguments.num_resamples, arguments.seed)
    with_ambiguous = {name: _plain(value) for name, value in figures_of(told, ones).items()}
    return {
        "num_pictures_with_pairs": int((votes.by_class[clear].sum(axis=1) >= 2).sum()),
        "num_pictures_with_three_votes": int((votes.by_class[clear].sum(axis=1) >= 3).sum()),
        "num_scored": int((scored >= 0).sum()),
        "pairs": pairs.tolist(),
        "second_given_first": [[_plain(value) for value in row] for row in conditional(pairs).tolist()],
        "models": {
            name: {"prior": model.prior.tolist(), "confusion": model.confusion.tolist()}
            for name, model in models.items()
        },
        "expected_third_given_two": {
            name: model.share_unanimous(3) / model.share_unanimous(2) for name, model in models.items()
        },
        "unanimity": by_number,
        **_nested(intervals),
        "with_ambiguous": _nested(with_ambiguous),
    }


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def describe_near_duplicates(
    scans: datasets.Dataset, max_lines: int, num_votes: np.ndarray, arguments: LabelNoiseArguments
) -> dict[str, Any]:
    """
    How often near-identical pictures have the same label, and those that are identical number by number.

    Args:
        scans: with the columns of `scan_features`.
        max_lines: first lines of each scan to compare.
        num_votes: on each scan, `UNKNOWN_VOTES` where nobody knows, int `[num_scans]`.
        arguments: how many resamples.
    """
    lines = lines_of(scans, max_lines)
    found = find_near_duplicates(lines)
    first, second = found.pairs.T if len(found) else np.empty((2, 0), int)
    groups = groups_of(scans["session"], scans["scan_id"])[first]
    equal = np.array([np.array_equal(lines[i], lines[j], equal_nan=True) for i, j in found.pairs], dtype=bool)
    result: dict[str, Any] = {"num_pairs": len(found), "num_identical": int(equal.sum())}
    scores = np.asarray(scans["scores"], dtype=np.float32)
    fewest, most = np.sort(num_votes[found.pairs], axis=1).T if len(found) else np.empty((2, 0), int)
    unanimous = unanimous_labels(scores)
    for name, labels, chosen in (
        ("unanimous", unanimous, fewest >= UNKNOWN_VOTES),
        ("unanimous, identical", unanimous, equal),
        ("unanimous, 1 vote each", unanimous, (fewest == 1) & (most == 1)),
        ("unanimous, 2+ votes each", unanimous, fewest >= 2),
        ("majority", majority_labels(scores), fewest >= UNKNOWN_VOTES),
    ):
        both = chosen & (labels[first] >= 0) & (labels[second] >= 0)
        figures = partial(_share_same, (labels[first] == labels[second])[both])
        agreement = with_intervals(figures, groups[both], arguments.num_resamples, arguments.seed)["same"]
        result[name] = {"num_pairs": int(both.sum()), "same_label": agreement}
    return result


def _share_same(same: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    return {"same": float(weights @ same / weights.sum()) if weights.any() else np.nan}


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
    verdicts: Probabilities, num_votes: np.ndarray, model: RaterModel | None, arguments: LabelNoiseArguments
) -> dict[str, Any]:
    """
    How well verdicts agree with labels, by number of votes.

    Args:
        verdicts: of the models.
        num_votes: on each scan, `UNKNOWN_VOTES` where nobody knows, int `[num_scans]`.
        model: of the votes, if there is one.
        arguments: how many resamples.
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
            arguments.num_resamples,
            arguments.seed,
        )
        scored = count_scored(labels[chosen], num_votes[chosen], np.ones(chosen.sum()), num_labels)
        truth = score_of_truth(model, scored) if model is not None else {}
        confusion = np.zeros((num_labels, num_labels), int)
        np.add.at(confusion, (labels[chosen], said[chosen]), 1)
        rows[name] = {
            "num_scans": int(chosen.sum()),
            **figures,
            "truth": {name: _plain(value) for name, value in truth.items()},
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


def write_report(source: ScanSource, arguments: LabelNoiseArguments, console: Console) -> dict[str, Any]:
    """
    Asks everything that the dataset and the arguments allow for, writes and prints it.

    Raises:
        ValueError: for scans, votes or runs that cannot be read, or options that make no sense.
        OSError: if the report cannot be written.
    """
    if arguments.count < 1 or arguments.num_resamples < 0:
        raise ValueError("count must be at least 1 and num_resamples at least 0.")
    if source.dataset != WITH_NUM_VOTES and not arguments.runs and not arguments.near_duplicates:
        raise ValueError(
            f"numbers of votes are known for --dataset {WITH_NUM_VOTES} only; for {source.dataset} there are --runs "
            "and --near_duplicates."
        )
    # what cannot be read is told before the work
    runs = [Probabilities.load(Path(folder), arguments.part) for folder in arguments.runs or ()]
    verdicts = combine_runs(runs) if runs else None
    scans = source.load()
    names = scans.features["label"].names
    if verdicts is not None and verdicts.label_names.tolist() != names:
        raise ValueError(
            f"the runs know the classes {', '.join(verdicts.label_names)}, the dataset {', '.join(names)}."
        )
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "dataset": source.dataset,
        "label_names": names,
        "num_scans": len(scans),
        "num_resamples": arguments.num_resamples,
        "seed": arguments.seed,
        "part": arguments.part,
        "run_names": ["/".join(Path(folder).parts[-2:]) for folder in arguments.runs or ()],
        **dict.fromkeys(("votes", "agreement", "noise", "near_duplicates", "runs")),
    }
    num_votes_of: dict[str, int] = {}
    model = None

    def votes_on(scan_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        return np.array([num_votes_of.get(scan_id, UNKNOWN_VOTES) for scan_id in scan_ids])

    if source.dataset == WITH_NUM_VOTES:
        votes = load_votes(Path(str(source.data_dir)).expanduser())
        labels = scored_labels(scans, source.max_lines)
        scored = np.array([labels.get(scan_id, -1) for scan_id in votes.scan_ids])
        num_votes_of = dict(zip(votes.scan_ids, votes.num_votes.tolist(), strict=True))
        model = fit_models(votes, votes.kinds == CLEAR, np.ones(len(scored)))["pairs"]
        report["votes"] = describe_votes(votes, scans["scan_id"], scored)
        report["agreement"] = describe_agreement(votes, arguments)
        report["noise"] = describe_noise(votes, scored, names, arguments)
    if arguments.near_duplicates:
        known = votes_on(scans["scan_id"])
        report["near_duplicates"] = describe_near_duplicates(scans, source.max_lines, known, arguments)
    for name in (LIST_FILE, PICTURE_FILE):
        (output / name).unlink(missing_ok=True)  # of an earlier report
    if verdicts is not None:
        num_votes = votes_on(verdicts.scan_ids)
        report["runs"] = describe_runs(verdicts, num_votes, model, arguments)
        write_list(output / LIST_FILE, verdicts, num_votes)
        draw_disagreements(scans, verdicts, num_votes, arguments.count).savefig(output / PICTURE_FILE, dpi=150)
    (output / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (output / MARKDOWN_FILE).write_text(to_markdown(report), encoding="utf-8")
    print_report(report, console)
    console.print(f"Report: {output}", soft_wrap=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    source, arguments = parse_options([ScanSource, LabelNoiseArguments], "experiments.label_noise", DESCRIPTION, argv)
    return run_command(lambda: write_report(source, arguments, Console()))


if __name__ == "__main__":
    sys.exit(main())
