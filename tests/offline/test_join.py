import datetime as dt
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, SECOND, Wanted, WantedOfOthers, events, republished, sliding, tumbling, view
from tests.support.typed import DEFAULTS, EMPTY, FULL, NAMES, ORDERS
from tests.support.updates import updates
from tests.support.written import write_log
from unskew.features.errors import LayoutError, RequestError
from unskew.features.frames import read_table
from unskew.features.plan import ViewPlan
from unskew.features.updates import NothingToCome
from unskew.offline import join
from unskew.offline.join import historical_features, joined
from unskew.offline.log_reader import ViewLog
from unskew.sinks.tables.checksum import read_json
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.layout import published_files, view_root
from unskew.sinks.tables.parquet import record_shards

T0 = 1_500_000_000 * SECOND  # a multiple of 20 s
WINDOW = sliding(20 * SECOND, 5 * SECOND)
VIEW = view(
    Wanted("count", "count", WINDOW),
    Wanted("sum", "sum", WINDOW, "x"),
    Wanted("mean", "mean", WINDOW, "x"),
    Wanted("last", "last", WINDOW, "n", "int64", default=-1),
    name="clicks",
)
#   s   0    5    10   15   20   25   30   35
#   u   |-e--|--f-|----|----|--^-|--^-|----|      e at 2 s leaves at 25 s, f at 7 s leaves at 30 s
#   v        |----|-g--|----|----|----|--^-       g at 11 s leaves at 35 s
EVENTS = events(
    [
        (T0 + 2 * SECOND, T0 + 2 * SECOND, {"user": "u", "x": 1.5, "n": 7}),
        (T0 + 7 * SECOND, T0 + 7 * SECOND, {"user": "u", "x": 2.5, "n": None}),
        (T0 + 11 * SECOND, T0 + 11 * SECOND, {"user": "v", "x": None, "n": 9}),
    ]
)
CLOCK = T0 + 60 * SECOND


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_log(tmp_path, VIEW, EVENTS, CLOCK, n_batches=2)
    return tmp_path


def labels(*rows: tuple[str, float], unit: str = "us") -> pl.DataFrame:
    """(user, seconds after T0)."""
    micros = pl.Series("event_timestamp", [T0 + int(s * SECOND) for _, s in rows], pl.Int64)
    return pl.DataFrame({"user": pl.Series([user for user, _ in rows], dtype=pl.String)}).with_columns(
        micros.cast(pl.Datetime("us", "UTC")).cast(pl.Datetime(unit, "UTC"))
    )


def ask(
    log: Path, frame: pl.DataFrame, *features: str, plan: ViewPlan = VIEW, inclusive: bool = True, **options
) -> pl.DataFrame:
    """Join with the labels of ``frame``; whole seconds of the examples name the instant at which a value is there."""
    references = [f"{plan.name}:{name}" for name in features]
    found = historical_features(
        log, {plan.name: plan.published}, read_table(frame), references, inclusive=inclusive, **options
    )
    return frame.hstack(found.columns)


def test_every_label_reads_what_stood_at_its_instant(log):
    frame = labels(("v", 2), ("u", 2), ("u", 7), ("u", 24.9), ("u", 25), ("u", 30), ("v", 11), ("v", 35))

    answer = ask(log, frame, "count", "sum", "mean", "last")

    assert answer.drop("event_timestamp").rows() == [
        ("v", 0, 0.0, None, -1),
        ("u", 1, 1.5, 1.5, 7),
        ("u", 2, 4.0, 2.0, 7),
        ("u", 2, 4.0, 2.0, 7),
        ("u", 1, 2.5, 2.5, -1),
        ("u", 0, 0.0, None, -1),
        ("v", 1, 0.0, None, 9),
        ("v", 0, 0.0, None, -1),
    ]
    assert answer.schema["count"] == pl.Int64
    assert answer.schema["mean"] == pl.Float64


def test_rows_stay_one_for_one_and_in_order_with_duplicates_and_strangers(log):
    frame = labels(("v", 12), ("nobody", 12), ("u", 8), ("v", 12), ("u", 3)).with_columns(mark=pl.int_range(5))

    answer = ask(log, frame, "last", "count")

    assert answer.columns == ["user", "event_timestamp", "mark", "last", "count"]
    assert answer.select("mark", "last", "count").rows() == [(0, 9, 1), (1, -1, 0), (2, 7, 2), (3, 9, 1), (4, 7, 1)]


