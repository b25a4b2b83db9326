"""
Trains, evaluates and applies models of the state of an STM tip.

    python run_classification.py --config configuration/recipes/quickstart.yaml
    accelerate launch run_classification.py --config configuration/recipes/causal.yaml --dataset hsi100 --data_dir ...

Read it from top to bottom: arguments, data, model, training, evaluation, predictions, publication.
`--help` explains every option.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification, set_seed

# the library's top level hides it where there is no torchvision, up to release 5.17
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.trainer_utils import IntervalStrategy

from configuration import (
    ConfigurationError,
    DataArguments,
    ModelArguments,
    ScanlineTrainingArguments,
    parse_arguments,
    resolved_recipe,
)
from configuration.arguments import LIBRARY_PREFIX, MODEL_CONFIGS
from experiments.card import write_card
from experiments.data import Data, check_start, find_split_file, load_data
from experiments.ensemble import check_members, describe_member, join
from experiments.library_models import (
    check_images,
    find_collator,
    find_loss,
    is_of_library,
    load_library_processor,
    new_library_config,
    new_library_processor,
    read_processor,
    set_loss_entries,
)
from experiments.prediction import choose_scans, predict
from experiments.publish import PublishError, connect, publish
from experiments.resuming import check_checkpoint, check_recipe, find_checkpoint, holds_run
from experiments.run_folder import (
    METRICS_FILE,
    SPLIT_FILE,
    check_model,
    machine,
    write_recipe,
    write_summary,
)
from experiments.scoring import TipStateScorer, score_part
from experiments.trainer import ScanlineTrainer
from modeling_scanline import ScanlineCausalConfig, ScanlineConfig, ScanlineImageProcessor
from modeling_scanline.configuration_scanline import CALIBRATION_ENTRIES

logger = logging.getLogger("run_classification")
console = Console(markup=False)  # names may have brackets
# entries of a configuration that hold for the weights and the scans they were found with
FOUND_AFTER_TRAINING = (
    *CALIBRATION_ENTRIES,
    "familiarity_mean", "familiarity_whitening", "familiarity_lines", "familiarity_thresholds",
)  # fmt: skip
NOTHING_ASKED = (
    "run_classification.py: error: say what to do: --config configuration/recipes/quickstart.yaml trains on simulated "
    "scans, --config causal_small --dataset folder --data_dir scans/ on yours; --help explains every option."
)
MAX_TRAIN_SCORED = 2000  # training scans that are scored at the end, evenly from all
BAD_INPUT = (ValueError, OSError, RuntimeError, StrictDataclassError, SafetensorError)


@contextlib.contextmanager
def explained(stage: str) -> Iterator[None]:
    """Turns what bad input raises in this stage into one sentence and an exit."""
    try:
        yield
    except ConfigurationError:
        raise
    except BAD_INPUT as error:
        logger.debug("while %s", stage, exc_info=True)
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise ConfigurationError(f"{stage}: {' '.join(lines[:3]) or type(cause).__name__}") from error


def use_all_cores(num_processes: int) -> None:
    """Gives one process on a CPU all its cores: `accelerate launch` without a file leaves it one thread."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and num_processes == 1 and not torch.accelerator.is_available():
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        torch.set_num_threads(len(allowed))


