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
"""Where tip changes were found against where they are, as one `evaluate` metric.

The file stands alone: `evaluate.load` copies it out of the project and runs it from its own cache.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Scores alarms of tip changes in STM scans against the lines at which the tip changed: recall and precision within some
lines, the delay of the alarms, and false alarms per 100 scans without a change.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list`): the alarms in one scan, as many as there were. Each is the line from which on the
        tip is said to be another one, or a pair of that line and the line after which the alarm came, which is not
        before it; all alarms of a call are of one kind. `[]` for a scan without an alarm. Lines count from 0.
    references (`list` of `list` of `int`): the first lines of new tips in one scan; `[]` for a scan without a change.
    tolerance (`int`, defaults to 3): how many lines a change and its alarm may be apart.

Returns:
    `dict` of plain Python numbers:
    - **recall** (`float`): in [0, 1], 1 is best; the share of the changes that were found.
    - **precision** (`float`): in [0, 1], 1 is best; the share of the alarms that found a change.
    - **median_delay**, **mean_delay** (`float`, or `None` where nothing was found or alarms came without their lines):
      lines from the first of the new tip to the alarm, over the changes that were found.
    - **false_alarms_per_100** (`float`): alarms in scans without a change, per 100 of these.
    - **changes**, **alarms**, **unchanged_scans**, **num_scans** (`int`): what was scored.

    A 0/0 is 0: the counts tell it from a measured 0.

Raises:
    `ValueError`: on lines that are none, lengths that differ, nothing to score, or a bad option. What `add_batch`
    refuses is not added, and what was added before stays.

Examples:
    >>> import evaluate
    >>> tip_change = evaluate.load("metrics/tip_change")
    >>> results = tip_change.compute(
    ...     predictions=[[(42, 45)], [(30, 33), (90, 93)], [], [(64, 67)]],
    ...     references=[[40], [90], [], []],
    ... )
    >>> results["recall"], results["precision"], results["mean_delay"], results["false_alarms_per_100"]
    (1.0, 0.5, 4.0, 50.0)
"""

_CITATION = """\
@article{truong2020selective,
  title   = {Selective review of offline change point detection methods},
  author  = {Truong, Charles and Oudre, Laurent and Vayatis, Nicolas},
  journal = {Signal Processing},
  volume  = {167},
  pages   = {107299},
  year    = {2020},
  doi     = {10.1016/j.sigpro.2019.107299}
}
@article{vandenburg2020evaluation,
  title   = {An Evaluation of Change Point Detection Algorithms},
  author  = {van den Burg, Gerrit J. J. and Williams, Christopher K. I.},
  journal = {arXiv preprint arXiv:2003.06222},
  year    = {2020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TipChange(evaluate.Metric):
    """Recall, precision, delay and false alarms of a search for tip changes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # An alarm is kept as `[line]` or `[line, line of the alarm]`. The latter as a third input could not be
            # left out: of combined metrics, evaluate wants every input that one of them declares.
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference_urls=[
                "https://doi.org/10.1016/j.sigpro.2019.107299",
                "https://arxiv.org/abs/2003.06222",
            ],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one scan: its alarms and its changes. Checked like `add_batch`."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add the alarms and the changes of each scan of a batch.

        Raises `ValueError` for a batch that cannot be scored. It is checked here, where its rows can still be named,
        and before anything is written, so that a bad batch costs none of the good ones.
        """
        alarms, changes = _check_batch(predictions, references)
        super().add_batch(predictions=alarms, references=changes, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Score what was added, and `predictions` and `references` where given, and start afresh.

        Returns the results, or `None` on every process but the first of a distributed evaluation.
        """
        if predictions is None and references is None and self.writer is None and self.num_process == 1:
            raise ValueError(
                "tip_change: there is nothing to score: pass predictions and references, or call add_batch before "
                "compute."
            )
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self, predictions: list[list[list[int]]], references: list[list[int]], tolerance: int = 3
    ) -> dict[str, Any]:
        if len(predictions) == 0:
            raise ValueError("tip_change: there is nothing to score: predictions and references are empty.")
        if len({len(alarm) for alarms in predictions for alarm in alarms}) > 1:
            raise ValueError(
                "tip_change: some alarms are lines and some are pairs: pass the line after which it came with every "
                "alarm or with none."
            )
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, np.integer)) or tolerance < 0:
            raise ValueError(f"tip_change: tolerance must be a whole number of at least 0, got {tolerance!r}.")

        found = [
            pair
            for alarms, changes in zip(predictions, references, strict=True)
            for pair in _match(alarms, changes, tolerance)
        ]
        delays = [alarm[1] - change for alarm, change in found if len(alarm) == 2]
        unchanged = [alarms for alarms, changes in zip(predictions, references, strict=True) if not changes]
        num_changes, num_alarms = sum(map(len, references)), sum(map(len, predictions))
        return {
            "recall": len(found) / max(num_changes, 1),
            "precision": len(found) / max(num_alarms, 1),
            "median_delay": float(np.median(delays)) if delays else None,
            "mean_delay": float(np.mean(delays)) if delays else None,
            "false_alarms_per_100": 100 * sum(map(len, unchanged)) / max(len(unchanged), 1),
            "changes": num_changes,
            "alarms": num_alarms,
            "unchanged_scans": len(unchanged),
            "num_scans": len(predictions),
        }


