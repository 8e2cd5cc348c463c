"""Servers on this machine for tests, each on a free port of its own."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer:
    """A folder over HTTP with byte ranges; ``requests`` are the (path, range) asked for, ``ranges=False`` ignores them.

    ``url`` is the folder's address. Used as a context manager.
    """

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        requests: list[tuple[str, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(body=True)

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def answer(self, body: bool) -> None:
                requests.append((self.path, self.headers["Range"]))
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data, status = path.read_bytes(), 200
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                if wanted and ranges:
                    first, last = int(wanted[1]), int(wanted[2])
                    if first >= len(data):
                        self.send_error(416)
                        return
                    total, data, status = len(data), data[first : last + 1], 206
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{total}")
                self.send_header("Accept-Ranges", "bytes" if ranges else "none")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.requests = requests
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
