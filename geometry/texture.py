"""Unlit base colour of a surface: factor x texture x vertex colour, always computed in linear light."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8, UInt16

from geometry.kernels.average import average_rows, encode_pixels, encode_rows
from geometry.kernels.color import color_rows, pixel_rows, point_rows
from geometry.kernels.footprint import FRAME_SIZE
from geometry.kernels.texel import texel_rows
from geometry.kernels.texture import RUN
from geometry.mips import mip_levels
from geometry.raster import Fragments, Rasterizer
from schemas.mesh import AlphaMode, Layer, Material, TexturedMesh, Wrap

MAX_LAYERS = 8
"""Cut-out surfaces in front of one another that a ray looks through; the last one is drawn as nothing."""
BLEND_CUTOFF = 0.5
"""Blended surfaces count as there from this alpha on (ours: sorting transparent layers has no place in a texture)."""
WRAP_CODE = {Wrap.REPEAT: 0, Wrap.MIRROR: 1, Wrap.CLAMP: 2}


def srgb_to_linear(srgb: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """IEC 61966-2-1, both in [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0.0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """IEC 61966-2-1, both in [0, 1]; input is clipped."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1.0 / 2.4) - 0.055)


SRGB_DECODE = srgb_to_linear(np.arange(256) / 255.0).astype(np.float32)
"""Linear light of each 8-bit level."""
LINEAR_DECODE = (np.arange(256) / 255.0).astype(np.float32)
"""Fraction of each 8-bit level."""
SRGB_STEPS = srgb_to_linear((np.arange(255) + 0.5) / 255.0).astype(np.float32)
"""Linear light at which rounding goes from level i to i + 1."""
SRGB_GUESS = np.searchsorted(SRGB_STEPS, np.arange(4097) / 4096.0, side="right").astype(np.uint8)
"""Level of linear light k / 4096: where the search in `SRGB_STEPS` starts."""


def encode_srgb8(linear: Float32[np.ndarray, "*n channels"]) -> UInt8[np.ndarray, "*n channels"]:
    """Linear light to 8-bit sRGB, correctly rounded."""
    flat = np.ascontiguousarray(linear).reshape(-1)
    out = np.empty(flat.shape, np.uint8)
    encode_rows(flat, SRGB_STEPS, SRGB_GUESS, out)
    return out.reshape(linear.shape)


def encode_pixels8(linear: Float32[np.ndarray, "*n 3"], mask: Bool[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    """`encode_srgb8` in the mask, black elsewhere."""
    out = np.empty(linear.shape, np.uint8)
    flat = np.ascontiguousarray(linear).reshape(-1, 3)
    encode_pixels(flat, mask.reshape(-1), SRGB_STEPS, SRGB_GUESS, out.reshape(-1, 3))
    return out


class PackedSurface(NamedTuple):
    """The colours of a mesh as flat arrays: a compiled loop takes all of it as one argument."""

    faces: Int32[np.ndarray, "f 3"]
    uv: Float32[np.ndarray, "v 2"]
    colors: Float32[np.ndarray, "v 4"]
    has_colors: bool
    """False when all vertex colours are 1."""
    face_material: Int32[np.ndarray, " f"]
    face_has_uv: Bool[np.ndarray, " f"]
    single_sided: Bool[np.ndarray, " f"]
    """True where a face is not seen from behind."""
    factors: Float32[np.ndarray, "m 4"]
    cutoffs: Float32[np.ndarray, " m"]
    """Alpha from which a fragment is there; -1 for opaque materials."""
    material_sampler: Int64[np.ndarray, " m"]
    """-1 for none."""
    samplers: Int64[np.ndarray, "t 8"]
    """Textures: first texel, height, width, wrap code u, wrap code v, nearest, first mip level, number of those."""
    texels: UInt8[np.ndarray, "texels 4"]
    """All images, one after the other."""
    levels: Int64[np.ndarray, "l 3"]
    """Mip levels: first texel, height, width."""
    mips: UInt16[np.ndarray, "mips 4"]
    """All mip levels, linear."""
    decode: Float32[np.ndarray, "256"]
    """Linear light of each 8-bit level."""

    def has_holes(self) -> bool:
        """Return whether some material can be looked through."""
        return bool((self.cutoffs >= 0.0).any())


def pack_layer(mesh: TexturedMesh, layer: Layer, decode: Float32[np.ndarray, "256"]) -> PackedSurface:
    """A layer of a mesh in place of its colour: opaque, `decode` the meaning of each 8-bit level."""
    materials = tuple(
        Material(base_color=(red, green, blue, 1.0), texture=texture, double_sided=plain.double_sided)
        for (red, green, blue), texture, plain in zip(
            layer.factors.tolist(), layer.textures, mesh.materials, strict=True
        )
    )
    bare = replace(
        mesh,
        uv=layer.uv,
        face_has_uv=np.ones(len(mesh.faces), bool),
        colors=np.ones((len(mesh.vertices), 4), np.float32),
        materials=materials,
    )
    return pack_surface(bare, decode=decode)


def pack_surface(
    mesh: TexturedMesh, mips: bool = True, decode: Float32[np.ndarray, "256"] | None = None
) -> PackedSurface:
    """The colour half of a mesh; images are copied only where there are several. Without `mips` it serves to look up
    points. A texture that cut-out and opaque materials share counts twice: its smaller versions differ. `decode`: the
    meaning of each 8-bit level; sRGB unless given."""
    decode = SRGB_DECODE if decode is None else decode
    if len(mesh.faces) and not 0 <= mesh.face_material.min() <= mesh.face_material.max() < len(mesh.materials):
        raise ValueError(f"face_material points outside the {len(mesh.materials)} materials")
    if any(m.texture is not None and not 0 <= m.texture < len(mesh.textures) for m in mesh.materials):
        raise ValueError(f"a material points outside the {len(mesh.textures)} textures")
    wanted = [(m.texture, m.alpha_mode is not AlphaMode.OPAQUE) for m in mesh.materials if m.texture is not None]
    distinct = list(dict.fromkeys(wanted))
    images = list(dict.fromkeys(texture for texture, _ in distinct))
    first = dict(zip(images, np.cumsum([0, *(mesh.textures[i].image[..., 0].size for i in images)]), strict=False))
    pyramids = [mip_levels(mesh.textures[i].image, decode, cut) if mips else [] for i, cut in distinct]
    flat = [level for pyramid in pyramids for level in pyramid]
    starts = np.cumsum([0, *(level[..., 0].size for level in flat)])
    samplers = []
    for number, ((i, _), pyramid) in enumerate(zip(distinct, pyramids, strict=True)):
        texture = mesh.textures[i]
        wraps = WRAP_CODE[texture.wrap_u], WRAP_CODE[texture.wrap_v]
        before = sum(map(len, pyramids[:number]))
        samplers.append((first[i], *texture.image.shape[:2], *wraps, texture.nearest, before, len(pyramid)))
    return PackedSurface(
        faces=mesh.faces,
        uv=mesh.uv,
        colors=mesh.colors,
        has_colors=bool((mesh.colors != 1.0).any()),
        face_material=mesh.face_material,
        face_has_uv=mesh.face_has_uv,
        single_sided=mesh.single_sided,
        factors=np.array([m.base_color for m in mesh.materials], np.float32).reshape(-1, 4),
        cutoffs=np.array([alpha_cutoff(m) for m in mesh.materials], np.float32),
        material_sampler=np.array(
            [
                -1 if m.texture is None else distinct.index((m.texture, m.alpha_mode is not AlphaMode.OPAQUE))
                for m in mesh.materials
            ],
            np.int64,
        ),
        samplers=np.array(samplers, np.int64).reshape(-1, 8),
        texels=joined([mesh.textures[i].image for i in images], np.uint8),
        levels=np.array(
            [(start, *level.shape[:2]) for start, level in zip(starts, flat, strict=False)], np.int64
        ).reshape(-1, 3),
        mips=joined(flat, np.uint16),
        decode=decode,
    )


def joined(images: list[np.ndarray], kind: type[np.generic]) -> np.ndarray:
    """Texels [n, 4] of images, one after the other; those of a single one are not copied."""
    flat = [np.ascontiguousarray(image).reshape(-1, 4) for image in images]
    if len(flat) == 1:
        return flat[0]
    return np.concatenate(flat) if flat else np.zeros((0, 4), kind)


def alpha_cutoff(material: Material) -> float:
    """Alpha from which a fragment of this material is there; -1 where it always is."""
    if material.alpha_mode is AlphaMode.OPAQUE:
        return -1.0
    return material.alpha_cutoff if material.alpha_mode is AlphaMode.MASK else BLEND_CUTOFF


def surface_color(
    surface: TexturedMesh | PackedSurface,
    fragments: Fragments,
    clip: Float32[np.ndarray, "images vertices 4"] | None = None,
) -> Float32[np.ndarray, "images height width 4"]:
    """Linear RGBA at every fragment. Alpha is 1, or 0 where nothing is or the material is cut out (MASK below its
    cutoff, BLEND below 0.5); colour is given there, too.

    With `clip`, the corners that the fragments were rasterised from, a texture counts with its mean over the pixel, as
    far as the plane of the face goes; without it, with its value at the point."""
    packed = pack_surface(surface, mips=clip is not None) if isinstance(surface, TexturedMesh) else surface
    out = np.empty((*fragments.face.shape, 4), np.float32)
    frame = np.zeros(FRAME_SIZE)
    scratch = np.empty(RUN), np.empty(RUN), np.empty(4 * RUN, np.uint64), np.empty(4 * RUN, np.float32)
    for image, (face, bary) in enumerate(zip(fragments.face, fragments.bary, strict=True)):
        if clip is None:
            point_rows(packed, face, bary, *scratch, out[image])
        else:
            color_rows(packed, face, bary, clip[image], frame, out[image])
    return out


def pixel_color(
    surface: PackedSurface,
    centres: Fragments,
    samples: Int32[np.ndarray, "images height_s width_s"],
    clip: Float32[np.ndarray, "images vertices 4"],
    rgb: Float32[np.ndarray, "images height width 3"],
) -> None:
    """Write the linear RGB of the pixels of views to `rgb`: mean of the covered ones among their samples
    (`Rasterizer.sides`), which form a multiple of the views; the centre's where there are none. For surfaces without
    holes: what is cut out would count as covered."""
    s = samples.shape[1] // rgb.shape[1]
    for image in range(len(rgb)):
        pixel_rows(
            surface, centres.face[image], centres.bary[image], samples[image], clip[image], s, np.zeros(FRAME_SIZE),
            rgb[image],
        )  # fmt: skip


def texel_color(
    surface: PackedSurface,
    clip: Float32[np.ndarray, "n 4"],
    faces: Int32[np.ndarray, "f 3"],
    centre: Fragments,
    samples: Int32[np.ndarray, "1 height_s width_s"],
) -> tuple[Float32[np.ndarray, "height width channels"], Bool[np.ndarray, "height width"], Bool[np.ndarray, " f"]]:
    """Linear RGB of the texels of a map, and in a fourth channel, where the surface has holes, their opacity: alpha
    shifted so that the cut lies at one half.

    Args:
        surface: what is laid out
        clip: corners of the layout, with `faces` the corners of each of the surface's faces
        centre: the layout at texel centres, one image
        samples: the sides that it shows (`Rasterizer.sides`) at a multiple of that size

    Returns:
        values; texels with anything to go by; faces that were met
    """
    height, width = centre.face.shape[1:]
    out = np.empty((height, width, 4 if surface.has_holes() else 3), np.float32)
    known, seen = np.empty((height, width), bool), np.zeros(len(faces), bool)
    texel_rows(
        surface, centre.face[0], centre.bary[0], samples[0], samples.shape[1] // height, clip, faces,
        np.zeros(FRAME_SIZE), np.full(FRAME_SIZE + 1, -1.0), out, known, seen,
    )  # fmt: skip
    return out, known, seen


def visible_fragments(
    surface: PackedSurface,
    clip: Float32[np.ndarray, "images vertices 4"],
    height: int,
    width: int,
    rasterizer: Rasterizer,
) -> Fragments:
    """Front fragments that are not cut out. Where nothing can be, no colour is looked up."""
    if surface.has_holes():
        return visible_surface(surface, clip, height, width, rasterizer)[0]
    return rasterizer.rasterize(clip, surface.faces, height, width, single_sided=surface.single_sided)


def visible_surface(
    surface: PackedSurface,
    clip: Float32[np.ndarray, "images vertices 4"],
    height: int,
    width: int,
    rasterizer: Rasterizer,
) -> tuple[Fragments, Float32[np.ndarray, "images height width 4"]]:
    """Front fragments that are not cut out, with their colour: where a material has a hole, what lies behind it."""
    front = rasterizer.rasterize(clip, surface.faces, height, width, single_sided=surface.single_sided)
    color = surface_color(surface, front, clip)
    if not surface.has_holes():
        return front, color
    layer, layer_color = front, color
    for _ in range(MAX_LAYERS - 1):
        hole = np.flatnonzero((layer.face >= 0) & (layer_color[..., 3] == 0.0))
        if not len(hole):
            break
        depth = np.full_like(layer.depth, np.inf)
        depth.reshape(-1)[hole] = layer.depth.reshape(-1)[hole]
        holes = replace(layer, depth=depth)
        layer = rasterizer.rasterize(clip, surface.faces, height, width, holes, surface.single_sided)
        layer_color = surface_color(surface, layer, clip)
        copy_pixels(layer, front, hole)
        color.reshape(-1, 4)[hole] = layer_color.reshape(-1, 4)[hole]
    nothing = np.flatnonzero(color[..., 3] == 0.0)
    front.face.reshape(-1)[nothing] = -1
    front.bary.reshape(-1, 2)[nothing] = 0.0
    front.depth.reshape(-1)[nothing] = np.inf
    color.reshape(-1, 4)[nothing] = 0.0
    return front, color


def copy_pixels(source: Fragments, target: Fragments, pixels: Int64[np.ndarray, " n"]) -> None:
    """Overwrite some pixels (flat indices) of the target's arrays."""
    target.face.reshape(-1)[pixels] = source.face.reshape(-1)[pixels]
    target.bary.reshape(-1, 2)[pixels] = source.bary.reshape(-1, 2)[pixels]
    target.depth.reshape(-1)[pixels] = source.depth.reshape(-1)[pixels]


def average_samples(
    color: Float32[np.ndarray, "images height_s width_s 4"],
    covered: Bool[np.ndarray, "images height_s width_s"],
    s: int,
) -> tuple[Float32[np.ndarray, "images height width 3"], Bool[np.ndarray, "images height width"]]:
    """Mean of the covered ones among the s x s samples of each pixel, and whether there were any."""
    images, height, width = color.shape[0], color.shape[1] // s, color.shape[2] // s
    rgb = np.empty((images, height, width, 3), np.float32)
    any_covered = np.empty((images, height, width), bool)
    for image in range(images):
        average_rows(color[image], covered[image], s, rgb[image], any_covered[image])
    return rgb, any_covered


def sample_image(
    image: UInt8[np.ndarray, "height width channels"] | Float[np.ndarray, "height width channels"],
    uv: Float[np.ndarray, "*n 2"],
) -> Float32[np.ndarray, "*n channels"]:
    """Bilinear look-up of plain values (no colour conversion), clamped at the border; row 0 is v = 1."""
    height, width = image.shape[:2]
    x = np.clip(uv[..., 0] * width - 0.5, 0, width - 1)
    y = np.clip((1.0 - uv[..., 1]) * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    upper = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    lower = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return (upper * (1 - fy) + lower * fy).astype(np.float32)
