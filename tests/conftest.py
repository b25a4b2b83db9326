"""What tests of several folders share."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from modeling_scanline import ScanlineCausalConfig, ScanlineCausalForImageClassification, ScanlineImageProcessor


def _find_tables(text: str) -> list[list[list[str]]]:
    tables = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        assert len(rows) > 2 and all(set(cell) <= set("-:") for cell in rows[1]), f"no table, or torn:\n{block}"
        assert {len(row) for row in rows} == {len(rows[0])}, f"rows of different lengths:\n{block}"
        tables.append([rows[0], *rows[2:]])
    return tables


@pytest.fixture(scope="session")
def find_tables() -> Callable[[str], list[list[list[str]]]]:
    """The tables of a Markdown text: of each its rows of cells, heading first; fails for a torn one."""
    return _find_tables


def _save_tiny(folder: Path, label_names: Sequence[str], **settings: Any) -> Path:
    config = ScanlineCausalConfig(
        pixels_per_line=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        tokenizer_channels=[4], tokenizer_kernel_sizes=[3], id2label=dict(enumerate(label_names)), **settings,
    )  # fmt: skip
    ScanlineCausalForImageClassification(config).save_pretrained(folder)
    ScanlineImageProcessor(pixels_per_line=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_tiny() -> Callable[..., Path]:
    """`save_tiny(folder, label_names, **settings)`: leaves a tiny causal model with its processor in the folder."""
    return _save_tiny
