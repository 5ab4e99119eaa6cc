"""Latents made once: what is stored is what the codec makes, training on it is training on images, and nothing that
does not fit is read."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import training.arithmetic
from schemas.dataset import read_ledger, shard_path
from schemas.errors import UserError
from schemas.sample import Regime, TextureSample
from schemas.shards import read_shard, write_tar
from schemas.storage import write_file
from seqtex.cli.main import main
from tests.support.small_dataset import small_sample, write_dataset, write_samples
from training.config import TrainConfig, preset
from training.data import encode_latents as latent_encode
from training.data.augment import AugmentConfig
from training.data.batch import LatentBatch, TextFeatures, encode_batch, widened
from training.data.datamodule import BatchStream
from training.data.dataset_files import LocalFiles
from training.data.encode_latents import Encoders, encode_dataset, make_encoders
from training.data.latent_shards import RECORD, codec_header, parse_record
from training.data.mixture import DataConfig
from training.diffusion.encoders import DctCodec, LatentCodec, Posterior, TextEncoder, WanCodec
from training.diffusion.flow import draw
from training.diffusion.tasks import TaskConfig, draw_task, given_views
from training.loop.checkpoints import read_card
from training.module import TextureModule
from training.objective import text_features
from training.train import train

ENTRIES = [
    [("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED), ("m0", Regime.MV_ONLY)],
    [("t2", Regime.TEXTURED), ("m1", Regime.MV_ONLY), ("m2", Regime.MV_ONLY)],
]
ENCODE = (
    "import sys; from pathlib import Path; "
    "from tests.training.data.test_latent_shards import encode_slowly as run; run(sys.argv[1])"
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", ENTRIES, 16, 32)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan VAE with random weights."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(path)
    return path


def dct(dtype: str = "float32", images: tuple[str, ...] = ()) -> Encoders:
    return make_encoders(DctCodec(), None, "cpu", dtype, images)


def config(dataset: Path, **changes: object) -> DataConfig:
    return DataConfig(directory=dataset, batch_size=2, mv_only_ratio=0.4, **({"keep_latents": False} | changes))


def batches(dataset: Path, codec: LatentCodec, count: int = 8, **changes: object) -> list[LatentBatch]:
    stream = BatchStream(config(dataset, latents=True, **changes), seed=1, codec=codec)
    return [stream[number] for number in range(count)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_stored_latents_are_those_of_the_images(dataset: Path, dtype: str, tolerance: float) -> None:
    """bfloat16 keeps 8 bits of a number: an error below 0.4 % of latents that reach 5."""
    encode_dataset(LocalFiles(dataset), dct(dtype))
    pixels = BatchStream(config(dataset), seed=1)
    for number, ours in enumerate(batches(dataset, DctCodec())):
        ours, theirs = widened(ours), encode_batch(pixels[number], DctCodec())
        assert (ours.uids, ours.captions, ours.regime) == (theirs.uids, theirs.captions, theirs.regime)
        assert (ours.number, ours.samples) == (theirs.number, theirs.samples)
        for branch in ("mv", "uv"):
            a, b = getattr(ours, branch), getattr(theirs, branch)
            assert (a is None) == (b is None)
            if a is not None:
                assert torch.allclose(a.rgb, b.rgb, atol=tolerance)
                assert torch.allclose(a.geometry, b.geometry, atol=tolerance)


def test_latent_shards_have_the_bytes_of_image_shards_tars(dataset: Path) -> None:
    """webdataset writes the one, `write_tar` the other."""
    folder = encode_dataset(LocalFiles(dataset), dct())
    tars = sorted(folder.glob("*.tar"))
    assert len(tars) == 4
    for tar in tars:
        again = io.BytesIO()
        assert write_tar(again, read_shard(tar)) >= 1
        assert again.getvalue() == tar.read_bytes()


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(rotate_views=0.7)])
def test_view_hints_are_the_same_from_images_from_memory_and_stored(dataset: Path, augment: AugmentConfig) -> None:
    """Hints of the views that the training step gives, in its own order."""
    codec, tasks, seed = DctCodec(), TaskConfig(), 1
    encode_dataset(LocalFiles(dataset), dct(images=("hint",)))
    pixels, stored = config(dataset, augment=augment), config(dataset, augment=augment, latents=True)
    kept = config(dataset, augment=augment, keep_latents=True)
    streams = [
        BatchStream(pixels, seed=seed, tasks=tasks, images=("hint",)),
        BatchStream(kept, seed=seed, tasks=tasks, images=("hint",), codec=codec),
        BatchStream(stored, seed=seed, tasks=tasks, images=("hint",), codec=codec),
    ]
    given_counts = set()
    for number in range(24):
        batch = streams[0][number]
        direct, memory, disk = encode_batch(batch, codec), streams[1][number], streams[2][number]
        task = draw_task(tasks, direct.regime, seed, number)
        views = direct.mv.rgb.shape[2]
        order = draw(seed, direct.samples, [direct.mv.rgb.shape[1:]]).view_order
        is_given = given_views(task, order)
        given_counts.add(int(is_given[0].sum()))
        for place, row in enumerate(is_given.tolist()):
            own = batch.mv.conditions["hint"][place, :, :, :, 3].amax(dim=(1, 2))
            assert [own[view] == 1 for view in range(views)] == row, "a given view is as close as can be, no other"
        for other in (memory, disk):
            for branch in ("mv", "uv"):
                ours, theirs = getattr(direct, branch), getattr(other, branch)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours.conditions["hint"], theirs.conditions["hint"], atol=1e-4, rtol=1e-4)
                    torch.testing.assert_close(ours.points, theirs.points, atol=1e-5, rtol=1e-4)
    assert given_counts == {0, 1, 4}


def test_latents_without_hints_are_refused_where_the_model_takes_them(dataset: Path, tmp_path: Path) -> None:
    encode_dataset(LocalFiles(dataset), dct())
    with pytest.raises(
        UserError, match=r"view_hint is False, this run has True; .*--view_hint, which encodes all anew, or set"
    ):
        losses(small_config(dataset, tmp_path, latents=True))
    with_hints = encode_dataset(LocalFiles(dataset), dct(images=("hint",)))
    assert with_hints is not None and len(losses(small_config(dataset, tmp_path, latents=True))) == 8
    tasks = TaskConfig(textured={"some2tex": 1.0})
    stream = BatchStream(config(dataset, latents=True), seed=1, codec=DctCodec(), tasks=tasks, images=("hint",))
    with pytest.raises(UserError, match=r"no stored hint of views \d, \d.*; train tasks like some2tex from images"):
        stream[next(number for number in range(20) if stream.schedule(number)[0] is Regime.TEXTURED)]


def small_config(dataset: Path, run: Path, latents: bool) -> TrainConfig:
    tiny = preset("tiny")
    return replace(
        tiny,
        data=config(dataset, latents=latents),
        model=replace(tiny.model, num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32),
        run=replace(tiny.run, directory=run, max_steps=8, threads=1),
    )


def losses(cfg: TrainConfig) -> list[float]:
    return [row["loss"] for row in train(cfg).losses]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-3)])
def test_training_from_latents_follows_the_curve_from_images(
    dataset: Path, tmp_path: Path, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exact products: processors that have bfloat16 ones round differently for each difference of the input."""
    monkeypatch.setattr(training.arithmetic, "float32_products", lambda device_type: "highest")
    encode_dataset(LocalFiles(dataset), dct(dtype, images=("hint",)))
    images = losses(small_config(dataset, tmp_path / "images", latents=False))
    stored = losses(small_config(dataset, tmp_path / "latents", latents=True))
    assert len(stored) == 8
    assert stored == pytest.approx(images, rel=tolerance)


