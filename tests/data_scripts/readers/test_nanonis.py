import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from writers import sxm, sxm_table

from data_scripts import read_scan

SHAPES = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)


@pytest.fixture
def frames(heights):
    return {
        "Current": {"forward": 3 * heights, "backward": 4 * heights},
        "Z": {"forward": heights, "backward": 2 * heights},
    }


def header_of(content: bytes) -> bytes:
    return content[: content.index(b"\x1a\x04") + 2]


class TestFrames:
    @pytest.mark.parametrize("slow", ["up", "down"])
    @pytest.mark.parametrize("fast", ["forward", "backward"])
    @pytest.mark.parametrize("channel", [None, "Z", "z", "Current"])
    def test_every_frame(self, channel, fast, slow, frames, put):
        scan = read_scan(put("scan.sxm", sxm(frames, fields={"SCAN_DIR": slow})), channel, fast)
        name = "Current" if channel == "Current" else "Z"
        assert scan.lines.dtype == np.float32
        np.testing.assert_array_equal(scan.lines, frames[name][fast])
        assert (scan.channel, scan.direction, scan.session) == (name, f"{fast}/{slow}", "2025-04-07")
        assert scan.size_nm == pytest.approx((20, 40))
        assert scan.scan_id == "scan"

    @SHAPES
    @given(lines=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FINITE))
    def test_any_shape(self, lines, put):
        path = put("scan.sxm", sxm({"Z": {"forward": lines, "backward": lines[::-1]}}))
        np.testing.assert_array_equal(read_scan(path).lines, lines)
        np.testing.assert_array_equal(read_scan(path, direction="backward").lines, lines[::-1])

    def test_slow_direction_that_was_scanned(self, frames, put, refusal):
        path = put("scan.sxm", sxm(frames))
        assert read_scan(path, direction="forward/down").direction == "forward/down"
        assert "was scanned down" in refusal(path, direction="forward/up")

    def test_unknown_channel(self, frames, put, refusal):
        assert refusal(put("scan.sxm", sxm(frames)), channel="Phase") == "has no channel 'Phase'; it has Current, Z."

    def test_single_directions(self, heights, put, refusal):
        frames = {
            "Current": {"backward": 3 * heights},
            "Phase": {"forward": 4 * heights, "backward": 5 * heights},
            "Z": {"forward": heights},
            "Excitation": {"backward": 6 * heights},
        }
        path = put("scan.sxm", sxm(frames))
        for channel, ways in frames.items():
            for fast, lines in ways.items():
                np.testing.assert_array_equal(read_scan(path, channel, fast).lines, lines)
        assert refusal(path, channel="Current") == "holds no forward frame of its channel Current."
        # and not another channel instead
        assert refusal(path, direction="backward") == "holds no backward frame of its channel Z."

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ({"Current": "A", "Piezo": "m", "Depth": "m"}, "Piezo"),
            ({"Current": "A", "Bias": "V"}, "Current"),
            ({"Depth": "m", "Topography (filtered)": "m"}, "Topography (filtered)"),
        ],
    )
    def test_channel_where_none_is_called_z(self, names, expected, heights, put):
        frames = {name: {"forward": weight * heights} for weight, name in enumerate(names, start=1)}
        scan = read_scan(put("scan.sxm", sxm(frames, units=names)))
        assert scan.channel == expected
        np.testing.assert_array_equal(scan.lines, frames[expected]["forward"])

    @pytest.mark.parametrize(("kind", "dtype"), [("FLOAT LSBFIRST", "<f4"), ("INT MSBFIRST", ">i4")])
    def test_other_numbers(self, kind, dtype, rng, put):
        lines = rng.integers(-99, 99, (4, 6))
        path = put("scan.sxm", sxm({"Z": {"forward": lines}}, fields={"SCANIT_TYPE": kind}, dtype=dtype))
        np.testing.assert_array_equal(read_scan(path).lines, lines)


