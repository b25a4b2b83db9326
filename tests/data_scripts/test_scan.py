import io
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data_scripts import Scan, ScanReadError, read_scan
from data_scripts.scan import session_of

HEIGHTS = (np.arange(12 * 17) * 255 // (12 * 17 - 1)).astype(np.uint8).reshape(12, 17)  # each row above the last
FUZZ = settings(deadline=None, derandomize=True, max_examples=100)


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    """Why a file is refused; always one sentence on one line that begins with the file."""
    with pytest.raises(ScanReadError) as caught:
        read_scan(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith((".", "?")) and "\n" not in message
    return message


@pytest.fixture
def palette(orange) -> Image.Image:
    """The orange colour map, its entries in reverse order."""
    image = Image.new("P", HEIGHTS.shape[::-1])
    image.putdata((255 - HEIGHTS).ravel().tolist())
    image.putpalette(orange(np.arange(255, -1, -1)).ravel().tolist())
    return image


class TestReading:
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

    def test_palette(self, palette, tmp_path):
        palette.save(tmp_path / "scan.png")
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").lines, HEIGHTS)

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

    def test_name_session_and_source(self, tmp_path):
        path = tmp_path / "default_2015Sep30-094843_STM-STM_Spectroscopy--12_3.png"
        Image.fromarray(HEIGHTS).save(path)
        scan = read_scan(str(path), channel="Z", direction="backward")
        assert (scan.scan_id, scan.session) == (path.stem, "2015Sep30-094843")
        assert (scan.source, scan.channel, scan.direction, scan.size_nm) == (str(path), "Z", "backward", None)

    @pytest.mark.parametrize(
        "name", ["scan.png", "12015Sep30-094843.png", "2015Sep30-0948431.png", "2015sep30-094843"]
    )
    def test_no_session_where_the_name_has_none(self, name):
        assert session_of(name) is None


class TestRefusals:
    def test_missing_file(self, tmp_path):
        assert "no such file" in refusal(tmp_path / "scan.png")

    def test_unknown_ending(self, tmp_path):
        message = refusal(tmp_path / "scan.docx")
        assert "'.docx'" in message and ".png" in message

    def test_folder(self, tmp_path):
        (tmp_path / "scan.png").mkdir()
        refusal(tmp_path / "scan.png")

    @pytest.mark.parametrize("ending", ["png", "tif", "jpg", "bmp", "npy"])
    @pytest.mark.parametrize("content", [b"", b"\n", b"not a picture at all", b"PK\x03\x04 almost a zip file"])
    def test_content_of_another_kind(self, ending, content, tmp_path):
        path = tmp_path / f"scan.{ending}"
        path.write_bytes(content)
        assert "cannot be read as a scan" in refusal(path)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's on its way to the error
    @pytest.mark.parametrize(("kind", "without_heights"), [("png", 20), ("tiff", 0), ("bmp", 3), ("npy", 0)])
    def test_every_truncation(self, kind, without_heights, tmp_path):
        whole = npy(HEIGHTS) if kind == "npy" else encode(Image.fromarray(HEIGHTS), kind)
        path = tmp_path / f"scan.{kind}"
        for length in (*range(0, len(whole) - without_heights, 7), len(whole) - without_heights - 1):
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
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy counts the pixels of a header that lies
    def test_array_that_is_no_scan(self, content, reason, tmp_path):
        (tmp_path / "scan.npy").write_bytes(content)
        assert reason in refusal(tmp_path / "scan.npy")

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("size", [(100_000, 100_000), (9000, 9000), (2**31 - 1, 1)])
    def test_header_that_promises_too_much(self, size, png_of_size, tmp_path, monkeypatch):
        decoded = []
        monkeypatch.setattr(Image.Image, "load", decoded.append)
        monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
        (tmp_path / "scan.png").write_bytes(png_of_size(*size))
        assert "pixels" in refusal(tmp_path / "scan.png")
        assert not decoded

    def test_array_header_that_promises_too_much_takes_no_memory(self, tmp_path):
        (tmp_path / "scan.npy").write_bytes(npy_header((5000, 5000)))
        tracemalloc.start()
        refusal(tmp_path / "scan.npy")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5000 * 5000

    def test_picture_without_lines(self, png_of_size, tmp_path):
        (tmp_path / "scan.png").write_bytes(png_of_size(16, 0))
        refusal(tmp_path / "scan.png")

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (1, 4, 4)])
    def test_scan_is_at_least_one_line_of_one_pixel(self, shape):
        with pytest.raises(ScanReadError, match="at least one line"):
            Scan(lines=np.zeros(shape, dtype=np.float32), scan_id="empty")


ORIGINALS = {
    "png": encode(Image.fromarray(HEIGHTS), "png"),
    "tif": encode(Image.fromarray(HEIGHTS.astype(np.float32)), "tiff"),
    "bmp": encode(Image.fromarray(HEIGHTS), "bmp"),
    "jpg": encode(Image.fromarray(HEIGHTS), "jpeg"),
    "npy": npy(HEIGHTS.astype(np.float64)),
}
edits = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)
numbers = itertools.count()


def read_or_refuse(folder: Path, kind: str, content: bytes) -> None:
    path = folder / f"{next(numbers)}.{kind}"
    path.write_bytes(content)
    try:
        scan = read_scan(path)
    except ScanReadError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert scan.lines.dtype == np.float32 and scan.lines.ndim == 2 and not np.isinf(scan.lines).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ORIGINALS)
class TestAnyBytes:
    """Whatever is in the file, it is a scan or refused."""

    @FUZZ
    @given(content=st.binary(max_size=300), with_signature=st.integers(0, 16))
    def test_random(self, kind, folder, content, with_signature):
        read_or_refuse(folder, kind, ORIGINALS[kind][:with_signature] + content)

    @FUZZ
    @given(changes=edits, end=st.integers(0, 64), near_header=st.booleans())
    def test_mutated(self, kind, folder, changes, end, near_header):
        content = bytearray(ORIGINALS[kind])
        for place, value in changes:
            content[place % (min(160, len(content)) if near_header else len(content))] = value
        read_or_refuse(folder, kind, bytes(content[: len(content) - end]))
