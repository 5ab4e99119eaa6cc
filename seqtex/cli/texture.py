"""`seqtex texture`: meshes with images or words in, the same meshes with new textures out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from pipeline.mesh_io.write_glb import write_glb
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.errors import UsageError, UserError
from seqtex.cli.console import bar, log_event
from seqtex.texturing import Condition, Subject, TexturedSubject, open_subject, read_image, texture_subjects
from training.arithmetic import autocast_dtype
from training.data.mixture import require_tokens
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, load_checkpoint

UNWRAP_TIMEOUT_S = 600.0
"""A person waits longer for one mesh than a build does."""
VIEW_FILE = "view_{}.png"
"""Names of view images in a folder, read and written; views count from 0."""
KINDS = {"mesh": str, "out": str, "image": str, "view": int, "images": str, "prompt": str, "seed": int}
"""What a line of a batch file may hold."""


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
            raise UsageError("--image and --images both say what views show; give one of them")
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
    seed: int = 0,
    device: str = "auto",
    offload: bool = False,
    tiling: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    wan: str | None = None,
    uv_resolution: int | None = None,
    max_unwrap_faces: int = 200_000,
) -> int:
    """Texture a mesh (.glb, .gltf, .obj) so that it looks like one image, several views, or a text.

    Args:
        mesh: the mesh, with or without texture coordinates; an existing texture is not looked at
        out: the textured mesh to write (.glb)
        checkpoint: folder `checkpoint` of a training run, or a folder in the layout of the released weights
        image: what the mesh shows in one view: its front is seen from azimuth -90 degrees, elevation 10
        view: which view the image shows: 0 front, then each a quarter turn on
        images: folder with what several views show: view_0.png, view_1.png, ... (any of them; all: the texture alone is
            generated)
        prompt: text, for checkpoints trained with a text encoder; alone or with images
        batch: instead of one mesh, a file with one JSON object a line: mesh, out, and image, view, images, prompt,
            seed; paths are relative to that file
        batch_size: meshes of a batch that are sampled together
        views: folder for the generated views, view_0.png and so on (in a batch: a folder per mesh, named like `out`)
        steps: denoising steps
        solver: euler (as released), or adams, which needs fewer steps
        guidance: classifier-free guidance; 1 is off
        seed: of the noise
        device: cpu, cuda, or auto
        offload: keep on the GPU only what is at work: for GPUs too small for text encoder, VAE and transformer at once
        tiling: VAE in tiles, for GPUs that cannot encode 1024 pixels at once
        precision: of the weights of VAE, text encoder and transformer; float32 where bfloat16 would be far slower
        wan: directory or hub repository with Wan's VAE and text encoder; default: as the checkpoint says
        uv_resolution: texels a side; default: as trained
        max_unwrap_faces: faces up to which a mesh without a good UV layout gets a new one
    """
    if (mesh is None) == (batch is None):
        raise UsageError("give one mesh, or --batch with a file that lists them")
    items: Sequence[Item]
    if batch is not None:
        items = read_batch(batch)
    elif mesh is not None and out is not None:
        items = [Item(mesh=mesh, out=out, image=image, view=view, images=images, prompt=prompt, seed=seed)]
    else:
        raise UsageError("--out is missing: name the .glb file to write")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_checkpoint(
        checkpoint,
        "cpu" if offload else device,
        dtype=weights_dtype(precision, device),
        tiling=tiling,
        wan=wan,
    )
    if uv_resolution is not None:
        require_tokens("--uv_resolution", uv_resolution)
        network = replace(network, card=replace(network.card, uv_resolution=uv_resolution))
    if network.card.uv_resolution is None:
        raise UserError(f"{checkpoint}: never saw a UV map; train on a dataset with textured samples")
    unwrap_cfg = UnwrapConfig(max_faces=max_unwrap_faces, timeout_s=UNWRAP_TIMEOUT_S)
    cfg = SamplerConfig(steps=steps, solver=solver, guidance=guidance)
    failed = 0
    for group in groups(open_items(items, network, unwrap_cfg, alone=batch is None), batch_size):
        if isinstance(group, Failure):
            failed += 1
            log_event("failed", mesh=str(group.item.mesh), detail=str(group.error))
            continue
        for one, result in zip(group, texture_group(group, network, cfg, device, offload), strict=True):
            write(one, result, views / one.item.out.stem if views and batch else views)
    return 1 if failed else 0


def weights_dtype(precision: str, device: str) -> torch.dtype:
    """The dtype that was asked for; float32, with a warning, on a device without fast bfloat16 products."""
    dtype = autocast_dtype(torch.device(device).type, precision) or torch.float32
    if precision == "bfloat16" and dtype is torch.float32:
        log_event("warning", detail=f"{device} has no fast bfloat16 products; float32 is used, with twice the memory")
    return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """An item that was read."""

    item: Item
    subject: Subject
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An item that cannot be textured."""

    item: Item
    error: UserError


