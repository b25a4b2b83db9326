"""
Trains, evaluates and applies models of the state of an STM tip.

    python run_classification.py --config configuration/recipes/quickstart.yaml
    accelerate launch run_classification.py --config configuration/recipes/causal.yaml --dataset hsi100 --data_dir ...

Read it from top to bottom: arguments, data, model, training, evaluation, predictions. `--help` explains every option.
"""

import contextlib
import csv
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from configuration import (
    ConfigurationError,
    DataArguments,
    ModelArguments,
    ScanlineTrainingArguments,
    parse_arguments,
    resolved_recipe,
)
from configuration.arguments import MODEL_CONFIGS
from data_scripts.builders import load_scans, read_folder
from data_scripts.labels import class_weights, is_labelled, majority_labels, make_labels
from data_scripts.scan_dataset import ScanDataset, collate_batch, lines_of
from data_scripts.splits import Split, split_indices
from experiments.card import write_card
from experiments.run_folder import SPLIT_FILE, machine, write_recipe, write_summary
from experiments.scoring import TipStateScorer, score_part
from experiments.trainer import ScanlineTrainer
from modeling_scanline import ScanlineImageProcessor

logger = logging.getLogger("run_classification")
console = Console(stderr=False)


@contextlib.contextmanager
def explained(stage: str) -> Iterator[None]:
    """Turns what bad input raises in this stage into one sentence and an exit."""
    try:
        yield
    except ConfigurationError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        logger.debug("while %s", stage, exc_info=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigurationError(f"{stage}: {' '.join(lines[:3]) or type(error).__name__}") from error


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
                f"the {name} part has no scan to score: of its {len(part)} scans none is "
                f"{'complete and ' if arguments.eval_complete_scans else ''}labelled by policy {arguments.eval_labels}."
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


def build_model(
    arguments: ModelArguments, data_arguments: DataArguments, data: Data | None
) -> tuple[PreTrainedModel, ScanlineImageProcessor]:
    """A new model, or one whose weights come from a folder or the Hub; and the processor that fits it."""
    changes: dict[str, Any] = dict(arguments.config_overrides)  # type: ignore[arg-type]
    if data is not None:
        changes["id2label"] = dict(enumerate(data.label_names))
        changes["label2id"] = {name: label for label, name in enumerate(data.label_names)}
    if arguments.model_name_or_path is None:
        if data is None:
            raise ConfigurationError("nothing to apply: give --model_name_or_path, the folder of a run.")
        changes.setdefault("max_lines", data_arguments.max_lines)
        changes["pixels_per_line"] = data_arguments.pixels_per_line
        changes["class_weights"] = data.class_weights
        config = MODEL_CONFIGS[arguments.model](**changes)
        model = AutoModelForImageClassification.from_config(config)
        processor = ScanlineImageProcessor(
            pixels_per_line=data_arguments.pixels_per_line, normalization=data_arguments.normalization
        )
        return model, processor
    source = arguments.model_name_or_path
    config = AutoConfig.from_pretrained(source)
    if config.model_type not in {known.model_type for known in MODEL_CONFIGS.values()}:
        raise ConfigurationError(f"{source}: holds a model of type {config.model_type!r}, not one of Scanline's.")
    if data is not None and config.pixels_per_line != data_arguments.pixels_per_line:
        raise ConfigurationError(
            f"{source}: was built for {config.pixels_per_line} pixels per line, got pixels_per_line="
            f"{data_arguments.pixels_per_line}."
        )
    if data is not None and dict(enumerate(data.label_names)) == {int(k): v for k, v in config.id2label.items()}:
        changes.pop("id2label"), changes.pop("label2id")
    if data is not None:
        changes["class_weights"] = data.class_weights
    model = AutoModelForImageClassification.from_pretrained(source, ignore_mismatched_sizes=True, **changes)
    return model, AutoImageProcessor.from_pretrained(source)


def find_split_file(arguments: DataArguments, model_name_or_path: str | None) -> Path | None:
    """The split to use again: the one asked for, or that of the run whose model is applied or trained further."""
    if arguments.split_file is not None:
        return Path(arguments.split_file)
    if model_name_or_path is not None and (path := Path(model_name_or_path) / SPLIT_FILE).is_file():
        if Split.load(path).dataset == arguments.dataset:
            return path
    return None


def find_checkpoint(training_arguments: ScanlineTrainingArguments) -> str | None:
    """The checkpoint to go on from, if one was asked for."""
    wanted = training_arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    folder = training_arguments.output_dir if str(wanted).lower() == "true" else str(wanted)
    checkpoint = (
        folder
        if "checkpoint-" in Path(folder).name
        else get_last_checkpoint(folder)
        if Path(folder).is_dir()
        else None
    )
    if checkpoint is None or not Path(checkpoint).is_dir():
        raise ConfigurationError(
            f"resume_from_checkpoint: there is no checkpoint in {folder}. Give --output_dir, the folder of the run "
            "that was stopped."
        )
    return checkpoint


def summarize(
    data: Data,
    data_arguments: DataArguments,
    training_arguments: ScanlineTrainingArguments,
    trainer: ScanlineTrainer,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """How the run ended: every figure with its split, labels, number of scans and seed."""
    config = trainer.model.config
    return {
        "model_type": config.model_type,
        "num_parameters": trainer.model.num_parameters(),
        "dataset": data_arguments.dataset,
        "split": {"method": data.split.method, "seed": data.split.seed, "counts": data.split.counts},
        "labels": {"train": data_arguments.train_labels, "scored": data_arguments.eval_labels},
        "complete_scans_only": data_arguments.eval_complete_scans,
        "seed": training_arguments.seed,
        "num_processes": training_arguments.world_size,
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "metric_for_best_model": training_arguments.metric_for_best_model,
        "best_step": trainer.state.best_global_step,
        "machine": machine(),
        **figures,
    }


def print_figures(figures: dict[str, Any], summary: dict[str, Any]) -> None:
    """The main figures of each part as a table."""
    counts = summary["split"]["counts"]
    table = Table(
        title=f"{summary['model_type']} on {summary['dataset']}: split by {summary['split']['method']} "
        f"(seed {summary['split']['seed']}), {summary['labels']['scored']} labels, seed {summary['seed']}"
    )
    for heading in ("part", "scans", "lines", "balanced accuracy", "AUROC", "accuracy", "calibration error"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    names = ("balanced_accuracy", "auroc", "accuracy", "expected_calibration_error")
    for part, result in figures.items():
        for lines, values in [*result["by_lines"].items(), ("all", result["whole"])]:
            cells = ["–" if values[name] is None else f"{values[name]:.3f}" for name in names]
            table.add_row(part, str(sum(counts[part].values())), lines, *cells)
    console.print(table)


def predict(
    trainer: ScanlineTrainer,
    dataset: ScanDataset,
    scan_ids: list[str],
    true: np.ndarray | None,
    folder: Path,
) -> None:
    """Writes the state of each scan, and how sure the model is, to `predictions.csv`; shows the first few."""
    output = trainer.predict(ScanDataset(dataset.lines, None, dataset.normalization)).predictions
    logits = torch.from_numpy(np.asarray(output[0] if isinstance(output, tuple) else output)).float()
    probabilities = logits.softmax(dim=-1).numpy()
    names = [trainer.model.config.id2label[label] for label in range(probabilities.shape[1])]
    if not trainer.is_world_process_zero():
        return
    path = folder / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scan_id", "state", *names, *(["label"] if true is not None else [])])
        for index, (scan_id, row) in enumerate(zip(scan_ids, probabilities, strict=True)):
            label = [names[int(true[index])]] if true is not None else []
            writer.writerow([scan_id, names[int(row.argmax())], *(f"{value:.4f}" for value in row), *label])
    table = Table(title=f"{len(scan_ids)} scans classified; all are in {path}")
    for heading in ("scan", "state", "probability", *(["label"] if true is not None else [])):
        table.add_column(heading)
    for index in np.linspace(0, len(scan_ids) - 1, min(6, len(scan_ids))).astype(int):
        row = probabilities[index]
        label = [names[int(true[index])]] if true is not None else []
        table.add_row(scan_ids[index], names[int(row.argmax())], f"{row.max():.3f}", *label)
    console.print(table)


def run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: ScanlineTrainingArguments
) -> Path:
    """
    The whole job.

    Returns:
        The folder of the run.

    Raises:
        ConfigurationError: for arguments or data that make no run.
    """
    if not (training_arguments.do_train or training_arguments.do_eval or training_arguments.do_predict):
        training_arguments.do_train = training_arguments.do_eval = True
    set_seed(training_arguments.seed)
    folder = Path(training_arguments.output_dir)  # type: ignore[arg-type]
    checkpoint = find_checkpoint(training_arguments) if training_arguments.do_train else None
    if (
        training_arguments.do_train and checkpoint is None and get_last_checkpoint(folder)
        if folder.is_dir()
        else False
    ):
        raise ConfigurationError(
            f"{folder}: holds a run already. Add --resume_from_checkpoint true to go on with it, or choose another "
            "output_dir."
        )

    # data
    data = None
    needs_data = training_arguments.do_train or training_arguments.do_eval or data_arguments.predict_dir is None
    if needs_data:
        split_file = find_split_file(data_arguments, model_arguments.model_name_or_path)
        if checkpoint is not None and (folder / SPLIT_FILE).is_file():
            split_file = folder / SPLIT_FILE
        with explained("data"), training_arguments.main_process_first(desc="preparing the dataset"):
            data = load_data(data_arguments, training_arguments.data_seed or training_arguments.seed, split_file)

    # model
    with explained("model"):
        model, processor = build_model(model_arguments, data_arguments, data)

    trainer = ScanlineTrainer(
        model=model,
        args=training_arguments,
        data_collator=collate_batch,
        train_dataset=data.parts["train"] if data else None,
        eval_dataset=data.parts["validation"] if data else None,
        processing_class=processor,
        compute_metrics=(
            TipStateScorer(data.parts["validation"], data.label_names, training_arguments.eval_line_counts)
            if data
            else None
        ),
    )
    main_process = trainer.is_world_process_zero()
    if main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if training_arguments.do_train and data is not None:
            write_recipe(folder, resolved_recipe(model_arguments, data_arguments, training_arguments))
            data.split.save(folder / SPLIT_FILE)
        if data is not None:
            counts = "; ".join(
                f"{part}: {sum(classes.values())} scans ({', '.join(f'{n} {name}' for name, n in classes.items())})"
                for part, classes in data.split.counts.items()
            )
            console.print(f"{model.config.model_type}, {model.num_parameters():,} parameters · {counts}")

    # training
    if training_arguments.do_train:
        with explained("training") if checkpoint else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
        if main_process:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same

    # evaluation
    if training_arguments.do_eval and data is not None:
        figures = {
            part: score_part(trainer, dataset, data.label_names, training_arguments.eval_line_counts)
            for part, dataset in scored_parts(data, data_arguments, training_arguments)
        }
        if main_process:
            summary = summarize(data, data_arguments, training_arguments, trainer, figures)
            write_summary(folder, summary)
            if training_arguments.do_train:
                write_card(folder, summary)
            print_figures(figures, summary)

    # predictions
    if training_arguments.do_predict:
        if data_arguments.predict_dir is not None:
            with explained("predict_dir"):
                scan_ids, lines = read_folder(
                    data_arguments.predict_dir, processor.pixels_per_line, data_arguments.max_lines
                )
            dataset, true = ScanDataset(lines, None, processor.normalization), None
        else:
            assert data is not None
            dataset, scan_ids = data.parts["validation"], data.scan_ids["validation"]
            true = dataset.labels.numpy()  # type: ignore[union-attr]
        predict(trainer, dataset, scan_ids, true, folder)
    if main_process and training_arguments.do_train:
        console.print(
            f"\nThe model is in {folder}. To load it anywhere:\n\n"
            "    from transformers import pipeline\n\n"
            f'    classify = pipeline("image-classification", model="{folder}", trust_remote_code=True)\n'
            '    classify("scan.png")\n'
        )
    return folder


def scored_parts(
    data: Data, data_arguments: DataArguments, training_arguments: ScanlineTrainingArguments
) -> Iterator[tuple[str, ScanDataset]]:
    """The parts to score at the end; training scans as they are, without augmentation."""
    for name, dataset in data.parts.items():
        yield name, ScanDataset(dataset.lines, dataset.labels, dataset.normalization)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        model_arguments, data_arguments, training_arguments = parse_arguments(argv)
        if training_arguments.local_process_index > 0:
            console.quiet = True
            datasets.disable_progress_bars()
        transformers.utils.logging.set_verbosity(training_arguments.get_process_log_level())
        run(model_arguments, data_arguments, training_arguments)
    except ConfigurationError as error:
        print(f"run_classification.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
