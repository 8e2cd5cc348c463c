"""Servers on this machine for tests, each on a free port of its own."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
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


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class S3Server:
    """A moto server in a process of its own: objects live in its memory, so a kill loses them, like a bucket emptied.

    ``environment`` is what a client needs. Used as a context manager.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, or start again at the same address."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def client(self):
        """A boto3 client."""
        import boto3

        env = self.environment
        return boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        )

    def upload(self, folder: Path, bucket: str = "bucket") -> str:
        """Every file of ``folder`` under the URL that is returned."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            client.upload_file(str(path), bucket, f"set/{path.name}")
        return f"s3://{bucket}/set"

    def refuse_everybody(self) -> None:
        """From now on no access key is known."""
        address = f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, b"0", plain)).close()


class Proxy:
    """Stands before a server on this machine: answers come in small pieces with ``pause`` seconds between them.

    The first ``broken`` connections that carry more than 4,000 bytes are cut there. Used as a context manager.
    """

    def __init__(self, port: int, pause: float = 0.0, broken: int = 0) -> None:
        self.target, self.pause, self.broken = port, pause, broken
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # not there at the moment
                client.close()
                continue
            threading.Thread(target=self._copy, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, answer: bool) -> None:
        sent = 0
        try:
            while data := source.recv(2048):
                sink.sendall(data)
                sent += len(data)
                if answer and self.pause:
                    time.sleep(self.pause)
                if answer and self.broken and sent > 4000:
                    self.broken -= 1
                    break
        except OSError:
            pass  # the other side is gone
        for end in (source, sink):
            with contextlib.suppress(OSError):  # the other direction has done it
                end.shutdown(socket.SHUT_RDWR)
