"""Camera paths: presets, splines through keyframes, recorded flights, and their JSON.

A `Trajectory` is a batch of cameras in the world's frame with a clock. Paths are computed in
float64 and returned in the type of the cameras they came from; the first and the last frame of a
path are exactly the first and last key.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import InputRefused
from worldstereo.rotations import turns
from worldstereo.trajectory._presets import PRESETS, Parameter, Preset, move, straightened
from worldstereo.trajectory._splines import sample

__all__ = ["MAX_FRAMES", "PRESETS", "Parameter", "Preset", "Trajectory"]

MAX_FRAMES = 10_000
MAX_SIDE = 100_000  # pixels
MAX_TEXT = 64_000_000  # characters of JSON
FORMAT, VERSION = "worldstereo-trajectory", 1
KEYS = ("format", "version", "name", "fps", "registration", "width", "height", "times", "K", "c2w")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A camera path of one image size."""

    cameras: Cameras
    """Batched over T frames, in the world's frame (OpenCV axes)."""
    name: str = ""
    fps: float = 24.0
    times: Float[Tensor, "T"] | None = None
    """Seconds of each frame, strictly rising; None means `frame / fps`."""
    registration: int = 0
    """Registration revision the path was drawn in."""

    def __post_init__(self) -> None:
        if len(self.cameras.batch_shape) != 1 or len(self.cameras) < 1:
            raise ValueError(
                f"cameras must be a batch of at least one frame, got batch shape "
                f"{self.cameras.batch_shape}."
            )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a finite number above 0, got {self.fps}.")
        if self.times is not None:
            _check_times("times", self.times, len(self.cameras))

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: Any) -> Cameras:
        return self.cameras[index]

    def __iter__(self) -> Iterator[Cameras]:
        return (self.cameras[i] for i in range(len(self)))

    @property
    def seconds(self) -> Float[Tensor, "T"]:
        """When each frame is shown, from 0, float64."""
        if self.times is None:
            return torch.arange(len(self), dtype=torch.float64) / self.fps
        return self.times.double().cpu() - float(self.times[0])

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.seconds[-1])

    # ---- ways to make one --------------------------------------------------------------------

    @staticmethod
    def preset(
        name: str,
        start: Cameras,
        *,
        frames: int,
        distance: float = 1.0,
        target: Float[Tensor, "3"] | None = None,
        amount: float = 1.0,
        value: float | None = None,
        up: Float[Tensor, "3"] | None = None,
        fps: float = 24.0,
    ) -> "Trajectory":
        """A move relative to a single camera, which is its first frame.

        Args:
            distance: scene units to the pivot along the optical axis, where `target` is None.
            target: the pivot of the move, in the world.
            amount: strength; 1 is the preset's default, 0 stands still, -1 goes the other way.
            value: the preset's own number (`PRESETS[name].parameter`) instead of `amount`.
            up: direction of the sky; the camera's own up where None.

        Raises:
            ValueError: unknown name, no frames, a pivot at the camera, a value out of range.
        """
        if name not in PRESETS:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}.")
        _check_frames(frames)
        _check_single("start", start)
        if not math.isfinite(amount):
            raise ValueError(f"amount must be a finite number, got {amount}.")
        value = PRESETS[name].value(amount) if value is None else value
        if not math.isfinite(value) or (name == "zoom" and value <= 0):
            low = "a factor above 0" if name == "zoom" else "a finite number"
            raise ValueError(f"value must be {low}, got {value}.")
        c2w = start.c2w.detach().cpu().double()
        c2w[:3, :3] = straightened(c2w[None, :3, :3])[0]
        if target is None and not (math.isfinite(distance) and distance > 0):
            raise ValueError(f"distance must be a finite length above 0, got {distance}.")
        pivot = c2w[:3, 3] + distance * c2w[:3, 2] if target is None else target.cpu().double()
        if not float((pivot - c2w[:3, 3]).norm()) > 1e-12:
            raise ValueError("target must differ from the position of the camera.")
        sky = -c2w[:3, 1] if up is None else up.cpu().double()
        if not float(sky.norm()) > 1e-12:
            raise ValueError("up must be a direction, got a vector without length.")
        s = torch.linspace(0, 1, frames, dtype=torch.float64)
        R, x, factor = move(name, c2w, pivot, sky / sky.norm(), s, value)
        K = start.K.detach().cpu().double().repeat(frames, 1, 1)
        K[:, :2, :2] *= factor[:, None, None]
        path = _assembled(K, R, x, start)
        ends = [(0, start)] + ([(-1, start)] if name in ("spiral", "look_around") else [])
        return Trajectory(_pinned(path, ends), name, fps)

    @staticmethod
    def through(
        keyframes: Sequence[Cameras],
        frames: int,
        *,
        times: Sequence[float | int] | Float[Tensor, "n"] | None = None,
        closed: bool = False,
        fps: float = 24.0,
        name: str = "keyframes",
    ) -> "Trajectory":
        """A smooth path through single cameras: position, rotation and field of view.

        Without `times` the path is taken at constant speed, where a turn of 45 degrees or a zoom
        by a half counts as one mean distance between keys. With `times` (seconds of arrival,
        strictly rising) the frames are evenly spaced in time. `closed` returns to the first key,
        which is then also the last frame; `times` may name that moment with one more entry.

        Raises:
            ValueError: fewer than two keyframes, sizes that differ, times that do not rise.

        Source: Yuksel, Schaefer & Keyser 2011 (centripetal Catmull-Rom has no cusps or loops).
        """
        _check_frames(frames)
        if len(keyframes) < 2:
            raise ValueError(f"keyframes must hold at least 2 cameras, got {len(keyframes)}.")
        for i, key in enumerate(keyframes):
            _check_single(f"keyframes[{i}]", key)
        keys = list(keyframes) + ([keyframes[0]] if closed else [])
        stacked = Cameras.stack([Cameras(k.K, k.c2w, k.width, k.height) for k in keys])
        values, R = _split(stacked)
        steps = _steps(values, R)
        if times is None:
            # centripetal; a repeated key still takes a moment, so that knots rise
            pace = steps.sqrt()
            knots = _from_zero(pace.clamp_min(float(pace.mean()) * 1e-3).clamp_min(1e-9))
            at = _constant_speed(knots, values, R, frames, closed)
        else:
            knots = _arrivals(times, len(keyframes), closed)
            at = torch.linspace(float(knots[0]), float(knots[-1]), frames, dtype=torch.float64)
        moved, turned = sample(knots, values, R, at, closed=closed)
        path = _joined(moved, turned, keys[0])
        return Trajectory(_pinned(path, [(0, keys[0]), (-1, keys[-1])]), name, fps)

    @staticmethod
    def recorded(
        cameras: Cameras,
        seconds: Sequence[float | int] | Float[Tensor, "n"],
        frames: int | None = None,
        *,
        fps: float = 24.0,
        name: str = "flight",
    ) -> "Trajectory":
        """A flight, sampled at uneven moments, as evenly timed frames.

        Samples that do not come later than the one before are dropped. `frames` None means as
        many as `fps` needs for the whole flight.

        Raises:
            ValueError: no samples, a moment that is not finite, or too many frames.
        """
        clock = torch.as_tensor(seconds, dtype=torch.float64).flatten()
        if len(cameras.batch_shape) != 1 or len(clock) != len(cameras) or len(clock) == 0:
            raise ValueError(
                f"seconds must hold one moment for each of the cameras {cameras.batch_shape}, "
                f"got {len(clock)}."
            )
        if not bool(torch.isfinite(clock).all()):
            raise ValueError("seconds must be finite numbers.")
        latest = torch.cat([clock[:1] - 1, clock.cummax(0).values[:-1]])
        kept = torch.nonzero(clock > latest + 1e-9).flatten()
        cameras, clock = cameras[kept], clock[kept]
        if frames is None:
            frames = round(float(clock[-1] - clock[0]) * fps) + 1
        _check_frames(frames)
        values, R = _split(cameras)
        at = torch.linspace(float(clock[0]), float(clock[-1]), frames, dtype=torch.float64)
        path = _joined(*sample(clock, values, R, at, smooth=False), cameras[0])
        return Trajectory(_pinned(path, [(0, cameras[0]), (-1, cameras[-1])]), name, fps)

    # ---- the same path, otherwise ------------------------------------------------------------

    def resampled(self, n: int, *, by: str = "time") -> "Trajectory":
        """The path in `n` frames, evenly spaced in time or, `by="arc"`, along the way.

        The ends stay exactly where they are. Frames are again `1 / fps` apart.

        Raises:
            ValueError: `n` below 1, or `by` is neither "time" nor "arc".
        """
        _check_frames(n)
        if by not in ("time", "arc"):
            raise ValueError(f'by must be "time" or "arc", got {by!r}.')
        if n == len(self) and by == "time" and self.times is None:
            return self
        values, R = _split(self.cameras)
        if by == "time":
            knots = self.seconds
        else:
            steps = _steps(values, R)
            knots = _from_zero(steps.clamp_min(float(steps.sum()) * 1e-9).clamp_min(1e-12))
        at = torch.linspace(0.0, float(knots[-1]), n, dtype=torch.float64)
        path = _joined(*sample(knots, values, R, at), self.cameras[0])
        ends = [(0, self.cameras[0]), (-1, self.cameras[-1])]
        path = _pinned(path, ends[: min(n, len(self), 2)])
        return Trajectory(path, self.name, self.fps, None, self.registration)

    def scaled(self, width: int, height: int) -> "Trajectory":
        """The same path for another image size."""
        cameras = self.cameras.scaled(width, height)
        return Trajectory(cameras, self.name, self.fps, self.times, self.registration)

    def reversed(self) -> "Trajectory":
        """From the last frame to the first, with the pauses in the same places."""
        back = torch.arange(len(self) - 1, -1, -1)
        times = None if self.times is None else self.times[-1] - self.times[back]
        return Trajectory(self.cameras[back], self.name, self.fps, times, self.registration)

    # ---- JSON --------------------------------------------------------------------------------

    def to_json(self) -> str:
        """One object; numbers are written so that reading them gives the same bits."""
        kinds = {torch.float32: "float32", torch.float64: "float64"}
        cameras = self.cameras
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "fps": self.fps,
            "registration": self.registration,
            "width": cameras.width,
            "height": cameras.height,
            "dtype": kinds.get(cameras.c2w.dtype, "float32"),
            "times": None if self.times is None else self.times.double().tolist(),
            "K": cameras.K.double().tolist(),
            "c2w": cameras.c2w.double().tolist(),
        }
        return json.dumps(fields, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str, *, source: str = "trajectory.json") -> "Trajectory":
        """Reads what `to_json` wrote; anything else is refused with the place named.

        Raises:
            InputRefused: not JSON, unknown or missing names, a newer version, NaN, bad poses.
        """
        if len(text) > MAX_TEXT:
            raise InputRefused(f"{source}: {len(text)} characters; at most {MAX_TEXT} are read.")
        try:
            fields = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_no_twins)
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0][:120] if str(error) else "nested too deeply"
            raise InputRefused(f"{source}: not sound JSON ({reason}). Export it again.") from None
        try:
            return _from_fields(fields)
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            reason = re.sub(r"c2w\[(\d+)\]", r"frame \1", str(error).splitlines()[0])
            reason = re.sub(r"K\[(\d+)\]", r"K of frame \1", reason)
            raise InputRefused(f"{source}: {reason[:200]}") from None


