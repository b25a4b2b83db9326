"""The committed pages say what the committed numbers say."""

import importlib
import json

import pytest

from benchmarks.pages import RESULTS, write

# made by a command of another package
ELSEWHERE = {"label_noise": ("experiments.labels.tables", "to_markdown")}
NAMES = sorted(path.stem for path in RESULTS.glob("*.md"))


def page_of(name: str, results: dict) -> str:
    module, function = ELSEWHERE.get(name, (f"benchmarks.{name}", "render"))
    return getattr(importlib.import_module(module), function)(results)


def test_there_are_results():
    assert {"accuracy", "familiarity", "label_noise", "streaming", "tip_change", "transfer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_made_from_the_numbers(name):
    results = json.loads((RESULTS / f"{name}.json").read_bytes())
    assert page_of(name, results).encode() == (RESULTS / f"{name}.md").read_bytes()


def test_what_is_written_is_made_from_what_the_file_says(tmp_path):
    page = write("one", {"lines": {5: (0.1, 0.2)}}, lambda results: f"{results}\n", tmp_path / "results")
    assert json.loads((tmp_path / "results" / "one.json").read_text()) == {"lines": {"5": [0.1, 0.2]}}
    assert (tmp_path / "results" / "one.md").read_text() == page == "{'lines': {'5': [0.1, 0.2]}}\n"
