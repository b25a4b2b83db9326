"""A scan as the microscope took it, and how it is read from a file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_scanline.image_processing_scanline import heights_from_colours

# Omicron MATRIX and Nanonis bases put the start of the session into the file name: ..._2015Sep30-094843_...
SESSION_PATTERN = re.compile(r"(?<!\d)(\d{4}[A-Z][a-z]{2}\d{2}-\d{6})(?!\d)")
MAX_PIXELS = 2**26  # 8192 x 8192: a picture of more has a broken header


class ScanReadError(ValueError):
    """A file that holds no scan that can be read. The message names the file, what is wrong, and what to do."""


@dataclass(frozen=True)
class Scan:
    """
    One scan.

    Attributes:
        lines: heights `[num_lines, pixels_per_line]` in float32, any unit; row 0 was acquired first. NaN where
            nothing was measured.
        scan_id: names the scan within its collection.
        session: the run of the microscope that it comes from; `None` where nobody knows.
        source: the file.
        channel: what was measured, as the file calls it; `None` where it does not say.
        direction: `"forward"` or `"backward"`.
        size_nm: height and width in nm; `None` where the file does not say.
    """

    lines: np.ndarray
    scan_id: str
    session: str | None = None
    source: str | None = None
    channel: str | None = None
    direction: str = "forward"
    size_nm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.lines.ndim != 2 or 0 in self.lines.shape:
            raise ScanReadError(
                f"{self.source or self.scan_id}: expected a scan of at least one line and one pixel, got an array of "
                f"shape {list(self.lines.shape)}."
            )


def session_of(name: str) -> str | None:
    """The session in a file name of the vendors' making, `2015Sep30-094843`; `None` where there is none."""
    match = SESSION_PATTERN.search(name)
    return match.group(1) if match else None


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ScanReadError(f"{path}: {image.width} x {image.height} pixels are more than a scan can have.")
        coded = image.mode in ("P", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB")
        heights = np.asarray(image.convert("RGB") if coded else image)
    if heights.ndim == 3 and heights.shape[-1] == 2:  # grey with transparency
        heights = heights[..., 0]
    return heights_from_colours(heights) if heights.ndim == 3 else heights


def _read_npy(path: Path) -> np.ndarray:
    # mapped: a header that promises more than the file holds is refused before memory is taken
    heights = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(heights, np.ndarray):
        heights.close()
        raise ScanReadError(f"{path}: holds an archive of arrays, expected one array [lines, pixels].")
    return heights


def to_lines(heights: np.ndarray) -> np.ndarray:
    """A copy in float32, as [`Scan`] has it: what is not finite was not measured, and is NaN."""
    with np.errstate(over="ignore"):
        lines = np.array(heights, dtype=np.float32, order="C")
    lines[np.isinf(lines)] = np.nan
    return lines


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"), _read_picture),
    ".npy": _read_npy,
}


def read_scan(path: str | Path, channel: str | None = None, direction: str = "forward") -> Scan:
    """
    Reads one scan.

    Args:
        path: a picture (`.png`, `.jpg`, `.tif`, `.bmp`; grey, or coloured as SPM software colours heights) or a 2-D
            `.npy` array; row 0 acquired first.
        channel: for files with several; pictures and arrays have one.
        direction: `"forward"` or `"backward"`; pictures and arrays do not say, and are taken as they are.

    Returns:
        The scan, under the file's name without its ending.

    Raises:
        ScanReadError: if the file is missing, of an unknown kind, broken, or empty.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ScanReadError(
            f"{path}: no reader for files ending in {path.suffix!r}; known are {', '.join(sorted(READERS))}."
        )
    try:
        heights = reader(path)
    except ScanReadError:
        raise
    except FileNotFoundError:
        raise ScanReadError(f"{path}: there is no such file.") from None
    except Exception as error:  # Pillow and numpy also raise what struct, zlib, zipfile and tokenize think of
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ScanReadError(f"{path}: cannot be read as a scan ({reason}). Is the file complete?") from error
    if heights.dtype.kind not in "fiub":
        raise ScanReadError(f"{path}: expected numbers, got values of type {heights.dtype}.")
    return Scan(
        lines=to_lines(heights),
        scan_id=path.stem,
        session=session_of(path.name),
        source=str(path),
        channel=channel,
        direction=direction,
    )
