"""Current features over HTTP: the application that ``unskew serve`` runs.

The route that is asked most, ``POST /get-online-features``, is a plain ASGI callable; Starlette has the others.
"""

import asyncio
import base64
import binascii
import contextlib
import gc
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unskew.features.errors import (
    LayoutError,
    NothingPublished,
    OtherFeatures,
    RequestError,
    StoreUnavailable,
    UnknownName,
    UnskewError,
)
from unskew.serving import feast
from unskew.serving.listing import listing
from unskew.serving.measured import Metrics
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.usage import Usage

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
Site = Callable[[Request], Awaitable[Response]]
"""Answers requests for pages for people."""

_UNKNOWN_CLIENT = "send the token of this server: Authorization: Bearer TOKEN"
_OTHER_NAME = (
    "this server answers to localhost and to addresses alone; name it with --host-name, for example behind a proxy, or give it a "
    "--token-file"
)
_MOST_NAMES = 64
_TOO_LONG = "the body is longer than {:,} bytes; ask in parts"
FEATURES = "/get-online-features"
LISTING = "/v1/features"
_OURS = ("/health", "/ready", "/metrics", LISTING)
_PAGES = ("/", "/entity")
WHOLE = "unskew.whole"
"""The extension of a server that is a ``Whole``."""
_NOT_OURS = (
    "/push", "/write-to-online-store", "/materialize", "/materialize-incremental", "/search", "/retrieve-online-documents",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ASKS_FOR_TOKEN = {"www-authenticate": 'Basic realm="unskew: the password is the token", charset="UTF-8"'}
_EXPECT = b"unskew-expect"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_JSON = (b"content-type", b"application/json")
_log = logging.getLogger("unskew.serve")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all together, may cost.

    ``body_bytes``: of a request. ``rows``: entities of a request. ``body_s``: how long the body of a request may take.
    ``at_once``: requests that are answered at the same time; more are refused. Those whose bodies are still on their
    way do not count: they have ``coming_bytes`` together.
    """

    body_bytes: int = 1 << 20
    coming_bytes: int = 1 << 28
    rows: int = 5_000
    body_s: float = 10.0
    at_once: int = 1_000


class Whole(Protocol):
    """A request and its answer, each in one piece; ASGI has them in messages, which cost more."""

    def body(self) -> bytes | None:
        """Return the body, if all of it has come with its head; None if not."""

    async def send(self, code: int, headers: Headers, body: bytes) -> None:
        """Send the answer."""


class _Reply(NamedTuple):
    code: int
    body: bytes
    service: str = ""


class _Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Application:
    """An ASGI application that answers from a reader.

    ``token``: what a client must send as its bearer token, or as the password of a browser. ``usage``: counts what
    services are read. ``metrics``: what is measured. ``site``: answers for what is not in this protocol. ``names``: of
    this server, besides localhost and addresses; a request to any other name is refused, so that no page of others that
    calls itself so reads what only this machine may. None takes all. ``at_end``: called when the server has stopped.
    """

    def __init__(
        self,
        reader: OnlineReader,
        limits: Limits,
        token: str | None = None,
        usage: Usage | None = None,
        *,
        metrics: Metrics | None = None,
        site: Site | None = None,
        names: Collection[str] | None = None,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self._reader = reader
        self._usage = usage
        self._limits = limits
        self._token = None if token is None else token.encode()
        self._n_at_once = 0
        self._n_coming_bytes = 0
        self.metrics = metrics or Metrics()
        self._at_end = at_end
        self._site = site
        self._names = None if names is None else {"localhost", *(name.lower() for name in names)}
        self._meant: set[bytes] = set()
        self._others = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/ready", self._ready),
                Route("/metrics", self._metrics),
                Route(LISTING, self._listing),
                *(Route(path, _not_ours, methods=["GET", "POST", "PUT"]) for path in _NOT_OURS),
                *([] if site is None else [Route("/{name:path}", self._page, methods=_METHODS)]),
            ],
            exception_handlers={404: _not_found, 405: _not_allowed},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] == "http" and scope["path"] == FEATURES:
            await self._features(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._others(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                # What is there now stays, so no search for garbage need look at it while requests wait.
                gc.collect()
                gc.freeze()
            elif self._at_end is not None:
                self._at_end()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _features(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        self._n_at_once += 1
        try:
            reply = await self._reply(scope, receive)
        finally:
            self._n_at_once -= 1
        self.metrics.replied(reply.code, time.perf_counter() - began, reply.service)
        await _send(scope, send, reply)

    async def _reply(self, scope: Scope, receive: Receive) -> _Reply:
        try:
            headers = _headers(scope)
            self._refuse(scope, headers)
            # It has nearly always come with its head, and then there is nothing to wait for.
            data = None if (whole := _whole(scope)) is None else whole.body()
            if data is None or len(data) > self._limits.body_bytes:
                data = await self._body(headers, receive)
            body = feast.read_body(data, self._limits.rows)
            answered = await self._reader.asked_async(feast.asking(self._reader, body))
            if (expected := headers.get(_EXPECT)) is not None:
                answered.request.require(_digest(expected))
            self.metrics.answered(answered)
            if self._usage is not None and body.feature_service is not None:
                self._usage.count(body.feature_service)
            return _Reply(200, feast.answer(answered, body), body.feature_service or "")
        except _Refused as error:
            return _Reply(error.code, feast.error(str(error)))
        except UnskewError as error:
            if isinstance(error, StoreUnavailable):
                self.metrics.redis_failed()
            return _Reply(_code(error), feast.error(str(error), error))
        except Exception:  # noqa: BLE001 - a client gets an answer, and no traceback
            _log.exception("a request was not answered")
            return _Reply(500, feast.error("the server failed to answer; its log says why"))

    def _refuse(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        if scope["method"] != "POST":
            raise _Refused(405, f"send POST to {FEATURES}")
        if not self._is_meant(headers):
            raise _Refused(421, _OTHER_NAME)
        if not self._may(headers):
            raise _Refused(401, _UNKNOWN_CLIENT)
        self._refuse_more()

    def _is_meant(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request is to a name of this server; that of an address cannot be another one's."""
        if self._names is None:
            return True
        given = headers.get(b"host", b"")
        if given in self._meant:
            return True
        text = given.decode("latin-1").lower()
        name = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text.partition(":")[0]
        is_meant = name in self._names or not name
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            is_meant = True
        if is_meant and len(self._meant) < _MOST_NAMES:
            self._meant.add(given)
        return is_meant

    def _refuse_more(self) -> None:
        if self._n_at_once > self._limits.at_once:
            raise _Refused(503, f"this server answers {self._limits.at_once:,} requests at once; try again")

    def _may(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return true if the client has sent the token, or none is asked for."""
        if self._token is None:
            return True
        given = headers.get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() == b"basic":
            with contextlib.suppress(binascii.Error):
                token = base64.b64decode(token.strip(), validate=True).partition(b":")[2]
                return hmac.compare_digest(token, self._token)
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        given = headers.get(b"content-length", b"0")
        if given.isdigit() and int(given) > most:
            raise _Refused(413, _TOO_LONG.format(most))
        parts, n_bytes = [], 0
        # Nothing is answered before it has come: clients that are slow do not stop the others.
        self._n_at_once -= 1
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    part = _part(message)
                    n_bytes += len(part)
                    self._n_coming_bytes += len(part)
                    if n_bytes > most:
                        raise _Refused(413, _TOO_LONG.format(most))
                    if self._n_coming_bytes > self._limits.coming_bytes:
                        raise _Refused(503, "other requests that are on their way fill this server's memory; try again")
                    parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise _Refused(408, f"the body did not come within {self._limits.body_s:g} s") from None
        finally:
            self._n_at_once += 1
            self._n_coming_bytes -= n_bytes
        self._refuse_more()
        return b"".join(parts)

    async def _health(self, _: Request) -> Response:
        """Answer while the process works."""
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        """Answer whether features can be read."""
        try:
            await self._reader.asked_async(self._reader.look_again())
        except UnskewError as error:
            return JSONResponse({"ready": False, "reason": str(error)}, 503)
        return JSONResponse({"ready": True})

    async def _listing(self, request: Request) -> Response:
        """Answer with what can be read."""
        headers = _headers(request.scope)
        if not self._is_meant(headers):
            return JSONResponse({"message": _OTHER_NAME}, 421)
        if not self._may(headers):
            return JSONResponse({"message": _UNKNOWN_CLIENT}, 401)
        try:
            known = await self._reader.asked_async(self._reader.look_again())
        except UnskewError as error:
            return JSONResponse({"message": str(error)}, _code(error))
        return JSONResponse(listing(known.published))

    async def _page(self, request: Request) -> Response:
        path = request.url.path
        if path in _OURS or path in _NOT_OURS:
            raise HTTPException(405)
        # What is neither a page nor one of its files is asked for by a program.
        if self._site is None or request.method not in {"GET", "HEAD"} or not ("." in path or path in _PAGES):
            raise HTTPException(404)
        headers = _headers(request.scope)
        if not self._is_meant(headers):
            return Response(_OTHER_NAME, 421, media_type="text/plain")
        if not self._may(headers):
            return Response(_UNKNOWN_CLIENT, 401, _ASKS_FOR_TOKEN, media_type="text/plain")
        return await self._site(request)

    async def _metrics(self, request: Request) -> Response:
        if not self._may(_headers(request.scope)):
            return Response(feast.error(_UNKNOWN_CLIENT), 401, media_type="application/json")
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _send(scope: Scope, send: Send, reply: _Reply) -> None:
    headers = [_JSON, (b"content-length", b"%d" % len(reply.body))]
    if reply.code == 405:
        headers.append((b"allow", b"POST"))
    if reply.code in {408, 413}:
        # The rest of the body is not read, so nothing can follow it.
        headers.append((b"connection", b"close"))
    if (whole := _whole(scope)) is not None:
        await whole.send(reply.code, headers, reply.body)
        return
    await send({"type": "http.response.start", "status": reply.code, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _whole(scope: Scope) -> Whole | None:
    """Return the request and its answer in one piece; None if the server has no such thing."""
    return scope["extensions"].get(WHOLE) if "extensions" in scope else None


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise _Refused(400, "the client went away")
    part: bytes = message.get("body", b"")
    return part


def _headers(scope: Scope) -> Mapping[bytes, bytes]:
    """Return the headers by their names; the first of several with one name."""
    return dict(reversed([*scope["headers"]]))


def _digest(given: bytes) -> str:
    """Return the digest of the features that a request expects. Raises ``RequestError`` for what is not one."""
    text = given.decode("latin-1").strip()
    if _DIGEST.fullmatch(text) is None:
        raise RequestError(
            f"Unskew-Expect: {text!r:.80} is not a digest of features; send the 64 characters of features_digest in the model's "
            "manifest"
        )
    return text


def _code(error: UnskewError) -> int:
    """Return the code of HTTP for an error. Feast's client repeats a request after 429, 500, and 502 to 504."""
    if isinstance(error, StoreUnavailable | NothingPublished):
        return 503
    if isinstance(error, UnknownName):
        return 404
    if isinstance(error, OtherFeatures):
        return 409
    if isinstance(error, RequestError):
        return 422
    return 500 if isinstance(error, LayoutError) else 400


async def _not_ours(_: Request) -> Response:
    message = "unskew computes features from its topics and tables; nothing is written or searched over HTTP"
    return Response(feast.error(message), 501, media_type="application/json")


async def _not_found(request: Request, _: Exception) -> Response:
    message = (
        f"there is no {request.url.path}; POST {FEATURES} reads features, GET {LISTING} lists them, and there are /health, /ready, "
        "/metrics"
    )
    return Response(feast.error(message), 404, media_type="application/json")


async def _not_allowed(request: Request, _: Exception) -> Response:
    message = f"{request.method} is not answered at {request.url.path}"
    return Response(feast.error(message), 405, {"allow": "GET, HEAD"}, media_type="application/json")
