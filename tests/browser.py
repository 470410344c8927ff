"""A real browser for tests of the project's pages: headless Chromium, spoken to by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--remote-debugging-port=0")  # fmt: skip
KEY_CODES = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40}
START_S, ANSWER_S = 60, 30
ASKED_BY_THE_PAGE = "Network.requestWillBeSent"
COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")


class Tab:
    """A page in the browser, and all that it has told since it was opened."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser, and wait for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            said = self._said()
            if said.get("id") == number:
                assert "error" not in said, said
                return dict(said["result"])

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._socket.recv(timeout=ANSWER_S))
        if "method" in said:
            self.events.append(said)
        return said

    def show(self, page: Path | str, width: int, dark: bool, **media: str) -> None:
        """Load a file or an address as a window of this width shows it, in light or dark mode.

        Args:
            media: other media features, with ``_`` for ``-``.
        """
        url = page if isinstance(page, str) else page.as_uri()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = {"prefers_color_scheme": "dark" if dark else "light", **media}
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=named)
        self.events.clear()
        self.send("Page.navigate", url=url)
        while not self._has_loaded(url):
            self._said()

    def _has_loaded(self, url: str) -> bool:
        """Whether the load's end came behind the beginning of this page, and not of the one before."""
        begun = [place for place, event in enumerate(self.events)
                 if event["method"] == "Page.frameNavigated" and event["params"]["frame"]["url"] == url]  # fmt: skip
        return bool(begun) and any(event["method"] == "Page.loadEventFired" for event in self.events[begun[0] :])

    def evaluate(self, script: str) -> Any:
        """The value of a script in the page; the page's own policy against scripts doesn't hold it back."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click into the middle of the first element of a selector."""
        middle = (
            "(part => { part.scrollIntoView({block: 'center'}); const r = part.getBoundingClientRect();"
            " return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })"
        )
        place = self.evaluate(f"{middle}(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def wait(self, script: str, seconds: float = ANSWER_S) -> None:
        """Wait until a script in the page is true."""
        until = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < until, f"not in {seconds} s: {script}"
            time.sleep(0.02)

    def write(self, text: str) -> None:
        """Put text where the focus is, as an input method does."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, control: bool = False) -> None:
        """Press and release a key of ``KEY_CODES``."""
        known = {"key": key, "code": key, "windowsVirtualKeyCode": KEY_CODES[key], "modifiers": 2 if control else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **known, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def picture(self, path: Path) -> None:
        """Write the whole page, as long as it is, as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == ASKED_BY_THE_PAGE]

    def complaints(self) -> list[dict[str, Any]]:
        """What stands in the console."""
        return [event for event in self.events if event["method"] in COMPLAINTS]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with a profile of its own that ends with the block; where there is none, the test is skipped loudly."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("SKIPPED LOUDLY: chromium is not installed, so no page was looked at in a browser")
    from websockets.sync.client import connect

    log = profile.with_suffix(".log")
    with log.open("wb") as sink:
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        try:
            with connect(_address(profile, process, log), proxy=None, max_size=None, compression=None) as socket:
                yield Tab(socket)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a browser and wait for all its processes: they write to the profile, which may be removed then."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    process.wait(START_S)
    psutil.wait_procs(family, START_S)


def _address(profile: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the browser listens, as it writes into its profile."""
    place = profile / "DevToolsActivePort"
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-2000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace")[-2000:])
