"""How a fault travels from deep inside a reader to the asset boundary, where it becomes a value."""

from schemas.ledger import Reason, Rejected


class AssetFault(Exception):
    """The asset is at fault. Raised by the readers, caught only by `preflight` and `load_mesh`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.rejected = Rejected(reason=reason, detail=detail)
