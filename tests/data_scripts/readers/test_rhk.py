import importlib.util
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from writers import Sm4Page, sm4

from data_scripts import read_scan


@pytest.fixture
def raw(rng) -> np.ndarray:
    return rng.integers(1, 10**6, (7, 5))


@pytest.fixture(scope="module")
def spym_sm4():
    """spym's parser alone: the package wants others that it does not ask for."""
    found = importlib.util.find_spec("spym")
    if found is None or not found.submodule_search_locations:
        pytest.skip("spym is not installed")
    path = Path(found.submodule_search_locations[0]) / "io" / "rhksm4" / "_sm4.py"
    spec = importlib.util.spec_from_file_location("spym_sm4", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TestPages:
    def test_forward_and_backward_see_the_same(self, raw, put):
        pages = [
            Sm4Page(3 * raw, "Current", "A"),
            Sm4Page(raw, scales=(2e-10, -1e-10, 1e-12), offset=5e-9),
            Sm4Page(raw[:, ::-1], scan_type=1, scales=(-2e-10, -1e-10, 1e-12), offset=5e-9),
        ]
        path = put("scan.sm4", sm4(*pages))
        for direction in ("forward", "backward"):
            scan = read_scan(path, direction=direction)
            np.testing.assert_allclose(scan.lines, raw * 1e-12 + 5e-9, rtol=1e-6)
            assert (scan.channel, scan.direction, scan.session) == ("Topography", direction, "2025-04-07")
            assert scan.size_nm == pytest.approx((0.7, 1.0))  # 7 lines of 0.1 nm, 5 pixels of 0.2 nm

    def test_channels(self, raw, put, refusal):
        path = put("scan.sm4", sm4(Sm4Page(raw, "Current", "A"), Sm4Page(2 * raw, "LIA", "V")))
        np.testing.assert_allclose(read_scan(path, "lia").lines, 2e-12 * raw, rtol=1e-6)
        assert read_scan(path).channel == "Current"
        assert refusal(path, "Topography") == "has no channel 'Topography'; it has Current, LIA."
        assert refusal(path, "LIA", "backward") == "holds no backward frame of its channel LIA."

    def test_no_other_channel_instead(self, raw, put, refusal):
        path = put("scan.sm4", sm4(Sm4Page(raw), Sm4Page(raw, "Current", "A", scan_type=1)))
        assert "no backward frame of its channel Topography" in refusal(path, direction="backward")

    def test_pages_that_are_no_images(self, raw, put, refusal):
        path = put("scan.sm4", sm4(Sm4Page(raw, "Spectra", kind=1), Sm4Page(2 * raw)))
        np.testing.assert_allclose(read_scan(path).lines, 2e-12 * raw, rtol=1e-6)
        assert "no channel that is an image" in refusal(put("scan.sm4", sm4(Sm4Page(raw, kind=1))))

    @settings(
        deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(raw=arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9)))
    def test_any_shape(self, raw, put):
        raw[-1] |= 1  # a last line of zeros was not measured
        lines = read_scan(put("scan.sm4", sm4(Sm4Page(raw, scales=(1, 1, 1))))).lines
        np.testing.assert_array_equal(lines, raw.astype(np.float32))

    @pytest.mark.parametrize("date", ["", "soon", "13/45/25"])
    def test_without_date(self, date, raw, put):
        assert read_scan(put("scan.sm4", sm4(Sm4Page(raw), date=date))).session is None

    def test_as_spym_reads_it(self, spym_sm4, rng, put):
        raw = rng.integers(-(10**6), 10**6, (6, 6))
        scales = [(2e-10, 2e-10), (-2e-10, 2e-10), (2e-10, -2e-10), (-2e-10, -2e-10)]
        path = put("scan.sm4", sm4(*(Sm4Page(raw, f"Page {n}", scales=(*s, 1)) for n, s in enumerate(scales))))
        pages = spym_sm4.RHKsm4(str(path))
        for number, (_, y_scale) in enumerate(scales):
            expected = pages[number].data[::-1] if y_scale > 0 else pages[number].data  # spym: as it lies in space
            np.testing.assert_array_equal(read_scan(path, f"Page {number}").lines, expected)
            assert pages[number].attrs["RHK_Label"] == f"Page {number}"
            assert pages[number].attrs["RHK_DateTime"].startswith("2025-04-07")


