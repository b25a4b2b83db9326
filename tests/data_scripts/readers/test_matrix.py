import logging
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writers import (
    MATRIX_FACTOR,
    MATRIX_NAME,
    MATRIX_OFFSET,
    matrix_data,
    matrix_modified,
    matrix_numbers,
    matrix_reference,
    matrix_result,
)

from data_scripts import read_scan

RESULT = "default_2015Sep30-094843_STM-STM_Spectroscopy_0001.mtrx"
TRACES = ("forward/up", "backward/up", "forward/down", "backward/down")
WHOLE = "2014Mar01-093225--7_100.Z_mtrx"
ABORTED = "default_2013Jun21-111140_STM-STM_AtomManipulation--12_2.Z_mtrx"

pytest.importorskip("access2thematrix")


def metres(numbers: np.ndarray) -> np.ndarray:
    return ((numbers - MATRIX_OFFSET) / MATRIX_FACTOR).astype(np.float32)


def drawn(rng, *shape: int) -> np.ndarray:
    """Numbers of a converter, of four frames."""
    return rng.integers(-(10**9), 10**9, (4, *shape))


def surface(rng, side: int) -> np.ndarray:
    """Four frames that show about the same hills: downwards from the top."""
    lines, pixels = np.mgrid[:side, :side]
    up = 1e6 * (np.sin(lines / 3) + np.cos(pixels / 2) + 0.3 * np.sin(pixels / 7) + pixels / side)
    frames = np.stack([up, up, up[::-1], up[::-1]]) + rng.normal(scale=1e4, size=(4, side, side))
    return frames.astype(np.int64)


