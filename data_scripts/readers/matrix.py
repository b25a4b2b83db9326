"""
Omicron MATRIX `.Z_mtrx`, by access2thematrix.

The numbers alone are in this file; what they mean is in the result file beside it (`..._0001.mtrx`). Where that is
missing, the frame is found from the numbers themselves, in arbitrary units.
"""

import contextlib
import logging
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..scan import ScanReadError, check_size
from .frame import Frame, pad_lines

logger = logging.getLogger(__name__)

MAGIC = b"ONTMATRX0101"
DATA_START = 104  # bytes before the numbers: magic, TLKB with its time, CSED, ATAD
MIN_LIKENESS = 0.3  # correlation of lines that lie beside each other; of lines that do not it is nearly 0
MIRROR_LIKENESS = 0.8


def _read_counts(path: Path) -> tuple[int, np.ndarray]:
    """How many numbers were planned, and those that were measured."""
    with path.open("rb") as file:
        start = file.read(DATA_START)
        if len(start) < DATA_START or start[:12] != MAGIC or start[32:36] != b"CSED" or start[96:100] != b"ATAD":
            raise ScanReadError(f"{path}: is no complete MATRIX image file.")
        planned, measured = struct.unpack_from("<2i", start, 60)
        if measured < 0 or planned < 1:
            raise ScanReadError(f"{path}: says that {measured} of {planned} numbers were measured.")
        held = (file.seek(0, 2) - DATA_START) // 4
        if held < measured:
            raise ScanReadError(f"{path}: holds {held} of the {measured} numbers it should. Is the file complete?")
        file.seek(DATA_START)
        return planned, np.frombuffer(file.read(4 * measured), "<i4")


def result_file(path: Path) -> Path:
    """Where the result file of a MATRIX file is, if there is one."""
    return path.with_name(f"{path.name[: path.name.rfind('--')]}_0001.mtrx")


def read_matrix(path: Path, channel: str | None, direction: str) -> Frame:
    """A frame of a scan; of an aborted one the lines that were measured, the others NaN."""
    name = path.suffix[1 : -len("_mtrx")]
    if channel is not None and channel.casefold() != name.casefold():
        raise ScanReadError(f"{path}: has no channel {channel!r}, only {name}; each channel is a file of its own.")
    fast, _, slow = direction.partition("/")
    planned, values = _read_counts(path)
    if "--" in path.name and result_file(path).is_file():
        heights, size_nm = _with_result_file(path, fast, slow or "up")
    else:
        logger.warning(
            "%s: its result file %s is missing: heights are in arbitrary units, the shape of the frame is inferred.",
            path,
            result_file(path).name if "--" in path.name else "(..._0001.mtrx)",
        )
        heights, size_nm = _without_result_file(path, planned, values, fast, slow or "up"), None
    return Frame(heights=heights, channel=name, direction=f"{fast}/{slow or 'up'}", size_nm=size_nm)


def _with_result_file(path: Path, fast: str, slow: str) -> tuple[np.ndarray, tuple[float, float]]:
    from access2thematrix import MtrxData

    class Mapped(MtrxData):  # the library unpacks every number into a Python object: 40 bytes each
        def _scan_raw_data(self, place: int, data: bytes) -> int:
            if data[place : place + 4] == b"ATAD":
                (length,) = struct.unpack_from("<L", data, place + 4)
                self.data = np.frombuffer(data, "<i4", self.data_item_count, place + 8).astype(np.int64)
                return place + 8 + length
            return super()._scan_raw_data(place, data)

    matrix: Any = Mapped()
    with contextlib.redirect_stdout(None):
        traces, message = matrix.open(str(path))
    trace = f"{fast}/{slow}"
    if matrix.param["BREF"] != path.name:
        raise ScanReadError(
            f"{path}: its result file {result_file(path).name} does not list it: it is of another session, or cut "
            "short, or one of the two was renamed. Put the right one beside it, or none."
        )
    if not traces or not matrix.axis:
        raise ScanReadError(f"{path}: {message} Is its result file complete?")
    if trace not in traces.values():
        raise ScanReadError(f"{path}: holds no {trace} frame; it has {', '.join(traces.values())}.")
    image, _ = matrix.select_image(trace)
    num_lines = int(matrix.axis[2][2])
    check_size(path, max(num_lines, len(image.data)), image.data.shape[1])
    # the library puts what was measured downwards in the order of upward lines
    heights = pad_lines(image.data[::-1] if slow == "down" else image.data, num_lines)
    return heights, (1e9 * abs(float(matrix.axis[1][1])), 1e9 * abs(float(matrix.axis[0][1])))


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Mean correlation of lines with those in the same place of another frame."""
    one, other = (frame - frame.mean(axis=1, keepdims=True) for frame in (one, other))
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return float(np.mean((one * other).sum(axis=1) / np.maximum(norms, 1e-12)))


def _without_result_file(path: Path, planned: int, values: np.ndarray, fast: str, slow: str) -> np.ndarray:
    """
    A square frame, found from how many numbers were planned: as many lines as pixels, once, or forth and back along
    the lines, or also once more downwards. Of what is possible, the lines that look most like their neighbours are
    right.
    """
    best, found = MIN_LIKENESS, None
    for frames, back, down in ((4, True, True), (2, True, False), (2, False, True), (1, False, False)):
        width = math.isqrt(planned // frames)
        if width * width * frames != planned or width < 2:
            continue
        check_size(path, width, width)
        lines = values[: len(values) // (width * (1 + back)) * width * (1 + back)]
        lines = lines.reshape(-1, 1 + back, width).astype(np.float64)
        if len(lines) < 2:
            continue
        likeness = _likeness(lines[:-1, 0], lines[1:, 0])
        mirrored = lines[:, 0, ::-1]
        if back:
            likeness = min(likeness, _likeness(lines[:, 1], mirrored))
        elif _likeness(lines[:, 0], mirrored) > MIRROR_LIKENESS:
            continue  # forth and back, taken for one long line: no surface is its own mirror image
        if likeness > best:
            best, found = likeness, (lines, width, back, down)
    if found is None:
        raise ScanReadError(
            f"{path}: its result file (..._0001.mtrx) is missing, and its {len(values)} of {planned} numbers do not "
            "show how long a line is. Put the result file beside it."
        )
    lines, width, back, down = found
    if (fast == "backward" and not back) or (slow == "down" and not (down and len(lines) > width)):
        raise ScanReadError(f"{path}: holds no {fast}/{slow} frame.")
    frame = lines[:, 1, ::-1] if fast == "backward" else lines[:, 0]
    return pad_lines(frame[width:] if slow == "down" else frame[:width], width)
