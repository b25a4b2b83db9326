"""Simulated STM scans whose labels follow from the tip that took them.

The project's embedded dataset: an endless, seeded stream of labelled scans, computed where it is needed.

Surface (:mod:`.surface`)
    H:Si(100)-2x1, Si(111)-7x7, Au(111) or Cu(111), each a Fourier series over reciprocal lattice vectors with
    structure factors.
Tip (:mod:`.tip`)
    Each term is multiplied by the tip's transfer function: the attenuation of the corrugation with tip radius plus
    gap (Tersoff and Hamann 1985), changed by tip orbitals other than s (Chen 1990), by an elongated apex, and by
    further apexes, which repeat the surface. :func:`tip_state` names what such a tip resolves. Tips change within
    scans, into another state, back, or by a crash.
Topography (:mod:`.topography`)
    Steps, dangling bonds, missing atoms, dihydrides, adsorbates, on the sites of the lattice and seen through the tip.
Instrument (:mod:`.instrument`)
    Tilt, thermal drift and creep, feedback that lags and overshoots, white and 1/f noise, line offsets, mains hum,
    streaks.

The four states are those of the scans of Gordon et al., Rev. Sci. Instrum. 90, 103704 (2019).
What real scans have and these have not: defects that spoil only part of a good lattice, as most that people call
generic defects do; dark rims around bright features; slanted and uneven dimers, and atoms that vary within a scan;
overviews in which atoms are still seen (at 128 pixels, these stop at 14.5 nm); and people who disagree on the label.
`python -m data_scripts.look --beside_simulated` shows both, `python -m benchmarks.transfer` what that costs.

Where no source is named, ranges were chosen by eye and by what a classifier reaches; they are not measurements.
"""

from .stream import SimulatedScans, SimulationOptions, simulate
from .surface import ATOMS, DEFECT, DIMERS, ROWS, SURFACES, TIP_STATES, Surface
from .tip import Tips, tip_state

__all__ = [
    "ATOMS",
    "DEFECT",
    "DIMERS",
    "ROWS",
    "SURFACES",
    "TIP_STATES",
    "SimulatedScans",
    "SimulationOptions",
    "Surface",
    "Tips",
    "simulate",
    "tip_state",
]
