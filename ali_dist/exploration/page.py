"""The explorer's page: one HTML document with its style sheet and its script, which loads nothing from elsewhere.

page.js shows what it is answered and does not know by whom: ask_server.js asks the server that sent the page, and
ask_model.js the networks within the page (`static_page`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from torch import Tensor

from ali_dist.config.wording import format_count
from ali_dist.exploration.directions import FEWEST, MOST_LABELS
from ali_dist.exploration.explorer import Explorer
from ali_dist.exploration.pictures import MOST_BYTES
from ali_dist.exploration.pool import ImagePool
from ali_dist.exploration.request_parts import LEAST_STEPS, MOST_STEPS
from ali_dist.inference.trained_model import TrainedModel
from ali_dist.names import printable_name
from ali_dist.report.gallery_sizes import STEPS
from ali_dist.report.template import STYLE, note_html

_REACH = 4.0  # standard deviations to either side
_LABEL_REACH = 2.0  # differences of means to either side


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it is sent.

    Attributes:
        content: The document, UTF-8.
        policy: Its Content-Security-Policy, which allows its own script and style and nothing else.
    """

    content: bytes
    policy: str


def build_page(explorer: Explorer, problem: str = "") -> Page:
    """Build the page of an explorer, as a server sends it.

    Args:
        explorer: What it explores.
        problem: Why the data could not be read, in a sentence; empty where they were.
    """
    style, script = read_style(), read_part("ask_server.js") + read_part("page.js")
    document = page_document(
        explorer,
        explorer.pool,
        problem,
        style=style,
        body=f"{facts_html('facts', page_facts(explorer))}<script>{script}</script>\n",
    )
    policy = (
        f"default-src 'none'; script-src '{policy_hash(script)}'; style-src '{policy_hash(style)}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(document.encode("utf-8", "backslashreplace"), policy)


def page_document(
    explorer: Explorer, shown: ImagePool | None, problem: str, *, style: str, body: str, head: str = "", foot: str = ""
) -> str:
    """The whole HTML document, whoever answers it.

    Args:
        explorer: What it explores.
        shown: The images that it can show: those of the explorer, or some of them.
        problem: Why the data could not be read, in a sentence; empty where they were.
        style: Its style sheet.
        body: HTML of its end: the facts, and the script that uses them.
        head: HTML that stands before everything else.
        foot: HTML below everything that is seen.
    """
    sections = [
        _components_html(explorer),
        _labels_html(explorer),
        _condition_html(explorer.model),
        _walk_html(explorer.pool),
        _neighbors_html(shown, problem),
    ]
    name = printable_name(explorer.model.name)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{head}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(name)} · ALI explorer</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"{_headline_html(explorer.model, name)}\n"
        f'<div class="explorer">\n{_now_html(explorer.pool)}\n'
        f'<div class="parts-of-page">{"".join(sections)}</div>\n</div>\n{foot}</main>\n'
        f"{body}</body>\n</html>\n"
    )


def read_style() -> str:
    """The page's style sheet."""
    return STYLE + read_part("page.css")


