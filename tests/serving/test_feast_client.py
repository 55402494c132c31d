"""Feast's own client and its DuckDB store read what unskew serves and logs.

Feast needs other versions of our dependencies, so it lies in an environment of its own, whose Python the variable
UNSKEW_TEST_FEAST_PYTHON names: pip install 'feast[duckdb]==0.67.0'. Without the variable these tests are skipped.
"""

import datetime as dt
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner

from tests.serving.test_http import CLOCK, FEATURES, STAYS, Server, fill, in_json, serving
from tests.support.clients import FEAST_PYTHON, needs_feast
from tests.support.on_demand import PLAN as SHOP
from tests.support.on_demand import oracle, some_events, write
from tests.support.plans import DAY
from tests.support.servers.certificates import certified
from tests.support.servers.valkey import Valkey
from tests.support.typed import DEFAULTS, EMPTY, FULL, NAMES, ORDERS
from tests.support.updates import closing
from unskew import FeatureStore, Service
from unskew.cli import main
from unskew.features.definitions.services import pinned
from unskew.features.plan import Plan
from unskew.features.registry import Published
from unskew.features.versions import Versions
from unskew.offline import feast_repo
from unskew.sinks.tables.kinds import LogTable

CLIENT = Path(__file__).parents[1] / "support" / "feast_client.py"

pytestmark = needs_feast

TYPES = {
    "n": "Int64",
    "spend": "Decimal",
    "rate": "Float64",
    "gift": "Bool",
    "shop": "String",
    "dearest": "Decimal",
    "since": "UnixTimestamp",
    "counts": "Array(Int64)",
    "rates": "Array(Float64)",
    "gifts": "Array(Bool)",
    "shops": "Array(String)",
    "prices": "Array(Decimal)",
    "times": "Array(UnixTimestamp)",
    "n_by_shop": "Array(Struct({key: String, value: Int64}))",
    "rate_by_shop": "Array(Struct({key: String, value: Float64}))",
    "spend_by_shop": "Array(Struct({key: String, value: Decimal}))",
    "share": "Float64",
    "is_new": "Bool",
}
"""Feast's types of the features of ``ORDERS``."""


