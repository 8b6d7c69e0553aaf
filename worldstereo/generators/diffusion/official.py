"""Example folders of the public release as requests, so that results can be compared with it.

A single view: `image.png`, `prompt.json`, `camera.json` (world-to-camera, K in pixels of the
picture). Renders of a point cloud, where there are some: `render.mp4` and `render_mask.mp4` (white
= hole) beside the camera file; their frames become the guide as they are.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.errors import InputRefused
from worldstereo.generators.diffusion.camera_conditions import keyframe_indices, scale_intrinsics
from worldstereo.generators.diffusion.conditioning import resized
from worldstereo.generators.diffusion.config import SIZES, nearest_size
from worldstereo.guide import Guide, GuideFrame
from worldstereo.inputs import images
from worldstereo.inputs.archive import read_regular
from worldstereo.inputs.limits import SPACE
from worldstereo.scene import Origin, Scene, View
from worldstereo.trajectory import Trajectory

PICTURES = ("image.png", "start_frame.png")
CAPTIONS = ("long caption", "prompt", "medium caption", "short caption")
MAX_BYTES = 50_000_000  # bytes of a JSON file that is read at all
MAX_FRAMES, MAX_SIDE = 1000, 4096  # of a video


@dataclass(frozen=True, eq=False)
class Example:
    """One path of an official folder, at the size the model is given."""

    image: Float[Tensor, "3 H W"]
    """The start picture, stretched."""
    prompt: str
    trajectory: Trajectory
    """Keyframes: at most `nframe` of the file's cameras."""
    guide: "RenderedGuide | None"
    """The official renders, where the folder has them."""
    view: View
    """The start picture as a remembered view without depth."""


class RenderedGuide(Guide):
    """A guide whose frames are given: pictures (F, 3, H, W) and what is seen (F, 1, H, W)."""

    def __init__(
        self,
        trajectory: Trajectory,
        color: Float[Tensor, "F 3 H W"],
        seen: Bool[Tensor, "F 1 H W"],
    ) -> None:
        super().__init__(Scene(), trajectory)
        self.kind = "renders"
        self.color, self.seen = color, seen

    def __getitem__(self, t: int) -> GuideFrame:
        color, seen = self.color[t], self.seen[t]
        nothing = torch.zeros_like(color[:1])
        origin = torch.where(seen, int(Origin.GLOBAL), int(Origin.INVENTED)).to(torch.uint8)
        return GuideFrame(
            camera=self.trajectory.cameras[t],
            color=color,
            depth=nothing,
            mask=seen,
            index=torch.full(seen.shape, -1, dtype=torch.int64),
            origin=origin,
            confidence=seen.float(),
            stereo_weight=nothing,
            references=(),
        )


def read_example(
    folder: str | Path,
    renders: str | None = None,
    *,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    nframe: int = 21,
) -> Example:
    """An official example folder.

    Args:
        folder: an example, or one trajectory of it; picture and prompt may lie in folders above.
        renders: the trajectory's folder below it ("renders/traj_left"); None for the folder's own
            `camera.json`, or the first trajectory there is.
        sizes: (height, width) the model takes; the nearest ratio is chosen.
        nframe: keyframes of the model.

    Raises:
        InputRefused: a file is absent or does not hold what its name promises; one line.
    """
    root = Path(folder)
    path = root / renders if renders else root
    if not (path / "camera.json").is_file():
        found = sorted(root.glob("renders/*/camera.json")) + sorted(root.glob("*/camera.json"))
        if renders or not found:
            raise InputRefused(f"{path} holds no camera.json.")
        path = found[0].parent
    above = (path, *list(path.absolute().parents)[:2])
    picture = next((p for f in above for n in PICTURES if (p := f / n).is_file()), None)
    if picture is None:
        raise InputRefused(f"{root} holds no image.png.")
    captions = (f / n for f in above for n in ("prompt.json", "traj_caption.json"))
    source = _picture(picture).permute(2, 0, 1).float() / 255
    height, width = nearest_size(source.shape[1], source.shape[2], sizes)
    image = resized(source, height, width)
    cameras = _cameras(path / "camera.json", tuple(source.shape[1:]), (height, width), nframe)
    trajectory = Trajectory(cameras, path.name, 16.0)
    prompt = next((text for file in captions if (text := read_prompt(file))), "")
    view = View.of(image, torch.zeros(1, height, width), cameras[0], name=picture.name)
    guide = None
    if (path / "render.mp4").is_file() and (path / "render_mask.mp4").is_file():
        guide = RenderedGuide(trajectory, *read_renders(path, len(cameras), height, width))
    return Example(image, prompt, trajectory, guide, view)


