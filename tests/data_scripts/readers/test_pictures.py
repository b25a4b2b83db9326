import contextlib
import io
import lzma
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile
from writers import npy, npy_header, palette, picture, tiff

from data_scripts import ScanReadError, read_scan

HEIGHTS = (np.arange(12 * 17) * 255 // (12 * 17 - 1)).astype(np.uint8).reshape(12, 17)  # each row above the last


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def small(path: Path, refusal: Callable[..., str]) -> str:
    """Why a file is refused, without much memory taken."""
    tracemalloc.start()
    reason = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
    return reason


class TestPictures:
    @pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "tiff"])
    def test_grey(self, ending, tmp_path):
        path = tmp_path / f"scan.{ending}"
        Image.fromarray(HEIGHTS).save(path)
        scan = read_scan(path)
        assert scan.lines.dtype == np.float32
        np.testing.assert_array_equal(scan.lines, HEIGHTS)

    @pytest.mark.parametrize("ending", ["png", "tif"])
    def test_grey_of_16_bits(self, ending, tmp_path):
        heights = HEIGHTS.astype(np.uint16) * 257
        Image.fromarray(heights).save(tmp_path / f"scan.{ending}")
        np.testing.assert_array_equal(read_scan(tmp_path / f"scan.{ending}").lines, heights)

    @pytest.mark.parametrize("opacity", [[], [255]])
    def test_orange_colour_map_is_height(self, opacity, orange, tmp_path):
        colours = np.concatenate(
            [orange(HEIGHTS), np.full((*HEIGHTS.shape, len(opacity)), opacity, np.uint8)], axis=-1
        )
        Image.fromarray(colours).save(tmp_path / "scan.png")
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").lines, HEIGHTS)

    @pytest.mark.parametrize(
        ("ending", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("bmp", {})]
    )
    def test_palette(self, ending, options, orange, put):
        """The orange colour map, its entries in reverse order."""
        kind = "tiff" if ending == "tif" else ending
        content = palette(255 - HEIGHTS, kind, orange(np.arange(255, -1, -1)), **options)
        np.testing.assert_array_equal(read_scan(put(f"scan.{ending}", content)).lines, HEIGHTS)

    def test_grey_with_transparency(self, tmp_path):
        Image.fromarray(np.stack([HEIGHTS, 255 - HEIGHTS], axis=-1)).save(tmp_path / "scan.png")
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").lines, HEIGHTS)

    def test_black_and_white(self, tmp_path):
        Image.fromarray(HEIGHTS > 100).save(tmp_path / "scan.png")
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").lines > 0, HEIGHTS > 100)

    def test_other_colour_map_keeps_the_order_of_heights(self, tmp_path):
        zero = np.zeros_like(HEIGHTS)
        Image.fromarray(np.stack([zero, HEIGHTS, zero + 40], axis=-1)).save(tmp_path / "scan.png")
        lines = read_scan(tmp_path / "scan.png").lines
        assert (np.diff(lines.ravel())[np.diff(HEIGHTS.ravel()) > 0] > 0).all()

    def test_tiff_of_floats_keeps_values_and_gaps(self, tmp_path):
        heights = HEIGHTS.astype(np.float32) * 1e-10
        heights[-2:] = np.nan
        Image.fromarray(heights).save(tmp_path / "scan.tif")
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.tif").lines, heights)

    @pytest.mark.parametrize("coloured", [False, True])
    def test_jpeg(self, coloured, orange, tmp_path):
        Image.fromarray(orange(HEIGHTS) if coloured else HEIGHTS).save(tmp_path / "scan.jpg", quality=95)
        lines = read_scan(tmp_path / "scan.jpg").lines
        assert lines.shape == HEIGHTS.shape
        assert np.corrcoef(lines.ravel(), HEIGHTS.ravel())[0, 1] > 0.99


