import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from benchmarks.analyze import NAMES, fabricate_earlier, fabricate_run, fabricated_verdict
from experiments.analysis.figures import analyze, rest, turn
from experiments.analysis.history import History, read_history, weighted_mean
from experiments.analysis.record import RunRecord, dig, find_runs
from experiments.analysis.tables import results_block
from experiments.analyze import analyze_all, main

quick = settings(deadline=None, derandomize=True, max_examples=40)
figures = st.floats(0, 10, allow_nan=False)


@pytest.fixture
def run(tmp_path) -> Path:
    return fabricate_run(tmp_path / "runs" / "20261123_101500", epochs=12)


@pytest.fixture
def runs(tmp_path) -> Path:
    for decay in (0.0, 0.1):
        fabricate_run(
            tmp_path / "runs" / f"decay{decay:g}_seed42", epochs=9, skill=1 - decay, weight_decay=decay, seed=42
        )
    return tmp_path / "runs"


def history(losses: list[float]) -> History:
    return History.of({epoch: {"validation": {"loss": loss}} for epoch, loss in enumerate(losses, 1)})


def say(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


class TestHistory:
    @quick
    @given(st.lists(st.tuples(figures, st.integers(1, 64)), min_size=1, max_size=8), st.data())
    def test_batches_weigh_what_they_hold_and_half_lines_nothing(self, tmp_path_factory, pairs, data):
        path = tmp_path_factory.mktemp("log") / "Loss.log"
        lines = [f"{value!r},{size}" for value, size in pairs]
        expected = np.average([value for value, _ in pairs], weights=[size for _, size in pairs])
        for broken in data.draw(st.lists(st.sampled_from(["0.5", "", "x,32", "0.5,", "0.5,0", "0.5,-3", "0.5,nan"]))):
            lines.insert(data.draw(st.integers(0, len(lines))), broken)
        path.write_text("\n".join(lines) + "\n")
        assert weighted_mean(path) == pytest.approx(expected)

    def test_of_the_earlier_project(self, tmp_path):
        folder = fabricate_earlier(tmp_path / "old", epochs=11, batches=3)
        (folder / "valid" / "epoch-11" / "Accuracy.log").write_text("50.0,32\n80.0,8\n70.0")
        read = read_history(folder)
        assert read.epochs.tolist() == list(range(1, 12))  # 10 after 9, not after 1
        assert read.validation["accuracy"][-1] == pytest.approx(0.56)
        assert set(read.train) == set(read.validation) == {"accuracy", "loss"}

    def test_an_epoch_that_lacks_a_figure_counts_for_the_others(self, tmp_path):
        folder = fabricate_earlier(tmp_path / "old", epochs=3)
        (folder / "valid" / "epoch-2" / "Loss.log").unlink()
        (folder / "valid" / "epoch-3" / "Accuracy.log").write_text("")
        read = read_history(folder)
        assert [point.epoch for point in read.known("validation", "loss")] == [1, 3]
        assert read.latest("validation", "accuracy").epoch == 2

    def test_without_validation_the_trainer_tells_the_loss(self, run):
        (run / "metrics.jsonl").unlink()
        records = [{"epoch": 1.0, "loss": 1.5, "step": 3}, {"epoch": 2.0, "loss": 1.2}, {"epoch": 2.0, "eval_x": 1}]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": records}))
        analysis = analyze(RunRecord.load(run))
        assert analysis["train"]["loss"]["latest"] == 1.2 and not analysis["validation"]
        assert analysis["gap"] == {"epoch": None, "accuracy": 0.0}  # of the summary: the same part twice


class TestRules:
    @quick
    @given(st.lists(st.floats(0.1, 5), min_size=1, max_size=12))
    def test_a_turn_has_its_lowest_before_and_more_after(self, losses):
        turned = turn(history(losses))
        if turned is not None:
            place = int(turned["epoch"]) - 1
            assert losses[place] == min(losses) == turned["loss"] and place <= len(losses) - 4
            assert np.mean(losses[-3:]) >= 1.02 * min(losses) and turned["latest_loss"] == losses[-1]

    @pytest.mark.parametrize(
        ("losses", "epoch"),
        [
            ([3, 2, 1, 1.1, 1.2, 1.3], 3),
            ([3, 2, 1, 1.1, 1.2], None),  # too soon to say
            ([3, 2, 1, 1.001, 1.002, 1.001], None),  # noise
            ([3, 2, 1], None),
            ([], None),
        ],
    )
    def test_turn(self, losses, epoch):
        assert (turn(history(losses)) or {}).get("epoch") == epoch

    def test_rest_is_the_first_within_a_point_of_the_best(self):
        values = [0.5, 0.695, 0.6, 0.70, 0.69]
        read = History.of({epoch: {"validation": {"accuracy": v}} for epoch, v in enumerate(values)})
        assert rest(read, "accuracy") == 1 and rest(read, "auroc") is None

    def test_a_loss_that_is_no_number_is_not_the_best(self):
        read = history([2.0, math.nan, 1.5, math.inf])
        assert read.best("validation", "loss") == (1.5, 3)

    def test_ties_go_to_the_first_epoch(self):
        assert history([2.0, 1.0, 1.0]).best("validation", "loss").epoch == 2


class TestOneRun:
    def test_says_what_the_log_says(self, tmp_path):
        """Run 1 of the earlier log, from files as that project wrote them."""
        train, valid = {}, {}
        for epoch in range(1, 51):
            train[epoch] = (83.1928 - (50 - epoch), 0.357031 + (50 - epoch) / 40)
            valid[epoch] = (66.1257 - (50 - epoch) / 2, 1.237079 + abs(epoch - 27) * 0.208 / 23)
        valid[49] = (66.4982, valid[49][1])
        valid[50] = (66.1257, 1.443985)
        for name, epochs in (("train", train), ("valid", valid)):
            for epoch, values in epochs.items():
                folder = tmp_path / "checkpoint" / name / f"epoch-{epoch}"
                folder.mkdir(parents=True)
                for file, value in zip(("Accuracy", "Loss"), values, strict=True):
                    (folder / f"{file}.log").write_text(f"{value:.6f},32\n{value:.6f},8\n")
        run = find_runs([tmp_path / "checkpoint"])[0]
        assert run.state == "complete"
        assert "\n".join(results_block(analyze(run))) == (
            "=== train ===\n"
            "Total epochs: 50\n"
            "Best accuracy: 83.1928 (epoch 50)\n"
            "Best loss: 0.357031 (epoch 50)\n"
            "Latest accuracy: 83.1928 (epoch 50)\n"
            "Latest loss: 0.357031 (epoch 50)\n"
            "\n"
            "=== validation ===\n"
            "Total epochs: 50\n"
            "Best accuracy: 66.4982 (epoch 49)\n"
            "Best loss: 1.237079 (epoch 27)\n"
            "Latest accuracy: 66.1257 (epoch 50)\n"
            "Latest loss: 1.443985 (epoch 50)\n"
            "\n"
            "Gap: 17.07 points of accuracy (epoch 50)\n"
            "Validation loss turned: epoch 27 (1.237079, then 1.443985 at the end)"
        )

    def test_figures_are_those_of_its_files(self, run):
        analysis = analyze(RunRecord.load(run))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [record["validation"]["loss"] for record in records]
        assert analysis["validation"]["loss"] == {
            "best": min(losses),
            "best_epoch": losses.index(min(losses)) + 1,
            "latest": losses[-1],
            "latest_epoch": 12,
        }
        last = records[-1]
        assert analysis["gap"]["accuracy"] == last["train"]["accuracy"] - last["validation"]["accuracy"]
        assert analysis["seconds"] == 12 * 9.0
        summary = json.loads((run / "summary.json").read_text())["validation"]
        scored = analysis["scored"]["validation"]
        assert scored["by_lines"]["20"]["balanced_accuracy"] == summary["by_lines"]["20"]["balanced_accuracy"]
        assert scored["confusion_matrix"] == summary["whole"]["confusion_matrix"]
        assert list(scored["whole"]["classes"]) == list(NAMES)

    def test_area_of_a_class_is_that_of_scikit_learn(self, run):
        verdict = fabricated_verdict(1.0, 42)
        scored = analyze(RunRecord.load(run))["scored"]["validation"]
        for place, name in enumerate(NAMES):
            for key, scores in ((("whole",), verdict.whole), (("by_lines", "20"), verdict.by_lines[2])):
                expected = roc_auc_score(verdict.labels == place, scores[:, place])
                assert dig(scored, *key, "classes", name, "auroc") == pytest.approx(expected)

    def test_the_epoch_kept_is_told_by_its_step(self, run):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, "best_step": 70}))
        assert analyze(RunRecord.load(run))["epoch_kept"] == 7

    def test_that_goes_on_is_scored_by_its_last_epoch(self, run, capsys):
        (run / "summary.json").unlink()
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 13.0, "train": {"lo')
        analysis = analyze(RunRecord.load(run))
        assert analysis["state"] == "unfinished" and analysis["epochs"] == 12
        scored = analysis["scored"]["validation"]
        assert scored["source"] == "epoch 12" and set(scored["by_lines"]) == {"5", "10", "20", "40", "64", "128"}
        shown = say(capsys, run)
        assert "12 of 12 epochs, no summary.json" in shown and "1 run: 1 unfinished." in shown

    def test_is_shown_in_full(self, run, capsys):
        shown = say(capsys, run)
        for expected in (
            "=== validation ===",
            "lines seen",
            "whole scan",
            "recall / AUROC after",
            "true \\ predicted",
        ):
            assert expected in shown
        assert "1 run: 1 complete." in shown


class TestMany:
    def test_any_column_sorts_best_first(self, runs, capsys):
        def order(*options):
            say(capsys, runs, "--csv", runs / "runs.csv", *options)
            return [row["run"] for row in csv.DictReader((runs / "runs.csv").open())]

        one, two = "decay0_seed42", "decay0.1_seed42"
        say(capsys, runs, "--csv", runs / "runs.csv")
        rows = {row["run"]: row for row in csv.DictReader((runs / "runs.csv").open())}
        assert {"weight_decay", "recall_rows", "balanced_accuracy_at_20", "turned", "auroc_rows"} <= rows[one].keys()
        for column in rows[one]:
            expected = order("--sort", column)
            assert sorted(expected) == sorted([one, two])
            if rows[one][column] != rows[two][column]:
                assert order("--sort", column, "--reverse") == expected[::-1]
        assert order("--sort", "weight_decay") == [two, one]
        better = max(rows, key=lambda name: float(rows[name]["balanced_accuracy"]))
        assert order("--sort", "balanced_accuracy")[0] == better
        lower = min(rows, key=lambda name: float(rows[name]["best_loss"]))
        if rows[one]["best_loss"] != rows[two]["best_loss"]:
            assert order("--sort", "best_loss")[0] == lower

    def test_a_column_that_is_none_is_refused_with_those_there_are(self, runs, capsys):
        assert main([str(runs), "--sort", "speed"]) == 2
        said = capsys.readouterr().err
        assert "no column 'speed'" in said and "best_loss" in said

    def test_options_that_differ_stand_in_the_table(self, runs, capsys):
        assert "weight decay" in say(capsys, runs) and "0.1" in say(capsys, runs)

    def test_json_is_of_the_strict_kind(self, runs, capsys):
        folder = next(runs.iterdir())
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 10.0, "train": {"loss": NaN}, "validation": {"loss": NaN, "auroc": null}}\n')
        shown = say(capsys, runs, "--json", "-")
        read = json.loads(shown, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
        assert [analysis["epochs"] for analysis in read] in ([10, 9], [9, 10])
        assert {analysis["run"] for analysis in read} == {"decay0_seed42", "decay0.1_seed42"}

    def test_names_are_paths_below_what_is_common_in_natural_order(self, tmp_path, capsys):
        for name in ("b/fold10", "b/fold9", "a/x"):
            fabricate_run(tmp_path / "runs" / name, epochs=1)
        found = find_runs([tmp_path / "runs" / "b", tmp_path / "runs" / "a" / "x"])
        assert [run.name for run in found] == ["a/x", "b/fold9", "b/fold10"]
        shown = say(capsys, tmp_path / "runs", "--csv", "-")
        assert [line.split(",")[0] for line in shown.splitlines()] == ["run", "a/x", "b/fold9", "b/fold10"]
        assert [run.name for run in find_runs([tmp_path / "runs" / "a" / "x"])] == ["x"]

    def test_names_in_brackets_are_shown_as_they_are(self, runs, capsys):
        fabricate_run(runs / "first [old]", epochs=1)
        assert "first [old]" in say(capsys, runs)

    def test_comparison_says_who_is_ahead(self, runs, capsys):
        fabricate_run(runs / "guess", epochs=2, skill=0.01, weight_decay=9.0)
        shown = say(capsys, runs, "--compare")
        assert "against guess: balanced accuracy" in shown and "ahead" in shown

    def test_draws_into_each_run_and_beside_them(self, runs, capsys, tmp_path):
        say(capsys, runs, "--draw")
        for name in ("learning", "lines_validation"):
            for folder in (runs / "analysis", runs / "decay0_seed42" / "analysis"):
                assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
                assert b"<svg" in (folder / f"{name}.svg").read_bytes()
        confusion = runs / "decay0_seed42" / "analysis" / "confusion_validation.svg"
        say(capsys, runs / "decay0_seed42", "--output", tmp_path / "elsewhere")
        again = tmp_path / "elsewhere" / "decay0_seed42" / "confusion_validation.svg"
        assert again.read_bytes() == confusion.read_bytes()
        assert len(find_runs([runs])) == 2  # drawings are no runs

    def test_the_earlier_project_is_drawn_as_well(self, tmp_path, capsys):
        folder = fabricate_earlier(tmp_path / "old", epochs=3)
        say(capsys, folder, "--draw")
        assert {path.name for path in (folder / "analysis").iterdir()} == {"learning.png", "learning.svg"}

    def test_neither_torch_nor_matplotlib_is_waited_for(self, runs):
        code = (
            "import sys; from experiments.analyze import main; status = main(sys.argv[1:]); "
            "slow = {'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules); "
            "sys.exit(status or slow or 0)"
        )
        command = [sys.executable, "-c", code, str(runs), "--compare"]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])


