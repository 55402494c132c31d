"""Every command does in an object store what it does on a disk."""

import json
import threading
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from tests.agreement import test_import
from tests.agreement.test_objects import in_store, table
from tests.agreement.test_retain import DEFINITIONS, LATER, RECORDS
from tests.support.pipeline import Bench
from tests.support.servers.objects import SeaweedFS
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.offline import erasing
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables.layout import published_files, read_coverage, view_roots


def rows(deployment: Deployment) -> dict[str, object]:
    """What readers see of log and archive, and what coverage says of them."""
    found: dict[str, object] = {}
    for name, version, root in view_roots(deployment.log):
        found[f"{name}@{version}"] = repr(table(root).sort("shard", "seq").rows())
        found[f"coverage of {name}@{version}"] = read_coverage(root)
    for root in deployment.archive.iterdir():
        if not root.name.startswith("_"):
            found[root.name] = repr(table(root).sort("_partition", "_offset").rows())
    return found


def left_by_locks(bucket: ObjectPath) -> list[ObjectPath]:
    return [one for one in bucket.objects() if one.name == "lock" or {"_leases", "_probe"} & set(one.parts)]


def done(words: list[str], *, code: int = 0) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, f"{' '.join(words)}: {result.output}"
    assert "Traceback" not in result.output, result.output
    return result.output


