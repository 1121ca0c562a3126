"""Chromium without a window, over its debugging pipe: what a page shows, and what it asks the network for."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """One page of Chromium.

    Attributes:
        requested: addresses that pages have asked for.
        complaints: what the browser has written to their consoles.
    """

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers = to, os.fdopen(answers, "rb")
        self._number, self._rest = 0, b""
        self.requested: list[str] = []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for part in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{part}.enable")

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Opens a file and waits until all of it is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", size)
        self._call("Page.navigate", {"url": path.as_uri()})
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        """What JavaScript comes to, in the page."""
        done = self._call("Runtime.evaluate", {"expression": script, "returnByValue": True})
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        given = {"captureBeyondViewport": True, "clip": size | {"scale": 1}}
        return base64.b64decode(self._call("Page.captureScreenshot", given)["data"])

    def close(self) -> None:
        """Asks the browser to end."""
        self._send("Browser.close", {})
        while self._answers.read(1 << 16):
            pass
        self._answers.close()
        os.close(self._to)

    def _send(self, method: str, given: dict[str, Any]) -> None:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")

    def _call(self, method: str, given: dict[str, Any] | None = None) -> Any:
        self._send(method, given or {})
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._answers.read1(1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        given = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(given["request"]["url"])
        if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(given))
        return message


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in an empty folder; skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium: install the Debian package chromium (make test-packages)")
    ours, theirs = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
    options += ["--remote-debugging-pipe", "--disable-background-networking", "--disable-dev-shm-usage"]
    # Bash, as other shells know file descriptors of one digit only.
    script = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            ["bash", "-c", script, program, *options], stdout=said, stderr=said, pass_fds=(ours[0], theirs[1])
        )
        os.close(ours[0])
        os.close(theirs[1])
        try:
            browser = Browser(ours[1], theirs[0])
            yield browser
            browser.close()
        finally:
            process.terminate()
            process.wait()
