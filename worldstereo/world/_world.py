"""`World`: owns the memories of one project; transactional steps, undo and redo, published scenes.

One writer, many readers. Memories change inside `with world.step(...)`, in one thread at a time;
everybody else reads `world.scene`, which never changes and is swapped by one assignment. A step
that fails, or is cancelled, leaves memories and scene exactly as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo._core.resident import held, release, tensors_in, trim
from worldstereo.cameras import Cameras
from worldstereo.errors import WorldBusy
from worldstereo.generators import Generator
from worldstereo.guide import PARTS, parts_bytes
from worldstereo.memory.geometric import UPDATE_FREQUENCIES, GlobalGeometricMemory
from worldstereo.memory.localize import Localizer
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.memory.stereo.keypoints import KeypointMemory, KeypointTable
from worldstereo.memory.stereo.references import Reference, references
from worldstereo.render import tree_bytes
from worldstereo.scene import Clip, PointCloud, Scene, View
from worldstereo.views.fusion import CACHE
from worldstereo.views.registration import Registration
from worldstereo.world._original import Original

UNDO_STEPS = 100
"""How many steps can be undone; older ones are final."""


@dataclass(frozen=True)
class StepRecord:
    """One line of a world's history: what was done and what it added."""

    label: str
    step: int
    views_added: int = 0
    points_added: int = 0
    points_merged: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    """What is needed to do it again: path, seed, generator, guide."""


@dataclass
class Draft:
    """The world inside a step; only the holder of the step touches it."""

    step: int
    geometry: GlobalGeometricMemory
    stereo: SpatialStereoMemory
    keypoints: KeypointMemory
    scene: Scene
    """The scene the step began with."""
    views: list[View]
    clips: list[Clip]
    registration: Registration | None
    original: Original | None = None
    """The capture before intake; None where there was none, or an old file did not keep it."""
    write_geometry: bool = True
    """False: this step adds nothing to the global memory."""
    write_stereo: bool = True
    """False: this step adds no entries, and its views are kept without their depth: the pictures
    are part of the record, but nothing corresponds to them."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Other fields of the next scene: up, unit, camera_fixed, name, notices, metres_per_unit."""
    points_added: int = 0
    points_merged: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    """Goes into the step's record."""


@dataclass(frozen=True, eq=False)
class Published:
    """One state of the world: what readers see, and how the memories get back to it."""

    scene: Scene
    registration: Registration | None
    history: tuple[StepRecord, ...]
    geometry: Any
    stereo: Any
    keypoints: Any
    original: Original | None = None


