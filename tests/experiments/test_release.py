import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from data_scripts.splits import Split
from experiments.calibration import Calibration, calibrate
from experiments.probabilities import Probabilities
from experiments.release import main
from modeling_scanline import (
    ScanlineCausalConfig,
    ScanlineCausalForImageClassification,
    ScanlineImageProcessor,
    ScanlineStreamer,
    ScanlineViTConfig,
    ScanlineViTForImageClassification,
)
from modeling_scanline.change_scanline import num_change_features
from modeling_scanline.familiarity_scanline import num_familiarity_features

NAMES = ["atoms", "rows", "defect"]
RECIPE = {"model": "causal", "learning_rate": 1e-3, "split": "sessions", "load_best_model_at_end": False}
NUM_SCANS = 90


def summary(seed: int) -> dict:
    return {
        "model_type": "scanline_causal", "num_parameters": 12, "dataset": "hsi100",
        "seed": seed, "epochs": 3.0, "steps": 30, "machine": {"device": "CPU"},
        "labels": {"train": "majority", "scored": "unanimous"}, "complete_scans_only": True,
        "split": {"counts": {"train": {"atoms": 10, "rows": 20, "defect": 30}}},
    }  # fmt: skip


def leave_fold(folder: Path, fold: int, seed: int = 42, silent: int = 0, names: list[str] = NAMES, **changes) -> Path:
    """A run of which `silent` scans have no verdict after 20 lines."""
    rng = np.random.default_rng(fold)
    labels = rng.permutation(np.arange(NUM_SCANS) % 3)
    told = 4 * np.array([0.2, 1.0])[:, None, None] * np.eye(3)[labels] + 2 * rng.standard_normal((2, 90, 3))
    scores = np.exp(2 * told)  # too sure
    scores /= scores.sum(axis=-1, keepdims=True)
    scores[0, :silent] = np.nan
    scan_ids = np.array([f"scan {fold}.{number}" for number in range(NUM_SCANS)])
    groups = np.array([f"session {fold}.{number % 3}" for number in range(NUM_SCANS)])
    folder.mkdir(parents=True)
    Probabilities(scan_ids, groups, labels, np.array(names), np.array([20, 128]), scores, scores[1]).save(folder)
    sessions = {"validation": sorted(set(groups)), "train": changes.pop("trained_on", ["session 9.9"])}
    parts = {"validation": scan_ids.tolist(), "train": ["other"]}
    Split("sessions", 0, "hsi100", parts, sessions).save(folder / "split.json")
    told = summary(seed)
    told["labels"]["scored"] = changes.pop("scored", told["labels"]["scored"])
    (folder / "summary.json").write_text(json.dumps(told))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "num_folds": 3, "fold": fold, **changes}))
    return folder


@pytest.fixture
def run(tmp_path, save_tiny) -> Path:
    folder = save_tiny(tmp_path / "run", NAMES)
    (folder / "summary.json").write_text(json.dumps(summary(0)))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "split": "all"}))
    Split("all", 0, "hsi100", {"train": ["scan 0.0", "other"]}, {"train": ["session 0.0"]}).save(folder / "split.json")
    return folder


def publish(run: Path, *folds: Path, more: tuple[str, ...] = ()) -> int:
    output = str(run.parent / "hub" / "scanline-x")
    return main(["--run", str(run), "--folds", *map(str, folds), "--output", output, *more])


@pytest.fixture
def hub(run, tmp_path) -> Path:
    (tmp_path / "fold0.log").touch()
    folds = [leave_fold(tmp_path / f"fold{fold}", fold) for fold in range(2)]
    assert publish(run, *folds, tmp_path / "fold0.log") == 0
    return tmp_path / "hub" / "scanline-x"


