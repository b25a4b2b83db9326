"""The report on labels, on a small clone of SPM-Toolbox and on arrays."""

import csv
import json
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from data_scripts.builders.hsi100 import SPM_TOOLBOX_BOXES, SPM_TOOLBOX_CLASSES
from experiments.label_noise import main
from experiments.labels.verdicts import combine_runs
from experiments.labels.votes import load_votes
from experiments.probabilities import Probabilities

NAMES = list(SPM_TOOLBOX_CLASSES)
SIZE = 16
FAST = ["--pixels_per_line", str(SIZE), "--max_lines", str(SIZE), "--num_resamples", "10"]
# boxes ticked by each vote on a picture
ATOMS, DIMERS, ASYMMETRIES, ROWS, BAD = [0], [2], [1], [3], [5]
VOTES = [
    [ATOMS],
    [ATOMS, ATOMS],
    [DIMERS],
    [DIMERS, DIMERS],
    [DIMERS, ASYMMETRIES],  # one class, but no box of it is unanimous
    [ROWS],
    [ROWS, DIMERS],
    [ROWS, ROWS, ROWS],
    [BAD],
    [BAD, BAD],
    [BAD, BAD, DIMERS],
    [BAD + DIMERS],
]


def name_of(number: int) -> str:
    return f"default_2015Sep30-09484{number % 3}_STM-STM_Spectroscopy--12_{number}.png"


@pytest.fixture
def toolbox(tmp_path):
    """A clone with one picture for each of `VOTES`, a row of no whole votes, and a row without picture."""
    rng = np.random.default_rng(0)
    root = tmp_path / "SPM-Toolbox"
    (root / "Images (Flat)").mkdir(parents=True)
    (root / "Database").mkdir()
    workbook = openpyxl.Workbook()
    page = workbook.active
    page.title = "Mean_Score"
    page.append(["Name", "No. Responses", *SPM_TOOLBOX_BOXES])
    for number, votes in enumerate(VOTES):
        ticks = np.zeros((len(votes), len(SPM_TOOLBOX_BOXES)))
        for row, boxes in zip(ticks, votes, strict=True):
            row[boxes] = 1
        page.append([name_of(number), len(votes), *ticks.mean(axis=0)])
        heights = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(heights).save(root / "Images (Flat)" / name_of(number))
    page.append(["strange.png", 2, 0.3, 0, 0, 0, 0, 0])
    page.append(["gone.png", 1, 1, 0, 0, 0, 0, 0])
    workbook.save(root / "Database" / "Votes.xlsx")
    return root


