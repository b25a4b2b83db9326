"""A scan's results as JSON, one line each: the same from whatever the lines came from."""

from collections.abc import Iterable
from typing import Any

from modeling_scanline.streaming_scanline import LineResult

RECORDS_SUFFIX = ".tip.jsonl"


def to_record(result: LineResult, labels: Iterable[str]) -> dict[str, Any]:
    """What a line of the JSONL holds; probabilities by the name of the state, `None` before there are any."""
    return {
        "line": result.line,
        "measured": result.measured,
        "model_lines": result.num_model_lines,
        "state": result.state,
        "probabilities": (
            None
            if result.probabilities is None
            else {label: round(value, 6) for label, value in zip(labels, result.probabilities, strict=True)}
        ),
        "decision": result.decision,
        "change_probability": None if result.change_probability is None else round(result.change_probability, 6),
        "change_line": result.change_line,
        "unfamiliarity": None if result.unfamiliarity is None else round(result.unfamiliarity, 6),
    }
