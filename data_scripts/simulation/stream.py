"""The endless stream of labelled scans."""

from dataclasses import dataclass

import numpy as np

from .instrument import SCAN_STREAM, draw_raster, draw_size, generator, measure, session_of
from .surface import ATOMS, SURFACES
from .tip import draw_segments
from .topography import draw_topography

MIN_PIXELS = 32  # so that a 3 nm scan of H:Si(100) still resolves atoms
OVERVIEWS = 0.08  # part of the scans that are larger than those of their session


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected {name} to be an integer of at least {least}, got {value!r}.")


@dataclass(frozen=True)
class SimulationOptions:
    """What decides a stream of simulated scans.

    Attributes:
        seed: Names the stream, 0 or more.
        surface: One of SURFACES.
        noise: Factor on what the instrument adds: noise, hum, tilt, line offsets and streaks. Less makes the states
            easier to tell.
        pixels_per_period: Fewest pixels to the period that decides the state, 2 or more; bounds the scan size. More
            makes the states easier to tell.
        clarity: How far most tips stay from the thresholds between the states, as a factor on them, 1 or more. More
            makes the states easier to tell.
        class_probabilities: Of each of TIP_STATES.
        sizes_nm: Smallest and largest length of a line. A state is only given to scans that resolve it, so on
            H:Si(100) the largest ones are generic defects, and other surfaces stay below what resolves their atoms.

    Raises:
        ValueError: An option is outside its range.
    """

    seed: int = 0
    surface: str = "h-si100"
    noise: float = 1.0
    pixels_per_period: float = 3.0
    clarity: float = 2.0
    class_probabilities: tuple[float, ...] = (0.25,) * 4
    sizes_nm: tuple[float, float] = (3.0, 80.0)

    def __post_init__(self) -> None:
        _check_at_least("seed", self.seed, 0)
        if self.surface not in SURFACES:
            raise ValueError(f"Expected surface to be one of {', '.join(SURFACES)}, got {self.surface!r}.")
        if not (self.noise >= 0 and self.pixels_per_period >= 2 and self.clarity >= 1):
            raise ValueError(
                "Expected noise of at least 0, pixels_per_period of at least 2 and clarity of at least 1, got "
                f"{self.noise!r}, {self.pixels_per_period!r} and {self.clarity!r}."
            )
        probabilities = np.asarray(self.class_probabilities, dtype=np.float64)
        is_distribution = probabilities.shape == (4,) and bool(np.all(probabilities >= 0))
        if not is_distribution or not np.isclose(probabilities.sum(), 1):
            raise ValueError(
                "Expected class_probabilities to be 4 non-negative numbers that sum to 1, got "
                f"{self.class_probabilities!r}."
            )
        sizes = np.asarray(self.sizes_nm, dtype=np.float64)
        if sizes.shape != (2,) or not 0 < sizes[0] <= sizes[1] < np.inf:
            raise ValueError(
                f"Expected sizes_nm to be two positive numbers, the smaller one first, got {self.sizes_nm!r}."
            )


@dataclass(frozen=True)
class SimulatedScans:
    """Labelled scans, in the order of the stream.

    Attributes:
        lines: Heights in metres, float32 [num_scans, num_lines, pixels_per_line]. Row 0 was acquired first.
        states: Index into TIP_STATES of each scan, int64 [num_scans].
        line_states: Index into TIP_STATES of the tip at each line, int64 [num_scans, num_lines]. It equals the scan's
            state except where the tip changed within the scan, once or there and back, which makes the scan a
            generic_defect.
        sizes_nm: Length of the fast axis in nanometres, float32 [num_scans]. Pixels are square.
        sessions: Index of the session that each scan belongs to, int64 [num_scans].
    """

    lines: np.ndarray
    states: np.ndarray
    line_states: np.ndarray
    sizes_nm: np.ndarray
    sessions: np.ndarray


def simulate(
    num_scans: int,
    options: SimulationOptions = SimulationOptions(),
    *,
    start: int = 0,
    pixels_per_line: int = 128,
    num_lines: int = 128,
) -> SimulatedScans:
    """Simulates scans ``start`` to ``start + num_scans - 1`` of the endless stream that ``options`` name.

    A scan depends only on the options, its place in the stream, ``pixels_per_line`` and ``num_lines``.

    Args:
        num_scans: Number of scans, 0 or more.
        options: Of the stream.
        start: Place of the first scan in the stream, 0 or more.
        pixels_per_line: Pixels along the fast axis, 32 or more.
        num_lines: Lines per scan, 1 or more. Fewer lines than pixels make an aborted scan.

    Returns:
        The scans with their labels, sizes and sessions.

    Raises:
        ValueError: An argument is outside its range, or no scan of the options' sizes resolves atoms.
    """
    _check_at_least("num_scans", num_scans, 0)
    _check_at_least("start", start, 0)
    _check_at_least("pixels_per_line", pixels_per_line, MIN_PIXELS)
    _check_at_least("num_lines", num_lines, 1)
    surface = SURFACES[options.surface]
    largest = np.array(surface.deciding_periods) * pixels_per_line / options.pixels_per_period
    smallest = options.sizes_nm[0]
    if largest[ATOMS] < smallest:
        raise ValueError(
            f"Expected pixels_per_period of at most {surface.deciding_periods[ATOMS] * pixels_per_line / smallest:.1f}"
            f" for pixels_per_line={pixels_per_line} on {surface.name}, so that a scan of {smallest:g} nm fits, got "
            f"{options.pixels_per_period!r}."
        )

    probabilities = np.asarray(options.class_probabilities, dtype=np.float64)
    scans = SimulatedScans(
        lines=np.empty((num_scans, num_lines, pixels_per_line), np.float32),
        states=np.empty(num_scans, np.int64),
        line_states=np.empty((num_scans, num_lines), np.int64),
        sizes_nm=np.empty(num_scans, np.float32),
        sessions=np.empty(num_scans, np.int64),
    )
    for i in range(num_scans):
        session = session_of(options.seed, start + i, options.noise, options.sizes_nm)
        rng = generator(options.seed, SCAN_STREAM, start + i)
        state = int(rng.choice(4, p=probabilities / probabilities.sum()))
        segments = draw_segments(rng, surface, state, num_lines, options.clarity)
        # A changed tip must be told on both sides of the change.
        resolved = largest[segments.states].min()
        size = draw_size(rng, session, resolved, options.sizes_nm, OVERVIEWS)
        raster = draw_raster(rng, session, size, num_lines, pixels_per_line)
        seen = draw_topography(rng, surface, session, segments, raster)
        scans.lines[i] = 1e-9 * measure(rng, session, segments, raster, seen)
        scans.states[i], scans.sessions[i], scans.sizes_nm[i] = state, session.index, size
        scans.line_states[i] = segments.states[segments.of_line]
    return scans
