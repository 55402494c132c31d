"""The monitor: the same figures whenever it is started, alarms for what was planted, and nothing else."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.growing import T0, Growing, compacted
from tests.support.plans import DAY, HOUR, MINUTE, Wanted, events, republished, sliding, view
from tests.support.terminal import WIDTHS, broken, drawn, wider
from tests.support.typed import FULL
from tests.support.typed import ORDERS as TYPED
from tests.support.written import write_log
from unskew import FeatureStore
from unskew.cli import main, monitor
from unskew.features.errors import RequestError
from unskew.features.keys import OneEntity
from unskew.features.plan import Plan, ViewPlan
from unskew.features.time import day_of
from unskew.monitoring.baseline import Baselines, population_baseline, read_baseline
from unskew.monitoring.bins import Bins
from unskew.monitoring.exposed import Exposed
from unskew.monitoring.population import values_at
from unskew.monitoring.watch import Limits, Look, Watch
from unskew.offline.compaction import log_tables
from unskew.offline.erasing import LogRule, erase
from unskew.offline.log_reader import ViewLog
from unskew.offline.retention import retain_log
from unskew.serving import sample
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import record_shards

WINDOW = sliding(5 * DAY, HOUR)
VIEW = view(
    Wanted("count", "count", WINDOW),
    Wanted("spend", "sum", WINDOW, "x"),
    Wanted("last", "last", WINDOW, "n", "int64", default=-1),
    Wanted("mean", "mean", WINDOW, "x"),
    name="clicks",
)
MIDDLE, END = T0 + 2 * DAY, T0 + 4 * DAY
NOW = END + HOUR


def clicks(begin_us: int, end_us: int, seed: int, n_users: int = 500, *, factor: float = 1.0) -> pl.DataFrame:
    """Clicks of users, each about as often as the others; ``factor``: how much more they spend than before."""
    rng = random.Random(seed)
    rows = []
    for user in range(n_users):
        for _ in range(rng.choice([1, 1, 2, 3])):
            at = rng.randrange(begin_us, end_us)
            x = None if rng.random() < 0.1 else factor * rng.gammavariate(2, 20)
            rows.append((at, at - MINUTE, {"user": f"u{user}", "x": x, "n": rng.randrange(30)}))
    return events(sorted(rows, key=lambda row: row[0]))


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Only lost power asks for syncing, which is slow."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def grown(root: Path, plan: ViewPlan = VIEW, n_users: int = 500) -> Growing:
    """A log up to the middle, and its definition."""
    record_shards(view_root(root, plan.name, plan.version), ["h0", "h1"], view=plan)
    log = Growing(root, plan)
    log.feed(clicks(T0, MIDDLE, 1, n_users), MIDDLE, n_epochs=3)
    return log


def baseline_of(root: Path, folder: Path, plan: ViewPlan = VIEW, t_us: int = MIDDLE - 1) -> Path:
    path = folder / "middle.json"
    path.write_bytes(population_baseline(ViewLog(root, plan.published), t_us).to_json())
    return path


def states(look: Look, of: str = "population") -> dict[str, str]:
    return {one.feature: one.state for found in look.views for one in found.features if one.of == of}


def seen(look: Look) -> object:
    """Everything that a look says, but for ages."""
    return [replace(one, event_age_us=0, published_age_us=0) for one in look.views], look.over


def invoke(*arguments: object) -> tuple[int, str]:
    shown = CliRunner().invoke(main, [str(one) for one in arguments])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    return shown.exit_code, shown.output


def test_a_watch_that_follows_says_what_one_says_that_begins_now(tmp_path):
    log = grown(tmp_path / "log")
    baselines = [read_baseline(baseline_of(log.root, tmp_path))]
    follower = Watch(log.root, baselines=baselines)
    follower.look(NOW)
    n_rows = []
    for hour in range(5):
        log.feed(clicks(MIDDLE + hour * HOUR, MIDDLE + (hour + 1) * HOUR, hour, 60), MIDDLE + (hour + 1) * HOUR)
        if hour == 2:
            compacted(log)
        if hour == 3:
            (table,) = log_tables(log.root)
            retain_log(table, ["user"], day_of(MIDDLE), grace_s=0, now_s=10**10)

        assert seen(follower.look(NOW)) == seen(Watch(log.root, baselines=baselines).look(NOW))
        n_rows.append(ViewLog(log.root, log.plan.published).n_rows())

    assert n_rows[0] < n_rows[2]
    (found,) = follower.look(NOW).views
    assert (found.entities, found.complete_to_us) == (500, MIDDLE + 5 * HOUR - 1)
    assert found.published_age_us == NOW - found.complete_to_us
    assert MIDDLE + 4 * HOUR <= found.event_us < MIDDLE + 5 * HOUR


def test_a_log_that_was_begun_anew_and_one_without_an_erased_entity_are_counted_anew(tmp_path):
    log = grown(tmp_path / "log", n_users=30)
    watch = Watch(log.root)
    assert watch.look(NOW).views[0].entities == 30
    place = view_root(log.root, "clicks", 1)
    entity = OneEntity.of(VIEW.entity, ["u3"])
    erase("log", place, LogRule(entity), counts=True, still_ours=lambda: None)

    assert [watch.look(at).views[0].entities for at in (NOW + HOUR, NOW + DAY)] == [30, 29]
    assert seen(watch.look(NOW + DAY)) == seen(Watch(log.root).look(NOW + DAY))

    shutil.rmtree(log.root)
    grown(log.root, n_users=20)
    assert watch.look(NOW + DAY).views[0].entities == 20


def test_a_view_that_cannot_be_read_for_a_while_is_counted_whole_afterwards(tmp_path):
    log = grown(tmp_path / "log")
    grown(tmp_path / "log", republished(VIEW, name="taps"), n_users=5)
    watch = Watch(log.root)
    before = set(log.root.rglob("clicks/v1/day=*/*.parquet"))
    watch.look(NOW)
    log.feed(clicks(MIDDLE, END, 4), END)
    path = max(set(log.root.rglob("clicks/v1/day=*/*.parquet")) - before)
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(40))

    damaged = watch.look(NOW)
    path.write_bytes(data)

    assert [one.view for one in damaged.views] == ["taps@1"]
    assert path.name in str(damaged.refused[0])
    assert seen(watch.look(NOW)) == seen(Watch(log.root).look(NOW))


def test_a_log_in_an_object_store_and_of_entities_with_several_keys_is_watched(tmp_path, bucket):
    plan = view(Wanted("count", "count", WINDOW), keys={"user": "string", "n": "int64"}, name="clicks")
    near, far = (grown(root, plan) for root in (tmp_path / "log", bucket / "log"))
    for log in (near, far):
        log.feed(clicks(MIDDLE, END, 4), END)
    baselines = [read_baseline(baseline_of(near.root, tmp_path, plan))]

    looks = [Watch(log.root, baselines=baselines).look(NOW) for log in (near, far)]

    assert seen(looks[0]) == seen(looks[1])
    assert looks[0].views[0].entities > 1_000
    code, said = invoke("monitor", "--once", "--json", "--log", far.root)
    assert (code, json.loads(said)["views"][0]["entities"]) == (0, looks[0].views[0].entities)


@pytest.mark.parametrize(
    ("n_users", "factor", "expected", "code"),
    [(500, 1.0, "fine", 0), (500, 4.0, "drift", monitor.OVER), (100, 4.0, "too few", 0)],
)
def test_a_planted_shift_alarms_and_few_entities_do_not(tmp_path, n_users, factor, expected, code):
    log = grown(tmp_path / "log", n_users=n_users)
    path = baseline_of(log.root, tmp_path)
    # After the windows of the first clicks.
    log.feed(clicks(T0 + 7 * DAY, T0 + 9 * DAY, 8, n_users, factor=factor), T0 + 9 * DAY)

    found, said = invoke("monitor", "--once", "--json", "--log", log.root, "--baseline", path)

    look = json.loads(said)
    by_name = {one["feature"]: one for one in look["views"][0]["features"]}
    other = "too few" if expected == "too few" else "fine"
    assert {name: one["state"] for name, one in by_name.items()} == {
        "count": other,
        "spend": expected,
        "last": other,
        "mean": expected,
    }
    assert found == code
    assert [one.partition(":")[2].partition(",")[0] for one in look["over"]] == (
        ["spend", "mean"] if expected == "drift" else []
    )
    assert by_name["spend"]["baseline"] == "middle"


@pytest.mark.parametrize(
    ("arguments", "code", "over", "refused"),
    [
        ((), 0, [], 0),
        (("--baseline", "{root}/middle.json"), 0, [], 0),
        (("--baseline", "{root}/middle.json", "--published-age", "1s"), 3, ["clicks@1, published log"], 0),
        (("--event-age", "1s", "--published-age", "1s"), 3, ["clicks@1, last event", "clicks@1, published log"], 0),
        # What could not be looked at is worse than what is over its limit.
        (("--baseline", "{root}/other.json", "--published-age", "1s"), 1, [], 1),
        (("--baseline", "{root}/absent.json"), 1, None, None),
        (("clacks",), 1, None, None),
        (("--psi", "0"), 2, None, None),
        (("--every", "soon"), 1, None, None),
    ],
)
def test_a_look_ends_with_the_code_that_the_page_says_and_with_one_json_object(
    tmp_path, arguments, code, over, refused
):
    log = grown(tmp_path / "log", n_users=250)
    baseline_of(log.root, tmp_path)
    other = msgspec.structs.replace(
        population_baseline(ViewLog(log.root, VIEW.published), MIDDLE - 1), state_fingerprint="1" * 64
    )
    (tmp_path / "other.json").write_bytes(other.to_json())

    told = ["monitor", "--once", "--json", "--log", str(log.root), *(one.format(root=tmp_path) for one in arguments)]
    shown = CliRunner().invoke(main, told)

    assert shown.exit_code == code, shown.output
    assert bool(shown.stderr) == (code in {1, 2})
    if over is None:
        assert shown.stdout == ""
    else:
        look = json.loads(shown.stdout)
        assert [one.rpartition(": ")[0] for one in look["over"]] == over
        assert len(look["refused"]) == refused


def test_nulls_that_become_more_are_over_their_limit_and_a_limit_of_age_is_judged(tmp_path):
    log = grown(tmp_path / "log")
    baselines = [read_baseline(baseline_of(log.root, tmp_path))]
    late = clicks(T0 + 7 * DAY, T0 + 9 * DAY, 8).with_columns(x=pl.when(pl.int_range(pl.len()) % 2 == 0).then("x"))
    log.feed(late, T0 + 9 * DAY)

    look = Watch(log.root, baselines=baselines).look(T0 + 9 * DAY)
    aged = Watch(log.root, limits=Limits(event_age_us=MINUTE, published_age_us=HOUR)).look(T0 + 9 * DAY + 2 * HOUR)

    assert states(look)["mean"] == "missing"
    assert states(look)["count"] == "fine"
    assert set(states(aged).values()) == {"no baseline"}
    assert [one.where for one in aged.over] == ["clicks@1, last event", "clicks@1, published log"]
    loose = Watch(log.root, baselines=baselines, limits=Limits(missing=0.9, psi=9.0)).look(T0 + 9 * DAY)
    assert loose.over == []


def test_entities_whose_windows_have_emptied_are_no_drift(tmp_path):
    log = grown(tmp_path / "log")
    baselines = [read_baseline(baseline_of(log.root, tmp_path))]
    log.feed(clicks(T0 + 20 * DAY, T0 + 22 * DAY, 8, 250), T0 + 22 * DAY)

    (found,) = Watch(log.root, baselines=baselines).look(NOW).views

    assert (found.entities, found.gone) == (250, 250)
    assert {one.state for one in found.features} == {"fine"}
    assert {one.n for one in found.features} == {250}


def test_a_training_set_is_a_baseline(tmp_path):
    log = grown(tmp_path / "log")
    store = FeatureStore(Plan(streams={}, views={"clicks": VIEW}), log=log.root)
    labels = pl.DataFrame({"user": [f"u{n}" for n in range(500)]}).with_columns(
        event_timestamp=pl.lit(MIDDLE - 1).cast(pl.Datetime("us", "UTC"))
    )
    made = store.get_historical_features(labels, ["clicks:spend", "clicks:last"])
    made.to_parquet(tmp_path / "churn.parquet")

    (trained,) = Watch(log.root, baselines=[read_baseline(tmp_path / "churn.manifest.json")]).look(NOW).views

    judged = {one.feature: one for one in trained.features if one.baseline}
    assert {name: (one.baseline, one.kind, one.state) for name, one in judged.items()} == {
        "spend": ("churn", "training", "fine"),
        "last": ("churn", "training", "fine"),
    }
    # Every user has one label, at the population's own instant but for the events of that microsecond.
    assert judged["spend"].distance.psi < 0.01
    assert {one.feature for one in trained.features if one.baseline is None} == {"count", "mean"}


@pytest.fixture
def served(tmp_path, redis_client, redis_url, monkeypatch):
    """A log up to the middle, Redis, and a store that samples every read."""
    monkeypatch.setattr(sample, "EVERY_S", 0.0)
    log = grown(tmp_path / "log", n_users=40)
    writer = RedisWriter(redis_client, "unskew", "main")
    # An hour further than the log, as an epoch is not published yet.
    for step in write_log(tmp_path / "same", VIEW, clicks(T0, MIDDLE, 1, 40), MIDDLE + HOUR, n_shards=2):
        writer.add(step)
    writer.flush(time.time_ns() // 1000)
    store = FeatureStore(Plan(streams={}, views={"clicks": VIEW}), redis_url=redis_url, sample=tmp_path / "served")
    yield log, store
    store.close()


def read(store: FeatureStore, *users: str) -> None:
    for user in users:
        store.get_online_features([f"clicks:{one.name}" for one in VIEW.outputs], [{"user": user}])


def test_a_wrong_value_in_redis_is_a_mismatch_once_the_log_has_reached_it(served, tmp_path, redis_client):
    log, store = served
    watch = Watch(log.root, served_root=tmp_path / "served")
    users = [f"u{n}" for n in range(20)]
    read(store, *users)
    redis_client.hset("unskew:clicks@1:{u3}", "spend", "12345.5")
    read(store, *users)

    ahead = watch.look(NOW).views[0]
    log.feed(clicks(MIDDLE, MIDDLE + 1, 1, 0), MIDDLE + 2 * HOUR)
    found = watch.look(NOW).views[0]
    again = watch.look(NOW).views[0]
    code, said = invoke("monitor", "--once", "--log", log.root, "--served", tmp_path / "served")

    assert (ahead.compared, ahead.mismatches) == (0, 0)
    assert (found.compared, found.mismatches) == (21, 1)
    assert [str(one.where) for one in found.over] == ["clicks@1, served rows"]
    (example,) = found.examples
    assert (example.entity, example.feature, example.found) == (("u3",), "spend", 12345.5)
    # Each row once, and by a watch that begins now the same.
    assert (again.compared, again.mismatches) == (21, 1)
    assert code == monitor.OVER
    assert "21, of which 1 differ" in said
    assert "spend was served as 12345.5, and is" in said


def test_requests_are_a_distribution_of_their_own(tmp_path):
    log = grown(tmp_path / "log")
    (tmp_path / "served").mkdir()
    line = {"view": "clicks@1", "state": VIEW.state_fingerprint, "presentation": VIEW.presentation_fingerprint}
    values = population_values(log)
    lines = [
        # Requests of what the log has not reached; the same users' spending, and other counts.
        {**line, "key": f"u{number}", "as_of": END + number, "values": {"spend": spend, "count": 9}}
        for number, spend in enumerate(values)
    ]
    path = tmp_path / "served" / "served-1.jsonl"
    path.write_text("".join(f"{json.dumps(one)}\n" for one in lines))

    look = Watch(
        log.root, baselines=[read_baseline(baseline_of(log.root, tmp_path))], served_root=tmp_path / "served"
    ).look(NOW)

    assert states(look, "requests") == {"count": "drift", "spend": "fine"}
    assert set(states(look, "population").values()) == {"fine"}
    assert (look.views[0].compared, [one.where for one in look.over]) == (
        0,
        ["clicks@1:count, requests against middle"],
    )


def population_values(log: Growing) -> list[float]:
    values, _ = values_at(ViewLog(log.root, log.plan.published), MIDDLE - 1)
    return values["spend"].to_list()


def test_served_values_of_every_type_are_counted():
    for feature in TYPED.published.features:
        values = pl.Series(feature.name, [FULL[feature.name], None], feature.dtype.polars)

        assert Bins.none(feature.dtype).counts(values).tolist() == [1, 1, 0], feature.name


def test_a_baseline_of_another_definition_is_refused_and_hides_no_other_view(tmp_path):
    log = grown(tmp_path / "log")
    other = republished(VIEW, name="taps")
    grown(tmp_path / "log", other, n_users=30)
    kept = population_baseline(ViewLog(log.root, VIEW.published), MIDDLE - 1)
    retyped = [msgspec.structs.replace(one, type="string") if one.name == "last" else one for one in kept.features]
    cases = {
        "another": (
            msgspec.structs.replace(kept, state_fingerprint="1" * 64),
            "was defined otherwise when it was made",
        ),
        "retyped": (
            msgspec.structs.replace(kept, features=tuple(retyped)),
            "it has clicks@1:last as string, and the log has it as int64",
        ),
        "of_texts": (
            msgspec.structs.replace(
                kept,
                features=tuple(
                    msgspec.structs.replace(
                        one, distribution=msgspec.structs.replace(one.distribution, edges=("a",) * 9)
                    )
                    for one in kept.features
                ),
            ),
            "is not one of int64",
        ),
    }
    for name, (file, message) in cases.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(file.to_json())
        watch = Watch(log.root, baselines=[read_baseline(path)])

        look = watch.look(NOW)

        assert [one.view for one in look.views] == ["taps@1"]
        assert message in str(look.refused[0])
        code, said = invoke("monitor", "--once", "--log", log.root, "--baseline", path)
        assert code == 1
        assert "error: " in said
    # Without --once, what is wrong at the first look ends the command.
    code, said = invoke("monitor", "--log", log.root, "--baseline", path)
    assert (code, "error: baseline of_texts: " in said) == (1, True)
    with pytest.raises(RequestError, match="two baselines are called 'another'"):
        Watch(log.root, baselines=[read_baseline(tmp_path / "another.json")] * 2)


def test_a_folder_of_baselines_is_read_anew_at_each_look(tmp_path):
    log = grown(tmp_path / "log")
    folder = tmp_path / "baselines"
    folder.mkdir()
    (folder / ".hidden.json").write_text("no baseline")
    watch = Watch(log.root, baselines=Baselines([folder]))

    def judged() -> set[tuple[str | None, str]]:
        (found,) = watch.look(NOW).views
        return {(one.baseline, one.state) for one in found.features}

    assert judged() == {(None, "no baseline")}
    path = baseline_of(log.root, folder)
    assert judged() == {("middle", "fine")}
    path.rename(folder / "later.json")
    assert judged() == {("later", "fine")}
    log.feed(clicks(T0 + 7 * DAY, T0 + 9 * DAY, 8, factor=4.0), T0 + 9 * DAY)
    assert ("later", "drift") in judged()
    (folder / "later.json").write_bytes(
        population_baseline(ViewLog(log.root, VIEW.published), T0 + 9 * DAY - 1).to_json()
    )
    assert judged() == {("later", "fine")}
    (folder / "broken.json").write_text("{")
    with pytest.raises(RequestError, match=r"broken\.json is not a baseline"):
        watch.look(NOW)
    (folder / "broken.json").unlink()
    (tmp_path / "again").mkdir()
    shutil.copy(folder / "later.json", tmp_path / "again")
    assert judged() == {("later", "fine")}
    code, said = invoke("monitor", "--once", "--log", log.root, "--baseline", folder, "--baseline", tmp_path / "again")
    assert (code, "two baselines are called 'later'" in said) == (1, True)
    assert invoke("monitor", "--once", "--log", log.root, "--baseline", folder)[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "is not a manifest of a training set"),
        (b"no JSON", "is not a baseline"),
        (b'{"format": 9, "kind": "population"}', "has format 9, but this version reads 1"),
        (b'{"format": 1, "kind": "population", "view": 3}', "is not a baseline"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_not_a_baseline_is_refused(tmp_path, content, message):
    grown(tmp_path / "log", n_users=5)
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)

    code, said = invoke("monitor", "--once", "--log", tmp_path / "log", "--baseline", path)

    assert code == 1
    assert message in said


def test_the_command_baseline_writes_what_the_monitor_reads(tmp_path):
    log = grown(tmp_path / "log")
    path = tmp_path / "kept.json"
    arguments = ("baseline", "clicks", "--log", log.root, "-o", path)

    assert invoke(*arguments) == (
        0,
        (
            f"clicks@1: 4 features of 500 entities in {path}\n"
            "warming at that instant, so their values change while their windows fill: count, spend, last, mean\n"
        ),
    )
    assert "is there already" in invoke(*arguments)[1]
    for at, message in (
        ("2030-01-01T00:00:00Z", "give an earlier instant"),
        ("2010-01-01T00:00:00Z", "give a later instant"),
    ):
        code, said = invoke(*arguments[:-1], tmp_path / "other.json", "--at", at)
        assert (code, message in said) == (1, True), said
    log.feed(clicks(MIDDLE, T0 + 6 * DAY, 4), T0 + 6 * DAY)
    assert "warming" not in invoke(*arguments, "--overwrite")[1]
    code, said = invoke("monitor", "--once", "--log", log.root, "--baseline", path)
    assert code == 0
    assert "nothing is over its limit" in said
    assert "0.000" in said


def test_json_is_json_also_where_nobody_has_a_value(tmp_path):
    log = grown(tmp_path / "log")
    baseline = baseline_of(log.root, tmp_path)
    # Everybody's window has emptied.
    log.feed(clicks(T0 + 30 * DAY, T0 + 30 * DAY + HOUR, 7, 1), T0 + 30 * DAY + HOUR)
    log.feed(clicks(T0 + 60 * DAY, T0 + 60 * DAY + HOUR, 7, 0), T0 + 60 * DAY)
    report = tmp_path / "look.json"

    code, said = invoke("monitor", "--once", "--json", "--log", log.root, "--baseline", baseline, "--report", report)

    assert code == 0, said
    for text in (said, report.read_text()):
        (view,) = msgspec.json.decode(text)["views"]
        assert (view["entities"], {one["n"] for one in view["features"]}) == (0, {0})
        assert {one["limit"] for one in view["features"]} == {None}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_fits_terminals_and_cuts_no_number(tmp_path, width):
    long = republished(VIEW, name="a_view_with_a_name_of_forty_characters_1")
    log = grown(tmp_path / "log", long)
    baselines = [read_baseline(baseline_of(log.root, tmp_path, long))]
    (found,) = Watch(log.root, baselines=baselines).look(NOW).views
    wide = [
        replace(one, feature=one.feature * 12, n=12_345_678, baseline="a baseline of a long name")
        for one in found.features
    ]

    shown = drawn(monitor._table(replace(found, features=wide)), width)

    assert wider(shown, width) == []
    assert shown.count("12,345,678") == 4
    assert broken(shown, [*(one.feature for one in wide), *(one.of for one in wide), "KL", "JS"]) == []


def test_metrics_have_the_labels_of_the_log_and_of_the_baselines_alone(tmp_path):
    log = grown(tmp_path / "log")
    exposed = Exposed()
    assert exposed.unready_reasons() == ["no look is complete yet"]
    exposed.show(Watch(log.root, baselines=[read_baseline(baseline_of(log.root, tmp_path))]).look(NOW))

    families = {one.name: one for one in text_string_to_metric_families(generate_latest(exposed.registry()).decode())}

    psi = families["unskew_feature_psi"].samples
    assert [one.labels for one in psi] == [
        {"view": "clicks@1", "feature": one.name, "baseline": "middle", "of": "population"} for one in VIEW.outputs
    ]
    assert [one.value for one in families["unskew_view_entities"].samples] == [500]
    assert [one.value for one in families["unskew_log_published_age_seconds"].samples] == [(NOW - MIDDLE + 1) / 1e6]
    assert all(0.2 <= one.value <= 0.3 for one in families["unskew_feature_psi_limit"].samples)
    documented = Path(__file__).parents[2] / "docs" / "monitoring.md"
    explained = {line.split("`")[1] for line in documented.read_text().splitlines() if line.startswith("| `unskew_")}
    exposed_names = {
        f"{name}_total" if one.type == "counter" else f"{name}_info" if one.type == "info" else name
        for name, one in families.items()
        if name.startswith("unskew_")
    }
    assert exposed_names == explained
    exposed.failed(RequestError("the disk is away"))
    assert exposed.unready_reasons() == ["the disk is away"]
    assert exposed.dead_reasons() == []


@pytest.mark.long
def test_a_monitor_that_is_killed_says_the_same_when_it_is_started_again(tmp_path):
    log = grown(tmp_path / "log")
    path = baseline_of(log.root, tmp_path)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    before = sorted(log.root.rglob("*"))

    def start() -> subprocess.Popen[str]:
        command = ["monitor", "--log", log.root, "--baseline", path, "--metrics", port, "--every", "1s", "--json"]
        return subprocess.Popen([sys.executable, "-m", "unskew", *map(str, command)], stdout=subprocess.PIPE, text=True)

    def line(process: subprocess.Popen[str]) -> dict:
        found = json.loads(process.stdout.readline())
        return {name: found[name] for name in ("over", "refused")} | {
            "views": [
                {name: value for name, value in one.items() if not name.endswith("age_us")} for one in found["views"]
            ]
        }

    first = start()
    said = [line(first), line(first)]
    first.kill()
    first.communicate()
    second = start()
    said.append(line(second))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        metrics = reply.read().decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30) as reply:
        ready = json.load(reply)
    second.send_signal(signal.SIGTERM)

    second.communicate(timeout=30)
    assert second.returncode == 0
    assert said[0] == said[1] == said[2]
    assert 'unskew_view_entities{view="clicks@1"} 500.0' in metrics
    assert ready == {"ok": True, "reasons": [], "views": ["clicks@1"], "over": []}
    assert sorted(log.root.rglob("*")) == before
