"""The services of docker-compose.yml that are ours work together: their own commands, with other addresses and folders.

There is no container here. What differs is what Compose gives a container: names of hosts, ports, folders.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.servers.kafka import ApacheKafka, free_ports
from unskew.catalog.naming import page_of

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ENTRYPOINT = ["unskew"]
"""That of the image, see Dockerfile."""
# For a machine on which other tests run.
WITHIN_S = 240.0


def until(claim: Callable[[], object], what: str) -> Any:
    deadline_s = time.monotonic() + WITHIN_S
    while not (found := claim()):
        assert time.monotonic() < deadline_s, f"not within {WITHIN_S:g} s: {what}"
        time.sleep(0.2)
    return found


def asked(url: str, body: object = None) -> str | None:
    """The answer of a server; None while there is none."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as reply:
            text: str = reply.read().decode()
            return text
    except (OSError, urllib.error.URLError):
        return None


class Here:
    """The services on this machine: each name, port and folder of a container stands for one of ours."""

    def __init__(self, root: Path, bootstrap: str, redis_url: str) -> None:
        self.root = root
        ports = sorted({port for text in _texts(SERVICES) for port in re.findall(r":(9464|9465|6566)\b", text)})
        self.ports = dict(zip(ports, free_ports(len(ports)), strict=True))
        self._instead = {
            SERVICES["pipeline"]["environment"]["UNSKEW_BOOTSTRAP_SERVERS"]: bootstrap,
            SERVICES["pipeline"]["environment"]["UNSKEW_REDIS_URL"]: redis_url,
            "/var/lib/unskew": str(root / "data"),
            "/definitions": str(ROOT / "examples" / "complete_journey"),
            "/tmp/alive": str(root / "alive"),
            # Neither ten minutes nor an hour.
            "for wait_s in 600 3600": "for wait_s in 0",
            "0.0.0.0:": "127.0.0.1:",
            **{f":{port}": f":{ours}" for port, ours in self.ports.items()},
        }
        for folder in re.findall(r"/var/lib/unskew/(\w+)", (ROOT / "Dockerfile").read_text()):
            (root / "data" / folder).mkdir(parents=True, exist_ok=True)
        (root / "bin").mkdir()
        (root / "bin" / "unskew").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unskew "$@"\n')
        (root / "bin" / "unskew").chmod(0o755)
        (root / "bin" / "python").symlink_to(sys.executable)

    def text(self, given: str) -> str:
        for theirs, ours in self._instead.items():
            given = given.replace(theirs, ours)
        # As Compose reads them: a variable's default, and a dollar sign that is one.
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", given).replace("$$", "$")

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("UNSKEW_")}  # noqa: TID251 - of the test
        kept["PATH"] = f"{self.root / 'bin'}:{kept['PATH']}"
        return kept | {name: self.text(value) for name, value in given.items()}

    def command(self, name: str) -> list[str]:
        service = SERVICES[name]
        words = [self.text(word) for word in [*service.get("entrypoint", ENTRYPOINT), *service["command"]]]
        # Its own interpreter: a link to it would not find the packages of an environment.
        return [sys.executable if word == "python" else word for word in words]

    @contextmanager
    def running(self, name: str, *more: str, **variables: str) -> Iterator[None]:
        """A service until the end of the block; it must end well when it is asked to."""
        said = self.root / f"{name}.log"
        with said.open("wb") as output:
            process = subprocess.Popen(
                [*self.command(name), *more],
                env=self.environment({**SERVICES[name]["environment"], **variables}),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.root,
            )
        try:
            until(lambda: process.poll() is not None or self.is_healthy(name), f"{name} is healthy")
            assert process.poll() is None, said.read_text()
            yield
            process.terminate()
            assert process.wait(60) == 0, said.read_text()
        finally:
            process.kill()
            process.wait()

    def is_healthy(self, name: str) -> bool:
        """What Compose would ask."""
        kind, *words = (self.text(word) for word in SERVICES[name]["healthcheck"]["test"])
        assert (kind, words[0]) == ("CMD", "python")
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, check=False, env=self.environment({}))
        return done.returncode == 0


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        for value in part.values():
            yield from _texts(value)
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value)


@pytest.mark.long
def test_what_compose_starts_fills_redis_the_server_the_monitor_and_its_baseline(
    own_broker: ApacheKafka, redis_url: str, tmp_path: Path
) -> None:
    (script,) = SERVICES["topics"]["command"]
    topics = re.search(r"for topic in ([a-z_ ]+);", script)
    partitions, config = re.search(r"--partitions (\d+)", script), re.search(r"--config (\S+)=(\S+)", script)
    assert topics
    assert partitions
    assert config
    for topic in topics[1].split():
        own_broker.create_topic(topic, int(partitions[1]), {config[1]: config[2]})
    here = Here(tmp_path, own_broker.bootstrap, redis_url)
    serve, watched = (f"http://127.0.0.1:{here.ports[port]}" for port in ("6566", "9465"))
    # The households that come most often.
    request = {"entities": {"household_id": [1, 2]}, "features": ["household_page_views:views_1h"]}

    def views() -> bool:
        answer = json.loads(asked(f"{serve}/get-online-features", request) or "null")
        if answer is None:
            return False
        place = answer["metadata"]["feature_names"].index("views_1h")
        return any(answer["results"][place]["values"])

    def metric(pattern: str) -> float:
        found = re.search(rf"^{pattern} (\S+)$", asked(f"{watched}/metrics") or "", re.MULTILINE)
        return float(found[1]) if found else 0.0

    with ExitStack() as services:
        services.enter_context(here.running("pipeline"))
        services.enter_context(here.running("serve"))
        services.enter_context(here.running("traffic", UNSKEW_TRAFFIC_RATE="200"))
        # More often than every minute.
        services.enter_context(here.running("monitor", "--every", "1s"))

        until(views, "page views are served")
        until(lambda: metric(r'unskew_view_entities\{view="household_page_views@1"\}') > 20, "households are watched")
        until(lambda: metric(r'unskew_view_entities\{view="household_purchases@1"\}') > 20, "purchases are watched")
        compared = r'unskew_compared_total\{view="household_page_views@1"\}'
        # Not every read is one that the sample takes.
        until(lambda: views() and metric(compared) > 0, "served rows are compared")
        assert metric(r'unskew_mismatches_total\{view="household_page_views@1"\}') == 0
        made = subprocess.run(
            here.command("baseline"),
            env=here.environment(SERVICES["baseline"]["environment"]),
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        psi = r'unskew_feature_psi\{baseline="demo",feature="views_5m",of="population",view="household_page_views@1"\}'
        until(lambda: re.search(rf"^{psi} ", asked(f"{watched}/metrics") or "", re.MULTILINE), "a distance is measured")
        page = f"{serve}/{page_of('feature', 'household_page_views@1:views_5m')}"
        until(lambda: "Population against demo" in (asked(page) or ""), "the catalog has what the monitor measured")
