"""Real colour pictures to try recipes on: `python -m tests.bench.pictures OUT [--size 64]`.

It fetches emoji of four vendors with `npm pack`, composes them on white, and writes a folder of PNG files for each of
nine classes, which are the categories of Unicode. Files are named by vendor and code, so that they are the same on
every machine, and a picture that is there already, pixel by pixel, is left out. Sides above 64 come from the font
fonts-noto-color-emoji by `apt-get download`: one vendor, and no sequences such as flags and skin tones.
`python -m ali_dist.prepare folder DATA --from OUT --size 32` makes a data set of either.

The pictures are for measuring on this machine and never committed. They belong to Apple and Facebook (all rights
reserved), Google (Apache 2.0, in the font SIL OFL 1.1) and Twitter (CC BY 4.0); the npm packages around them are MIT.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ali_dist.cli import CommandParser, parse_comma_list, parse_path, whole_number_type
from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError, StorageError, exit_code

VENDORS = {
    "apple": "Apple, all rights reserved",
    "google": "Google, Apache License 2.0",
    "twitter": "Twitter and contributors, CC BY 4.0",
    "facebook": "Facebook, all rights reserved",
}
"""The vendors in the order in which their pictures are taken, each with its licence."""
NOTO = "fonts-noto-color-emoji"
NOTO_LICENCE = "Google, SIL Open Font License 1.1"
VENDOR_SIZE = 64  # pixels of a side in the vendors' packages
NOTO_SIZE = 136  # the longer side of the font's pictures
LEFT_OUT = "Component"  # a category of patches of skin, not of pictures
FETCH_SECONDS = 600


@dataclass(frozen=True)
class Picture:
    """A picture as its vendor has it.

    Attributes:
        vendor: Whose it is.
        code: Its code points in hexadecimal with dashes between them.
        category: Its category of Unicode.
        data: Its PNG file.
    """

    vendor: str
    code: str
    category: str
    data: bytes


@dataclass
class Tally:
    """What was written and what was not.

    Attributes:
        written: Pictures by vendor and class.
        duplicates: Pictures that were there already.
        classless: Pictures without a class.
    """

    written: Counter[tuple[str, str]] = field(default_factory=Counter)
    duplicates: int = 0
    classless: int = 0


def compose_on_white(picture: Image.Image, size: int) -> Image.Image:
    """Compose a picture on a white square of `size` pixels a side, in its middle; a larger or smaller one is scaled."""
    whole = picture.convert("RGBA")
    side = max(whole.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(whole, ((side - whole.width) // 2, (side - whole.height) // 2))
    opaque = square.convert("RGB")
    return opaque if side == size else opaque.resize((size, size), Image.Resampling.LANCZOS)


def name_class(category: str) -> str:
    """Name the folder of a category: lower case, words with dashes between them."""
    return "-".join(re.findall(r"[a-z0-9]+", category.lower()))


def read_categories(text: bytes) -> dict[str, str]:
    """Read which category each picture of a vendor's package is of, by its code, from the package's emoji.json."""
    categories = {}
    for entry in json.loads(text):
        for form in (entry, *entry.get("skin_variations", {}).values()):
            categories[form["image"].removesuffix(".png")] = entry["category"]
    return categories


def read_vendor_package(archive: Path, vendor: str) -> Iterator[Picture]:
    """Read the pictures of a vendor's package in the order of their codes; one without a class has the category "".

    Raises:
        InputError: The archive is damaged, or not such a package.
    """
    folder = f"package/img/{vendor}/{VENDOR_SIZE}/"
    files: dict[str, bytes] = {}
    listing = b""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is not None and member.name == "package/emoji.json":
                    listing = stream.read()
                elif stream is not None and member.name.startswith(folder) and member.name.endswith(".png"):
                    files[member.name.removeprefix(folder).removesuffix(".png")] = stream.read()
        categories = read_categories(listing)
    except (OSError, EOFError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{archive} is no readable package of {vendor}'s emoji ({error}): remove it, and it is fetched again."
        ) from error
    if not files:
        raise InputError(f"{archive} has no pictures in {folder}: remove it, and it is fetched again.")
    for code in sorted(files):
        yield Picture(vendor, code, categories.get(code, ""), files[code])


def read_noto_font(package: Path, categories: dict[str, str]) -> Iterator[Picture]:
    """Read the pictures of single code points from the font's Debian package, in the order of their codes.

    Raises:
        InputError: The package cannot be unpacked, or its font has no bitmaps.
    """
    from fontTools.ttLib import TTFont

    with tempfile.TemporaryDirectory() as scratch:
        _run_client(["dpkg-deb", "--extract", str(package), scratch], "Debian's dpkg")
        files = sorted(Path(scratch).rglob("NotoColorEmoji.ttf"))
        if not files:
            raise InputError(f"{package} has no file NotoColorEmoji.ttf: remove it, and it is fetched again.")
        font = TTFont(files[0])
        if "CBDT" not in font:
            raise InputError(f"The font in {package} has no bitmaps (table CBDT): take {NOTO} of another release.")
        bitmaps = font["CBDT"].strikeData[0]
        names = font.getBestCmap()
        for code, category in sorted(categories.items()):
            points = [point for point in code.split("-") if point != "fe0f"]
            name = names.get(int(points[0], 16)) if len(points) == 1 else None
            if name in bitmaps:
                yield Picture("noto", code, category, bitmaps[name].imageData)


def write_pictures(pictures: Iterable[Picture], folder: Path, size: int) -> Tally:
    """Write pictures into a folder for each class, composed on white; of equal ones, the first."""
    tally = Tally()
    known: set[bytes] = set()
    for picture in pictures:
        if not picture.category:
            tally.classless += 1
        if picture.category in ("", LEFT_OUT):
            continue
        with Image.open(io.BytesIO(picture.data)) as opened:
            composed = compose_on_white(opened, size)
        digest = hashlib.sha256(composed.tobytes()).digest()
        if digest in known:
            tally.duplicates += 1
            continue
        known.add(digest)
        name = name_class(picture.category)
        (folder / name).mkdir(parents=True, exist_ok=True)
        composed.save(folder / name / f"{picture.vendor}-{picture.code}.png")
        tally.written[picture.vendor, name] += 1
    return tally


def fetch_vendor_package(vendor: str, packages: Path) -> Path:
    """Fetch a vendor's package with npm, unless it is in the folder `packages`; returns its archive.

    Raises:
        InputError: npm is missing.
        StorageError: The download failed.
    """
    return _fetch(
        f"emoji-datasource-{vendor}",
        "*.tgz",
        packages,
        ["npm", "pack", "--silent", f"emoji-datasource-{vendor}"],
        "Node.js, which npm is part of",
    )


def fetch_noto_package(packages: Path) -> Path:
    """Fetch the font's Debian package with apt-get, unless it is in the folder `packages`; returns it.

    Raises:
        InputError: apt-get is missing.
        StorageError: The download failed.
    """
    return _fetch(NOTO, "*.deb", packages, ["apt-get", "download", NOTO], "Debian or Ubuntu")


def _fetch(package: str, ending: str, packages: Path, command: list[str], provider: str) -> Path:
    pattern = f"{package}[-_][0-9]{ending}"
    if there := sorted(packages.glob(pattern)):
        return there[-1]
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packages) as scratch:  # an interrupted download is no package
        _run_client(command, provider, cwd=Path(scratch))
        fetched = sorted(Path(scratch).glob(pattern))
        if not fetched:
            raise StorageError(f"{' '.join(command)} has succeeded, but left no file {pattern}.")
        return Path(shutil.move(fetched[-1], packages / fetched[-1].name))


def _run_client(command: list[str], provider: str, cwd: Path | None = None) -> None:
    """Run a package client; what it says is shown only where it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_SECONDS
        )
    except FileNotFoundError:
        raise InputError(
            f"There is no command {command[0]} here: install {provider}, or put the package into the folder of "
            "--packages yourself."
        ) from None
    except subprocess.TimeoutExpired:
        raise StorageError(
            f"{' '.join(command)} was not done after {FETCH_SECONDS} s: run the same command again when the network is "
            "better."
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = said[0] if said else "it said nothing"
        raise StorageError(
            f"{' '.join(command)} failed with exit code {done.returncode} ({reason}): run the same command again when "
            "the package can be reached."
        )


def read_pictures(vendors: Sequence[str], size: int, packages: Path) -> Iterator[Picture]:
    """Fetch and read all pictures for a side of `size` pixels, one vendor after the other."""
    if size > VENDOR_SIZE:
        archive = fetch_vendor_package("google", packages)  # the font does not know categories
        categories = {picture.code: picture.category for picture in read_vendor_package(archive, "google")}
        yield from read_noto_font(fetch_noto_package(packages), categories)
        return
    for vendor in vendors:
        yield from read_vendor_package(fetch_vendor_package(vendor, packages), vendor)


@contextmanager
def _written_at_once(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when everything is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new folder, or remove this one first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.part-") as scratch:
        pictures = Path(scratch) / "pictures"
        pictures.mkdir()
        yield pictures
        if folder.exists():
            folder.rmdir()
        pictures.rename(folder)


def format_tally(tally: Tally) -> str:
    """Format how many pictures of which class came from where, and which were left out."""
    vendors = list(dict.fromkeys(vendor for vendor, _ in tally.written))
    classes = sorted({name for _, name in tally.written})
    width = max(map(len, (*classes, "all"))) + 2
    lines = ["".join((f"{'':<{width}}", *(f"{vendor:>10}" for vendor in vendors), f"{'all':>10}"))]
    for name in (*classes, "all"):
        counts = [
            sum(n for (v, c), n in tally.written.items() if v == vendor and name in (c, "all")) for vendor in vendors
        ]
        lines.append("".join((f"{name:<{width}}", *(f"{count:>10,}" for count in counts), f"{sum(counts):>10,}")))
    lines.append(f"Left out: {tally.duplicates:,} equal to another one, {tally.classless:,} without a class.")
    licences = [f"{vendor}: {VENDORS.get(vendor, NOTO_LICENCE)}" for vendor in vendors]
    return "\n".join((*lines, f"Licences, for use on this machine only: {'; '.join(licences)}."))


def _make_parser() -> CommandParser:
    parser = CommandParser("tests.bench.pictures", (__doc__ or "").strip())
    parser.add_argument("out", metavar="OUT", type=parse_path, help="a new folder for the pictures")
    parser.add_argument(
        "--size",
        type=whole_number_type(8, NOTO_SIZE),
        default=VENDOR_SIZE,
        help=f"pixels of a side ({VENDOR_SIZE}); above {VENDOR_SIZE}, the font's pictures are taken",
    )
    parser.add_argument(
        "--vendors",
        type=parse_comma_list,
        default=tuple(VENDORS),
        metavar="A,B",
        help=f"whose pictures, up to {VENDOR_SIZE} pixels ({','.join(VENDORS)})",
    )
    parser.add_argument(
        "--packages",
        type=parse_path,
        default=Path("data/packages"),
        metavar="FOLDER",
        help="where packages are kept; what is there is not fetched again (data/packages)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    return exit_code("tests.bench.pictures", lambda: _run_command(_make_parser().parse_args(arguments)))


def _run_command(options: argparse.Namespace) -> None:
    for vendor in options.vendors:
        if vendor not in VENDORS:
            hint = did_you_mean(vendor, VENDORS).removesuffix("?")
            raise InputError(f"--vendors has {vendor!r}, but there are {', '.join(VENDORS)}{hint}.")
    with _written_at_once(options.out) as folder:
        tally = write_pictures(read_pictures(options.vendors, options.size, options.packages), folder, options.size)
    print(format_tally(tally))


if __name__ == "__main__":
    sys.exit(main())
