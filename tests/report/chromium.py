"""Headless Chromium through its DevTools protocol: no driver beside the browser itself.

https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

START_S = 60.0

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--remote-debugging-port=0",
    "--remote-allow-origins=*", "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip


def executable() -> str | None:
    """Chromium on this machine, or None; `make browser` installs it."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@dataclass
class Tab:
    """One tab: what it is told, and what it has told since.

    Attributes:
        events: of the protocol, oldest first.
    """

    socket: websocket.WebSocket
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _sent: int = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        self.socket.send(
            json.dumps({**message, **({"sessionId": self.session} if self.session else {})})
        )
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def open(self, url: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a page at a width, in the light or the dark."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip

    def run(self, script: str) -> Any:
        """Value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def type(self, words: str) -> None:
        self.call("Input.insertText", text=words)

    def screenshot(self, *, top: float = 0, height: float | None = None) -> bytes:
        """PNG of the window, or of a part of the page as wide as the window."""
        clip = {}
        if height is not None:
            width = self.run("innerWidth")
            clip = {"clip": {"x": 0, "y": top, "width": width, "height": height, "scale": 1}}
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=height is not None, **clip
        )
        return base64.b64decode(found["data"])

    @property
    def complaints(self) -> list[Any]:
        """What went to the console or was thrown."""
        wanted = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in wanted]

    @property
    def requests(self) -> list[str]:
        """Addresses of everything that was asked for, the page itself left out."""
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent]
        return [url for url in urls[1:] if not url.startswith("data:")]


@contextmanager
def chromium() -> Iterator[Tab]:
    """A fresh browser with one empty tab; gone afterwards, with everything it wrote."""
    found = executable()
    assert found is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [found, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            socket = websocket.create_connection(_address(process), timeout=60)
            browser = Tab(socket)
            targets = browser.call("Target.getTargets")["targetInfos"]
            target = next(t["targetId"] for t in targets if t["type"] == "page")
            attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
            yield Tab(socket, attached["sessionId"])
            socket.close()
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes]) -> str:
    """Where the browser listens: it says so on its standard error."""
    assert process.stderr is not None
    said, end = [], time.monotonic() + START_S
    while time.monotonic() < end:
        line = process.stderr.readline().decode(errors="replace")
        if line.startswith("DevTools listening on "):
            return line.removeprefix("DevTools listening on ").strip()
        if not line and process.poll() is not None:
            break
        said.append(line)
    raise RuntimeError("Chromium did not start: " + "".join(said[-5:]))


def file_url(path: Path) -> str:
    return path.absolute().as_uri()
