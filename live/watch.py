"""Scans in a folder, read as the microscope writes them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_scripts import ScanReadError, read_scan
from data_scripts.readers import files_of, is_scan_file

from .recorder import Recorder, say


@dataclass
class WatchedFile:
    """
    What is known of a file.

    Attributes:
        stamp: size and time of its last change.
        since: when it was first seen with this stamp.
        lines: that have been taken.
        done: whether it has been read to its end, with this stamp, or could not be.
        counted: the first line of the scan of it that was counted: one that grows after a pause is none more.
        unread: stamps of all files that it was to be read from, if it could not be.
        said: why not, and with which stamp.
    """

    stamp: tuple[int, int]
    since: float
    lines: list[np.ndarray] = field(default_factory=list)
    started: bool = False
    done: bool = False
    counted: bytes | None = None
    unread: list[tuple[int, int] | None] | None = None
    said: tuple[tuple[int, int], str] | None = None


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file; `None` if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def complete_lines(lines: np.ndarray) -> int:
    """
    How many lines of a file that is still growing are complete.

    Those before the last one that anything was measured of, and that one too if all of it was: what is missing of it
    may be on its way.

    Args:
        lines: `[num_lines, width]`, NaN where nothing was measured.
    """
    measured = np.isfinite(lines)
    begun = np.flatnonzero(measured.any(axis=1))
    return 0 if len(begun) == 0 else int(begun[-1]) + int(measured[begun[-1]].all())


class FolderWatcher:
    """
    Follows the scans that appear or grow in a folder.

    It looks again and again, as file systems of other machines tell of no change, and may be away for a while. A file
    counts as complete when it has not changed for `settle` seconds: what then cannot be read is reported, and tried
    again when it or a file that belongs to it changes; what was not measured stays so. Several files grow in turns at
    the most; a scan that another one interrupts is gone through again from its start.

    Args:
        folder: to look into, and into all below it.
        recorder: of the scans; records and pictures lie beside the files, or at the same places in `output_dir`.
        settle: seconds.
        output_dir: see above.
        read: reads a file; raises `ScanReadError` if it cannot, yet.
        existing: whether to go through what is there at the start, too.
    """

    def __init__(
        self,
        folder: Path,
        recorder: Recorder,
        settle: float = 5.0,
        output_dir: Path | None = None,
        read: Callable[[Path], np.ndarray] = lambda path: read_scan(path).lines,
        existing: bool = False,
    ):
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder to watch.")
        self.folder, self.recorder, self.settle, self.output_dir, self.read = (
            folder,
            recorder,
            settle,
            output_dir,
            read,
        )
        self.files: dict[Path, WatchedFile] = {}
        self.current: Path | None = None
        self.num_done = self.num_failed = 0
        self.away = False
        if not existing:
            now = time.monotonic()
            self.files = {path: WatchedFile(stamp, now, done=True) for path, stamp in self._stamps().items()}

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        """Size and time of change of each file that may hold a scan, the oldest first."""
        stamps = {}
        for path in self.folder.rglob("*"):
            if is_scan_file(path):
                stamp = stamp_of(path)
                if stamp is not None and path.is_file():  # it may be gone meanwhile
                    stamps[path] = stamp
        return dict(sorted(stamps.items(), key=lambda item: (item[1][1], item[0])))

    def look(self) -> None:
        """Takes what has come since the last look."""
        now = time.monotonic()
        try:
            stamps = self._stamps()
        except OSError as error:
            if not self.away:  # once, not at every look
                say(f"{self.folder}: cannot be looked into ({error.strerror or error}); trying on")
            self.away = True
            return
        self.away = False
        for path in self.files.keys() - stamps.keys():
            if not self.files[path].done:  # what is done stays known: a share that was away comes back with all of it
                del self.files[path]
        for path, stamp in stamps.items():
            file = self.files.setdefault(path, WatchedFile(stamp, now))
            changed = file.stamp != stamp
            # what could not be read may need a file beside it, which was late
            if changed or (file.unread is not None and file.unread != [stamp_of(part) for part in files_of(path)]):
                file.stamp, file.since, file.done, file.unread = stamp, now, False, None
            if not file.done:
                self._follow(path, file, settled=now - file.since >= self.settle)

    def _follow(self, path: Path, file: WatchedFile, settled: bool) -> None:
        stamps = [stamp_of(part) for part in files_of(path)]  # first: they may change while it is read
        try:
            lines = self.read(path)
        except (ScanReadError, OSError) as error:  # half written, locked by whoever writes it, or gone
            if settled:
                reason = (file.stamp, str(error))
                if reason != file.said:
                    say(str(error))
                file.done, file.unread, file.said = True, stamps, reason
            return
        taken = len(file.lines)
        if taken > len(lines) or not all(
            np.array_equal(old, new, equal_nan=True) for old, new in zip(file.lines, lines, strict=False)
        ):
            taken, file.started = 0, False  # another scan under the same name
        until = len(lines) if settled else max(taken, complete_lines(lines))
        try:
            self._record(path, file, lines, taken, until, settled)
        except OSError as error:  # as of a full disk: the next scan may have room
            say(f"{path}: {error}")
            self.recorder.close()
            file.done, file.lines, file.started, self.current = True, [], False, None
            self.num_failed += 1
            self._count(file, lines)

    def _record(self, path: Path, file: WatchedFile, lines: np.ndarray, taken: int, until: int, settled: bool) -> None:
        """Takes lines `taken` to `until`, those before once more if another scan came between."""
        if until > taken or (settled and until):
            if self.current != path or not file.started:
                below = path.parent.relative_to(self.folder)  # scans of several folders may have one name
                self.recorder.start(path.name, path.parent if self.output_dir is None else self.output_dir / below)
                taken, file.started, self.current = 0, True, path
            self.recorder.add(lines[taken:until])
            file.lines = list(lines[:until])
        if settled:
            if self.current == path:
                self.recorder.finish()
                self.current = None
            file.done, file.lines, file.started = True, [], False
            self._count(file, lines)

    def _count(self, file: WatchedFile, lines: np.ndarray) -> None:
        first = lines[:1].tobytes()
        self.num_done += first != file.counted
        file.counted = first

    def run(self, interval: float, num_scans: int | None = None) -> None:
        """Looks every `interval` seconds, for ever or until `num_scans` scans are complete."""
        while num_scans is None or self.num_done < num_scans:
            self.look()
            time.sleep(interval)
