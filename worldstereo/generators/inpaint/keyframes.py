"""Keyframes of invention: the fewest cameras of a path that see what it needs and no memory knows.

A greedy cover, on small pictures. Each unknown pixel of a frame is a point at the depth that the
fill guesses; a camera covers it when it would show it unoccluded. Only cameras that see enough of
what is known, painted parts included, are candidates, so that invention starts at its rim.

Source: greedy set cover, Johnson 1974.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo._core.evenly import evenly
from worldstereo.cameras import Cameras
from worldstereo.guide import GuideFrame
from worldstereo.trajectory import Trajectory

SIDE = 240
"""Pixels along the longer side at which the cover is judged: points are drawn 3 pixels wide, so
that holes of less than two hundredths of the width would close at half of it."""
THIN = 2
"""Of the unknown pixels there, every so many in both directions are points of the cover."""
CONTEXT = 0.3
"""Share of a keyframe that should be known."""
GAIN = 0.01
"""Least that a further keyframe must add to all of the path, as a share of one picture."""
OCCLUDED = 0.1
"""Relative depth by which something known must lie before a point to hide it."""


@dataclass(frozen=True)
class Keyframe:
    """A camera of the path that is painted."""

    index: int
    known: float
    """Share of its picture that is known when its turn comes."""
    adds: float
    """Share of the path's pixels that it makes known."""


def small_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which `choose` wants its frames."""
    scale = min(1.0, SIDE / max(width, height))
    return max(8, round(width * scale)), max(8, round(height * scale))


def some_of(path: Trajectory, count: int = 6) -> Trajectory:
    """At most so many cameras of a path, evenly chosen, at the size that `choose` wants."""
    cameras = Cameras.stack([path.cameras[i] for i in evenly(len(path), count)])
    return Trajectory(cameras, path.name).scaled(*small_size(cameras.width, cameras.height))


def choose(
    frames: Sequence[GuideFrame], *, limit: int, empty: Sequence[np.ndarray] = ()
) -> tuple[Keyframe, ...]:
    """Keyframes in the order in which they are painted; none where nothing is worth it.

    Args:
        frames: what is known along the path, at `small_size`.
        limit: most keyframes.
        empty: of each frame, pixels (H, W) that a person wants to stay unknown.
    """
    unknown = [_holes(frame, empty[i] if len(empty) else None) for i, frame in enumerate(frames)]
    size = frames[0].mask[0].numel() / THIN**2
    points, owner = _points(frames, unknown)
    if len(points) == 0:
        return ()
    covers = np.stack(
        [_covered(frame, hole, points) for frame, hole in zip(frames, unknown, strict=True)]
    )
    for t in range(len(frames)):
        covers[t, owner == t] = True  # a frame covers its own, whatever rounding says
    known = np.array([float(frame.mask.float().mean()) for frame in frames])
    left = np.ones(len(points), bool)
    chosen: list[Keyframe] = []
    while len(chosen) < limit:
        gain = (covers & left).sum(1) / (size * len(frames))
        own = np.bincount(owner[~left], minlength=len(frames)) / size
        context = known + own
        gain[[key.index for key in chosen]] = 0
        useful = gain * len(frames) >= GAIN
        if not useful.any():
            break
        ready = useful & (context >= CONTEXT)
        if ready.any():
            # Alike good ones: that which stands on most that is known.
            worth = np.where(ready, np.round(gain, 3) + 1e-4 * context, -1)
        else:
            worth = np.where(useful & (context > 0), context, -1)
        best = int(worth.argmax())
        if worth[best] <= 0:
            break
        chosen.append(Keyframe(best, float(context[best]), float(gain[best])))
        left &= ~covers[best]
    return tuple(chosen)


def _holes(frame: GuideFrame, empty: np.ndarray | None) -> np.ndarray:
    hole = ~frame.mask[0].cpu().numpy()
    return hole if empty is None else hole & ~empty


def _points(
    frames: Sequence[GuideFrame], unknown: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """World points of all unknown pixels that have a depth, and the frame that each is of."""
    found, owner = [np.zeros((0, 3))], [np.zeros(0, np.int64)]
    for t, (frame, hole) in enumerate(zip(frames, unknown, strict=True)):
        hole = hole & (frame.depth[0].cpu().numpy() > 0)
        v, u = np.nonzero(hole[::THIN, ::THIN])
        v, u = v * THIN, u * THIN
        if len(v) == 0:
            continue
        pixels = torch.from_numpy(np.stack([u + 0.5, v + 0.5], 1)).float()
        points = frame.camera.unproject(
            pixels, frame.depth[0][torch.from_numpy(v), torch.from_numpy(u)]
        )
        found.append(points.double().cpu().numpy())
        owner.append(np.full(len(v), t))
    return np.concatenate(found), np.concatenate(owner)


def _covered(frame: GuideFrame, hole: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points a frame would show, painted: inside its picture, in a hole or at its rim."""
    pixels, depth = frame.camera.project(torch.from_numpy(points).float())
    pixels, depth = pixels.numpy(), depth.numpy()
    h, w = hole.shape
    with np.errstate(invalid="ignore"):
        inside = (depth > 0) & (pixels >= 0).all(1) & (pixels[:, 0] < w) & (pixels[:, 1] < h)
    out = np.zeros(len(points), bool)
    rows = np.flatnonzero(inside)
    u, v = pixels[rows, 0].astype(int), pixels[rows, 1].astype(int)
    shown = frame.depth[0].cpu().numpy()[v, u]
    hidden = ~hole[v, u] & (shown > 0) & (shown < depth[rows] * (1 - OCCLUDED))
    out[rows] = hole[v, u] & ~hidden
    return out
