"""Debian's Chromium for tests that look at a page."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """Headless Chromium, spoken to in its DevTools protocol over two pipes: no driver, no port."""

    def __init__(self, profile):
        commands, self.to = os.pipe()
        self.from_, events = os.pipe()
        arguments = (
            "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
            "--disable-background-networking --disable-component-update --disable-sync "
            f"--disable-dev-shm-usage --remote-debugging-pipe --user-data-dir={profile} about:blank"
        )
        # Chromium reads its commands from descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{events} 2>/dev/null'
        self.process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *arguments.split()],
            pass_fds=(commands, events),
            start_new_session=True,
        )
        os.close(commands)
        os.close(events)
        self.buffer, self.number, self.events, self.session = b"", 0, [], None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def read(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.from_, 1 << 16)
            assert chunk, "chromium ended"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def __call__(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (reply := self.read()).get("id") != self.number:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, path, width, height, scheme):
        self.events.clear()
        mobile = width < 600
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def ask(self, expression):
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self):
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event for event in self.events if event.get("method") in bad]

    def fetched(self):
        requests = [
            e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in requests if not url.startswith("data:")]

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.to)
        os.close(self.from_)

    def screenshot(self, whole=False):
        """PNG bytes of what is in sight, or of the whole page."""
        return base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
