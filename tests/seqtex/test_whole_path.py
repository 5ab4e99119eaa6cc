"""An asymmetric texture stays the right way up on its whole way: asset, shard, model-facing tensor, exported .glb."""

import numpy as np
import pytest

from geometry.cameras import seqtex4
from geometry.frames import Frame, bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.write_glb import Material, Primitive, encode_glb, write_glb
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, render_views
from schemas.codec import decode, encode
from schemas.mesh import MeshRef
from schemas.sample import TextureSample
from training.data.batch import to_model
from training.diffusion.latents import uv_to_image

RED, GREEN, BLUE, YELLOW, GREY = (220, 30, 30), (30, 190, 40), (30, 50, 220), (230, 210, 20), (120, 120, 120)
CELL = 64
"""Texels a side of one cube face; faces lie in a 4 x 2 atlas."""
CONFIG = BuildConfig(views=RenderConfig(resolution=128), uv=BakeConfig(resolution=256))


def cube_glb() -> bytes:
    """A cube whose front (glTF +Z) shows red, green over blue, yellow; its other sides are grey. Front: first cell."""
    image = np.empty((2 * CELL, 4 * CELL, 3), np.uint8)
    image[:] = GREY
    half = CELL // 2
    image[:half, :half], image[:half, half:CELL] = RED, GREEN
    image[half:CELL, :half], image[half:CELL, half:CELL] = BLUE, YELLOW
    # outward normal, the direction to the right as seen from outside, up
    sides = [
        ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
        ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
        ((0, 0, -1), (-1, 0, 0), (0, 1, 0)),
        ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
        ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
        ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    ]
    positions, normals, uv, faces = [], [], [], []
    for index, (normal, right, up) in enumerate(np.array(sides, np.float64)):
        column, row = index % 4, index // 4
        for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)):
            positions.append(normal + (2 * x - 1) * right + (2 * y - 1) * up)
            normals.append(normal)
            margin = np.clip([x, 1 - y], 0.03, 0.97)
            uv.append([(column + margin[0]) / 4, (row + margin[1]) / 2])
        faces += [[4 * index, 4 * index + 1, 4 * index + 2], [4 * index, 4 * index + 2, 4 * index + 3]]
    primitive = Primitive(
        positions=np.array(positions), normals=np.array(normals), faces=np.array(faces), material=0, uv=np.array(uv)
    )
    return encode_glb([primitive], [Material(image=image)], {})


def quadrants(picture: np.ndarray, left: int, top: int, width: int, height: int) -> list[tuple[int, ...]]:
    """Colour in the middle of the quadrants of a rectangle: top left, top right, bottom left, bottom right."""
    rows, columns = (top + height // 4, top + 3 * height // 4), (left + width // 4, left + 3 * width // 4)
    return [tuple(picture[y, x].tolist()) for y in rows for x in columns]


def close(found: list[tuple[int, ...]], wanted: list[tuple[int, ...]]) -> bool:
    return bool(np.abs(np.array(found) - np.array(wanted)).max() <= 3)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> TextureSample:
    """The cube, processed and read back from its stored fields."""
    path = tmp_path_factory.mktemp("cube") / "cube.glb"
    path.write_bytes(cube_glb())
    result = process_asset(MeshRef(uid="cube", uri=str(path)), CONFIG).result
    assert isinstance(result, TextureSample) and result.mesh is not None and result.mesh.layout == "authored"
    return decode(encode(result))


ORDER = [RED, GREEN, BLUE, YELLOW]


def test_front_view_shows_the_front_upright(sample):
    rows, columns = np.nonzero(sample.views.mask[0])
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    # the camera is 10 degrees up, yet below the cube's top: the front alone fills the outline, a little foreshortened
    width, height = right - left, bottom - top
    assert 0.85 * width < height <= width
    assert close(quadrants(sample.views.rgb[0], left, top, width, height), ORDER)


def test_front_is_seen_only_in_view_0(sample):
    saturated = (np.ptp(sample.views.rgb.astype(int), axis=-1) > 60).mean(axis=(1, 2))
    assert saturated[0] > 0.1 and (saturated[1:] < 0.005).all()


def test_stored_uv_map_is_in_image_orientation(sample):
    # the front's cell is the top left one of 4 x 2: 64 texels wide, 128 high
    assert close(quadrants(sample.uv.rgb, 0, 0, 64, 128), ORDER)
    front = sample.uv.normal[64, 32]
    np.testing.assert_allclose(front, (0, -1, 0), atol=0.02, err_msg="glTF's front (+Z) is -Y in the dataset frame")


def test_model_sees_row_0_at_v_0(sample):
    uv = to_model(sample).uv
    np.testing.assert_array_equal(np.flip(uv.rgb[0, 0].numpy(), 0), sample.uv.rgb.astype(np.float32) / 255)
    np.testing.assert_array_equal(uv_to_image(uv.rgb[0]), sample.uv.rgb)


def test_exported_glb_shows_the_same_from_every_side(sample, tmp_path):
    frame = Frame(center=np.array(sample.meta["frame"]["center"]), scale=sample.meta["frame"]["scale"])
    write_glb(tmp_path / "out.glb", sample.mesh, uv_to_image(to_model(sample).uv.rgb[0]), frame)
    mesh, _ = normalise(load_mesh(tmp_path / "out.glb"))
    cameras = seqtex4(*bounding_box(mesh.vertices, mesh.faces))
    views = render_views(mesh, cameras, CONFIG.views, CpuRasterizer())
    assert (views.mask == sample.views.mask).mean() > 0.999
    both = views.mask & sample.views.mask
    assert np.abs(views.rgb[both].astype(int) - sample.views.rgb[both]).mean() < 2
