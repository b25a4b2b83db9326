"""Lines over HTTP: the records of a replay, and nothing that a client sends takes the server down."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from live import server
from live.server import Limits, ScanSessions, make_app, serve, to_heights
from modeling_scanline.streaming_scanline import ScanlineStreamer
from run_streaming import main

ROOT = Path(__file__).parents[2]
LIMITS = Limits(scans=2, idle_s=1000, width=64, lines=50, body=100_000)


@pytest.fixture
def sessions(model, tmp_path):
    return ScanSessions(lambda: ScanlineStreamer.from_pretrained(model, alpha=0.1), tmp_path / "out", LIMITS)


@pytest.fixture
def client(sessions):
    return TestClient(make_app(sessions, {"labels": ["a"]}), base_url="http://127.0.0.1")


def as_json(lines: np.ndarray) -> list:
    return [[None if np.isnan(value) else float(value) for value in line] for line in lines]


def begin(client, **body) -> str:
    answer = client.post("/scans", json=body)
    assert answer.status_code == 201
    return answer.json()["scan"]


def test_records_are_those_of_a_replay(client, sessions, lines, replayed):
    scan = begin(client, name="mine")
    records = []
    for start, end in ((0, 1), (1, 22), (22, 40)):
        answer = client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines[start:end])})
        records += answer.json()["records"]
    assert "".join(json.dumps(record) + "\n" for record in records) == replayed
    assert client.get(f"/scans/{scan}/records").text == replayed
    assert client.delete(f"/scans/{scan}").json() == {"lines": 40, "last": records[-1]}
    assert (sessions.folder / "mine.tip.jsonl").read_text() == replayed
    assert (sessions.folder / "mine.tip.png").is_file()
    assert client.get(f"/scans/{scan}/records").status_code == 404


def test_scans_do_not_disturb_each_other(client, lines, replayed):
    one, two = begin(client), begin(client)
    for line in lines:
        client.post(f"/scans/{one}/lines", json={"lines": as_json(line[None])})
        client.post(f"/scans/{two}/lines", json={"lines": as_json(line[None, ::-1])})
    assert client.get(f"/scans/{one}/records").text == replayed
    assert client.get(f"/scans/{two}/records").text != replayed


def test_what_may_be_asked_is_told(client):
    about = client.get("/").json()
    assert about["labels"] == ["a"] and about["limits"]["width"] == 64 and about["open_scans"] == 0


def test_too_many_scans(client):
    first, _ = begin(client), begin(client)
    refused = client.post("/scans")
    assert refused.status_code == 429 and "2 scans are open" in refused.json()["detail"]
    client.delete(f"/scans/{first}")
    begin(client)


def test_a_scan_without_a_line_for_long_is_closed(client, sessions, monkeypatch):
    old = begin(client)
    later = time.monotonic() + 2000
    monkeypatch.setattr("live.server.time.monotonic", lambda: later)
    begin(client)
    assert client.post(f"/scans/{old}/lines", json={"lines": [[1.0]]}).status_code == 404
    assert len(sessions.sessions) == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, old, new: client.post(f"/scans/{new}/lines", json={"lines": [[1.0]]}),
        lambda client, old, new: client.get(f"/scans/{new}/records"),
        lambda client, old, new: client.delete(f"/scans/{new}"),
        lambda client, old, new: client.post(f"/scans/{old}/lines", json={"lines": [[1.0]]}),
        lambda client, old, new: client.get(f"/scans/{old}/records"),
        lambda client, old, new: client.delete(f"/scans/{old}"),
    ],
)
def test_whatever_is_asked_for_closes_scans_without_a_line_for_long(client, sessions, lines, monkeypatch, ask):
    old, new = begin(client, name="old"), begin(client)
    now = time.monotonic()
    for scan, later in ((old, 0), (new, 900)):
        monkeypatch.setattr("live.server.time.monotonic", lambda later=later: now + later)
        client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines)})
    monkeypatch.setattr("live.server.time.monotonic", lambda: now + 1200)
    ask(client, old, new)
    assert old not in sessions.sessions
    assert (sessions.folder / "old.tip.png").is_file()


def test_reading_records_does_not_keep_a_scan_open(client, monkeypatch):
    scan, now = begin(client), time.monotonic()
    for later, status in ((900, 200), (1200, 404)):
        monkeypatch.setattr("live.server.time.monotonic", lambda later=later: now + later)
        assert client.get(f"/scans/{scan}/records").status_code == status


def test_a_scan_is_not_closed_for_the_time_that_its_lines_took(sessions, lines, monkeypatch):
    scan, clock = sessions.open(None), [time.monotonic()]
    monkeypatch.setattr("live.server.time.monotonic", lambda: clock[0])
    recorder = sessions.sessions[scan].recorder
    add = recorder.add

    def slow(heights):
        clock[0] += 2000
        return add(heights)

    monkeypatch.setattr(recorder, "add", slow)
    for _ in range(2):
        assert len(sessions.add(scan, as_json(lines[:3]))) == 3


def test_a_picture_that_cannot_be_written_fails_no_other_scan(sessions, lines, monkeypatch, capsys):
    old = sessions.open("old")
    sessions.add(old, as_json(lines[:3]))
    later = time.monotonic() + 2000
    monkeypatch.setattr("live.server.time.monotonic", lambda: later)
    (sessions.folder / "old.tip.png").mkdir()
    new = sessions.open("new")
    assert list(sessions.sessions) == [new]
    assert "old.tip.png" in capsys.readouterr().out


def test_the_end_closes_scans_without_a_line_for_long_too(sessions, lines, monkeypatch):
    for name in ("one", "two"):
        sessions.add(sessions.open(name), as_json(lines[:3]))
    later = time.monotonic() + 2000
    monkeypatch.setattr("live.server.time.monotonic", lambda: later)
    sessions.end_all()
    assert sessions.sessions == {}
    assert all((sessions.folder / f"{name}.tip.png").is_file() for name in ("one", "two"))


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "no JSON"),
        (b"[" * 50_000, 400, "no JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b"{}", 422, "must be a list of lines"),
        (b'{"lines": []}', 422, "must be a list of lines"),
        (b'{"lines": [1, 2]}', 422, "must be a list of lines"),
        (b'{"lines": [[1], [1, 2]]}', 422, "of one width"),
        (b'{"lines": [[]]}', 422, "none empty"),
        (b'{"lines": [["a"]]}', 422, "numbers, and null"),
        (b'{"lines": [[[1]]]}', 422, "numbers, and null"),
        (b'{"lines": [[{}]]}', 422, "numbers, and null"),
        (b'{"lines": [[1, 2], [1, "1.5"]]}', 422, "numbers, and null"),
        (b'{"lines": [["nan"]]}', 422, "numbers, and null"),
        (b'{"lines": [[1.5, true]]}', 422, "numbers, and null"),
        (b'{"lines": [[null, false]]}', 422, "numbers, and null"),
        (b'{"lines": [[1' + b"0" * 400 + b"]]}", 422, "numbers, and null"),
        (json.dumps({"lines": [[1.0] * 65]}).encode(), 422, "50 lines of 64 pixels, got 1 of 65"),
        (json.dumps({"lines": [[1.0]] * 51}).encode(), 422, "50 lines of 64 pixels, got 51 of 1"),
        (b" " * 100_001, 413, "100000 bytes"),
    ],
)
def test_what_is_no_line_is_refused_and_the_scan_goes_on(client, lines, body, status, reason):
    scan = begin(client)
    answer = client.post(f"/scans/{scan}/lines", content=body)
    assert answer.status_code == status and reason in answer.json()["detail"]
    assert len(client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines[:2])}).json()["records"]) == 2


def test_another_width_and_too_many_lines_are_refused(client, lines):
    scan = begin(client)
    client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines)})
    answer = client.post(f"/scans/{scan}/lines", json={"lines": [[1.0] * 20]})
    assert answer.status_code == 422 and answer.json()["detail"] == (
        "a scan has lines of one width, this one lines of 48 pixels, got 20: begin another scan for them."
    )
    answer = client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines[:11])})
    assert answer.status_code == 422 and "may have 50 lines" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "x" * 101, 7])
def test_a_name_is_no_path(client, name):
    assert client.post("/scans", json={"name": name}).status_code == 422


def test_a_name_in_use_is_refused(client):
    begin(client, name="same")
    assert client.post("/scans", json={"name": "same"}).status_code == 422


def test_records_that_there_are_stay(client, sessions, lines):
    scan = begin(client, name="same")
    client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines[:3])})
    client.delete(f"/scans/{scan}")
    before = (sessions.folder / "same.tip.jsonl").read_text()
    answer = client.post("/scans", json={"name": "same"})
    assert answer.status_code == 422 and "choose another name" in answer.json()["detail"]
    assert (sessions.folder / "same.tip.jsonl").read_text() == before and before.count("\n") == 3


def test_a_folder_that_cannot_be_written_to_is_told(client, sessions, tmp_path):
    sessions.folder = tmp_path / "file"
    sessions.folder.touch()
    answer = client.post("/scans")
    assert answer.status_code == 507 and f"File exists: '{sessions.folder}'" in answer.json()["detail"]
    assert client.get("/").json()["open_scans"] == 0


def test_a_full_disk_is_told(client, sessions, lines, monkeypatch):
    scan = begin(client)

    def fail(*_):
        raise OSError(28, "No space left on device")

    other = begin(client)
    for each in (scan, other):
        monkeypatch.setattr(sessions.sessions[each].recorder, "add", fail)
        monkeypatch.setattr(sessions.sessions[each].recorder, "finish", fail)
    answer = client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines)})
    says = "[Errno 28] No space left on device. This scan has ended with it: begin another."
    assert answer.status_code == 507 and answer.json()["detail"] == says
    # or the same lines, sent again, would be taken twice
    assert client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines)}).status_code == 404
    sessions.end_all()
    assert not sessions.sessions


@pytest.mark.parametrize(("kind", "status"), [(PermissionError, 507), (UnicodeError, 422), (KeyError, 404)])
def test_errors_of_every_kind_below_those_that_are_told_are_told(client, sessions, kind, status, monkeypatch):
    def fail(*_):
        raise kind("it is so")

    monkeypatch.setattr(sessions, "open", fail)
    answer = client.post("/scans")
    assert answer.status_code == status and answer.json()["detail"] == "it is so"


def test_no_such_scan(client):
    for ask in (lambda: client.delete("/scans/none"), lambda: client.get("/scans/none/records")):
        assert ask().status_code == 404


def test_numbers_without_end_are_unmeasured(client):
    scan = begin(client)
    answer = client.post(f"/scans/{scan}/lines", content=b'{"lines": [[1e999, NaN, -1e300]]}')
    assert answer.json()["records"][0]["measured"] is False


def test_a_web_page_of_another_place_may_not_post(client):
    """A browser sends what a page asks for to this machine, too, and says where the page is from."""
    for place in ("https://elsewhere.example", "null"):
        assert client.post("/scans", headers={"Origin": place}).status_code == 403
    assert client.post("/scans", headers={"Origin": "http://127.0.0.1"}).status_code == 201


def test_another_name_of_this_machine_is_refused(client):
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400


def test_lines_that_wait_while_their_scan_ends_are_refused(client, lines, monkeypatch):
    scan = begin(client)
    monkeypatch.setattr(server, "to_heights", lambda *given: [client.delete(f"/scans/{scan}"), to_heights(*given)][1])
    assert client.post(f"/scans/{scan}/lines", json={"lines": as_json(lines)}).status_code == 404


def test_a_scan_is_not_closed_while_lines_are_worked_on_and_nobody_waits_for_it(sessions, lines, monkeypatch):
    scan = sessions.open(None)
    later = time.monotonic() + 2000
    monkeypatch.setattr("live.server.time.monotonic", lambda: later)
    with sessions.sessions[scan].lock:
        recorder, other = sessions.sessions[scan].recorder, []
        opening = threading.Thread(target=lambda: other.append(sessions.open(None)))
        opening.start()
        opening.join(20)
        assert len(recorder.add(lines)) == 40
    assert sessions.records(other[0]) == []
    assert recorder.name is None


def test_a_port_that_is_taken_is_one_sentence(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--model", str(model), "--port", str(taken.getsockname()[1])]) == 2
    assert "run_streaming.py: error: [Errno" in capsys.readouterr().err


def test_a_signal_ends_the_scans_that_are_open(model, lines, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, str(ROOT / "run_streaming.py"), "serve", "--model", str(model), "--port", port]
    process = subprocess.Popen([*command, "--output_dir", str(tmp_path)])
    place, deadline = f"http://127.0.0.1:{port}/scans", time.monotonic() + 60

    def post(place: str, **body) -> dict:
        with urllib.request.urlopen(place, json.dumps(body).encode()) as answer:
            return json.load(answer)

    while True:
        try:
            scan = post(place, name="open")["scan"]
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
    post(f"{place}/{scan}/lines", lines=as_json(lines))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    assert (tmp_path / "open.tip.png").is_file()


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra_it_says_what_to_install_and_nothing_else(sessions, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    told: list[str] = []
    with pytest.raises(ImportError, match=rf"{missing}.*pip install -e '\.\[live\]'"):
        serve(sessions, {}, 1, lambda: told.append("ready"))
    assert not told


def test_it_listens_on_loopback_only(sessions):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told: list[str] = []
    threading.Thread(target=serve, args=(sessions, {}, port, lambda: told.append("ready")), daemon=True).start()
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                assert json.load(answer)["open_scans"] == 0
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert told == ["ready"]
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "::1"}
    for address in (each for each in others if not each.startswith("127.")):
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=1):
            pass
