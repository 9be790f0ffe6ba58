"""What the page fetches: files, and tensors on their way; served to this machine only, under a path that cannot be guessed.

Every answer carries the headers that make a page *cross-origin isolated*: without them a browser gives it no shared memory, and
so no threads, and coarser clocks.
"""

from __future__ import annotations

import http.server
import itertools
import logging
import mimetypes
import secrets
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_LOG = logging.getLogger(__name__)
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "cross-origin",  # packaged pages, delivered by another server, post here
}
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}


class Server:
    """A server in a thread of its own, which ends with the process. ``address`` ends with a slash."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}
        self._values: dict[str, bytes] = {}
        self._count = itertools.count()
        token = secrets.token_urlsafe(16)
        self._server = _Quiet(("127.0.0.1", 0), partial(_Handler, self, f"/{token}/"))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="graphopt-web", daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/{token}/"

    def share(self, path: Path) -> str:
        """The address of a file, or (with a slash at its end) of a folder, until it is withdrawn."""
        name = f"f{next(self._count)}"
        self._paths[name] = path
        return f"{self.address}{name}/" if path.is_dir() else f"{self.address}{name}/{quote(path.name)}"

    def withdraw(self, address: str) -> None:
        """Share it no longer."""
        self._paths.pop(address.removeprefix(self.address).split("/")[0], None)

    def put(self, data: bytes = b"") -> str:
        """The address of bytes, which may be replaced by posting to it, until they are taken."""
        name = f"v{next(self._count)}"
        self._values[name] = data
        return self.address + name

    def take(self, address: str) -> bytes:
        """The bytes at an address, which is free afterwards."""
        return self._values.pop(address.removeprefix(self.address))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def file(self, name: str) -> Path | None:
        """The shared file that a path names; None when there is none, or it is not inside what is shared."""
        first, _, rest = name.partition("/")
        shared = self._paths.get(first)
        if shared is None:
            return None
        if shared.is_dir():
            found = (shared / rest).resolve()
            return found if found.is_file() and found.is_relative_to(shared.resolve()) else None
        return shared if rest == shared.name else None

    def value(self, name: str) -> bytes | None:
        """The bytes of a name."""
        return self._values.get(name)

    def receive(self, name: str, data: bytes) -> bool:
        """Replace the bytes of a name; False when nobody waits for them."""
        if name not in self._values:
            return False
        self._values[name] = data
        return True


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a request that fails, as when the command is interrupted: the page says what it lacks."""
        del request, client_address
        _LOG.debug("a request of the page failed", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def __init__(self, server: Server, prefix: str, *request: Any) -> None:
        self._shared = server
        self._prefix = prefix
        super().__init__(*request)

    def do_GET(self) -> None:
        name = self._name()
        if name is not None and (data := self._shared.value(name)) is not None:
            self._answer(200, len(data), "application/octet-stream", kept=False)
            self.wfile.write(data)
        elif name is not None and (path := self._shared.file(name)) is not None:
            kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            with path.open("rb") as file:
                self._answer(200, path.stat().st_size, kind, kept=True)
                shutil.copyfileobj(file, self.wfile)
        else:
            self._answer(404, 0, "text/plain", kept=False)

    def do_POST(self) -> None:
        name, size = self._name(), int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(size)
        accepted = name is not None and self._shared.receive(name, data)
        self._answer(204 if accepted else 404, 0, "text/plain", kept=False)

    def _name(self) -> str | None:
        path = unquote(urlsplit(self.path).path)
        return path.removeprefix(self._prefix) if path.startswith(self._prefix) else None

    def _answer(self, status: int, size: int, kind: str, *, kept: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "max-age=86400" if kept else "no-store")
        for header, value in ISOLATION.items():
            self.send_header(header, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""
