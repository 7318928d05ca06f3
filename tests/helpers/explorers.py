"""Explorers that are served on a port of this machine while a test asks them, as their page does."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ali_dist.config import StorageConfig
from ali_dist.exploration.explorer import Explorer
from ali_dist.exploration.page import build_page
from ali_dist.exploration.pool import ImagePool, read_pool
from ali_dist.exploration.server import ExplorerServer
from ali_dist.exploration.web_runtime import FILES, PACKAGE
from ali_dist.inference.samples import open_samples_for
from ali_dist.inference.trained_model import TrainedModel
from tests.helpers.chromium import Tab


def pool_of(model: TrainedModel, split: str = "train", count: int = 50) -> ImagePool:
    """Some images of a split of the run's own data."""
    samples = open_samples_for(model.run, None, [split], StorageConfig())
    return read_pool(model.run, samples, count, device=torch.device("cpu"))


class Client:
    """Asks a server as the page does."""

    def __init__(self, server: ExplorerServer) -> None:
        self.server = server

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask, with these headers alone beside those that HTTP asks for."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, path: str, content: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Ask with the token; bytes are sent as they are, and anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        status, _, answer = self.request("POST", path, body, {"X-Ali-Token": self.server.token, **(headers or {})})
        return status, json.loads(answer)


@contextmanager
def serving(explorer: Explorer, problem: str = "") -> Iterator[Client]:
    """Serve an explorer within the block."""
    with ExplorerServer(explorer, build_page(explorer, problem)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


def write_runtime(folder: Path) -> Path:
    """A package with the files of onnxruntime-web that a page carries; what they hold computes nothing."""
    (folder / "dist").mkdir(parents=True)
    about = {"name": PACKAGE, "version": "1.2.3", "license": "MIT"}
    (folder / "package.json").write_text(json.dumps(about))
    for path in FILES.values():
        (folder / path).write_text(f"// stands for {path}")
    return folder


def source(name: str) -> str:
    """The script that gives the `data:` url of a picture of the page."""
    return f"document.getElementById('{name}').src"


def drag_slider(tab: Tab, selector: str, value: float) -> None:
    """Set a slider of the page, as a person does who drags it."""
    tab.run(
        f"(() => {{ const slider = document.querySelector({selector!r}); slider.value = {value};"
        " slider.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def shown_after(tab: Tab, name: str, before: str) -> str:
    """Wait for another picture than the one before; gives its `data:` url."""
    return tab.wait_for(f"{source(name)} != {before!r} && {source(name)}")
