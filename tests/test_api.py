"""The HTTP API and the MCP server, as programs use them."""

import asyncio
import io
import json
import runpy
import socket
import threading
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.conftest import InstantGenerator, room_capture
from ui.__main__ import AppConfig, byte_count
from ui.api.http import routes
from ui.session.config import GeneratorChoice, SessionsConfig
from ui.session.sessions import Sessions

TOKEN = "0123456789abcdef"
NOBODY = "A" * 43
ROOT = Path(__file__).parent.parent


@pytest.fixture
def sessions(tmp_path):
    made = InstantGenerator()
    choice = GeneratorChoice("instant", "Instant", "", made.limits, lambda: made)
    held = Sessions(
        SessionsConfig(
            generator="instant",
            generators=(choice,),
            examples=(),
            max_points=50_000,
            max_sessions=2,
            projects=tmp_path / "projects",
            read=lambda path, name: room_capture(2),
        )
    )
    yield held
    held.close_all()


@pytest.fixture
def api(sessions):
    app = Starlette(routes=routes(sessions, TOKEN, 1000))
    with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def opened(api: TestClient) -> str:
    world = f"/v1/worlds/{api.post('/v1/worlds').json()['world']}"
    sent = api.post(f"{world}/open/upload", params={"name": "room.zip"}, content=b"any")
    assert sent.status_code == 202
    state = api.get(world, params={"wait": 30}).json()
    assert state["job"]["state"] == "done" and not state["busy"]
    assert state["views"] == {"given": 2, "generated": 0} and state["points"] > 0
    return world


def test_open_path_generate_export_undo_end(api, sessions):
    world = opened(api)
    path = api.post(f"{world}/path", json={"preset": "truck", "frames": 3, "size": "320x240"})
    assert path.json()["path"]["frames"] == 3
    assert api.post(f"{world}/generate", json={"seed": 4}).status_code == 200
    state = api.get(world, params={"wait": 30}).json()
    assert (state["job"]["kind"], state["job"]["state"], state["clips"]) == ("explore", "done", 1)
    assert state["views"]["generated"] == 3 and state["can_undo"]

    scene = sessions.get(state["world"]).world.scene
    assert scene.clips[-1].seed == 4
    ply = api.get(f"{world}/export/ply")
    assert ply.content.startswith(b"ply") and ".ply" in ply.headers["content-disposition"]
    assert f"element vertex {len(scene.cloud)}".encode() in ply.content[:2000]
    given = api.get(f"{world}/export/ply", params={"generated": 0})
    assert len(given.content) < len(ply.content)
    project = api.get(f"{world}/export/project")
    assert zipfile.is_zipfile(io.BytesIO(project.content))

    assert api.post(f"{world}/undo").json()["views"]["generated"] == 0
    assert api.post(f"{world}/redo").json()["views"]["generated"] == 3
    assert api.delete(world).status_code == 204
    assert state["world"] not in sessions._sessions


def test_a_path_of_matrices_goes_through_them(api, sessions):
    world = opened(api)
    eye = [[1, 0, 0, 0.0], [0, 1, 0, 0.0], [0, 0, 1, 0.0], [0, 0, 0, 1]]
    there = [[1, 0, 0, 0.2], [0, 1, 0, -0.1], [0, 0, 1, 0.3], [0, 0, 0, 1]]
    state = api.post(f"{world}/path", json={"keyframes": [eye, there], "frames": 5}).json()
    plan = sessions.get(state["world"]).planned.path
    assert len(plan) == 5
    np.testing.assert_allclose(plan.cameras.c2w[0], eye, atol=1e-5)
    np.testing.assert_allclose(plan.cameras.c2w[-1], there, atol=1e-5)


def test_nobody_enters_without_the_token(api):
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        bare = TestClient(api.app, headers=header)
        for answer in (bare.get("/v1"), bare.post("/v1/worlds"), bare.get(f"/v1/worlds/{NOBODY}")):
            assert answer.status_code == 401 and "Bearer" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/path", {"preset": "sideways"}, 400, "no path named"),
        ("POST", "/path", {"preset": "orbit", "frames": 0}, 400, "between 1 and 1000"),
        ("POST", "/path", {"frams": 3}, 400, "no field 'frams'"),
        ("POST", "/path", {"keyframes": [[1, 2], [3, 4]]}, 400, "4 rows of 4 finite numbers"),
        ("POST", "/path", {"keyframes": 3}, 400, "2 to 200 matrices"),
        ("POST", "/generate", {"generator": "magic"}, 400, "no path yet"),
        ("POST", "/generate", ["a list"], 400, "must be a JSON object, got list"),
        ("GET", "/export/nope", None, 400, "must be one of"),
        ("GET", "/export/ply?generated=2", None, 400, "generated is 0 or 1"),
        ("GET", "?wait=999", None, 400, "from 0 to 30"),
        ("POST", "/open/upload", None, 400, "what the file is called"),
        ("POST", "/open/upload?name=a.zip", None, 400, "body is empty"),
    ],
)
def test_refusals_are_one_line(api, method, path, body, status, words):
    world = opened(api)
    before = api.get(world).json()
    answer = api.request(method, f"{world}{path}", json=body)
    assert (answer.status_code, "\n" in answer.json()["error"]) == (status, False)
    assert words in answer.json()["error"]
    after = api.get(world).json()
    assert {**after, "saved": ""} == {**before, "saved": ""}


