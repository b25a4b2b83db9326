"""
How long the analyzer takes: 100 run folders of 50 epochs, fabricated, read by `python -m experiments.analyze`.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.analyze
    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.analyze --earlier   # checkpoint folders of the earlier project

The time is that of the whole process, imports included. With --keep the folders stay, to look at or to try the log on.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.probabilities import Probabilities
from experiments.run_folder import append_metrics, write_recipe, write_summary

NAMES = ("individual_atoms", "asymmetries_dimers", "rows", "generic_defect")
LINE_COUNTS = (5, 10, 20, 40, 64, 128)
RECIPE: dict[str, Any] = {
    "model": "causal", "dataset": "hsi100", "split": "sessions", "learning_rate": 1e-4, "weight_decay": 0.05,
    "class_weights": "balanced", "normalization": "line", "load_best_model_at_end": False, "num_train_epochs": 50,
    "per_device_train_batch_size": 32, "lr_scheduler_type": "cosine", "warmup_epochs": 5, "train_labels": "majority",
    "config_overrides": {"num_hidden_layers": 4, "hidden_size": 128},
}  # fmt: skip


def fabricated_verdict(skill: float, seed: int, num_scans: int = 500, num_sessions: int = 20) -> Probabilities:
    """What a model of some skill might say of always the same scans, better with more lines."""
    labels = np.random.default_rng(0).permutation(np.arange(num_scans) % len(NAMES))
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.3, 1, len(LINE_COUNTS) + 1)[:, None, None]
    scores = np.exp(2 * skill * ramp * np.eye(len(NAMES))[labels] + rng.standard_normal((7, num_scans, len(NAMES))))
    scores = (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32)
    return Probabilities(
        scan_ids=np.array([f"scan {number}" for number in range(num_scans)]),
        groups=np.array([f"session {number % num_sessions}" for number in range(num_scans)]),
        labels=labels,
        label_names=np.array(NAMES),
        line_counts=np.array(LINE_COUNTS),
        by_lines=scores[:-1],
        whole=scores[-1],
    )


def figures_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Figures as a summary has them, as far as the analyzer reads them."""
    predicted = probabilities.argmax(axis=1)
    matrix = np.bincount(labels * len(NAMES) + predicted, minlength=len(NAMES) ** 2).reshape(len(NAMES), -1)
    recalls = matrix.diagonal() / matrix.sum(axis=1)
    figures: dict[str, Any] = {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recalls.mean()),
        "auroc": 0.9,
        "expected_calibration_error": 0.05,
        "confusion_matrix": matrix.tolist(),
        "num_scans": len(labels),
    }
    for index, name in enumerate(NAMES):
        of_class = {"recall": recalls[index], "precision": 0.5, "f1": 0.5, "support": matrix[index].sum()}
        figures |= {f"{figure}_{name}": value.item() if hasattr(value, "item") else value
                    for figure, value in of_class.items()}  # fmt: skip
    return figures


def fabricate_run(folder: Path, epochs: int = 50, skill: float = 1.0, seed: int = 42, **options: Any) -> Path:
    """Leaves a run folder as a training would, without weights; validation loss turns after two thirds of it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    verdict = fabricated_verdict(skill, seed)
    verdict.save(folder)
    recipe = {**RECIPE, "seed": seed, "num_train_epochs": epochs, "output_dir": str(folder), **options}
    write_recipe(folder, recipe)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "scanline_causal", "id2label": dict(enumerate(NAMES)), "hidden_dropout_prob": 0.1})
    )
    whole = figures_of(verdict.whole, verdict.labels)
    by_lines = {
        str(count): figures_of(of_count, verdict.labels)
        for count, of_count in zip(LINE_COUNTS, verdict.by_lines, strict=True)
    }
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        validation = {name: value for name, value in whole.items() if isinstance(value, (int, float))}
        validation |= {f"{name}_at_{n}": of[name] for n, of in by_lines.items() for name in list(validation)[:4]}
        validation |= {"loss": 1 + (done - 0.66) ** 2 + 0.002 * rng.random(), "accuracy": 0.66 * done**0.3}
        training = {
            "loss": 1.4 - done,
            "accuracy": 0.3 + 0.53 * done,
            "balanced_accuracy": 0.83 * done,
            "seconds": 9.0,
        }
        append_metrics(
            folder, {"epoch": float(epoch), "step": 10 * epoch, "train": training, "validation": validation}
        )
    part = {"loss": 1.0, "whole": whole, "by_lines": by_lines}
    counts = dict.fromkeys(NAMES, 100)
    write_summary(
        folder,
        {
            "model_type": "scanline_causal", "num_parameters": 906_308, "dataset": "hsi100", "seed": seed,
            "split": {"method": "sessions", "seed": 0, "counts": {"train": counts, "validation": counts}},
            "labels": {"train": "majority", "scored": "unanimous"}, "epochs": float(epochs), "steps": 10 * epochs,
            "best_step": None, "machine": {"device": "CPU, 1 threads"}, "train": part, "validation": part,
        },
    )  # fmt: skip
    (folder / "split.json").write_text("{}")
    return folder


def fabricate_earlier(folder: Path, epochs: int = 50, batches: int = 60, seed: int = 0) -> Path:
    """Leaves a checkpoint folder as the earlier project did."""
    rng = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        for part, ceiling in (("train", 83.0), ("valid", 66.0)):
            of_epoch = folder / part / f"epoch-{epoch}"
            of_epoch.mkdir(parents=True)
            for name, value in (("Accuracy", ceiling * epoch / epochs), ("Loss", 1.6 - epoch / epochs)):
                lines = (
                    f"{value + spread},{32 if batch else 7}"
                    for batch, spread in enumerate(rng.normal(0, 0.01, batches))
                )
                (of_epoch / f"{name}.log").write_text("\n".join(lines) + "\n")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_runs", type=int, default=100, help="run folders (100)")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of each (50)")
    parser.add_argument("--earlier", action="store_true", help="checkpoint folders of the earlier project instead")
    parser.add_argument("--repeats", type=int, default=5, help="how often to measure (5)")
    parser.add_argument("--keep", type=Path, help="folder to fabricate them in, which stays")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: options of the analyzer")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary) / "runs"
        for number in range(arguments.num_runs):
            run = folder / f"decay{number // 3}_seed{number % 3}"
            if arguments.earlier:
                fabricate_earlier(run, arguments.epochs, seed=number)
            else:
                options = {"skill": 0.6 + 0.01 * (number // 3), "weight_decay": 0.001 * (number // 3)}
                fabricate_run(run, arguments.epochs, seed=number % 3, **options)
        command = [sys.executable, "-m", "experiments.analyze", str(folder), *arguments.options]
        seconds = []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
            seconds.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / arguments.repeats
    kind = "checkpoint" if arguments.earlier else "run"
    Console().print(
        f"{arguments.num_runs} {kind} folders of {arguments.epochs} epochs: {np.median(seconds):.2f} s (median of "
        f"{arguments.repeats}; {min(seconds):.2f} to {max(seconds):.2f} s), the processor's share {processor:.2f} s",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
