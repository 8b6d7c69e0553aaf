"""`ViewArrays`: a remembered view as the kernels read it, kept in a bounded cache.

A `View` is what stays in memory (2.8 MB at 640x480). Gradients, edge distances and smaller levels
follow from it in some 15 ms and are kept only for the views used last. Lengths are divided by u,
so that the constants of the notes hold at any scale of a capture.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from worldstereo._core.cache import ByteCache
from worldstereo._core.resident import arrays_on_disk, is_array_on_disk, release_arrays
from worldstereo.cameras import Cameras
from worldstereo.scene import NO_PART, View

CACHE_BYTES = 320 * 2**20

EDGE_CUT = 0.03  # a relative step in disparity above this between neighbours is an edge
SENSED = 0.4  # stored confidence above which a sensor measured the depth, in some view
FOLLOWS = ByteCache(256 * 2**20)
"""Gradients, rims and minima of the views used last, of all worlds."""
MINIMA = ByteCache(32 * 2**20)
"""`stacked_minima` of the views that served the last targets."""
_NUMBERS = itertools.count()
_STORED = ("color", "depth", "disparity", "confidence")
_DERIVED = ("slope_x", "slope_y", "edge_distance", "min_depth_3x3")

AGREE = 0.03  # relative depth within which two samples show the same surface


@dataclass(eq=False)
class Pose:
    """One camera for the kernels: index intrinsics (fx, fy, cx, cy) and `c2w` in units of u."""

    K: np.ndarray
    c2w: np.ndarray
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def position(self) -> np.ndarray:
        return self.c2w[:3, 3]


class _Token:
    """Owns what follows from the depth of one `ViewArrays`, whatever pose it is given."""

    def __init__(self) -> None:
        self.number = next(_NUMBERS)


@dataclass(eq=False)
class ViewArrays:
    """Numpy form of one view. Arrays are never written after they were made.

    What follows from the depth is computed when it is asked for, and kept while there is room in a
    cache that all views share.
    """

    pose: Pose
    color: np.ndarray
    """(H, W, 3) uint8."""
    depth: np.ndarray
    """(H, W) float32 in u, 0 where unknown."""
    disparity: np.ndarray
    confidence: np.ndarray
    """(H, W) float32: stored confidence."""
    camera_fixed: np.ndarray | None = None
    """(H, W) bool: fixed to the camera."""
    log_gain: np.ndarray = field(default_factory=lambda: np.zeros(3))
    vote: float = 1.0
    """Say in the free-space test; 0 for generated views."""
    slope_x: np.ndarray = field(init=False)
    slope_y: np.ndarray = field(init=False)
    edge_distance: np.ndarray = field(init=False)
    """(H, W) float32: distance to the nearest depth edge, in pixels."""
    min_depth_3x3: np.ndarray = field(init=False)
    """(H, W) float32: 3x3 minimum of depth, 0 where any of it is unknown."""
    guessed: bool = field(init=False)
    """A given view whose depth no sensor measured, its own or another view's: a photo."""

    def __post_init__(self) -> None:
        self.guessed = self.vote > 0 and not bool((self.confidence > SENSED).any())
        self._levels: list[Level] = []
        self._smaller: dict[int, ViewArrays] = {}
        self._token = _Token()

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in _DERIVED:  # only what is not there comes here
            raise AttributeError(name)
        found = FOLLOWS.get(self._token, "depth")
        if found is None:
            found = self._follows()
            FOLLOWS.put(self._token, "depth", found, sum(a.nbytes for a in found.values()))
        return found[name]

    def _follows(self) -> dict[str, np.ndarray]:
        import cv2

        from worldstereo.views.fusion import kernels

        shape = self.disparity.shape
        slope_x, slope_y = np.empty(shape, np.float32), np.empty(shape, np.float32)
        edge = np.empty(shape, np.uint8)
        kernels.disparity_gradients(self.disparity, EDGE_CUT, 0, shape[0], slope_x, slope_y, edge)
        edge_distance = cv2.distanceTransform(1 - edge, cv2.DIST_L2, 3)
        if self.vote == 0:  # generated pixels end where given ones begin: that is no edge
            edge_distance = np.maximum(edge_distance, 3)
        min_depth_3x3 = cv2.erode(self.depth, np.ones((3, 3), np.uint8))
        return dict(zip(_DERIVED, (slope_x, slope_y, edge_distance, min_depth_3x3), strict=True))

    def spill(self) -> None:
        """Moves the arrays to disk until they are read; `let_go` drops what was read since."""
        names = [n for n in _STORED if not is_array_on_disk(getattr(self, n))]
        moved = arrays_on_disk([getattr(self, name) for name in names])
        self.__dict__ |= dict(zip(names, moved, strict=True))
        self._levels, self._smaller = [], {}

    def let_go(self) -> None:
        """Drops from memory what lies on disk, and what follows from it."""
        if is_array_on_disk(self.depth):
            self._levels, self._smaller = [], {}
        release_arrays(getattr(self, name) for name in _STORED)

    def moved(self, pose: Pose) -> "ViewArrays":
        """The same arrays under another pose."""
        other = object.__new__(ViewArrays)
        other.__dict__ = dict(self.__dict__, pose=pose)
        return other

    def with_depth(self, disparity: np.ndarray, confidence: np.ndarray) -> "ViewArrays":
        disparity = np.ascontiguousarray(disparity, np.float32)
        return replace(
            self,
            disparity=disparity,
            depth=invert(disparity),
            confidence=np.ascontiguousarray(confidence, np.float32),
        )

    def level(self, k: int) -> "Level":
        """The view `k` times halved, with intrinsics for it. Made when first asked for."""
        from worldstereo.views.fusion import blend

        if not self._levels:
            self._levels.append(
                Level(self.color, self.depth, self.edge_distance, self.confidence, 0)
            )
        while len(self._levels) <= k:
            last = self._levels[-1]
            h, w = last.depth.shape[0] // 2, last.depth.shape[1] // 2
            if min(h, w) < 8:
                break
            smaller = Level(
                np.empty((h, w, 3), np.uint8),
                np.empty((h, w), np.float32),
                np.empty((h, w), np.float32),
                np.empty((h, w), np.float32),
                last.power + 1,
            )
            blend.halve(
                last.color, last.depth, last.edge_distance, last.confidence, AGREE,
                smaller.color, smaller.depth, smaller.edge_distance, smaller.confidence,
            )  # fmt: skip
            self._levels.append(smaller)
        return self._levels[min(k, len(self._levels) - 1)]

    def reduced(self, k: int) -> "ViewArrays":
        """A view of its own, `k` times halved, as the blend would sample it there. Kept."""
        level = self.level(k)
        h, w = level.depth.shape
        pose = Pose(level.intrinsics(self.pose.K), self.pose.c2w, w, h)
        if k in self._smaller:
            return self._smaller[k].moved(pose)
        made = ViewArrays(
            pose=pose,
            color=level.color,
            depth=level.depth,
            disparity=invert(level.depth),
            confidence=level.confidence,
            vote=self.vote,
        )
        self._smaller[k] = made
        return made

    @property
    def state(self) -> tuple[object, Pose]:
        """Equal for two of them only where they hold the same arrays under the same pose."""
        return self._token, self.pose

    @property
    def nbytes(self) -> int:
        arrays = [v for v in self.__dict__.values() if isinstance(v, np.ndarray)]
        return sum(a.nbytes for a in arrays) * 4 // 3


