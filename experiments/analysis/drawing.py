"""Curves and matrices of runs, as PNG and SVG; the same runs give the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from .history import PARTS
from .record import RunRecord

LEARNING = {"loss": "loss", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
BY_LINES = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC, macro one-vs-rest"}
MOST_NAMED = 20  # runs that a legend has room for


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes `NAME.png` and `NAME.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=120)
    with mpl.rc_context({"svg.hashsalt": name}):  # otherwise names within it, and its date, are new each time
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def draw_learning(runs: Sequence[RunRecord], analyses: Sequence[dict[str, Any]]) -> Figure:
    """Figures against epochs: of one run train and validation, of several validation only."""
    parts = PARTS if len(runs) == 1 else PARTS[1:]
    shown = [name for name in LEARNING if any(name in run.history.part(part) for run in runs for part in parts)]
    figure = Figure(figsize=(4 * max(len(shown), 1), 3.4), layout="constrained")
    axes = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=False):
        for run in runs:
            for part in parts:
                if name in run.history.part(part):
                    label = part if len(runs) == 1 else run.name
                    color = f"C{PARTS.index(part)}" if len(runs) == 1 else None  # also where only one is known
                    axis.plot(
                        run.history.epochs, run.history.part(part)[name], color=color, label=label, linewidth=1.3
                    )
        if len(runs) == 1:
            _mark(axis, name, analyses[0])
        axis.set(xlabel="epoch", title=LEARNING[name] if len(runs) == 1 else f"validation {LEARNING[name]}")
        axis.grid(alpha=0.3)
    _legend(figure, axes[0], len(runs))
    return figure


def _mark(axis: Any, name: str, analysis: dict[str, Any]) -> None:
    best = analysis["validation"].get(name)
    if best:
        axis.plot(best["best_epoch"], best["best"], "o", color="black", markersize=4, label="best")
    if name == "loss" and analysis["turned"]:
        axis.axvline(analysis["turned"]["epoch"], color="grey", linestyle=":", label="validation loss turned")


def draw_lines(analyses: Sequence[dict[str, Any]], part: str = "validation") -> Figure | None:
    """Figures against lines seen; `None` where no run was scored by lines."""
    scored = [(analysis["run"], analysis["scored"][part]) for analysis in analyses if part in analysis["scored"]]
    scored = [(name, figures) for name, figures in scored if figures["by_lines"]]
    if not scored:
        return None
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(BY_LINES))
    ticks = sorted({int(lines) for _, figures in scored for lines in figures["by_lines"]})
    for axis, (name, title) in zip(axes, BY_LINES.items(), strict=True):
        for run, figures in scored:
            points = [(int(lines), of.get(name, np.nan)) for lines, of in figures["by_lines"].items()]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=run)
        axis.set(xscale="log", xlabel="lines seen", title=f"{part}: {title}")
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    _legend(figure, axes[0], len(scored))
    return figure


def _legend(figure: Figure, axis: Any, num_runs: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles and num_runs <= MOST_NAMED:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")


def draw_confusion(scored: dict[str, Any], title: str) -> Figure | None:
    """The confusion matrix, shaded by the share of the true class; `None` without one."""
    if not scored["confusion_matrix"]:
        return None
    names, counts = scored["label_names"], np.array(scored["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(2.4 + 0.8 * len(names), 1.8 + 0.7 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count}\n{100 * share:.0f} %"
        axis.text(column, row, text, ha="center", va="center", color="white" if share > 0.6 else "black", fontsize=9)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    return figure