def test_exclusive_labels_do_not_see_their_own_event(log):
    frame = labels(("u", 2), ("u", 2.000001))

    assert ask(log, frame, "count", inclusive=False)["count"].to_list() == [0, 1]


@pytest.mark.parametrize(("inclusive", "expected"), [(True, [1, 2, 2]), (False, [1, 1, 2])])
def test_nanosecond_labels_fall_between_microseconds(log, inclusive, expected):
    just = pl.Series("event_timestamp", [(T0 + 7 * SECOND) * 1000 + ns for ns in (-1, 0, 1)]).cast(
        pl.Datetime("ns", "UTC")
    )
    frame = pl.DataFrame({"user": ["u"] * 3, "event_timestamp": just})

    assert ask(log, frame, "count", inclusive=inclusive)["count"].to_list() == expected


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kathmandu"])
def test_label_instants_of_any_unit_and_zone(log, unit, zone):
    frame = labels(("u", 8), ("v", 8), unit=unit)
    zoned = pl.col("event_timestamp")
    frame = frame.with_columns(zoned.dt.replace_time_zone(None) if zone is None else zoned.dt.convert_time_zone(zone))

    answer = ask(log, frame, "count")

    assert answer["count"].to_list() == [2, 0]
    assert answer.select(frame.columns).equals(frame)


def test_shards_and_days_do_not_show(tmp_path):
    given = [
        (T0 + day * DAY + user, T0 + day * DAY, {"user": f"u{user}", "n": day}) for day in range(4) for user in range(9)
    ]
    plan = view(Wanted("last", "last", sliding(30 * DAY, 2 * HOUR), "n", "int64"), name="daily")
    for n_shards in (1, 3):
        write_log(tmp_path / str(n_shards), plan, events(given), T0 + 40 * DAY, n_shards=n_shards, n_batches=5)
    frame = pl.DataFrame(
        [(f"u{user}", T0 + day * DAY + HOUR) for day in range(40) for user in range(10)],
        schema={"user": pl.String, "event_timestamp": pl.Int64},
        orient="row",
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))

    one, three = (ask(tmp_path / str(n), frame, "last", plan=plan) for n in (1, 3))

    assert one.equals(three)
    assert one.filter(user="u4")["last"].to_list()[:6] == [0, 1, 2, 3, 3, 3]
    assert one.filter(user="u9")["last"].null_count() == 40


def test_pieces_of_a_log_too_large_for_memory_do_not_show(tmp_path, monkeypatch):
    given = [
        (T0 + day * DAY + user, T0 + day * DAY, {"user": f"u{user}", "n": day}) for day in range(9) for user in range(5)
    ]
    plan = view(Wanted("last", "last", sliding(3 * DAY, 2 * HOUR), "n", "int64"), name="daily")
    write_log(tmp_path, plan, events(given), T0 + 40 * DAY, n_shards=2, n_batches=9)
    frame = labels(*((f"u{user}", 3_600 * hour) for hour in range(0, 300, 5) for user in (3, 1, 5, 0)))

    whole = ask(tmp_path, frame, "last", plan=plan)
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", 1)

    assert ask(tmp_path, frame, "last", plan=plan).equals(whole)
    assert whole.filter(user="u3")["last"].n_unique() == 10


