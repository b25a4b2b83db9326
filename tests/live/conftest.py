from pathlib import Path

import numpy as np
import pytest
from transformers import set_seed

from live.recorder import Recorder
from modeling_scanline.streaming_scanline import ScanlineStreamer

LABELS = ["individual_atoms", "rows", "generic_defect"]


@pytest.fixture(scope="session")
def model(tmp_path_factory, save_tiny) -> Path:
    """Folder of a tiny model that decides, after 4 or 16 lines."""
    set_seed(0)
    return save_tiny(
        tmp_path_factory.mktemp("model"), LABELS, sliding_window=16, calibration_lines=[4, 16],
        calibration_temperatures=[1.0, 1.0], decision_alphas=[0.1], decision_thresholds=[0.3],
    )  # fmt: skip


@pytest.fixture
def lines() -> np.ndarray:
    """Heights in metres, with a line that was not measured."""
    lines = 1e-10 * np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32)
    lines[20] = np.nan
    return lines


@pytest.fixture
def scan(tmp_path, lines) -> Path:
    """A file of them."""
    np.save(tmp_path / "scan.npy", lines)
    return tmp_path / "scan.npy"


@pytest.fixture
def recorder(model) -> Recorder:
    return Recorder(ScanlineStreamer.from_pretrained(model, alpha=0.1))


@pytest.fixture
def replayed(model, lines, tmp_path) -> str:
    """The JSONL of those lines, replayed."""
    recorder = Recorder(ScanlineStreamer.from_pretrained(model, alpha=0.1), show=False)
    recorder.start("replayed", tmp_path / "replayed")
    recorder.add(lines)
    recorder.finish()
    return (tmp_path / "replayed" / "replayed.tip.jsonl").read_text()
