"""The procedural source: real files, clean layouts, textures that follow from geometry."""

import io
import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from pipeline.sources.procedural.assets import (
    BROKEN,
    DENSE_FACES,
    TEXTURE_SIZE,
    Design,
    Kind,
    asset_bytes,
    design,
    kind_of,
)
from pipeline.sources.procedural.finishes import FINISHES
from pipeline.sources.procedural.objects import BUILDERS
from pipeline.sources.procedural.patches import Detail, cells
from pipeline.sources.procedural.patterns import COLORS, MIN_SEPARATION
from pipeline.sources.registry import open_source
from schemas.errors import UsageError
from schemas.sample import TextureSample
from training.diffusion.encoders import DctCodec

SAMPLES = tuple(range(24))


def first_of(kind: Kind) -> Design:
    index = next(i for i in range(100) if kind_of(i) is kind)
    return design(0, index, kind)


def loaded(data: bytes) -> list[trimesh.Trimesh]:
    """Primitives with the node transform applied."""
    scene = trimesh.load(io.BytesIO(data), file_type="glb", process=False)
    meshes = []
    for name in scene.graph.nodes_geometry:
        transform, geometry = scene.graph[name]
        mesh = scene.geometry[geometry].copy()
        normals = np.array(mesh.vertex_normals)
        mesh.apply_transform(transform)
        mesh.metadata["normals"] = normals
        meshes.append(mesh)
    return meshes


def texture_of(mesh: trimesh.Trimesh) -> np.ndarray:
    """float [h, w, 3] in [0, 1]."""
    return np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")) / 255.0


