import logging
import os
import sys
from pathlib import Path

import gwyfile
import numpy as np
import pandas as pd
import pytest
from builder_cases import SESSION

from data_scripts import ScanReadError


class TestClassFolders:
    def test_folders_are_classes(self, class_folders, load, by_id, resampled):
        root, heights = class_folders
        scans = load("folder", root)
        assert scans.features["label"].names == ["bad tip", "good"]
        found = by_id(scans)
        assert sorted(found) == sorted(str(Path(name).with_suffix("")) for name in heights)
        for name, picture in heights.items():
            scan = found[str(Path(name).with_suffix(""))]
            good = name.startswith("good")
            assert scan["label"] == good and scan["scores"] == [not good, good]
            np.testing.assert_array_equal(np.float32(scan["lines"]), resampled(picture))

    def test_sessions(self, class_folders, load):
        assert sorted(map(str, load("folder", class_folders[0])["session"])) == [SESSION, "None", "None", "None"]

    def test_files_of_other_kinds_and_outside_of_folders_are_left(self, class_folders, load, draw):
        root, heights = class_folders
        draw(root / "overview.png")
        draw(root / ".thumbnails" / "a.png")
        draw(root / "good" / ".thumbnails" / "b.png")
        draw(root / "good" / "b.png.tip.png")  # by run_streaming.py
        (root / "good" / "notes.txt").write_text("a good tip")
        scans = load("folder", root)
        assert len(scans) == len(heights) and scans.features["label"].names == ["bad tip", "good"]

    def test_broken_picture_is_named_skipped_and_counted(self, class_folders, load, caplog):
        root, heights = class_folders
        (root / "good" / "broken.png").write_bytes((root / "good" / "b.png").read_bytes()[:60])
        with caplog.at_level(logging.WARNING):
            assert len(load("folder", root)) == len(heights)
        assert f"Skipped: {root / 'good' / 'broken.png'}: cannot be read" in caplog.text
        assert "1 files could not be read" in caplog.text

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
    def test_name_that_is_no_text_is_skipped_and_counted(self, class_folders, load, caplog):
        root, heights = class_folders
        (root / "good" / "b.png").rename(root / "good" / os.fsdecode(b"gr\xf6.png"))
        with caplog.at_level(logging.WARNING):
            assert len(load("folder", root)) == len(heights) - 1
        assert "its name is not in UTF-8" in caplog.text and "1 files could not be read" in caplog.text

    def test_one_scan_in_two_files(self, class_folders, load, draw):
        draw(class_folders[0] / "good" / "b.bmp")
        with pytest.raises(ScanReadError, match="two scans are called 'good/b'"):
            load("folder", class_folders[0])

    def test_no_folder(self, tmp_path, load):
        for data_dir in (None, tmp_path / "nowhere"):
            with pytest.raises(ScanReadError, match="a folder of class folders"):
                load("folder", data_dir)

    def test_no_class_folder(self, tmp_path, load, draw):
        with pytest.raises(ScanReadError, match="no class folder with a scan"):
            load("folder", tmp_path)
        draw(tmp_path / "a.png")
        with pytest.raises(ScanReadError, match="its 1 scans lie directly in it"):
            load("folder", tmp_path)


@pytest.fixture
def manifest(class_folders):
    """Writes a table of the files in class folders, beside them; by default with labels of its own."""
    root, heights = class_folders

    def write(name="scans.csv", **columns):
        columns = {"path": list(heights), "label": ["a", "b", "a", ""], **columns}
        table = pd.DataFrame({column: values for column, values in columns.items() if values is not None})
        table = table.replace("", None)
        path = root / name
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
        return path

    return write


