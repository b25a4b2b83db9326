"""
A classifier for Scanbot (New Horizons SPM), as its hook `hk_classifier` wants it.

    # hk_classifier.py, beside Scanbot
    from live.scanbot import Classifier

    run = Classifier("path/to/model")
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from modeling_scanline.streaming_scanline import ScanlineStreamer


class Classifier:
    """
    Classifies a scan that has ended.

    Scanbot reshapes the tip where `tipShape` is 1. Scanline advises, and leaves that to the operator: `tipShape` stays
    0 unless `reshape_states` names states of the tip, which is to say that Scanbot may act on them by itself.

    Args:
        model: folder or Hub repository.
        alpha: decide at this error; without, the most probable state counts.
        reshape_states: states for which Scanbot shall reshape the tip.

    Raises:
        ValueError: for a state or an `alpha` that the model does not know, or a model that cannot stream.
        OSError: if there is no such model.
        RuntimeError, StrictDataclassError, SafetensorError: if its weights or its configuration are broken.
    """

    def __init__(self, model: str | Path, alpha: float | None = None, reshape_states: Collection[str] = ()):
        self.streamer = ScanlineStreamer.from_pretrained(model, alpha=alpha)
        unknown = set(reshape_states) - set(self.streamer.labels)
        if unknown:
            raise ValueError(
                f"reshape_states must be among {', '.join(self.streamer.labels)}, got {', '.join(sorted(unknown))}."
            )
        self.alpha, self.reshape_states = alpha, frozenset(reshape_states)

    def __call__(self, scan_data: Any, filename: Any = None, classification_hist: Any = None) -> dict[str, Any]:
        """
        Args:
            scan_data: heights `[lines, pixels]`, the first line acquired first.
            filename: not looked at.
            classification_hist: not looked at.

        Returns:
            `tipShape` and `tipChanges` (how many were found), which Scanbot reads; and what they rest on: `state`,
            `probability`, `decision`, and whether the scan is `familiar`.
        """
        self.streamer.reset()
        results = self.streamer.update_many(np.asarray(scan_data, dtype=np.float32))
        last = results[-1]
        verdict = last.state if self.alpha is None else last.decision
        return {
            "tipShape": int(verdict in self.reshape_states and last.familiar is not False),
            "tipChanges": sum(result.change_line is not None for result in results),
            "state": last.state,
            "probability": None if last.probabilities is None else max(last.probabilities),
            "decision": last.decision,
            "familiar": last.familiar,
        }


__all__ = ["Classifier"]