def test_a_wan_vae_trains_from_latents_as_from_images(dataset: Path, vae: Path, tmp_path: Path) -> None:
    encode_dataset(LocalFiles(dataset), make_encoders(WanCodec(vae), None, "cpu", "float32", images=("hint",)))
    curves = []
    for latents in (False, True):
        cfg = small_config(dataset, tmp_path / str(latents), latents)
        cfg = replace(cfg, latents=replace(cfg.latents, codec="wan", codec_path=str(vae)))
        cfg = replace(cfg, run=replace(cfg.run, max_steps=4))
        curves.append(losses(cfg))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_posterior_draws_are_seeded_by_sample_number(dataset: Path, vae: Path) -> None:
    codec = WanCodec(vae)
    encode_dataset(LocalFiles(dataset), make_encoders(codec, None, "cpu", "float32"))
    means = batches(dataset, codec)
    drawn = batches(dataset, codec, draw_posterior=True)
    late = BatchStream(config(dataset, latents=True, draw_posterior=True), seed=1, codec=codec)
    differences: dict[str, list[torch.Tensor]] = {}
    for number in (5, 2, 7, 0):
        assert torch.equal(late[number].mv.rgb, drawn[number].mv.rgb)
    for mean, other in zip(means, drawn, strict=True):
        assert torch.equal(other.mv.geometry, mean.mv.geometry)
        for uid, a, b in zip(mean.uids, mean.mv.rgb, other.mv.rgb, strict=True):
            differences.setdefault(uid, []).append(b - a)
    for found in differences.values():
        assert all(not torch.equal(found[0], other) for other in found[1:])  # anew for each number
    # one sample many times: the stored distribution
    stored = late.sources[Regime.TEXTURED][0].reader(0, 0)
    many = torch.stack([stored.drawn(3, number).mv.rgb[0] for number in range(200)])
    std = torch.exp(stored.log_variance["mv_rgb"][0] / 2)
    normal = (many - stored.batch.mv.rgb[0]) / std
    assert abs(float(normal.mean())) < 0.01 and float(normal.std()) == pytest.approx(1, abs=0.01)


