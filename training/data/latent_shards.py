"""Stored latents of a dataset: `DATASET/latents/CODEC/` holds one tar per shard and `latents.json`, which is written
last and without which they do not count. Tensors are safetensors, nothing is unpickled.

A sample has `mean.safetensors` and `log_variance.safetensors` (`mv_rgb`, `mv_position`, `mv_normal` [z, V, h, w] and
`uv_*` [z, 1, H, W], normalised; `uv_NAME` for each further map), the first of them `mv_points` and `uv_points` too
(`BranchLatents.points`), `json` (uid, regime, caption), `text.safetensors` if captions were encoded, and
`NAME.safetensors` for each condition image that was: `mv` and `uv`, or, where it follows the given views, `mv_GIVEN`
and `uv_GIVEN` for each view given alone, and for all."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from schemas.dataset import ShardRecord, canonical_json
from schemas.errors import UserError
from schemas.images import field_bytes
from schemas.sample import Regime
from training.conditions.images import HINT, find_image
from training.data.batch import LatentBatch, TextFeatures
from training.data.dataset_files import DatasetFiles, read_json
from training.diffusion.encoders import KEPT, RGB_TO_YCBCR, ZIGZAG, LatentCodec, Posterior, WanCodec
from training.diffusion.flow import seeded
from training.diffusion.latents import BranchLatents, map_tensors
from training.maps import BASE_COLOR, RELEASED_MAPS, check_maps

FORMAT = 3
"""Version of latent shards; 3: made from samples of schema version 3."""
RECORD = "latents.json"
EMPTY_TEXT = "empty.safetensors"
POINTS = 4
"""Channels of `BranchLatents.points`."""
DRAW_STREAM = 11
"""Keeps posterior draws apart from other draws by (seed, sample number)."""
CODEC_FIELDS = ("codec", "weights_sha256", "scaling", "channels", "downscale", "format")
"""Fields of a header that describe the codec, not what was encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentHeader:
    """Codec and text encoder of stored latents. The codec must be that of the training run."""

    codec: str
    weights_sha256: str
    """Hash of the codec's weights as loaded, or of the constants of one without weights."""
    scaling: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and standard deviation by channel that the latents were normalised with."""
    channels: int
    downscale: int
    dtype: str = "bfloat16"
    """Type of the stored numbers."""
    text_encoder: str = ""
    """Empty: captions were not encoded."""
    text_dim: int = 0
    text_length: int = 0
    """Tokens that the model gets, zeros included."""
    view_hint: bool = False
    """View hints were encoded, for models that take them."""
    condition_images: tuple[str, ...] = ()
    """Other condition images that were."""
    maps: tuple[str, ...] = RELEASED_MAPS
    """UV maps that were."""
    format: int = FORMAT

    @property
    def images(self) -> tuple[str, ...]:
        """Return the names of all encoded condition images."""
        return (HINT.name,) * self.view_hint + self.condition_images

    @property
    def folder(self) -> str:
        """Return the folder of the latents in their dataset."""
        return f"latents/{self.codec}-{self.weights_sha256[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShard(ShardRecord):
    """A tar of latents as recorded."""

    source_sha256: str
    """Hash of the shard that it was made from."""
    shapes: dict[str, list[int]]
    """Shape of each tensor of a sample."""


def codec_header(
    codec: LatentCodec, dtype: str = "bfloat16", images: Sequence[str] = (), maps: Sequence[str] = RELEASED_MAPS
) -> LatentHeader:
    """Describe a codec, without text encoder, and the condition images and UV maps that it encodes, by name."""
    digest = hashlib.sha256()
    if isinstance(codec, WanCodec):
        for name, tensor in sorted(codec.vae.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        config = codec.vae.config
        mean, std = tuple(config.latents_mean), tuple(config.latents_std)
    else:
        mean, std = tuple(codec.MEAN), tuple(codec.STD)  # type: ignore[attr-defined]
        digest.update(canonical_json([RGB_TO_YCBCR, ZIGZAG, KEPT, mean, std]))
    return LatentHeader(
        codec=codec.name,
        weights_sha256=digest.hexdigest(),
        scaling=(tuple(map(float, mean)), tuple(map(float, std))),
        channels=codec.channels,
        downscale=codec.downscale,
        dtype=dtype,
        view_hint=HINT.name in images,
        condition_images=tuple(name for name in dict.fromkeys(images) if name != HINT.name),
        maps=check_maps(maps),
    )


def record_json(header: LatentHeader, shards: list[LatentShard], code_version: str) -> bytes:
    """Return the text of `latents.json`, with a hash of its contents."""
    entries: dict[str, Any] = {"header": asdict(header), "shards": [asdict(shard) for shard in shards]}
    entries["code_version"] = code_version
    entries["sha256"] = hashlib.sha256(canonical_json(entries)).hexdigest()
    return json.dumps(entries, sort_keys=True, indent=1).encode() + b"\n"


def parse_record(data: bytes, name: str) -> tuple[LatentHeader, dict[str, LatentShard]]:
    """Return header and shards by name. Raises UserError naming the file if its text has changed."""
    entries = read_json(data, name)
    try:
        claimed = entries.pop("sha256")
        if hashlib.sha256(canonical_json(entries)).hexdigest() != claimed:
            raise ValueError("its text has changed")
        return parse_header(entries["header"]), {s.name: s for s in map(parse_shard, entries["shards"])}  # type: ignore
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: damaged ({error}); delete it and run `seqtex encode` again") from error


def parse_header(entries: dict[str, Any]) -> LatentHeader:
    """Read a header. Raises KeyError, TypeError or ValueError if it is damaged."""
    mean, std = entries["scaling"]
    images = tuple(entries.get("condition_images", ()))
    maps = check_maps(entries.get("maps", RELEASED_MAPS))
    read = {"scaling": (tuple(mean), tuple(std)), "condition_images": images, "maps": maps}
    return LatentHeader(**(entries | read))


def parse_shard(entries: dict[str, Any]) -> LatentShard:
    """Read the record of a shard. Raises KeyError, TypeError or ValueError if it is damaged."""
    return LatentShard(**(entries | {"regime": Regime(entries["regime"])}))


def find_latents(
    files: DatasetFiles, codec: LatentHeader, sources: list[ShardRecord]
) -> tuple[LatentHeader, dict[str, LatentShard]]:
    """Find the latents of a dataset that fit `codec` and the shards `sources` of its ledger.

    Raises:
        UserError: there are none, or they were made by another codec or from another state of the dataset.
    """
    place = f"{files.location}/{codec.folder}/{RECORD}"
    again = f"run `seqtex encode {files.location} --codec {codec.codec}` (what is done already is kept)"
    try:
        data = files.read(f"{codec.folder}/{RECORD}")
    except FileNotFoundError as error:
        raise UserError(
            f"{place}: no finished latents by codec {codec.codec} with the weights {codec.weights_sha256[:12]}"
            f"{_others(files)}; {again}, or set data.latents false"
        ) from error
    header, shards = parse_record(data, place)
    redo = again.partition(" (")[0]
    for name in CODEC_FIELDS:
        if getattr(header, name) != getattr(codec, name):
            raise UserError(f"{place}: {name} is {getattr(header, name)}, this run has {getattr(codec, name)}; {redo}")
    if codec.view_hint and not header.view_hint:
        raise UserError(
            f"{place}: view_hint is False, this run has True; {redo} with --view_hint, which encodes all anew, or set "
            "model.view_hint false"
        )
    for what, option in (("condition image", "condition_images"), ("map", "maps")):
        if missing := [name for name in getattr(codec, option) if name not in getattr(header, option)]:
            raise UserError(
                f"{place}: has no {what} {', '.join(missing)}; {redo} with --{option}, which encodes all anew, or "
                "train from images"
            )
    for source in sources:
        if source.name not in shards:
            raise UserError(f"{place}: the dataset has new shards, {source.name} is not in it; {again}")
        if shards[source.name].source_sha256 != source.sha256:
            raise UserError(f"{place}: the dataset has changed, {source.name} is another shard now; {again}")
    return header, shards


def _others(files: DatasetFiles) -> str:
    folder = files.folder / "latents"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return f", there are {', '.join(names)}" if names else ""


@dataclass(frozen=True, slots=True)
class LatentDecoder:
    """Decodes the fields of a stored sample to a batch of one: posterior means, as stored."""

    header: LatentHeader
    empty: Tensor | None
    """Features of the empty prompt, if captions were encoded."""
    with_variance: bool
    """Read what a draw needs."""
    images: tuple[str, ...] = ()
    """Condition images to read."""
    maps: tuple[str, ...] = RELEASED_MAPS
    """UV maps to read."""

    def __call__(self, fields: Mapping[str, bytes]) -> "StoredLatents":
        """Raises ValueError naming the field that is missing or damaged."""
        meta = read_meta(fields)
        regime = Regime(meta["regime"])
        branches = ("mv", "uv") if regime is Regime.TEXTURED else ("mv",)
        kinds = dict.fromkeys(("rgb", "position", "normal"), self.header.channels) | {"points": POINTS}
        depths = {f"{branch}_{kind}": depth for branch in branches for kind, depth in kinds.items()}
        if textured := regime is Regime.TEXTURED:
            depths |= {uv_name(name): self.header.channels for name in self.header.maps}
        mean = _read_images(fields, "mean.safetensors", depths)
        text = None
        if self.empty is not None:
            own = read_tensors(fields, "text.safetensors")["caption"]
            text = TextFeatures(captions=(own,), empty=self.empty, length=self.header.text_length)
        batch = LatentBatch(
            mv=_branch(mean, "mv", mean["mv_rgb"]),
            uv=_branch(mean, "uv", torch.cat([mean[uv_name(name)] for name in self.maps], dim=1)) if textured else None,
            regime=regime,
            uids=(meta["uid"],),
            captions=(meta["caption"],),
            text=text,
        )
        spread = read_tensors(fields, "log_variance.safetensors") if self.with_variance else {}
        if spread and textured:
            whole = [spread[uv_name(name)].expand_as(mean["uv_rgb"]) for name in self.maps]
            spread["uv_rgb"] = torch.cat(whole, dim=1)
        conditions: dict[str, Tensor] = {}
        for name in self.images:
            depths = condition_depths(name, branches, mean["mv_rgb"].shape[1], self.header.channels)
            found = _read_images(fields, f"{name}.safetensors", depths)
            conditions |= {f"{name}/{key}": value[None] for key, value in found.items()}
        return StoredLatents(
            batch=batch,
            log_variance={name: value[None].float() for name, value in spread.items()},
            conditions=conditions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLatents:
    """The latents of one sample, as numbers of the stored type (`training.data.batch.widened`)."""

    batch: LatentBatch
    """A batch of one, without condition images."""
    log_variance: dict[str, Tensor] = field(default_factory=dict)
    """By tensor name, with a batch of one; empty if no draw is wanted."""
    conditions: dict[str, Tensor] = field(default_factory=dict)
    """Condition images by `stored_name` (`hint/mv_0`, `mask/uv`), with a batch of one; empty if none are wanted."""

    def has_conditions(self, images: Sequence[str], given: tuple[int, ...]) -> bool:
        """Return whether these images are here, those that follow views for these given ones."""
        needed = [name for name in images if given or not find_image(name).follows_views]
        return all(stored_name(name, "mv", given, self.batch.mv.rgb.shape[2]) in self.conditions for name in needed)

    def conditioned(self, batch: LatentBatch, images: Sequence[str], given: tuple[int, ...]) -> LatentBatch:
        """Add condition images to `batch`, which is this sample: those that follow views for these given ones, zeros if
        no view is given. Raises UserError if one is not here."""

        def add(branch: BranchLatents, name: str) -> BranchLatents:
            found: dict[str, Tensor] = {}
            for image in map(find_image, images):
                if image.place == "given views" and name == "uv":
                    continue
                key = stored_name(image.name, name, given, batch.mv.rgb.shape[2])
                if image.follows_views and not given:
                    channels = image.latent_channels(branch.rgb.shape[1])
                    found[image.name] = torch.zeros_like(branch.rgb[:, :1]).repeat(1, channels, 1, 1, 1)
                elif key in self.conditions:
                    found[image.name] = self.conditions[key]
                else:
                    raise UserError(
                        f"no stored {image.name} of views {', '.join(map(str, given))}: latents have those of one view "
                        "and of all; train tasks like some2tex from images, or without model.view_hint"
                    )
            return replace(branch, conditions=found)

        return replace(batch, mv=add(batch.mv, "mv"), uv=add(batch.uv, "uv") if batch.uv else None)

    def drawn(self, seed: int, sample: int) -> LatentBatch:
        """Draw the colours from their posterior; geometry keeps its mean, as a condition should. Equal seeds and sample
        numbers give equal draws."""
        generator = seeded(seed, sample, DRAW_STREAM)

        def draw(branch: BranchLatents, name: str) -> BranchLatents:
            mean = branch.rgb.float()
            posterior = Posterior(mean=mean, log_variance=self.log_variance[name].expand_as(mean))
            return replace(branch, rgb=posterior.draw(generator))

        mv = draw(self.batch.mv, "mv_rgb")
        uv = draw(self.batch.uv, "uv_rgb") if self.batch.uv else None
        return replace(self.batch, mv=mv, uv=uv)


def given_name(given: tuple[int, ...], views: int) -> str:
    """Name the stored images of these given views: the number of the one that is given, or `all`."""
    return "all" if len(given) == views else "_".join(map(str, given))


def stored_name(image: str, branch: str, given: tuple[int, ...], views: int) -> str:
    """Name a stored condition image of a branch, `mv` or `uv`."""
    return f"{image}/{branch}" + (f"_{given_name(given, views)}" if find_image(image).follows_views else "")


def condition_depths(name: str, branches: Sequence[str], views: int, codec_channels: int) -> dict[str, int]:
    """Return the channels of each stored tensor of a condition image, by its name."""
    image = find_image(name)
    if image.place == "given views":
        return {"mv": codec_channels}
    of_views = [f"_{given}" for given in (*range(views), "all")] if image.follows_views else [""]
    channels = image.latent_channels(codec_channels)
    return {f"{branch}{given}": channels for branch in branches for given in of_views}


def rotate_latents(batch: LatentBatch, shift: int) -> LatentBatch:
    """Change the order of the views: view i becomes view (i + shift) modulo their number."""
    return replace(batch, mv=map_tensors(batch.mv, lambda x: x.roll(shift, dims=2))) if shift else batch


def uv_name(name: str) -> str:
    """Name the stored latents of a UV map."""
    return "uv_rgb" if name == BASE_COLOR else f"uv_{name}"


def _branch(mean: dict[str, Tensor], name: str, rgb: Tensor) -> BranchLatents:
    geometry = torch.cat([mean[f"{name}_position"], mean[f"{name}_normal"]])
    return BranchLatents(
        rgb=rgb[None],
        geometry=geometry[None],
        points=mean[f"{name}_points"][None],
    )


def _read_images(fields: Mapping[str, bytes], name: str, depths: dict[str, int]) -> dict[str, Tensor]:
    """Read tensors [depth, frames, h, w]. Raises ValueError if others than these are there."""
    tensors = read_tensors(fields, name)
    if {key: len(tensor) for key, tensor in tensors.items() if tensor.ndim == 4} != depths:
        raise ValueError(f"field {name!r} holds { {key: tuple(tensor.shape) for key, tensor in tensors.items()} }")
    return tensors


def read_meta(fields: Mapping[str, bytes]) -> dict[str, str]:
    """Read uid, regime and caption of a sample. Raises ValueError if they are missing or damaged."""
    try:
        meta = json.loads(field_bytes(fields, "json"))
        if {name: type(value) for name, value in meta.items()} == dict.fromkeys(("uid", "regime", "caption"), str):
            return meta
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"field 'json' is damaged: {error}") from error
    raise ValueError("field 'json' does not hold uid, regime and caption")


def read_tensors(fields: Mapping[str, bytes], name: str) -> dict[str, Tensor]:
    """Read a field of tensors. Raises ValueError if it is missing or damaged."""
    try:
        return safetensors.torch.load(field_bytes(fields, name))
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"field {name!r} is damaged: {error}") from error


def read_empty_text(files: DatasetFiles, header: LatentHeader) -> Tensor | None:
    """Read the features of the empty prompt [tokens, dim]; None if captions were not encoded."""
    if not header.text_encoder:
        return None
    name = f"{header.folder}/{EMPTY_TEXT}"
    try:
        return read_tensors({EMPTY_TEXT: files.read(name)}, EMPTY_TEXT)["caption"].float()
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{files.location}/{name}: missing or damaged ({error}); run `seqtex encode` again") from error
