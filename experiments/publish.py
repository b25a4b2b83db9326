"""
Publishes the folder of a finished run, a released model or an exported dataset on the Hugging Face Hub.

    python -m experiments.publish runs/20261123_101500 --repo_id OWNER/NAME --dry_run   # what would go up
    python -m experiments.publish runs/20261123_101500 --repo_id OWNER/NAME             # private
    python -m experiments.publish model_cards/scanline-causal-hsi100 --repo_id OWNER/NAME --public --tag v1
    python -m experiments.publish exported/mine --repo_id OWNER/NAME                    # a dataset

Only files on a list go up (`--dry_run` shows them), in one commit: a push that breaks off leaves the repository as it
was, and the same command goes on. The token is that of `hf auth login`, or HF_TOKEN. A run publishes itself when
it has ended with `run_classification.py ... --push_to_hub --hub_model_id OWNER/NAME`.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .card import PLACEHOLDER
from .run_folder import (
    CARD_FILE,
    FAILURES_FILE,
    FAILURES_PICTURE,
    METRICS_FILE,
    PRETRAINING_RECIPE_FILE,
    RECIPE_FILE,
    RELEASE_FILE,
    SPLIT_FILE,
    SUMMARY_FILE,
    portable_recipe,
    read_recipe,
)

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
SHARDS = "data/*.parquet"
# all that is ever uploaded: no checkpoint, log, optimizer state or pickle, and no note or predictions
MODEL_FILES = (
    CARD_FILE, "config.json", "preprocessor_config.json", *WEIGHTS, "model.safetensors.index.json", "*_scanline*.py",
    SPLIT_FILE, SUMMARY_FILE, METRICS_FILE, RECIPE_FILE, "*_probabilities.npz", RELEASE_FILE, PRETRAINING_RECIPE_FILE,
    "figures.png", FAILURES_FILE, FAILURES_PICTURE,
)  # fmt: skip
DATASET_FILES = (CARD_FILE, SHARDS, "counts.json")
REPO_TYPES = {"model": MODEL_FILES, "dataset": DATASET_FILES}
MAIN = "main"
console = Console()


class PublishError(ValueError):
    """A folder that cannot be published, or a Hub that does not take it. The message is one sentence."""


def connect(repo_id: str, token: str | None = None, endpoint: str | None = None) -> HfApi:
    """
    A client of the Hub that may write; asks nothing of it yet.

    Args:
        repo_id: `OWNER/NAME`.
        token: by default that of this machine's login.
        endpoint: by default huggingface.co, or what `HF_ENDPOINT` says.

    Raises:
        PublishError: for what names no repository, or if there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} names no repository: {error}") from error
    if "/" not in repo_id:
        raise PublishError(f"{repo_id!r} names no owner: give OWNER/NAME.")
    token = (token or get_token() or "").strip()
    if not token:
        raise PublishError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN.")
    return HfApi(endpoint=endpoint, token=token)


def find_repo_type(folder: Path, repo_type: str | None = None) -> str:
    """
    `model` or `dataset`: what a folder holds.

    Raises:
        PublishError: if it is none, not complete, or not of the `repo_type` that was asked for.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder.")
    found = "dataset" if any(folder.glob(SHARDS)) else "model"
    if repo_type not in (None, found):
        raise PublishError(f"{folder}: does not hold a {repo_type}.")
    missing = [] if (folder / CARD_FILE).is_file() else [CARD_FILE]
    if found == "model":
        missing += [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
        if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            missing.append(WEIGHTS[0])
        if not any((folder / name).is_file() for name in (SUMMARY_FILE, RELEASE_FILE)):
            missing.append(SUMMARY_FILE)
    if missing:
        raise PublishError(
            f"{folder}: is no run that has trained, evaluated and ended, no released model and no exported dataset; "
            f"it lacks {', '.join(missing)}."
        )
    return found


def collect(folder: Path, repo_type: str, repo_id: str) -> dict[str, Path | bytes]:
    """
    What goes up: the file or, where it differs from what lies in the folder, the content, by its name at the Hub.

    The card says where it can be loaded from, and recipes say nothing of the machine that they ran on.

    Raises:
        PublishError: for a card or a recipe that cannot be read.
    """
    paths = sorted({path for pattern in REPO_TYPES[repo_type] for path in folder.glob(pattern) if path.is_file()})
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}
    names = (PLACEHOLDER, "path/to/this/dataset", f"model_cards/{folder.resolve().name}")
    placeholder = rf'"({"|".join(map(re.escape, names))})"(  # or its repository on the Hub)?'
    name = CARD_FILE
    try:
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
        files[CARD_FILE] = re.sub(placeholder, f'"{repo_id}"', card).encode()
        for name in sorted(files.keys() & {RECIPE_FILE, PRETRAINING_RECIPE_FILE}):
            recipe = portable_recipe(read_recipe(folder, name))
            files[name] = yaml.safe_dump(recipe, sort_keys=True, allow_unicode=True).encode()
    except (OSError, ValueError) as error:
        raise PublishError(f"{folder / name}: cannot be read ({' '.join(str(error).split())}).") from error
    return files


def _is_listed(name: str, repo_type: str) -> bool:
    path = PurePosixPath(name)  # match() alone compares ends: *.py would be any .py in any folder
    return any(
        path.match(pattern) and len(path.parts) == len(PurePosixPath(pattern).parts)
        for pattern in REPO_TYPES[repo_type]
    )


def _reason(error: BaseException, endpoint: str) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload, around what it failed with
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        says = " ".join((error.server_message or error.response.reason_phrase).split())[:300]
        advice = {401: "; run `hf auth login` once more", 403: "; the token may not write there"}.get(status, "")
        return f"{endpoint} refused ({status}: {says}){advice}."
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError)):
        # its own text is left out: it may quote the headers of a request
        return f"the connection to {endpoint} failed ({type(error).__name__}); try again."
    return " ".join(str(error).split())[:300]


@contextmanager
def _explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turns what a push can raise into one sentence, in which no token stands."""
    try:
        yield
    except PublishError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = _reason(error, api.endpoint).replace(str(api.token), "<token>")
    else:
        return
    raise PublishError(f"{repo_id}: {reason}")  # outside of `except`: nothing of the error travels on


