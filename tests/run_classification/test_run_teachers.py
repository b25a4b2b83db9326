"""Runs that learn from other runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from run_cases import OVERRIDES, arguments
from transformers import AutoConfig, AutoModelForImageClassification

from configuration import parse_arguments
from experiments.data import find_split_file, load_data
from experiments.probabilities import Probabilities
from experiments.teachers import teach, verdicts_of
from modeling_scanline import ScanlineImageProcessor
from run_classification import main


@pytest.fixture
def unlabelled(scans, tmp_path):
    """The scans, with every fourth label taken off."""
    arrays = dict(np.load(scans))
    arrays["labels"][::4] = -1
    np.savez(tmp_path / "scans.npz", **arrays)
    return tmp_path / "scans.npz"


def load(scans, folder, **options):
    _, data_arguments, _ = parse_arguments(arguments(scans, folder, augment=False, **options))
    return load_data(data_arguments, 0, find_split_file(data_arguments, None))


def softmaxed(run, images):
    model, processor = (
        AutoModelForImageClassification.from_pretrained(run),
        ScanlineImageProcessor.from_pretrained(run),
    )
    with torch.no_grad():
        return model.eval()(**processor(list(images), return_tensors="pt")).logits.softmax(-1).numpy()


def test_the_label_is_partly_the_teachers_and_theirs_alone_where_nobody_voted(finished_run, unlabelled, tmp_path):
    other = shutil.copytree(finished_run, tmp_path / "other")
    model = AutoModelForImageClassification.from_pretrained(other)
    model.load_state_dict({name: weight * 0.5 for name, weight in model.state_dict().items()})
    model.save_pretrained(other)
    options = {"split_file": finished_run / "split.json"}
    plain = load(unlabelled, tmp_path / "run", **options)
    data = load(unlabelled, tmp_path / "run", **options, teachers=[str(finished_run), str(other)], teacher_share=0.25)

    arrays = np.load(unlabelled)
    places = np.array(data.scan_ids["train"], dtype=int)
    verdicts = (softmaxed(finished_run, arrays["images"]) + softmaxed(other, arrays["images"]))[places] / 2
    labels = arrays["labels"][places]
    expected = np.where(labels[:, None] < 0, verdicts, 0.75 * np.eye(3)[labels] + 0.25 * verdicts)
    np.testing.assert_allclose(data.parts["train"].labels.numpy(), expected, atol=1e-5)
    assert (labels < 0).any() and set(plain.scan_ids["train"]) == set(map(str, places[labels >= 0]))
    assert data.scan_ids["validation"] == plain.scan_ids["validation"]


def test_unlabelled_scans_of_held_out_sessions_stay_out(finished_run, unlabelled, tmp_path):
    arrays = np.load(unlabelled)
    options = {"teachers": [str(finished_run)], "teacher_share": 0.5}
    everything = load(unlabelled, tmp_path / "run", split="all", **options)
    assert len(everything.scan_ids["train"]) == 96
    teacher = json.loads((finished_run / "split.json").read_text())
    other = shutil.copytree(finished_run, tmp_path / "other")
    teacher["parts"] = {"train": [], "validation": [str(number) for number in range(96)]}
    (other / "split.json").write_text(json.dumps(teacher))
    data = load(unlabelled, tmp_path / "run", teachers=[str(other)], teacher_share=0.5)
    held_out = set(data.split.sessions["validation"])
    trained_on = np.array(data.scan_ids["train"], dtype=int)
    assert held_out and not held_out & set(arrays["sessions"][trained_on])
    assert (arrays["labels"][trained_on] < 0).any()


def test_a_run_learns_from_a_teacher(finished_run, unlabelled, tmp_path):
    options = {
        "teachers": [str(finished_run)], "teacher_share": 1.0, "split_file": finished_run / "split.json",
        "num_train_epochs": 12, "learning_rate": 6e-3, "load_best_model_at_end": False,
    }  # fmt: skip
    assert main(arguments(unlabelled, tmp_path / "run", **options, do_train=True, do_eval=True)) == 0
    taught, teacher = (Probabilities.load(folder) for folder in (tmp_path / "run", finished_run))
    of_teacher = teacher.whole[np.isin(teacher.scan_ids, taught.scan_ids)]
    # what it is sure of, its pupil tells as surely, and no more so
    columns = of_teacher.argmax(axis=1) == 1
    np.testing.assert_allclose(taught.whole[columns, 1], of_teacher[columns, 1], atol=0.1)
    assert columns.any() and taught.whole.max() < of_teacher.max() + 0.1


@pytest.mark.parametrize(
    ("split", "share", "says"),
    [
        ({"split": "sessions", "split_seed": 3}, 0.5, "did not hold out"),
        ({"split": "random"}, 0.5, "did not hold out"),
        ({}, 0, "teachers and teacher_share go together"),
        ({}, 1.5, r"teacher_share must lie in \[0, 1\]"),
    ],
)
def test_a_teacher_that_saw_what_is_scored_is_refused(split, share, says, finished_run, scans, tmp_path, refused):
    flags = arguments(scans, tmp_path / "run", teachers=[str(finished_run)], teacher_share=share, **split)
    assert says.replace("\\", "") in refused(flags)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_the_scans_from_another_dataset_is_refused(finished_run, scans, tmp_path, refused):
    other = shutil.copytree(finished_run, tmp_path / "other")
    split = json.loads((other / "split.json").read_text())
    train = [f"class/scan{number}" for number in split["parts"]["train"]]
    (other / "split.json").write_text(json.dumps(split | {"dataset": "folder", "parts": {"train": train}}))
    arrays = dict(np.load(scans))
    scans = tmp_path / "named.npz"
    np.savez(scans, **arrays, scan_ids=np.array([f"scan{number}" for number in range(len(arrays["labels"]))]))
    flags = {"teachers": [str(other)], "teacher_share": 0.5}
    assert "did not hold out" in refused(arguments(scans, tmp_path / "run", **flags, split="random"))
    named = {part: [f"scan{number}" for number in numbers] for part, numbers in split["parts"].items()}
    (tmp_path / "split.json").write_text(json.dumps(split | {"parts": named}))
    load(scans, tmp_path / "run", **flags, split_file=tmp_path / "split.json")


def test_what_is_no_teacher_is_refused(finished_run, scans, tmp_path, refused):
    def say(teacher, **options):
        split = {"split_file": finished_run / "split.json", "teacher_share": 0.5}
        return refused(arguments(scans, tmp_path / "run", teachers=[str(teacher)], **split, **options))

    assert "is not the folder of a run" in say(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "not a split written by a run" in say(tmp_path / "empty")
    assert "takes 24 pixels a line, and this run has 12" in say(finished_run, pixels_per_line=12)
    other = shutil.copytree(finished_run, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    names = ["rows", "columns", "rings"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    (other / "config.json").write_text(json.dumps(config))
    assert "tells rows, columns, rings apart, not rows, columns, diagonals" in say(other)


def test_verdicts_come_in_the_order_of_the_pupil_and_without_calibration(finished_run, scans, tmp_path):
    lines = torch.from_numpy(np.load(scans)["images"])
    plain = verdicts_of(finished_run, lines, ["rows", "columns", "diagonals"])
    np.testing.assert_allclose(plain.sum(axis=1), 1, rtol=1e-5)
    turned = verdicts_of(finished_run, lines, ["diagonals", "rows", "columns"])
    np.testing.assert_array_equal(turned, plain[:, [2, 0, 1]])
    released = shutil.copytree(finished_run, tmp_path / "released")
    model = AutoModelForImageClassification.from_pretrained(released)
    model.config.calibration_lines, model.config.calibration_temperatures = [24], [3.0]
    model.save_pretrained(released)
    assert softmaxed(released, lines[:4].numpy()).max() < plain[:4].max()
    np.testing.assert_array_equal(verdicts_of(released, lines, ["rows", "columns", "diagonals"]), plain)


def test_a_model_of_the_library_teaches(scans, tmp_path):
    config = AutoConfig.for_model(
        "vit", image_size=24, id2label={0: "rows", 1: "columns", 2: "diagonals"}, **OVERRIDES["transformers:vit"]
    )
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    ScanlineImageProcessor(pixels_per_line=24, max_lines=24, num_channels=1).save_pretrained(tmp_path)
    arrays = np.load(scans)
    labels = teach(
        [str(tmp_path)], 0.5, torch.from_numpy(arrays["images"]), arrays["labels"], list(arrays["label_names"])
    )
    assert labels.shape == (96, 3) and (labels.argmax(axis=1) == arrays["labels"]).all()
