"""Drawn shapes: RGB images of one object on a background, with a class or ten attributes, in any number.

Sample i of a split depends on (seed, split, i) alone. Position, size, hue, turn and brightness vary continuously,
so that no two images are equal; every attribute is an independent fair coin and can be seen in every image.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.sources.base import SampleNumbers, ShardSamples, SourceSplit
from ali_dist.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SHAPES_SAMPLES = 20_000
CLASSES = ("circle", "square", "triangle", "star", "cross", "heart", "drop", "arrow")
ATTRIBUTES = ("round", "large", "filled", "warm", "right", "top", "light", "striped", "framed", "dotted")
SIZES = (32, 64)
_SPLITS = ("train", "test")
_OVERSAMPLING = 4  # images are drawn this many times larger and then reduced, which smooths every edge
_DRAWS = 24  # random numbers for each sample, a multiple of 4
_HOLE = 0.55  # size of the hole in an outlined object, relative to the object

Point = tuple[float, float]
Color = tuple[int, int, int]


def shapes_splits(
    labels: Literal["classes", "attributes"] = "classes",
    *,
    size: int = 32,
    samples: int = SHAPES_SAMPLES,
    seed: int = 0,
) -> Iterator[SourceSplit]:
    """Give uint8 [3, size, size]: `samples` to train on and a tenth as many more to test on.

    Args:
        labels: With `classes`, eight shapes, where everything else varies freely; with `attributes`, a vector of ten
            (0 or 1) on circles and squares.
        size: Pixels of a side.
        samples: Samples to train on.
        seed: Seed of everything that is drawn.

    Raises:
        InputError: The labels or the size are others, there are fewer than 10 samples, or the seed is out of range.
    """
    if labels not in ("classes", "attributes"):
        raise InputError(f"--labels is {labels!r}, but shapes are labelled with classes or attributes.")
    if size not in SIZES:
        raise InputError(f"Shapes have a --size of 32 or 64 pixels, not {size}.")
    if samples < 10:
        raise InputError(f"--samples is {samples}, but there must be at least 10 shapes to train on.")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed is {seed}, but must be from 0 to {2**32 - 1}.")
    name = "shapes" if labels == "classes" else "shapes-attributes"
    for number, split in enumerate(_SPLITS):
        count = samples if split == "train" else samples // 10
        yield SourceSplit(
            name=split,
            num_samples=count,
            shape=(3, size, size),
            select_samples=functools.partial(_make_samples, labels, size, seed * len(_SPLITS) + number),
            settings={"name": name, "size": size, "samples": samples, "seed": seed},
            classes=CLASSES if labels == "classes" else (),
            attributes=ATTRIBUTES if labels == "attributes" else (),
            is_shuffled=True,
        )


def _make_samples(
    labels: Literal["classes", "attributes"], size: int, stream: int, numbers: SampleNumbers
) -> ShardSamples:
    return ShapeSamples(labels, size, stream, tuple(numbers.tolist()))


@dataclass(frozen=True, slots=True)
class ShapeSamples:
    """Samples by their numbers in one stream of random numbers; they are drawn when they are read."""

    labels: Literal["classes", "attributes"]
    size: int
    stream: int
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def describe_sample(self, number: int) -> str:
        return f"Shape {self.numbers[number]}"

    def read_sample(self, number: int) -> PreparedSample:
        u = draw_random_numbers(self.stream, self.numbers[number])
        if self.labels == "classes":
            label = int(u[0] * len(CLASSES))
            return PreparedSample(draw_scene(random_scene(CLASSES[label], u[1:]), self.size), label)
        bits = u[: len(ATTRIBUTES)] < 0.5
        scene = scene_from_label(bits.tolist(), u[len(ATTRIBUTES) :])
        return PreparedSample(draw_scene(scene, self.size), bits.astype(np.float32))


def draw_random_numbers(stream: int, number: int) -> NDArray[np.float64]:
    """Draw the random numbers in [0, 1) of one sample. Raw words of Philox do not depend on numpy's version."""
    words = np.random.Philox(key=stream, counter=number * (_DRAWS // 4)).random_raw(_DRAWS)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeScene:
    """What an image shows. Lengths are shares of the image's side, and positions count from its top left corner.

    Attributes:
        shape: One of CLASSES.
        x: The object's center, from the left.
        y: The object's center, from the top.
        radius: The object's size.
        rotation: How far the object is turned, in radians.
        color: Color of the object.
        background: Color of the background.
        is_filled: Whether the object is filled, or an outline.
        stripe_angle: Direction of stripes in a second tone on the background, in radians, or None.
        frame_color: Color of a border, or None.
        dot_color: Color of a dot in the object's middle, or None.
    """

    shape: str
    x: float
    y: float
    radius: float
    rotation: float
    color: Color
    background: Color
    is_filled: bool
    stripe_angle: float | None = None
    frame_color: Color | None = None
    dot_color: Color | None = None


def random_scene(shape: str, u: NDArray[np.float64]) -> ShapeScene:
    """Draw a scene with that shape and everything else free; `u` are at least 9 numbers in [0, 1)."""
    radius = 0.20 + 0.14 * u[0]
    reach = 0.5 - 1.08 * radius  # how far the center may be from the middle
    light = bool(u[1] < 0.5)
    return ShapeScene(
        shape=shape,
        radius=radius,
        x=0.5 + reach * (2 * u[2] - 1),
        y=0.5 + reach * (2 * u[3] - 1),
        rotation=math.radians(20) * (2 * u[4] - 1),
        is_filled=bool(u[5] < 0.6),
        color=_vivid_color(u[6], light),
        background=_pale_color(u[7], light, u[8]),
    )


def scene_from_label(bits: list[bool], u: NDArray[np.float64]) -> ShapeScene:
    """Draw a scene with these attributes, in the order of ATTRIBUTES; `u` are at least 9 numbers in [0, 1)."""
    has = dict(zip(ATTRIBUTES, bits, strict=True))
    # Hues from red to yellow, and from cyan to violet-blue: none that could be called both.
    hue = -0.03 + 0.16 * u[0] if has["warm"] else 0.47 + 0.20 * u[0]
    # Dark on a light background and light on a dark one: a dot in the background's own tone would look like a hole.
    ink = _rgb_from_hsv(0.0, 0.0, 0.05 if has["light"] else 0.97)
    side, height = (1 if has["right"] else -1), (-1 if has["top"] else 1)
    return ShapeScene(
        shape="circle" if has["round"] else "square",
        is_filled=has["filled"],
        radius=(0.225 if has["large"] else 0.125) + 0.04 * u[1],
        x=0.5 + side * (0.15 + 0.09 * u[2]),
        y=0.5 + height * (0.15 + 0.09 * u[3]),
        rotation=math.radians(15) * (2 * u[4] - 1),
        color=_vivid_color(hue, has["light"]),
        background=_pale_color(u[5], has["light"], u[6]),
        stripe_angle=math.pi * u[7] if has["striped"] else None,
        frame_color=ink if has["framed"] else None,
        dot_color=ink if has["dotted"] else None,
    )


def draw_scene(scene: ShapeScene, size: int) -> NDArray[np.uint8]:
    """Draw the scene as uint8 [3, size, size]."""
    from PIL import Image, ImageDraw

    side = size * _OVERSAMPLING
    image = Image.new("RGB", (side, side), scene.background)
    pen = ImageDraw.Draw(image)
    if scene.stripe_angle is not None:
        _draw_stripes(pen, side, scene.stripe_angle, _second_tone(scene.background))
    _draw_object(image, scene, side)
    if scene.dot_color is not None:
        reach = max(0.3 * scene.radius, 0.055)
        pen.ellipse([side * (c + d) for d in (-reach, reach) for c in (scene.x, scene.y)], fill=scene.dot_color)
    if scene.frame_color is not None:
        pen.rectangle((0, 0, side - 1, side - 1), outline=scene.frame_color, width=side // 16)
    return np.asarray(image.reduce(_OVERSAMPLING)).transpose(2, 0, 1)


def _draw_object(image: Image, scene: ShapeScene, side: int) -> None:
    from PIL import Image as Images
    from PIL import ImageDraw

    mask = Images.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    pen.polygon(_place_outline(scene, 1.0, side), fill=255)
    if not scene.is_filled:
        pen.polygon(_place_outline(scene, _HOLE, side), fill=0)
    image.paste(scene.color, mask=mask)


def _place_outline(scene: ShapeScene, scale: float, side: int) -> list[Point]:
    """The corners of a scene's object, in pixels."""
    reach = scene.radius * scale * side
    cos, sin = reach * math.cos(scene.rotation), reach * math.sin(scene.rotation)
    x, y = scene.x * side, scene.y * side
    return [(x + cos * px - sin * py, y + sin * px + cos * py) for px, py in shape_outlines()[scene.shape]]


def _draw_stripes(pen: ImageDraw, side: int, angle: float, color: Color) -> None:
    """Draw parallel bands across the image."""
    along = (math.cos(angle) * side, math.sin(angle) * side)
    across = (-math.sin(angle) * side, math.cos(angle) * side)
    for shift in (-0.56, -0.28, 0.0, 0.28, 0.56):
        x, y = side / 2 + across[0] * shift, side / 2 + across[1] * shift
        pen.line((x - along[0], y - along[1], x + along[0], y + along[1]), fill=color, width=side // 8)


@functools.cache
def shape_outlines() -> dict[str, list[Point]]:
    """The corners of each shape about the origin, with y downwards; all shapes look equally large."""
    return {
        "circle": [_polar_outline(1.0, 2 * math.pi * k / 72) for k in range(72)],
        "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
        "triangle": [_polar_outline(1.2, 2 * math.pi * k / 3) for k in range(3)],
        "star": [_polar_outline(1.2 if k % 2 == 0 else 0.5, math.pi * k / 5) for k in range(10)],
        "cross": [
            (sx * px, sy * py)
            for sx, sy, order in ((1, -1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, -1))
            for px, py in ((0.36, 1.05), (0.36, 0.36), (1.05, 0.36))[::order]
        ],
        "heart": [_heart_outline(2 * math.pi * k / 72) for k in range(72)],
        "drop": [(0.0, -1.35), *(_polar_outline(0.85, math.radians(60 + k * 5), 0.2) for k in range(49))],
        "arrow": [(0, -1.15), (1.0, 0.0), (0.45, 0.0), (0.45, 1.0), (-0.45, 1.0), (-0.45, 0.0), (-1.0, 0.0)],
    }


def _polar_outline(radius: float, angle: float, down: float = 0.0) -> Point:
    """The point at an angle clockwise from straight up, at a distance from (0, down)."""
    return radius * math.sin(angle), down - radius * math.cos(angle)


def _heart_outline(t: float) -> Point:
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return math.sin(t) ** 3 * 1.1, -y / 15


def _vivid_color(hue: float, on_light: bool) -> Color:
    """A strong color: darker for a light background, brighter for a dark one."""
    return _rgb_from_hsv(hue, 0.95 if on_light else 0.80, 0.72 if on_light else 1.0)


def _pale_color(hue: float, light: bool, brightness: float) -> Color:
    """A background with little color of its own."""
    return (
        _rgb_from_hsv(hue, 0.12, 0.86 + 0.12 * brightness)
        if light
        else _rgb_from_hsv(hue, 0.45, 0.14 + 0.12 * brightness)
    )


def _second_tone(background: Color) -> Color:
    """The background's second tone, which is clearly nearer to the middle."""
    shift = -45 if sum(background) > 3 * 127 else 45
    return background[0] + shift, background[1] + shift, background[2] + shift


def _rgb_from_hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue
