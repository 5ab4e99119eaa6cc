"""The report page: what it counts, what it shows, and that text from assets stays text."""

import dataclasses
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from geometry.cameras import seqtex4
from pipeline.report.images import as_rgb, data_uri
from pipeline.report.page import GROUPS, Section, funnel, loss_curve, render_page, sample_card
from schemas.ledger import Measurements, Reason, Status
from schemas.sample import Regime, TextureSample, Views


def row(uid, status, regime=None, reason=None, detail=""):
    return {"uid": uid, "status": status, "regime": regime, "reason": reason, "detail": detail}


ROWS = [
    row("a", Status.ACCEPTED, Regime.TEXTURED),
    row("b", Status.ACCEPTED, Regime.TEXTURED),
    row("c", Status.ACCEPTED, Regime.MV_ONLY, Reason.UNWRAP_BUDGET),
    row("d", Status.REJECTED, None, Reason.UNTEXTURED, "1 colour, at least 2"),
    row("e", Status.FAILED, None, Reason.TIMEOUT, "120 s"),
]


def sample(uid, caption):
    size = 8
    views = Views(
        rgb=np.full((4, size, size, 3), 200, np.uint8),
        mask=np.ones((4, size, size), bool),
        coverage=np.full((4, size, size), 255, np.uint8),
        position=np.zeros((4, size, size, 3), np.float32),
        normal=np.zeros((4, size, size, 3), np.float32),
    )
    meta = {"source": {"licence": "CC0-1.0", "attribution": "<b>someone</b>"}, "caption": caption, "measurements": {}}
    cameras = seqtex4(-np.ones(3), np.ones(3))
    return TextureSample(uid=uid, regime=Regime.MV_ONLY, views=views, cameras=cameras, uv=None, mesh=None, meta=meta)


def test_funnel_counts_every_asset_once_in_order_of_fate():
    steps = funnel(ROWS)
    assert [(s.label, s.count) for s in steps] == [
        ("textured", 2),
        ("multi-view only: unwrap budget", 1),
        ("rejected: untextured", 1),
        ("failed: timeout", 1),
    ]
    assert sum(s.share for s in steps) == pytest.approx(1)


def test_the_funnel_tells_rules_of_one_reason_apart():
    rows = [
        row("a", Status.REJECTED, None, Reason.UNTEXTURED, "min_color_std: standard deviation of colour 0, at least 1"),
        row("b", Status.REJECTED, None, Reason.UNTEXTURED, "min_distinct_colors: distinct colours 1, at least 2"),
        row("c", Status.ACCEPTED, Regime.MV_ONLY, Reason.ROUND_TRIP, "min_round_trip_db: 3 dB, at least 30"),
        row("d", Status.ACCEPTED, Regime.MV_ONLY, Reason.UNWRAP_BUDGET, "no_layout: too many faces"),
    ]
    assert [step.label for step in funnel(rows)] == [
        "multi-view only: round trip (min_round_trip_db)",
        "multi-view only: unwrap budget",
        "rejected: untextured (min_color_std)",
        "rejected: untextured (min_distinct_colors)",
    ]


def test_a_card_says_what_was_measured_and_what_looks_suspicious():
    measured = Measurements(
        faces=4510, parts=3, nonmanifold_edges=0, uv_fill=0.603, round_trip_psnr=45.62, baked_light=0.47
    )
    plain = sample("x", "a bottle")
    card = sample_card(dataclasses.replace(plain, meta=plain.meta | {"measurements": dataclasses.asdict(measured)}))
    assert card.measured == [("shape", "4,510 faces, 3 parts"), ("map", "fills 60%, round trip 45.6 dB")]
    assert card.suspicions == ("light may be baked in",)
    assert sample_card(plain).measured == [] and sample_card(plain).suspicions == ()


def test_cards_show_measurements_that_exist():
    shown = {name for formats in GROUPS.values() for name, _ in formats}
    assert shown <= {field.name for field in dataclasses.fields(Measurements)}


def test_text_from_assets_is_escaped():
    attack = "<script>alert(1)</script>"
    page = render_page(
        title="t",
        summary="s",
        rows=[*ROWS, row(attack, Status.REJECTED, None, Reason.LOAD_ERROR, attack)],
        samples=[sample("x", attack)],
        sections=[Section(title="Loss", svg=loss_curve([1, 2, 3], [3.0, 2.0, 1.0]))],
    )
    assert attack not in page and "&lt;script&gt;" in page
    assert "<b>someone</b>" not in page
    assert page.count("<svg") == 1
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith("data:image/png") for link in links), "the page must stand alone"


def test_loss_curve_falls_to_the_right_and_names_its_ends():
    svg = loss_curve(list(range(100)), list(np.linspace(2.0, 0.1, 100)))
    line = re.search(r'class="raw" points="([^"]+)"', svg).group(1).split()
    heights = [float(point.split(",")[1]) for point in line]
    assert heights == sorted(heights), "a falling loss runs downwards on the page"
    assert "step 0" in svg and "step 99" in svg


def test_normal_colours():
    normals = np.eye(3, dtype=np.float32)
    assert as_rgb(normals).tolist() == [[255, 128, 128], [128, 255, 128], [128, 128, 255]]


def test_thumbnails_are_scaled_down_never_up():
    def size(uri):
        return Image.open(BytesIO(b64decode(uri.split(",")[1]))).size

    assert size(data_uri(np.zeros((320, 640, 3), np.uint8), 160)) == (320, 160)
    assert size(data_uri(np.zeros((64, 256, 3), np.uint8), 160)) == (256, 64)
