"""What all `datasets` builders share: scans in, one table of resampled lines out, cached and cut into shards."""

import contextlib
import hashlib
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from modeling_scanline import image_processing_scanline
from modeling_scanline.image_processing_scanline import flatten_lines, resample_lines

from .. import labels, readers, scan
from ..labels import majority_labels
from ..readers import files_of, is_scan_file, read_scan
from ..scan import Scan, ScanReadError
from ..threads import one_thread

logger = logging.getLogger(__name__)

SHARD_SIZE = 64  # scans; more fall out of the processor's cache while they are resampled


def scan_features(label_names: list[str], pixels_per_line: int) -> datasets.Features:
    """
    The columns of every dataset: `scan_id`, `session`, `lines` `[num_lines, pixels_per_line]` in float32 (heights,
    NaN where nothing was measured), `label` (the majority's, -1 where there is none), `scores` (mean vote for each
    class, NaN where nobody voted), `line_labels` (state of the tip at each line) and `change_lines` (first line of
    each new tip), both missing where nobody knows.
    """
    return datasets.Features(
        {
            "scan_id": datasets.Value("string"),
            "session": datasets.Value("string"),
            "lines": datasets.Array2D(shape=(None, pixels_per_line), dtype="float32"),
            "label": datasets.ClassLabel(names=label_names),
            "scores": datasets.List(datasets.Value("float32"), length=len(label_names)),
            "line_labels": datasets.List(datasets.Value("int8")),
            "change_lines": datasets.List(datasets.Value("int32")),
        }
    )


@dataclass(frozen=True)
class LabelledScan:
    """
    A scan with what is known of its tip.

    Attributes:
        scan: the scan.
        votes: mean vote for each class `[num_labels]`, NaN where there are none.
        line_labels: state of the tip at each line of the model's width, `None` where nobody knows.
        change_lines: first line of each new tip, likewise.
    """

    scan: Scan
    votes: np.ndarray
    line_labels: np.ndarray | None = None
    change_lines: np.ndarray | None = None


def prepare_lines(scans: np.ndarray, pixels_per_line: int, max_lines: int, flatten: bool) -> torch.Tensor:
    """
    Lines of a model's width, as [`ScanlineImageProcessor`] makes them before it normalizes them.

    Args:
        scans: `[num_scans, lines, width]` as they were measured, NaN where nothing was.
        pixels_per_line: width to resample to.
        max_lines: keep the first lines only.
        flatten: take a straight line out of each line first, which `flat_line` asks for: of what is resampled, tilt
            is no longer quite straight.

    Returns:
        `[num_scans, lines', pixels_per_line]` in float32.
    """
    scans = flatten_lines(scans) if flatten else scans
    return resample_lines(torch.from_numpy(scans), pixels_per_line, max_lines)


