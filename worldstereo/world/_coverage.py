"""What a world knows of its place: coverage of the cloud, where most can be learned, a path there.

A surface point is known well, known from one side only, or invented; what no point covers is
unknown. The next best views are the cameras whose picture holds most unknown that borders on known:
there the generator has something to continue from, and the world grows visibly.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.progress import OnStep, ignore
from worldstereo.render import render_points
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory

AGREE = 0.05
"""Relative depth within which a view sees a point, and not something else."""
ONE_SIDED = 15.0
"""Degrees between the rays to a point up to which it is known from one side only."""
MAX_POINTS = 150_000
"""Points that candidates are drawn with; more are thinned evenly."""
SMALL = (80, 60)
"""Size at which candidates are judged, pixels along the longer and the shorter side."""
POSITIONS = 16
HEADINGS = tuple(range(0, 360, 30))
STEP = 0.25
"""How far beside a remembered camera a candidate stands, as a share of the unit."""
BORDER = 0.25
"""How far unknown may lie from known to count, as a share of the picture's width."""
CONTEXT = 0.35
"""Share of a candidate's picture that must be known: there is something to continue from."""
CLEAR = 0.2
"""Nearest surface allowed in front of a candidate, as a share of the unit."""


SAMPLE = 10_000
"""Points from which the cloud's spacing in a picture is read."""
UNSPACED, COARSEST = 4.0, 8.0
"""How much smaller a camera is drawn where points carry no radius, and at most."""


class Known(IntEnum):
    """How well a point of the cloud is known."""

    WELL = 0
    ONE_SIDE = 1
    INVENTED = 2


@dataclass(frozen=True, eq=False)
class Coverage:
    """How well each point of the cloud is known; rows are those of `Scene.cloud`."""

    observations: Int[Tensor, "N"]
    """Given views that see the point."""
    angle: Float[Tensor, "N"]
    """Degrees between the two rays to it that differ most from their mean, twice the largest."""
    known: UInt8[Tensor, "N"]
    """`Known` of each point."""

    def colors(self) -> Float[Tensor, "N 3"]:
        """Blue where a point is known well, over yellow where from one side, to red: invented."""
        table = torch.tensor([[0.16, 0.47, 0.71], [0.99, 0.80, 0.30], [0.84, 0.19, 0.15]])
        out = table[self.known.long()]
        fewer = (1 - self.observations.clamp(1, 4).float() / 4)[:, None] * 0.35
        return out + (1 - out) * fewer


@dataclass(frozen=True, eq=False)
class NextView:
    """A camera from which much can be learned."""

    camera: Cameras
    gain: float
    """Share of its picture that is unknown and borders on known."""
    unknown: float
    """Share of its picture that no memory knows."""


def coverage(scene: Scene) -> Coverage:
    """Which points of the cloud are known from several sides, from one, or were invented."""
    points = scene.cloud.points
    n = len(points)
    count = torch.zeros(n, dtype=torch.int64)
    total = torch.zeros(n, 3)
    lowest = torch.ones(n)
    given = [view for view in scene.views if view.step == 0]
    rays = []
    for view in given:
        pixels, depth = view.cameras.project(points)
        inside = (depth > 0) & (pixels >= 0).all(1)
        inside &= (pixels[:, 0] < view.width) & (pixels[:, 1] < view.height)
        rows = inside.nonzero()[:, 0]
        at = pixels[rows].long()
        shown = view.depth[0][at[:, 1], at[:, 0]]
        rows = rows[(shown > 0) & ((shown - depth[rows]).abs() < AGREE * depth[rows])]
        ray = torch.nn.functional.normalize(points[rows] - view.cameras.position, dim=1)
        count[rows] += 1
        total[rows] += ray
        rays.append((rows, ray))
    mean = torch.nn.functional.normalize(total, dim=1)
    for rows, ray in rays:
        lowest[rows] = torch.minimum(lowest[rows], (ray * mean[rows]).sum(1))
    angle = 2 * torch.rad2deg(torch.arccos(lowest.clamp(-1, 1)))
    known = torch.where((count > 1) & (angle > ONE_SIDED), int(Known.WELL), int(Known.ONE_SIDE))
    known[scene.cloud.step > 0] = int(Known.INVENTED)
    return Coverage(count, angle, known.to(torch.uint8))