@pytest.mark.parametrize("n_wanted", [0, 1, 2])
def test_a_piece_that_is_read_ahead_matters_only_if_it_is_wanted(tmp_path, monkeypatch, n_wanted):
    """The oldest one is damaged; whoever needs no more than those before it does not hear of it."""
    given = [(T0 + day * DAY, T0 + day * DAY, {"user": "u", "n": day}) for day in range(3)]
    plan = view(Wanted("last", "last", sliding(3 * DAY, 2 * HOUR), "n", "int64"), name="daily")
    write_log(tmp_path, plan, events(given), T0 + 2 * DAY + 1, n_batches=3)
    files = published_files(view_root(tmp_path, plan.name, plan.version))
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", 1)
    columns = ["user", "available_at", "last"]
    expected = list(ViewLog(tmp_path, plan.published).newest_first(columns))
    assert len(expected) > 2
    content = bytearray(files[0].path.read_bytes())
    content[len(content) // 2] ^= 1
    files[0].path.write_bytes(content)

    pieces = ViewLog(tmp_path, plan.published).newest_first(columns)
    for piece in expected[:n_wanted]:
        assert next(pieces).equals(piece)
    pieces.close()

    with pytest.raises(LayoutError, match="is damaged"):
        list(ViewLog(tmp_path, plan.published).newest_first(columns))


@pytest.mark.parametrize("is_partitioned", [False, True])
@pytest.mark.parametrize("memory_bytes", [600, 4_000])
def test_files_too_large_for_memory_are_read_in_parts(tmp_path, monkeypatch, memory_bytes, is_partitioned):
    """By their sequence, or, where an entity may have rows in several shards, by entity."""
    plan = view(Wanted("last", "last", sliding(3 * DAY, 2 * HOUR), "n", "int64"), name="daily")
    plan = republished(plan, partitioned=is_partitioned)
    given = [(T0 + n * SECOND, T0 + n * SECOND, {"user": f"u{n % 7}", "n": n}) for n in range(120)]
    write_log(tmp_path, plan, events(given), T0 + 4 * DAY, n_shards=2)
    frame = labels(*((f"u{user}", second + 0.5) for second in range(0, 130, 3) for user in range(8)))
    expected = [
        max((n for n in range(120) if n <= second and n % 7 == user), default=None)
        for second in range(0, 130, 3)
        for user in range(8)
    ]
    monkeypatch.setattr("unskew.offline.log_reader._MEMORY_BYTES", memory_bytes)
    monkeypatch.setattr("unskew.offline.log_reader._PART_PIECES", 1)
    pieces = list(ViewLog(tmp_path, plan.published).newest_first(["user", "available_at", "last"]))

    assert ask(tmp_path, frame, "last", plan=plan)["last"].to_list() == expected
    assert len(pieces) > (2 if memory_bytes > 600 else 8)
    assert sum(map(len, pieces)) == ViewLog(tmp_path, plan.published).n_rows() > 120
    if is_partitioned:
        first_day = [piece for piece in pieces if len(piece) and piece["available_at"][0].date().day == 14]
        assert sum(piece["user"].n_unique() for piece in first_day) == 7


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 28])
def test_rows_of_one_entity_in_two_shards_are_taken_in_the_order_of_time(tmp_path, monkeypatch, chunk_bytes):
    """It was forgotten in p0, which had run ahead, and came back in p1."""
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", chunk_bytes)
    plan = republished(VIEW, partitioned=True)
    for shard, first in (("p0.0", 20), ("p1.0", 1)):
        now = [0]
        table = LogTable(tmp_path, plan, shard, None, now_us=lambda now=now: now[0])
        for seq, (second, count) in enumerate([(first, 1), (first + 6, 0)]):
            now[0] = T0 + second * SECOND
            row = {"user": "u", "count": count, "sum": 0.0, "available_at": now[0], "cause": "event", "seq": seq}
            table.append(updates(plan, T0 + 60 * SECOND, shard=shard, log_rows=[row]))
            table.snapshot()
        table.settle()
    frame = labels(("u", 2), ("u", 10), ("u", 21), ("u", 30))

    assert ask(tmp_path, frame, "count", plan=plan)["count"].to_list() == [1, 0, 1, 0]


def test_keys_that_share_a_hash_are_told_apart(log, monkeypatch):
    frame = labels(("u", 8), ("v", 12), ("nobody", 8), ("u", 24.9))
    apart = ask(log, frame, "count", "sum")
    hashed = join._ids
    monkeypatch.setattr(
        join, "_ids", lambda keys, seed: np.zeros(len(keys), np.uint64) if seed == 0 else hashed(keys, seed)
    )

    assert ask(log, frame, "count", "sum").equals(apart)


OUTSIDE = [("v", 1.999999), ("u", 60), ("u", 2), ("u", 61)]


