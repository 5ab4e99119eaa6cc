"""The fault matrix, promise 20: shards from strangers, through every reader we have. Nothing in them is run, nothing is
written where they say, and no memory is taken for what they only declare."""

import io
import json
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.codec import EXTENSIONS, MATERIAL_FIELDS, decode, encode
from schemas.dataset import LedgerPart, ShardRecord, part_path, read_ledger_part, shard_path, write_ledger_part
from schemas.errors import UserError
from schemas.sample import Regime
from schemas.shards import ShardFile, read_samples
from schemas.storage import file_sha256
from tests.support.small_dataset import small_sample, write_dataset
from tests.trust.trust import Trust
from training.data.datamodule import BatchStream
from training.data.mixture import DataConfig, decode_pixels

Members = list[tuple[str, bytes]]
MAX_MEMORY = 64 << 20


class Attack:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.canary,)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def mesh_members(**changes: bytes) -> dict[str, bytes]:
    arrays = {"vertices": np.eye(3, dtype="<f4"), "normals": np.eye(3, dtype="<f4"), "uv": np.eye(3, 2, dtype="<f4")}
    members = {name: npy(array) for name, array in arrays.items()} | {"faces": npy(np.array([[0, 1, 2]], "<i4"))}
    return {f"{name}.npy": data for name, data in (members | changes).items()}


def declared_npy(shape: str) -> bytes:
    """An array that is much smaller than it says."""
    return headed_npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


def headed_npy(header: str) -> bytes:
    """Three corners under a header of any kind."""
    head = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 36


BAD_HEADERS = ("{'descr': (", "{'descr': \"", "1\n  2\n 3", "{[]:1}", "(" * 300, "-" * 300 + "1", "\0", "5")
"""numpy's parser ends in errors of many kinds over these: of tokens, of syntax, of types."""


def samples(canary: Path) -> dict[str, Members]:
    """Hostile samples: each is a sound one with something else in it."""
    sound = encode(small_sample("a", Regime.TEXTURED, 0))
    attack, objects = pickle.dumps(Attack(canary)), npy(np.array([Attack(canary)], object))

    def instead(**fields: bytes) -> Members:
        return [
            (f"a.{name}", data) for name, data in (sound | {k.replace("__", "."): v for k, v in fields.items()}).items()
        ]

    def json_with(**values: object) -> bytes:
        return json.dumps(json.loads(sound["json"]) | values).encode()

    cases = {f"a member .{kind}": [*instead(), (f"a.{kind}", attack)] for kind in ("pyd", "pkl", "pickle", "pth", "pt")}
    cases |= {f"a member .{kind}": [*instead(), (f"a.{kind}", objects)] for kind in ("npy", "npz", "mp", "cbor", "ten")}
    cases |= {f"a pickle as {name}": instead(**{name.replace(".", "__"): attack}) for name in sorted(EXTENSIONS)}
    cases |= {f"objects as {name}": instead(**{name.replace(".", "__"): objects}) for name in sorted(EXTENSIONS)}
    zip_bomb = npz(mesh_members(vertices=bytes(300 << 20)), zipfile.ZIP_DEFLATED)
    cases |= {
        "objects in the mesh": instead(mesh__npz=npz(mesh_members(vertices=objects))),
        "a pickle in the mesh": instead(mesh__npz=npz(mesh_members(vertices=attack))),
        "one more array in the mesh": instead(mesh__npz=npz(mesh_members(evil=objects))),
        "an array that leads out of the mesh": instead(mesh__npz=npz(mesh_members() | {"../../evil.npy": objects})),
        "a mesh that unpacks to 300 MB": instead(mesh__npz=zip_bomb),
        "a mesh that declares 400 GB": instead(mesh__npz=npz(mesh_members(vertices=declared_npy("(33333333333, 3)")))),
        "code in an array's header": instead(mesh__npz=npz(mesh_members(vertices=declared_npy("__import__('os')")))),
        **{
            f"the header {header[:12]!r}": instead(mesh__npz=npz(mesh_members(vertices=headed_npy(header))))
            for header in BAD_HEADERS
        },
        "positions that declare 16 GB": instead(position__dz=struct.pack("<4sBBHII", b"SFDZ", 2, 3, 0, 65535, 65535)),
        "JSON without end": instead(json=b"[" * 1_000_000),
        "JSON of another uid": instead(json=json_with(uid="../../evil")),
        "JSON of an unknown regime": instead(json=json_with(regime="pipe:touch canary")),
        "JSON of cameras without number": instead(json=json_with(cameras={"world_to_cam": [], "projection": []})),
    }
    return cases


