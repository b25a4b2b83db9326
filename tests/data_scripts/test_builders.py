import functools
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import openpyxl
import pytest
import torch
from PIL import Image

from data_scripts import ScanReadError, builders, read_scan
from data_scripts.builders import BUILDERS, Simulated, load_scans, read_folder
from data_scripts.scan_dataset import lines_of
from data_scripts.simulation import simulate
from modeling_scanline.image_processing_scanline import resample_lines

WIDTH, MAX_LINES = 8, 8
SESSION = "2015Sep30-094843"
HSI100 = Path(__file__).resolve().parents[3] / "shared" / "hsi100"
ORIGINALS = HSI100 / "original_rgb"
needs_hsi100 = pytest.mark.skipif(not HSI100.is_dir(), reason="the labelled scans of H:Si(100) are not here")


@pytest.fixture
def load(tmp_path):
    """Loads a dataset at the tests' size, with a cache of the test's own."""

    def load(name, data_dir=None, **options):
        options = {"pixels_per_line": WIDTH, "max_lines": MAX_LINES, **options}
        return load_scans(
            name, None if data_dir is None else str(data_dir), cache_dir=str(tmp_path / "cache"), **options
        )

    return load


@pytest.fixture
def count_preparations(monkeypatch):
    """How often each builder has gone through its scans."""
    calls = dict.fromkeys(BUILDERS, 0)
    for name, builder in BUILDERS.items():

        def scans(self, name=name, original=builder.scans):
            calls[name] += 1
            return original(self)

        monkeypatch.setattr(builder, "scans", scans)
    return calls


def resampled(heights, width=WIDTH, max_lines=MAX_LINES):
    return resample_lines(torch.from_numpy(heights)[None], width, max_lines)[0].numpy()


def by_id(scans):
    return {scan["scan_id"]: scan for scan in scans}


@pytest.fixture
def toolbox(tmp_path, draw, write_votes):
    """A tiny clone of SPM-Toolbox, and the heights of its pictures by file name."""
    root = tmp_path / "SPM-Toolbox"
    names = [f"default_{SESSION}_STM-STM_Spectroscopy--12_{frame}.png" for frame in range(4)]
    sizes = [(16, 16), (24, 24), (5, 16), (16, 16)]  # the third was aborted
    heights = {name: draw(root / "Images (Flat)" / name, *size) for name, size in zip(names, sizes, strict=True)}
    votes = {
        "not_here.png": [0, 1, 0, 0, 0, 0],
        names[2]: [0, 0, 0, 0, 0.5, 0],
        names[0]: [1, 0, 0.5, 0, 0, 0.25],
        names[1]: [0, 1, 0, 0, 0, 0],
    }
    write_votes(root, votes)
    return root, heights, votes


