"""Refuses requests that name a file of this server which nobody uploaded, in one line.

Gradio refuses them too, with its own stack in the log for each: anybody could fill a log so.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

LARGEST = 16 << 20  # bytes of one event; uploads go another way
REFUSED = "That file was not uploaded here. Choose it again under World."


class UploadedOnly:
    """ASGI middleware: events of the page may only name files in the folder of uploads.

    Args:
        folder: tells where uploads are put.
    """

    def __init__(self, app: ASGIApp, folder: Callable[[], str]) -> None:
        self._app, self._folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["type"] == "http" and scope["method"] == "POST"
        if not posted or scope["path"].rstrip("/").endswith("/upload"):
            await self._app(scope, receive, send)
            return
        body, heard = bytearray(), []
        while True:
            message = await receive()
            heard.append(message)
            body += message.get("body", b"")  # in place: bytes would be copied for every chunk
            if len(body) > LARGEST:
                answer = {"detail": f"An event takes at most {LARGEST >> 20} MiB."}
                await JSONResponse(answer, status_code=413)(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        try:
            forged = [path for path in named_files(bytes(body)) if not self._uploaded(path)]
        except RecursionError:  # brackets in brackets, a million deep
            answer = {"detail": "No event of this page is nested that deeply."}
            await JSONResponse(answer, status_code=400)(scope, receive, send)
            return
        if forged:
            log.warning("a page named a file that was never uploaded; it was refused")
            await JSONResponse({"detail": REFUSED}, status_code=403)(scope, receive, send)
            return

        async def again() -> Message:
            return heard.pop(0) if heard else await receive()

        await self._app(scope, again, send)

    def _uploaded(self, path: str) -> bool:
        folder = os.path.realpath(self._folder())
        try:
            return os.path.realpath(path).startswith(folder + os.sep)
        except ValueError:  # a null byte
            return False


def named_files(body: bytes) -> Iterator[str]:
    """Paths of the files that the data of an event names; none in what is not JSON."""
    try:
        event = json.loads(body)
    except ValueError:
        return
    waiting: list[Any] = [event]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            meta = value.get("meta")
            file = isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"
            if file and isinstance(value.get("path"), str):
                yield value["path"]
            waiting += value.values()
