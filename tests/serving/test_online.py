import datetime as dt
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, MINUTE, Wanted, WantedOfOthers, lifetime, sessions, sliding, view
from tests.support.typed import AWKWARD, DEFAULTS, FULL, NAMES, ORDERS
from tests.support.updates import closing
from unskew.features.errors import LayoutError, RequestError, StoreUnavailable
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.updates import NothingToCome
from unskew.serving.lines import Lines
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.keyspace import registry_key, revision_key, sent_key
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.writer import RedisWriter

VISITS = view(
    Wanted("n_5min", "count", sliding(5 * MINUTE, MINUTE)),
    Wanted("mean_1d", "mean", sliding(DAY, HOUR), "x", default=-1.0),
    Wanted("last_online", "last", sliding(DAY, HOUR), "x > 0", of="bool"),
    name="visits",
)
STAYS = view(
    Wanted("nights", "sum", sliding(DAY, HOUR), "n", of="int64"),
    keys={"user": "string", "hotel": "int64"},
    name="stays",
)
CLOCK = 10 * DAY


@pytest.fixture
def writer(redis_client):
    writer = RedisWriter(redis_client, "unskew", "main")
    plan = Plan(streams={}, views={plan.name: plan for plan in (VISITS, STAYS)})
    writer.publish_registry(json.dumps(describe(plan)))
    return writer


@pytest.fixture
def reader(redis_client):
    return OnlineReader(redis_client, now_us=lambda: CLOCK + HOUR)


def write(writer, *steps):
    for step in steps:
        writer.add(step)
    # The present, not the clock of this old history: a key that expired long ago would be gone at once.
    writer.flush(time.time_ns() // 1000)


def judged(answer, view="visits"):
    return [
        (None if as_of is None else round(as_of.timestamp() * 1e6), status, provisional)
        for as_of, status, provisional in answer.metadata[view].rows()
    ]


def row(key, at, **values):
    return {"key": key, "n_5min": 1, "_at": at, "_until": at + MINUTE, "_empty_at": at + DAY, **values}


def test_values_come_back_in_their_types_in_the_order_asked(writer, reader):
    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK - 5, n_5min=3, mean_1d=0.1, last_online=False)]))

    answer = reader.read(["visits:last_online", "visits:n_5min", "visits:mean_1d"], [{"user": "a"}])

    assert answer.to_dict() == {"user": ["a"], "last_online": [False], "n_5min": [3], "mean_1d": [0.1]}
    assert answer.to_polars().dtypes == [pl.String, pl.Boolean, pl.Int64, pl.Float64]
    assert judged(answer) == [(CLOCK, "present", False)]


REFERENCES = [f"orders:{name}" for name in NAMES]


@pytest.fixture
def orders(redis_client):
    """One entity with a value of every type, one with nothing but its last instant, and a reader of them."""
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"orders": ORDERS}))))
    write(writer, closing(ORDERS, CLOCK, [{"key": "full", **FULL, "_at": CLOCK}, {"key": "bare", "_at": CLOCK}]))
    return OnlineReader(redis_client, now_us=lambda: CLOCK + HOUR)


def test_values_of_every_type_come_back_bit_for_bit(orders):
    answer = orders.read(REFERENCES, [{"user": "full"}]).to_polars()

    assert answer.drop("user").to_dicts() == [FULL]
    assert dict(answer.drop("user").schema) == {output.name: output.dtype.polars for output in ORDERS.outputs}


def test_an_unknown_entity_gets_empty_values_and_defaults_of_every_type(orders):
    answer = orders.read(REFERENCES, [{"user": "nobody"}, {"user": "full"}])

    assert answer.to_polars().drop("user").to_dicts() == [DEFAULTS, FULL]
    assert [status for _, status, _ in judged(answer, "orders")] == ["default", "present"]


def test_a_null_of_a_row_that_is_there_is_no_empty_value(redis_client):
    """``1 / (n - 2)`` is -0.5 of an entity without events, and null where n is 2."""
    plan = view(
        Wanted("n", "count", sliding(DAY, HOUR)),
        derived=[WantedOfOthers("odd", "1 / (n - 2)"), WantedOfOthers("with_default", "1 / (n - 2)", default=7.0)],
    )
    writer = RedisWriter(redis_client, "unskew", "main")
    write(writer, closing(plan, CLOCK, [{"key": "two", "n": 2, "_at": CLOCK}]))
    reader = OnlineReader(redis_client, views={"view": plan.published})

    answer = reader.read(["view:odd", "view:with_default"], [{"user": "two"}, {"user": "nobody"}])

    assert answer.to_dict() == {"user": ["two", "nobody"], "odd": [None, -0.5], "with_default": [7.0, -0.5]}


def test_lists_and_maps_go_to_pandas(orders):
    answer = orders.read(REFERENCES, pd.DataFrame({"user": ["full", "nobody"]}, index=[7, 3])).to_df()

    assert answer.index.to_list() == [7, 3]
    assert list(answer["shops"].iloc[0]) == ["", AWKWARD]
    assert list(answer["n_by_shop"].iloc[0]) == FULL["n_by_shop"]
    assert answer["spend"].to_list() == [FULL["spend"], DEFAULTS["spend"]]
    assert answer["since"].iloc[0] == pd.Timestamp(FULL["since"])
    assert answer["counts"].isna().to_list() == [False, True]


