"""
Reads broken microscope files, pictures and arrays, and counts those that do more than be refused.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.fuzz_readers

Small valid files of every format are mutated: bits flipped, runs of bytes overwritten, cut short, bytes inserted,
numbers of the header replaced by impossible ones. With them go random bytes under every ending. A read must give a
scan or one `ScanReadError` that names the file, print nothing, end within 5 s, and take less than 1 GiB.
"""

import argparse
import json
import logging
import multiprocessing
import os
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data_scripts" / "readers"))

from writers import SAMPLES

from data_scripts import Scan, ScanReadError, read_scan
from data_scripts.readers import READERS
from data_scripts.scan import MAX_PIXELS

ROOT = Path(__file__).resolve().parents[1]
RANDOM = "random"
FORMATS = (*SAMPLES, RANDOM)
NUM_RANDOM = 1000  # strings an ending
TIME_LIMIT = 5.0
MEMORY_LIMIT = 2**30
HUGE = (100_000, 2**31 - 1, -1, 2**32 - 1, 2**16 - 1, 0)
HEADER = 700  # bytes: where most of what is not heights stands
DIRECTIONS = ("forward", "forward", "backward", "backward/down")
SAME_READER = {".jpeg": "jpg", ".tiff": "tif", ".z_mtrx": "matrix-alone", ".dat": "createc"}


@dataclass(frozen=True)
class Case:
    """Files that lie beside each other, the first of which is read."""

    files: dict[str, bytes]
    direction: str


@dataclass
class Tally:
    """What became of the reads of one format."""

    name: str
    reads: int = 0
    scans: int = 0
    refusals: int = 0
    slowest: float = 0.0
    peak_growth: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)


def valid_files(kind: str) -> dict[str, bytes]:
    """A small valid file of a format, and what lies beside it."""
    lines, pixels = np.mgrid[:12, :16]
    return SAMPLES[kind](1e-10 * (np.sin(lines / 3) + np.cos(pixels / 2) + 0.3 * np.sin(pixels / 7) + pixels / 12))


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """Somewhere in a file, more often in its header."""
    end = len(content) if rng.random() < 0.4 else min(HEADER, len(content))
    return int(rng.integers(max(1, end)))


def _flip(content: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        if content:
            content[_place(content, rng)] ^= 1 << int(rng.integers(8))


def _overwrite(content: bytearray, rng: np.random.Generator) -> None:
    start, length = _place(content, rng), int(rng.integers(1, 33))
    run = (b"\xff" * length, bytes(length), rng.bytes(length))[int(rng.integers(3))]
    content[start : start + length] = run[: len(content) - start]


def _truncate(content: bytearray, rng: np.random.Generator) -> None:
    del content[_place(content, rng) :]


def _insert(content: bytearray, rng: np.random.Generator) -> None:
    start = _place(content, rng)
    content[start:start] = rng.bytes(int(rng.integers(1, 65))) if rng.random() < 0.5 else content[: start // 2]


def _enlarge(content: bytearray, rng: np.random.Generator) -> None:
    """Replaces a number, one of those written in digits or one in binary."""
    number = HUGE[int(rng.integers(len(HUGE)))]
    written = list(re.finditer(rb"\d+", bytes(content[: 2 * HEADER])))
    if written and rng.random() < 0.5:
        found = written[int(rng.integers(len(written)))]
        content[found.start() : found.end()] = str(number).encode()
        return
    size = int(rng.choice([2, 4, 4, 8]))
    start = _place(content, rng)
    if rng.random() < 0.5:
        start -= start % 4
    raw = (number % 2 ** (8 * size)).to_bytes(size, "little" if rng.random() < 0.6 else "big")
    content[start : start + size] = raw[: len(content) - start]


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip,
    _overwrite,
    _truncate,
    _insert,
    _enlarge,
    _enlarge,
)


def with_checksums(content: bytes) -> bytes:
    """A PNG whose checksums are right again: else it would be refused for these alone."""
    whole, place = bytearray(content), 8
    while place + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        end = place + 8 + length
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)


