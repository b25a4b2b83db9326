# Copyright 2026 The Scanline developers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""After how many lines of a scan the verdict on the tip stays right, as one `evaluate` metric.

The file stands alone: `evaluate.load` copies it out of the project and runs it from its own cache.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Scores verdicts on STM scans after several numbers of lines: after how many the verdict on a scan stays right, after
how many the error over all scans stays at or below a stated one, and the area under the curve of accuracy by lines.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list`): the verdicts on one scan after each number of lines. Either probabilities,
        `[num_scans, num_counts, num_labels]`, every row in [0, 1] and summing to 1 within 1e-2, or NaN throughout
        where there is no verdict yet; or class indices, `[num_scans, num_counts]`, `None` or NaN where there is no
        verdict yet. No verdict counts as a wrong one. Scores before a softmax (logits) are refused.
    references (`list` of `int`): the true class indices, `[num_scans]`.
    line_counts (`list` of `int`): after how many lines the verdicts were given, `[num_counts]`, rising.
    max_error (`float` or `list` of `float`, defaults to 0.1): shares of wrong scans that are accepted, in [0, 1].

Returns:
    `dict` of plain Python numbers and lists:
    - **settled_lines** (`list` of `int` or `None`): for each scan the first of the line counts from which on the
      verdict is right, at that and all later ones; `None` where the last is wrong.
    - **median_lines**, **mean_lines** (`float`, or `None` where none is): of `settled_lines`, over the scans that are
      settled.
    - **share_never_settled** (`float`): in [0, 1], 0 is best; the share of scans that are not.
    - **lines_to_error_X** (`int` or `None`): for each `max_error` X the first of the line counts from which on the
      share of wrong scans is X at most; `None` where it is more at the last.
    - **accuracy_by_lines**, **balanced_accuracy_by_lines** (`list` of `float`): `[num_counts]`; balanced accuracy is
      the mean recall of the classes that have a reference.
    - **accuracy_area**, **balanced_accuracy_area** (`float`): in [0, 1], 1 is best; the area under these curves
      against the logarithm of the lines (trapezoids), divided by the width. Each doubling of the lines weighs alike.
    - **line_counts** (`list` of `int`), **num_scans** (`int`): what was scored.

Raises:
    `ValueError`: on verdicts that are none, references out of range, lengths that differ, nothing to score, or a bad
    option. What `add_batch` refuses is not added, and what was added before stays.

Examples:
    >>> import evaluate
    >>> lines_to_decision = evaluate.load("metrics/lines_to_decision")
    >>> results = lines_to_decision.compute(
    ...     predictions=[[0, 0, 0], [1, 0, 1], [None, 2, 2], [2, 2, 0]],
    ...     references=[0, 1, 2, 2],
    ...     line_counts=[5, 10, 20],
    ...     max_error=0.25,
    ... )
    >>> results["settled_lines"], results["median_lines"], results["share_never_settled"]
    ([5, 20, 10, None], 10.0, 0.25)
    >>> results["accuracy_by_lines"], results["lines_to_error_0.25"]
    ([0.75, 0.75, 0.75], 5)
"""

_CITATION = """\
@article{gordon2020embedding,
  title   = {Embedding human heuristics in machine-learning-enabled probe microscopy},
  author  = {Gordon, Oliver M. and Junqueira, Filipe L. Q. and Moriarty, Philip J.},
  journal = {Machine Learning: Science and Technology},
  volume  = {1},
  number  = {1},
  pages   = {015001},
  year    = {2020},
  doi     = {10.1088/2632-2153/ab42ec}
}
"""

# Half-precision probabilities sum to 1 within about this; the rows of a matrix of logits do not.
_PROBABILITY_TOLERANCE = 1e-2
_NO_VERDICT = -1  # no class has this index, so it is wrong without further ado


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class LinesToDecision(evaluate.Metric):
    """How soon the verdicts on scans become right, and stay so."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # As kept: probabilities become class indices on their way in, for nothing here asks for more.
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=[
                "https://doi.org/10.1088/2632-2153/ab42ec",
                "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.balanced_accuracy_score.html",
            ],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one scan: `[num_counts, num_labels]` or `[num_counts]`, and a class index. Checked like `add_batch`."""
        # The base class would cut a reference of 1.5 to 1 without a word.
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add `[batch, num_counts, num_labels]` or `[batch, num_counts]`, and class indices `[batch]`.

        Raises `ValueError` for a batch that cannot be scored. It is checked here, where its rows can still be named,
        and before anything is written, so that a bad batch costs none of the good ones.
        """
        verdicts, classes = _check_batch(predictions, references)
        super().add_batch(predictions=verdicts, references=classes, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Score what was added, and `predictions` and `references` where given, and start afresh.

        Returns the results, or `None` on every process but the first of a distributed evaluation.
        """
        if predictions is None and references is None and self.writer is None and self.num_process == 1:
            raise ValueError(
                "lines_to_decision: there is nothing to score: pass predictions and references, or call add_batch "
                "before compute."
            )
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions: list[list[int]],
        references: list[int],
        line_counts: Sequence[int] | None = None,
        max_error: float | Sequence[float] = 0.1,
    ) -> dict[str, Any]:
        if len(predictions) == 0:
            raise ValueError(
                "lines_to_decision: there is nothing to score: predictions and references are empty; check that the "
                "split or the folder holds labelled scans."
            )
        widths = sorted({len(row) for row in predictions})
        if len(widths) > 1:
            raise ValueError(
                f"lines_to_decision: the batches hold different numbers of verdicts a scan, {widths}: score the "
                "predictions of one model at a time."
            )
        counts = _check_line_counts(line_counts, widths[0])
        errors = _check_max_error(max_error)
        classes = np.asarray(references)
        right = np.asarray(predictions) == classes[:, None]

        settled = [counts[first] if first < len(counts) else None for first in _first_of_lasting(right).tolist()]
        lines = [count for count in settled if count is not None]
        accuracy = right.mean(axis=0)
        recalls = [right[classes == label].mean(axis=0) for label in np.unique(classes)]
        balanced_accuracy = np.mean(recalls, axis=0)
        results: dict[str, Any] = {
            "settled_lines": settled,
            "median_lines": float(np.median(lines)) if lines else None,
            "mean_lines": float(np.mean(lines)) if lines else None,
            "share_never_settled": settled.count(None) / len(settled),
        }
        # Whole numbers divided, not 1 - accuracy: 1 wrong scan in 10 is 0.1, and not a little more.
        error = (~right).sum(axis=0) / len(right)
        for name, accepted in errors.items():
            first = int(_first_of_lasting(error <= accepted))
            results[f"lines_to_error_{name}"] = counts[first] if first < len(counts) else None
        results["accuracy_by_lines"] = accuracy.tolist()
        results["balanced_accuracy_by_lines"] = balanced_accuracy.tolist()
        results["accuracy_area"] = _area(counts, accuracy)
        results["balanced_accuracy_area"] = _area(counts, balanced_accuracy)
        results["line_counts"] = counts
        results["num_scans"] = len(settled)
        return results


def _first_of_lasting(good: np.ndarray) -> np.ndarray:
    """First place of `[..., num_counts]` from which on all are true, `num_counts` where the last is not: `[...]`."""
    lasting = np.logical_and.accumulate(good[..., ::-1], axis=-1)
    return good.shape[-1] - lasting.sum(axis=-1)


def _area(line_counts: list[int], values: np.ndarray) -> float:
    """Mean of `values` `[num_counts]` over the logarithm of the lines; that of a single count is its value."""
    if len(line_counts) == 1:
        return float(values[0])
    steps = np.diff(np.log(line_counts))
    return float(steps @ (values[1:] + values[:-1]) / 2 / steps.sum())


def _check_batch(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return verdicts `int64 [batch, num_counts]` and classes `int64 [batch]`, or raise a `ValueError`."""
    if predictions is None or references is None:
        absent = "predictions" if predictions is None else "references"
        raise ValueError(f"lines_to_decision: {absent} is missing: pass both predictions and references.")
    if len(predictions) != len(references):
        raise ValueError(
            f"lines_to_decision: got {len(predictions)} predictions and {len(references)} references: pass one of "
            "each for every scan; scans are the first axis of predictions, line counts the second."
        )
    if len(predictions) == 0:  # a process without a share of the last batch; an empty whole is refused in compute
        return np.empty((0, 0), dtype=np.int64), np.empty(0, dtype=np.int64)

    try:
        if hasattr(predictions, "bfloat16"):  # a tensor, of which numpy takes most, but no bfloat16
            predictions = predictions.detach().cpu().double()
        # Half precision included; None becomes NaN.
        values = np.asarray(predictions, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: rows that are tensors and require grad
        values = None
    if values is None or values.ndim not in (2, 3) or values.size == 0 or values.shape[2:] == (1,):
        got = "rows that differ in length or are not numbers" if values is None else f"{values.shape}"
        raise ValueError(
            "lines_to_decision: predictions must be probabilities of shape [num_scans, num_counts, num_labels] with "
            f"at least 2 classes, or class indices of shape [num_scans, num_counts], got {got}: pass the verdict "
            "after each number of lines."
        )
    verdicts = _from_probabilities(values) if values.ndim == 3 else _from_indices(values)

    classes = np.asarray(references)
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise ValueError(
            "lines_to_decision: references must be class indices, whole numbers of shape [num_scans], got "
            f"{classes.dtype} of shape {classes.shape}: map class names through label2id, and drop scans without a "
            "label."
        )
    valid = classes >= 0
    if values.ndim == 3:
        valid &= classes < values.shape[2]
    if not valid.all():
        row = int(np.argmin(valid))
        known = f"lie in 0..{values.shape[2] - 1}" if values.ndim == 3 else "be at least 0"
        raise ValueError(
            f"lines_to_decision: references[{row}] is {classes[row]}, but a class index must {known}: check that the "
            "labels and the model use the same id2label."
        )
    return verdicts, classes.astype(np.int64)


def _from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Most probable classes `int64 [batch, num_counts]` of `[batch, num_counts, num_labels]`, the first of equals."""
    missing = np.isnan(probabilities).all(axis=2)
    in_range = (probabilities >= -_PROBABILITY_TOLERANCE) & (probabilities <= 1 + _PROBABILITY_TOLERANCE)
    sums = probabilities.sum(axis=2)
    # The 1e-7 keeps a sum that is off by the tolerance itself, give or take a float32 rounding, on the good side.
    proper = in_range.all(axis=2) & (np.abs(sums - 1) <= _PROBABILITY_TOLERANCE + 1e-7)
    if not (proper | missing).all():
        row, count = np.argwhere(~(proper | missing))[0].tolist()
        given = probabilities[row, count]
        if not np.isfinite(given).all():
            fault = "holds NaN or infinity beside numbers: pass NaN for every class where there is no verdict"
        else:
            fault = f"sums to {sums[row, count]:.6g}, not 1" if in_range[row, count].all() else "leaves [0, 1]"
            fault += ": pass probabilities; if these are logits, apply a softmax first"
        raise ValueError(f"lines_to_decision: predictions[{row}][{count}] is {_show(given)}, which {fault}.")
    return np.where(missing, _NO_VERDICT, np.where(missing[..., None], 0, probabilities).argmax(axis=2))


def _from_indices(indices: np.ndarray) -> np.ndarray:
    """Class indices `int64 [batch, num_counts]` from `float64`, in which NaN stands for no verdict."""
    missing = np.isnan(indices)
    proper = missing | ((indices >= 0) & np.isfinite(indices) & (indices == np.floor(indices)))
    if not proper.all():
        row, count = np.argwhere(~proper)[0].tolist()
        raise ValueError(
            f"lines_to_decision: predictions[{row}][{count}] is {indices[row, count]:g}, which is no class index: "
            "pass whole numbers from 0 on, None where there is no verdict yet, or probabilities of shape [num_scans, "
            "num_counts, num_labels]."
        )
    return np.where(missing, _NO_VERDICT, indices).astype(np.int64)


def _check_line_counts(line_counts: Sequence[int] | None, num_counts: int) -> list[int]:
    """Return the numbers of lines as plain integers."""
    if line_counts is None:
        raise ValueError(
            f"lines_to_decision: line_counts is missing: pass the {num_counts} numbers of lines after which the "
            "verdicts were given."
        )
    counts = np.asarray(line_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 1).any() or (np.diff(counts) < 1).any():
        raise ValueError(
            f"lines_to_decision: line_counts must be rising whole numbers of at least 1, got {line_counts!r}."
        )
    if len(counts) != num_counts:
        raise ValueError(
            f"lines_to_decision: line_counts has {len(counts)} numbers, but the scans have {num_counts} verdicts "
            "each: pass one number for each verdict, in order."
        )
    return counts.tolist()


def _check_max_error(max_error: float | Sequence[float]) -> dict[str, float]:
    """Return the accepted errors by their names."""
    values = np.atleast_1d(np.asarray(max_error))
    if values.ndim != 1 or values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"lines_to_decision: max_error must be a number in [0, 1] or a list of such, got {max_error!r}."
        )
    return {f"{value:g}": value for value in values.tolist()}


def _show(row: np.ndarray) -> str:
    """Format a row of scores for a message, at most 8 of them."""
    values = ", ".join(f"{value:.4g}" for value in row[:8])
    return f"[{values}, ...]" if len(row) > 8 else f"[{values}]"
