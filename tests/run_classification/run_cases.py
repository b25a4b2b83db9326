"""Tiny models, the flags of a run, and readings of what it wrote, which the tests of runs share."""

import json
from pathlib import Path

TINY = {
    "tokenizer_channels": [4, 8],
    "tokenizer_kernel_sizes": [3, 3],
    "tokenizer_context_lines": 3,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
COMPARATORS = {
    "cnn": {"conv_channels": [4, 8]},
    "lrcn": {"conv_channels": [4, 8], "window_lines": 8, "window_stride": 2, "hidden_size": 16},
}
LIBRARY = {
    "transformers:vit": {"patch_size": 6, "num_channels": 1} | {k: v for k, v in TINY.items() if "tok" not in k},
    "transformers:convnext": {
        "num_channels": 1, "num_stages": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "layer_scale_init_value": 1.0,
    },
}  # fmt: skip
OVERRIDES = {"causal": TINY, "vit": {k: v for k, v in TINY.items() if "tok" not in k}, **COMPARATORS, **LIBRARY}


def arguments(scans: Path, output_dir: Path, model: str = "causal", **options) -> list[str]:
    values = {
        "model": model,
        "dataset": "npz",
        "data_dir": scans,
        "cache_dir": scans.parent / "cache",
        "output_dir": output_dir,
        "pixels_per_line": 24,
        "max_lines": 24,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "warmup_epochs": 0.5,
        "eval_line_counts": ["5", "24"],
        "config_overrides": json.dumps(OVERRIDES[model]),
        "disable_tqdm": True,
        **options,
    }
    flags: list[str] = []
    for name, value in values.items():
        flags += [f"--{name}", *([str(value)] if not isinstance(value, list) else map(str, value))]
    return flags


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step, where it was logged at every step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {record["step"]: record["loss"] for record in history if "loss" in record}


def epochs(folder: Path) -> list[dict]:
    """What metrics.jsonl says of each epoch, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for part in ("train", "validation"):
            record[part] = {
                name: value
                for name, value in record[part].items()
                if "second" not in name and "runtime" not in name and "wait" not in name
            }
    return records
