"""The disk that a sandboxed child takes up: what lies in its folder, and what is deleted there but still held open."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

FILES, DISK_FACTOR = 10_000, 2
"""Files and folders that a child may have in its folder, and the bytes of them all, in multiples of the largest."""
_DELETED = " (deleted)"


def overuse(own: Path, largest: int) -> str:
    """Describe how a child and its descendants take up more than they may in the folder `own`; empty if they do not.
    `largest`: bytes of the largest file that they may write."""
    most = DISK_FACTOR * largest
    count, size = _lying_in(own, most)
    if count > FILES:
        return f"wrote more than {FILES:,} files"
    return f"wrote more than {most / 2**30:g} GiB in all" if size + _deleted(own, largest) > most else ""


def _lying_in(own: Path, most: int) -> tuple[int, int]:
    """Return files and bytes of a folder, counted until there are too many. What is gone while it is looked at does not
    count."""
    count, size, todo = 0, 0, [own]
    while todo and count <= FILES and size <= most:
        with contextlib.suppress(OSError):
            for entry in os.scandir(todo.pop()):
                with contextlib.suppress(OSError):
                    count, size = count + 1, size + entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry))
    return count, size


def _deleted(own: Path, largest: int) -> int:
    """Return the bytes of deleted files of a folder that descendants of this process hold: open, or only mapped, where
    nobody sees their size and the largest counts."""
    held, inside = dict[int, int](), f"{own.resolve()}/"
    for process in _descendants():
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                if _is_deleted(str(link.readlink()), inside):
                    status = link.stat()
                    held[status.st_ino] = status.st_blocks * 512
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                _, _, _, _, inode, *path = line.split(maxsplit=5)
                if path and _is_deleted(path[0], inside):
                    held.setdefault(int(inode), largest)
    return sum(held.values())


def _is_deleted(path: str, inside: str) -> bool:
    return path.startswith(inside) and path.endswith(_DELETED)


def _descendants() -> Iterator[Path]:
    """Yield the folder in /proc of every process below this one, which adopts those whose parent has ended."""
    todo = [Path("/proc/self")]
    while todo:
        for task in (todo.pop() / "task").glob("*/children"):
            with contextlib.suppress(OSError):
                found = [Path("/proc") / pid for pid in task.read_text().split()]
                todo += found
                yield from found
