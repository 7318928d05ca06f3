"""Which field of a sample in somebody else's tar is its image, and what shape all images have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ali_dist.data.shards.codec import IMAGE_FORMATS, Sample, read_image, read_npy
from ali_dist.data.shards.pictures import BACKGROUND, OtherSize, open_image, upright_shape
from ali_dist.errors import InputError

ImageKind = Literal["png", "jpg", "image", "npy"]
Payload = bytes | memoryview
_KINDS: dict[str, ImageKind] = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "npy": "npy"}
_COMMON = ("png", "jpg", "jpeg", "webp")
_RARE = ("bmp", "gif", "tif", "tiff", "ppm", "avif", "jpe", "jfif")
_MAX_LISTED = 12


class NoImageError(ValueError):
    """A sample has no image, or several and nobody said which; the message says what it has."""


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """Which field is the image.

    Attributes:
        fields: Fields in order of preference; empty: the only png, jpg, jpeg or webp, else the only one of a rarer
            format, else npy.
    """

    fields: tuple[str, ...] = ()

    def find(self, fields: Iterable[str]) -> str:
        """Find the image among the fields of a sample.

        Raises:
            NoImageError: See there.
        """
        names = list(fields)
        if self.fields:
            for name in self.fields:
                if name in names:
                    return name
            raise NoImageError(f"it has none of the fields {', '.join(self.fields)}{_list_fields(names)}")
        for known in (_COMMON, _RARE, ("npy",)):  # an array beside an image is something else, such as a mask
            present = [name for name in names if name in known]
            if len(present) > 1:
                raise NoImageError(
                    f"it has several images ({', '.join(present)}): say which is meant, as in --image {present[0]}"
                )
            if present:
                return present[0]
        raise NoImageError(f"it has no image{_list_fields(names)}{_explain_dots(names)}")


def parse_images(text: str) -> ImageChoice:
    """Parse a value of `--image`.

    Raises:
        InputError: It is none.
    """
    names = tuple(name.strip().lower().removeprefix(".") for name in text.split(","))
    if not all(re.fullmatch(r"[^\s/]+", name) for name in names):
        raise InputError(f"--image is {text!r}, but must be fields in order of preference, such as png,jpg or seg.png.")
    return ImageChoice(names)


def looks_like_image(field: str) -> bool:
    """Whether a field ends like an image, as "seg.png" does, and "0.jpg" of the member "Track 2.0.jpg"."""
    return field.rpartition(".")[2] in (*_COMMON, *_RARE)


def image_kind(field: str) -> ImageKind:
    """How a field's content is read; `image` stands for all formats without a kind of their own."""
    return _KINDS.get(field.rpartition(".")[2], "image")


def join_kinds(kinds: set[ImageKind]) -> ImageKind:
    """The encoding of a split whose images are of several kinds."""
    return kinds.pop() if len(kinds) == 1 else "image"


class TarFormat(NamedTuple):
    """What all samples of a split have in common: arrays or images, their shape (C, H, W), and their background."""

    is_npy: bool
    shape: tuple[int, ...]
    background: str = BACKGROUND

    def read(self, field: str, payload: Payload) -> tuple[Sample, frozenset[str]]:
        """Read an image as uint8 [C, H, W], and say what was done to it.

        Raises:
            OtherSize: It has another shape.
            ValueError: It cannot be decoded, or is an array among images or the other way round.
        """
        if (image_kind(field) == "npy") != self.is_npy:
            raise ValueError(f"its image is {field}, but others are {'images' if self.is_npy is False else 'npy'}")
        if not self.is_npy:
            return read_image(payload, self.shape, self.background)
        x = read_npy(payload, channels=self.shape[0])
        if x.shape != self.shape:
            raise OtherSize(f"its shape is {x.shape}, but must be {self.shape}")
        return x, frozenset()


def find_format(samples: Iterable[tuple[str, Payload]], background: str) -> TarFormat:
    """Find what most of some samples, each the image's field and its content, have in common.

    Raises:
        ValueError: None of them can be read; the message says why the first one cannot.
    """
    members: dict[tuple[bool, int, int], list[tuple[int, Payload]]] = {}
    problem: ValueError | None = None
    for field, payload in samples:
        is_npy = image_kind(field) == "npy"
        try:
            channels, height, width = read_npy(payload).shape if is_npy else _peek_shape(payload)
        except ValueError as error:
            problem = problem or error
            continue
        members.setdefault((is_npy, height, width), []).append((channels, payload))
    for (is_npy, _, _), alike in sorted(members.items(), key=lambda item: -len(item[1])):
        for _, payload in alike:
            try:
                x = read_npy(payload) if is_npy else read_image(payload, background=background)[0]
            except ValueError as error:
                problem = problem or error
                continue
            return TarFormat(is_npy, (max(channels for channels, _ in alike), *x.shape[1:]), background)
    raise problem or ValueError("there is none")


def _peek_shape(payload: Payload) -> tuple[int, int, int]:
    with open_image(payload, IMAGE_FORMATS) as image:
        return upright_shape(image)


def select_fields(fields: Mapping[str, Payload], names: Iterable[str]) -> dict[str, bytes]:
    """The contents of some fields, as far as a sample has them."""
    return {name: bytes(fields[name]) for name in names if name in fields}


def _list_fields(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_LISTED]) + ", ..." * (len(names) > _MAX_LISTED)
    return f" (fields: {shown})" if names else ""


def _explain_dots(names: list[str]) -> str:
    """The reason, where it is that the name of a member has several dots."""
    compound = next((name for name in names if looks_like_image(name)), None)
    if compound is None:
        return ""
    return (
        f"; in WebDataset, all that follows the first dot of a name is the field, here {compound!r}: give --image "
        f"{compound} if that is the image's field in every sample, or --dotted-names if names of samples have dots"
    )