class Feast:
    """A process of Feast."""

    def __init__(self) -> None:
        # Isolated: nothing of this environment may be imported there.
        self.process = subprocess.Popen(
            [FEAST_PYTHON, "-I", str(CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "FEATURES_TOKEN": "s3cret"},  # noqa: TID251 - of a program of others
        )

    def ask(self, do: str, repo: Path, **asked: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, "repo": str(repo), **asked}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def answer(self, do: str, repo: Path, **asked: Any) -> Any:
        found = self.ask(do, repo, **asked)
        assert "error" not in found, found
        return found["answer"]


@pytest.fixture(scope="module")
def feast() -> Iterator[Feast]:
    process = Feast()
    yield process
    process.process.kill()
    process.process.communicate()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with rows of every kind; its path has what a pattern of files reads otherwise.

    It was compacted over days, and the files that were merged are still there, so readers meet rows twice.
    """
    root = tmp_path_factory.mktemp("log") / "lo[1]g*"
    rows = [
        {"user": "full", **FULL, "available_at": CLOCK - 2 * DAY, "cause": "event", "seq": 0},
        {"user": "empty", **EMPTY, "available_at": CLOCK - 50, "cause": "event", "seq": 1},
        {"user": "full", **EMPTY, "available_at": CLOCK - 40, "cause": "hop", "seq": 2},
        # Only days before that of the newest row are merged with each other.
        {"user": "later", **EMPTY, "available_at": CLOCK + 20 * DAY, "cause": "event", "seq": 3},
    ]
    stays = [
        {"user": f"u{i}", "hotel": i % 3, "nights": i, "last": i / 7, "available_at": CLOCK - 100 + i, "seq": i}
        for i in range(50)
    ]
    for view, its in ((ORDERS, rows), (STAYS, [{**row, "cause": "event"} for row in stays])):
        table = LogTable(root, view, "h0", None, now_us=lambda: CLOCK)
        for row in its:
            table.append(closing(view, row["available_at"], log_rows=[row], since_us=CLOCK - 3 * DAY))
            table.snapshot()
        table.append(closing(view, CLOCK + 40 * DAY, since_us=CLOCK - 3 * DAY))
        table.settle()
    merged = CliRunner().invoke(main, ["compact", "--log", str(root), "--span", "10d", "--min-files", "2"])
    assert merged.exit_code == 0, merged.output
    assert list((root / ORDERS.name).rglob("day=*--*"))
    assert len(list((root / STAYS.name).rglob("*.parquet"))) > len(STAYS.outputs)
    return root


@pytest.fixture(scope="module")
def plan() -> Plan:
    plan = Plan(streams={}, views=Versions([ORDERS, STAYS]))
    checkout = pinned(Service("checkout", ["stays:nights", "orders:n", "stays:last"], owner="risk"), plan.published)
    return replace(plan, services={"checkout": checkout})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as redis:
        fill(redis.url)
        with serving(redis.url) as server:
            server.redis = redis  # type: ignore[attr-defined]
            yield server


@pytest.fixture(scope="module")
def repo(feast: Feast, plan: Plan, log: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported repository that Feast has applied."""
    folder = tmp_path_factory.mktemp("repo")
    export(folder, plan, log, server)
    applied = feast.answer("apply", folder)
    assert applied["services"] == {"checkout": ["stays:nights", "stays:last", "orders:n"]}
    assert applied["views"]["orders"]["features"] == TYPES
    return folder


def export(folder: Path, plan: Plan, log: Path, server: Server) -> None:
    address = f"http://127.0.0.1:{server.port}"
    (folder / feast_repo.CONFIGURATION).write_text(feast_repo.configuration("unskew", address))
    (folder / feast_repo.DEFINITIONS).write_text(feast_repo.definitions(Published.of(plan), log))


def test_feasts_client_reads_every_type_nulls_and_absent_entities_as_the_sdk(feast, repo, server):
    rows = [{"user": user} for user in ("full", "empty", "bare", "nobody")]
    ours = FeatureStore(redis_url=server.redis.url).get_online_features(FEATURES, rows).to_dict()

    theirs = feast.answer("online", repo, features=FEATURES, rows=rows)["values"]

    assert list(theirs) == ["user", *NAMES]
    assert theirs == {name: [in_json(value) for value in column] for name, column in ours.items()}
    assert [theirs[name][0] for name in NAMES] == [in_json(FULL[name]) for name in NAMES]
    assert [theirs[name][3] for name in NAMES] == [in_json(DEFAULTS[name]) for name in NAMES]


def test_feasts_client_reads_string_and_composite_keys_versions_and_full_names(feast, repo):
    rows = [{"user": f"u{i}", "hotel": i % 3} for i in (7, 49)] + [{"user": "u7", "hotel": 2}]
    found = feast.answer("online", repo, features=["stays:nights", "stays@1:last"], rows=rows, full=True)

    assert found["values"] == {
        "user": ["u7", "u49", "u7"],
        "hotel": [1, 1, 2],
        "stays__nights": [7, 49, 0],
        "stays@1__last": [1.0, 7.0, None],
    }
    present, not_found = 1, 3
    assert found["statuses"] == [[present] * 3, [present] * 3, [present] * 3, [present, present, not_found]]


@pytest.mark.parametrize(("features", "rows", "name", "message"), [
    (["order:n"], [{"user": "a"}], "FeatureViewNotFoundException", "did you mean 'orders'"),
    (["orders@2:n"], [{"user": "a"}], "FeatureViewVersionNotFound", "there is orders@1"),
    (["orders:m"], [{"user": "a"}], "FeastObjectNotFoundException", "no feature 'm'"),
    ("chekout", [{"user": "a"}], "FeatureServiceNotFoundException", "did you mean 'checkout'"),
    (["orders"], [{"user": "a"}], "FeastError", "write view:feature"),
    (["orders:n"], [{"usr": "a"}], "FeastError", "is it 'usr'? then rename that"),
    (["stays:nights"], [{"user": "a"}], "FeastError", "'hotel' is not among the given columns"),
    (["stays:nights"], [{"user": "a", "hotel": 1.5}], "FeastError", "1.5"),
])  # fmt: skip
def test_feasts_client_raises_errors_of_its_own_classes(feast, repo, features, rows, name, message):
    module, found, said = feast.ask("online", repo, features=features, rows=rows)["error"]

    assert (module, found) == ("feast.errors", name)
    assert message in said


def test_a_service_is_read_online_and_from_the_log(feast, repo, tmp_path):
    labels = pl.DataFrame({"user": ["u7", "empty"], "hotel": [1, 1], "event_timestamp": [CLOCK - 1] * 2})
    labels.cast({"event_timestamp": pl.Datetime("us", "UTC")}).write_parquet(tmp_path / "labels.parquet")

    found = feast.answer("online", repo, features="checkout", rows=[{"user": "u7", "hotel": 1}])
    answered = tmp_path / "answered.parquet"
    feast.answer("history", repo, features="checkout", labels=str(tmp_path / "labels.parquet"), to=str(answered))

    # The server has another service of that name than Feast's registry, and the server's is read.
    assert found["values"] == {"user": ["u7"], "hotel": [1], "nights": [7], "n": [0]}
    rows = pl.read_parquet(answered).sort("user").select("user", "nights", "last", "n").rows()
    assert rows == [("empty", None, None, 0), ("u7", 7, 1.0, None)]


def test_on_demand_features_are_left_out_of_the_repository_and_read_online_all_the_same(feast, tmp_path):
    events, wanted = some_events(3), ["checkout:amount_to_mean", "checkout:share", "checkout:query_length"]
    row = {"user_id": "anna", "chain": "north", "store_id": 2, "lat": 1.5, "lon": -2.0, "query": "é 👟", "amount": 7.5}
    with Valkey(tmp_path / "one") as redis:
        write(tmp_path, redis.url, events)
        with serving(redis.url) as server:
            export(tmp_path, SHOP, tmp_path / "log", server)
            applied = feast.answer("apply", tmp_path)
            values = feast.answer("online", tmp_path, features=wanted, rows=[row])["values"]

    assert sorted(applied["views"]) == ["store", "user_logins", "user_purchases"]
    assert applied["services"] == {}
    expected = oracle(events, row | {"event_timestamp": dt.datetime.fromtimestamp(0, dt.UTC)})
    names = [reference.partition(":")[2] for reference in wanted]
    assert {name: values[name] for name in names} == {name: [expected[name]] for name in names}
    said = feast_repo.unread(Published.of(SHOP))
    assert any(text.startswith("checkout is left out, because Feast would compute on-demand features") for text in said)
    assert "service checkout_model is left out, because it reads checkout@1" in said


def test_feasts_client_sends_a_token_over_tls(feast, server, tmp_path):
    made = certified(tmp_path / "tls")
    (tmp_path / "token").write_text("s3cret\n")
    options = ["--token-file", str(tmp_path / "token"), "--tls-cert", str(made.certificate), "--tls-key", str(made.key)]
    trusting = ssl.create_default_context(cafile=str(made.authority))
    read = {"features": ["stays:nights"], "rows": [{"user": "u7", "hotel": 1}]}
    with serving(server.redis.url, *options, tls=trusting) as guarded:
        text = feast_repo.configuration("unskew", f"https://127.0.0.1:{guarded.port}")
        text = text.replace("  type: remote\n", f"  type: remote\n  cert: {made.authority}\n")
        for variable, said in (("FEATURES_TOKEN", None), ("HOME", "send the token")):
            auth = f"auth:\n  type: oidc\n  token_env_var: {variable}\n"
            (tmp_path / feast_repo.CONFIGURATION).write_text(text + auth)
            answer = feast.ask("online", tmp_path, **read)
            if said is None:
                assert answer["answer"]["values"]["nights"] == [7]
            else:
                assert said in answer["error"][2]


def test_feasts_client_repeats_a_503_three_times_and_then_hides_what_it_says(feast, tmp_path):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url) as server:
            address = f"http://127.0.0.1:{server.port}"
            (tmp_path / feast_repo.CONFIGURATION).write_text(feast_repo.configuration("unskew", address))
            redis.kill()
            read = {"features": ["stays:nights"], "rows": [{"user": "u7", "hotel": 1}]}

            module, name, said = feast.ask("online", tmp_path, **read)["error"]

            assert (module, name) == ("requests.exceptions", "RetryError")
            assert "Redis" not in said
            assert 'unskew_requests_total{code="503",service=""} 4.0' in server.get("/metrics")[1]


