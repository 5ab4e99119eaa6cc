"""The gallery in a real browser, opened from disk or served: headless chromium with its software renderer for WebGL."""

import io
import re
import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.filter.rules import FilterConfig
from pipeline.report.asset_table import Listed
from pipeline.report.gallery import STATIC, contents, write_gallery
from pipeline.report.view_server import GalleryServer, Site
from seqtex.cli.build import listed_uids
from tests.support.gallery_dataset import (
    HOSTILE,
    OUTCOMES,
    glowing_square,
    outcome_of,
    synthetic_outcome,
    synthetic_ref,
    write_dataset,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
]

ASSETS = 300
"""Two thirds of them are samples."""
PATIENCE_S = 150
"""The software renderer compiles its shaders in some ten processor seconds."""
FLAGS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


@dataclass
class Visit:
    """A page with the gallery, and all its messages and requests."""

    page: "playwright.Page"
    folder: Path
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, hash_part: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(f"{self.folder.as_uri()}/index.html{hash_part}")

    def selection(self) -> str:
        return self.page.text_content("#selection") or ""

    def selects(self, beginning: str) -> bool:
        """Return whether the line about the selection begins so: an address takes effect a moment after the click."""
        end = time.monotonic() + PATIENCE_S
        while not self.selection().startswith(beginning):
            if time.monotonic() > end:
                return False
            self.page.wait_for_timeout(50)
        return True

    def until(self, expression: str, seconds: float = PATIENCE_S) -> None:
        """The page's policy forbids what playwright's own waiting needs: evaluation of strings inside the page."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not come true in {seconds} s"
            self.page.wait_for_timeout(50)

    def picture(self, selector: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.page.locator(selector).screenshot())).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    dataset = write_dataset(tmp_path_factory.mktemp("browser") / "a dataset", ASSETS)
    assert write_gallery(dataset, FilterConfig(), 10_000, 1, lambda done, total: None).listed == ASSETS
    return dataset / "report"


@pytest.fixture(scope="module")
def materials(tmp_path_factory) -> Path:
    """The gallery of a square with all maps of a material."""
    directory = tmp_path_factory.mktemp("materials")
    sample = glowing_square(directory)
    dataset = write_dataset(directory / "dataset", 6, sample=sample, roughness_psnr=34.54, normal_error_deg=0.25)
    write_gallery(dataset, FilterConfig(min_roughness_db=30.0), 10, 1, lambda done, total: None)
    return dataset / "report"


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(report, browser, request) -> Iterator[Visit]:
    yield from visited(report, browser, {"viewport": {"width": 1280, "height": 900}} | getattr(request, "param", {}))


def visited(report: Path, browser: "playwright.Browser", options: dict[str, Any]) -> Iterator[Visit]:
    """Ends with the promises that hold for every visit: no error, no request outside the page's folder."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE_S)
    visit = Visit(context.new_page(), report)
    visit.page.on("console", lambda message: visit.messages.append(f"{message.type}: {message.text}"))
    visit.page.on("pageerror", lambda error: visit.messages.append(f"error: {error}"))
    visit.page.on("request", lambda request: visit.requests.append(request.url))
    visit.open()
    yield visit
    errors = [line for line in visit.messages if line.startswith("error")]
    own = (f"{report.as_uri()}/", "blob:", "data:", "about:blank")
    outside = [url for url in visit.requests if not url.startswith(own)]
    broken = visit.page.evaluate("window.broken")
    context.close()
    assert errors == [] and outside == [] and broken is None


def count(fits) -> int:
    return sum(fits(number, *outcome_of(number)) for number in range(ASSETS))


def test_filters_show_what_the_ledger_has(visit):
    page = visit.page
    for name, truth in {
        "textured": count(lambda i, s, regime, r, d: regime == "textured"),
        "rejected": count(lambda i, status, *_: status == "rejected"),
    }.items():
        page.check(f'input[name="outcome"][value="{name}"]')
        assert visit.selects(f"{truth:,} of {ASSETS:,} assets")
        assert page.locator(f".grid .tag:not(.{name})").count() == 0
        page.uncheck(f'input[name="outcome"][value="{name}"]')
    page.check('input[name="reason"][value="timeout"]')
    assert visit.selects(f"{count(lambda i, s, m, reason, d: reason == 'timeout'):,} of")
    page.click("#clear")
    page.select_option('select[name="licence"]', "=CC-BY-4.0")
    assert visit.selects(f"{ASSETS // 2:,} of")
    page.click("#clear")
    page.fill('input[name="text"]', "ASSET-00001")
    assert visit.selects("10 of")
    page.fill('input[name="text"]', "nothing like this")
    assert visit.selects("0 of") and page.locator(".grid .card").count() == 0