@pytest.mark.usefixtures("orders")
def test_a_client_that_decodes_responses_reads_every_type(redis_url):
    import redis

    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        answer = OnlineReader(client).read(REFERENCES, [{"user": "full"}])

    assert answer.to_polars().drop("user").to_dicts() == [FULL]


@pytest.mark.parametrize(("name", "text"), [
    ("n", "many"), ("spend", "1.5"), ("shop", b"\xff"), ("counts", "[1"), ("n_by_shop", "[]"), ("since", "today"),
])  # fmt: skip
def test_text_that_unskew_did_not_write_is_named(orders, redis_client, name, text):
    redis_client.hset("unskew:orders@1:{full}", name, text)

    with pytest.raises(
        LayoutError,
        match=rf"Redis holds a value of orders@1:{name} .* is not a valid .*; run `unskew rehydrate`",
    ):
        orders.read(REFERENCES, [{"user": "nobody"}, {"user": "full"}])


@pytest.mark.parametrize(("feature", "since", "status"), [
    ("ever", CLOCK, "default"),
    ("per_day", CLOCK - DAY, "default"),
    ("per_day", CLOCK - DAY + 1, "warming"),
])  # fmt: skip
def test_a_derived_feature_is_warming_with_what_it_is_made_of(redis_client, feature, since, status):
    plan = view(
        Wanted("day", "count", sliding(DAY, HOUR)),
        Wanted("ever", "count", lifetime()),
        derived=[WantedOfOthers("per_day", "ever / day")],
    )
    write(RedisWriter(redis_client, "unskew", "main"), closing(plan, CLOCK, since_us=since))

    answer = OnlineReader(redis_client, views={"view": plan.published}).read([f"view:{feature}"], [{"user": "a"}])

    assert judged(answer, "view") == [(CLOCK, status, False)]


def test_a_view_over_sessions_is_warming_a_gap_and_a_hop_longer(redis_client):
    plan = view(Wanted("n", "count", sliding(DAY, HOUR)), sessions=sessions(HOUR, MINUTE))
    writer = RedisWriter(redis_client, "unskew", "main")
    reader = OnlineReader(redis_client, views={"view": plan.published})

    found = []
    for since in (CLOCK - DAY - HOUR - MINUTE, CLOCK - DAY - HOUR - MINUTE + 1):
        write(writer, closing(plan, CLOCK, since_us=since))
        found += [status for _, status, _ in judged(reader.read(["view:n"], [{"user": "a"}]), "view")]

    assert found == ["default", "warming"]


def test_an_unknown_entity_gets_empty_values_and_defaults(writer, reader):
    write(writer, closing(VISITS, CLOCK))

    answer = reader.read(["visits:n_5min", "visits:mean_1d", "visits:last_online"], [{"user": "nobody"}])

    assert answer.to_dict() == {"user": ["nobody"], "n_5min": [0], "mean_1d": [-1.0], "last_online": [None]}
    assert judged(answer) == [(CLOCK, "default", False)]


def test_a_null_of_an_entity_with_other_values_reads_as_the_default(writer, reader):
    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK)]))

    alone = reader.read(["visits:mean_1d"], [{"user": "a"}])
    together = reader.read(["visits:mean_1d", "visits:n_5min"], [{"user": "a"}])

    assert alone.to_dict()["mean_1d"] == together.to_dict()["mean_1d"] == [-1.0]
    assert (judged(alone), judged(together)) == ([(CLOCK, "default", False)], [(CLOCK, "present", False)])


def test_several_views_and_rows_keep_their_places(writer, reader):
    write(
        writer,
        closing(VISITS, CLOCK, [row("a%20b", CLOCK, n_5min=1), row("c", CLOCK, n_5min=2)]),
        closing(STAYS, CLOCK, [{"key": "a%20b|7", "nights": 40, "_at": CLOCK, "_until": CLOCK + HOUR}]),
    )
    rows = [{"user": "c", "hotel": 7}, {"user": "a b", "hotel": 7}, {"user": "c", "hotel": 7}]

    answer = reader.read(["stays:nights", "visits:n_5min"], rows)

    assert answer.to_dict() == {
        "user": ["c", "a b", "c"],
        "hotel": [7, 7, 7],
        "nights": [0, 40, 0],
        "n_5min": [2, 1, 2],
    }
    assert [status for _, status, _ in judged(answer, "stays")] == ["default", "present", "default"]


# One hashed shard.
#
#     clock read      _at of the row      as_of
#     --------|-----------------------------------
#        10 d |  before, or at it         clock, exact
#        10 d |  after: it moved since    _at, provisional


@pytest.mark.parametrize(("at", "expected"), [
    (CLOCK - 1, (CLOCK, "present", False)),
    (CLOCK, (CLOCK, "present", False)),
    (CLOCK + 1, (CLOCK + 1, "present", True)),
])  # fmt: skip
def test_a_hashed_row_is_the_value_at_the_later_of_its_change_and_its_clock(writer, reader, at, expected):
    write(writer, closing(VISITS, CLOCK, [row("a", at)]))

    assert judged(reader.read(["visits:n_5min"], [{"user": "a"}])) == [expected]


