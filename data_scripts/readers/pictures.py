"""Pictures and arrays: heights without units, row 0 acquired first."""

import contextlib
import io
import lzma
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modeling_scanline.image_processing_scanline import heights_from_colours

from ..scan import MAX_PIXELS, ScanReadError, check_size
from .frame import Frame

_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libtiff, in Pillow, prints past Python about broken files."""
    with _stderr_lock, Path(os.devnull).open("wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _content(path: Path) -> io.BytesIO:
    """The file in memory: from disk, as many bytes as a broken header asks for would be allocated."""
    return io.BytesIO(path.read_bytes())


def _heights(values: np.ndarray) -> np.ndarray:
    if values.ndim == 3 and values.shape[-1] == 2:  # grey with transparency
        values = values[..., 0]
    return heights_from_colours(values) if values.ndim == 3 else values


def read_picture(path: Path, channel: str | None, direction: str) -> Frame:
    """PNG, JPEG, BMP: grey as it is, colours back to the heights that SPM software colours so."""
    with Image.open(_content(path)) as image:
        check_size(path, image.height, image.width)
        coded = image.mode in ("P", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB")
        return Frame(_heights(np.asarray(image.convert("RGB") if coded else image)))


def _check_unpacked(path: Path, page: Any, content: io.BytesIO) -> None:
    """Raises `ScanReadError` if a strip unpacks to more than its share of the picture, before it takes the memory."""
    import tifffile

    unpackers: dict[int, Callable[[], Any]] = {
        tifffile.COMPRESSION.ADOBE_DEFLATE: zlib.decompressobj,
        tifffile.COMPRESSION.DEFLATE: zlib.decompressobj,
        tifffile.COMPRESSION.LZMA: lzma.LZMADecompressor,
    }
    unpacker = unpackers.get(page.compression)
    if unpacker is None:
        return
    largest = math.prod(page.chunks) * math.ceil(page.bitspersample / 8)
    packed = content.getbuffer()
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if len(unpacker().decompress(packed[offset : offset + length], largest + 1)) > largest:
            raise ScanReadError(f"{path}: a strip unpacks to more than its {largest} bytes of the picture.")


def read_tiff(path: Path, channel: str | None, direction: str) -> Frame:
    """
    TIFF by `tifffile`, which also reads 16-bit colours and floating point of any width; what it does not, by Pillow
    (compressions that it leaves to a package of codecs, palettes).
    """
    import tifffile

    content = _content(path)
    with tifffile.TiffFile(content) as file:
        page: Any = file.pages[0]  # the first is always whole, not only a frame of another page's kind
        check_size(path, page.imagelength, page.imagewidth)
        if page.samplesperpixel > 4 or page.imagedepth > 1:
            raise ScanReadError(f"{path}: has {page.samplesperpixel} samples a pixel, expected grey or colours.")
        if page.nbytes > 8 * MAX_PIXELS:
            raise ScanReadError(
                f"{path}: says that it has {page.nbytes / 2**30:.1f} GiB of pixels, which no scan has."
            )
        needed = math.prod(page.chunked)
        if len(page.dataoffsets) < needed:  # tifffile would make up the rest
            raise ScanReadError(f"{path}: lists {len(page.dataoffsets)} of the {needed} strips that its size needs.")
        if page.photometric in (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.YCBCR):
            with _quiet():
                return read_picture(path, channel, direction)
        _check_unpacked(path, page, content)
        try:
            values = page.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                with _quiet():
                    return read_picture(path, channel, direction)
            raise
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        white_is_zero = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    heights = _heights(np.squeeze(values) if values.ndim > 3 else values)
    return Frame(np.nanmax(heights) - heights.astype(np.float64) if white_is_zero and heights.size else heights)


def read_npy(path: Path, channel: str | None, direction: str) -> Frame:
    """An array as it is. A header that promises more than the file holds is refused before memory is taken."""
    if zipfile.is_zipfile(path):
        raise ScanReadError(f"{path}: holds an archive of arrays, expected one array [lines, pixels].")
    # mapped for the sake of its header alone: to touch a map whose file is being written anew kills the program
    mapped = np.lib.format.open_memmap(path, mode="r")
    if mapped.ndim == 2 and mapped.size:
        check_size(path, *mapped.shape)
    heights = np.fromfile(path, mapped.dtype, mapped.size, offset=mapped.offset)
    return Frame(heights.reshape(mapped.shape, order="F" if mapped.flags.fnc else "C"))
