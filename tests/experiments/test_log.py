import json
import re
import shutil
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from transformers import TrainingArguments

from benchmarks.analyze import fabricate_earlier, fabricate_run, fabricated_verdict
from configuration import ScanlineTrainingArguments
from experiments.analysis import reported
from experiments.analysis.comparison import compare, group_runs, judge, rankings
from experiments.analysis.record import RunRecord, find_runs, library_defaults, varying
from experiments.intervals import balanced_accuracy, session_weights
from experiments.log import main, write_log
from experiments.probabilities import Probabilities
from experiments.run_folder import read_metrics, read_recipe, write_recipe
from experiments.sweep import Sweep


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two recipes that differ much and one that hardly differs from the first, two seeds each."""
    for name, skill, decay in (("plain", 1.0, 0.0), ("near", 1.005, 0.01), ("poor", 0.2, 0.5)):
        for seed in (1, 2):
            folder = tmp_path / "runs" / f"{name}_seed{seed}"
            fabricate_run(folder, epochs=8, skill=skill, seed=seed, weight_decay=decay, data_dir=str(tmp_path))
    return tmp_path / "runs"


def log_of(folder: Path) -> str:
    return write_log(find_runs([folder]))


def leave_out(folder: Path, *names: str) -> Path:
    """Takes options out of the recipe of a run, as a run does with those that have the library's default."""
    write_recipe(folder, {name: value for name, value in read_recipe(folder).items() if name not in names})
    return folder


def verdicts_of(folder: Path) -> dict:
    return {experiment.name: judge(experiment)[0] for experiment in group_runs(find_runs([folder]))}


def part_of(verdict: Probabilities, kept: slice) -> Probabilities:
    by_scan = {name: getattr(verdict, name)[kept] for name in ("scan_ids", "groups", "labels", "whole")}
    return replace(verdict, **by_scan, by_lines=verdict.by_lines[:, kept])


