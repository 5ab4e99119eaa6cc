"""Checked bytes to one textured mesh: the only reader of assets."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool

from geometry.frames import bounding_box
from geometry.texture import srgb_to_linear
from pipeline.mesh_io.gltf.container import Image, image_bytes
from pipeline.mesh_io.gltf.glossiness import to_metal, to_metal_images
from pipeline.mesh_io.gltf.materials import SceneMaterial, SceneShading, TextureUse, emissive_instead, read_shading
from pipeline.mesh_io.gltf.mesh import Maps, scene_parts
from pipeline.mesh_io.gltf.scene import Scene
from pipeline.mesh_io.images import TextureStore
from pipeline.mesh_io.material_layers import with_layers
from pipeline.mesh_io.parts import Part, merge
from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig, UpAxis, open_checked
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import read_limited
from pipeline.mesh_io.wavefront.mtl import ObjMaterial
from pipeline.mesh_io.wavefront.obj import ObjFile, obj_part, with_coordinates
from pipeline.mesh_io.wavefront.physical import PhysicalReader, without_elsewhere
from schemas.ledger import NoteKind, Reason, Rejected
from schemas.mesh import AlphaMode, Material, Shading, Texture, TexturedMesh, Wrap

BLACK = 4
"""8-bit sRGB levels below which a colour counts as black: JPEG leaves some noise (ours)."""


Detail = Literal["none", "layers", "originals"]
"""Materials that are loaded beside the base colour: none, `TexturedMesh.layers`, or these with occlusion and
`Texture.file`, for those who write the mesh again."""


def load_mesh(
    path: Path,
    cfg: PreflightConfig | None = None,
    *,
    shading: bool = False,
    materials: bool = False,
    up_axis: UpAxis = "y",
) -> TexturedMesh | Rejected:
    """A file of `preflight.SUFFIXES` as one mesh in its own Y-up frame, or why it cannot be read. Runs the preflight
    itself. The files that it refers to must lie in its own folder or below.

    Every face of the default scene, in file order, with node transforms, instances, morph targets at rest and skins
    applied. A base-colour image that is missing or broken rejects the asset: it is never silently textureless. Normals
    are the authored ones; without them, flat for glTF (as its specification says), smooth up to a crease angle for OBJ.

    `shading`: fill `Material.shading` too, with its textures after those of the base colours; a texture of it that
    cannot be had is skipped, its factor stays. `materials`: fill `TexturedMesh.layers`, with textures on whatever
    coordinates; one that cannot be had is noted. Specular-glossiness materials then become metallic-roughness ones,
    base colour included. `up_axis`: of formats that do not say it.
    """
    cfg = cfg or PreflightConfig()
    found = load_asset(path, cfg, path.parent, shading=shading, materials=materials, up_axis=up_axis)
    return found if isinstance(found, Rejected) else found[1]


def load_asset(
    path: Path,
    cfg: PreflightConfig,
    root: Path | None = None,
    *,
    shading: bool = False,
    materials: bool = False,
    originals: bool = False,
    up_axis: UpAxis = "y",
) -> tuple[AssetFacts, TexturedMesh | Rejected] | Rejected:
    """Check and load an asset, parsing its file once: facts and mesh, or why the preflight refused it. `root`: the
    folder that the files it refers to must lie in; None: its own, and none for a .glb. `originals`: materials with
    occlusion and `Texture.file`, for those who write the mesh again. `up_axis`: of formats that do not say which it is
    (OBJ, OFF, PLY, STL)."""
    notes = Notes()
    detail: Detail = "originals" if originals else "layers" if materials else "none"
    try:
        facts, content = open_checked(path, cfg, root, notes, up_axis)
    except AssetError as error:
        return error.rejected
    try:
        if isinstance(content, ObjFile):
            mesh = _from_obj(content, cfg, notes, shading, detail)
        else:
            facts, mesh = _from_scene(content, facts, cfg, shading, detail)
    except AssetError as error:
        return replace(facts, notes=notes.found()), error.rejected
    facts = replace(facts, notes=notes.found())
    return facts, _incomplete(mesh, facts) or _without_extent(mesh) or mesh


def _incomplete(mesh: TexturedMesh, facts: AssetFacts) -> Rejected | None:
    """The loader made something else of a file than the preflight had counted in it."""
    images = [mesh.textures[material.texture].image for material in mesh.materials if material.texture is not None]
    found, distinct = len(mesh.faces), len({id(image) for image in images})
    if found == facts.faces and distinct >= facts.images and all(image.size for image in images):
        return None
    detail = f"{found:,} faces and {distinct} images were loaded, {facts.faces:,} and {facts.images} are in the file"
    return Rejected(reason=Reason.LOAD_ERROR, detail=detail)


def _without_extent(mesh: TexturedMesh) -> Rejected | None:
    if not len(mesh.faces):
        return Rejected(reason=Reason.NO_GEOMETRY, detail="0 faces")
    lower, upper = bounding_box(mesh.vertices, mesh.faces)
    side = float((upper - lower).max())
    if np.isfinite(side) and side > 0:
        return None
    return Rejected(reason=Reason.DEGENERATE, detail=f"the largest side of the bounding box is {side}")


def _from_scene(
    scene: Scene, facts: AssetFacts, cfg: PreflightConfig, shading: bool, detail: Detail
) -> tuple[AssetFacts, TexturedMesh]:
    """The drawn scene, and its facts without parts that turn out to be damaged and images that are replaced."""
    images = scene.container.images
    store = TextureStore[int](lambda image: _encoded(images[image], cfg), cfg.max_image_bytes)
    if cfg.emissive_as_base:
        scene = _glowing(scene, store)
    layered = detail != "none"
    parts, lost = scene_parts(scene, _maps(scene, detail) if layered else None)
    if (error := scene.container.notes.first_error) and not any(len(part.faces) for part in parts):
        raise error
    sources = [scene.materials[number - 1] if number else SceneMaterial() for number in _used(parts)]
    found = [read_shading(source, scene.container) for source in sources] if shading or layered else []
    if detail == "originals":  # glTF's default material is a metal, which nobody asks for who gives none
        found = [
            replace(one, metallic=one.metallic if used else 0.0) for one, used in zip(found, _used(parts), strict=True)
        ]
    if lost or any(source.glows_instead for source in sources):
        used = {source.texture.image for source in sources if source.texture is not None}
        facts = replace(facts, faces=facts.faces - lost, images=len(used))
    materials = []
    for source in sources:
        materials.append(
            Material(
                base_color=source.base_color,
                texture=_slot(source.texture, store, scene.container.notes) if source.texture else None,
                alpha_mode=source.alpha_mode,
                alpha_cutoff=source.alpha_cutoff,
                double_sided=source.double_sided,
            )
        )
    parts = _renumbered(parts)
    if shading:
        mapped = _with_uv(parts, len(materials))
        materials = [
            replace(material, shading=_shading(answer.shared(source), store, bool(mapped[number])))
            for number, (material, source, answer) in enumerate(zip(materials, sources, found, strict=True))
        ]
    if not layered:
        return facts, merge(parts, materials, store.textures())
    return facts, _layered(scene, parts, materials, found, store, detail)


def _layered(
    scene: Scene,
    parts: list[Part],
    materials: list[Material],
    answers: list[SceneShading],
    store: TextureStore[int],
    detail: Detail,
) -> TexturedMesh:
    """The mesh with the layers of its materials, each of which answers to light as `answers` has it."""
    notes, mapped, originals = scene.container.notes, _with_uv(parts, len(materials)), detail == "originals"
    shadings = [_noted_shading(answer, store, notes) for answer in answers]
    if originals:
        shadings = [
            replace(shading, occlusion_map=_noted_slot(answer.occlusion, store, notes))
            for shading, answer in zip(shadings, answers, strict=True)
        ]
    glosses = [_noted_slot(answer.glossiness, store, notes) for answer in answers]
    textures = store.textures(originals=originals)
    for number, (answer, gloss) in enumerate(zip(answers, glosses, strict=True)):
        if answer.specular is not None:
            sharing = gloss is None or answer.glossiness_shared
            image = None if gloss is None or (sharing and not mapped[number]) else textures[gloss]
            materials[number], shadings[number] = _metal(
                materials[number], answer, shadings[number], image, sharing, textures
            )
    return with_layers(merge(parts, materials, textures), parts, shadings, originals=originals)


def _glowing(scene: Scene, store: TextureStore[int]) -> Scene:
    """The scene with emitted light in place of base colours that are black."""
    found, notes = {}, scene.container.notes
    for number, material in scene.materials.items():
        instead = emissive_instead(material, scene.container)
        if instead is None:
            continue
        black = bool(max(material.base_color[:3]) < srgb_to_linear(np.array(BLACK / 255.0)))
        if not black and material.texture is not None:
            use = _decodable(material.texture, store, notes)
            found[number] = replace(material, texture=use)
            black = int(store.pixels(use.image)[..., :3].max()) < BLACK
        if black:
            found[number] = instead
            detail = f"{material.entry.where}: its base colour is black, what it emits stands in"
            notes.add(NoteKind.IMAGE_REPLACED, detail)
    return replace(scene, materials=scene.materials | found)


def _encoded(image: Image, cfg: PreflightConfig) -> tuple[bytes | memoryview, str, str]:
    return image_bytes(image, cfg.max_file_bytes), image.where, image.suffix


def _slot(use: TextureUse, store: TextureStore[int], notes: Notes) -> int:
    chosen = _decodable(use, store, notes)
    return store.slot(chosen.image, chosen.wrap_u, chosen.wrap_v, chosen.nearest)


def _decodable(use: TextureUse, store: TextureStore[int], notes: Notes) -> TextureUse:
    """A base-colour texture, with its substitute where its image cannot be decoded."""
    try:
        store.pixels(use.image)
    except AssetError as error:
        if use.substitute is None:
            raise
        notes.add(NoteKind.IMAGE_REPLACED, f"{error.rejected.detail}: its substitute is used")
        return _decodable(replace(use, image=use.substitute, substitute=None), store, notes)
    return use


def _maps(scene: Scene, detail: Detail) -> Maps:
    """The textures of every material's layers; a converted one lies where gloss or colour do."""
    answers = {number: read_shading(material, scene.container) for number, material in scene.materials.items()}
    return {
        number: (
            answer.metallic_roughness
            or answer.glossiness
            or (None if answer.specular is None else scene.materials[number].texture),
            answer.normal_map,
            answer.emissive_texture,
            answer.occlusion if detail == "originals" else None,
        )
        for number, answer in answers.items()
    }


