"""Meshes between the steps of the pipeline: planned, as loaded, and as unwrapped.

Conventions, stated once:

- Positions as loaded are in the asset's own glTF frame (right-handed, Y up); `geometry.frames.normalise` takes them to
  the dataset frame (Z up, bounding box centred, largest side 2).
- Texture coordinates have v pointing **up**: v = 1 is row 0 of an image. (glTF files store 1 - v; the loader flips.)
- Base colour factors and vertex colours are linear RGBA in [0, 1]; texture images are sRGB RGB plus linear alpha.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Author and licence of an asset, carried into every sample."""

    name: str = ""
    """Of the collection."""
    licence: str = ""
    attribution: str = ""
    """The line that a licence such as CC-BY asks for: title, author, page."""
    title: str = ""
    author: str = ""
    url: str = ""
    """The asset's page."""


class AssetKind(StrEnum):
    """The kind of an asset's main file."""

    MESH = "mesh"
    OFFICIAL_MODEL = "official-model"
    """The `model.glb` of SeqTex's 3D layout, perhaps with its texture beside it."""
    OFFICIAL_RENDERS = "official-renders"
    """The `meta.json` of SeqTex's image layout: views without a mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshRef:
    """One planned asset."""

    uid: str
    """Key of the sample; `[A-Za-z0-9_-]{1,200}` only."""
    uri: str
    """Path of the main file, absolute, in a plan within the folder of its job; or `objaverse://`, `objaverse-xl://` or
    `texverse://` and its place there."""
    sha256: str | None = None
    """Of the main file, or of all its files (`pipeline.mesh_io.side_files`), when the source knows it."""
    source: Attribution = Attribution()
    caption: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Texts by level (`short`, `long`), where there are several: the same levels for all assets of a dataset."""
    kind: AssetKind = AssetKind.MESH
    root: str | None = None
    """The folder that all files of the asset lie in, as in `uri`, where it is not the main file's own, and for a .glb
    that refers to other files; a .glb without it may not."""


class Wrap(StrEnum):
    """Texture coordinates outside [0, 1], as in a glTF sampler."""

    REPEAT = "repeat"
    MIRROR = "mirror"
    CLAMP = "clamp"


class AlphaMode(StrEnum):
    """The use of a material's alpha, as in glTF."""

    OPAQUE = "opaque"
    MASK = "mask"
    BLEND = "blend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texture:
    """One image with its sampler."""

    image: UInt8[np.ndarray, "height width 4"]
    """RGB sRGB-encoded, A linear; row 0 is v = 1."""
    wrap_u: Wrap = Wrap.REPEAT
    wrap_v: Wrap = Wrap.REPEAT
    nearest: bool = False
    """Nearest instead of bilinear magnification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shading:
    """The metallic-roughness half of a material, which only lit views need (glTF 2.0, 3.9). Its textures share the
    coordinates of the base colour; where a file gives them others, the factor alone counts."""

    metallic: float = 0.0
    roughness: float = 1.0
    metallic_roughness: int | None = None
    """Index into `TexturedMesh.textures`: roughness in G, metallic in B, both linear."""
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Linear RGB factor, strength applied."""
    emissive_texture: int | None = None
    """Index into `TexturedMesh.textures`, sRGB."""
    normal_map: int | None = None
    """Index into `TexturedMesh.textures`: tangent-space normal, 8-bit linear."""
    normal_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The look of a surface: unlit base colour, and its answer to light."""

    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Linear RGBA factor."""
    texture: int | None = None
    """Index into `TexturedMesh.textures`."""
    alpha_mode: AlphaMode = AlphaMode.OPAQUE
    alpha_cutoff: float = 0.5
    double_sided: bool = True
    """Drawn from both sides of its faces; else from the one around which their corners run counter-clockwise."""
    shading: Shading = Shading()


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturedMesh:
    """A whole asset as one indexed triangle mesh; node transforms applied, attributes per vertex."""

    vertices: Float32[np.ndarray, "v 3"]
    normals: Float32[np.ndarray, "v 3"]
    """Unit vertex normals (authored where the file has them)."""
    uv: Float32[np.ndarray, "v 2"]
    """Coordinates of the base-colour texture, texture transform applied; 0 where a part has none."""
    colors: Float32[np.ndarray, "v 4"]
    """Vertex colours, linear RGBA; 1 where a part has none."""
    faces: Int32[np.ndarray, "f 3"]
    face_material: Int32[np.ndarray, " f"]
    """Index into `materials`."""
    face_has_uv: Bool[np.ndarray, " f"]
    """False where the part of this face has no texture coordinates."""
    materials: tuple[Material, ...]
    textures: tuple[Texture, ...]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the origin of `vertices` lies in the asset's own frame, in double precision: not 0 only for an asset so far
    from its origin (UTM coordinates) that single precision would distort it."""

    @property
    def single_sided(self) -> Bool[np.ndarray, " f"]:
        """Faces that are not seen from behind."""
        return ~np.array([material.double_sided for material in self.materials], bool)[self.face_material]


AUTHORED, GROWN, XATLAS = LAYOUTS = ("authored", "grown", "xatlas")
"""Origins of a UV layout: the asset's author, our own charts, xatlas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UvMesh:
    """The same surface with one UV layout in [0, 1]^2. Face i is face i of the `TexturedMesh` it came from; vertices
    are split at chart borders."""

    vertices: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    uv: Float32[np.ndarray, "n 2"]
    faces: Int32[np.ndarray, "f 3"]
    layout: str
    """One of `LAYOUTS`."""
    single_sided: Bool[np.ndarray, " f"] | None = None
    """Faces that are not seen from behind; None: there are none."""
