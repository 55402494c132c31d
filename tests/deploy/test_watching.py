"""Dashboard and alerts are consistent: they are valid, use the provisioned data source, and name existing metrics."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clients import needs
from unskew.serving.http import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


# Each dashboard with the pages that explain its metrics.
DASHBOARDS: dict[str, tuple[str, ...]] = {"unskew": ("operations", "serving"), "features": ("monitoring",)}


@pytest.fixture(scope="module", params=DASHBOARDS)
def dashboard(request) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / f"grafana/dashboards/{request.param}.json").read_text())
    return {"pages": DASHBOARDS[request.param], **loaded}


@pytest.fixture(scope="module")
def source() -> dict[str, Any]:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (only,) = provisioned["datasources"]
    found: dict[str, Any] = only
    return found


@pytest.fixture(scope="module")
def alerts() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def explained(*pages: str) -> set[str]:
    """The metrics of the tables of pages, by default of all; that they exist is tested with what exposes them."""
    texts = [(ROOT / f"docs/{page}.md").read_text() for page in pages or sum(DASHBOARDS.values(), ())]
    return {name for text in texts for name in re.findall(r"^\| `(unskew_[a-z_]+)`", text, re.MULTILINE)}


def named(expression: str) -> set[str]:
    """The metrics of ours in an expression, histograms without the part that is asked for."""
    names = set(re.findall(r"\bunskew_[a-z_]+", expression))
    return {
        next((base for part in HISTOGRAM_PARTS if (base := name.removesuffix(part)) in explained()), name)
        for name in names
    }


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def sources_of(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if "datasource" in part:
            yield part["datasource"]
        for value in part.values():
            yield from sources_of(value)
    elif isinstance(part, list):
        for value in part:
            yield from sources_of(value)


def test_the_dashboard_asks_for_figures_that_exist_and_leaves_none_out(dashboard):
    shown = set().union(*map(named, expressions(dashboard)))

    assert shown == explained(*dashboard["pages"])


def test_the_metrics_of_the_server_are_those_that_the_page_explains():
    families = list(Metrics().registry.collect())

    assert {f"{one.name}_total" if one.type == "counter" else one.name for one in families} == explained("serving")


def test_alerts_ask_for_figures_that_exist_and_say_what_has_happened(alerts):
    assert alerts
    for alert in alerts:
        assert named(alert["expr"]) <= explained()
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.parametrize("group", ["unskew", "unskew-serve", "unskew-monitor"])
def test_every_alert_of_a_group_is_tested_where_it_rings(group):
    """The tests are run by promtool, which no Python package has; here, that each alert has one."""
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    (rules,) = (one["rules"] for one in groups if one["name"] == group)
    tests = yaml.safe_load((ROOT / f"tests/deploy/{group}.promtool.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    summaries = {rule["alert"]: rule["annotations"]["summary"] for rule in rules}

    assert {case["alertname"] for case in cases if case["exp_alerts"]} == summaries.keys()
    for case in cases:
        for expected in case["exp_alerts"]:
            pattern = re.sub(r"\\{\\{.*?\\}\\}", ".+", re.escape(summaries[case["alertname"]]))
            assert re.fullmatch(pattern, expected["exp_annotations"]["summary"])


@needs("promtool")
@pytest.mark.parametrize("group", ["unskew", "unskew-serve", "unskew-monitor"])
def test_promtool_finds_the_alerts_right(group):
    command = ["promtool", "test", "rules", f"{group}.promtool.yml"]
    done = subprocess.run(command, cwd=Path(__file__).parent, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_asks_the_provisioned_data_source(dashboard, source):
    asked = list(sources_of(dashboard))

    assert asked
    assert all(one == {"type": source["type"], "uid": source["uid"]} for one in asked)


def test_panels_have_numbers_of_their_own_and_do_not_overlap(dashboard):
    panels = dashboard["panels"]
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def test_grafana_reads_its_dashboard_from_where_compose_mounts_it(source):
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/unskew.yml").read_text())["providers"]
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in compose["grafana"]["volumes"]}

    assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    assert source["url"] == f"http://prometheus:{compose['prometheus']['ports'][0].rsplit(':', 1)[1]}"


def test_prometheus_reads_the_alerts_beside_its_configuration():
    files = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["rule_files"]

    assert all((DEPLOY / "prometheus" / file).is_file() for file in files)


def test_the_helm_chart_has_the_same_alerts():
    """Helm reads no file outside of its chart, and a distribution holds no links: so there is a copy."""
    copy = DEPLOY / "helm/unskew/files/alerts.yml"

    assert copy.read_bytes() == (DEPLOY / "prometheus/alerts.yml").read_bytes()
