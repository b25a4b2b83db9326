"""What a benchmark leaves: NAME.json with all its numbers, and NAME.md, which is made from that file alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, results: dict[str, Any], render: Callable[[dict[str, Any]], str], folder: Path) -> str:
    """Writes results and the page that `render` makes of them; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    page = render(json.loads(text))
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    return page