def test_each_hashed_row_is_judged_by_the_clock_of_its_own_shard(writer, reader):
    users = [f"u{i}" for i in range(40)]
    write(writer, *(closing(VISITS, CLOCK + shard, shard=f"h{shard}") for shard in range(4)))

    found = {as_of for as_of, _, _ in judged(reader.read(["visits:n_5min"], [{"user": user} for user in users]))}

    assert found == {CLOCK, CLOCK + 1, CLOCK + 2, CLOCK + 3}


# A hashed shard, closed up to 10 d, whose entity has no row. The mark says how far values had been sent at that time.
#
#     clock read      mark
#     --------|--------|--------------------------
#        10 d |  the instant after it: nothing past the clock was sent; absent at the clock, exact
#        10 d |  later: it may have been deleted meanwhile; absent at the mark, provisional


@pytest.mark.parametrize(("mark", "expected"), [
    (CLOCK + 1, (CLOCK, "default", False)),
    (CLOCK + 2, (CLOCK + 2, "default", True)),
    (CLOCK + HOUR, (CLOCK + HOUR, "default", True)),
])  # fmt: skip
@pytest.mark.parametrize("shard", ["h0", "p0.0"])
def test_an_absent_row_may_have_been_deleted_by_values_whose_clock_is_to_come(redis_client, mark, expected, shard):
    views = {"visits": VISITS.published} if shard == "h0" else with_partitions(VISITS)
    reader = OnlineReader(redis_client, views=views)
    write(RedisWriter(redis_client, "unskew", "main"), closing(VISITS, CLOCK, [row("b", CLOCK - 5)], shard=shard))
    redis_client.hset(sent_key("unskew", "main"), f"{VISITS.id}/{shard}", f"of this state:{mark}:7")

    answer = reader.read(["visits:n_5min"], [{"user": "a"}, {"user": "b"}])

    assert judged(answer) == [expected, (CLOCK, "present", False)]


@pytest.mark.parametrize("loss", ["all", "marks", "being made good"])
@pytest.mark.parametrize("shard", ["h0", "p0.0"])
def test_an_absent_row_is_not_certain_where_the_server_lost_data_after_the_clocks_were_read(redis_client, shard, loss):
    views = {"visits": VISITS.published} if shard == "h0" else with_partitions(VISITS)
    write(RedisWriter(redis_client, "unskew", "main"), closing(VISITS, CLOCK, [row("a", CLOCK - 5)], shard=shard))

    class Stalled(Lines):
        """The server loses what it has after the clocks were read."""

        def ask(self, *steps):
            if len(steps) == 1:
                return super().ask(*steps)
            revision_and_clocks = super().ask(*steps[:2])
            if loss == "all":
                redis_client.flushall()
            elif loss == "marks":
                redis_client.delete(sent_key("unskew", "main"))
            else:
                redis_client.hset(sent_key("unskew", "main"), "#loss", "one")
            redis_client.delete(f"unskew:{VISITS.id}:{{a}}")
            return [*revision_and_clocks, *super().ask(*steps[2:])]

    reader = OnlineReader(redis_client, views=views)
    reader._lines = Stalled(Server(redis_client))
    answer = reader.read(["visits:n_5min"], [{"user": "a"}])

    assert judged(answer) == [(CLOCK, "default", True)]


# Two partitions with clocks 10 d and 10 d + 1 h; which one an entity is in, its key does not tell.
#
#     least clock            greatest clock
#     ----|-----------------------|------------
#         |  present: max(_at, least), exact where _at <= least
#         |                       |  absent: here, provisional


@pytest.mark.parametrize(("at", "expected"), [
    (CLOCK - 1, (CLOCK, "present", False)),
    (CLOCK + 5, (CLOCK + 5, "present", True)),
    (None, (CLOCK + HOUR, "default", True)),
])  # fmt: skip
def test_a_partitioned_row_is_judged_by_what_every_partition_has_passed(redis_client, at, expected):
    partitioned = with_partitions(VISITS)
    reader = OnlineReader(redis_client, views=partitioned)
    writer = RedisWriter(redis_client, "unskew", "main")
    write(
        writer,
        closing(VISITS, CLOCK, [] if at is None else [row("a", at)], shard="p0.0"),
        closing(VISITS, CLOCK + HOUR, shard="p1.0"),
    )

    assert judged(reader.read(["visits:n_5min"], [{"user": "a"}])) == [expected]


def test_an_absent_partitioned_row_is_certain_where_all_clocks_agree(redis_client):
    reader = OnlineReader(redis_client, views=with_partitions(VISITS))
    writer = RedisWriter(redis_client, "unskew", "main")
    write(writer, closing(VISITS, CLOCK, shard="p0.0"), closing(VISITS, CLOCK, shard="p1.0"))

    assert judged(reader.read(["visits:n_5min"], [{"user": "a"}])) == [(CLOCK, "default", False)]


@pytest.mark.parametrize(("at", "expected"), [
    (CLOCK - 1, (CLOCK, "present", True)),
    (None, (CLOCK, "default", True)),
])  # fmt: skip
def test_nothing_is_exact_while_a_partition_has_no_clock(redis_client, at, expected):
    reader = OnlineReader(redis_client, views=with_partitions(VISITS))
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.expect({VISITS.id: ["p0.0", "p1.0"]})
    write(writer, closing(VISITS, CLOCK, [] if at is None else [row("a", at)], shard="p0.0"))

    assert judged(reader.read(["visits:n_5min"], [{"user": "a"}])) == [expected]


