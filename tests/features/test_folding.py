import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from tests.support.terminal import WIDTHS, broken, drawn, piped, wider
from unskew.features.folding import Rows, number, prose, wrapped
from unskew.features.printing import printable

SEEN = "2026-01-31T00:00:00.000005Z"
# Wide, combining, without width, obeyed by terminals, and plain.
words = st.text("ab1-é日🎉\u0301\u200b\t\n\x1b", min_size=1, max_size=30)
sentences = st.lists(words, max_size=8).map(" ".join)


def test_columns_that_do_not_fit_go_on_below_with_the_keys_again():
    table = Rows("view", number("events"), number("rows"), "instant", heading=["what was compared"])
    for name in ("user_purchases@1", "日本語🎉"):
        table.add(name, "1,234,567", "12", SEEN)

    lines = [line.rstrip() for line in drawn(table, 50).splitlines()]

    assert lines == [
        "what was compared",
        "view                 events  rows",
        "─────────────────────────────────",
        "user_purchases@1  1,234,567    12",
        "日本語🎉          1,234,567    12",
        "",
        "view              instant",
        "─────────────────────────────────────────────",
        f"user_purchases@1  {SEEN}",
        f"日本語🎉          {SEEN}",
    ]
    assert piped(table) == [
        ["view", "events", "rows", "instant"],
        ["user_purchases@1", "1,234,567", "12", SEEN],
        ["日本語🎉", "1,234,567", "12", SEEN],
    ]


def test_a_row_that_does_not_fit_beside_its_key_is_a_record():
    table = Rows("name", "value", prose("about"))
    table.add("a" * 20, "b" * 30, "it is a sentence of many words")

    assert drawn(table, 32).splitlines() == [
        "name: " + "a" * 20,
        "value:",
        "  " + "b" * 30,
        "about:",
        "  it is a sentence of many words",
    ]


def test_a_few_rows_of_many_columns_are_records_and_many_rows_are_blocks():
    few, many = (Rows("key", *(f"column_of_a_long_name_{n}" for n in range(30))) for _ in range(2))
    few.add("k", *map(str, range(30)))
    for _ in range(100):
        many.add("k", *map(str, range(30)))

    assert len(drawn(few, 80).splitlines()) == 31
    assert len(drawn(many, 80).splitlines()) == 13 * 103 - 1


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=40)
@given(
    st.lists(st.tuples(words, words, sentences, words), min_size=1, max_size=4),
    st.tuples(words, words, sentences, words),
)
def test_no_word_is_ever_broken_or_cut_and_no_line_wider_than_the_terminal(width, rows, names):
    table = Rows(names[0], number(names[1]), prose(names[2]), names[3])
    for row in rows:
        table.add(*row)

    shown = drawn(table, width)

    firm = [cell for row in rows for cell in (row[0], row[1], row[3])]
    said = [word for row in rows for word in row[2].split(" ")]
    expected = list(map(printable, [*firm, *said]))
    assert broken(shown, expected) == []
    named = [word for name in names for word in f"{printable(name)}:".split(" ")]
    too_wide = [word for word in [*expected, *named] if wider(word, width)]
    assert not [line for line in wider(shown, width) if not any(word in line for word in too_wide)]
    lines = piped(table)
    assert [len(line) for line in lines] == [4] * (len(rows) + 1)
    assert lines[1:] == [list(map(printable, row)) for row in rows]


@given(sentences, st.integers(1, 60))
def test_wrapped_lines_hold_all_words_in_order(text, width):
    lines = [line.plain for line in wrapped(Text(printable(text)), width)]

    assert " ".join(lines).split() == printable(text).split()
    assert all(" " not in line.strip() for line in lines if wider(line, width))


def test_a_tab_or_a_newline_of_others_makes_no_cell_and_no_row():
    table = Rows("a", "b")
    table.add("x\ty", "z\n\x1b[31m")

    assert piped(table)[1:] == [["x\\ty", "z\\n\\x1b[31m"]]
    assert "\x1b" not in drawn(table, 80)


def test_a_table_without_rows_is_its_heading():
    assert drawn(Rows("a", "b", heading=["nothing is there"]), 80) == "nothing is there\n"
