import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_scripts.simulation import (
    ATOMS,
    DEFECT,
    DIMERS,
    ROWS,
    SURFACES,
    SimulatedScans,
    SimulationOptions,
    Tips,
    simulate,
    tip_state,
    topography,
)
from data_scripts.simulation.instrument import OVERSCAN, Raster, feedback_response, measure, session_of
from data_scripts.simulation.surface import DIMER_SPACING, ROW_SPACING
from data_scripts.simulation.tip import MAX_APEXES, Segments, draw_segments, draw_tip_of_state, tip_transfer
from data_scripts.simulation.topography import Points, Terrace, draw_points, lattice_heights, point_heights

H_SI100 = SURFACES["h-si100"]
SHARPEST = {name: surface.distances[0] for name, surface in SURFACES.items()}


@pytest.fixture(scope="module")
def scans() -> SimulatedScans:
    return simulate(360, SimulationOptions(seed=5))


@pytest.fixture(scope="module")
def one_line() -> SimulatedScans:
    return simulate(480, num_lines=1)


@pytest.fixture(scope="module")
def power(scans) -> np.ndarray:
    return spectra(scans.lines)


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


def spectra(lines: np.ndarray) -> np.ndarray:
    """Power of flattened scans, clipped so that defects and streaks do not hide the lattice."""
    flat = lines - np.median(lines, axis=2, keepdims=True)
    scale = 3 * np.median(np.abs(flat), axis=(1, 2), keepdims=True)
    flat = np.clip(flat / scale, -1, 1)
    window = np.outer(np.hanning(lines.shape[1]), np.hanning(lines.shape[2]))
    return np.abs(np.fft.fft2((flat - flat.mean(axis=(1, 2), keepdims=True)) * window)) ** 2


def ring(power: np.ndarray, size_nm: float, period_nm: float) -> np.ndarray:
    """The power where the spatial frequency is that of the period, 0 elsewhere."""
    frequencies = np.fft.fftfreq(power.shape[0], d=size_nm / power.shape[1])
    length = np.hypot(frequencies[:, None], frequencies[None, :])
    # Lines of low frequency along the fast axis hold the line offsets, whatever the surface.
    on_ring = (np.abs(length * period_nm - 1) < 0.15) & (np.abs(frequencies[None, :]) * size_nm > 1.5)
    return np.where(on_ring, power, 0)


def peak_ratio(power: np.ndarray, size_nm: float, period_nm: float) -> float:
    return float(ring(power, size_nm, period_nm).max() / np.median(power))


