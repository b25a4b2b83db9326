import numpy as np
import pytest

from data_scripts import Scan, ScanReadError
from data_scripts.scan import check_size, day_of, session_of, to_lines


class TestSession:
    @pytest.mark.parametrize(
        ("name", "session"),
        [
            ("default_2015Sep30-094843_STM-STM_Spectroscopy--12_3.Z_mtrx", "2015Sep30-094843"),
            ("2015Sep30-094843.png", "2015Sep30-094843"),
            ("A250407.141806.dat", "2025-04-07"),
            ("scan.png", None),
            ("12015Sep30-094843.png", None),
            ("2015Sep30-0948431.png", None),
            ("2015sep30-094843", None),
            ("A251307.141806.dat", None),
            ("XA250407.141806.dat", None),
        ],
    )
    def test_session_in_a_name(self, name, session):
        assert session_of(name) == session

    @pytest.mark.parametrize(
        ("text", "day"),
        [(" 07.04.2025 ", "2025-04-07"), ("2025-04-07", "2025-04-07"), ("31.02.2025", None), ("", None)],
    )
    def test_day(self, text, day):
        assert day_of(text, "%d.%m.%Y", "%Y-%m-%d") == day


class TestLines:
    @pytest.mark.filterwarnings("error")
    def test_infinite_heights_were_not_measured(self):
        lines = to_lines(np.array([[1.0, np.inf], [-np.inf, 1e300]]))
        np.testing.assert_array_equal(lines, [[1, np.nan], [np.nan, np.nan]])
        assert lines.dtype == np.float32

    def test_a_copy_in_order(self):
        heights = np.ones((3, 4), np.float32)
        lines = to_lines(heights.T)
        lines[0, 0] = 5
        assert heights[0, 0] == 1 and lines.flags.c_contiguous

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (1, 4, 4)])
    def test_scan_is_at_least_one_line_of_one_pixel(self, shape):
        with pytest.raises(ScanReadError, match="at least one line"):
            Scan(lines=np.zeros(shape, dtype=np.float32), scan_id="empty")

    @pytest.mark.parametrize("size", [(0, 4), (4, -1), (100_000, 100_000), (2**31 - 1, 1)])
    def test_size_that_no_scan_has(self, size, tmp_path):
        with pytest.raises(ScanReadError, match="which no scan has"):
            check_size(tmp_path, *size)

    def test_size_that_a_scan_has(self, tmp_path):
        check_size(tmp_path, 8192, 4096)
