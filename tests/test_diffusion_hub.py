"""Weights from a hub: only what is needed, resumed when cut off, then without any network."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
REPO, COMMIT, VARIANT = "somebody/model", "a" * 40, "worldstereo-camera"
LARGE = os.urandom(24_000_000)  # more than two of the client's chunks of 10 MiB
FILES = {
    f"{VARIANT}/config.json": b'{"base_model": "x/y"}',
    f"{VARIANT}/model.safetensors": LARGE,
    "worldstereo-memory/model.safetensors": b"of another variant",
    "README.md": b"unwanted",
}
JSON = {"Content-Type": "application/json"}
SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
from worldstereo.generators.diffusion import find_variant
from worldstereo.errors import WeightsMissing
try:
    print("FOUND", find_variant("somebody/model", "worldstereo-camera"))
except WeightsMissing as error:
    print("REFUSED", error)
"""


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for; breaks off in the large file, once."""

    breaks = True
    asked: list[tuple[str, str, str]] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        Hub.asked.append((self.command, self.path, wanted))
        if self.path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
                for name, data in FILES.items()
            ]
            self.reply(200, json.dumps(entries).encode(), JSON, body)
            return
        if self.path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in FILES]
            about = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self.reply(200, json.dumps(about).encode(), JSON, body)
            return
        name = self.path.partition(f"/{REPO}/resolve/{COMMIT}/")[2].partition("?")[0]
        if name not in FILES:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return
        data, etag = FILES[name], hashlib.sha256(FILES[name]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206 if start else 200, data[start:], headers, body)

    def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            breaks = Hub.breaks and len(data) > 1_000_000
            self.wfile.write(data[:22_000_000] if breaks else data)
            Hub.breaks = Hub.breaks and not breaks
        self.close_connection = True

    def log_message(self, *values: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.breaks, Hub.asked = True, []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(endpoint: str, cache: Path, **more: str) -> str:
    mine = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    mine |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | mine, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_a_broken_download_resumes_and_then_needs_no_network(hub, tmp_path):
    said = fetched(hub, tmp_path)
    assert "somebody/model: published under Apache-2.0" in said
    names = {path for command, path, _ in Hub.asked if command == "GET" and "resolve" in path}
    assert names and all(VARIANT in name for name in names)  # no other variant, no README
    [resumed] = [wanted for _, path, wanted in Hub.asked if "model.safetensors" in path and wanted]
    assert int(resumed.removeprefix("bytes=").partition("-")[0]) >= 10_000_000
    folder = Path(said.partition("FOUND ")[2].splitlines()[0])
    assert (folder / "model.safetensors").read_bytes() == LARGE
    Hub.asked.clear()
    offline = fetched(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert f"FOUND {folder}" in offline
    empty = fetched(hub, tmp_path / "elsewhere", HF_HUB_OFFLINE="1")
    assert "REFUSED somebody/model is offline, and not in the cache" in empty
    assert Hub.asked == []