def test_the_folder_loads_where_the_project_is_not_known_and_is_calibrated(hub, run, tmp_path):
    np.save(tmp_path / "lines.npy", np.random.default_rng(0).standard_normal((1, 128, 32)).astype(np.float32))
    code = (
        "import sys, numpy as np, torch; from transformers import AutoModelForImageClassification as Auto; "
        f"model = Auto.from_pretrained({str(hub)!r}, trust_remote_code=True).eval(); "
        f"lines = torch.from_numpy(np.load({str(tmp_path / 'lines.npy')!r})); "
        "print(model(pixel_values=lines).logits[0].tolist())"
    )
    command = [sys.executable, "-I", "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    lines = torch.from_numpy(np.load(tmp_path / "lines.npy"))
    with torch.no_grad():
        plain = AutoModelForImageClassification.from_pretrained(run).eval()(pixel_values=lines).logits[0]
    calibration = json.loads((hub / "release.json").read_text())["calibration"]
    temperature, exponent, biases = (calibration[name][-1] for name in ("temperatures", "exponents", "biases"))
    assert temperature != pytest.approx(1, abs=0.05) and np.abs(biases).max() > 0.05 and abs(exponent) > 0.01
    expected = calibrate(plain.softmax(-1).numpy(), temperature, np.array(biases), exponent)
    np.testing.assert_allclose(torch.tensor(json.loads(printed)).softmax(-1), expected, atol=1e-5)


def test_weights_that_are_stored_in_half_the_bits_are_computed_with_as_before(run, hub, tmp_path):
    whole_size, whole = (hub / "model.safetensors").stat().st_size, json.loads((hub / "release.json").read_text())
    folds = [tmp_path / f"fold{fold}" for fold in range(2)]
    assert publish(run, *folds, more=("--dtype", "float16")) == 0
    stored = load_file(hub / "model.safetensors")
    assert {weights.dtype for weights in stored.values()} == {torch.float16}
    assert (hub / "model.safetensors").stat().st_size < 0.7 * whole_size
    half = json.loads((hub / "release.json").read_text())
    np.testing.assert_allclose(half["example"], whole["example"], atol=5e-3)
    assert half["example"] != whole["example"]  # that of what is shipped
    assert "stored in float16" in (hub / "README.md").read_text()
    code = (
        "import sys; from transformers import AutoModelForImageClassification as Auto; "
        f"model = Auto.from_pretrained({str(hub)!r}, trust_remote_code=True); "
        "print({str(weights.dtype) for weights in model.parameters()}, model.config.dtype)"
    )
    command = [sys.executable, "-I", "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert printed.split() == ["{'torch.float32'}", "torch.float32"]


def test_it_names_the_scans_that_it_was_trained_on(hub, run):
    assert (hub / "split.json").read_text() == (run / "split.json").read_text()


def test_the_calibration_comes_from_all_folds_and_figures_from_the_other_ones(hub, tmp_path):
    release = json.loads((hub / "release.json").read_text())
    verdicts = [Probabilities.load(tmp_path / f"fold{fold}") for fold in range(2)]
    expected = Calibration.fit(verdicts)
    np.testing.assert_allclose(release["calibration"]["temperatures"], expected.temperatures, atol=1e-3)
    np.testing.assert_allclose(release["calibration"]["exponents"], expected.exponents, atol=1e-3)
    np.testing.assert_allclose(release["calibration"]["biases"], expected.biases, atol=1e-3)
    assert release["num_scans"] == 2 * NUM_SCANS and len(release["sessions"]) == 6
    whole = release["by_lines"]["whole"]
    assert whole["expected_calibration_error"] < whole["expected_calibration_error_before"]
    assert np.sum(release["confusion"]) == 2 * NUM_SCANS
    right = sum(session["accuracy"] * sum(session["counts"]) for session in release["sessions"].values())
    assert right == pytest.approx(np.trace(release["confusion"])) == pytest.approx(whole["accuracy"] * 2 * NUM_SCANS)
    surest = [mistake["probability"] for mistake in release["mistakes"]]
    assert len(surest) == 10 and surest == sorted(surest, reverse=True)


def test_what_other_weights_failed_at_is_not_shipped(hub, run, tmp_path):
    for name in ("failures.json", "failures.png"):
        (hub / name).write_text("{}")
    assert publish(run, tmp_path / "fold0", tmp_path / "fold1") == 0
    assert not list(hub.glob("failures*")) and "failures.png" not in (hub / "README.md").read_text()


def test_thresholds_for_deciding_early_are_shipped_and_shown(hub):
    decisions = json.loads((hub / "release.json").read_text())["decisions"]
    streamer = ScanlineStreamer.from_pretrained(hub, alpha=decisions["alphas"][-1])
    assert streamer.threshold == decisions["thresholds"][-1]
    shown = next(row for row in decisions["early"] if row["alpha"] == decisions["alphas"][-1])
    assert f"| alpha {shown['alpha']} | {shown['median_lines']:g} |" in (hub / "README.md").read_text()
    assert [row["lines"] for row in decisions["fixed"]] == [20, 128]


def test_the_search_for_tip_changes_is_shipped_and_shown(run, tmp_path):
    row = {
        "scans": "spliced", "threshold": 0.75, "changes": 7, "recall": 0.51, "precision": 0.625, "median_delay": None,
        "unchanged_scans": 9, "false_alarms_per_100": 11.1,
    }  # fmt: skip
    weights = [0.5] * (num_change_features(32) + 1)
    found = {"rows": [row, {**row, "threshold": 0.5}], "change_weights": weights, "change_threshold": 0.75}
    (tmp_path / "tip_change.json").write_text(json.dumps(found))
    folds = [leave_fold(tmp_path / f"fold{fold}", fold) for fold in range(2)]
    assert publish(run, *folds, more=("--tip_change", str(tmp_path / "tip_change.json"))) == 0
    hub = tmp_path / "hub" / "scanline-x"
    config = ScanlineStreamer.from_pretrained(hub).model.config
    assert config.change_weights == weights and config.change_threshold == 0.75
    assert (hub / "README.md").read_text().count("| spliced | 7 | 0.510 | 0.625 |  | 9 | 11.1 |") == 1


def test_what_scans_of_training_look_like_is_shipped_and_shown(run, tmp_path):
    size = num_familiarity_features(32)
    settings = {
        "familiarity_mean": [0.5] * size, "familiarity_whitening": [1.0] * (size * (size + 1) // 2),
        "familiarity_lines": [10, 20], "familiarity_thresholds": [1.0, 2.0],
    }  # fmt: skip
    row = {"scans": "simulated au111", "number": 9, "flagged": [0.25, None]}
    told = {"line_counts": [10, 20], "num_scans": 70, "num_sessions": 5, "allowed": 0.05, "rows": [row]}
    (tmp_path / "familiarity.json").write_text(json.dumps(settings | told | {"files": []}))
    folds = [leave_fold(tmp_path / f"fold{fold}", fold) for fold in range(2)]
    more = ("--familiarity", str(tmp_path / "familiarity.json"), "--normalization", "flat_line")
    assert publish(run, *folds, more=more) == 0
    streamer = ScanlineStreamer.from_pretrained(tmp_path / "hub" / "scanline-x")
    assert {name: getattr(streamer.model.config, name) for name in settings} == settings
    assert streamer.processor.normalization == "flat_line"
    card = (tmp_path / "hub" / "scanline-x" / "README.md").read_text()
    assert (
        "| simulated au111 | 9 | 0.250 |  |" in card and "takes the tilt out of each line first (`flat_line`)" in card
    )


def test_the_card_says_what_stands_behind_its_figures(hub, find_tables):
    card, release = ModelCard.load(hub / "README.md"), json.loads((hub / "release.json").read_text())
    assert "None of these figures is of the weights in this folder" in card.text
    assert "2 of 3 folds" in card.text and f"{2 * NUM_SCANS} complete scans" in card.text
    for figures in release["by_lines"].values():
        assert f"{figures['auroc']['mean']:.3f}" in card.text
    for figures in release["by_lines"].values():  # 90 scans a fold: chance alone gives a part of the error
        assert 0.01 < figures["expected_calibration_error_by_chance"] < 0.2
        assert f"| {figures['expected_calibration_error_by_chance']:.3f} |" in card.text
    # scans, by lines, biases, by state, by session, deciding early, confusion, mistakes
    assert [len(rows) - 1 for rows in find_tables(card.text)] == [5, 3, 2, 6, 6, 7, 3, 10]


def test_a_remark_stands_on_the_card(run, tmp_path):
    folds = [leave_fold(tmp_path / f"fold{fold}", fold) for fold in range(2)]
    assert publish(run, *folds, more=("--remark", "Chosen on Sundays.")) == 0
    assert "\n\nChosen on Sundays.\n\n" in (tmp_path / "hub" / "scanline-x" / "README.md").read_text()


@pytest.mark.parametrize("weight", [0.5, None], ids=["with next lines", "of a model that knows none"])
def test_weights_of_training_alone_are_not_shipped(run, tmp_path, weight):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {"id2label": dict(enumerate(NAMES)), "pixels_per_line": 32}
    if weight is None:
        model = ScanlineViTForImageClassification(ScanlineViTConfig(**sizes, **names))
    else:
        config = ScanlineCausalConfig(**sizes, **names, tokenizer_channels=[4, 4, 4], next_line_weight=weight)
        model = ScanlineCausalForImageClassification(config)
    model.save_pretrained(run)
    ScanlineImageProcessor(pixels_per_line=32).save_pretrained(run)
    folds = [leave_fold(tmp_path / f"fold{fold}", fold) for fold in range(2)]
    assert publish(run, *folds) == 0
    shipped = load_file(tmp_path / "hub" / "scanline-x" / "model.safetensors")
    assert shipped.keys() == {name for name in model.state_dict() if not name.startswith("next_lines.")}


def test_the_recipes_of_teachers_travel_along(run, tmp_path):
    for name, recipe in (
        ("start", {"dataset": "simulated"}),
        ("teacher", {"model_name_or_path": str(tmp_path / "start")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "epochs": 2}))
    taught = {"teacher_share": 0.5}
    of_run = {**RECIPE, **taught, "split": "all", "teachers": [str(tmp_path / "teacher"), str(tmp_path / "start")]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(of_run))
    told = summary(0)
    told["labels"] |= {"teachers": 2, "teacher_share": 0.5, "by_teachers": 12}
    (run / "summary.json").write_text(json.dumps(told))
    # each fold has teachers of its own
    folds = [
        leave_fold(tmp_path / f"fold{fold}", fold, **taught, teachers=[f"of{fold}", f"more of{fold}"])
        for fold in range(2)
    ]
    assert publish(run, *folds) == 0
    hub = tmp_path / "hub" / "scanline-x"
    assert json.loads((hub / "release.json").read_text())["teachers"] == [
        {"recipe": {"epochs": 2}, "pretraining_recipe": {"dataset": "simulated", "epochs": 2}},
        {"recipe": {"dataset": "simulated", "epochs": 2}, "pretraining_recipe": {}},
    ]
    card = (hub / "README.md").read_text()
    assert "majority labels of 48 scans" in card and "50 % of each label is the mean verdict of 2 other models" in card
    assert "whole label of 12 more scans" in card and "as people or teachers see it" in card


def leave_members(folder: Path, rates: tuple[float, ...], **changes) -> list[str]:
    for number, rate in enumerate(rates):
        (folder / f"member{number}").mkdir(parents=True)
        recipe = {**RECIPE, "learning_rate": rate, **changes}
        (folder / f"member{number}" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [str(folder / f"member{number}") for number in range(len(rates))]


def test_an_ensemble_is_vouched_for_by_folds_whose_members_were_trained_alike(run, tmp_path, caplog):
    members = leave_members(tmp_path / "of run", (0.1, 0.2), split="all")
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "split": "all", "members": members}))
    told = summary(0) | {"epochs": 0, "steps": 0}
    of_member = {"epochs": 13.0, "steps": 40, "seed": 3, "rehearsed": 1000, "start_scans": 2000}
    told["members"] = [of_member, of_member | {"rehearsed": 0}]
    (run / "summary.json").write_text(json.dumps(told))
    folds = [
        leave_fold(
            tmp_path / f"fold{fold}",
            fold,
            members=leave_members(tmp_path / f"of fold {fold}", (0.1, 0.2), num_folds=3, fold=fold),
            num_folds=0,
        )
        for fold in range(2)
    ]
    assert publish(run, *folds) == 0
    hub = tmp_path / "hub" / "scanline-x"
    (hub / "pretraining_recipe.yaml").touch()
    assert publish(run, *folds) == 0 and not (hub / "pretraining_recipe.yaml").exists()
    described = json.loads((hub / "release.json").read_text())["members"]
    assert [member["recipe"]["learning_rate"] for member in described] == [0.1, 0.2]
    card = (hub / "README.md").read_text()
    assert "2 of 3 folds of whole sessions" in card and "`recipe.yaml` joins the runs, `members` in" in card
    assert (
        "One network: 13 epochs, 40 steps, seed 3, from weights trained on 2,000 simulated scans, with 1,000" in card
    )
    other = leave_fold(tmp_path / "fold9", 9, members=leave_members(tmp_path / "of fold 9", (0.1, 0.3)))
    assert publish(run, folds[0], other) == 2 and "learning_rate=0.2, that of a fold learning_rate=0.3" in caplog.text
    single = leave_fold(tmp_path / "fold8", 8)
    assert publish(run, folds[0], single) == 2 and "has 2 members, a fold 0" in caplog.text


def test_the_recipes_travel_without_paths(run, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "recipe.yaml").write_text(yaml.safe_dump({"dataset": "simulated", "output_dir": str(start)}))
    (start / "summary.json").write_text(json.dumps(summary(7)))
    with_start = {"model_name_or_path": str(start), "data_dir": str(tmp_path)}
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **with_start, "split": "all"}))
    assert (
        publish(run, leave_fold(tmp_path / "fold", 0, **with_start), leave_fold(tmp_path / "two", 1, **with_start))
        == 0
    )
    hub = tmp_path / "hub" / "scanline-x"
    assert yaml.safe_load((hub / "pretraining_recipe.yaml").read_text()) == {"dataset": "simulated"}
    assert not any(
        str(tmp_path) in path.read_text() for path in hub.iterdir() if path.suffix not in (".safetensors", ".png")
    )
    assert "trained on 60 simulated scans" in (hub / "README.md").read_text()


