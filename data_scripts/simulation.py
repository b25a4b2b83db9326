"""Simulated STM scans of H:Si(100)-2x1 whose labels follow from the tip that took them.

The project's embedded dataset: an endless, seeded stream of labelled scans, computed where it is needed.

Surface
    Monohydride H:Si(100)-2x1: dimer rows 2a apart and dimers a apart along a row, where a = a0 / sqrt(2) = 0.384 nm
    and a0 = 0.5431 nm is the lattice constant of silicon. A monatomic step is a0 / 4 = 0.136 nm high and turns the
    rows by 90 degrees. Each Si-Si dimer carries two H atoms (Boland, Phys. Rev. Lett. 65, 3325 (1990)).
Tip
    The height is a Fourier series over reciprocal lattice vectors G. Each term is a structure factor times the tip's
    transfer function: the exponential attenuation of the corrugation with tip radius plus gap (Tersoff and Hamann,
    Phys. Rev. B 31, 805 (1985)), changed by tip orbitals other than s (Chen, Phys. Rev. B 42, 8841 (1990)), by an
    elongated apex, and by further apexes, which repeat the surface. :func:`tip_state` names what such a tip resolves.
Instrument
    Tilt, thermal drift and creep, feedback lag, white and 1/f noise, line offsets, mains hum, glitches.

The four states are those of the scans of Gordon et al., Rev. Sci. Instrum. 90, 103704 (2019).
Where no source is named, ranges were chosen by eye and by what a classifier reaches; they are not measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

TIP_STATES = ("individual_atoms", "asymmetries_dimers", "rows", "generic_defect")
ATOMS, DIMERS, ROWS, DEFECT = range(4)

DIMER_SPACING = 0.384  # nm, along a row
ROW_SPACING = 0.768  # nm
ATOM_SPACING = 0.34  # nm between the two H of a dimer: a 0.24 nm dimer with both Si-H bonds leaning outwards
STEP_HEIGHT = 0.136  # nm
ATOM_WIDTH = 0.05  # nm, Gaussian width of the density of one H atom
DECAY = 10.9  # 1/nm, decay constant of a wave function in vacuum at a work function of 4.5 eV
CORRUGATION = 2 / DECAY  # nm, prefactor of Tersoff and Hamann's corrugation
# What an operator would call clear: nm from peak to valley across the rows, and parts of that.
LEAST_CORRUGATION, LEAST_ALONG, LEAST_DIP = 0.003, 0.1, 0.1

SIZES_NM = (3.0, 40.0)
PIXELS_PER_PERIOD = 3.0  # fewer, and the period that decides the state is no longer resolved
NEEDED_PERIODS = (ATOM_SPACING, DIMER_SPACING, ROW_SPACING, np.inf)  # nm, per state
MIN_PIXELS = 32  # so that a 3 nm scan still resolves atoms
MAX_APEXES = 7
SESSION_PAIR = 60  # two sessions share 60 scans, so that the session of any scan is known without walking the stream
SESSION_STREAM, SCAN_STREAM = 0, 1


@dataclass(frozen=True)
class SimulatedScans:
    """Labelled scans, in the order of the stream.

    Attributes:
        lines: Heights in metres, float32 [num_scans, num_lines, pixels_per_line]. Row 0 was acquired first.
        states: Index into TIP_STATES of each scan, int64 [num_scans].
        line_states: Index into TIP_STATES of the tip at each line, int64 [num_scans, num_lines]. It equals the scan's
            state except where the tip changed once within the scan, which makes the scan a generic_defect.
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
    *,
    seed: int = 0,
    pixels_per_line: int = 128,
    num_lines: int = 128,
    start: int = 0,
    class_probabilities: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
    noise: float = 1.0,
    pixels_per_period: float = PIXELS_PER_PERIOD,
    clarity: float = 2.0,
) -> SimulatedScans:
    """Simulates scans ``start`` to ``start + num_scans - 1`` of the endless stream that ``seed`` names.

    A scan depends only on the seed, its place in the stream, and the arguments other than ``num_scans``.

    Args:
        num_scans: Number of scans, 0 or more.
        seed: Names the stream, 0 or more.
        pixels_per_line: Pixels along the fast axis, 32 or more.
        num_lines: Lines per scan, 1 or more. Fewer lines than pixels make an aborted scan.
        start: Place of the first scan in the stream, 0 or more.
        class_probabilities: Probability of each of TIP_STATES.
        noise: Factor on what the instrument adds: noise, hum, tilt, line offsets and streaks. Less makes the states
            easier to tell.
        pixels_per_period: Fewest pixels to the period that decides the state, 2 or more; bounds the scan size. More
            makes the states easier to tell.
        clarity: How far most tips stay from the thresholds between the states, as a factor on them, 1 or more. More
            makes the states easier to tell.

    Returns:
        The scans with their labels, sizes and sessions.

    Raises:
        ValueError: An argument is outside its range.
    """
    _check_at_least("num_scans", num_scans, 0)
    _check_at_least("seed", seed, 0)
    _check_at_least("pixels_per_line", pixels_per_line, MIN_PIXELS)
    _check_at_least("num_lines", num_lines, 1)
    _check_at_least("start", start, 0)
    if not (noise >= 0 and pixels_per_period >= 2 and clarity >= 1):
        raise ValueError(
            "Expected noise of at least 0, pixels_per_period of at least 2 and clarity of at least 1, got "
            f"{noise!r}, {pixels_per_period!r} and {clarity!r}."
        )
    if NEEDED_PERIODS[ATOMS] * pixels_per_line / pixels_per_period < SIZES_NM[0]:
        raise ValueError(
            f"Expected pixels_per_period of at most {NEEDED_PERIODS[ATOMS] * pixels_per_line / SIZES_NM[0]:.1f} for "
            f"pixels_per_line={pixels_per_line}, so that a scan of {SIZES_NM[0]:g} nm fits, got {pixels_per_period!r}."
        )
    probabilities = np.asarray(class_probabilities, dtype=np.float64)
    is_distribution = probabilities.shape == (4,) and bool(np.all(probabilities >= 0))
    if not is_distribution or not np.isclose(probabilities.sum(), 1):
        raise ValueError(
            f"Expected class_probabilities to be 4 non-negative numbers that sum to 1, got {class_probabilities!r}."
        )

    scans = SimulatedScans(
        lines=np.empty((num_scans, num_lines, pixels_per_line), np.float32),
        states=np.empty(num_scans, np.int64),
        line_states=np.empty((num_scans, num_lines), np.int64),
        sizes_nm=np.empty(num_scans, np.float32),
        sessions=np.empty(num_scans, np.int64),
    )
    for i in range(num_scans):
        scans.sessions[i], session = _session_of(seed, start + i, noise)
        rng = _generator(seed, SCAN_STREAM, start + i)
        scans.states[i] = rng.choice(4, p=probabilities / probabilities.sum())
        segments = _draw_segments(rng, scans.states[i], num_lines, clarity)
        scans.line_states[i] = segments.states[segments.of_line]
        raster = _draw_raster(rng, session, segments, num_lines, pixels_per_line, pixels_per_period)
        scans.sizes_nm[i] = raster.size
        scans.lines[i] = 1e-9 * _measure(rng, session, segments, raster)
    return scans


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected {name} to be an integer of at least {least}, got {value!r}.")


