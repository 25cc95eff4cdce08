"""Chromium without a window, driven by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_chromium = pytest.mark.skipif(
    PROGRAM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)


class Chromium:
    """A browser with one page.

    Attributes:
        events: what the page did: requests, lines of its console, violations of its policy.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # They read file 3 and write file 4.
        command = [
            PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--no-first-run", "--disable-extensions", "--disable-background-networking",
            "--disable-dev-shm-usage", f"--user-data-dir={self._folder.name}", "about:blank",
        ]  # fmt: skip
        shell = f"exec {' '.join(command)} 3<&{theirs_in} 4>&{theirs_out}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._session, self._left = 0, None, b""
        self.events = []
        (page,) = [
            one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.send(f"{domain}.enable")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def send(self, method, **parameters):
        """Asks the browser something; returns its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def _next(self):
        while b"\0" not in self._left:
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium ended"
            self._left += part
        line, _, self._left = self._left.partition(b"\0")
        return json.loads(line)

    def evaluate(self, code):
        """The value of an expression in the page."""
        answer = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, code, seconds=20):
        """Waits until an expression is true; returns it."""
        end = time.monotonic() + seconds
        while not (found := self.evaluate(code)):
            text = self.evaluate("document.body ? document.body.innerText : ''")
            assert time.monotonic() < end, f"{code} stays {found!r}: {text}"
            time.sleep(0.05)
        return found

    def open(self, address):
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def give(self, selector, file):
        """Gives a file to an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, key, code):
        """Presses a key, as somebody at the keyboard does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def screenshot(self, width=1100, height=900):
        """The page as a PNG."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def of(self, method):
        """The events of one kind so far."""
        self.evaluate("1")  # takes what came meanwhile
        return [one["params"] for one in self.events if one["method"] == method]


@pytest.fixture(scope="module")
def chromium():
    found = Chromium()
    yield found
    found.close()
