"""`Session`: one open world with its stage, its path and its job, under one token.

Tabs attach to a session and leave it; what it does goes on without them. Slow work runs on the
shared worker as a `Job`; everything here that is not a `Job` returns at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldstereo import exports as export
from worldstereo import world as edits
from worldstereo.cameras import Cameras
from worldstereo.errors import OutOfMemory, WorldBusy, WorldStereoError
from worldstereo.exports.conventions import to_file
from worldstereo.generators import EmptyRegion, Frame, Inspectable, SamplerConfig
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Capture, Clip, LeftOut, Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import AddReport, NextView, explore, front_at, next_best_views

from ..viewport.events import Event, JobChanged, Measured, Selected
from ..viewport.viewport import Viewport
from .attention import Attention, RequestRecorder
from .autosave import Autosave
from .config import GeneratorChoice
from .jobs import Job
from .opening import WorldLoader
from .preview import GHOSTS, PlannedPath, Preview, PreviewedGuide, Unseen, new_points
from .progress import ADDED, StagedProgress, stages_of
from .shared import Shared

log = logging.getLogger(__name__)

PREPARING = "A new world is being prepared. Wait for it, or cancel it first."
FRAMES_TO_A_KEYFRAME = 3  # of the path on which a place is completed
NOBODY_LOOKS = "The stage is not connected yet. Wait a moment and try again."
NO_VIEWS = "This world has no views to match against."


def sampler_of(steps: int | None, guidance: float | None) -> SamplerConfig:
    """Steps and guidance as they were asked for; the generator's own where they were not."""
    sampler = SamplerConfig(steps=steps)
    return sampler if guidance is None else replace(sampler, guidance=guidance)


