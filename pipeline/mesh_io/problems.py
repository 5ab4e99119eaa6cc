"""Problems of an asset: those that end its reading, and those that its ledger row only notes.

A part that cannot be drawn costs that part, not the asset, and nothing that is left out or read in another way than the
file says goes without a note.
"""

import contextlib
from collections.abc import Iterator

from schemas.errors import storable
from schemas.ledger import MAX_NOTE_CHARS, Note, NoteKind, Reason, Rejected


class AssetError(Exception):
    """The asset cannot be used. Raised by the readers; caught by `load_asset`, and where what is missing can be done
    without."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.rejected = Rejected(reason=reason, detail=detail)
        super().__init__(f"{reason}: {self.rejected.detail}")


NEVER_NOTED = frozenset({Reason.TOO_LARGE, Reason.UNSAFE_URI})
"""Reasons that reject an asset wherever they are met: its limits, and references that lead out of its folder."""


class Notes:
    """Notes on one asset, at most one of a kind: the first detail, and a count."""

    def __init__(self) -> None:
        self._found: dict[NoteKind, Note] = {}
        self.first_error: AssetError | None = None
        """First error of a skipped part: the reason to reject an asset of which nothing is left."""

    def add(self, kind: NoteKind, detail: str, count: int = 1) -> None:
        """Note `count` more things of a kind; `detail` names the first: where it is, and what was done."""
        known = self._found.get(kind)
        shown = known.detail if known else storable(detail[:MAX_NOTE_CHARS])
        self._found[kind] = Note(kind=kind, count=count + (known.count if known else 0), detail=shown)

    @contextlib.contextmanager
    def in_place_of_an_error(self, kind: NoteKind) -> Iterator[None]:
        """Note an AssetError raised within, and go on, unless its reason is in `NEVER_NOTED`."""
        try:
            yield
        except AssetError as error:
            if error.rejected.reason in NEVER_NOTED:
                raise
            if kind is NoteKind.PART_LEFT_OUT:
                self.first_error = self.first_error or error
            self.add(kind, error.rejected.detail)

    def found(self) -> tuple[Note, ...]:
        """All notes, by kind."""
        return tuple(self._found[kind] for kind in sorted(self._found))