class TestUnfinished:
    @pytest.mark.parametrize("missing", [1, 4, 67, 68, 69, 300, 68 * 11])
    def test_growing(self, missing, heights, put):
        scan = read_scan(put("scan.sxm", sxm({"Z": {"forward": heights}})[:-missing]))
        complete = 12 - -(-missing // 68)  # lines of 17 pixels of 4 bytes
        np.testing.assert_array_equal(scan.lines[:complete], heights[:complete])
        assert scan.lines.shape == heights.shape and np.isnan(scan.lines[complete:]).all()

    def test_not_one_line(self, heights, put, refusal):
        content = sxm({"Z": {"forward": heights, "backward": heights}})
        path = put("scan.sxm", header_of(content) + bytes(67))
        assert "ends before the first line" in refusal(path)
        path = put("scan.sxm", content[: -heights.size * 4])
        assert read_scan(path).lines.shape == heights.shape
        assert "ends before the first line" in refusal(path, direction="backward")

    @pytest.mark.parametrize("unwritten", [np.nan, 0.0])
    @pytest.mark.parametrize("slow", ["up", "down"])
    @pytest.mark.parametrize("fast", ["forward", "backward"])
    def test_aborted(self, fast, slow, unwritten, heights, put):
        heights[7:] = unwritten
        frames = {"Z": {"forward": heights, "backward": heights}}
        lines = read_scan(put("scan.sxm", sxm(frames, fields={"SCAN_DIR": slow})), direction=fast).lines
        np.testing.assert_array_equal(lines[:7], heights[:7])
        assert np.isnan(lines[7:]).all()

    @pytest.mark.parametrize("fast", ["forward", "backward"])
    def test_half_a_line_before_zeros(self, fast, heights, put):
        line = heights[6] if fast == "forward" else heights[6, ::-1]  # as the tip went
        line[0] = 0
        expected = heights.copy()
        (expected[6] if fast == "forward" else expected[6, ::-1])[9:], expected[7:] = np.nan, np.nan
        line[9:], heights[7:] = 0, 0
        path = put("scan.sxm", sxm({"Z": {"forward": heights, "backward": heights}}))
        np.testing.assert_array_equal(read_scan(path, direction=fast).lines, expected)

    @pytest.mark.parametrize("missing", [1, 68, 68 * 3])
    def test_zeros_before_the_end_of_a_file_that_is_cut(self, missing, heights, put):
        heights[7:] = 0
        lines = read_scan(put("scan.sxm", sxm({"Z": {"forward": heights}})[:-missing])).lines
        np.testing.assert_array_equal(lines[:7], heights[:7])
        assert np.isnan(lines[7:]).all()

    def test_zeros_between_are_heights(self, heights, put):
        heights[3], heights[5, 4] = 0, np.nan
        scan = read_scan(put("scan.sxm", sxm({"Z": {"forward": heights}})))
        np.testing.assert_array_equal(scan.lines, heights)

    @pytest.mark.parametrize("unwritten", [np.nan, 0.0])
    def test_nothing_measured(self, unwritten, heights, put, refusal):
        path = put("scan.sxm", sxm({"Z": {"forward": np.full_like(heights, unwritten)}}))
        assert "no pixel of this frame was measured" in refusal(path)


class TestHeader:
    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_line_ends(self, newline, frames, put):
        scan = read_scan(put("scan.sxm", sxm(frames, newline=newline)), direction="backward")
        np.testing.assert_array_equal(scan.lines, frames["Z"]["backward"])
        assert (scan.channel, scan.session, scan.size_nm) == ("Z", "2025-04-07", pytest.approx((20, 40)))

    @pytest.mark.parametrize("value", ["::", ":", ": a :", "\n\n::\n", "a:b:", ":x", "Å µ ü \x85 \x0b \x1c"])
    def test_values_that_look_like_something(self, value, frames, put):
        fields = {"COMMENT": value, "Rotation": value, "Clip>of (%)": value}
        scan = read_scan(put("scan.sxm", sxm(frames, fields=fields)))
        np.testing.assert_array_equal(scan.lines, frames["Z"]["forward"])

    def test_channel_named_in_latin_1(self, heights, put):
        frames = {"Höhe\x85(µ)": {"forward": heights}, "Phase": {"forward": 2 * heights}}
        content = sxm(frames, units={"Höhe\x85(µ)": "°", "Phase": "°"})
        np.testing.assert_array_equal(read_scan(put("scan.sxm", content), "höhe\x85(µ)").lines, heights)

    def test_field_of_the_table_that_is_longer(self, heights, put):
        table = "\n".join(f"{row}\tmore" for row in sxm_table({"Z": {"forward": heights}}, {})) + "\n"
        np.testing.assert_array_equal(
            read_scan(put("scan.sxm", sxm({"Z": {"forward": heights}}, fields={"DATA_INFO": table}))).lines, heights
        )

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"SCANIT_TYPE": None}, "no SCANIT_TYPE"),
            ({"SCANIT_TYPE": "DOUBLE MSBFIRST"}, "type DOUBLE MSBFIRST, expected FLOAT MSBFIRST"),
            ({"SCAN_PIXELS": None}, "no SCAN_PIXELS"),
            ({"SCAN_PIXELS": "17"}, "no SCAN_PIXELS, or not the whole"),
            ({"SCAN_PIXELS": "17 0"}, "0 lines of 17 pixels"),
            ({"SCAN_PIXELS": "-17 12"}, "12 lines of -17 pixels"),
            ({"SCAN_PIXELS": "100000 100000"}, "100000 lines of 100000 pixels, which no scan has"),
            ({"SCAN_PIXELS": "many more"}, "cannot be read"),
            ({"SCAN_DIR": None}, "no SCAN_DIR"),
            ({"SCAN_DIR": ""}, "no SCAN_DIR"),
            ({"SCAN_DIR": "left"}, "'left', expected up or down"),
            ({"DATA_INFO": None}, "no channel that is an image"),
            ({"DATA_INFO": ""}, "no channel that is an image"),
            ({"DATA_INFO": "\tName\tDirection\n\tZ"}, "name and direction"),
            ({"DATA_INFO": "\tName\tDirection\n\tZ\tsideways"}, "name and direction"),
        ],
    )
    def test_broken(self, fields, reason, frames, put, refusal):
        assert reason in refusal(put("scan.sxm", sxm(frames, fields=fields)))

    @pytest.mark.parametrize("fields", [{"SCAN_RANGE": None}, {"SCAN_RANGE": ""}, {"SCAN_RANGE": "0 nan"}])
    def test_without_size(self, fields, frames, put):
        assert read_scan(put("scan.sxm", sxm(frames, fields=fields))).size_nm is None

    @pytest.mark.parametrize("date", [None, "", "yesterday", "31.02.2025"])
    def test_without_date(self, date, frames, put):
        assert read_scan(put("scan.sxm", sxm(frames, fields={"REC_DATE": date}))).session is None

    def test_every_truncation(self, frames, put, refusal):
        header = header_of(sxm(frames))
        for length in range(1, len(header), 7):
            assert "no complete Nanonis header" in refusal(put("scan.sxm", header[:length]))


