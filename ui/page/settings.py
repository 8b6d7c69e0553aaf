"""From the settings of the Path and Generate tabs to a `Trajectory`; every value is checked here.

The page's values come from strangers: a request needs no page. Whatever is out of range is refused
in one line, in the words of the page.
"""

import math
from dataclasses import dataclass, replace

import torch

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldBusy, WorldStereoError
from worldstereo.generators import GeneratorLimits
from worldstereo.scene import Scene
from worldstereo.trajectory import PRESETS, Parameter, Trajectory
from worldstereo.world import default_view, pivot_distance, propose_path

from ..session.session import PREPARING
from ..session.sessions import Session

UNSEEN, KEYFRAMES, FLIGHT = "unseen", "keyframes", "flight"
GUIDES = {"fused": "Both memories", "cloud": "Cloud only"}
STARTS = {"first": "First view", "newest": "Newest view", "here": "Where I am"}
LONG_SIDES = (320, 480, 640, 832)
FIRST_PRESET = "orbit"


@dataclass(frozen=True)
class Settings:
    """What the two tabs say about the next path."""

    preset: str
    value: float
    start: str
    frames: int
    size: str
    generator: str
    guide: str = "fused"

    @staticmethod
    def of(
        preset: object,
        value: object,
        start: object,
        frames: object,
        size: object,
        generator: object,
        guide: object = "fused",
    ) -> "Settings":
        """The settings as the page sent them.

        Raises:
            WorldStereoError: an unknown name or a number out of range.
        """
        name = path_named(preset)
        if str(start) not in STARTS:
            raise WorldStereoError(f"There is no start named {str(start)[:40]!r}.")
        if str(guide) not in GUIDES:
            raise WorldStereoError(f"The guide is one of {', '.join(GUIDES)}.")
        return Settings(
            name,
            parse_float(value, "the path's amount"),
            str(start),
            parse_int(frames, "views along the path", 1, 1000),
            str(size),
            str(generator),
            str(guide),
        )


def path_named(preset: object) -> str:
    """The name of one of the tiles, or a refusal."""
    name = str(preset)
    if name not in (UNSEEN, *PRESETS, KEYFRAMES, FLIGHT):
        raise WorldStereoError(f"There is no path named {name[:40]!r}. Choose one of the tiles.")
    return name


def parse_float(value: object, what: str, low: float = -1e6, high: float = 1e6) -> float:
    """A finite number in a range, or a refusal that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise WorldStereoError(f"{what} must be a number.")
    try:
        result = float(value)
    except (ValueError, OverflowError):  # a whole number of 400 digits
        raise WorldStereoError(f"{what} must be a number, got {value!r:.40}.") from None
    if not math.isfinite(result) or not low <= result <= high:
        raise WorldStereoError(f"{what} must be between {low:g} and {high:g}, got {result:g}.")
    return result


def parse_int(value: object, what: str, low: int, high: int) -> int:
    result = parse_float(value, what, low, high)
    if result != int(result):
        raise WorldStereoError(f"{what} must be a whole number, got {result:g}.")
    return int(result)


def parameter(preset: str) -> Parameter | None:
    """The slider that belongs to a path; None where it has none."""
    return PRESETS[preset].parameter if preset in PRESETS else None


def sizes(scene: Scene, limits: GeneratorLimits | None) -> list[tuple[str, str]]:
    """Picture sizes on offer as (label, value): the first view's shape within the limits."""
    width, height = (scene.views[0].width, scene.views[0].height) if scene.views else (640, 480)
    step = max(1, limits.size_multiple if limits else 1)
    most = limits.max_pixels if limits else 1920 * 1088
    unit = step * 8 // math.gcd(step, 8)
    found: dict[str, tuple[int, int]] = {}
    for side in LONG_SIDES:
        scale = side / max(width, height)
        w, h = (max(unit, round(edge * scale / unit) * unit) for edge in (width, height))
        if w * h <= most:
            found[f"{w}x{h}"] = (w, h)
    return [(f"{w} × {h}", value) for value, (w, h) in found.items()]


def chosen_size(value: str, scene: Scene, limits: GeneratorLimits | None) -> tuple[int, int]:
    """Width and height of one of `sizes`; the one nearest to 640 where `value` is none of them."""
    offered = [entry[1] for entry in sizes(scene, limits)]
    if not offered:
        raise WorldStereoError("This generator accepts no picture size of this world.")
    if value not in offered:
        value = min(offered, key=lambda text: abs(max(map(int, text.split("x"))) - 640))
    width, height = value.split("x")
    return int(width), int(height)


