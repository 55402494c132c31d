"""The versions of views, side by side: the one place that decides which version a name means.

A reference ``view@2`` names a version. A bare ``view`` means the version that serves: the only one or, of several, the
one that says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from typing_extensions import override

from unskew.features.errors import RequestError, UnknownName
from unskew.features.nearest import nearest


class Version(Protocol):
    """What is known of a version of a view here. ``serving``: whether it says that a bare name means it."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def serving(self) -> bool: ...


V = TypeVar("V", bound=Version)


class Versions(Mapping[str, V]):
    """Versions of views, in the order given: ``view@version`` finds one of them, a bare name the one that serves.

    Iteration gives each version once, under the shortest name that means it whichever version serves: the bare name of
    a version without others beside it, else ``view@version``.
    """

    def __init__(self, versions: Iterable[V]) -> None:
        self._by_id = {one.id: one for one in versions}
        self._by_name: dict[str, list[V]] = {}
        for one in self._by_id.values():
            self._by_name.setdefault(one.name, []).append(one)
        # Every request looks its features up here.
        bare = {name: self.serving(name) for name in self._by_name}
        self._meant = {**{name: one for name, one in bare.items() if one is not None}, **self._by_id}

    @classmethod
    def of(cls, views: Mapping[str, V]) -> "Versions[V]":
        """Return the views of any mapping, whatever its keys are."""
        return views if isinstance(views, Versions) else cls(views.values())

    @override
    def __getitem__(self, reference: str) -> V:
        return self._meant[reference]

    @override
    def __iter__(self) -> Iterator[str]:
        return (one.name if len(self._by_name[one.name]) == 1 else id_ for id_, one in self._by_id.items())

    @override
    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def names(self) -> list[str]:
        """The names of the views, each once."""
        return list(self._by_name)

    def versions(self, name: str) -> list[V]:
        """Return all versions of a view, the lowest first; none for an unknown name."""
        return sorted(self._by_name.get(name, []), key=lambda one: one.version)

    def serving(self, name: str) -> V | None:
        """Return the version that a bare name means; None for an unknown name, or if nothing says which one."""
        versions = self._by_name.get(name, [])
        if len(versions) > 1:
            versions = [one for one in versions if one.serving]
        return versions[0] if len(versions) == 1 else None

    def find(self, reference: str) -> V:
        """Return the version that ``view`` or ``view@version`` means. Raises ``RequestError`` if there is none."""
        if reference in self._meant:
            return self._meant[reference]
        name, at, version = reference.partition("@")
        versions = self.versions(name)
        if not versions:
            raise UnknownName("view", f"there is no view {name!r}; {nearest(name, self.names, 'views are')}")
        ids = [one.id for one in versions]
        if at:
            raise UnknownName("version", f"view {name!r} has no version {version!r}; there is {', '.join(ids)}")
        raise RequestError(
            f"view {name!r} has several versions, and nothing says which one serves; ask for {' or '.join(ids)}, or write "
            "serving=True in the definition of one"
        )
