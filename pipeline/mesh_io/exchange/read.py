"""One way to the readers of this folder, and the files that such a file refers to."""

import numpy as np

from geometry.frames import z_up_to_y_up
from pipeline.mesh_io.exchange.dae import IMAGE_FILE, read_dae, up_of
from pipeline.mesh_io.exchange.off import read_off
from pipeline.mesh_io.exchange.pieces import assembled
from pipeline.mesh_io.exchange.ply import MAX_HEADER, TEXTURE, read_ply
from pipeline.mesh_io.exchange.stl import read_stl
from pipeline.mesh_io.exchange.three_mf import read_3mf
from pipeline.mesh_io.references import Folders, plain_text
from pipeline.mesh_io.wavefront.obj import ObjFile

SUFFIXES = (".3mf", ".dae", ".off", ".ply", ".stl")


def read_exchange(
    data: bytes, suffix: str, folders: Folders, max_bytes: int, max_faces: int, *, z_up: bool = False
) -> ObjFile:
    """Parse a file of one of `SUFFIXES`; the result is Y up. 3MF is Z up, COLLADA says which axis is.

    Args:
        data: the file
        suffix: of its name
        folders: where its textures may lie
        max_bytes: of what an archive unpacks to
        max_faces: triangles, each instance counted
        z_up: the other formats, which have no axis of their own, are Z up instead of Y up
    """
    up = np.eye(4)
    if suffix == ".3mf" or (z_up and suffix != ".dae"):
        up[:3, :3] = z_up_to_y_up(np.eye(3)).T
    if suffix == ".ply":
        pieces = read_ply(data, folders, max_faces)
    elif suffix == ".off":
        pieces = read_off(data, max_faces, folders.notes)
    elif suffix == ".stl":
        pieces = read_stl(data, max_faces, folders.notes)
    elif suffix == ".3mf":
        pieces = read_3mf(data, max_bytes, max_faces, folders.notes)
    else:
        up, pieces = up_of(data), read_dae(data, folders, max_faces)
    return assembled(pieces, up, max_faces, folders.notes)


def referenced(data: bytes, suffix: str) -> list[str]:
    """Names of the files that a PLY or COLLADA file refers to, by its text alone."""
    found = TEXTURE.findall(data[:MAX_HEADER]) if suffix == ".ply" else IMAGE_FILE.findall(data)
    return [name for name in (plain_text(name).strip() for name in found) if name]
