import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from writers import gsf, gwy

from data_scripts import read_scan

SHAPES = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
LINES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FINITE)


def component(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + value


def thing(kind: str, content: bytes) -> bytes:
    return kind.encode() + b"\0" + struct.pack("<I", len(content)) + content


def container(*components: bytes) -> bytes:
    return b"GWYP" + thing("GwyContainer", b"".join(components))


class TestGwy:
    @SHAPES
    @given(lines=LINES)
    def test_any_shape(self, lines, put):
        pytest.importorskip("gwyfile")
        np.testing.assert_array_equal(read_scan(put("scan.gwy", gwy({"Z": lines}))).lines, lines)

    def test_channels(self, heights, put, refusal):
        fields = {"Current": 2 * heights, "Topography": heights, "Phase": 3 * heights}
        path = put("scan.gwy", gwy(fields, xreal=4e-8, yreal=2e-8))
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.lines, heights)
        assert (scan.channel, scan.direction, scan.session) == ("Topography", "forward", None)
        assert scan.size_nm == pytest.approx((20, 40))
        for channel, lines in fields.items():
            np.testing.assert_array_equal(read_scan(path, channel).lines, lines)
        assert refusal(path, "Z").endswith("has no channel 'Z'; it has Current, Topography, Phase.")

    def test_title_of_several_lines(self, heights, put, refusal):
        assert "it has a b." in refusal(put("scan.gwy", gwy({"a\nb": heights})), "Z")

    @pytest.mark.parametrize(
        ("unit", "scale"), [("m", 1), ("nm", 1e-9), ("pm", 1e-12), ("µm", 1e-6), ("Å", 1e-10), ("A", 1), ("", 1)]
    )
    def test_units(self, unit, scale, heights, put):
        scan = read_scan(put("scan.gwy", gwy({"Z": heights}, z_unit=unit, xy_unit=unit, xreal=4.0, yreal=2.0)))
        np.testing.assert_allclose(scan.lines, heights * scale, rtol=1e-6)
        assert scan.size_nm == (None if unit in ("A", "") else pytest.approx((2e9 * scale, 4e9 * scale)))

    def test_without_units_and_title(self, put):
        size = component("xres", "i", struct.pack("<i", 3)) + component("yres", "i", struct.pack("<i", 2))
        data = component("data", "D", struct.pack("<I6d", 6, *range(6)))
        path = put("scan.gwy", container(component("/7/data", "o", thing("GwyDataField", size + data))))
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.lines, [[0, 1, 2], [3, 4, 5]])
        assert (scan.channel, scan.size_nm) == ("7", None)

    def test_components_of_every_kind(self, heights, put):
        number = struct.pack("<I", 2)
        others = (
            component("/meta", "o", thing("GwyContainer", component("a", "s", b"b\0"))),
            component("/b", "b", b"\1"),
            component("/c", "c", b"x"),
            component("/i", "i", bytes(4)),
            component("/q", "q", bytes(8)),
            component("/d", "d", bytes(8)),
            component("/C", "C", number + b"ab"),
            component("/I", "I", number + bytes(8)),
            component("/Q", "Q", number + bytes(16)),
            component("/D", "D", number + bytes(16)),
            component("/S", "S", number + b"one\0two\0"),
            component("/O", "O", number + 2 * thing("GwySIUnit", component("unitstr", "s", b"m\0"))),
        )
        whole = gwy({"Z": heights})
        inner = whole[4 + len("GwyContainer") + 5 :]
        scan = read_scan(put("scan.gwy", container(*others, inner)))
        np.testing.assert_array_equal(scan.lines, heights)

    def test_every_truncation(self, heights, put, refusal):
        content = gwy({"Z": heights[:3, :4]})
        for length in range(1, len(content)):
            refusal(put("scan.gwy", content[:length]))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"GWYO" + bytes(99), "is no Gwyddion file"),
            (container(), "no channel that is an image"),
            (container(component("/0/data", "s", b"text\0")), "no channel that is an image"),
            (container(component("/0/data", "o", thing("GwyDataField", b""))), "cannot be read"),
            (container(component("/0/data", "z", b"")), "unknown type 'z'"),
            # a list of strings that is cut short
            (container(component("/0/a", "S", struct.pack("<I", 2**32 - 1) + b"one\0two")), "string without an end"),
            (container(component("/0/a", "O", struct.pack("<I", 2**32 - 1))), "string without an end"),
            (container(component("/0/a", "D", struct.pack("<I", 2**32 - 1))), "longer than the object"),
        ],
    )
    def test_broken(self, content, reason, put, refusal):
        assert reason in refusal(put("scan.gwy", content))

    def test_objects_in_objects_without_end(self, put, refusal):
        content = b""
        for _ in range(2000):
            content = component("a", "o", thing("GwyContainer", content))
        assert "without end" in refusal(put("scan.gwy", container(content)))

    @pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (-1, -12), (0, 5), (3, 5)])
    def test_size_that_cannot_be(self, size, put, refusal):
        field = b"".join(
            component(name, "i", struct.pack("<i", n)) for name, n in zip(("yres", "xres"), size, strict=True)
        )
        field += component("data", "D", struct.pack("<I12d", 12, *range(12)))
        path = put("scan.gwy", container(component("/0/data", "o", thing("GwyDataField", field))))
        tracemalloc.start()
        refusal(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**22

    def test_real_file_as_gwyfile_reads_it(self, real):
        gwyfile = pytest.importorskip("gwyfile")
        path = real("gwyddion_channels.gwy")
        channels = gwyfile.util.get_datafields(gwyfile.load(str(path)))
        assert channels
        for title, field in channels.items():
            scan = read_scan(path, title)
            np.testing.assert_array_equal(scan.lines, field.data.astype(np.float32))
            assert scan.channel == title
            if field.si_unit_xy is not None and field.si_unit_xy.unitstr == "m":
                assert scan.size_nm == pytest.approx((1e9 * field.yreal, 1e9 * field.xreal))


class TestGsf:
    @SHAPES
    @given(lines=LINES, title=st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n="), max_size=9))
    def test_any_shape_and_padding(self, lines, title, put):
        scan = read_scan(put("scan.gsf", gsf(lines, Title=title)))
        np.testing.assert_array_equal(scan.lines, lines)
        assert scan.channel == (title.strip() or None)

    @pytest.mark.parametrize("title", ["", "a", "ab", "abc"])
    def test_padding(self, title, heights, put):
        content = gsf(heights, Title=title)
        assert content.count(b"\0", 0, content.index(b"\0") + 4) in (1, 2, 3, 4)
        np.testing.assert_array_equal(read_scan(put("scan.gsf", content)).lines, heights)

    def test_fields(self, heights, put, refusal):
        content = gsf(heights, XReal="4e-8", YReal="2e-8", XYUnits="m", ZUnits="m", Title="Z forward")
        scan = read_scan(put("scan.gsf", content))
        assert (scan.channel, scan.direction) == ("Z forward", "forward")
        assert scan.size_nm == pytest.approx((20, 40))
        assert "it has Z forward" in refusal(put("scan.gsf", content), "Current")

    def test_units(self, heights, put):
        content = gsf(heights, xreal=40, yreal=20, xyunits="nm", zunits="nm")
        scan = read_scan(put("scan.gsf", content))
        np.testing.assert_allclose(scan.lines, 1e-9 * heights, rtol=1e-6)
        assert scan.size_nm == pytest.approx((20, 40))

    @pytest.mark.parametrize("fields", [{}, {"XReal": 4, "YReal": 2}, {"XReal": 4, "XYUnits": "m"}])
    def test_without_size(self, fields, heights, put):
        assert read_scan(put("scan.gsf", gsf(heights, **fields))).size_nm is None

    @pytest.mark.parametrize("missing", [1, 67, 68, 69, 400])
    def test_growing(self, missing, heights, put):
        lines = read_scan(put("scan.gsf", gsf(heights)[:-missing])).lines
        complete = 12 - -(-missing // 68)
        np.testing.assert_array_equal(lines[:complete], heights[:complete])
        assert lines.shape == (12, 17) and np.isnan(lines[complete:]).all()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"Gwyddion Simple Field 2.0\n\0\0\0\0", "no Gwyddion Simple Field 1.0"),
            (b"Gwyddion Simple Field 1.0\nXRes = 3\nYRes = 4\n", "complete header"),
            (b"Gwyddion Simple Field 1.0\nXRes = 3\n\0\0\0\0", "does not say XRes and YRes"),
            (b"Gwyddion Simple Field 1.0\nXRes = x\nYRes = 4\n\0\0\0\0", "cannot be read"),
            (b"Gwyddion Simple Field 1.0\nXRes = 100000\nYRes = 100000\n\0\0\0\0" + bytes(99), "which no scan has"),
            (b"Gwyddion Simple Field 1.0\nXRes = -1\nYRes = 4\n\0\0\0\0" + bytes(99), "which no scan has"),
            (b"Gwyddion Simple Field 1.0\nXRes = 3\nYRes = 4\n\0\0\0\0", "ends before the first line"),
        ],
    )
    def test_broken(self, content, reason, put, refusal):
        assert reason in refusal(put("scan.gsf", content))
