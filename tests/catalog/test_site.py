"""The pages of ``unskew serve``, as a client gets them that is no browser."""

import base64
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.catalog.test_pages import Page
from tests.serving.test_http import STAYS, Server, fill, serving
from tests.support.servers.valkey import Valkey, wait_until
from tests.support.typed import AWKWARD, FULL, NAMES
from unskew import FeatureStore
from unskew.catalog.figures import FigureFiles
from unskew.catalog.naming import page_of
from unskew.features.errors import RequestError
from unskew.features.showing import shown
from unskew.features.time import format_instant

LOOK = {
    "at_us": 1_700_000_000_000_000,
    "over": ["orders@1:n, population against june: PSI 0.900, over 0.200"],
    "refused": ["a <b>log</b> that is gone"],
    "views": [
        {
            "view": "orders@1",
            "entities": 3,
            "gone": 1,
            "complete_to_us": 1,
            "event_age_us": 60_000_000,
            "published_age_us": None,
            "compared": 7,
            "mismatches": 0,
            "repeats": 4,
            "late": [{"window": "sliding(1d,hop=1h)", "events": 1234, "worst_us": 7_200_000_000}],
            "over": ["orders@1:n, population against june: PSI 0.900, over 0.200"],
            "features": [
                {
                    "feature": "n", "of": "population", "n": 12, "missing": 0.25, "baseline": "june", "state": "drift",
                    "psi": 0.9, "limit": 0.2, "missing_before": 0.0, "bins": ["≤ 1", "above", "null"],
                    "counts": [3, 6, 3], "counts_before": [8, 2, 0],
                }
            ],
        }
    ],
}  # fmt: skip
VALUE = {"views": [{"view": "orders@1", "features": [
    {"feature": "n", "sentence": "costs <i>much</i>.", "candidate_to_retire": True, "row_share": 0.305, "redis_bytes_per_entity": 30.4}
]}]}  # fmt: skip


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        fill(server.url)
        yield server


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    (tmp_path / "look.json").write_text(json.dumps(LOOK))
    (tmp_path / "value.json").write_text(json.dumps(VALUE))
    return tmp_path


def asked(server: Server, path: str, **headers: str) -> tuple[http.client.HTTPResponse, str]:
    with contextlib.closing(server.connection()) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()


def entity(view: str, days: str = "30", **key: object) -> str:
    return "/entity?" + urlencode({"view": view, **{f"key.{name}": value for name, value in key.items()}, "days": days})


def refused(redis_url: str, *options: str) -> str:
    """What a server says that does not begin."""
    command = [sys.executable, "-m", "unskew", "serve", "--redis-url", redis_url, "--listen", "1", *options]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1
    return found.stderr


def test_every_page_is_there_under_a_policy_and_an_unknown_one_says_so(redis, figures):
    with serving(redis.url, "--figures", str(figures)) as server:
        left, seen = ["/"], set()
        while left:
            path = left.pop()
            seen.add(path)
            answer, text = asked(server, path)
            assert answer.status == 200, path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"].startswith("default-src 'self'")
            if answer.headers["content-type"].startswith("text/html"):
                links = {"/" + link.partition("#")[0] for link in Page(text.encode()).links}
                left += [link for link in links if link != "/" and link not in seen and link not in left]
        answer, text = asked(server, "/feature-nothing.html")

    assert len(seen) > 20
    assert {"/catalog.css", "/catalog.js", "/icon.svg", "/alerts.html"} <= seen
    assert answer.status == 404
    assert "There is no such page" in text


def test_other_paths_and_methods_are_answered_as_they_were(redis):
    with serving(redis.url) as server:
        assert server.post({}, "/index.html")[0] == 404
        assert server.post({}, "/")[0] == 404
        assert server.ask("DELETE", "/health")[0] == 405
        assert server.get("/a/b")[0] == 404
        assert server.get("/health") == (200, {"status": "ok"})
        assert server.get("/v1/features")[0] == 200
        assert server.get("/entity")[0] == 404