class TestTiff:
    @pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<i2", "<u4", ">i4", "f2", "<f4", ">f4", "f8"])
    @pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 5}])
    def test_grey_of_every_width(self, kind, options, put):
        heights = (HEIGHTS // 2).astype(kind)
        path = put("scan.tif", tiff(heights, **options))
        np.testing.assert_array_equal(read_scan(path).lines, heights.astype(np.float32))

    @pytest.mark.parametrize("planar", [False, True])
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_colours(self, kind, planar, orange, put):
        heights = HEIGHTS.astype(kind) * (1 if kind == np.uint8 else 257)
        colours = orange(HEIGHTS).astype(kind) * (1 if kind == np.uint8 else 257)
        colours = np.moveaxis(colours, -1, 0) if planar else colours
        options = {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
        np.testing.assert_array_equal(read_scan(put("scan.tif", tiff(colours, **options))).lines, heights)

    def test_white_is_zero(self, put):
        lines = read_scan(put("scan.tif", tiff(255 - HEIGHTS, photometric="miniswhite"))).lines
        np.testing.assert_array_equal(lines - lines.min(), HEIGHTS)

    def test_of_several_pages_the_first(self, put):
        content = tiff(np.stack([HEIGHTS, 255 - HEIGHTS]), photometric="minisblack")
        np.testing.assert_array_equal(read_scan(put("scan.tif", content)).lines, HEIGHTS)

    @pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
    def test_compressed_by_pillow(self, compression, put):
        lines = read_scan(put("scan.tif", picture(HEIGHTS, "tiff", compression=compression))).lines
        np.testing.assert_allclose(lines, HEIGHTS, atol=0 if compression != "jpeg" else 12)

    def test_too_many_samples(self, put, refusal):
        content = tiff(np.zeros((4, 5, 6), np.uint8), photometric="minisblack", planarconfig="contig")
        assert "6 samples a pixel" in refusal(put("scan.tif", content))

    def test_broken_strip_prints_nothing(self, put, capfd):
        """libtiff, in Pillow, prints past Python."""
        content = bytearray(palette(HEIGHTS, "tiff", compression="tiff_lzw"))
        content[12:40] = b"\xa5" * 28
        path = put("scan.tif", bytes(content))
        with contextlib.suppress(ScanReadError):
            read_scan(path)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("compression", ["zlib", "lzma"])
    def test_strip_that_unpacks_to_gigabytes_is_refused_before_it_does(self, compression, tmp_path, refusal):
        pack = {"zlib": zlib.compress, "lzma": lzma.compress}[compression]
        strip = pack(bytes(200_000_000))
        path = tmp_path / "bomb.tif"
        tifffile.imwrite(path, iter([strip]), shape=(20, 30), dtype="u1", compression=compression)
        assert "unpacks to more than its 600 bytes" in small(path, refusal)


class TestArrays:
    @pytest.mark.parametrize("kind", ["?", "u1", ">i2", "i8", "f2", ">f4", "f8"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_npy(self, kind, order, tmp_path):
        heights = np.asarray(HEIGHTS // 2, dtype=kind, order=order)
        np.save(tmp_path / "scan.npy", heights)
        scan = read_scan(tmp_path / "scan.npy")
        assert scan.lines.dtype == np.float32 and type(scan.lines) is np.ndarray
        np.testing.assert_array_equal(scan.lines, heights.astype(np.float32))

    @pytest.mark.filterwarnings("error")
    def test_infinite_heights_were_not_measured(self, tmp_path):
        np.save(tmp_path / "scan.npy", np.array([[1.0, np.inf], [-np.inf, 1e300]]))
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.npy").lines, [[1, np.nan], [np.nan, np.nan]])


class TestRefusals:
    @pytest.mark.parametrize("ending", ["png", "tif", "jpg", "bmp", "npy"])
    @pytest.mark.parametrize("content", [b"\n", b"not a picture at all", b"PK\x03\x04 almost a zip file"])
    def test_content_of_another_kind(self, ending, content, put, refusal):
        assert "cannot be read as a scan" in refusal(put(f"scan.{ending}", content))

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(("kind", "without_heights"), [("png", 20), ("tiff", 0), ("bmp", 3), ("npy", 0)])
    def test_every_truncation(self, kind, without_heights, tmp_path, refusal):
        whole = npy(HEIGHTS) if kind == "npy" else picture(HEIGHTS, kind)
        path = tmp_path / f"scan.{kind}"
        for length in (*range(1, len(whole) - without_heights, 7), len(whole) - without_heights - 1):
            path.write_bytes(whole[:length])
            refusal(path)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (npy(np.zeros((0, 5))), "shape [0, 5]"),
            (npy(np.zeros((5, 0))), "shape [5, 0]"),
            (npy(np.zeros((2, 3, 4))), "shape [2, 3, 4]"),
            (npy(np.zeros(7)), "shape [7]"),
            (npy(np.float64(3)), "shape []"),
            (npy(np.array([["a", "b"]])), "<U1"),
            (npy(np.ones((2, 2), dtype=complex)), "complex128"),
            (npy(np.zeros((2, 2), dtype="M8[s]")), "datetime64"),
            (npy(np.zeros((2, 2), dtype=[("z", "f4")])), "'z'"),
            (npy(np.array([[object()]], dtype=object)), "cannot be read"),
            (npz(HEIGHTS), "archive"),
            (npy_header((300_000, 300_000)), "cannot be read"),
            (npy_header((2**62, 2**62)), "cannot be read"),
            (npy_header((-2, 3)) + bytes(48), "cannot be read"),
            (b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', (((".ljust(118), "cannot be read"),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_array_that_is_no_scan(self, content, reason, tmp_path, refusal):
        (tmp_path / "scan.npy").write_bytes(content)
        assert reason in refusal(tmp_path / "scan.npy")

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("size", [(100_000, 100_000), (9000, 9000), (2**31 - 1, 1)])
    def test_header_that_promises_too_much(self, size, png_of_size, tmp_path, monkeypatch, refusal):
        decoded = []
        monkeypatch.setattr(Image.Image, "load", decoded.append)
        monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
        (tmp_path / "scan.png").write_bytes(png_of_size(*size))
        assert "pixels" in refusal(tmp_path / "scan.png")
        assert not decoded

    def test_array_header_that_promises_too_much_takes_no_memory(self, tmp_path, refusal):
        (tmp_path / "scan.npy").write_bytes(npy_header((5000, 5000)))
        small(tmp_path / "scan.npy", refusal)

    def test_picture_without_lines(self, png_of_size, tmp_path, refusal):
        (tmp_path / "scan.png").write_bytes(png_of_size(16, 0))
        refusal(tmp_path / "scan.png")

    def test_chunk_that_promises_too_much(self, put, refusal):
        """Read from the disk, its two gigabytes would be allocated."""
        content = picture(HEIGHTS, "png")
        place = content.index(b"IDAT") - 4
        content = content[:place] + (2**31 - 1).to_bytes(4, "big") + content[place + 4 : -30]
        assert "MemoryError" not in small(put("scan.png", content), refusal)

    def test_strip_that_promises_too_much(self, put, refusal):
        content = bytearray(tiff(HEIGHTS.astype(np.float32), compression="zlib"))
        place = content.index(struct.pack("<2H", 279, 4))  # StripByteCounts
        struct.pack_into("<I", content, place + 8, 2**31 - 1)
        path = put("scan.tif", bytes(content))
        tracemalloc.start()
        with contextlib.suppress(ScanReadError):
            read_scan(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**24

    @pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2)])
    def test_tiff_that_promises_too_much(self, size, put, refusal):
        content = bytearray(tiff(HEIGHTS))
        for tag, value in zip((256, 257), size, strict=True):  # ImageWidth, ImageLength
            place = next(place for place in range(400) if content[place : place + 2] == struct.pack("<H", tag))
            struct.pack_into("<2H2I", content, place, tag, 4, 1, value)
        assert "which no scan has" in small(put("scan.tif", bytes(content)), refusal)


def test_tiff_that_promises_more_strips_than_it_lists_is_refused(tmp_path):
    path = tmp_path / "scan.tif"
    tifffile.imwrite(path, np.arange(12 * 16, dtype=np.float32).reshape(12, 16), rowsperstrip=4)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageLength"].overwrite(1000)
    with pytest.raises(ScanReadError, match=r"lists 3 of the 250 strips that its size needs"):
        read_scan(path)


def test_an_array_that_is_written_anew_while_it_is_read(tmp_path):
    """In a process of its own: memory that is mapped to a file cut short is no error, it is the end of the process."""
    path = tmp_path / "scan.npy"
    np.save(path, np.ones((300, 300)))
    program = (
        "import os, sys\n"
        "from data_scripts.readers.pictures import read_npy\n"
        "from pathlib import Path\n"
        "heights = read_npy(Path(sys.argv[1]), None, 'forward').heights\n"
        "os.truncate(sys.argv[1], 0)\n"
        "sys.exit(int(heights.sum() != 90000))\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 0
