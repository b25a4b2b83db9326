import logging
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from builder_cases import HSI100, SESSION
from PIL import Image

from data_scripts import ScanReadError, read_scan
from data_scripts.builders.hsi100 import SPM_TOOLBOX_BOXES, find_spreadsheet, read_box_votes, read_votes

ORIGINALS = HSI100 / "original_rgb"
needs_hsi100 = pytest.mark.skipif(not HSI100.is_dir(), reason="the labelled scans of H:Si(100) are not here")


class TestSPMToolbox:
    def test_values_are_those_of_the_picture(self, toolbox, load, by_id, resampled):
        root, heights, _ = toolbox
        scans = by_id(load("hsi100", root))
        assert sorted(scans) == sorted(Path(name).stem for name in heights)
        for name, picture in heights.items():
            np.testing.assert_array_equal(np.float32(scans[Path(name).stem]["lines"]), resampled(picture))

    def test_aborted_scan_stays_partial(self, toolbox, load):
        root, _, _ = toolbox
        assert [len(scan["lines"]) for scan in load("hsi100", root)] == [8, 8, 2, 8]

    def test_votes_merged_by_name(self, toolbox, load):
        scans = load("hsi100", toolbox[0])
        assert scans.features["label"].names == ["individual_atoms", "asymmetries_dimers", "rows", "generic_defect"]
        assert scans["scores"][:3] == [[0, 1, 0, 0.25], [1, 0, 0, 0], [0, 0, 0, 0.5]]
        assert scans["label"][:3] == [1, 0, 3]

    def test_columns_in_any_order(self, toolbox, load, write_votes):
        root, _, votes = toolbox
        before = load("hsi100", root)["scores"][:3]
        write_votes(
            root,
            votes,
            columns=["Bad/Blurry", "Rows", "Note", "Dimers", "Tip Change", "Individual Atoms", "Asymmetries"],
        )
        assert load("hsi100", root)["scores"][:3] == before

    def test_picture_without_row_is_unlabelled(self, toolbox, load):
        last = load("hsi100", toolbox[0])[3]
        assert last["label"] == -1
        assert np.isnan(last["scores"]).all() and len(last["scores"]) == 4

    def test_row_without_vote_is_unlabelled(self, toolbox, load, write_votes):
        root, _, votes = toolbox
        write_votes(root, {name: [*scores[:-1], "?"] for name, scores in votes.items()})
        scans = load("hsi100", root)
        assert set(scans["label"]) == {-1}
        assert np.isnan(scans["scores"]).all()

    def test_no_row_at_all(self, toolbox, load, write_votes):
        write_votes(toolbox[0], {})
        assert set(load("hsi100", toolbox[0])["label"]) == {-1}

    def test_sessions(self, toolbox, load):
        assert set(load("hsi100", toolbox[0])["session"]) == {SESSION}

    def test_spreadsheet_left_open_in_excel(self, toolbox, load):
        (toolbox[0] / "Database" / "~$Classified Output.xlsx").write_bytes(b"owner")
        assert load("hsi100", toolbox[0])["label"][:3] == [1, 0, 3]

    def test_broken_picture_is_named_skipped_and_counted(self, toolbox, load, caplog):
        images = toolbox[0] / "Images (Flat)"
        (images / "broken.png").write_bytes(b"nothing")
        (images / "lost.png").symlink_to(images / "nowhere.png")
        with caplog.at_level(logging.WARNING):
            scans = load("hsi100", toolbox[0])
        assert len(scans) == 4
        assert "broken.png" in caplog.text and "lost.png" in caplog.text
        assert "2 files could not be read" in caplog.text

    def test_only_broken_pictures(self, toolbox, load):
        for picture in (toolbox[0] / "Images (Flat)").iterdir():
            picture.write_bytes(b"nothing")
        with pytest.raises(ScanReadError, match="no scan to make a dataset of; 4 files could not be read"):
            load("hsi100", toolbox[0])

    def test_two_pictures_of_one_name(self, toolbox, load, draw):
        root, heights, _ = toolbox
        draw((root / "Images (Flat)" / next(iter(heights))).with_suffix(".bmp"))
        with pytest.raises(ScanReadError, match=rf"two scans are called '{Path(next(iter(heights))).stem}'"):
            load("hsi100", root)

    def test_no_sheet(self, toolbox, load, write_votes):
        write_votes(toolbox[0], {}, sheet="Sums")
        with pytest.raises(ScanReadError, match=r"no sheet 'Mean_Score' with the votes; it has Raw, Sums"):
            load("hsi100", toolbox[0])

    def test_no_column(self, toolbox, load, write_votes):
        write_votes(toolbox[0], {}, columns=["Dimers", "Rows", "Tip Change", "Asymmetries"])
        with pytest.raises(ScanReadError, match=r"'Mean_Score' has no column 'Individual Atoms', 'Bad/Blurry'\."):
            load("hsi100", toolbox[0])

    def test_empty_sheet(self, toolbox, load):
        workbook = openpyxl.Workbook()
        workbook.active.title = "Mean_Score"
        workbook.save(toolbox[0] / "Database" / "Classified Output.xlsx")
        with pytest.raises(ScanReadError, match="'Mean_Score' has no column 'Name'"):
            load("hsi100", toolbox[0])

    @pytest.mark.parametrize("content", [b"", b"Name,Dimers\n", b"PK\x03\x04 almost"])
    def test_no_spreadsheet_by_content(self, content, toolbox, load):
        (toolbox[0] / "Database" / "Classified Output.xlsx").write_bytes(content)
        with pytest.raises(ScanReadError, match=r"Output\.xlsx: cannot be read as a spreadsheet"):
            load("hsi100", toolbox[0])

    def test_no_spreadsheet(self, toolbox, load):
        (toolbox[0] / "Database" / "Classified Output.xlsx").unlink()
        with pytest.raises(ScanReadError, match=r"no spreadsheet \(\.xlsx\) in 'Database'"):
            load("hsi100", toolbox[0])

    def test_no_pictures(self, tmp_path, load, write_votes):
        write_votes(tmp_path, {})
        with pytest.raises(ScanReadError, match=r"no pictures in 'Images \(Flat\)'"):
            load("hsi100", tmp_path)

    def test_no_folder(self, tmp_path, load):
        with pytest.raises(ScanReadError, match="needs data_dir"):
            load("hsi100")
        with pytest.raises(ScanReadError, match="must be the folder of a clone"):
            load("hsi100", tmp_path / "nowhere")


