"""The Generate tab: which generator, how many views of which size, and the views as they arrive.

A generator with memory modes is offered mode by mode, with what each takes and how long, before
anything is loaded; what does not fit stays visible, switched off, with its reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr
import numpy as np

from worldstereo.errors import WorldStereoError
from worldstereo.generators import GeneratorLimits, MemoryModeFit, SamplerConfig, StepRange
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import completion_budget, unknown_along

from ...session.session import PREPARING
from ...session.sessions import GeneratorChoice, Session
from .. import html
from ..action import Action
from ..catalogue import figures, told, tr, trn
from ..clip_controls import MAX_FRAMES, ClipControls
from ..core import BUSY, Core, Part, Updates, html_block, segmented
from ..follow import Follow
from ..settings import GUIDES, accepted_frames, chosen_size, parse_float, parse_int, sizes
from .path import PathTab

NOTHING = "Nothing generated yet. Press G."
REMEMBER = {"Each view": "per_frame", "After the clip": "per_step", "Not yet: a take": "manual"}
FRONTS = {"Where most is missing": "coverage", "Where I look": "here"}
MAX_KEYFRAMES = 24
WHOLE = 0.005
"""Share of a path that is unknown below which there is nothing to add."""
READING = "Reading what the checkpoint would take …"


@dataclass(frozen=True)
class GenerateForm:
    """What the tab asks of `Session.explore`, checked."""

    generator: str
    size: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Unknown:
    """What no memory knows along a path."""

    path: Trajectory
    share: float
    """Of its pictures, in [0, 1]."""
    pictures: dict[str, int]
    """By generator, how many pictures it would make of it; filled when asked for."""


class GenerateTab(Part):
    def __init__(
        self, core: Core, action: Action, follow: Follow, clip: ClipControls, path: PathTab
    ) -> None:
        self.core, self.action, self.follow = core, action, follow
        self.clip, self.path = clip, path
        self._shares: WeakKeyDictionary[Scene, Unknown] = WeakKeyDictionary()

    def build(self) -> None:
        register, clip = self.core.register, self.clip
        gr.Markdown("## " + tr("Generator"))
        clip.build_name()
        limits = self.core.sessions.generators[clip.first].limits
        self.about = register(html_block(self._about(clip.first)))
        self.mode = register(
            gr.Radio(
                [],
                label=tr("Memory mode"),
                container=True,
                visible=False,
                elem_classes="modes",
                elem_id="memory-mode",
            )
        )
        gr.Markdown("## " + tr("Clip"), elem_classes="gap-top")
        clip.build_clip()
        self.seed = gr.Number(7, label=tr("Seed"), precision=0, minimum=0, elem_id="seed")
        prompt = bool(limits and limits.prompt)
        self.prompt = register(
            gr.Textbox(
                label=tr("Prompt"),
                lines=2,
                max_lines=4,
                visible=prompt,
                value=limits.default_prompt if limits else "",
                elem_id="prompt",
                placeholder=tr("Describe what unseen areas should show"),
            )  # fmt: skip
        )
        self.remember = register(
            segmented(
                [(tr(label), key) for label, key in REMEMBER.items()],
                "per_frame",
                tr("Remember"),
                "remember",
                titled=True,
            )
        )
        with gr.Accordion(tr("More"), open=False):
            clip.build_guide()
            steps = limits.steps if limits else None
            self.steps = register(
                gr.Slider(**steps_slider(steps), label=tr("Denoising steps"), elem_id="steps")
            )
            self.guidance = register(
                gr.Slider(
                    1, 12, 5, step=0.5, label=tr("Guidance"), visible=False, elem_id="guidance"
                )
            )
            self.negative = register(
                gr.Textbox(
                    label=tr("Negative prompt"),
                    lines=2,
                    max_lines=4,
                    visible=False,
                    elem_id="negative",
                    placeholder=tr("What guidance leads away from"),
                )
            )
        with gr.Accordion(tr("Complete this place"), open=False):
            self.whole = register(html_block(""))
            self.front = segmented(
                [(tr(label), key) for label, key in FRONTS.items()],
                "coverage",
                tr("Begin"),
                "front",
                titled=True,
            )
            self.budget = gr.Slider(
                1, MAX_KEYFRAMES, 4, step=1, label=tr("Keyframes"), elem_id="budget"
            )
            self.takes_up_to = register(html_block("", elem_id="takes-up-to"))
            self.complete = gr.Button(tr("Complete this place"), size="sm", elem_id="complete")
        gr.Markdown("## " + tr("New views"), elem_classes="gap-top")
        self.takes = register(html_block("", elem_id="takes"))
        self.latest = register(html_block(html.empty(tr(NOTHING))))

    @property
    def inputs(self) -> list[Any]:
        """What `form` takes, in its order."""
        wanted = [self.clip.name, self.clip.size, self.seed, self.prompt]
        return [*wanted, self.steps, self.guidance, self.negative, self.mode, self.remember]

    def wire(self) -> None:
        on, path, clip = self.core.on, self.path, self.clip
        on(self.action.go.click, self.on_generate, self.inputs)
        on(self.complete.click, self.on_complete, lambda: [*self.inputs, self.front, self.budget])
        counted = [self.budget, self.clip.size, self.clip.name]
        for changed in (self.budget.change, self.clip.size.input, self.clip.name.input):
            on(changed, self.on_budget, counted, latest=True)
        on(clip.name.input, self.on_generator, lambda: [*path.inputs, self.prompt])
        on(self.mode.input, self.on_mode, [self.mode])
        on(self.core.tabs.select, self.on_looked, counted)
        on(self.steps.release, self.on_sampler, [self.steps, self.guidance])
        on(self.guidance.release, self.on_sampler, [self.steps, self.guidance])
        on(clip.frames.release, self.on_clip, lambda: path.inputs)
        on(clip.size.input, self.on_clip, lambda: path.inputs)
        on(clip.guide.input, self.on_guide, [clip.guide])

    def refresh(self, session: Session) -> Updates:
        scene, choice = session.world.scene, session.shared.generators.get(session.generator)
        limits = choice.limits if choice else None
        offered = sizes(scene, limits)
        updates: Updates = {self.clip.name: session.generator} | self._modes(session)
        if offered:
            plan = session.planned.path
            now = f"{plan.cameras.width}x{plan.cameras.height}" if plan else ""
            width, height = chosen_size(now, scene, limits)
            updates[self.clip.size] = gr.update(choices=offered, value=f"{width}x{height}")
        clips = scene.clips
        updates[self.takes] = takes_list(session)
        if clips and (session.job is None or session.job.over):
            clip = clips[-1]
            few = sorted({round(i) for i in np.linspace(0, len(clip) - 1, 6)})
            pictures = [clip.color_u8[i].permute(1, 2, 0).cpu().numpy() for i in few]
            updates[self.latest] = self._pictures(pictures, [i + 1 for i in few])
        updates[self.whole] = self._missing(session)
        updates[self.about] = self._about(session.generator, session)
        if not clips:
            updates[self.latest] = html.empty(tr(NOTHING))
        return updates

    def opened(self, session: Session) -> Updates:
        """A page of this session has opened: what its generator takes, with its first values."""
        choice = session.shared.generators.get(session.generator)
        if choice is None or choice.limits is None:
            return {}
        prompt = session.prompt or choice.limits.default_prompt
        return self._controls(choice.limits) | {
            self.prompt: gr.update(visible=choice.limits.prompt, value=prompt)
        }

    def why_not(self, session: Session) -> dict[str, str]:
        if session.preparing:
            return dict.fromkeys(("#generator", "#memory-mode", "#frames", "#size"), PREPARING)
        why = {
            f"#generator label:nth-child({i + 1})": choice.why_not
            for i, choice in enumerate(session.shared.generators.values())
            if choice.why_not
        }
        fits = fits_of(session)
        for i, fit in enumerate(fits):
            if not fit.fits:
                why[f"#memory-mode label:nth-child({i + 1})"] = (
                    f"{told(fit.label)}: {told(fit.why)}."
                )
        if fits and not any(fit.fits for fit in fits):
            why["#generate"] = tr("No memory mode fits this clip: choose fewer or smaller views.")
        return why

    def form(self, session: Session, values: Sequence[Any]) -> GenerateForm:
        """The values of `inputs`, checked: they may come from anybody."""
        rest = ("", "", "per_frame")[len(values) - 6 :]
        name, size, seed, prompt, steps, guidance, negative, mode, remember = (*values, *rest)
        choice = session.shared.generators.get(str(name))
        if choice is None:
            raise WorldStereoError(f"There is no generator named {str(name)[:40]!r}.")
        if choice.why_not:
            raise WorldStereoError(choice.why_not)
        limits = choice.limits
        options: dict[str, Any] = {
            "generator": str(name),
            "seed": parse_int(0 if seed is None else seed, "seed", 0, 2**31 - 1),
        }
        if remember not in REMEMBER.values():
            raise WorldStereoError(f"Remember is one of {', '.join(REMEMBER)}.")
        if remember != "per_frame":  # as worlds do of themselves
            options["update"] = remember
        if limits is not None and limits.prompt:
            options["prompt"] = str(prompt or "").strip()[:2000]
            if not options["prompt"]:
                raise WorldStereoError(
                    f"The prompt is empty; {choice.label} needs one. For example: "
                    f"{limits.default_prompt.split('.')[0] or 'a sunlit room'}."
                )
        if limits is not None and limits.steps is not None:
            low, high, _ = limits.steps
            options["steps"] = parse_int(steps, "denoising steps", low, high)
        if limits is not None and limits.guidance is not None:
            options["guidance"] = parse_float(guidance, "guidance", 1, 30)
            options["negative_prompt"] = str(negative or "")[:2000]
        if choice.modes is not None:
            options["mode"] = self._checked_mode(session, str(mode or session.mode))
        return GenerateForm(str(name), str(size), options)

    # ---- handlers ----------------------------------------------------------------------------

    def on_generate(self, session: Session, *values: Any) -> Iterator[Updates]:
        """The one button: start the step and follow it. The job outlives this page."""
        form = self.form(session, values)
        if session.planned.path is None:
            raise WorldStereoError("Plan a path first, under Path.")
        path = session.planned.path
        choice = session.shared.generators[form.generator]
        size = chosen_size(form.size, session.world.scene, choice.limits)
        if choice.limits is not None and accepted_frames(len(path), choice.limits) != len(path):
            path = path.resampled(accepted_frames(len(path), choice.limits))
        session.explore(path, width=size[0], height=size[1], **form.options)
        yield {self.core.message: ""}
        yield from self.follow.job(session)

    def on_complete(self, session: Session, *values: Any) -> Iterator[Updates]:
        """Keyframe by keyframe around what is known; each can be undone."""
        form = self.form(session, values[:-2])
        front, budget = values[-2], parse_int(values[-1], "keyframes", 1, MAX_KEYFRAMES)
        if front not in FRONTS.values():
            raise WorldStereoError(f"Begin is one of {', '.join(FRONTS)}.")
        choice = session.shared.generators[form.generator]
        width, height = chosen_size(form.size, session.world.scene, choice.limits)
        options = {key: value for key, value in form.options.items() if key != "update"}
        session.complete(budget, here=front == "here", width=width, height=height, **options)
        yield {self.core.message: ""}
        yield from self.follow.job(session)

    def on_looked(self, session: Session, *counted: Any) -> Updates:
        """Another tab was opened: the path may have changed since this one was filled."""
        about = {self.about: self._about(session.generator, session)}
        return about | self.on_budget(session, *counted)

    def on_budget(self, session: Session, budget: Any, size: Any, name: Any) -> Updates:
        """What completing the place takes at most, before it is begun."""
        keyframes = parse_int(budget, "keyframes", 1, MAX_KEYFRAMES)
        choice = session.shared.generators.get(str(name))
        limits = choice.limits if choice else None
        if choice is None or choice.why_not or not sizes(session.world.scene, limits):
            return {self.takes_up_to: ""}
        seconds = session.estimate_keyframes(
            choice.name, keyframes, *chosen_size(str(size), session.world.scene, limits)
        )
        return {
            self.takes_up_to: html.render(
                "generate.html",
                "takes_up_to",
                keyframes=keyframes,
                about="" if seconds is None else html.duration(seconds),
            )
        }

    def on_generator(self, session: Session, *values: Any) -> Iterator[Updates]:
        """Another generator: what it accepts decides what the tab offers."""
        settings, prompt = values[:-1], values[-1]
        name = str(settings[5])
        choice = session.shared.generators.get(name)
        if choice is None or choice.why_not:
            yield {self.clip.name: session.generator}
            raise WorldStereoError(
                choice.why_not if choice else f"There is no generator named {name[:40]!r}."
            )
        if choice.modes is not None and not session.mode:
            yield {self.about: html.muted(tr(READING))}
        before, session.generator = session.generator, name
        try:
            modes = self._modes(session)
        except (WorldStereoError, ValueError) as error:
            session.generator = before
            yield {self.clip.name: before, self.about: self._about(before, session)}
            raise WorldStereoError(str(error)) from error
        limits = choice.limits
        updates: Updates = {self.about: self._about(name, session)} | modes
        if limits is not None:
            frames = min(
                MAX_FRAMES, accepted_frames(parse_int(settings[3], "views", 1, 1000), limits)
            )
            updates |= {
                self.clip.frames: gr.update(
                    minimum=limits.min_frames,
                    maximum=accepted_frames(min(limits.max_frames, MAX_FRAMES), limits),
                    step=limits.frame_step,
                    value=frames,
                ),
            } | self._controls(limits)
            if not str(prompt or "").strip():
                first = session.prompt or limits.default_prompt
                updates[self.prompt] = gr.update(visible=limits.prompt, value=first)
        yield updates
        yield from self.path.on_plan(session, *settings)
        yield self.refresh(session)

    def on_clip(self, session: Session, *values: Any) -> Iterator[Updates]:
        yield from self.path.on_plan(session, *values)
        yield self._modes(session)

    def on_guide(self, session: Session, guide: Any) -> Updates:
        """What the generator is shown along the path; the preview follows."""
        if guide not in GUIDES:
            raise WorldStereoError(f"The guide is one of {', '.join(GUIDES)}.")
        session.show_guide(guide)
        return {} if session.planned.path is None else self.path.show_preview(session, 0)

    def on_mode(self, session: Session, mode: Any) -> Iterator[Updates]:
        """Another way to hold the weights: they are loaded with the next generation."""
        try:
            session.mode = self._checked_mode(session, str(mode))
        except WorldStereoError:
            yield self._modes(session)
            raise
        yield self.action.refresh(session)

    def on_sampler(self, session: Session, steps: Any, guidance: Any) -> Updates:
        """More steps take longer: the modes and the cost say so."""
        session.sampler = SamplerConfig(
            steps=parse_int(steps, "denoising steps", 1, 1000),
            guidance=parse_float(guidance, "guidance", 1, 30),
        )
        return self._modes(session) | self.action.refresh(session)

    def arriving(self, session: Session, frames: Sequence[np.ndarray], total: int) -> Updates:
        """The newest views of the running job, newest first."""
        newest = list(frames[-6:])
        numbers = list(range(len(frames) - len(newest) + 1, len(frames) + 1))
        return {self.latest: self._pictures(newest[::-1], numbers[::-1])}

    # ---- pieces ------------------------------------------------------------------------------

    def _controls(self, limits: GeneratorLimits) -> Updates:
        """The controls of a generator's sampler, at the values it begins with."""
        guided = limits.guidance is not None
        return {
            self.prompt: gr.update(visible=limits.prompt),
            self.steps: gr.update(**steps_slider(limits.steps)),
            self.guidance: gr.update(visible=guided, value=limits.guidance or 5.0),
            self.negative: gr.update(visible=guided, value=limits.negative_prompt),
        }

    def _modes(self, session: Session) -> Updates:
        """The memory modes of the chosen generator; the quickest that fits is the first choice."""
        fits = fits_of(session)
        usable = [fit for fit in fits if fit.fits]
        if usable and session.mode not in [fit.mode for fit in usable]:
            session.mode = min(usable, key=lambda fit: fit.seconds).mode
        choices = [(mode_label(fit), fit.mode) for fit in fits]
        value = session.mode if usable else None
        return {self.mode: gr.update(choices=choices, value=value, visible=bool(fits))}

    def _checked_mode(self, session: Session, mode: str) -> str:
        fits = {fit.mode: fit for fit in fits_of(session)}
        if mode not in fits:
            raise WorldStereoError(f"There is no memory mode {mode[:40]!r} here.")
        if not fits[mode].fits:
            raise WorldStereoError(f"Memory mode {mode} {fits[mode].why}. Choose another.")
        return mode

    def _pictures(self, pictures: Sequence[np.ndarray], numbers: Sequence[int]) -> str:
        small = [html.picture(one, 240, 80) for one in pictures]
        tiles = list(zip(small, numbers, strict=True))
        return html.render("generate.html", "pictures", tiles=tiles)

    def _about(self, name: str, session: Session | None = None) -> str:
        """What each generator would add here, in the order in which they are offered."""
        unknown = None if session is None else self._unknown(session)
        rows = []
        for choice in self.core.sessions.generators.values():
            adds = ""
            if session is not None and unknown is not None and not choice.why_not:
                adds = self._adds(session, choice, unknown)
            rows.append((choice, adds))
        return html.render(
            "generate.html",
            "about",
            name=name,
            rows=rows,
            known=unknown is not None and unknown.share < WHOLE,
        )

    def _adds(self, session: Session, choice: GeneratorChoice, unknown: "Unknown") -> str:
        """One line: how much of the path it would make, in how many pictures, and how long."""
        path = session.planned.path
        if path is None or unknown.share < WHOLE:
            return ""
        line = tr(choice.adds, share=f"{100 * unknown.share:.0f} %")
        if choice.keyframes is not None:
            if choice.name not in unknown.pictures:
                unknown.pictures[choice.name] = choice.keyframes(session.world.scene, path)
            count = unknown.pictures[choice.name]
            line += "; " + trn("about {n} picture", "about {n} pictures", count)
        seconds = None
        # A checkpoint that is not chosen is not read for this.
        if choice.modes is None or choice.name == session.generator:
            cameras = path.cameras
            seconds = session.estimate(choice.name, len(path), cameras.width, cameras.height)
        if seconds is None:
            return line
        return f"{line}, " + tr("{time} on this machine", time=html.duration(seconds))

    def _unknown(self, session: Session) -> "Unknown | None":
        """What is unknown along the planned path; drawn again only for another scene or path."""
        scene, path = session.world.scene, session.planned.path
        if path is None or not len(scene.cloud):
            return None
        kept = self._shares.get(scene)
        if kept is None or kept.path is not path:
            kept = self._shares[scene] = Unknown(path, unknown_along(scene, path), {})
        return kept

    def _missing(self, session: Session) -> str:
        """What a full turn would take, before it is begun."""
        scene = session.world.scene
        keyframes = completion_budget(scene) if scene.views else 0
        return html.render("generate.html", "missing", keyframes=keyframes)