class TestStream:
    def test_shapes_and_types(self, scans):
        assert scans.lines.shape == (360, 128, 128)
        assert scans.lines.dtype == np.float32
        assert scans.states.shape == scans.sizes_nm.shape == scans.sessions.shape == (360,)
        assert scans.line_states.shape == (360, 128)
        assert scans.states.dtype == scans.line_states.dtype == scans.sessions.dtype == np.int64
        assert scans.sizes_nm.dtype == np.float32
        assert np.isfinite(scans.lines).all()

    def test_heights_are_metres(self, scans):
        line_spread = np.median(scans.lines[scans.states == ATOMS].std(axis=2))
        assert 5e-12 < line_spread < 200e-12

    @pytest.mark.parametrize("surface", SURFACES)
    @pytest.mark.parametrize(("num_lines", "pixels_per_line"), [(1, 40), (7, 64), (40, 41)])
    def test_any_size_works(self, surface, num_lines, pixels_per_line):
        options = SimulationOptions(surface=surface, sizes_nm=(2.0, 80.0))
        few = simulate(24, options, num_lines=num_lines, pixels_per_line=pixels_per_line)
        assert few.lines.shape == (24, num_lines, pixels_per_line)
        assert np.isfinite(few.lines).all()

    def test_no_scans(self):
        assert simulate(0).lines.shape == (0, 128, 128)

    @pytest.mark.parametrize("surface", SURFACES)
    @pytest.mark.parametrize(("start", "count"), [(0, 3), (5, 1), (18, 7)])
    def test_a_slice_of_the_stream_is_the_stream(self, surface, start, count):
        options, size = SimulationOptions(seed=2, surface=surface), {"num_lines": 24, "pixels_per_line": 48}
        whole = simulate(25, options, **size)
        part = simulate(count, options, start=start, **size)
        for field in dataclasses.fields(SimulatedScans):
            np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name)[start : start + count])

    def test_seeds_differ(self):
        assert not np.array_equal(simulate(1).lines, simulate(1, SimulationOptions(seed=1)).lines)

    def test_sessions(self, one_line):
        sessions = one_line.sessions
        counts = np.bincount(sessions)
        assert (np.diff(sessions) >= 0).all()
        assert counts.min() >= 20
        assert counts.max() <= 40

    def test_every_session_has_several_states(self, scans):
        assert all(len(np.unique(scans.states[scans.sessions == s])) >= 3 for s in np.unique(scans.sessions))

    def test_a_session_shares_the_orientation_of_the_rows(self):
        only_rows = SimulationOptions(seed=1, class_probabilities=(0, 0, 1, 0))
        rows = simulate(180, only_rows, num_lines=80, pixels_per_line=80)
        angles = []
        for image, size in zip(spectra(rows.lines), rows.sizes_nm, strict=True):
            slow, fast = np.unravel_index(ring(image, size, ROW_SPACING).argmax(), image.shape)
            angles.append(np.arctan2(np.fft.fftfreq(80)[slow], np.fft.fftfreq(80)[fast]))
        # Four times the angle is the same for both row directions.
        phases = np.exp(4j * np.array(angles))
        within = [abs(phases[rows.sessions == s].mean()) for s in np.unique(rows.sessions)]
        assert np.median(within) > 0.7
        assert abs(phases.mean()) < np.median(within) - 0.2


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_scans": -1}, "Expected num_scans to be an integer of at least 0, got -1."),
            ({"num_scans": 1.5}, "Expected num_scans to be an integer of at least 0, got 1.5."),
            ({"num_scans": 1, "start": -2}, "Expected start"),
            ({"num_scans": 1, "num_lines": 0}, "Expected num_lines"),
            ({"num_scans": 1, "pixels_per_line": 16}, "Expected pixels_per_line to be an integer of at least 32, got"),
        ],
    )
    def test_wrong_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError) as error:
            simulate(**arguments)
        assert str(error.value).startswith(message)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": -2}, "Expected seed"),
            ({"surface": "si100"}, "one of h-si100, si111-7x7, au111, cu111, got 'si100'"),
            ({"noise": -1}, "of at least"),
            ({"noise": float("nan")}, "of at least"),
            ({"clarity": 0.5}, "of at least"),
            ({"pixels_per_period": 1}, "of at least"),
            ({"class_probabilities": (0.5, 0.5)}, "Expected class_probabilities"),
            ({"class_probabilities": (1, 1, 0, 0)}, "Expected class_probabilities"),
            ({"class_probabilities": (1.5, -0.5, 0, 0)}, "Expected class_probabilities"),
            ({"class_probabilities": (float("nan"), 0, 0, 1)}, "Expected class_probabilities"),
            ({"sizes_nm": (5.0, 3.0)}, "Expected sizes_nm"),
            ({"sizes_nm": (0.0, 3.0)}, "Expected sizes_nm"),
            ({"sizes_nm": (3.0,)}, "Expected sizes_nm"),
            ({"sizes_nm": (3.0, float("inf"))}, "Expected sizes_nm"),
        ],
    )
    def test_wrong_options_are_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SimulationOptions(**options)

    def test_a_scan_that_cannot_be_small_enough_is_refused(self):
        with pytest.raises(ValueError, match=r"at most 3\.6 for pixels_per_line=32 on h-si100, so that a scan"):
            simulate(1, SimulationOptions(pixels_per_period=10), pixels_per_line=32)

    def test_class_probabilities(self, scans):
        assert (np.bincount(scans.states, minlength=4) > 60).all()
        only_rows = SimulationOptions(class_probabilities=(0, 0, 1, 0))
        assert (simulate(20, only_rows, num_lines=8, pixels_per_line=32).states == ROWS).all()

    def test_noise_scales_what_the_instrument_adds_and_nothing_else(self):
        loud, calm = simulate(12), simulate(12, SimulationOptions(noise=0.0))
        np.testing.assert_array_equal(loud.states, calm.states)
        np.testing.assert_array_equal(loud.sizes_nm, calm.sizes_nm)

        def along_lines(scans: SimulatedScans) -> float:  # neighbouring pixels differ by noise above all
            return float(np.median(np.abs(np.diff(scans.lines, axis=2))))

        assert along_lines(calm) < along_lines(loud)


