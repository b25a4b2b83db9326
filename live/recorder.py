"""What is said of one scan while its lines come: on the terminal, in a file line by line, and as a picture."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from data_scripts.readers import DRAWN
from modeling_scanline.streaming_scanline import ScanlineStreamer

from .picture import PICTURE_SIZE, draw_scan
from .records import RECORDS_SUFFIX, to_record

ROWS = 12  # of the table


class _Console(Console):
    """Where nobody reads any more, as after `| head`, nothing is printed; what is recorded goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = _Console()


class Recorder:
    """
    One scan after another through a streamer.

    Every record is in its file as soon as it is known, so that whatever ends the program ends no record.

    Args:
        streamer: for one scan.
        show: whether to say anything on the terminal: a table that follows the lines where there is one, else a line
            for each decision and each tip change, and one for each scan in the end.
    """

    def __init__(self, streamer: ScanlineStreamer, show: bool = True):
        self.streamer = streamer
        self.show = show
        self.name: str | None = None
        self.lines: list[np.ndarray] = []
        self.records: list[dict[str, Any]] = []
        self._file: IO[str] | None = None
        self._table: Live | None = None

    def start(self, name: str, folder: Path) -> None:
        """Begins a scan: `NAME.tip.jsonl` in `folder` is begun anew; raises `OSError` where it cannot be written."""
        self.close()
        self.streamer.reset()
        self.name, self.folder, self.lines, self.records = name, folder, [], []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{name}{RECORDS_SUFFIX}").open("w", encoding="utf-8")
        if self.show and console.is_terminal:
            self._table = Live(console=console, refresh_per_second=8, transient=True)
            self._table.start()

    def add(self, lines: Sequence[np.ndarray] | np.ndarray) -> list[dict[str, Any]]:
        """Takes the next lines `[num_lines, width]`; their records."""
        assert self._file is not None
        new = []
        for line in lines:
            record = to_record(self.streamer.update(line), self.streamer.labels)
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            self._say(record)
            self.lines.append(np.array(line, np.float32))
            self.records.append(record)
            new.append(record)
        if self._table is not None:
            self._table.update(table_of(self.name or "", self.records))
        return new

    def finish(self) -> None:
        """Ends the scan: its picture is drawn beside its records, and a line says what came out."""
        self.close()
        if self.name is not None and self.records:
            figure = Figure(figsize=PICTURE_SIZE, layout="constrained")
            draw_scan(figure, np.stack(self.lines), self.records, self.streamer.labels, self.name)
            figure.savefig(self.folder / f"{self.name}{DRAWN}", dpi=110)
            if self.show:
                say(summary_of(self.folder / self.name, self.records))
        self.name = None

    def close(self) -> None:
        """Lets go of the terminal and of the file; what has been recorded stays."""
        if self._table is not None:
            self._table.stop()
            self._table = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _say(self, record: dict[str, Any]) -> None:
        """What an operator should not miss, where no table shows it."""
        if not self.show or self._table is not None:
            return
        before = self.records[-1] if self.records else {"decision": None, "unfamiliarity": None}
        if record["change_line"] is not None:
            say(f"{self.name}: line {record['line']}: the tip changed at line {record['change_line']}")
        if record["decision"] is not None and record["decision"] != before["decision"]:
            say(f"{self.name}: line {record['line']}: decided for {record['decision']}")


def say(text: str) -> None:
    """One line on the terminal, at once."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    sys.stdout.flush()


def table_of(title: str, records: Sequence[dict[str, Any]]) -> Table:
    """The last lines of a scan."""
    unlike = ": unlike the scans of training" if is_unlike(records[-1]) else ""
    table = Table(title=escape(f"{title}{unlike}"))
    for heading in ("line", "state", "probability", "decision", "tip change"):
        table.add_column(heading, justify="right" if heading in ("line", "probability", "tip change") else "left")
    for record in records[-ROWS:]:
        best = max(record["probabilities"].values()) if record["probabilities"] else None
        change = record["change_probability"]
        table.add_row(
            str(record["line"]),
            escape(record["state"] or "–"),
            "–" if best is None else f"{best:.3f}",
            escape(record["decision"] or "–"),
            f"at line {record['change_line']}" if record["change_line"] is not None else f"{change or 0:.3f}",
        )
    return table


def is_unlike(record: dict[str, Any]) -> bool:
    """Whether the scan, up to this line, is unlike those of training."""
    return (record["unfamiliarity"] or 0) > 1


def summary_of(path: Path, records: Sequence[dict[str, Any]]) -> str:
    """One sentence on a scan that has ended."""
    last = records[-1]
    best = max(last["probabilities"].values()) if last["probabilities"] else None
    state = "no state" if best is None else f"{last['state']} ({best:.3f})"
    first = next((record["line"] for record in records if record["decision"] is not None), None)
    decided = "" if first is None else f"; first decided at line {first}"
    changes = [record["change_line"] for record in records if record["change_line"] is not None]
    changed = f"; tip changed at line {', '.join(map(str, changes))}" if changes else ""
    unlike = "; unlike the scans of training" if is_unlike(last) else ""
    return f"{path}: after {len(records)} lines {state}{decided}{changed}{unlike}"
