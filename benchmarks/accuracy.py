"""
The published comparison: which model tells the tip's state best, after how many lines.

All models are trained by the same script on the same parts of hsi100 and scored on the same scans: unanimous labels,
complete scans, each cut to its first 5, 10, 20, 40, 64, 128 lines. Two splits: `random` is 80/20 by scan, as published
(a new one for each seed); `sessions` is cross-validation over 5 fixed folds of whole sessions. The last epoch is
scored: nothing is chosen on the scans that are reported.

    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --jobs 8                      # everything, on a GPU
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --seeds 42 \\
        --models causal_small lrcn_small cnn cnn_padding                                       # on a CPU: a day
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --models finetune_small --start \\
        finetune_small=runs/pretrained                                                         # from trained weights
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --models finetune_next=finetune_next_small --start \\
        finetune_next=runs/pretrained_at_full_size --jobs 14 --extra --bf16                    # at full size, on a GPU
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --models causal_small --teachers \\
        causal_small=runs/accuracy/causal --extra --teacher_share 0.5                # from others' verdicts
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --models ensemble --members \\
        ensemble=runs/accuracy/causal ensemble=runs/accuracy/causal_small               # of models that were trained
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --report                      # of what has been run

Finished runs are not run again, and those that were stopped go on from their last epoch. Writes accuracy.json, .md and
.png; a cell says how many of the folds and seeds stand behind it. Intervals are 95 %, from resampling whole sessions.
What is reported of each run, its verdicts above all, is kept in accuracy_runs/, so that a model can be compared with
those that were trained on another machine, whose weights are gone. To forget one, delete its folder there and its row
of accuracy.json. Rows of models that are not asked for, or whose verdicts were never kept, stay as they are, without
differences to others.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.training_args import OptimizerNames

from experiments.intervals import FIGURES, Resampled, figures_by_lines, leads
from experiments.launch import LAST_EPOCH, Run, execute_all
from experiments.probabilities import PROBABILITIES_FILE, Probabilities
from experiments.release import FREE
from experiments.run_folder import SUMMARY_FILE, portable_recipe, read_recipe

from .pages import RESULTS, write

MODELS = ("causal", "lrcn", "cnn", "cnn_padding", "vit", "library_vit", "library_convnext")
SPLITS = ("random", "sessions")
NUM_FOLDS = 5
LINE_COUNTS = (5, 10, 20, 40, 64, 128)
# Gordon et al. 2020, random split, whole scans: (balanced accuracy, AUROC)
PUBLISHED = {"published CNN": (0.856, 0.963), "published LRCN": (0.847, 0.960)}
PUBLISHED_SCANS = 648
UNKNOWN = "unknown"
KEPT = "accuracy_runs"  # folder of what is kept of each run, in that of the results
TRAINING_FILE = "training.json"
console = Console()


@dataclass(frozen=True)
class Cell:
    """A model on a split: its runs, by seed and fold."""

    model: str
    split: str
    runs: dict[int, tuple[Run, ...]]


def name_and_recipe(model: str) -> tuple[str, str]:
    """Of `NAME=RECIPE`, or of a recipe that gives the model its name."""
    name, equals, recipe = model.partition("=")
    return (name, recipe) if equals else (Path(model).stem, model)


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """All runs that the comparison consists of."""
    cells = []
    for split in arguments.splits:
        for model in arguments.models:
            runs, (stem, recipe) = {}, name_and_recipe(model)
            for seed in arguments.seeds:
                common = ["--config", recipe, "--dataset", "hsi100", "--data_dir", arguments.data_dir]
                common += ["--seed", str(seed), "--split", split, *LAST_EPOCH, *arguments.extra]
                if stem in arguments.start:
                    common += ["--model_name_or_path", arguments.start[stem]]
                common += ["--eval_line_counts", *map(str, LINE_COUNTS), "--do_eval"]
                folds = range(NUM_FOLDS) if split == "sessions" else [None]
                planned = []
                for fold in folds:
                    name = f"{split}_seed{seed}" if fold is None else f"{split}_seed{seed}_fold{fold}"
                    of_split = ["--split_seed", str(seed)]
                    if fold is not None:
                        of_split = ["--split_seed", "0", "--num_folds", str(NUM_FOLDS), "--fold", str(fold)]
                    members, teachers = (
                        [str(Path(folder) / name) for model, folder in given if model == stem]
                        for given in (arguments.members, arguments.teachers)
                    )
                    # members bring their split
                    options = ["--members", *members] if members else [*of_split, "--do_train"]
                    options += ["--teachers", *teachers] if teachers else []
                    planned.append(Run(Path(arguments.work_dir) / stem / name, (*common, *options)))
                runs[seed] = tuple(planned)
            cells.append(Cell(stem, split, runs))
    return cells


def keep(folder: Path, kept: Path) -> None:
    """Copies what is reported of a run, and little else, from its folder."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in (SUMMARY_FILE, PROBABILITIES_FILE.format(part="validation")):
        shutil.copyfile(folder / name, kept / name)
    (kept / TRAINING_FILE).write_text(json.dumps(training_of(folder), indent=1) + "\n", encoding="utf-8")


