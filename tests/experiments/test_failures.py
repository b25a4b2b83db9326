"""Where a model fails: what counts as a failure, which are shown, and on which scans."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_card import leave_run

from data_scripts.source import ScanSource
from data_scripts.splits import Split
from experiments.failures import Streamed, choose_worst, main
from modeling_scanline.streaming_scanline import LineResult

STATES = ["individual_atoms", "asymmetries_dimers", "rows", "generic_defect"]


def result(line: int, state: str = "rows", probability: float = 0.6, change: float = 0.0, found: int | None = None):
    return LineResult(line, line + 1, True, (probability, 1 - probability), state, None, change, found)


def scan(name: str, label: str, changes: list[int] | None = None, **last) -> Streamed:
    results = [result(line) for line in range(39)]
    found = last.pop("found_at", {})
    for line, (probability, change) in found.items():
        results[line] = result(line, change=probability, found=change)
    return Streamed(name, np.zeros((40, 8), np.float32), label, changes or [], [*results, result(39, **last)])


class TestOneScan:
    def test_a_change_within_three_lines_is_found(self):
        close = scan("a", "generic_defect", [20], found_at={25: (0.9, 23)})
        assert (close.found, close.missed, close.false_alarms) == ([23], [], [])
        far = scan("a", "generic_defect", [20], found_at={29: (0.9, 24)})
        assert (far.found, far.missed, far.false_alarms) == ([24], [20], [24])

    def test_an_alarm_finds_one_change_and_a_change_is_found_once(self):
        """As in the metric `tip_change`."""
        thrice = scan("a", "rows", [20], found_at={21: (0.9, 18), 23: (0.9, 20), 25: (0.9, 22)})
        assert (thrice.missed, thrice.false_alarms) == ([], [20, 22])
        twice = scan("a", "rows", [20, 22], found_at={25: (0.9, 21)})
        assert (twice.missed, twice.false_alarms) == ([22], [])

    def test_a_state_is_wrong_in_the_end_or_not_at_all(self):
        assert scan("a", "atoms").is_wrong and not scan("a", "rows").is_wrong
        assert not scan("a", "atoms", [20]).is_wrong  # it had two tips

    def test_a_scan_of_which_nothing_was_measured_is_not_wrong(self):
        nothing = LineResult(0, 1, False, None, None, None)
        assert not Streamed("a", np.zeros((1, 8), np.float32), "rows", [], [nothing]).is_wrong


def test_the_worst_of_each_kind_is_chosen():
    streamed = [
        scan("sure", "atoms", probability=0.9),
        scan("unsure", "atoms", probability=0.6),
        scan("right", "rows", probability=0.99),
        scan("nearly found", "generic_defect", [20], found_at={24: (0.4, None)}),
        scan("never found", "generic_defect", [10]),
        scan("alarm", "rows", found_at={30: (0.8, 25)}),
        scan("louder alarm", "rows", found_at={30: (0.95, 25)}),
    ]
    worst = choose_worst(streamed, ["atoms", "rows", "generic_defect"])
    assert [each.scan_id for each, _ in worst] == ["sure", "never found", "louder alarm"]
    assert "in the end taken for rows (probability 0.90)" in worst[0][1]
    assert "at line 10, which was not found" in worst[1][1] and "at line 25 where there was none" in worst[2][1]


@pytest.fixture
def run(tmp_path, save_tiny) -> Path:
    return save_tiny(leave_run(tmp_path / "run"), STATES)


def flags(run: Path, *more: str) -> list[str]:
    cache = str(run.parent / "cache")
    return [str(run), "--pixels_per_line", "32", "--max_lines", "32", "--cache_dir", cache, *more]


def test_the_card_shows_what_was_found(run):
    assert main(flags(run, "--num_scans", "12")) == 0
    failures = json.loads((run / "failures.json").read_text())
    assert failures["num_scans"] == 12 and 0 < failures["wrong"] <= failures["judged"] <= 12
    assert f"of the {failures['judged']} whose tip did not change" in (run / "README.md").read_text()
    assert failures["simulated"] and failures["missed"] <= failures["changes"]
    card = (run / "README.md").read_text()
    assert "12 simulated scans of h-si100 (seed 1009)" in card and "![where it fails](failures.png)" in card
    assert all(panel in card for panel in failures["panels"])
    with Image.open(run / "failures.png") as picture:
        assert picture.size[0] == 2 * 9 * 60
    assert (run / "failures.png").stat().st_size < 300_000


def test_a_model_without_mistakes_keeps_no_picture_of_earlier_ones(run, monkeypatch, capsys):
    assert main(flags(run, "--num_scans", "12")) == 0
    monkeypatch.setattr("experiments.failures.choose_worst", lambda *_: [])
    assert main(flags(run, "--num_scans", "12")) == 0
    assert "makes no mistake on these 12 scans" in " ".join(capsys.readouterr().out.split())
    assert not list(run.glob("failures.*")) and "failures.png" not in (run / "README.md").read_text()


def own_scans(place: Path, num_scans: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for state in STATES:
        (place / state).mkdir(parents=True)
    for number in range(num_scans):
        np.save(place / STATES[number % 4] / f"scan{number}.npy", rng.standard_normal((32, 32)).astype(np.float32))
    return place


def test_scans_that_it_was_trained_on_are_left_out(run, tmp_path, capsys):
    own = flags(run, "--dataset", "folder", "--data_dir", str(own_scans(tmp_path / "scans")))
    assert main(own) == 0
    assert json.loads((run / "failures.json").read_text())["num_scans"] == 8
    source = ScanSource("folder", str(tmp_path / "scans"), str(tmp_path / "cache"), pixels_per_line=32, max_lines=32)
    ids = source.load()["scan_id"][:]
    names = {state: sorted(names) for state, names in {"train": ids[:5], "validation": ids[5:]}.items()}
    Split("random", 0, "folder", names, {part: [] for part in names}).save(run / "split.json")
    assert main(own) == 0
    failures = json.loads((run / "failures.json").read_text())
    assert failures["num_scans"] == 3 and failures["scans"] == "scans of folder that it was not trained on"
    # whatever dataset it came to them by
    Split("random", 0, "exported", {"train": ids}, {"train": []}).save(run / "split.json")
    assert main(own) == 2
    assert "has seen every labelled scan" in " ".join(capsys.readouterr().err.split())


def test_a_dataset_of_other_states_is_refused(run, tmp_path, capsys):
    place = own_scans(tmp_path / "scans")
    (place / "rows").rename(place / "stripes")
    assert main(flags(run, "--dataset", "folder", "--data_dir", str(place))) == 2
    assert "and the scans of --dataset folder are of" in " ".join(capsys.readouterr().err.split())


def test_a_model_without_a_verdict_at_every_line_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path.name) in capsys.readouterr().err
