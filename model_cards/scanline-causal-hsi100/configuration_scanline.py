# Copyright 2026 The Scanline developers. Licensed under the Apache License, Version 2.0.
"""Configurations of the Scanline models. They travel to the Hub with the weights."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

LINE_LOSS_WEIGHTINGS = ("uniform", "linear", "last")
# what was found for one classifier: for the logits that it gives
CALIBRATION_ENTRIES = (
    "calibration_lines", "calibration_temperatures", "calibration_exponents", "calibration_biases", "decision_alphas",
    "decision_thresholds",
)  # fmt: skip


def check_at_least_one(config: PreTrainedConfig, *names: str) -> None:
    """Raises `ValueError` for a size of this name that is smaller than 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")


def check_probabilities(config: PreTrainedConfig, *names: str) -> None:
    """Raises `ValueError` for a value of this name that is no probability."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}.")


def check_choice(config: PreTrainedConfig, name: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` for a value of this name that is not one of the choices."""
    if getattr(config, name) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}.")


@strict
class ScanlineConfig(PreTrainedConfig):
    r"""
    What every Scanline model has. Use one of the subclasses.

    Args:
        pixels_per_line (`int`, *optional*, defaults to 128):
            Width of a scanline, in pixels.
        max_lines (`int`, *optional*, defaults to 128):
            Number of lines of the longest scan in training; for some models, of the longest that they can take.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation between the layers.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the loss, in the order of `id2label`. Normalize them to mean 1 over the training
            scans, so that the loss keeps its scale. `None` weighs all scans alike.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target that is spread evenly over all classes.
    """

    model_type = "scanline"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "hidden_states", "attentions"]

    pixels_per_line: int = 128
    max_lines: int = 128
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    class_weights: list[float | int] | None = None
    label_smoothing: float | int = 0.0

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Another number of states makes a new classifier: what was found for the saved one is left out."""
        saved = len(config_dict.get("id2label") or range(2))  # where nothing is said, the library's default
        if (kwargs.get("num_labels") or len(kwargs.get("id2label") or range(saved))) != saved:
            found = ("class_weights", *CALIBRATION_ENTRIES)
            config_dict = {name: value for name, value in config_dict.items() if name not in found}
        return super().from_dict(config_dict, **kwargs)

    def validate_lines(self) -> None:
        """Raises `ValueError` for scans without a line or a pixel."""
        check_at_least_one(self, "pixels_per_line", "max_lines")

    def validate_activation(self) -> None:
        """Raises `ValueError` for an activation that transformers does not know."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act must be the name of an activation in transformers, such as gelu, got {self.hidden_act!r}."
            )

    def validate_loss(self) -> None:
        """Raises `ValueError` for settings of the loss that make no sense."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}.")
        if self.class_weights is not None and any(weight < 0 for weight in self.class_weights):
            raise ValueError(f"class_weights must not be negative, got {self.class_weights}.")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"class_weights must have one entry a label, got {len(self.class_weights)} for {self.num_labels} "
                "labels: from_pretrained(..., num_labels=...) leaves out what was found for other states."
            )


@strict
class ScanlineTransformerConfig(ScanlineConfig):
    r"""
    What the transformers among the Scanline models have. Use one of the subclasses.

    Args:
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the transformer.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads of each layer. Must divide `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 1024):
            Width of the feed-forward network of each layer.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the embeddings and of each branch of a layer.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the attention weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer normalizations.
    """

    base_model_tp_plan = {
        "layers.*.attention.q_proj": "colwise",
        "layers.*.attention.k_proj": "colwise",
        "layers.*.attention.v_proj": "colwise",
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5

    def validate_sizes(self) -> None:
        """Raises `ValueError` for sizes that no transformer can be built from."""
        check_at_least_one(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )

    def validate_regularization(self) -> None:
        """Raises `ValueError` for a dropout that is no probability."""
        check_probabilities(self, "hidden_dropout_prob", "attention_probs_dropout_prob")


@strict
class ScanlineViTConfig(ScanlineTransformerConfig):
    r"""
    Configuration of [`ScanlineViTModel`]: each scanline is one token, attention is global.

    `max_lines` is the number of learned positions: the longest scan that the model can take.
    """

    model_type = "scanline_vit"

    def __post_init__(self, **kwargs):
        # saving adds the entry of the saved class only: without this, AutoModel would not find the bare model
        kwargs.setdefault("auto_map", {"AutoModel": "modeling_scanline_vit.ScanlineViTModel"})
        super().__post_init__(**kwargs)


@strict
class ScanlineConvolutionalConfig(ScanlineConfig):
    r"""
    What the published networks have (Gordon et al. 2020): two 3x3 convolutions and a max-pooling of 2 a block, where
    the very first convolution is 7x7 with stride 2. Use one of the subclasses.

    Args:
        conv_channels (`list[int]`, *optional*, defaults to `[32, 64, 128]`):
            Filters of both convolutions of each block.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation after each convolution.
        initializer_range (`float`, *optional*, defaults to 0.002):
            Standard deviation of the initial weights of the head, which sees thousands of features. Those of the
            convolutions follow from their size (He et al. 2015).
        classifier_dropout_prob (`float`, *optional*, defaults to 0.5):
            Dropout before the head.
    """

    conv_channels: list[int] | tuple[int, ...] = (32, 64, 128)
    hidden_act: str = "relu"
    initializer_range: float = 0.002
    classifier_dropout_prob: float | int = 0.5

    def __post_init__(self, **kwargs):
        self.conv_channels = list(self.conv_channels)
        super().__post_init__(**kwargs)

    def feature_map_size(self, num_lines: int) -> tuple[int, int]:
        """Height and width that the convolutions leave of `num_lines` lines: half, and half of that by each block."""
        height, width = (-(-size // 2) // 2 ** len(self.conv_channels) for size in (num_lines, self.pixels_per_line))
        return height, width

    def validate_convolutions(self) -> None:
        """Raises `ValueError` for convolutions that cannot be built."""
        if not self.conv_channels or min(self.conv_channels) < 1:
            raise ValueError(f"conv_channels must be at least 1, one entry a block, got {self.conv_channels}.")

    def validate_regularization(self) -> None:
        """Raises `ValueError` for a dropout that is no probability."""
        check_probabilities(self, "classifier_dropout_prob")

    def check_room(self, name: str) -> None:
        """Raises `ValueError` if the blocks leave nothing of as many lines as the entry of this name says."""
        if min(self.feature_map_size(getattr(self, name))) < 1:
            raise ValueError(
                f"{name}={getattr(self, name)} lines of pixels_per_line={self.pixels_per_line} are too few for "
                f"{len(self.conv_channels)} blocks of convolutions with pooling: use fewer conv_channels."
            )


@strict
class ScanlineCNNConfig(ScanlineConvolutionalConfig):
    r"""
    Configuration of [`ScanlineCNNModel`]: convolutions over the whole scan.

    `max_lines` is the height of its image: the longest scan that the model can take. Lines that are missing are zero.
    """

    model_type = "scanline_cnn"

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", {"AutoModel": "modeling_scanline_cnn.ScanlineCNNModel"})
        super().__post_init__(**kwargs)

    def validate_room(self) -> None:
        """Raises `ValueError` for a scan too small for the blocks."""
        self.check_room("max_lines")


@strict
class ScanlineLRCNConfig(ScanlineConvolutionalConfig):
    r"""
    Configuration of [`ScanlineLRCNModel`]: convolutions over a rolling window of lines, and an LSTM over the windows.

    Args:
        window_lines (`int`, *optional*, defaults to 20):
            Lines of a window.
        window_stride (`int`, *optional*, defaults to 1):
            Lines from one window to the next, and from one new verdict to the next. At most `window_lines`.
        hidden_size (`int`, *optional*, defaults to 256):
            Units of the LSTM.
        line_loss_weighting (`str`, *optional*, defaults to `"uniform"`):
            Weight of each line's prediction in the loss: `"uniform"`, `"linear"` (grows with the lines seen) or
            `"last"` (only the last measured line).
    """

    model_type = "scanline_lrcn"

    window_lines: int = 20
    window_stride: int = 1
    hidden_size: int = 256
    line_loss_weighting: str = "uniform"

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", {"AutoModel": "modeling_scanline_lrcn.ScanlineLRCNModel"})
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Raises `ValueError` for windows or an LSTM that cannot be built."""
        check_at_least_one(self, "hidden_size", "window_lines", "window_stride")
        if self.window_stride > self.window_lines:
            raise ValueError(
                f"window_stride must be at most window_lines, or lines would be left out, got {self.window_stride} "
                f"and {self.window_lines}."
            )

    def validate_room(self) -> None:
        """Raises `ValueError` for a window too small for the blocks."""
        self.check_room("window_lines")

    def validate_choices(self) -> None:
        """Raises `ValueError` for a name that is not one of the choices."""
        check_choice(self, "line_loss_weighting", LINE_LOSS_WEIGHTINGS)


__all__ = [
    "ScanlineCNNConfig",
    "ScanlineConfig",
    "ScanlineConvolutionalConfig",
    "ScanlineLRCNConfig",
    "ScanlineTransformerConfig",
    "ScanlineViTConfig",
]
