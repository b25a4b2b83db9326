"""
Gwyddion `.gwy` and `.gsf`.

Read here and not by gwyfile, which does not come back from a list of strings that is cut short. Formats: Gwyddion user
guide, "Gwyddion file formats" (http://gwyddion.net/documentation/user-guide-en/).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..scan import ScanReadError, check_size
from .frame import Frame, find_channel, metres, read_frame

SIZES = {"b": 1, "c": 1, "i": 4, "q": 8, "d": 8}  # of single values, by type code
ITEM_SIZES = {"C": 1, "I": 4, "Q": 8, "D": 8}  # of the items of arrays
MAX_DEPTH = 32


def _end_of_string(data: bytes, start: int, stop: int) -> int:
    end = data.find(b"\0", start, stop)
    if end < 0:
        raise ValueError("a string without an end")
    return end


def _components(data: bytes, start: int, stop: int, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values of an object's components: numbers, strings, `memoryview` of arrays, lists, (type, dict)."""
    if depth > MAX_DEPTH:
        raise ValueError("objects within objects without end")
    while start < stop:
        end = _end_of_string(data, start, stop)
        name, kind = data[start:end].decode("utf-8"), chr(data[end + 1])
        start = end + 2
        value: Any
        if kind == "o":
            value, start = _object(data, start, stop, depth)
        elif kind == "s":
            end = _end_of_string(data, start, stop)
            value, start = data[start:end].decode("utf-8", errors="replace"), end + 1
        elif kind in SIZES:
            form = {"b": "<?", "c": "<c"}.get(kind, f"<{kind}")
            value, start = struct.unpack_from(form, data, start)[0], start + SIZES[kind]
            if kind == "c":  # gwyfile writes titles of one letter so
                value = value.decode("latin-1")
        elif kind in ITEM_SIZES or kind in ("S", "O"):
            (count,) = struct.unpack_from("<I", data, start)
            start += 4
            if kind in ITEM_SIZES:
                end = start + count * ITEM_SIZES[kind]
                value, start = memoryview(data)[start:end], end
            else:
                value = []
                for _ in range(count):  # each takes a byte at least, so that this ends
                    if kind == "S":
                        end = _end_of_string(data, start, stop)
                        start = end + 1
                    else:
                        item, start = _object(data, start, stop, depth)
                        value.append(item)
        else:
            raise ValueError(f"a component of unknown type {kind!r}")
        if start > stop:
            raise ValueError("a component longer than the object that it is in")
        yield name, value


def _object(data: bytes, start: int, stop: int, depth: int) -> tuple[tuple[str, dict[str, Any]], int]:
    end = _end_of_string(data, start, stop)
    (size,) = struct.unpack_from("<I", data, end + 1)
    first, last = end + 5, end + 5 + size
    if last > stop:
        raise ValueError("an object longer than what it is in")
    return (data[start:end].decode("utf-8"), dict(_components(data, first, last, depth + 1))), last


def _unit(field: dict[str, Any], name: str) -> str:
    nothing: tuple[str, dict[str, Any]] = ("", {})
    kind, unit = field.get(name) or nothing
    return str(unit.get("unitstr", "")) if kind == "GwySIUnit" else ""


def _size_nm(height: Any, width: Any, unit: str) -> tuple[float, float] | None:
    scale = metres(unit)
    if scale is None or height is None or width is None:
        return None
    return 1e9 * scale * float(height), 1e9 * scale * float(width)


def read_gwy(path: Path, channel: str | None, direction: str) -> Frame:
    """One of the images of a Gwyddion file, by its title; the file does not say how it was scanned."""
    data = path.read_bytes()
    if not data.startswith(b"GWYP"):
        raise ScanReadError(f"{path}: is no Gwyddion file (it does not start with GWYP).")
    (_, entries), _ = _object(data, 4, len(data), 0)
    fields = {
        name.removeprefix("/").removesuffix("/data"): value[1]
        for name, value in entries.items()
        if isinstance(value, tuple) and value[0] == "GwyDataField" and name.endswith("/data")
    }
    titles = [str(entries.get(f"/{name}/data/title", name)) for name in fields]
    units = [_unit(field, "si_unit_z") for field in fields.values()]
    index = find_channel(path, titles, units, channel)
    field = list(fields.values())[index]
    num_lines, width = int(field["yres"]), int(field["xres"])
    check_size(path, num_lines, width)
    heights = np.frombuffer(field["data"], "<f8", num_lines * width).reshape(num_lines, width)
    return Frame(
        heights=heights * (metres(units[index]) or 1),
        channel=titles[index],
        size_nm=_size_nm(field.get("yreal"), field.get("xreal"), _unit(field, "si_unit_xy")),
    )


def read_gsf(path: Path, channel: str | None, direction: str) -> Frame:
    """A Gwyddion Simple Field: a text header, padding to a multiple of four, little-endian float32."""
    with path.open("rb") as file:
        start = file.read(2**20)
    end = start.find(b"\0")
    if not start.startswith(b"Gwyddion Simple Field 1.0\n") or end < 0:
        raise ScanReadError(f"{path}: is no Gwyddion Simple Field 1.0 with a complete header.")
    pairs = (line.partition("=") for line in start[:end].decode("utf-8", errors="replace").split("\n")[1:])
    header = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "xres" not in header or "yres" not in header:
        raise ScanReadError(f"{path}: its header does not say XRes and YRes.")
    heights = read_frame(path, end + 4 - end % 4, "<f4", int(header["yres"]), int(header["xres"]))
    title = header.get("title") or None
    if title is not None:
        find_channel(path, [title], [], channel)
    return Frame(
        heights=heights * (metres(header.get("zunits", "")) or 1),
        channel=title,
        size_nm=_size_nm(header.get("yreal"), header.get("xreal"), header.get("xyunits", "")),
    )