class TestRealFiles:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        ("name", "slow", "session", "size"),
        [
            ("nanonis_si111_7x7.sxm", "down", "2016-01-07", 200),
            ("nanonis_afm_gen4.sxm", "up", "2015-12-16", 2),
        ],
    )
    def test_as_nanonispy2_reads_them(self, name, slow, session, size, real):
        nanonispy2 = pytest.importorskip("nanonispy2.read")
        signals = nanonispy2.Scan(str(real(name))).signals
        for channel, by_way in signals.items():
            for fast, expected in by_way.items():
                scan = read_scan(real(name), channel, fast)
                np.testing.assert_array_equal(scan.lines, expected[:, ::-1] if fast == "backward" else expected)
                assert (scan.channel, scan.direction, scan.session) == (channel, f"{fast}/{slow}", session)
                assert scan.size_nm == pytest.approx((size, size))
        assert read_scan(real(name)).channel == "Z"

    def test_forth_and_back_see_the_same(self, real):
        forth, back = (
            read_scan(real("nanonis_si111_7x7.sxm"), direction=fast).lines for fast in ("forward", "backward")
        )
        assert np.corrcoef(forth.ravel(), back.ravel())[0, 1] > 0.9

    def test_nine_lines(self, real):
        path = real("nanonis_createc_converted_9_lines.sxm")
        raw = np.fromfile(path, ">f4", offset=path.read_bytes().index(b"\x1a\x04") + 2).reshape(2, 2, 9, 256)
        for place, channel in enumerate(("Z", "Current")):
            np.testing.assert_array_equal(read_scan(path, channel).lines, raw[place, 0])
            np.testing.assert_array_equal(read_scan(path, channel, "backward").lines, raw[place, 1, :, ::-1])
        scan = read_scan(path)
        assert (scan.direction, scan.session) == ("forward/down", "2025-04-07")
