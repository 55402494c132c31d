"""The examples of docs/testing.md run, and say what the page says of them."""

import re
from pathlib import Path
from typing import Any

import pytest

from unskew.testing import assert_features

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """Everything that the examples define, one after the other."""
    found: dict[str, Any] = {}
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(text, found)
    return found


def test_the_tests_of_the_page_pass(page):
    page["test_only_completed_purchases_of_the_last_hour_count"]()
    page["test_nobody_has_more_purchases_than_there_are_events"]()


def test_the_pipeline_of_the_page_serves(page, unskew_pipeline):
    page["test_the_service_reads_what_was_bought"](unskew_pipeline)


def test_values_are_what_the_page_says(page):
    assert page["of_all"]["u-1"]["spend_1h"] == 5.0
    assert page["of_one"] == {"purchase_count_1h": 1, "spend_1h": 2.5}
    assert [one["purchase_count_1h"] for one in page["over_time"].values()] == [0, 1]
    assert page["asked"] == {"amount_vs_1h": 2.0}
    for shown in ('`of_one` is `{"purchase_count_1h": 1, "spend_1h": 2.5}`', '`asked` is `{"amount_vs_1h": 2.0}`'):
        assert shown in PAGE


def test_the_failure_is_the_one_that_the_page_shows(page):
    (shown,) = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    events = [
        {"user_id": "u-1", "amount": 5.0, "event_time": "2026-03-01T10:00:00Z"},
        {"user_id": "u-1", "amount": 2.5, "event_time": "2026-03-01T10:30:00Z"},
        {"user_id": "u-1", "amount": 9.0, "event_time": "2026-03-01T10:40:00Z", "status": "cancelled"},
    ]

    with pytest.raises(AssertionError) as raised:
        assert_features(page["user_purchases"], events, {"2026-03-01T10:45:00Z": {"purchase_count_1h": 3}})

    assert str(raised.value) == shown
