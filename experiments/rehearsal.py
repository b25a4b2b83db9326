"""
Rehearsal: simulated scans among those that a model is trained on, which was trained on simulated ones before.

Real scans show some states seldom, and some sizes of scans not at all; of these a model would forget what simulated
scans have taught it. After Robins 1995, Connection Science 7, 123.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from configuration import DataArguments
from data_scripts.scan_dataset import StoredLines
from data_scripts.simulation import TIP_STATES

logger = logging.getLogger(__name__)


def are_simulated(label_names: Sequence[str]) -> bool:
    """Whether these classes, and others perhaps, are those of simulated scans."""
    return set(TIP_STATES) <= set(label_names)


def add_simulated(
    arguments: DataArguments, lines: torch.Tensor | StoredLines, labels: np.ndarray, label_names: Sequence[str]
) -> tuple[torch.Tensor | StoredLines, np.ndarray]:
    """
    Training scans and `rehearsal_scans` simulated ones after them.

    Args:
        arguments: of the run, and what is simulated.
        lines: heights of the training scans `[num_scans, num_lines, pixels_per_line]`, NaN where not measured.
        labels: class indices `[num_scans]`, or distributions `[num_scans, num_labels]`.
        label_names: of the classes.

    Returns:
        Lines and labels of all of them; those given where the classes are not those of simulated scans.

    Raises:
        ValueError: if the training scans are not held in memory.
    """
    if not isinstance(lines, torch.Tensor):
        raise ValueError("rehearsal_scans are trained on beside scans in memory: give --keep_in_memory true as well.")
    flatten = arguments.normalization == "flat_line"
    if not are_simulated(label_names):
        logger.warning(
            "rehearsal_scans are left out: simulated scans are of %s, these of %s.",
            ", ".join(TIP_STATES),
            ", ".join(label_names),
        )
        return lines, labels
    # the next seed: where the dataset is simulated itself, some of its scans are held out
    seed = arguments.simulation_seed + 1
    wanted = replace(
        arguments, dataset="simulated", data_dir=None, num_scans=arguments.rehearsal_scans, simulation_seed=seed
    )
    scans = wanted.load(flatten=flatten)
    names = scans.features["label"].names
    places = np.array([label_names.index(name) for name in names])[np.asarray(scans["label"])]
    simulated = StoredLines(scans, arguments.max_lines)[np.arange(len(scans))]
    added = places if labels.ndim == 1 else np.eye(len(label_names), dtype=labels.dtype)[places]
    return torch.cat((lines, simulated)), np.concatenate((labels, added))
