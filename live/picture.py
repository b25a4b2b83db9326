"""A scan beside what was said of it, line by line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure

from modeling_scanline.image_processing_scanline import normalize_lines

PICTURE_SIZE = (10, 5.5)  # inches
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#000000",
)  # Okabe and Ito 2008


def draw_scan(
    figure: Figure | SubFigure,
    lines: np.ndarray,
    records: Sequence[dict[str, Any]],
    labels: Sequence[str],
    title: str,
) -> None:
    """
    The scan, first line on top, with a strip of its states and their probabilities; decisions and changes are marked.

    Args:
        figure: to draw into, in constrained layout; or a part of a larger one.
        lines: heights `[num_lines, pixels]`, NaN where nothing was measured.
        records: of each line, as [`to_record`] makes them.
        labels: names of the states.
        title: above it.
    """
    picture, strip, curves = figure.subplots(1, 3, sharey=True, width_ratios=(10, 1, 7))
    heights = normalize_lines(torch.from_numpy(lines)[None], "flat_line")[0][0].numpy()
    shown = np.where(np.isfinite(lines).any(axis=1, keepdims=True), heights, np.nan)
    picture.imshow(shown, cmap="afmhot", aspect="auto", vmin=-2.5, vmax=2.5, interpolation="nearest")
    picture.set(ylabel="line", xlabel="pixel")
    states = np.array([[labels.index(record["state"]) if record["state"] else -1] for record in records])
    colours = np.array([[*_rgb(COLOURS[index % len(COLOURS)])] for index in range(len(labels))] + [[1.0, 1.0, 1.0]])
    strip.imshow(colours[states], aspect="auto", interpolation="nearest", extent=(0, 1, len(records) - 0.5, -0.5))
    strip.set(xticks=[], title="state")
    number = [record["line"] for record in records]
    for index, label in enumerate(labels):
        values = [record["probabilities"][label] if record["probabilities"] else np.nan for record in records]
        curves.plot(values, number, color=COLOURS[index % len(COLOURS)], label=label)
    # not every raw line completes one that is looked at
    changes = [(value, record["line"]) for record in records if (value := record["change_probability"]) is not None]
    if changes:
        curves.plot(*zip(*changes, strict=True), color="grey", linewidth=0.7, label="tip change")
    curves.set(xlim=(0, 1), xlabel="probability")
    curves.grid(alpha=0.3)
    for line in (record["change_line"] for record in records if record["change_line"] is not None):
        for axis in (picture, strip, curves):
            axis.axhline(line, color="red", linestyle="--", linewidth=1)
        box = {"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0}  # red on the scan's colours is not read
        picture.text(2, line - 1, "tip changed", color="red", va="bottom", fontsize="small", bbox=box)
    before = None
    for record in records:
        if record["decision"] is not None and record["decision"] != before:
            curves.axhline(record["line"], color="black", linewidth=1)
            decided = f"decided: {record['decision']}"
            curves.text(0.01, record["line"], decided, va="bottom", fontsize="small", parse_math=False)
        before = record["decision"]
    handles = curves.get_legend_handles_labels()
    legend = figure.legend(*handles, loc="outside lower center", ncols=len(labels) + 1, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    if (records[-1]["unfamiliarity"] or 0) > 1:
        title += f": unlike the scans of training ({records[-1]['unfamiliarity']:.2f} times the threshold)"
    figure.suptitle(title, fontsize="medium", parse_math=False)  # dollars are part of a name


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
