"""
How well a stream tells scans that it was not trained for: other surfaces, other instruments, other modes.

    python -m benchmarks.familiarity --data_dir path/to/SPM-Toolbox --files other/*.sxm

Fits what `experiments.release --familiarity` ships, on all scans, labelled or not: mean and spread of features that
are averaged over the lines so far, and after each number of lines the distance that 5 % of the scans of held-out
sessions exceed. How many scans of a session are flagged wrongly is measured with what the other sessions gave; other
surfaces come from the simulator, and from files, whose surface the reader of the table knows. Writes familiarity.json
and .md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold

from data_scripts import ScanReadError, read_scan
from experiments.analysis.tables import markdown_table
from modeling_scanline import ScanlineImageProcessor
from modeling_scanline.familiarity_scanline import FeatureAverages, distances

from .pages import RESULTS, write
from .streams import NUM_LINES, SIMULATION, WIDTH, Scans, load

LINE_COUNTS = (10, 20, 40, 64, 128)
ALLOWED = 0.05  # of the scans of held-out sessions, flagged
OTHER_SURFACES = ("si111-7x7", "au111", "cu111")
NUM_FOLDS = 5
console = Console()
_processor = ScanlineImageProcessor(pixels_per_line=WIDTH, max_lines=NUM_LINES, normalization="flat_line")


def averaged_features(scans: Scans) -> np.ndarray:
    """Features after each of `LINE_COUNTS`, `[counts, num_scans, features]`; NaN where a scan has fewer lines."""
    averages = FeatureAverages(WIDTH, len(scans.lines))
    after = np.full((len(LINE_COUNTS), *averages.values.shape), np.nan, np.float32)
    for line in range(scans.lines.shape[1]):
        measured = scans.measured[:, line]
        averages.update(scans.lines[:, line], measured)
        for index, count in enumerate(LINE_COUNTS):
            now = measured & (averages.num_lines == count)
            after[index, now] = averages.values[now]
    return after


def fit(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and whitening of features `[counts, num_scans, features]`, of all numbers of lines together."""
    known = features.reshape(-1, features.shape[-1])
    known = known[np.isfinite(known).all(axis=1)].astype(np.float64)
    scale = known.std(axis=0)
    precision = LedoitWolf().fit(known / scale).precision_
    return known.mean(axis=0), np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1].T / scale


def thresholds_of(held_out: np.ndarray) -> np.ndarray:
    """The distance that `ALLOWED` of the scans exceed, after each number of lines; of `[counts, num_scans]`."""
    return np.nanquantile(held_out, 1 - ALLOWED, axis=1)


def flagged(ratios: np.ndarray) -> list[float | None]:
    """Share of the scans above 1 after each number of lines, of `[counts, num_scans]`; `None` without any scan."""
    return [float((of[np.isfinite(of)] > 1).mean()) if np.isfinite(of).any() else None for of in ratios]


def read(path: Path) -> Scans:
    """A file as one scan; raises `ScanReadError` if it cannot be read."""
    inputs = _processor(read_scan(path).lines)
    return Scans(np.stack(inputs["pixel_values"]), np.stack(inputs["attention_mask"]).astype(bool), [[]])


def render(results: dict[str, Any]) -> str:
    """The results as a page."""
    rows = [
        [row["scans"], str(row["number"]), *("" if share is None else f"{share:.3f}" for share in row["flagged"])]
        for row in results["rows"]
    ]
    for row in results["files"]:
        ratios = ["" if r is None else f"**{r:.2f}**" if r > 1 else f"{r:.2f}" for r in row["ratios"]]
        rows.append([f"`{row['file']}`", "1", *ratios])
    lines = [
        "# Scans unlike those of training",
        "",
        f"`python -m benchmarks.familiarity`: fitted on {results['num_scans']} scans of {results['num_sessions']} "
        f"sessions; {ALLOWED:.0%} of the scans of held-out sessions may be flagged. Share of scans that are flagged "
        "after so many lines; of a file, its distance as a multiple of the threshold, in bold where it is flagged.",
        "",
        *markdown_table(["scans", "number", *map(str, results["line_counts"])], rows),
        "",
        "Of held-out sessions, by session: "
        f"{results['sessions_without_any']} of {results['num_sessions']} have no flagged scan after {LINE_COUNTS[-1]} "
        f"lines, the worst has {results['worst_session']:.0%}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="clone of SPM-Toolbox")
    parser.add_argument("--files", nargs="*", type=Path, default=(), help="scans of other surfaces, any format")
    parser.add_argument("--num_simulated", type=int, default=400, help="scans of each simulated surface (400)")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    real, sessions = load("hsi100", data_dir=arguments.data_dir)
    features = averaged_features(real)
    console.print(f"{len(sessions)} scans of {len(set(sessions))} sessions.")

    folds = [held for _, held in GroupKFold(NUM_FOLDS).split(sessions, groups=sessions)]
    held_out = np.full(features.shape[:2], np.nan)
    for held in folds:
        fitted = fit(np.delete(features, held, axis=1))
        held_out[:, held] = distances(features[:, held], *fitted)
    # each fold with the thresholds of the others: what they do for sessions that they have not seen
    ratios = np.full_like(held_out, np.nan)
    for held in folds:
        ratios[:, held] = held_out[:, held] / thresholds_of(np.delete(held_out, held, axis=1))[:, None]
    mean, whitening = fit(features)
    thresholds = thresholds_of(held_out)

    rows = [{"scans": "H:Si(100), sessions held out", "number": len(sessions), "flagged": flagged(ratios)}]
    for surface in ("h-si100", *OTHER_SURFACES):
        scans, _ = load("simulated", arguments.num_simulated, 9, simulation_surface=surface, **SIMULATION)
        of_surface = distances(averaged_features(scans), mean, whitening) / thresholds[:, None]
        rows.append(
            {"scans": f"simulated {surface}", "number": arguments.num_simulated, "flagged": flagged(of_surface)}
        )
    files = []
    for path in arguments.files:
        try:
            of_file = distances(averaged_features(read(path)), mean, whitening)[:, 0] / thresholds
        except ScanReadError as error:
            console.print(str(error), style="red", highlight=False, markup=False)
            continue
        files.append(
            {"file": path.name, "ratios": [float(ratio) if np.isfinite(ratio) else None for ratio in of_file]}
        )
    at_end = {session: ratios[-1, (sessions == session) & np.isfinite(ratios[-1])] > 1 for session in set(sessions)}
    shares = [of.mean() for of in at_end.values() if len(of)]
    results = {
        "num_scans": len(sessions),
        "num_sessions": len(set(sessions)),
        "allowed": ALLOWED,
        "line_counts": LINE_COUNTS,
        "rows": rows,
        "files": files,
        "sessions_without_any": int(sum(share == 0 for share in shares)),
        "worst_session": float(max(shares)),
        "familiarity_mean": [round(value, 5) for value in mean.tolist()],
        "familiarity_whitening": [round(value, 5) for value in whitening[np.tril_indices(len(mean))].tolist()],
        "familiarity_lines": LINE_COUNTS,
        "familiarity_thresholds": [round(value, 4) for value in thresholds.tolist()],
    }
    console.print(write("familiarity", results, render, arguments.output_dir))


if __name__ == "__main__":
    main()
