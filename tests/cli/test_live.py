import json

import pytest
from click.testing import CliRunner

from tests.support.plans import DAY, HOUR, MINUTE, SECOND, Wanted, sliding, view
from tests.support.terminal import cells, in_terminal, wider
from tests.support.updates import closing, ledger_after
from unskew.cli import main
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.updates import LATE_BOUNDS_US
from unskew.sinks.redis.writer import RedisWriter

VISITS = view(
    Wanted("n", "count", sliding(5 * MINUTE, MINUTE)), Wanted("today", "count", sliding(DAY, HOUR)), name="visits"
)
CLOCK = 17_000 * DAY


@pytest.fixture
def live(redis_client, redis_url):
    writer = RedisWriter(redis_client, "shop", "nightly")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"visits": VISITS}))))
    writer.expect({VISITS.id: ["h0"]})
    step = closing(VISITS, CLOCK, since_us=CLOCK - HOUR)
    writer.add(ledger_after(step, [0, 2, 2], [], worst_us=41 * SECOND, duplicates=12))
    writer.flush(0)
    environment = {"UNSKEW_REDIS_URL": redis_url, "UNSKEW_PREFIX": "shop", "UNSKEW_PIPELINE": "nightly"}
    return lambda *arguments, **more: CliRunner(env={**environment, **more}).invoke(main, ["describe", *arguments])


def test_describe_live_shows_clock_shards_and_the_ledger(live):
    shown = live("--live")

    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0] == "visits@1"
    assert lines[1].startswith("complete to 2016-07-18T00:00:00Z, ")
    assert lines[1].endswith(" d behind the present")
    assert lines[2:6] == [
        "counts every event since 2016-07-17T23:00:00Z",
        "1 shard",
        "too late for a window: 3 times",
        "repeats dropped: 12",
    ]
    # Windows and delays without late events are left out.
    assert cells(shown.output) == [
        ["window", "late events", "latest by", "up to 1s late", "to 1min"],
        [VISITS.windows[0].text, "3", "41.0 s", "1", "2"],
    ]
    assert "it has stopped or waits: look at its output, or start it" in lines[-1]


def test_describe_live_says_what_is_not_known_yet(redis_client, redis_url):
    writer = RedisWriter(redis_client, "shop", "nightly")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"visits": VISITS}))))
    writer.expect({VISITS.id: ["h0"]})
    writer.flush(0)

    shown = in_terminal(
        80, "describe", "--live", UNSKEW_REDIS_URL=redis_url, UNSKEW_PREFIX="shop", UNSKEW_PIPELINE="nightly"
    )

    assert shown.count("not known, because") == 3
    assert "waiting for a clock: h0" in shown
    assert wider(shown, 80) == []


def test_describe_live_prints_json_for_programs(live):
    shown = live("--live", "--json")

    found = json.loads(shown.output)
    assert found["views"][0].pop("lag_us") > 0
    assert found == {
        "pipeline": "nightly",
        "late_bounds_us": list(LATE_BOUNDS_US),
        "views": [
            {
                "view": "visits@1",
                "clock_us": CLOCK,
                "since_us": CLOCK - HOUR,
                "shards": ["h0"],
                "waiting": [],
                "ended": [],
                "duplicates": 12,
                "late": [
                    {
                        "window": VISITS.windows[0].text,
                        "events": 3,
                        "worst_us": 41 * SECOND,
                        "histogram": [1, 0, 2, 0, 0, 0, 0, 0],
                    },
                    {"window": VISITS.windows[1].text, "events": 0, "worst_us": 0, "histogram": [0] * 8},
                ],
            }
        ],
    }


def test_describe_live_needs_no_definitions_and_takes_none(live):
    assert live("--live", UNSKEW_DEFINITIONS="/nowhere").exit_code == 0
    refused = live("--live", "definitions.py")
    assert refused.exit_code == 2
    assert "give no PATH" in refused.output


def test_describe_without_path_says_what_to_give(live):
    shown = live()

    assert shown.exit_code == 2
    assert "there is no PATH; give one, set UNSKEW_DEFINITIONS, or show the running views with --live" in shown.output


def test_describe_live_of_a_pipeline_that_never_ran_is_an_error(live):
    shown = live("--live", "--pipeline", "other")

    assert shown.exit_code == 1
    assert "error: Redis holds no clock of pipeline 'other'" in shown.output
