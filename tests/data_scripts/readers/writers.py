"""
Writes small valid files of every kind that the readers read, by the formats' descriptions.

Heights are given as [`Scan`] has them: `[lines, pixels]` in the order of acquisition, pixel 0 always on the same side.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Frames = Mapping[str, Mapping[str, np.ndarray]]  # by channel and direction


# Nanonis


def sxm_table(frames: Frames, units: Mapping[str, str]) -> list[str]:
    ways = {name: "both" if len(of) == 2 else next(iter(of)) for name, of in frames.items()}
    rows = [f"{place}\t{name}\t{units.get(name, 'm')}\t{ways[name]}\t1.0\t0.0" for place, name in enumerate(frames)]
    return [f"\t{row}" for row in ("Channel\tName\tUnit\tDirection\tCalibration\tOffset", *rows)]


def sxm(
    frames: Frames,
    *,
    fields: Mapping[str, str | None] | None = None,
    units: Mapping[str, str] | None = None,
    newline: str = "\n",
    dtype: str = ">f4",
) -> bytes:
    """A scan file; `fields` replaces fields of its header, adds some, and leaves out those that are `None`."""
    num_lines, width = next(iter(next(iter(frames.values())).values())).shape
    header = {
        "NANONIS_VERSION": "2",
        "SCANIT_TYPE": "              FLOAT            MSBFIRST",
        "REC_DATE": " 07.04.2025",
        "REC_TIME": "14:18:06",
        "SCAN_PIXELS": f"       {width}       {num_lines}",
        "SCAN_RANGE": "           4.000000E-8           2.000000E-8",
        "SCAN_DIR": "down",
        "COMMENT": "",
        "DATA_INFO": "\n".join(sxm_table(frames, units or {})) + "\n",
        **(fields or {}),
    }
    text = "".join(f":{name}:\n{value}\n" for name, value in header.items() if value is not None)
    text += ":SCANIT_END:\n\n\n"
    raw = [
        (heights if way == "forward" else heights[:, ::-1]).astype(dtype).tobytes()
        for of in frames.values()
        for way, heights in of.items()
    ]
    return text.replace("\n", newline).encode("latin-1") + b"\x1a\x04" + b"".join(raw)


# Omicron MATRIX

MATRIX_NAME = "default_2015Sep30-094843_STM-STM_Spectroscopy--12_3.Z_mtrx"
MATRIX_FACTOR = 1.74e16  # numbers a metre
MATRIX_OFFSET = 5.0


def matrix_numbers(*frames: np.ndarray) -> np.ndarray:
    """What MATRIX writes: `up`; `up, up_backward`; or `up, up_backward, down, down_backward`. Lines interleaved."""
    pairs = [np.stack([frames[i], frames[i + 1][:, ::-1]], axis=1) for i in range(0, len(frames) - 1, 2)]
    return np.concatenate([pair.ravel() for pair in pairs or frames]).astype(np.int32)


def matrix_data(numbers: np.ndarray, planned: int | None = None, measured: int | None = None) -> bytes:
    counts = (len(numbers) if planned is None else planned, len(numbers) if measured is None else measured)
    description = struct.pack("<4s2IQ2i", b"C\0D\0", 30, 110, 0, *counts) + struct.pack(
        "<I8s3Ii", 4, "SI32".encode("utf-16-le"), 4, 1, 0, counts[0]
    )
    raw = numbers.astype("<i4").tobytes()
    blocks = b"CSED" + struct.pack("<I", len(description)) + description + b"ATAD" + struct.pack("<I", len(raw)) + raw
    return b"ONTMATRX0101TLKB" + struct.pack("<IQI", 4 + len(blocks), 1_443_600_000, 0) + blocks


def _matrix_string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode("utf-16-le")


def _matrix_value(value: bool | int | float | str) -> bytes:
    if isinstance(value, bool):
        return b"LOOB" + struct.pack("<I", value)
    if isinstance(value, int):
        return b"GNOL" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"BUOD" + struct.pack("<d", value)
    return b"GRTS" + _matrix_string(value)


def _matrix_block(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<IQ", len(body), 1_443_600_000) + body


def _matrix_inner(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body


def matrix_modified(name: str, unit: str, value: bool | int | float | str) -> bytes:
    """The block that a change of a parameter of the scanner makes."""
    words = _matrix_string("XYScanner") + _matrix_string(name) + _matrix_string(unit)
    return _matrix_block(b"DOMP", bytes(4) + words + bytes(4) + _matrix_value(value))


def matrix_reference(name: str = MATRIX_NAME) -> bytes:
    """The block that says: here the file of this name was written."""
    return _matrix_block(b"FERB", bytes(4) + _matrix_string(name))


def matrix_result(
    num_lines: int,
    width: int,
    *,
    back: bool = True,
    down: bool = True,
    size: tuple[float, float] = (2e-8, 4e-8),
    parameters: Mapping[str, Any] | None = None,
    transfer: tuple[str, Mapping[str, float]] = ("TFF_Linear1D", {"Factor": MATRIX_FACTOR, "Offset": MATRIX_OFFSET}),
    references: Sequence[str] = (MATRIX_NAME,),
) -> bytes:
    """A result file, as far as images need it."""
    scanner: dict[str, Any] = {"X_Retrace": back, "Y_Retrace": down, "Points": width, "Lines": num_lines}
    scanner.update(Height=float(size[0]), Width=float(size[1]), X_Offset=0.0, Y_Offset=0.0, Angle=0)
    scanner.update(parameters or {})
    elements = bytes(4) + struct.pack("<I", 1) + _matrix_string("XYScanner") + struct.pack("<I", len(scanner))
    for name, value in scanner.items():
        elements += _matrix_string(name) + _matrix_string("--") + bytes(4) + _matrix_value(value)
    channels = bytes(8) + struct.pack("<2I", 0, 1) + bytes(4) + struct.pack("<I", 7) + bytes(8)
    channels += _matrix_string("Z") + _matrix_string("m") + struct.pack("<I", 1) + b"\1\2\3\4\5\6\7\x08" + bytes(4)
    channels += struct.pack("<I", 7) + _matrix_string("Default::XYScanner::Z")
    form, numbers = transfer
    transfers = bytes(4) + struct.pack("<I", 7) + _matrix_string(form) + _matrix_string("m")
    transfers += struct.pack("<I", len(numbers))
    transfers += b"".join(_matrix_string(name) + _matrix_value(float(value)) for name, value in numbers.items())
    return (
        b"ONTMATRX0101"
        + _matrix_block(b"APEE", elements)
        + _matrix_block(b"YSCC", bytes(4) + _matrix_inner(b"TCID", channels) + _matrix_inner(b"REFX", transfers))
        + b"".join(map(matrix_reference, references))
        + _matrix_block(b"DEOE", b"")
    )


# Gwyddion


def gwy(fields: Mapping[str, np.ndarray], *, xy_unit: str = "m", z_unit: str = "m", **real: float) -> bytes:
    """By gwyfile: one channel a field, under its title."""
    from gwyfile.objects import GwyContainer, GwyDataField

    container = GwyContainer()
    for place, (title, heights) in enumerate(fields.items()):
        container[f"/{place}/data/title"] = title
        field = GwyDataField(heights.astype(np.float64), si_unit_xy=xy_unit, si_unit_z=z_unit, **real)
        container[f"/{place}/data"] = field
        container[f"/{place}/mask"] = GwyDataField(np.zeros(heights.shape))
    return b"GWYP" + container.serialize()


def gsf(heights: np.ndarray, **fields: object) -> bytes:
    header = {"XRes": heights.shape[1], "YRes": heights.shape[0], **fields}
    text = "Gwyddion Simple Field 1.0\n" + "".join(f"{name} = {value}\n" for name, value in header.items())
    start = text.encode()
    return start + bytes(4 - len(start) % 4) + heights.astype("<f4").tobytes()


# RHK


@dataclass(frozen=True)
class Sm4Page:
    """Raw numbers as they lie in the file, and the header of their page."""

    raw: np.ndarray
    label: str = "Topography"
    unit: str = "m"
    scan_type: int = 0  # 0 to the right, 1 to the left
    scales: tuple[float, float, float] = (2e-10, 1e-10, 1e-12)
    offset: float = 0.0
    completed: str = "0"
    kind: int = 0  # 0 an image, 1 lines
    size: tuple[int, int] | None = None  # what the header says, if not the truth


def sm4(*pages: Sm4Page, date: str = "04/07/25") -> bytes:
    """Header, page index, and then for every page its header, strings and numbers."""

    def entry(kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<3I", kind, offset, size)

    index, array = 58 + 12, 58 + 12 + 16 + 12
    start = array + len(pages) * (32 + 2 * 12)
    entries, bodies = b"", b""
    for number, page in enumerate(pages):
        num_lines, width = page.size or page.raw.shape
        raw = page.raw.astype("<i4").tobytes()
        words = [page.label, "", "", "", "scan.sm4", date, "14:18:06", "m", "m", page.unit, "", "", "", page.completed]
        words += ["0", "", "", "A"]
        strings = b"".join(struct.pack("<H", len(word)) + word.encode("utf-16-le") for word in words)
        place = start + len(bodies)
        header = struct.pack("<2H", 170, len(words)) + struct.pack("<5I", 1, 0, 0, 0, 0)
        header += struct.pack("<4I", width, num_lines, 0, page.scan_type) + struct.pack("<4I", 0, len(raw), 0, 0)
        header += struct.pack("<11f", *page.scales, 0, 0, 0, page.offset, 0, 1, 1e-10, 0)
        header += struct.pack("<4I", 0, 0, 0, 1) + bytes(64) + entry(10, place + 192, len(strings))
        entries += bytes([number] * 16) + struct.pack("<4I", page.kind, 0, 2, 6)
        entries += entry(3, place, len(header)) + entry(4, place + len(header) + len(strings), len(raw))
        bodies += header + strings + raw
    signature = "STiMage 005.006 1".ljust(18, "\0").encode("utf-16-le")
    header = struct.pack("<H", 56) + signature + struct.pack("<3I", len(pages), 1, 12) + bytes(8)
    page_index = struct.pack("<2I", len(pages), 1) + bytes(8) + entry(2, array, 1)
    return header + entry(1, index, 16) + page_index + entries + bodies


# Createc


def createc(
    frames: Sequence[np.ndarray],
    *,
    channels: int = 2,
    fields: Mapping[str, object] | None = None,
    compressed: bool = True,
    stop: int | None = None,
) -> bytes:
    """Frames forward (Z, current, ...) and then backward, in the units of the converter."""
    num_lines, width = frames[0].shape
    header = {
        "DAC-Type": "20bit",
        "Titel(File) / Titel": "LN2",
        "Num.X / Num.X": width,
        "Num.Y / Num.Y": num_lines,
        "  /  ": " ",
        "Chan(1,2,4) / ScanChannels": channels,
        "Channels / Channels": len(frames),
        "Dacto[A]z": "0.00037",
        "Length x[A]": "400.0",
        "Length y[A]": "200.0",
        **(fields or {}),
    }
    text = "[Paramco32]\r\n" if compressed else "[Paramet32]\r\n"
    text += "".join(f"{name}={value}\r\n" for name, value in header.items())
    start = text.encode("cp1252") + bytes(64) + b"\nDATA"
    raw = b"".join([bytes(4), *(frame.astype("<f4").tobytes() for frame in frames)])[:stop]
    return start + zlib.compress(raw) if compressed else start.ljust(16384, b"\0") + raw


# pictures and arrays


def picture(heights: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(heights).save(buffer, format=kind, **options)
    return buffer.getvalue()


def palette(places: np.ndarray, kind: str, colours: np.ndarray | None = None, **options: Any) -> bytes:
    """A picture of places in a table of 256 colours `[256, 3]`; by default greys."""
    image = Image.new("P", places.shape[::-1])
    image.putdata(places.ravel().tolist())
    image.putpalette((np.repeat(np.arange(256), 3) if colours is None else colours).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """By tifffile."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    """An array that ends after its header."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


