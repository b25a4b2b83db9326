"""
The card of a run or of a released model, written from the result files in its folder, and from nothing else.

    python -m experiments.card runs/20261123_101500                      # written anew, as after editing failures.json
    python -m experiments.card model_cards/*/                            # after a change of the template
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data_scripts.provenance import PROVENANCE

from .rehearsal import are_simulated
from .run_folder import (
    CARD_FILE,
    FAILURES_FILE,
    PRETRAINING_RECIPE_FILE,
    RECIPE_FILE,
    RELEASE_FILE,
    SUMMARY_FILE,
    read_recipe,
)

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
FIGURES = {"balanced_accuracy": "Balanced accuracy", "auroc": "AUROC, macro one-vs-rest"}
# what a card says after each number of lines, and in its metadata
BY_LINES = FIGURES | {"accuracy": "Accuracy", "expected_calibration_error": "Expected calibration error"}
BY_CLASS = {"precision": "Precision", "recall": "Recall", "f1": "F1"}
STREAMING = ("scanline_causal",)  # model types with a verdict at every line
PLACEHOLDER = "PATH_OR_REPOSITORY"
MAX_SESSIONS = 60  # rows of a table


def _of_run(summary: dict[str, Any]) -> dict[str, Any]:
    """What the card of a run says that differs from that of a release."""
    names = list(summary["split"]["counts"]["train"])
    evidence = []
    for part in ("validation", "test"):
        if part not in summary:
            continue
        figures = summary[part]
        whole = figures["whole"]
        by_lines = figures["by_lines"] | {"whole": whole}
        evidence.append(
            {
                "part": part,
                "num_scans": whole["num_scans"],
                "by_lines": by_lines,
                "classes": {
                    lines: {
                        name: {
                            figure: of[f"{figure}_{name}"] if of[f"support_{name}"] else None for figure in BY_CLASS
                        }
                        for name in names
                    }
                    for lines, of in by_lines.items()
                    if lines in ("20", "whole")
                },
                "counts": [whole[f"support_{name}"] for name in names],
                "confusion": whole.get("confusion_matrix"),
                "sessions": figures.get("sessions", {}),
                "mistakes": figures.get("mistakes", []),
            }
        )
    return {
        "name": f"Scanline {summary['model_type']}",
        "path": PLACEHOLDER,
        "run": summary,
        "dataset_name": f"{summary['dataset']}, split by {summary['split']['method']}",
        "label_names": names,
        "evidence": evidence,
    }


def _of_release(release: dict[str, Any]) -> dict[str, Any]:
    """What the card of a released model says that differs from that of a run."""
    keys = ("num_scans", "classes", "counts", "confusion", "sessions", "mistakes")
    by_lines = {
        lines: figures
        | {name: figures[name]["mean"] for name in FIGURES}
        | {f"{name}_interval": figures[name]["interval"] for name in FIGURES}
        for lines, figures in release["by_lines"].items()
    }
    evidence = {"part": "cross-validation", "by_lines": by_lines} | {key: release.get(key) for key in keys}
    return {
        "name": release["name"],
        "path": f"model_cards/{release['name']}",
        "run": release["run"],
        "release": release,
        "dataset_name": f"{release['run']['dataset']}, cross-validation by sessions",
        "label_names": release["label_names"],
        "evidence": [evidence],
    }


def describe(folder: Path) -> dict[str, Any]:
    """
    Everything that the card of a folder says.

    Raises:
        OSError: if the folder holds no result of a run or a release.
    """
    released = (folder / RELEASE_FILE).is_file()
    results = json.loads((folder / (RELEASE_FILE if released else SUMMARY_FILE)).read_text(encoding="utf-8"))
    facts = _of_release(results) if released else _of_run(results)
    run = facts["run"]
    recipe = read_recipe(folder) if (folder / RECIPE_FILE).is_file() else {}
    known = PROVENANCE.get(run["dataset"])
    surface = known and (known.surface or f"{recipe.get('simulation_surface')}, simulated")
    start = recipe.get("model_name_or_path")
    failures = folder / FAILURES_FILE
    return facts | {
        "streams": run["model_type"] in STREAMING,
        "num_parameters": run["num_parameters"],
        "surface": surface,
        "provenance": known,
        "start": Path(start).name if start else None,
        "rehearsed": (recipe.get("rehearsal_scans") or 0) if are_simulated(facts["label_names"]) else 0,
        "pretraining_recipe": (folder / PRETRAINING_RECIPE_FILE).is_file(),
        "failures": json.loads(failures.read_text(encoding="utf-8")) if failures.is_file() else None,
        "max_sessions": MAX_SESSIONS,
    }


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    """The Hub's metadata, with every figure of the card's tables as a result of its own."""
    dataset = facts["run"]["dataset"]
    results = []

    def add(part: str, lines: str, metric: str, title: str, value: float | None) -> None:
        if value is not None:
            results.append(
                EvalResult(
                    task_type="image-classification",
                    dataset_type=dataset,
                    dataset_name=facts["dataset_name"],
                    dataset_config="whole scans" if lines == "whole" else f"first {lines} lines",
                    dataset_split=part,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(value, 4),
                )
            )

    for evidence in facts["evidence"]:
        for lines, figures in reversed(evidence["by_lines"].items()):  # whole scans first
            for metric, title in BY_LINES.items():
                add(evidence["part"], lines, metric, title, figures[metric])
            for name, of_class in evidence["classes"].get(lines, {}).items():
                for metric, title in BY_CLASS.items():
                    add(evidence["part"], lines, f"{metric}_{name}", f"{title} of {name}", of_class[metric])
    tags = facts["provenance"].tags if facts["provenance"] else ()
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["scanning-probe-microscopy", "stm", "tip-state", "scanline", *tags],
        datasets=[dataset],
        metrics=list(BY_LINES),
        base_model=facts["run"].get("base_model"),
        model_name=facts["name"],
        eval_results=results,
    )


def write_card(folder: Path) -> None:
    """
    Writes `README.md`: what the model knows, its figures and what stands behind them, where it fails, what it is not
    for.

    Raises:
        OSError: if the folder holds no result of a run or a release.
    """
    facts = describe(folder)
    ModelCard.from_template(_metadata(facts), template_path=str(TEMPLATE), **facts).save(folder / CARD_FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of runs or released models")
    for folder in parser.parse_args(argv).folders:
        try:
            write_card(folder)
        except (OSError, KeyError, ValueError) as error:
            logging.getLogger("card").error("%s: no results to write a card from (%s).", folder, error)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
