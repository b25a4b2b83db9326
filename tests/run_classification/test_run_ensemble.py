"""Runs that are joined to one model, by run_classification.py."""

import json
import shutil

import numpy as np
import pytest
import torch
from run_cases import TINY, arguments
from transformers import AutoModelForImageClassification

from experiments.probabilities import Probabilities
from run_classification import main


@pytest.fixture(scope="module")
def members(finished_run, scans, tmp_path_factory):
    other = tmp_path_factory.mktemp("members") / "other"
    more = {
        "split_file": finished_run / "split.json",
        "seed": 5,
        "config_overrides": json.dumps(TINY | {"next_line_weight": 0.5}),
    }
    assert main(arguments(scans, other, **more, do_train=True, do_eval=True)) == 0
    return [finished_run, other]


def logits_of(verdicts: np.ndarray) -> np.ndarray:
    return np.log(verdicts) - np.log(verdicts).mean(axis=-1, keepdims=True)


def test_runs_are_joined_scored_and_written(members, scans, tmp_path):
    run = tmp_path / "run"
    assert main(arguments(scans, run, members=members, do_eval=True)) == 0
    joined, *each = (Probabilities.load(folder) for folder in (run, *members))
    assert joined.scan_ids.tolist() == each[0].scan_ids.tolist()
    expected = np.mean([logits_of(of.whole) for of in each], axis=0)
    np.testing.assert_allclose(logits_of(joined.whole), expected, atol=1e-3)
    summary = json.loads((run / "summary.json").read_text())
    assert [member["seed"] for member in summary["members"]] == [42, 5] and summary["epochs"] == 0
    assert summary["members"][0]["epochs"] == json.loads((members[0] / "summary.json").read_text())["epochs"]
    assert json.loads((run / "split.json").read_text()) == json.loads((members[0] / "split.json").read_text())
    card = (run / "README.md").read_text()
    assert "in 2 networks that were trained one by one" in card and "One network: " in card and "Another: " in card
    # it goes on like any other model
    assert AutoModelForImageClassification.from_pretrained(run).config.num_members == 2
    flags = {"model_name_or_path": run, "do_train": True, "do_eval": True, "max_steps": 2}
    assert main(arguments(scans, tmp_path / "further", **flags)) == 0
    before, after = (
        AutoModelForImageClassification.from_pretrained(folder).state_dict() for folder in (run, tmp_path / "further")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert before.keys() == after.keys() and any(name.startswith("scanline.others.0.") for name in changed)


def test_what_cannot_be_joined_is_refused(members, scans, tmp_path, refused):
    def say(*folders, **options):
        return refused(arguments(scans, tmp_path / "run", members=list(folders), do_eval=True, **options))

    assert "give the folders of two or more runs" in say(members[0])
    assert "give one of them" in say(*members, model_name_or_path=members[0])
    other = shutil.copytree(members[1], tmp_path / "other")
    split = json.loads((other / "split.json").read_text())
    train = split["parts"]["train"]
    (other / "split.json").write_text(json.dumps(split | {"parts": split["parts"] | {"train": train[1:]}}))
    assert "has not held out what" in say(members[0], other)
    (other / "split.json").write_text(json.dumps(split))
    processor = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(processor | {"normalization": "none"}))
    assert "prepared in another way" in say(members[0], other)
    assert not (tmp_path / "run").exists()


def test_members_have_seen_nothing_that_is_held_out(members, scans, tmp_path, refused):
    split = json.loads((members[0] / "split.json").read_text())
    parts = split["parts"]
    other = split | {"parts": {"train": parts["validation"], "validation": parts["train"]}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    flags = {"members": members, "split_file": tmp_path / "other.json", "do_eval": True}
    assert "was trained on" in refused(arguments(scans, tmp_path / "run", **flags))
