"""Gaussian splats as clouds: colour, opacity and size of each Gaussian.

Three forms: trainers' PLY (read in `ply`), the packed PLY of splat editors, and `.splat`.
Source: https://github.com/playcanvas/splat-transform and https://github.com/antimatter15/splat
"""

import numpy as np

from worldstereo.inputs.limits import Limits, refusal
from worldstereo.inputs.surface import Surface

SH0 = 0.28209479177387814  # the constant spherical harmonic
PACKED = frozenset(("packed_position", "packed_rotation", "packed_scale", "packed_color"))
CHUNK = 256  # Gaussians that share one range
FAINT = 0.1  # opacity below which a Gaussian alone is hardly seen
_ROW = np.dtype([("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("q", "u1", 4)])


def surface_of(
    points: np.ndarray, colors: np.ndarray, opacity: np.ndarray, sizes: np.ndarray | None
) -> Surface:
    """The solid Gaussians: opacity is their confidence, their radius the middle of three sizes."""
    solid = opacity > FAINT
    solid = solid if solid.any() else np.ones(len(points), dtype=bool)
    radii = None
    if sizes is not None:
        with np.errstate(invalid="ignore"):
            radii = np.sort(np.nan_to_num(sizes, posinf=0.0), axis=1)[:, 1][solid]
    faint = len(points) - int(solid.sum())
    said = f"Gaussian splats are shown as points: {int(solid.sum())} with colour, opacity and size"
    said += f"; {faint} faint ones were left out." if faint else "."
    none = np.zeros((0, 3), np.int64)
    return Surface(points[solid], none, np.clip(colors[solid], 0, 1), radii=radii,
                   confidence=np.clip(opacity[solid], 0, 1), notices=(said,))  # fmt: skip


def unpacked(name: str, rows: np.ndarray, chunks: np.ndarray) -> Surface:
    """The packed PLY: positions and scales as shares of the range of their chunk."""
    axes = ("x", "y", "z")
    known = set(chunks.dtype.names or ())
    want = {f"{m}_{s}{a}" for m in ("min", "max") for s in ("", "scale_") for a in axes}
    if not want <= known:
        raise refusal(name, "its chunks name no ranges of x, y and z", "Export it again")
    which = np.arange(len(rows)) // CHUNK
    if len(rows) and which[-1] >= len(chunks):
        raise refusal(name, f"{len(rows)} splats need {which[-1] + 1} chunks, {len(chunks)} follow",
                      "Export it again")  # fmt: skip

    def ranged(parts: np.ndarray, kind: str, letters: tuple[str, ...]) -> np.ndarray:
        low = np.stack([chunks[f"min_{kind}{a}"].astype(float) for a in letters], 1)[which]
        high = np.stack([chunks[f"max_{kind}{a}"].astype(float) for a in letters], 1)[which]
        return low + parts * (high - low)

    def eleven(packed: np.ndarray) -> np.ndarray:
        p = packed.astype(np.uint32)
        return np.stack([(p >> 21) / 2047, ((p >> 11) & 1023) / 1023, (p & 2047) / 2047], 1)

    points = ranged(eleven(rows["packed_position"]), "", axes)
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.exp(ranged(eleven(rows["packed_scale"]), "scale_", axes))
    packed = rows["packed_color"].astype(np.uint32)
    rgba = np.stack([(packed >> s) & 255 for s in (24, 16, 8, 0)], axis=1) / 255.0
    colors = rgba[:, :3]
    if {f"{m}_{c}" for m in ("min", "max") for c in "rgb"} <= known:
        colors = ranged(colors, "", ("r", "g", "b"))
    return surface_of(points, colors, rgba[:, 3], sizes)


def read_splats(name: str, data: bytes, limits: Limits) -> Surface:
    """`.splat`: 32 bytes a Gaussian, without a header."""
    if len(data) % _ROW.itemsize or not data:
        raise refusal(name, f"{len(data)} bytes are not whole splats of 32", "Export it again")
    if len(data) // _ROW.itemsize > limits.points:
        raise refusal(name, f"holds {len(data) // _ROW.itemsize} splats",
                      f"At most {limits.points} are accepted")  # fmt: skip
    rows = np.frombuffer(data, dtype=_ROW)
    return surface_of(rows["p"].astype(np.float64), rows["c"][:, :3] / 255.0,
                      rows["c"][:, 3] / 255.0, rows["s"].astype(np.float64))  # fmt: skip
