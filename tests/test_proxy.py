"""The relay: who gets in, what passes, how it ends. A small server stands in for viser."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Response

from ui.server.proxy import PAGE_HEAD, ProxyLimits, Sockets, routes, same_origin
from ui.server.request_filter import MAX_BODY, RequestFilter
from ui.viewport.viewport import Viewport

PAGE = b"<!doctype html><html><head><title>stage</title></head><body>client</body></html>"


class FakeStage:
    """A viewport as the proxy knows it, on a websocket server of its own."""

    def __init__(self) -> None:
        self.port = 0
        self.listeners: list = []
        self.reports: list[dict] = []
        self.received: list[bytes | str] = []
        self.subprotocol: str | None = None
        self.close_with: tuple[int, str] | None = None
        self.greeting: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def listen(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def from_page(self, message: dict) -> None:
        self.reports.append(message)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        def page(connection: ServerConnection, request):
            if request.headers.get("upgrade"):
                return None
            headers = Headers([("Content-Type", "text/html"), ("Content-Length", str(len(PAGE)))])
            return Response(200, "OK", headers, PAGE)

        async with serve(
            self._talk,
            "127.0.0.1",
            0,
            process_request=page,
            select_subprotocol=lambda _, offered: next(iter(offered), None),
            max_size=None,
            compression=None,
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    async def _talk(self, connection: ServerConnection) -> None:
        self.subprotocol = connection.subprotocol
        for message in self.greeting:
            await connection.send(message)
        if self.close_with is not None:
            await connection.close(*self.close_with)
            return
        async for message in connection:
            self.received.append(message)
            await connection.send(message)


@pytest.fixture
def stage() -> Iterator[FakeStage]:
    stage = FakeStage()
    yield stage
    stage.close()


@contextmanager
def client_of(stage, **options) -> Iterator[TestClient]:
    app = Starlette(routes=routes(lambda t: stage if t == "right" else None, **options))
    with TestClient(app) as client:
        yield client


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_comes_from_memory_with_our_style_and_safe_headers(stage):
    with client_of(stage) as client:
        answer = client.get("/viewport/right/")
        again = client.get("/viewport/right/", headers={"If-None-Match": answer.headers["etag"]})
    assert answer.status_code == 200
    assert answer.content == PAGE.replace(b"</head>", PAGE_HEAD.encode() + b"</head>")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert again.status_code == 304 and again.content == b""


def test_the_page_is_packed_for_those_who_can_read_it(stage):
    with client_of(stage) as client:
        plain = client.get("/viewport/right/", headers={"Accept-Encoding": "identity"})
        with client.stream("GET", "/viewport/right/") as packed:
            raw = b"".join(packed.iter_raw())
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content


def test_a_wrong_token_learns_nothing(stage):
    with client_of(stage) as client:
        answer = client.get("/viewport/wrong/")
        assert answer.status_code == 404
        assert "wrong" not in answer.text
        for path in ("/viewport/wrong", "/viewport/wrong/events"):
            with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(path):
                pass
            assert refused.value.code == 1008


def test_health_tells_counts_and_nothing_else(stage):
    with client_of(stage, stats=lambda: {"sessions": 3}) as client:
        assert client.get("/healthz").json() == {"sessions": 3, "sockets": 0}


# ---- who gets in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # not a browser
        ({"origin": "http://world.example", "host": "world.example"}, True),
        ({"origin": "http://World.Example:7860", "host": "world.example:7860"}, True),
        (
            {
                "origin": "https://me.hf.space",
                "host": "10.0.0.3",
                "x-forwarded-host": "me.hf.space",
            },
            True,
        ),
        ({"origin": "http://evil.example", "host": "world.example"}, False),
        ({"origin": "http://world.example:81", "host": "world.example:80"}, False),
        ({"origin": "http://world.example.evil.example", "host": "world.example"}, False),
        ({"origin": "null", "host": "world.example"}, False),
        ({"origin": "", "host": ""}, False),
    ],
)
def test_only_our_own_pages_may_open_sockets(headers, allowed, monkeypatch):
    monkeypatch.delenv("SPACE_HOST", raising=False)
    assert same_origin(headers) is allowed


def test_a_space_is_known_by_its_name(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "me.hf.space")
    assert same_origin({"origin": "https://me.hf.space", "host": "10.0.0.3:7860"})


@pytest.mark.parametrize("path", ["/viewport/right", "/viewport/right/", "/viewport/right/events"])
def test_a_page_of_another_site_is_refused(stage, path):
    with client_of(stage) as client:
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            client.websocket_connect(path, headers={"Origin": "http://evil.example"}),
        ):
            pass
        assert refused.value.code == 1008
        with client.websocket_connect(path, headers={"Origin": "http://testserver"}):
            pass


# ---- what passes ---------------------------------------------------------------------------------


def test_messages_pass_unchanged_both_ways_with_the_clients_protocol(stage):
    stage.greeting = [bytes(range(256)), b"x" * 3_000_017]
    offered = ["viser-v1.1.1", "something-else"]
    with (
        client_of(stage) as client,
        client.websocket_connect("/viewport/right", subprotocols=offered) as page,
    ):
        assert page.accepted_subprotocol == "viser-v1.1.1"
        assert [page.receive_bytes() for _ in range(2)] == stage.greeting
        page.send_bytes(b"\x00camera\xff")
        assert page.receive_bytes() == b"\x00camera\xff"
    assert stage.subprotocol == "viser-v1.1.1"
    assert stage.received == [b"\x00camera\xff"]


def test_the_stages_own_close_code_reaches_the_page(stage):
    """On 1002 (another version) viser's client stops trying, on everything else it comes back."""
    stage.close_with = (1002, "another version")
    with (
        client_of(stage) as client,
        client.websocket_connect("/viewport/right") as page,
        pytest.raises(WebSocketDisconnect) as ended,
    ):
        page.receive_bytes()
    assert (ended.value.code, ended.value.reason) == (1002, "another version")


