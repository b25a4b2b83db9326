"""Runs that are joined to one model."""

import pytest
import torch

from experiments.ensemble import join
from modeling_scanline import (
    ScanlineCausalConfig,
    ScanlineCausalForImageClassification,
    ScanlineViTConfig,
    ScanlineViTForImageClassification,
)

SIZES = {
    "pixels_per_line": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip


def causal(seed: int, **changes) -> ScanlineCausalForImageClassification:
    torch.manual_seed(seed)
    settings = {**SIZES, "tokenizer_channels": [4], "tokenizer_kernel_sizes": [3], **changes}
    model = ScanlineCausalForImageClassification(ScanlineCausalConfig(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return model.eval()


def test_logits_are_the_means_of_those_of_the_members():
    # trained with other losses, which says nothing of what they tell
    models = [causal(0), causal(1, next_line_weight=0.5, class_weights=[1.0, 2.0]), causal(2, label_smoothing=0.1)]
    lines = torch.randn(2, 20, 32)
    joined = join(models).eval()
    with torch.no_grad():
        expected = torch.stack([model(lines).line_logits for model in models])
        torch.testing.assert_close(joined(lines).line_logits, expected.mean(dim=0), atol=1e-5, rtol=0)
    assert expected.std(dim=0).min() > 1e-3
    assert joined.config.num_members == 3 and models[0].config.num_members == 1
    of_verdicts = [sum(w.numel() for name, w in m.named_parameters() if "next_lines" not in name) for m in models]
    assert joined.num_parameters() == sum(of_verdicts) - 2 * joined.config.num_labels  # one bias


def test_what_was_joined_can_be_joined_again():
    models = [causal(0), causal(1), join([causal(2), causal(3), causal(4)]).eval()]
    lines = torch.randn(2, 20, 32)
    joined = join([join(models[:2]), models[2]]).eval()
    with torch.no_grad():
        first, second, third = (model(lines).line_logits for model in models)
        expected = ((first + second) / 2 + third) / 2
        torch.testing.assert_close(joined(lines).line_logits, expected, atol=1e-5, rtol=0)
    assert joined.config.num_members == 5


def test_models_of_other_sizes_stand_side_by_side(tmp_path):
    larger = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "tokenizer_channels": [6, 4],
        "tokenizer_kernel_sizes": [5, 3],
    }
    models = [causal(0, **larger), causal(1), causal(2, **larger)]
    lines = torch.randn(2, 20, 32)
    with torch.no_grad():
        logits = [model(lines).line_logits for model in models]
        for order in ([0, 1, 2], [1, 0, 2]):
            join([models[place] for place in order]).save_pretrained(tmp_path)
            joined = ScanlineCausalForImageClassification.from_pretrained(tmp_path).eval()
            torch.testing.assert_close(joined(lines).line_logits, sum(logits) / 3, atol=1e-5, rtol=0)
        again = join([joined, models[1]]).eval()
        expected = sum(logits) / 6 + logits[1] / 2
        torch.testing.assert_close(again(lines).line_logits, expected, atol=1e-5, rtol=0)
    assert [sizes.get("hidden_size") for sizes in again.config.member_sizes] == [32, 32, None]
    assert join(models[1:2] * 2).config.member_sizes is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: causal(1, sliding_window=64), "the same sliding_window, got 128 and 64"),
        (lambda: causal(1, id2label={0: "a", 1: "b"}), "the same id2label"),
        (lambda: causal(1, calibration_lines=[5], calibration_temperatures=[2.0]), "the same calibration_"),
        (lambda: ScanlineViTForImageClassification(ScanlineViTConfig(**SIZES)), "causal models, got scanline_vit"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(other, says):
    with pytest.raises(ValueError, match=says):
        join([causal(0), other()])
