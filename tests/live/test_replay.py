"""Scans line by line from files: records, picture, and what is said about bad input."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from live.recorder import Recorder, table_of
from live.records import to_record
from modeling_scanline.streaming_scanline import LineResult, ScanlineStreamer
from run_streaming import host_and_port, main

ROOT = Path(__file__).parents[2]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.with_name(f"{path.name}.tip.jsonl").read_text().splitlines()]


def test_records_are_what_the_streamer_says(model, scan, capsys):
    assert main(["replay", str(scan), "--model", str(model), "--alpha", "0.1"]) == 0
    records = read(scan)
    results = ScanlineStreamer.from_pretrained(model, alpha=0.1).update_many(np.load(scan))
    assert [record["line"] for record in records] == list(range(40))
    assert [record["measured"] for record in records] == [line != 20 for line in range(40)]
    assert [record["state"] for record in records] == [result.state for result in results]
    assert records[0]["probabilities"] is None
    np.testing.assert_allclose(list(records[-1]["probabilities"].values()), results[-1].probabilities, atol=1e-6)
    assert records[-1]["decision"] == results[-1].decision is not None and records[0]["decision"] is None
    assert f"after 40 lines {records[-1]['state']}" in capsys.readouterr().out


def test_records_that_cannot_be_written_cost_that_scan_alone(model, scan, tmp_path, capsys):
    other = str(shutil.copy(scan, tmp_path / "other.npy"))
    scan.with_name(f"{scan.name}.tip.png").mkdir()
    assert main(["replay", str(scan), other, "--model", str(model)]) == 2
    told = capsys.readouterr().out
    assert f"{scan}: [Errno" in told and "1 of 2 files could not be recorded" in told
    assert len(read(Path(other))) == 40 and Path(f"{other}.tip.png").is_file()


def test_records_go_on_where_nobody_reads_what_is_said(model, scan, tmp_path):
    others = [shutil.copy(scan, tmp_path / f"{number}.npy") for number in range(3)]
    command = [sys.executable, str(ROOT / "run_streaming.py"), "replay", *others, "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Error" not in process.stderr.read() and process.wait() == 0
    assert all(len(read(Path(other))) == 40 for other in others)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["serve", "--port", "99999"], "a port is a number from 1 to 65535"),
        (["nanonis", "microscope:abc"], "a port is a number from 1 to 65535"),
        (["replay", "scan.npy", "--seconds_per_line", "-1"], "expected seconds, 0 or more"),
        (["watch", ".", "--interval", "nan"], "expected seconds, 0 or more"),
    ],
)
def test_numbers_that_are_none_are_told_before_anything_starts(options, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "expected"),
    [("microscope", ("microscope", 6501)), ("10.0.0.1:6502", ("10.0.0.1", 6502)), ("[::1]:6502", ("::1", 6502)),
     ("::1", ("::1", 6501))],
)  # fmt: skip
def test_addresses(address, expected):
    assert host_and_port(address) == expected


def test_the_picture_is_of_the_scan(model, scan):
    assert main(["replay", str(scan), "--model", str(model)]) == 0
    with Image.open(scan.with_name("scan.npy.tip.png")) as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**20)) > 50


def test_a_file_leaves_nothing_for_the_next(model, scan, tmp_path):
    np.save(tmp_path / "wide.npy", np.random.default_rng(1).standard_normal((20, 100)))
    command = ["replay", str(tmp_path / "wide.npy"), str(scan), "--model", str(model), "--output_dir"]
    assert main([*command, str(tmp_path / "both")]) == 0
    assert main(["replay", str(scan), "--model", str(model)]) == 0
    assert read(tmp_path / "both" / "scan.npy") == read(scan)


def test_files_of_one_name_do_not_write_over_each_other(model, scan, tmp_path, capsys):
    (tmp_path / "monday").mkdir()
    files = [scan, scan.rename(tmp_path / "monday" / scan.name)]
    assert main(["replay", *map(str, files), "--model", str(model), "--output_dir", str(tmp_path / "out")]) == 2
    assert f"{files[0]} and {files[1]} have one name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read_is_named_and_counted_and_the_others_are_done(model, scan, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert main(["replay", str(tmp_path / "broken.png"), str(scan), "--model", str(model)]) == 2
    printed = capsys.readouterr().out
    assert "broken.png" in printed and "1 of 2 files could not be read" in printed
    assert len(read(scan)) == 40


@pytest.mark.parametrize("name", ["tip [new].npy", "at $_$.npy"])
def test_a_name_is_no_markup_of_terminals_or_pictures(model, scan, name, capsys):
    path = scan.rename(scan.with_name(name))
    assert main(["replay", str(path), "--model", str(model)]) == 0
    assert f"{path}: after 40 lines" in capsys.readouterr().out
    assert path.with_name(f"{name}.tip.png").is_file()


def test_a_name_is_no_markup_of_the_table():
    record = to_record(LineResult(0, 1, True, (1.0,), "[/b] rows", "[/b] rows"), ["[/b] rows"])
    console = Console(file=io.StringIO(), width=100)
    console.print(table_of("a [b].npy", [record]))
    printed = console.file.getvalue()
    assert "a [b].npy" in printed and printed.count("[/b] rows") == 2


def test_pictures_of_an_earlier_run_are_no_scans(model, scan):
    assert main(["replay", str(scan), "--model", str(model)]) == 0
    files = [str(scan), *map(str, scan.parent.glob("*.png"))]
    assert main(["replay", *files, "--model", str(model)]) == 0
    assert sorted(path.name for path in scan.parent.iterdir()) == [
        "scan.npy",
        "scan.npy.tip.jsonl",
        "scan.npy.tip.png",
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--model", "no/such/folder"], "no/such/folder"), (["--alpha", "0.01"], "No threshold is known for alpha=0.01")],
)
def test_what_cannot_work_is_one_sentence(model, scan, options, reason, capsys):
    assert main(["replay", str(scan), "--model", str(model), *options]) == 2
    error = capsys.readouterr().err
    assert reason in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("model.safetensors", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "header too large"),
        ("model.safetensors", lambda content: content[: len(content) // 2], "not fully covered"),
        ("config.json", lambda content: content.replace(b'"hidden_size": 16', b'"hidden_size": "x"'), "expected int"),
        ("config.json", lambda content: content.replace(b'"hidden_size": 16', b'"hidden_size": 32'), "mismatched"),
    ],
)
def test_a_broken_model_is_one_sentence(model, scan, tmp_path, file, change, reason, capsys):
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / file).write_bytes(change((broken / file).read_bytes()))
    assert main(["replay", str(scan), "--model", str(broken)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"run_streaming.py: error: {broken}: ") and reason in error


def test_what_fails_after_a_model_was_loaded_shows_where(model, scan, monkeypatch):
    def fail(self, lines):
        raise RuntimeError("of another kind")

    monkeypatch.setattr(Recorder, "add", fail)
    with pytest.raises(RuntimeError, match="of another kind"):
        main(["replay", str(scan), "--model", str(model)])


def test_a_terminal_gets_its_cursor_back(model, scan, monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("live.recorder.console", terminal)
    waits = iter(range(5))

    def interrupt(seconds):
        if next(waits, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("run_streaming.time.sleep", interrupt)
    assert main(["replay", str(scan), "--model", str(model)]) == 130
    printed = terminal.file.getvalue()
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h") == 1
    assert len(read(scan)) == 5


def test_threads_are_left_as_they_were(model, scan):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert main(["replay", str(scan), "--model", str(model)]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
