"""Lit views: energy is kept, light comes from where it is, and materials answer as glTF says."""

from dataclasses import replace

import numpy as np
import pytest

from geometry.cameras import RigConfig, rig_cameras
from geometry.frames import normalise
from geometry.kernels.shading import brdf, reflectances, surroundings
from geometry.raster_cpu import CpuRasterizer
from geometry.shading import Light, ggx_directions, lobe_spread, pack_shading, split_sum_table
from geometry.texture import linear_to_srgb, srgb_to_linear
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.filter.rules import FilterConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.render.lit import render_lit
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, render_views
from pipeline.sources.procedural import procedural
from schemas.codec import decode, encode
from schemas.errors import UsageError
from schemas.mesh import AlphaMode, Material, Shading, Texture, TexturedMesh
from schemas.sample import TextureSample

RASTERIZER = CpuRasterizer()
VIEWS = RenderConfig(resolution=64)
CAMERAS = rig_cameras(RigConfig(name="ortho6"), np.full(3, -1.0), np.full(3, 1.0))
BLACK = (0.0, 0.0, 0.0)
WHITE = (1.0, 1.0, 1.0)
SMALL_MAPS = BakeConfig(resolution=64)
LENIENT = FilterConfig(min_round_trip_db=10.0)
FURNACE = Light(sky=WHITE, ground=WHITE, lamp=BLACK)


def sphere(material: Material, textures: tuple[Texture, ...] = (), steps: int = 32) -> TexturedMesh:
    """Unit sphere; u around from +X towards +Y, v up from the south pole."""
    v, u = np.meshgrid(np.linspace(0, 1, steps), np.linspace(0, 1, 2 * steps), indexing="ij")
    height, turn = np.pi * (v - 0.5), 2 * np.pi * u
    points = np.stack([np.cos(height) * np.cos(turn), np.cos(height) * np.sin(turn), np.sin(height)], -1)
    index = np.arange(steps * 2 * steps).reshape(steps, 2 * steps)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return mesh_of(points.reshape(-1, 3), points.reshape(-1, 3), np.stack([u, v], -1), faces, material, textures)


def plane(material: Material, textures: tuple[Texture, ...] = (), mirrored: bool = False) -> TexturedMesh:
    """Faces the front camera (-Y); u to its right unless mirrored, v up."""
    corners = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    if mirrored:
        uv[:, 0] = 1.0 - uv[:, 0]
    normals = np.tile([0.0, -1.0, 0.0], (4, 1))
    return mesh_of(corners, normals, uv, np.array([[0, 1, 2], [0, 2, 3]]), material, textures)


def mesh_of(vertices, normals, uv, faces, material, textures) -> TexturedMesh:
    return TexturedMesh(
        vertices=vertices.astype(np.float32),
        normals=normals.astype(np.float32),
        uv=uv.reshape(-1, 2).astype(np.float32),
        colors=np.ones((len(vertices), 4), np.float32),
        faces=faces.astype(np.int32),
        face_material=np.zeros(len(faces), np.int32),
        face_has_uv=np.ones(len(faces), bool),
        materials=(material,),
        textures=textures,
    )


def flat(red: int, green: int, blue: int, alpha: int = 255) -> Texture:
    return Texture(image=np.full((4, 4, 4), (red, green, blue, alpha), np.uint8))


def lit(mesh: TexturedMesh, light: Light | None = None, cfg: RenderConfig = VIEWS) -> np.ndarray:
    return render_lit(mesh, CAMERAS, cfg, RASTERIZER, light)


def mask_of(mesh: TexturedMesh) -> np.ndarray:
    return render_views(mesh, CAMERAS, VIEWS, RASTERIZER).mask


# energy


@pytest.mark.parametrize("metallic", [0.0, 1.0])
@pytest.mark.parametrize("roughness", [0.0, 0.3, 0.7, 1.0])
def test_a_white_sphere_in_a_white_furnace_is_invisible(metallic, roughness):
    mesh = sphere(Material(shading=Shading(metallic=metallic, roughness=roughness)))
    image, mask = lit(mesh, FURNACE), mask_of(mesh)
    assert srgb_to_linear(image[mask] / 255.0).min() > 0.98  # and no more than 1 is checked below, before clipping
    assert (image[~mask] == 0).all()
    half = lit(mesh, Light(sky=(0.5, 0.5, 0.5), ground=(0.5, 0.5, 0.5), lamp=BLACK))
    np.testing.assert_allclose(srgb_to_linear(half[mask] / 255.0), 0.5, atol=0.006)