@pytest.mark.parametrize(("at", "expected"), [
    (CLOCK - 1, (CLOCK, "present", False)),
    (None, (CLOCK, "default", False)),
])  # fmt: skip
def test_a_partition_that_ended_empty_holds_nothing_back(redis_client, at, expected):
    reader = OnlineReader(redis_client, views=with_partitions(VISITS))
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.expect({VISITS.id: ["p0.0", "p1.0"]})
    write(
        writer,
        NothingToCome(VISITS, "p1.0"),
        closing(VISITS, CLOCK, [] if at is None else [row("a", at)], shard="p0.0"),
    )

    assert judged(reader.read(["visits:n_5min"], [{"user": "a"}])) == [expected]


def test_a_hashed_shard_without_a_clock_leaves_only_its_own_rows_unknown(writer, reader):
    writer.expect({VISITS.id: ["h0", "h1"]})
    write(writer, closing(VISITS, CLOCK, shard="h0"))

    found = set(judged(reader.read(["visits:n_5min"], [{"user": f"u{i}"} for i in range(40)])))

    assert found == {(CLOCK, "default", False), (None, "warming", True)}


def test_clocks_of_an_earlier_deployment_are_forgotten(redis_client, writer, reader):
    earlier = {VISITS.id: [f"h{shard}" for shard in range(4)]}
    writer.expect(earlier)
    write(
        writer,
        *(closing(VISITS, CLOCK + shard, shard=shard_name) for shard, shard_name in enumerate(earlier[VISITS.id])),
    )
    again = RedisWriter(redis_client, "unskew", "main")
    again.expect({VISITS.id: ["h0"]})
    write(again, closing(VISITS, CLOCK + 9))

    found = judged(reader.read(["visits:n_5min"], [{"user": f"u{i}"} for i in range(40)]))

    assert found == [(CLOCK + 9, "default", False)] * 40
    assert set(redis_client.hkeys("unskew:clock:main")) == {b"visits@1/h0", b"visits@1/h0#since", b"visits@1#shards"}


def with_partitions(plan):
    import msgspec

    return {plan.name: msgspec.structs.replace(plan.published, partitioned=True)}


@pytest.mark.usefixtures("writer")
def test_without_clocks_nothing_is_known_of_the_instant(reader):
    assert judged(reader.read(["visits:n_5min"], [{"user": "a"}])) == [(None, "warming", True)]


# The 5-minute window at 10 d begins at 9 d 23:55, the day's at 9 d.
@pytest.mark.parametrize(("since", "features", "status"), [
    (CLOCK - 5 * MINUTE, ["visits:n_5min"], "default"),
    (CLOCK - 5 * MINUTE + 1, ["visits:n_5min"], "warming"),
    (CLOCK - 5 * MINUTE, ["visits:n_5min", "visits:mean_1d"], "warming"),
    (CLOCK - DAY, ["visits:n_5min", "visits:mean_1d"], "default"),
    (None, ["visits:n_5min"], "warming"),
])  # fmt: skip
def test_a_window_that_begins_before_the_first_event_seen_is_warming(writer, reader, since, features, status):
    write(writer, closing(VISITS, CLOCK, since_us=since))

    assert judged(reader.read(features, [{"user": "a"}])) == [(CLOCK, status, False)]


def test_a_clock_far_behind_the_present_is_lagging(writer, redis_client):
    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK)]))
    exactly = OnlineReader(redis_client, max_lag_us=HOUR, now_us=lambda: CLOCK + HOUR)
    beyond = OnlineReader(redis_client, max_lag_us=HOUR, now_us=lambda: CLOCK + HOUR + 1)

    assert judged(exactly.read(["visits:n_5min"], [{"user": "a"}])) == [(CLOCK, "present", False)]
    assert judged(beyond.read(["visits:n_5min"], [{"user": "a"}])) == [(CLOCK, "lagging", False)]


def test_the_clock_of_a_view_is_found_in_any_of_several_pipelines(redis_client):
    write(RedisWriter(redis_client, "unskew", "one"), closing(VISITS, CLOCK))
    write(RedisWriter(redis_client, "unskew", "two"), closing(STAYS, CLOCK + 1))
    views = {plan.name: plan.published for plan in (VISITS, STAYS)}
    reader = OnlineReader(redis_client, pipeline=["one", "two"], views=views)

    answer = reader.read(["visits:n_5min", "stays:nights"], [{"user": "a", "hotel": 1}])

    assert judged(answer) == [(CLOCK, "default", False)]
    assert judged(answer, "stays") == [(CLOCK + 1, "default", False)]


def test_a_row_without_a_key_has_nulls_and_a_status_among_rows_that_have_one(writer, reader):
    write(writer, closing(STAYS, CLOCK, [row("a|1", CLOCK, nights=3)]))
    asked = [{"user": "a"}, {"user": "a", "hotel": 1}, {"user": None, "hotel": 1}, {"user": "b", "hotel": 1}]

    answer = reader.read(["stays:nights"], asked)

    assert answer.to_dict()["nights"] == [None, 3, None, 0]
    assert judged(answer, "stays") == [
        (None, "no_key", False),
        (CLOCK, "present", False),
        (None, "no_key", False),
        (CLOCK, "default", False),
    ]


