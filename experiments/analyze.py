"""
What runs came to: best and latest figures, gap, where validation loss turned, figures by lines seen and by class.

    python -m experiments.analyze runs/20261123_101500                     # one run, in full
    python -m experiments.analyze runs --sort best_loss                    # all runs below a folder, best first
    python -m experiments.analyze runs/sweep --details                     # each of them in full as well
    python -m experiments.analyze runs/a runs/b --compare                  # is the difference more than chance?
    python -m experiments.analyze runs --csv runs.csv --json runs.json     # everything, for other programs
    python -m experiments.analyze runs/20261123_101500 --draw              # learning curves and so on: PNG and SVG
    python -m experiments.analyze checkpoints/20251203_142000            # the earlier project's train|valid/epoch-N

A run that goes on, or is broken, is shown as such and named at the end. Accuracies of epochs are in percent, as in the
log, with the epoch behind them; gap is train minus validation accuracy at the last epoch, in points. Balanced accuracy
and AUROC are those of the weights that the run kept, on whole scans; of a run that goes on, those of its last epoch.
With --compare, runs that differ in seed and fold only are one experiment, whose seeds are averaged; intervals are
95 %, from resampling whole sessions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from .analysis.comparison import REPEATED
from .analysis.figures import analyze
from .analysis.record import BROKEN, COMPLETE, UNFINISHED, RunRecord, find_runs, json_ready, varying
from .analysis.tables import (
    Table,
    as_csv,
    class_table,
    confusion_table,
    lines_table,
    recall_table,
    results_block,
    rows_of,
    run_table,
    sort_rows,
)

FOLDER = "analysis"
WIDTH, LEAST_NAME = 200, 24  # of what goes into a file, and of the names of runs where there is little room


def analyze_all(runs: Sequence[RunRecord], areas: bool = True) -> tuple[list[RunRecord], list[dict[str, Any]]]:
    """
    Runs and what is said of each; one whose files are not what a run writes is broken, and what they say left out.
    For `areas` see [`analyze`].
    """
    kept, analyses = [], []
    for run in runs:
        try:
            analysis = analyze(run, areas)
        except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError):
            run = replace(run, state=BROKEN, problem="its files are not what a run writes.", summary={}, config={})
            run = replace(run, recipe={})
            analysis = analyze(run)
        kept.append(run)
        analyses.append(analysis)
    return kept, analyses


def count_states(runs: Sequence[RunRecord]) -> list[str]:
    """How many runs there are of each state; those that are not complete by name, with what is the matter."""
    counts = [
        f"{sum(run.state == state for run in runs)} {state}"
        for state in (COMPLETE, UNFINISHED, BROKEN)
        if any(run.state == state for run in runs)
    ]
    lines = [f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(counts)}."]
    return lines + [f"{run.name}: {run.state}; {run.problem}" for run in runs if run.state != COMPLETE]


def print_table(console: Console, table: Table) -> None:
    """Shows a table on a terminal."""
    if not table.rows:
        return
    shown = RichTable(title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(table.headings):
        # headings are broken before figures are
        width = max(len(row[place]) for row in table.rows)
        longest_word = max(map(len, heading.split()))
        least = max(width, longest_word) if place else min(width, LEAST_NAME)
        shown.add_column(heading, justify="right" if place else "left", overflow="fold", min_width=least)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def print_run(console: Console, analysis: dict[str, Any]) -> None:
    """Shows one run in full."""
    console.print(f"\n{analysis['run']}: {analysis['state']}", style="bold", highlight=False, markup=False)
    console.print("\n".join(results_block(analysis)), highlight=False, markup=False)
    for part, scored in analysis["scored"].items():
        title = f"{part}: {scored['num_scans']} scans, from {scored['source']}"
        print_table(console, lines_table(scored, title))
        for make in (class_table, recall_table, confusion_table):
            print_table(console, make(scored))


def print_comparison(console: Console, runs: Sequence[RunRecord]) -> None:
    """Shows which experiments are ahead of which, and whether anyone can tell."""
    from .analysis.ranking import ranked, ranking_table, verdict_sentences

    groups, problems = ranked(runs)
    for group in groups:
        print_table(console, ranking_table(group))
        for sentence in verdict_sentences(group):
            console.print(sentence, highlight=False, markup=False)
    for problem in [*problems, *([] if groups else ["No two experiments were scored on the same scans."])]:
        console.print(problem, highlight=False, markup=False)


def draw(runs: Sequence[RunRecord], analyses: Sequence[dict[str, Any]], output: Path | None) -> list[Path]:
    """
    Draws each run into `analysis/` in its folder, and all together into `analysis/` beside them.

    Args:
        runs: those to draw.
        analyses: of each of them.
        output: folder to draw into instead, each run into one of its name.

    Returns:
        The folders.
    """
    from .analysis import drawing  # it takes its time, which a table need not wait for

    folders = []
    for run, analysis in zip(runs, analyses, strict=True):
        if not len(run.history) and not analysis["scored"]:
            continue
        folder = run.folder / FOLDER if output is None else output / run.name
        if len(run.history):
            drawing.save(drawing.draw_learning([run], [analysis]), folder, "learning")
        for part, scored in analysis["scored"].items():
            of_lines = drawing.draw_lines([analysis], part)
            confusion = drawing.draw_confusion(scored, f"{part}, whole scans, from {scored['source']}")
            for name, figure in (("lines", of_lines), ("confusion", confusion)):
                if figure is not None:
                    drawing.save(figure, folder, f"{name}_{part}")
        folders.append(folder)
    if len(runs) > 1:
        depth = len(Path(runs[0].name).parts)
        common = runs[0].folder.parents[depth - 1] / FOLDER if output is None else output
        with_epochs = [run for run in runs if len(run.history)]
        if with_epochs:
            drawing.save(drawing.draw_learning(with_epochs, analyses), common, "learning")
        together = drawing.draw_lines(analyses)
        if together is not None:
            drawing.save(together, common, "lines_validation")
        folders.append(common)
    return folders


def _write(text: str, where: str) -> None:
    if where == "-":
        sys.stdout.write(text)
    else:
        Path(where).write_text(text, encoding="utf-8")


def report(arguments: argparse.Namespace, console: Console) -> None:
    """Does what the options ask; raises `ValueError` or `OSError` for bad input."""
    runs = find_runs(arguments.runs)
    in_full = len(runs) == 1 or arguments.details
    runs, analyses = analyze_all(runs, areas=bool(in_full or arguments.json or arguments.csv))
    options = varying(runs)
    rows = rows_of(analyses, options)
    order = sort_rows(rows, arguments.sort, arguments.reverse)
    runs, analyses, rows = ([runs[i] for i in order], [analyses[i] for i in order], [rows[i] for i in order])
    if arguments.json:
        _write(json.dumps(json_ready(analyses), indent=1, allow_nan=False) + "\n", arguments.json)
    if arguments.csv:
        _write(as_csv(rows), arguments.csv)
    if "-" not in (arguments.json, arguments.csv):
        if len(runs) > 1:
            # a terminal has room for a few of the options that differ
            shown = [name for name in options if name not in REPEATED | {"model", "dataset", "split"}][
                : arguments.options
            ]
            print_table(console, run_table(rows, shown))
        if in_full:
            for analysis in analyses:
                print_run(console, analysis)
        if arguments.compare:
            print_comparison(console, runs)
        for line in count_states(runs):
            console.print(line, highlight=False, markup=False)
    if arguments.draw or arguments.output:
        for folder in draw(runs, analyses, arguments.output):
            console.print(f"Drawn into {folder}.", highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.analyze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, or of runs at any depth")
    parser.add_argument("--sort", default="run", metavar="COLUMN", help="best first by a column of the CSV (run)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--options", type=int, default=3, help="options that differ to show in the table (3)")
    parser.add_argument("--details", action="store_true", help="of several runs, show each in full")
    parser.add_argument("--compare", action="store_true", help="rank experiments, with intervals of the differences")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON; - for the standard output")
    parser.add_argument("--csv", metavar="FILE", help="write a row a run as CSV; - for the standard output")
    parser.add_argument("--draw", action="store_true", help=f"draw into {FOLDER}/ in each run, and beside the runs")
    parser.add_argument("--output", type=Path, help="draw into this folder instead")
    arguments = parser.parse_args(argv)
    console = Console(stderr="-" in (arguments.json, arguments.csv), markup=False)  # names may have brackets
    if not console.is_terminal:
        console.width = WIDTH
    try:
        report(arguments, console)
    except (OSError, ValueError) as error:
        Console(stderr=True).print(f"Error: {error}", soft_wrap=True, highlight=False, markup=False)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
