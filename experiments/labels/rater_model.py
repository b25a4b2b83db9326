"""How reliable people's votes are, and what somebody who knows the true state would score against them.

Everything here counts votes; who gave them is not known, and needs not be: votes on a picture are taken as draws from
the same people.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRUTH_FIGURES = ("accuracy", "balanced_accuracy", "auroc", "auroc_of_labels")
CLEAR, AMBIGUOUS, MIXED, EMPTY = VOTE_KINDS = ("clear", "ambiguous", "mixed", "empty")


@dataclass(frozen=True)
class RaterModel:
    """
    Votes that are independent once the true class is given.

    Attributes:
        prior: how frequent each true class is `[num_labels]`.
        confusion: probability of a vote for each class, by true class `[num_labels, num_labels]`, rows sum to 1.
    """

    prior: np.ndarray
    confusion: np.ndarray

    def given_unanimous(self, num_votes: int) -> np.ndarray:
        """Probability of each true class where all of `num_votes` are for one, `[true, voted]`, columns sum to 1."""
        joint = self.prior[:, None] * self.confusion**num_votes
        return joint / np.maximum(joint.sum(axis=0), 1e-300)

    def share_unanimous(self, num_votes: int) -> float:
        """Share of the pictures on which so many votes are all for one class."""
        return float(self.prior @ (self.confusion**num_votes).sum(axis=1))


def box_agreement(ticks: np.ndarray, num_votes: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    How often two different votes on one picture agree on a box, over the pictures with two votes or more.

    With k ticks of n votes, it is the share of the pairs that do: `[k(k-1) + (n-k)(n-k-1)] / [n(n-1)]`.

    Args:
        ticks: how many votes tick each box `[num_pictures, num_boxes]`.
        num_votes: `[num_pictures]`.
        weights: how often each picture counts `[num_pictures]`.

    Returns:
        For each box `[num_boxes]`: `agreement`; `ticked_again`, the share of ticks that another vote on the picture
        repeats; `kappa`, the agreement beyond that of votes on different pictures, as a share of what is possible.
    """
    several = num_votes >= 2
    k, n, weights = ticks[several], num_votes[several, None], weights[several, None] / max(weights[several].sum(), 1)
    agreement = (weights * (k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1))).sum(axis=0)
    ticked = (weights * k / n).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        again = (weights * k * (k - 1) / (n * (n - 1))).sum(axis=0) / ticked
        kappa = 1 - (1 - agreement) / (2 * ticked * (1 - ticked))
    return {"agreement": agreement, "ticked_again": again, "kappa": kappa}


