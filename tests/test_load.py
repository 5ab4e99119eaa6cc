"""What the loader makes of a file: places, colours and coordinates, against values worked out by hand."""

import io
import time
from pathlib import Path

import DracoPy
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from pipeline.load import load_mesh
from pipeline.preflight import PreflightConfig, preflight
from schemas.ledger import Reason, Rejected
from schemas.mesh import AlphaMode, Material, TexturedMesh, Wrap
from tests.small_gltf import BOX_FACES, CORNERS, QUADRANTS, Builder, box, png, primitive


def loaded(directory: Path, builder: Builder) -> TexturedMesh:
    path = directory / "asset.glb"
    path.write_bytes(builder.glb())
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh), mesh
    return mesh


def refused(directory: Path, builder: Builder) -> Reason:
    path = directory / "asset.glb"
    path.write_bytes(builder.glb())
    found = load_mesh(path)
    assert isinstance(found, Rejected), found
    return found.reason


def signed_volume(mesh: TexturedMesh) -> float:
    """Positive where faces are counter-clockwise seen from outside."""
    a, b, c = np.moveaxis(mesh.vertices.astype(np.float64)[mesh.faces], 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


def test_box(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, box())
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], CORNERS[BOX_FACES])
    assert signed_volume(mesh) == pytest.approx(8)
    np.testing.assert_array_equal(mesh.textures[0].image[..., :3], QUADRANTS)
    # v up: the corner at +y shows the top of the image, row 0
    top = mesh.uv[mesh.faces][CORNERS[BOX_FACES][..., 1] == 1]
    assert (top[:, 1] == 1).all()
    # no normals in the file: flat
    normals = mesh.normals[mesh.faces]
    np.testing.assert_allclose(np.abs(normals).max(axis=2), 1)
    np.testing.assert_array_equal(normals[:, 0], normals[:, 1])


def test_nodes_instances_and_mirrors(tmp_path: Path) -> None:
    builder = box()
    half = np.sqrt(0.5)
    builder.tree["nodes"] = [
        {"translation": [10, 0, 0], "rotation": [0, 0, half, half], "children": [1]},
        {"mesh": 0, "scale": [1, 2, 3]},
        {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1]},
        {"mesh": 0, "translation": [99, 99, 99]},
    ]
    builder.tree["scenes"] = [{"nodes": [3]}, {"nodes": [0, 2]}]
    builder.tree["scene"] = 1
    mesh = loaded(tmp_path, builder)
    assert len(mesh.faces) == 24
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        mesh.vertices[mesh.faces[:12]], (CORNERS * [1, 2, 3] @ quarter.T + [10, 0, 0])[BOX_FACES], atol=1e-6
    )
    mirrored = mesh.vertices[mesh.faces[12:]]
    np.testing.assert_allclose(mirrored, (CORNERS * [-1, 1, 1] + [0, 0, 5])[BOX_FACES[:, ::-1]], atol=1e-6)
    assert signed_volume(mesh) == pytest.approx(6 * 8 + 8)  # both outside out


def test_normals_follow_the_surface_through_a_mirroring_stretch(tmp_path: Path) -> None:
    builder = box()
    primitive(builder)["attributes"]["NORMAL"] = builder.accessor(CORNERS / np.float32(np.sqrt(3)))
    builder.tree["nodes"][0]["matrix"] = [-2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 1]
    mesh = loaded(tmp_path, builder)
    expected = CORNERS / [-2, 1, 0.5]
    np.testing.assert_allclose(mesh.normals, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_missing_normals_are_filled(tmp_path: Path) -> None:
    builder = box()
    normals = CORNERS.copy()
    normals[2], normals[3] = np.nan, 0
    primitive(builder)["attributes"]["NORMAL"] = builder.accessor(normals)
    mesh = loaded(tmp_path, builder)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, rtol=1e-6)
    assert (mesh.normals[2:4] * CORNERS[2:4]).sum(axis=1).min() > 1


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"offset": [0.25, 0.5]}, (0.35, 0.7)),
        ({"scale": [2, 3]}, (0.2, 0.6)),
        ({"rotation": np.pi / 2}, (0.2, -0.1)),  # u goes to -v (v down): KhronosGroup/glTF#1563
        ({"offset": [1, 2], "rotation": np.pi / 2, "scale": [2, 3]}, (1.6, 1.8)),
    ],
)
def test_texture_transform(tmp_path: Path, transform: dict[str, object], expected: tuple[float, float]) -> None:
    builder = box()
    primitive(builder)["attributes"]["TEXCOORD_3"] = builder.accessor(np.tile(np.float32([0.1, 0.2]), (8, 1)))
    texture = builder.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    texture["extensions"] = {"KHR_texture_transform": transform | {"texCoord": 3}}
    uv = loaded(tmp_path, builder).uv
    np.testing.assert_allclose(uv, np.tile([expected[0], 1 - expected[1]], (len(uv), 1)), atol=1e-6)