def test_ranges_and_order_follow_the_measurements(visit):
    page = visit.page
    page.click("#add-range")
    page.select_option('select[name="range-column"]', "faces")
    page.fill("input[aria-label='at least']", "150")
    page.fill("input[aria-label='at most']", "160")
    faces = [synthetic_outcome(i, 0).measurements.faces for i in range(ASSETS)]
    within = [value for value in faces if value is not None and 150 <= value <= 160]
    assert visit.selection() == f"{len(within)} of {ASSETS:,} assets"
    page.select_option("#sort", "faces")
    page.select_option('select[name="order"]', "down")
    assert page.locator(".grid .figure").all_text_contents() == [str(value) for value in sorted(within, reverse=True)]
    address = page.evaluate("location.hash")
    visit.open(address)
    assert visit.selection() == f"{len(within)} of {ASSETS:,} assets", "an address brings back what it showed"
    page.click(".range .remove")
    assert visit.selects(f"{ASSETS:,} of")
    page.click("#pages button:has-text('Last')")
    assert page.locator(".grid .figure").last.text_content() == "\u2013", "what was not measured comes last"


def test_a_sample_opens_and_its_model_turns(visit):
    page = visit.page
    page.check('input[name="outcome"][value="textured"]')
    page.locator(".grid .card a").nth(5).click()
    visit.until("opened[0]?.view")
    assert re.search(r"\d+\.\d dB \(at least 30\)", page.text_content("dialog .figures") or "")
    before, angle = visit.picture("canvas.view"), page.evaluate("opened[0].view.azimuth")
    drawn = (np.abs(before - before[2, 2]).max(axis=-1) > 24).mean()
    assert drawn > 0.02, "the mesh is there"
    box = page.locator("canvas.view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x + 15 * step, y)
    page.mouse.up()
    assert abs(page.evaluate("opened[0].view.azimuth") - angle) > 0.3
    assert (np.abs(visit.picture("canvas.view") - before).max(axis=-1) > 24).mean() > 0.01, "and looks different now"
    page.keyboard.press("Escape")
    assert visit.page.evaluate("opened.length") == 0


def opened_textured(visit: Visit) -> None:
    visit.open("#outcome=textured&open=asset-000001")
    visit.until("opened[0]?.view")


def choose(visit: Visit, group: str, label: str) -> None:
    """Choose in a group of radio buttons."""
    visit.page.locator(
        f'[role="radiogroup"][aria-label="{group}"] span', has_text=re.compile(f"^{re.escape(label)}$")
    ).click()


def test_the_mesh_has_its_looks(visit):
    opened_textured(visit)
    looks = {}
    for look in ("Texture", "UV checker", "Charts", "Normals", "Clay"):
        choose(visit, "Look of the mesh", look)
        looks[look] = visit.picture("canvas.view")
    visit.page.locator(".model .check input").check()
    looks["Wireframe"] = visit.picture("canvas.view")
    shown = list(looks.values())
    ground = shown[0][2, 2]
    inside = (np.abs(shown[4] - ground).max(axis=-1) > 24).sum()
    for i, one in enumerate(shown):
        for other in shown[:i]:
            assert (np.abs(one - other).max(axis=-1) > 16).sum() > 0.1 * inside
    grey = looks["Clay"][np.abs(looks["Clay"] - ground).max(axis=-1) > 24]
    assert np.ptp(grey, axis=-1).mean() < 6, "clay has no colour"


def cell(visit: Visit, place: int = 0) -> np.ndarray:
    visit.page.wait_for_timeout(100)
    image = Image.open(io.BytesIO(visit.page.locator(".cells .cell").nth(place).screenshot())).convert("RGB")
    return np.asarray(image).astype(int)[4:-4, 4:-4]


def test_the_slider_goes_from_the_source_to_the_baked_map(visit):
    opened_textured(visit)
    for place in (0, 3):
        truth = {}
        for look in ("Source", "Baked"):
            choose(visit, "Look of the views", look)
            truth[look] = cell(visit, place)
        assert np.abs(truth["Source"] - truth["Baked"]).max() > 2, "not the same picture"
        choose(visit, "Look of the views", "Source | baked")
        for share, left, right in ((100, "Source", "Source"), (0, "Baked", "Baked"), (50, "Source", "Baked")):
            visit.page.locator(".slide input").fill(str(share))
            found, width = cell(visit, place), truth["Source"].shape[1]
            half = width // 2
            assert np.abs(found - truth[left])[:, 6 : half - 6].max() <= 2, (place, share)
            assert np.abs(found - truth[right])[:, half + 6 : -6].max() <= 2, (place, share)


def test_the_error_is_a_heatmap_with_a_legend(visit):
    opened_textured(visit)
    assert not visit.page.locator(".legend").is_visible()
    choose(visit, "Look of the views", "Error")
    assert visit.page.locator(".legend").is_visible() and "64 of 255" in (visit.page.text_content(".legend") or "")
    choose(visit, "Look of the views", "Source")
    source = cell(visit)
    choose(visit, "Look of the views", "Error")
    heat = cell(visit)
    surface = np.abs(source - source[0, 0]).max(axis=-1) > 60
    assert surface.mean() > 0.03 and np.median(heat[surface].sum(axis=-1)) < 150, "most pixels are right: nearly black"
    assert np.abs(heat[0, 0] - source[0, 0]).max() <= 2, "nothing outside the mesh"


def test_maps_show_their_layout(visit):
    opened_textured(visit)
    inked = (
        "(() => { const c = document.querySelector('.map canvas'), p = c.getContext('2d');"
        " return p.getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v).length; })()"
    )
    counts = [visit.page.evaluate(inked)]
    for label in ("UV wireframe", "Seams"):
        visit.page.locator("label.check", has_text=label).locator("input").check()
        counts.append(visit.page.evaluate(inked))
    assert counts[0] == 0 < counts[1] < counts[2]
    seams, edges = visit.page.evaluate(
        "(async () => { const mesh = await unpackMesh((await gallery.load(opened[0].index)).mesh);"
        " return [mesh.seams.length, mesh.edges.length]; })()"
    )
    assert 0 < seams < edges
    choose(visit, "Map", "Normal")
    visit.until("document.querySelector('.map img').naturalWidth > 0")


def test_the_keyboard_opens_goes_on_and_closes(visit):
    page = visit.page
    page.check('input[name="outcome"][value="mv_only"]')
    page.locator(".grid .card a").nth(0).focus()
    page.keyboard.press("Enter")
    title = page.locator("#sample-title")
    assert title.text_content() == HOSTILE[3], "a hostile caption is text"
    page.keyboard.press("ArrowRight")
    assert title.text_content() == "thing 9"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('sample').open")
    assert page.evaluate("document.activeElement.closest('li')?.className") == "card", "focus goes back to where it was"


def test_rejected_and_failed_assets_open_with_reason_and_detail(visit):
    page = visit.page
    for kind, number in (("rejected", 4), ("failed", 5)):
        page.click("#clear")
        page.check(f'input[name="outcome"][value="{kind}"]')
        page.locator(".grid .card a").nth(0).click()
        _, _, reason, detail = OUTCOMES[number]
        text = page.text_content("dialog .reason") or ""
        assert str(reason) in text and detail in text
        source = page.text_content("dialog .source") or ""
        assert f"asset-{number:06d}" in source and HOSTILE[2] in source
        page.keyboard.press("Escape")


@pytest.fixture
def material_visit(materials, browser) -> Iterator[Visit]:
    yield from visited(materials, browser, {"viewport": {"width": 390, "height": 900}})


def test_materials_are_lit_and_each_part_can_be_switched_off(material_visit):
    opened_textured(material_visit)
    assert not material_visit.page.locator(".switches").is_visible()
    choose(material_visit, "Look of the mesh", "Material")
    whole, seen = material_visit.picture("canvas.view"), 0
    for label in ("Colour", "Metallic", "Roughness", "Normals", "Emission"):
        switch = material_visit.page.locator(".switches label", has_text=label).locator("input")
        switch.uncheck()
        changed = np.abs(material_visit.picture("canvas.view") - whole).max(axis=-1) > 4
        assert changed.mean() > 0.01, label
        switch.check()
        seen += 1
    assert seen == 5
    np.testing.assert_allclose(material_visit.picture("canvas.view"), whole, atol=2)
    choose(material_visit, "Look of the mesh", "Texture")
    assert not material_visit.page.locator(".switches").is_visible()


def test_a_normal_map_bends_the_light_to_its_own_side(material_visit):
    """The lamp stands above on the left: the left half, which leans away, is darker, the right half brighter."""
    opened_textured(material_visit)
    choose(material_visit, "Look of the mesh", "Material")
    for label in ("Colour", "Metallic", "Roughness", "Emission"):
        material_visit.page.locator(".switches label", has_text=label).locator("input").uncheck()
    bent = material_visit.picture("canvas.view").mean(axis=-1)
    material_visit.page.locator(".switches label", has_text="Normals").locator("input").uncheck()
    plain = material_visit.picture("canvas.view").mean(axis=-1)
    rows, columns = np.nonzero(np.abs(bent - plain) > 4)
    left, right, middle = columns.min(), columns.max(), slice(*np.quantile(rows, [0.3, 0.7]).astype(int))
    third = (right - left) // 3
    change = bent[middle] - plain[middle]
    assert change[:, left + 5 : left + third].mean() < -8, "leans away from the lamp"
    assert change[:, right - third : right - 5].mean() > 8, "leans towards it"


def test_every_channel_has_its_views_proof_and_error(material_visit):
    opened_textured(material_visit)
    pictures = {}
    for channel in ("Colour", "Metallic", "Roughness", "Normal detail", "Emission"):
        choose(material_visit, "Channel of the views", channel)
        choose(material_visit, "Look of the views", "Source")
        pictures[channel] = cell(material_visit)
        choose(material_visit, "Look of the views", "Baked")
        assert np.abs(cell(material_visit) - pictures[channel]).mean() < 6, channel
    names = list(pictures)
    for i, one in enumerate(names):
        assert all(np.abs(pictures[one] - pictures[other]).max() > 30 for other in names[:i]), one
    choose(material_visit, "Channel of the views", "Roughness")
    proof = material_visit.page.locator(".proof")
    assert (proof.text_content() or "").endswith("roughness PSNR 34.5 dB (at least 30)")
    choose(material_visit, "Channel of the views", "Normal detail")
    assert (proof.text_content() or "").endswith("mean error of normals 0.25 degrees")
    choose(material_visit, "Look of the views", "Error")
    assert "16 degrees" in (material_visit.page.text_content(".legend") or "")
    choose(material_visit, "Map", "Normal map")
    material_visit.until("document.querySelector('.map img').naturalWidth > 0")
    assert material_visit.page.evaluate("dialog.scrollWidth <= dialog.clientWidth"), "nothing scrolls sideways"


def test_views_alone_show_channels_of_the_source(material_visit):
    material_visit.open("#open=asset-000003")
    material_visit.until("opened[0]?.view")
    choose(material_visit, "Channel of the views", "Metallic")
    looks = material_visit.page.locator('[aria-label="Look of the views"] span').all_text_contents()
    assert looks == ["Source"]


def test_a_dataset_without_materials_offers_none(visit):
    opened_textured(visit)
    for group in ("Channel of the views", "Parts of the material"):
        assert visit.page.locator(f'[aria-label="{group}"]').count() == 0
    assert "Material" not in (visit.page.text_content('[aria-label="Look of the mesh"]') or "")
    assert not visit.page.locator(".proof").is_visible()


def test_an_address_opens_an_asset(visit):
    visit.open("#outcome=failed&open=asset-000011")
    assert visit.page.text_content("#sample-title") == "thing 11"
    visit.page.keyboard.press("Escape")
    assert visit.selects(f"{ASSETS // 6} of"), "with its filters"


def test_outcomes_are_a_strip_of_filters(visit):
    page = visit.page
    textured, rejected = count(lambda i, s, regime, r, d: regime == "textured"), count(lambda i, s, *_: s == "rejected")
    strip = " ".join((page.text_content(".strip") or "").split())
    assert strip.startswith(f"{ASSETS:,} assets {textured:,} textured") and f"{rejected:,} rejected" in strip
    page.locator(".part.rejected").click()
    assert visit.selects(f"{rejected:,} of")
    page.locator(".part.textured").click()
    assert visit.selects(f"{rejected + textured:,} of")
    page.click("#everything")
    assert visit.selects(f"{ASSETS:,} of") and page.locator(".part input:checked").count() == 0


def test_an_empty_result_says_so(visit):
    visit.page.fill('input[name="text"]', "nothing like this")
    assert "No asset fits" in (visit.page.text_content("#list") or "")
    visit.page.click("#list button")
    assert visit.selects(f"{ASSETS:,} of")


def test_bars_of_the_charts_lead_to_their_assets(visit):
    page = visit.page
    page.locator(".tabs span", has_text="Charts").first.click()
    assert page.locator("#charts").is_visible() and not page.locator("#list").is_visible()
    timeouts = count(lambda i, s, m, reason, d: reason == "timeout")
    page.locator("#charts a", has_text="timeout").click()
    assert visit.selects(f"{timeouts:,} of") and page.locator("#list").is_visible()
    page.go_back()
    page.locator("#charts").wait_for()  # back leads back
    bar = page.locator('#charts a[href^="#range=round_trip_psnr"]').first
    title = bar.locator("title").text_content()
    bar.click()
    assert visit.selects(f"{title} of")


def test_the_table_sorts_by_its_heads(visit):
    page = visit.page
    page.locator(".tabs span", has_text="Table").first.click()
    page.locator(".assets thead button", has_text="faces").click()
    page.locator(".assets thead button", has_text="faces").click()
    assert page.get_attribute('.assets th[aria-sort="descending"]', "scope") == "col"
    faces = [
        int(text.replace(",", "")) for text in page.locator(".assets tbody tr td:nth-child(7)").all_text_contents()
    ]
    measured = [synthetic_outcome(i, 0).measurements.faces for i in range(ASSETS)]
    assert faces == sorted((value for value in measured if value is not None), reverse=True)[:120]
    page.select_option("#sort", "other")
    page.fill('input[name="other"]', "round trip off share")
    assert "sort=-round_trip_off_share" in page.evaluate("location.hash")
    assert page.locator('.assets th[aria-sort="descending"]').text_content() == "round trip off share ↓"


def test_a_selection_is_saved_as_uids_that_retry_takes(visit, tmp_path):
    page = visit.page
    page.select_option("#sort", "uid")
    for place in (0, 2, 5):
        page.locator(".grid .pick").nth(place).check()
    assert "3 selected" in (page.text_content("#picks") or "")
    with page.expect_download() as download:
        page.locator("#picks button", has_text="Save uids.txt").click()
    file = tmp_path / "uids.txt"
    download.value.save_as(file)
    assert file.read_text() == "asset-000000\nasset-000002\nasset-000005\n"
    assert list(listed_uids([f"@{file}", "another"])) == [*file.read_text().split(), "another"]
    command = page.locator("#picks button", has_text="Copy retry command").get_attribute("title")
    assert shlex.split(command) == ["seqtex", "retry", visit.folder.parent.name, "--uid", "@uids.txt"]
    assert page.locator("#picks button", has_text="Compare").is_disabled()
    page.locator("#picks button", has_text="Select none").click()
    page.locator(".part.rejected").click()
    page.locator("#picks button", has_text="Select all").click()
    assert f"{count(lambda i, s, *_: s == 'rejected'):,} selected" in (page.text_content("#picks") or "")


def test_a_command_is_copied(visit):
    visit.open("#open=asset-000004")
    button = visit.page.locator("dialog button", has_text="Copy inspect command")
    command = shlex.split(button.get_attribute("title"))
    assert command == ["seqtex", "inspect", visit.folder.parent.name, "--uid", "asset-000004"]
    button.click()
    visit.until("[...document.querySelectorAll('.commands button')].some((b) => b.textContent === 'copied')")


def test_two_assets_stand_side_by_side(visit):
    page = visit.page
    page.fill('input[name="text"]', "asset-00001")
    page.select_option("#sort", "uid")
    for place in (2, 3):
        page.locator(".grid .pick").nth(place).check()
    page.locator("#picks button", has_text="Compare").click()
    visit.until("opened.length === 2 && opened.every((panel) => panel.view)")
    assert page.locator("dialog canvas.view").count() == 2
    row = page.locator(".both tr.differs", has_text=re.compile("^faces")).text_content() or ""
    assert row.startswith("faces112") and "113" in row
    assert "open=asset-000012&open=asset-000013" in page.evaluate("location.hash")


CONTRAST = r"""() => {
  const rgba = (text) => { const n = text.match(/[\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgba(getComputedStyle(node).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility({ visibilityProperty: true })) continue;
    if (node.closest("script, noscript, option, .skip")) continue;
    const style = getComputedStyle(node);
    if (parseFloat(style.fontSize) === 0) continue;
    const ink = light(rgba(node instanceof SVGElement ? style.fill : style.color)), paper = light(ground(node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName} "${node.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
"""Text whose contrast is below that of WCAG AA."""


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_text_can_be_read_in_both_themes(visit):
    for state in ("", "#show=table&outcome=rejected", "#show=charts", "#text=nothing", "#open=asset-000004"):
        visit.open(state)
        assert visit.page.evaluate(CONTRAST) == [], state
    opened_textured(visit)
    assert visit.page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("visit", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_a_phone_shows_everything_without_scrolling_sideways(visit):
    wide = "[document.documentElement, document.getElementById('sample')].map((e) => e.scrollWidth - e.clientWidth)"
    for state in ("", "#show=table", "#show=charts", "#open=asset-000004", "#open=asset-000001&open=asset-000002"):
        visit.open(state)
        assert visit.page.evaluate(wide) == [0, 0], state
    opened_textured(visit)
    assert visit.page.evaluate(wide) == [0, 0]
    assert (
        visit.page.locator(".cells .cell").nth(1).bounding_box()["y"]
        == visit.page.locator(".cells .cell").nth(0).bounding_box()["y"]
    )


@pytest.mark.parametrize(("assets", "most_ms"), [(1500, 1000), (15_000, 2000)])
def test_pictures_show_at_once(browser, report, tmp_path, assets, most_ms):
    """Two thirds of the assets are samples, each with a thumbnail of its own. Whatever else the machine does can only
    add to a load: the fastest of a few visits is the time of the page."""
    rows = tuple(Listed(outcome=synthetic_outcome(i, i // 64), ref=synthetic_ref(i)) for i in range(assets))
    drawn = {row.outcome.uid for row in rows if row.outcome.shard}
    large = replace(contents(report.parent, FilterConfig(), ASSETS), assets=rows)
    for name, source in STATIC.items():
        shutil.copy(source, tmp_path / name)
    (tmp_path / "index.html").write_bytes(large.index(drawn, ()))
    (tmp_path / "data.js").write_bytes(large.data(drawn))
    thumbnail = next((report / "samples").rglob("*.webp"))
    for row in rows:
        if row.outcome.shard:
            path = tmp_path / "samples" / row.outcome.shard.removesuffix(".tar") / f"{row.outcome.uid}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(thumbnail)
    spans = [first_picture_ms(browser, tmp_path) for _ in range(4)]
    print(f"milliseconds to the first picture and to the filters of {len(drawn)} samples: {spans}")
    assert min(first for first, _ in spans) < most_ms and min(ready for _, ready in spans) < 2000


def first_picture_ms(browser, folder: Path) -> tuple[int, int]:
    """Milliseconds until the first picture is there, and until the page has loaded with its filters."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(
        "document.addEventListener('load', (event) => {"
        " if (event.target.tagName === 'IMG') window.first ??= performance.now(); }, true)"
    )
    page.goto(f"{folder.as_uri()}/index.html")
    page.wait_for_load_state("load")
    assert page.locator(".grid .card").count() == 120
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    first = page.evaluate("window.first")
    context.close()
    return round(first), round(loaded)


