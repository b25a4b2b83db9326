"""The report of `experiments.label_noise` as tables, to print and to read."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..analysis.tables import markdown_table
from .rater_model import TRUTH_FIGURES, VOTE_KINDS

FIGURE_NAMES = dict(
    zip(
        TRUTH_FIGURES,
        ("accuracy", "balanced accuracy", "AUROC, certain verdicts", "AUROC, probability of each label"),
        strict=True,
    )
)
ESTIMATORS = {"pairs": "pairs of votes, balanced mistakes", "all_votes": "all votes, by maximum likelihood"}
NOTES = {
    "votes": "A vote is for a class if it ticks boxes of that class only (clear). Mixed: some vote certainly ticks "
    "boxes of two classes. Ambiguous: the mean scores leave open which. Empty: some vote certainly ticks nothing.",
    "boxes": "Pictures with two votes or more. With k ticks of n votes, two different votes agree with probability "
    "[k(k-1) + (n-k)(n-k-1)] / [n(n-1)]. Kappa: what is beyond the agreement of votes on different pictures.",
    "confusion": "Clear pictures with two votes or more: how probable another vote is, given one. Nobody's mistakes "
    "alone: the first vote may be the wrong one.",
    "limits": "Against the unanimous labels of the scored scans, with as many votes as they have. Assumed: votes are "
    "independent once the true class is given, all people have one confusion, each picture has one true class, and "
    "clear votes are like those of clear pictures with several votes. Pairs of votes alone cannot tell true classes "
    "from votes: `pairs` takes mistakes as balanced (as many i for j as j for i); `all_votes` (Dawid and Skene) "
    "learns it from the pictures with three votes and more. Pictures that differ in how doubtful they are break the "
    "first assumption: a model that knows how doubtful a picture is can reach a higher AUROC.",
    "bounds": "Whatever the noise, as long as votes on a picture are independent of one another: somebody who knows "
    "the picture's own distribution of votes has an accuracy against a single vote between the agreement of two votes "
    "and its square root. A third vote tells whether two that agree can be trusted as much as the models say. That "
    "another vote is clear is the share of clear pictures with two votes over that with one.",
    "unanimity": "Share of clear pictures whose votes are all for one class. A larger one than expected, with three "
    "votes or more, says that pictures differ in how doubtful they are.",
    "near_duplicates": "Pairs of near-identical pictures, both with a label. Their votes may be of the same person or "
    "not; most pairs are scans of one place, one after the other, between which the tip may have changed.",
    "runs": "Scans by number of votes, all unanimous. Where labels are noisy and models are not, models do better on "
    "scans with several votes. `truth`: what the true class would score on these scans (pairs of votes).",
}


@dataclass(frozen=True)
class Section:
    """A table of the report, and what it means."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(figure: dict[str, Any]) -> str:
    low_high = f" ({figure['interval'][0]:.3f}–{figure['interval'][1]:.3f})" if figure["interval"] else ""
    return _number(figure["value"]) + low_high


def sections(report: dict[str, Any]) -> list[Section]:
    """The tables of a report."""
    names = report["label_names"]
    result = []
    if report["votes"]:
        result += _sections_of_votes(report)
    if report["near_duplicates"]:
        found = report["near_duplicates"]
        rows = [
            [policy, str(found[policy]["num_pairs"]), _with_interval(found[policy]["same_label"])]
            for policy in found
            if not policy.startswith("num_")
        ]
        title = f"Near-identical pictures: {found['num_pairs']} pairs, {found['num_identical']} of them identical"
        result.append(Section(title, ["labels", "pairs", "same label"], rows, NOTES["near_duplicates"]))
    if report["runs"]:
        runs = report["runs"]
        rows = []
        for group, figures in runs["by_num_votes"].items():
            cells = [_with_interval(figures[name]) for name in ("accuracy", "balanced_accuracy")]
            cells.append(_number(figures["truth"].get("balanced_accuracy")))
            rows.append([group, str(figures["num_scans"]), *cells])
        title = f"Runs: {runs['num_disagreements']} of {runs['num_scans']} verdicts are not the label"
        columns = ["votes", "scans", "accuracy", "balanced accuracy", "balanced accuracy, truth"]
        result.append(Section(title, columns, rows, NOTES["runs"]))
        rows = [
            [group, name, *map(str, row)]
            for group, figures in runs["by_num_votes"].items()
            for name, row in zip(names, figures["confusion"], strict=True)
        ]
        result.append(Section("Verdicts by label", ["votes", "label", *names], rows))
    return result


