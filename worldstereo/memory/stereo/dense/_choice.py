"""Which remembered views serve a target: an index over positions, directions and coarse depth."""

from collections.abc import Sequence

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.render import RenderResult
from worldstereo.scene import PointCloud, View
from worldstereo.views.fusion import RADIAN, Pose, pose_of, relative, rotation_angle

LIMIT = 8
NEAREST = 3  # given views nearest in pose that always serve: what they know they paint
MADE = 2  # generated views that serve beside as many given ones as the limit allows
GRID = (30, 40)  # rows and columns of the target's pixels that are asked
CANDIDATES = 48  # views looked at closely
OCCLUDED = 0.1  # a view does not see a point that lies so much behind what it shows, relatively


class ViewIndex:
    """Positions, directions and coarse depth of remembered views: about 15 KB each."""

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(views)
        self.poses = [pose_of(view.cameras) for view in self.views]
        self._coarse = [_coarse(view) for view in self.views]
        n = len(self.views)
        self._K = np.array([p.K for p in self.poses]).reshape(n, 4)
        self._w2c = np.array([np.linalg.inv(p.c2w)[:3] for p in self.poses]).reshape(n, 3, 4)
        self._size = np.array([p.shape for p in self.poses]).reshape(n, 2)
        self._position = np.array([p.position for p in self.poses]).reshape(n, 3)
        self._given = np.array([view.step == 0 for view in self.views], bool)

    def __len__(self) -> int:
        return len(self.views)

    def choose(
        self,
        target: Cameras,
        known: RenderResult | PointCloud | torch.Tensor | None = None,
        limit: int = LIMIT,
    ) -> tuple[int, ...]:
        """Views that together see most of the target, in ascending order.

        At most `limit`; beside so many given views the two nearest generated ones serve as well.

        Args:
            known: what is known of the target's depth: the cloud's splat, the cloud, or a depth
                image (1, H, W). Pixels without depth are taken to lie at the far side.

        The three nearest given ones first; then greedy by the share of the target's pixels that a
        view sees unoccluded and no view before it does, times how densely it samples them (1 at
        most); given views before generated ones.
        """
        if len(self.views) == 0 or limit < 1:
            return ()
        pose = pose_of(target)
        points, depth = self._asked(pose, _grid_depth(target, known))
        likely = self._likely(points)
        if len(likely) == 0:
            return ()
        value = np.stack([self._value(int(i), points, depth, pose) for i in likely.tolist()])
        near = [self._distance(i, pose, float(np.median(depth))) for i in likely.tolist()]
        chosen = _greedy(value, self._given[likely], np.array(near), limit)
        return tuple(sorted(int(likely[k]) for k in chosen))

    def _distance(self, i: int, target: Pose, depth: float) -> float:
        """Distance of a view's pose from the target's, over the depth of the scene."""
        apart = float(np.linalg.norm(self._position[i] - target.position))
        return apart / max(depth, 1e-12) + RADIAN * rotation_angle(self.poses[i], target)

    def _asked(self, pose: Pose, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points of the grid over the target, and their depth there."""
        if not (depth > 0).any():
            depth = self._own_depth(pose)
        known = depth[depth > 0]
        far = float(np.quantile(known, 0.95)) if len(known) else self._typical()
        depth = np.where(depth > 0, depth, far)
        h, w = pose.shape
        v, u = np.mgrid[0 : GRID[0], 0 : GRID[1]]
        u, v = (u + 0.5) * w / GRID[1] - 0.5, (v + 0.5) * h / GRID[0] - 0.5
        fx, fy, cx, cy = pose.K
        rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], -1)
        camera = (rays * depth[..., None]).reshape(-1, 3)
        return camera @ pose.c2w[:3, :3].T + pose.position, depth.ravel()

    def _typical(self) -> float:
        known = [c[c > 0] for c in self._coarse]
        known = [float(np.median(k)) for k in known if len(k)]
        return float(np.median(known)) if known else 1.0

    def _own_depth(self, pose: Pose) -> np.ndarray:
        """Coarse depth of the target from the given views' own, where there is no cloud.

        From all of them where none was given.
        """
        from worldstereo.memory.stereo.dense import _choice_kernels as kernels

        out = np.full(GRID, np.inf)
        order = np.argsort(np.linalg.norm(self._position - pose.position, axis=1), kind="stable")
        if self._given.any():
            order = order[self._given[order]]
        for i in order[:16]:
            view, d = self.poses[i], self._coarse[i]
            known = d[d > 0]
            if len(known):
                kernels.splat(
                    d, view.K, *view.shape, relative(view, pose), pose.K, *pose.shape,
                    1e-6 * (1 + float(known.mean())), out,
                )  # fmt: skip
        return np.where(np.isfinite(out), out, 0)

    def _likely(self, points: np.ndarray) -> np.ndarray:
        """Candidates: views with some of the target's points in their image, most first."""
        few = points[:: max(1, len(points) // 24)]
        q = np.einsum("nij,pj->npi", self._w2c[:, :, :3], few) + self._w2c[:, None, :, 3]
        z = np.where(q[..., 2] > 0, q[..., 2], np.inf)
        u = self._K[:, None, 0] * q[..., 0] / z + self._K[:, None, 2]
        v = self._K[:, None, 1] * q[..., 1] / z + self._K[:, None, 3]
        inside = (q[..., 2] > 0) & (u >= 0) & (v >= 0)
        inside &= (u < self._size[:, None, 1]) & (v < self._size[:, None, 0])
        # Of views that have as much in their image the nearer one sees it better.
        distance = np.linalg.norm(self._position[:, None] - few[None], axis=2).mean(1)
        score = inside.mean(1) / np.maximum(distance, 1e-12)
        order = np.argsort(-score, kind="stable")[:CANDIDATES]
        return np.sort(order[score[order] > 0])

    def _value(self, i: int, points: np.ndarray, depth: np.ndarray, target: Pose) -> np.ndarray:
        """(P,) in [0, 1]: how well one view samples each point; 0 where it does not see it."""
        q = points @ self._w2c[i, :, :3].T + self._w2c[i, :, 3]
        z = np.where(q[:, 2] > 0, q[:, 2], np.inf)
        u = self._K[i, 0] * q[:, 0] / z + self._K[i, 2]
        v = self._K[i, 1] * q[:, 1] / z + self._K[i, 3]
        h, w = self._size[i]
        inside = (q[:, 2] > 0) & (u >= 0) & (v >= 0) & (u <= w - 1) & (v <= h - 1)
        coarse = self._coarse[i]
        x = np.where(inside, (u + 0.5) * coarse.shape[1] / w, 0).astype(int)
        y = np.where(inside, (v + 0.5) * coarse.shape[0] / h, 0).astype(int)
        shown = coarse[np.minimum(y, coarse.shape[0] - 1), np.minimum(x, coarse.shape[1] - 1)]
        seen = inside & (shown > 0) & (shown > q[:, 2] * (1 - OCCLUDED))
        density = (self._K[i, 0] / target.K[0]) * depth / np.where(seen, q[:, 2], 1)
        return np.where(seen, np.minimum(1, density), 0)


def _greedy(value: np.ndarray, given: np.ndarray, distance: np.ndarray, limit: int) -> list[int]:
    """Rows chosen one after the other for what is not covered yet; then by their own worth.

    The nearest given views always serve, if they see anything. Given views come first, the same
    ones whatever was generated: what they show must not change
    with it. Of the generated ones the two nearest in pose are always asked, so that what was
    invented for a place is found again there; others where given ones leave room.
    """
    covered = np.zeros(value.shape[1])
    worth = value.sum(1)
    close = np.argsort(distance, kind="stable")
    chosen = [int(k) for k in close if given[k] and worth[k] > 0][: min(NEAREST, limit)]
    if chosen:
        covered = value[chosen].max(0)
    while len(chosen) < limit:
        gain = np.where(given, np.maximum(value - covered, 0).sum(1), -1)
        gain[chosen] = -1
        best = int(gain.argmax())
        if gain[best] <= 0.002 * value.shape[1]:
            break
        chosen.append(best)
        covered = np.maximum(covered, value[best])

    def fill(rows: np.ndarray) -> None:
        rest = [int(k) for k in rows.tolist() if k not in chosen and worth[k] > 0]
        chosen.extend(rest[: max(0, limit - len(chosen))])

    by_worth = np.argsort(-worth, kind="stable")
    fill(by_worth[given[by_worth]])
    nearest = close[~given[close]][: MADE if chosen else min(MADE, limit)]
    chosen += nearest.tolist()
    fill(by_worth[~given[by_worth]])
    return chosen


def _coarse(view: View) -> np.ndarray:
    """About 64x48 depths of a view: the farthest of each block: no thin bar hides a wall."""
    depth = view.depth[0].detach().cpu().numpy()
    h, w = depth.shape
    step = max(1, round(max(h, w) / 64))
    h, w = h // step * step, w // step * step
    return depth[:h, :w].reshape(h // step, step, w // step, step).max(axis=(1, 3))


def _grid_depth(
    target: Cameras, known: RenderResult | PointCloud | torch.Tensor | None
) -> np.ndarray:
    """(30, 40) depth of the target, 0 where unknown."""
    if known is None:
        return np.zeros(GRID)
    if isinstance(known, PointCloud):
        from worldstereo.render import render_points

        small = target.scaled(GRID[1] * 2, GRID[0] * 2)
        known = render_points(known.points, None, small, radius=0).depth
    elif isinstance(known, RenderResult):
        known = known.depth
    depth = known.detach().cpu().numpy().reshape(known.shape[-2:])
    h, w = depth.shape
    rows = np.minimum(((np.arange(GRID[0]) + 0.5) * h / GRID[0]).astype(int), h - 1)
    columns = np.minimum(((np.arange(GRID[1]) + 0.5) * w / GRID[1]).astype(int), w - 1)
    return depth[np.ix_(rows, columns)].astype(np.float64)


def choose_views(
    views: Sequence[View],
    target: Cameras,
    known: RenderResult | PointCloud | torch.Tensor | None = None,
    limit: int = LIMIT,
) -> tuple[int, ...]:
    """The views that serve one target; keep a `ViewIndex` when there are many targets."""
    return ViewIndex(views).choose(target, known, limit)
