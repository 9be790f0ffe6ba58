"""A headless Chromium, asked through its DevTools protocol over a pipe: nothing but the browser itself is needed.

    graphopt  <- pipe ->  sh (the keeper)  starts  Chromium, and removes its folder when it has ended

Chromium ends by itself when the pipe closes, and a pipe closes when the process at its other end is gone, whatever it died of:
so neither a process nor a folder is left behind. Messages are JSON, each ended by a zero byte.
https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from graphopt.errors import MissingError, UsageError

NAME = "GRAPHOPT_BROWSER"
"""The environment variable that names the browser to use."""
_COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_APPLICATIONS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
INSTALL = (
    "Install Chromium (apt-get install --no-install-recommends chromium; brew install --cask chromium) "
    f"or name a browser with {NAME}=PATH."
)
_KEEPER = """
folder=$1; shift
HOME="$folder" TMPDIR="$folder" "$@" "--user-data-dir=$folder" 3<&0 4>&1 </dev/null >/dev/null
rm -rf "$folder" 2>/dev/null || { sleep 1; rm -rf "$folder"; }
"""
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",  # of the page's own drawing
    "--enable-unsafe-webgpu",  # WebGPU computes on the processor instead: the same answers on every machine
    "--use-webgpu-adapter=swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
)
_LONGEST = 60
"""Characters of the folder's path: the browser makes a socket below it, whose path may have 107 in all."""
SECONDS = "GRAPHOPT_PAGE_SECONDS"
"""The environment variable that says how long a page may take for one answer."""
_PAGE_SECONDS = 600.0
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_GLANCE_SECONDS = 0.5  # between two of which Python sees an interrupt that another thread was told of
_CONSOLE_LINES = 100_000


class PageError(Exception):
    """What the page threw, or that it is gone; ``fatal`` when it cannot be asked again."""

    def __init__(self, text: str, *, fatal: bool = False) -> None:
        super().__init__(text)
        self.fatal = fatal


def find() -> str | None:
    """The browser's command: the one that GRAPHOPT_BROWSER names, else the first that is installed; None when there is none."""
    if chosen := os.environ.get(NAME):
        return shutil.which(chosen)
    found = (shutil.which(command) for command in (*_COMMANDS, *_APPLICATIONS))
    return next((path for path in found if path is not None), None)