class Maker:
    """Makes the cases of one format, each from the seed and its number alone."""

    def __init__(self, kind: str, count: int, num_random: int, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self.endings = sorted(READERS)
        self.num_cases = num_random * len(self.endings) if kind == RANDOM else count
        self.valid = valid_files(kind) if kind != RANDOM else {}
        if kind == RANDOM:
            kinds = {ending: SAME_READER.get(ending, ending[1:]) for ending in self.endings}
            self.starts = {ending: next(iter(valid_files(kind).values()))[:64] for ending, kind in kinds.items()}

    def __call__(self, number: int) -> Case:
        rng = np.random.default_rng([self.seed, zlib.crc32(self.kind.encode()), number])
        direction = DIRECTIONS[int(rng.integers(len(DIRECTIONS)))]
        if self.kind == RANDOM:
            ending = self.endings[number % len(self.endings)]
            start = self.starts[ending][: int(rng.integers(65))] if rng.random() < 0.5 else b""
            return Case({f"scan{ending}": start + rng.bytes(int(rng.integers(1, 2000)))}, direction)
        files = dict(self.valid)
        name = list(files)[int(rng.integers(len(files)))]
        content = bytearray(files[name])
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](content, rng)
        mutated = bytes(content)
        files[name] = with_checksums(mutated) if name.endswith(".png") and rng.random() < 0.7 else mutated
        return Case(files, direction)


def put(case: Case, folder: Path) -> Path:
    """Writes the files of a case; returns the one to be read."""
    for name, content in case.files.items():
        (folder / name).unlink(missing_ok=True)  # an array may still be mapped
        (folder / name).write_bytes(content)
    return folder / next(iter(case.files))


def judge_scan(scan: Scan) -> str | None:
    """What is wrong with a scan; `None` if nothing."""
    lines = scan.lines
    if lines.dtype != np.float32 or lines.ndim != 2 or not 0 < lines.size <= MAX_PIXELS:
        return f"a scan of shape {lines.shape} in {lines.dtype}"
    if np.isinf(lines).any() or not np.isfinite(lines).any():
        return "a scan with infinite heights, or with none"
    if scan.size_nm is not None and not all(0 < side < np.inf for side in scan.size_nm):
        return f"a scan of {scan.size_nm} nm"
    return None


def read_once(path: Path, direction: str) -> tuple[str, str | None]:
    """`"scan"` or `"refusal"` and what is wrong, `None` if nothing."""
    try:
        return "scan", judge_scan(read_scan(path, direction=direction))
    except ScanReadError as error:
        message = str(error)
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "refusal", f"asked for more memory than there is: {message}"
            cause = cause.__cause__
        if not message.startswith(f"{path}: ") or "\n" in message or not message.endswith((".", "?")):
            return "refusal", f"a message that is not one clear line: {message!r}"
        return "refusal", None
    except BaseException as error:
        return "refusal", f"{type(error).__name__}: {error}"


def _work(make: Maker, numbers: range, folder: Path, pipe: Connection) -> None:
    """In a process of its own: reads the cases one after the other, and sends what became of each."""
    logging.disable(logging.CRITICAL)
    printed = (folder / "printed.txt").open("ab+", buffering=0)
    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    warned: list[str] = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, category, *_, **__: warned.append(f"{category.__name__}: {message}")
    page = resource.getpagesize()
    size, resident = (page * int(pages) for pages in Path("/proc/self/statm").read_text().split()[:2])
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_LIMIT, resource.RLIM_INFINITY))
    pipe.send(None)
    for number in numbers:
        case = make(number)
        path = put(case, folder)
        began = time.perf_counter()
        outcome, wrong = read_once(path, case.direction)
        seconds = time.perf_counter() - began
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
        sys.stdout.flush()
        sys.stderr.flush()
        if wrong is None and printed.seek(0, os.SEEK_END):
            printed.seek(0)
            wrong = f"printed {printed.read(500)!r}"
        if wrong is None and warned:
            wrong = f"warned: {warned[0]}"
        if wrong is None and seconds > TIME_LIMIT:
            wrong = f"took {seconds:.1f} s"
        if wrong is None and growth > MEMORY_LIMIT:
            wrong = f"took {growth / 2**20:.0f} MiB"
        printed.truncate(0)
        warned.clear()
        pipe.send((outcome, wrong, seconds, growth))
    os._exit(0)


