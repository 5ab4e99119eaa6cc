"""Model directories: `config.json` and `diffusion_pytorch_model.safetensors`, or its shards and their
`.safetensors.index.json`, as diffusers and the released SeqTex checkpoint have them. Pickled weights are never read.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from schemas.errors import UserError
from schemas.storage import sync_directory

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
RELEASED_CLASS = "WanT2TexTransformer3DModel"
CLASS_NAMES = ("SeqTexTransformer3DModel", RELEASED_CLASS)
RELEASED_LORA_ALPHA = 64
LISTED = 12
"""Names per kind that an error message spells out."""


class HubOptions(TypedDict, total=False):
    """Options of a download, as `huggingface_hub.snapshot_download` takes them."""

    revision: str | None
    """Branch, tag or commit."""
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


HUB_OPTIONS = tuple(HubOptions.__annotations__)


def find_directory(path: str | os.PathLike[str], subfolder: str = "", **hub: Unpack[HubOptions]) -> Path:
    """A local model directory, downloaded first if path names a hub repository, or found in the hub's cache. Only JSON
    files and safetensors are taken, and what belongs to a tokenizer."""
    local = Path(path)
    if local.is_dir():
        return local / subfolder if subfolder else local
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(path)):
        raise UserError(f"{path}: no such directory, nor the name of a hub repository (owner/name)")
    from huggingface_hub import snapshot_download  # only for repositories that are not on this machine
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    prefix = f"{subfolder}/" if subfolder else ""
    patterns = [f"{prefix}{files}" for files in ("*.json", "*.safetensors", "*.model", "*.txt")]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns, **hub)) / subfolder
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: no such directory, and the hub does not give a repository of that name ({reason}); check the "
            "name, the network and, for a private one, `hf auth login`"
        ) from error


def read_config(directory: Path, name: str = CONFIG) -> dict[str, Any]:
    file = directory / name
    if not file.is_file():
        raise UserError(f"{directory} has no {name}; give the directory of one model (for a pipeline: its transformer)")
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} does not hold a JSON object; copy the model again")
    return config


def read_tensors(directory: Path, weights: str = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of a model directory, of one file or of the shards its index names."""
    state: dict[str, Tensor] = {}
    for file in tensor_files(directory, weights):
        with readable(file):
            state |= load_file(file)
    return state


def read_shapes(directory: Path, weights: str = WEIGHTS, variant: str | None = None) -> dict[str, torch.Size]:
    """Shapes of the same tensors, from the heads of their files."""
    found: dict[str, torch.Size] = {}
    for file in tensor_files(directory, weights, variant):
        with readable(file), safe_open(file, "pt") as tensors:
            found |= {name: torch.Size(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found


def tensor_files(directory: Path, weights: str, variant: str | None = None) -> list[Path]:
    """variant: such as fp16, by which diffusers names files beside those in full precision."""
    index = directory / (f"{weights}.index.{variant}.json" if variant else f"{weights}.index.json")
    names = [weights.replace(".safetensors", f".{variant}.safetensors") if variant else weights]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} is not a shard index ({error!r}); copy the model again") from error
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise UserError(
                f"{directory / name} is not a file in the model directory; copy the model again (safetensors only)"
            )
    return [directory / name for name in names]


@contextmanager
def readable(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}); copy it again") from error


@contextmanager
def replaced_directory(directory: str | os.PathLike[str], config: str = CONFIG) -> Iterator[Path]:
    """An empty directory to fill, which then takes the place of directory; nothing changes if filling it fails.

    What is replaced must hold a file of the name config, so that nothing but a model is ever removed.
    """
    target = Path(directory).absolute()
    if target.exists() and not (target / config).is_file():
        raise UserError(f"{target} exists and is not a model directory; choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        fresh, old = Path(beside) / "fresh", Path(beside) / "old"
        fresh.mkdir()
        yield fresh
        for file in fresh.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        sync_directory(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        sync_directory(target.parent)


def remove_leftovers(directory: Path) -> None:
    """Clears away what processes that were killed in `replaced_directory` left beside directory; where one was killed
    between its two renames, what it was about to replace comes back. None may be at work there."""
    for beside in directory.parent.glob(f".{directory.name}.*"):
        if not directory.exists() and (beside / "old").is_dir():
            (beside / "old").rename(directory)
        shutil.rmtree(beside)


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def check_tensors(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], source: str) -> None:
    """One error that lists every missing, unexpected and misshapen tensor with its shape."""
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "unexpected": extra, "of another shape": misshapen}
    if any(problems.values()):
        lines = [f"{len(names)} {kind}: {_shortened(names)}" for kind, names in problems.items() if names]
        raise UserError(f"{source}: tensors do not fit the model of this config\n  " + "\n  ".join(lines))


def _shortened(names: list[str]) -> str:
    rest = len(names) - LISTED
    return "; ".join(names[:LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def read_architecture(directory: Path, variant: str | None = None) -> dict[str, Any]:
    """The settings of the model in a directory. A released config does not mention LoRA: the rank then follows from the
    tensors, and alpha is the released 64."""
    config = read_config(directory)
    if config.get("_class_name") not in CLASS_NAMES:
        raise UserError(
            f"{directory / CONFIG}: _class_name is {config.get('_class_name')!r}, not one of {CLASS_NAMES}; "
            "start from Wan weights with from_wan instead"
        )
    if "lora_rank" not in config:
        ranks = {shape[0] for name, shape in read_shapes(directory, variant=variant).items() if ".lora_A." in name}
        if ranks:
            config |= {"lora_rank": max(ranks), "lora_alpha": config.get("lora_alpha", RELEASED_LORA_ALPHA)}
    return config