LATER = """\
2 of 4 labels are later than the log of clicks@1 is complete, 2017-07-14T02:40:59.999999Z; the first is row 1 \
(user 'u', event_timestamp 2017-07-14T02:41:00Z); leave them out, wait until"""
EARLIER = """\
1 of 1 labels are earlier than the first event that clicks@1 has seen, 2017-07-14T02:40:02Z; the first is row 0 \
(user 'v', event_timestamp 2017-07-14T02:40:01.999999Z); leave them out, or set outside to "null" (--outside null)"""


@pytest.mark.parametrize(("rows", "message"), [(OUTSIDE, LATER), (OUTSIDE[:1], EARLIER)])
def test_labels_outside_of_the_log_are_refused_with_their_number_and_what_to_do(log, rows, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        ask(log, labels(*rows), "count")


def test_labels_outside_of_the_log_have_nulls_and_a_status_if_that_is_asked_for(log):
    answer = ask(log, labels(*OUTSIDE), "count", "last", outside="null", with_status=True)

    assert answer.drop("user", "event_timestamp").rows() == [
        (None, "before_log", None, "before_log"),
        (None, "after_log", None, "after_log"),
        (1, "warming", 7, "warming"),
        (None, "after_log", None, "after_log"),
    ]
    with pytest.raises(RequestError, match='outside is "error" or "null"'):
        ask(log, labels(*OUTSIDE), "count", outside="drop")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"inclusive": "no"}, "inclusive is True or False, not 'no'"),
        ({"with_status": 1}, "with_status is True or False, not 1"),
        ({"max_age": "soon"}, "max_age: 'soon' is not a duration"),
        ({"max_age": 30}, "max_age: 30 has no unit"),
    ],
)
def test_options_that_are_not_what_they_should_be_are_refused(log, option, message):
    with pytest.raises(RequestError, match=message):
        ask(log, labels(("u", 8)), "count", **option)


def test_a_feature_that_is_called_like_the_status_of_another_one_is_refused_beside_it(tmp_path):
    plan = view(Wanted("n", "count", WINDOW), Wanted("n__status", "count", WINDOW), name="clicks")
    write_log(tmp_path, plan, EVENTS, CLOCK)

    with pytest.raises(RequestError, match="two columns would be called 'n__status'"):
        ask(tmp_path, labels(("u", 8)), "n", "n__status", plan=plan, with_status=True)
    assert ask(tmp_path, labels(("u", 8)), "n", "n__status", plan=plan)["n__status"].to_list() == [2]