class Session:
    """One open world. Made by `Sessions.create` or `Sessions.get`, never directly by the page."""

    def __init__(self, token: str, shared: Shared) -> None:
        self.token = token
        self.world = shared.new_world()
        self.viewport = Viewport(on_event=self._on_event)
        self.job: Job | None = None
        """The running or the last job."""
        self.planned = PlannedPath()
        """The planned path and what it was planned from; see `set_plan`."""
        self.flight: Trajectory | None = None
        """The flight last recorded."""
        self.generator = shared.config.generator
        """Name of the generator last chosen."""
        self.mode = ""
        """Memory mode last chosen, for generators that have several; "" for the quickest."""
        self.sampler = SamplerConfig()
        """Steps and guidance last chosen, as the preflight counts with them."""
        self.left_out: tuple[LeftOut, ...] = ()
        """Pictures of the file last opened that could not be placed."""
        self.prompt = ""
        """Text that came with the file, or was last generated with."""
        self.attention = Attention(shared)
        """Rows of the published model's attention, for clips that were made since the start."""
        self.unseen = Unseen()
        """Where most can be learned, and which of it a path was asked to."""
        self.measured: float | None = None
        """The length last measured, in scene units."""
        self.touched = time.monotonic()
        self.rested = 0.0
        """When the world last left memory."""
        self.shared = shared
        self._lock = threading.Lock()
        self._previewed: PreviewedGuide | None = None
        self._selection: Selected | None = None
        self._drawing_by_hand = False
        self._notices: tuple[str, ...] = ()
        self._closed = False
        self.saving = Autosave(
            token,
            self.world,
            shared,
            plan=lambda: self.planned.path,
            told=lambda state: self.viewport.emit(JobChanged(state)),
        )
        self.loader = WorldLoader(
            token,
            self.world,
            shared,
            self.saving,
            planned=self._set_out,
            unseen=self._found_unseen,
            begun=self._begun,
            shown=self.viewport.show_sketch,
        )
        self.viewport.follow(lambda: self.world.scene, self.world.subscribe)

    # ---- reading -----------------------------------------------------------------------------

    @property
    def shown(self) -> Scene:
        """What the stage shows: the published scene, or the sketch of the one that comes."""
        return self.loader.sketch or self.world.scene

    @property
    def notices(self) -> tuple[str, ...]:
        """What was thinned, guessed or not done, one line each."""
        return (*self.world.scene.notices, *self.viewport.notices, *self._notices)

    @property
    def matchable(self) -> bool:
        """Whether the world has given views, which photos can be matched against."""
        return any(view.step == 0 for view in self.world.scene.views)

    @property
    def selected(self) -> int:
        """Points boxed in the scene that is published now."""
        return len(self._selected_rows())

    @property
    def can_undo(self) -> bool:
        """False where undoing would leave nothing on the stage."""
        return self.world.can_undo and len(self.world.history) > 1

    @property
    def busy(self) -> bool:
        return self.job is not None and not self.job.over

    @property
    def preparing(self) -> bool:
        """While another world is being opened: the one that is there is about to be replaced."""
        return self.busy and self.job is not None and self.job.kind == "open"

    def estimate(self, generator: str, frames: int, width: int, height: int) -> float | None:
        """Seconds that so many views of this size take, as measured here; a guess before that."""
        choice = self.shared.generators.get(generator)
        if choice is None or choice.limits is None:
            return None
        if choice.modes is not None and self.pace_of(generator) not in self.shared.pace:
            fits = choice.modes(frames, width, height, self.sampler)
            return next((fit.seconds for fit in fits if fit.mode == self.mode), None)
        guess = choice.limits.seconds_per_frame / (640 * 480)
        per_pixel = self.shared.pace.get(self.pace_of(generator), guess)
        return per_pixel * frames * width * height

    def estimate_keyframes(
        self, generator: str, keyframes: int, width: int, height: int
    ) -> float | None:
        """Seconds that completing a place with so many keyframes takes at most."""
        choice = self.shared.generators.get(generator)
        if choice is not None and choice.modes is not None:
            fits = choice.modes(1, width, height, self.sampler)
            one = next((fit.seconds for fit in fits if fit.fits), None)
        else:
            one = self.estimate(generator, FRAMES_TO_A_KEYFRAME, width, height)
        return None if one is None else keyframes * one

    def pace_of(self, generator: str) -> str:
        """The name under which the speed of a generator in its mode is kept."""
        choice = self.shared.generators.get(generator)
        modes = choice is not None and choice.modes is not None
        return f"{generator} {self.mode} {self.sampler}" if modes else generator

    # ---- jobs ----------------------------------------------------------------------------------

    def open(self, path: Path | str | Sequence[Path], name: str) -> Job:
        """Read a person's file, or several photos, and make it the world.

        What was there can be undone back to.

        Raises:
            WorldBusy: another job of this session runs.
        """
        source = Path(path) if isinstance(path, (str, Path)) else list(path)
        return self._start(
            "open",
            lambda job: self.loader.file(job, name),
            first=lambda job: self.loader.read(job, source, name),
        )

    def add(self, photos: Sequence[Path]) -> Job:
        """Find where a person's photos were taken in this world, and let it grow by them.

        `job.result()` is an `AddReport`: what was placed, and why the others were left out.

        Raises:
            WorldStereoError: no photos, or a world without given views.
            WorldBusy: another job of this session runs.
        """
        if not photos:
            raise WorldStereoError("No photos were chosen. Choose one or several.")
        if not self.matchable:
            raise WorldStereoError(NO_VIEWS)

        def read(job: Job) -> Capture:
            job.on_step(0, 0, f"Reading {len(photos)} photo{'s' if len(photos) > 1 else ''}")
            return self.shared.read_pictures(photos, lambda: job.cancelled)

        def work(job: Job) -> AddReport:
            course = StagedProgress(job.on_step, ADDED)
            with job.stopping():
                report = edits.add(self.world, job.first_result, on_step=course)
            if report.added:
                self.saving.save(job)
            return report

        return self._start("add", work, first=read)

    def example(self, key: str, *, save: bool = True) -> Job:
        """Open one of the bundled captures; unsaved, it is saved with `save_unsaved`.

        Raises:
            WorldStereoError: there is no such example.
            WorldBusy: another job of this session runs.
        """
        found = next((one for one in self.shared.examples if one.key == key), None)
        if found is None:
            names = ", ".join(one.key for one in self.shared.examples)
            raise WorldStereoError(f"There is no example named {key[:40]!r}. There are: {names}.")
        return self._start("open", lambda job: self.loader.example(job, found, save))

    def explore(
        self,
        trajectory: Trajectory,
        *,
        generator: str = "",
        width: int | None = None,
        height: int | None = None,
        seed: int = 0,
        prompt: str = "",
        negative_prompt: str = "",
        guide: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        mode: str = "",
        aside: bool = False,
        update: str | None = None,
        again: EmptyRegion | None = None,
        empty: EmptyRegion | None = None,
    ) -> Job:
        """Generate the views of a path; they appear in `job.frames` as they are made.

        Args:
            again: a region that is painted again. empty: one that stays empty from now on.
            update: when it is remembered, "per_frame", "per_step" or "manual": a take, which waits
                for `keep` or `discard`; default: as the world says.
            aside: the generator, mode and prompt last chosen stay as they are.
            guide: "fused" or "cloud"; default: what the planned path was previewed with.

        Raises:
            WorldStereoError: an unknown generator, or one that cannot run here.
            InvalidRequest: the generator cannot make such a path.
            WorldBusy: another job of this session runs.
        """
        choice = self._usable(generator)
        size = (width or trajectory.cameras.width, height or trajectory.cameras.height)
        if size != (trajectory.cameras.width, trajectory.cameras.height):
            trajectory = trajectory.scaled(*size)
        if choice.limits is not None:
            choice.limits.check(trajectory)
        sampler = sampler_of(steps, guidance)
        kind = self.planned.guide if guide is None else guide

        def chosen() -> None:
            if not aside:
                self._chose(choice, mode, sampler, prompt)

        def work(job: Job) -> Clip:
            rest: dict[str, Any] = {"seed": seed, "prompt": prompt}
            rest["negative_prompt"] = negative_prompt
            rest |= {"update": update, "again": again, "empty": empty}
            return self._explore(job, choice, trajectory, guide=kind, sampler=sampler, **rest)

        return self._start("explore", work, accepted=chosen)

    def complete(
        self,
        budget: int,
        *,
        here: bool = False,
        generator: str = "",
        width: int = 640,
        height: int = 480,
        seed: int = 0,
        prompt: str = "",
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        mode: str = "",
    ) -> Job:
        """Invent what surrounds the known, keyframe by keyframe; each is a step of its own.

        Args:
            here: begin in the direction in which the visitor looks, not where most is missing.

        Raises:
            WorldStereoError: an unknown generator, one that cannot run here, no view, or nobody
                is looking.
            WorldBusy: another job of this session runs.
        """
        choice = self._usable(generator)
        sampler = sampler_of(steps, guidance)
        front = None
        if here:
            camera = self.viewport.stage_camera()
            if camera is None:
                raise WorldStereoError(NOBODY_LOOKS)
            front = front_at(camera, (width, height))

        def work(job: Job) -> tuple[Clip, ...]:
            held = self.mode if choice.modes is not None else ""
            made = self.shared.generator(choice.name, held, job.on_step)
            before = self.world.scene.revision
            try:
                with job.stopping():
                    return edits.complete(
                        self.world,
                        budget,
                        generator=made,
                        to=front,
                        size=(width, height),
                        seed=seed,
                        prompt=prompt,
                        negative_prompt=negative_prompt,
                        sampler=sampler,
                        on_step=job.on_step,
                    )
            except OutOfMemory:
                self.shared.forget(choice.name)
                raise
            finally:
                # finished steps stay, whatever ended the rest
                if self.world.scene.revision != before:
                    self.saving.save(job)

        return self._start(
            "complete", work, accepted=lambda: self._chose(choice, mode, sampler, prompt)
        )

    def _usable(self, generator: str) -> GeneratorChoice:
        """The generator of that name, "" for the last chosen; raises where it cannot run here."""
        choice = self.shared.generators.get(generator or self.generator)
        if choice is None or choice.why_not:
            why = choice.why_not if choice else f"There is no generator named {generator[:40]!r}."
            raise WorldStereoError(why)
        return choice

    def _chose(
        self, choice: GeneratorChoice, mode: str, sampler: SamplerConfig, prompt: str
    ) -> None:
        """Remember what a job was started with."""
        if choice.modes is not None:
            self.mode, self.sampler = mode, sampler
        self.prompt = prompt or self.prompt
        self.generator = choice.name

    def view_here(self) -> Job:
        """Generate the one view that the visitor sees, and remember it; a path of one camera.

        A generator that only makes longer clips leaves it to the first that makes one view. The
        generator and prompt last chosen stay as they are.

        Raises:
            WorldStereoError: no browser shows this world. As `explore`.
        """
        camera = self.viewport.stage_camera()
        if camera is None:
            raise WorldStereoError(NOBODY_LOOKS)
        path = Trajectory(Cameras.stack([camera]), "view from here")
        choices = (self.generator, *self.shared.generators)
        name = next((one for one in choices if self._makes(one, path)), self.generator)
        return self.explore(path, generator=name, guide="fused", aside=True)

    def keep(self, take: Clip) -> Job:
        """Fold a take into both memories; one step that can be undone."""

        def work(job: Job) -> Scene:
            with job.stopping():
                scene = edits.keep(self.world, take, on_step=job.on_step)
            self.saving.save(job)
            return scene

        return self._start("keep", work)

    def discard(self, take: Clip) -> None:
        """Drop a take. Raises `WorldBusy` while a step runs."""
        self._quick(lambda: edits.discard(self.world, take))

    def look_for_unseen(self) -> Job:
        """Find the cameras that show most unknown at the edge of the known, and draw them.

        `job.result()` is a tuple of `NextView`, the best first; `unseen` keeps it.
        """

        def work(job: Job) -> tuple[NextView, ...]:
            scene = self.world.scene
            with job.stopping():
                found = next_best_views(scene, GHOSTS, on_step=job.on_step)
            self._found_unseen(found)
            self.viewport.show_ghosts([one.camera for one in found])
            return found

        return self._start("unseen", work)

    def _makes(self, name: str, path: Trajectory) -> bool:
        choice = self.shared.generators.get(name)
        if choice is None or choice.why_not or choice.limits is None:
            return False
        try:
            choice.limits.check(path)
        except ValueError:
            return False
        return True

    def set_registration(self, on: bool) -> Job:
        """Register the given views to each other, or put them back where they were given."""

        def work(job: Job) -> Scene:
            plan, before = self.planned.path, self.world.registration
            given = [view for view in self.world.scene.views if view.step == 0]
            course = StagedProgress(job.on_step, stages_of(given, register=on))
            with job.stopping():
                scene = edits.set_registration(self.world, on, on_step=course)
            after = self.world.registration
            if plan is not None:
                was, now = (0 if r is None else r.revision for r in (before, after))
                cameras = edits.moved(plan.cameras, was, before, after)
                keys = self.viewport.keyframes
                keys = tuple(edits.moved(k, was, before, after) for k in keys)
                plan = replace(plan, cameras=cameras, registration=now)
                through = keys if self.planned.keyframes is not None else None
                self.planned = replace(self.planned, path=plan, keyframes=through)
                self.viewport.show_plan(plan, keys)
            self.saving.save(job)
            return scene

        return self._start("registration", work)

    def _start(
        self,
        kind: str,
        work: Callable[[Job], Any],
        *,
        first: Callable[[Job], Any] | None = None,
        accepted: Callable[[], None] = lambda: None,
    ) -> Job:
        """Queue a job; `accepted` is called once it is sure to be taken, before it can run."""
        with self._lock:
            if self._closed:
                raise WorldStereoError("This world is closed. Reload the page to open a new one.")
            if self.busy:
                raise WorldBusy("Another step is running. Wait for it, or cancel it first.")
            job = Job(kind, work, changed=self._job_changed, first=first)
            accepted()
            self.job = job
            self.shared.worker.submit(self.token, job)
        return job

    def _explore(
        self, job: Job, choice: GeneratorChoice, trajectory: Trajectory, *, guide: str, **rest: Any
    ) -> Clip:
        mode = self.mode if choice.modes is not None else ""
        made = self.shared.generator(choice.name, mode, job.on_step)
        heard = RequestRecorder(made)
        began = time.monotonic()

        def on_frame(index: int, frame: Frame) -> None:
            color = (frame.color.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0)
            job.add_frame(np.ascontiguousarray(color.cpu().numpy()))
            self.viewport.show_draft(*new_points(frame, trajectory.cameras[index]))

        previewed = self._previewed
        kind: Any = guide
        if previewed is not None and previewed.matches(self.world.scene, trajectory, guide):
            kind = previewed.guide  # the very frames that were previewed
        try:
            with job.stopping():
                clip = explore(
                    self.world,
                    trajectory,
                    guide=kind,
                    generator=heard if isinstance(made, Inspectable) else made,
                    on_step=job.on_step,
                    on_frame=on_frame,
                    **rest,
                )
        except OutOfMemory as error:
            self.shared.forget(choice.name)
            self.mode = error.smaller or self.mode
            raise
        size = trajectory.cameras.width * trajectory.cameras.height
        seconds = time.monotonic() - began
        if len(clip) > 1:  # a single view says little of a clip's pace
            self.shared.measured(self.pace_of(choice.name), seconds / len(clip) / size)
        self.attention.keep(clip, heard, choice.name, mode)
        self.saving.save(job)
        return clip

    def look(self, view: int, pixel: tuple[float, float], *, layer: int = 0, step: int = 0) -> Job:
        """What the published model attended to when it made a pixel: `job.result()` is the row.

        Raises:
            WorldStereoError: no such view, or its clip cannot be looked into.
            WorldBusy: another job of this session runs.
        """
        asked = self.attention.of(self.world.scene, view)
        frame = self.world.scene.views[view].frame
        return self._start(
            "attention",
            lambda job: self.attention.row(asked, frame, pixel, layer, step, job.on_step),
        )

    def _set_out(self, path: Trajectory | None) -> None:
        """A new world: its own path, or none yet; the settings were the last one's."""
        self.planned = PlannedPath(path)
        self.viewport.show_plan(path, ())

    def _found_unseen(self, views: tuple[NextView, ...]) -> None:
        self.unseen = Unseen(self.world.scene, views)

    def _begun(self, capture: Capture) -> None:
        self.prompt = capture.prompt
        self.left_out = capture.left_out

    def _job_changed(self, job: Job) -> None:
        self.touched = time.monotonic()
        if job.over:
            self.viewport.clear_draft()
        self.viewport.emit(JobChanged(job.state))

    # ---- quick steps ---------------------------------------------------------------------------

    def undo(self) -> bool:
        """Back to the scene before the last step. Raises `WorldBusy` while a step runs."""
        return self.can_undo and self._quick(self.world.undo)

    def redo(self) -> bool:
        """Forward again to the step last undone. Raises `WorldBusy` while a step runs."""
        return self.world.can_redo and self._quick(self.world.redo)

    def go_to(self, state: int) -> None:
        """Undo or redo to a state of `world.states`.

        Raises:
            WorldStereoError: there is no such state, or nothing would be left on the stage.
            WorldBusy: a step runs.
        """
        states = self.world.states
        if not 0 <= state < len(states) or states[state][0] is None:
            raise WorldStereoError(f"State {state + 1} is gone; there are {len(states)}.")

        def travel() -> None:
            by = state - self.world.undo_steps
            for _ in range(abs(by)):
                (self.world.redo if by > 0 else self.world.undo)()

        self._quick(travel)

    def delete_selection(self) -> int:
        """Forget the boxed points; returns how many. Raises `WorldBusy` while a step runs."""
        rows = self._selected_rows()
        if len(rows) == 0:
            return 0
        selected = torch.zeros(len(self.world.scene.cloud), dtype=torch.bool)
        selected[torch.from_numpy(rows)] = True
        self._selection = None
        return self._quick(lambda: edits.delete_points(self.world, selected))

    def set_up(self, direction: Any) -> None:
        """Say where the sky is: a direction (3,) of the world, or "camera" for the visitor's up.

        Raises:
            WorldStereoError: no browser shows this world. ValueError: not a direction. WorldBusy.
        """
        if isinstance(direction, str):
            camera = self.viewport.camera()
            if direction != "camera" or camera is None:
                raise WorldStereoError("The stage is not connected yet. Wait a moment, try again.")
            direction = -camera.c2w[:3, 1]
        up = torch.as_tensor(direction, dtype=torch.float32)
        if up.shape != (3,):
            raise ValueError(f"up must have 3 numbers, got shape {tuple(up.shape)}.")
        self._quick(lambda: edits.set_up(self.world, up))

    def rescale(self, factor: float) -> None:
        """Correct the scale: what measured 1 m measures `factor` m from now on."""
        metres = (self.world.scene.metres_per_unit or 1.0) * factor
        self._quick(lambda: edits.set_scale(self.world, metres))

    def _quick(self, step: Callable[[], Any]) -> Any:
        if self.preparing:
            raise WorldBusy(PREPARING)
        with self.saving.reading:  # a save that copies the memories is no reason to refuse a step
            done = step()
        self.touched = time.monotonic()
        self.saving.save_soon()
        return done

    # ---- the path --------------------------------------------------------------------------------

    def set_plan(
        self,
        path: Trajectory | None,
        *,
        settings: Any = None,
        keyframes: tuple[Cameras, ...] | None = None,
        guide: str = "fused",
    ) -> None:
        """Plan this path and draw it. The four belong together and change in one assignment.

        Args:
            settings: what the page planned it from.
            keyframes: those of the viewport that it goes through.
            guide: what the generator is shown along it, "fused" or "cloud".
        """
        self.planned = PlannedPath(path, settings, keyframes, guide)
        self.viewport.show_plan(path)

    def show_guide(self, guide: str) -> None:
        """Another guide for the planned path: "fused" or "cloud"."""
        self.planned = replace(self.planned, guide=guide)

    def record(self, on: bool) -> Trajectory | None:
        """Begin to record the visitor's flight, or end it; `flight` keeps the last one."""
        flight = self.viewport.record(on)
        if flight is not None:
            self.flight = flight
        return flight

    def preview(self, frame: int, final: bool = False) -> Preview:
        """Frame number `frame` of the plan: a quick splat, or the guide's own picture.

        Raises:
            WorldStereoError: there is no plan, or no world yet.
        """
        planned, scene = self.planned, self.world.scene
        plan = planned.path
        if plan is None:
            raise WorldStereoError("There is no path yet. Choose one under Path.")
        frame = max(0, min(frame, len(plan) - 1))
        guide = self._previewed
        if guide is None or not guide.matches(scene, plan, planned.guide):
            guide = self._previewed = PreviewedGuide(scene, plan, planned.guide)
        self.viewport.mark_frame(frame)
        return guide.preview(frame, final)

    # ---- the stage -------------------------------------------------------------------------------

    def set_drawing(self, mode: str, by_hand: bool) -> None:
        """Draw the place as "points", "surface" or "live"; the page's own wish yields to a
        person's. "live" leaves the cloud, seen in motion, as it was."""
        if by_hand or not self._drawing_by_hand:
            self._drawing_by_hand = by_hand
            self.viewport.show_live(mode == "live")
            if mode != "live":
                self.viewport.draw_as(mode)  # type: ignore[arg-type]

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Selected):
            self._selection = event
        elif isinstance(event, Measured):
            self.measured = event.length / (self.world.scene.metres_per_unit or 1.0)

    def _selected_rows(self) -> np.ndarray:
        selection = self._selection
        if selection is None or selection.revision != self.world.scene.revision:
            return np.zeros(0, np.int64)
        return selection.rows

    # ---- taking home -----------------------------------------------------------------------------

    def preview_mesh(self, on_step: OnStep = ignore, **options: Any) -> int:
        """Shows the mesh that the mesh exports would write, in the viewport; its bytes as GLB.

        Raises:
            ExportError: no view has depth. Cancelled: `on_step` raised it.
        """
        scene = self.world.scene
        data = export.export(scene, "mesh-glb", on_step=on_step, **options)
        self.viewport.show_mesh(data, np.linalg.inv(to_file(scene, (0, 1, 0))))
        return len(data)

    # ---- saving ----------------------------------------------------------------------------------

    def recover(self) -> None:
        """Load the saved world of this token, where there is one that can be read."""
        found = self.saving.recover()
        if found is not None:
            plan, notice = found
            self._notices = (notice,) if notice else ()
            self._set_out(plan)

    # ---- the end ---------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of memory that this session takes: its world, what is drawn, frames of its job."""
        frames = [] if self.job is None else self.job.frames
        previewed = self._previewed
        return (
            self.world.nbytes
            + self.viewport.nbytes
            + sum(frame.nbytes for frame in frames)
            + (0 if previewed is None else previewed.guide.nbytes)
        )

    def rest(self) -> bool:
        """The world leaves memory until it is used again; False while a step runs."""
        self._previewed = None
        if not self.world.rest():
            return False
        self.rested = time.monotonic()
        return True

    def close(self, timeout: float = 10.0) -> None:
        """Cancel the job, wait for it, stop the stage and its server. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.saving.stop()
        job = self.job
        if job is not None and not job.over:
            job.cancel()
            try:
                job.result(timeout)
            except TimeoutError:
                log.warning("a job did not stop within %s s", timeout)
            except Exception:
                log.debug("a cancelled job ended with an error", exc_info=True)
        self.viewport.close()
        self.saving.close()
        self._previewed = self.job = None