class TestWithResultFile:
    @pytest.mark.parametrize("direction", ["forward", "backward", *TRACES])
    def test_every_frame(self, direction, rng, put):
        frames = drawn(rng, 9, 14)
        put(RESULT, matrix_result(9, 14))
        scan = read_scan(put(MATRIX_NAME, matrix_data(matrix_numbers(*frames))), direction=direction)
        trace = direction if "/" in direction else f"{direction}/up"
        np.testing.assert_allclose(scan.lines, metres(frames[TRACES.index(trace)]), rtol=1e-6)
        assert scan.size_nm == pytest.approx((20, 40))
        assert (scan.channel, scan.direction, scan.session) == ("Z", trace, "2015Sep30-094843")

    @settings(
        deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
        back=st.booleans(),
        down=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_any_shape_and_order(self, shape, back, down, seed, put, refusal):
        frames = drawn(np.random.default_rng(seed), *shape)
        forth = frames[[0, 2] if down else [0]]
        numbers = matrix_numbers(*frames[: 4 if down else 2]) if back else forth.ravel()
        put(RESULT, matrix_result(*shape, back=back, down=down))
        path = put(MATRIX_NAME, matrix_data(numbers))
        for trace, frame in zip(TRACES, frames, strict=True):
            if (back or "forward" in trace) and (down or "up" in trace):
                np.testing.assert_allclose(read_scan(path, direction=trace).lines, metres(frame), rtol=1e-6)
            else:
                assert f"holds no {trace} frame; it has forward/up" in refusal(path, direction=trace)

    @pytest.mark.parametrize("extra", [0, 1, 13, 14, 27])
    @pytest.mark.parametrize("complete", [2, 5, 9, 10, 17])
    def test_aborted(self, complete, extra, rng, put, refusal):
        frames = drawn(rng, 9, 14)
        numbers = matrix_numbers(*frames)
        put(RESULT, matrix_result(9, 14))
        path = put(MATRIX_NAME, matrix_data(numbers[: complete * 28 + extra], planned=len(numbers)))
        for number, trace in enumerate(TRACES):
            of_frame = min(complete, 9) if "up" in trace else complete - 9
            if of_frame <= 0:
                assert f"holds no {trace} frame" in refusal(path, direction=trace)
                continue
            lines = read_scan(path, direction=trace).lines
            np.testing.assert_allclose(lines[:of_frame], metres(frames[number, :of_frame]), rtol=1e-6)
            assert lines.shape == (9, 14) and np.isnan(lines[of_frame:]).all()

    def test_other_transfer_function(self, rng, put):
        frames = drawn(rng, 5, 6)
        numbers = {"Raw_1": 3.0, "PreOffset": 1.0, "Offset": 7.0, "NeutralFactor": 2.0, "PreFactor": 5e11}
        put(RESULT, matrix_result(5, 6, transfer=("TFF_MultiLinear1D", numbers)))
        lines = read_scan(put(MATRIX_NAME, matrix_data(matrix_numbers(*frames)))).lines
        np.testing.assert_allclose(lines, 2 * (frames[0] - 7) / 1e12, rtol=1e-6)

    def test_parameters_of_the_time_of_the_scan(self, rng, put):
        later = matrix_modified("Width", "Meter", 9e-8) + matrix_reference("later--12_4.Z_mtrx")
        put(RESULT, matrix_result(5, 6) + later)
        path = put(MATRIX_NAME, matrix_data(matrix_numbers(*drawn(rng, 5, 6))))
        assert read_scan(path).size_nm == pytest.approx((20, 40))

    def test_result_file_of_several_links(self, rng, put):
        put(RESULT, matrix_result(5, 6, references=["other--12_2.Z_mtrx"]))
        put(RESULT.replace("_0001", "_0002"), b"ONTMATRX0101" + matrix_modified("Width", "Meter", 9e-8))
        put(RESULT.replace("_0001", "_0003"), b"ONTMATRX0101" + matrix_reference())
        frames = drawn(rng, 5, 6)
        scan = read_scan(put(MATRIX_NAME, matrix_data(matrix_numbers(*frames))))
        np.testing.assert_allclose(scan.lines, metres(frames[0]), rtol=1e-6)
        assert scan.size_nm == pytest.approx((20, 90))

    @pytest.mark.parametrize("references", [[], ["other--12_3.Z_mtrx"], [MATRIX_NAME.replace("12_3", "12_4")]])
    def test_result_file_of_another_session(self, references, rng, put, refusal):
        put(RESULT, matrix_result(5, 6, references=references))
        reason = refusal(put(MATRIX_NAME, matrix_data(matrix_numbers(*drawn(rng, 5, 6)))))
        assert f"result file {RESULT} does not list it" in reason and "another session" in reason

    @pytest.mark.parametrize("content", [b"", b"ONTMATRX0101", b"something else", matrix_result(5, 6)[:-120]])
    def test_broken_result_file(self, content, rng, put, refusal):
        put(RESULT, content)
        assert RESULT in refusal(put(MATRIX_NAME, matrix_data(matrix_numbers(*drawn(rng, 5, 6)))))

    @pytest.mark.parametrize(
        "parameters",
        [
            {"Points": 2**31 - 1},
            {"Lines": 2**31 - 1},
            {"Points": -1},
            {"Points": 0},
            {"Lines": "many"},
            {"X_Retrace": "x"},
        ],
    )
    def test_result_file_that_promises_too_much(self, parameters, rng, put, refusal):
        put(RESULT, matrix_result(5, 6, parameters=parameters))
        path = put(MATRIX_NAME, matrix_data(matrix_numbers(*drawn(rng, 5, 6))))
        tracemalloc.start()
        refusal(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**22

    def test_channel(self, rng, put, refusal):
        put(RESULT, matrix_result(5, 6))
        path = put(MATRIX_NAME, matrix_data(matrix_numbers(*drawn(rng, 5, 6))))
        assert read_scan(path, "z").channel == "Z"
        assert refusal(path, "I") == "has no channel 'I', only Z; each channel is a file of its own."


class TestWithoutResultFile:
    @pytest.mark.parametrize("trace", TRACES)
    def test_every_frame(self, trace, rng, put, caplog):
        frames = surface(rng, 24)
        with caplog.at_level(logging.WARNING):
            scan = read_scan(put(MATRIX_NAME, matrix_data(matrix_numbers(*frames))), direction=trace)
        np.testing.assert_allclose(scan.lines, frames[TRACES.index(trace)], rtol=1e-6)
        assert scan.size_nm is None and scan.direction == trace
        assert RESULT in caplog.text and "arbitrary units" in caplog.text

    @pytest.mark.parametrize(("back", "down"), [(True, False), (False, True), (False, False)])
    def test_other_orders(self, back, down, rng, put, refusal):
        frames = surface(rng, 24)
        taken = [index for index in range(4) if (back or index % 2 == 0) and (down or index < 2)]
        numbers = matrix_numbers(*frames[taken]) if back else frames[taken].ravel()
        path = put("scan.Z_mtrx", matrix_data(numbers))
        for index, trace in enumerate(TRACES):
            if index in taken:
                np.testing.assert_allclose(read_scan(path, direction=trace).lines, frames[index], rtol=1e-6)
            else:
                assert f"holds no {trace} frame" in refusal(path, direction=trace)

    @pytest.mark.parametrize("complete", [5, 24, 30])
    def test_aborted(self, complete, rng, put, refusal):
        frames = surface(rng, 24)
        numbers = matrix_numbers(*frames)
        path = put(MATRIX_NAME, matrix_data(numbers[: complete * 48 + 17], planned=len(numbers)))
        lines = read_scan(path, direction="backward").lines
        np.testing.assert_allclose(lines[:complete], frames[1, :complete], rtol=1e-6)
        assert lines.shape == (24, 24) and np.isnan(lines[complete:]).all()
        if complete > 24:
            lines = read_scan(path, direction="backward/down").lines
            np.testing.assert_allclose(lines[: complete - 24], frames[3, : complete - 24], rtol=1e-6)
            assert np.isnan(lines[complete - 24 :]).all()
        else:
            assert "holds no backward/down frame" in refusal(path, direction="backward/down")

    def test_shape_that_cannot_be_found(self, rng, put, refusal):
        for numbers in (drawn(rng, 24, 24)[0].ravel(), surface(rng, 24)[0, :, :-3].ravel(), np.arange(7)):
            assert "Put the result file beside it" in refusal(put(MATRIX_NAME, matrix_data(numbers)))

    def test_ending_in_capitals(self, rng, put):
        path = put("SCAN.Z_MTRX", matrix_data(matrix_numbers(*surface(rng, 24))))
        assert read_scan(path).channel == "Z"


class TestBroken:
    def test_every_truncation(self, rng, put, refusal):
        content = matrix_data(matrix_numbers(*drawn(rng, 3, 4)))
        put(RESULT, matrix_result(3, 4))
        for length in range(1, len(content), 3):
            reason = refusal(put(MATRIX_NAME, content[:length]))
            assert ("is no complete MATRIX image file" if length < 104 else "of the 48 numbers") in reason

    @pytest.mark.parametrize(("planned", "measured"), [(48, 2**31 - 1), (48, -1), (0, 48), (-1, 48), (48, 10**8)])
    def test_counts_that_cannot_be(self, planned, measured, rng, put, refusal):
        numbers = matrix_numbers(*drawn(rng, 3, 4))
        path = put(MATRIX_NAME, matrix_data(numbers, planned=planned, measured=measured))
        tracemalloc.start()
        assert "numbers" in refusal(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**22

    def test_nothing_measured(self, put, refusal):
        put(RESULT, matrix_result(3, 4))
        refusal(put(MATRIX_NAME, matrix_data(np.arange(0), planned=48)))


class TestRealFiles:
    @pytest.mark.parametrize("trace", TRACES)
    def test_whole(self, trace, real):
        path = real(WHOLE)
        raw = np.fromfile(path, "<i4", offset=104).reshape(2, 300, 2, 300)  # up and down, line, forth and back
        expected = raw[int("down" in trace), :, int("backward" in trace)] / 1.74e16
        scan = read_scan(path, direction=trace)
        expected = expected[:, ::-1] if "backward" in trace else expected
        np.testing.assert_allclose(scan.lines, expected, rtol=1e-5, atol=1e-15)
        assert scan.size_nm is not None and scan.size_nm[0] == scan.size_nm[1] > 0
        assert (scan.channel, scan.direction, scan.session) == ("Z", trace, "2014Mar01-093225")

    def test_down_comes_back_to_where_up_began(self, real):
        up, down = (read_scan(real(WHOLE), direction=trace).lines for trace in ("forward/up", "forward/down"))
        same, other = (np.corrcoef(up.ravel(), frame.ravel())[0, 1] for frame in (down[::-1], down))
        assert same > max(0.5, other)

    def test_aborted_without_result_file(self, real, caplog):
        path = real(ABORTED)
        raw = np.fromfile(path, "<i4", offset=104)[: 320 * 600].reshape(320, 2, 300)
        frames = {trace: read_scan(path, direction=trace).lines for trace in TRACES}
        assert "arbitrary units" in caplog.text
        assert all(lines.shape == (300, 300) for lines in frames.values())
        for back, fast in enumerate(("forward", "backward")):
            lines = raw[:, back, ::-1] if back else raw[:, back]
            np.testing.assert_allclose(frames[f"{fast}/up"], lines[:300].astype(np.float32))
            np.testing.assert_allclose(frames[f"{fast}/down"][:20], lines[300:].astype(np.float32))
            assert np.isnan(frames[f"{fast}/down"][20:]).all()
        both = np.corrcoef(frames["forward/up"].ravel(), frames["backward/up"].ravel())[0, 1]
        assert both > 0.99
