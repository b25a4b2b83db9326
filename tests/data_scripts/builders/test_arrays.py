import h5py
import numpy as np
import pytest
import scipy.io
from builder_cases import MAX_LINES, SESSION

from data_scripts import ScanReadError
from data_scripts.scan_dataset import lines_of


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
    def test_values_and_labels(self, arrays, load_arrays, resampled):
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


MERGED = [1, 0, 1, 2, 3, 3]  # class of each box, in the order of individual_atoms, asymmetries_dimers, rows, defect


@pytest.fixture(scope="module")
def release():
    """Six scans `[6, 128, 128]` as the release has them: every line made flat on its own, one of each class."""
    scans = np.random.default_rng(0).normal(size=(6, 128, 128)).cumsum(axis=1).astype(np.float32)
    return scans - scans.mean(axis=2, keepdims=True)


@pytest.fixture
def load_mat(tmp_path, load):
    def load_mat(raw, classes, version="5", **options):
        path = tmp_path / "release.mat"
        if version == "5":
            scipy.io.savemat(path, {"x_raw": raw, "y": classes})
        else:
            with h5py.File(path, "w") as file:  # as MATLAB writes it: axes reversed, 512 bytes before
                file["x_raw"], file["y"] = raw.T, np.atleast_2d(classes).T
        return load("matlab", path, pixels_per_line=128, max_lines=128, **options)

    return load_mat


class TestMatlabRelease:
    @pytest.mark.parametrize("version", ["5", "7.3"])
    @pytest.mark.parametrize("lines_are", ["columns", "rows"])
    def test_lines_are_found_either_way(self, version, lines_are, release, load_mat, caplog):
        # [128, 6 * 128]: scans side by side, lines as columns or as rows
        images = release.transpose(0, 2, 1) if lines_are == "columns" else release
        raw = np.concatenate(list(images), axis=1)
        scans = load_mat(raw, np.arange(1, 7), version)
        np.testing.assert_array_equal(lines_of(scans, 128), release)
        assert f"the {lines_are} of x_raw are taken as the lines (as its values say)" in caplog.text

    @pytest.mark.parametrize("version", ["5", "7.3"])
    def test_classes_are_merged_by_name(self, version, release, load_mat):
        scans = load_mat(np.concatenate(list(release), axis=1), np.arange(1, 7), version)
        assert scans["label"][:] == MERGED

    @pytest.mark.parametrize(
        "classes",
        [
            np.repeat(np.arange(1, 7), 128),
            np.repeat(np.arange(6), 128)[None],
            np.arange(6.0),
            np.eye(6),
            np.arange(1, 7)[:, None],
        ],
    )
    def test_classes_in_any_form(self, classes, release, load_mat):
        assert load_mat(np.concatenate(list(release), axis=1), classes)["label"][:] == MERGED

    def test_orientation_can_be_told(self, release, load_mat):
        raw = np.concatenate(list(release), axis=1)
        scans = load_mat(raw, np.arange(6), orientation="columns")
        np.testing.assert_array_equal(lines_of(scans, 128), release.transpose(0, 2, 1))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            (
                {"raw": np.zeros((100, 300))},
                r"x_raw must be numbers \[128, num_scans \* 128\], got",
            ),
            ({"classes": np.arange(5)}, "y must be class numbers of the 6 scans or of their columns"),
            ({"classes": np.arange(6) + 0.5}, "y must be class numbers"),
            ({"classes": np.arange(6) + 2}, "y must number 6 classes, got 2 to 7"),
            ({"classes": np.arange(6 * 128) % 6}, "y changes within a scan"),
            ({"classes": np.ones((6, 6))}, "is not one-hot"),
        ],
    )
    def test_refused(self, changes, reason, release, load_mat):
        given = {"raw": np.concatenate(list(release), axis=1), "classes": np.arange(6)} | changes
        with pytest.raises(ScanReadError, match=reason):
            load_mat(**given)

    @pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(50)])
    def test_broken_file(self, content, tmp_path, load):
        (tmp_path / "release.mat").write_bytes(content)
        with pytest.raises(ScanReadError, match=r"release\.mat: (cannot be read as a MATLAB file|holds no array)"):
            load("matlab", tmp_path / "release.mat")

    def test_missing_array(self, tmp_path, load):
        scipy.io.savemat(tmp_path / "release.mat", {"x_raw": np.zeros((128, 128))})
        with pytest.raises(ScanReadError, match="holds no array y"):
            load("matlab", tmp_path / "release.mat")
        with pytest.raises(ScanReadError, match=r"needs data_dir: a \.mat file"):
            load("matlab")
