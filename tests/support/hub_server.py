"""A hub on this machine: the routes that `huggingface_hub` calls to publish datasets and models, with large files by
LFS, and to download what was published. It keeps what it is sent, counts requests, and fails where it is told to."""

import base64
import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.support.loopback import loopback

TOKEN = "hf_testtesttesttest"
LFS_SUFFIXES = (".tar", ".parquet", ".webp", ".safetensors")
ATTRIBUTES = b"*.tar filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class StoredRepo:
    """A repository: its files at the newest commit."""

    private: bool
    created: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}")
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": ATTRIBUTES})
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Content of the server, and the requests to it."""

    repos: dict[str, StoredRepo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256, committed or not."""
    writers: tuple[str, ...] = ("studio",)
    """Namespaces that the token may write to."""
    page: int = 1000
    """Files on one page of a listing."""
    part_bytes: int | None = None
    """Size of the parts in which large files are sent; None: in one piece."""
    fault: Callable[[str, str], str | None] = lambda method, path: None
    """Called with method and path of a request; returns `drop` (the connection ends within it), a status, or None."""
    requests: Counter = field(default_factory=Counter)
    """Requests by `METHOD /path`."""
    uploads: Counter = field(default_factory=Counter)
    """Uploads of large files that ended well, by sha256."""
    tokens: set[str] = field(default_factory=set)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def asked(self, *words: str) -> int:
        """Count the requests whose method and path hold every word."""
        return sum(count for line, count in self.requests.items() if all(word in line for word in words))


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def oid_of(path: str, data: bytes) -> str:
    """The id by which the hub names a file: sha256 of a large one, git's id of another."""
    return hashlib.sha256(data).hexdigest() if path.endswith(LFS_SUFFIXES) else git_id(data)


