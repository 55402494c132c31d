import functools
import math
from itertools import product

import msgspec
import polars as pl
import pytest

from tests.support.definitions import COUNT, SCHEMA, stream, view
from tests.support.plans import republished
from unskew import (
    Calendar,
    DefinitionError,
    Derived,
    Entity,
    Feature,
    FeatureView,
    OnDemand,
    Service,
    Sessions,
    Sliding,
    Table,
    Tumbling,
    agg,
    compile,
)
from unskew.features.definitions.compile import LOG_COLUMNS
from unskew.features.plan import FeaturePlan
from unskew.sinks.tables.layout import log_schema

HOUR = Sliding("1h")


def planned(*features: Feature, **changes: object) -> tuple[FeaturePlan, ...]:
    return compile(view(*features, **changes)).views["purchases"].features


def faults_of(*definitions: object) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        compile(*definitions)
    return caught.value.faults


@pytest.mark.parametrize(
    ("aggregation", "dtype", "empty"),
    [
        (agg.count(), "int64", 0),
        (agg.sum("n_items"), "int64", 0),
        (agg.sum("online"), "int64", 0),
        (agg.sum("amount"), "float64", 0.0),
        (agg.sum("price"), "float64", 0.0),
        (agg.mean("n_items"), "float64", None),
        (agg.mean("online"), "float64", None),
        (agg.min("n_items"), "int64", None),
        (agg.max("price"), "float64", None),
        (agg.max("online"), "bool", None),
        (agg.last("transaction_id"), "int64", None),
        (agg.last("online"), "bool", None),
        (agg.sum(pl.col("n_items") * 2), "int64", 0),
    ],
)
def test_result_type_and_empty_value_follow_from_function_and_value(aggregation, dtype, empty):
    (feature,) = planned(Feature("x", aggregation, HOUR))

    assert (str(feature.dtype), feature.published.empty, type(feature.published.empty)) == (dtype, empty, type(empty))


@pytest.mark.parametrize("value", ["n_items", "price", "online", "shop_id", "amount * 2"])
def test_values_are_evaluated_in_the_type_the_plan_says(value):
    plan = compile(view(Feature("x", agg.max(value), HOUR))).views["purchases"]
    frame = pl.DataFrame(schema=dict(plan.stream.columns))

    assert frame.select(plan.values[0].expr).dtypes == [plan.values[0].dtype.polars]


def test_equal_filters_values_and_windows_are_numbered_once():
    plan = compile(
        view(
            Feature("a", agg.sum("amount"), Sliding("1h"), filter="status = 'completed'"),
            Feature("b", agg.mean("amount"), Sliding("60min", hop="10s"), where="status  =  'completed'"),
            Feature("c", agg.max("n_items"), Tumbling("1h")),
            Feature("d", agg.count(), Calendar("day")),
            where="online",
        )
    ).views["purchases"]

    assert [each.text for each in plan.filters] == ["status = 'completed'"]
    assert [each.text for each in plan.values] == ["amount", "n_items"]
    assert [each.text for each in plan.windows] == ["sliding(1h,hop=10s)", "tumbling(1h)", "calendar(day,UTC)"]
    assert [(f.window, f.filter, f.value) for f in plan.features] == [(0, 0, 0), (0, 0, 0), (1, -1, 1), (2, -1, -1)]
    assert plan.where is not None
    assert plan.where.text == "online"


def test_filter_and_where_are_the_same_thing():
    by_where = compile(view(Feature("n", agg.count(), HOUR, where="online"), where="n_items > 1")).views["purchases"]
    by_filter = compile(view(Feature("n", agg.count(), HOUR, filter="online"), filter="n_items > 1")).views["purchases"]

    assert by_where.state_fingerprint == by_filter.state_fingerprint


def test_key_types_come_from_the_schema():
    plan = compile(view(entity=Entity("pair", key=["shop_id", "user_id"]))).views["purchases"]

    assert plan.entity.keys == ("shop_id", "user_id")
    assert plan.entity.types == ("int64", "string")
    assert not plan.partitioned
    assert compile(view()).views["purchases"].partitioned
    assert not compile(view(stream=stream(partitioned_by=None))).views["purchases"].partitioned


def test_stream_without_a_declared_settle_has_none():
    assert compile(stream()).streams["transactions"].settle_us is None
    assert compile(stream(settle="2s", max_age="30d")).streams["transactions"].settle_us == 2_000_000


