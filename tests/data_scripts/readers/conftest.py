from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_scripts import ScanReadError, read_scan

INSTRUMENTS = Path(__file__).resolve().parents[4] / "shared" / "instruments"


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """A microscope's own file."""

    def find(name: str) -> Path:
        if not (INSTRUMENTS / name).is_file():
            pytest.skip(f"the microscopes' files are not here: {INSTRUMENTS / name}")
        return INSTRUMENTS / name

    return find


@pytest.fixture
def put(tmp_path) -> Callable[[str, bytes], Path]:
    """Writes a file."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """Why a file is refused; always one sentence or two on one line that begins with the file."""

    def why(path: Path, channel: str | None = None, direction: str = "forward") -> str:
        with pytest.raises(ScanReadError) as caught:
            read_scan(path, channel, direction)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.endswith((".", "?")) and "\n" not in message
        return message.removeprefix(f"{path}: ")

    return why


@pytest.fixture
def heights(rng) -> np.ndarray:
    """A rough surface `[12, 17]`, in metres."""
    return np.cumsum(rng.normal(scale=1e-11, size=(12, 17)), axis=0).astype(np.float32) + np.float32(1e-10)
