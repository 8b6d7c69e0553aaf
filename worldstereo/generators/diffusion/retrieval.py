"""The release's memory bank: pictures with cameras, and which of them a new path is shown.

It holds no depth and no points. `worldstereo.memory.stereo` and its dense level choose views by
what they really see; this bank exists so that the published weights get the references that
they were trained with. Cameras are `w2c`, OpenCV axes; `K` in pixels of the bank's pictures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.generators.diffusion.camera_conditions import quaternions
from worldstereo.generators.diffusion.config import MAX_REFERENCES

NEAR, FAR = 0.1, 10.0
STORED_PER_CLIP = 8
Features = Callable[[Sequence[np.ndarray]], Tensor]
"""Pictures (H, W, 3) uint8 to (n, d) features; the release takes DINOv2's pooled output."""


# ---- how well a bank camera serves a target ----------------------------------------------------


def frustum_corners(
    K: Float[Tensor, "n 3 3"],
    w2c: Float[Tensor, "n 4 4"],
    width: int,
    height: int,
    near: float = NEAR,
    far: float = FAR,
) -> Float[Tensor, "n 8 3"]:
    """World corners of what a camera sees between two ray lengths: four near ones, four far."""
    edges = torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=K.dtype)
    pixels = torch.cat([edges, torch.ones(4, 1, dtype=K.dtype)], dim=-1).to(K.device)
    rays = pixels @ torch.linalg.inv(K).mT
    rays = rays / rays.norm(dim=-1, keepdim=True)  # unit length: the far end is a sphere's
    points = torch.cat([rays * near, rays * far], dim=-2)
    c2w = torch.linalg.inv(w2c)
    return points @ c2w[:, :3, :3].mT + c2w[:, None, :3, 3]


def box_overlap(a: Float[Tensor, "n 8 3"], b: Float[Tensor, "m 8 3"]) -> Float[Tensor, "n m"]:
    """Intersection over union of the axis-aligned boxes around two lists of frusta."""
    low_a, high_a = a.amin(dim=1)[:, None], a.amax(dim=1)[:, None]
    low_b, high_b = b.amin(dim=1)[None], b.amax(dim=1)[None]
    sides = torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)
    common = sides.clamp_min(0).prod(dim=-1)
    union = (high_a - low_a).prod(dim=-1) + (high_b - low_b).prod(dim=-1) - common
    return common / (union + 1e-8)


