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
"""The figures of merit for the state of a scanning tunneling microscope's tip, as one `evaluate` metric.

The file stands alone: `evaluate.load` copies it out of the project and runs it from its own cache.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score

_DESCRIPTION = """\
Scores class probabilities for the state of an STM tip: accuracy, balanced accuracy, macro one-vs-rest AUROC, expected
calibration error, precision, recall and F1 of every class, and the confusion matrix.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): the probabilities of one scan, `[num_scans, num_labels]`; every row lies
        in [0, 1] and sums to 1 within 1e-2. Scores before a softmax (logits) are refused.
    references (`list` of `int`): the true class indices, `[num_scans]`, each in `[0, num_labels)`.
    label_names (`list` of `str`, *optional*): the name of each class, in the order of the columns. The keys of the
        result end in them. Defaults to the class indices `"0"`, `"1"`, ...
    num_bins (`int`, defaults to 15): how many bins of equal width the calibration error uses.
    on_missing_class (`"error"` or `"skip"`, defaults to `"error"`): what to do when a class has no reference, so that
        its recall and AUROC are undefined. `"skip"` averages over the classes that are present.

Returns:
    `dict` of plain Python numbers, lists and strings:
    - **accuracy** (`float`): the share of scans whose most probable class is the true one.
    - **balanced_accuracy** (`float`): the mean of the recalls of the classes present.
    - **auroc** (`float`, or `None` where `"skip"` leaves a single class): the mean over the classes present of the
      area under the one-vs-rest ROC curve.
    - **expected_calibration_error** (`float`): in [0, 1], 0 is best; top-label confidence against accuracy.
    - **precision_NAME**, **recall_NAME**, **f1_NAME** (`float`), **support_NAME** (`int`): for each class. A 0/0 is 0,
      as `zero_division=0` has it in scikit-learn; a support of 0 tells the two apart.
    - **confusion_matrix** (`list` of `list` of `int`): `[num_labels, num_labels]`, true class by predicted class.
    - **num_scans** (`int`): how many scans were scored.
    - **missing_classes** (`list` of `str`): the classes without a reference; empty unless `"skip"`.

Raises:
    `ValueError`: on probabilities that are none, references out of range, lengths that differ, nothing to score, a
    class without a reference, or a bad option. What `add_batch` refuses is not added, and what was added before stays.

