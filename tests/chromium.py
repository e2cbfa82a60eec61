"""Chromium without a window, driven over its DevTools pipe with the standard library alone."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LIMIT = 600.0
"""Seconds after which a browser that does not answer becomes a failure."""

INSTALL = (
    "needs Chromium or Chrome on the PATH, or its file in MONAI_SMIA_CHROMIUM (Debian, Ubuntu: apt-get install "
    "--no-install-recommends chromium)"
)


def chromium() -> str | None:
    """The browser's file, where there is one."""
    named = os.environ.get("MONAI_SMIA_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One browser with one page.

    Args:
        binary: the browser's file.
        width, height: of the window, in pixels.
        dark: whether the page is told that dark colours are preferred.

    Attributes:
        problems: errors of scripts, of the console and of the page's policy so far.
        requests: addresses that the page asked for.
    """

    def __init__(self, binary: str, *, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._unread = b""
        self._session: str | None = None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # The browser reads commands from descriptor 3 and writes answers to 4; ours are moved out of their way.
        made = [*os.pipe(), *os.pipe()]
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in made]
        for end in made:
            os.close(end)
        theirs_in, self._out, self._in, theirs_out = pipes

        def place() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [binary, *options, f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,
            pass_fds=(3, 4),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def open(self, address: str, ready: str) -> None:
        """Load a page and wait until the expression `ready` is true in it."""
        self._call("Page.navigate", url=address)
        deadline = time.monotonic() + LIMIT
        while not self.ask(ready):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{ready} stayed false; problems: {self.problems}")
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript; a promise is waited for."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """One key, such as ``ArrowUp``, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def wheel(self, x: float, y: float, down: float) -> None:
        """Turn the wheel over a place of the window."""
        self._call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=down)

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        kind = event.get("method")
        if kind == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(details["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(details["args"]))
        elif kind == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.problems.append(details["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._in], [], [], LIMIT)[0]:
                raise TimeoutError(f"the browser did not answer within {LIMIT:g} s")
            part = os.read(self._in, 2**16)
            if not part:
                raise ConnectionError(f"the browser ended with status {self._process.poll()}")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer
