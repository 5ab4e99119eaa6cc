"""What is wrong with an asset: what ends its reading, and what is only noted in its ledger row."""

from schemas.errors import storable
from schemas.ledger import MAX_NOTE_CHARS, Note, NoteKind, Reason, Rejected


class AssetError(Exception):
    """The asset cannot be used. Raised by the readers; caught by `load_asset`, and where what is missing can be done
    without."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.rejected = Rejected(reason=reason, detail=detail)
        super().__init__(f"{reason}: {self.rejected.detail}")


class Notes:
    """Notes on one asset, at most one of a kind: the first detail, and a count."""

    def __init__(self) -> None:
        self._found: dict[NoteKind, Note] = {}

    def add(self, kind: NoteKind, detail: str, count: int = 1) -> None:
        """Note `count` more things of a kind; `detail` names the first: where it is, and what was done."""
        known = self._found.get(kind)
        shown = known.detail if known else storable(detail[:MAX_NOTE_CHARS])
        self._found[kind] = Note(kind=kind, count=count + (known.count if known else 0), detail=shown)

    def found(self) -> tuple[Note, ...]:
        """All notes, by kind."""
        return tuple(self._found[kind] for kind in sorted(self._found))
