"""A sample survives its encoding; hostile fields are refused by name."""

import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from dataclasses import fields as dataclass_fields
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from schemas.codec import (
    EXTENSIONS,
    LIT,
    MATERIAL_FIELDS,
    NORMAL_ERROR_DEG,
    POSITION_ERROR,
    SCHEMA_VERSION,
    cameras_json,
    decode,
    decode_field,
    encode,
    fields_of,
)
from schemas.mesh import UvMesh, decode_mesh
from schemas.sample import Cameras, MaterialMaps, MaterialViews, Regime, TextureSample, UvMaps, Views


def directions(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    vectors = rng.normal(size=(*mask.shape, 3))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) * mask[..., None]).astype(np.float32)


def make_sample(regime: Regime = Regime.TEXTURED, seed: int = 0, views: int = 3, side: int = 24) -> TextureSample:
    rng = np.random.default_rng(seed)
    mask = rng.random((views, side, side + 8)) < 0.6
    uv_mask = rng.random((side * 2, side * 2)) < 0.6
    position = (rng.uniform(-1, 1, (*mask.shape, 3)) * mask[..., None]).astype(np.float32)
    position[0, 0, :2], mask[0, 0, :2] = [[1, -1, 1], [-1, 0, 1]], True
    cameras = Cameras(
        world_to_cam=rng.normal(size=(views, 4, 4)).astype(np.float32),
        projection=rng.normal(size=(views, 4, 4)).astype(np.float32),
    )
    textured = regime is Regime.TEXTURED
    meta = {
        "uid": "a-b_9",
        "schema_version": SCHEMA_VERSION,
        "source": {"name": "n", "uri": "x.glb", "licence": "CC0-1.0", "attribution": "Zoë"},
        "caption": "a \"quoted\" caption, ünïcode",
        "regime": str(regime),
        "cameras": cameras_json(cameras),
        "frame": {"center": [0.1, 1e-9, -3e7], "scale": 0.3},
        "measurements": {"faces": 7, "layout": "xatlas" if textured else ""},
    }  # fmt: skip
    return TextureSample(
        uid="a-b_9",
        regime=regime,
        views=Views(
            rgb=(rng.integers(0, 256, (*mask.shape, 3)) * mask[..., None]).astype(np.uint8),
            mask=mask,
            coverage=rng.integers(0, 256, mask.shape).astype(np.uint8),
            position=position,
            normal=directions(rng, mask),
        ),
        cameras=cameras,
        uv=UvMaps(
            rgb=rng.integers(0, 256, (*uv_mask.shape, 3)).astype(np.uint8),
            mask=uv_mask,
            position=(rng.uniform(-1, 1, (*uv_mask.shape, 3)) * uv_mask[..., None]).astype(np.float32),
            normal=directions(rng, uv_mask),
        )
        if textured
        else None,
        mesh=UvMesh(
            vertices=rng.normal(size=(9, 3)).astype(np.float32),
            normals=rng.normal(size=(9, 3)).astype(np.float32),
            uv=rng.random((9, 2), dtype=np.float32),
            faces=rng.integers(0, 9, (7, 3)).astype(np.int32),
            layout="xatlas",
        )
        if textured
        else None,
        meta=meta,
    )


def with_materials(sample: TextureSample, seed: int = 3) -> TextureSample:
    rng, mask = np.random.default_rng(seed), sample.views.mask
    views = MaterialViews(
        metallic_roughness=(rng.integers(0, 256, (*mask.shape, 2)) * mask[..., None]).astype(np.uint8),
        normal_detail=directions(rng, mask),
        emissive=(rng.integers(0, 256, (*mask.shape, 3)) * mask[..., None]).astype(np.uint8),
    )
    sample = replace(sample, views=replace(sample.views, materials=views))
    if sample.uv is None:
        return sample
    everywhere = np.ones_like(sample.uv.mask)
    maps = MaterialMaps(
        metallic_roughness=rng.integers(0, 256, (*everywhere.shape, 2)).astype(np.uint8),
        normal_detail=directions(rng, everywhere),
        normal_tangent=directions(rng, everywhere),
        emissive=rng.integers(0, 256, (*everywhere.shape, 3)).astype(np.uint8),
    )
    return replace(sample, uv=replace(sample.uv, materials=maps))


def angles_deg(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((one.astype(np.float64) * other).sum(-1)[mask], -1, 1)))


