"""Batches travel from the loader to the device in narrow numbers, and are there what they always were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.codec import decode, encode
from schemas.sample import Regime, TextureSample
from tests.support.small_dataset import small_sample, write_dataset
from training.data.batch import Batch, LatentBatch, Prepared, mapped, stack_samples, to_device
from training.data.datamodule import BatchStream
from training.data.dataset_files import LocalFiles
from training.data.encode_latents import encode_dataset, make_encoders
from training.data.mixture import DataConfig
from training.diffusion.encoders import DctCodec
from training.diffusion.latents import stack


def stored(seed: int) -> TextureSample:
    """A sample as it comes out of a shard."""
    return decode(encode(small_sample("a", Regime.TEXTURED, seed)))


def tensors(batch: Batch | LatentBatch) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(batch, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def bytes_of(batch: Batch | LatentBatch) -> int:
    return sum(tensor.nbytes for tensor in tensors(batch))


def test_images_are_the_same_to_the_last_bit_in_fewer_bytes() -> None:
    samples = [stored(seed) for seed in (1, 2)]
    narrow = stack_samples([Prepared(sample=one) for one in samples])
    assert narrow.mv.rgb.dtype == torch.uint8 and narrow.mv.position.dtype == torch.int16
    wide = to_device(narrow, torch.device("cpu"))
    assert all(tensor.dtype == torch.float32 for tensor in tensors(wide))
    views, maps = [sample.views for sample in samples], [sample.uv for sample in samples if sample.uv]
    assert wide.uv is not None
    for name in ("rgb", "position", "normal"):
        assert torch.equal(getattr(wide.mv, name), stack([getattr(each, name) for each in views]))
        expected = stack([getattr(each, name) for each in maps], upside_down=True)[:, None]
        assert torch.equal(getattr(wide.uv, name), expected)
    assert bytes_of(narrow) * 36 == bytes_of(wide) * 21, "a pixel takes 3 + 6 + 12 bytes instead of 36"


def test_positions_that_no_shard_holds_are_not_rounded() -> None:
    sample = stored(1)
    odd = replace(sample, views=replace(sample.views, position=sample.views.position * np.float32(0.7)))
    batch = stack_samples([Prepared(sample=sample), Prepared(sample=odd)])
    assert batch.mv.position.dtype == torch.float32
    assert torch.equal(batch.mv.position, stack([sample.views.position, odd.views.position]))


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 2), ("float32", 1)])
def test_latents_travel_as_they_are_stored(tmp_path: Path, dtype: str, share: int) -> None:
    write_dataset(tmp_path, [[(f"t{number}", Regime.TEXTURED) for number in range(2)]])
    encode_dataset(LocalFiles(tmp_path), make_encoders(DctCodec(), None, "cpu", dtype))
    stream = BatchStream(DataConfig(directory=tmp_path, batch_size=2, latents=True), seed=0, codec=DctCodec())
    narrow = stream[0]
    assert {tensor.dtype for tensor in tensors(narrow)} == {getattr(torch, dtype)}
    wide = to_device(narrow, torch.device("cpu"))
    assert {tensor.dtype for tensor in tensors(wide)} == {torch.float32}
    assert bytes_of(wide) == share * bytes_of(narrow)


def test_a_loader_for_a_gpu_can_pin_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = stack_samples([Prepared(sample=stored(1))])
    torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert len(pinned) == 6, "rgb, position and normal of views and UV map"
