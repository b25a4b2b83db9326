"""
Where a model fails: streams scans whose state is known, and draws the worst it says of them, for its card.

    python -m experiments.failures model_cards/scanline-causal-hsi100                # on simulated scans
    python -m experiments.failures runs/20261123_101500                              # likewise
    python -m experiments.failures runs/20261123_101500 --dataset folder --data_dir scans/

Scans that the run was trained on are left out, and simulated ones come from another stream than those of training.
Writes failures.json and failures.png into the folder, and its card anew. The picture goes up with the folder when it
is published, so draw scans of your own only if others may see them.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import track

from data_scripts.command_line import parse_options, run_command
from data_scripts.scan_dataset import StoredLines
from data_scripts.source import ScanSource
from data_scripts.threads import one_thread
from live.picture import draw_scan
from live.records import to_record
from modeling_scanline.streaming_scanline import LineResult, ScanlineStreamer

from .card import write_card
from .lineage import lineage, seen_by
from .run_folder import FAILURES_FILE, FAILURES_PICTURE

TOLERANCE = 3  # lines, as everywhere
SIMULATION_SEED = 1009  # of a stream that no recipe trains on
COLUMNS = 2
COLOURS = 128  # of the picture: a tenth of the bytes
console = Console(markup=False)  # names may have brackets


@dataclass
class FailureSource(ScanSource):
    """Which scans; by default simulated ones."""

    num_scans: int = field(default=100, metadata={"help": "simulated, spliced: how many scans."})
    simulation_seed: int = field(default=SIMULATION_SEED, metadata={"help": "simulated, spliced: seed."})


@dataclass
class FailureArguments:
    """Of which model."""

    folder: str = field(metadata={"help": "A run, or a released model."})
    max_scans: int = field(default=400, metadata={"help": "Stream so many scans at most, drawn at random."})


@dataclass(frozen=True)
class Streamed:
    """A scan with what is known of it, and what was said of it line by line."""

    scan_id: str
    lines: np.ndarray
    label: str
    changes: list[int]
    results: list[LineResult]

    @property
    def found(self) -> list[int]:
        """First lines of new tips, as found."""
        return [result.change_line for result in self.results if result.change_line is not None]

    @property
    def pairs(self) -> dict[int, int]:
        """What was found of which change: each at most once, in the order of the lines, as the metric pairs them."""
        pairs: dict[int, int] = {}
        for found in self.found:
            left = (line for line in sorted(self.changes) if line not in pairs.values())
            if (near := next((line for line in left if abs(line - found) <= TOLERANCE), None)) is not None:
                pairs[found] = near
        return pairs

    @property
    def missed(self) -> list[int]:
        """First lines of new tips that were not found."""
        return sorted(set(self.changes) - set(self.pairs.values()))

    @property
    def false_alarms(self) -> list[int]:
        """What was found where there is none, or one that was found before."""
        return [found for found in self.found if found not in self.pairs]

    def change_probability(self, line: int, within: int = TOLERANCE) -> float:
        """The largest that was given when the lines of a new tip that begins near `line` had come."""
        near = self.results[line : line + 4 * within]
        return max((result.change_probability or 0.0 for result in near), default=0.0)

    @property
    def verdict(self) -> tuple[str, float] | None:
        """The state said in the end, and its probability; `None` if nothing was measured."""
        last = self.results[-1]
        return (last.state, max(last.probabilities)) if last.state and last.probabilities else None

    @property
    def is_wrong(self) -> bool:
        """Whether the state said in the end is another; a tip that changed has more than one, and is left out."""
        return self.verdict is not None and not self.changes and self.verdict[0] != self.label


def choose_scans(folder: Path, scans: datasets.Dataset, source: ScanSource, max_scans: int) -> np.ndarray:
    """
    Places of labelled scans that the model of a folder has not seen.

    Raises:
        ValueError: if it was trained on all of them.
    """
    chosen = np.asarray(scans["label"]) >= 0
    scan_ids = list(scans["scan_id"])
    for run in lineage(folder):
        chosen &= ~np.isin(scan_ids, seen_by(run, source.dataset, scan_ids))
    if not chosen.any():
        raise ValueError(f"{folder}: has seen every labelled scan of this dataset in training; give others.")
    places = np.flatnonzero(chosen)
    return np.sort(np.random.default_rng(0).permutation(places)[:max_scans])


def stream(streamer: ScanlineStreamer, scans: datasets.Dataset, places: np.ndarray, max_lines: int) -> list[Streamed]:
    """Streams scans of a dataset, one after the other."""
    stored, names = StoredLines(scans, max_lines), scans.features["label"].names
    streamed = []
    for place in track(places.tolist(), "streaming", console=console, transient=True):
        row = scans.select_columns(["scan_id", "label", "change_lines"])[place]
        lines = stored[place][0, : stored.num_stored[place]].numpy()
        streamer.reset()
        changes = [line for line in row["change_lines"] or [] if line < len(lines)]
        results = streamer.update_many(lines)
        streamed.append(Streamed(row["scan_id"], lines, names[row["label"]], changes, results))
    return streamed


def choose_worst(streamed: Sequence[Streamed], labels: Sequence[str]) -> list[tuple[Streamed, str]]:
    """
    The worst of each kind, with a sentence on each: the surest wrong state for each label, the tip change that was
    farthest from being found, and the surest change where there was none.
    """
    worst = []
    for label in labels:
        wrong = [scan for scan in streamed if scan.is_wrong and scan.label == label]
        if wrong:
            scan = max(wrong, key=lambda scan: scan.verdict[1] if scan.verdict else 0)
            assert scan.verdict is not None
            said, probability = scan.verdict
            worst.append((scan, f"{label}, in the end taken for {said} (probability {probability:.2f})"))
    missed = [(scan, line) for scan in streamed for line in scan.missed]
    if missed:
        scan, line = min(missed, key=lambda pair: pair[0].change_probability(pair[1]))
        worst.append((scan, f"the tip changed at line {line}, which was not found"))
    alarms = [(scan, line) for scan in streamed for line in scan.false_alarms]
    if alarms:
        scan, line = max(alarms, key=lambda pair: pair[0].change_probability(pair[1]))
        worst.append((scan, f"{scan.label}, with a tip change found at line {line} where there was none"))
    return worst


def draw(worst: Sequence[tuple[Streamed, str]], labels: Sequence[str]) -> Figure:
    """The worst scans, each beside what was said of it."""
    num_rows = -(-len(worst) // COLUMNS)
    figure = Figure(figsize=(9 * COLUMNS, 5 * num_rows), layout="constrained")
    for number, (part, (scan, says)) in enumerate(
        zip(figure.subfigures(num_rows, COLUMNS, squeeze=False).ravel(), worst, strict=False), start=1
    ):
        records = [to_record(result, labels) for result in scan.results]
        draw_scan(part, scan.lines, records, labels, f"{number}. {says}")
    return figure


def save_small(figure: Figure, path: Path) -> None:
    """Writes a picture with few colours."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def find_failures(source: ScanSource, arguments: FailureArguments) -> dict[str, Any]:
    """
    Streams, counts, draws, and writes it all into the folder.

    Returns:
        What `failures.json` holds.

    Raises:
        ScanReadError: if the scans cannot be read.
        ValueError: for a model without a verdict at every line, other states than those of the dataset, or scans that
            it has all seen.
        OSError: if the folder holds no model, or no results.
    """
    folder = Path(arguments.folder)
    streamer = ScanlineStreamer.from_pretrained(folder)
    labels = list(streamer.model.config.id2label.values())
    scans = source.load(flatten=streamer.processor.normalization == "flat_line")
    names = scans.features["label"].names
    if sorted(names) != sorted(labels):
        raise ValueError(
            f"{folder}: tells {', '.join(labels)}, and the scans of --dataset {source.dataset} are of "
            f"{', '.join(names)}: give --dataset and --data_dir of scans of its classes."
        )
    places = choose_scans(folder, scans, source, arguments.max_scans)
    with one_thread():
        streamed = stream(streamer, scans, places, source.max_lines)
    worst = choose_worst(streamed, labels)
    if not worst:
        console.print(f"{folder}: makes no mistake on these {len(streamed)} scans; give more to see any.")
        for stale in (FAILURES_FILE, FAILURES_PICTURE):
            (folder / stale).unlink(missing_ok=True)
        write_card(folder)
        return {}
    simulated = source.dataset == "simulated"
    failures = {
        "dataset": source.dataset,
        "simulated": simulated,
        "scans": (
            f"simulated scans of {source.simulation_surface} (seed {source.simulation_seed})"
            if simulated
            else f"scans of {source.dataset} that it was not trained on"
        ),
        "num_scans": len(streamed),
        "tolerance": TOLERANCE,
        "judged": sum(scan.verdict is not None and not scan.changes for scan in streamed),
        "wrong": sum(scan.is_wrong for scan in streamed),
        "changes": sum(len(scan.changes) for scan in streamed),
        "missed": sum(len(scan.missed) for scan in streamed),
        "false_alarms": sum(len(scan.false_alarms) for scan in streamed),
        "panels": [f"{scan.scan_id}: {says}." for scan, says in worst],
    }
    save_small(draw(worst, labels), folder / FAILURES_PICTURE)
    (folder / FAILURES_FILE).write_text(json.dumps(failures, indent=1) + "\n", encoding="utf-8")
    write_card(folder)
    console.print(
        f"{len(streamed)} {failures['scans']}: of the {failures['judged']} whose tip did not change, the state of "
        f"{failures['wrong']} was wrong in the end, "
        f"{failures['missed']} of {failures['changes']} tip changes were missed, {failures['false_alarms']} found "
        f"where there was none. The worst are in {folder / FAILURES_PICTURE} and in the card.",
    )
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):  # the folder may stand alone
        argv = ["--folder", *argv]
    source, arguments = parse_options([FailureSource, FailureArguments], "experiments.failures", __doc__, argv)
    return run_command(lambda: find_failures(source, arguments))


if __name__ == "__main__":
    raise SystemExit(main())
