"""Scene -> bytes. The home of all conventions that are not ours; one file per format in `exports/`.

An export never changes the scene and repeats bit for bit: archives carry no clock, videos are
encoded by one thread. What was invented is marked wherever the format has a place for it, and every
export says its axes, units, pixel centre and seeds (`conventions.json`, or comments and extras).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldstereo._core.atomic import write_atomic
from worldstereo.errors import ExportError
from worldstereo.exports.archive import as_json
from worldstereo.exports.colmap import write_colmap
from worldstereo.exports.conventions import conventions
from worldstereo.exports.glb import write_glb
from worldstereo.exports.ply import write_ply
from worldstereo.exports.transforms import write_transforms
from worldstereo.exports.video import write_frames, write_mp4, write_trajectory
from worldstereo.scene import Scene


@dataclass(frozen=True)
class Format:
    """One way to take a world home."""

    label: str
    suffix: str
    """Of the file, with its dot."""
    describes: str
    """One line: what is in it and who reads it."""
    writer: Callable[..., bytes]
    needs: tuple[str, ...] = ()
    """What the scene must hold: "points", "views", "clips"."""

    @property
    def options(self) -> dict[str, Any]:
        """The writer's options with their defaults."""
        parameters = list(inspect.signature(self.writer).parameters.values())[1:]
        return {p.name: p.default for p in parameters}


def _colmap_text(
    scene: Scene, *, generated: bool = True, images: str = "png", max_points: int = 250_000
) -> bytes:
    return write_colmap(scene, text=True, generated=generated, images=images, max_points=max_points)


def _colmap_binary(
    scene: Scene, *, generated: bool = True, images: str = "png", max_points: int = 250_000
) -> bytes:
    return write_colmap(scene, generated=generated, images=images, max_points=max_points)


def _conventions_alone(scene: Scene) -> bytes:
    return as_json(conventions(scene, "conventions"))


FORMATS: dict[str, Format] = {
    "ply": Format(
        "Points (PLY)",
        ".ply",
        "Coloured points with normals, confidence and marks; CloudCompare, MeshLab, Blender.",
        write_ply,
        ("points",),
    ),
    "glb": Format(
        "Points (GLB)",
        ".glb",
        "Coloured points and cameras for the web and 3D viewers; invented points apart.",
        write_glb,
        ("points",),
    ),
    "colmap": Format(
        "COLMAP, binary",
        ".zip",
        "Pictures, cameras and points with tracks; COLMAP and most splatting trainers.",
        _colmap_binary,
        ("views", "points"),
    ),
    "colmap-text": Format(
        "COLMAP, text",
        ".zip",
        "The same model as readable text.",
        _colmap_text,
        ("views", "points"),
    ),
    "transforms": Format(
        "transforms.json",
        ".zip",
        "Pictures, depth, masks and cameras for nerfstudio and instant-ngp.",
        write_transforms,
        ("views",),
    ),
    "mp4": Format("Video (MP4)", ".mp4", "The last clip as H.264 video.", write_mp4, ("clips",)),
    "images": Format(
        "Pictures of a clip",
        ".zip",
        "Every frame with depth, where each pixel comes from, and the camera path.",
        write_frames,
        ("clips",),
    ),
    "trajectory": Format(
        "Camera path",
        ".json",
        "The path of the last clip, to be opened again here.",
        write_trajectory,
        ("clips",),
    ),
    "conventions": Format(
        "Conventions",
        ".json",
        "Axes, units, pixel centre, seeds and what was invented.",
        _conventions_alone,
    ),
}

_MISSING = {
    "points": "The world holds no points yet. Open a capture first.",
    "views": "The world holds no pictures yet. Open a capture with pictures.",
    "clips": "The world holds no clip yet. Generate one first.",
}


def why_not(scene: Scene, format: str) -> str:
    """Why a format cannot be written now, in one line for the person; empty where it can."""
    held = {"points": len(scene.cloud), "views": len(scene.views), "clips": len(scene.clips)}
    lacking = [_MISSING[need] for need in _known(format).needs if held[need] == 0]
    return lacking[0] if lacking else ""


def export(scene: Scene, format: str, **options: Any) -> bytes:
    """The scene in one of `FORMATS`; a zip where the format is several files.

    Args:
        options: of the format's writer, see `FORMATS[format].options`; most take
            `generated=False` to leave out what a generator made.

    Raises:
        ExportError: unknown format or option, or the scene lacks what the format needs.
    """
    chosen = _known(format)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        known = ", ".join(chosen.options) or "none"
        raise ExportError(f"{format} has no option {unknown[0]!r}; it knows {known}.")
    missing = why_not(scene, format)
    if missing:
        raise ExportError(missing)
    return chosen.writer(scene, **options)


def write(scene: Scene, format: str, path: Path | str, **options: Any) -> Path:
    """Exports into a file that appears whole or not at all.

    Raises:
        ExportError: as `export`, or the file cannot be written.
    """
    path = Path(path)
    data = export(scene, format, **options)
    try:
        write_atomic(path, data)
    except OSError as error:
        raise ExportError(f"{path.name} could not be written: {error.strerror}.") from error
    return path


def file_name(scene: Scene, format: str) -> str:
    """A name for the download: the world's, made safe, with what is inside."""
    chosen = _known(format)
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in scene.name).strip("-")
    inside = "" if f".{format}" == chosen.suffix else f"-{format.replace('_', '-')}"
    return f"{kept[:60] or 'world'}{inside}{chosen.suffix}"


def _known(format: str) -> Format:
    if format not in FORMATS:
        raise ExportError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    return FORMATS[format]
