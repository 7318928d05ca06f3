"""Pages of the docs with a part between two markers that a command writes."""

from __future__ import annotations

from ali_dist.errors import InputError


def make_markers(name: str) -> tuple[str, str]:
    """The lines before and behind the part of that name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_marked(document: str, name: str, text: str, what: str) -> str:
    """Put `text` between the markers of a name; returns the new document.

    Args:
        document: The page.
        name: Name in the markers.
        text: What stands between them from now on.
        what: Subject and verb for the complaint, such as "the figures are".

    Raises:
        InputError: The document does not have the two markers once each, in this order.
    """
    begin_marker, end_marker = make_markers(name)
    before, begin, rest = document.partition(begin_marker)
    _, end, after = rest.partition(end_marker)
    if not begin or not end or begin_marker in rest or end_marker in after or end_marker in before:
        raise InputError(
            f"The document must have the lines '{begin_marker}' and '{end_marker}' once each, in this order: put them "
            f"where {what} to stand."
        )
    return f"{before}{begin_marker}\n{text}\n{end_marker}{after}"
