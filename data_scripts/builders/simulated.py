"""The embedded dataset: simulated scans."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import simulation
from ..scan import Scan, ScanReadError
from ..simulation import TIP_STATES, SimulationOptions, simulate
from .base import SHARD_SIZE, LabelledScan, ScanBuilder, one_hot

MAX_SHARDS = 2**14


class Simulated(ScanBuilder):
    """The embedded dataset: simulated scans, endless and seeded, no download. Every line has its exact state."""

    OPTIONS = (
        "num_scans",
        "simulation_seed",
        "simulation_surface",
        "simulation_noise",
        "simulation_pixels_per_period",
        "simulation_clarity",
    )
    CODE = (simulation,)

    def label_names(self) -> list[str]:
        return list(TIP_STATES)

    def shards(self) -> list[range]:
        num_scans = self.options["num_scans"]
        # a stream may be longer than a list of its batches should be
        size = SHARD_SIZE * max(1, -(-num_scans // (SHARD_SIZE * MAX_SHARDS)))
        return [range(start, min(start + size, num_scans)) for start in range(0, num_scans, size)]

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        try:
            options = SimulationOptions(
                **{name.removeprefix("simulation_"): self.options[name] for name in self.OPTIONS[1:]}
            )
            batches = (
                shard[start : start + SHARD_SIZE] for shard in shards for start in range(0, len(shard), SHARD_SIZE)
            )
            for numbers in batches:
                batch = simulate(
                    len(numbers),
                    options,
                    start=numbers.start,
                    pixels_per_line=self.config.pixels_per_line,
                    num_lines=self.config.max_lines,
                )
                for index, number in enumerate(numbers):
                    states = batch.line_states[index]
                    scan = Scan(
                        lines=batch.lines[index],
                        scan_id=f"{options.surface}-{options.seed}-{number}",
                        session=f"{options.surface}-{options.seed}-{batch.sessions[index]}",
                        source="simulation",
                        size_nm=(float(batch.sizes_nm[index]), float(batch.sizes_nm[index])),
                    )
                    yield LabelledScan(
                        scan,
                        one_hot(int(batch.states[index]), len(TIP_STATES)),
                        line_labels=states.astype(np.int8),
                        change_lines=(np.flatnonzero(np.diff(states)) + 1).astype(np.int32),
                    )
                yield None
        except ValueError as error:
            raise ScanReadError(f"dataset simulated: {error}") from error
