"""The labelled H:Si(100) scans of Gordon et al. as their repository holds them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd

from ..labels import merge_scores
from ..readers import is_scan_file
from ..scan import ScanReadError
from .base import LabelledScan, ScanBuilder, in_shards

SPM_TOOLBOX_IMAGES = "Images (Flat)"
SPM_TOOLBOX_SHEET = "Mean_Score"
SPM_TOOLBOX_CLASSES = {
    "individual_atoms": ("Individual Atoms",),
    "asymmetries_dimers": ("Asymmetries", "Dimers"),
    "rows": ("Rows",),
    "generic_defect": ("Tip Change", "Bad/Blurry"),
}
SPM_TOOLBOX_BOXES = tuple(box for boxes in SPM_TOOLBOX_CLASSES.values() for box in boxes)


class SPMToolbox(ScanBuilder):
    """
    A clone of `OGordon100/SPM-Toolbox`: pictures of scans, and a spreadsheet of people's votes on some of them.

    Pictures that no row names are kept without votes; rows whose picture is missing are left out.
    """

    def source_files(self) -> list[Path]:
        if self.root is None:
            raise ScanReadError("dataset hsi100 needs data_dir: the folder of a clone of SPM-Toolbox.")
        images = self.root / SPM_TOOLBOX_IMAGES
        pictures = sorted(path for path in images.glob("*") if is_scan_file(path))
        if not pictures:
            raise _no_clone(self.root, f"pictures in {SPM_TOOLBOX_IMAGES!r}")
        return [find_spreadsheet(self.root), *pictures]

    def label_names(self) -> list[str]:
        return list(SPM_TOOLBOX_CLASSES)

    def shards(self) -> list[Any]:
        return in_shards(self.source_files()[1:])

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        votes = read_votes(self.source_files()[0])
        unlabelled = np.full(len(SPM_TOOLBOX_CLASSES), np.nan, dtype=np.float32)
        for shard in shards:
            for path in shard:
                if (scan := self.read(path)) is not None:
                    yield LabelledScan(scan, votes.get(path.name, unlabelled))
            yield None


@dataclass(frozen=True)
class BoxVotes:
    """
    Votes on the six boxes that people could tick, as many as they liked.

    Attributes:
        names: of the pictures `[num_pictures]`.
        num_votes: how many people were asked, NaN where the cell holds no number, float64 `[num_pictures]`.
        scores: share of them that ticked each of `SPM_TOOLBOX_BOXES`, likewise, float64 `[num_pictures, 6]`.
    """

    names: np.ndarray
    num_votes: np.ndarray
    scores: np.ndarray


def find_spreadsheet(root: Path) -> Path:
    """
    The votes of a clone: its spreadsheet, the last by name if there are several.

    Raises:
        ScanReadError: if there is none.
    """
    # what starts with ~$ is Excel's lock
    sheets = sorted(path for path in (root / "Database").glob("*.xlsx") if not path.name.startswith("~$"))
    if not sheets:
        raise _no_clone(root, "spreadsheet (.xlsx) in 'Database'")
    return sheets[-1]


def read_votes(spreadsheet: Path) -> dict[str, np.ndarray]:
    """
    Mean votes for the four classes `[4]` by the name of the picture, from the spreadsheet of a clone.

    Raises:
        ScanReadError: if it cannot be read, or lacks the sheet or a column.
    """
    names, scores = _read_columns(spreadsheet, SPM_TOOLBOX_BOXES)
    scores = scores.astype(np.float32)
    merged = merge_scores(scores, SPM_TOOLBOX_BOXES, SPM_TOOLBOX_CLASSES)
    merged[np.isnan(scores).any(axis=1)] = np.nan
    return dict(zip(names, merged, strict=True))


def read_box_votes(spreadsheet: Path) -> BoxVotes:
    """Votes before boxes are merged into classes; raises as [`read_votes`] does."""
    names, numbers = _read_columns(spreadsheet, ("No. Responses", *SPM_TOOLBOX_BOXES))
    return BoxVotes(names, numbers[:, 0], numbers[:, 1:])


def _read_columns(spreadsheet: Path, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names `[num_rows]`, and numbers `[num_rows, len(columns)]` in float64, NaN where a cell holds none."""
    try:
        workbook = openpyxl.load_workbook(spreadsheet, read_only=True)
        sheets = workbook.sheetnames
        workbook.close()
        if SPM_TOOLBOX_SHEET not in sheets:
            raise ScanReadError(
                f"{spreadsheet}: no sheet {SPM_TOOLBOX_SHEET!r} with the votes; it has {', '.join(sheets)}."
            )
        table = pd.read_excel(spreadsheet, sheet_name=SPM_TOOLBOX_SHEET, engine="openpyxl")
    except ScanReadError:
        raise
    except Exception as error:  # openpyxl raises what zipfile, xml and itself think of
        raise ScanReadError(f"{spreadsheet}: cannot be read as a spreadsheet ({error}).") from error
    names = [name for name in table.columns if not str(name).startswith("Unnamed")]
    missing = [name for name in ["Name", *columns] if name not in names]
    if missing:
        raise ScanReadError(
            f"{spreadsheet}: sheet {SPM_TOOLBOX_SHEET!r} has no column {', '.join(map(repr, missing))}."
        )
    numbers = table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    return table["Name"].astype(str).to_numpy(dtype=object), numbers


def _no_clone(root: Path, what: str) -> ScanReadError:
    return ScanReadError(f"{root}: no {what}. data_dir must be the folder of a clone of SPM-Toolbox.")
