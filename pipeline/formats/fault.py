"""How a fault travels from deep inside a reader to the asset boundary, where it becomes a value."""

from schemas.ledger import Reason, Rejected


class AssetFault(Exception):
    """The asset is at fault. Raised by the readers; caught by `load_asset`, and where what is missing can be done
    without."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.rejected = Rejected(reason=reason, detail=detail)
        super().__init__(f"{reason}: {self.rejected.detail}")
