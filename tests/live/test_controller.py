"""A controller on loopback: the lines it has, the commands it gets, and what becomes of a scan when it fails."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from nanonis_controller import Controller

from live.nanonis import COMMANDS, NanonisClient, NanonisError, ProtocolError, follow_scans
from run_streaming import main

QUICK = 0.01


@pytest.fixture
def controller(lines):
    controller = Controller(np.full_like(lines, np.nan))
    yield controller
    controller.close()


def eventually(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(QUICK)


class Following:
    """`follow_scans` of one scan, in a thread."""

    def __init__(self, controller, recorder, folder, timeout=5.0, **kwargs):
        self.recorder, self.folder, self.error = recorder, folder, None

        def follow():
            try:
                follow_scans(
                    lambda: NanonisClient("127.0.0.1", controller.port, timeout), recorder, folder, QUICK,
                    name_of=lambda: "scan", **{"num_scans": 1, **kwargs},
                )  # fmt: skip
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=follow, daemon=True)
        self.thread.start()

    def has(self, number: int) -> None:
        eventually(lambda: len(self.recorder.records) == number)

    def ends(self) -> str:
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error
        return (self.folder / "scan.tip.jsonl").read_text()


def put(controller, lines, start, end):
    """The controller scans on, in one go."""
    with controller.lock:
        rows = slice(start, end)
        (controller.frame[::-1] if controller.upwards else controller.frame)[rows] = lines[rows]


@pytest.mark.parametrize("upwards", [False, True])
def test_records_are_those_of_a_replay(controller, recorder, lines, replayed, tmp_path, upwards):
    controller.running, controller.upwards = True, upwards
    following = Following(controller, recorder, tmp_path)
    for start, end in ((0, 1), (1, 7), (7, 30), (30, 40)):
        put(controller, lines, start, end)
        following.has(end)
    controller.running = False
    assert following.ends() == replayed
    assert (tmp_path / "scan.tip.png").is_file()


def test_only_questions_are_asked(controller, recorder, lines, tmp_path):
    controller.running = True
    following = Following(controller, recorder, tmp_path)
    put(controller, lines, 0, 40)
    following.has(40)
    controller.running = False
    following.ends()
    assert set(controller.asked) == COMMANDS == {"Scan.StatusGet", "Scan.BufferGet", "Scan.FrameDataGrab"}


def test_no_other_command_can_be_sent(controller):
    client = NanonisClient("127.0.0.1", controller.port)
    with pytest.raises(AssertionError):
        client._ask("Scan.Action", 0, 0)
    client.close()
    assert controller.asked == []


def test_half_a_line_waits(controller, recorder, lines, tmp_path):
    controller.running = True
    following = Following(controller, recorder, tmp_path)
    put(controller, lines, 0, 3)
    with controller.lock:
        controller.frame[3, :20] = lines[3, :20]
    following.has(3)
    asked = len(controller.asked)
    eventually(lambda: len(controller.asked) > asked + 6)
    assert len(recorder.records) == 3
    put(controller, lines, 3, 4)
    following.has(4)
    controller.running = False
    following.ends()


def test_a_scan_goes_on_after_the_connection_broke(controller, recorder, lines, replayed, tmp_path, capsys):
    controller.running = True
    following = Following(controller, recorder, tmp_path)
    put(controller, lines, 0, 10)
    following.has(10)
    controller.break_connections()
    put(controller, lines, 10, 25)
    following.has(25)
    put(controller, lines, 25, 40)
    following.has(40)
    controller.running = False
    assert following.ends() == replayed
    said = capsys.readouterr().out
    assert "no connection: " in said and "the controller answers again" in said


def test_an_answer_that_does_not_come_is_not_waited_for(controller, recorder, lines, replayed, tmp_path, capsys):
    controller.running = True
    following = Following(controller, recorder, tmp_path, timeout=0.3)
    put(controller, lines, 0, 10)
    following.has(10)
    controller.stall = 30.0
    time.sleep(1.0)
    controller.stall = 0.0
    put(controller, lines, 10, 40)
    following.has(40)
    controller.running = False
    assert following.ends() == replayed
    assert "no connection: no answer in time; trying on" in capsys.readouterr().out


def test_an_error_of_the_controller_is_said_once_and_lived_through(
    controller, recorder, lines, replayed, tmp_path, capsys
):
    controller.running = True
    following = Following(controller, recorder, tmp_path)
    put(controller, lines, 0, 10)
    following.has(10)
    controller.error = "Z-Controller module is not licensed"
    asked = len(controller.asked)
    eventually(lambda: len(controller.asked) > asked + 5)
    controller.error = ""
    put(controller, lines, 10, 40)
    following.has(40)
    controller.running = False
    assert following.ends() == replayed
    said = capsys.readouterr().out
    assert said.count("Z-Controller module is not licensed; trying on") == 1


def test_patience_ends(controller, recorder, tmp_path):
    controller.error = "no"
    following = Following(controller, recorder, tmp_path, patience=0.1)
    with pytest.raises(NanonisError, match=r"Scan\.BufferGet: no"):
        following.ends()


def test_what_is_no_controller_is_told(recorder, tmp_path):
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = server.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n" * 3)
        connection.recv(1)

    threading.Thread(target=answer, daemon=True).start()
    client = NanonisClient("127.0.0.1", server.getsockname()[1], timeout=1.0)
    with pytest.raises(ProtocolError, match="is this a Nanonis controller"):
        client.is_running()
    client.close()
    server.close()


def test_without_a_topography_the_channel_must_be_named(controller, recorder, tmp_path, monkeypatch):
    monkeypatch.setattr("nanonis_controller.CHANNELS", {0: "Current (A)"})
    with pytest.raises(NanonisError, match=r"only Current \(A\): give its number"):
        Following(controller, recorder, tmp_path, patience=0.0).ends()


def test_the_topography_is_followed_to_another_number(controller, recorder, lines, replayed, tmp_path, monkeypatch):
    controller.running = True
    following = Following(controller, recorder, tmp_path)
    put(controller, lines, 0, 10)
    following.has(10)
    monkeypatch.setattr("nanonis_controller.CHANNELS", {0: "Current (A)", 14: "Bias (V)", 15: "Z (m)"})
    put(controller, lines, 10, 40)
    following.has(40)
    controller.running = False
    assert following.ends() == replayed


def test_two_scans_have_files_of_their_own(controller, recorder, lines, tmp_path):
    controller.running = True
    following = Following(controller, recorder, tmp_path, num_scans=2)
    put(controller, lines, 0, 40)
    following.has(40)
    with controller.lock:
        controller.frame[:] = np.nan
        controller.frame[:5] = 2 * lines[:5]
    following.has(5)
    controller.running = False
    following.ends()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["scan.tip.jsonl", "scan_2.tip.jsonl"]
    assert len((tmp_path / "scan_2.tip.jsonl").read_text().splitlines()) == 40


def test_a_controller_that_is_killed_loses_no_line(model, scan, replayed, tmp_path):
    """The whole program against a process that is killed in the middle, and comes back with what it had."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def controller(*more: str) -> subprocess.Popen:
        command = [
            sys.executable,
            str(Path(__file__).with_name("nanonis_controller.py")),
            str(port),
            str(scan),
            "0.03",
            *more,
        ]
        return subprocess.Popen(command)

    records = tmp_path / "out"
    first = controller()
    command = ["nanonis", f"127.0.0.1:{port}", "--model", str(model), "--alpha", "0.1", "--output_dir", str(records)]
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(main([*command, "--interval", "0.01", "--scans", "1"])), daemon=True
    )
    thread.start()

    def received() -> int:
        return sum(len(path.read_text().splitlines()) for path in records.glob("*.jsonl"))

    eventually(lambda: received() >= 12)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = controller("25")
    thread.join(30)
    second.kill()
    second.wait()
    assert status == [0]
    (file,) = records.glob("*.jsonl")
    assert file.read_text() == replayed
