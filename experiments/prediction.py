"""What a model says of scans, as a table."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from configuration import ConfigurationError, DataArguments
from data_scripts.scan_dataset import ScanDataset
from data_scripts.source import read_folder
from modeling_scanline import ScanlineImageProcessor
from modeling_scanline.familiarity_scanline import FamiliarityMeter

from .data import Data
from .scoring import split_outputs
from .trainer import ScanlineTrainer


def choose_scans(
    data_arguments: DataArguments, data: Data | None, processor: ScanlineImageProcessor
) -> tuple[ScanDataset, list[str], np.ndarray | None]:
    """
    The scans to predict, their names and, where they are those of the validation part, their labels.

    Raises:
        ValueError: if there are none.
    """
    if data_arguments.predict_dir is not None:
        flatten = processor.normalization == "flat_line"
        scan_ids, lines = read_folder(
            data_arguments.predict_dir,
            processor.pixels_per_line,
            processor.max_lines or data_arguments.max_lines,
            data_arguments.channel,
            data_arguments.direction,
            flatten,
        )
        return ScanDataset(lines, None, "line" if flatten else processor.normalization), scan_ids, None
    if data is None or "validation" not in data.parts:
        raise ConfigurationError("predict_dir: with split=all there is no validation part, give a folder.")
    validation = data.parts["validation"]
    return validation, data.scan_ids["validation"], validation.labels.numpy()  # type: ignore[union-attr]


def find_unfamiliarities(dataset: ScanDataset, config: Any, batch_size: int = 256) -> np.ndarray | None:
    """
    How far whole scans are from those of training, as a stream without tip changes says at their end.

    Args:
        dataset: the scans.
        config: of the model.
        batch_size: scans at once.

    Returns:
        `[num_scans]`, more than 1 for scans unlike those of training, NaN where there are too few lines; `None` for a
        model that cannot tell.
    """
    if not getattr(config, "familiarity_mean", None):
        return None
    found = []
    lines = ScanDataset(dataset.lines, None, "line")
    for places in torch.arange(len(lines)).split(batch_size):
        batch = lines.__getitems__(places.tolist())
        values, measured = batch["pixel_values"].numpy(), batch["attention_mask"].numpy().astype(bool)
        meter = FamiliarityMeter(config, len(places))
        for line in range(values.shape[1]):
            ratios = meter.update(values[:, line], measured[:, line])
        found.append(ratios)
    return np.concatenate(found)


def predict(
    trainer: ScanlineTrainer,
    dataset: ScanDataset,
    scan_ids: list[str],
    true: np.ndarray | None,
    names: list[str],
    folder: Path,
    console: Console,
) -> None:
    """
    Writes the state of each scan, how sure the model is and, where it can tell, whether the scan is like those of its
    training (`familiar`), to `predictions.csv`; shows a few of them.
    """
    logits, _ = split_outputs(trainer.predict(ScanDataset(dataset.lines, None, dataset.normalization)).predictions)
    probabilities = torch.from_numpy(logits).float().softmax(dim=-1).numpy()
    if not trainer.is_world_process_zero():
        return
    unfamiliarities = find_unfamiliarities(dataset, trainer.model.config)  # type: ignore[union-attr]
    familiar = [] if unfamiliarities is None else ["" if np.isnan(far) else far <= 1 for far in unfamiliarities]
    path = folder / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        more = [*(["familiar"] if familiar else []), *(["label"] if true is not None else [])]
        writer.writerow(["scan_id", "state", *names, *more])
        for index, (scan_id, row) in enumerate(zip(scan_ids, probabilities, strict=True)):
            label = [names[int(true[index])]] if true is not None else []
            known = [str(familiar[index]).lower()] if familiar else []
            writer.writerow([scan_id, names[int(row.argmax())], *(f"{value:.4f}" for value in row), *known, *label])
    table = Table(title=f"{len(scan_ids)} scans classified; all are in {path}")
    for heading in ("scan", "state", "probability", *(["label"] if true is not None else [])):
        table.add_column(heading)
    for index in np.linspace(0, len(scan_ids) - 1, min(6, len(scan_ids))).astype(int):
        row = probabilities[index]
        label = [names[int(true[index])]] if true is not None else []
        table.add_row(scan_ids[index], names[int(row.argmax())], f"{row.max():.3f}", *label)
    console.print(table)
    if strange := familiar.count(False):
        console.print(
            f"{strange} of {len(scan_ids)} scans are unlike those that the model was trained on (familiar is false in "
            "the table): what it says of them means nothing."
        )
