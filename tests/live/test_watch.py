"""A folder that a microscope writes into: files whole, growing, half-written and broken."""

from pathlib import Path

import numpy as np
import pytest

from data_scripts import ScanReadError, read_scan
from live.watch import FolderWatcher, complete_lines
from run_streaming import main

INSTRUMENTS = Path(__file__).resolve().parents[3] / "shared" / "instruments"


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("live.watch.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "session").mkdir()
    return tmp_path / "session"


def records(path):
    return path.with_name(f"{path.name}.tip.jsonl").read_text()


def write(path, lines, measured: int | None = None, pixels: int = 0):
    """The file as it is when `measured` lines and some pixels of the next are in it."""
    seen = lines.copy()
    if measured is not None:
        seen[measured:] = np.nan
        seen[measured : measured + 1, :pixels] = lines[measured : measured + 1, :pixels]
    np.save(path, seen)


def test_a_growing_file_is_read_line_by_line(folder, recorder, clock, lines, replayed):
    watcher, path = FolderWatcher(folder, recorder, settle=5), folder / "scan.npy"
    counts = []
    for measured, pixels in ((0, 3), (1, 0), (7, 30), (7, 47), (19, 0), (22, 1), (40, 0)):
        clock.now += 1
        write(path, lines, measured, pixels)
        watcher.look()
        counts.append(len(recorder.records))
    assert counts == [0, 1, 7, 7, 19, 22, 40]
    assert watcher.num_done == 0
    clock.now += 5
    watcher.look()
    assert watcher.num_done == 1 and records(path) == replayed
    assert path.with_name("scan.npy.tip.png").is_file()


def test_what_was_never_measured_comes_when_the_file_has_settled(folder, recorder, clock, lines):
    watcher, path = FolderWatcher(folder, recorder, settle=5), folder / "scan.npy"
    write(path, lines, 10, pixels=20)
    watcher.look()
    assert len(recorder.records) == 10
    clock.now += 5
    watcher.look()
    assert [record["measured"] for record in recorder.records] == [True] * 11 + [False] * 29


def test_a_half_written_file_is_waited_for_and_a_broken_one_told(folder, recorder, clock, lines, capsys):
    watcher = FolderWatcher(folder, recorder, settle=5)
    whole = folder.parent / "scan.npy"
    np.save(whole, lines)
    path = folder / "scan.npy"
    path.write_bytes(whole.read_bytes()[:900])
    watcher.look()
    assert recorder.records == [] and capsys.readouterr().out == ""
    path.write_bytes(whole.read_bytes())
    clock.now += 1
    watcher.look()
    assert len(recorder.records) == 40
    (folder / "broken.npy").write_bytes(b"no array")
    for _ in range(3):
        clock.now += 6
        watcher.look()
    assert capsys.readouterr().out.count("broken.npy") == 1
    assert watcher.num_done == 1


def test_what_is_there_at_the_start_is_left_alone_unless_asked_for(folder, recorder, clock, lines):
    write(folder / "old.npy", lines)
    watcher = FolderWatcher(folder, recorder, settle=0)
    watcher.look()
    assert watcher.num_done == 0
    watcher = FolderWatcher(folder, recorder, settle=0, existing=True)
    watcher.look()
    assert watcher.num_done == 1
    write(folder / "old.npy", lines[::-1])
    watcher.look()
    assert watcher.num_done == 2


def test_another_scan_under_the_same_name_begins_anew(folder, recorder, clock, lines):
    watcher, path = FolderWatcher(folder, recorder, settle=5), folder / "scan.npy"
    write(path, lines, 10)
    watcher.look()
    clock.now += 1
    write(path, lines[::-1], 4)
    watcher.look()
    assert len(recorder.records) == 4
    assert len(records(path).splitlines()) == 4


def test_two_files_that_grow_in_turns(folder, recorder, clock, lines, replayed):
    watcher = FolderWatcher(folder, recorder, settle=5)
    for measured in (5, 15, 40):
        for name, scan in (("one.npy", lines), ("two.npy", lines[::-1])):
            clock.now += 1
            write(folder / name, scan, measured)
            watcher.look()
    for _ in range(2):
        clock.now += 6
        watcher.look()
    assert watcher.num_done == 2
    assert records(folder / "one.npy") == replayed
    assert len(records(folder / "two.npy").splitlines()) == 40


def test_a_file_that_goes_is_forgotten(folder, recorder, clock, lines):
    watcher, path = FolderWatcher(folder, recorder, settle=5), folder / "scan.npy"
    write(path, lines, 10)
    watcher.look()
    path.unlink()
    watcher.look()
    assert watcher.files == {}


def test_scans_of_one_name_in_two_folders_keep_their_records(folder, recorder, clock, lines, tmp_path):
    watcher = FolderWatcher(folder, recorder, settle=0, output_dir=tmp_path / "out")
    for day, measured in (("monday", 10), ("tuesday", 20)):
        (folder / day).mkdir()
        write(folder / day / "scan.npy", lines[:measured])
    write(folder / "scan.npy", lines)
    watcher.look()
    written = [tmp_path / "out" / day / "scan.npy" for day in ("monday", "tuesday", ".")]
    assert [len(records(path).splitlines()) for path in written] == [10, 20, 40]


def test_what_is_done_stays_done_when_the_folder_was_away(folder, recorder, clock, lines):
    write(folder / "old.npy", lines)
    watcher = FolderWatcher(folder, recorder, settle=0)
    write(folder / "new.npy", lines)
    watcher.look()
    folder.rename(folder.with_name("away"))
    watcher.look()
    folder.with_name("away").rename(folder)
    watcher.look()
    assert watcher.num_done == 1


def test_a_folder_that_cannot_be_looked_into_is_looked_into_again(folder, recorder, clock, lines, capsys, monkeypatch):
    watcher = FolderWatcher(folder, recorder, settle=0)
    write(folder / "scan.npy", lines)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rglob", lambda *_: (_ for _ in ()).throw(OSError(112, "Host is down")))
        for _ in range(3):
            watcher.look()
    assert capsys.readouterr().out == f"{folder}: cannot be looked into (Host is down); trying on\n"
    watcher.look()
    assert watcher.num_done == 1


def test_a_file_that_is_locked_is_tried_again(folder, recorder, clock, lines):
    answers = [PermissionError("in use"), ScanReadError("not yet"), lines]

    def read(path):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watcher = FolderWatcher(folder, recorder, settle=5, read=read)
    (folder / "scan.sxm").write_bytes(b"header")
    for expected in (0, 0, 40):
        watcher.look()
        assert len(recorder.records) == expected


def test_a_scan_that_its_result_file_lists_late_is_read_then_and_not_again(folder, recorder, clock, lines, capsys):
    scan, result = folder / "session--1_1.Z_mtrx", folder / "session_0001.mtrx"
    reads = []

    def read(path):
        reads.append(path)
        if path.name not in result.read_text():
            raise ScanReadError(f"{path}: its result file does not list it.")
        return lines

    def look(number):
        for _ in range(number):
            clock.now += 3
            watcher.look()

    watcher = FolderWatcher(folder, recorder, settle=5, read=read)
    scan.write_bytes(b"numbers")
    for listed in ("", "session--0_1.Z_mtrx"):
        result.write_text(listed)
        look(4)
        assert watcher.num_done == 0
    assert capsys.readouterr().out.count("does not list it") == 1  # with every scan the result file changes
    result.write_text(scan.name)
    look(1)
    assert len(recorder.records) == 40 and watcher.num_done == 0
    look(3)
    assert watcher.num_done == 1
    number = len(reads)
    result.write_text(f"{scan.name} session--1_2.Z_mtrx")
    look(4)
    assert watcher.num_done == 1 and len(reads) == number


@pytest.mark.parametrize(
    ("measured", "expected"),
    [([], 0), ([(0, 5)], 1), ([(0, 5), (1, 3)], 1), ([(1, 5)], 2), ([(0, 5), (2, 1)], 2), ([(0, 3)], 0)],
)
def test_lines_that_are_complete(measured, expected):
    lines = np.full((4, 5), np.nan)
    for line, pixels in measured:
        lines[line, :pixels] = 1.0
    assert complete_lines(lines) == expected


def test_a_scan_that_grows_after_a_pause_is_counted_once(folder, recorder, clock, lines):
    watcher, path = FolderWatcher(folder, recorder, settle=5), folder / "scan.npy"
    for measured in (7, 9, 40):
        write(path, lines, measured)
        watcher.look()
        clock.now += 6
        watcher.look()
        assert watcher.num_done == 1
    write(path, lines[::-1])  # another one
    watcher.look()
    clock.now += 6
    watcher.look()
    assert watcher.num_done == 2


def test_records_that_cannot_be_written_cost_that_scan_alone(folder, recorder, clock, lines, capsys, replayed):
    watcher = FolderWatcher(folder, recorder, settle=5)
    for name in ("a.npy", "b.npy"):
        write(folder / name, lines)
    (folder / "a.npy.tip.jsonl").mkdir()
    watcher.look()
    clock.now += 6
    watcher.look()
    assert "a.npy: [Errno" in capsys.readouterr().out and records(folder / "b.npy") == replayed
    assert (watcher.num_done, watcher.num_failed) == (2, 1)


def test_the_command(folder, model, lines, replayed):
    write(folder / "scan.npy", lines)
    options = ["--model", str(model), "--alpha", "0.1", "--existing", "--scans", "1", "--settle", "0"]
    assert main(["watch", str(folder), *options, "--interval", "0.01"]) == 0
    assert records(folder / "scan.npy") == replayed


@pytest.mark.parametrize("filled", [False, True])
def test_a_real_file_that_grows(folder, model, clock, filled):
    """By what is appended to it, or by what takes the place of zeros."""
    path = INSTRUMENTS / "nanonis_si111_7x7.sxm"
    if not path.is_file():
        pytest.skip("no real microscope files at hand")
    content, whole, seen = path.read_bytes(), read_scan(path).lines, []

    class Listener:
        def start(self, name, folder):
            assert seen == []

        def add(self, lines):
            seen.extend(lines)

        def finish(self):
            seen.append("end")

    watcher = FolderWatcher(folder, Listener(), settle=5)
    counts = []
    for share in (0.05, 0.2, 0.3, 0.3001, 0.6, 1.0):
        clock.now += 1
        written = content[: int(share * len(content))]
        (folder / path.name).write_bytes(written + bytes(len(content) - len(written)) if filled else written)
        watcher.look()
        counts.append(len(seen))
        if seen:
            np.testing.assert_array_equal(seen, whole[: len(seen)])
    assert counts == sorted(counts) and 0 < counts[1] < len(whole) == counts[-1]
    clock.now += 5
    watcher.look()
    assert seen[-1] == "end"


def test_a_folder_that_is_none(model, tmp_path, capsys):
    assert main(["watch", str(tmp_path / "no"), "--model", str(model)]) == 2
    assert "no such folder to watch" in capsys.readouterr().err
