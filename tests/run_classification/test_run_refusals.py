"""What a run says about bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_cases import arguments
from transformers import BertConfig

from data_scripts.splits import Split
from experiments.data import check_start
from experiments.lineage import lineage
from experiments.run_folder import read_metrics
from run_classification import main


def test_a_run_is_never_overwritten(finished_run, scans, capsys):
    assert main(arguments(scans, finished_run)) == 2
    assert "resume_from_checkpoint" in capsys.readouterr().err
    flags = {"model_name_or_path": finished_run, "do_train": False, "do_eval": True}
    before = (finished_run / "summary.json").read_text()
    assert main(arguments(scans, finished_run, **flags)) == 2
    assert "holds a run already" in capsys.readouterr().err and (finished_run / "summary.json").read_text() == before


def test_a_run_that_left_nothing_to_go_on_from_is_begun_anew(scans, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 7.0}\n')
    assert main(arguments(scans, tmp_path / "run", num_train_epochs=1, do_train=True)) == 0
    assert [record["epoch"] for record in read_metrics(tmp_path / "run")] == [1.0]


@pytest.mark.parametrize("given", ["model_name_or_path", "split_file"])
def test_folds_of_a_split_that_is_used_again_are_refused(finished_run, scans, tmp_path, refused, given):
    again = {given: finished_run / "split.json" if given == "split_file" else finished_run}
    says = refused(arguments(scans, tmp_path / "run", **again, split="random", num_folds=3, fold=1))
    assert "give --num_folds 0" in says and "split.json" in says


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"labels": np.zeros(8, dtype=int)}, "one class"),
        ({"labels": np.full(8, -1)}, "label"),
        ({"labels": np.array([0, 1] * 3 + [0, 9]), "label_names": np.array(["a", "b"])}, "between -1"),
        ({"labels": np.array([object()] * 8)}, "pickle"),
        ({"images": np.zeros((8, 0, 24))}, "at least one line"),
        ({"images": np.zeros((7, 4, 24))}, "as many as labels"),
    ],
)
def test_scans_that_make_no_dataset_are_refused(arrays, says, tmp_path, refused):
    values = {"images": np.zeros((8, 4, 24)), "labels": np.arange(8) % 2, **arrays}
    np.savez(tmp_path / "scans.npz", **values)
    assert says in refused(arguments(tmp_path / "scans.npz", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_weights": '{"rowz": 2.0}'}, "rowz"),
        ({"class_weights": "[1"}, "JSON"),
        ({"config_overrides": '{"hidden_sice": 8}'}, "hidden_size"),
        ({"config_overrides": '{"hidden_size": 17}'}, "multiple"),
        ({"model_name_or_path": "no/such/folder"}, "no/such/folder"),
        ({"split": "sessions", "validation_fraction": 0.05}, "sessions"),
        ({"min_crop": 0}, "min_crop"),
        ({"resume_from_checkpoint": True}, "no complete checkpoint"),
        ({"split_file": "nowhere.json"}, "nowhere.json"),
        ({"data_dir": "nowhere.npz"}, "nowhere.npz"),
        ({"fold": 1}, "give --num_folds"),
        ({"split": "validation", "do_train": True}, "leaves nothing to train on"),
        ({"do_eval": True}, "nothing to apply: give --model_name_or_path"),
        ({"rehearsal_scans": -1}, "rehearsal_scans must not be negative"),
        ({"rehearsal_scans": 8, "keep_in_memory": False}, "give --keep_in_memory true"),
    ],
)
def test_options_that_make_no_run_are_refused(options, says, scans, tmp_path, refused):
    assert says in refused(arguments(scans, tmp_path / "run", **options))


def test_another_architecture_is_refused(scans, tmp_path, refused):
    BertConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    message = refused(arguments(scans, tmp_path / "run", model_name_or_path=tmp_path / "bert"))
    assert "bert" in message


def test_scans_prepared_otherwise_than_the_model_was_trained_on_are_refused(finished_run, scans, tmp_path, refused):
    begin = {"model_name_or_path": finished_run, "do_eval": True}
    says = refused(arguments(scans, tmp_path / "run", normalization="global", **begin))
    assert "was trained with normalization=line, got normalization=global" in says
    begin["eval_complete_scans"] = False
    says = refused(arguments(scans, tmp_path / "run", pixels_per_line=32, **begin))
    assert "was trained with pixels_per_line=24, got pixels_per_line=32" in says


@pytest.mark.parametrize("sizes", [{"hidden_size": 48}, {"num_hidden_layers": 5}])
def test_a_model_of_other_sizes_does_not_start_from_weights(finished_run, scans, tmp_path, refused, sizes):
    flags = {"model_name_or_path": finished_run, "config_overrides": json.dumps(sizes), "do_eval": True}
    says = refused(arguments(scans, tmp_path / "run", **flags))
    assert f"{finished_run}: " in says and "do not fit the model that is asked for" in says


def test_a_run_does_not_go_on_with_options_that_it_would_not_heed(finished_run, scans, tmp_path, refused):
    shutil.copytree(finished_run, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    flags = {"resume_from_checkpoint": True, "learning_rate": 0.125, "weight_decay": 0.25}
    says = refused(arguments(scans, tmp_path / "run", **flags))
    assert "not 0.25" in says and "not 0.125" in says and "goes on with it" in says
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recipe


def test_the_runs_that_a_model_comes_from_are_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    split = {"method": "all", "seed": 0, "dataset": "folder", "parts": {"train": ["atoms/a"]}}
    first = run_that_saw(tmp_path / "runs" / "first", split)
    second = run_that_saw(tmp_path / "runs" / "second", split, {"model_name_or_path": "runs/first"})
    for folder in (tmp_path, Path("/")):
        monkeypatch.chdir(folder)
        assert [each.resolve() for each in lineage(second)] == [second, first]


def run_that_saw(folder, split, recipe=None):
    folder.mkdir()
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe or {}))
    return folder


def test_what_is_held_out_was_in_no_run_that_the_first_weights_come_from(tmp_path):
    held_out = Split("sessions", 0, "hsi100", {"train": ["c"], "validation": ["default_1", "b"]}, {})
    elsewhere = {"method": "all", "seed": 0, "dataset": "folder", "parts": {"train": ["atoms/default_1", "7"]}}
    seen = run_that_saw(tmp_path / "seen", elsewhere)
    (seen / "checkpoint-3").mkdir()
    fresh = elsewhere | {"parts": {"train": ["atoms/another"]}}
    starts = [seen, seen / "checkpoint-3"]
    starts.append(run_that_saw(tmp_path / "further", fresh, {"model_name_or_path": str(seen)}))
    starts.append(run_that_saw(tmp_path / "pupil", fresh, {"teachers": [str(seen)]}))
    starts.append(run_that_saw(tmp_path / "joined", fresh, {"members": [str(seen), str(tmp_path / "fresh")]}))
    for start in starts:
        with pytest.raises(
            ValueError, match=r"seen was trained on 1 of the 2 scans that this run holds out, default_1"
        ):
            check_start(str(start), held_out)
    check_start(str(run_that_saw(tmp_path / "fresh", fresh)), held_out)
    check_start(None, held_out)
    check_start("owner/name", held_out)
    # numbers of scans in arrays name none
    check_start(str(seen), Split("random", 0, "npz", {"train": ["1"], "validation": ["7"]}, {}))


def test_first_weights_that_have_seen_what_a_split_file_holds_out_are_refused(finished_run, scans, tmp_path, refused):
    split = json.loads((finished_run / "split.json").read_text())
    parts = split["parts"]
    other = split | {"parts": {"train": parts["validation"], "validation": parts["train"]}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    flags = {"model_name_or_path": finished_run, "split_file": tmp_path / "other.json", "do_eval": True}
    says = refused(arguments(scans, tmp_path / "run", **flags))
    assert f"was trained on {len(parts['train'])} of the {len(parts['train'])} scans" in says


def test_weights_trained_on_everything_leave_nothing_to_score_on(finished_run, scans, tmp_path, refused):
    start = shutil.copytree(finished_run, tmp_path / "start")
    split = json.loads((start / "split.json").read_text())
    everything = [scan_id for scan_ids in split["parts"].values() for scan_id in scan_ids]
    (start / "split.json").write_text(json.dumps(split | {"method": "all", "parts": {"train": everything}}))
    for more in ({"do_eval": True}, {"do_train": True, "split": "random"}):
        says = refused(arguments(scans, tmp_path / "run", model_name_or_path=start, **more))
        assert "leaves none to score on" in says and "--split all" in says
    flags = {"model_name_or_path": start, "split": "all", "do_train": True, "max_steps": 1}
    assert main(arguments(scans, tmp_path / "run", **flags)) == 0


def test_an_unreadable_checkpoint_is_refused(finished_run, scans, tmp_path, refused):
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"broken")
    (checkpoint / "config.json").write_text("{}")
    assert "no complete checkpoint" in refused(arguments(scans, tmp_path / "run", resume_from_checkpoint=True))
    (checkpoint / "trainer_state.json").write_text("{}")
    assert "checkpoint" in refused(arguments(scans, tmp_path / "run", resume_from_checkpoint=True))


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path, refused):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 0.1\n")
    assert "learning_rate" in refused(["--config", str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize("model", ["vit", "transformers:vit"])
def test_a_checkpoint_of_another_model_is_refused(finished_run, scans, tmp_path, refused, model):
    # a copy, as the recipe is written before the checkpoint is read
    shutil.copytree(finished_run, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    flags = arguments(scans, tmp_path / "run", model, resume_from_checkpoint=True)
    assert "another model" in refused(flags)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recipe


def test_classes_in_another_order_are_those_of_the_model_and_other_ones_are_refused(
    finished_run, scans, tmp_path, refused
):
    arrays = dict(np.load(scans))
    order = np.array([2, 0, 1])
    names = np.empty_like(arrays["label_names"])
    names[order] = arrays["label_names"]
    np.savez(tmp_path / "scans.npz", **arrays | {"labels": order[arrays["labels"]], "label_names": names})
    for more in ({}, {"do_train": True, "num_train_epochs": 1, "learning_rate": 0}):
        flags = {"do_eval": True, "model_name_or_path": finished_run, **more}
        assert main(arguments(tmp_path / "scans.npz", tmp_path / f"run{len(more)}", **flags)) == 0
        runs = (finished_run, tmp_path / f"run{len(more)}")
        before, after = (json.loads((run / "summary.json").read_text())["validation"]["whole"] for run in runs)
        assert after == before
    np.savez(tmp_path / "others.npz", **arrays | {"label_names": np.array(["rows", "columns", "waves"])})
    flags = arguments(tmp_path / "others.npz", tmp_path / "others", do_eval=True, model_name_or_path=finished_run)
    assert "tells rows, columns, diagonals apart, and the scans are of rows, columns, waves" in refused(flags)


@pytest.mark.parametrize("options", [{"split": "all"}, {"eval_strategy": "no", "load_best_model_at_end": False}])
def test_a_run_that_was_not_validated_on_its_way_is_not_overwritten_either(options, scans, tmp_path, refused):
    flags = arguments(scans, tmp_path / "run", num_train_epochs=1, **options)
    assert main(flags) == 0
    assert "holds a run already" in refused(flags)
    (tmp_path / "run" / "summary.json").unlink()  # stopped before it was scored
    assert "holds a run already" in refused(flags)


def test_a_damaged_split_of_the_model_is_named(finished_run, scans, tmp_path, refused):
    shutil.copytree(finished_run, tmp_path / "damaged")
    (tmp_path / "damaged" / "split.json").write_text("{")
    flags = arguments(scans, tmp_path / "run", do_eval=True, model_name_or_path=tmp_path / "damaged")
    assert "split.json: not a split written by a run" in refused(flags)


def test_a_file_in_place_of_the_folder_of_the_run_is_named(scans, tmp_path, refused):
    (tmp_path / "run").touch()
    assert "output_dir: " in refused(arguments(scans, tmp_path / "run"))


@pytest.mark.parametrize("options", [{"split": "all"}, {"predict_dir": "nowhere"}])
def test_scans_to_classify_are_looked_for_before_training(options, scans, tmp_path, refused):
    flags = arguments(scans, tmp_path / "run", do_train=True, do_eval=True, do_predict=True, **options)
    assert "predict_dir" in refused(flags)
    assert not (tmp_path / "run").exists()


def test_a_figure_to_choose_the_epoch_by_that_there_is_none_of_is_refused_before_training(scans, tmp_path, refused):
    message = refused(arguments(scans, tmp_path / "run", metric_for_best_model="balanced_acuracy"))
    assert "no figure 'balanced_acuracy'" in message and "auroc_at_24" in message
    assert not (tmp_path / "run").exists()
    assert main(arguments(scans, tmp_path / "run", metric_for_best_model="auroc_at_24")) == 0
