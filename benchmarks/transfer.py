"""
What pre-training on simulated scans is worth on real ones.

A model is trained on simulated scans only and scored on the real validation part (no real label used). Then models are
trained on a share of the real training labels, in as many epochs once from that model, with the learning rate of
fine-tuning, and once from nothing, with that of the recipe; everything else is the same.

    python -m benchmarks.transfer --data_dir path/to/SPM-Toolbox --work_dir runs/transfer

Finished runs are not run again. Writes transfer.json, .md and .png. Scores are of the last epoch, whole sessions
are held out, and nothing is chosen on the validation part.
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from experiments.launch import LAST_EPOCH, Run

from .pages import RESULTS, write

# share of the training labels: epochs, so that few scans get more steps each, and many scans more steps in all
SHARES = {0.01: 40, 0.05: 25, 0.2: 12, 1.0: 5}
FIGURES = ("balanced_accuracy", "auroc")
STARTS = ("nothing", "simulation")
console = Console()


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs `run_classification.py` into a folder, unless it has, and returns its summary."""
    try:
        return Run(folder, arguments).execute()
    except (RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error


def validation_of(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of whole scans on the validation part."""
    return {name: summary["validation"]["whole"][name] for name in FIGURES}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs what has not been run."""
    work = Path(arguments.work_dir)
    real = ["--dataset", "hsi100", "--data_dir", arguments.data_dir]
    recipe = ["--config", arguments.recipe, "--seed", str(arguments.seed)]
    with Progress(console=console) as progress:
        task = progress.add_task("runs", total=2 + 2 * len(SHARES))
        simulated = run(
            work / "simulated",
            *recipe,
            *("--dataset", "simulated", "--num_scans", str(arguments.num_scans)),
            *("--num_train_epochs", str(arguments.pretraining_epochs)),
        )
        progress.advance(task)
        unseen = run(work / "unseen", "--do_eval", "--model_name_or_path", str(work / "simulated"), *real)
        progress.advance(task)
        rows = []
        for share, epochs in SHARES.items():
            row: dict[str, Any] = {"share": share, "epochs": epochs}
            for start, begin in (("nothing", []), ("simulation", ["--model_name_or_path", str(work / "simulated")])):
                rate = ["--learning_rate", str(arguments.learning_rate)] if begin else []
                length = ["--num_train_epochs", str(epochs), "--warmup_epochs", str(0.1 * epochs)]
                name = f"{start}_{share:g}"
                summary = run(
                    work / name, *recipe, *real, "--train_fraction", str(share), *length, *rate, *begin, *LAST_EPOCH
                )
                row["scans"] = sum(summary["split"]["counts"]["train"].values())
                row[start] = validation_of(summary)
                progress.advance(task)
            rows.append(row)
    return {
        "recipe": arguments.recipe,
        "seed": arguments.seed,
        "split": unseen["split"],
        "labels": unseen["labels"],
        "simulated_scans": arguments.num_scans,
        "pretraining_epochs": arguments.pretraining_epochs,
        "fine_tuning_learning_rate": arguments.learning_rate,
        "machine": unseen["machine"],
        "simulated_validation": validation_of(simulated),
        "no_real_label": validation_of(unseen),
        "rows": rows,
    }


def render(result: dict[str, Any]) -> str:
    """The results as a page."""
    scans = sum(result["split"]["counts"]["validation"].values())
    lines = [
        f"Balanced accuracy / AUROC on {scans} real scans (split by {result['split']['method']}, seed "
        f"{result['split']['seed']}; {result['labels']['scored']} labels, complete scans; seed {result['seed']}), "
        f"recipe `{result['recipe']}`, last epoch. Pre-training: {result['simulated_scans']} simulated scans, "
        f"{result['pretraining_epochs']} epochs. From there on a learning rate of "
        f"{result['fine_tuning_learning_rate']:g}, from nothing that of the recipe.",
        "",
        "| real labels | scans | epochs | from nothing | from simulation |",
        "|---|---|---|---|---|",
        "| none | 0 | – | – | {balanced_accuracy:.3f} / {auroc:.3f} |".format(**result["no_real_label"]),
    ]
    for row in result["rows"]:
        cells = [f"{row[start]['balanced_accuracy']:.3f} / {row[start]['auroc']:.3f}" for start in STARTS]
        lines.append(f"| {row['share']:.0%} | {row['scans']} | {row['epochs']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any]) -> Figure:
    """Figures against real scans trained on: a column a figure of merit."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), FIGURES, strict=True):
        for start in STARTS:
            axis.plot(
                [row["scans"] for row in result["rows"]],
                [row[start][name] for row in result["rows"]],
                marker="o",
                label=f"from {start}",
            )
        axis.axhline(result["no_real_label"][name], color="grey", linestyle=":", label="simulation only")
        axis.set(xscale="log", xlabel="real scans trained on", ylabel=name.replace("_", " "))
        axis.legend()
    return figure


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of a clone of SPM-Toolbox")
    parser.add_argument("--work_dir", default="runs/transfer", help="folder of the runs (runs/transfer)")
    parser.add_argument("--recipe", default="causal_small", help="recipe of all runs (causal_small)")
    parser.add_argument("--num_scans", type=int, default=5000, help="simulated scans (5000)")
    parser.add_argument("--pretraining_epochs", type=int, default=3, help="epochs on them (3)")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of fine-tuning (5e-4)")
    parser.add_argument("--seed", type=int, default=42, help="of all runs (42)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    result = measure(arguments)
    console.print(write("transfer", result, render, arguments.results))
    draw(result).savefig(arguments.results / "transfer.png", dpi=120)


if __name__ == "__main__":
    main()
