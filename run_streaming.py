"""
Tells the state of the tip line by line, as beside a running scan.

    python run_streaming.py replay scan.sxm                             # any file that data_scripts reads
    python run_streaming.py replay scans/*.png --alpha 0.15 --model runs/20261123_101500
    python run_streaming.py replay scan.Z_mtrx --seconds_per_line 0.5   # as the microscope took it

For each file FILE it writes FILE.tip.jsonl, a line of JSON for each line of the scan (state, probabilities, decision,
tip change), and FILE.tip.png, the scan beside them. It advises; conditioning the tip stays with the operator.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from data_scripts import Scan, ScanReadError, read_scan
from live.picture import PICTURE_SUFFIX, draw_scan
from live.records import RECORDS_SUFFIX, to_record, write_records
from modeling_scanline.streaming_scanline import ScanlineStreamer

RELEASED = Path(__file__).parent / "model_cards" / "scanline-causal-hsi100"
ROWS = 12  # of the live table
console = Console()


def table_of(title: str, records: Sequence[dict[str, Any]]) -> Table:
    """The last lines of a scan."""
    table = Table(title=title)
    for heading in ("line", "state", "probability", "decision", "tip change"):
        table.add_column(heading, justify="right" if heading in ("line", "probability", "tip change") else "left")
    for record in records[-ROWS:]:
        best = max(record["probabilities"].values()) if record["probabilities"] else None
        change = record["change_probability"]
        table.add_row(
            str(record["line"]),
            record["state"] or "–",
            "–" if best is None else f"{best:.3f}",
            record["decision"] or "–",
            f"at line {record['change_line']}" if record["change_line"] is not None else f"{change or 0:.3f}",
        )
    return table


def replay(streamer: ScanlineStreamer, scan: Scan, seconds_per_line: float) -> list[dict[str, Any]]:
    """
    Gives a scan to the streamer line by line.

    Args:
        streamer: for one scan; it is reset first.
        scan: to be replayed, in the order of acquisition.
        seconds_per_line: to wait before each line; 0 waits for nothing.

    Returns:
        A record of each line.
    """
    streamer.reset()
    records: list[dict[str, Any]] = []
    with Live(console=console, refresh_per_second=8, transient=not console.is_terminal) as live:
        for line in scan.lines:
            time.sleep(seconds_per_line)
            records.append(to_record(streamer.update(line), streamer.labels))
            if console.is_terminal:
                live.update(table_of(scan.scan_id, records))
    return records


def summary_of(path: Path, records: Sequence[dict[str, Any]]) -> str:
    """One sentence on a scan that has ended."""
    last = records[-1]
    best = max(last["probabilities"].values()) if last["probabilities"] else None
    state = "no state" if best is None else f"{last['state']} ({best:.3f})"
    first = next((record["line"] for record in records if record["decision"] is not None), None)
    decided = "" if first is None else f"; first decided at line {first}"
    changes = [record["change_line"] for record in records if record["change_line"] is not None]
    changed = f"; tip changed at line {', '.join(map(str, changes))}" if changes else ""
    unlike = "; unlike the scans of training" if (last["unfamiliarity"] or 0) > 1 else ""
    return f"{path}: after {len(records)} lines {state}{decided}{changed}{unlike}"


def run_replay(arguments: argparse.Namespace) -> int:
    """Replays files; names those that cannot be read, and goes on with the others."""
    streamer = ScanlineStreamer.from_pretrained(arguments.model, alpha=arguments.alpha)
    unread = 0
    for path in arguments.files:
        try:
            scan = read_scan(path, channel=arguments.channel, direction=arguments.direction)
        except ScanReadError as error:
            console.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
            unread += 1
            continue
        records = replay(streamer, scan, arguments.seconds_per_line)
        folder = arguments.output_dir or path.parent
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{path.name}{RECORDS_SUFFIX}", records)
        figure = draw_scan(scan.lines, records, streamer.labels, path.name)
        figure.savefig(folder / f"{path.name}{PICTURE_SUFFIX}", dpi=110)
        console.print(summary_of(path, records), highlight=False, soft_wrap=True)
    if unread:
        console.print(f"{unread} of {len(arguments.files)} files could not be read.")
    return 2 if unread else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("replay", help="scans from files, line by line", description=run_replay.__doc__)
    command.add_argument("files", nargs="+", type=Path, help="scans: .sxm, .Z_mtrx, .gwy, .sm4, .dat, .png, .npy ...")
    command.add_argument("--model", default=str(RELEASED), help="folder or Hub repository (the released model)")
    command.add_argument(
        "--alpha", type=float, help="decide on a state as soon as the evidence allows this error; by default never"
    )
    command.add_argument("--channel", help="of microscope files; by default the topography")
    command.add_argument("--direction", default="forward", help="forward or backward, with /up or /down (forward)")
    command.add_argument("--seconds_per_line", type=float, default=0.0, help="time that a line takes (0)")
    command.add_argument("--output_dir", type=Path, help="folder to write to; by default that of the file")
    arguments = parser.parse_args(argv)
    try:
        return run_replay(arguments)
    except (OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"run_streaming.py: error: {' '.join(lines[:2])}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
