"""SQL text of definitions as text that DuckDB reads with the same meaning, for the recount.

Definitions have the SQL of Polars. Many of its words mean something else in DuckDB (``round`` of a half, ``log10``,
``upper('ß')``), so these are replaced by functions of the recount's own, which ``prepare`` makes known to DuckDB. A
text with a word that DuckDB lacks, or whose meaning is not written down here a second time, is not translated.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from unskew.features.definitions.sql_text import Token, tokens_of

_OWN = "unskew_"

# Unicode's White_Space, which Python's ``strip`` exceeds by four control characters.
_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)

# Own functions by name and number of arguments; functions of the same name and fewer arguments are DuckDB's own.
_MACROS: Mapping[str, str] = {
    "ceil": "(v BIGINT) AS v, (v DOUBLE) AS ceil(v), (v DECIMAL(38,18)) AS ceil(v)",
    "floor": "(v BIGINT) AS v, (v DOUBLE) AS floor(v), (v DECIMAL(38,18)) AS floor(v)",
    "sign": "(v BIGINT) AS sign(v), (v DECIMAL(38,18)) AS sign(v),"
    " (v DOUBLE) AS CASE WHEN isnan(v) THEN v ELSE sign(v) END",
    "log": "(v, base) AS ln(CAST(v AS DOUBLE)) / ln(CAST(base AS DOUBLE))",
    "log10": "(v) AS ln(CAST(v AS DOUBLE)) / ln(10.0::DOUBLE)",
    "log2": "(v) AS ln(CAST(v AS DOUBLE)) / ln(2.0::DOUBLE)",
    "octet_length": "(v) AS strlen(v)",
    "bit_and": "(a, b) AS (a & b)",
    "bit_or": "(a, b) AS (a | b)",
    "bit_xor": "(a, b) AS xor(a, b)",
    "bit_not": "(a) AS (~a)",
    "epoch": "(t) AS epoch_us(t) // 1000000 - CAST(epoch_us(t) % 1000000 < 0 AS BIGINT)"
    " + (epoch_us(t) % 1000000 + 1000000) % 1000000 * 1000 / 1000000000.0::DOUBLE",
    "millisecond": "(t) AS ((epoch_us(t) % 60000000 + 60000000) % 60000000 // 1000000) * 1000.0::DOUBLE"
    " + (epoch_us(t) % 1000000 + 1000000) % 1000000 * 1000 / 1000000.0::DOUBLE",
    "greatest": "(a, b) AS CASE WHEN a IS NULL THEN b WHEN b IS NULL THEN a"
    " WHEN typeof(a) = 'DOUBLE' AND CAST(a AS VARCHAR) = 'nan' THEN b"
    " WHEN typeof(b) = 'DOUBLE' AND CAST(b AS VARCHAR) = 'nan' THEN a ELSE greatest(a, b) END",
    "to_text": "(v) AS CASE WHEN typeof(v) = 'DOUBLE' AND CAST(v AS VARCHAR) = 'nan' THEN 'NaN'"
    " ELSE CAST(v AS VARCHAR) END",
    "to_double": "(v VARCHAR) AS CASE WHEN NOT regexp_matches(v, '[\\s_]') THEN TRY_CAST(v AS DOUBLE) END,"
    " (v BIGINT) AS CAST(v AS DOUBLE), (v DOUBLE) AS v, (v BOOLEAN) AS CAST(v AS DOUBLE)",
    "to_int": "(v BIGINT, low, past) AS CASE WHEN v >= low AND v < past THEN v END,"
    " (v DOUBLE, low, past) AS CASE WHEN trunc(v) >= CAST(low AS DOUBLE) AND trunc(v) < CAST(past AS DOUBLE)"
    " THEN CAST(trunc(v) AS BIGINT) END,"
    " (v DECIMAL(38,18), low, past) AS CASE WHEN trunc(v) >= low AND trunc(v) < past"
    " THEN CAST(trunc(v) AS BIGINT) END,"
    " (v BOOLEAN, low, past) AS CAST(v AS BIGINT),"
    " (v VARCHAR, low, past) AS CASE WHEN regexp_full_match(v, '[+-]?[0-9]+')"
    " AND TRY_CAST(v AS HUGEINT) >= low AND TRY_CAST(v AS HUGEINT) < past THEN TRY_CAST(v AS BIGINT) END",
}


def _round_to(value: float, digits: int) -> float:
    """Return a finite value, multiplied by the power of ten, rounded with halves to even, and divided by it again."""
    factor = 10.0**digits
    return round(value * factor) / factor if math.isfinite(value * factor) else value


def _part(text: str, start: int, length: int | None) -> str:
    """Return characters from ``start``, counted from 1; those before the text count towards the length."""
    end = len(text) if length is None else start - 1 + length
    return text[max(start - 1, 0) : max(end, 0)]


def _left(text: str, n: int) -> str:
    return text[:n]


def _right(text: str, n: int) -> str:
    return text[-n:] if n > 0 else text[abs(n) :] if n else ""


def _place(text: str, part: str) -> int:
    """Return the place of a part in UTF-8 bytes, counted from 1; 0 if there is none."""
    return text.encode().find(part.encode()) + 1


_Kind = Literal["VARCHAR", "DOUBLE", "BIGINT"]


@dataclass(frozen=True)
class _Python:
    """A function in plain Python: null for a null."""

    function: Callable[..., Any]
    takes: tuple[_Kind, ...]
    gives: _Kind


_PYTHON: Mapping[str, _Python] = {
    "round_to": _Python(_round_to, ("DOUBLE", "BIGINT"), "DOUBLE"),
    "log1p_of": _Python(math.log1p, ("DOUBLE",), "DOUBLE"),
    "upper": _Python(str.upper, ("VARCHAR",), "VARCHAR"),
    "lower": _Python(str.lower, ("VARCHAR",), "VARCHAR"),
    "trim": _Python(lambda text: text.strip(_SPACES), ("VARCHAR",), "VARCHAR"),
    "ltrim": _Python(lambda text: text.lstrip(_SPACES), ("VARCHAR",), "VARCHAR"),
    "rtrim": _Python(lambda text: text.rstrip(_SPACES), ("VARCHAR",), "VARCHAR"),
    "replace": _Python(lambda text, old, new: text.replace(old, new), ("VARCHAR",) * 3, "VARCHAR"),
    "left": _Python(_left, ("VARCHAR", "BIGINT"), "VARCHAR"),
    "right": _Python(_right, ("VARCHAR", "BIGINT"), "VARCHAR"),
    "substr_from": _Python(lambda text, start: _part(text, start, None), ("VARCHAR", "BIGINT"), "VARCHAR"),
    "substr_of": _Python(_part, ("VARCHAR", "BIGINT", "BIGINT"), "VARCHAR"),
    "strpos_of": _Python(_place, ("VARCHAR", "VARCHAR"), "BIGINT"),
}

# Macros over these functions. DuckDB makes a null of a NaN that Python returns.
_ROUNDED = "CASE WHEN isfinite(v) THEN unskew_round_to(v, {}) ELSE v END"
_OVER_PYTHON: Mapping[str, str] = {
    "round": f"(v BIGINT) AS v, (v DOUBLE) AS {_ROUNDED.format(0)}, (v DECIMAL(38,18)) AS round(v),"
    f" (v BIGINT, digits) AS v, (v DOUBLE, digits) AS {_ROUNDED.format('digits')},"
    " (v DECIMAL(38,18), digits) AS round(v, digits)",
    "log1p": "(v) AS CASE WHEN v > -1 AND isfinite(CAST(v AS DOUBLE)) THEN unskew_log1p_of(v) ELSE ln(1 + CAST(v AS DOUBLE)) END",
    "strpos": "(v, part) AS CASE WHEN part IS NOT NULL THEN coalesce(unskew_strpos_of(v, part), 0) END",
}

# Polars' functions, by number of arguments, that have another name here.
_RENAMED: Mapping[tuple[str, int], str] = {
    **{(name, 1): f"{_OWN}{name}" for name in ("ceil", "floor", "sign", "log10", "log2", "octet_length", "bit_not")},
    **{(name, 1): f"{_OWN}{name}" for name in ("log1p", "upper", "lower", "trim", "ltrim", "rtrim", "round")},
    **{(name, 2): f"{_OWN}{name}" for name in ("log", "bit_and", "bit_or", "bit_xor", "greatest", "round", "strpos")},
    **{(name, 2): f"{_OWN}{name}" for name in ("left", "right")},
    **{(name, 2): f"{_OWN}substr_from" for name in ("substr", "substring")},
    **{(name, 3): f"{_OWN}substr_of" for name in ("substr", "substring")},
    ("ceiling", 1): f"{_OWN}ceil",
    ("truncate", 1): "trunc",
    ("truncate", 2): "trunc",
    ("replace", 3): f"{_OWN}replace",
    ("regexp_like", 2): "regexp_matches",
}

# Integers by SQL type: the first, and the first past the last.
_INTEGERS: Mapping[str, tuple[int, int]] = {
    name: bounds
    for names, bounds in (
        ("bigint int8", (-(2**63), 2**63)),
        ("int integer int4", (-(2**31), 2**31)),
        ("smallint int2", (-(2**15), 2**15)),
        ("tinyint int1", (-(2**7), 2**7)),
    )
    for name in names.split()
}
_DOUBLES = frozenset({"double", "float", "float8"})
_TEXTS = frozenset({"varchar", "text", "string", "char"})
# Functions that mean something else in DuckDB, have other parameters there, or are rounded otherwise in the last bit.
_OTHERWISE = frozenset(
    "acos acosd asin asind atan atan2 atan2d atand cbrt cos cosd cot cotd date degrees div pi position pow power radians "  # noqa: SIM905
    "regexp_replace sin sind split_part string_to_array strptime tan tand time timestamp".split()
)
_BESIDE = frozenset({"+", "-", "*", "//", "%"})
_CHOICES = frozenset({"then", "else"})
_FORMATS = re.compile(r"'(?:[^%']|%[YmdHMSj])*'")
# In the engines' regular expressions, classes and case-blind letters are of ASCII or of Unicode.
_ENGINES_DIFFER = re.compile(r"\\|\(\?|\[:")


class Untranslated(Exception):
    """A text that is not translated; its text is the reason."""


def prepare(connection: Any) -> None:
    """Make the recount's own functions known to a DuckDB connection."""
    connection.execute("SET TimeZone = 'UTC'")
    # An integer divided by zero is null. Versions that know no such setting do so without it.
    with suppress(Exception):
        connection.execute("SET error_on_division_by_zero = false")
    for name, function in _PYTHON.items():
        connection.create_function(_OWN + name, function.function, list(function.takes), function.gives)
    for name, body in {**_MACROS, **_OVER_PYTHON}.items():
        connection.execute(f"CREATE MACRO {_OWN}{name}{body}")


