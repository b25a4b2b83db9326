"""Batches of scans for the Trainer, made as batches and never scan by scan."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch

from modeling_scanline.image_processing_scanline import normalize_lines

from .augmentation import Augmentation


def lines_of(scans: datasets.Dataset, num_lines: int) -> torch.Tensor:
    """
    The lines of all scans as one tensor.

    Args:
        scans: with a column `lines`.
        num_lines: first lines of each scan to take.

    Returns:
        `[num_scans, num_lines, pixels_per_line]` in float32, NaN beyond the end of shorter scans.
    """
    pixels_per_line = scans.features["lines"].shape[1]
    result = torch.full((len(scans), num_lines, pixels_per_line), float("nan"))
    flattened = scans.with_format(None).flatten_indices() if scans._indices is not None else scans
    start = 0
    for chunk in flattened.data.column("lines").chunks:
        rows = chunk.storage
        ends = rows.offsets.to_numpy()
        values = rows.values.values.to_numpy(zero_copy_only=True)
        first = rows.values.offsets[0].as_py() if len(rows.values) else 0
        lines = torch.from_numpy(values[first : first + len(rows.values) * pixels_per_line].copy())
        lines = lines.view(-1, pixels_per_line)
        counts = np.minimum(np.diff(ends), num_lines)
        # one scatter: the place of each line that is kept, in the chunk and in the result
        kept = np.arange(num_lines) < counts[:, None]
        from_line = (ends[:-1, None] + np.arange(num_lines))[kept]
        result[start : start + len(counts)][torch.from_numpy(kept)] = lines[torch.from_numpy(from_line)]
        start += len(counts)
    return result


class ScanDataset(torch.utils.data.Dataset):
    """
    Scans in memory, handed out as whole batches.

    A batch is augmented and normalized as one. Its randomness depends on the seed, the epoch and the scans in it
    only, so that a run that was stopped goes on as if it had not been.

    Args:
        lines: heights `[num_scans, num_lines, pixels_per_line]`, NaN where nothing was measured.
        labels: class indices `[num_scans]` or distributions `[num_scans, num_labels]`; `None` for scans to predict.
        normalization: `"line"`, `"global"` or `"none"`.
        augmentation: `None` leaves scans as they are.
        seed: of the augmentation.
    """

    def __init__(
        self,
        lines: torch.Tensor,
        labels: np.ndarray | torch.Tensor | None,
        normalization: str = "line",
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        if labels is not None and len(labels) != len(lines):
            raise ValueError(f"Expected as many labels as scans, got {len(labels)} and {len(lines)}.")
        self.lines = lines
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.normalization = normalization
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Other random numbers for another epoch."""
        self.epoch = epoch

    def as_measured(self) -> "ScanDataset":
        """The same scans, without augmentation."""
        return ScanDataset(self.lines, self.labels, self.normalization)

    def first_lines(self, num_lines: int) -> "ScanDataset":
        """The same scans, broken off after `num_lines`."""
        return ScanDataset(self.lines[:, :num_lines], self.labels, self.normalization, self.augmentation, self.seed)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of these scans: `pixel_values`, `attention_mask` and, where known, `labels`."""
        chosen = torch.as_tensor(indices)
        lines = self.lines[chosen]
        if self.augmentation is not None:
            entropy = np.random.SeedSequence([self.seed, self.epoch, *map(int, indices)])
            generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            lines = self.augmentation(lines, generator)
        pixel_values, attention_mask = normalize_lines(lines, self.normalization)
        longest = int((attention_mask * torch.arange(1, lines.shape[1] + 1)).amax().clamp(min=1))
        batch = {"pixel_values": pixel_values[:, :longest], "attention_mask": attention_mask[:, :longest]}
        if self.labels is not None:
            batch["labels"] = self.labels[chosen]
        return batch


def collate_batch(batch: Any) -> Any:
    """Hands on what [`ScanDataset`] has made of the whole batch already."""
    return batch