def patience() -> float:
    """How many seconds a page may take to load a model, or to run it.

    Raises:
        UsageError: GRAPHOPT_PAGE_SECONDS is no positive number.
    """
    text = os.environ.get(SECONDS, "")
    try:
        seconds = float(text or _PAGE_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{SECONDS} is {text!r}, which is no number of seconds", hint=f"Say {SECONDS}=600, or leave it away.")
    return seconds


class Browser:
    """A running browser.

    Raises:
        MissingError: None is installed, it does not start, or this system has no pipes that it could be asked through.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":
            raise MissingError("the browser is driven through POSIX pipes, which Windows does not have", hint="Use WSL.")
        command = find()
        if command is None:
            chosen = os.environ.get(NAME)
            why = f"{NAME} is {chosen!r}, which is no command" if chosen else "no Chromium is installed"
            raise MissingError(why, hint=INSTALL)
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._buffer = b""
        self._pages: dict[str, Page] = {}
        self._folder = _new_folder()
        with tempfile.TemporaryFile() as said:
            flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # which refuses to work for root
            self._process = subprocess.Popen(  # noqa: S603 - the command that the user has, or named
                ["/bin/sh", "-c", _KEEPER, "keeper", self._folder, command, *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C is for us
            )
            try:
                self.version = str(self.ask("Browser.getVersion", seconds=_START_SECONDS)["product"]).replace("/", " ")
            except PageError as error:
                self.close()
                why = _last_line(said) or str(error)
                raise MissingError(f"the browser does not start: {why}", where=command, hint=INSTALL) from None

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        assert self._process.stdin is not None
        return self._process.poll() is None and not self._process.stdin.closed

    def ask(
        self, method: str, session: str | None = None, seconds: float = _START_SECONDS, **parameters: Any
    ) -> dict[str, Any]:
        """Call a DevTools method and wait for its answer.

        Raises:
            PageError: The browser refused, has ended, or did not answer in time.
        """
        with self._lock:
            number = next(self._ids)
            message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\0")
                self._process.stdin.flush()
            except (OSError, ValueError):
                raise PageError("the browser has ended", fatal=True) from None
            until = time.monotonic() + seconds
            while True:
                answer = self._await(until)
                if answer.get("id") == number:
                    if "error" in answer:
                        raise PageError(answer["error"]["message"], fatal=True)
                    result: dict[str, Any] = answer["result"]
                    return result
                if "id" not in answer:
                    self._happened(answer, waiting=session)

    def open(self, address: str) -> Page:
        """Open a page and wait until it is loaded."""
        with self._lock:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            page = Page(self, target, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
            self._pages[page.session] = page
            for domain in ("Page", "Runtime", "Inspector"):
                self.ask(f"{domain}.enable", page.session)
            self.ask("Page.navigate", page.session, url=address)
            while not page.loaded:
                self._happened(self._await(time.monotonic() + _START_SECONDS), waiting=page.session)
            return page

    def forget(self, page: Page) -> None:
        """Close a page."""
        self._pages.pop(page.session, None)
        with suppress(PageError):
            self.ask("Target.closeTarget", targetId=page.target, seconds=_END_SECONDS)

    def renderers(self) -> list[int]:
        """Process numbers of all processes that run pages."""
        found = self.ask("SystemInfo.getProcessInfo")["processInfo"]
        return [process["id"] for process in found if process["type"] == "renderer"]

    def close(self) -> None:
        """End the browser and wait until its folder is gone."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)  # the keeper was killed too

    def _await(self, until: float) -> dict[str, Any]:
        """The next message.

        Who waits no longer, because it takes too long or is interrupted, ends the browser: a page that computes cannot be asked
        to stop, and those who close what they hold must not wait for it.
        """
        try:
            return self._receive(until)
        except BaseException:
            self.close()
            raise

    def _receive(self, until: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        parts = [self._buffer]
        while b"\0" not in parts[-1]:
            while not select.select([pipe], [], [], _GLANCE_SECONDS)[0]:
                if time.monotonic() > until:
                    raise PageError("it does not answer", fatal=True)
            more = os.read(pipe, 1 << 20)
            if not more:
                raise PageError("the browser has ended", fatal=True)
            parts.append(more)
        text, _, self._buffer = b"".join(parts).partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def _happened(self, event: dict[str, Any], waiting: str | None) -> None:
        page = self._pages.get(event.get("sessionId", ""))
        if page is None:
            return
        match event["method"]:
            case "Page.loadEventFired":
                page.loaded = True
            case "Runtime.consoleAPICalled":
                page.console.append(" ".join(str(each.get("value", "")) for each in event["params"]["args"]))
                del page.console[:-_CONSOLE_LINES]
            case "Inspector.targetCrashed":
                page.crashed = True
                if page.session == waiting:
                    raise PageError("the page crashed; it may have run out of memory", fatal=True)


class Page:
    """A page of the browser. ``console`` holds what it wrote there, line by line."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser = browser
        self.target = target
        self.session = session
        self.loaded = False
        self.crashed = False
        self.console: list[str] = []

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript, awaited when it is a promise.

        Raises:
            PageError: It threw, the page is gone, or it takes longer than ``patience()``.
        """
        if self.crashed:
            raise PageError("the page crashed", fatal=True)
        how = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        seconds, begun = patience(), time.monotonic()
        try:
            answer = self.browser.ask("Runtime.evaluate", self.session, seconds, **how)
        except PageError as error:
            if time.monotonic() - begun < seconds:
                raise
            what = f"the page did not answer within {seconds:g} s, and was ended ({SECONDS}=N gives it N)"
            raise PageError(what, fatal=True) from error
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            thrown = details.get("exception", {})
            text = thrown.get("description") or thrown.get("value") or details["text"]
            raise PageError(str(text).split("\n    at ")[0])
        return answer["result"].get("value")

    def call(self, module: str, function: str, *arguments: Any) -> Any:
        """Call a function that a module exports, with arguments that JSON can hold."""
        given = ", ".join(json.dumps(argument) for argument in arguments)
        return self.evaluate(f"import({json.dumps(module)}).then((module) => module.{function}({given}))")

    def close(self) -> None:
        """Close it."""
        self.browser.forget(self)


def _new_folder() -> str:
    """A folder of its own for a browser, with a path that is short enough for it."""
    prefix = "graphopt-browser-"
    usual = Path(tempfile.gettempdir(), f"{prefix}12345678")
    return tempfile.mkdtemp(prefix=prefix, dir=None if len(str(usual)) <= _LONGEST else "/tmp")  # noqa: S108 - made by mkdtemp


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