class TestComparison:
    def test_seeds_of_a_recipe_are_averaged(self, runs):
        verdicts = verdicts_of(runs)
        assert set(verdicts) == {"plain", "near", "poor"} and verdicts["plain"].seeds == 2
        expected = [
            balanced_accuracy_score(verdict.labels, verdict.whole.argmax(axis=1))
            for verdict in (fabricated_verdict(1.0, seed) for seed in (1, 2))
        ]
        assert verdicts["plain"].figures["whole"]["balanced_accuracy"]["mean"] == pytest.approx(np.mean(expected))

    def test_classes_without_a_scan_do_not_keep_runs_apart(self, runs):
        for path in (runs / "poor_seed1", runs / "poor_seed2"):
            verdict = Probabilities.load(path)
            empty = np.zeros((*verdict.by_lines.shape[:2], 2))
            replace(
                verdict,
                label_names=np.append(verdict.label_names, ["unused_1", "unused_2"]),
                by_lines=np.concatenate([verdict.by_lines, empty], axis=-1),
                whole=np.concatenate([verdict.whole, empty[0]], axis=-1),
            ).save(path)
        (group,) = rankings([verdict for verdict in verdicts_of(runs).values() if verdict])
        assert {verdict.experiment.name for verdict in group} == {"plain", "near", "poor"}

    def test_differences_are_paired_over_the_same_sessions(self, runs):
        verdicts = verdicts_of(runs)
        (difference,) = [
            difference
            for difference in compare(verdicts["plain"], verdicts["poor"])
            if (difference.lines, difference.figure) == ("20", "balanced_accuracy")
        ]
        drawn = session_weights(fabricated_verdict(1, 0).groups, 1000)
        resampled = np.zeros(1000)
        for skill, sign in ((1.0, 1), (0.2, -1)):
            for seed in (1, 2):
                verdict = fabricated_verdict(skill, seed)
                resampled += sign / 2 * balanced_accuracy(verdict.by_lines[2], verdict.labels, drawn)
        np.testing.assert_allclose(difference.interval, np.quantile(resampled, [0.025, 0.975]), atol=1e-9)
        assert difference.told_apart and not difference.seeds_overlap

    def test_of_alike_models_it_says_that_they_cannot_be_told_apart(self, runs):
        text = log_of(runs)
        (line,) = re.findall(r"- On whole scans, (?:near against plain|plain against near): .*", text)
        assert "the two cannot be told apart" in line
        (line,) = re.findall(r"- On whole scans, (?:near|plain) against poor: .*", text)
        assert line.count(", ahead") == 2 and "cannot" not in line

    def test_folds_of_a_seed_are_put_together(self, tmp_path):
        whole = fabricated_verdict(1.0, 1)
        for fold, kept in enumerate((slice(0, 300), slice(300, 500))):
            folder = fabricate_run(tmp_path / f"cnn_seed1_fold{fold}", epochs=1, seed=1, fold=fold)
            part_of(whole, kept).save(folder)
        fabricate_run(tmp_path / "whole_seed1", epochs=1, seed=1, weight_decay=0.9)
        verdicts = verdicts_of(tmp_path)
        assert verdicts["cnn"].num_scans == 500 and verdicts["cnn"].seeds == 1
        assert verdicts["cnn"].scans == verdicts["whole_seed1"].scans
        assert all(d.ahead == 0 for d in compare(verdicts["cnn"], verdicts["whole_seed1"]))

    def test_models_of_other_scans_are_not_ranked(self, tmp_path):
        for name, kept in (("one", slice(0, 300)), ("two", slice(300, 500))):
            folder = fabricate_run(tmp_path / name, epochs=1, weight_decay=len(name), hidden=name)
            part_of(fabricated_verdict(1.0, 1), kept).save(folder)
        verdicts = verdicts_of(tmp_path)
        assert [len(group) for group in rankings(list(verdicts.values()))] == [1, 1]
        with pytest.raises(ValueError, match="not scored on the same scans"):
            compare(verdicts["one"], verdicts["two"])
        assert "nothing is ranked" in log_of(tmp_path)

    def test_the_same_scans_with_other_labels_are_other_scans(self, tmp_path):
        verdict = fabricated_verdict(1.0, 1)
        fabricate_run(tmp_path / "one", epochs=1)
        fabricate_run(tmp_path / "two", epochs=1, weight_decay=0.3)
        replace(verdict, labels=np.roll(verdict.labels, 1)).save(tmp_path / "two")
        assert "nothing is ranked" in log_of(tmp_path)

    def test_too_few_sessions_make_no_interval(self, tmp_path):
        for name, skill in (("one", 1.0), ("two", 0.1)):
            folder = fabricate_run(tmp_path / name, epochs=1, skill=skill, weight_decay=skill)
            fabricated_verdict(skill, 1, num_sessions=4).save(folder)
        text = log_of(tmp_path)
        assert "fewer than 5 sessions to tell chance by" in text and ", ahead" not in text

    def test_splits_that_change_with_the_seed_are_compared_seed_by_seed(self, tmp_path):
        for name, decay in (("one", 0.1), ("two", 0.2)):
            for seed, kept in ((1, slice(0, 300)), (2, slice(200, 500))):
                folder = tmp_path / f"{name}_seed{seed}"
                fabricate_run(folder, epochs=1, seed=seed, split="random", split_seed=seed, weight_decay=decay)
                part_of(fabricated_verdict(1.0, seed), kept).save(folder)
        verdicts = verdicts_of(tmp_path)
        assert verdicts["one"].scans == verdicts["two"].scans and verdicts["one"].seeds == 2
        shutil.rmtree(tmp_path / "two_seed2")
        verdicts = verdicts_of(tmp_path)
        assert verdicts["one"].scans != verdicts["two_seed1"].scans

    def test_a_run_done_twice_counts_as_another_seed(self, tmp_path):
        for name in ("first", "again"):
            fabricate_run(tmp_path / name, epochs=1)
        (verdict,) = verdicts_of(tmp_path).values()
        assert verdict.seeds == 2

    def test_probabilities_that_do_not_fit_are_left_out_by_name(self, runs):
        verdict = fabricated_verdict(1.0, 1)
        replace(verdict, labels=verdict.labels[:-1]).save(runs / "poor_seed1")
        assert "- poor_seed1: its probabilities do not fit together; left out of the comparison." in log_of(runs)


