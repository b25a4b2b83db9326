import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from experiments.intervals import FIGURES, auroc, balanced_accuracy, interval, session_weights, with_intervals

quick = settings(deadline=None, derandomize=True, max_examples=30)


def verdicts(seed: int, num_scans: int = 60, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(4), rng.integers(0, 4, num_scans - 4)])
    scores = rng.random((num_scans, 4)) + 0.5 * np.eye(4)[labels]
    scores = np.round(scores, 1) if rounded else scores
    return scores / scores.sum(axis=1, keepdims=True), labels


class TestFigures:
    @quick
    @given(seed=st.integers(0, 10**6), rounded=st.booleans())
    def test_are_those_of_scikit_learn(self, seed, rounded):
        probabilities, labels = verdicts(seed, rounded=rounded)
        weights = np.random.default_rng(seed).integers(1, 4, (3, len(labels))).astype(float)
        areas = [
            np.mean(
                [roc_auc_score(labels == label, probabilities[:, label], sample_weight=weight) for label in range(4)]
            )
            for weight in weights
        ]
        np.testing.assert_allclose(auroc(probabilities, labels, weights), areas, atol=1e-9)
        recalls = [
            balanced_accuracy_score(labels, probabilities.argmax(axis=1), sample_weight=weight) for weight in weights
        ]
        np.testing.assert_allclose(balanced_accuracy(probabilities, labels, weights), recalls, atol=1e-9)

    @pytest.mark.parametrize("figure", FIGURES.values())
    def test_a_class_that_no_session_drawn_holds_is_left_out(self, figure):
        probabilities, labels = verdicts(0)
        weights = np.where(labels == 2, 0.0, 1.0)
        kept = labels != 2
        expected = figure(probabilities[kept], labels[kept], np.ones((1, kept.sum())))
        np.testing.assert_allclose(figure(probabilities, labels, weights[None]), expected)


class TestSessions:
    def test_are_drawn_whole_and_as_many_as_there_are(self):
        groups = np.repeat(["a", "b", "c"], [5, 1, 3])
        weights = session_weights(groups, 200)
        assert all(len(np.unique(weights[:, groups == name], axis=1).T) == 1 for name in "abc")
        np.testing.assert_array_equal(weights[:, [0, 5, 6]].sum(axis=1), 3)
        np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.2)

    def test_of_alike_scans_widen_the_interval(self):
        hit = np.repeat(np.random.default_rng(0).random(20) < 0.7, 30)  # all scans of a session right, or all wrong
        probabilities, labels = np.eye(2)[hit.astype(int)], np.ones(600, dtype=int)
        widths = [
            np.diff(interval(balanced_accuracy(probabilities, labels, session_weights(groups, 500))))[0]
            for groups in (np.arange(600), np.repeat(np.arange(20), 30))
        ]
        assert widths[1] > 4 * widths[0]


def test_intervals_are_wide_where_groups_differ_and_drop_what_cannot_be_told():
    values = np.repeat([0.0, 1.0], 50)

    def figures(weights):
        return {"mean": weights @ values / weights.sum(), "none": np.nan}

    by_group = with_intervals(figures, np.repeat(["a", "b"], 50), 100, 0)
    by_item = with_intervals(figures, np.arange(100).astype(str), 100, 0)
    assert by_group["mean"] == {"value": 0.5, "interval": [0.0, 1.0]}
    low, high = by_item["mean"]["interval"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert by_group["none"] == {"value": None, "interval": None}


class TestWhatIsNotThere:
    def test_a_verdict_that_was_not_given_is_never_right(self):
        probabilities = np.array([[np.nan, np.nan], [0.9, 0.1], [0.2, 0.8]])
        labels, weights = np.array([0, 0, 1]), np.ones((1, 3))
        assert balanced_accuracy(probabilities, labels, weights) == pytest.approx((0.5 + 1) / 2)
        assert auroc(probabilities, labels, weights) == pytest.approx(1.0)

    def test_one_class_has_no_area_and_does_not_widen_the_interval(self):
        """Of sessions of one class each, some resamples have that class alone."""
        labels = np.arange(9) // 3
        perfect = np.eye(3)[labels]
        weights = session_weights(labels.astype(str), 200)
        areas = auroc(perfect, labels, weights)
        assert np.isnan(areas).any() and set(areas[np.isfinite(areas)]) == {1.0}
        assert interval(areas) == (1.0, 1.0)
