"""`seqtex app` in a real browser: headless chromium with its software renderer for WebGL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import seqtex.app
from pipeline.sources.procedural import procedural
from schemas.errors import UserError
from seqtex.app import require_gradio
from seqtex.cli.main import main
from seqtex.texturing import texture
from tests.pipeline.report.test_gallery_browser import CONTRAST
from tests.support.small_checkpoint import UV, write_checkpoint

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
gradio = pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
]

REPO = Path(__file__).resolve().parents[2]
PATIENCE_MS = 120_000
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
         "--disable-background-networking", "--disable-component-update", "--no-first-run")  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass
class Visit:
    """The page, and all its errors and requests."""

    page: "playwright.Page"
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def upload(self, where: str, path: Path) -> None:
        """Give a file to an input and wait until the page has it."""
        with self.page.expect_response(lambda answer: "/upload?" in answer.url):
            self.page.set_input_files(f"{where} input[type=file]", path)
        self.page.wait_for_selector(f"{where} canvas, {where} img")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    write_checkpoint(folder / "checkpoint")
    (mesh,) = procedural(1, folder / "meshes", clean=True)
    Path(mesh.uri).rename(folder / "vase.glb")
    (folder / "broken <b>.glb").write_bytes((folder / "vase.glb").read_bytes()[:-100])
    Image.new("RGB", (80, 80), (200, 30, 30)).save(folder / "red.png")
    return folder


@pytest.fixture(scope="module")
def server(files) -> Iterator[str]:
    """The URL of a server that runs as users run it. At its end nothing is left in its temporary folder."""
    port, own = free_port(), files / "tmp"
    own.mkdir()
    command = [sys.executable, "-m", "seqtex.cli.main", "app", "--checkpoint", str(files / "checkpoint"),
               "--port", str(port), "--device", "cpu"]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(own)}
    with subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "  starting  " not in line)
        assert f"  app  http://127.0.0.1:{port}/: " in line, line
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not list(own.glob("seqtex-app-*"))


@pytest.fixture
def visit(server) -> Iterator[Visit]:
    """Ends with what holds for every visit: no error in the page, no request to another place."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        visit = Visit(page)
        page.on("console", lambda message: message.type == "error" and visit.errors.append(message.text))
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("request", lambda request: visit.requests.append(request.url))
        page.goto(server)
        page.wait_for_selector("#texture")
        yield visit
        browser.close()
    outside = [url for url in visit.requests if not url.startswith((server, f"blob:{server}", "data:"))]
    assert not outside
    assert not [error for error in visit.errors if "WebGPU" not in error]  # absent here; the page goes on with WebGL


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(visit, scheme):
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.reload()
    visit.page.wait_for_selector("#texture")
    assert visit.page.evaluate(CONTRAST) == []


def test_a_mesh_and_a_picture_become_what_the_function_makes_of_them(visit, files, tmp_path):
    page = visit.page
    visit.upload("#mesh", files / "vase.glb")
    visit.upload("#picture", files / "red.png")
    page.get_by_label("number input for Steps").fill("40")
    page.get_by_label("Seed").fill("7")
    page.evaluate("""window.seen = ''; new MutationObserver(() => {
        const shown = document.querySelectorAll('.progress-text, .progress-level, .meta-text')
        window.seen += [...shown].map((each) => each.textContent).join()
    }).observe(document.body, {childList: true, subtree: true, characterData: true})""")
    page.click("#texture")
    with page.expect_download() as download:
        page.locator("#textured a[download]").click()
    seen = page.evaluate("window.seen")
    assert "reading the mesh" in seen and "/40 steps" in seen
    assert download.value.suggested_filename == "vase-textured.glb"
    expected = texture(
        files / "vase.glb", image=files / "red.png", checkpoint=files / "checkpoint", steps=40, seed=7,
        out=tmp_path / "expected.glb",
    )  # fmt: skip
    assert Path(download.value.path()).read_bytes() == (tmp_path / "expected.glb").read_bytes()
    source = page.locator("#uv img").get_attribute("src") or ""
    (tmp_path / "uv.png").write_bytes(page.request.get(source).body())
    shown = np.asarray(Image.open(tmp_path / "uv.png").convert("RGB"))
    assert shown.shape == (UV, UV, 3)
    np.testing.assert_array_equal(shown, expected.uv)
    page.wait_for_selector("#textured canvas")
    assert page.locator("#views img").count() == 4


def test_errors_are_sentences_with_the_names_of_the_users_files(visit, files):
    page = visit.page
    page.click("#texture")
    page.wait_for_selector("text=there is no mesh; upload one")
    visit.upload("#mesh", files / "broken <b>.glb")
    page.click("#texture")
    page.wait_for_selector("text=give a picture or a prompt")
    visit.upload("#picture", files / "red.png")
    page.click("#texture")
    page.wait_for_selector("text=fix the file or export it again")
    text = " ".join(page.locator(".toast-body").all_text_contents())
    assert "truncated" in text or "length_mismatch" in text
    assert str(files) not in text and "seqtex-app" not in text
    assert page.locator(".toast-body b").count() == 0  # what a file says is text
    assert all("WebGPU" in error or "Unable to load" in error for error in visit.errors)  # the preview of that mesh
    visit.errors.clear()


def test_other_names_get_no_answer_and_answers_carry_the_policy(server):
    import httpx

    answer = httpx.get(server, trust_env=False)
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert httpx.get(server, headers={"Host": "evil.example"}, trust_env=False).status_code == 400


def test_a_port_in_use_is_named(server, files, capsys):
    port = server.rstrip("/").rpartition(":")[2]
    assert main(["app", "--checkpoint", str(files / "checkpoint"), "--port", port]) == 1
    assert f"--port {port}: cannot be used" in capsys.readouterr().err


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"gradio .*pip install .*'\.\[app\]'"):
        require_gradio()


def test_prompt_and_guidance_are_there_for_networks_that_read(files):
    from dataclasses import replace

    from training.loop.checkpoints import load_checkpoint

    network = load_checkpoint(files / "checkpoint", "cpu")
    for encoder in ("none", "umt5"):
        card = replace(network.card, text_encoder=encoder)
        bench = seqtex.app.Workbench(
            network=replace(network, card=card), device="cpu", folder=files, reader=None, max_unwrap_faces=1
        )
        blocks = seqtex.app.page(bench, files / "checkpoint")
        shown = {block.label: block.visible for block in blocks.blocks.values() if hasattr(block, "label")}
        assert shown["Prompt"] == shown["Guidance (1: off)"] == (encoder != "none")
