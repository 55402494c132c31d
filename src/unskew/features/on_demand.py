"""On-demand features as they are published: expressions over a request's inputs and over features of views.

They have no state and no stored value: whoever reads them evaluates their texts, in serving and in training alike.
"""

from collections.abc import Mapping

import msgspec

from unskew.features.view import ViewFeature

NOW = "now"
"""The name, in expressions, of the instant of a request, or of a label."""


class OnDemandView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On-demand features of one name.

    ``inputs``: the types of the request's columns, by name. ``features``: each is ``derived``; its ``value`` is SQL
    text, and its ``inputs`` are what that reads: inputs, references ``view:feature``, and ``now``.
    ``fingerprint``: the hex digest of everything that the values depend on besides the features that are read.
    """

    name: str
    version: int
    inputs: dict[str, str]
    features: tuple[ViewFeature, ...]
    fingerprint: str
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = {}

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def references(self) -> list[str]:
        """The references of the features that it reads, each once."""
        return list(dict.fromkeys(name for one in self.features for name in one.inputs if is_reference(name)))

    def feature(self, name: str) -> ViewFeature | None:
        """Return the feature of that name; None if there is none."""
        return next((feature for feature in self.features if feature.name == name), None)


def is_reference(name: str) -> bool:
    """Return true if a name in an expression is ``view:feature``, and not an input or ``now``."""
    return ":" in name
