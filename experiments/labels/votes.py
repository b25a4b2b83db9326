"""People's votes on pictures: how often they agree, and what the true state would score against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from data_scripts.builders.hsi100 import SPM_TOOLBOX_BOXES, SPM_TOOLBOX_CLASSES, find_spreadsheet, read_box_votes
from data_scripts.labels import majority_labels, unanimous_labels
from data_scripts.near_duplicates import find_near_duplicates
from data_scripts.scan import session_of
from data_scripts.scan_dataset import StoredLines, lines_of
from data_scripts.splits import groups_of

from ..analysis.record import json_ready
from ..intervals import with_intervals
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
)

UNKNOWN_VOTES = 0


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


def describe_agreement(votes: PictureVotes, resamples: tuple[int, int]) -> dict[str, Any]:
    """Agreement of two votes on each box, with intervals."""

    def figures(weights: np.ndarray) -> dict[tuple[str, ...], float]:
        agreement = box_agreement(votes.ticks, votes.num_votes, weights)
        return {
            (box, name): float(value)
            for name, values in agreement.items()
            for box, value in zip(SPM_TOOLBOX_BOXES, values, strict=True)
        }

    found = with_intervals(figures, votes.groups, *resamples)
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
    votes: PictureVotes, scored: np.ndarray, label_names: Sequence[str], resamples: tuple[int, int]
) -> dict[str, Any]:
    """
    Confusion between votes, between votes and the truth, and what the truth would score.

    Args:
        votes: of the spreadsheet.
        scored: label of each picture of `votes` that models are scored on, -1 for others, `[num_pictures]`.
        label_names: `[num_labels]`.
        resamples: how many, and their seed.
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
    intervals = with_intervals(partial(figures_of, clear), votes.groups, *resamples)
    return {
        "num_pictures_with_pairs": int((votes.by_class[clear].sum(axis=1) >= 2).sum()),
        "num_pictures_with_three_votes": int((votes.by_class[clear].sum(axis=1) >= 3).sum()),
        "num_scored": int((scored >= 0).sum()),
        "pairs": pairs.tolist(),
        "second_given_first": json_ready(conditional(pairs).tolist()),
        "models": {
            name: {"prior": model.prior.tolist(), "confusion": model.confusion.tolist()}
            for name, model in models.items()
        },
        "expected_third_given_two": {
            name: model.share_unanimous(3) / model.share_unanimous(2) for name, model in models.items()
        },
        "unanimity": by_number,
        **_nested(intervals),
        "with_ambiguous": json_ready(_nested(figures_of(told, ones))),
    }


def describe_near_duplicates(
    scans: datasets.Dataset, max_lines: int, num_votes: np.ndarray, resamples: tuple[int, int]
) -> dict[str, Any]:
    """
    How often near-identical pictures have the same label, and those that are identical number by number.

    Args:
        scans: with the columns of `scan_features`.
        max_lines: first lines of each scan to compare.
        num_votes: on each scan, `UNKNOWN_VOTES` where nobody knows, int `[num_scans]`.
        resamples: how many, and their seed.
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
        agreement = with_intervals(figures, groups[both], *resamples)["same"]
        result[name] = {"num_pairs": int(both.sum()), "same_label": agreement}
    return result


def _share_same(same: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    return {"same": float(weights @ same / weights.sum()) if weights.any() else np.nan}
