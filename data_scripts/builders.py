"""`datasets` builders: each turns a kind of collection into one table of scans, resampled once and cached."""

import hashlib
import inspect
import logging
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import torch

from modeling_scanline import image_processing_scanline
from modeling_scanline.image_processing_scanline import resample_lines

from . import labels as labels_module
from . import scan as scan_module
from . import simulation
from .labels import majority_labels, merge_scores
from .scan import READERS, Scan, ScanReadError, read_scan, session_of, to_lines
from .simulation import TIP_STATES, simulate

logger = logging.getLogger(__name__)

SHARED_CODE = (sys.modules[__name__], scan_module, labels_module, image_processing_scanline)
CHUNK_SIZE = 64  # larger ones fall out of the processor's cache while they are resampled
MAX_UNNAMED_CLASSES = 1000
SPM_TOOLBOX_IMAGES = "Images (Flat)"
SPM_TOOLBOX_SHEET = "Mean_Score"
SPM_TOOLBOX_CLASSES = {
    "individual_atoms": ("Individual Atoms",),
    "asymmetries_dimers": ("Asymmetries", "Dimers"),
    "rows": ("Rows",),
    "generic_defect": ("Tip Change", "Bad/Blurry"),
}


def scan_features(label_names: list[str], pixels_per_line: int) -> datasets.Features:
    """
    The columns of every dataset: `scan_id`, `session`, `lines` `[num_lines, pixels_per_line]` in float32 (heights,
    NaN where nothing was measured), `label` (the majority's, -1 where there is none) and `scores` (mean vote for
    each class, NaN where nobody voted).
    """
    return datasets.Features(
        {
            "scan_id": datasets.Value("string"),
            "session": datasets.Value("string"),
            "lines": datasets.Array2D(shape=(None, pixels_per_line), dtype="float32"),
            "label": datasets.ClassLabel(names=label_names),
            "scores": datasets.List(datasets.Value("float32"), length=len(label_names)),
        }
    )


@dataclass
class ScanConfig(datasets.BuilderConfig):
    """What every builder can be asked for."""

    pixels_per_line: int = 128
    max_lines: int = 128
    num_scans: int = 2000
    seed: int = 0
    noise: float = 1.0
    pixels_per_period: float = simulation.PIXELS_PER_PERIOD
    clarity: float = 2.0


