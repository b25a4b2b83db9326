"""Tips: what they make of a surface, and which tip takes which line of a scan."""

from dataclasses import dataclass, fields

import numpy as np

from .surface import CORRUGATION, DECAY, DEFECT, Surface

MAX_APEXES = 7
DEFECTS = {"blunt": 0.15, "unstable": 0.2, "changing": 0.4, "crashed": 0.25}  # with their shares


@dataclass(frozen=True, eq=False)
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

    @property
    def blur(self) -> np.ndarray:
        """Gaussian width in nm to which each tip widens a point, [num_tips].

        For waves much longer than 1 / DECAY, Tersoff and Hamann's attenuation is that of a Gaussian.
        """
        return np.sqrt(self.distance / (2 * DECAY))


@dataclass(frozen=True, eq=False)
class Segments:
    """Stretches of lines with one tip each; a scan without a tip change has one.

    Attributes:
        first_lines: Of each segment, [num_segments].
        of_line: Index of the segment that each line belongs to, [num_lines].
        tips: One for each segment.
        states: Index into TIP_STATES, [num_segments].
        shifts: Lateral jump of the apex in nm, [num_segments, 2] across and along the rows.
        offsets: Jump in height in nm, [num_segments].
        noise: Relative to that of the session, [num_segments].
        streaks: How many more there are in the whole scan.
        crowding: How many times more features the tip shows than the surface has.
        switching: Height in nm by which the apex jumps where the surface is high, and back where it is low, as when
            an atom hops between tip and surface.
    """

    first_lines: np.ndarray
    of_line: np.ndarray
    tips: Tips
    states: np.ndarray
    shifts: np.ndarray
    offsets: np.ndarray
    noise: np.ndarray
    streaks: int
    crowding: float
    switching: float = 0.0


def tip_transfer(tips: Tips, harmonics: np.ndarray) -> np.ndarray:
    """Returns what each tip makes of each Fourier component of the surface, complex [num_tips, num_harmonics].

    The attenuation is that of Tersoff and Hamann, Phys. Rev. B 31, 805 (1985), for s tips. The term that a p orbital
    adds is the derivative of the surface along it, after Chen, Phys. Rev. B 42, 8841 (1990). An elongated apex
    averages over its length, further apexes repeat the surface.
    """
    lengths = np.sqrt((harmonics**2).sum(axis=1))
    attenuation = np.exp(-2 * tips.distance[:, None] * (np.sqrt(DECAY**2 + lengths**2 / 4) - DECAY))
    average = np.exp(-0.5 * (tips.elongation @ harmonics.T) ** 2)
    orbital = 1 + 1j * tips.p_component @ harmonics.T
    repeats = (tips.weights[..., None] * np.exp(1j * tips.apexes @ harmonics.T)).sum(axis=1)
    return attenuation * average * orbital * repeats / tips.weights.sum(axis=1, keepdims=True)


def measured_coefficients(tips: Tips, harmonics: np.ndarray, structure_factors: np.ndarray) -> np.ndarray:
    """Returns Fourier coefficients of the heights that each tip measures in nm, complex [num_tips, num_harmonics]."""
    return CORRUGATION * structure_factors * tip_transfer(tips, harmonics)


def tip_state(tips: Tips, surface: Surface) -> np.ndarray:
    """Names what each tip resolves, index into TIP_STATES, int64 [num_tips]; see :meth:`Surface.name_states`."""
    return surface.name_states(measured_coefficients(tips, surface.harmonics, surface.structure_factors))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a number whose logarithm is equally likely everywhere between those of ``low`` and ``high``."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_tips(rng: np.random.Generator, num_tips: int, surface: Surface) -> Tips:
    """Draws tips of all kinds, sharp or blunt, symmetric or not, with one apex or two close together."""
    scale = surface.apex_scale
    apexes = np.zeros((num_tips, MAX_APEXES, 2))
    apexes[:, 1] = rng.normal(0, 0.15 * scale, (num_tips, 2))
    weights = np.zeros((num_tips, MAX_APEXES))
    weights[:, 0] = 1
    weights[:, 1] = rng.uniform(0.2, 1, num_tips) * (rng.random(num_tips) < 0.4)
    lengths = scale * np.exp(rng.uniform(np.log(0.02), np.log(0.2), (num_tips, 1)))
    nearest, farthest = np.log(surface.distances)
    return Tips(
        distance=np.exp(rng.uniform(nearest, farthest, num_tips)),
        elongation=rng.normal(0, 1, (num_tips, 2)) * lengths,
        p_component=rng.normal(0, 0.02 * scale, (num_tips, 2)),
        apexes=apexes,
        weights=weights,
    )


