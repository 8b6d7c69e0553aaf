"""`WorldLoader`: how a session's world begins, from a file or an example, and what is seen of it.

Preparing a capture takes seconds to a minute. Until its world is published the viewport shows the
capture as it was given, a sketch: thinned, nothing cleaned, moved or filled. The world itself is
what it was before, and nothing is generated from a sketch.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from worldstereo.errors import WorldStereoError
from worldstereo.project import ProjectState, reopen
from worldstereo.scene import Capture, PointCloud, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.registration import median_depth
from worldstereo.world import NextView, World, next_best_views, sky_of, start

from .autosave import Autosave, reason
from .config import Example
from .jobs import Job
from .kept import Outlook
from .preview import GHOSTS
from .progress import StagedProgress, stages_of
from .shared import Shared

log = logging.getLogger(__name__)

KEYFRAMES = 21  # of a path that came with a file
SKETCHED = 110_000  # points of a sketch: below what a viewport shows before it knows its renderer
APART = 10.0  # of the cameras' own spread: the unit where neither depth nor points tell it
SKETCH = -1  # revision of a sketch: that of no published scene


class WorldLoader:
    """Fills one world. Every method but `read` runs on the worker's thread, inside a job.

    Args:
        planned: hears of the path that came with the file, None for no path.
        unseen: hears from where most can be learned in a world that came without a path.
        begun: hears of a capture that has become the world.
        shown: hears of each sketch, and of None when there is none any more.
    """

    def __init__(
        self,
        token: str,
        world: World,
        shared: Shared,
        saving: Autosave,
        *,
        planned: Callable[[Trajectory | None], None],
        unseen: Callable[[tuple[NextView, ...]], None],
        begun: Callable[[Capture], None],
        shown: Callable[[Scene | None], None],
    ) -> None:
        self.sketch: Scene | None = None
        """What is being prepared, as it was given; None at all other times."""
        self._token, self._world, self._shared, self._saving = token, world, shared, saving
        self._planned, self._unseen = planned, unseen
        self._begun, self._shown = begun, shown

    def read(self, job: Job, path: Path | Sequence[Path], name: str) -> Capture | ProjectState:
        """What a person's files hold; on an import thread, so that no generation waits for it."""
        job.on_step(0, 0, f"Reading {name[:60]}")
        return self._shared.read(path, name, lambda: job.cancelled, job.on_step, job.add_frame)

    def file(self, job: Job, name: str) -> Scene:
        """Makes what was read the world."""
        found: Capture | ProjectState = job.first_result
        if isinstance(found, ProjectState):
            plan, _ = reopen(self._world, found, name=name)
            self._planned(plan)
        else:
            plan = self._begin(found, job)
        self._saving.save(job)
        self._unseen(self._look_around(plan, job).views)
        return self._world.scene

    def example(self, job: Job, example: Example, save: bool) -> Scene:
        """A bundled capture, or the world that it became last time."""
        job.on_step(0, 0, f"Opening {example.label}")
        outlook = self._reopen(example)
        if outlook is None:
            plan = self._begin(self._shared.read_example(example), job)
            made = outlook = self._look_around(plan, job)
            keep = Job("save", lambda _: self._shared.kept.keep(example, self._world, made))
            self._shared.worker.submit(self._token, keep)
        self._unseen(outlook.views)
        if save:
            self._saving.save(job)
        return self._world.scene

    def _reopen(self, example: Example) -> Outlook | None:
        """Take the world that this example became last time, unless there is one to undo to."""
        if self._world.history:
            return None
        try:
            outlook = self._shared.kept.open(example, self._world)
        except WorldStereoError as error:
            log.warning("a kept example could not be read: %s", reason(error))
            return None
        if outlook is not None:
            self._planned(outlook.path)
        return outlook

    def _look_around(self, plan: Trajectory | None, job: Job) -> Outlook:
        """Where the first path goes, so that it is there at once."""
        if plan is not None or not self._world.scene.views:
            return Outlook(plan)
        job.on_step(0, 0, "Looking for unknown areas")
        return Outlook(None, next_best_views(self._world.scene, GHOSTS))

    def _begin(self, capture: Capture, job: Job) -> Trajectory | None:
        """Makes a capture the world; returns the path that came with it."""
        if capture.views:
            self._show(sketch_of(capture))
        try:
            course = StagedProgress(job.on_step, stages_of(capture.views))
            with job.stopping():
                start(self._world, capture, on_step=course)
            path = capture.trajectory
            if path is not None and len(path) > KEYFRAMES:
                path = path.resampled(KEYFRAMES)  # the release thins it to its keyframes too
            self._planned(path)
            self._begun(capture)
            return path
        finally:  # ready, refused or cancelled: the viewport shows the world again
            self._show(None)

    def _show(self, sketch: Scene | None) -> None:
        if sketch is not self.sketch:
            self.sketch = sketch
            self._shown(sketch)


