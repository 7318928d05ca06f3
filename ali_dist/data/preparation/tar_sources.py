"""The sources of `prepare` that are somebody else's tars: indexed where they are, or written as shards of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ali_dist.data.preparation.tar_import import IMPORT, ImportOptions
from ali_dist.data.preparation.tar_places import WEBDATASET
from ali_dist.data.shards.tar_images import ImageChoice, parse_images
from ali_dist.data.shards.tar_labels import parse_choice
from ali_dist.data.shards.tar_scan import TarOptions
from ali_dist.data.sources.registry import SourceOption, parse_color


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSource:
    """A row like those of the registry, for a source whose splits cannot be known before its tars are read.

    Attributes:
        summary: What it is, in a line.
        options: The options that it has.
    """

    summary: str
    options: tuple[SourceOption, ...]


_LABELS = SourceOption(
    keyword="labels",
    metavar="WHAT",
    help="cls, txt or another field (a class), json:FIELD (a class), json:FIELD,FIELD (attributes), or none (default: "
    "cls, else a whole number label or class of json, else json's numbers if all are 0 or 1)",
)
_READING = (
    _LABELS,
    SourceOption(
        keyword="image",
        metavar="A,B",
        help="the field that is the image, in order of preference, such as png,jpg or seg.png (default: the only one)",
    ),
    SourceOption(
        keyword="background",
        value_type=parse_color,
        metavar="COLOR",
        help="what transparent images are put on, as a name or #rrggbb (default white)",
    ),
    SourceOption(
        keyword="skip_bad",
        flag="--skip-bad",
        value_type=None,
        help="leave out, count and list samples without an image or a label, unreadable ones, and other sizes",
    ),
    SourceOption(
        keyword="dotted_names",
        flag="--dotted-names",
        value_type=None,
        help="names of samples have dots, so that the field begins at the last one, not at the first",
    ),
)

TAR_SOURCES = {
    WEBDATASET: TarSource(
        summary="tars of others in OUT, indexed there or in --out",
        options=(
            *_READING,
            SourceOption(
                keyword="index_place",
                flag="--out",
                metavar="DIR",
                help="folder or s3://bucket/prefix for the indexes (default: beside the tars)",
            ),
        ),
    ),
    IMPORT: TarSource(
        summary="tars that cannot be read in place (http, .tar.gz), written as shards",
        options=(
            *_READING,
            SourceOption(
                keyword="size", value_type=int, help="pixels of a side, cut to the middle square (default: as they are)"
            ),
            SourceOption(
                keyword="encoding",
                choices=("raw", "png", "jpg"),
                help="how images are stored (default raw, above 64x64 png)",
            ),
            SourceOption(
                keyword="shard_mb", flag="--shard-mb", value_type=float, help="megabytes of a shard (default 32)"
            ),
        ),
    ),
}
"""The sources by the name that they have on the command line."""


def read_tar_options(options: Mapping[str, Any]) -> TarOptions:
    """Make the options of reading out of those of the command line.

    Raises:
        InputError: One has an impossible value.
    """
    return TarOptions(
        labels=parse_choice(options["labels"]) if "labels" in options else None,
        image=parse_images(options["image"]) if "image" in options else ImageChoice(),
        **({"background": options["background"]} if "background" in options else {}),
        skip_bad=options.get("skip_bad", False),
        dotted=options.get("dotted_names", False),
    )


def read_import_options(options: Mapping[str, Any]) -> ImportOptions:
    """Make the options of importing out of those of the command line.

    Raises:
        InputError: One has an impossible value.
    """
    given = {name: options[name] for name in ("size", "encoding", "shard_mb") if name in options}
    return ImportOptions(reading=read_tar_options(options), **given)
