"""What the documents say works as it is written there."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import readme
from configuration import parse_arguments
from run_classification import build_model

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("model_cards/*/README.md"))]
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
    (place / "runs" / "mine").symlink_to(ROOT / "model_cards" / RELEASED)
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
        (name, re.sub(r'"[^"]*\.sxm"(, channel="Z", direction="backward")?', '"scan.png"', block))
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
    lines = "\n".join(blocks(README, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python (?:-m|\w+\.py)|accelerate launch) [^`]*)`", README.read_text(encoding="utf-8"))
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
    # in the tables, of what it may be: of any of these
    for option in re.findall(r"(?<![\w-])--\w+", " ".join(re.findall(r"`[^`\n]+`", README.read_text("utf-8")))):
        of_accelerate = option in ("--config_file", "--num_processes")
        assert of_accelerate or any(re.search(rf"{option}\b", text) for text in helps.values()), option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name}: {target}"


def heading_anchors(text: str) -> dict[str, str]:
    """The sections of a document by the anchors that GitHub gives them."""
    parts = re.split(r"^##+ (.*)$", text, flags=re.MULTILINE)
    names = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in parts[1::2])
    return dict(zip(names, parts[2::2], strict=True))


def test_anchors_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    anchors = re.findall(r"\]\(#([^)]+)\)", text)
    assert anchors and set(anchors) <= set(heading_anchors(text))


# what a newcomer wants to do, and how the answer reads
TASKS = {
    "train on a folder of my own": r"accelerate launch run_classification\.py .*--dataset folder --data_dir scans/",
    "change the learning rate": r"--learning_rate 3e-4",
    "add a class": r"a new class into a further folder.*--output_dir runs/more",
    "load it in a notebook": r'pipeline\("image-classification", model=',
    "score predictions": r'evaluate\.load\("metrics/tip_state"\)',
    "publish a run, privately": r"python -m experiments\.publish runs/… --repo_id",
    "resume after a stop": r"--resume_from_checkpoint true",
    "train on two GPUs": r"accelerate launch --config_file accelerate_configs/multi_gpu\.yaml run_classification\.py",
    "read an `.sxm`": r'read_scan\("[^"]*\.sxm"',
    "cite": r"10\.1088/2632-2153/ab42ec",
}


@pytest.mark.parametrize("task", TASKS)
def test_the_readme_answers_within_one_click(task):
    """In the table of tasks, or in a section or file that its row leads to."""
    text = README.read_text(encoding="utf-8")
    sections = heading_anchors(text)
    rows = [row for row in sections["how-do-i"].splitlines() if row.startswith(f"| {task}")]
    assert len(rows) == 1
    seen = rows + [sections[anchor] for anchor in re.findall(r"\]\(#([^)]+)\)", rows[0])]
    files = [ROOT / target for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", rows[0])]
    seen += [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    assert any(re.search(TASKS[task], part) for part in seen)


def test_generated_blocks_are_what_the_results_make_of_them(capsys, tmp_path):
    assert readme.main(["--check"]) == 0, capsys.readouterr().err
    text = README.read_text(encoding="utf-8")
    changed = tmp_path / "README.md"
    for name in readme.BLOCKS:
        begin, block, _ = readme.pattern(name).search(text).groups()
        changed.write_text(text.replace(begin + block, begin + block.replace("0", "1", 1)), encoding="utf-8")
        assert readme.main(["--check", "--readme", str(changed)]) == 1
        assert f"out of date ({name})" in capsys.readouterr().err
    changed.write_text(text.replace("<!-- end of live -->", ""), encoding="utf-8")
    assert readme.main(["--readme", str(changed)]) == 2 and "Expected one block <!-- live" in capsys.readouterr().err


def test_models_of_other_folds_and_names_come_into_the_table(tmp_path):
    """Whatever the results hold later: other folds, several seeds, a recipe without a name in words."""
    results = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text())["results"]
    first = next(row for row in results if row["split"] == "sessions")
    other = {**first, "model": "new_recipe", "folds_by_seed": {"42": [0], "43": [0]}, "num_scans": {"42": 7, "43": 9}}
    (tmp_path / "accuracy.json").write_text(json.dumps({"results": [first, other]}))
    block = readme.accuracy(tmp_path)
    assert "`new_recipe`" in block and "7 or 9 scans" in block and "1 of 5 folds, seeds 42, 43" in block
    assert "compare them with care" in block and "published" not in block.lower().replace("as published", "")


FIGURE = re.compile(r"\d+[.,]\d+(?: ?%| ?[Mk]B?\b| ?ms\b)?|\d+ ?%|\d+ ?(?:ms|[MkG]B|M)\b")
VERSIONS = re.compile(r"Apache-2\.0|GPL-3\.0|Python 3\.10")  # the last is what pyproject.toml says


def lines_by_hand(text: str) -> list[str]:
    """The lines of a document that no command wrote and that are no code."""
    for name in readme.BLOCKS:
        text = readme.pattern(name).sub("", text)
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()


def typed_figures(line: str) -> set[str]:
    """Decimals, percentages, times and sizes in the words of a line."""
    words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)
    return set(FIGURE.findall(VERSIONS.sub("", words)))


@cache
def parameters_of(recipe: str) -> int:
    """How many the model of a recipe has, with the four states."""
    model, data, _ = parse_arguments(["--config", re.sub("finetune|distill", "pretrain", recipe)])
    states = SimpleNamespace(label_names=list("abcd"), class_weights=None)
    return sum(weights.numel() for weights in build_model(model, data, states, True)[0].parameters())


def sizes_that_hold(line: str) -> set[str]:
    """What may be said of the recipes and of the released folders that a line names."""
    recipes = [
        name for name in re.findall(r"`(\w+)`", line) if (ROOT / f"configuration/recipes/{name}.yaml").is_file()
    ]
    sizes = {f"{parameters_of(name) / 1e6:.{decimals}f} M" for name in recipes for decimals in (0, 1)}
    for folder in re.findall(r"\((model_cards/[\w-]+)/", line):
        sizes.add(f"{(ROOT / folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
    return sizes


def test_no_figure_is_typed():
    """Outside of blocks and code the README has no figure but sizes, which are those of what the line names."""
    assert 'requires-python = ">=3.10' in (ROOT / "pyproject.toml").read_text()
    found = {line: typed for line in lines_by_hand(README.read_text("utf-8")) if (typed := typed_figures(line))}
    assert len(found) >= 5  # it looks at what it should
    for line, typed in found.items():
        assert typed <= sizes_that_hold(line), line


@pytest.mark.parametrize(
    "planted",
    ["0.83 on scans", "it takes 4 ms", "decides on 77 %", "of 3,2 nm", "`vit`, 5.1 M", "of 0.8 MB", "95% sure"],
)
def test_a_typed_figure_is_seen(planted):
    (line,) = lines_by_hand(planted)
    assert not typed_figures(line) <= sizes_that_hold(line)
