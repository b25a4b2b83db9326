"""The metric of lines to decision against scikit-learn, cases worked by hand, and input that it must refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, auc, balanced_accuracy_score

from experiments.probabilities import Probabilities

COUNTS = [5, 10, 20]
# After 5, 10 and 20 lines: right throughout; right, wrong, right; none, right, right; right, right, wrong.
VERDICTS = [[0, 0, 0], [0, 1, 0], [None, 1, 1], [2, 2, 0]]
REFERENCES = [0, 0, 1, 2]

several = settings(
    max_examples=25,
    deadline=None,
    # The metric starts afresh with every compute, so examples may share one.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def metric(load_metric: Callable[..., evaluate.Metric]) -> evaluate.Metric:
    return load_metric("lines_to_decision", keep_in_memory=True)


def random_scans(num_scans: int, num_counts: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[num_scans, num_counts, 4]` that come to know the references `[num_scans]`, some still NaN."""
    rng = np.random.default_rng(seed)
    references = rng.integers(4, size=num_scans)
    skill = np.linspace(0.5, 3, num_counts)[:, None]
    scores = np.exp(rng.normal(size=(num_scans, num_counts, 4)).round(1) + skill * np.eye(4)[references][:, None])
    scores[rng.random(num_scans) < 0.2, 0] = np.nan
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32), references


def test_four_scans_by_hand(metric: evaluate.Metric) -> None:
    results = metric.compute(
        predictions=VERDICTS, references=REFERENCES, line_counts=COUNTS, max_error=[0, 0.25, 0.3, 0.5]
    )
    assert results["settled_lines"] == [5, 20, 10, None]
    assert results["median_lines"] == 10
    assert results["mean_lines"] == pytest.approx(35 / 3)
    assert results["share_never_settled"] == 0.25
    assert results["accuracy_by_lines"] == [0.75, 0.75, 0.75]
    assert results["accuracy_area"] == pytest.approx(0.75)
    # Recalls of the three classes: 2/2, 0/1, 1/1; 1/2, 1/1, 1/1; 2/2, 1/1, 0/1.
    assert results["balanced_accuracy_by_lines"] == pytest.approx([2 / 3, 5 / 6, 2 / 3])
    assert results["balanced_accuracy_area"] == pytest.approx(3 / 4)  # two doublings, each 3/4 in the mean
    assert results["lines_to_error_0"] is None
    assert results["lines_to_error_0.25"] == results["lines_to_error_0.3"] == results["lines_to_error_0.5"] == 5
    assert results["line_counts"] == COUNTS
    assert results["num_scans"] == 4


def test_an_error_is_kept_to_only_from_where_it_stays_low(metric: evaluate.Metric) -> None:
    # Wrong of ten scans after each number of lines: 3, 1, 2, 1, 1.
    wrong = np.arange(10)[:, None] < np.array([3, 1, 2, 1, 1])
    results = metric.compute(
        predictions=wrong.astype(int),
        references=np.zeros(10, int),
        line_counts=[5, 10, 20, 40, 64],
        max_error=(0.3, 0.2, 0.1, 0.05),
    )
    errors = {name: value for name, value in results.items() if name.startswith("lines_to_error_")}
    # 1 wrong scan in 10 is an error of 0.1, which is not above 0.1.
    assert errors == {
        "lines_to_error_0.3": 5,
        "lines_to_error_0.2": 10,
        "lines_to_error_0.1": 40,
        "lines_to_error_0.05": None,
    }


