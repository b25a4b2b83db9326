"""What tests of several folders share."""

import re
from collections.abc import Callable

import pytest


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