def _shading(found: SceneShading, store: TextureStore[int], has_uv: bool) -> Shading:
    def slot(use: TextureUse | None) -> int | None:
        return store.slot_or_none(use.image, use.wrap_u, use.wrap_v, use.nearest) if use and has_uv else None

    rough, roughness = slot(found.metallic_roughness), found.roughness
    if (use := found.glossiness) and has_uv:
        rough = store.slot_or_none(use.image, use.wrap_u, use.wrap_v, use.nearest, glossiness=1.0 - roughness)
        roughness = roughness if rough is None else 1.0  # then the texture holds the factor
    return _shading_of(found, roughness, rough, slot(found.emissive_texture), slot(found.normal_map))


def _noted_shading(found: SceneShading, store: TextureStore[int], notes: Notes) -> Shading:
    """The shading of a layer, its textures on whatever coordinates. That of a specular-glossiness material lacks its
    texture, which is to be converted."""
    uses = found.metallic_roughness, found.emissive_texture, found.normal_map
    return _shading_of(found, found.roughness, *(_noted_slot(use, store, notes) for use in uses))


def _noted_slot(use: TextureUse | None, store: TextureStore[int], notes: Notes) -> int | None:
    """The place of a texture that one can do without, which is noted."""
    with notes.in_place_of_an_error(NoteKind.DATA_IGNORED):
        return None if use is None else _slot(use, store, notes)
    return None


