"""The commands of docs/registry.md and docs/operations.md run on a deployment, word for word but for its places."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tests.support.servers.valkey import wait_until
from unskew import FeatureStore, RequestError
from unskew.demo.embedded import EmbeddedBroker

DOCS = Path(__file__).parents[1] / "docs"
# What a page leaves to its reader, or what takes more than one machine.
OPEN = re.compile(r"\.\.\.|host-[ab]|s3://|^docker|--partitions")
COMMAND = re.compile(r"^    (?:\S+ \* \* \* \*  )?((?:[A-Z_]+=\S+ )*unskew [a-z].*?)(?: +#.*| {3,}.*)?$", re.MULTILINE)

SCHEMA = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "seen", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
DEFINITIONS = """\
from unskew import Entity, Feature, FeatureView, Sliding, Stream, Table, agg

user = Entity("user", key="user_id")
purchases = Stream(
    "purchases", topic="purchases", schema="purchase.avsc", event_time="event_time", partitioned_by="user_id",
    settle="100ms", read_as={"seen": "unix-s"},
)
lines = Table("lines", path="lines.parquet", schema="purchase.avsc", event_time="event_time", zone="UTC", delay="1min")


def spending(version, aggregation, **more):
    window = Sliding("5s", hop="1s")
    features = [Feature("spend", aggregation("amount"), window), Feature("seen", agg.max("seen"), window)]
    return FeatureView("user_purchases", version=version, entity=user, stream=purchases, features=features, **more)


