import io
import json
import shutil

import numpy as np
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks import accuracy
from benchmarks.accuracy import main
from benchmarks.accuracy_report import FIGURES, LINE_COUNTS, draw
from benchmarks.readme import accuracy as readme_accuracy
from benchmarks.readme import accuracy_row
from experiments.probabilities import Probabilities

NAMES = np.array(["individual_atoms", "asymmetries_dimers", "rows", "generic_defect"])


def verdicts(skill: float, fold: int, seed: int, num_scans: int = 80) -> Probabilities:
    """What a model of some skill might say of the scans of a fold, better with more lines."""
    scans = np.random.default_rng(fold)  # the same scans for all models
    labels = scans.permutation(np.arange(num_scans) % 4)
    rng = np.random.default_rng([seed, fold, int(100 * skill)])
    ramp = np.linspace(0.3, 1, len(LINE_COUNTS) + 1)[:, None, None]
    scores = np.exp(2 * skill * ramp * np.eye(4)[labels] + rng.standard_normal((len(ramp), num_scans, 4)))
    scores /= scores.sum(axis=-1, keepdims=True)
    return Probabilities(
        scan_ids=np.array([f"fold {fold} scan {number}" for number in range(num_scans)]),
        groups=np.array([f"session {fold}.{number % 5}" for number in range(num_scans)]),
        labels=labels,
        label_names=NAMES,
        line_counts=np.array(LINE_COUNTS),
        by_lines=scores[:-1],
        whole=scores[-1],
    )


def leave_run(folder, of: Probabilities, **recipe) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    of.save(folder)
    (folder / "summary.json").write_text(json.dumps({"num_parameters": 1000, "epochs": 3, "machine": {"device": "x"}}))


