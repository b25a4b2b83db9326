"""The jobs for SLURM: sound as shell scripts, and with the commands that they stand for."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "accelerate_configs" / "slurm"
JOBS = sorted(FOLDER.glob("*.sbatch"))
# in place of the programs: they note how they were called
STUB = """#!/bin/bash
echo "$(basename "$0") $* name=${SCANLINE_RUN_TIME}_j$SLURM_JOB_ID" >> "$CALLS"
[[ "$1 $2" != "show hostnames" ]] || { echo node7; sleep 0.2; echo node8; }
[[ -z "${SLEEP:-}" || "$1" == requeue ]] || exec sleep "$SLEEP"
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder of the project, where a job has been submitted, and the environment of the job."""
    shutil.copytree(ROOT / "accelerate_configs", tmp_path / "accelerate_configs")
    (tmp_path / "bin").mkdir()
    for name in ("accelerate", "scontrol", "srun", "python", "apptainer"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls.txt"), "SLURM_JOB_ID": "4711",
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    return tmp_path, environment


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().splitlines() if path.is_file() else []


def submit(cluster, job: str, *arguments: str, **more: str) -> str:
    """The last call that the job makes."""
    folder, environment = cluster
    subprocess.run(
        ["bash", f"accelerate_configs/slurm/{job}", *arguments], cwd=folder, env=environment | more, check=True
    )
    return calls(folder)[-1]


@pytest.mark.parametrize("job", [*JOBS, FOLDER / "common.sh"], ids=lambda job: job.name)
def test_is_sound(job):
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run([shellcheck, "-x", str(job)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_what_is_asked_of_slurm(job):
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in job.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert {
        "job-name",
        "nodes",
        "cpus-per-task",
        "gres",
        "mem",
        "time",
        "requeue",
        "signal",
        "output",
    } <= options.keys()
    assert options["signal"] == "B:USR1@120" and options["open-mode"] == "append"
    # SLURM makes no folder for the log, and the job would end before its first line
    assert (ROOT / options["output"]).parent.is_dir()


def test_one_gpu(cluster):
    call = submit(cluster, "one_gpu.sbatch", "--config", "causal")
    assert call.startswith(
        "accelerate launch --config_file accelerate_configs/one_gpu.yaml run_classification.py --config causal name="
    )
    assert call.endswith("_j4711")


def test_several_gpus(cluster):
    call = submit(cluster, "several_gpus.sbatch", "--config", "causal", ACCELERATE_CONFIG="fsdp.yaml")
    assert "--config_file accelerate_configs/fsdp.yaml --num_processes 4 run_classification.py --config causal" in call


def test_several_nodes(cluster):
    folder, _ = cluster
    # as the second machine runs it
    (folder / "bin" / "srun").write_text(
        '#!/bin/bash\n[[ "$1" == --kill-on-bad-exit=1 ]] && SLURM_NODEID=1 "${@:2}"\n'
    )
    call = submit(cluster, "several_nodes.sbatch", "--config", "causal")
    assert call.startswith(
        "accelerate launch --config_file accelerate_configs/multi_node.yaml --num_machines 2 --machine_rank 1 "
        "--num_processes 8 --main_process_ip node7 --main_process_port 30211 run_classification.py --config causal "
    )


def test_a_sweep(cluster):
    call = submit(cluster, "sweep.sbatch", "regularization", "--extra", "--dataset", "hsi100")
    assert call.startswith("python -m experiments.sweep regularization --extra --dataset hsi100 name=")


def test_in_an_image(cluster):
    call = submit(cluster, "one_gpu.sbatch", "--config", "causal", SCANLINE_IMAGE="scanline.sif")
    assert call.startswith(f"apptainer exec --nv --bind {cluster[0]} scanline.sif accelerate launch --config_file")


def test_a_job_that_is_queued_again_goes_on_in_its_folder(cluster):
    folder, _ = cluster
    first = submit(cluster, "one_gpu.sbatch", "--config", "causal")
    name = first.partition("name=")[2]
    checkpoint = folder / "runs" / name / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").touch()
    time.sleep(1.1)  # another time than the first
    again = submit(cluster, "one_gpu.sbatch", "--config", "causal")
    assert again.endswith(f"--config causal --resume_from_checkpoint true name={name}")


def test_a_job_that_was_ended_before_its_first_checkpoint_was_whole_starts_once_more(cluster):
    folder, _ = cluster
    name = submit(cluster, "one_gpu.sbatch", "--config", "causal").partition("name=")[2]
    (folder / "runs" / name / "checkpoint-5").mkdir(parents=True)
    (folder / "runs" / name / "metrics.jsonl").touch()  # which stands for a run, and would be refused
    again = submit(cluster, "one_gpu.sbatch", "--config", "causal")
    assert again.endswith(f"--config causal name={name}")
    assert not (folder / "runs" / name / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "options", [["--output_dir", "runs/my [first]"], ["--output_dir=runs/my [first]", "--seed", "1"]], ids=str
)
def test_a_job_goes_on_in_the_folder_that_was_asked_for(cluster, options):
    folder, _ = cluster
    run = folder / "runs" / "my [first]"
    (run / "checkpoint-5").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    again = {"SLURM_RESTART_COUNT": "1"}
    call = submit(cluster, "one_gpu.sbatch", *options, **again)
    assert "--resume_from_checkpoint" not in call and not (run / "metrics.jsonl").exists()
    (run / "checkpoint-5" / "trainer_state.json").touch()
    call = submit(cluster, "several_gpus.sbatch", *options, **again)
    assert f"{' '.join(options)} --resume_from_checkpoint true name=" in call


def test_a_new_job_leaves_the_run_of_another_alone(cluster):
    folder, _ = cluster
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    submit(cluster, "one_gpu.sbatch", "--output_dir", "runs/mine")
    (run / "checkpoint-5").mkdir()
    (run / "checkpoint-5" / "trainer_state.json").touch()
    # refused by run_classification.py, which asks for --resume_from_checkpoint
    assert "--resume_from_checkpoint" not in submit(cluster, "one_gpu.sbatch", "--output_dir", "runs/mine")
    assert (run / "metrics.jsonl").exists()


@pytest.mark.parametrize("options", [["--runs_dir", "elsewhere"], ["--runs_dir=elsewhere"]], ids=str)
def test_a_job_goes_on_below_the_folder_of_runs_that_was_asked_for(cluster, options):
    folder, _ = cluster
    name = submit(cluster, "one_gpu.sbatch", *options).partition("name=")[2]
    checkpoint = folder / "elsewhere" / name / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").touch()
    time.sleep(1.1)  # another time than the first
    assert submit(cluster, "one_gpu.sbatch", *options).endswith(f"--resume_from_checkpoint true name={name}")


def test_where_slurm_ends_the_job_it_is_queued_again(cluster):
    folder, environment = cluster
    job = subprocess.Popen(
        ["bash", "accelerate_configs/slurm/one_gpu.sbatch", "--config", "causal"],
        cwd=folder, env=environment | {"SLEEP": "60"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not calls(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGUSR1)
    output, _ = job.communicate(timeout=20)
    assert "queued again" in output and job.returncode != 0
    assert calls(folder)[-1].startswith("scontrol requeue 4711")