def test_limits(api):
    world = opened(api)
    large = api.post(f"{world}/open/upload", params={"name": "a.zip"}, content=b"x" * 1001)
    assert large.status_code == 413 and "1,000 bytes" in large.json()["error"]
    assert api.post("/v1/worlds").status_code == 201
    full = api.post("/v1/worlds")
    assert full.status_code == 503 and "in use" in full.json()["error"]
    assert api.get(f"/v1/worlds/{NOBODY}").status_code == 404
    assert api.get("/v1/worlds/..%2f..%2fetc/export/ply").status_code == 404


def any_json(rng: np.random.Generator, depth: int = 0):
    """Some JSON value; names are those that the API reads."""
    kind = rng.integers(0, 6 if depth < 3 else 4)
    if kind < 4:
        scalars = [None, True, -1, 3, 0.5, 1e300, float("nan"), float("inf"), "", "orbit", "\ud800"]
        return scalars[rng.integers(0, len(scalars))]
    if kind == 4:
        return [any_json(rng, depth + 1) for _ in range(rng.integers(0, 4))]
    names = ["preset", "value", "frames", "keyframes", "seed", "size", "guide", "prompt", "x"]
    chosen = rng.choice(names, rng.integers(0, 4), replace=False)
    return {str(name): any_json(rng, depth + 1) for name in chosen}


def test_no_body_makes_the_app_fail(api):
    """Seeded by hand: other threads use `random`, which Hypothesis takes for the strategy's use."""
    world, rng = opened(api), np.random.default_rng(0)
    for _ in range(60):
        body = {"frames": any_json(rng), "preset": any_json(rng)} | dict(any_object(rng))
        for path in ("path", "generate"):
            answer = api.post(f"{world}/{path}", content=json.dumps(body))
            assert answer.status_code in (200, 400, 409), (body, answer.text)
            api.post(f"{world}/cancel")


def any_object(rng: np.random.Generator) -> dict:
    found = any_json(rng)
    return found if isinstance(found, dict) else {"value": found}


def test_the_app_is_told_of_it():
    assert AppConfig(api_token=TOKEN).api_token == TOKEN
    with pytest.raises(ValueError, match="at least 16 characters, got 5"):
        AppConfig(api_token="short")
    assert byte_count("500mb") == 500 << 20 and byte_count("7") == 7
    with pytest.raises(ValueError, match="500mb"):
        AppConfig(max_upload="much")


@pytest.mark.filterwarnings("ignore")  # of uvicorn, not ours
def test_the_documented_client(sessions, tmp_path, monkeypatch):
    config = uvicorn.Config(
        Starlette(routes=routes(sessions, TOKEN, 1000)), port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            monkeypatch.setenv("WORLDSTEREO_API_TOKEN", TOKEN)
            monkeypatch.setenv("WORLDSTEREO_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
            (tmp_path / "room.zip").write_bytes(b"any")
            client = runpy.run_path(str(ROOT / "examples" / "06_http_client.py"))
            client["main"](tmp_path / "room.zip", tmp_path / "orbit.mp4")
        finally:
            server.should_exit = True
            thread.join(20)
    with av.open(str(tmp_path / "orbit.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 9


def test_an_assistant_uses_the_same_calls(api, tmp_path: Path):
    mcp = pytest.importorskip("mcp")
    from ui.api.mcp import Remote, server

    made = server(Remote(api))
    photo, out = tmp_path / "photo.png", tmp_path / "room.ply"
    Image.new("RGB", (8, 8)).save(photo)

    async def use() -> None:
        async with mcp.Client(made) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"open_file", "plan_path", "generate", "state", "export", "undo"} <= names

            async def call(name: str, **arguments):
                answer = await client.call_tool(name, arguments)
                text = answer.content[0].text
                return answer.is_error, text if name == "export" else _json_or_text(text)

            failed, state = await call("open_file", path=str(photo))
            assert not failed
            world = state["world"]
            assert (await call("state", world=world))[1]["views"]["given"] == 2
            assert (await call("plan_path", world=world, preset="truck", frames=2))[0] is False
            assert (await call("generate", world=world))[0] is False
            assert (await call("state", world=world))[1]["views"]["generated"] == 2
            assert (await call("export", world=world, format="ply", path=str(out)))[0] is False
            assert out.read_bytes().startswith(b"ply")
            failed, line = await call("export", world=world, format="ply", path=str(out))
            assert failed and "exists" in line
            failed, line = await call("plan_path", world=world, preset="sideways")
            assert failed and "no path named" in line
            failed, line = await call("open_file", path=str(tmp_path / "none.zip"))
            assert failed and "no file" in line

    asyncio.run(use())


def _json_or_text(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text
