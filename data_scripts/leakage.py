"""Reports near-duplicates across the sides of a split: `python -m data_scripts.leakage --help`."""

import json
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .command_line import parse_options, run_command
from .near_duplicates import (
    THRESHOLD,
    TRANSFORMATIONS,
    NearDuplicates,
    across_sides,
    equalize,
    find_near_duplicates,
    keep_together,
    undo_transform,
)
from .scan_dataset import lines_of
from .source import ScanSource
from .splits import TRAINING_METHODS, Split, groups_of, split_labelled

REPORT_FILE, PICTURE_FILE, SPLIT_FILE = "leakage.json", "leakage.png", "split.json"
METHOD = "ranks, flattened spectrum, correlation at the best of 8 symmetries and small shifts"

DESCRIPTION = """Finds scans of which a near-duplicate stands on another side of a split.

A near-duplicate may be mirrored or turned by 90 degrees, shifted by a few pixels, of other contrast, and noisier. A
model that was trained on one and is scored on the other is scored on what it has seen.

  the split of a run             python -m data_scripts.leakage --dataset hsi100 --data_dir path/to/SPM-Toolbox \\
                                   --split_file runs/20261123_101500/split.json
  a split before any run         ... --dataset folder --data_dir scans/ --split random --split_seed 0
  one without leakage            ... --dataset folder --data_dir scans/ --dedupe --output_dir leakage
                                 python run_classification.py ... --split_file leakage/split.json

Written to --output_dir: leakage.json (all counts, and every pair across sides), leakage.png (the worst pairs, the
second turned back onto the first: look at them before you believe a number), and with --dedupe split.json.
"""


