"""A small Hugging Face Hub on this machine, held in memory: pushes and loads are tested against it for real.

It answers what `huggingface_hub` asks for model repositories and Spaces over plain HTTP and Git LFS (no Xet), with the
statuses and headers that this client expects of the real Hub. A Space is a repository "spaces/me/name", and never runs.
The client reads its settings when it is imported, so it belongs in a process of its own that gets
`HubServer.environment`.
"""

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

import yaml

LARGE_SUFFIXES = (".safetensors", ".bin", ".png")
LARGE_SIZE = 10 * 1024**2
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()


@dataclass(frozen=True)
class Commit:
    """All files of a repository as they are after one commit."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository of a model, or of a Space with its `sdk`.

    `refs` has the commits, oldest first, of each branch ("main", "v2") and each pull request ("refs/pr/1");
    `objects` the contents uploaded through LFS, by SHA-256, whether a commit names them or not.
    """

    private: bool = False
    sdk: str | None = None
    refs: dict[str, list[Commit]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def commits(self) -> list[Commit]:
        """The commits of "main", oldest first."""
        return self.refs["main"]

    def commit_at(self, revision: str) -> Commit | None:
        """The commit of a branch, of a pull request, or of a commit's name (seven letters of it suffice)."""
        if revision in self.refs:
            return self.refs[revision][-1]
        known = (commit for commits in self.refs.values() for commit in commits)
        return next((commit for commit in known if len(revision) >= 7 and commit.oid.startswith(revision)), None)


class HubServer:
    """A Hub for the tests: a context manager that serves at `url` from its own threads.

    Args:
        users: name of the user of each token.

    Attributes:
        url: address while it runs, `http://127.0.0.1:PORT`.
        repos: repositories by id, "me/name". One that a client creates starts with a commit of `.gitattributes`.
        cut_uploads: so many of the next LFS uploads lose their connection halfway through the body.
        cut_commits: the same for the next commits.
        requests: method and path of every request, in order; headers, and so tokens, are not kept.
    """

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.cut_uploads = 0
        self.cut_commits = 0
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """This process's environment with this Hub, that token (none at all for None) and an own cache in `home`."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",  # where both are set, this is the one that counts
        }
        return environment if token is None else environment | {"HF_TOKEN": token}

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository as a reader of that revision sees them."""
        commit = self.repos[repo_id].commit_at(revision)
        if commit is None:
            raise KeyError(f"{repo_id} has no revision {revision}")
        return dict(commit.files)

    def add_repo(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """Place a repository with exactly these files, in one commit, without a push."""
        repo = Repo(private, refs={"main": [_commit("initial commit", files)]})
        repo.objects = {_sha256(content): content for path, content in files.items() if _is_large(path, len(content))}
        self.repos[repo_id] = repo
        return repo

    def take_cut(self, counter: str) -> bool:
        """Whether a request is one of those whose connection is to be cut; counts it."""
        with self.lock:
            left = getattr(self, counter)
            setattr(self, counter, max(0, left - 1))
            return left > 0


def _owner(repo_id: str) -> str:
    return repo_id.removeprefix("spaces/").split("/")[0]


def _commit(message: str, files: dict[str, bytes], parent: Commit | None = None) -> Commit:
    content = json.dumps([parent and parent.oid, message, {path: _sha256(files[path]) for path in sorted(files)}])
    return Commit(hashlib.sha1(content.encode()).hexdigest(), message, dict(files))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(path: str, size: int) -> bool:
    """Whether a file goes through LFS. An empty one never does: the client would not upload it."""
    return size > LARGE_SIZE or (size > 0 and path.endswith(LARGE_SUFFIXES))


def _etag(path: str, content: bytes) -> str:
    return _sha256(content) if _is_large(path, len(content)) else _git_sha1(content)


def _entry(path: str, content: bytes | None) -> dict[str, Any]:
    """A file, or without content a folder, of a tree's listing."""
    if content is None:
        return {"type": "directory", "path": path, "size": 0, "oid": _git_sha1(path.encode())}
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
    if _is_large(path, len(content)):
        oid = _sha256(content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        entry |= {"oid": _git_sha1(pointer), "lfs": {"oid": oid, "size": len(content), "pointerSize": len(pointer)}}
    return entry


class _Refusal(Exception):
    """An answer other than success. `code` is the X-Error-Code, from which the client takes the class of its error."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **(headers or {})} | ({"X-Error-Code": code} if code else {})


Endpoint = Callable[..., None]
_ROUTES: list[tuple[str, re.Pattern[str], Endpoint, str | None]] = []
_REPO = r"(?P<repo_id>(?:spaces/)?[^/]+(?:/[^/]+)?)"
_MODEL = rf"/api/models/{_REPO}"  # a Space's path is rewritten to one of these


def _route(methods: str, path: str, cut: str | None = None) -> Callable[[Endpoint], Endpoint]:
    """Register the endpoint of some methods and a pattern of paths, and the counter that cuts its connections."""

    def register(endpoint: Endpoint) -> Endpoint:
        _ROUTES.extend((method, re.compile(path), endpoint, cut) for method in methods.split())
        return endpoint

    return register


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that a test stops leaves its connection open halfway; any other error is a mistake in this file.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """The endpoints. Each checks who asks, then reads or changes the state of the Hub, then replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets: the second would wait for an acknowledgement
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self) -> None:
        self.hub = self.server.hub
        self.hub.requests.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        self.query = dict(parse_qsl(address.query))
        endpoint, parts, cut = self.find(address.path.replace("/api/spaces/", "/api/models/spaces/"))
        if cut and self.hub.take_cut(cut):
            return self.cut_connection()
        self.body = self.read_body()
        try:
            self.user = self.authenticate()
            endpoint(self, **parts)
        except _Refusal as refusal:
            self.reply({"error": str(refusal)}, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def find(self, path: str) -> tuple[Endpoint, dict[str, str | None], str | None]:
        """The endpoint of a path, the parts of the path that it takes, and the counter that cuts its connections."""
        for method, pattern, endpoint, cut in _ROUTES:
            # Matched before it is unquoted: "refs%2Fpr%2F1" is one part of a path.
            if method == self.command and (match := pattern.fullmatch(path)):
                return endpoint, {name: part and unquote(part) for name, part in match.groupdict().items()}, cut
        return _Handler.unknown, {}, None

    # What HTTP needs

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionAbortedError("the client left in the middle of its body")
        return data

    def cut_connection(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
        self.close_connection = True

    def reply(
        self, body: bytes | list | dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json; charset=utf-8"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who may do what

    def authenticate(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def require_user(self, code: str | None = None) -> str:
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.", code)
        return self.user

    def readable(self, repo_id: str) -> Repo:
        """A repository that the user sees; for one that is hidden the answer is that of one that does not exist."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and _owner(repo_id) != self.user):
            # Without the code, the client would take a 401 for a missing repository under https only.
            self.require_user("RepoNotFound")
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str, by_readers: bool = False) -> Repo:
        """A repository that the user may change, or may open a pull request for."""
        repo = self.readable(repo_id)
        user = self.require_user("RepoNotFound")
        if _owner(repo_id) != user and not by_readers:
            raise _Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def commit_at(self, repo: Repo, revision: str | None) -> Commit:
        commit = repo.commit_at(revision or "main")
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Users and repositories

    def unknown(self) -> None:
        raise _Refusal(501, f"The Hub of the tests has no {self.command} {urlsplit(self.path).path}")

    @_route("GET", r"/api/whoami-v2")
    def whoami(self) -> None:
        user = self.require_user()
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        self.reply({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": access})

    @_route("POST", r"/api/repos/create")
    def create(self) -> None:
        user = self.require_user()
        request = json.loads(self.body)
        owner = request.get("organization") or user
        kind = request.get("type", "model")
        if kind not in ("model", "space"):
            raise _Refusal(501, "The Hub of the tests has models and Spaces only")
        if kind == "space" and "sdk" not in request:
            raise _Refusal(400, "A Space needs an SDK")
        if owner != user:
            raise _Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        repo_id = f"{'spaces/' if kind == 'space' else ''}{owner}/{request['name']}"
        address = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        with self.hub.lock:
            taken = repo_id in self.hub.repos
            if not taken:
                is_private = request.get("visibility") == "private"
                self.hub.add_repo(repo_id, {".gitattributes": GITATTRIBUTES}, is_private).sdk = request.get("sdk")
        if taken:
            return self.reply({"error": f"You already created this {kind} repo", **address}, 409)
        self.reply(address)

    @_route("GET", rf"{_MODEL}(?:/revision/(?P<revision>[^/]+))?")
    def info(self, repo_id: str, revision: str | None) -> None:
        repo = self.readable(repo_id)
        commit = self.commit_at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        facts = {"private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        author = _owner(repo_id)
        self.reply(
            {"id": repo_id.removeprefix("spaces/"), "author": author, "sha": commit.oid, "siblings": siblings, **facts}
        )

    @_route("GET", rf"{_MODEL}/refs")
    def refs(self, repo_id: str) -> None:
        refs = self.readable(repo_id).refs
        branches, pull_requests = [], []
        for name, commits in refs.items():
            is_pull_request = name.startswith("refs/pr/")
            ref = name if is_pull_request else f"refs/heads/{name}"
            entry = {"name": name.removeprefix("refs/pr/"), "ref": ref, "targetCommit": commits[-1].oid}
            (pull_requests if is_pull_request else branches).append(entry)
        self.reply({"branches": branches, "converts": [], "tags": [], "pullRequests": pull_requests})

    @_route("POST", rf"{_MODEL}/branch/(?P<branch>[^/]+)")
    def create_branch(self, repo_id: str, branch: str) -> None:
        repo = self.writable(repo_id)
        if branch.startswith("refs/"):
            raise _Refusal(400, f"Invalid reference for a branch: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        with self.hub.lock:
            if branch in repo.refs:
                raise _Refusal(409, f"Reference already exists: refs/heads/{branch}")
            repo.refs[branch] = list(repo.refs.get(start) or [self.commit_at(repo, start)])
        self.reply({})

    # Files, read

    @_route("GET", rf"{_MODEL}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        files = self.commit_at(self.readable(repo_id), revision).files
        prefix = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", "").lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted(path for path in files if path.startswith(prefix)):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) + 1 if recursive else 2):
                name = prefix + "/".join(parts[:depth])
                entries[name] = _entry(name, files.get(name))
        if folder and not entries:
            raise _Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.reply(list(entries.values()))

    @_route("POST", rf"{_MODEL}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo_id: str, revision: str) -> None:
        files = self.commit_at(self.readable(repo_id), revision).files
        folders = {str(folder) for path in files for folder in PurePosixPath(path).parents}
        asked = parse_qs(self.body.decode()).get("paths", [])
        self.reply([_entry(path, files.get(path)) for path in asked if path in files or path in folders])

    @_route("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self.commit_at(self.readable(repo_id), revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound", headers)
        content = commit.files[path]
        size, etag = len(content), f'"{_etag(path, content)}"'
        headers |= {"ETag": etag, "Accept-Ranges": "bytes"}
        if _is_large(path, size):
            headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": etag}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.reply(content, 200, headers)
        start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
        if start >= stop:
            raise _Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
        self.reply(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    # Files, written: a check of the card, how each file is to be sent, the large files, and the commit that shows all

    @_route("POST", r"/api/validate-yaml")
    def validate_yaml(self) -> None:
        front_matter = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", json.loads(self.body)["content"], flags=re.DOTALL)
        if front_matter is None:
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return self.reply({"errors": [], "warnings": [warning]})
        try:
            metadata = yaml.safe_load(front_matter[1])
        except yaml.YAMLError as error:
            return self.reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not isinstance(metadata, dict):
            return self.reply({"errors": [{"message": "metadata must be a mapping"}], "warnings": []}, 400)
        self.reply({"errors": [], "warnings": []})

    @_route("POST", rf"{_MODEL}/preupload/(?P<revision>[^/]+)")
    def preupload(self, repo_id: str, revision: str) -> None:
        repo = self.writable(repo_id, by_readers="create_pr" in self.query)
        present = self.commit_at(repo, revision).files
        self.reply(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                        "shouldIgnore": False,
                        # The client leaves a file out of its commit where this is the name of its own content.
                        "oid": _etag(file["path"], present[file["path"]]) if file["path"] in present else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    @_route("POST", rf"/{_REPO}\.git/info/lfs/objects/batch")
    def batch(self, repo_id: str) -> None:
        request = json.loads(self.body)
        # For a pull request the client names no branch here.
        repo = self.writable(repo_id, by_readers="ref" not in request)
        objects = []
        for asked in request["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repo.objects:
                upload = {"href": f"{self.hub.url}/lfs/{quote(repo_id, safe='')}/{asked['oid']}"}
                verify = {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self.reply({"transfer": "basic", "objects": objects})

    @_route("PUT", r"/lfs/(?P<repo_id>[^/]+)/(?P<oid>[0-9a-f]{64})", cut="cut_uploads")
    def upload(self, repo_id: str, oid: str) -> None:
        # The client sends no token here: on the real Hub the address is signed and belongs to a storage.
        if _sha256(self.body) != oid:
            raise _Refusal(400, "The content does not have the SHA-256 that was announced")
        self.hub.repos[repo_id].objects[oid] = self.body
        self.reply(b"", headers={"ETag": f'"{oid}"'})

    @_route("POST", rf"/{_REPO}\.git/info/lfs/objects/verify")
    def verify(self, repo_id: str) -> None:
        asked = json.loads(self.body)
        content = self.writable(repo_id, by_readers=True).objects.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            raise _Refusal(404, f"The object {asked['oid']} was not uploaded")
        self.reply({})

    @_route("POST", rf"{_MODEL}/commit/(?P<revision>[^/]+)", cut="cut_commits")
    def commit(self, repo_id: str, revision: str) -> None:
        opens_pull_request = "create_pr" in self.query
        repo = self.writable(repo_id, by_readers=opens_pull_request)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            parent = self.commit_at(repo, revision)
            if revision not in repo.refs:
                raise _Refusal(400, f"{revision} is not a branch")
            if not parent.oid.startswith(header["value"].get("parentCommit", "")):
                raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for operation in operations:
                self.apply(repo, files, operation["key"], operation["value"])
            commit = _commit(header["value"]["summary"], files, parent)
            answer = {"success": True, "commitOid": commit.oid, "hookOutput": ""}
            answer["commitUrl"] = f"{self.hub.url}/{repo_id}/commit/{commit.oid}"
            history = repo.refs[revision]
            if opens_pull_request:
                number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
                answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
                revision = f"refs/pr/{number}"
            # In one assignment: a reader sees the branch as it was, or with all of the commit.
            repo.refs[revision] = [*history, commit]
        self.reply(answer)

    def apply(self, repo: Repo, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
        """Change `files` by one line of a commit."""
        path = value["path"].rstrip("/")
        if key == "file":
            files[path] = base64.b64decode(value["content"], validate=True)
        elif key == "lfsFile":
            if value["oid"] not in repo.objects:
                raise _Refusal(400, f"An LFS pointer pointed to a file that does not exist: {path}")
            files[path] = repo.objects[value["oid"]]
        elif key in ("deletedFile", "deletedFolder"):
            removed = [path] if key == "deletedFile" else [name for name in files if name.startswith(f"{path}/")]
            removed = [name for name in removed if name in files]
            if not removed:
                raise _Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in removed:
                del files[name]
        else:
            raise _Refusal(400, f"A commit has no operation {key}")
