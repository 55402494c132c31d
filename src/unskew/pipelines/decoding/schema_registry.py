"""Writers' schemas from a Confluent Schema Registry, by the ids that messages carry."""

import base64
import json
import logging
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import fastavro

from unskew.features.definitions.avro_schema import Unique
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.extras import needed
from unskew.pipelines.decoding.resolve import Incompatible, Unregistered
from unskew.pipelines.decoding.writers import Files

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
_NOT_FOUND = 404
_REFUSED = range(400, 500)
_BUSY = (408, 429)
_LONG_SECRET = 4
_SERIALIZED = "serialized"
HOLD_S, HOLD_S_PER_S = 2.0, 1 / 60
"""Unknown ids may hold up the flow for so long in all, and for so many seconds more per second after that."""

_log = logging.getLogger("unskew.registry")


class Flag(Protocol):
    """A request to stop that can be waited for, for example ``threading.Event``."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float) -> bool: ...


class SchemaRegistry:
    """A registry's schemas, each requested once; the client keeps them, so an outage matters only for new ids.

    ``url``: one or several, separated by commas; it may contain user and password, percent-encoded. ``timeout_s``: for
    one answer. ``wait_s``: how long to wait for a needed schema while the registry does not answer.
    """

    def __init__(
        self,
        url: str,
        stop: Flag,
        *,
        timeout_s: float = 10.0,
        wait_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        with needed("a Schema Registry", extra="registry"):
            from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415 - its packages are an extra
        self.shown, credentials = _without_credentials(url)
        self._secret = _secrets(url)
        config = {"url": self.shown, "timeout": timeout_s, "max.retries": 0, **credentials}
        try:
            self._client = SchemaRegistryClient(config)
            # A client keeps what it got for an id, whatever the form in which it was asked for it.
            self._serialized = SchemaRegistryClient(config)
        except (ValueError, TypeError) as error:
            raise RequestError(
                f"--schema-registry {self.shown}: {self._hidden(error)}; give for example http://localhost:8081"
            ) from error
        self._stop = stop
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._hold_s = HOLD_S
        self._held_at_s = monotonic()

    def writer(self, schema_id: int, *, expected: bool = False) -> Any:
        """Return the Avro schema of an id, a record or a union, with the schemas to which it refers inside it.

        While the registry does not answer, the request is repeated. So it is for a short time if the registry does not
        know the id, because a follower learns of a new schema a little later than its leader; with ``expected``, for as
        long as if it did not answer. Raises ``Unregistered`` if the registry has no such schema; ``Incompatible`` if it
        is not one of Avro records; ``StoreUnavailable`` if the registry has not answered for ``wait_s`` or refuses the
        request, or if this process should stop. No record of the poll has been counted then.
        """
        found = self._ask(partial(self._client.get_schema, schema_id), f"schema {schema_id}", expected=expected)
        if _type(found) != "AVRO":
            raise Incompatible(f"it is a schema of {_type(found)}, not of Avro")
        named: dict[str, Any] = {}
        try:
            self._refer(found, named, expected=expected)
            schema = json.loads(found.schema_str)
            refers = bool(named)
            parsed = fastavro.parse_schema(schema, named)
        except (
            ValueError,
            KeyError,
            TypeError,
            fastavro.schema.SchemaParseException,
            fastavro.schema.UnknownType,
        ) as error:
            raise Incompatible(f"it is not a valid schema ({type(error).__name__}: {error})") from error
        if not isinstance(schema, list) and not (isinstance(schema, dict) and schema.get("type") == "record"):
            raise Incompatible("it is not a record")
        # Expanding defines a type wherever it is named, which a schema must not.
        expanded = fastavro.schema.expand_schema(parsed) if refers else schema
        return Unique(expanded).copy(expanded) if refers else schema

    def files(self, schema_id: int, *, expected: bool = False) -> Files:
        """Return a schema of Protobuf, with all those to which it refers; waits and raises as ``writer`` does."""
        get = partial(self._serialized.get_schema, schema_id, fmt=_SERIALIZED)
        found = self._ask(get, f"schema {schema_id}", expected=expected)
        if _type(found) != "PROTOBUF":
            raise Incompatible(f"it is a schema of {_type(found)}, not of Protobuf")
        files: dict[str, bytes] = {}
        waiting = [("", found)]
        while waiting:
            name, schema = waiting.pop()
            try:
                files[name] = base64.b64decode(schema.schema_str, validate=True)
            except ValueError as error:
                raise Incompatible("the registry does not give schemas of Protobuf in serialized form") from error
            for reference in schema.references or ():
                if reference.name not in files:
                    what = f"schema {reference.subject} version {reference.version}"
                    question = partial(
                        self._serialized.get_version, reference.subject, reference.version, fmt=_SERIALIZED
                    )
                    waiting.append((reference.name, self._ask(question, what, expected=expected).schema))
        return tuple(files.items())

    def check(self) -> None:
        """Raise ``StoreUnavailable`` unless the registry answers now and lets this client in."""
        try:
            self._client.get_subjects()
        # The client lets through whatever its HTTP library raises.
        except Exception as error:
            raise StoreUnavailable(
                f"Schema Registry {self.shown} does not answer ({type(error).__name__}: {self._hidden(error)}); start it, or correct "
                "--schema-registry and the user and password in it"
            ) from error

    def latest(self, subject: str) -> int:
        """Return the id of a subject's latest schema; waits as ``writer`` does, and raises ``Unregistered``."""
        found = self._ask(partial(self._client.get_latest_version, subject), f"subject {subject}", expected=False)
        return int(found.schema_id)

    def _refer(self, schema: Any, named: dict[str, Any], *, expected: bool) -> None:
        """Parse the schemas to which a schema refers; those to which they refer come first."""
        for reference in schema.references or ():
            what = f"schema {reference.subject} version {reference.version}"
            question = partial(self._client.get_version, reference.subject, reference.version)
            found = self._ask(question, what, expected=expected)
            self._refer(found.schema, named, expected=expected)
            fastavro.parse_schema(json.loads(found.schema.schema_str), named)

    def _ask(self, question: Callable[[], Any], what: str, *, expected: bool) -> Any:
        from confluent_kafka.schema_registry import SchemaRegistryError  # noqa: PLC0415

        waited_s, pause_s = 0.0, _FIRST_PAUSE_S
        while True:
            try:
                return question()
            except SchemaRegistryError as error:
                fault, status = self._hidden(error), error.http_status_code
                if status == _NOT_FOUND and not expected:
                    if self._may_hold(pause_s):
                        self._stop.wait(pause_s)
                        pause_s *= 2
                        continue
                    raise Unregistered("the registry has no such schema") from error
                if status in _REFUSED and status not in {*_BUSY, _NOT_FOUND}:
                    raise StoreUnavailable(
                        f"Schema Registry {self.shown} refuses to return {what} ({fault}); give the user and password that it requires"
                    ) from error
            # The client lets through whatever its HTTP library raises: no connection, no answer in time, ...
            except Exception as error:  # noqa: BLE001
                fault = f"{type(error).__name__}: {self._hidden(error)}"
            if waited_s >= self._wait_s or self._stop.is_set():
                raise StoreUnavailable(
                    f"Schema Registry {self.shown} does not return {what}, with which messages were written ({fault}); "
                    "start again when it answers: reading continues from the last epoch, and nothing is lost"
                )
            _log.warning("Schema Registry %s does not return %s (%s); waiting for it", self.shown, what, fault)
            self._stop.wait(pause_s)
            waited_s += pause_s
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _may_hold(self, pause_s: float) -> bool:
        """Take a pause from the time for which unknown ids may hold up the flow; return false if it is used up."""
        now_s = self._monotonic()
        self._hold_s = min(self._hold_s + (now_s - self._held_at_s) * HOLD_S_PER_S, HOLD_S)
        self._held_at_s = now_s
        if self._stop.is_set() or pause_s > self._hold_s:
            return False
        self._hold_s -= pause_s
        return True

    def _hidden(self, error: Exception) -> str:
        """Return the text of an error without user and password, because the registry may repeat what it was sent."""
        return str(error) if self._secret is None else self._secret.sub("***", str(error))


