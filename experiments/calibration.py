"""What makes probabilities honest: temperatures, exponents and biases, found on scans not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from modeling_scanline.modeling_scanline_causal import SMALLEST_LOGIT

from .probabilities import Probabilities
from .scoring import load_metric

SMALLEST = 1e-7  # probability that a certain verdict still leaves to the others, so that its logarithm exists
LARGEST_TEMPERATURE = 20.0
EXPONENTS = (-0.5, 2.0)  # smallest and largest
# Of the squares of the biases, in the loss: a rare state keeps some of the weight that training gave it. With a third
# of it, the labels of the folds of the ensemble are hardly likelier (mean negative log 0.371 in place of 0.373 on
# whole scans), and balanced accuracy is lower by a point.
SHRINKAGE = 0.03


def _logits(probabilities: np.ndarray) -> np.ndarray:
    logits = np.log(np.clip(probabilities, SMALLEST, None))
    return logits - logits.mean(axis=-1, keepdims=True)


def calibrate(
    probabilities: np.ndarray, temperature: float, biases: np.ndarray | float = 0.0, exponent: float = 0.0
) -> np.ndarray:
    """
    Probabilities `[..., num_labels]` as if their logits, with a mean of 0, had been multiplied by the power `exponent`
    of the largest one and divided by `temperature`, and `biases` added.
    """
    logits = _logits(probabilities)
    largest = logits.max(axis=-1, keepdims=True).clip(min=SMALLEST_LOGIT)
    logits = logits * largest**exponent / temperature + biases
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def fit_calibration(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, np.ndarray]:
    """
    The temperature, the exponent and the biases under which the labels are most likely (Alexandari et al. 2020).

    Without the exponent, verdicts of finetune_small that it is half sure of are right less often than it says after
    40 lines and more, and those that it is sure of more often: a temperature changes both alike.

    Args:
        probabilities: `[num_scans, num_labels]`.
        labels: class indices `[num_scans]`.

    Returns:
        The temperature, the exponent, and biases `[num_labels]` with mean 0.
    """
    logits = _logits(probabilities)
    powers = np.log(logits.max(axis=1, keepdims=True).clip(min=SMALLEST_LOGIT))
    targets = np.eye(logits.shape[1])[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = logits * np.exp(parameters[1] * powers - parameters[0])
        predicted = scaled + parameters[2:]
        predicted = predicted - predicted.max(axis=1, keepdims=True)
        log_likelihoods = predicted - np.log(np.exp(predicted).sum(axis=1, keepdims=True))
        slopes = (np.exp(log_likelihoods) - targets) / len(labels)
        value = -(log_likelihoods * targets).sum() / len(labels) + SHRINKAGE * np.square(parameters[2:]).sum()
        of_scale, of_exponent = -(slopes * scaled).sum(), (slopes * scaled * powers).sum()
        return value, np.r_[of_scale, of_exponent, slopes.sum(axis=0) + 2 * SHRINKAGE * parameters[2:]]

    limit = np.log(LARGEST_TEMPERATURE)
    bounds = [(-limit, limit), EXPONENTS, *[(None, None)] * logits.shape[1]]
    found = minimize(loss, np.zeros(2 + logits.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x
    return float(np.exp(found[0])), float(found[1]), found[2:] - found[2:].mean()


def calibration_error_by_chance(verdicts: Sequence[np.ndarray], num_draws: int = 20) -> float:
    """
    The expected calibration error that probabilities without any error would get on as many scans.

    It counts every gap between confidence and accuracy, also those that are there by chance: with few scans in a bin
    it is far from 0 for the truth itself (Kumar et al. 2019, arXiv:1909.10155). Labels are drawn from the
    probabilities.

    Args:
        verdicts: probabilities `[num_scans, num_labels]`, each of which is scored by itself.
        num_draws: to take the mean of, for each of the verdicts.
    """
    metric, rng = load_metric(), np.random.default_rng(0)
    errors = []
    for verdict in verdicts:
        ends = verdict.cumsum(axis=1)
        names = list(map(str, range(verdict.shape[1])))
        for _ in range(num_draws):
            drawn = (rng.random((len(ends), 1)) * ends[:, -1:] >= ends).sum(axis=1)
            scores = metric.compute(predictions=verdict, references=drawn, label_names=names, on_missing_class="skip")
            errors.append(scores["expected_calibration_error"])
    return float(np.mean(errors))


@dataclass(frozen=True)
class Calibration:
    """
    What logits are divided by, and what is added then, after each number of lines.

    Attributes:
        temperatures: `[num_counts]`.
        exponents: `[num_counts]`, see [`calibrate`].
        biases: `[num_counts, num_labels]`.
    """

    temperatures: np.ndarray
    exponents: np.ndarray
    biases: np.ndarray

    @classmethod
    def fit(cls, verdicts: Sequence[Probabilities]) -> "Calibration":
        """
        That of all verdicts together.

        Raises:
            ValueError: for verdicts of other classes or numbers of lines, or if there is none after one of these.
        """
        for name in ("label_names", "line_counts"):
            if len({tuple(getattr(verdict, name).tolist()) for verdict in verdicts}) > 1:
                raise ValueError(f"Only verdicts of the same {name}, in the same order, can be calibrated together.")
        labels = np.concatenate([verdict.labels for verdict in verdicts])
        found = []
        for index in range(len(verdicts[0].line_counts)):
            probabilities = np.concatenate([verdict.by_lines[index] for verdict in verdicts])
            given = np.isfinite(probabilities).all(axis=-1)
            if not given.any():
                raise ValueError(f"There is no verdict after {verdicts[0].line_counts[index]} lines to calibrate by.")
            found.append(fit_calibration(probabilities[given], labels[given]))
        temperatures, exponents, biases = (np.array(values) for values in zip(*found, strict=True))
        return cls(temperatures, exponents, biases)

    def rounded(self) -> "Calibration":
        """The same to four decimals."""
        return Calibration(self.temperatures.round(4), self.exponents.round(4), self.biases.round(4))

    def apply(self, verdict: Probabilities) -> Probabilities:
        """The same verdicts, calibrated; a whole scan gets what the last number of lines has."""
        found = list(zip(self.temperatures.tolist(), self.biases, self.exponents.tolist(), strict=True))
        by_lines = [calibrate(of, *of_count) for of, of_count in zip(verdict.by_lines, found, strict=True)]
        changed = {"by_lines": np.stack(by_lines), "whole": calibrate(verdict.whole, *found[-1])}
        return Probabilities(**{**vars(verdict), **changed})


def cross_calibrated(folds: Sequence[Probabilities]) -> list[Probabilities]:
    """Each fold with the calibration that the others give: what it does for sessions it has not seen."""
    return [Calibration.fit([other for other in folds if other is not fold]).apply(fold) for fold in folds]