def read_prompt(path: Path) -> str:
    """The long caption, or the one there is; empty without a file."""
    if not path.is_file():
        return ""
    entries = _json(path)
    found = [entries[key] for key in CAPTIONS if isinstance(entries.get(key), str)]
    if not found:
        raise InputRefused(f"{path} holds none of {', '.join(CAPTIONS)}.")
    return found[0]


def read_renders(
    folder: Path, keyframes: int, height: int, width: int
) -> tuple[Float[Tensor, "F 3 H W"], Bool[Tensor, "F 1 H W"]]:
    """Frames of `render.mp4`, and where `render_mask.mp4` says they are seen."""
    color = _video(folder / "render.mp4", keyframes)
    mask = _video(folder / "render_mask.mp4", keyframes)
    if len(color) != keyframes or len(mask) != keyframes:
        raise InputRefused(
            f"{folder}: render.mp4 and render_mask.mp4 must hold {keyframes} keyframes or more, "
            f"got {len(color)} and {len(mask)}."
        )
    color = torch.stack([resized(frame, height, width) for frame in color])
    hole = functional.interpolate(mask[:, :1], (height, width), mode="nearest") >= 0.5
    return color, ~hole


def _picture(path: Path) -> UInt8[Tensor, "H W 3"]:
    """Alpha is dropped, as in the release."""
    try:
        data = read_regular(path, path.name, SPACE)
        images.size(path.name, data, SPACE)  # refuses by the header what is too large
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB")))
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's of a broken chunk
        raise InputRefused(f"{path} cannot be read as a picture.") from error


def _cameras(path: Path, source: tuple[int, ...], size: tuple[int, int], nframe: int) -> Cameras:
    entries = _json(path)
    try:
        w2c = torch.tensor(entries["extrinsic"], dtype=torch.float32)
        K = torch.tensor(entries["intrinsic"], dtype=torch.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputRefused(
            f'{path} must hold "extrinsic" (n, 4, 4) and "intrinsic" (n, 3, 3).'
        ) from error
    if w2c.ndim != 3 or tuple(w2c.shape[1:]) != (4, 4) or tuple(K.shape) != (len(w2c), 3, 3):
        raise InputRefused(
            f'{path}: "extrinsic" is {tuple(w2c.shape)} and "intrinsic" {tuple(K.shape)}; '
            f"(n, 4, 4) and (n, 3, 3) are accepted."
        )
    if len(w2c) == 0 or not bool(torch.isfinite(w2c).all()):
        raise InputRefused(f'{path}: "extrinsic" must hold finite matrices, at least one.')
    chosen = keyframe_indices(len(w2c), nframe)
    given = (entries.get("height", source[0]), entries.get("width", source[1]))
    if any(type(side) is not int or not 1 <= side <= 1 << 20 for side in given):
        raise InputRefused(f'{path}: "height" and "width" must be whole numbers of pixels.')
    try:
        c2w = torch.linalg.inv(w2c[chosen].double()).float()
        return Cameras(scale_intrinsics(K[chosen], given, size), c2w, size[1], size[0])
    except (ValueError, RuntimeError) as error:
        raise InputRefused(f"{path}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputRefused(f"{path} is larger than {MAX_BYTES // 1_000_000} MB.")
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputRefused(f"{path} cannot be read as JSON.") from error
    if not isinstance(entries, dict):
        raise InputRefused(f"{path} must hold a JSON object.")
    return entries


def _video(path: Path, keyframes: int) -> Float[Tensor, "F 3 h w"]:
    """Frames in [0, 1], thinned to `keyframes` where there are more."""
    import av

    try:
        count = sum(1 for _ in _frames(path))  # first only counted: all together may not fit
        chosen = set(keyframe_indices(max(count, 1), keyframes))
        kept = [f.to_ndarray(format="rgb24") for i, f in enumerate(_frames(path)) if i in chosen]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise InputRefused(f"{path} cannot be read as a video.") from error
    if not kept:
        raise InputRefused(f"{path} holds no frame.")
    return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2).float() / 255


def _frames(path: Path) -> Iterator[Any]:
    """The frames of an MP4, decoded one by one.

    The format is fixed and no protocol is allowed: left to guess, FFmpeg follows play lists and
    addresses that a file of any name may hold.
    """
    import av

    with (
        path.open("rb") as file,
        av.open(file, "r", format="mov", options={"protocol_whitelist": ""}) as container,
    ):
        stream = container.streams.video[0]
        if max(stream.width, stream.height) > MAX_SIDE:
            raise InputRefused(f"{path} is larger than {MAX_SIDE} pixels.")
        for i, frame in enumerate(container.decode(stream)):
            if i == MAX_FRAMES:
                raise InputRefused(f"{path} holds more than {MAX_FRAMES} frames.")
            yield frame
