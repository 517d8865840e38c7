"""A headless Chromium that tests look at pages with and click in, over its DevTools pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--window-size=1100,1400",
    "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"Enter": (13, "\r"), "Tab": (9, "")}


class Browser:
    """One tab. ``events`` holds what the page did: requests, exceptions, the console."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies, self._left, self._number = commands, replies, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._replies], [], [], 30)[0], "the browser does not answer"
            self._left += (piece := os.read(self._replies, 1 << 16))
            assert piece, "the browser has ended"
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """The expression's value in the page, as after a user's click."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """The expression's value as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"{expression}\n{self.js('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key where the focus is."""
        code, text = KEYS[key]
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **names)
            self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def picture(self, path: Path) -> None:
        """A screenshot of the whole page, for people."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def mistakes(self) -> list[dict[str, Any]]:
        """The page's exceptions and console errors so far."""
        kinds = [(event["method"], event["params"].get("type"), event) for event in self.events]
        console = ("Runtime.consoleAPICalled", "error")
        return [
            e for method, kind, e in kinds if "exception" in method or (method, kind) == console
        ]

    def hosts(self) -> set[str]:
        """The schemes and hosts that the page has asked for anything."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {
            "/".join(url.split("/")[:3]) for url in urls if not url.startswith(("data:", "blob:"))
        }


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Browser]:
    """Start a browser whose profile is in ``folder``; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(NAMES)} is installed")
    from_us, commands = os.pipe()
    replies, to_us = os.pipe()
    words = [program, *FLAGS, f"--user-data-dir={folder}", *flags]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *words],
        pass_fds=(from_us, to_us),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(from_us), os.close(to_us)
    try:
        browser = Browser(commands, replies)
        yield browser
        browser.call("Browser.close")
    finally:
        process.kill()
        process.wait()
        os.close(commands), os.close(replies)
