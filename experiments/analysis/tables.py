"""What is known of runs as tables and as the log's lines of text, for a terminal, Markdown, CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from .record import COMPLETE, dig, natural_order

FIGURE_TITLES = {
    "accuracy": "accuracy",
    "loss": "loss",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}
SCORED_TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "expected_calibration_error": "calibration error",
}
NONE = "–"
# columns in which less is better: sorted by, the smallest stands first
ASCENDING = {"run", "state", "model", "split", "seed", "fold", "best_loss", "latest_loss", "train_loss", "gap",
             "calibration_error", "num_parameters", "seconds"}  # fmt: skip


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---") -> list[str]:
    """Lines of a table; bars within cells are escaped. `rule` is that of all columns but the first."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in (headings, *rows)]
    head, *rest = (f"| {line} |" for line in lines)
    return [head, "|---" + f"|{rule}" * (len(headings) - 1) + "|", *rest]


@dataclass(frozen=True)
class Table:
    """A table of text. The first column is aligned to the left, the others to the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> list[str]:
        """Its lines and an empty one; nothing without rows."""
        return [*markdown_table(self.headings, self.rows, "---:"), ""] if self.rows else []


def number(value: Any, digits: int = 3) -> str:
    """A figure with so many digits, a dash for none."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent with two digits, as the log has it; a dash for none."""
    return NONE if value is None else f"{100 * value:.2f}%"


def plain(value: Any) -> str:
    """An option or a cell of any kind."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items()) or NONE
    return "[" + ", ".join(map(plain, value)) + "]" if isinstance(value, (list, tuple)) else str(value)


def _figure(part: str, name: str, kind: str) -> Callable[[dict[str, Any]], Any]:
    return lambda analysis: dig(analysis, part, name, kind)


def _scored(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda analysis: dig(analysis, "scored", "validation", "whole", name)


COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{name: itemgetter(name) for name in ("run", "state", "model", "split", "seed", "fold", "epochs")},
    "best_accuracy": _figure("validation", "accuracy", "best"),
    "best_epoch": _figure("validation", "accuracy", "best_epoch"),
    "latest_accuracy": _figure("validation", "accuracy", "latest"),
    "best_loss": _figure("validation", "loss", "best"),
    "best_loss_epoch": _figure("validation", "loss", "best_epoch"),
    "latest_loss": _figure("validation", "loss", "latest"),
    "train_accuracy": _figure("train", "accuracy", "best"),
    "train_loss": _figure("train", "loss", "best"),
    "gap": lambda analysis: dig(analysis, "gap", "accuracy"),
    "turned": lambda analysis: dig(analysis, "turned", "epoch"),
    "best_balanced_accuracy": _figure("validation", "balanced_accuracy", "best"),
    "best_balanced_accuracy_epoch": _figure("validation", "balanced_accuracy", "best_epoch"),
    "best_auroc": _figure("validation", "auroc", "best"),
    "best_auroc_epoch": _figure("validation", "auroc", "best_epoch"),
    "balanced_accuracy": _scored("balanced_accuracy"),
    "auroc": _scored("auroc"),
    "accuracy": _scored("accuracy"),
    "calibration_error": _scored("expected_calibration_error"),
    "num_parameters": itemgetter("num_parameters"),
    "seconds": itemgetter("seconds"),
}


def rows_of(analyses: Sequence[dict[str, Any]], options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """
    One flat row a run: [`COLUMNS`], figures by lines and by class, and the options asked for; all with the same keys.
    """
    rows = []
    for analysis in analyses:
        row = {name: column(analysis) for name, column in COLUMNS.items()}
        for part, scored in analysis["scored"].items():
            of_part = "" if part == "validation" else f"{part}_"
            if of_part:
                row |= {f"{of_part}{name}": scored["whole"].get(name) for name in ("balanced_accuracy", "auroc")}
            for lines, figures in scored["by_lines"].items():
                row |= {f"{of_part}{name}_at_{lines}": figures.get(name) for name in ("balanced_accuracy", "auroc")}
            for name, of_class in (scored["whole"].get("classes") or {}).items():
                row |= {f"{of_part}{figure}_{name}": value for figure, value in of_class.items()}
        row = {**{name: analysis["options"].get(name) for name in options}, **row}
        rows.append({**row, "problem": analysis["problem"]})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def sort_rows(rows: Sequence[dict[str, Any]], column: str, reverse: bool = False) -> list[int]:
    """
    Places of the rows, best first: the largest value, or the smallest where less is better; those without one last.

    Raises:
        ValueError: if there is no such column; the message names them all.
    """
    if rows and column not in rows[0]:
        raise ValueError(f"--sort: there is no column {column!r}; there are {', '.join(rows[0])}.")
    known = [place for place, row in enumerate(rows) if row[column] is not None]
    numbers = all(isinstance(rows[place][column], (int, float)) for place in known)
    descending = numbers and column not in ASCENDING and not column.endswith("epoch")
    known.sort(
        key=lambda place: rows[place][column] if numbers else natural_order(plain(rows[place][column])),
        reverse=descending != reverse,
    )
    return known + [place for place, row in enumerate(rows) if row[column] is None]


def _at(name: str, epoch: str, form: Callable[[float], str]) -> Callable[[dict[str, Any]], str | None]:
    return lambda row: None if row[name] is None else f"{form(row[name])} ({row[epoch]:g})"


# by heading; an epoch stands in brackets behind its figure
SHOWN: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "epochs": lambda row: str(row["epochs"]) if row["epochs"] else None,
    "best valid accuracy": _at("best_accuracy", "best_epoch", percent),
    "best valid loss": _at("best_loss", "best_loss_epoch", number),
    "train accuracy": lambda row: None if row["train_accuracy"] is None else percent(row["train_accuracy"]),
    "gap": lambda row: None if row["gap"] is None else f"{100 * row['gap']:.2f}",
    "loss turned": lambda row: None if row["turned"] is None else f"{row['turned']:g}",
    "balanced accuracy": lambda row: None if row["balanced_accuracy"] is None else number(row["balanced_accuracy"]),
    "AUROC": lambda row: None if row["auroc"] is None else number(row["auroc"]),
}


def run_table(rows: Sequence[dict[str, Any]], options: Sequence[str] = ()) -> Table:
    """
    The table over runs as the log has it, after each name the options asked for. Columns that are empty throughout are
    left out; a run that is not complete says so behind its name.
    """
    columns = {heading: [column(row) for row in rows] for heading, column in SHOWN.items()}
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    names = [row["run"] if row["state"] == COMPLETE else f"{row['run']} ({row['state']})" for row in rows]
    headings = ["run", *(name.replace("_", " ") for name in options), *columns]
    return Table(
        headings,
        [
            [
                names[place],
                *(plain(row[name]) for name in options),
                *(cells[place] or NONE for cells in columns.values()),
            ]
            for place, row in enumerate(rows)
        ],
    )


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV, figures in full."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain(v) if isinstance(v, (list, dict)) else v for name, v in row.items()} for row in rows)
    return file.getvalue()


def results_block(analysis: Mapping[str, Any]) -> list[str]:
    """What the log's analyzer printed of a run, accuracies in percent, and the gap and the turn of the loss."""
    lines: list[str] = []
    for part in ("train", "validation"):
        figures = analysis[part]
        if not figures:
            continue
        lines += [f"=== {part} ===", f"Total epochs: {analysis['epochs']}"]
        for kind in ("best", "latest"):
            for name, title in FIGURE_TITLES.items():
                if name in figures:
                    value = figures[name][kind]
                    text = f"{value:.6f}" if name in ("loss", "auroc") else f"{100 * value:.4f}"
                    lines.append(f"{kind.capitalize()} {title}: {text} (epoch {figures[name][f'{kind}_epoch']:g})")
        lines.append("")
    if analysis["gap"]:
        epoch = analysis["gap"]["epoch"]
        when = "of the weights kept, without augmentation" if epoch is None else f"epoch {epoch:g}"
        lines.append(f"Gap: {100 * analysis['gap']['accuracy']:.2f} points of accuracy ({when})")
    if analysis["turned"]:
        turned = analysis["turned"]
        lines.append(
            f"Validation loss turned: epoch {turned['epoch']:g} ({turned['loss']:.6f}, then "
            f"{turned['latest_loss']:.6f} at the end)"
        )
    elif "loss" in analysis["validation"]:
        lines.append("Validation loss turned: no")
    return lines


