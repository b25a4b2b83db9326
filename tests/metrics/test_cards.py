"""What every metric of the project promises: examples that run as written, offline, on what its requirements name."""

import ast
import doctest
import re
import socket
import sys
from pathlib import Path

import evaluate
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
METRICS = sorted(path.parent for path in (REPOSITORY / "metrics").glob("*/README.md"))
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda path: path.name)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the root of the repository, as the examples say, with a cache of its own and no network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the metric opened a network connection")

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def run_examples(text: str, name: str) -> doctest.TestResults:
    return doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(text, {}, name, None, 0))


@every_metric
def test_the_card_runs_as_written(metric: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (metric / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert blocks and all(block.startswith(">>> ") for block in blocks)  # else doctest would pass over it
    results = run_examples("\n".join(blocks), metric.name)
    assert results.attempted and not results.failed


@every_metric
def test_the_docstring_runs_as_written(metric: Path) -> None:
    results = run_examples(evaluate.load(f"metrics/{metric.name}").inputs_description, metric.name)
    assert results.attempted and not results.failed


@every_metric
def test_the_card_says_what_the_results_are(metric: Path) -> None:
    card = (metric / "README.md").read_text(encoding="utf-8")
    description = evaluate.load(f"metrics/{metric.name}").inputs_description
    returned = re.findall(r"\*\*(\w+)\*\*", description)
    assert returned
    assert [name for name in returned if f"`{name}`" not in card] == []


@every_metric
def test_the_requirements_are_what_the_file_imports(metric: Path) -> None:
    tree = ast.parse((metric / f"{metric.name}.py").read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {module.split(".")[0].replace("sklearn", "scikit-learn") for module in modules}
    required = (metric / "requirements.txt").read_text(encoding="utf-8").split()
    assert sorted(packages - sys.stdlib_module_names) == sorted(required)
