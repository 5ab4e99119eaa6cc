"""Datasets of schema version 2 are refused by name, and written anew without rendering."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.verify import verify
from pipeline.maintain.upgrade import upgrade, upgraded
from pipeline.sources.procedural import procedural
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.codec import encode
from schemas.dataset import code_version, read_dataset_json, read_ledger, shard_path
from schemas.errors import UserError
from schemas.sample import Regime
from schemas.shards import read_shard, stored_samples
from schemas.storage import file_sha256
from seqtex.cli.main import main
from tests.pipeline.maintain.test_grow import CFG, assert_trains, dataset, files, filled
from tests.schemas.test_codec import make_sample
from tests.support.schema2 import downgraded, write_schema2

SMALL = replace(CFG, unwrap=UnwrapConfig(max_faces=40_000))


@pytest.fixture(scope="module")
def present(tmp_path_factory) -> Path:
    """A dataset of the present version: textured assets, one with vertex colours, one of views alone, one rejected."""
    made = [Path(ref.uri) for ref in procedural(9, tmp_path_factory.mktemp("made"))]
    assets = filled(tmp_path_factory.mktemp("assets"), {f"{path.stem}": path for path in made})
    return dataset(assets, tmp_path_factory.mktemp("datasets") / "present", SMALL)


@pytest.fixture(scope="module")
def old(present, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("datasets") / "old"
    write_schema2(present, out)
    return out


def test_an_upgraded_dataset_is_that_of_the_present_version(present, old, tmp_path, capsys):
    before = files(old)
    assert main(["upgrade", str(old), "--out", str(tmp_path / "new")]) == 0
    assert "upgraded" in capsys.readouterr().out
    new = tmp_path / "new"
    assert files(old) == before and verify(new) == []
    shards = [shard for part in read_ledger(present) for shard in part.shards]
    assert {shard.regime for shard in shards} == set(Regime)
    for shard in shards:
        assert file_sha256(shard_path(new, shard.name)) == shard.sha256
    info = read_dataset_json(new)
    assert info.history == [{"step": "upgraded", "schema_version": 2}] and info.schema_version == 3
    assert [part.outcomes for part in read_ledger(new)] == [part.outcomes for part in read_ledger(present)]
    assert {sample.meta["versions"]["seqtex-forge"] for sample in stored_samples(new, *Regime)} == {code_version()}
    assert_trains(new)


def test_an_upgrade_that_was_stopped_goes_on_and_does_not_mix(old, present, tmp_path):
    new = tmp_path / "new"
    upgrade(old, new, lambda done, jobs: None)
    whole = {name: sha256 for name, (sha256, _) in files(new).items()}
    next((new / "ledger").iterdir()).unlink()
    assert upgrade(old, new, lambda done, jobs: None).jobs_run == 1
    assert {name: sha256 for name, (sha256, _) in files(new).items()} == whole
    assert upgrade(old, new, lambda done, jobs: None).jobs_run == 0
    with pytest.raises(UserError, match="holds another dataset"):
        upgrade(old, present, lambda done, jobs: None)


def test_old_datasets_are_refused_by_name_with_the_remedy(old, present, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json: schema version 2, 3 is needed here; `seqtex upgrade"):
        read_dataset_json(old)
    with pytest.raises(UserError, match="schema version 3, 2 is needed here; it needs no upgrade"):
        upgrade(present, tmp_path / "new", lambda done, jobs: None)
    assert not (tmp_path / "new").exists()


def test_a_damaged_sample_is_named(old, tmp_path):
    shard = next((old / "shards").glob("textured-*"))
    _, fields = next(iter(read_shard(shard)))
    for name, damage in (
        ("position.dz", fields["position.dz"][:40]), ("normal.dz", fields["position.dz"]), ("mesh.npz", b"PK")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"'{name}'"):
            upgraded(fields | {name: damage})


def test_stored_values_are_kept_exactly():
    """Normals are not scaled again, which would shift them by up to a step."""
    sample = downgraded(new := encoded())
    again = upgraded(sample)
    for name in ("position.png", "uv_position.png", "normal.png", "uv_normal.png"):
        found, wanted = (np.asarray(Image.open(io.BytesIO(each[name]))) for each in (again, new))
        np.testing.assert_array_equal(found, wanted)


def encoded() -> dict[str, bytes]:
    sample = make_sample()
    sample.meta["measurements"] = {"layout": "xatlas"}
    sample.meta["versions"] = {"seqtex-forge": None}
    return encode(sample)