class TestSPMToolbox:
    def test_values_are_those_of_the_picture(self, toolbox, load):
        root, heights, _ = toolbox
        scans = by_id(load("hsi100", root))
        assert sorted(scans) == sorted(Path(name).stem for name in heights)
        for name, picture in heights.items():
            np.testing.assert_array_equal(np.float32(scans[Path(name).stem]["lines"]), resampled(picture))

    def test_aborted_scan_stays_partial(self, toolbox, load):
        root, _, _ = toolbox
        assert [len(scan["lines"]) for scan in load("hsi100", root)] == [8, 8, 2, 8]

    def test_votes_merged_by_name(self, toolbox, load):
        scans = load("hsi100", toolbox[0])
        assert scans.features["label"].names == ["individual_atoms", "asymmetries_dimers", "rows", "generic_defect"]
        assert scans["scores"][:3] == [[0, 1, 0, 0.25], [1, 0, 0, 0], [0, 0, 0, 0.5]]
        assert scans["label"][:3] == [1, 0, 3]

    def test_columns_in_any_order(self, toolbox, load, write_votes):
        root, _, votes = toolbox
        before = load("hsi100", root)["scores"][:3]
        write_votes(
            root,
            votes,
            columns=["Bad/Blurry", "Rows", "Note", "Dimers", "Tip Change", "Individual Atoms", "Asymmetries"],
        )
        assert load("hsi100", root)["scores"][:3] == before

    def test_picture_without_row_is_unlabelled(self, toolbox, load):
        last = load("hsi100", toolbox[0])[3]
        assert last["label"] == -1
        assert np.isnan(last["scores"]).all() and len(last["scores"]) == 4

    def test_row_without_vote_is_unlabelled(self, toolbox, load, write_votes):
        root, _, votes = toolbox
        write_votes(root, {name: [*scores[:-1], "?"] for name, scores in votes.items()})
        scans = load("hsi100", root)
        assert set(scans["label"]) == {-1}
        assert np.isnan(scans["scores"]).all()

    def test_no_row_at_all(self, toolbox, load, write_votes):
        write_votes(toolbox[0], {})
        assert set(load("hsi100", toolbox[0])["label"]) == {-1}

    def test_sessions(self, toolbox, load):
        assert set(load("hsi100", toolbox[0])["session"]) == {SESSION}

    def test_spreadsheet_left_open_in_excel(self, toolbox, load):
        (toolbox[0] / "Database" / "~$Classified Output.xlsx").write_bytes(b"owner")
        assert load("hsi100", toolbox[0])["label"][:3] == [1, 0, 3]

    def test_broken_picture_is_named_skipped_and_counted(self, toolbox, load, caplog):
        images = toolbox[0] / "Images (Flat)"
        (images / "broken.png").write_bytes(b"nothing")
        (images / "lost.png").symlink_to(images / "nowhere.png")
        with caplog.at_level(logging.WARNING):
            scans = load("hsi100", toolbox[0])
        assert len(scans) == 4
        assert "broken.png" in caplog.text and "lost.png" in caplog.text
        assert "2 files could not be read" in caplog.text

    def test_only_broken_pictures(self, toolbox, load):
        for picture in (toolbox[0] / "Images (Flat)").iterdir():
            picture.write_bytes(b"nothing")
        with pytest.raises(ScanReadError, match="no scan to make a dataset of; 4 files could not be read"):
            load("hsi100", toolbox[0])

    def test_two_pictures_of_one_name(self, toolbox, load, draw):
        root, heights, _ = toolbox
        draw((root / "Images (Flat)" / next(iter(heights))).with_suffix(".bmp"))
        with pytest.raises(ScanReadError, match=rf"two scans are called '{Path(next(iter(heights))).stem}'"):
            load("hsi100", root)

    def test_no_sheet(self, toolbox, load, write_votes):
        write_votes(toolbox[0], {}, sheet="Sums")
        with pytest.raises(ScanReadError, match=r"no sheet 'Mean_Score' with the votes; it has Raw, Sums"):
            load("hsi100", toolbox[0])

    def test_no_column(self, toolbox, load, write_votes):
        write_votes(toolbox[0], {}, columns=["Dimers", "Rows", "Tip Change", "Asymmetries"])
        with pytest.raises(ScanReadError, match=r"'Mean_Score' has no column 'Individual Atoms', 'Bad/Blurry'\."):
            load("hsi100", toolbox[0])

    def test_empty_sheet(self, toolbox, load):
        workbook = openpyxl.Workbook()
        workbook.active.title = "Mean_Score"
        workbook.save(toolbox[0] / "Database" / "Classified Output.xlsx")
        with pytest.raises(ScanReadError, match="'Mean_Score' has no column 'Name'"):
            load("hsi100", toolbox[0])

    @pytest.mark.parametrize("content", [b"", b"Name,Dimers\n", b"PK\x03\x04 almost"])
    def test_no_spreadsheet_by_content(self, content, toolbox, load):
        (toolbox[0] / "Database" / "Classified Output.xlsx").write_bytes(content)
        with pytest.raises(ScanReadError, match=r"Output\.xlsx: cannot be read as a spreadsheet"):
            load("hsi100", toolbox[0])

    def test_no_spreadsheet(self, toolbox, load):
        (toolbox[0] / "Database" / "Classified Output.xlsx").unlink()
        with pytest.raises(ScanReadError, match=r"no spreadsheet \(\.xlsx\) in 'Database'"):
            load("hsi100", toolbox[0])

    def test_no_pictures(self, tmp_path, load, write_votes):
        write_votes(tmp_path, {})
        with pytest.raises(ScanReadError, match=r"no pictures in 'Images \(Flat\)'"):
            load("hsi100", tmp_path)

    def test_no_folder(self, tmp_path, load):
        with pytest.raises(ScanReadError, match="needs data_dir"):
            load("hsi100")
        with pytest.raises(ScanReadError, match="must be the folder of a clone"):
            load("hsi100", tmp_path / "nowhere")


