"""The pipeline of ``unskew dev``: it goes on with what is saved, and with what was there before if that fails."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from unskew.cli.applying import next_revision, refusal
from unskew.cli.feeding import fed
from unskew.demo.process import Progress
from unskew.features.definitions.compile import compile  # noqa: A004 - the word that users know
from unskew.features.definitions.load import SUFFIXES, load_definitions, with_places
from unskew.features.definitions.vocabulary import Definition, FeatureView, OnDemand
from unskew.features.errors import DefinitionError, LayoutError, Stopped, UnskewError
from unskew.features.plan import Plan
from unskew.features.planning import Asked, planned
from unskew.features.revision import Content
from unskew.pipelines.kafka.consumer import RETAIN_MORE
from unskew.pipelines.run import run
from unskew.pipelines.state.folder import held_by
from unskew.pipelines.state.known_topics import START_OVER
from unskew.sinks.record import Record

if TYPE_CHECKING:
    from unskew.cli.feeding import Feeds
    from unskew.demo.embedded import EmbeddedBroker
    from unskew.pipelines.deployment import Deployment
    from unskew.pipelines.watch.display import Display
    from unskew.pipelines.watch.running import Status

_N_PARTITIONS = 1
_LOOK_S = 0.2
_END_S = 120.0
_LEAVE_S = 10.0
_READ_S = 20.0
_WATCHED = frozenset({*SUFFIXES, ".avsc", ".json"})
_MOST_FILES = 10_000
_ANEW = "end unskew dev with Ctrl-C, and start it again (with --keep, on a new folder)"

_VERSIONED = (FeatureView, OnDemand)
Saved = Mapping[str, tuple[int, int]]
"""Time of change and size of each file, by path."""


def numbered(definitions: Sequence[Definition], before: Content) -> Plan:
    """Return the plan of definitions in which what computes something else under the same version is the next version.

    ``before``: what was applied last. A version that it has is found again, whatever number the definition says.
    Raises ``DefinitionError``.
    """
    plan = compile(*definitions)
    written = {(view.name, view.version): view.state_fingerprint for view in plan.published.values()}
    written |= {(one.name, one.version): one.fingerprint for one in plan.on_demand.values()}
    live = {(view.name, view.version): view.state_fingerprint for view in before.views}
    live |= {(one.name, one.version): one.fingerprint for one in before.on_demand}
    highest: dict[str, int] = {}
    for name, version in (*live, *map(_parts, before.retired)):
        highest[name] = max(highest.get(name, 0), version)
    # An earlier version that is gone may have meant something else, and its state may have ended.
    earlier = {key for key in written if key[1] <= highest.get(key[0], 0) and live.get(key) != written[key]}
    for name, version in written:
        highest[name] = max(highest.get(name, 0), version)
    meant: dict[tuple[str, int], int] = {}
    for name, version in sorted(earlier):
        meaning = written[name, version]
        same = [
            other for (of, other), its in live.items() if (of, its) == (name, meaning) and (of, other) not in written
        ]
        if not same:
            highest[name] += 1
        meant[name, version] = same[0] if same else highest[name]
    return compile(*_as(definitions, meant)) if meant else plan


def _parts(view_id: str) -> tuple[str, int]:
    name, _, version = view_id.rpartition("@")
    return name, int(version)


def _as(definitions: Iterable[Definition], meant: Mapping[tuple[str, int], int]) -> Iterator[Definition]:
    for one in definitions:
        version = meant.get((one.name, one.version)) if isinstance(one, _VERSIONED) else None
        yield one if version is None else msgspec.structs.replace(one, version=version)


def saved(paths: Iterable[Path]) -> Saved:
    """Return the files of definitions, and those of schemas in their folders; no more than 10,000 of them."""
    found: dict[str, tuple[int, int]] = {}
    for path in paths:
        for folder, folders, files in os.walk(path if path.is_dir() else path.parent):
            # What is imported may begin with _; a folder of data may be there too.
            folders[:] = [name for name in folders if name[0] != "." and not _is_environment(folder, name)]
            for name in files:
                if Path(name).suffix in _WATCHED and len(found) < _MOST_FILES:
                    with contextlib.suppress(OSError):
                        stat = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - looked at all the time
                        found[os.path.join(folder, name)] = (stat.st_mtime_ns, stat.st_size)  # noqa: PTH118
    return found


def _is_environment(folder: str, name: str) -> bool:
    return name == "__pycache__" or Path(folder, name, "pyvenv.cfg").exists()


def placed(definitions: Sequence[Definition], paths: Sequence[Path]) -> Plan:
    """Return the plan of definitions. Raises ``DefinitionError``, whose faults have their file and line."""
    try:
        return compile(*definitions)
    except DefinitionError as error:
        raise DefinitionError(with_places(error.faults, paths)) from error


class TooLong(Exception):
    """What runs does not come to its end."""

    def __str__(self) -> str:
        return "it does not come to its end; take the loop or the wait out"


@contextlib.contextmanager
def interrupted(after_s: float) -> Iterator[None]:
    """Raise ``TooLong`` in the body if it takes longer than that; in what does not run Python, once that is over."""
    lock = threading.Lock()
    is_over = False
    number = threading.get_ident()

    def interrupt() -> None:
        with lock:
            if not is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(number), ctypes.py_object(TooLong))

    timer = threading.Timer(after_s, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            is_over = True
        timer.cancel()


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """Definitions that were applied. ``lines``: what they changed."""

    definitions: Sequence[Definition]
    plan: Plan
    lines: Sequence[str]


class Development:
    """The pipeline on a deployment of its own, and the definitions that it follows.

    ``paths``: the definitions. ``display``: shows the figures of the pipeline, and what there is to say. ``ready``:
    called once, when the pipeline reads for the first time.

    The broker keeps little, so it takes records only while the pipeline reads: whoever sends waits meanwhile.
    """

    def __init__(
        self,
        *,
        paths: Sequence[Path],
        deployment: "Deployment",
        broker: "EmbeddedBroker",
        feeds: "Feeds",
        display: "Display",
        ready: Callable[[], None],
    ) -> None:
        assert deployment.registry is not None
        self._paths = paths
        self._deployment = deployment
        self._record = Record(deployment.registry)
        self._broker = broker
        self._feeds = feeds
        self._display = display
        self._ready = ready
        self._topics: set[str] = set()
        self._ended = threading.Event()
        self._taken: _Taken | None = None
        self._running: _Running | None = None
        self._before = Progress()

    @contextlib.contextmanager
    def begun(self, definitions: Sequence[Definition]) -> Iterator[None]:
        """Run the pipeline beside the body, with these definitions first; at the end it has stopped.

        Raises ``UnskewError`` if these definitions cannot be applied, and at the end if it did not stop orderly.
        """
        with contextlib.ExitStack() as ending:
            ending.callback(self._end)
            ending.callback(self._feeds.end)
            ending.callback(self._broker.release)
            seen = saved(self._paths)
            self._start(self._apply(definitions))
            thread = threading.Thread(target=self._follow, args=(seen,), name="unskew-dev", daemon=True)
            thread.start()
            # A definition that waits for ever does not hold up the end.
            ending.callback(thread.join, _LEAVE_S)
            ending.callback(self._ended.set)
            yield

    def _follow(self, seen: Saved) -> None:
        """Take up what is saved, until the end."""
        good: _Taken | None = None
        is_lost = False
        read: _Running | None = None
        while not self._ended.wait(_LOOK_S):
            running = self._running
            taken = self._taken
            if running is not None and running.reads and running is not read:
                self._broker.release()
                if read is None:
                    self._ready()
                read = running
            if running is not None and running.reads and taken is not None and taken is not good:
                good = taken
                # Not before: what comes with a new schema could not be read if the pipeline had to go back.
                self._feeds.follow(good.plan)
            if running is not None and running.failure is not None:
                self._note_error(running.failure)
                self._stop()
                # Other topics in what was saved are a reason too, and going back helps then.
                is_lost = good is not None and good is taken and START_OVER in str(running.failure)
                if is_lost:
                    self._display.note("the pipeline has stopped, and nothing that is saved lets it go on")
                elif good is not None and good is not self._taken:
                    self._go_back(good)
                else:
                    self._display.note("the pipeline has stopped; it begins again when a definition is saved")
            now = saved(self._paths)
            # An editor may write in steps.
            if now != seen and not self._ended.wait(_LOOK_S) and now == saved(self._paths):
                seen = now
                if is_lost:
                    self._display.note(f"saved: nothing runs any more; {_ANEW}")
                else:
                    self._take_up()

    def _take_up(self) -> None:
        """Go on with what is saved, unless it has faults."""
        try:
            taken = self._apply(self._load())
        # Files of definitions are run, and may raise anything.
        except BaseException as error:  # noqa: BLE001
            self._note_error(
                error if isinstance(error, UnskewError) else UnskewError(f"{type(error).__name__}: {error}")
            )
            if self._running is not None:
                self._display.note("the definitions from before go on")
            return
        streams = {} if self._taken is None else self._taken.plan.streams
        others = [f"~ stream {name}" for name, one in taken.plan.streams.items() if one != streams.get(name)]
        if not taken.lines and not others and self._running is not None:
            self._display.note("saved: it changes nothing")
            # Those that have ended begin again.
            self._feeds.follow(taken.plan)
            return
        for line in taken.lines or others:
            self._display.note(f"saved: {line}")
        self._stop()
        if not self._ended.is_set():
            self._start(taken)

    def _load(self) -> list[Definition]:
        """Read the definitions; whatever compiling them would report has its place. Raises what a file raises."""
        with interrupted(_READ_S):
            definitions = load_definitions(self._paths)
        placed(definitions, self._paths)
        return definitions

    def _go_back(self, good: _Taken) -> None:
        self._display.note("the definitions from before go on")
        try:
            self._start(self._write(good.definitions, good.plan))
        except UnskewError:
            # The state of a version has ended meanwhile.
            try:
                self._start(self._apply(good.definitions))
            except UnskewError as error:
                self._note_error(error)

    def _apply(self, definitions: Sequence[Definition]) -> _Taken:
        """Write down what definitions mean by now. Raises ``UnskewError``."""
        last = self._record.last()
        return self._write(definitions, numbered(definitions, Content() if last is None else last.content))

    def _write(self, definitions: Sequence[Definition], plan: Plan) -> _Taken:
        """Write a plan down, unless it is what was applied before. Raises ``UnskewError``."""
        last = self._record.last()
        before = Content() if last is None else last.content
        retired = self._retired()
        self._deployment.check(plan.of_topics)
        # Nobody depends on what runs here, so a service may break, and a name may come to mean another version.
        asked = Asked(accepted={*before.serves, *(one.name for one in before.services)}, has_ended=retired.__contains__)
        found = planned(plan, None if last is None else before, asked)
        if found.refused:
            raise LayoutError(refusal(found))
        if found.changes:
            self._record.append(next_revision(last, found.content, found.lines, command="dev"))
        return _Taken(definitions=definitions, plan=plan, lines=found.lines)

    def _retired(self) -> set[str]:
        """Return the versions whose state has ended."""
        try:
            return set(held_by(self._deployment.state).retired)
        except LayoutError:
            # There is no state yet.
            return set()

    def _start(self, taken: _Taken) -> None:
        for stream in fed(taken.plan):
            for topic in {*stream.sources} - self._topics:
                # A client may have made it meanwhile, by naming it.
                with contextlib.suppress(ValueError):
                    self._broker.create_topic(topic, _N_PARTITIONS)
                self._topics.add(topic)
        try:
            held = held_by(self._deployment.state)
            drop = sorted({*held.views} - {*held.retired} - {view.id for view in taken.plan.views.values()})
        except LayoutError:
            drop = []
        self._taken = taken
        self._broker.hold()
        self._feeds.leave(taken.plan)
        self._running = _Running(taken.plan, replace(self._deployment, drop=drop), self._show)

    def _stop(self) -> None:
        if self._running is not None:
            if not self._ended.is_set():
                self._broker.hold()
            self._running.stop()
            self._before = self._running.progress.after(self._before)
            self._running = None

    def _end(self) -> None:
        running = self._running
        self._stop()
        if running is None or not running.is_over:
            raise UnskewError("the pipeline did not come to an orderly end; what was said before is why")

    def _show(self, progress: Progress) -> None:
        self._display.show(progress.after(self._before))

    def _note_error(self, error: UnskewError) -> None:
        for fault in error.faults:
            # What other pipelines have as options has its place here.
            here = fault.replace(f"{RETAIN_MORE} and ", "").replace(START_OVER, _ANEW)
            self._display.note(f"error: {here}")


class _Running:
    """A pipeline in a thread, from now on. ``progress``: the latest. ``failure``: what has ended it, if anything has.

    ``reads``: whether it has come as far as reading records, and what it has read is durable.
    """

    def __init__(self, plan: Plan, deployment: "Deployment", show: Callable[[Progress], None]) -> None:
        self.progress = Progress()
        self.failure: UnskewError | None = None
        self.reads = False
        self._show = show
        self._plan = plan
        self._deployment = deployment
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unskew-pipeline", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop it orderly, and wait until it has."""
        self._stop.set()
        self._thread.join(_END_S)

    @property
    def is_over(self) -> bool:
        """Whether it has stopped, and not because it failed."""
        return self.failure is None and not self._thread.is_alive()

    def _run(self) -> None:
        try:
            run(self._plan, self._deployment, stop=self._stop, report=self._report)
        except Stopped:
            # Before it had begun.
            pass
        except UnskewError as error:
            self.failure = error
        # It is said where people look, and a definition that is saved may mend it.
        except BaseException as error:  # noqa: BLE001
            self.failure = UnskewError(f"unexpected {type(error).__name__}: {error}")

    def _report(self, status: "Status") -> None:
        figures = {name: getattr(status, name) for name in Progress.__struct_fields__}
        self.progress = Progress(**figures)
        self.reads = status.epochs > 0
        self._show(self.progress)
