"""
Draws a dataset: a contact sheet with a class a row, and prints how many scans each class has by part and session.

    python -m data_scripts.look --dataset hsi100 --data_dir path/to/SPM-Toolbox --output_file sheet.png
    python -m data_scripts.look --dataset simulated --num_scans 400 --columns 12
    python -m data_scripts.look --dataset hsi100 --data_dir path/to/SPM-Toolbox --beside_simulated
    python -m data_scripts.look --dataset folder --data_dir scans/ --split_file runs/20261123_101500/split.json
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modeling_scanline.image_processing_scanline import NORMALIZATIONS, normalize_lines

from .command_line import parse_options, run_command
from .scan_dataset import LONGEST, StoredLines
from .source import ScanSource
from .splits import Split

console = Console()
MAX_SESSIONS = 40  # rows of the table


@dataclass
class LookArguments:
    """What to draw."""

    output_file: str = field(default="contact_sheet.png", metadata={"help": "Picture to write (.png, .svg or .pdf)."})
    columns: int = field(default=10, metadata={"help": "Scans of each class."})
    seed: int = field(default=0, metadata={"help": "Which scans: drawn at random."})
    normalization: str = field(
        default="line",
        metadata={"help": "How heights are made flat: of each line, of the scan as a whole, or not.",
                  "choices": list(NORMALIZATIONS)},
    )  # fmt: skip
    split_file: str | None = field(default=None, metadata={"help": "A run's split.json: also count by its parts."})
    beside_simulated: bool = field(
        default=False, metadata={"help": "Below each class, draw simulated scans of the same name."}
    )
    unlabelled: bool = field(default=False, metadata={"help": "Add a row of scans that nobody has labelled."})


def draw_contact_sheet(
    scans: datasets.Dataset, arguments: LookArguments, simulated: datasets.Dataset | None = None
) -> Figure:
    """
    Draws scans drawn at random, a class a row, with their names and sizes.

    Args:
        scans: with the columns of `scan_features`.
        arguments: how many, and how.
        simulated: scans to draw below those of the same class.
    """
    rng = np.random.default_rng(arguments.seed)
    rows: list[tuple[str, datasets.Dataset, np.ndarray]] = []
    for label, name in enumerate(scans.features["label"].names):
        rows.append((name, scans, np.flatnonzero(np.asarray(scans["label"]) == label)))
        if simulated is not None and name in simulated.features["label"].names:
            same = np.asarray(simulated["label"]) == simulated.features["label"].str2int(name)
            rows.append((f"{name}, simulated", simulated, np.flatnonzero(same)))
    if arguments.unlabelled:
        rows.append(("unlabelled", scans, np.flatnonzero(np.asarray(scans["label"]) < 0)))
    figure = Figure(figsize=(1.5 * arguments.columns, 1.8 * len(rows)), layout="constrained")
    axes = empty_axes(figure, len(rows), arguments.columns)
    for row, (name, source, candidates) in zip(axes, rows, strict=True):
        stored, scan_ids = StoredLines(source, LONGEST), source["scan_id"]
        chosen = np.sort(rng.permutation(candidates)[: arguments.columns])
        row[0].set_ylabel(f"{name}\n{len(candidates)} scans", fontsize=8, parse_math=False)
        for axis, index in zip(row, chosen, strict=False):
            size = f"{stored.num_stored[index]} x {stored.pixels_per_line}"
            draw_scan(axis, stored, int(index), arguments.normalization, f"{scan_ids[int(index)][-22:]}\n{size}")
    return figure


def draw_scan(axis: Axes, stored: StoredLines, index: int, normalization: str, title: str) -> None:
    """Draws one scan in grey from its 1st to its 99th percentile; lines that were not measured stay open."""
    lines = stored.first_lines(int(stored.num_stored[index]))[[index]]
    values, mask = normalize_lines(lines, normalization)
    picture = np.ma.masked_array(values[0], np.broadcast_to(mask[0, :, None] == 0, values[0].shape))
    low, high = np.percentile(picture.compressed(), [1, 99]) if picture.count() else (0, 1)
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=5, parse_math=False)  # dollars are part of a name


def empty_axes(figure: Figure, num_rows: int, num_columns: int) -> np.ndarray:
    """Places for scans, without frames, `[num_rows, num_columns]`."""
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    return axes


def print_counts(scans: datasets.Dataset, split: Split | None) -> None:
    """Prints how many scans each class has, in all, by part of a split, and by session."""
    names = [*scans.features["label"].names, "unlabelled"]
    labels = np.asarray(scans["label"])
    table = Table(title=f"{len(scans)} scans")
    table.add_column("", no_wrap=True)
    for heading in (*names, "all"):
        table.add_column(escape(heading), justify="right", overflow="fold")

    def add(title: str, chosen: np.ndarray) -> None:
        counts = [int((chosen & (labels == label)).sum()) for label in [*range(len(names) - 1), -1]]
        table.add_row(escape(title), *map(str, counts), str(int(chosen.sum())))

    add("all", np.ones(len(scans), dtype=bool))
    if split is not None:
        table.add_section()
        scan_ids = np.asarray(scans["scan_id"])
        for part, ids in split.parts.items():
            add(part, np.isin(scan_ids, ids))
    table.add_section()
    sessions = np.array([session or "unknown" for session in scans["session"]])
    known = sorted(set(sessions))
    part_of = {session: part for part, of_part in (split.sessions if split else {}).items() for session in of_part}
    for session in known[:MAX_SESSIONS]:
        add(f"{session} ({part_of[session]})" if session in part_of else session, sessions == session)
    if len(known) > MAX_SESSIONS:
        table.add_row(f"and {len(known) - MAX_SESSIONS} more sessions")
    console.print(table)


def look(source: ScanSource, arguments: LookArguments) -> Path:
    """Draws the contact sheet and prints the counts; returns the picture's path."""
    if arguments.columns < 1:
        raise ValueError(f"columns must be at least 1, got {arguments.columns}.")
    scans = source.load()
    split = Split.load(Path(arguments.split_file)) if arguments.split_file else None
    print_counts(scans, split)
    path = Path(arguments.output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    simulated = None
    if arguments.beside_simulated:
        # as many of each class as there are columns, near enough
        simulated = replace(source, dataset="simulated", data_dir=None, num_scans=8 * arguments.columns).load()
    draw_contact_sheet(scans, arguments, simulated).savefig(path, dpi=150)
    console.print(f"Contact sheet: {path}", markup=False, soft_wrap=True)
    return path


def main(argv: list[str] | None = None) -> int:
    """The command."""
    source, arguments = parse_options([ScanSource, LookArguments], "data_scripts.look", __doc__, argv)
    return run_command(lambda: look(source, arguments))


if __name__ == "__main__":
    sys.exit(main())
