"""`seqtex report` and `seqtex view`: pages of runs and evaluations, and a server that ends as it should."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqtex.cli.build import listed_uids
from seqtex.cli.main import main
from seqtex.gallery.pages import PICTURES, evenly
from tests.support.gallery_dataset import write_dataset

UID = "asset-000001"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("commands") / "forge", 6)


@pytest.fixture
def run(tmp_path) -> Path:
    """The files that a training run leaves: a loss per step, and a picture every 10 steps."""
    folder = tmp_path / "a run & more"
    (folder / "pictures").mkdir(parents=True)
    rows = [{"step": step, "loss": 2.0 / step, "seconds": step} for step in range(1, 201)]
    (folder / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(10, 201, 10):
        color = np.full((32, 96, 3), step, np.uint8)
        Image.fromarray(color).save(folder / "pictures" / f"step-{step:08d}-{UID}.png")
    return folder


def test_a_run_has_a_page_with_its_loss_and_its_pictures(dataset, run):
    assert main(["report", str(dataset), "--run", str(run)]) == 0
    page = (dataset / "report" / "run-a-run-more.html").read_text()
    assert "Training run a run &amp; more" in page and page.count("<polyline") == 2 and "200 steps" in page
    shown = [int(step) for step in re.findall(r"<figcaption>step (\d+)</figcaption>", page)]
    assert len(shown) == PICTURES and shown[0] == 10 and shown[-1] == 200 and shown == sorted(set(shown))
    assert f'href="index.html#open={UID}"' in page and "script-src" not in page
    assert 'href="run-a-run-more.html"' in (dataset / "report" / "index.html").read_text()


def test_an_evaluation_has_a_page_with_the_worst_mesh_first(dataset, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    interval = {"value": 21.5, "low": 20.25, "high": 22.75}
    meshes = [{"uid": UID, "uv_psnr": 25.0, "seam_step": 0.5}, {"uid": "<b>", "uv_psnr": 18.0}]
    file.write_text(json.dumps({"summary": {"uv_psnr": interval, "fid (clip)": interval}, "meshes": meshes}))
    assert main(["report", str(dataset), "--evaluation", str(file)]) == 0
    page = (dataset / "report" / "evaluation-metrics.html").read_text()
    assert "UV map, PSNR over covered texels, dB" in page and "20.25 to 22.75" in page and "fid (clip)" in page
    assert re.findall(r'#open=([^"]+)"', page) == ["%3Cb%3E", UID] and "<b>" not in page

    file.write_text('{"summary": {"uv_psnr": 3}, "meshes": []}')
    assert main(["report", str(dataset), "--evaluation", str(file)]) == 1
    assert "seqtex evaluate --out" in capsys.readouterr().err


def test_what_is_no_run_is_named(dataset, tmp_path, run, capsys):
    assert main(["report", str(dataset), "--run", str(tmp_path / "nothing")]) == 1
    assert "no losses.jsonl" in capsys.readouterr().err
    (run / "pictures" / f"step-00000300-{UID}.png").write_bytes(b"no picture")
    assert main(["report", str(dataset), "--run", str(run)]) == 1
    assert "step-00000300" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 11, 12, 13, 100])
def test_the_first_and_the_last_picture_are_chosen(count):
    chosen = evenly(list(range(count)), 12)
    assert len(chosen) == min(count, 12) and chosen[0] == 0 and chosen[-1] == count - 1
    assert chosen == sorted(set(chosen))


def test_a_file_of_uids(tmp_path, dataset, capsys):
    file = tmp_path / "uids.txt"
    file.write_text("a\nb\r\n\nc\n")
    assert list(listed_uids(["x", f"@{file}"])) == ["x", "a", "b", "c"]
    assert main(["retry", str(dataset), "--uid", f"@{file}"]) == 2
    assert "has no asset 'a'" in capsys.readouterr().err
    for content in (b"\n", b"\xff\xfe\x00"):
        file.write_bytes(content)
        assert main(["retry", str(dataset), "--uid", f"@{file}"]) == 2
        assert f"--uid @{file}" in capsys.readouterr().err
    assert main(["retry", str(dataset), "--uid", "@nowhere.txt"]) == 1
    assert "nowhere.txt" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_view_serves_until_it_is_asked_to_end(dataset, number):
    command = [sys.executable, "-m", "seqtex.cli.main", "view", str(dataset), "--log", "json"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        event = json.loads(process.stdout.readline())
        assert event["event"] == "view" and event["listed"] == 6
        with urllib.request.urlopen(event["url"], timeout=60) as page:
            assert b"<title>forge" in page.read()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == b""


def test_bad_options_of_view(dataset, capsys):
    assert main(["view", str(dataset), "--port", "70000"]) == 2
    assert "--port" in capsys.readouterr().err
    assert main(["view", str(dataset), "--assets", "0"]) == 2
    assert "--assets" in capsys.readouterr().err
    assert main(["view", str(dataset / "absent")]) == 1
    assert "dataset.json" in capsys.readouterr().err
