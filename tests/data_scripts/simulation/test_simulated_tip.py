import numpy as np
import pytest
from simulation_cases import H_SI100, make_raster, make_segments, make_tip

from data_scripts.simulation import ATOMS, DEFECT, DIMERS, ROWS, SURFACES, SimulationOptions, simulate, tip_state
from data_scripts.simulation.surface import DIMER_SPACING, ROW_SPACING
from data_scripts.simulation.tip import Segments, draw_segments, draw_tip_of_state, tip_transfer
from data_scripts.simulation.topography import Points, lattice_heights, point_heights


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
