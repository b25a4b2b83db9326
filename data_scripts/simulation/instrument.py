"""The microscope: sessions, where its scanner takes the tip, its feedback, and its noise."""

from dataclasses import dataclass

import numpy as np

from .tip import Segments, log_uniform

SESSION_PAIR = 60  # two sessions share 60 scans, so that the session of any scan is known without walking the stream
SESSION_STREAM, SCAN_STREAM = 0, 1
OVERSCAN = 32  # pixels in front of a line, in which feedback recovers from what came before it


@dataclass(frozen=True, eq=False)
class Session:
    """What the scans of one session share; lengths in nanometres, angles in radians."""

    index: int
    orientation: float
    typical_size: float
    white_noise: float
    pink_noise: float
    line_noise: float
    tilt: np.ndarray
    drift: np.ndarray  # nm per nm of slow axis, (fast, slow)
    hum: float
    hum_cycles: float  # per line
    jitter: float  # of the fast axis from line to line
    features_per_nm2: float
    streak_rate: float  # per scan
    damping: float  # of the feedback; below 1 it overshoots


@dataclass(frozen=True, eq=False)
class Raster:
    """Where the tip is at each pixel; lengths in nanometres.

    Attributes:
        size: Length of a line.
        x: Along the fast axis, from OVERSCAN pixels in front of the line on, [OVERSCAN + pixels_per_line].
        y: Along the slow axis, as the scanner believes, [num_lines].
        path: Where each line really starts, with drift and creep, [num_lines, 2] (fast, slow).
        to_rows: Rotation from the axes of the scan to those of the rows, [2, 2].
        origin: Place of the start of the scan in the axes of the rows, [2].
    """

    size: float
    x: np.ndarray
    y: np.ndarray
    path: np.ndarray
    to_rows: np.ndarray
    origin: np.ndarray

    def line_starts(self, shifts: np.ndarray) -> np.ndarray:
        """Where the apex is at x = 0 of each line, shifted by [num_lines, 2], in the axes of the rows."""
        return self.path @ self.to_rows.T + shifts + self.origin


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns the generator of one session or one scan, independent of all others."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, index])))


def session_of(seed: int, index: int, noise: float, sizes_nm: tuple[float, float]) -> Session:
    """Returns the session of a scan: two sessions of 20 to 40 scans each make up every 60 scans."""
    pair, place = divmod(index, SESSION_PAIR)
    split = generator(seed, SESSION_STREAM, 3 * pair).integers(20, 41)
    session = 2 * pair + int(place >= split)
    rng = generator(seed, SESSION_STREAM, 3 * pair + 1 + session % 2)
    return Session(
        index=session,
        orientation=rng.uniform(0, np.pi),
        typical_size=log_uniform(rng, *np.clip([3, 6] if rng.random() < 0.75 else [6, 25], *sizes_nm)),
        white_noise=noise * log_uniform(rng, 0.0002, 0.0015),
        pink_noise=noise * log_uniform(rng, 0.0006, 0.003),
        line_noise=noise * log_uniform(rng, 0.002, 0.02),
        # most operators let the instrument subtract the plane
        tilt=noise * rng.normal(0, 0.004, 2) * (rng.random() < 0.2),
        drift=rng.normal(0, 0.04, 2),
        hum=noise * log_uniform(rng, 0.0002, 0.002),
        hum_cycles=rng.uniform(3, 30),
        jitter=noise * log_uniform(rng, 0.004, 0.04),
        features_per_nm2=log_uniform(rng, 0.01, 0.08),
        streak_rate=noise * log_uniform(rng, 0.1, 2),
        damping=log_uniform(rng, 0.3, 1.2),
    )


def draw_size(
    rng: np.random.Generator, session: Session, largest: float, sizes_nm: tuple[float, float], overviews: float
) -> float:
    """Draws the size of a scan in nm: that of its session, sometimes an overview, and never above ``largest``."""
    size = session.typical_size * np.exp(rng.normal(0, 0.25))
    if rng.random() < overviews:
        size *= log_uniform(rng, 2, 8)
    size = float(np.clip(size, *sizes_nm))
    return size if size <= largest else log_uniform(rng, sizes_nm[0], largest)


