"""Read shards: tar files of samples, checked against the sha256 in the ledger before a byte is used."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from schemas.codec import decode
from schemas.dataset import (
    ShardRecord,
    by_repair,
    read_dataset_json,
    read_ledger,
    shard_path,
)
from schemas.errors import UserError
from schemas.sample import Regime, TextureSample
from schemas.storage import Location

MAX_MEMBER_BYTES = 1 << 28
"""Largest field that a reader accepts."""


_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


def read_shard(path: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(uid, fields) of every sample. Raises ValueError naming the member: not a plain file, a name that is no
    `uid.extension`, a sample whose members are apart or repeated, a member beyond the size limit, a cut-off file."""
    with path.open("rb") as file:
        yield from _samples_in(file, path)


def _samples_in(file: BinaryIO, path: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`read_shard` of an open file."""
    seen: set[str] = set()
    uid, fields = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not member.isreg() or "/" in member.name or not key or not extension:
                    raise ValueError(f"{path}: member {member.name!r} is not a field of a sample")
                if member.size > MAX_MEMBER_BYTES:
                    raise ValueError(f"{path}: member {member.name!r} has {member.size} bytes")
                if key != uid:
                    if fields:
                        yield uid, fields
                    if key in seen:
                        raise ValueError(f"{path}: the members of {key!r} are apart")
                    seen.add(key)
                    uid, fields = key, {}
                content = tar.extractfile(member)
                data = content.read() if content else b""
                if extension in fields or len(data) != member.size:
                    raise ValueError(f"{path}: member {member.name!r} is repeated or cut off")
                fields[extension] = data
            file.seek(tar.offset)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a whole tar ({error})") from error
    if file.read(len(_TAR_END)) != _TAR_END:  # tarfile takes any header that is none for the end
        raise ValueError(f"{path}: ends, or has no header, at byte {file.tell()}")
    if fields:
        yield uid, fields


def read_samples(out: Location, shard: ShardRecord) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(uid, fields) of every sample of a shard that a ledger vouches for; nothing of one that has other bytes. Raises
    UserError where it is missing or damaged."""
    path, count = shard_path(out, shard.name), 0
    remedy = by_repair(out)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.bytes:
                raise UserError(f"{path}: {size} bytes, {shard.bytes} were written; {remedy}")
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise UserError(f"{path}: damaged, its sha256 is not the recorded one; {remedy}")
            file.seek(0)
            for sample in _samples_in(file, path):
                count += 1
                yield sample
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{error}; {remedy}") from error
    if count != shard.count:
        raise UserError(f"{path}: {count} samples, {shard.count} are recorded; {remedy}")


def stored_samples(out: Location, *regimes: Regime) -> Iterator[TextureSample]:
    """Every sample of some regimes, in ledger order. Raises UserError where `out` is no dataset, or one is damaged."""
    read_dataset_json(out)
    for shard in (shard for part in read_ledger(out) for shard in part.shards):
        if shard.regime in regimes:
            for uid, fields in read_samples(out, shard):
                try:
                    yield decode(fields)
                except ValueError as error:
                    path = shard_path(out, shard.name)
                    raise UserError(f"{path}: sample {uid}: {error}; {by_repair(out)}") from error
