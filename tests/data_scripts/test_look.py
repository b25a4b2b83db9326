"""Contact sheets and counts."""

import numpy as np
import pytest
from PIL import Image

from data_scripts import look
from data_scripts.look import LookArguments, draw_contact_sheet
from data_scripts.source import ScanSource


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(9, 16, 16))
    images[0, 6:] = np.nan
    np.savez(
        tmp_path / "scans.npz",
        images=images,
        labels=[0, 1, 1, 0, 1, -1, 0, 1, 1],
        label_names=["atoms", "rows"],
        sessions=list("aaabbbccc"),
    )
    return ScanSource("npz", str(tmp_path / "scans.npz"), str(tmp_path / "cache"), pixels_per_line=16, max_lines=16)


def test_a_row_for_each_class_with_its_scans(source):
    figure = draw_contact_sheet(source.load(), LookArguments(columns=4))
    rows = np.array(figure.axes).reshape(2, 4)
    assert [row[0].get_ylabel() for row in rows] == ["atoms\n3 scans", "rows\n5 scans"]
    drawn = [[axis.get_title().split("\n")[0] for axis in row if axis.images] for row in rows]
    assert drawn[0] == ["0", "3", "6"] and len(drawn[1]) == 4 and set(drawn[1]) <= {"1", "2", "4", "7", "8"}


def test_what_was_not_measured_is_left_open(source):
    figure = draw_contact_sheet(source.load(), LookArguments(columns=3))
    picture = figure.axes[0].images[0].get_array()
    assert picture.mask[6:].all() and not picture.mask[:6].any()


def test_simulated_scans_below_those_of_their_class(source):
    simulated = ScanSource("simulated", cache_dir=source.cache_dir, pixels_per_line=32, max_lines=32, num_scans=30)
    figure = draw_contact_sheet(source.load(), LookArguments(columns=2), simulated.load())
    rows = np.array(figure.axes).reshape(3, 2)
    assert [row[0].get_ylabel().split("\n")[0] for row in rows] == ["atoms", "rows", "rows, simulated"]
    assert rows[2, 0].images[0].get_array().shape == (32, 32)


def test_scans_without_a_label_on_request(source):
    figure = draw_contact_sheet(source.load(), LookArguments(columns=2, unlabelled=True))
    assert figure.axes[4].get_title().startswith("5\n")


def test_command_counts_and_draws(source, tmp_path, capsys):
    arguments = ["--dataset", "npz", "--data_dir", source.data_dir, "--cache_dir", source.cache_dir]
    picture = tmp_path / "sheets" / "sheet.png"
    assert look.main([*arguments, "--pixels_per_line", "16", "--output_file", str(picture), "--columns", "3"]) == 0
    with Image.open(picture) as image:
        assert image.width > 300
    rows = {
        line.split()[1]: line.split()[3::2] for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    }
    assert rows["all"] == ["3", "5", "1", "9"]
    assert rows["a"] == ["1", "2", "0", "3"] and rows["c"] == ["1", "2", "0", "3"]


def test_names_are_no_markup_of_terminals_or_pictures(tmp_path, capsys):
    images, names = np.random.default_rng(0).normal(size=(2, 16, 16)), ["atoms [new]", "rows $_$"]
    np.savez(
        tmp_path / "scans.npz", images=images, labels=[0, 1], label_names=names, sessions=["[/b]", "[b]"],
        scan_ids=["$_$", "$^$"],
    )  # fmt: skip
    picture = tmp_path / "sheet [new].png"
    flags = ["--data_dir", str(tmp_path / "scans.npz"), "--cache_dir", str(tmp_path / "cache")]
    assert look.main(["--dataset", "npz", *flags, "--pixels_per_line", "16", "--output_file", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*names, "[/b]", "[b]", picture.name)) and picture.is_file()


def test_bad_input_is_one_sentence(capsys):
    assert look.main(["--columns", "0"]) == 2
    assert "columns must be at least 1" in capsys.readouterr().err