# Lattice and tip


def _lattice_harmonics() -> tuple[np.ndarray, np.ndarray]:
    """Returns G or -G in 1/nm of each pair, [num_harmonics, 2] (across, along the rows), and its structure factor."""
    orders = [(h, 0) for h in range(1, 5)] + [(h, 1) for h in range(-3, 4)] + [(h, 2) for h in range(-1, 2)]
    harmonics = 2 * np.pi * np.array(orders) / np.array([ROW_SPACING, DIMER_SPACING])
    atoms = np.exp(-0.5 * ATOM_WIDTH**2 * (harmonics**2).sum(axis=1))
    return harmonics, np.cos(harmonics[:, 0] * ATOM_SPACING / 2) * atoms


HARMONICS, STRUCTURE_FACTORS = _lattice_harmonics()


@dataclass(frozen=True)
class Tips:
    """Shapes of ``num_tips`` tips, lateral axes across and along the rows, lengths in nanometres.

    Attributes:
        distance: Radius of the apex plus gap, [num_tips]. An apex orbital sharper than s acts as a smaller distance.
        elongation: Half length of the apex as a vector, [num_tips, 2].
        p_component: Weight of the p orbitals in the surface plane over the decay constant, [num_tips, 2].
        apexes: Places of the apexes, [num_tips, MAX_APEXES, 2]; the first is at 0.
        weights: Weight of each apex, 0 where there is none, [num_tips, MAX_APEXES].
    """

    distance: np.ndarray
    elongation: np.ndarray
    p_component: np.ndarray
    apexes: np.ndarray
    weights: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> "Tips":
        return Tips(*(getattr(self, field.name)[keep] for field in fields(self)))


