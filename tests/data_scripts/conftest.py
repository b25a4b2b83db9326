import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

COLUMNS = ("Asymmetries", "Individual Atoms", "Dimers", "Rows", "Tip Change", "Bad/Blurry")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def orange() -> Callable[[np.ndarray], np.ndarray]:
    """Colours of 8-bit heights as SPM software shows them."""

    def colour(heights: np.ndarray) -> np.ndarray:
        k = heights.astype(int)
        return np.stack([np.minimum(255, 2 * k), k, np.maximum(0, 2 * k - 255)], axis=-1).astype(np.uint8)

    return colour


@pytest.fixture(scope="session")
def png_of_size() -> Callable[[int, int], bytes]:
    """A PNG that promises a size in its header and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    return make


@pytest.fixture
def draw(rng) -> Callable[..., np.ndarray]:
    """Writes a picture of random heights into a file, making its folder; returns the heights."""

    def write(path: Path, num_lines: int = 16, width: int = 16) -> np.ndarray:
        heights = rng.integers(0, 256, (num_lines, width), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(heights).save(path)
        return heights.astype(np.float32)

    return write


@pytest.fixture
def write_votes() -> Callable[..., Path]:
    """Writes the spreadsheet of a clone of SPM-Toolbox: votes, and unrelated columns to the right."""

    def write(
        root: Path,
        votes: Mapping[str, Sequence[object]],
        columns: Sequence[str] = COLUMNS,
        sheet: str = "Mean_Score",
        name: str = "Classified Output.xlsx",
    ) -> Path:
        workbook = openpyxl.Workbook()
        workbook.active.title = "Raw"
        page = workbook.create_sheet(sheet)
        page.append(["Name", "No. Responses", *columns, None, None, "Chi", None])
        for number, (scan, scores) in enumerate(votes.items()):
            by_name = dict(zip(COLUMNS, scores, strict=True))
            page.append([scan, 2, *(by_name.get(column, 0.5) for column in columns), None, number, "text", 0.37])
        path = root / "Database" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        workbook.save(path)
        return path

    return write
