"""A service as it is published: the features that one model reads, in the order of its columns, each pinned.

A service reads the versions that served when it was published. So another version may serve, and no column of the
service changes until it is published again.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec


class ServiceFeature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One column of a service.

    ``reference``: as the service's definition names it. ``view``: ``view@version``, the version that is read. ``type``,
    ``default`` (as JSON has it) and ``fingerprint`` (of the view's state): what a reader was promised. ``reads``: of an
    on-demand feature, the features of views that it reads; ``view`` and ``fingerprint`` are then its own.
    """

    reference: str
    view: str
    type: str
    fingerprint: str
    default: Any = None
    reads: tuple["ServiceFeature", ...] = ()

    @property
    def feature(self) -> str:
        """The feature's name."""
        return self.reference.partition(":")[2]

    @property
    def is_bare(self) -> bool:
        """Whether the reference leaves the version to whatever served."""
        return "@" not in self.reference.partition(":")[0]

    @property
    def promise(self) -> tuple[Any, ...]:
        """What a reader was promised, whatever the reference names: equal for equal values."""
        reads = [one.promise for one in self.reads]
        return self.view, self.feature, self.type, self.fingerprint, self.default, *reads


def digest_of(features: Iterable[ServiceFeature]) -> str:
    """Return the SHA-256, as 64 hex characters, of what features mean, in their order.

    It covers the version, the name, the type, the definition of the state and the default of each: everything that its
    values depend on, and no description or owner.
    """
    return hashlib.sha256(msgspec.json.encode([one.promise for one in features])).hexdigest()


def difference_of(expected: Sequence[ServiceFeature], served: Sequence[ServiceFeature]) -> str | None:
    """Return how what is served differs from what is expected, as half a sentence; None if it does not."""
    if len(expected) != len(served):
        return f"{len(expected)} features are expected, and {len(served)} are asked for"
    for number, (one, other) in enumerate(zip(expected, served, strict=True), start=1):
        if one.promise == other.promise:
            continue
        mine, its = f"{one.view}:{one.feature}", f"{other.view}:{other.feature}"
        if mine != its:
            return f"feature {number} is {its} in place of {mine}"
        if one.fingerprint != other.fingerprint:
            return f"{mine} is computed from another definition"
        if (difference := difference_of(one.reads, other.reads)) is not None:
            return f"of what {mine} reads, {difference}"
        return f"{mine} is {other.type} with the default {other.default!r}, not {one.type} with {one.default!r}"
    return None


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The features that one model reads, in the order of its columns."""

    name: str
    features: tuple[ServiceFeature, ...]
    owner: str = ""
    description: str = ""
    tags: Mapping[str, str] = {}

    @property
    def of_views(self) -> list[ServiceFeature]:
        """Its features, and after an on-demand one the features of views that it reads."""
        return [each for one in self.features for each in (one, *one.reads)]

    @property
    def references(self) -> list[str]:
        """The references of its features, as its definition names them."""
        return [one.reference for one in self.features]
