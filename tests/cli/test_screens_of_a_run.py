"""Commands that show what a pipeline left, in terminals of several widths: nothing is broken, nothing stands out."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.pipeline import SCHEMA, START, Bench, Record
from tests.support.terminal import WIDTHS, broken, cells, in_terminal, wider
from unskew.cli import main
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.definitions.load import load
from unskew.pipelines.run import run

LONG = "how_much_a_user_has_spent_on_everything_in_all_the_time"
DEFINITIONS = """\
stream:
  {{name: purchases, topic: {topic}, schema: purchase.avsc, event_time: at, partitioned_by: user, owner: payments-team}}
---
entity: {{name: user, key: user}}
---
entity: {{name: user_and_item, key: [user, item]}}
---
name: spend
entity: user
source: purchases
owner: growth-and-retention-team
description: What a user has spent, as the team for growth and retention has wanted it for its models
features:
  - {{name: n, aggregation: {{function: count, window: lifetime}}, description: "Purchases ever, returns not counted"}}
  - {{name: {long}, aggregation: {{function: sum, value: amount, window: {window}}}}}
  - {{name: items, aggregation: {{function: last_n, value: item, n: 50, window: lifetime}}}}
---
name: bought
entity: user_and_item
source: purchases
features:
  - {{name: n, aggregation: {{function: count, window: lifetime}}}}
---
service: {{name: everything_about_users, features: [spend:n, "spend:{long}", spend:items]}}
"""
USERS = ["ann", "日本語🎉", "a name that has spaces and is long enough to be a nuisance in most terminals"]


class World:
    def __init__(self, bench: Bench, root: Path) -> None:
        self.root = root
        stamp_ms = START // 1000
        good = [Record(0, stamp_ms + n, USERS[n % 3], 10**15 + n, 2.5, True, START + n * 1000) for n in range(90)]
        self.topic = bench.produce([*good, Record(1, stamp_ms + 60_000, "bob", 1, float("nan"), True, START)], 2)
        (root / "purchase.avsc").write_text(json.dumps(SCHEMA))
        self.views = Path("views.yaml")
        self.views.write_text(DEFINITIONS.format(topic=self.topic, long=LONG, window="lifetime"))
        self.changed = Path("changed.yaml")
        self.changed.write_text(DEFINITIONS.format(topic=self.topic, long=LONG, window="30d").replace("n: 50", "n: 9"))
        self.where = bench.deployment()
        self.registry = Path("registry")
        applied = self.call("apply VIEWS REGISTRY --yes")
        assert applied.exit_code == 0, applied.output
        run(load(self.views), self.where, stop=threading.Event())

    def arguments(self, command: str) -> list[str]:
        # Relative to the folder of the test, whose own path may be wider than a terminal.
        folders = {name: getattr(self.where, name).relative_to(self.root) for name in ("log", "archive", "state")}
        where = replace(self.where, dead_letters=self.where.dead_letters.relative_to(self.root), **folders)
        places = {
            "VIEWS": [self.views],
            "CHANGED": [self.changed],
            "REGISTRY": ["--registry", self.registry],
            "LOG": ["--log", where.log],
            "TABLES": ["--log", where.log, "--archive", where.archive],
            "STATE": ["--state", where.state],
            "DEAD": ["--dead-letters", where.dead_letters],
            "REDIS": ["--redis-url", where.redis_url, "--prefix", where.prefix],
            "URL": ["--redis-url", where.redis_url],
            "TOPIC/1/0": [f"{self.topic}/1/0"],
            "LONG_USER": [USERS[2]],
        }
        return [str(part) for word in command.split() for part in places.get(word, [word])]

    def call(self, command: str):
        return CliRunner().invoke(main, self.arguments(command))


@pytest.fixture
def world(broker: EmbeddedBroker, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(Bench(broker, redis_url, tmp_path), tmp_path)


TABLES = (
    "get spend ann REDIS",
    "get spend LONG_USER REDIS",
    "get everything_about_users 日本語🎉 REDIS",
    "dead-letters list DEAD",
    "erase user ann STATE TABLES DEAD URL --dry-run",
    "erase user LONG_USER STATE TABLES DEAD URL --dry-run",
    "audit TABLES REDIS REGISTRY --samples 400",
    "log tail bought LOG -n 3",
)
LINES = (
    "plan CHANGED REGISTRY",
    "registry log REGISTRY",
    "registry show REGISTRY",
    "check VIEWS",
    "lineage spend:items --definitions VIEWS",
    "dead-letters show TOPIC/1/0 DEAD",
    "plan VIEWS REGISTRY URL",
)


def test_a_terminal_of_any_width_breaks_nothing_of_what_a_run_left(world: World) -> None:
    for command in (*TABLES, *LINES):
        given = world.arguments(command)
        whole = CliRunner().invoke(main, given)
        words = {word for row in cells(whole.output) for cell in row for word in cell.split(" ")}
        if command in LINES:
            words = set(whole.output.split())
        assert words, (command, whole.output)

        for width in WIDTHS:
            shown = in_terminal(width, *given, code=whole.exit_code)

            assert wider(shown, width) == [], command
            assert broken(shown, words) == [], command
            assert "…" not in shown, command
