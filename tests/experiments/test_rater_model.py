"""Agreement of votes, and the rater model."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from experiments.labels.rater_model import (
    AMBIGUOUS,
    CLEAR,
    EMPTY,
    MIXED,
    RaterModel,
    box_agreement,
    conditional,
    count_class_votes,
    fit_rater_model,
    model_from_pairs,
    pair_votes,
    score_of_truth,
    third_given_two,
)

PRIOR = np.array([0.2, 0.5, 0.3])
# mistakes are not balanced: nobody takes class 0 for class 2, and many take 2 for 0
UNBALANCED = np.array([[0.9, 0.1, 0.0], [0.02, 0.95, 0.03], [0.15, 0.05, 0.8]])


def vote(model: RaterModel, num_votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True classes `[num_pictures]` and votes for each class `[num_pictures, num_labels]`."""
    rng = np.random.default_rng(5)
    truth = rng.choice(len(model.prior), size=len(num_votes), p=model.prior)
    return truth, np.stack([rng.multinomial(n, model.confusion[t]) for n, t in zip(num_votes, truth, strict=True)])


def balanced_model() -> RaterModel:
    """Mistakes as many from i to j as from j to i."""
    mistakes = np.array([[0, 0.015, 0.01], [0.015, 0, 0.03], [0.01, 0.03, 0]]) / PRIOR[:, None]
    return RaterModel(PRIOR, mistakes + np.diag(1 - mistakes.sum(axis=1)))


def test_agreement_on_a_box_is_that_of_all_pairs_of_votes():
    rng = np.random.default_rng(1)
    votes = [rng.integers(0, 2, (n, 3)) for n in (1, 2, 3, 5, 4)]
    ticks, num_votes = np.stack([given.sum(axis=0) for given in votes]), np.array([len(given) for given in votes])
    pairs = [list(permutations(given, 2)) for given in votes[1:]]
    agreement = np.mean([np.mean([a == b for a, b in of], axis=0) for of in pairs], axis=0)
    both = np.mean([np.mean([a * b for a, b in of], axis=0) for of in pairs], axis=0)
    ticked = np.mean([given.mean(axis=0) for given in votes[1:]], axis=0)
    found = box_agreement(ticks, num_votes, np.ones(5))
    np.testing.assert_allclose(found["agreement"], agreement)
    np.testing.assert_allclose(found["ticked_again"], both / ticked)


def test_kappa_is_1_for_one_mind_and_0_for_chance():
    rng = np.random.default_rng(0)
    num_votes = np.full(20000, 2)
    chance = rng.binomial(2, 0.3, (20000, 1))
    one_mind = 2 * rng.binomial(1, 0.3, (20000, 1))
    assert box_agreement(one_mind, num_votes, np.ones(20000))["kappa"] == pytest.approx(1)
    assert box_agreement(chance, num_votes, np.ones(20000))["kappa"] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("ticks", "num_votes", "kind", "votes"),
    [
        ([1, 0, 0, 0], 1, CLEAR, [1, 0]),
        ([1, 1, 0, 0], 1, CLEAR, [1, 0]),
        ([1, 0, 1, 0], 1, MIXED, [0, 0]),
        ([0, 0, 0, 0], 1, EMPTY, [0, 0]),
        ([2, 0, 0, 0], 2, CLEAR, [2, 0]),
        ([1, 1, 0, 0], 2, CLEAR, [2, 0]),
        ([1, 0, 1, 0], 2, CLEAR, [1, 1]),
        ([2, 0, 1, 0], 2, MIXED, [0, 0]),
        ([1, 0, 1, 1], 2, AMBIGUOUS, [1, 1]),
        ([1, 0, 0, 0], 2, EMPTY, [0, 0]),
        ([2, 1, 0, 0], 3, CLEAR, [3, 0]),
        ([1, 0, 1, 1], 3, CLEAR, [1, 2]),
        ([1, 1, 1, 1], 3, AMBIGUOUS, [0, 0]),  # two of the first class and one of the second, or the reverse
        ([2, 0, 1, 1], 3, AMBIGUOUS, [2, 1]),
    ],
)
def test_votes_for_a_class_by_ticks_of_its_boxes(ticks, num_votes, kind, votes):
    found, kinds = count_class_votes(np.array([ticks]), np.array([num_votes]), [[0, 1], [2, 3]])
    assert kinds.tolist() == [kind]
    assert found.tolist() == [votes]


