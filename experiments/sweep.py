"""
Runs many configurations of one kind: a sweep, an ablation, a search.

    python -m experiments.sweep regularization --extra --dataset hsi100 --data_dir path/to/SPM-Toolbox
    python -m experiments.sweep layers --seeds 42 43 44 --jobs 2 --extra …      # two runs at once
    python -m experiments.sweep layers --list                                   # what it would run, and how far it is
    python -m experiments.sweep layers --index 3 --extra …                      # the fourth only, as in a SLURM array
    python -m experiments.sweep search --trials 30 --extra …                    # Optuna proposes what to run next

A sweep is a YAML file of `configuration/sweeps`, by name or path:

    recipe: log_five_fixes                       # a recipe, or any option of run_classification.py
    seeds: [42]
    grid: {learning_rate: [1.0e-4, 1.0e-3]}      # every combination; NAME.ENTRY is an entry of an option that has some
    runs: {wide: {hidden_size: 512}}             # or by name
    search: {learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}}   # or to be searched, with --trials
    reported: {wide: {accuracy: 0.66}}           # what others reported of these runs: for experiments.log

Each run has a folder in work_dir. One that has ended is never run again; one that was stopped, however rudely, goes on
from its last checkpoint; one that failed is reported, and tried again with --retry. In the end the runs are compared.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from configuration import ConfigurationError
from configuration.command_line import SWEEPS, read_recipe

from .analyze import main as analyze
from .launch import Run, execute_all

KEYS = ("recipe", "seeds", "options", "grid", "runs", "search", "reported")
DEFAULT_SEEDS = (42,)
console = Console(markup=False)  # names may have brackets


@dataclass(frozen=True)
class Sweep:
    """
    What a file of `configuration/sweeps` says.

    Attributes:
        name: of the file.
        seeds: of each configuration.
        configurations: by name, options of `run_classification.py`; `config` is the recipe.
        search: by option, `low` and `high` (and `log`), or `choices`; empty where nothing is searched.
    """

    name: str
    seeds: tuple[int, ...]
    configurations: dict[str, dict[str, Any]]
    search: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> "Sweep":
        """Reads one, by name or path; raises `ConfigurationError` if it is none."""
        path = Path(path)
        if not path.is_file() and (SWEEPS / f"{path.name}.yaml").is_file():
            path = SWEEPS / f"{path.name}.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            names = ", ".join(sorted(each.stem for each in SWEEPS.glob("*.yaml")))
            raise ConfigurationError(f"{path}: no such sweep ({error.strerror}). There are: {names}.") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path}: not YAML ({str(error).splitlines()[0]}).") from error
        if not isinstance(content, dict) or (unknown := content.keys() - set(KEYS)):
            wrong = f"unknown {', '.join(sorted(map(str, unknown)))}" if isinstance(content, dict) else "no mapping"
            raise ConfigurationError(f"{path}: a sweep has {', '.join(KEYS)}, got {wrong}.")
        if sum(key in content for key in ("grid", "runs", "search")) != 1:
            raise ConfigurationError(f"{path}: give one of grid, runs and search.")
        common = dict(_mapping(content.get("options") or {}, f"{path}: options"))
        if "recipe" in content:
            common["config"] = content["recipe"]
        if "search" in content:
            configurations = {"": common}
        elif "grid" in content:
            configurations = {name: merged(common, options) for name, options in _combinations(content["grid"], path)}
        else:
            configurations = {}
            for name, each in _mapping(content["runs"], f"{path}: runs").items():
                options = _mapping({} if each is None else each, f"{path}: runs: {name}")  # none: the recipe as it is
                named = {"config" if key == "recipe" else key: value for key, value in options.items()}
                configurations[str(name)] = merged(common, named)
        for options in configurations.values():
            if "config" in options:
                read_recipe(options["config"])  # now, not when its turn comes
        seeds = content.get("seeds", DEFAULT_SEEDS)
        if not isinstance(seeds, (list, tuple)) or not seeds or not all(isinstance(seed, int) for seed in seeds):
            raise ConfigurationError(f"{path}: seeds must be a list of whole numbers, got {seeds!r}.")
        search = _mapping(content.get("search") or {}, f"{path}: search")
        return cls(path.stem, tuple(seeds), configurations, search)

    def runs(self, work_dir: Path, seeds: Sequence[int] | None, extra: Sequence[str]) -> list[Run]:
        """All runs: all configurations with the first seed, then all with the next."""
        return [
            Run(work_dir / f"{name}_seed{seed}", (*as_flags(options), "--seed", str(seed), *extra))
            for seed in (seeds or self.seeds)
            for name, options in self.configurations.items()
        ]


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} must map names to options, got {type(value).__name__}.")
    return value


def _combinations(grid: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    grid = _mapping(grid, f"{path}: grid")
    if not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigurationError(f"{path}: grid must map options to lists of values.")
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = "_".join(f"{option.rpartition('.')[2]}_{value}" for option, value in chosen.items())
        yield name, _nested(chosen)


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for option, value in options.items():
        outer, _, entry = option.partition(".")
        if entry:
            nested.setdefault(outer, {})[entry] = value
        else:
            nested[outer] = value
    return nested


def merged(options: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Both. Mappings are merged, too, and with those of the recipe."""
    recipe = read_recipe(config) if (config := others.get("config", options.get("config"))) else {}
    result = {**options, **others}
    for name, value in result.items():
        if isinstance(value, dict):
            known = (recipe.get(name), options.get(name), others.get(name))
            result[name] = {key: each for part in known if isinstance(part, dict) for key, each in part.items()}
    return result


