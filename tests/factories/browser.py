"""Drive a headless Chromium over its DevTools pipe: open, read, mouse, keys, screenshots.

Browsers speak this protocol themselves, so a test needs no driver beside the browser.
"""

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

KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Escape": 27, "PageUp": 33, "Tab": 9}


class Browser:
    """One tab. Every call waits for the browser's answer; `errors` holds exceptions of the page's scripts."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.errors: list[str] = []
        self._number, self._rest = 0, b""
        self._session = ""
        self._window = (0, 0, False)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one protocol command and return its result. Raises RuntimeError if the browser fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            answer = self._receive()
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, timeout_s: float = 60.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        end = time.monotonic() + timeout_s
        while b"\0" not in self._rest:
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            if not part:
                raise RuntimeError("the browser is gone")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def open(
        self, page: Path, width: int = 1400, height: int = 1000, dark: bool = False, touch: bool = False
    ) -> None:
        """Open a file in a window of this size and wait until its scripts are ready."""
        self.open_url(page.as_uri(), width, height, dark, touch)

    def open_url(
        self, url: str, width: int = 1400, height: int = 1000, dark: bool = False, touch: bool = False
    ) -> None:
        """`open` for an address."""
        if self._window != (width, height, touch):
            self.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=touch,
            )
            self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
            self._window = (width, height, touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def read(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", script))
        return answer["result"].get("value")

    def wait(self, script: str, timeout_s: float = 30.0) -> None:
        """Wait until a JavaScript expression is true. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while not self.read(f"Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.05)

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll to the first such element and return its centre in the window, in px."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.read(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y = self.read(
            "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
            f"({element}.getBoundingClientRect())"
        )
        return float(x), float(y)

    def click(self, selector: str) -> None:
        self.drag(selector, 0)

    def drag(self, selector: str, by_px: float) -> None:
        """Press the mouse on the element's centre, move it sideways in steps, and release it."""
        x, y = self.middle(selector)
        self._mouse("mouseMoved", x, y, 0)
        self._mouse("mousePressed", x, y, 1)
        for step in range(1, 6 if by_px else 0):
            self._mouse("mouseMoved", x + by_px * step / 5, y, 1)
        self._mouse("mouseReleased", x + by_px, y, 0)

    def swipe(self, selector: str, by_px: float) -> None:
        """Drag by touch."""
        x, y = self.middle(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        for step in range(1, 6):
            self.call(
                "Input.dispatchTouchEvent",
                type="touchMove",
                touchPoints=[{"x": x + by_px * step / 5, "y": y}],
            )
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, times: int = 1) -> None:
        """Press a key in the focused element."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEY_CODES[key]}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="rawKeyDown", **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _mouse(self, kind: str, x: float, y: float, buttons: int) -> None:
        button = "left" if buttons or kind == "mouseReleased" else "none"
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1
        )


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile; the test is skipped if there is none on PATH."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium on PATH")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        "--mute-audio",
        "--autoplay-policy=no-user-gesture-required",
    ]
    flags += ["--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # the browser reads commands from descriptor 3 and answers on 4
    command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh", program, *flags]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield Browser(process)
        finally:
            process.kill()
