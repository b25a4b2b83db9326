"""
Writes the log of experiments from the folders of their runs.

    python -m experiments.log runs/sweep                                   # experiments/EXPERIMENTS.md
    python -m experiments.log runs/accuracy runs/ablation --output runs/LOG.md
    echo "Try 12 layers." > runs/sweep/deep_seed42/notes.md                # next steps: your own words, kept
    python -m experiments.log runs/sweep --title "Regularization sweep"

Runs that differ in seed and fold only are one experiment. Each has its configuration, its results as the analyzer
gives them, and what rules can state. Experiments that were scored on the same scans are ranked, with 95 % intervals
from resampling whole sessions; where that of a difference includes 0, the log says that the two cannot be told apart.
The same folders give the same log, byte for byte. Write into the notes of a run, not into the log: it is written anew.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .analysis.comparison import REPEATED, Experiment, Verdict, group_runs
from .analysis.findings import findings
from .analysis.history import is_earlier
from .analysis.ranking import lines_ranking_table, ranked, ranking_table, verdict_sentences
from .analysis.record import BROKEN, COMPLETE, RunRecord, dig, find_runs, varying
from .analysis.reported import reported_tables
from .analysis.tables import class_table, lines_table, plain, recall_table, results_block, rows_of, run_table
from .analyze import analyze_all, count_states
from .intervals import NUM_RESAMPLES

OUTPUT = Path(__file__).with_name("EXPERIMENTS.md")
# the template's headings, and where what stands behind them is kept: options of the recipe, or the model's entries
CONFIGURATION: dict[str, tuple[str, ...]] = {
    "Model": ("model", "model_type"),
    "Starts from": ("model_name_or_path",),
    "Layers": ("num_hidden_layers", "depths"),
    "Width": ("hidden_size", "hidden_sizes", "conv_channels"),
    "Heads": ("num_attention_heads",),
    "Feed-forward width": ("intermediate_size",),
    "Dropout": ("hidden_dropout_prob",),
    "Optimizer": ("optim",),
    "LR": ("learning_rate",),
    "LR schedule": ("lr_scheduler_type",),
    "Warmup epochs": ("warmup_epochs",),
    "Weight decay": ("weight_decay",),
    "Batch size": ("per_device_train_batch_size",),
    "Epochs": ("num_train_epochs",),
    "Early stopping": ("early_stopping_patience",),
    "Weights kept": ("load_best_model_at_end",),
    "Class weights": ("class_weights",),
    "Normalization": ("normalization",),
    "Augmentation": ("augment",),
    "Training labels": ("train_labels",),
}
MOST_VARIED = 6  # columns of options that a table has room for
MOST_OTHERS = 12  # of the earlier project's configuration, which may hold anything


def configuration(experiment: Experiment, others: Sequence[str]) -> list[str]:
    """
    The template's lines on what was run.

    Args:
        experiment: whose.
        others: options to say beside the template's.
    """
    run = next((run for run in experiment.runs if run.recipe or run.config), experiment.runs[0])
    if not run.recipe:
        plain_entries = {
            name: value
            for name, value in run.config.items()
            # no path of the machine
            if not isinstance(value, (dict, list)) and not (isinstance(value, str) and re.search(r"[/\\]", value))
        }
        lines = [f"- {name}: {plain(value)}" for name, value in list(plain_entries.items())[:MOST_OTHERS]]
        return lines or ["- not kept"]
    # the recipe first: it is what was asked for
    known = {**run.config, **run.options}
    lines = []
    for title, names in CONFIGURATION.items():
        name = next((name for name in names if known.get(name) is not None), None)
        if name is not None:
            lines.append(f"- {title}: {_setting(name, known)}")
    summary = run.summary
    if summary.get("num_parameters"):
        lines.append(f"- Parameters: {summary['num_parameters']:,}")
    if run.config.get("id2label"):
        lines.append(f"- Num classes: {len(run.label_names)} ({', '.join(run.label_names)})")
    data = [f"{plain(known.get('dataset'))}, split by {plain(known.get('split'))}"]
    if known.get("num_folds"):
        data.append(f"{known['num_folds']} folds")
    for part in ("train", "validation", "test"):
        counts = dig(summary, "split", "counts", part)
        if counts and len(experiment.runs) == 1:
            data.append(f"{sum(counts.values())} scans for {part}")
    if dig(summary, "labels", "scored"):
        data.append(f"scored on {summary['labels']['scored']} labels")
    lines.append(f"- Data: {'; '.join(data)}")
    for title, name in (("Seed", "seed"), *([("Fold", "fold")] if known.get("num_folds") else [])):
        values = sorted({run.options[name] for run in experiment.runs if run.options.get(name) is not None})
        if values:
            lines.append(f"- {title}{'s' if len(values) > 1 else ''}: {', '.join(map(plain, values))}")
    devices = sorted({str(dig(run.summary, "machine", "device")) for run in experiment.runs if run.summary})
    if devices:
        lines.append(f"- Machine: {'; '.join(devices)}")
    other = [f"{name} {plain(run.setting(name))}" for name in others if run.setting(name) is not None]
    return lines + ([f"- Other: {'; '.join(other)}"] if other else [])


def _setting(name: str, known: dict[str, Any]) -> str:
    value = known[name]
    if name == "load_best_model_at_end":
        best = str(known.get("metric_for_best_model", "figure")).replace("_", " ")
        return (
            f"those of the epoch with the best {best} on the validation scans" if value else "those of the last epoch"
        )
    if name == "early_stopping_patience":
        return f"after {value} epochs without progress" if value else "no"
    return plain(value)


def date_of(run: RunRecord) -> str | None:
    """`YYYY-MM-DD`, where the name of the run says so."""
    match = re.search(r"(?:^|/)(20\d\d)(\d\d)(\d\d)_\d{6}", run.name)
    return "-".join(match.groups()) if match else None


def status(runs: Sequence[RunRecord]) -> str:
    """The template's status: complete, or what is missing."""
    missing = [run for run in runs if run.state != COMPLETE]
    if not missing:
        return "Complete" if len(runs) == 1 else f"Complete ({len(runs)} runs)"
    if len(runs) == 1:
        return f"{missing[0].state.capitalize()}: {missing[0].problem}"
    return f"{len(runs) - len(missing)} of {len(runs)} runs complete"


