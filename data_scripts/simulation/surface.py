"""Surfaces: Fourier series of their heights, and what a tip that shows part of them is called."""

from dataclasses import dataclass

import numpy as np

TIP_STATES = ("individual_atoms", "asymmetries_dimers", "rows", "generic_defect")
ATOMS, DIMERS, ROWS, DEFECT = range(4)

DECAY = 10.9  # 1/nm, decay constant of a wave function in vacuum at a work function of 4.5 eV
CORRUGATION = 2 / DECAY  # nm, prefactor of the corrugation of Tersoff and Hamann, Phys. Rev. B 31, 805 (1985)
ATOM_WIDTH = 0.05  # nm, Gaussian width of the density of one atom

DIMER_SPACING = 0.384  # nm, along a row of H:Si(100)
ROW_SPACING = 0.768  # nm
ATOM_SPACING = 0.34  # nm between the two H of a dimer: a 0.24 nm dimer with both Si-H bonds leaning outwards

# What an operator would call clear, as parts of the corrugation.
LEAST_ALONG, LEAST_DIP = 0.2, 0.12
# The same on hexagonal surfaces: the second direction relative to the first, and what is lost of the symmetry.
LEAST_SECOND, MOST_ASYMMETRY = 0.2, 0.15


@dataclass(frozen=True, eq=False)
class Directions:
    """The waves of a hexagonal surface that tell its atoms apart, in three directions.

    Attributes:
        members: Whether each harmonic is in each of the three directions, [3, num_harmonics].
        triples: Indices of three waves whose vectors sum to 0, [num_triples, 3]; from num_harmonics on, of the
            opposite vectors. The phase of their product does not change when the surface is shifted.
        products: That product for the surface itself, complex [num_triples].
    """

    members: np.ndarray
    triples: np.ndarray
    products: np.ndarray


@dataclass(frozen=True)
class Stripes:
    """Ridges in pairs across a zigzag; lengths in nanometres."""

    period: float
    height: float
    ridge_distance: float
    ridge_width: float
    elbow_distance: float


