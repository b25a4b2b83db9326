import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.calibration import (
    Calibration,
    calibrate,
    calibration_error_by_chance,
    cross_calibrated,
    fit_calibration,
)
from experiments.probabilities import Probabilities

quick = settings(deadline=None, derandomize=True, max_examples=15)


def overconfident(seed: int, factor: float, num_scans: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts whose honest logits were multiplied by `factor`, and labels drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = calibrate(np.exp(1.5 * rng.standard_normal((num_scans, 4))), 1.0)
    labels = (honest.cumsum(axis=1) < rng.random((num_scans, 1))).sum(axis=1).clip(max=3)
    return calibrate(honest, 1 / factor), labels


def of_fold(seed: int, factors: list[float]) -> Probabilities:
    verdicts = [overconfident(seed, factor) for factor in factors]
    scans = np.arange(len(verdicts[0][1]))
    return Probabilities(
        scan_ids=np.char.add(f"{seed} ", scans.astype(str)),
        groups=np.full(len(scans), f"session {seed}"),
        labels=verdicts[0][1],
        label_names=np.array(list("abcd")),
        line_counts=np.array([5, 128]),
        by_lines=np.stack([probabilities for probabilities, _ in verdicts]),
        whole=verdicts[-1][0],
    )


class TestOfOneLineCount:
    @quick
    @given(seed=st.integers(0, 10**6), factor=st.floats(0.3, 5))
    def test_takes_back_what_was_too_sure(self, seed, factor):
        verdicts, labels = overconfident(seed, factor)
        temperature, exponent, biases = fit_calibration(verdicts, labels)
        found = calibrate(verdicts, temperature, biases, exponent)
        assert np.abs(found - calibrate(verdicts, factor)).mean() < 0.015
        np.testing.assert_allclose(biases, 0, atol=0.15)

    @quick
    @given(seed=st.integers(0, 10**6), exponent=st.floats(-0.3, 1))
    def test_takes_back_what_was_too_sure_where_it_was_sure(self, seed, exponent):
        verdicts, honest_labels = overconfident(seed, 1.0)
        # its inverse, of the largest logit z: z * z ** e is undone by the power -e / (1 + e)
        told = calibrate(verdicts, 1.0, exponent=-exponent / (1 + exponent))
        temperature, found, biases = fit_calibration(told, honest_labels)
        assert found == pytest.approx(exponent, abs=0.15)
        assert np.abs(calibrate(told, temperature, biases, found) - verdicts).mean() < 0.02

    def test_takes_back_the_weight_of_a_state(self):
        honest, labels = overconfident(0, 1.0)
        weighted = calibrate(honest, 0.4, np.array([1.0, 0, 0, 0]))
        temperature, exponent, biases = fit_calibration(weighted, labels)
        found = calibrate(weighted, temperature, biases, exponent)
        assert np.abs(weighted - honest).mean() > 0.1 > 0.01 > np.abs(found - honest).mean()

    @pytest.mark.parametrize("exponent", [-0.5, 0.0, 2.0])
    def test_without_biases_the_state_and_the_sum_stay(self, exponent):
        probabilities, _ = overconfident(0, 3.0)
        changed = calibrate(probabilities, 2.0, exponent=exponent)
        np.testing.assert_array_equal(changed.argmax(axis=1), probabilities.argmax(axis=1))
        np.testing.assert_allclose(changed.sum(axis=1), 1)
        np.testing.assert_allclose(calibrate(probabilities, 1.0), probabilities, atol=1e-6)

    def test_certain_and_wrong_is_finite(self):
        temperature, exponent, biases = fit_calibration(np.eye(4)[[0, 1, 2, 3]], np.array([1, 2, 3, 0]))
        assert np.isfinite([temperature, exponent, *biases]).all()

    @pytest.mark.parametrize("exponent", [-0.5, 0.5])
    def test_verdicts_without_any_preference_stay_without(self, exponent):
        np.testing.assert_allclose(calibrate(np.full((2, 4), 0.25), 2.0, exponent=exponent), 0.25)

    def test_a_state_that_never_occurs_keeps_a_chance(self):
        probabilities, labels = overconfident(0, 1.0)
        _, _, biases = fit_calibration(probabilities[labels > 0], labels[labels > 0])
        assert -10 < biases[0] < -1


class TestFolds:
    def test_each_line_count_has_its_own(self):
        found = Calibration.fit([of_fold(0, [3.0, 1.5]), of_fold(1, [3.0, 1.5])])
        assert found.temperatures.shape == found.exponents.shape == (2,) and found.biases.shape == (2, 4)
        np.testing.assert_allclose(found.temperatures, [3, 1.5], rtol=0.1)
        np.testing.assert_allclose(found.exponents, 0, atol=0.1)

    def test_of_a_fold_come_from_the_others(self):
        folds = [of_fold(0, [1.0, 4.0]), of_fold(1, [1.0, 2.0])]
        for place, changed in enumerate(cross_calibrated(folds)):
            expected = Calibration.fit([folds[1 - place]]).apply(folds[place])
            np.testing.assert_allclose(changed.whole, expected.whole)
            np.testing.assert_allclose(changed.by_lines, expected.by_lines)

    def test_a_model_without_a_verdict_yet_stays_without(self):
        fold = of_fold(0, [1.0, 2.0])
        fold.by_lines[0, :10] = np.nan
        changed = cross_calibrated([fold, of_fold(1, [1.0, 2.0])])[0]
        assert np.isnan(changed.by_lines[0, :10]).all() and np.isfinite(changed.by_lines[0, 10:]).all()


def test_the_truth_itself_has_a_calibration_error_by_chance():
    rng = np.random.default_rng(0)
    few, many = (rng.dirichlet(np.ones(4), size=number) for number in (100, 6400))
    of_few, of_many = calibration_error_by_chance([few]), calibration_error_by_chance([many])
    assert of_few == pytest.approx(8 * of_many, rel=0.3)  # as the root of their number
    certain = np.eye(4)[rng.integers(4, size=100)]
    assert calibration_error_by_chance([certain]) == pytest.approx(0, abs=1e-9)
    assert calibration_error_by_chance([few, certain]) == pytest.approx(of_few / 2, rel=0.1)
