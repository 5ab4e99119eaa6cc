"""Cycles views of a mesh as the pipeline holds it, so that they register with the rasteriser's: the same triangles,
normals, coordinates and textures, whatever format they came from."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from geometry.texture import alpha_cutoff
from pipeline.blender.host import BlenderConfig, run_worker
from schemas.ledger import Reason, Rejected
from schemas.mesh import TexturedMesh
from schemas.sample import Cameras

LIGHT = {"sky": 0.6, "sun": 2.0, "direction": [-0.4, 0.6, -0.7]}
"""Neutral: a uniform white sky (radiance) and a soft white sun (irradiance) from above, in front and the right."""


def render_cycles(
    mesh: TexturedMesh, cameras: Cameras, resolution: int, cfg: BlenderConfig, seed: int = 0
) -> UInt8[np.ndarray, "views height width 4"] | Rejected:
    """A mesh in the dataset frame under light: sRGB with straight alpha, the share of the pixel that is covered.
    The same bytes for the same seed and Blender."""
    with tempfile.TemporaryDirectory(prefix="lit-") as name:
        directory = Path(name)
        command = scene(mesh, directory / "mesh.npz", "lit") | {
            "command": "render",
            "directory": name,
            "resolution": resolution,
            "cameras": describe(cameras),
            "light": LIGHT,
            "samples": cfg.samples,
            "seed": seed % 2**31,
        }
        answer = run_worker([command], cfg)
        return answer if isinstance(answer, Rejected) else read_views(directory, len(cameras.projection), resolution)


def scene(
    mesh: TexturedMesh,
    path: Path,
    shading: Literal["lit", "emission"],
    atlas: Float32[np.ndarray, "f 3 2"] | None = None,
) -> dict[str, Any]:
    """Write the arrays of a mesh to `path`; what a command says about it. `atlas`: corner coordinates to bake to."""
    names = ["vertices", "normals", "uv", "colors", "faces", "face_material", "face_has_uv"]
    arrays = {name: getattr(mesh, name) for name in names}
    arrays |= {f"image_{number}": texture.image for number, texture in enumerate(mesh.textures)}
    np.savez(path, allow_pickle=False, **arrays, **({} if atlas is None else {"atlas": atlas}))
    materials = [
        {
            "base_color": material.base_color,
            "texture": material.texture,
            "cutoff": alpha_cutoff(material),
            "double_sided": material.double_sided,
            "shading": asdict(material.shading),
        }
        for material in mesh.materials
    ]
    textures = [{"wrap_u": t.wrap_u, "wrap_v": t.wrap_v, "nearest": t.nearest} for t in mesh.textures]
    return {"mesh": str(path), "shading": shading, "materials": materials, "textures": textures}


def describe(cameras: Cameras) -> list[dict[str, Any]]:
    """Cameras as Blender has them: a pose, a kind, and one scale, for square images without an offset."""
    described = []
    for pose, projection in zip(cameras.world_to_cam, cameras.projection.astype(np.float64), strict=True):
        scale = float(projection[0, 0])
        perspective = bool(projection[3, 2] == -1.0)
        plain = np.zeros((3, 4))
        plain[0, 0], plain[1, 1], plain[2] = scale, -scale, projection[2]
        if not np.allclose(projection[:3], plain):
            raise ValueError(f"no Blender camera for the projection {projection.tolist()}")
        cam_to_world = np.linalg.inv(pose.astype(np.float64))
        described.append({"cam_to_world": cam_to_world.tolist(), "perspective": perspective, "scale": scale})
    return described


def read_views(
    directory: Path, num_views: int, resolution: int
) -> UInt8[np.ndarray, "views height width 4"] | Rejected:
    """The PNGs of a `render` command, none of which is taken on trust."""
    views = []
    for number in range(num_views):
        path = directory / f"{number:02d}.png"
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.size != (resolution, resolution) or image.mode != "RGBA":
                    raise ValueError(f"{image.mode} of {image.size}")
                views.append(np.array(image))
        except (OSError, ValueError, SyntaxError) as error:
            return Rejected(reason=Reason.BLENDER_FAILED, detail=f"Blender's view {number} cannot be read: {error}")
    return np.stack(views)
