"""What the viewport's tests share: small worlds to open, and hands for what lies in it."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import room
from worldstereo.cameras import Cameras, look_at

SIDE = 110  # points along a side of the wall


def wall() -> bytes:
    """A coloured wall of 2 x 2 units at z = 0, as PLY without faces."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    rows = np.zeros(SIDE * SIDE, [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("r", "g", "b")])
    rows["x"], rows["y"] = x.ravel(), y.ravel()
    rows["r"], rows["g"], rows["b"] = (x.ravel() + 1) * 120, (y.ravel() + 1) * 120, 90
    names = [f"property float {n}" for n in "xyz"]
    names += [f"property uchar {n}" for n in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *names]
    return ("\n".join([*head, "end_header"]) + "\n").encode() + rows.tobytes()


def send(page: Any, path: Path) -> None:
    files = page.locator("#upload").locator("xpath=..").locator("input[type=file]")
    files.first.set_input_files(path)  # the next is for photos of an open world


def at(page: Any, u: float, v: float) -> tuple[float, float]:
    """A place on the viewport, 0 to 1 from the top left."""
    box = page.locator("#viewport").bounding_box()
    assert box is not None
    return box["x"] + u * box["width"], box["y"] + v * box["height"]


def drag(page: Any, a: tuple[float, float], b: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = at(page, *a), at(page, *b)
    page.mouse.move(x0, y0)
    page.mouse.down()
    for s in (0.25, 0.5, 0.75, 1.0):
        page.mouse.move(x0 + s * (x1 - x0), y0 + s * (y1 - y0))
        page.wait_for_timeout(150)
    page.mouse.up()


def until(page: Any, act: Any, condition: str, tries: int = 8) -> None:
    """Do it, and again: a page that is still drawing may miss a click."""
    for _ in range(tries):
        act()
        try:
            page.wait_for_function(f"() => {condition}", timeout=8_000)
        except Exception:  # noqa: BLE001, S112  (playwright's own, of several kinds)
            continue
        return
    pytest.fail(f"never: {condition}")


def text(selector: str, pattern: str) -> str:
    return f"/{pattern}/.test(document.querySelector('{selector}').innerText)"


COUNT, WIDTH, HEIGHT, FOCAL = 3, 192, 144, 160.0
STAGE = "document.querySelector('#viewport iframe').contentWindow"
ON_PAGE = """([name, x, y, z]) => {
  const frame = document.querySelector('#viewport iframe');
  const { camera, nodeRefFromName } = frame.contentWindow.__viserMutable;
  const node = nodeRefFromName[name];
  node.updateWorldMatrix(true, false);
  const at = node.localToWorld(node.position.clone().set(x, y, z)).project(camera);
  const box = frame.getBoundingClientRect();
  return [box.left + (at.x + 1) / 2 * box.width, box.top + (1 - at.y) / 2 * box.height];
}"""
"""Where a point of a node, in its own coordinates, is on the page."""


def photos() -> bytes:
    """A zip of pictures of the two-wall room with `transforms.json`; no depth, no points."""
    K = torch.tensor([[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, HEIGHT / 2], [0.0, 0.0, 1.0]])
    up, target = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([-0.2, 0.1, 4.0])
    eyes = [torch.tensor([0.25 * i - 0.3, 0.05 * i, -0.05 * i]) for i in range(COUNT)]
    poses = torch.stack([look_at(eye, target, up) for eye in eyes])
    cameras = Cameras(K.expand(COUNT, 3, 3).clone(), poses, WIDTH, HEIGHT)
    _, depth = room(cameras)
    chance = torch.Generator().manual_seed(3)
    waves, phase = 7 * torch.randn(24, 3, generator=chance), 6 * torch.rand(24, 3, generator=chance)
    frames, packed = [], io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for i in range(COUNT):
            points = cameras[i].unproject(cameras[i].pixel_grid(), depth[i].flatten())
            shade = [torch.sin(points @ waves.T + phase[:, c]).sum(1) for c in range(3)]
            color = (0.5 + 0.06 * torch.stack(shade, 1)).clamp(0, 1)
            picture = io.BytesIO()
            pixels = (color * 255).byte().reshape(HEIGHT, WIDTH, 3).numpy()
            Image.fromarray(pixels).save(picture, "PNG")
            archive.writestr(f"{i}.png", picture.getvalue())
            pose = poses[i] @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
            frames.append({"file_path": f"{i}.png", "transform_matrix": pose.tolist()})
        named = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
        size = {"w": WIDTH, "h": HEIGHT}
        archive.writestr("transforms.json", json.dumps({**named, **size, "frames": frames}))
    return packed.getvalue()


def on_page(page: Any, name: str, *local: float) -> tuple[float, float]:
    x, y = page.evaluate(ON_PAGE, [name, *local])
    return x, y


def place(page: Any, name: str) -> np.ndarray:
    """(4, 4) of a node of the viewport."""
    script = f"name => {STAGE}.__viserMutable.nodeRefFromName[name].matrixWorld.elements"
    return np.array(page.evaluate(script, name)).reshape(4, 4).T
