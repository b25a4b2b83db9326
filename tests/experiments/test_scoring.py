"""Figures after each number of lines."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from configuration import ConfigurationError
from data_scripts.scan_dataset import ScanDataset
from experiments.scoring import TipStateScorer, last_measured_lines


def test_the_last_measured_line_passes_over_holes_and_ends():
    lines = torch.zeros(3, 6, 2)
    lines[1, 4:] = float("nan")
    lines[2, 1:4] = float("nan")
    dataset = ScanDataset(lines, None)
    assert last_measured_lines(dataset, 6).tolist() == [5, 3, 5]
    assert last_measured_lines(dataset, 3).tolist() == [2, 2, 0]
    assert last_measured_lines(ScanDataset(torch.full((1, 4, 2), float("nan")), None), 4).tolist() == [-1]


def test_verdicts_after_few_lines_are_those_of_these_lines():
    labels = np.array([0, 1, 0, 1])
    line_logits = np.zeros((4, 6, 2))
    line_logits[:, :3, 0] = 5  # class 0 for all, until the fourth line
    line_logits[np.arange(4), 3:, labels] = 5
    line_logits[np.arange(4), 3:, 1 - labels] = -5
    scorer = TipStateScorer(ScanDataset(torch.zeros(4, 6, 2), labels), ["a", "b"], [2, 6, 99])
    figures = scorer(EvalPrediction((line_logits[:, -1], line_logits), labels))
    assert figures["balanced_accuracy_at_2"] == 0.5
    assert figures["balanced_accuracy_at_6"] == figures["balanced_accuracy"] == 1
    assert "balanced_accuracy_at_99" not in figures


def test_soft_labels_are_scored_by_their_largest_entry():
    labels = np.array([[0.6, 0.4], [0.2, 0.8]], dtype=np.float32)
    scorer = TipStateScorer(ScanDataset(torch.zeros(2, 3, 2), labels), ["a", "b"], [])
    assert scorer.score(np.array([[2.0, 0.0], [0.0, 2.0]]), labels)["accuracy"] == 1


def test_weights_that_have_diverged_are_named():
    scorer = TipStateScorer(ScanDataset(torch.zeros(2, 3, 2), np.array([0, 1])), ["a", "b"], [])
    with pytest.raises(ConfigurationError, match=r"no finite logits for 1 of 2 scans.*smaller learning_rate"):
        scorer.score(np.array([[2.0, 0.0], [np.nan, 2.0]]), np.array([0, 1]))
