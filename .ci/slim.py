"""Read what a pipeline wrote with an unskew that was installed with few packages.

    python -I slim.py OUTPUT PYTHON ...

Run by the python of an environment with the extra ``demo``. ``OUTPUT``: the folder of a demo, whose state fills a
Valkey that all environments read. ``PYTHON``: that of an environment without extras, or with the extra ``serve``, which
is then also asked over HTTP.
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unskew import FeatureStore
from unskew.demo.embedded import EmbeddedRedis
from unskew.demo.journey import HOME

VIEW = "household_purchases"
HOUSEHOLDS = [1, 7, 900, 1_000_000]
ABSENT = ["bytewax", "confluent_kafka", "llvmlite", "numba", "pyarrow", "tenacity"]
HAS_SERVER = "import importlib.util; print(importlib.util.find_spec('uvicorn') is not None)"
SLIM = f"""
import importlib.util, json, sys
from pathlib import Path
from unskew import FeatureStore, UnskewError, load
url, definitions, features, rows = *sys.argv[1:3], *map(json.loads, sys.argv[3:])
found = [name for name in {ABSENT} if importlib.util.find_spec(name)]
assert not found, f"{{found}} are installed"
with FeatureStore(redis_url=url) as store:
    print(json.dumps(store.get_online_features(features, rows).to_dict(), default=str))
assert load(Path(definitions)).views
try:
    FeatureStore(log=Path(definitions)).get_historical_features(rows, features)
except UnskewError as error:
    print(error)
"""


def main(output: Path, readers: list[Path]) -> None:
    with EmbeddedRedis() as redis:
        with_pipeline = [sys.executable, "-m", "unskew", "rehydrate", "--definitions", HOME]
        run(*with_pipeline, "--redis-url", redis.url, "--state", output / "state")
        with FeatureStore(redis_url=redis.url) as store:
            features = [name for name in store.features()["reference"].to_list() if name.startswith(f"{VIEW}:")]
            rows = [{"household_id": household} for household in HOUSEHOLDS]
            expected = json.loads(json.dumps(store.get_online_features(features, rows).to_dict(), default=str))
        assert any(expected[features[0].partition(":")[2]]), "the demo's households have no values"
        for python in readers:
            check(python, redis.url, features, rows, expected)


def check(
    python: Path, redis_url: str, features: list[str], rows: list[dict[str, int]], expected: dict[str, list[Any]]
) -> None:
    """Read with an environment, and compare with what the pipeline's own environment reads."""
    command = python.parent / "unskew"
    sdk, _, _ = run(python, "-I", "-c", SLIM, redis_url, HOME, json.dumps(features), json.dumps(rows)).partition("\n")
    assert json.loads(sdk) == expected, f"the SDK reads {sdk}"
    got = json.loads(run(command, "get", VIEW, HOUSEHOLDS[0], "--json", "--redis-url", redis_url))
    assert got["features"] == {name: values[0] for name, values in expected.items() if name != "household_id"}
    run(command, "check", HOME)
    lacks = run(command, "warm", code=1)
    assert "error: unskew warm needs" in lacks, lacks
    assert "pip install 'unskew[pipeline]'" in lacks, lacks
    if run(python, "-I", "-c", HAS_SERVER) == "True\n":
        with served(command, redis_url) as address:
            asked = {"entities": {"household_id": HOUSEHOLDS}, "features": features}
            answer = ask(f"{address}/get-online-features", asked)
        names = answer["metadata"]["feature_names"]
        values = {name: one["values"] for name, one in zip(names, answer["results"], strict=True)}
        assert {name: [plain(one) for one in column] for name, column in expected.items()} == values
    else:
        lacks = run(command, "serve", "--redis-url", redis_url, code=1)
        assert "pip install 'unskew[serve]'" in lacks, lacks
    print(
        f"{len(features)} features of {len(HOUSEHOLDS)} households are read as the pipeline's own environment reads them"
    )


def plain(value: Any) -> Any:
    """Return a value as the protocol of Feast has it."""
    return None if value in ([], {}) else value


def run(*command: object, code: int = 0) -> str:
    """Return what a command prints, both outputs if it is to fail. Raises ``SystemExit`` for another exit status."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != code:
        raise SystemExit(f"{command[:3]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    if "Traceback" in done.stderr:
        raise SystemExit(f"{command[:3]} shows a traceback: {done.stderr}")
    return done.stdout + (done.stderr if code else "")


@contextlib.contextmanager
def served(command: Path, redis_url: str) -> Iterator[str]:
    """Run ``unskew serve``; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen([command, "serve", "--redis-url", redis_url, "--listen", str(port)])
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                ask(f"http://127.0.0.1:{port}/health")
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        assert server.wait(30) == 0, "unskew serve does not end as it should"
    finally:
        server.kill()


def ask(address: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data), timeout=20) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(python) for python in sys.argv[2:]])
