"""Spatial-stereo memory: a bank of features, each tied to the 3D points it describes.

A query looks only at entries that correspond to it in 3D; `_stereo_memory.matches` states the rules
(window, depth tolerance, occlusion). There are no learned weights: keys and values are the stored
features, projections belong to the generator. World points in scene units, `Cameras` in OpenCV
frame, pixels with the first centre at (0.5, 0.5). A wrong shape, width or device, a number that is
not finite, an unknown option or cameras that do not fit are a `ValueError` of one line that names
the argument; a wrong type or dtype is a `TypeError`.

Entries fill slots 0 .. size-1. Removing one moves the last entry into its slot. Attending and
retrieving count as use and change `importance` and `hit_rate`, nothing else.

Source: the receptive field follows WorldStereo, arXiv:2603.02049.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.memory._checks import check_option, check_range, check_tensor, check_whole
from worldstereo.memory.attention import csr_attention, dense_attention
from worldstereo.memory.stereo import _recall as recall
from worldstereo.memory.stereo import _usage as usage
from worldstereo.memory.stereo._bank import Bank, Scalars
from worldstereo.memory.stereo._checks import (
    check_cameras,
    check_flag,
    check_metadata,
    check_number,
    check_view,
)
from worldstereo.memory.stereo._files import BankFiles
from worldstereo.memory.stereo._matches import (
    ACCEPTED,
    Matches,
    Search,
    camera_frame,
    camera_numbers,
    to_pixels,
)
from worldstereo.memory.stereo._matches import matches as find_matches
from worldstereo.render import RenderResult, render_points

STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORAGE["int8"] = torch.int8


class Rejection(IntEnum):
    """Why a near entry was refused; the first test it failed, in this order."""

    CONFIDENCE = 1
    WINDOW = 2
    DEPTH = 3
    OCCLUDED = 4


class MaskWithReasons(NamedTuple):
    """What `correspondence_mask(..., reasons=True)` returns."""

    indices: Tensor
    """(3, P) int64: batch, query, slot of every accepted pair."""
    misses: Tensor
    """(3, R) int64: the same for entries within twice the window that were refused."""
    codes: Tensor
    """(R,) int64: `Rejection` of each; of several correspondences the one that came furthest."""


class RefineResult(NamedTuple):
    num_blended: int
    """Entries that were seen again and blended."""
    num_pruned: int
    """Entries removed because they kept disagreeing."""
    matched: Tensor
    """(N,) bool: observations that were blended into an entry; the others are new."""


class SpatialStereoMemory(BankFiles):
    """A bank of at most `memory_size` features with 3D correspondences.

    Args:
        memory_size: capacity in entries.
        feature_dim: channels of an entry.
        num_correspondences: 3D points kept per entry. Pad an entry that has fewer by repeating
            one, or with confidence 0 (which a threshold of 0 would still accept).
        attention_window: side of the square window in pixels of the current camera.
        correspondence_threshold: correspondences of lower confidence are not used.
        update_strategy: which entries are replaced when the bank is full: "fifo", "lru" or
            "importance_based". Every tie goes against the oldest.
        num_heads: heads of the attention; they split the channels.
        storage_dtype: float32, float16, bfloat16 or "int8" for the stored features; outputs stay
            within 1e-3, 1e-2 and 3e-2 of float32. Correspondences are never compressed.

    Raises:
        ValueError: an argument is out of range (`TypeError` for another type); one line.
    """

    def __init__(
        self,
        memory_size: int = 4096,
        feature_dim: int = 768,
        num_correspondences: int = 8,
        attention_window: float = 32,
        correspondence_threshold: float = 0.5,
        update_strategy: str = "fifo",
        num_heads: int = 1,
        storage_dtype: torch.dtype | str = torch.float32,
    ) -> None:
        super().__init__()
        self.memory_size = check_whole("memory_size", memory_size, 1)
        self.feature_dim = check_whole("feature_dim", feature_dim, 1)
        self.num_correspondences = check_whole("num_correspondences", num_correspondences, 1)
        self.num_heads = check_whole("num_heads", num_heads, 1)
        self.attention_window = check_number("attention_window", attention_window, least=0.0)
        if self.attention_window == 0:
            raise ValueError("attention_window must be above 0 pixels, got 0.")
        self.correspondence_threshold = check_number(
            "correspondence_threshold", correspondence_threshold, least=0.0, most=1.0
        )
        check_option("update_strategy", update_strategy, usage.STRATEGIES)
        self.update_strategy = update_strategy
        if self.feature_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide feature_dim {self.feature_dim}, got {self.num_heads}."
            )
        storage = STORAGE.get(str(storage_dtype).removeprefix("torch."))
        if storage is None:
            raise ValueError(
                f"storage_dtype must be one of {', '.join(STORAGE)}, got {storage_dtype}."
            )
        self.storage_dtype = storage
        # In float32, as confidences are: 0.7 is accepted where the threshold is 0.7.
        threshold = float(np.float32(self.correspondence_threshold))
        self._bank = Bank(memory_size, feature_dim, num_correspondences, threshold, storage)

    # ---- properties --------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Entries stored now."""
        return self._bank.size

    @property
    def capacity(self) -> int:
        return self.memory_size

    @property
    def is_full(self) -> bool:
        return self.size == self.memory_size

    @property
    def features(self) -> Tensor:
        """(size, feature_dim) float32, decompressed."""
        features = self._bank.features()
        return features.clone() if self.storage_dtype == torch.float32 else features

    @property
    def correspondences(self) -> Tensor:
        """(size, num_correspondences, 3) world points."""
        return self._bank.column("points").clone()

    @property
    def confidence(self) -> Tensor:
        """(size, num_correspondences) in [0, 1]."""
        return self._bank.column("confidence").clone()

    @property
    def importance(self) -> Tensor:
        """(size,): mean confidence x (1 + attention received) x recency.

        Recency halves with every 256 uses of the memory that pass an entry by.
        """
        return usage.importance(self._bank)

    @property
    def metadata(self) -> dict[str, Tensor]:
        """What was given with each entry: -1 (camera, frame, level, seen_by) or 0 where nothing."""
        names = ("camera", "frame", "pixel", "normal", "level", "seen_by")
        return {name: self._bank.column(name).clone() for name in names}

    @property
    def hit_rate(self) -> float:
        """Share of the attended and retrieved queries that found an entry; 0 before the first."""
        scalars = self._bank.scalars
        return scalars.found / scalars.asked if scalars.asked else 0.0

    @property
    def memory_bytes(self) -> int:
        """Bytes held for the entries, room for growth included."""
        return self._bank.bytes()

    def rest(self) -> None:
        """Moves the entries to disk until they are used again; same entries."""
        self._bank.rest()

    def tensors(self) -> list[Tensor]:
        """What is held for the entries: to count bytes, never to write."""
        return [*self._bank.columns.values(), self._bank.boxes]

    # ---- writing -----------------------------------------------------------------------------

    def add_to_memory(
        self,
        features: Tensor,
        correspondences: Tensor,
        confidence: Tensor,
        metadata: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Stores entries; when full, those that `update_strategy` names make room.

        Args:
            features: (N, feature_dim).
            correspondences: (N, num_correspondences, 3) world points.
            confidence: (N, num_correspondences) in [0, 1].
            metadata: any of camera, frame, level: (N,) whole numbers; pixel (N, 2); normal (N, 3),
                unit length or 0; seen_by (N, num_correspondences) whole numbers. Numbers and
                single rows serve all entries.

        Returns:
            (N,) int64 slots. With N > memory_size the last memory_size stay and the others get -1.

        Raises:
            ValueError, TypeError: see the module; the memory is unchanged.
        """
        device, many = self.device, self.num_correspondences
        features = check_tensor("features", features, ("N", self.feature_dim), device)
        n = len(features)
        points = check_tensor("correspondences", correspondences, (n, many, 3), device)
        confidence = check_tensor("confidence", confidence, (n, many), device)
        check_range("confidence", confidence, 0.0, 1.0)
        extra = check_metadata(metadata, n, many, device)
        indices = torch.full((n,), -1, dtype=torch.int64, device=device)
        if n == 0:
            return indices
        first = max(0, n - self.memory_size)
        slots = usage.places(self._bank, n - first, self.update_strategy)
        indices[first:] = slots
        scalars = self._bank.scalars
        clock, sequence = scalars.clock + 1, scalars.sequence
        blank = torch.zeros(len(slots), device=device)
        self._bank.write(
            slots,
            **self._bank.encode(features[first:]),
            points=points[first:],
            confidence=confidence[first:],
            **{name: value[first:] for name, value in extra.items()},
            order=torch.arange(sequence + first, sequence + n, device=device),
            mass=confidence[first:].mean(dim=1),
            doubt=blank,
            received=blank,
            last_used=torch.full_like(slots, clock),
        )
        size = max(scalars.size, int(slots.max()) + 1)
        self._bank.set(size=size, clock=clock, sequence=sequence + n)
        return indices

    def refine(
        self, features: Tensor, points: Tensor, camera_params: Cameras, confidence: Tensor
    ) -> RefineResult:
        """Entries that a new frame sees again follow it; entries that keep disagreeing go.

        An observation meets the nearest entry within 1 % of its depth or one pixel. Where the
        features agree (2 f.g / (|f|^2 + |g|^2) >= 0.5) the entry becomes the evidence-weighted
        mean and its confidences rise; else they fall, as do those of entries that the frame looks
        through. Disagreement sums up by the observation's confidence and is forgiven by agreement;
        at 2 the entry is pruned.

        Args:
            features: (N, feature_dim).
            points: (N, 3) world points that the frame observed.
            camera_params: the frame's single camera.
            confidence: (N,) in [0, 1].

        Returns:
            How many entries were blended and pruned, and which observations (N,) were blended.

        Raises:
            ValueError, TypeError: see the module; the memory is unchanged.
        """
        device = self.device
        features = check_tensor("features", features, ("N", self.feature_dim), device)
        points = check_tensor("points", points, (len(features), 3), device)
        confidence = check_tensor("confidence", confidence, (len(features),), device)
        check_range("confidence", confidence, 0.0, 1.0)
        check_cameras(camera_params, 1, device)
        if len(features) == 0 or self.size == 0:
            return RefineResult(0, 0, torch.zeros_like(confidence, dtype=torch.bool))
        bank, size = self._bank, (camera_params.width, camera_params.height)
        camera = camera_numbers(camera_params, 0)
        said = recall.compare(bank, features, points, confidence, camera, size)
        sure = bank.columns["confidence"][said.slots]
        bank.write(
            said.slots,
            **bank.encode(said.features),
            confidence=sure + (1 - sure) * (recall.RISE * said.support)[:, None] * (sure > 0),
            mass=said.mass,
            doubt=torch.zeros_like(said.mass),
        )
        doubt = bank.columns["doubt"][said.doubted] + said.doubt
        falling = bank.columns["confidence"][said.doubted]
        bank.write(
            said.doubted,
            confidence=falling * (1 - recall.FALL * said.doubt)[:, None],
            doubt=doubt,
        )
        pruned = said.doubted[doubt >= recall.PATIENCE]
        usage.remove(bank, pruned)
        return RefineResult(len(said.slots), len(pruned), said.matched)

    def clear(self) -> None:
        """Forgets all entries and statistics; capacity and options stay."""
        self._bank.set(**Scalars()._asdict())

    # ---- asking ------------------------------------------------------------------------------

    def constrained_attention(
        self,
        query_features: Tensor,
        query_positions: Tensor,
        camera_params: Cameras,
        use_correspondence_mask: bool = True,
        return_weights: str = "dense",
        occluder: RenderResult | None = None,
    ) -> tuple[Tensor, Any]:
        """Exact softmax attention over the entries that correspond to each query.

        Args:
            query_features: (B, N, feature_dim); gradients flow into them.
            query_positions: (B, N, 3) world points of the queries' pixels.
            camera_params: one camera for the whole batch, or (B,).
            use_correspondence_mask: False attends every stored entry.
            return_weights: "dense": (B, N, memory_size). "sparse": `(indices, values)` with int64
                (3, P) indices (batch, query, slot) and (P,) values; nothing dense is built, and
                time and memory follow the pairs. With several heads, the mean over heads.
            occluder: the global memory's render for the same camera(s), (…, 1, h, w); a
                correspondence behind it is refused. Without it only depth agreement decides.

        Returns:
            output (B, N, feature_dim) and weights; zeros where nothing corresponds.

        Raises:
            ValueError, TypeError: see the module; the memory is unchanged.
        """
        check_option("return_weights", return_weights, ("dense", "sparse"))
        check_flag("use_correspondence_mask", use_correspondence_mask)
        positions = check_tensor("query_positions", query_positions, ("B", "N", 3), self.device)
        batch, n = positions.shape[:2]
        wanted = (batch, n, self.feature_dim)
        check_tensor("query_features", query_features, wanted, self.device)
        hidden = check_view(camera_params, occluder, batch, self.device)
        outputs, triples, values = [], [], []
        found = 0
        for b in range(batch):
            q = query_features[b]
            if use_correspondence_mask:
                match = self._match(positions[b], camera_params, hidden, b, False)
                offsets, column = match.offsets, match.column
                keys, rows = self._bank.opened(column)
                output, weight = csr_attention(
                    q, keys, keys, offsets, rows, num_heads=self.num_heads, checked=True
                )
                query = _rows_of(offsets)
                found += int((offsets.diff() > 0).sum())
            else:
                keys = self._bank.features()
                output, table = dense_attention(q, keys, keys, num_heads=self.num_heads)
                weight = table.reshape(-1)
                query = torch.arange(n, device=self.device).repeat_interleave(self.size)
                column = torch.arange(self.size, device=self.device).repeat(n)
                found += n if self.size else 0
            outputs.append(output)
            triples.append(torch.stack([torch.full_like(query, b), query, column]))
            values.append(weight)
        output = torch.stack(outputs) if outputs else query_features * 0
        indices, value = _joined(triples, self.device), torch.cat(values or [output.new_zeros(0)])
        usage.count_use(self._bank, indices[2], value.detach(), found, batch * n)
        if return_weights == "sparse":
            return output, (indices, value)
        dense = output.new_zeros(batch, n, self.memory_size)
        return output, dense.index_put(tuple(indices), value)

    def correspondence_mask(
        self,
        query_positions: Tensor,
        camera_params: Cameras,
        occluder: RenderResult | None = None,
        reasons: bool = False,
    ) -> Any:
        """Which entries each query may attend: (3, P) int64 rows batch, query, slot, in order.

        With `reasons` a `MaskWithReasons`: also near misses, each with its `Rejection` code. For
        inspection; does not count as use. Arguments as in `constrained_attention`.

        For a correspondence of confidence 1, at level 0 and without a normal, the window reaches
        attention_window / 2 pixels each way and the depth tolerance is 5 % of the query's depth,
        borders included; `_stereo_memory.matches` states how both adapt, and the occlusion test.
        """
        positions = check_tensor("query_positions", query_positions, ("B", "N", 3), self.device)
        check_flag("reasons", reasons)
        hidden = check_view(camera_params, occluder, len(positions), self.device)
        triples, codes = [], []
        for b in range(len(positions)):
            match = self._match(positions[b], camera_params, hidden, b, reasons)
            query = _rows_of(match.offsets)
            triples.append(torch.stack([torch.full_like(query, b), query, match.column]))
            codes.append(match.codes)
        indices = _joined(triples, self.device)
        if not reasons:
            return indices
        code = torch.cat(codes).long() if codes else indices[0]
        good = code == ACCEPTED
        return MaskWithReasons(indices[:, good], indices[:, ~good], code[~good])

    def retrieve(
        self,
        query_positions: Tensor,
        camera_params: Cameras | None = None,
        top_k: int = 8,
        occluder: RenderResult | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The entries nearest to each query by distance to an accepted correspondence.

        With a camera, correspondences whose normal faces away and those that are hidden (by
        `occluder`, or without it by other entries) rank last. Ties go to the lower slot.

        Args:
            query_positions: (B, N, 3) world points.
            camera_params: one camera for the whole batch, or (B,).
            top_k: entries for each query, at least 1.
            occluder: as in `constrained_attention`; needs a camera.

        Returns:
            features (B, N, top_k, feature_dim) and slots (B, N, top_k), int64; zeros and -1 where
            the memory has fewer.

        Raises:
            ValueError, TypeError: see the module; the memory is unchanged.
        """
        positions = check_tensor("query_positions", query_positions, ("B", "N", 3), self.device)
        top_k = check_whole("top_k", top_k, 1)
        batch, n = positions.shape[:2]
        if camera_params is None:
            if occluder is not None:
                raise ValueError("occluder needs camera_params, got none.")
            slots, _ = recall.nearest_entries(self._bank, positions.reshape(-1, 3), top_k, None)
            slots = slots.reshape(batch, n, top_k)
        else:
            hidden = check_view(camera_params, occluder, batch, self.device)
            size = (camera_params.width, camera_params.height)
            each = []
            for b in range(batch):
                camera = camera_numbers(camera_params, b)
                view = recall.Visible(camera, size, hidden[b])
                each.append(recall.nearest_entries(self._bank, positions[b], top_k, view)[0])
            none = torch.zeros(0, n, top_k, dtype=torch.int64, device=self.device)
            slots = torch.stack(each) if each else none
        features = positions.new_zeros(batch, n, top_k, self.feature_dim)
        held = slots >= 0
        features[held] = self._bank.features(slots[held])
        usage.count_use(self._bank, slots[held], None, int(held[..., 0].sum()), batch * n)
        return features, slots

    def warp(self, camera_params: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The stored features as a camera would see them, on a grid laid over its image.

        Each accepted correspondence shows its entry in the cell that it projects into; the nearest
        one wins. For generators that want remembered features as keys and values.

        Args:
            camera_params: one camera, or a batch.
            height, width: of the grid.

        Returns:
            features (…, feature_dim, height, width), zeros where nothing is seen, and a mask
            (…, 1, height, width). Does not count as use.
        """
        for name, size in (("height", height), ("width", width)):
            check_whole(name, size, 1)
        if not isinstance(camera_params, Cameras):
            raise TypeError(f"camera_params must be Cameras, got {type(camera_params).__name__}.")
        shape = camera_params.batch_shape
        sure = self._bank.column("confidence") >= self._bank.threshold
        points = self._bank.column("points")[sure]
        entry = sure.nonzero()[:, 0]
        index = torch.full((*shape, 1, height, width), -1, dtype=torch.int64, device=self.device)
        if len(points) > 0:
            grid = camera_params.scaled(width, height)
            index = render_points(points, torch.zeros_like(points), grid, radius=0).index
        seen = index >= 0
        features = torch.zeros(*shape, height, width, self.feature_dim, device=self.device)
        if bool(seen.any()):
            held = seen.squeeze(-3)
            features[held] = self._bank.features(entry[index.squeeze(-3)[held]])
        return features.movedim(-1, -3), seen

    def _match(self, *question: Any) -> Matches:
        return find_matches(self._bank.entries(), self._search(*question))

    def _search(
        self, positions: Tensor, cameras: Cameras, hidden: list[Tensor], b: int, misses: bool
    ) -> Search:
        camera = camera_numbers(cameras, b)
        x, y, z = camera_frame(positions, camera)
        u, v = to_pixels(x, y, z, camera)
        return Search(
            pixels=torch.stack([u, v], dim=-1),
            depth=z.contiguous(),
            camera=camera,
            size=(cameras.width, cameras.height),
            occluder=hidden[b],
            half=self.attention_window / 2,
            threshold=self._bank.threshold,
            misses=misses,
        )


def _rows_of(offsets: Tensor) -> Tensor:
    counts = offsets.diff()
    return torch.arange(len(counts), device=offsets.device).repeat_interleave(counts)


def _joined(triples: list[Tensor], device: torch.device) -> Tensor:
    none = torch.zeros(3, 0, dtype=torch.int64, device=device)
    return torch.cat(triples, dim=1) if triples else none