def collect(cell: Cell, results: Path) -> dict[str, Any] | None:
    """
    The figures of a cell from those of its runs that have ended, here or before; `None` if none has.

    Raises:
        ValueError: for runs that were not trained in the same way.
    """
    verdicts: dict[int, Probabilities] = {}
    folds, summary, first = {}, None, Path()
    together: list[Path] = []
    folders = [run.folder for runs in cell.runs.values() for run in runs]
    here = [folder for folder in folders if (folder / SUMMARY_FILE).is_file()]
    kept_of = {folder: results / KEPT / cell.model / folder.name for folder in folders}
    for folder in here:
        keep(folder, kept_of[folder])
    for seed, runs in cell.runs.items():
        ended = []
        is_here = any(run.folder in here for run in runs)
        for number, run in enumerate(runs):
            kept = kept_of[run.folder]
            # of a training before, maybe by another recipe: never mixed with this one
            if here and run.folder not in here and kept.is_dir() and (is_here or unlike(kept, kept_of[here[0]])):
                shutil.rmtree(kept)
            if (kept / SUMMARY_FILE).is_file():
                ended.append((number, kept))
        if ended:
            verdicts[seed] = Probabilities.concatenate([Probabilities.load(kept) for _, kept in ended])
            folds[seed] = [number for number, _ in ended]
            together += [kept for _, kept in ended]
            first = ended[0][1]
            summary = json.loads((first / SUMMARY_FILE).read_text(encoding="utf-8"))
    machines = {
        json.dumps(json.loads((kept / SUMMARY_FILE).read_text(encoding="utf-8"))["machine"]) for kept in together
    }
    if summary is None:
        return None
    for kept in together:
        if names := unlike(first, kept):
            raise ValueError(
                f"{cell.model}, {cell.split}: {first.name} and {kept.name} were trained in other ways "
                f"({', '.join(names)}), and make no row together. Delete the one that is not wanted, here and in "
                f"{results / KEPT}."
            )
    training = json.loads((first / TRAINING_FILE).read_text(encoding="utf-8"))
    figures, resampled = figures_by_lines(list(verdicts.values()))
    return {
        "model": cell.model,
        "split": cell.split,
        "num_parameters": summary["num_parameters"],
        "epochs": summary["epochs"] + sum(member["epochs"] or 0 for member in summary.get("members", [])),
        **{name: value for name, value in training.items() if name != "recipe"},
        "folds_by_seed": folds,
        "num_scans": {seed: len(verdict.labels) for seed, verdict in verdicts.items()},
        "num_sessions": len(np.unique(np.concatenate([verdict.groups for verdict in verdicts.values()]))),
        "machines": [json.loads(text) for text in sorted(machines)],
        "figures": figures,
        "resampled": resampled,
        "verdicts": verdicts,
    }


def unlike(kept: Path, other: Path) -> list[str]:
    """In what two runs of a model were trained in other ways, as far as that was kept; empty where they are alike."""
    described = []
    for folder in (kept, other):
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        training = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
        own = {"epochs": summary["epochs"], "parameters": summary["num_parameters"]}
        described.append({**training.pop("recipe", {}), **training, **own})
    one, two = described
    return sorted(name for name in one.keys() & two.keys() if one[name] != two[name])