@pytest.mark.parametrize("regime", list(Regime))
def test_materials_survive_their_encoding(regime):
    sample = with_materials(make_sample(regime))
    fields = encode(sample)
    assert set(fields) == set(fields_of(regime, materials=True))
    found = decode(fields)
    pairs = [(found.views.materials, sample.views.materials, sample.views.mask)]
    if found.uv is not None and sample.uv is not None:
        pairs.append((found.uv.materials, sample.uv.materials, np.ones_like(sample.uv.mask)))
    for ours, wanted, mask in pairs:
        np.testing.assert_array_equal(ours.metallic_roughness, wanted.metallic_roughness, strict=True)
        np.testing.assert_array_equal(ours.emissive, wanted.emissive, strict=True)
        for name in {"normal_detail", "normal_tangent"} & {field.name for field in dataclass_fields(wanted)}:
            assert angles_deg(getattr(ours, name), getattr(wanted, name), mask).max() <= NORMAL_ERROR_DEG
            assert not getattr(ours, name)[~mask].any()
    image = np.array(Image.open(io.BytesIO(fields["metallic_roughness.webp"])))  # as glTF has it
    np.testing.assert_array_equal(image[..., [2, 1]].reshape(sample.views.materials.metallic_roughness.shape),
                                  sample.views.materials.metallic_roughness)  # fmt: skip
    assert decode_field("metallic_roughness.webp", fields["metallic_roughness.webp"]).shape[2] == 2


def test_materials_are_whole_or_absent():
    sample = with_materials(make_sample())
    fields = encode(sample)
    for name in sorted(MATERIAL_FIELDS):
        with pytest.raises(ValueError, match="exactly"):
            decode({key: value for key, value in fields.items() if key != name})
    assert decode({key: value for key, value in fields.items() if key not in MATERIAL_FIELDS}).views.materials is None
    with pytest.raises(ValueError, match="neither has them"):
        encode(replace(sample, uv=make_sample().uv))
    red = fields | {"metallic_roughness.webp": fields["rgb.webp"]}
    with pytest.raises(ValueError, match=r"metallic_roughness.webp.*red"):
        decode(red)
    small = fields | {"uv_emissive.webp": fields["emissive.webp"]}
    with pytest.raises(ValueError, match=r"uv_emissive.webp.*pixels"):
        decode(small)


def assert_maps_close(found: Views | UvMaps, wanted: Views | UvMaps) -> None:
    np.testing.assert_array_equal(found.rgb, wanted.rgb)
    np.testing.assert_array_equal(found.mask, wanted.mask)
    assert np.abs(found.position.astype(np.float64) - wanted.position).max() <= POSITION_ERROR + 2**-24
    assert not found.position[~wanted.mask].any()
    assert not found.normal[~wanted.mask].any()
    cosine = (found.normal * wanted.normal.astype(np.float64)).sum(-1)[wanted.mask]
    assert math.degrees(math.acos(min(cosine.min(), 1))) <= NORMAL_ERROR_DEG
    np.testing.assert_allclose(np.linalg.norm(found.normal[wanted.mask], axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("regime", list(Regime))
def test_a_sample_survives_its_encoding(regime):
    sample = make_sample(regime)
    fields = encode(sample)
    assert fields.keys() <= EXTENSIONS
    found = decode(fields)
    assert (found.uid, found.regime, found.meta) == (sample.uid, regime, sample.meta)
    np.testing.assert_array_equal(found.cameras.world_to_cam, sample.cameras.world_to_cam)
    np.testing.assert_array_equal(found.cameras.projection, sample.cameras.projection)
    assert_maps_close(found.views, sample.views)
    assert (found.uv is None) == (found.mesh is None) == (regime is Regime.MV_ONLY)
    if found.uv is not None and found.mesh is not None:
        assert_maps_close(found.uv, sample.uv)
        for name in ("vertices", "normals", "uv", "faces"):
            np.testing.assert_array_equal(getattr(found.mesh, name), getattr(sample.mesh, name))
        assert found.mesh.layout == "xatlas"


def test_lit_views_and_opacity_are_lossless():
    sample, rng = make_sample(), np.random.default_rng(1)
    assert sample.uv is not None
    lit = rng.integers(0, 256, sample.views.rgb.shape).astype(np.uint8)
    opacity = rng.integers(0, 256, sample.uv.mask.shape).astype(np.uint8)
    full = replace(sample, views=replace(sample.views, lit=lit), uv=replace(sample.uv, opacity=opacity))
    fields = encode(full)
    assert fields.keys() - encode(sample).keys() == {LIT}
    found = decode(fields)
    assert found.uv is not None
    np.testing.assert_array_equal(found.views.lit, lit)
    np.testing.assert_array_equal(found.uv.opacity, opacity)
    np.testing.assert_array_equal(found.views.coverage, sample.views.coverage)
    fields["uv_opacity.png"] = encode(make_sample(side=12))["coverage.png"]
    with pytest.raises(ValueError, match="uv_opacity"):
        decode(fields)


def test_encoding_is_deterministic_and_lossless_fields_are_fixed_points():
    """A copied dataset does not drift: all but normals, which are renormalised, give the same bytes again."""
    fields = encode(make_sample())
    assert encode(make_sample()) == fields
    again = encode(decode(fields))
    assert {name for name in fields if again[name] != fields[name]} <= {"normal.png", "uv_normal.png"}


def test_extremes_of_position_are_exact():
    found = decode(encode(make_sample())).views.position
    np.testing.assert_array_equal(found[0, 0, :2], [[1, -1, 1], [-1, 0, 1]])


def test_webdataset_names_are_passed_over_and_others_refused():
    fields = encode(make_sample())
    assert decode(fields | {"__key__": "a-b_9", "__url__": "x.tar"}).uid == "a-b_9"  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"unknown field 'pyd'"):
        decode(fields | {"pyd": b"x"})


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def hostile_npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def npy_header(description: str) -> bytes:
    text = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def object_array() -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.array([[Bomb()] * 3], dtype=object), allow_pickle=True)
    return out.getvalue()


