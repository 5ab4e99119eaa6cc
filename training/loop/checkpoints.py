"""Finished checkpoints, which sampling needs: a model directory in the released layout plus `seqtex.json`, in its place
as a whole. The averaged weights of a trainer state are read as one, too."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from schemas.dataset import code_version
from schemas.errors import UserError
from schemas.storage import file_sha256, write_file
from training.diffusion.encoders import (
    DctCodec,
    LatentCodec,
    TextEncoder,
    check_channels,
    make_codec,
    make_text_encoder,
)
from training.diffusion.flow import SHIFT
from training.loop.states import is_sharded, read_state
from training.model.backbones.wan import WAN21_1P3B
from training.model.files import replaced_directory
from training.model.fsdp import check_whole, load_whole
from training.model.init import ModelConfig, make_model
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import check_frozen, frozen_fingerprint, is_released, write_model

CARD = "seqtex.json"
CARD_ENTRY = "card"
"""Entry of a trainer state: the card of the checkpoint that its averaged weights make."""
AVERAGE = "AveragedWeights"
"""Entry of the averaged weights among those of the callbacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCard:
    """The content of `seqtex.json`: what sampling must know beside the weights. (Not the card of a dataset.)"""

    preset: str
    codec: str
    """`dct` or `wan`."""
    codec_path: str = ""
    """Directory or hub repository of the Wan VAE."""
    text_encoder: str = "none"
    """`none` or `umt5`."""
    text_encoder_path: str = ""
    views: int
    view_resolution: int
    """Pixels."""
    uv_resolution: int | None
    """Texels; None where training saw no UV map."""
    shift: float
    """Shift of the noise levels."""
    image_dropout: float = 0.0
    """Share of samples that were trained without their given views, for image guidance."""
    latent_mean: tuple[float, ...] = ()
    """Normalisation of the DCT codec when the weights were trained; empty for a codec with its own statistics."""
    latent_std: tuple[float, ...] = ()
    steps: int
    rig: dict[str, Any] = field(default_factory=dict)
    """Options of `geometry.cameras.RigConfig`: the cameras that the views were made with, their jitter left out."""
    code_version: str = ""
    validation_loss: float | None = None
    """Loss of the validation samples at fixed noise levels; None: not measured."""
    weights_sha256: dict[str, str] = field(default_factory=dict)
    """By file of weights; empty in checkpoints of earlier versions."""


RELEASED_CARD = CheckpointCard(
    preset="released",
    codec="wan",
    codec_path=WAN21_1P3B.hub,
    text_encoder="umt5",
    text_encoder_path=WAN21_1P3B.hub,
    views=4,
    view_resolution=512,
    uv_resolution=1024,
    shift=SHIFT,
    steps=0,
)
"""The card that goes with the released weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A finished checkpoint, ready to sample."""

    model: SeqTexTransformer3DModel
    codec: LatentCodec
    text_encoder: TextEncoder
    card: CheckpointCard


def save_checkpoint(directory: Path, model: SeqTexTransformer3DModel, card: CheckpointCard) -> None:
    """Write a checkpoint, whole or not at all; an earlier one of that name is replaced."""
    with replaced_directory(directory) as fresh:
        write_model(model, fresh)
        sums = {file.name: file_sha256(file) for file in sorted(fresh.glob("*.safetensors"))}
        write_file(fresh / CARD, json.dumps(card_entries(card) | {"weights_sha256": sums}, indent=2).encode() + b"\n")


def load_checkpoint(
    path: Path,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    tiling: bool = False,
    wan: str | None = None,
) -> Checkpoint:
    """Load a finished checkpoint, a directory of released weights, which has no card, or a trainer state.

    path: a directory, or a trainer state. wan: where VAE and text encoder are, if not where the card says.
    Raises UserError naming the file that is missing, damaged, or of another codec."""
    model, card = load_weights(path, dtype, with_card=True)
    assert card is not None
    if wan is not None:
        card = replace(card, codec_path=wan, text_encoder_path=wan)
    codec = make_codec(card.codec, card.codec_path, device, dtype=dtype, tiling=tiling)
    check_channels(codec.layout, card.codec, model.config["in_channels"])
    if latent_statistics(codec) != (card.latent_mean, card.latent_std):
        raise UserError(f"{path}: trained with other latent statistics than this version's {card.codec}; train again")
    model.requires_grad_(False).eval()
    torch.nn.Module.to(model, device)
    text_dim = int(model.config["text_dim"])
    text_encoder = make_text_encoder(card.text_encoder, card.text_encoder_path, text_dim, device, dtype=dtype)
    return Checkpoint(model=model, codec=codec, text_encoder=text_encoder, card=card)


