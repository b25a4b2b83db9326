"""The metric of tip changes against cases worked by hand and a maximum matching, and on input that it must refuse."""

import json
from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

# Found late, at the wrong line by 2; found, after a false alarm; missed; no change, and one alarm; neither.
ALARMS: list[list[tuple[int, int]]] = [[(42, 48)], [(30, 33), (90, 93)], [], [(64, 67)], []]
CHANGES: list[list[int]] = [[40], [90], [100], [], []]


@pytest.fixture
def metric(load_metric: Callable[..., evaluate.Metric]) -> evaluate.Metric:
    return load_metric("tip_change", keep_in_memory=True)


def test_five_scans_by_hand(metric: evaluate.Metric) -> None:
    assert metric.compute(predictions=ALARMS, references=CHANGES) == {
        "recall": pytest.approx(2 / 3),
        "precision": 0.5,
        "median_delay": 5.5,  # 48 - 40 and 93 - 90
        "mean_delay": 5.5,
        "false_alarms_per_100": 50.0,
        "changes": 3,
        "alarms": 4,
        "unchanged_scans": 2,
        "num_scans": 5,
    }


@pytest.mark.parametrize(
    ("alarms", "changes", "recall", "precision"),
    [
        ([43], [40], 1, 1),
        ([37], [40], 1, 1),
        ([44], [40], 0, 0),
        ([39, 41], [40], 1, 0.5),  # two alarms at one change: one is wrong
        ([41], [40, 42], 0.5, 1),  # one alarm at two changes finds one
        ([41, 41], [40, 42], 1, 1),
        ([42, 39], [39, 44], 1, 1),  # 42 is near both, and left to 44
        ([39, 42], [39, 36], 1, 1),  # 39 must go to 36
        ([], [40], 0, 0),
    ],
)
def test_each_change_and_each_alarm_counts_once(
    metric: evaluate.Metric, alarms: list[int], changes: list[int], recall: float, precision: float
) -> None:
    results = metric.compute(predictions=[alarms], references=[changes])
    assert (results["recall"], results["precision"]) == (recall, precision)


def test_the_mean_feels_a_late_alarm_and_the_median_does_not(metric: evaluate.Metric) -> None:
    results = metric.compute(predictions=[[(9, 12), (30, 33), (60, 99)]], references=[[10, 30, 60]])
    assert (results["median_delay"], results["mean_delay"]) == (3, pytest.approx(44 / 3))  # 2, 3, 39


def test_the_tolerance_is_as_stated(metric: evaluate.Metric) -> None:
    recalls = [
        metric.compute(predictions=[[40], [41], [47]], references=[[40]] * 3, tolerance=tolerance)["recall"]
        for tolerance in (0, 1, 6, 7)
    ]
    assert recalls == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])


def test_without_the_lines_of_the_alarms_there_is_no_delay(metric: evaluate.Metric) -> None:
    with_lines = metric.compute(predictions=ALARMS, references=CHANGES)
    places = [[place for place, _ in alarms] for alarms in ALARMS]
    results = metric.compute(predictions=places, references=CHANGES)
    assert results == with_lines | {"median_delay": None, "mean_delay": None}


def test_where_there_is_nothing_the_figures_are_0_and_the_counts_say_so(metric: evaluate.Metric) -> None:
    results = metric.compute(predictions=[[]], references=[[7]])
    assert results["precision"] == results["alarms"] == 0
    assert results["false_alarms_per_100"] == results["unchanged_scans"] == 0
    assert results["median_delay"] is None
    results = metric.compute(predictions=[[]], references=[[]])
    assert results["recall"] == results["changes"] == 0


lines = st.lists(st.integers(0, 30), max_size=8)


@settings(
    max_examples=25,
    deadline=None,
    # The metric starts afresh with every compute, so examples may share one.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    scans=st.lists(st.tuples(lines, lines.map(lambda changes: sorted(set(changes)))), min_size=1, max_size=4),
    tolerance=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_finds_as_many_as_any_pairing_could(
    metric: evaluate.Metric, scans: list[tuple[list[int], list[int]]], tolerance: int, seed: int
) -> None:
    alarms, changes = ([list(of) for of in part] for part in zip(*scans, strict=True))
    most = 0
    for of_scan, true in zip(alarms, changes, strict=True):
        near = np.abs(np.subtract.outer(np.array(of_scan, int), np.array(true, int))) <= tolerance
        most += int((maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum()) if near.any() else 0
    results = metric.compute(predictions=alarms, references=changes, tolerance=tolerance)
    assert results["recall"] == pytest.approx(most / max(sum(map(len, changes)), 1))
    assert results["precision"] == pytest.approx(most / max(sum(map(len, alarms)), 1))

    # Neither the order of scans nor that of alarms or changes matters, nor where the lines begin to count.
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scans))
    moved = metric.compute(
        predictions=[rng.permutation(alarms[scan]).astype(int) + 5 for scan in order],
        references=[rng.permutation(changes[scan]).astype(int) + 5 for scan in order],
        tolerance=tolerance,
    )
    assert moved == results


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_equal_one_call(load_metric: Callable[..., evaluate.Metric], keep_in_memory: bool) -> None:
    metric = load_metric("tip_change", keep_in_memory=keep_in_memory)
    whole = metric.compute(predictions=ALARMS, references=CHANGES)
    metric.add_batch(predictions=ALARMS[:2], references=CHANGES[:2])
    metric.add_batch(predictions=[], references=[])
    metric.add_batch(predictions=ALARMS[2:], references=[np.array(changes) for changes in CHANGES[2:]])
    assert metric.compute() == whole
    for alarms, changes in zip(ALARMS, CHANGES, strict=True):
        metric.add(prediction=alarms, reference=changes)
    assert metric.compute() == whole


