"""What a rule can state about the runs of an experiment: each rule a sentence, or nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from .record import dig

# points of accuracy between train and validation from which on a run overfits
OVERFITTING = 0.05
# how far above chance balanced accuracy has to come
ABOVE_CHANCE = 0.1
# epochs at rest, as a share of all, that make a plateau
PLATEAU = 0.2
Analyses = Sequence[dict[str, Any]]


def findings(analyses: Analyses) -> list[str]:
    """Sentences about the runs of one experiment, in a fixed order; none for runs without an epoch."""
    with_epochs = [analysis for analysis in analyses if analysis["epochs"]]
    return [sentence for rule in RULES if with_epochs and (sentence := rule(with_epochs))]


def span(values: Sequence[float], form: str) -> str:
    """`3`, or `2 to 4`."""
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _of(some: Sequence[Any], everything: Sequence[Any]) -> str:
    return "" if len(everything) == 1 else f" ({len(some)} of {len(everything)} runs)"


def _divergence(analyses: Analyses) -> str | None:
    gone = [analysis["diverged"] for analysis in analyses if analysis["diverged"] is not None]
    if not gone:
        return None
    return f"**Diverged**: the loss is no number from epoch {span(gone, 'g')} on{_of(gone, analyses)}."


def _chance(analyses: Analyses) -> str | None:
    known = [analysis for analysis in analyses if analysis["num_labels"] and best_of(analysis)]
    near = [a for a in known if _best(a)["best"] < 1 / a["num_labels"] + ABOVE_CHANCE]
    if not near:
        return None
    return (
        f"**Close to guessing**: {_name(near[0])} of {span([100 * _best(a)['best'] for a in near], '.1f')} % at best, "
        f"where guessing gives {100 / near[0]['num_labels']:.0f} %{_of(near, analyses)}."
    )


def _overfitting(analyses: Analyses) -> str | None:
    gaps = [analysis["gap"]["accuracy"] for analysis in analyses if analysis["gap"]]
    over = [gap for gap in gaps if gap >= OVERFITTING]
    if over:
        points = span([100 * gap for gap in over], ".1f")
        return f"**Overfitting**: train accuracy ends {points} points above validation{_of(over, gaps)}."
    if gaps:
        return (
            f"No overfitting: train minus validation accuracy ends at {span([100 * g for g in gaps], '+.1f')} points."
        )
    return None


def _turn(analyses: Analyses) -> str | None:
    known = [analysis for analysis in analyses if "loss" in analysis["validation"]]
    turned = [analysis["turned"] for analysis in known if analysis["turned"]]
    if turned:
        low, high = (span([turn[name] for turn in turned], ".3f") for name in ("loss", "latest_loss"))
        return (
            f"**Validation loss turned** at epoch {span([turn['epoch'] for turn in turned], 'g')}: {low}, then "
            f"{high} at the end{_of(turned, known)}."
        )
    return "Validation loss did not turn." if known else None


def _plateau(analyses: Analyses) -> str | None:
    known = [analysis for analysis in analyses if best_of(analysis) and analysis["epochs"] >= 5]
    rested = [a for a in known if _best(a)["latest_epoch"] - _rested(a) >= PLATEAU * a["epochs"]]
    if rested:
        return (
            f"**Plateau**: from epoch {span([_rested(a) for a in rested], 'g')} on, {_name(rested[0])} gains less "
            f"than 1 point{_of(rested, known)}."
        )
    return f"No plateau: {_name(known[0])} still gained in the last fifth of the epochs." if known else None


def _best_epoch(analyses: Analyses) -> str | None:
    known = [analysis for analysis in analyses if best_of(analysis)]
    if not known:
        return None
    kept = [analysis["epoch_kept"] for analysis in known if analysis["epoch_kept"]]
    weights = f"; the weights are those of epoch {span(kept, 'g')}" if kept else ""
    return (
        f"Best epoch by {_name(known[0])}: {span([_best(a)['best_epoch'] for a in known], 'g')} of "
        f"{span([a['epochs'] for a in known], 'g')}{weights}."
    )


def _saturation(analyses: Analyses) -> str | None:
    known = [dig(analysis, "train", "loss") for analysis in analyses if dig(analysis, "train", "loss")]
    falling = [loss for loss in known if loss["best_epoch"] == loss["latest_epoch"] > 1]
    return f"Train loss was still falling at the last epoch{_of(falling, known)}." if falling else None


def _weakest_class(analyses: Analyses) -> str | None:
    weakest: list[tuple[str, float]] = []
    for analysis in analyses:
        classes = dig(analysis, "scored", "validation", "whole", "classes") or {}
        recalls = {name: of.get("recall") for name, of in classes.items() if of.get("support", 1)}
        known = {name: recall for name, recall in recalls.items() if recall is not None}
        if len(known) > 1:
            name = min(known, key=lambda name: known[name])
            weakest.append((name, known[name]))
    names = sorted({name for name, _ in weakest})
    each = [
        f"{name}, recall {span([recall for other, recall in weakest if other == name], '.2f')}"
        f"{_of([other for other, _ in weakest if other == name], weakest)}"
        for name in names
    ]
    return f"Weakest class: {'; '.join(each)}." if each else None


def _lines(analyses: Analyses) -> str | None:
    known = []
    for analysis in analyses:
        scored = dig(analysis, "scored", "validation") or {}
        pair = [dig(scored, *keys, "balanced_accuracy") for keys in (("by_lines", "20"), ("whole",))]
        if None not in pair:
            known.append(pair)
    if not known:
        return None
    early, whole = (span(values, ".3f") for values in zip(*known, strict=True))
    return f"After 20 lines: balanced accuracy {early}, where the whole scan gives {whole}."


def best_of(analysis: dict[str, Any]) -> str | None:
    """By which validation figure the best epoch is told: balanced accuracy, or accuracy where there is no other."""
    return next((name for name in ("balanced_accuracy", "accuracy") if name in analysis["validation"]), None)


def _best(analysis: dict[str, Any]) -> dict[str, float]:
    return analysis["validation"][best_of(analysis)]


def _rested(analysis: dict[str, Any]) -> float:
    return analysis["rested"][best_of(analysis)]


def _name(analysis: dict[str, Any]) -> str:
    return f"validation {str(best_of(analysis)).replace('_', ' ')}"


RULES: tuple[Callable[[Analyses], str | None], ...] = (
    _divergence,
    _chance,
    _overfitting,
    _turn,
    _plateau,
    _best_epoch,
    _saturation,
    _weakest_class,
    _lines,
)
