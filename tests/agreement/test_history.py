"""A view that joins a running pipeline gets its past from the archive, as if it had been there from the beginning."""

import datetime as dt
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import polars as pl
import pytest
import redis
from bytewax.errors import BytewaxRuntimeError
from click.testing import CliRunner, Result

from tests.support.pipeline import Bench, Outcome, agreed, bits, history, plan
from tests.support.plans import republished
from tests.support.servers.broker import Broker
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import Plan
from unskew.monitoring.recount import Recount
from unskew.pipelines import run as running
from unskew.pipelines.deployment import owner_of
from unskew.pipelines.history import archive, backfill
from unskew.pipelines.history.ahead import Ahead, backfill_ahead
from unskew.pipelines.history.handover import HandOver
from unskew.pipelines.history.seam import Seam
from unskew.pipelines.run import run
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks import durable
from unskew.sinks.tables.layout import published_files, read_coverage, view_root

RECORDS = history(300, seed=23)


def without(both: Plan, view: str) -> Plan:
    return replace(both, views={name: one for name, one in both.views.items() if name != view})


def ran(one: Plan, outcome: Outcome) -> None:
    run(one, outcome.deployment, stop=threading.Event())


@pytest.mark.parametrize("n_hashes", [1, 3])
@pytest.mark.parametrize("later", ["by_user", "by_item"])
def test_a_view_that_is_new_gets_its_past(
    bench: Bench, later: str, n_hashes: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic = bench.produce(RECORDS[:100])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment(n_hashes=n_hashes))
    ran(without(both, later), outcome)
    bench.append(topic, RECORDS[100:200])
    ran(without(both, later), outcome)
    bench.append(topic, RECORDS[200:])
    ran(both, outcome)
    assert f"{later}@1 is new in Redis: writing all of its current values" in caplog.messages
    assert "Redis is empty" not in caplog.text
    always = Outcome(both, bench.deployment(n_hashes=n_hashes))
    ran(both, always)

    for view in both.views:
        expected = always.log(view)
        assert outcome.log(view).drop("cause").equals(expected.drop("cause"))
        assert outcome.complete_to(view) == always.complete_to(view)
        coverage, wanted = (read_coverage(view_root(one.deployment.log, view, 1)) for one in (outcome, always))
        assert coverage.since_us == wanted.since_us
        assert coverage.ledger == wanted.ledger
    causes = outcome.log(later)["cause"].value_counts()
    assert set(causes["cause"]) == {"event", "hop", "backfill"}
    assert served(bench, outcome) == served(bench, always) != {}
    agreed(both, outcome.deployment, samples=400)
    ran(both, outcome)
    assert not Seeds(outcome.deployment.state).root.exists()


def served(bench: Bench, outcome: Outcome) -> dict[str, dict[str, str]]:
    """All values in Redis by view and entity, without the prefix."""
    client = redis.Redis.from_url(bench.redis_url, decode_responses=True)
    prefix = outcome.deployment.prefix
    names = [f"{prefix}:{view.id}:" for view in outcome.plan.views.values()]
    return {
        key.removeprefix(prefix): client.hgetall(key)
        for key in client.scan_iter(f"{prefix}:*")
        if key.startswith(tuple(names))
    }


class Killed(BaseException):
    """The process ends here."""