class TestSizes:
    def test_sizes_are_within_their_range(self, one_line):
        assert 3 <= one_line.sizes_nm.min() < 3.2
        assert 40 < one_line.sizes_nm.max() <= 80
        few = simulate(60, SimulationOptions(sizes_nm=(4.0, 6.0)), num_lines=1)
        assert 4 <= few.sizes_nm.min() < few.sizes_nm.max() <= 6

    def test_states_are_only_given_where_they_are_resolved(self, one_line):
        for state, period in ((ATOMS, 0.34), (DIMERS, DIMER_SPACING), (ROWS, ROW_SPACING)):
            told = (one_line.line_states == state).any(axis=1)
            assert one_line.sizes_nm[told].max() <= period * 128 / 3

    def test_more_pixels_to_a_period_make_smaller_scans(self):
        fine = simulate(60, SimulationOptions(pixels_per_period=8), num_lines=1)
        assert fine.sizes_nm[fine.states == ATOMS].max() <= 0.34 * 128 / 8

    def test_the_size_hardly_tells_the_state(self, one_line):
        size, states = one_line.sizes_nm, one_line.states
        bins = np.digitize(size, np.quantile(size[:300], np.linspace(0, 1, 9)[1:-1]))
        likely = [np.bincount(states[:300][bins[:300] == place], minlength=4).argmax() for place in range(8)]
        assert balanced_accuracy_score(states[300:], np.array(likely)[bins[300:]]) < 0.4

    @pytest.mark.parametrize("surface", ["si111-7x7", "au111", "cu111"])
    def test_sizes_of_hexagonal_surfaces_have_one_bound_for_all_states(self, surface):
        scans = simulate(24, SimulationOptions(surface=surface, class_probabilities=(0, 0, 0, 1)), num_lines=1)
        assert scans.sizes_nm.max() <= SURFACES[surface].deciding_periods[ATOMS] * 128 / 3


class TestTip:
    @pytest.mark.parametrize(
        ("tip", "state"),
        [
            (make_tip(0.35), ATOMS),
            (make_tip(0.75), DIMERS),
            (make_tip(1.2), ROWS),
            (make_tip(3.0), DEFECT),
            (make_tip(0.35, elongation=(0.2, 0)), DIMERS),
            (make_tip(0.35, elongation=(0, 0.2)), ROWS),
            (make_tip(0.35, ghost=(0, DIMER_SPACING / 2)), ROWS),
            (make_tip(0.8, ghost=(ROW_SPACING / 2, DIMER_SPACING / 2)), DEFECT),
        ],
    )
    def test_the_state_follows_from_the_tip(self, tip, state):
        assert tip_state(tip, H_SI100)[0] == state

    @pytest.mark.parametrize("surface", ["si111-7x7", "au111", "cu111"])
    def test_states_of_hexagonal_surfaces(self, surface):
        surface = SURFACES[surface]
        near, far = surface.distances
        row_wave = surface.deciding_periods[ROWS]
        # rows of atoms lie across the first axis: a tip along them leaves that direction only
        long = 0.45 * row_wave
        assert tip_state(make_tip(near), surface)[0] == ATOMS
        assert tip_state(make_tip(near, elongation=(0, 1.5 * long)), surface)[0] == ROWS
        assert tip_state(make_tip(near, elongation=(long, 0)), surface)[0] == DIMERS
        assert tip_state(make_tip(far), surface)[0] == DEFECT

    def test_a_second_apex_between_the_atoms_of_a_metal_makes_a_honeycomb(self):
        surface = SURFACES["cu111"]
        hollow = surface.lattice.sum(axis=0) / 3
        assert tip_state(make_tip(0.03, ghost=tuple(hollow)), surface)[0] == DIMERS
        assert tip_state(make_tip(0.03, ghost=tuple(3 * hollow)), surface)[0] == ATOMS

    @pytest.mark.parametrize("surface", SURFACES)
    def test_corrugation_falls_with_distance(self, surface):
        harmonics = SURFACES[surface].harmonics
        transfers = [np.abs(tip_transfer(make_tip(distance), harmonics)) for distance in (0.1, 0.3, 0.6, 1.2, 2.4)]
        assert (np.diff(np.concatenate(transfers), axis=0) < 0).all()

    @pytest.mark.parametrize("surface", SURFACES)
    def test_stream_tips_are_in_the_state_of_their_label(self, surface):
        rng = np.random.default_rng(0)
        for state in range(4):
            tips = [draw_tip_of_state(rng, SURFACES[surface], state, clarity=3.0) for _ in range(4)]
            assert all(tip_state(tip, SURFACES[surface])[0] == state for tip in tips)


