import logging
from pathlib import Path

import numpy as np
import pytest
from builder_cases import MAX_LINES, WIDTH

from data_scripts import ScanReadError
from data_scripts.source import ScanSource, read_folder


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

    def test_nothing_to_read(self, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"")
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ScanReadError, match="no scan that can be read"):
                read_folder(folder)
