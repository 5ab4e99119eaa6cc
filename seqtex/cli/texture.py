"""`seqtex texture`: texture meshes from images or text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from pipeline.executor.compile_kernels import compiling
from pipeline.mesh_io.preflight import UpAxis
from schemas.errors import UsageError, UserError
from seqtex.cli.terminal.console import bar, compiles, log, log_event
from seqtex.texturing import (
    MAX_UNWRAP_FACES,
    PreparedMesh,
    for_textures,
    prepare_mesh,
    require_image_dropout,
    require_text_encoder,
    texture_meshes,
)
from training.arithmetic import autocast_dtype, find_device
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, CheckpointCard, load_checkpoint

VIEW_FILE = "view_{}.png"
"""Name of a view image in a folder, read and written; views count from 0."""
KINDS = {"mesh": str, "out": str, "image": str, "view": int, "images": str, "prompt": str, "seed": int}
"""Entries of a line of a batch file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One mesh to texture."""

    mesh: Path
    out: Path
    image: Path | None = None
    view: int = 0
    images: Path | None = None
    prompt: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".glb":
            raise UsageError(f"--out {self.out}: the result is a .glb file; name it so")
        if self.image and self.images:
            raise UsageError("--image and --images contradict each other; give one of them")
        if not (self.image or self.images or self.prompt):
            raise UsageError("nothing says what the texture should look like; give --image, --images or --prompt")


def texture(
    mesh: Path | None = None,
    out: Path | None = None,
    checkpoint: Path = Path("checkpoint"),
    image: Path | None = None,
    view: int = 0,
    images: Path | None = None,
    prompt: str = "",
    batch: Path | None = None,
    batch_size: int = 1,
    views: Path | None = None,
    steps: int = 30,
    solver: Literal["euler", "adams"] = "euler",
    guidance: float = 1.0,
    image_guidance: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    offload: bool = False,
    tiling: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    wan: str | None = None,
    uv_resolution: int | None = None,
    max_unwrap_faces: int = MAX_UNWRAP_FACES,
    up_axis: UpAxis = "y",
) -> int:
    """Texture a mesh (.glb, .gltf, .obj) so that it looks like one image, several views, or a text.

    Args:
        mesh: the mesh, with or without texture coordinates; its base colour is replaced, its other maps are kept
        out: the textured mesh to write (.glb)
        checkpoint: folder `checkpoint` of a training run, a trainer state of one (states/step-00001000.ckpt), or a
            folder in the layout of the released weights
        image: what the mesh shows in one view: its front is seen from azimuth -90 degrees, elevation 10
        view: which view the image shows: 0 front, then each a quarter turn on
        images: folder with pictures of several views: view_0.png, view_1.png, ... (any of them; all: only the texture
            is generated)
        prompt: text, for checkpoints trained with a text encoder; alone or with images
        batch: instead of one mesh, a file with one JSON object a line: mesh, out, and image, view, images, prompt,
            seed; paths are relative to that file
        batch_size: meshes of a batch that are sampled together
        views: folder for the generated views, view_0.png and so on (in a batch: a folder per mesh, named like `out`)
        steps: denoising steps
        solver: euler (as released), or adams, which needs fewer steps
        guidance: classifier-free guidance; 1 is off
        image_guidance: the same over the given images, for checkpoints trained with flow.image_dropout; 1 is off
        seed: of the noise
        device: cpu, cuda, or auto
        offload: keep text encoder, VAE and transformer on the GPU one at a time, for small GPUs
        tiling: VAE in tiles, for GPUs that cannot encode 1024 pixels at once
        precision: of the weights of VAE, text encoder and transformer; float32 on devices without fast bfloat16
        wan: directory or hub repository with Wan's VAE and text encoder; default: those of the checkpoint
        uv_resolution: texels a side; default: as trained
        max_unwrap_faces: faces up to which a mesh without a good UV layout gets a new one
        up_axis: the axis that points up in OBJ, OFF, PLY and STL files, which do not say it (z in many scans)
    """
    items = requested(mesh, batch, out, image=image, view=view, images=images, prompt=prompt, seed=seed)
    device = find_device(device)
    dtype, place = weights_dtype(precision, device), "cpu" if offload else device
    log.progress(f"starting  loading the checkpoint {checkpoint}", None)
    network = load_checkpoint(checkpoint, place, dtype=dtype, tiling=tiling, wan=wan)
    network = for_textures(network, uv_resolution)
    require_text_encoder(network.card, guidance=guidance)
    require_image_dropout(network.card, image_guidance)
    cfg = SamplerConfig(steps=steps, solver=solver, guidance=guidance, image_guidance=image_guidance)
    failed = 0

    def ready() -> Iterator[Ready]:
        nonlocal failed
        for item in items:
            log.progress(f"preparing  {item.mesh.name}", None)
            try:
                require_image_dropout(network.card, image_guidance, bool(item.image or item.images))
                yield item, prepare(item, network.card, max_unwrap_faces, up_axis)
            except UserError as error:
                if batch is None:
                    raise
                failed += 1
                log_event("failed", mesh=str(item.mesh), detail=str(error))

    with compiling(compiles):
        for group in groups(ready(), batch_size):
            texture_group(group, network, cfg, device, offload, views, in_folders=batch is not None)
    return 1 if failed else 0


def requested(mesh: Path | None, batch: Path | None, out: Path | None, **entries: Any) -> list[Item]:
    """Return the mesh of a command line, or those of its batch file. Raises UsageError unless it is one of the two."""
    if (mesh is None) == (batch is None):
        raise UsageError("give one mesh, or --batch with a file that lists them")
    if batch is not None:
        return read_batch(batch)
    if mesh is None or out is None:
        raise UsageError("--out is missing: name the .glb file to write")
    return [Item(mesh=mesh, out=out, **entries)]


Ready = tuple[Item, PreparedMesh]
"""An item and its mesh, which was read."""


def weights_dtype(precision: str, device: str) -> torch.dtype:
    """Return the dtype of a precision; float32, with a warning, on a device without fast bfloat16 products."""
    dtype = autocast_dtype(torch.device(device).type, precision) or torch.float32
    if precision == "bfloat16" and dtype is torch.float32:
        log_event("warning", detail=f"{device} has no fast bfloat16 products; float32 is used, with twice the memory")
    return dtype


def read_batch(path: Path) -> list[Item]:
    """Read the items of a batch file. Raises UsageError naming the line."""
    items = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entries: dict[str, Any] = json.loads(line)
            if not isinstance(entries, dict):
                raise ValueError("not a JSON object")
            named = [name for name in ("mesh", "out", "image", "images") if name in entries]
            if wrong := [name for name in entries.keys() & KINDS if type(entries[name]) is not KINDS[name]]:
                raise ValueError(f"{wrong[0]} is {entries[wrong[0]]!r}, not of type {KINDS[wrong[0]].__name__}")
            items.append(Item(**(entries | {name: path.parent / entries[name] for name in named})))
        except (ValueError, TypeError, UsageError) as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    if not items:
        raise UsageError(f"{path}: no line with a mesh in it")
    return items


def prepare(item: Item, card: CheckpointCard, max_unwrap_faces: int, up_axis: UpAxis) -> PreparedMesh:
    """Read the mesh and the pictures of an item. Raises UserError naming what is wrong."""
    pictures = {} if item.image is None else {item.view: item.image}
    if item.images is not None:
        paths = {number: item.images / VIEW_FILE.format(number) for number in range(card.views)}
        pictures = {number: path for number, path in paths.items() if path.is_file()}
        if not pictures:
            raise UserError(f"{item.images}: holds none of {VIEW_FILE.format(0)} to {VIEW_FILE.format(card.views - 1)}")
    require_text_encoder(card, item.prompt)
    return prepare_mesh(
        item.mesh,
        card,
        pictures=pictures,
        prompt=item.prompt,
        seed=item.seed,
        max_unwrap_faces=max_unwrap_faces,
        up_axis=up_axis,
    )


def groups(ready: Iterator[Ready], size: int) -> Iterator[list[Ready]]:
    """Group neighbours that give the same views, at most `size` together."""
    for _, neighbours in groupby(ready, key=lambda one: sorted(one[1].input.images)):
        while group := list(islice(neighbours, size)):
            yield group


def texture_group(
    group: Sequence[Ready],
    network: Checkpoint,
    cfg: SamplerConfig,
    device: str,
    offload: bool,
    views: Path | None,
    in_folders: bool,
) -> None:
    """Texture meshes together and write the results. in_folders: a folder of views per mesh."""
    names, meshes = ", ".join(item.mesh.name for item, _ in group), [mesh for _, mesh in group]
    with bar("texturing", cfg.steps, "steps") as update:
        results = texture_meshes(
            meshes, network, cfg, device=device, offload=offload, progress=lambda step: update(step, names)
        )
    for (item, _), result in zip(group, results, strict=True):
        result.save(item.out)
        if views is not None:
            folder = views / item.out.stem if in_folders else views
            folder.mkdir(parents=True, exist_ok=True)
            for number, rgb in enumerate(result.views):
                Image.fromarray(rgb).save(folder / VIEW_FILE.format(number))
        for text in () if result.kept is None else result.kept.skipped:
            log_event("warning", detail=f"{item.mesh}: skipped in {item.out.name}: {text}")
        log_event("textured", mesh=str(item.mesh), out=str(item.out), layout=result.mesh.layout)
