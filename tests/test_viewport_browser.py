"""The stage in real Chromium, through the relay: what is drawn, flown and clicked.

Asserts on viser's own test hooks (`__viserTestpoints`, `__viserMutable`), which are undocumented:
this test is what notices when another version of viser renames them.
"""

import shutil
import socket
import threading
import time

import numpy as np
import pytest
import torch

from tests.conftest import room, turned_cameras
from tests.test_viewport import wall
from ui.server import proxy
from ui.viewport.events import Pick
from ui.viewport.viewport import Viewport
from worldstereo.scene import Scene, View
from worldstereo.trajectory import Trajectory

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120.0  # a busy machine draws in software

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@pytest.fixture
def address():
    """A viewport behind the relay on a port of its own: (viewport, address, its events)."""
    import uvicorn
    from starlette.applications import Starlette

    said: list = []
    viewport = Viewport(on_event=said.append)
    app = Starlette(routes=proxy.routes(lambda token: viewport if token == "T" else None))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    settings = uvicorn.Config(app, log_level="error", ws_per_message_deflate=False, lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield viewport, f"{origin}/viewport/T/?darkMode&fixedDpr=1", said
    server.should_exit = True
    thread.join(20)
    viewport.close()
    listener.close()


def until(page, condition) -> None:
    """Waits for a final state, while the page goes on."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        page.wait_for_timeout(100)


def off(viewport: Viewport, goal) -> float:
    """How far the visitor is from a camera, scene units; infinite before there is a visitor."""
    here = viewport.camera()
    return float("inf") if here is None else float((here.position - goal.position).norm())


def at_rest(page, viewport: Viewport) -> bool:
    """Whether the page has reported no other camera for a second."""
    before = viewport.camera()
    page.wait_for_timeout(1000)
    return before is not None and off(viewport, before) == 0


@pytest.mark.filterwarnings("ignore")  # of uvicorn and playwright, not ours
def test_the_stage_is_drawn_flown_and_clicked(address):
    from playwright.sync_api import sync_playwright

    viewport, url, said = address
    cameras = turned_cameras(2)
    color, depth = room(cameras)
    views = tuple(View.of(color[i], depth[i], cameras[i], frame=i) for i in range(2))
    cloud = wall(4001)
    cloud = type(cloud)(**{**cloud.__dict__, "radii": torch.full((4001,), 0.05)})  # without gaps
    scene = Scene(revision=1, name="room", views=views, cloud=cloud, unit=2.0)
    requests = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 480, "height": 320})
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        until(page, lambda: viewport.camera() is not None)  # the page comes first, then the scene
        viewport.draw(scene)
        shown = "() => window.__viserTestpoints.rendererInfo.render.points"
        until(page, lambda: page.evaluate(shown) >= 4001)
        # nothing of viser's own panels is in the way
        panels = page.locator("[data-floating-window], #webgl-software-rendering").all()
        assert not any(panel.is_visible() for panel in panels)
        # new points arrive without the old ones
        before = viewport.stats["bytes_sent"]
        new = wall(503, step=1, z=2.5)
        names = ("points", "colors", "confidence", "step", "normals", "radii", "source")
        both = {n: torch.cat([getattr(cloud, n), getattr(new, n)]) for n in names}
        grown = type(cloud)(**both)
        viewport.draw(Scene(revision=2, name="room", views=views, cloud=grown, unit=2.0))
        until(page, lambda: page.evaluate(shown) >= 4504)
        assert viewport.stats["bytes_sent"] - before == 9 * 503
        # the visitor is flown to a view, and along a path to its end
        viewport.fly_to(cameras[1])
        until(page, lambda: off(viewport, cameras[1]) < 0.02)
        here = viewport.camera()
        assert float(here.forward @ cameras[1].forward) > 0.999
        viewport.play(Trajectory(cameras[[1, 0]], fps=4.0))
        until(page, lambda: off(viewport, cameras[0]) < 0.02 and not viewport.playing)
        until(page, lambda: at_rest(page, viewport))  # a ray and its camera are of one moment
        # a click becomes the point of the cloud under the pointer
        said.clear()
        picks: list[Pick] = []

        def picked() -> bool:
            page.mouse.click(300, 140)  # again: a page that is still drawing may miss one
            page.wait_for_timeout(2000)
            picks.extend(event for event in said if isinstance(event, Pick))
            return bool(picks)

        until(page, picked)
        eye = viewport.camera(480, 320)
        point = grown.points[picks[0].row]
        np.testing.assert_allclose(picks[0].point, point, atol=1e-4)
        pixel, _ = eye.project(point[None])
        assert float((pixel[0] - torch.tensor([300.5, 140.5])).norm()) < 12
        browser.close()
    outside = [
        u for u in requests if not u.startswith((url.split("/viewport")[0], "data:", "blob:"))
    ]
    assert outside == []