def _type(schema: Any) -> str:
    return str(schema.schema_type or "AVRO")


def _without_credentials(urls: str) -> tuple[str, dict[str, str]]:
    """Return addresses that may be shown, and the client's other settings.

    An address that is not fully understood is refused without repeating it, because a password may stand anywhere in
    it.
    """
    shown, user_info = [], ""
    for url in urls.split(","):
        try:
            parts = urlsplit(url.strip())
            port = "" if parts.port is None else f":{parts.port}"
        except ValueError:
            raise _not_understood() from None
        odd = parts.query or parts.fragment or "@" in parts.path
        if parts.scheme not in {"http", "https"} or not parts.hostname or odd:
            raise _not_understood()
        if parts.username is not None and not user_info:
            user_info = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        shown.append(f"{parts.scheme}://{host}{port}{parts.path}")
    return ",".join(shown), {"basic.auth.user.info": user_info} if user_info else {}


def _secrets(urls: str) -> re.Pattern[str] | None:
    """Return a pattern of users and passwords in valid addresses, encoded and decoded; None if there are none."""
    parts = [urlsplit(url.strip()) for url in urls.split(",")]
    written = {word for part in parts for word in (part.username, part.password) if word}
    words = sorted(written | {unquote(word) for word in written}, key=len, reverse=True)
    # A short one may occur inside other words by chance. It reveals nothing there, and hiding it would make the text
    # unreadable.
    return re.compile("|".join(_hiding(word) for word in words)) if words else None


def _hiding(word: str) -> str:
    return re.escape(word) if len(word) >= _LONG_SECRET else rf"(?<!\w){re.escape(word)}(?!\w)"


def _not_understood() -> RequestError:
    return RequestError(
        "the address of the Schema Registry is not understood (it is not repeated here, as it may hold a password); write "
        "http://host:8081 or https://user:password@host, special characters of user and password percent-encoded"
    )