def build_model(
    arguments: ModelArguments, data_arguments: DataArguments, data: Data | None, to_train: bool
) -> tuple[Any, Any]:
    """A new model, or one whose weights come from a folder or the Hub; and the processor that fits it."""
    changes: dict[str, Any] = dict(arguments.config_overrides)  # type: ignore[arg-type]
    if data is not None:
        changes["id2label"] = dict(enumerate(data.label_names))
        changes["label2id"] = {name: label for label, name in enumerate(data.label_names)}
    sources = arguments.sources
    if not sources:
        if data is None or not to_train:
            raise ConfigurationError(
                "nothing to apply: give --model_name_or_path, the folder of a run, or train a model with --do_train."
            )
        changes["class_weights"] = data.class_weights
        config_class = arguments.config_class()
        if arguments.model not in MODEL_CONFIGS:
            config = new_library_config(config_class, changes, data_arguments)
            model = AutoModelForImageClassification.from_config(config)
            processor = new_library_processor(config, data_arguments)
            check_images(model, processor)
            return model, processor
        changes.setdefault("max_lines", data_arguments.max_lines)
        changes["pixels_per_line"] = data_arguments.pixels_per_line
        model = AutoModelForImageClassification.from_config(config_class(**changes))
        processor = ScanlineImageProcessor(
            pixels_per_line=data_arguments.pixels_per_line, normalization=data_arguments.normalization
        )
        return model, processor
    if arguments.members:
        check_members(sources)
    source = sources[0]
    saved: Any = AutoConfig.from_pretrained(source)
    of_library = is_of_library(saved)
    if not of_library and not isinstance(saved, ScanlineConfig):
        raise ConfigurationError(
            f"{source}: holds a model of type {saved.model_type!r}, neither one of Scanline's nor an image classifier "
            "of the library."
        )
    if of_library:
        processor = load_library_processor(source, saved, data_arguments)
    else:
        processor = AutoImageProcessor.from_pretrained(source)
    if data is not None:
        for name in ("pixels_per_line", "normalization", *(["max_lines"] if of_library else [])):
            if getattr(processor, name) != getattr(data_arguments, name):
                raise ConfigurationError(
                    f"{source}: was trained with {name}={getattr(processor, name)}, got "
                    f"{name}={getattr(data_arguments, name)}."
                )
    if data is not None and dict(enumerate(data.label_names)) == saved.id2label:
        changes.pop("id2label"), changes.pop("label2id")
    elif data is not None and not to_train:
        raise ConfigurationError(
            f"{source}: tells {', '.join(saved.id2label.values())} apart, and the scans are of "
            f"{', '.join(data.label_names)}: give scans of these classes, or train it on with --do_train."
        )
    if data is not None:
        changes["class_weights"] = data.class_weights
    if (to_train or arguments.members) and saved.model_type == ScanlineCausalConfig.model_type:
        changes.update(dict.fromkeys(FOUND_AFTER_TRAINING))
    if arguments.members or not of_library:
        models = [load_model(each, **changes) for each in sources]
        return join(models) if arguments.members else models[0], processor
    config = AutoConfig.from_pretrained(source, **changes)
    set_loss_entries(config, changes)
    model = load_model(source, config=config)
    check_images(model, processor)
    return model, processor


def load_model(source: str, **changes: Any) -> Any:
    """
    Loads a model whose classifier may be a new one, for other classes.

    Raises:
        ConfigurationError: if any other of its weights are of another size, or not there: they would be random.
    """
    model, info = AutoModelForImageClassification.from_pretrained(
        source, ignore_mismatched_sizes=True, output_loading_info=True, **changes
    )
    base = f"{model.base_model_prefix}."
    others = [name for name, *_ in info["mismatched_keys"] if name.startswith(base)]
    if not is_of_library(model.config):  # some of these come without weights that a classifier has no use for
        others += [name for name in info["missing_keys"] if name.startswith(base)]
    if others:
        raise ConfigurationError(
            f"{source}: {len(others)} of its weights do not fit the model that is asked for, {min(others)} for one: "
            "a model that is trained on keeps its sizes. Leave out config_overrides that change them, or "
            "--model_name_or_path."
        )
    return model


def find_normalization(arguments: ModelArguments) -> str:
    """That of the processor of the model that is applied or trained further; `line` for a new one."""
    processor = read_processor(arguments.sources[0]) if arguments.sources else None
    return processor.normalization if processor else "line"


def name_of(model: Any) -> str:
    """What `--model` calls it."""
    ours = (name for name, config_class in MODEL_CONFIGS.items() if type(model.config) is config_class)
    return next(ours, f"{LIBRARY_PREFIX}{model.config.model_type}")


def find_classes(arguments: ModelArguments) -> list[str]:
    """The classes of the model that is applied or trained further, in its order; none for a new model."""
    if not arguments.sources:
        return []
    id2label = AutoConfig.from_pretrained(arguments.sources[0]).id2label
    return [id2label[label] for label in sorted(id2label)]


def num_parameters(model: Any) -> int:
    """Of what a verdict takes: without those of training alone."""
    of_training = getattr(model, "next_lines", None)
    return model.num_parameters() - (sum(weight.numel() for weight in of_training.parameters()) if of_training else 0)


