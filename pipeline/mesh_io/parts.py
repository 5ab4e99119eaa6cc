"""Parts of an asset, one per drawn primitive, merged into one mesh."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from geometry.frames import bounding_box, far_origin
from geometry.mesh import face_vectors, unit
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason
from schemas.mesh import Material, Texture, TexturedMesh


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One primitive in world space."""

    vertices: Float64[np.ndarray, "v 3"]
    normals: Float64[np.ndarray, "v 3"]
    """Any length; where it is 0 or not finite a normal is computed."""
    uv: Float64[np.ndarray, "v 2"]
    """v up; 0 where a face has none."""
    colors: Float64[np.ndarray, "v 4"]
    """Linear RGBA."""
    faces: Int64[np.ndarray, "f 3"]
    face_material: Int64[np.ndarray, " f"]
    face_has_uv: Bool[np.ndarray, " f"]
    map_uv: Float64[np.ndarray, "layers v 2"] | None = None
    """Coordinates of the maps of `LAYERS`, v up; NaN where a map has none. None: materials were not asked for."""
    tangents: Float64[np.ndarray, "v 4"] | None = None
    """Tangent and sign of the bitangent, as the file has them."""


LAYERS = ("metallic_roughness", "normal", "emissive", "occlusion")
"""The layers of `schemas.mesh.MaterialLayers`, in the order of `Part.map_uv`."""


def completed_normals(part: Part) -> Float64[np.ndarray, "v 3"]:
    """Unit normals: authored ones, and the area-weighted mean of the vertex's faces where there is none."""
    authored = np.isfinite(part.normals).all(axis=1) & (np.abs(part.normals).max(axis=1, initial=0.0) > 1e-12)
    if authored.all():
        return unit(part.normals)
    weighted = face_vectors(part.vertices, part.faces)
    summed = np.zeros_like(part.vertices)
    for corner in range(3):
        np.add.at(summed, part.faces[:, corner], weighted)
    return unit(np.where(authored[:, None], part.normals, summed))


def merge(parts: Sequence[Part], materials: Sequence[Material], textures: Sequence[Texture]) -> TexturedMesh:
    """All parts as one mesh, faces in the order of the parts."""
    if not sum(len(part.faces) for part in parts):
        raise AssetError(Reason.NO_GEOMETRY, "the scene draws no triangle")
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    vertices = np.concatenate([part.vertices for part in parts])
    if not np.abs(vertices).max() < 1e30:
        raise AssetError(Reason.NON_FINITE, "node transforms take a vertex beyond 1e30")
    uv = np.concatenate([part.uv for part in parts])
    colors = np.concatenate([part.colors for part in parts])
    if not np.abs(uv).max() < 1e30:
        raise AssetError(Reason.NON_FINITE, "a texture transform takes a texture coordinate beyond 1e30")
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    origin = far_origin(*bounding_box(vertices, faces))
    return TexturedMesh(
        vertices=(vertices - origin if origin.any() else vertices).astype(np.float32),
        offset=(float(origin[0]), float(origin[1]), float(origin[2])),
        normals=np.concatenate([completed_normals(part) for part in parts]).astype(np.float32),
        uv=uv.astype(np.float32),
        colors=np.clip(colors, 0.0, 1.0).astype(np.float32),
        faces=faces.astype(np.int32),
        face_material=np.concatenate([part.face_material for part in parts]).astype(np.int32),
        face_has_uv=np.concatenate([part.face_has_uv for part in parts]),
        materials=tuple(materials),
        textures=tuple(textures),
    )
