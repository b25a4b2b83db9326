"""Which of several experiments is better, and whether anyone can tell: paired, by sessions, seeds averaged."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..intervals import Resampled, figures_by_lines, leads
from ..probabilities import Probabilities
from .record import COMPLETE, RunRecord

# in what runs of one experiment may differ
REPEATED = {"seed", "fold", "split_seed"}
# fewer sessions cannot be resampled to any purpose
MIN_SESSIONS = 5
COMPARED_LINES = ("20", "whole")


@dataclass(frozen=True)
class Experiment:
    """Runs of one recipe, which differ in seed and fold only."""

    name: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Verdict:
    """
    What the runs of an experiment say of scans that they were not trained on.

    Attributes:
        experiment: whose runs they are.
        scans: stands for the scans, their labels, and the seeds that they belong to; alike where a comparison is fair.
        figures: after each number of lines, and of whole scans; see [`figures_by_lines`].
        resampled: of resampled sessions, after `COMPARED_LINES`.
        num_scans: how many scans, in the mean over the seeds.
        num_sessions: how many sessions they come from.
        seeds: how many verdicts were averaged.
    """

    experiment: Experiment
    scans: str
    figures: dict[str, Any]
    resampled: Resampled
    num_scans: int
    num_sessions: int
    seeds: int

    @property
    def has_intervals(self) -> bool:
        """Whether there are enough sessions to tell how far chance goes."""
        return self.num_sessions >= MIN_SESSIONS


@dataclass(frozen=True)
class Difference:
    """
    How far one experiment is ahead of another on the same scans.

    Attributes:
        lines: number of lines seen, or `"whole"`.
        figure: `"balanced_accuracy"` or `"auroc"`.
        ahead: of the first; negative if it is behind.
        interval: 95 % of the difference over resampled sessions; `None` with fewer than 5 sessions.
        seeds_overlap: whether the worst seed of the better one is below the best seed of the other.
    """

    lines: str
    figure: str
    ahead: float
    interval: tuple[float, float] | None
    seeds_overlap: bool

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def group_runs(runs: Sequence[RunRecord]) -> list[Experiment]:
    """Runs of the same recipe together, in the order of their first runs; a run without a recipe stays alone."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        recipe = {name: value for name, value in run.recipe.items() if name not in REPEATED}
        groups.setdefault(json.dumps(recipe or {"run": run.name}, sort_keys=True, default=str), []).append(run)
    experiments: list[Experiment] = []
    taken: set[str] = set()
    for group in groups.values():
        stem = _common_name(group)
        name = next(
            name for name in (stem, *(f"{stem} ({n})" for n in range(2, len(groups) + 2))) if name not in taken
        )
        taken.add(name)
        experiments.append(Experiment(name, tuple(group)))
    return experiments


def _common_name(runs: Sequence[RunRecord]) -> str:
    """The name of the runs without the seed and the fold."""
    if len(runs) == 1:
        return runs[0].name
    return re.sub(r"[_/.-]?(split_seed|seed|fold)[_-]?\d+", "", runs[0].name) or runs[0].name


def judge(experiment: Experiment) -> tuple[Verdict | None, list[tuple[str, str]]]:
    """
    What an experiment's finished runs say of their validation scans: folds of a seed put together, seeds averaged.

    Returns:
        The verdict, `None` where no run has kept its probabilities, and what was left out: its name, and why.
    """
    problems: list[tuple[str, str]] = []
    read: list[tuple[tuple[str, int], Probabilities]] = []
    met: dict[tuple[str, Any], int] = {}
    for run in experiment.runs:
        if run.state != COMPLETE:
            continue
        try:
            verdict = _load(run)
        except ValueError as error:
            problems.append((run.name, str(error)))
            continue
        seed, part = json.dumps([run.options.get(name) for name in ("seed", "split_seed")]), run.options.get("fold")
        repeat = met[seed, part] = met.get((seed, part), -1) + 1
        read.append(((seed, repeat), verdict))
    seeds: dict[tuple[str, int], Probabilities] = {}
    for key, group in groupby(sorted(read, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        try:
            seeds[key] = Probabilities.concatenate([verdict for _, verdict in group])
        except ValueError as error:
            problems.append((experiment.name, str(error)))
    if len({tuple(verdict.line_counts) for verdict in seeds.values()}) > 1:
        problems.append((experiment.name, "its runs were scored after different numbers of lines."))
        return None, problems
    if not seeds:
        return None, problems
    verdicts = list(seeds.values())
    figures, resampled = figures_by_lines(verdicts, COMPARED_LINES)
    return Verdict(
        experiment,
        _scans(seeds),
        figures,
        resampled,
        num_scans=round(float(np.mean([len(verdict.labels) for verdict in verdicts]))),
        num_sessions=len(np.unique(np.concatenate([verdict.groups for verdict in verdicts]))),
        seeds=len(seeds),
    ), problems


def _load(run: RunRecord) -> Probabilities:
    """Raises `ValueError`, without a path, for probabilities that are missing or of no use."""
    try:
        verdict = Probabilities.load(run.folder)
    except ValueError as error:
        raise ValueError("kept no probabilities that can be read; left out of the comparison.") from error
    num_scans, num_labels = len(verdict.labels), len(verdict.label_names)
    shapes = {
        "scan_ids": (num_scans,),
        "groups": (num_scans,),
        "whole": (num_scans, num_labels),
        "by_lines": (len(verdict.line_counts), num_scans, num_labels),
    }
    if not num_scans or any(getattr(verdict, name).shape != shape for name, shape in shapes.items()):
        raise ValueError("its probabilities do not fit together; left out of the comparison.")
    return verdict


def _scans(seeds: dict[tuple[str, int], Probabilities]) -> str:
    """Alike for two experiments that were scored on the same scans: with all seeds, or seed by seed."""
    digests = {}
    for key, verdict in seeds.items():
        pairs = sorted(zip(verdict.scan_ids.tolist(), verdict.groups.tolist(), verdict.labels.tolist(), strict=True))
        # a class without a scan, such as one that a model has to no purpose, changes no figure
        names = verdict.label_names[np.unique(verdict.labels)].tolist()
        digests[key] = hashlib.sha256(json.dumps([names, pairs]).encode()).hexdigest()[:16]
    if len(set(digests.values())) == 1:
        return next(iter(digests.values()))
    return json.dumps(sorted(digests.items()))


def rankings(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts on the same scans together, each group best first: by balanced accuracy on whole scans."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.scans, []).append(verdict)
    return [
        sorted(group, key=lambda v: (-v.figures["whole"]["balanced_accuracy"]["mean"], v.experiment.name))
        for group in groups.values()
    ]


def compare(first: Verdict, other: Verdict) -> list[Difference]:
    """
    How far one experiment is ahead of another, after 20 lines where both know it, and on whole scans.

    Raises:
        ValueError: if they were not scored on the same scans.
    """
    if first.scans != other.scans:
        raise ValueError(f"{first.experiment.name} and {other.experiment.name} were not scored on the same scans.")
    differences = []
    both = ((verdict.figures, verdict.resampled) for verdict in (first, other))
    for lines, figure, ahead, low_high in leads(*both):
        better, worse = (first, other) if ahead >= 0 else (other, first)
        best, worst = (verdict.figures[lines][figure]["by_seed"] for verdict in (better, worse))
        differences.append(
            Difference(
                lines,
                figure,
                ahead,
                low_high if first.has_intervals else None,
                seeds_overlap=min(best) <= max(worst),
            )
        )
    return differences