def test_a_stage_that_is_not_there_is_a_try_again(stage):
    stage.close()
    with (
        client_of(stage) as client,
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect("/viewport/right"),
    ):
        pass
    assert refused.value.code == 1013


def test_a_message_that_is_too_large_ends_the_relay_and_never_arrives(stage):
    with (
        client_of(stage, limits=ProxyLimits(message_bytes=1000)) as client,
        client.websocket_connect("/viewport/right") as page,
    ):
        page.send_bytes(b"x" * 1001)
        with pytest.raises(WebSocketDisconnect) as ended:
            page.receive_bytes()
    assert ended.value.code == 1009
    assert stage.received == []


def test_a_silent_relay_is_closed_after_its_time(stage):
    with (
        client_of(stage, limits=ProxyLimits(idle_seconds=0.2)) as client,
        client.websocket_connect("/viewport/right") as page,
        pytest.raises(WebSocketDisconnect) as ended,
    ):
        page.receive_bytes()
    assert ended.value.code == 1001


def test_tabs_are_counted_and_capped(stage):
    sockets = Sockets()
    with client_of(stage, sockets=sockets, limits=ProxyLimits(sockets=2)) as client:
        assert sockets.seconds_without("right") is None
        with (
            client.websocket_connect("/viewport/right") as a,
            client.websocket_connect("/viewport/right") as b,
        ):
            a.send_bytes(b"a")
            b.send_bytes(b"b")
            assert (a.receive_bytes(), b.receive_bytes()) == (b"a", b"b")
            assert sockets.of("right") == sockets.total == 2
            with (
                pytest.raises(WebSocketDisconnect) as refused,
                client.websocket_connect("/viewport/right"),
            ):
                pass
            assert refused.value.code == 1013
        until(lambda: sockets.total == 0)
        assert sockets.seconds_without("right") is not None
        assert client.get("/healthz").json()["sockets"] == 0


