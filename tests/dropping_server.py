"""Files over HTTP, byte ranges too, from a server that can go away for a while."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 4096  # bytes


class DroppingServer(ThreadingHTTPServer):
    """Serves the files of a folder; while `away`, connections are closed without an answer, open ones midway."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.away = threading.Event()
        self.num_answered = self.num_dropped = 0
        self.leave_after: int | None = None  # answers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that it has closed itself."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DroppingServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        server, file = self.server, self.server.root / self.path.lstrip("/")
        if server.leave_after is not None and server.num_answered >= server.leave_after:
            server.leave_after = None
            server.away.set()
        if server.away.is_set():
            return self.drop()
        server.num_answered += 1
        content = file.read_bytes() if file.is_file() else b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = int(asked[1]) if asked else 0, int(asked[2]) if asked and asked[2] else len(content) - 1
        part = content[first : last + 1]
        self.send_response((206 if asked else 200) if file.is_file() else 404)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        for start in range(0, len(part) if with_body else 0, PIECE):
            if server.away.is_set():
                return self.drop()
            self.wfile.write(part[start : start + PIECE])

    def drop(self) -> None:
        self.server.num_dropped += 1
        self.close_connection = True
        self.connection.close()


@contextmanager
def serving(root: Path) -> Iterator[DroppingServer]:
    """A server of a folder's files, meanwhile."""
    server = DroppingServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def come_back(server: DroppingServer, seconds: float) -> None:
    """Let the server answer again some time after it has gone."""

    def wait() -> None:
        server.away.wait(timeout=300)
        time.sleep(seconds)
        server.away.clear()

    threading.Thread(target=wait, daemon=True).start()
