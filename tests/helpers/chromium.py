"""A headless Chromium that a test drives, by the DevTools protocol over a pipe: no port is opened, no package needed.

Messages are JSON, each ended by a NUL; Chromium reads them from its file descriptor 3 and answers on 4.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.processes import kill_tree

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
]
_DESCRIPTORS = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # in a shell: Popen may use 3 and 4 itself


class Tab:
    """One tab. What goes wrong on its page, and what is said on its console, is kept in `complaints`."""

    def __init__(self, asks: int, answers: int) -> None:
        self.complaints: list[str] = []
        self._asks, self._answers = asks, answers
        self._received = b""
        self._number = 0
        self._session: dict[str, str] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._asks, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
        raise AssertionError(f"Chromium does not answer {method}")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> Any:
        """Wait until a JavaScript expression is true; gives its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, f"{condition} was never true; {self.complaints}"
            time.sleep(0.03)
        return value

    def choose_file(self, selector: str, file: Path) -> None:
        """Choose a file in an input, as a user does in its dialog."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def drop_file(self, selector: str, file: Path) -> None:
        """Drag a file in from outside, and drop it on an element."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        data = {"items": [], "files": [str(file.resolve())], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._answers, 1 << 20) if ready else b""
            assert part, "Chromium has ended, or does not answer"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        content: dict[str, Any] = json.loads(message)
        self._keep_complaints(content.get("method"), content.get("params", {}))
        return content

    def _keep_complaints(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"{event['type']}: {event['args']}")
        elif method == "Log.entryAdded":
            self.complaints.append(f"{event['entry']['level']}: {event['entry']['text']}")


@contextlib.contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    """Start Chromium with a tab; both are gone when the block ends.

    Args:
        profile: A folder for what Chromium remembers.
    """
    assert BROWSER is not None, "there is no Chromium here"
    its_in, asks = os.pipe()
    answers, its_out = os.pipe()
    command = ["bash", "-c", _DESCRIPTORS, "bash", str(its_in), str(its_out)]
    process = subprocess.Popen(
        [*command, BROWSER, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(its_in, its_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        yield Tab(asks, answers)
    finally:
        kill_tree(process)
        os.close(asks)
        os.close(answers)