def test_how_far_ahead_a_timestamp_may_lie_is_five_seconds_if_left_out_and_no_part_of_the_state():
    ahead = compile(view(stream=stream(max_ahead="1h")))

    assert compile(view()).streams["transactions"].max_ahead_us == 5_000_000
    assert ahead.streams["transactions"].max_ahead_us == 3_600_000_000
    assert compile(stream(max_ahead="0s")).streams["transactions"].max_ahead_us == 0
    assert ahead.views["purchases"].state_fingerprint == compile(view()).views["purchases"].state_fingerprint


def test_an_id_without_a_time_within_which_it_repeats_changes_nothing():
    plain = compile(view()).views["purchases"]
    named = compile(view(stream=stream(event_id="transaction_id"))).views["purchases"]
    within = {
        compile(view(stream=stream(event_id=column, dedupe_within=time))).views["purchases"].state_fingerprint
        for column in ("transaction_id", "user_id")
        for time in ("1d", "2d")
    }

    assert named.stream.dedupe_within_us is None
    assert named.state_fingerprint == plain.state_fingerprint
    assert len(within) == 4


def test_feature_owner_is_the_views_where_it_has_none():
    features = planned(COUNT, Feature("m", agg.count(), HOUR, owner="risk"), owner="growth")

    assert [feature.published.owner for feature in features] == ["growth", "risk"]


def test_definition_met_twice_is_one_and_two_of_a_name_are_a_fault():
    again = view(Feature("n", agg.sum(pl.col("amount")), HOUR))
    same = view(Feature("n", agg.sum(pl.col("amount")), HOUR))
    other = view(Feature("n", agg.sum(pl.col("price")), HOUR))

    assert list(compile(again, same, [again]).views) == ["purchases"]
    assert faults_of(again, other) == [
        "view purchases: version 1 is defined twice, with differences; rename or remove one, or give one another version"
    ]
    assert faults_of(stream(), stream(topic="t2")) == [
        "stream transactions: it is defined twice, with differences; rename or remove one"
    ]


def test_two_streams_of_one_topic_are_a_fault():
    assert faults_of(stream(), stream(name="again")) == [
        "stream again: its topic transactions already belongs to the stream transactions; use that stream, or an alias of it"
    ]


def test_entity_and_stream_resolve_by_name_key_and_alias():
    user, source = Entity("user", key="user_id"), stream(aliases=["transactions_table"])

    for entity, name in product(["user", "user_id", ["user_id"]], ["transactions", "transactions_table"]):
        plan = compile(user, source, view(entity=entity, stream=name)).views["purchases"]
        assert (plan.entity.name, plan.stream.name) == ("user", "transactions")