def test_figures_stand_on_the_pages_and_what_is_over_its_limit_comes_first(redis, figures):
    with serving(redis.url, "--figures", str(figures)) as server:
        index = Page(asked(server, "/")[1].encode()).text
        feature = Page(asked(server, "/" + page_of("feature", "orders@1:n"))[1].encode()).text
        other = Page(asked(server, "/" + page_of("feature", "stays@1:last"))[1].encode()).text
        alerts = Page(asked(server, "/alerts.html")[1].encode()).text
        # What is measured later is on the next page.
        (figures / "look.json").write_text(json.dumps(LOOK | {"views": []}))
        later = Page(asked(server, "/alerts.html")[1].encode()).text

    assert index.index("orders:n") < index.index("orders:spend")
    for word in (
        "drift",
        "PSI 0.90",
        "25.0% missing",
        "30.5% of its rows",
        "30 bytes",
        "to retire?",
        "60.0 s before the look",
    ):
        assert word in index, word
    for word in (
        "12 values",
        "25.0% missing (0.0% in the baseline)",
        "PSI 0.900, limit 0.200",
        "≤ 1",
        "80.0%",
        "costs <i>much</i>.",
    ):
        assert word in feature, word
    assert "Watched" not in other
    assert "over 0.200" in alerts
    assert "a <b>log</b> that is gone" in alerts
    assert "Nothing is over its limit" in later


def test_an_entity_has_the_values_that_models_read_whatever_is_in_them(redis):
    with serving(redis.url) as server:
        answer, text = asked(server, entity("orders@1", user="full"))
        with contextlib.closing(FeatureStore(redis_url=redis.url)) as store:
            read = store.get_online_features([f"orders:{name}" for name in NAMES], [{"user": "full"}])
        as_of, status, _ = read.metadata["orders"].row(0)
        stays = Page(asked(server, entity("stays@1", user="u7", hotel=1))[1].encode()).text
        nobody, unseen = asked(server, entity("orders@1", user="<script>alert(1)</script>"))

    page = Page(text.encode())
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    for name in NAMES:
        assert shown(FULL[name]).replace("\r", "\n") in page.text.replace("\r", "\n"), name
    assert shown(AWKWARD) in page.text
    assert "The server was started without" in "".join(page.text.split("\n"))
    assert f"As of {format_instant(as_of)}, {status}" in page.text
    assert "1.0" in stays
    assert nobody.status == 200
    assert "<script>alert" not in unseen
    assert "<script>alert(1)</script>" in Page(unseen.encode()).text


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/entity", 404, "There is no such page"),
        (entity("nothing@1", user="full"), 404, "There is no such page"),
        (entity("stays@1", user="u7"), 422, "Give a value for user and hotel"),
        (entity("stays@1", user="u7", hotel="x"), 422, "hotel is a whole number, and 'x' is not one"),
        (entity("stays@1", user="u7", hotel="+1"), 422, "hotel is a whole number"),
        (entity("stays@1", user="u7", hotel="9" * 19), 422, "hotel"),
        (entity("stays@1", user="u7", hotel="9" * 5_000), 422, "hotel is a whole number"),
        (entity("stays", user="u7", hotel=1), 200, "stays@1"),
    ],
)
def test_what_a_request_for_an_entity_lacks_is_said(redis, path, code, said):
    with serving(redis.url) as server:
        answer, text = asked(server, path)

    assert (answer.status, said in Page(text.encode()).text) == (code, True), text


def test_without_values_there_is_no_page_of_an_entity_and_no_way_to_one(redis):
    with serving(redis.url, "--no-values") as server:
        assert asked(server, entity("stays@1", user="u7", hotel=1))[0].status == 404
        assert "Show its values" not in asked(server, "/" + page_of("view", STAYS.id))[1]


