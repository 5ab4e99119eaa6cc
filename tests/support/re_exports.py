"""The same asset as another exporter writes it, and the same mesh with another picture on it."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geometry.mesh import face_vectors
from pipeline.filter.signature import differences, is_signature, numbers_of, signature
from pipeline.filter.surface_samples import sample_surface
from schemas.mesh import TexturedMesh


def rotation_y(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def reordered(mesh: TexturedMesh, seed: int) -> TexturedMesh:
    """The same surface from an exporter that lists faces and vertices in another order."""
    rng = np.random.default_rng(seed)
    faces, vertices = rng.permutation(len(mesh.faces)), rng.permutation(len(mesh.vertices))
    return replace(
        mesh,
        vertices=mesh.vertices[vertices],
        normals=mesh.normals[vertices],
        uv=mesh.uv[vertices],
        colors=mesh.colors[vertices],
        faces=np.roll(np.argsort(vertices)[mesh.faces[faces]], 1, axis=1).astype(np.int32),
        face_material=mesh.face_material[faces],
        face_has_uv=mesh.face_has_uv[faces],
    )


def moved(mesh: TexturedMesh, seed: int) -> TexturedMesh:
    """Turned about its vertical axis, scaled and put elsewhere, as a root node does."""
    rng = np.random.default_rng(seed)
    turned = mesh.vertices.astype(np.float64) @ rotation_y(rng.uniform(0, 6)).T
    return replace(mesh, vertices=(turned * rng.uniform(0.1, 9) + rng.normal(size=3)).astype(np.float32))


def as_jpeg(mesh: TexturedMesh, quality: int) -> TexturedMesh:
    textures = []
    for texture in mesh.textures:
        stream = io.BytesIO()
        Image.fromarray(texture.image[..., :3]).save(stream, "JPEG", quality=quality)
        image = np.dstack([np.array(Image.open(stream)), texture.image[..., 3]])
        textures.append(replace(texture, image=image))
    return replace(mesh, textures=tuple(textures))


def half_size(mesh: TexturedMesh) -> TexturedMesh:
    def half(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return np.array(Image.fromarray(image).resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BOX))

    return replace(mesh, textures=tuple(replace(t, image=half(t.image)) for t in mesh.textures))


def repainted(mesh: TexturedMesh, paint: Callable[[np.ndarray], np.ndarray]) -> TexturedMesh:
    return replace(mesh, textures=tuple(replace(t, image=np.ascontiguousarray(paint(t.image))) for t in mesh.textures))


def quartered(mesh: TexturedMesh) -> TexturedMesh:
    """The quarters of every texture in another order: the last, the first, the second, the third."""

    def paint(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        top, bottom = image[:height], image[height : 2 * height]
        quarters = [top[:, :width], top[:, width : 2 * width], bottom[:, :width], bottom[:, width : 2 * width]]
        return np.vstack([np.hstack([quarters[3], quarters[0]]), np.hstack([quarters[1], quarters[2]])])

    return repainted(mesh, paint)


def printed(mesh: TexturedMesh, word: str) -> TexturedMesh:
    """With a word in dark ink, three times down every texture."""

    def paint(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        font = ImageFont.load_default(size=image.shape[0] // 4)
        for down in (0.1, 0.4, 0.7):
            place = (image.shape[1] * 0.05, image.shape[0] * down)
            ImageDraw.Draw(picture).text(place, word, fill=(20, 20, 30, 255), font=font)
        return np.array(picture)

    return repainted(mesh, paint)


def numbers(mesh: TexturedMesh) -> np.ndarray:
    areas = np.linalg.norm(face_vectors(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64)), axis=1) / 2
    text = signature(mesh, sample_surface(mesh, areas), float(areas.sum()))
    assert text is not None and is_signature(text)
    return numbers_of(bytes.fromhex(text))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(differences(one, other[None])[0])
