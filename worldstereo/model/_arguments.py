"""What callers hand in, checked and turned into our types: pictures, clouds, cameras, devices."""

import logging
import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from worldstereo.cameras import Cameras
from worldstereo.errors import InputRefused
from worldstereo.inputs import LOCAL, images, panorama
from worldstereo.inputs.archive import read_regular
from worldstereo.scene import to_bytes
from worldstereo.trajectory import CameraPose, CameraTrajectory, Trajectory

log = logging.getLogger(__name__)

RATIO_SLACK = 0.02
"""Pictures are stretched where the ratios of the sides differ by less, else cropped."""
PROJECTIONS = ("auto", "perspective", "equirectangular")
CAMERA_KEYS = ("intrinsics", "extrinsics", "trajectory")


class Cloud(NamedTuple):
    points: Float[Tensor, "N 3"]
    colors: Float[Tensor, "N 3"] | None


def device_of(device: Any) -> torch.device:
    """The device named; "cuda" where there is none is the CPU, with one warning.

    Raises:
        TypeError, ValueError: not the name of a device.
    """
    if not isinstance(device, str | torch.device):
        raise TypeError(f'device must be "cuda", "cpu", "auto" or a torch.device, got {device!r}.')
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        at = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f'device must be "cuda", "cuda:1", "cpu" or "auto", got {str(device)[:40]!r}.'
        ) from None
    if at.type == "cuda" and not torch.cuda.is_available():
        warnings.warn("There is no CUDA device; the model runs on the CPU.", UserWarning, 4)
        return torch.device("cpu")
    return at


def seed_of(seed: Any) -> int:
    """The seed given, or a fresh one; the caller's random state is neither read nor moved."""
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be a whole number or None, got {type(seed).__name__}.")
    seed = int(seed)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be 0 to 2**63 - 1, got {seed}.")
    return seed


# ---- pictures ------------------------------------------------------------------------------------