def as_flags(options: dict[str, Any]) -> list[str]:
    """Options as `run_classification.py` takes them."""
    flags = []
    for name, value in options.items():
        if isinstance(value, bool):
            flags += [f"--{name}", str(value).lower()]
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


def state_of(run: Run) -> str:
    """How far it is."""
    if (run.folder / "summary.json").is_file():
        return "ended"
    if run.has_failed:
        return "failed"
    return "begun" if run.folder.is_dir() else "to run"


def print_runs(runs: Sequence[Run]) -> None:
    """The runs with their numbers, states and options."""
    table = Table("", "run", "state", "options")
    for number, run in enumerate(runs):
        table.add_row(str(number), run.folder.name, state_of(run), " ".join(run.arguments))
    console.print(table)


def carry_out(runs: Sequence[Run], jobs: int, retry: bool) -> list[str]:
    """Executes what is left of the runs; what failed, now or before, a sentence each."""
    failed = [run for run in runs if run.has_failed and not retry and state_of(run) != "ended"]
    failures = [f"{run.folder.name} failed before; see {run.log}, and try again with --retry." for run in failed]
    return failures + execute_all([run for run in runs if run not in failed], jobs, console)


def check_search(sweep: Sweep, arguments: argparse.Namespace) -> None:
    """Raises `ConfigurationError` for what a search would not heed."""
    if arguments.list:
        raise ConfigurationError(f"--list: what {sweep.name} runs is proposed when its turn comes.")
    if arguments.index is not None:
        raise ConfigurationError(
            "--index: a search has no numbered runs; leave it out, and submit a search to SLURM without --array "
            "(SLURM_ARRAY_TASK_ID)."
        )
    if arguments.jobs != 1:
        raise ConfigurationError(f"--jobs: a search runs one trial after the other, got {arguments.jobs}.")
    if arguments.retry:
        raise ConfigurationError("--retry: a search tries no trial again, it proposes others; raise --trials.")
    seeds = arguments.seeds or sweep.seeds
    if len(seeds) > 1:
        raise ConfigurationError(f"seeds: a search runs all trials with one seed, got {', '.join(map(str, seeds))}.")


