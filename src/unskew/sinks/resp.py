"""Current rows as bytes of the Redis protocol, built column by column.

A row becomes

    DEL key                                        where the entity has no tile left, else
    HSET key feature value ... _at us [_until us]  where no field is null, or
    MULTI / HSET ... / HDEL key null fields / EXEC where one is, followed by
    PEXPIREAT key ms                               where the time of collection is still to come,

so a reader sees the fields of a row change together. The expiry stands outside the transaction: it only collects
garbage, and two commands fewer per row are worth a third of the server's time. Values: integers in decimal, floats as
the shortest text that reads back to the same float, booleans as ``1`` and ``0``. A null field is absent.
"""

from dataclasses import dataclass

import polars as pl

from unskew.features.plan import ViewPlan
from unskew.sinks.keyspace import value_key

COLLECT_AFTER_US = 7 * 24 * 3600 * 1_000_000

_KEY = pl.col("_key")
_EXPIRES_MS = pl.col("_expires_ms")
_N_MISSING = pl.col("_n_missing")


@dataclass(frozen=True)
class Commands:
    """Bytes ready to send, and how many replies the server gives to them."""

    data: bytes
    n_replies: int


class RowEncoder:
    """Makes the commands that bring the keys of one view to given current rows."""

    def __init__(self, view: ViewPlan, prefix: str) -> None:
        self._fields = (*(feature.name for feature in view.features), "_at", "_until")
        self._before_key, self._after_key = value_key(prefix, view.id, "\0").split("\0")

    def encode(self, rows: pl.DataFrame, now_us: int) -> Commands:
        """Commands for ``rows`` (``Updates.current``, each key at most once), in their order; none for no rows.

        ``now_us``: the present. A row whose time of collection is past gets no expiry, which would delete it at once.
        """
        missing = [name for name in self._fields if rows[name].null_count()]
        prepared = rows.select(
            _argument(pl.concat_str(pl.lit(self._before_key), "key", pl.lit(self._after_key))).alias("_key"),
            *(_text(rows.schema[name], name) for name in self._fields),
            "_gone",
            _collected_at_ms(now_us).alias("_expires_ms"),
            pl.sum_horizontal(
                pl.lit(0, pl.UInt32), *(pl.col(name).is_null().cast(pl.UInt32) for name in missing)
            ).alias("_n_missing"),
        )
        wanted, n_replies = self._set(), pl.lit(1)
        if missing:
            has_missing = _N_MISSING > 0
            both = pl.concat_str(
                pl.lit("*1\r\n$5\r\nMULTI\r\n"), wanted, _unset(missing), pl.lit("*1\r\n$4\r\nEXEC\r\n")
            )
            wanted = pl.when(has_missing).then(both).otherwise(wanted)
            n_replies = pl.when(has_missing).then(4).otherwise(1)
        if prepared["_expires_ms"].null_count() < prepared.height:
            wanted = pl.concat_str(wanted, _expire(), ignore_nulls=True)
            n_replies += _EXPIRES_MS.is_not_null().cast(pl.Int32)
        delete = pl.concat_str(pl.lit("*2\r\n$3\r\nDEL\r\n"), _KEY)
        text, total = prepared.select(
            pl.when("_gone").then(delete).otherwise(wanted).str.join(""),
            pl.when("_gone").then(1).otherwise(n_replies).sum().alias("n_replies"),
        ).row(0)
        return Commands(text.encode(), total)

    def _set(self) -> pl.Expr:
        n_arguments = 2 + 2 * (len(self._fields) - _N_MISSING)
        values = [pl.concat_str(pl.lit(_argument_text(name)), _argument(pl.col(name))) for name in self._fields]
        return pl.concat_str(_array(n_arguments), pl.lit(_argument_text("HSET")), _KEY, *values, ignore_nulls=True)


def _unset(names: list[str]) -> pl.Expr:
    fields = [pl.when(pl.col(name).is_null()).then(pl.lit(_argument_text(name))) for name in names]
    return pl.concat_str(_array(2 + _N_MISSING), pl.lit(_argument_text("HDEL")), _KEY, *fields, ignore_nulls=True)


def _expire() -> pl.Expr:
    """Null where the row has no time of collection."""
    return pl.concat_str(
        _array(pl.lit(3)), pl.lit(_argument_text("PEXPIREAT")), _KEY, _argument(_EXPIRES_MS.cast(pl.String))
    )


def _collected_at_ms(now_us: int) -> pl.Expr:
    collected_us = pl.col("_empty_at") + COLLECT_AFTER_US
    return pl.when(collected_us > now_us).then((collected_us + 999) // 1000)


def _text(kind: pl.DataType, name: str) -> pl.Expr:
    column = pl.col(name)
    # Polars writes the shortest text that reads back to the same float.
    return (column.cast(pl.Int8) if kind == pl.Boolean else column).cast(pl.String)


def _array(length: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit("*"), length.cast(pl.String), pl.lit("\r\n"))


def _argument(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit("$"), text.str.len_bytes().cast(pl.String), pl.lit("\r\n"), text, pl.lit("\r\n"))


def _argument_text(text: str) -> str:
    return f"${len(text.encode())}\r\n{text}\r\n"
