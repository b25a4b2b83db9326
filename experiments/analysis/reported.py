"""What the earlier experiments log reported of its runs, beside the runs that repeat them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from configuration.command_line import SWEEPS

from .comparison import Experiment
from .record import COMPLETE, dig
from .tables import NONE, Table, number, percent

REPORTED = ("accuracy", "auroc")  # best ones on the validation part; the log ranks by the first
FIGURES = (*REPORTED, "balanced_accuracy")


@dataclass(frozen=True)
class Repeated:
    """
    A run of the earlier log, or beside those of it, and the runs that repeat it.

    Attributes:
        name: of the run, as the sweep has it.
        reported: what the log says: some of [`REPORTED`]; empty for a run that it only planned.
        found: [`FIGURES`] of the repeating runs, a value a seed.
    """

    name: str
    reported: dict[str, float]
    found: dict[str, list[float]]

    def mean(self, figure: str) -> float | None:
        """Over the seeds; `None` where no run has ended."""
        return float(np.mean(self.found[figure])) if self.found[figure] else None


def read_reported(sweep: str) -> dict[str, dict[str, float]]:
    """What the earlier log reported of the runs of a sweep, by name of the run; empty for a sweep of ours."""
    path = SWEEPS / f"{sweep}.yaml"
    reported = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("reported", {}) if path.is_file() else {}
    return read_reported(reported) if isinstance(reported, str) else reported


def find_repeated(
    experiments: Sequence[Experiment], analyses: Mapping[str, dict[str, Any]]
) -> dict[str, list[Repeated]]:
    """
    The experiments of each sweep that repeats runs of the earlier log.

    Args:
        experiments: whose runs lie in a folder of the sweep's name, as `experiments.sweep` leaves them.
        analyses: of each run, by its name.
    """
    sweeps: dict[str, list[Repeated]] = {}
    for experiment in experiments:
        folder = experiment.runs[0].folder.resolve()
        sweep, name = folder.parent.name, folder.name.partition("_seed")[0]
        reported = read_reported(sweep)
        if not reported:
            continue
        best = [dig(analyses[run.name], "validation") or {} for run in experiment.runs if run.state == COMPLETE]
        found = {
            figure: [value for part in best if (value := dig(part, figure, "best")) is not None] for figure in FIGURES
        }
        sweeps.setdefault(sweep, []).append(Repeated(name, reported.get(name, {}), found))
    return sweeps


def _seeds(values: Sequence[float], text: Any) -> str:
    """Mean, and in brackets the lowest and the highest."""
    if not values:
        return NONE
    return f"{text(float(np.mean(values)))} [{text(min(values))}, {text(max(values))}]"


def reported_section(sweep: str, repeated: Sequence[Repeated]) -> Iterator[str]:
    """The log's figures beside ours, and whether both put the runs into the same order."""
    rows = [
        (
            run.name,
            percent(run.reported.get("accuracy")),
            _seeds(run.found["accuracy"], percent),
            number(run.reported.get("auroc")),
            _seeds(run.found["auroc"], number),
            _seeds(run.found["balanced_accuracy"], number),
            str(len(run.found["accuracy"])),
        )
        for run in repeated
    ]
    headings = ("run", "log: best accuracy", "here", "log: best AUROC", "here", "balanced accuracy here", "seeds")
    yield from [
        f"### The earlier log's figures beside those of `{sweep}`",
        "",
        "Best figures on the validation scans of any epoch, as the log has them; in brackets the lowest and the "
        "highest seed. The log's are of other data (the MATLAB release, augmented before it was split), and of other "
        "sizes of model and scan; what should agree is the order.",
        "",
        *Table(headings, rows).markdown(),
    ]
    known = [run for run in repeated if run.reported.get("accuracy") is not None and run.mean("accuracy") is not None]
    if len(known) > 1:

        def order(figure: str) -> str:
            return " < ".join(run.name for run in sorted(known, key=lambda run: run.mean(figure) or 0))

        log = " < ".join(run.name for run in sorted(known, key=lambda run: run.reported["accuracy"]))
        here = {figure: "the same" if order(figure) == log else order(figure) for figure in FIGURES}
        yield from [
            f"- By best accuracy the log has {log}. The order here: by accuracy {here['accuracy']}; by AUROC "
            f"{here['auroc']}; by balanced accuracy, which rare states count in as much as frequent ones, "
            f"{here['balanced_accuracy']}.",
            "",
        ]


def reported_tables(experiments: Sequence[Experiment], analyses: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """A section for each sweep that repeats runs of the earlier log; nothing where none does."""
    sweeps = find_repeated(experiments, analyses)
    if sweeps:
        yield from ["## Beside the earlier log", ""]
    for sweep, repeated in sweeps.items():
        yield from reported_section(sweep, repeated)
