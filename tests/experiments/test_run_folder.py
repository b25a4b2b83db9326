"""The folder that a run leaves."""

from experiments.run_folder import append_metrics, forget_metrics_after, read_metrics


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
