"""The galleries of a run on its page: the newest, and some earlier ones to compare it with.

The reader chooses a moment by radio buttons, which a style sheet alone answers: pages run no scripts, so that they may
be opened from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ali_dist.report.embedding import compress, data_url, embed_pictures
from ali_dist.report.template import section_html
from ali_dist.runs.run_reader import GalleryFiles

CAPTIONS = {
    "samples": "Decoder samples G(z), z from the prior",
    "reconstructions": "Reconstructions of holdout images: original left, G(z) with z ~ q(z|x) right",
    "conditions": "One z in every row, under one condition after another",
    "interpolations": "Straight lines in latent space between two holdout images, the originals set apart at the ends",
    "latents": "The encoder's means μ(x) of holdout images, on their first two principal components",
    "nearest": "Samples (first of each five) beside the training images that are nearest to them",
    "mixture": "Samples over the true modes, reconstructions, and latent codes over the prior",
}
_HALVES = ("samples", "reconstructions", "latents", "nearest")  # two of these stand beside each other
_NEWEST_ALONE = ("nearest",)  # of these the newest says all, and earlier ones would take the room of others
_MOST_MOMENTS = 8
_MOST_BYTES = 1_200_000  # of all earlier files that a page holds
_MOST_NEWEST_BYTES = 2_000_000  # of the newest ones, which are there in any case, compressed where they are large


def galleries_html(galleries: Mapping[str, GalleryFiles]) -> str:
    """The section with the pictures of a run; empty where there are none.

    Args:
        galleries: For each kind of picture, its files by the number of images that had been seen; see `find_galleries`.
    """
    if not galleries:
        return ""
    moments = choose_moments(
        {kind: files for kind, files in galleries.items() if kind not in _NEWEST_ALONE} or galleries
    )
    urls = embed_pictures([_newest(files) for files in galleries.values()], _MOST_NEWEST_BYTES)
    figures = "".join(_figure_html(kind, files, moments, urls) for kind, files in galleries.items())
    body = f'<div class="images">{figures}</div>'
    if len(moments) > 1:
        body = f'<div class="moments">{_buttons_html(moments)}{body}</div><style>{_choice_style(len(moments))}</style>'
    return section_html("Images", body)


def choose_moments(galleries: Mapping[str, GalleryFiles]) -> list[float]:
    """Choose some moments, ascending and evenly spread, with the first and the newest, whose files a page may hold."""
    every = sorted({moment for files in galleries.values() for moment in files})
    for count in range(min(_MOST_MOMENTS, len(every)), 1, -1):
        chosen = [every[round(k * (len(every) - 1) / (count - 1))] for k in range(count)]
        earlier = {file for files in galleries.values() for moment in chosen if (file := _file_at(files, moment))}
        earlier -= {_newest(files) for files in galleries.values()}
        if sum(len(compress(path, path.stat().st_mtime_ns)) for path in earlier) <= _MOST_BYTES:
            return chosen
    return every[-1:]


def _newest(files: GalleryFiles) -> Path:
    return files[max(files)]


def _file_at(files: GalleryFiles, moment: float) -> Path | None:
    """The newest file that there was at a moment."""
    earlier = [drawn for drawn in files if drawn <= moment]
    return files[max(earlier)] if earlier else None


def _buttons_html(moments: Sequence[float]) -> str:
    newest = len(moments) - 1
    inputs = "".join(
        f'<input type="radio" name="moment" id="moment-{k}"{" checked" if k == newest else ""}>'
        for k in range(len(moments))
    )
    labels = "".join(f'<label for="moment-{k}">{moment_text(moment)}</label>' for k, moment in enumerate(moments))
    return f'{inputs}<p class="choices">after {labels} images</p>'


def moment_text(moment: float) -> str:
    """A number of images seen, as text; all of them where a file names none."""
    return f"{moment:,.0f}" if moment != float("inf") else "all"


def _choice_style(count: int) -> str:
    """Of every picture, show the one of the chosen moment alone, and mark its button."""
    rules = [".moments > input { position: absolute; opacity: 0; } .moments .at { display: none; }"]
    for k in range(count):
        rules.append(f"#moment-{k}:checked ~ .images .at-{k} {{ display: block; }}")
        rules.append(
            f'#moment-{k}:checked ~ .choices label[for="moment-{k}"] {{ background: var(--mark); color: var(--ink); }}'
        )
        rules.append(f'#moment-{k}:focus-visible ~ .choices label[for="moment-{k}"] {{ outline: 2px solid; }}')
    return "\n".join(rules)


def _figure_html(kind: str, files: GalleryFiles, moments: Sequence[float], urls: Mapping[Path, str]) -> str:
    """A figure of one kind with its file of every moment; a file that is the newest for several is there once.

    `urls` are those of the newest files.
    """
    caption = escape(CAPTIONS.get(kind, kind))
    places: dict[Path, list[int]] = {}
    for k, moment in enumerate(moments):
        file = _newest(files) if kind in _NEWEST_ALONE else _file_at(files, moment)
        if file is not None:
            places.setdefault(file, []).append(k)
    wide = ' class="wide"' if kind not in _HALVES else ""
    pictures = []
    for path, numbers in places.items():
        url = urls[path] if path == _newest(files) else data_url("jpeg", compress(path, path.stat().st_mtime_ns))
        marks = f' class="{" ".join(["at", *(f"at-{k}" for k in numbers)])}"' if len(moments) > 1 else ""
        pictures.append(
            f'<div{marks}><img alt="{caption}" src="{url}">'
            f"<figcaption>{caption} ({escape(path.name)})</figcaption></div>"
        )
    return f"<figure{wide}>{''.join(pictures)}</figure>"