@needs_hsi100
class TestRealScans:
    def test_votes_sizes_and_sessions(self, tmp_path, load):
        real = HSI100 / "SPM-Toolbox"
        spreadsheet = next((real / "Database").glob("*.xlsx"))
        pictures = sorted((real / "Images (Flat)").iterdir())[::110]
        for path in (spreadsheet, *pictures):
            link = tmp_path / path.relative_to(real)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
        scans = load("hsi100", tmp_path, pixels_per_line=128, max_lines=128)

        page = openpyxl.load_workbook(spreadsheet, read_only=True)["Mean_Score"]
        rows = {row[0]: row[2:8] for row in page.iter_rows(min_row=2, max_col=8, values_only=True)}
        assert len(scans) == len(pictures) == 40
        for scan, path in zip(scans, pictures, strict=True):
            with Image.open(path) as image:
                width, num_lines = image.size
            assert len(scan["lines"]) == min(128, max(1, num_lines * 128 // width))
            assert scan["scan_id"] == path.stem and scan["session"] in path.name
            if path.name in rows:
                asymmetries, atoms, dimers, stripes, tip_change, bad = rows[path.name]
                merged = [atoms, max(asymmetries, dimers), stripes, max(tip_change, bad)]
                np.testing.assert_array_equal(np.float32(scan["scores"]), np.float32(merged))
            else:
                assert scan["label"] == -1 and np.isnan(scan["scores"]).all()
        assert len(set(scans["session"])) > 5
        assert set(scans["label"]) >= {-1, 1, 2, 3}

    def test_published_colours_are_the_heights(self):
        pictures = sorted(ORIGINALS.glob("*.png"))
        assert pictures
        for path in pictures:
            grey = read_scan(HSI100 / "SPM-Toolbox" / "Images (Flat)" / path.name)
            np.testing.assert_array_equal(read_scan(path).lines, grey.lines, err_msg=path.name)


@pytest.fixture
def class_folders(tmp_path, draw):
    root = tmp_path / "scans"
    names = ["good/b.png", f"good/day 2/x_{SESSION}_1.png", "bad tip/a.PNG", "bad tip/nested/deep/a.bmp"]
    return root, {name: draw(root / name, 8 + number) for number, name in enumerate(names)}


class TestImageFolder:
    def test_folders_are_classes(self, class_folders, load):
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

    def test_one_scan_in_two_files(self, class_folders, load, draw):
        draw(class_folders[0] / "good" / "b.bmp")
        with pytest.raises(ScanReadError, match="two scans are called 'good/b'"):
            load("folder", class_folders[0])

    def test_no_folder(self, tmp_path, load):
        for data_dir in (None, tmp_path / "nowhere"):
            with pytest.raises(ScanReadError, match="a folder of class folders"):
                load("folder", data_dir)

    def test_no_class_folder(self, tmp_path, load, draw):
        draw(tmp_path / "a.png")
        with pytest.raises(ScanReadError, match="no class folder with a scan"):
            load("folder", tmp_path)


@pytest.fixture
def arrays(rng):
    return {"images": rng.normal(size=(4, 16, 16)), "labels": np.array([0, 2, -1, 1])}


@pytest.fixture
def load_arrays(tmp_path, load):
    def load_arrays(**arrays):
        np.savez(tmp_path / "scans.npz", **arrays)
        return load("npz", tmp_path / "scans.npz")

    return load_arrays


class TestNpz:
    def test_values_and_labels(self, arrays, load_arrays):
        scans = load_arrays(**arrays)
        assert scans["scan_id"][:] == ["0", "1", "2", "3"] and scans["session"][:] == [None] * 4
        assert scans.features["label"].names == ["0", "1", "2"]
        assert scans["label"][:] == [0, 2, -1, 1]
        assert scans["scores"][1] == [0, 0, 1] and np.isnan(scans["scores"][2]).all()
        for scan, image in zip(scans, arrays["images"], strict=True):
            np.testing.assert_array_equal(np.float32(scan["lines"]), resampled(image.astype(np.float32)))

    def test_names_sessions_and_ids(self, arrays, load_arrays):
        ids = np.array(["a", "b", f"x_{SESSION}", "c"])
        names = np.array(["atoms", "dimers", "rows"])
        scans = load_arrays(**arrays, scan_ids=ids, label_names=names)
        assert scans["scan_id"][:] == ids.tolist() and scans.features["label"].names == names.tolist()
        assert scans["session"][:] == [None, None, SESSION, None]
        assert load_arrays(**arrays, sessions=np.array([1, 1, 2, 2]))["session"][:] == ["1", "1", "2", "2"]

    @pytest.mark.parametrize("kind", ["u1", "i4", "u8"])
    def test_labels_of_any_whole_type(self, kind, arrays, load_arrays):
        labels = np.array([0, 2, 0, 1], dtype=kind)
        assert load_arrays(images=arrays["images"], labels=labels)["label"][:] == [0, 2, 0, 1]

    def test_gaps_and_infinite_heights_are_not_measured(self, arrays, load_arrays):
        arrays["images"] = arrays["images"][:, :8, :8]
        arrays["images"][0, 5:] = np.nan
        arrays["images"][1, 2, 3] = np.inf
        lines = lines_of(load_arrays(**arrays), MAX_LINES)
        assert lines[0, 5:].isnan().all() and lines[1, 2, 3].isnan()
        assert lines.isnan().sum() == 3 * 8 + 1

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"images": None}, "no array images; it holds labels"),
            ({"labels": None}, "no array labels; it holds images"),
            ({"images": None, "labels": None, "x": np.zeros(3)}, "no array images or labels; it holds x"),
            ({"images": np.zeros((4, 16))}, r"images must be numbers \[num_scans, lines, pixels\]"),
            ({"images": np.zeros((3, 16, 16))}, "as many as labels"),
            ({"images": np.zeros((4, 0, 16))}, "at least one line"),
            ({"images": np.full((4, 16, 16), "a")}, "images must be numbers"),
            ({"images": np.array([[[object()]]], dtype=object)}, "pickled objects are not loaded"),
            ({"labels": np.array([0, "1", None, 2], dtype=object)}, "pickled objects are not loaded"),
            ({"labels": np.array([0.0, 1, 2, 1])}, "labels must be whole numbers"),
            ({"labels": np.array([[0, 1, 2, 1]])}, "labels must be whole numbers"),
            ({"labels": np.array(1)}, "labels must be whole numbers"),
            ({"labels": np.zeros(0, dtype=int)}, "labels must be whole numbers"),
            ({"labels": np.array([0, 1, -2, 1])}, r"labels must lie between -1 .* got -2 to 1"),
            ({"labels": np.array([0, 1, 2, 2**62])}, "label_names"),
            ({"labels": np.full(4, -1)}, "no scan has a label"),
            ({"label_names": np.array(["a", "b"])}, "labels must lie between -1 .* got -1 to 2"),
            ({"label_names": np.array(["a", "b", "a"])}, "label_names must be different"),
            ({"label_names": np.array("abc")}, "label_names must be"),
            ({"label_names": np.zeros((3, 2))}, "label_names must be"),
            ({"sessions": np.array(["a", "b", "c"])}, r"sessions must be \[num_scans\] as labels are, got \[3\]"),
            ({"scan_ids": np.arange(5)}, r"scan_ids must be \[num_scans\] as labels are, got \[5\]"),
            ({"scan_ids": np.array(["a", "b", "b", "c"])}, "two scans are called 'b'"),
        ],
    )
    def test_refused(self, changes, reason, arrays, load_arrays):
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        with pytest.raises(ScanReadError, match=reason) as caught:
            load_arrays(**arrays)
        assert "scans.npz" in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"images", b"PK\x03\x04 almost", b"\x93NUMPY\x01\x00"])
    def test_another_kind_of_file(self, content, tmp_path, load):
        (tmp_path / "scans.npz").write_bytes(content)
        with pytest.raises(ScanReadError, match=r"scans\.npz: cannot be read as \.npz arrays"):
            load("npz", tmp_path / "scans.npz")

    def test_one_array_is_no_npz(self, tmp_path, load):
        np.save(tmp_path / "scans.npy", np.zeros((2, 2)))
        with pytest.raises(ScanReadError, match="not a zip file"):
            load("npz", tmp_path / "scans.npy")

    def test_no_file(self, tmp_path, load):
        for data_dir in (None, tmp_path):
            with pytest.raises(ScanReadError, match=r"needs data_dir: a \.npz file"):
                load("npz", data_dir)