def translated(text: str, columns: Mapping[str, pl.DataType]) -> str:
    """Return DuckDB's text for an SQL text, with ``alias(n)`` for the n-th of the columns.

    Raises ``Untranslated`` if DuckDB lacks a word or gives it another meaning.
    """
    tokens = tokens_of(text)
    return " ".join(_Translation(tokens, columns).written(0, len(tokens)))


def alias(number: int) -> str:
    """Return the name of a column in a translated text: DuckDB reserves other words, and ignores case."""
    return f"unskew_c{number}"


class _Translation:
    def __init__(self, tokens: Sequence[Token], columns: Mapping[str, pl.DataType]) -> None:
        self._tokens = tokens
        self._aliases = {name: alias(number) for number, name in enumerate(columns)}
        self._has_decimals = any(isinstance(kind, pl.Decimal) for kind in columns.values())
        self._has_floats = any(kind.is_float() for kind in columns.values())
        self._has_instants = any(isinstance(kind, pl.Datetime) for kind in columns.values())

    def written(self, at: int, end: int) -> Iterator[str]:
        """Yield the text of the tokens from ``at`` to before ``end``."""
        while at < end:
            token = self._tokens[at]
            is_call = token.kind == "word" and self._is(at + 1, "(")
            if is_call and token.word in {"cast", "try_cast"}:
                past = self._closing(at + 1) + 1
                yield self._cast(token.word, at + 2, past - 1)
                at = past
            elif is_call and (call := self._call(token.word, at + 2, self._closing(at + 1))) is not None:
                yield call
                at = self._closing(at + 1) + 1
            else:
                yield self._one(at, is_call=is_call)
                at += 1

    def _one(self, at: int, *, is_call: bool) -> str:
        token = self._tokens[at]
        before = self._tokens[at - 1] if at else Token("", "")
        after = self._tokens[at + 1] if at + 1 < len(self._tokens) else Token("", "")
        match token.kind:
            case "name":
                return self._aliases.get(token.text[1:-1].replace('""', '"'), token.text)
            case "number":
                # Definitions mean a float by 1.5, and DuckDB would read a decimal. It would read 1000000 as a number of
                # 32 bits, and fail on 1000000 * 1000000.
                if token.text.isdigit() and (
                    before.text in _BESIDE or after.text in _BESIDE or before.word in _CHOICES
                ):
                    return f"{token.text}::BIGINT" if int(token.text) < 2**63 else token.text
                return f"{token.text}e0" if "." in token.text and "e" not in token.text.lower() else token.text
            case "word":
                is_type = before.text == "::" or after.kind == "text"
                if token.text in self._aliases and not is_call and not is_type:
                    return self._aliases[token.text]
                self._check_word(at)
                return token.text
            case "symbol":
                return self._symbol(at)
            case _:
                return token.text

    def _check_word(self, at: int) -> None:
        word = self._tokens[at].word
        if word in {"rlike", "regexp", "xor", "normalize", "initcap"}:
            raise Untranslated(f"DuckDB has no {word.upper()}")
        if word in _OTHERWISE and self._is(at + 1, "("):
            raise Untranslated(f"{word} is another function in DuckDB")
        if word == "ilike":
            raise Untranslated("ILIKE compares letters otherwise in DuckDB")
        if word == "cbrt":
            raise Untranslated("cbrt is rounded otherwise in DuckDB")
        following = [token.word for token in self._tokens[at + 1 : at + 3] if token.word != "not"][:1]
        if word == "is" and following in (["true"], ["false"]):
            raise Untranslated(f"null IS {following[0].upper()} is null in Polars")

    def _symbol(self, at: int) -> str:
        symbol = self._tokens[at].text
        match symbol:
            case "<=>":
                return "IS NOT DISTINCT FROM"
            case "::":
                raise Untranslated("a cast written with :: is not read by the recount; write CAST(... AS ...)")
            case "/" | "//" if self._has_decimals:
                raise Untranslated("DuckDB divides decimals as floats")
            case "||" if self._has_floats:
                raise Untranslated("DuckDB writes NaN otherwise in texts")
            case "~*" | "!~*" | "~~*" | "!~~*":
                raise Untranslated(f"{symbol} compares letters of ASCII only in DuckDB")
            case "~" | "!~" if at and self._is_operand(at - 1):
                self._check_pattern(at + 1)
        return symbol

    def _is_operand(self, at: int) -> bool:
        token = self._tokens[at]
        return token.kind != "symbol" or token.text == ")"

    def _check_pattern(self, at: int) -> None:
        pattern = self._tokens[at].text if at < len(self._tokens) else ""
        if not pattern.startswith("'") or _ENGINES_DIFFER.search(pattern):
            raise Untranslated("classes of characters in patterns are of ASCII only in DuckDB")

    def _call(self, word: str, first: int, end: int) -> str | None:
        """Return a call whose arguments stand from ``first`` to before ``end``; None if it stays as it is."""
        pieces = self._pieces(first, end)
        name = _RENAMED.get((word, len(pieces)))
        if word in {"extract", "date_part"}:
            unit = self._tokens[first].text.strip("'").lower()
            if unit in {"epoch", "millisecond", "milliseconds"}:
                return f"{_OWN}{unit.removesuffix('s')}({' '.join(self.written(first + 2, end))})"
            if unit.startswith(("nano", "isoweek")):
                raise Untranslated(f"DuckDB counts {unit} otherwise")
            if word == "extract":
                return f"extract({unit} FROM {' '.join(self.written(first + 2, end))})"
        if word in {"trim", "ltrim", "rtrim", "substr", "substring"} and self._has_words(
            first, end, "from", "for", "both"
        ):
            raise Untranslated(f"{word.upper()} with words between its arguments is not read by the recount")
        if word == "strftime" and not (len(pieces) == 2 and _FORMATS.fullmatch(self._tokens[pieces[1][0]].text)):
            raise Untranslated("DuckDB has other letters in formats of instants")
        if word == "regexp_like":
            self._check_pattern(pieces[1][0] if len(pieces) == 2 else end)
        if word in {"concat", "concat_ws"} and self._has_floats:
            raise Untranslated("DuckDB writes NaN otherwise in texts")
        if word in {"left", "right", "substr", "substring"} and any(
            self._reads_columns(*piece) for piece in pieces[1:]
        ):
            raise Untranslated(f"{word} of a place in a column has another meaning for null in Polars")
        if word == "greatest" and len(pieces) > 2:
            rest = self._call(word, pieces[1][0], end)
            return f"{name or f'{_OWN}greatest'}({' '.join(self.written(*pieces[0]))}, {rest})"
        if word in {"greatest", "round", "regexp_like"} and name is None:
            raise Untranslated(f"{word} with {len(pieces)} arguments is not read by the recount")
        if name is None:
            return None
        return f"{name}({', '.join(' '.join(self.written(*piece)) for piece in pieces)})"

    def _cast(self, word: str, first: int, end: int) -> str:
        place = self._as(first, end)
        value = " ".join(self.written(first, place))
        kind = [token.text for token in self._tokens[place + 1 : end]]
        name = kind[0].lower() if kind else ""
        if len(kind) == 1 and name in _INTEGERS and not self._has_instants:
            low, past = _INTEGERS[name]
            return f"{_OWN}to_int({value}, {low}::HUGEINT, {past}::HUGEINT)"
        if len(kind) == 1 and name in _DOUBLES and not self._has_decimals:
            return f"{_OWN}to_double({value})"
        if len(kind) == 1 and name in _DOUBLES:
            return f"{word}({value} AS DOUBLE)"
        if len(kind) == 1 and name in _TEXTS and not self._has_instants:
            return f"{_OWN}to_text({value})"
        if len(kind) == 1 and name in {"boolean", "bool"}:
            return f"{word}({value} AS BOOLEAN)"
        is_literal = place == first + 1 and self._tokens[first].kind == "text"
        if is_literal and name == "decimal":
            return f"{word}({value} AS {' '.join(kind)})"
        raise Untranslated(f"a cast to {''.join(kind)} is not read by the recount")

    def _as(self, first: int, end: int) -> int:
        depth = 0
        for at in range(first, end):
            depth += self._is(at, "(") - self._is(at, ")")
            if depth == 0 and self._tokens[at].word == "as":
                return at
        raise Untranslated("a cast without AS is not read by the recount")

    def _pieces(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of the arguments."""
        pieces = []
        depth, begin = 0, first
        for at in range(first, end):
            depth += self._is(at, "(") - self._is(at, ")")
            if depth == 0 and self._is(at, ","):
                pieces.append((begin, at))
                begin = at + 1
        return [*pieces, (begin, end)] if end > first else []

    def _closing(self, opening: int) -> int:
        depth = 0
        for at in range(opening, len(self._tokens)):
            depth += self._is(at, "(") - self._is(at, ")")
            if depth == 0:
                return at
        raise Untranslated("its parentheses do not match")

    def _reads_columns(self, first: int, end: int) -> bool:
        return any(token.kind in {"word", "name"} for token in self._tokens[first:end])

    def _has_words(self, first: int, end: int, *words: str) -> bool:
        return any(token.word in words for token in self._tokens[first:end])

    def _is(self, at: int, symbol: str) -> bool:
        return at < len(self._tokens) and self._tokens[at].text == symbol
