"""Readers: one function a kind of file, and the table of them."""

from .registry import READERS, read_scan

__all__ = ["READERS", "read_scan"]
