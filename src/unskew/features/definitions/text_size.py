"""The bound of the texts that an expression builds: a short definition must not fill the memory with one record."""

from typing import Any

from unskew.features.definitions.trees import children_of, function_of, kind_of
from unskew.features.errors import DefinitionError

MAX_TIMES = 100
MAX_MORE = 100_000
_LONGEST_NUMBER = 80

# Functions whose result is at most so many times as long as their first input.
_TIMES = {
    **dict.fromkeys(["Extract", "ExtractAll", "Head", "Reverse", "Slice", "Split", "StripChars", "StripCharsEnd"], 1),
    **dict.fromkeys(["StripCharsStart", "StripPrefix", "StripSuffix", "Tail"], 1),
    **dict.fromkeys(["Base64Encode", "EscapeRegex", "HexEncode"], 2),
    **dict.fromkeys(["Lowercase", "Titlecase", "Uppercase"], 3),
    "Normalize": 18,
}
_PADS = frozenset({"PadEnd", "PadStart", "ZFill"})
_JOINS = frozenset({"Coalesce", "FillNull", "MaxHorizontal", "MinHorizontal", "Replace", "ReplaceStrict"})
# The longest text that one directive of a time format becomes.
_LONGEST_DIRECTIVE = 40

Size = tuple[int, int]
"""How many times as long as the texts of its record a text may be, and how many characters longer."""


def check_text_size(tree: Any) -> None:
    """Refuse an expression that may build texts 100 times as long as its record's, or 100,000 characters longer."""
    times, more = _size(tree)
    if times > MAX_TIMES or more > MAX_MORE:
        raise DefinitionError(
            f"it may build a text {times} times as long as its record's and {more} characters more; the bounds are "
            f"{MAX_TIMES} times and {MAX_MORE} characters"
        )


def _size(node: Any) -> Size:
    sizes = [_size(child) for child in children_of(node)]
    match kind_of(node):
        case "Column":
            return 1, 0
        case "Literal":
            return 0, max(len(text) if (text := _text(node)) is not None else 0, _LONGEST_NUMBER)
        case "Cast" | "Alias":
            return sizes[0][0], sizes[0][1] + _LONGEST_NUMBER
        case "BinaryExpr" if node["BinaryExpr"]["op"] == "Plus":
            return _sum(sizes)
        case "Ternary":
            return max(sizes[1][0], sizes[2][0]), max(sizes[1][1], sizes[2][1])
        case "Function":
            name, options = function_of(node["Function"]["function"])
            return _of_function(name, options, node["Function"]["input"], sizes)
        case _:
            return 0, _LONGEST_NUMBER


def _of_function(full_name: str, options: Any, inputs: list[Any], sizes: list[Size]) -> Size:
    space, _, name = full_name.rpartition(".")
    if full_name in _JOINS or full_name == "ListExpr.Get":
        return _sum(sizes)
    if full_name == "TemporalExpr.ToString":
        return 0, len(str(options)) * _LONGEST_DIRECTIVE
    if space not in {"StringExpr", "BinaryExpr"}:
        return 0, _LONGEST_NUMBER
    if name in {"ConcatHorizontal", "Format"}:
        between = len(str(options.get("delimiter", ""))) * len(sizes) + len(str(options.get("format", "")))
        times, more = _sum(sizes)
        return times, more + between
    times, more = sizes[0] if sizes else (0, 0)
    if name in _PADS:
        return times, more + _length(inputs[1])
    if name == "Replace":
        return _replaced(sizes[0], sizes[2], _text(inputs[2]), options)
    factor = _TIMES.get(name)
    return (times * factor, more * factor) if factor else (0, _LONGEST_NUMBER)


def _replaced(size: Size, by: Size, text: str | None, options: Any) -> Size:
    """Return the size after replacing: a match may be empty, and a replacement may quote its match with ``$``."""
    if isinstance(options, dict) and options.get("n") == 1:
        return size[0] + by[0], size[1] + by[1]
    if text is None:
        raise DefinitionError("it replaces all matches by a text from a column, of any length; write it as a literal")
    factor = 1 + len(text) + text.count("$")
    return size[0] * factor, size[1] * factor + len(text)


def _length(node: Any) -> int:
    """Return the length to which a text is padded."""
    literal = node.get("Literal") if isinstance(node, dict) else None
    for scalar in literal.values() if isinstance(literal, dict) else ():
        for value in scalar.values() if isinstance(scalar, dict) else ():
            if isinstance(value, int):
                return value
    raise DefinitionError("it pads a text to a length from a column, which may be any; write the length as a number")


def _text(node: Any) -> str | None:
    try:
        text = node["Literal"]["Scalar"]["String"]
    except (KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _sum(sizes: list[Size]) -> Size:
    return sum(times for times, _ in sizes), sum(more for _, more in sizes)
