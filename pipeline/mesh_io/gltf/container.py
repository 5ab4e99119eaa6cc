"""glTF 2.0 bytes to their parts (Khronos glTF 2.0 specification, chapters 3 and 4): chunks, lists, images."""

import struct
from dataclasses import dataclass
from pathlib import Path

from pipeline.mesh_io.gltf.accessors import Accessor, parse_accessor
from pipeline.mesh_io.gltf.buffers import BufferView, ViewReader, read_buffers, reference
from pipeline.mesh_io.gltf.json_fields import Json, Parsed
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, decode_data_uri, is_data_uri, read_limited
from schemas.ledger import Reason

DRACO, BASISU, WEBP = "KHR_draco_mesh_compression", "KHR_texture_basisu", "EXT_texture_webp"


@dataclass(frozen=True, slots=True)
class Image:
    where: str
    source: bytes | memoryview | Path | None

    @property
    def suffix(self) -> str:
        """Return the suffix of the image's own file, if it is one."""
        return self.source.suffix if isinstance(self.source, Path) else ""


@dataclass(frozen=True, slots=True)
class Container:
    """A parsed file: its JSON and the bytes that it refers to."""

    tree: Json
    views: Parsed[BufferView]
    accessors: Parsed[Accessor]
    images: Parsed[Image]
    textures: list[Json]
    samplers: list[Json]
    nodes: list[Json]
    notes: Notes
    max_bytes: int
    """Most bytes of a file, or of what stands in its place."""


def split_glb(data: bytes) -> tuple[bytes, memoryview | None]:
    """(JSON chunk, binary chunk) of a GLB whose container is sound."""
    if len(data) < 12 or data[:4] != b"glTF":
        raise AssetError(Reason.NOT_A_MESH, f"not a GLB: starts with {data[:4]!r}, expected b'glTF'")
    version, declared = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise AssetError(Reason.UNSUPPORTED_VERSION, f"GLB container version {version}, only 2 is supported")
    chunks: list[tuple[bytes, memoryview]] = []
    position = 12
    while position < len(data) and position != declared:
        if len(data) - position < 8:
            raise AssetError(Reason.TRUNCATED, f"chunk {len(chunks)} ends inside its header at byte {position:,}")
        (length,) = struct.unpack_from("<I", data, position)
        kind = data[position + 4 : position + 8]
        position += 8
        if length > len(data) - position:
            raise AssetError(
                Reason.TRUNCATED,
                f"chunk {len(chunks)} declares {length:,} bytes, {len(data) - position:,} are left; "
                f"header declares {declared:,} bytes, file has {len(data):,}",
            )
        chunks.append((kind, memoryview(data)[position : position + length]))
        position += length
    if declared != len(data):
        raise AssetError(Reason.LENGTH_MISMATCH, f"header declares {declared:,} bytes, file has {len(data):,}")
    if not chunks or chunks[0][0] != b"JSON":
        raise AssetError(Reason.INVALID_STRUCTURE, "first GLB chunk is not JSON")
    binary = chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else None
    return bytes(chunks[0][1]), binary


def read_container(
    tree: Json, binary: memoryview | None, folders: Folders | None, max_bytes: int, notes: Notes
) -> Container:
    """Buffers, buffer views, accessors and images of a glTF tree.

    `folders`: where external files may lie; None when they are not allowed. `max_bytes`: of all buffers
    together, and of all that compressed views decode to.
    """
    images = tree.objects("images")
    for image in images:  # first of all: a hostile reference rejects a file whether or not it would be followed
        reference(image, folders)
    buffers = read_buffers(tree.objects("buffers"), binary, folders, max_bytes)
    views = Parsed(tree.objects("bufferViews"), ViewReader(buffers, max_bytes, notes))
    return Container(
        tree=tree,
        views=views,
        accessors=Parsed(tree.objects("accessors"), lambda entry: parse_accessor(entry, views)),
        images=Parsed(images, lambda entry: _image(entry, views, folders, max_bytes)),
        textures=tree.objects("textures"),
        samplers=tree.objects("samplers"),
        nodes=tree.objects("nodes"),
        notes=notes,
        max_bytes=max_bytes,
    )


def _image(entry: Json, views: Parsed[BufferView], folders: Folders | None, max_bytes: int) -> Image:
    uri = entry.text("uri")
    if uri is not None:
        source = decode_data_uri(uri, entry.at("uri"), max_bytes) if is_data_uri(uri) else reference(entry, folders)
        return Image(entry.at("uri"), source)
    number = entry.index("bufferView", len(views), "bufferViews")
    return Image(entry.where, None if number is None else views[number].data)


def image_bytes(image: Image, max_bytes: int) -> bytes | memoryview:
    """The encoded image."""
    if isinstance(image.source, Path):
        return read_limited(image.source, image.where, max_bytes)
    if image.source is None:
        raise AssetError(Reason.BAD_IMAGE, f"{image.where} has no data")
    return image.source
