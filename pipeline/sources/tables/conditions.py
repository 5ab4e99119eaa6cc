"""Conditions on the columns of a table, as users write them: a grammar of its own, parsed here and evaluated column by
column. Nothing of it is run as code or SQL.

    condition  = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" condition ")" | comparison
    comparison = COLUMN ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) VALUE | COLUMN "in" "(" VALUE { "," VALUE } ")"
    COLUMN     = a word of letters, digits, "_" and ".", or any text in backquotes
    VALUE      = a number, a text in single or double quotes, true, or false"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import UsageError

Value = bool | int | float | str
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'[^']*'|\"[^\"]*\")|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))"
    r"|(?P<column>`[^`]+`)|(?P<word>[^\W\d][\w.]*)|(?P<sign><=|>=|!=|==|=|<|>|\(|\)|,))"
)
_COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_MAX_DEPTH = 50
"""Parentheses and `not` within each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A column compared with a value, or with each of several (`in`)."""

    column: str
    sign: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Conditions joined by `and` or `or`, or one behind `not`."""

    word: str
    parts: tuple["Condition", ...]


Condition = Comparison | Combined


def parse(text: str) -> Condition:
    """Parse a condition. Raises UsageError that names the place where it ends to be one."""
    parser = _Parser(text=text)
    condition = parser.joined("or", 0)
    if parser.here() != ("end", ""):
        raise parser.wrong("`and`, `or` or the end")
    return condition


def columns(condition: Condition) -> set[str]:
    """The names of all columns that a condition reads."""
    if isinstance(condition, Comparison):
        return {condition.column}
    return {name for part in condition.parts for name in columns(part)}


def met(condition: Condition, table: pa.Table) -> pa.ChunkedArray:
    """Evaluate a condition for every row of a table that has its columns: true, false, or null where a value is missing
    (null or NaN). Raises UsageError where a column holds no values of the kind that it is compared with."""
    if isinstance(condition, Comparison):
        found = [_compared(condition, value, table[condition.column]) for value in condition.values]
        return _folded(pc.or_kleene, found)
    found = [met(part, table) for part in condition.parts]
    if condition.word == "not":
        return pc.invert(found[0])
    return _folded(pc.and_kleene if condition.word == "and" else pc.or_kleene, found)


def _folded(join: Callable[..., pa.ChunkedArray], found: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    result = found[0]
    for other in found[1:]:
        result = join(result, other)
    return result


def _compared(comparison: Comparison, value: Value, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Compare a column with a value of its own kind. A number is rounded as the column's: a float32 may equal 0.1."""
    kind, sign = column.type, comparison.sign if comparison.sign != "in" else "="
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.bool_())
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if numeric and isinstance(value, int | float) and not isinstance(value, bool):
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind) or isinstance(value, float):
            column = column if kind == pa.float32() else column.cast(pa.float64(), safe=False)
        if pa.types.is_floating(column.type):
            missing = pa.scalar(None, column.type)
            column = pc.if_else(pc.is_nan(column), missing, column)
            return _COMPARE[sign](column, pa.scalar(float(value), column.type))
        return _COMPARE[sign](column, pa.scalar(value))
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    of_kind = (text and isinstance(value, str)) or (pa.types.is_boolean(kind) and isinstance(value, bool))
    name = "numbers" if numeric else "text" if text else "true and false" if pa.types.is_boolean(kind) else str(kind)
    if not of_kind:
        raise UsageError(
            f"select.where: column {comparison.column!r} holds {name}, which cannot be compared with {value!r}; "
            "write numbers bare, text in quotes, true or false"
        )
    if sign not in ("=", "!="):
        raise UsageError(f"select.where: column {comparison.column!r} holds {name}, without an order; use =, != or in")
    return _COMPARE[sign](column, pa.scalar(value, column.type))


@dataclass(slots=True, kw_only=True)
class _Parser:
    """The place that has been reached in a text."""

    text: str
    at: int = 0
    _ahead: tuple[str, str, int] | None = field(default=None)

    def here(self) -> tuple[str, str]:
        """The next token: its kind and text."""
        if self._ahead is None:
            found = _TOKEN.match(self.text, self.at)
            if found and found.lastgroup:
                self._ahead = (found.lastgroup, found[found.lastgroup], found.end())
            else:
                self._ahead = ("end" if not self.text[self.at :].strip() else "other", "", self.at)
        return self._ahead[:2]

    def take(self) -> str:
        """Go past the next token, and return its text."""
        _, word = self.here()
        assert self._ahead is not None
        self.at, self._ahead = self._ahead[2], None
        return word

    def takes(self, word: str) -> bool:
        """Go past a sign or word if it is next."""
        kind, found = self.here()
        if kind not in ("sign", "word") or (found.lower() if kind == "word" else found) != word:
            return False
        self.take()
        return True

    def wrong(self, wanted: str) -> UsageError:
        rest = self.text[self.at :].strip()
        place = f"before {rest[:30]!r}" if rest else "at its end"
        return UsageError(
            f"select.where: {wanted} is missing {place} in {self.text!r}; write e.g. score >= 4 and style = 'realistic'"
        )

    def joined(self, word: str, depth: int) -> Condition:
        """Conditions with `or` between them, each of conditions with `and` between them."""
        if depth > _MAX_DEPTH:
            raise UsageError(f"select.where: more than {_MAX_DEPTH} parentheses or `not` within each other")
        parts = [self._below(word, depth)]
        while self.takes(word):
            parts.append(self._below(word, depth))
        return parts[0] if len(parts) == 1 else Combined(word=word, parts=tuple(parts))

    def _below(self, word: str, depth: int) -> Condition:
        return self.joined("and", depth) if word == "or" else self._one(depth)

    def _one(self, depth: int) -> Condition:
        if self.takes("not"):
            if depth > _MAX_DEPTH:
                raise UsageError(f"select.where: more than {_MAX_DEPTH} parentheses or `not` within each other")
            return Combined(word="not", parts=(self._one(depth + 1),))
        if self.takes("("):
            inner = self.joined("or", depth + 1)
            self._close()
            return inner
        if self.here()[0] not in ("word", "column"):
            raise self.wrong("a column")
        column = self.take().strip("`")
        if self.takes("in"):
            if not self.takes("("):
                raise self.wrong("'('")
            values = [self._value()]
            while self.takes(","):
                values.append(self._value())
            self._close()
            return Comparison(column=column, sign="in", values=tuple(values))
        kind, sign = self.here()
        if kind != "sign" or sign in "(),":
            raise self.wrong("a comparison (= != < <= > >= in)")
        self.take()
        return Comparison(column=column, sign="=" if sign == "==" else sign, values=(self._value(),))

    def _close(self) -> None:
        if not self.takes(")"):
            raise self.wrong("')'")

    def _value(self) -> Value:
        kind, word = self.here()
        if kind == "text":
            return self.take()[1:-1]
        if kind == "number":
            self.take()
            whole = re.fullmatch(r"[-+]?\d{1,18}", word)  # which 64 bits hold
            return int(word) if whole else float(word)
        if kind == "word" and word.lower() in ("true", "false"):
            return self.take().lower() == "true"
        raise self.wrong("a number, a text in quotes, true or false")