def test_a_certain_codec_stores_one_number_for_its_variance(dataset: Path) -> None:
    encode_dataset(LocalFiles(dataset), dct())
    stream = BatchStream(config(dataset, latents=True, draw_posterior=True), seed=1, codec=DctCodec())
    assert stream.sources[Regime.TEXTURED][0].reader(0, 0).log_variance["mv_rgb"].numel() == 1
    for number, mean in enumerate(batches(dataset, DctCodec())):
        assert torch.allclose(stream[number].mv.rgb, mean.mv.rgb, atol=1e-5)


def test_the_record_says_what_the_latents_are(dataset: Path) -> None:
    folder = encode_dataset(LocalFiles(dataset), dct("bfloat16"))
    assert folder is not None
    header, shards = parse_record((folder / RECORD).read_bytes(), "record")
    assert header == codec_header(DctCodec())
    assert (header.codec, header.dtype, header.scaling[1]) == ("dct", "bfloat16", DctCodec.STD)
    sources = {shard.name: shard for part in read_ledger(dataset) for shard in part.shards}
    assert {name: shard.source_sha256 for name, shard in shards.items()} == {n: s.sha256 for n, s in sources.items()}
    assert {name: shard.count for name, shard in shards.items()} == {n: s.count for n, s in sources.items()}
    assert shards["textured-000000.tar"].shapes["mv_rgb"] == [16, 4, 2, 2]
    assert shards["textured-000000.tar"].shapes["uv_normal"] == [16, 1, 4, 4]


class OtherDct(DctCodec):
    """The same latents, scaled otherwise."""

    STD = (1.3,) * 16


