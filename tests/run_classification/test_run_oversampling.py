"""Runs that read each pixel as several finer ones."""

import numpy as np
import pytest
from run_cases import arguments
from transformers import AutoConfig

from experiments.probabilities import Probabilities
from modeling_scanline import ScanlineImageProcessor
from run_classification import main


@pytest.fixture
def fine_scans(scans, tmp_path):
    """The scans with twice the pixels, each four times."""
    arrays = dict(np.load(scans))
    arrays["images"] = arrays["images"].repeat(2, axis=1).repeat(2, axis=2)
    np.savez(tmp_path / "scans.npz", **arrays)
    return tmp_path / "scans.npz"


def evaluate(scans, folder, output, **options):
    assert main(arguments(scans, output, model_name_or_path=folder, do_eval=True, **options)) == 0
    return Probabilities.load(output)


def test_a_model_of_whole_pixels_goes_on_with_fine_ones(finished_run, fine_scans, tmp_path):
    run = tmp_path / "run"
    options = {"oversampling": 2, "learning_rate": 0, "weight_decay": 0, "num_train_epochs": 1}
    flags = arguments(fine_scans, run, model_name_or_path=finished_run, do_train=True, do_eval=True, **options)
    assert main(flags) == 0
    assert (
        AutoConfig.from_pretrained(run).oversampling == ScanlineImageProcessor.from_pretrained(run).oversampling == 2
    )
    before, after = Probabilities.load(finished_run), Probabilities.load(run)
    assert before.scan_ids.tolist() == after.scan_ids.tolist()
    np.testing.assert_allclose(after.whole, before.whole, atol=1e-4)  # the pixels are all alike
    np.testing.assert_allclose(after.by_lines, before.by_lines, atol=1e-4)

    again = evaluate(fine_scans, run, tmp_path / "again")  # as the model does, where nothing else is said
    np.testing.assert_allclose(again.whole, after.whole, atol=1e-5)


def test_files_are_read_as_finely_as_the_model_does(finished_run, fine_scans, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "files"
    flags = arguments(fine_scans, run, model_name_or_path=finished_run, oversampling=2, do_train=True, do_eval=True)
    assert main(flags) == 0
    folder.mkdir()
    probabilities, images = Probabilities.load(run), np.load(fine_scans)["images"]
    for scan_id in probabilities.scan_ids[:3]:
        np.save(folder / f"{scan_id}.npy", images[int(scan_id)])
    output = ["--output_dir", str(tmp_path / "output"), "--model_name_or_path", str(run), "--do_predict"]
    assert main([*output, "--predict_dir", str(folder)]) == 0
    header, *rows = [line.split(",") for line in (tmp_path / "output" / "predictions.csv").read_text().splitlines()]
    assert header[2:] == probabilities.label_names.tolist()
    found = {row[0].removesuffix(".npy"): [float(value) for value in row[2:]] for row in rows}
    for scan_id, expected in zip(probabilities.scan_ids[:3], probabilities.whole, strict=False):
        np.testing.assert_allclose(found[scan_id], expected, atol=1e-3)


def test_fine_pixels_that_the_model_cannot_read_are_refused(finished_run, scans, tmp_path, refused):
    message = refused(arguments(scans, tmp_path, model="vit", oversampling=2, do_train=True))
    assert "oversampling is for the causal model" in message
    options = {"model_name_or_path": finished_run, "oversampling": 2, "do_eval": True}
    assert "only causal models are made to read others, in training" in refused(arguments(scans, tmp_path, **options))
    assert "must not be negative" in refused(arguments(scans, tmp_path, oversampling=-1, do_train=True))
