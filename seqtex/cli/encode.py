"""`seqtex encode`: the latents of a dataset, made once."""

from pathlib import Path
from typing import Literal

from schemas.errors import UsageError, UserError
from schemas.storage import Location
from seqtex.cli.terminal.console import bar, log_event


def encode(
    dataset: Location,
    codec: Literal["dct", "wan"] = "wan",
    codec_path: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    text_encoder: Literal["none", "umt5"] = "none",
    text_encoder_path: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    device: str = "auto",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    view_hint: bool = False,
    condition_images: tuple[str, ...] = (),
    maps: tuple[str, ...] = ("base_color",),
    part: int = 0,
    parts: int = 1,
    cache_directory: Path = Path("~/.cache/seqtex"),
    cache_gb: float = 50.0,
) -> int:
    """Write the latents of every sample beside the shards, in DATASET/latents/CODEC/, for training with data.latents.
    A run that was interrupted goes on with the next shard.

    Args:
        dataset: folder or address that `seqtex build` wrote to
        codec: dct is built in; wan is the VAE of the released weights
        codec_path: directory or hub repository of the Wan VAE
        text_encoder: umt5 also stores the features of every caption
        text_encoder_path: directory or hub repository of the text encoder
        device: cpu, cuda, cuda:1, ...; auto: a GPU where there is one
        dtype: of the numbers stored
        view_hint: also store the hints of each view and of all, for training with model.view_hint; 1.8 times as many
            numbers more
        condition_images: also store these condition images, for training with model.condition_images: '[mask]'
        maps: the UV maps to store, for training with model.maps: '[base_color, metallic_roughness]'
        part: which of `parts`, counted from 0: every `parts`-th shard is encoded, so that several processes or GPUs
            share the work; the last one to end writes the record
        parts: how many processes share the work
        cache_directory: receives the shards of a remote dataset; runs of this machine share it, training too
        cache_gb: its size, 10^9 bytes; the shards used longest ago go first
    """
    # Seconds to import, and not needed to print help.
    from training.arithmetic import find_device
    from training.conditions.images import HINT
    from training.data.dataset_files import open_dataset
    from training.data.encode_latents import encode_dataset, make_encoders
    from training.diffusion.encoders import make_codec, make_text_encoder

    if not 0 <= part < parts:
        raise UsageError(f"--part {part} of --parts {parts}: parts count from 0")
    device = find_device(device)
    files = open_dataset(str(dataset), cache_directory, int(cache_gb * 1e9))
    text = None if text_encoder == "none" else make_text_encoder(text_encoder, text_encoder_path, 0, device)
    try:
        images = (HINT.name,) * view_hint + condition_images
        encoders = make_encoders(make_codec(codec, codec_path, device), text, device, dtype, images, maps)
    except UserError as error:
        without = "--codec_path FOLDER takes a VAE of this machine, --codec dct needs none"
        raise UserError(f"{error}; {without}") from error
    with bar("encoding", 100, "%") as update:

        def notify(done: int, of: int) -> None:
            update(100 * done // max(of, 1), f"shard {done} of {of}")

        folder = encode_dataset(files, encoders, part, parts, notify)
    if folder is None:
        log_event("encoded_part", dataset=str(dataset), part=part, parts=parts)
    else:
        log_event("encoded", latents=str(folder), **{"codec": codec, "dtype": dtype})
    return 0
