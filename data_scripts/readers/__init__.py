"""Readers: one function a kind of file, and the table of them."""

from .registry import DRAWN, READERS, files_of, is_scan_file, read_scan

__all__ = ["DRAWN", "READERS", "files_of", "is_scan_file", "read_scan"]
