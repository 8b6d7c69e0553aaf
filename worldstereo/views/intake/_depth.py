"""Stages of a view's depth when it enters memory, each a function of the working views.

Source: Merrell et al. 2007 (contradiction by free space); completion and its constants are the
team's own measurements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo.scene import KIND_CONFIDENCE, DepthKind
from worldstereo.views.fusion import (
    INFINITY,
    ViewArrays,
    background_trust,
    clean_disparity,
    fetch_pixels,
    fused_depth,
    harmonic_fill,
    invert,
    parallel_for,
    relative,
    unproject,
)
from worldstereo.views.intake._memory import are_many, put_away, windows

CONTRADICT = 0.04
REGION = 0.003  # share of the image from which on a hole is judged by the pictures
TESTED = 400  # samples on which a judgement must rest
SAME_DEPTH = 0.1  # relative difference below which two depths are of one surface
DENIED = 0.06  # mean colour difference at which the pictures deny a depth
CARRIED = 0.08  # share of the longer side that planes are carried on at the border
CARRIED_MOST = 2.0  # factor by which depth may change on the way
ALIKE = 0.08  # mean colour difference of pictures of one thing, exposure not yet compared
REPROJECTED, INPAINTED = (KIND_CONFIDENCE[k] for k in (DepthKind.REPROJECTED, DepthKind.INPAINTED))

DepthStage = Callable[[ViewArrays], tuple[np.ndarray, np.ndarray]]


def apply(stage: DepthStage, views: list[ViewArrays], which: Sequence[int]) -> list[ViewArrays]:
    """Run a stage on some views, all of them seeing the state before it."""
    out, many = list(views), are_many([view.pose for view in views])
    for part in windows(which):

        def one(k: int, part: Sequence[int] = part) -> None:
            out[part[k]] = views[part[k]].with_depth(*stage(views[part[k]]))

        parallel_for(len(part), one)
        if many:
            put_away([out[i] for i in part], [views[i] for i in part])
    return out


def mask_camera_fixed(view: ViewArrays, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth without the mask, and without what the sensor saw as near as what is masked."""
    depth = view.depth.copy()
    on_it = depth[mask & (depth > 0)]
    depth[mask] = 0
    if len(on_it):
        depth[depth < 1.5 * np.median(on_it)] = 0
    d = invert(depth)
    return d, np.where(d > 0, view.confidence, 0)


def clean(view: ViewArrays) -> tuple[np.ndarray, np.ndarray]:
    """Lone samples and islands dropped, small gaps filled on single surfaces."""
    d = clean_disparity(view.disparity)
    if view.camera_fixed is not None:
        d = np.where(view.camera_fixed, 0, d)
    return d, (d > 0).astype(np.float32)


def uncontradicted(view: ViewArrays, others: Sequence[ViewArrays]) -> tuple[np.ndarray, np.ndarray]:
    """Measured pixels that no majority of the other views looks through."""
    from worldstereo.views.fusion import kernels

    balance = np.zeros(view.depth.shape, np.int16)
    for other in others:
        kernels.count_votes(
            view.depth, view.pose.K, relative(view.pose, other.pose), other.pose.K, other.depth,
            other.min_depth_3x3, CONTRADICT, balance,
        )  # fmt: skip
    gone = balance < 0
    return np.where(gone, 0, view.disparity), np.where(gone, 0, view.confidence)


def measured_by(view: ViewArrays, others: Sequence[ViewArrays]) -> tuple[np.ndarray, np.ndarray]:
    """Unmeasured pixels filled with what the other views measured, where it looks alike.

    Beside a depth edge, or under a pose that is a little wrong, what others measured lies in front
    of or behind what this view shows there; its colour tells.
    """
    add = view.disparity == 0
    if view.camera_fixed is not None:
        add &= ~view.camera_fixed
    if not add.any():
        return view.disparity, view.confidence
    depth = fused_depth(others, view.pose, agree=0.02, where=add)
    add &= depth > 0
    add &= _looks_alike(view, others, np.where(add, depth, 0))
    return (
        np.where(add, invert(depth), view.disparity),
        np.where(add, REPROJECTED, view.confidence),
    )


def _looks_alike(view: ViewArrays, others: Sequence[ViewArrays], depth: np.ndarray) -> np.ndarray:
    """Where some other view that confirms the depth shows the view's own colour there."""
    alike = np.zeros(depth.shape, bool)
    rows, columns = np.nonzero(depth > 0)
    for other in others:
        if len(rows) == 0:
            break
        color, agreement = fetch_pixels(rows, columns, depth[rows, columns], view.pose, other)
        off = np.abs(color - view.color[rows, columns] / np.float32(255)).mean(1)
        same = (agreement > 0) & (off < ALIKE)
        alike[rows[same], columns[same]] = True
        rows, columns = rows[~same], columns[~same]
    return alike