class TestBoxVotes:
    def test_votes_before_they_are_merged(self, toolbox):
        root, _, votes = toolbox
        found = read_box_votes(find_spreadsheet(root))
        assert found.names.tolist() == list(votes)
        assert found.num_votes.tolist() == [2] * len(votes)
        in_their_order = ("Individual Atoms", "Asymmetries", "Dimers", "Rows", "Tip Change", "Bad/Blurry")
        assert in_their_order == SPM_TOOLBOX_BOXES
        given = np.array(list(votes.values()), dtype=float)  # Asymmetries come first in the spreadsheet
        np.testing.assert_array_equal(found.scores, given[:, [1, 0, 2, 3, 4, 5]])

    def test_number_of_votes_is_needed_here_only(self, toolbox):
        spreadsheet = find_spreadsheet(toolbox[0])
        workbook = openpyxl.load_workbook(spreadsheet)
        workbook["Mean_Score"]["B1"] = "Number"
        workbook.save(spreadsheet)
        assert len(read_votes(spreadsheet)) == 4
        with pytest.raises(ScanReadError, match=r"'Mean_Score' has no column 'No\. Responses'"):
            read_box_votes(spreadsheet)


@needs_hsi100
class TestRealScans:
    def test_votes_sizes_and_sessions(self, tmp_path, load):
        real = HSI100 / "SPM-Toolbox"
        spreadsheet = next((real / "Database").glob("*.xlsx"))
        pictures = sorted((real / "Images (Flat)").iterdir())[::110]
        for path in (spreadsheet, *pictures):
            link = tmp_path / path.relative_to(real)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
        scans = load("hsi100", tmp_path, pixels_per_line=128, max_lines=128)

        page = openpyxl.load_workbook(spreadsheet, read_only=True)["Mean_Score"]
        rows = {row[0]: row[2:8] for row in page.iter_rows(min_row=2, max_col=8, values_only=True)}
        assert len(scans) == len(pictures) == 40
        for scan, path in zip(scans, pictures, strict=True):
            with Image.open(path) as image:
                width, num_lines = image.size
            assert len(scan["lines"]) == min(128, max(1, num_lines * 128 // width))
            assert scan["scan_id"] == path.stem and scan["session"] in path.name
            if path.name in rows:
                asymmetries, atoms, dimers, stripes, tip_change, bad = rows[path.name]
                merged = [atoms, max(asymmetries, dimers), stripes, max(tip_change, bad)]
                np.testing.assert_array_equal(np.float32(scan["scores"]), np.float32(merged))
            else:
                assert scan["label"] == -1 and np.isnan(scan["scores"]).all()
        assert len(set(scans["session"])) > 5
        assert set(scans["label"]) >= {-1, 1, 2, 3}

    def test_published_colours_are_the_heights(self):
        pictures = sorted(ORIGINALS.glob("*.png"))
        assert pictures
        for path in pictures:
            grey = read_scan(HSI100 / "SPM-Toolbox" / "Images (Flat)" / path.name)
            np.testing.assert_array_equal(read_scan(path).lines, grey.lines, err_msg=path.name)
