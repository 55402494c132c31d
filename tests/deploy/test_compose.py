"""docker-compose.yml holds together: nothing is reachable from outside, and every path and name it uses exists."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import command_of, options_of, variables_of
from unskew.cli.serve import PORT
from unskew.demo.journey import HOME
from unskew.demo.traffic import main as send
from unskew.features.definitions.load import load
from unskew.serving.listening import GRACE_S

ROOT = Path(__file__).parents[2]
SERVICES = ("kafka", "topics", "valkey", "pipeline", "serve", "monitor", "traffic", "baseline", "prometheus", "grafana")
ENDS = {"topics", "baseline"}
"""What does its work and ends."""
COMMANDS = {"pipeline": "run", "serve": "serve", "monitor": "monitor"}
"""Services that run a command of unskew."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_services_are_kafka_its_topics_valkey_the_pipeline_and_what_watches_it(compose):
    assert sorted(compose["services"]) == sorted(SERVICES)


def test_every_published_port_is_bound_to_loopback(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_]+:-\d+\}:\d+", port) for port in ports)


def test_every_image_names_a_version(compose):
    for service in compose["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"])


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ENDS))
def test_what_keeps_running_has_a_healthcheck_and_restarts(compose, name):
    service = compose["services"][name]

    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(ENDS))
def test_what_ends_is_not_started_again(compose, name):
    assert compose["services"][name]["restart"] == "no"


def test_our_image_has_the_version_of_the_package(compose):
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]

    assert {one["image"] for one in compose["services"].values() if one["image"].startswith("unskew")} == {
        f"unskew:{version}"
    }


def test_waiting_is_for_services_that_exist_and_can_reach_the_condition(compose):
    services = compose["services"]
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert services[name]["restart"] == "no"


def test_every_volume_is_declared_and_used(compose):
    mounts = [mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", [])]

    assert {mount for mount in mounts if mount[0] not in "$."} == set(compose["volumes"])


def test_what_the_pipeline_writes_is_on_volumes(compose):
    pipeline = compose["services"]["pipeline"]
    mounted = {mount.rsplit(":", 1)[1] for mount in pipeline["volumes"] if not mount.endswith(":ro")}

    assert {
        pipeline["environment"][f"UNSKEW_{name}"] for name in ("LOG", "ARCHIVE", "DEAD_LETTERS", "STATE", "REGISTRY")
    } == mounted


def test_what_is_mounted_from_the_repository_exists_and_is_read_only(compose):
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", [])]
    ours = [mount for mount in mounts if mount.startswith("./")]

    assert ours
    for mount in ours:
        path, _, way = mount.split(":")
        assert (ROOT / path).exists()
        assert way == "ro"


def test_figures_are_for_containers_alone_and_asked_for_where_the_pipeline_tells_them(compose):
    pipeline = compose["services"]["pipeline"]
    host, port = pipeline["environment"]["UNSKEW_METRICS"].split(":")
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped}

    assert host == "0.0.0.0"
    assert targets["unskew"] == [f"pipeline:{port}"]
    assert "ports" not in pipeline
    assert f"http://127.0.0.1:{port}/health" in pipeline["healthcheck"]["test"][-1]


def test_the_server_is_asked_where_it_listens_and_may_finish_what_it_has_begun(compose):
    serve = compose["services"]["serve"]
    host, port = serve["environment"]["UNSKEW_LISTEN"].split(":")
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (targets,) = (job["static_configs"][0]["targets"] for job in scraped if job["job_name"] == "unskew-serve")

    assert (host, port) == ("0.0.0.0", str(PORT))
    assert targets == [f"serve:{port}"]
    assert [published.rsplit(":", 1)[1] for published in serve["ports"]] == [port]
    assert f"http://127.0.0.1:{port}/health" in serve["healthcheck"]["test"][-1]
    assert (
        serve["environment"]["UNSKEW_REDIS_URL"] == compose["services"]["pipeline"]["environment"]["UNSKEW_REDIS_URL"]
    )
    assert int(serve["stop_grace_period"].removesuffix("s")) > GRACE_S