class ScanBuilder(datasets.ArrowBasedBuilder):
    """
    Resamples scans in chunks, all of one size at once, and writes them with their votes.

    The cache folder is named after the builder's code and the state of the files, so that neither can go stale.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ScanConfig
    CODE: tuple[ModuleType, ...] = ()  # what else than SHARED_CODE decides what the dataset holds
    config: ScanConfig

    def __init__(self, *args: Any, data_dir: str | None = None, **kwargs: Any):
        self.root = None if data_dir is None else Path(data_dir).expanduser().resolve()
        self.skipped: list[str] = []
        digest = hashlib.sha256()
        for module in (*SHARED_CODE, *self.CODE):
            digest.update(inspect.getsource(module).encode())
        for path in self.source_files():
            stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere is for `read` to name
            digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        super().__init__(*args, hash=digest.hexdigest()[:32], **kwargs)

    def source_files(self) -> list[Path]:
        """All files that the dataset is made of."""
        return []

    def label_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        raise NotImplementedError  # each builder knows its own

    def scans(self) -> Iterator[tuple[Scan, np.ndarray]]:
        """Each scan with its mean votes `[num_labels]`, NaN where there are none."""
        raise NotImplementedError  # each builder knows its own

    def read(self, paths: Iterable[Path]) -> Iterator[tuple[int, Scan]]:
        """Reads the files that can be read, with their place in `paths`; names the others and goes on."""
        for index, path in enumerate(paths):
            try:
                yield index, read_scan(path)
            except ScanReadError as error:
                self.skipped.append(str(path))
                logger.warning("Skipped: %s", error)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=scan_features(self.label_names(), self.config.pixels_per_line))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train")]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        chunk: list[tuple[Scan, np.ndarray]] = []
        number = 0
        scan_ids: set[str] = set()
        for scan, votes in self.scans():
            if scan.scan_id in scan_ids:  # a split could not keep them apart
                raise ScanReadError(f"{self.root}: two scans are called {scan.scan_id!r}: rename or remove one.")
            scan_ids.add(scan.scan_id)
            chunk.append((scan, votes))
            if len(chunk) == CHUNK_SIZE:
                yield number, self._table(chunk)
                chunk, number = [], number + 1
        if chunk:
            yield number, self._table(chunk)
        elif number == 0:
            skipped = f"; {len(self.skipped)} files could not be read" if self.skipped else ""
            raise ScanReadError(f"{self.root or self.dataset_name}: no scan to make a dataset of{skipped}.")
        if self.skipped:
            logger.warning("%d files could not be read and are not in the dataset.", len(self.skipped))

    def _table(self, chunk: list[tuple[Scan, np.ndarray]]) -> pa.Table:
        scores = np.stack([votes for _, votes in chunk]).astype(np.float32)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, (scan, _) in enumerate(chunk):
            sizes.setdefault(scan.lines.shape, []).append(index)
        lines: list[np.ndarray] = [np.empty(0)] * len(chunk)
        for indices in sizes.values():
            scans = torch.from_numpy(np.stack([chunk[index][0].lines for index in indices]))
            resampled = resample_lines(scans, self.config.pixels_per_line, self.config.max_lines).numpy()
            for index, values in zip(indices, resampled, strict=True):
                lines[index] = values
        schema = self.info.features.arrow_schema
        columns = [
            pa.array([scan.scan_id for scan, _ in chunk], pa.string()),
            pa.array([scan.session for scan, _ in chunk], pa.string()),
            pa.ExtensionArray.from_storage(schema.field("lines").type, _nested_list(lines)),
            pa.array(majority_labels(scores), pa.int64()),
            pa.array(list(scores), schema.field("scores").type),
        ]
        return pa.table(columns, schema=schema)


def _nested_list(scans: list[np.ndarray]) -> pa.ListArray:
    """Scans `[lines, pixels]` as one Arrow list of lists, without going through Python floats."""
    width = scans[0].shape[1]
    ends = np.cumsum([0, *(len(lines) for lines in scans)], dtype=np.int32)
    values = pa.array(np.concatenate(scans).ravel(), pa.float32())
    rows = pa.ListArray.from_arrays(pa.array(np.arange(ends[-1] + 1, dtype=np.int32) * width), values)
    return pa.ListArray.from_arrays(pa.array(ends), rows)


def _one_hot(label: int, num_labels: int) -> np.ndarray:
    votes = np.zeros(num_labels, dtype=np.float32)
    votes[label] = 1
    return votes


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

    def scans(self) -> Iterator[tuple[Scan, np.ndarray]]:
        spreadsheet, *pictures = self.source_files()
        votes = self._votes(spreadsheet)
        unlabelled = np.full(len(SPM_TOOLBOX_CLASSES), np.nan, dtype=np.float32)
        for index, scan in self.read(pictures):
            yield scan, votes.get(pictures[index].name, unlabelled)

    @staticmethod
    def _votes(spreadsheet: Path) -> dict[str, np.ndarray]:
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


class ImageFolder(ScanBuilder):
    """A folder of folders: each is a class by its name, and holds scans of any readable kind."""

    def source_files(self) -> list[Path]:
        if self.root is None or not self.root.is_dir():
            raise ScanReadError(f"dataset folder needs data_dir: a folder of class folders, got {self.root}.")
        files = sorted(
            path
            for path in self.root.glob("*/**/*")
            if path.suffix.lower() in READERS
            and not any(part.startswith(".") for part in path.relative_to(self.root).parts)  # thumbnails, checkpoints
        )
        if not files:
            raise ScanReadError(f"{self.root}: no class folder with a scan ({', '.join(sorted(READERS))}).")
        return files

    def _class_of(self, path: Path) -> str:
        assert self.root is not None
        return path.relative_to(self.root).parts[0]

    def label_names(self) -> list[str]:
        return sorted({self._class_of(path) for path in self.source_files()})

    def scans(self) -> Iterator[tuple[Scan, np.ndarray]]:
        files, names = self.source_files(), self.label_names()
        assert self.root is not None
        for index, scan in self.read(files):
            path = files[index]
            scan_id = path.relative_to(self.root).with_suffix("").as_posix()
            votes = _one_hot(names.index(self._class_of(path)), len(names))
            yield Scan(lines=scan.lines, scan_id=scan_id, session=scan.session, source=scan.source), votes


class NpzArrays(ScanBuilder):
    """
    A `.npz` file with `images` `[num_scans, lines, pixels]` and `labels` `[num_scans]`.

    Optional: `sessions` and `scan_ids` `[num_scans]`, and `label_names` `[num_labels]`. A label of -1 is none.
    """

    def source_files(self) -> list[Path]:
        if self.root is None or not self.root.is_file():
            raise ScanReadError(f"dataset npz needs data_dir: a .npz file with images and labels, got {self.root}.")
        return [self.root]

    def _load(self, *names: str) -> dict[str, np.ndarray]:
        assert self.root is not None
        try:
            if not zipfile.is_zipfile(self.root):
                raise ValueError("not a zip file")
            with np.load(self.root, allow_pickle=False) as arrays:
                missing = " or ".join(sorted({"images", "labels"} - set(arrays)))
                if missing:
                    raise ScanReadError(f"{self.root}: no array {missing}; it holds {', '.join(arrays) or 'none'}.")
                return {name: arrays[name] for name in names if name in arrays}
        except ScanReadError:
            raise
        except Exception as error:  # zipfile, numpy and pickle refusals
            pickled = "pickled objects are not loaded" if "pickle" in str(error).lower() else str(error)
            raise ScanReadError(f"{self.root}: cannot be read as .npz arrays of numbers ({pickled}).") from error

    def label_names(self) -> list[str]:
        arrays = self._load("labels", "label_names")
        labels = arrays["labels"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0:
            raise ScanReadError(
                f"{self.root}: labels must be whole numbers [num_scans], got {labels.dtype} {list(labels.shape)}."
            )
        if "label_names" in arrays:
            names = [str(name) for name in arrays["label_names"].ravel()]
            if arrays["label_names"].ndim != 1 or len(set(names)) < len(names):
                raise ScanReadError(
                    f"{self.root}: label_names must be different names [num_labels], got {', '.join(names)} of shape "
                    f"{list(arrays['label_names'].shape)}."
                )
        elif labels.max() < 0:
            raise ScanReadError(
                f"{self.root}: no scan has a label, and label_names does not say which there could be."
            )
        elif labels.max() >= MAX_UNNAMED_CLASSES:
            raise ScanReadError(
                f"{self.root}: labels go up to {labels.max()}, and more than {MAX_UNNAMED_CLASSES} classes need "
                "label_names."
            )
        else:
            names = [str(label) for label in range(int(labels.max()) + 1)]
        if labels.min() < -1 or labels.max() >= len(names):
            raise ScanReadError(
                f"{self.root}: labels must lie between -1 (none) and {len(names) - 1}, the last of "
                f"{len(names)} classes; got {labels.min()} to {labels.max()}."
            )
        return names

    def scans(self) -> Iterator[tuple[Scan, np.ndarray]]:
        names = self.label_names()
        arrays = self._load("images", "labels", "sessions", "scan_ids")
        images, labels = arrays["images"], arrays["labels"]
        if images.ndim != 3 or images.dtype.kind not in "fiub" or len(images) != len(labels):
            raise ScanReadError(
                f"{self.root}: images must be numbers [num_scans, lines, pixels] and as many as labels, got "
                f"{images.dtype} {list(images.shape)} and {len(labels)} labels."
            )
        for name in ("sessions", "scan_ids"):
            if name in arrays and arrays[name].shape != labels.shape:
                raise ScanReadError(
                    f"{self.root}: {name} must be [num_scans] as labels are, got {list(arrays[name].shape)} for "
                    f"{len(labels)} labels."
                )
        for index, image in enumerate(images):
            unlabelled = np.full(len(names), np.nan, dtype=np.float32)
            scan_id = str(arrays["scan_ids"][index]) if "scan_ids" in arrays else str(index)
            yield (
                Scan(
                    lines=to_lines(image),
                    scan_id=scan_id,
                    session=str(arrays["sessions"][index]) if "sessions" in arrays else session_of(scan_id),
                    source=str(self.root),
                ),
                unlabelled if labels[index] < 0 else _one_hot(int(labels[index]), len(names)),
            )


class Simulated(ScanBuilder):
    """The embedded dataset: simulated scans of H:Si(100), endless and seeded, no download."""

    CODE = (simulation,)

    def label_names(self) -> list[str]:
        return list(TIP_STATES)

    def scans(self) -> Iterator[tuple[Scan, np.ndarray]]:
        for start in range(0, self.config.num_scans, CHUNK_SIZE):
            try:
                batch = simulate(
                    min(CHUNK_SIZE, self.config.num_scans - start),
                    seed=self.config.seed,
                    start=start,
                    pixels_per_line=self.config.pixels_per_line,
                    num_lines=self.config.max_lines,
                    noise=self.config.noise,
                    pixels_per_period=self.config.pixels_per_period,
                    clarity=self.config.clarity,
                )
            except ValueError as error:
                raise ScanReadError(f"dataset simulated: {error}") from error
            for index in range(len(batch.states)):
                yield (
                    Scan(
                        lines=batch.lines[index],
                        scan_id=f"simulated-{self.config.seed}-{start + index}",
                        session=f"simulated-{self.config.seed}-{batch.sessions[index]}",
                        source="simulation",
                        size_nm=(float(batch.sizes_nm[index]), float(batch.sizes_nm[index])),
                    ),
                    _one_hot(int(batch.states[index]), len(TIP_STATES)),
                )


BUILDERS: dict[str, type[ScanBuilder]] = {
    "hsi100": SPMToolbox,
    "folder": ImageFolder,
    "npz": NpzArrays,
    "simulated": Simulated,
}


def load_scans(
    name: str,
    data_dir: str | None = None,
    *,
    pixels_per_line: int = 128,
    max_lines: int = 128,
    num_scans: int = 2000,
    seed: int = 0,
    noise: float = 1.0,
    pixels_per_period: float = simulation.PIXELS_PER_PERIOD,
    clarity: float = 2.0,
    cache_dir: str | None = None,
) -> datasets.Dataset:
    """
    Loads a dataset of scans by name, preparing it the first time.

    Args:
        name: `hsi100`, `folder`, `npz` or `simulated`.
        data_dir: folder or file of the data; not for `simulated`.
        pixels_per_line: width to resample to.
        max_lines: keep the first lines only.
        num_scans: how many, for `simulated`.
        seed: of the stream, for `simulated`.
        noise: factor on what the instrument adds, for `simulated`.
        pixels_per_period: fewest pixels to the period that decides the state, for `simulated`.
        clarity: how far simulated tips stay from the thresholds between the states, for `simulated`.
        cache_dir: where prepared datasets are kept; by default where `datasets` keeps them.

    Returns:
        All scans with the columns of [`scan_features`].

    Raises:
        ScanReadError: if there is no such dataset, or nothing in it can be read.
    """
    if name not in BUILDERS:
        raise ScanReadError(f"dataset must be one of {', '.join(BUILDERS)}, got {name!r}.")
    options: dict[str, Any] = {"pixels_per_line": pixels_per_line, "max_lines": max_lines}
    if name == "simulated":
        options |= {
            "num_scans": num_scans,
            "seed": seed,
            "noise": noise,
            "pixels_per_period": pixels_per_period,
            "clarity": clarity,
        }
    builder = BUILDERS[name](cache_dir=cache_dir, data_dir=data_dir, dataset_name=name, **options)
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, ScanReadError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
    return builder.as_dataset(split="train")


def read_folder(
    folder: str | Path, pixels_per_line: int = 128, max_lines: int = 128
) -> tuple[list[str], torch.Tensor]:
    """
    Reads all scans below a folder, without labels; names the files that cannot be read and goes on.

    Returns:
        The paths relative to the folder, and lines `[num_scans, max_lines, pixels_per_line]`, NaN beyond the end.

    Raises:
        ScanReadError: if there is nothing to read.
    """
    folder = Path(folder)
    lines, names = [], []
    num_skipped = 0
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS):
        try:
            heights = torch.from_numpy(read_scan(path).lines)
        except ScanReadError as error:
            logger.warning("Skipped: %s", error)
            num_skipped += 1
            continue
        resampled = resample_lines(heights.unsqueeze(0), pixels_per_line, max_lines)[0]
        missing = max_lines - len(resampled)
        lines.append(torch.nn.functional.pad(resampled, (0, 0, 0, missing), value=float("nan")))
        names.append(path.relative_to(folder).as_posix())
    if not lines:
        raise ScanReadError(f"{folder}: no scan that can be read ({', '.join(sorted(READERS))}).")
    if num_skipped:
        logger.warning("%d files could not be read.", num_skipped)
    return names, torch.stack(lines)