def test_three_seeds_are_told_as_three(run, tmp_path):
    folds = [
        leave_fold(tmp_path / f"fold{fold}_{seed}", fold, seed, silent=2) for seed in (44, 42, 43) for fold in range(2)
    ]
    assert publish(run, *folds) == 0
    hub = tmp_path / "hub" / "scanline-x"
    described = json.loads((hub / "release.json").read_text())
    assert described["seeds"] == [42, 43, 44]
    assert [row["alpha"] for row in described["decisions"]["early"]] == [0.02, 0.05, 0.1, 0.15, 0.2]
    assert [row["lines"] for row in described["decisions"]["fixed"]] == [20, 128]
    card = (hub / "README.md").read_text()
    assert "2 of 3 folds of whole sessions, seeds 42, 43, 44" in card and "By session, whole scans, seed 42" in card
    assert "What it said of whole scans, seed 42," in card and "180 complete scans with unanimous labels" in card


def test_folds_that_differ_are_not_put_together(run, tmp_path, caplog):
    def refused(*folds: Path) -> str:
        caplog.clear()
        assert publish(run, *folds) == 2
        return caplog.text

    plain = [leave_fold(tmp_path / f"fold{fold}", fold) for fold in range(2)]
    of_43 = [leave_fold(tmp_path / f"fold{fold}_43", fold, 43) for fold in (1, 2)]
    assert "seeds 42, 43 have other folds each" in refused(*plain, *of_43)
    by_majority = leave_fold(tmp_path / "by_majority", 1, scored="majority")
    assert "not scored on the same kind of scans" in refused(plain[0], by_majority)
    turned = [leave_fold(tmp_path / f"turned{fold}", fold, names=NAMES[::-1]) for fold in range(2)]
    assert "the same label_names" in refused(plain[0], turned[1])
    turned_43 = [leave_fold(tmp_path / f"turned{fold}_43", fold, 43, names=NAMES[::-1]) for fold in range(2)]
    assert "the same label_names, in the same order" in refused(*plain, *turned_43)
    assert "its classes are atoms, rows, defect, those of its folds defect, rows, atoms" in refused(*turned)
    taught = [leave_fold(tmp_path / f"taught{fold}", fold, teachers=["one"]) for fold in range(2)]
    assert "learned from 0 teachers, a fold from 1" in refused(*taught)
    Split("sessions", 0, "hsi100", {"train": ["other"], "validation": ["scan"]}).save(run / "split.json")
    assert "was not trained on every scan" in refused(*plain)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"learning_rate": 2e-3}, "its recipe has learning_rate=0.001"),
        ({"trained_on": ["session 1.1"]}, "a session that it was scored on"),
        ({"load_best_model_at_end": True}, "best on its own scans"),
        ({}, "seed 42 has one fold"),
    ],
)
def test_folds_that_cannot_vouch_are_refused(run, tmp_path, changes, reason, caplog):
    fold = leave_fold(tmp_path / "fold", 1, **changes)
    assert publish(run, fold) == 2
    assert reason in caplog.text
    assert not (tmp_path / "hub").exists()


def test_folds_may_come_from_another_machine_and_may_have_been_stopped_on_their_way(run, tmp_path):
    of_machine = {"resume_from_checkpoint": "true", "use_cpu": True, "dataloader_num_workers": 2}
    assert publish(run, leave_fold(tmp_path / "one", 1, **of_machine), leave_fold(tmp_path / "two", 2)) == 0
