"""The Hub folders that the project ships: they load as a stranger loads them, and say what they said when made."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data_scripts import read_scan
from data_scripts.simulation import SimulationOptions, simulate
from data_scripts.splits import Split
from experiments.card import write_card
from experiments.release import example_scan
from modeling_scanline.streaming_scanline import ScanlineStreamer

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (PROJECT / "model_cards").glob("*/config.json"))
INSTRUMENTS = PROJECT.parent / "shared" / "instruments"
LARGEST = {"tiny": 1.5e6, "": 12e6}  # bytes of weights, by the end of the folder's name
CODE = """
import json, sys, numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
print(model(**processor(np.load("scan.npy"), return_tensors="pt")).logits[0].softmax(-1).tolist())
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
print(json.dumps([entry["label"] for entry in classify(Image.new("L", (64, 64)), top_k=9)]))
"""


OTHER_WAYS = """
import torch
from transformers import AutoConfig, AutoModel

assert AutoConfig.from_pretrained(folder, trust_remote_code=True).id2label == model.config.id2label
inputs = processor(np.load("scan.npy"), return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs).logits
    bare = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    width = sum(config.hidden_size for config in model.config.member_configs)
    assert bare(**inputs).last_hidden_state.shape[-1] == width
    for settings in ({"dtype": torch.float16}, {"dtype": torch.bfloat16}, {"attn_implementation": "eager"}):
        other = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, **settings).eval()
        given = {name: each.to(other.dtype) if each.is_floating_point() else each for name, each in inputs.items()}
        assert (other(**given).logits.float() - logits).abs().max() < 0.3, settings
    of_surface = AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=True, num_labels=3, ignore_mismatched_sizes=True
    )
    assert of_surface(**inputs).logits.shape == (1, 3)
"""
STREAM = """
results = model.streamer(processor, alpha=0.2).update_many(np.load("scan.npy"))
print(len(results), results[-1].state, results[-1].familiar)
"""


def installed(*names: str) -> Iterator[Path]:
    """What pip puts into site-packages for these distributions and all that they need."""
    wanted, seen = list(names), set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        requirements = [Requirement(line) for line in found.requires or []]
        wanted += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
        tops = {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}
        yield from (Path(str(found.locate_file(top))) for top in tops)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
class TestReleased:
    def test_needs_torch_transformers_and_pillow_alone(self, folder, tmp_path):
        """In an environment of these, made of what is installed here: without accelerate, scipy and the project."""
        packages = tmp_path / "packages"
        packages.mkdir()
        for path in installed("torch", "transformers", "pillow"):
            target = packages / path.name
            if not target.exists():
                target.symlink_to(path)
        assert (packages / "torch").is_dir() and not (packages / "scipy").exists()
        np.save(tmp_path / "scan.npy", example_scan())
        # no site-packages but those
        before = f"import sys; sys.path.append({str(packages)!r})\nimport numpy as np\n"
        command = [sys.executable, "-I", "-S", "-c", before + CODE + OTHER_WAYS + STREAM, str(folder)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1].startswith(f"{len(example_scan())} ")

    def test_loads_without_the_project_and_says_what_it_said(self, folder, tmp_path):
        np.save(tmp_path / "scan.npy", example_scan())
        (tmp_path / "main.py").write_text(CODE)
        command = [sys.executable, "-I", "main.py", str(folder)]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
        release = json.loads((folder / "release.json").read_text())
        np.testing.assert_allclose(json.loads(printed[-2]), release["example"], atol=1e-4)
        assert set(json.loads(printed[-1])) == set(release["label_names"])

    def test_its_code_is_that_of_the_project(self, folder):
        """Or what is mended here would stay broken on the Hub."""
        modules = sorted(folder.glob("*.py"))
        assert modules
        for module in modules:
            assert module.read_bytes() == (PROJECT / "modeling_scanline" / module.name).read_bytes(), module.name

    def test_names_the_scans_that_it_was_trained_on(self, folder):
        """Or whoever scores it, or trains it further, could not tell which scans it has seen."""
        split, release = Split.load(folder / "split.json"), json.loads((folder / "release.json").read_text())
        counts = release["run"]["split"]["counts"]
        assert (split.dataset, split.counts) == (release["run"]["dataset"], counts) and list(split.parts) == ["train"]
        assert len(set(split.parts["train"])) >= sum(counts["train"].values())

    def test_is_small(self, folder):
        largest = next(size for end, size in LARGEST.items() if folder.name.endswith(end))
        assert (folder / "model.safetensors").stat().st_size <= largest

    def test_the_card_is_what_its_result_files_make(self, folder, tmp_path, find_tables):
        """So no figure on it was typed, and none of another release is left."""
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        (copy / "README.md").unlink()
        write_card(copy)
        assert (copy / "README.md").read_text() == (folder / "README.md").read_text()
        assert len(find_tables((folder / "README.md").read_text())) == 10

    def test_the_card_holds_the_figures_of_its_folds(self, folder):
        card, release = ModelCard.load(folder / "README.md"), json.loads((folder / "release.json").read_text())
        assert "None of these figures is of the weights in this folder" in card.text
        assert f"{release['num_scans']} complete scans" in card.text
        for figures in release["by_lines"].values():
            assert f"| {figures['balanced_accuracy']['mean']:.3f} (" in card.text
            assert f"| {figures['expected_calibration_error']:.3f} |" in card.text
        results = {(result.dataset_config, result.metric_type): result.metric_value for result in card.data.eval_results}
        assert results["whole scans", "auroc"] == round(release["by_lines"]["whole"]["auroc"]["mean"], 4)
        assert results["first 20 lines", "recall_rows"] == round(release["classes"]["20"]["rows"]["recall"], 4)

    def test_a_stream_tells_other_surfaces_and_takes_heights_as_measured(self, folder):
        streamer = ScanlineStreamer.from_pretrained(folder, alpha=0.2)
        assert streamer.processor.normalization == "flat_line"
        flat = streamer.update_many(example_scan())
        streamer.reset()
        tilted = streamer.update_many(example_scan() + np.linspace(0, 300, 200, dtype=np.float32))
        np.testing.assert_allclose(tilted[-1].probabilities, flat[-1].probabilities, atol=1e-2)

    @pytest.mark.parametrize("name", ["nanonis_si111_7x7.sxm", "nanonis_afm_gen4.sxm"])
    def test_a_real_scan_of_another_kind_is_told(self, folder, name):
        if not INSTRUMENTS.is_dir():
            pytest.skip("no real microscope files at hand")
        results = ScanlineStreamer.from_pretrained(folder).update_many(read_scan(INSTRUMENTS / name).lines)
        assert results[-1].familiar is False


def test_a_line_of_a_narrow_scan_is_no_new_tip():
    folder = next(folder for folder in FOLDERS if folder.name.endswith("tiny"))
    streamer, found = ScanlineStreamer.from_pretrained(folder), 0
    for lines in simulate(8, SimulationOptions(seed=5, sizes_nm=(5, 10))).lines:
        streamer.reset()
        results = streamer.update_many(lines.reshape(32, 4, 32, 4).mean(axis=(1, 3)))
        found += any(result.change_line is not None for result in results)
    assert found <= 2
