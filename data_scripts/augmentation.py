"""Augmentation of whole batches of scans, on heights, before they are normalized."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Augmentation:
    """
    What is done to a batch of scans; every setting at 0 does nothing.

    Attributes:
        horizontal_flip: probability of mirroring the lines.
        vertical_flip: probability of reversing the order of the measured lines.
        min_crop: smallest side of a random square crop, as a share of the scan's; the crop is zoomed to full size,
            pixels stay square. 1 does not crop.
        max_crop: largest side, from 1 on: as if a larger area had been scanned, mirrored beyond the edges. Sides
            are drawn evenly by their logarithm then.
        rotation: largest angle, in degrees, by which the picture is turned either way; its corners are mirrored in.
        shear: largest shear of the picture along its lines, as a drift during the scan gives it: pixels a line.
        contrast: heights between a scan's lowest and highest are raised to a power between `exp(-contrast)` and
            `exp(contrast)`. (A linear change of contrast would be undone by normalization.)
        noise: largest standard deviation of Gaussian noise, as a share of the standard deviation of the line. Each
            scan draws its own between 0 and this.
        line_dropout: probability of each line to be replaced by a constant.
        random_cutoff: probability of a scan to end after a random line, for models that judge a scan as a whole.
        min_cutoff_lines: fewest lines that are left then.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    min_crop: float = 1.0
    max_crop: float = 1.0
    rotation: float = 0.0
    shear: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    line_dropout: float = 0.0
    random_cutoff: float = 0.0
    min_cutoff_lines: int = 5

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip", "line_dropout", "random_cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability and must lie in [0, 1], got {getattr(self, name)}.")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop is a share of the scan and must lie in (0, 1], got {self.min_crop}.")
        if not 1 <= self.max_crop <= 4:
            raise ValueError(f"max_crop must lie in [1, 4], got {self.max_crop}.")
        if not (0 <= self.rotation <= 180 and 0 <= self.shear <= 1):
            raise ValueError(
                f"rotation must lie in [0, 180] degrees and shear in [0, 1], got {self.rotation} and {self.shear}."
            )
        if not (0 <= self.contrast < math.inf and 0 <= self.noise < math.inf and self.min_cutoff_lines >= 1):
            raise ValueError(
                "contrast and noise must not be negative or infinite and min_cutoff_lines at least 1, got "
                f"{self.contrast}, {self.noise} and {self.min_cutoff_lines}."
            )

    def __call__(self, lines: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Augments scans.

        Args:
            lines: heights `[batch, lines, pixels]`, NaN from the last measured line on (and wherever else nothing
                was measured).
            generator: source of all randomness.

        Returns:
            New heights of the same shape.
        """
        lines = self._move(lines, generator)
        lines = self._change_contrast(lines, generator)
        lines = self._add_noise(lines, generator)
        lines = self._drop_lines(lines, generator)
        return self._cut_off(lines, generator)

    def _move(self, lines: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Flips, crops, turns and shears the picture, in one interpolation."""
        turns = self.rotation > 0 or self.shear > 0
        zooms = self.min_crop < 1 or self.max_crop > 1
        if self.horizontal_flip == self.vertical_flip == 0 and not (zooms or turns):
            return lines
        batch_size, num_lines, num_pixels = lines.shape

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(batch_size, 1, generator=generator)

        measured = lines.isfinite().any(dim=-1)
        count = (measured * torch.arange(1, num_lines + 1)).amax(dim=1, keepdim=True).float()
        # places, in pixels of the input, that each output line and pixel is taken from
        side = uniform(self.min_crop, 1.0)
        if self.max_crop > 1:
            side = uniform(math.log(self.min_crop), math.log(self.max_crop)).exp()
        pixels = (torch.arange(num_pixels) + 0.5) * side + uniform(0, 1) * (1 - side) * num_pixels - 0.5
        rows = (torch.arange(num_lines) + 0.5) * side + uniform(0, 1) * (1 - side) * count - 0.5
        mirrored = torch.rand(batch_size, 1, generator=generator) < self.horizontal_flip
        reversed_ = torch.rand(batch_size, 1, generator=generator) < self.vertical_flip
        pixels = torch.where(mirrored, num_pixels - 1 - pixels, pixels)
        rows = torch.where(reversed_, count - 1 - rows, rows)
        beyond = torch.arange(num_lines) >= count  # the crop of a partial scan stays partial
        if self.max_crop > 1:
            pixels = _reflect(pixels - (num_pixels - 1) / 2, torch.tensor(num_pixels - 1.0))
            rows = _reflect(rows - (count - 1) / 2, count - 1)
        if turns:
            pixels, rows = pixels.unsqueeze(1), rows.unsqueeze(2)
            angle = uniform(-self.rotation, self.rotation).deg2rad().unsqueeze(2)
            shear = uniform(-self.shear, self.shear).unsqueeze(2)
            x, y = pixels - (num_pixels - 1) / 2, rows - (count.unsqueeze(2) - 1) / 2
            x = x + shear * y
            pixels = _reflect(angle.cos() * x - angle.sin() * y, torch.tensor(num_pixels - 1.0))
            rows = _reflect(angle.sin() * x + angle.cos() * y, count.unsqueeze(2) - 1)
        if not (zooms or turns):  # whole places: nothing to interpolate
            scans, rows = torch.arange(batch_size).view(-1, 1, 1), rows.clamp(min=0)
            taken = lines[scans, rows.long().unsqueeze(2), pixels.long().unsqueeze(1)]
        else:
            taken = _take_at(lines, rows, pixels)
        return taken.masked_fill(beyond.unsqueeze(-1), float("nan"))

    def _change_contrast(self, lines: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.contrast == 0:
            return lines
        low = lines.nan_to_num(float("inf")).amin(dim=(1, 2), keepdim=True)
        high = lines.nan_to_num(float("-inf")).amax(dim=(1, 2), keepdim=True)
        power = (self.contrast * (2 * torch.rand(len(lines), 1, 1, generator=generator) - 1)).exp()
        span = high - low
        changed = low + span * ((lines - low) / span).clamp(0, 1) ** power
        return torch.where(span > 0, changed, lines)

    def _add_noise(self, lines: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.noise == 0:
            return lines
        strength = self.noise * torch.rand(len(lines), 1, 1, generator=generator)
        spread = (lines - lines.nanmean(dim=-1, keepdim=True)).square().nanmean(dim=-1, keepdim=True).sqrt()
        return lines + strength * spread * torch.randn(lines.shape, generator=generator)

    def _drop_lines(self, lines: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.line_dropout == 0:
            return lines
        dropped = torch.rand(*lines.shape[:2], 1, generator=generator) < self.line_dropout
        return torch.where(dropped & lines.isfinite(), lines.nanmean(dim=-1, keepdim=True), lines)

    def _cut_off(self, lines: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.random_cutoff == 0:
            return lines
        batch_size, num_lines = lines.shape[:2]
        fewest = min(self.min_cutoff_lines, num_lines)
        keep = torch.randint(fewest, num_lines + 1, (batch_size, 1), generator=generator)
        spared = torch.rand(batch_size, 1, generator=generator) >= self.random_cutoff
        beyond = (torch.arange(num_lines) >= keep) & ~spared
        return lines.masked_fill(beyond.unsqueeze(-1), float("nan"))


def _reflect(offsets: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Places in `[0, span]` of what lies `offsets` from the middle; beyond an end it goes back again."""
    span = span.clamp(min=1e-3)  # of one line
    return span - (torch.remainder(offsets + span / 2, 2 * span) - span).abs()


def _take_at(lines: torch.Tensor, rows: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """
    Bilinear values of `lines` `[batch, lines, pixels]`; NaN where the nearest one is NaN.

    The places are `rows` `[batch, lines]` by `pixels` `[batch, pixels]`, or both `[batch, lines, pixels]`.
    """
    num_lines, num_pixels = lines.shape[1:]
    x = (2 * pixels + 1) / num_pixels - 1
    y = (2 * rows + 1) / num_lines - 1
    if x.ndim == 2:
        x, y = torch.broadcast_tensors(x.unsqueeze(1), y.unsqueeze(2))
    grid = torch.stack((x, y), dim=-1)

    def sample(values: torch.Tensor) -> torch.Tensor:
        return nn.functional.grid_sample(
            values.unsqueeze(1), grid, padding_mode="border", align_corners=False
        ).squeeze(1)

    measured = lines.isfinite()
    if bool(measured.all()):
        return sample(lines)
    share = sample(measured.to(lines.dtype))
    return (sample(torch.where(measured, lines, 0)) / share.clamp(min=1e-6)).masked_fill(share < 0.5, float("nan"))
