"""Tips, scans and places that the tests of the simulation share."""

import dataclasses

import numpy as np

from data_scripts.simulation import SURFACES, Tips
from data_scripts.simulation.instrument import OVERSCAN, Raster
from data_scripts.simulation.tip import MAX_APEXES, Segments

H_SI100 = SURFACES["h-si100"]


def make_tip(distance: float, elongation: tuple[float, float] = (0, 0), ghost: tuple[float, float] | None = None):
    apexes = np.zeros((1, MAX_APEXES, 2))
    weights = np.zeros((1, MAX_APEXES))
    weights[:, 0] = 1
    if ghost is not None:
        apexes[:, 1], weights[:, 1] = ghost, 1
    return Tips(np.array([distance]), np.array([elongation], float), np.zeros((1, 2)), apexes, weights)


def make_segments(*tips: Tips, num_lines: int = 64) -> Segments:
    """Segments of equal length, one for each tip."""
    first_lines = np.arange(len(tips)) * num_lines // len(tips)
    return Segments(
        first_lines=first_lines,
        of_line=np.searchsorted(first_lines, np.arange(num_lines), side="right") - 1,
        tips=Tips(*(np.concatenate([getattr(t, f.name) for t in tips]) for f in dataclasses.fields(Tips))),
        states=np.zeros(len(tips), int),
        shifts=np.zeros((len(tips), 2)),
        offsets=np.zeros(len(tips)),
        noise=np.ones(len(tips)),
        streaks=0,
        crowding=1.0,
    )


def make_raster(size: float, num_lines: int = 64, pixels_per_line: int = 64, angle: float = 0.0) -> Raster:
    """A scan without drift whose middle is at 0; the fast axis lies across the rows."""
    y = np.arange(num_lines) * size / pixels_per_line
    x = np.arange(-OVERSCAN, pixels_per_line) * size / pixels_per_line
    to_rows = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    path = np.stack([np.zeros(num_lines), y], axis=1)
    return Raster(size, x, y, path, to_rows, origin=-to_rows @ [size / 2, size / 2])


def at(heights: np.ndarray, raster: Raster, place: tuple[float, float]) -> float:
    """The height at the pixel nearest to a place in the axes of the rows; the raster must not be turned."""
    line = np.abs(raster.y + raster.origin[1] - place[1]).argmin()
    return float(heights[line, np.abs(raster.x + raster.origin[0] - place[0]).argmin()])
