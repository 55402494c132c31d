"""On-demand features as users define them: what compiles, with which types, and what is refused with which words."""

import polars as pl
import pytest

from tests.support.definitions import view
from tests.support.on_demand import CHECKOUT, PLAN
from unskew import DefinitionError, Derived, Feature, LayoutError, Lifetime, OnDemand, Sliding, agg, compile, haversine
from unskew.features.definitions.load import load_definitions
from unskew.features.definitions.on_demand import computed
from unskew.features.on_request import wanted
from unskew.features.registry import Published, describe, parse
from unskew.features.types import Type

VIEW = view(
    Feature("at", agg.last_time(), Lifetime()),
    Feature("mean", agg.mean("amount"), Sliding("1h"), default=2.0),
    Feature("n", agg.count(), Lifetime()),
    Feature("tops", agg.top_k("status", 2), Lifetime()),
)
VIEWS = compile(VIEW).published
INPUTS = {
    "x": Type("float64"),
    "i": Type("int64"),
    "q": Type("string"),
    "t": Type("timestamp"),
    "d": Type("decimal", 2),
    "b": Type("bool"),
}


@pytest.mark.parametrize(
    ("text", "dtype", "reads"),
    [
        ("seconds_between(purchases:at, now)", "float64", {"purchases:at", "now"}),
        ("Seconds_Between(t, TIMESTAMP '2026-01-01 00:00:00') / 60", "float64", {"t"}),
        ("haversine(x, 1, purchases@1:mean, i)", "float64", {"x", "purchases@1:mean", "i"}),
        ("haversine(haversine(x, 0, 0, 0), coalesce(d, 0), 1, 1)", "float64", {"x", "d"}),
        ("char_length(q)", "int64", {"q"}),
        ("i * 3 + purchases:n", "int64", {"i", "purchases:n"}),
        ("i / 7", "float64", {"i"}),
        ("d * 2", "decimal(38,2)", {"d"}),
        ("q || ' a:b purchases:nothing'", "string", {"q"}),
        ("q = 'it''s a:b' -- c:d\n", "bool", {"q"}),
        ('"purchases:mean" > x AND b', "bool", {"purchases:mean", "x", "b"}),
        ("now - INTERVAL '5 minutes' > t", "bool", {"now", "t"}),
        ("now", "timestamp", {"now"}),
        ("x::double", "float64", {"x"}),
    ],
)
def test_types_and_what_is_read_follow_from_the_text(text, dtype, reads):
    found = computed(text, INPUTS, VIEWS)

    assert (str(found.dtype), set(found.reads)) == (dtype, reads)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x + purchases:meen", "purchases has no feature 'meen'; did you mean 'mean'?"),
        ("x + purchase:mean", "there is no view 'purchase'; did you mean 'purchases'?"),
        ("x + purchases@2:mean", "view 'purchases' has no version '2'; there is purchases@1"),
        ("purchases:tops", "purchases:tops is list[string], and an on-demand feature takes single values"),
        ("xx + 1", "there is no input and no feature view:feature called 'xx'; did you mean 'x'?"),
        ('"(0)" || seconds_between(t, now)', "there is no input and no feature view:feature called '(0)'"),
        ("now - t", "'now - t' is a duration; write seconds_between(begin, end)"),
        ("(now - t) / 60", "'(now - t) / 60' is a duration; write seconds_between(begin, end)"),
        ("now - t > 5", "it compares a duration with a number, which has no unit"),
        ("t > 1700000000", "it compares an instant with a number, which has no unit"),
        ("now()", "now is the instant of the request or the label; write it without brackets"),
        ("current_timestamp > t", "current_timestamp reads a clock"),
        ("seconds_between(x, now)", "seconds_between takes instants (type timestamp), and 'x' is Float64"),
        ("seconds_between(now)", "seconds_between takes 2 arguments, (begin, end), and not 1"),
        ("seconds_between(t, now, now)", "seconds_between takes 2 arguments, (begin, end), and not 3"),
        ("seconds_between(,)", "the SQL text is empty"),
        ("seconds_between(t, now", "the brackets of seconds_between(...) are never closed"),
        ("haversine(q, 1, 2, 3)", "haversine takes degrees as numbers, and 'q' is String"),
        ("haversine(b, 1, 2, 3)", "haversine takes degrees as numbers, and 'b' is Boolean"),
        ("sekonds_between(t, now)", "sekonds_between is not a function of SQL text here; did you mean 'seconds_between'?"),
        ("sum(x)", "it contains an aggregate over rows"),
        ("x + q", "its types do not fit"),
        ("1 + 1", "it reads no column, so its result is always the same"),
        ("'purchases:mean'", "it reads no column"),
        ("purchases :mean", "the character ':'"),
        ("x:y:z", "the character ':'"),
        # Texts that an engine must never see.
        ("(SELECT 1)", "SELECT belongs to a query"),
        ("x + (SELECT max(x) FROM self)", "SELECT belongs to a query"),
        ("read_csv('/etc/passwd')", "read_csv is not a function of SQL text here"),
        ("seconds_between(read_parquet('s3://a/b'), now)", "read_parquet is not a function of SQL text here"),
        ("x; DROP TABLE a", "the character ';'"),
        ("(" * 60 + "x" + ")" * 60, "it is nested 60 levels deep, more than 40"),
        ("x" + " + x" * 3_000, "it has 3000 operators, more than 2000"),
        ("x" * 300_000, "the SQL text has 300000 characters, more than 200000"),
        ("haversine(" * 12 + "x" + ", 1, 2, 3)" * 12, "it has more than 5000 parts"),
        ("concat(" + ", ".join(["q"] * 4_000) + ")", "it may build a text 4000 times as long"),
        (7, "7 is not an expression; write SQL text"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_and_what_to_do(text, fault):
    with pytest.raises(DefinitionError) as caught:
        computed(text, INPUTS, VIEWS)

    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "Checkout"}, "the name must be lower-case letters"),
        ({"name": "purchases"}, "a view has that name too"),
        ({"version": 0}, "version 0 is not a positive whole number"),
        ({"version": True}, "version True is not a positive whole number"),
        ({"tags": {"team": 7}}, "tags: 'team': 7: names and values of tags are text"),
        ({"owner": 7}, "owner: 7 is not text"),
        ({"inputs": ["x"]}, "inputs: ['x'] is not a mapping of columns to types"),
        ({"inputs": {"x": "float"}}, "input 'x': 'float' is not a type of a single value"),
        ({"inputs": {"x": "list[int64]"}}, "input 'x': 'list[int64]' is not a type of a single value"),
        ({"inputs": {"x": "float64", "NOW": "timestamp"}}, "input 'NOW': now is the instant of the request"),
        ({"inputs": {"x": "float64", "X": "float64"}}, "differs from 'x' only in upper and lower case"),
        ({"inputs": {"x": "float64", "y": "float64"}}, "no feature reads the input 'y'; leave it out"),
        ({"inputs": {"x": "float64", "x y": "float64"}}, "input 'x y': the name is not allowed"),
        ({"inputs": {f"x{n}": "float64" for n in range(65)}}, "it has 65 inputs, more than 64"),
        ({"inputs": {"x": "float64", "user_id": "string"}, "features": [Derived("f", "x + purchases:n"), Derived("g", "user_id")]},
         "input 'user_id': the key of purchases has this name"),
        ({"inputs": {"x": "float64", "user": "string"}, "features": [Derived("f", "x + purchases:n"), Derived("g", '"user"')]},
         "input 'user': the entity of purchases has this name"),
        ({"features": []}, "it has no features; give it at least one"),
        ({"features": {"f": "x"}}, "is not a list; give a list of Derived objects"),
        ({"features": ["x"]}, "'x' is not an on-demand feature; give Derived objects"),
        ({"features": [Derived("x", "x")]}, "x: an input has this name; rename one"),
        ({"features": [Derived("now", "x")]}, "now: now is the instant of the request"),
        ({"features": [Derived("f", "x"), Derived("F", "x")]}, "F: the name differs from f only in upper and lower case"),
        ({"features": [Derived(f"f{n}", "x") for n in range(65)]}, "it has 65 features, more than 64"),
        ({"features": [Derived("f", "x"), Derived("g", "f * 2")]}, "g: expression: 'f' is on-demand too; write its expression out here"),
        ({"features": [Derived("f", "f + x")]}, "f: expression: 'f' is this feature itself"),
        ({"features": [Derived("f", "x", type="int64")]}, "its type is declared as 'int64', but the expression gives float64"),
        ({"features": [Derived("f", "x", default="a")]}, "the default 'a' is not of type float64"),
        ({"features": [Derived("f", VIEWS)]}, "is not an expression; write SQL text"),
    ],
)  # fmt: skip
def test_a_faulty_definition_is_reported_with_its_place(changes, fault):
    fields = {"name": "ratio", "inputs": {"x": "float64"}, "features": [Derived("f", "x / purchases:mean")]} | changes

    with pytest.raises(DefinitionError) as caught:
        compile(VIEW, OnDemand(**fields))

    assert fault in str(caught.value), caught.value
    assert str(caught.value).startswith(f"on-demand {fields['name']}: ")


