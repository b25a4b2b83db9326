"""The card of a run, written from its summary."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
FIGURES = {"balanced_accuracy": "Balanced accuracy", "auroc": "AUROC, macro one-vs-rest"}


def write_card(folder: Path, summary: dict[str, Any]) -> None:
    """Writes `README.md` of a run: what it is, how it was trained, every figure with what stands behind it."""
    dataset = f"{summary['dataset']}, split by {summary['split']['method']}"
    parts = {name: summary[name] for name in ("validation", "test") if name in summary}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=summary["dataset"],
            dataset_name=dataset,
            dataset_split=part,
            metric_type=metric,
            metric_name=title,
            metric_value=round(figures["whole"][metric], 4),
        )
        for part, figures in parts.items()
        for metric, title in FIGURES.items()
        if figures["whole"][metric] is not None
    ]
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["scanning-probe-microscopy", "stm", "scanline"],
        model_name=f"Scanline {summary['model_type']}",
        eval_results=results,
    )
    card = ModelCard.from_template(card_data, template_path=str(TEMPLATE), summary=summary, parts=parts)
    card.save(folder / "README.md")