class TestManifest:
    @pytest.mark.parametrize("name", ["scans.csv", "scans.parquet"])
    def test_rows_are_scans(self, name, manifest, class_folders, load, by_id, resampled):
        scans = load("manifest", manifest(name))
        assert scans.features["label"].names == ["a", "b"] and scans["label"][:] == [0, 1, 0, -1]
        assert scans["session"][:] == [None, SESSION, None, None]
        found = by_id(scans)
        for name, picture in class_folders[1].items():
            np.testing.assert_array_equal(found[str(Path(name).with_suffix(""))]["lines"], resampled(picture))

    def test_sessions_of_the_table_win(self, manifest, load):
        scans = load("manifest", manifest(session=["monday", "monday", "", "tuesday"]))
        assert scans["session"][:] == ["monday", "monday", None, "tuesday"]

    def test_a_state_may_be_called_none(self, manifest, load):
        scans = load("manifest", manifest(label=["None", "null", "NA", ""]))
        assert scans.features["label"].names == ["None", "null"] and scans["label"][:] == [0, 1, -1, -1]

    def test_empty_text_is_no_label(self, class_folders, load):
        path = class_folders[0] / "scans.PARQUET"
        pd.DataFrame({"path": list(class_folders[1]), "label": ["a", "b", "a", ""]}).to_parquet(path)
        assert load("manifest", path)["label"][:] == [0, 1, 0, -1]

    def test_columns_of_any_name(self, manifest, class_folders, load):
        path = manifest(path=None, label=None, file=list(class_folders[1]), tip=list("abab"), day=[1, 1, 2, 2])
        columns = {"path_column": "file", "label_column": "tip", "session_column": "day"}
        scans = load("manifest", path, **columns)
        assert scans["label"][:] == [0, 1, 0, 1] and scans["session"][:] == ["1", "1", "2", "2"]

    def test_file_that_is_not_there_is_named_skipped_and_counted(self, manifest, load, caplog):
        path = manifest(path=["good/b.png", "lost.png"], label=["a", "b"])
        with caplog.at_level(logging.WARNING):
            assert len(load("manifest", path)) == 1
        assert "lost.png: there is no such file" in caplog.text and "1 files could not be read" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING):  # prepared already: who trains must not miss what who looked was told
            assert len(load("manifest", path)) == 1
        assert (
            "1 files could not be read and are not in the dataset" in caplog.text and "lost.png for one" in caplog.text
        )

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"path": None}, r"has no column 'path' \(path_column\); it has label"),
            ({"label": None}, r"has no column 'label' \(label_column\); it has path"),
            ({"label": [""] * 4}, "no row has a label"),
            ({"path": ["good/b.png", "", "x.png", "y.png"]}, "row 2 names no file"),
            ({"path": ["good/b.png"] * 4}, "row 2 names a file that a row before it names"),
            ({"path": ["good/b.png", "x.png", "lost/../good/./b.png", "y.png"]}, "row 3 names a file"),
        ],
    )
    def test_refused(self, columns, reason, manifest, load):
        with pytest.raises(ScanReadError, match=reason) as caught:
            load("manifest", manifest(**columns))
        assert "scans" in str(caught.value)

    def test_a_file_has_one_name_however_its_path_is_written(self, manifest, class_folders, load):
        folder, (first, second, *_) = class_folders
        paths = [str((folder / first).resolve()), f"./{second}"]
        assert load("manifest", manifest(path=paths, label=["a", "b"]))["scan_id"][:] == [
            str(Path(name).with_suffix("")) for name in (first, second)
        ]

    def test_spaces_around_a_label_are_none_of_it(self, manifest, load):
        scans = load("manifest", manifest(label=["a", "a ", " b", "b"]))
        assert scans.features["label"].names == ["a", "b"] and scans["label"][:] == [0, 0, 1, 1]

    def test_unknown_column(self, manifest, load):
        with pytest.raises(ScanReadError, match=r"has no column 'day' \(session_column\)"):
            load("manifest", manifest(), session_column="day")

    def test_no_table(self, tmp_path, load):
        (tmp_path / "scans.parquet").write_bytes(b"PAR1 almost")
        with pytest.raises(ScanReadError, match="cannot be read as a table"):
            load("manifest", tmp_path / "scans.parquet")
        with pytest.raises(ScanReadError, match=r"needs data_dir: a \.csv"):
            load("manifest", tmp_path / "nowhere.csv")


def test_microscope_files_are_read_by_channel_and_direction(tmp_path, load, resampled):
    lines = np.arange(128, dtype=np.float64).reshape(8, 16)
    unit = gwyfile.objects.GwySIUnit(unitstr="m")
    fields = {
        name: gwyfile.objects.GwyDataField(data, si_unit_z=unit) for name, data in {"Z": lines, "I": -lines}.items()
    }
    container = gwyfile.objects.GwyContainer()
    for number, (name, values) in enumerate(fields.items()):
        container[f"/{number}/data"], container[f"/{number}/data/title"] = values, name
    for label in ("good", "bad"):
        (tmp_path / "scans" / label).mkdir(parents=True)
        container.tofile(str(tmp_path / "scans" / label / "scan.gwy"))
    heights = load("folder", tmp_path / "scans")["lines"][0]
    currents = load("folder", tmp_path / "scans", channel="I")["lines"][0]
    np.testing.assert_array_equal(heights, resampled(lines))
    np.testing.assert_array_equal(currents, resampled(-lines))
    with pytest.raises(ScanReadError, match="2 files could not be read"):
        load("folder", tmp_path / "scans", channel="Q")
