"""What an ideal microscope sees of a surface through a tip: its lattice, a step, its point features.

Kinds of point features. Those of the lattice sit on its sites.
    protrusion  bright, on one site: a dangling bond of H:Si(100), a reacted adatom of Si(111)
    depression  dark, on one site: a molecule such as CO on a metal
    vacancy     atoms are missing: dimers of H:Si(100), one to three in a row, or one atom
    split       a stretch of dihydrides in a row of H:Si(100): the two H atoms of a cell lie farther apart, as in 3x1
    adsorbate   bright, anywhere
    charge      a wide hill or hollow: charges below the surface and bound to defects bend the bands around them
"""

from dataclasses import dataclass

import numpy as np

from .instrument import Raster, Session
from .surface import ATOM_WIDTH, ROW_SPACING, Stripes, Surface
from .tip import Segments, measured_coefficients, tip_transfer

# nm, typical height and Gaussian width
KINDS = {"protrusion": (0.1, 0.3), "depression": (-0.05, 0.2), "adsorbate": (0.16, 0.4), "charge": (0.05, 1.0)}
MARGIN = 1.5  # nm around the scan in which there are features too
MOST_CLUSTERS = 150  # a crowd of more is a blur
# Five points that weigh like a Gaussian of width 1.
GAUSSIAN_POINTS = 0.8767 * np.array([0, -1, 1, -2, 2])
GAUSSIAN_WEIGHTS = np.array([0.3164, 0.2389, 0.2389, 0.1029, 0.1029])


@dataclass(frozen=True, eq=False)
class Terrace:
    """A lower terrace and its share in each pixel, as the tip of each line sees it.

    Attributes:
        share: 1 beyond the step, 0 before it, [num_lines, OVERSCAN + pixels_per_line].
        turn: From the axes of the rows before the step to those beyond, [2, 2].
        shift: Of the lattice beyond, nm, [2].
    """

    share: np.ndarray
    turn: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Points:
    """Gaussian features of a surface, places and lengths in nanometres in the axes of the rows.

    Attributes:
        places: [num_points, 2].
        heights: Of those that stand out by themselves, 0 for atoms, [num_points].
        widths: [num_points].
        atoms: How many atoms are here more than in the lattice, of weight 1, negative where they are missing,
            [num_points]. A tip shows them as it shows the atoms of the lattice.
    """

    places: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    atoms: np.ndarray


def draw_topography(
    rng: np.random.Generator, surface: Surface, session: Session, segments: Segments, raster: Raster
) -> np.ndarray:
    """Draws what is in a scan, heights in nm, float32 [num_lines, OVERSCAN + pixels_per_line]."""
    heights = lattice_heights(surface, segments, raster)
    terrace = None
    if rng.random() < 1 - np.exp(-((raster.size / 40) ** 1.5)):
        terrace = _draw_terrace(rng, surface, segments, raster)
        beyond = lattice_heights(surface, segments, raster, terrace.turn, terrace.shift)
        heights += terrace.share * (beyond - np.float32(surface.step_height) - heights)
    if surface.stripes is not None:
        heights += _stripe_heights(surface.stripes, segments, raster)
    points = draw_points(rng, surface, session.features_per_nm2, segments.crowding, raster, terrace)
    heights += point_heights(points, surface, segments, raster)
    if segments.switching:
        level = np.quantile(heights[:, ::4], rng.uniform(0.3, 0.8))
        heights += np.float32(segments.switching) * (heights > level)
    return heights


def lattice_heights(
    surface: Surface,
    segments: Segments,
    raster: Raster,
    turn: np.ndarray | None = None,
    shift: np.ndarray | None = None,
) -> np.ndarray:
    """Sums the Fourier series of the lattice, turned and shifted, float32 [num_lines, OVERSCAN + pixels_per_line].

    A wave over a scan is a wave over its line starts times a wave over its pixels, so the sum over waves is a product
    of two matrices, and the tip, and with it the coefficients, may change at any line.
    """
    harmonics, factors = surface.harmonics, surface.structure_factors
    if turn is not None and shift is not None:
        harmonics = harmonics @ turn
        factors = factors * np.exp(-1j * harmonics @ shift)
    coefficients = measured_coefficients(segments.tips, harmonics, factors)
    starts = raster.line_starts(segments.shifts[segments.of_line])
    slow = coefficients[segments.of_line] * np.exp(1j * (starts @ harmonics.T))
    fast = np.exp(1j * np.outer(harmonics @ raster.to_rows[:, 0], raster.x))
    return (slow.astype(np.complex64) @ fast.astype(np.complex64)).real


