"""What a change of definitions does to values: the figures are those of DuckDB over the raw events, old and new."""

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from tests.support.written import write_archive
from unskew import (
    Calendar,
    Derived,
    Entity,
    Feature,
    FeatureView,
    Lifetime,
    Sessions,
    Sliding,
    Stream,
    Tumbling,
    agg,
)
from unskew.features.definitions.compile import compile
from unskew.features.keys import shard_of
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse
from unskew.features.view import View
from unskew.pipelines.history import archive as archive_module
from unskew.pipelines.history.diff import ViewDiff, diff
from unskew.pipelines.history.impact import impact

T0 = 1_490_400_000_000_000
MINUTE = 60_000_000
EXTENT, HOP = 20 * MINUTE, MINUTE
N_EVENTS = 900
SCHEMA = {
    "type": "record",
    "name": "purchase",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "amount", "type": "double"},
    ],
}


def defined(least: float, *more: Feature, name: str = "spend", **of_stream: Any) -> Plan:
    window = Sliding("20min", "1min")
    stream = Stream("purchases", "purchases", schema=SCHEMA, event_time="at", **of_stream)
    features = [
        # Every event changes it, so every instant at which something may change has a row.
        Feature("seen", agg.last_time(), window),
        Feature("n", agg.count(), window, filter=f"amount > {least}"),
        Feature("spent", agg.sum("amount"), window, filter=f"amount > {least}"),
        Feature("mean", agg.mean("amount"), window, filter=f"amount > {least}"),
        *more,
    ]
    return compile(FeatureView(name, Entity("user", key="user"), stream, features))


BIGGEST = Feature("biggest", agg.max("amount"), Sliding("20min", "1min"), filter="amount > 4")
OLD, NEW = defined(2), defined(4, BIGGEST)


def recorded(plan: Plan) -> list[View]:
    """The views as a reader that has nothing but the registry knows them."""
    return list(parse(json.dumps(describe(plan))).views.values())


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    draw = random.Random(7)
    user = [f"u{draw.randrange(60)}" for _ in range(N_EVENTS)]
    at = sorted(draw.sample(range(T0, T0 + 90 * MINUTE), N_EVENTS))
    amount = [draw.randrange(28) / 4 for _ in range(N_EVENTS)]
    found = pl.DataFrame({"user": user, "at": pl.Series(at).cast(pl.Datetime("us", "UTC")), "amount": amount})
    found = found.with_columns(
        _partition=pl.Series(shard_of(found["user"], 2)).cast(pl.Int32), _arrival=pl.col("at"), _event_time=pl.col("at")
    )
    return found.with_columns(_offset=pl.int_range(pl.len()).over("_partition").cast(pl.Int64))


