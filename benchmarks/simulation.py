"""How many scans the simulator makes in a second of CPU time, on one core, for each surface.

    OMP_NUM_THREADS=1 python -m benchmarks.simulation

CPU time, because other processes take wall time. Surfaces take turns, so that a busy machine slows all of them; the
median of the rounds is printed with their range.
"""

import os

if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # before numpy reads them

import argparse
import time

import numpy as np

from data_scripts.simulation import SURFACES, SimulationOptions, simulate


def scans_per_second(surface: str, num_scans: int, start: int, pixels: int) -> float:
    """Measures one round of one surface."""
    begin = time.process_time()
    simulate(num_scans, SimulationOptions(surface=surface), start=start, pixels_per_line=pixels, num_lines=pixels)
    return num_scans / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200, help="scans in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=128, help="pixels per line, and lines")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rates: dict[str, list[float]] = {surface: [] for surface in SURFACES}
    for surface in SURFACES:  # what is slow the first time only
        scans_per_second(surface, 4, 0, arguments.pixels)
    for round_ in range(arguments.rounds):
        for surface, measured in rates.items():
            measured.append(scans_per_second(surface, arguments.scans, round_ * arguments.scans, arguments.pixels))
    size, rounds = f"{arguments.pixels} x {arguments.pixels}", f"{arguments.rounds} rounds of {arguments.scans} scans"
    print(f"scans of {size} per second of CPU time, one core, {rounds}: median (lowest - highest)")
    for surface, measured in rates.items():
        print(f"{surface:12s} {np.median(measured):6.0f} ({min(measured):.0f} - {max(measured):.0f})")


if __name__ == "__main__":
    main()