@dataclass
class LeakageArguments:
    """What to report."""

    split_file: str | None = field(
        default=None, metadata={"help": "split.json of a run. Without it, a split is made with the next options."}
    )
    split: str = field(
        default="sessions",
        metadata={"help": "How to split: whole sessions, or single scans.", "choices": list(TRAINING_METHODS)},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split."})
    validation_fraction: float = field(default=0.2, metadata={"help": "Share of the scans to validate on."})
    test_fraction: float = field(default=0.0, metadata={"help": "Share of the scans to keep for one last test."})
    dedupe: bool = field(
        default=False,
        metadata={
            "help": "Make the split so that near-duplicates are on one side: sessions that share some count as one "
            "(split=sessions), or they stay together (split=random). Writes split.json."
        },
    )
    threshold: float = field(
        default=THRESHOLD, metadata={"help": "Least similarity of near-duplicates, from 0 to 1 (the same scan)."}
    )
    num_pictures: int = field(default=12, metadata={"help": "How many of the worst pairs to draw."})
    output_dir: str = field(default="leakage", metadata={"help": "Folder to write the report to."})


def find_split(arguments: LeakageArguments, dataset: str, scans: datasets.Dataset, pairs: np.ndarray) -> Split:
    """
    The split of the split file, or a new one of the labelled scans.

    Args:
        arguments: which split.
        dataset: name of the dataset.
        scans: with the columns of `scan_features`.
        pairs: near-duplicates to keep on one side with `dedupe`, int64 `[num_pairs, 2]`.

    Raises:
        ValueError: if the split file cannot be read, or the scans cannot be split so.
    """
    if arguments.split_file is not None:
        if arguments.dedupe:
            raise ValueError("--dedupe makes a new split: leave --split_file out.")
        return Split.load(Path(arguments.split_file))
    scan_ids = np.asarray(scans["scan_id"], dtype=str)
    groups, method = groups_of(scans["session"], scan_ids), arguments.split
    labels, names = np.asarray(scans["label"]), scans.features["label"].names
    kept_together, how = keep_together(method, groups, scan_ids, pairs) if arguments.dedupe else (groups, method)
    fractions = arguments.validation_fraction, arguments.test_fraction
    parts = split_labelled(labels, kept_together, how, *fractions, arguments.split_seed, label_names=names)
    counts = {name: np.bincount(labels[part], minlength=len(names)).tolist() for name, part in parts.items()}
    return Split.of(
        parts,
        scan_ids,
        groups,
        counts={name: dict(zip(names, count, strict=True)) for name, count in counts.items()},
        method=method,
        seed=arguments.split_seed,
        dataset=dataset,
    )


def write_picture(
    path: Path,
    lines: torch.Tensor,
    found: NearDuplicates,
    chosen: Sequence[int],
    scan_ids: Sequence[str],
    sides: dict[int, str],
) -> None:
    """
    Draws pairs side by side as they are compared (ranks, without tilt), the second turned back onto the first.

    Args:
        path: of the picture, `.png`.
        lines: heights `[num_scans, num_lines, pixels]`.
        found: near-duplicates.
        chosen: which of them to draw, at least one.
        scan_ids: of all scans.
        sides: name of the part of each scan that is in one.
    """
    # slow to import, and of no use to those who only want numbers
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3 if len(chosen) > 4 else 1
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for (left, right), place in zip(axes, chosen, strict=False):
        first, second = found.pairs[place]
        transformation = int(found.transformations[place])
        pictures = equalize(lines[[first, second]])
        pictures[lines[[first, second]].isnan()] = torch.nan
        how = f"similarity {found.similarity[place]:.3f}, {TRANSFORMATIONS[transformation]}"
        for axis, picture, scan, note in (
            (left, pictures[0], first, ""),
            (right, undo_transform(pictures[1], transformation), second, how),
        ):
            axis.imshow(picture.numpy(), cmap="gray", vmin=-0.5, vmax=0.5, interpolation="nearest")
            title = "\n".join(textwrap.wrap(scan_ids[scan], 40)[-2:])
            side = sides.get(int(scan), "in no part")
            axis.set_title(f"{title}\n{side}", fontsize=6, parse_math=False)  # dollars are part of a name
            axis.set_xlabel(note, fontsize=7)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[len(chosen) :].ravel():
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def write_report(arguments: LeakageArguments, source: ScanSource, console: Console) -> dict[str, Any]:
    """
    Finds near-duplicates, prints a table and writes the report.

    Raises:
        ValueError: for scans or a split that cannot be read or made.
        OSError: if the report cannot be written.
    """
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    scans = source.load()
    scan_ids = [str(scan_id) for scan_id in scans["scan_id"]]
    # what cannot be split is told before the work
    split = find_split(arguments, source.dataset, scans, np.empty((0, 2), np.int64))
    parts = split.indices(scan_ids)
    lines = lines_of(scans, source.max_lines)
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"comparing {len(lines)} scans", total=1.0)
        found = find_near_duplicates(lines, arguments.threshold, lambda share: progress.update(task, completed=share))
    seconds = time.perf_counter() - started

    if arguments.dedupe:
        split = find_split(arguments, source.dataset, scans, found.pairs)
        parts = split.indices(scan_ids)
        split.save(output_dir / SPLIT_FILE)
    across = across_sides(found.pairs, parts)
    sides = {int(scan): name for name, part in parts.items() for scan in part}
    worst = sorted(place for places in across.values() for place in places.tolist())  # the most similar come first
    report = {
        "dataset": source.dataset,
        "split_file": arguments.split_file,
        "split": split.method,
        "split_seed": split.seed,
        "dedupe": arguments.dedupe,
        "method": METHOD,
        "threshold": arguments.threshold,
        "seconds": round(seconds, 2),
        "num_scans": len(lines),
        "num_not_compared": int((~found.compared).sum()),
        "scans": {name: len(part) for name, part in parts.items()},
        "num_pairs": len(found),
        "num_pairs_across": len(worst),
        "num_pairs_by_parts": _count_by_parts(found.pairs, parts, across),
        "pairs_across": [_describe(found, place, scan_ids, sides) for place in worst],
    }
    (output_dir / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    picture = output_dir / PICTURE_FILE
    picture.unlink(missing_ok=True)  # of an earlier report
    others = sorted(set(range(len(found))) - set(worst))
    drawn = (worst + others)[: arguments.num_pictures]
    if drawn:
        write_picture(picture, lines, found, drawn, scan_ids, sides)
    _print_report(report, output_dir, console)
    return report


def _count_by_parts(
    pairs: np.ndarray, parts: dict[str, np.ndarray], across: dict[tuple[str, str], np.ndarray]
) -> dict[str, int]:
    counts = {}
    for first, second in combinations_with_replacement(parts, 2):
        if first == second:
            counts[f"within {first}"] = int(np.isin(pairs, parts[first]).all(axis=1).sum())
        else:
            counts[f"{first} and {second}"] = len(across[first, second])
    counts["with a scan in no part"] = len(pairs) - sum(counts.values())
    return counts


def _describe(found: NearDuplicates, place: int, scan_ids: list[str], sides: dict[int, str]) -> dict[str, Any]:
    first, second = (int(scan) for scan in found.pairs[place])
    return {
        "scan_ids": [scan_ids[first], scan_ids[second]],
        "parts": [sides[first], sides[second]],
        "similarity": round(float(found.similarity[place]), 4),
        "transformation": TRANSFORMATIONS[found.transformations[place]],
    }


def _print_report(report: dict[str, Any], output_dir: Path, console: Console) -> None:
    table = Table(title=f"Near-duplicates among {report['num_scans']} scans, similarity ≥ {report['threshold']:g}")
    table.add_column("where")
    table.add_column("pairs", justify="right")
    for name, count in report["num_pairs_by_parts"].items():
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("across sides", str(report["num_pairs_across"]), style="bold red" if report["pairs_across"] else "")
    table.add_row("in all", str(report["num_pairs"]))
    console.print(table)
    if report["num_not_compared"]:
        console.print(
            f"{report['num_not_compared']} scans have too few lines, or one height nearly everywhere: not compared."
        )
    if report["pairs_across"] and not report["dedupe"]:
        console.print("--dedupe makes a split that keeps near-duplicates on one side.")
    console.print(f"{report['seconds']:.1f} s; report in {output_dir}", soft_wrap=True, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    source, arguments = parse_options([ScanSource, LeakageArguments], "data_scripts.leakage", DESCRIPTION, argv)
    return run_command(lambda: write_report(arguments, source, Console()))


if __name__ == "__main__":
    sys.exit(main())