def _sections_of_votes(report: dict[str, Any]) -> list[Section]:
    votes, noise, names = report["votes"], report["noise"], report["label_names"]
    columns = ["num_votes", "pictures", *VOTE_KINDS, "scored"]
    rows = [[str(row[column]) for column in columns] for row in votes["by_num_votes"]]
    title = f"Votes: {votes['num_rows']} rows, {votes['num_sessions']} sessions"
    counts = (
        f"{votes['num_not_whole']} rows are no whole numbers of votes and left out; {votes['num_repeated_names']} "
        f"repeat a name; {votes['num_without_picture']} have no picture; {votes['num_pictures_without_row']} pictures "
        f"have no row. On {votes['num_agreed_on_class_but_not_on_box']} pictures all votes are for one class but on "
        "different boxes of it, so that the label is not unanimous."
    )
    result = [Section(title, ["votes", *columns[1:]], rows, f"{NOTES['votes']} {counts}")]

    figures = {"agreement": "two votes agree", "ticked_again": "a tick is repeated", "kappa": "kappa"}
    rows = [[box, *(_with_interval(of[name]) for name in figures)] for box, of in report["agreement"]["boxes"].items()]
    title = f"Agreement on boxes: {report['agreement']['num_pictures']} pictures"
    result.append(Section(title, ["box", *figures.values()], rows, NOTES["boxes"]))

    rows = [
        [name, *map(_number, row), _with_interval(noise["again"][name])]
        for name, row in zip(names, noise["second_given_first"], strict=True)
    ]
    title = f"Another vote, given one: {noise['num_pictures_with_pairs']} pictures"
    result.append(Section(title, ["first", *names, "same class"], rows, NOTES["confusion"]))

    for estimator, model in noise["models"].items():
        rows = [
            [name, _number(prior), *map(_number, row)]
            for name, prior, row in zip(names, model["prior"], model["confusion"], strict=True)
        ]
        result.append(Section(f"A vote, given the truth ({ESTIMATORS[estimator]})", ["true", "share", *names], rows))

    rows = [
        [estimator, group, *(_with_interval(figures[name]) for name in FIGURE_NAMES)]
        for estimator, groups in noise["truth"].items()
        for group, figures in groups.items()
    ]
    rows += [
        [f"{estimator}, with ambiguous", "all", *(_number(groups["all"][name]) for name in FIGURE_NAMES)]
        for estimator, groups in noise["with_ambiguous"]["truth"].items()
    ]
    title = f"What the true state would score: {noise['num_scored']} scans"
    result.append(Section(title, ["from", "votes", *FIGURE_NAMES.values()], rows, NOTES["limits"]))

    expected = ", ".join(f"{name} {share:.3f}" for name, share in noise["expected_third_given_two"].items())
    bounds = {
        "agreement": "two votes agree: accuracy of another person against a single vote",
        "agreement_root": "its square root: no accuracy against a single vote is higher",
        "balanced_agreement": "balanced accuracy of another person against a single vote",
        "third_given_two": f"a third vote is that of two that agree (expected: {expected})",
        "another_clear": "another vote on a picture is clear, given a clear one",
    }
    rows = [
        [text, _with_interval(noise[name]), _number(noise["with_ambiguous"][name])] for name, text in bounds.items()
    ]
    result.append(Section("Without a model of the noise", ["", "clear", "with ambiguous"], rows, NOTES["bounds"]))
    rows = [
        [
            str(row["num_votes"]),
            str(row["pictures"]),
            _number(row["observed"]),
            *map(_number, row["expected"].values()),
        ]
        for row in noise["unanimity"]
    ]
    columns = ["votes", "pictures", "observed", *(f"model: {name}" for name in ESTIMATORS)]
    result.append(Section("Unanimous pictures", columns, rows, NOTES["unanimity"]))
    return result


def to_markdown(report: dict[str, Any]) -> str:
    """The report to read."""
    lines = [
        f"# Label noise of {report['dataset']}",
        "",
        f"Intervals: 95 %, {report['num_resamples']} resamples of whole sessions, seed {report['seed']}."
        + (f" Runs ({report['part']}): {', '.join(report['run_names'])}." if report["run_names"] else ""),
    ]
    for section in sections(report):
        lines += ["", f"## {section.title}", "", *markdown_table(section.columns, section.rows)]
        if section.note:
            lines += ["", section.note]
    return "\n".join(lines) + "\n"


def print_report(report: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    for section in sections(report):
        table = Table(title=escape(section.title), caption=escape(section.note), caption_justify="left")
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in section.rows:
            table.add_row(*map(escape, row))
        console.print(table)
