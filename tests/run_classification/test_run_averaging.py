"""Runs that end with the mean of their last weights."""

import shutil

import numpy as np
import pytest
from run_cases import arguments
from safetensors.numpy import load_file

from experiments.averaging import AVERAGE_FILE
from run_classification import main

COMMON = {
    "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 100,
    "eval_strategy": "no", "load_best_model_at_end": False, "average_epochs": 0.5, "do_train": True,
}  # fmt: skip


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "run"
    assert main(arguments(scans, folder, **COMMON)) == 0
    return folder


def checkpoints(run):
    return sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_the_weights_are_the_mean_of_those_after_each_of_the_last_steps(run):
    after_steps = [weights(folder) for folder in checkpoints(run)]
    last = after_steps[-round(len(after_steps) / 4) :]  # half an epoch of two
    assert 2 <= len(last) < len(after_steps)
    for name, values in weights(run).items():
        np.testing.assert_allclose(values, np.mean([of_step[name] for of_step in last], axis=0), atol=1e-6)
    assert any(np.abs(weights(run)[name] - last[-1][name]).max() > 1e-4 for name in last[-1])


def test_an_epoch_is_one_of_the_data_where_a_number_of_steps_is_asked_for(run, scans, tmp_path):
    num_steps = len(checkpoints(run))
    assert main(arguments(scans, tmp_path / "run", **{**COMMON, "num_train_epochs": 1, "max_steps": num_steps})) == 0
    for name, values in weights(tmp_path / "run").items():
        np.testing.assert_allclose(values, weights(run)[name], atol=1e-6)


@pytest.mark.parametrize("steps_left", [1, 5])
def test_a_run_that_was_stopped_ends_with_the_same_mean(run, scans, tmp_path, steps_left):
    stopped = shutil.copytree(run, tmp_path / "run")
    for folder in checkpoints(stopped)[-steps_left:]:
        shutil.rmtree(folder)
    for name in ("model.safetensors", "metrics.jsonl", "summary.json"):
        (stopped / name).unlink(missing_ok=True)
    assert main(arguments(scans, stopped, resume_from_checkpoint=True, **COMMON)) == 0
    for name, values in weights(stopped).items():
        np.testing.assert_allclose(values, weights(run)[name], atol=1e-6)


def test_a_checkpoint_is_not_whole_before_its_mean_is(run, scans, tmp_path, monkeypatch):
    def write_half(weights, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("experiments.averaging.save_file", write_half)
        main(arguments(scans, tmp_path / "run", **COMMON))
    last = checkpoints(tmp_path / "run")[-1]
    assert not (last / "trainer_state.json").exists() and not (last / AVERAGE_FILE).exists()
    assert main(arguments(scans, tmp_path / "run", resume_from_checkpoint=True, **COMMON)) == 0
    for name, values in weights(tmp_path / "run").items():
        np.testing.assert_allclose(values, weights(run)[name], atol=1e-6)


def test_a_mean_that_a_checkpoint_lacks_is_not_begun_anew(run, scans, tmp_path, refused):
    stopped = shutil.copytree(run, tmp_path / "run")
    (checkpoints(stopped)[-1] / AVERAGE_FILE).unlink()
    says = refused(arguments(scans, stopped, resume_from_checkpoint=True, **COMMON))
    assert "the mean of 2 steps' weights is wanted, and the checkpoint has one of 0" in says


@pytest.mark.parametrize(
    "change",
    [
        {"load_best_model_at_end": True, "eval_strategy": "steps"},
        {"average_epochs": 3},
        {"early_stopping_patience": 2, "eval_strategy": "epoch"},
    ],
)
def test_what_has_no_mean_of_its_last_weights_is_refused(change, scans, tmp_path, refused):
    assert "average_epochs ends a run with the mean" in refused(arguments(scans, tmp_path, **{**COMMON, **change}))


def test_a_run_that_is_given_more_epochs_averages_the_last_of_them(run, scans, tmp_path):
    longer = shutil.copytree(run, tmp_path / "run")
    for name in ("model.safetensors", "metrics.jsonl", "summary.json"):
        (longer / name).unlink(missing_ok=True)
    assert main(arguments(scans, longer, **{**COMMON, "num_train_epochs": 3, "resume_from_checkpoint": True})) == 0
    last = [weights(folder) for folder in checkpoints(longer)][-round(len(checkpoints(longer)) / 6) :]
    for name, values in weights(longer).items():
        np.testing.assert_allclose(values, np.mean([of_step[name] for of_step in last], axis=0), atol=1e-6)