def tip_transfer(tips: Tips, harmonics: np.ndarray) -> np.ndarray:
    """Returns what each tip makes of each Fourier component of the surface, complex [num_tips, num_harmonics].

    The attenuation is that of Tersoff and Hamann (1985) for s tips. The term that a p orbital adds is the derivative
    of the surface along it, after Chen (1990). An elongated apex averages over its length.
    """
    lengths = np.sqrt((harmonics**2).sum(axis=1))
    attenuation = np.exp(-2 * tips.distance[:, None] * (np.sqrt(DECAY**2 + lengths**2 / 4) - DECAY))
    average = np.exp(-0.5 * (tips.elongation @ harmonics.T) ** 2)
    orbital = 1 + 1j * tips.p_component @ harmonics.T
    repeats = (tips.weights[..., None] * np.exp(1j * tips.apexes @ harmonics.T)).sum(axis=1)
    return attenuation * average * orbital * repeats / tips.weights.sum(axis=1, keepdims=True)


def _coefficients(tips: Tips, harmonics: np.ndarray) -> np.ndarray:
    """Returns the Fourier coefficients of the heights that each tip measures in nm, [num_tips, num_harmonics]."""
    return CORRUGATION * STRUCTURE_FACTORS * tip_transfer(tips, harmonics)


def _unit_cell_waves(num_across: int = 24, num_along: int = 12) -> np.ndarray:
    across, along = np.arange(num_across) / num_across * ROW_SPACING, np.arange(num_along) / num_along * DIMER_SPACING
    places = np.stack(np.meshgrid(across, along, indexing="ij"), axis=-1)
    return np.exp(1j * np.einsum("xyd,gd->gxy", places, HARMONICS))


UNIT_CELL_WAVES = _unit_cell_waves()


def tip_state(tips: Tips, strictness: float = 1.0) -> np.ndarray:
    """Names what each tip resolves in one unit cell, index into TIP_STATES, int64 [num_tips].

    The ridge line across the rows is the highest point at each place across; likewise along. Two maxima with a clear
    dip between them are the two atoms of a dimer; a clear change along the rows is a dimer; a clear change across them
    is a row. The thresholds are multiplied by ``strictness``.
    """
    cell = np.tensordot(_coefficients(tips, HARMONICS), UNIT_CELL_WAVES, axes=1).real
    across, along = cell.max(axis=2), cell.max(axis=1)
    before, after = np.roll(across, 1, axis=1), np.roll(across, -1, axis=1)
    peaks = np.sort(np.where((across > before) & (across >= after), across, -np.inf), axis=1)
    saddles = np.where((across < before) & (across <= after), across, -np.inf).max(axis=1)
    dip = peaks[:, -2] - saddles
    corrugation = np.ptp(across, axis=1)
    shows_dimers = np.ptp(along, axis=1) > LEAST_ALONG * strictness * corrugation
    states = np.full(len(cell), ROWS)
    states[shows_dimers] = DIMERS
    states[shows_dimers & (dip > LEAST_DIP * strictness * corrugation)] = ATOMS
    states[corrugation < LEAST_CORRUGATION * strictness] = DEFECT
    return states