def bilinear(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """uv with v up."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]

    top = at(y0, x0) * (1 - fx) + at(y0, x0 + 1) * fx
    return top * (1 - fy) + (at(y0 + 1, x0) * (1 - fx) + at(y0 + 1, x0 + 1) * fx) * fy


def z_up(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points[:, 0], -points[:, 2], points[:, 1]])


def normalised(points: np.ndarray) -> np.ndarray:
    points = z_up(points)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) * (2 / (high - low).max())


def uv_face(meshes: list[trimesh.Trimesh], size: int) -> np.ndarray:
    """Face under each texel centre, -1 for none; image orientation."""
    uv = np.concatenate([m.visual.uv for m in meshes])
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    faces = np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=False)]).astype(np.int32)
    clip = np.column_stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1], np.zeros(len(uv)), np.ones(len(uv))])
    return CpuRasterizer().rasterize(clip[None].astype(np.float32), faces, size, size).face[0]


def uv_area(meshes: list[trimesh.Trimesh]) -> float:
    corners = np.concatenate([m.visual.uv[m.faces] for m in meshes])
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return float(np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2)


def psnr(difference: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean(difference**2)))


@pytest.fixture(scope="module")
def textured() -> list[tuple[Design, list[trimesh.Trimesh]]]:
    designs = [design(0, index, Kind.TEXTURED) for index in SAMPLES]
    return [(d, loaded(asset_bytes(d))) for d in designs]


@pytest.mark.parametrize("noun", BUILDERS)
@pytest.mark.parametrize("seed", [1, 2])
def test_faces_point_out_and_are_few(noun: str, seed: int) -> None:
    """Vertex normals agree with the winding, and the winding with the outside."""
    volume, count = 0.0, 0
    for patch in BUILDERS[noun](np.random.default_rng(seed), Detail()):
        faces = cells(patch)
        corners = patch.positions.reshape(-1, 3)[faces]
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        smooth = patch.normals.reshape(-1, 3)[faces].mean(axis=1)
        agrees = np.einsum("fk,fk->f", flat, smooth) > 0
        area = np.linalg.norm(flat, axis=1)
        assert area[agrees].sum() > 0.99 * area.sum()
        np.testing.assert_allclose(np.linalg.norm(patch.normals, axis=-1), 1.0, atol=1e-6)
        volume += np.einsum("fk,fk->", corners.mean(axis=1) - patch.positions.reshape(-1, 3).mean(axis=0), flat)
        count += len(faces)
    assert volume > 0
    assert 800 <= count <= 3500


@pytest.mark.parametrize("kind", [k for k in Kind if k not in BROKEN])
def test_every_good_kind_loads(kind: Kind) -> None:
    plan = first_of(kind)
    meshes = loaded(asset_bytes(plan))
    points = np.concatenate([m.vertices for m in meshes])
    assert np.isfinite(points).all()
    assert np.ptp(points, axis=0).min() > 0
    textures = [
        m
        for m in meshes
        if m.visual.kind == "texture" and getattr(m.visual.material, "baseColorTexture", None) is not None
    ]
    expected = {Kind.TEXTURED: 1, Kind.MATERIALS: 2, Kind.OVERLAPPING: 2}.get(kind, 0)
    assert len(textures) == expected
    if kind in (Kind.VERTEX_COLORS, Kind.DENSE):
        assert len(np.unique(meshes[0].visual.vertex_colors, axis=0)) > 10
    if kind is Kind.FLAT_COLORS:
        assert len({tuple(m.visual.material.baseColorFactor) for m in meshes}) == len(meshes) >= 2
    if kind is Kind.DENSE:
        assert sum(len(m.faces) for m in meshes) >= DENSE_FACES


def chunks(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from("<I", data, 12)
    return data[20 : 20 + length], data[28 + length :]


def accessor(data: bytes, name: str) -> np.ndarray:
    """Positions or indices of the first primitive, read by hand."""
    text, binary = chunks(data)
    document = json.loads(text)
    primitive = document["meshes"][0]["primitives"][0]
    record = document["accessors"][primitive["indices"] if name == "indices" else primitive["attributes"][name]]
    view = document["bufferViews"][record["bufferView"]]
    dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[record["componentType"]]
    width = {"SCALAR": 1, "VEC3": 3}[record["type"]]
    return np.frombuffer(binary, dtype, record["count"] * width, view["byteOffset"]).reshape(-1, width)


def test_broken_kinds_are_broken_as_stated() -> None:
    data = {kind: asset_bytes(first_of(kind)) for kind in BROKEN}
    for kind, content in data.items():
        whole = struct.unpack_from("<I", content, 8)[0] == len(content)
        assert whole == (kind is not Kind.TRUNCATED)
        assert (content[:4] == b"glTF") == (kind is not Kind.BAD_MAGIC)
    positions = accessor(data[Kind.NAN_POSITIONS], "POSITION")
    assert np.isnan(positions).any()
    assert np.isfinite(positions).any()
    broken_range = data[Kind.INDEX_RANGE]
    assert accessor(broken_range, "indices").max() >= len(accessor(broken_range, "POSITION"))
    with pytest.raises(json.JSONDecodeError):
        json.loads(chunks(data[Kind.INVALID_JSON])[0])


def test_mix_of_kinds() -> None:
    share = Counter(kind_of(i) for i in range(100))
    assert share[Kind.TEXTURED] + share[Kind.MATERIALS] >= 60
    assert sum(share[kind] for kind in BROKEN) == 10
    assert share[Kind.DENSE] == 10
    assert set(share) == set(Kind)


def test_layouts_are_clean(textured: list[tuple[Design, list[trimesh.Trimesh]]]) -> None:
    shared = [loaded(asset_bytes(design(0, index, Kind.MATERIALS))) for index in (2, 22)]
    for meshes in [m for _, m in textured] + shared:
        uv = np.concatenate([m.visual.uv for m in meshes])
        assert uv.min() >= 0.0
        assert uv.max() <= 1.0
        covered = (uv_face(meshes, 512) >= 0).mean()
        # Without overlap the area of all triangles is the area that they cover.
        assert abs(uv_area(meshes) - covered) < 0.01 * covered
        assert covered > 0.7


def test_charts_keep_their_distance(textured: list[tuple[Design, list[trimesh.Trimesh]]]) -> None:
    several = [(d, m[0]) for d, m in textured if len(d.patches) > 1]
    assert several
    for plan, mesh in several:
        ends = np.cumsum([len(np.unique(cells(p))) for p in plan.patches])[:-1]
        boxes = [(chart.min(axis=0), chart.max(axis=0)) for chart in np.split(mesh.visual.uv, ends)]
        for k, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:k]:
                gap = np.maximum(other_low - high, low - other_high).max()
                assert gap * 128 >= 4 - 1e-3


def test_texture_is_the_pattern_at_the_surface(textured: list[tuple[Design, list[trimesh.Trimesh]]]) -> None:
    """Through the file: position from the vertex, colour from the image at the vertex's UV, right way up."""
    errors = []
    for plan, (mesh,) in textured:
        if plan.pattern.family.name == "lids":  # follows the normal, which differs on both sides of a hard edge
            continue
        expected = plan.pattern(normalised(mesh.vertices), z_up(mesh.metadata["normals"]))
        error = np.abs(bilinear(texture_of(mesh), mesh.visual.uv) - expected).max(axis=1)
        assert error.mean() < 0.02, plan.caption
        errors.append(error)
    errors = np.concatenate(errors)
    assert np.quantile(errors, 0.99) < 0.08
    assert errors.mean() < 0.006


def test_colours_meet_at_seams(textured: list[tuple[Design, list[trimesh.Trimesh]]]) -> None:
    """Vertices at one place on different chart borders have one colour."""
    pairs = 0
    for plan, (mesh,) in textured:
        if plan.pattern.family.name == "lids":
            continue
        place = np.round(normalised(mesh.vertices), 4)
        _, group = np.unique(place, axis=0, return_inverse=True)
        rgb = bilinear(texture_of(mesh), mesh.visual.uv)
        order = np.argsort(group.ravel(), kind="stable")
        same = np.diff(group.ravel()[order]) == 0
        difference = np.abs(np.diff(rgb[order], axis=0)).max(axis=1)[same]
        assert difference.mean() < 0.03, plan.caption
        pairs += len(difference)
    assert pairs > 1000


def test_one_colour_is_a_bad_guess_and_the_codec_a_good_one(
    textured: list[tuple[Design, list[trimesh.Trimesh]]],
) -> None:
    codec = DctCodec()
    flat, coded = [], []
    for _, (mesh,) in textured:
        image = np.asarray(
            mesh.visual.material.baseColorTexture.convert("RGB").resize((128, 128), Image.Resampling.BOX)
        )
        image = (image / 255.0).astype(np.float32)
        covered = uv_face([mesh], 128) >= 0
        flat.append(psnr(image[covered] - image[covered].mean(axis=0)))
        back = codec.decode(codec.encode(torch.from_numpy(image)[None, None]))[0, 0].clamp(0, 1).numpy()
        coded.append(psnr((back - image)[covered]))
    assert min(flat) > 8.0
    assert max(flat) < 13.0
    assert np.mean(flat) < 11.0
    assert np.mean(coded) > 33.0
    assert np.quantile(coded, 0.1) > 27.0


def test_palettes_are_far_apart_and_captions_say_what_they_are() -> None:
    for index in range(60):
        plan = design(3, index, Kind.TEXTURED)
        palette = plan.pattern.palette
        assert 2 <= len(palette.names) <= 4
        for k, color in enumerate(palette.rgb):
            assert np.abs(color - COLORS[palette.names[k]]).max() <= 0.04 + 1e-9
            for other in palette.rgb[:k]:
                assert np.sqrt(np.mean((color - other) ** 2)) >= MIN_SEPARATION
        article, rest = plan.caption.split(" ", 1)
        assert article == ("an" if rest[0] in "aeiou" else "a")
        assert plan.noun in rest.split(" in ")[0]
        assert all(name in rest for name in palette.names)


def test_same_bytes_whatever_the_count(tmp_path: Path) -> None:
    few = list(procedural(3, tmp_path / "few", seed=5))
    many = list(procedural(6, tmp_path / "many", seed=5))
    assert [r.sha256 for r in few] == [r.sha256 for r in many[:3]]
    assert [Path(r.uri).read_bytes() for r in few] == [Path(r.uri).read_bytes() for r in many[:3]]
    assert [r.uid for r in many][-1] == "procedural-000005"
    assert many[0].source.licence == "CC0-1.0"
    assert len({r.sha256 for r in many}) == 6
    other = next(procedural(1, tmp_path / "other", seed=6))
    assert other.sha256 != few[0].sha256


def test_right_files_stay_and_wrong_ones_are_replaced(tmp_path: Path) -> None:
    first = list(procedural(3, tmp_path))
    before = [Path(r.uri).stat().st_mtime_ns for r in first]
    content = Path(first[1].uri).read_bytes()
    Path(first[1].uri).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = list(procedural(3, tmp_path))
    assert again == first
    assert Path(first[1].uri).read_bytes() == content
    assert [Path(first[k].uri).stat().st_mtime_ns for k in (0, 2)] == [before[0], before[2]]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"procedural-00000{k}.glb" for k in range(3)]


