"""Captures, protocol and measures of `bench/views.py`. The truth is used here and nowhere else.

Targets are left out of a capture and predicted from the rest; neither their colours nor their depth
reach the library. `seen` masks and flow-registered figures are measures, made with the truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from worldstereo import inputs
from worldstereo.memory.stereo.dense import Synthesis
from worldstereo.scene import Origin, View
from worldstereo.views.fusion import ViewArrays, make_view_arrays, nearest_fill, relative

PHOTO_SIDE = 960


@dataclass(frozen=True, eq=False)
class Job:
    """Some views to remember, and some that must be predicted from them."""

    kept: list[View]
    targets: list[View]
    points: torch.Tensor | None = None
    """(N, 3): the reconstruction that the poses come from, where the capture brings one."""
    camera_fixed: np.ndarray | None = None
    """Mask for the measure `seen` only; the library never sees it."""


def load(folder: Path) -> tuple[list[View], torch.Tensor | None]:
    """The views of a capture as the product reads them, in its own order, and its points."""
    capture = inputs.read(folder)
    points = None if capture.cloud is None else capture.cloud.points
    return [_at_most(view, PHOTO_SIDE) for view in capture.views], points


def _at_most(view: View, side: int) -> View:
    """The view with its longer side at most `side`, averaged down; depth by the nearest sample."""
    factor = side / max(view.width, view.height)
    if factor >= 1:
        return view
    size = (round(view.width * factor), round(view.height * factor))
    color = cv2.resize(picture(view), size, interpolation=cv2.INTER_AREA)
    depth = cv2.resize(view.depth[0].numpy(), size, interpolation=cv2.INTER_NEAREST)
    return View.of(
        torch.from_numpy(color).permute(2, 0, 1).contiguous(),
        torch.from_numpy(np.asarray(depth, np.float32))[None],
        view.given.scaled(*size),
        frame=view.frame,
        name=view.name,
    )


def jobs(
    name: str,
    views: list[View],
    fixtures: Path | None,
    *,
    points: torch.Tensor | None = None,
    every: bool = False,
) -> list[Job]:
    """Who is kept and who is predicted: section 1 of the measuring protocol, else every 8th."""
    n = len(views)
    if name == "livingroom1":
        kept = [i for i in (0, 10, 20, 30, 40, 50) if i < n]
        rest = [i for i in range(n) if i not in kept]
        if not every:
            rest = [rest[i] for i in np.round(np.linspace(0, len(rest) - 1, 16)).astype(int)]
        return [Job([views[i] for i in kept], [views[i] for i in rest], points)]
    if name == "apc-shelf":
        camera_fixed = None
        if fixtures is not None and (fixtures / "views" / "apc-shelf-rig.png").exists():
            camera_fixed = cv2.imread(str(fixtures / "views" / "apc-shelf-rig.png"), 0)
        kept = views[::3]
        targets = [view for i, view in enumerate(views) if i % 3]
        return [
            Job(
                kept,
                targets,
                points,
                None if camera_fixed is None else np.asarray(camera_fixed) > 0,
            )
        ]
    if n <= 6:
        return [Job([v for v in views if v is not t], [t], points) for t in views]
    return [
        Job([v for i, v in enumerate(views) if i % 8 != 4], views[4::8], points),
    ]


# ---- measures --------------------------------------------------------------------------------


def picture(view: View) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    return np.ascontiguousarray(view.color.permute(1, 2, 0).numpy())


def image_of(result: Synthesis) -> np.ndarray:
    return np.ascontiguousarray(result.color.permute(1, 2, 0).numpy())


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    error = (a - b) ** 2
    error = error if where is None else error[where]
    return float(-10 * np.log10(max(float(error.mean()), 1e-10))) if error.size else float("nan")


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(H, W) structural similarity, Gaussian 1.5, mean of the channels."""

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    ma, mb = blur(a), blur(b)
    va, vb, c = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    top = (2 * ma * mb + 1e-4) * (2 * c + 9e-4)
    return (top / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))).mean(2)