def draw_raster(
    rng: np.random.Generator, session: Session, size: float, num_lines: int, pixels_per_line: int
) -> Raster:
    """Draws the place of a scan, its rotation, and its distortion by drift and creep."""
    # Rows turn by 90 degrees from terrace to terrace, so a session shows two directions.
    angle = session.orientation + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.01)
    y = np.arange(num_lines) * size / pixels_per_line
    drift = np.outer(y, session.drift + rng.normal(0, 0.01, 2))
    creep = np.outer(np.exp(-y / (0.15 * size)), rng.normal(0, 0.015, 2) * size)
    return Raster(
        size=size,
        x=np.arange(-OVERSCAN, pixels_per_line) * size / pixels_per_line,
        y=y,
        path=np.stack([rng.normal(0, 1, num_lines) * session.jitter, y], axis=1) + drift + creep,
        to_rows=np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]),
        origin=rng.uniform(0, 50, 2),
    )


def feedback_response(num_pixels: int, lag: float, damping: float) -> np.ndarray:
    """Returns what feedback makes of each frequency of a line, complex [num_pixels // 2 + 1].

    Feedback and scanner together are an oscillator, as in any text on scanning probes (Chen, Introduction to Scanning
    Tunneling Microscopy, 2008): at an edge it lags by about ``2 * damping * lag`` pixels, and if ``damping`` is below
    1 it overshoots and rings with a period of ``2 * pi * lag / sqrt(1 - damping**2)`` pixels.
    """
    frequencies = 2 * np.pi * np.fft.rfftfreq(num_pixels) * lag
    return 1 / (1 - frequencies**2 + 2j * damping * frequencies)


def measure(
    rng: np.random.Generator, session: Session, segments: Segments, raster: Raster, seen: np.ndarray
) -> np.ndarray:
    """Returns what the microscope records of the heights that an ideal one would see.

    Args:
        seen: Heights in nm, [num_lines, OVERSCAN + pixels_per_line].

    Returns:
        Heights in nm, [num_lines, pixels_per_line].
    """
    num_lines, num_pixels = seen.shape
    pixels_per_line = num_pixels - OVERSCAN
    bursts = segments.noise[segments.of_line]
    heights = seen + _draw_streaks(rng, session, segments, num_lines, pixels_per_line)
    response = feedback_response(num_pixels, rng.uniform(0.15, 0.7), session.damping * log_uniform(rng, 0.8, 1.25))
    spectrum = np.fft.rfft(heights, axis=1) + _draw_noise(rng, session, bursts, num_pixels)
    heights = np.fft.irfft(spectrum * response.astype(np.complex64), n=num_pixels, axis=1)[:, OVERSCAN:]

    lines, pixels = np.arange(num_lines), np.arange(pixels_per_line)
    cycles = session.hum_cycles * (lines[:, None] + pixels / pixels_per_line)
    heights += session.hum * np.sin(2 * np.pi * cycles, dtype=np.float32)
    tilt = session.tilt + rng.normal(0, 0.0003, 2)
    wander = np.cumsum(rng.normal(0, 0.3, num_lines)) + rng.normal(0, 1, num_lines)
    settling = session.line_noise * rng.normal(0, 5) * np.exp(-lines / (0.1 * pixels_per_line))
    offsets = tilt[1] * raster.y + session.line_noise * wander + settling + segments.offsets[segments.of_line]
    return heights + offsets[:, None] + tilt[0] * raster.x[OVERSCAN:]


def _draw_streaks(
    rng: np.random.Generator, session: Session, segments: Segments, num_lines: int, pixels_per_line: int
) -> np.ndarray:
    """Draws parts of lines at which the tip holds something, float32 [num_lines, OVERSCAN + pixels_per_line]."""
    streaks = np.zeros((num_lines, OVERSCAN + pixels_per_line), np.float32)
    for _ in range(rng.poisson(session.streak_rate) + segments.streaks):
        first, last = OVERSCAN + np.sort(rng.integers(0, pixels_per_line + 1, 2))
        streaks[rng.integers(num_lines), first:last] += rng.choice([-1, 1]) * log_uniform(rng, 0.02, 0.4)
    return streaks


def _draw_noise(rng: np.random.Generator, session: Session, bursts: np.ndarray, num_pixels: int) -> np.ndarray:
    """Draws the spectrum of white noise and of 1/f noise along the fast axis, complex [num_lines, num_frequencies]."""
    frequencies = np.fft.rfftfreq(num_pixels)  # per pixel
    one_over_f = np.append(0, 1 / frequencies[1:])
    power = session.white_noise**2 + session.pink_noise**2 * one_over_f / one_over_f.mean()
    gains = np.sqrt(power) * log_uniform(rng, 0.7, 1.4)
    spectrum = np.fft.rfft(rng.standard_normal((len(bursts), num_pixels), dtype=np.float32), axis=1)
    return spectrum * (gains * bursts[:, None]).astype(np.float32)
