"""What the library asks of a model: attention implementations, outputs, checkpointing, precision, compiling, plans."""

import copy
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from modeling_scanline import ScanlineCache

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")),
    reason="torch.compile needs a C++ compiler, and there is none on this machine",
)
EXACT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture
def mask():
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 0] = mask[0, 4:6] = mask[1, 9:] = 0
    return mask


def assert_same_as_sdpa(model, lines, mask, attention):
    with torch.no_grad():  # flexible attention has no gradient on a CPU
        model.set_attn_implementation("sdpa")
        expected = model(lines, mask).logits
        model.set_attn_implementation(attention)
        assert model.config._attn_implementation == attention
        torch.testing.assert_close(model(lines, mask).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_mask", [False, True])
def test_eager_attention_gives_the_numbers_of_sdpa(either, make_lines, mask, with_mask):
    assert_same_as_sdpa(either(), make_lines(), mask if with_mask else None, "eager")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:_compile flag")
def test_flexible_attention_gives_the_numbers_of_sdpa(causal, make_lines, mask):
    with torch.compiler.set_stance("force_eager"):  # the library compiles it, which takes half a minute
        assert_same_as_sdpa(causal(sliding_window=4), make_lines(), mask, "flex_attention")


def test_hidden_states_are_the_tokens_and_every_layer(either, make_lines):
    model = either()
    outputs = model(make_lines(), output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    assert all(state.shape[0] == 2 and state.shape[2] == 32 for state in outputs.hidden_states)
    assert not torch.equal(outputs.hidden_states[0], outputs.hidden_states[1])
    assert model(make_lines()).hidden_states is None


def test_attention_weights_sum_to_one(either, make_lines, mask):
    outputs = either(attn_implementation="eager")(make_lines(), mask, output_attentions=True)
    assert len(outputs.attentions) == 2
    for weights in outputs.attentions:
        num_tokens = weights.shape[-1]
        assert weights.shape == (2, 4, num_tokens, num_tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, num_tokens))
        # an unmeasured line is looked at by no measured one; the tokens of the ViT start with CLS
        columns = nn.functional.pad(mask, (num_tokens - 12, 0), value=1).bool()
        looked_at = weights * columns[:, None, :, None] * ~columns[:, None, None, :]
        assert not looked_at.any()


def test_causal_attention_is_zero_above_the_diagonal_and_beyond_the_window(causal, make_lines):
    model = causal(attn_implementation="eager", sliding_window=4)
    for weights in model(make_lines(), output_attentions=True).attentions:
        distance = torch.arange(12).unsqueeze(1) - torch.arange(12)
        allowed = (distance >= 0) & (distance < 4)
        assert torch.equal(weights > 0, allowed.expand_as(weights))


def test_tuples_come_back_where_asked_for(every, make_lines):
    model = every()
    torch.testing.assert_close(model(make_lines(), return_dict=False)[0], model(make_lines()).logits)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its heir is newer than 5.17
def test_gradient_checkpointing_gives_the_same_gradients(every, make_lines, mask):
    gradients = []
    for checkpointing in (False, True):
        model = every(**EXACT).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(make_lines(), mask, labels=torch.tensor([1, 2])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only(every, make_lines):
    model = every()
    assert torch.equal(model(make_lines()).logits, model(make_lines()).logits)
    model.train()
    assert not torch.equal(model(make_lines()).logits, model(make_lines()).logits)


def assert_half_precision_agrees(model, make_lines, mask, dtype):
    half = copy.deepcopy(model).to(dtype)
    for given in (None, mask):
        with torch.no_grad():
            expected, actual = model(make_lines(), given).logits, half(make_lines(), given).logits
        assert actual.dtype == dtype and actual.isfinite().all()
        assert (actual.float() - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@HALF
def test_half_precision_agrees_within_its_precision(either, make_lines, mask, dtype, attention):
    assert_half_precision_agrees(either(attn_implementation=attention), make_lines, mask, dtype)


@HALF
def test_half_precision_of_the_comparators_agrees_within_its_precision(cnn, lrcn, make_lines, mask, dtype):
    for make in (cnn, lrcn):
        assert_half_precision_agrees(make(), make_lines, mask, dtype)


@pytest.mark.parametrize("static", [False, True])
def test_half_precision_streams(causal, make_lines, static):
    model = causal().to(torch.bfloat16)
    lines = make_lines(1, 40)
    cache = ScanlineCache(model.config, max_cache_len=16 if static else None)
    with torch.no_grad():
        expected = model(lines).line_logits.float()
        streamed = [model(line, past_key_values=cache).line_logits for line in lines.split(1, dim=1)]
    difference = (torch.cat(streamed, dim=1).float() - expected).abs().max()
    assert difference < 8 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


def test_autocast_computes_the_loss_in_float32(every, make_lines):
    with torch.autocast("cpu", torch.bfloat16):
        loss = every()(make_lines(), labels=torch.tensor([0, 1])).loss
    assert loss.dtype == torch.float32


@needs_compiler
def test_the_compiled_full_pass_gives_the_same(causal, make_lines):
    model = causal(num_hidden_layers=1, tokenizer_channels=[4], tokenizer_kernel_sizes=[3])
    with torch.no_grad():
        expected = model(make_lines()).logits
        torch.compiler.reset()
        actual = torch.compile(model, fullgraph=True)(make_lines()).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vit", "causal", "cnn"])
def test_one_graph_holds_the_full_pass_with_a_mask(request, make_lines, mask, name):
    model = request.getfixturevalue(name)()
    torch.compiler.reset()
    with torch.no_grad():
        actual = torch.compile(model, fullgraph=True, backend="eager")(make_lines(), mask).logits
        torch.testing.assert_close(actual, model(make_lines(), mask).logits, atol=1e-5, rtol=0)


def test_one_graph_holds_a_line_of_a_stream(causal, make_lines):
    """Captured without breaks, line by line, past the window; the code generator is left out, which takes minutes."""
    model = causal()
    lines = make_lines(1, 30)
    cache = ScanlineCache(model.config, max_cache_len=16)
    cache.early_initialization(1, 4, 8, torch.float32, lines.device)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        streamed = [compiled(line, past_key_values=cache).line_logits for line in lines.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(streamed, dim=1), model(lines).line_logits, atol=1e-5, rtol=0)


def test_every_pattern_of_the_tensor_parallel_plan_names_a_linear(either):
    model = either()
    linear = [name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in model.config.base_model_tp_plan:
        expression = re.escape(pattern).replace(r"\*", r"\d+")
        assert sum(bool(re.fullmatch(expression, name)) for name in linear) == 2, pattern
    in_layers = sum(name.startswith("layers.") for name in linear)
    assert in_layers == 2 * len(model.config.base_model_tp_plan)


ONE_OF_TWO_PROCESSES = """
import os, sys
import torch
import modeling_scanline
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], tp_plan="auto").eval()
assert torch.distributed.get_world_size() == 2
share = model.base_model.layers[0].mlp.fc1.weight
share = share.to_local() if hasattr(share, "to_local") else share
assert share.shape == (24, 32), share.shape
with torch.no_grad():
    logits = model(torch.load(sys.argv[2], weights_only=True)).logits
if os.environ["RANK"] == "0":
    torch.save(logits, sys.argv[3])
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_a_model(causal, make_lines, tmp_path):
    model = causal()
    model.save_pretrained(tmp_path / "model")
    torch.save(make_lines(), tmp_path / "lines.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(tmp_path / name) for name in ("model", "lines.pt", "logits.pt")]
    processes = []
    for rank in range(2):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", ONE_OF_TWO_PROCESSES, *arguments],
                env=os.environ | {name: str(value) for name, value in environment.items()},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    shared = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(shared, model(make_lines()).logits, atol=1e-5, rtol=0)


def test_the_auto_class_builds_every_model_from_its_configuration(every):
    model = every()
    built = AutoModelForImageClassification.from_config(model.config)
    assert type(built) is type(model)
    assert sum(p.numel() for p in built.parameters()) == sum(p.numel() for p in model.parameters())


def test_new_weights_are_reproducible_and_small(every):
    def build():
        torch.manual_seed(3)
        return AutoModelForImageClassification.from_config(every().config)

    first, second = build(), build()
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.isfinite().all() and one.abs().max() < 2, name
        assert one.any() or "bias" in name, name
