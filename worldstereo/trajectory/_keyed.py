"""Sparse camera paths as people write them: poses with a field of view, on some of the frames.

A `CameraTrajectory` is what the documented interface takes; `to_trajectory` makes the dense
`Trajectory` that everything else works with. Poses are camera to world with OpenCV axes: the
identity looks along +z with +y down. Euler angles are degrees, `R = Ry(yaw) Rx(pitch) Rz(roll)`,
right-handed about the camera's axes: +yaw looks right, +pitch looks up, +roll leans the head right.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.cameras import Cameras, look_at
from worldstereo.rotations import (
    conjugate,
    exp,
    log,
    matrices,
    quaternions,
    slerp,
    times_quaternion,
)
from worldstereo.trajectory._dense import MAX_FRAMES, Trajectory
from worldstereo.trajectory._splines import sample

INTERPOLATIONS = ("linear", "spline", "bezier")
CONVENTIONS = ("opencv", "opengl")
ANGLES = ("roll", "pitch", "yaw")
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # OpenGL axes to OpenCV
UNIT_SLACK = 0.01  # how far the length of a quaternion may be off 1
TOLERANCE = 1e-3  # of a rotation matrix, as `Cameras` has it


@dataclass(frozen=True, eq=False)
class CameraPose:
    """One camera of a path.

    Args:
        position: [x, y, z] in the world.
        rotation: a quaternion [w, x, y, z], {"roll", "pitch", "yaw"} in degrees, or a 3x3 matrix.
        frame_index: the frame on which the pose is met.
        fov: horizontal, degrees; unused where the trajectory has intrinsics.
        convention: "opencv", or "opengl" for poses that look along -z with +y up; stored as OpenCV.

    Raises:
        ValueError, TypeError: one line that names the field and what is accepted.
    """

    position: Any
    rotation: Any = (1.0, 0.0, 0.0, 0.0)
    frame_index: int = 0
    fov: float = 60.0
    convention: str = field(default="opencv", kw_only=True)

    def __post_init__(self) -> None:
        x = _floats("position", self.position, (3,))
        R = _rotation(self.rotation)
        if self.convention not in CONVENTIONS:
            raise ValueError(
                f'convention must be "opencv" or "opengl", got {str(self.convention)[:40]!r}.'
            )
        if self.convention == "opengl":
            R = R @ FLIP
        index = self.frame_index
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(f"frame_index must be a whole number, got {type(index).__name__}.")
        if int(index) < 0:
            raise ValueError(f"frame_index must be at least 0, got {int(index)}.")
        fov = _number("fov", self.fov)
        if not 0 < fov < 180:
            raise ValueError(f"fov must lie between 0 and 180 degrees, exclusive, got {fov:.6g}.")
        set_ = object.__setattr__
        set_(self, "position", tuple(x.tolist()))
        set_(self, "rotation", tuple(tuple(row) for row in R.tolist()))
        set_(self, "frame_index", int(index))
        set_(self, "fov", fov)
        set_(self, "convention", "opencv")

    @staticmethod
    def look_at(
        eye: Any,
        target: Any,
        up: Any = (0.0, -1.0, 0.0),
        frame_index: int = 0,
        fov: float = 60.0,
    ) -> "CameraPose":
        """A camera at `eye` that looks at `target`, with `up` towards the top of the picture.

        Raises:
            ValueError: eye and target coincide, or the line of sight runs along `up`.
        """
        points = (_floats(n, v, (3,)) for n, v in (("eye", eye), ("target", target), ("up", up)))
        c2w = look_at(*points)
        return CameraPose(c2w[:3, 3], c2w[:3, :3], frame_index, fov)

    @property
    def matrix(self) -> Float[Tensor, "4 4"]:
        """Camera to world, float64."""
        c2w = torch.eye(4, dtype=torch.float64)
        c2w[:3, :3] = torch.tensor(self.rotation, dtype=torch.float64)
        c2w[:3, 3] = torch.tensor(self.position, dtype=torch.float64)
        return c2w

    @property
    def quaternion(self) -> tuple[float, float, float, float]:
        """(w, x, y, z) of unit length."""
        w, x, y, z = quaternions(self.matrix[None, :3, :3])[0].tolist()
        return w, x, y, z

    @property
    def euler(self) -> dict[str, float]:
        """roll, pitch and yaw in degrees; looking straight up or down, roll is 0."""
        R = self.matrix[:3, :3]
        sine = float(-R[1, 2])
        pitch = math.asin(max(-1.0, min(1.0, sine)))
        if abs(sine) < 1 - 1e-12:
            yaw = math.atan2(float(R[0, 2]), float(R[2, 2]))
            roll = math.atan2(float(R[1, 0]), float(R[1, 1]))
        else:
            yaw, roll = math.atan2(-float(R[2, 0]), float(R[0, 0])), 0.0
        return {"roll": math.degrees(roll), "pitch": math.degrees(pitch), "yaw": math.degrees(yaw)}

    def at(self, frame_index: int) -> "CameraPose":
        """The same pose on another frame."""
        return CameraPose(self.position, self.rotation, frame_index, self.fov)


@dataclass(frozen=True, eq=False)
class CameraIntrinsics:
    """A lens and an image size.

    Args:
        focal_length: pixels; a pair (fx, fy) where they differ.
        principal_point: [cx, cy] in pixels, the first pixel's centre at 0.5; the image's middle
            where None.
        width, height: of the image; required.
        distortion: up to five coefficients k1, k2, p1, p2, k3 (OpenCV); zeros by default.
    """

    focal_length: Any
    principal_point: Any = None
    width: int | None = None
    height: int | None = None
    distortion: Any = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            size = getattr(self, name)
            if size is None:
                raise TypeError(f"CameraIntrinsics needs {name}: the image's size in pixels.")
            if isinstance(size, bool) or not hasattr(size, "__index__"):
                raise TypeError(f"{name} must be a whole number, got {type(size).__name__}.")
            if int(size) < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {int(size)}.")
            object.__setattr__(self, name, int(size))
        assert self.width is not None and self.height is not None
        focal = _floats("focal_length", self.focal_length, None)
        if focal.numel() not in (1, 2):
            raise ValueError(f"focal_length must be one number or (fx, fy), got {focal.numel()}.")
        if not bool((focal > 0).all()):
            raise ValueError(f"focal_length must be above 0, got {float(focal.min()):.6g}.")
        fx, fy = float(focal.flatten()[0]), float(focal.flatten()[-1])
        middle = (self.width / 2, self.height / 2)
        given = middle if self.principal_point is None else self.principal_point
        centre = _floats("principal_point", given, (2,))
        bent = _floats("distortion", self.distortion, None).flatten()
        if len(bent) > 5:
            raise ValueError(f"distortion takes at most 5 coefficients, got {len(bent)}.")
        set_ = object.__setattr__
        set_(self, "focal_length", fx if fx == fy else (fx, fy))
        set_(self, "principal_point", tuple(centre.tolist()))
        set_(self, "distortion", tuple([*bent.tolist(), *[0.0] * 5][:5]))

    @property
    def K(self) -> Float[Tensor, "3 3"]:
        """float64."""
        focal = self.focal_length
        fx, fy = focal if isinstance(focal, tuple) else (focal, focal)
        cx, cy = self.principal_point
        return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)

    @property
    def distorted(self) -> bool:
        return any(self.distortion)


@dataclass(frozen=True, eq=False)
class CameraTrajectory:
    """Poses on some frames, and how the camera moves between them.

    Args:
        poses: one pose a frame at most, in any order; before the first and after the last the
            camera stands still.
        num_frames: frames of the path.
        interpolation: "linear" (lines and great arcs), "spline" (C1 through every pose) or
            "bezier" (at rest at both ends, no overshoot).
        fps: frames a second.
        intrinsics: one lens for all frames; without it each pose's `fov` counts.
        convention: "opengl" turns every pose from OpenGL axes.

    Raises:
        ValueError, TypeError: one line that names the field or pose and what is accepted.
    """

    poses: Sequence[CameraPose]
    num_frames: int
    interpolation: str = "linear"
    fps: float = 24
    intrinsics: CameraIntrinsics | None = field(default=None, kw_only=True)
    convention: str = field(default="opencv", kw_only=True)

    def __post_init__(self) -> None:
        frames = self.num_frames
        if isinstance(frames, bool) or not hasattr(frames, "__index__"):
            raise TypeError(f"num_frames must be a whole number, got {type(frames).__name__}.")
        if not 1 <= int(frames) <= MAX_FRAMES:
            raise ValueError(f"num_frames must be 1 to {MAX_FRAMES}, got {int(frames)}.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"got {str(self.interpolation)[:40]!r}."
            )
        fps = _number("fps", self.fps)
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps:.6g}.")
        if self.convention not in CONVENTIONS:
            raise ValueError(
                f'convention must be "opencv" or "opengl", got {str(self.convention)[:40]!r}.'
            )
        if isinstance(self.poses, CameraPose) or not isinstance(self.poses, Sequence):
            raise TypeError(f"poses must be a list of CameraPose, got {type(self.poses).__name__}.")
        if not isinstance(self.intrinsics, CameraIntrinsics | None):
            raise TypeError(
                f"intrinsics must be CameraIntrinsics, got {type(self.intrinsics).__name__}."
            )
        object.__setattr__(self, "poses", _checked_poses(self.poses, int(frames), self.convention))
        object.__setattr__(self, "num_frames", int(frames))
        object.__setattr__(self, "fps", int(fps) if fps == int(fps) else fps)
        object.__setattr__(self, "convention", "opencv")

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[CameraPose]:
        moved, R = self._dense()
        return (
            CameraPose(moved[t, :3], R[t], t, _fov(float(moved[t, 3])))
            for t in range(self.num_frames)
        )

    def pose_at(self, frame: int) -> CameraPose:
        """The camera of one frame; on the frame of a key, that key.

        Raises:
            IndexError: outside the path.
        """
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame must be 0 to {self.num_frames - 1}, got {frame}.")
        for pose in self.poses:
            if pose.frame_index == frame:
                return pose
        moved, R = self._dense()
        return CameraPose(moved[frame, :3], R[frame], frame, _fov(float(moved[frame, 3])))

    def cameras(self, width: int | None = None, height: int | None = None) -> Cameras:
        """One camera a frame, float32. The size defaults to that of the intrinsics, else 512 x 512.

        Raises:
            ValueError: the lens is distorted; frames are made through pinholes.
        """
        lens = self.intrinsics
        width = width or (512 if lens is None else lens.width)
        height = height or (512 if lens is None else lens.height)
        assert width is not None and height is not None
        moved, R = self._dense()
        c2w = torch.eye(4, dtype=torch.float64).repeat(self.num_frames, 1, 1)
        c2w[:, :3, :3], c2w[:, :3, 3] = R, moved[:, :3]
        if lens is not None:
            if lens.distorted:
                raise ValueError(
                    "intrinsics.distortion is not 0: frames are made through a pinhole. Leave it "
                    "out, or undistort the pictures first."
                )
            assert lens.width is not None and lens.height is not None
            scale = torch.tensor([width / lens.width, height / lens.height, 1.0]).double()
            K = (lens.K * scale[:, None]).repeat(self.num_frames, 1, 1)
        else:
            K = torch.eye(3, dtype=torch.float64).repeat(self.num_frames, 1, 1)
            K[:, 0, 0] = K[:, 1, 1] = width / 2 * moved[:, 3].exp()
            K[:, 0, 2], K[:, 1, 2] = width / 2, height / 2
        return Cameras(K.float(), c2w.float(), int(width), int(height))

    def to_trajectory(self, width: int | None = None, height: int | None = None) -> Trajectory:
        """The dense path that generators take."""
        return Trajectory(self.cameras(width, height), "camera trajectory", float(self.fps))

    @staticmethod
    def from_trajectory(trajectory: Trajectory) -> "CameraTrajectory":
        """One pose a frame.

        Raises:
            ValueError: the lens changes in a way that neither one set of intrinsics nor a centred
                square lens for each frame describes.
        """
        cameras = trajectory.cameras
        K, c2w = cameras.K.detach().cpu().double(), cameras.c2w.detach().cpu().double()
        c2w = c2w.clone()
        c2w[:, :3, :3] = matrices(quaternions(c2w[:, :3, :3]))
        w, h = cameras.width, cameras.height
        lens = None
        fov = [60.0] * len(K)
        if bool((K - K[:1]).abs().amax() <= 1e-9 * K.abs().amax()):
            if float(K[0, 0, 1].abs()) > 1e-9:
                raise ValueError("cameras have skew, which CameraIntrinsics does not know.")
            focal = (float(K[0, 0, 0]), float(K[0, 1, 1]))
            lens = CameraIntrinsics(focal, K[0, :2, 2], w, h)
        else:
            centred = torch.tensor([w / 2, h / 2], dtype=torch.float64)
            square = (K[:, 0, 0] / K[:, 1, 1] - 1).abs() <= 1e-6
            middle = (K[:, :2, 2] - centred).abs().amax(dim=1) <= 1e-6 * max(w, h)
            bad = torch.nonzero(~(square & middle & (K[:, 0, 1].abs() <= 1e-9))).flatten()
            if len(bad) > 0:
                raise ValueError(
                    f"frame {int(bad[0])}: the lens changes along the path and is not a centred "
                    f"square one; one lens for all frames, or a field of view each, is accepted."
                )
            fov = [_fov(math.log(float(f) / (w / 2))) for f in K[:, 0, 0]]
        poses = [CameraPose(m[:3, 3], m[:3, :3], i, fov[i]) for i, m in enumerate(c2w)]
        return CameraTrajectory(poses, len(poses), fps=max(1.0, trajectory.fps), intrinsics=lens)

    @staticmethod
    def preset(
        name: str, start: CameraPose | Cameras, num_frames: int, **options: Any
    ) -> "CameraTrajectory":
        """One of the presets (`worldstereo.trajectory.PRESETS`) from a first camera."""
        if isinstance(start, CameraPose):
            start = CameraTrajectory([start.at(0)], 1).cameras()[0]
        return CameraTrajectory.from_trajectory(
            Trajectory.preset(name, start, frames=num_frames, **options)
        )

    @staticmethod
    def circle(
        center: Any,
        radius: float,
        num_frames: int,
        height: float = 0.0,
        degrees: float = 360.0,
        look_at: Any = None,
        *,
        fov: float = 60.0,
        fps: float = 24,
    ) -> "CameraTrajectory":
        """Around `center` in the horizontal plane, from its -z side to the right.

        Args:
            height: of the camera above the centre, scene units (towards -y).
            look_at: what the camera looks at; the centre where None.

        Raises:
            ValueError: a radius that is not above 0, or fewer than one frame.
        """
        middle = _floats("center", center, (3,))
        target = middle if look_at is None else _floats("look_at", look_at, (3,))
        radius, turn = _number("radius", radius), math.radians(_number("degrees", degrees))
        if not radius > 0:
            raise ValueError(f"radius must be above 0, got {radius:.6g}.")
        if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames!r}.")
        rise = _number("height", height)
        poses = []
        for i in range(num_frames):
            a = turn * i / max(1, num_frames - 1)
            offset = torch.tensor([math.sin(a) * radius, -rise, -math.cos(a) * radius]).double()
            poses.append(CameraPose.look_at(middle + offset, target, frame_index=i, fov=fov))
        return CameraTrajectory(poses, num_frames, fps=fps)

    def _dense(self) -> tuple[Float[Tensor, "T 4"], Float[Tensor, "T 3 3"]]:
        """Position and log of 2 focal / width, and rotation, of every frame; keys exactly."""
        poses = self.poses
        keyed = torch.stack([pose.matrix for pose in poses])
        zoom = torch.tensor([_log_focal(pose.fov) for pose in poses], dtype=torch.float64)
        values = torch.cat([keyed[:, :3, 3], zoom[:, None]], dim=1)
        knots = torch.tensor([float(p.frame_index) for p in poses], dtype=torch.float64)
        at = torch.arange(self.num_frames, dtype=torch.float64).clamp(knots[0], knots[-1])
        if self.interpolation == "bezier" and len(poses) > 1:
            moved, R = _bezier(knots, values, keyed[:, :3, :3], at)
        else:
            smooth = self.interpolation == "spline"
            moved, R = sample(knots, values, keyed[:, :3, :3], at, smooth=smooth)
        moved, R = moved.clone(), R.clone()
        for i, pose in enumerate(poses):  # exactly, whatever rounding does
            moved[pose.frame_index], R[pose.frame_index] = values[i], keyed[i, :3, :3]
        moved[: int(knots[0])], R[: int(knots[0])] = values[0], keyed[0, :3, :3]
        moved[int(knots[-1]) :], R[int(knots[-1]) :] = values[-1], keyed[-1, :3, :3]
        return moved, R


def interpolate_poses(
    start_pose: CameraPose, end_pose: CameraPose, num_steps: int, interpolation: str = "linear"
) -> list[CameraPose]:
    """`num_steps` poses from one to the other, both included exactly; one step gives the start.

    Frame indices are spread evenly between those of the two poses; where these leave no room they
    count up from the start's.

    Raises:
        ValueError: fewer than one step, an unknown interpolation.
    """
    for name, pose in (("start_pose", start_pose), ("end_pose", end_pose)):
        if not isinstance(pose, CameraPose):
            raise TypeError(f"{name} must be a CameraPose, got {type(pose).__name__}.")
    if isinstance(num_steps, bool) or not hasattr(num_steps, "__index__"):
        raise TypeError(f"num_steps must be a whole number, got {type(num_steps).__name__}.")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    first, last = start_pose.frame_index, end_pose.frame_index
    if num_steps == 1:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}.")
        return [start_pose]
    if last - first < num_steps - 1:
        last = first + num_steps - 1
    path = CameraTrajectory(
        [start_pose.at(0), end_pose.at(num_steps - 1)], num_steps, interpolation
    )
    index = [round(first + (last - first) * i / (num_steps - 1)) for i in range(num_steps)]
    return [pose.at(i) for pose, i in zip(map(path.pose_at, range(num_steps)), index, strict=True)]


# ---- helpers -------------------------------------------------------------------------------------


def _bezier(
    knots: Tensor, values: Tensor, R: Tensor, at: Tensor
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m 3 3"]]:
    """Cubic Bézier segments through every key, at rest at both ends, within each segment's range.

    The handle is a third of the segment along the rate of the neighbours, and shortened for each
    coordinate so that it does not leave the range of its two keys: a curve lies in the hull of its
    control points, so nothing overshoots.
    """
    h = (knots[1:] - knots[:-1])[:, None]
    step = values[1:] - values[:-1]
    rate = torch.zeros_like(values)
    if len(values) > 2:
        a, b, ha, hb = step[:-1] / h[:-1], step[1:] / h[1:], h[:-1], h[1:]
        rate[1:-1] = torch.where(a * b > 0, (a * hb + b * ha) / (ha + hb), 0.0)
    q = quaternions(R)
    for i in range(1, len(q)):  # the shorter way between neighbours
        if float(q[i] @ q[i - 1]) < 0:
            q[i] = -q[i]
    spin = torch.zeros(len(q), 3, dtype=q.dtype)
    if len(q) > 2:
        turn = torch.stack([_log_between(p, n) for p, n in zip(q[:-1], q[1:], strict=True)]) / h
        mean = (turn[:-1] * h[1:] + turn[1:] * h[:-1]) / (h[:-1] + h[1:])
        spin[1:-1] = torch.where(turn[:-1] * turn[1:] > 0, mean, 0.0)
    i = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, len(knots) - 2)
    s = ((at - knots[i]) / h[i, 0])[:, None]
    third = h / 3
    low, high = torch.minimum(values[1:], values[:-1]), torch.maximum(values[1:], values[:-1])
    c1 = torch.maximum(torch.minimum(values[:-1] + third * rate[:-1], high), low)
    c2 = torch.maximum(torch.minimum(values[1:] - third * rate[1:], high), low)
    b0, b1, b2, b3 = (1 - s) ** 3, 3 * s * (1 - s) ** 2, 3 * s**2 * (1 - s), s**3
    moved = b0 * values[i] + b1 * c1[i] + b2 * c2[i] + b3 * values[i + 1]
    row = [
        q[i],
        times_quaternion(q[i], exp(third[i] * spin[i])),
        times_quaternion(q[i + 1], exp(-third[i] * spin[i + 1])),
        q[i + 1],
    ]
    while len(row) > 1:
        row = [slerp(a, b, s[:, 0]) for a, b in zip(row[:-1], row[1:], strict=True)]
    return moved, matrices(torch.nn.functional.normalize(row[0], dim=-1))


def _log_between(p: Tensor, q: Tensor) -> Float[Tensor, "3"]:
    return log(times_quaternion(conjugate(p[None]), q[None]))[0]


def _checked_poses(
    poses: Sequence[CameraPose], frames: int, convention: str
) -> tuple[CameraPose, ...]:
    if len(poses) == 0:
        raise ValueError("poses must hold at least one CameraPose, got none.")
    taken: dict[int, int] = {}
    for i, pose in enumerate(poses):
        if not isinstance(pose, CameraPose):
            raise TypeError(f"poses[{i}] must be a CameraPose, got {type(pose).__name__}.")
        if pose.frame_index >= frames:
            raise ValueError(
                f"poses[{i}]: frame_index {pose.frame_index} must be below num_frames {frames}."
            )
        if pose.frame_index in taken:
            raise ValueError(
                f"poses[{i}]: frame {pose.frame_index} has a pose already, "
                f"poses[{taken[pose.frame_index]}]. One a frame is accepted."
            )
        taken[pose.frame_index] = i
    if convention == "opengl":
        poses = [
            CameraPose(p.position, p.rotation, p.frame_index, p.fov, convention="opengl")
            for p in poses
        ]
    return tuple(sorted(poses, key=lambda pose: pose.frame_index))


def _rotation(value: Any) -> Float[Tensor, "3 3"]:
    if isinstance(value, Mapping):
        odd = sorted(str(key) for key in value if key not in ANGLES)
        if odd:
            raise ValueError(
                f'rotation: {odd[0][:40]!r} is not known; {{"roll", "pitch", "yaw"}} in degrees '
                f"are accepted."
            )
        roll, pitch, yaw = (math.radians(_number(n, value.get(n, 0.0))) for n in ANGLES)
        return _about(1, yaw) @ _about(0, pitch) @ _about(2, roll)
    R = _floats("rotation", value, None)
    if tuple(R.shape) == (4,):
        length = float(R.norm())
        if not abs(length - 1) <= UNIT_SLACK:
            raise ValueError(
                f"rotation: the quaternion has length {length:.4g}; 1 within {UNIT_SLACK} is "
                f"accepted, in the order w, x, y, z."
            )
        return matrices((R / length)[None])[0]
    if tuple(R.shape) == (3,):
        raise ValueError(
            "rotation: three bare numbers are ambiguous. Write Euler angles in degrees as "
            '{"roll": 0, "pitch": 10, "yaw": 30}.'
        )
    if tuple(R.shape) != (3, 3):
        raise ValueError(
            f"rotation must be a quaternion of 4 numbers, roll, pitch and yaw, or a 3x3 matrix; "
            f"got shape {tuple(R.shape)}."
        )
    drift = float((R @ R.T - torch.eye(3, dtype=R.dtype)).abs().max())
    if not drift <= TOLERANCE:
        raise ValueError(
            f"rotation: R @ R.T is off the identity by {drift:.2g}; at most 1e-3 is accepted."
        )
    if not abs(float(torch.linalg.det(R)) - 1) <= 3 * TOLERANCE:
        raise ValueError("rotation: det(R) is -1; the matrix mirrors the world. Flip one axis.")
    return R


def _about(axis: int, angle: float) -> Float[Tensor, "3 3"]:
    vector = torch.zeros(1, 3, dtype=torch.float64)
    vector[0, axis] = angle
    return matrices(exp(vector))[0]


def _floats(name: str, value: Any, shape: tuple[int, ...] | None) -> Tensor:
    try:
        if isinstance(value, Tensor):
            out = value.detach().cpu().double()
        else:
            out = torch.as_tensor(
                value.tolist() if hasattr(value, "tolist") else value, dtype=torch.float64
            )
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must hold numbers, got {str(value)[:60]!r}.") from None
    if shape is not None and tuple(out.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(out.shape)}.")
    if not bool(torch.isfinite(out).all()):
        raise ValueError(f"{name} holds a number that is not finite: {str(value)[:60]}.")
    return out


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value}.")
    out = _floats(name, value, None)
    if out.numel() != 1:
        raise ValueError(f"{name} must be one number, got {out.numel()}.")
    return float(out)


def _log_focal(fov: float) -> float:
    """log(focal / (width / 2)): what is interpolated, so that a zoom is even."""
    return -math.log(math.tan(math.radians(fov) / 2))


def _fov(log_focal: float) -> float:
    return math.degrees(2 * math.atan(math.exp(-log_focal)))
