from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_cases import arguments

from run_classification import main


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """Stripes of three directions in six sessions, told apart within a few epochs: a .npz of 96 scans of 24 x 24."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    y, x = np.mgrid[:24, :24] * 0.9
    directions = [np.sin(x), np.sin(y), np.sin((x + y) / 1.4)]
    images = np.stack([directions[label] for label in labels]) + 0.3 * rng.standard_normal((96, 24, 24))
    path = tmp_path_factory.mktemp("scans") / "scans.npz"
    sessions = np.array([f"s{index // 16}" for index in range(96)])
    names = np.array(["rows", "columns", "diagonals"])
    np.savez(path, images=images.astype(np.float32), labels=labels, sessions=sessions, label_names=names)
    return path


@pytest.fixture(scope="session")
def finished_run(scans, tmp_path_factory) -> Path:
    """Trained once for all tests, which must leave the folder as it is."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = arguments(
        scans, folder, num_train_epochs=10, learning_rate=6e-3, do_train=True, do_eval=True, do_predict=True
    )
    assert main(flags) == 0
    return folder


@pytest.fixture
def refused(capsys) -> Callable[[list[str]], str]:
    """The one sentence that a run with these flags is refused with."""

    def refused(flags: list[str]) -> str:
        assert main(flags) == 2
        output = capsys.readouterr().err.strip()
        assert "Traceback" not in output
        message = output.splitlines()[-1]
        assert message.startswith("run_classification.py: error: ")
        return message

    return refused
