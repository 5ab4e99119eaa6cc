"""The gallery's files of one shard: for each sample a thumbnail, and the pictures and 3D model that load when it opens.

Each shard has a folder, which appears whole or not at all."""

import base64
import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.mesh_io.write_glb import textured_glb
from pipeline.report.images import as_rgb, cut_out, data_uri, in_rows, seen_surface, webp
from schemas.codec import decode
from schemas.dataset import ShardRecord, shard_path
from schemas.errors import UserError
from schemas.sample import TextureSample
from schemas.shards import read_samples
from schemas.storage import Location

FORM = 1
"""Version of these files: another number draws all of them again."""
THUMBNAIL_PX = 192
VIEW_PX = 240
"""Height of a view in an opened sample."""
MAP_PX = 400
"""Height of a UV map in an opened sample."""
MODEL_TEXTURE_PX = 1024
"""Longest side of the texture of the 3D model."""
VIEWS_PER_ROW = 4
KEY_FILE = "key.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to draw, and the samples that the gallery shows of it."""

    dataset: Location
    shard: ShardRecord
    uids: tuple[str, ...]
    folder: Path
    """Receives the files."""

    def key(self) -> str:
        """Return a text that is equal for equal files."""
        parts = (str(FORM), self.shard.sha256, *self.uids)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def done(self) -> bool:
        """Return whether the files are there and up to date."""
        path = self.folder / KEY_FILE
        return path.is_file() and path.read_text() == self.key()


def draw_shard(task: ShardTask) -> str | None:
    """Write the folder of a shard. Returns the problem of a shard that cannot be read."""
    beside = task.folder.with_name(f".{task.folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    path = shard_path(task.dataset, task.shard.name)
    wanted = set(task.uids)
    try:
        for uid, fields in read_samples(task.dataset, task.shard):
            if uid in wanted:
                draw_sample(decode(fields), beside)
                wanted.remove(uid)
    except UserError as error:
        shutil.rmtree(beside)
        return str(error)
    except (OSError, ValueError) as error:
        shutil.rmtree(beside)
        return f"{path}: cannot be read ({error}); run `seqtex verify {task.dataset}`"
    (beside / KEY_FILE).write_text(task.key())
    shutil.rmtree(task.folder, ignore_errors=True)
    beside.replace(task.folder)
    return f"{path}: lacks {len(wanted)} samples; run `seqtex repair {task.dataset}`" if wanted else None


def draw_sample(sample: TextureSample, folder: Path) -> None:
    """Write the thumbnail and the script of a sample."""
    front = cut_out(sample.views.rgb[0], sample.views.mask[0])
    (folder / f"{sample.uid}.webp").write_bytes(webp(front, THUMBNAIL_PX))
    entry = {
        "uid": sample.uid,
        "views": len(sample.views.rgb),
        "shading": sample.meta.get("shading"),
        "pictures": list(_pictures(sample)),
        "model": _model(sample),
    }
    (folder / f"{sample.uid}.js").write_bytes(script("sample", entry))


def script(receiver: str, value: Any) -> bytes:
    """Return a script that passes `value` to `gallery.RECEIVER`: pages opened from a folder may load scripts and
    nothing else. It is plain ASCII, and nothing in it can end a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"gallery.{receiver}({text.replace('<', chr(92) + 'u003c')});\n".encode()


def _pictures(sample: TextureSample) -> Iterator[dict[str, str]]:
    """Draw every image of a sample: views in rows, maps one by one."""
    views = sample.views
    shown = {
        "Views: colour": views.rgb,
        "Views: lit": views.lit,
        "Views: normal": as_rgb(views.normal),
        "Views: position": as_rgb(views.position),
    }
    for title, images in shown.items():
        if images is not None:
            cut = np.stack([cut_out(image, mask) for image, mask in zip(images, views.mask, strict=True)])
            yield _picture("views", title, in_rows(cut, VIEWS_PER_ROW), VIEW_PX * -(-len(cut) // VIEWS_PER_ROW))
    if sample.uv is None:
        return
    uv = sample.uv
    maps = {
        "UV map: colour": uv.rgb,
        "UV map: opacity": None if uv.opacity is None else np.repeat(uv.opacity[..., None], 3, axis=-1),
        "UV map: normal": cut_out(as_rgb(uv.normal), uv.mask),
        "UV map: position": cut_out(as_rgb(uv.position), uv.mask),
    }
    for title, image in maps.items():
        if image is not None:
            yield _picture("map", title, image, MAP_PX)


def _picture(kind: str, title: str, image: UInt8[np.ndarray, "height width c"], height: int) -> dict[str, str]:
    return {"kind": kind, "title": title, "src": data_uri(image, height)}


def _model(sample: TextureSample) -> dict[str, str] | None:
    """Return the mesh with its map, or the surface that the views show, as gzipped binary glTF in base64."""
    if sample.mesh is not None and sample.uv is not None:
        mesh, rgb, opacity, title = sample.mesh, sample.uv.rgb, sample.uv.opacity, "The mesh with its baked map"
    elif seen := seen_surface(sample.views):
        mesh, rgb, opacity, title = *seen, None, "The surface that the views show (no mesh is stored)"
    else:
        return None
    glb = textured_glb(mesh, _texture(rgb, opacity), None, cut_out=opacity is not None)
    return {"title": title, "glb": base64.b64encode(gzip.compress(glb, 6, mtime=0)).decode()}


def _texture(rgb: UInt8[np.ndarray, "height width 3"], opacity: UInt8[np.ndarray, "height width"] | None) -> bytes:
    """Encode a texture as JPEG, or as PNG if it has holes."""
    picture = Image.fromarray(rgb if opacity is None else np.dstack([rgb, opacity]))
    picture.thumbnail((MODEL_TEXTURE_PX, MODEL_TEXTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if opacity is not None:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()
