"""Depth from several pictures against truth: share of pixels within 2 px, or 5 % of z.

motorcycle (Middlebury 2014, a quarter of the size): truth at 93 % of the pixels, shares of those.
Posed photos (lund-door, plush): truth at the points of their models, seen in each photo (every
third photo is judged); `known` is the share of them where depth was found.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.harness import Context, Row
from worldstereo import inputs
from worldstereo.cameras import Cameras
from worldstereo.inputs import LOCAL, images
from worldstereo.views.multiview import MatchOptions, MatchView, photo_depth, plane_sweep

FOCAL, BASELINE, OFFSET = 994.978, 0.193001, 31.086  # SOURCE.md of the set; metres, pixels


class Pair(NamedTuple):
    left: MatchView
    right: MatchView
    disparity: np.ndarray
    """(H, W) pixels between the pictures as stored; not finite where there is no truth."""
    near: float
    far: float


def motorcycle(data: Path) -> Pair:
    """The rectified pair as two cameras a baseline apart."""
    folder = data / "stereo" / "motorcycle"

    def view(name: str, cx: float, x: float) -> MatchView:
        pixels = images.color(name, (folder / name).read_bytes(), LOCAL)
        color = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        K = torch.tensor([[FOCAL, 0, cx + 0.5], [0, FOCAL, 254.877 + 0.5], [0, 0, 1]])
        c2w = torch.eye(4)
        c2w[0, 3] = x
        return MatchView(color, Cameras(K, c2w, color.shape[2], color.shape[1]))

    with np.load(folder / "motorcycle_disp.npz", allow_pickle=False) as stored:
        disparity = stored["arr_0"]
    z = FOCAL * BASELINE / (disparity[np.isfinite(disparity)] + OFFSET)
    left = view("motorcycle_left.png", 311.193, 0.0)
    right = view("motorcycle_right.png", 311.193 + OFFSET, BASELINE)
    return Pair(left, right, disparity, float(z.min()) * 0.8, float(z.max()) * 1.3)


def share_within(pair: Pair, depth: Tensor) -> tuple[float, float, float, float]:
    """Of all pixels with truth: within 2 px, within 5 %, known; and within 2 px of the known."""
    z = depth[0].numpy()
    true = np.isfinite(pair.disparity)
    known = (z > 0) & true
    found = FOCAL * BASELINE / np.maximum(z, 1e-9) - OFFSET
    true_z = FOCAL * BASELINE / (np.where(true, pair.disparity, 1e9) + OFFSET)
    close = known & (np.abs(found - pair.disparity) < 2)
    five = known & (np.abs(z - true_z) < 0.05 * true_z)
    n = true.sum()
    return close.sum() / n, five.sum() / n, known.sum() / n, close.sum() / max(1, known.sum())


def points_within(views: Any, cloud: Any, found: Any, step: int) -> tuple[float, float, float]:
    """At the model's points in every `step`-th photo: within 5 %, known, within 5 % of the known.

    A point counts in a photo where it projects and no nearer point lies within 3 px of it.
    """
    close = known = total = 0
    for view, stereo in list(zip(views, found, strict=True))[::step]:
        uv, z = view.cameras.project(cloud.points)
        size = torch.tensor([view.width, view.height])
        inside = (z > 0) & (uv >= 0).all(-1) & (uv < size).all(-1)
        uv, z = uv[inside], z[inside]
        u, v = uv[:, 0].long(), uv[:, 1].long()
        front = torch.full((view.height // 6 + 1, view.width // 6 + 1), torch.inf)
        cell = (v // 6) * front.shape[1] + u // 6
        front.view(-1).scatter_reduce_(0, cell, z, "amin")
        visible = z <= 1.03 * front.view(-1)[cell]
        there, z = stereo.depth[0, v[visible], u[visible]], z[visible]
        total += len(z)
        known += int((there > 0).sum())
        close += int(((there > 0) & ((there - z).abs() < 0.05 * z)).sum())
    return close / max(1, total), known / max(1, total), close / max(1, known)


def stereo_depth(context: Context) -> list[Row]:
    """Motorcycle by both methods, then the posed photos by PatchMatch."""
    data = Path(os.environ.get("WORLDSTEREO_DATA", "shared/data"))
    if not data.is_dir():
        print("stereo_depth: WORLDSTEREO_DATA does not name a folder; not run")
        return []
    rows = []
    pair = motorcycle(data)
    both = [pair.left, pair.right]
    scale = 0.25 if context.quick else 0.5
    candidates: dict[str, Any] = {
        f"plane sweep, scale {scale}": lambda: plane_sweep(
            pair.left, [pair.right], near=pair.near, far=pair.far, planes=96, scale=scale
        ),
        f"PatchMatch, scale {scale}": lambda: photo_depth(
            both, depth_range=(pair.near, pair.far), neighbours=[(1,), (0,)],
            options=MatchOptions(scale=scale),
        )[0],
    }  # fmt: skip
    for variant, work in candidates.items():
        kept: list[Any] = []
        timing = context.compare(
            {variant: lambda w=work, k=kept: k.append(w())}, rounds=1, warm=context.quick is False
        )[variant]
        two, five, known, sure = share_within(pair, kept[-1].depth)
        extra = {"within_2px": round(two, 4), "within_5pct": round(five, 4),
                 "known": round(known, 4), "within_2px_of_known": round(sure, 4)}  # fmt: skip
        rows.append(Row("motorcycle", variant, pair.disparity.size, *timing, extra=extra))
    for name in () if context.quick else ("lund-door", "plush"):
        capture = inputs.read(data / "photos-posed" / name)
        views = [MatchView(v.color, v.cameras) for v in capture.views]
        if capture.cloud is None:
            continue
        kept = []
        work = lambda v=views, k=kept, c=capture: k.append(  # noqa: E731
            photo_depth(v, points=c.cloud.points)
        )
        timing = context.compare({name: work}, rounds=1, warm=0)[name]
        five, known, sure = points_within(capture.views, capture.cloud, kept[-1], 3)
        extra = {"within_5pct": round(five, 4), "known": round(known, 4),
                 "within_5pct_of_known": round(sure, 4),
                 "cpu_s_per_photo": round(timing[0] / 1000 / len(views), 2)}  # fmt: skip
        rows.append(Row(name, "PatchMatch, 360 px", len(views), *timing, extra=extra))
    return rows


BENCHMARKS = {"stereo_depth": stereo_depth}