def _leave_junk(folder: Path, kind: str) -> None:
    if kind == "metrics":
        (folder / "metrics.jsonl").write_text("not json\n[1, 2]\n")
    elif kind == "binary":
        (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    elif kind == "summary":
        (folder / "summary.json").write_text('{"epochs": ')
    elif kind == "list":
        (folder / "summary.json").write_text("[]")
    elif kind == "figures":
        (folder / "summary.json").write_text(json.dumps({"epochs": "many", "best_step": "x", "steps": [1]}))
    elif kind == "recipe":
        (folder / "recipe.yaml").write_text("a: [")
    elif kind == "tag":
        (folder / "recipe.yaml").write_text("!!python/object/apply:os.getcwd []")
    else:
        (folder / "config.json").write_text("null")


class TestBroken:
    @pytest.mark.parametrize("kind", ["metrics", "binary", "summary", "list", "figures", "recipe", "tag", "config"])
    def test_is_named_and_counted_and_stops_no_other(self, runs, capsys, kind):
        _leave_junk(fabricate_run(runs / "junk", epochs=2), kind)
        shown = say(capsys, runs, "--compare", "--details")
        assert "3 runs: 2 complete, 1 broken." in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("junk: broken; ")]
        assert line.endswith(".") and str(runs) not in line

    def test_launched_without_a_trace_is_unfinished(self, runs, capsys):
        (runs / "lost.arguments.json").write_text("[]")
        assert "lost: unfinished; 0 epochs" in say(capsys, runs)

    def test_probabilities_that_cannot_be_read_are_done_without(self, runs, capsys):
        (runs / "decay0_seed42" / "validation_probabilities.npz").write_bytes(b"PK")
        assert "decay0_seed42: kept no probabilities" in say(capsys, runs, "--compare", "--details")

    @pytest.mark.parametrize("what", ["nowhere", "empty"])
    def test_a_folder_without_runs_is_bad_input(self, tmp_path, capsys, what):
        (tmp_path / "empty").mkdir()
        assert main([str(tmp_path / what)]) == 2
        assert "Error: " in capsys.readouterr().err

    @quick
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["validation", "whole", "by_lines", "20", "confusion_matrix", "recall_a", "epochs", "best_step",
                     "steps", "split", "counts", "train", "balanced_accuracy", "accuracy", "test"]
                ),
                inner,
                max_size=5,
            ),
            max_leaves=15,
        )
    )  # fmt: skip
    def test_whatever_a_summary_holds_nothing_falls_over(self, tmp_path_factory, summary):
        folder = tmp_path_factory.mktemp("run")
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "validation": summary, "train": summary}) + "\n")
        assert main([str(folder), "--json", str(folder / "out.json"), "--compare"]) == 0
        shutil.rmtree(folder)

    def test_what_is_broken_keeps_its_history(self, run):
        (run / "summary.json").write_text("{")
        runs, analyses = analyze_all(find_runs([run]))
        assert runs[0].state == "broken" and analyses[0]["epochs"] == 12


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and shown.count("python -m experiments.analyze") >= 5
