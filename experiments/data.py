"""The data of a run: scans, labels, split, and what the Trainer gets of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configuration import DataArguments
from data_scripts.labels import class_weights, is_labelled, majority_labels, make_labels
from data_scripts.near_duplicates import find_near_duplicates, keep_together
from data_scripts.scan_dataset import ScanDataset, StoredLines
from data_scripts.source import EXPORTED
from data_scripts.splits import Split, groups_of, split_labelled

from .lineage import lineage, run_of, seen_by
from .rehearsal import add_simulated
from .run_folder import SPLIT_FILE
from .teachers import check_teacher, teach

logger = logging.getLogger(__name__)


@dataclass
class Data:
    """
    The parts of a dataset, ready for the Trainer, and what belongs to them.

    Attributes:
        training: what is trained on: the training scans, augmented, and simulated ones that are rehearsed.
        parts: by name, `train` and those that are held out, to be scored.
        scan_ids: of each part.
        groups: session of each scan of each part.
        label_names: of the classes.
        split: which scan of the dataset is in which part.
        class_weights: in the loss; `None` for none.
        scan_lines: `minimum`, `median` and `maximum` of the measured lines of a training scan at the model's width, of
            the first `most`.
        labels_by_teachers: number of training scans whose label is that of teachers alone.
    """

    training: ScanDataset
    parts: dict[str, ScanDataset]
    scan_ids: dict[str, list[str]]
    groups: dict[str, list[str]]
    label_names: list[str]
    split: Split
    class_weights: list[float] | None
    scan_lines: dict[str, float]
    labels_by_teachers: int


def load_data(
    arguments: DataArguments,
    seed: int,
    split_file: Path | None,
    extend: bool = False,
    classes: Sequence[str] = (),
    only_scored: bool = False,
) -> Data:
    """
    Scans → labels → split → datasets for training (augmented, labels as wanted) and scoring (clear labels).

    Args:
        arguments: which scans, and what is made of them.
        seed: of what training draws at random.
        split_file: a split to use again; `None` for a new one.
        extend: whether labelled scans that it does not have get a part; else they are left out.
        classes: of the model that is applied or trained further, in its order, which those of the scans are put into
            where they are the same ones.
        only_scored: whether that model is applied and not trained: scans of some of its classes will do then.
    """
    # before they are resampled, as the processor does; what was exported has been resampled
    flatten = arguments.normalization == "flat_line" and arguments.dataset != EXPORTED
    normalization = "line" if flatten else arguments.normalization or "line"
    scans = arguments.load(flatten=flatten)
    names = scans.features["label"].names
    only_some = only_scored and set(names) < set(classes)
    of_model = only_some or sorted(classes) == sorted(names)
    unused = [f"unused_{number}" for number in range(1, arguments.unused_classes + 1)]
    label_names = [*(classes if of_model else names), *unused]
    scan_ids = np.asarray(scans["scan_id"])
    sessions = groups_of(scans["session"], scan_ids)
    votes = np.asarray(scans["scores"], dtype=np.float32)
    scores = np.zeros((len(votes), len(label_names)), dtype=np.float32)
    scores[:, [label_names.index(name) for name in names]] = votes
    stored = StoredLines(scans, arguments.max_lines)
    num_lines = stored.count_measured()
    complete = num_lines >= arguments.pixels_per_line
    take = stored.__getitem__ if arguments.keep_in_memory else stored.select

    train_labels = make_labels(scores, arguments.train_labels)
    eval_labels = make_labels(scores, arguments.eval_labels)
    groups, split_method = sessions, arguments.split
    if arguments.dedupe and split_file is None:
        duplicates = find_near_duplicates(stored[np.arange(len(stored))])
        groups, split_method = keep_together(arguments.split, sessions, scan_ids, duplicates.pairs)
    # of the classes as the dataset has them: the split must not depend on the model
    is_trained_on = is_labelled(train_labels) | (bool(arguments.teachers) & (num_lines > 0))
    parts = find_parts(arguments, scan_ids, groups, split_method, votes, is_trained_on, split_file, extend, names)
    train = parts["train"][is_trained_on[parts["train"]]]
    if len(train):
        train = train[choose_share(_hard(train_labels[train]), arguments.train_fraction, arguments.split_seed)]
    train_lines, train_labels = take(train), train_labels[train]
    labels_by_teachers = int((~is_labelled(train_labels)).sum())
    if arguments.teachers:
        held_out = [scan_id for name, part in parts.items() if name != "train" for scan_id in scan_ids[part].tolist()]
        for teacher in arguments.teachers:
            check_teacher(Path(teacher), arguments.dataset, held_out)
        train_labels = teach(arguments.teachers, arguments.teacher_share, train_lines, train_labels, label_names)
    datasets_by_part = {"train": ScanDataset(train_lines, train_labels, normalization)} if len(train) else {}
    used_lines, used_labels = train_lines, train_labels
    if arguments.rehearsal_scans:
        used_lines, used_labels = add_simulated(arguments, train_lines, train_labels, label_names)
    training = ScanDataset(
        used_lines,
        used_labels,
        normalization,
        arguments.augmentation(),
        seed,
        arguments.segment_lines,
        arguments.segment_epochs,
    )
    indices = {"train": train} if len(train) else {}
    for name, part in parts.items():
        if name == "train":
            continue
        scored = is_labelled(eval_labels[part]) & (complete[part] | (not arguments.eval_complete_scans))
        if not scored.any():
            labelled = int(is_labelled(eval_labels[part]).sum())
            too_few = " has as many lines as pixels per line: add --eval_complete_scans false" if labelled else ""
            raise ValueError(
                f"the {name} part has no scan to score: {labelled} of its {len(part)} scans have a label "
                f"({arguments.eval_labels}){f', and none of these{too_few}' if too_few else ''}."
            )
        indices[name] = part[scored]
        datasets_by_part[name] = ScanDataset(take(part[scored]), eval_labels[part[scored]], normalization)
    hard = {name: _hard(train_labels if name == "train" else eval_labels[used]) for name, used in indices.items()}
    counts = {name: np.bincount(labels, minlength=len(label_names)).tolist() for name, labels in hard.items()}
    described = train if len(train) else parts["validation"]
    split = Split.of(
        parts,
        scan_ids,
        sessions,
        counts={name: dict(zip(label_names, count, strict=True)) for name, count in counts.items()},
        method=arguments.split,
        seed=arguments.split_seed,
        dataset=arguments.dataset,
    )
    return Data(
        training=training,
        parts=datasets_by_part,
        scan_ids={name: scan_ids[part].tolist() for name, part in indices.items()},
        groups={name: sessions[part].tolist() for name, part in indices.items()},
        label_names=label_names,
        split=split,
        class_weights=find_class_weights(arguments, used_labels, label_names)
        if len(train) and not only_some
        else None,
        scan_lines={
            "minimum": int(num_lines[described].min()),
            "median": float(np.median(num_lines[described])),
            "maximum": int(num_lines[described].max()),
            "most": arguments.max_lines,
        },
        labels_by_teachers=labels_by_teachers,
    )


def choose_share(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Places, in order, of a share of the scans of each class, at least one; a larger share holds the smaller ones."""
    order = np.random.default_rng(seed).permutation(len(labels))
    of_classes = [order[labels[order] == label] for label in np.unique(labels)]
    return np.sort(np.concatenate([places[: max(1, round(share * len(places)))] for places in of_classes]))


