"""Deciding early: what is promised holds on scans that the thresholds were not found on."""

import numpy as np
import pytest

from experiments.calibration import cross_calibrated
from experiments.decision import cross_decided, decide, error_bound, fit_thresholds
from experiments.probabilities import Probabilities

COUNTS = np.array([5, 20, 128])


def verdict_of(by_lines: np.ndarray, labels: np.ndarray, prefix: str = "scan") -> Probabilities:
    names = np.array([f"{prefix} {number}" for number in range(len(labels))])
    return Probabilities(names, names, labels, np.array(["rows", "dimers"]), COUNTS, by_lines, by_lines[-1])


def honest(num_scans: int, seed: int) -> Probabilities:
    """Of two classes, with probabilities that are those of the labels, and more evidence with more lines."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_scans)
    steps = rng.normal((2 * labels - 1) * 0.5, 1, (16, num_scans)).cumsum(axis=0)[[0, 3, 15]]
    of_second = 1 / (1 + np.exp(-2 * 0.5 * steps))
    return verdict_of(np.stack([1 - of_second, of_second], axis=-1), labels, f"{seed}")


@pytest.fixture
def by_hand() -> Probabilities:
    of_first = np.array([[0.95, 0.6, 0.55, np.nan], [0.2, 0.9, 0.6, np.nan], [0.1, 0.2, 0.4, 0.99]])
    return verdict_of(np.stack([of_first, 1 - of_first], axis=-1), np.array([0, 1, 1, 0]))


def test_the_first_line_count_at_the_threshold_decides(by_hand):
    decisions = decide(by_hand, 0.9)
    assert decisions.lines.tolist() == [5, 20, 0, 128]
    assert decisions.decided.tolist() == [True, True, False, True]
    assert decisions.right.tolist() == [True, False, False, True]


def test_no_verdict_is_no_decision(by_hand):
    assert decide(by_hand, 0.0).lines.tolist() == [5, 5, 5, 128]


@pytest.mark.parametrize(("wrong", "decided", "bound"), [(0, 0, 1.0), (0, 45, 0.0499), (3, 3, 1.0), (5, 100, 0.0908)])
def test_bounds_are_clopper_and_pearson_s(wrong, decided, bound):
    assert error_bound(wrong, decided) == pytest.approx(bound, abs=2e-4)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_the_error_on_other_scans_is_below_alpha(alpha):
    """In 9 of 10 draws of the scans that the threshold is found on, but for chance."""
    others = honest(20_000, 1000)
    exceeded = 0
    for seed in range(40):
        found = fit_thresholds([honest(300, seed), honest(200, 100 + seed)], [alpha])
        if found:
            decisions = decide(others, found[alpha])
            exceeded += 1 - decisions.right[decisions.decided].mean() > alpha
    assert exceeded <= 8


def test_more_error_decides_earlier_and_more():
    figures = cross_decided([honest(1000, seed) for seed in range(3)], [0.05, 0.1, 0.2])["early"]
    assert [row["alpha"] for row in figures] == [0.05, 0.1, 0.2]
    assert all(row["error"] <= row["alpha"] for row in figures)
    for name in ("abstention", "mean_lines"):
        values = [row[name] for row in figures]
        assert values == sorted(values, reverse=True)


def test_too_few_scans_bear_out_nothing():
    assert fit_thresholds([honest(20, 0)], [0.05]) == {}
    figures = cross_decided([honest(10, 0), honest(10, 1)], [0.05])["early"][0]
    assert figures == {"alpha": 0.05, "error": None, "abstention": 1.0, "median_lines": None, "mean_lines": None}


def test_a_model_that_guesses_is_never_believed():
    guesses = honest(2000, 0)
    guesses.labels = np.random.default_rng(1).integers(0, 2, 2000)
    assert fit_thresholds([guesses], [0.05, 0.2]) == {}


def test_all_scans_after_a_fixed_number_of_lines(by_hand):
    other = honest(500, 0)
    fixed = cross_decided([by_hand, other], [0.2])["fixed"]
    assert [row["lines"] for row in fixed] == COUNTS.tolist()
    assert fixed[0]["abstention"] == pytest.approx(1 / 504)
    # what the calibration by the other one makes of it: a verdict near a half may change sides
    right = sum((of.by_lines[2].argmax(-1) == of.labels).sum() for of in cross_calibrated([by_hand, other]))
    assert fixed[2]["error"] == pytest.approx(1 - right / 504)
