"""Labelled files of any readable kind: in class folders, or listed in a table."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..readers import READERS
from ..scan import ScanReadError
from .base import LabelledScan, ScanBuilder, in_shards, one_hot, readable_files

NOTHING = ["", "NA", "NaN", "nan"]  # what R and pandas write; None and null, which pandas also takes so, name states


class ClassFolders(ScanBuilder):
    """A folder of folders: each is a class by its name, and holds scans of any readable kind."""

    OPTIONS = ("channel", "direction")

    def source_files(self) -> list[Path]:
        if self.root is None or not self.root.is_dir():
            raise ScanReadError(f"dataset folder needs data_dir: a folder of class folders, got {self.root}.")
        files = readable_files(self.root, "*/**/*")
        if not files:
            if lying := readable_files(self.root, "*"):
                raise ScanReadError(
                    f"{self.root}: its {len(lying)} scans lie directly in it. Put them into folders in it, one a "
                    "class, or name them in a table (dataset manifest)."
                )
            raise ScanReadError(f"{self.root}: no class folder with a scan ({', '.join(sorted(READERS))}).")
        return files

    def _class_of(self, path: Path) -> str:
        assert self.root is not None
        return path.relative_to(self.root).parts[0]

    def label_names(self) -> list[str]:
        return sorted({self._class_of(path) for path in self.source_files()})

    def shards(self) -> list[list[Path]]:
        return in_shards(self.source_files())

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        names = self.label_names()
        assert self.root is not None
        for shard in shards:
            for path in shard:
                if (scan := self.read(path)) is not None:
                    scan_id = path.relative_to(self.root).with_suffix("").as_posix()
                    label = names.index(self._class_of(path))
                    yield LabelledScan(replace(scan, scan_id=scan_id), one_hot(label, len(names)))
            yield None


class _Row(NamedTuple):
    path: Path
    scan_id: str
    label: str | None
    session: str | None


class Manifest(ScanBuilder):
    """
    A table (`.csv` or `.parquet`) with a row a scan: the path of its file (relative to the table), its label (empty:
    none) and, if there is such a column, its session: whatever a split must hold together.
    """

    OPTIONS = ("channel", "direction", "path_column", "label_column", "session_column")

    _read_rows: list[_Row] | None = None

    def source_files(self) -> list[Path]:
        return [self._manifest(), *(row.path for row in self._rows())]

    def _manifest(self) -> Path:
        if self.root is None or not self.root.is_file():
            raise ScanReadError(f"dataset manifest needs data_dir: a .csv or .parquet file, got {self.root}.")
        return self.root

    def _rows(self) -> list[_Row]:
        if self._read_rows is not None:
            return self._read_rows
        manifest = self._manifest()
        try:
            if manifest.suffix.lower() == ".parquet":
                table = pd.read_parquet(manifest)
            else:
                table = pd.read_csv(manifest, dtype=str, keep_default_na=False, na_values=NOTHING)
        except Exception as error:  # pandas raises what its parsers think of
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ScanReadError(f"{manifest}: cannot be read as a table ({reason}).") from error
        path_column, label_column, session_column = (
            self.options.get(f"{what}_column") or what for what in ("path", "label", "session")
        )
        needed = {path_column: "path_column", label_column: "label_column"}
        if session_column != "session":  # asked for by name
            needed[session_column] = "session_column"
        for column, option in needed.items():
            if column not in table.columns:
                has = ", ".join(map(str, table.columns))
                advice = f"name it: --{option} COLUMN"
                if len(table.columns) == 1 and ";" in has:
                    advice = "columns are parted by commas, not by semicolons"
                raise ScanReadError(f"{manifest}: has no column {column!r} ({option}); it has {has}: {advice}.")
        empty = table[path_column].isna()
        if empty.any():
            raise ScanReadError(f"{manifest}: row {int(empty.to_numpy().argmax()) + 1} names no file.")

        def strings(column: str) -> list[str | None]:
            if column not in table.columns:
                return [None] * len(table)
            return [None if pd.isna(value) else str(value).strip() or None for value in table[column]]

        rows: dict[Path, _Row] = {}
        for number, (given, label, session) in enumerate(
            zip(table[path_column], strings(label_column), strings(session_column), strict=True), start=1
        ):
            path = manifest.parent / str(given)
            # named alike however the path is written: a scan under two names could be on both sides of a split
            name = Path(os.path.relpath(path, manifest.parent)).with_suffix("").as_posix()
            if rows.setdefault(path.resolve(), row := _Row(path, name, label, session)) is not row:
                raise ScanReadError(f"{manifest}: row {number} names a file that a row before it names, {path}.")
        self._read_rows = list(rows.values())
        return self._read_rows

    def label_names(self) -> list[str]:
        names = sorted({row.label for row in self._rows() if row.label is not None})
        if not names:
            raise ScanReadError(f"{self.root}: no row has a label.")
        return names

    def shards(self) -> list[list[_Row]]:
        return in_shards(self._rows())

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        names = self.label_names()
        for shard in shards:
            for row in shard:
                if (scan := self.read(row.path)) is not None:
                    scan = replace(scan, scan_id=row.scan_id, session=row.session or scan.session)
                    yield LabelledScan(scan, one_hot(-1 if row.label is None else names.index(row.label), len(names)))
            yield None
