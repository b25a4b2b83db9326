"""What the documents say works as it is written there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("model_cards/*/README.md"))]
RELEASED = "scanline-causal-hsi100"


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the documents take for granted: a scan in several formats, a run, the released models."""
    place = tmp_path_factory.mktemp("reader")
    (place / "model_cards").symlink_to(ROOT / "model_cards")
    (place / "metrics").symlink_to(ROOT / "metrics")
    (place / "runs").mkdir()
    (place / "runs" / "20261123_101500").symlink_to(ROOT / "model_cards" / RELEASED)
    heights = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(heights).save(place / "scan.png")
    np.save(place / "scan.npy", heights)
    return place


def test_python_blocks_run(place):
    """All in one process, each in a name space of its own; a microscope's file is a picture here."""
    found = [
        (str(document.relative_to(ROOT)), block) for document in DOCUMENTS for block in blocks(document, "python")
    ]
    assert len(found) >= 5
    found = [
        (name, re.sub(r'"[^"]*\.sxm", channel="Z", direction="backward"', '"scan.png"', block))
        for name, block in found
    ]
    (place / "blocks.json").write_text(json.dumps(found))
    code = (
        f"import json, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "for name, block in json.load(open('blocks.json')):\n"
        "    print('BLOCK', name, flush=True)\n"
        "    exec(compile(block, name, 'exec'), {'__name__': 'block'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-3000:]}"


def commands() -> list[str]:
    """The commands of the README, without what a reader fills in, each once."""
    lines = "\n".join(blocks(ROOT / "README.md", "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(python -m [^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    return sorted({line.partition("#")[0].strip() for line in lines if line.startswith(("python ", "accelerate "))})


# in one process, which imports torch once
HELPS = """
import contextlib, io, json, runpy, sys
helps = {}
for program in json.loads(sys.argv[1]):
    printed = io.StringIO()
    module = program[0] == "-m"
    sys.argv = [program[1] if module else program[0], *program[1 + module:], "--help"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run = runpy.run_module if module else runpy.run_path
        run(program[int(module)], run_name="__main__")
    helps[" ".join(program)] = printed.getvalue()
print(json.dumps(helps))
"""


def test_every_option_in_a_command_is_one():
    """The options of each command are in the help of what it calls."""
    programs = {}
    for command in commands():
        words = command.split()
        if words[0] == "accelerate":
            words = ["python", *words[words.index("run_classification.py") :]]
        length = 2 if words[1] in ("-m", "run_streaming.py") else 1
        programs[command] = " ".join(words[1 : 1 + length])
    assert len(programs) >= 10
    asked = json.dumps([program.split() for program in sorted(set(programs.values()))])
    command = [sys.executable, "-c", HELPS, asked]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    helps = json.loads(printed.splitlines()[-1])
    for command, program in programs.items():
        for option in re.findall(r"(?<![\w-])--\w+", command.replace("--config_file", "")):
            assert re.search(rf"{option}\b", helps[program]), f"{command}: {option} is no option"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name}: {target}"
