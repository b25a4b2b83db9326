# Copyright 2026 The Scanline developers. Licensed under the Apache License, Version 2.0.
"""Configuration of the causal scanline transformer: streams, members and calibration beside what all have."""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_scanline import (
    LINE_LOSS_WEIGHTINGS,
    ScanlineTransformerConfig,
    check_at_least_one,
    check_choice,
    check_probabilities,
)

POSITION_EMBEDDING_TYPES = ("rotary", "sinusoidal")
TOKENIZER_POOLINGS = ("mean", "mean_max")
# sizes of a network, in which those that look at a scan side by side may differ
MEMBER_SIZES = (
    "tokenizer_channels", "tokenizer_kernel_sizes", "tokenizer_strides", "tokenizer_context_lines",
    "tokenizer_pooling", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip


@strict
class ScanlineCausalConfig(ScanlineTransformerConfig):
    r"""
    Configuration of [`ScanlineCausalModel`]: a convolutional tokenizer per scanline and causal attention.

    `max_lines` is no limit to what the model can take: see `position_embedding_type`.

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
        sliding_window (`int`, *optional*, defaults to 128):
            A line attends to itself and the `sliding_window - 1` lines before it, so that a stream can go on for
            hours at constant memory. `None` lets it see all.
        line_loss_weighting (`str`, *optional*, defaults to `"uniform"`):
            Weight of each line's prediction in the loss: `"uniform"`, `"linear"` (grows with the lines seen) or
            `"last"` (only the last measured line).
        next_line_weight (`float`, *optional*, defaults to 0.0):
            Weight in the loss, in training, of how well the model tells the lines that come next, see
            [`ScanlineNextLines`]. 0 leaves out the weights that this takes.
        next_line_steps (`list[int]`, *optional*, defaults to `[1, 4, 12]`):
            Which of the next lines it tells.
        num_members (`int`, *optional*, defaults to 1):
            Number of networks that look at a scan side by side, whose logits are added up: trained one by one, an
            ensemble (Lakshminarayanan et al. 2017, arXiv:1612.01474).
        member_sizes (`list[dict]`, *optional*):
            Of each network but the first, the sizes in which it differs from that; `None` where none does.
        use_cache (`bool`, *optional*, defaults to `False`):
            Whether a forward pass returns `past_key_values`. A whole scan needs none.
        calibration_lines (`list[int]`, *optional*):
            Numbers of lines that a calibration was found for. Rising.
        calibration_temperatures (`list[float]`, *optional*):
            What the logits are divided by after each of them, outside training (Guo et al. 2017); between two of them
            along the logarithm of the lines, before the first and after the last the same as there.
        calibration_exponents (`list[float]`, *optional*):
            Powers of how far the largest logit is above their mean, by which the logits are multiplied beside that: a
            temperature that depends on how sure the model is (as Tomani et al. 2022, arXiv:2102.12182). `None` or 0
            for one that does not.
        calibration_biases (`list[list[float]]`, *optional*):
            What is added to the logit of each state then, likewise: training may weight states, so that rare ones come
            out too often.
        decision_alphas (`list[float]`, *optional*):
            Errors among decisions that held-out scans bear out. Rising.
        decision_thresholds (`list[float]`, *optional*):
            For each of them, the probability of the most probable state, after one of the numbers of lines in
            `calibration_lines`, from which on a stream decides.
        change_weights (`list[float]`, *optional*):
            Of the logistic regression that finds tip changes in a stream, see [`ChangeDetector`].
        change_threshold (`float`, *optional*, defaults to 0.5):
            Probability from which on a stream takes the tip as changed.
        familiarity_mean (`list[float]`, *optional*):
            Mean of what a stream compares with the scans of training, see [`FamiliarityMeter`].
        familiarity_whitening (`list[float]`, *optional*):
            Lower triangle of the matrix that makes its deviations comparable.
        familiarity_lines (`list[int]`, *optional*):
            Numbers of lines that a threshold was found for. Rising.
        familiarity_thresholds (`list[float]`, *optional*):
            Distance from which on a scan is unlike those of training, after each of them.
    """

    model_type = "scanline_causal"

    tokenizer_channels: list[int] | tuple[int, ...] = (32, 64, 128)
    tokenizer_kernel_sizes: list[int] | tuple[int, ...] = (7, 3, 3)
    tokenizer_strides: list[int] | tuple[int, ...] | None = None
    tokenizer_context_lines: int = 5
    tokenizer_pooling: str = "mean_max"
    position_embedding_type: str = "rotary"
    position_base: float | int = 10000.0
    sliding_window: int | None = 128
    line_loss_weighting: str = "uniform"
    next_line_weight: float | int = 0.0
    next_line_steps: list[int] | tuple[int, ...] = (1, 4, 12)
    num_members: int = 1
    member_sizes: list[dict[str, Any]] | None = None
    use_cache: bool = False
    calibration_lines: list[int] | None = None
    calibration_temperatures: list[float | int] | None = None
    calibration_exponents: list[float | int] | None = None
    calibration_biases: list[list[float]] | None = None
    decision_alphas: list[float] | None = None
    decision_thresholds: list[float | int] | None = None
    change_weights: list[float] | None = None
    change_threshold: float = 0.5
    familiarity_mean: list[float] | None = None
    familiarity_whitening: list[float] | None = None
    familiarity_lines: list[int] | None = None
    familiarity_thresholds: list[float] | None = None

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", {"AutoModel": "modeling_scanline_causal.ScanlineCausalModel"})
        self.tokenizer_channels = list(self.tokenizer_channels)
        self.tokenizer_kernel_sizes = list(self.tokenizer_kernel_sizes)
        self.tokenizer_strides = list(self.tokenizer_strides or [1] * len(self.tokenizer_channels))
        self.next_line_steps = list(self.next_line_steps)
        super().__post_init__(**kwargs)

    @property
    def member_configs(self) -> "list[ScanlineCausalConfig]":
        """The configuration of each network by itself, where it has other sizes than the first; else this one."""
        configs = [self] * self.num_members
        for place, sizes in enumerate(self.member_sizes or [], start=1):
            if sizes:
                configs[place] = copy.copy(self)
                for name, value in {**sizes, "num_members": 1, "member_sizes": None}.items():
                    setattr(configs[place], name, value)
        return configs

    @property
    def tokenizer_width(self) -> int:
        """Places along a line that the convolutions of the tokenizer leave."""
        width = self.pixels_per_line
        for stride in self.tokenizer_strides or []:  # filled in at construction
            width = -(-width // stride) // 2
        return width

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
        if self.tokenizer_width < 1:
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
            check_choice(self, name, choices)

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
        if self.sliding_window is not None and self.sliding_window < 2:
            raise ValueError(f"sliding_window must be at least 2, got {self.sliding_window}.")

    def validate_next_lines(self) -> None:
        """Raises `ValueError` for next lines that cannot be told."""
        steps = self.next_line_steps
        if self.next_line_weight < 0:
            raise ValueError(f"next_line_weight must not be negative, got {self.next_line_weight}.")
        if min(steps, default=0) < 1 or len(set(steps)) != len(steps):
            raise ValueError(f"next_line_steps must be different numbers of at least 1, got {steps}.")

    def validate_members(self) -> None:
        """Raises `ValueError` for members that cannot be."""
        check_at_least_one(self, "num_members")
        if self.next_line_weight and self.num_members > 1:
            raise ValueError(
                f"next_line_weight={self.next_line_weight} is for a single member, got num_members={self.num_members}:"
                " give a next_line_weight of 0."
            )
        if self.member_sizes is None:
            return
        if len(self.member_sizes) != self.num_members - 1:
            raise ValueError(
                f"member_sizes must have one entry for each of num_members={self.num_members} but the first, got "
                f"{len(self.member_sizes)}."
            )
        if unknown := sorted({name for sizes in self.member_sizes for name in sizes} - set(MEMBER_SIZES)):
            raise ValueError(f"member_sizes may have {', '.join(MEMBER_SIZES)}, got {unknown[0]}.")
        for config in self.member_configs[1:]:
            if config is not self:
                config.validate()

    def validate_calibration(self) -> None:
        """Raises `ValueError` for a calibration that cannot be used."""
        lines, temperatures = self.calibration_lines or [], self.calibration_temperatures or []
        rising = all(low < high for low, high in zip([0, *lines], lines, strict=False))
        if len(lines) != len(temperatures) or not rising or any(value <= 0 for value in temperatures):
            raise ValueError(
                "calibration_lines must be rising and as many as calibration_temperatures, which must be greater than "
                f"0, got {lines} and {temperatures}."
            )
        exponents = self.calibration_exponents
        # of -1, all verdicts would be as sure
        if exponents is not None and (len(exponents) != len(lines) or min(exponents, default=0) <= -1):
            raise ValueError(
                f"calibration_exponents must have one entry for each of {lines}, greater than -1, got {exponents}."
            )
        if self.calibration_biases is not None:
            sizes = [len(biases) for biases in self.calibration_biases]
            if sizes != [self.num_labels] * len(lines):
                raise ValueError(
                    f"calibration_biases must have one entry for each of {lines}, each of {self.num_labels} biases, "
                    f"got {sizes}."
                )

    def validate_decisions(self) -> None:
        """Raises `ValueError` for thresholds that cannot be used."""
        alphas, thresholds = self.decision_alphas or [], self.decision_thresholds or []
        rising = all(low < high for low, high in zip([0, *alphas], [*alphas, 1], strict=True))
        if len(alphas) != len(thresholds) or not rising or any(not 0 <= value <= 1 for value in thresholds):
            raise ValueError(
                "decision_alphas must rise between 0 and 1 and be as many as decision_thresholds, which must lie in "
                f"[0, 1], got {alphas} and {thresholds}."
            )
        if alphas and not self.calibration_lines:
            raise ValueError(
                "decision_thresholds need calibration_lines: decisions fall after these numbers of lines."
            )

    def validate_changes(self) -> None:
        """Raises `ValueError` for a threshold that is no probability."""
        check_probabilities(self, "change_threshold")

    def validate_familiarity(self) -> None:
        """Raises `ValueError` for distances that cannot be used."""
        size = len(self.familiarity_mean or [])
        if len(self.familiarity_whitening or []) != size * (size + 1) // 2:
            raise ValueError(
                f"familiarity_whitening must be the lower triangle for the {size} of familiarity_mean, "
                f"{size * (size + 1) // 2} numbers, got {len(self.familiarity_whitening or [])}."
            )
        lines, thresholds = self.familiarity_lines or [], self.familiarity_thresholds or []
        rising = all(low < high for low, high in zip([0, *lines], lines, strict=False))
        if len(lines) != len(thresholds) or not rising or min(thresholds, default=1) <= 0 or bool(lines) != bool(size):
            raise ValueError(
                "familiarity_lines must be rising and as many as familiarity_thresholds, which must be greater than "
                f"0, and none only without familiarity_mean, got {lines} and {thresholds}."
            )

    def decision_threshold(self, alpha: float) -> float:
        """The threshold for an error of at most `alpha`; raises `ValueError` where there is none."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is an error between 0 and 1, as 0.1 for 10 %, got {alpha}.")
        if not self.decision_alphas or self.decision_thresholds is None:
            raise ValueError(
                f"No threshold is known for alpha={alpha}: this model has none, as they come from cross-validation "
                "when a model is released (experiments.release). Leave alpha out."
            )
        within = [place for place, stated in enumerate(self.decision_alphas) if stated <= alpha]
        if not within:
            raise ValueError(
                f"No threshold is known for alpha={alpha}: this model can bear out errors from "
                f"{self.decision_alphas[0]} on."
            )
        return float(self.decision_thresholds[within[-1]])


__all__ = ["ScanlineCausalConfig"]