Examples:
    >>> import evaluate
    >>> tip_state = evaluate.load("metrics/tip_state")
    >>> results = tip_state.compute(
    ...     predictions=[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]],
    ...     references=[0, 0, 1, 1],
    ...     label_names=["individual_atoms", "rows"],
    ... )
    >>> results["balanced_accuracy"], results["auroc"], results["recall_rows"]
    (0.75, 0.75, 0.5)
    >>> results["confusion_matrix"]
    [[2, 0], [1, 1]]
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
@inproceedings{guo2017calibration,
  title     = {On Calibration of Modern Neural Networks},
  author    = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {Proceedings of the 34th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {70},
  pages     = {1321--1330},
  year      = {2017}
}
"""

# Half-precision probabilities sum to 1 within about this; the rows of a matrix of logits do not.
_PROBABILITY_TOLERANCE = 1e-2


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TipState(evaluate.Metric):
    """Accuracy, ranking and calibration of tip-state probabilities."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=[
                "https://doi.org/10.1088/2632-2153/ab42ec",
                "https://proceedings.mlr.press/v70/guo17a.html",
                "https://scikit-learn.org/stable/modules/model_evaluation.html",
            ],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one scan: probabilities `[num_labels]` and a class index. Checked like `add_batch`."""
        # The base class would cut a reference of 1.5 to 1 without a word.
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add probabilities `[batch, num_labels]` and class indices `[batch]`.

        Raises `ValueError` for a batch that cannot be scored. It is checked here, where its rows can still be named,
        and before anything is written, so that a bad batch costs none of the good ones.
        """
        probabilities, classes = _check_batch(predictions, references)
        super().add_batch(predictions=probabilities, references=classes, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Score what was added, and `predictions` and `references` where given, and start afresh.

        Returns the results, or `None` on every process but the first of a distributed evaluation.
        """
        if predictions is None and references is None and self.writer is None and self.num_process == 1:
            raise ValueError(
                "tip_state: there is nothing to score: pass predictions and references, or call add_batch before "
                "compute."
            )
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[int],
        label_names: list[str] | None = None,
        num_bins: int = 15,
        on_missing_class: str = "error",
    ) -> dict[str, Any]:
        if len(predictions) == 0:
            raise ValueError(
                "tip_state: there is nothing to score: predictions and references are empty; check that the split or "
                "the folder holds labelled scans."
            )
        widths = sorted({len(row) for row in predictions})
        if len(widths) > 1:
            raise ValueError(
                f"tip_state: the batches hold probabilities of different numbers of classes, {widths}: score the "
                "predictions of one model at a time."
            )
        probabilities = np.asarray(predictions, dtype=np.float32)
        classes = np.asarray(references, dtype=np.int64)
        num_scans, num_labels = probabilities.shape
        names = _check_label_names(label_names, num_labels)
        if isinstance(num_bins, bool) or not isinstance(num_bins, (int, np.integer)) or num_bins < 1:
            raise ValueError(f"tip_state: num_bins must be a whole number of at least 1, got {num_bins!r}.")
        if on_missing_class not in ("error", "skip"):
            raise ValueError(f"tip_state: on_missing_class must be 'error' or 'skip', got {on_missing_class!r}.")

        predicted = probabilities.argmax(axis=1)
        confusion = np.bincount(classes * num_labels + predicted, minlength=num_labels**2)
        confusion = confusion.reshape(num_labels, num_labels)
        hits, support, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

        present = support > 0
        missing = [name for name, is_present in zip(names, present, strict=True) if not is_present]
        if missing and on_missing_class == "error":
            raise ValueError(
                f"tip_state: none of the {num_scans} references is of class {', '.join(missing)}, so balanced "
                "accuracy and AUROC are undefined: score scans of every class, or pass on_missing_class='skip' to "
                "average over the classes that are present."
            )

        recall = _ratio(hits, support)
        results: dict[str, Any] = {
            "accuracy": float(hits.sum() / num_scans),
            "balanced_accuracy": float(recall[present].mean()),
            "auroc": _auroc(probabilities, classes, present),
            "expected_calibration_error": _expected_calibration_error(
                probabilities.max(axis=1), predicted == classes, num_bins
            ),
        }
        per_class = {
            "precision": _ratio(hits, called),
            "recall": recall,
            "f1": _ratio(2 * hits, support + called),
            "support": support,
        }
        for score, values in per_class.items():
            results.update({f"{score}_{name}": value for name, value in zip(names, values.tolist(), strict=True)})
        results["confusion_matrix"] = confusion.tolist()
        results["num_scans"] = num_scans
        results["missing_classes"] = missing
        return results


def _check_batch(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return `float32 [batch, num_labels]` and `int64 [batch]`, or raise a `ValueError` naming the first bad row."""
    if predictions is None or references is None:
        absent = "predictions" if predictions is None else "references"
        raise ValueError(f"tip_state: {absent} is missing: pass both predictions and references.")
    if len(predictions) != len(references):
        raise ValueError(
            f"tip_state: got {len(predictions)} predictions and {len(references)} references: pass one of each for "
            "every scan."
        )
    if len(predictions) == 0:  # a process without a share of the last batch; an empty whole is refused in compute
        return np.empty((0, 0), dtype=np.float32), np.empty(0, dtype=np.int64)

    try:
        if hasattr(predictions, "bfloat16"):  # a tensor, of which numpy takes most, but no bfloat16
            predictions = predictions.detach().cpu().double()
        # Half precision included; None becomes NaN.
        probabilities = np.asarray(predictions, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: rows that are tensors and require grad
        probabilities = None
    if probabilities is None or probabilities.ndim != 2 or probabilities.shape[1] < 2:
        got = "rows that differ in length or are not numbers" if probabilities is None else f"{probabilities.shape}"
        raise ValueError(
            "tip_state: predictions must be probabilities of shape [num_scans, num_labels] with at least 2 classes, "
            f"got {got}: pass every class's probability, not the predicted class."
        )

    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"tip_state: predictions[{row}] is {_show(probabilities[row])}, which holds NaN or infinity: find out why "
            "the model gave no number for this scan."
        )
    in_range = (probabilities >= -_PROBABILITY_TOLERANCE) & (probabilities <= 1 + _PROBABILITY_TOLERANCE)
    sums = probabilities.sum(axis=1)
    # The 1e-7 keeps a sum that is off by the tolerance itself, give or take a float32 rounding, on the good side.
    proper = in_range.all(axis=1) & (np.abs(sums - 1) <= _PROBABILITY_TOLERANCE + 1e-7)
    if not proper.all():
        row = int(np.argmin(proper))
        fault = f"sums to {sums[row]:.6g}, not 1" if in_range[row].all() else "leaves [0, 1]"
        raise ValueError(
            f"tip_state: predictions[{row}] is {_show(probabilities[row])}, which {fault}: pass probabilities; if "
            "these are logits, apply a softmax first."
        )

    classes = np.asarray(references)
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise ValueError(
            f"tip_state: references must be class indices, whole numbers of shape [num_scans], got {classes.dtype} of "
            f"shape {classes.shape}: map class names through label2id, and drop scans without a label."
        )
    num_labels = probabilities.shape[1]
    valid = (classes >= 0) & (classes < num_labels)
    if not valid.all():
        row = int(np.argmin(valid))
        raise ValueError(
            f"tip_state: references[{row}] is {classes[row]}, but predictions have {num_labels} classes, so it must "
            f"lie in 0..{num_labels - 1}: check that the labels and the model use the same id2label."
        )
    return probabilities.astype(np.float32), classes.astype(np.int64)


def _check_label_names(label_names: list[str] | None, num_labels: int) -> list[str]:
    """Return one name a class, the index where none was given."""
    if label_names is None:
        return [str(index) for index in range(num_labels)]
    # A lone string would pass as a sequence of one-letter names.
    if isinstance(label_names, str) or not all(isinstance(name, str) for name in label_names):
        raise ValueError(f"tip_state: label_names must be a list of strings, got {label_names!r}.")
    names = list(label_names)
    if len(names) != num_labels:
        raise ValueError(
            f"tip_state: label_names has {len(names)} names ({', '.join(names)}), but predictions have {num_labels} "
            "classes: pass one name for each column, in order."
        )
    if len(set(names)) != len(names):
        raise ValueError(f"tip_state: label_names repeats a name ({', '.join(names)}): each class needs its own.")
    return names


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide counts of shape `[num_labels]`; 0/0 is 0, as `zero_division=0` in scikit-learn."""
    return numerator / np.maximum(denominator, 1)


def _auroc(probabilities: np.ndarray, classes: np.ndarray, present: np.ndarray) -> float | None:
    """Average the one-vs-rest area under the ROC curve over the classes present; `None` for a single class.

    Equal to `roc_auc_score(classes, probabilities, multi_class="ovr", average="macro")` where every class is present.
    That call refuses two columns, missing classes and sums that are off in float32, so each class is a binary column.
    """
    labels = np.flatnonzero(present)
    if len(labels) < 2:
        return None
    return float(roc_auc_score(classes[:, None] == labels, probabilities[:, labels], average="macro"))


def _expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by the scans in each.

    Guo et al. 2017, equation 3: bin `m` of `M` holds the confidences in `((m - 1) / M, m / M]`.

    Args:
        confidence: `float32 [num_scans]`, the probability of the predicted class.
        correct: `bool [num_scans]`.
        num_bins: `M`.
    """
    # Edges in the precision of the confidences: 0.2 stored in float32 is above 0.2, and would change bins.
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1].astype(confidence.dtype)
    bins = np.searchsorted(inner_edges, confidence, side="left")
    # |accuracy - confidence| * scans in the bin is the absolute sum of the differences.
    gaps = np.bincount(bins, weights=correct - confidence.astype(np.float64), minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _show(row: np.ndarray) -> str:
    """Format a row of scores for a message, at most 8 of them."""
    values = ", ".join(f"{value:.4g}" for value in row[:8])
    return f"[{values}, ...]" if len(row) > 8 else f"[{values}]"
