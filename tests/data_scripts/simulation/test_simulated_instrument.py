import dataclasses

import numpy as np
import pytest
from simulation_cases import make_raster, make_segments, make_tip

from data_scripts.simulation.instrument import OVERSCAN, feedback_response, measure, session_of


class TestFeedback:
    @pytest.mark.parametrize(("damping", "rings"), [(0.25, True), (1.0, False)])
    def test_an_edge_rings_where_feedback_is_too_fast(self, damping, rings):
        edge = np.zeros(256)
        edge[64:192] = 1
        seen = np.fft.irfft(np.fft.rfft(edge) * feedback_response(256, 1.5, damping))
        assert (np.abs(seen[20:60]) < 0.01).all()  # nothing in front of the edge
        assert seen[130:190].mean() == pytest.approx(1, abs=0.01)
        assert seen[64] < 0.5  # it lags
        overshoot = seen[64:110].max() - 1
        assert (0.3 < overshoot < 0.6) if rings else overshoot < 0.05
        if rings:
            after = seen[66:110] - 1
            turns = np.flatnonzero(np.diff(np.sign(after)))
            assert np.diff(turns).mean() == pytest.approx(np.pi * 1.5 / np.sqrt(1 - damping**2), rel=0.15)

    def test_a_step_of_a_scan_rings(self):
        raster, segments = make_raster(6.0), make_segments(make_tip(0.35))
        step = np.zeros((64, OVERSCAN + 64), np.float32)
        step[:, OVERSCAN + 24 :] = 0.3
        step[:, OVERSCAN + 56 :] = 0
        overshoots = []
        for damping in (0.2, 1.0):
            session = dataclasses.replace(session_of(0, 0, 0.0, (3.0, 80.0)), damping=damping)
            seen = measure(np.random.default_rng(1), session, segments, raster, step)
            overshoots.append((seen[:, 24:50].max(axis=1) - np.median(seen[:, 40:50], axis=1)).mean() / 0.3)
        assert overshoots[0] > 0.2
        assert overshoots[1] < 0.05
