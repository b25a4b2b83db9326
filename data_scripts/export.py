"""
Writes a dataset of scans as Parquet shards with a card, ready for the Hub, and reads it back.

    python -m data_scripts.export --dataset simulated --num_scans 10000 --output_dir exported/simulated
    python -m data_scripts.export --dataset folder --data_dir scans/ --output_dir exported/mine --license cc-by-4.0

Trained on with `--dataset exported --data_dir exported/simulated`, or loaded with `datasets.load_dataset`.
Published, privately, with `python -m experiments.publish exported/simulated --repo_id OWNER/NAME`.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData
from rich.console import Console
from rich.progress import track

from .command_line import parse_options, run_command
from .provenance import PROVENANCE
from .scan import ScanReadError
from .scan_dataset import LONGEST, StoredLines
from .source import ScanSource, load_parts
from .splits import TRAINING_METHODS, Split, groups_of, split_labelled

logger = logging.getLogger(__name__)
console = Console()

TEMPLATE = Path(__file__).with_name("dataset_card.md")
SHARD_BYTES = 256 * 2**20


@dataclass
class ExportArguments:
    """Where to, and how it is split."""

    output_dir: str = field(metadata={"help": "Folder to write; must be empty or new."})
    split: str = field(
        default="none",
        metadata={
            "help": "Parts to write: all scans as one (none), or train and validation by sessions or random.",
            "choices": ["none", *TRAINING_METHODS],
        },
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split."})
    split_file: str | None = field(default=None, metadata={"help": "A run's split.json, to write its parts."})
    validation_fraction: float = field(default=0.2, metadata={"help": "Share of the labelled scans to validate on."})
    license: str | None = field(
        default=None, metadata={"help": "Licence, as the Hub names it; known for the datasets that come along."}
    )
    title: str | None = field(default=None, metadata={"help": "Name of the dataset, for its card."})


def find_parts(scans: datasets.Dataset, arguments: ExportArguments) -> tuple[dict[str, np.ndarray], str]:
    """Scan numbers of each part, and in words how they were chosen; scans that no part has are in `rest`."""
    scan_ids = np.asarray(scans["scan_id"])
    if arguments.split_file is not None:
        split = Split.load(Path(arguments.split_file))
        parts = split.indices(scan_ids)
        how = f"Split by {split.method} (seed {split.seed})"
    elif arguments.split == "none":
        return {"train": np.arange(len(scans))}, "Not split"
    else:
        groups = groups_of(scans["session"], scan_ids)
        parts = split_labelled(
            np.asarray(scans["label"]),
            groups,
            arguments.split,
            arguments.validation_fraction,
            seed=arguments.split_seed,
            label_names=scans.features["label"].names,
        )
        how = f"Split by {arguments.split} (seed {arguments.split_seed})"
    rest = np.setdiff1d(np.arange(len(scans)), np.concatenate(list(parts.values())))
    return ({**parts, "rest": rest} if len(rest) else parts), how


def class_counts(scans: datasets.Dataset) -> dict[str, int]:
    """How many scans each class has, and how many have none (`unlabelled`)."""
    names = scans.features["label"].names
    counts = np.bincount(np.asarray(scans["label"]) + 1, minlength=len(names) + 1).tolist()
    return dict(zip([*names, "unlabelled"], [*counts[1:], counts[0]], strict=True))


def write_parquet(scans: datasets.Dataset, folder: Path, part: str) -> list[Path]:
    """Writes one part as shards of about 256 MiB."""
    num_shards = max(1, -(-scans.data.nbytes // SHARD_BYTES))
    paths = []
    for index in track(range(num_shards), f"writing {part}", console=console, transient=True):
        path = folder / "data" / f"{part}-{index:05d}-of-{num_shards:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        scans.shard(num_shards, index, contiguous=True).to_parquet(str(path))
        paths.append(path)
    return paths


def write_dataset_card(folder: Path, parts: dict[str, datasets.Dataset], facts: dict[str, Any]) -> None:
    """Writes `README.md`: the Hub's metadata, schema, counts, split, source and licence."""
    some = next(iter(parts.values()))
    sizes = sum(len(part) for part in parts.values())
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
    data = DatasetCardData(
        license=facts["license"],
        pretty_name=facts["title"],
        task_categories=["image-classification"],
        tags=["scanning-probe-microscopy", "stm", "tip-state", "scanline"],
        size_categories=[next((name for bound, name in bounds if sizes < bound), "1M<n<10M")],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in parts],
            }
        ],
    )
    columns = [(name, str(feature)) for name, feature in some.features.items()]
    counts = {name: class_counts(part) for name, part in parts.items()}
    sessions = {name: len(set(part["session"]) - {None}) for name, part in parts.items()}
    card = DatasetCard.from_template(
        data, template_path=str(TEMPLATE), columns=columns, counts=counts, sessions=sessions, **facts
    )
    card.save(folder / "README.md")


