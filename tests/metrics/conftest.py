from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import evaluate
import pytest

METRICS = Path(__file__).resolve().parents[2] / "metrics"


@pytest.fixture
def load_metric(tmp_path: Path) -> Callable[..., evaluate.Metric]:
    """`load_metric(name, **options)`: a metric of the project, whose files lie where no other test sees them."""
    return lambda name, **options: evaluate.load(str(METRICS / name), cache_dir=str(tmp_path), **options)


@pytest.fixture
def distributed(load_metric) -> Callable[..., list[dict[str, Any] | None]]:
    """`distributed(name, shares, **options)`: what `compute` gives each of as many processes as there are shares."""

    def run(name: str, shares: Sequence[tuple[Any, Any]], **options: Any) -> list[dict[str, Any] | None]:
        # Threads, as processes take seconds to start: what goes between them goes through the same files and locks.
        metrics = [
            load_metric(name, num_process=len(shares), process_id=rank, experiment_id="shared", timeout=30)
            for rank in range(len(shares))
        ]

        def score(metric: evaluate.Metric, share: tuple[Any, Any]) -> dict[str, Any] | None:
            metric.add_batch(predictions=share[0], references=share[1])
            return metric.compute(**options)

        with ThreadPoolExecutor(len(shares)) as pool:
            return list(pool.map(score, metrics, shares))

    return run
