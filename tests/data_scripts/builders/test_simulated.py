import functools

import numpy as np
import pytest
import torch
from builder_cases import MAX_LINES

from data_scripts import ScanReadError
from data_scripts.scan_dataset import lines_of
from data_scripts.simulation import SimulationOptions, simulate


class TestSimulated:
    @pytest.fixture
    def load(self, load):
        return functools.partial(load, "simulated", pixels_per_line=32)

    def test_count_and_classes(self, load):
        scans = load(num_scans=9)
        assert len(set(scans["scan_id"])) == 9
        assert lines_of(scans, MAX_LINES).isfinite().all()
        assert scans.features["label"].names == ["individual_atoms", "asymmetries_dimers", "rows", "generic_defect"]
        assert all(session.startswith("h-si100-0-") for session in scans["session"])

    def test_seed_decides(self, load):
        first, other = (load(num_scans=4, simulation_seed=seed) for seed in (1, 2))
        assert not torch.equal(lines_of(first, MAX_LINES), lines_of(other, MAX_LINES))
        again = simulate(4, SimulationOptions(seed=1), pixels_per_line=32, num_lines=MAX_LINES)
        np.testing.assert_array_equal(lines_of(first, MAX_LINES), again.lines)
        assert first["label"][:] == again.states.tolist()

    def test_every_line_has_its_state(self, load):
        scans = load(num_scans=40, max_lines=32)
        states = np.array(scans["line_labels"][:])
        np.testing.assert_array_equal(states, simulate(40, pixels_per_line=32, num_lines=32).line_states)
        changes = scans["change_lines"][:]
        assert any(changes) and not all(changes)
        for row, lines in zip(states, changes, strict=True):
            assert lines == [line for line in range(1, 32) if row[line] != row[line - 1]]

    def test_more_scans_begin_with_the_same(self, load):
        few, many = load(num_scans=5), load(num_scans=7)
        assert torch.equal(lines_of(few, MAX_LINES), lines_of(many, MAX_LINES)[:5])

    @pytest.mark.parametrize("num_scans", [0, -3])
    def test_none(self, num_scans, load):
        with pytest.raises(ScanReadError, match="simulated: no scan to make a dataset of"):
            load(num_scans=num_scans)

    def test_too_narrow(self, load):
        with pytest.raises(ScanReadError, match=r"dataset simulated: .*pixels_per_line.* got 8"):
            load(pixels_per_line=8)


def test_every_option_reaches_the_simulator(load):
    options = {"seed": 3, "surface": "cu111", "noise": 0.3, "pixels_per_period": 4.0, "clarity": 3.0}
    given = {f"simulation_{name}": value for name, value in options.items()}
    scans = load("simulated", num_scans=5, pixels_per_line=64, max_lines=40, **given)
    expected = simulate(5, SimulationOptions(**options), pixels_per_line=64, num_lines=40).lines
    np.testing.assert_array_equal(lines_of(scans, 40).numpy(), expected)
