import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from builder_cases import MAX_LINES
from datasets.distributed import split_dataset_by_node

from data_scripts import ScanReadError, readers
from data_scripts.builders import BUILDERS, base, simulated
from data_scripts.scan_dataset import lines_of


class TestCache:
    def test_second_load_prepares_nothing(self, toolbox, load, count_preparations):
        first, second = load("hsi100", toolbox[0]), load("hsi100", toolbox[0])
        assert count_preparations["hsi100"] == 1
        assert first["scan_id"][:] == second["scan_id"][:]
        assert torch.equal(lines_of(first, 2), lines_of(second, 2))

    def test_options_of_another_dataset_do_not_matter(self, class_folders, load, count_preparations):
        load("folder", class_folders[0], num_scans=10)
        load("folder", class_folders[0], num_scans=20, simulation_seed=3)
        assert count_preparations["folder"] == 1

    @pytest.mark.parametrize(
        "change", [{"pixels_per_line": 40}, {"max_lines": 4}, {"num_scans": 3}, {"simulation_seed": 1}]
    )
    def test_other_options_prepare_again(self, change, load, count_preparations):
        options = {"pixels_per_line": 32, "num_scans": 2}
        load("simulated", **options)
        scans = load("simulated", **(options | change))
        assert count_preparations["simulated"] == 2
        lines = np.array(scans[0]["lines"])
        assert lines.shape == (change.get("max_lines", MAX_LINES), change.get("pixels_per_line", 32))
        assert len(scans) == change.get("num_scans", 2)

    def test_changed_votes_prepare_again(self, toolbox, load, count_preparations, write_votes):
        root, _, votes = toolbox
        load("hsi100", root)
        write_votes(root, {name: [0, 0, 0, 1, 0, 0] for name in votes})
        assert load("hsi100", root)["label"][:3] == [2, 2, 2]
        assert count_preparations["hsi100"] == 2

    def test_changed_picture_prepares_again(self, class_folders, load, draw, by_id, resampled):
        root, heights = class_folders
        load("folder", root)
        before = (root / "good" / "b.png").stat()
        heights = draw(root / "good" / "b.png", 8)
        os.utime(root / "good" / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        np.testing.assert_array_equal(by_id(load("folder", root))["good/b"]["lines"], resampled(heights))

    def test_new_and_lost_pictures_prepare_again(self, class_folders, load, draw):
        root, heights = class_folders
        load("folder", root)
        draw(root / "rows" / "new.png")
        (root / "good" / "b.png").unlink()
        scans = load("folder", root)
        assert scans.features["label"].names == ["bad tip", "good", "rows"]
        assert len(scans) == len(heights) and "good/b" not in scans["scan_id"][:]

    def test_changed_code_prepares_again(self, class_folders, load, count_preparations, monkeypatch):
        load("folder", class_folders[0])
        for path in base._source_code(BUILDERS["folder"]):  # what decides is read from the files
            assert path.is_file()
        read_bytes = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + b"# changed" * (path.suffix == ".py"))
        load("folder", class_folders[0])
        assert count_preparations["folder"] == 2

    def test_a_result_file_that_comes_later_prepares_again(self, class_folders, load, count_preparations):
        """It says what the numbers of a MATRIX file mean."""
        root, _ = class_folders
        (root / "good" / "day--1_1.Z_mtrx").write_bytes(b"broken, and skipped")
        load("folder", root)
        (root / "good" / "day_0001.mtrx").write_bytes(b"result file")
        load("folder", root)
        assert count_preparations["folder"] == 2

    def test_failed_preparation_leaves_nothing_behind(self, class_folders, load, draw):
        root, heights = class_folders
        draw(root / "good" / "b.bmp")
        with pytest.raises(ScanReadError, match="two scans"):
            load("folder", root)
        (root / "good" / "b.bmp").unlink()
        assert len(load("folder", root)) == len(heights)


def test_the_code_of_a_builder_is_all_that_decides():
    names = {path.name for path in base._source_code(BUILDERS["spliced"], readers)}
    assert names >= {"base.py", "hsi100.py", "spliced.py", "registry.py", "nanonis.py"}
    assert not names & {"arrays.py", "simulated.py"}


class TestStreams:
    def test_equal_what_is_prepared(self, class_folders, load):
        prepared, stream = load("folder", class_folders[0]), load("folder", class_folders[0], streaming=True)
        for one, other in zip(prepared, stream, strict=True):
            assert one["scan_id"] == other["scan_id"] and one["label"] == other["label"]
            np.testing.assert_array_equal(one["lines"], other["lines"])

    def test_machines_share_the_shards(self, load):
        scans = load("simulated", streaming=True, pixels_per_line=32, num_scans=3 * base.SHARD_SIZE)
        assert scans.num_shards == 3
        parts = [split_dataset_by_node(scans, rank, 3) for rank in range(3)]
        ids = [[scan["scan_id"] for scan in part] for part in parts]
        assert [len(part) for part in ids] == [base.SHARD_SIZE] * 3
        assert len({scan_id for part in ids for scan_id in part}) == 3 * base.SHARD_SIZE

    def test_nothing_is_made_before_it_is_asked_for(self, load):
        scans = load("simulated", streaming=True, pixels_per_line=32, num_scans=10**9)
        assert scans.num_shards < 2**15
        assert next(iter(scans))["scan_id"] == "h-si100-0-0"

    def test_long_shards_are_batches_of_the_same_stream(self, load, monkeypatch):
        whole = load("simulated", streaming=True, pixels_per_line=32, num_scans=150)
        monkeypatch.setattr(simulated, "MAX_SHARDS", 1)
        joined = load("simulated", streaming=True, pixels_per_line=32, num_scans=150)
        assert (whole.num_shards, joined.num_shards) == (3, 1)
        for one, other in zip(whole, joined, strict=True):
            assert one["scan_id"] == other["scan_id"]
            np.testing.assert_array_equal(one["lines"], other["lines"])


def test_many_shards_are_one_dataset(class_folders, load, monkeypatch):
    root, heights = class_folders
    whole = load("folder", root)
    monkeypatch.setattr(base, "SHARD_SIZE", 3)
    (root / "good" / "b.png").touch()
    chunked = load("folder", root)
    assert chunked["scan_id"][:] == whole["scan_id"][:] and len(chunked) == len(heights)
    assert lines_of(chunked, 8).nan_to_num(-1).equal(lines_of(whole, 8).nan_to_num(-1))


@pytest.mark.parametrize("width", [4, 16, 40])
def test_any_model_width(width, class_folders, load, by_id, resampled):
    root, heights = class_folders
    scans = by_id(load("folder", root, pixels_per_line=width, max_lines=7))
    for name, picture in heights.items():
        lines = np.float32(scans[str(Path(name).with_suffix(""))]["lines"])
        np.testing.assert_allclose(lines, resampled(picture, width, 7), rtol=1e-6)


def test_error_of_another_kind_is_not_hidden(class_folders, load, monkeypatch):
    monkeypatch.setattr(base, "resample_lines", lambda *_: 1 / 0)
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        load("folder", class_folders[0])