def picture(name: str, image: Any) -> Float[Tensor, "3 h w"]:
    """A condition image of any accepted kind as floats in [0, 1], upright, three channels.

    Raises:
        TypeError, ValueError: no picture; InputRefused: a file that cannot be read safely.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        try:
            data = read_regular(path, path.name, LOCAL)
        except OSError as error:
            raise InputRefused(f"{path.name}: cannot be opened ({error.strerror}).") from None
        pixels = images.photo(path.name, data, LOCAL).color
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if isinstance(image, Image.Image):
        turned = ImageOps.exif_transpose(image) or image
        if "A" in turned.mode or "transparency" in turned.info:
            over = Image.new("RGBA", turned.size, (255, 255, 255, 255))
            turned = Image.alpha_composite(over, turned.convert("RGBA"))
        return torch.from_numpy(np.array(turned.convert("RGB"))).permute(2, 0, 1).float() / 255
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{name} as an array must be (H, W, 3), got {image.shape}.")
        if image.dtype == np.bool_ or image.dtype.kind not in "uif":
            raise TypeError(f"{name} must hold uint8 or floats, got {image.dtype}.")
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    elif isinstance(image, Tensor):
        tensor = image.detach().cpu()
        if tensor.ndim == 4 and len(tensor) == 1:
            tensor = tensor[0]
        if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
            raise ValueError(
                f"{name} as a tensor must be (C, H, W) or (1, C, H, W), got {tuple(image.shape)}."
            )
    else:
        raise TypeError(
            f"{name} must be a path, a PIL image, an array or a tensor, got {type(image).__name__}."
        )
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    elif tensor.is_floating_point():
        tensor = tensor.float()
    else:
        raise TypeError(f"{name} must hold uint8 or floats, got {tensor.dtype}.")
    if tensor.numel() == 0:
        raise ValueError(f"{name} holds no pixel, got shape {tuple(tensor.shape)}.")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds a number that is not finite.")
    low, high = float(tensor.min()), float(tensor.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(
            f"{name} holds values from {low:.3g} to {high:.3g}; floats in [0, 1] are accepted. "
            f"Divide by 255, or give uint8."
        )
    if tensor.shape[0] == 4:
        alpha = tensor[3:]
        tensor = tensor[:3] * alpha + (1 - alpha)
    return tensor.expand(3, -1, -1).clamp(0, 1).contiguous()


def fitted(image: Float[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 H W"]:
    """The picture at a size: stretched where the ratio is nearly right, else cropped about the
    centre, which the log says."""
    h, w = image.shape[-2:]
    if (h, w) == (height, width):
        return image
    off = (w / h) / (width / height)
    if abs(math.log(off)) >= math.log(1 + RATIO_SLACK):
        kept_w, kept_h = (
            (round(h * width / height), h) if off > 1 else (w, round(w * height / width))
        )
        kept_w, kept_h = max(1, kept_w), max(1, kept_h)
        x, y = (w - kept_w) // 2, (h - kept_h) // 2
        image = image[:, y : y + kept_h, x : x + kept_w]
        log.info("The picture of %d x %d px was cropped to %d x %d.", w, h, kept_w, kept_h)
    scaled = F.interpolate(
        image[None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled[0].clamp(0, 1)


def cloud(point_cloud: Any) -> Cloud:
    """(N, 3) points, or (N, 6) with colours as floats in [0, 1] or bytes.

    Raises:
        TypeError, ValueError: another shape, a number that is not finite, colours above 1.
    """
    if isinstance(point_cloud, np.ndarray):
        point_cloud = torch.from_numpy(np.ascontiguousarray(point_cloud))
    if not isinstance(point_cloud, Tensor):
        raise TypeError(
            f"point_cloud must be a tensor or an array, got {type(point_cloud).__name__}."
        )
    table = point_cloud.detach().cpu()
    if table.ndim != 2 or table.shape[1] not in (3, 6):
        raise ValueError(f"point_cloud must be (N, 3) or (N, 6), got {tuple(table.shape)}.")
    if len(table) == 0:
        raise ValueError("point_cloud holds no point; None leaves it out.")
    if table.dtype == torch.bool or table.is_complex():
        raise TypeError(f"point_cloud must hold numbers, got {table.dtype}.")
    values = table.double()
    if not bool(torch.isfinite(values).all()):
        row = int(torch.nonzero(~torch.isfinite(values).all(dim=1))[0])
        raise ValueError(f"point_cloud[{row}] holds a number that is not finite.")
    points = values[:, :3].float()
    if table.shape[1] == 3:
        return Cloud(points, None)
    colors = values[:, 3:]
    if table.dtype == torch.uint8:
        colors = colors / 255
    if float(colors.min()) < 0 or float(colors.max()) > 1:
        raise ValueError(
            f"point_cloud: colours run from {float(colors.min()):.4g} to "
            f"{float(colors.max()):.4g}; floats in [0, 1] are accepted. Divide them by 255."
        )
    return Cloud(points, colors.float())


# ---- cameras -------------------------------------------------------------------------------------


def path_of(
    trajectory: Any, width: int, height: int, name: str = "camera_trajectory"
) -> Trajectory:
    """A path of any accepted kind at an image size, its lens rescaled."""
    if isinstance(trajectory, CameraTrajectory):
        lens = trajectory.intrinsics
        if lens is None:
            return trajectory.to_trajectory(width, height)
        trajectory = trajectory.to_trajectory()
    if isinstance(trajectory, Cameras):
        if len(trajectory.batch_shape) != 1:
            raise ValueError(f"{name} must be cameras of shape (T,), got {trajectory.batch_shape}.")
        trajectory = Trajectory(trajectory)
    if not isinstance(trajectory, Trajectory):
        raise TypeError(
            f"{name} must be a CameraTrajectory, a Trajectory or Cameras, "
            f"got {type(trajectory).__name__}."
        )
    cameras = trajectory.cameras
    trajectory = Trajectory(
        Cameras(cameras.K.float().cpu(), cameras.c2w.float().cpu(), cameras.width, cameras.height),
        trajectory.name,
        trajectory.fps,
        trajectory.times,
        trajectory.registration,
    )
    if (cameras.width, cameras.height) == (width, height):
        return trajectory
    return trajectory.scaled(width, height)


def clip_cameras(params: Any, batch: int, frames: int, width: int, height: int) -> list[Cameras]:
    """`camera_params` of `forward` as one batch of T cameras for each clip, at the images' size.

    Raises:
        TypeError, ValueError: another kind, unknown keys, another number of frames or clips.
    """
    if isinstance(params, Sequence) and not isinstance(params, str | bytes):
        if len(params) != batch:
            raise ValueError(
                f"camera_params must be a list of {batch} like the clips, got {len(params)}."
            )
        return [clip_cameras(each, 1, frames, width, height)[0] for each in params]
    if isinstance(params, Mapping):
        params = _from_mapping(params, width, height)
    if isinstance(params, CameraTrajectory | Trajectory):
        params = path_of(params, width, height, "camera_params").cameras
    if not isinstance(params, Cameras):
        raise TypeError(
            "camera_params must be Cameras, a trajectory, a list of these, or a mapping with "
            f"intrinsics and extrinsics; got {type(params).__name__}."
        )
    shape = params.batch_shape
    if shape not in ((frames,), (batch, frames)):
        raise ValueError(
            f"camera_params must be a batch ({frames},) or ({batch}, {frames}) like the images, "
            f"got {shape}."
        )
    if (params.width, params.height) != (width, height):
        params = params.scaled(width, height)
    params = Cameras(params.K.float(), params.c2w.float(), width, height)
    return [params] * batch if len(shape) == 1 else [params[b] for b in range(batch)]


def _from_mapping(params: Mapping[str, Any], width: int, height: int) -> Any:
    odd = sorted(str(key) for key in params if key not in CAMERA_KEYS)
    if odd:
        raise ValueError(
            f"camera_params: {odd[0][:40]!r} is not known; {', '.join(CAMERA_KEYS)} are."
        )
    if "trajectory" in params:
        if len(params) > 1:
            raise ValueError('camera_params: "trajectory" stands alone; leave out the others.')
        return params["trajectory"]
    missing = [key for key in CAMERA_KEYS[:2] if key not in params]
    if missing:
        raise ValueError(f'camera_params: "{missing[0]}" is missing.')
    K, w2c = params["intrinsics"], params["extrinsics"]
    if isinstance(K, Mapping):
        focal = _numbers("intrinsics.focal_length", K.get("focal_length"))
        centre = K.get("principal_point")
        centre = [width / 2, height / 2] if centre is None else centre
        middle = _numbers("intrinsics.principal_point", centre)
        made = torch.zeros(*middle.shape[:-1], 3, 3)
        f = focal[..., None] if focal.ndim == 0 or focal.shape[-1] not in (1, 2) else focal
        made[..., 0, 0], made[..., 1, 1] = f[..., 0], f[..., -1]
        made[..., :2, 2], made[..., 2, 2] = middle, 1
        K = made
    if isinstance(w2c, Mapping):
        R = _numbers("extrinsics.rotation", w2c.get("rotation"))
        t = _numbers("extrinsics.translation", w2c.get("translation"))
        w2c = torch.cat([R, t[..., None]], dim=-1)
    K, w2c = _numbers("intrinsics", K), _numbers("extrinsics", w2c)
    if K.shape[-2:] != (3, 3) or w2c.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(
            f"camera_params: intrinsics must be (..., 3, 3) and extrinsics (..., 4, 4) or "
            f"(..., 3, 4), got {tuple(K.shape)} and {tuple(w2c.shape)}."
        )
    R, t = w2c[..., :3, :3], w2c[..., :3, 3:]
    c2w = torch.eye(4).expand(*w2c.shape[:-2], 4, 4).clone()
    c2w[..., :3, :3], c2w[..., :3, 3:] = R.mT, -R.mT @ t
    return Cameras(K.expand(*c2w.shape[:-2], 3, 3).contiguous(), c2w, width, height)


def _numbers(name: str, value: Any) -> Tensor:
    if value is None:
        raise ValueError(f"camera_params: {name} is missing.")
    try:
        return torch.as_tensor(value).detach().float()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"camera_params: {name} must hold numbers.") from None


def one_camera(name: str, camera: Any, like: Cameras) -> Cameras:
    """A single camera from a `CameraPose` or `Cameras`, of the same image size as another.

    Raises:
        TypeError, ValueError: another kind, or a batch.
    """
    if isinstance(camera, CameraPose):
        camera = CameraTrajectory([camera.at(0)], 1).cameras(like.width, like.height)[0]
    if not isinstance(camera, Cameras):
        raise TypeError(f"{name} must be a CameraPose or Cameras, got {type(camera).__name__}.")
    if camera.batch_shape != ():
        raise ValueError(f"{name} must be a single camera, got batch shape {camera.batch_shape}.")
    camera = Cameras(camera.K.float().cpu(), camera.c2w.float().cpu(), camera.width, camera.height)
    return camera.scaled(like.width, like.height)


def check_projection(projection: Any) -> None:
    """Raises `ValueError` for a projection that is not known."""
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, got {projection!r}.")


def sphere(
    name: str, image: Any, pixels: Float[Tensor, "3 h w"], projection: str
) -> panorama.Sphere | None:
    """The sphere that a condition image shows; None for a perspective picture.

    "auto" believes GPano tags of a file, else a picture of 2:1 whose columns go round.

    Raises:
        ValueError: its tags name another projection, or "equirectangular" is no such picture.
    """
    if projection == "perspective":
        return None
    data = b""
    if isinstance(image, str | Path):
        with Path(image).open("rb") as file:
            data = file.read(panorama.HEAD)
    elif isinstance(image, Image.Image):
        xmp = image.info.get("xmp", b"")
        data = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    flat = to_bytes(pixels).permute(1, 2, 0).numpy()
    try:
        found = panorama.sphere_of(data, flat)
    except ValueError as kind:
        raise ValueError(
            f"{name} is a panorama of kind {kind}; equirectangular ones are accepted."
        ) from None
    if found is None and projection == "equirectangular":
        height, width = flat.shape[:2]
        if abs(width / height / 2 - 1) > 0.01:
            raise ValueError(
                f"{name} is {width} x {height}; an equirectangular picture is twice as wide as "
                'high, or its GPano tags say what it shows. Use projection="perspective".'
            )
        found = panorama.Sphere(width, height, 0, 0)
    return found
