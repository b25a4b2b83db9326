"""The files of `accelerate_configs/`: read by accelerate's own code, and the ones for the CPU really run."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).resolve().parents[2] / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECTED = {
    # file: (distributed_type, use_cpu, num_machines, num_processes, mixed_precision)
    "cpu.yaml": ("NO", True, 1, 1, "no"),
    "cpu_two_processes.yaml": ("MULTI_GPU", True, 1, 2, "no"),
    "fsdp.yaml": ("FSDP", False, 1, 2, "bf16"),
    "multi_gpu.yaml": ("MULTI_GPU", False, 1, 2, "bf16"),
    "multi_node.yaml": ("MULTI_GPU", False, 2, 8, "bf16"),
    "one_gpu.yaml": ("NO", False, 1, 1, "bf16"),
}

# Every process adds its number, counted from 1: a sum of 3 needs two processes that know of each other.
PROBE = """
import torch
from accelerate import Accelerator

accelerator = Accelerator()
total = torch.tensor([accelerator.process_index + 1], device=accelerator.device)
if torch.distributed.is_initialized():
    torch.distributed.all_reduce(total)
if accelerator.is_main_process:
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
    print(f"RESULT {accelerator.num_processes} {backend} {total.item()} {accelerator.device.type}", flush=True)
accelerator.end_training()
"""

# As if a second went by between the starts of two processes. Each writes a file: what both print can get mixed.
NAMED_BY_TIME = """
import os
from pathlib import Path

os.environ["SCANLINE_RUN_TIME"] = f"20261123_10150{os.environ['RANK']}"

from accelerate import PartialState
from configuration import parse_arguments

folder = parse_arguments(["--runs_dir", "runs"])[2].output_dir
Path(__file__).with_name(os.environ["RANK"]).write_text(folder)
PartialState().destroy_process_group()  # see run_classification.py
"""


def start(probe: Path, config: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Launch the probe as a user would, in an environment without settings from an outer launch."""
    outer = ("ACCELERATE_", "FSDP_", "MASTER_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "TORCHELASTIC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *arguments]
    return subprocess.Popen(
        [*command, str(probe)],
        env={**clean, **environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(*launches: "subprocess.Popen[str]") -> list[str]:
    """Wait for the launches, and return what their main processes printed."""
    lines = []
    try:
        for launch in launches:
            output, errors = launch.communicate(timeout=180)
            assert launch.returncode == 0, errors
            lines += [line for line in output.splitlines() if line.startswith("RESULT")]
    finally:
        for launch in launches:
            launch.kill()
    return lines


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    return path


def test_every_file_is_covered() -> None:
    assert [path.name for path in FILES] == sorted(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_accelerate_reads_the_file(path: Path) -> None:
    config = load_config_from_file(str(path))  # raises on an unknown key
    assert isinstance(config, ClusterConfig)
    found = (
        config.distributed_type.value,
        config.use_cpu,
        config.num_machines,
        config.num_processes,
        config.mixed_precision,
    )
    assert found == EXPECTED[path.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_key_is_an_option_of_the_launcher(path: Path) -> None:
    # The loader looks at the top level only: a misspelt key of fsdp_config would be ignored.
    options = {action.dest for action in launch_command_parser()._actions}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content.get("fsdp_config", {})) <= options
    launch_arguments(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_header_and_the_table_say_how_to_use_the_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("compute_environment")]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"accelerate launch --config_file accelerate_configs/{path.name} " in header
    assert "run_classification.py --config configuration/recipes/causal.yaml" in header
    assert f"| `{path.name}` |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def launch_arguments(path: Path) -> argparse.Namespace:
    """The arguments that `accelerate launch --config_file PATH train.py` would run with."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    # As the command line's own parser does, which knows what was typed.
    arguments.nondefault = {"config_file"}
    return _validate_launch_command(arguments)[0]


def test_fsdp_shards_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare_multi_gpu_env(launch_arguments(FOLDER / "fsdp.yaml"))
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["ScanlineLayer"]
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is False


def test_one_process_on_the_cpu(probe: Path) -> None:
    assert results(start(probe, FOLDER / "cpu.yaml")) == ["RESULT 1 none 1 cpu"]


def test_two_processes_on_the_cpu(probe: Path) -> None:
    launch = start(probe, FOLDER / "cpu_two_processes.yaml", ACCELERATE_USE_CPU="true")
    assert results(launch) == ["RESULT 2 gloo 3 cpu"]


def test_two_processes_are_at_one_run(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(NAMED_BY_TIME)
    clean = {"PYTHONPATH": str(FOLDER.parent), "SLURM_JOB_ID": ""}
    launch = start(tmp_path / "probe.py", FOLDER / "cpu_two_processes.yaml", **clean)
    results(launch)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["runs/20261123_101500"] * 2


def test_two_machines_meet(probe: Path, tmp_path: Path) -> None:
    """The file for several machines, with two launches on loopback for the machines and CPUs for their GPUs."""
    content = yaml.safe_load((FOLDER / "multi_node.yaml").read_text(encoding="utf-8"))
    content |= {"use_cpu": True, "mixed_precision": "no", "num_processes": 2}
    config = tmp_path / "two_machines.yaml"
    config.write_text(yaml.safe_dump(content))
    shared = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    launches = [
        start(probe, config, "--machine_rank", str(rank), *shared, ACCELERATE_USE_CPU="true") for rank in range(2)
    ]
    assert results(*launches) == ["RESULT 2 gloo 3 cpu"]


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
