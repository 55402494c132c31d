"""The catalog as a server answers it: pages of the moment, and of one entity its values now and as the log has them."""

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import polars as pl
from starlette.requests import Request
from starlette.responses import Response

from unskew.catalog.drawing import HEIGHT, WIDTH, Steps, steps
from unskew.catalog.figures import FigureFiles
from unskew.catalog.naming import page_of
from unskew.catalog.pages import ASSETS, INDEX, Catalog
from unskew.features.definitions.lineage import Model
from unskew.features.errors import LayoutError, NothingPublished, RequestError, StoreUnavailable, UnskewError
from unskew.features.registry import Published
from unskew.features.revision import Revision
from unskew.features.showing import shown
from unskew.features.time import DAY_US, format_instant, instant_us
from unskew.features.versions import Versions
from unskew.features.view import View, ViewFeature
from unskew.monitoring.bins import as_read
from unskew.offline.history import EntityHistory, drawn, entity_history
from unskew.offline.log_reader import ViewLog
from unskew.serving.online import OnlineReader

ENTITY = "entity"
KEY = "key."
_SPANS = {"1": "1 day", "7": "7 days", "30": "30 days", "365": "1 year", "all": "all"}
_SPAN = "30"
_MOST_DRAWN = 2_000
_MOST_LEVELS = 12
_MOST_WAITING = 16
_NO_WINDOW = "no window"
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
# The pages say the same of themselves, for a folder of files; a browser obeys the last one in headers alone.
_HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class _Plot:
    name: str
    window: str
    least: str
    most: str
    steps: Steps


class Site:
    """Answers requests for pages.

    ``log``: the folder of the log, from which the past of entities is read; None shows their present alone. ``models``,
    ``revisions``: what returns them now; they are asked again when the registry changes. ``address``: of this server,
    for what is copied from the pages. ``shows_values``: whether there are pages of entities.
    """

    def __init__(
        self,
        reader: OnlineReader,
        *,
        log: Path | None = None,
        figures: FigureFiles | None = None,
        models: Callable[[], Sequence[Model]] = list,
        revisions: Callable[[], Sequence[Revision]] = list,
        prefix: str,
        address: str = "localhost:6566",
        shows_values: bool = True,
    ) -> None:
        self._reader = reader
        self._log = log
        self._figures = figures or FigureFiles([])
        self._models = models
        self._revisions = revisions
        self._prefix = prefix
        self._address = address
        self._shows_values = shows_values
        self._made_of: tuple[object, object] | None = None
        self._catalog: Catalog | None = None
        self._making = asyncio.Lock()
        # Logs are read one after the other: people may wait for each other, and models shall not for people.
        self._reading = asyncio.Lock()
        self._n_waiting = 0

    async def __call__(self, request: Request) -> Response:
        """Return a page, or one that says why there is none."""
        name = request.url.path.removeprefix("/") or INDEX
        if self._n_waiting >= _MOST_WAITING:
            return self._said("This server makes other pages; try again.", 503)
        self._n_waiting += 1
        try:
            return await self._answer(name, request.query_params)
        except UnskewError as error:
            return self._said(str(error), 503 if isinstance(error, StoreUnavailable | NothingPublished) else 500)
        finally:
            self._n_waiting -= 1

    async def _answer(self, name: str, query: Mapping[str, str]) -> Response:
        if name in ASSETS:
            found = await asyncio.to_thread(_nothing().page, name)
            return _page(found or b"", 200, _TYPES[name.rpartition(".")[2]])
        known = await self._reader.asked_async(self._reader.look_again())
        async with self._making:
            catalog = await asyncio.to_thread(self._made, known.published)
        if name == ENTITY and self._shows_values:
            return await self._entity(catalog, query)
        found = await asyncio.to_thread(catalog.page, name)
        return _page(catalog.render("missing.html"), 404) if found is None else _page(found)

    def _made(self, published: Published) -> Catalog:
        """Return the catalog of what is published and measured now."""
        figures = self._figures.now()
        before = self._made_of
        if self._catalog is None or before is None or before[0] is not published or before[1] is not figures:
            self._catalog = Catalog(
                published,
                models=self._models(),
                revisions=self._revisions(),
                figures=figures,
                place=str(self._reader),
                prefix=self._prefix,
                address=self._address,
                has_entities=self._shows_values,
            )
            self._made_of = published, figures
        return self._catalog

    def _said(self, text: str, code: int) -> Response:
        catalog = self._catalog or _nothing()
        return _page(catalog.render("said.html", text=text), code)

    async def _entity(self, catalog: Catalog, query: Mapping[str, str]) -> Response:
        view = catalog.published.views.get(query.get("view", ""))
        if view is None:
            return _page(catalog.render("missing.html"), 404)
        given = {key: query[KEY + key] for key in view.entity.keys if KEY + key in query}
        title = ", ".join(f"{key} {given.get(key, '?')}" for key in view.entity.keys)
        values: dict[str, Any] = {
            "title": title,
            "view": view,
            "page": page_of("view", view.id),
            "given": given,
            "log_is_known": self._log is not None,
            "fault": _fault(view, given),
            "values": None,
            "history": None,
            "plots": [],
            "spans": _spans(view, given, query.get("days", _SPAN)),
            "width": WIDTH,
            "height": HEIGHT,
        }
        if values["fault"]:
            return _page(catalog.render("entity.html", **values), 422)
        code = 200
        try:
            values |= await self._present(view, given)
            if self._log is not None:
                async with self._reading:
                    values |= await asyncio.to_thread(_past, self._log, view, given, query.get("days", _SPAN))
        except (RequestError, LayoutError) as error:
            # What was found before stays on the page.
            values["fault"] = str(error)
            code = 422 if isinstance(error, RequestError) else 500
        return _page(await asyncio.to_thread(lambda: catalog.render("entity.html", **values)), code)

    async def _present(self, view: View, given: Mapping[str, str]) -> dict[str, Any]:
        """Return the values of now."""
        references = [f"{view.id}:{feature.name}" for feature in view.features]
        answer = await self._reader.read_async(references, [given], full_feature_names=True)
        row = answer.columns.row(0, named=True)
        judged = answer.metadata[view.id].row(0, named=True)
        return {
            "values": [
                (
                    feature.name,
                    shown(row[f"{view.id}__{feature.name}"]),
                    view.window_text(feature) or _NO_WINDOW,
                    page_of("feature", f"{view.id}:{feature.name}"),
                )
                for feature in view.features
            ],
            "as_of": None if judged["as_of"] is None else format_instant(judged["as_of"]),
            "status": judged["status"],
            "provisional": judged["provisional"],
        }


