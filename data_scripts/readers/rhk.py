"""
RHK `.sm4`.

Read here: spym, which can, is not importable without packages that it does not ask for, puts frames that are not
square out of order, and trusts every count in the file. Format: RHK Technology, "SM4 file format".
"""

import struct
from pathlib import Path
from typing import NamedTuple

from ..scan import ScanReadError, day_of
from .frame import Frame, blank_unwritten, find_channel, on_one_line, read_frame, split_direction

PAGE_INDEX_HEADER, PAGE_INDEX_ARRAY, PAGE_HEADER, PAGE_DATA, STRINGS = 1, 2, 3, 4, 10  # kinds of objects
IMAGE_PAGE = 0
FORWARD, BACKWARD = 0, 1  # scan types: to the right, to the left
LABEL, DATE, Z_UNITS, COMPLETED_LINES = 0, 5, 9, 13  # places among a page's strings
MAX_PAGES, MAX_OBJECTS = 1024, 256


class _Page(NamedTuple):
    label: str
    unit: str
    scan_type: int
    size: tuple[int, int]  # lines, pixels
    scales: tuple[float, float, float, float]  # x, y, z, offset of z
    offset: int
    date: str
    completed_lines: int | None


def _objects(data: bytes, start: int, count: int) -> dict[int, int]:
    """Where the objects of a list lie, by kind."""
    if count > MAX_OBJECTS:
        raise ValueError(f"a list of {count} objects")
    entries = [struct.unpack_from("<3I", data, start + 12 * index) for index in range(count)]
    return {kind: offset for kind, offset, size in reversed(entries) if size}


def _strings(data: bytes, start: int, count: int) -> list[str]:
    strings = []
    for _ in range(min(count, COMPLETED_LINES + 1)):
        (length,) = struct.unpack_from("<H", data, start)
        strings.append(data[start + 2 : start + 2 + 2 * length].decode("utf-16-le", errors="replace").rstrip("\0"))
        start += 2 + 2 * length
    return strings


def _page(data: bytes, objects: dict[int, int]) -> _Page:
    start = objects[PAGE_HEADER]
    (num_strings,) = struct.unpack_from("<H", data, start + 2)
    # page type, sub-source, line type, corners, width, lines, image type, scan type
    width, num_lines, _, scan_type = struct.unpack_from("<4I", data, start + 24)
    x_scale, y_scale, z_scale, _, _, _, z_offset = struct.unpack_from("<7f", data, start + 56)
    (num_objects,) = struct.unpack_from("<I", data, start + 112)
    inner = _objects(data, start + 180, num_objects)
    strings = _strings(data, inner[STRINGS], num_strings) if STRINGS in inner else []
    strings += [""] * (COMPLETED_LINES + 1 - len(strings))
    completed = strings[COMPLETED_LINES].strip()
    return _Page(
        label=strings[LABEL],
        unit=strings[Z_UNITS],
        scan_type=scan_type,
        size=(num_lines, width),
        scales=(x_scale, y_scale, z_scale, z_offset),
        offset=objects[PAGE_DATA],
        date=strings[DATE],
        completed_lines=int(completed) if completed.isdecimal() and len(completed) < 10 else None,
    )


def read_sm4(path: Path, channel: str | None, direction: str) -> Frame:
    """One of the image pages of a file."""
    data = path.read_bytes()
    if data[2:38].decode("utf-16-le", errors="replace")[:7] != "STiMage":
        raise ScanReadError(f"{path}: is no RHK SM4 file (it does not start with STiMage).")
    header_size, *_ = struct.unpack_from("<H", data)
    _, num_objects = struct.unpack_from("<2I", data, 38)
    index_header = _objects(data, header_size + 2, num_objects)[PAGE_INDEX_HEADER]
    num_pages, num_objects = struct.unpack_from("<2I", data, index_header)
    if num_pages > MAX_PAGES:
        raise ScanReadError(f"{path}: says that it has {num_pages} pages, which no file has.")
    place = _objects(data, index_header + 16, num_objects)[PAGE_INDEX_ARRAY]
    pages = []
    for _ in range(num_pages):
        kind, _, num_objects = struct.unpack_from("<3I", data, place + 16)
        objects = _objects(data, place + 32, num_objects)
        place += 32 + 12 * num_objects
        if kind == IMAGE_PAGE and PAGE_HEADER in objects and PAGE_DATA in objects:
            pages.append(_page(data, objects))

    fast = split_direction(path, direction, None)
    label = pages[find_channel(path, [page.label for page in pages], [page.unit for page in pages], channel)].label
    scan_type = BACKWARD if fast == "backward" else FORWARD
    page = next((page for page in pages if (page.label, page.scan_type) == (label, scan_type)), None)
    if page is None:
        raise ScanReadError(f"{path}: holds no {fast} frame of its channel {on_one_line(label)}.")
    x_scale, y_scale, z_scale, z_offset = page.scales
    num_lines, width = page.size
    heights = read_frame(path, page.offset, "<i4", num_lines, width)
    # the sign of x_scale is often the same forth and back, so that it does not tell how a line was filled
    heights = blank_unwritten(heights, backwards=None) * z_scale + z_offset
    if page.completed_lines is not None and 0 < page.completed_lines < num_lines:
        heights[page.completed_lines :] = float("nan")
    return Frame(
        heights=heights[:, ::-1] if x_scale < 0 else heights,  # a negative step: the tip went to the left
        channel=page.label,
        direction=fast,
        size_nm=(1e9 * abs(y_scale) * num_lines, 1e9 * abs(x_scale) * width),
        session=day_of(page.date, "%m/%d/%y", "%m/%d/%Y"),
    )
