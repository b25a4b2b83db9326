import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from builder_cases import MAX_LINES, WIDTH

from data_scripts import ScanReadError, source
from data_scripts.scan import Scan
from data_scripts.scan_dataset import ScanDataset, StoredLines
from data_scripts.source import ScanSource, read_folder
from modeling_scanline import ScanlineImageProcessor


def test_unknown_dataset():
    with pytest.raises(ScanReadError, match=r"dataset must be one of simulated, folder, .*, got 'mnist'"):
        ScanSource("mnist").load()


class TestReadFolder:
    def test_every_scan_below(self, class_folders, draw, resampled):
        root, heights = class_folders
        heights["top.png"] = draw(root / "top.png", 3)
        names, lines = read_folder(str(root), WIDTH, MAX_LINES)
        assert names == sorted(heights, key=Path) and lines.shape == (5, MAX_LINES, WIDTH)
        for name, values in zip(names, lines.numpy(), strict=True):
            expected = resampled(heights[name])
            np.testing.assert_array_equal(values[: len(expected)], expected)
            assert np.isnan(values[len(expected) :]).all()

    def test_broken_file_is_named_skipped_and_counted(self, class_folders, caplog):
        root, heights = class_folders
        (root / "broken.npy").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            names, _ = read_folder(root, WIDTH, MAX_LINES)
        assert len(names) == len(heights)
        assert f"Skipped: {root / 'broken.npy'}" in caplog.text and "1 files could not be read" in caplog.text

    def test_channel_and_direction_reach_the_reader(self, tmp_path, monkeypatch):
        asked = []

        def read(path, channel, direction):
            asked.append((path.name, channel, direction))
            return Scan(lines=np.zeros((8, WIDTH), np.float32), scan_id="scan")

        monkeypatch.setattr(source, "read_scan", read)
        (tmp_path / "scan.npy").touch()
        read_folder(tmp_path, WIDTH, MAX_LINES, "Current", "backward")
        assert asked == [("scan.npy", "Current", "backward")]

    def test_nothing_to_read(self, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"")
        for folder, reason in (
            (tmp_path, "no scan that can be read"),
            (tmp_path / "nowhere", "there is no such folder"),
            (tmp_path / "broken.png", "is a file; give the folder"),
        ):
            with pytest.raises(ScanReadError, match=reason):
                read_folder(folder)


def test_tilt_is_taken_out_before_lines_are_resampled_as_the_processor_does(tmp_path, rng):
    """Of lines whose width is no multiple of the model's, tilt would leave its staircase."""
    pixels = np.arange(20, dtype=np.float32)
    scans = [rng.standard_normal((20, 20)).astype(np.float32) + 300 * pixels for _ in range(2)]
    for label, heights in zip(("rows", "defect"), scans, strict=True):
        (tmp_path / label).mkdir()
        np.save(tmp_path / label / "scan.npy", heights)
    processor = ScanlineImageProcessor(pixels_per_line=WIDTH, max_lines=MAX_LINES, normalization="flat_line")
    expected = processor(scans[::-1], return_tensors="pt")["pixel_values"]
    size = {"pixels_per_line": WIDTH, "max_lines": MAX_LINES}
    dataset = ScanSource("folder", str(tmp_path), str(tmp_path / "cache"), **size).load(flatten=True)
    _, of_folder = read_folder(tmp_path, WIDTH, MAX_LINES, flatten=True)
    for lines in (StoredLines(dataset, MAX_LINES), of_folder):
        values = ScanDataset(lines, None, "line").__getitems__([0, 1])["pixel_values"]
        torch.testing.assert_close(values, expected)
    _, resampled_first = read_folder(tmp_path, WIDTH, MAX_LINES)
    apart = ScanDataset(resampled_first, None, "flat_line").__getitems__([0, 1])["pixel_values"] - expected
    assert apart.abs().max() > 0.1


class TestSeveralProcesses:
    """Shards of one scan, so that few files make several."""

    @pytest.fixture
    def load(self, monkeypatch, tmp_path):
        def load(root, num_workers):
            monkeypatch.setattr("data_scripts.builders.base.SHARD_SIZE", 1)
            cache = str(tmp_path / f"cache{num_workers}")
            sizes = {"pixels_per_line": WIDTH, "max_lines": MAX_LINES}
            return ScanSource("folder", str(root), cache, preprocessing_num_workers=num_workers, **sizes).load()

        return load

    def test_make_the_dataset_that_one_makes(self, class_folders, load):
        alone, together = (load(class_folders[0], number) for number in (1, 3))
        assert together.to_dict() == alone.to_dict() and len(together.cache_files) == 3

    def test_find_scans_that_are_called_alike_in_other_shards(self, class_folders, load, draw):
        for ending in ("bmp", "tif"):
            draw(class_folders[0] / "good" / f"b.{ending}")
        for _ in range(2):  # what was prepared is in the cache the second time
            with pytest.raises(ScanReadError, match="two scans are called 'good/b'"):
                load(class_folders[0], 2)

    def test_of_which_one_finds_nothing_to_read(self, class_folders, load, caplog):
        root, heights = class_folders
        (root / next(iter(heights))).write_bytes(b"")
        assert len(load(root, 4)) == len(heights) - 1

    def test_nothing_to_read(self, class_folders, load):
        root, heights = class_folders
        for name in heights:
            (root / name).write_bytes(b"")
        with pytest.raises(ScanReadError, match="no scan to make a dataset of"):
            load(root, 2)

    def test_none_is_refused(self):
        with pytest.raises(ScanReadError, match="preprocessing_num_workers must be at least 1, got 0"):
            ScanSource(preprocessing_num_workers=0).load()

    def test_keep_their_threads_for_themselves(self, class_folders, load):
        before = torch.get_num_threads()
        load(class_folders[0], 2)
        assert torch.get_num_threads() == before
