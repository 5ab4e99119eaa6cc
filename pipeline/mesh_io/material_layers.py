"""Layers of a loaded mesh: what its materials have beside the base colour, on coordinates and tangents of their own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32, Float64

from geometry.mesh import mikktspace
from pipeline.mesh_io.parts import LAYERS, Part
from schemas.mesh import FLAT, Layer, MaterialLayers, Shading, TexturedMesh

FARTHEST = 1e30
"""Coordinates beyond count as missing."""


def with_layers(
    mesh: TexturedMesh, parts: Sequence[Part], shadings: Sequence[Shading], *, originals: bool = False
) -> TexturedMesh:
    """A mesh with the layers that the shadings of its materials make, merged from `parts`, all of which have `map_uv`.
    `originals`: occlusion among them.

    A map counts where all faces of its material have its coordinates; else the factor stands alone."""
    maps = [part.map_uv for part in parts if part.map_uv is not None]
    uv = np.concatenate(maps, axis=1)
    known = (np.abs(uv) < FARTHEST).all(axis=2)
    emissive = np.array([shading.emissive for shading in shadings], np.float32).reshape(-1, 3)
    strength = max(float(emissive.max(initial=0.0)), 1.0)
    textures = {
        "metallic_roughness": [shading.metallic_roughness for shading in shadings],
        "normal": [shading.normal_map for shading in shadings],
        "emissive": [shading.emissive_texture for shading in shadings],
        "occlusion": [shading.occlusion_map for shading in shadings],
    }
    usable = {name: _covered(mesh, known[layer], len(shadings)) for layer, name in enumerate(LAYERS)}
    found = {
        name: tuple(one if has else None for one, has in zip(textures[name], usable[name], strict=True))
        for name in LAYERS
    }
    factors = {
        "metallic_roughness": [(1.0, shading.roughness, shading.metallic) for shading in shadings],
        "normal": [FLAT if texture is None else (1.0, 1.0, 1.0) for texture in found["normal"]],
        "emissive": emissive / strength,
        "occlusion": np.ones((len(shadings), 3)),
    }
    layers = {
        name: Layer(
            factors=np.array(factors[name], np.float32).reshape(-1, 3),
            textures=found[name],
            uv=np.where(known[layer, :, None], uv[layer], 0.0).astype(np.float32),
        )
        for layer, name in enumerate(LAYERS)
        if originals or name != "occlusion"
    }
    shares = np.array([shading.occlusion_strength for shading in shadings], np.float32)
    scale = np.array([shading.normal_scale for shading in shadings], np.float32)
    tangents = _tangents(mesh, parts, layers["normal"])
    return replace(
        mesh,
        layers=MaterialLayers(
            **layers,
            normal_scale=scale,
            emissive_strength=strength,
            tangents=tangents,
            occlusion_strength=shares if originals else None,
        ),
    )


def _covered(mesh: TexturedMesh, known: Bool[np.ndarray, " v"], count: int) -> Bool[np.ndarray, " m"]:
    """Return for each material whether all its faces have coordinates."""
    covered = np.ones(count, bool)
    covered[mesh.face_material[~known[mesh.faces].all(axis=1)]] = False
    return covered


def _tangents(mesh: TexturedMesh, parts: Sequence[Part], normal: Layer) -> Float32[np.ndarray, "f 3 4"]:
    """The file's tangents where a normal map has them, computed ones where it has not."""
    given = np.concatenate([_given(part) for part in parts])[mesh.faces]
    mapped = np.array([texture is not None for texture in normal.textures], bool)[mesh.face_material]
    known = given.any(axis=2).all(axis=1)
    tangents = np.where((mapped & known)[:, None, None], given, 0.0).astype(np.float32)
    lacking = np.flatnonzero(mapped & ~known)
    if len(lacking):
        tangents[lacking] = mikktspace(mesh.vertices, mesh.normals, normal.uv, mesh.faces[lacking])
    return tangents


def _given(part: Part) -> Float64[np.ndarray, "v 4"]:
    """Tangents of a part's vertices, of unit length; 0 where the file has none."""
    if part.tangents is None:
        return np.zeros((len(part.vertices), 4))
    lengths = np.linalg.norm(part.tangents[:, :3], axis=1, keepdims=True)
    sound = np.isfinite(lengths) & (lengths > 1e-12)
    unit = part.tangents[:, :3] / np.where(sound, lengths, 1.0)
    return np.where(sound, np.concatenate([unit, part.tangents[:, 3:]], axis=1), 0.0)