def test_a_relay_cancelled_while_it_says_goodbye_leaves_no_socket(stage, monkeypatch):
    left = []

    async def endless(connection: ClientConnection) -> None:
        left.append(connection.transport)
        await asyncio.sleep(60)

    monkeypatch.setattr(ClientConnection, "close", endless)
    with client_of(stage) as client, client.websocket_connect("/viewport/right"):
        pass
    assert left and all(transport.is_closing() for transport in left)


# ---- events --------------------------------------------------------------------------------------


def test_events_reach_the_page_and_its_reports_reach_us(stage):
    with client_of(stage) as client:
        with client.websocket_connect("/viewport/right/events") as page:
            until(lambda: stage.listeners)
            stage.listeners[0]({"kind": "pick", "point": [1.0, 2.0, 3.0]})
            assert page.receive_json() == {"kind": "pick", "point": [1.0, 2.0, 3.0]}
            for text in ('{"renderer": "SwiftShader"}', "not json", "[1]", '"x"', "[" * 50_000):
                page.send_text(text)
            page.send_text('{"last": 1}')
            until(lambda: {"last": 1} in stage.reports)
        until(lambda: not stage.listeners)
    assert stage.reports == [{"renderer": "SwiftShader"}, {"last": 1}]


def test_a_report_that_is_too_long_ends_the_events(stage):
    with (
        client_of(stage, limits=ProxyLimits(event_bytes=100)) as client,
        client.websocket_connect("/viewport/right/events") as page,
    ):
        page.send_text(json.dumps({"x": "y" * 200}))
        with pytest.raises(WebSocketDisconnect) as ended:
            page.receive_text()
    assert ended.value.code == 1009
    assert stage.reports == []


# ---- with viser ----------------------------------------------------------------------------------


def test_viser_itself_answers_through_the_relay():
    """The client page is one file without a request to anywhere else, and its socket is served."""
    viewport = Viewport()
    try:
        with client_of(viewport) as client:
            page = client.get("/viewport/right/")
            assert page.status_code == 200
            assert PAGE_HEAD in page.text
            assert "<script" in page.text and 'src="http' not in page.text
            protocol = ["viser-v1.1.1"]
            with client.websocket_connect("/viewport/right", subprotocols=protocol) as socket:
                assert socket.accepted_subprotocol == "viser-v1.1.1"
                assert len(socket.receive_bytes()) > 0
            with (
                client.websocket_connect("/viewport/right", subprotocols=["viser-v0.0.1"]) as old,
                pytest.raises(WebSocketDisconnect) as ended,
            ):
                while True:
                    old.receive_bytes()
            assert ended.value.code == 1002
    finally:
        viewport.close()


