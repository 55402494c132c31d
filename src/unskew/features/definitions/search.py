"""Search by words over everything that a lineage knows: names first, then owners, tags, entities and windows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from unskew.features.definitions.lineage import Kind, Lineage, Node

_WORD = re.compile(r"[^\W_]+")
# What a reader asks for comes before what it is made of. Sessions and inputs have no names of their own to look for.
_ORDER: Mapping[Kind, int] = {
    "feature": 0, "view": 1, "on_demand": 2, "service": 3, "model": 4, "stream": 5, "table": 6, "topic": 7, "column": 8,
}  # fmt: skip
_WHOLE_NAME, _IN_NAME, _BEGINS_IN_NAME, _PART_OF_NAME, _SAID, _DESCRIBED, _PART_DESCRIBED = 16, 8, 6, 4, 3, 2, 1
_SAYS = ("owner", "tags", "entity", "window", "function", "type")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Something that all words match. ``score``: the higher the better."""

    node: Node
    score: int


def search(lineage: Lineage, words: Sequence[str]) -> list[Hit]:
    """Return what every word matches, best first; each part of a word (``spend_30d``) must match."""
    wanted = [part for word in words for part in _WORD.findall(word.lower())]
    hits = []
    for node in lineage.nodes.values():
        if node.kind in _ORDER and wanted:
            scores = [_score(node, part) for part in wanted]
            if all(scores):
                whole = _WHOLE_NAME * (" ".join(words).lower() in {node.name.lower(), _own(node).lower()})
                hits.append(Hit(node=node, score=sum(scores) + whole))
    return sorted(hits, key=lambda hit: (-hit.score, _ORDER[hit.node.kind], hit.node.name))


def nearest_words(lineage: Lineage, words: Sequence[str]) -> list[str]:
    """Return words of names that are like the given ones, nearest first; at most three for each."""
    known = {
        part for node in lineage.nodes.values() if node.kind in _ORDER for part in _WORD.findall(node.name.lower())
    }
    wanted = [part for word in words for part in _WORD.findall(word.lower())]
    found = [near for part in wanted if part not in known for near in get_close_matches(part, sorted(known), n=3)]
    return list(dict.fromkeys(found))


def _score(node: Node, word: str) -> int:
    name = _WORD.findall(node.name.lower())
    own = _own(node).lower()
    if word in _WORD.findall(own):
        return _IN_NAME
    if any(part.startswith(word) for part in _WORD.findall(own)):
        return _BEGINS_IN_NAME
    if word in own or word in name:
        return _PART_OF_NAME
    said = " ".join(node.about.get(about, "") for about in _SAYS).lower()
    if word in _WORD.findall(said):
        return _SAID
    described = node.about.get("description", "").lower()
    if word in _WORD.findall(described):
        return _DESCRIBED
    return _PART_DESCRIBED if word in f"{node.name.lower()} {said} {described}" else 0


def _own(node: Node) -> str:
    """Return the name without that of what holds it."""
    if node.kind == "feature":
        return node.name.partition(":")[2]
    return node.about.get("column", node.name) if node.kind == "column" else node.name
