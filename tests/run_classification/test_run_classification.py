"""The main job, end to end: what a run leaves, and how it goes on."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from run_cases import COMPARATORS, OVERRIDES, TINY, arguments, epochs, losses
from transformers import AutoConfig, AutoModelForImageClassification

from data_scripts.simulation import TIP_STATES
from experiments.probabilities import Probabilities
from experiments.run_folder import read_recipe
from modeling_scanline import ScanlineImageProcessor
from run_classification import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
NO_CHANCE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_a_run_leaves_everything_that_repeats_and_explains_it(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "modeling_scanline_causal.py",
        "configuration_scanline.py", "layers_scanline.py", "image_processing_scanline.py", "split.json",
        "metrics.jsonl", "summary.json", "recipe.yaml", "predictions.csv", "trainer_state.json",
    }  # fmt: skip
    assert "training_args.bin" not in names


def test_every_epoch_is_written_down_with_its_gap(finished_run):
    records = epochs(finished_run)
    assert [record["epoch"] for record in records] == list(range(1, 11))
    for record in records:
        assert {"balanced_accuracy", "auroc", "balanced_accuracy_at_5", "auroc_at_24"} <= set(record["validation"])
        assert record["gap"]["loss"] == pytest.approx(record["train"]["loss"] - record["validation"]["loss"])


def test_a_run_learns(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["validation"]["whole"]["balanced_accuracy"] > 0.9
    assert summary["validation"]["by_lines"]["24"] == summary["validation"]["whole"]
    assert summary["split"]["method"] == "sessions"
    assert summary["validation"]["whole"]["num_scans"] == sum(summary["split"]["counts"]["validation"].values())


def test_the_probabilities_are_those_that_were_scored(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    kept = Probabilities.load(finished_run)
    assert kept.label_names.tolist() == ["rows", "columns", "diagonals"]
    assert set(kept.groups) == set(json.loads((finished_run / "split.json").read_text())["sessions"]["validation"])
    for figures, probabilities in (
        (summary["validation"]["whole"], kept.whole),
        (summary["validation"]["by_lines"]["5"], kept.by_lines[kept.line_counts.tolist().index(5)]),
    ):
        assert (probabilities.argmax(axis=1) == kept.labels).mean() == pytest.approx(figures["accuracy"])


def test_weights_to_ship_are_trained_on_every_scan(scans, tmp_path):
    assert main(arguments(scans, tmp_path / "all", split="all", do_train=True, do_eval=True)) == 0
    split = json.loads((tmp_path / "all" / "split.json").read_text())
    assert set(split["parts"]) == {"train"} and len(split["parts"]["train"]) == 96
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert "validation" not in summary and summary["train"]["whole"]["num_scans"] == 96
    assert "last epoch" in (tmp_path / "all" / "README.md").read_text()
    assert main(arguments(scans, tmp_path / "again", split="all", do_predict=True)) == 2


def test_no_session_stands_on_both_sides(finished_run):
    split = json.loads((finished_run / "split.json").read_text())
    assert not set(split["sessions"]["train"]) & set(split["sessions"]["validation"])
    assert not set(split["parts"]["train"]) & set(split["parts"]["validation"])


def test_the_card_holds_the_figures_of_the_summary(finished_run, find_tables):
    card = ModelCard.load(finished_run / "README.md")
    summary = json.loads((finished_run / "summary.json").read_text())
    validation = summary["validation"]
    figures = {(each.dataset_config, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert figures["whole scans", "balanced_accuracy"] == round(validation["whole"]["balanced_accuracy"], 4)
    assert f"{validation['by_lines']['5']['auroc']:.3f}" in card.text
    assert summary["scan_lines"]["minimum"] <= summary["scan_lines"]["median"] <= summary["scan_lines"]["most"]
    right = sum(session["accuracy"] * sum(session["counts"]) for session in validation["sessions"].values())
    assert right == pytest.approx(validation["whole"]["accuracy"] * validation["whole"]["num_scans"])
    assert find_tables(card.text)


def test_the_saved_model_is_the_one_that_was_scored(finished_run, scans):
    model = AutoModelForImageClassification.from_pretrained(finished_run).eval()
    assert model.config.id2label == {0: "rows", 1: "columns", 2: "diagonals"}
    arrays = np.load(scans)
    inputs = ScanlineImageProcessor.from_pretrained(finished_run)(list(arrays["images"]), return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).logits.argmax(-1).numpy()
    with (finished_run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == [model.config.id2label[states[int(row["scan_id"])]] for row in rows]


def test_its_recipe_repeats_a_run(finished_run, tmp_path):
    recipe = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    recipe["output_dir"] = str(tmp_path / "again")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["--config", str(tmp_path / "recipe.yaml")]) == 0
    assert epochs(tmp_path / "again") == epochs(finished_run)


def test_evaluation_of_a_run_keeps_to_its_split(finished_run, scans, tmp_path):
    flags = arguments(scans, tmp_path, do_eval=True, model_name_or_path=finished_run, split_seed=7)
    assert main(flags) == 0
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (finished_run, tmp_path))
    assert after["validation"]["whole"] == before["validation"]["whole"]


def test_a_class_is_added_by_training_on_with_more_scans(finished_run, scans, tmp_path):
    arrays = dict(np.load(scans))
    more = np.random.default_rng(1).standard_normal((32, 24, 24)).astype(np.float32)
    np.savez(
        tmp_path / "more.npz",
        images=np.concatenate([arrays["images"], more]),
        labels=np.append(arrays["labels"], np.full(32, 3)),
        sessions=np.append(arrays["sessions"], np.repeat(["new", "newer"], 16)),
        label_names=np.append(arrays["label_names"], "noise"),
    )
    flags = {"model_name_or_path": finished_run, "do_train": True, "do_eval": True, "num_train_epochs": 1}
    assert main(arguments(tmp_path / "more.npz", tmp_path / "run", **flags)) == 0
    before, after = (json.loads((folder / "split.json").read_text()) for folder in (finished_run, tmp_path / "run"))
    assert set(before["parts"]["validation"]) <= set(after["parts"]["validation"])
    assert min(counts["noise"] for counts in after["counts"].values()) == 16
    assert AutoConfig.from_pretrained(tmp_path / "run").id2label[3] == "noise"
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.base_model is None and f"from the weights of `{finished_run.name}`" in card.text


@pytest.mark.parametrize("to_train", [True, False])
def test_training_on_forgets_the_calibration_and_scoring_keeps_it(finished_run, scans, tmp_path, to_train):
    start = tmp_path / "start"
    shutil.copytree(finished_run, start)
    config = json.loads((start / "config.json").read_text())
    calibration = {"calibration_lines": [5], "calibration_temperatures": [2.0], "calibration_biases": [[0.0] * 3]}
    (start / "config.json").write_text(json.dumps(config | calibration))
    flags = {"model_name_or_path": start, "do_train": to_train, "do_eval": True, "num_train_epochs": 1}
    assert main(arguments(scans, tmp_path / "run", **flags)) == 0
    if to_train:
        trained = json.loads((tmp_path / "run" / "config.json").read_text())
        assert [trained.get(name) for name in calibration] == [None] * 3
    scores = [
        json.loads((folder / "summary.json").read_text())["validation"]["whole"]
        for folder in (finished_run, tmp_path / "run")
    ]
    changed = scores[0]["expected_calibration_error"] != scores[1]["expected_calibration_error"]
    assert changed and (to_train or scores[0]["accuracy"] == scores[1]["accuracy"])


def test_files_of_a_folder_are_classified_and_broken_ones_skipped(finished_run, tmp_path, caplog):
    (tmp_path / "deep").mkdir()
    for name, size in (("one.png", (48, 48)), ("deep/two.png", (24, 5))):
        pixels = np.random.default_rng(1).integers(0, 255, size[::-1], dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    output = tmp_path / "out"
    flags = ["--do_predict", "--model_name_or_path", str(finished_run), "--predict_dir", str(tmp_path)]
    assert main([*flags, "--output_dir", str(output), "--disable_tqdm", "true"]) == 0
    with (output / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scan_id"] for row in rows] == ["deep/two.png", "one.png"]
    assert all(abs(sum(float(row[name]) for name in ("rows", "columns", "diagonals")) - 1) < 1e-3 for row in rows)
    assert "broken.png" in caplog.text


def test_scans_that_are_longer_than_high_are_scored_all_the_same(scans, tmp_path, capsys):
    """As many microscopes take them; those of the project's datasets are scored as published."""
    with np.load(scans) as stored:
        longer = tmp_path / "longer.npz"
        np.savez(longer, **{**stored, "images": stored["images"][:, :12]})
    flags = {"do_train": True, "do_eval": True, "num_train_epochs": 1}
    assert main(arguments(longer, tmp_path / "run", **flags)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation"]["whole"]["num_scans"] > 0 and summary["complete_scans_only"] is False
    assert main(arguments(longer, tmp_path / "other", **flags, eval_complete_scans=True)) == 2
    assert "none of these has as many lines as pixels per line: add --eval_complete" in capsys.readouterr().err


def test_scans_are_normalized_as_the_model_was_trained(scans, tmp_path):
    run = tmp_path / "run"
    assert main(arguments(scans, run, do_train=True, num_train_epochs=1, normalization="flat_line")) == 0
    assert main(arguments(scans, tmp_path / "scored", do_eval=True, model_name_or_path=run)) == 0
    flags = {"do_train": True, "num_train_epochs": 1, "model_name_or_path": run, "config_overrides": "{}"}
    assert main(arguments(scans, tmp_path / "more", **flags)) == 0
    assert read_recipe(tmp_path / "more")["normalization"] == "flat_line"


def test_nothing_asked_for_is_no_run_of_hours(capsys):
    assert main([]) == 2
    assert "say what to do" in capsys.readouterr().err


def test_the_recipe_names_the_model_that_was_loaded(finished_run, scans, tmp_path):
    """Not the one that stood beside it, in a recipe for instance."""
    flags = {"model_name_or_path": finished_run, "do_train": True, "num_train_epochs": 1, "config_overrides": "{}"}
    assert main(arguments(scans, tmp_path / "run", "vit", **flags)) == 0
    assert read_recipe(tmp_path / "run")["model"] == "causal"


def test_a_model_is_scored_on_all_scans_that_it_has_not_seen(finished_run, scans, tmp_path, capsys):
    flags = {"model_name_or_path": finished_run, "do_eval": True, "split": "validation"}
    assert main(arguments(scans, tmp_path / "seen", **flags)) == 2
    assert "of the 96 scans that this run holds out" in capsys.readouterr().err
    others = tmp_path / "others.npz"
    with np.load(scans) as stored:
        np.savez(others, **{**stored, "scan_ids": np.array([f"other {n}" for n in range(96)])})
    assert main(arguments(others, tmp_path / "other", **flags)) == 0
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert (
        summary["split"]["method"] == "validation"
        and "train" not in summary
        and summary["split"]["counts"]["validation"] == {"columns": 32, "diagonals": 32, "rows": 32}
    )


@pytest.mark.parametrize(("states", "counts"), [([0, 2], {"rows": 32, "diagonals": 32}), ([1], {"columns": 32})])
def test_a_model_is_scored_on_scans_of_some_of_its_states(finished_run, scans, tmp_path, states, counts):
    """As the microscopist has them: not every session saw every state."""
    some = tmp_path / "some.npz"
    with np.load(scans) as stored:
        chosen = np.isin(stored["labels"], states)
        labels = np.searchsorted(states, stored["labels"][chosen])
        names = [str(stored["label_names"][state]) for state in states]
        ids = [f"other {number}" for number in np.flatnonzero(chosen)]
        np.savez(some, images=stored["images"][chosen], labels=labels, label_names=names, scan_ids=ids)
    flags = {"model_name_or_path": finished_run, "do_eval": True, "split": "validation"}
    assert main(arguments(some, tmp_path / "scored", **flags)) == 0
    summary = json.loads((tmp_path / "scored" / "summary.json").read_text())
    absent = dict.fromkeys({"rows", "columns", "diagonals"} - set(counts), 0)
    assert summary["split"]["counts"]["validation"] == counts | absent
    whole = summary["validation"]["whole"]
    assert whole["balanced_accuracy"] > 0.9 and (whole["auroc"] is None) == (len(states) == 1)


def test_few_steps_are_told(scans, tmp_path, caplog):
    for steps, told in ((30, True), (100, False)):
        caplog.clear()
        flags = {"num_train_epochs": 1, "max_steps": steps, "eval_strategy": "no", "load_best_model_at_end": False}
        assert main(arguments(scans, tmp_path / f"run{steps}", **flags, do_train=True)) == 0
        assert (f"Training takes {steps} steps" in caplog.text) == told


def test_the_vit_is_scored_after_each_number_of_lines(scans, tmp_path):
    flags = arguments(scans, tmp_path / "run", "vit", random_cutoff=0.5, lr_scheduler_type="reduce_lr_on_plateau")
    assert main([*flags, "--early_stopping_patience", "1"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["validation"]["by_lines"]) == {"5", "24"}
    assert summary["validation"]["by_lines"]["24"] == summary["validation"]["whole"]


@pytest.mark.parametrize("model", list(COMPARATORS))
def test_the_published_networks_are_scored_after_each_number_of_lines(scans, tmp_path, model):
    assert main(arguments(scans, tmp_path / "run", model, do_train=True, do_eval=True)) == 0
    validation = json.loads((tmp_path / "run" / "summary.json").read_text())["validation"]
    assert set(validation["by_lines"]) == {"5", "24"}
    assert validation["by_lines"]["24"] == validation["whole"] != validation["by_lines"]["5"]
    assert ("auroc_at_5" in epochs(tmp_path / "run")[0]["validation"]) == (model == "lrcn")


def test_neither_gap_to_validation_nor_size_are_of_the_next_lines(finished_run, scans, tmp_path):
    found, sizes = {}, set()
    for weight in (0.0, 2.0):
        overrides = json.dumps(NO_CHANCE | {"next_line_weight": weight})
        flags = arguments(
            scans, tmp_path / str(weight), model_name_or_path=finished_run, config_overrides=overrides,
            num_train_epochs=1, learning_rate=1e-12, augment=False, logging_strategy="epoch", do_train=True,
            do_eval=True,
        )  # fmt: skip
        assert main(flags) == 0
        history = json.loads((tmp_path / str(weight) / "trainer_state.json").read_text())["log_history"]
        found[weight] = epochs(tmp_path / str(weight))[0]["train"]["loss"], history[0]["loss"]
        sizes.add(json.loads((tmp_path / str(weight) / "summary.json").read_text())["num_parameters"])
    assert found[2.0][0] == pytest.approx(found[0.0][0], rel=1e-5)
    assert found[2.0][1] > found[0.0][1] + 0.1
    assert len(sizes) == 1  # a verdict takes as many weights


@pytest.mark.parametrize("model", ["causal", "transformers:vit"])
def test_accumulated_steps_give_the_loss_of_one_large_batch(scans, tmp_path, model):
    common = {"max_steps": 6, "logging_strategy": "steps", "logging_steps": 1, "augment": False, "do_train": True}
    overrides = json.dumps(OVERRIDES[model] | NO_CHANCE | ({"next_line_weight": 1.0} if model == "causal" else {}))
    for name, size, accumulation in (("large", 16, 1), ("small", 4, 4)):
        flags = arguments(
            scans, tmp_path / name, model, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            config_overrides=overrides, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **common,
        )  # fmt: skip
        assert main(flags) == 0
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), abs=1e-5)