def _from_fields(fields: Any) -> Trajectory:
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f'"format" must be "{FORMAT}".')
    version = fields.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"version {str(version)[:20]} is not known here; {VERSION} is read.")
    wanted = {*KEYS, "dtype"}
    odd = sorted(wanted.symmetric_difference(fields))
    if odd:
        state = "is missing" if odd[0] in wanted else "is not known"
        raise ValueError(f'"{odd[0][:40]}" {state}.')
    if fields["dtype"] not in ("float32", "float64"):
        raise ValueError('"dtype" must be "float32" or "float64".')
    dtype = getattr(torch, fields["dtype"])
    for name in ("width", "height", "registration"):
        if not isinstance(fields[name], int) or isinstance(fields[name], bool):
            raise ValueError(f'"{name}" must be a whole number.')
        if abs(fields[name]) > MAX_SIDE:
            raise ValueError(f'"{name}" is too large; at most {MAX_SIDE} is accepted.')
    if not isinstance(fields["name"], str) or len(fields["name"]) > 200:
        raise ValueError('"name" must be a text of at most 200 characters.')
    count = len(fields["c2w"]) if isinstance(fields["c2w"], list) else 0
    if not 1 <= count <= MAX_FRAMES:
        raise ValueError(f'"c2w" must hold 1 to {MAX_FRAMES} poses, got {count}.')
    times = fields["times"]
    cameras = Cameras(
        _matrices_of(fields["K"], "K", count, 3, dtype),
        _matrices_of(fields["c2w"], "c2w", count, 4, dtype),
        fields["width"],
        fields["height"],
    )
    clock = (
        None
        if times is None
        else torch.tensor(_numbers(times, "times", count), dtype=torch.float64)
    )
    fps = _numbers([fields["fps"]], "fps", 1)[0]
    return Trajectory(cameras, fields["name"], fps, clock, fields["registration"])