@pytest.mark.parametrize(
    ("condition", "fault"),
    [
        (
            "amount > store:lat",
            "store:lat names a feature of a view, which only on-demand features read; name a column",
        ),
        ("seconds_between(event_time, event_time) > 1", "seconds_between is not a function of SQL text here"),
        ("event_time > 1700000000", "it compares an instant with a number, which has no unit"),
        ("event_time - event_time > 5", "it compares a duration with a number, which has no unit"),
    ],
)
def test_expressions_over_streams_know_neither_references_nor_these_functions_and_no_numbers_of_no_unit(
    condition, fault
):
    with pytest.raises(DefinitionError) as caught:
        compile(view(where=condition))

    assert fault in str(caught.value)


def test_polars_expressions_are_refused_because_readers_have_the_text_alone():
    with pytest.raises(DefinitionError, match="it is a Polars expression, but servers read an on-demand feature from"):
        compile(VIEW, OnDemand("ratio", {"x": "float64"}, [Derived("f", pl.col("x"))]))


def test_a_document_says_the_same_in_the_same_words(tmp_path):
    (tmp_path / "checkout.yaml").write_text(
        """
on_demand:
  name: checkout
  inputs: {lat: float64, lon: float64, query: string, amount: float64}
  owner: checkout team
  tags: {team: checkout}
  features:
  - {name: since_login_s, derived: "seconds_between(user_logins:last_login, now)"}
  - {name: distance_km, derived: "haversine(lat, lon, store:lat, store:lon)"}
  - {name: query_length, derived: char_length(query)}
  - {name: amount_to_mean, derived: "amount / user_purchases:mean_amount_30d", default: 0.0}
  - {name: share, derived: amount / 7}
  - {name: to_second, derived: "amount / user_purchases@2:mean_amount_30d"}
  - {name: known, derived: "user_logins:last_login > TIMESTAMP '2017-07-15 00:00:00'"}
  - {name: last_login, derived: "coalesce(user_logins:last_login, now)"}
"""
    )

    assert load_definitions([tmp_path / "checkout.yaml"]) == [CHECKOUT]
    assert haversine("lat", "lon", "store:lat", "store:lon") == "haversine(lat, lon, store:lat, store:lon)"
    (tmp_path / "checkout.yaml").write_text("on_demand: {name: a, input: {}, features: [{name: f}, 7]}")
    with pytest.raises(DefinitionError, match="unknown key 'input'; did you mean 'inputs'") as caught:
        load_definitions([tmp_path / "checkout.yaml"])
    assert "it has no inputs; give it one" in str(caught.value)


