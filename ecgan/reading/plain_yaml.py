"""YAML that somebody else may have written: plain values, bounded in depth, length and digits."""

from typing import Any, cast

import yaml

MAX_DEPTH = 50  # of lists and mappings
_MAX_NODES = 100_000  # values of a document, which take four seconds
_MAX_DIGITS = 100  # of a number
_STRING = "tag:yaml.org,2002:str"


class Loader(yaml.SafeLoader):
    """YAML of plain values, without tags and, unless a subclass says so, without aliases.

    Aliases make a short text endless; where they are taken, what they stand for is counted again.
    """

    aliases = False

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._nodes = 0
        self._sizes: dict[int, int] = {}  # values in each node, by its identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event = cast("Any", super()).peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and not self.aliases:
            raise self._refused("an alias (*); write the value out", event)
        if not is_alias and event.tag not in {None, _STRING}:
            raise self._refused("a tag (!); leave it out", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(f"nested deeper than {MAX_DEPTH} levels", event)
        before = self._nodes
        node = super().compose_node(parent, index)
        # An alias of a node that is not composed yet would make it contain itself
        self._nodes += self._sizes.get(id(node), _MAX_NODES) if is_alias else 1
        if self._nodes > _MAX_NODES:
            raise self._refused(f"more than {_MAX_NODES:,} values", event)
        self._sizes[id(node)] = self._nodes - before
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; one of very many digits would take long."""
        if len(node.value) > _MAX_DIGITS:
            raise self._refused(f"a number of more than {_MAX_DIGITS} digits", node)
        return super().construct_yaml_int(node)

    def _refused(self, problem: str, at: Any) -> yaml.MarkedYAMLError:  # noqa: ANN401
        return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def parse_yaml(text: str, loader: type[Loader] = Loader) -> object:
    """A YAML document.

    Raises:
        ValueError: it is none, or has aliases, tags, or too deep a nesting.
    """
    try:
        return yaml.load(text, loader)  # noqa: S506  a safe one
    except (yaml.YAMLError, RecursionError) as error:
        text = str(error).replace(' in "<unicode string>",', " at")
        raise ValueError(" ".join(text.split())) from error
