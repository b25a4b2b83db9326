import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_scripts import simulation
from data_scripts.simulation import ATOMS, DEFECT, DIMERS, ROWS, SimulatedScans, Tips, simulate, tip_state


@pytest.fixture(scope="module")
def scans() -> SimulatedScans:
    return simulate(360, seed=5)


@pytest.fixture(scope="module")
def power(scans) -> np.ndarray:
    return spectra(scans.lines)


def make_tip(distance: float, elongation: tuple[float, float] = (0, 0), ghost: tuple[float, float] | None = None):
    apexes = np.zeros((1, simulation.MAX_APEXES, 2))
    weights = np.zeros((1, simulation.MAX_APEXES))
    weights[:, 0] = 1
    if ghost is not None:
        apexes[:, 1], weights[:, 1] = ghost, 1
    return Tips(np.array([distance]), np.array([elongation]), np.zeros((1, 2)), apexes, weights)


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


def test_shapes_and_types(scans):
    assert scans.lines.shape == (360, 128, 128)
    assert scans.lines.dtype == np.float32
    assert scans.states.shape == scans.sizes_nm.shape == scans.sessions.shape == (360,)
    assert scans.line_states.shape == (360, 128)
    assert scans.states.dtype == scans.line_states.dtype == scans.sessions.dtype == np.int64
    assert scans.sizes_nm.dtype == np.float32
    assert np.isfinite(scans.lines).all()
    assert scans.sizes_nm.min() >= 3
    assert scans.sizes_nm.max() <= 40


def test_heights_are_metres(scans):
    line_spread = np.median(scans.lines[scans.states == ATOMS].std(axis=2))
    assert 5e-12 < line_spread < 200e-12


@pytest.mark.parametrize(("num_lines", "pixels_per_line"), [(1, 32), (7, 64), (40, 33)])
def test_any_size_works(num_lines, pixels_per_line):
    few = simulate(24, num_lines=num_lines, pixels_per_line=pixels_per_line)
    assert few.lines.shape == (24, num_lines, pixels_per_line)
    assert np.isfinite(few.lines).all()


def test_no_scans():
    assert simulate(0).lines.shape == (0, 128, 128)


@pytest.mark.parametrize(("start", "count"), [(0, 3), (5, 1), (18, 12)])
def test_a_slice_of_the_stream_is_the_stream(start, count):
    whole = simulate(30, seed=2, num_lines=48, pixels_per_line=48)
    part = simulate(count, seed=2, num_lines=48, pixels_per_line=48, start=start)
    for field in dataclasses.fields(SimulatedScans):
        np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name)[start : start + count])