def flow_registered(a: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A prediction moved by smoothed optical flow onto the truth: synthesis without pose error."""
    flow = cv2.DISOpticalFlow_create(1)
    grey = [cv2.cvtColor((x * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (truth, a)]
    f = cv2.GaussianBlur(flow.calc(grey[0], grey[1], None), (0, 0), 4)
    y, x = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
    moved = cv2.remap(
        a, x + f[..., 0], y + f[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return moved.clip(0, 1)


def splat(kept: Sequence[ViewArrays], target: ViewArrays, camera_fixed: np.ndarray | None = None):  # noqa: ANN201
    """One pixel per measured point of the kept views at the target's given pose: colour, mask."""
    H, W = target.pose.shape
    buffer = np.full(H * W, np.inf)
    out = np.zeros((H * W, 3), np.float32)
    for view in kept:
        z = view.depth if camera_fixed is None else np.where(camera_fixed, 0, view.depth)
        y, x = np.nonzero(z > 0)
        d = z[y, x].astype(np.float64)
        fx, fy, cx, cy = view.pose.K
        T = relative(view.pose, target.pose)
        q = np.stack([(x - cx) / fx * d, (y - cy) / fy * d, d], 1) @ T[:, :3].T + T[:, 3]
        ok = q[:, 2] > 1e-3
        q, color = q[ok], view.color[y, x][ok]
        K = target.pose.K
        u = np.rint(K[0] * q[:, 0] / q[:, 2] + K[2]).astype(int)
        v = np.rint(K[1] * q[:, 1] / q[:, 2] + K[3]).astype(int)
        ok = (u >= 0) & (v >= 0) & (u < W) & (v < H)
        at, depth, color = (v * W + u)[ok], q[ok, 2], color[ok]
        order = np.argsort(-depth, kind="stable")  # the nearest is written last
        at, depth, color = at[order], depth[order], color[order]
        nearer = depth < buffer[at]
        at, depth, color = at[nearer], depth[nearer], color[nearer]
        buffer[at] = depth
        out[at] = color / np.float32(255)
    return out.reshape(H, W, 3), np.isfinite(buffer).reshape(H, W)


def splat_and_nearest(kept: Sequence[ViewArrays], target: ViewArrays) -> np.ndarray:
    """Baseline: all measured points of the kept views, holes from the nearest pixel."""
    return nearest_fill(*splat(kept, target))


def seen_mask(
    kept: Sequence[ViewArrays], target: ViewArrays, camera_fixed: np.ndarray | None
) -> np.ndarray:
    """What the kept views measured at the target's given pose, closed 5x5; the same for all."""
    mask = splat(kept, target, camera_fixed)[1].astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
    return mask if camera_fixed is None else mask | camera_fixed


def arrays_of_views(views: Sequence[View]) -> list[ViewArrays]:
    return [make_view_arrays(view) for view in views]


def scores(image: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of the whole image, what was seen, the holes, and flow-registered seen."""
    s = ssim(image, truth)
    return {
        "psnr": psnr(image, truth),
        "ssim": float(s.mean()),
        "seen": psnr(image, truth, seen) if seen.any() else float("nan"),
        "seen_ssim": float(s[seen].mean()) if seen.any() else float("nan"),
        "hole": psnr(image, truth, ~seen) if (~seen).any() else float("nan"),
        "flow": psnr(flow_registered(image, truth), truth, seen) if seen.any() else float("nan"),
        "mse": float(((image - truth) ** 2).mean()),
    }


def sparsification(error: np.ndarray, confidence: np.ndarray) -> float:
    """Area between random and this ranking over that between random and the oracle; 1 is perfect.

    Pixels are dropped from the least confident on; the error of what remains is averaged.
    """
    e, c = error.ravel()[::7].astype(np.float64), confidence.ravel()[::7]

    def area(order: np.ndarray) -> float:
        rest = np.cumsum(e[order]) / np.arange(1, len(e) + 1)
        return float(rest.mean())

    mixed = np.random.default_rng(0).permutation(len(e))
    by_confidence = area(mixed[np.argsort(-c[mixed], kind="stable")])
    random, oracle = float(e.mean()), area(np.argsort(e, kind="stable"))
    return (random - by_confidence) / max(random - oracle, 1e-12)


def depth_errors(result: Synthesis, target: View) -> np.ndarray:
    """(n,) relative errors of invented depth, where the target's sensor measured something."""
    truth = target.depth[0].numpy()
    at = (result.origin[0].numpy() == int(Origin.INVENTED)) & (truth > 0)
    at &= result.depth[0].numpy() > 0
    return np.abs(result.depth[0].numpy()[at] - truth[at]) / truth[at]


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over images; `pooled` is the PSNR of the mean squared error."""
    out = {}
    for k in rows[0]:
        values = [row[k] for row in rows if np.isfinite(row[k])]
        out[k] = float(np.mean(values)) if values else float("nan")
    out["pooled"] = float(-10 * np.log10(out.pop("mse")))
    return out


Predict = Callable[[Job, View], np.ndarray]