def draw_tip_of_state(rng: np.random.Generator, surface: Surface, state: int, clarity: float) -> Tips:
    """Draws tips until one is in the state; most scans that operators keep are clear cases, so most tips are too."""
    slack = 1 if rng.random() < 0.2 / clarity else clarity
    while True:
        tips = draw_tips(rng, 16, surface)
        coefficients = measured_coefficients(tips, surface.harmonics, surface.structure_factors)
        clear = surface.name_states(coefficients, slack) == state
        found = np.flatnonzero(clear & (surface.name_states(coefficients, 1 / slack) == state))
        if len(found):
            return tips[found[:1]]


def draw_crashed_tip(rng: np.random.Generator, surface: Surface) -> Tips:
    """Draws a blunt tip with several apexes far apart: every feature of the surface shows several times."""
    while True:
        tip = draw_tips(rng, 1, surface)
        num_apexes = rng.integers(3, MAX_APEXES + 1)
        tip.distance[:] = rng.uniform(0.6, 1.2) * surface.distances[1]
        tip.elongation[:] = 0
        tip.apexes[:, 1:] = rng.normal(0, rng.uniform(0.5, 2.5), (MAX_APEXES - 1, 2))
        tip.weights[:] = np.where(np.arange(MAX_APEXES) < num_apexes, rng.uniform(0.3, 1, MAX_APEXES), 0)
        if tip_state(tip, surface)[0] == DEFECT:
            return tip


def draw_segments(rng: np.random.Generator, surface: Surface, state: int, num_lines: int, clarity: float) -> Segments:
    """Draws the tip of each line; a defect is a tip that is blunt, unstable, changing, or crashed.

    A changing tip changes into another state, or into another state and back.
    """
    fate = str(rng.choice(list(DEFECTS), p=list(DEFECTS.values()))) if state == DEFECT else "stable"
    cuts, states = np.array([], dtype=np.int64), None
    jump, unrest, streaks, crowding, switching = 0.05, 0.0, 0, 1.0, 0.0
    if fate == "changing":
        cuts, states = _draw_changes(rng, num_lines)
        tips = [draw_tip_of_state(rng, surface, segment_state, clarity) for segment_state in states[:2]]
        if states[1] == DEFECT and rng.random() < 0.5:
            tips[1] = draw_crashed_tip(rng, surface)
        tips += tips[:1] * (len(states) - 2)
        jump, streaks = 0.1, rng.poisson(1)
        if DEFECT in states:
            crowding = log_uniform(rng, 1, 3)
    elif fate == "unstable":
        cuts = np.flatnonzero(rng.random(num_lines) < log_uniform(rng, 0.03, 0.3))
        kinds = [draw_tip_of_state(rng, surface, int(rng.integers(4)), clarity) for _ in range(3)]
        tips = [kinds[rng.integers(3)] for _ in range(len(cuts) + 1)]
        jump, unrest, streaks = log_uniform(rng, 0.03, 0.4), 0.7, rng.poisson(8)
        switching = rng.uniform(0.03, 0.2) * (rng.random() < 0.4)
    elif fate == "crashed":
        cuts = np.sort(rng.integers(0, num_lines, rng.integers(0, 6)))
        tips = [draw_crashed_tip(rng, surface) for _ in range(len(cuts) + 1)]
        jump, unrest, streaks, crowding = 0.3, 0.4, rng.poisson(3), log_uniform(rng, 2, 12)
    else:
        if fate == "blunt":
            crowding = log_uniform(rng, 1, 4)
        if rng.random() < 0.25:  # a jump that leaves the apex as it was
            cuts = rng.integers(0, num_lines, 1)
        tips = [draw_tip_of_state(rng, surface, state, clarity)] * (len(cuts) + 1)
    first_lines = np.append(0, cuts)
    return Segments(
        first_lines=first_lines,
        of_line=np.searchsorted(first_lines, np.arange(num_lines), side="right") - 1,
        tips=Tips(*(np.concatenate([getattr(tip, field.name) for tip in tips]) for field in fields(Tips))),
        states=np.full(len(tips), state) if states is None else states,
        shifts=rng.normal(0, 0.2, (len(tips), 2)),
        offsets=rng.normal(0, jump, len(tips)),
        noise=np.exp(np.abs(rng.normal(0, 1, len(tips))) * unrest),
        streaks=streaks,
        crowding=crowding,
        switching=switching,
    )


def _draw_changes(rng: np.random.Generator, num_lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the lines at which a tip changes, one or two, and its two or three states."""
    before, after = rng.choice(4, 2, replace=False)
    if before != DEFECT and rng.random() < 0.4:  # most changes are for the worse
        after = DEFECT
    if rng.random() < 0.7:
        return rng.integers(num_lines // 5, 4 * num_lines // 5 + 1, 1), np.array([before, after])
    there = rng.integers(num_lines // 5, num_lines // 2 + 1)
    back = there + rng.integers(num_lines // 8 + 1, num_lines // 3 + 2)
    return np.array([there, back]), np.array([before, after, before])
