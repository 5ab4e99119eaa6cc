"""COLLADA files (1.4, 1.5), parsed by pycollada: placed geometry, its polygons, colours and textures."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64

from geometry.frames import z_up_to_y_up
from pipeline.mesh_io.exchange.pieces import Piece, check_xml, opacity_of, texture, unit_colors
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.references import Folders
from pipeline.mesh_io.wavefront.mtl import ObjMaterial
from schemas.ledger import NoteKind, Reason

_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, RuntimeError),
    *(StopIteration, SyntaxError, TypeError, ValueError),
)
"""Errors that pycollada and lxml raise over files that they cannot read (`RecursionError` is a `RuntimeError`, lxml's a
`SyntaxError`)."""
_UP_AXIS = re.compile(rb"<(?:\w+:)?up_axis>\s*([XYZ])_UP")
IMAGE_FILE = re.compile(rb"<(?:\w+:)?init_from>([^<]*)(?=<)")
_MAX_PLACED = 100_000
"""Nodes and geometries placed in all (ours)."""


def up_of(data: bytes) -> Float64[np.ndarray, "4 4"]:
    """The turn to Y up that a COLLADA file asks for."""
    axis, turn = _UP_AXIS.search(data), np.eye(4)
    if axis and axis[1] == b"Z":
        turn[:3, :3] = z_up_to_y_up(np.eye(3)).T
    elif axis and axis[1] == b"X":
        turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    return turn


def read_dae(data: bytes, folders: Folders, max_faces: int) -> list[Piece]:
    """The placed polygons of a COLLADA file; where some of it is broken, the rest."""
    check_xml(data, "COLLADA")
    if b"instance_controller" in data:
        folders.notes.add(NoteKind.PART_LEFT_OUT, "COLLADA: skinned geometry is not read; save it as glTF")
    try:
        pieces, faces = list[Piece](), 0
        for piece in _pieces(_document(data, folders), folders):
            pieces.append(piece)
            faces += int(np.maximum(piece.count - 2, 0).sum())
            if faces > max_faces:
                raise AssetError(Reason.TOO_LARGE, f"more than {max_faces:,} faces with instances")
        return pieces
    except _BROKEN as error:
        detail = f"the .dae file cannot be parsed ({type(error).__name__}: {error})"
        raise AssetError(Reason.LOAD_ERROR, detail) from error


def _document(data: bytes, folders: Folders) -> Any:
    import io

    import collada  # 0.5 s that only such files should cost
    from collada.common import DaeError

    try:
        try:
            return collada.Collada(io.BytesIO(data), ignore=None)
        except DaeError as error:
            folders.notes.add(NoteKind.PART_LEFT_OUT, f"COLLADA: {error}")
            return collada.Collada(io.BytesIO(data), ignore=[DaeError])
    except DaeError as error:
        raise AssetError(Reason.LOAD_ERROR, f"the .dae file cannot be parsed ({error})") from error


def _pieces(document: Any, folders: Folders) -> Iterator[Piece]:
    """Every placed primitive, in the order of the scene."""
    from collada.scene import GeometryNode, Node

    materials: dict[int, ObjMaterial] = {}
    stack = [(node, np.eye(4)) for node in reversed(document.scene.nodes if document.scene else [])]
    for _ in range(_MAX_PLACED):
        if not stack:
            return
        node, matrix = stack.pop()
        if isinstance(node, GeometryNode):
            bound = {entry.symbol: entry.target for entry in node.materials}
            for primitive in node.geometry.primitives:
                material = ObjMaterial()
                if (target := bound.get(primitive.material)) is not None:
                    if id(target) not in materials:
                        materials[id(target)] = _material(target.effect, str(target.id), folders)
                    material = materials[id(target)]
                if (piece := _piece(primitive, material, matrix)) is not None:
                    yield piece
        elif isinstance(node, Node):
            stack += [(child, matrix @ node.matrix) for child in reversed(node.children or [])]
    raise AssetError(Reason.TOO_LARGE, f"COLLADA: more than {_MAX_PLACED:,} placed nodes")


def _piece(primitive: Any, material: ObjMaterial, matrix: Float64[np.ndarray, "4 4"]) -> Piece | None:
    """A primitive's polygons; None for lines, and where it has none."""
    from collada.polylist import Polylist
    from collada.triangleset import TriangleSet

    if not isinstance(primitive, Polylist | TriangleSet) or primitive.vertex_index is None:
        return None
    position = np.asarray(primitive.vertex_index, np.int64).reshape(-1)
    triangles = isinstance(primitive, TriangleSet)
    count = np.full(len(position) // 3, 3) if triangles else np.asarray(primitive.vcounts, np.int64)
    if count.sum() != len(position) or (count < 0).any():
        raise AssetError(Reason.INVALID_STRUCTURE, f"COLLADA: {count.sum()} corners counted, {len(position)} there")
    corners = np.full((len(position), 3), -1)
    corners[:, 0] = position
    uvs, normals = np.zeros((0, 2)), np.zeros((0, 3))
    if len(primitive.texcoordset):
        uvs = np.asarray(primitive.texcoordset[0], np.float64)
        corners[:, 1] = np.asarray(primitive.texcoord_indexset[0]).reshape(-1)
    if primitive.normal is not None:
        normals = np.asarray(primitive.normal, np.float64)
        corners[:, 2] = np.asarray(primitive.normal_index).reshape(-1)
    colors = None
    if found := primitive.sources.get("COLOR"):
        offset, source = found[0][0], found[0][4]
        index = np.asarray(primitive.index, np.int64).reshape(len(position), -1)[:, offset]
        colors = unit_colors(np.asarray(source.data, np.float64))[index]
    return Piece(
        positions=np.asarray(primitive.vertex, np.float64),
        count=count,
        corners=corners,
        uvs=uvs,
        normals=normals,
        corner_colors=colors,
        material=material,
        matrix=matrix,
    )


def _material(effect: Any, name: str, folders: Folders) -> ObjMaterial:
    """Diffuse colour or texture, and the opacity (COLLADA 1.4.1, chapter 7, Determining Transparency). Where the image
    is to be had is checked by whoever reads it."""
    from collada.material import OPAQUE_MODE, Map

    if isinstance(effect.diffuse, Map):
        return ObjMaterial(image=texture(str(effect.diffuse.sampler.surface.image.path), folders))
    if effect.diffuse is None:
        return ObjMaterial()
    red, green, blue = (min(max(float(x), 0.0), 1.0) for x in effect.diffuse[:3])
    alpha, transparent = 1.0, effect.transparent
    share = effect.transparency if isinstance(effect.transparency, int | float) else 1.0
    if transparent is not None and not isinstance(transparent, Map):
        if effect.opaque_mode == OPAQUE_MODE.RGB_ZERO:
            alpha = 1.0 - max(float(x) for x in transparent[:3]) * share
        else:
            alpha = float(transparent[3]) * share
    opacity = opacity_of(alpha, f"COLLADA material {name[:40]!r}", folders.notes)
    return ObjMaterial(color=(red, green, blue), opacity=opacity)