class TestLog:
    def test_is_written_by_one_command_and_the_same_each_time(self, runs, tmp_path, capsys):
        elsewhere = tmp_path / "other" / "place"
        shutil.copytree(runs, elsewhere)
        for folder, name in ((runs, "a.md"), (runs, "b.md"), (elsewhere, "c.md")):
            assert main([str(folder), "--output", str(tmp_path / "logs" / name)]) == 0
        texts = {(tmp_path / "logs" / name).read_bytes() for name in ("a.md", "b.md", "c.md")}
        assert len(texts) == 1
        assert str(tmp_path).encode() not in texts.pop()
        assert "6 runs: 6 complete." in capsys.readouterr().err

    def test_has_the_templates_parts_for_each_experiment(self, runs):
        text = log_of(runs)
        for name in ("plain", "near", "poor"):
            section = text.split(f"### Experiment: {name}\n")[1].split("### Experiment")[0]
            places = [section.index(f"**{part}**:") for part in ("Configuration", "Results", "Analysis", "Next steps")]
            assert places == sorted(places)
            assert "**Status**: Complete (2 runs)" in section and "- Seeds: 1, 2" in section
            for line in ("- Layers: 4", "- LR: 0.0001", "- LR schedule: cosine", "- Class weights: balanced"):
                assert line in section
        assert "- Weight decay: 0.5" in text and "- Num classes: 4 (individual_atoms," in text

    def test_of_one_run_shows_what_the_analyzer_says(self, tmp_path):
        fabricate_run(tmp_path / "20261123_101500_j77", epochs=12)
        text = log_of(tmp_path)
        assert "**Date**: 2026-11-23" in text and "**Run**: `20261123_101500_j77/`" in text
        block = text.split("```\n")[1]
        assert "=== validation ===" in block and "Validation loss turned: epoch 8" in block

    def test_states_what_a_rule_can(self, tmp_path):
        fabricate_run(tmp_path / "run", epochs=20)
        text = log_of(tmp_path)
        for expected in (
            "- **Overfitting**: train accuracy ends 17.0 points above validation.",
            "- **Validation loss turned** at epoch 13: ",
            "- **Plateau**: from epoch ",
            "- Best epoch by validation balanced accuracy: ",
            "- Train loss was still falling at the last epoch.",
            "- Weakest class: ",
            "- After 20 lines: balanced accuracy ",
        ):
            assert expected in text

    def test_says_that_a_run_diverged_or_guesses(self, tmp_path):
        folder = fabricate_run(tmp_path / "run", epochs=3, skill=0.0)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        records[1]["train"]["loss"] = float("nan")
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
        text = log_of(tmp_path)
        assert "**Diverged**: the loss is no number from epoch 2 on." in text
        assert "**Close to guessing**: " in text and "where guessing gives 25 %" in text

    def test_keeps_the_notes_of_a_run(self, runs):
        (runs / "poor_seed2" / "notes.md").write_text("- Try *dropout* 0.2.\n- Then stop.\n")
        text = log_of(runs)
        section = text.split("### Experiment: poor\n")[1].split("### Experiment")[0]
        assert "**Next steps**:\n\n- Try *dropout* 0.2.\n- Then stop.\n" in section
        assert text.count("- None noted.") == 2

    def test_names_what_is_unfinished_or_broken(self, runs):
        (runs / "near_seed2" / "summary.json").unlink()
        (runs / "poor_seed1" / "summary.json").write_text("{")
        text = log_of(runs)
        assert "- 6 runs: 4 complete, 1 unfinished, 1 broken." in text
        assert "- poor_seed1: broken; summary.json is damaged." in text
        assert text.count("**Status**: 1 of 2 runs complete") == 2
        assert "near_seed2 (unfinished)" in text

    def test_says_whose_epoch_was_chosen_on_the_scans_it_is_ranked_by(self, tmp_path):
        fabricate_run(tmp_path / "chosen", epochs=1, load_best_model_at_end=True)
        fabricate_run(tmp_path / "last", epochs=1)
        assert "chosen on these very scans: chosen." in log_of(tmp_path)

    def test_holds_the_earlier_project_too(self, tmp_path):
        folder = fabricate_earlier(tmp_path / "runs" / "20251203_142000_j324891", epochs=6)
        (folder / "config.json").write_text(json.dumps({"num_layers": 6, "d_model": 256, "data": "/scratch/me/scans"}))
        fabricate_run(tmp_path / "runs" / "ours", epochs=2)
        text = log_of(tmp_path / "runs")
        assert "(earlier project)" in text and "- num_layers: 6" in text and "/scratch" not in text
        assert "**Date**: 2025-12-03" in text and "| 20251203_142000_j324891 |" in text

    def test_weights_to_start_from_are_named_without_their_place(self, tmp_path):
        fabricate_run(tmp_path / "tuned", epochs=1, model_name_or_path=str(tmp_path / "far" / "pretrained"))
        text = log_of(tmp_path)
        assert "- Starts from: pretrained" in text and "/far" not in text

    def test_options_that_differ_stand_beside_the_figures(self, runs):
        table = log_of(runs).split("## Runs")[1].split("## Experiments")[0]
        assert "| run | weight decay | epochs |" in table and "| poor_seed1 | 0.5 |" in table

    def test_an_option_newer_than_a_run_makes_no_difference(self, tmp_path):
        fabricate_run(tmp_path / "old", epochs=1)
        fabricate_run(tmp_path / "new", epochs=1, dedupe=False, weight_decay=0.3)
        assert "dedupe" not in log_of(tmp_path)

    def test_a_seed_that_a_recipe_leaves_to_the_library_is_named(self, tmp_path):
        for seed in (42, 43, 44):
            fabricate_run(tmp_path / f"plain_seed{seed}", epochs=1, seed=seed, fold=0, num_folds=0)
        leave_out(tmp_path / "plain_seed42", "seed")
        text = log_of(tmp_path)
        assert "- Seeds: 42, 43, 44\n" in text and "- Fold" not in text and "| plain_seed42 | 42 |" in text

    def test_a_fold_is_named_where_there_are_folds(self, tmp_path):
        fabricate_run(tmp_path / "part", epochs=1, fold=0, num_folds=5)
        assert "- Fold: 0\n" in log_of(tmp_path)

    def test_an_option_at_the_librarys_default_is_compared_too(self, tmp_path):
        for name, decay, steps in (("none", 0.0, 1), ("some", 0.1, 2)):
            folder = fabricate_run(tmp_path / name, epochs=1, weight_decay=decay, gradient_accumulation_steps=steps)
            if decay == 0:
                leave_out(folder, "weight_decay", "gradient_accumulation_steps")
        text = log_of(tmp_path)
        assert "| run | weight decay | gradient accumulation steps | epochs |" in text
        assert "| none | 0 | 1 |" in text and "| some | 0.1 | 2 |" in text
        assert "- Weight decay: 0\n" in text and "- Other: gradient_accumulation_steps 2\n" in text

    def test_without_runs_is_bad_input(self, tmp_path, capsys):
        assert main([str(tmp_path), "--output", str(tmp_path / "x.md")]) == 2
        assert "holds no run" in capsys.readouterr().err and not (tmp_path / "x.md").exists()

    def test_help_teaches(self, capsys):
        with pytest.raises(SystemExit):
            main(["--help"])
        assert capsys.readouterr().out.count("python -m experiments.log") >= 3