def _draw_tips(rng: np.random.Generator, num_tips: int) -> Tips:
    """Draws tips of all kinds, sharp or blunt, symmetric or not, with one apex or two close together."""
    apexes = np.zeros((num_tips, MAX_APEXES, 2))
    apexes[:, 1] = rng.normal(0, 0.15, (num_tips, 2))
    weights = np.zeros((num_tips, MAX_APEXES))
    weights[:, 0] = 1
    weights[:, 1] = rng.uniform(0.2, 1, num_tips) * (rng.random(num_tips) < 0.4)
    return Tips(
        distance=np.exp(rng.uniform(np.log(0.3), np.log(3), num_tips)),
        elongation=rng.normal(0, 1, (num_tips, 2)) * np.exp(rng.uniform(np.log(0.02), np.log(0.2), (num_tips, 1))),
        p_component=rng.normal(0, 0.02, (num_tips, 2)),
        apexes=apexes,
        weights=weights,
    )


def _tip_of_state(rng: np.random.Generator, state: int, clarity: float) -> Tips:
    """Draws tips until one is in the state; most scans that operators keep are clear cases, so most tips are too."""
    slack = 1 if rng.random() < 0.2 / clarity else clarity
    while True:
        tips = _draw_tips(rng, 16)
        found = np.flatnonzero((tip_state(tips, slack) == state) & (tip_state(tips, 1 / slack) == state))
        if len(found):
            return tips[found[:1]]


def _crashed_tip(rng: np.random.Generator) -> Tips:
    """Draws a blunt tip with several apexes far apart: every feature of the surface shows several times."""
    tip = _draw_tips(rng, 1)
    num_apexes = rng.integers(3, MAX_APEXES + 1)
    tip.distance[:] = rng.uniform(1.8, 3.5)
    tip.apexes[:, 1:] = rng.normal(0, rng.uniform(0.5, 2.5), (MAX_APEXES - 1, 2))
    tip.weights[:] = np.where(np.arange(MAX_APEXES) < num_apexes, rng.uniform(0.3, 1, MAX_APEXES), 0)
    return tip


# What happens in one scan


@dataclass(frozen=True)
class _Session:
    """What the scans of one session share; lengths in nanometres, angles in radians."""

    orientation: float
    typical_size: float
    white_noise: float
    pink_noise: float
    line_noise: float
    tilt: np.ndarray
    drift: np.ndarray  # nm per nm of slow axis, (fast, slow)
    hum: float
    hum_cycles: float  # per line
    defects_per_nm2: float
    glitch_rate: float  # per scan


@dataclass(frozen=True)
class _Segments:
    """Stretches of lines with one tip each; a scan without a tip change has one."""

    first_lines: np.ndarray
    of_line: np.ndarray  # index of the segment that each line belongs to
    tips: Tips
    states: np.ndarray
    shifts: np.ndarray  # nm, lateral jump of the apex, [num_segments, 2]
    offsets: np.ndarray  # nm, jump in height
    noise: np.ndarray  # relative to that of the session
    streaks: int  # in the whole scan
    crowding: float  # how many more features the tip shows than the surface has


