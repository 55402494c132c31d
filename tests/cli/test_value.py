"""``unskew value``: definitions, a log and an archive on disk, labels, and what a person reads."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from click.testing import CliRunner

from tests.support.servers.valkey import Valkey
from tests.support.terminal import broken, cells, in_terminal, wider
from tests.support.written import write_archive, write_log
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.monitoring.recount import Recount
from unskew.monitoring.value.kernel_time import kernel_times
from unskew.sinks.redis.keyspace import connect, usage_key
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import record_shards

T0 = 1_490_400_000_000_000
MINUTE = 60_000_000
DAY = 1440 * MINUTE
SCHEMA = {
    "type": "record",
    "name": "purchase",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "amount", "type": "double"},
        {"name": "dice", "type": "double"},
    ],
}
DEFINITIONS = """
from unskew import Derived, Entity, Feature, FeatureView, Service, Sliding, Stream, agg

user = Entity("user", key="user")
stream = Stream("purchases", topic="purchases", schema="purchase.avsc", event_time="at", owner="shop")
spend = FeatureView("spend", entity=user, stream=stream, owner="shop", features=[
    Feature("amount", agg.last("amount"), Sliding("1d")),
    Feature("noise", agg.last("dice"), Sliding("1d")),
    Feature("a_count_of_the_last_ten_minutes", agg.count(), Sliding("10min"), default=0),
    Feature("first", agg.first("amount"), Sliding("1d")),
    Feature("recent", agg.last_n("amount", 3), Sliding("1d")),
    Derived("first_twice", "2 * first"),
])
other = FeatureView("other", entity=user, stream=stream, owner="shop", features=[
    Feature("n", agg.count(), Sliding("1d")),
])
checkout = Service("checkout", features=["spend:amount", "spend:first_twice"])
"""


class World(NamedTuple):
    folder: Path
    plan: Plan
    events: pl.DataFrame
    labels: pl.DataFrame


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Thirty users for three days; whether a label is true depends on the user's last amount, and a little on luck."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "purchase.avsc").write_text(json.dumps(SCHEMA))
    (folder / "definitions" / "views.py").write_text(DEFINITIONS)
    plan = load(folder / "definitions")
    draw = random.Random(3)
    ats = sorted(draw.randrange(T0, T0 + 3 * DAY) for _ in range(1_500))
    instant = pl.Datetime("us", "UTC")
    events = pl.DataFrame(
        {
            "user": [f"u{draw.randrange(30)}" for _ in ats],
            "at": pl.Series(ats).cast(instant),
            "amount": [float(draw.randrange(10)) for _ in ats],
            "dice": [draw.random() for _ in ats],
        }
    ).with_columns(
        _partition=pl.lit(0, pl.Int32),
        _arrival=pl.col("at"),
        _event_time=pl.col("at"),
        _offset=pl.int_range(pl.len()).cast(pl.Int64),
    )
    for view in plan.views.values():
        record_shards(view_root(folder / "log", view.name, 1), ["h0"], view=view)
        write_log(folder / "log", view, events, T0 + 4 * DAY)
    write_archive(folder / "archive", plan.views["spend"], events, T0 + 4 * DAY)
    rows = []
    for _ in range(700):
        user, at = f"u{draw.randrange(30)}", draw.randrange(T0 + DAY, T0 + 3 * DAY)
        before = events.filter((pl.col("user") == user) & (pl.col("at").to_physical() < at))
        amount = before["amount"][-1] if before.height else 0.0
        rows.append((user, at, (amount > 4.0) != (draw.random() < 0.1), amount * 2 + draw.random()))
    labels = pl.DataFrame(
        rows, schema={"user": pl.String, "when": pl.Int64, "bought": pl.Boolean, "paid": pl.Float64}, orient="row"
    )
    labels = labels.with_columns(pl.col("when").cast(instant))
    labels.write_parquet(folder / "labels.parquet")
    return World(folder, plan, events, labels)


def invoked(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["value", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def options(world: World, *names: str) -> Iterator[object]:
    given: dict[str, list[object]] = {
        "log": ["--log", world.folder / "log"],
        "archive": ["--archive", world.folder / "archive", "--runs", 2, "--events", 500],
        "definitions": ["--definitions", world.folder / "definitions"],
        "labels": ["--labels", world.folder / "labels.parquet", "--timestamp", "when"],
        "target": ["--target", "bought"],
    }
    for name in names:
        yield from given[name]


EVERYTHING = ("log", "archive", "definitions", "labels", "target")


def found(*arguments: object) -> dict[str, Any]:
    return json.loads(invoked(*arguments, "--json"))


def by_name(view: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["feature"]: one for one in view["features"]}


def test_noise_is_worth_nothing_and_is_named_first_of_those_to_retire(world: World) -> None:
    (spend,) = found("spend", *options(world, *EVERYTHING))["views"]
    (again,) = found("spend:amount", *options(world, "log", "labels", "target"))["views"]

    features = by_name(spend)
    now = {name: one["importance"]["now"]["mean"] for name, one in features.items() if one["importance"]}
    assert now["amount"] > 0.1
    assert max(now, key=now.__getitem__) == "amount"
    assert abs(now["noise"]) < 0.02
    assert {name for name, one in features.items() if one["candidate_to_retire"]} >= {"noise"}
    assert not features["amount"]["candidate_to_retire"]
    # A list is nothing that these models take, so nobody knows what it is worth.
    assert features["recent"]["importance"] == {}
    assert any(line.startswith("importance of recent: it is a list") for line in spend["not_known"])
    order = [one["candidate_to_retire"] for one in spend["features"]]
    assert order == sorted(order, reverse=True)
    assert spend["features"][-1]["feature"] == "amount"
    # What is a day old says nothing about the last purchase.
    assert spend["model"]["scores"]["now"] > 0.8
    assert spend["model"]["scores"]["1 d"] < 0.6
    assert features["amount"]["importance"]["1 d"]["mean"] < 0.1
    assert (spend["model"]["n_train"], spend["model"]["n_test"]) == (490, 210)
    assert again["model"] == spend["model"]
    # Whichever features are named, a model has all of the view's.
    assert by_name(again)["amount"]["importance"] == features["amount"]["importance"]
    assert features["amount"]["read_by"] == {"checkout": None}
    assert features["first_twice"]["derived"] == []
    assert features["first"]["derived"] == ["first_twice"]
    assert features["noise"]["read_by"] == {}
    assert features["noise"]["sentence"].endswith("no service or model reads it: candidate to retire")
    for one in features.values():
        assert (one["kernel_time"]["runs"], one["kernel_time"]["events"]) == (2, 500)
        assert one["kernel_time"]["least"] <= one["kernel_time"]["median"] <= one["kernel_time"]["most"]


def test_a_number_is_predicted_too(world: World) -> None:
    (spend,) = found("spend", *options(world, "log", "labels"), "--target", "paid")["views"]

    assert spend["model"]["metric"] == "R²"
    assert spend["model"]["scores"]["now"] > 0.9
    assert by_name(spend)["amount"]["importance"]["now"]["mean"] > 0.9


def test_differences_are_those_of_a_recount_at_both_instants(world: World) -> None:
    (spend,) = found("spend", *options(world, "log", "labels", "definitions"))["views"]
    (sampled,) = found("spend:amount", *options(world, "log"), "--requests", 100)["views"]

    recount = Recount(world.plan.views["spend"], world.events)
    first = int(world.events["_arrival"].to_physical().min())  # type: ignore[arg-type]
    for age, age_us in (("5 min", 5 * MINUTE), ("1 h", 60 * MINUTE), ("1 d", DAY)):
        pairs = [
            # The values right before both instants.
            (recount.values((user,), at - 1), recount.values((user,), at - age_us - 1))
            for user, at in world.labels.select("user", pl.col("when").to_physical()).iter_rows()
            if at - age_us >= first
        ]
        for name, one in by_name(spend).items():
            unlike = [(new[name], old[name]) for new, old in pairs if new[name] != old[name]]
            changes = [
                abs(new - old) for new, old in unlike if isinstance(new, int | float) and isinstance(old, int | float)
            ]
            differs = one["differs_from"][age]
            assert (differs["requests"], differs["differing"]) == (len(pairs), len(unlike)), (name, age)
            assert differs["mean_absolute_change"] == (
                pytest.approx(sum(changes) / len(changes)) if changes else None
            ), (name, age)
    assert any(one["differs_from"]["1 d"]["differing"] for one in spend["features"])
    assert sampled["requests"] == {"from": "log", "n": 100, "within": 100}
    assert 0 < sampled["features"][0]["differs_from"]["1 d"]["requests"] < 100


def test_what_is_not_given_is_not_known_and_never_a_zero(world: World, tmp_path: Path) -> None:
    (spend,) = found("spend", *options(world, "log"))["views"]
    shown = invoked("spend", *options(world, "archive", "definitions"))

    for one in spend["features"]:
        assert (one["kernel_time"], one["read_by"], one["importance"]) == (None, None, {})
        assert not one["candidate_to_retire"]
    assert spend["model"] is None
    assert spend["not_known"] == [
        "kernel time: give --archive and --definitions",
        "who reads them: give --definitions with services, or --model",
        "importance: give --labels and --target",
    ]
    assert "not known: rows, Redis bytes, and whether an older copy would do: give --log" in shown
    (row,) = [cells_ for cells_ in cells(shown) if cells_[0] == "noise"]
    assert row[1:3] + row[4:10] == ["?"] * 8
    assert "noise costs " in shown
    both = invoked("spend", "other", *options(world, "log", "definitions"), "--archive", tmp_path, "--events", 10)
    # What is not known of any view is said once.
    assert both.count("importance: give --labels and --target") == 1
    assert f"not known: kernel time: {tmp_path}/purchases holds no events" in both
    assert "no service or model reads it: candidate to retire" in shown


def test_services_are_counted_and_models_read_by_their_manifests(world: World, tmp_path: Path) -> None:
    store = FeatureStore(world.plan, log=world.folder / "log")
    training = store.get_historical_features(world.labels, ["spend:noise"], timestamp="when", outside="null")
    training.to_parquet(tmp_path / "training.parquet")
    manifest = tmp_path / "training.manifest.json"
    with Valkey(tmp_path / "one") as server:
        client = connect(server.url)
        client.hset(usage_key("unskew", "checkout"), mapping={"2999-01-01": 1_200, "2001-01-01": 5})
        client.close()

        (spend,) = found(
 "spend:noise", "spend:amount", *options(world, "log", "definitions"),
            "--model", manifest, "--usage", "--redis-url", server.url,
        )["views"]  # fmt: skip

    features = by_name(spend)
    assert features["amount"]["read_by"] == {"checkout": 1_200}
    assert features["noise"]["read_by"] == {str(manifest): None}
    assert "checkout (1,200 reads) reads it" in features["amount"]["sentence"]


@pytest.mark.parametrize(("width", "given"), [(80, EVERYTHING), (100, EVERYTHING), (140, ("log", "definitions"))])
def test_the_table_fits_a_terminal(width: int, given: tuple[str, ...], world: World) -> None:
    shown = in_terminal(width, "value", "other", "spend", *options(world, *given))

    assert wider(shown, width) == []
    names = [feature.name for view in world.plan.views.values() for feature in view.published.features]
    assert broken(shown, [*names, "read by", "costs"]) == []
    assert "…" not in shown


def test_replays_are_bounded_and_measured_by_the_clock_that_is_given(world: World) -> None:
    ticks = iter(range(1_000_000))

    times = kernel_times(
        world.plan.views["spend"],
        world.folder / "archive",
        ["noise", "first"],
        n_events=200,
        n_runs=3,
        now_s=lambda: float(next(ticks)),
    )

    assert {name: (one.ratios, one.n_events) for name, one in times.items()} == {
        "noise": ((1.0, 1.0, 1.0), 200),
        "first": ((1.0, 1.0, 1.0), 200),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("spend",), "give --log, --archive, or both"),
        (("spend", "--log", "nowhere"), "nowhere: there is no such folder"),
        (("spends", "--log", "log"), "there is no view 'spends'"),
        (("spend:nois", "--log", "log"), "spend has no feature 'nois'; did you mean 'noise'"),
        (("spend", "--archive", "archive"), "give --definitions, or a --log"),
        (("spend", "--log", "log", "--target", "bought"), "give --labels"),
        (("spend", "--archive", "archive", "--definitions", "definitions", "--labels", "labels.parquet"), "give --log"),
        (("spend", "--log", "log", "--labels", "labels.parquet"), "have no column 'event_timestamp'"),
        (
            ("spend", "--log", "log", "--labels", "labels.parquet", "--timestamp", "user"),
            "'user' is String, not an instant",
        ),
        (
            ("spend", "--log", "log", "--labels", "labels.parquet", "--timestamp", "when", "--target", "buy"),
            "no column 'buy'",
        ),
        (
            ("spend", "--log", "log", "--labels", "labels.parquet", "--timestamp", "when", "--target", "user"),
            "--target user",
        ),
        (
            ("spend", "--log", "log", "--labels", "keyless.parquet", "--timestamp", "when"),
            "the labels have no column user",
        ),
        (("spend", "--log", "log", "--usage"), "give --definitions with services"),
        (("spend", "--log", "log", "--model", "labels.parquet"), "labels.parquet"),
        (("spend", "--log", "log", "--runs", "1"), "Invalid value for '--runs'"),
    ],
    ids=lambda each: "" if isinstance(each, str) else " ".join(each)[:60],
)
def test_a_wrong_argument_is_an_error_that_says_what_to_do(
    arguments: tuple[str, ...], said: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    world.labels.drop("user").write_parquet("keyless.parquet")

    result = CliRunner().invoke(main, ["value", *arguments])

    assert result.exit_code in {1, 2}, result.output
    assert said in result.output
    assert "Traceback" not in result.output
