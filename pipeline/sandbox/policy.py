"""The layers around a process that reads untrusted bytes. Each is attempted; none is required of a host."""

import contextlib
import ctypes
import functools
import os
import pwd
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.sandbox import landlock, seccomp
from pipeline.sandbox.linux import syscall

REPO = Path(__file__).resolve().parents[2]
_CAPGET_CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}
_CAPABILITIES_VERSION = 0x20080522
_READ_ANY_FILE = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root goes on reading other users' files; Landlock says which."""
_SYSTEM = ("usr", "bin", "lib", "lib32", "lib64", "nix/store", "gnu/store", "sys")
_KERNEL = ("cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "devices", "driver", "sys")
"""Files in /proc that are of the machine, not of other processes."""
_SELF = Path("/proc/self")
_SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts", "localtime", "mime.types", "nvidia")
"""Settings in /etc."""
_BESIDE = (".mtl", ".bin", ".png", ".jpg", ".jpeg", ".webp", ".ktx2")
"""Files that an asset may refer to."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "dri", "dxg", "nvidia*")
"""Devices in /dev; the last ones are for CUDA."""


class Layer(StrEnum):
    """The layers of the sandbox, strongest last. The ledger column `sandbox` joins those reached by `+`."""

    LIMITS = "limits"
    """Resource limits, disk, wall clock, `no_new_privs`, its own environment and process group: on every host."""
    NO_PRIVILEGES = "no_privileges"
    """No capabilities, but for reading files."""
    FILES = "files"
    """Landlock: reads the system, our code and its asset, of /proc itself alone; writes its own folder."""
    SIGNALS = "signals"
    """Landlock, Linux 6.12: no signals and no abstract sockets beyond itself."""
    NO_NETWORK = "no_network"
    """No socket of any kind, no view into other processes and no change to them, no change to owner, mode and times of
    files, nothing that outlives it."""
    STARTS = "starts"
    """Processes and threads are counted, and refused beyond the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The files and devices that a process may use, where the kernel can enforce it."""

    readable: tuple[Path, ...]
    """Files, and folders with all that they hold."""
    devices: tuple[Path, ...]
    """Devices to read, write and control."""
    own: Path
    """The folder in which it may write."""

    def __post_init__(self) -> None:
        if wide := [str(path) for path in (*self.readable, self.own) if is_too_wide(path)]:
            raise ValueError(f"{wide[0]}: no policy opens the root, a home, or what lies around this program")


def enter(policy: Policy) -> tuple[list[Layer], int | None]:
    """Close this process in, for good, as far as the host allows; `no_new_privs` must be set. The layers reached, and
    the handle over which its supervisor is asked about starts (`pipeline.sandbox.seccomp`)."""
    layers, listener = [Layer.LIMITS], None
    with contextlib.suppress(OSError, KeyError):
        _drop_privileges()
        layers.append(Layer.NO_PRIVILEGES)
    with contextlib.suppress(OSError):
        rights = dict.fromkeys(policy.readable, landlock.READ) | dict.fromkeys(policy.devices, landlock.DEVICE)
        version = landlock.restrict(rights | {policy.own: landlock.OWN, _SELF: landlock.READ})
        layers += [Layer.FILES, Layer.SIGNALS] if version >= landlock.SCOPES_SINCE else [Layer.FILES]
    try:
        listener = seccomp.install(ask=True)
        layers += [Layer.NO_NETWORK, Layer.STARTS]
    except OSError:
        with contextlib.suppress(OSError):
            seccomp.install(ask=False)
            layers.append(Layer.NO_NETWORK)
    return layers, listener


def program_files() -> tuple[Path, ...]:
    """List the files that this program needs: the system's libraries, the interpreter, its packages, our own, and
    wherever else it has loaded libraries from; never the folder we stand in. None lies in another one."""
    system = [Path("/") / name for name in _SYSTEM] + [Path("/etc") / name for name in _SETTINGS]
    system += [Path("/proc") / name for name in _KERNEL]
    packages = [Path(entry) for entry in sys.path if entry and Path(entry).resolve() not in (REPO, Path.cwd())]
    ours = [REPO / name for name in ("schemas", "geometry", "pipeline")]
    wanted = [*system, Path(sys.prefix), Path(sys.base_prefix), *packages, *ours, *_libraries()]
    found = sorted({path.resolve() for path in wanted if not is_too_wide(path)})
    return tuple(path for path in found if not any(parent in found for parent in path.parents))


def devices() -> tuple[Path, ...]:
    """List the devices that a process may need and that exist."""
    return tuple(sorted(device for pattern in _DEVICES for device in Path("/dev").glob(pattern)))


def interpreter_files(python: str) -> tuple[Path, ...]:
    """List what another interpreter needs: the folders of its virtual environment and of the one behind it."""
    if not python:
        return ()
    given = Path(python).absolute()
    found = (given.parents[1] if given.parent.name == "bin" else given for given in (given, given.resolve()))
    return tuple(path for path in found if not is_too_wide(path))


def folder_of(path: Path) -> tuple[Path, ...]:
    """List what a file that may refer to its neighbours needs: its folder, or, where that is too wide for a policy, the
    materials, buffers and images beside it."""
    if not is_too_wide(path.parent):
        return (path, path.parent)
    beside = (other for other in path.parent.iterdir() if other.suffix.lower() in _BESIDE and other.is_file())
    return (path, *sorted(beside))


def is_too_wide(folder: Path) -> bool:
    """Return whether a folder is one that no policy opens: the root, a home, or one above a home or this program."""
    return folder.resolve() in too_wide()


@functools.cache
def too_wide() -> frozenset[Path]:
    """List the root, the homes of this user, and the folders above those and above this program's."""
    homes = {Path(os.environ.get("HOME", "/")).resolve()}
    with contextlib.suppress(KeyError):  # a user without an entry, as in some containers
        homes.add(Path(pwd.getpwuid(os.getuid()).pw_dir).resolve())
    programs = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), REPO / "pipeline"]
    wide = homes.union(*(inner.parents for inner in (*homes, *programs)))
    return frozenset(wide - {Path("/") / name for name in _SYSTEM})


def _libraries() -> list[Path]:
    """List the folders of all libraries that are loaded; the library alone where its folder is too wide."""
    with Path("/proc/self/maps").open() as maps:
        mapped = {Path(line.split(maxsplit=5)[-1].strip()) for line in maps if ".so" in line and "/" in line}
    return sorted({name if is_too_wide(name.parent) else name.parent for name in mapped if name.is_absolute()})


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _drop_privileges() -> None:
    """Keep none of root's capabilities but those that read files."""
    get, put = _CAPGET_CAPSET[os.uname().machine]
    header, sets = _Header(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    syscall(get, header, sets)
    kept = sets[1] & _READ_ANY_FILE  # of those permitted
    # effective, permitted and inheritable, low words first
    syscall(put, header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))
