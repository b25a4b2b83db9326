import dataclasses

import numpy as np
import pytest
from simulation_cases import H_SI100, at, make_raster, make_segments, make_tip

from data_scripts.simulation import Tips
from data_scripts.simulation.instrument import OVERSCAN
from data_scripts.simulation.surface import DIMER_SPACING, ROW_SPACING
from data_scripts.simulation.topography import Points, Terrace, draw_points, lattice_heights, point_heights


class TestTopography:
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
