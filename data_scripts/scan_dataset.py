"""Batches of scans for the Trainer, made as batches and never scan by scan."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch

from modeling_scanline.image_processing_scanline import normalize_lines

from .augmentation import Augmentation

LONGEST = 2**15  # lines: more than any scan has


class StoredLines:
    """
    The lines of scans where they are stored: memory-mapped Arrow, of which a batch takes what it needs.

    Indexing with scan numbers `[batch]` gives `[batch, num_lines, pixels_per_line]` in float32, NaN beyond the end of
    shorter scans.

    Args:
        scans: with a column `lines`.
        num_lines: first lines of each scan to take.
    """

    def __init__(self, scans: datasets.Dataset, num_lines: int):
        self.num_lines = num_lines
        self.pixels_per_line = scans.features["lines"].shape[1]
        flattened = scans.with_format(None).flatten_indices() if scans._indices is not None else scans
        self._chunks: list[np.ndarray] = []  # lines [lines of all scans of a chunk, pixels_per_line]
        chunk_of, starts, counts = [], [], []
        for number, chunk in enumerate(flattened.data.column("lines").chunks):
            rows = chunk.storage
            ends = rows.offsets.to_numpy()
            values = rows.values.values.to_numpy(zero_copy_only=True)
            first = rows.values.offsets[0].as_py() if len(rows.values) else 0
            values = values[first : first + len(rows.values) * self.pixels_per_line]
            self._chunks.append(values.reshape(-1, self.pixels_per_line))
            chunk_of.append(np.full(len(chunk), number))
            starts.append(ends[:-1])
            counts.append(np.minimum(np.diff(ends), num_lines))
        self._chunk_of, self._starts, self._counts = (
            np.concatenate(parts) if parts else np.empty(0, int) for parts in (chunk_of, starts, counts)
        )

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of all: `[num_scans, num_lines, pixels_per_line]`."""
        return len(self), self.num_lines, self.pixels_per_line

    def __getitem__(self, indices: Any) -> torch.Tensor:
        chosen = np.asarray(indices, dtype=int).reshape(-1)
        result = np.full((len(chosen), self.num_lines, self.pixels_per_line), np.nan, dtype=np.float32)
        # each scan is one block of memory: nothing is gained by gathering it line by line
        places = zip(self._chunk_of[chosen], self._starts[chosen], self._counts[chosen], strict=True)
        for lines, (chunk, start, count) in zip(result, places, strict=True):
            lines[:count] = self._chunks[chunk][start : start + count]
        return torch.from_numpy(result)

    @property
    def num_stored(self) -> np.ndarray:
        """Lines of each scan, measured or not, `[num_scans]`."""
        return self._counts

    def values(self) -> np.ndarray:
        """The lines of all scans one after the other, `[lines of all, pixels_per_line]`."""
        places = zip(self._chunk_of, self._starts, self._counts, strict=True)
        blocks = [self._chunks[chunk][start : start + count] for chunk, start, count in places]
        return np.concatenate(blocks) if blocks else np.empty((0, self.pixels_per_line), np.float32)

    def count_measured(self) -> np.ndarray:
        """Lines of each scan in which anything was measured, `[num_scans]`."""
        counts = np.zeros(len(self), dtype=np.int64)
        for number, chunk in enumerate(self._chunks):
            cumulated = np.append(0, np.cumsum(np.isfinite(chunk).any(axis=1)))
            scans = np.flatnonzero(self._chunk_of == number)
            starts = self._starts[scans]
            counts[scans] = cumulated[starts + self._counts[scans]] - cumulated[starts]
        return counts

    def select(self, indices: Any) -> "StoredLines":
        """These scans only."""
        chosen = copy.copy(self)
        for name in ("_chunk_of", "_starts", "_counts"):
            setattr(chosen, name, getattr(self, name)[np.asarray(indices, dtype=int)])
        return chosen

    def first_lines(self, num_lines: int) -> "StoredLines":
        """The same scans, broken off after `num_lines`."""
        broken_off = copy.copy(self)
        broken_off.num_lines = num_lines
        broken_off._counts = np.minimum(self._counts, num_lines)
        return broken_off


def lines_of(scans: datasets.Dataset, num_lines: int) -> torch.Tensor:
    """
    The lines of all scans as one tensor.

    Args:
        scans: with a column `lines`.
        num_lines: first lines of each scan to take.

    Returns:
        `[num_scans, num_lines, pixels_per_line]` in float32, NaN beyond the end of shorter scans.
    """
    stored = StoredLines(scans, num_lines)
    return stored[np.arange(len(stored))]