@pytest.mark.parametrize(
    ("feature", "fault"),
    [
        (
            Feature("_n", agg.count(), HOUR),
            "purchases._n: the name is not allowed; use letters, digits and _, and begin with a letter",
        ),
        (Feature("n n", agg.count(), HOUR), "purchases.n n: the name is not allowed"),
        (Feature("seq", agg.count(), HOUR), "purchases.seq: a column of the log has this name; rename the feature"),
        (Feature("user_id", agg.count(), HOUR), "purchases.user_id: a key column of the entity has this name"),
        (
            Feature("n", agg.count(), Sliding("30d", hop="7h")),
            "purchases.n: hop 7h does not divide the window 30d; choose a divisor",
        ),
        (Feature("n", agg.count(), Calendar("day", tz="Mars")), "purchases.n: 'Mars' is not a time zone"),
        (Feature("n", agg.count(), "30d"), "purchases.n: '30d' is not a window"),
        (Feature("n", "count", HOUR), "purchases.n: 'count' is not an aggregation; use one of agg.count"),
        (
            Feature("n", agg.Aggregation("median", "amount"), HOUR),
            "purchases.n: no aggregation is called 'median'; did you mean 'quantile'?",
        ),
        (Feature("n", agg.Aggregation("sum"), HOUR), "purchases.n: sum needs a value"),
        (
            Feature("n", agg.Aggregation("first_time", "amount"), HOUR),
            "purchases.n: first_time takes no value; leave it",
        ),
        (
            Feature("n", agg.sum("amont"), HOUR),
            "purchases.n: value: the stream has no column 'amont'; did you mean 'amount'?",
        ),
        (
            Feature("n", agg.sum("status"), HOUR),
            "purchases.n: value: 'status' is String; sum takes int64, float64, bool and decimal",
        ),
        (
            Feature("n", agg.max("note"), HOUR),
            "purchases.n: value: 'note' is Binary; max takes numbers, bool, strings and UTC timestamps",
        ),
        (
            Feature("n", agg.count(), HOUR, filter="amount"),
            "purchases.n: filter: 'amount' is Float64, not Boolean",
        ),
        (
            Feature("n", agg.count(), HOUR, filter="sum(amount) > 1"),
            "purchases.n: filter: it contains an aggregate over rows",
        ),
        (Feature("n", agg.count(), HOUR, filter="online", where="online"), "purchases.n: it has both where and filter"),
        (
            Feature("n", agg.count(), HOUR, type="float64"),
            "purchases.n: its type is declared as 'float64', but count gives int64 here",
        ),
        (
            Feature("n", agg.count(), HOUR, type="integer"),
            "purchases.n: its type is declared as 'integer', but count gives int64 here; types are",
        ),
        (
            Feature("n", agg.min("amount"), HOUR, default=math.nan),
            "purchases.n: the default nan is not of type float64; leave it out for null",
        ),
        (
            Feature("n", agg.min("amount"), HOUR, default="0"),
            "purchases.n: the default '0' is not of type float64; give a value of type float64",
        ),
        (Feature("n", agg.min("n_items"), HOUR, default=1.5), "purchases.n: the default 1.5 is not of type int64"),
        (Feature("n", agg.min("n_items"), HOUR, default=True), "purchases.n: the default True is not of type int64"),
        (
            Feature("n", agg.min("n_items"), HOUR, default=2**63),
            "purchases.n: the default 9223372036854775808 is not of type int64",
        ),
        (Feature("n", agg.max("online"), HOUR, default=1), "purchases.n: the default 1 is not of type bool"),
        (Feature("n", agg.count(), HOUR, default=-1), "purchases.n: the default -1 would never be used"),
        (Feature("n", agg.count(), HOUR, description=7), "purchases.n: description: 7 is not text"),
        ("n", "purchases: 'n' is not a feature; give Feature and Derived objects"),
    ],
)
def test_feature_that_cannot_be_is_a_fault_with_a_remedy(feature, fault):
    faults = faults_of(view(feature, COUNT) if feature == "n" else view(feature))

    assert len(faults) == 1
    assert faults[0].startswith(fault)
    assert "; " in faults[0]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "Purchases"}, "Purchases: the name is not allowed"),
        ({"name": "registry"}, "registry: the name is reserved; rename the view"),
        ({"name": "clock"}, "clock: the name is reserved; rename the view"),
        ({"name": ""}, "view '': it has no name"),
        ({"version": 0}, "purchases: version 0 is not a positive whole number"),
        ({"version": True}, "purchases: version True is not a positive whole number"),
        ({"version": 10**30}, "purchases: version 1000000000000000000000000000000 is not a positive whole number"),
        ({"features": []}, "purchases: it has no features"),
        ({"features": "count"}, "purchases: features='count' is not a list"),
        (
            {"features": [Feature(f"n{i}", agg.count(), HOUR) for i in range(65)]},
            "purchases: it has 65 features, more than 64",
        ),
        ({"features": [COUNT, COUNT]}, "purchases.n: the name is used twice"),
        ({"features": [Feature("day", agg.count(), HOUR)]}, "purchases.day: a column of the log has this name"),
        (
            {"features": [Feature("Written_At", agg.count(), HOUR)]},
            "purchases.Written_At: a column of the log has this",
        ),
        ({"features": [COUNT, Derived("SEQ", "n")]}, "purchases.SEQ: a column of the log has this name"),
        (
            {"features": [COUNT, Feature("N", agg.count(), HOUR)]},
            "purchases.N: the name differs from n only in",
        ),
        ({"stream": "transaction"}, "purchases: no stream is called 'transaction'; did you mean 'transactions'?"),
        ({"entity": "usr"}, "purchases: no entity has the name or key 'usr'; did you mean 'user'?"),
        (
            {"entity": Entity("shop", key="shop")},
            "purchases: entity shop: key: the stream has no column 'shop'; did you mean 'shop_id'?",
        ),
        (
            {"entity": Entity("e", key="amount")},
            "purchases: entity e: the key column 'amount' is Float64; keys are whole numbers or strings",
        ),
        (
            {"entity": Entity("e", key="note")},
            "purchases: entity e: the key column 'note' is Binary; keys are whole numbers or strings",
        ),
        (
            {"entity": Entity("e", key="event_time")},
            "purchases: entity e: the key column 'event_time' has the name of a column of the log",
        ),
        (
            {"entity": Entity("e", key="available_at")},
            "purchases: entity e: the key column 'available_at' has the name of a column of the log",
        ),
        (
            {"entity": Entity("e", key=["user_id", "user_id"])},
            "purchases: entity e: key ['user_id', 'user_id'] is not a column name",
        ),
        (
            {"entity": Entity("e", key="Shard"), "stream": stream(name="keyed", topic="keyed", key_column="Shard")},
            "purchases: entity e: the key column 'Shard' has the name of a column of the log",
        ),
        (
            {
                "entity": Entity("e", key=["user_id", "User_Id"]),
                "stream": stream(name="keyed", topic="keyed", key_column="User_Id"),
            },
            "purchases: entity e: key ['user_id', 'User_Id'] names columns that differ only in upper and lower case",
        ),
        ({"entity": Entity("e", key=7)}, "purchases: entity e: key 7 is not a column name"),
        (
            {"entity": Entity("e", key="user_id", type="int64")},
            "purchases: entity e: its type is declared as 'int64', but the stream has string",
        ),
        ({"where": "amount > now()"}, "purchases: filter: now() reads a clock"),
        ({"where": "online", "filter": "online"}, "purchases: it has both where and filter"),
        ({"owner": None}, "purchases: owner: None is not text"),
    ],
)
def test_view_that_cannot_be_is_a_fault_with_a_remedy(changes, fault):
    faults = faults_of(Entity("user", key="user_id"), stream(), view(**changes))

    assert faults[0].startswith(fault)
    assert all("; " in each for each in faults)