@dataclass(frozen=True, eq=False)
class Surface:
    """A periodic surface; lengths in nanometres, lateral axes across and along its rows of atoms.

    Attributes:
        lattice: Two lattice vectors, [2, 2]; the second runs along the rows.
        sites: Atoms of one cell, [num_sites, 2].
        site_weights: How much each atom stands out, [num_sites].
        harmonics: One reciprocal lattice vector G of each pair G and -G in 1/nm, [num_harmonics, 2].
        structure_factors: Of each harmonic, complex [num_harmonics].
        cell_waves: exp(iGr) at the points of a grid in one cell, complex [num_harmonics, num_across, num_along].
        least_corrugation: From peak to valley, below which an operator would call nothing clear.
        relief: Factor on the corrugation that Tersoff and Hamann's first-order formula gives.
        step_height: Of a monatomic step.
        terrace_turn: Radians by which the rows turn from one terrace to the next.
        deciding_periods: What must be resolved for each of TIP_STATES to be told, [4].
        distances: Nearest and farthest tip that is worth drawing, see :class:`Tips`.
        apex_scale: Typical size of what a tip's asymmetries have to be compared to, relative to H:Si(100).
        sites_per_vacancy: How many atoms are missing together.
        features: Kinds of point features with their shares, see :mod:`topography`.
        directions: Of a hexagonal surface.
        stripes: Of a reconstruction with a long period.
    """

    name: str
    lattice: np.ndarray
    sites: np.ndarray
    site_weights: np.ndarray
    harmonics: np.ndarray
    structure_factors: np.ndarray
    cell_waves: np.ndarray
    least_corrugation: float
    relief: float
    step_height: float
    terrace_turn: float
    deciding_periods: tuple[float, float, float, float]
    distances: tuple[float, float]
    apex_scale: float
    sites_per_vacancy: int
    features: dict[str, float]
    directions: Directions | None = None
    stripes: Stripes | None = None

    @property
    def atom_volume(self) -> float:
        """What one atom of weight 1 adds to the integral of the height, nm^3, by Poisson's sum over the harmonics."""
        area = abs(np.linalg.det(self.lattice))
        return float(CORRUGATION * self.relief * area / (2 * self.site_weights.sum()))

    def name_states(self, coefficients: np.ndarray, strictness: float = 1.0) -> np.ndarray:
        """Names what a tip resolves that measures these Fourier coefficients.

        Args:
            coefficients: Of the measured heights in nm, complex [num_tips, num_harmonics].
            strictness: Factor on the thresholds between the states.

        Returns:
            Index into TIP_STATES, int64 [num_tips].
        """
        if self.directions is None:
            return self._dimer_row_states(coefficients, strictness)
        return self._hexagonal_states(self.directions, coefficients, strictness)

    def _dimer_row_states(self, coefficients: np.ndarray, strictness: float) -> np.ndarray:
        """The states of H:Si(100), from one unit cell.

        The ridge line across the rows is the highest point at each place across; likewise along. Two maxima with a
        clear dip between them are the two atoms of a dimer; a clear change along the rows is a dimer; a clear change
        across them is a row.
        """
        cell = np.tensordot(coefficients, self.cell_waves, axes=1).real
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
        states[corrugation < self.least_corrugation * strictness] = DEFECT
        return states

    def _hexagonal_states(self, directions: Directions, coefficients: np.ndarray, strictness: float) -> np.ndarray:
        """The states of a hexagonal surface, from the waves whose period is that of its rows of atoms.

        Waves in one direction only are rows. In two or three they are atoms, and clear atoms if all three are equally
        strong and in the phase in which they are on the surface, which shifts and weak orbital admixtures leave
        alone, while a second apex does not: it doubles the atoms, or makes a honeycomb of a primitive lattice.
        """
        ring = directions.members.any(axis=0)
        corrugation = np.ptp(np.tensordot(coefficients[:, ring], self.cell_waves[ring], axes=1).real, axis=(1, 2))
        strengths = np.sqrt(np.abs(coefficients) ** 2 @ directions.members.T)
        weakest_first = np.sort(strengths, axis=1)
        likeness = strengths.sum(axis=1) ** 2 / np.maximum(3 * (strengths**2).sum(axis=1), 1e-300)
        both = np.concatenate([coefficients, coefficients.conj()], axis=1)
        products = both[:, directions.triples].prod(axis=2) * directions.products.conj()
        coherence = products.real.sum(axis=1) / np.maximum(np.abs(products).sum(axis=1), 1e-300)
        asymmetry = np.maximum(np.sqrt(np.maximum(1 - likeness, 0)), (1 - coherence) / 2)
        states = np.where(asymmetry * strictness < MOST_ASYMMETRY, ATOMS, DIMERS)
        states[weakest_first[:, 1] < LEAST_SECOND * strictness * weakest_first[:, 2]] = ROWS
        states[corrugation < self.least_corrugation * strictness] = DEFECT
        return states


