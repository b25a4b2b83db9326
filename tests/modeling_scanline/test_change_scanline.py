"""Tip changes in a stream: found where they are, and nothing of the old tip is left after them."""

import numpy as np
import pytest
import torch

from modeling_scanline import ScanlineImageProcessor, normalize_lines
from modeling_scanline.change_scanline import (
    LINES_AFTER,
    LINES_BEFORE,
    NEIGHBOURS,
    ChangeDetector,
    change_features,
    num_change_features,
)

WIDTH = 32
CHANGE = 25


def scan_with_change(num_lines: int = 50, change: int = CHANGE, width: int = WIDTH) -> np.ndarray:
    """Waves of one length, and of another from `change` on, with a little noise."""
    waves = np.where(np.arange(num_lines) < change, 3, 8)[:, None] * np.arange(width) / width
    noise = np.random.default_rng(0).standard_normal((num_lines, width))
    return (np.sin(2 * np.pi * waves) + 0.05 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> list[float]:
    """Of the correlation of a line with the one before alone: negative where they are not alike."""
    of_features = np.zeros(num_change_features(WIDTH) + 1)
    of_features[1], of_features[-1] = -20.0, 10.0
    return of_features.tolist()


@pytest.fixture(scope="module")
def processor():
    return ScanlineImageProcessor(pixels_per_line=WIDTH)


@pytest.fixture(scope="module")
def model(causal, weights):
    return causal(change_weights=weights, calibration_lines=[4, 30], calibration_temperatures=[2.0, 0.5])


@pytest.mark.parametrize("width", [16, 32, 128])
def test_features_are_as_many_as_stated_and_finite(width):
    windows = np.random.default_rng(0).standard_normal((3, LINES_BEFORE + LINES_AFTER, width), dtype=np.float32)
    windows[1] = 0
    features = change_features(windows)
    assert features.shape == (3, num_change_features(width))
    assert np.isfinite(features).all()


def test_a_change_is_found_at_its_line_and_soon(model, processor):
    results = model.streamer(processor).update_many(scan_with_change())
    found = [(result.line, result.change_line) for result in results if result.change_line is not None]
    assert found == [(CHANGE + LINES_AFTER - 1 + NEIGHBOURS, CHANGE)]
    first_known = LINES_BEFORE + LINES_AFTER - 1
    assert [result.change_probability is None for result in results[: first_known + 1]] == [True] * first_known + [
        False
    ]
    assert results[CHANGE + LINES_AFTER - 1].change_probability > 0.9
    assert max(result.change_probability for result in results[first_known : CHANGE + LINES_AFTER - 1]) < 0.1


@pytest.mark.parametrize("width", [64, 37, 96])
def test_the_line_of_a_change_is_a_raw_line(model, processor, width):
    scale = width / WIDTH
    scan = scan_with_change(round(50 * scale), round(CHANGE * scale), width)
    results = model.streamer(processor).update_many(scan)
    found = [result.change_line for result in results if result.change_line is not None]
    assert len(found) == 1 and abs(found[0] - CHANGE * scale) <= max(1, scale)


@pytest.mark.parametrize("normalization", ["line", "none"])
def test_after_a_change_the_verdict_is_that_of_the_new_lines_alone(model, normalization):
    processor = ScanlineImageProcessor(pixels_per_line=WIDTH, normalization=normalization)
    scan = scan_with_change()
    results = model.streamer(processor).update_many(scan)
    place = next(result.line for result in results if result.change_line is not None)
    fresh = model.streamer(processor).update_many(scan[CHANGE:])
    for after, alone in zip(results[place:], fresh[place - CHANGE :], strict=True):
        np.testing.assert_allclose(after.probabilities, alone.probabilities, atol=1e-5)


def test_the_next_change_is_found_as_soon_as_the_window_is_full_of_the_new_tip(model, processor):
    again = CHANGE + LINES_BEFORE
    scan = scan_with_change()
    scan[again:] = scan_with_change(change=50)[again:]  # the first tip once more
    results = model.streamer(processor).update_many(scan)
    assert [result.change_line for result in results if result.change_line is not None] == [CHANGE, again]


def test_a_decision_falls_with_the_tip_that_it_was_made_for(causal, weights, processor):
    settings = {"calibration_lines": [4, 9], "calibration_temperatures": [1.0, 1.0]}
    decisions = {"decision_alphas": [0.1], "decision_thresholds": [0.0]}
    model = causal(change_weights=weights, **settings, **decisions)
    results = model.streamer(processor, alpha=0.1).update_many(scan_with_change())
    place = next(result.line for result in results if result.change_line is not None)
    assert [result.decision is not None for result in results] == [False] * 3 + [True] * (len(results) - 3)
    # it was made anew, of the lines of the new tip: after 4 of the 6 that are known when the change is found
    new_tip = model.streamer(processor, alpha=0.1).update_many(scan_with_change()[CHANGE:])
    assert results[place].decision == new_tip[3].decision


def test_without_restart_the_numbers_are_those_of_the_whole_scan(model, processor):
    scan = scan_with_change()
    results = model.streamer(processor, restart=False).update_many(scan)
    assert [result.change_line for result in results if result.change_line is not None] == [CHANGE]
    with torch.no_grad():
        expected = model(**processor(scan, return_tensors="pt")).line_logits[0].softmax(-1)
    np.testing.assert_allclose([result.probabilities for result in results], expected, atol=1e-5)


def test_scans_of_a_batch_restart_alone(model, processor):
    changed, same = scan_with_change(), scan_with_change(change=0)
    streamer = model.streamer(processor, batch_size=2)
    by_line = [streamer.update_batch(np.stack(lines)) for lines in zip(changed, same, strict=True)]
    for scan, results in zip((changed, same), zip(*by_line, strict=True), strict=True):
        for result, alone in zip(results, model.streamer(processor).update_many(scan), strict=True):
            assert (result.change_line, result.state) == (alone.change_line, alone.state)
            if alone.probabilities is not None:
                np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-5)


def test_unmeasured_lines_are_passed_over(weights):
    lines = normalize_lines(torch.from_numpy(scan_with_change()), "line")[0].numpy()
    with_gap = np.concatenate((lines[:10], np.zeros((5, WIDTH), np.float32), lines[10:]))
    found = []
    for scan in (lines, with_gap):
        detector = ChangeDetector(weights, 0.5, WIDTH)
        updates = [detector.update(line[None], line[None].any(axis=1), n) for n, line in enumerate(scan)]
        found.append([int(place[0]) for _, place in updates if place[0] >= 0])
    assert found == [[CHANGE], [CHANGE + 5]]


def test_weights_of_another_number_are_refused(causal, processor):
    with pytest.raises(ValueError, match="change_weights must be 45 for lines of 32 pixels, got 2"):
        causal(change_weights=[0.0, 1.0]).streamer(processor)