@pytest.mark.parametrize(
    ("sessions", "fault"),
    [
        ({"stream": "nowhere"}, "sessions visits: no stream is called 'nowhere'"),
        ({"gap": 30}, "sessions visits: 30 has no unit"),
        ({"gap": "30min", "hop": "7min"}, "sessions visits: hop 7min does not divide the window 30min"),
        ({"values": {"spend": agg.sum("amuont")}}, "sessions visits: spend: value: the stream has no column 'amuont'"),
        (
            {"values": {"Start": agg.sum("amount")}},
            "sessions visits: the column name 'Start' is not allowed or already",
        ),
    ],
)
def test_sessions_that_no_view_is_over_are_checked_too(sessions, fault):
    given = {"name": "visits", "stream": "transactions", "gap": "30min"} | sessions

    assert [each for each in faults_of(stream(), Sessions(**given)) if each.startswith(fault)]


@pytest.mark.parametrize("n_levels", [150, 3_000])
def test_a_deep_schema_is_a_fault(n_levels):
    inner = '{"type":"array","items":' * n_levels + '"int"' + "}" * n_levels
    text = f'{{"type":"record","name":"R","fields":[{{"name":"a","type":{inner}}}]}}'
    deep = '{"properties":{"a":' * n_levels + "{}" + "}}" * n_levels
    json_schema = f'{{"type":"object","properties":{{"a":{deep}}}}}'

    for given in (stream(schema=text), stream(schema=json_schema, format="json")):
        assert "the schema's text is nested more than 100 levels deep" in faults_of(given)[0]
    parsed = functools.reduce(lambda inner, _: {"type": "array", "items": inner}, range(n_levels), "int")
    assert "the schema is nested more than 100 levels deep" in faults_of(stream(schema={"type": parsed}))[0]


def test_an_alias_that_is_another_streams_name_is_a_fault():
    other = stream(name="other", topic="other", aliases=["transactions"])

    assert faults_of(stream(), other) == [
        "stream other: its alias transactions is the name of another stream; leave the alias out"
    ]


def test_every_column_of_the_log_is_refused_as_a_feature_or_key():
    plan = compile(view(COUNT)).views["purchases"]

    assert {*log_schema(plan)} - {"user_id", "n"} <= LOG_COLUMNS


