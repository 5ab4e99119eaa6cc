"""The served gallery: what it answers is what `report` writes, and it answers nobody else and nothing else."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.filter.rules import FilterConfig
from pipeline.report.gallery import contents, write_gallery
from pipeline.report.pages import write_page
from pipeline.report.view_server import GalleryServer, Site
from schemas.dataset import shard_path
from tests.support.gallery_dataset import write_dataset

SAMPLE = "samples/textured-000000/asset-000001"


class Client:
    """Requests of a program on this machine, which may send what no browser does."""

    def __init__(self, server: GalleryServer) -> None:
        self.url = urlsplit(server.url)

    def get(
        self, path: str, host: str | None = None, secret: bool = True, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=60)
        connection.putrequest(method, (self.url.path if secret else "/") + path, skip_host=True)
        connection.putheader("Host", self.url.netloc if host is None else host)
        connection.endheaders()
        answer = connection.getresponse()
        result = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("view") / "forge", 24, assets_per_job=12)


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def client(dataset, problems) -> Iterator[Client]:
    with GalleryServer(Site(contents(dataset, FilterConfig(), 100)), 0, problems.append) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_answers_with_the_files_that_report_writes_and_writes_none(client, dataset):
    before = files(dataset)
    paths = ["", "index.html", "data.js", "gallery.js", "mesh.js", "gallery.css", f"{SAMPLE}.webp", f"{SAMPLE}.js"]
    answers = {path: client.get(path) for path in paths}
    assert files(dataset) == before
    write_gallery(dataset, FilterConfig(), 100, 1, lambda done, total: None)
    for path, (status, headers, body) in answers.items():
        assert status == 200 and body == (dataset / "report" / (path or "index.html")).read_bytes(), path
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert (
            headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["X-Content-Type-Options"] == "nosniff"
        )
    assert answers[f"{SAMPLE}.webp"][1]["Content-Type"].startswith("image/webp")


def test_a_head_is_an_answer_without_its_body(client):
    status, headers, body = client.get("data.js", method="HEAD")
    whole = client.get("data.js")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) == len(whole[2])
    assert client.get("nothing.js", method="HEAD")[0] == 404


def test_further_pages_are_served(client, dataset):
    write_page(dataset, "demo", "A <page>", "", [])
    status, _, body = client.get("demo.html")
    assert status == 200 and b"A &lt;page&gt;" in body
    assert b'href="demo.html"' in client.get("")[2]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1", "127.0.0.1.evil.example"])
def test_another_name_is_refused(client, host):
    assert client.get("", host=host)[0] == 403


def test_this_machine_may_call_it_localhost(client):
    assert client.get("", host=f"localhost:{client.url.port}")[0] == 200


@pytest.mark.parametrize("path", ["", "index.html", "x/index.html", "data.js"])
def test_without_the_secret_it_answers_nothing(client, path):
    status, _, body = client.get(path, secret=False)
    assert status == 403 and b"gallery." not in body


@pytest.mark.parametrize(
    "path",
    [
        "../dataset.json", "..%2fdataset.json", "%2e%2e/dataset.json", "/etc/passwd", "samples/../../dataset.json",
        "samples/textured-000000/../../index.html", "samples/textured-000001/asset-000001.webp", "dataset.json",
        "samples/textured-000000/asset-000004.js", "rejected/asset-000004.webp", "../index.html", "index", "a\\b.html",
    ],
)  # fmt: skip
def test_a_path_is_one_of_those_there_are(client, path):
    assert client.get(path)[0] == 404


def test_a_damaged_shard_costs_its_own_samples(client, dataset, problems):
    path = shard_path(dataset, "textured-000001.tar")
    whole = path.read_bytes()
    path.write_bytes(whole[:-600])
    try:
        status, headers, body = client.get("samples/textured-000001/asset-000012.webp")
        assert headers["Cache-Control"] == "no-store", "a browser asks again after the repair"
        assert status == 500 and str(dataset).encode() not in body
        assert len(problems) == 1 and "textured-000001.tar" in problems[0] and "seqtex repair" in problems[0]
        assert client.get(f"{SAMPLE}.webp")[0] == 200
    finally:
        path.write_bytes(whole)
    assert client.get("samples/textured-000001/asset-000012.webp")[0] == 200, "repaired, it is served"