def planes(height: int, width: int, body: bytes | None = None, depth: int = 16, filter_type: int = 2) -> bytes:
    """A grey PNG with the pixels of positions, or with `body` in their place."""
    rows = (bytes([filter_type]) + bytes(width * depth // 8)) * height if body is None else body
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND"
    )  # fmt: skip
    written = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def image(form: str, mode: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, form)
    return out.getvalue()


PNG_OF_30000 = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 30000, 30000) + b"\1\0\0\0\0" + b"\0\0\0\0"

BAD_FIELDS = {
    "pickle as json": ("json", pickle.dumps(Bomb()), "'json' is not JSON"),
    "nested json": ("json", b"[" * 100_000, "'json' is not JSON"),
    "large json": ("json", b" " * (1 << 20) + b"{}", "'json' has"),
    "list": ("json", b"[]", "not a JSON object"),
    "png as webp": ("rgb.webp", image("PNG", "RGB", (32, 72)), "'rgb.webp'"),
    "alpha": ("rgb.webp", image("WEBP", "RGBA", (32, 72)), "'rgb.webp'"),
    "grey mask": ("mask.png", image("PNG", "L", (32, 72)), "'mask.png'"),
    "mask of another size": ("mask.png", image("PNG", "1", (32, 71)), "'mask.png'"),
    "huge mask": ("mask.png", PNG_OF_30000, "'mask.png'"),
    "empty": ("mask.png", b"", "'mask.png'"),
    "another size": ("position.png", planes(3 * 72, 31), "'position.png' is not a PNG image of 216 x 32"),
    "more than declared": ("position.png", planes(216, 32, bytes(216 * 65 + 1)), "'position.png' does not hold"),
    "less than declared": ("position.png", planes(216, 32, bytes(216 * 65 - 1)), "'position.png' holds"),
    "a bomb": ("position.png", planes(216, 32, bytes(1 << 28)), "'position.png' does not hold"),
    "8 bits": ("position.png", planes(216, 32, depth=8), "'position.png' is not a PNG"),
    "another filter": ("position.png", planes(216, 32, filter_type=1), "'position.png': rows are not filtered"),
    "positions as normals": ("normal.png", planes(216, 32), "'normal.png' is not a PNG"),
    "short header": ("normal.png", b"\x89PNG", "'normal.png'"),
    "not a zip": ("mesh.npz", b"PK", "'mesh.npz'"),
    "pickled array": ("mesh.npz", None, "vertices"),
    "declared terabytes": ("mesh.npz", None, "vertices"),
    "declared gigabyte": ("mesh.npz", None, "declares"),
    "another compression": ("mesh.npz", None, "'mesh.npz'"),
    "face beyond the vertices": ("mesh.npz", None, "refers to a vertex"),
    "not finite": ("mesh.npz", None, "not finite"),
}


