"""Which lines of a frame are new, from looking at the frame again and again while it is being scanned."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Started:
    """A scan has begun."""


@dataclass(frozen=True)
class NewLines:
    """More lines of it, in the order of acquisition, `[num_lines, width]`; NaN where nothing was measured."""

    lines: np.ndarray


@dataclass(frozen=True)
class Ended:
    """It goes on no more."""


class FrameFollower:
    """
    Tells the lines that are complete, and each of them once.

    What controllers have in the places that they have not come to differs: NaN, zero, or what was there in the scan
    before. All count as not measured. A line is complete when its last pixel has been measured, or the line after it
    has begun, or the scan has stopped. A scan is another one when a line that was told is no longer there. The
    last lines of the one before are told as long as they stand in the frame, but not of scans that go up and down in
    turns without a stop: there nobody can tell them from the first lines of the next.
    """

    def __init__(self) -> None:
        self.last: np.ndarray | None = None
        self.before: np.ndarray | None = None  # a frame with nothing of this scan in it
        self.told: np.ndarray | None = None  # lines of this scan, in the order of acquisition; None between scans
        self.upwards = False

    def look(self, frame: np.ndarray, running: bool, upwards: bool) -> list[Started | NewLines | Ended]:
        """
        What has happened since the last look.

        Args:
            frame: as it is now, `[lines, pixels]`, row 0 on top.
            running: whether the scan goes on.
            upwards: whether it began at the bottom; asked only where the frame does not tell.
        """
        events: list[Started | NewLines | Ended] = []
        if self.last is not None and self.last.shape != frame.shape:
            events += [Ended()] * (self.told is not None)
            self.last = self.before = self.told = None
        if self.last is None:
            # nobody can tell a whole frame that was there at the first look from one of an earlier scan
            self.before = frame if not running or self._new(frame).any(axis=1).all() else None
        elif self.told is not None and not np.array_equal(
            self._in_order(frame)[: len(self.told)], self.told, equal_nan=True
        ):
            events += self._rest(frame)
            self.before = self.last.copy()
            # lines that came after the last look, before the new scan
            self._in_order(self.before)[len(self.told) :] = self._in_order(frame)[len(self.told) :]
            self.told = None
            events.append(Ended())
        self.last = frame

        new = self._new(frame)
        begun = np.asarray(new.any(axis=1))
        if not begun.any():
            if self.told is not None:  # stopped or begun anew before anything measured could be told
                self.told, self.before = None, frame
                events.append(Ended())
            return events
        if self.told is None:
            self.upwards = bool(begun[-1]) if begun[0] != begun[-1] else upwards
            self.told = np.empty((0, frame.shape[1]), frame.dtype)
            events.append(Started())
        new, in_order = self._in_order(new), self._in_order(frame)
        latest = int(np.flatnonzero(new.any(axis=1))[-1])
        complete = len(frame) if not running else latest + int(new[latest, -1])
        if complete > len(self.told):
            lines = np.where(new, in_order, np.nan).astype(np.float32)[len(self.told) : complete]
            self.told = in_order[:complete].copy()
            events.append(NewLines(lines))
        if not running:
            self.told, self.before = None, frame
            events.append(Ended())
        return events

    def _rest(self, frame: np.ndarray) -> list[NewLines]:
        """Lines of a scan that came after the last look, where the next one has begun but has not come to them yet."""
        assert self.told is not None
        new, in_order, number = self._in_order(self._new(frame)), self._in_order(frame), len(self.told)
        begun_anew = not np.array_equal(in_order[0], self.told[0], equal_nan=True)
        came = number + np.flatnonzero(new[number:].any(axis=1))
        if not begun_anew or not np.array_equal(in_order[number - 1], self.told[-1], equal_nan=True) or not len(came):
            return []
        return [NewLines(np.where(new, in_order, np.nan).astype(np.float32)[number : came[-1] + 1])]

    def _new(self, frame: np.ndarray) -> np.ndarray:
        measured: np.ndarray = np.isfinite(frame) & (frame != 0)
        return measured if self.before is None else measured & (frame != self.before)

    def _in_order(self, frame: np.ndarray) -> np.ndarray:
        return frame[::-1] if self.upwards else frame