def until(condition, seconds: float = 10.0) -> None:
    """Waits for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# ---- files that nobody uploaded ------------------------------------------------------------------


def test_only_files_that_were_uploaded_may_be_named(tmp_path, caplog):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link").symlink_to(tmp_path)

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    routes = [Route(p, echo, methods=["POST"]) for p in ("/queue/join", "/run/x", "/upload")]
    gate = Middleware(RequestFilter, lambda: str(uploads), {3: [False]})
    file = {"meta": {"_type": "gradio.FileData"}}

    def event(path: object) -> str:
        data = ["token", [{"value": {"path": path, **file}}]]
        return json.dumps({"data": data, "fn_index": 3})

    with TestClient(Starlette(routes=routes, middleware=[gate])) as client:
        for path in (uploads / "a" / "b.ply", uploads / "c.zip"):
            sent = event(str(path))
            answer = client.post("/queue/join", content=sent)
            assert answer.status_code == 200 and answer.text == sent  # whole, and unchanged
        for path in ("/etc/passwd", "x.ply", str(uploads / ".." / "x"), f"{uploads}x/y",
                     str(uploads / "link" / "x"), str(uploads), "a\0b", ""):  # fmt: skip
            for route in ("/queue/join", "/run/x"):
                caplog.clear()
                answer = client.post(route, content=event(path))
                assert answer.status_code == 403 and "not uploaded" in answer.text, path
                (record,) = [r for r in caplog.records if r.name.startswith("ui.")]
                assert "\n" not in record.getMessage() and record.exc_info is None
                assert path in ("", "x.ply") or path not in record.getMessage()
        for sent in ("", "7", '{"fn_index": 3, "data": {"path": "/etc/passwd"}}', event(7)):
            assert client.post("/queue/join", content=sent).text == sent  # Gradio judges
        assert client.post("/upload", content=b"x" * (MAX_BODY + 1)).status_code == 200
        assert client.post("/queue/join", content=b"x" * (MAX_BODY + 1)).status_code == 413


@pytest.mark.timeout(20)  # copied anew for each chunk, it would take minutes
def test_an_event_in_many_small_chunks_is_put_together_once(tmp_path):
    chunk, count = b" " * 160, 100_000  # just below the largest event
    waiting = iter(range(count, -1, -1))
    heard = []

    async def receive() -> dict:
        left = next(waiting)
        return {"type": "http.request", "body": chunk if left else b"7", "more_body": left > 0}

    async def app(scope, receive, send) -> None:
        while not heard or heard[-1]["more_body"]:
            heard.append(await receive())

    async def send(message) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/queue/join", "headers": []}
    asyncio.run(RequestFilter(app, lambda: str(tmp_path), {})(scope, receive, send))
    assert len(heard) == count + 1 and heard[-1]["body"] == b"7"


def test_what_no_page_sends_is_refused_in_one_line(tmp_path, caplog):
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    gate = Middleware(RequestFilter, lambda: str(tmp_path), {0: [], 5: [True], 7: [False, False]})
    route = Route("/{path:path}", echo, methods=["POST"])

    def event(index: object, *data: object) -> bytes:
        return json.dumps({"fn_index": index, "data": data, "session_hash": "x"}).encode()

    no_json = (b"\xff\xfe", b'{"data": ["\xff"]}', b"--x\r\n\xff", b"[", b'{"session_hash": NaN}',
               b'{"session_hash": 1e999}', b'{"session_hash": "\\ud800"}',
               "{}".encode("utf-16"))  # fmt: skip
    unknown = [event(index, 1, 2) for index in (8, -1, None, "7", True, 7.0, [7])]
    cases = [("/queue/join", body, "not JSON") for body in no_json]
    cases += [("/reset", body, "not JSON") for body in no_json]
    cases += [(path, body, "no such event") for body in unknown
              for path in ("/queue/join", "/queue/join/", "/run/x", "/api/x")]  # fmt: skip
    cases += [("/queue/join", event(7, 1), "takes 2 values, got 1"),
              ("/queue/join", event(5, {"path": "x"}), "takes a list of files, got dict"),
              ("/queue/join", b"[" * 1_000_000, "nested"),
              ("/gradio_api/call/x", b'{"data": []}', "public name"),
              ("/gradio_api/call/v2/x", event(7, 1, 2), "public name"),
              ("/gradio_api/component_server", b"{}", "public name")]  # fmt: skip
    with TestClient(Starlette(routes=[route], middleware=[gate])) as client:
        for path, body, words in cases:
            caplog.clear()
            answer = client.post(path, content=body)
            assert answer.status_code == 400 and words in answer.json()["detail"], (path, body[:50])
            (record,) = [r for r in caplog.records if r.name.startswith("ui.")]
            assert "\n" not in record.getMessage() and record.exc_info is None
        pair = b'{"fn_index": 7, "data": ["\\ud83d\\ude00", 1.5e3, "\\\\ud800"]}'
        for body in (
            event(0),
            event(5, []),
            event(5, None),
            event(7, 1, 2),
            event(7, 1, 2, 3),
            pair,
        ):
            assert client.post("/queue/join", content=body).content == body
        assert client.post("/cancel", content=b'{"event_id": "a"}').status_code == 200
