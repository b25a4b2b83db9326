"""Datasets as Parquet shards with a card."""

import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard

from data_scripts import ScanReadError, export
from data_scripts.export import ExportArguments, class_counts
from data_scripts.scan_dataset import lines_of
from data_scripts.source import ScanSource, load_parts


@pytest.fixture
def npz(tmp_path):
    """Scans of three sessions, one broken off, one without a label."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 16, 16)).astype(np.float32)
    images[3, 9:] = np.nan
    labels = np.arange(30) % 2
    labels[5] = -1
    np.savez(tmp_path / "scans.npz", images=images, labels=labels, sessions=np.repeat(["a", "b", "c", "d", "e"], 6))
    return ScanSource("npz", str(tmp_path / "scans.npz"), str(tmp_path / "cache"), pixels_per_line=16, max_lines=16)


def test_reads_back_equal_with_another_library(npz, tmp_path):
    folder = export.export(npz, ExportArguments(str(tmp_path / "out")))
    scans, again = npz.load(), datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "other"))
    assert scans.features == again.features
    np.testing.assert_array_equal(lines_of(scans, 16), lines_of(again, 16))
    assert scans["scan_id"][:] == again["scan_id"][:] and scans["label"][:] == again["label"][:]


def test_is_trained_on_as_a_dataset_of_its_own(npz, tmp_path):
    folder = export.export(npz, ExportArguments(str(tmp_path / "out"), split="sessions"))
    source = ScanSource("exported", str(folder), str(tmp_path / "cache"), pixels_per_line=16)
    assert sorted(source.load()["scan_id"]) == sorted(npz.load()["scan_id"])
    stream = source.load(streaming=True)
    assert {scan["scan_id"] for scan in stream} == set(npz.load()["scan_id"])
    with pytest.raises(ScanReadError, match="holds lines of 16 pixels, got pixels_per_line=32"):
        ScanSource("exported", str(folder), str(tmp_path / "cache"), pixels_per_line=32).load()


@pytest.mark.parametrize("streaming", [False, True])
def test_another_folder_of_the_name_and_the_same_written_anew_are_other_scans(npz, tmp_path, streaming):
    folders = [tmp_path / day / "mine" for day in ("monday", "tuesday")]
    for number, folder in enumerate((*folders, folders[0])):
        shutil.rmtree(folder, ignore_errors=True)
        labels, scan_ids = np.arange(20) % 2, [f"{number}-{scan}" for scan in range(20)]
        np.savez(npz.data_dir, images=np.ones((20, 16, 16)), labels=labels, scan_ids=scan_ids)
        export.export(npz, ExportArguments(str(folder), split="random"))
        source = ScanSource("exported", str(folder), npz.cache_dir, pixels_per_line=16)
        assert {scan["scan_id"] for scan in source.load(streaming)} == set(scan_ids)
        assert list(load_parts(str(folder), npz.cache_dir)) == ["train", "validation"]


def test_parts_hold_whole_sessions_and_the_rest(npz, tmp_path):
    folder = export.export(npz, ExportArguments(str(tmp_path / "out"), split="sessions"))
    parts = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(parts) == {"train", "validation", "rest"}
    assert not set(parts["train"]["session"]) & set(parts["validation"]["session"])
    assert parts["rest"]["scan_id"][:] == ["5"]
    assert class_counts(parts["rest"]) == {"0": 0, "1": 0, "unlabelled": 1}


def test_card_is_valid_and_says_what_is_in_it(npz, tmp_path, find_tables):
    arguments = ExportArguments(str(tmp_path / "out"), split="random", license="cc-by-4.0", title="Our scans")
    folder = export.export(npz, arguments)
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.pretty_name == "Our scans"
    assert card.data.size_categories == ["n<1K"]
    assert [part["split"] for part in card.data.configs[0]["data_files"]] == ["train", "validation", "rest"]
    assert "| `scan_id` | `Value('string')` |" in card.content
    counts = class_counts(datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")))
    assert f"| train | {sum(counts.values())} | 5 | {counts['0']} | {counts['1']} | 0 |" in card.content
    assert "Split by random (seed 0)" in card.content
    columns, parts = find_tables(card.content)
    assert [row[0] for row in parts] == ["part", "train", "validation", "rest"] and len(columns) == 8


def test_many_shards_are_one_part(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 2**12)
    folder = export.export(npz, ExportArguments(str(tmp_path / "out")))
    assert len(list((folder / "data").glob("train-*.parquet"))) > 3


def test_difference_is_noticed(npz, tmp_path):
    scans = npz.load()
    export.check_equal(scans, scans, "train")
    for other in (scans.select(range(29)), scans.select([1, 0, *range(2, 30)]), scans.select([0] * 30)):
        with pytest.raises(ScanReadError, match="does not read back"):
            export.check_equal(scans, other, "train")


def test_nothing_is_written_over(npz, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ScanReadError, match="is not empty"):
        export.export(npz, ExportArguments(str(tmp_path / "out")))


def test_command(tmp_path):
    arguments = "--dataset simulated --num_scans 6 --pixels_per_line 32 --max_lines 32"
    out = subprocess.run(
        [sys.executable, "-m", "data_scripts.export", *arguments.split(), "--output_dir", str(tmp_path / "out"),
         "--cache_dir", str(tmp_path / "cache")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "6 scans" in out.stdout and (tmp_path / "out" / "README.md").is_file()


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert export.main(["--dataset", "npz", "--data_dir", "nowhere.npz", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: dataset npz needs data_dir") and error.count("\n") == 1


def test_a_name_in_brackets_is_seen_in_the_error(tmp_path, capsys):
    """Brackets are how colours are asked for on a terminal."""
    flags = ["--dataset", "folder", "--data_dir", str(tmp_path / "[red]"), "--output_dir", str(tmp_path / "out")]
    assert export.main(flags) == 2
    assert "[red]" in capsys.readouterr().err
