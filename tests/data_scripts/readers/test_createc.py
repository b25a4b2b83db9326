import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from writers import createc

from data_scripts import read_scan

DAC = np.float32(1e-10 * 0.00037)
FINITE = st.floats(-1e6, 1e6, width=32).filter(bool)


@pytest.fixture
def frames(rng) -> list[np.ndarray]:
    """Z and current forward, Z and current backward, in units of the converter."""
    return [rng.uniform(-1e4, 1e4, (12, 17)).astype(np.float32) for _ in range(4)]


@pytest.mark.parametrize("compressed", [True, False])
class TestFrames:
    @pytest.mark.parametrize("fast", ["forward", "backward"])
    def test_every_frame(self, fast, compressed, frames, put):
        path = put("A250407.141806.dat", createc(frames, compressed=compressed))
        place = 2 * (fast == "backward")
        scan = read_scan(path, direction=fast)
        np.testing.assert_allclose(scan.lines, frames[place] * DAC, rtol=1e-6)
        assert (scan.channel, scan.direction, scan.session) == ("Z", fast, "2025-04-07")
        assert scan.size_nm == pytest.approx((20, 40))
        current = read_scan(path, "current", fast)
        np.testing.assert_array_equal(current.lines, frames[place + 1])
        assert current.channel == "Current"

    @settings(
        deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(lines=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FINITE))
    def test_any_shape(self, lines, compressed, put):
        path = put("scan.dat", createc([lines], channels=1, fields={"Dacto[A]z": "1e10"}, compressed=compressed))
        np.testing.assert_allclose(read_scan(path).lines, lines, rtol=1e-6)

    def test_four_channels(self, compressed, frames, put, refusal):
        path = put("scan.dat", createc([*frames, *(-frame for frame in frames)], channels=4, compressed=compressed))
        np.testing.assert_array_equal(read_scan(path, "ADC2").lines, frames[3])
        np.testing.assert_array_equal(read_scan(path, "ADC1", "backward").lines, -frames[2])
        assert refusal(path, "ADC3") == "has no channel 'ADC3'; it has Z, Current, ADC1, ADC2."

    def test_without_backward_frames(self, compressed, frames, put, refusal):
        path = put("scan.dat", createc(frames[:2], compressed=compressed))
        np.testing.assert_allclose(read_scan(path).lines, frames[0] * DAC, rtol=1e-6)
        assert refusal(path, direction="backward") == "holds no backward frame."

    def test_of_several_images_the_first(self, compressed, frames, put):
        path = put("scan.dat", createc([*frames, *frames[::-1]], compressed=compressed))
        np.testing.assert_allclose(read_scan(path, direction="backward").lines, frames[2] * DAC, rtol=1e-6)

    @pytest.mark.parametrize("name", ["Titel(File) / Titel", "Username"])
    @pytest.mark.parametrize("value", ["DATA", "the DATA of today", "Å=µ", "a / b"])
    def test_text_that_looks_like_something(self, value, name, compressed, frames, put):
        path = put("scan.dat", createc(frames, fields={name: value}, compressed=compressed))
        np.testing.assert_allclose(read_scan(path).lines, frames[0] * DAC, rtol=1e-6)

    def test_without_calibration(self, compressed, frames, put):
        fields = {"Dacto[A]z": "0", "Length x[A]": "0"}
        scan = read_scan(put("scan.dat", createc(frames, fields=fields, compressed=compressed)))
        np.testing.assert_array_equal(scan.lines, frames[0])
        assert scan.size_nm is None

    def test_aborted(self, compressed, frames, put):
        for frame in frames:
            frame[7:] = 0
        path = put("scan.dat", createc(frames, compressed=compressed))
        for fast in ("forward", "backward"):
            lines = read_scan(path, direction=fast).lines
            assert lines.shape == (12, 17) and np.isfinite(lines[:7]).all() and np.isnan(lines[7:]).all()

    @pytest.mark.parametrize("fast", ["forward", "backward"])
    def test_half_a_line_before_zeros(self, fast, compressed, frames, put):
        """A backward line is mirrored already: it fills from its last pixel on."""
        for frame in frames:
            line = frame[6] if fast == "forward" else frame[6, ::-1]
            line[0], line[9:], frame[7:] = 0, 0, 0
        lines = read_scan(put("scan.dat", createc(frames, compressed=compressed)), direction=fast).lines
        measured = np.isfinite(lines)
        assert measured[:6].all() and not measured[7:].any()
        assert (measured[6] if fast == "forward" else measured[6, ::-1]).tolist() == [True] * 9 + [False] * 8

    def test_nothing_measured(self, compressed, frames, put, refusal):
        path = put("scan.dat", createc([np.zeros_like(frames[0])], channels=1, compressed=compressed))
        assert refusal(path) == "no pixel of this frame was measured."

    @pytest.mark.parametrize(("lines", "extra"), [(1, 0), (1, 67), (5, 1), (11, 67)])
    def test_growing(self, lines, extra, compressed, frames, put, refusal):
        path = put("scan.dat", createc(frames, compressed=compressed, stop=4 + 68 * lines + extra))
        scan = read_scan(path)
        np.testing.assert_allclose(scan.lines[:lines], frames[0][:lines] * DAC, rtol=1e-6)
        assert np.isnan(scan.lines[lines:]).all()
        assert "ends before the first line" in refusal(path, "Current")
        assert "ends before the first line" in refusal(path, direction="backward")

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"Num.X / Num.X": 100_000, "Num.Y / Num.Y": 100_000}, "which no scan has"),
            ({"Num.X / Num.X": 2**31 - 1}, "which no scan has"),
            ({"Num.X / Num.X": -1}, "which no scan has"),
            ({"Num.Y / Num.Y": 0}, "which no scan has"),
            ({"Num.Y / Num.Y": "some"}, "cannot be read"),
            ({"Num.Y / Num.Y": "1e999"}, "cannot be read"),
            ({"Channels / Channels": "nan"}, None),
            ({"Num.X / Num.X": 4096, "Num.Y / Num.Y": 4096}, "ends before the first line"),
        ],
    )
    def test_header_that_cannot_be(self, fields, reason, compressed, frames, put, refusal):
        path = put("scan.dat", createc(frames, fields=fields, compressed=compressed))
        tracemalloc.start()
        assert (reason or "cannot be read") in refusal(path, direction="backward")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**22


