"""Serves each session's viser through the app's own origin: one port, no tunnel, no second server.

    /viewport/{token}/         viser's client page from memory, with our style
    /viewport/{token}          websocket, relayed to that session's viser on the loopback
    /viewport/{token}/events   websocket: picks, camera, jobs to the page; its reports to us
    /healthz                   counts, nothing else

The token in the path is the only key; a browser must also come from this very origin. The relay
holds one message at a time in each direction, so a slow page slows its own viser and nothing else.
"""

import asyncio
import contextlib
import gzip
import hashlib
import json
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from ..palette import STAGE, hex_of

log = logging.getLogger(__name__)

PAGE_HEAD = f"""<style>
html, body, #root {{background: {hex_of(STAGE)} !important}}
#webgl-software-rendering {{display: none !important}}
html:not(.panel) [data-floating-window],
html:not(.panel) .mantine-Paper-root:has(.mantine-ScrollArea-root) {{display: none !important}}
</style><script>
if (new URLSearchParams(location.search).has("panel"))
  document.documentElement.classList.add("panel");
</script>"""
"""Our controls are on the page around the viewport; `?panel` brings viser's own back."""

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
}

NORMAL, GOING_AWAY, PROTOCOL_ERROR, POLICY, TOO_BIG, FAILED, LATER = (
    1000,
    1001,
    1002,
    1008,
    1009,
    1011,
    1013,
)


@dataclass(frozen=True, kw_only=True)
class ProxyLimits:
    """What one page may ask of the relay."""

    message_bytes: int = 64 << 20
    """Largest message from a browser; a screenshot of the viewport can take tens of megabytes."""

    event_bytes: int = 64 << 10
    """Largest message on the event socket."""

    sockets: int = 8
    """Relays open at once for one session: as many tabs."""

    idle_seconds: float = 3600.0
    """A relay without a byte in either direction is closed; a page that still lives reconnects."""

    events_waiting: int = 256
    """Events a slow page may be behind; beyond it the oldest are dropped."""


class ViewportEndpoint(Protocol):
    """What the proxy knows of a viewport."""

    @property
    def port(self) -> int: ...

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]: ...

    def from_page(self, message: dict[str, Any]) -> None: ...


class Sockets:
    """How many relays each session has open, and since when it has none."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._left: dict[str, float] = {}

    def opened(self, token: str) -> None:
        self._open[token] = self._open.get(token, 0) + 1
        self._left.pop(token, None)

    def closed(self, token: str) -> None:
        self._open[token] = self._open.get(token, 1) - 1
        if self._open[token] <= 0:
            del self._open[token]
            self._left[token] = time.monotonic()

    def of(self, token: str) -> int:
        return self._open.get(token, 0)

    def seconds_without(self, token: str) -> float | None:
        """Seconds since the last tab left; None while one is open or none ever came."""
        left = self._left.get(token)
        return None if left is None else time.monotonic() - left

    def forget(self, token: str) -> None:
        self._left.pop(token, None)

    @property
    def total(self) -> int:
        return sum(self._open.values())


def routes(
    lookup: Callable[[str], ViewportEndpoint | None],
    *,
    stats: Callable[[], Mapping[str, int]] = dict,
    sockets: Sockets | None = None,
    limits: ProxyLimits | None = None,
) -> list[BaseRoute]:
    """The app's extra routes; to be put before whatever is mounted at "/".

    Args:
        lookup: the viewport of a token, or None. Called in the event loop: it must not block.
        stats: counts for `/healthz`; never names, tokens or paths.
        sockets: told about every relay, so that sessions without tabs can expire.
    """
    proxy = _Proxy(lookup, stats, sockets or Sockets(), limits or ProxyLimits())
    return [
        Route("/viewport/{token}/", proxy.page),
        WebSocketRoute("/viewport/{token}/events", proxy.events),
        WebSocketRoute("/viewport/{token}", proxy.relay),  # the client strips its trailing slash
        WebSocketRoute("/viewport/{token}/", proxy.relay),
        Route("/healthz", proxy.health),
    ]


def same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a websocket handshake comes from this app's own pages.

    Browsers always send `Origin` and pages cannot forge it; a client without one is no browser.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    named = (headers.get("host"), headers.get("x-forwarded-host"), os.environ.get("SPACE_HOST"))
    hosts = {host.split(",")[0].strip().lower() for host in named if host}
    return urlsplit(origin).netloc.lower() in hosts - {""}


class _Page:
    """viser's client, one self-contained file, fetched once and kept with our style in it."""

    def __init__(self) -> None:
        self._ready: tuple[bytes, bytes, str] | None = None

    def load(self, port: int) -> tuple[bytes, bytes, str]:
        """Plain bytes, gzipped bytes, and their tag."""
        if self._ready is None:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                plain = answer.read()
            head, tail = plain.rsplit(b"</head>", 1)
            plain = head + PAGE_HEAD.encode() + b"</head>" + tail
            tag = f'"{hashlib.sha256(plain).hexdigest()[:32]}"'
            self._ready = (plain, gzip.compress(plain, 6), tag)
        return self._ready


