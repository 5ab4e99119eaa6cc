"""The page of an evaluation in a real browser, opened from disk."""

from pathlib import Path

import numpy as np
import pytest

from schemas.sample import Regime
from seqtex.gallery.comparison import EvaluationPage, compared
from tests.pipeline.report.test_gallery_browser import CHROMIUM, CONTRAST, FLAGS
from tests.support.small_dataset import small_sample

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
]
MESHES = 3
PATIENCE_MS = 150_000
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
HOSTILE = "<script>window.broken = 1</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    written = EvaluationPage(folder=tmp_path_factory.mktemp("an evaluation"))
    for number in range(MESHES):
        sample = small_sample(f"mesh-{number}", Regime.TEXTURED, seed=number, view_size=64, uv_size=128)
        sample.meta["caption"] = HOSTILE
        assert sample.uv is not None
        pictures = compared(sample, sample.views.rgb[:1], sample.views.rgb, 255 - sample.uv.rgb, sample.views.rgb)
        figures = {"uv_psnr": 20.0 - number, "seam_step": 0.01, "unseen_share": 0.25}
        written.add(sample, figures, pictures)
    return written.write("Evaluation", f"{MESHES} meshes.", {"uv_psnr": (19.0, 18.0, 20.0)})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_can_be_read_and_asks_nobody(page, scheme, width):
    """Every picture shows, text has the contrast of WCAG AA, nothing scrolls sideways, no request leaves the folder."""
    problems: list[str] = []
    own = (f"{page.parent.as_uri()}/", "data:")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE_MS)
        tab = context.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: problems.append(request.url) if not request.url.startswith(own) else None)
        tab.goto(page.as_uri())
        assert tab.evaluate(CONTRAST) == [] and tab.evaluate(WIDER) == 0
        dark = np.dot([0.2126, 0.7152, 0.0722], tab.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")) < 80  # fmt: skip
        assert dark == (scheme == "dark")
        tab.locator(".section a").first.click()
        assert tab.evaluate("decodeURIComponent(location.hash)") == f"#mesh-{MESHES - 1}", "the worst stands first"
        for image in tab.locator("img").all():
            image.scroll_into_view_if_needed()
            image.evaluate("(image) => image.decode()")
        assert tab.evaluate("document.images.length") == 8 * MESHES
        assert all(tab.evaluate("[...document.images].map((image) => image.naturalWidth)"))
        assert HOSTILE in (tab.text_content("main") or "") and tab.evaluate("window.broken") is None
        chromium.close()
    assert problems == []