def test_a_republished_registry_is_followed(writer, reader):
    write(writer, closing(VISITS, CLOCK))
    with pytest.raises(RequestError, match="no feature 'n_1h'"):
        reader.read(["visits:n_1h"], [{"user": "a"}])
    hourly = view(Wanted("n_1h", "count", sliding(HOUR, MINUTE)), name="visits")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"visits": hourly}))))

    assert reader.read(["visits:n_1h"], [{"user": "a"}]).to_dict()["n_1h"] == [0]


@pytest.mark.parametrize(("features", "rows", "message"), [
    (["visit:n_5min"], [{"user": "a"}], r"no view 'visit'; did you mean 'visits'"),
    (["visits:n_5m"], [{"user": "a"}], r"no feature 'n_5m'; did you mean 'n_5min'"),
    (["visits"], [{"user": "a"}], r"write view:feature, for example visits:n_5min"),
    ("visits:n_5min", [{"user": "a"}], r"write \['visits:n_5min'\]"),
    ([], [{"user": "a"}], r"no features"),
    (["visits:n_5min"], [{"users": "a"}], r"key 'user' is not among.*is it 'users'\? then rename that"),
    (["visits:n_5min"], [{}, {}], r"key 'user' is not among"),
    (["visits:n_5min"], [1], r"row 0 is 1; each row must be a dict"),
    (["visits:n_5min"], [{"user": True}], r"'user' is string, and True of row 0 \(Boolean\) cannot"),
    (["visits:n_5min"], [{"user": "a"}, {"user": 1}], r"the values of 'user' do not make a column of one type"),
    (["visits:n_5min"], [{"user": "\ud800"}], r"the values of 'user' do not make a column"),
    (["stays:nights"], [{"user": "a", "hotel": "seven"}], r"'hotel' is int64, and 'seven' of row 0 \(String\) cannot"),
    (["stays:nights"], [{"user": "a", "hotel": 1.5}], r"'hotel' is int64, and 1.5 of row 0 \(Float64\) cannot"),
    (["stays:nights"], [{"user": "a", "hotel": 2**63}], r"'hotel' is int64, and 9223372036854775808 of row 0"),
    (["visits:n_5min"], [{"user": "a", "n_5min": 1}], r"would replace the column 'n_5min'"),
    (["visits:n_5min"], 7, r"this is int"),
])  # fmt: skip
@pytest.mark.usefixtures("writer")
def test_a_request_that_cannot_be_answered_says_why(reader, features, rows, message):
    with pytest.raises(RequestError, match=message):
        reader.read(features, rows)


def test_an_unpublished_prefix_says_what_to_do(redis_client):
    with pytest.raises(RequestError, match="nothing is published under other:registry; start `unskew run`"):
        OnlineReader(redis_client, "other").read(["visits:n_5min"], [{"user": "a"}])


def test_a_broken_registry_is_a_layout_error(redis_client, reader):
    redis_client.set("unskew:registry", "not JSON")
    with pytest.raises(LayoutError, match="publish it again"):
        reader.views()


def test_a_server_that_is_not_there_is_unavailable():
    with pytest.raises(StoreUnavailable):
        OnlineReader("redis://127.0.0.1:1/0").read(["visits:n_5min"], [{"user": "a"}])


def test_pandas_in_gives_pandas_out_with_its_index(writer, reader):
    write(writer, closing(STAYS, CLOCK, [{"key": "a|7", "nights": 2, "_at": 1, "_until": 2}]))
    asked = pd.DataFrame({"user": ["b", "a"], "hotel": [7.0, 7.0]}, index=[30, 10])

    answer = reader.read(["stays:nights"], asked).to_df()

    pd.testing.assert_frame_equal(answer, asked.assign(nights=[0, 2]), check_dtype=False)


def test_polars_in_gives_polars_out_with_other_columns_kept(writer, reader):
    write(writer, closing(VISITS, CLOCK))
    asked = pl.DataFrame({"note": [dt.date(2024, 1, 1)], "user": ["a"]})

    answer = reader.read(["visits:n_5min"], asked).to_df()

    assert answer.equals(asked.with_columns(n_5min=pl.lit(0, pl.Int64)))


def test_no_rows_give_no_rows(writer, reader):
    write(writer, closing(VISITS, CLOCK))

    for rows in ([], pl.DataFrame(schema={"user": pl.String})):
        answer = reader.read(["visits:n_5min"], rows)
        assert answer.to_dict() == {"user": [], "n_5min": []}
        assert judged(answer) == []


def test_full_feature_names_keep_columns_apart(redis_client):
    other = view(Wanted("n_5min", "count", sliding(5 * MINUTE, MINUTE)), name="other")
    reader = OnlineReader(redis_client, views={plan.name: plan.published for plan in (VISITS, other)})
    both = ["visits:n_5min", "other:n_5min"]

    with pytest.raises(
        RequestError, match=r"full_feature_names .--full-feature-names., which gives columns view__feature"
    ):
        reader.read(both, [{"user": "a"}])
    answer = reader.read(both, [{"user": "a"}], full_feature_names=True)

    assert answer.to_dict() == {"user": ["a"], "visits__n_5min": [0], "other__n_5min": [0]}


