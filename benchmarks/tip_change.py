"""
Where the tip changed: recall and precision within some lines, delay, and false alarms.

    python -m benchmarks.tip_change --data_dir path/to/SPM-Toolbox --split_file path/to/run/split.json

Two kinds of scans with a known change: real scans of one session, spliced, and simulated scans. The detector is fitted
on splices within the training sessions of the split, and on one stream of simulated scans; everything shown is of
splices within its validation sessions, and of another stream. The threshold is the one that leaves a stated number of
false alarms per 100 unchanged scans of the fit. Writes tip_change.json, with the weights that
`experiments.release --tip_change` ships, and tip_change.md.
"""

import argparse
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from scipy.ndimage import maximum_filter1d
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from data_scripts.splits import Split
from modeling_scanline.change_scanline import LINES_AFTER, LINES_BEFORE, NEIGHBOURS, ChangeDetector, change_features

from .pages import RESULTS, write
from .streams import NUM_LINES, SIMULATION, WIDTH, Scans, load

METRIC = Path(__file__).parents[1] / "metrics" / "tip_change"
FIGURES = ("changes", "unchanged_scans", "recall", "precision", "median_delay", "false_alarms_per_100")
TOLERANCE = 3  # lines
BUDGETS = (2.0, 5.0, 10.0)  # false alarms per 100 scans without a change
SHIPPED_BUDGET = 10.0  # in the fit, most of them on simulated defects; real clear scans give far fewer
KEPT = 0.25  # of the lines without a change, in the fit
console = Console()


def fit(scans: Scans, seed: int = 0) -> list[float]:
    """Weights of the features, and the constant."""
    rng = np.random.default_rng(seed)
    rows, targets = [], []
    for lines, changes in zip(scans.lines, scans.changes, strict=True):
        candidates = np.arange(LINES_BEFORE, NUM_LINES - LINES_AFTER + 1)
        distance = np.abs(candidates[:, None] - np.array([*changes, 10**6])).min(axis=1)
        # next to a change is neither with nor without
        kept = np.flatnonzero((distance == 0) | ((distance > 2) & (rng.random(len(candidates)) < KEPT)))
        windows = sliding_window_view(lines, LINES_BEFORE + LINES_AFTER, axis=0).swapaxes(1, 2)
        rows.append(change_features(windows[kept]))
        targets.append(distance[kept] == 0)
    scaler = StandardScaler()
    standardized, target = scaler.fit_transform(np.concatenate(rows)), np.concatenate(targets)
    model = LogisticRegression(max_iter=1000).fit(standardized, target)
    weights = model.coef_[0] / scaler.scale_
    constant = model.intercept_[0] - weights @ scaler.mean_ + np.log(KEPT)
    return [*weights.tolist(), float(constant)]


def run(scans: Scans, weights: list[float], threshold: float) -> list[list[tuple[int, int]]]:
    """What a stream finds in each scan: first line of the new tip, and the line after which it is found."""
    detector = ChangeDetector(weights, threshold, WIDTH, len(scans.changes))
    found: list[list[tuple[int, int]]] = [[] for _ in scans.changes]
    for line in range(NUM_LINES):
        _, places = detector.update(scans.lines[:, line], scans.measured[:, line], line)
        for scan in np.flatnonzero(places >= 0).tolist():
            found[scan].append((int(places[scan]), line))
    return found


def score(scans: Scans, found: list[list[tuple[int, int]]]) -> dict[str, Any]:
    """Recall, precision, delay and false alarms, by the metric `tip_change`."""
    metric = evaluate.load(str(METRIC), keep_in_memory=True)
    figures = metric.compute(predictions=found, references=scans.changes, tolerance=TOLERANCE)
    return {name: figures[name] for name in FIGURES}


def find_thresholds(scans: Scans, weights: list[float]) -> dict[float, float]:
    """For each of `BUDGETS`, the probability that no more peaks in the unchanged scans exceed."""
    unchanged = scans.take(np.array([not changes for changes in scans.changes]))
    if not len(unchanged.changes):
        raise SystemExit("No scan of the fit is without a tip change: there is nothing to tell false alarms by.")
    detector = ChangeDetector(weights, 2.0, WIDTH, len(unchanged.changes))  # above any probability: never starts anew
    updates = (
        detector.update(unchanged.lines[:, line], unchanged.measured[:, line], line) for line in range(NUM_LINES)
    )
    probabilities = np.stack([np.nan_to_num(probabilities) for probabilities, _ in updates], axis=1)
    highest = maximum_filter1d(probabilities, 2 * NEIGHBOURS + 1, axis=1)
    peaks = np.sort(probabilities[(probabilities == highest) & (probabilities > 0)])[::-1]
    allowed = {budget: max(1, int(budget * len(unchanged.changes) / 100)) for budget in BUDGETS}
    # half way, so that rounding does not decide
    return {budget: float(peaks[number - 1 : number + 1].mean()) for budget, number in allowed.items()}


def render(results: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Where the tip changed\n",
        f"`python -m benchmarks.tip_change`, {results['num_fitted']} scans in the fit. A change counts as found "
        f"within ±{TOLERANCE} lines of {WIDTH} pixels; delay is in lines from the first of the new tip to the alarm. "
        "Splices join scans of different places, which makes them easier to see than a tip that changes where it is; "
        "the simulated changes keep the place.\n",
        "| scans | false alarms allowed in the fit, per 100 | changes | recall | precision | median delay | "
        "unchanged scans | false alarms per 100 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        delay = "" if row["median_delay"] is None else f"{row['median_delay']:g}"
        lines.append(
            f"| {row['scans']} | {row['budget']:g} | {row['changes']} | {row['recall']:.3f} | {row['precision']:.3f} "
            f"| {delay} | {row['unchanged_scans']} | {row['false_alarms_per_100']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="clone of SPM-Toolbox")
    parser.add_argument("--split_file", type=Path, required=True, help="split.json of a run split by sessions")
    parser.add_argument("--num_spliced", type=int, default=2400, help="splices; about a quarter is for validation")
    parser.add_argument("--num_simulated", type=int, default=1600, help="simulated scans, half for validation")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    spliced, sessions = load("spliced", arguments.num_spliced, 0, data_dir=arguments.data_dir)
    parts = Split.load(arguments.split_file).sessions
    train, validation = (spliced.take(np.isin(sessions, parts[name])) for name in ("train", "validation"))
    simulated = [
        load("simulated", arguments.num_simulated // 2, seed, simulation_surface="h-si100", **SIMULATION)[0]
        for seed in (5, 6)
    ]
    fitted = train + simulated[0]
    weights = fit(fitted)
    rows, shipped = [], 1.0
    for budget, threshold in find_thresholds(fitted, weights).items():
        shipped = threshold if budget == SHIPPED_BUDGET else shipped
        for name, scans in (("spliced, validation sessions", validation), ("simulated", simulated[1])):
            figures = score(scans, run(scans, weights, threshold))
            rows.append({"scans": name, "budget": budget, "threshold": threshold, **figures})
            console.print(rows[-1])
    results = {
        "num_fitted": len(fitted.changes),
        "rows": rows,
        "change_weights": [round(weight, 6) for weight in weights],
        "change_threshold": shipped,
    }
    write("tip_change", results, render, arguments.output_dir)


if __name__ == "__main__":
    main()