class World:
    """The memories of one project and the scenes they have published.

    Args:
        generator: makes the memories and, unless a step names another, the frames.
        max_points: capacity of the global memory; beyond it the cloud thins where it is densest.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_points: int = 2_000_000,
        name: str = "",
        update_frequency: str = "per_frame",
    ) -> None:
        self.generator, self.max_points = generator, max_points
        self._geometry, self._stereo = generator.new_memories(max_points)
        self._geometry.thins = True
        self._keypoints = KeypointMemory()
        self.update_frequency = update_frequency
        self._localizer: tuple[int, Localizer] | None = None
        self._table: tuple[int, KeypointTable] | None = None
        self._lock = Lock()
        self._wakes: list[Callable[[], None]] = []
        self._done: list[Published] = []
        self._undone: list[Published] = []
        self._revision = 0  # never repeats, so that a reader knows a scene by its revision
        self._now = self._capture_state(Scene(name=name), None, ())

    # ---- readers -----------------------------------------------------------------------------

    @property
    def scene(self) -> Scene:
        """The newest published scene; free to read from any thread."""
        return self._now.scene

    @property
    def registration(self) -> Registration | None:
        return self._now.registration

    @property
    def history(self) -> tuple[StepRecord, ...]:
        return self._now.history

    @property
    def states(self) -> tuple[tuple[StepRecord | None, Scene], ...]:
        """What undo and redo reach, oldest first: the step that led to each state, and its scene.

        Scenes other than the one published now come without their cloud. The state now is number
        `undo_steps`.
        """
        every = (*self._done, self._now, *reversed(self._undone))
        return tuple((s.history[-1] if s.history else None, s.scene) for s in every)

    @property
    def undo_steps(self) -> int:
        """How many steps can be undone."""
        return len(self._done)

    @property
    def original(self) -> Original | None:
        """The capture before intake: with it, registration can be switched without loss."""
        return self._now.original

    @property
    def update_frequency(self) -> str:
        """When generated frames enter the memories."""
        return self._geometry.update_frequency

    @update_frequency.setter
    def update_frequency(self, value: str) -> None:
        if value not in UPDATE_FREQUENCIES:
            raise ValueError(
                f"update_frequency must be one of {', '.join(UPDATE_FREQUENCIES)}, got {value!r}."
            )
        self._geometry.update_frequency = value

    @property
    def can_undo(self) -> bool:
        return len(self._done) > 0

    @property
    def can_redo(self) -> bool:
        return len(self._undone) > 0

    @property
    def busy(self) -> bool:
        """True while a step runs."""
        return self._lock.locked()

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake()` called after each publish, in the writer's thread; returns its undoing.

        `wake` must only set an event: the writer waits for it.
        """
        self._wakes.append(wake)

        def unsubscribe() -> None:
            if wake in self._wakes:
                self._wakes.remove(wake)

        return unsubscribe

    # ---- memory ------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of memory that this world takes: scene, memories, undo, and what is kept ready."""
        return self.footprint[0]

    @property
    def footprint(self) -> tuple[int, int]:
        """Bytes that this world takes in memory, and on disk beside its saved project.

        Pictures, clips and undo lie on disk and come into memory for the time they are read.
        """
        states = (self._now, *self._done, *self._undone)
        plain = [(s.scene, s.registration, s.original) for s in states]
        memory, disk = held(
            [*tensors_in(plain), *self._geometry.tensors(), *self._stereo.tensors()]
        )
        memory += self._geometry.index_bytes
        memory += sum(CACHE.bytes_of(view) for view in self.scene.views)
        memory += tree_bytes(self.scene.cloud.points) + parts_bytes(self.scene.cloud)
        return memory, disk

    def rest(self) -> bool:
        """Leaves memory until it is used again: all that is held goes to disk, nothing changes.

        Reading, steps and undo work as before; the first of them takes a moment longer. False
        where a step runs.
        """
        try:
            with self._writing():
                self._geometry.rest()
                self._stereo.rest()
                self._localizer = self._table = None
                self.scene.cloud.rest()
                PARTS.forget(id(self.scene.cloud))
                for view in self.scene.views:
                    CACHE.forget(view)
                self.give_back()
        except WorldBusy:
            return False
        return True

    def give_back(self) -> None:
        """Gives pages of pictures that were read, and what the allocator keeps free, to the system.

        Nothing changes, and any thread may call it: pages are read again when they are needed.
        """
        scene = self._now.scene
        release(tensors_in((scene.views, scene.clips)))
        trim()

    # ---- the writer --------------------------------------------------------------------------

    @contextmanager
    def step(self, label: str) -> Iterator[Draft]:
        """Change the memories: publishes a new scene on success, restores them on any error.

        Raises:
            WorldBusy: another step is running.
        """
        with self._writing():
            before = self._now
            draft = Draft(
                step=len(before.history),
                geometry=self._geometry,
                stereo=self._stereo,
                keypoints=self._keypoints,
                scene=before.scene,
                views=list(before.scene.views),
                clips=list(before.scene.clips),
                registration=before.registration,
                original=before.original,
            )
            try:
                yield draft
                scene = self._next_scene(draft)
                added = len(draft.views) - len(before.scene.views)
                record = StepRecord(
                    label, draft.step, added, draft.points_added, draft.points_merged, draft.details
                )
                after = self._capture_state(
                    scene, draft.registration, (*before.history, record), draft.original
                )
            except BaseException:
                self._restore(before)
                raise
            self._done.append(_without_cloud(before))
            del self._done[:-UNDO_STEPS]
            self._undone.clear()
            self._publish(after)
            self.give_back()

    def undo(self) -> bool:
        """Back to the scene before the last step. False when there is nothing to undo."""
        return self._travel(self._done, self._undone)

    def redo(self) -> bool:
        """Forward again to the step last undone. False when there is nothing to redo."""
        return self._travel(self._undone, self._done)

    def memories(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """State of both memories, for saving; does not wait, and refuses while a step runs."""
        with self._writing():
            geometry = {k: v.clone() for k, v in self._geometry.state_dict().items()}
            stereo = {k: v.clone() for k, v in self._stereo.state_dict().items()}
            return geometry, stereo

    def keypoints(self) -> dict[str, Tensor]:
        """State of the keypoint level, for saving; refuses while a step runs."""
        with self._writing():
            return {k: v.clone() for k, v in self._keypoints.state_dict().items()}

    def localizer(self) -> Localizer:
        """Finds photos in the world as it is now; built once after each step.

        Raises:
            WorldBusy: a step is running.
        """
        with self._writing():
            revision = self.scene.revision
            if self._localizer is None or self._localizer[0] != revision:
                self._localizer = (revision, Localizer(self._keypoint_table()))
            return self._localizer[1]

    def references(
        self,
        camera: Cameras,
        *,
        depth: Float[Tensor, "1 H W"] | None = None,
        limit: int = 8,
        without: Sequence[int] = (),
    ) -> tuple[Reference, ...]:
        """Remembered views that serve a camera by votes of the keypoint level, with the entries
        that voted; empty where the keypoint level knows nothing there.

        Args:
            depth: what is known of the camera's depth, as a guide's frame has it: entries behind
                it do not vote.
            without: views that are not to serve, as the one whose camera it is.

        Raises:
            WorldBusy: a step is running.
        """
        with self._writing():
            table, views = self._keypoint_table(), self.scene.views
        return references(table, camera, views, depth=depth, limit=limit, without=without)

    def reopen(
        self,
        scene: Scene,
        registration: Registration | None,
        history: tuple[StepRecord, ...],
        geometry: dict[str, Tensor],
        stereo: dict[str, Tensor],
        original: Original | None = None,
        keypoints: dict[str, Tensor] | None = None,
    ) -> None:
        """Become a saved world. What was here before is forgotten, undo included.

        Without `keypoints` (older files) they are computed from the given views.
        """
        with self._writing():
            before = self._now
            try:
                self._geometry.load_state_dict(geometry)
                self._stereo.load_state_dict(stereo)
                if keypoints:
                    self._keypoints.load_state_dict(keypoints)
                else:
                    self._keypoints.clear()
                    for number, view in enumerate(scene.views):
                        if view.step == 0:
                            self._keypoints.observe(view, number, scene.views)
                after = self._capture_state(scene, registration, history, original)
            except BaseException:
                self._restore(before)
                raise
            after = replace(after, scene=_spilled(scene))
            self._revision = max(self._revision, scene.revision)
            self._done.clear()
            self._undone.clear()
            self._publish(after)

    # ---- inside ------------------------------------------------------------------------------

    def _keypoint_table(self) -> KeypointTable:
        """The keypoint level of the newest scene; made once after each step. Needs the lock."""
        scene = self.scene
        if self._table is None or self._table[0] != scene.revision:
            self._table = (scene.revision, self._keypoints.table(scene.views, scene.unit))
        return self._table[1]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise WorldBusy(
                "This world is being changed by another step; wait for it or cancel it."
            )
        try:
            yield
        finally:
            self._lock.release()

    def _travel(self, source: list[Published], target: list[Published]) -> bool:
        with self._writing():
            if not source:
                return False
            goal = source.pop()
            target.append(_without_cloud(self._now))
            self._restore(goal)
            cloud = published_cloud(self._geometry, list(goal.scene.views))
            self._publish(replace(goal, scene=replace(goal.scene, cloud=cloud)))
            return True

    def _capture_state(
        self,
        scene: Scene,
        registration: Registration | None,
        history: tuple[StepRecord, ...],
        original: Original | None = None,
    ) -> Published:
        geometry, stereo = self._geometry.snapshot(), self._stereo.snapshot()
        keypoints = self._keypoints.snapshot()
        return Published(scene, registration, history, geometry, stereo, keypoints, original)

    def _restore(self, state: Published) -> None:
        self._geometry.restore(state.geometry)
        self._stereo.restore(state.stereo)
        self._keypoints.restore(state.keypoints)

    def _publish(self, state: Published) -> None:
        self._now = state
        for wake in list(self._wakes):
            wake()

    def _next_scene(self, draft: Draft) -> Scene:
        self._revision += 1
        return replace(
            draft.scene,
            revision=self._revision,
            views=tuple(draft.views),
            clips=tuple(draft.clips),
            cloud=published_cloud(draft.geometry, draft.views),
            stretch=draft.geometry.stretch,
            **draft.changes,
        )


def _spilled(scene: Scene) -> Scene:
    return replace(
        scene,
        views=tuple(view.spilled() for view in scene.views),
        clips=tuple(clip.spilled() for clip in scene.clips),
    )


def _without_cloud(state: Published) -> Published:
    """For the undo list: the memory's snapshot gives the cloud back; copies would not fit."""
    nothing = PointCloud.of(torch.zeros(0, 3))
    return replace(state, scene=replace(state.scene, cloud=nothing))


def published_cloud(geometry: GlobalGeometricMemory, views: list[View]) -> PointCloud:
    """The memory's columns as readers see them; a point's step is that of the view it came from."""
    source = geometry.sources.long()
    steps = torch.tensor([view.step for view in views] + [0], dtype=torch.int64)
    if len(source) > 0:
        low, high = source.aminmax()  # each pass over millions of points costs as much as a view
        if low < -1 or high >= len(views):
            source = torch.where((source >= 0) & (source < len(views)), source, -1)
    return PointCloud(
        points=geometry.points,
        colors=geometry.colors,
        confidence=geometry.confidence,
        step=steps[source],  # -1, no view, is the last: step 0
        normals=geometry.normals,
        radii=geometry.radii * geometry.stretch if geometry.stretch > 1 else geometry.radii,
        source=source,
    )