def axis_angles(a: Float[Tensor, "n 4 4"], b: Float[Tensor, "m 4 4"]) -> Float[Tensor, "n m"]:
    """Degrees between the optical axes of two lists of `w2c`."""
    axis_a, axis_b = torch.linalg.inv(a)[:, :3, 2], torch.linalg.inv(b)[:, :3, 2]
    cosine = (axis_a[:, None] * axis_b[None]).sum(dim=-1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


class Scores(NamedTuple):
    """How each bank camera (m) serves each target camera (n)."""

    overlap: Float[Tensor, "n m"]
    angle: Float[Tensor, "n m"]
    penalised: Float[Tensor, "n m"]
    """Overlap, less where the cameras look more than 90 degrees apart."""


def scores(
    K: Float[Tensor, "n 3 3"],
    w2c: Float[Tensor, "n 4 4"],
    bank_K: Float[Tensor, "m 3 3"],
    bank_w2c: Float[Tensor, "m 4 4"],
    width: int,
    height: int,
) -> Scores:
    """Scores of bank cameras for target cameras; width and height are those of the pictures."""
    overlap = box_overlap(
        frustum_corners(K, w2c, width, height), frustum_corners(bank_K, bank_w2c, width, height)
    )
    angle = axis_angles(w2c, bank_w2c)
    return Scores(overlap, angle, overlap * torch.exp(5 * (90 - angle) / 180).clamp_max(1))


def pose_distance(a: Float[Tensor, "n 4 4"], b: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n"]:
    """|t1 - t2| + 0.1 |R1 - R2| (Frobenius) of extrinsics; listed for completeness, not used."""
    shift = (a[:, :3, 3] - b[:, :3, 3]).norm(dim=-1)
    return shift + 0.1 * torch.linalg.matrix_norm(a[:, :3, :3] - b[:, :3, :3])


# ---- the bank ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Pictures with cameras in order of growth. Values: adding makes a new bank."""

    names: tuple[str, ...]
    """"<view>/<trajectory>/<frame>"; the shortcuts read them."""
    K: Float[Tensor, "n 3 3"]
    w2c: Float[Tensor, "n 4 4"]
    width: int
    height: int
    pictures: tuple[np.ndarray, ...] = ()
    """(H, W, 3) uint8; may be empty while no reduction to the budget is needed."""
    features: Float[Tensor, "n d"] | None = None
    """Image features; computed on demand where absent."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.K) == len(self.w2c):
            raise ValueError(
                f"names, K and w2c must have one length, got {len(self.names)}, {len(self.K)} and "
                f"{len(self.w2c)}."
            )
        if self.pictures and len(self.pictures) != len(self.names):
            raise ValueError(
                f"pictures must be none or {len(self.names)}, got {len(self.pictures)}."
            )

    def __len__(self) -> int:
        return len(self.names)

    def extended(
        self,
        names: Sequence[str],
        K: Float[Tensor, "m 3 3"],
        w2c: Float[Tensor, "m 4 4"],
        pictures: Sequence[np.ndarray] = (),
    ) -> "MemoryBank":
        """The bank with more entries behind its own."""
        return replace(
            self,
            names=(*self.names, *names),
            K=torch.cat([self.K, K]),
            w2c=torch.cat([self.w2c, w2c]),
            pictures=(*self.pictures, *pictures),
            features=None,
        )

    def after_clip(
        self,
        view: str,
        trajectory: str,
        K: Float[Tensor, "T 3 3"],
        w2c: Float[Tensor, "T 4 4"],
        pictures: Sequence[np.ndarray] = (),
        stored: int = STORED_PER_CLIP,
    ) -> "MemoryBank":
        """The bank after a generated clip: `stored` of its frames join, larger gaps first."""
        chosen = stored_frames(len(w2c), stored)
        return self.extended(
            [f"{view}/{trajectory}/{i:04d}" for i in chosen],
            K[chosen],
            w2c[chosen],
            [pictures[i] for i in chosen] if len(pictures) else (),
        )

    def take(self, chosen: Sequence[int]) -> "MemoryBank":
        """The bank of the chosen entries, in that order."""
        index = list(chosen)
        return replace(
            self,
            names=tuple(self.names[i] for i in index),
            K=self.K[index],
            w2c=self.w2c[index],
            pictures=tuple(self.pictures[i] for i in index) if self.pictures else (),
            features=None if self.features is None else self.features[index],
        )


def stored_frames(frames: int, stored: int = STORED_PER_CLIP) -> list[int]:
    """Which frames of a clip join the bank: never the first, always the last, large gaps first.

    Raises:
        ValueError: there are not that many frames behind the first.
    """
    if not 1 <= stored <= frames - 1:
        raise ValueError(f"stored must be 1 .. {frames - 1} for {frames} frames, got {stored}.")
    extra = frames - 1 - stored
    steps = [1 + extra // stored + (i < extra % stored) for i in range(stored)]
    return np.cumsum(steps).tolist()


# ---- choosing references -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What the memory variants are shown for one path."""

    ref_index: tuple[int, ...]
    """Distinct slots, ascending: reference k stands beside target frame ref_index[k] + 1."""
    entries: tuple[int, ...]
    """Bank entry of each reference, in `ref_index` order."""
    retrieved: tuple[int, ...]
    """Bank entry that won for each target frame 1 .. n-1."""
    w2c: Float[Tensor, "N 4 4"]
    """Poses of the references."""
    selected: tuple[int, ...] = ()
    """Positions in `retrieved` kept when too many entries had won, in order of choice."""
    groups: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Slot -> the target frames it serves."""


def retrieve(
    bank: MemoryBank,
    K: Float[Tensor, "T 3 3"],
    w2c: Float[Tensor, "T 4 4"],
    view: str = "",
    trajectory: str = "",
    *,
    max_references: int = MAX_REFERENCES,
    nframe: int = 21,
    image_features: Features | None = None,
) -> Retrieval:
    """The references of a path: for each frame but the first its best entry, at most 8 in all.

    Args:
        view, trajectory: names that nominate earlier clips of the same place (shortcuts).
        image_features: needed, with the bank's pictures, where more entries win than are allowed
            and the bank holds no features.

    Raises:
        ValueError: the bank or the path is empty, or pictures are needed that are not there.
    """
    if len(bank) == 0:
        raise ValueError("references must be 1 to 8, but the bank is empty.")
    if not 1 <= max_references <= MAX_REFERENCES:
        raise ValueError(f"references must be 1 to {MAX_REFERENCES}, got {max_references}.")
    if len(w2c) > nframe:
        K, w2c = K[::4], w2c[::4]
    frames = len(w2c)
    if frames < 2:
        raise ValueError(f"w2c must hold at least 2 cameras, got {frames}.")
    table = scores(K, w2c, bank.K, bank.w2c, bank.width, bank.height).penalised.clone()
    for frame, entry in nominated(bank.names, view, trajectory, frames).items():
        table[frame, entry] += 1.0
    retrieved = [int(i) for i in table[1:].argmax(dim=1)]
    if len(set(retrieved)) <= max_references:
        return _grouped(bank, retrieved)

    pool = bank.take(retrieved)
    if pool.features is None:
        if image_features is None or not pool.pictures:
            raise ValueError(
                f"{len(set(retrieved))} references won and {max_references} are accepted: pass "
                f"image_features and pictures to choose among them."
            )
        pool = replace(pool, features=image_features(pool.pictures))
    if not pool.pictures:
        raise ValueError("pictures are needed to choose among too many references.")
    assert pool.features is not None
    combined = combined_features(pool.w2c, pool.features)
    selected = farthest_points(combined, quality(pool.pictures), max_references)
    kept = pool.take(selected)
    again = scores(K, w2c, kept.K, kept.w2c, bank.width, bank.height).penalised
    second = [retrieved[selected[int(i)]] for i in again[1:].argmax(dim=1)]
    return replace(_grouped(bank, second), selected=tuple(selected))


def nominated(names: Sequence[str], view: str, trajectory: str, frames: int) -> dict[int, int]:
    """Target frame -> bank entry that gets +1: an earlier clip of the same place, if any.

    Source: the release's shortcuts for panorama views and for targets and wonders.
    """
    if ("wonder" in view or "target" in view) and trajectory > "traj0":
        earlier, served = "traj0", [i for i in range(1, frames) if i not in (4, 8, 12, 16)]
    elif "view" in view and trajectory in ("traj0", "traj1"):
        earlier, served = "traj2", [i for i in (1, 2, 3, 5, 7, 9, 13, 17) if i < frames]
    else:
        return {}
    mine = [i for i, name in enumerate(names) if name.startswith(f"{view}/{earlier}")]
    if earlier == "traj2" and trajectory == "traj1":
        mine = mine[: len(mine) // 2]
    candidates = mine[3::2]
    if not candidates:
        return {}
    return {i: candidates[int(i / frames * len(candidates))] for i in served}


def _grouped(bank: MemoryBank, retrieved: Sequence[int]) -> Retrieval:
    slots: dict[int, int] = {}
    for slot, entry in enumerate(retrieved):
        slots.setdefault(entry, slot)
    ordered = sorted(slots, key=lambda entry: slots[entry])
    groups = {
        slots[entry]: tuple(i + 1 for i, e in enumerate(retrieved) if e == entry)
        for entry in ordered
    }
    return Retrieval(
        ref_index=tuple(slots[entry] for entry in ordered),
        entries=tuple(ordered),
        retrieved=tuple(retrieved),
        w2c=bank.w2c[ordered],
        groups=groups,
    )


# ---- reduction to the budget --------------------------------------------------------------------


def camera_features(w2c: Float[Tensor, "n 4 4"]) -> np.ndarray:
    """(n, 7): camera centre, then the quaternion of the w2c rotation as (x, y, z, w), w >= 0."""
    poses = w2c.double()
    centre = torch.linalg.inv(poses)[:, :3, 3]
    wxyz = quaternions(poses[:, :3, :3])
    return torch.cat([centre, wxyz[:, 1:], wxyz[:, :1]], dim=-1).cpu().numpy()


def z_scored(columns: np.ndarray) -> np.ndarray:
    """Each column (n, d) less its mean, over its standard deviation; a constant one becomes 0."""
    return (columns - columns.mean(axis=0)) / (columns.std(axis=0) + 1e-8)


def combined_features(w2c: Float[Tensor, "n 4 4"], images: Float[Tensor, "n d"]) -> np.ndarray:
    """(n, 7 + d): 0.3 x cameras and 0.7 x pictures, each column z-scored over the candidates."""
    pictures = images.double().cpu().numpy()
    return np.concatenate([0.3 * z_scored(camera_features(w2c)), 0.7 * z_scored(pictures)], axis=1)


def quality(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(n,): sharpness, entropy and contrast of uint8 pictures; higher is better.

    RGB is converted to grey as if it were BGR, as in the release.
    """
    import cv2

    found = []
    for picture in pictures:
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_BGR2GRAY)
        sharp = float(cv2.Laplacian(grey, cv2.CV_64F).var())
        share = np.bincount(grey.reshape(-1), minlength=256) / grey.size + 1e-10
        entropy = float(-(share * np.log2(share)).sum())
        found.append(0.4 * math.log1p(sharp) + 0.3 * entropy + 0.3 * float(grey.std()) / 128)
    return np.array(found)


def farthest_points(
    features: np.ndarray, quality_scores: np.ndarray, count: int, bias: float | int = 0.1
) -> list[int]:
    """`count` rows far from each other, better pictures slightly preferred, in order of choice.

    Args:
        features: (n, d).
        quality_scores: (n,), any unit; scaled to 0 .. 1 here.
        bias: by how much the best picture's distance counts more than the worst's.

    Raises:
        ValueError: `count` is not 1 .. n.

    Source: farthest-point sampling, Eldar et al. 1997, with the release's quality factor.
    """
    features = np.asarray(features, dtype=np.float64)
    if not 1 <= count <= len(features):
        raise ValueError(f"count must be 1 .. {len(features)}, got {count}.")
    span = float(quality_scores.max() - quality_scores.min())
    q = (quality_scores - quality_scores.min()) / span if span > 0 else np.zeros(len(features))
    to_centre = np.linalg.norm(features - features.mean(axis=0), axis=1)
    chosen = [int(np.argmax(-to_centre + bias * q))]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.linalg.norm(features - features[chosen[-1]], axis=1))
        worth = nearest * (1 + bias * (q - 0.5))
        worth[chosen] = -np.inf
        chosen.append(int(np.argmax(worth)))
    return chosen


# ---- order of trajectories ----------------------------------------------------------------------


def panorama_order(paths: Sequence[str]) -> list[str]:
    """ "<view>/<trajectory>" names in the order in which the release generates them.

    Views first (traj2, traj0, traj1 of each), targets, first passes of reconstructions, wonders,
    and at last the second passes of reconstructions. Other names are left out.
    """

    def rank(path: str) -> tuple[Any, ...] | None:
        view, _, trajectory = path.partition("/")
        if view.startswith("view"):
            order = {"traj2": 0, "traj0": 1, "traj1": 2}
            return (0, view, order[trajectory], "") if trajectory in order else None
        if view.startswith("target"):
            return (1, view, 0, trajectory)
        if view.startswith("reconstruct"):
            order = {"traj0": 2, "traj1": 4}
            return (order[trajectory], view, 0, "") if trajectory in order else None
        return (3, view, 0, trajectory) if view.startswith("wonder") else None

    ranked = [(key, path) for path in paths if (key := rank(path)) is not None]
    return [path for _, path in sorted(ranked)]