def test_sampler_and_material(tmp_path: Path) -> None:
    builder = box()
    builder.tree["samplers"] = [{"wrapS": 33071, "wrapT": 33648, "magFilter": 9728}]
    builder.tree["textures"][0]["sampler"] = 0
    builder.tree["materials"].insert(0, {"name": "not used", "alphaMode": "BLEND"})
    builder.tree["materials"][1] |= {"alphaMode": "MASK", "alphaCutoff": 0.25, "doubleSided": True}
    builder.tree["materials"][1]["pbrMetallicRoughness"]["baseColorFactor"] = [0.5, 0.25, 1, 0.75]
    primitive(builder)["material"] = 1
    mesh = loaded(tmp_path, builder)
    material = Material(
        base_color=(0.5, 0.25, 1.0, 0.75), texture=0, alpha_mode=AlphaMode.MASK, alpha_cutoff=0.25, double_sided=True
    )
    assert mesh.materials == (material,)
    assert (mesh.textures[0].wrap_u, mesh.textures[0].wrap_v, mesh.textures[0].nearest) == (
        Wrap.CLAMP,
        Wrap.MIRROR,
        True,
    )


def test_specular_glossiness_diffuse_wins(tmp_path: Path) -> None:
    builder = box()
    builder.tree["materials"][0]["extensions"] = {
        "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}
    }
    mesh = loaded(tmp_path, builder)
    assert mesh.materials[0].base_color == (1, 0, 0, 1) and mesh.materials[0].texture is None


def test_vertex_colours_and_quantised_attributes(tmp_path: Path) -> None:
    builder = box(textured=False)
    attributes = primitive(builder)["attributes"]
    attributes["POSITION"] = builder.accessor((CORNERS * 127).astype(np.int8), normalized=True)
    attributes["COLOR_0"] = builder.accessor(np.tile(np.uint8([255, 51, 0, 255]), (8, 1)), normalized=True)
    mesh = loaded(tmp_path, builder)
    np.testing.assert_allclose(mesh.vertices[mesh.faces], CORNERS[BOX_FACES], atol=1e-6)
    np.testing.assert_allclose(mesh.colors, np.tile([1, 0.2, 0, 1], (len(mesh.colors), 1)), atol=1e-6)


def test_sparse_positions_and_strides(tmp_path: Path) -> None:
    builder = box()
    interleaved = np.concatenate([CORNERS, np.full((8, 2), 7, np.float32)], axis=1)
    view = builder.view(interleaved.tobytes())
    builder.tree["bufferViews"][view]["byteStride"] = 20
    builder.tree["accessors"][0]["bufferView"] = view
    rows, values = builder.view(np.uint8([6]).tobytes()), builder.view(np.float32([[9, 8, 7]]).tobytes())
    builder.tree["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": rows, "componentType": 5121},
        "values": {"bufferView": values},
    }
    mesh = loaded(tmp_path, builder)
    expected = CORNERS.copy()
    expected[6] = [9, 8, 7]
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], expected[BOX_FACES])


@pytest.mark.parametrize(
    ("mode", "expected"), [(5, [[0, 1, 2], [1, 3, 2], [2, 3, 4]]), (6, [[1, 2, 0], [2, 3, 0], [3, 4, 0]])]
)
def test_strips_and_fans(tmp_path: Path, mode: int, expected: list[list[int]]) -> None:
    builder = box()
    primitive(builder).update(mode=mode, indices=builder.accessor(np.arange(5, dtype=np.uint32)))
    mesh = loaded(tmp_path, builder)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], CORNERS[np.array(expected)])


def test_skin_at_rest(tmp_path: Path) -> None:
    """Half of each vertex' weight on a joint moved by +2 x since binding, half on one turned about z; the node of the
    mesh itself does not count."""
    builder = box()
    attributes = primitive(builder)["attributes"]
    attributes["JOINTS_0"] = builder.accessor(np.tile(np.uint8([0, 1, 0, 0]), (8, 1)))
    attributes["WEIGHTS_0"] = builder.accessor(np.tile(np.float32([0.5, 0.5, 0, 0]), (8, 1)))
    bind = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    bind[0, 0, 3] = -1
    turn = Rotation.from_euler("z", 90, degrees=True)
    builder.tree["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [100, 0, 0]},
        {"translation": [3, 0, 0]},
        {"rotation": [float(x) for x in turn.as_quat()]},
    ]
    builder.tree["scenes"] = [{"nodes": [0, 1, 2]}]
    stored = builder.accessor(bind.transpose(0, 2, 1).reshape(2, 16))
    builder.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": stored}]
    mesh = loaded(tmp_path, builder)
    expected = 0.5 * (CORNERS + np.array([2, 0, 0])) + 0.5 * turn.apply(CORNERS)
    np.testing.assert_allclose(mesh.vertices[mesh.faces], expected[BOX_FACES], atol=1e-6)


