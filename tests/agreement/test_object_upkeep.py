"""Every command does in an object store what it does on a disk."""

import json
import threading
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from tests.agreement.test_objects import in_store, table
from tests.agreement.test_retain import DEFINITIONS, LATER, RECORDS
from tests.support.pipeline import Bench
from tests.support.servers.objects import SeaweedFS
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables.layout import read_coverage, view_roots


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


def done(words: list[str], *, code: int = 0) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, f"{' '.join(words)}: {result.output}"
    assert "Traceback" not in result.output, result.output
    return result.output


@pytest.mark.long
def test_each_command_does_in_an_object_store_what_it_does_on_a_disk(
    bench: Bench, bucket: ObjectPath, object_server: SeaweedFS, tmp_path: Path
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
        """Both say the same, but for the address, and sizes in bytes."""
        said = {name: done([*words, *folders(one, *where)]) for name, one in both.items()}
        print(said["far"])

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
    on_both("compact", "--min-files", "2", "--grace", "0s", where=("log", "archive"))
    assert rows(both["far"]) == rows(near)
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
    print([str(x) for x in bucket.objects()])
    definitions.write_text(definitions.read_text() + LATER)
    bench.append(topic, RECORDS[200:])
    plan = load(definitions)
    for one in both.values():
        run(plan, one, stop=threading.Event())
    assert rows(both["far"]) == rows(near)
    where = ("log", "archive", "dead-letters", "state")
    on_both("erase", "user", "user 3%", f"--definitions={definitions}", f"--redis-url={bench.redis_url}", where=where)
    assert rows(both["far"]) == rows(near)
    on_both("compact", "--min-files", "2", "--grace", "0s", where=("log", "archive"))
    assert rows(both["far"]) == rows(near)
    for one in both.values():
        run(plan, one, stop=threading.Event())
    assert rows(both["far"]) == rows(near)
    assert not [str(x) for x in bucket.objects() if x.name == "lock" or "_leases" in x.parts or "_probe" in x.parts]
