"""The labelled H:Si(100) scans of Gordon et al. as their repository holds them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd

from ..labels import merge_scores
from ..readers import READERS
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


class SPMToolbox(ScanBuilder):
    """
    A clone of `OGordon100/SPM-Toolbox`: pictures of scans, and a spreadsheet of people's votes on some of them.

    Pictures that no row names are kept without votes; rows whose picture is missing are left out.
    """

    def source_files(self) -> list[Path]:
        if self.root is None:
            raise ScanReadError("dataset hsi100 needs data_dir: the folder of a clone of SPM-Toolbox.")
        images, database = self.root / SPM_TOOLBOX_IMAGES, self.root / "Database"
        sheets = sorted(path for path in database.glob("*.xlsx") if not path.name.startswith("~$"))  # Excel's lock
        pictures = sorted(path for path in images.glob("*") if path.suffix.lower() in READERS)
        if not pictures or not sheets:
            what = f"pictures in {SPM_TOOLBOX_IMAGES!r}" if not pictures else "spreadsheet (.xlsx) in 'Database'"
            raise ScanReadError(f"{self.root}: no {what}. data_dir must be the folder of a clone of SPM-Toolbox.")
        return [sheets[-1], *pictures]

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


def read_votes(spreadsheet: Path) -> dict[str, np.ndarray]:
    """
    Mean votes for the four classes `[4]` by the name of the picture, from the spreadsheet of a clone.

    Raises:
        ScanReadError: if it cannot be read, or lacks the sheet or a column.
    """
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
    needed = [member for members in SPM_TOOLBOX_CLASSES.values() for member in members]
    missing = [name for name in ["Name", *needed] if name not in names]
    if missing:
        raise ScanReadError(
            f"{spreadsheet}: sheet {SPM_TOOLBOX_SHEET!r} has no column {', '.join(map(repr, missing))}."
        )
    scores = table[needed].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float32)
    merged = merge_scores(scores, needed, SPM_TOOLBOX_CLASSES)
    merged[np.isnan(scores).any(axis=1)] = np.nan
    return dict(zip(table["Name"].astype(str), merged, strict=True))
