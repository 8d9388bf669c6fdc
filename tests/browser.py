"""Drive a headless Chromium: what the viewer and the report do in a browser is tested in one."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
from matplotlib import image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Browser:
    """Headless Chromium, spoken to over two pipes in the DevTools protocol."""

    FLAGS = ("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-sync")
    WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

    def __init__(self, profile):
        there, to_browser = os.pipe()
        from_browser, back = os.pipe()
        arguments = [
            *self.FLAGS,
            *self.WEBGL,
            f"--user-data-dir={profile}",
            "--window-size=1200,800",
            "--remote-debugging-pipe",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{there} 4>&{back}', CHROMIUM, *arguments, "about:blank"],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self.sink, self.source = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self.events, self.count, self.session = [], 0, None

    def __enter__(self):
        (page,) = (t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.sink.close()
        self.source.close()

    def send(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.sink.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(b"".join(iter(lambda: self.source.read(1), b"\0")))
            if answer.get("id") == self.count:
                return answer["result"]
            self.events.append(answer)

    def value(self, expression):
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression):
        deadline = time.monotonic() + 90
        while not self.value(expression):
            assert time.monotonic() < deadline, f"{expression}: {self.value('document.body.innerText')}"
            time.sleep(0.05)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def map_pixels(self):
        """Count pixels of the stage that have the map's colours above its threshold: more red than green."""
        box = self.value("(b => ({x: b.x, y: b.y, width: b.width, height: b.height}))(canvas.getBoundingClientRect())")
        picture = self.send("Page.captureScreenshot", format="png", clip={**box, "scale": 1})["data"]
        pixels = image.imread(io.BytesIO(base64.b64decode(picture)))
        return int(np.count_nonzero(pixels[..., 0] - pixels[..., 1] > 0.15))


@pytest.fixture
def browser(tmp_path):
    """Open headless Chromium; skips if there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path / "profile") as opened:
        yield opened
