"""Cards of runs and released models: written from result files, whole, and with every figure as metadata."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from data_scripts.simulation import TIP_STATES
from experiments.card import BY_LINES, describe, main, write_card

NAMES = ["atoms", "rows"]


def figures(offset: float) -> dict:
    values = {name: offset + place / 100 for place, name in enumerate(BY_LINES)}
    of_classes = {
        f"{figure}_{name}": offset + 0.1 + place / 100
        for place, (figure, name) in enumerate((f, n) for f in ("precision", "recall", "f1") for n in NAMES)
    }
    support = {"support_atoms": 3, "support_rows": 4}
    return values | of_classes | support | {"num_scans": 7, "confusion_matrix": [[2, 1], [0, 4]]}


def leave_run(folder: Path, **changes) -> Path:
    folder.mkdir()
    part = {
        "whole": figures(0.7),
        "by_lines": {"5": figures(0.3) | {"auroc": None}, "20": figures(0.5)},
        "sessions": {"monday": {"accuracy": 0.75, "counts": [3, 1]}, "tuesday": {"accuracy": 1.0, "counts": [0, 3]}},
        "mistakes": [{"scan_id": "scan 9", "label": "atoms", "verdict": "rows", "probability": 0.913}],
    }
    summary = {
        "model_type": "scanline_causal", "num_parameters": 1234, "dataset": "folder", "seed": 1, "epochs": 2.0,
        "split": {"method": "sessions", "seed": 0, "counts": {"train": {"atoms": 8, "rows": 9}}}, "steps": 4,
        "scan_lines": {"minimum": 12, "median": 60.5, "maximum": 128, "most": 128}, "num_processes": 1,
        "labels": {"train": "majority", "scored": "unanimous"}, "complete_scans_only": True, "best_step": None,
        "metric_for_best_model": "auroc", "machine": {"device": "CPU"}, "validation": part,
    }  # fmt: skip
    recipe = changes.pop("recipe", {})
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return leave_run(tmp_path / "run")


def test_the_tables_hold_what_the_summary_holds(run, find_tables):
    write_card(run)
    knows, by_lines, by_state, by_session, confusion, mistakes, parts = find_tables(
        ModelCard.load(run / "README.md").text
    )
    assert ["lines of a scan, at the model's width", "12 to 128, median 60.5, of the first 128"] in knows
    assert by_lines[1:] == [
        ["5", "0.300", "–", "0.320", "0.330"],
        ["20", "0.500", "0.510", "0.520", "0.530"],
        ["whole", "0.700", "0.710", "0.720", "0.730"],
    ]
    assert [row[:2] for row in by_state[1:]] == [[lines, name] for lines in ("20", "whole") for name in NAMES]
    assert by_state[-1][2:] == ["0.810", "0.830", "0.850"]
    assert by_session[1:] == [["monday", "0.75", "3", "1"], ["tuesday", "1.00", "0", "3"]]
    assert confusion[1:] == [["atoms", "2", "1"], ["rows", "0", "4"]]
    assert mistakes[1:] == [["scan 9", "atoms", "rows", "0.913"]]
    assert parts[1:] == [["train", "8", "9"]]


def test_every_figure_is_in_the_metadata(run):
    write_card(run)
    data = ModelCard.load(run / "README.md").data
    assert data.datasets == ["folder"] and data.metrics == list(BY_LINES)
    assert data.license == "apache-2.0" and data.pipeline_tag == "image-classification"
    results = {(result.dataset_config, result.metric_type): result.metric_value for result in data.eval_results}
    assert len(results) == len(data.eval_results) == 3 * 4 - 1 + 2 * 6  # the AUROC after 5 lines is none
    summary = json.loads((run / "summary.json").read_text())["validation"]
    for config, part in (("whole scans", summary["whole"]), ("first 20 lines", summary["by_lines"]["20"])):
        for name in (*BY_LINES, "recall_rows", "f1_atoms"):
            assert results[config, name] == round(part[name], 4)


def test_is_the_same_when_written_again(run):
    write_card(run)
    first = (run / "README.md").read_bytes()
    assert main([str(run)]) == 0
    assert (run / "README.md").read_bytes() == first


@pytest.mark.parametrize(("names", "number"), [(TIP_STATES, 1000), (("atoms", "rows"), 0)])
def test_tells_of_simulated_scans_among_those_of_training(tmp_path, names, number):
    split = {"method": "sessions", "seed": 0, "counts": {"train": dict.fromkeys(names, 3)}}
    folder = leave_run(tmp_path / "run", split=split, recipe={"rehearsal_scans": 1000})
    summary = json.loads((folder / "summary.json").read_text())
    del summary["validation"]  # nothing was held out
    (folder / "summary.json").write_text(json.dumps(summary))
    assert describe(folder)["rehearsed"] == number
    write_card(folder)
    assert ("1,000 simulated scans were among those of training" in (folder / "README.md").read_text()) == bool(number)


@pytest.mark.parametrize(
    ("start", "base_model", "says"),
    [
        ("someone/scanline", "someone/scanline", "from the weights of `someone/scanline`"),
        ("/data/runs/first", None, "from the weights of `first`"),
        (None, None, "1 process, CPU"),
    ],
)
def test_names_the_model_it_started_from(tmp_path, start, base_model, says):
    run = leave_run(tmp_path / "run", recipe={"model_name_or_path": start}, base_model=base_model)
    write_card(run)
    card = ModelCard.load(run / "README.md")
    assert card.data.base_model == base_model
    assert says in card.text and "/data" not in card.content


@pytest.mark.parametrize(
    ("dataset", "surface", "licence"),
    [("hsi100", "H:Si(100)", "gpl-3.0"), ("simulated", "cu111, simulated", "apache-2.0"), ("folder", None, None)],
)
def test_says_which_surface_it_knows(tmp_path, dataset, surface, licence):
    run = leave_run(tmp_path / "run", dataset=dataset, recipe={"simulation_surface": "cu111"})
    write_card(run)
    text = ModelCard.load(run / "README.md").text
    if surface is None:
        assert "of which nothing more was said" in text and "Licence of the scans" not in text
    else:
        assert f"the state of an STM tip on {surface}, after every scanline" in text
        assert f"| surface | {surface} |" in text and f"Licence of the scans: {licence}" in text


def test_a_model_of_whole_scans_promises_no_lines(tmp_path):
    run = leave_run(tmp_path / "run", model_type="scanline_cnn")
    write_card(run)
    text = ModelCard.load(run / "README.md").text
    assert "line_logits" not in text and "after every" not in text


def test_sessions_of_a_scan_each_make_no_table(tmp_path, find_tables):
    run = leave_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["validation"]["sessions"] = {f"scan {n}": {"accuracy": 1.0, "counts": [1, 0]} for n in range(61)}
    (run / "summary.json").write_text(json.dumps(summary))
    write_card(run)
    assert "By session" not in (run / "README.md").read_text()


def test_a_folder_without_results_is_named(tmp_path, caplog):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in caplog.text and "summary.json" in caplog.text


def test_reads_a_run_of_before_there_were_sessions_and_mistakes(run):
    summary = json.loads((run / "summary.json").read_text())
    del summary["scan_lines"], summary["validation"]["sessions"], summary["validation"]["mistakes"]
    (run / "summary.json").write_text(json.dumps(summary))
    write_card(run)
    assert describe(run)["evidence"][0]["mistakes"] == []