def verdicts_on(numbers, labels, whole, names=NAMES) -> Probabilities:
    whole = np.array(whole, dtype=np.float32)
    scan_ids = np.array([name_of(number).removesuffix(".png") for number in numbers])
    return Probabilities(
        scan_ids=scan_ids,
        groups=np.array([scan_id.split("_")[1] for scan_id in scan_ids]),
        labels=np.array(labels),
        label_names=np.array(names),
        line_counts=np.array([8, 16]),
        by_lines=np.stack([whole, whole]),
        whole=whole,
    )


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one fold, in different order, and another fold."""
    sure = 0.7 * np.eye(4) + 0.075
    seeds = [
        verdicts_on([0, 1, 5], [0, 0, 2], sure[[0, 0, 1]]),
        verdicts_on([5, 0, 1], [2, 0, 0], sure[[1, 0, 1]]),
        verdicts_on([9, 3], [3, 1], sure[[3, 1]]),
    ]
    folders = [tmp_path / "trained" / name for name in ("seed_1", "seed_2", "fold_2")]
    for folder, verdicts in zip(folders, seeds, strict=True):
        folder.mkdir(parents=True)
        verdicts.save(folder)
    return [str(folder) for folder in folders]


def run(tmp_path, *arguments: str) -> int:
    return main([*FAST, "--cache_dir", str(tmp_path / "cache"), "--output", str(tmp_path / "out"), *arguments])


def report_of(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((tmp_path / "out" / "label_noise.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_votes_are_read_and_what_is_none_is_counted(toolbox):
    votes = load_votes(toolbox)
    assert votes.num_rows == len(VOTES) + 2 and votes.num_not_whole == 1 and votes.num_repeated == 0
    assert votes.num_votes.tolist() == [*map(len, VOTES), 1]
    assert votes.by_class[:12].tolist() == [
        *([1, 0, 0, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]),
        *([0, 1, 1, 0], [0, 0, 3, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0]),
    ]


def test_report_on_votes(tmp_path, toolbox, capsys):
    assert run(tmp_path, "--dataset", "hsi100", "--data_dir", str(toolbox)) == 0
    report = report_of(tmp_path)
    votes, noise = report["votes"], report["noise"]
    assert votes["num_without_picture"] == 1 and votes["num_agreed_on_class_but_not_on_box"] == 1
    by_number = {row["num_votes"]: row for row in votes["by_num_votes"]}
    assert (by_number[1]["pictures"], by_number[1]["mixed"], by_number[1]["scored"]) == (6, 1, 4)
    assert (by_number[2]["pictures"], by_number[2]["clear"], by_number[2]["scored"]) == (5, 5, 3)
    # two votes: four pairs agree and one does not; three votes: all pairs agree on one picture, a third on the other
    assert noise["agreement"]["value"] == pytest.approx((4 + 1 + 1 / 3) / 7)
    assert noise["num_pictures_with_pairs"] == 7 and noise["num_scored"] == 8
    assert 0.5 < noise["truth"]["pairs"]["1"]["accuracy"]["value"] < 1
    assert noise["truth"]["pairs"]["2+"]["accuracy"]["value"] > noise["truth"]["pairs"]["1"]["accuracy"]["value"]
    text = (tmp_path / "out" / "label_noise.md").read_text(encoding="utf-8")
    assert f"{noise['agreement']['value']:.3f}" in text and "nan " not in text
    assert "What the true state would score: 8 scans" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["label_noise.json", "label_noise.md"]


def test_report_on_runs(tmp_path, toolbox, runs):
    assert run(tmp_path, "--dataset", "hsi100", "--data_dir", str(toolbox), "--count", "3", "--runs", *runs) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "disagreements.csv").open(encoding="utf-8")))
    assert [row["scan_id"] for row in rows[:2]] == [name_of(number).removesuffix(".png") for number in (5, 1)]
    assert rows[0] == {
        "scan_id": name_of(5).removesuffix(".png"),
        "session": "2015Sep30-094842",
        "label": "rows",
        "num_votes": "1",
        "verdict": "asymmetries_dimers",
        "probability_of_label": "0.0750",
        "probability_individual_atoms": "0.0750",
        "probability_asymmetries_dimers": "0.7750",
        "probability_rows": "0.0750",
        "probability_generic_defect": "0.0750",
    }
    assert len(rows) == 5 and rows[1]["probability_of_label"] == "0.4250"
    figures = report_of(tmp_path)["runs"]["by_num_votes"]
    assert {name: row["num_scans"] for name, row in figures.items()} == {"all": 5, "1": 2, "2+": 3}
    assert figures["1"]["accuracy"]["value"] == 0.5 and figures["2+"]["accuracy"]["value"] == 1
    assert figures["1"]["balanced_accuracy"]["value"] == 0.5
    assert figures["all"]["confusion"] == [[2, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert figures["2+"]["truth"]["accuracy"] > figures["1"]["truth"]["accuracy"]
    with Image.open(tmp_path / "out" / "disagreements.png") as picture:
        assert picture.width > picture.height
    assert "trained/seed_1" in (tmp_path / "out" / "label_noise.md").read_text(encoding="utf-8")


def test_lists_of_earlier_runs_do_not_stay(tmp_path, toolbox, runs):
    where = ["--dataset", "hsi100", "--data_dir", str(toolbox)]
    assert run(tmp_path, *where, "--runs", *runs) == 0
    assert run(tmp_path, *where) == 0
    assert not list((tmp_path / "out").glob("disagreements*"))


def test_near_identical_pictures(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 128, 128)).cumsum(axis=1)
    images[3:] = images[:3]
    np.savez(tmp_path / "scans.npz", images=images, labels=[0, 1, 0, 0, 1, 1], label_names=["atoms", "rows"])
    where = ["--dataset", "npz", "--data_dir", str(tmp_path / "scans.npz"), "--near_duplicates"]
    assert run(tmp_path, *where, "--pixels_per_line", "128", "--max_lines", "128") == 0
    found = report_of(tmp_path)["near_duplicates"]
    assert found["num_pairs"] == found["num_identical"] == found["unanimous"]["num_pairs"] == 3
    assert found["unanimous"]["same_label"]["value"] == pytest.approx(2 / 3)
    assert found["unanimous, 2+ votes each"] == {"num_pairs": 0, "same_label": {"value": None, "interval": None}}


def test_dataset_without_numbers_of_votes(tmp_path, runs, capsys):
    ids = [0, 1, 5, 9, 3]
    np.savez(
        tmp_path / "scans.npz",
        images=np.random.default_rng(0).normal(size=(5, SIZE, SIZE)),
        labels=[0, 0, 2, 3, 1],
        label_names=NAMES,
        scan_ids=[name_of(number).removesuffix(".png") for number in ids],
    )
    where = ["--dataset", "npz", "--data_dir", str(tmp_path / "scans.npz")]
    assert run(tmp_path, *where) == 2
    assert "numbers of votes are known for --dataset hsi100 only" in " ".join(capsys.readouterr().err.split())
    assert run(tmp_path, *where, "--runs", *runs) == 0
    assert list(report_of(tmp_path)["runs"]["by_num_votes"]) == ["all"]
    rows = list(csv.DictReader((tmp_path / "out" / "disagreements.csv").open(encoding="utf-8")))
    assert len(rows) == 5 and {row["num_votes"] for row in rows} == {""}


def test_seeds_are_averaged_and_folds_put_together(runs):
    combined = combine_runs([Probabilities.load(Path(folder)) for folder in runs])
    assert [int(scan_id.rsplit("_", 1)[1]) for scan_id in combined.scan_ids] == [0, 1, 5, 9, 3]
    assert combined.whole[1].tolist() == pytest.approx([0.425, 0.425, 0.075, 0.075])
    assert combined.by_lines.shape == (2, 5, 4)


def test_runs_that_do_not_belong_together():
    first = verdicts_on([0, 1], [0, 1], np.full((2, 4), 0.25))
    with pytest.raises(ValueError, match="differ in labels"):
        combine_runs([first, verdicts_on([1, 0], [0, 1], np.full((2, 4), 0.25))])
    with pytest.raises(ValueError, match="Only probabilities of different scans"):
        combine_runs([first, verdicts_on([1, 2], [1, 1], np.full((2, 4), 0.25))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: verdicts_on([0], [0], [[0.5, 0.5]], ["a", "b"]).save(folder),
            "the runs know the classes a, b",
        ),
        (lambda folder: verdicts_on([99], [0], np.full((1, 4), 0.25)).save(folder), "the dataset has no scan"),
        (lambda folder: None, "not the probabilities that a run writes"),
    ],
)
def test_runs_of_something_else_are_refused(tmp_path, toolbox, capsys, change, message):
    (tmp_path / "run").mkdir()
    change(tmp_path / "run")
    where = ["--dataset", "hsi100", "--data_dir", str(toolbox)]
    assert run(tmp_path, *where, "--runs", str(tmp_path / "run")) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m experiments.label_noise --dataset hsi100" in capsys.readouterr().out
