"""
Knowledge distillation: runs whose verdicts a new one is trained on, beside people's votes.

The mean of several models is better than each of them, and one model that has learned it costs as little as one. Their
verdicts are also labels for scans that nobody could name. After Hinton et al. 2015, arXiv:1503.02531, section 2, at a
temperature of 1; the verdict is that on the whole scan, so that a causal model learns from it what few lines tell of
the rest.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from data_scripts.labels import is_labelled
from data_scripts.scan_dataset import ScanDataset, StoredLines
from data_scripts.splits import Split
from modeling_scanline.configuration_scanline import CALIBRATION_ENTRIES

from .library_models import find_collator
from .lineage import lineage, seen_by
from .run_folder import SPLIT_FILE

BATCH_SIZE = 64


def check_teacher(folder: Path, dataset: str, held_out: Sequence[str]) -> None:
    """
    Raises `ValueError` for a teacher that may have seen what its pupil is scored on.

    Every scan that the pupil holds out must be one that the teacher held out, too: then neither it nor whatever it
    learned from was trained on it.

    Args:
        folder: of the teacher's run.
        dataset: of the pupil. A teacher of another one has seen those of its scans that it was trained on there.
        held_out: scan ids that the pupil is validated or tested on.
    """
    if not folder.is_dir():
        raise ValueError(f"teachers: {folder} is not the folder of a run.")
    split = Split.load(folder / SPLIT_FILE)
    kept = {scan_id for name, scan_ids in split.parts.items() if name != "train" for scan_id in scan_ids}
    if split.dataset == dataset:
        seen = [scan_id for scan_id in held_out if scan_id not in kept]
    else:
        seen = [scan_id for run in lineage(folder) for scan_id in seen_by(run, dataset, held_out)]
    if seen:
        raise ValueError(
            f"teachers: {folder} did not hold out {len(seen)} of the {len(held_out)} scans that this run is scored "
            f"on, {seen[0]} for one, so that scores would be those of scans it has seen. Train it with the same split."
        )


def verdicts_of(folder: Path, lines: torch.Tensor | StoredLines, label_names: Sequence[str]) -> np.ndarray:
    """
    What a teacher says of scans, as it was trained to: without the calibration of a released model.

    Args:
        folder: of its run.
        lines: heights `[num_scans, num_lines, pixels_per_line]`, NaN where nothing was measured.
        label_names: the classes of its pupil.

    Returns:
        Probabilities in the order of `label_names`, `[num_scans, num_labels]` in float32.

    Raises:
        ValueError: for a teacher of other classes, or of other lines, or without finite verdicts.
    """
    config = AutoConfig.from_pretrained(folder, **dict.fromkeys(CALIBRATION_ENTRIES))
    names = [config.id2label[label] for label in range(len(config.id2label))]
    if sorted(names) != sorted(label_names):
        raise ValueError(f"teachers: {folder} tells {', '.join(names)} apart, not {', '.join(label_names)}.")
    processor = AutoImageProcessor.from_pretrained(folder)
    if processor.pixels_per_line != lines.shape[2]:
        raise ValueError(
            f"teachers: {folder} takes {processor.pixels_per_line} pixels a line, and this run has {lines.shape[2]}."
        )
    state = PartialState()
    model = AutoModelForImageClassification.from_pretrained(folder, config=config).to(state.device).eval()
    most = processor.max_lines or getattr(config, "max_lines", lines.shape[1])
    scans = ScanDataset(lines, None, processor.normalization).first_lines(most)
    collate = find_collator(processor)
    verdicts = np.empty((len(scans), len(names)), dtype=np.float32)
    bar = tqdm(total=len(scans), desc=f"{folder.name} teaches", unit="scan", disable=not state.is_local_main_process)
    with torch.inference_mode(), bar:
        for start in range(0, len(scans), BATCH_SIZE):
            chosen = range(start, min(start + BATCH_SIZE, len(scans)))
            batch = send_to_device(collate(scans.__getitems__(chosen)), state.device)
            verdicts[start : chosen.stop] = model(**batch).logits.float().softmax(dim=-1).cpu().numpy()
            bar.update(len(chosen))
    if not np.isfinite(verdicts).all():
        raise ValueError(f"teachers: {folder} has no finite verdicts: its weights have diverged.")
    return verdicts[:, [names.index(name) for name in label_names]]


def teach(
    teachers: Sequence[str],
    share: float,
    lines: torch.Tensor | StoredLines,
    labels: np.ndarray,
    label_names: Sequence[str],
) -> np.ndarray:
    """
    Labels that are partly people's, partly the teachers'.

    Args:
        teachers: folders of their runs.
        share: of the teachers' mean verdict in the label of a scan that people have labelled; of another it is all.
        lines: heights `[num_scans, num_lines, pixels_per_line]`.
        labels: as `data_scripts.labels.make_labels` gives them, -1 where there is none.
        label_names: of the classes.

    Returns:
        Distributions `[num_scans, num_labels]` in float32.
    """
    verdicts = np.mean([verdicts_of(Path(teacher), lines, label_names) for teacher in teachers], axis=0)
    votes = np.eye(len(label_names), dtype=np.float32)[labels] if labels.ndim == 1 else labels
    mixed = (1 - share) * votes + share * verdicts
    return np.where(is_labelled(labels)[:, None], mixed, verdicts).astype(np.float32)
