"""`datasets` builders: each turns a kind of collection into one table of scans, resampled once and cached."""

from .arrays import MatlabRelease, NpzArrays
from .base import LabelledScan, ScanBuilder, ScanConfig, scan_features
from .files import ClassFolders, Manifest
from .hsi100 import SPMToolbox
from .simulated import Simulated
from .spliced import Spliced

BUILDERS: dict[str, type[ScanBuilder]] = {
    "simulated": Simulated,
    "folder": ClassFolders,
    "manifest": Manifest,
    "npz": NpzArrays,
    "hsi100": SPMToolbox,
    "matlab": MatlabRelease,
    "spliced": Spliced,
}

__all__ = ["BUILDERS", "LabelledScan", "ScanBuilder", "ScanConfig", "scan_features"]