def _match(alarms: list[list[int]], changes: list[int], tolerance: int) -> list[tuple[list[int], int]]:
    """Pair alarms of a scan with the changes that they found, each at most once.

    In the order of the lines, an alarm takes the first change within `tolerance` that is left. As all alarms reach
    equally far, no other choice makes more pairs.
    """
    pairs, left = [], sorted(changes)
    for alarm in sorted(alarms):
        near = next((change for change in left if abs(change - alarm[0]) <= tolerance), None)
        if near is not None:
            left.remove(near)
            pairs.append((alarm, near))
    return pairs


def _check_batch(predictions: Any, references: Any) -> tuple[list[list[list[int]]], list[list[int]]]:
    """Return the alarms, as `[line]` or `[line, line of the alarm]`, and the changes of each scan."""
    if predictions is None or references is None:
        absent = "predictions" if predictions is None else "references"
        raise ValueError(f"tip_change: {absent} is missing: pass both predictions and references.")
    if len(predictions) != len(references):
        raise ValueError(
            f"tip_change: got {len(predictions)} predictions and {len(references)} references: pass one of each for "
            "every scan, [] where there is no alarm or no change."
        )
    alarms = [_check_alarms(given, scan) for scan, given in enumerate(predictions)]
    changes = []
    for scan, given in enumerate(references):
        lines = _as_lines(given)
        if lines is None or lines.ndim != 1 or len(np.unique(lines)) < len(lines):
            raise ValueError(
                f"tip_change: references[{scan}] is {given!r}, but must be a list of different lines, whole numbers "
                "from 0 on: the first lines of new tips, [] where the tip did not change."
            )
        changes.append(lines.tolist())
    return alarms, changes


def _check_alarms(given: Any, scan: int) -> list[list[int]]:
    """Return the alarms of one scan, each as `[line]` or `[line, line of the alarm]`."""
    lines = _as_lines(given)
    if lines is None or lines.ndim > 2 or (lines.ndim == 2 and lines.shape[1] != 2):
        raise ValueError(
            f"tip_change: predictions[{scan}] is {given!r}, but must be a list of lines, whole numbers from 0 on, or "
            "of pairs of such a line and the line after which the alarm came; [] where there was no alarm."
        )
    if lines.ndim == 2 and (lines[:, 1] < lines[:, 0]).any():
        raise ValueError(
            f"tip_change: predictions[{scan}] is {given!r}, in which an alarm comes before the line that it names: "
            "pass the first line of the new tip first, then the line after which the alarm came."
        )
    return lines.reshape(len(lines), -1).tolist() if lines.size else []


def _as_lines(given: Any) -> np.ndarray | None:
    """Return an integer array of at least one dimension, or `None` for what is none or holds a negative number."""
    try:
        lines = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # rows that differ in length, or a tensor that requires grad
        return None
    if lines.shape == (0,):  # which numpy takes for an array of floats
        return lines.astype(np.int64)
    if lines.ndim == 0 or lines.dtype.kind not in "iu" or (lines < 0).any():
        return None
    return lines