def test_pairs_are_those_of_different_votes():
    votes = np.array([[2, 0, 0], [1, 1, 0], [1, 0, 2], [1, 0, 0]])
    weights = np.array([1.0, 2.0, 3.0, 5.0])
    expected = np.zeros((3, 3))
    for counts, weight in zip(votes[:3], weights, strict=False):
        given = np.repeat(np.arange(3), counts)
        pairs = list(permutations(given, 2))
        for first, second in pairs:
            expected[first, second] += weight / len(pairs) / 6
    np.testing.assert_allclose(pair_votes(votes, weights), expected)
    assert np.isnan(conditional(pair_votes(votes, weights))[1]).sum() == 0
    assert np.isnan(conditional(pair_votes(votes[:1], weights[:1]))[1:]).all()


def test_a_third_vote_given_two():
    votes = np.array([[3, 0], [2, 1], [2, 0]])
    assert third_given_two(votes, np.ones(3)) == pytest.approx(1 / (1 + 1 / 3))
    assert np.isnan(third_given_two(votes[2:], np.ones(1)))


def test_pairs_alone_tell_balanced_mistakes():
    model = balanced_model()
    pairs = model.confusion.T @ np.diag(model.prior) @ model.confusion
    found = model_from_pairs(pairs)
    np.testing.assert_allclose(found.prior, model.prior, atol=1e-9)
    np.testing.assert_allclose(found.confusion, model.confusion, atol=1e-9)

    _, votes = vote(model, np.full(8000, 2))
    np.testing.assert_allclose(
        model_from_pairs(pair_votes(votes, np.ones(8000))).confusion, model.confusion, atol=0.03
    )


def test_a_class_without_a_vote_is_no_obstacle():
    pairs = np.array([[0.4, 0.1, 0], [0.1, 0.4, 0], [0, 0, 0]])
    model = model_from_pairs(pairs)
    assert np.isfinite(model.confusion).all()
    assert model.confusion[2].tolist() == [0, 0, 1]
    fitted = fit_rater_model(np.array([[2, 0, 0], [1, 1, 0], [0, 3, 0]]), np.ones(3), model)
    assert np.isfinite(fitted.confusion).all() and np.isfinite(fitted.prior).all()


def test_three_votes_tell_mistakes_of_any_kind():
    model = RaterModel(PRIOR, UNBALANCED)
    num_votes = np.random.default_rng(0).choice([1, 2, 3, 4], size=8000, p=[0.3, 0.3, 0.3, 0.1])
    _, votes = vote(model, num_votes)
    ones = np.ones(len(votes))
    start = model_from_pairs(pair_votes(votes, ones))
    found = fit_rater_model(votes, ones, start)
    assert np.abs(start.confusion - UNBALANCED).max() > 0.05
    np.testing.assert_allclose(found.prior, PRIOR, atol=0.02)
    np.testing.assert_allclose(found.confusion, UNBALANCED, atol=0.03)
    repeated = fit_rater_model(votes[:4000], np.full(4000, 2.0), start)
    twice = fit_rater_model(np.concatenate([votes[:4000], votes[:4000]]), ones, start)
    np.testing.assert_allclose(repeated.confusion, twice.confusion, atol=1e-6)


def test_score_of_the_truth_is_that_of_simulated_votes():
    model = RaterModel(PRIOR, UNBALANCED)
    num_votes = np.random.default_rng(1).choice([1, 2, 3], size=200_000, p=[0.6, 0.3, 0.1])
    truth, votes = vote(model, num_votes)
    unanimous = votes.max(axis=1) == num_votes
    truth, labels, num_votes = truth[unanimous], votes[unanimous].argmax(axis=1), num_votes[unanimous]
    scored = np.zeros((3, 3))
    np.add.at(scored, (labels, num_votes - 1), 1)
    found = score_of_truth(model, scored)
    certain = np.eye(3)[truth]
    joint = np.zeros((3, 3))
    np.add.at(joint, (truth, labels), 1)
    of_labels = (joint / joint.sum(axis=1, keepdims=True))[truth]
    classes = np.eye(3)[labels]
    assert found["accuracy"] == pytest.approx((truth == labels).mean(), abs=0.003)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, truth), abs=0.003)
    assert found["auroc"] == pytest.approx(roc_auc_score(classes, certain), abs=0.003)
    assert found["auroc_of_labels"] == pytest.approx(roc_auc_score(classes, of_labels), abs=0.003)


def test_nothing_scored_has_no_score():
    assert np.isnan(list(score_of_truth(balanced_model(), np.zeros((3, 2))).values())).all()