@dataclass(frozen=True)
class Completion:
    """How regions that no sensor measured are completed where pictures do not decide."""

    denied: str = "unknown"
    """Regions whose interpolated depth other pictures deny: "unknown", "near" (interpolated all
    the same) or "far" (at infinity)."""

    untested: str = "near"
    """Regions that no other picture shows: "near" or "far"."""

    carried: bool = True
    """Carry planes on into regions at the border; else interpolate there too."""

    def __str__(self) -> str:
        planes = "planes carried on" if self.carried else "interpolated at the border"
        return f"contradicted regions {self.denied}, unseen ones {self.untested}, {planes}"


COMPLETIONS = (
    Completion(denied="far"),
    Completion(),
    Completion(carried=False),
    Completion(denied="near"),
    Completion(denied="near", carried=False),
    Completion(denied="far", untested="far"),
    Completion(denied="far", untested="far", carried=False),
)
"""What the self-check chooses from; of equally good ones the first. At infinity, what is denied
serves holes: it stands in front of nothing, and is no point of the cloud."""


class Unmeasured:
    """One view's regions that no sensor measured, and what other pictures say of each."""

    def __init__(self, view: ViewArrays, others: Sequence[ViewArrays]) -> None:
        import cv2

        self.view = view
        unknown = view.disparity == 0
        if view.camera_fixed is not None:
            unknown &= ~view.camera_fixed
        self.unknown = unknown
        self.films: dict[bool, np.ndarray] = {}
        self.regions: list[tuple[np.ndarray, str]] = []
        self.nothing = not unknown.any() or not (view.disparity > 0).any()
        # Never infinity in a photo: a sensor gives up on what is far, matching on what is plain.
        if self.nothing or view.guessed:
            return
        count, label, stats, _ = cv2.connectedComponentsWithStats(unknown.astype(np.uint8))
        far = np.full_like(view.disparity, INFINITY)
        for i in range(1, count):
            if stats[i, 4] >= REGION * unknown.size:
                region = label == i
                self.regions.append(
                    (region, _judged(view, others, region, far, self.interpolant(True)))
                )

    def interpolant(self, carried: bool) -> np.ndarray:
        """Disparity interpolated over everything unknown."""
        if carried not in self.films:
            known = self.view.disparity > 0
            self.films[carried] = interpolated(self.view, self.view.disparity, known, carried)
        return self.films[carried]

    def matters(self, how: Completion) -> tuple[object, ...]:
        """Two ways of which this is equal complete this view equally."""
        if self.nothing:
            return ()
        said = {said for _, said in self.regions}
        denied, untested = "denied" in said, "untested" in said
        return how.carried, how.denied if denied else None, how.untested if untested else None

    def completed(self, how: Completion) -> tuple[np.ndarray, np.ndarray]:
        """Disparity and confidence: interpolated, at infinity, or left unknown, by region."""
        view = self.view
        if self.nothing:
            return view.disparity, view.confidence
        d = self.interpolant(how.carried).copy()
        confidence = np.where(self.unknown, INPAINTED, view.confidence).astype(np.float32)
        for region, said in self.regions:
            do = {"denied": how.denied, "untested": how.untested}.get(said, said)
            if do == "far":
                d[region] = INFINITY
            elif do == "unknown":
                d[region], confidence[region] = 0, 0
        return np.where(self.unknown, d, view.disparity), confidence


def interpolated(
    view: ViewArrays, d: np.ndarray, known: np.ndarray, carried: bool = True
) -> np.ndarray:
    """Disparity everywhere: a harmonic fill between what is known, planes at the border."""
    d = np.where(known, d, 0).astype(np.float32)
    if carried:
        d = _carried_on(view, d, known)
    return harmonic_fill(d, d > 0)


