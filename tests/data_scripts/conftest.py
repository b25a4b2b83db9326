import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import torch
from builder_cases import MAX_LINES, SESSION, WIDTH
from PIL import Image

from data_scripts.builders import BUILDERS
from data_scripts.source import ScanSource
from modeling_scanline.image_processing_scanline import resample_lines

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


@pytest.fixture
def load(tmp_path):
    """Loads a dataset at the tests' size, with a cache of the test's own."""

    def load(name, data_dir=None, streaming=False, **options):
        options = {"pixels_per_line": WIDTH, "max_lines": MAX_LINES, "cache_dir": str(tmp_path / "cache"), **options}
        return ScanSource(name, None if data_dir is None else str(data_dir), **options).load(streaming)

    return load


@pytest.fixture
def count_preparations(monkeypatch):
    """How often each builder has gone through its scans."""
    calls = dict.fromkeys(BUILDERS, 0)
    for name, builder in BUILDERS.items():

        def scans(self, shards, name=name, original=builder.scans):
            calls[name] += 1
            return original(self, shards)

        monkeypatch.setattr(builder, "scans", scans)
    return calls


@pytest.fixture
def resampled():
    """Heights as a dataset holds them."""

    def resampled(heights, width=WIDTH, max_lines=MAX_LINES):
        return resample_lines(torch.from_numpy(np.float32(heights))[None], width, max_lines)[0].numpy()

    return resampled


@pytest.fixture
def by_id():
    return lambda scans: {scan["scan_id"]: scan for scan in scans}


@pytest.fixture
def toolbox(tmp_path, draw, write_votes):
    """A tiny clone of SPM-Toolbox, and the heights of its pictures by file name."""
    root = tmp_path / "SPM-Toolbox"
    names = [f"default_{SESSION}_STM-STM_Spectroscopy--12_{frame}.png" for frame in range(4)]
    sizes = [(16, 16), (24, 24), (5, 16), (16, 16)]  # the third was aborted
    heights = {name: draw(root / "Images (Flat)" / name, *size) for name, size in zip(names, sizes, strict=True)}
    votes = {
        "not_here.png": [0, 1, 0, 0, 0, 0],
        names[2]: [0, 0, 0, 0, 0.5, 0],
        names[0]: [1, 0, 0.5, 0, 0, 0.25],
        names[1]: [0, 1, 0, 0, 0, 0],
    }
    write_votes(root, votes)
    return root, heights, votes


@pytest.fixture
def class_folders(tmp_path, draw):
    root = tmp_path / "scans"
    names = ["good/b.png", f"good/day 2/x_{SESSION}_1.png", "bad tip/a.PNG", "bad tip/nested/deep/a.bmp"]
    return root, {name: draw(root / name, 8 + number) for number, name in enumerate(names)}
