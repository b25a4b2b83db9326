"""What is saved loads where this project is not installed: code, weights and processor travel together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from modeling_scanline import ScanlineImageProcessor

# What a stranger runs in a folder of its own: project to do without, then the folders to load.
STRANGER = """
import sys

# an editable installation works through a finder or a path, wherever Python was told to look
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [entry for entry in sys.path if entry and "editable" not in entry and entry != sys.argv[1]]
try:
    import modeling_scanline
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("this process knows the project: " + str(modeling_scanline.__path__))

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

scan = np.load("scan.npy")
for folder in sys.argv[2:]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    bare = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True)
    assert type(bare).__name__.endswith("Model") and type(processor).__name__ == "ScanlineImageProcessor"
    inputs = processor(scan, return_tensors="pt")
    with torch.no_grad():
        results = {
            "labels": list(config.id2label.values()),
            "logits": model(**inputs).logits,
            "hidden": bare(**inputs).last_hidden_state,
            "scores": torch.tensor([answer["score"] for answer in classify(Image.fromarray(scan), top_k=4)]),
        }
    if config.model_type == "scanline_causal":
        loaded = get_class_from_dynamic_module("streaming_scanline.ScanlineStreamer", folder).from_pretrained(folder)
        for name, streamer in (("streamed", model.streamer(processor)), ("loaded", loaded)):
            results[name] = torch.tensor(streamer.update_many(scan)[-1].probabilities)
    torch.save(results, config.model_type + ".pt")
    model.save_pretrained(config.model_type)
    processor.save_pretrained(config.model_type)
"""


def run_stranger(folders: list[Path], work: Path) -> dict[str, dict]:
    """Loads folders in a process that cannot import the project; saves each to `work / model_type`."""
    work.mkdir()
    np.save(work / "scan.npy", scan())
    (work / "stranger.py").write_text(STRANGER)
    project = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "home"),
        "HF_MODULES_CACHE": str(work / "modules"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # other sums may be rounded otherwise
    }
    process = subprocess.run(
        [sys.executable, "-I", "stranger.py", project, *folders],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return {file.stem: torch.load(file, weights_only=True) for file in work.glob("*.pt")}


def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 70), dtype=np.uint8)


@pytest.fixture(scope="module")
def travellers(vit, causal, cnn, lrcn, tmp_path_factory):
    """All models, each saved with a processor: name to (model, folder)."""
    saved = {}
    for name, make in (("vit", vit), ("causal", causal), ("cnn", cnn), ("lrcn", lrcn)):
        model = make(id2label={0: "atoms", 1: "dimers", 2: "rows", 3: "defect"})
        folder = tmp_path_factory.mktemp(name) / "saved"
        model.save_pretrained(folder)
        ScanlineImageProcessor(pixels_per_line=32).save_pretrained(folder)
        saved[name] = (model, folder)
    return saved


@pytest.fixture(params=["vit", "causal", "cnn", "lrcn"])
def traveller(request, travellers):
    return travellers[request.param]


def test_the_folder_holds_the_code_and_names_every_class(traveller):
    _, folder = traveller
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForImageClassification"}
    processor_map = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
    assert set(processor_map) == {"AutoImageProcessor"}
    for reference in [*auto_map.values(), *processor_map.values()]:
        module, class_name = reference.split(".")
        assert f"class {class_name}(" in (folder / f"{module}.py").read_text()
    assert (folder / "model.safetensors").is_file()


def test_a_stranger_gets_the_same_numbers_and_can_pass_the_models_on(travellers, tmp_path):
    folders = {model.config.model_type: folder for model, folder in travellers.values()}
    first = run_stranger(list(folders.values()), tmp_path / "first")
    second = run_stranger([tmp_path / "first" / name for name in folders], tmp_path / "second")
    inputs = ScanlineImageProcessor(pixels_per_line=32)(scan(), return_tensors="pt")
    for name, folder in folders.items():
        # loaded here too: weights that lie elsewhere in memory may be summed in another order
        model = AutoModelForImageClassification.from_pretrained(folder)
        with torch.no_grad():
            expected, hidden = model(**inputs).logits, model.base_model(**inputs).last_hidden_state
        for results in (first[name], second[name]):
            assert results["labels"] == ["atoms", "dimers", "rows", "defect"]
            assert torch.equal(results["logits"], expected)
            assert torch.equal(results["hidden"], hidden)
            scores = expected.softmax(-1)[0].sort(descending=True).values
            torch.testing.assert_close(results["scores"], scores, atol=1e-6, rtol=0)
            if name == "scanline_causal":
                for streamed in (results["streamed"], results["loaded"]):
                    torch.testing.assert_close(streamed, expected.softmax(-1)[0], atol=1e-5, rtol=0)
        for file in ("config.json", "preprocessor_config.json"):
            assert json.loads((tmp_path / "second" / name / file).read_text()) == json.loads(
                (folder / file).read_text()
            )


def test_the_bare_model_travels_too(traveller, tmp_path):
    model, folder = traveller
    type(model.base_model).from_pretrained(folder).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel"} <= set(auto_map)
    assert all((tmp_path / f"{reference.split('.')[0]}.py").is_file() for reference in auto_map.values())
    lines = torch.randn(1, 10, 32)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(lines).last_hidden_state, model.base_model(lines).last_hidden_state)


def test_where_the_project_is_known_no_code_is_asked_for(traveller):
    model, folder = traveller
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert type(loaded) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert type(AutoImageProcessor.from_pretrained(folder)) is ScanlineImageProcessor


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}], ids=["unsaid", "untrusted"])
def test_the_pipeline_classifies_scans_with_the_project_s_own_code(traveller, monkeypatch, trust):
    # unsaid, the library asks whether to trust the code of a video processor that it guesses must exist
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    model, folder = traveller
    classify = pipeline("image-classification", model=str(folder), **trust)
    assert type(classify.model) is type(model)
    answers = classify([Image.fromarray(scan()), Image.fromarray(scan()[:20])], top_k=2)
    assert [len(answer) for answer in answers] == [2, 2]
    with torch.no_grad():
        inputs = ScanlineImageProcessor(pixels_per_line=32)(scan(), return_tensors="pt")
        best = model(**inputs).logits.softmax(-1)[0].max(-1)
    assert answers[0][0]["label"] == ["atoms", "dimers", "rows", "defect"][int(best.indices)]
    assert answers[0][0]["score"] == pytest.approx(best.values.item(), abs=1e-6)


def test_loading_in_half_precision_keeps_the_streams_numbers(travellers):
    _, folder = travellers["causal"]
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert model(torch.randn(1, 10, 32)).logits.dtype == torch.bfloat16


def test_a_checkpoint_for_other_labels_takes_a_new_head(traveller):
    model, folder = traveller
    changed = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    assert changed.config.num_labels == 3 and changed.classifier.weight.shape == (3, model.classifier.in_features)
    for kept, before in zip(changed.base_model.parameters(), model.base_model.parameters(), strict=True):
        assert torch.equal(kept, before)
