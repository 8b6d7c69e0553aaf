"""A Firefox without a driver program: W3C WebDriver BiDi, spoken over its own socket.

Playwright drives only a Firefox that it has patched; the one of the distribution listens to BiDi
when it is started with a port for it. Headless it draws no WebGL, so it gets a screen of Xvfb.
"""

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

FIREFOX = os.environ.get("FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")
SETTINGS = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "media.autoplay.default": 0,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.proxy.type": 0,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}
"""A quiet profile: nothing is asked, nothing is fetched from outside."""


def missing() -> str:
    """Why there can be no Firefox here, or nothing."""
    if FIREFOX is None:
        return "no Firefox here"
    return "" if shutil.which("Xvfb") else "no Xvfb here, without which Firefox draws no WebGL"


class BidiError(RuntimeError):
    """Firefox has refused a command, or a script has thrown."""


class Firefox:
    """Firefox with one page, on a screen of its own.

    Args:
        folder: for its profile and its log.
    """

    def __init__(self, folder: Path) -> None:
        self.complaints: list[str] = []
        """Errors of scripts and of the console, in the order in which they came."""
        self.requests: list[str] = []
        """Addresses that were asked for."""
        profile = folder / "profile"
        profile.mkdir()
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in SETTINGS.items()]
        (profile / "user.js").write_text("\n".join(lines))
        self._sent = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            with (folder / "firefox.log").open("w") as log:
                surroundings = os.environ | {"HOME": str(folder), "DISPLAY": self._screen(log)}
                self._start(
                    [str(FIREFOX), "--no-remote", "--profile", str(profile)]
                    + ["--remote-debugging-port", "0"],
                    log,
                    env=surroundings,
                )
            self._socket = self._connected(profile / "WebDriverBiDiServer.json", folder)
            self.call("session.new", capabilities={})
            events = ["log.entryAdded", "network.beforeRequestSent"]
            self.call("session.subscribe", events=events)
            self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]
        except BaseException:
            self._end()
            raise

    def _start(self, command: list[str], log: IO[str], **options: Any) -> None:
        started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
        self._processes.append(started)

    def _screen(self, log: IO[str]) -> str:
        """The display of a new Xvfb, which says its number when it is ready."""
        told, tell = os.pipe()
        command = ["Xvfb", "-displayfd", str(tell), "-screen", "0", "1920x1200x24"]
        self._start([*command, "-nolisten", "tcp"], log, pass_fds=[tell])
        os.close(tell)
        with os.fdopen(told) as said:
            return f":{said.readline().strip()}"

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _connected(self, address: Path, folder: Path) -> ClientConnection:
        """The socket, once Firefox has written where it listens."""
        for _ in range(600):
            if self._processes[-1].poll() is not None:
                raise BidiError((folder / "firefox.log").read_text()[-2000:])
            try:
                at = json.loads(address.read_text())
                url = f"ws://{at['ws_host']}:{at['ws_port']}/session"
                return connect(url, max_size=None, proxy=None, ping_interval=None)
            except (OSError, ValueError, KeyError):
                time.sleep(0.1)
        raise BidiError("Firefox never said where it listens")

    def close(self) -> None:
        with suppress(BidiError, ConnectionClosed, OSError):
            self.call("browser.close")
            self._socket.close()
            with suppress(subprocess.TimeoutExpired):
                self._processes[-1].wait(10)
        self._end()

    # ---- the protocol ------------------------------------------------------------------------

    def call(self, method: str, seconds: float = 120, **params: Any) -> dict[str, Any]:
        """Send a command; returns its result. What happens meanwhile is noted."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        end = time.monotonic() + seconds
        while True:
            try:
                message = json.loads(self._socket.recv(max(0.1, end - time.monotonic())))
            except TimeoutError:
                raise BidiError(f"{method}: no answer in {seconds} s") from None
            if message.get("type") == "event":
                self._note(message["method"], message["params"])
            elif message.get("id") == self._sent:
                if message["type"] == "error":
                    raise BidiError(f"{method}: {message['error']}, {message['message']}")
                return message["result"]

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "network.beforeRequestSent":
            self.requests.append(params["request"]["url"])
        elif params.get("level") == "error":
            self.complaints.append(f"{params.get('type')}: {params.get('text')}")

    # ---- what a person does ------------------------------------------------------------------

    def size(self, width: int, height: int) -> None:
        """Of the page in CSS pixels."""
        viewport = {"width": width, "height": height}
        self.call("browsingContext.setViewport", context=self.context, viewport=viewport)

    def go(self, url: str) -> None:
        self.call("browsingContext.navigate", context=self.context, url=url, wait="interactive")

    def look(self, script: str) -> Any:
        """The value of an expression on the page, which JSON can hold."""
        answer = self.call(
            "script.evaluate",
            expression=f"JSON.stringify({script}) ?? 'null'",
            target={"context": self.context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise BidiError(f"{script}: {answer['exceptionDetails']['text']}")
        return json.loads(answer["result"]["value"])

    def until(self, condition: str, seconds: float = 240) -> None:
        """Wait until an expression on the page is true; what is not there yet makes it false."""
        end = time.monotonic() + seconds
        asked = f"(() => {{ try {{ return !!({condition}); }} catch {{ return false; }} }})()"
        while not self.look(asked):
            if time.monotonic() > end:
                raise BidiError(f"never: {condition}")
            time.sleep(0.1)

    def press(self, *keys: str) -> None:
        """Keys, one after the other, with nothing between them."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": strokes})

    def _act(self, source: dict[str, Any]) -> None:
        self.call("input.performActions", context=self.context, actions=[source])
