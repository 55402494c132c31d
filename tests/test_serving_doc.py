"""Every example of docs/serving.md runs against real servers, and all of them read the values that the page shows."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_http import Server, serving
from tests.support.clients import FEAST_PYTHON, NODE_MODULES, needs, needs_feast, needs_node_modules
from tests.test_reading_doc import NOON_US, plan, write  # noqa: F401 - plan is a fixture
from unskew.features.definitions.on_demand import plan_on_demand
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text("utf-8")
COUNTS, SPENT = [2, 0], [10.0, 0.0]


def example(language: str, words: str) -> str:
    """The only example in a language that has these words."""
    (found,) = (
        text for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if words in text
    )
    return str(found)


@dataclass(frozen=True)
class Served:
    """Running servers, and how examples are run against them in a folder."""

    server: Server
    redis_url: str
    folder: Path

    def run(self, command: list[str], text: str, **variables: str) -> str:
        """Run a program with a text as its input or its last argument; return what it prints."""
        for shown, meant in {
            "localhost:6566": f"127.0.0.1:{self.server.port}",
            "redis://localhost:6379/0": self.redis_url,
            "redis-cli ": f"redis-cli -u {self.redis_url} ",
        }.items():
            text = text.replace(shown, meant)
        done = subprocess.run(
            [*command, text],
            cwd=self.folder, env={**os.environ, **variables}, check=False, capture_output=True, text=True, timeout=120,  # noqa: TID251 - of programs
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def served(plan: Plan, tmp_path: Path, redis_url: str) -> Iterator[Served]:  # noqa: F811
    writer = RedisWriter(redis_url, "unskew", "main")
    writer.publish_registry(json.dumps(describe(plan)))
    write(plan.views["user_purchases"], tmp_path / "log", writer)
    writer.close()
    with serving(redis_url) as server:
        yield Served(server, redis_url, tmp_path)


BASH = ["bash", "-euo", "pipefail", "-c"]
NODE = ["node", "--input-type=module", "--eval"]


@needs("curl")
def test_python_and_curl_read_the_values_that_the_page_shows(served: Served) -> None:
    found: dict[str, Any] = {}
    in_python = example("python", "urlopen")
    exec(in_python.replace("localhost:6566", f"127.0.0.1:{served.server.port}"), found)
    curled = json.loads(
        served.run(BASH, example("bash", '["user_purchases:purchase_count_30d"').replace("curl ", "curl -s "))
    )
    listed = json.loads(served.run(BASH, example("bash", "/v1/features").replace("curl ", "curl -s ")))
    shown = json.loads(example("json", "feature_names"))

    assert found["values"] == {"user_id": ["u-42", "nobody"], "spend_30d": SPENT}
    assert [one["values"] for one in curled["results"]] == [["u-42", "nobody"], COUNTS, SPENT]
    assert [one["reference"] for one in listed["features"]][:2] == json.loads(
        example("bash", '["user_purchases:purchase_count_30d"').partition("-d '")[2].partition("'")[0]
    )["features"]
    named = set(re.findall(r"`(\w+)`", PAGE.partition("## Find features")[2].partition("Nothing else")[0]))
    assert named >= listed["features"][0].keys()
    answer = found["answer"]
    assert [one["values"] for one in answer["results"]] == [one["values"] for one in shown["results"]]
    assert [one["statuses"] for one in answer["results"]] == [one["statuses"] for one in shown["results"]]
    assert answer["metadata"].keys() == shown["metadata"].keys()
    views, shown_views = answer["metadata"]["views"], shown["metadata"]["views"]
    assert views["user_purchases"].keys() == shown_views["user_purchases"].keys()
    assert views["user_purchases"]["status"] == shown_views["user_purchases"]["status"]


@needs("curl")
def test_on_demand_features_are_computed_from_the_inputs_and_the_instant_of_the_request(
    plan: Plan,  # noqa: F811
    served: Served,
) -> None:
    found: dict[str, Any] = {}
    exec(example("python", "OnDemand("), found)
    checkout = plan_on_demand(found["checkout"], plan.published)
    writer = RedisWriter(served.redis_url, "unskew", "main")
    writer.publish_registry(json.dumps(describe(replace(plan, on_demand={"checkout": checkout}))))
    writer.close()

    curled = json.loads(served.run(BASH, example("bash", '"now"').replace("curl ", "curl -s ")))

    assert curled["metadata"]["now"] == "2026-03-01T12:00:00.000000Z"
    assert [one["values"] for one in curled["results"][3:]] == [[5, 0], [2.5, None], [12, 12]]
    assert [one["statuses"] for one in curled["results"][3:]] == [
        ["PRESENT", "PRESENT"],
        ["PRESENT", "NOT_FOUND"],
        ["PRESENT", "PRESENT"],
    ]


@needs("node")
def test_node_reads_the_same_over_http_and_throws_what_the_server_says(served: Served) -> None:
    script = example("js", "fetch(")

    printed = served.run(NODE, script)
    with pytest.raises(AssertionError, match="Error: there is no view 'user_purchase'; did you mean 'user_purchases'"):
        served.run(NODE, script.replace("user_purchases:spend_30d", "user_purchase:spend_30d"))

    assert json.loads(printed) == {
        "user_id": ["u-42", "nobody"],
        "purchase_count_30d": COUNTS,
        "spend_30d": [10, 0],
    }


@needs("redis-cli")
def test_redis_cli_reads_the_hash_of_an_entity_and_the_clock(served: Served) -> None:
    lines = served.run(BASH, example("bash", "redis-cli ")).splitlines()

    whole = dict(zip(lines[:10:2], lines[1:10:2], strict=True))
    assert whole.pop("_at") == str(NOON_US)
    assert int(whole.pop("_until")) > NOON_US
    assert whole == {"purchase_count_30d": "2", "spend_30d": "10.0", "avg_amount_today": "5.0"}
    assert lines[10:] == ["2", "10.0", str(NOON_US + 1)]


@needs("node")
@needs_node_modules
def test_node_reads_redis_with_keys_as_unskew_writes_them(served: Served) -> None:
    (served.folder / "node_modules").symlink_to(NODE_MODULES)
    script = example("js", "createClient")

    assert served.run(NODE, script) == "u-42 2n 10\nnobody 0n 0\n"
    # As urllib.parse.quote(part, safe="") writes them.
    keys = served.run(NODE, f'{script}\nconsole.log(key("u 1", 7)); console.log(key("é/|{{}}~_.-!\'()*%"));')
    assert keys.splitlines()[2:] == ["{u%201|7}", "{%C3%A9%2F%7C%7B%7D~_.-%21%27%28%29%2A%25}"]


@needs_feast
def test_feast_reads_an_exported_repository_online_and_from_the_log(served: Served) -> None:
    feast = str(Path(FEAST_PYTHON).with_name("feast"))
    script = example("bash", "export feast").replace("unskew export", f"{sys.executable} -m unskew export")
    labels = """if True:
        import pandas
        labels = pandas.DataFrame({"user_id": ["u-42", "u-42", "nobody"], "event_timestamp": pandas.to_datetime(
            ["2026-03-01T11:59:59Z", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"])})
    """
    answer = """
print(online)
print(training.sort_values(["user_id", "event_timestamp"]).iloc[:, [0, 2, 3]].values.tolist())
"""

    served.run(BASH, script.replace("feast apply", f"env -u PYTHONPATH {feast} apply"))
    printed = served.run([FEAST_PYTHON, "-I", "-c"], f"{labels}\n{example('python', 'from feast')}{answer}")

    online, training = printed.splitlines()[-2:]
    assert online == str({"user_id": ["u-42", "nobody"], "purchase_count_30d": COUNTS, "spend_30d": SPENT})
    assert training == "[['nobody', nan, nan], ['u-42', 1.0, 2.5], ['u-42', 2.0, 10.0]]"