def earlier(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The figures as they were reported before, by model and split; without verdicts, so without differences."""
    path = results / "accuracy.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    return {(row["model"], row["split"]): row for row in rows}


def training_of(folder: Path) -> dict[str, Any]:
    """
    What else the models of a comparison differ in.

    Returns:
        `optimizer`; `start`, the dataset of the first weights; `rehearsed`, the number of simulated scans among the
        real ones; `teachers`, of how many models it has learned; `members`, of how many it was joined, in which case
        the rest is that of all of them, and `rehearsing_members` says how many had simulated scans; and `recipe`, what
        all runs of a row have in common.
    """
    recipe = read_recipe(folder)
    if recipe.get("members"):
        several = [training_of(Path(member)) for member in recipe["members"]]

        def together(name: str) -> str | None:
            given = {member[name] for member in several}
            return None if given == {None} else " and ".join(sorted(value or "nothing" for value in given))

        return {
            **{name: together(name) for name in ("optimizer", "start")},
            **{name: max(member[name] for member in several) for name in ("rehearsed", "teachers")},
            "rehearsing_members": sum(member["rehearsed"] > 0 for member in several),
            "members": len(several),
            "recipe": _compared(recipe) | {"members": [member["recipe"] for member in several]},
        }
    start = recipe.get("model_name_or_path")
    if start is not None:
        before = Path(start) / SUMMARY_FILE
        start = json.loads(before.read_text(encoding="utf-8"))["dataset"] if before.is_file() else UNKNOWN
    optimizer = recipe.get("optim", OptimizerNames.ADAMW_TORCH.value)
    return {
        "optimizer": optimizer.removesuffix("_fused").removesuffix("_torch"),
        "start": start,
        "rehearsed": recipe.get("rehearsal_scans") or 0,
        "teachers": len(recipe.get("teachers") or []),
        "members": 0,
        "recipe": _compared(recipe),
    }


def _compared(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe all runs of a row have in common."""
    return {name: value for name, value in portable_recipe(recipe).items() if name not in FREE}


def comparable(first: dict[str, Any], other: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The seeds of two models of a split whose verdicts are on the same scans; none if there are no such."""
    of_first, of_other = first["folds_by_seed"], other["folds_by_seed"]
    folds = [*of_first.values(), *of_other.values()]
    scans = {
        (name, seed): sorted(zip(verdict.scan_ids.tolist(), verdict.labels.tolist(), strict=True))
        for name, result in (("first", first), ("other", other))
        for seed, verdict in result["verdicts"].items()
    }
    if all(of_seed == folds[0] for of_seed in folds) and len({str(of_seed) for of_seed in scans.values()}) == 1:
        return list(of_first), list(of_other)  # the folds are fixed, whatever the seed
    common = [seed for seed in of_first if seed in of_other and scans["first", seed] == scans["other", seed]]
    return common, common


def figures_of(result: dict[str, Any], seeds: list[int]) -> tuple[dict[str, Any], Resampled]:
    """Figures and resampled means of some seeds of a model."""
    if seeds == list(result["folds_by_seed"]):
        return result["figures"], result["resampled"]
    return figures_by_lines([result["verdicts"][seed] for seed in seeds])


def compare(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far the first model is ahead of the others of the same split on the same scans, with intervals."""
    differences = []
    for split in SPLITS:
        of_split = [result for result in results if result["split"] == split]
        for other in of_split[1:]:
            first = of_split[0]
            if "resampled" not in first or "resampled" not in other:
                continue  # verdicts were not kept
            seeds, of_other = comparable(first, other)
            if not seeds:
                continue  # of other scans: no fair comparison
            models = {"split": split, "model": first["model"], "other": other["model"]}
            models |= {"seeds": seeds, "seeds_of_other": of_other}
            differences += [
                models | {"lines": lines, "figure": name, "ahead": ahead, "interval": low_high}
                for lines, name, ahead, low_high in leads(figures_of(first, seeds), figures_of(other, of_other))
            ]
    return differences


def folds_of(result: dict[str, Any]) -> str:
    """How many folds stand behind a row: of each seed, where they are not the same for all."""
    by_seed = result["folds_by_seed"]
    if len({json.dumps(folds) for folds in by_seed.values()}) == 1:
        return f"{len(next(iter(by_seed.values())))} of {NUM_FOLDS}"
    return " and ".join(f"{len(folds)} of {NUM_FOLDS} (seed {seed})" for seed, folds in by_seed.items())


def table_of(results: Sequence[dict[str, Any]], split: str) -> list[str]:
    """The figures of a split as a Markdown table."""
    of_split = [result for result in results if result["split"] == split]
    if not of_split:
        return []
    protocol = (
        "80/20 by scan, as published" if split == "random" else f"cross-validation over {NUM_FOLDS} folds of sessions"
    )
    lines = [
        f"### {split}: {protocol}",
        "",
        "Balanced accuracy / AUROC after so many lines; unanimous labels, complete scans, last epoch. Rehearsed: "
        "simulated scans among the real ones of training. Members: models that were trained one by one and joined; "
        "epochs are those of all of them.",
        "",
        "| model | parameters | members | first trained on | rehearsed | teachers | optimizer | epochs | seeds "
        "| folds | scans | " + " | ".join(map(str, LINE_COUNTS)) + " | whole scan, and its interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|" + "---|" * (len(LINE_COUNTS) + 1),
    ]
    for result in of_split:
        *cells, at_end = of_lines(result)
        whole = result["figures"]["whole"]
        intervals = ", ".join("{:.3f}–{:.3f}".format(*whole[name]["interval"]) for name in FIGURES)
        scans = " ".join(map(str, sorted(set(result["num_scans"].values()))))
        seeds = " ".join(map(str, result["folds_by_seed"]))
        of_all = "–" if split == "random" else folds_of(result)
        lines.append(
            f"| {result['model']} | {result['num_parameters']:,} | {result.get('members') or '–'} | "
            f"{result['start'] or '–'} | {result.get('rehearsed') or '–'} | {result['teachers'] or '–'} | "
            f"{result['optimizer']} | {result['epochs']:g} | {seeds} | {of_all} | {scans} | "
            f"{' | '.join(cells)} | {at_end} ({intervals}) |"
        )
    if split == "random":
        lines += [
            f"| {name} | | | | | | | | | | {PUBLISHED_SCANS} |{' |' * len(LINE_COUNTS)} {accuracy:.3f} / {area:.3f} |"
            for name, (accuracy, area) in PUBLISHED.items()
        ]
    return [*lines, ""]


def render(comparison: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [line for split in SPLITS for line in table_of(comparison["results"], split)]
    ahead = [entry for entry in comparison["differences"] if entry["lines"] in ("20", "whole")]
    if ahead:
        lines += ["### How far the first is ahead", "", "On the same scans, of the seeds that are named.", ""]
        lines += [
            "| split | of | seeds | its seeds | lines | figure | ahead | interval |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for entry in ahead:
            seeds, of_other = (" ".join(map(str, entry[name])) for name in ("seeds", "seeds_of_other"))
            lines.append(
                f"| {entry['split']} | {entry['other']} | {seeds} | {of_other} | {entry['lines']} | "
                f"{entry['figure'].replace('_', ' ')} | {entry['ahead']:+.3f} | "
                f"{entry['interval'][0]:+.3f} to {entry['interval'][1]:+.3f} |"
            )
    return "\n".join(lines).rstrip() + "\n"


def report(results: list[dict[str, Any]], folder: Path) -> None:
    """Writes the results as JSON, as tables, and as a figure."""
    kept = [
        {name: value for name, value in result.items() if name not in ("resampled", "verdicts")} for result in results
    ]
    write("accuracy", {"results": kept, "differences": compare(results)}, render, folder)
    draw(results).savefig(folder / "accuracy.png", dpi=120)
    for split in dict.fromkeys(result["split"] for result in results):
        console.print(overview(results, split))
    told = "with intervals, how the models were trained, and how far the first is ahead"
    console.print(f"Written to {folder}/accuracy.json, .md and .png, {told}.", markup=False, soft_wrap=True)


def overview(results: Sequence[dict[str, Any]], split: str) -> Table:
    """The figures alone, for a terminal of 80 characters."""
    title = f"{split}: balanced accuracy, AUROC below it, after so many lines"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for count in [*map(str, LINE_COUNTS), "whole"]:
        table.add_column(count, justify="right", no_wrap=True)
    for result in results:
        if result["split"] == split:
            table.add_row(Text(result["model"]), *(cell.replace(" / ", "\n") for cell in of_lines(result)))
    return table


def of_lines(result: dict[str, Any]) -> list[str]:
    """Balanced accuracy and AUROC after each number of lines, and on whole scans."""
    return [
        " / ".join(f"{result['figures'][key][name]['mean']:.3f}" for name in FIGURES)
        for key in [*map(str, LINE_COUNTS), "whole"]
    ]


def draw(results: Sequence[dict[str, Any]]) -> Figure:
    """Figures against lines: a row a split, a column a figure of merit."""
    splits = [split for split in SPLITS if any(result["split"] == split for result in results)]
    models = dict.fromkeys(result["model"] for result in results)
    colours = {model: f"C{number}" for number, model in enumerate(models)}
    figure = Figure(figsize=(11, 4 * len(splits)), layout="constrained")
    axes = figure.subplots(len(splits), len(FIGURES), squeeze=False)
    for row, split in zip(axes, splits, strict=True):
        for column, (axis, name) in enumerate(zip(row, FIGURES, strict=True)):
            for result in (result for result in results if result["split"] == split):
                values = [result["figures"][str(count)][name] for count in LINE_COUNTS]
                means = [value["mean"] for value in values]
                colour = colours[result["model"]]
                axis.plot(LINE_COUNTS, means, marker="o", color=colour, label=result["model"])
                low, high = zip(*(value["interval"] for value in values), strict=True)
                axis.fill_between(LINE_COUNTS, low, high, color=colour, alpha=0.12, linewidth=0)
            if split == "random":
                for published, style in zip(PUBLISHED, (":", "--"), strict=True):
                    axis.axhline(PUBLISHED[published][column], color="grey", linestyle=style, label=published)
            axis.set(xscale="log", xlabel="lines seen", ylabel=name.replace("_", " "), title=f"split: {split}")
            axis.set_xticks(LINE_COUNTS, [str(count) for count in LINE_COUNTS], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    curves = {
        label: line for axis in axes[:, 0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=5, fontsize="small")
    return figure


def _of_model(text: str) -> tuple[str, str]:
    model, equals, folder = text.partition("=")
    if not equals or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"expected MODEL=FOLDER, a folder that there is, got {text!r}")
    return model, folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of a clone of SPM-Toolbox")
    parser.add_argument("--work_dir", default="runs/accuracy", help="folder of the runs (runs/accuracy)")
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="RECIPE",
        help="recipes, ours first, or NAME=RECIPE where two models, as of two sizes, have the same one "
        f"({' '.join(MODELS)})",
    )
    parser.add_argument(
        "--start", nargs="+", type=_of_model, default=(), metavar="MODEL=FOLDER", help="weights to start a model from"
    )
    parser.add_argument(
        "--teachers",
        nargs="+",
        type=_of_model,
        default=(),
        metavar="MODEL=FOLDER",
        help="runs that a model learns from: the folder of another model in a work_dir, of which each split, seed and "
        "fold takes the one of its name; a model can have several",
    )
    parser.add_argument(
        "--members",
        nargs="+",
        type=_of_model,
        default=(),
        metavar="MODEL=FOLDER",
        help="runs that a model is joined of, likewise; nothing is trained",
    )
    parser.add_argument("--splits", nargs="+", default=SPLITS, choices=SPLITS, help="(both)")
    parser.add_argument("--seeds", nargs="+", type=int, default=(42, 43, 44), help="seeds of the runs (42 43 44)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    parser.add_argument("--report", action="store_true", help="run nothing, report what has been run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    parser.add_argument(
        "--extra", nargs=argparse.REMAINDER, default=[], help="last: options for every run, as --num_train_epochs 20"
    )
    arguments = parser.parse_args(argv)
    arguments.start = dict(arguments.start)
    models = {name_and_recipe(model)[0] for model in arguments.models}
    for option, named in (
        ("--start", arguments.start),
        ("--teachers", dict(arguments.teachers)),
        ("--members", dict(arguments.members)),
    ):
        if unknown := named.keys() - models:
            parser.error(f"{option} names {', '.join(unknown)}, which is not among --models.")
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}.")
    cells = plan(arguments)
    failures: list[str] = []
    if not arguments.report:
        # folds first: what is stopped early then has whole seeds
        runs = [run for seed in arguments.seeds for cell in cells for run in cell.runs[seed]]
        failures = execute_all(runs, arguments.jobs, console)
    collected: list[dict[str, Any] | None] = []
    for cell in cells:
        try:
            collected.append(collect(cell, arguments.results))
        except ValueError as error:
            failures.append(str(error))
            collected.append(None)
    if any(collected):
        rows: dict[tuple[str, str], dict[str, Any] | None] = {
            (cell.model, cell.split): result for cell, result in zip(cells, collected, strict=True)
        }
        for place, row in earlier(arguments.results).items():  # what was not asked for stays, behind what was
            rows[place] = rows.get(place) or row
        report([row for row in rows.values() if row is not None], arguments.results)
    else:
        failures.append("No run has ended: there is nothing to report.")
    for failure in failures:
        console.print(failure, style="red", highlight=False, markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