class ScanDataset(torch.utils.data.Dataset):
    """
    Scans, in memory or on the disk, handed out as whole batches.

    A batch is augmented and normalized as one. Its randomness depends on the seed, the epoch and the scans in it
    only, so that a run that was stopped goes on as if it had not been.

    Args:
        lines: heights `[num_scans, num_lines, pixels_per_line]`, NaN where nothing was measured.
        labels: class indices `[num_scans]` or distributions `[num_scans, num_labels]`; `None` for scans to predict.
        normalization: `"line"`, `"global"` or `"none"`.
        augmentation: `None` leaves scans as they are.
        seed: of the augmentation.
        segment_lines: while `epoch` is less than `segment_epochs`, a batch holds so many consecutive lines of each
            scan, from a random one on; 0 all lines always.
        segment_epochs: see `segment_lines`.
    """

    def __init__(
        self,
        lines: "torch.Tensor | StoredLines",
        labels: np.ndarray | torch.Tensor | None,
        normalization: str = "line",
        augmentation: Augmentation | None = None,
        seed: int = 0,
        segment_lines: int = 0,
        segment_epochs: int = 0,
    ):
        if labels is not None and len(labels) != len(lines):
            raise ValueError(f"Expected as many labels as scans, got {len(labels)} and {len(lines)}.")
        self.lines = lines
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.normalization = normalization
        self.augmentation = augmentation
        self.seed = seed
        self.segment_lines = segment_lines
        self.segment_epochs = segment_epochs
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # with workers that outlive an epoch

    @property
    def epoch(self) -> int:
        """What random numbers, and segments, depend on."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Other random numbers for another epoch; in the workers of a data loader, too."""
        self._epoch.fill_(epoch)

    @functools.cached_property
    def measured(self) -> torch.Tensor:
        """In which lines anything was measured, `[num_scans, num_lines]`."""
        blocks = torch.arange(len(self)).split(1024)  # not all at once: they may not fit into memory
        masks = [self.lines[block].isfinite().any(dim=-1) for block in blocks]
        return torch.cat(masks) if masks else torch.empty(self.lines.shape[:2], dtype=torch.bool)

    def select(self, indices: np.ndarray) -> "ScanDataset":
        """These scans only, as they are handed out for scoring: whole, and not augmented."""
        lines = self.lines.select(indices) if isinstance(self.lines, StoredLines) else self.lines[indices]
        labels = None if self.labels is None else self.labels[indices]
        return ScanDataset(lines, labels, self.normalization)

    def first_lines(self, num_lines: int) -> "ScanDataset":
        """The same scans, broken off after `num_lines`."""
        lines = self.lines
        lines = lines.first_lines(num_lines) if isinstance(lines, StoredLines) else lines[:, :num_lines]
        return ScanDataset(lines, self.labels, self.normalization, self.augmentation, self.seed)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of these scans: `pixel_values`, `attention_mask` and, where known, `labels`."""
        chosen = torch.as_tensor(indices)
        lines = self.lines[chosen]
        segments = self.segment_lines if self.epoch < self.segment_epochs else 0
        if self.augmentation is not None or segments:
            entropy = np.random.SeedSequence([self.seed, self.epoch, *map(int, indices)])
            generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            if self.augmentation is not None:
                lines = self.augmentation(lines, generator)
            if segments:
                lines = _take_segments(lines, segments, generator)
        pixel_values, attention_mask = normalize_lines(lines, self.normalization)
        longest = int((attention_mask * torch.arange(1, lines.shape[1] + 1)).amax().clamp(min=1))
        batch = {"pixel_values": pixel_values[:, :longest], "attention_mask": attention_mask[:, :longest]}
        if self.labels is not None:
            batch["labels"] = self.labels[chosen]
        return batch


def _take_segments(lines: torch.Tensor, num_lines: int, generator: torch.Generator) -> torch.Tensor:
    """`num_lines` consecutive measured lines of each scan, from a random one on; shorter scans from their start."""
    numbers = torch.arange(1, lines.shape[1] + 1)
    count = (lines.isfinite().any(dim=-1) * numbers).amax(dim=1, keepdim=True)
    spare = (count - num_lines).clamp(min=0)
    start = (torch.rand(len(lines), 1, generator=generator) * (spare + 1)).long()
    places = start + torch.arange(min(num_lines, lines.shape[1]))
    return lines[torch.arange(len(lines)).unsqueeze(1), places]


def collate_batch(batch: Any) -> Any:
    """Hands on what [`ScanDataset`] has made of the whole batch already."""
    return batch
