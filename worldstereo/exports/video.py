"""A clip as MP4, or as a sequence of pictures with depth, masks and its camera path."""

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from worldstereo.errors import ExportError
from worldstereo.exports.archive import (
    array,
    as_json,
    depth_png,
    depth_step,
    mask_png,
    packed,
    picture,
    pixels_of,
    png,
)
from worldstereo.exports.conventions import conventions
from worldstereo.scene import Clip, Origin, Scene

BT709, LIMITED = 1, 1  # code points of ITU-T H.273 and ffmpeg


def chosen_clip(scene: Scene, clip: int = -1) -> Clip:
    """Raises ExportError where the scene holds no such clip."""
    if not scene.clips:
        raise ExportError("The world holds no clip yet. Generate one first.")
    if not -len(scene.clips) <= clip < len(scene.clips):
        raise ExportError(f"clip must be from 0 to {len(scene.clips) - 1}, got {clip}.")
    return scene.clips[clip]


def write_mp4(scene: Scene, *, clip: int = -1, fps: float | None = None, crf: int = 17) -> bytes:
    """H.264, yuv420p, BT.709, index first; odd sizes are continued by one row or column.

    A video cannot mark invented pixels; its comment says how many there are, and the picture
    sequence carries the masks.

    Raises:
        ExportError: no such clip, or the encoder is missing.
    """
    chosen = chosen_clip(scene, clip)
    if not 0 <= crf <= 51:
        raise ExportError(f"crf must be from 0 (lossless) to 51, got {crf}.")
    rate = Fraction(fps or chosen.trajectory.fps).limit_denominator(1001)
    if not 0 < rate <= 240:
        raise ExportError(f"fps must be above 0 and at most 240, got {float(rate):g}.")
    invented = float((chosen.origin == int(Origin.INVENTED)).float().mean())
    notes = (
        f"{conventions(scene, 'mp4')['written_by']}; generator {chosen.generator or 'unknown'}, "
        f"seed {chosen.seed}, step {chosen.step}; {invented:.1%} of the pixels are invented"
    )
    with TemporaryDirectory() as folder:  # the index moves to the front in a second pass
        path = Path(folder) / "clip.mp4"
        _encode(chosen, path, rate, crf, notes)
        return path.read_bytes()


def _encode(clip: Clip, path: Path, rate: Fraction, crf: int, notes: str) -> None:
    import av
    from av.video.reformatter import Colorspace

    height, width = (int(n) for n in clip.color_u8.shape[-2:])
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    try:
        with av.open(str(path), "w", format="mp4", options=flags) as container:
            container.metadata["comment"] = notes
            video = container.add_stream("libx264", rate=rate)
            video.height, video.width = height + height % 2, width + width % 2
            video.pix_fmt = "yuv420p"
            # one thread: the bitstream must not depend on the machine
            video.options = {"crf": str(crf), "preset": "medium", "threads": "1"}
            context = video.codec_context
            context.thread_count = 1
            context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
            context.color_primaries, context.color_trc = BT709, BT709
            context.colorspace, context.color_range = BT709, LIMITED
            for i, color in enumerate(clip.color_u8):
                pixels = np.pad(pixels_of(color), odd, mode="edge")
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
                frame.pts, frame.time_base = i, 1 / rate
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
    except (av.FFmpegError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ExportError(f"The video could not be encoded ({reason}).") from error


def write_frames(scene: Scene, *, clip: int = -1, images: str = "png", depth: bool = True) -> bytes:
    """A zip of `images/`, `depth/` (16 bits), `origin/` (0 global, 1 stereo, 2 invented, 3
    fixed to the camera), `masks/` (0 where invented) and `trajectory.json`.

    Raises:
        ExportError: no such clip.
    """
    chosen = chosen_clip(scene, clip)
    depths = [array(d[0]) for d in chosen.depth]
    step = depth_step(depths)
    members = {"trajectory.json": (chosen.trajectory.to_json() + "\n").encode()}
    for i in range(len(chosen)):
        origin = array(chosen.origin[i, 0])
        members[f"images/{i:05d}.{images}"] = picture(pixels_of(chosen.color_u8[i]), images)
        members[f"origin/{i:05d}.png"] = png(origin)
        members[f"masks/{i:05d}.png"] = mask_png(origin == int(Origin.INVENTED))
        if depth:
            members[f"depth/{i:05d}.png"] = depth_png(depths[i], step)
    notes = conventions(
        scene,
        "frames",
        clip={"step": chosen.step, "generator": chosen.generator, "seed": chosen.seed},
        prompt=chosen.prompt,
        depth_unit=f"{step:g} scene units per step of the 16-bit pictures" if depth else "no depth",
        invented_pixels="0 in masks/, 255 elsewhere; 2 in origin/",
        origin={o.name.lower(): int(o) for o in Origin},
    )
    members["conventions.json"] = as_json(notes)
    return packed(members)


def write_trajectory(scene: Scene, *, clip: int = -1) -> bytes:
    """The camera path of a clip as the JSON that `Trajectory.from_json` reads."""
    return (chosen_clip(scene, clip).trajectory.to_json() + "\n").encode()
