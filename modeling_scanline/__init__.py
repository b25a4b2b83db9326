"""
Scanline models, their configurations and their image processor: what travels to the Hub.

Importing this package registers them, so that `AutoConfig`, `AutoModel`, `AutoModelForImageClassification`,
`AutoImageProcessor` and `pipeline` know them, and so that `save_pretrained` and `push_to_hub` send the code along.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # up to 5.17 hidden without torchvision

from .configuration_scanline import (
    ScanlineCNNConfig,
    ScanlineConfig,
    ScanlineLRCNConfig,
    ScanlineTransformerConfig,
    ScanlineViTConfig,
)
from .configuration_scanline_causal import ScanlineCausalConfig
from .image_processing_scanline import ScanlineImageProcessor, as_images, normalize_lines, resample_lines
from .layers_scanline import ScanlineCausalOutput, line_loss_weights, tip_state_loss
from .modeling_scanline_causal import ScanlineCache, ScanlineCausalForImageClassification, ScanlineCausalModel
from .modeling_scanline_cnn import ScanlineCNNForImageClassification, ScanlineCNNModel
from .modeling_scanline_lrcn import ScanlineLRCNForImageClassification, ScanlineLRCNModel
from .modeling_scanline_vit import ScanlineViTForImageClassification, ScanlineViTModel
from .streaming_scanline import LineResult, ScanlineStreamer

for _config, _model, _classifier in (
    (ScanlineViTConfig, ScanlineViTModel, ScanlineViTForImageClassification),
    (ScanlineCausalConfig, ScanlineCausalModel, ScanlineCausalForImageClassification),
    (ScanlineCNNConfig, ScanlineCNNModel, ScanlineCNNForImageClassification),
    (ScanlineLRCNConfig, ScanlineLRCNModel, ScanlineLRCNForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
    AutoImageProcessor.register(_config, image_processor_classes={"pil": ScanlineImageProcessor}, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
    _classifier.register_for_auto_class("AutoModelForImageClassification")
ScanlineImageProcessor.register_for_auto_class()

__all__ = [
    "LineResult",
    "ScanlineCNNConfig",
    "ScanlineCNNForImageClassification",
    "ScanlineCNNModel",
    "ScanlineCache",
    "ScanlineCausalConfig",
    "ScanlineCausalForImageClassification",
    "ScanlineCausalModel",
    "ScanlineCausalOutput",
    "ScanlineConfig",
    "ScanlineImageProcessor",
    "ScanlineLRCNConfig",
    "ScanlineLRCNForImageClassification",
    "ScanlineLRCNModel",
    "ScanlineStreamer",
    "ScanlineTransformerConfig",
    "ScanlineViTConfig",
    "ScanlineViTForImageClassification",
    "ScanlineViTModel",
    "as_images",
    "line_loss_weights",
    "normalize_lines",
    "resample_lines",
    "tip_state_loss",
]
