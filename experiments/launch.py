"""Runs of `run_classification.py` as processes of their own: many, some at once, none twice."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

try:
    import fcntl
except ImportError:  # not a Unix: whoever starts a run twice at once has to know
    fcntl = None  # type: ignore[assignment]

from .run_folder import ARGUMENTS_FILE, SUMMARY_FILE, write_whole

SCRIPT = Path(__file__).resolve().parents[1] / "run_classification.py"
LAST_EPOCH = ("--eval_strategy", "no", "--no_load_best_model_at_end")  # nothing is chosen on what is then reported


class BusyError(RuntimeError):
    """A run that another process is at."""


@dataclass(frozen=True)
class Run:
    """
    One run.

    Attributes:
        folder: that it writes. Beside it lie `NAME.log`, what it prints; `NAME.arguments.json`; `NAME.lock`, held as
            long as its process lives, also when that has lost who started it; `NAME.failed` if it failed by itself.
        arguments: of `run_classification.py`, without `--output_dir`.
    """

    folder: Path
    arguments: tuple[str, ...]

    def beside(self, ending: str) -> Path:
        """A file beside the folder, whose name may have a point in it."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.beside("log")

    @property
    def has_failed(self) -> bool:
        """Whether it failed when it was last tried."""
        return self.beside("failed").is_file()

    def summary(self) -> dict[str, Any] | None:
        """
        How it ended, or `None` if it has not.

        Raises:
            ValueError: if the folder is of a run with other arguments, unless that failed before its first checkpoint.
        """
        asked = self.folder.with_name(ARGUMENTS_FILE.format(name=self.folder.name))
        others = asked.is_file() and json.loads(asked.read_text(encoding="utf-8")) != list(self.arguments)
        if others and not (self.has_failed and not self._has_checkpoint()):  # it refused them: they may be corrected
            raise ValueError(
                f"{self.folder}: was run with other arguments (see {asked.name}); choose another work_dir."
            )
        asked.parent.mkdir(parents=True, exist_ok=True)
        write_whole(asked, json.dumps(self.arguments))
        path = self.folder / SUMMARY_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def execute(self, environment: dict[str, str] | None = None, wait: bool = True) -> dict[str, Any]:
        """
        Runs it unless it has been, from its last checkpoint if there is one, and returns its summary.

        Args:
            environment: in addition to this process's.
            wait: whether to wait for another process that is at it.

        Raises:
            RuntimeError: if it fails; the message names its log.
            BusyError: if another process is at it, and `wait` is not set.
        """
        summary = self.summary()
        if summary is None:
            with self._locked(wait) as lock:
                summary = self.summary() or self._carry_out(environment, lock)
        return summary

    @contextlib.contextmanager
    def _locked(self, wait: bool) -> Iterator[int | None]:
        """The descriptor of a lock that whoever inherits it holds on to; `None` where there are no such locks."""
        if fcntl is None:
            yield None
            return
        with self.beside("lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise BusyError(f"{self.folder.name}: another process is at it.") from None
            yield file.fileno()

    def _has_checkpoint(self) -> bool:
        return any(self.folder.glob("checkpoint-*/trainer_state.json"))

    def _carry_out(self, environment: dict[str, str] | None, lock: int | None) -> dict[str, Any]:
        command = [sys.executable, str(SCRIPT), "--output_dir", str(self.folder), *self.arguments]
        if self._has_checkpoint():
            command += ["--resume_from_checkpoint", "true"]
        self.beside("failed").unlink(missing_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, **(environment or {})},
                pass_fds=() if lock is None else (lock,),
            ).returncode
        if code:
            if code > 0:  # not one that was stopped by a signal, as by Ctrl-C: it goes on the next time
                self.beside("failed").write_text(f"status {code}\n", encoding="utf-8")
            raise RuntimeError(f"{self.folder.name} ended with status {code}; see {self.log}.")
        summary = self.summary()
        assert summary is not None, f"{self.folder}: ended without {SUMMARY_FILE}"
        return summary


def execute_all(runs: Sequence[Run], jobs: int, console: Console) -> list[str]:
    """
    Executes runs, `jobs` at once, each with its share of the cores, and the accelerators in turn.

    Those that another process is at come last: commands that share their runs share the work.

    Returns:
        What failed, a sentence each; the other runs are carried out nevertheless.
    """
    slots: SimpleQueue[dict[str, str]] = SimpleQueue()
    for environment in _environments(jobs):
        slots.put(environment)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    busy, failures = [], []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("runs", total=len(runs))

        def execute(run: Run, wait: bool) -> None:
            environment = slots.get()
            try:
                run.execute(environment, wait)
            except BusyError:
                busy.append(run)
                return
            except (RuntimeError, ValueError) as error:
                failures.append(str(error))
            finally:
                slots.put(environment)
            progress.advance(task)

        list(pool.map(partial(execute, wait=False), runs))
        list(pool.map(partial(execute, wait=True), busy))
    return failures


def _environments(jobs: int) -> Iterable[dict[str, str]]:
    count = torch.cuda.device_count()
    # those that this process may use, which are not the first ones of the machine where somebody has chosen
    chosen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    accelerators = (chosen or [str(number) for number in range(count)])[:count]
    for job in range(jobs):
        environment = {}
        if jobs > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        if accelerators:
            environment["CUDA_VISIBLE_DEVICES"] = accelerators[job % len(accelerators)]
        yield environment