@dataclass(frozen=True)
class _Raster:
    """Where the tip is at each pixel; lengths in nanometres."""

    size: float
    x: np.ndarray  # [pixels_per_line] along the fast axis, as the scanner believes
    y: np.ndarray  # [num_lines]
    to_rows: np.ndarray  # rotation from the axes of the scan to those of the rows, [2, 2]
    line_starts: np.ndarray  # in the axes of the rows, with drift and creep, [num_lines, 2]


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, index])))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _session_of(seed: int, index: int, noise: float) -> tuple[int, _Session]:
    """Returns the session of a scan: two sessions of 20 to 40 scans each make up every 60 scans."""
    pair, place = divmod(index, SESSION_PAIR)
    split = _generator(seed, SESSION_STREAM, 3 * pair).integers(20, 41)
    session = 2 * pair + int(place >= split)
    rng = _generator(seed, SESSION_STREAM, 3 * pair + 1 + session % 2)
    return session, _Session(
        orientation=rng.uniform(0, np.pi),
        typical_size=_log_uniform(rng, 3.5, 20),
        white_noise=noise * _log_uniform(rng, 0.001, 0.003),
        pink_noise=noise * _log_uniform(rng, 0.0008, 0.005),
        line_noise=noise * _log_uniform(rng, 0.002, 0.02),
        tilt=noise * rng.normal(0, 0.004, 2),
        drift=rng.normal(0, 0.04, 2),
        hum=noise * _log_uniform(rng, 0.0002, 0.002),
        hum_cycles=rng.uniform(3, 30),
        defects_per_nm2=_log_uniform(rng, 0.004, 0.04),
        glitch_rate=noise * _log_uniform(rng, 0.2, 3),
    )


def _draw_segments(rng: np.random.Generator, state: int, num_lines: int, clarity: float) -> _Segments:
    """Draws the tip of each line; a defect is a tip that is blunt, unstable, changing once, or crashed."""
    fate = rng.choice(["blunt", "unstable", "changing", "crashed"]) if state == DEFECT else "stable"
    cuts, states = np.array([], dtype=np.int64), None
    jump, unrest, streaks, crowding = 0.05, 0.0, 0, 1.0
    if fate == "changing":
        cuts = rng.integers(num_lines // 5, 4 * num_lines // 5 + 1, 1)
        states = rng.choice(4, 2, replace=False)
        tips = [_tip_of_state(rng, segment_state, clarity) for segment_state in states]
        jump, streaks = 0.1, rng.poisson(1)
    elif fate == "unstable":
        cuts = np.flatnonzero(rng.random(num_lines) < _log_uniform(rng, 0.08, 0.4))
        kinds = [_tip_of_state(rng, int(rng.integers(4)), clarity) for _ in range(3)]
        tips = [kinds[rng.integers(3)] for _ in range(len(cuts) + 1)]
        jump, unrest, streaks = _log_uniform(rng, 0.03, 0.4), 1.0, rng.poisson(12)
    elif fate == "crashed":
        cuts = np.sort(rng.integers(0, num_lines, rng.integers(0, 6)))
        tips = [_crashed_tip(rng) for _ in range(len(cuts) + 1)]
        jump, unrest, streaks, crowding = 0.3, 0.4, rng.poisson(3), _log_uniform(rng, 2, 12)
    else:
        if rng.random() < 0.25:  # a jump that leaves the apex as it was
            cuts = rng.integers(0, num_lines, 1)
        tips = [_tip_of_state(rng, state, clarity)] * (len(cuts) + 1)
    first_lines = np.append(0, cuts)
    return _Segments(
        first_lines=first_lines,
        of_line=np.searchsorted(first_lines, np.arange(num_lines), side="right") - 1,
        tips=Tips(*(np.concatenate([getattr(tip, field.name) for tip in tips]) for field in fields(Tips))),
        states=np.full(len(tips), state) if states is None else states,
        shifts=rng.normal(0, 0.2, (len(tips), 2)),
        offsets=rng.normal(0, jump, len(tips)),
        noise=np.exp(np.abs(rng.normal(0, 1, len(tips))) * unrest),
        streaks=streaks,
        crowding=crowding,
    )


def _draw_raster(
    rng: np.random.Generator,
    session: _Session,
    segments: _Segments,
    num_lines: int,
    pixels_per_line: int,
    pixels_per_period: float,
) -> _Raster:
    """Draws the size of a scan, small enough to resolve what its tips resolve, its rotation and its distortion."""
    largest = min(NEEDED_PERIODS[state] for state in segments.states) * pixels_per_line / pixels_per_period
    size = float(np.clip(session.typical_size * np.exp(rng.normal(0, 0.35)), *SIZES_NM))
    if size > largest:
        size = _log_uniform(rng, SIZES_NM[0], largest)
    # Rows turn by 90 degrees from terrace to terrace, so a session shows two directions.
    angle = session.orientation + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.01)
    to_rows = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    y = np.arange(num_lines) * size / pixels_per_line
    drift = np.outer(y, session.drift + rng.normal(0, 0.01, 2))
    creep = np.outer(np.exp(-y / (0.15 * size)), rng.normal(0, 0.1, 2))
    starts = np.stack([np.zeros(num_lines), y], axis=1) + drift + creep + segments.shifts[segments.of_line]
    return _Raster(
        size=size,
        x=np.arange(pixels_per_line) * size / pixels_per_line,
        y=y,
        to_rows=to_rows,
        line_starts=starts @ to_rows.T + rng.uniform(0, ROW_SPACING, 2),
    )