def test_clean_assets_are_all_textured(tmp_path: Path) -> None:
    refs = list(procedural(10, tmp_path, clean=True))
    for ref in refs:
        (mesh,) = loaded(Path(ref.uri).read_bytes())
        assert texture_of(mesh).shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)


def metallic_roughness_of(mesh: trimesh.Trimesh) -> np.ndarray:
    """float [h, w, 3] in [0, 1]."""
    return np.asarray(mesh.visual.material.metallicRoughnessTexture.convert("RGB")) / 255.0


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (*BROKEN, Kind.DENSE)])
def test_finishes_change_nothing_else(kind: Kind) -> None:
    """Shape, coordinates, base colours and the two materials' division are those of the asset without finishes."""
    index = next(i for i in range(100) if kind_of(i) is kind)
    plain, shiny = (loaded(asset_bytes(design(0, index, kind, materials=on))) for on in (False, True))
    assert len(plain) == len(shiny)
    for before, after in zip(plain, shiny, strict=True):
        np.testing.assert_array_equal(before.triangles, after.triangles)
        if before.visual.kind == "texture" and before.visual.uv is not None:
            np.testing.assert_array_equal(before.visual.uv, after.visual.uv)
        if getattr(before.visual, "material", None) and before.visual.material.baseColorTexture is not None:
            np.testing.assert_array_equal(texture_of(before), texture_of(after))
            assert before.visual.material.metallicRoughnessTexture is None
            assert metallic_roughness_of(after)[..., 1].std() > 0.02