@pytest.mark.parametrize("albedo", [0.1, 0.5, 0.9])
def test_a_matt_sphere_shows_its_albedo(albedo):
    """On average; its polish adds the 4 % that the surface itself reflects, and more towards the rim."""
    mesh = sphere(Material(base_color=(albedo, albedo, albedo, 1.0)))
    shown = srgb_to_linear(lit(mesh, FURNACE)[mask_of(mesh)] / 255.0)
    assert albedo - 0.005 < shown.mean() < albedo + 0.06 * (1 - albedo)
    metal = replace(mesh, materials=(replace(mesh.materials[0], shading=Shading(metallic=1.0, roughness=0.2)),))
    shown = srgb_to_linear(lit(metal, FURNACE)[mask_of(mesh)] / 255.0)
    assert shown.mean() == pytest.approx(albedo + (1 - albedo) / 21, abs=0.02)  # Schlick's mean over the disc


def hemisphere(count: int = 40_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    turn, height = rng.uniform(0, 2 * np.pi, count), rng.uniform(0, 1, count)
    across = np.sqrt(1 - height**2)
    return np.stack([across * np.cos(turn), across * np.sin(turn), height], axis=1)


@pytest.mark.parametrize("metallic", [0.0, 1.0])
@pytest.mark.parametrize("roughness", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("cosine", [0.2, 0.6, 1.0])
def test_the_lamp_gives_no_more_than_it_sends(metallic, roughness, cosine):
    """The BRDF summed over all directions of light; of a white metal it is the tabulated sum, got another way."""
    view = np.array([np.sqrt(1 - cosine**2), 0.0, cosine])
    scale, bias, _ = reflectances(cosine, roughness, split_sum_table(), lobe_spread())
    f0, diffuse = 0.04 + 0.96 * metallic, 1.0 - metallic
    total, lights = 0.0, hemisphere()
    for light in lights:
        half = (light + view) / np.linalg.norm(light + view)
        n_dot_h, v_dot_h = float(half[2]), float(half @ view)
        total += light[2] * brdf(light[2], cosine, n_dot_h, v_dot_h, f0, diffuse, roughness**2, scale, bias)
    albedo = total * 2 * np.pi / len(lights)
    assert albedo == pytest.approx(scale + bias if metallic else 1.0, abs=0.025)


def test_the_table_has_its_known_corners():
    table = split_sum_table().sum(axis=2)
    assert table[-1, -1] == pytest.approx(1 - np.log(2), abs=2e-3)  # alpha 1, seen from straight above, in closed form
    np.testing.assert_allclose(table[3:, 0], 1.0, atol=2e-3)  # a mirror loses nothing
    assert (table < 1.0001).all()


def test_sky_and_ground_are_integrated_exactly():
    lights = hemisphere()
    for tilt in (0.0, 0.8, 2.0, np.pi):
        height = np.sin(tilt) * lights[:, 0] + np.cos(tilt) * lights[:, 2]  # world height of each direction
        truth = (2 * lights[:, 2] * (0.5 + 0.3 * height)).mean()
        ours = surroundings(np.cos(tilt), 0.0, 0.0, 1.0, 0.5, 0.3, 0.0, 0.0, 1.0)  # nothing but diffuse
        assert ours == pytest.approx(truth, abs=0.004)


def test_lobes_weaken_the_sky_as_they_widen():
    spread = lobe_spread()
    assert spread[0] == pytest.approx(1.0, abs=1e-3)
    assert (np.diff(spread) < 1e-4).all() and 0.6 < spread[-1] < 0.7
    half = ggx_directions(0.25)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1.0)
    np.testing.assert_allclose(half[:, :2].mean(axis=0), 0.0, atol=5e-3)


# direction


@pytest.mark.parametrize(("azimuth", "elevation"), [(-90.0, 0.0), (-130.0, 40.0), (-60.0, -30.0)])
def test_the_brightest_spot_faces_the_lamp(azimuth, elevation):
    light = Light(sky=BLACK, ground=BLACK, lamp=(0.8, 0.8, 0.8), lamp_azimuth_deg=azimuth, lamp_elevation_deg=elevation)
    mesh = sphere(Material())
    image = lit(mesh, light)[0, ..., 0].astype(float)
    normal = render_views(mesh, CAMERAS, VIEWS, RASTERIZER).normal[0]
    towards = light.rows()[3]
    weight = np.maximum(image - 0.97 * image.max(), 0)
    found = (normal * weight[..., None]).sum(axis=(0, 1))
    assert found @ towards / np.linalg.norm(found) > np.cos(np.deg2rad(8))
    assert (image[normal @ towards < -0.05] == 0).all()  # no light from behind


def test_both_sides_of_a_face_are_lit_from_their_own_side():
    light = Light(sky=BLACK, ground=BLACK, lamp=(0.7, 0.7, 0.7), lamp_azimuth_deg=-90.0, lamp_elevation_deg=0.0)
    mesh = plane(Material())
    turned = replace(mesh, faces=mesh.faces[:, ::-1].copy())
    front, back = lit(mesh, light)[0], lit(mesh, light)[2]
    assert srgb_to_linear(front[32, 32] / 255.0) == pytest.approx(0.7, abs=0.01)
    assert (back == 0).all()
    np.testing.assert_array_equal(lit(turned, light)[0], front)
    behind = replace(light, lamp_azimuth_deg=90.0)
    np.testing.assert_array_equal(lit(mesh, behind)[2], front)


# materials


def test_emission_adds():
    mesh = sphere(Material(base_color=(0.3, 0.3, 0.3, 1.0)))
    glowing = replace(mesh, materials=(replace(mesh.materials[0], shading=Shading(emissive=(0.0, 0.25, 0.0))),))
    mask = mask_of(mesh)
    plain, more = (srgb_to_linear(lit(m)[mask] / 255.0) for m in (mesh, glowing))
    np.testing.assert_array_equal(plain[:, (0, 2)], more[:, (0, 2)])
    np.testing.assert_allclose(more[:, 1] - plain[:, 1], 0.25, atol=0.006)
    dark = Light(sky=BLACK, ground=BLACK, lamp=BLACK)
    textured = Material(shading=Shading(emissive=(1.0, 0.5, 1.0), emissive_texture=0))
    shown = lit(sphere(textured, (flat(200, 200, 0),)), dark)[mask]
    expected = (200, round(255 * float(linear_to_srgb(srgb_to_linear(np.array(200 / 255)) * 0.5))), 0)
    np.testing.assert_allclose(shown, np.broadcast_to(expected, shown.shape), atol=1)


def test_small_textures_are_averaged_in_linear_light():
    board = np.zeros((512, 512, 4), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    mesh = plane(Material(shading=Shading(emissive=WHITE, emissive_texture=0)), (Texture(image=board),))
    shown = lit(mesh, Light(sky=BLACK, ground=BLACK, lamp=BLACK))[0][20:44, 20:44]
    np.testing.assert_allclose(shown, 188, atol=1)  # half the light, not half the number


def test_metal_and_roughness_come_from_blue_and_green():
    factors = Material(base_color=(0.9, 0.4, 0.2, 1.0), shading=Shading(metallic=0.6, roughness=0.4))
    mapped = replace(factors, shading=Shading(metallic=1.0, roughness=1.0, metallic_roughness=0))
    texture = flat(13, round(0.4 * 255), round(0.6 * 255))
    np.testing.assert_allclose(lit(sphere(mapped, (texture,))).astype(int), lit(sphere(factors)), atol=1)


def test_a_normal_map_that_points_up_changes_nothing():
    up = np.full((8, 8, 4), (0, 0, 255, 255), np.uint8)
    up[..., :2] = np.indices((8, 8)).sum(axis=0)[..., None] % 2 + 127  # 127.5 on average
    mapped = Material(shading=Shading(roughness=0.5, normal_map=0))
    plain = Material(shading=Shading(roughness=0.5))
    difference = np.abs(lit(sphere(mapped, (Texture(image=up),))).astype(int) - lit(sphere(plain)))
    assert difference.max() <= 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_normal_maps_lean_along_u_and_up_along_v(mirrored):
    """Lamp 45 degrees to the right of the front camera: what leans right is brighter; mirrored u leans left."""
    aside = Light(sky=BLACK, ground=BLACK, lamp=(0.7, 0.7, 0.7), lamp_azimuth_deg=-45.0, lamp_elevation_deg=0.0)
    above = replace(aside, lamp_azimuth_deg=-90.0, lamp_elevation_deg=45.0)

    def brightness(light: Light, red: int, green: int, scale: float = 1.0) -> float:
        material = Material(shading=Shading(normal_map=0, normal_scale=scale))
        return float(lit(plane(material, (flat(red, green, 218),), mirrored), light)[0, 32, 32, 0])

    right, left = brightness(aside, 218, 128), brightness(aside, 38, 128)
    assert (left > 210 and right < 60) if mirrored else (right > 210 and left < 60)
    assert brightness(above, 128, 218) > 210 and brightness(above, 128, 38) < 60
    level = brightness(aside, 128, 128)
    assert brightness(aside, 218, 128, scale=0.0) == pytest.approx(level, abs=2)


def test_holes_show_what_lies_behind_them_lit():
    leaf = Material(texture=0, alpha_mode=AlphaMode.MASK)
    board = np.full((2, 2, 4), 255, np.uint8)
    board[:, 0, 3] = 0
    mesh = plane(leaf, (Texture(image=board),))
    image = lit(mesh)[0]
    mask = mask_of(mesh)[0]
    assert 0.4 < mask.sum() / mask_of(plane(Material()))[0].sum() < 0.6
    assert (image[~mask] == 0).all() and (image[mask] > 0).all()


def test_a_shading_texture_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="outside the 0 textures"):
        pack_shading(sphere(Material(shading=Shading(normal_map=0))))


def test_a_build_stores_lit_views_and_says_which_light(tmp_path):
    ref = next(iter(procedural(1, tmp_path)))
    views = RenderConfig(resolution=32, lit="pbr")
    plain = process_asset(ref, BuildConfig(views=replace(views, lit="none"), uv=SMALL_MAPS, filter=LENIENT)).result
    sample = process_asset(ref, BuildConfig(views=views, uv=SMALL_MAPS, filter=LENIENT)).result
    assert isinstance(sample, TextureSample) and isinstance(plain, TextureSample)
    np.testing.assert_array_equal(sample.views.rgb, plain.views.rgb)
    assert plain.views.lit is None and "shading" not in plain.meta
    assert sample.meta["shading"]["renderer"] == "pbr" and sample.meta["shading"]["light"]["sky"]
    back = decode(encode(sample))
    assert back.views.lit is not None
    np.testing.assert_array_equal(back.views.lit, sample.views.lit)
    assert (back.views.lit[~back.views.mask] == 0).all()
    assert (back.views.lit[back.views.mask] != back.views.rgb[back.views.mask]).any()


def test_cycles_without_blender_is_refused():
    with pytest.raises(UsageError, match=r"views\.lit is cycles, which needs Blender: run `make blender`"):
        BuildConfig(views=RenderConfig(lit="cycles"))


@pytest.mark.assets
@pytest.mark.parametrize("name", ["water_bottle_pbr.glb", "lumberjack_skinned_pbr.glb"])
def test_real_materials_are_read_and_lit(assets_dir, name):
    loaded = load_mesh(assets_dir / name, PreflightConfig(), shading=True)
    assert isinstance(loaded, TexturedMesh)
    mesh, _ = normalise(loaded)
    assert any(m.shading.metallic_roughness is not None for m in mesh.materials)
    image = lit(mesh)
    mask = mask_of(mesh)
    assert image[mask].mean() > 20
    dark = lit(mesh, Light(sky=BLACK, ground=BLACK, lamp=BLACK))
    glows = any(max(m.shading.emissive) > 0 for m in mesh.materials)
    assert (dark.max() > 0) == glows