def _carried_on(view: ViewArrays, d: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Disparity carried on as planes into unknown regions at the border, a little way.

    There a harmonic fill has one side only and would lay a wall across: what recedes there goes on
    receding. Disparity is linear on a plane; its slope is the mean of what is known near by.
    """
    import cv2

    h, w = d.shape
    blank = ~known if view.camera_fixed is None else ~known & ~view.camera_fixed
    _, label = cv2.connectedComponents(blank.astype(np.uint8))
    rim = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
    open_ended = np.isin(label, np.unique(rim[rim > 0]))
    if not open_ended.any():
        return d
    reach = max(4.0, CARRIED * max(h, w))
    distance, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    region = open_ended & (distance <= reach)
    rows, columns = np.nonzero(region)
    at = np.zeros((int(nearest.max()) + 1, 2), np.int64)
    number = np.asarray(nearest, dtype=np.int64)
    at[number[known]] = np.argwhere(known)
    v0, u0 = at[number[rows, columns]].T
    size = 2 * int(reach / 2) + 1
    smooth = (known & (view.disparity > 0) & (view.edge_distance > 1)).astype(np.float32)
    weight = np.maximum(cv2.boxFilter(smooth, -1, (size, size), normalize=False), 1e-6)
    slopes = [
        cv2.boxFilter(slope * smooth, -1, (size, size), normalize=False) / weight
        for slope in (view.slope_x, view.slope_y)
    ]
    start = d[v0, u0]
    value = start + slopes[0][v0, u0] * (columns - u0) + slopes[1][v0, u0] * (rows - v0)
    out = d.copy()
    out[rows, columns] = np.clip(value, start / CARRIED_MOST, start * CARRIED_MOST)
    return out


def _judged(
    view: ViewArrays,
    others: Sequence[ViewArrays],
    region: np.ndarray,
    far: np.ndarray,
    near: np.ndarray,
) -> str:
    """What other pictures say of a region: it is "far", "near" (the harmonic fill fits) or that
    fill is "denied"; "untested" where they do not show it.
    """
    (at_infinity, tested_far), _ = photometric_errors(view, others, region, far)
    (at_fill, tested_near), (at_known, tested_known) = photometric_errors(
        view, others, region, near
    )
    if min(tested_far, tested_near) > TESTED and at_infinity < 0.9 * at_fill:
        return "far"
    tested = tested_near + tested_known
    if tested <= TESTED:
        return "untested"
    # Every place counts alike: the few where nobody measured may look alike by chance.
    error = (at_fill * tested_near + at_known * tested_known) / tested
    return "denied" if error > DENIED else "near"


def photometric_errors(
    view: ViewArrays, others: Sequence[ViewArrays], region: np.ndarray, d: np.ndarray
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Mean colour errors of a region under a disparity, each with the number of its samples.

    The first is of places where the other view knows no depth either, the second of places where
    it measured the same depth: elsewhere that view's own surface would be compared. The median
    difference of each pair is taken out. 0 where there is no sample.
    """
    import cv2

    error, count = [0.0, 0.0], [0, 0]
    y0, y1, x0, x1 = _box(region)
    crop = (slice(y0, y1), slice(x0, x1))
    inside = region[crop]
    points = unproject(view.pose, np.where(region, invert(d), 0))[crop]
    mine = cv2.GaussianBlur(view.color, (0, 0), 1.0)[crop].astype(np.float32) / 255
    for other in others:
        u, v, z = at(points, view, other)
        h, w = other.depth.shape
        shown = inside & (z > 0) & (u > 0) & (v > 0) & (u < w - 1) & (v < h - 1)
        empty = (
            other.disparity if other.camera_fixed is None else other.disparity * ~other.camera_fixed
        )
        theirs_d = cv2.remap(empty, u, v, cv2.INTER_NEAREST)
        theirs = None
        for k, alike in enumerate((theirs_d == 0, np.abs(theirs_d * z - 1) < SAME_DEPTH)):
            ok = shown & alike
            n = int(ok.sum())
            if n >= 100:
                if theirs is None:
                    theirs = cv2.remap(other.color, u, v, cv2.INTER_LINEAR).astype(np.float32) / 255
                r = (mine - theirs)[ok]
                error[k] += float(np.abs(r - np.median(r, 0)).mean()) * n
                count[k] += n
    means = [e / max(n, 1) for e, n in zip(error, count, strict=True)]
    return (means[0], count[0]), (means[1], count[1])


def _box(region: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(region.any(1))[0], np.nonzero(region.any(0))[0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def at(
    points: np.ndarray, view: ViewArrays, other: ViewArrays
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in the axes of `view` as array indices and depth of `other`, float32."""
    T = relative(view.pose, other.pose).astype(np.float32)
    q = points @ T[:, :3].T + T[:, 3]
    z = np.maximum(q[..., 2], 1e-4)
    K = other.pose.K.astype(np.float32)
    return K[0] * q[..., 0] / z + K[2], K[1] * q[..., 1] / z + K[3], q[..., 2]


__all__ = [
    "apply",
    "background_trust",
    "clean",
    "COMPLETIONS",
    "Completion",
    "Unmeasured",
    "mask_camera_fixed",
    "measured_by",
    "photometric_errors",
    "uncontradicted",
]