def publish(
    folder: Path,
    repo_id: str,
    api: HfApi,
    *,
    repo_type: str | None = None,
    public: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
) -> str:
    """
    Publishes a folder in one commit, which deletes files on the list that an earlier push left and this one lacks.

    Args:
        folder: of a finished run, a released model or an exported dataset.
        repo_id: `OWNER/NAME`; made if there is none.
        api: see [`connect`].
        repo_type: `model` or `dataset`; by default what the folder holds.
        public: a new repository is private, and one that anyone can read is refused, unless this is set.
        revision: branch to commit to, by default main; made if there is none.
        tag: name for the commit, such as `v1`.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        PublishError: if the folder cannot be published, or the Hub does not take it.
    """
    repo_type = find_repo_type(folder, repo_type)
    revision = revision or MAIN
    with _explained(api, repo_id):
        files = collect(folder, repo_type, repo_id)
        api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
        private = api.repo_info(repo_id, repo_type=repo_type).private
        if not private and not public:
            raise PublishError(f"{repo_id}: anyone can read it; add --public, or make it private at the Hub first.")
        if tag is not None:
            refs = api.list_repo_refs(repo_id, repo_type=repo_type)
            if tag in {ref.name for ref in refs.tags}:
                raise PublishError(f"{repo_id}: has a tag {tag} already; choose another.")
        if revision != MAIN:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in there if name not in files and _is_listed(name, repo_type)),
            ],
            commit_message=message or f"Publish {folder.resolve().name}",
            repo_type=repo_type,
            revision=revision,
        )
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type)
    console.print(
        f"Published {len(files)} files of {escape(str(folder))}, "
        f"{'for those who may read the repository' if private else 'for everyone'}: {commit.commit_url}",
        soft_wrap=True,
    )
    return commit.commit_url


def print_files(folder: Path, repo_id: str, repo_type: str) -> None:
    """A table of what would go up, with sizes."""
    files = collect(folder, repo_type, repo_id)
    sizes = {name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in files.items()}
    table = Table(title=f"{repo_type} {repo_id}: nothing uploaded yet", show_footer=True)
    table.add_column("file", f"{len(files)} files", overflow="fold")
    table.add_column("bytes", f"{sum(sizes.values()):,}", justify="right", no_wrap=True)
    for name, size in sizes.items():
        table.add_row(escape(name), f"{size:,}")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of a finished run, a released model or an exported dataset")
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="repository; made if there is none")
    parser.add_argument("--repo_type", choices=list(REPO_TYPES), help="by default what the folder holds")
    parser.add_argument("--public", action="store_true", help="for everyone to read; without it, private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (main); made if there is none")
    parser.add_argument("--tag", help="name for the commit, to load it by: v1")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry_run", action="store_true", help="list files and sizes, and upload nothing")
    arguments = parser.parse_args(argv)
    try:
        repo_type = find_repo_type(arguments.folder, arguments.repo_type)
        if arguments.dry_run:
            print_files(arguments.folder, arguments.repo_id, repo_type)
            return 0
        publish(
            arguments.folder,
            arguments.repo_id,
            connect(arguments.repo_id),
            repo_type=repo_type,
            public=arguments.public,
            revision=arguments.revision,
            tag=arguments.tag,
            message=arguments.message,
        )
    except PublishError as error:
        print(f"experiments.publish: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