def test_latents_that_do_not_fit_are_refused_by_name(dataset: Path, vae: Path) -> None:
    with pytest.raises(
        UserError, match=r"latents\.json: no finished latents by codec dct.*seqtex encode .*--codec dct"
    ):
        batches(dataset, DctCodec())
    folder = encode_dataset(LocalFiles(dataset), dct())
    assert folder is not None
    with pytest.raises(UserError, match=rf"codec wan with the weights .*, there are {folder.name}; run `seqtex encode"):
        batches(dataset, WanCodec(vae))
    with pytest.raises(UserError, match=rf"codec dct with the weights .*, there are {folder.name}"):
        batches(dataset, OtherDct())
    record = (folder / RECORD).read_bytes()
    write_file(folder / RECORD, record.replace(b'"downscale": 8', b'"downscale": 4'))
    with pytest.raises(UserError, match=r"latents\.json: damaged \(its text has changed\)"):
        batches(dataset, DctCodec())
    write_file(folder / RECORD, record[: len(record) // 2])
    with pytest.raises(UserError, match=r"latents\.json: damaged"):
        batches(dataset, DctCodec())


def samples(seed: int) -> list[TextureSample]:
    return [small_sample(uid, regime, seed + i, 16, 32) for i, (uid, regime) in enumerate(ENTRIES[0])]


def test_a_changed_dataset_is_noticed_and_only_what_changed_is_done_again(tmp_path: Path) -> None:
    first, second = samples(1), [small_sample("n0", Regime.TEXTURED, 9, 16, 32)]
    write_samples(tmp_path / "data", [first])
    encode_dataset(LocalFiles(tmp_path / "data"), dct())
    write_samples(tmp_path / "grown", [first, second])
    write_samples(tmp_path / "other", [samples(50), second])
    for name in ("grown", "other"):
        (tmp_path / "data" / "latents").rename(tmp_path / name / "latents")
        change = "new shards" if name == "grown" else "changed"
        with pytest.raises(UserError, match=rf"the dataset has {change}.*textured-"):
            batches(tmp_path / name, DctCodec())
        (tmp_path / name / "latents").rename(tmp_path / "data" / "latents")
    (tmp_path / "data" / "latents").rename(tmp_path / "grown" / "latents")
    tars = sorted((tmp_path / "grown" / "latents").rglob("*.tar"))
    before = [tar.stat().st_mtime_ns for tar in tars]
    encode_dataset(LocalFiles(tmp_path / "grown"), dct())
    assert [tar.stat().st_mtime_ns for tar in tars] == before
    assert {uid for batch in batches(tmp_path / "grown", DctCodec(), 12) for uid in batch.uids} == {
        "t0",
        "t1",
        "m0",
        "n0",
    }


def test_a_damaged_latent_shard_is_skipped_or_refused(dataset: Path) -> None:
    folder = encode_dataset(LocalFiles(dataset), dct())
    assert folder is not None
    path = folder / "textured-000000.tar"
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"latents/dct-.*/textured-000000\.tar.*not the recorded one"):
        batches(dataset, DctCodec())
    seen = {uid for batch in batches(dataset, DctCodec(), skip_budget=1) for uid in batch.uids}
    assert seen == {"t2", "m0", "m1", "m2"}
    encode_dataset(LocalFiles(dataset), dct())  # repairs it
    assert {uid for batch in batches(dataset, DctCodec(), 12) for uid in batch.uids} >= {"t0", "t1"}


def test_parts_share_the_work(dataset: Path) -> None:
    assert encode_dataset(LocalFiles(dataset), dct(), part=1, parts=2) is None
    with pytest.raises(UserError, match="no finished latents"):
        batches(dataset, DctCodec())
    folder = encode_dataset(LocalFiles(dataset), dct(), part=0, parts=2)
    assert folder is not None
    several = {path.name: path.read_bytes() for path in folder.iterdir()}
    (dataset / "latents").rename(dataset / "earlier")
    encode_dataset(LocalFiles(dataset), dct())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == several


class SlowCodec(DctCodec):
    """Dies by SIGKILL when it has encoded so many images."""

    left = int(os.environ.get("SEQTEX_TEST_KILL_AFTER", "0"))

    def posterior(self, images: torch.Tensor) -> Posterior:
        SlowCodec.left -= 1
        if SlowCodec.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().posterior(images)


def encode_slowly(dataset: str) -> None:
    encode_dataset(LocalFiles(Path(dataset)), make_encoders(SlowCodec(), None, "cpu", "float32"))


def test_a_killed_run_leaves_nothing_half_written_and_goes_on(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "whole", ENTRIES, 16, 32)
    whole = encode_dataset(LocalFiles(tmp_path / "whole"), dct())
    assert whole is not None
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "SEQTEX_TEST_KILL_AFTER": "17"}
    killed = subprocess.run([sys.executable, "-c", ENCODE, str(dataset)], env=env, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (dataset / "latents").iterdir()
    for path in folder.iterdir():  # some shards, none of them in part
        assert path.read_bytes() == (whole / path.name).read_bytes()
    assert 0 < len(list(folder.glob("*.tar"))) < 4 and not (folder / RECORD).exists()
    with pytest.raises(UserError, match="no finished latents"):
        batches(dataset, DctCodec())
    encode_dataset(LocalFiles(dataset), dct())
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in whole.iterdir()}
    assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names)


