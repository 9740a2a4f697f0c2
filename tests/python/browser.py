"""A headless Chromium that opens a page, driven by the WebDriver protocol of chromedriver.

Source: https://www.w3.org/TR/webdriver2/
"""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
_PATIENCE_S = 120


class Tab:
    """An open page, asked by scripts that the page's own policy does not concern."""

    def __init__(self, port, session):
        self._port, self._path = port, f"/session/{session}"

    def run(self, script, *arguments):
        """Return what a function body in JavaScript returns."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def open(self, path):
        """Open a report page and wait until all figures are drawn; return how many these are."""
        self._ask("/url", {"url": path.resolve().as_uri()})
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            if drawn := self.run("return document.documentElement.dataset.drawn"):
                return int(drawn)
            time.sleep(0.05)
        raise TimeoutError(f"{path}: not drawn; the console says {self.console()}")

    def console(self):
        """Return what the console has been told since the last call: errors, and all else."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def protocol(self, command, **parameters):
        """Send a command of the browser's own protocol."""
        return self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, path, body):
        return _answer(self._port, "POST", self._path + path, body)


@contextmanager
def opened(width, height, *, dark=False, touch=False):
    """Give an empty tab of so many pixels, or skip the test where there is no browser."""
    driver = shutil.which("chromedriver")
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if driver is None or browser is None:
        pytest.skip(
            "needs Chromium and chromedriver (Debian: chromium-headless-shell, chromium-driver)"
        )
    server = subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        port = next(
            int(line.rsplit(" ", 1)[1].rstrip(".\n"))
            for line in server.stdout
            if "successfully on port" in line
        )
        options = {
            "binary": browser,
            "args": [*_ARGUMENTS, *(["--blink-settings=preferredColorScheme=0"] if dark else [])],
            "mobileEmulation": {
                "deviceMetrics": {
                    "width": width,
                    "height": height,
                    "pixelRatio": 1,
                    "touch": touch,
                    "mobile": touch,
                }
            },
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        body = {"capabilities": {"alwaysMatch": wanted}}
        session = _answer(port, "POST", "/session", body)["sessionId"]
        try:
            yield Tab(port, session)
        finally:
            _answer(port, "DELETE", f"/session/{session}")
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with whatever of the browser is left
        server.wait(30)
        server.stdout.close()


def _answer(port, method, path, body=None):
    connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        value = json.loads(connection.getresponse().read())["value"]
    finally:
        connection.close()
    if isinstance(value, dict) and "error" in value:
        raise AssertionError(f"{value['error']}: {value['message']}")
    return value
