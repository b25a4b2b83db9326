"""What the table of predictions says of scans beside their states."""

import csv
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification

from data_scripts.scan_dataset import ScanDataset
from data_scripts.source import read_folder
from experiments.prediction import find_unfamiliarities
from run_classification import main

TINY = Path(__file__).parents[2] / "model_cards" / "scanline-causal-hsi100-tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Waves, noise, and a scan of few lines."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    np.save(folder / "a.npy", np.sin(np.arange(160) / 5) + 0.3 * rng.standard_normal((100, 160)))
    np.save(folder / "b.npy", rng.standard_normal((128, 128)) ** 9)
    np.save(folder / "c.npy", rng.standard_normal((3, 128)))
    return folder


def test_scans_are_as_familiar_as_a_stream_says(folder):
    model = AutoModelForImageClassification.from_pretrained(TINY).eval()
    model.config.change_weights = None  # or it would begin anew at a new tip
    streamer = model.streamer(AutoImageProcessor.from_pretrained(TINY))
    expected = []
    for path in sorted(folder.iterdir()):
        streamer.reset()
        expected.append(streamer.update_many(np.load(path))[-1].unfamiliarity)
    assert expected[-1] is None and max(expected[:2]) > 1
    _, lines = read_folder(folder, 128, 128, None, "forward", True)
    found = find_unfamiliarities(ScanDataset(lines, None, "line"), model.config, batch_size=2)
    assert found is not None and np.isnan(found[2])
    np.testing.assert_allclose(found[:2], np.array(expected[:2], dtype=float), rtol=1e-3)
    model.config.familiarity_mean = None
    assert find_unfamiliarities(ScanDataset(lines, None, "line"), model.config) is None


def test_the_table_says_which_scans_are_unlike_those_of_training(folder, tmp_path, capsys):
    flags = ["--do_predict", "--model_name_or_path", str(TINY), "--predict_dir", str(folder)]
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["familiar"] for row in rows][1:] == ["false", ""]
    strange = sum(row["familiar"] == "false" for row in rows)
    assert f"{strange} of 3 scans are unlike those" in " ".join(capsys.readouterr().out.split())