def accepted_frames(frames: int, limits: GeneratorLimits | None) -> int:
    """The nearest number of frames that the generator accepts."""
    if limits is None:
        return frames
    steps = round((frames - limits.min_frames) / limits.frame_step)
    most = (limits.max_frames - limits.min_frames) // limits.frame_step
    return limits.min_frames + max(0, min(most, steps)) * limits.frame_step


def plan_path(session: Session, settings: Settings) -> Trajectory:
    """Plans the path that the settings describe, in the picture size they ask for.

    Raises:
        WorldStereoError: there is no world yet, or another comes, or nothing to make it of.
    """
    if session.preparing:
        raise WorldBusy(PREPARING)
    scene = session.world.scene
    if not len(scene.cloud) and not scene.views:
        raise WorldStereoError(
            "There is no world yet. Open an example or your own file under World."
        )
    choice = session.shared.generators.get(settings.generator)
    limits = choice.limits if choice else None
    width, height = chosen_size(settings.size, scene, limits)
    frames = accepted_frames(settings.frames, limits)
    if settings.preset == UNSEEN:
        goal = session.unseen.goal(scene)
        path = propose_path(scene, frames=max(2, frames), size=(width, height), to=goal)
        # the goal was found for pictures of another size
        path = replace(path, cameras=reframed(path.cameras, width, height))
        return planned(session, path, settings)
    if settings.preset == KEYFRAMES:
        keys = session.viewport.keyframes
        if len(keys) < 2:
            raise WorldStereoError("Place at least 2 keyframes: fly somewhere and press K.")
        path = Trajectory.through([reframed(k, width, height) for k in keys], max(2, frames))
        return planned(session, path, settings, keys)
    if settings.preset == FLIGHT:
        flight = session.flight
        if flight is None:
            raise WorldStereoError("Record a flight first: press F, fly, press F again.")
        path = flight.resampled(frames)
        path = Trajectory(reframed(path.cameras, width, height), FLIGHT, path.fps)
        return planned(session, path, settings)
    start = start_camera(session, settings.start)
    path = Trajectory.preset(
        settings.preset,
        reframed(start, width, height),
        frames=frames,
        distance=pivot_distance(scene, start),
        value=checked_value(settings),
        up=scene.up,
    )
    return planned(session, path, settings)


def planned(
    session: Session,
    path: Trajectory,
    settings: Settings,
    keyframes: tuple[Cameras, ...] | None = None,
) -> Trajectory:
    session.set_plan(path, settings=settings, keyframes=keyframes, guide=settings.guide)
    return path


def checked_value(settings: Settings) -> float:
    slider = PRESETS[settings.preset].parameter
    return parse_float(settings.value, slider.label, slider.min, slider.max)


def start_camera(session: Session, start: str) -> Cameras:
    scene = session.world.scene
    if start == "newest" and scene.views:
        newest, clips = scene.views[-1], [clip for clip in scene.clips if not clip.take]
        if newest.step > 0 and clips and clips[-1].step >= newest.step:
            return clips[-1].trajectory.cameras[-1]  # its last frame need not be a view
        return newest.cameras
    if start == "here":
        here = session.viewport.camera()
        if here is None:
            raise WorldStereoError(
                "The viewport is not connected yet. Wait a moment and try again."
            )
        return here
    return default_view(scene)


def reframed(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same cameras for another picture shape: scaled evenly, and cropped around the middle."""
    scale = max(width / cameras.width, height / cameras.height)
    K = cameras.K.clone()
    K[..., :2, :2] *= scale
    middle = torch.tensor([cameras.width / 2, cameras.height / 2]).to(K)
    K[..., :2, 2] = (K[..., :2, 2] - middle) * scale + torch.tensor([width / 2, height / 2]).to(K)
    return Cameras(K, cameras.c2w, width, height)


def scale_of(scene: Scene) -> float:
    """Metres in one scene unit; 1 where it is unknown."""
    return scene.metres_per_unit or 1.0


def unit_of(scene: Scene) -> str:
    """The unit in which lengths of the scene are shown."""
    return "m" if scene.metres_per_unit else "units"
