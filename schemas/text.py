"""Text from strangers, as files and terminals can take it."""


def storable(text: str) -> str:
    """With ? for lone surrogates: JSON can bring them, UTF-8 cannot hold them."""
    return text.encode(errors="replace").decode()


def printable(text: str) -> str:
    """With ? for all that would move a terminal's cursor or change its colours; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