def count_class_votes(
    ticks: np.ndarray, num_votes: np.ndarray, members: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """
    How many votes are for each class, where ticks of boxes tell it.

    A vote is for a class if it ticks boxes of that class and of no other. Nobody is taken to have ticked nothing, but
    where there are fewer ticks than votes. Then ticks tell the votes if they are all of one class, or as many as
    votes, hence one each.

    Args:
        ticks: how many votes tick each box, int `[num_pictures, num_boxes]`.
        num_votes: int `[num_pictures]`, at least 1.
        members: the boxes that make up each class.

    Returns:
        Votes int `[num_pictures, num_labels]`, and the kind of each picture `[num_pictures]`: `clear`, where every
        vote is for one class; `mixed`, where one is certainly for several; `empty`, where one certainly ticks
        nothing; `ambiguous`, where all may be for one class each or not. For `ambiguous` ones votes are those of the
        former case where only one such case is possible. All other rows are 0.
    """
    fewest = np.stack([ticks[:, list(boxes)].max(axis=1) for boxes in members], axis=1)
    of_class = np.stack([ticks[:, list(boxes)].sum(axis=1) for boxes in members], axis=1)
    total = ticks.sum(axis=1)
    single = (of_class > 0).sum(axis=1) == 1
    kinds = np.select(
        [total < num_votes, single | (total == num_votes), fewest.sum(axis=1) > num_votes],
        [EMPTY, CLEAR, MIXED],
        AMBIGUOUS,
    )
    clear = np.where(single[:, None], np.minimum(of_class, num_votes[:, None]), of_class)
    told = (kinds == AMBIGUOUS) & (fewest.sum(axis=1) == num_votes)
    votes = np.where((kinds == CLEAR)[:, None], clear, np.where(told[:, None], fewest, 0))
    return votes, kinds


def pair_votes(votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    How frequent each pair of votes on one picture is, in either order: symmetric `[num_labels, num_labels]`, sum 1.

    Args:
        votes: for each class `[num_pictures, num_labels]`; pictures with less than two are left out.
        weights: how often each picture counts `[num_pictures]`.
    """
    several = votes.sum(axis=1) >= 2
    votes, weights = votes[several], weights[several]
    total = votes.sum(axis=1)
    weights = weights / (total * (total - 1))
    pairs = np.einsum("p,pi,pj->ij", weights, votes, votes) - np.diag(weights @ votes)
    return pairs / max(pairs.sum(), 1e-300)


def conditional(pairs: np.ndarray) -> np.ndarray:
    """Probability of another vote given the first, of what [`pair_votes`] gives; NaN where nobody voted so."""
    with np.errstate(invalid="ignore"):
        return pairs / pairs.sum(axis=1, keepdims=True)


def third_given_two(votes: np.ndarray, weights: np.ndarray) -> float:
    """
    How often a third vote is for the class that two others on the picture are for; NaN without three votes on any.

    Args:
        votes: for each class `[num_pictures, num_labels]`.
        weights: how often each picture counts `[num_pictures]`.
    """
    several = votes.sum(axis=1) >= 3
    k, weights = votes[several], weights[several]
    n = k.sum(axis=1)
    pairs = weights @ ((k * (k - 1)).sum(axis=1) / (n * (n - 1)))
    triples = weights @ ((k * (k - 1) * (k - 2)).sum(axis=1) / (n * (n - 1) * (n - 2)))
    return float(triples / pairs) if pairs > 0 else np.nan


def model_from_pairs(pairs: np.ndarray) -> RaterModel:
    """
    The rater model that pairs of votes alone allow for: the square root of their confusion.

    Pairs have `num_labels (num_labels + 1) / 2 - 1` degrees of freedom, too few for any prior and confusion. Taken
    are those with true classes as frequent as votes for them, and mistakes balanced: as many votes for j where i is
    true as for i where j is. Then `P(second | first)` is the confusion applied twice.

    Args:
        pairs: as [`pair_votes`] gives them. A class without a vote is never mistaken.
    """
    frequency = pairs.sum(axis=1)
    scale = np.sqrt(np.maximum(frequency, 1e-12))
    values, vectors = np.linalg.eigh(pairs / np.outer(scale, scale))
    # votes that repel each other have no square root: they are taken as unrelated
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    confusion = np.where(frequency[:, None] > 0, np.maximum(root * scale / scale[:, None], 0), np.eye(len(pairs)))
    return RaterModel(frequency, confusion / confusion.sum(axis=1, keepdims=True))


def fit_rater_model(
    votes: np.ndarray,
    weights: np.ndarray,
    start: RaterModel,
    pseudo_votes: float = 1.0,
    max_steps: int = 2000,
    tolerance: float = 1e-5,
) -> RaterModel:
    """
    Fits a rater model by expectation maximization: Dawid and Skene's, with one confusion for all people.

    Three votes on some pictures are needed to tell true classes from votes; what one and two leave open stays near the
    start.

    Args:
        votes: for each class `[num_pictures, num_labels]`.
        weights: how often each picture counts `[num_pictures]`.
        start: where to begin.
        pseudo_votes: votes, distributed as the start has them, that are added for each true class, so that a class
            with few votes keeps a confusion.
        max_steps: of the iteration.
        tolerance: largest change of a probability at which it ends.
    """
    patterns, place = np.unique(votes, axis=0, return_inverse=True)
    counts = np.bincount(place.ravel(), weights=weights)
    kept = (counts > 0) & (patterns.sum(axis=1) > 0)
    patterns, counts = patterns[kept], counts[kept]
    prior, confusion = start.prior, start.confusion
    for _ in range(max_steps):
        with np.errstate(divide="ignore"):  # a class that the start does not know stays unknown
            log_prior = np.log(prior)
        log_joint = log_prior + patterns @ np.log(np.maximum(confusion, 1e-12)).T
        posterior = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        posterior *= counts[:, None] / posterior.sum(axis=1, keepdims=True)
        told = posterior.T @ patterns + pseudo_votes * start.confusion
        new_prior, new_confusion = posterior.sum(axis=0) / counts.sum(), told / told.sum(axis=1, keepdims=True)
        change = max(np.abs(new_prior - prior).max(), np.abs(new_confusion - confusion).max())
        prior, confusion = new_prior, new_confusion
        if change < tolerance:
            break
    return RaterModel(prior, confusion)


def score_of_truth(model: RaterModel, scored: np.ndarray) -> dict[str, float]:
    """
    What the true class, told as the verdict, would score against unanimous labels.

    Args:
        model: of the votes.
        scored: number of scans by label and number of votes, of 1, 2, ... votes, `[num_labels, max_votes]`.

    Returns:
        `TRUTH_FIGURES` over the labels with a scan: `accuracy`, `balanced_accuracy`, `auroc` (macro, one against the
        rest, of verdicts that are certain) and `auroc_of_labels` (of the probability of each label given the true
        class). NaN where nothing is scored, or a label that is scored is none to the model.
    """
    if scored.sum() <= 0 or (scored.sum(axis=1)[model.prior <= 0] > 0).any():
        return dict.fromkeys(TRUTH_FIGURES, np.nan)
    by_votes = [model.given_unanimous(number + 1) * counts for number, counts in enumerate(scored.T)]
    joint = np.sum(by_votes, axis=0) / scored.sum()  # [true, label]
    present = np.flatnonzero(scored.sum(axis=1) > 0).tolist()
    label_given_truth = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
    certain = np.eye(len(joint))
    figures = (
        np.trace(joint),
        (np.diag(joint)[present] / joint.sum(axis=0)[present]).mean(),
        np.mean([_auroc(certain[:, label], joint, label) for label in present]),
        np.mean([_auroc(label_given_truth[:, label], joint, label) for label in present]),
    )
    return {name: float(figure) for name, figure in zip(TRUTH_FIGURES, figures, strict=True)}


def _auroc(scores: np.ndarray, joint: np.ndarray, label: int) -> float:
    """Probability that a scan of the label scores above one of another, of scores by true class; half for ties."""
    positive = joint[:, label] / joint[:, label].sum()
    others = joint.sum(axis=1) - joint[:, label]
    if others.sum() <= 0:
        return float("nan")
    above = (np.sign(scores[:, None] - scores) + 1) / 2
    return float(positive @ above @ (others / others.sum()))
