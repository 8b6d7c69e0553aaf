"""What a capture brought, beside what intake made of it: so that registration can be switched.

Intake drops depth that other views contradict, fills gaps and masks what is fixed to the camera;
points of a capture's own cloud merge with those of its views. Going back to the given poses, and
forth again, begins with the depth and the cloud as they came.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.scene import PointCloud


@dataclass(frozen=True, eq=False)
class PackedDepth:
    """Depth of one view without loss, in 0.1 to 0.2 MB at 640x480.

    A sensor tells a few thousand depths apart: their numbers, as differences along rows, compress.
    """

    data: bytes
    levels: np.ndarray | None
    """The depths by number; None where there are too many to number in 16 bits."""
    shape: tuple[int, ...]

    @staticmethod
    def of(depth: Float[Tensor, "1 H W"]) -> "PackedDepth":
        bits = depth.detach().cpu().float().numpy().view(np.int32)
        levels, number = np.unique(bits, return_inverse=True)
        if len(levels) > 2**16:
            return PackedDepth(zlib.compress(bits.tobytes(), 1), None, bits.shape)
        rows = number.reshape(-1, bits.shape[-1]).astype(np.uint16)
        steps = np.diff(rows, axis=1, prepend=rows.dtype.type(0))  # wraps around, and back
        halves = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 2).T)
        return PackedDepth(zlib.compress(halves.tobytes(), 1), levels, bits.shape)

    def depth(self) -> Float[Tensor, "1 H W"]:
        """The very bits that were packed."""
        raw = np.frombuffer(zlib.decompress(self.data), np.uint8)
        if self.levels is None:
            bits = raw.view(np.int32)
        else:
            steps = np.ascontiguousarray(raw.reshape(2, -1).T).view(np.uint16)
            rows = np.cumsum(steps.reshape(-1, self.shape[-1]), axis=1, dtype=np.uint16)
            bits = self.levels[rows]
        return torch.from_numpy(bits.reshape(self.shape).view(np.float32).copy())

    @property
    def nbytes(self) -> int:
        return len(self.data) + (0 if self.levels is None else self.levels.nbytes)


@dataclass(frozen=True, eq=False)
class Original:
    """A capture before intake; colours and poses are in the views themselves."""

    depth: tuple[PackedDepth, ...]
    """Of each given view, in their order."""
    cloud: PointCloud | None = None
    """The capture's own cloud, less what was deleted since."""
