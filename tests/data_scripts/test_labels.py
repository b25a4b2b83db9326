import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from data_scripts.builders.hsi100 import SPM_TOOLBOX_CLASSES
from data_scripts.labels import (
    class_weights,
    is_labelled,
    majority_labels,
    make_labels,
    merge_scores,
    soft_labels,
    unanimous_labels,
)
from data_scripts.splits import split_indices

NAMES = ["Asymmetries", "Individual Atoms", "Dimers", "Rows", "Tip Change", "Bad/Blurry"]
COUNTS = dict(zip(NAMES, [1664, 1482, 6830, 3202, 1332, 4422], strict=True))
PUBLISHED_WEIGHTS = [2.845, 0.569, 1.478, 0.823]
NAN = float("nan")
quick = settings(deadline=None, derandomize=True, max_examples=80)
votes = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.75, 1.0, NAN])
score_tables = npst.arrays(np.float32, st.tuples(st.integers(0, 8), st.integers(1, 5)), elements=votes.map(np.float32))


class TestMerging:
    def test_largest_of_the_members(self):
        scores = np.array([[0.5, 0.25, 1, 0, 0.125, 0.75]])
        np.testing.assert_array_equal(merge_scores(scores, NAMES, SPM_TOOLBOX_CLASSES), [[0.25, 1, 0, 0.75]])

    @quick
    @given(order=st.permutations(range(6)), scores=npst.arrays(np.float32, (3, 6), elements=votes.map(np.float32)))
    def test_by_name_whatever_the_order_of_columns(self, order, scores):
        merged = merge_scores(scores, NAMES, SPM_TOOLBOX_CLASSES)
        permuted = merge_scores(scores[:, order], [NAMES[column] for column in order], SPM_TOOLBOX_CLASSES)
        np.testing.assert_array_equal(merged, permuted)
        np.testing.assert_array_equal(merged[:, 0], scores[:, NAMES.index("Individual Atoms")])

    def test_names_differ_in_case_and_blanks(self):
        scores = np.array([[0, 1.0]])
        np.testing.assert_array_equal(merge_scores(scores, [" dimers", "ROWS "], {"rows": ["Rows"]}), [[1]])

    def test_missing_member(self):
        with pytest.raises(ValueError, match=r"No scores for Rows: the columns are Dimers\."):
            merge_scores(np.zeros((1, 1)), ["Dimers"], {"rows": ["Rows"]})


class TestPolicies:
    @pytest.mark.parametrize(
        ("scores", "unanimous", "majority"),
        [
            ([0, 1, 0], 1, 1),
            ([0, 0.75, 0], -1, 1),
            ([0, 0.5, 0.25], -1, 1),
            ([0.5, 0.5, 0], -1, -1),
            ([1, 0, 0.25], -1, 0),
            ([1, 1, 0], -1, -1),
            ([0.25, 0.25, 0.25], -1, -1),
            ([0, 0, 0], -1, -1),
            ([NAN, NAN, NAN], -1, -1),
            ([1, 0, NAN], -1, 0),
        ],
    )
    def test_one_scan(self, scores, unanimous, majority):
        table = np.array([scores])
        assert unanimous_labels(table).tolist() == [unanimous]
        assert majority_labels(table).tolist() == [majority]

    def test_soft_is_the_share_of_votes(self):
        labels = soft_labels(np.array([[1, 0.5, 0.5], [0, 0, 0], [NAN, NAN, NAN]]))
        assert labels.dtype == np.float32
        np.testing.assert_array_equal(labels, [[0.5, 0.25, 0.25], [-1, -1, -1], [-1, -1, -1]])

    @quick
    @given(scores=score_tables)
    def test_policies_agree(self, scores):
        unanimous, majority, soft = (make_labels(scores, policy) for policy in ("unanimous", "majority", "soft"))
        assert unanimous.dtype == majority.dtype == np.int64 and soft.dtype == np.float32
        clear = is_labelled(unanimous)
        np.testing.assert_array_equal(majority[clear], unanimous[clear])
        np.testing.assert_array_equal(soft[clear], np.eye(scores.shape[1])[unanimous[clear]])
        labelled = is_labelled(soft)
        np.testing.assert_array_equal(labelled, np.nansum(scores, axis=1) > 0)
        np.testing.assert_allclose(soft[labelled].sum(axis=1), 1, rtol=1e-6)

    def test_unknown_policy(self):
        with pytest.raises(ValueError, match="unanimous, majority, soft, got 'loudest'"):
            make_labels(np.zeros((1, 4)), "loudest")


class TestClassWeights:
    @quick
    @given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=6))
    def test_mean_over_the_scans_is_one(self, counts):
        labels = np.repeat(np.arange(len(counts)), counts)
        weights = np.array(class_weights(labels, len(counts)))
        assert weights[labels].mean() == pytest.approx(1)
        assert weights * counts == pytest.approx(np.full(len(counts), len(labels) / len(counts)))

    @quick
    @given(
        scores=npst.arrays(
            np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(0.125, 1, width=32)
        )
    )
    def test_mean_over_distributions_is_one(self, scores):
        labels = soft_labels(scores)
        assert (labels @ np.array(class_weights(labels, 3))).mean() == pytest.approx(1, rel=1e-5)

    @pytest.mark.parametrize("labels", [np.array([0, 0, 2]), np.eye(4)[[0, 2, 0]][:, :3]])
    def test_empty_class(self, labels):
        with pytest.raises(ValueError, match="Class 1 has no scan to train on"):
            class_weights(labels, 3)
        with pytest.raises(ValueError, match="Class rows has no scan to train on"):
            class_weights(labels, 3, ["atoms", "rows", "defects"])

    def test_published_weights_are_those_of_a_merge_by_position(self):
        """
        The published weights belong to the training 80 % of a merge that took the first class for atoms: what they
        weight as atoms are the asymmetries, and the atoms are counted with the dimers.
        """
        by_position = {
            "individual_atoms": ["Asymmetries"],
            "asymmetries_dimers": ["Individual Atoms", "Dimers"],
            "rows": ["Rows"],
            "generic_defect": ["Tip Change", "Bad/Blurry"],
        }
        assert training_weights(by_position) == pytest.approx(PUBLISHED_WEIGHTS, abs=5e-4)

    def test_weights_of_the_merge_by_name(self):
        assert training_weights(SPM_TOOLBOX_CLASSES) == pytest.approx([3.194, 0.557, 1.478, 0.823], abs=3e-3)


def training_weights(members) -> list[float]:
    labels = np.repeat(range(len(members)), [sum(COUNTS[name] for name in parts) for parts in members.values()])
    train = split_indices(labels, [""] * len(labels), "random", 0.2)["train"]
    return class_weights(labels[train], len(members))