@pytest.mark.parametrize("failing", ["tar", "record", "latents.json"])
def test_a_full_disk_at_any_file_leaves_a_run_that_can_go_on(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    ending = {"tar": "mv_only-000001.tar", "record": "mv_only-000001.tar.json", "latents.json": RECORD}[failing]

    def full(path: Path, data: bytes) -> None:
        if path.name == ending:
            raise OSError(28, "No space left on device", str(path))
        write_file(path, data)

    monkeypatch.setattr(latent_encode, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        encode_dataset(LocalFiles(dataset), dct())
    with pytest.raises(UserError, match="no finished latents"):
        batches(dataset, DctCodec())
    monkeypatch.undo()
    encode_dataset(LocalFiles(dataset), dct())
    assert {uid for batch in batches(dataset, DctCodec(), 20) for uid in batch.uids} == {
        u for e in ENTRIES for u, _ in e
    }


class Letters(TextEncoder):
    """A text encoder by the name of Wan's: a token for each letter, the same for a letter everywhere, zeros behind."""

    name, text_dim, length = "umt5", 32, 16

    def to(self, device: object) -> None: ...

    def encode(self, prompts: list[str]) -> torch.Tensor:
        features = torch.zeros(len(prompts), self.length, self.text_dim)
        for row, prompt in zip(features, prompts, strict=True):
            for at, letter in enumerate(f"<{prompt}"[: self.length]):
                row[at] = torch.randn(self.text_dim, generator=torch.Generator().manual_seed(ord(letter)))
        return features


@pytest.fixture
def with_text(dataset: Path) -> Iterator[Path]:
    encode_dataset(LocalFiles(dataset), make_encoders(DctCodec(), Letters(), "cpu", "float32", images=("hint",)))
    yield dataset


def test_stored_text_is_what_its_encoder_would_say(with_text: Path, tmp_path: Path) -> None:
    cfg, encoder = small_config(with_text, tmp_path, latents=True), Letters()
    module = TextureModule.of(cfg)
    for batch in batches(with_text, DctCodec()):
        assert isinstance(batch.text, TextFeatures)
        for kept in ([True, True], [False, True]):
            prompts = [caption if keep else "" for caption, keep in zip(batch.captions, kept, strict=True)]
            assert torch.equal(batch.text.tokens(kept), encoder.encode(prompts))
        assert torch.equal(text_features(batch, [True, False], module.encode_text), batch.text.tokens([True, False]))


def with_encoder(cfg: TrainConfig, text_encoder: str) -> TrainConfig:
    """Its weights are nowhere to be had."""
    latents = replace(cfg.latents, text_encoder=text_encoder, text_encoder_path="no/encoder")
    return replace(cfg, latents=latents, validation=replace(cfg.validation, every=0))


def test_a_run_on_stored_text_loads_no_encoder(with_text: Path, tmp_path: Path) -> None:
    cfg = with_encoder(small_config(with_text, tmp_path / "run", latents=True), "umt5")
    assert read_card(train(cfg).checkpoint).text_encoder == "umt5"


def test_stored_text_of_another_encoder_is_refused(with_text: Path, tmp_path: Path) -> None:
    cfg = small_config(with_text, tmp_path / "run", latents=True)
    with pytest.raises(UserError, match=r"captions were encoded by umt5, this run has none; set latents\.text_encoder"):
        train(with_encoder(cfg, "none"))
    narrow = replace(cfg, model=replace(cfg.model, text_dim=16))
    with pytest.raises(UserError, match=r"umt5 have 32 dimensions, the model takes 16; set model\.text_dim 32"):
        train(with_encoder(narrow, "umt5"))


def test_datasets_whose_latents_do_not_mix_are_named(tmp_path: Path) -> None:
    for name, size in (("a", 16), ("b", 32)):
        write_dataset(tmp_path / name, ENTRIES[:1], size, 32)
        encode_dataset(LocalFiles(tmp_path / name), dct())
    cfg = DataConfig(directories={str(tmp_path / "a"): 1.0, str(tmp_path / "b"): 1.0}, batch_size=2, latents=True)
    with pytest.raises(UserError, match=r"/a and .*/b do not mix: mv_\w+ is \[\d+, 4, 2, 2\] and \[\d+, 4, 4, 4\]"):
        BatchStream(cfg, seed=0, codec=DctCodec())


def test_the_command(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["encode", str(dataset), "--codec", "dct", "--parts", "2", "--log", "json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["event"] == "encoded_part"
    assert main([*words, "--part", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["event"] == "encoded" and (Path(told["latents"]) / RECORD).is_file()
    assert main(["encode", str(dataset), "--codec", "dct", "--part", "2", "--parts", "2"]) == 2
    assert main(["encode", str(dataset / "none"), "--codec", "dct"]) == 1
    shard_path(dataset, "textured-000000.tar").unlink()
    assert main(["encode", str(dataset), "--codec", "dct", "--dtype", "float32"]) == 1
    assert "textured-000000.tar" in capsys.readouterr().err
