"""Read the image and the label of one sample of somebody else's tar, or say in a word what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ali_dist.data.shards.codec import Sample
from ali_dist.data.shards.pictures import OtherSize
from ali_dist.data.shards.tar_images import ImageChoice, NoImageError, Payload, TarFormat, select_fields
from ali_dist.data.shards.tar_labels import LabelChoice, RawLabel


class BadTarSample(ValueError):  # noqa: N818  (it reads better where it is caught)
    """A sample cannot be used.

    Attributes:
        reason: What is wrong with it, in the words that the index counts.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TarReading:
    """How samples are read.

    Attributes:
        tar_format: What all images have in common.
        labels: Where labels stand.
        image: Which field is the image.
        explicit_labels: Whether the user chose the labels.
    """

    tar_format: TarFormat
    labels: LabelChoice
    image: ImageChoice
    explicit_labels: bool = False

    def read_image(self, fields: Mapping[str, Payload]) -> tuple[str, Sample, frozenset[str]]:
        """Read the image among the fields of a sample.

        Returns:
            Its field, the image uint8 [C, H, W], and what was done to it.

        Raises:
            BadTarSample: There is none, or it cannot be used.
        """
        try:
            name = self.image.find(fields)
            return name, *self.tar_format.read(name, fields[name])
        except NoImageError as error:
            raise BadTarSample("no image", str(error)) from error
        except OtherSize as error:
            raise BadTarSample(
                "another size", f"{error} as most others (webdataset-import with --size cuts and resizes images)"
            ) from error
        except ValueError as error:
            raise BadTarSample("unreadable image", str(error)) from error

    def read_label(self, fields: Mapping[str, Payload]) -> RawLabel | None:
        """Read the label of a sample; None if samples have none.

        Raises:
            BadTarSample: It has none, or one that cannot be used.
            NotBinaryError: See there.
        """
        if "cls" in fields and not self.explicit_labels and self.labels.needed_fields != ("cls",):
            raise BadTarSample(
                "unusable label", "it has a cls, which the first samples have not: give --labels cls or none"
            )
        if self.labels.kind == "none":
            return None
        try:
            label = self.labels.read(select_fields(fields, self.labels.needed_fields))
        except ValueError as error:
            raise BadTarSample("unusable label", f"{error} (--labels chooses others, or none)") from error
        if label is None:
            raise BadTarSample(
                "no label",
                f"it has no label ({self.labels}), which others have (--labels none leaves labels alone)",
            )
        return label
