"""A scan as the microscope took it."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

MAX_PIXELS = 2**25  # 8192 x 4096: a file that promises more has a broken header

# Omicron MATRIX: the start of the session, ..._2015Sep30-094843_...; Createc: the time of the scan, A250407.141806
SESSION_PATTERN = re.compile(r"(?<!\d)(\d{4}[A-Z][a-z]{2}\d{2}-\d{6})(?!\d)")
CREATEC_PATTERN = re.compile(r"(?<![A-Za-z0-9])[A-Z](\d{6})\.(\d{6})(?!\d)")


class ScanReadError(ValueError):
    """A file that holds no scan that can be read. The message names the file, what is wrong, and what to do."""


@dataclass(frozen=True)
class Scan:
    """
    One scan.

    Attributes:
        lines: heights `[num_lines, pixels_per_line]` in float32; row 0 was acquired first, and pixel 0 of every line
            lies on the same side. Metres where the file says what its numbers mean, else any unit. NaN where nothing
            was measured.
        scan_id: names the scan within its collection.
        session: the run of the microscope that it comes from; `None` where nobody knows.
        source: the file.
        channel: what was measured, as the file calls it; `None` where it does not say.
        direction: `"forward"` or `"backward"`, followed by `"/up"` or `"/down"` where the file says so.
        size_nm: height and width of the whole frame in nm; `None` where the file does not say.
    """

    lines: np.ndarray
    scan_id: str
    session: str | None = None
    source: str | None = None
    channel: str | None = None
    direction: str = "forward"
    size_nm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_shape(self.source or self.scan_id, self.lines.shape)


def session_of(name: str) -> str | None:
    """
    The session in a file name of the vendors' making: its start `2015Sep30-094843` (MATRIX), or the day of the scan
    `2025-04-07` (Createc). `None` where there is none.
    """
    if match := SESSION_PATTERN.search(name):
        return match.group(1)
    if match := CREATEC_PATTERN.search(name):
        return day_of(match.group(1), "%y%m%d")
    return None


def day_of(text: str, *formats: str) -> str | None:
    """The day that a vendor wrote in one of the formats, as `2025-04-07`; `None` if it is not one."""
    for form in formats:
        try:
            return datetime.strptime(text.strip(), form).date().isoformat()
        except ValueError:
            continue
    return None


def to_lines(heights: np.ndarray) -> np.ndarray:
    """A copy in float32, as [`Scan`] has it: what is not finite was not measured, and is NaN."""
    with np.errstate(over="ignore"):
        lines = np.array(heights, dtype=np.float32, order="C")
    lines[np.isinf(lines)] = np.nan
    return lines


def check_shape(name: str | Path, shape: tuple[int, ...]) -> None:
    """Raises [`ScanReadError`] for an array that is no scan."""
    if len(shape) != 2 or 0 in shape:
        raise ScanReadError(
            f"{name}: expected a scan of at least one line and one pixel, got an array of shape {list(shape)}."
        )


def check_size(path: Path, num_lines: int, width: int) -> None:
    """Raises [`ScanReadError`] for a size that no scan has, before memory is taken for it."""
    if num_lines < 1 or width < 1 or num_lines * width > MAX_PIXELS:
        raise ScanReadError(f"{path}: says that it has {num_lines} lines of {width} pixels, which no scan has.")
