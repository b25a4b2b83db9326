"""
How long a line takes in a stream, against running the model again on all lines so far.

    OMP_NUM_THREADS=1 python -m benchmarks.streaming                     # the released model
    OMP_NUM_THREADS=1 python -m benchmarks.streaming --model runs/mine --output_dir elsewhere

On noise, as speed does not depend on what is seen; no tip change is ever found, so that no stream starts anew. Stream
and recomputation take turns line by line, so that a busy machine slows both. Wall time is what an operator waits; the
CPU time of the thread is shown beside it, as other processes take wall time. Then one stream of ten hours, whose
memory is watched. Writes streaming.json and .md.
"""

import os

if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # before numpy reads them

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console

from modeling_scanline import ScanlineCausalForImageClassification, ScanlineImageProcessor

from .pages import RESULTS, write

RELEASED = Path(__file__).parents[1] / "model_cards" / "scanline-causal-hsi100"
RANGES = ((1, 32), (33, 128), (129, 256), (257, 512))  # lines, both ends included
console = Console()


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds that a call takes: wall time, and CPU time of this thread."""
    wall, own = time.perf_counter(), time.thread_time()
    function()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - own)


def measure(
    model: ScanlineCausalForImageClassification, processor: ScanlineImageProcessor, rounds: int, stride: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Times by range of lines, of each way; the recomputation is done at every `stride`-th line."""
    streamer = model.streamer(processor)
    sizes = rounds, RANGES[-1][1], processor.pixels_per_line
    scans = np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)
    times: dict[str, list[tuple[int, float, float]]] = {"stream": [], "prefix": []}

    def recompute(lines: np.ndarray) -> None:
        with torch.inference_mode():
            model(**processor(lines, return_tensors="pt")).logits.softmax(-1)

    streamer.update_many(scans[0, :16])  # what is slow the first time only
    recompute(scans[0, :16])
    for scan in scans:
        streamer.reset()
        for number, line in enumerate(scan, start=1):
            times["stream"].append((number, *timed(lambda line=line: streamer.update(line))))  # type: ignore[misc]
            if number % stride == 0:
                prefix = scan[:number]
                times["prefix"].append((number, *timed(lambda prefix=prefix: recompute(prefix))))  # type: ignore[misc]
    return {
        way: {f"{low}-{high}": _figures(of_way, low, high) for low, high in RANGES} for way, of_way in times.items()
    }


def _figures(times: list[tuple[int, float, float]], low: int, high: int) -> dict[str, float]:
    chosen = np.array([row[1:] for row in times if low <= row[0] <= high])
    median, late = np.quantile(chosen, [0.5, 0.99], axis=0)
    return {"median_ms": median[0], "p99_ms": late[0], "median_cpu_ms": median[1], "p99_cpu_ms": late[1]}


def watch_memory(
    model: ScanlineCausalForImageClassification, processor: ScanlineImageProcessor, num_lines: int, seed: int
) -> dict[str, Any]:
    """Resident memory in MB while one stream goes on, after its first tenth and at the most from there on."""
    streamer = model.streamer(processor)
    rng, process = np.random.default_rng(seed), psutil.Process()
    samples = []
    for number in range(num_lines):
        streamer.update(rng.standard_normal(processor.pixels_per_line, dtype=np.float32))
        if number % max(1, num_lines // 100) == 0:
            samples.append(process.memory_info().rss / 1e6)
    settled = samples[len(samples) // 10 :]
    return {"lines": num_lines, "after_a_tenth_mb": settled[0], "least_mb": min(settled), "most_mb": max(settled)}


def render(results: dict[str, Any]) -> str:
    """The results as a page."""
    memory = results["memory"]
    rows = [
        f"| {way} | {lines} | {f['median_ms']:.2f} | {f['p99_ms']:.2f} | {f['median_cpu_ms']:.2f} | "
        f"{f['p99_cpu_ms']:.2f} |"
        for way, of_way in results["times"].items()
        for lines, f in of_way.items()
    ]
    return "\n".join(
        [
            "# A line in a stream\n",
            f"`python -m benchmarks.streaming`: {results['model']}, {results['num_parameters'] / 1e6:.1f} M "
            f"parameters, float32, one thread of {results['machine']}, {results['rounds']} scans of {RANGES[-1][1]} "
            f"lines of {results['pixels_per_line']} pixels, with the search for tip changes and the comparison with "
            f"scans of training; load of the machine {results['load']:.1f}.\n",
            "| way | lines | median, ms | 99th percentile, ms | median, ms of CPU | 99th percentile, ms of CPU |",
            "|---|---|---|---|---|---|",
            *rows,
            f"\n{memory['lines']} lines in one stream: {memory['after_a_tenth_mb']:.1f} MB after a tenth of them, "
            f"then {memory['least_mb']:.1f} to {memory['most_mb']:.1f} MB.\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=RELEASED, help="folder of a causal model (the released one)")
    parser.add_argument("--rounds", type=int, default=3, help="scans of 512 lines")
    parser.add_argument("--stride", type=int, default=16, help="lines between recomputations, at most 32")
    parser.add_argument("--memory_lines", type=int, default=36_000, help="lines of the long stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not 1 <= arguments.stride <= RANGES[0][1]:
        parser.error(f"--stride must lie in 1 to {RANGES[0][1]}, so that each range of lines has a recomputation.")
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = ScanlineCausalForImageClassification.from_pretrained(arguments.model).eval()
    processor = ScanlineImageProcessor.from_pretrained(arguments.model)
    model.config.change_threshold = 1.0  # never reached: the search runs, and finds no change
    results = {
        "model": arguments.model.resolve().name,
        "num_parameters": model.num_parameters(),
        "pixels_per_line": processor.pixels_per_line,
        "machine": f"{os.cpu_count()} CPUs, torch {torch.__version__}",
        "load": psutil.getloadavg()[0],
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "times": measure(model, processor, arguments.rounds, arguments.stride, arguments.seed),
        "memory": watch_memory(model, processor, arguments.memory_lines, arguments.seed),
    }
    console.print(write("streaming", results, render, arguments.output_dir))


if __name__ == "__main__":
    main()