def test_seeds_differ():
    assert not np.array_equal(simulate(1, seed=0).lines, simulate(1, seed=1).lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scans": -1}, "Expected num_scans to be an integer of at least 0, got -1."),
        ({"num_scans": 1.5}, "Expected num_scans to be an integer of at least 0, got 1.5."),
        ({"num_scans": 1, "seed": -2}, "Expected seed"),
        ({"num_scans": 1, "start": -2}, "Expected start"),
        ({"num_scans": 1, "num_lines": 0}, "Expected num_lines"),
        ({"num_scans": 1, "pixels_per_line": 16}, "Expected pixels_per_line to be an integer of at least 32, got 16."),
        ({"num_scans": 1, "class_probabilities": (0.5, 0.5)}, "Expected class_probabilities"),
        ({"num_scans": 1, "class_probabilities": (1, 1, 0, 0)}, "Expected class_probabilities"),
        ({"num_scans": 1, "class_probabilities": (1.5, -0.5, 0, 0)}, "Expected class_probabilities"),
        ({"num_scans": 1, "class_probabilities": (float("nan"), 0, 0, 1)}, "Expected class_probabilities"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        simulate(**arguments)
    assert str(error.value).startswith(message)


def test_class_probabilities(scans):
    assert (np.bincount(scans.states, minlength=4) > 60).all()
    only_rows = simulate(20, class_probabilities=(0, 0, 1, 0), num_lines=8, pixels_per_line=32)
    assert (only_rows.states == ROWS).all()


def test_line_states_differ_only_where_the_tip_changes(scans):
    num_changes = (np.diff(scans.line_states, axis=1) != 0).sum(axis=1)
    changed = num_changes > 0
    assert (num_changes[changed] == 1).all()
    assert (scans.states[changed] == DEFECT).all()
    assert 0.1 < changed[scans.states == DEFECT].mean() < 0.5
    np.testing.assert_array_equal(
        scans.line_states[~changed], np.broadcast_to(scans.states[~changed, None], scans.line_states[~changed].shape)
    )


@pytest.mark.parametrize(
    ("tip", "state"),
    [
        (make_tip(0.35), ATOMS),
        (make_tip(0.75), DIMERS),
        (make_tip(1.2), ROWS),
        (make_tip(3.0), DEFECT),
        (make_tip(0.35, elongation=(0.2, 0)), DIMERS),
        (make_tip(0.35, elongation=(0, 0.2)), ROWS),
        (make_tip(0.35, ghost=(0, simulation.DIMER_SPACING / 2)), ROWS),
        (make_tip(0.8, ghost=(simulation.ROW_SPACING / 2, simulation.DIMER_SPACING / 2)), DEFECT),
    ],
)
def test_the_state_follows_from_the_tip(tip, state):
    assert tip_state(tip)[0] == state


def test_corrugation_falls_with_distance():
    spreads = [
        np.abs(simulation.tip_transfer(make_tip(distance), simulation.HARMONICS)) for distance in (0.3, 0.6, 1.2, 2.4)
    ]
    assert (np.diff(np.concatenate(spreads), axis=0) < 0).all()


def test_stream_tips_are_in_the_state_of_their_label():
    rng = np.random.default_rng(0)
    for state in range(4):
        assert all(tip_state(simulation._tip_of_state(rng, state, clarity=2.0))[0] == state for _ in range(5))


def test_atoms_have_power_that_rows_lack(scans, power):
    def median_ratio(state: int, period_nm: float) -> float:
        # Below 12 nm the period is well resolved.
        chosen = np.flatnonzero((scans.states == state) & (scans.sizes_nm < 12))
        return float(np.median([peak_ratio(power[i], scans.sizes_nm[i], period_nm) for i in chosen]))

    assert median_ratio(ATOMS, 0.384) > 10 * median_ratio(ROWS, 0.384)
    # Some defects are tips that change or jump between states, so they show rows for a while.
    assert median_ratio(ROWS, 0.768) > 4 * median_ratio(DEFECT, 0.768)


def test_sessions():
    sessions = simulate(240, num_lines=1, pixels_per_line=32).sessions
    counts = np.bincount(sessions)
    assert (np.diff(sessions) >= 0).all()
    assert counts.min() >= 20
    assert counts.max() <= 40


def test_every_session_has_several_states(scans):
    assert all(len(np.unique(scans.states[scans.sessions == s])) >= 3 for s in np.unique(scans.sessions))


def test_a_session_shares_the_orientation_of_the_rows():
    rows = simulate(240, seed=1, num_lines=96, pixels_per_line=96, class_probabilities=(0, 0, 1, 0))
    power = spectra(rows.lines)
    angles = []
    for image, size in zip(power, rows.sizes_nm, strict=True):
        slow, fast = np.unravel_index(ring(image, size, simulation.ROW_SPACING).argmax(), image.shape)
        angles.append(np.arctan2(np.fft.fftfreq(96)[slow], np.fft.fftfreq(96)[fast]))
    # Four times the angle is the same for both row directions.
    phases = np.exp(4j * np.array(angles))
    within = [abs(phases[rows.sessions == s].mean()) for s in np.unique(rows.sessions)]
    assert np.median(within) > 0.7
    assert abs(phases.mean()) < np.median(within) - 0.2


def test_states_are_separable_by_harmonics_but_not_by_spread(scans, power):
    def score(features: np.ndarray) -> float:
        features = np.log(features)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
        model.fit(features[:240], scans.states[:240])
        return balanced_accuracy_score(scans.states[240:], model.predict(features[240:]))

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
    assert 0.3 < score(spread) < 0.75
    assert score(np.concatenate([spread, harmonics], axis=1)) > score(spread) + 0.05


def test_noise_scales_what_the_instrument_adds_and_nothing_else() -> None:
    loud, calm = simulate(12, noise=1.0), simulate(12, noise=0.0)
    np.testing.assert_array_equal(loud.states, calm.states)
    np.testing.assert_array_equal(loud.sizes_nm, calm.sizes_nm)

    def along_lines(scans: simulation.SimulatedScans) -> float:  # neighbouring pixels differ by noise above all
        return float(np.median(np.abs(np.diff(scans.lines, axis=2))))

    assert along_lines(calm) < along_lines(loud)


def test_more_pixels_to_a_period_make_smaller_scans() -> None:
    fine, coarse = simulate(40, pixels_per_period=3), simulate(40, pixels_per_period=8)
    atoms = coarse.states == ATOMS
    assert coarse.sizes_nm[atoms].max() <= 0.34 * 128 / 8 < fine.sizes_nm[atoms].max()


@pytest.mark.parametrize(
    "options", [{"noise": -1}, {"clarity": 0.5}, {"pixels_per_period": 1}, {"noise": float("nan")}]
)
def test_impossible_difficulties_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="of at least"):
        simulate(1, **options)


def test_a_scan_that_cannot_be_small_enough_is_refused() -> None:
    with pytest.raises(ValueError, match="so that a scan of 3 nm fits"):
        simulate(1, pixels_per_line=32, pixels_per_period=10)
