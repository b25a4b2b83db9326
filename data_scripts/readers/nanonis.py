"""
Nanonis `.sxm`.

Read here and not by nanonispy2, which needs both directions of every channel, a complete file, and no empty line among
the fields of the header. Format: Nanonis SPM Control Software manual, "File formats"; frames lie one after the other
as `DATA_INFO` lists them, forward before backward, lines in the order of acquisition, backward lines as the tip went.
"""

from pathlib import Path

from ..scan import ScanReadError, day_of
from .frame import Frame, blank_unwritten, find_channel, on_one_line, read_frame, split_direction

MAX_HEADER = 2**22
WAYS = {"both": ("forward", "backward"), "forward": ("forward",), "backward": ("backward",)}
DTYPES = {("FLOAT", "MSBFIRST"): ">f4", ("FLOAT", "LSBFIRST"): "<f4", ("INT", "MSBFIRST"): ">i4"}


def read_header(path: Path) -> tuple[dict[str, list[str]], int]:
    """The fields of the header, each with its lines, and where the frames start in the file."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER)
    end = start.find(b":SCANIT_END:")
    data = start.find(b"\x1a\x04", end)
    if not start.startswith(b":NANONIS_VERSION:") or end < 0 or data < 0:
        raise ScanReadError(f"{path}: has no complete Nanonis header.")
    fields: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in start[:end].decode("latin-1").split("\n"):
        line = line.rstrip("\r")
        if len(line) > 2 and line.startswith(":") and line.rstrip().endswith(":"):
            lines = fields.setdefault(line.rstrip()[1:-1], [])
        else:
            lines.append(line)
    return fields, data + 2


def _channels(path: Path, lines: list[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, unit and directions of every channel, as its frames lie in the file."""
    rows = [line.split("\t")[1:] for line in lines if line.strip()]
    channels = []
    for row in rows[1:]:
        entry = dict(zip(rows[0], row, strict=False))
        ways = WAYS.get(entry.get("Direction", "").strip().lower())
        if ways is None or "Name" not in entry:
            raise ScanReadError(f"{path}: its DATA_INFO does not say name and direction of every channel.")
        channels.append((entry["Name"], entry.get("Unit", ""), ways))
    return channels


def read_sxm(path: Path, channel: str | None, direction: str) -> Frame:
    """A frame of a scan file, also of one that is still being written or was aborted."""
    fields, offset = read_header(path)

    def words(name: str, count: int) -> list[str]:
        found = " ".join(fields.get(name, [])).split()
        if len(found) < count:
            raise ScanReadError(f"{path}: its header has no {name}, or not the whole of it.")
        return found

    kind = words("SCANIT_TYPE", 2)
    if tuple(kind[:2]) not in DTYPES:
        raise ScanReadError(
            f"{path}: holds numbers of type {' '.join(kind)}, expected {' '.join(next(iter(DTYPES)))}."
        )
    width, num_lines = (int(number) for number in words("SCAN_PIXELS", 2)[:2])
    slow = words("SCAN_DIR", 1)[0].lower()
    if slow not in ("up", "down"):
        raise ScanReadError(f"{path}: says that it was scanned {slow!r}, expected up or down.")
    fast = split_direction(path, direction, slow)

    channels = _channels(path, fields.get("DATA_INFO", []))
    place = find_channel(path, [name for name, _, _ in channels], [unit for _, unit, _ in channels], channel)
    name, _, ways = channels[place]
    if fast not in ways:
        raise ScanReadError(f"{path}: holds no {fast} frame of its channel {on_one_line(name)}.")
    index = sum(len(before) for _, _, before in channels[:place]) + ways.index(fast)
    heights = read_frame(path, offset + index * num_lines * width * 4, DTYPES[kind[0], kind[1]], num_lines, width)
    heights = blank_unwritten(heights)
    sides = [1e9 * float(side) for side in " ".join(fields.get("SCAN_RANGE", [])).split()]
    return Frame(
        heights=heights[:, ::-1] if fast == "backward" else heights,
        channel=name,
        direction=f"{fast}/{slow}",
        size_nm=(sides[1], sides[0]) if len(sides) == 2 else None,
        session=day_of(" ".join(fields.get("REC_DATE", [])), "%d.%m.%Y", "%Y-%m-%d"),
    )
