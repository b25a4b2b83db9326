"""Labelled arrays in one file: NumPy's `.npz`, and the MATLAB release of the H:Si(100) scans."""

import logging
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import merge_scores
from ..scan import Scan, ScanReadError, session_of, to_lines
from .base import LabelledScan, ScanBuilder, in_shards, one_hot
from .hsi100 import SPM_TOOLBOX_CLASSES

logger = logging.getLogger(__name__)

MAX_UNNAMED_CLASSES = 1000
MATLAB_SIZE = 128
# as reference results on the release name them: the order is not that of the merged classes
MATLAB_CLASSES = ("Asymmetries", "Individual Atoms", "Dimers", "Rows", "Tip Change", "Bad/Blurry")
ORIENTATIONS = ("auto", "columns", "rows")


class NpzArrays(ScanBuilder):
    """
    A `.npz` file with `images` `[num_scans, lines, pixels]` and `labels` `[num_scans]`.

    Optional: `sessions` and `scan_ids` `[num_scans]`, and `label_names` `[num_labels]`. A label of -1 is none.
    """

    def source_files(self) -> list[Path]:
        if self.root is None or not self.root.is_file():
            raise ScanReadError(f"dataset npz needs data_dir: a .npz file with images and labels, got {self.root}.")
        return [self.root]

    def _load(self, *names: str) -> dict[str, np.ndarray]:
        assert self.root is not None
        try:
            if not zipfile.is_zipfile(self.root):
                raise ValueError("not a zip file")
            with np.load(self.root, allow_pickle=False) as arrays:
                missing = " or ".join(sorted({"images", "labels"} - set(arrays)))
                if missing:
                    raise ScanReadError(f"{self.root}: no array {missing}; it holds {', '.join(arrays) or 'none'}.")
                return {name: arrays[name] for name in names if name in arrays}
        except ScanReadError:
            raise
        except Exception as error:  # zipfile, numpy and pickle refusals
            pickled = "pickled objects are not loaded" if "pickle" in str(error).lower() else str(error)
            raise ScanReadError(f"{self.root}: cannot be read as .npz arrays of numbers ({pickled}).") from error

    def label_names(self) -> list[str]:
        arrays = self._load("labels", "label_names")
        labels = arrays["labels"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0:
            raise ScanReadError(
                f"{self.root}: labels must be whole numbers [num_scans], got {labels.dtype} {list(labels.shape)}."
            )
        if "label_names" in arrays:
            names = [str(name) for name in arrays["label_names"].ravel()]
            if arrays["label_names"].ndim != 1 or len(set(names)) < len(names):
                raise ScanReadError(
                    f"{self.root}: label_names must be different names [num_labels], got {', '.join(names)} of shape "
                    f"{list(arrays['label_names'].shape)}."
                )
        elif labels.max() < 0:
            raise ScanReadError(
                f"{self.root}: no scan has a label, and label_names does not say which there could be."
            )
        elif labels.max() >= MAX_UNNAMED_CLASSES:
            raise ScanReadError(
                f"{self.root}: labels go up to {labels.max()}, and more than {MAX_UNNAMED_CLASSES} classes need "
                "label_names."
            )
        else:
            names = [str(label) for label in range(int(labels.max()) + 1)]
        if labels.min() < -1 or labels.max() >= len(names):
            raise ScanReadError(
                f"{self.root}: labels must lie between -1 (none) and {len(names) - 1}, the last of "
                f"{len(names)} classes; got {labels.min()} to {labels.max()}."
            )
        return names

    def shards(self) -> list[range]:
        return in_shards(range(len(self._load("labels")["labels"])))

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        names = self.label_names()
        arrays = self._load("images", "labels", "sessions", "scan_ids")
        images, labels = arrays["images"], arrays["labels"]
        if images.ndim != 3 or images.dtype.kind not in "fiub" or len(images) != len(labels):
            raise ScanReadError(
                f"{self.root}: images must be numbers [num_scans, lines, pixels] and as many as labels, got "
                f"{images.dtype} {list(images.shape)} and {len(labels)} labels."
            )
        for name in ("sessions", "scan_ids"):
            if name in arrays and arrays[name].shape != labels.shape:
                raise ScanReadError(
                    f"{self.root}: {name} must be [num_scans] as labels are, got {list(arrays[name].shape)} for "
                    f"{len(labels)} labels."
                )
        for shard in shards:
            for index in shard:
                scan_id = str(arrays["scan_ids"][index]) if "scan_ids" in arrays else str(index)
                scan = Scan(
                    lines=to_lines(images[index]),
                    scan_id=scan_id,
                    session=str(arrays["sessions"][index]) if "sessions" in arrays else session_of(scan_id),
                    source=str(self.root),
                )
                yield LabelledScan(scan, one_hot(int(labels[index]), len(names)))
            yield None


class MatlabRelease(ScanBuilder):
    """
    The MATLAB release (`.mat`, v5 or v7.3): `x_raw` `[128, num_scans * 128]`, all scans side by side, and `y`, the
    number of the class of each column or scan, or one-hot rows, in the order of `MATLAB_CLASSES`.

    Whether the columns of a scan are its lines is found from the data: every line was made flat on its own, so that
    the lines have nearly the same mean, and what crosses them has not. The release holds augmented copies and does
    not say of what: split it with `dedupe`, or scans and their copies stand on both sides.
    """

    OPTIONS = ("orientation",)

    def source_files(self) -> list[Path]:
        if self.root is None or not self.root.is_file():
            raise ScanReadError(f"dataset matlab needs data_dir: a .mat file with x_raw and y, got {self.root}.")
        return [self.root]

    def label_names(self) -> list[str]:
        return list(SPM_TOOLBOX_CLASSES)

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        """Blocks `[num_scans, 128, 128]` (the columns of each scan as rows) and class numbers from 0 `[num_scans]`."""
        arrays = read_mat(self.source_files()[0], ("x_raw", "y"))
        raw, classes = (np.squeeze(arrays[name]) for name in ("x_raw", "y"))
        if (
            raw.ndim != 2
            or MATLAB_SIZE not in raw.shape
            or max(raw.shape) % MATLAB_SIZE
            or raw.dtype.kind not in "fiub"
        ):
            raise ScanReadError(
                f"{self.root}: x_raw must be numbers [{MATLAB_SIZE}, num_scans * {MATLAB_SIZE}], got {raw.dtype} "
                f"{list(raw.shape)}."
            )
        # v7.3 files come transposed: there the columns are rows already
        columns = raw if raw.shape[1] == MATLAB_SIZE and raw.shape[0] != MATLAB_SIZE else raw.T
        blocks = columns.reshape(-1, MATLAB_SIZE, MATLAB_SIZE)
        return blocks, self._class_numbers(classes, len(blocks))

    def _class_numbers(self, classes: np.ndarray, num_scans: int) -> np.ndarray:
        num_classes = len(MATLAB_CLASSES)
        if classes.ndim == 2 and num_classes in classes.shape:  # one-hot
            classes = classes if classes.shape[1] == num_classes else classes.T
            if not ((classes == 0) | (classes == 1)).all() or not (classes.sum(axis=1) == 1).all():
                raise ScanReadError(f"{self.root}: y {list(classes.shape)} is not one-hot.")
            classes = classes.argmax(axis=1)
        classes = np.atleast_1d(classes)
        if classes.ndim == 1 and len(classes) == num_scans * MATLAB_SIZE:  # one for each column
            of_scans = classes.reshape(num_scans, MATLAB_SIZE)
            if (of_scans != of_scans[:, :1]).any():
                raise ScanReadError(f"{self.root}: y changes within a scan of {MATLAB_SIZE} columns.")
            classes = of_scans[:, 0]
        if classes.shape != (num_scans,) or classes.dtype.kind not in "fiu" or (classes % 1).any():
            raise ScanReadError(
                f"{self.root}: y must be class numbers of the {num_scans} scans or of their columns, got "
                f"{classes.dtype} {list(classes.shape)}."
            )
        classes = classes.astype(np.int64)
        first = 0 if (classes == 0).any() else 1  # MATLAB counts from 1
        if classes.min() < 0 or classes.max() - first >= num_classes:
            raise ScanReadError(
                f"{self.root}: y must number {num_classes} classes, got {classes.min()} to {classes.max()}."
            )
        return classes - first

    def shards(self) -> list[range]:
        return in_shards(range(len(self._load()[0])))

    def scans(self, shards: Iterable[Any]) -> Iterator[LabelledScan | None]:
        blocks, classes = self._load()
        wanted = self.options.get("orientation") or "auto"
        if wanted not in ORIENTATIONS:
            raise ScanReadError(f"orientation must be one of {', '.join(ORIENTATIONS)}, got {wanted!r}.")
        found, flatness = find_orientation(blocks)
        lines_are_columns = (found if wanted == "auto" else wanted) == "columns"
        logger.warning(
            "%s: the %s of x_raw are taken as the lines (%s); means vary %.3f times as much along one direction as "
            "along the other.",
            self.root,
            "columns" if lines_are_columns else "rows",
            "as its values say" if wanted == "auto" else "as asked for",
            flatness,
        )
        members = list(MATLAB_CLASSES)
        votes = merge_scores(np.eye(len(members), dtype=np.float32), members, SPM_TOOLBOX_CLASSES)
        for shard in shards:
            for index in shard:
                block = blocks[index] if lines_are_columns else blocks[index].T
                scan = Scan(lines=to_lines(block), scan_id=str(index), source=str(self.root))
                yield LabelledScan(scan, votes[classes[index]])
            yield None


def find_orientation(blocks: np.ndarray) -> tuple[str, float]:
    """
    Whether the lines of scans are the columns of `x_raw`, by which of the two have the same mean.

    Args:
        blocks: `[num_scans, 128, 128]`, the columns of each scan as rows.

    Returns:
        `"columns"` or `"rows"`, and how much the means of lines vary as a share of those across them.
    """
    some = np.asarray(blocks[:: max(1, len(blocks) // 256)], dtype=np.float64)
    of_columns, of_rows = (float(np.median(some.mean(axis=axis).std(axis=1))) for axis in (2, 1))
    low, high = sorted((of_columns, of_rows))
    return ("columns" if of_columns <= of_rows else "rows"), low / high if high else 1.0


def read_mat(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """
    Arrays of a MATLAB file, v5 by scipy, v7.3 (which is HDF5, with all axes reversed) by h5py.

    Raises:
        ScanReadError: if it cannot be read, or lacks one of the names.
    """
    try:
        with path.open("rb") as file:
            is_hdf5 = b"\x89HDF\r\n\x1a\n" in file.read(1024)
        if is_hdf5:
            import h5py

            with h5py.File(path, "r") as data:
                found = {name: data[name][()] for name in names if isinstance(data.get(name), h5py.Dataset)}
        else:
            from scipy.io import loadmat

            found = loadmat(path, variable_names=list(names))
    except ImportError as error:
        raise ScanReadError(
            f"{path}: needs the package {error.name}; in Scanline's folder: pip install -e '.[instruments]'."
        ) from error
    except Exception as error:  # both raise what zlib and struct think of
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ScanReadError(f"{path}: cannot be read as a MATLAB file ({reason}).") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ScanReadError(f"{path}: holds no array {' or '.join(missing)}.")
    return {name: np.asarray(found[name]) for name in names}