class _Proxy:
    def __init__(
        self,
        lookup: Callable[[str], ViewportEndpoint | None],
        stats: Callable[[], Mapping[str, int]],
        sockets: Sockets,
        limits: ProxyLimits,
    ) -> None:
        self._lookup, self._stats, self._sockets, self._limits = lookup, stats, sockets, limits
        self._page = _Page()

    async def page(self, request: Request) -> Response:
        viewport = self._lookup(request.path_params["token"])
        if viewport is None:
            text = "This world is closed. Reload the page around it."
            return PlainTextResponse(text, status_code=404, headers=SECURITY)
        plain, packed, tag = await asyncio.to_thread(self._page.load, viewport.port)
        headers = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding", "ETag": tag} | SECURITY
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        body = plain
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = packed, "gzip"
        return Response(body, media_type="text/html; charset=utf-8", headers=headers)

    async def health(self, request: Request) -> Response:
        counts = {name: int(count) for name, count in self._stats().items()}
        counts["sockets"] = self._sockets.total
        return JSONResponse(counts, headers=SECURITY | {"Cache-Control": "no-store"})

    # ---- the relay -------------------------------------------------------------------------------

    async def relay(self, page: WebSocket) -> None:
        token = page.path_params["token"]
        viewport = self._lookup(token)
        if viewport is None or not same_origin(page.headers):
            await page.close(code=POLICY)  # before accept: the handshake is answered with 403
            return
        if self._sockets.of(token) >= self._limits.sockets:
            await page.close(code=LATER)
            return
        self._sockets.opened(token)
        try:
            await self._relay(page, viewport.port)
        finally:
            self._sockets.closed(token)

    async def _relay(self, page: WebSocket, port: int) -> None:
        offered = [name for name in page.scope.get("subprotocols", []) if name.startswith("viser-")]
        try:
            viser = await connect(
                f"ws://127.0.0.1:{port}/",
                subprotocols=[Subprotocol(name) for name in offered] or None,
                compression=None,  # half-precision points hardly compress, and it would block
                max_size=None,  # a replay is up to 128 messages in one frame: tens of megabytes
                max_queue=4,
                ping_interval=None,  # viser pings, and is answered
                open_timeout=10,
                close_timeout=1,
                proxy=None,  # loopback traffic never goes to an HTTP_PROXY
            )
        except (OSError, TimeoutError, WebSocketException):
            await page.close(code=LATER)
            return
        code, reason = FAILED, ""
        try:
            await page.accept(subprotocol=viser.subprotocol)
            code, reason = await self._pump(page, viser)
        finally:
            try:
                await viser.close()
            finally:  # cancelled in the middle of a polite goodbye, it still leaves no socket open
                viser.transport.abort()
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await page.close(code=code, reason=reason)

    async def _pump(self, page: WebSocket, viser: ClientConnection) -> tuple[int, str]:
        """Carries messages until one side ends; returns the code and reason for the page."""
        last = time.monotonic()

        async def to_page() -> None:
            nonlocal last
            async for message in viser:
                last = time.monotonic()
                # Returns when the transport has drained: back-pressure reaches viser.
                if isinstance(message, str):
                    await page.send_text(message)
                else:
                    await page.send_bytes(message)

        async def to_viser() -> int:
            nonlocal last
            while True:
                event = await page.receive()
                if event["type"] == "websocket.disconnect":
                    return NORMAL
                data = event.get("bytes") or event.get("text") or b""
                if len(data) > self._limits.message_bytes:
                    return TOO_BIG
                last = time.monotonic()
                await viser.send(data)

        down, up = asyncio.create_task(to_page()), asyncio.create_task(to_viser())
        try:
            while True:
                left = last + self._limits.idle_seconds - time.monotonic()
                done, _ = await asyncio.wait(
                    (down, up), timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
                )
                if done or left <= 0:
                    break
        finally:
            for task in (down, up):
                task.cancel()
            ends = await asyncio.gather(down, up, return_exceptions=True)
        if up in done and isinstance(ends[1], int):
            return ends[1], ""
        if down in done:  # viser's own words: on 1002, another version, its client stops trying
            code = viser.close_code
            known = code in (NORMAL, GOING_AWAY, PROTOCOL_ERROR)
            return (code if known and code else FAILED), viser.close_reason or ""
        return GOING_AWAY, "idle"

    # ---- events ----------------------------------------------------------------------------------

    async def events(self, page: WebSocket) -> None:
        """A websocket, not a stream: browsers allow six streams per host, over all tabs."""
        viewport = self._lookup(page.path_params["token"])
        if viewport is None or not same_origin(page.headers):
            await page.close(code=POLICY)
            return
        await page.accept()
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(self._limits.events_waiting)

        def put(message: dict[str, Any]) -> None:
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(message)

        def listener(message: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(put, message)

        async def to_page() -> None:
            while True:
                await page.send_text(json.dumps(await waiting.get(), allow_nan=False))

        stop = viewport.listen(listener)
        sender = asyncio.create_task(to_page())
        try:
            while (message := await self._report(page)) is not None:
                if message:
                    viewport.from_page(message)
        finally:
            stop()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _report(self, page: WebSocket) -> dict[str, Any] | None:
        """The page's next message; {} if it makes no sense, None when the page has gone."""
        event = await page.receive()
        if event["type"] == "websocket.disconnect":
            return None
        text = event.get("text") or ""
        if len(text) > self._limits.event_bytes:
            await page.close(code=TOO_BIG)
            return None
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):  # brackets in brackets, fifty thousand deep
            return {}
        return message if isinstance(message, dict) else {}
