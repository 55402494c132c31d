"""The catalog: a page for everything that is published, whole in itself, whatever things are called."""

import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from unskew import (
    Derived,
    Entity,
    Feature,
    FeatureView,
    OnDemand,
    Service,
    Sliding,
    Stream,
    agg,
)
from unskew.catalog.naming import page_of
from unskew.catalog.pages import CHANGES, INDEX, Catalog
from unskew.cli import main
from unskew.demo.journey import HOME
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.lineage import Model
from unskew.features.registry import Published

HOSTILE = "<script>alert(1)</script> \"quoted\" 'single' & é😀 \u202e {{ 7 * 7 }} {% raw %}"
LONG = "a_name_of_sixty_characters_that_has_no_place_to_break_it_at_x"


def pages(*known: object, **options: object) -> dict[str, bytes]:
    made = Catalog(*known, **options)  # type: ignore[arg-type]
    return {name: page for name in made.names if (page := made.page(name)) is not None}


class Page(HTMLParser):
    """The links, the elements and the text of a page."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self.links += [link for name in ("href", "src") if (link := given.get(name)) is not None]

    def handle_data(self, data: str) -> None:
        self.text += data


def example(n_more: int = 0) -> tuple[Published, Mapping[str, object]]:
    user = Entity("user", key="user", description=HOSTILE)
    schema = {
        "type": "record",
        "name": "Event",
        "fields": [
            {"name": "user", "type": "long"},
            {"name": "amount", "type": "double"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        ],
    }
    events = Stream("events", topic="events", schema=schema, event_time="at", settle="1s", owner=HOSTILE)
    more = [
        FeatureView(
            f"more_{first}",
            entity=user,
            stream=events,
            features=[
                Feature(f"sum_{number}", agg.mean("amount"), Sliding("1h")) for number in range(first, first + 50)
            ],
        )
        for first in range(0, n_more, 50)
    ]
    spend = FeatureView(
        LONG[:60],
        entity=user,
        stream=events,
        owner=HOSTILE,
        description=HOSTILE,
        tags={"team": HOSTILE},
        features=[
            Feature("old", agg.count(), Sliding("1h"), description=HOSTILE, deprecated=HOSTILE),
            *(Feature(f"sum_{number}", agg.mean("amount"), Sliding("1h"), default=0.5) for number in range(2)),
        ],
    )
    checkout = OnDemand(
        "checkout",
        inputs={"paid": "float64"},
        features=[Derived("ratio", f"paid / {LONG[:60]}:sum_0", default=0.0)],
    )
    service = Service("churn", [f"{LONG[:60]}:sum_0", "checkout:ratio"], owner=HOSTILE)
    plan = compile_definitions([spend, *more], checkout, service)
    return Published.of(plan), plan.streams


@pytest.fixture(scope="module")
def site() -> dict[str, bytes]:
    published, streams = example()
    model = Model(name=HOSTILE, features=[f"{LONG[:60]}@1:sum_0"], service="churn")
    return pages(published, streams, models=[model], place=HOSTILE)  # type: ignore[arg-type]


def test_every_link_leads_to_a_page_and_nothing_is_asked_for_elsewhere(site):
    for name, data in site.items():
        if name.endswith(".html"):
            for link in Page(data).links:
                target = link.partition("#")[0]
                assert not target or unquote(target) in site, (name, link)


def test_hostile_texts_are_text_and_no_page_has_a_script_or_a_style_of_its_own(site):
    for name, data in site.items():
        if not name.endswith(".html"):
            continue
        page = Page(data)
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert scripts == [{"src": "catalog.js", "defer": None}]
        assert not [tag for tag, _ in page.tags if tag in {"style", "iframe", "object", "img"}]
        assert not [one for _, attributes in page.tags for one in attributes if one.startswith("on") or one == "style"]
        assert any(
            attributes.get("http-equiv") == "Content-Security-Policy"
            and str(attributes["content"]).startswith("default-src 'self'")
            for tag, attributes in page.tags
            if tag == "meta"
        )
    index = Page(site[INDEX])
    assert HOSTILE in index.text
    assert "49" not in index.text.replace("249", "")


def test_everything_that_is_published_is_listed_with_what_is_known_of_it(site):
    index = Page(site[INDEX])

    for word in (f"{LONG[:60]}:sum_0", "checkout:ratio", "churn", "events", "float64", "mean", "1h", "deprecated"):
        assert word in index.text
    feature = Page(site[page_of("feature", f"{LONG[:60]}@1:sum_0")])
    for word in ("get_online_features", "curl", "redis-cli HGET", "churn", HOSTILE, "checkout@1:ratio", "0.5"):
        assert word in feature.text
    assert page_of("service", "churn") in feature.links
    assert page_of("stream", "events") in Page(site[page_of("view", f"{LONG[:60]}@1")]).links


def test_a_page_says_how_to_read_with_all_keys_and_under_the_prefix():
    published, streams = example()

    made = pages(published, streams, place="here", prefix="shop")  # type: ignore[arg-type]

    on_demand = Page(made[page_of("feature", "checkout@1:ratio")]).text
    assert '"entities": {"user": ["..."], "paid": ["..."]}, "features": ["checkout:ratio"]' in on_demand
    stored = Page(made[page_of("feature", f"{LONG[:60]}@1:sum_0")]).text
    assert f"redis-cli HGET 'shop:{LONG[:60]}@1:{{KEY}}' sum_0" in stored
    assert "FeatureStore(prefix='shop')" in stored


def test_what_is_deprecated_comes_first_and_what_is_not_known_is_said(site):
    index = Page(site[INDEX]).text

    assert index.index(":old") < index.index(":sum_0")
    assert "none" in index
    assert "nobody that is known" in index


def test_files_have_names_of_their_own_whatever_things_are_called():
    names = [HOSTILE, "a/b", "a=b", "a=3d=b", "../etc/passwd", "x" * 500, "x" * 501, "é", "", ".", "a:b", "a b", "A"]
    made = [page_of(kind, name) for kind in ("view", "feature") for name in names]

    assert len(set(made)) == len(made)
    assert all(len(name) < 200 and "/" not in name and not name.startswith(".") for name in made)
    assert all(unquote(name) == name for name in made)


def test_five_hundred_features_are_all_there():
    published, streams = example(500)

    made = pages(published, streams, place="here")  # type: ignore[arg-type]

    index = Page(made[INDEX])
    assert len([tag for tag, _ in index.tags if tag == "tr"]) == 505
    assert page_of("feature", "more_450@1:sum_499") in made


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["catalog", *arguments])
    return found.exit_code, found.output


def test_the_command_writes_a_folder_and_replaces_its_own_pages_alone(tmp_path: Path):
    site = tmp_path / "site"
    one = tmp_path / "definitions.py"
    one.write_text((HOME / "definitions.py").read_text())
    shutil.copytree(HOME / "schemas", tmp_path / "schemas")

    code, said = run("-o", str(site), "--definitions", str(one))
    assert code == 0, said
    assert str(site / INDEX) in said
    before = {path.name for path in site.iterdir()}
    (site / "mine.txt").write_text("kept")
    one.write_text(one.read_text().replace("views_5m", "views_in_5m"))
    assert run("-o", str(site), "--definitions", str(one))[0] == 0

    after = {path.name for path in site.iterdir()}
    assert page_of("feature", "household_page_views@1:views_5m") in before - after
    assert page_of("feature", "household_page_views@1:views_in_5m") in after - before
    assert (site / "mine.txt").read_text() == "kept"
    assert CHANGES not in after


def test_a_folder_of_others_is_left_alone(tmp_path: Path):
    (tmp_path / "index.html").write_text("mine")

    code, said = run("-o", str(tmp_path), "--definitions", str(HOME))

    assert code == 1
    assert "is not empty and is not a catalog" in said
    assert (tmp_path / "index.html").read_text() == "mine"


def test_changes_are_those_of_the_record(tmp_path: Path, redis_url: str):
    record = tmp_path / "registry"
    applied = CliRunner().invoke(
        main,
        ["apply", str(HOME), "--yes", "--message", HOSTILE, "--registry", str(record), "--redis-url", redis_url],
    )
    assert applied.exit_code == 0, applied.output

    code, said = run("-o", str(tmp_path / "site"), "--definitions", str(HOME), "--registry", str(record))

    assert code == 0, said
    changes = Page((tmp_path / "site" / CHANGES).read_bytes())
    assert HOSTILE in changes.text
    assert "household_purchases@1" in changes.text
    assert CHANGES in Page((tmp_path / "site" / INDEX).read_bytes()).links