def texture_group(
    group: Sequence[Ready], network: Checkpoint, cfg: SamplerConfig, device: str, offload: bool
) -> list[TexturedSubject]:
    names = ", ".join(one.item.mesh.name for one in group)
    with bar("texturing", cfg.steps, "steps") as update:
        return texture_subjects(
            [one.subject for one in group],
            [one.condition for one in group],
            network,
            cfg,
            seeds=[one.item.seed for one in group],
            device=device,
            offload=offload,
            progress=lambda step: update(step, names),
        )


def read_batch(path: Path) -> list[Item]:
    """The items of a batch file. Raises UsageError naming the line."""
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


def open_items(
    items: Sequence[Item], network: Checkpoint, cfg: UnwrapConfig, *, alone: bool
) -> Iterator[Ready | Failure]:
    """Items in order, read when their turn comes. What is wrong with one of many does not stop the others."""
    for item in items:
        try:
            condition = read_condition(item, network.card.views)
            yield Ready(item=item, condition=condition, subject=open_subject(item.mesh, cfg, network.card))
        except UserError as error:
            if alone:
                raise
            yield Failure(item=item, error=error)


def read_condition(item: Item, num_views: int) -> Condition:
    if not 0 <= item.view < num_views:
        raise UsageError(f"--view {item.view}: the checkpoint has views 0 to {num_views - 1}")
    if item.image is not None:
        return Condition(images={item.view: read_image(item.image)}, prompt=item.prompt)
    if item.images is None:
        return Condition(prompt=item.prompt)
    paths = {number: item.images / VIEW_FILE.format(number) for number in range(num_views)}
    images = {number: read_image(path) for number, path in paths.items() if path.is_file()}
    if not images:
        raise UserError(f"{item.images}: holds none of {VIEW_FILE.format(0)} to {VIEW_FILE.format(num_views - 1)}")
    return Condition(images=images, prompt=item.prompt)


def groups(items: Iterator[Ready | Failure], size: int) -> Iterator[Failure | list[Ready]]:
    """Neighbours that give the same views, at most `size` together."""

    def kind(one: Ready | Failure) -> tuple[int, ...] | None:
        return None if isinstance(one, Failure) else tuple(sorted(one.condition.images))

    for _, neighbours in groupby(items, key=kind):
        held: list[Ready] = []
        for one in neighbours:
            if isinstance(one, Failure):
                yield one
                continue
            held.append(one)
            if len(held) == size:
                yield held
                held = []
        if held:
            yield held


def write(one: Ready, result: TexturedSubject, views: Path | None) -> None:
    one.item.out.parent.mkdir(parents=True, exist_ok=True)
    write_glb(one.item.out, one.subject.uv_mesh, result.uv_rgb, one.subject.frame)
    if views is not None:
        views.mkdir(parents=True, exist_ok=True)
        for number, rgb in enumerate(result.views_rgb):
            Image.fromarray(rgb).save(views / VIEW_FILE.format(number))
    log_event("textured", mesh=str(one.item.mesh), out=str(one.item.out), layout=one.subject.uv_mesh.layout)