def _shading_of(
    found: SceneShading, roughness: float, rough: int | None, emissive: int | None, normal: int | None
) -> Shading:
    return Shading(
        metallic=found.metallic,
        roughness=roughness,
        metallic_roughness=rough,
        emissive=found.emissive,
        emissive_texture=emissive,
        normal_map=normal,
        normal_scale=found.normal_scale,
        occlusion_strength=found.occlusion_strength,
    )


def _metal(
    material: Material,
    answer: SceneShading,
    shading: Shading,
    gloss: Texture | None,
    sharing: bool,
    textures: list[Texture],
) -> tuple[Material, Shading]:
    """A specular-glossiness material as a metallic-roughness one; its images are added to `textures`.

    `gloss`: its texture; `sharing`: on the coordinates of the base colour. Elsewhere no image can hold the converted
    colour: then the diffuse one stays, and its factor decides what is metal."""
    assert answer.specular is not None
    colors = None if material.texture is None or not sharing else textures[material.texture]
    red, green, blue, opacity = material.base_color
    model = colors or gloss
    if model is None:
        color, metallic = to_metal(np.array([[red, green, blue]]), np.array([answer.specular]))
        base = (float(color[0, 0]), float(color[0, 1]), float(color[0, 2]), opacity)
        return replace(material, base_color=base), replace(shading, metallic=float(metallic[0]))
    images = to_metal_images(
        None if colors is None else colors.image,
        (red, green, blue),
        None if gloss is None else gloss.image,
        answer.specular,
        1.0 - answer.roughness,
    )
    textures += [replace(model, image=image, file=None) for image in images]
    shading = replace(shading, metallic=1.0, roughness=1.0, metallic_roughness=len(textures) - 1)
    if not sharing:
        return material, shading
    return replace(material, base_color=(1.0, 1.0, 1.0, opacity), texture=len(textures) - 2), shading