@pytest.mark.parametrize("kind", ["L", "LA", "P", "RGB", "RGBA", "I;16", "jpeg", "webp", "cmyk"])
def test_image_modes(tmp_path: Path, kind: str) -> None:
    grey = np.full((4, 4), 100, np.uint8)
    if kind == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        mode = {"jpeg": "RGB", "webp": "RGB", "cmyk": "CMYK"}.get(kind, kind)
        image = Image.fromarray(np.stack([grey] * 3, axis=2)).convert(mode)
    file = io.BytesIO()
    image.save(file, {"jpeg": "JPEG", "webp": "WEBP", "cmyk": "JPEG"}.get(kind, "PNG"))
    builder = box()
    number = builder.image(file.getvalue(), "image/any")
    builder.tree["textures"][0] = {"extensions": {"EXT_texture_webp": {"source": number}}, "source": 0}
    pixels = loaded(tmp_path, builder).textures[0].image
    assert np.abs(pixels[..., :3].astype(int) - 100).max() <= 2 and (pixels[..., 3] == 255).all()


def test_broken_images_reject(tmp_path: Path) -> None:
    whole = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for broken in (whole[:2000], whole[:500] + b"\0" * 200 + whole[700:]):
        builder = box()
        builder.tree["textures"][0]["source"] = builder.image(broken)
        assert refused(tmp_path, builder) == Reason.BAD_IMAGE


def test_no_texture_coordinates_reject(tmp_path: Path) -> None:
    builder = box()
    primitive(builder)["attributes"].pop("TEXCOORD_0")
    assert refused(tmp_path, builder) == Reason.INVALID_STRUCTURE


def test_nothing_to_draw(tmp_path: Path) -> None:
    builder = box()
    primitive(builder)["mode"] = 1
    assert refused(tmp_path, builder) == Reason.NO_GEOMETRY


def test_transforms_may_not_overflow(tmp_path: Path) -> None:
    builder = box()
    builder.tree["nodes"] = [{"scale": [1e200] * 3, "children": [1]}, {"scale": [1e200] * 3, "mesh": 0}]
    assert refused(tmp_path, builder) == Reason.NON_FINITE


def test_draco(tmp_path: Path) -> None:
    builder = box()
    stream = DracoPy.encode(CORNERS, BOX_FACES.astype(np.uint32), preserve_order=True, quantization_bits=16)
    view = builder.view(stream)
    entry = primitive(builder)
    entry["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": view, "attributes": {"POSITION": 0}}}
    entry["attributes"] = {"POSITION": entry["attributes"]["POSITION"]}
    entry.pop("material")
    for name in (0, 2):
        builder.tree["accessors"][name].pop("bufferView")
    builder.tree["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    mesh = loaded(tmp_path, builder)
    key = sorted(map(tuple, np.sort(mesh.vertices[mesh.faces].round(3).reshape(12, 9), axis=1).tolist()))
    expected = sorted(map(tuple, np.sort(CORNERS[BOX_FACES].reshape(12, 9), axis=1).tolist()))
    np.testing.assert_allclose(key, expected, atol=1e-2)
    assert signed_volume(mesh) == pytest.approx(8, rel=1e-3)
    builder.data = builder.data[: -len(stream)] + stream[:20] + b"\0" * (len(stream) - 20)
    assert refused(tmp_path, builder) in (Reason.LOAD_ERROR, Reason.INVALID_STRUCTURE, Reason.NON_FINITE)


def test_obj(tmp_path: Path) -> None:
    (tmp_path / "my map.png").write_bytes(png(QUADRANTS))
    (tmp_path / "a.mtl").write_text("newmtl textured\nKd 0 0 0\nmap_Kd my map.png\nnewmtl plain\nKd 0.5 1 0\nd 0.25")
    lines = ["mtllib a.mtl"] + [f"v {x} {y} {z}" for x, y, z in CORNERS] + ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1"]
    lines += ["usemtl textured", "f 1/1 2/2 4/3 3/4", "usemtl plain", "f 5 7 8 6", "f -8 -4 -3 -7"]
    path = tmp_path / "asset.obj"
    path.write_text("\n".join(lines))
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh), mesh
    expected = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]]
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], CORNERS[np.array(expected)])
    np.testing.assert_array_equal(mesh.uv[mesh.faces[:2]], [[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]])
    assert mesh.face_has_uv.tolist() == [True, True, False, False, False, False]
    assert mesh.face_material.tolist() == [0, 0, 1, 1, 1, 1]
    assert mesh.materials[0].base_color == (1, 1, 1, 1) and mesh.materials[0].texture == 0
    np.testing.assert_allclose(mesh.materials[1].base_color, [0.21404, 1, 0, 0.25], atol=1e-4)
    np.testing.assert_array_equal(mesh.textures[0].image[..., :3], QUADRANTS)
    normals = mesh.normals[mesh.faces]  # edges of a box are sharper than the crease: flat
    np.testing.assert_allclose(np.abs(normals).max(axis=2), 1, atol=1e-6)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes changed, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, kind = int(rng.integers(0, len(out))), int(rng.integers(0, 5))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at : at + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()
        elif kind == 2:
            out[at : at + 1] = bytes([int(rng.choice(list(b'0123456789-.e"[]{},:')))])
        elif kind == 3:
            del out[at : at + int(rng.integers(1, 9))]
        else:
            out[at:at] = out[at : at + int(rng.integers(1, 9))]
    return bytes(out)