def search(sweep: Sweep, arguments: argparse.Namespace) -> list[str]:
    """
    Lets Optuna propose runs until there are `trials` of them; the study is kept in `work_dir/study.db`.

    A trial is a run like any other. One that was under way when the search was stopped is the first to go on.
    """
    try:
        import optuna  # an extra
    except ImportError as error:
        raise ConfigurationError("Optuna is missing; in Scanline's folder: pip install -e '.[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{arguments.work_dir / 'study.db'}",
        study_name=sweep.name,
        load_if_exists=True,
        direction="maximize",
    )
    (common,) = sweep.configurations.values()
    failures: list[str] = []
    waiting = [trial for trial in study.get_trials(deepcopy=False) if trial.state == optuna.trial.TrialState.RUNNING]
    while True:
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if len(ended) >= arguments.trials:
            break
        if waiting:
            number, values = (waiting[0].number, waiting.pop(0).params)
        else:
            # seeded for each trial: one that was stopped goes on with the proposals of one that was not
            seed_of_trial = sweep.seeds[0] + len(study.get_trials(deepcopy=False))
            study.sampler = optuna.samplers.TPESampler(seed=seed_of_trial)
            asked = study.ask()
            number, values = asked.number, {name: _suggest(asked, name, of) for name, of in sweep.search.items()}
        options = merged(common, _nested(values))
        seed = (arguments.seeds or sweep.seeds)[0]
        run = Run(
            arguments.work_dir / f"trial_{number:03d}", (*as_flags(options), "--seed", str(seed), *arguments.extra)
        )
        console.print(f"trial {number}: {', '.join(f'{name} {value}' for name, value in values.items())}")
        failure = execute_all([run], 1, console)
        if failure:
            failures += failure
            study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            summary = run.summary()
            assert summary is not None
            study.tell(number, summary["validation"]["whole"][arguments.figure])
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == optuna.trial.TrialState.COMPLETE]
    if complete:
        best = study.best_trial
        console.print(
            f"best: trial {best.number}, {arguments.figure.replace('_', ' ')} {best.value:.3f}, {best.params}"
        )
    return failures


def _suggest(trial: Any, name: str, of: Any) -> Any:
    of = _mapping(of, f"search: {name}")
    if "choices" in of:
        return trial.suggest_categorical(name, of["choices"])
    try:
        low, high, log = of["low"], of["high"], bool(of.get("log"))
    except KeyError as error:
        raise ConfigurationError(f"search: {name} wants choices, or low and high; got {sorted(of)}.") from error
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, float(low), float(high), log=log)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="name of a file of configuration/sweeps, or path of one")
    parser.add_argument("--work_dir", type=Path, help="folder of the runs (runs/sweeps/NAME)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds, in place of those of the sweep")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    parser.add_argument("--list", action="store_true", help="run nothing, show the runs and their states")
    parser.add_argument(
        "--index",
        type=int,
        default=os.environ.get("SLURM_ARRAY_TASK_ID"),
        help="carry out this run only, from 0 (SLURM_ARRAY_TASK_ID)",
    )
    parser.add_argument("--retry", action="store_true", help="try runs again that failed")
    parser.add_argument("--trials", type=int, default=20, help="search: runs to make (20)")
    parser.add_argument(
        "--figure", default="balanced_accuracy", choices=("balanced_accuracy", "auroc"), help="search: to be maximized"
    )
    parser.add_argument(
        "--extra",
        nargs=argparse.REMAINDER,
        default=[],
        help="last: options for every run, as --dataset and --data_dir",
    )
    arguments = parser.parse_args(argv)
    try:
        sweep = Sweep.read(arguments.sweep)
        arguments.work_dir = arguments.work_dir or Path("runs") / "sweeps" / sweep.name
        if sweep.search:
            check_search(sweep, arguments)
            failures = search(sweep, arguments)
        else:
            runs = sweep.runs(arguments.work_dir, arguments.seeds, arguments.extra)
            if arguments.list:
                print_runs(runs)
                return 0
            if arguments.index is not None:
                if not 0 <= arguments.index < len(runs):
                    raise ConfigurationError(f"--index must lie in 0 to {len(runs) - 1}, got {arguments.index}.")
                runs = [runs[arguments.index]]
            failures = carry_out(runs, arguments.jobs, arguments.retry)
    except (ConfigurationError, OSError, ValueError) as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 2
    if arguments.index is None and any(arguments.work_dir.glob("*/summary.json")):
        analyze([str(arguments.work_dir)])
    for failure in failures:
        console.print(failure, style="red", highlight=False, soft_wrap=True)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
