import os
import sys
import warnings

import numpy as np
import pytest
from writers import SAMPLES, gsf, npy

from data_scripts import Scan, ScanReadError, read_scan
from data_scripts.readers import READERS
from data_scripts.readers.registry import MAX_BYTES


@pytest.fixture
def heights() -> np.ndarray:
    lines, pixels = np.mgrid[:12, :12]
    return 1e-10 * (np.sin(lines / 3) + np.cos(pixels / 2) + 0.3 * np.sin(pixels / 7) + pixels / 12)


class TestReading:
    @pytest.mark.parametrize("kind", SAMPLES)
    def test_every_kind_shows_the_surface(self, kind, heights, put):
        files = SAMPLES[kind](heights)
        paths = [put(name, content) for name, content in files.items()]
        scan = read_scan(paths[0])
        assert isinstance(scan, Scan) and scan.lines.dtype == np.float32 and scan.lines.shape == heights.shape
        assert np.corrcoef(scan.lines.ravel(), heights.ravel())[0, 1] > 0.999
        assert (scan.scan_id, scan.source) == (paths[0].stem, str(paths[0]))

    def test_every_reader_has_a_sample(self, heights):
        endings = {"." + next(iter(make(heights))).rsplit(".")[-1].lower() for make in SAMPLES.values()}
        assert endings == set(READERS) - {".jpeg", ".tiff"}

    def test_name_session_and_source(self, heights, put):
        path = put("default_2015Sep30-094843_STM-STM_Spectroscopy--12_3.NPY", npy(heights))
        scan = read_scan(str(path), channel="Z", direction="backward")
        assert (scan.scan_id, scan.session) == (path.stem, "2015Sep30-094843")
        assert (scan.source, scan.channel, scan.direction, scan.size_nm) == (str(path), "Z", "backward", None)

    def test_link(self, heights, put, tmp_path):
        (tmp_path / "link.npy").symlink_to(put("scan.npy", npy(heights)))
        assert read_scan(tmp_path / "link.npy").scan_id == "link"

    @pytest.mark.parametrize("side", ["nan", "inf", "0", "-4e-8", "1e400"])
    def test_size_that_cannot_be(self, side, heights, put):
        assert read_scan(put("scan.gsf", gsf(heights, XReal=side, YReal="4e-8", XYUnits="m"))).size_nm is None
        good = read_scan(put("scan.gsf", gsf(heights, XReal="2e-8", YReal="4e-8", XYUnits="m")))
        assert good.size_nm == pytest.approx((40, 20))


class TestRefusals:
    def test_unknown_ending(self, put, refusal):
        reason = refusal(put("scan.docx", b"text"))
        assert "'.docx'" in reason and all(ending in reason for ending in READERS)

    @pytest.mark.parametrize("ending", READERS)
    def test_missing_file(self, ending, tmp_path, refusal):
        assert refusal(tmp_path / f"scan{ending}") == "there is no such file."

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
    def test_name_that_is_no_text(self, heights, put, tmp_path):
        path = put("scan.npy", npy(heights)).rename(tmp_path / os.fsdecode(b"gr\xf6.npy"))
        with pytest.raises(ScanReadError, match=r"gr\\xf6\.npy: its name is not in UTF-8\. Rename it\."):
            read_scan(path)

    @pytest.mark.parametrize("ending", READERS)
    def test_folder(self, ending, tmp_path, refusal):
        (tmp_path / f"scan{ending}").mkdir()
        assert refusal(tmp_path / f"scan{ending}") == "is no file; a folder is read file by file."

    @pytest.mark.parametrize("ending", READERS)
    def test_empty_file(self, ending, put, refusal):
        assert refusal(put(f"scan{ending}", b"")) == "the file is empty."

    def test_dangling_link(self, tmp_path, refusal):
        (tmp_path / "scan.sxm").symlink_to(tmp_path / "gone.sxm")
        assert refusal(tmp_path / "scan.sxm") == "is a link to a file that is not there."

    def test_file_in_a_file(self, put, refusal):
        refusal(put("scan.npy", b"1") / "scan.npy")

    def test_enormous_file(self, tmp_path, refusal):
        path = tmp_path / "scan.sm4"
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)  # sparse
        assert "GiB are more than a scan has" in refusal(path)

    @pytest.mark.parametrize("direction", ["", "sideways", "forward/left", "Forward", "up"])
    def test_unknown_direction(self, direction, heights, put, refusal):
        reason = refusal(put("scan.npy", npy(heights)), direction=direction)
        assert reason.startswith("direction must be one of forward, backward, ") and repr(direction) in reason

    @pytest.mark.parametrize(("kind", "package"), [("tif", "tifffile"), ("matrix", "access2thematrix")])
    def test_missing_package(self, kind, package, heights, put, refusal, monkeypatch):
        paths = [put(name, content) for name, content in SAMPLES[kind](heights).items()]
        monkeypatch.setitem(sys.modules, package, None)
        how = "in Scanline's folder: pip install -e '.[instruments]'"
        assert refusal(paths[0]) == f"needs the package {package}; {how}."

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nothing_measured(self, value, put, refusal):
        path = put("scan.npy", npy(np.full((3, 4), value)))
        assert refusal(path) == "no pixel of this frame was measured."

    @pytest.mark.filterwarnings("error")
    def test_a_library_that_warns(self, heights, put, monkeypatch, recwarn):
        def warn(path, channel, direction):
            warnings.warn("truncated", UserWarning, stacklevel=1)
            raise OSError("cannot go on")

        monkeypatch.setitem(READERS, ".npy", warn)
        path = put("scan.npy", npy(heights))
        with pytest.raises(ValueError, match=r"cannot be read as a scan \(cannot go on\)"):
            read_scan(path)
        assert not recwarn.list
