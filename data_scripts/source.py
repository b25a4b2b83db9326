"""Where scans come from: the options of every command that takes some, and how they are loaded."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from .builders import BUILDERS
from .builders.arrays import ORIENTATIONS
from .builders.base import ScanBuilder, prepare_lines, readable_files
from .readers import READERS, read_scan
from .scan import ScanReadError
from .simulation import SURFACES

logger = logging.getLogger(__name__)

EXPORTED = "exported"
DATASETS = (*BUILDERS, EXPORTED)


@dataclass
class ScanSource:
    """Which scans."""

    dataset: str = field(
        default="simulated",
        metadata={
            "help": "simulated: made here, no download. folder: a folder a class. manifest: a .csv or .parquet with "
            "path, label, session. npz: arrays. hsi100: a clone of SPM-Toolbox. matlab: its MATLAB release. spliced: "
            "tip changes made of hsi100. exported: what data_scripts.export wrote, or its Hub repository.",
            "choices": list(DATASETS),
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Where they are: the folder or the file; for exported, or the Hub repository."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where prepared datasets are kept."})
    preprocessing_num_workers: int = field(
        default=1, metadata={"help": "Processes that prepare a dataset the first time: as many as there are cores."}
    )
    pixels_per_line: int = field(default=128, metadata={"help": "Width that scans are resampled to."})
    max_lines: int = field(default=128, metadata={"help": "Lines of a scan to use, from the first."})
    channel: str | None = field(
        default=None, metadata={"help": "folder, manifest: channel of microscope files; by default the topography."}
    )
    direction: str = field(
        default="forward", metadata={"help": "folder, manifest: forward or backward, with /up or /down if need be."}
    )
    path_column: str = field(default="path", metadata={"help": "manifest: column with the path of the file."})
    label_column: str = field(default="label", metadata={"help": "manifest: column with the name of the class."})
    session_column: str = field(
        default="session", metadata={"help": "manifest: column with what a split must hold together."}
    )
    orientation: str = field(
        default="auto",
        metadata={"help": "matlab: what of x_raw are the lines; auto finds out.", "choices": list(ORIENTATIONS)},
    )
    num_scans: int = field(default=2000, metadata={"help": "simulated, spliced: how many scans."})
    simulation_seed: int = field(default=0, metadata={"help": "simulated, spliced: seed."})
    simulation_surface: str = field(
        default="h-si100", metadata={"help": "simulated: which surface.", "choices": list(SURFACES)}
    )
    simulation_noise: float = field(
        default=1.0, metadata={"help": "simulated: factor on noise, tilt, line offsets and streaks."}
    )
    simulation_pixels_per_period: float = field(
        default=3.0, metadata={"help": "simulated: fewest pixels to the period that decides the state; at least 2."}
    )
    simulation_clarity: float = field(
        default=2.0,
        metadata={"help": "simulated: how far tips stay from the thresholds between the states; at least 1."},
    )

    def load(self, streaming: bool = False, flatten: bool = False) -> Any:
        """
        Loads the scans, preparing them the first time; see [`load_scans`].

        Raises:
            ScanReadError: if nothing can be read there.
        """
        return load_scans(self, streaming, flatten)


def load_scans(source: ScanSource, streaming: bool = False, flatten: bool = False) -> Any:
    """
    Loads scans, preparing them the first time.

    Args:
        source: where they come from.
        streaming: read them as they are used, and keep nothing.
        flatten: see [`prepare_lines`]; an exported dataset is as it was exported.

    Returns:
        All scans with the columns of `scan_features`: `datasets.Dataset`, or for a stream `datasets.IterableDataset`,
        in shards that `datasets.distributed.split_dataset_by_node` gives to the machines.

    Raises:
        ScanReadError: if there is no such dataset, or nothing in it can be read.
    """
    if source.dataset not in DATASETS:
        raise ScanReadError(f"dataset must be one of {', '.join(DATASETS)}, got {source.dataset!r}.")
    if source.preprocessing_num_workers < 1:
        raise ScanReadError(f"preprocessing_num_workers must be at least 1, got {source.preprocessing_num_workers}.")
    if source.dataset == EXPORTED:
        return _load_exported(source, streaming)
    builder_class = BUILDERS[source.dataset]
    options = {name: getattr(source, name) for name in builder_class.OPTIONS}
    builder = builder_class(
        cache_dir=source.cache_dir,
        data_dir=source.data_dir,
        dataset_name=source.dataset,
        pixels_per_line=source.pixels_per_line,
        max_lines=source.max_lines,
        flatten=flatten,
        options=options,
    )
    if streaming:
        return builder.as_streaming_dataset(split="train")
    prepared_before = Path(builder.cache_dir).is_dir()
    if not prepared_before:
        builder.left_out.unlink(missing_ok=True)  # of an attempt that was stopped
    _prepare(builder, source.preprocessing_num_workers)
    builder.check_number()
    if prepared_before:
        builder.tell_left_out()
    scans = builder.as_dataset(split="train")
    builder.check_names(scans)
    return scans


def _prepare(builder: ScanBuilder, num_processes: int) -> None:
    builder.num_processes = num_processes
    try:
        builder.download_and_prepare(num_proc=num_processes)
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, ScanReadError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        if num_processes == 1:
            raise
        _prepare(builder, 1)  # of another process, errors come without what caused them


def load_parts(name: str, cache_dir: str | None, streaming: bool = False) -> Any:
    """
    The parts of an exported dataset by their names, from its folder or from the Hub.

    By name alone, the library would hand out what it has prepared of another folder of that name, or of this one
    before it was written anew: of a folder with a card it looks at no file. With a list of files it looks at each.
    """
    kind, files = name, None
    if Path(name).is_dir():
        builder = datasets.load_dataset_builder(name, cache_dir=cache_dir)
        kind, files = builder.name, dict(builder.config.data_files or {})
    return datasets.load_dataset(kind, data_files=files, cache_dir=cache_dir, streaming=streaming)


def _load_exported(source: ScanSource, streaming: bool) -> Any:
    if source.data_dir is None:
        raise ScanReadError(
            "dataset exported needs data_dir: a folder that data_scripts.export wrote, or its Hub name."
        )
    try:
        parts = load_parts(source.data_dir, source.cache_dir, streaming)
    except Exception as error:  # the library raises what its file systems, parsers and the Hub think of
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ScanReadError(f"{source.data_dir}: cannot be loaded as a dataset ({reason}).") from error
    if streaming:
        return datasets.concatenate_datasets(list(parts.values()))
    if len(parts) > 1:
        logger.warning(
            "%s: its parts (%s) are put together, and split anew as this command is told to.",
            source.data_dir,
            ", ".join(map(str, parts)),
        )
    scans = datasets.concatenate_datasets(list(parts.values()))
    feature = scans.features.get("lines")
    if not isinstance(feature, datasets.Array2D) or "label" not in scans.features:
        raise ScanReadError(f"{source.data_dir}: has no columns lines and label as data_scripts.export writes them.")
    if feature.shape[1] != source.pixels_per_line:
        raise ScanReadError(
            f"{source.data_dir}: holds lines of {feature.shape[1]} pixels, got "
            f"pixels_per_line={source.pixels_per_line}."
        )
    return scans


def read_folder(
    folder: str | Path,
    pixels_per_line: int = 128,
    max_lines: int = 128,
    channel: str | None = None,
    direction: str = "forward",
    flatten: bool = False,
) -> tuple[list[str], torch.Tensor]:
    """
    Reads all scans below a folder, without labels; names the files that cannot be read and goes on.

    Args:
        folder: to look into, and into all below it.
        pixels_per_line: width to resample to.
        max_lines: keep the first lines only.
        channel: of microscope files, see [`read_scan`].
        direction: likewise.
        flatten: see [`prepare_lines`].

    Returns:
        The paths relative to the folder, and lines `[num_scans, max_lines, pixels_per_line]`, NaN beyond the end.

    Raises:
        ScanReadError: if there is nothing to read.
    """
    folder = Path(folder)
    lines, names = [], []
    if not folder.is_dir():
        what = "is a file; give the folder that it is in" if folder.exists() else "there is no such folder"
        raise ScanReadError(f"{folder}: {what}.")
    num_skipped = 0
    for path in readable_files(folder):
        try:
            heights = read_scan(path, channel, direction).lines
        except ScanReadError as error:
            logger.warning("Skipped: %s", error)
            num_skipped += 1
            continue
        resampled = prepare_lines(heights[None], pixels_per_line, max_lines, flatten)[0]
        missing = max_lines - len(resampled)
        lines.append(torch.nn.functional.pad(resampled, (0, 0, 0, missing), value=float("nan")))
        names.append(path.relative_to(folder).as_posix())
    if not lines:
        raise ScanReadError(f"{folder}: no scan that can be read ({', '.join(sorted(READERS))}).")
    if num_skipped:
        logger.warning("%d files could not be read.", num_skipped)
    return names, torch.stack(lines)