@pytest.fixture(scope="module")
def archive(events: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    write_archive(root, OLD.views["spend"], events, T0 + 90 * MINUTE)
    return root


UPTO = T0 + 90 * MINUTE - 1


def recount(events: pl.DataFrame, upto: int) -> dict[str, Any]:
    """Old and new values at every instant at which a value of either may change, by DuckDB."""
    with duckdb.connect() as db:
        db.register(
            "raw", events.select("amount", who="user", came=pl.col("at").to_physical()).filter(pl.col("came") <= upto)
        )
        db.execute(f"""
            CREATE TABLE steps AS
            WITH all_instants AS (
                SELECT who, came AS t FROM raw
                UNION SELECT who, came // {HOP} * {HOP} + {EXTENT + HOP} FROM raw
                UNION SELECT who, {upto} FROM raw
            ), instants AS (FROM all_instants WHERE t <= {upto})
            SELECT who, t, max(came) AS seen,
                count(*) FILTER (amount > 2) AS old_n, count(*) FILTER (amount > 4) AS new_n,
                coalesce(sum(amount) FILTER (amount > 2), 0) AS old_spent,
                coalesce(sum(amount) FILTER (amount > 4), 0) AS new_spent,
                sum(amount) FILTER (amount > 2) / old_n AS old_mean, sum(amount) FILTER (amount > 4) / new_n AS new_mean,
                max(amount) FILTER (amount > 4) AS biggest
            FROM instants JOIN raw USING (who) WHERE came <= t AND came >= t // {HOP} * {HOP} - {EXTENT}
            GROUP BY who, t
            UNION ALL
            SELECT who, t, NULL, 0, 0, 0, 0, NULL, NULL, NULL FROM instants
            WHERE NOT EXISTS (FROM raw WHERE raw.who = instants.who AND came <= t AND came >= t // {HOP} * {HOP} - {EXTENT})
        """)
        db.execute("""
            CREATE TABLE begun AS SELECT * FROM (
                SELECT *, (seen, old_n, old_spent, old_mean)
                        IS DISTINCT FROM lag((seen, old_n, old_spent, old_mean)) OVER w AS is_old,
                    (seen, new_n, new_spent, new_mean, biggest)
                        IS DISTINCT FROM lag((seen, new_n, new_spent, new_mean, biggest)) OVER w AS is_new,
                    is_old OR is_new AS is_step
                FROM steps WINDOW w AS (PARTITION BY who ORDER BY t)
            ) WHERE is_step
        """)
        found: dict[str, Any] = {}
        for name in ("n", "spent", "mean"):
            unlike = f"old_{name} IS DISTINCT FROM new_{name}"
            change = f"abs(new_{name} - old_{name})"
            found[name] = db.execute(f"""
                SELECT count(*) FILTER ({unlike}), count(DISTINCT who) FILTER ({unlike}),
                    count(*) FILTER (old_{name} IS NULL AND {unlike}), count(*) FILTER (new_{name} IS NULL AND {unlike}),
                    max({change})
                FROM begun
            """).fetchone()
            found[f"end {name}"] = db.execute(f"""
                SELECT count(*), count(*) FILTER (new_{name} IS NULL), avg({change}), quantile_disc({change}, 0.5),
                    max({change})
                FROM steps WHERE t = {upto} AND {unlike}
            """).fetchone()
        found["counts"] = db.execute("""
            SELECT count(*), count(DISTINCT who), count(DISTINCT who) FILTER (old_n <> new_n) FROM begun
        """).fetchone()
        found["rows"] = db.execute("""
            SELECT count(*) FILTER (is_old), count(*) FILTER (is_new) FROM begun
        """).fetchone()
        found["held"] = db.execute(f"SELECT count(*) FROM steps WHERE t = {upto} AND seen IS NOT NULL").fetchone()
        found["biggest"] = db.execute(f"""
            SELECT count(*), count(*) - count(biggest), min(biggest), avg(biggest), max(biggest)
            FROM steps WHERE t = {upto}
        """).fetchone()
        return found


def assert_figures(one: ViewDiff, wanted: dict[str, Any]) -> None:
    assert (one.counts.instants, one.counts.entities, one.counts.changed) == wanted["counts"]
    features = {feature.name: feature for feature in one.features}
    assert (features["seen"].differing, features["seen"].end.differing) == (0, 0)
    for name in ("n", "spent", "mean"):
        its = features[name]
        assert (its.differing, its.entities, its.from_null, its.to_null) == wanted[name][:4]
        assert its.absolute.most == pytest.approx(wanted[name][4], rel=1e-9)
        differing, to_null, *figures = wanted[f"end {name}"]
        assert (its.end.differing, its.end.to_null) == (differing, to_null)
        assert [its.end.changes.mean, its.end.changes.median, its.end.changes.most] == pytest.approx(figures, rel=1e-9)
    old, new = one.costs
    assert (old.rows, new.rows) == wanted["rows"]
    assert old.entities == new.entities == wanted["held"][0]
    assert all(100 < cost.redis_bytes / cost.entities < 250 for cost in (old, new))
    (biggest,) = one.populations
    numbers = biggest.numbers
    assert (biggest.name, biggest.entities, biggest.nulls) == ("biggest", *wanted["biggest"][:2])
    assert [numbers.least, numbers.mean, numbers.most] == pytest.approx(wanted["biggest"][2:], rel=1e-9)


def test_figures_of_a_changed_filter_equal_those_of_duckdb(archive: Path, events: pl.DataFrame) -> None:
    wanted = recount(events, UPTO)
    assert min(wanted["n"][:2]) > 20
    assert wanted["mean"][3] > 0 < wanted["end mean"][0]

    (one,) = impact(recorded(OLD), NEW, archive)

    assert (one.old, one.new, one.added, one.why, one.cut_short) == ("spend@1", "spend@1", ("biggest",), "", False)
    assert one.upto_us == UPTO
    assert_figures(one, wanted)
    days = (UPTO - T0) / 86400e6
    assert one.rows_a_day == pytest.approx([rows / days for rows in wanted["rows"]], rel=1e-3)


def test_what_the_record_cannot_give_is_computed_from_the_old_definitions(archive: Path, events: pl.DataFrame) -> None:
    # Names of fields are no part of what is published of a view.
    new = defined(4, BIGGEST, max_age="30d")

    (without,) = impact(recorded(OLD), new, archive)
    (one,) = impact(recorded(OLD), new, archive, against=OLD)
    (other,) = impact(recorded(OLD), new, archive, against=defined(3))

    assert without.why == other.why
    assert "give the definitions that it was made from" in without.why
    assert (without.upto_us, without.features, without.is_identical) == (None, (), False)
    assert_figures(one, recount(events, one.upto_us))


STREAM = Stream("purchases", "purchases", schema=SCHEMA, event_time="at")
USER = Entity("user", key="user")
LONG = Sliding("20min", "1min")


def one_view(*features: Feature | Derived, over: Stream | Sessions = STREAM, **changes: Any) -> Plan:
    return compile(FeatureView("spend", USER, over, features, **changes))


def sessions(gap: str, where: str) -> Plan:
    over = Sessions("visits", STREAM, gap=gap, values={"most": agg.max("amount")}, where=where)
    return one_view(Feature("longest", agg.max("length_s"), LONG), Feature("most", agg.max("most"), LONG), over=over)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (sessions("3min", "amount > 1"), sessions("2min", "amount > 2")),
        (one_view(Feature("f", agg.sum("amount"), LONG)), one_view(Feature("f", agg.sum("amount"), Lifetime()))),
        (
            one_view(Feature("f", agg.top_k("amount", 3), Tumbling("30min"))),
            one_view(Feature("f", agg.top_k("amount", 2), Calendar("day", "Asia/Kathmandu")), where="amount > 2"),
        ),
        (
            one_view(Feature("n", agg.count(), LONG), Derived("half", "n / 2")),
            one_view(Feature("n", agg.count(), LONG), Derived("half", "n / 3"), version=2),
        ),
        (one_view(Feature("f", agg.last("amount"), LONG)), one_view(Feature("f", agg.last("amount"), LONG, default=7.0))),
        (
            one_view(Feature("f", agg.mean("amount"), LONG), Feature("n", agg.count(), LONG)),
            one_view(Feature("f", agg.top_k('"user"', 1), LONG), Feature("n", agg.count(), LONG)),
        ),
        (
            one_view(Feature("f", agg.count(by='"user"'), LONG, filter=pl.col("amount").is_in([1.0, 2.5])), Feature("g", agg.decayed_sum("amount", half_life="5min"), LONG)),
            one_view(Feature("f", agg.count(by='"user"'), LONG), Feature("g", agg.decayed_sum("amount", half_life="2min"), LONG)),
        ),
    ],
    ids=["sessions", "window", "lists", "derived", "default", "type", "map and decay"],
)  # fmt: skip
def test_a_record_gives_the_figures_that_the_old_definitions_give(old: Plan, new: Plan, archive: Path) -> None:
    (one,) = impact(recorded(old), new, archive)
    (wanted,) = diff(list(old.views.values()), list(new.views.values()), archive)

    assert not one.why
    assert dataclasses.asdict(one) == dataclasses.asdict(wanted)
    assert one.counts.differing or one.populations


