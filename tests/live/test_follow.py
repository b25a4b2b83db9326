"""Lines of a frame that is being scanned: each told once, in the order of acquisition, whatever stands in the rest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live.follow import Ended, FrameFollower, NewLines, Started

NUM_LINES, WIDTH = 12, 5


def heights(seed: int, num_lines: int = NUM_LINES, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_lines, width)).astype(np.float32)


def partial(scan: np.ndarray, rest: np.ndarray, pixels: int, upwards: bool) -> np.ndarray:
    """The frame when so many pixels have been measured."""
    frame = (rest[::-1] if upwards else rest).copy()
    frame.reshape(-1)[:pixels] = scan.reshape(-1)[:pixels]
    return frame[::-1] if upwards else frame


def told(events: list) -> np.ndarray:
    lines = [event.lines for event in events if isinstance(event, NewLines)]
    return np.concatenate(lines) if lines else np.empty((0, WIDTH))


def kinds(events: list) -> list[type]:
    return [type(event) for event in events if not isinstance(event, NewLines)]


@given(
    filling=st.sampled_from(["nan", "zero", "scan before"]),
    upwards=st.booleans(),
    looks=st.lists(st.integers(0, NUM_LINES * WIDTH), max_size=8),
    wrong_direction=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_line_once_and_whole_whatever_is_in_the_rest(filling, upwards, looks, wrong_direction):
    scan = heights(0)
    rest = {"nan": np.full_like(scan, np.nan), "zero": np.zeros_like(scan), "scan before": heights(1)}[filling]
    follower = FrameFollower()
    assert follower.look(rest, running=False, upwards=upwards) == []
    events = []
    for pixels in sorted(looks):
        # where the frame tells the direction, the controller is not asked
        said = upwards != (wrong_direction and 0 < pixels < NUM_LINES * (WIDTH - 1))
        events += follower.look(partial(scan, rest, pixels, upwards), True, said)
        np.testing.assert_array_equal(told(events), scan[: pixels // WIDTH])
    events += follower.look(partial(scan, rest, scan.size, upwards), False, upwards)
    np.testing.assert_array_equal(told(events), scan)
    assert kinds(events) == [Started, Ended]


@pytest.mark.parametrize("filling", [np.nan, 0.0])
def test_what_a_stopped_scan_did_not_measure_is_told_as_unmeasured(filling):
    scan = heights(0)
    frame = np.full_like(scan, filling)
    follower = FrameFollower()
    frame.reshape(-1)[:13] = scan.reshape(-1)[:13]
    follower.look(frame, True, False)
    events = follower.look(frame, False, False)
    assert kinds(events) == [Ended]
    lines = told(events)
    assert len(lines) == NUM_LINES - 2
    np.testing.assert_array_equal(lines[0], [*scan[2, :3], np.nan, np.nan])
    assert np.isnan(lines[1:]).all()


@pytest.mark.parametrize("cleared", [True, False])
@pytest.mark.parametrize("seen_to_its_end", [True, False])
def test_a_scan_that_follows_at_once_is_another(cleared, seen_to_its_end):
    first, second = heights(0), heights(1)
    nothing = np.full_like(first, np.nan)
    follower = FrameFollower()
    events = follower.look(partial(first, nothing, 9 * WIDTH, False), True, False)
    if seen_to_its_end:
        events += follower.look(first, True, False)
    rest = nothing if cleared else first
    events += follower.look(partial(second, rest, 3 * WIDTH, False), True, False)
    seen = first[:9] if cleared and not seen_to_its_end else first  # what is left of it stands in the frame
    np.testing.assert_array_equal(told(events), np.concatenate([seen, second[:3]]))
    assert kinds(events) == [Started, Ended, Started]


@pytest.mark.parametrize("filling", ["nan", "zero", "scan before"])
@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("running", [False, True])
def test_a_scan_that_goes_in_its_first_line_has_ended(running, upwards, filling):
    first, second = heights(0), heights(1)
    rest = {"nan": np.full_like(first, np.nan), "zero": np.zeros_like(first), "scan before": heights(2)}[filling]
    follower = FrameFollower()
    follower.look(rest, False, upwards)
    assert follower.look(partial(first, rest, 3, upwards), True, upwards) == [Started()]
    assert follower.look(rest, running, upwards) == [Ended()]
    assert follower.look(rest, running, upwards) == []
    # the next may go the other way
    events = follower.look(partial(second, rest, 3 * WIDTH, not upwards), True, not upwards)
    assert kinds(events) == [Started]
    np.testing.assert_array_equal(told(events), second[:3])


def test_a_scan_that_goes_below_an_unmeasured_line_has_ended():
    frame = np.full((NUM_LINES, WIDTH), np.nan, np.float32)
    follower = FrameFollower()
    follower.look(frame, False, False)
    half = frame.copy()
    half[1, :3] = 1
    assert len(told(follower.look(half, True, False))) == 1
    assert follower.look(frame, True, False) == [Ended()]


@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("begun", [1, 2 * WIDTH, 8 * WIDTH - 1, 8 * WIDTH])
def test_last_lines_that_came_before_the_next_scan_are_told_as_far_as_they_went(begun, upwards):
    before, first, second = heights(0), heights(1), heights(2)
    follower = FrameFollower()
    follower.look(before, False, upwards)
    events = follower.look(partial(first, before, 9 * WIDTH + 2, upwards), True, upwards)
    stopped = partial(first, before, 10 * WIDTH + 3, upwards)  # and at once begun anew
    events += follower.look(partial(second, stopped, begun, upwards), True, upwards)
    last = [*first[10, :3], np.nan, np.nan]
    np.testing.assert_array_equal(told(events), [*first[:10], last, *second[: begun // WIDTH]])
    assert kinds(events) == [Started, Ended, Started]


def test_nothing_more_is_told_of_a_scan_when_the_next_has_come_further():
    first, second = heights(0), heights(1)
    follower = FrameFollower()
    follower.look(np.zeros_like(first), False, False)
    follower.look(partial(first, np.zeros_like(first), 3 * WIDTH, False), True, False)
    events = follower.look(partial(second, first, 5 * WIDTH, False), True, False)
    assert kinds(events) == [Ended, Started] and isinstance(events[0], Ended)


def test_a_frame_of_another_size_is_another_scan():
    follower = FrameFollower()
    frame = partial(heights(0), np.full((NUM_LINES, WIDTH), np.nan, np.float32), 3 * WIDTH, False)
    follower.look(frame, True, False)
    larger = np.full((20, WIDTH), np.nan, np.float32)
    larger[:2] = heights(1)[:2]
    events = follower.look(larger, True, False)
    assert kinds(events) == [Ended, Started]
    np.testing.assert_array_equal(told(events), larger[:2])


def test_a_whole_frame_at_the_first_look_may_be_old():
    follower = FrameFollower()
    old = heights(0)
    assert follower.look(old, True, False) == []
    np.testing.assert_array_equal(
        told(follower.look(partial(heights(1), old, 15, False), True, False)), heights(1)[:3]
    )


def test_an_unmeasured_line_among_measured_ones_is_told():
    scan = heights(0)
    scan[1] = np.nan
    frame = np.full_like(scan, np.nan)
    frame[:4] = scan[:4]
    np.testing.assert_array_equal(told(FrameFollower().look(frame, True, False)), scan[:4])


def test_a_scan_between_two_looks_is_not_lost():
    follower = FrameFollower()
    follower.look(heights(0), False, False)
    events = follower.look(heights(1), False, False)
    assert kinds(events) == [Started, Ended]
    np.testing.assert_array_equal(told(events), heights(1))
