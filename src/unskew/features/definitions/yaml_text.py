"""YAML as plain data: text keys, short numbers, and a bounded size, also after its aliases are written out.

A document is measured before it is built: a few lines of aliases can stand for more than any memory holds, and deep
brackets end the process.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import yaml

MAX_CHARACTERS = 4_000_000
MAX_DEPTH = 50
MAX_PARTS = 100_000
_LONGEST_NUMBER = 40
_LONGEST_KEY = 100


def read_documents(text: str) -> list[Any]:
    """Return the documents of a YAML text. Raises ``yaml.YAMLError`` with what is wrong and where."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters, more than {MAX_CHARACTERS}")
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    # Tags such as !!set, on a value of another form.
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(f"a value does not fit its tag ({error})") from error


def nodes_of_documents(text: str) -> list[Any]:
    """Return the documents of a YAML text as nodes, which know their lines. Raises ``yaml.YAMLError``."""
    return list(yaml.compose_all(text, Loader=_Loader))


class _Loader(yaml.SafeLoader):
    """The loader of ``yaml.safe_load``, but strict about what a definition never needs.

    A repeated key is an error; otherwise its last value would silently win.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self._depth == MAX_DEPTH and self.check_event(yaml.CollectionStartEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _fault(f"it is nested more than {MAX_DEPTH} levels deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        return _measured(super().get_single_node())

    def get_node(self) -> Any:
        return _measured(super().get_node())

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            return super().construct_object(node, deep)
        # A value may contradict its tag: !!int x, or the date 2020-13-45.
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise _fault(
                f"the value {str(node.value)[:_LONGEST_KEY]!r} cannot be read ({error}); put it in quotes", node
            ) from error

    def construct_yaml_int(self, node: Any) -> Any:
        if len(str(node.value)) > _LONGEST_NUMBER:
            raise _fault(f"a number has {len(node.value)} characters, more than {_LONGEST_NUMBER}", node)
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a key is not text; write it as a word", key)
            if key.tag not in {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}:
                raise _fault(f"the key {key.value[:_LONGEST_KEY]!r} is not text; put it in quotes", key)
            if key.value in seen:
                raise _fault(f"the key {key.value[:_LONGEST_KEY]!r} appears twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _measured(root: Any) -> Any:
    """Return the node; raise an error if it contains itself, or too many parts once its aliases are written out."""
    if root is None:
        return None
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    waiting = [(root, False)]
    while waiting:
        node, is_counted = waiting.pop()
        if is_counted:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in _children(node))
            if sizes[id(node)] > MAX_PARTS:
                raise _fault(f"it has more than {MAX_PARTS} parts, with its aliases written out", node)
        elif id(node) in open_nodes:
            raise _fault("an alias stands for a part that contains it", node)
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            waiting.append((node, True))
            waiting += [(child, False) for child in _children(node) if id(child) not in sizes]
    return root


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _fault(what: str, at: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, at.start_mark)