def check_equal(scans: datasets.Dataset, again: datasets.Dataset, part: str) -> None:
    """Raises [`ScanReadError`] unless both hold the same scans, in the same order."""
    same = scans.features == again.features and len(scans) == len(again)
    for name in scans.column_names if same else []:
        if name != "lines":
            one, other = scans[name][:], again[name][:]
            same = same and (np.array_equal(one, other, equal_nan=True) if name == "scores" else one == other)
    if same:
        one, other = (StoredLines(each, LONGEST) for each in (scans, again))
        same = np.array_equal(one.num_stored, other.num_stored) and all(
            np.array_equal(one.select(block).values(), other.select(block).values(), equal_nan=True)
            for block in np.array_split(np.arange(len(one)), 1 + len(one) // 1024)
        )
    if not same:
        raise ScanReadError(f"part {part} does not read back as it was written; the disk may be full.")


def export(source: ScanSource, arguments: ExportArguments) -> Path:
    """
    Writes a dataset and reads it back.

    Returns:
        The folder.

    Raises:
        ScanReadError: if the scans cannot be read, the folder is not empty, or what was written does not read back.
        ValueError: for a split that is not possible.
    """
    folder = Path(arguments.output_dir)
    if folder.exists() and any(folder.iterdir()):
        raise ScanReadError(f"{folder}: is not empty; choose another output_dir.")
    scans = source.load()
    parts, how = find_parts(scans, arguments)
    written = {name: scans.select(indices) for name, indices in parts.items()}
    for name, part in written.items():
        write_parquet(part, folder, name)
    known = PROVENANCE.get(source.dataset)
    facts = {
        "title": arguments.title or f"Scanline: {source.dataset}",
        "license": arguments.license or (known.license if known else "other"),
        "known": known,
        "source": known.source if known else f"Made from a dataset of kind {source.dataset!r}.",
        "pixels_per_line": source.pixels_per_line,
        "max_lines": source.max_lines,
        "split_method": how,
        "num_bytes": sum(path.stat().st_size for path in (folder / "data").iterdir()),
    }
    write_dataset_card(folder, written, facts)
    again = load_parts(str(folder), source.cache_dir)
    for name, part in written.items():
        check_equal(part, again[name], name)
    (folder / "counts.json").write_text(
        json.dumps({name: class_counts(part) for name, part in written.items()}, indent=1) + "\n", encoding="utf-8"
    )
    console.print(
        f"{sum(map(len, written.values()))} scans in {folder}, read back equal.", markup=False, soft_wrap=True
    )
    console.print(f"Train on them with --dataset exported --data_dir {folder}", markup=False, soft_wrap=True)
    return folder


def main(argv: list[str] | None = None) -> int:
    """The command."""
    source, arguments = parse_options([ScanSource, ExportArguments], "data_scripts.export", __doc__, argv)
    return run_command(lambda: export(source, arguments))


if __name__ == "__main__":
    sys.exit(main())