def results(runs: Sequence[RunRecord], analyses: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The analyzer's block for one run, a table of several; figures by lines, and by class, of the first."""
    first = next((analysis for analysis in analyses if analysis["scored"]), None)
    if len(runs) == 1:
        block = results_block(analyses[0])
        if block:
            yield from ["```", *block, "```", ""]
        elif first is None:
            yield from ["None.", ""]
    else:
        yield from run_table(rows_of(analyses), [name for name in ("seed", "fold") if _differs(runs, name)]).markdown()
    if first is None:
        return
    for part, scored in first["scored"].items():
        of_run = "" if len(runs) == 1 else f" of {first['run']}"
        yield f"{part.capitalize()}{of_run}, {plain(scored['num_scans'])} scans, from {scored['source']}:"
        yield ""
        for table in (lines_table(scored), class_table(scored), recall_table(scored)):
            yield from table.markdown()


def _differs(runs: Sequence[RunRecord], name: str) -> bool:
    return len({str(run.options.get(name)) for run in runs}) > 1


def section(experiment: Experiment, analyses: Sequence[dict[str, Any]], others: Sequence[str]) -> Iterator[str]:
    """One experiment in the log's template."""
    runs = experiment.runs
    yield from [f"### Experiment: {experiment.name}", ""]
    dates = sorted({date for run in runs if (date := date_of(run))})
    header = [f"**Date**: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"] if dates else []
    folders = ", ".join(f"`{run.name}/`" for run in runs)
    kind = " (earlier project)" if all(is_earlier(run.folder) for run in runs) else ""
    header += [f"**Run{'s' if len(runs) > 1 else ''}**: {folders}{kind}", f"**Status**: {status(runs)}"]
    yield from ["  \n".join(header), "", "**Configuration**:", "", *configuration(experiment, others), ""]
    yield from ["**Results**:", "", *results(runs, analyses)]
    said = [f"- {sentence}" for sentence in findings(analyses)] or ["- Nothing that a rule can state."]
    yield from ["**Analysis**:", "", *said, "", "**Next steps**:", ""]
    notes = list(dict.fromkeys(run.notes for run in runs if run.notes))
    yield from [*("\n\n".join(notes) or "- None noted.").splitlines(), "", "---", ""]


def ranking(groups: Sequence[Sequence[Verdict]], problems: Sequence[str]) -> Iterator[str]:
    """Experiments that were scored on the same scans, against each other."""
    yield from ["## Comparison", ""]
    if not groups:
        yield from ["No two experiments were scored on the same scans: nothing is ranked.", ""]
    else:
        yield from [
            f"Paired: the same scans for all of a table. In brackets 95 % intervals from {NUM_RESAMPLES} resamples of "
            "whole sessions, means over the seeds; they say how far the choice of sessions goes, not that of seeds. "
            "The first of many is first partly by luck: its lead is flattered. "
            "\"Minus\" is in balanced accuracy on whole scans.",
            "",
        ]  # fmt: skip
    for number, group in enumerate(groups, 1):
        title = f" {number}" if len(groups) > 1 else ""
        table = ranking_table(group)
        yield from [f"### Scored on the same scans{title}: {table.title.removeprefix('whole scans: ')}", ""]
        yield from table.markdown()
        yield from lines_ranking_table(group).markdown()
        chosen = [verdict.experiment.name for verdict in group if _chosen_on_these_scans(verdict.experiment)]
        if chosen:
            yield from [f"Flattered, as their epoch was chosen on these very scans: {', '.join(chosen)}.", ""]
        yield from [*(f"- {sentence}" for sentence in verdict_sentences(group)), ""]
    if problems:
        yield from [*(f"- {problem}" for problem in problems), ""]


def _chosen_on_these_scans(experiment: Experiment) -> bool:
    return any(run.recipe.get("load_best_model_at_end") for run in experiment.runs)


def write_log(runs: Sequence[RunRecord], title: str = "Training experiments log") -> str:
    """
    The log.

    Args:
        runs: in the order that they shall stand in.
        title: first line.

    Returns:
        Markdown; the same for the same runs, without a path of the machine.
    """
    runs, analyses = analyze_all(runs)
    of_run = {run.name: analysis for run, analysis in zip(runs, analyses, strict=True)}
    experiments = group_runs(runs)
    template = [name for names in CONFIGURATION.values() for name in names]
    varied = sorted(set(varying(runs, REPEATED)) - {"dataset", "split"}, key=lambda name: (name not in template, name))
    lines = [
        f"# {title}",
        "",
        "Written by `python -m experiments.log`; words of your own go into `notes.md` of a run.",
    ]
    lines += ["", *(f"- {line}" for line in count_states(runs)), ""]
    lines += reported_tables(experiments, of_run)
    lines += ranking(*ranked(runs))
    table = [of_run[run.name] for run in runs if run.state != BROKEN]
    if table:
        # what was varied stands beside the figures, as in the log's table of a sweep
        options = varied[:MOST_VARIED]
        rows = rows_of(table, options)
        legend = "Accuracies in percent, epochs in brackets; gap: train minus validation accuracy at the last epoch."
        lines += ["## Runs", "", legend, "", *run_table(rows, [n for n in options if n in rows[0]]).markdown()]
    lines += ["## Experiments", ""]
    for experiment in experiments:
        # what makes the difference is said, also where the template has no place for it
        others = [name for name in varied if name not in template]
        lines += section(experiment, [of_run[run.name] for run in experiment.runs], others)
    return "\n".join(lines).rstrip().removesuffix("---").rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.log",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="FOLDER", help="folder of runs at any depth, or a run")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="the log to write (experiments/EXPERIMENTS.md of the project)"
    )
    parser.add_argument("--title", default="Training experiments log", help="its first line")
    arguments = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        runs, _ = analyze_all(find_runs(arguments.runs), areas=False)
        text = write_log(runs, arguments.title)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        console.print(f"Error: {error}", soft_wrap=True, highlight=False, markup=False)
        return 2
    for line in [f"{arguments.output}: {len(text.splitlines())} lines.", *count_states(runs)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