def test_a_value_that_cannot_even_be_shown_is_a_fault_and_not_a_crash():
    long = 10**5000  # Python does not write numbers of so many digits

    assert faults_of(view(version=long))[0].startswith(
        "purchases: version a value of type int that cannot be shown (ValueError) is not a positive whole number"
    )
    for feature in (
        Feature("n", agg.quantile("amount", long), HOUR),
        Feature("n", agg.last_n("amount", long), HOUR),
        Feature("n", agg.max("amount"), HOUR, default=long),
        Feature("n", agg.count(), HOUR, type=long),
        Feature("n", agg.histogram("amount", [long]), HOUR),
        Feature("n", agg.sum(long), HOUR),
        Feature(long, agg.count(), HOUR),
    ):
        assert len(faults_of(view(feature))) == 1
    assert faults_of(stream(max_age=long))
    assert faults_of(stream(topic=long))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"topic": "a topic"}, "stream transactions: 'a topic' is not a topic name"),
        ({"topic": ".."}, "stream transactions: '..' is not a topic name"),
        ({"event_time": "at"}, "stream transactions: event_time: the stream has no column 'at'"),
        (
            {"event_time": "transaction_id"},
            "stream transactions: event_time: column 'transaction_id' is Int64; say what it holds with read_as={'transaction_id': 'unix-ms'}, or give it the Avro",
        ),
        (
            {"event_time": "user_id"},
            "stream transactions: event_time: column 'user_id' is String; say what it holds with read_as={'user_id': 'iso'}, or",
        ),
        (
            {"event_time": "online"},
            "stream transactions: event_time: column 'online' is Boolean; give it the Avro logical type",
        ),
        ({"event_id": "tid"}, "stream transactions: event_id: the stream has no column 'tid'"),
        (
            {"partitioned_by": ["user"]},
            "stream transactions: partitioned_by: the stream has no column 'user'; did you mean 'user_id'?",
        ),
        ({"partitioned_by": 3}, "stream transactions: partitioned_by=3 is not a column name"),
        ({"aliases": 3}, "stream transactions: aliases=3 is not a list of names"),
        ({"settle": 1}, "stream transactions: settle: 1 has no unit; write a duration as text"),
        ({"max_age": 30}, "stream transactions: max_age: 30 has no unit"),
        ({"settle": "soon"}, "stream transactions: settle: 'soon' is not a duration"),
        ({"max_ahead": "soon"}, "stream transactions: max_ahead: 'soon' is not a duration"),
        ({"max_age": "0s"}, "stream transactions: max_age is 0"),
        ({"dedupe_within": "1d"}, "stream transactions: dedupe_within needs an event_id"),
        (
            {"event_id": "transaction_id", "dedupe_within": "0s"},
            "stream transactions: dedupe_within is '0s', and nothing can repeat within that",
        ),
        (
            {"event_id": "transaction_id", "dedupe_within": "long"},
            "stream transactions: dedupe_within: 'long' is not a duration",
        ),
        (
            {"event_id": "amount", "dedupe_within": "1d"},
            "stream transactions: event_id: column 'amount' is Float64; to drop repeats",
        ),
        *[
            (
                {"schema_ids": ids},
                f"stream transactions: schema_ids={ids!r} is not a list of different schema ids; they are whole numbers",
            )
            for ids in ([-1], [2**32], [7, 7], [True], "7", None)
        ],
        # The schema of an unknown format is not read, so it has no fault of its own.
        ({"format": "csv"}, "stream transactions: format='csv' is not known; write one of avro, json"),
        ({"format": "csv", "schema": "nowhere.csv"}, "stream transactions: format='csv' is not known"),
        ({"format": ["json"], "schema": 3}, "stream transactions: format=['json'] is not known"),
        ({"format": None}, "stream transactions: format=None is not known"),
        # What has no effect by itself.
        ({"key_format": "int32"}, "stream transactions: key_format='int32' has no effect without key_column"),
        (
            {"operations": ["c", "u"]},
            "stream transactions: operations and other_operations are for envelope='debezium'",
        ),
        ({"other_operations": "dead_letter"}, "stream transactions: operations and other_operations are for envelope="),
        (
            {"envelope": "debezium", "records": "Row"},
            "stream transactions: records has no effect with envelope='debezium'",
        ),
        ({"owner": 5}, "stream transactions: owner: 5 is not text"),
        ({"description": ["a"]}, "stream transactions: description: ['a'] is not text"),
        ({"schema": "nowhere.avsc"}, "stream transactions: the schema file nowhere.avsc cannot be read"),
        ({"schema": "/dev/zero"}, "stream transactions: the schema file /dev/zero is not a file"),
        ({"schema": "{"}, "stream transactions: the schema's text is not JSON"),
        ({"schema": 3}, "stream transactions: the schema 3 is not a path, JSON text or a JSON object"),
        ({"schema": {}}, "stream transactions: the Avro schema has no type; give a record"),
        (
            {"schema": {"type": "record", "name": "R", "fields": [{"name": "a", "type": [None, "double"]}]}},
            "stream transactions: a type of the Avro schema is null without quotes",
        ),
        (
            {"format": "json", "schema": {"type": "object", "properties": {"a": {"type": "strin"}}}},
            "stream transactions: property 'a' has the type 'strin'; did you mean 'string'?",
        ),
        ({"schema": {"type": "record"}}, "stream transactions: the Avro schema is not valid"),
    ],
)
def test_stream_that_cannot_be_is_a_fault(changes, fault):
    faults = faults_of(stream(**changes))

    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("d + 1", "'d' is this feature itself; name other features of the view"),
        ("coalesce(d, n)", "'d' is this feature itself"),
        ("e + 1", "'e' is derived too; write its expression out here"),
        ("lasts + 1", "'lasts' is list[float64], and a derived feature takes single values; leave it out"),
        ("m + 1", "the view has no other single-valued feature 'm'; it has n"),
    ],
)
def test_a_derived_feature_of_what_it_cannot_read_says_why(expression, fault):
    faults = faults_of(
        view(
            Feature("n", agg.count(), HOUR),
            Feature("lasts", agg.last_n("amount", 3), HOUR),
            Derived("e", "n + 1"),
            Derived("d", expression),
        )
    )

    assert faults[0].startswith(f"purchases.d: expression: {fault}")


