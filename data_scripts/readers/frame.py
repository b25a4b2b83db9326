"""What the readers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..scan import ScanReadError, check_size

TOPOGRAPHY = ("z", "topography", "topo", "height", "z-axis")
METRES = {"m": 1.0, "mm": 1e-3, "nm": 1e-9, "pm": 1e-12, "fm": 1e-15}
METRES |= dict.fromkeys(("um", "\u00b5m", "\u03bcm"), 1e-6)  # the sign micro, and the Greek letter
METRES |= dict.fromkeys(("\u00c5", "\u212b", "Angstrom", "angstrom"), 1e-10)  # the letter, and the sign


@dataclass(frozen=True)
class Frame:
    """What a reader finds: heights `[num_lines, pixels_per_line]` in the order of acquisition, as in [`Scan`]."""

    heights: np.ndarray
    channel: str | None = None
    direction: str | None = None
    size_nm: tuple[float, float] | None = None
    session: str | None = None


def metres(unit: str) -> float | None:
    """How many metres a unit of length is; `None` if it is none."""
    return METRES.get(unit.strip())


def on_one_line(name: str) -> str:
    """A name that a file gives, as a message can hold it."""
    return " ".join(name.split()) or repr(name)


def find_channel(path: Path, names: Sequence[str], units: Sequence[str], wanted: str | None) -> int:
    """
    The place of a channel among those of a file, by name; by default the topography, else the first in metres.

    Raises:
        ScanReadError: if there is none.
    """
    if not names:
        raise ScanReadError(f"{path}: holds no channel that is an image.")
    lower = [name.strip().casefold() for name in names]
    if wanted is not None:
        if wanted.strip().casefold() not in lower:
            known = dict.fromkeys(map(on_one_line, names))
            raise ScanReadError(f"{path}: has no channel {wanted!r}; it has {', '.join(known)}.")
        return lower.index(wanted.strip().casefold())
    for usual in TOPOGRAPHY:
        if usual in lower:
            return lower.index(usual)
    in_metres = [index for index, unit in enumerate(units) if metres(unit)]
    starting = [index for index, name in enumerate(lower) if name.startswith(TOPOGRAPHY[1:])]
    return [*starting, *in_metres, 0][0]


def read_frame(path: Path, offset: int, dtype: str, num_lines: int, width: int) -> np.ndarray:
    """
    A frame of raw numbers; lines that the file does not hold completely (yet) are NaN.

    Args:
        path: the file.
        offset: where the frame starts, in bytes.
        dtype: of its numbers.
        num_lines: lines of the whole frame.
        width: pixels of a line.

    Returns:
        `[num_lines, width]` in floating point.

    Raises:
        ScanReadError: if not one line is complete, or the size is impossible.
    """
    check_size(path, num_lines, width)
    with path.open("rb") as file:
        left = file.seek(0, 2) - offset  # no more memory is taken than the file can fill
        file.seek(offset)
        data = file.read(max(0, min(left, num_lines * width * np.dtype(dtype).itemsize)))
    complete = len(data) // (width * np.dtype(dtype).itemsize)
    if complete == 0:
        raise ScanReadError(f"{path}: ends before the first line of the frame. Is the file complete?")
    return pad_lines(np.frombuffer(data, dtype, complete * width).reshape(complete, width), num_lines)


def pad_lines(heights: np.ndarray, num_lines: int) -> np.ndarray:
    """In floating point, with lines of NaN appended up to `num_lines`."""
    kind = np.result_type(heights.dtype, np.float32).newbyteorder("=")
    padded = np.full((max(num_lines, len(heights)), heights.shape[1]), np.nan, kind)
    padded[: len(heights)] = heights
    return padded


def blank_unwritten(heights: np.ndarray, backwards: bool | None = False) -> np.ndarray:
    """
    The same with NaN in place of the zeros after what was written last: programs allocate a frame before they fill it.

    Args:
        heights: `[num_lines, width]`, lines in the order of acquisition.
        backwards: whether a line was filled from its last pixel to its first; `None` where nobody knows.
    """
    written = np.isfinite(heights) & (heights != 0)
    lines = np.flatnonzero(written.any(axis=1))
    if not len(lines):
        heights[:] = np.nan
        return heights
    last = lines[-1]
    pixels = np.flatnonzero(written[last])
    heights[last + 1 :] = np.nan
    if backwards is not True:
        heights[last, pixels[-1] + 1 :] = np.nan
    if backwards is not False:
        heights[last, : pixels[0]] = np.nan
    return heights


def split_direction(path: Path, direction: str, slow: str | None) -> str:
    """
    `"forward"` or `"backward"` of a wanted direction, for a file with one frame that was scanned `slow`.

    Raises:
        ScanReadError: if the other slow direction is wanted.
    """
    fast, _, wanted = direction.partition("/")
    if wanted and slow and wanted != slow:
        raise ScanReadError(f"{path}: was scanned {slow}, there is no frame {direction!r}.")
    return fast
