# Copyright 2026 The Scanline developers. Licensed under the Apache License, Version 2.0.
"""Configurations of the Scanline models. They travel to the Hub with the weights."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

LINE_LOSS_WEIGHTINGS = ("uniform", "linear", "last")
POSITION_EMBEDDING_TYPES = ("rotary", "sinusoidal")
TOKENIZER_POOLINGS = ("mean", "mean_max")


@strict
class ScanlineConfig(PreTrainedConfig):
    r"""
    What every Scanline model has. Use one of the subclasses.

    Args:
        pixels_per_line (`int`, *optional*, defaults to 128):
            Width of a scanline, in pixels.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the transformer.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads of each layer. Must divide `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 1024):
            Width of the feed-forward network of each layer.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward network and of the tokenizer.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the embeddings and of each branch of a layer.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer normalizations.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the loss, in the order of `id2label`. Normalize them to mean 1 over the training
            scans, so that the loss keeps its scale. `None` weighs all scans alike.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target that is spread evenly over all classes.
    """

    model_type = "scanline"
    keys_to_ignore_at_inference = ["past_key_values", "hidden_states", "attentions"]
    base_model_tp_plan = {
        "layers.*.attention.q_proj": "colwise",
        "layers.*.attention.k_proj": "colwise",
        "layers.*.attention.v_proj": "colwise",
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    pixels_per_line: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    class_weights: list[float | int] | None = None
    label_smoothing: float | int = 0.0

    def validate_sizes(self) -> None:
        """Raises `ValueError` for sizes that no model can be built from."""
        for name in (
            "pixels_per_line",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )

    def validate_regularization(self) -> None:
        """Raises `ValueError` for a dropout that is no probability."""
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")

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


@strict
class ScanlineViTConfig(ScanlineConfig):
    r"""
    Configuration of [`ScanlineViTModel`]: each scanline is one token, attention is global.

    Args:
        max_lines (`int`, *optional*, defaults to 128):
            Number of learned positions: the longest scan that the model can take.
    """

    model_type = "scanline_vit"

    max_lines: int = 128

    def __post_init__(self, **kwargs):
        # saving adds the entry of the saved class only: without this, AutoModel would not find the bare model
        kwargs.setdefault("auto_map", {"AutoModel": "modeling_scanline_vit.ScanlineViTModel"})
        super().__post_init__(**kwargs)

    def validate_max_lines(self) -> None:
        """Raises `ValueError` if there is no position at all."""
        if self.max_lines < 1:
            raise ValueError(f"max_lines must be at least 1, got {self.max_lines}.")


@strict
class ScanlineCausalConfig(ScanlineConfig):
    r"""
    Configuration of [`ScanlineCausalModel`]: a convolutional tokenizer per scanline and causal attention.

    Args:
        tokenizer_channels (`list[int]`, *optional*, defaults to `[32, 64, 128]`):
            Filters of each convolution of the tokenizer.
        tokenizer_kernel_sizes (`list[int]`, *optional*, defaults to `[7, 3, 3]`):
            Size of each convolution along the pixels of a line. Odd.
        tokenizer_strides (`list[int]`, *optional*):
            Stride of each convolution along the pixels. `None` is 1 everywhere. Each convolution is followed by a
            max-pooling of 2 pixels, whatever its stride.
        tokenizer_context_lines (`int`, *optional*, defaults to 5):
            Size of each convolution along the lines: the line itself and the `tokenizer_context_lines - 1` lines
            before it, never one after. 1 sees every line alone.
        tokenizer_pooling (`str`, *optional*, defaults to `"mean_max"`):
            How what is left of the pixels becomes one vector: their `"mean"`, or mean and maximum side by side.
        position_embedding_type (`str`, *optional*, defaults to `"rotary"`):
            `"rotary"`: sinusoids turn queries and keys, so that only the distance between two lines counts, and, with
            `sliding_window`, no distance that training has not shown ever occurs. `"sinusoidal"`: sinusoids are
            added to the tokens; beyond `max_lines` the last trained position is kept.
        position_base (`float`, *optional*, defaults to 10000.0):
            Base of the wavelengths of the sinusoids (Vaswani et al. 2017; Su et al. 2021 for the rotary form).
        max_lines (`int`, *optional*, defaults to 128):
            Number of lines of the longest scan in training. No limit: see `position_embedding_type`.
        sliding_window (`int`, *optional*, defaults to 128):
            A line attends to itself and the `sliding_window - 1` lines before it, so that a stream can go on for
            hours at constant memory. `None` lets it see all.
        line_loss_weighting (`str`, *optional*, defaults to `"uniform"`):
            Weight of each line's prediction in the loss: `"uniform"`, `"linear"` (grows with the lines seen) or
            `"last"` (only the last measured line).
        use_cache (`bool`, *optional*, defaults to `False`):
            Whether a forward pass returns `past_key_values`. A whole scan needs none.
    """

    model_type = "scanline_causal"

    tokenizer_channels: list[int] | tuple[int, ...] = (32, 64, 128)
    tokenizer_kernel_sizes: list[int] | tuple[int, ...] = (7, 3, 3)
    tokenizer_strides: list[int] | tuple[int, ...] | None = None
    tokenizer_context_lines: int = 5
    tokenizer_pooling: str = "mean_max"
    position_embedding_type: str = "rotary"
    position_base: float | int = 10000.0
    max_lines: int = 128
    sliding_window: int | None = 128
    line_loss_weighting: str = "uniform"
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", {"AutoModel": "modeling_scanline_causal.ScanlineCausalModel"})
        self.tokenizer_channels = list(self.tokenizer_channels)
        self.tokenizer_kernel_sizes = list(self.tokenizer_kernel_sizes)
        self.tokenizer_strides = list(self.tokenizer_strides or [1] * len(self.tokenizer_channels))
        super().__post_init__(**kwargs)

    def validate_tokenizer(self) -> None:
        """Raises `ValueError` for a tokenizer that cannot be built."""
        strides = self.tokenizer_strides or []  # filled in at construction
        lengths = {len(self.tokenizer_channels), len(self.tokenizer_kernel_sizes), len(strides)}
        if len(lengths) != 1 or not self.tokenizer_channels:
            raise ValueError(
                "tokenizer_channels, tokenizer_kernel_sizes and tokenizer_strides must have one entry a convolution, "
                f"got {self.tokenizer_channels}, {self.tokenizer_kernel_sizes} and {strides}."
            )
        if any(size < 1 or size % 2 == 0 for size in self.tokenizer_kernel_sizes):
            raise ValueError(f"tokenizer_kernel_sizes must be odd, got {self.tokenizer_kernel_sizes}.")
        if min(self.tokenizer_channels) < 1 or min(strides) < 1:
            raise ValueError(
                "tokenizer_channels and tokenizer_strides must be at least 1, got "
                f"{self.tokenizer_channels} and {strides}."
            )
        if self.tokenizer_context_lines < 1:
            raise ValueError(f"tokenizer_context_lines must be at least 1, got {self.tokenizer_context_lines}.")
        width = self.pixels_per_line
        for stride in strides:
            width = -(-width // stride) // 2
        if width < 1:
            raise ValueError(
                f"pixels_per_line={self.pixels_per_line} is too narrow for {len(self.tokenizer_channels)} "
                "convolutions with pooling: use fewer convolutions or smaller tokenizer_strides."
            )

    def validate_choices(self) -> None:
        """Raises `ValueError` for a name that is not one of the choices."""
        for name, choices in (
            ("tokenizer_pooling", TOKENIZER_POOLINGS),
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("line_loss_weighting", LINE_LOSS_WEIGHTINGS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")

    def validate_positions(self) -> None:
        """Raises `ValueError` for positions that cannot work."""
        if self.position_embedding_type == "rotary" and (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                "rotary positions need an even width per head, got "
                f"hidden_size={self.hidden_size} with num_attention_heads={self.num_attention_heads}."
            )
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"sinusoidal positions need an even hidden_size, got {self.hidden_size}.")
        if self.position_base <= 0:
            raise ValueError(f"position_base must be greater than 0, got {self.position_base}.")
        if self.max_lines < 1 or (self.sliding_window is not None and self.sliding_window < 2):
            raise ValueError(
                "max_lines must be at least 1 and sliding_window at least 2, got "
                f"{self.max_lines} and {self.sliding_window}."
            )


__all__ = ["ScanlineCausalConfig", "ScanlineConfig", "ScanlineViTConfig"]