def test_epochs_are_of_the_data_where_a_number_of_steps_is_asked_for(scans, tmp_path, capsys):
    options = {
        "max_steps": 12, "num_train_epochs": 1, "warmup_epochs": 1, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8, "logging_strategy": "steps", "logging_steps": 1, "do_train": True,
    }  # fmt: skip
    assert main(arguments(scans, tmp_path / "run", **options)) == 0
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    rates = [(record["epoch"], record["learning_rate"]) for record in history if "learning_rate" in record]
    assert len(rates) == 12 and rates[-1][0] > 2
    assert all((rate < 3e-3) == (epoch <= 1) for epoch, rate in rates)  # that of warmup
    told = re.findall(r"epoch ([\d.]+)/([\d.]+) · ", capsys.readouterr().out)
    assert len(told) == 3 and {last for _, last in told} == {told[-1][0]}


def launch(
    flags: list[str], config: Path = CONFIGS / "cpu.yaml", script: Path = ROOT / "run_classification.py"
) -> list[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*command, str(script), *flags]


@pytest.mark.parametrize(
    ("config", "more", "tolerance"),
    [
        ("cpu_two_processes.yaml", {"optim": "muon"}, 1e-4),
        # the model sharded
        ("fsdp.yaml", {}, 1e-4),
        # what GPUs are used with
        (
            "cpu_two_processes.yaml",
            {"gradient_accumulation_steps": 2, "bf16": True, "torch_compile_backend": "aot_eager"},
            5e-2,
        ),
    ],
    ids=["copies", "shards", "bf16, compiled, accumulated"],
)
def test_two_processes_give_the_loss_of_one(scans, tmp_path, config, more, tolerance):
    more = dict(more)
    common = {
        "max_steps": 10, "logging_strategy": "steps", "logging_steps": 1, "augment": False, "do_train": True,
        "do_eval": True, "config_overrides": json.dumps(TINY | NO_CHANCE | {"next_line_weight": 1.0}),
        "num_train_epochs": 5, "optim": more.pop("optim", "adamw_torch"),
    }  # fmt: skip
    assert main(arguments(scans, tmp_path / "one", per_device_train_batch_size=16, **common)) == 0
    # the files of accelerate_configs as they are, but for a CPU
    content = yaml.safe_load((CONFIGS / config).read_text()) | {"use_cpu": True, "mixed_precision": "no"}
    (tmp_path / config).write_text(yaml.safe_dump(content))
    size = 8 // more.get("gradient_accumulation_steps", 1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"report_to": ["tensorboard", "trackio"]}))
    flags = arguments(scans, tmp_path / "two", per_device_train_batch_size=size, **common, **more)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(tmp_path / "tracked")}
    command = launch([*flags, "--config", str(tmp_path / "recipe.yaml")], tmp_path / config)
    subprocess.run(command, check=True, timeout=300, env=environment, cwd=tmp_path)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 10
    assert two == pytest.approx(one, abs=tolerance)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert [summary["num_processes"] for summary in summaries] == [1, 2]
    assert summaries[1]["validation"]["loss"] == pytest.approx(summaries[0]["validation"]["loss"], abs=tolerance)
    whole = [summary["validation"]["whole"]["auroc"] for summary in summaries]
    assert whole[1] == pytest.approx(whole[0], abs=max(1e-3, tolerance))
    # what was tracked on the way, by the first process alone
    assert list((tmp_path / "two").rglob("events.out.tfevents.*"))
    with contextlib.closing(sqlite3.connect(tmp_path / "tracked" / "scanline.db")) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {"two"}
    tracked = [json.loads(metrics) for _, metrics in rows]
    assert [record["train/loss"] for record in tracked if "train/loss" in record] == pytest.approx(list(two.values()))


