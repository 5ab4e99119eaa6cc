"""An object store in memory, `flaky://`, whose requests fail on demand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyStore(MemoryFileSystem):
    """The memory file system of fsspec; `fails(request, path)` says whether a request meets an error that passes."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails: ClassVar[Callable[[str, str], bool]] = staticmethod(lambda request, path: False)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _ask(self, request: str, path: str) -> None:
        if type(self).fails(request, path):
            raise OSError(5, f"{request}: 503 slow down", path)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._ask("info", path)
        return super().info(path, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        self._ask("read", path)
        return super().cat_file(path, *arguments, **options)

    def get_file(self, path: str, *arguments: Any, **options: Any) -> None:
        self._ask("read", path)
        super().get_file(path, *arguments, **options)

    def put_file(self, file: str, path: str, *arguments: Any, **options: Any) -> None:
        self._ask("write", path)
        super().put_file(file, path, *arguments, **options)


@contextmanager
def failing(fails: Callable[[str, str], bool]) -> Iterator[None]:
    """Requests to `flaky://` for which `fails(request, path)` holds end in an error."""
    FlakyStore.fails = staticmethod(fails)
    try:
        yield
    finally:
        FlakyStore.fails = staticmethod(lambda request, path: False)


def register() -> None:
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
