"""Reading the YAML files that users write: presets, search spaces and files of clusters.

A file can be no larger than what it stands for: aliases that multiply, and sections nested without end, are refused
before anything is built from them. A name that is given twice is refused, where YAML would drop the first.
"""

from __future__ import annotations

from typing import Any

import yaml

from ali_dist.names import printable_name

_MOST_LEVELS = 20  # a preset has two, a search space four
_MOST_VALUES = 10_000  # each use of an alias counted in full
_MOST_SHOWN = 60  # characters of a line that an error shows

# libyaml's parser, where PyYAML was built with it, reads a preset twenty times as fast.
_BaseLoader: type[yaml.BaseLoader] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueNames:
    """Part of a loader: a name that is given twice in a mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose names are all different."""
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            names.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]  # of the loader beside it
        return mapping


class _TextLoader(_UniqueNames, _BaseLoader):  # type: ignore[misc,valid-type]  # chosen as the module loads
    """YAML whose values all stay text, for `from_mapping` to read as it reads the command line.

    YAML 1.1's own guesses are traps here: 3e-4 is text to it, and the worker range 1:4 is the number 64. Only what
    stands for no value at all (nothing, `~` or `null`) is None.
    """

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        """The text of a value, or None."""
        is_plain = not node.style  # None from Python's parser, empty from libyaml's
        return None if is_plain and node.value in ("", "~", "null", "Null", "NULL") else super().construct_scalar(node)


class _TypedLoader(_UniqueNames, _SafeLoader):  # type: ignore[misc,valid-type]  # likewise
    """YAML whose values get YAML's own types."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; one that only looks like a date or a number is an error like all others."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, ArithmeticError) as error:  # as PyYAML's own, with its tags
            raise yaml.constructor.ConstructorError(
                problem=f"{str(node.value)[:_MOST_SHOWN]!r} is no such value ({error}): put it in quotes if it is text",
                problem_mark=node.start_mark,
            ) from error


def parse_yaml_text(text: str) -> Any:
    """Parse YAML into mappings, lists and text; a value that is left empty is None.

    Raises:
        yaml.YAMLError: It is no YAML, gives a name twice, or stands for more than any file of ours holds.
    """
    check_yaml_extent(text)
    return yaml.load(text, Loader=_TextLoader)  # noqa: S506  (it builds text alone)


def parse_typed_yaml(text: str) -> Any:
    """Parse YAML into mappings, lists and values of YAML's own types.

    Raises:
        yaml.YAMLError: As from `parse_yaml_text`; also for several documents.
    """
    check_yaml_extent(text)
    return yaml.load(text, Loader=_TypedLoader)  # noqa: S506  (a safe loader)


def parse_typed_documents(text: str) -> list[Any]:
    """Parse the documents of a file, without empty ones; see `parse_typed_yaml`."""
    check_yaml_extent(text)
    documents = yaml.load_all(text, Loader=_TypedLoader)  # noqa: S506  (a safe loader)
    return [document for document in documents if document is not None]


def describe_yaml_error(error: Exception, text: str) -> str:
    """What is wrong with a YAML file, and where, in one line; also for other reasons that it cannot be read.

    Args:
        error: What reading it raised.
        text: What the file holds, as far as it could be read.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text in UTF-8 ({error.reason} {error.object[error.start]:#x}): save it as UTF-8"
    if isinstance(error, yaml.reader.ReaderError) and isinstance(error.position, int):
        return f"in line {text.count(chr(10), 0, error.position) + 1}: it holds a control character"
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    context, begin = getattr(error, "context", None), getattr(error, "context_mark", None)
    if begin is not None and "end of stream" in str(problem):
        mark = begin  # where a quote opens says more than where the file ends
    if mark is None or not problem:
        return " ".join(str(error).split())
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    shown = printable_name(line.strip()[:_MOST_SHOWN])
    place = f"line {mark.line + 1}, column {mark.column + 1}" + (f" ({shown})" if shown else "")
    hint = "; it is indented by a tab, and YAML takes spaces alone" if line[:1] == "\t" else ""
    return f"in {place}: {f'{context} {problem}' if context else problem}{hint}"


def check_yaml_extent(text: str) -> None:
    """Refuse YAML that would take too long to build, by reading it through once.

    Raises:
        yaml.YAMLError: It is no YAML, is nested too deeply, or its aliases make too many values of it.
    """
    values = 0
    open_collections: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, values))
            if len(open_collections) > _MOST_LEVELS:
                raise yaml.YAMLError(f"it is nested more than {_MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values_before = open_collections.pop()
            if anchor is not None:
                sizes[anchor] = values - values_before
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_collections):
                raise yaml.YAMLError(f"its part {event.anchor!r} holds itself")
            values += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
        if values > _MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {_MOST_VALUES:,} values")
