"""Checks of services, whose features must exist in the views beside them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from unskew.features.definitions.slots import did_you_mean, is_unchecked, name_faults, without_faults
from unskew.features.definitions.vocabulary import Service
from unskew.features.errors import RequestError, UnknownName, shown
from unskew.features.on_demand import OnDemandView, is_reference
from unskew.features.references import demanded, resolve
from unskew.features.registry import pin
from unskew.features.service import Service as Published
from unskew.features.service import ServiceFeature
from unskew.features.versions import Versions
from unskew.features.view import View

MAX_FEATURES = 10_000


def pinned(service: Service, views: Versions[View], on_demand: Mapping[str, OnDemandView] = {}) -> Published:
    """Return a service as it is published: its features in the versions that they mean now.

    Of an on-demand feature, the features that it reads are pinned with it.

    Raises ``DefinitionError`` with all its faults.
    """
    return without_faults(partial(planned_service, service, views, on_demand))


def planned_service(
    service: Service,
    views: Versions[View],
    on_demand: Mapping[str, OnDemandView],
    faults: list[str],
    unchecked: Collection[str] | None = (),
) -> Published | None:
    """Return a service as ``pinned`` does; None if it has faults, which are added to ``faults``.

    ``unchecked``: as in ``on_demand.planned_on_demand``.
    """
    n_before = len(faults)
    faults += name_faults(service.name, views.names)
    if service.name in on_demand:
        faults.append("on-demand features have that name too; rename one")
    features = []
    for reference in _references(service.features, faults):
        view = reference.partition(":")[0].partition("@")[0]
        names = [*views.names, *on_demand]
        if is_unchecked(view, names, unchecked):
            continue
        try:
            features.append(pinned_feature(reference, views, on_demand))
        except UnknownName as error:
            names += unchecked or ()
            faults.append(
                f"there is no view {view!r}; {did_you_mean(view, names)}" if view not in names else str(error)
            )
        except RequestError as error:
            faults.append(str(error))
    if len(faults) > n_before:
        return None
    return Published(
        name=service.name,
        features=tuple(features),
        owner=service.owner,
        description=service.description,
        tags=dict(service.tags),
    )


def pinned_feature(reference: str, views: Versions[View], on_demand: Mapping[str, OnDemandView] = {}) -> ServiceFeature:
    """Return what a reference means now, and of an on-demand feature also what it reads. Raises ``RequestError``."""
    if (one := demanded(reference, on_demand)) is not None:
        reads = [pinned_feature(read, views) for read in one.feature.inputs if is_reference(read)]
        return pin(reference, one.view, one.feature, reads)
    (asked,) = resolve([reference], views, full_feature_names=True)
    return asked.pinned


def _references(given: object, faults: list[str]) -> list[str]:
    """Return the references of a service; what is not one is a fault."""
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        faults.append(
            f"features: {shown(given)} is not a list of features; write for example [user_purchases:spend_30d]"
        )
        return []
    if len(given) > MAX_FEATURES:
        faults.append(f"it has {len(given):,} features, more than {MAX_FEATURES:,}; make several services")
        return []
    references: list[Any] = list(given)
    if wrong := [one for one in references if not isinstance(one, str)]:
        faults.append(f"features: {shown(wrong[0])} is not text; write view:feature")
        return []
    counts = Counter(references)
    faults += [f"features: {one} is there more than once; leave one out" for one, n in counts.items() if n > 1]
    return list(counts)