def _make_surface(
    name: str,
    lattice: np.ndarray,
    sites: np.ndarray,
    site_weights: np.ndarray,
    *,
    shortest_wave: float,
    grid: tuple[int, int],
    relief: float,
    row_wave: float | None = None,
    **properties: object,
) -> Surface:
    """Sums up the Fourier series of a lattice of atoms.

    Args:
        shortest_wave: Shortest period in nm of a harmonic.
        grid: Points of the unit cell at which states are found out.
        row_wave: Distance of the rows of atoms of a hexagonal surface.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T
    highest = np.ceil(np.linalg.norm(lattice, axis=1) / shortest_wave).astype(int) + 1
    first, second = np.meshgrid(*(np.arange(-order, order + 1) for order in highest), indexing="ij")
    orders = np.stack([first.ravel(), second.ravel()], axis=1)
    lengths = np.linalg.norm(orders @ reciprocal, axis=1)
    half = (orders[:, 1] > 0) | ((orders[:, 1] == 0) & (orders[:, 0] > 0))
    orders = orders[half & (lengths < 2 * np.pi / shortest_wave)]
    harmonics = orders @ reciprocal
    atoms = np.exp(-0.5 * ATOM_WIDTH**2 * (harmonics**2).sum(axis=1))
    factors = relief * atoms * (np.exp(-1j * harmonics @ sites.T) @ site_weights) / site_weights.sum()
    fractions = np.stack(np.meshgrid(*(np.arange(count) / count for count in grid), indexing="ij"), axis=-1)
    return Surface(
        name=name,
        lattice=lattice,
        sites=sites,
        site_weights=site_weights,
        harmonics=harmonics,
        structure_factors=factors,
        cell_waves=np.exp(1j * np.einsum("xyd,gd->gxy", fractions @ lattice, harmonics)),
        relief=relief,
        directions=None if row_wave is None else _find_directions(orders, harmonics, factors, row_wave),
        **properties,  # type: ignore[arg-type]
    )


def _find_directions(orders: np.ndarray, harmonics: np.ndarray, factors: np.ndarray, row_wave: float) -> Directions:
    relative = np.linalg.norm(harmonics, axis=1) * row_wave / (2 * np.pi)
    angles = np.arctan2(harmonics[:, 1], harmonics[:, 0])
    # Rows of atoms lie across the first axis and 60 degrees to either side; waves halfway between belong to neither.
    near = np.abs(np.cos(angles - np.pi / 3 * np.arange(3)[:, None])) > np.cos(np.radians(28))
    members = near & (np.abs(relative - 1) < 0.25)
    ring = np.flatnonzero(members.any(axis=0))
    signed = {tuple(orders[i]): i for i in ring} | {tuple(-orders[i]): i + len(orders) for i in ring}
    names = list(signed)
    triples = [
        (signed[a], signed[b], signed[c])
        for place, a in enumerate(names)
        for b in names[place + 1 :]
        if (c := (-a[0] - b[0], -a[1] - b[1])) in signed and signed[b] < signed[c]
    ]
    both = np.concatenate([factors, factors.conj()])
    return Directions(members, np.array(triples), both[np.array(triples)].prod(axis=1))


def _hexagonal(spacing: float) -> np.ndarray:
    return spacing * np.array([[np.sqrt(3) / 2, 0.5], [0.0, 1.0]])


def _h_si100() -> Surface:
    """Monohydride H:Si(100)-2x1: dimer rows 2a apart and dimers a apart along a row.

    a = a0 / sqrt(2) = 0.384 nm, where a0 = 0.5431 nm is the lattice constant of silicon. A monatomic step is
    a0 / 4 = 0.136 nm high and turns the rows by 90 degrees. Each Si-Si dimer carries two H atoms (Boland, Phys. Rev.
    Lett. 65, 3325 (1990)). Dangling bonds and dihydrides as in Hersam et al., Nanotechnology 11, 70 (2000).
    """
    return _make_surface(
        "h-si100",
        np.diag([ROW_SPACING, DIMER_SPACING]),
        np.array([[-ATOM_SPACING / 2, 0], [ATOM_SPACING / 2, 0]]),
        np.ones(2),
        shortest_wave=0.185,
        grid=(24, 12),
        least_corrugation=0.006,
        relief=1.0,
        step_height=0.136,
        terrace_turn=np.pi / 2,
        deciding_periods=(ATOM_SPACING, DIMER_SPACING, ROW_SPACING, np.inf),
        distances=(0.3, 3.0),
        apex_scale=1.0,
        sites_per_vacancy=2,
        features={"protrusion": 0.3, "vacancy": 0.2, "split": 0.1, "adsorbate": 0.15, "charge": 0.25},
    )


def _si111() -> Surface:
    """Si(111)-7x7 with the 12 adatoms of the dimer-adatom-stacking-fault model; 2.69 nm between corner holes.

    Positions after Takayanagi et al., J. Vac. Sci. Technol. A 3, 1502 (1985): in each half of the cell six adatoms
    2 x 0.384 nm apart. Their heights in filled states, the faulted half higher and corner adatoms higher than centre
    adatoms, after Hamers, Tromp and Demuth, Phys. Rev. Lett. 56, 1972 (1986); values by eye. A tip that shows corner
    holes but no adatoms resolves nothing, a generic_defect.
    """
    lattice = _hexagonal(7 * 0.384)
    faulted = np.array([(1, 1), (5, 1), (1, 5), (3, 1), (1, 3), (3, 3)])
    sevenths = np.concatenate([faulted, 7 - faulted])
    row_wave = 0.384 * np.sqrt(3)
    return _make_surface(
        "si111-7x7",
        lattice,
        sevenths / 7 @ lattice,
        np.array([1.0] * 3 + [0.88] * 3 + [0.85] * 3 + [0.75] * 3),
        shortest_wave=0.4,
        grid=(24, 24),
        least_corrugation=0.006,
        relief=0.2,
        row_wave=row_wave,
        step_height=0.314,
        terrace_turn=0.0,
        deciding_periods=(row_wave,) * 4,
        distances=(0.3, 3.0),
        apex_scale=1.8,
        sites_per_vacancy=1,
        features={"vacancy": 0.5, "protrusion": 0.2, "adsorbate": 0.3},
    )


def _close_packed(name: str, spacing: float, step_height: float, stripes: Stripes | None) -> Surface:
    """A close-packed metal surface.

    s tips do not resolve it (Chen, Phys. Rev. Lett. 65, 448 (1990)): the orbitals that do act as smaller distances,
    and the corrugation that they measure is a few hundredths of a nanometre. A second apex repeats a primitive lattice
    in itself, so that doubled atoms show as a honeycomb or as unequal directions.
    """
    row_wave = spacing * np.sqrt(3) / 2
    return _make_surface(
        name,
        _hexagonal(spacing),
        np.zeros((1, 2)),
        np.ones(1),
        shortest_wave=row_wave / 2.05,
        grid=(12, 12),
        least_corrugation=0.002,
        relief=0.15,
        row_wave=row_wave,
        step_height=step_height,
        terrace_turn=0.0,
        # Where atoms are not resolved all tips look alike, whatever the terraces show, so no scan is larger.
        deciding_periods=(row_wave,) * 4,
        distances=(0.03, 1.0),
        apex_scale=0.7,
        sites_per_vacancy=1,
        features={"depression": 0.45, "adsorbate": 0.35, "vacancy": 0.2},
        stripes=stripes,
    )


def _au111() -> Surface:
    """Au(111) with its herringbone reconstruction, 22 x sqrt(3).

    0.288 nm between atoms; pairs of ridges 0.02 nm high every 22 atoms (6.3 nm), hcp regions between them narrower
    than fcc ones, in domains turned by 120 degrees that form a zigzag (Wöll et al., Phys. Rev. B 39, 7988 (1989);
    Barth et al., Phys. Rev. B 42, 9307 (1990)). The atoms' own displacements of up to 0.08 nm are left out.
    """
    return _close_packed("au111", 0.288, 0.2355, Stripes(22 * 0.288, 0.02, 2.4, 0.55, 14.0))


def _cu111() -> Surface:
    """Cu(111): 0.255 nm between atoms, a step of 0.209 nm (lattice constant 0.361 nm), dark adsorbates such as CO
    (Bartels, Meyer and Rieder, Appl. Phys. Lett. 71, 213 (1997)). Electron standing waves are left out."""
    return _close_packed("cu111", 0.255, 0.209, None)


SURFACES: dict[str, Surface] = {surface.name: surface for surface in (_h_si100(), _si111(), _au111(), _cu111())}
