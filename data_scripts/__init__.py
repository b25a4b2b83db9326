"""How scans get in: readers, labels, splits, datasets, and the simulator."""

from .scan import Scan, ScanReadError, read_scan

__all__ = ["Scan", "ScanReadError", "read_scan"]
