"""plan, apply, promote, rollback and registry, on a record in a folder and a copy in a real Redis."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import polars as pl
import pytest
import redis
from click.testing import CliRunner, Result

from tests.serving.test_http import Server, serving
from tests.support.servers.valkey import wait_until
from tests.support.updates import closing
from tests.support.written import write_archive
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.errors import DefinitionError
from unskew.features.plan import Plan
from unskew.features.planning import Asked, planned
from unskew.sinks.objects import ObjectPath
from unskew.sinks.record import Overtaken, Record, published
from unskew.sinks.redis.keyspace import registry_key, usage_key
from unskew.sinks.redis.writer import RedisWriter

STREAM = """\
stream: {name: purchases, topic: purchases, event_time: at, settle: 1s, partitioned_by: user, schema: '{"type": "record",
  "name": "P", "fields": [{"name": "user", "type": "string"}, {"name": "amount", "type": "double"}, {"name": "at", "type":
  {"type": "long", "logicalType": "timestamp-micros"}}]}'}
---
entity: {name: user, key: user}
"""
DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US


def view(version: int = 1, *, name: str = "spend", window: str = "7d", serving: bool = False, **more: Any) -> str:
    """A view with two features as a document; ``more``: of the first feature."""
    features = [
        {"name": "n", "aggregation": {"function": "count", "window": window}, **more},
        {"name": "total", "aggregation": {"function": "sum", "value": "amount", "window": window}},
    ]
    document = {
        "name": name, "version": version, "entity": "user", "source": "purchases", "owner": "growth",
        **({"serving": True} if serving else {}), "features": features,
    }  # fmt: skip
    return f"---\n{json.dumps(document)}\n"


def service(*features: str, name: str = "checkout") -> str:
    return f"---\n{json.dumps({'service': {'name': name, 'features': list(features), 'owner': 'risk'}})}\n"


class Site:
    """A deployment: definitions, a record and a Redis."""

    def __init__(self, root: Path, redis_url: str) -> None:
        self.root, self.redis_url = root, redis_url
        self.definitions = root / "defs"
        self.definitions.mkdir()
        self.record = Record(root / "registry")

    def define(self, *documents: str) -> Plan:
        (self.definitions / "views.yaml").write_text(STREAM + "".join(documents))
        return load(self.definitions)

    def call(self, command: str, *more: str) -> Result:
        return CliRunner().invoke(main, [*command.split(), *self.options(command.split(maxsplit=1)[0]), *more])

    def options(self, command: str) -> list[str]:
        paths = [str(self.definitions)] if command in {"plan", "apply"} else []
        there = [] if command == "registry" else ["--redis-url", self.redis_url]
        return [
            *paths,
            "--log",
            str(self.root / "log"),
            *there,
            *(["--yes"] if command in {"apply", "rollback"} else []),
        ]

    def done(self, command: str, *more: str, status: int = 0) -> str:
        result = self.call(command, *more)
        assert result.exit_code == status, (command, result.output, result.exception)
        return result.output

    def run(self, plan: Plan, *, since_us: int = 0, **values: int) -> RedisWriter:
        """Do what a pipeline does in Redis: publish, list shards, and write one user's row in each view version.

        ``values``: the value of both features, by version, as ``v2=5``; by default the version.
        """
        writer = RedisWriter(self.redis_url, "unskew", "main")
        writer.publish_registry(published(plan, self.record.last()))
        writer.expect({one.id: ["h0"] for one in plan.views.values()})
        for one in plan.views.values():
            value = values.get(f"v{one.version}", one.version)
            row = {"key": "u", "n": value, "total": float(value), "_at": 1, "_until": NOW_US * 2}
            writer.add(closing(one, NOW_US, [row], since_us=since_us))
        writer.flush(0)
        return writer

    def store(self) -> FeatureStore:
        return FeatureStore(redis_url=self.redis_url)

    def read(self, *references: str) -> list[Any]:
        answer = self.store().get_online_features(list(references), [{"user": "u"}], full_feature_names=True).to_dict()
        return [values[0] for name, values in answer.items() if name != "user"]


@pytest.fixture
def site(tmp_path: Path, redis_url: str) -> Site:
    return Site(tmp_path, redis_url)


BOTH = (view(1, serving=True), view(2, window="1d"))


def test_a_plan_says_what_changes_and_whom_it_touches(site: Site, redis_client: redis.Redis) -> None:
    site.define(view(), view(name="visits"))
    assert site.done("plan", status=2).splitlines()[0] == "+ view spend@1"
    site.done("apply", "-m", "first")
    assert site.done("plan") == "nothing to change: views, services and on-demand features are those of revision 1\n"

    # A description changes no state; a service is new, and what it reads is pinned.
    plan = site.define(view(description="purchases in a week"), view(name="visits"), service("spend:n", "visits:total"))
    said = site.done("plan", status=2)
    assert "~ view spend@1\n    n.description: none -> purchases in a week" in said
    assert "no new version is needed" in said
    assert "+ service checkout" in said
    site.done("apply")
    site.run(plan)
    (checkout,) = site.record.read(2).content.services
    assert [one.view for one in checkout.features] == ["spend@1", "visits@1"]

    # Whoever reads it is named, with what Redis counted of the last two days.
    day = time.strftime("%Y-%m-%d", time.gmtime())
    redis_client.hset(usage_key("unskew", "checkout"), mapping={day: 1234, "2020-01-01": 7})
    site.define(view(description="another"), view(name="visits"), service("spend:n", "visits:total"))
    data = json.loads(site.done("plan", "--json", status=2))
    assert data["revision"] == 2
    (change,) = data["changes"]
    assert (change["kind"], change["name"]) == ("changed", "spend@1")
    assert change["services"] == [{"name": "checkout", "owner": "risk", "reads_since_yesterday": 1234}]
    assert change["fields"] == [{"name": "n.description", "before": "purchases in a week", "after": "another"}]
    assert "service checkout reads it (owner: risk, 1,234 reads since yesterday)" in site.done("plan", status=2)


def test_a_plan_shows_which_values_change_and_which_models_were_trained_on_them(site: Site, tmp_path: Path) -> None:
    begun_us, n_events = NOW_US - DAY_US, 200
    events = pl.DataFrame(
        {
            "user": [f"u{number % 17}" for number in range(n_events)],
            "amount": [float(number * 7 % 10) for number in range(n_events)],
            "at": pl.Series([begun_us + 60_000_000 * number for number in range(n_events)]).cast(
                pl.Datetime("us", "UTC")
            ),
        }
    ).with_columns(_partition=pl.lit(0, pl.Int32), _arrival=pl.col("at"), _event_time=pl.col("at"))
    events = events.with_columns(_offset=pl.int_range(pl.len(), dtype=pl.Int64))

    def filtered(version: int, least: int) -> str:
        text = view(version, serving=version == 1)
        return text.replace('"function": "count"', f'"function": "count", "filter": "amount > {least}"')

    plan = site.define(filtered(1, 2))
    site.done("apply")
    write_archive(tmp_path / "archive", plan.views["spend"], events, NOW_US)
    counts = "SELECT user, count(*) FILTER (amount > 2) AS old, count(*) FILTER (amount > 4) AS new FROM events GROUP BY user"
    with duckdb.connect() as db:
        db.register("events", events)
        wanted = db.execute(f"SELECT count(*) FILTER (old <> new), max(abs(new - old)) FROM ({counts})").fetchone()

    site.define(filtered(1, 2), filtered(2, 4))
    data = json.loads(site.done("plan", "--archive", str(tmp_path / "archive"), "--json", status=2))
    (one,) = data["values"]
    n, total = one["features"]
    assert (one["old"], one["new"], one["why_not_comparable"]) == ("spend@1", "spend@2", None)
    assert (n["at_end"]["differing"], n["at_end"]["absolute"]["max"]) == wanted
    assert (total["feature"], total["differing"]) == ("total", 0)
    shown = site.done("plan", "--archive", str(tmp_path / "archive"), status=2)
    assert "spend@1 -> spend@2: " in shown

    # What must not be applied is shown too, and the models that were trained on it.
    labels = [{"user": "u1", "event_timestamp": events["at"][-1]}]
    replay = FeatureStore(plan, archive=tmp_path / "archive")
    (tmp_path / "models").mkdir()
    replay.get_historical_features(labels, ["spend:n"], source="events").to_parquet(
        tmp_path / "models" / "churn.parquet"
    )
    site.define(filtered(1, 4))
    shown = site.done("plan", "--archive", str(tmp_path / "archive"), "--models", str(tmp_path / "models"), status=1)
    assert f"spend@1: {one['differing']:,} of " in shown
    assert "    model churn was trained on it" in shown
    assert "error: spend@1 would compute something else under the same version (n.filter)" in shown


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ((view(), view(name="visits")), "service checkout .* reads spend:n, and it is removed"),
        ((view(default=0), service("spend:n", "spend:total")), "reads spend:n, whose default becomes 0 in place of none"),
        ((view(), view(name="visits"), service("spend:n")), "reads spend:total, which is removed from it"),
        ((view(name="visits"), service("visits:n")), "reads spend:n, .*and 1 more"),
        # Its only version is raised in its place, as it was before there was a record.
        ((view(2, window="1d"), service("spend:n", "spend:total")), "spend@1 serves, and is removed: spend:feature would mean version 2 at once"),
        ((view(window="1d"), service("spend:n", "spend:total")), r"spend@1 would compute something else under the same version \(n.window, total.window\)"),
    ],
    ids=lambda each: each[:40] if isinstance(each, str) else "",
)  # fmt: skip
def test_what_would_break_a_reader_is_refused(site: Site, documents: tuple[str, ...], said: str) -> None:
    site.run(site.define(view(), view(name="visits"), service("spend:n", "spend:total")))
    site.done("apply")

    site.define(*documents)
    for command in ("plan", "apply"):
        output = site.done(command, status=1)
        assert re.search(f"error: .*{said}", output), output
        if said.startswith("service"):
            assert "owner: risk, 0 reads since yesterday" in output
    assert site.record.numbers() == range(1, 2)


def test_a_break_is_accepted_by_name_alone(site: Site) -> None:
    site.define(view(), view(name="visits"), service("spend:n", "visits:n"), service("visits:n", name="churn"))
    site.done("apply")
    site.define(view(name="visits"), view(), service("spend:n"))

    assert "error: service checkout" in site.done("plan", "--break", "churn", status=1)
    assert "error: service churn" in site.done("plan", "--break", "checkout", status=1)
    assert "--break chrn: no such service or view was applied; did you mean 'churn'?" in site.done(
        "apply", "--break", "chrn", status=1
    )
    site.done("apply", "--break", "churn", "--break", "checkout")
    assert [one.name for one in site.record.read(2).content.services] == ["checkout"]

    site.define(view(name="visits"), view(2, window="1d"), service("spend:n"))
    site.done("apply", "--break", "spend")
    assert site.record.read(3).content.serves == {"spend": 2, "visits": 1}
    assert site.record.read(3).content.retired == ("spend@1",)


def test_a_higher_version_serves_once_it_is_promoted_and_as_long_as_it_is(site: Site) -> None:
    site.run(site.define(view(1)))
    site.done("apply")
    both = site.define(*BOTH, service("spend:n"))
    assert "version 1 serves; unskew promote spend@2 lets this one serve" in site.done("plan", status=2)
    site.done("apply")
    assert "error: spend@2 is not running" in site.done("promote spend@2", status=1)
    site.run(both)
    names = ("spend:n", "spend:total", "spend@1:n", "spend@2:n")
    assert site.read(*names) == [1, 1.0, 1, 2]
    row = redis.Redis.from_url(site.redis_url).hgetall("unskew:spend@1:{u}")

    assert "spend:feature means spend@2" in site.done("promote spend@2")
    assert site.read(*names) == [2, 2.0, 1, 2]
    # A service keeps what it has pinned until it is applied anew.
    assert site.store().get_online_features("checkout", [{"user": "u"}]).to_dict()["n"] == [1]
    assert "spend@2 serves already" in site.done("promote spend@2")

    # Neither a restart nor a loss of Redis, nor the same definitions once more, take it back.
    site.run(both)
    assert site.read(*names) == [2, 2.0, 1, 2]
    redis.Redis.from_url(site.redis_url).flushdb()
    site.run(both)
    assert site.read(*names) == [2, 2.0, 1, 2]
    said = site.done("plan", status=2)
    assert said.splitlines()[:2] == ["~ service checkout", "    spend:n.view: spend@1 -> spend@2"]
    site.done("apply")
    assert site.read(*names) == [2, 2.0, 1, 2]
    assert site.store().get_online_features("checkout", [{"user": "u"}]).to_dict()["n"] == [2]

    site.done("promote spend@1")
    assert site.read(*names) == [1, 1.0, 1, 2]
    assert redis.Redis.from_url(site.redis_url).hgetall("unskew:spend@1:{u}") == row
    # A definition that says so anew lets it serve; one that says it again does not.
    site.define(view(1), view(2, window="1d", serving=True), service("spend:n"))
    assert "> view spend\n    version that serves: 1 -> 2" in site.done("plan", status=2)
    site.done("apply")
    site.done("promote spend@1")
    assert "> view spend" not in site.done("plan", status=2)
    assert json.loads(redis.Redis.from_url(site.redis_url).get(registry_key("unskew")) or "")["serves"] == {"spend": 1}


def test_a_version_that_is_warming_or_would_break_a_service_is_not_promoted(site: Site) -> None:
    site.define(view(1))
    site.done("apply")
    both = site.define(view(1, serving=True), view(2, window="1d", default=0), service("spend:n"))
    site.done("apply")
    site.run(both, since_us=NOW_US - DAY_US // 2)

    said = site.done("promote spend@2", status=1)
    assert "error: spend@2 is warming until 2024-10-04T12:0" in said
    said = site.done("promote spend@2", "--warming", status=1)
    assert (
        "error: service checkout (owner: risk, 0 reads since yesterday) reads spend:n, whose default becomes 0" in said
    )
    assert "error: spend@3 was not applied" in site.done("promote spend@3", status=1)
    assert "error: spend: name the version that is to serve; there is spend@1, spend@2" in site.done(
        "promote spend", status=1
    )
    assert site.read("spend:n") == [1]
    site.done("promote spend@2", "--warming", "--break", "checkout")
    assert site.read("spend:n") == [2]


def test_on_demand_features_are_applied_and_their_readers_are_guarded(site: Site) -> None:
    def demanded(expression: str = "x + spend:n", version: int = 1) -> str:
        features = [{"name": "d", "derived": expression}]
        return f"---\n{json.dumps({'on_demand': {'name': 'checkout', 'version': version, 'inputs': {'x': 'int64'}, 'features': features}})}\n"

    second = view(2, window="1d").replace('"name": "n"', '"name": "m"')
    site.define(view(1, serving=True), second, demanded())
    assert "+ on-demand checkout" in site.done("plan", status=2)
    site.done("apply")
    site.run(load(site.definitions))
    assert "on-demand checkout@1  1 features" in site.done("registry show")

    # The version that would serve has no such feature.
    said = site.done("promote spend@2", status=1)
    assert "error: on-demand checkout@1 reads spend:n, and spend@2, which it means, has no such feature" in said
    site.define(view(1, serving=True), second, demanded("x + spend:n + 1"))
    said = site.done("apply", status=1)
    assert "error: on-demand checkout@1 would compute something else under the same version; give it version 2" in said
    site.define(view(1, serving=True), second, demanded("x + spend:n + 1", 2), service("checkout:d", name="model"))
    site.done("apply")
    assert list(site.store().services()) == ["model"]
    site.define(view(1, serving=True), second)
    assert (
        "error: service model (owner: risk, 0 reads since yesterday) reads checkout:d, and it is removed"
        in site.done("plan", status=1)
    )
    site.done("apply", "--break", "model")
    published = json.loads(redis.Redis.from_url(site.redis_url).get(registry_key("unskew")) or "")
    assert not {"services", "on_demand"} & published.keys()


def test_promotion_and_demotion_under_load_fail_no_read_and_mix_no_versions(site: Site) -> None:
    site.run(site.define(view(1)))
    site.done("apply")
    both = site.define(*BOTH)
    site.done("apply")
    writer = site.run(both)
    stop, seen, failed = threading.Event(), [set[Any](), set[Any](), set[Any]()], list[BaseException]()

    def reader(found: set[Any]) -> None:
        store = site.store()
        names = ["spend:n", "spend:total", "spend@1:n", "spend@1:total", "spend@2:n", "spend@2:total"]
        try:
            while not stop.is_set():
                answer = store.get_online_features(names, [{"user": "u"}], full_feature_names=True)
                found.add(tuple(values[0] for name, values in answer.to_dict().items() if name != "user"))
                found.add(("status", *(frame["status"][0] for frame in answer.metadata.values())))
        except BaseException as error:  # noqa: BLE001 - whatever it is
            failed.append(error)

    threads = [threading.Thread(target=reader, args=(found,)) for found in seen]
    for thread in threads:
        thread.start()
    for number in range(20):
        site.done(f"promote spend@{2 - number % 2}")
        # A pipeline that is restarted meanwhile, with the definitions as they are.
        writer.publish_registry(published(both, site.record.last()))
    stop.set()
    for thread in threads:
        thread.join()

    assert failed == []
    rows = {(1, 1.0, 1, 1.0, 2, 2.0), (2, 2.0, 1, 1.0, 2, 2.0)}
    for found in seen:
        assert found == {*rows, ("status", "present", "present", "present")}
    assert site.record.numbers() == range(1, 23)


def test_promotion_and_demotion_under_load_fail_no_request_over_http_and_mix_no_versions(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the workers keep their counts.
    monkeypatch.setenv("TMPDIR", str(site.root))
    site.run(site.define(view(1), service("spend:n", "spend:total")))
    site.done("apply")
    both = site.define(*BOTH, service("spend:n", "spend:total"))
    site.done("apply")
    writer = site.run(both)
    names = ["spend:n", "spend:total", "spend@1:n", "spend@1:total", "spend@2:n", "spend@2:total"]
    asked = {"entities": {"user": ["u"]}, "full_feature_names": True}
    stop, failed = threading.Event(), list[BaseException]()
    seen, of_service = [set[Any]() for _ in range(4)], set[Any]()

    def said(code: int, answer: Any) -> tuple[Any, ...]:
        """The values of the only row, and which version each name meant."""
        assert code == 200, answer
        version_of = {name: about["version"] for name, about in answer["metadata"]["views"].items()}
        return (*(one["values"][0] for one in answer["results"][1:]), *sorted(version_of.items()))

    def reader(server: Server, found: set[Any], *, keeps_connection: bool) -> None:
        try:
            with contextlib.closing(server.connection()) as connection:
                while not stop.is_set():
                    found.add(said(*server.post({**asked, "features": names})))
                    of_service.add(said(*server.post({**asked, "feature_service": "checkout"})))
                    if keeps_connection:
                        connection.request("POST", "/get-online-features", json.dumps({**asked, "features": names}))
                        answer = connection.getresponse()
                        found.add(said(answer.status, json.loads(answer.read())))
        except BaseException as error:  # noqa: BLE001 - whatever it is
            failed.append(error)

    def meaning(version: int) -> tuple[Any, ...]:
        row = (version, float(version), 1, 1.0, 2, 2.0)
        return (*row, ("spend", version), ("spend@1", 1), ("spend@2", 2))

    with serving(site.redis_url, "--workers", "2") as server:
        threads = [
            threading.Thread(target=reader, args=(server, found), kwargs={"keeps_connection": number % 2 == 0})
            for number, found in enumerate(seen)
        ]
        for thread in threads:
            thread.start()
        for number in range(20):
            version = 2 - number % 2
            site.done(f"promote spend@{version}")
            # From here on every worker means the new one.
            for _ in range(8):
                assert said(*server.post({**asked, "features": names})) == meaning(version)
            # A pipeline that is restarted meanwhile, with the definitions as they are.
            writer.publish_registry(published(both, site.record.last()))
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a request hangs"

        assert failed == []
        for found in seen:
            assert found == {meaning(1), meaning(2)}
        # A service keeps what it has pinned.
        assert of_service == {(1, 1.0, ("spend", 1))}

        def answered() -> list[int]:
            counts = [json.loads(path.read_text()) for path in site.root.glob("unskew-serve-*/*.json")]
            return [sum(one["n_by_code"][""].values()) for one in counts if "" in one["n_by_code"]]

        wait_until(lambda: len(answered()) == 2, "both workers have answered")


def test_of_two_who_apply_at_once_one_wins_and_the_other_is_told_who(site: Site, tmp_path: Path) -> None:
    site.define(view(1))
    site.done("apply")
    others = []
    for number in range(3):
        folder = tmp_path / f"defs{number}"
        folder.mkdir()
        (folder / "views.yaml").write_text(STREAM + view(1) + view(name=f"of_{number}"))
        command = ["apply", str(folder), "--log", str(tmp_path / "log"), "--redis-url", site.redis_url, "--yes"]
        # All have planned before the first one writes.
        program = (
            "import sys, time, pathlib; from unskew.cli import main, plan\n"
            "from unskew.cli.plan import agree\n"
            "def together(*_, **__):\n"
            f"    pathlib.Path({str(folder)!r}, 'planned').touch()\n"
            f"    while len(list(pathlib.Path({str(tmp_path)!r}).glob('defs*/planned'))) < 3: time.sleep(0.001)\n"
            "plan.agree = together; main(sys.argv[1:])\n"
        )
        others.append(
            subprocess.Popen([sys.executable, "-c", program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    said = [process.communicate(timeout=120) for process in others]

    assert sorted(process.returncode for process in others) == [0, 1, 1], said
    assert site.record.numbers() == range(1, 3)
    for process, (_, errors) in zip(others, said, strict=True):
        if process.returncode:
            (line,) = errors.splitlines()
            assert re.match(
                r"error: \S+@\S+ has written revision 2 \(apply\) at .* UTC while this one was planned; .*plan again",
                line,
            )


def test_a_process_that_is_killed_between_record_and_copy_leaves_what_the_next_one_completes(
    site: Site, redis_client: redis.Redis
) -> None:
    site.define(view(1))
    site.done("apply")
    site.define(*BOTH)
    site.done("apply")
    site.run(load(site.definitions))
    command = [sys.executable, "-m", "unskew", "promote", "spend@2", *site.options("promote")]
    redis_client.client_pause(60_000, all=False)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while site.record.numbers() != range(1, 4):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    redis_client.client_unpause()

    assert process.returncode == -9
    assert site.read("spend:n") == [1]
    assert site.done("apply") == "nothing to change: views, services and on-demand features are those of revision 3\n"
    assert site.read("spend:n") == [2]


def test_a_rollback_applies_what_was_unless_a_state_has_ended(site: Site) -> None:
    site.define(view(1))
    site.done("apply")
    both = site.define(*BOTH)
    site.done("apply")
    site.run(both)
    site.done("promote spend@2")

    assert "> view spend" in site.done("rollback 2")
    assert site.read("spend:n") == [1]
    site.done("promote spend@2")
    two = site.define(view(2, window="1d"))
    site.done("apply")
    assert site.record.read(6).content.retired == ("spend@1",)
    # The pipeline still runs with both.
    said = site.done("rollback 2")
    assert "restart unskew run with the definitions of revision 2, because of spend@1" in said
    site.define(*BOTH)
    site.done("plan")
    site.done("promote spend@2")
    site.define(view(2, window="1d"))
    site.done("apply")
    writer = RedisWriter(site.redis_url, "unskew", "main")
    writer.publish_registry(published(two, site.record.last()))
    writer.expect({"spend@2": ["h0"]}, None, ["spend@1"])
    assert "error: spend@1 comes back, and no pipeline computes it any more" in site.done("rollback 2", status=1)
    site.define(*BOTH)
    assert "error: spend@1 was applied before and then removed, and its state has ended" in site.done("apply", status=1)
    assert "error: " in site.done("rollback 99", status=1)

    log = site.done("registry log")
    assert [line.split()[0] for line in log.splitlines() if line[0].isdigit()] == list("987654321")
    assert "rollback 2" in log
    shown = site.done("registry show 3")
    assert "view spend@2  serving" in shown
    assert "view spend@1  running" in shown
    assert "view spend@1  retired" in site.done("registry show")
    assert site.done("registry diff 1 3").splitlines()[0] == "+ view spend@2"
    assert json.loads(site.done("registry diff 2 3 --json"))[0]["kind"] == "serves"


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        found = json.loads(data)
        change(found)
        return json.dumps(found).encode()

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[: len(data) // 2], "revision-00000002.json is damaged .* restore it from a backup"),
        (lambda _: b"", "is damaged"),
        (lambda _: b"\xff\x00" * 9, "is damaged"),
        (lambda _: b"[" * 100_000, "is damaged"),
        (lambda _: b"7", "is damaged"),
        (damaged(lambda one: one.update(format=2)), "has format 2, but this version of unskew reads 1; use the version that wrote it, or a later one"),
        (damaged(lambda one: one.update(number=1)), "says that it is revision 1; restore it from a backup"),
        (damaged(lambda one: one["content"].update(serves={"spend": 7})), r"is damaged \(no version of view 'spend' serves\)"),
        (damaged(lambda one: one["content"]["views"].append(one["content"]["views"][0])), "stands there twice"),
        (damaged(lambda one: one["content"]["views"][0].update(features=[])), "cannot be read: .*features have no names"),
        (damaged(lambda one: one["content"]["views"][0]["features"][0].update(type="int128")), "which this version does not know"),
        (None, r"revision-00000001.json is missing, and later ones are there; restore it"),
    ],
    ids=["half", "empty", "bytes", "deep", "number", "newer", "renamed", "serves", "twice", "features", "type", "gap"],
)  # fmt: skip
def test_a_damaged_or_newer_record_is_an_error_that_says_what_to_do(site: Site, change: Any, said: str) -> None:
    site.define(view())
    site.done("apply")
    site.define(view(description="x"))
    site.done("apply")
    if change is None:
        site.record.path(1).unlink()
    else:
        path = site.record.path(2)
        path.write_bytes(change(path.read_bytes()))

    for command in ("plan", "apply", "promote spend@1", "registry show", "rollback 1"):
        output = site.done(command, status=1)
        assert re.search(f"error: .*{said}", output), output
        assert "Traceback" not in output


def test_what_a_newer_version_adds_to_a_revision_is_ignored(site: Site) -> None:
    site.define(view())
    site.done("apply")
    path = site.record.path(1)
    found = json.loads(path.read_bytes())
    found["approved_by"] = found["content"]["models"] = found["content"]["views"][0]["colour"] = "blue"
    path.write_text(json.dumps(found))

    assert site.done("plan") == "nothing to change: views, services and on-demand features are those of revision 1\n"


@pytest.fixture
def open_site(redis_url: str) -> Iterator[Site]:
    """A site whose folder other users may enter; pytest closes its own whenever another session begins."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Site(Path(folder), redis_url)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_record_that_may_not_be_written_or_read_is_an_error(open_site: Site) -> None:
    site = open_site
    site.define(view())
    site.done("apply")
    site.define(view(description="x"))
    for path in (site.definitions, site.record.root):
        path.chmod(0o755)
    (site.definitions / "views.yaml").chmod(0o644)
    # Modules are imported before, because the other user may not be allowed to read them.
    program = (
        "import contextlib, io, os, sys; from unskew.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['plan', *sys.argv[2:-1]])\n"
        "import unskew.cli.applying, unskew.cli.plan, getpass, pwd\n"
        "os.setuid(65534); main(sys.argv[1:])"
    )

    def as_another(command: str) -> str:
        words = [
            sys.executable,
            "-c",
            program,
            command,
            *site.options("plan"),
            *(["--yes"] if command == "apply" else ["--json"]),
        ]
        done = subprocess.run(words, cwd=site.root, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr

    site.record.path(1).chmod(0o644)
    assert (
        "cannot be written (Permission denied); correct its permissions, or name another folder with --registry"
        in as_another("apply")
    )
    site.record.path(1).chmod(0o600)
    assert "revision-00000001.json cannot be read (Permission denied)" in as_another("plan")
    site.record.root.chmod(0o700)
    assert "registry cannot be read (Permission denied)" in as_another("plan")


def test_a_file_in_place_of_the_record_and_a_copy_that_is_ahead_are_errors(site: Site) -> None:
    plan = site.define(view())
    site.record.root.write_text("not a folder")
    assert "registry cannot be read (Not a directory)" in site.done("apply", status=1)
    site.record.root.unlink()
    site.done("apply")
    site.define(view(description="x"))
    site.done("apply")
    site.run(plan)
    site.record.path(2).unlink()
    for command in ("plan", "apply", "promote spend@1"):
        assert "the registry in Redis has revision 2, but the record ends with revision 1" in site.done(
            command, status=1
        )
    # A record that begins anew, because another folder was named by mistake.
    site.record.path(1).unlink()
    assert "spend: another record has applied it until now; this one takes it over" in site.done("plan", status=2)


def test_without_redis_the_record_stands_and_without_a_terminal_nobody_is_asked(site: Site) -> None:
    site.define(view())
    site.redis_url = "redis://127.0.0.1:1/0"
    said = site.done("apply")
    assert "planned without it" in said
    assert "the copy of the registry in Redis is brought up to date by unskew run" in said
    site.define(view(description="x"))
    result = CliRunner().invoke(main, ["apply", *site.options("plan")])
    assert (result.exit_code, "error: there is no terminal to ask on; give --yes" in result.output) == (1, True)
    assert site.record.numbers() == range(1, 2)
    assert "error: Redis: Error 111" in site.done("promote spend@1", status=1)


def test_a_revision_says_who_applied_what_and_from_which_commit(site: Site) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(site.definitions), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    site.define(view())
    site.done("apply")
    assert site.record.read(1).git is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    site.define(view(description="x"))
    site.done("apply", "-m", "described")
    git("commit", "-qam", "second")
    site.define(view(description="x"), view(name="visits"))
    git("commit", "-qam", "third")
    site.done("apply")

    first, second, third = (site.record.read(number) for number in (1, 2, 3))
    assert second.git is not None
    assert (second.git.changed, second.message, second.command) == (True, "described", "apply")
    assert third.git is not None
    assert (third.git.commit, third.git.changed) == (git("rev-parse", "HEAD"), False)
    assert second.plan == ("~ view spend@1: n.description: none -> x",)
    assert first.record == third.record
    assert "@" in first.by


def test_what_is_deprecated_and_its_tags_are_shown_and_need_no_new_version(site: Site) -> None:
    site.define(*BOTH)
    site.done("apply")
    old = view(1, serving=True, deprecated="use total").replace(
        '"owner"', '"tags": {"team": "growth"}, "deprecated": "use spend@2", "owner"'
    )
    plan = site.define(old, view(2, window="1d"))
    said = site.done("plan", status=2)
    for line in (
        "tags: none -> {'team': 'growth'}",
        "deprecated: none -> use spend@2",
        "n.deprecated: none -> use total",
    ):
        assert f"    {line}\n" in said, said
    assert "no new version is needed" in said
    site.run(plan)
    site.done("apply")

    found = {
        row["reference"]: (row["tags"], row["deprecated"]) for row in site.store().features().iter_rows(named=True)
    }
    assert found == {
        "spend@1:n": ("team=growth", "use total"), "spend@1:total": ("team=growth", "use spend@2"),
        "spend@2:n": ("", ""), "spend@2:total": ("", ""),
    }  # fmt: skip
    assert "view spend@1  serving, deprecated: use spend@2" in site.done("registry show")
    described = CliRunner().invoke(main, ["describe", str(site.definitions)]).output
    assert "deprecated: use spend@2" in described
    assert "tags team=growth" in described
    for fault, document in {
        "spend: tags: 'team': 7: names and values of tags are text": view().replace(
            '"owner"', '"tags": {"team": 7}, "owner"'
        ),
        "spend: tags: 'x' is not a mapping": view().replace('"owner"', '"tags": "x", "owner"'),
        "spend.n: deprecated: 7 is not text": view(deprecated=7),
    }.items():
        with pytest.raises(DefinitionError, match=fault):
            site.define(document)


def test_a_record_in_an_object_store_is_written_once(bucket: ObjectPath, tmp_path: Path, redis_url: str) -> None:
    site = Site(tmp_path, redis_url)
    site.record = Record(bucket / "registry")
    options = ["--log", str(bucket / "log"), "--redis-url", redis_url]
    site.define(view())
    apply = ["apply", str(site.definitions), *options, "--yes"]
    assert CliRunner().invoke(main, apply).exit_code == 0
    site.define(view(description="x"))
    assert CliRunner().invoke(main, apply).exit_code == 0

    assert site.record.numbers() == range(1, 3)
    with pytest.raises(Overtaken, match=r"has written revision 2 \(apply\)"):
        site.record.append(msgspec.structs.replace(site.record.read(2), message="another"))
    # The same bytes again are the answer to a request that was repeated.
    site.record.append(site.record.read(2))
    assert "revision 2" in CliRunner().invoke(main, ["plan", str(site.definitions), *options]).output


def streamed(*documents: str, **settings: str) -> tuple[str, ...]:
    """The stream of these tests with other settings, in a document that stands before these."""
    stream = STREAM.partition("---\n")[0].replace("name: purchases, topic: purchases", "name: sales, topic: sales", 1)
    for name, value in settings.items():
        stream = re.sub(", settle: 1s" if name == "settle" else "(?=, event_time)", f", {name}: {value}", stream)
    return (
        f"---\n{stream}",
        *(document.replace('"source": "purchases"', '"source": "sales"') for document in documents),
    )


def test_a_plan_says_how_a_stream_is_read_otherwise_and_needs_no_new_version_for_it(site: Site) -> None:
    site.define(*streamed(view(), service("spend:n")))
    assert "+ stream sales" in site.done("plan", status=2)
    site.done("apply")
    before = site.record.read(1).content

    site.define(*streamed(view(), service("spend:n"), settle="10s", max_ahead="1min"))
    said = site.done("plan", status=2)
    assert said.splitlines()[0] == "~ stream sales"
    assert {"    settle: 1s -> 10s", "    max_ahead: 5s -> 1min"} < set(said.splitlines())
    assert "unskew run reads it so from its next start" in said
    assert "service checkout reads it" in said
    (change,) = json.loads(site.done("plan", "--json", status=2))["changes"]
    assert (change["what"], change["kind"], change["name"], change["services"][0]["name"]) == (
        "stream", "changed", "sales", "checkout",
    )  # fmt: skip
    assert change["fields"] == [
        {"name": "max_ahead", "before": "5s", "after": "1min"},
        {"name": "settle", "before": "1s", "after": "10s"},
    ]
    site.done("apply")
    assert site.record.read(2).content.views == before.views
    assert site.record.read(2).plan == ("~ stream sales: max_ahead: 5s -> 1min; settle: 1s -> 10s",)
    assert "stream sales  topic sales  settle 10s" in site.done("registry show")
    assert "settle: 1s -> 10s" in site.done("registry diff 1 2")
    assert site.done("plan").startswith("nothing to change")
    assert "settle: 10s -> 1s" in site.done("rollback 1")

    # What a fingerprint covers is named beside the refusal, which could not say it.
    site.define(*streamed(view(), service("spend:n"), max_age="1h"))
    said = site.done("plan", status=1)
    assert "    max_age: none -> 1h" in said
    assert (
        "error: spend@1 would compute something else under the same version (how records of its stream are read)"
        in said
    )


def test_a_stream_goes_with_its_last_view_and_that_of_others_stays(site: Site, tmp_path: Path) -> None:
    site.define(*streamed(view()))
    site.done("apply")
    # It is defined, and no view is over it.
    assert [one.name for one in site.record.read(1).content.streams] == ["sales"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "views.yaml").write_text(STREAM + view(name="returns"))
    found = planned(load(other), site.record.read(1).content, Asked(keeps_others=True))
    assert [one.name for one in found.content.streams] == ["purchases", "sales"]
    assert found.lines == ("+ view returns@1", "+ stream purchases")

    site.define(view(name="visits"))
    said = site.done("plan", "--break", "spend", status=2)
    assert "- stream sales" in said
    assert "+ stream purchases" in said


def test_a_record_that_does_not_say_how_streams_are_read_gets_it_with_the_next_apply(site: Site) -> None:
    site.define(view())
    site.done("apply")
    file = next((site.root / "registry").glob("*1.json"))
    old = json.loads(file.read_text())
    assert [one["name"] for one in old["content"].pop("streams")] == ["purchases"]
    file.chmod(0o600)
    file.write_text(json.dumps(old))

    assert site.done("plan", status=2) == "+ stream purchases\n"
    site.done("apply")
    assert site.done("plan").startswith("nothing to change")
    site.define(view(description="other"))
    site.done("apply")
    # Nobody knows how it was read then.
    assert "stream" not in site.done("rollback 1")
    assert [one.settle_us for one in site.record.read(4).content.streams] == [1_000_000]


def test_check_warns_of_a_stream_without_a_settle(site: Site) -> None:
    site.define(view())
    checked = CliRunner().invoke(main, ["check", str(site.definitions)])
    assert (checked.exit_code, "warning" in checked.output) == (0, False)
    (site.definitions / "views.yaml").write_text((STREAM + view()).replace(" settle: 1s,", ""))

    checked = CliRunner().invoke(main, ["check", str(site.definitions)])
    assert checked.exit_code == 0
    assert re.search(r"warning: \S+/views\.yaml:\d+: stream purchases: it has no settle", checked.output)
    assert "ok  spend@1" in checked.output