def _matrices_of(rows: Any, name: str, count: int, size: int, dtype: torch.dtype) -> Tensor:
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f'"{name}" must hold {count} matrices.')
    flat: list[float] = []
    for i, matrix in enumerate(rows):
        if not isinstance(matrix, list) or len(matrix) != size:
            raise ValueError(f"{name}[{i}] must be {size} x {size}.")
        for row in matrix:
            flat += _numbers(row, f"{name}[{i}]", size)
    return torch.tensor(flat, dtype=torch.float64).to(dtype).reshape(count, size, size)


def _numbers(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} must hold {count} numbers.")
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"{name} must hold numbers only.")
    return [float(v) for v in values]


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number that is accepted")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name appears twice in one object")
    return fields


# ---- checks and helpers --------------------------------------------------------------------------


def _check_frames(frames: int) -> None:
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be a whole number from 1 to {MAX_FRAMES}, got {frames!r}.")


def _check_single(name: str, camera: Cameras) -> None:
    if camera.batch_shape != ():
        raise ValueError(f"{name} must be a single camera, got batch shape {camera.batch_shape}.")


def _check_times(name: str, times: Tensor, count: int) -> None:
    if tuple(times.shape) != (count,):
        raise ValueError(f"{name} must hold {count} moments, got shape {tuple(times.shape)}.")
    bad = torch.nonzero(~torch.isfinite(times)).flatten()
    if len(bad) > 0:
        raise ValueError(f"{name}[{int(bad[0])}] is not a finite number.")
    bad = torch.nonzero(~(times[1:] > times[:-1])).flatten()
    if len(bad) > 0:
        i = int(bad[0])
        raise ValueError(
            f"{name} must rise: {name}[{i + 1}] = {float(times[i + 1]):.6g} comes no later than "
            f"{name}[{i}] = {float(times[i]):.6g}."
        )


