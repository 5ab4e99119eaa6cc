"""Serve the gallery of a dataset on this machine, and draw what a browser asks for when it asks: nothing is written.

Only this machine's own browser gets an answer: the server listens on 127.0.0.1, checks the name by which it was called
(a page of another site could otherwise reach it under a name of its own: DNS rebinding), and all its paths begin with
a secret that is drawn at its start. No path becomes a path of the file system: each is looked up in what there is."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from pipeline.report.gallery import STATIC, Contents
from pipeline.report.pages import page_names, report_folder
from pipeline.report.sample_files import draw_stored, quick_thumbnail
from schemas.dataset import ShardRecord, by_repair, shard_path
from schemas.errors import UserError
from schemas.shards import Fields, ShardFile, require_recorded

HOST = "127.0.0.1"
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "webp": "image/webp", "txt": "text/plain"}
THUMBNAILS, SCRIPTS = 4096, 32
"""Drawn files that are kept in memory; about 5 kB and 0.3 MB each."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, max-age=600",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request."""

    status: HTTPStatus = HTTPStatus.OK
    kind: str = "txt"
    """One of `KINDS`."""
    body: bytes = b""


def _refused(status: HTTPStatus, text: str) -> Answer:
    return Answer(status=status, body=text.encode() + b"\n")


class Site:
    """The pages of a gallery by path, drawn when they are asked for."""

    def __init__(self, found: Contents) -> None:
        self._found = found
        self._shards = {shard.name: shard for part in found.parts for shard in part.shards}
        self._place = {asset.outcome.uid: asset.outcome.shard for asset in found.assets if asset.outcome.shard}
        self._open: dict[str, dict[str, Fields]] = {}
        self._lock = threading.Lock()
        self._data = found.data(self._place.keys())
        self._thumbnail = lru_cache(THUMBNAILS)(self._draw_thumbnail)
        self._script = lru_cache(SCRIPTS)(self._draw_script)

    def answer(self, path: str) -> Answer:
        """Answer a path without a slash at its start. Raises UserError where a shard is missing or damaged."""
        name, _, ending = path.rpartition(".")
        folder = report_folder(self._found.dataset)
        pages = page_names(folder) if folder.is_dir() else []
        if path in ("", "index.html"):
            return Answer(kind="html", body=self._found.index(self._place.keys(), pages))
        if path == "data.js":
            return Answer(kind="js", body=self._data)
        if path in STATIC:
            return Answer(kind=ending, body=STATIC[path].read_bytes())
        if ending == "html" and name in pages:
            return Answer(kind="html", body=(folder / f"{name}.html").read_bytes())
        where, _, uid = name.rpartition("/")
        if where == "rejected" and ending == "webp" and uid in self._found.rejected:
            return Answer(kind="webp", body=self._found.rejected[uid])
        draw: Callable[[str], bytes] | None = {"webp": self._thumbnail, "js": self._script}.get(ending)
        if draw and uid in self._place and where == f"samples/{self._place[uid].removesuffix('.tar')}":
            return Answer(kind=ending, body=draw(uid))
        return _refused(HTTPStatus.NOT_FOUND, "no such page")

    def _draw_thumbnail(self, uid: str) -> bytes:
        return quick_thumbnail(self._fields(uid))

    def _draw_script(self, uid: str) -> bytes:
        return draw_stored(self._fields(uid), self._found.supersample).script

    def _fields(self, uid: str) -> Fields:
        """Return the fields of a sample; its shard is checked when it is first opened."""
        name = self._place[uid]
        with self._lock:
            if name not in self._open:
                self._open[name] = _opened(self._found, self._shards[name])
            samples = self._open[name]
        if uid not in samples:
            raise UserError(f"{shard_path(self._found.dataset, name)}: lacks {uid}; {by_repair(self._found.dataset)}")
        return samples[uid]


def _opened(found: Contents, shard: ShardRecord) -> dict[str, Fields]:
    """Open a shard, which stays open, and return its samples by uid. Raises UserError where it is missing or
    damaged."""
    path = shard_path(found.dataset, shard.name)
    try:
        file = path.open("rb")
        require_recorded(file, shard.sha256, shard.bytes)
        samples = ShardFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; {by_repair(found.dataset)}") from error
    return {uid: samples[number] for number, uid in enumerate(samples.uids)}


class GalleryServer(ThreadingHTTPServer):
    """The server of a site. `report`: gets every problem of a dataset that a request met."""

    daemon_threads = True

    def __init__(self, site: Site, port: int, report: Callable[[str], None]) -> None:
        """Raises OSError where the port is taken; 0 is any free one."""
        super().__init__((HOST, port), _Handler)
        self.site, self.report = site, report
        self.secret = secrets.token_urlsafe(18)

    @property
    def url(self) -> str:
        """Return the URL of the gallery."""
        return f"http://{HOST}:{self.server_port}/{self.secret}/"

    def answer(self, host: str, target: str) -> Answer:
        """Answer a request by the name it called the server by, and its target."""
        if host not in (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"):
            return _refused(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost alone")
        first, _, path = unquote(urlsplit(target).path).removeprefix("/").partition("/")
        if not secrets.compare_digest(first.encode(), self.secret.encode()):
            return _refused(HTTPStatus.FORBIDDEN, "open the URL that `seqtex view` has printed")
        try:
            return self.site.answer(path)
        except (UserError, ValueError) as error:
            self.report(str(error))
            return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, "this sample cannot be read")


class _Handler(BaseHTTPRequestHandler):
    server: GalleryServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        answer = self.server.answer(self.headers.get("Host", ""), self.path)
        self.send_response(answer.status)
        headers = {"Content-Type": f"{KINDS[answer.kind]}; charset=utf-8", "Content-Length": str(len(answer.body))}
        if answer.status is not HTTPStatus.OK:
            headers["Cache-Control"] = "no-store"  # it may be right the next time
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Write no line per request."""
