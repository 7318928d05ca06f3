"""Reading the YAML files that users write: presets and search spaces.

Every value stays text, as on the command line, and a file can be no larger than what it stands for: aliases that
multiply, and sections nested without end, are refused before anything is built from them.
"""

from __future__ import annotations

from typing import Any

import yaml

_MOST_LEVELS = 20  # a preset has two, a search space four
_MOST_VALUES = 10_000  # each use of an alias counted in full


class _TextLoader(yaml.BaseLoader):
    """YAML whose values all stay text, for `from_mapping` to read as it reads the command line.

    YAML 1.1's own guesses are traps here: 3e-4 is text to it, and the worker range 1:4 is the number 64. Only what
    stands for no value at all (nothing, `~` or `null`) is None.
    """

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        """The text of a value, or None."""
        is_plain = node.style is None
        return None if is_plain and node.value in ("", "~", "null", "Null", "NULL") else super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a name given twice is an error, where YAML would drop the first."""
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is given twice", problem_mark=node.start_mark
                )
            names.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def parse_yaml_text(text: str) -> Any:
    """Parse YAML into mappings, lists and text; a value that is left empty is None.

    Raises:
        yaml.YAMLError: It is no YAML, gives a name twice, or stands for more than any file of ours holds.
    """
    check_yaml_extent(text)
    return yaml.load(text, Loader=_TextLoader)  # noqa: S506  (it builds text alone)


def check_yaml_extent(text: str) -> None:
    """Refuse YAML that would take too long to build, by reading it through once.

    Raises:
        yaml.YAMLError: It is no YAML, is nested too deeply, or its aliases make too many values of it.
    """
    values = 0
    open_collections: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, values))
            if len(open_collections) > _MOST_LEVELS:
                raise yaml.YAMLError(f"it is nested more than {_MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values_before = open_collections.pop()
            if anchor is not None:
                sizes[anchor] = values - values_before
        elif isinstance(event, yaml.AliasEvent):
            values += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
        if values > _MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {_MOST_VALUES:,} values")