class TestBroken:
    @pytest.mark.parametrize(
        "content",
        [
            b"Experiment\tbias spectroscopy\nDate\t07.04.2025\n\n[DATA]\nBias (V)\tCurrent (A)\n1.0\t2.0\n",  # Nanonis
            b"[ParVERT30]\r\nDATA",  # Createc's own spectra
            b"1 2 3\n",
        ],
    )
    def test_spectra(self, content, put, refusal):
        assert "no image file of Createc's (.dat is also what others call" in refusal(put("scan.dat", content))

    def test_every_truncation(self, frames, put, refusal):
        content = createc([frames[0][:2, :2]], channels=1)
        for length in range(1, len(content) - 12, 3):
            refusal(put("scan.dat", content[:length]))

    def test_broken_compression(self, frames, put, refusal):
        content = bytearray(createc(frames))
        place = content.index(b"DATAx") + 6
        content[place : place + 40] = b"\xff" * 40
        assert "cannot be read" in refusal(put("scan.dat", bytes(content)))

    def test_compressed_without_end(self, put, refusal):
        """Of what unpacks to far more, only what is wanted is unpacked."""
        fields = {"Num.X / Num.X": 4, "Num.Y / Num.Y": 4}
        header = createc([np.ones((4, 4))], channels=1, fields=fields)
        path = put("scan.dat", header[: header.index(b"DATAx") + 4] + zlib.compress(b"\x3f" * 2**27))
        tracemalloc.start()
        assert read_scan(path).lines.shape == (4, 4)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**23


def test_real_file(real):
    path = real("createc_scan_preview_120nm.dat")
    blob = path.read_bytes()
    raw = np.frombuffer(zlib.decompress(blob[blob.index(b"DATAx") + 4 :]), "<f4")[1 : 1 + 4 * 64 * 64]
    frames = raw.reshape(4, 64, 64)  # Z, current forward; Z, current backward
    for fast, z, current in (("forward", 0, 1), ("backward", 2, 3)):
        scan = read_scan(path, direction=fast)
        assert np.isfinite(scan.lines).all()
        np.testing.assert_allclose(scan.lines, frames[z] * 0.00037e-10, rtol=1e-5)
        np.testing.assert_array_equal(read_scan(path, "Current", fast).lines, frames[current])
        assert scan.size_nm == pytest.approx((120.00366, 120.00366))
    assert np.corrcoef(frames[0].ravel(), frames[2].ravel())[0, 1] > 0.8
