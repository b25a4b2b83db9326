"""Runs with image classifiers of the Transformers library."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_cases import LIBRARY, arguments, epochs, losses
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from modeling_scanline import ScanlineImageProcessor, tip_state_loss
from run_classification import main


@pytest.fixture(scope="module", params=list(LIBRARY))
def library_run(request, scans, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "run"
    flags = arguments(
        scans, folder, request.param, num_train_epochs=8, learning_rate=6e-3, random_cutoff=0.3, do_train=True,
        do_eval=True, do_predict=True,
    )  # fmt: skip
    assert main(flags) == 0
    return folder


def states_of(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open() as file:
        return [row["state"] for row in csv.DictReader(file)]


def test_a_model_of_the_library_learns_and_is_scored_after_each_number_of_lines(library_run):
    validation = json.loads((library_run / "summary.json").read_text())["validation"]
    assert validation["whole"]["balanced_accuracy"] > 0.6
    assert set(validation["by_lines"]) == {"5", "24"}
    assert validation["by_lines"]["24"] == validation["whole"]


def test_a_run_with_a_model_of_the_library_ends_with_its_best_epoch(library_run):
    validation = json.loads((library_run / "summary.json").read_text())["validation"]
    of_epochs = [record["validation"]["balanced_accuracy"] for record in epochs(library_run)]
    assert validation["whole"]["balanced_accuracy"] == max(of_epochs)
    best = epochs(library_run)[int(np.argmax(of_epochs))]["validation"]
    assert validation["loss"] == pytest.approx(best["loss"], abs=1e-6)


def test_a_model_of_the_library_has_the_project_s_loss(library_run, scans):
    model = AutoModelForImageClassification.from_pretrained(library_run).eval()
    assert len(model.config.class_weights) == 3 and model.config.label_smoothing == 0
    validation = json.loads((library_run / "split.json").read_text())["parts"]["validation"]
    arrays = np.load(scans)
    chosen = [int(scan_id) for scan_id in validation]
    processor = ScanlineImageProcessor.from_pretrained(library_run)
    with torch.no_grad():
        logits = model(**processor(list(arrays["images"][chosen]), return_tensors="pt")).logits
    expected = tip_state_loss(logits, torch.from_numpy(arrays["labels"][chosen]), model.config).item()
    loss = json.loads((library_run / "summary.json").read_text())["validation"]["loss"]
    assert loss == pytest.approx(expected, abs=1e-4)


def test_a_model_of_the_library_is_evaluated_and_trained_on(library_run, scans, tmp_path):
    flags = arguments(scans, tmp_path / "eval", do_eval=True, model_name_or_path=library_run, config_overrides="{}")
    assert main(flags) == 0
    before, after = (json.loads((run / "summary.json").read_text()) for run in (library_run, tmp_path / "eval"))
    assert after["validation"]["whole"] == before["validation"]["whole"]
    flags = arguments(
        scans, tmp_path / "more", do_train=True, do_eval=True, model_name_or_path=library_run, num_train_epochs=1,
        config_overrides='{"label_smoothing": 0.1}', learning_rate=0, train_labels="soft",
    )  # fmt: skip
    assert main(flags) == 0
    more = json.loads((tmp_path / "more" / "summary.json").read_text())
    assert more["validation"]["whole"] == before["validation"]["whole"]
    assert more["validation"]["loss"] != pytest.approx(before["validation"]["loss"], abs=1e-4)
    assert AutoConfig.from_pretrained(tmp_path / "more").label_smoothing == 0.1


CLASSIFY = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
answers = classify([Image.open(file) for file in sorted(Path(sys.argv[2]).glob("*.png"))], top_k=1)
print(json.dumps([answer[0] for answer in answers]))
"""


def test_a_model_of_the_library_classifies_files_here_and_in_a_pipeline(library_run, tmp_path):
    (tmp_path / "scans").mkdir()
    for number, size in enumerate([(48, 48), (24, 5), (24, 60)]):
        pixels = np.random.default_rng(number).integers(0, 255, size[::-1], dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{number}.png")
    flags = ["--do_predict", "--model_name_or_path", str(library_run), "--predict_dir", str(tmp_path / "scans")]
    assert main([*flags, "--output_dir", str(tmp_path), "--disable_tqdm", "true"]) == 0
    process = subprocess.run(
        [sys.executable, "-c", CLASSIFY, str(library_run), str(tmp_path / "scans")],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=True,
    )
    answers = json.loads(process.stdout.splitlines()[-1])
    assert [answer["label"] for answer in answers] == states_of(tmp_path)
    with (tmp_path / "predictions.csv").open() as file:
        largest = [max(float(row[name]) for name in ("rows", "columns", "diagonals")) for row in csv.DictReader(file)]
    assert [answer["score"] for answer in answers] == pytest.approx(largest, abs=1e-3)


def test_a_run_with_a_model_of_the_library_goes_on(scans, tmp_path):
    options = {"logging_strategy": "steps", "logging_steps": 1, "save_total_limit": 2, "do_train": True}
    for name, num_epochs in (("whole", 2), ("stopped", 1)):
        flags = arguments(
            scans, tmp_path / name, "transformers:vit", num_train_epochs=num_epochs,
            lr_scheduler_type="constant_with_warmup", warmup_epochs=0, **options,
        )  # fmt: skip
        assert main(flags) == 0
    flags = arguments(
        scans, tmp_path / "stopped", "transformers:vit", resume_from_checkpoint=True,
        lr_scheduler_type="constant_with_warmup", warmup_epochs=0, **options,
    )  # fmt: skip
    assert main(flags) == 0
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_weights_trained_on_pictures_get_a_new_head(scans, tmp_path):
    picture_config = ViTConfig(image_size=24, num_labels=10, **(LIBRARY["transformers:vit"] | {"num_channels": 3}))
    pictures = ViTForImageClassification(picture_config)
    pictures.save_pretrained(tmp_path / "pictures")
    flags = arguments(
        scans, tmp_path / "run", model_name_or_path=tmp_path / "pictures", config_overrides="{}", learning_rate=0,
        num_train_epochs=1, do_train=True, do_eval=True,
    )  # fmt: skip
    assert main(flags) == 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "rows", 1: "columns", 2: "diagonals"}
    for kept, before in zip(model.base_model.parameters(), pictures.base_model.parameters(), strict=True):
        assert torch.equal(kept, before)
    assert ScanlineImageProcessor.from_pretrained(tmp_path / "run").num_channels == 3


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("transformers:vit", {"config_overrides": '{"image_size": 32}'}, "vit: cannot take images of 3 x 24 x 24"),
        (
            "transformers:convnext",
            {"max_lines": 12, "config_overrides": "{}"},
            "convnext: cannot take images of 3 x 12",
        ),
    ],
)
def test_images_that_a_model_of_the_library_cannot_take_are_refused(model, options, says, scans, tmp_path, refused):
    options = {"eval_complete_scans": False, **options}
    assert says in refused(arguments(scans, tmp_path / "run", model, **options))


def test_images_of_another_height_than_trained_on_are_refused(library_run, scans, tmp_path, refused):
    options = {"max_lines": 12, "eval_complete_scans": False, "config_overrides": "{}"}
    says = refused(arguments(scans, tmp_path / "run", model_name_or_path=library_run, do_eval=True, **options))
    assert "was trained with max_lines=24, got max_lines=12" in says
