import pytest

from data_scripts.simulation import SimulatedScans, SimulationOptions, simulate


@pytest.fixture(scope="session")
def scans() -> SimulatedScans:
    """Of H:Si(100), in many sessions; simulated once for all tests, which must leave the arrays as they are."""
    return simulate(360, SimulationOptions(seed=5))
