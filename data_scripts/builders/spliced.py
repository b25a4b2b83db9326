"""Real scans, spliced where the tip is to change: the first labelled set for locating tip changes."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..labels import unanimous_labels
from ..readers import read_scan
from ..scan import Scan, ScanReadError, session_of
from .base import LabelledScan, in_shards, one_hot
from .hsi100 import SPM_TOOLBOX_CLASSES, SPMToolbox, read_votes

DEFECT = list(SPM_TOOLBOX_CLASSES).index("generic_defect")
MIN_LINES = 16  # on either side of a splice
NEIGHBOURS = 8  # how far apart in the list of a session's clear scans, at most, two are taken from
MATCHED_LINES = 4  # on either side of a splice, that offset and spread are matched over


class _Clear(NamedTuple):
    path: Path
    label: int
    size: tuple[int, int]


class _Splice(NamedTuple):
    scan_id: str
    first: _Clear
    second: _Clear
    line: int  # first line of the second; 0 where the first is left whole


class Spliced(SPMToolbox):
    """
    Lines of two scans of one session of a clone of SPM-Toolbox, joined at a known line.

    Both scans are complete, have as many pixels, show one clear state each (all votes, no defect), a different one
    where the session has two, and lie near each other in time. Pictures hold no heights: the second scan is brought to
    the offset and the spread of the lines of the first, which is what feedback does with a tip that changes.
    Every other scan is left whole, so that false alarms can be counted. The label of a spliced scan is
    `generic_defect`, as people label a tip change; `line_labels` has states, `change_lines` the splice.
    """

    OPTIONS = ("num_scans", "simulation_seed")

    def _clear_scans(self) -> dict[str, list[_Clear]]:
        """Complete scans with a clear state by session, in order of time."""
        spreadsheet, *pictures = self.source_files()
        votes = read_votes(spreadsheet)
        sessions: dict[str, list[_Clear]] = {}
        for path in sorted(pictures, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]):
            label = int(unanimous_labels(votes[path.name][None])[0]) if path.name in votes else -1
            if label in (-1, DEFECT):
                continue
            scan = self.read(path)
            if scan is not None and scan.session is not None and scan.lines.shape[0] >= scan.lines.shape[1]:
                sessions.setdefault(scan.session, []).append(_Clear(path, label, scan.lines.shape))
        return sessions

    def shards(self) -> list[Any]:
        candidates = []
        for scans in self._clear_scans().values():
            for place, first in enumerate(scans):
                near = scans[max(0, place - NEIGHBOURS) : place + NEIGHBOURS + 1]
                others = [other for other in near if other is not first and other.size == first.size]
                # what a tip change does is seen where the states differ
                if others := [other for other in others if other.label != first.label] or others:
                    candidates.append((first, others))
        if not candidates:
            raise ScanReadError(f"{self.root}: no session has two complete scans of clear states to splice.")
        if self.config.max_lines < 2 * MIN_LINES:
            raise ScanReadError(f"dataset spliced needs max_lines of at least {2 * MIN_LINES}.")
        rng = np.random.default_rng(self.options["simulation_seed"])
        splices = []
        for number in range(self.options["num_scans"]):
            first, others = candidates[rng.integers(len(candidates))]
            second = others[rng.integers(len(others))]
            line = int(rng.integers(MIN_LINES, self.config.max_lines - MIN_LINES + 1))
            splices.append(_Splice(f"spliced-{number}-{first.path.stem}", first, second, line * (number % 2)))
        return in_shards(splices)

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        for shard in shards:
            for splice in shard:
                first, second = (self._model_lines(clear.path) for clear in (splice.first, splice.second))
                states = np.full(len(first), splice.first.label, dtype=np.int8)
                line = min(splice.line, len(first) - 1)
                if line:
                    first = splice_lines(first, second, line)
                    states[line:] = splice.second.label
                scan = Scan(
                    lines=first,
                    scan_id=splice.scan_id,
                    session=session_of(splice.first.path.name),
                    source=f"{splice.first.path.name} and {splice.second.path.name}"
                    if line
                    else splice.first.path.name,
                )
                yield LabelledScan(
                    scan,
                    one_hot(DEFECT if line else splice.first.label, len(SPM_TOOLBOX_CLASSES)),
                    line_labels=states,
                    change_lines=np.array([line] if line else [], dtype=np.int32),
                )
            yield None

    def _model_lines(self, path: Path) -> np.ndarray:
        return self.model_lines(read_scan(path).lines[None])[0]


def splice_lines(first: np.ndarray, second: np.ndarray, line: int) -> np.ndarray:
    """
    The first scan up to a line, and from there on the second.

    Args:
        first, second: heights `[num_lines, pixels_per_line]`.
        line: first line of the second.

    Returns:
        `[num_lines, pixels_per_line]`; the lines of the second with a factor and an offset that bring the spread
        within lines, over the whole scan, and the mean of the lines beside the splice to those of the first.
    """
    spreads = [float(np.nanmedian(np.nanstd(lines, axis=1))) for lines in (first, second)]
    gain = spreads[0] / spreads[1] if spreads[1] > 0 else 1.0
    before = float(np.nanmean(first[max(0, line - MATCHED_LINES) : line]))
    after = float(np.nanmean(second[line : line + MATCHED_LINES]))
    return np.concatenate([first[:line], before + gain * (second[line : len(first)] - after)]).astype(np.float32)