@pytest.fixture
def command(tmp_path):
    arguments = ["--data_dir", "nowhere", "--work_dir", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    return lambda *more: main([*arguments, "--report", "--models", "causal", "cnn", "--seeds", "1", "2", *more])


def read(tmp_path) -> dict:
    return json.loads((tmp_path / "results" / "accuracy.json").read_text())


def test_folds_are_put_together_and_seeds_averaged(command, tmp_path):
    for model, skill in (("causal", 2.0), ("cnn", 0.5)):
        for seed in (1, 2):
            for fold in range(5):
                leave_run(tmp_path / "work" / model / f"sessions_seed{seed}_fold{fold}", verdicts(skill, fold, seed))
    assert command("--splits", "sessions") == 0
    results = read(tmp_path)["results"]
    assert [result["model"] for result in results] == ["causal", "cnn"]
    assert results[0]["num_scans"] == {"1": 400, "2": 400} and results[0]["num_sessions"] == 25
    expected = []
    for seed in (1, 2):
        parts = [verdicts(2.0, fold, seed) for fold in range(5)]
        labels, at_20 = np.concatenate([p.labels for p in parts]), np.concatenate([p.by_lines[2] for p in parts])
        areas = roc_auc_score(labels, at_20, multi_class="ovr")
        expected.append((balanced_accuracy_score(labels, at_20.argmax(axis=1)), areas))
    for column, name in enumerate(("balanced_accuracy", "auroc")):
        figure = results[0]["figures"]["20"][name]
        np.testing.assert_allclose(figure["by_seed"], [pair[column] for pair in expected], atol=1e-6)
        assert figure["interval"][0] < figure["mean"] < figure["interval"][1]
    ahead = [entry for entry in read(tmp_path)["differences"] if entry["lines"] == "20"]
    assert all(entry["interval"][0] > 0 and entry["other"] == "cnn" for entry in ahead) and len(ahead) == 2
    table = (tmp_path / "results" / "accuracy.md").read_text()
    assert f"{np.mean([pair[0] for pair in expected]):.3f} / " in table
    assert (tmp_path / "results" / "accuracy.png").stat().st_size > 10_000


def test_figures_fit_a_narrow_terminal(command, tmp_path, capsys):
    name = "finetune_early_small"
    leave_run(tmp_path / "work" / name / "random_seed1", verdicts(2.0, 0, 1))
    assert command("--models", name) == 0
    told = capsys.readouterr().out
    figures = read(tmp_path)["results"][0]["figures"]
    assert (
        name in told
        and "…" not in told
        and all(len(line) <= 80 for line in told.splitlines() if "Written" not in line)
    )
    assert all(f"{figures[key][name]['mean']:.3f}" in told for key in ("5", "whole") for name in FIGURES)


def test_models_with_other_folds_are_not_compared(command, tmp_path):
    for model, folds in (("causal", 2), ("cnn", 1)):
        for fold in range(folds):
            leave_run(tmp_path / "work" / model / f"sessions_seed1_fold{fold}", verdicts(1.0, fold, 1))
    assert command("--splits", "sessions") == 0
    assert read(tmp_path)["differences"] == []
    table = (tmp_path / "results" / "accuracy.md").read_text()
    assert "| 2 of 5 | 160 |" in table and "| 1 of 5 | 80 |" in table


def test_random_splits_are_compared_on_the_seeds_that_both_models_have(command, tmp_path):
    for model, skill, seeds in (("causal", 2.0, (1, 2)), ("cnn", 0.5, (2,))):
        for seed in seeds:
            leave_run(tmp_path / "work" / model / f"random_seed{seed}", verdicts(skill, seed, seed))
    assert command("--splits", "random") == 0
    entry = next(entry for entry in read(tmp_path)["differences"] if entry["lines"] == "whole")
    assert (entry["figure"], entry["seeds"], entry["seeds_of_other"]) == ("balanced_accuracy", [2], [2])
    of_both = [verdicts(skill, 2, 2) for skill in (2.0, 0.5)]
    ours, theirs = (balanced_accuracy_score(of.labels, of.whole.argmax(axis=1)) for of in of_both)
    assert entry["ahead"] == pytest.approx(ours - theirs)
    assert entry["interval"][0] < entry["ahead"] < entry["interval"][1]


def test_folds_of_sessions_are_the_same_scans_for_every_seed(command, tmp_path):
    for model, skill, seeds in (("causal", 2.0, (1, 2)), ("cnn", 0.5, (3,))):
        for seed in seeds:
            for fold in range(2):
                leave_run(tmp_path / "work" / model / f"sessions_seed{seed}_fold{fold}", verdicts(skill, fold, seed))
    assert command("--splits", "sessions", "--seeds", "1", "2", "3") == 0
    results, differences = read(tmp_path)["results"], read(tmp_path)["differences"]
    assert len(differences) == 2 * (len(LINE_COUNTS) + 1)
    entry = next(entry for entry in differences if (entry["lines"], entry["figure"]) == ("20", "auroc"))
    assert (entry["seeds"], entry["seeds_of_other"]) == ([1, 2], [3])
    assert entry["ahead"] == pytest.approx(
        results[0]["figures"]["20"]["auroc"]["mean"] - results[1]["figures"]["20"]["auroc"]["mean"]
    )
    assert "| sessions | cnn | 1 2 | 3 | 20 | auroc |" in (tmp_path / "results" / "accuracy.md").read_text()


def test_published_figures_stand_beside_the_random_split_only(command, tmp_path):
    leave_run(tmp_path / "work" / "causal" / "random_seed1", verdicts(1.0, 0, 1))
    assert command() == 0
    table = (tmp_path / "results" / "accuracy.md").read_text()
    assert "published LRCN" in table and "sessions" not in table


def test_what_else_the_models_differ_in_stands_beside_the_figures(command, tmp_path):
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    (pretrained / "summary.json").write_text('{"dataset": "simulated"}')
    start = {"model_name_or_path": str(pretrained)}
    leave_run(
        tmp_path / "work" / "causal" / "random_seed1", verdicts(1.0, 0, 1), optim="muon", rehearsal_scans=9, **start
    )
    other = {"optim": "adamw_torch_fused", "teachers": ["one", "other"]}
    leave_run(tmp_path / "work" / "cnn" / "random_seed1", verdicts(0.5, 0, 1), **other)
    assert command("--splits", "random") == 0
    table = (tmp_path / "results" / "accuracy.md").read_text()
    assert "| causal | 1,000 | – | simulated | 9 | – | muon | 3 |" in table
    assert "| cnn | 1,000 | – | – | – | 2 | adamw | 3 |" in table


def test_what_was_joined_is_told_of_all_members(command, tmp_path):
    folders = [tmp_path / "elsewhere" / name for name in ("one", "other")]
    for folder, recipe in zip(
        folders, ({"optim": "muon", "rehearsal_scans": 9}, {"optim": "adamw_torch"}), strict=True
    ):
        leave_run(folder, verdicts(1.0, 0, 1), **recipe)
    run = tmp_path / "work" / "causal" / "random_seed1"
    leave_run(run, verdicts(1.0, 0, 1), members=list(map(str, folders)))
    summary = json.loads((run / "summary.json").read_text())
    members = [{"epochs": 13.0}, {"epochs": 16.0}]
    (run / "summary.json").write_text(json.dumps(summary | {"epochs": 0, "members": members}))
    assert command("--splits", "random") == 0
    table = (tmp_path / "results" / "accuracy.md").read_text()
    assert "| causal | 1,000 | 2 | – | 9 | – | adamw and muon | 29 |" in table
    (row,) = read(tmp_path)["results"]
    assert (row["members"], row["rehearsing_members"], row["machines"]) == (2, 1, [{"device": "x"}])
    assert "of these among the real ones for 1 of the models" in accuracy_row(row)


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("place", ["sessions_seed1_fold1", "sessions_seed2_fold0"])
def test_runs_that_were_trained_in_other_ways_make_no_row(command, tmp_path, capsys, place, here):
    """As after a trial of one fold with other options, which the launch refuses to repeat with these."""
    work = tmp_path / "work" / "causal"
    leave_run(work / "sessions_seed1_fold0", verdicts(2.0, 0, 1), learning_rate=1e-3, seed=1)
    leave_run(work / place, verdicts(0.5, 1, 1), learning_rate=1.0, seed=2)
    if not here:  # kept of another machine, before there was a check
        for folder in work.iterdir():
            accuracy.keep(folder, tmp_path / "results" / accuracy.KEPT / "causal" / folder.name)
        shutil.rmtree(work)
    leave_run(tmp_path / "work" / "cnn" / "sessions_seed1_fold0", verdicts(0.5, 0, 1))
    assert command("--splits", "sessions") == 1
    assert [row["model"] for row in read(tmp_path)["results"]] == ["cnn"]
    told = " ".join(capsys.readouterr().out.split())
    assert f"sessions_seed1_fold0 and {place} were trained in other ways (learning_rate)" in told or (
        f"{place} and sessions_seed1_fold0 were trained in other ways (learning_rate)" in told
    )


def test_seeds_with_other_folds_are_told(command, tmp_path):
    for seed, folds in ((1, (0, 1)), (2, (2, 3, 4))):
        for fold in folds:
            leave_run(tmp_path / "work" / "causal" / f"sessions_seed{seed}_fold{fold}", verdicts(1.0, fold, seed))
    assert command("--splits", "sessions") == 0
    (row,) = read(tmp_path)["results"]
    assert "| 2 of 5 (seed 1) and 3 of 5 (seed 2) |" in (tmp_path / "results" / "accuracy.md").read_text()
    assert "2 of 5 (seed 1) and 3 of 5 (seed 2) folds" in accuracy_row(row)
    assert "compare them with care" in readme_accuracy(tmp_path / "results")


def test_models_that_were_scored_on_other_scans_are_not_compared(command, tmp_path):
    leave_run(tmp_path / "work" / "causal" / "random_seed1", verdicts(1.0, 0, 1))
    leave_run(tmp_path / "work" / "cnn" / "random_seed1", verdicts(1.0, 7, 1, num_scans=40))
    assert command("--splits", "random") == 0
    assert read(tmp_path)["differences"] == []


def test_a_model_is_compared_with_one_whose_runs_are_gone(command, tmp_path):
    for model, skill in (("causal", 2.0), ("cnn", 0.5)):
        leave_run(tmp_path / "work" / model / "random_seed1", verdicts(skill, 0, 1), optim="muon")
    assert command("--splits", "random") == 0
    before = read(tmp_path)
    shutil.rmtree(tmp_path / "work" / "cnn")
    assert command("--splits", "random") == 0
    assert read(tmp_path) == before and len(before["differences"]) == 2 * (len(LINE_COUNTS) + 1)
    leave_run(tmp_path / "work" / "cnn" / "random_seed1", verdicts(1.0, 0, 1), optim="muon")  # run anew
    assert command("--splits", "random") == 0
    assert read(tmp_path)["results"][1]["figures"] != before["results"][1]["figures"]


def test_folds_that_were_kept_are_not_mixed_with_those_of_another_training(command, tmp_path):
    for fold in range(5):
        leave_run(tmp_path / "work" / "causal" / f"sessions_seed1_fold{fold}", verdicts(2.0, fold, 1))
    assert command("--splits", "sessions") == 0
    shutil.rmtree(tmp_path / "work")
    leave_run(tmp_path / "work" / "causal" / "sessions_seed1_fold0", verdicts(0.5, 0, 1))
    assert command("--splits", "sessions") == 0
    (result,) = read(tmp_path)["results"]
    assert result["folds_by_seed"] == {"1": [0]} and result["num_scans"] == {"1": 80}


def test_figures_whose_verdicts_were_not_kept_stay_in_the_table(command, tmp_path):
    for model, skill in (("causal", 2.0), ("cnn", 0.5)):
        leave_run(tmp_path / "work" / model / "random_seed1", verdicts(skill, 0, 1))
    assert command("--splits", "random") == 0
    before = read(tmp_path)["results"]
    for folder in (tmp_path / "work" / "cnn", tmp_path / "results" / accuracy.KEPT / "cnn"):
        shutil.rmtree(folder)
    assert command("--splits", "random") == 0
    assert read(tmp_path) == {"results": before, "differences": []}


def test_figures_that_are_not_asked_for_stay_in_the_table(command, tmp_path):
    for model, skill in (("causal", 2.0), ("cnn", 0.5)):
        for name in ("random_seed1", "sessions_seed1_fold0"):
            leave_run(tmp_path / "work" / model / name, verdicts(skill, 0, 1))
    assert command() == 0
    before = read(tmp_path)["results"]
    assert command("--splits", "random", "--models", "cnn") == 0

    def by_place(rows: list) -> list:
        return sorted(rows, key=lambda row: (row["model"], row["split"]))

    assert by_place(read(tmp_path)["results"]) == by_place(before) and len(before) == 4


def test_another_seed_does_not_cost_what_was_kept_of_the_first(command, tmp_path):
    for fold in range(5):
        leave_run(tmp_path / "work" / "causal" / f"sessions_seed1_fold{fold}", verdicts(2.0, fold, 1))
    assert command("--splits", "sessions") == 0
    shutil.rmtree(tmp_path / "work")  # another machine
    leave_run(tmp_path / "work" / "causal" / "sessions_seed2_fold0", verdicts(2.0, 0, 2))
    assert command("--splits", "sessions") == 0
    (result,) = read(tmp_path)["results"]
    assert result["folds_by_seed"] == {"1": [0, 1, 2, 3, 4], "2": [0]}
    leave_run(tmp_path / "work" / "causal" / "sessions_seed2_fold1", verdicts(2.0, 1, 2), optim="muon")
    shutil.rmtree(tmp_path / "work" / "causal" / "sessions_seed2_fold0")  # by another recipe now
    assert command("--splits", "sessions") == 0
    (result,) = read(tmp_path)["results"]
    assert (result["folds_by_seed"], result["optimizer"]) == ({"2": [1]}, "muon")


def test_nothing_to_report(command, capsys):
    assert command() == 1
    assert "nothing to report" in capsys.readouterr().out


def test_runs_differ_in_nothing_but_model_seed_and_fold(command, tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    planned = []
    monkeypatch.setattr(accuracy, "execute_all", lambda runs, jobs, console: planned.extend(runs) or [])
    arguments = ["--data_dir", "d", "--work_dir", str(tmp_path), "--models", "causal", "cnn", "--seeds", "1", "2"]
    arguments += ["--start", f"causal={tmp_path / 'start'}", "--results", str(tmp_path / "results")]
    arguments += ["--teachers", f"cnn={tmp_path}", f"cnn={tmp_path / 'start'}"]
    assert main([*arguments, "--extra", "--bf16", "true"]) == 1
    assert len({run.folder for run in planned}) == len(planned) == 2 * 2 * (1 + 5)
    for run in planned:
        options = dict(zip(run.arguments, run.arguments[1:], strict=False))
        assert "--no_load_best_model_at_end" in run.arguments and options["--bf16"] == "true"
        assert ("--model_name_or_path" in options) == (options["--config"] == "causal")
        if options["--config"] == "cnn":  # of each run those of its own split, seed and fold
            of_run = run.arguments[run.arguments.index("--teachers") + 1 :]
            assert of_run == (str(tmp_path / run.folder.name), str(tmp_path / "start" / run.folder.name))
        else:
            assert "--teachers" not in options
        if options["--split"] == "sessions":  # fixed folds, whatever the seed
            assert options["--split_seed"] == "0" and run.folder.name.endswith(f"fold{options['--fold']}")
        else:
            assert options["--split_seed"] == options["--seed"]
    firsts = [dict(zip(run.arguments, run.arguments[1:], strict=False))["--seed"] for run in planned]
    assert firsts == sorted(firsts)  # a seed is whole before the next begins


def test_members_bring_their_split_and_are_not_trained(command, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(accuracy, "execute_all", lambda runs, jobs, console: planned.extend(runs) or [])
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    arguments = ["--data_dir", "d", "--work_dir", str(tmp_path), "--models", "ensemble", "--seeds", "1"]
    arguments += ["--results", str(tmp_path / "results"), "--members", *(f"ensemble={folder}" for folder in folders)]
    assert main(arguments) == 1
    assert len(planned) == 1 + 5
    for run in planned:
        members = run.arguments[run.arguments.index("--members") + 1 :][:2]
        assert members == tuple(str(folder / run.folder.name) for folder in folders)
        assert not {"--do_train", "--num_folds", "--split_seed"} & set(run.arguments) and "--do_eval" in run.arguments


def test_two_models_may_have_one_recipe(command, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(accuracy, "execute_all", lambda runs, jobs, console: planned.extend(runs) or [])
    (tmp_path / "large").mkdir()
    arguments = ["--data_dir", "d", "--work_dir", str(tmp_path), "--results", str(tmp_path / "results")]
    arguments += ["--models", "finetune_small", "large=finetune_small", "--seeds", "1", "--splits", "random"]
    assert main([*arguments, "--start", f"large={tmp_path / 'large'}"]) == 1
    small, large = planned
    assert (small.folder.parent.name, large.folder.parent.name) == ("finetune_small", "large")
    for run in planned:
        assert run.arguments[run.arguments.index("--config") + 1] == "finetune_small"
    assert str(tmp_path / "large") in large.arguments and "--model_name_or_path" not in small.arguments


@pytest.mark.parametrize("option", ["--start", "--teachers", "--members"])
@pytest.mark.parametrize("given", ["causal", "causal=nowhere", "vit=."])
def test_a_folder_that_is_none_is_refused(command, option, given, capsys):
    with pytest.raises(SystemExit):
        command(option, given)
    assert option in capsys.readouterr().err


def test_a_model_has_one_colour_in_the_whole_figure_and_one_name_below_it():
    flat = {str(count): {key: {"mean": 0.5, "interval": [0.4, 0.6]} for key in FIGURES} for count in LINE_COUNTS}
    drawn = [
        ("causal", "random"),
        ("cnn", "random"),
        ("causal", "sessions"),
        ("tiny", "sessions"),
        ("cnn", "sessions"),
    ]
    figure = draw([{"model": model, "split": split, "figures": flat} for model, split in drawn])
    colours: dict[str, set[str]] = {}
    for axis in figure.axes:
        for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
            colours.setdefault(name, set()).add(line.get_color())
    assert all(len(colours[model]) == 1 for model in ("causal", "cnn", "tiny"))
    assert len(set.union(*(colours[model] for model in ("causal", "cnn", "tiny")))) == 3
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == sorted(colours)


def test_the_names_of_many_models_fit_below_the_figure():
    flat = {str(count): {key: {"mean": 0.5, "interval": [0.4, 0.6]} for key in FIGURES} for count in LINE_COUNTS}
    figure = draw([{"model": f"a_model_number_{n}", "split": "random", "figures": flat} for n in range(9)])
    figure.savefig(io.BytesIO())  # lays it out
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and whole.y0 <= legend.y0