def test_the_monitor_reads_what_the_others_write_and_is_scraped_under_the_name_that_alerts_have(compose):
    services = compose["services"]
    monitor, pipeline, serve = (services[name] for name in ("monitor", "pipeline", "serve"))
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in monitor["volumes"]}
    written = {mount.split(":")[1]: mount.split(":")[0] for mount in (*pipeline["volumes"], *serve["volumes"])}
    port = monitor["environment"]["UNSKEW_METRICS"].rpartition(":")[2]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (targets,) = (job["static_configs"][0]["targets"] for job in scraped if job["job_name"] == "unskew-monitor")

    report = monitor["command"][monitor["command"].index("--report") + 1].rpartition("/")[0]
    shown = serve["command"][serve["command"].index("--figures") + 1]
    assert {mount for mount in monitor["volumes"] if not mount.endswith(":ro")} == {f"figures:{report}"}
    assert f"figures:{shown}:ro" in serve["volumes"]
    assert mounted[monitor["environment"]["UNSKEW_LOG"]] == written[pipeline["environment"]["UNSKEW_LOG"]]
    assert mounted[monitor["environment"]["UNSKEW_SERVED"]] == written[serve["environment"]["UNSKEW_SAMPLE"]]
    assert targets == [f"monitor:{port}"]
    assert "ports" not in monitor
    assert f"http://127.0.0.1:{port}/health" in monitor["healthcheck"]["test"][-1]
    assert 'up{job="unskew-monitor"}' in (ROOT / "deploy/prometheus/alerts.yml").read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_take_the_options_and_variables_that_they_are_given(compose, name):
    service = compose["services"][name]
    given = command_of(COMMANDS[name])
    words, *arguments = service["command"]

    given.make_context(words, list(arguments), resilient_parsing=True)

    assert words == COMMANDS[name]
    assert {argument for argument in arguments if argument.startswith("--")} <= options_of(given)
    assert set(service["environment"]) <= variables_of([given])


def test_traffic_is_sent_only_on_demand_and_to_the_broker_that_the_pipeline_reads(compose):
    traffic, pipeline = (compose["services"][name] for name in ("traffic", "pipeline"))

    assert traffic["profiles"] == ["demo"]
    assert traffic["entrypoint"] == ["python", "-m", "unskew.demo.traffic"]
    assert {argument for argument in traffic["command"] if argument.startswith("--")} <= options_of(send)
    assert set(traffic["environment"]) <= variables_of([send])
    assert traffic["environment"]["UNSKEW_BOOTSTRAP_SERVERS"] == pipeline["environment"]["UNSKEW_BOOTSTRAP_SERVERS"]


def test_the_baseline_is_kept_where_the_monitor_looks_and_of_a_view_of_the_example(compose):
    baseline, monitor = (compose["services"][name] for name in ("baseline", "monitor"))
    (line,) = re.findall(r"^ *unskew (.*)$", baseline["command"][0], re.MULTILINE)
    name, *arguments = shlex.split(line)
    with command_of(name).make_context(name, arguments, default_map={"log": "log"}) as given:
        view, output = given.params["view"], given.params["output"]
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in baseline["volumes"]}
    watched = monitor["command"][monitor["command"].index("--baseline") + 1]

    assert baseline["profiles"] == ["demo"]
    assert baseline["entrypoint"][0] == "/bin/sh"
    assert view in load(HOME).views
    assert str(output.parent) == watched
    assert f"{mounted[watched]}:{watched}:ro" in monitor["volumes"]


def test_folders_that_services_write_belong_to_the_user_of_the_image(compose):
    made = set(re.findall(r"/var/lib/unskew/\w+", (ROOT / "Dockerfile").read_text()))
    mounted = {
        mount.split(":")[1]
        for service in compose["services"].values()
        for mount in service.get("volumes", [])
        if mount.split(":")[1].startswith("/var/lib/unskew/")
    }

    assert mounted
    assert mounted <= made


def test_the_topics_are_those_of_the_example(compose):
    made = re.search(r"for topic in ([a-z_ ]+);", compose["services"]["topics"]["command"][0])

    assert made
    assert sorted(made[1].split()) == sorted(stream.topic for stream in load(HOME).streams.values())


def test_containers_are_told_inside_addresses_and_this_machine_the_outside_one(compose):
    kafka = compose["services"]["kafka"]["environment"]
    advertised = dict(address.split("://") for address in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))

    assert advertised["INSIDE"] == compose["services"]["pipeline"]["environment"]["UNSKEW_BOOTSTRAP_SERVERS"]
    assert advertised["OUTSIDE"].startswith("127.0.0.1:")


def test_operations_explain_every_image_port_and_variable(compose):
    text = (ROOT / "docs" / "operations.md").read_text()
    for service in compose["services"].values():
        variables = service.get("environment", {})
        images = {service["image"].split(":")[0]}
        ports = {port.rsplit(":", 1)[1] for port in service.get("ports", [])}
        for word in {*variables, *images, *ports}:
            assert f"`{word}" in text, f"docs/operations.md does not explain {word}"


def test_the_image_is_built_from_files_that_exist_and_runs_as_nobody_special():
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (?!--)(.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    kept = (ROOT / ".dockerignore").read_text().splitlines()

    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept
    assert re.search(r"^USER unskew$", dockerfile, re.MULTILINE)
    # Compiled by the user that runs it, into the folder that it looks into, and after everything else.
    _, _, last = dockerfile.rpartition("FROM ")
    steps = [last.find(words) for words in ("NUMBA_CACHE_DIR=", "USER unskew", "RUN unskew warm\n")]
    assert -1 not in steps
    assert steps == sorted(steps)
    assert "requirements-runtime.lock" in copied
