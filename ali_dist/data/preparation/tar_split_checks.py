"""What the splits of somebody else's tars must have in common, and what is said where they differ."""

from __future__ import annotations

from collections.abc import Mapping

from ali_dist.data.preparation.summary import count
from ali_dist.data.shards.tar_labels import LabelChoice
from ali_dist.errors import InputError


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse splits whose images have different shapes: one model could not learn from one and be measured on another.

    Args:
        shapes: Shape (C, H, W) of the images of each split, by its name.

    Raises:
        InputError: They differ.
    """
    names = list(shapes)
    for name in names[1:]:
        if shapes[name] != shapes[names[0]]:
            raise InputError(
                f"The images of {names[0]} are {_describe(shapes[names[0]])} and those of {name} are "
                f"{_describe(shapes[name])}, but all splits of a data set must have one shape: index each by itself "
                f"with an --out of its own, or write them with webdataset-import and --size, which cuts and resizes."
            )


def compare_labels(choices: Mapping[str, LabelChoice]) -> tuple[str, ...]:
    """A note on each split: a line where its labels are not those of the other splits, else "".

    Args:
        choices: Where the labels of each split stand, by its name.
    """
    labelled = {name: choice for name, choice in choices.items() if choice.kind != "none"}
    if not labelled:
        return ("",) * len(choices)
    first = next(iter(labelled))
    notes = []
    for name, choice in choices.items():
        note = ""
        if choice.kind == "none":
            note = f"{name} has no labels, though {first} has ({labelled[first]})."
        elif str(choice) != str(labelled[first]):
            note = f"The labels of {name} are {choice}, though those of {first} are {labelled[first]}."
        notes.append(note)
    return tuple(notes)


def join_notes(*notes: str) -> str:
    """Sentences as one line, without those that are empty."""
    return " ".join(filter(None, notes))


def _describe(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels in {count(channels, 'channel')}"