def tar_of(path: Path, members: Members, change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            tar.addfile(info, io.BytesIO(content))
    return path


def linked(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


def declaring(path: Path, size: int) -> Path:
    """The first member of a tar says that it is larger."""
    data = bytearray(path.read_bytes())
    data[124:136] = b"%011o\0" % size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    return path


def tars(folder: Path, canary: Path) -> dict[str, Path]:
    """Hostile tars, whatever is in the samples."""
    sound = [(f"a.{name}", data) for name, data in encode(small_sample("a", Regime.TEXTURED, 0)).items()]
    path = iter(folder / f"{number}.tar" for number in range(100))
    keys = ("../../evil", "/tmp/evil", "..", "a/../../evil", "./evil", "C:/evil", "evil\n", "")
    found = {f"key {key!r}": tar_of(next(path), [(f"{key}.json", b"{}")]) for key in keys}
    found |= {
        f"member of type {kind!r}": tar_of(next(path), [("a.json", b"")], linked(kind))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    }
    return found | {
        "a field twice": tar_of(next(path), [*sound, sound[0]]),
        "a sample twice": tar_of(next(path), [*sound, ("b.json", b"{}"), *sound]),
        "a member of 1 GB": declaring(tar_of(next(path), sound), 1 << 30),
        "a member of 8 GB": declaring(tar_of(next(path), sound), (1 << 33) - 1),
        "a pickle for a tar": _written(next(path), pickle.dumps(Attack(canary))),
        "nothing but zeros": _written(next(path), bytes(10_000)),
        "a compressed tar": _written(next(path), b"\x1f\x8b\x08" + bytes(100)),
    }


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def dataset_of(shard: Path, folder: Path) -> Path:
    """A dataset whose ledger vouches for a hostile shard."""
    write_dataset(folder, [[("a", Regime.TEXTURED)]], 8, 8)
    part = read_ledger_part(part_path(folder, 0))
    path = shard_path(folder, part.shards[0].name)
    path.write_bytes(shard.read_bytes())
    record = ShardRecord(
        name=path.name, regime=Regime.TEXTURED, sha256=file_sha256(path), bytes=path.stat().st_size, count=1
    )
    write_ledger_part(folder, LedgerPart(job=0, outcomes=part.outcomes, shards=(record,)))
    return folder


def read_by_pipeline(shard: Path, folder: Path) -> None:
    dataset = dataset_of(shard, folder)
    (record,) = read_ledger_part(part_path(dataset, 0)).shards
    for _uid, fields in read_samples(dataset, record):
        decode(fields)


def read_by_shard_file(shard: Path, _: Path) -> None:
    with shard.open("rb") as file:
        opened = ShardFile(file)
        for number in range(len(opened)):
            decode_pixels(opened[number])
        if not len(opened):
            raise ValueError("no sample")


def read_by_training(shard: Path, folder: Path) -> None:
    stream = BatchStream(DataConfig(directory=dataset_of(shard, folder), batch_size=1, keep_latents=False), seed=0)
    stream[0]


READERS = (read_by_pipeline, read_by_shard_file, read_by_training)


def refused(read: Callable[[Path, Path], None], shard: Path, folder: Path) -> bool:
    """Return whether a reader refuses a shard without taking much memory over it."""
    tracemalloc.start()
    try:
        read(shard, folder)
    except (ValueError, UserError):
        return tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()
    return False


@pytest.mark.trust(20)
def test_nothing_in_a_shard_is_run(tmp_path: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary, folder = tmp_path / "canary", tmp_path / "shards"
    folder.mkdir()
    pickle.loads(pickle.dumps(Attack(canary)))  # noqa: S301 (what is looked for can be seen)
    assert canary.exists()
    canary.unlink()
    found = samples(canary)
    shards = {name: tar_of(folder / f"s-{i}.tar", members) for i, (name, members) in enumerate(found.items())}
    shards |= tars(folder, canary)
    chosen = list(shards.items()) if trust.full else list(shards.items())[:: len(shards) // 20]
    ends = {}
    for number, (name, shard) in enumerate(chosen):
        for read in READERS:
            # training leaves them where they are
            unread = name.endswith(("lit.webp", *MATERIAL_FIELDS)) and read is not read_by_pipeline
            if not unread:
                ends[name, read.__name__] = refused(read, shard, tmp_path / f"dataset-{number}-{read.__name__}")
    held = {case: end and not canary.exists() for case, end in ends.items()}
    trust.held(sum(held.values()), len(held))
    assert all(held.values()), [case for case, good in held.items() if not good]
    assert not [path for path in (Path("/tmp/evil.json"), tmp_path.parent / "evil.json") if path.exists()]


@pytest.mark.trust(20)
def test_no_address_is_a_command(tmp_path: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pipe:` and its like, as a dataset's place and as a shard's name."""
    monkeypatch.chdir(tmp_path)
    addresses = ["pipe:touch canary", "pipe:touch canary #", "cmd://touch canary", "|touch canary", "$(touch canary)"]
    held = []
    for address in addresses:
        with pytest.raises((UserError, ValueError)):
            BatchStream(DataConfig(directories={address: 1.0}, batch_size=1), seed=0)
        held.append(not (tmp_path / "canary").exists())
    write_dataset(tmp_path / "d", [[("a", Regime.TEXTURED)]], 8, 8)
    part = read_ledger_part(part_path(tmp_path / "d", 0))
    for name in [*addresses, "../../evil.tar", "/tmp/evil.tar"]:
        record = ShardRecord(name=name, regime=Regime.TEXTURED, sha256="0" * 64, bytes=1, count=1)
        write_ledger_part(tmp_path / "d", LedgerPart(job=0, outcomes=part.outcomes, shards=(record,)))
        with pytest.raises(UserError, match="no shard name"):
            BatchStream(DataConfig(directory=tmp_path / "d", batch_size=1), seed=0)
        held.append(not (tmp_path / "canary").exists())
    trust.held(sum(held), len(held))
    assert all(held)
