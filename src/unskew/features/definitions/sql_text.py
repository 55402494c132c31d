"""SQL text of definitions: read as words here, before an engine may read it.

Engines open files and send requests while they read a query, even one that they then refuse. So every word and every
function of a text must be on a list; what is on none of them (``SELECT``, ``read_csv``) is refused. The text is bounded
too: engines read it recursively, and a very long one would end the process.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from unskew.features.errors import DefinitionError
from unskew.features.nearest import nearest

MAX_CHARACTERS = 200_000
MAX_OPERATORS = 2_000
MAX_NESTING = 40
_MAX_DIGITS = 100

_SPACED = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`)
      | (?P<gap>(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)

_TOKENS = re.compile(
    r"""(?P<text>'(?:[^']|'')*')
      | (?P<name>"(?:[^"]|"")*"|`[^`"]*`)
      | (?P<gap>\s+)
      | (?P<reference>[^\W\d]\w*(?:@[0-9]+)?:[^\W\d]\w*)
      | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<word>[^\W\d]\w*)
      | (?P<symbol><=>|!~\*|!~~\*|\|\||<>|!=|<=|>=|==|::|//|!~~|~~\*|!~|~\*|~~|\^@|[-+*/%(),<>=&|~])
      | (?P<strange>.)""",
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions that Polars' SQL has for one record.
FUNCTIONS = _words(
    "abs acos acosd asin asind atan atan2 atan2d atand bit_and bit_count bit_length bit_not bit_or bit_xor cast cbrt ceil "
    "ceiling char_length character_length coalesce concat concat_ws cos cosd cot cotd date date_part degrees div "
    "ends_with exp extract floor greatest if ifnull initcap least left length ln log log10 log1p log2 lower lpad ltrim mod "
    "normalize nullif octet_length pi position pow power radians regexp_like replace regexp_replace reverse right round "
    "rpad rtrim sign sin sind split_part sqrt starts_with strftime string_to_array strpos strptime substr substring tan "
    "tand time timestamp trim trunc truncate try_cast upper day dayofmonth dayofweek dayofyear hour microsecond "
    "millisecond minute month nanosecond quarter second week weekofyear year"
)
# Functions of other rows, which are refused as such later.
_OF_ROWS = _words(
    "array_agg avg bool_and bool_or corr count cume_dist dense_rank first first_value lag last last_value lead max mean "
    "median min ntile percent_rank quantile_cont quantile_disc rank row_number stddev stddev_samp stdev sum unnest "
    "var var_samp variance"
)
_OPERATORS = _words("and or not in is like ilike rlike regexp between distinct xor when case escape")
_TYPES = _words(
    "bigint bool boolean char date datetime dec decimal double float float4 float8 int int1 int2 int4 int8 integer "
    "numeric precision real signed smallint string text time timestamp timestamptz tinyint ubigint uint uint1 uint2 uint4 "
    "uint8 uinteger unsigned usmallint utinyint varchar"
)
_BEFORE_PARENTHESIS = (
    _OPERATORS
    | _TYPES
    | _words("all any as asc both by desc else for from interval leading order over partition then trailing using")
)
# Words that stand between operands, or before one.
_KEYWORDS = _BEFORE_PARENTHESIS | _words("at end false null true unknown with without zone")
_UNITS = _words("day days hour hours minute minutes month months second seconds week weeks year years")
# Words of queries. Others, which begin statements, cannot stand beside an operand.
_QUERIES = _words(
    "except exists having intersect into join lateral pivot qualify select summarize table union unpivot where"
)
_CLOCKS = _words("current_date current_time current_timestamp localtime localtimestamp")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an SQL text, as written; ``word``: in lower case if it is a word, otherwise empty."""

    kind: str
    text: str

    @property
    def word(self) -> str:
        return self.text.lower() if self.kind == "word" else ""


def canonical_sql(text: str) -> str:
    """Return SQL text without comments, and with single spaces for all white space outside quotes."""
    parts = (" " if token["gap"] else token[0] for token in _SPACED.finditer(text))
    return "".join(parts).strip()


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of a canonical text, without spaces."""
    return [Token(str(found.lastgroup), found[0]) for found in _TOKENS.finditer(text) if found.lastgroup != "gap"]


def quoted_references(text: str) -> str:
    """Return a canonical text with each ``view:feature`` and ``view@2:feature`` as the quoted name of a column."""
    return "".join(f'"{found[0]}"' if found.lastgroup == "reference" else found[0] for found in _TOKENS.finditer(text))


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function in a text: the place of all of it, and the texts of its arguments."""

    start: int
    stop: int
    function: str
    arguments: tuple[str, ...]


def calls_of(text: str, functions: frozenset[str]) -> list[Call]:
    """Return the calls of these functions in a canonical text, without those inside their arguments.

    Raises ``DefinitionError`` for one that has no end.
    """
    found: list[Call] = []
    tokens = [each for each in _TOKENS.finditer(text) if each.lastgroup != "gap"]
    begun: re.Match[str] | None = None
    depth, cuts = 0, list[int]()
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if begun is None:
            if after is not None and after[0] == "(" and token.lastgroup == "word" and token[0].lower() in functions:
                begun, depth, cuts = token, 0, [after.start()]
            continue
        if token.lastgroup == "symbol":
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            if depth == 0 or (depth == 1 and token[0] == ","):
                cuts.append(token.start())
        if depth == 0:
            found.append(_call(text, begun, cuts))
            begun = None
    if begun is not None:
        raise DefinitionError(f"the brackets of {begun[0]}(...) are never closed; close them")
    return found


def _call(text: str, name: re.Match[str], cuts: Sequence[int]) -> Call:
    arguments = tuple(text[one + 1 : other].strip() for one, other in pairwise(cuts))
    return Call(name.start(), cuts[-1] + 1, name[0].lower(), () if arguments == ("",) else arguments)


def check_sql(text: str, functions: frozenset[str] = frozenset()) -> None:
    """Refuse a canonical text that is more than an expression over one record, or longer than engines can read.

    ``functions``: those that it may call besides Polars' own. Raises ``DefinitionError`` with half a sentence.
    """
    if not text:
        raise DefinitionError("the SQL text is empty; write an expression over the stream's columns")
    if len(text) > MAX_CHARACTERS:
        raise DefinitionError(f"the SQL text has {len(text)} characters, more than {MAX_CHARACTERS}; shorten it")
    tokens = tokens_of(text)
    _check_symbols(text, tokens)
    _check_size(tokens)
    before = ""
    # The word before each parenthesis that is open.
    inside = [""]
    for token, after in pairwise([*tokens, Token("end", "")]):
        if token.text == "(":
            inside.append(before)
        elif token.text == ")":
            inside = inside[:-1] or [""]
        elif after.text == "(" and token.kind in {"name", "text", "number"}:
            raise DefinitionError(f"{token.text[:40]} is called as a function; write a function's name without quotes")
        elif after.text == "(" and token.word not in {"", *_BEFORE_PARENTHESIS}:
            _check_call(token.word, functions)
        else:
            _check_word(token.word, before, inside[-1])
        if _is_operand(token) and _is_operand(after) and not _belong(token, after):
            raise DefinitionError(
                f"{token.text[:40]} and {after.text[:40]} follow each other without an operator; correct the text, and put "
                "a column whose name is an SQL keyword in double quotes"
            )
        before = token.word


def _check_word(word: str, before: str, inside: str) -> None:
    if word in _CLOCKS:
        raise _reads_a_clock(word)
    belongs = before == "distinct" or inside in {"extract", "substring", "trim"}
    if word in _QUERIES or (word == "from" and not belongs):
        raise _not_an_expression(word)


def _check_call(word: str, functions: frozenset[str]) -> None:
    if word in _CLOCKS or word == "now":
        raise _reads_a_clock("now()" if word == "now" else word)
    if word in _QUERIES:
        raise _not_an_expression(word)
    known = FUNCTIONS | functions
    if word not in known | _OF_ROWS:
        raise DefinitionError(
            f"{word} is not a function of SQL text here; {nearest(word, sorted(known), 'functions are')}"
        )


def _reads_a_clock(what: str) -> DefinitionError:
    return DefinitionError(
        f"{what} reads a clock; a value may depend only on its record, so use a column of the stream"
    )


def _not_an_expression(word: str) -> DefinitionError:
    return DefinitionError(
        f"{word.upper()} belongs to a query, which is not known to be row by row; write an expression over the columns of "
        f'one record, and put a column of that name in double quotes: "{word}"'
    )


def _check_symbols(text: str, tokens: list[Token]) -> None:
    if (
        "/*" in (bare := re.sub(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`""", "''", text))
        or "*/" in bare
        or "--" in bare
    ):
        raise DefinitionError("it has a comment that begins or ends inside another, or never ends; leave comments out")
    if "->" in bare:
        raise DefinitionError("-> is not an operator here; write a space before the sign of a number")
    for token in tokens:
        if token.kind == "reference":
            raise DefinitionError(
                f"{token.text[:80]} names a feature of a view, which only on-demand features read; name a column"
            )
        if token.kind == "strange":
            what = (
                "an unfinished quote"
                if token.text in "'\"`"
                else "a number that is not written as one"
                if token.text.isdigit()
                else f"the character {token.text!r}, which no expression contains outside quotes"
            )
            raise DefinitionError(f"the SQL text has {what}; correct it")
        if token.kind == "number":
            _check_number(token.text)


def _check_number(text: str) -> None:
    if len(text) > _MAX_DIGITS:
        raise DefinitionError(f"a number has {len(text)} digits, more than {_MAX_DIGITS}; shorten it")
    if text.isdigit():
        if int(text) > 2**63:
            raise DefinitionError(f"the number {text[:40]} is beyond 64 bits; write it as a float, for example 1e20")
        return
    if math.isinf(float(text)):
        raise DefinitionError(f"the number {text} is beyond what a float holds, which is about 1.8e308; correct it")
    if float(text) == 0 and re.search("[1-9]", text.lower().partition("e")[0]):
        raise DefinitionError(f"the number {text} is so near zero that a float reads it as 0; write 0, or correct it")


def _check_size(tokens: list[Token]) -> None:
    n_operators = sum(
        token.word in _OPERATORS or (token.kind == "symbol" and token.text not in {"(", ")", ","}) for token in tokens
    )
    if n_operators > MAX_OPERATORS:
        raise DefinitionError(
            f"it has {n_operators} operators, more than {MAX_OPERATORS}; write a list of values as IN (...), or split it"
        )
    depth = deepest = 0
    for token in tokens:
        depth += (
            {"(": 1, ")": -1}.get(token.text, 0)
            if token.kind == "symbol"
            else {"case": 1, "end": -1}.get(token.word, 0)
        )
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise DefinitionError(f"it is nested {deepest} levels deep, more than {MAX_NESTING}; split it")


def _is_operand(token: Token) -> bool:
    return token.kind in {"text", "name", "number"} or (token.kind == "word" and token.word not in _KEYWORDS)


def _belong(token: Token, after: Token) -> bool:
    """Return true if two operands may stand side by side: a hexadecimal literal, or the unit of an interval."""
    if token.word == "x" and after.kind == "text":
        return re.fullmatch(r"'(?:[0-9a-fA-F]{2})*'", after.text) is not None
    return token.kind in {"text", "number"} and after.word in _UNITS