def _stripe_heights(stripes: Stripes, segments: Segments, raster: Raster) -> np.ndarray:
    """Heights of pairs of ridges whose direction turns by 120 degrees at each elbow.

    The tip's transfer is taken for the mean direction of the two domains.
    """
    starts = raster.line_starts(segments.shifts[segments.of_line])
    across, along = (starts[:, i, None] + raster.to_rows[i, 0] * raster.x for i in range(2))
    # Close-packed directions are at 30 and 90 degrees, so the zigzag runs between them.
    direction = np.array([0.5, np.sqrt(3) / 2])
    through, zigzag = direction[0] * across + direction[1] * along, direction[1] * across - direction[0] * along
    place = np.abs((zigzag / stripes.elbow_distance) % 2 - 1) * stripes.elbow_distance
    wave = 2 * np.pi / stripes.period
    phase = np.exp(1j * wave * (np.sqrt(3) / 2 * through + 0.5 * place)).astype(np.complex64)
    orders = np.arange(1, 5)
    ridges = 2 * np.cos(0.5 * orders * wave * stripes.ridge_distance)
    narrow = np.exp(-0.5 * (orders * wave * stripes.ridge_width) ** 2)
    factors = 2 * stripes.height * stripes.ridge_width * wave / np.sqrt(2 * np.pi) * ridges * narrow
    coefficients = factors * tip_transfer(segments.tips, np.outer(orders * wave, direction))
    lines = coefficients.astype(np.complex64)[segments.of_line]
    heights, power = np.zeros(phase.shape, np.float32), phase
    for order in range(len(orders)):
        heights += (lines[:, order, None] * power).real
        power = power * phase
    return heights


def _draw_terrace(rng: np.random.Generator, surface: Surface, segments: Segments, raster: Raster) -> Terrace:
    """Draws a step edge that wanders in units of the row spacing, once for each apex that passes over it."""
    direction = rng.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(direction), np.sin(direction)])
    place = rng.uniform(0.2, 0.8, 2) * [raster.size, raster.y[-1]]
    x, y = raster.x[None, :] - place[0], raster.y[:, None] - place[1]
    across, along = normal[0] * x + normal[1] * y, normal[0] * y - normal[1] * x
    wander = np.zeros_like(along)
    for _ in range(3):
        wavelength = raster.size * rng.uniform(0.1, 1)
        wander += rng.normal(0, min(0.7, raster.size / 20)) * np.sin(2 * np.pi * (along / wavelength + rng.random()))
    edge = (across - ROW_SPACING * np.round(wander)).astype(np.float32)
    tips = segments.tips
    width = np.sqrt(rng.uniform(0.1, 0.5) ** 2 + 2 * tips.blur**2)[segments.of_line, None].astype(np.float32)
    weights = tips.weights / tips.weights.sum(axis=1, keepdims=True)
    reaches = tips.apexes @ raster.to_rows @ normal
    share = np.zeros_like(edge)
    for apex in np.flatnonzero(weights.any(axis=0)):
        weight, reach = (a[segments.of_line, apex, None].astype(np.float32) for a in (weights, reaches))
        share += weight * (0.5 + 0.5 * np.tanh((edge + reach) / width))
    cosine, sine = np.cos(surface.terrace_turn), np.sin(surface.terrace_turn)
    shift = rng.uniform(0, 1, 2) @ surface.lattice
    return Terrace(share=share, turn=np.array([[cosine, sine], [-sine, cosine]]), shift=shift)


