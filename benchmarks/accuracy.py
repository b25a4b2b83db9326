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
from rich.console import Console
from transformers.training_args import OptimizerNames

from experiments.intervals import Resampled, figures_by_lines, leads
from experiments.launch import LAST_EPOCH, Run, execute_all
from experiments.probabilities import PROBABILITIES_FILE, Probabilities
from experiments.release import FREE
from experiments.run_folder import SUMMARY_FILE, portable_recipe, read_recipe

from .accuracy_report import LINE_COUNTS, NUM_FOLDS, SPLITS, draw, overview, render
from .pages import RESULTS, write

MODELS = ("causal", "lrcn", "cnn", "cnn_padding", "vit", "library_vit", "library_convnext")
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
    folds: dict[int, list[int]] = {}
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
    if not together:
        return None
    for kept in together[1:]:
        if names := unlike(together[0], kept):
            raise ValueError(
                f"{cell.model}, {cell.split}: {together[0].name} and {kept.name} were trained in other ways "
                f"({', '.join(names)}), and make no row together. Delete the one that is not wanted, here and in "
                f"{results / KEPT}."
            )
    summaries = [json.loads((kept / SUMMARY_FILE).read_text(encoding="utf-8")) for kept in together]
    machines = {json.dumps(of_run["machine"]) for of_run in summaries}
    summary, training = summaries[0], json.loads((together[0] / TRAINING_FILE).read_text(encoding="utf-8"))
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
    of_first, of_other = (
        {
            seed: dict(zip(verdict.scan_ids.tolist(), verdict.labels.tolist(), strict=True))
            for seed, verdict in result["verdicts"].items()
        }
        for result in (first, other)
    )
    every = [*of_first.values(), *of_other.values()]
    if all(scans == every[0] for scans in every):  # as folds of sessions, which are fixed, whatever the seed
        return list(of_first), list(of_other)
    common = [seed for seed in of_first if of_first[seed] == of_other.get(seed)]
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