def test_several_processes_equal_one(metric: evaluate.Metric, distributed: Callable[..., list[Any]]) -> None:
    expected = metric.compute(predictions=ALARMS, references=CHANGES, tolerance=2)
    shares = [(ALARMS[:1], CHANGES[:1]), (ALARMS[1:], CHANGES[1:]), ([], [])]
    assert distributed("tip_change", shares, tolerance=2) == [expected, None, None]


def test_combines_with_itself_and_not_with_tip_state(load_metric: Callable[..., evaluate.Metric]) -> None:
    kinds = evaluate.combine({name: load_metric("tip_change", config_name=name) for name in ("spliced", "simulated")})
    kinds.add_batch(predictions=ALARMS, references=CHANGES)
    results = kinds.compute(tolerance=1)
    assert results["spliced_recall"] == results["simulated_recall"] == pytest.approx(1 / 3)

    # One wants the lines of changes, the other classes: whoever tries is told.
    combined = evaluate.combine([load_metric("tip_change"), load_metric("tip_state")])
    with pytest.raises(ValueError, match="tip_state: predictions must be probabilities"):
        combined.add_batch(predictions=ALARMS, references=CHANGES)


def test_results_are_plain_python(metric: evaluate.Metric) -> None:
    results = metric.compute(predictions=[np.array([[42, 48]])], references=[np.array([40])], tolerance=np.int64(3))
    assert json.loads(json.dumps(results, allow_nan=False)) == results


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [[40.5], []]}, r"predictions\[0\] is \[40.5\], but must be a list of lines, whole numbers"),
        ({"predictions": [[], [-1]]}, r"predictions\[1\] is \[-1\]"),
        ({"predictions": [[(40, 43, 1)], []]}, "or of pairs"),
        ({"predictions": [[40, (50, 53)], []]}, "or of pairs"),
        ({"predictions": [["40"], []]}, "whole numbers"),
        ({"predictions": [[None], []]}, r"\[\] where there was no alarm"),
        ({"predictions": [None, []]}, r"predictions\[0\] is None, .* \[\] where there was no alarm"),
        ({"predictions": [40, 50]}, r"predictions\[0\] is 40, but must be a list"),
        ({"predictions": [[(43, 40)], []]}, "comes before the line that it names: pass the first line"),
        ({"predictions": [[40], [(50, 53)]]}, "some alarms are lines and some are pairs"),
        ({"references": [[40], None]}, r"references\[1\] is None, .* \[\] where the tip did not change"),
        ({"references": [[40], [(1, 2)]]}, r"references\[1\] .* list of different lines"),
        ({"references": [[40, 40], []]}, "different lines"),
        ({"references": [[40.0], []]}, "whole numbers"),
        ({"references": [40, 50]}, r"references\[0\] is 40"),
        ({"references": [[40]]}, "got 2 predictions and 1 references: pass one of each"),
        ({"references": None}, "references is missing"),
        ({"predictions": None}, "predictions is missing"),
        ({"predictions": [], "references": []}, "nothing to score: .* are empty"),
        ({"predictions": None, "references": None}, "nothing to score: pass predictions and references"),
        ({"tolerance": -1}, "tolerance must be a whole number of at least 0, got -1"),
        ({"tolerance": 2.5}, "tolerance must be a whole number"),
        ({"tolerance": True}, "tolerance must be a whole number"),
    ],
)
def test_refuses_bad_input_in_one_sentence(metric: evaluate.Metric, inputs: dict[str, Any], message: str) -> None:
    good = {"predictions": [[40], []], "references": [[40], []]}
    with pytest.raises(ValueError, match=message) as raised:
        metric.compute(**(good | inputs))
    text = str(raised.value)
    assert text.startswith("tip_change: ") and text.endswith(".") and "\n" not in text
    assert metric.compute(**good)["recall"] == 1


def test_a_refused_batch_costs_none_of_the_others(metric: evaluate.Metric) -> None:
    metric.add_batch(predictions=ALARMS[:2], references=CHANGES[:2])
    with pytest.raises(ValueError, match=r"predictions\[1\]"):
        metric.add_batch(predictions=[[40], ["50"]], references=[[40], []])
    metric.add_batch(predictions=ALARMS[2:], references=CHANGES[2:])
    assert metric.compute()["num_scans"] == 5
