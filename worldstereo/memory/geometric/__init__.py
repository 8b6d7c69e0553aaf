"""`GlobalGeometricMemory`: the growing cloud, its features, and their injection into latents.

World space is right-handed, distances are in scene units. The points are kept once, on the CPU, by
`PointStore`; on another device queries and renders read a mirror that is refreshed after a change.
The learned parts are `PointFeatures`. A row is the position of a point in `points`: the order of
`initialize`, then the order of adding.

Tensors that come from outside are annotated without shapes: the methods check those themselves and
say in one line what is wrong.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

import logging
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldstereo._core.resident import is_array_on_disk
from worldstereo.cameras import Cameras
from worldstereo.memory._checks import (
    WrongType,
    check_option,
    check_pose,
    check_range,
    check_source,
    check_tensor,
    check_threshold,
    check_whole,
)
from worldstereo.memory.geometric._features import AGGREGATIONS, INJECTIONS, PointFeatures
from worldstereo.memory.geometric._files import MemoryFiles
from worldstereo.memory.geometric._index import GrowingIndex
from worldstereo.memory.geometric._store import Columns, PointStore, Snapshot
from worldstereo.neighbors import KINDS
from worldstereo.render import RenderResult, check_render, render_points
from worldstereo.scene import PointCloud

log = logging.getLogger(__name__)

PLACES = 4  # along each side of a latent cell, where what is seen in it is looked up
UPDATE_FREQUENCIES = ("per_frame", "per_step", "manual")


class UpdateResult(NamedTuple):
    """What an update did: `num_added + num_merged` is the size of the batch."""

    num_added: int
    num_merged: int
    total_points: int


class GlobalGeometricMemory(MemoryFiles):
    """Coarse structure: a growing global cloud with features, and the control branch that shows it.

    Args:
        point_cloud_dim: channels of the stored embedding of a point.
        feature_dim: channels that `query` returns and the control branch injects.
        num_neighbors: k of every nearest-neighbour query.
        update_frequency: "per_frame", "per_step" or "manual"; read by whoever drives the memory.
        spatial_index: "kd_tree", "ball_tree" (same exact results), "cuda_knn" (KeOps), "auto".
        max_points: capacity; when it is exceeded, the points observed longest ago go.
        latent_channels: channels of the latents of `inject_to_latent`.

    Raises:
        ValueError: an unknown option or a size below 1.
    """

    def __init__(
        self,
        point_cloud_dim: int = 256,
        feature_dim: int = 768,
        num_neighbors: int = 32,
        update_frequency: str = "per_frame",
        spatial_index: str = "kd_tree",
        max_points: int = 100_000,
        latent_channels: int = 16,
    ) -> None:
        super().__init__()
        self.point_cloud_dim = check_whole("point_cloud_dim", point_cloud_dim, 1)
        self.feature_dim = check_whole("feature_dim", feature_dim, 1)
        self.num_neighbors = check_whole("num_neighbors", num_neighbors, 1)
        check_option("update_frequency", update_frequency, UPDATE_FREQUENCIES)
        self.update_frequency = update_frequency
        check_option("spatial_index", spatial_index, KINDS)
        self.spatial_index = spatial_index
        self.max_points = check_whole("max_points", max_points, 1)
        self.latent_channels = check_whole("latent_channels", latent_channels, 1)
        self.learned = PointFeatures(point_cloud_dim, feature_dim, latent_channels)
        self._store = PointStore(max_points)
        self._index = GrowingIndex(self._store, spatial_index)
        self._mirror: tuple[int, dict[str, Tensor]] = (-1, {})
        self._mirror_device = torch.device("cpu")

    # ---- the cloud ---------------------------------------------------------------------------

    def initialize(
        self,
        points: Tensor,
        features: Tensor | None = None,
        colors: Tensor | None = None,
        *,
        normals: Tensor | None = None,
        radii: Tensor | None = None,
        confidence: Tensor | None = None,
        source: int | Tensor | None = None,
    ) -> None:
        """Replaces the memory. Above capacity the cloud is thinned evenly, which the log says.

        Args:
            points: (N, 3), any N.
            features: (N, point_cloud_dim); without them they are computed from coordinates and
                colours whenever they are asked for.
            colors: (N, 3) in [0, 1].
            normals: (N, 3), made unit length; radii (N,) in scene units; confidence (N,) in [0, 1].
            source: a number for all points or one for each, kept for provenance.

        Raises:
            ValueError: wrong shape, dtype, device or width, an entry that is not finite, a colour
                or confidence outside [0, 1], a negative radius. The memory is unchanged then.
        """
        batch = self._batch("points", points, features, colors, normals, radii, confidence, source)
        n = len(batch["point"])
        if n > self.max_points:
            log.info("initialize: %d points thinned evenly to the capacity %d", n, self.max_points)
            rows = np.arange(self.max_points) * n // self.max_points
            batch = {name: column[rows] for name, column in batch.items()}
        else:
            batch = {name: column.copy() for name, column in batch.items()}
        self._store.replace(batch)

    def update(
        self,
        new_points: Tensor | PointCloud,
        camera_pose: Tensor,
        features: Tensor | None = None,
        colors: Tensor | None = None,
        merge_threshold: float | int = 0.01,
        confidence: Tensor | None = None,
        *,
        normals: Tensor | None = None,
        radii: Tensor | None = None,
        source: int | Tensor | None = None,
    ) -> UpdateResult:
        """Takes in what a camera saw.

        A new point within `merge_threshold` (scene units) of stored ones merges into the nearest of
        them: every given column becomes the mean weighted by observations. New points that share a
        cell of that size collapse into one. What is left is added, and the points observed longest
        ago go where the capacity is exceeded. The result depends on neither threads nor blocks.

        Args:
            new_points: (M, 3), the other columns as in `initialize`, one row for each; or a
                `PointCloud`, whose own columns they then are.
            camera_pose: (4, 4) `c2w` of the camera that saw them.

        Raises:
            ValueError: as `initialize`; also a negative threshold or a pose that `Cameras` refuses.
            TypeError: a `PointCloud` and one of its columns beside it.
        """
        if isinstance(new_points, PointCloud):
            columns = {
                "colors": colors,
                "confidence": confidence,
                "normals": normals,
                "radii": radii,
            }
            for name, column in columns.items():
                if column is not None:
                    raise WrongType(f"{name} is given twice: new_points is a cloud with its own.")
            cloud = new_points
            new_points, colors, confidence = cloud.points, cloud.colors, cloud.confidence
            normals, radii = cloud.normals, cloud.radii
            source = cloud.source if source is None else source
        batch = self._batch(
            "new_points", new_points, features, colors, normals, radii, confidence, source
        )
        check_pose(camera_pose)
        threshold = check_threshold(merge_threshold)
        if "confidence" not in batch:
            batch["confidence"] = np.ones(len(batch["point"]), np.float32)
        store = self._store
        if features is not None and not store.has("feature") and len(store) > 0:
            store.fill_column("feature", self.features.cpu().numpy())
        elif features is None and store.has("feature"):
            computed = self.learned.encode(
                new_points, None if colors is None else colors.to(new_points)
            )
            batch["feature"] = computed.detach().cpu().numpy()
        added, merged = store.update(batch, threshold)
        return UpdateResult(added, merged, len(store))

    def prune(
        self,
        min_confidence: float | int | None = None,
        min_observations: int | float | None = None,
        keep: Tensor | None = None,
    ) -> int:
        """Removes rows below a limit or not kept, and returns how many; the rest keep order.

        Raises:
            ValueError: `keep` is not one bool per row, or a limit is not a finite number.
        """
        stay = np.ones(self.num_points, np.bool_)
        if keep is not None:
            device = keep.device if isinstance(keep, Tensor) else self.device
            checked = check_tensor("keep", keep, (self.num_points,), device, torch.bool)
            stay &= checked.cpu().numpy()
        limits = (("confidence", min_confidence), ("observations", min_observations))
        for column, limit in (("confidence", limits[0]), ("count", limits[1])):
            name, value = limit
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WrongType(f"min_{name} must be a number, got {value!r}.")
            if not np.isfinite(value):
                raise ValueError(f"min_{name} must be finite, got {value}.")
            stay &= self._store.column(column) >= value
        return self._store.prune(stay)

    def snapshot(self) -> Snapshot:
        """A handle on the present cloud for `restore`. Later changes keep only what they overwrite.

        Handles may be kept in any number and restored in any order, forwards as well as back; one
        that is dropped costs nothing more. Learned weights are not part of it.
        """
        return self._store.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """The cloud as it was at `snapshot`, bit for bit; costs what changed in between.

        Raises:
            ValueError: the snapshot belongs to another memory.
        """
        if not isinstance(snapshot, Snapshot):
            raise WrongType(f"snapshot must come from snapshot(), got {type(snapshot).__name__}.")
        self._store.restore(snapshot)

    # ---- asking ------------------------------------------------------------------------------

    def query(
        self,
        query_points: Tensor,
        camera_params: Cameras | None = None,
        aggregation: str = "weighted",
    ) -> Float[Tensor, "B Q F"]:
        """Features of the surroundings of each query point; zeros from an empty memory.

        Args:
            camera_params: one camera for the whole batch or (B,); "attention" looks along its rays.
            aggregation: "mean", "max", "weighted" (by inverse distance) or "attention" (learned).

        Raises:
            ValueError: an unknown aggregation, a camera batch that does not fit, a bad query.
        """
        check_option("aggregation", aggregation, AGGREGATIONS)
        points = check_tensor("query_points", query_points, ("B", "Q", 3), self.device)
        eye = self._eyes(camera_params, points.shape[0])
        if self.is_empty or points.numel() == 0:
            return points.new_zeros(*points.shape[:2], self.feature_dim)
        distance, index = self.neighbors(points)
        return self.learned.aggregate(
            aggregation, points, distance, self._gather(index), self._gather_features(index), eye
        )

    def neighbors(
        self, query_points: Tensor, k: int | None = None
    ) -> tuple[Float[Tensor, "B Q m"], Int[Tensor, "B Q m"]]:
        """Distances (ascending) and rows of the `m = min(k, N)` nearest points.

        Exact: distances are compared in float64 and ties go to the lower row.

        Raises:
            ValueError: `k` below 1, a bad query.
        """
        points = check_tensor("query_points", query_points, ("B", "Q", 3), self.device)
        k = self.num_neighbors if k is None else check_whole("k", k, 1)
        flat = points.reshape(-1, 3).cpu().numpy()
        distance, index = self._index.query(flat, k, self.device)
        shape = (*points.shape[:2], min(k, self.num_points))
        return (
            torch.from_numpy(distance.astype(np.float32)).reshape(shape).to(self.device),
            torch.from_numpy(index).reshape(shape).to(self.device),
        )

    def render(self, camera_params: Cameras, radius: int = 1) -> RenderResult:
        """The cloud splatted into one camera or a batch (T,); see `render.render_points`."""
        points = self._device_column("point")
        check_render(points, None, camera_params, radius, 0.0)
        return render_points(points, self._device_column("color"), camera_params, radius)

    def inject_to_latent(
        self,
        latent: Tensor,
        camera_params: Cameras,
        injection_method: str = "addition",
    ) -> Float[Tensor, "B T C H W"]:
        """The latent with the features of the points seen in each cell added through a zero-built
        projection: the identity when freshly built or empty. Cells in holes are left untouched.

        A cell is looked at in 4 x 4 places, and the mean of what is seen there is added; a cell
        that shows no point of its own takes the nearest of its neighbours'.

        Args:
            camera_params: one camera for all frames or a batch (T,), of any image size.
            injection_method: "addition", "concatenation" or "cross_attention".

        Raises:
            ValueError: an unknown method, other channels, cameras that do not fit the frames.
        """
        check_option("injection_method", injection_method, INJECTIONS)
        if not isinstance(latent, Tensor) or not latent.is_floating_point():
            raise WrongType("latent must be a tensor of floats (B, T, C, H, W).")
        if latent.ndim != 5 or latent.shape[2] != self.latent_channels or latent.numel() == 0:
            raise ValueError(
                f"latent must have shape (B, T, {self.latent_channels}, H, W), "
                f"got {tuple(latent.shape)}."
            )
        if latent.device.type != self.device.type:
            raise ValueError(f"latent is on {latent.device}, the memory on {self.device}.")
        T, (H, W) = latent.shape[1], latent.shape[-2:]
        if not isinstance(camera_params, Cameras):
            raise WrongType(f"camera_params must be Cameras, got {type(camera_params).__name__}.")
        if camera_params.batch_shape not in ((), (T,)):
            raise ValueError(
                f"camera_params must be one camera or a batch ({T},) like the latent's frames, "
                f"got {camera_params.batch_shape}."
            )
        if self.is_empty:
            return latent
        cameras = camera_params.scaled(W, H)
        seen = self.render(cameras)
        index = seen.index.reshape(-1, H, W).expand(T, H, W)
        depth = seen.depth.reshape(-1, H, W).expand(T, H, W)
        visible = index >= 0
        if not bool(visible.any()):
            return latent
        rows = index[visible]
        if injection_method != "cross_attention":
            features = self._mean_features(cameras, visible, rows)
            return self.learned.inject(injection_method, latent, visible, features, None)
        pixels = cameras.pixel_grid()
        batch = (len(depth), H * W) if camera_params.batch_shape else (T, H * W)
        surface = cameras.unproject(
            pixels.expand(*batch[: 1 if camera_params.batch_shape else 0], H * W, 2),
            depth.reshape(batch) if camera_params.batch_shape else depth[0].reshape(-1),
        )
        surface = surface.reshape(-1, H, W, 3).expand(T, H, W, 3)[visible].float()
        distance, near = self.neighbors(surface[None])
        features = self._gather_features(near[0])
        return self.learned.inject(injection_method, latent, visible, features, distance[0])

    # ---- reading -----------------------------------------------------------------------------

    @property
    def thins(self) -> bool:
        """What leaves above capacity: False the points observed longest ago, True those that
        others make superfluous, so that all of the place stays (see `_thinning`)."""
        return self._store.thins

    @thins.setter
    def thins(self, on: bool) -> None:
        self._store.thins = on

    @property
    def stretch(self) -> float:
        """By how much thinning widened the distance between points; 1 before the first."""
        return self._store.stretch

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def points(self) -> Float[Tensor, "N 3"]:
        """World positions. This tensor, as those of other properties, is never written again."""
        return self._device_column("point")

    @property
    def colors(self) -> Float[Tensor, "N 3"]:
        """In [0, 1]; grey (0.5) where none was given."""
        return self._device_column("color")

    @property
    def features(self) -> Float[Tensor, "N D"]:
        """The stored embeddings, or those computed from coordinates and colours just now."""
        if self._store.has("feature"):
            return self._device_column("feature")
        with torch.no_grad():
            return self.learned.encode(self.points, self.colors)

    @property
    def normals(self) -> Float[Tensor, "N 3"]:
        """Unit length; zeros where not known."""
        if not self._store.has("normal"):
            return torch.zeros(self.num_points, 3, device=self.device)
        return self._device_column("normal")

    @property
    def radii(self) -> Float[Tensor, "N"]:
        """Scene units; 0 where not known."""
        if not self._store.has("radius"):
            return torch.zeros(self.num_points, device=self.device)
        return self._device_column("radius")

    @property
    def confidence(self) -> Float[Tensor, "N"]:
        return self._device_column("confidence")

    @property
    def observations(self) -> Int[Tensor, "N"]:
        """How often each point was observed; at least 1."""
        return self._device_column("count")

    @property
    def last_seen(self) -> Int[Tensor, "N"]:
        """Number of the update that observed each point last; 0 is `initialize`."""
        return self._device_column("seen")

    @property
    def sources(self) -> Int[Tensor, "N"]:
        """What the caller gave as source when the point was added; -1 where nothing."""
        return self._device_column("source")

    @property
    def num_points(self) -> int:
        return len(self._store)

    @property
    def capacity(self) -> int:
        return self.max_points

    @property
    def is_empty(self) -> bool:
        return self.num_points == 0

    @property
    def bounds(self) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        """Lowest and highest corner of the box around the points; zeros when empty."""
        if self.is_empty:
            return torch.zeros(3, device=self.device), torch.zeros(3, device=self.device)
        points = self.points
        return points.amin(dim=0), points.amax(dim=0)

    def rest(self) -> None:
        """Moves the cloud to disk until it is used again, and drops its indexes; same cloud."""
        self._store.rest()
        self._index = GrowingIndex(self._store, self.spatial_index)
        self._mirror = (-1, {})

    def tensors(self) -> list[Tensor]:
        """What the cloud holds in memory, its indexes aside: to count bytes, never to write."""
        arrays = [a for a in self._store.arrays() if not is_array_on_disk(a)]
        return [*map(torch.from_numpy, arrays), *self._mirror[1].values()]

    @property
    def index_bytes(self) -> int:
        """Bytes of the index for neighbours."""
        return self._index.nbytes()

    @property
    def memory_bytes(self) -> int:
        """Bytes held for the cloud and its indexes; learned weights are not counted."""
        return self._store.memory_bytes() + self._index.nbytes()

    # ---- inside ------------------------------------------------------------------------------

    def _batch(
        self,
        name: str,
        points: Tensor,
        features: Tensor | None,
        colors: Tensor | None,
        normals: Tensor | None,
        radii: Tensor | None,
        confidence: Tensor | None,
        source: int | Tensor | None,
    ) -> Columns:
        """The checked arguments as arrays, without those that were not given."""
        device = self.device
        points = check_tensor(name, points, ("N", 3), device)
        n = len(points)
        given: dict[str, Tensor] = {"point": points}
        if features is not None:
            given["feature"] = check_tensor("features", features, (n, self.point_cloud_dim), device)
        if colors is not None:
            given["color"] = check_tensor("colors", colors, (n, 3), device)
            check_range("colors", given["color"], 0.0, 1.0)
        if normals is not None:
            given["normal"] = check_tensor("normals", normals, (n, 3), device)
            given["normal"] = nn.functional.normalize(given["normal"], dim=-1)
        if radii is not None:
            given["radius"] = check_tensor("radii", radii, (n,), device)
            check_range("radii", given["radius"], 0.0, torch.inf)
        if confidence is not None:
            given["confidence"] = check_tensor("confidence", confidence, (n,), device)
            check_range("confidence", given["confidence"], 0.0, 1.0)
        batch = {key: np.ascontiguousarray(value.cpu().numpy()) for key, value in given.items()}
        if source is not None:
            batch["source"] = check_source(source, n)
        return batch

    def _eyes(self, cameras: Cameras | None, batch: int) -> Float[Tensor, "b 1 3"] | None:
        if cameras is None:
            return None
        if not isinstance(cameras, Cameras):
            raise WrongType(f"camera_params must be Cameras, got {type(cameras).__name__}.")
        if cameras.batch_shape not in ((), (1,), (batch,)):
            raise ValueError(
                f"camera_params must be one camera or a batch ({batch},) like the queries, "
                f"got {cameras.batch_shape}."
            )
        return cameras.position.float().reshape(-1, 1, 3).to(self.device)

    def _device_column(self, name: str) -> Tensor:
        """A column in row order on the memory's device, made once per revision."""
        revision = self._store.revision
        if self._mirror[0] != revision or self._mirror_device != self.device:
            self._mirror, self._mirror_device = (revision, {}), self.device
        held = self._mirror[1]
        if name not in held:
            column = torch.from_numpy(self._store.column(name))
            column = column.long() if not column.is_floating_point() else column
            held[name] = column.to(self.device)
        return held[name]

    def _gather(self, index: Int[Tensor, "*S"]) -> tuple[Tensor, Tensor]:
        """Positions and confidence of rows."""
        return self._device_column("point")[index], self._device_column("confidence")[index]

    def _mean_features(
        self, cameras: Cameras, visible: Tensor, rows: Int[Tensor, "V"]
    ) -> Float[Tensor, "V D"]:
        """Mean embedding of the points seen in each visible cell; of `rows` where a cell sees none.

        One point alone would be whatever happens to lie nearest: of a textured surface, noise.
        """
        T, H, W = visible.shape
        fine = self.render(cameras.scaled(PLACES * W, PLACES * H), radius=0).index
        fine = (
            fine.reshape(-1, H, PLACES, W, PLACES).transpose(2, 3).flatten(3).expand(T, -1, -1, -1)
        )
        seen = fine[visible]
        seen[:, 0] = torch.where((seen < 0).all(dim=1), rows, seen[:, 0])
        held = seen >= 0
        cell = held.nonzero()[:, 0]
        features = self._gather_features(seen[held])
        total = features.new_zeros(len(rows), features.shape[1]).index_add(0, cell, features)
        return total / held.sum(dim=1, keepdim=True)

    def _gather_features(self, index: Int[Tensor, "*S"]) -> Float[Tensor, "*S D"]:
        """Embeddings of rows; computed ones are computed once per distinct row."""
        if self._store.has("feature"):
            return self._device_column("feature")[index]
        rows, place = torch.unique(index, return_inverse=True)
        points, colors = self._device_column("point"), self._device_column("color")
        return self.learned.encode(points[rows], colors[rows])[place]
