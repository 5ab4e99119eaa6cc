"""Assets from other machines, brought here by the job that works on them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.sources import objaverse, origins
from pipeline.sources.objaverse import ObjaverseConfig
from schemas.ledger import Rejected
from schemas.mesh import MeshRef

_FETCHERS: dict[str, Callable[[MeshRef, ObjaverseConfig], MeshRef | Rejected]] = {
    objaverse.SCHEME: objaverse.fetch_object,
    origins.SCHEME: origins.fetch_object,
}


@contextlib.contextmanager
def fetched(refs: Iterable[MeshRef], cfg: ObjaverseConfig) -> Iterator[Iterator[MeshRef | Rejected]]:
    """Each asset as a file of this machine, or why it cannot be had; downloads run ahead of whoever reads."""
    with ThreadPoolExecutor(cfg.concurrency) as pool:
        running: list[Future[MeshRef | Rejected] | MeshRef] = []
        for ref in refs:
            fetch = next((fetch for scheme, fetch in _FETCHERS.items() if ref.uri.startswith(scheme)), None)
            running.append(pool.submit(fetch, ref, cfg) if fetch else ref)
        try:
            yield (entry.result() if isinstance(entry, Future) else entry for entry in running)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