LEFT = """
import sys

import torch.distributed
from run_classification import main

status = main(sys.argv[1:])
# what is open here aborts the process at its end, now and then
assert status == 0 and not torch.distributed.is_initialized()
"""


def test_processes_leave_their_group(scans, tmp_path):
    (tmp_path / "left.py").write_text(LEFT)
    flags = arguments(scans, tmp_path / "run", max_steps=1, do_train=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = launch(flags, CONFIGS / "cpu_two_processes.yaml", tmp_path / "left.py")
    subprocess.run(command, check=True, timeout=300, env=environment, cwd=tmp_path)


def test_a_killed_run_goes_on_as_if_it_had_not_been(scans, tmp_path):
    common = {
        "num_train_epochs": 4, "logging_strategy": "steps", "logging_steps": 1, "save_strategy": "steps",
        "save_steps": 2, "eval_strategy": "epoch", "load_best_model_at_end": False, "do_train": True,
        "per_device_train_batch_size": 8, "optim": "muon",
    }  # fmt: skip
    assert main(arguments(scans, tmp_path / "whole", **common)) == 0
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_classification.py"), *arguments(scans, folder, **common)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        # another number of threads sums in another order
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    steps_in_epoch = max(losses(tmp_path / "whole")) // 4
    deadline = time.monotonic() + 240
    # with the second checkpoint of the second epoch begun, the first is whole, and in the middle of that epoch
    while not any(int(path.name.split("-")[1]) > steps_in_epoch + 2 for path in folder.glob("checkpoint-*")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(arguments(scans, folder, resume_from_checkpoint=True, **common)) == 0
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    for after, before in zip(epochs(folder), epochs(tmp_path / "whole"), strict=True):
        assert after["train"] == pytest.approx(before["train"], abs=1e-6)
        assert after["validation"] == pytest.approx(before["validation"], abs=1e-6)


@pytest.mark.parametrize("steps_lost", [8, 10], ids=["within an epoch", "between two"])
def test_a_stopped_run_with_workers_that_outlive_an_epoch_goes_on_as_if_it_had_not_been(scans, tmp_path, steps_lost):
    common = {
        "num_train_epochs": 3, "logging_strategy": "steps", "logging_steps": 1, "save_strategy": "steps",
        "save_steps": 1, "save_total_limit": 100, "load_best_model_at_end": False, "do_train": True,
        "dataloader_num_workers": 2, "dataloader_persistent_workers": True,
    }  # fmt: skip
    assert main(arguments(scans, tmp_path / "run", **common)) == 0
    whole = losses(tmp_path / "run")
    assert len(whole) == 15
    for step in sorted(whole)[-steps_lost:]:
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    assert main(arguments(scans, tmp_path / "run", resume_from_checkpoint=True, **common)) == 0
    assert losses(tmp_path / "run") == pytest.approx(whole, abs=1e-6)


def test_a_run_with_simulated_scans_among_its_own_is_scored_on_its_own(tmp_path):
    images = np.random.default_rng(0).normal(size=(40, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "scans.npz", images=images, labels=np.arange(40) % 4, label_names=np.array(TIP_STATES))
    flags = arguments(
        tmp_path / "scans.npz", tmp_path / "run", rehearsal_scans=24, num_train_epochs=1, pixels_per_line=32,
        max_lines=32, split="random", eval_line_counts=["5"], do_train=True, do_eval=True,
    )  # fmt: skip
    assert main(flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    sizes = {part: sum(counts.values()) for part, counts in summary["split"]["counts"].items()}
    assert sum(sizes.values()) == 40 and summary["train"]["whole"]["num_scans"] == sizes["train"]
    assert state["global_step"] == -(-(sizes["train"] + 24) // 16)


def test_fewer_scans_may_be_trained_on_than_validated_on(scans, tmp_path):
    few = {"train_fraction": 0.05, "num_train_epochs": 1}
    assert main(arguments(scans, tmp_path / "run", **few)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    counts = {part: sum(classes.values()) for part, classes in summary["split"]["counts"].items()}
    assert counts["train"] < counts["validation"]
    assert sum(map(sum, summary["train"]["whole"]["confusion_matrix"])) == counts["train"]


def test_where_nothing_is_held_out_nothing_stops_a_run_early(scans, tmp_path):
    assert main(arguments(scans, tmp_path / "run", split="all", early_stopping_patience=1)) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2


def test_names_in_brackets_are_shown_as_they_are(scans, tmp_path, capsys):
    arrays = dict(np.load(scans)) | {"label_names": np.array(["rows", "[up]", "di|ag, onals"])}
    arrays["scan_ids"] = np.array([f"scan [no. {number}]" for number in range(96)])
    np.savez(tmp_path / "scans.npz", **arrays)
    folder = tmp_path / "runs [new]"
    flags = arguments(tmp_path / "scans.npz", folder, num_train_epochs=1, do_train=True, do_eval=True, do_predict=True)
    assert main(flags) == 0
    shown = capsys.readouterr().out
    assert "[up]" in shown and "scan [no. 95]" in shown and f'model="{folder}", trust_remote_code=True' in shown
    with (folder / "predictions.csv").open(newline="") as file:
        assert "di|ag, onals" in csv.DictReader(file).fieldnames


def test_a_run_that_keeps_its_last_epoch_says_so(scans, tmp_path):
    assert main(arguments(scans, tmp_path / "run", load_best_model_at_end=False)) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best_step"] is None
    assert "those of the last epoch" in (tmp_path / "run" / "README.md").read_text()