def test_a_client_that_decodes_responses_reads_the_same(writer, redis_url):
    import redis

    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK, n_5min=3, mean_1d=2.5, last_online=True)]))
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        answer = OnlineReader(client).read(["visits:n_5min", "visits:mean_1d", "visits:last_online"], [{"user": "a"}])

    assert answer.to_dict() == {"user": ["a"], "n_5min": [3], "mean_1d": [2.5], "last_online": [True]}


@pytest.mark.parametrize(("key", "field", "word"), [
    ("unskew:clock:main", "visits@1/h0", "soon"),
    ("unskew:clock:main", "visits@1/h0#since", b"\xff"),
    ("unskew:sent:main", "visits@1/h0", "s:7"),
    ("unskew:sent:main", "visits@1/h0", "7"),
])  # fmt: skip
def test_a_damaged_word_is_named_with_its_key_and_field(writer, reader, redis_client, key, field, word):
    writer.expect({VISITS.id: ["h0"]})
    write(writer, closing(VISITS, CLOCK))
    redis_client.hset(key, field, word)

    with pytest.raises(LayoutError, match=f"{field!r} of {key!r}"):
        reader.read(["visits:n_5min"], [{"user": "a"}])


def test_a_damaged_instant_of_a_row_is_named(writer, reader, redis_client):
    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK)]))
    redis_client.hset("unskew:visits@1:{a}", "_at", "yesterday")

    with pytest.raises(LayoutError, match=r"visits@1:_at.*yesterday"):
        reader.read(["visits:n_5min"], [{"user": "a"}])


@pytest.mark.parametrize("listed", [True, False])
def test_words_that_are_foreign_or_of_other_views_stand_in_nobodys_way(writer, reader, redis_client, listed):
    if listed:
        writer.expect({VISITS.id: ["h0"]})
    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK, n_5min=3)]))
    for key in ("unskew:clock:main", "unskew:sent:main"):
        redis_client.hset(key, mapping={b"\xff": b"\xff", "stays@1/h0": "?", "": "", "#shards": "?"})
    redis_client.hset("unskew:clock:main", "visits@1/mine", 7)

    assert reader.read(["visits:n_5min"], [{"user": "a"}]).to_dict()["n_5min"] == [3]


@pytest.mark.parametrize(
    "features", [None, 1, [1], [None], [b"visits:n_5min"], [["visits:n_5min"]], range(2), "visits:n_5min"]
)
@pytest.mark.usefixtures("writer")
def test_what_is_no_list_of_references_is_refused(reader, features):
    with pytest.raises(RequestError, match="reference"):
        reader.read(features, [{"user": "a"}])


class Strange:
    def __repr__(self) -> str:
        return "strange"


# A user "a", "1" and "true", a hotel 7 and one past 2^53. What a key reads, or None if it is refused.
STRING_KEYS = [
    ("a", 3), (b"a", 3), (np.str_("a"), 3), (1, 5), (np.int64(1), 5), ("", 0), ("a\x00b", 0), (2**70, 0),
    (True, None), (np.bool_(True), None), (1.0, None), (np.float64(1), None), (Decimal(1), None), ("\ud800", None),
    (b"\xff", None), (["a"], None), ({"a": 1}, None), (dt.date(2020, 1, 1), None),
    (np.datetime64("2020-01-01"), None), (Strange(), None),
]  # fmt: skip
INTEGER_KEYS = [
    (7, 40), (7.0, 40), ("7", 40), (np.int32(7), 40), (np.float32(7), 40), (Decimal(7), 40), (2**53 + 1, 9),
    (Decimal(2**53 + 1), 9), (2.0**53, 0), (2**63 - 1, 0), (True, None), (np.bool_(True), None), (7.5, None), (2.0**53 + 2, None),
    (math.inf, None), (2**63, None), (2**70, None), (Decimal("7.5"), None), ("07", None), (" 7", None), ("7.0", None),
    ("٧", None), ("1_0", None), (b"7", None), ([7], None), ("\ud800", None), (dt.timedelta(1), None), (Strange(), None),
]  # fmt: skip


@pytest.mark.parametrize(("column", "key", "expected"), [
    *(("user", key, expected) for key, expected in STRING_KEYS),
    *(("hotel", key, expected) for key, expected in INTEGER_KEYS),
])  # fmt: skip
def test_a_key_of_any_type_is_exact_or_refused_with_its_row_and_column(writer, reader, column, key, expected):
    write(
        writer,
        closing(VISITS, CLOCK, [row(user, CLOCK, n_5min=n) for user, n in (("a", 3), ("1", 5), ("true", 8))]),
        closing(
            STAYS,
            CLOCK,
            [{"key": f"a|{hotel}", "nights": n, "_at": CLOCK} for hotel, n in ((7, 40), (2**53 + 1, 9), (1, 5))],
        ),
    )
    feature = "visits:n_5min" if column == "user" else "stays:nights"
    one = {"user": "a", column: key}
    known = {"user": "a"} if column == "user" else {"user": "a", "hotel": 7}

    if expected is None:
        for number, rows in enumerate(([one], [known, one], [known, known, one])):
            with pytest.raises(RequestError) as caught:
                reader.read([feature], rows)
            assert f"{column!r}" in str(caught.value)
            assert f"row {number}" in str(caught.value)
        return
    assert reader.read([feature], [one]).to_dict()[feature.partition(":")[2]] == [expected]