def _arrivals(times: Any, keys: int, closed: bool) -> Tensor:
    knots = torch.as_tensor(times, dtype=torch.float64).flatten()
    if closed and len(knots) == keys and keys > 1:
        knots = torch.cat([knots, knots[-1:] + (knots[-1] - knots[0]) / (keys - 1)])
    _check_times("times", knots, keys + int(closed))
    return knots


def _split(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What is interpolated: position, log focal lengths, skew, centre (n, 8); rotations."""
    c2w, K = cameras.c2w.detach().cpu().double(), cameras.K.detach().cpu().double()
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=-1).log()
    values = torch.cat([c2w[:, :3, 3], focal, K[:, 0, 1:2], K[:, :2, 2]], dim=-1)
    return values, straightened(c2w[:, :3, :3])


def _joined(values: Tensor, R: Tensor, like: Cameras) -> Cameras:
    K = torch.eye(3, dtype=torch.float64).repeat(len(values), 1, 1)
    K[:, 0, 0], K[:, 1, 1] = values[:, 3].exp(), values[:, 4].exp()
    K[:, 0, 1], K[:, :2, 2] = values[:, 5], values[:, 6:8]
    return _assembled(K, R, values[:, :3], like)


def _assembled(K: Tensor, R: Tensor, x: Tensor, like: Cameras) -> Cameras:
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(x), 1, 1)
    c2w[:, :3, :3], c2w[:, :3, 3] = R, x
    return Cameras(K.to(like.K), c2w.to(like.c2w), like.width, like.height)


def _pinned(path: Cameras, ends: list[tuple[int, Cameras]]) -> Cameras:
    """The path with some frames replaced by the very cameras they must be."""
    K, c2w = path.K.clone(), path.c2w.clone()
    for i, camera in reversed(ends):  # of a single frame the first key wins
        K[i], c2w[i] = camera.K.to(K), camera.c2w.to(c2w)
    return Cameras(K, c2w, path.width, path.height)


def _steps(values: Tensor, R: Tensor) -> Tensor:
    """How far each key is from the next: mean chords, turns in 45 degrees, zooms in log(1.5)."""
    way = (values[1:, :3] - values[:-1, :3]).norm(dim=-1)
    moving = way[way > 1e-12]
    unit = float(moving.mean()) if len(moving) > 0 else 1.0
    zoom = (values[1:, 3:5] - values[:-1, 3:5]).abs().amax(dim=-1) / math.log(1.5)
    return way / unit + turns(R) / (math.pi / 4) + zoom


def _from_zero(steps: Tensor) -> Tensor:
    return torch.cat([steps.new_zeros(1), steps.cumsum(0)])


def _constant_speed(knots: Tensor, values: Tensor, R: Tensor, frames: int, closed: bool) -> Tensor:
    """Parameters at which a spline has gone even shares of its way."""
    fine = torch.linspace(0, 1, 32, dtype=torch.float64)[:-1]
    inner = (knots[:-1, None] + (knots[1:] - knots[:-1])[:, None] * fine).flatten()
    dense = torch.cat([inner, knots[-1:]])
    chord = (values[1:, :3] - values[:-1, :3]).norm(dim=-1)
    moved, turned = sample(knots, values, R, dense, closed=closed)
    way = (moved[1:, :3] - moved[:-1, :3]).norm(dim=-1)
    moving = chord[chord > 1e-12]
    unit = float(moving.mean()) if len(moving) > 0 else 1.0
    zoom = (moved[1:, 3:5] - moved[:-1, 3:5]).abs().amax(dim=-1) / math.log(1.5)
    gone = _from_zero(way / unit + turns(turned) / (math.pi / 4) + zoom)
    if not float(gone[-1]) > 0:
        return torch.linspace(float(knots[0]), float(knots[-1]), frames, dtype=torch.float64)
    want = torch.linspace(0, float(gone[-1]), frames, dtype=torch.float64)
    i = (torch.searchsorted(gone, want, right=True) - 1).clamp(0, len(gone) - 2)
    share = (want - gone[i]) / (gone[i + 1] - gone[i]).clamp_min(1e-12)
    return dense[i] + share.clamp(0, 1) * (dense[i + 1] - dense[i])