def _with_uv(parts: list[Part], count: int) -> Bool[np.ndarray, " materials"]:
    """Return for each material whether all its faces have texture coordinates."""
    mapped = np.ones(count, bool)
    for part in parts:
        mapped[part.face_material[~part.face_has_uv]] = False
    return mapped


def _used(parts: list[Part]) -> list[int]:
    """Numbers of the materials that faces have, ascending."""
    return sorted({int(number) for part in parts for number in np.unique(part.face_material)})


def _renumbered(parts: list[Part]) -> list[Part]:
    used = np.array(_used(parts), dtype=np.int64)
    return [replace(part, face_material=np.searchsorted(used, part.face_material)) for part in parts]


def _from_obj(obj: ObjFile, cfg: PreflightConfig, notes: Notes, shading: bool, detail: Detail) -> TexturedMesh:
    """Every material that faces use, the corners of all faces made vertices."""
    layered, originals = detail != "none", detail == "originals"
    part = obj_part(with_coordinates(obj, notes, layered=layered), layered=layered)
    sources = [obj.materials[number] for number in _used([part])]
    (part,) = _renumbered([part])
    names = dict[Path, str]()

    def fetch(path: Path) -> tuple[bytes, str, str]:
        name = names.get(path, "map_Kd")
        return read_limited(path, name, cfg.max_file_bytes), f"{name} {path.name!r}", path.suffix

    store = TextureStore[Path](fetch, cfg.max_image_bytes)
    materials = [_obj_material(source, _obj_texture(source, store, notes)) for source in sources]
    textures = store.textures(originals=originals)
    shadings = [Shading(roughness=source.roughness) for source in sources]
    if layered and obj.folders is not None:
        reader = PhysicalReader(part, obj.folders, store, notes, len(textures), names=names)
        shadings = [reader.read(number, source) for number, source in enumerate(sources)]
        textures += reader.textures
    if shading:
        materials = [
            replace(material, shading=without_elsewhere(one, source))
            for material, one, source in zip(materials, shadings, sources, strict=True)
        ]
    mesh = merge([part], materials, textures)
    return with_layers(mesh, [part], shadings, originals=originals) if layered else mesh


def _obj_texture(material: ObjMaterial, store: TextureStore[Path], notes: Notes) -> int | None:
    """map_Kd and map_d as one texture. A mask that lies elsewhere on the surface than the colour is noted."""
    image, mask = material.image, material.mask
    if image and mask and (mask.scale, mask.offset) != (image.scale, image.offset):
        notes.add(NoteKind.DATA_IGNORED, f"{mask.where}: map_d has another -s or -o than map_Kd: ignored")
        mask = None
    use = image or mask
    if use is None:
        return None
    wrap = Wrap.CLAMP if use.clamp else Wrap.REPEAT
    return store.slot(
        image.path if image else None,
        wrap,
        wrap,
        mask=mask.path if mask else None,
        channel=mask.channel if mask else "",
    )


def _obj_material(material: ObjMaterial, texture: int | None) -> Material:
    """A map stands in for the value it belongs to. Opacity is that of a blended material, as viewers have it, whether
    it is a value or a map: drawn is what has one half or more, as of every blended material."""
    red, green, blue = (float(x) for x in srgb_to_linear(np.array(material.color, dtype=np.float32)))
    factor = (1.0, 1.0, 1.0) if material.image is not None else (red, green, blue)
    opacity = 1.0 if material.mask is not None else material.opacity
    blend = AlphaMode.BLEND if material.mask is not None or opacity < 1 else AlphaMode.OPAQUE
    return Material(base_color=(*factor, opacity), texture=texture, alpha_mode=blend)
