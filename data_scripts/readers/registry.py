"""Which reader reads which file."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import numpy as np

from ..scan import Scan, ScanReadError, check_shape, session_of, to_lines
from .createc import read_createc
from .frame import Frame
from .gwyddion import read_gsf, read_gwy
from .matrix import read_matrix, result_file
from .nanonis import read_sxm
from .pictures import read_npy, read_picture, read_tiff
from .rhk import read_sm4

DIRECTIONS = ("forward", "backward", "forward/up", "forward/down", "backward/up", "backward/down")
MAX_BYTES = 2**30
DRAWN = ".tip.png"  # ends the names of the pictures that run_streaming.py draws beside scans

READERS: dict[str, Callable[[Path, str | None, str], Frame]] = {
    ".sxm": read_sxm,
    ".z_mtrx": read_matrix,
    ".gwy": read_gwy,
    ".gsf": read_gsf,
    ".sm4": read_sm4,
    ".dat": read_createc,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), read_picture),
    **dict.fromkeys((".tif", ".tiff"), read_tiff),
    ".npy": read_npy,
}


def is_scan_file(path: Path) -> bool:
    """Whether a file may be a scan, by its name."""
    return path.suffix.lower() in READERS and not path.name.endswith(DRAWN)


def files_of(path: Path) -> list[Path]:
    """What [`read_scan`] reads of a scan: its file; of MATRIX also the result file beside it, be it there or not."""
    return [path, result_file(path)] if path.suffix.lower() == ".z_mtrx" else [path]


def read_scan(path: str | Path, channel: str | None = None, direction: str = "forward") -> Scan:
    """
    Reads one scan from a microscope's file, a picture or an array.

    Args:
        path: Nanonis `.sxm`, Omicron MATRIX `.Z_mtrx` (with or without its result file beside it), Gwyddion `.gwy` and
            `.gsf`, RHK `.sm4`, Createc `.dat`, a picture (`.png`, `.jpg`, `.bmp`, `.tif`; grey, or coloured as SPM
            software colours heights), or a 2-D `.npy` array. Pictures and arrays: row 0 acquired first.
        channel: as the file calls it; by default the topography.
        direction: `"forward"` or `"backward"`; with `"/up"` or `"/down"` after it, that frame of a file which has
            both, else the one acquired first. Pictures, arrays and Gwyddion files do not say, and have one only.

    Returns:
        The scan, under the file's name without its ending.

    Raises:
        ScanReadError: if the file is missing, of an unknown kind, broken, or empty, has a name that is no text, or
            has no such channel or direction.
    """
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:  # on Linux a name is any bytes; tables, JSON and pictures hold Unicode
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ScanReadError(f"{shown}: its name is not in UTF-8. Rename it.") from None
    reader = READERS.get(path.suffix.lower())
    if reader is None and path.is_dir():
        raise ScanReadError(f"{path}: is a folder; give the files in it, as {path}/*.sxm.")
    if reader is None:
        raise ScanReadError(
            f"{path}: no reader for files ending in {path.suffix!r}; known are {', '.join(sorted(READERS))}."
        )
    if direction not in DIRECTIONS:
        raise ScanReadError(f"{path}: direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ScanReadError(f"{path}: {path.stat().st_size / 2**30:.1f} GiB are more than a scan has.")
        if not path.is_file():
            raise ScanReadError(f"{path}: is no file; a folder is read file by file.")
        if path.stat().st_size == 0:
            raise ScanReadError(f"{path}: the file is empty.")
        # broken files hold numbers of all kinds, and the libraries warn of what they then cannot read
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = reader(path, channel, direction)
            if frame.heights.dtype.kind not in "fiub":
                raise ScanReadError(f"{path}: expected numbers, got values of type {frame.heights.dtype}.")
            check_shape(path, frame.heights.shape)
            lines = to_lines(frame.heights)
    except ScanReadError:
        raise
    except FileNotFoundError:
        reason = "is a link to a file that is not there" if path.is_symlink() else "there is no such file"
        raise ScanReadError(f"{path}: {reason}.") from None
    except PermissionError:
        raise ScanReadError(f"{path}: may not be read. Who owns the file?") from None
    except ImportError as error:
        raise ScanReadError(
            f"{path}: needs the package {error.name}; in Scanline's folder: pip install -e '.[instruments]'."
        ) from error
    except Exception as error:  # the libraries also raise what struct, zlib, zipfile and tokenize think of
        reason = shorten(str(error), 200, placeholder="...") or type(error).__name__
        raise ScanReadError(f"{path}: cannot be read as a scan ({reason}). Is the file complete?") from error
    scan = Scan(
        lines=lines,
        scan_id=path.stem,
        session=session_of(path.name) or frame.session,
        source=str(path),
        channel=frame.channel or channel,
        direction=frame.direction or direction,
        size_nm=frame.size_nm,
    )
    if not np.isfinite(lines).any():
        raise ScanReadError(f"{path}: no pixel of this frame was measured.")
    return replace(scan, size_nm=None) if not _is_size(scan.size_nm) else scan


def _is_size(size: tuple[float, float] | None) -> bool:
    return size is not None and all(np.isfinite(side) and side > 0 for side in size)
