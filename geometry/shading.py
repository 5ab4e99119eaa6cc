"""Metallic-roughness surfaces under a simple light: glTF 2.0's BRDF (appendix B: GGX, Smith, Schlick), no shadows.

The light is a sky that fades into the ground with height, and one lamp far away. A radiance that is linear in the
height of its direction has a closed form everywhere: its spherical harmonics end after the first band (Ramamoorthi and
Hanrahan 2001), so irradiance is exact, and a GGX lobe only scales that band."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from geometry.kernels.shading import halve, shade_rows
from geometry.raster import Fragments
from geometry.texture import LINEAR_DECODE, SRGB_DECODE, WRAP_CODE
from schemas.mesh import Shading, TexturedMesh
from schemas.sample import Cameras

TABLE_SIZE = 32
NUM_DIRECTIONS = 1024
"""Directions of the quadrature behind the tables."""
Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Light:
    """Linear RGB; 1 is what a white matt surface shows in 8 bits as 255. Fixed to the world: Z up, front at -Y."""

    sky: Color = (0.66, 0.70, 0.76)
    """Radiance from straight above."""
    ground: Color = (0.30, 0.27, 0.24)
    """Radiance from straight below; in between, linear in the height of the direction."""
    lamp: Color = (0.42, 0.40, 0.37)
    """Radiance that the lamp gives a white surface without any gloss that faces it."""
    lamp_azimuth_deg: float = -130.0
    """Towards the lamp, from +X towards +Y: left of the front."""
    lamp_elevation_deg: float = 40.0

    def rows(self) -> Float64[np.ndarray, "4 3"]:
        """Mean of the surroundings, half the difference between sky and ground, lamp, direction to the lamp."""
        azimuth, elevation = math.radians(self.lamp_azimuth_deg), math.radians(self.lamp_elevation_deg)
        across = math.cos(elevation)
        towards = across * math.cos(azimuth), across * math.sin(azimuth), math.sin(elevation)
        sky, ground = np.array(self.sky), np.array(self.ground)
        return np.stack([(sky + ground) / 2.0, (sky - ground) / 2.0, np.array(self.lamp), np.array(towards)])


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShading:
    """The materials of a mesh under light, as flat arrays for the compiled loop."""

    parameters: Float32[np.ndarray, "m 6"]
    """Parameters of each material: metallic, roughness, emissive RGB, normal scale."""
    maps: Int64[np.ndarray, "m 3"]
    """Maps of each material: rows of `maps_table` for metallic-roughness, emissive and normal; -1 for none."""
    maps_table: Int64[np.ndarray, "t 4"]
    """Textures: first row of `levels`, number of levels, wrap code u, wrap code v."""
    levels: Int64[np.ndarray, "l 3"]
    """First texel, height, width of every texture at full size and halved again and again."""
    texels: UInt8[np.ndarray, "texels 3"]
    tangents: Float32[np.ndarray, "f 6"]
    """Tangents of each face: how the position changes along u and along v (up); 0 where a face has no coordinates."""


def pack_shading(mesh: TexturedMesh) -> PackedShading:
    """The shading half of a mesh; only textures that it uses are taken."""
    shadings = [material.shading for material in mesh.materials]
    used = sorted(
        {(index, kind) for s in shadings for kind, index in enumerate(_indices(s)) if index is not None}
    )  # the same image may hold colour for one material and directions for another: averaged apart
    for index, _ in used:
        if not 0 <= index < len(mesh.textures):
            raise ValueError(f"a material's shading points outside the {len(mesh.textures)} textures")
    rows = {key: row for row, key in enumerate(used)}
    table: list[tuple[int, ...]] = []
    levels: list[tuple[int, ...]] = []
    texels: list[UInt8[np.ndarray, "_ 3"]] = []
    first = 0
    for index, kind in used:
        texture = mesh.textures[index]
        pyramid = _pyramid(np.ascontiguousarray(texture.image[..., :3]), SRGB_DECODE if kind == 1 else LINEAR_DECODE)
        table.append((len(levels), len(pyramid), WRAP_CODE[texture.wrap_u], WRAP_CODE[texture.wrap_v]))
        for level in pyramid:
            levels.append((first, *level.shape[:2]))
            texels.append(level.reshape(-1, 3))
            first += len(texels[-1])
    return PackedShading(
        parameters=np.array(
            [(s.metallic, s.roughness, *s.emissive, s.normal_scale) for s in shadings], np.float32
        ).reshape(-1, 6),
        maps=np.array(
            [[-1 if i is None else rows[i, kind] for kind, i in enumerate(_indices(s))] for s in shadings], np.int64
        ).reshape(-1, 3),
        maps_table=np.array(table, np.int64).reshape(-1, 4),
        levels=np.array(levels, np.int64).reshape(-1, 3),
        texels=np.concatenate(texels) if texels else np.zeros((1, 3), np.uint8),
        tangents=_tangents(mesh),
    )


def shade(
    mesh: TexturedMesh,
    packed: PackedShading,
    fragments: Fragments,
    clip: Float32[np.ndarray, "images vertices 4"],
    base_color: Float32[np.ndarray, "images height width 4"],
    eyes: Float64[np.ndarray, "images 4"],
    light: Light,
) -> Float32[np.ndarray, "images height width 3"]:
    """Linear radiance towards the camera of every fragment, 0 where nothing is. Both sides of a face are lit.

    `base_color` is the unlit look-up at the same fragments; `eyes` are the cameras' homogeneous places: (x, y, z, 1),
    or (towards the viewer, 0) for parallel rays. No tone mapping."""
    out = np.empty((*fragments.face.shape, 3), np.float32)
    table, spread = split_sum_table(), lobe_spread()
    for image in range(len(out)):
        shade_rows(
            fragments.face[image], fragments.bary[image], base_color[image], mesh.faces, mesh.vertices, mesh.normals,
            mesh.uv, mesh.face_material, mesh.face_has_uv, packed.parameters, packed.maps, packed.maps_table,
            packed.levels, packed.texels, SRGB_DECODE, LINEAR_DECODE, packed.tangents,
            _texel_levels(mesh, clip[image], out.shape[1:3]), eyes[image], light.rows(), table, spread, out[image],
        )  # fmt: skip
    return out


def eyes_of(cameras: Cameras) -> Float64[np.ndarray, "views 4"]:
    """Homogeneous places of cameras, as `shade` takes them."""
    rotation = cameras.world_to_cam[:, :3, :3].astype(np.float64)
    position = -np.einsum("vij,vi->vj", rotation, cameras.world_to_cam[:, :3, 3].astype(np.float64))
    parallel = cameras.projection[:, 3, 3:] == 1.0
    return np.concatenate([np.where(parallel, rotation[:, 2], position), 1.0 - parallel], axis=1)


def _indices(shading: Shading) -> tuple[int | None, int | None, int | None]:
    return shading.metallic_roughness, shading.emissive_texture, shading.normal_map


def _pyramid(
    image: UInt8[np.ndarray, "height width 3"], decode: Float32[np.ndarray, "256"]
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """An image at full size, half, a quarter... down to a side of one texel; means of what the numbers stand for."""
    levels = [image]
    steps = ((decode[1:] + decode[:-1]) / 2.0).astype(np.float32)
    while min(levels[-1].shape[:2]) > 1:
        levels.append(halve(levels[-1], decode, steps))
    return levels


def _tangents(mesh: TexturedMesh) -> Float32[np.ndarray, "f 6"]:
    """dP/du and dP/dv of every face that some normal map needs."""
    tangents = np.zeros((len(mesh.faces), 6), np.float32)
    mapped = np.array([m.shading.normal_map is not None for m in mesh.materials], bool)
    faces = np.flatnonzero(mapped[mesh.face_material] & mesh.face_has_uv) if len(mesh.faces) else np.zeros(0, int)
    points, uv = mesh.vertices[mesh.faces[faces]].astype(np.float64), mesh.uv[mesh.faces[faces]].astype(np.float64)
    (e1, e2), (d1, d2) = (points[:, 1:] - points[:, :1]).swapaxes(0, 1), (uv[:, 1:] - uv[:, :1]).swapaxes(0, 1)
    area = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    sign = np.sign(area)[:, None]  # directions alone matter: no division by a small area
    tangents[faces, :3] = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * sign
    tangents[faces, 3:] = (e2 * d1[:, :1] - e1 * d2[:, :1]) * sign
    lengths = np.linalg.norm(tangents.reshape(-1, 2, 3), axis=2, keepdims=True)
    return (tangents.reshape(-1, 2, 3) / np.where(lengths > 0.0, lengths, 1.0)).reshape(-1, 6).astype(np.float32)


def _texel_levels(
    mesh: TexturedMesh, clip: Float32[np.ndarray, "vertices 4"], size: tuple[int, int]
) -> Float32[np.ndarray, " f"]:
    """log2 of how many texture widths a sample of this image spans on every face: on average over the face."""
    corners = clip[mesh.faces].astype(np.float64)
    in_front = (corners[..., 3] > 0.0).all(axis=1)
    screen = corners[..., :2] / np.where(in_front[:, None], corners[..., 3], 1.0)[..., None]
    pixels = _areas(screen) * (size[0] * size[1] / 4.0)
    ratio = _areas(mesh.uv[mesh.faces].astype(np.float64)) / np.maximum(pixels, 1e-9)
    return np.where(in_front, 0.5 * np.log2(np.maximum(ratio, 1e-18)), 0.0).astype(np.float32)


def _areas(corners: Float64[np.ndarray, "f 3 2"]) -> Float64[np.ndarray, " f"]:
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2.0


def ggx_directions(alpha: float) -> Float64[np.ndarray, "directions 3"]:
    """Half vectors spread as GGX spreads them around +Z (Karis 2013), from the Hammersley set."""
    index = np.arange(NUM_DIRECTIONS)
    bits = np.unpackbits(index.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - 10 :]
    turn = (bits * 0.5 ** np.arange(10, 0, -1)).sum(axis=1)  # ten bits mirrored: the radical inverse
    share = (index + 0.5) / NUM_DIRECTIONS
    cosine = np.sqrt((1.0 - share) / (1.0 + (alpha * alpha - 1.0) * share))
    sine = np.sqrt(1.0 - cosine * cosine)
    return np.stack([sine * np.cos(2 * np.pi * turn), sine * np.sin(2 * np.pi * turn), cosine], axis=1)


@functools.cache
def split_sum_table() -> Float32[np.ndarray, "cosines roughnesses 2"]:
    """Scale and bias of F0 in the reflection of a white sphere of light, by cos(view) and roughness, both in [0, 1] at
    the ends: the second sum of Karis 2013, "Real Shading in Unreal Engine 4", with glTF's visibility term."""
    table = np.empty((TABLE_SIZE, TABLE_SIZE, 2), np.float32)
    cosines = np.maximum(np.linspace(0.0, 1.0, TABLE_SIZE), 1e-3)[:, None]
    view = np.stack([np.sqrt(1.0 - cosines**2), np.zeros_like(cosines), cosines], axis=-1)
    for column, roughness in enumerate(np.linspace(0.0, 1.0, TABLE_SIZE)):
        alpha = max(roughness * roughness, 1e-3)
        half = ggx_directions(alpha)[None]
        v_dot_h = np.maximum((view * half).sum(axis=-1), 0.0)
        n_dot_l = np.maximum(2.0 * v_dot_h * half[..., 2] - cosines, 0.0)
        smith_l = cosines * np.sqrt(n_dot_l**2 * (1.0 - alpha**2) + alpha**2)
        smith_v = n_dot_l * np.sqrt(cosines**2 * (1.0 - alpha**2) + alpha**2)
        weight = 2.0 * n_dot_l * v_dot_h / (half[..., 2] * np.maximum(smith_l + smith_v, 1e-12))
        fresnel = (1.0 - v_dot_h) ** 5
        table[:, column, 0] = (weight * (1.0 - fresnel)).mean(axis=1)
        table[:, column, 1] = (weight * fresnel).mean(axis=1)
    return table / np.maximum(table.sum(axis=2, keepdims=True), np.float32(1.0))  # the quadrature may overshoot by 1 %


@functools.cache
def lobe_spread() -> Float32[np.ndarray, " roughnesses"]:
    """Return how much a GGX lobe of each roughness weakens the first band that it reflects (Karis 2013's first sum,
    view = normal = reflection)."""
    spread = np.empty(TABLE_SIZE, np.float32)
    for column, roughness in enumerate(np.linspace(0.0, 1.0, TABLE_SIZE)):
        n_dot_l = np.maximum(2.0 * ggx_directions(max(roughness * roughness, 1e-3))[:, 2] ** 2 - 1.0, 0.0)
        spread[column] = (n_dot_l * n_dot_l).sum() / n_dot_l.sum()
    return spread