def test_finishes_follow_position_as_colours_do() -> None:
    """Through the file: each point's finish is that of its colour, where the colour is one of the palette's."""
    metals = []
    for index in SAMPLES:
        plan = design(0, index, Kind.TEXTURED, materials=True)
        (mesh,) = loaded(asset_bytes(plan))
        color, found = texture_of(mesh), metallic_roughness_of(mesh)
        assert not found[..., 0].any()
        for name, rgb in zip(plan.pattern.palette.names, plan.pattern.palette.rgb, strict=True):
            pure = np.abs(color - rgb).max(axis=2) < 0.003
            expected = FINISHES[plan.finishes[name]]
            np.testing.assert_allclose(found[pure][:, 1], expected.roughness, atol=0.02)
            np.testing.assert_allclose(found[pure][:, 2], expected.metallic, atol=0.02)
            assert f"{name} {plan.finishes[name]}" in plan.caption
        metals.append(float(found[..., 2].mean()))
    assert min(metals) < 0.1 and max(metals) > 0.9
    assert sum(0.1 < share < 0.9 for share in metals) > 8


def test_a_dataset_of_procedural_materials_holds_and_proves_them(tmp_path: Path) -> None:
    """Metallic and roughness vary in the samples of `procedural:N,materials`, and the flat-coloured have constants."""
    cfg = BuildConfig(materials=True, views=RenderConfig(resolution=64), uv=BakeConfig(resolution=128))
    refs = list(open_source("procedural:15,materials", tmp_path))
    assert refs[3].uid == "procedural-materials-000003"
    processed = process_asset(refs[3], cfg)
    assert isinstance(processed.result, TextureSample) and processed.result.uv is not None
    measured = processed.measurements
    assert measured.varied_materials == 1 and measured.constant_material_share == 0
    assert measured.roughness_std is not None and measured.roughness_std > 0.05
    assert measured.metallic_psnr is not None and measured.metallic_psnr > 25
    assert kind_of(14) is Kind.FLAT_COLORS
    flat = process_asset(refs[14], cfg)
    assert flat.measurements.constant_material_share == 1
    assert flat.measurements.roughness_std is not None and flat.measurements.roughness_std > 0.05


@pytest.mark.parametrize(
    "spec", ["procedural:3,", "procedural:3,metal", "procedural:,materials", "procedural:0,materials"]
)
def test_an_unknown_option_is_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="procedural:N,materials"):
        open_source(spec, tmp_path)


def test_negative_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count is -1"):
        next(procedural(-1, tmp_path))
