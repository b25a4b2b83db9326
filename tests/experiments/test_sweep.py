"""Many runs of one kind: which, each once, whatever happens in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configuration import ConfigurationError, parse_arguments
from experiments import launch
from experiments.sweep import SWEEPS, Sweep, as_flags, main

ROOT = Path(__file__).parents[2]
# in place of a training: notes each start and each end, goes on from its checkpoint, and fails where it is told to
SCRIPT = """
import json, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
rate = float(sys.argv[sys.argv.index("--learning_rate") + 1])
if rate == 13 and not (folder.parent / "mended").exists():
    sys.exit("no such luck")
done = len(list(folder.glob("checkpoint-*")))
assert (done > 0) == ("--resume_from_checkpoint" in sys.argv)
for step in range(done, 3):
    time.sleep(0.1)
    with (folder.parent / "steps.txt").open("a") as file:
        file.write(f"{folder.name} {step}\\n")
    (folder / f"checkpoint-{step}").mkdir()
    (folder / f"checkpoint-{step}" / "trainer_state.json").touch()
accuracy = 1 - abs(rate - 0.3)
figures = {"balanced_accuracy": accuracy, "auroc": accuracy}
(folder / "summary.json").write_text(json.dumps({"validation": {"whole": figures}}))
"""


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    monkeypatch.setattr(launch, "SCRIPT", path)
    monkeypatch.setattr("experiments.sweep.analyze", lambda arguments: 0)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return path


def write(tmp_path, **content) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def steps(work_dir: Path) -> list[str]:
    return (work_dir / "steps.txt").read_text().splitlines()


class TestFiles:
    @pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_that_come_along_make_runs(self, path, tmp_path):
        sweep = Sweep.read(path.stem)
        runs = sweep.runs(tmp_path, None, ["--dataset", "simulated"])
        assert len({run.folder for run in runs}) == len(runs) == len(sweep.configurations) * len(sweep.seeds)
        for run in runs:
            model, _, _ = parse_arguments(["--output_dir", str(tmp_path), *run.arguments])
            model.config_class()(**model.config_overrides)

    def test_the_logs_eight_configurations_are_there_by_name(self):
        expected = {
            "no_wd_control": (0.0, 0.1), "baseline": (0.01, 0.1), "wd05_drop10": (0.05, 0.1),
            "wd10_drop15": (0.1, 0.15), "wd01_drop15": (0.01, 0.15), "wd05_drop15": (0.05, 0.15),
            "wd01_drop20": (0.01, 0.2), "wd05_drop20": (0.05, 0.2),
        }  # fmt: skip
        found = {
            name: (options["weight_decay"], options["config_overrides"]["hidden_dropout_prob"])
            for name, options in Sweep.read("regularization").configurations.items()
        }
        assert found == expected

    def test_a_grid_is_every_combination(self, tmp_path):
        sweep = Sweep.read(
            write(
                tmp_path, recipe="causal_small", seeds=[1, 2], options={"weight_decay": 0.1},
                grid={"learning_rate": [0.1, 0.2], "config_overrides.num_hidden_layers": [2, 3]},
            )
        )  # fmt: skip
        assert list(sweep.configurations) == [
            f"learning_rate_{rate}_num_hidden_layers_{layers}" for rate in (0.1, 0.2) for layers in (2, 3)
        ]
        options = sweep.configurations["learning_rate_0.2_num_hidden_layers_3"]
        assert options["weight_decay"] == 0.1 and options["learning_rate"] == 0.2
        # the recipe's other entries stay
        assert options["config_overrides"]["num_hidden_layers"] == 3
        assert options["config_overrides"]["hidden_size"] == 128
        assert len(sweep.runs(tmp_path, None, [])) == 8

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ({"recipe": "causal"}, "give one of grid, runs and search"),
            ({"recipe": "causal", "grid": {"learning_rate": 1}}, "grid must map options to lists"),
            ({"recipe": "causal", "runs": [1]}, "runs must map names to options"),
            ({"recipe": "no_such", "runs": {"one": {}}}, "no such recipe"),
            ({"recipes": "causal", "runs": {}}, "unknown recipes"),
            ({"runs": {"one": 3}}, "runs: one must map names to options"),
            ({"runs": {"one": {}}, "options": [1]}, "options must map names to options"),
            ({"runs": {"one": {}}, "seeds": 42}, "seeds must be a list of whole numbers, got 42"),
        ],
    )
    def test_what_is_no_sweep_is_refused(self, content, reason, tmp_path):
        with pytest.raises(ConfigurationError, match=reason):
            Sweep.read(write(tmp_path, **content))

    def test_a_run_without_options_is_the_recipe_as_it_is(self, tmp_path):
        sweep = Sweep.read(write(tmp_path, recipe="causal_small", runs={"base": None, "wide": {"weight_decay": 0.1}}))
        assert sweep.configurations["base"] == {"config": "causal_small"}

    def test_an_unknown_name_tells_the_known_ones(self):
        with pytest.raises(ConfigurationError, match="There are: class_weights, layers"):
            Sweep.read("no_such")

    def test_flags(self):
        options = {"a": True, "b": [1, 2], "c": {"d": 1}, "e": None, "f": 0.1}
        assert as_flags(options) == ["--a", "true", "--b", "1", "2", "--c", '{"d": 1}', "--f", "0.1"]


class TestRuns:
    def test_each_is_carried_out_once(self, tmp_path):
        command = [write(tmp_path, grid={"learning_rate": [0.1, 0.2]}), "--work_dir", str(tmp_path / "runs")]
        assert main(command) == main([*command, "--jobs", "2"]) == 0
        assert sorted(steps(tmp_path / "runs")) == [
            f"learning_rate_{rate}_seed42 {step}" for rate in (0.1, 0.2) for step in range(3)
        ]

    def test_one_of_them_as_in_an_array(self, tmp_path, monkeypatch):
        command = [write(tmp_path, grid={"learning_rate": [0.1, 0.2]}), "--work_dir", str(tmp_path / "runs")]
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
        assert main(command) == 0
        assert set(steps(tmp_path / "runs")) == {f"learning_rate_0.2_seed42 {step}" for step in range(3)}
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
        assert main(command) == 2

    def test_one_that_failed_is_told_and_tried_again_on_request(self, tmp_path, capsys):
        work_dir = tmp_path / "runs"
        command = [write(tmp_path, grid={"learning_rate": [13.0, 0.2]}), "--work_dir", str(work_dir)]
        assert main(command) == 1
        assert "learning_rate_13.0_seed42 ended with status 1" in capsys.readouterr().out
        assert main(command) == 1
        assert "learning_rate_13.0_seed42 failed before" in capsys.readouterr().out
        assert main([*command, "--list"]) == 0
        assert "failed" in capsys.readouterr().out
        (work_dir / "mended").touch()
        assert main([*command, "--retry"]) == main(command) == 0
        assert len(steps(work_dir)) == 6

    def test_killed_at_any_moment_no_run_is_lost_and_none_repeated(self, tmp_path, script):
        work_dir = tmp_path / "runs"
        path = write(tmp_path, grid={"learning_rate": [0.1, 0.2, 0.3, 0.4]})
        code = (
            "import sys; from pathlib import Path; from experiments import launch, sweep\n"
            f"launch.SCRIPT = Path({str(script)!r}); sweep.analyze = lambda arguments: 0\n"
            f"sys.exit(sweep.main([{path!r}, '--work_dir', {str(work_dir)!r}, '--jobs', '2']))"
        )
        delays = random.Random(0)
        for attempt in range(6):
            process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while not work_dir.is_dir() and time.monotonic() < deadline:
                time.sleep(0.02)
            if attempt == 5:
                assert process.wait(60) == 0
                break
            time.sleep(delays.uniform(0, 0.4) if attempt else 0.15)
            os.kill(process.pid, signal.SIGKILL)  # its runs live on for a while
            process.wait()
        assert sorted(steps(work_dir)) == [
            f"learning_rate_{rate}_seed42 {step}" for rate in (0.1, 0.2, 0.3, 0.4) for step in range(3)
        ]
        assert len(list(work_dir.glob("*/summary.json"))) == 4

    def test_a_folder_in_brackets_is_shown_as_it_is(self, tmp_path, capsys):
        work_dir = tmp_path / "runs [new]"
        assert main([write(tmp_path, grid={"learning_rate": [13.0]}), "--work_dir", str(work_dir)]) == 1
        assert f"see {work_dir}" in capsys.readouterr().out


class TestSearch:
    def test_goes_on_where_it_stopped_and_finds_what_is_best(self, tmp_path, capsys):
        pytest.importorskip("optuna")
        work_dir = tmp_path / "runs"
        search = {"learning_rate": {"low": 0.0, "high": 1.0}, "weight_decay": {"choices": [0.0, 0.1]}}
        command = [write(tmp_path, search=search), "--work_dir", str(work_dir), "--trials"]
        assert main([*command, "2"]) == 0
        assert main([*command, "4"]) == 0
        assert len(list(work_dir.glob("trial_*/summary.json"))) == 4 and len(steps(work_dir)) == 12
        asked = [json.loads(path.read_text()) for path in sorted(work_dir.glob("trial_*.arguments.json"))]
        rates = [float(flags[flags.index("--learning_rate") + 1]) for flags in asked]
        best = min(rates, key=lambda rate: abs(rate - 0.3))
        assert f"best: trial {rates.index(best)}," in capsys.readouterr().out

    def test_proposes_the_same_whether_it_was_stopped_or_not(self, tmp_path):
        pytest.importorskip("optuna")
        path = write(tmp_path, search={"learning_rate": {"low": 0.0, "high": 1.0}, "rotation": {"choices": [0, 90]}})
        for name, stops in (("stopped", ("1", "2", "3")), ("whole", ("3",))):
            for trials in stops:
                assert main([path, "--work_dir", str(tmp_path / name), "--trials", trials]) == 0
        asked = [
            [path.read_text() for path in sorted((tmp_path / name).glob("trial_*.arguments.json"))]
            for name in ("stopped", "whole")
        ]
        assert asked[0] == asked[1] and len(set(asked[0])) == 3

    @pytest.mark.parametrize("option", [["--jobs", "2"], ["--retry"], ["--index", "0"], ["--seeds", "42", "43"]])
    def test_what_a_search_has_no_use_for_is_refused(self, option, tmp_path, capsys):
        path = write(tmp_path, search={"learning_rate": {"low": 0.0, "high": 1.0}})
        assert main([path, "--trials", "1", "--work_dir", str(tmp_path / "runs"), *option]) == 2
        assert (
            f"{option[0].removeprefix('--')}: a search" in capsys.readouterr().err and not (tmp_path / "runs").exists()
        )

    def test_in_an_array_or_with_several_seeds_in_its_file_it_is_refused_too(self, tmp_path, monkeypatch, capsys):
        search = {"learning_rate": {"low": 0.0, "high": 1.0}}
        command = ["--trials", "1", "--work_dir", str(tmp_path / "runs")]
        assert main([write(tmp_path, search=search, seeds=[42, 43]), *command]) == 2
        assert "seeds: a search" in capsys.readouterr().err
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
        assert main([write(tmp_path, search=search), *command]) == 2
        assert "SLURM_ARRAY_TASK_ID" in capsys.readouterr().err and not (tmp_path / "runs").exists()

    def test_what_cannot_be_searched_is_refused(self, tmp_path, capsys):
        pytest.importorskip("optuna")
        command = [write(tmp_path, search={"learning_rate": {"low": 1}}), "--work_dir", str(tmp_path / "runs")]
        assert main(command) == 2
        assert "wants choices, or low and high" in capsys.readouterr().err

    def test_is_not_begun_where_its_runs_are_to_be_listed(self, tmp_path, capsys):
        command = [write(tmp_path, search={"learning_rate": {"low": 0.0, "high": 1.0}}), "--trials", "1", "--list"]
        assert main([*command, "--work_dir", str(tmp_path / "runs")]) == 2
        assert "--list" in capsys.readouterr().err and not (tmp_path / "runs").exists()
