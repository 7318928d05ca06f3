"""The explorer as one HTML file that needs no server: it carries the networks, some images, and a library for them.

ask_model.js unpacks what the page carries and answers page.js. Nothing in the page names a place of this machine.
"""

from __future__ import annotations

import base64
import gzip
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.data.shards.pictures import MAX_PIXELS
from ali_dist.errors import InputError
from ali_dist.exploration.explorer import LARGE, NEIGHBORS, SMALL, Explorer
from ali_dist.exploration.page import facts_html, page_document, page_facts, policy_hash, read_part, read_style
from ali_dist.exploration.pool import ImagePool
from ali_dist.exploration.web_runtime import PACKAGE, Runtime
from ali_dist.inference.exported import native_shape
from ali_dist.inference.graphs import FeatureGraph, check_difference, check_encoder, write_graphs
from ali_dist.inference.load import LoadedRun

MOST_MODEL_BYTES = 100_000_000
"""Bytes of the parameters of encoder and decoder."""
MOST_IMAGES = 200
"""Images of the data that a page carries."""
_MOST_IMAGE_BYTES = 16_000_000  # of them and their features
_OTHERWISE = "leave --static out, and the page is served"
_MIT = """\
Copyright (c) Microsoft Corporation. All rights reserved.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def check_model(run: LoadedRun) -> None:
    """Refuse a model that no page can carry, before anything is computed.

    Raises:
        InputError: It is too large, its images are no squares, or its encoder draws numbers of its own.
    """
    check_encoder(run, "--static", _OTHERWISE)
    _, height, width = run.spec.shape
    if height != width:
        raise InputError(
            f"--static is for square images, but those of run {run.name!r} are {height}x{width}: {_OTHERWISE}."
        )
    networks = (network for name, network in run.model.networks.items() if name != "discriminator")
    size = sum(part.numel() * part.element_size() for network in networks for part in network.state_dict().values())
    if size > MOST_MODEL_BYTES:
        raise InputError(
            f"The encoder and the decoder of run {run.name!r} have {size / 1e6:,.0f} MB, but a page carries at most "
            f"{MOST_MODEL_BYTES / 1e6:.0f} MB: {_OTHERWISE}."
        )


def build_static_page(explorer: Explorer, runtime: Runtime) -> bytes:
    """Build the page of an explorer, with everything that it needs.

    Args:
        explorer: What it explores, on the CPU.
        runtime: The library that runs the networks in the browser.

    Raises:
        TrainingError: The recorded networks differ from those of the run.
    """
    pool = _choose_images(explorer)
    style, script = read_style(), read_part("ask_model.js") + read_part("page.js")
    carried = {**runtime.files, **_record_networks(explorer.model.run)}
    if pool is not None:
        carried["images"] = (explorer.as_seen(pool.x) * 255).round().byte().numpy().tobytes()
        carried["features"] = pool.features.numpy().tobytes()
    policy = (
        f"default-src 'none'; script-src '{policy_hash(script)}' blob: 'wasm-unsafe-eval'; "
        f"style-src '{policy_hash(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = [
        facts_html("facts", page_facts(explorer)),
        facts_html("model-facts", _model_facts(explorer, pool)),
        *(_packed_html(name, content) for name, content in carried.items()),
        f"<script>{script}</script>\n",
    ]
    document = page_document(
        explorer,
        pool,
        "they were not at hand where this page was made.",  # the reason may name a place of that machine
        style=style,
        head=f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        foot=_license_html(runtime),
        body="".join(parts),
    )
    return document.encode("utf-8", "backslashreplace")


def _choose_images(explorer: Explorer) -> ImagePool | None:
    """The images that the page carries: some of those that the explorer knows, and fewer where they are large."""
    if explorer.pool is None:
        return None
    bytes_of_one = explorer.as_seen(explorer.pool.x[:1]).numel() + 4 * explorer.pool.features.shape[1]
    return explorer.pool.some(max(1, min(MOST_IMAGES, _MOST_IMAGE_BYTES // bytes_of_one)))


def _record_networks(run: LoadedRun) -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="ali-page-") as scratch:
        names, difference = write_graphs(Path(scratch), run, "onnx", FeatureGraph)
        check_difference(run, "onnx", difference, _OTHERWISE)
        return {Path(name).stem: (Path(scratch) / name).read_bytes() for name in names}


def _model_facts(explorer: Explorer, pool: ImagePool | None) -> Mapping[str, Any]:
    """What ask_model.js has to know."""
    run = explorer.model.run
    return {
        "shape": native_shape(run),
        "storedSide": run.spec.shape[-1],
        "latentSize": run.model.latent_size,
        "large": LARGE,
        "small": SMALL,
        "neighbors": NEIGHBORS,
        "mostPixels": MAX_PIXELS,
        "pool": None
        if pool is None
        else {
            "names": [explorer.name_image(pool, place) for place in range(len(pool))],
            "conditions": None if pool.c is None else pool.c.tolist(),
        },
    }


def _packed_html(name: str, content: bytes) -> str:
    """Bytes, compressed, as HTML that holds them; the browser makes nothing of it."""
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    return f'<script id="packed-{name}" type="application/octet-stream">{packed}</script>\n'


def _license_html(runtime: Runtime) -> str:
    """What runs the networks, and on which terms."""
    summary = f"Computed in this page by {PACKAGE} {runtime.version} ({runtime.license_name} license)"
    terms = _MIT.split("\n\n") if runtime.license_name == "MIT" else []
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in terms)
    return f'<details class="license soft"><summary>{escape(summary)}</summary>{paragraphs}</details>\n'