def test_an_instant_in_another_unit_than_its_type_says_is_refused(log):
    seconds_as_ms = pl.Series("event_timestamp", [T0 // 1_000 * 3_000], pl.Int64).cast(pl.Datetime("ms"))

    with pytest.raises(
        RequestError, match=r"of row 0 is .* ms since 1970, which is not between the years 1900 and 2200"
    ):
        ask(log, pl.DataFrame({"user": ["u"], "event_timestamp": seconds_as_ms}), "count")


def test_a_label_without_a_key_has_nulls_and_a_status(log):
    frame = labels(("u", 2), ("v", 12)).with_columns(user=pl.Series([None, "v"], dtype=pl.String))

    answer = ask(log, frame, "count", "last", with_status=True)

    assert answer.select("count", "last", "count__status").rows() == [(None, None, "no_key"), (1, 9, "warming")]


def test_while_a_shard_has_no_clock_nothing_is_complete_and_the_error_says_which(log):
    record_shards(log / "clicks" / "v1", ["h0", "h1", "h2"], view=VIEW)

    with pytest.raises(RequestError, match="no clock has come from shard h1, h2; wait until"):
        ask(log, labels(("u", 2)), "count")


def test_a_shard_that_ended_without_a_clock_holds_nothing_back_until_the_next_run(log):
    root = log / "clicks" / "v1"
    record_shards(root, ["h0", "h1"], view=VIEW)
    table = LogTable(log, VIEW, "h1", None, now_us=lambda: 0)
    table.append(NothingToCome(VIEW, "h1"))
    saved = table.snapshot()
    table.settle()

    assert read_json((root / "_coverage" / "h1.json").read_bytes()) == {
        "since": None,
        "complete_to": None,
        "ended": True,
        "seq": 0,
    }
    assert ask(log, labels(("u", 2)), "count")["count"].to_list() == [1]

    resumed = LogTable(log, VIEW, "h1", saved, now_us=lambda: 0)
    record_shards(root, ["h0", "h1"], view=VIEW)
    resumed.snapshot()
    resumed.settle()
    with pytest.raises(RequestError, match="no clock has come from shard h1;"):
        ask(log, labels(("u", 2)), "count")


def test_the_last_closed_instant_can_be_asked_for(log):
    assert ask(log, labels(("u", 59.999999)), "count")["count"].to_list() == [0]
    assert ask(log, labels(("u", 60)), "count", inclusive=False)["count"].to_list() == [0]


def test_a_log_that_never_began_is_refused_and_an_empty_one_is_not(tmp_path):
    with pytest.raises(RequestError, match="not complete to any instant yet"):
        ask(tmp_path, labels(("u", 1)), "count")

    write_log(tmp_path, VIEW, EVENTS[:0], CLOCK)
    answer = ask(tmp_path, labels(("u", 1)), "count", outside="null", with_status=True)
    assert answer.select("count", "count__status").rows() == [(None, "before_log")]


def test_no_labels_give_no_rows(log, tmp_path):
    for folder in (log, tmp_path / "none"):
        answer = ask(folder, labels(), "count", "mean")
        assert answer.rows() == []
        assert answer.schema["mean"] == pl.Float64


def test_values_older_than_max_age_read_as_nulls_and_defaults(log):
    frame = labels(("u", 7), ("u", 17), ("u", 17.000001))

    answer = ask(log, frame, "count", "last", max_age="10s", with_status=True)

    assert answer.select("count", "count__status", "last").rows() == [
        (2, "warming", 7),
        (2, "warming", 7),
        (None, "warming", -1),
    ]


def test_status_says_what_stands_behind_a_value(tmp_path):
    # The first arrival is at 2 s: windows that begin before it are warming until the old edge passes it.
    write_log(tmp_path, VIEW, EVENTS, CLOCK)
    frame = labels(("u", 24), ("u", 25), ("nobody", 25), ("u", 55))

    answer = ask(tmp_path, frame, "count", with_status=True, max_age="20s")

    assert answer["count__status"].to_list() == ["warming", "present", "default", "expired"]


def test_staged_rows_are_not_read(tmp_path):
    write_log(tmp_path, VIEW, EVENTS, CLOCK)
    for file in tmp_path.glob("clicks/v1/day=*/*.parquet"):
        staged = tmp_path / "clicks/v1/_staged" / file.parent.name / file.name
        staged.parent.mkdir(parents=True, exist_ok=True)
        file.rename(staged)

    with pytest.raises(LayoutError, match=r"rows 0 to 5 of shard h0 are missing"):
        ask(tmp_path, labels(("u", 8)), "count")


def test_a_log_of_another_definition_is_refused(log):
    other = VIEW.published
    changed = type(other)(
        **{name: getattr(other, name) for name in other.__struct_fields__} | {"state_fingerprint": "f" * 64}
    )

    with pytest.raises(LayoutError, match="another definition of clicks@1"):
        historical_features(log, {"clicks": changed}, read_table(labels(("u", 8))), ["clicks:count"])


def test_several_key_columns_and_narrow_integers(tmp_path):
    columns = {"shop": pl.Int32()}
    plan = view(Wanted("c", "count", WINDOW), keys={"user": "string", "shop": "int64"}, columns=columns, name="visits")
    given = [
        (T0, T0, {"user": "u|é", "shop": 1}),
        (T0, T0, {"user": "u|é", "shop": 2}),
        (T0 + 1, T0, {"user": "u|é", "shop": 2}),
    ]
    write_log(tmp_path, plan, events(given, columns=columns), CLOCK)
    frame = pl.DataFrame(
        {"shop": [1, 2, 3], "user": ["u|é"] * 3}, schema={"shop": pl.Int8, "user": pl.Categorical}
    ).with_columns(event_timestamp=pl.lit(dt.datetime(2017, 7, 14, 2, 40, 1, tzinfo=dt.UTC)))

    assert ask(tmp_path, frame, "c", plan=plan)["c"].to_list() == [1, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("user"), "key 'user' is not among"),
        (lambda f: f.rename({"event_timestamp": "at"}), "no column 'event_timestamp'"),
        (lambda f: f.with_columns(event_timestamp=pl.lit(None, pl.Datetime("us"))), "null in row 0"),
        (lambda f: f.with_columns(event_timestamp=pl.lit(None)), "null in every row"),
        (
            lambda f: f.with_columns(event_timestamp=pl.lit(5)),
            "Int32, not an instant; convert it from the unit .*from_epoch",
        ),
        (lambda f: f.with_columns(event_timestamp=pl.lit(5.5)), "Float64, not an instant; convert it from the unit"),
        (lambda f: f.with_columns(event_timestamp=pl.lit("2017-07-14")), "String, not an instant; parse it"),
        (lambda f: f.with_columns(event_timestamp=pl.lit(dt.date(2017, 7, 14))), "Date, not an instant; a day is"),
        (lambda f: f.with_columns(event_timestamp=pl.lit(b"5")), "Binary, not an instant; convert it to a Datetime"),
        (lambda f: f.with_columns(user=pl.lit(b"u")), None),
        (lambda f: f.with_columns(count=pl.lit(1)), "would replace the label column 'count'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(log, change, message):
    frame = change(labels(("u", 8)))
    if message is None:
        assert ask(log, frame, "count")["count"].to_list() == [2]
        return
    with pytest.raises(RequestError, match=message):
        ask(log, frame, "count")


def test_a_key_that_would_lose_something_is_refused(tmp_path):
    plan = view(Wanted("c", "count", WINDOW), keys={"n": "int64"}, name="numbers")
    write_log(tmp_path, plan, EVENTS, CLOCK)
    at = labels(("u", 8), ("v", 8)).drop("user")

    assert ask(tmp_path, at.with_columns(n=pl.Series([7.0, 8.0])), "c", plan=plan)["c"].to_list() == [1, 0]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["clicks:cuont"], "did you mean 'count'"),
        (["click:count"], "did you mean 'clicks'"),
        (["count"], "write view:feature"),
        ([], "no features are requested"),
        (["clicks:count", "others:count"], "would share the column 'count'"),
    ],
)
def test_references_that_name_nothing_or_clash_are_refused(log, features, message):
    other = view(Wanted("count", "count", tumbling(DAY)), name="others")

    with pytest.raises(RequestError, match=message):
        historical_features(
            log, {"clicks": VIEW.published, "others": other.published}, read_table(labels(("u", 8))), features
        )


