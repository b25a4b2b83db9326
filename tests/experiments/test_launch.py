import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from experiments import launch
from experiments.launch import Run, execute_all

SCRIPT = """
import json, os, signal, sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
if "--fail" in sys.argv:
    sys.exit("no such luck")
count = len(list(folder.glob("started*")))
(folder / f"started{count}").touch()
if "--stop" in sys.argv and count == 0:
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "trainer_state.json").touch()
    sys.exit(3)
if "--interrupt" in sys.argv and count == 0:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background
    os.kill(os.getpid(), signal.SIGINT)
resumed = "--resume_from_checkpoint" in sys.argv
threads = os.environ.get("OMP_NUM_THREADS")
(folder / "summary.part").write_text(json.dumps({"resumed": resumed, "threads": threads}))
os.replace(folder / "summary.part", folder / "summary.json")  # as a run does: it may be read at any moment
"""


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    """In place of the real one: notes that it was started."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    monkeypatch.setattr(launch, "SCRIPT", path)


def execute(*runs: Run, jobs: int = 1) -> list[str]:
    return execute_all(runs, jobs, Console(file=io.StringIO()))


class TestRun:
    def test_is_not_carried_out_twice(self, tmp_path):
        run = Run(tmp_path / "runs" / "one", ("--seed", "1"))
        assert run.execute() == run.execute() == run.summary()
        assert len(list(run.folder.glob("started*"))) == 1

    def test_of_other_arguments_is_not_taken_for_this_one(self, tmp_path):
        Run(tmp_path / "one", ("--seed", "1")).execute()
        with pytest.raises(ValueError, match="other arguments"):
            Run(tmp_path / "one", ("--seed", "2")).execute()

    def test_arguments_that_a_run_failed_by_can_be_corrected(self, tmp_path):
        with pytest.raises(RuntimeError, match="ended with status 1"):
            Run(tmp_path / "one", ("--fail",)).execute()
        corrected = Run(tmp_path / "one", ("--seed", "1"))
        assert corrected.execute() == corrected.summary()

    def test_a_run_that_failed_after_a_checkpoint_keeps_its_arguments(self, tmp_path):
        with pytest.raises(RuntimeError, match="ended with status 3"):
            Run(tmp_path / "one", ("--stop",)).execute()
        with pytest.raises(ValueError, match="other arguments"):
            Run(tmp_path / "one", ("--seed", "1")).execute()

    def test_goes_on_after_a_stop(self, tmp_path):
        run = Run(tmp_path / "one", ("--stop",))
        with pytest.raises(RuntimeError, match=r"ended with status 3; see .*one\.log"):
            run.execute()
        assert run.execute()["resumed"] is True

    def test_that_was_interrupted_has_not_failed(self, tmp_path):
        run = Run(tmp_path / "one", ("--interrupt",))
        with pytest.raises(RuntimeError, match="ended with status -2"):
            run.execute()
        assert not run.has_failed
        assert run.execute() == run.summary()

    def test_whose_name_has_a_point_logs_beside_itself(self, tmp_path):
        run = Run(tmp_path / "share_0.05", ("--fail",))
        with pytest.raises(RuntimeError):
            run.execute()
        assert "no such luck" in (tmp_path / "share_0.05.log").read_text()


class TestAll:
    def test_one_that_fails_leaves_the_others(self, tmp_path):
        runs = [Run(tmp_path / str(number), ("--fail",) if number == 1 else ()) for number in range(4)]
        failures = execute(*runs, jobs=2)
        assert len(failures) == 1 and failures[0].startswith("1 ended with status 1")
        assert [run.summary() is not None for run in runs] == [True, False, True, True]

    @pytest.mark.skipif(launch.fcntl is None, reason="no locks on this system")
    def test_those_that_another_process_is_at_come_last(self, tmp_path):
        runs = [Run(tmp_path / str(number), ()) for number in range(3)]
        with ThreadPoolExecutor(1) as pool:
            with runs[0]._locked(wait=False):
                failures = pool.submit(execute, *runs)
                deadline = time.monotonic() + 60
                while runs[2].summary() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                assert runs[0].summary() is None and not failures.done()
            assert failures.result(60) == []
        assert all(run.summary() is not None for run in runs)

    def test_share_the_cores(self, tmp_path, monkeypatch):
        monkeypatch.setattr(launch.os, "cpu_count", lambda: 8)
        runs = [Run(tmp_path / str(number), ()) for number in range(3)]
        execute(*runs, jobs=4)
        assert [json.loads((run.folder / "summary.json").read_text())["threads"] for run in runs] == ["2"] * 3

    @pytest.mark.parametrize(("chosen", "given"), [(None, ["0", "1", "0"]), ("3,GPU-5", ["3", "GPU-5", "3"])])
    def test_take_turns_on_the_accelerators_that_there_are_for_them(self, chosen, given, monkeypatch):
        monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if chosen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        environments = launch._environments(3)
        assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == given
