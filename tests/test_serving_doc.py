"""The examples of docs/serving.md, against a running server."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.serving.test_http import serving
from tests.test_reading_doc import plan, write  # noqa: F401 - plan is a fixture
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text("utf-8")


def test_the_examples_read_the_values_that_the_page_shows(plan: Plan, tmp_path: Path, redis_url: str) -> None:  # noqa: F811
    view = plan.views["user_purchases"]
    writer = RedisWriter(redis_url, "unskew", "main")
    writer.publish_registry(json.dumps(describe(plan)))
    write(view, tmp_path / "log", writer)
    writer.close()
    (in_python,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (by_curl,) = re.findall(r"^curl localhost:6566(/\S+) -d '(.*?)'$", PAGE, re.MULTILINE | re.DOTALL)
    (shown,) = (json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    found: dict[str, Any] = {}

    with serving(redis_url) as server:
        exec(in_python.replace("localhost:6566", f"127.0.0.1:{server.port}"), found)
        with urlopen(Request(f"http://127.0.0.1:{server.port}{by_curl[0]}", by_curl[1].encode())) as response:
            curled = json.load(response)

    assert found["values"] == {"user_id": ["u-42", "nobody"], "spend_30d": [10.0, 0.0]}
    assert [one["values"] for one in curled["results"]] == [["u-42", "nobody"], [2, 0], [10.0, 0.0]]
    answer = found["answer"]
    assert [one["values"] for one in answer["results"]] == [one["values"] for one in shown["results"]]
    assert [one["statuses"] for one in answer["results"]] == [one["statuses"] for one in shown["results"]]
    assert answer["metadata"].keys() == shown["metadata"].keys()
    views, shown_views = answer["metadata"]["views"], shown["metadata"]["views"]
    assert views["user_purchases"].keys() == shown_views["user_purchases"].keys()
    assert views["user_purchases"]["status"] == shown_views["user_purchases"]["status"]
