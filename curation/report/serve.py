"""Serve the report page on this machine: the page searches all clips of the corpus and plays every one of
them.

`uniavgen report --serve` binds to the loopback address only and answers requests for this host name only, so
no other machine and no other web page can read the corpus.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from uniavgen.curation.policy.decisions import decided_policy
from uniavgen.curation.report.catalog import judge_changes, search_catalog
from uniavgen.curation.report.comparison import Comparable
from uniavgen.curation.report.judged import judged_corpus
from uniavgen.curation.report.previews import make_preview
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import duckdb

HOST = "127.0.0.1"

_TYPES = {".html": "text/html; charset=utf-8", ".mp4": "video/mp4"}
_CLIP = re.compile(r"/media/([0-9A-Za-z_-]+)\.mp4")
_CHUNK = 1 << 20


class ReportServer:
    """An HTTP server for one corpus, used as a context manager; `url` is the address of the page.

    GET `/` is the page, `/api/clips?...` a page of `search_catalog`, `/media/<clip_id>.mp4` any clip with
    audio, and other paths are files of the report folder.
    """

    def __init__(self, corpus: Corpus, port: int = 0, other: Comparable | None = None) -> None:
        """`other`: as for `write_report`. Raises UserError if the port is in use or there is no report."""
        self.corpus, self.folder, self._other = corpus, corpus.root / "report", other
        if not (self.folder / "index.html").is_file():
            raise UserError("there is no report", where=self.folder, hint="write it first: uniavgen report")
        try:
            self._http = ThreadingHTTPServer((HOST, port), _handler(self))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used: {error.strerror}", where=HOST, hint="choose another: --port 0"
            ) from error
        self.port = self._http.server_port
        self.url = f"http://{HOST}:{self.port}/"
        self._lock = threading.Lock()

    def __enter__(self) -> ReportServer:
        self._policy = decided_policy(self.corpus)
        self._judged = judged_corpus(
            self.corpus, self._policy, other=self._other.decisions if self._other else None
        )
        self.connection: duckdb.DuckDBPyConnection = self._judged.__enter__()
        self._changes = ("", "")
        judge_changes(self.connection, self.corpus, self._policy)
        self._previews = tempfile.TemporaryDirectory(prefix="uniavgen-report-")
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._previews.cleanup()
        self._judged.__exit__(None, None, None)

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        self._thread.join()

    def page(self) -> bytes:
        """The page, told that a server answers."""
        page = (self.folder / "index.html").read_bytes()
        return page.replace(b'"server":false', b'"server":true', 1)

    def search(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of `search_catalog`. `set` and `drop`: moved thresholds and rules that are off, separated by
        spaces.
        """
        changes = (query.get("set", ""), query.get("drop", ""))
        with self._lock:  # a DuckDB connection serves one thread at a time
            if changes != self._changes:
                thresholds, dropped = (words.split() for words in changes)
                judge_changes(self.connection, self.corpus, self._policy, thresholds, dropped)
                self._changes = changes
            return search_catalog(self.connection, query)

    def clip(self, clip_id: str) -> Path | None:
        """A clip's video with audio, made on first use."""
        with self._lock:
            made = make_preview(self.corpus, clip_id, Path(self._previews.name))
        return Path(self._previews.name) / made["file"] if made else None

    def file(self, path: str) -> Path | None:
        """A file of the report folder; None for any other path."""
        target = (self.folder / path.lstrip("/")).resolve()
        inside = target.is_relative_to(self.folder.resolve())
        return target if inside and target.is_file() and target.suffix in _TYPES else None


def _handler(server: ReportServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # a page of another site that resolves its name to this machine sends its own name
            if self.headers.get("Host") not in (f"{HOST}:{server.port}", f"localhost:{server.port}"):
                self.send_error(403)
                return
            address = urlsplit(self.path)
            path = unquote(address.path)
            try:
                if path in ("/", "/index.html"):
                    self._send(server.page(), _TYPES[".html"])
                elif path == "/api/clips":
                    answer = server.search(dict(parse_qsl(address.query)))
                    self._send(json.dumps(answer).encode(), "application/json")
                elif match := _CLIP.fullmatch(path):
                    self._send_file(server.clip(match[1]))
                else:
                    self._send_file(server.file(path))
            except (ValueError, UserError) as error:
                self._send(json.dumps({"error": str(error)}).encode(), "application/json", 400)
            except (BrokenPipeError, ConnectionResetError):  # the browser seeks or leaves
                self.close_connection = True

        def _send(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def _send_file(self, path: Path | None) -> None:
            """A file, or the part that the browser asks for: it cannot seek in a video otherwise."""
            if path is None:
                self._send(b"not found", "text/plain", 404)
                return
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
            if first > last:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Type", _TYPES[path.suffix])
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            with path.open("rb") as file:
                file.seek(first)
                left = last - first + 1
                while left:
                    part = file.read(min(_CHUNK, left))
                    self.wfile.write(part)
                    left -= len(part)

        def log_message(self, *_: Any) -> None:
            """No line per request."""

    return Handler
