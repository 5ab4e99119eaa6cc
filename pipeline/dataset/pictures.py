"""Small pictures of the assets that were rejected although they could be loaded, for the gallery: `rejected/JOB.tar`
beside the ledger, one file per job, WebP by uid.

They are no part of the dataset: no record names them, they are not published, and without them nothing but the gallery
changes. They decide no other byte, and equal builds give equal ones."""

import io
import re
from collections.abc import Mapping
from typing import TypeVar

from PIL import Image

from schemas.errors import UserError
from schemas.shards import read_shard, write_tar
from schemas.storage import Location, write_file

Place = TypeVar("Place", bound=Location)
FOLDER = "rejected"
PACK_NAME = re.compile(r"(\d{6,})\.tar")
SIDE = 96
"""Height and width, pixels."""
RAW_BYTES = SIDE * SIDE * 4
"""Size of a picture as its asset's process leaves it: sRGB and opacity, no image format that would have to be read."""
MAX_BYTES = 1 << 15
"""Largest picture that a reader accepts; a WebP of this size takes about 2,000 bytes."""


def pictures_path(out: Place, job: int) -> Place:
    """Return the file with the pictures of a job."""
    return out / FOLDER / f"{job:06d}.tar"


def encode_picture(raw: bytes) -> bytes:
    """Encode the `RAW_BYTES` of a picture as WebP."""
    stream = io.BytesIO()
    Image.frombytes("RGBA", (SIDE, SIDE), raw).save(stream, "WEBP", quality=80, method=4)
    return stream.getvalue()


def write_pictures(out: Location, job: int, pictures: Mapping[str, bytes]) -> None:
    """Write the pictures of a job by uid, or remove its file if there are none. Raises OSError."""
    path = pictures_path(out, job)
    if not pictures:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    write_tar(stream, ((uid, {"webp": picture}) for uid, picture in pictures.items()))
    if not path.is_file() or path.read_bytes() != stream.getvalue():
        write_file(path, stream.getvalue())


def read_pictures(out: Location, job: int) -> dict[str, bytes]:
    """Return the pictures of a job by uid; none if it has no file. Raises UserError naming a damaged file."""
    path = pictures_path(out, job)
    if not path.is_file():
        return {}
    try:
        pictures = {uid: fields["webp"] for uid, fields in read_shard(path)}
        if large := [uid for uid, picture in pictures.items() if len(picture) > MAX_BYTES]:
            raise ValueError(f"the picture of {large[0]} is larger than {MAX_BYTES:,} bytes")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete it, pictures of rejected assets are all it has"
        ) from error
    return pictures