def test_a_browser_sends_the_token_as_its_password(redis, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret")

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    with serving(redis.url, "--token-file", str(token)) as server:
        refused, _ = asked(server, "/")
        codes = {
            word: asked(server, "/", authorization=word)[0].status
            for word in (
                basic("me:s3cret"),
                "Bearer s3cret",
                basic("me:wrong"),
                basic("s3cret"),
                "Basic %%%",
                "Basic",
                "x",
            )
        }
        assets = asked(server, "/catalog.css")[0].status

    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert list(codes.values()) == [200, 200, 401, 401, 401, 401, 401]
    assert assets == 401


def test_a_page_of_others_cannot_read_a_server_of_this_machine_alone_under_its_own_name(redis, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret")
    body = {"entities": {"user": ["full"]}, "features": ["orders:n"]}

    def codes(server: Server, host: str, **headers: str) -> list[int]:
        paths = ("/", entity("orders@1", user="full"), "/v1/features")
        asked_for = [asked(server, path, host=host, **headers)[0].status for path in paths]
        return [*asked_for, server.post(body, host=host, **headers)[0]]

    with serving(redis.url, "--host-name", "Features.example") as server:
        for host in ("localhost", f"localhost:{server.port}", "127.0.0.1:1", "[::1]:6566", "features.EXAMPLE:80"):
            assert codes(server, host) == [200] * 4, host
        for host in (
            "evil.example",
            "evil.example:6566",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "features.example.evil",
        ):
            assert codes(server, host) == [421] * 4, host
            assert asked(server, "/health", host=host)[0].status == 200
    with serving(redis.url, "--token-file", str(token)) as server:
        assert codes(server, "evil.example", authorization="Bearer s3cret") == [200] * 4


def test_a_page_says_that_redis_is_away_and_comes_back_with_it(tmp_path):
    with Valkey(tmp_path) as redis, serving(redis.url) as server:
        empty, text = asked(server, "/")
        assert (empty.status, "nothing is published" in text) == (503, True)
        fill(redis.url)
        assert asked(server, "/")[0].status == 200
        redis.kill()
        away, text = asked(server, "/")
        assert (away.status, "cannot be shown now" in text) == (503, True)
        assert asked(server, "/catalog.css")[0].status == 200
        redis.start()
        fill(redis.url)
        wait_until(lambda: asked(server, "/")[0].status == 200, "the page is there again")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "no JSON", "{}", '{"at_us": 1}', '{"views": [{"view": "v", "features": [{"feature": 1}]}]}', "[" * 100_000,
     json.dumps(LOOK).replace('"counts": [3, 6, 3]', '"counts": [3]')],
)  # fmt: skip
def test_a_file_that_has_no_figures_is_refused(tmp_path, content):
    path = tmp_path / "look.json"
    path.write_text(content)

    with pytest.raises(RequestError, match=r"--figures .*look\.json: .*give a file of unskew monitor --report"):
        FigureFiles([path]).now()

    # In a folder, it may be one that is just being written.
    in_folder = FigureFiles([tmp_path])
    (fault,) = in_folder.now().faults
    assert f"--figures {path}: " in fault
    assert in_folder.now() is in_folder.now()
    path.write_text(json.dumps(LOOK))
    whole = in_folder.now()
    assert (whole.faults, list(whole.views)) == ([], ["orders@1"])
    path.write_text(content)
    assert [len(in_folder.now().faults), *in_folder.now().views] == [1, "orders@1"]


def test_what_is_no_file_is_said_and_does_not_hold_up_the_others(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").symlink_to("nowhere")
    (tmp_path / "c.json").symlink_to("c.json")
    os.mkfifo(tmp_path / "d.json")
    (tmp_path / "e.json").write_text(json.dumps(VALUE))
    files = FigureFiles([tmp_path])

    assert len(files.now().faults) == 4
    assert list(files.now().worth) == ["orders@1:n"]
    shutil.rmtree(tmp_path)
    assert not files.now().worth


def test_files_that_are_not_there_are_refused_at_the_start(redis, tmp_path):
    assert "there is no such folder" in refused(redis.url, "--log", str(tmp_path / "nothing"))
    assert "No such file" in refused(redis.url, "--figures", str(tmp_path / "nothing"))