# every kind, one sample each: the files to lie beside each other, the first of them to be read


def _bytes(heights: np.ndarray) -> np.ndarray:
    low, high = heights.min(), heights.max()
    return np.round((heights - low) / max(high - low, 1e-30) * 255).astype(np.uint8)


def _numbers(heights: np.ndarray) -> np.ndarray:
    return np.round((heights - heights.min()) * 1e12).astype(np.int64)


def _both(heights: np.ndarray) -> Frames:
    return {name: {"forward": heights, "backward": 0.9 * heights} for name in ("Z", "Current")}


def _matrix(heights: np.ndarray) -> dict[str, bytes]:
    frames = [_numbers(heights) * weight for weight in (10, 9, 8, 7)]
    return {
        MATRIX_NAME: matrix_data(matrix_numbers(*frames)),
        MATRIX_NAME.partition("--")[0] + "_0001.mtrx": matrix_result(*heights.shape),
    }


def _alone(heights: np.ndarray) -> dict[str, bytes]:
    side = min(heights.shape)
    frames = [_numbers(heights)[:side, :side] * weight for weight in (10, 9, 8, 7)]
    return {MATRIX_NAME: matrix_data(matrix_numbers(*frames))}


SAMPLES: dict[str, Callable[[np.ndarray], dict[str, bytes]]] = {
    "sxm": lambda heights: {"scan.sxm": sxm(_both(heights))},
    "matrix": _matrix,
    "matrix-alone": _alone,
    "gwy": lambda heights: {"scan.gwy": gwy({"Height": heights, "Current": heights}, xreal=4e-8, yreal=2e-8)},
    "gsf": lambda heights: {"scan.gsf": gsf(heights, XReal="4e-8", YReal="2e-8", XYUnits="m", ZUnits="m", Title="Z")},
    "sm4": lambda heights: {
        "scan.sm4": sm4(Sm4Page(_numbers(heights)), Sm4Page(_numbers(heights)[:, ::-1], "Current", "A", scan_type=1))
    },
    "createc": lambda heights: {"scan.dat": createc([1e10 * heights] * 4)},
    "createc-raw": lambda heights: {"scan.dat": createc([1e10 * heights] * 4, compressed=False)},
    "png": lambda heights: {"scan.png": picture(_bytes(heights), "png")},
    "png-16": lambda heights: {"scan.png": picture(257 * _bytes(heights).astype(np.uint16), "png")},
    "jpg": lambda heights: {"scan.jpg": picture(_bytes(heights), "jpeg")},
    "bmp": lambda heights: {"scan.bmp": picture(_bytes(heights), "bmp")},
    "tif": lambda heights: {"scan.tif": tiff(heights.astype(np.float32), compression="zlib")},
    "tif-plain": lambda heights: {"scan.tif": tiff(heights.astype(np.float32))},
    "tif-colours": lambda heights: {
        "scan.tif": tiff(np.stack([257 * _bytes(heights).astype(np.uint16)] * 3), photometric="rgb", planarconfig=2)
    },
    "tif-palette": lambda heights: {"scan.tif": palette(_bytes(heights), "tiff", compression="tiff_lzw")},
    "npy": lambda heights: {"scan.npy": npy(heights)},
}
