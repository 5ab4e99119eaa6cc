"""An OBJ file to one part: corners made vertices, normals computed where the file has none."""

import numpy as np
from jaxtyping import Float64, Int64

from geometry.texture import srgb_to_linear
from pipeline.formats.obj import ObjFile
from pipeline.formats.parts import Part, face_vectors, unit

_COS_CREASE = np.cos(np.radians(40.0))
"""OBJ without normals: a corner is smooth where the mean normal is within 40 degrees of the face's own."""


def obj_part(obj: ObjFile) -> Part:
    position, uv, normal = np.moveaxis(obj.corners, 2, 0)
    face_normals = unit(face_vectors(obj.positions, position))
    weighted = face_normals[:, None] * _angles(obj.positions[position])[..., None]
    summed = np.stack(
        [np.bincount(position.reshape(-1), weighted[..., axis].reshape(-1), len(obj.positions)) for axis in range(3)],
        axis=1,
    )
    flat, smooth = face_normals[:, None], unit(summed)[position]
    is_flat = (normal < 0) & ((flat * smooth).sum(axis=2) < _COS_CREASE)
    # A corner is a vertex of its own where position, uv or normal differ; a flat corner's normal belongs to its face.
    face = np.broadcast_to(np.arange(len(normal))[:, None], normal.shape)
    first, faces = _distinct(position, uv, np.where(is_flat, -2 - face, normal))
    computed = np.where(is_flat[..., None], flat, smooth).reshape(-1, 3)[first]
    at, uv_at, normal_at = position.reshape(-1)[first], uv.reshape(-1)[first], normal.reshape(-1)[first]
    colors = np.ones((len(first), 4))
    if obj.colors is not None:
        colors[:, :3] = srgb_to_linear(obj.colors.astype(np.float32))[at]
    return Part(
        vertices=obj.positions[at],
        normals=np.where((normal_at >= 0)[:, None], _rows(obj.normals, normal_at), computed),
        uv=np.where((uv_at >= 0)[:, None], _rows(obj.uvs, uv_at), 0.0),
        colors=colors,
        faces=faces,
        face_material=obj.face_material,
        face_has_uv=(uv >= 0).all(axis=1),
    )


def _distinct(
    position: Int64[np.ndarray, "f 3"], uv: Int64[np.ndarray, "f 3"], normal: Int64[np.ndarray, "f 3"]
) -> tuple[Int64[np.ndarray, " v"], Int64[np.ndarray, "f 3"]]:
    """First corner of each distinct triple, and for every corner the number of its triple."""
    number = position.reshape(-1)
    first = np.zeros(0, np.int64)
    for column in (uv, normal):
        values = column.reshape(-1) - column.min()
        span = int(values.max()) + 1  # number * span stays below corners * (corners + vertices): far from 2^63
        _, first, number = np.unique(number * span + values, return_index=True, return_inverse=True)
    return first, number.reshape(position.shape)


def _angles(corners: Float64[np.ndarray, "f 3 3"]) -> Float64[np.ndarray, "f 3"]:
    """Angle of each triangle at its corners, radians: weights that do not depend on how a polygon was cut."""
    forth = unit((np.roll(corners, -1, axis=1) - corners).reshape(-1, 3)).reshape(corners.shape)
    back = unit((np.roll(corners, 1, axis=1) - corners).reshape(-1, 3)).reshape(corners.shape)
    return np.arccos(np.clip((forth * back).sum(axis=2), -1.0, 1.0))


def _rows(table: Float64[np.ndarray, "n width"], index: np.ndarray) -> Float64[np.ndarray, "m width"]:
    """Rows of a table that may be empty; row 0 (or zeros) where the index is negative."""
    return table[np.maximum(index, 0)] if len(table) else np.zeros((len(index), table.shape[1]))
