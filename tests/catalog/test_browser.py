"""The catalog in a real browser: the demo's own pages, and pages about things with hostile names."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import polars as pl
import pytest
from click import ClickException
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.catalog.test_pages import HOSTILE, LONG, example, pages
from tests.support.pictures import Shown, of_catalog, showing
from unskew.catalog.naming import page_of
from unskew.catalog.pages import INDEX

CHROMIUM = shutil.which("chromium")
N_LINES = 30_000
WIDTHS = (390, 768, 1200, 1920)
SCHEMES = ("light", "dark")
LEAVES_ITS_PARENT = """() => [...document.querySelectorAll("body *")].filter((one) => {
  const own = one.getBoundingClientRect(), around = one.parentElement.getBoundingClientRect();
  const style = getComputedStyle(one);
  return own.width > 0 && style.position !== "absolute" && (own.right > around.right + 1 || own.left < around.left - 1);
}).map((one) => `${one.tagName} ${one.className} ${one.textContent.slice(0, 40)}`)"""

CONTRASTS_BELOW_AA = """() => {
  const parts = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (text) => {
    const [red, green, blue] = parts(text).map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (parts(colour).length === 3 || parts(colour)[3] === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")]
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => {
      const [low, high] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
      return [(high + 0.05) / (low + 0.05), one.textContent.trim().slice(0, 40)];
    })
    .filter(([contrast]) => contrast < 4.5);
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    root = tmp_path_factory.mktemp("demo")
    unskew = [sys.executable, "-m", "unskew"]
    subprocess.run(
        [*unskew, "demo", "--output", str(root), "--rows", str(N_LINES)], check=True, timeout=400, capture_output=True
    )
    with showing(root) as ui:
        yield ui


@contextlib.contextmanager
def opened(browser: Browser, width: int = 1200, scheme: str = "light") -> Iterator[Page]:
    """A page of which nothing may be asked for elsewhere, and in which nothing may go wrong."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    faults: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    # What was on its way when the next page was asked for is no fault.
    page.on("requestfailed", lambda one: faults.append(one.url) if one.failure != "net::ERR_ABORTED" else None)
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield page
    assert faults == []
    assert len(hosts) <= 1
    context.close()


def entity(ui: Shown, household: int, days: str = "30") -> str:
    return f"{ui.address}entity?view={quote('household_purchases@1')}&key.household_id={household}&days={days}"


def got(ui: Shown, *arguments: str) -> dict[str, Any]:
    """What ``unskew get`` prints."""
    command = [sys.executable, "-m", "unskew", "get", *arguments, "--redis-url", ui.redis_url, "--json"]
    found = subprocess.run(command, check=True, timeout=60, capture_output=True)
    parsed: dict[str, Any] = json.loads(found.stdout)
    return parsed


def test_every_link_leads_to_a_page(ui, browser):
    with opened(browser) as page:
        left, seen = [ui.address], set()
        while left:
            link = left.pop()
            seen.add(link)
            answer = page.goto(link)
            assert answer is not None
            assert answer.status == 200, link
            found = page.evaluate("() => [...document.links].map((one) => one.href.split('#')[0])")
            left += [one for one in set(found) if one not in seen and one not in left]

    names = {urlsplit(link).path.removeprefix("/") for link in seen}
    assert {"", "alerts.html", "changes.html", page_of("view", "household_purchases@1")} <= names
    assert len([name for name in names if name.startswith("feature-")]) == 16


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_leaves_its_place_on_any_screen(ui, browser, width, scheme):
    kinds = ["", "alerts.html", "changes.html", page_of("view", "household_purchases@1"), page_of("stream", "transactions"),
             page_of("feature", "household_purchases@1:spend_30d")]  # fmt: skip
    with opened(browser, width, scheme) as page:
        for link in (*(ui.address + name for name in kinds), entity(ui, busiest(ui), "all")):
            page.goto(link)
            assert page.evaluate(LEAVES_ITS_PARENT) == [], link
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), link


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_can_be_read_in_light_and_in_dark(ui, browser, scheme):
    """The contrast is at least that of level AA of WCAG 2, section 1.4.3, for every text."""
    with opened(browser, 1200, scheme) as page:
        for link in (
            ui.address,
            ui.address + page_of("feature", "household_purchases@1:spend_30d"),
            entity(ui, busiest(ui)),
        ):
            page.goto(link)
            assert page.evaluate(CONTRASTS_BELOW_AA) == [], link


def test_words_and_filters_find_features_by_keyboard_alone(ui, browser):
    with opened(browser) as page:
        page.goto(ui.address)
        rows = page.locator("#features tbody tr:visible")
        expect(rows).to_have_count(16)
        page.keyboard.press("/")
        page.keyboard.type("household 30D purchases")
        expect(page.locator("#count")).to_have_text(str(rows.count()))
        texts = [text.lower() for text in rows.all_inner_texts()]
        assert texts
        assert all("household" in text and "30d" in text and "purchases" in text for text in texts)
        page.keyboard.press("Control+A")
        page.keyboard.type("nothing has this")
        expect(page.locator("#none")).to_be_visible()
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.get_by_label("Entity").select_option("store_id")
        expect(rows).to_have_count(2)
        page.get_by_label("Search").fill("sales & returns")
        page.reload()
        expect(page.get_by_label("Entity")).to_have_value("store_id")
        expect(page.get_by_label("Search")).to_have_value("sales & returns")
        page.goto(f"{ui.address}#entity=nobody&q=spend")
        expect(page.get_by_label("Entity")).to_have_value("")
        expect(page.locator("#count")).to_have_text(str(rows.count()))
        assert all("spend" in text.lower() for text in rows.all_inner_texts())

        page.goto(ui.address)
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.get_by_role("link", name="household_purchases:spend_30d").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("household_purchases@1:spend_30d")


def busiest(ui: Shown) -> int:
    """The household with the most rows in the log."""
    rows = pl.scan_parquet(ui.root / "log" / "household_purchases" / "v1" / "day=*" / "*.parquet")
    found = rows.group_by("household_id").len().sort("len", "household_id").collect()
    return int(found["household_id"][-1])


def test_values_of_an_entity_are_those_of_get_and_the_plots_have_the_events_of_the_log(ui, browser):
    household = busiest(ui)
    expected = got(ui, "household_purchases", str(household))
    rows = (
        pl.scan_parquet(ui.root / "log" / "household_purchases" / "v1" / "day=*" / "*.parquet")
        .filter(pl.col("household_id") == household)
        .sort("seq")
        .collect()
    )
    with opened(browser) as page:
        page.goto(ui.address + page_of("view", "household_purchases@1"))
        page.get_by_label("household_id").fill(str(household))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(f"household_id {household}")
        shown = dict(
            zip(page.locator("tbody th").all_inner_texts(), page.locator("td .value").all_inner_texts(), strict=True)
        )
        text = page.locator("main").inner_text()
        page.get_by_role("link", name="all", exact=True).click()
        n_dots = {
            figure.locator("strong").inner_text(): figure.locator("circle").count()
            for figure in page.locator("figure").all()
        }
        paths = [path.get_attribute("d") for path in page.locator("figure path").all()]

    assert {name: json.loads(value) for name, value in shown.items()} == expected["features"]
    assert expected["as_of"].replace("+00:00", "Z") in text
    assert expected["status"] in text
    n_events = rows.filter(pl.col("cause") == "event").height
    assert 0 < n_events < 2_000
    assert n_dots == dict.fromkeys(expected["features"], n_events)
    assert all(path is not None and path.startswith("M") for path in paths)


def test_pictures_of_the_docs_are_made_of_pages_that_are_answered(ui, browser, tmp_path):
    of_catalog(browser, ui.address, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"catalog.png", "entity.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    with pytest.raises(ClickException, match="There is no such page"):
        of_catalog(browser, f"{ui.address}nothing.html?", tmp_path)


def test_hostile_names_and_five_hundred_features_stay_text_in_their_places(browser, tmp_path):
    for number, n_more in enumerate((0, 500)):
        published, streams = example(n_more)
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in pages(published, streams, place=HOSTILE).items():
            (folder / name).write_bytes(data)
        names = [
            INDEX,
            page_of("feature", f"{LONG[:60]}@1:old"),
            page_of("view", f"{LONG[:60]}@1"),
            page_of("stream", "events"),
        ]
        for width in WIDTHS:
            for scheme in SCHEMES:
                with opened(browser, width, scheme) as page:
                    for name in names if not n_more else [INDEX]:
                        page.goto((folder / name).as_uri())
                        assert page.evaluate(LEAVES_ITS_PARENT) == [], (name, width)
                        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), (name, width)
                    expect(page.locator("body")).to_contain_text("<script>alert(1)</script>")