@pytest.mark.parametrize("nothing", [None, math.nan, pd.NA, pd.NaT])
def test_a_row_without_a_key_has_nulls_and_says_so(writer, reader, nothing):
    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK, n_5min=3)]))

    answer = reader.read(["visits:n_5min", "visits:mean_1d"], [{"user": "a"}, {"user": nothing}, {"other": 1}])

    assert answer.to_dict()["n_5min"] == [3, None, None]
    assert answer.to_dict()["mean_1d"] == [-1.0, None, None]
    assert judged(answer)[1:] == [(None, "no_key", False)] * 2


@pytest.mark.parametrize(("rows", "message"), [
    ([{}], "key 'user' is not among the given columns"),
    ([{"user": "a"}, 1], "row 1 is 1; each row must be a dict"),
    ({"user": ["a"]}, "this is dict"),
    (None, "this is NoneType"),
    ("a", "this is str"),
])  # fmt: skip
@pytest.mark.usefixtures("writer")
def test_rows_that_are_no_table_are_refused(reader, rows, message):
    with pytest.raises(RequestError, match=message):
        reader.read(["visits:n_5min"], rows)


@pytest.mark.usefixtures("writer")
def test_keys_of_rows_are_those_of_a_frame(reader):
    rows = [
        {"user": user, "hotel": hotel}
        for user in ("a", "", "%", "a|b", "ü", "\U0001f600", "a b", "x" * 300, "\x00", "+", "~")
        for hotel in (0, -1, 2**63 - 1, -(2**63))
    ]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "hotel": pl.Int64})

    keys = [reader.read(["stays:nights"], table)._answers[0].keys for table in (rows, frame)]

    assert keys[0] == keys[1]


def test_a_reader_notices_a_new_registry_whether_or_not_its_publisher_came_to_the_end(writer, reader, redis_client):
    write(writer, closing(VISITS, CLOCK))
    ask = ["visits:n_5min"], [{"user": "a"}]
    first = reader.read(*ask)
    retyped = view(Wanted("n_5min", "sum", sliding(5 * MINUTE, MINUTE), "x"), name="visits")
    text = json.dumps(describe(Plan(streams={}, views={"visits": retyped})))

    # As if it was killed between the two.
    redis_client.delete(revision_key("unskew"))
    redis_client.set(registry_key("unskew"), text)

    assert first.to_polars().schema["n_5min"] == pl.Int64
    assert reader.read(*ask).to_polars().schema["n_5min"] == pl.Float64
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"visits": VISITS}))))
    assert reader.read(*ask).to_polars().schema["n_5min"] == pl.Int64


def test_a_reader_follows_shards_that_change_under_it(writer, reader):
    for shards in (["h0"], ["h0", "h1", "h2"], ["h0", "h1"]):
        writer.expect({VISITS.id: shards})
        write(writer, *(closing(VISITS, CLOCK + len(shards), shard=shard) for shard in shards))

        found = judged(reader.read(["visits:n_5min"], [{"user": f"u{i}"} for i in range(20)]))

        assert found == [(CLOCK + len(shards), "default", False)] * 20


def test_readers_of_one_client_leave_its_connections_to_others(writer, redis_url):
    import redis

    write(writer, closing(VISITS, CLOCK))
    with redis.Redis.from_url(redis_url, max_connections=1) as client:
        readers = [OnlineReader(client) for _ in range(3)]
        for reader in readers * 2:
            assert reader.read(["visits:n_5min"], [{"user": "a"}]).to_dict()["n_5min"] == [0]
            assert client.ping()


def test_a_read_goes_on_over_another_connection_when_the_server_closed_its_own(writer, redis_client, redis_url):
    import redis

    write(writer, closing(VISITS, CLOCK))
    with redis.Redis.from_url(redis_url, client_name="reader") as client:
        reader = OnlineReader(client)
        for _ in range(3):
            assert reader.read(["visits:n_5min"], [{"user": "a"}]).to_dict()["n_5min"] == [0]
            (own,) = [one["id"] for one in redis_client.client_list() if one["name"] == "reader"]
            redis_client.client_kill_filter(_id=own)


def test_a_large_read_is_as_many_small_ones(writer, reader):
    users = [f"u{i}" for i in range(6_000)]
    write(writer, closing(VISITS, CLOCK, [row(user, CLOCK, n_5min=i) for i, user in enumerate(users)]))

    answer = reader.read(["visits:n_5min", "visits:mean_1d"], [{"user": user} for user in users]).to_dict()

    assert answer["n_5min"] == list(range(6_000))