def _fault(view: View, given: Mapping[str, str]) -> str:
    """Return what is wrong with a key; empty if nothing is."""
    if len(given) < len(view.entity.keys):
        return f"Give a value for {' and '.join(view.entity.keys)}."
    for key, kind in zip(view.entity.keys, view.entity.types, strict=True):
        if kind == "int64" and _INTEGER.fullmatch(given[key]) is None:
            return f"{key} is a whole number, and {given[key]!r:.40} is not one."
    return ""


def _past(log: Path, view: View, given: Mapping[str, str], days: str) -> dict[str, Any]:
    """Return the plots of an entity's features in the log."""
    if days not in _SPANS:
        raise RequestError(f"days: {days!r} is none of {', '.join(_SPANS)}")
    opened = ViewLog(log, view)
    if opened.coverage is None:
        return {"history": f"The log at {log} has nothing of {view.id}; it may be that of another pipeline."}
    history = entity_history(opened, dict(given), lambda *_: None)
    rows = history.frame
    if rows.is_empty():
        return {"history": "The log has no row of it."}
    last_us = instant_us(rows["available_at"][-1])
    end_us = max(last_us, last_us if history.complete_to_us is None else history.complete_to_us)
    first_us = instant_us(rows["available_at"][0])
    begin_us = first_us if days == "all" else end_us - int(days) * DAY_US
    # The last row before the span stands at its beginning.
    n_before = max(int((rows["available_at"].dt.epoch("us") <= begin_us).sum()) - 1, 0)
    n_more = max(rows.height - n_before - _MOST_DRAWN, 0)
    rows = rows.slice(n_before + n_more)
    if n_more:
        begin_us = instant_us(rows["available_at"][0])
    in_span = rows.filter(pl.col("available_at").dt.epoch("us") > begin_us)
    n_events = int(in_span["event_time"].is_not_null().sum())
    complete = (
        "" if history.complete_to_us is None else f" The log is complete to {format_instant(history.complete_to_us)}."
    )
    return {
        "history": f"{in_span.height:,} rows of the log, {n_events:,} of them by events, which are the dots; where a line steps without one, "
        "a window moved on." + (f" {n_more:,} rows before these are not drawn." if n_more else "") + complete,
        "plots": [
            _plot(history, feature, rows, begin_us, end_us) for feature in view.features if not feature.dtype.nesting
        ],
        "begin": format_instant(begin_us),
        "end": format_instant(end_us),
    }


def _plot(history: EntityHistory, feature: ViewFeature, rows: pl.DataFrame, begin_us: int, end_us: int) -> _Plot:
    values = as_read(feature, rows[feature.name])
    window = history.view.window_text(feature) or _NO_WINDOW
    known = values.drop_nulls()
    least, most = (shown(known.min()), shown(known.max())) if len(known) else ("no value", "no value")
    heights, levels = drawn(values.dt.epoch("us") if isinstance(values.dtype, pl.Datetime) else values)
    if levels:
        least, most = shown(levels[0]), shown(levels[-1])
    if levels and len(levels) > 2:
        some = ", ".join(map(shown, levels[:_MOST_LEVELS]))
        window += f"; texts upwards: {some}{', ...' if len(levels) > _MOST_LEVELS else ''}"
    # What a backfill wrote has its cause, and an event all the same.
    are_events = rows["event_time"].is_not_null().to_list()
    instants = rows["available_at"].dt.epoch("us").to_list()
    return _Plot(
        name=feature.name,
        window=window,
        least=least,
        most=most,
        steps=steps(instants, [one if math.isfinite(one) else None for one in heights], are_events, begin_us, end_us),
    )


def _spans(view: View, given: Mapping[str, str], chosen: str) -> list[tuple[str, str | None]]:
    """Return the spans that can be shown, each with its link, None for the one that is."""
    fields = {"view": view.id, **{KEY + key: value for key, value in given.items()}}
    return [
        (text, None if days == chosen else f"{ENTITY}?{urlencode({**fields, 'days': days})}")
        for days, text in _SPANS.items()
    ]


@cache
def _nothing() -> Catalog:
    """Return the catalog of nothing, for pages that are about nothing that is published."""
    return Catalog(Published(views=Versions([])), place="nothing that could be read")


def _page(data: bytes, code: int = 200, kind: str = "text/html; charset=utf-8") -> Response:
    return Response(data, code, _HEADERS, media_type=kind)