@pytest.mark.long
def test_each_command_does_in_an_object_store_what_it_does_on_a_disk(
    bench: Bench, bucket: ObjectPath, object_server: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = bench.produce(RECORDS[:200], n_partitions=2)
    definitions = tmp_path / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    plan = load(definitions)
    near = bench.deployment(n_hashes=2)
    both = {"near": near, "far": in_store(bench.deployment(n_hashes=2), bucket / "place")}
    for deployment in both.values():
        run(plan, deployment, stop=threading.Event())
    assert rows(both["far"]) == rows(near)
    instants = table(near.log / "by_user" / "v1")["available_at"].unique().sort()
    labels = pl.DataFrame({"user": [f"user {n}%" for n in range(5)]}).join(
        pl.DataFrame({"event_timestamp": instants.gather_every(7)}), how="cross"
    )
    labels.write_parquet(tmp_path / "labels.parquet")

    def folders(one: Deployment, *names: str) -> list[str]:
        every = {"log": one.log, "archive": one.archive, "dead-letters": one.dead_letters, "state": one.state}
        return [f"--{name}={every[name]}" for name in names]

    def on_both(*words: str, where: tuple[str, ...]) -> None:
        for one in both.values():
            done([*words, *folders(one, *where)])

    sets = {}
    for name, one in both.items():
        out = tmp_path / f"{name}.parquet"
        done(
            [
                "train",
                str(tmp_path / "labels.parquet"),
                "-f",
                "by_user:n",
                "-f",
                "by_user:total",
                "--outside",
                "null",
                "--output",
                str(out),
                *folders(one, "log"),
            ]
        )
        sets[name] = (pl.read_parquet(out), (tmp_path / f"{name}.manifest.json").read_bytes())
    assert sets["far"][0].equals(sets["near"][0])
    assert json.loads(sets["far"][1]) == json.loads(sets["near"][1])
    on_both("log", "stats", "by_user", where=("log",))
    on_both("log", "head", "by_user", where=("log",))
    for workers in ("1", "2"):
        on_both("diff", str(definitions), str(definitions), "--workers", workers, where=("archive",))
    on_both("publish", where=("log",))
    on_both("compact", "--min-files", "2", "--set-aside", where=("log", "archive"))
    assert rows(both["far"]) == rows(near)
    on_both("compact", "--min-files", "2", "--span", "3d", "--grace", "0s", where=("log", "archive"))
    assert rows(both["far"]) == rows(near)
    for one in both.values():
        assert any(file.first_day < file.last_day for file in published_files(one.log / "by_user" / "v1"))
    on_both("publish", where=("log",))
    on_both("publish", "--rebuild", where=("log",))
    for name, one in both.items():
        root = one.log / "by_user" / "v1"
        options = {} if name == "near" else {"storage_options": object_server.environment}
        seen = pl.scan_delta(str(root), **options).select("shard", "seq").collect()
        assert sorted(seen.rows()) == sorted(table(root).select("shard", "seq").rows())
    for name, one in both.items():
        out = tmp_path / f"{name}.again.parquet"
        done(
            [
                "train",
                "--reproduce",
                str(tmp_path / f"{name}.manifest.json"),
                str(tmp_path / "labels.parquet"),
                "--output",
                str(out),
                *folders(one, "log"),
            ]
        )
        assert pl.read_parquet(out).equals(sets[name][0])
    on_both(
        "retain",
        f"--definitions={definitions}",
        "--keep-log=2d",
        "--keep-archive=3d",
        "--dry-run",
        where=("log", "archive"),
    )
    on_both(
        "retain",
        f"--definitions={definitions}",
        "--keep-log=2d",
        "--keep-archive=3d",
        "--grace=0s",
        where=("log", "archive"),
    )
    assert rows(both["far"]) == rows(near)
    definitions.write_text(definitions.read_text() + LATER)
    bench.append(topic, RECORDS[200:])
    plan = load(definitions)
    for one in both.values():
        run(plan, one, stop=threading.Event())
    assert rows(both["far"]) == rows(near)
    where = ("log", "archive", "dead-letters", "state")
    on_both("erase", "user", "user 3%", f"--definitions={definitions}", f"--redis-url={bench.redis_url}", where=where)
    assert rows(both["far"]) == rows(near)
    on_both("compact", "--min-files", "2", "--span", "4d", "--grace", "0s", where=("log", "archive"))
    assert rows(both["far"]) == rows(near)
    for one in both.values():
        run(plan, one, stop=threading.Event())
    assert rows(both["far"]) == rows(near)
    assert left_by_locks(bucket) == []
    words = ["erase", "user", "user 2%", f"--definitions={definitions}", f"--redis-url={bench.redis_url}"]
    search = erasing.search

    def in_between(place: str, *more: object) -> erasing.Searched:
        # A pipeline whose state is not named publishes.
        path = both["far"].log / "by_user" / "v1" / "_coverage" / "p0.0.json"
        path.write_bytes(path.read_bytes() + b" ")
        return search(place, *more)

    monkeypatch.setattr(erasing, "search", in_between)
    assert "was written meanwhile by a pipeline" in done([*words, *folders(both["far"], *where)], code=1)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.long
def test_history_comes_into_an_object_store_as_it_does_onto_a_disk(
    bench: Bench, bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = test_import.RECORDS
    topic = bench.produce(records[: test_import.FIRST])
    definitions = tmp_path / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    near = bench.deployment(n_hashes=2, start="latest")
    both = {"near": near, "far": in_store(bench.deployment(n_hashes=2, start="latest"), bucket / "place")}
    for part in ([], records[test_import.FIRST : test_import.SECOND]):
        bench.append(topic, part)
        for one in both.values():
            run(load(definitions), one, stop=threading.Event())
    test_import.events(records).write_parquet(tmp_path / "past.parquet")
    definitions.write_text(definitions.read_text() + LATER)

    def words(command: str, one: Deployment, *more: str) -> list[str]:
        places = [f"--definitions={definitions}", f"--archive={one.archive}", f"--state={one.state}"]
        return [*command.split(), *more, *places]

    def imports(one: Deployment, *more: str) -> str:
        past = str(tmp_path / "past.parquet")
        return done(words(f"import purchases {past} --arrival arrived --partition p", one, *more))

    monkeypatch.setattr("unskew.sinks.lease.STALE_S", 0.5)
    put, left = ObjectPath.write_bytes, [4]

    def killed(path: ObjectPath, data: bytes) -> int:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return put(path, data)

    monkeypatch.setattr(ObjectPath, "write_bytes", killed)
    with pytest.raises(Killed):
        imports(both["far"])
    monkeypatch.setattr(ObjectPath, "write_bytes", put)
    # What a killed command leaves.
    (both["far"].archive / "_leases" / f"{topic}.lock").write_bytes(b"left")
    said = {name: imports(one) for name, one in both.items()}
    assert said["far"] == said["near"]
    assert "imported already" in imports(both["far"])
    assert rows(both["far"]) == rows(near)
    for one in both.values():
        imports(one, "--again", "--skip-refused")
    assert rows(both["far"]) == rows(near)
    for one in both.values():
        done(words("backfill later", one, f"--log={one.log}"))
        done(words("backfill later --again", one, f"--log={one.log}"))
        done(["purge", "later@1", "--backfill", f"--log={one.log}", f"--state={one.state}"])
        done(words("backfill later", one, f"--log={one.log}"))
    bench.append(topic, records[test_import.SECOND :])
    for one in both.values():
        run(load(definitions), one, stop=threading.Event())
    assert rows(both["far"]) == rows(near)
    assert left_by_locks(bucket) == []


@pytest.mark.long
def test_a_view_over_a_table_has_its_log_in_an_object_store(bench: Bench, bucket: ObjectPath, tmp_path: Path) -> None:
    past = tmp_path / "past.parquet"
    test_import.events(test_import.RECORDS).write_parquet(past)
    definitions = tmp_path / "definitions.py"
    text = DEFINITIONS.replace("Stream,", "Table,").replace(
        'Stream("purchases", topic={topic!r}, schema=SCHEMA, event_time="at", partitioned_by="user", owner="tests")',
        'Table("purchases", path={path!r}, schema=SCHEMA, event_time="at", arrival="arrived", owner="tests")',
    )
    definitions.write_text(text.format(path=str(past)))
    near = bench.deployment()
    both = {"near": near, "far": in_store(bench.deployment(), bucket / "place")}
    for until, more in (
        ("2017-03-26T02:00:00Z", []),
        ("2017-03-27T00:00:00Z", []),
        ("2017-03-26T03:00:00Z", ["--again"]),
    ):
        for one in both.values():
            options = [f"--log={one.log}", f"--archive={one.archive}", f"--state={one.state}", f"--prefix={one.prefix}"]
            done(
                [
                    "materialize",
                    "--apply",
                    f"--definitions={definitions}",
                    f"--until={until}",
                    f"--redis-url={bench.redis_url}",
                    *options,
                    *more,
                ]
            )
        assert rows(both["far"]) == rows(near)