def summarize(
    data: Data,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: ScanlineTrainingArguments,
    trainer: ScanlineTrainer,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """How the run ended: every figure with its split, labels, number of scans and seed."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    start = model_arguments.model_name_or_path
    return {
        "model_type": model.config.model_type,
        "num_parameters": num_parameters(model),
        "base_model": start if start and not Path(start).exists() else None,  # of the Hub
        "dataset": data_arguments.dataset,
        "split": {"method": data.split.method, "seed": data.split.seed, "counts": data.split.counts},
        "scan_lines": data.scan_lines,
        "labels": {
            "train": data_arguments.train_labels,
            "scored": data_arguments.eval_labels,
            "teachers": len(data_arguments.teachers or []),
            "teacher_share": data_arguments.teacher_share,
            "by_teachers": data.labels_by_teachers,
        },
        "complete_scans_only": data_arguments.eval_complete_scans,
        "seed": training_arguments.seed,
        "num_processes": training_arguments.world_size,
        "epochs": trainer.state.epoch or 0,  # none where members are joined
        "steps": trainer.state.global_step,
        "metric_for_best_model": training_arguments.metric_for_best_model,
        # the Trainer notes the best one also where the last is kept
        "best_step": trainer.state.best_global_step if training_arguments.load_best_model_at_end else None,
        "machine": machine(),
        "members": [describe_member(Path(member)) for member in model_arguments.members or []],
        **figures,
    }


def print_figures(figures: dict[str, Any], summary: dict[str, Any]) -> None:
    """The main figures of each part as a table."""
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
            table.add_row(part, str(values["num_scans"]), lines, *cells)
    console.print(table)


def take_push(arguments: ScanlineTrainingArguments) -> partial[str] | None:
    """
    What publishes the folder of a run, if that was asked for; the Trainer is left without a word of it.

    The Trainer would upload whatever lies in the folder, after every epoch, put its own card in the place of ours, and
    keep the token in every checkpoint.

    Raises:
        ConfigurationError: for a repository that is none, or without a token.
    """
    push = None
    if arguments.push_to_hub:
        repo_id = str(arguments.hub_model_id)
        try:
            api = connect(repo_id, arguments.hub_token)
        except PublishError as error:
            raise ConfigurationError(f"push_to_hub: {error}") from error
        public = arguments.hub_private_repo is False
        push = partial(publish, repo_id=repo_id, api=api, public=public, revision=arguments.hub_revision)
    arguments.push_to_hub = False
    arguments.hub_model_id = arguments.hub_token = arguments.hub_private_repo = arguments.hub_revision = None
    return push


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
    set_seed(training_arguments.seed)
    with explained("model"):
        for source in model_arguments.sources:
            check_model(source)
    push = take_push(training_arguments)
    folder = Path(training_arguments.output_dir)  # type: ignore[arg-type]
    checkpoint = find_checkpoint(training_arguments) if training_arguments.do_train else None
    writes_summary = training_arguments.do_train or training_arguments.do_eval
    makes_model = training_arguments.do_train or (training_arguments.do_eval and bool(model_arguments.members))
    if writes_summary and checkpoint is None and holds_run(folder):
        go_on = (
            "Add --resume_from_checkpoint true to go on with it, or choose"
            if training_arguments.do_train
            else "Choose"
        )
        raise ConfigurationError(f"{folder}: holds a run already. {go_on} another output_dir.")

    # data
    data = None
    needs_data = training_arguments.do_train or training_arguments.do_eval or data_arguments.predict_dir is None
    if needs_data:
        with explained("data"):
            split_file = find_split_file(data_arguments, next(iter(model_arguments.sources), None))
        with explained("model"):
            data_arguments.normalization = data_arguments.normalization or find_normalization(model_arguments)
        # of a model that is trained on, with scans that there may be since; a split that was asked for is as it is
        extend = training_arguments.do_train and data_arguments.split_file is None
        if checkpoint is not None and (folder / SPLIT_FILE).is_file():
            split_file, extend = folder / SPLIT_FILE, False
        seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
        with explained("model"):
            classes = find_classes(model_arguments)
        if training_arguments.do_train and data_arguments.split == "validation":
            raise ConfigurationError("split=validation leaves nothing to train on: it is for --do_eval alone.")
        with explained("data"), training_arguments.main_process_first(desc="preparing the dataset"):
            data = load_data(data_arguments, seed, split_file, extend, classes, not training_arguments.do_train)
            for source in model_arguments.sources:
                check_start(source, data.split)

    # model
    with explained("model"):
        model, processor = build_model(model_arguments, data_arguments, data, training_arguments.do_train)
        model_arguments.model = name_of(model)  # of what was loaded, whatever was asked for beside it

    recipe = resolved_recipe(model_arguments, data_arguments, training_arguments)
    if checkpoint is not None:  # before anything is written into its folder
        with explained("checkpoint"):
            check_checkpoint(checkpoint, model)
            check_recipe(folder, recipe)
    # found now, not after hours of training
    with explained("predict_dir"):
        chosen_scans = choose_scans(data_arguments, data, processor) if training_arguments.do_predict else None

    validation = data.parts.get("validation") if data else None
    if validation is None:  # no epoch is better than another that anyone could tell
        training_arguments.eval_strategy, training_arguments.load_best_model_at_end = IntervalStrategy.NO, False
        training_arguments.early_stopping_patience = 0
    scorer = None
    if data is not None and validation is not None:
        scorer = TipStateScorer(validation, data.label_names, training_arguments.eval_line_counts)
        if training_arguments.do_train and training_arguments.eval_strategy != IntervalStrategy.NO:
            with explained("metric_for_best_model"):
                scorer.check_figure(str(training_arguments.metric_for_best_model))
    with explained("output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
    trainer = ScanlineTrainer(
        model=model,
        args=training_arguments,
        data_collator=find_collator(processor),
        compute_loss_func=find_loss(model.config),
        train_dataset=data.training if data else None,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=scorer,
    )
    main_process = trainer.is_world_process_zero()
    if main_process:
        if training_arguments.do_train and checkpoint is None:
            (folder / METRICS_FILE).unlink(missing_ok=True)
        if makes_model and data is not None:
            write_recipe(folder, recipe)
            data.split.save(folder / SPLIT_FILE)
        # what is tracked bears the name of its folder; the recipe does not, or a repetition would bear it, too
        training_arguments.run_name = training_arguments.run_name or folder.name
        if data is not None:
            counts = "; ".join(
                f"{part}: {sum(classes.values())} scans ({', '.join(f'{n} {name}' for name, n in classes.items())})"
                for part, classes in data.split.counts.items()
            )
            console.print(f"{model.config.model_type}, {num_parameters(model):,} parameters · {counts}")

    # training
    if training_arguments.do_train:
        with explained("training") if checkpoint else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
    elif makes_model:
        trainer.save_model()
    if makes_model and main_process:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same

    # evaluation
    if training_arguments.do_eval and data is not None:
        figures = {}
        for part, dataset in data.parts.items():
            scan_ids, groups, line_counts = data.scan_ids[part], data.groups[part], training_arguments.eval_line_counts
            if part == "train":  # to see the gap, no more than that
                chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), MAX_TRAIN_SCORED)).astype(int)
                dataset = dataset.select(chosen)
                scan_ids, groups, line_counts = [scan_ids[i] for i in chosen], [groups[i] for i in chosen], []
            of_part = TipStateScorer(dataset, data.label_names, line_counts)
            figures[part], probabilities = score_part(trainer, dataset, of_part, scan_ids, groups)
            if main_process and part != "train":
                probabilities.save(folder, part)
                figures[part] |= {"sessions": probabilities.by_session(), "mistakes": probabilities.surest_mistakes()}
        if main_process:
            summary = summarize(data, model_arguments, data_arguments, training_arguments, trainer, figures)
            write_summary(folder, summary)
            if makes_model:
                write_card(folder)
            print_figures(figures, summary)

    # predictions
    if chosen_scans is not None:
        names = [model.config.id2label[label] for label in range(model.config.num_labels)]
        predict(trainer, *chosen_scans, names, folder, console)
    if main_process and makes_model:
        console.print(
            f"\nThe model is in {folder}. To load it anywhere:\n\n"
            "    from transformers import pipeline\n\n"
            f'    classify = pipeline("image-classification", model="{folder}", trust_remote_code=True)\n'
            '    classify("scan.png")\n',
            soft_wrap=True,  # to be copied
        )

    # publication
    if push is not None and main_process:
        try:
            push(folder)
        except PublishError as error:
            raise ConfigurationError(
                f"push_to_hub: {error} The run itself is whole, in {folder}; to publish it later: "
                f"python -m experiments.publish {folder} --repo_id {push.keywords['repo_id']}"
            ) from error
    return folder


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    if not (sys.argv[1:] if argv is None else argv):
        print(NOTHING_ASKED, file=sys.stderr)
        return 2
    try:
        model_arguments, data_arguments, training_arguments = parse_arguments(argv)
        if training_arguments.local_process_index > 0:
            console.quiet = True
            datasets.disable_progress_bars()
        use_all_cores(training_arguments.world_size)
        transformers.utils.logging.set_verbosity(training_arguments.get_process_log_level())
        run(model_arguments, data_arguments, training_arguments)
        # gloo's threads would abort a process whose interpreter goes before its group does, and the launch fail
        PartialState().destroy_process_group()
    except ConfigurationError as error:
        print(f"run_classification.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