def read_part(name: str) -> str:
    """A file of this package that becomes part of a page."""
    return resources.files("ali_dist.exploration").joinpath(name).read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """How a Content-Security-Policy names a script or a style sheet that stands in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def page_facts(explorer: Explorer) -> Mapping[str, Any]:
    """What page.js has to know."""
    components = explorer.components
    usual = explorer.usual_condition
    return {
        "center": _numbers(components.center),
        "centerName": _center_name(explorer.pool),
        "vectors": [_numbers(vector) for vector in components.vectors],
        "std": _numbers(components.std),
        "labels": [_numbers(label.vector) for label in explorer.labels],
        "condition": None if usual is None else _numbers(usual),
        "hasData": explorer.pool is not None,
        "mostBytes": MOST_BYTES,
    }


def facts_html(name: str, facts: Mapping[str, Any]) -> str:
    """Facts for a script, as HTML that holds them under an id."""
    content = json.dumps(facts).replace("<", "\\u003c")
    return f'<script id="{name}" type="application/json">{content}</script>\n'


def _numbers(x: Tensor) -> list[float]:
    return [round(value, 7) for value in x.tolist()]


def _center_name(pool: ImagePool | None) -> str:
    return f"z is the mean of µ(x), x from {'the data' if pool else 'G'}"


def _headline_html(model: TrainedModel, name: str) -> str:
    shape = "x".join(map(str, model.sample_shape))
    weights = {"ema": "averaged weights", "raw": "last weights"}[model.run.weights]
    condition = [] if model.condition == "none" else [f"conditional on {model.condition}"]
    words = [f"images {shape}", format_count(model.latent_size, "latent"), *condition]
    words.append(f"{weights} after {model.images_seen:,} images")
    return (
        f'<header><h1>{escape(name)}<span class="status">explorer</span></h1>{note_html(" · ".join(words))}'
        '<p id="trouble" class="trouble" role="status"></p></header>'
    )


def _now_html(pool: ImagePool | None) -> str:
    """The picture that is shown, and where it may come from."""
    any_image = '<button type="button" id="any-image">An image of the data</button>' if pool else ""
    return (
        '<div class="aside"><section class="card now" id="now">'
        '<img class="picture" id="picture" alt="The decoded picture G(z)">'
        '<div class="buttons"><button type="button" id="random">New random z</button>'
        f'<button type="button" id="reset" title="To the mean of µ(x)">Reset</button>{any_image}'
        '<label class="file">Your picture<input type="file" accept="image/*" id="file"></label></div>'
        '<p class="soft" id="source"></p></section>'
        '<section class="card" id="pair" hidden><div class="pair">'
        '<figure><img class="picture" id="original" alt="The picture as the model sees it">'
        "<figcaption>as the model sees it</figcaption></figure>"
        '<figure><img class="picture" id="reconstruction" alt="Its reconstruction">'
        '<figcaption>G(µ(x))</figcaption></figure></div><p class="soft" id="pair-text"></p></section></div>'
    )


def _components_html(explorer: Explorer) -> str:
    pool = explorer.pool
    source = (
        f"of µ(x) over {_count_words(pool)}"
        if pool
        else "of µ(G(z)), z from the prior, because the data could not be read"
    )
    sliders = "".join(
        _slider_html(
            f"{place + 1} <span class='soft'>{share:.0%}</span>",
            f"Component {place + 1}",
            f'data-component="{place}"',
            _REACH,
        )
        for place, share in enumerate(explorer.components.shares)
    )
    return _card_html(
        "Principal components", sliders, f"{source}, in standard deviations σ; beside them, the share of the variance"
    )


def _count_words(pool: ImagePool) -> str:
    of_how_many = f"all {len(pool):,}" if len(pool) == pool.total else f"{len(pool):,} of the {pool.total:,}"
    return f"{of_how_many} images of {pool.split!r}"


def _labels_html(explorer: Explorer) -> str:
    """Sliders of what labels add; empty where there are no labels, or the model is conditional on them."""
    pool = explorer.pool
    if pool is None or not explorer.labels:
        return ""
    names = explorer.model.classes or explorer.model.attributes
    kind = "class" if pool.y is not None and pool.y.dim() == 1 else "attribute"
    sliders = "".join(
        _slider_html(
            f"{escape(printable_name(label.name)).replace('_', '_<wbr>')} <span class='soft'>{label.count:,}</span>",
            printable_name(label.name),
            f'data-label="{place}"',
            _LABEL_REACH,
        )
        for place, label in enumerate(explorer.labels)
    )
    shown, known = len(explorer.labels), len(names)
    rest = f"; {shown} of {known}: the most frequent" if shown == MOST_LABELS < known else ""
    if shown < min(MOST_LABELS, known):
        rest = f"; {shown} of {known}: the others have fewer than {FEWEST} images with or without them"
    heading = "Classes" if kind == "class" else "Attributes"
    note = f"z plus so many times the mean z of images of this {kind}, less the mean z of the others; "
    note += f"beside them, how many images there are{rest}"
    return _card_html(heading, sliders, note)


def _condition_html(model: TrainedModel) -> str:
    """The choice of a condition; empty for an unconditional model."""
    names = [printable_name(name) for name in (model.classes if model.condition == "classes" else model.attributes)]
    if model.condition == "none":
        return ""
    if model.condition == "classes":
        options = "".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(names))
        choice = f'<select id="class" aria-label="Class">{options}</select>'
    else:
        boxes = "".join(
            f'<label><input type="checkbox" data-attribute="{place}">{escape(name)}</label>'
            for place, name in enumerate(names)
        )
        choice = f'<div class="chips">{boxes}</div>'
    return _card_html("Condition", choice, "of G; and of E, for a picture that you give")


def _walk_html(pool: ImagePool | None) -> str:
    slots = "".join(_slot_html(name, pool is not None) for name in ("first", "last"))
    steps = _slider_html("pictures", "Pictures of the walk", 'id="steps"', (LEAST_STEPS, MOST_STEPS, 1, STEPS))
    spherical = (
        '<div class="chips"><label><input type="checkbox" id="spherical">along a great circle, not a straight line'
        "</label></div>"
    )
    return _card_html(
        "A walk from one to another",
        f'<div class="slots">{slots}</div>{steps}{spherical}<div class="strip" id="strip"></div>',
    )


def _slot_html(name: str, has_data: bool) -> str:
    return (
        f'<div class="slot" id="{name}-slot"><img class="picture" id="{name}-picture" alt="The {name} picture">'
        f'<div class="buttons"><button type="button" id="{name}-current">Current</button>'
        f'<button type="button" id="{name}-other">{"Data" if has_data else "Random"}</button>'
        f'<label class="file">Yours<input type="file" accept="image/*" id="{name}-file"></label></div></div>'
    )


def _neighbors_html(pool: ImagePool | None, problem: str) -> str:
    heading = "Nearest images of the data"
    if pool is None:
        return _card_html(heading, note_html(f"The data could not be read: {problem}"))
    note = (
        f"to the picture that is shown, among {_count_words(pool)}, by the root mean square difference of E's features"
    )
    return _card_html(heading, '<div class="neighbors" id="neighbors"></div>', note)


def _card_html(heading: str, body: str, note: str = "") -> str:
    """A part of the page; `body` is HTML, `note` text that stands below the heading."""
    return f'<section class="card"><h2>{escape(heading)}</h2>{note_html(note) if note else ""}{body}</section>\n'


def _slider_html(caption: str, name: str, attributes: str, reach: float | tuple[float, float, float, float]) -> str:
    """A slider; `caption` is HTML, `name` is text.

    `reach` is how far it goes to either side of 0, or its least and greatest value, its step and where it begins.
    """
    least, most, step, start = reach if isinstance(reach, tuple) else (-reach, reach, 0.05, 0)
    return (
        f'<div class="slider"><span>{caption}</span><input type="range" min="{least:g}" max="{most:g}" '
        f'step="{step:g}" value="{start:g}" data-value="{start:g}" aria-label="{escape(name)}" {attributes}>'
        f"<output>{start:g}</output></div>"
    )
