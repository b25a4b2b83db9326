"""Folders that earlier versions of the project saved: this one loads them, and says what that one said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_scanline import ScanlineStreamer

# saved at commit 05bb861, without the code, as it is in this process that they are to be loaded
FOLDERS = sorted(path.parent for path in (Path(__file__).with_name("golden")).glob("*/config.json"))


def scan() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_says_what_it_said(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**processor(scan(), return_tensors="pt")).logits[0]
    np.testing.assert_allclose(logits, json.loads((folder / "logits.json").read_text()), atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"dtype": torch.bfloat16}, {"attn_implementation": "eager"}, {"device_map": "auto"}]
)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_loads_in_any_way(folder, settings):
    model = AutoModelForImageClassification.from_pretrained(folder, **settings).eval()
    inputs = AutoImageProcessor.from_pretrained(folder)(scan(), return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        logits = model(**inputs).logits[0].float()
    expected = json.loads((folder / "logits.json").read_text())
    np.testing.assert_allclose(logits, expected, atol=0.3 if "dtype" in settings else 1e-4)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_another_number_of_states_takes_a_new_head(folder):
    model, told = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=2, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.classifier.out_features == 2
    assert {name.split(".")[0] for name, *_ in told["mismatched_keys"]} == {"classifier"}
    assert not told["missing_keys"]


def test_streams():
    folder = next(folder for folder in FOLDERS if folder.name == "causal")
    last = ScanlineStreamer.from_pretrained(folder, alpha=0.1).update_many(scan()[:36])[-1]  # 24 model lines
    expected = torch.tensor(json.loads((folder / "logits.json").read_text())).softmax(-1)
    np.testing.assert_allclose(last.probabilities, expected, atol=1e-4)