def check_weights(directory: Path, card: CheckpointCard | None) -> None:
    """Raise UserError naming a file of weights that is not as it was written."""
    for name, digest in (card.weights_sha256 if card else {}).items():
        file = directory / Path(name).name
        if file.is_file() and file_sha256(file) != digest:
            raise UserError(
                f"{file}: damaged, or changed since it was written (its sha256 is not the one in {CARD}); copy the "
                "checkpoint again"
            )


def model_of_state(path: Path, state: Mapping[str, Any]) -> SeqTexTransformer3DModel:
    """Make the model of a trainer state with its averaged weights, or those that train where none are averaged. Its
    frozen weights are read from where the run started. Raises UserError if they are missing or others."""
    options = state["hyper_parameters"]
    try:
        plain = options["model"].items()  # sequences are lists in it
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain}
        cfg = ModelConfig(**given)
        saved = {**state["state_dict"], **state.get("callbacks", {}).get(AVERAGE, {})}
        seed = int(options["seed"])
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged, or of another version ({error!r}); give another trainer state") from error
    model = make_model(replace(cfg, compile_blocks=False, activation_checkpointing="none"), seed)
    check_frozen(state, frozen_fingerprint(model))
    trained = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    average = {name: saved[name] for name in saved.keys() & trained.keys()}
    check_whole(trained, average)
    load_whole(trained, average)
    return model


def load_weights(
    path: str | Path, dtype: torch.dtype = torch.float32, *, with_card: bool
) -> tuple[SeqTexTransformer3DModel, CheckpointCard | None]:
    """Load a model, and with_card its card, without which it cannot be sampled.

    path: a checkpoint, a directory or hub repository of weights, or a trainer state. Raises UserError as
    `read_state`, `model_of_state` and `read_card`, and if a card is missing."""
    place = Path(path)
    if not place.is_file() and not is_sharded(place):
        card = read_card(place) if with_card else None
        check_weights(place, card)
        return SeqTexTransformer3DModel.from_pretrained(path, torch_dtype=dtype), card
    state = read_state(place)
    entries = state.get(CARD_ENTRY)
    if with_card and not isinstance(entries, dict):
        raise UserError(
            f"{place}: lacks the sizes of views and UV map, which only `seqtex train` records; export its weights in "
            "the released layout (`seqtex weights`)"
        )
    card = card_of(entries, place) if with_card else None
    model = model_of_state(place, state)
    return model.filled(model.state_dict(), dtype), card


def read_card(directory: Path) -> CheckpointCard:
    path = directory / CARD
    if not path.is_file() and is_released(directory):
        return RELEASED_CARD
    try:
        return card_of(json.loads(path.read_bytes()), path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; give the folder `checkpoint` of a finished `seqtex train`, a trainer state, or a "
            "folder with released weights (config.json and safetensors)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); train again or restore the file") from error


def card_entries(card: CheckpointCard) -> dict[str, Any]:
    """Return the entries of a card that is written now."""
    return asdict(card) | {"code_version": code_version()}


def card_of(entries: Any, path: Path) -> CheckpointCard:
    """Make a card from its entries. Raises UserError naming the file if they are none."""
    try:
        lists = {name: tuple(entries[name]) for name in ("latent_mean", "latent_std")}
        return CheckpointCard(**(entries | lists))
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); train again or restore the file") from error


def latent_statistics(codec: LatentCodec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that are part of our code and not of the codec's weights."""
    return (tuple(codec.MEAN), tuple(codec.STD)) if isinstance(codec, DctCodec) else ((), ())