def sketch_of(capture: Capture) -> Scene:
    """The capture as it was given, as a scene that can be drawn: its views, and a thin cloud.

    Photos without depth bring the points of their reconstruction, where the file has any.
    """
    clouds = [] if capture.cloud is None else [thinned(capture.cloud, SKETCHED)]
    pixels = sum(int((view.depth > 0).sum()) for view in capture.views)
    stride = max(1, int(np.ceil(np.sqrt(pixels / SKETCHED))))
    clouds += [_given_points(view, i, stride) for i, view in enumerate(capture.views)]
    columns = ("points", "colors", "confidence", "step", "normals", "radii")
    joined = {name: torch.cat([getattr(cloud, name) for cloud in clouds]) for name in columns}
    sources = [
        torch.full((len(cloud),), -1) if cloud.source is None else cloud.source for cloud in clouds
    ]
    return Scene(
        SKETCH,
        capture.name,
        capture.views,
        PointCloud(**joined, source=torch.cat(sources)),
        up=sky_of(capture.views) if capture.up is None else capture.up,
        unit=_unit(capture, pixels > 0),
        metres_per_unit=capture.metres_per_unit,
        rough_depth=capture.rough_depth,
        notices=capture.notices,
    )


def thinned(cloud: PointCloud, most: int) -> PointCloud:
    """Every n-th point, so that at most so many are left."""
    every = max(1, -(-len(cloud) // most))
    return cloud.rows(torch.arange(len(cloud)) % every == 0)


def _given_points(view: View, index: int, stride: int) -> PointCloud:
    """Depth of one view as it was given, every `stride` pixels."""
    first = stride // 2
    pixels = view.cameras.pixel_grid().reshape(view.height, view.width, 2)
    pixels = pixels[first::stride, first::stride].reshape(-1, 2)
    depth = view.depth[0, first::stride, first::stride].reshape(-1)
    known = (depth > 0) & torch.isfinite(depth)
    depth, color = depth[known], view.color_u8[:, first::stride, first::stride].reshape(3, -1)
    return PointCloud.of(
        view.cameras.unproject(pixels[known], depth),
        color.T[known].float() / 255,
        radii=0.5 * stride * depth / view.cameras.K[0, 0],
        source=torch.full((len(depth),), index),
    )


def _unit(capture: Capture, measured: bool) -> float:
    """The scene's unit of length, as far as it can be told before anything is measured."""
    if measured:
        return max(median_depth(capture.views), 1e-6)
    eyes = torch.stack([view.cameras.c2w[:3, 3] for view in capture.views])
    if capture.cloud is not None and len(capture.cloud) > 0:
        middle = capture.cloud.points.median(dim=0).values
        return max(float((eyes - middle).norm(dim=1).median()), 1e-6)
    # Nothing says how far away anything is: so that the cameras themselves are seen together.
    return max(APART * float((eyes - eyes.mean(dim=0)).norm(dim=1).median()), 1e-6)
