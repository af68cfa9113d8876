"""A report that follows its runs: a small server for browsers of this machine alone."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from proximo.errors import UsageError
from proximo.insight.page import page, policy, to_json
from proximo.insight.report import document, read_runs

ADDRESS = "127.0.0.1"
SHARE = 0.02
"""Share of a core's time that reading the runs again may take, at most."""
GROWING = ("metrics.jsonl", "samples.jsonl", "result.json", "log", "config.toml")
"""Files of a run folder that change while it trains."""
PATIENCE = 10
"""Seconds that a request may take to arrive."""


class LiveReport(ThreadingHTTPServer):
    """Serves the report of these runs on the loopback address, under a path that nobody guesses."""

    daemon_threads = True

    def __init__(self, runs: Sequence[Path], port: int = 0) -> None:
        """port: 0 takes a free one. Raises `UsageError` for runs or a port that cannot be used."""
        self._runs = runs
        self._lock = threading.Lock()
        self._stamp, self._built, self._cost = "", 0.0, 0.0
        self._document: dict[str, Any] = {}
        self.token = secrets.token_urlsafe(16)
        self.tag, _ = self.latest()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--port is {port}, which cannot be used here ({error}): give another one, or 0 "
                "for any that is free"
            ) from error
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def latest(self) -> tuple[str, dict[str, Any]]:
        """Tag and content of the report as the runs stand, or as they stood a moment ago."""
        with self._lock:
            stamp = _stamp(self._runs)
            due = time.monotonic() - self._built >= self._cost / SHARE
            if stamp != self._stamp and (due or not self._document):
                begin = time.thread_time()
                self._document = document(read_runs(self._runs))
                self._cost = time.thread_time() - begin
                self._stamp, self._built = stamp, time.monotonic()
            return f'"{self._stamp}"', self._document

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: LiveReport
    timeout = PATIENCE
    server_version, sys_version = "Proximo", ""

    def do_GET(self) -> None:
        place = f"/{self.server.token}/"
        # A page of another site may lead its own name to this address: it cannot forge `Host`.
        if self.headers.get("Host") not in self.server.hosts:
            return self._answer(403, b"open it by the address that was printed\n", "text/plain")
        if self.path not in (place, f"{place}data.json"):
            return self._answer(404, b"there is nothing here\n", "text/plain")
        try:
            tag, found = self.server.latest()
        except UsageError as error:  # such as a run folder that has been removed
            return self._answer(503, f"{error}\n".encode(), "text/plain; charset=utf-8")
        if self.path == place:
            return self._answer(200, page(found, live=True), "text/html; charset=utf-8")
        if self.headers.get("If-None-Match") == tag:
            return self._answer(304, b"", "application/json", tag)
        return self._answer(200, to_json(found), "application/json", tag)

    def _answer(self, status: int, body: bytes, kind: str, tag: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({"ETag": tag} if tag else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *message: Any) -> None:
        """Requests are no news."""


def _stamp(runs: Sequence[Path]) -> str:
    """What changes when a file of the runs does."""
    found = hashlib.sha256()
    for path in (run / name for run in runs for name in GROWING):
        try:
            about = path.stat()
            found.update(f"{about.st_ino} {about.st_size} {about.st_mtime_ns};".encode())
        except OSError:
            found.update(b"none;")
    return found.hexdigest()[:32]