VALUES: list[object] = [-1, 0, 1, 2, 7, 99, 2**31, 2**40, 0.5, 1e-300, 1e300, 10**400, True, None, "", "x", [], {}]
"""What a mutated tree may hold anywhere."""


def mutated_tree(node: object, rng: np.random.Generator) -> None:
    """One value somewhere below `node` replaced, removed or doubled."""
    while isinstance(node, dict | list) and node:
        key = list(node)[int(rng.integers(0, len(node)))] if isinstance(node, dict) else int(rng.integers(0, len(node)))
        below = node[key]  # type: ignore[index]
        if isinstance(below, dict | list) and below and rng.random() < 0.9:
            node = below
            continue
        if rng.random() < 0.2:
            del node[key]  # type: ignore[arg-type]
        else:
            node[key] = VALUES[int(rng.integers(0, len(VALUES)))]  # type: ignore[index]
        return


def rich() -> Builder:
    """Skin, sparse, strips, colours, transforms: more to go wrong."""
    builder = box()
    attributes = primitive(builder)["attributes"]
    attributes["JOINTS_0"] = builder.accessor(np.zeros((8, 4), np.uint8))
    attributes["WEIGHTS_0"] = builder.accessor(np.tile(np.float32([1, 0, 0, 0]), (8, 1)))
    attributes["COLOR_0"] = builder.accessor(np.full((8, 4), 200, np.uint8), normalized=True)
    builder.tree["nodes"] = [{"mesh": 0, "skin": 0}, {"translation": [3, 0, 0], "children": [2]}, {"mesh": 0}]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    stored = builder.accessor(np.eye(4, dtype=np.float32).reshape(1, 16))
    builder.tree["skins"] = [{"joints": [1], "inverseBindMatrices": stored}]
    builder.tree["samplers"] = [{"wrapS": 33071}]
    builder.tree["textures"][0]["sampler"] = 0
    return builder


def test_mutations_end_in_a_mesh_or_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(20250611)
    makers = [box, rich]
    path = tmp_path / "asset.glb"
    outcomes: dict[str, int] = {}
    slowest = 0.0
    for number in range(2000):
        builder = makers[number % 2]()
        if number % 4 < 2:
            for _ in range(int(rng.integers(1, 4))):
                mutated_tree(builder.tree, rng)
            path.write_bytes(builder.glb())
        elif number % 8 < 4:
            builder.data = mutated(builder.data, rng)
            path.write_bytes(builder.glb())
        else:
            path.write_bytes(mutated(builder.glb(), rng))
        start = time.process_time()
        facts, found = preflight(path, PreflightConfig()), load_mesh(path)
        slowest = max(slowest, time.process_time() - start)
        if isinstance(facts, Rejected):
            assert found == facts
        if isinstance(found, TexturedMesh):
            assert np.isfinite(found.vertices).all() and found.faces.max() < len(found.vertices)
        name = found.reason.value if isinstance(found, Rejected) else "mesh"
        outcomes[name] = outcomes.get(name, 0) + 1
    assert slowest < 2.0
    assert outcomes["mesh"] > 100 and len(outcomes) >= 8, outcomes  # the mutations do reach the inside