def lines_table(scored: Mapping[str, Any], title: str = "") -> Table:
    """Figures by number of lines seen."""
    figures = [*scored["by_lines"].items(), ("whole scan", scored["whole"])]
    return Table(
        ["lines seen", *SCORED_TITLES.values()],
        [[lines, *(number(values.get(name)) for name in SCORED_TITLES)] for lines, values in figures],
        title,
    )


def class_table(scored: Mapping[str, Any]) -> Table:
    """Figures of every class on whole scans."""
    return Table(
        ["class", "scans", "precision", "recall", "F1", "AUROC"],
        [
            [
                name,
                number(of_class.get("support"), 0),
                *(number(of_class.get(figure)) for figure in ("precision", "recall", "f1", "auroc")),
            ]
            for name, of_class in scored["whole"]["classes"].items()
        ],
    )


def recall_table(scored: Mapping[str, Any]) -> Table:
    """Recall and AUROC of every class by number of lines seen; without rows where nothing is known of them."""
    by_lines, figures = scored["by_lines"], ("recall", "auroc")
    known = [
        figure
        for figure in figures
        if any(dig(of, "classes") and figure in next(iter(of["classes"].values())) for of in by_lines.values())
    ]
    return Table(
        [f"{' / '.join(known).replace('auroc', 'AUROC')} after", *by_lines],
        [
            [
                name,
                *(
                    " / ".join(number(dig(of, "classes", name, figure)) for figure in known)
                    for of in by_lines.values()
                ),
            ]
            for name in (scored["whole"]["classes"] if known else ())
        ],
    )


def confusion_table(scored: Mapping[str, Any]) -> Table:
    """The confusion matrix, true class by predicted class."""
    names, matrix = scored["label_names"], scored["confusion_matrix"] or []
    return Table(
        ["true \\ predicted", *names],
        [[name, *map(str, row)] for name, row in zip(names, matrix, strict=bool(matrix))],
    )
