"""glTF materials: the base-colour part always, the part that lit views and materials need when asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from pipeline.mesh_io.gltf.container import BASISU, WEBP, Container, image_bytes
from pipeline.mesh_io.gltf.json_fields import Json
from pipeline.mesh_io.image_header import image_size
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import NoteKind, Reason
from schemas.mesh import AlphaMode, Wrap

_WRAP = {10497: Wrap.REPEAT, 33648: Wrap.MIRROR, 33071: Wrap.CLAMP}
_NEAREST = 9728
T = TypeVar("T")
IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""No KHR_texture_transform."""


@dataclass(frozen=True, slots=True, eq=False)
class TextureUse:
    """A texture as a material uses it."""

    image: int
    substitute: int | None
    """The image that the file gives readers which cannot decode `image`."""
    wrap_u: Wrap
    wrap_v: Wrap
    nearest: bool
    texcoord: int
    transform: Float64[np.ndarray, "2 3"]
    """KHR_texture_transform on stored (v down) coordinates."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneMaterial:
    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    texture: TextureUse | None = None
    alpha_mode: AlphaMode = AlphaMode.OPAQUE
    alpha_cutoff: float = 0.5
    double_sided: bool = False
    glows_instead: bool = False
    """Base colour and texture are those of the light it emits (`emissive_instead`)."""
    entry: Json = field(default_factory=lambda: Json({}, "default material"))
    """The material as it stands in the file, for `read_shading`."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SceneShading:
    """The answer of a material to light (glTF 2.0, 3.9)."""

    metallic: float
    roughness: float
    emissive: tuple[float, float, float]
    normal_scale: float
    metallic_roughness: TextureUse | None
    glossiness: TextureUse | None
    """Texture of KHR_materials_pbrSpecularGlossiness: specular colour, sRGB, and glossiness in A, whose
    factor is 1 - `roughness`."""
    specular: tuple[float, float, float] | None
    """Factor of that colour, linear; None in any other material."""
    glossiness_shared: bool
    """The glossiness texture lies on the coordinates of the base colour."""
    emissive_texture: TextureUse | None
    normal_map: TextureUse | None
    occlusion: TextureUse | None
    occlusion_strength: float

    def shared(self, material: SceneMaterial) -> "SceneShading":
        """The same without textures on other coordinates than the base colour's."""
        return replace(
            self,
            metallic_roughness=_sharing(self.metallic_roughness, material),
            glossiness=_sharing(self.glossiness, material),
            emissive_texture=_sharing(self.emissive_texture, material),
            normal_map=_sharing(self.normal_map, material),
        )


def read_material(entry: Json, container: Container) -> SceneMaterial:
    """Base colour: metallic-roughness, or KHR_materials_pbrSpecularGlossiness where present (its diffuse)."""
    gloss = entry.extension("KHR_materials_pbrSpecularGlossiness")
    rough = entry.object("pbrMetallicRoughness") or Json({}, entry.at("pbrMetallicRoughness"))
    source, factor, slot = (
        (gloss, "diffuseFactor", "diffuseTexture") if gloss else (rough, "baseColorFactor", "baseColorTexture")
    )
    red, green, blue, alpha = (min(max(x, 0.0), 1.0) for x in source.numbers(factor, (1.0, 1.0, 1.0, 1.0)))
    mode = entry.text("alphaMode", "OPAQUE")
    if mode not in ("OPAQUE", "MASK", "BLEND"):
        entry.wrong("alphaMode", "OPAQUE, MASK or BLEND")
    use = source.object(slot)
    return SceneMaterial(
        base_color=(red, green, blue, alpha),
        texture=None if use is None else _texture_use(use, container),
        alpha_mode=AlphaMode(mode.lower()),
        alpha_cutoff=entry.number("alphaCutoff", 0.5),
        double_sided=entry.flag("doubleSided"),
        entry=entry,
    )


def emissive_instead(material: SceneMaterial, container: Container) -> SceneMaterial | None:
    """The material with what it emits as its base colour: for black ones, as baked "unlit" looks are often exported.
    None where it emits nothing, or the light cannot take the base colour's place: other coordinates, or holes in the
    base colour's texture."""
    entry, texture = material.entry, material.texture
    factor = [min(max(x, 0.0), 1.0) for x in _lenient(lambda: entry.numbers("emissiveFactor", (0.0, 0.0, 0.0)), [0.0])]
    slot = _lenient(lambda: entry.object("emissiveTexture"), None)
    use = None if slot is None else _lenient(lambda: _texture_use(slot, container), None)
    elsewhere = use is not None and use.texcoord != (texture.texcoord if texture else 0)
    if not any(factor) or elsewhere or entry.extension("KHR_materials_unlit") is not None:
        return None
    if texture is not None and material.alpha_mode is not AlphaMode.OPAQUE:
        return None
    red, green, blue = factor
    return replace(material, base_color=(red, green, blue, material.base_color[3]), texture=use, glows_instead=True)