def test_feasts_store_reads_from_the_log_what_a_training_set_has_but_for_empties(feast, plan, log, repo, tmp_path):
    instants = [CLOCK - 3 * DAY + 1, CLOCK - 2 * DAY, CLOCK - 60, CLOCK - 50, CLOCK - 45, CLOCK - 40, CLOCK - 1]
    users = ["full", "empty", "nobody"]
    labels = pl.DataFrame(
        {"label": range(21), "user": users * 7, "event_timestamp": [at for at in instants for _ in users]}
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
    labels.write_parquet(tmp_path / "labels.parquet")
    ours = FeatureStore(plan, log=log).get_historical_features(labels, FEATURES, inclusive=True, with_status=True)

    answered = tmp_path / "answered.parquet"
    feast.answer("history", repo, features=FEATURES, labels=str(tmp_path / "labels.parquet"), to=str(answered))

    theirs = pl.read_parquet(answered).sort("label")
    assert theirs.drop(NAMES).equals(labels.select(theirs.drop(NAMES).columns))
    for row, mine in enumerate(ours.to_polars().iter_rows(named=True)):
        stored = {"full": [None, FULL, FULL, FULL, FULL, EMPTY, EMPTY], "empty": [None] * 3 + [EMPTY] * 4}
        expected = stored.get(mine["user"], [None] * 7)[row // 3] or dict.fromkeys(NAMES)
        found = theirs.row(row, named=True)
        assert {name: found[name] for name in NAMES} == expected
        assert {name: mine[name] for name in NAMES} == {
            name: DEFAULTS[name] if value is None else value for name, value in expected.items()
        }


def test_feasts_store_joins_composite_keys_of_the_log(feast, repo, tmp_path):
    labels = pl.DataFrame(
        {
            "user": ["u7", "u7", "u7", "u49"],
            "hotel": [1, 1, 2, 1],
            "event_timestamp": pl.Series([CLOCK - 94, CLOCK - 93, CLOCK - 1, CLOCK - 1]).cast(pl.Datetime("us", "UTC")),
        }
    )
    labels.write_parquet(tmp_path / "labels.parquet")

    answered = tmp_path / "answered.parquet"
    feast.answer("history", repo, features=["stays:nights"], labels=str(tmp_path / "labels.parquet"), to=str(answered))

    rows = pl.read_parquet(answered).select("user", "hotel", "nights").rows()
    assert sorted(rows, key=str) == sorted([("u7", 1, None), ("u7", 1, 7), ("u7", 2, None), ("u49", 1, 49)], key=str)


def test_names_and_descriptions_come_into_feasts_registry_as_they_are(feast, plan, log, server, tmp_path):
    hostile = '"""\n\'); raise SystemExit("x") # \\ {x} é \u202e'
    views = {}
    for name, view in plan.views.items():
        features = tuple(
            msgspec.structs.replace(one, description=hostile, owner=hostile) for one in view.published.features
        )
        entity = msgspec.structs.replace(view.entity, name=hostile)
        published = {"description": hostile, "owner": hostile, "entity": entity, "features": features}
        views[name] = msgspec.structs.replace(view.published, **published)
    folder = tmp_path / "repo"
    folder.mkdir()
    address = f"http://127.0.0.1:{server.port}"
    (folder / feast_repo.CONFIGURATION).write_text(feast_repo.configuration("unskew", address))
    (folder / feast_repo.DEFINITIONS).write_text(
        feast_repo.definitions(Published(views=Versions.of(views)), log), "utf-8"
    )

    found = feast.answer("apply", folder)

    assert found["entities"] == {hostile: "user", f"{hostile}_user": "user", f"{hostile}_hotel": "hotel"}
    assert found["views"]["orders"]["keys"] == {"user": "String"}
    assert found["views"]["stays"]["keys"] == {"user": "String", "hotel": "Int64"}
    for name, view in found["views"].items():
        assert (view["description"], view["owner"], view["tags"]["unskew_version"]) == (hostile, hostile, "1")
        assert list(view["features"]) == [one.name for one in views[name].features]
        assert set(view["descriptions"].values()) == {hostile}