# What many rows are judged by at once must be what each is judged by alone: all alike, and mixed.
@pytest.mark.parametrize("max_lag_us", [None, HOUR])
@pytest.mark.parametrize("partitioned", [False, True])
def test_rows_that_are_read_together_say_what_each_says_alone(redis_client, partitioned, max_lag_us):
    views = with_partitions(VISITS) if partitioned else {VISITS.name: VISITS.published}
    reader = OnlineReader(redis_client, views=views, max_lag_us=max_lag_us, now_us=lambda: CLOCK + 2 * HOUR)
    kept = {"passed": CLOCK - 1, "past": CLOCK - 5, "ahead": CLOCK + 5, "later": CLOCK + 2 * HOUR}
    rows = [row(key, at, n_5min=0 if key == "past" else 1, mean_1d=0.5) for key, at in kept.items()]
    shards = ("p0.0", "p1.0") if partitioned else ("h0", "h1")
    write(
        RedisWriter(redis_client, "unskew", "main"),
        closing(VISITS, CLOCK, rows, shard=shards[0], since_us=CLOCK - DAY),
        closing(VISITS, CLOCK + HOUR, shard=shards[1], since_us=CLOCK - 5 * MINUTE),
    )
    references = ["visits:n_5min", "visits:mean_1d"]

    def said(users):
        answer = reader.read(references, [{"user": user} for user in users], with_status=True)
        columns = answer.to_dict()
        each = zip(*(columns[name] for name in columns if name != "user"), strict=True)
        return list(zip(each, judged(answer), answer.compared_at["visits"], strict=True))

    alone = {user: said([user])[0] for user in (*kept, "nobody", None)}

    for users in (["passed", "past"], ["ahead", "later"], ["nobody"] * 3, [None, None], ["past", "past"], [*alone]):
        assert said(users) == [alone[user] for user in users]
    statuses = {judgement[1] for _, judgement, _ in alone.values()}
    assert statuses >= {"no_key", "warming" if max_lag_us is None else "lagging"}


def test_threads_share_a_reader(writer, reader):
    write(writer, closing(VISITS, CLOCK, [row(f"u{i}", CLOCK, n_5min=i) for i in range(50)]))

    def read(number):
        asked = [{"user": f"u{(number + i) % 50}"} for i in range(5)]
        return [reader.read(["visits:n_5min"], asked).to_dict()["n_5min"] for _ in range(20)]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(50)))

    assert found == [[[(number + i) % 50 for i in range(5)]] * 20 for number in range(50)]


def test_an_answer_from_the_cache_is_that_of_its_instant_and_never_older_than_said(writer, redis_url):
    now_us, now_s = CLOCK + HOUR, 100.0
    reader = OnlineReader(redis_url, now_us=lambda: now_us, cache_s=2.0)
    reader._cache.now_s = lambda: now_s
    references = ["visits:n_5min", "visits:mean_1d"]

    def read(*users, features=references):
        answer = reader.read(features, [{"user": user, "other": now_s} for user in users])
        return (
            answer.to_dict()["n_5min"],
            judged(answer),
            round(answer.now.timestamp() * 1e6),
            answer.to_dict()["other"],
        )

    write(writer, closing(VISITS, CLOCK, [row("a", CLOCK - 5, n_5min=1), row("b", CLOCK - 5, n_5min=7)]))
    first = [(CLOCK, "present", False)]
    assert read("a") == ([1], first, CLOCK + HOUR, [100.0])
    write(writer, closing(VISITS, CLOCK + 9, [row("a", CLOCK + 3, n_5min=2)]))
    then, now_us, now_s = now_us, now_us + 2_000_000, 102.0

    # Columns that are passed through are those of this request; everything else is of then.
    assert read("a") == ([1], first, then, [102.0])
    # Other entities, the same one beside another, and other features were not read then.
    fresh = [(CLOCK + 9, "present", False)]
    assert read("b") == ([7], fresh, now_us, [102.0])
    assert read("a", "b")[:2] == ([2, 7], fresh * 2)
    assert read("a", features=references[:1])[:2] == ([2], fresh)
    now_s = 102.1
    assert read("a") == ([2], fresh, now_us, [102.1])
    reader.close()


@pytest.mark.usefixtures("orders")
def test_who_changes_an_answer_from_the_cache_changes_no_other(redis_client):
    reader = OnlineReader(redis_client, cache_s=3600.0)
    ask = ["orders:counts", "orders:n_by_shop"], [{"user": "full"}]
    for _ in range(3):
        found = reader.read(*ask).to_dict()
        assert (found["counts"], found["n_by_shop"]) == ([FULL["counts"]], [FULL["n_by_shop"]])
        found["counts"][0].clear()
        found["n_by_shop"][0].clear()


def test_a_cache_is_bounded_by_rows_and_a_failed_read_is_not_kept(writer, redis_url, monkeypatch):
    from unskew.serving import cached

    monkeypatch.setattr(cached, "MOST_ROWS", 10)
    write(writer, closing(VISITS, CLOCK, [row(f"u{i}", CLOCK, n_5min=i) for i in range(30)]))
    reader = OnlineReader(redis_url, cache_s=3600.0)
    asked = []
    exchange = reader._lines.ask
    reader._lines.ask = lambda *steps: asked.append(steps) or exchange(*steps)

    def read(*numbers):
        del asked[:]
        answer = reader.read(["visits:n_5min"], [{"user": f"u{n}"} for n in numbers])
        assert answer.to_dict()["n_5min"] == list(numbers)
        return len(asked)

    read(*range(4))
    assert [read(*range(4)), read(*range(4, 10)), read(*range(4)), read(*range(4, 10))] == [0, 1, 0, 0]
    # One more row, and the answer goes that was used least recently.
    assert [read(10), read(*range(4, 10)), read(10), read(*range(4))] == [1, 0, 0, 1]
    assert [read(*range(11)), read(*range(11))] == [1, 1]
    with pytest.raises(StoreUnavailable):
        OnlineReader("redis://127.0.0.1:1/0", cache_s=3600.0).read(["visits:n_5min"], [{"user": "a"}])
    reader.close()
