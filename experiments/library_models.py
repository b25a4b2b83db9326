"""Image classifiers of the library, trained and scored on the same scans as the project's own models, to compare."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from configuration import ConfigurationError, DataArguments
from configuration.arguments import LOSS_ENTRIES
from data_scripts.scan_dataset import collate_batch
from modeling_scanline import ScanlineImageProcessor, as_images, tip_state_loss


def is_of_library(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of an image classifier of the library, which takes images, not lines."""
    return config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def new_library_config(
    config_class: type[PreTrainedConfig], changes: dict[str, Any], data_arguments: DataArguments
) -> PreTrainedConfig:
    """A configuration for images of `max_lines` x `pixels_per_line`, with what the project's loss reads from it."""
    height, width = data_arguments.max_lines, data_arguments.pixels_per_line
    defaults: dict[str, Any] = {"label_smoothing": 0.0}
    if "image_size" in {entry.name for entry in fields(config_class)}:
        defaults["image_size"] = height if height == width else [height, width]
    return config_class(**(defaults | changes))


def set_loss_entries(config: PreTrainedConfig, changes: dict[str, Any]) -> None:
    """Puts what the project's loss reads on a configuration that does not declare it."""
    for name, default in zip(LOSS_ENTRIES, (None, 0.0), strict=True):
        setattr(config, name, changes.get(name, getattr(config, name, default)))


def new_library_processor(config: PreTrainedConfig, data_arguments: DataArguments) -> ScanlineImageProcessor:
    """A processor that makes the images of this model from scans."""
    return ScanlineImageProcessor(
        pixels_per_line=data_arguments.pixels_per_line,
        normalization=data_arguments.normalization,
        max_lines=data_arguments.max_lines,
        num_channels=getattr(config, "num_channels", 3),
    )


def read_processor(source: str) -> ScanlineImageProcessor | None:
    """The processor that scans were prepared with for a model; `None` for weights that were trained elsewhere."""
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError):
        return None
    return processor if isinstance(processor, ScanlineImageProcessor) else None


def load_library_processor(
    source: str, config: PreTrainedConfig, data_arguments: DataArguments
) -> ScanlineImageProcessor:
    """The processor of a run; a new one for weights that were trained elsewhere, on pictures."""
    return read_processor(source) or new_library_processor(config, data_arguments)


def check_images(model: Any, processor: ScanlineImageProcessor) -> None:
    """Raises [`ConfigurationError`] for a model that cannot take the images which its processor makes."""
    assert processor.num_channels is not None and processor.max_lines is not None
    image = torch.zeros(1, processor.num_channels, processor.max_lines, processor.pixels_per_line, dtype=model.dtype)
    try:
        with torch.no_grad():
            model.eval()(pixel_values=image)
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigurationError(
            f"{model.config.model_type}: cannot take images of {' x '.join(map(str, image.shape[1:]))} (channels, "
            f"max_lines, pixels_per_line): {reason}. Change these, or config_overrides."
        ) from error


def read_weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """
    Weights of a checkpoint by the names that they have in the model.

    The library saves some of its models, ViT among them, under the names of their first release. Its `from_pretrained`
    translates them, its Trainer does not: it takes up no more than the names that have never changed, with a warning.
    """
    return AutoModelForImageClassification.from_pretrained(checkpoint).state_dict()


def collate_images(batch: Any, max_lines: int, num_channels: int) -> dict[str, torch.Tensor]:
    """Images in place of the lines and the mask of a batch."""
    images = as_images(batch["pixel_values"], batch["attention_mask"], max_lines, num_channels)
    return {"pixel_values": images, **({"labels": batch["labels"]} if "labels" in batch else {})}


def image_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None, config: Any
) -> torch.Tensor:
    """The project's loss, in place of the library's, which knows neither class weights nor votes."""
    return tip_state_loss(outputs["logits"], labels, config, num_items_in_batch=num_items_in_batch)


def find_collator(processor: ScanlineImageProcessor) -> Callable[[Any], Any]:
    """What makes a batch of what the dataset gives: lines, or images."""
    if processor.num_channels is None:
        return collate_batch
    return partial(collate_images, max_lines=processor.max_lines, num_channels=processor.num_channels)


def find_loss(config: PreTrainedConfig) -> Callable[..., torch.Tensor] | None:
    """The loss for the Trainer; `None` for the models that compute it themselves."""
    return partial(image_loss, config=config) if is_of_library(config) else None