class _Refused(Exception):
    def __init__(self, status: int, text: str, code: str = "") -> None:
        self.status, self.text = status, text
        self.headers = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        self.url = urlsplit(self.path)
        path, hub = unquote(self.url.path), self.hub
        with hub.lock:
            hub.requests[f"{method} {path}"] += 1
            fault = hub.fault(method, path)
        if fault == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        body = self._body()
        try:
            if fault:
                raise _Refused(int(fault), "as the test has it")
            if not path.startswith("/storage/"):  # as with object stores, its URLs are signed
                self._check_token()
            self._send(200, *self._route(method, path, body))
        except _Refused as refused:
            self._send(refused.status, {"error": refused.text}, refused.headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _check_token(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.tokens.add(token)
        if token != TOKEN:
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _route(self, method: str, path: str, body: bytes) -> tuple:
        words = path.strip("/").split("/")
        if method == "PUT" and words[0] == "storage":
            return self._store(words[1], int(words[2]) if len(words) > 2 else None, body)
        if words[:2] == ["storage", "complete"]:
            return self._complete(words[2])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path.endswith(".git/info/lfs/objects/batch"):
            self._writable(path.removeprefix("/datasets").strip("/").partition(".git/")[0])
            return self._batch(json.loads(body))
        if "resolve" in words[2:4]:
            name = words[: words.index("resolve")]
            return self._file("/".join(name[-2:]), "/".join(words[len(name) + 2 :]))
        if words[0] == "api" and words[1] in ("datasets", "models") and len(words) >= 4:
            name, action = "/".join(words[2:4]), words[4] if len(words) > 4 else ""
            if name not in self.hub.repos:
                raise _Refused(404, "Repository not found", "RepoNotFound")
            if method == "GET" and action in ("", "revision"):
                return self._info(name)
            if method == "GET" and action == "tree":
                return self._tree(self.hub.repos[name], "/".join(words[6:]))
            if action == "paths-info":
                return self._paths(self.hub.repos[name], parse_qs(body.decode())["paths"])
            if action == "preupload":
                return self._preupload(self._writable(name), json.loads(body))
            if action == "commit":
                return self._commit(self._writable(name), body)
        raise _Refused(404, f"no route {method} {path}")

    def _writable(self, name: str) -> StoredRepo:
        if name.partition("/")[0] not in self.hub.writers:
            raise _Refused(403, "You don't have the rights to write here")
        return self.hub.repos[name]

    def _create(self, wanted: dict) -> tuple:
        name = f"{wanted['organization']}/{wanted['name']}"
        kind = wanted.get("type") or "model"
        if wanted["organization"] not in self.hub.writers:
            raise _Refused(403, "You don't have the rights to create a repository here")
        if name in self.hub.repos:
            raise _Refused(409, f"You already created this {kind} repo")
        self.hub.repos[name] = StoredRepo(private=wanted.get("visibility") == "private")
        return ({"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"},)

    def _info(self, name: str) -> tuple:
        repo = self.hub.repos[name]
        head = {"id": name, "private": repo.private, "createdAt": repo.created, "sha": f"{len(repo.commits):040x}"}
        return (head | {"tags": [], "siblings": [{"rfilename": path} for path in repo.files]},)

    def _file(self, name: str, path: str) -> tuple:
        """Send a file of the newest commit."""
        repo = self.hub.repos[name]
        if path not in repo.files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data = repo.files[path]
        return data, {"ETag": f'"{oid_of(path, data)}"', "X-Repo-Commit": f"{len(repo.commits):040x}"}

    def _tree(self, repo: StoredRepo, folder: str) -> tuple:
        """List the files of a folder page by page, folders among them."""
        start = int(parse_qs(self.url.query).get("cursor", ["0"])[0])
        entries = [entry for entry in self._entries(repo) if entry["path"].startswith(f"{folder}/" if folder else "")]
        end = start + self.hub.page
        more = f'<{self.hub.url}{self.url.path}?recursive=True&cursor={end}>; rel="next"'
        return entries[start:end], {"Link": more} if end < len(entries) else {}

    def _entries(self, repo: StoredRepo) -> list[dict]:
        folders = sorted({path.rpartition("/")[0] for path in repo.files} - {""})
        entries = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
        for path, data in sorted(repo.files.items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        return entries

    def _paths(self, repo: StoredRepo, paths: list[str]) -> tuple:
        return ([entry for entry in self._entries(repo) if entry["path"] in paths],)

    def _validate(self, card: str) -> tuple:
        front = card.split("---")[1] if card.startswith("---") else ""
        try:
            assert isinstance(yaml.safe_load(front), dict)
        except (AssertionError, yaml.YAMLError) as error:
            raise _Refused(400, "Invalid metadata") from error
        return ({"errors": [], "warnings": []},)

    def _preupload(self, repo: StoredRepo, wanted: dict) -> tuple:
        answers = []
        for entry in wanted["files"]:
            path = entry["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            ignored = path in repo.files.get(".gitignore", b"").decode().split()
            oid = oid_of(path, repo.files[path]) if path in repo.files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        return ({"files": answers},)

    def _batch(self, wanted: dict) -> tuple:
        """Say where to send each large file; nothing for those that are here."""
        answers = []
        for entry in wanted["objects"]:
            oid, size = entry["oid"], entry["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/storage/{oid}"}
                if part := self.hub.part_bytes:
                    numbers = range(1, -(-size // part) + 1)
                    header = {str(number): f"{self.hub.url}/storage/{oid}/{number}" for number in numbers}
                    upload = {"href": f"{self.hub.url}/storage/complete/{oid}", "header": header}
                    upload["header"]["chunk_size"] = str(part)
                answer["actions"] = {"upload": upload}
            answers.append(answer)
        return ({"transfer": "basic", "objects": answers},)

    def _store(self, oid: str, part: int | None, body: bytes) -> tuple:
        if part is not None:
            self.hub.parts[oid, part] = body
            return b"", {"ETag": hashlib.md5(body).hexdigest()}
        return self._keep(oid, body)

    def _complete(self, oid: str) -> tuple:
        numbers = sorted(number for name, number in self.hub.parts if name == oid)
        return self._keep(oid, b"".join(self.hub.parts.pop((oid, number)) for number in numbers))

    def _keep(self, oid: str, body: bytes) -> tuple:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the content is not of this sha256")
        with self.hub.lock:
            self.hub.objects[oid] = body
            self.hub.uploads[oid] += 1
        return b"", {}

    def _commit(self, repo: StoredRepo, body: bytes) -> tuple:
        """Change all files of a commit, or none."""
        files, summary = dict(repo.files), ""
        for line in body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Refused(400, f"{value['path']}: its content was never sent")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, f"no operation {key}")
        repo.files = files
        repo.commits.append(summary)
        name = next(name for name, known in self.hub.repos.items() if known is repo)
        oid = f"{len(repo.commits):040x}"
        return ({"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{oid}", "commitOid": oid, "success": True},)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    with loopback(_Handler, hub=hub) as hub.url:
        yield hub