# Heights in nanometres, each float [num_lines, pixels_per_line]


def _measure(rng: np.random.Generator, session: _Session, segments: _Segments, raster: _Raster) -> np.ndarray:
    """Adds up what the surface, the tip and the instrument contribute."""
    num_lines, pixels_per_line = len(raster.y), len(raster.x)
    feedback_lag = rng.uniform(0.2, 1)  # pixels
    heights = _lattice(HARMONICS, segments, raster, feedback_lag)
    if rng.random() < 1 - np.exp(-raster.size / 60):
        turned = _lattice(HARMONICS @ np.array([[0, 1], [-1, 0]]), segments, raster, feedback_lag)
        beyond = _draw_terrace(rng, raster)
        heights += beyond * (turned - STEP_HEIGHT - heights)
    heights += _draw_features(rng, session, segments, raster)
    heights += _draw_noise(rng, session, segments.noise[segments.of_line], feedback_lag, pixels_per_line)

    tilt = session.tilt + rng.normal(0, 0.001, 2)
    wander = np.cumsum(rng.normal(0, 0.3, num_lines)) + rng.normal(0, 1, num_lines)
    offsets = tilt[1] * raster.y + session.line_noise * wander + segments.offsets[segments.of_line]
    heights += offsets[:, None] + tilt[0] * raster.x

    # Streaks: the tip picks something up or loses it, and feedback takes part of a line to recover.
    for _ in range(rng.poisson(session.glitch_rate) + segments.streaks):
        first, last = np.sort(rng.integers(0, pixels_per_line + 1, 2))
        heights[rng.integers(num_lines), first:last] += rng.choice([-1, 1]) * _log_uniform(rng, 0.02, 0.6)
    return heights


def _lattice(harmonics: np.ndarray, segments: _Segments, raster: _Raster, feedback_lag: float) -> np.ndarray:
    """Sums the Fourier series of the lattice.

    A wave over a scan is a wave over its line starts times a wave over its pixels, so the sum over waves is a product
    of two matrices, and the tip, and with it the coefficients, may change at any line.
    """
    along_line = harmonics @ raster.to_rows[:, 0]  # 1/nm
    pixel = raster.size / len(raster.x)
    coefficients = _coefficients(segments.tips, harmonics) / (1 + 1j * feedback_lag * pixel * along_line)
    slow = coefficients[segments.of_line] * np.exp(1j * (raster.line_starts @ harmonics.T))
    fast = np.exp(1j * np.outer(along_line, raster.x))
    return (slow.astype(np.complex64) @ fast.astype(np.complex64)).real


def _draw_terrace(rng: np.random.Generator, raster: _Raster) -> np.ndarray:
    """Draws a step edge that wanders in units of the row spacing, and returns 1 beyond it and 0 before it."""
    direction = rng.uniform(0, 2 * np.pi)
    place = rng.uniform(0.2, 0.8, 2) * [raster.size, raster.y[-1]]
    x, y = raster.x[None, :] - place[0], raster.y[:, None] - place[1]
    across, along = np.cos(direction) * x + np.sin(direction) * y, np.cos(direction) * y - np.sin(direction) * x
    wander = np.zeros_like(along)
    for _ in range(3):
        wavelength = raster.size * rng.uniform(0.1, 1)
        wander += rng.normal(0, 0.7) * np.sin(2 * np.pi * (along / wavelength + rng.random()))
    edge = across - ROW_SPACING * np.round(wander)
    return 0.5 + 0.5 * np.tanh(edge / rng.uniform(0.2, 0.8))


