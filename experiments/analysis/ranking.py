"""Rankings of experiments as text: what stands first, how far, and whether anyone can tell."""

from collections.abc import Sequence

from ..intervals import FIGURES
from .comparison import COMPARED_LINES, MIN_SESSIONS, Difference, Verdict, compare, group_runs, judge, rankings
from .record import RunRecord
from .tables import NONE, Table

TITLES = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}


def ranked(runs: Sequence[RunRecord]) -> tuple[list[list[Verdict]], list[str]]:
    """
    Experiments that were scored on the same scans, best first.

    Returns:
        Groups of two or more, and sentences about runs that could not be looked at.
    """
    verdicts: list[Verdict] = []
    problems: dict[str, list[str]] = {}
    for experiment in group_runs(runs):
        verdict, left_out = judge(experiment)
        for name, why in left_out:
            problems.setdefault(why, []).append(name)
        if verdict is not None:
            verdicts.append(verdict)
    groups = [group for group in rankings(verdicts) if len(group) > 1]
    return groups, [f"{', '.join(names)}: {why}" for why, names in problems.items()]


def figure_cell(verdict: Verdict, figure: str) -> str:
    """A mean on whole scans with its interval."""
    values = verdict.figures["whole"][figure]
    low_high = "[{:.3f}, {:.3f}]".format(*values["interval"]) if verdict.has_intervals else "(no interval)"
    return f"{values['mean']:.3f} {low_high}"


def difference_cell(difference: Difference) -> str:
    """How far ahead, with its interval, and whether that is more than chance."""
    if difference.interval is None:
        return f"{difference.ahead:+.3f} (no interval)"
    low, high = difference.interval
    told = "" if difference.told_apart else ", not told apart"
    return f"{difference.ahead:+.3f} [{low:+.3f}, {high:+.3f}]{told}"


def ranking_table(group: Sequence[Verdict]) -> Table:
    """Ranks on whole scans, each with its distance to the first and to the one above."""
    rows = []
    for place, verdict in enumerate(group):
        cells = [f"{place + 1}. {verdict.experiment.name}", str(verdict.seeds)]
        cells += [figure_cell(verdict, figure) for figure in FIGURES]
        for above in (group[0], group[place - 1]):
            cells.append(difference_cell(_whole(verdict, above)) if place else NONE)
        rows.append(cells)
    first = group[0]
    return Table(
        ["experiment", "seeds", *TITLES.values(), "minus the first", "minus the one above"],
        rows,
        f"whole scans: {first.num_scans} scans of {first.num_sessions} sessions",
    )


def _whole(one: Verdict, other: Verdict) -> Difference:
    differences = compare(one, other)
    return next(d for d in differences if (d.lines, d.figure) == ("whole", "balanced_accuracy"))


def lines_ranking_table(group: Sequence[Verdict]) -> Table:
    """Balanced accuracy and AUROC of each after each number of lines."""
    counts = sorted({int(lines) for verdict in group for lines in verdict.figures if lines != "whole"})
    keys = [*map(str, counts), "whole"]
    return Table(
        ["balanced accuracy / AUROC after", *keys[:-1], "whole scan"],
        [
            [
                verdict.experiment.name,
                *(
                    " / ".join(f"{verdict.figures[key][figure]['mean']:.3f}" for figure in FIGURES)
                    if key in verdict.figures
                    else NONE
                    for key in keys
                ),
            ]
            for verdict in group
        ],
    )


def verdict_sentences(group: Sequence[Verdict]) -> list[str]:
    """The first against each other one, in words."""
    first = group[0]
    sentences = []
    for other in group[1:]:
        for lines in COMPARED_LINES:
            of_lines = [difference for difference in compare(first, other) if difference.lines == lines]
            if of_lines:
                after = "On whole scans" if lines == "whole" else f"After {lines} lines"
                said = "; ".join(_say(difference) for difference in of_lines)
                sentences.append(f"{after}, {first.experiment.name} against {other.experiment.name}: {said}.")
    return sentences


def _say(difference: Difference) -> str:
    what = TITLES[difference.figure]
    if difference.interval is None:
        return f"{what} {difference.ahead:+.3f}, and fewer than {MIN_SESSIONS} sessions to tell chance by"
    low, high = difference.interval
    figures = f"{what} {difference.ahead:+.3f} [{low:+.3f}, {high:+.3f}]"
    if not difference.told_apart:
        return f"{figures}, the two cannot be told apart"
    direction = "ahead" if difference.ahead > 0 else "behind"
    return f"{figures}, {direction}" + (", though their seeds overlap" if difference.seeds_overlap else "")
