"""How the published comparison is shown: a page of tables, a table for a terminal, a figure."""

import json
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from experiments.intervals import FIGURES

SPLITS = ("random", "sessions")
NUM_FOLDS = 5
LINE_COUNTS = (5, 10, 20, 40, 64, 128)
# Gordon et al. 2020, random split, whole scans: (balanced accuracy, AUROC)
PUBLISHED = {"published CNN": (0.856, 0.963), "published LRCN": (0.847, 0.960)}
PUBLISHED_SCANS = 648


def folds_of(result: dict[str, Any]) -> str:
    """How many folds stand behind a row: of each seed, where they are not the same for all."""
    by_seed = result["folds_by_seed"]
    if len({json.dumps(folds) for folds in by_seed.values()}) == 1:
        return f"{len(next(iter(by_seed.values())))} of {NUM_FOLDS}"
    return " and ".join(f"{len(folds)} of {NUM_FOLDS} (seed {seed})" for seed, folds in by_seed.items())


def table_of(results: Sequence[dict[str, Any]], split: str) -> list[str]:
    """The figures of a split as a Markdown table."""
    of_split = [result for result in results if result["split"] == split]
    if not of_split:
        return []
    protocol = (
        "80/20 by scan, as published" if split == "random" else f"cross-validation over {NUM_FOLDS} folds of sessions"
    )
    lines = [
        f"### {split}: {protocol}",
        "",
        "Balanced accuracy / AUROC after so many lines; unanimous labels, complete scans, last epoch. Rehearsed: "
        "simulated scans among the real ones of training. Members: models that were trained one by one and joined; "
        "epochs are those of all of them.",
        "",
        "| model | parameters | members | first trained on | rehearsed | teachers | optimizer | epochs | seeds "
        "| folds | scans | " + " | ".join(map(str, LINE_COUNTS)) + " | whole scan, and its interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|" + "---|" * (len(LINE_COUNTS) + 1),
    ]
    for result in of_split:
        *cells, at_end = of_lines(result)
        whole = result["figures"]["whole"]
        intervals = ", ".join("{:.3f}–{:.3f}".format(*whole[name]["interval"]) for name in FIGURES)
        scans = " ".join(map(str, sorted(set(result["num_scans"].values()))))
        seeds = " ".join(map(str, result["folds_by_seed"]))
        of_all = "–" if split == "random" else folds_of(result)
        lines.append(
            f"| {result['model']} | {result['num_parameters']:,} | {result.get('members') or '–'} | "
            f"{result['start'] or '–'} | {result.get('rehearsed') or '–'} | {result['teachers'] or '–'} | "
            f"{result['optimizer']} | {result['epochs']:g} | {seeds} | {of_all} | {scans} | "
            f"{' | '.join(cells)} | {at_end} ({intervals}) |"
        )
    if split == "random":
        lines += [
            f"| {name} | | | | | | | | | | {PUBLISHED_SCANS} |{' |' * len(LINE_COUNTS)} {accuracy:.3f} / {area:.3f} |"
            for name, (accuracy, area) in PUBLISHED.items()
        ]
    return [*lines, ""]


def render(comparison: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [line for split in SPLITS for line in table_of(comparison["results"], split)]
    ahead = [entry for entry in comparison["differences"] if entry["lines"] in ("20", "whole")]
    if ahead:
        lines += ["### How far the first is ahead", "", "On the same scans, of the seeds that are named.", ""]
        lines += [
            "| split | of | seeds | its seeds | lines | figure | ahead | interval |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for entry in ahead:
            seeds, of_other = (" ".join(map(str, entry[name])) for name in ("seeds", "seeds_of_other"))
            lines.append(
                f"| {entry['split']} | {entry['other']} | {seeds} | {of_other} | {entry['lines']} | "
                f"{entry['figure'].replace('_', ' ')} | {entry['ahead']:+.3f} | "
                f"{entry['interval'][0]:+.3f} to {entry['interval'][1]:+.3f} |"
            )
    return "\n".join(lines).rstrip() + "\n"


def overview(results: Sequence[dict[str, Any]], split: str) -> Table:
    """The figures alone, for a terminal of 80 characters."""
    title = f"{split}: balanced accuracy, AUROC below it, after so many lines"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for count in [*map(str, LINE_COUNTS), "whole"]:
        table.add_column(count, justify="right", no_wrap=True)
    for result in results:
        if result["split"] == split:
            table.add_row(Text(result["model"]), *(cell.replace(" / ", "\n") for cell in of_lines(result)))
    return table


def of_lines(result: dict[str, Any]) -> list[str]:
    """Balanced accuracy and AUROC after each number of lines, and on whole scans."""
    return [
        " / ".join(f"{result['figures'][key][name]['mean']:.3f}" for name in FIGURES)
        for key in [*map(str, LINE_COUNTS), "whole"]
    ]


def draw(results: Sequence[dict[str, Any]]) -> Figure:
    """Figures against lines: a row a split, a column a figure of merit."""
    splits = [split for split in SPLITS if any(result["split"] == split for result in results)]
    models = dict.fromkeys(result["model"] for result in results)
    colours = {model: f"C{number}" for number, model in enumerate(models)}
    figure = Figure(figsize=(11, 4 * len(splits)), layout="constrained")
    axes = figure.subplots(len(splits), len(FIGURES), squeeze=False)
    for row, split in zip(axes, splits, strict=True):
        for column, (axis, name) in enumerate(zip(row, FIGURES, strict=True)):
            for result in (result for result in results if result["split"] == split):
                values = [result["figures"][str(count)][name] for count in LINE_COUNTS]
                means = [value["mean"] for value in values]
                colour = colours[result["model"]]
                axis.plot(LINE_COUNTS, means, marker="o", color=colour, label=result["model"])
                low, high = zip(*(value["interval"] for value in values), strict=True)
                axis.fill_between(LINE_COUNTS, low, high, color=colour, alpha=0.12, linewidth=0)
            if split == "random":
                for published, style in zip(PUBLISHED, (":", "--"), strict=True):
                    axis.axhline(PUBLISHED[published][column], color="grey", linestyle=style, label=published)
            axis.set(xscale="log", xlabel="lines seen", ylabel=name.replace("_", " "), title=f"split: {split}")
            axis.set_xticks(LINE_COUNTS, [str(count) for count in LINE_COUNTS], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    curves = {
        label: line for axis in axes[:, 0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=5, fontsize="small")
    return figure
