"""A STAC API (core, item search with paging, signed links) and its items' files, on a free port of this machine."""

from __future__ import annotations

import json
import threading
import urllib.parse
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = 3  # items
CONFORMS = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]


class Server(ThreadingHTTPServer):
    """Serves ``items`` and the files below ``folder``; ``failing``: every second request is refused for a moment."""

    daemon_threads = True

    def __init__(self, folder: Path, items: list[dict[str, Any]], failing: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.items, self.failing = folder, items, failing
        self.lock, self.requests, self.refused = threading.Lock(), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def refuses(self) -> bool:
        with self.lock:
            self.requests += 1
            self.refused += self.failing and self.requests % 2
            return bool(self.failing and self.requests % 2)

    def search(self, query: dict[str, Any]) -> dict[str, Any]:
        """Items of the collections whose box meets the query's and whose time lies in its interval."""
        start, end = (datetime.fromisoformat(t.replace("Z", "+00:00")) for t in query["datetime"].split("/"))
        west, south, east, north = query["bbox"]
        found = []
        for item in self.items:
            w, s, e, n = item["bbox"]
            when = datetime.fromisoformat(item["properties"]["datetime"].replace("Z", "+00:00"))
            if item["collection"] in query["collections"] and start <= when <= end:
                if w < east and e > west and s < north and n > south:
                    found.append(json.loads(json.dumps(item).replace("SERVER", self.url)))
        first = int(query.get("token", 0))
        page = {"type": "FeatureCollection", "features": found[first : first + PAGE], "links": []}
        if first + PAGE < len(found):
            body = {**query, "token": str(first + PAGE)}
            link = {"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": body}
            page["links"] = [{**link, "type": "application/geo+json"}]
        return page


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, body: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refuses():
            return self.reply(b"{}", status=503)
        self.reply(json.dumps(self.server.search(query)).encode(), "application/geo+json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.server.refuses():
            return self.reply(b"{}", status=503)
        path, _, query = self.path.partition("?")
        if path.startswith("/data/"):
            return self.file(path.removeprefix("/data/"), query)
        if path == "/sign":
            href = urllib.parse.parse_qs(query)["href"][0]
            return self.reply(json.dumps({"href": f"{href}?signed=yes"}).encode())
        links = [{"rel": "self", "href": self.server.url}, {"rel": "root", "href": self.server.url}]
        for rel, method in (("search", "GET"), ("search", "POST")):
            kind = "application/geo+json"
            links.append({"rel": rel, "type": kind, "href": f"{self.server.url}/search", "method": method})
        catalog = {"type": "Catalog", "id": "test", "description": "test", "stac_version": "1.0.0", "links": links}
        self.reply(json.dumps({**catalog, "conformsTo": CONFORMS}).encode())

    def file(self, name: str, query: str) -> None:
        path = self.server.folder / name
        if query != "signed=yes":
            return self.reply(b"not signed", status=403)
        if not path.is_file():
            return self.reply(b"", status=404)
        data = path.read_bytes()
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data) - 1) + 1]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self.reply(part, "image/tiff", 206, Content_Range=span, Accept_Ranges="bytes")
        self.reply(data, "image/tiff", Accept_Ranges="bytes")