@dataclass
class ScanConfig(datasets.BuilderConfig):
    """
    What a builder is asked for.

    Attributes:
        pixels_per_line: width to resample to.
        max_lines: keep the first lines only.
        flatten: see [`prepare_lines`].
        options: what else the builder names in its `OPTIONS`.
    """

    pixels_per_line: int = 128
    max_lines: int = 128
    flatten: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class ScanBuilder(datasets.ArrowBasedBuilder):
    """
    Resamples scans a shard at a time, all of one size at once, and writes them with their votes.

    The cache folder is named after the builder's code and the state of the files, so that neither can go stale.
    Shards make the dataset stream, and let `datasets.distributed.split_dataset_by_node` give each machine its own.
    """

    VERSION = datasets.Version("1.1.0")
    BUILDER_CONFIG_CLASS = ScanConfig
    OPTIONS: tuple[str, ...] = ()  # fields of ScanSource, beside the size of the lines, that decide what it holds
    CODE: tuple[ModuleType, ...] = ()  # modules beside this one and the builder's own that do
    config: ScanConfig
    num_processes = 0  # that prepare the dataset at once; none for a stream, which keeps nothing

    def __init__(self, *args: Any, data_dir: str | None = None, **kwargs: Any):
        self.root = None if data_dir is None else Path(data_dir).expanduser().resolve()
        self.options: Mapping[str, Any] = kwargs.get("options") or {}  # there is no config yet, and files depend on it
        self.skipped: list[str] = []
        digest = hashlib.sha256()
        for path in _source_code(type(self), scan, labels, readers, image_processing_scanline, *self.CODE):
            digest.update(path.read_bytes())
        for path in (part for source in self.source_files() for part in files_of(source)):
            state = "missing"  # for `read` to name
            with contextlib.suppress(FileNotFoundError):
                state = f"{path.stat().st_size}|{path.stat().st_mtime_ns}"
            digest.update(os.fsencode(path) + f"|{state}\n".encode())
        super().__init__(*args, hash=digest.hexdigest()[:32], **kwargs)

    def source_files(self) -> list[Path]:
        """All files that the dataset is made of."""
        return []

    def label_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        raise NotImplementedError  # each builder knows its own

    def shards(self) -> Sequence[Any]:
        """What [`ScanBuilder.scans`] makes at most `SHARD_SIZE` scans of, each."""
        raise NotImplementedError  # each builder knows its own

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        """The scans of some shards, in order; `None` after each shard."""
        raise NotImplementedError  # each builder knows its own

    def read(self, path: Path) -> Scan | None:
        """Reads a file, or names it and goes on."""
        try:
            return read_scan(path, self.options.get("channel"), self.options.get("direction") or "forward")
        except ScanReadError as error:
            self.skipped.append(str(path))
            logger.warning("Skipped: %s", error)
            return None

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=scan_features(self.label_names(), self.config.pixels_per_line))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={"shards": list(self.shards())})]

    def _generate_tables(self, shards: list[Any]) -> Iterator[tuple[int, pa.Table]]:
        chunk: list[LabelledScan] = []
        number = 0
        scan_ids: set[str] = set()
        with one_thread() if self.num_processes > 1 else contextlib.nullcontext():
            for labelled in self.scans(shards):
                if labelled is not None:
                    scan_id = labelled.scan.scan_id
                    if scan_id in scan_ids:  # a split could not keep them apart
                        raise self._called_alike(scan_id)
                    scan_ids.add(scan_id)
                    chunk.append(labelled)
                elif chunk:
                    yield number, self._table(chunk)
                    chunk, number = [], number + 1
        if number == 0 and len(shards) == len(self.shards()):
            raise self._no_scan()
        if self.skipped:
            logger.warning("%d files could not be read and are not in the dataset.", len(self.skipped))
            if self.num_processes:
                with self.left_out.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(f"{path}\n" for path in self.skipped)

    @property
    def left_out(self) -> Path:
        """Where the files that could not be read are listed, beside the dataset that was prepared without them."""
        return Path(f"{self.cache_dir}.left_out.txt")

    def tell_left_out(self) -> None:
        """Says which files a dataset that was prepared before is without: it is read again, they are not."""
        if self.left_out.is_file():
            paths = sorted(set(self.left_out.read_text(encoding="utf-8").splitlines()))
            logger.warning("%d files could not be read and are not in the dataset, %s for one.", len(paths), paths[0])

    def check_number(self) -> None:
        """Raises `ScanReadError` if what was prepared holds no scan: of several processes none knows."""
        if not (self.info.splits or {})["train"].num_examples:
            raise self._no_scan()

    def check_names(self, scans: datasets.Dataset) -> None:
        """Raises `ScanReadError` if two of the scans that were prepared are called alike, likewise."""
        scan_ids, counts = np.unique(np.asarray(scans.with_format(None)["scan_id"][:]), return_counts=True)
        if (counts > 1).any():
            raise self._called_alike(str(scan_ids[counts > 1][0]))

    def _called_alike(self, scan_id: str) -> ScanReadError:
        return ScanReadError(f"{self.root}: two scans are called {scan_id!r}: rename or remove one.")

    def _no_scan(self) -> ScanReadError:
        skipped = f"; {len(self.skipped)} files could not be read" if self.skipped else ""
        return ScanReadError(f"{self.root or self.dataset_name}: no scan to make a dataset of{skipped}.")

    def model_lines(self, scans: np.ndarray) -> np.ndarray:
        """Scans `[num_scans, lines, width]` as they were measured, to `[num_scans, lines', pixels_per_line]`."""
        config = self.config
        return prepare_lines(scans, config.pixels_per_line, config.max_lines, config.flatten).numpy()

    def _table(self, chunk: list[LabelledScan]) -> pa.Table:
        scores = np.stack([labelled.votes for labelled in chunk]).astype(np.float32)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, labelled in enumerate(chunk):
            sizes.setdefault(labelled.scan.lines.shape, []).append(index)
        lines: list[np.ndarray] = [np.empty(0)] * len(chunk)
        for indices in sizes.values():
            resampled = self.model_lines(np.stack([chunk[index].scan.lines for index in indices]))
            for index, values in zip(indices, resampled, strict=True):
                lines[index] = values
        schema = self.info.features.arrow_schema
        columns = [
            pa.array([labelled.scan.scan_id for labelled in chunk], pa.string()),
            pa.array([labelled.scan.session for labelled in chunk], pa.string()),
            pa.ExtensionArray.from_storage(schema.field("lines").type, _nested_list(lines)),
            pa.array(majority_labels(scores), pa.int64()),
            pa.array(list(scores), schema.field("scores").type),
            pa.array([labelled.line_labels for labelled in chunk], schema.field("line_labels").type),
            pa.array([labelled.change_lines for labelled in chunk], schema.field("change_lines").type),
        ]
        return pa.table(columns, schema=schema)


def _source_code(builder: type[ScanBuilder], *modules: ModuleType) -> list[Path]:
    """The files that a builder and some modules are written in; of a package all."""
    files = {Path(inspect.getfile(kind)) for kind in builder.__mro__ if issubclass(kind, ScanBuilder)}
    for module in modules:
        path = Path(str(module.__file__))
        files |= set(path.parent.glob("*.py")) if path.name == "__init__.py" else {path}
    return sorted(files)


def _nested_list(scans: list[np.ndarray]) -> pa.ListArray:
    """Scans `[lines, pixels]` as one Arrow list of lists, without going through Python floats."""
    width = scans[0].shape[1]
    ends = np.cumsum([0, *(len(lines) for lines in scans)], dtype=np.int32)
    values = pa.array(np.concatenate(scans).ravel(), pa.float32())
    rows = pa.ListArray.from_arrays(pa.array(np.arange(ends[-1] + 1, dtype=np.int32) * width), values)
    return pa.ListArray.from_arrays(pa.array(ends), rows)


def in_shards(items: Sequence[Any]) -> list[Any]:
    """The items in order, `SHARD_SIZE` at a time."""
    return [items[start : start + SHARD_SIZE] for start in range(0, len(items), SHARD_SIZE)]


def one_hot(label: int, num_labels: int) -> np.ndarray:
    """Votes of one who is sure of `label`; nobody's (NaN) for -1."""
    votes = np.full(num_labels, np.nan if label < 0 else 0, dtype=np.float32)
    if label >= 0:
        votes[label] = 1
    return votes


def readable_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Files below a folder that may be scans by their names, none hidden (thumbnails, checkpoints of editors)."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if is_scan_file(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    )
