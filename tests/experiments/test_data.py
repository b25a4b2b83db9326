"""The data of a run."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from configuration import DataArguments
from data_scripts.labels import is_labelled, make_labels
from data_scripts.scan_dataset import StoredLines
from experiments.data import choose_share, find_parts, load_data
from modeling_scanline import ScanlineImageProcessor


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


def test_dedupe_holds_nothing_out_of_all(arguments):
    data = load_data(arguments(dedupe=True, split="all"), 0, None)
    assert list(data.split.parts) == ["train"] and len(data.scan_ids["train"]) == 40


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


@pytest.mark.parametrize("method", ["sessions", "random", "all"])
def test_unclear_votes_are_trained_on_and_change_no_split(method):
    rng = np.random.default_rng(0)
    names = np.arange(160).astype(str)
    sessions = np.repeat(list("abcdefghijklmnop"), 10)
    scores = np.eye(2)[rng.integers(2, size=160)]
    scores[::4] = 0.5  # votes for both
    scores[1::8] = np.nan  # no vote
    clear, soft = (
        find_parts(
            DataArguments(), names, sessions, method, scores, is_labelled(make_labels(scores, policy)), None, False
        )
        for policy in ("majority", "soft")
    )
    assert clear.keys() == soft.keys()
    assert all(clear[name].tolist() == soft[name].tolist() for name in clear if name != "train")
    added = np.setdiff1d(soft["train"], clear["train"])
    assert (scores[added] == 0.5).all() and set(clear["train"]) <= set(soft["train"])
    if method == "sessions":
        held_out = set(sessions[soft["validation"]])
        assert not held_out & set(sessions[soft["train"]])
        assert len(added) == sum(session not in held_out for session in sessions[::4])
    else:
        assert len(added) == 40


def test_a_share_of_labels_leaves_validation_as_it_is(arguments):
    whole, some = (load_data(arguments(train_fraction=share), 0, None) for share in (1.0, 0.25))
    assert some.scan_ids["validation"] == whole.scan_ids["validation"]
    assert len(some.scan_ids["train"]) == round(len(whole.scan_ids["train"]) / 4)


def test_scans_on_the_disk_are_those_in_memory(arguments):
    memory, disk = (load_data(arguments(keep_in_memory=kept), 0, None) for kept in (True, False))
    assert isinstance(disk.parts["train"].lines, StoredLines) and isinstance(memory.parts["train"].lines, torch.Tensor)
    for part in ("training", *memory.parts):
        one, other = ({"training": data.training, **data.parts}[part].__getitems__([3, 1]) for data in (memory, disk))
        assert all(torch.equal(one[name], other[name]) for name in one)


class TestGoingOnWithASplit:
    @pytest.fixture
    def dataset(self, tmp_path):
        """Writes a dataset of so many sessions of five scans, from the first given, with so many classes."""

        def write(sessions: str, num_labels: int = 2) -> DataArguments:
            rng = np.random.default_rng(0)
            names = np.array([f"{session}{number}" for session in sessions for number in range(5)])
            np.savez(
                tmp_path / "scans.npz",
                images=rng.normal(size=(len(names), 64, 64)).astype(np.float32),
                labels=np.arange(len(names)) % num_labels,
                sessions=np.repeat(list(sessions), 5),
                scan_ids=names,
            )
            sizes = {"pixels_per_line": 64, "max_lines": 64, "cache_dir": str(tmp_path / "cache")}
            return DataArguments("npz", str(tmp_path / "scans.npz"), **sizes)

        return write

    @pytest.fixture
    def first(self, dataset, tmp_path):
        data = load_data(dataset("abcdefgh"), 0, None)
        data.split.save(tmp_path / "split.json")
        return data.split

    def test_new_scans_get_a_part_and_old_ones_keep_theirs(self, first, dataset, tmp_path, caplog):
        data = load_data(dataset("abcdefghijklmnop", num_labels=3), 0, tmp_path / "split.json", extend=True)
        for name, ids in first.parts.items():
            assert set(ids) <= set(data.split.parts[name])
        assert not set(data.split.sessions["train"]) & set(data.split.sessions["validation"])
        assert sum(map(len, data.split.parts.values())) == 80
        assert "40 labelled scans are not in this split" in caplog.text
        assert all(count > 0 for part in data.split.counts.values() for count in part.values())

    def test_scans_that_are_gone_are_left_out(self, first, dataset, tmp_path):
        data = load_data(dataset("abcdxyz"), 0, tmp_path / "split.json", extend=True)
        assert {scan_id[0] for ids in data.split.parts.values() for scan_id in ids} == set("abcdxyz")

    def test_all_others_make_a_split_of_their_own(self, first, dataset, tmp_path):
        data = load_data(dataset("stuvwxyz"), 0, tmp_path / "split.json", extend=True)
        assert min(map(len, data.split.parts.values())) > 0

    def test_a_single_new_session_is_trained_on(self, first, dataset, tmp_path):
        data = load_data(dataset("abcdefghz"), 0, tmp_path / "split.json", extend=True)
        assert "z" in data.split.sessions["train"] and data.split.parts["validation"] == first.parts["validation"]

    def test_later_scans_of_a_held_out_session_stay_out(self, first, dataset, tmp_path):
        held_out = first.sessions["validation"][0]
        split = replace(first, parts={**first.parts, "validation": [
            scan_id for scan_id in first.parts["validation"] if not (scan_id[0] == held_out and scan_id[1] in "34")
        ]})  # fmt: skip
        split.save(tmp_path / "split.json")
        data = load_data(dataset("abcdefgh"), 0, tmp_path / "split.json", extend=True)
        assert {f"{held_out}3", f"{held_out}4"} <= set(data.split.parts["validation"])

    def test_a_split_that_was_asked_for_is_as_it_is(self, first, dataset, tmp_path, caplog):
        data = load_data(dataset("abcdefghij"), 0, tmp_path / "split.json")
        assert data.split.parts == first.parts and "none of them is used" in caplog.text
        with pytest.raises(ValueError, match="are not in this dataset"):
            load_data(dataset("abcx"), 0, tmp_path / "split.json")


def test_scans_are_scored_as_the_processor_prepares_them(tmp_path):
    tilt = 500 * np.arange(60, dtype=np.float32)  # a width that is no multiple of the model's
    images = np.random.default_rng(0).normal(size=(40, 60, 60)).astype(np.float32) + tilt
    np.savez(tmp_path / "scans.npz", images=images, labels=np.arange(40) % 2)
    processor = ScanlineImageProcessor(pixels_per_line=32, max_lines=32, normalization="flat_line")
    sizes = {"pixels_per_line": 32, "max_lines": 32, "cache_dir": str(tmp_path / "cache")}
    arguments = DataArguments("npz", str(tmp_path / "scans.npz"), **sizes, split="random", normalization="flat_line")
    data = load_data(arguments, 0, None)
    held_out = images[np.array(data.scan_ids["validation"], dtype=int)]
    scored = data.parts["validation"].__getitems__(range(len(held_out)))["pixel_values"]
    torch.testing.assert_close(scored, processor(list(held_out), return_tensors="pt")["pixel_values"])