class TestUnfinished:
    @pytest.mark.parametrize(("completed", "measured"), [("3", 3), ("6", 6), ("7", 7), ("0", 7), ("99", 7), ("", 7)])
    def test_completed_lines(self, completed, measured, raw, put):
        lines = read_scan(put("scan.sm4", sm4(Sm4Page(raw, completed=completed)))).lines
        np.testing.assert_allclose(lines[:measured], 1e-12 * raw[:measured], rtol=1e-6)
        assert lines.shape == raw.shape and np.isnan(lines[measured:]).all()

    @pytest.mark.parametrize("completed", ["-3", "²", "three", "9" * 5000])
    def test_completed_lines_that_cannot_be(self, completed, raw, put):
        path = put("scan.sm4", sm4(Sm4Page(raw, completed=completed)))
        np.testing.assert_allclose(read_scan(path).lines, 1e-12 * raw, rtol=1e-6)

    def test_last_lines_of_zeros(self, raw, put):
        raw[4:] = 0
        lines = read_scan(put("scan.sm4", sm4(Sm4Page(raw, offset=1e-9)))).lines
        np.testing.assert_allclose(lines[:4], 1e-12 * raw[:4] + 1e-9, rtol=1e-6)
        assert np.isnan(lines[4:]).all()

    @pytest.mark.parametrize("unwritten", [slice(2, None), slice(None, 3)])
    @pytest.mark.parametrize("x_scale", [2e-10, -2e-10])
    def test_half_a_line_before_zeros(self, x_scale, unwritten, raw, put):
        raw[3, unwritten], raw[4:] = 0, 0
        path = put("scan.sm4", sm4(Sm4Page(raw, scales=(x_scale, 1e-10, 1e-12), offset=1e-9)))
        measured = np.isfinite(read_scan(path).lines)
        np.testing.assert_array_equal(measured, (raw if x_scale > 0 else raw[:, ::-1]) != 0)

    def test_nothing_measured(self, raw, put, refusal):
        path = put("scan.sm4", sm4(Sm4Page(np.zeros_like(raw), offset=1e-9)))
        assert refusal(path) == "no pixel of this frame was measured."

    @pytest.mark.parametrize(("missing", "complete"), [(1, 6), (19, 6), (20, 6), (21, 5), (139, 0)])
    def test_growing(self, missing, complete, raw, put, refusal):
        path = put("scan.sm4", sm4(Sm4Page(raw))[:-missing])
        if not complete:
            assert "ends before the first line" in refusal(path)
            return
        lines = read_scan(path).lines
        np.testing.assert_allclose(lines[:complete], 1e-12 * raw[:complete], rtol=1e-6)
        assert np.isnan(lines[complete:]).all()


class TestBroken:
    def test_every_truncation(self, raw, put, refusal):
        content = sm4(Sm4Page(raw))
        for length in range(1, len(content) - raw.size * 4, 3):
            refusal(put("scan.sm4", content[:length]))

    @pytest.mark.parametrize("content", [b"MZ" + bytes(200), b"not a file of RHK's"])
    def test_of_another_kind(self, content, put, refusal):
        assert "is no RHK SM4 file" in refusal(put("scan.sm4", content))

    @pytest.mark.parametrize("size", [(100_000, 100_000), (2**32 - 1, 1), (0, 5), (2**31, 2)])
    def test_size_that_cannot_be(self, size, raw, put, refusal):
        path = put("scan.sm4", sm4(Sm4Page(raw, size=size)))
        tracemalloc.start()
        assert "which no scan has" in refusal(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**22

    @pytest.mark.parametrize("place", [42, 58 + 12, 58 + 12 + 4])  # objects, pages, objects of the page index
    def test_count_that_cannot_be(self, place, raw, put, refusal):
        content = bytearray(sm4(Sm4Page(raw)))
        assert struct.unpack_from("<I", content, place) == (1,)
        struct.pack_into("<I", content, place, 2**32 - 1)
        refusal(put("scan.sm4", bytes(content)))
