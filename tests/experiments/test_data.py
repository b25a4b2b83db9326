"""The data of a run."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from configuration import DataArguments
from data_scripts.scan_dataset import StoredLines
from experiments.data import choose_share, load_data


@pytest.fixture
def arguments(tmp_path):
    """Scans of eight sessions of five each; the last scan of all is a copy of the first, mirrored."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 64, 64)).astype(np.float32)
    images[39] = images[0, :, ::-1]
    sessions = np.repeat(list("abcdefgh"), 5)
    np.savez(tmp_path / "scans.npz", images=images, labels=np.arange(40) % 2, sessions=sessions)
    sizes = {"pixels_per_line": 64, "max_lines": 64, "cache_dir": str(tmp_path / "cache")}
    return lambda **options: DataArguments("npz", str(tmp_path / "scans.npz"), **sizes, **options)


def side(data, scan_id):
    return next(part for part, ids in data.split.parts.items() if scan_id in ids)


@pytest.mark.parametrize("method", ["sessions", "random"])
def test_dedupe_keeps_copies_on_one_side_of_any_split(method, arguments):
    torn, kept = [], []
    for seed in range(8):
        options = {"split": method, "split_seed": seed}
        for found, dedupe in ((torn, False), (kept, True)):
            data = load_data(arguments(dedupe=dedupe, **options), 0, None)
            found.append(side(data, "0") != side(data, "39"))
    assert any(torn) and not any(kept)


def test_a_share_of_labels_keeps_every_class_and_the_smaller_shares():
    labels = np.array([0] * 50 + [1] * 20 + [2] * 2)
    shares = [choose_share(labels, share, 3) for share in (0.01, 0.1, 0.5, 1.0)]
    assert [np.bincount(labels[chosen]).tolist() for chosen in shares] == [
        [1, 1, 1],
        [5, 2, 1],
        [25, 10, 1],
        [50, 20, 2],
    ]
    for few, many in pairwise(shares):
        assert set(few) <= set(many)


def test_a_share_of_labels_leaves_validation_as_it_is(arguments):
    whole, some = (load_data(arguments(train_fraction=share), 0, None) for share in (1.0, 0.25))
    assert some.scan_ids["validation"] == whole.scan_ids["validation"]
    assert len(some.scan_ids["train"]) == round(len(whole.scan_ids["train"]) / 4)


def test_scans_on_the_disk_are_those_in_memory(arguments):
    memory, disk = (load_data(arguments(keep_in_memory=kept), 0, None) for kept in (True, False))
    assert isinstance(disk.parts["train"].lines, StoredLines) and isinstance(memory.parts["train"].lines, torch.Tensor)
    for part in memory.parts:
        one, other = (data.parts[part].__getitems__([3, 1]) for data in (memory, disk))
        assert all(torch.equal(one[name], other[name]) for name in one)
