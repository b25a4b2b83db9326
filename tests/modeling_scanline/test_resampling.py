"""Any size of scan to the model's width: areas averaged where it is wider, equal steps where it is narrower."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_scanline import resample_lines


def area_average(scan, pixels_per_line):
    """Each pixel cut into `pixels_per_line` parts a side; a model pixel is the mean of `width` times `width` parts."""
    num_lines, width = scan.shape
    parts = scan.astype(np.float64).repeat(pixels_per_line, axis=0).repeat(pixels_per_line, axis=1)
    num_out = max(1, num_lines * pixels_per_line // width)
    parts = parts[: num_out * width]
    parts = parts.reshape(num_out, -1, pixels_per_line, width)
    measured = np.isfinite(parts)
    count = measured.sum(axis=(1, 3))
    with np.errstate(invalid="ignore"):
        return np.where(measured, parts, 0).sum(axis=(1, 3)) / count


def steps_between(scan, pixels_per_line):
    """
    Of a narrow scan: each pixel from the two raw ones beside its middle, each line from the raw one before and the
    latest one, in equal steps; of what was measured of them.
    """
    num_lines, width = scan.shape
    made = np.full((num_lines * pixels_per_line // width, pixels_per_line), np.nan)
    for line in range(len(made)):
        bottom = Fraction((line + 1) * width, pixels_per_line)
        latest = math.ceil(bottom) - 1
        step = float(bottom - latest)
        for pixel in range(pixels_per_line):
            place = min(max((pixel + 0.5) * width / pixels_per_line - 0.5, 0), width - 1)
            left = min(int(place), max(width - 2, 0))
            across = {left: 1 - (place - left), min(left + 1, width - 1): place - left} if width > 1 else {0: 1.0}
            terms = [
                (share * of_line, scan[row, column])
                for row, of_line in ((max(latest - 1, 0), 1 - step), (latest, step))
                for column, share in across.items()
            ]
            used = [(share, value) for share, value in terms if np.isfinite(value) and share > 1e-9]
            if any(np.isfinite(scan[latest, column]) and share > 1e-9 for column, share in across.items()):
                made[line, pixel] = sum(share * value for share, value in used) / sum(share for share, _ in used)
    return made


@given(
    num_lines=st.integers(1, 30),
    width=st.integers(1, 48),
    pixels_per_line=st.integers(1, 24),
    unmeasured=st.sampled_from([0.0, 0.3, 0.95]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=120, deadline=None)
def test_resampling_is_the_average_over_the_measured_area_or_goes_in_equal_steps(
    num_lines, width, pixels_per_line, unmeasured, seed
):
    generator = np.random.default_rng(seed)
    scan = generator.normal(size=(num_lines, width)) + 5
    scan[generator.random(scan.shape) < unmeasured] = np.nan
    expected = (steps_between if width < pixels_per_line else area_average)(scan, pixels_per_line)
    for dtype in (np.float64, np.float32):
        actual = resample_lines(torch.from_numpy(scan.astype(dtype)).unsqueeze(0), pixels_per_line)[0]
        np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("width", [1, 37, 128, 300, 512])
def test_a_constant_stays_constant_and_a_ramp_keeps_its_mean(width):
    constant = torch.full((1, width, width), 3.0)
    torch.testing.assert_close(resample_lines(constant, 128), torch.full((1, 128, 128), 3.0))
    ramp = torch.linspace(-1, 2, width).expand(1, width, -1)
    torch.testing.assert_close(resample_lines(ramp, 128).mean(), ramp.mean(), atol=1e-6, rtol=1e-6)
    downwards = resample_lines(ramp.mT, 128)
    if width >= 128:
        torch.testing.assert_close(downwards.mean(), ramp.mean(), atol=1e-6, rtol=1e-6)
    else:  # with the heights of each raw line when it has come, and no sooner
        last_of_each = downwards[0, [(line + 1) * 128 // width - 1 for line in range(width)], 0]
        assert (last_of_each <= ramp[0, 0] + 1e-6).all() and downwards[0, -1, 0] == ramp[0, 0, -1]
        assert (downwards.diff(dim=1) >= 0).all()


def test_a_very_wide_model_takes_a_very_narrow_scan():
    assert (resample_lines(torch.full((1, 2, 1), 3.0), 2048) == 3).all()
