"""Canonical keys against ``urllib``."""

from urllib.parse import quote

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unskew.features.hashing import shard_of_key
from unskew.features.keys import decode_keys, encode_keys, shard_of
from unskew.features.view import ViewEntity

PAIR = ViewEntity(name="pair", keys=("number", "text"), types=("int64", "string"))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.mark.parametrize("n", [1, 1_000, 1_001, 5_000])
@pytest.mark.parametrize("odd", [None, "a|b", "50%", "é", ""])
def test_one_key_that_must_be_encoded_is_found_among_few_and_many(n: int, odd: str | None) -> None:
    entity = ViewEntity(name="one", keys=("text",), types=("string",))
    texts = [*(f"user-{number}" for number in range(n - 1)), odd]

    keys = encode_keys(pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}), entity)

    assert keys.to_list() == [None if text is None else quote(text, safe="") for text in texts]
    assert decode_keys(keys, entity)["text"].to_list() == texts


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), TEXTS), min_size=1, max_size=8))
def test_keys_are_percent_encoded_parts_and_come_back_typed(rows: list[tuple[int, str]]) -> None:
    frame = pl.DataFrame(rows, schema={"number": pl.Int64, "text": pl.String}, orient="row")

    keys = encode_keys(frame, PAIR)

    assert keys.to_list() == [f"{number}|{quote(text, safe='')}" for number, text in rows]
    assert decode_keys(keys, PAIR).equals(frame)


def test_a_single_text_key_is_encoded_too() -> None:
    entity = ViewEntity(name="mail", keys=("mail",), types=("string",))
    frame = pl.DataFrame({"mail": ["a@b.c", "100%", "%41", "x|y", "plain", ""]})

    keys = encode_keys(frame, entity)

    assert keys.to_list() == ["a%40b.c", "100%25", "%2541", "x%7Cy", "plain", ""]
    assert decode_keys(keys, entity).equals(frame)


def test_a_null_part_makes_a_null_key() -> None:
    frame = pl.DataFrame({"number": [1, None], "text": [None, "a"]})

    assert encode_keys(frame, PAIR).to_list() == [None, None]


def test_hash_shards_are_fixed_by_the_key_alone() -> None:
    keys = pl.Series(["", "a", "u-42", "household|7"])

    assert shard_of(keys, 1000).tolist() == GOLDEN_SHARDS
    assert shard_of(keys[2:], 1000).tolist() == GOLDEN_SHARDS[2:]
    assert [shard_of_key(key, 1000) for key in keys] == GOLDEN_SHARDS


@given(st.lists(TEXTS, max_size=4), st.integers(1, 2**20))
def test_a_key_alone_has_the_shard_that_it_has_in_a_column(texts: list[str], n_shards: int) -> None:
    assert [shard_of_key(text, n_shards) for text in texts] == shard_of(
        pl.Series(texts, dtype=pl.String), n_shards
    ).tolist()


def _fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value ^= value >> 33
        value = value * factor % 2**64
    return value ^ (value >> 33)


GOLDEN_SHARDS = [_fnv(text) % 1000 for text in ("", "a", "u-42", "household|7")]