class TestSimulated:
    @pytest.fixture
    def load(self, load):
        return functools.partial(load, "simulated", pixels_per_line=32)

    def test_count_and_classes(self, load):
        scans = load(num_scans=9)
        assert len(set(scans["scan_id"])) == 9
        assert lines_of(scans, MAX_LINES).isfinite().all()
        assert scans.features["label"].names == ["individual_atoms", "asymmetries_dimers", "rows", "generic_defect"]
        assert all(session.startswith("simulated-0-") for session in scans["session"])

    def test_seed_decides(self, load):
        first, other = (load(num_scans=4, seed=seed) for seed in (1, 2))
        again = Simulated(dataset_name="again", pixels_per_line=32, max_lines=MAX_LINES, num_scans=4, seed=1)
        lines = lines_of(first, MAX_LINES)
        assert not torch.equal(lines, lines_of(other, MAX_LINES))
        for number, (scan, votes) in enumerate(again.scans()):
            np.testing.assert_array_equal(scan.lines, lines[number])
            assert votes.argmax() == first["label"][number]

    def test_more_scans_begin_with_the_same(self, load):
        few, many = load(num_scans=5), load(num_scans=7)
        assert torch.equal(lines_of(few, MAX_LINES), lines_of(many, MAX_LINES)[:5])

    @pytest.mark.parametrize("num_scans", [0, -3])
    def test_none(self, num_scans, load):
        with pytest.raises(ScanReadError, match="simulated: no scan to make a dataset of"):
            load(num_scans=num_scans)

    def test_too_narrow(self, load):
        with pytest.raises(ScanReadError, match=r"dataset simulated: .*pixels_per_line.* got 8"):
            load(pixels_per_line=8)


