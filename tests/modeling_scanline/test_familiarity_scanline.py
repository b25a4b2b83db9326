"""Whether a scan looks like those of training: said after each line, of the lines so far."""

import numpy as np
import pytest
import torch

from modeling_scanline import ScanlineImageProcessor, normalize_lines
from modeling_scanline.familiarity_scanline import (
    LAGS,
    MEMORY,
    FeatureAverages,
    distances,
    familiarity_features,
    num_familiarity_features,
)

WIDTH = 32
SIZE = num_familiarity_features(WIDTH)


def waves(length: float, num_lines: int = 60, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Lines of waves of `length` pixels, with noise."""
    rng = np.random.default_rng(seed)
    phases = 2 * np.pi * (np.arange(width) / length + rng.random((num_lines, 1)))
    return (np.sin(phases) + 0.3 * rng.standard_normal((num_lines, width))).astype(np.float32)


def normalized(scan: np.ndarray) -> np.ndarray:
    return normalize_lines(torch.from_numpy(scan), "line")[0].numpy()


@pytest.fixture(scope="module")
def processor():
    return ScanlineImageProcessor(pixels_per_line=WIDTH)


@pytest.fixture(scope="module")
def settings() -> dict:
    """Of scans with waves of 8 pixels: each feature by itself, 4 usual deviations are unlike."""
    features = []
    for seed in range(20):
        averages = FeatureAverages(WIDTH)
        for line in normalized(waves(8, 20, seed)):
            averages.update(line[None], np.ones(1, dtype=bool))
        features.append(averages.values[0])
    whitening = np.diag(1 / (np.std(features, axis=0) + 1e-2))
    return {
        "familiarity_mean": np.mean(features, axis=0).tolist(),
        "familiarity_whitening": whitening[np.tril_indices(SIZE)].tolist(),
        "familiarity_lines": [10, 20],
        "familiarity_thresholds": [4.0, 4.0],
    }


@pytest.mark.parametrize("width", [16, 32, 128])
def test_features_are_as_many_as_stated_and_finite(width):
    windows = np.random.default_rng(0).standard_normal((4, LAGS[-1] + 1, width), dtype=np.float32)
    windows[1], windows[2, :-1] = 0, 0
    features = familiarity_features(windows)
    assert features.shape == (4, num_familiarity_features(width)) and features.dtype == np.float32
    assert np.isfinite(features).all()


def test_averages_are_those_of_the_features_of_all_lines():
    scan = normalized(waves(8))
    averages = FeatureAverages(WIDTH)
    for line in scan:
        averages.update(line[None], np.ones(1, dtype=bool))
    padded = np.concatenate([np.zeros((LAGS[-1], WIDTH), np.float32), scan])
    windows = np.stack([padded[place : place + LAGS[-1] + 1] for place in range(len(scan))])
    np.testing.assert_allclose(averages.values[0], familiarity_features(windows).mean(axis=0), atol=1e-4)


def test_a_scan_like_those_of_training_is_familiar_and_another_is_not(causal, processor, settings):
    streamer = causal(**settings).streamer(processor)
    familiar = streamer.update_many(waves(8, seed=99))
    assert [result.familiar for result in familiar] == [None] * 9 + [True] * 51
    assert [result.unfamiliarity is None for result in familiar] == [True] * 9 + [False] * 51
    streamer.reset()
    assert [result.familiar for result in streamer.update_many(waves(3))] == [None] * 9 + [False] * 51


def test_old_lines_are_forgotten(causal, processor, settings):
    """Of the last MEMORY lines, more or less: a stream that comes to a familiar place says so in the end."""
    results = causal(**settings).streamer(processor).update_many(np.concatenate([waves(3, 50), waves(8, 8 * MEMORY)]))
    assert results[49].familiar is False and results[-1].familiar is True


def test_scans_of_a_batch_and_unmeasured_lines_do_not_disturb(causal, processor, settings):
    model = causal(**settings)
    scans = np.stack([waves(8), waves(3)])
    gap = np.full((2, 1, WIDTH), np.nan, np.float32)
    gap[1] = scans[1, 29:30]
    streamer = model.streamer(processor, batch_size=2)
    both = [
        streamer.update_batch(lines)
        for lines in np.concatenate([scans[:, :30], gap, scans[:, 30:]], axis=1).swapaxes(0, 1)
    ]
    first = [result.unfamiliarity for result, _ in both]
    alone = [result.unfamiliarity for result in model.streamer(processor).update_many(scans[0])]
    assert first[30] == first[29]
    np.testing.assert_allclose(np.array(first[:30] + first[31:], float), np.array(alone, float), atol=1e-5)


def test_distance_of_the_usual_deviation_is_1():
    deviations = np.random.default_rng(0).standard_normal((500, SIZE))
    assert np.sqrt(np.square(distances(deviations, np.zeros(SIZE), np.eye(SIZE))).mean()) == pytest.approx(1, rel=0.02)


def test_thresholds_follow_the_lines(causal, processor, settings):
    looser = {**settings, "familiarity_thresholds": [4.0, 8.0]}
    plain, other = (causal(**each).streamer(processor).update_many(waves(3)) for each in (settings, looser))
    ratio = {n: plain[n - 1].unfamiliarity / other[n - 1].unfamiliarity for n in (10, 14, 20, 60)}
    assert [ratio[n] for n in (10, 20, 60)] == pytest.approx([1, 2, 2]) and 1.4 < ratio[14] < 1.6


def test_without_anything_to_compare_with_nobody_knows(causal, processor):
    assert {result.familiar for result in causal().streamer(processor).update_many(waves(3))} == {None}


def test_a_mean_for_another_width_is_refused(causal, processor):
    settings = {"familiarity_mean": [0.0], "familiarity_whitening": [1.0]}
    with pytest.raises(ValueError, match=f"familiarity_mean must be {SIZE} for lines of 32 pixels, got 1"):
        causal(**settings, familiarity_lines=[5], familiarity_thresholds=[1.0]).streamer(processor)