def test_two_views_with_full_names_come_in_the_order_asked(log):
    other = view(Wanted("count", "count", tumbling(DAY)), name="others")
    write_log(log, other, EVENTS, CLOCK)

    answer = historical_features(
        log,
        {"clicks": VIEW.published, "others": other.published},
        read_table(labels(("u", 40))),
        ["clicks:count", "others:count", "clicks:sum"],
        full_feature_names=True,
    )

    assert answer.columns.to_dict(as_series=False) == {
        "clicks__count": [0],
        "others__count": [2],
        "clicks__sum": [0.0],
    }


def test_joined_gives_stored_values_without_defaults(log):
    keys = pl.DataFrame({"user": ["u", "nobody"]})

    stored = joined(ViewLog(log, VIEW.published), keys, (pl.Series([T0 + 40 * SECOND] * 2)).to_numpy())

    assert stored.rows() == [(0, 0.0, None, None), (0, 0.0, None, None)]


def test_stats_count_the_whole_log(log):
    stats = ViewLog(log, VIEW.published).stats()

    # u: 2 s, 7 s, 25 s, 30 s; v: 11 s, 35 s.
    assert (stats.rows, stats.entities, stats.causes) == (6, 2, {"event": 3, "hop": 3})
    assert stats.first == dt.datetime(2017, 7, 14, 2, 40, 2, tzinfo=dt.UTC)
    assert stats.complete_to == dt.datetime(2017, 7, 14, 2, 40, 59, 999999, tzinfo=dt.UTC)


def test_head_gives_the_first_rows(log):
    assert ViewLog(log, VIEW.published).head(2)["seq"].to_list() == [0, 1]


