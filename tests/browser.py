"""A headless Chromium in which tests open and click pages, controlled by its DevTools pipe."""

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
    """One tab. ``events`` lists what the page did: requests, exceptions, console messages."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies, self._buffer, self._number = commands, replies, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result. Keep the events that arrive meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._replies], [], [], 30)[0], "the browser does not answer"
            self._buffer += (chunk := os.read(self._replies, 1 << 16))
            assert chunk, "the browser has ended"
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """Evaluate the expression in the page, as after a user's click; return its value."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """Wait until the expression is true; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"{expression}\n{self.js('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key in the focused element."""
        code, text = KEYS[key]
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **names)
            self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def picture(self, path: Path) -> None:
        """Save a screenshot of the whole page, for a person to look at."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def mistakes(self) -> list[dict[str, Any]]:
        """Return the page's exceptions and console errors so far."""
        console_error = ("Runtime.consoleAPICalled", "error")
        return [event for event in self.events if "exception" in event["method"]
                or (event["method"], event["params"].get("type")) == console_error]  # fmt: skip

    def hosts(self) -> set[str]:
        """Return ``scheme://host`` of every address that the page requested."""
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
    """Start a browser with its profile in ``folder``; skip the test if no browser is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    browser_reads, commands = os.pipe()
    replies, browser_writes = os.pipe()
    command = [program, *FLAGS, f"--user-data-dir={folder}", *flags]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{browser_reads} 4>&{browser_writes}', "bash", *command],
        pass_fds=(browser_reads, browser_writes),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        browser = Browser(commands, replies)
        yield browser
        browser.call("Browser.close")
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(replies)
