"""``unskew dev``: everything runs, what is saved is taken up, and nothing is left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, TopicPartition

from tests.support.commands import printed
from tests.support.recovery.processes import free_port
from unskew import Derived, Entity, Feature, FeatureView, OnDemand, Sliding, Stream, agg
from unskew.cli import main
from unskew.cli.developing import interrupted, numbered
from unskew.cli.feeding import Feeds, Origin
from unskew.cli.keeping import kept
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.definitions.compile import compile
from unskew.features.definitions.load import load_definitions
from unskew.features.definitions.vocabulary import Definition
from unskew.features.errors import DefinitionError, RequestError, UnskewError
from unskew.features.planning import Asked, planned
from unskew.features.revision import Content

STOREFRONT = Path(__file__).parents[2] / "examples" / "storefront"
WITHIN_S = 240.0
NINE = {
    "views_5m",
    "avg_amount_today",
    "cart_value",
    "avg_length_s_30d",
    "return_rate_90d",
    "avg_response_s_week",
    "since_login_s",
    "distance_km",
    "query_length",
}


def until(holds: Callable[[], Any], process: "subprocess.Popen[bytes] | None" = None) -> Any:
    """Return the first answer that is true; connections that are refused are no answer."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found := holds():
                return found
        assert process is None or process.poll() is None
        time.sleep(0.1)
    raise AssertionError("it did not come")


@dataclass
class Dev:
    """A running ``unskew dev`` on a copy of the storefront, whose temporary folders are in ``temporary``."""

    project: Path
    temporary: Path
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def definitions(self) -> Path:
        return self.project / "definitions" / "features.py"

    def said(self) -> str:
        return (self.temporary.parent / "said.txt").read_text()

    def save(self, old: str, new: str) -> None:
        text = self.definitions.read_text()
        assert text.count(old) == 1
        self.definitions.write_text(text.replace(old, new))

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def ask(self, asked: dict[str, Any]) -> Any:
        url = f"http://127.0.0.1:{self.port}/get-online-features"
        request = urllib.request.Request(url, json.dumps(asked).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def values(self) -> dict[str, Any]:
        """What the service reads of a user, a product and a seller of whom events are often."""
        keys = {"user_id": ["u-1"], "product_id": [1], "seller_id": [1]}
        inputs = {"lat": [52.5], "lon": [13.4], "query": ["shoes"]}
        asked = {"feature_service": "ranking", "entities": {**keys, **inputs}}
        found = self.ask(asked)
        names = found["metadata"]["feature_names"]
        values = (one["values"][0] for one in found["results"])
        return {name.rpartition(":")[2]: value for name, value in zip(names, values, strict=True)}

    def everything_is_known(self) -> bool:
        """Whether each feature has a value of events; a visit ends only after half an hour."""
        found = self.values()
        # A count is known before the first event.
        return all(found[name] is not None for name in NINE - {"avg_length_s_30d"}) and bool(found["views_5m"])

    def left(self) -> tuple[list[str], list[str]]:
        """The processes of this run, and its temporary folders."""
        folders = [path.name for path in self.temporary.iterdir()]
        return [one for one in commands() if str(self.project.parent) in one], folders


def commands() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@contextlib.contextmanager
def developing(folder: Path, *options: str) -> Iterator[Dev]:
    project, temporary, port = folder / "shop", folder / "tmp", free_port()
    if not project.exists():
        shutil.copytree(STOREFRONT, project, ignore=shutil.ignore_patterns("__pycache__"))
        temporary.mkdir()
    command = [sys.executable, "-m", "unskew", "dev", "--listen", str(port), *options]
    environment = {**os.environ, "TMPDIR": str(temporary)}  # noqa: TID251 - a shell of a user has it
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=said, stderr=said)
    try:
        yield Dev(project, temporary, port, process)
    finally:
        process.kill()
        process.wait()


def generated(folder: Path) -> tuple[str, str]:
    return ("--generate", f"{sys.executable} {folder / 'shop' / 'generate.py'} {{stream}} --rate 20")


