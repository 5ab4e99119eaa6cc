"""Landlock: files, TCP and signals beyond what is named are out of reach, for this process and all it starts. Constants
from linux/landlock.h."""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR

from pipeline.sandbox.linux import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
"""Rights that a rule on something other than a folder may name."""
_KNOWN = (0, 1 << 13, 1 << 14, 1 << 15, 1 << 15, 1 << 16)
"""First right that each version does not know."""
_TCP, _SIGNALS_AND_ABSTRACT_SOCKETS = 0b11, 0b11
_TCP_SINCE, SCOPES_SINCE = 4, 6

READ = _EXECUTE | _READ_FILE | _READ_DIR
OWN = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _MAKE_DIR | _MAKE_REG | _REMOVE_DIR | _REMOVE_FILE | _REFER
"""Files and folders can be made in it, links, sockets and devices cannot, and nothing in it can be run."""
DEVICE = _READ_FILE | _READ_DIR | _WRITE_FILE | _IOCTL_DEVICE


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict(allowed: Mapping[Path, int]) -> int:
    """Keep this process to the rights named for each path, which hold for all below it; paths that do not exist are
    skipped. `no_new_privs` must be set. Returns the kernel's version of Landlock; raises OSError where there is
    none."""
    version = syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    known = _KNOWN[min(version, len(_KNOWN) - 1)] - 1
    ruleset = _Ruleset(
        files=known,
        net=_TCP if version >= _TCP_SINCE else 0,
        scoped=_SIGNALS_AND_ABSTRACT_SOCKETS if version >= SCOPES_SINCE else 0,
    )
    size = 8 * (1 + (version >= _TCP_SINCE) + (version >= SCOPES_SINCE))
    handle = syscall(_CREATE_RULESET, ruleset, size, 0)
    try:
        for path, rights in allowed.items():
            _allow(handle, path, rights & known)
        syscall(_RESTRICT_SELF, handle, 0)
    finally:
        os.close(handle)
    return version


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return  # what is not there needs no rule
    try:
        if not S_ISDIR(os.fstat(opened).st_mode):
            rights &= _OF_FILES
        syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _PathRule(allowed=rights, folder=opened), 0)
    finally:
        os.close(opened)