def stacked_minima(views: Sequence[ViewArrays]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The views' 3x3 minima of depth as kernels read them; kept, as a path asks the same views.

    Returns:
        all of them one after the other, flat; where each begins (n,); height and width (n, 2).
    """
    owner, key = views[0]._token, tuple(view._token.number for view in views)
    found = MINIMA.get(owner, key)
    if found is None:
        sizes = np.array([view.depth.shape for view in views])
        begins = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]])
        found = np.concatenate([view.min_depth_3x3.ravel() for view in views]), begins, sizes
        MINIMA.put(owner, key, found, found[0].nbytes)
    return found


@dataclass(eq=False)
class Level:
    """One level of a view's pyramid."""

    color: np.ndarray
    depth: np.ndarray
    edge_distance: np.ndarray
    confidence: np.ndarray
    power: int

    def intrinsics(self, K: np.ndarray) -> np.ndarray:
        """Index intrinsics of this level: centres of 2x2 blocks lie at (c - 0.5) / 2."""
        scale = 0.5**self.power
        return np.array(
            [K[0] * scale, K[1] * scale, (K[2] + 0.5) * scale - 0.5, (K[3] + 0.5) * scale - 0.5]
        )


def pose_of(cameras: Cameras, unit: float = 1.0) -> Pose:
    """A single camera in units of u, with the half pixel taken off the principal point."""
    K = cameras.K.detach().cpu().double().numpy()
    c2w = cameras.c2w.detach().cpu().double().numpy().copy()
    c2w[:3, 3] /= unit
    return Pose(
        np.array([K[0, 0], K[1, 1], K[0, 2] - 0.5, K[1, 2] - 0.5]),
        c2w,
        cameras.width,
        cameras.height,
    )


def invert(values: np.ndarray) -> np.ndarray:
    """1/x where x > 0, else 0: depth to disparity and back."""
    return np.where(values > 0, 1 / np.maximum(values, 1e-9), 0).astype(np.float32)


def relative(a: Pose, b: Pose) -> np.ndarray:
    """(3, 4) transform from the axes of `a` to those of `b`."""
    R = b.c2w[:3, :3].T
    return np.ascontiguousarray(
        np.hstack([R @ a.c2w[:3, :3], (R @ (a.c2w[:3, 3] - b.c2w[:3, 3]))[:, None]])
    )


def make_view_arrays(view: View, unit: float = 1.0) -> ViewArrays:
    """The arrays of a view, without the cache."""
    color = np.ascontiguousarray(view.color_u8.detach().cpu().numpy().transpose(1, 2, 0))
    depth = view.depth[0].detach().cpu().numpy().astype(np.float32) / np.float32(unit)
    camera_fixed = np.isin(view.kind[0].cpu().numpy(), NO_PART)
    return ViewArrays(
        pose=pose_of(view.cameras, unit),
        color=color,
        depth=depth,
        disparity=invert(depth),
        confidence=view.confidence[0].detach().cpu().numpy(),
        camera_fixed=camera_fixed if camera_fixed.any() else None,
        log_gain=view.log_gain.detach().cpu().double().numpy(),
        vote=1.0 if view.step == 0 else 0.0,
    )


class ViewArraysCache:
    """Arrays of the views used last, up to a number of bytes; safe from any thread."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._cache = ByteCache(limit)

    def get(self, view: View, unit: float) -> ViewArrays:
        found = self._cache.get(view, unit)
        if found is None:
            found = make_view_arrays(view, unit)
            self._cache.put(view, unit, found, found.nbytes)
        return found

    def clear(self) -> None:
        self._cache.clear()

    def bytes_of(self, view: View) -> int:
        return self._cache.bytes_of(view)

    def forget(self, view: View) -> None:
        self._cache.forget(id(view))


CACHE = ViewArraysCache()


def view_arrays(view: View, unit: float = 1.0) -> ViewArrays:
    """The arrays of a view, from the cache if it is there."""
    return CACHE.get(view, unit)