def test_the_storefront_runs_follows_what_is_saved_and_leaves_nothing(tmp_path: Path) -> None:
    with developing(tmp_path, *generated(tmp_path)) as dev:
        until(dev.everything_is_known, dev.process)
        first_page = dev.get("/")
        assert [name for name in NINE if name not in first_page] == []

        dev.save("agg.count(), Sliding(", "agg.conut(), Sliding(")
        until(lambda: "error: definitions/features.py:" in dev.said(), dev.process)
        assert "the definitions from before go on" in dev.said()
        before = until(dev.values, dev.process)["views_5m"]
        assert before > 0

        other = dev.definitions.with_name("other.py")
        other.write_text("raise KeyboardInterrupt")
        until(lambda: "error: KeyboardInterrupt" in dev.said(), dev.process)
        other.unlink()
        dev.save("agg.conut(), Sliding(", 'agg.sum("nothing"), Sliding(')
        fault = re.compile(r"error: definitions/features\.py:\d+: user_page_views\.views_5m: .*'nothing'")
        until(lambda: fault.search(dev.said()), dev.process)

        # The longer window holds all that the shorter one does, if it knows the past.
        dev.save('agg.sum("nothing"), Sliding("5min"', 'agg.count(), Sliding("10min"')
        until(lambda: "user_page_views@2" in dev.get("/"), dev.process)
        assert until(dev.values, dev.process)["views_5m"] >= before
        assert "user_cart@2" not in dev.get("/")
        assert dev.values()["cart_value"] is not None

        assert len([one for one in dev.left()[0] if "generate.py" in one]) >= 5
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(120) == 0, dev.said()
        assert dev.left() == ([], [])
        assert "Traceback" not in dev.said()
        assert "panicked" not in dev.said()


def test_a_kill_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    with developing(tmp_path, *generated(tmp_path)) as dev:
        until(lambda: len([one for one in dev.left()[0] if "generate.py" in one]) > 5, dev.process)

        dev.process.kill()
        dev.process.wait()

        until(lambda: dev.left() == ([], []))