class TestTipChanges:
    def test_line_states_differ_only_where_the_tip_changes(self, scans):
        num_changes = (np.diff(scans.line_states, axis=1) != 0).sum(axis=1)
        changed = num_changes > 0
        assert (scans.states[changed] == DEFECT).all()
        assert 0.1 < changed[scans.states == DEFECT].mean() < 0.5
        np.testing.assert_array_equal(
            scans.line_states[~changed],
            np.broadcast_to(scans.states[~changed, None], scans.line_states[~changed].shape),
        )

    def test_a_tip_changes_once_or_there_and_back(self):
        defects = simulate(150, SimulationOptions(class_probabilities=(0, 0, 0, 1)), pixels_per_line=32)
        num_changes = (np.diff(defects.line_states, axis=1) != 0).sum(axis=1)
        assert set(num_changes) == {0, 1, 2}
        back = defects.line_states[num_changes == 2]
        np.testing.assert_array_equal(back[:, 0], back[:, -1])

    @pytest.mark.parametrize("surface", SURFACES)
    def test_each_segment_has_a_tip_of_its_state(self, surface):
        rng, surface = np.random.default_rng(3), SURFACES[surface]
        drawn = [draw_segments(rng, surface, DEFECT, 64, 2.0) for _ in range(20)]
        changing = [segments for segments in drawn if len(set(segments.states)) > 1]
        assert changing
        for segments in changing:
            np.testing.assert_array_equal(tip_state(segments.tips, surface), segments.states)

    def test_a_changed_tip_changes_only_the_lines_that_it_takes(self):
        raster = make_raster(6.0)
        sharp, blunt = make_tip(0.35), make_tip(1.2, ghost=(0.3, 0.1))
        points = Points(
            np.array([[0.0, 0.4], [1.0, -0.5]]), np.array([0.1, 0.0]), np.full(2, 0.1), np.array([0, -1.0])
        )

        def seen(segments: Segments) -> np.ndarray:
            return lattice_heights(H_SI100, segments, raster) + point_heights(points, H_SI100, segments, raster)

        before, after = seen(make_segments(sharp)), seen(make_segments(blunt))
        once = seen(make_segments(sharp, blunt))
        np.testing.assert_allclose(once[:32], before[:32], atol=1e-6)
        np.testing.assert_allclose(once[32:], after[32:], atol=1e-6)
        assert np.abs(once[32:] - before[32:]).max() > 0.01
        back = seen(make_segments(sharp, blunt, sharp))
        np.testing.assert_allclose(back[43:], before[43:], atol=1e-6)