def test_the_served_gallery_works_like_the_written_one(browser, report):
    problems: list[str] = []
    messages: list[str] = []
    with GalleryServer(Site(contents(report.parent, FilterConfig(), 10_000)), 0, problems.append) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(1000 * PATIENCE_S)
        page = context.new_page()
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                messages.append("error: " + request.url)
                if not request.url.startswith((server.url, "data:", "blob:"))
                else None
            ),
        )
        page.goto(server.url)
        visit = Visit(page, report)
        assert visit.selects(f"{ASSETS:,} of")
        visit.until("document.querySelector('.grid img').naturalWidth > 0")
        page.locator(".grid .card a").nth(3).click()
        visit.until("opened[0]?.view")
        page.keyboard.press("Escape")
        context.close()
        server.shutdown()
        thread.join()
    assert problems == [] and [line for line in messages if line.startswith("error")] == []


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_light_and_dark(visit):
    dark = visit.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ground = visit.picture("header").reshape(-1, 3)
    assert (np.median(ground) < 80) == dark


CONTROLS = r"""() => {
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length === 3) return light(color);
    }
    return 1;
  };
  const poor = [];
  for (const node of document.querySelectorAll("button:enabled, select, input, .check")) {
    if (!node.checkVisibility() || node.closest("thead")) continue;
    const { width, height } = node.getBoundingClientRect(), style = getComputedStyle(node);
    const name = node.outerHTML.slice(0, 80), small = width < 24 || height < 24;
    const boxed = !["checkbox", "radio", "range"].includes(node.type) && !node.matches(".check, .part");
    if ((boxed || node.matches(".pick, .check")) && small) poor.push(`${name} ${width}x${height}`);
    const pair = [light(rgb(style.borderTopColor)), ground(node.parentElement)].sort((a, b) => a - b);
    const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
    if (boxed && ratio < 3) poor.push(`${name} edge ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
"""Controls that are smaller than 24 pixels (WCAG 2.5.8), or whose edge has less than 3:1 to its ground (1.4.11)."""


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_controls_can_be_seen_and_hit_in_both_themes(visit):
    for state in ("", "#show=table", "#range=faces:1:999&sort=caption", "#open=asset-000004"):
        visit.open(state)
        assert visit.page.evaluate(CONTROLS) == [], state
    opened_textured(visit)
    assert visit.page.evaluate(CONTROLS) == []


def focused(visit: Visit) -> str:
    return visit.page.evaluate("document.activeElement.name || document.activeElement.id")


def test_the_keyboard_keeps_its_place(visit):
    """Controls that are made anew by their own use take the focus again; else the next Tab would begin at the top."""
    page = visit.page
    for selector, name in (("#picks button", "all"), ("#pages button:has-text('Next')", "Next")):
        page.locator(selector).first.focus()
        page.keyboard.press("Enter")
        assert focused(visit) == name
    page.locator("#picks button", has_text="Select none").focus()
    page.keyboard.press("Enter")
    assert focused(visit) == "assets", "its button is gone: the list has the focus"
    visit.open("#show=table")
    page.locator(".assets thead button", has_text="faces").focus()
    page.keyboard.press("Enter")
    assert focused(visit) == "sort-faces"
    visit.open("#outcome=mv_only&sort=uid&open=asset-000009")
    assert focused(visit) == "sample-title", "a reader hears what has opened"
    page.locator(".step", has_text="Next").focus()
    page.keyboard.press("Enter")
    assert focused(visit) == "Next" and page.text_content("#sample-title") == "thing 15"
    assert page.get_attribute(".step:focus", "aria-describedby") == "sample-title"


def test_the_skip_link_leads_to_what_is_shown(visit):
    for state, place in (("#outcome=failed", "assets"), ("#show=charts", "charts")):
        visit.open(state)
        visit.page.keyboard.press("Tab")
        visit.page.keyboard.press("Enter")
        assert focused(visit) == place and visit.page.evaluate("location.hash") == state
    visit.open("#assets")
    assert visit.selects(f"{ASSETS:,} of"), "an address of the link without scripts shows everything"


def test_keys_of_the_browser_stay_its_own(visit):
    """Alt with an arrow goes back, Ctrl with plus enlarges the page: none steps to another sample or zooms the mesh."""
    opened_textured(visit)
    state = "[location.hash, opened[0].view.azimuth, opened[0].view.distance]"
    before = visit.page.evaluate(state)
    for selector, key, modifier in ((".close", "ArrowRight", "altKey"), (".view", "+", "ctrlKey")):
        taken = visit.page.evaluate(
            f"!dialog.querySelector('{selector}').dispatchEvent(new KeyboardEvent('keydown',"
            f" {{ key: '{key}', {modifier}: true, bubbles: true, cancelable: true }}))"
        )
        assert not taken and visit.page.evaluate(state) == before


def test_buttons_turn_the_mesh_as_dragging_does(visit):
    opened_textured(visit)
    angles = "[opened[0].view.azimuth, opened[0].view.elevation, opened[0].view.distance]"
    start = visit.page.evaluate(angles)
    for name in ("Turn right", "See more from above", "Closer"):
        visit.page.get_by_role("button", name=name).click()
    assert (np.abs(np.subtract(visit.page.evaluate(angles), start)) > 0.1).all()
    visit.page.locator("canvas.view").focus()
    visit.page.keyboard.press("Home")
    assert visit.page.evaluate(angles) == start


def test_assets_of_one_title_are_selected_one_by_one(visit):
    visit.page.evaluate("gallery.columns.caption.fill('the same'); show()")
    visit.page.locator(".grid .pick").nth(1).check()
    assert visit.page.locator(".grid .pick:checked").count() == 1
    assert visit.page.text_content("#picked") == "1 selected"


def test_a_title_from_right_to_left_begins_at_its_right(visit):
    """Cut off, it would otherwise lose its beginning."""
    visit.page.evaluate(
        "gallery.columns.caption.fill('\u0634\u062c\u0631\u0629 \u0643\u0628\u064a\u0631\u0629'); show()"
    )
    direction = "getComputedStyle(document.querySelector('.grid .name')).direction"
    assert visit.page.evaluate(direction) == "rtl"


def test_counts_of_one_and_none_are_words(visit):
    visit.page.fill('input[name="text"]', "asset-000000")
    visit.page.evaluate("gallery.count = 1; show()")
    assert visit.selection() == "1 of 1 asset"
    visit.page.evaluate("gallery.count = 0; show()")
    assert visit.page.text_content("#list") == "No asset of this dataset is done yet."


def test_an_asset_that_is_not_listed_is_named(visit):
    visit.open("#open=asset-000001&open=asset-of-another-dataset")
    assert visit.page.text_content("#absent") == "Not listed in this gallery: asset-of-another-dataset"
    visit.open()
    assert visit.page.text_content("#absent") == ""


def test_without_webgl_the_remedy_is_not_another_report(visit):
    visit.page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    visit.open("#open=asset-000001")
    visit.until("dialog.querySelector('.model').textContent.includes('WebGL')")
    text = visit.page.text_content(".model")
    assert text == "This browser has no WebGL, which the 3D view needs."


def test_without_scripts_the_page_says_what_it_lacks(report, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{report.as_uri()}/index.html")
    assert page.locator("noscript p").is_visible() and page.locator(".grid .card").count() == 60
    for dead in ("#filters", ".tabs", ".strip input"):
        assert not page.locator(dead).first.is_visible(), dead
    context.close()


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}], indirect=True)
def test_paper_is_white_and_holds_the_whole_sample(visit):
    opened_textured(visit)
    visit.page.emulate_media(media="print", color_scheme="dark")
    assert visit.page.evaluate(CONTRAST) == []
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 248)"
    assert visit.page.evaluate("dialog.scrollHeight === dialog.clientHeight && dialog.clientHeight > innerHeight")
    for control in ("#filters", "dialog .steps", "dialog .moves", "header"):
        assert not visit.page.locator(control).first.is_visible(), control


@pytest.mark.parametrize("visit", [{"forced_colors": "active"}], indirect=True)
def test_forced_colours_show_what_is_chosen(visit):
    """Seen, not computed: forced colours change what is painted alone."""
    grounds = [
        np.median(visit.picture(f'[aria-label="Show"] input{state} + span').reshape(-1, 3), axis=0)
        for state in (":checked", '[value="charts"]')
    ]
    assert np.abs(np.subtract(*grounds)).max() > 60
    visit.page.check('input[name="outcome"][value="textured"]')
    assert np.abs(visit.picture("#everything")[4, -8] - grounds[1]).max() < 16, "no longer chosen"
    visit.page.click("#everything")
    assert np.abs(visit.picture("#everything")[4, -8] - grounds[0]).max() < 16
