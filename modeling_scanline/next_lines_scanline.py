"""Telling the next lines of a scan beside its state: a label says little of a scan, and its lines say much."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_scanline_causal import ScanlineCausalConfig


class ScanlineNextLines(nn.Module):
    """
    Tells the pixels of later lines from what is known at each line. For training only: verdicts never need it.

    The last features of the tokenizer know where on the line something is, and the hidden state, in which that is
    pooled away, knows all lines before: both are mapped to one width, added at each place along the line, and mapped
    to the pixels there. Multi-token prediction (Gloeckle et al. 2024, arXiv:2404.19737) of heights.
    """

    def __init__(self, config: ScanlineCausalConfig):
        super().__init__()
        self.steps = list(config.next_line_steps)
        self.pixels_per_place = -(-config.pixels_per_line // config.tokenizer_width)
        self.from_features = nn.Conv2d(config.tokenizer_channels[-1], config.hidden_size, kernel_size=1)
        self.from_hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.to_pixels = nn.Conv2d(config.hidden_size, len(self.steps) * self.pixels_per_place, kernel_size=1)

    def forward(self, features: torch.Tensor, hidden_states: torch.Tensor, pixels_per_line: int) -> torch.Tensor:
        """`[batch, channels, lines, places]` and `[batch, lines, hidden]` to `[batch, steps, lines, pixels]`."""
        batch_size, _, num_lines, num_places = features.shape
        hidden = self.from_hidden(hidden_states).transpose(1, 2).unsqueeze(-1)
        told = self.to_pixels(self.activation(self.from_features(features) + hidden))
        told = told.view(batch_size, len(self.steps), self.pixels_per_place, num_lines, num_places)
        # the last pixels of the last place may lie beyond the line
        return told.permute(0, 1, 3, 4, 2).reshape(batch_size, len(self.steps), num_lines, -1)[..., :pixels_per_line]

    def error(
        self,
        features: torch.Tensor,
        hidden_states: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        How far what is told lies from what comes, where both lines were measured.

        Args:
            features: last ones of the tokenizer, `[batch, channels, lines, places]`.
            hidden_states: last ones, `[batch, lines, hidden]`.
            pixel_values: `[batch, lines, pixels_per_line]`, finite.
            attention_mask: `[batch, lines]`, 1 where a line was measured; `None` if all were.

        Returns:
            Smooth L1 distance of each scan `[batch]` in float32: mean over pixels and lines, sum over the steps.
        """
        told = self(features, hidden_states, pixel_values.shape[2]).float()
        wanted = pixel_values.float()
        measured = wanted.new_ones(wanted.shape[:2]) if attention_mask is None else attention_mask.float()
        error = wanted.new_zeros(len(wanted))
        for place, step in enumerate(self.steps):
            distance = nn.functional.smooth_l1_loss(told[:, place, :-step], wanted[:, step:], reduction="none")
            pairs = measured[:, :-step] * measured[:, step:]
            error = error + (distance.mean(dim=-1) * pairs).sum(dim=1) / pairs.sum(dim=1).clamp(min=1)
        return error


__all__ = ["ScanlineNextLines"]
