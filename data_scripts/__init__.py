"""How scans get in: readers, labels, splits, datasets, and the simulator."""

from .readers import read_scan
from .scan import Scan, ScanReadError

__all__ = ["Scan", "ScanReadError", "read_scan"]
