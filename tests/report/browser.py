"""A small driver of headless Chromium over the DevTools protocol's pipe, for the tests of the page."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser's path, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium. Collects console messages, exceptions and requests.

    Attributes:
        problems: console errors and warnings, exceptions, policy violations, failed loads.
        requests: addresses that were asked for.
        dialogs: messages of alert() and the like: a sign that injected code ran.
    """

    def __init__(self) -> None:
        binary = find_chromium()
        if binary is None:
            raise FileNotFoundError("chromium is not installed")
        self._profile = tempfile.mkdtemp(prefix="longctx-chromium-")
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        script = 'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"'
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                script,
                binary,
                *FLAGS,
                f"--user-data-dir={self._profile}",
                "about:blank",
            ],
            pass_fds=(to_child, from_child),
            env={**os.environ, "IN": str(to_child), "OUT": str(from_child)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._next, self._session = b"", 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and remove its profile."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._session = None
            self.call("Browser.close", timeout_s=5)
        for descriptor in (self._write, self._read):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    # -- the protocol -----------------------------------------------------------------------------

    def call(self, method: str, timeout_s: float = 60.0, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its result."""
        self._next += 1
        number = self._next
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError("the browser did not answer in time")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("the browser closed its pipe")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        name, params = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif name == "Runtime.consoleAPICalled" and params["type"] in {
            "error",
            "warning",
            "assert",
        }:
            self.problems.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif name == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.problems.append(params["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._next += 1
            message = {
                "id": self._next, "method": "Page.handleJavaScriptDialog",
                "params": {"accept": True}, "sessionId": self._session,
            }  # fmt: skip
            os.write(self._write, json.dumps(message).encode() + b"\0")

    # -- what tests do ----------------------------------------------------------------------------

    def open(self, page: Path, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until its charts are drawn."""
        self.problems, self.requests, self.dialogs = [], [], []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.theme(dark)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.documentElement?.dataset.drawn !== undefined")

    def theme(self, dark: bool) -> None:
        """Prefer the dark or the light theme."""
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:600])
        return result["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 30.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.js(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}; problems: {self.problems}")
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait for two frames, so that what was asked for is drawn."""
        self.js("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))")

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        """A mouse event in page coordinates of the viewport: moved, pressed, released."""
        self.call(
            "Input.dispatchMouseEvent", type=f"mouse{kind.capitalize()}", x=x, y=y, buttons=buttons,
            button="left" if kind != "moved" else "none", clickCount=0 if kind == "moved" else 1,
        )  # fmt: skip

    def box(self, selector: str) -> dict[str, float]:
        """x, y, width, height of the first element that matches, in the viewport."""
        return self.js(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            "return {x: r.x, y: r.y, width: r.width, height: r.height}; })()"
        )

    def screenshot(self, path: Path | None = None, full: bool = True) -> bytes:
        """A PNG of the whole page, or of the viewport."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        png = base64.b64decode(data)
        if path is not None:
            path.write_bytes(png)
        return png

    def pixels(self, selector: str) -> str:
        """A digest of the pixels of the first canvas below `selector`; `blank` if nothing is drawn."""
        return self.js(
            f"(() => {{ const c = document.querySelector({selector!r} + ' canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let h = 2166136261, any = 0; for (let i = 0; i < d.length; i++)"
            " { h = Math.imul(h ^ d[i], 16777619); any |= d[i]; }"
            "return any ? c.width + 'x' + c.height + ':' + (h >>> 0) : 'blank'; })()"
        )