def test_the_curves_agree_with_scikit_learn(metric: evaluate.Metric) -> None:
    probabilities, references = random_scans(97)
    counts = [5, 10, 20, 40, 64, 128]
    results = metric.compute(predictions=probabilities, references=references, line_counts=counts)
    # A fifth class for no verdict, which scikit-learn then averages no recall of.
    verdicts = np.where(np.isnan(probabilities[..., 0]), 4, probabilities.argmax(axis=-1))
    accuracy = [accuracy_score(references, verdicts[:, place]) for place in range(6)]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = [balanced_accuracy_score(references, verdicts[:, place]) for place in range(6)]
    assert results["accuracy_by_lines"] == pytest.approx(accuracy)
    assert results["balanced_accuracy_by_lines"] == pytest.approx(balanced)
    width = np.log(128 / 5)
    assert results["accuracy_area"] == pytest.approx(auc(np.log(counts), accuracy) / width)
    assert results["balanced_accuracy_area"] == pytest.approx(auc(np.log(counts), balanced) / width)


def test_a_single_number_of_lines(metric: evaluate.Metric) -> None:
    results = metric.compute(predictions=[[0], [1]], references=[0, 0], line_counts=[20], max_error=0.5)
    assert results["settled_lines"] == [20, None]
    assert results["accuracy_area"] == 0.5
    assert results["lines_to_error_0.5"] == 20


def test_where_no_scan_settles(metric: evaluate.Metric) -> None:
    results = metric.compute(predictions=[[0, 1], [1, None]], references=[0, 1], line_counts=[5, 10])
    assert results["settled_lines"] == [None, None]
    assert results["median_lines"] is results["mean_lines"] is results["lines_to_error_0.1"] is None
    assert results["share_never_settled"] == 1


@several
@given(
    verdicts=st.integers(1, 7).flatmap(
        lambda width: st.lists(st.lists(st.sampled_from([0, 1, None]), min_size=width, max_size=width), min_size=1)
    ),
    seed=st.integers(0, 99),
)
def test_what_holds_of_any_verdicts(metric: evaluate.Metric, verdicts: list[list[int | None]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    references = rng.integers(2, size=len(verdicts))
    counts = np.cumsum(rng.integers(1, 9, size=len(verdicts[0]))).tolist()
    options = {"line_counts": counts, "max_error": [0.1, 0.3, 1]}
    results = metric.compute(predictions=verdicts, references=references, **options)

    for of_scan, label, settled in zip(verdicts, references, results["settled_lines"], strict=True):
        lasting = [count for place, count in enumerate(counts) if all(said == label for said in of_scan[place:])]
        assert settled == min(lasting, default=None)
    # A scan is right after the last line count if it settles, and only then.
    assert results["share_never_settled"] == pytest.approx(1 - results["accuracy_by_lines"][-1])
    low, high, any_error = (results[f"lines_to_error_{error}"] or np.inf for error in ("0.1", "0.3", "1"))
    assert counts[0] == any_error <= high <= low
    for name in ("accuracy", "balanced_accuracy"):
        curve = results[f"{name}_by_lines"]
        assert min(curve) - 1e-9 <= results[f"{name}_area"] <= max(curve) + 1e-9

    order = rng.permutation(len(verdicts))
    permuted = metric.compute(predictions=[verdicts[scan] for scan in order], references=references[order], **options)
    assert permuted.pop("settled_lines") == [results["settled_lines"][scan] for scan in order]
    del results["settled_lines"]
    assert all(permuted[name] == pytest.approx(value) for name, value in results.items())


def test_probabilities_are_worth_their_most_probable_class(metric: evaluate.Metric) -> None:
    import torch

    probabilities, references = random_scans(40)
    counts = [5, 10, 20, 40, 64, 128]
    expected = metric.compute(predictions=probabilities, references=references, line_counts=counts)
    verdicts = np.where(np.isnan(probabilities[..., 0]), np.nan, probabilities.argmax(axis=-1))
    for same in (verdicts, torch.tensor(probabilities), probabilities.tolist()):
        assert metric.compute(predictions=same, references=references, line_counts=np.array(counts)) == expected


def test_takes_what_a_run_has_left(metric: evaluate.Metric, tmp_path: Path) -> None:
    probabilities, labels = random_scans(12)
    Probabilities(
        scan_ids=np.arange(12).astype(str),
        groups=np.arange(12).astype(str),
        labels=labels,
        label_names=np.array(list("abcd")),
        line_counts=np.array([5, 10, 20, 40, 64, 128]),
        by_lines=probabilities.swapaxes(0, 1),
        whole=probabilities[:, -1],
    ).save(tmp_path)
    said = Probabilities.load(tmp_path)
    results = metric.compute(
        predictions=said.by_lines.swapaxes(0, 1), references=said.labels, line_counts=said.line_counts
    )
    assert results["accuracy_by_lines"][-1] == accuracy_score(labels, said.whole.argmax(axis=-1))


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_equal_one_call(load_metric: Callable[..., evaluate.Metric], keep_in_memory: bool) -> None:
    metric = load_metric("lines_to_decision", keep_in_memory=keep_in_memory)
    probabilities, references = random_scans(30, 3)
    whole = metric.compute(predictions=probabilities, references=references, line_counts=COUNTS)
    for start in (0, 12, 24):
        chunk = slice(start, start + 12)
        metric.add_batch(predictions=probabilities[chunk].tolist(), references=references[chunk].tolist())
    metric.add_batch(predictions=[], references=[])
    assert metric.compute(line_counts=COUNTS) == whole
    for prediction, reference in zip(probabilities, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute(line_counts=COUNTS) == whole


def test_several_processes_equal_one(metric: evaluate.Metric, distributed: Callable[..., list[Any]]) -> None:
    probabilities, references = random_scans(20, 3)
    expected = metric.compute(predictions=probabilities, references=references, line_counts=COUNTS)
    shares = [(probabilities[:11], references[:11]), (probabilities[11:], references[11:]), ([], [])]
    assert distributed("lines_to_decision", shares, line_counts=COUNTS) == [expected, None, None]


def test_combines_with_itself_and_not_with_tip_state(load_metric: Callable[..., evaluate.Metric]) -> None:
    splits = evaluate.combine(
        {name: load_metric("lines_to_decision", config_name=name) for name in ("random", "sessions")}
    )
    splits.add_batch(predictions=VERDICTS, references=REFERENCES)
    results = splits.compute(line_counts=COUNTS, max_error=0.25)
    assert results["random_settled_lines"] == results["sessions_settled_lines"] == [5, 20, 10, None]
    assert results["sessions_lines_to_error_0.25"] == 5

    # One wants verdicts after several numbers of lines, the other after one: whoever tries is told.
    probabilities, references = random_scans(5, 3)
    combined = evaluate.combine([load_metric("lines_to_decision"), load_metric("tip_state")])
    with pytest.raises(ValueError, match="tip_state: predictions must be probabilities of shape"):
        combined.add_batch(predictions=probabilities, references=references)


def test_results_are_plain_python(metric: evaluate.Metric) -> None:
    probabilities, references = random_scans(9, 3)
    results = metric.compute(predictions=probabilities, references=references, line_counts=np.array(COUNTS))
    assert json.loads(json.dumps(results, allow_nan=False)) == results


NAN = float("nan")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [[[2.5, -1.5]] * 3] * 2}, r"predictions\[0\]\[0\] is \[2.5, -1.5\].* logits"),
        ({"predictions": [[[0.7, 0.3], [0.7, 0.2], [1, 0]]] * 2}, r"predictions\[0\]\[1\] .* sums to 0.9, not 1"),
        ({"predictions": [[[NAN, NAN], [NAN, 0.5], [1, 0]]] * 2}, r"predictions\[0\]\[1\] .* NaN or infinity beside"),
        ({"predictions": [[[NAN, NAN], [np.inf, 0], [1, 0]]] * 2}, "NaN or infinity"),
        ({"predictions": [[[1.0]] * 3] * 2}, r"at least 2 classes, .* got \(2, 3, 1\)"),
        ({"predictions": [[0.7, 0.3], [0.4, 0.6]]}, r"predictions\[0\]\[0\] is 0.7, which is no class index"),
        ({"predictions": [[0, 0, -1], [0, 0, 0]]}, r"predictions\[0\]\[2\] is -1, which is no class index"),
        ({"predictions": [[0, 0, np.inf], [0, 0, 0]]}, "is inf, which is no class index"),
        ({"predictions": [[0, 0], [0, 0, 0]]}, "rows that differ in length or are not numbers"),
        ({"predictions": [["rows"] * 3] * 2}, "not numbers"),
        ({"predictions": [0, 1]}, r"got \(2,\): pass the verdict after each number of lines"),
        ({"predictions": [[], []]}, r"got \(2, 0\)"),
        ({"predictions": [[0, 0, 0]]}, "got 1 predictions and 2 references: .* scans are the first axis"),
        ({"predictions": None}, "predictions is missing"),
        ({"references": None}, "references is missing"),
        ({"references": [0, 1.0]}, "whole numbers .* got float64"),
        ({"references": [0, -1]}, r"references\[1\] is -1, but a class index must be at least 0"),
        ({"references": ["rows", "atoms"]}, "label2id"),
        (
            {"predictions": [[[0.5, 0.5]] * 3] * 2, "references": [0, 2]},
            r"references\[1\] is 2, but a class index must lie in 0..1: .*id2label",
        ),
        ({"predictions": [], "references": []}, "nothing to score: .* are empty"),
        ({"predictions": None, "references": None}, "nothing to score: pass predictions and references"),
        ({"line_counts": None}, "line_counts is missing: pass the 3 numbers"),
        ({"line_counts": [5, 10]}, "line_counts has 2 numbers, but the scans have 3 verdicts each"),
        ({"line_counts": [5, 5, 10]}, r"rising whole numbers of at least 1, got \[5, 5, 10\]"),
        ({"line_counts": [0, 5, 10]}, "at least 1"),
        ({"line_counts": [5, 10, 20.5]}, "whole numbers"),
        ({"line_counts": 5}, "rising whole numbers"),
        ({"max_error": 1.5}, r"max_error must be a number in \[0, 1\] or a list of such, got 1.5"),
        ({"max_error": [0.1, NAN]}, "max_error must be"),
        ({"max_error": "0.1"}, "max_error must be"),
        ({"max_error": None}, "max_error must be"),
    ],
)
def test_refuses_bad_input_in_one_sentence(metric: evaluate.Metric, inputs: dict[str, Any], message: str) -> None:
    good = {"predictions": [[0, 0, 0], [1, 0, 1]], "references": [0, 1], "line_counts": COUNTS}
    with pytest.raises(ValueError, match=message) as raised:
        metric.compute(**(good | inputs))
    text = str(raised.value)
    assert text.startswith("lines_to_decision: ") and text.endswith(".") and "\n" not in text
    assert metric.compute(**good)["settled_lines"] == [5, 20]


def test_a_refused_batch_costs_none_of_the_others(metric: evaluate.Metric) -> None:
    metric.add_batch(predictions=VERDICTS[:2], references=REFERENCES[:2])
    with pytest.raises(ValueError, match="no class index"):
        metric.add_batch(predictions=[[0, 0, 0], [0, 0.5, 0]], references=[0, 0])
    metric.add_batch(predictions=VERDICTS[2:], references=REFERENCES[2:])
    assert metric.compute(line_counts=COUNTS)["settled_lines"] == [5, 20, 10, None]


def test_refuses_batches_of_different_line_counts(metric: evaluate.Metric) -> None:
    metric.add_batch(predictions=[[0, 0, 0]], references=[0])
    metric.add_batch(predictions=[[0, 0]], references=[0])
    with pytest.raises(ValueError, match=r"different numbers of verdicts a scan, \[2, 3\]"):
        metric.compute(line_counts=COUNTS)
