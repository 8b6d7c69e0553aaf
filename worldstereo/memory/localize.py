"""Finds a photo in a remembered world: where it was taken, or why that cannot be told.

RootSIFT keypoints of the photo are compared with all entries of the keypoint level; a match counts
if the first entry that lies *elsewhere in space* is clearly farther in descriptor space (the second
entry alone is most often the same point seen from another view). P3P in RANSAC proposes a pose,
Levenberg-Marquardt refines it. A pose that few inliers carry, that they hold loosely, or that a
second place explains almost as well is marked as doubtful.

Sources: Lowe 2004 (ratio test), Gao et al. 2003 and Ke & Roumeliotis 2017 (P3P), Fischler & Bolles
1981 (RANSAC), Muja & Lowe 2009 (approximate nearest neighbours).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldstereo._core.evenly import evenly
from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.keypoints import KeypointMemory, KeypointTable, detect
from worldstereo.scene import View

NEIGHBOURS = 6
REMEMBERED = 24
"""Views whose keypoints are enough to find another one of their capture."""
ELSEWHERE = 0.1
"""Entries farther apart than this share of the unit lie in different places."""
DISTINCT = (1.25, 1.1)
"""How much farther in descriptor space the first entry elsewhere must be; the second is tried where
the first finds no place."""
TRUSTED = 0.25
"""Entries below this confidence (completed depth, generated views) do not carry a pose."""
RANSAC_PX = 4.0
REFINE_PX = (3.0, 2.0, 1.5)
MIN_INLIERS = 12
SURE_INLIERS = 30
SURE_PX = 2.0
MIN_SPREAD = 0.1
"""Inliers must spread over this share of the picture's width or height, standard deviation."""
ANGLES_OF_VIEW = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 95.0)
"""Degrees along the longer side, tried where the focal length is unknown."""
APART = (5.0, ELSEWHERE)
"""Degrees, and share of the unit, beyond which two poses are different places."""
MAX_SIGMA = (1.0, 0.05)
"""Standard deviation of a sure pose: degrees, and position as a share of the unit."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a photo was taken, or why it was not found."""

    camera: Cameras | None
    """In the world; None where the photo was not found."""
    inliers: int = 0
    residual_px: float = 0.0
    """Root mean square of the reprojection error of the matches within 4 px."""
    doubtful: bool = False
    reason: str = ""
    """One line: why it was not found, or why it is doubtful."""
    keypoints: int = 0
    matches: int = 0
    votes: dict[int, int] = field(default_factory=dict)
    """Of each remembered view, how many inliers it had seen."""
    entries: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Slots of the entries behind the inliers."""
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """(n, 2) where the photo shows them."""
    sigma: tuple[float, float] = (0.0, 0.0)
    """Standard deviation of the pose: degrees, scene units."""

    @property
    def found(self) -> bool:
        return self.camera is not None


class Localizer:
    """Finds photos against one state of the keypoint level; safe to keep and ask many times.

    Args:
        table: `KeypointMemory.table(...)`.

    Building it costs about half a second for 100,000 entries.
    """

    def __init__(self, table: KeypointTable) -> None:
        import cv2

        self.table = table
        self._rows = (table.confidence >= TRUSTED).nonzero()[0]
        self._points = table.points[self._rows]
        self._index = None
        if len(self._rows) >= MIN_INLIERS:
            cv2.setRNGSeed(0)  # the trees are random; the same entries give the same ones
            self._descriptors = np.ascontiguousarray(table.descriptors[self._rows])
            self._index = cv2.flann.Index(self._descriptors, {"algorithm": 1, "trees": 4})

    @staticmethod
    def of(views: Sequence[View], unit: float = 1.0) -> "Localizer":
        """A localizer over registered views with depth, without a world around them."""
        memory = KeypointMemory()
        for number, view in enumerate(views):
            memory.observe(view, number, views)
        return Localizer(memory.table(views, unit))

    def __len__(self) -> int:
        return len(self._rows)

    def find(
        self,
        color: UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"],
        K: Float[Tensor, "3 3"] | None = None,
    ) -> Place:
        """Where a picture was taken.

        Args:
            color: floats in [0, 1], or bytes.
            K: intrinsics in pixels of the picture; None: the angle of view is searched for, the
                centre of the picture taken as the principal point.
        """
        if color.dtype != torch.uint8:
            color = (color.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        height, width = color.shape[-2:]
        if self._index is None:
            return Place(None, reason="the world holds too few keypoints with depth to find photos")
        found = detect(color)
        if len(found) < MIN_INLIERS:
            return Place(
                None,
                reason=f"only {len(found)} keypoints: blurred, or without texture",
                keypoints=len(found),
            )
        size = (width, height)
        query = row = np.zeros(0, np.int64)
        solved = None
        rows, squared = self._nearest(found.descriptors)
        for ratio in DISTINCT:
            query, row = self._distinct(rows, squared, ratio)
            points, pixels = self._points[row], found.pixels[query]
            if K is None:
                solved = _with_unknown_focal(points, pixels, size)
            else:
                solved = _pose(points, pixels, K.double().cpu().numpy(), size)
            if solved is not None:
                break
        counted: dict[str, Any] = {"keypoints": len(found), "matches": len(query)}
        if solved is None:
            if len(query) < MIN_INLIERS:
                reason = f"{len(query)} of {len(found)} keypoints are known: another place"
            else:
                reason = f"{len(query)} matches agree on no single place"
            return Place(None, reason=reason, **counted)
        points, pixels = self._points[row], found.pixels[query]
        reason = self._doubt(solved, points, pixels, size)
        camera = Cameras(
            torch.from_numpy(solved.K).float(), torch.from_numpy(solved.c2w).float(), width, height
        )
        entries = self._rows[row[solved.inside]]
        seen = self.table.seen_by[entries]
        views, counts = np.unique(seen[seen >= 0], return_counts=True)
        return Place(
            camera,
            inliers=int(solved.inside.sum()),
            residual_px=solved.residual,
            doubtful=bool(reason),
            reason=reason,
            votes=dict(zip(views.tolist(), counts.tolist(), strict=True)),
            entries=entries,
            pixels=pixels[solved.inside],
            sigma=solved.sigma,
            **counted,
        )

    def _nearest(self, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, k) of the nearest entries of each keypoint and their squared distances."""
        import cv2

        assert self._index is not None
        k = min(NEIGHBOURS, len(self._rows))
        cv2.setRNGSeed(0)
        return self._index.knnSearch(descriptors, k, params={"checks": 64})

    def _distinct(
        self, rows: np.ndarray, squared: np.ndarray, ratio: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (keypoint, row): best entries that nothing elsewhere in space resembles."""
        apart = self._points[rows] - self._points[rows[:, :1]]
        elsewhere = np.linalg.norm(apart, axis=2) > ELSEWHERE * self.table.unit
        elsewhere &= rows >= 0
        rival = np.where(elsewhere, squared, np.inf).min(1)
        good = (rows[:, 0] >= 0) & (squared[:, 0] * ratio**2 < rival)
        query = good.nonzero()[0]
        return query, rows[query, 0].astype(np.int64)

    def _doubt(
        self, solved: "_Solved", points: np.ndarray, pixels: np.ndarray, size: tuple[int, int]
    ) -> str:
        """Why a pose should not be trusted; "" where it can be."""
        n = int(solved.inside.sum())
        if n < SURE_INLIERS:
            return f"only {n} keypoints agree on the place"
        if solved.residual > SURE_PX:
            return f"keypoints miss their places by {solved.residual:.1f} px"
        degrees, position = solved.sigma
        if degrees > MAX_SIGMA[0] or position > MAX_SIGMA[1] * self.table.unit:
            return f"the place is known to {degrees:.1f} degrees and {position:.2g} units only"
        other = _pose(points[~solved.near], pixels[~solved.near], solved.K, size)
        if other is not None and other.inside.sum() > 0.5 * n and self._apart(other, solved):
            return "two places look alike"
        return ""

    def _apart(self, a: "_Solved", b: "_Solved") -> bool:
        """Whether two poses are different places, and not one place seen through wrong depths."""
        turn = np.trace(a.c2w[:3, :3].T @ b.c2w[:3, :3])
        degrees = float(np.degrees(np.arccos(np.clip((turn - 1) / 2, -1, 1))))
        move = float(np.linalg.norm(a.c2w[:3, 3] - b.c2w[:3, 3]))
        return degrees > APART[0] or move > APART[1] * self.table.unit


def relocalize(agreeing: Sequence[View], lost: Sequence[View], unit: float) -> dict[int, Cameras]:
    """Cameras of views whose poses are wrong, by their pictures alone.

    Args:
        agreeing: registered views with depth; at most `REMEMBERED` of them, evenly picked, are
            asked.
        lost: views with their intrinsics; their poses do not count.
        unit: u in scene units.

    Returns:
        By index into `lost`, the cameras of those that were found without doubt.
    """
    which = evenly(len(agreeing), REMEMBERED)
    localizer = Localizer.of([agreeing[i] for i in which], unit)
    places = [localizer.find(view.color_u8, view.given.K) for view in lost]
    return {
        i: place.camera
        for i, place in enumerate(places)
        if place.camera is not None and not place.doubtful
    }


@dataclass(frozen=True, eq=False)
class _Solved:
    K: np.ndarray
    c2w: np.ndarray
    inside: np.ndarray
    """(n,) bool: matches within the last threshold."""
    near: np.ndarray
    """(n,) bool: matches within the threshold of RANSAC."""
    residual: float
    sigma: tuple[float, float]


def _pose(
    points: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    size: tuple[int, int],
    iterations: int = 2000,
) -> _Solved | None:
    """P3P in RANSAC and its refinement; None where too few matches agree."""
    import cv2

    if len(points) < MIN_INLIERS:
        return None
    ok, r, t, rows = cv2.solvePnPRansac(
        points,
        pixels,
        K,
        None,
        iterationsCount=iterations,
        reprojectionError=RANSAC_PX,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not ok or rows is None or len(rows) < MIN_INLIERS:
        return None
    rows = np.asarray(rows)[:, 0].astype(np.int64)
    r, t = cv2.solvePnPRefineLM(points[rows], pixels[rows], K, None, r, t)
    for threshold in REFINE_PX:
        inside = _errors(points, pixels, K, r, t) < threshold
        if inside.sum() < MIN_INLIERS:
            break
        r, t = cv2.solvePnPRefineLM(points[inside], pixels[inside], K, None, r, t)
    return _finished(points, pixels, K, r, t, size)


def _finished(
    points: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    r: np.ndarray,
    t: np.ndarray,
    size: tuple[int, int],
) -> _Solved | None:
    import cv2

    error = _errors(points, pixels, K, r, t)
    near, inside = error < RANSAC_PX, error < REFINE_PX[-1]
    if inside.sum() < MIN_INLIERS:
        inside = near
    if inside.sum() < MIN_INLIERS or (pixels[inside].std(0) / size).max() < MIN_SPREAD:
        return None
    rotation = cv2.Rodrigues(r)[0]
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = rotation.T, -rotation.T @ t[:, 0]
    if not np.isfinite(c2w).all():
        return None
    residual = float(np.sqrt((error[near] ** 2).mean()))
    sigma = _sigma(points[inside], K, r, t, max(0.5, residual))
    return _Solved(K, c2w, inside, near, residual, sigma)


def _errors(
    points: np.ndarray, pixels: np.ndarray, K: np.ndarray, r: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """Reprojection error of each match in pixels; infinite behind the camera."""
    import cv2

    q = points @ cv2.Rodrigues(r)[0].T + t[:, 0]
    z = np.where(q[:, 2] > 1e-9, q[:, 2], np.nan)
    projected = (q @ K.T)[:, :2] / z[:, None]
    return np.nan_to_num(np.linalg.norm(projected - pixels, axis=1), nan=np.inf)


def _sigma(
    points: np.ndarray, K: np.ndarray, r: np.ndarray, t: np.ndarray, noise: float
) -> tuple[float, float]:
    """Standard deviation of rotation (degrees) and position (scene units) by the Jacobian."""
    import cv2

    _, jacobian = cv2.projectPoints(points, r, t, K, None)
    J = jacobian[:, :6]
    try:
        covariance = np.linalg.inv(J.T @ J) * noise**2
    except np.linalg.LinAlgError:
        return 180.0, float("inf")
    rotation = cv2.Rodrigues(r)[0]
    # The centre is -R' t: to first order it moves with t, and with r about the world's origin.
    cross = np.array([[0, -t[2, 0], t[1, 0]], [t[2, 0], 0, -t[0, 0]], [-t[1, 0], t[0, 0], 0]])
    move = np.concatenate([-rotation.T @ cross, -rotation.T], 1)
    place = move @ covariance @ move.T
    return (
        float(np.degrees(np.sqrt(max(np.trace(covariance[:3, :3]), 0.0)))),
        float(np.sqrt(max(np.trace(place), 0.0))),
    )


def _with_unknown_focal(
    points: np.ndarray, pixels: np.ndarray, size: tuple[int, int]
) -> _Solved | None:
    """The angle of view of the ladder that most matches agree on, then let float."""
    best: _Solved | None = None
    for degrees in ANGLES_OF_VIEW:
        focal = max(size) / 2 / np.tan(np.radians(degrees) / 2)
        solved = _pose(points, pixels, _intrinsics(focal, size), size, 500)
        if solved is not None and (best is None or solved.near.sum() > best.near.sum()):
            best = solved
    if best is None:
        return None
    for _ in range(2):
        best = _with_floating_focal(points, pixels, best, size) or best
    return best


def _with_floating_focal(
    points: np.ndarray, pixels: np.ndarray, start: _Solved, size: tuple[int, int]
) -> _Solved | None:
    import cv2
    from scipy.optimize import least_squares

    rows = start.near
    r0 = cv2.Rodrigues(start.c2w[:3, :3].T)[0]
    t0 = -start.c2w[:3, :3].T @ start.c2w[:3, 3]
    x0 = np.concatenate([r0[:, 0], t0, [np.log(start.K[0, 0])]])

    def miss(x: np.ndarray) -> np.ndarray:
        K = _intrinsics(float(np.exp(x[6])), size)
        q = points[rows] @ cv2.Rodrigues(x[:3])[0].T + x[3:6]
        z = np.maximum(q[:, 2], 1e-6)
        return ((q @ K.T)[:, :2] / z[:, None] - pixels[rows]).ravel()

    x = least_squares(miss, x0, loss="soft_l1", max_nfev=50).x
    K = _intrinsics(float(np.exp(x[6])), size)
    return _finished(points, pixels, K, x[:3, None], x[3:6, None], size)


def _intrinsics(focal: float, size: tuple[int, int]) -> np.ndarray:
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1.0]])