def test_runs_of_one_recipe_are_one_experiment_whatever_the_machine(tmp_path):
    fabricate_run(tmp_path / "a_seed1", epochs=1, seed=1, data_dir="here", use_cpu=True)
    fabricate_run(tmp_path / "a_seed2", epochs=1, seed=2, data_dir="there", use_cpu=False)
    assert [experiment.name for experiment in group_runs(find_runs([tmp_path]))] == ["a"]
    assert RunRecord.load(tmp_path / "a_seed1").recipe.keys().isdisjoint({"data_dir", "output_dir", "use_cpu"})


def test_a_default_of_the_library_is_the_same_said_or_not(tmp_path):
    for name in ("said_seed1", "left_seed2"):
        fabricate_run(tmp_path / name, epochs=1, seed=int(name[-1]), weight_decay=0.0, bf16=False)
    leave_out(tmp_path / "left_seed2", "weight_decay", "bf16")
    runs = find_runs([tmp_path])
    assert len(group_runs(runs)) == 1 and varying(runs) == ["seed"]
    fabricate_run(tmp_path / "noisy_seed1", epochs=1, seed=1, weight_decay=0.0, neftune_noise_alpha=5.0)
    runs = find_runs([tmp_path])
    assert len(group_runs(runs)) == 2 and varying(runs) == ["neftune_noise_alpha", "seed"]


