"""
Plants copies among simulated scans and counts which of them the leakage report finds.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.leakage

A copy is the same surface under the same tip: cut from the larger simulated scan a few pixels away, mirrored and
turned at random, with another power of the heights, gain and offset, and with noise on top.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data_scripts.near_duplicates import THRESHOLD, TRANSFORMATIONS, find_near_duplicates, transform
from data_scripts.simulation import SimulationOptions, simulate

SIZE = 128


def plant_copy(
    scan: np.ndarray, transformation: int, shift: tuple[int, int], noise: float, rng: np.random.Generator
) -> np.ndarray:
    """
    A near-duplicate of the middle of a larger scan.

    Args:
        scan: heights `[num_lines, pixels]`.
        transformation: index into `TRANSFORMATIONS`.
        shift: lines and pixels that the copy is cut away from the middle.
        noise: standard deviation of the noise, as a share of that of the heights without tilt and line offsets.
        rng: draws the contrast and the noise.

    Returns:
        Heights `[128, 128]` in float32, in another unit.
    """
    margin = (scan.shape[0] - SIZE) // 2
    cut = scan[margin + shift[0] :, margin + shift[1] :][:SIZE, :SIZE].astype(np.float64)
    low, high = cut.min(), cut.max()
    cut = ((cut - low) / (high - low)) ** np.exp(rng.uniform(-0.5, 0.5))
    flat = cut - cut.mean(axis=1, keepdims=True) - cut.mean(axis=0) + cut.mean()
    cut = cut + noise * flat.std() * rng.standard_normal(cut.shape)
    cut = rng.uniform(0.1, 10) * cut + rng.normal(0, 10)
    return transform(torch.from_numpy(cut.astype(np.float32)), transformation).numpy()


def main() -> None:
    """Plants, finds, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_scans", type=int, default=5000, help="scans in all, copies included (5000)")
    parser.add_argument("--num_copies", type=int, default=200, help="how many of them are copies of others (200)")
    parser.add_argument("--max_shift", type=int, default=8, help="largest shift of a copy in pixels of 128 (8)")
    parser.add_argument("--noise", type=float, default=0.0, help="noise of a copy, in standard deviations (0)")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help=f"least similarity ({THRESHOLD})")
    parser.add_argument("--seed", type=int, default=0, help="of the scans and the copies (0)")
    parser.add_argument("--output", type=Path, help="JSON file to write the numbers to")
    arguments = parser.parse_args()
    if not 0 < arguments.num_copies <= arguments.num_scans // 2:
        parser.error("--num_copies must be at least 1 and at most half of --num_scans.")

    rng = np.random.default_rng(arguments.seed)
    margin = arguments.max_shift
    num_originals = arguments.num_scans - arguments.num_copies
    size = SIZE + 2 * margin
    options = SimulationOptions(seed=arguments.seed)
    larger = simulate(num_originals, options, pixels_per_line=size, num_lines=size).lines
    scans = [larger[:, margin : margin + SIZE, margin : margin + SIZE]]
    chosen = rng.choice(num_originals, arguments.num_copies, replace=False)
    planted = {}
    for number, original in enumerate(chosen.tolist()):
        transformation = number % len(TRANSFORMATIONS)
        row, column = rng.integers(-margin, margin + 1, 2).tolist()
        copy = plant_copy(larger[original], transformation, (row, column), arguments.noise, rng)
        scans.append(copy[None])
        planted[original, num_originals + number] = transformation
    lines = torch.from_numpy(np.concatenate(scans))
    del larger, scans

    console = Console()
    started = time.perf_counter()
    # all that was compared in detail: the threshold is applied below, and the time is the same
    found = find_near_duplicates(lines, 0.0)
    seconds = time.perf_counter() - started
    pairs = [(int(first), int(second)) for first, second in found.pairs]
    similarity = dict(zip(pairs, found.similarity.tolist(), strict=True))
    of_planted = np.array([similarity.get(pair, 0.0) for pair in planted])
    of_others = np.array([value for pair, value in similarity.items() if pair not in planted])
    turned = dict(zip(pairs, found.transformations.tolist(), strict=True))
    hits = [pair for pair, value in zip(planted, of_planted, strict=True) if value >= arguments.threshold]
    result = {
        "num_scans": len(lines),
        "num_copies": len(planted),
        "max_shift": margin,
        "noise": arguments.noise,
        "seed": arguments.seed,
        "threshold": arguments.threshold,
        "found": len(hits),
        "found_with_right_transformation": sum(turned[pair] == planted[pair] for pair in hits),
        "false_pairs": int((of_others >= arguments.threshold).sum()),
        "least_similarity_of_copies": round(float(of_planted.min()), 4),
        "largest_similarity_of_others": round(float(of_others.max(initial=0)), 4),
        "pairs_compared_in_detail": len(found),
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
    }
    table = Table(title="Planted near-duplicates")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
