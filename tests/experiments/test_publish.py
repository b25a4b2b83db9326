"""Publication, on a Hub of the same protocol on loopback: what goes up, who reads it, what a cut-off leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import Hub, Repository
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image
from transformers import AutoModelForImageClassification

from data_scripts import export
from data_scripts.export import ExportArguments
from data_scripts.source import ScanSource
from experiments.publish import PublishError, connect, main, publish
from experiments.run_folder import PATHS
from run_classification import main as run_classification

ROOT = Path(__file__).parents[2]
TOKEN = "hf_PlantedTokenThatMustNotBeSeen"
TINY = {
    "tokenizer_channels": [4], "tokenizer_kernel_sizes": [3], "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
STRANGER = """
import json, re, sys
from datasets import load_dataset
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

model = AutoModelForImageClassification.from_pretrained("me/away", trust_remote_code=True)
tagged = AutoModelForImageClassification.from_pretrained("me/away", revision="v1", trust_remote_code=True)
classify = pipeline("image-classification", model="me/away", trust_remote_code=True)
blocks = []
for kind in ("model", "dataset"):
    card = open(hf_hub_download("me/away", "README.md", repo_type=kind)).read()
    blocks += re.findall(r"^```python\\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
for block in blocks:
    exec(block)
assert "modeling_scanline" not in sys.modules and type(model).__module__.startswith("transformers_modules.")
print(json.dumps({
    "weights": [float(each.classifier.weight.detach().double().sum()) for each in (model, tagged)],
    "states": classify(Image.open("scan.png"), top_k=9),
    "blocks": len(blocks),
    "scans": load_dataset("me/away", split="train")["scan_id"][:],
}))
"""


@pytest.fixture(scope="module")
def hub():
    """The only Hub that this process talks to; it does not wait before it asks once more."""
    with Hub(TOKEN) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", "/no/such/login")
        patch.setattr("time.sleep", lambda seconds: None)
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        patch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture(autouse=True)
def answering(hub) -> None:
    hub.restart()


@pytest.fixture
def login(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Everything that these tests write: no token may stand in it."""
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def scans(work) -> Path:
    rng = np.random.default_rng(0)
    labels, images = np.arange(60) % 2, rng.standard_normal((60, 16, 16)).astype(np.float32)
    images[labels == 1] += 4 * np.sin(np.arange(16))
    np.savez(work / "scans.npz", images=images, labels=labels, sessions=np.repeat(["a", "b", "c", "d", "e"], 12))
    return work / "scans.npz"


def run_flags(scans: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--dataset", "npz", "--data_dir", str(scans), "--cache_dir", str(scans.parent / "cache"),
        "--output_dir", str(folder), "--pixels_per_line", "16", "--max_lines", "16", "--num_train_epochs", "1",
        "--eval_line_counts", "5", "16", "--config_overrides", json.dumps(TINY), "--disable_tqdm", "true", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(hub, work, scans) -> Path:
    """A run that published itself as me/run when it had ended; and what may lie about in its folder later."""
    flags = run_flags(scans, work / "run", "--push_to_hub", "--hub_model_id", "me/run", "--hub_token", TOKEN)
    assert run_classification(flags) == 0
    for name in ("notes.md", "optimizer.pt", "pytorch_model.bin", "secrets.py", "run.log", "predictions.csv"):
        (work / "run" / name).write_text("for me alone")
    return work / "run"


@pytest.fixture(scope="module")
def dataset(work, scans) -> Path:
    source = ScanSource("npz", str(scans), str(work / "cache"), pixels_per_line=16, max_lines=16)
    return export.export(source, ExportArguments(str(work / "exported")))


def files(hub: Hub, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
    repository = hub.repositories[kind, repo_id]
    return {name: content for name, content in repository.commits[repository.find(revision)].items() if name[0] != "."}


def changed(run: Path, folder: Path, by: float = 0.5) -> Path:
    """The same run with other weights."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    model = AutoModelForImageClassification.from_pretrained(run)
    with torch.no_grad():
        model.classifier.weight += by
    model.save_pretrained(folder)
    return folder


def refused(capsys, *flags: str) -> str:
    """The one sentence that a publication is refused with."""
    capsys.readouterr()
    assert main(flags) == 2
    says = capsys.readouterr().err
    assert says.count("\n") == 1 and says.startswith("experiments.publish: error: ") and TOKEN not in says
    return says


class TestWhatGoesUp:
    def test_a_run_publishes_itself_when_it_has_ended(self, hub, run):
        repository = hub.repositories["models", "me/run"]
        assert repository.private
        assert repository.messages == ["initial commit", "Publish run"]  # one commit, and nothing from the Trainer
        there = files(hub, "me/run")
        for name, content in there.items():
            if name not in ("README.md", "recipe.yaml"):
                assert content == (run / name).read_bytes()
        assert {
            "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "modeling_scanline_causal.py",
            "layers_scanline.py", "split.json", "summary.json", "metrics.jsonl", "recipe.yaml",
            "validation_probabilities.npz",
        } <= set(there)  # fmt: skip
        assert any(run.glob("checkpoint-*/training_args.bin"))
        assert not any("/" in name or name.endswith((".bin", ".pt", "_state.json")) for name in there)

    def test_the_card_is_ours_and_valid_and_says_where_the_model_is(self, hub, run):
        card = ModelCard(files(hub, "me/run")["README.md"].decode())
        assert str(card) == (run / "README.md").read_text().replace(
            '"PATH_OR_REPOSITORY"  # or its repository on the Hub', '"me/run"'
        )
        assert "me/run" in str(card)
        card.validate()
        with pytest.raises(ValueError, match="license"):
            ModelCard(str(card).replace("apache-2.0", "mine")).validate()

    def test_the_recipe_says_nothing_of_the_machine(self, hub, run, work):
        assert str(work) in (run / "recipe.yaml").read_text()
        assert not [name for name, content in files(hub, "me/run").items() if str(work).encode() in content]
        recipe, here = (
            yaml.safe_load(text) for text in (files(hub, "me/run")["recipe.yaml"], (run / "recipe.yaml").read_text())
        )
        assert set(here) - set(recipe) <= {*PATHS} and all(recipe[name] == here[name] for name in recipe)

    def test_the_dry_run_lists_the_same_and_asks_nothing(self, hub, run, capsys):
        assert main([str(run), "--repo_id", "me/run", "--dry_run"]) == 0
        listed = dict(re.findall(r"│ (\S+) +│ +([\d,]+) │", capsys.readouterr().out))
        assert listed == {name: f"{len(content):,}" for name, content in files(hub, "me/run").items()}
        assert not hub.requests

    def test_a_released_model_goes_up_whole(self, hub, login):
        released = ROOT / "model_cards" / "scanline-causal-hsi100"
        assert main([str(released), "--repo_id", "me/released", "--public"]) == 0
        assert set(files(hub, "me/released")) == {path.name for path in released.iterdir() if path.is_file()}
        assert 'folder = "me/released"\n' in files(hub, "me/released")["README.md"].decode()
        assert not hub.repositories["models", "me/released"].private

    def test_a_second_push_takes_the_place_of_the_first_and_leaves_what_is_not_ours(self, hub, run, work, login):
        publish(run, "me/twice", connect("me/twice"))
        repository = hub.repositories["models", "me/twice"]
        others = {
            "handler.py": b"of the owner",
            "deep/model_scanline.py": b"too",
            "test_probabilities.npz": b"of ours",
        }
        repository.commit("main", repository.commits[repository.branches["main"]] | others, "by hand")
        second = changed(run, work / "second")
        assert main([str(second), "--repo_id", "me/twice", "--message", "Better", "--tag", "v2"]) == 0
        assert set(files(hub, "me/twice")) - set(files(hub, "me/run")) == {"handler.py", "deep/model_scanline.py"}
        assert files(hub, "me/twice")["model.safetensors"] == (second / "model.safetensors").read_bytes()
        assert repository.messages[-1] == "Better" and repository.tags == {"v2": repository.branches["main"]}

    def test_a_branch_is_made_and_main_stays(self, hub, run, work, login):
        assert main([str(run), "--repo_id", "me/branched"]) == 0
        other = changed(run, work / "branched")
        assert main([str(other), "--repo_id", "me/branched", "--revision", "trial/2"]) == 0
        assert files(hub, "me/branched") == files(hub, "me/run") | {
            "README.md": files(hub, "me/branched")["README.md"]
        }
        on_branch = files(hub, "me/branched", "trial/2")["model.safetensors"]
        assert on_branch == (other / "model.safetensors").read_bytes() != files(hub, "me/run")["model.safetensors"]

    def test_a_dataset_is_found_to_be_one_and_leaves_no_stale_shard(self, hub, dataset, login):
        assert main([str(dataset), "--repo_id", "me/scans"]) == 0
        first = files(hub, "me/scans", kind="datasets")
        assert set(first) == {"README.md", "counts.json", "data/train-00000-of-00001.parquet"}
        assert 'load_dataset("me/scans")' in first["README.md"].decode()
        repository = hub.repositories["datasets", "me/scans"]
        assert repository.private
        stale = {"data/train-00001-of-00002.parquet": b"stale", "photo.jpg": b"not ours"}
        repository.commit("main", first | stale, "by hand")
        assert main([str(dataset), "--repo_id", "me/scans"]) == 0
        assert files(hub, "me/scans", kind="datasets") == first | {"photo.jpg": b"not ours"}


class TestWhoReadsIt:
    def test_a_stranger_loads_it_by_name_and_again_offline(self, hub, run, dataset, work, login):
        publish(run, "me/away", connect("me/away"), tag="v1")
        publish(changed(run, work / "later", by=1.0), "me/away", connect("me/away"))
        publish(dataset, "me/away", connect("me/away"))
        (work / "away").mkdir()
        (work / "away" / "main.py").write_text(STRANGER)
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16), dtype=np.uint8)).save(
            work / "away/scan.png"
        )
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(work / "home"),
        }  # fmt: skip

        def ask(**more: str) -> dict:
            process = subprocess.run(
                [sys.executable, "-I", "main.py"],
                cwd=work / "away",
                env=environment | more,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert process.returncode == 0, process.stderr
            assert TOKEN not in process.stdout + process.stderr
            return json.loads(process.stdout.splitlines()[-1])

        answer = ask()
        weight = AutoModelForImageClassification.from_pretrained(run).classifier.weight
        here = float(weight.detach().double().sum())
        assert answer["weights"] == pytest.approx([here + 2 * 16, here])
        assert {state["label"] for state in answer["states"]} == {"0", "1"}
        assert answer["blocks"] == 2
        assert answer["scans"] == [str(number) for number in range(60)]
        hub.restart(cut=0)
        assert ask(HF_HUB_OFFLINE="1") == answer
        assert not hub.requests


class TestACutOff:
    @pytest.mark.parametrize("answers_last", [True, False])
    def test_leaves_the_earlier_revision_whole_and_a_later_push_works(self, hub, api, run, work, answers_last):
        repo_id = f"me/cut_{answers_last}"
        publish(run, repo_id, api)
        repository = hub.repositories["models", repo_id]
        earlier, objects = repository.branches["main"], dict(hub.objects)
        after = changed(run, work / f"after_{answers_last}")
        (after / "split.json").write_text("{}")

        def rewind() -> None:
            repository.branches["main"] = earlier
            hub.objects.clear()
            hub.objects.update(objects)

        hub.restart()
        publish(after, repo_id, api)
        num_requests = len(hub.requests)
        expected = {earlier: files(hub, repo_id, earlier), "after": files(hub, repo_id)}
        assert num_requests > 6
        seen = []
        for cut in range(num_requests):
            rewind()
            hub.restart(cut + (not answers_last), answers_last)
            with pytest.raises(PublishError) as error:
                publish(after, repo_id, api)
            assert TOKEN not in str(error.value) and "connection" in str(error.value)
            hub.restart()
            snapshot = Path(api.snapshot_download(repo_id, cache_dir=work / "cache"))
            there = {name: (snapshot / name).read_bytes() for name in files(hub, repo_id)}
            seen.append("after" if repository.branches["main"] != earlier else earlier)
            assert there == expected[seen[-1]]
            model = AutoModelForImageClassification.from_pretrained(snapshot)
            assert torch.isfinite(model.classifier.weight).all()
            publish(after, repo_id, api)
            assert files(hub, repo_id) == expected["after"]
        # only the answer to the commit can be lost behind a commit
        assert seen == [earlier] * (num_requests - 1) + [earlier if answers_last else "after"]


class TestRefusals:
    def test_folders(self, run, work, capsys, login):
        assert "no such folder" in refused(capsys, str(work / "nowhere"), "--repo_id", "me/x")
        unfinished = next(run.glob("checkpoint-*"))
        assert "lacks README.md, summary.json" in refused(capsys, str(unfinished), "--repo_id", "me/x")
        assert "does not hold a dataset" in refused(capsys, str(run), "--repo_id", "me/x", "--repo_type", "dataset")

    @pytest.mark.parametrize(("repo_id", "says"), [("x", "OWNER/NAME"), ("me/a b", "names no repository")])
    def test_names(self, run, capsys, login, repo_id, says):
        assert says in refused(capsys, str(run), "--repo_id", repo_id)

    def test_no_token(self, hub, run, capsys):
        assert "hf auth login" in refused(capsys, str(run), "--repo_id", "me/x")
        assert not hub.requests

    def test_a_wrong_token_that_the_answer_quotes(self, run, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}2")
        assert "<token>" in refused(capsys, str(run), "--repo_id", "me/x")

    def test_another_owner(self, run, capsys, login):
        assert 'namespace "you"' in refused(capsys, str(run), "--repo_id", "you/x")

    def test_a_repository_that_anyone_can_read(self, hub, run, capsys, login):
        hub.repositories["models", "me/open"] = Repository(private=False)
        hub.repositories["models", "me/open"].commit("main", {}, "initial commit")
        assert "anyone can read it" in refused(capsys, str(run), "--repo_id", "me/open")
        assert not files(hub, "me/open")

    def test_a_tag_that_there_is(self, hub, run, capsys, login):
        assert main([str(run), "--repo_id", "me/tagged", "--tag", "v1"]) == 0
        assert "tag v1 already" in refused(capsys, str(run), "--repo_id", "me/tagged", "--tag", "v1")

    def test_a_card_that_the_hub_does_not_take(self, hub, run, work, capsys, login):
        shutil.copytree(run, work / "unlicensed")
        (work / "unlicensed" / "README.md").write_text("---\nlicense: mine\n---\n")
        assert "license" in refused(capsys, str(work / "unlicensed"), "--repo_id", "me/unlicensed")
        assert not files(hub, "me/unlicensed")

    def test_no_network(self, run):
        environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        process = subprocess.run(
            [sys.executable, "-m", "experiments.publish", str(run), "--repo_id", "me/x"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert "the connection to http://127.0.0.1:9 failed" in process.stderr and TOKEN not in process.stderr

    def test_a_run_that_cannot_publish_itself_says_so_before_it_starts(self, hub, scans, work, capsys):
        flags = run_flags(scans, work / "never", "--push_to_hub")
        for more, says in (
            ([], "needs hub_model_id"),
            (["--hub_model_id", "me/never"], "hf auth login"),
            (["--hub_model_id", "never", "--hub_token", TOKEN], "OWNER/NAME"),
            (["--hub_model_id", "me/never", "--do_eval"], "do_train"),
        ):
            assert run_classification([*flags, *more]) == 2
            assert says in capsys.readouterr().err
        assert not hub.requests and not (work / "never").exists()

    def test_a_run_that_the_hub_refuses_is_whole(self, hub, scans, work, capsys):
        flags = run_flags(scans, work / "kept", "--push_to_hub", "--hub_model_id", "you/kept", "--hub_token", TOKEN)
        assert run_classification(flags) == 2
        says = capsys.readouterr().err.splitlines()[-1]
        assert f"experiments.publish {work / 'kept'} --repo_id you/kept" in says and TOKEN not in says
        publish(work / "kept", "me/kept", connect("me/kept", TOKEN))
        assert "model.safetensors" in files(hub, "me/kept")


def test_no_token_was_left_anywhere(hub, run, work):
    written = [path for path in work.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert [str(path) for path in written if TOKEN.encode() in path.read_bytes()] == []
    for repository in hub.repositories.values():
        for snapshot in repository.commits.values():
            assert not any(TOKEN.encode() in content for content in snapshot.values())
