"""A service as it is published: the features that one model reads, in the order of its columns, each pinned.

A service reads the versions that served when it was published. So another version may serve, and no column of the
service changes until it is published again.
"""

from collections.abc import Mapping
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


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The features that one model reads, in the order of its columns."""

    name: str
    features: tuple[ServiceFeature, ...]
    owner: str = ""
    description: str = ""
    tags: Mapping[str, str] = {}

    @property
    def references(self) -> list[str]:
        """The references of its features, as its definition names them."""
        return [one.reference for one in self.features]