def takes_list(session: Session) -> str:
    """Clips that wait to be kept or discarded, newest first."""
    clips = session.world.scene.clips
    waiting = [(i, clip) for i, clip in enumerate(clips) if clip.take][::-1]
    if not waiting:
        return ""
    why = BUSY if session.busy else ""
    rows = []
    for i, clip in waiting:
        image = html.picture(clip.color_u8[len(clip) // 2].permute(1, 2, 0).cpu().numpy(), 120, 80)
        text = trn("{n} view", "{n} views", len(clip)) + f", {told(clip.trajectory.name)}, "
        text += tr("seed {n}", n=clip.seed)
        if clip.agreement is not None:
            text += ", " + tr("agreement {percent} %", percent=f"{100 * clip.agreement:.0f}")
        rows.append({"clip": i, "image": image, "text": text})
    return html.render("generate.html", "takes", rows=rows, why=why)


def fits_of(session: Session) -> Sequence[MemoryModeFit]:
    """The preflight of the planned clip; none where the generator has no memory modes."""
    choice: GeneratorChoice | None = session.shared.generators.get(session.generator)
    if choice is None or choice.modes is None or choice.why_not:
        return ()
    if session.planned.path is None:
        return choice.modes(0, 0, 0, session.sampler)
    cameras = session.planned.path.cameras
    frames = accepted_frames(len(session.planned.path), choice.limits)
    return choice.modes(frames, cameras.width, cameras.height, session.sampler)


def mode_label(fit: MemoryModeFit) -> str:
    """One mode in one line: its name, then what it takes and how long, or why not."""
    name = fit.mode.capitalize()
    if not fit.fits:
        return f"{name}: {told(fit.why)}"
    size = f"{fit.gib:.0f} GiB" if fit.gib >= 9.95 else f"{fit.gib:.1f} GiB"
    about = tr("about {time}", time=html.duration(fit.seconds))
    return f"{name}: {figures(size)}, {about}"


def steps_slider(steps: StepRange | None) -> dict[str, Any]:
    if steps is None:
        return {"minimum": 1, "maximum": 50, "value": 4, "step": 1, "visible": False}
    low, high, default = steps
    return {"minimum": low, "maximum": high, "value": default, "step": 1, "visible": True}
