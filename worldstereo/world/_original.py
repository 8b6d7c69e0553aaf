"""What a capture brought, beside what intake made of it: so that registration can be switched.

Intake drops depth that other views contradict, fills gaps and masks what is fixed to the camera;
points of a capture's own cloud merge with those of its views. Going back to the given poses, and
forth again, begins with the depth and the cloud as they came.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from worldstereo._core.parallel import parallel_for
from worldstereo._core.resident import on_disk
from worldstereo.scene import PointCloud, View


@dataclass(frozen=True, eq=False)
class PackedDepth:
    """Depth of one view without loss, in 0.1 to 0.2 MB at 640x480.

    A sensor tells a few thousand depths apart: their numbers, as differences along rows, compress.
    """

    data: UInt8[Tensor, "n"]
    """A zlib stream."""
    levels: Int32[Tensor, "m"] | None
    """The bits of each depth by number; None where there are too many to number in 16 bits."""
    shape: tuple[int, ...]

    @staticmethod
    def of(depth: Float[Tensor, "1 H W"]) -> "PackedDepth":
        """Packs depth of any unit; NaN and infinity keep their bits too."""
        bits = depth.detach().cpu().float().numpy().view(np.int32)
        some = np.unique(bits.ravel()[: 2**17])  # no sensor: that there are too many shows early
        levels, number = (some, None) if len(some) > 2**16 else np.unique(bits, return_inverse=True)
        if number is None or len(levels) > 2**16:
            return PackedDepth(_deflated(bits), None, tuple(bits.shape))
        rows = number.reshape(-1, bits.shape[-1]).astype(np.uint16)
        steps = np.diff(rows, axis=1, prepend=rows.dtype.type(0))  # wraps around, and back
        halves = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 2).T)
        return PackedDepth(_deflated(halves), torch.from_numpy(levels), tuple(bits.shape))

    def spilled(self) -> "PackedDepth":
        """The same on disk, until it is read."""
        if self.levels is None:
            return replace(self, data=on_disk([self.data])[0])
        data, levels = on_disk([self.data, self.levels])
        return replace(self, data=data, levels=levels)

    def depth(self) -> Float[Tensor, "1 H W"]:
        """The very bits that were packed.

        Raises:
            ValueError: they were changed since; never unpacks more than `shape` holds.
        """
        bits = self._numbers() if self.levels is None else self.levels.numpy()[self._numbers()]
        return torch.from_numpy(bits.reshape(self.shape).view(np.float32).copy())

    @property
    def is_sound(self) -> bool:
        """Whether it can be unpacked to finite depths of at least 0; cheaper than unpacking."""
        try:
            numbers = self._numbers()
        except ValueError:
            return False
        values = (numbers if self.levels is None else self.levels.numpy()).view(np.float32)
        return bool((values >= 0).all() and np.isfinite(values).all())

    def _numbers(self) -> np.ndarray:
        """Rows of numbers of levels, or of the bits themselves where there are none."""
        pixels = prod(self.shape)
        size = pixels * (4 if self.levels is None else 2)
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(self.data.numpy().tobytes(), size + 1)
        except zlib.error:
            raise ValueError("packed depth is damaged and cannot be unpacked.") from None
        if len(raw) != size or not stream.eof:
            raise ValueError(f"packed depth does not hold the {pixels} pixels that it names.")
        if self.levels is None:
            return np.frombuffer(raw, np.int32)
        low, high = np.frombuffer(raw, np.uint8).reshape(2, -1).astype(np.uint16)
        steps = (low | high << 8).reshape(-1, self.shape[-1])
        rows = np.cumsum(steps, axis=1, dtype=np.uint16)
        if pixels > 0 and int(rows.max()) >= len(self.levels):
            raise ValueError("packed depth names a depth that it does not list.")
        return rows

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.levels is None else self.levels.nbytes)


def _deflated(values: np.ndarray) -> UInt8[Tensor, "n"]:
    return torch.frombuffer(bytearray(zlib.compress(values.tobytes(), 1)), dtype=torch.uint8)


@dataclass(frozen=True, eq=False)
class Original:
    """A capture before intake; colours and poses are in the views themselves."""

    depth: tuple[PackedDepth, ...]
    """Of each given view, in their order."""
    cloud: PointCloud | None = None
    """The capture's own cloud, less what was deleted since."""

    def belongs_to(self, views: Sequence[View]) -> bool:
        """Whether it holds one sound depth for each given view, of that view's size."""
        given = [view for view in views if view.step == 0]
        if len(given) != len(self.depth):
            return False
        pairs = zip(given, self.depth, strict=True)
        if not all(packed.shape == tuple(view.depth.shape) for view, packed in pairs):
            return False
        sound = [False] * len(self.depth)

        def look(k: int) -> None:
            sound[k] = self.depth[k].is_sound

        parallel_for(len(sound), look)
        return all(sound)