@pytest.fixture
def orders(tmp_path) -> Path:
    """A log with a value of every type: u has all from 2 s to a day later, and none after; v has nulls from 5 s on."""
    table = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    rows = [("u", 2 * SECOND, FULL), ("v", 5 * SECOND, {"n": 1}), ("u", DAY, EMPTY)]
    for seq, (user, after, values) in enumerate(rows):
        row = {"user": user, **values, "available_at": T0 + after, "cause": "event", "seq": seq}
        table.append(updates(ORDERS, T0 + after + 1, log_rows=[row], since_us=T0))
        table.snapshot()
    table.append(updates(ORDERS, T0 + 2 * DAY, since_us=T0))
    table.snapshot()
    table.settle()
    return tmp_path


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 28])
def test_values_of_every_type_are_joined_bit_for_bit_in_any_order(orders, monkeypatch, chunk_bytes):
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", chunk_bytes)
    frame = labels(("u", 90_000), ("u", 2), ("v", 6), ("nobody", 6), ("u", 1), ("u", 80_000))

    answer = ask(orders, frame, *NAMES, plan=ORDERS)

    bare = {**DEFAULTS, "n": 1, "spend": None, "is_new": None}
    assert answer.select(NAMES).to_dicts() == [DEFAULTS, FULL, bare, DEFAULTS, DEFAULTS, FULL]
    assert dict(answer.select(NAMES).schema) == {one.name: one.dtype.polars for one in ORDERS.outputs}


def test_joined_gives_values_of_every_type_as_stored(orders):
    keys = pl.DataFrame({"user": ["u", "nobody", "v"]})

    stored = joined(ViewLog(orders, ORDERS.published), keys, np.array([T0 + 3 * SECOND, T0, T0 + 6 * SECOND]))

    assert stored.to_dicts() == [FULL, EMPTY, {**dict.fromkeys(NAMES), "n": 1}]


def test_expired_values_of_every_type_read_as_nulls_and_defaults(orders):
    answer = ask(orders, labels(("u", 13)), *NAMES, plan=ORDERS, max_age="10s")

    assert answer.select(NAMES).to_dicts() == [{**DEFAULTS, "n": None, "spend": None, "is_new": None}]


def test_without_rows_the_types_stay(orders):
    answer = ask(orders, labels(), *NAMES, plan=ORDERS)

    assert dict(answer.select(NAMES).schema) == {one.name: one.dtype.polars for one in ORDERS.outputs}


def test_a_derived_null_is_its_default_and_not_its_empty_value(tmp_path):
    """``1 / (n - 2)`` is -0.5 of an entity without events, and null where n is 2."""
    plan = view(Wanted("n", "count", WINDOW), derived=[WantedOfOthers("odd", "1 / (n - 2)", default=7.0)], name="odds")
    table = LogTable(tmp_path, plan, "h0", None, now_us=lambda: 0)
    row = {"user": "u", "n": 2, "available_at": T0, "cause": "event", "seq": 0}
    table.append(updates(plan, T0 + 60 * SECOND, log_rows=[row], since_us=T0 - DAY))
    table.snapshot()
    table.settle()

    answer = ask(tmp_path, labels(("u", 1), ("nobody", 1)), "odd", plan=plan, with_status=True)

    assert answer.select("odd", "odd__status").rows() == [(7.0, "present"), (-0.5, "default")]


def test_a_derived_feature_is_warming_with_what_it_is_made_of(tmp_path):
    plan = view(
        Wanted("minute", "count", sliding(60 * SECOND, SECOND)),
        Wanted("day", "count", sliding(DAY, SECOND)),
        derived=[WantedOfOthers("share", "minute / day")],
        name="shares",
    )
    table = LogTable(tmp_path, plan, "h0", None, now_us=lambda: 0)
    table.append(updates(plan, T0 + 2 * DAY, since_us=T0))
    table.snapshot()
    table.settle()
    frame = labels(("u", 60), ("u", 86_400))

    answer = ask(tmp_path, frame, "minute", "share", plan=plan, with_status=True)

    assert answer.select("minute__status", "share__status").rows() == [("default", "warming"), ("default", "default")]
