"""The folder that a run leaves."""

import pytest

from experiments.launch import Run
from experiments.run_folder import append_metrics, forget_metrics_after, read_metrics, write_summary


def test_metrics_are_kept_line_by_line(tmp_path):
    for epoch in (1, 2, 3):
        append_metrics(tmp_path, {"epoch": epoch})
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path):
    append_metrics(tmp_path, {"epoch": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tr')
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1]


def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path):
    for epoch in (1, 2, 3):
        append_metrics(tmp_path, {"epoch": epoch})
    forget_metrics_after(tmp_path, 2)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_folder_without_metrics_has_none(tmp_path):
    forget_metrics_after(tmp_path, 2)
    assert read_metrics(tmp_path) == []


class Stopped(BaseException):
    """As a signal that ends a process."""


@pytest.fixture
def half_written(monkeypatch):
    """Ends whatever writes a file when half of it is written."""

    def write(path, text, **_):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise Stopped

    return lambda: monkeypatch.setattr("pathlib.Path.write_text", write)


def test_a_stop_while_an_epoch_is_written_loses_none_before_it(tmp_path, half_written):
    for epoch in range(1, 4):
        append_metrics(tmp_path, {"epoch": epoch})
    half_written()
    with pytest.raises(Stopped):
        forget_metrics_after(tmp_path, 3)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_stop_while_the_summary_is_written_leaves_a_run_that_has_not_ended(tmp_path, half_written):
    run = Run(tmp_path / "run", ("--seed", "1"))
    run.folder.mkdir()
    assert run.summary() is None
    half_written()
    for write in (lambda: write_summary(run.folder, {"steps": 1}), run.summary):
        with pytest.raises(Stopped):
            write()
    assert not (run.folder / "summary.json").exists()
    assert (tmp_path / "run.arguments.json").read_text() == '["--seed", "1"]'