def bad_mesh(case: str, good: bytes) -> bytes:
    """A mesh.npz that is right but for one thing."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    if case == "pickled array":
        members["vertices"] = object_array()
    if case == "declared terabytes":
        members["vertices"] = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }")
    if case == "not finite":
        members["vertices"] = members["vertices"][:-4] + np.float32(np.nan).tobytes()
    if case == "face beyond the vertices":
        members["faces"] = members["faces"][:-4] + np.int32(9).tobytes()
    if case in ("declared gigabyte", "another compression"):
        out = io.BytesIO()
        kind = zipfile.ZIP_LZMA if case == "another compression" else zipfile.ZIP_DEFLATED
        members["vertices"] += bytes(1 << 28 if case == "declared gigabyte" else 0)
        with zipfile.ZipFile(out, "w", kind) as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)
        return out.getvalue()
    return hostile_npz(**members)


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_hostile_field_is_refused_by_name(case):
    fields = encode(make_sample())
    name, data, message = BAD_FIELDS[case]
    with pytest.raises(ValueError, match=message):
        decode(fields | {name: bad_mesh(case, fields[name]) if data is None else data})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema version 1"),
        ({"uid": "../x"}, "no uid"),
        ({"regime": "other"}, "unknown regime"),
        ({"regime": "mv_only"}, "exactly"),
        ({"cameras": {"world_to_cam": [], "projection": []}}, r"cameras\.world_to_cam"),
        ({"cameras": {"world_to_cam": [[[0] * 4] * 4] * 5, "projection": [[[0] * 4] * 4] * 5}}, "5 views"),
        ({"frame": {"center": [0, 0, 1e999], "scale": 1}}, r"frame\.center"),
        ({"source": {}}, r"source\.name"),
        ({"caption": 3}, "'caption'"),
    ],
)
def test_json_at_odds_with_the_fields_is_refused(change, message):
    fields = encode(make_sample())
    meta = json.loads(fields["json"]) | change
    with pytest.raises(ValueError, match=message):
        decode(fields | {"json": json.dumps(meta).encode()})


def test_a_missing_field_is_named():
    for name in EXTENSIONS - {LIT} - MATERIAL_FIELDS:
        fields = {key: value for key, value in encode(make_sample()).items() if key != name}
        with pytest.raises(ValueError, match=r"json|exactly"):
            decode(fields)


def test_cut_fields_never_pass_and_never_raise_anything_else():
    fields = encode(make_sample())
    rng = np.random.default_rng(1)
    for name, data in fields.items():
        for cut in rng.integers(0, len(data), 12):
            with pytest.raises(ValueError):
                decode(fields | {name: data[:cut]})


def test_flipped_bits_never_raise_anything_but_value_errors():
    """The shard's hash has to detect damage; the codec has to prevent anything worse."""
    fields = encode(make_sample())
    rng = np.random.default_rng(2)
    refused = 0
    for name, data in fields.items():
        for position in rng.integers(0, len(data) * 8, 60):
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << (position % 8)
            try:
                decode(fields | {name: bytes(damaged)})
            except ValueError:
                refused += 1
    assert refused > 100


def test_a_sample_that_contradicts_itself_is_not_encoded():
    sample = make_sample()
    views = sample.views
    with pytest.raises(ValueError, match="outside"):
        encode(replace(sample, views=replace(views, position=views.position * 1.01)))
    broken = views.position.copy()
    broken[0, 0, 0, 1] = np.nan  # far from the last pixel
    with pytest.raises(ValueError, match="nan, outside"):
        encode(replace(sample, views=replace(views, position=broken)))
    with pytest.raises(ValueError, match="must have UV maps"):
        encode(replace(sample, uv=None, mesh=None))
    with pytest.raises(ValueError, match="cameras"):
        encode(replace(sample, cameras=replace(sample.cameras, projection=sample.cameras.projection * 2)))
    with pytest.raises(ValueError, match="layout"):
        encode(replace(sample, meta=sample.meta | {"measurements": {}}))


def test_single_sided_faces_survive_and_samples_without_are_read():
    sample = make_sample(Regime.TEXTURED)
    assert sample.mesh is not None
    single = np.arange(7) % 2 == 0
    fields = encode(replace(sample, mesh=replace(sample.mesh, single_sided=single)))
    found = decode(fields).mesh
    assert found is not None
    np.testing.assert_array_equal(found.single_sided, single)
    np.testing.assert_array_equal(decode_field("mesh.npz", fields["mesh.npz"])["single_sided"], single)
    with np.load(io.BytesIO(fields["mesh.npz"])) as stored:  # as any reader sees it
        np.testing.assert_array_equal(stored["single_sided"], single)
    plain = decode(encode(sample)).mesh
    assert plain is not None and plain.single_sided is None
    other = io.BytesIO()
    with np.load(io.BytesIO(fields["mesh.npz"])) as stored:
        np.savez(other, **(dict(stored) | {"single_sided": single[:3]}))
    with pytest.raises(ValueError, match="differ in number"):
        decode_mesh(other.getvalue(), "xatlas")
