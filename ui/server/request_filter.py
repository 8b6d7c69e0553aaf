"""Refuses events that no page of ours sends, in one line: of files that were not uploaded, of
handlers that there are not, or no JSON at all.

Gradio refuses them too, with its own stack in the log for each: anybody could fill a log so.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

MAX_BODY = 16 << 20  # bytes of one event; uploads go another way
REFUSED = "That file was not uploaded here. Choose it again under World."
UNUSED = ("/call/", "/component_server")  # routes of Gradio's for pages with public events


class RequestFilter:
    """ASGI middleware: events of the page may only name files in the folder of uploads.

    What is no JSON, or names a handler that there is not, is answered with 400.

    Args:
        folder: tells where uploads are put.
        inputs: for each value that a handler takes whether it is a list of files, by `fn_index`.
    """

    def __init__(
        self, app: ASGIApp, folder: Callable[[], str], inputs: Mapping[int, Sequence[bool]]
    ) -> None:
        self._app, self._folder, self._inputs = app, folder, inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["type"] == "http" and scope["method"] == "POST"
        if not posted or scope["path"].rstrip("/").endswith("/upload"):
            await self._app(scope, receive, send)
            return
        body, heard = bytearray(), []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            heard.append(message)
            body += message.get("body", b"")  # in place: bytes would be copied for every chunk
            if len(body) > MAX_BODY:
                answer = {"detail": f"An event takes at most {MAX_BODY >> 20} MiB."}
                await JSONResponse(answer, status_code=413)(scope, receive, send)
                return
            if not message.get("more_body"):
                break
        event: Any = None
        try:
            event = event_of(bytes(body)) if body else None
            odd = self._odd(scope["path"], event)
        except RecursionError:  # brackets in brackets, a million deep
            odd = "No event of this page is nested that deeply."
        except ValueError:
            odd = "That is no event: it is not JSON in UTF-8."
        if odd:
            log.warning("a request was refused: %s", odd)
            await JSONResponse({"detail": odd}, status_code=400)(scope, receive, send)
            return
        if not all(self._uploaded(path) for path in named_files(event)):
            log.warning("a page named a file that was never uploaded; it was refused")
            await JSONResponse({"detail": REFUSED}, status_code=403)(scope, receive, send)
            return

        async def again() -> Message:
            return heard.pop(0) if heard else await receive()

        await self._app(scope, again, send)

    def _odd(self, path: str, event: Any) -> str:
        """Why no page of ours sends such an event; "" where one may."""
        if any(route in path for route in UNUSED):
            return "No event of this page has a public name."
        runs = path.rstrip("/").endswith("/queue/join") or "/run/" in path or "/api/" in path
        if not runs or not isinstance(event, dict):
            return ""
        index, values = event.get("fn_index"), event.get("data")
        if type(index) is not int or index not in self._inputs:
            return "This page has no such event; reload it."
        takes = self._inputs[index]
        if isinstance(values, list) and len(values) < len(takes):
            return f"That event takes {len(takes)} values, got {len(values)}."
        if isinstance(values, list):
            for several, value in zip(takes, values, strict=False):
                if several and not (value is None or isinstance(value, list)):
                    return f"That event takes a list of files, got {type(value).__name__}."
        return ""

    def _uploaded(self, path: str) -> bool:
        folder = os.path.realpath(self._folder())
        try:
            return os.path.realpath(path).startswith(folder + os.sep)
        except ValueError:  # a null byte
            return False


def event_of(body: bytes) -> Any:
    """The JSON of a request.

    Raises:
        ValueError: no JSON in UTF-8, or what could not be sent back: NaN, half a character.
        RecursionError: nested too deeply.
    """
    event = json.loads(body.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    if b"\\ud" in body.lower():  # as an escape, it may be half of a pair
        json.dumps(event, ensure_ascii=False).encode("utf-8")
    return event


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not finite")
    return value


def named_files(event: Any) -> Iterator[str]:
    """Paths of the files that the data of an event names."""
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