def test_the_seed_is_that_of_the_summary_or_else_the_librarys(tmp_path):
    folder = leave_out(fabricate_run(tmp_path / "run", epochs=1, seed=7), "seed")
    assert RunRecord.load(folder).options["seed"] == 7
    (folder / "summary.json").unlink()
    assert RunRecord.load(folder).options["seed"] == 42
    assert not RunRecord.load(fabricate_earlier(tmp_path / "old", epochs=1)).recipe


def test_the_defaults_are_those_that_a_recipe_leaves_out():
    own = vars(ScanlineTrainingArguments)["__annotations__"]
    expected = {
        entry.name: entry.default
        for entry in fields(TrainingArguments)
        if entry.init and entry.name not in own and entry.default is not MISSING
    }
    assert library_defaults() == expected and expected["seed"] == 42


class TestBesideTheEarlierLog:
    @pytest.fixture
    def sweep(self, tmp_path, monkeypatch) -> Path:
        """Three runs of a sweep, of which others reported two, in the wrong order; two seeds each."""
        monkeypatch.setattr(reported, "SWEEPS", tmp_path / "sweeps")
        (tmp_path / "sweeps").mkdir()
        (tmp_path / "sweeps" / "old.yaml").write_text(
            "reported: {a: {accuracy: 0.9, auroc: 0.95}, b: {accuracy: 0.4}}"
        )
        (tmp_path / "sweeps" / "again.yaml").write_text("reported: old")
        for name, skill in (("a", 0.1), ("b", 1.0), ("planned", 0.5)):
            for seed in (1, 2):
                fabricate_run(tmp_path / "again" / f"{name}_seed{seed}", epochs=4, skill=skill, seed=seed, note=name)
        return tmp_path / "again"

    def test_both_figures_stand_beside_each_other_and_so_do_the_orders(self, sweep, find_tables):
        text = log_of(sweep)
        section = text[text.index("## Beside the earlier log") : text.index("## Comparison")]
        (table,) = find_tables(section)
        rows = {row[0]: row[1:] for row in table[1:]}
        assert rows["a"][0] == "90.00%" and rows["a"][2] == "0.950" and rows["b"][0] == "40.00%"
        assert rows["planned"][0] == "–" and {row[-1] for row in rows.values()} == {"2"}
        best = [
            max(record["validation"]["accuracy"] for record in read_metrics(sweep / f"a_seed{seed}"))
            for seed in (1, 2)
        ]
        mean, low, high = (f"{100 * value:.2f}%" for value in (np.mean(best), min(best), max(best)))
        assert rows["a"][1] == f"{mean} [{low}, {high}]"
        assert "the log has b < a. The order here: by accuracy a < b; by AUROC a < b;" in section

    def test_a_sweep_that_nobody_reported_has_no_such_section(self, runs):
        assert "Beside the earlier log" not in log_of(runs)

    def test_the_sweeps_of_the_log_name_their_runs(self):
        for path in reported.SWEEPS.glob("*.yaml"):
            named = reported.read_reported(path.stem)
            assert set(named) <= set(Sweep.read(path).configurations), path.name
            assert all(0 < figure < 1 for figures in named.values() for figure in figures.values())
        assert len(reported.read_reported("regularization")) == 8 and reported.read_reported("log_small")