class TestTopography:
    @pytest.mark.parametrize(
        ("surface", "size", "period"),
        [
            ("h-si100", 12.0, ROW_SPACING),
            ("h-si100", 12.0, DIMER_SPACING),
            ("si111-7x7", 20.0, 2.69 * np.sqrt(3) / 2),
            ("si111-7x7", 20.0, 2.69 * np.sqrt(3) / 6),
            ("au111", 6.0, 0.288 * np.sqrt(3) / 2),
            ("au111", 6.0, 0.144),
            ("cu111", 6.0, 0.255 * np.sqrt(3) / 2),
        ],
    )
    def test_periods(self, surface, size, period):
        raster = make_raster(size, 128, 128)
        tip = make_segments(make_tip(SHARPEST[surface]), num_lines=128)
        lattice = lattice_heights(SURFACES[surface], tip, raster)[:, OVERSCAN:]
        fine = 2048
        window = np.outer(np.hanning(128), np.hanning(128))
        power = np.abs(np.fft.rfft2((lattice - lattice.mean()) * window, (fine, fine)))
        frequencies = [np.fft.fftfreq(fine, size / 128)[:, None], np.fft.rfftfreq(fine, size / 128)[None]]
        length = np.hypot(*frequencies)
        near = np.where(np.abs(length * period - 1) < 0.15, power, 0)
        assert near.max() > 1e3 * np.median(power)
        assert 1 / length.ravel()[near.argmax()] == pytest.approx(period, rel=0.02)

    @pytest.mark.parametrize("surface", ["si111-7x7", "au111", "cu111"])
    def test_hexagonal_surfaces_look_the_same_when_turned_by_120_degrees(self, surface):
        tip = make_segments(make_tip(SHARPEST[surface]))
        images = []
        for turn in (0, 2 * np.pi / 3, np.pi / 6):
            raster = make_raster(4.0, angle=turn)
            raster = dataclasses.replace(raster, origin=-raster.to_rows @ [2.0, 2.0])
            images.append(lattice_heights(SURFACES[surface], tip, raster))
        np.testing.assert_allclose(images[1], images[0], atol=1e-4)
        assert np.abs(images[2] - images[0]).max() > 0.01

    def test_the_unit_cell_of_si111_has_twelve_adatoms_around_corner_holes(self):
        surface = SURFACES["si111-7x7"]
        raster = make_raster(8.0, 160, 160)
        heights = lattice_heights(surface, make_segments(make_tip(0.3), num_lines=160), raster)
        adatoms = [at(heights, raster, tuple(site)) for site in surface.sites]
        corner = at(heights, raster, (0, 0))
        assert len(adatoms) == 12
        assert min(adatoms) > corner + 0.05
        # corner and centre adatoms of the faulted half are higher than those of the other half
        assert min(adatoms[:3]) > max(adatoms[6:9]) + 0.005
        assert min(adatoms[3:6]) > max(adatoms[9:]) + 0.005

    def test_the_herringbone_is_22_atoms_wide(self):
        # a blunt tip shows no atoms, and 6.3 nm between pairs of ridges
        surface, raster = SURFACES["au111"], make_raster(40.0, 8, 512, angle=-np.pi / 3)
        raster = dataclasses.replace(raster, path=0 * raster.path)
        heights = topography._stripe_heights(surface.stripes, make_segments(make_tip(1.0), num_lines=8), raster)
        assert 0.012 < np.ptp(heights) < 0.03
        line = heights[0, OVERSCAN:] - heights[0].mean()
        power = np.abs(np.fft.rfft(line * np.hanning(512), 8192)) ** 2
        # domains lie 30 degrees to either side of this line
        near = np.abs(np.fft.rfftfreq(8192, 40 / 512) * 7.3 - 1) < 0.3
        assert 1 / np.fft.rfftfreq(8192, 40 / 512)[near][power[near].argmax()] == pytest.approx(
            22 * 0.288 / np.cos(np.pi / 6), rel=0.05
        )

    @pytest.mark.parametrize("turned", [False, True])
    def test_features_of_the_lattice_are_on_its_sites(self, turned):
        raster = make_raster(40.0, angle=0.3)
        quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
        shift = np.array([0.2, 0.1])
        share = np.full((64, OVERSCAN + 64), float(turned))
        terrace = Terrace(share, quarter if turned else np.eye(2), shift if turned else np.zeros(2))
        surface = dataclasses.replace(H_SI100, features={"protrusion": 0.4, "vacancy": 0.4, "split": 0.2})
        points = draw_points(np.random.default_rng(0), surface, 0.04, 1.0, raster, terrace)
        local = (points.places - terrace.shift) @ terrace.turn.T
        cells = (local[:, None] - H_SI100.sites) @ np.linalg.inv(H_SI100.lattice)
        off_site = np.abs(cells - np.round(cells)).max(axis=2).min(axis=1)
        bright, missing, added = points.heights > 0, points.atoms < 0, points.atoms > 0
        assert (bright | missing | added).all()
        assert min(bright.sum(), missing.sum(), added.sum()) > 10
        assert off_site[bright | missing].max() < 1e-6
        # the H atoms of a dihydride lie beside those of a dimer, in its row
        assert off_site[added] == pytest.approx(0.35 * 0.34 / ROW_SPACING, abs=1e-3)
        # the two atoms of a dimer are missing together
        rows_of_dimers = np.unique(np.round(local[missing] / [ROW_SPACING, DIMER_SPACING]), axis=0)
        assert len(np.unique(np.round(local[missing], 3), axis=0)) == 2 * len(rows_of_dimers)

    def test_a_missing_dimer_is_dark_and_one_dimer_long(self):
        raster, tip = make_raster(6.0, 128, 128), make_segments(make_tip(0.35), num_lines=128)
        lattice = lattice_heights(H_SI100, tip, raster)
        missing = Points(H_SI100.sites, np.zeros(2), np.full(2, 0.05), np.full(2, -1.0))
        seen = lattice + point_heights(missing, H_SI100, tip, raster)
        site = tuple(H_SI100.sites[1])
        here, next_dimer = at(seen, raster, site), at(seen, raster, (site[0], site[1] + DIMER_SPACING))
        assert at(lattice, raster, site) == pytest.approx(
            at(lattice, raster, (site[0], site[1] + DIMER_SPACING)), abs=0.01
        )
        assert here < next_dimer - 0.05
        assert here < np.median(lattice)
        # nothing changes two dimers farther
        beyond = (site[0], site[1] + 2 * DIMER_SPACING)
        assert at(seen, raster, beyond) == pytest.approx(at(lattice, raster, beyond), abs=0.005)

    def test_all_atoms_missing_is_a_flat_surface(self):
        """The heights of atoms and those of the lattice are on one scale."""
        raster, tip = make_raster(3.0), make_segments(make_tip(0.6, elongation=(0.05, 0.1), ghost=(0.2, 0.1)))
        cells = np.stack(np.meshgrid(np.arange(-9, 10), np.arange(-16, 17), indexing="ij"), axis=-1).reshape(-1, 2)
        places = ((cells @ H_SI100.lattice)[:, None] + H_SI100.sites).reshape(-1, 2)
        count = len(places)
        missing = Points(places, np.zeros(count), np.full(count, 0.05), np.full(count, -1.0))
        lattice = lattice_heights(H_SI100, tip, raster)
        left = lattice + point_heights(missing, H_SI100, tip, raster)
        assert np.ptp(left) < 0.25 * np.ptp(lattice)

    def test_a_double_tip_shows_a_feature_twice_and_a_blunt_one_wide(self):
        raster = make_raster(8.0, 129, 129)
        point = Points(np.zeros((1, 2)), np.array([0.1]), np.array([0.2]), np.zeros(1))

        def seen(tip: Tips) -> np.ndarray:
            return point_heights(point, H_SI100, make_segments(tip, num_lines=129), raster)

        double = seen(make_tip(0.3, ghost=(2.0, 0.0)))
        assert 0.07 < at(double, raster, (0, 0)) < 0.1
        assert at(double, raster, (-2.0, 0)) == pytest.approx(at(double, raster, (0, 0)), abs=0.003)
        assert at(double, raster, (2.0, 0)) < 0.001
        sharp, blunt = seen(make_tip(0.3)), seen(make_tip(3.0))
        assert (blunt > 0.5 * blunt.max()).sum() > 1.5 * (sharp > 0.5 * sharp.max()).sum()
        long = seen(make_tip(0.3, elongation=(0, 0.5)))
        assert at(long, raster, (0, 0.7)) > 3 * at(long, raster, (0.7, 0))

    def test_features_follow_the_lattice_through_drift(self):
        raster = make_raster(6.0, 128, 128)
        drift = np.outer(raster.y, [0.08, 0.1])
        raster = dataclasses.replace(raster, path=raster.path + drift)
        tip = make_segments(make_tip(0.35), num_lines=128)
        one_atom = Points(H_SI100.sites[:1], np.zeros(1), np.full(1, 0.05), np.ones(1))
        seen = point_heights(one_atom, H_SI100, tip, raster)
        line, pixel = np.unravel_index(seen.argmax(), seen.shape)
        lattice = lattice_heights(H_SI100, tip, raster)
        around = lattice[line - 3 : line + 4, pixel - 3 : pixel + 4]
        assert lattice[line, pixel] > around.max() - 0.005