def _hard(labels: np.ndarray) -> np.ndarray:
    return labels if labels.ndim == 1 else labels.argmax(axis=1)


def find_parts(
    arguments: DataArguments,
    scan_ids: np.ndarray,
    groups: np.ndarray,
    method: str,
    scores: np.ndarray,
    is_trained_on: np.ndarray,
    split_file: Path | None,
    extend: bool,
    label_names: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Indices of the scans of each part: those of a split that was written down, or a new split."""
    # by majority, whatever is trained or scored on: the split must not depend on that choice
    labels = majority_labels(scores)
    if split_file is not None:
        split = Split.load(split_file)
        arguments.split, arguments.split_seed = split.method, split.seed
        fractions = arguments.validation_fraction, arguments.test_fraction
        try:
            parts = split.extended(scan_ids, groups, labels, *fractions) if extend else split.indices(scan_ids)
        except ValueError as error:
            raise ValueError(f"{split_file}: {error}") from error
        report_new_scans(split_file, split, scan_ids, labels, parts)
        return add_unclear(parts, is_trained_on, groups, split.method) if extend else parts
    parts = split_labelled(
        labels,
        groups,
        method,
        arguments.validation_fraction,
        arguments.test_fraction,
        arguments.split_seed,
        arguments.num_folds,
        arguments.fold,
        label_names,
    )
    return parts if method == "validation" else add_unclear(parts, is_trained_on, groups, method)


def add_unclear(
    parts: dict[str, np.ndarray], is_trained_on: np.ndarray, groups: np.ndarray, method: str
) -> dict[str, np.ndarray]:
    """
    Adds what can be trained on and never scored to the training scans: votes without a majority; with teachers, none.

    Not those of a session, or another group, that is held out.

    Args:
        parts: indices of the scans of each part.
        is_trained_on: whether there is anything to train on, of all scans.
        groups: of all scans.
        method: that the parts were made by.
    """
    placed = np.concatenate(list(parts.values()))
    added = np.setdiff1d(np.flatnonzero(is_trained_on), placed)
    if method == "sessions":
        held_out = [groups[part] for name, part in parts.items() if name != "train"]
        added = added[~np.isin(groups[added], np.concatenate([groups[:0], *held_out]))]
    return {**parts, "train": np.sort(np.append(parts["train"], added))}


def report_new_scans(
    split_file: Path, split: Split, scan_ids: np.ndarray, labels: np.ndarray, parts: dict[str, np.ndarray]
) -> None:
    """Says of labelled scans that a split does not have where they have gone."""
    known = {scan_id for ids in split.parts.values() for scan_id in ids}
    is_new = np.array([scan_id not in known for scan_id in scan_ids]) & (labels >= 0)
    where = {name: int(is_new[part].sum()) for name, part in parts.items()}
    if is_new.any():
        went = ", ".join(f"{number} into {name}" for name, number in where.items() if number) or "none of them is used"
        logger.warning("%s: %d labelled scans are not in this split: %s.", split_file, is_new.sum(), went)


def find_class_weights(arguments: DataArguments, labels: np.ndarray, names: list[str]) -> list[float] | None:
    """Weights of the classes in the loss, with mean 1 over the training scans."""
    wanted = arguments.class_weights
    if wanted is None or wanted == "none":
        return None
    if wanted == "balanced":
        return class_weights(labels, len(names), names)
    assert isinstance(wanted, dict)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"class_weights names the class {unknown[0]!r}, but the classes are {', '.join(names)}.")
    weights = np.array([wanted.get(name, 1.0) for name in names])
    shares = np.bincount(_hard(labels), minlength=len(names)) / len(labels)
    return (weights / (weights @ shares)).tolist()


def find_split_file(arguments: DataArguments, model_name_or_path: str | None) -> Path | None:
    """
    The split to use again: the one asked for, or that of the run whose model is applied or trained further.

    Raises:
        ValueError: if it is to be one of several folds as well, or if it has left nothing to score on.
    """
    found = None
    path = run_of(model_name_or_path) / SPLIT_FILE
    if arguments.split_file is not None:
        found = Path(arguments.split_file)
    elif model_name_or_path is not None and path.is_file() and arguments.split != "validation":
        split = Split.load(path)
        found = path if split.dataset == arguments.dataset else None
        if found is not None and split.method == "all" and arguments.split != "all":
            raise ValueError(
                f"{model_name_or_path} was trained on every labelled scan of {split.dataset} there was, which leaves "
                "none to score on. Train it further on all of them with --split all, or give other scans."
            )
    if found is not None and arguments.num_folds:
        raise ValueError(f"{found}: this split is used again, which no fold can be made of: give --num_folds 0.")
    return found


def check_start(start: str | None, split: Split) -> None:
    """
    Raises `ValueError` if first weights were trained on scans that are held out now, whatever dataset they came by.

    Args:
        start: folder of the model that is applied or trained further.
        split: of the run.
    """
    held_out = [scan_id for name, scan_ids in split.parts.items() if name != "train" for scan_id in scan_ids]
    for folder in lineage(start):
        if seen := seen_by(folder, split.dataset, held_out):
            raise ValueError(
                f"{folder} was trained on {len(seen)} of the {len(held_out)} scans that this run holds out, {seen[0]} "
                "for one, so that scores would be those of scans it has seen. Hold out others, or start from others; "
                "scans are told by their names, so give those that only share one another."
            )