def unknown(scene: Scene, camera: Cameras) -> Bool[Tensor, "1 H W"]:
    """Pixels of a camera in which the memories know no surface.

    The cloud is drawn as finely as its points lie: at full resolution where they lie closer than a
    3x3 footprint, else so much smaller that they close up; slivers behind edges stay visible.
    """
    factor = _coarseness(scene, camera)
    w, h = (max(16, round(camera.width / factor)), max(12, round(camera.height / factor)))
    seen = _seen(scene.cloud.points, camera.scaled(w, h))[0]
    out = ~torch.from_numpy(seen)[None]
    if (w, h) == (camera.width, camera.height):
        return out
    large = torch.nn.functional.interpolate(
        out[None].float(), (camera.height, camera.width), mode="nearest"
    )
    return large[0] > 0.5


def _coarseness(scene: Scene, camera: Cameras) -> float:
    """How much smaller a camera must be for 3x3 footprints to close the cloud's surface."""
    cloud = scene.cloud
    step = max(1, len(cloud) // SAMPLE)
    pixels, depth = camera.project(cloud.points[::step])
    radii = cloud.radii[::step]
    inside = (depth > 0) & (pixels >= 0).all(1) & (radii > 0)
    inside &= (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    if not bool(inside.any()):
        return UNSPACED
    spacing = 2 * radii[inside] * float(camera.K[0, 0]) / depth[inside]
    return min(max(1.0, float(spacing.median()) / 3), COARSEST)


def next_best_views(
    scene: Scene,
    count: int = 3,
    *,
    size: tuple[int, int] = (640, 480),
    on_step: OnStep = ignore,
) -> tuple[NextView, ...]:
    """The cameras that show most unknown at the edge of the known, the best first.

    Candidates stand at and beside remembered cameras, where no surface is near, and look every way.

    Raises:
        WorldStereoError: the world holds no view to stand at.
    """
    candidates = _candidates(scene)
    points = _thinned(scene.cloud.points)
    gains, shares = [], []
    for i, camera in enumerate(candidates):
        if i % 16 == 0:
            on_step(i, len(candidates), "Looking for unknown areas")
        gain, share = _gain(points, camera, scene.unit)
        gains.append(gain)
        shares.append(share)
    order = np.argsort(-np.array(gains), kind="stable")
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) == count or gains[i] <= 0:
            break
        if all(_differs(candidates[i], candidates[j], scene.unit) for j in chosen):
            chosen.append(i)
    return tuple(NextView(_sized(candidates[i], *size), gains[i], shares[i]) for i in chosen)


def front_at(camera: Cameras, size: tuple[int, int]) -> NextView:
    """A front that a person chose: where they look, however much is missing there.

    Args:
        size: of its picture, pixels.
    """
    return NextView(_sized(camera, *size), 1.0, 1.0)


def unknown_along(scene: Scene, path: Trajectory, frames: int = 6) -> float:
    """About which share of a path's pictures no point of the cloud covers; quick, from a few."""
    points = _thinned(scene.cloud.points)
    few = np.unique(np.linspace(0, len(path) - 1, min(frames, len(path))).astype(int)).tolist()
    wide = path.cameras.width >= path.cameras.height
    small = SMALL if wide else SMALL[::-1]
    shares = [1 - float(_seen(points, path.cameras[i].scaled(*small))[0].mean()) for i in few]
    return sum(shares) / len(shares)


def propose_path(
    scene: Scene,
    *,
    frames: int = 25,
    size: tuple[int, int] = (640, 480),
    to: NextView | None = None,
    on_step: OnStep = ignore,
) -> Trajectory:
    """A path from the nearest remembered view to where most unknown borders on known.

    Args:
        to: its goal; the best of `next_best_views` where it is left out.

    Raises:
        WorldStereoError: no view to start from, or nothing unknown borders on what is known.
    """
    goals = (to,) if to is not None else next_best_views(scene, 1, size=size, on_step=on_step)
    if not goals:
        raise WorldStereoError("Nothing unknown borders on what this world knows.")
    goal = goals[0].camera
    views = [view for view in scene.views if view.step == 0] or list(scene.views)
    start = min(views, key=lambda view: _far(view.cameras, goal, scene.unit)).cameras
    first = Cameras(goal.K, start.c2w.to(goal.c2w), goal.width, goal.height)
    return Trajectory.through([first, goal], frames, name="toward the unknown")


def _candidates(scene: Scene) -> list[Cameras]:
    views = [view for view in scene.views if view.step == 0] or list(scene.views)
    if not views:
        raise WorldStereoError("This world holds no view to start a path from.")
    picked = np.unique(np.linspace(0, len(views) - 1, min(POSITIONS, len(views))).astype(int))
    up = scene.up / scene.up.norm().clamp_min(1e-9)
    out = []
    for k in picked.tolist():
        camera = views[k].cameras
        side = camera.c2w[:3, 0]
        moves = (0.0,) if len(picked) > POSITIONS // 2 else (0.0, STEP, -STEP)
        for move in moves:
            place = camera.c2w.clone()
            place[:3, 3] += move * scene.unit * side
            for heading in HEADINGS:
                turned = place.clone()
                turned[:3, :3] = _about(up, heading).to(place) @ place[:3, :3]
                out.append(Cameras(camera.K, turned, camera.width, camera.height))
    return out


def _about(axis: Float[Tensor, "3"], degrees: float) -> Float[Tensor, "3 3"]:
    """Rotation about an axis. Source: Rodrigues 1840."""
    x, y, z = axis.tolist()
    K = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    return torch.eye(3) + torch.sin(angle) * K + (1 - torch.cos(angle)) * (K @ K)


def _gain(points: Float[Tensor, "N 3"], camera: Cameras, unit: float) -> tuple[float, float]:
    """Unknown near known, and unknown, as shares of a candidate's picture; 0 where it is barred."""
    import cv2

    wide = camera.width >= camera.height
    seen, depth = _seen(points, camera.scaled(*(SMALL if wide else SMALL[::-1])))
    share = float(seen.mean())
    near = depth[depth > 0]
    if share < CONTEXT or len(near) == 0 or float(np.quantile(near, 0.02)) < CLEAR * unit:
        return 0.0, 1 - share
    reach = round(BORDER * seen.shape[1])
    distance = cv2.distanceTransform((~seen).astype(np.uint8), cv2.DIST_L2, 3)
    return float((~seen & (distance < reach)).mean()), 1 - share


def _seen(points: Float[Tensor, "N 3"], camera: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Mask (h, w) of pixels with a surface, small gaps closed, and the depth drawn."""
    import cv2

    drawn = render_points(points, None, camera, radius=1)
    mask = drawn.mask[0].cpu().numpy() > 0
    closed = cv2.morphologyEx(
        np.pad(mask.astype(np.uint8), 2, mode="edge"), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )[2:-2, 2:-2]
    return closed > 0, drawn.depth[0].cpu().numpy()


def _thinned(points: Float[Tensor, "N 3"]) -> Float[Tensor, "M 3"]:
    return points[:: max(1, -(-len(points) // MAX_POINTS))].contiguous()


def _sized(camera: Cameras, width: int, height: int) -> Cameras:
    """The camera at another size, square pixels kept: the narrower angle of view stays."""
    scale = min(width / camera.width, height / camera.height)
    K = torch.tensor(
        [
            [float(camera.K[0, 0]) * scale, 0.0, width / 2],
            [0.0, float(camera.K[1, 1]) * scale, height / 2],
            [0.0, 0.0, 1.0],
        ]
    )
    return Cameras(K, camera.c2w.float(), width, height)


def _far(a: Cameras, b: Cameras, unit: float) -> float:
    """How far apart two cameras are; a radian counts like half a unit."""
    turn = torch.trace(a.c2w[:3, :3].double().T @ b.c2w[:3, :3].double())
    angle = float(torch.arccos(((turn - 1) / 2).clamp(-1, 1)))
    return float((a.position.double() - b.position.double()).norm()) / unit + 0.5 * angle


def _differs(a: Cameras, b: Cameras, unit: float) -> bool:
    return _far(a, b, unit) > 0.4
