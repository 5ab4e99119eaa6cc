"""Charts and further pages of the gallery: what they count, and that text from assets stays text."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.filter.rules import FilterConfig
from pipeline.report.asset_table import Listed, columns
from pipeline.report.charts import funnel_chart, loss_curve
from pipeline.report.gallery import write_gallery
from pipeline.report.images import as_rgb, data_uri
from pipeline.report.pages import Section, write_page
from schemas.ledger import Measurements, Outcome, Reason, Status
from schemas.sample import Regime
from tests.support.gallery_dataset import write_dataset


def outcome(uid, status, regime=None, reason=None, detail="", **measured):
    return Outcome(
        uid=uid, uri="", sha256=None, status=status, regime=regime, reason=reason, detail=detail, shard=None,
        seconds=1.0, measurements=Measurements(**measured),
    )  # fmt: skip


def bars(svg):
    """Label and count of every row."""
    texts = re.findall(r'<text class="(?:stage|inner)"[^>]*>([^<]*)</text>', svg)
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_the_funnel_counts_every_asset_once_by_stage():
    svg = funnel_chart(
        [
            outcome("a", Status.ACCEPTED, Regime.TEXTURED),
            outcome("b", Status.ACCEPTED, Regime.TEXTURED),
            outcome("c", Status.ACCEPTED, Regime.MV_ONLY, Reason.UNWRAP_BUDGET),
            outcome("d", Status.REJECTED, None, Reason.UNTEXTURED, "1 colour, at least 2"),
            outcome("e", Status.FAILED, None, Reason.TIMEOUT, "120 s"),
        ]
    )
    assert [(label, int(count)) for label, count in bars(svg)] == [
        ("assets", 5),
        ("timeout", 1),
        ("processed without failure", 4),
        ("a file that can be read", 4),
        ("a mesh that can be loaded", 4),
        ("untextured", 1),
        ("accepted by the filter", 3),
        ("unwrap budget", 1),
        ("with a verified UV map: textured", 2),
    ]


def test_the_funnel_names_the_rules_behind_a_reason():
    svg = funnel_chart(
        [
            outcome("a", Status.REJECTED, None, Reason.UNTEXTURED, "min_color_std: deviation 0, at least 1"),
            outcome("b", Status.REJECTED, None, Reason.UNTEXTURED, "min_distinct_colors: colours 1, at least 2"),
            outcome("c", Status.ACCEPTED, Regime.MV_ONLY, Reason.ROUND_TRIP, "min_round_trip_db: 3 dB, at least 30"),
            outcome("d", Status.ACCEPTED, Regime.MV_ONLY, Reason.UNWRAP_BUDGET, "no_layout: too many faces"),
        ]
    )
    assert {
        ("untextured (min_color_std)", "1"),
        ("untextured (min_distinct_colors)", "1"),
        ("round trip (min_round_trip_db)", "1"),
        ("unwrap budget", "1"),
    } <= set(bars(svg))


def test_the_table_marks_what_looks_suspicious():
    assets = [
        Listed(outcome=outcome(uid, Status.ACCEPTED, Regime.TEXTURED, baked_light=light), ref=None)
        for uid, light in (("a", 0.47), ("b", 0.0), ("c", None))
    ]
    assert columns(assets, set(), set(), FilterConfig())["suspicion"] == ["light may be baked in", "", ""]


def test_text_on_a_page_is_escaped(tmp_path):
    attack = "<script>alert(1)</script>"
    sections = [
        Section(title=attack, text=attack, columns=["asset"], rows=[[attack]]),
        Section(title="Loss", svg=loss_curve([1, 2, 3], [3.0, 2.0, 1.0])),
        Section(title="Pictures", pictures={attack: np.zeros((8, 8, 3), np.uint8)}),
    ]
    path = write_page(tmp_path, "demo", "Demo", "<b>someone</b>", sections)
    page = path.read_text()
    assert attack not in page and page.count("&lt;script&gt;") == 6 and "<b>someone</b>" not in page
    assert page.count("<svg") == 1 and "default-src 'none'" in page and "script-src" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [link.split(",")[0] for link in links] == ["data:", "gallery.css", "index.html", "data:image/webp;base64"]


def test_the_index_links_to_further_pages(tmp_path):
    dataset = write_dataset(tmp_path / "forge", 6)
    for name in ("demo", "training"):
        write_page(dataset, name, "Title", "Summary.", [])
    for _ in range(2):
        index = write_gallery(dataset, FilterConfig(), 100, 1, lambda done, total: None).page
        assert re.findall(r'href="(\w+\.html)"', index.read_text()) == ["demo.html", "training.html"]


def test_loss_curve_falls_to_the_right_and_names_its_ends():
    svg = loss_curve(list(range(100)), list(np.linspace(2.0, 0.1, 100)))
    line = re.search(r'class="raw" points="([^"]+)"', svg).group(1).split()
    heights = [float(point.split(",")[1]) for point in line]
    assert heights == sorted(heights), "a falling loss runs downwards on the page"
    assert "step 0" in svg and "step 99" in svg


def test_normal_colours():
    normals = np.eye(3, dtype=np.float32)
    assert as_rgb(normals).tolist() == [[255, 128, 128], [128, 255, 128], [128, 128, 255]]


@pytest.mark.parametrize(("size", "scaled"), [((640, 320), (320, 160)), ((256, 64), (256, 64))])
def test_pictures_are_scaled_down_never_up(size, scaled):
    uri = data_uri(np.zeros((size[1], size[0], 3), np.uint8), 160)
    assert Image.open(BytesIO(b64decode(uri.split(",")[1]))).size == scaled
