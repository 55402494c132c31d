"""A pipeline on servers of its own, for tests of what reads features: Kafka's protocol, Redis, log and archive."""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.features.definitions.inputs import is_envelope
from unskew.features.definitions.vocabulary import Definition
from unskew.features.errors import RequestError, StoreUnavailable, UnskewError
from unskew.features.frames import Table
from unskew.features.nearest import nearest
from unskew.features.plan import Plan, StreamPlan, ViewPlan
from unskew.features.types import Type
from unskew.features.versions import Versions
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.kafka.sending import Outgoing, Sender
from unskew.pipelines.producing.encoding import Encoder, wire_of
from unskew.pipelines.producing.scalars import Unfit
from unskew.pipelines.run import run
from unskew.sinks.tables import layout
from unskew.sinks.wall import wall_us
from unskew.store import FeatureStore
from unskew.testing.given import events_of, rows_of
from unskew.testing.replayed import Definitions, compiled

# One producer sends everything in order, so nothing needs longer to settle.
_SETTLE_US = 50_000
_LOOK_S = 0.02
_END_S = 60.0


class EmbeddedPipeline:
    """A running pipeline, with a broker and a Valkey of its own; a context manager, at whose end all of them end.

    ``store``: reads what it serves, and its log and archive. ``plan``: what it computes. ``root``: the folder of its
    files. Events arrive when they are sent, as in a deployment: a window of an hour holds those that happened in the
    hour before now.
    """

    def __init__(self, definitions: Definitions | Definition, root: Path) -> None:
        self.plan = _settling(compiled([definitions] if isinstance(definitions, Definition) else definitions))
        self.root = root
        self._broker = EmbeddedBroker()
        self._redis = EmbeddedRedis()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unskew-pipeline", daemon=True)
        self._failure: BaseException | None = None
        self._ended = False
        self._sent_us = 0
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            closing.enter_context(self._broker)
            closing.enter_context(self._redis)
            for topic in {topic for stream in self._streams.values() for topic in _topics(stream)}:
                self._broker.create_topic(topic, 1)
            self.deployment = Deployment(
                bootstrap=self._broker.bootstrap,
                redis_url=self._redis.url,
                log=self.root / "log",
                archive=self.root / "archive",
                dead_letters=self.root / "dead-letters",
                state=self.root / "state",
                idle="wall",
                epoch_s=0.2,
                scrub_us=None,
            )
            self.store = closing.enter_context(
                FeatureStore(
                    self.plan, redis_url=self._redis.url, log=self.deployment.log, archive=self.deployment.archive
                )
            )
            closing.callback(self._end)
            self._thread.start()
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()
        if error is None:
            self._raise()

    def produce(self, stream: str, events: Table) -> None:
        """Send events of a stream; they arrive now. The same events as for ``values``, and the same errors."""
        if stream not in self._streams:
            raise RequestError(f"no view reads stream {stream!r}; {nearest(stream, self._streams, 'streams are')}")
        plan = self._streams[stream]
        rows = rows_of(plan, events)
        # Whatever the stream would not take is said here, not found among dead letters.
        events_of(plan, rows, arrival=None, skip_refused=False)
        sender = Sender(_topics(plan)[0], self._broker.bootstrap, {"linger.ms": 0})
        sender.send(_records(plan, rows))
        sender.flush()
        self._sent_us = wall_us()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Wait until everything that was sent is served and in the log. Raises what made the pipeline fail.

        Raises ``StoreUnavailable`` if that takes longer than ``timeout_s``; the first start after an installation
        compiles the kernel, which can take a minute: ``unskew warm`` does it ahead.
        """
        deadline = time.monotonic() + timeout_s
        while not all(self._is_served(view) and self._is_logged(view) for view in self.plan.of_topics.views.values()):
            self._raise()
            if self._ended:
                raise RequestError("the pipeline has ended; wait before that")
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"what was sent is not served, or not in the log, after {timeout_s:g} s; give wait a longer timeout_s"
                )
            time.sleep(_LOOK_S)

    def _is_served(self, view: ViewPlan) -> bool:
        """Return whether a view's clock has passed all that was sent; any key is read with it."""
        nobody = {
            key: _NOBODY[Type.parse(kind).scalar] for key, kind in zip(view.entity.keys, view.entity.types, strict=True)
        }
        try:
            read = self.store.get_online_features([f"{view.id}:{view.outputs[0].name}"], [nobody])
        except RequestError:
            # Nothing is published yet.
            return False
        (as_of,) = read.metadata[view.id]["as_of"].to_physical().to_list()
        return as_of is not None and as_of >= self._sent_us

    def _is_logged(self, view: ViewPlan) -> bool:
        """Return whether the log says what the view had when all had been sent."""
        log = self.deployment.log
        assert log is not None
        coverage = layout.read_coverage(layout.view_root(log, view.name, view.version))
        complete_to_us = coverage.complete_to_us if coverage else None
        return complete_to_us is not None and complete_to_us >= self._sent_us

    @property
    def _streams(self) -> Mapping[str, StreamPlan]:
        return {view.stream.name: view.stream for view in self.plan.of_topics.views.values()}

    def _run(self) -> None:
        try:
            run(self.plan, self.deployment, stop=self._stop)
        # It is raised where the test waits.
        except BaseException as error:  # noqa: BLE001
            if not self._stop.is_set():
                self._failure = error
        finally:
            self._ended = True

    def _end(self) -> None:
        self._stop.set()
        self._thread.join(_END_S)

    def _raise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, UnskewError):
                raise failure
            raise RuntimeError("the pipeline failed") from failure


def _records(stream: StreamPlan, rows: Sequence[Mapping[str, Any]]) -> list[Outgoing]:
    is_row = stream.format == "avro" and stream.envelope == "debezium" and not is_envelope(stream.schema)
    if stream.format == "protobuf" or is_row:
        raise RequestError(
            f"records of {stream.name!r} cannot be produced here, because its records need a Schema Registry; use "
            "unskew.testing.values"
        )
    encoder = Encoder(stream, wire_of(stream, None, next(iter(stream.schema_ids), 1), text=False), text=False)
    records = []
    for number, row in enumerate(rows):
        try:
            event = encoder.event(row)
        except Unfit as fault:
            raise RequestError(f"event {number} of stream {stream.name!r}: {fault}") from fault
        records.append(Outgoing(partition=0, key=event.key, value=event.value, headers=event.headers))
    return records


_NOBODY: Mapping[str, Any] = {"int64": 0, "string": ""}


def _topics(stream: StreamPlan) -> Sequence[str]:
    if stream.sources[0].startswith("^"):
        raise RequestError(
            f"stream {stream.name!r} reads the topics that match {stream.sources[0]}; name one of them for the test"
        )
    return stream.sources


def _settling(plan: Plan) -> Plan:
    """Return the plan with streams that settle at once."""
    streams = {name: replace(one, settle_us=_SETTLE_US) for name, one in plan.streams.items() if one.table is None}
    tables = {name: one for name, one in plan.streams.items() if one.table is not None}
    views = [_over(view, {**streams, **tables}) for view in plan.views.values()]
    return replace(plan, streams={**streams, **tables}, views=Versions(views))


def _over(view: ViewPlan, streams: Mapping[str, StreamPlan]) -> ViewPlan:
    stream = streams.get(view.stream.name, view.stream)
    return replace(view, stream=stream, sessions=None if view.sessions is None else _over(view.sessions, streams))