def test_the_registry_has_them_as_they_were_defined_and_a_fingerprint_of_their_texts():
    published = parse(describe(PLAN))

    assert published == Published.of(PLAN)
    assert published.on_demand["checkout"].tags == {"team": "checkout"}
    other = compile(VIEW, OnDemand("ratio", {"x": "float64"}, [Derived("f", "x / purchases:mean", default=1.0)]))
    same = compile(VIEW, OnDemand("ratio", {"x": "float64"}, [Derived("f", "x / purchases:mean", default=2.0)]))
    assert other.on_demand["ratio"].fingerprint != same.on_demand["ratio"].fingerprint


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("(SELECT 1)", "SELECT belongs to a query"),
        ("read_csv('/etc/passwd')", "read_csv is not a function"),
        ("amount / user_purchases:gone", "user_purchases has no feature 'gone'"),
        ("query", "was published as float64, and gives string with the views of now"),
    ],
)
def test_a_text_of_the_registry_is_checked_again_before_any_engine_sees_it(text, fault):
    registry = describe(PLAN)
    registry["on_demand"][0]["features"][4]["value"] = text
    published = parse(registry)

    with pytest.raises(LayoutError) as caught:
        wanted(["checkout:share"], published)
    assert fault in str(caught.value)
    # The others are read all the same.
    assert wanted(["checkout:query_length", "store:lat"], published).on_request is not None


@pytest.mark.parametrize(
    "change",
    [
        {"name": "store"},
        {"features": []},
        {"inputs": {"lat": "nope"}},
        {"inputs": {"share": "float64"}},
        {"inputs": {"lat": "list[int64]"}},
    ],
)
def test_a_registry_that_does_not_hold_together_is_refused(change):
    registry = describe(PLAN)
    registry["on_demand"] = [registry["on_demand"][0] | change]

    with pytest.raises(LayoutError, match="does not hold together; publish it again with unskew run"):
        parse(registry)