def test_a_hand_over_that_is_killed_again_and_again_goes_on_where_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment(n_hashes=2))
    ran(without(both, "by_item"), outcome)
    bench.append(topic, RECORDS[200:])
    always = Outcome(both, bench.deployment(n_hashes=2))
    ran(both, always)
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 40)
    monkeypatch.setattr(archive, "BATCH_ROWS", 7)
    rename, left = durable.rename, [0]

    def killed(*arguments: object, **more: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        rename(*arguments, **more)

    n_kills = 0
    for step in range(1, 400, 3):
        left[0] = step
        monkeypatch.setattr(durable, "rename", killed)
        try:
            ran(both, outcome)
        except (Killed, BytewaxRuntimeError):
            n_kills += 1
        else:
            break
        finally:
            monkeypatch.setattr(durable, "rename", rename)

    assert n_kills >= 5
    for view in both.views:
        assert outcome.log(view).drop("cause").equals(always.log(view).drop("cause"))
    assert served(bench, outcome) == served(bench, always)


def test_a_view_without_history_begins_where_the_others_are(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    bench.append(topic, RECORDS[200:])
    of_now = replace(both, views={**both.views, "by_item": replace(both.views["by_item"], history="none")})

    ran(of_now, outcome)

    since = {view: read_coverage(view_root(outcome.deployment.log, view, 1)).since_us for view in both.views}
    assert since["by_item"] > since["by_user"]
    assert "backfill" not in outcome.log("by_item")["cause"].to_list()


def test_a_new_version_gets_its_past_and_the_old_log_stays(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:200])
    one = plan(topic)
    outcome = Outcome(one, bench.deployment())
    ran(one, outcome)
    old = outcome.log("by_user")
    bench.append(topic, RECORDS[200:])
    view = one.views["by_user"]
    two = republished(view, version=2, state_fingerprint="1" * 64)

    ran(replace(one, views={**one.views, "by_user": two}), outcome)

    always = Outcome(one, bench.deployment())
    ran(one, always)
    root = view_root(outcome.deployment.log, "by_user", 2)
    rows = pl.concat([pl.read_parquet(file.path, hive_partitioning=False) for file in published_files(root)])
    expected = always.log("by_user").drop("cause")
    assert rows.sort("shard", "seq").select(expected.columns).equals(expected)
    assert outcome.log("by_user").equals(old)


def ahead(
    both: Plan,
    outcome: Outcome,
    *views: str,
    report: Callable[[str, int, int], None] = lambda *_: None,
    **changes: Any,
) -> list[Seam]:
    """Backfill beside the pipeline."""
    folders = outcome.deployment
    job = Ahead(
        views=[both.views[view] for view in views],
        log=folders.log,
        archive=folders.archive,
        state=folders.state,
        owner=owner_of("the backfill of a test", folders.state),
        **changes,
    )
    return backfill_ahead(job, threading.Event(), report)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_backfill_beside_the_pipeline_is_finished_by_its_next_run(bench: Bench, n_workers: int) -> None:
    topic = bench.produce(RECORDS[:150])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment(n_hashes=3))
    first = without(both, "by_item")
    # It ends where the others end: an event that comes after an end arrives after it.
    always = Outcome(both, bench.deployment(n_hashes=3))
    ran(both, always)
    ran(first, outcome)
    until_us = int(outcome.archive()["_arrival"].to_physical().sort()[60])
    ahead(both, outcome, "by_item", until_us=until_us, workers=n_workers)
    coverage = read_coverage(view_root(outcome.deployment.log, "by_item", 1))
    assert coverage is not None
    assert coverage.complete_to_us == until_us - 1
    bench.append(topic, RECORDS[150:250])
    ran(first, outcome)
    ran(both, always)
    (seam,) = ahead(both, outcome, "by_item", workers=n_workers)
    assert seam.events == outcome.archive().height
    assert seam.compared == 4
    bench.append(topic, RECORDS[250:])

    ran(both, outcome)

    ran(both, always)
    for view in both.views:
        assert outcome.log(view).drop("cause").equals(always.log(view).drop("cause"))
    assert served(bench, outcome) == served(bench, always)
    with pytest.raises(RequestError, match="computes it already"):
        ahead(both, outcome, "by_item")


