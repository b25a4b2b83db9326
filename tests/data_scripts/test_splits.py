import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.splits import Split, groups_of, split_indices

quick = settings(deadline=None, derandomize=True, max_examples=25)
NUM_CLASSES = 3
# two scans of each class in each of 20 sessions
SESSIONS = np.repeat([f"session {number}" for number in range(20)], 2 * NUM_CLASSES)
LABELS = np.tile(np.arange(NUM_CLASSES), 2 * 20)


def assert_complete(parts: dict[str, np.ndarray], num_scans: int) -> None:
    indices = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(indices), np.arange(num_scans))


@st.composite
def collections(draw):
    """Labels and sessions of all sizes, some of one class, some sessions of one scan."""
    num_scans = draw(st.integers(1, 80))
    labels = draw(st.lists(st.integers(0, 3), min_size=num_scans, max_size=num_scans))
    sessions = draw(st.lists(st.integers(0, draw(st.integers(0, 25))), min_size=num_scans, max_size=num_scans))
    return np.array(labels), [f"session {session}" for session in sessions]


class TestSessions:
    @pytest.mark.filterwarnings("error")
    @quick
    @given(
        collection=collections(),
        test_fraction=st.sampled_from([0.0, 0.2]),
        seed=st.integers(0, 1000),
    )
    def test_never_torn_or_refused(self, collection, test_fraction, seed):
        labels, sessions = collection
        try:
            parts = split_indices(labels, sessions, "sessions", 0.2, test_fraction, seed)
        except ValueError as error:
            assert any(reason in str(error) for reason in ("sessions", "one class", "No scan of class"))
            return
        assert_complete(parts, len(labels))
        sides = [{sessions[index] for index in indices} for indices in parts.values()]
        assert sum(map(len, sides)) == len(set(sessions))
        assert all(set(labels[indices]) == set(labels) for indices in parts.values())

    @pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.8])
    def test_hold_out_the_share_asked_for(self, fraction):
        parts = split_indices(LABELS, SESSIONS, "sessions", fraction)
        assert len(parts["validation"]) / len(LABELS) == pytest.approx(fraction, rel=0.15)

    def test_classes_even_where_sessions_allow(self):
        validation = split_indices(LABELS, SESSIONS, "sessions", 0.2)["validation"]
        np.testing.assert_array_equal(np.bincount(LABELS[validation]), [8, 8, 8])

    def test_too_few(self):
        with pytest.raises(ValueError, match="needs at least 5 sessions, got 2: use split=random"):
            split_indices(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"], "sessions", 0.2)

    def test_too_few_scans_of_every_class(self):
        with pytest.raises(ValueError, match="split by sessions"):
            split_indices(np.array([0, 1] * 4), [str(number) for number in range(8)], "sessions", 0.2)

    def test_class_of_one_session(self):
        labels = np.where(SESSIONS == "session 7", NUM_CLASSES, LABELS)
        with pytest.raises(ValueError, match=r"No scan of class 3 in the (train|validation) part"):
            split_indices(labels, SESSIONS, "sessions")
        with pytest.raises(ValueError, match=r"No scan of class rows in the (train|validation) part"):
            split_indices(labels, SESSIONS, "sessions", label_names=["atoms", "dimers", "defects", "rows"])


class TestRandom:
    def test_stratified(self):
        labels = np.repeat([0, 1, 2], [100, 50, 20])
        parts = split_indices(labels, ["one"] * 170, "random", 0.2, 0.1)
        assert_complete(parts, 170)
        assert {name: np.bincount(labels[indices]).tolist() for name, indices in parts.items()} == {
            "train": [70, 35, 14],
            "validation": [20, 10, 4],
            "test": [10, 5, 2],
        }

    def test_class_of_one_scan(self):
        with pytest.raises(ValueError, match="The random split is not possible"):
            split_indices(np.array([0, 0, 0, 0, 0, 1]), ["one"] * 6, "random")

    def test_too_few_scans_for_every_part(self):
        with pytest.raises(ValueError, match=r"random split is not possible|No scan of class"):
            split_indices(np.array([0, 1, 2, 0, 1, 2]), ["one"] * 6, "random", 0.2)


@pytest.mark.parametrize("method", ["sessions", "random"])
class TestBoth:
    def test_same_seed_same_split(self, method):
        first, again, other = (split_indices(LABELS, SESSIONS, method, 0.2, 0.1, seed) for seed in (3, 3, 4))
        assert list(first) == ["train", "validation", "test"]
        assert all((first[name] == again[name]).all() for name in first)
        assert set(first["validation"]) != set(other["validation"])

    def test_no_test_part_unless_asked_for(self, method):
        parts = split_indices(LABELS, SESSIONS, method)
        assert list(parts) == ["train", "validation"]
        assert_complete(parts, len(LABELS))
        assert len(parts["validation"]) == pytest.approx(0.2 * len(LABELS), abs=1)

    def test_labels_need_not_be_contiguous(self, method):
        parts = split_indices(LABELS * 3 + 1, SESSIONS, method)
        assert all(set(LABELS[indices]) == {0, 1, 2} for indices in parts.values())

    def test_one_class(self, method):
        with pytest.raises(ValueError, match="All 120 labelled scans are of one class"):
            split_indices(np.zeros(120, dtype=int), SESSIONS, method)

    def test_empty(self, method):
        with pytest.raises(ValueError, match="no labelled scan"):
            split_indices(np.zeros(0, dtype=int), [], method)

    @pytest.mark.parametrize(
        ("validation", "test"), [(0, 0), (1, 0), (-0.1, 0), (0.2, 0.8), (0.2, -0.1), (0.2, 1), (float("nan"), 0)]
    )
    def test_impossible_fractions(self, method, validation, test):
        with pytest.raises(ValueError, match="leave scans to train on"):
            split_indices(LABELS, SESSIONS, method, validation, test)


def test_unknown_method():
    with pytest.raises(ValueError, match="split must be one of sessions, random, all, validation, got 'folds'"):
        split_indices(LABELS, SESSIONS, "folds")


class TestFile:
    SPLIT = Split(
        method="sessions",
        seed=3,
        dataset="hsi100",
        parts={"train": ["a", "ü"], "validation": ["b"]},
        sessions={"train": ["s"], "validation": []},
        counts={"train": {"rows": 2}, "validation": {"rows": 1}},
    )

    def test_round_trip(self, tmp_path):
        self.SPLIT.save(tmp_path / "split.json")
        assert Split.load(tmp_path / "split.json") == self.SPLIT

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b"null",
            b"{}",
            b'{"method": "sessions", "seed": 0, "dataset": "x", "parts": {}, "folds": 5}',
            b'{"method": "sessions", "seed": 0, "dataset": "x", "parts": "train"}',
            b'{"method": "sessions", "seed": 0, "dataset": "x", "parts": {"train": "abc"}}',
            b'{"method": "sessions", "seed": 0, "dataset": "x", "parts": {"train": [1, 2]}}',
            b'{"method": "sessions", "seed": 0, "dataset": "x", "parts": {"validation": ["a"]}}',
        ],
    )
    def test_broken(self, content, tmp_path):
        (tmp_path / "split.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"split\.json: not a split written by a run"):
            Split.load(tmp_path / "split.json")

    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match="not a split written by a run"):
            Split.load(tmp_path / "split.json")

    def test_scan_in_two_parts(self, tmp_path):
        content = {"method": "random", "seed": 0, "dataset": "x", "parts": {"train": ["a", "b"], "validation": ["b"]}}
        (tmp_path / "split.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="not a split written by a run"):
            Split.load(tmp_path / "split.json")


class TestFolds:
    @pytest.mark.parametrize("method", ["sessions", "random"])
    def test_every_scan_is_validated_on_once(self, method):
        parts = [split_indices(LABELS, SESSIONS, method, num_folds=5, fold=fold) for fold in range(5)]
        for part in parts:
            assert_complete(part, len(LABELS))
            np.testing.assert_array_equal(np.bincount(LABELS[part["validation"]]), [8, 8, 8])
            if method == "sessions":
                assert not set(SESSIONS[part["train"]]) & set(SESSIONS[part["validation"]])
        validated = np.sort(np.concatenate([part["validation"] for part in parts]))
        np.testing.assert_array_equal(validated, np.arange(len(LABELS)))

    def test_fixed_by_the_seed(self):
        first, again, other = (
            split_indices(LABELS, SESSIONS, num_folds=4, fold=1, seed=seed)["validation"].tolist()
            for seed in (3, 3, 4)
        )
        assert first == again != other

    @pytest.mark.parametrize(
        "arguments", [{"num_folds": 1}, {"num_folds": 5, "fold": 5}, {"num_folds": 5, "test_fraction": 0.2}]
    )
    def test_impossible(self, arguments):
        with pytest.raises(ValueError, match="Cross-validation needs"):
            split_indices(LABELS, SESSIONS, **arguments)

    def test_more_than_there_are_sessions(self):
        with pytest.raises(ValueError, match="21 folds need as many sessions"):
            split_indices(LABELS, SESSIONS, num_folds=21)


class TestExtended:
    """A split of `class/file`, whose files are sorted anew."""

    SPLIT = Split(
        parts={"train": ["good/1", "good/2", "double/3", "double/4"], "validation": ["good/5", "double/6"]},
        sessions={"train": [], "validation": []},
        counts={},
        method="random",
        seed=0,
        dataset="folder",
    )

    def parts(self, *scan_ids: str) -> dict[str, set[str]]:
        names = np.array(scan_ids)
        groups = groups_of([None] * len(names), names)
        parts = self.SPLIT.extended(names, groups, np.arange(len(names)) % 2, 0.2, 0.0)
        return {name: set(names[part].tolist()) for name, part in parts.items()}

    def test_a_scan_that_got_another_class_keeps_its_part(self):
        """Or it would be held out of a model that starts from one that was trained on it."""
        parts = self.parts("good/1", "blunt/2", "double/3", "blunt/4", "good/5", "blunt/6")
        assert parts == {"train": {"good/1", "double/3", "blunt/2", "blunt/4"}, "validation": {"good/5", "blunt/6"}}

    def test_another_scan_of_the_same_file_name_is_new(self):
        new = [f"blunt/{number}" for number in range(1, 7)]
        parts = self.parts(*(name for ids in self.SPLIT.parts.values() for name in ids), *new)
        assert set(self.SPLIT.parts["validation"]) < parts["validation"]
        assert set().union(*parts.values()) >= set(new)