class TestCache:
    def test_second_load_prepares_nothing(self, toolbox, load, count_preparations):
        first, second = load("hsi100", toolbox[0]), load("hsi100", toolbox[0])
        assert count_preparations["hsi100"] == 1
        assert first["scan_id"][:] == second["scan_id"][:]
        assert torch.equal(lines_of(first, 2), lines_of(second, 2))

    def test_options_of_another_dataset_do_not_matter(self, class_folders, load, count_preparations):
        load("folder", class_folders[0], num_scans=10)
        load("folder", class_folders[0], num_scans=20, seed=3)
        assert count_preparations["folder"] == 1

    @pytest.mark.parametrize("change", [{"pixels_per_line": 40}, {"max_lines": 4}, {"num_scans": 3}, {"seed": 1}])
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

    def test_changed_picture_prepares_again(self, class_folders, load, draw):
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
        source = builders.inspect.getsource
        monkeypatch.setattr(builders.inspect, "getsource", lambda module: source(module) + "# changed")
        load("folder", class_folders[0])
        assert count_preparations["folder"] == 2

    def test_failed_preparation_leaves_nothing_behind(self, class_folders, load, draw):
        root, heights = class_folders
        draw(root / "good" / "b.bmp")
        with pytest.raises(ScanReadError, match="two scans"):
            load("folder", root)
        (root / "good" / "b.bmp").unlink()
        assert len(load("folder", root)) == len(heights)


def test_many_chunks_are_one_dataset(class_folders, load, monkeypatch):
    root, heights = class_folders
    whole = load("folder", root)
    monkeypatch.setattr(builders, "CHUNK_SIZE", 3)
    (root / "good" / "b.png").touch()
    chunked = load("folder", root)
    assert chunked["scan_id"][:] == whole["scan_id"][:] and len(chunked) == len(heights)
    assert lines_of(chunked, 8).nan_to_num(-1).equal(lines_of(whole, 8).nan_to_num(-1))


@pytest.mark.parametrize("width", [4, 16, 40])
def test_any_model_width(width, class_folders, load):
    root, heights = class_folders
    scans = by_id(load("folder", root, pixels_per_line=width, max_lines=7))
    for name, picture in heights.items():
        lines = np.float32(scans[str(Path(name).with_suffix(""))]["lines"])
        np.testing.assert_allclose(lines, resampled(picture, width, 7), rtol=1e-6)


def test_unknown_dataset():
    with pytest.raises(ScanReadError, match="dataset must be one of hsi100, folder, npz, simulated, got 'mnist'"):
        load_scans("mnist")


def test_error_of_another_kind_is_not_hidden(class_folders, load, monkeypatch):
    monkeypatch.setattr(builders, "resample_lines", lambda *_: 1 / 0)
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        load("folder", class_folders[0])


class TestReadFolder:
    def test_every_scan_below(self, class_folders, draw):
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


def test_every_option_reaches_the_simulator(tmp_path):
    options = {"noise": 0.3, "pixels_per_period": 4.0, "clarity": 3.0}
    sizes = {"pixels_per_line": 64, "max_lines": 40}
    scans = load_scans("simulated", num_scans=5, seed=3, cache_dir=str(tmp_path), **sizes, **options)
    expected = simulate(5, seed=3, pixels_per_line=64, num_lines=40, **options).lines
    np.testing.assert_array_equal(lines_of(scans, 40).numpy(), expected)