def draw_points(
    rng: np.random.Generator,
    surface: Surface,
    per_nm2: float,
    crowding: float,
    raster: Raster,
    terrace: Terrace | None = None,
) -> Points:
    """Draws point features, alone or in clusters; what a crashed tip is crowded with are adsorbates."""
    low = raster.path.min(axis=0) - MARGIN
    area = raster.path.max(axis=0) + np.array([raster.size + MARGIN, MARGIN]) - low
    num_clusters = rng.poisson(min(per_nm2 * crowding * area.prod(), MOST_CLUSTERS))
    places = low + rng.uniform(0, 1, (num_clusters, 2)) * area
    places = np.repeat(places, rng.choice([1, 2, 4], num_clusters, p=[0.6, 0.25, 0.15]), axis=0)
    places = places + rng.normal(0, 0.35, places.shape)
    names = list(surface.features)
    shares = np.array([surface.features[name] for name in names])
    if crowding > 1:
        shares = 0.2 * shares + 0.8 * np.array([name == "adsorbate" for name in names])
    kinds = np.array(names)[rng.choice(len(names), len(places), p=shares / shares.sum())]

    turn, shift = np.tile(np.eye(2), (len(places), 1, 1)), np.zeros((len(places), 2))
    if terrace is not None:
        line = np.searchsorted(raster.path[:, 1], places[:, 1]).clip(0, len(raster.y) - 1)
        pixel = np.searchsorted(raster.x, places[:, 0] - raster.path[line, 0]).clip(0, len(raster.x) - 1)
        beyond = terrace.share[line, pixel] > 0.5
        turn[beyond], shift[beyond] = terrace.turn, terrace.shift
    in_lattice = np.einsum("nij,nj->ni", turn, places @ raster.to_rows.T + raster.origin - shift)
    cells = np.round(in_lattice @ np.linalg.inv(surface.lattice))

    parts = []
    for kind in names:
        chosen = np.flatnonzero(kinds == kind)
        owner, points = _points_of_kind(rng, surface, kind, cells[chosen], in_lattice[chosen])
        owner = chosen[owner]
        back = np.einsum("nji,nj->ni", turn[owner], points.places) + shift[owner]
        parts.append((back, points.heights, points.widths, points.atoms))
    return Points(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _points_of_kind(
    rng: np.random.Generator, surface: Surface, kind: str, cells: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, Points]:
    """Draws features of one kind in the axes of their lattice.

    Args:
        cells: Where they are, in lattice vectors, [num_features, 2].
        places: Where they are in nm, for those that need no site, [num_features, 2].

    Returns:
        The index of the feature that each point belongs to, and the points.
    """
    count = len(cells)
    site = rng.integers(len(surface.sites), size=count)
    if kind not in ("vacancy", "split"):
        height, width = KINDS[kind]
        places = places if kind in ("adsorbate", "charge") else cells @ surface.lattice + surface.sites[site]
        heights = height * np.exp(rng.normal(0, 0.35, count))
        if kind == "charge":
            heights *= rng.choice([-1, 1], count)
        return np.arange(count), Points(places, heights, width * np.exp(rng.normal(0, 0.25, count)), np.zeros(count))
    if surface.sites_per_vacancy == 1:
        places = cells @ surface.lattice + surface.sites[site]
        atoms = -surface.site_weights[site]
        return np.arange(count), Points(places, np.zeros(count), np.full(count, ATOM_WIDTH), atoms)
    lengths = rng.choice([1, 2, 3], count, p=[0.65, 0.25, 0.1]) if kind == "vacancy" else rng.integers(2, 6, count)
    owner = np.repeat(np.arange(count), lengths)
    along = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    centres = (cells[owner] + np.outer(along, [0, 1])) @ surface.lattice
    sites = centres[:, None] + surface.sites
    atoms = np.broadcast_to(-surface.site_weights, sites.shape[:2])
    if kind == "split":
        sites = np.concatenate([sites, centres[:, None] + 1.7 * surface.sites], axis=1)
        atoms = np.concatenate([atoms, -0.9 * atoms], axis=1)
    places = sites.reshape(-1, 2)
    owner = np.repeat(owner, sites.shape[1])
    return owner, Points(places, np.zeros(len(owner)), np.full(len(owner), ATOM_WIDTH), atoms.ravel())


def point_heights(points: Points, surface: Surface, segments: Segments, raster: Raster) -> np.ndarray:
    """Sums up points, once for each apex that passes over them, float32 [num_lines, OVERSCAN + pixels_per_line].

    Gaussians are separable, so their sum is again a product of two matrices. Within one point the drift along the
    fast axis is taken as constant.
    """
    tips = segments.tips
    blur = tips.blur
    lengths = np.linalg.norm(tips.elongation, axis=1)
    last_lines = np.append(segments.first_lines[1:], len(raster.y))
    present = (tips.weights > 0) & (last_lines > segments.first_lines)[:, None]
    # An apex shorter than its blur is as good as round.
    nodes = (lengths[:, None] > 0.5 * blur[:, None]) | (np.arange(len(GAUSSIAN_POINTS)) == 0)
    segment, apex, node = np.nonzero(present[:, :, None] & nodes[:, None])
    long = lengths[segment] > 0.5 * blur[segment]
    share = np.where(long, GAUSSIAN_WEIGHTS[node], 1) * tips.weights[segment, apex]
    reach = tips.apexes[segment, apex] + GAUSSIAN_POINTS[node, None] * tips.elongation[segment]
    reach = (reach + segments.shifts[segment]) @ raster.to_rows

    seen_at = ((points.places - raster.origin) @ raster.to_rows)[None] - reach[:, None]
    width = np.sqrt(points.widths**2 + blur[segment, None] ** 2)
    atom_heights = surface.atom_volume * points.atoms / (2 * np.pi * width**2)
    stands_out = points.heights * points.widths / width
    height = share[:, None] * (stands_out + atom_heights / tips.weights.sum(axis=1)[segment, None])
    first, last = segments.first_lines[segment], last_lines[segment] - 1
    path_y = np.maximum.accumulate(raster.path[:, 1])
    slow_place, margin = seen_at[..., 1], 3.5 * width
    near = (slow_place + margin >= path_y[first, None]) & (slow_place - margin <= path_y[last, None])
    of_segment = np.broadcast_to(segment[:, None], near.shape)[near]
    slow_place, fast_place, width, height = slow_place[near], seen_at[..., 0][near], width[near], height[near]
    fast_place = fast_place - np.interp(slow_place, path_y, raster.path[:, 0])

    slow_place, fast_place, width, height = (a.astype(np.float32) for a in (slow_place, fast_place, width, height))
    slow = height * np.exp(-0.5 * ((path_y[:, None].astype(np.float32) - slow_place) / width) ** 2)
    slow *= segments.of_line[:, None] == of_segment
    fast = np.exp(-0.5 * ((raster.x.astype(np.float32) - fast_place[:, None]) / width[:, None]) ** 2)
    return slow @ fast