def test_each_view_says_what_happens_to_it_and_nothing_is_refused(archive: Path, tmp_path: Path) -> None:
    def found(old: Plan, new: Plan, root: Path = archive, **how: Any) -> ViewDiff:
        return {one.new: one for one in impact(recorded(old), new, root, **how)}.get("spend@1", ViewDiff(old=None, new=None))  # fmt: skip

    same = found(OLD, OLD, tmp_path / "nowhere")
    assert (same.unchanged, same.is_identical) == (True, True)

    added, gone = impact(recorded(defined(2, name="other")), NEW, archive)
    assert (gone.old, gone.new, gone.removed) == ("other@1", None, ("seen", "n", "spent", "mean"))
    assert (added.old, added.new, [one.name for one in added.populations]) == (
        None, "spend@1", ["seen", "n", "spent", "mean", "biggest"],
    )  # fmt: skip
    assert added.counts.entities == added.counts.only_new == 60
    assert all(one.entities == 60 for one in added.populations)
    assert [value for _, value in added.populations[0].examples] != [None] * 3

    renamed = found(OLD, one_view(Feature("other", agg.count(), LONG)))
    assert "no feature is on both sides" in renamed.why
    assert [(one.name, one.entities) for one in renamed.populations] == [("other", 60)]
    assert renamed.costs is not None
    empty = found(OLD, NEW, tmp_path)
    assert "holds no events" in empty.why
    assert "holds no events" in found(defined(2, name="other"), NEW, tmp_path).why


def test_a_time_limit_ends_the_comparison_at_an_instant_that_it_names(
    archive: Path, events: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "BATCH_ROWS", 50)

    def within(n_pieces: int) -> ViewDiff:
        (one,) = impact(recorded(OLD), NEW, archive, limit_s=n_pieces - 0.5, now_s=itertools.count().__next__)
        return one

    (whole,) = impact(recorded(OLD), NEW, archive, limit_s=None)
    some, more, nothing = within(8), within(14), within(1)

    assert not whole.cut_short
    for one in (some, more):
        assert one.cut_short
        assert_figures(one, recount(events, one.upto_us))
    assert T0 < some.upto_us < more.upto_us < whole.upto_us
    assert (nothing.cut_short, nothing.upto_us) == (True, None)
    assert "the time limit passed before anything was compared" in nothing.why