class TestFeedback:
    @pytest.mark.parametrize(("damping", "rings"), [(0.25, True), (1.0, False)])
    def test_an_edge_rings_where_feedback_is_too_fast(self, damping, rings):
        edge = np.zeros(256)
        edge[64:192] = 1
        seen = np.fft.irfft(np.fft.rfft(edge) * feedback_response(256, 1.5, damping))
        assert (np.abs(seen[20:60]) < 0.01).all()  # nothing in front of the edge
        assert seen[130:190].mean() == pytest.approx(1, abs=0.01)
        assert seen[64] < 0.5  # it lags
        overshoot = seen[64:110].max() - 1
        assert (0.3 < overshoot < 0.6) if rings else overshoot < 0.05
        if rings:
            after = seen[66:110] - 1
            turns = np.flatnonzero(np.diff(np.sign(after)))
            assert np.diff(turns).mean() == pytest.approx(np.pi * 1.5 / np.sqrt(1 - damping**2), rel=0.15)

    def test_a_step_of_a_scan_rings(self):
        raster, segments = make_raster(6.0), make_segments(make_tip(0.35))
        step = np.zeros((64, OVERSCAN + 64), np.float32)
        step[:, OVERSCAN + 24 :] = 0.3
        step[:, OVERSCAN + 56 :] = 0
        overshoots = []
        for damping in (0.2, 1.0):
            session = dataclasses.replace(session_of(0, 0, 0.0, (3.0, 80.0)), damping=damping)
            seen = measure(np.random.default_rng(1), session, segments, raster, step)
            overshoots.append((seen[:, 24:50].max(axis=1) - np.median(seen[:, 40:50], axis=1)).mean() / 0.3)
        assert overshoots[0] > 0.2
        assert overshoots[1] < 0.05


