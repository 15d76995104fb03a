"""A small local web page that lists finished runs and shows their reports. It answers this computer alone and writes nothing.

Addresses name runs by keys that the list made, never by paths. Reports are made anew from report.json, so that nothing that lies in
a run's folder is sent as HTML or runs as a script; the policy of each page allows keepsight's own scripts by their hashes.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, final

import keepsight
from keepsight.core import UserError
from keepsight.core.progress import log
from keepsight.report.page import JSON, Page, read_page
from keepsight.report.render_html import render_html
from keepsight.report.run_list import RunList, inside
from keepsight.report.write import HTML, MARKDOWN

HOST = "127.0.0.1"

_REPORT = re.compile(r"/run/([A-Za-z0-9-]+)/(report\.(?:html|json|md))")
_POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')

_NOTHING = "default-src 'none'; sandbox"
"""The policy of what is no page."""

_TYPES = {JSON: "application/json", MARKDOWN: "text/plain; charset=utf-8"}

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@final
class RunServer(ThreadingHTTPServer):
    """Listens on the loopback address; port 0 takes a free one.

    Args:
        runs: What is shown.
        port: See above.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, runs: RunList, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.runs = runs

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no error; anything else is said by the base class."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """Of the list."""
        return f"http://{HOST}:{self.server_port}/"


@final
class _Handler(BaseHTTPRequestHandler):
    server: RunServer
    server_version, sys_version = "keepsight", ""
    timeout: ClassVar[float] = 30.0  # s, for a request that does not come to its end

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are answered: nothing here can be changed.")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _answer(self) -> None:
        if not self._is_local():
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "This page answers to its own address alone.")
            return
        address = self.path.partition("?")[0].partition("#")[0]
        if address == "/":
            self._send_page(self.server.runs.page(keepsight.__version__))
        elif found := _REPORT.fullmatch(address):
            self._report(found[1], found[2])
        else:
            self._say(HTTPStatus.NOT_FOUND, "There is no such page: the list of runs is at /.")

    def _is_local(self) -> bool:
        """Whether the browser asked for this very address: a foreign name that resolves to it is refused (DNS rebinding)."""
        names = self.headers.get_all("Host") or []
        return len(names) == 1 and names[0].lower() in {
            f"{host}:{self.server.server_port}" for host in (HOST, "localhost")
        }

    def _report(self, key: str, name: str) -> None:
        entry = next((each for each in self.server.runs.entries() if each.key == key and each.sound), None)
        file = None if entry is None else inside(entry.root, entry.folder / (JSON if name == HTML else name))
        if file is None:
            self._say(HTTPStatus.NOT_FOUND, "There is no such report: the list of runs is at /.")
            return
        try:
            if name == HTML:
                self._send_page(read_page(file))
            else:
                self._send(HTTPStatus.OK, file.read_bytes(), _TYPES[name], _NOTHING)
        except (UserError, OSError):
            self._say(
                HTTPStatus.NOT_FOUND,
                f"The report is damaged: keepsight report {entry.name if entry else ''} writes it again.",
            )

    def _send_page(self, page: Page) -> None:
        html = render_html(page)
        policy = _POLICY.search(html)
        if policy is None:
            raise ValueError("a page has no policy")
        own = policy[1].replace("&#x27;", "'")
        self._send(
            HTTPStatus.OK, html.encode("utf-8", "replace"), "text/html; charset=utf-8", f"{own}; frame-ancestors 'none'"
        )

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, f"{sentence}\n".encode("utf-8", "replace"), "text/plain; charset=utf-8", _NOTHING)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, policy: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            **_HEADERS,
        }
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


@contextlib.contextmanager
def open_server(folders: Sequence[Path], port: int = 0) -> Iterator[RunServer]:
    """A server that does not serve yet; closed at the end of the block.

    Raises:
        UserError: A folder is not there, or the port is taken.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: give a folder of runs, or several.")
    try:
        server = RunServer(RunList(folders), port)
    except OSError as error:
        raise UserError(
            f"Port {port} cannot be used ({error.strerror}): choose another --port, or 0 for a free one."
        ) from error
    with server:
        yield server


def serve(folders: Sequence[Path], port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        folders: Of runs.
        port: 0 for a free one.
        browser: Whether to open a browser.
        say: Is told the address.
    """
    with open_server(folders, port) as server:
        say(server.address)
        if browser:
            webbrowser.open(server.address)
        with _interruptions() as interrupted:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            while not interrupted.wait(0.2) and thread.is_alive():
                pass
            server.shutdown()


@contextlib.contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets. KeyboardInterrupt, raised wherever the interpreter happens to be, can be lost in a callback."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield event  # only the main thread may ask for signals; what is ignored, as in a background job, stays so
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
