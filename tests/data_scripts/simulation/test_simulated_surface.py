import dataclasses

import numpy as np
import pytest
from simulation_cases import at, make_raster, make_segments, make_tip

from data_scripts.simulation import SURFACES, topography
from data_scripts.simulation.instrument import OVERSCAN
from data_scripts.simulation.surface import DIMER_SPACING, ROW_SPACING
from data_scripts.simulation.topography import lattice_heights

SHARPEST = {name: surface.distances[0] for name, surface in SURFACES.items()}


class TestSurface:
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
