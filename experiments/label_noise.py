"""Asks how far labels can be trusted: `python -m experiments.label_noise --help`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_scripts.command_line import parse_options, run_command
from data_scripts.source import ScanSource

from .labels.rater_model import CLEAR
from .labels.tables import print_report, to_markdown
from .labels.verdicts import combine_runs, describe_runs, draw_disagreements, write_list
from .labels.votes import (
    UNKNOWN_VOTES,
    describe_agreement,
    describe_near_duplicates,
    describe_noise,
    describe_votes,
    fit_models,
    load_votes,
    scored_labels,
)
from .probabilities import Probabilities

REPORT_FILE, MARKDOWN_FILE = "label_noise.json", "label_noise.md"
LIST_FILE, PICTURE_FILE = "disagreements.csv", "disagreements.png"
WITH_NUM_VOTES = "hsi100"

DESCRIPTION = f"""Asks how far the labels of a dataset can be trusted.

How often do people agree, what would a perfect model score against their votes, and on which scans do trained models
disagree with the label?

  the votes                      python -m experiments.label_noise --dataset hsi100 --data_dir path/to/SPM-Toolbox
  and near-identical pictures    ... --near_duplicates
  and trained models             ... --runs runs/seed_1/fold_0 runs/seed_2/fold_0 runs/seed_1/fold_1

Runs leave validation_probabilities.npz. Those on the same scans (seeds) are averaged, those on other scans (folds) are
put together. Numbers of votes are known for {WITH_NUM_VOTES} only; for other datasets there are --near_duplicates
and --runs.

Written to --output: {REPORT_FILE} (all numbers), {MARKDOWN_FILE} (the same to read), and with --runs
{LIST_FILE} (all scans, the least probable label first) and {PICTURE_FILE} (the first of them).
"""


@dataclass
class LabelNoiseArguments:
    """What to ask."""

    runs: list[str] | None = field(
        default=None, metadata={"help": "Folders of runs: list the scans on which they disagree with the label."}
    )
    part: str = field(default="validation", metadata={"help": "runs: which part's probabilities."})
    count: int = field(default=48, metadata={"help": "runs: how many scans to draw."})
    near_duplicates: bool = field(
        default=False, metadata={"help": "Also compare the labels of near-identical pictures (takes minutes)."}
    )
    num_resamples: int = field(
        default=500, metadata={"help": "Resamples of whole sessions that intervals (95 %%) are made of."}
    )
    seed: int = field(default=0, metadata={"help": "Of the resamples."})
    output: str = field(default="runs/label_noise", metadata={"help": "Folder to write to."})


def write_report(source: ScanSource, arguments: LabelNoiseArguments, console: Console) -> dict[str, Any]:
    """
    Asks everything that the dataset and the arguments allow for, writes and prints it.

    Raises:
        ValueError: for scans, votes or runs that cannot be read, or options that make no sense.
        OSError: if the report cannot be written.
    """
    if arguments.count < 1 or arguments.num_resamples < 0:
        raise ValueError("count must be at least 1 and num_resamples at least 0.")
    if source.dataset != WITH_NUM_VOTES and not arguments.runs and not arguments.near_duplicates:
        raise ValueError(
            f"numbers of votes are known for --dataset {WITH_NUM_VOTES} only; for {source.dataset} there are --runs "
            "and --near_duplicates."
        )
    # what cannot be read is told before the work
    runs = [Probabilities.load(Path(folder), arguments.part) for folder in arguments.runs or ()]
    verdicts = combine_runs(runs) if runs else None
    scans = source.load()
    names = scans.features["label"].names
    if verdicts is not None and verdicts.label_names.tolist() != names:
        raise ValueError(
            f"the runs know the classes {', '.join(verdicts.label_names)}, the dataset {', '.join(names)}."
        )
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "dataset": source.dataset,
        "label_names": names,
        "num_scans": len(scans),
        "num_resamples": arguments.num_resamples,
        "seed": arguments.seed,
        "part": arguments.part,
        "run_names": ["/".join(Path(folder).parts[-2:]) for folder in arguments.runs or ()],
        **dict.fromkeys(("votes", "agreement", "noise", "near_duplicates", "runs")),
    }
    resamples = arguments.num_resamples, arguments.seed
    num_votes_of: dict[str, int] = {}
    model = None

    def votes_on(scan_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        return np.array([num_votes_of.get(scan_id, UNKNOWN_VOTES) for scan_id in scan_ids])

    if source.dataset == WITH_NUM_VOTES:
        votes = load_votes(Path(str(source.data_dir)).expanduser())
        labels = scored_labels(scans, source.max_lines)
        scored = np.array([labels.get(scan_id, -1) for scan_id in votes.scan_ids])
        num_votes_of = dict(zip(votes.scan_ids, votes.num_votes.tolist(), strict=True))
        model = fit_models(votes, votes.kinds == CLEAR, np.ones(len(scored)))["pairs"]
        report["votes"] = describe_votes(votes, scans["scan_id"], scored)
        report["agreement"] = describe_agreement(votes, resamples)
        report["noise"] = describe_noise(votes, scored, names, resamples)
    if arguments.near_duplicates:
        known = votes_on(scans["scan_id"])
        report["near_duplicates"] = describe_near_duplicates(scans, source.max_lines, known, resamples)
    for name in (LIST_FILE, PICTURE_FILE):
        (output / name).unlink(missing_ok=True)  # of an earlier report
    if verdicts is not None:
        num_votes = votes_on(verdicts.scan_ids)
        report["runs"] = describe_runs(verdicts, num_votes, model, resamples)
        write_list(output / LIST_FILE, verdicts, num_votes)
        draw_disagreements(scans, verdicts, num_votes, arguments.count).savefig(output / PICTURE_FILE, dpi=150)
    (output / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (output / MARKDOWN_FILE).write_text(to_markdown(report), encoding="utf-8")
    print_report(report, console)
    console.print(f"Report: {output}", soft_wrap=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    source, arguments = parse_options([ScanSource, LabelNoiseArguments], "experiments.label_noise", DESCRIPTION, argv)
    return run_command(lambda: write_report(source, arguments, Console()))


if __name__ == "__main__":
    sys.exit(main())