def test_an_event_id_without_dedupe_within_is_only_a_name():
    assert compile(stream(event_id="transaction_id")).streams["transactions"].event_id == "transaction_id"


def test_schema_may_be_json_text():
    text = '{"type": "record", "name": "R", "fields": [{"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}'
    plan = compile(stream(schema=text, event_time="t", partitioned_by=None))

    assert plan.streams["transactions"].columns == {"t": pl.Datetime("us", "UTC")}


def test_all_faults_are_reported_together():
    faults = faults_of(
        stream(name="other", topic="?"),
        view(Feature("_x", agg.sum("amont"), Sliding("30d", hop="7h")), where="rank() OVER (ORDER BY amount) = 1"),
        FeatureView("clock", entity="nobody", stream="nothing", features=[]),
        "purchases",
    )

    assert [fault.partition(";")[0].partition(",")[0] for fault in faults] == [
        "'purchases' is not a definition",
        "stream other: '?' is not a topic name",
        "purchases: filter: it contains the function Rank",
        "purchases._x: the name is not allowed",
        "purchases._x: hop 7h does not divide the window 30d",
        "purchases._x: value: the stream has no column 'amont'",
        "clock: the name is reserved",
        "clock: no stream is called 'nothing'",
        "clock: no entity has the name or key 'nobody'",
        "clock: it has no features",
    ]


def test_views_of_a_stream_with_faults_are_checked_as_far_as_its_columns_are_known():
    faults = faults_of(view(where="amuont > 3", stream=stream(event_time="tyme", settle="soon", partitioned_by="usr")))

    assert [fault.partition(": ")[0] for fault in faults] == ["stream transactions"] * 3 + ["purchases"]
    assert "did you mean 'amount'?" in faults[-1]


def test_a_table_with_faults_hides_nothing_of_its_views():
    table = Table("returns", path="", schema=SCHEMA, event_time="event_time", columns={"amuont": "price"})

    faults = faults_of(view(stream=table, where="amuont > 3"))

    assert [fault.partition(": ")[0] for fault in faults] == ["stream returns"] * 3 + ["purchases"]


