"""Write the latents of a dataset: a tar per shard, its record beside it, `latents.json` last. Every file is written
beside, flushed and renamed (or uploaded whole), so that a run that was killed goes on with the next shard."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import safetensors.torch
import torch
import webdataset as wds
from torch import Tensor

from schemas.codec import decode
from schemas.dataset import ShardRecord, canonical_json, code_version
from schemas.errors import UsageError, UserError
from schemas.sample import TextureSample
from schemas.storage import Location, ObjectPath, file_sha256, location, refuse_links, write_file
from training.conditions.images import find_image
from training.data.batch import to_model
from training.data.dataset_files import DatasetFiles, read_json
from training.data.latent_shards import (
    EMPTY_TEXT,
    RECORD,
    LatentHeader,
    LatentShard,
    codec_header,
    parse_header,
    parse_shard,
    record_json,
    stored_name,
    uv_name,
)
from training.data.mixture import shards_by_regime
from training.data.shard_reader import ShardReader
from training.diffusion.encoders import LatentCodec, TextEncoder
from training.diffusion.latents import surface_points
from training.maps import RELEASED_MAPS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """Codec and text encoder, and the header that describes them."""

    codec: LatentCodec
    text_encoder: TextEncoder | None
    """None: captions are not encoded."""
    device: str
    header: LatentHeader


def make_encoders(
    codec: LatentCodec,
    text_encoder: TextEncoder | None,
    device: str,
    dtype: str,
    images: Sequence[str] = (),
    maps: Sequence[str] = RELEASED_MAPS,
) -> Encoders:
    """Describe what encodes. images: also these condition images, for models that take them; those that follow the
    given views for each view and for all. maps: these UV maps, for models that generate them."""
    header = codec_header(codec, dtype, images, maps)
    if text_encoder is not None:
        length = text_encoder.encode([""]).shape[1]
        header = replace(header, text_encoder=text_encoder.name, text_dim=text_encoder.text_dim, text_length=length)
    return Encoders(codec=codec, text_encoder=text_encoder, device=device, header=header)


def encode_dataset(
    files: DatasetFiles,
    encoders: Encoders,
    part: int = 0,
    parts: int = 1,
    notify: Callable[[int, int], None] = lambda done, of: None,
) -> Location | None:
    """Encode a dataset and return the folder of its latents; None if other parts are not done yet. Finished shards that
    still fit the dataset are kept.

    part, parts: encode every `parts`-th shard only; the process that finds all done writes the record. notify: called
    with the number of finished shards and of all.

    Raises:
        UserError: there is no dataset, or a shard of it is missing or damaged.
    """
    if not 0 <= part < parts:
        raise UsageError(f"part {part} of {parts}: parts count from 0")
    refuse_links(location(files.location))
    by_regime = shards_by_regime(files.folder)
    sources = [shard for group in by_regime.values() for shard in group]
    folder = location(files.location) / encoders.header.folder
    folder.mkdir(parents=True, exist_ok=True)
    if encoders.text_encoder is not None:
        write_file(folder / EMPTY_TEXT, _tensors({"caption": _features("", encoders)}, encoders.header))
    mine = sources[part::parts]
    for done, source in enumerate(mine):
        notify(done, len(mine))
        if finished(folder, source, encoders.header) is None:
            _encode_shard(files, folder, source, encoders)
    notify(len(mine), len(mine))
    shards = [shard for source in sources if (shard := finished(folder, source, encoders.header))]
    if len(shards) < len(sources):
        return None
    write_file(folder / RECORD, record_json(encoders.header, shards, code_version()))
    return folder


def finished(folder: Location, source: ShardRecord, header: LatentHeader) -> LatentShard | None:
    """Return the record of a shard's latents, if they are whole and of that source and header. In an object store their
    size suffices: an object is whole or not there, and training checks the rest."""
    path = _record_path(folder, source.name)
    try:
        entries = read_json(path.read_bytes(), str(path))
        shard = parse_shard(entries["shard"])  # type: ignore[arg-type]
        same = parse_header(entries["header"]) == header  # type: ignore[arg-type]
    except (FileNotFoundError, UserError, KeyError, TypeError, ValueError):
        return None  # absent or damaged: the shard is done again
    tar = folder / shard.name
    whole = tar.is_file() and tar.stat().st_size == shard.bytes
    whole = whole and (isinstance(tar, ObjectPath) or file_sha256(tar) == shard.sha256)
    return shard if same and whole and shard.source_sha256 == source.sha256 else None


def _record_path(folder: Location, shard: str) -> Location:
    return folder / f"{shard}.json"


def _encode_shard(files: DatasetFiles, folder: Location, source: ShardRecord, encoders: Encoders) -> None:
    _record_path(folder, source.name).unlink(missing_ok=True)
    reader = ShardReader(files, "shards", (source,), 1, decode)
    shapes: dict[str, list[int]] = {}

    def samples() -> Iterator[dict[str, str | bytes]]:
        for index in range(source.count):
            sample = reader(0, index)
            fields, found = encode_sample(sample, encoders)
            if shapes and found != shapes:
                raise UserError(f"{reader.name(0)}: sample {sample.uid} has latents {found}, others {shapes}")
            shapes.update(found)
            yield {"__key__": sample.uid, **fields}

    data = latent_tar(samples())
    write_file(folder / source.name, data)
    shard = LatentShard(
        name=source.name,
        regime=source.regime,
        source_sha256=source.sha256,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        count=source.count,
        shapes=shapes,
    )
    entries = {"header": asdict(encoders.header), "shard": asdict(shard)}
    write_file(_record_path(folder, source.name), canonical_json(entries) + b"\n")


def latent_tar(samples: Iterable[Mapping[str, str | bytes]]) -> bytes:
    """Write samples (`__key__`, and their fields by extension) as a tar. Equal samples give equal bytes: no times, no
    owners, as `schemas.shards.write_tar` has it for shards of images."""
    tar = io.BytesIO()
    with wds.TarWriter(tar, encoder=False, mtime=0, user="", group="", mode=0o644, format="PAX_FORMAT") as writer:
        for sample in samples:
            writer.write(sample)
    return tar.getvalue()


@torch.no_grad()
def encode_sample(sample: TextureSample, encoders: Encoders) -> tuple[dict[str, bytes], dict[str, list[int]]]:
    """Encode a sample: fields of its latents, and the shape of each tensor."""
    batch = to_model(sample, maps=encoders.header.maps)
    means: dict[str, Tensor] = {}
    spreads: dict[str, Tensor] = {}
    for name, maps in (("mv", batch.mv), ("uv", batch.uv)):
        if maps is None:
            continue
        images = {f"{name}_position": (maps.position + 1) / 2, f"{name}_normal": (maps.normal + 1) / 2}
        names = ["mv_rgb"] if name == "mv" else [uv_name(each) for each in encoders.header.maps]
        images |= dict(zip(names, maps.rgb.split(maps.position.shape[1], dim=1), strict=True))
        for kind, image in images.items():
            posterior = encoders.codec.posterior(image.to(encoders.device))
            means[kind] = posterior.mean[0]
            spread = posterior.log_variance[0]
            constant = bool((spread == spread.flatten()[0]).all())  # of a codec without variance: one number suffices
            spreads[kind] = spread[:1, :1, :1, :1] if constant else spread
        means[f"{name}_points"] = surface_points(maps.position, maps.normal, encoders.codec.downscale)[0]
    meta = {"uid": sample.uid, "regime": str(sample.regime), "caption": batch.captions[0]}
    fields = {
        "json": canonical_json(meta),
        "mean.safetensors": _tensors(means, encoders.header),
        "log_variance.safetensors": _tensors(spreads, encoders.header),
    }
    for name, tensors in _condition_images(sample, encoders).items():
        fields[f"{name}.safetensors"] = _tensors(tensors, encoders.header)
    if encoders.text_encoder is not None:
        fields["text.safetensors"] = _tensors({"caption": _features(batch.captions[0], encoders)}, encoders.header)
    return fields, {name: list(mean.shape) for name, mean in means.items()}


def _condition_images(sample: TextureSample, encoders: Encoders) -> dict[str, dict[str, Tensor]]:
    """Encode each condition image: those that follow views for each one given alone, and for all together."""
    views, found = len(sample.views.rgb), dict[str, dict[str, Tensor]]()
    for image in map(find_image, encoders.header.images):
        alone = [(view,) for view in range(views)] if image.follows_views else []
        for given in (*alone, tuple(range(views))):
            batch = to_model(sample, given, (image.name,))
            for branch, maps in (("mv", batch.mv), ("uv", batch.uv)):
                if maps and image.name in maps.conditions:
                    latents = image.encode(maps.conditions[image.name].to(encoders.device), encoders.codec)
                    _, key = stored_name(image.name, branch, given, views).split("/")
                    found.setdefault(image.name, {})[key] = latents[0]
    return found


def _features(prompt: str, encoders: Encoders) -> Tensor:
    """Encode a prompt: features [tokens, dim], without the zeros at the end."""
    assert encoders.text_encoder is not None
    features = encoders.text_encoder.encode([prompt])[0]
    used = features.abs().sum(dim=1).nonzero()
    return features[: int(used[-1]) + 1 if len(used) else 1]


def _tensors(tensors: dict[str, Tensor], header: LatentHeader) -> bytes:
    dtype = DTYPES[header.dtype]
    return safetensors.torch.save({name: t.to("cpu", dtype).contiguous() for name, t in tensors.items()})
