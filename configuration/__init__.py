"""What a run is: its arguments, its recipes, and the model configurations, handed on from `modeling_scanline`."""

from modeling_scanline import (
    ScanlineCausalConfig,
    ScanlineCNNConfig,
    ScanlineConfig,
    ScanlineLRCNConfig,
    ScanlineTransformerConfig,
    ScanlineViTConfig,
)

from .arguments import ConfigurationError, DataArguments, ModelArguments, ScanlineTrainingArguments
from .command_line import RECIPES, parse_arguments, resolved_recipe

__all__ = [
    "RECIPES",
    "ConfigurationError",
    "DataArguments",
    "ModelArguments",
    "ScanlineCNNConfig",
    "ScanlineCausalConfig",
    "ScanlineConfig",
    "ScanlineLRCNConfig",
    "ScanlineTrainingArguments",
    "ScanlineTransformerConfig",
    "ScanlineViTConfig",
    "parse_arguments",
    "resolved_recipe",
]