class TestClasses:
    def test_atoms_have_power_that_rows_lack(self, scans, power):
        def median_ratio(state: int, period_nm: float) -> float:
            # Below 12 nm the period is well resolved.
            chosen = np.flatnonzero((scans.states == state) & (scans.sizes_nm < 12))
            return float(np.median([peak_ratio(power[i], scans.sizes_nm[i], period_nm) for i in chosen]))

        assert median_ratio(ATOMS, 0.384) > 10 * median_ratio(ROWS, 0.384)
        # Some defects are tips that change or jump between states, so they show rows for a while.
        assert median_ratio(ROWS, 0.768) > 4 * median_ratio(DEFECT, 0.768)

    def test_states_are_separable_by_harmonics_but_not_by_spread(self, scans, power):
        stable = scans.states != DEFECT

        def score(features: np.ndarray, among: np.ndarray) -> float:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
            found = cross_val_predict(model, np.log(features[among]), scans.states[among], cv=3)
            return balanced_accuracy_score(scans.states[among], found)

        lines = scans.lines * 1e9
        flat = lines - np.median(lines, axis=2, keepdims=True)
        spread = np.stack(
            [
                lines.std(axis=(1, 2)),
                flat.std(axis=(1, 2)),
                np.median(flat.std(axis=2), axis=1),
                np.ptp(flat, axis=(1, 2)),
                np.diff(np.median(lines, axis=2), axis=1).std(axis=1),
            ],
            axis=1,
        )
        harmonics = np.array(
            [
                [peak_ratio(image, size, period) for period in (0.768, 0.384, 0.343)]
                for image, size in zip(power, scans.sizes_nm, strict=True)
            ]
        )
        # Beyond the resolution of the scan there is no ring.
        harmonics = np.maximum(harmonics, 1)
        everything = np.concatenate([spread, harmonics], axis=1)
        assert 0.3 < score(spread, scans.states >= 0) < 0.75
        assert score(everything, stable) > score(spread, stable) + 0.08