def test_a_folder_that_is_kept_goes_on_unless_it_was_killed(tmp_path: Path) -> None:
    kept = ("--keep", str(tmp_path / "kept"))
    assert CliRunner().invoke(main, ["init", str(tmp_path / "shop"), "--template", "page_views"]).exit_code == 0
    (tmp_path / "tmp").mkdir()

    def views(dev: Dev) -> int:
        asked = {"features": ["page_popularity:views_1h"], "entities": {"page_id": ["page-1"]}}
        return int(dev.ask(asked)["results"][1]["values"][0])

    with developing(tmp_path, "--sample", "50", *kept) as dev:
        before = until(lambda: views(dev), dev.process)
        tried = dev.said().partition("In another terminal:\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[:2] for line in tried[-4:-1]] == [["unskew", name] for name in ("produce", "get", "log")]
        answer = printed(*tried)
        assert "1,000 events sent" in answer
        assert answer.count("views_5m") >= 3
        dev.process.terminate()
        assert dev.process.wait(120) == 0, dev.said()
        assert dev.left() == ([], [])
    with developing(tmp_path, *kept) as dev:
        # No event comes now, so these are those from before.
        assert until(lambda: views(dev), dev.process) >= before
        assert "error" not in dev.said()
    with developing(tmp_path, *kept) as dev:
        assert dev.process.wait(120) == 1
        assert "did not come to its end" in dev.said()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(STOREFRONT, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def refused(*options: str) -> str:
    found = CliRunner().invoke(main, ["dev", *options])
    assert found.exit_code in {1, 2}, found.output
    assert "Kafka " not in found.output
    return found.output


def test_without_definitions_it_says_how_to_make_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert "unskew init DIR" in refused()


@pytest.mark.usefixtures("project")
def test_an_address_that_is_in_use_is_refused_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert f"cannot listen at 127.0.0.1:{port}" in refused("--listen", str(port))


@pytest.mark.usefixtures("project")
def test_a_command_must_tell_several_streams_apart_and_events_have_one_origin() -> None:
    assert "write {stream} where" in refused("--generate", "python generate.py")
    assert "give one of them" in refused("--generate", "python generate.py {stream}", "--sample", "5")


def test_definitions_with_faults_are_refused_as_check_does(project: Path) -> None:
    with (project / "definitions" / "more.yaml").open("w") as file:
        file.write("name: nothing\n")

    said = refused()

    assert "more.yaml" in said
    assert said == CliRunner().invoke(main, ["check", "definitions"]).output


def test_a_file_that_does_not_come_to_its_end_is_interrupted_and_named(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("while True:\n    pass\n")

    with pytest.raises(DefinitionError, match=r"loop\.py:[12]: TooLong: it does not come"), interrupted(0.2):
        load_definitions([tmp_path])


# Versions

EVENT = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}


def defined(window: str = "1h", version: int = 1, text: str = "x * 2", description: str = "") -> list[Definition]:
    user = Entity("user", key="user_id")
    events = Stream("events", topic="events", schema=EVENT, event_time="event_time", partitioned_by="user_id")
    spending = FeatureView(
        "spending",
        entity=user,
        stream=events,
        features=[Feature("spend", agg.sum("amount"), Sliding(window))],
        version=version,
        description=description,
    )
    asked = OnDemand("asked", inputs={"x": "float64"}, features=[Derived("y", text)])
    return [user, events, spending, asked]


def taken(*saves: Sequence[Definition]) -> list[set[str]]:
    """What each save is taken as, if the state of a version ends when the version is gone."""
    before, found = Content(), []
    for definitions in saves:
        gone = set(before.retired)
        asked = Asked(accepted=set(before.serves), has_ended=gone.__contains__)
        applied = planned(numbered(definitions, before), before if found else None, asked)
        assert applied.refused == ()
        before = applied.content
        found.append({view.id for view in before.views} | {one.id for one in before.on_demand})
        assert before.serves == {view.name: view.version for view in before.views}
    return found


def test_what_computes_something_else_is_the_next_version_and_stays_it() -> None:
    assert taken(defined(), defined("2h"), defined("2h"), defined("3h")) == [
        {"spending@1", "asked@1"},
        {"spending@2", "asked@1"},
        {"spending@2", "asked@1"},
        {"spending@3", "asked@1"},
    ]


def test_words_about_a_view_change_no_version() -> None:
    assert taken(defined(), defined(description="Dollars")) == [{"spending@1", "asked@1"}] * 2


def test_a_change_that_is_undone_is_another_version_because_the_state_of_the_first_one_has_ended() -> None:
    assert taken(defined(), defined("2h"), defined())[-1] == {"spending@3", "asked@1"}


def test_on_demand_features_have_versions_too() -> None:
    assert taken(defined(), defined(text="x * 3"), defined(text="x * 3"))[1:] == [{"spending@1", "asked@2"}] * 2


def test_a_version_that_the_author_raises_counts() -> None:
    assert taken(defined(), defined("2h", version=2), defined("2h", version=7))[1:] == [
        {"spending@2", "asked@1"},
        {"spending@7", "asked@1"},
    ]
    # The second one was taken as version 2 without being named so.
    assert taken(defined(), defined("2h"), defined("2h", version=2))[-1] == {"spending@2", "asked@1"}
    assert taken(defined(), defined("2h"), defined("3h", version=2))[-1] == {"spending@3", "asked@1"}


def test_a_view_that_comes_back_is_a_new_version() -> None:
    without = [one for one in defined() if not isinstance(one, FeatureView)]
    other = FeatureView("other", entity="user", stream="events", features=[Feature("n", agg.count(), Sliding("1h"))])

    assert taken([*defined(), other], [*without, other], [*defined(), other])[-1] == {
        "other@1",
        "spending@2",
        "asked@1",
    }


# Events of a command, and a folder that is kept


def test_a_command_that_has_ended_is_not_run_again_when_something_is_saved(
    tmp_path: Path, mock_broker: EmbeddedBroker
) -> None:
    instant = time.time_ns() // 1_000_000
    (tmp_path / "events.jsonl").write_text(f'{{"user_id": "u-1", "amount": 2.5, "event_time": {instant}}}\n' * 10)
    mock_broker.create_topic("events", 1)
    said: list[str] = []
    feeds = Feeds(
        mock_broker.bootstrap, Origin(sample=None, command=f"cat {tmp_path}/events.jsonl; exit 3"), said.append
    )
    plan = compile(*defined())

    feeds.follow(plan)
    until(lambda: said)
    feeds.leave(compile(*defined("2h")))
    feeds.follow(plan)
    feeds.end()

    assert len(said) == 1
    assert "has ended with exit status 3, after 10 events; it does not begin again" in said[0]
    consumer = Consumer({"bootstrap.servers": mock_broker.bootstrap, "group.id": "recount"})
    assert consumer.get_watermark_offsets(TopicPartition("events", 0), timeout=10) == (0, 10)
    consumer.close()


def test_a_folder_whose_pipeline_failed_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnskewError, match="gone"), kept(tmp_path / "kept"):
        raise UnskewError("records are gone")

    with pytest.raises(RequestError, match=r"ended with an error.*name a new folder"), kept(tmp_path / "kept"):
        pass