{views}
of_table = FeatureView("user_lines", entity=user, stream=lines, features=[Feature("n", agg.count(), Sliding("1d"))])
"""
FIRST = 'first = spending(1, agg.sum, description="{}")'
BOTH = "first, second = spending(1, agg.sum, serving=True), spending(2, agg.max)"

SOMETHING_WOULD_CHANGE = 2
PATIENCE_S = 120.0
USERS = ["u-41", "u-42", "u-43", "u-44"]


class Site:
    """A deployment in a folder, as the pages have it: definitions, log, archive and so on side by side."""

    def __init__(self, root: Path, broker: EmbeddedBroker, redis_url: str) -> None:
        self.root = root
        self.environment = {
            **os.environ,  # noqa: TID251 - a shell of somebody who operates it has it
            "UNSKEW_BOOTSTRAP_SERVERS": broker.bootstrap,
            "UNSKEW_REDIS_URL": redis_url,
            "UNSKEW_DEFINITIONS": "definitions",
            "UNSKEW_EPOCH": "200ms",
            **{f"UNSKEW_{name.upper()}": name for name in ("log", "archive", "dead_letters", "state")},
        }
        (root / "definitions").mkdir()
        (root / "definitions" / "purchase.avsc").write_text(json.dumps(SCHEMA))
        # One folder under all names that the pages use for it.
        for name in ("defs", "DEFINITIONS"):
            (root / name).symlink_to("definitions")
        (root / "data").symlink_to(".")

    def define(self, views: str) -> None:
        (self.root / "definitions" / "features.py").write_text(DEFINITIONS.replace("{views}", views))

    def run(self, command: str, status: int = 0) -> str:
        """Run a command in the folder, agreeing where it would ask on a terminal; return what it prints."""
        if command.split()[1] in {"apply", "rollback"}:
            command += " --yes"
        line = re.sub(r"\bunskew ", f"{sys.executable} -m unskew ", command, count=1)
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[None]:
        """Let a command run; a signal to stop ends it orderly."""
        words = [sys.executable, "-m", *command.split()]
        with subprocess.Popen(words, cwd=self.root, env=self.environment, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


class Page:
    """The commands of a page that one machine can run, whole."""

    def __init__(self, name: str) -> None:
        text = re.sub(r"\\\n\s+", " ", (DOCS / name).read_text("utf-8"))
        self.left = [command for command in COMMAND.findall(text) if not OPEN.search(command)]
        self._all = list(self.left)

    def command(self, beginning: str) -> str:
        """Return the only command that begins so."""
        (found,) = [command for command in self._all if command.startswith(f"unskew {beginning}")]
        self.left = [command for command in self.left if command != found]
        return found


def row(user: str, at: datetime, **more: object) -> dict[str, object]:
    return {"user_id": user, "amount": 2.5, "seen": int(at.timestamp()), "event_time": at, **more}


def send(site: Site, rows: list[dict[str, object]]) -> None:
    lines = (json.dumps(one, default=str) for one in rows)
    (site.root / "events.jsonl").write_text("\n".join(lines))
    site.run("unskew produce purchases events.jsonl")


@pytest.mark.long
def test_what_the_pages_show_runs_in_the_order_of_a_deployment_s_life(
    broker: EmbeddedBroker, redis_url: str, tmp_path: Path
) -> None:
    registry, operations = Page("registry.md"), Page("operations.md")
    site = Site(tmp_path, broker, redis_url)
    broker.create_topic("purchases", 4)
    now = datetime.now(UTC)
    pl.DataFrame([row(user, now - timedelta(days=2)) for user in USERS]).write_parquet(
        tmp_path / "definitions" / "lines.parquet"
    )
    (tmp_path / "exported").mkdir()
    past = [row(user, now - timedelta(hours=2), loaded_at=now - timedelta(hours=2)) for user in USERS]
    pl.DataFrame(past).write_parquet(tmp_path / "exported" / "part.parquet")

    # Revisions 1 to 4 describe the view in other words, and revision 5 has its next version.
    for number in range(1, 5):
        site.define(FIRST.format(f"description {number}"))
        site.run(operations.command("check "))
        if number == 1:
            site.run(operations.command("doctor "))
        else:
            site.run(registry.command("plan "), status=SOMETHING_WOULD_CHANGE)
        site.run(operations.command("apply ") if number == 1 else registry.command("apply "))
    with site.running(operations.command("run --idle wall")):
        send(site, [row(user, datetime.now(UTC)) for user in USERS] * 3)
        send(site, [row("u-42", datetime.now(UTC), seen=10**18)])
        wait_until(lambda: list(tmp_path.glob("dead_letters/purchases/day=*/*.parquet")), "the dead letter", PATIENCE_S)
    site.run(operations.command("import "))
    site.define(BOTH)
    site.run(registry.command("apply "))
    site.run(operations.command("backfill "))
    with (
        site.running(operations.command("run --idle wall")),
        FeatureStore(redis_url=redis_url, log=tmp_path / "log", sample=True) as store,
    ):

        def spent() -> float | None:
            send(site, [row(user, datetime.now(UTC)) for user in USERS])
            # Until the pipeline publishes it, there is no version 2.
            with contextlib.suppress(RequestError):
                spends = store.get_online_features(["user_purchases@2:spend"], [{"user_id": "u-42"}]).to_dict()
                return spends["spend"][0]
            return None

        wait_until(
            lambda: spent() and list(tmp_path.glob("log/_served/*")),
            "values of the new version are served, and sampled",
            PATIENCE_S,
        )
        site.run(registry.command("promote "))

    assert "promote user_purchases@2" in site.run(registry.command("registry log "))
    for beginning in ("registry show ", "registry diff ", "rollback "):
        site.run(registry.command(beginning))
    (tmp_path / "changed").mkdir()
    changed = DEFINITIONS.replace("{views}", FIRST).replace('"5s"', '"10s"')
    (tmp_path / "changed" / "features.py").write_text(changed)
    (tmp_path / "changed" / "purchase.avsc").write_text(json.dumps(SCHEMA))
    for beginning in (
        "diff definitions/",
        "diff user_purchases@1",
        'materialize --until "$(date -u +%Y-%m-%dT%H:00:01Z)" --',
    ):
        site.run(operations.command(beginning))
    report = json.loads(site.run(operations.command("audit --since")))
    assert report["differences"] == []
    assert {view["view"]: view["served"] for view in report["views"]}["user_purchases@2"] > 0
    assert "range" in site.run(operations.command("dead-letters list"))
    (letter,) = json.loads(site.run("unskew dead-letters list --json"))["letters"]
    place = f"{letter['topic']}/{letter['partition']}/{letter['offset']}"
    site.run(operations.command("dead-letters show purchases/").replace("purchases/3/4711", place))
    site.run(operations.command("dead-letters show --reason"))
    at = datetime.now(UTC)
    mended = row("u-42", at, event_time=int(at.timestamp() * 1_000_000))
    letters = json.loads((tmp_path / "mend.jsonl").read_text()) | {"mended": mended}
    (tmp_path / "mend.jsonl").write_text(json.dumps(letters))
    site.run(operations.command("dead-letters replay"))
    for beginning in ("retain ", "erase "):
        site.run(operations.command(beginning).replace("redis://localhost:6379/0", redis_url))
    # What cron runs is shown once more, without a cron.
    assert registry.left == []
    assert [command for command in operations.left if "/var/lib" not in command and r"\%" not in command] == []
