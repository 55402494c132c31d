"""What is known of features where a command runs: from definitions, from a log, or from the registry in Redis."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from unskew.features.errors import RequestError
from unskew.settings import REDIS_TIMEOUT_S

if TYPE_CHECKING:
    from unskew.features.definitions.lineage import Model
    from unskew.features.plan import Plan, StreamPlan
    from unskew.features.registry import Published
    from unskew.features.revision import Revision
    from unskew.features.service import Service


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is published, or would be. ``streams``: only from definitions. ``place``: where it was found."""

    published: "Published"
    streams: Mapping[str, "StreamPlan"] = field(default_factory=dict)
    place: str


def known(definitions: tuple[Path, ...], log: Path | None, redis_url: str, prefix: str) -> Known:
    """Return what definitions say, else the log if the command line names one, else the registry in Redis.

    Raises ``DefinitionError``, ``RequestError``, ``LayoutError`` and ``StoreUnavailable``.
    """
    from unskew.features.registry import Published

    if not redis_url:
        raise RequestError("--redis-url: it is empty; give an address, or leave the option out")
    if definitions:
        from unskew.features.definitions.load import load

        plan = load(*definitions)
        return Known(published=Published.of(plan), streams=plan.streams, place=", ".join(map(str, definitions)))
    # A deployment that names everything in the environment knows most in its registry.
    if log is not None and click.get_current_context().get_parameter_source("log") is ParameterSource.COMMANDLINE:
        from unskew.features.local import existing_folder
        from unskew.offline.logged import all_logged
        from unskew.sinks.objects import ObjectPath

        if not isinstance(log, ObjectPath):
            existing_folder(log, "--log")
        return Known(published=Published(views=all_logged(log)), place=str(log))
    from unskew.serving.online import OnlineReader

    reader = OnlineReader(redis_url, prefix, timeout_s=REDIS_TIMEOUT_S)
    try:
        return Known(published=reader.published(), place=str(reader))
    finally:
        reader.close()


def plan_of(
    definitions: tuple[Path, ...], log: Path | None, registry: Path | None = None, *, applied: bool = True
) -> "Plan":
    """Return the plan of definitions or, without any, of the views of a log, as the log itself says they are computed.

    ``registry``: the record, if it does not lie beside the log. ``applied``: leave out versions of the log that were
    not applied last, as far as there is a record. Raises ``DefinitionError``, ``RequestError`` and ``LayoutError``.
    """
    if definitions:
        from unskew.features.definitions.load import load

        return load(*definitions)
    if log is None:
        raise RequestError("give --log, which says how its views are computed, or --definitions")
    from unskew.features.local import existing_folder
    from unskew.offline.logged_plan import logged_plan
    from unskew.settings import record_of
    from unskew.sinks.record import Record

    existing_folder(log, "--log")
    last = Record(record_of(registry, log)).last() if applied else None
    if last is None:
        return logged_plan(log)
    on_demand = {one.name: one for one in last.content.on_demand}
    return replace(logged_plan(log, last.content.by_id), on_demand=on_demand)


@contextmanager
def telling_services(
    named: Iterable[str], plan: "Plan | None", log: Path | None, remedy: str = "name one of its views, {views}"
) -> Iterator[None]:
    """Where there is no view of a name, but a service, say so and what to do: ``remedy``, of its ``{name}``.

    Services are those of the definitions or, without any, what was applied last beside the log.
    """
    from unskew.features.errors import UnknownName

    try:
        yield
    except UnknownName as error:
        known = _services(plan, log) if error.kind == "view" else {}
        # Another one of the names may be the one that there is not.
        names = [name for one in named if (name := one.partition(":")[0]) in known and repr(name) in str(error)]
        if not names:
            raise
        name = names[0]
        views = dict.fromkeys(one.view for one in known[name].of_views if not one.reads)
        said = remedy.format(name=name, views=" or ".join(views))
        raise RequestError(f"there is no view {name!r}, but a service of this name; {said}") from error


def _services(plan: "Plan | None", log: Path | None) -> "Mapping[str, Service]":
    from unskew.settings import record_of
    from unskew.sinks.record import Record

    if plan is not None:
        return plan.services
    last = None if log is None else Record(record_of(None, log)).last()
    return {} if last is None else {one.name: one for one in last.content.services}


def models_of(folder: Path) -> "list[Model]":
    """Return the models that were trained on the training sets in a folder and below it: their manifests say so."""
    from unskew.features.definitions.lineage import Model
    from unskew.offline.manifest import Manifest

    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; give the folder of training sets with --models")
    return [
        Model(
            name=path.name.removesuffix(".manifest.json"),
            features=[f"{part.view}:{part.feature}" for part in manifest.features],
            service=manifest.join.service,
        )
        for path in sorted(folder.rglob("*.manifest.json"))
        for manifest in [Manifest.read(path)]
    ]


def revisions_of(registry: Path | None, log: Path | None) -> "list[Revision]":
    """Return what was applied, the last first; nothing if neither the record nor a log beside it is named."""
    from unskew.settings import record_of
    from unskew.sinks.record import Record

    if registry is None and log is None:
        return []
    record = Record(record_of(registry, log))
    return [record.read(number) for number in reversed(record.numbers())]
