"""A Hub on loopback: enough of its protocol for huggingface_hub, transformers and datasets to write and to read."""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".parquet", ".npz", ".png")
LICENSES = {"apache-2.0", "gpl-3.0", "cc-by-4.0", "other"}
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+))?(?:/(.*))?)?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/(datasets/)?(.+)\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """Every commit is a whole snapshot; branches and tags name commits."""

    private: bool
    url: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{len(self.messages)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def find(self, revision: str) -> str | None:
        oid = {**self.branches, **self.tags}.get(revision, revision)
        return oid if oid in self.commits else None


class RefusedError(Exception):
    """An answer that is an error: status, code for `X-Error-Code`, what it says, more entries."""


class Hub:
    """
    The server: `with Hub(token) as hub`, and `hub.url` as `HF_ENDPOINT`.

    `owner` is who may write with `token`. After `cut` requests since `restart`, connections are reset: the last one
    without being acted on, or, with `answers_last` false, acted on but not answered.
    """

    def __init__(self, token: str, owner: str = "me"):
        self.token, self.owner = token, owner
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.restart()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def restart(self, cut: int | None = None, answers_last: bool = True) -> None:
        self.requests: list[str] = []
        self.cut, self.answers_last = cut, answers_last

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection; answers are JSON or the bytes of a file."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        hub = self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with hub.lock:
            hub.requests.append(f"{self.command} {self.path}")
            left = 1 if hub.cut is None else hub.cut - len(hub.requests)
            status, headers, content = self.respond(body) if left >= 0 else (0, {}, b"")
        if left < 0 or (left == 0 and not hub.answers_last):
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def respond(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        status, headers = 200, {}
        try:
            content = self.answer(body)
            if isinstance(content, tuple):
                content, headers = content
        except RefusedError as error:
            status, code, says, *more = error.args
            headers, content = {"X-Error-Code": code, "X-Error-Message": says}, {"error": says, **dict(*more)}
        return status, headers, content if isinstance(content, bytes) else json.dumps(content).encode()

    def answer(self, body: bytes):
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        hub, given = self.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path.startswith("/lfs/"):  # as in a bucket: whoever has the address may write
            if hashlib.sha256(body).hexdigest() != path.removeprefix("/lfs/"):
                raise RefusedError(400, "BadDigest", "not what was announced")
            hub.objects[path.removeprefix("/lfs/")] = body
            return b""
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if given not in ("", hub.token):  # an answer that quotes what it was asked with, as a careless proxy's would
            raise RefusedError(401, "Unauthorized", f"Invalid credentials in {self.headers['Authorization']}")
        if path == "/api/whoami-v2":
            return {"type": "user", "name": hub.owner, "orgs": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body), given)
        if match := BATCH.fullmatch(path):
            self.find("datasets" if match[1] else "models", match[2], given)
            return {"objects": [self.upload_action(entry) for entry in json.loads(body)["objects"]]}
        if match := RESOLVE.fullmatch(path):
            prefix, repo_id, revision, name = (unquote(group or "") for group in match.groups())
            oid, files = self.snapshot(self.find("datasets" if prefix else "models", repo_id, given), revision)
            if name not in files:
                raise RefusedError(404, "EntryNotFound", "Entry not found")
            content = files[name]
            return content, {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        match = API.fullmatch(path)
        if match is None:
            raise RefusedError(404, "NotFound", f"no such page: {path}")
        kind, repo_id, action, revision, rest = (unquote(group or "") for group in match.groups())
        repository = self.find(kind, repo_id, given)
        write = getattr(self, f"do_{action}", None) if self.command == "POST" and action != "paths-info" else None
        if write is not None:
            if given != hub.token:
                raise RefusedError(401, "Unauthorized", "a token is needed")
            return write(repository, revision, body)
        if action == "refs":
            listed = {"branches": repository.branches, "tags": repository.tags}
            return {
                "converts": [],
                **{
                    what: [
                        {"name": name, "ref": f"refs/{what}/{name}", "targetCommit": oid} for name, oid in refs.items()
                    ]
                    for what, refs in listed.items()
                },
            }
        oid, files = self.snapshot(repository, revision or "main")
        if action == "tree":
            return self.entries(files, rest, "true" in query.get("recursive", ["false"])[0].lower())
        if action == "paths-info":
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            return [entry for entry in self.entries(files, "", True) if entry["path"] in wanted]
        if action in ("", "revision"):
            siblings = [{"rfilename": name} for name in files]
            return {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []}
        raise RefusedError(404, "NotFound", f"no such page: {path}")

    def find(self, kind: str, repo_id: str, given: str) -> Repository:
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and given != self.hub.token):
            raise RefusedError(404 if given else 401, "RepoNotFound", "Repository not found")
        return repository

    def snapshot(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        oid = repository.find(revision)
        if oid is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repository.commits[oid]

    def entries(self, files: dict[str, bytes], under: str, recursive: bool) -> list[dict]:
        found: dict[str, dict] = {}
        for name, content in files.items():
            parts = name.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            found[name] = {"type": "file", "path": name, "oid": git_oid(content), "size": len(content)}
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                found[name]["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        prefix = f"{under}/" if under else ""
        inside = [entry for entry in found.values() if entry["path"].startswith(prefix)]
        if prefix and not inside:
            raise RefusedError(404, "EntryNotFound", f"{under} does not exist")
        return [entry for entry in inside if recursive or "/" not in entry["path"].removeprefix(prefix)]

    def validate(self, content: str):
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(block[1]) if block else {}
        if metadata.get("license") not in LICENSES or not isinstance(metadata.get("tags"), list):
            raise RefusedError(400, "BadRequest", '"license" must be one of the Hub\'s and "tags" a list')
        return {"errors": [], "warnings": []}

    def create(self, asked: dict, given: str):
        if given != self.hub.token:
            raise RefusedError(401, "Unauthorized", "a token is needed")
        owner = asked.get("organization") or self.hub.owner
        if owner != self.hub.owner:
            raise RefusedError(
                403, "Forbidden", f'You don\'t have the rights to create a model under the namespace "{owner}"'
            )
        kind, repo_id = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            raise RefusedError(409, "Conflict", "You already created this repo", {"url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = self.hub.repositories[kind, repo_id] = Repository(private, url)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return {"url": url, "name": repo_id, "id": repo_id}

    def upload_action(self, entry: dict) -> dict:
        if entry["oid"] in self.hub.objects:
            return entry
        return {**entry, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}}

    def do_branch(self, repository: Repository, branch: str, body: bytes):
        if branch in repository.branches:
            raise RefusedError(409, "Conflict", "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return {}

    def do_tag(self, repository: Repository, revision: str, body: bytes):
        repository.tags[json.loads(body)["tag"]] = self.snapshot(repository, revision)[0]
        return {}

    def do_preupload(self, repository: Repository, revision: str, body: bytes):
        _, there = self.snapshot(repository, revision)

        def plan(name: str) -> dict:
            large = name.endswith(LARGE)
            content = there.get(name)
            oid = None if content is None else hashlib.sha256(content).hexdigest() if large else git_oid(content)
            mode = "lfs" if large else "regular"
            return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return {"files": [plan(file["path"]) for file in json.loads(body)["files"]]}

    def do_commit(self, repository: Repository, branch: str, body: bytes):
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(self.snapshot(repository, branch)[1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise RefusedError(400, "BadRequest", f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del files[value["path"]]
        oid = repository.commit(branch, files, lines[0]["value"]["summary"])
        return {"commitUrl": f"{repository.url}/commit/{oid}", "commitOid": oid, "success": True}


def git_oid(content: bytes) -> str:
    """As git names the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