def _draw_features(rng: np.random.Generator, session: _Session, segments: _Segments, raster: _Raster) -> np.ndarray:
    """Draws dangling bonds, vacancies and adsorbates, alone or in clusters, once for each apex that passes over them.

    They are Gaussians, which are separable too, so their sum is again a product of two matrices.
    """
    margin = 1.5
    area = np.array([raster.size, raster.y[-1]]) + 2 * margin
    # A crowd of more than 150 is a blur.
    num_clusters = rng.poisson(min(session.defects_per_nm2 * segments.crowding * area.prod(), 150))
    clusters = rng.uniform(0, 1, (num_clusters, 2)) * area - margin
    places = np.repeat(clusters, rng.choice([1, 2, 4], num_clusters, p=[0.6, 0.25, 0.15]), axis=0)
    places = places + rng.normal(0, 0.35, places.shape)
    count = len(places)
    kind = rng.choice(3, count, p=[0.45, 0.35, 0.2] if segments.crowding == 1 else [0.1, 0.1, 0.8])
    heights = np.array([0.12, -0.08, 0.2])[kind] * np.exp(rng.normal(0, 0.35, count))
    widths = np.array([0.28, 0.22, 0.45])[kind] * np.exp(rng.normal(0, 0.25, count)) * rng.uniform(0.6, 1.3)

    tips = segments.tips
    offsets = tips.apexes @ raster.to_rows + segments.shifts[:, None]
    last_lines = np.append(segments.first_lines[1:], len(raster.y))
    segment, apex = np.nonzero(tips.weights * (last_lines > segments.first_lines)[:, None])
    place_x, place_y = np.moveaxis(places - offsets[segment, apex][:, None], -1, 0).reshape(2, -1)
    height = np.outer(tips.weights[segment, apex], heights).ravel()
    width = np.sqrt(widths**2 + (0.1 * tips.distance[segment, None]) ** 2).ravel()
    of_feature = np.repeat(segment, count)
    reach = 3.5 * width
    above = place_y + reach < raster.y[segments.first_lines[of_feature]]
    below = place_y - reach > raster.y[last_lines[of_feature] - 1]
    near = ~(above | below)
    place_x, place_y, height, width = (a[near].astype(np.float32) for a in (place_x, place_y, height, width))
    slow = height * np.exp(-0.5 * ((raster.y[:, None].astype(np.float32) - place_y) / width) ** 2)
    slow *= segments.of_line[:, None] == of_feature[near]
    fast = np.exp(-0.5 * ((raster.x.astype(np.float32) - place_x[:, None]) / width[:, None]) ** 2)
    return slow @ fast


def _draw_noise(
    rng: np.random.Generator, session: _Session, bursts: np.ndarray, feedback_lag: float, pixels_per_line: int
) -> np.ndarray:
    """Draws white noise, 1/f noise along the fast axis, both as far as feedback follows them, and mains hum."""
    frequencies = np.fft.rfftfreq(pixels_per_line)  # per pixel
    one_over_f = np.append(0, 1 / frequencies[1:])
    power = session.white_noise**2 + session.pink_noise**2 * one_over_f / one_over_f.mean()
    gains = np.sqrt(power / (1 + (2 * np.pi * frequencies * feedback_lag) ** 2)) * _log_uniform(rng, 0.7, 1.4)
    spectrum = np.fft.rfft(rng.standard_normal((len(bursts), pixels_per_line), dtype=np.float32), axis=1)
    noise = np.fft.irfft(spectrum * gains * bursts[:, None], n=pixels_per_line, axis=1)
    cycles = session.hum_cycles * (np.arange(len(bursts))[:, None] + np.arange(pixels_per_line) / pixels_per_line)
    return noise + session.hum * np.sin(2 * np.pi * cycles, dtype=np.float32)
