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

from worldstereo._core.evenly import evenly
from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.guide import RADIUS
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
SPACING = 30
HEADINGS = tuple(range(0, 360, SPACING))
"""Degrees from a remembered camera's own heading; candidates look that way."""
FARTHER = (-5, 5)
"""Degrees by which the best candidate may be turned farther into the unknown. As far as `CONTEXT`
allows, a fifth of the pictures is saved, and what they show is displaced twice as much."""
ALIKE = 0.95
"""Share of its gain that it keeps then."""
STEP = 0.25
"""How far beside a remembered camera a candidate stands, as a share of the unit."""
BORDER = 0.25
"""How far unknown may lie from known to count, as a share of the picture's width."""
CONTEXT = 0.35
"""Share of a candidate's picture that must be known: there is something to continue from."""
CLEAR = 0.2
"""Nearest surface allowed in front of a candidate, as a share of the unit."""

UNSPACED = 4.0
"""How much smaller a camera is drawn where points carry no radius."""
TRUSTED = 0.25
"""Points below this confidence have a guessed depth, unless a generator made them."""
GAP = 1 / 30
"""Widest gap between known surfaces that guessed ones close, as a share of the picture's width."""


class Known(IntEnum):
    """How well a point of the cloud is known."""

    WELL = 0
    ONE_SIDE = 1
    INVENTED = 2


@dataclass(frozen=True, eq=False)
class Coverage:
    """How well each point of the cloud is known; rows are those that `coverage` was asked for."""

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


def coverage(scene: Scene, every: int = 1) -> Coverage:
    """Which points of the cloud are known from several sides, from one, or were invented.

    Args:
        every: only each n-th point is asked about; rows are those of `scene.cloud` with this step.
    """
    points = scene.cloud.points[::every]
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
    known[scene.cloud.step[::every] > 0] = int(Known.INVENTED)
    return Coverage(count, angle, known.to(torch.uint8))


def unknown(scene: Scene, camera: Cameras) -> Bool[Tensor, "1 H W"]:
    """Pixels of a camera in which the memories know no surface.

    Points are drawn as wide as they lie apart, so that near and far surfaces close up and slivers
    behind edges stay visible. Depth that was only guessed counts as known where it fills a gap
    between surfaces that were measured or generated, and not where it continues them.
    """
    cloud = scene.cloud
    if not bool((cloud.radii > 0).any()):
        return _unknown_without_spacing(scene, camera)
    sure = (cloud.confidence >= TRUSTED) | (cloud.step > 0)
    known = _surface(cloud.points[sure], cloud.radii[sure], scene, camera)
    if not bool(sure.all()):
        guessed = _surface(cloud.points[~sure], cloud.radii[~sure], scene, camera)
        known |= guessed & _closed(known, max(3, round(GAP * camera.width)))
    return ~torch.from_numpy(_closed(known, 3))[None]


def _surface(
    points: Float[Tensor, "N 3"], radii: Float[Tensor, "N"], scene: Scene, camera: Cameras
) -> np.ndarray:
    """(H, W) bool: where points are drawn as wide as they lie apart."""
    wide = RADIUS * radii if scene.stretch > 1 else radii
    drawn = render_points(points.contiguous(), None, camera, radius=1, radii=wide)
    return drawn.mask[0].cpu().numpy() > 0


def _closed(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask without the gaps that are narrower than so many pixels."""
    import cv2

    shape = cv2.MORPH_RECT if width <= 3 else cv2.MORPH_ELLIPSE
    around = cv2.getStructuringElement(shape, (width, width))
    wide = np.pad(mask.astype(np.uint8), width, mode="edge")
    return cv2.morphologyEx(wide, cv2.MORPH_CLOSE, around)[width:-width, width:-width] > 0


def _unknown_without_spacing(scene: Scene, camera: Cameras) -> Bool[Tensor, "1 H W"]:
    """Nothing says how far apart the points lie: they close up in a smaller picture."""
    w, h = (max(16, round(camera.width / UNSPACED)), max(12, round(camera.height / UNSPACED)))
    seen = _seen(scene.cloud.points, camera.scaled(w, h))[0]
    out = torch.from_numpy(~seen)[None, None].float()
    size = (camera.height, camera.width)
    return torch.nn.functional.interpolate(out, size, mode="nearest")[0] > 0.5


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
    return tuple(_turned_farther(points, candidates[i], scene, size) for i in chosen)


def _turned_farther(
    points: Float[Tensor, "N 3"], camera: Cameras, scene: Scene, size: tuple[int, int]
) -> NextView:
    """A candidate turned until it shows most unknown while its gain stays: the fewest pictures
    then go around a place, and each still has `CONTEXT` to continue from."""
    up = scene.up / scene.up.norm().clamp_min(1e-9)
    gain, share = _gain(points, camera, scene.unit)
    best, least = camera, ALIKE * gain
    for degrees in FARTHER:
        turned = camera.c2w.clone()
        turned[:3, :3] = _about(up, degrees).to(turned) @ turned[:3, :3]
        other = Cameras(camera.K, turned, camera.width, camera.height)
        there, unknown_share = _gain(points, other, scene.unit)
        if there >= least and unknown_share > share:
            best, gain, share = other, there, unknown_share
    return NextView(_sized(best, *size), gain, share)


def front_at(camera: Cameras, size: tuple[int, int]) -> NextView:
    """A front that a person chose: where they look, however much is missing there.

    Args:
        size: of its picture, pixels.
    """
    return NextView(_sized(camera, *size), 1.0, 1.0)


def unknown_along(scene: Scene, path: Trajectory, frames: int = 6) -> float:
    """About which share of a path's pictures no point of the cloud covers; quick, from a few."""
    points = _thinned(scene.cloud.points)
    few = evenly(len(path), frames)
    wide = path.cameras.width >= path.cameras.height
    small = SMALL if wide else SMALL[::-1]
    shares = [1 - float(_seen(points, path.cameras[i].scaled(*small))[0].mean()) for i in few]
    return sum(shares) / len(shares)


def reach_along(scene: Scene, path: Trajectory, samples: int = 12) -> int:
    """How many of a path's first frames hold enough that is known to continue from.

    Beyond, less than `CONTEXT` of the picture is covered by the cloud: one photo does not reach
    there. `len(path)` where every frame that was looked at (`samples` of them, evenly) holds it.
    """
    points = _thinned(scene.cloud.points)
    wide = path.cameras.width >= path.cameras.height
    small = SMALL if wide else SMALL[::-1]

    def holds(i: int) -> bool:
        return float(_seen(points, path.cameras[i].scaled(*small))[0].mean()) >= CONTEXT

    good = -1
    for i in evenly(len(path), samples):
        if holds(i):
            good = i
            continue
        while i - good > 1:  # between the last that holds and the first that does not
            middle = (good + i) // 2
            good, i = (middle, i) if holds(middle) else (good, middle)
        return i
    return len(path)


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
    picked = evenly(len(views), POSITIONS)
    up = scene.up / scene.up.norm().clamp_min(1e-9)
    out = []
    for k in picked:
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
    drawn = render_points(points, None, camera, radius=1)
    return _closed(drawn.mask[0].cpu().numpy() > 0, 3), drawn.depth[0].cpu().numpy()


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
