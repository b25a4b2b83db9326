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
    simulate,
)
from data_scripts.simulation.surface import DIMER_SPACING, ROW_SPACING


@pytest.fixture(scope="module")
def one_line() -> SimulatedScans:
    return simulate(480, num_lines=1)


@pytest.fixture(scope="module")
def power(scans) -> np.ndarray:
    return spectra(scans.lines)


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
