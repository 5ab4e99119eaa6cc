"""The card and the Croissant metadata: hubs and tools read them, whatever names the assets have."""

import dataclasses
import hashlib
import json
import re
import shutil
import socket
from pathlib import Path

import mlcroissant
import pytest
import yaml
from etils.epath import Path as EPath
from markdown_it import MarkdownIt

from pipeline.dataset.card import HUB_LICENCES, SIZES, CardFacts, dataset_card
from pipeline.dataset.plan import plan_jobs, read_plan
from pipeline.dataset.state import finish
from schemas.dataset import DatasetInfo, LedgerPart, read_dataset_json, read_ledger
from schemas.ledger import LEDGER_SCHEMA, Counts
from schemas.mesh import Attribution
from tests.support.gallery_dataset import HOSTILE, synthetic_outcome, synthetic_ref, write_dataset

ASSETS = 24


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A dataset with the files that belong to the whole."""
    out = write_dataset(tmp_path_factory.mktemp("card") / "dataset", ASSETS, assets_per_job=12)
    finish(out, read_dataset_json(out), read_plan(out / "plan.parquet"), 0)
    return out


def parts_of(card: str) -> tuple[dict, str]:
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def facts_with(**source: str) -> CardFacts:
    """Return the facts of one job whose assets all come from one source."""
    refs = [dataclasses.replace(synthetic_ref(i), source=Attribution(**source)) for i in range(6)]
    (job,) = plan_jobs(refs, 6)
    facts = CardFacts()
    outcomes = tuple(synthetic_outcome(i, 0) for i in range(6))
    facts.add(job, LedgerPart(job=0, outcomes=outcomes, shards=()))
    return facts


def info() -> DatasetInfo:
    config = {"views": {"resolution": 64}, "uv": {"resolution": 128}, "rig": {"name": "seqtex4", "fov_y_deg": 39.6}}
    return DatasetInfo(config=config, plan_sha256="0" * 64, planned=6, jobs=1, code_version="0.1.0")


def test_the_front_matter_is_what_hubs_read(finished):
    front, text = parts_of((finished / "README.md").read_text())
    assert front["license"] == ["cc-by-4.0", "cc0-1.0"] and front["size_categories"] == ["n<1K"]
    assert set(front["task_categories"]) == {"image-to-3d", "text-to-3d"}
    for config in front["configs"]:
        (data,) = config["data_files"]
        assert list(finished.glob(data["path"])), f"{config['config_name']} has files"
    assert [config["config_name"] for config in front["configs"]] == ["textured", "mv_only"]
    assert "12 samples, views of 48 x 48" in text and "4 assets were rejected, 4 failed" in text
    assert "| synthetic | CC0-1.0 | 8 |" in text


def test_sizes_and_licences_a_hub_does_not_know():
    facts = facts_with(name="n", licence="ask the artist")
    front, text = parts_of(dataset_card(info(), facts))
    assert (front["license"], front["license_name"]) == ("other", "per-sample")
    assert front["license_link"].partition("#")[2] in {
        line[3:].lower() for line in text.splitlines() if line[:3] == "## "
    }
    assert all(licence == licence.lower() for licence in HUB_LICENCES)
    for samples, words in ((999, "n<1K"), (1000, "1K<n<10K"), (SIZES[-1][0], "n>10M")):
        facts.counts = Counts(textured=samples)
        assert parts_of(dataset_card(info(), facts))[0]["size_categories"] == [words]


@pytest.mark.parametrize("name", [*HOSTILE, "---\nlicense: mine", "https://example.org/*x*", "`a` $x$ @you"])
def test_names_are_text_in_the_card(name):
    front, text = parts_of(dataset_card(info(), facts_with(name=name, licence=name)))
    plain, _ = parts_of(dataset_card(info(), facts_with(name="plain", licence="plain")))
    assert front == plain
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    rows = [re.findall("<td>(.*?)</td>", row, re.S) for row in re.findall("<tr>(.*?)</tr>", page, re.S)]
    shown = (
        " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )
    assert [shown, shown, "4"] in rows
    assert page.count("<table>") == 2 and "<script" not in page and "<a " not in page and "<img" not in page


def test_the_card_names_no_package_that_anyone_could_register():
    """Strangers install what a published card names; this program is on no index."""
    _, text = parts_of(dataset_card(info(), facts_with(name="x")))
    assert re.findall(r"pip install ([\w.-]+)", text) == ["wids"]


def test_croissant_validates_and_its_hashes_are_those_of_the_files(finished, monkeypatch):
    def no_network(*args: object) -> None:
        raise AssertionError("validation asks the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    dataset = mlcroissant.Dataset(jsonld=finished / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    # a build has no date: equal datasets have equal files
    assert [warning.partition("] ")[2] for warning in issues.warnings] == [
        'Property "https://schema.org/datePublished" is recommended, but does not exist.'
    ]
    entries = json.loads((finished / "croissant.json").read_text())["distribution"]
    files = {entry["contentUrl"]: entry["sha256"] for entry in entries if entry["@type"] == "cr:FileObject"}
    assert set(files) == {"dataset.json", "plan.parquet", "attribution.parquet", "index.json"} | {
        f"shards/{path.name}" for path in (finished / "shards").iterdir()
    }
    assert all(hashlib.sha256((finished / name).read_bytes()).hexdigest() == sha256 for name, sha256 in files.items())


def test_croissant_records_are_those_of_the_ledger_and_the_shards(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("mlcroissant._src.operation_graph.operations.extract.EXTRACT_PATH", EPath(tmp_path))
    dataset = mlcroissant.Dataset(jsonld=finished / "croissant.json")
    rows = list(dataset.records("ledger"))
    outcomes = [outcome for part in read_ledger(finished) for outcome in part.outcomes]
    assert [row["ledger/uid"].decode() for row in rows] == [outcome.uid for outcome in outcomes]
    assert set(rows[0]) == {
        f"ledger/{name}" for name in LEDGER_SCHEMA.names if name != "notes"
    }  # nested: not for Croissant
    # of the textured ones too, were they larger: mlcroissant takes a tar with an .npz in its last 64 KB for a zip
    found = {row["mv_only/uid"].decode(): row["mv_only/json"] for row in dataset.records("mv_only")}
    assert set(found) == {outcome.uid for outcome in outcomes if outcome.regime == "mv_only"}
    assert all(json.loads(text)["uid"] == uid for uid, text in found.items())


def test_equal_datasets_have_equal_cards(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "elsewhere"))
    for name in ("README.md", "croissant.json"):
        (copy / name).unlink()
    finish(copy, read_dataset_json(copy), read_plan(copy / "plan.parquet"), 0)
    for name in ("README.md", "croissant.json"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
