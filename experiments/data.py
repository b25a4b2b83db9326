"""The data of a run: scans, labels, split, and what the Trainer gets of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configuration import DataArguments
from data_scripts.builders import load_scans
from data_scripts.labels import class_weights, is_labelled, majority_labels, make_labels
from data_scripts.scan_dataset import ScanDataset, lines_of
from data_scripts.splits import Split, split_indices

from .run_folder import SPLIT_FILE


@dataclass
class Data:
    """The parts of a dataset, ready for the Trainer, and what belongs to them."""

    parts: dict[str, ScanDataset]
    scan_ids: dict[str, list[str]]
    label_names: list[str]
    split: Split
    class_weights: list[float] | None


def load_data(arguments: DataArguments, seed: int, split_file: Path | None) -> Data:
    """Scans → labels → split → datasets for training (augmented, labels as wanted) and scoring (clear labels)."""
    scans = load_scans(
        arguments.dataset,
        arguments.data_dir,
        pixels_per_line=arguments.pixels_per_line,
        max_lines=arguments.max_lines,
        num_scans=arguments.num_scans,
        seed=arguments.simulation_seed,
        noise=arguments.simulation_noise,
        pixels_per_period=arguments.simulation_pixels_per_period,
        clarity=arguments.simulation_clarity,
        cache_dir=arguments.cache_dir,
    )
    label_names = scans.features["label"].names
    scan_ids = np.asarray(scans["scan_id"])
    # a scan whose session nobody knows is one of its own
    sessions = np.array(
        [session or f"?{scan_id}" for session, scan_id in zip(scans["session"], scan_ids, strict=True)]
    )
    scores = np.asarray(scans["scores"], dtype=np.float32)
    lines = lines_of(scans, arguments.max_lines)
    complete = (lines.isfinite().any(dim=-1).sum(dim=1) >= arguments.pixels_per_line).numpy()

    train_labels = make_labels(scores, arguments.train_labels)
    eval_labels = make_labels(scores, arguments.eval_labels)
    parts = find_parts(arguments, scan_ids, sessions, scores, split_file)
    train = parts["train"][is_labelled(train_labels[parts["train"]])]
    datasets_by_part = {
        "train": ScanDataset(
            lines[train], train_labels[train], arguments.normalization, arguments.augmentation(), seed
        )
    }
    indices = {"train": train}
    for name, part in parts.items():
        if name == "train":
            continue
        scored = is_labelled(eval_labels[part]) & (complete[part] | (not arguments.eval_complete_scans))
        if not scored.any():
            raise ValueError(
                f"the {name} part has no scan to score: none of its {len(part)} scans is "
                f"{'complete and ' if arguments.eval_complete_scans else ''}labelled ({arguments.eval_labels})."
            )
        indices[name] = part[scored]
        datasets_by_part[name] = ScanDataset(lines[part[scored]], eval_labels[part[scored]], arguments.normalization)
    split = Split(
        method=arguments.split,
        seed=arguments.split_seed,
        dataset=arguments.dataset,
        parts={name: scan_ids[part].tolist() for name, part in parts.items()},
        sessions={
            name: sorted(set(sessions[part]) - {f"?{s}" for s in scan_ids[part]}) for name, part in parts.items()
        },
        counts={
            name: dict(
                zip(
                    label_names,
                    np.bincount(_hard(labels[indices[name]]), minlength=len(label_names)).tolist(),
                    strict=True,
                )
            )
            for name in parts
            for labels in [train_labels if name == "train" else eval_labels]
        },
    )
    return Data(
        parts=datasets_by_part,
        scan_ids={name: scan_ids[part].tolist() for name, part in indices.items()},
        label_names=label_names,
        split=split,
        class_weights=find_class_weights(arguments, train_labels[train], label_names),
    )


def _hard(labels: np.ndarray) -> np.ndarray:
    return labels if labels.ndim == 1 else labels.argmax(axis=1)


def find_parts(
    arguments: DataArguments, scan_ids: np.ndarray, sessions: np.ndarray, scores: np.ndarray, split_file: Path | None
) -> dict[str, np.ndarray]:
    """Indices of the scans of each part: those of a split that was written down, or a new split."""
    if split_file is not None:
        split = Split.load(split_file)
        arguments.split, arguments.split_seed = split.method, split.seed
        place = {scan_id: index for index, scan_id in enumerate(scan_ids)}
        missing = [scan_id for ids in split.parts.values() for scan_id in ids if scan_id not in place]
        if missing:
            raise ValueError(
                f"{split_file}: {len(missing)} of its scans are not in this dataset, {missing[0]} for one."
            )
        return {name: np.array([place[scan_id] for scan_id in ids]) for name, ids in split.parts.items()}
    # by majority, whatever is trained or scored on: the split must not depend on that choice
    labels = majority_labels(scores)
    if arguments.train_labels == "soft":
        labels = np.where(is_labelled(make_labels(scores, "soft")), np.nan_to_num(scores).argmax(axis=1), -1)
    labelled = np.flatnonzero(labels >= 0)
    parts = split_indices(
        labels[labelled],
        sessions[labelled],
        arguments.split,
        arguments.validation_fraction,
        arguments.test_fraction,
        arguments.split_seed,
    )
    return {name: labelled[part] for name, part in parts.items()}


def find_class_weights(arguments: DataArguments, labels: np.ndarray, names: list[str]) -> list[float] | None:
    """Weights of the classes in the loss, with mean 1 over the training scans."""
    wanted = arguments.class_weights
    if wanted is None or wanted == "none":
        return None
    if wanted == "balanced":
        return class_weights(labels, len(names))
    assert isinstance(wanted, dict)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"class_weights names the class {unknown[0]!r}, but the classes are {', '.join(names)}.")
    weights = np.array([wanted.get(name, 1.0) for name in names])
    shares = np.bincount(_hard(labels), minlength=len(names)) / len(labels)
    return (weights / (weights @ shares)).tolist()


def find_split_file(arguments: DataArguments, model_name_or_path: str | None) -> Path | None:
    """The split to use again: the one asked for, or that of the run whose model is applied or trained further."""
    if arguments.split_file is not None:
        return Path(arguments.split_file)
    path = Path(model_name_or_path or "") / SPLIT_FILE
    if model_name_or_path is not None and path.is_file() and Split.load(path).dataset == arguments.dataset:
        return path
    return None
