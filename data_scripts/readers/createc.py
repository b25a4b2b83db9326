"""
Createc `.dat`.

Read here: there is no well-kept library. Format as Createc's own software writes it: a header of `key=value` lines,
the word DATA, and compressed little-endian float32: one number that means nothing, then the frames, Z forward, current
forward and so on, then the backward ones, which are mirrored already. Older files hold the same without compression.
"""

import re
import zlib
from pathlib import Path

import numpy as np

from ..scan import ScanReadError, check_size
from .frame import Frame, blank_unwritten, find_channel, pad_lines, split_direction

KINDS = (b"[Paramco32]", b"[Paramet32]")
# the word may also stand in the title: what follows it is the end of the header, or the first bytes of zlib's
DATA = {True: re.compile(rb"DATA(?=x[\x01\x5e\x9c\xda])"), False: re.compile(rb"\nDATA|\0DATA")}
HEADER = 16384  # bytes of a header without compression
CHUNK = 2**16
NAMES = (("Z", "m"), ("Current", "A"), ("ADC1", "V"), ("ADC2", "V"))
NUM_CHANNELS = {1: 1, 2: 2, 4: 4}  # by the header's Chan(1,2,4)


def _inflate(data: memoryview, start: int, length: int) -> bytes:
    """`length` bytes from `start` on of what was compressed, or those that there are; takes memory for them only."""
    stream, found = zlib.decompressobj(), bytearray()
    for place in range(0, len(data), CHUNK):
        piece: bytes | memoryview = data[place : place + CHUNK]
        while piece and len(found) < length:
            some = stream.decompress(piece, 16 * CHUNK)
            piece = stream.unconsumed_tail
            found += some[start:]
            start = max(0, start - len(some))
        if len(found) >= length or stream.eof:
            break
    else:
        found += stream.flush()[start:]
    return bytes(found[:length])


def read_createc(path: Path, channel: str | None, direction: str) -> Frame:
    """A frame of an image file; of several images in one file, the first."""
    blob = path.read_bytes()
    if not blob.startswith(KINDS):
        raise ScanReadError(f"{path}: is no image file of Createc's (.dat is also what others call their spectra).")
    compressed = blob.startswith(KINDS[0])
    found = DATA[compressed].search(blob)
    if found is None:
        raise ScanReadError(f"{path}: ends within its header. Is the file complete?")
    header: dict[str, str] = {}
    for line in blob[: found.start()].decode("cp1252", errors="replace").split("\n"):
        key, separator, value = line.partition("=")
        for name in key.split(" / "):
            if separator:
                header.setdefault(name.strip().lower(), value.strip())

    def number(*names: str) -> float | None:
        return next((float(header[name]) for name in names if name in header), None)

    width, num_lines = int(number("num.x") or 0), int(number("num.y") or 0)
    check_size(path, num_lines, width)
    num_channels = NUM_CHANNELS.get(int(number("chan(1,2,4)", "scanchannels") or 0), 1)
    fast = split_direction(path, direction, None)
    index = find_channel(path, [name for name, _ in NAMES[:num_channels]], [], channel)
    if fast == "backward":
        if int(number("channels") or 0) < 2 * num_channels:
            raise ScanReadError(f"{path}: holds no backward frame.")
        index += num_channels
    start, length = 4 * (1 + index * width * num_lines), 4 * width * num_lines
    if compressed:
        data = _inflate(memoryview(blob)[found.end() :], start, length)
    else:
        start += max(found.end(), HEADER)
        data = blob[start : start + length]
    complete = len(data) // (4 * width)
    if complete == 0:
        raise ScanReadError(f"{path}: ends before the first line of the frame. Is the file complete?")
    heights = pad_lines(np.frombuffer(data, "<f4", complete * width).reshape(complete, width), num_lines)
    heights = blank_unwritten(heights, backwards=fast == "backward")

    name, _ = NAMES[index % num_channels]
    angstroms = number("dacto[a]z") if name == "Z" else None
    sides = number("length y[a]"), number("length x[a]")
    return Frame(
        heights=heights * (1e-10 * angstroms) if angstroms else heights,
        channel=name,
        direction=fast,
        size_nm=(sides[0] / 10, sides[1] / 10) if sides[0] and sides[1] else None,
    )
