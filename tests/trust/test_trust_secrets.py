"""The fault matrix of secrets: a password in a URL is in no file, no log and no message."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import BuildConfig
from pipeline.executor.job import process_job
from pipeline.sources.objaverse import ObjaverseConfig
from schemas.dataset import index_json, part_path, read_ledger, read_ledger_part
from schemas.errors import UserError, redacted
from schemas.ledger import Reason
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.sample import Regime
from schemas.storage import ObjectPath
from seqtex.cli.main import main
from tests.support.small_dataset import write_dataset
from tests.training.test_training import small_config
from tests.trust.trust import Trust
from training.train import train

PASSWORD = "hunter2hunter2"
URL = f"memory://somebody:{PASSWORD}@store/forge"
TEXTS = {
    f"s3://a:{PASSWORD}@host/x": "s3://***@host/x",
    f"no https://a:b@{PASSWORD}@host:80/x, no": "no https://***@host:80/x, no",
    f"https://host/x?X-Amz-Signature={PASSWORD}&v=1": "https://host/x?X-Amz-Signature=***&v=1",
    f"(https://host/x?v=1&access_token={PASSWORD})": "(https://host/x?v=1&access_token=***",
    "https://host/a@b and user@host": "https://host/a@b and user@host",
    "s3://bucket/x?versionId=3": "s3://bucket/x?versionId=3",
}


@pytest.mark.trust(30)
def test_what_logs_in_is_taken_out_of_urls(trust: Trust) -> None:
    held = sum(redacted(text).removesuffix(")") == kept.removesuffix(")") for text, kept in TEXTS.items())
    trust.held(held, len(TEXTS))
    assert held == len(TEXTS), [redacted(text) for text in TEXTS]
    start = time.process_time()
    for text in ("://" * (1 << 18), "?" * (1 << 20), "?key" * (1 << 18), "a" * (1 << 20), "://" + "@" * (1 << 20)):
        redacted(text)
    assert time.process_time() - start < 10


def spilt(folder: Path) -> list[str]:
    """Files that hold the password as it is."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


@pytest.mark.trust(30)
def test_a_server_with_a_password_leaves_none_in_a_dataset(trust: Trust, tmp_path: Path) -> None:
    mirror = ObjaverseConfig(
        base_url=f"http://somebody:{PASSWORD}@127.0.0.1:9", cache=str(tmp_path / "cache"), attempts=1
    )
    for name in ("shards", "ledger"):
        (tmp_path / "out" / name).mkdir(parents=True)
    job = ShardJob(index=0, refs=(MeshRef(uid="a", uri="objaverse://glbs/000-000/a.glb"),))
    process_job(job, tmp_path / "out", BuildConfig(objaverse=mirror))
    (row,) = read_ledger_part(part_path(tmp_path / "out", 0)).outcomes
    held = [row.reason is Reason.DOWNLOAD_FAILED, "***@127.0.0.1" in row.detail, PASSWORD not in str(row)]
    held += [not spilt(tmp_path)]
    trust.held(sum(held), len(held))
    assert all(held), (row, spilt(tmp_path))


@pytest.mark.trust(30)
def test_a_store_with_a_password_leaves_none_in_latents_and_runs(
    trust: Trust, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encode and train from such a URL: every file that either leaves, every word that either prints."""
    monkeypatch.setenv("SEQTEX_SCRATCH", str(tmp_path / "scratch"))
    write_dataset(tmp_path / "forge", [[(f"t{i}", Regime.TEXTURED) for i in range(3)] + [("m", Regime.MV_ONLY)]])
    index = index_json(tmp_path / "forge", read_ledger(tmp_path / "forge"))
    (tmp_path / "forge/index.json").write_bytes(index)
    for path in (tmp_path / "forge").rglob("*"):
        if path.is_file():
            (ObjectPath(f"{URL}/{path.relative_to(tmp_path / 'forge').as_posix()}")).write_bytes(path.read_bytes())
    cfg = small_config(tmp_path / "forge", tmp_path / "run", max_steps=2)
    data = replace(cfg.data, directories={URL: 1.0}, cache_directory=tmp_path / "cache")
    code = main(["encode", URL, "--codec", "dct", "--cache_directory", str(tmp_path / "cache")])
    train(replace(cfg, data=data))
    told = capsys.readouterr()
    with pytest.raises(UserError) as missing:
        train(replace(cfg, data=replace(data, directories={f"{URL}/none": 1.0})))
    latents = [path.read_bytes() for path in walk(ObjectPath(f"{URL}/latents"))]
    held = [
        code == 0,
        not spilt(tmp_path),
        "***@store/forge" in (tmp_path / "run/config.json").read_text(),
        "***@store/forge" in (tmp_path / "run/environment.json").read_text(),
        PASSWORD not in told.out + told.err,
        PASSWORD not in str(missing.value),
        bool(latents) and not any(PASSWORD.encode() in data for data in latents),
    ]
    trust.held(sum(held), len(held))
    assert all(held), (held, spilt(tmp_path), told, missing.value)


def walk(folder: ObjectPath) -> list[ObjectPath]:
    below = list(folder.iterdir())
    return [path for path in below if path.is_file()] + [
        inner for path in below if path.is_dir() for inner in walk(path)
    ]