def read_shading(material: SceneMaterial, container: Container) -> SceneShading:
    """Factors and textures of a material's answer to light. It raises nothing: what is wrong there counts as absent,
    because base colour and geometry, which were checked, are sound without it."""
    entry = material.entry
    gloss, unlit = entry.extension("KHR_materials_pbrSpecularGlossiness"), entry.extension("KHR_materials_unlit")
    rough = _lenient(lambda: entry.object("pbrMetallicRoughness"), None) or Json({}, entry.at("pbrMetallicRoughness"))
    strength = _lenient(lambda: entry.extension("KHR_materials_emissive_strength"), None) or Json({}, entry.where)
    normal = _lenient(lambda: entry.object("normalTexture"), None) or Json({}, entry.at("normalTexture"))
    shade = _lenient(lambda: entry.object("occlusionTexture"), None) or Json({}, entry.at("occlusionTexture"))
    if unlit is not None:
        metallic, roughness = 0.0, 1.0
    elif gloss is not None:
        metallic, roughness = 0.0, 1.0 - _share(gloss, "glossinessFactor")
    else:
        metallic, roughness = _share(rough, "metallicFactor"), _share(rough, "roughnessFactor")
    factor = _lenient(lambda: entry.numbers("emissiveFactor", (0.0, 0.0, 0.0)), [0.0, 0.0, 0.0])
    power = max(_lenient(lambda: strength.number("emissiveStrength", 1.0), 1.0), 0.0)
    red, green, blue = (0.0 if material.glows_instead else min(max(x, 0.0), 1.0) * power for x in factor)
    plain, shiny = gloss is None and unlit is None, None
    if gloss is not None and unlit is None:
        shiny = _use_or_none(gloss, "specularGlossinessTexture", container)
    return SceneShading(
        metallic=metallic,
        roughness=roughness,
        emissive=(red, green, blue),
        normal_scale=_lenient(lambda: normal.number("scale", 1.0), 1.0),
        metallic_roughness=_use_or_none(rough, "metallicRoughnessTexture", container) if plain else None,
        glossiness=shiny,
        glossiness_shared=_sharing(shiny, material) is not None,
        specular=_color(gloss, "specularFactor") if gloss and not unlit else None,
        emissive_texture=None if material.glows_instead else _use_or_none(entry, "emissiveTexture", container),
        normal_map=_use_or_none(entry, "normalTexture", container) if unlit is None else None,
        occlusion=_use_or_none(entry, "occlusionTexture", container) if unlit is None else None,
        occlusion_strength=_share(shade, "strength"),
    )


def _lenient(read: Callable[[], T], default: T) -> T:
    try:
        return read()
    except AssetError:
        return default


def _share(source: Json, key: str) -> float:
    return min(max(_lenient(lambda: source.number(key, 1.0), 1.0), 0.0), 1.0)


def _color(source: Json, key: str) -> tuple[float, float, float]:
    red, green, blue = (min(max(x, 0.0), 1.0) for x in _lenient(lambda: source.numbers(key, [1.0] * 3), [1.0] * 3))
    return red, green, blue


def _use_or_none(source: Json, slot: str, container: Container) -> TextureUse | None:
    entry = _lenient(lambda: source.object(slot), None)
    return None if entry is None else _lenient(lambda: _texture_use(entry, container), None)


def _sharing(use: TextureUse | None, material: SceneMaterial) -> TextureUse | None:
    """A texture that lies on the coordinates of the base colour."""
    texcoord = material.texture.texcoord if material.texture else 0
    transform = material.texture.transform if material.texture else IDENTITY
    if use is None or use.texcoord != texcoord or not np.array_equal(use.transform, transform):
        return None
    return use


def _texture_use(use: Json, container: Container) -> TextureUse:
    number = use.index("index", len(container.textures), "textures")
    if number is None:
        use.wrong("index", "a reference")
    texture = container.textures[number]
    chosen = texture.index("sampler", len(container.samplers), "samplers")
    sampler = container.samplers[chosen] if chosen is not None else Json({}, "samplers")
    shift = use.extension("KHR_texture_transform") or Json({}, use.where)
    image, *others = _texture_images(texture, container)
    return TextureUse(
        image=image,
        substitute=others[0] if others else None,
        wrap_u=_wrap(sampler, "wrapS"),
        wrap_v=_wrap(sampler, "wrapT"),
        nearest=sampler.integer("magFilter", 9729) == _NEAREST,
        texcoord=shift.integer("texCoord", use.integer("texCoord", 0)),
        transform=_transform(shift),
    )


def _wrap(sampler: Json, key: str) -> Wrap:
    code = sampler.integer(key, 10497)
    if code not in _WRAP:
        sampler.wrong(key, f"one of {sorted(_WRAP)}")
    return _WRAP[code]


def _texture_images(texture: Json, container: Container) -> list[int]:
    """The images of a texture; one in a compressed format is preferred to its substitute, as in viewers, unless it is
    none that can be read."""
    sources = [texture.extension(BASISU), texture.extension(WEBP), texture]
    found = [source.index("source", len(container.images), "images") for source in sources if source]
    images = [image for image in found if image is not None]
    if not images:
        raise AssetError(Reason.BAD_IMAGE, f"{texture.where} has no image")
    while len(images) > 1:
        with container.notes.in_place_of_an_error(NoteKind.IMAGE_REPLACED):
            image = container.images[images[0]]
            image_size(image_bytes(image, container.max_bytes), image.where, image.suffix)
            break
        images.pop(0)
    return images


def _transform(shift: Json) -> Float64[np.ndarray, "2 3"]:
    """Offset * rotation * scale. The rotation turns u towards -v (stored v points down): what viewers do, and the
    reading that the extension's maintainers confirmed (KhronosGroup/glTF#1563), against the sign in its listing."""
    offset = shift.numbers("offset", (0.0, 0.0))
    scale = shift.numbers("scale", (1.0, 1.0))
    angle = shift.number("rotation", 0.0)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array(
        [[cos * scale[0], sin * scale[1], offset[0]], [-sin * scale[0], cos * scale[1], offset[1]]], dtype=np.float64
    )
