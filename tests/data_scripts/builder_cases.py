"""Sizes and names that the tests of builders share."""

from pathlib import Path

WIDTH, MAX_LINES = 8, 8
SESSION = "2015Sep30-094843"
HSI100 = Path(__file__).resolve().parents[3] / "shared" / "hsi100"