def fuzz(make: Maker, output: Path, advance: Callable[[], None] = lambda: None) -> Tally:
    """
    Reads all cases of a format.

    Args:
        make: the cases.
        output: folder that the files of failed reads are kept in.
        advance: called after every read.

    Returns:
        What became of them.
    """
    tally = Tally(make.kind)
    forking = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="fuzz_readers_") as name:
        while tally.reads < make.num_cases:
            receiving, sending = forking.Pipe(duplex=False)
            worker = forking.Process(
                target=_work, args=(make, range(tally.reads, make.num_cases), Path(name), sending), daemon=True
            )
            worker.start()
            sending.close()
            try:
                receiving.recv()
                while tally.reads < make.num_cases:
                    if receiving.poll(TIME_LIMIT + 1):
                        outcome, wrong, seconds, growth = receiving.recv()
                    else:
                        worker.kill()
                        outcome, wrong, seconds, growth = "refusal", f"does not end within {TIME_LIMIT:g} s", 0.0, 0
                        tally.slowest = max(tally.slowest, TIME_LIMIT)
                    _count(tally, make, output, outcome, wrong)
                    tally.slowest = max(tally.slowest, seconds)
                    tally.peak_growth = max(tally.peak_growth, growth)
                    advance()
            except EOFError:  # the process ended on a read, or was killed for one
                worker.join()
                if worker.exitcode != -9:
                    _count(tally, make, output, "refusal", f"the process died ({worker.exitcode})")
                    advance()
            finally:
                worker.kill()
                worker.join()
                receiving.close()
    return tally


def _count(tally: Tally, make: Maker, output: Path, outcome: str, wrong: str | None) -> None:
    number = tally.reads
    tally.reads += 1
    if wrong is None:
        tally.scans += outcome == "scan"
        tally.refusals += outcome == "refusal"
        return
    folder = output / f"{make.kind}_{make.seed}_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    case = make(number)
    tally.failures.append({"path": str(put(case, folder)), "direction": case.direction, "wrong": wrong})


def show(tallies: Sequence[Tally], console: Console) -> None:
    """The table, and every failure with its file."""
    table = Table(title="Reads of broken files")
    table.add_column("format", no_wrap=True)
    for heading in ("reads", "scans", "refusals", "failures", "slowest, ms", "peak, MiB"):
        table.add_column(heading, justify="right")
    for tally in tallies:
        counts = (tally.reads, tally.scans, tally.refusals, len(tally.failures))
        peak = tally.peak_growth / 2**20
        table.add_row(tally.name, *(f"{count:,}" for count in counts), f"{1e3 * tally.slowest:.0f}", f"{peak:.0f}")
    console.print(table)
    for tally in tallies:
        for failure in tally.failures:
            console.print(
                f"{failure['path']} ({failure['direction']}): {failure['wrong']}", markup=False, soft_wrap=True
            )


def main() -> int:
    """Mutates, reads, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutations a format (10000)")
    parser.add_argument("--num_random", type=int, default=NUM_RANDOM, help=f"random strings an ending ({NUM_RANDOM})")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (0)")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one; may be given again (all)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "fuzz_readers", help="folder for the files of failed reads"
    )
    parser.add_argument("--json", type=Path, help="JSON file to write the numbers to")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.num_random < 1:
        parser.error("--count and --num_random must be at least 1.")

    console = Console()
    tallies = []
    for kind in arguments.format or FORMATS:
        make = Maker(kind, arguments.count, arguments.num_random, arguments.seed)
        steps = iter(track(range(make.num_cases), description=f"{kind:>12}", console=console, transient=True))
        tallies.append(fuzz(make, arguments.output, lambda steps=steps: next(steps, None)))
        for _ in steps:  # takes the bar away
            pass
    show(tallies, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(tally) for tally in tallies], indent=2) + "\n")
    return int(any(tally.failures for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