def test_a_backfill_from_an_instant_covers_what_comes_after_it(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    archived = outcome.archive()
    from_us = int(archived["_arrival"].to_physical().sort()[80])
    ahead(both, outcome, "by_item", from_us=from_us)
    for bounds in ({"from_us": 4 * 10**15}, {"from_us": from_us, "until_us": from_us - 1}):
        with pytest.raises(RequestError, match=r"--from .*: the archived events of purchases-\d+ end at 2017"):
            ahead(both, outcome, "by_item", again=True, **bounds)
    with pytest.raises(LayoutError, match=r"another --from; go on with that, or begin again \(--again\)"):
        ahead(both, outcome, "by_item", from_us=from_us + 1)
    ahead(both, outcome, "by_item", from_us=from_us + 1, again=True)
    ahead(both, outcome, "by_item", from_us=from_us, again=True)
    bench.append(topic, RECORDS[200:])

    ran(both, outcome)

    coverage = read_coverage(view_root(outcome.deployment.log, "by_item", 1))
    assert coverage is not None
    assert coverage.since_us == from_us
    recount = Recount(both.views["by_item"], outcome.archive().filter(pl.col("_arrival").to_physical() >= from_us))
    rows = outcome.log("by_item")
    for (key,) in recount.entities.iter_rows():
        mine = rows.filter(pl.col("item") == key)["available_at"].to_physical().to_list()
        assert mine == [row.instant_us for row in recount.rows((key,), coverage.complete_to_us)]


def test_a_seam_that_does_not_fit_is_refused(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    (seam,) = ahead(both, outcome, "by_item")
    view = both.views["by_item"]
    seeds = Seeds(outcome.deployment.state)
    seed = seeds.read(view, "h0")
    assert seed is not None
    assert seam.events == sum(one.total for one in seed.taken.values()) == outcome.archive().height
    partition = next(p for p, one in seed.taken.items() if one.total > 3)

    for change in ({"n_events": -1}, {"n_events": 1}, {"sum_offsets": 1}):
        seed = seeds.read(view, "h0")
        assert seed is not None
        taken = seed.taken[partition]
        moved = {name: getattr(taken, name) + by for name, by in change.items()}
        wrong = {**seed.taken, partition: msgspec.structs.replace(taken, **moved)}
        seeds.write(view, "h0", msgspec.structs.replace(seed, taken=wrong), lambda: None)
        with pytest.raises(
            LayoutError, match=r"by_item@1: the seam of its backfill does not fit: from offset \d+ to \d+ of"
        ):
            ran(both, outcome)
        seed = seeds.read(view, "h0")
        assert seed is not None
        undone = {name: getattr(seed.taken[partition], name) - by for name, by in change.items()}
        right = {**seed.taken, partition: msgspec.structs.replace(seed.taken[partition], **undone)}
        seeds.write(view, "h0", msgspec.structs.replace(seed, taken=right), lambda: None)
    path = next((seeds.root / view.id).glob("*.seed"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(LayoutError, match=r"h0\.seed is damaged"):
        ran(both, outcome)
    path.write_bytes(whole)
    ran(both, outcome)


def test_a_refused_backfill_leaves_nothing_and_an_unused_one_is_purged(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    where = outcome.deployment
    tables = (where.log, where.state / "changelog", where.state / "backfill")
    before = sorted(path for root in tables for path in root.rglob("*"))
    damaged = min((where.archive / topic).glob("day=*/*.parquet"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:40] + b"?" + whole[41:])
    for start in (lambda: ahead(both, outcome, "by_item"), lambda: ran(both, outcome)):
        with pytest.raises(LayoutError, match="is damaged"):
            start()
        assert sorted(path for root in tables for path in root.rglob("*")) == before
    damaged.write_bytes(whole)
    ahead(both, outcome, "by_item")
    assert (where.log / "by_item").exists()

    assert "computes it, or has computed it" in purge(outcome, "by_user@1").output
    purged = purge(outcome, "by_item@1")
    assert purged.exit_code == 0, purged.output
    assert sorted(path for root in tables for path in root.rglob("*")) == before
    assert "holds no backfill of by_item@1" in purge(outcome, "by_item@1").output
    ran(both, outcome)
    assert outcome.log("by_item").height


def purge(outcome: Outcome, view_id: str) -> Result:
    where = outcome.deployment
    return CliRunner().invoke(main, ["purge", view_id, "--backfill", f"--state={where.state}", f"--log={where.log}"])


def labels_of(outcome: Outcome, n_labels: int) -> pl.DataFrame:
    """Users and items at instants of events, beside them and far from them, and one of each that nobody has seen."""
    events = outcome.archive()
    at = events["_arrival"].to_physical().gather_every(3)
    covered = [read_coverage(view_root(outcome.deployment.log, view, 1)) for view in outcome.plan.views]
    last_us = min(one.complete_to_us or 0 for one in covered if one is not None)
    instants = pl.concat([at, at + 1, at - 1, at + 7_000_000])
    instants = instants.clip(int(events["_arrival"].to_physical().min()), last_us)[:n_labels]  # type: ignore[arg-type]
    return pl.DataFrame(
        {
            "user": [f"user {number % 10}%" for number in range(len(instants))],
            "item": [number % 6 for number in range(len(instants))],
            "event_timestamp": instants.cast(pl.Datetime("us", "UTC")),
        }
    )


@pytest.mark.parametrize("inclusive", [False, True])
def test_features_from_events_are_those_of_the_log_bit_for_bit(bench: Bench, inclusive: bool) -> None:
    topic = bench.produce(RECORDS)
    both = plan(topic)
    outcome = Outcome(both, bench.deployment(n_hashes=2))
    ran(both, outcome)
    store = FeatureStore(both, log=outcome.deployment.log, archive=outcome.deployment.archive)
    references = [f"{view.name}:{feature.name}" for view in both.views.values() for feature in view.outputs]
    labels = labels_of(outcome, 300)

    answers = {
        source: store.get_historical_features(
            labels, references, inclusive=inclusive, full_feature_names=True, with_status=True, source=source
        )
        for source in ("log", "events", "both")
    }

    frames = [answer.to_polars() for answer in answers.values()]
    assert all(frame.equals(frames[0]) for frame in frames)
    assert len({tuple(answer.summary.rows()) for answer in answers.values()}) == 1
    assert frames[0]["by_user__count_today"].sum() > 100


def test_a_feature_that_no_pipeline_has_computed_is_computed_from_events(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    view = replace(both.views["by_item"], where=None)
    tried = replace(both, views={"by_item": view})
    store = FeatureStore(tried, archive=outcome.deployment.archive)
    labels = labels_of(outcome, 200)
    names = [feature.name for feature in view.outputs]

    found = store.get_historical_features(
        labels, [f"by_item:{name}" for name in names], inclusive=True, source="events"
    ).to_polars()

    recount = Recount(view, outcome.archive())
    for row in found.iter_rows(named=True):
        expected = recount.values((row["item"],), int(row["event_timestamp"].timestamp() * 1e6 + 0.5))
        assert bits([row[name] for name in names]) == bits(list(expected.values()))
    assert found["count_1m"].max() > 1
    with pytest.raises(RequestError, match="give its folder as log"):
        store.get_historical_features(labels, ["by_item:count_5s"])
    late = labels.with_columns(pl.col("event_timestamp") + dt.timedelta(days=1))
    with pytest.raises(RequestError, match="later than the log of by_item@1 is complete"):
        store.get_historical_features(late, ["by_item:count_5s"], source="events")
    with pytest.raises(RequestError, match="give their folder as archive"):
        FeatureStore(tried).get_historical_features(labels, ["by_item:count_5s"], source="events")
    with pytest.raises(RequestError, match="holds no events"):
        FeatureStore(tried, archive=bench.root).get_historical_features(labels, ["by_item:count_5s"], source="events")


def test_a_log_that_the_events_contradict_is_found(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(both, outcome)
    labels = labels_of(outcome, 200)
    other = replace(both.views["by_item"], where=None)
    tried = replace(both, views={"by_item": other})

    store = FeatureStore(tried, log=outcome.deployment.log, archive=outcome.deployment.archive)

    with pytest.raises(LayoutError, match=r"count_1m: \d+ of 200 labels have another value in the log than"):
        store.get_historical_features(labels, ["by_item:count_1m"], source="both")


@pytest.mark.needs_broker("topic ids")
def test_a_view_that_is_new_beside_a_partition_that_is_new(bench: Bench) -> None:
    """Its past is that of the partitions there were; the new one joins it as it joins the others."""
    assert isinstance(bench.broker, Broker)
    topic = bench.produce(RECORDS[:150], 4)
    both = by_item_alone(plan(topic))
    first = replace(both, views={"by_item": both.views["by_item"]})
    outcome, always = Outcome(both, bench.deployment(n_hashes=2)), Outcome(both, bench.deployment(n_hashes=2))
    ran(first, outcome)
    ran(both, always)
    bench.broker.add_partitions(topic, 5)
    moved = [replace(record, partition=4) if number % 3 == 0 else record for number, record in enumerate(RECORDS[150:])]
    bench.append(topic, moved)

    ran(both, outcome)
    ran(both, always)

    for view in both.views:
        assert outcome.log(view).drop("cause").equals(always.log(view).drop("cause"))
    assert served(bench, outcome) == served(bench, always)
    assert outcome.archive()["_partition"].max() == 4


def by_item_alone(both: Plan) -> Plan:
    """Two views of items, and none that its partitions keep apart."""
    stream = replace(both.streams["purchases"], partitioned_by=())
    view = replace(both.views["by_item"], stream=stream)
    other = replace(republished(view, name="other", state_fingerprint="2" * 64), where=None)
    return replace(both, streams={"purchases": stream}, views={"by_item": view, "other": other})


def test_a_partition_without_a_record_holds_up_neither_a_backfill_nor_the_run_after_it(bench: Bench) -> None:
    topic = bench.produce([record for record in RECORDS[:200] if record.partition != 2])
    both = plan(topic)
    outcome, always = Outcome(both, bench.deployment()), Outcome(both, bench.deployment())
    ran(without(both, "by_user"), outcome)
    ran(both, always)
    ahead(both, outcome, "by_user", from_us=int(outcome.archive()["_arrival"].to_physical().min()))  # type: ignore[arg-type]
    bench.append(topic, RECORDS[200:])

    ran(both, outcome)
    ran(both, always)

    assert outcome.log("by_user").drop("cause").equals(always.log("by_user").drop("cause"))


@pytest.mark.parametrize("epoch_s", [0.05, 30.0], ids=["files of a few events", "a file for each run"])
def test_events_that_are_removed_after_a_backfill_was_checked_are_not_missed(bench: Bench, epoch_s: float) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome, always = Outcome(both, bench.deployment(epoch_s=epoch_s)), Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    ran(both, always)
    ahead(both, outcome, "by_item")
    bench.append(topic, RECORDS[200:])
    ran(without(both, "by_item"), outcome)
    for partition in range(4):
        published_files(outcome.deployment.archive / topic, f"p{partition}")[0].path.unlink()

    ran(both, outcome)
    ran(both, always)

    assert outcome.log("by_item").drop("cause").equals(always.log("by_item").drop("cause"))


def test_a_backfill_goes_on_after_a_hand_over_that_was_killed_at_a_record_that_is_no_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow goes on after that record, and the archive ends before it."""
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    outcome, always = Outcome(both, bench.deployment()), Outcome(both, bench.deployment())
    ran(without(both, "by_item"), outcome)
    handed_over = running.hand_over

    def killed(job: HandOver) -> None:
        handed_over(job)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(running, "hand_over", killed)
        with pytest.raises(Killed):
            ran(both, outcome)
    with pytest.raises(
        RequestError, match=r"--until .*: the backfill of by_item@1 has come further already, to offset"
    ):
        ahead(both, outcome, "by_item", until_us=RECORDS[100].stamp_ms * 1000)
    (seam,) = ahead(both, outcome, "by_item")
    assert seam.events == outcome.archive().height
    bench.append(topic, RECORDS[200:])
    ran(without(both, "by_item"), outcome)
    ahead(both, outcome, "by_item")

    ran(both, outcome)
    ran(both, always)

    assert outcome.log("by_item").drop("cause").equals(always.log("by_item").drop("cause"))


@pytest.mark.parametrize("lost", ["a seed", "the log"])
def test_a_backfill_of_which_a_part_was_removed_says_how_to_begin_again(bench: Bench, lost: str) -> None:
    topic = bench.produce(RECORDS)
    both = plan(topic)
    outcome, always = Outcome(both, bench.deployment(n_hashes=2)), Outcome(both, bench.deployment(n_hashes=2))
    ran(without(both, "by_item"), outcome)
    ran(both, always)
    ahead(both, outcome, "by_item")
    if lost == "a seed":
        next((outcome.deployment.state / "backfill" / "by_item@1").glob("h0.seed")).unlink()
    else:
        shutil.rmtree(outcome.deployment.log / "by_item")

    for again in (lambda: ran(both, outcome), lambda: ahead(both, outcome, "by_item")):
        with pytest.raises(
            LayoutError, match=r"by_item@1: what is left of its backfill .* 'unskew backfill by_item@1 --again'"
        ):
            again()
    ahead(both, outcome, "by_item", again=True)
    ran(both, outcome)

    assert outcome.log("by_item").drop("cause").equals(always.log("by_item").drop("cause"))


def test_processes_that_share_a_topic_backfill_their_own_partitions(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:200])
    one = plan(topic).views["by_user"]
    both = replace(
        plan(topic), views={"by_user": one, "more": republished(one, name="more", state_fingerprint="3" * 64)}
    )
    folders = bench.deployment()
    states = {name: replace(folders, state=bench.root / name) for name in ("left", "right")}
    parts = [replace(states["left"], partitions=(0, 1)), replace(states["right"], partitions=(2, 3))]
    always = Outcome(both, bench.deployment())
    ran(both, always)
    outcomes = [Outcome(both, part) for part in parts]
    for outcome in outcomes:
        ran(without(both, "more"), outcome)
    ahead(both, outcomes[0], "more")
    bench.append(topic, RECORDS[200:])
    for outcome in outcomes:
        ran(both, outcome)
    ran(both, always)

    assert outcomes[0].log("more").drop("cause").equals(always.log("more").drop("cause"))
    assert served(bench, outcomes[0]) == served(bench, always)


def test_seeds_of_a_view_that_was_replaced_right_after_its_hand_over_go(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_user"), outcome)
    ran(both, outcome)
    assert Seeds(outcome.deployment.state).views() == ["by_user@1"]
    two = republished(both.views["by_user"], version=2, state_fingerprint="1" * 64)
    newer = replace(both, views={**both.views, "by_user": two})

    ran(newer, outcome)
    ran(newer, outcome)

    assert Seeds(outcome.deployment.state).views() == []
    with pytest.raises(RequestError, match="by_user@1: left out of an earlier run"):
        ahead(both, outcome, "by_user")
