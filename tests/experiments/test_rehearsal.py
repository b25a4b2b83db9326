"""Simulated scans beside those of a dataset: trained on, and nothing else."""

import numpy as np
import pytest
import torch

from configuration import DataArguments
from data_scripts.labels import class_weights
from data_scripts.simulation import TIP_STATES
from experiments.data import load_data

ADDED = 12


@pytest.fixture
def load(tmp_path):
    """`load(names, **options)`: the data of a run on 24 scans of four classes, six sessions."""
    labels = np.arange(24) % 4
    images = np.random.default_rng(0).normal(size=(24, 32, 32)).astype(np.float32)
    sessions = np.repeat(list("abcdef"), 4)

    def load(names, **options):
        path = tmp_path / f"{'-'.join(names)}.npz"
        np.savez(path, images=images, labels=labels, sessions=sessions, label_names=np.array(names))
        sizes = {"pixels_per_line": 32, "max_lines": 32, "cache_dir": str(tmp_path / "cache")}
        return load_data(DataArguments("npz", str(path), **sizes, **options), 0, None)

    return load


def simulated(tmp_path, **options):
    sizes = {"pixels_per_line": 32, "max_lines": 32, "cache_dir": str(tmp_path / "cache")}
    return DataArguments("simulated", num_scans=ADDED, **sizes, **options).load()


def test_simulated_scans_are_trained_on_by_the_names_of_their_states(load, tmp_path):
    names = list(TIP_STATES[::-1])
    plain, more = (load(names, rehearsal_scans=number, augment=False, simulation_seed=5) for number in (0, ADDED))
    num_real = len(plain.training)
    assert len(more.training) == num_real + ADDED
    assert torch.equal(more.training.lines[:num_real], plain.training.lines)
    scans = simulated(tmp_path, simulation_seed=6)  # never those that a simulated dataset holds out
    of_states = [scans.features["label"].names[label] for label in scans["label"]]
    assert [names[label] for label in more.training.labels[num_real:]] == of_states
    np.testing.assert_array_equal(more.training.lines[num_real].numpy(), np.asarray(scans[0]["lines"], np.float32))
    assert more.class_weights == class_weights(more.training.labels.numpy(), 4)


def test_nothing_else_changes(load):
    plain, more = (load(list(TIP_STATES), rehearsal_scans=number) for number in (0, ADDED))
    assert (plain.split, plain.scan_ids, plain.groups) == (more.split, more.scan_ids, more.groups)
    for name, part in plain.parts.items():
        assert torch.equal(part.lines, more.parts[name].lines) and torch.equal(part.labels, more.parts[name].labels)


def test_soft_labels_get_whole_ones(load):
    data = load(list(TIP_STATES), rehearsal_scans=ADDED, train_labels="soft")
    assert data.training.labels.shape == (len(data.training), 4)
    assert (data.training.labels.sum(dim=1) == 1).all()


def test_scans_of_other_classes_are_not_mixed_with_simulated_ones(load, caplog):
    data = load(["good", "double", "blunt", "torn"], rehearsal_scans=ADDED)
    assert len(data.training) == len(data.scan_ids["train"])
    assert "rehearsal_scans are left out" in caplog.text and "these of good, double" in caplog.text


def test_tilt_is_taken_out_of_simulated_scans_as_well(load):
    data = load(list(TIP_STATES), rehearsal_scans=ADDED, normalization="flat_line")
    lines = data.training.lines[-ADDED:].double()
    across = torch.arange(32) - 15.5
    slopes = ((lines - lines.mean(dim=-1, keepdim=True)) * across).sum(dim=-1) / (across**2).sum()
    assert slopes.abs().max() < 1e-3 * lines.std()


def test_scans_that_stay_on_the_disk_are_refused(load):
    with pytest.raises(ValueError, match="give --keep_in_memory true"):
        load(list(TIP_STATES), rehearsal_scans=ADDED, keep_in_memory=False)
