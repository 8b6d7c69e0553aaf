"""A model hub on loopback: one repository from a folder, with ranges, ETags and a slow line."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `folder` as `repo`; `asked` lists (method, file, first byte)."""

    daemon_threads = True

    def __init__(self, repo: str, folder: Path, slow: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.folder, self.slow = repo, folder, slow
        self.asked: list[tuple[str, str, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        files = sorted(self.server.folder.iterdir())
        names = [f.name for f in files]
        if self.path.startswith(f"/api/models/{self.server.repo}/tree"):
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                for f in files
            ]
            self._answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith(f"/api/models/{self.server.repo}"):
            body = {
                "id": self.server.repo, "modelId": self.server.repo, "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names], "private": False,
                "tags": [], "downloads": 0, "likes": 0,
            }  # fmt: skip
            self._answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        else:
            self._file()

    def _file(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        file = self.server.folder / name
        if "/resolve/" not in self.path or not file.is_file():
            self._answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)
            return
        data = file.read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0] or 0)
        self.server.asked.append((self.command, name, first))
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }  # fmt: skip
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._answer(data[first:], headers, 206 if first else 200, slow=len(data) > 50_000)

    def _answer(
        self, body: bytes, headers: dict[str, str], code: int = 200, *, slow: bool = False
    ) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        step = 65_536 if slow else max(1, len(body))
        try:
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                if slow and self.server.slow:
                    self.wfile.flush()
                    time.sleep(self.server.slow)
        except OSError:  # the other side has gone
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hub(repo: str, folder: Path, *, slow: float = 0.0) -> Iterator[Hub]:
    server = Hub(repo, folder, slow)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