def test_views_with_faults_hide_nothing_of_what_reads_views():
    broken = view(Feature("n", agg.sum("amuont"), HOUR))
    whole = msgspec.structs.replace(view(), name="visits")
    wrong = OnDemand(
        "wrong", {"lat": "float64"}, [Derived("twice", "lat * purchases:n"), Derived("bad", "lat * visits:m")]
    )
    service = Service("model", ["purchases:n", "visits:nothing", "visitz:n", "wrong:twice", "purchase:n"])

    faults = faults_of(broken, whole, wrong, service)

    assert [fault.partition(": ")[0] for fault in faults] == ["purchases.n", "on-demand wrong", *["service model"] * 3]
    assert "bad: expression" in faults[1]
    assert "'nothing'" in faults[2]
    assert "no view 'visitz'; did you mean 'visits'?" in faults[3]
    assert "no view 'purchase'; did you mean 'purchases'?" in faults[4]


def test_derived_features_are_checked_unless_they_read_a_feature_with_a_fault():
    faults = faults_of(
        view(
            Feature("n", agg.count(), HOUR),
            Feature("spent", agg.sum("amuont"), HOUR),
            Derived("each", "spent / n"),
            Derived("of_expr", pl.col("spent") / pl.col("n")),
            Derived("wrong", "m + 1"),
        )
    )

    assert [fault.partition(": ")[0] for fault in faults] == ["purchases.spent", "purchases.wrong"]


def test_broken_schema_is_the_only_fault_of_its_views():
    faults = faults_of(view(stream=stream(schema=SCHEMA | {"fields": []}), where="online"))

    assert faults == ["stream transactions: the Avro schema has no fields; give it one for each column"]


def test_default_takes_the_features_type():
    (feature,) = planned(Feature("x", agg.min("amount"), HOUR, default=0))

    assert isinstance(feature.published.default, float)


def test_presentation_changes_leave_the_state_fingerprint():
    plain = compile(view()).views["purchases"]
    dressed = compile(
        view(
            Feature("n", agg.count(), HOUR, description="events", owner="risk", default=0),
            name="bought",
            version=2,
            owner="growth",
            description="what",
        )
    ).views["bought"]

    assert dressed.state_fingerprint == plain.state_fingerprint
    assert dressed.presentation_fingerprint != plain.presentation_fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(view(Feature("m", agg.count(), HOUR)), id="name"),
        pytest.param(view(Feature("n", agg.sum("amount"), HOUR)), id="function"),
        pytest.param(view(Feature("n", agg.count(), Sliding("1h", hop="20s"))), id="hop"),
        pytest.param(view(Feature("n", agg.count(), Tumbling("1h"))), id="window"),
        pytest.param(view(Feature("n", agg.count(), HOUR, filter="online")), id="filter"),
        pytest.param(view(where="online"), id="where"),
        pytest.param(view(entity=Entity("user", key="shop_id")), id="key column"),
        pytest.param(view(entity=Entity("user", key=["user_id", "shop_id"])), id="key columns"),
        pytest.param(view(stream=stream(topic="other")), id="topic"),
        pytest.param(view(stream=stream(partitioned_by=None)), id="partitioned_by"),
        pytest.param(view(stream=stream(max_age="1d")), id="max_age"),
        pytest.param(view(stream=stream(event_id="transaction_id", dedupe_within="1d")), id="repeats"),
    ],
)
def test_whatever_state_depends_on_changes_the_state_fingerprint(changed):
    assert compile(changed).views["purchases"].state_fingerprint != compile(view()).views["purchases"].state_fingerprint


def test_plans_are_immutable():
    plan = compile(view()).views["purchases"]

    with pytest.raises(AttributeError):
        plan.name = "other"  # type: ignore[misc]
    assert republished(plan, version=2).id == "purchases@2"


def test_a_text_is_proven_once_however_many_features_of_a_view_have_it(monkeypatch):
    tried, select = [], pl.DataFrame.select
    monkeypatch.setattr(pl.DataFrame, "select", lambda *given, **more: tried.append(1) or select(*given, **more))

    def n_tried(n_features: int) -> int:
        tried.clear()
        planned(
            *(
                Feature(f"f{n}", agg.sum("amount * 2"), Sliding(f"{n + 1}h"), filter="status = 'completed'")
                for n in range(n_features)
            )
        )
        return len(tried)

    assert n_tried(1) == n_tried(20) > 0


def test_a_column_alone_needs_no_proof(monkeypatch):
    monkeypatch.setattr(pl.DataFrame, "select", lambda *_, **__: pytest.fail("the column was evaluated"))

    (feature,) = planned(Feature("spend", agg.sum("amount"), HOUR))

    assert feature.dtype.scalar == "float64"
