"""A small web server for one person: loopback only, with a token, and limited to the content of the catalogue.

Only ratings of findings can be written; they are stored in ``ratings.tsv`` of the output folder.

Every path begins with a random token, ``http://127.0.0.1:PORT/TOKEN/``, so that there is no cookie that another server
of this machine could receive. The browser is sent to ``/open/NONCE``, which works once: the command line of a browser
can be read by all users of a machine.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from maediff.errors import MAEDiffError, OutputError
from maediff.evaluation.choice import Choice
from maediff.viewer.catalogue import KINDS, Catalogue

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # a page that rebinds its name to this address sends its own
_STATIC = {
    "": ("index.html", "text/html; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "niivue.umd.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
    "niivue.LICENSE.txt": ("niivue.LICENSE.txt", "text/plain; charset=utf-8"),
}
_DETAILS = re.compile(r"cases/(\d{1,7})\.json")
_VOLUME = re.compile(rf"cases/(\d{{1,7}})/({'|'.join(KINDS)})\.nii\.gz")
_RATINGS = "ratings"
_MAX_CONTENT = 16_384  # bytes of a rating
_JSON, _GZIP, _TEXT = "application/json", "application/gzip", "text/plain; charset=utf-8"
_HEADERS = {
    # data: holds the fonts of NiiVue; nothing is ever loaded from another host
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Answer:
    """Response to the browser."""

    status: HTTPStatus
    content: bytes
    kind: str = _TEXT
    location: str | None = None


def open_viewer(
    out_dir: str | Path,
    port: int = 0,
    *,
    reference: str | Path | None = None,
    reader: str = "",
    choice: Choice | None = None,
) -> ViewerServer:
    """Open a server for an output folder on 127.0.0.1; call ``serve_forever`` on the result.

    Args:
        out_dir: What ``maediff infer`` wrote.
        port: Port; 0 takes a free one.
        reference: Table or folder with the truth, shown as a layer.
        reader: Name under which findings are rated; the page asks for it if it is empty.
        choice: A threshold that a person chose; masks and findings follow it.

    Raises:
        InputError: The folder holds no map, or the reference cannot be used.
        OutputError: The port is not available.
    """
    catalogue = Catalogue.of(out_dir, reference, choice)
    try:
        return ViewerServer(catalogue, port, reader)
    except (OSError, OverflowError) as error:
        raise OutputError(
            f"cannot serve on port {port} of {LOOPBACK}: {error}; leave --port out for a free one"
        ) from error


class ViewerServer(ThreadingHTTPServer):
    """Serves a catalogue.

    Attributes:
        catalogue: What is served.
        reader: Name under which findings are rated, unless the page says otherwise.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, catalogue: Catalogue, port: int = 0, reader: str = "") -> None:
        self.catalogue = catalogue
        self.reader = reader
        self._token = secrets.token_urlsafe(32)
        self._nonces: set[str] = set()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        """The address, token included."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/{self._token}/"

    def launch_url(self) -> str:
        """Make an address that leads to :attr:`url` once."""
        nonce = secrets.token_urlsafe(32)
        self._nonces.add(nonce)
        return f"http://{LOOPBACK}:{self.server_address[1]}/open/{nonce}"

    def answer(self, target: str) -> Answer:
        """Answer a request for a path.

        Args:
            target: Request target of a GET, as it was sent.
        """
        path, query = (urlsplit(target).path, urlsplit(target).query) if target.startswith("/") else ("", "")
        first, _, rest = path.removeprefix("/").partition("/")
        if first == "open" and self._spend(rest):
            return Answer(HTTPStatus.SEE_OTHER, b"", location=f"/{self._token}/")
        if not secrets.compare_digest(first.encode(), self._token.encode()):
            return _refusal(HTTPStatus.FORBIDDEN, "open the address that `maediff view` printed")
        try:
            return self._content(rest, query)
        except (MAEDiffError, OSError) as error:
            log.debug("not served: %s", error)
            return _refusal(HTTPStatus.NOT_FOUND, "there is nothing to see at this address")

    def _spend(self, nonce: str) -> bool:
        try:
            self._nonces.remove(nonce)
        except KeyError:
            return False
        return True

    def store(self, target: str, content: bytes) -> Answer:
        """Store a rating that the page sent.

        Args:
            target: Request target of a POST, as it was sent.
            content: JSON object with ``number``, ``finding``, ``reader``, ``rating`` and ``comment``.
        """
        first, _, rest = target.removeprefix("/").partition("/")
        if not secrets.compare_digest(first.encode(), self._token.encode()):
            return _refusal(HTTPStatus.FORBIDDEN, "open the address that `maediff view` printed")
        if rest != _RATINGS:
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "nothing can be written here")
        try:
            given = json.loads(content)
            texts = [str(given.get(name, "")) for name in ("reader", "rating", "comment")]
            rating = self.catalogue.rate(int(given["number"]), int(given["finding"]), *texts)
        except (ValueError, TypeError, KeyError, AttributeError):
            return _refusal(HTTPStatus.BAD_REQUEST, "this is no rating")
        except OutputError as error:
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except (MAEDiffError, OSError) as error:
            return _refusal(HTTPStatus.BAD_REQUEST, str(error))
        return _json({"finding": rating.finding, "rating": rating.rating, "comment": rating.comment})

    def _content(self, name: str, query: str) -> Answer:
        if name in _STATIC:
            file, kind = _STATIC[name]
            return Answer(HTTPStatus.OK, (resources.files("maediff.viewer") / "static" / file).read_bytes(), kind)
        if name == "run.json":
            return _json({**self.catalogue.summary, "reader": self.reader})
        if name == _RATINGS:
            return _json(self.catalogue.ratings(parse_qs(query).get("reader", [""])[0]))
        if match := _DETAILS.fullmatch(name):
            return _json(self.catalogue.details(int(match[1])))
        if match := _VOLUME.fullmatch(name):
            return Answer(HTTPStatus.OK, self.catalogue.volume(int(match[1]), match[2]), _GZIP)
        return _refusal(HTTPStatus.NOT_FOUND, "there is nothing to see at this address")


class _Handler(BaseHTTPRequestHandler):
    """Turns requests into calls of :meth:`ViewerServer.answer`: GET and HEAD, and POST of ratings."""

    server: ViewerServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "MAEDiff", ""
    timeout = 60  # seconds without a word, after which a connection is closed

    def handle_one_request(self) -> None:
        """Answer a request, if the browser is still there."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer with content."""
        self._send(self._answer())

    def do_HEAD(self) -> None:
        """Answer without content."""
        self._send(self._answer(), with_content=False)

    def do_POST(self) -> None:
        """Store a rating, if it comes from the page itself."""
        if not self.path.endswith(f"/{_RATINGS}"):
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
            return
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() else _MAX_CONTENT + 1
        if size > _MAX_CONTENT:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        content = self.rfile.read(size)
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not self._host_allowed():
            self._send(_refusal(HTTPStatus.MISDIRECTED_REQUEST, f"this server answers to {LOOPBACK} only"))
        elif self.headers.get_content_type() != _JSON or origin not in {None, f"http://{host}"}:
            self._send(_refusal(HTTPStatus.FORBIDDEN, "ratings are taken from the viewer's own page only"))
        else:
            self._send(self.server.store(self.path, content))

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Answer every other method the same way."""
        if not name.startswith("do_"):
            raise AttributeError(name)
        return lambda: self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that cannot be read or is not allowed, and hang up: its body is not read."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send(_refusal(status, message or status.phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests hold the token."""

    def _answer(self) -> Answer:
        if not self._host_allowed():
            return _refusal(HTTPStatus.MISDIRECTED_REQUEST, f"this server answers to {LOOPBACK} only")
        return self.server.answer(self.path)

    def _host_allowed(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None

    def _send(self, answer: Answer, *, with_content: bool = True) -> None:
        self.send_response_only(answer.status)
        headers = _HEADERS | {"Content-Type": answer.kind, "Content-Length": str(len(answer.content))}
        if answer.location:
            headers["Location"] = answer.location
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content:
            self.wfile.write(answer.content)


def _json(value: Any) -> Answer:
    return Answer(HTTPStatus.OK, json.dumps(value, allow_nan=False).encode(), _JSON)


def _refusal(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, f"{text}\n".encode())
