"""Scans as streams have them: for the benchmarks of what is said of a scan line by line."""

from typing import NamedTuple

import numpy as np

from data_scripts.builders import BUILDERS
from data_scripts.scan_dataset import lines_of
from modeling_scanline import normalize_lines

WIDTH = 128
NUM_LINES = 128
SIMULATION = {"simulation_noise": 1.0, "simulation_pixels_per_period": 3.0, "simulation_clarity": 2.0}


class Scans(NamedTuple):
    """Normalized lines `[num_scans, lines, pixels]`, which were measured, and the first lines of new tips."""

    lines: np.ndarray
    measured: np.ndarray
    changes: list[list[int]]

    def __add__(self, other: "Scans") -> "Scans":  # type: ignore[override]  # as sets of scans, not as tuples
        lines, measured = (np.concatenate(pair) for pair in zip(self[:2], other[:2], strict=True))
        return Scans(lines, measured, self.changes + other.changes)

    def take(self, chosen: np.ndarray) -> "Scans":
        """Those of a mask `[num_scans]`."""
        places = np.flatnonzero(chosen)
        return Scans(self.lines[places], self.measured[places], [self.changes[place] for place in places.tolist()])


def load(name: str, num_scans: int = 0, seed: int = 0, **kwargs) -> tuple[Scans, np.ndarray]:
    """Scans of a builder, and the session of each."""
    data_dir = kwargs.pop("data_dir", None)
    options = {"num_scans": num_scans, "simulation_seed": seed, **kwargs}
    builder = BUILDERS[name](data_dir=data_dir, options=options, pixels_per_line=WIDTH, max_lines=NUM_LINES)
    builder.download_and_prepare()
    scans = builder.as_dataset(split="train")
    lines, measured = normalize_lines(lines_of(scans, NUM_LINES), "flat_line")
    changes = [list(lines or []) for lines in scans["change_lines"]]
    return Scans(lines.numpy(), measured.bool().numpy(), changes), np.asarray(
        [str(session) for session in scans["session"]]
    )
