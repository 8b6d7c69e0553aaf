"""Scene -> bytes. The home of all conventions that are not ours; one file per format in `exports/`.

An export never changes the scene and repeats bit for bit: archives carry no clock, videos are
encoded by one thread. What was invented is marked wherever the format has a place for it, and every
export says its axes, units, pixel centre and seeds (`conventions.json`, or comments and extras).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from worldstereo._core.atomic import write_atomic
from worldstereo.errors import ExportError
from worldstereo.exports.registry import GROUPS, Estimate, Exporter, exporters, register
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene

__all__ = [
    "GROUPS", "REFUSED", "Estimate", "Exporter", "estimate", "export", "exporter", "exporters",
    "file_name", "register", "why_not", "write",
]  # fmt: skip

_MISSING = {
    "points": "The world holds no points yet. Open a capture first.",
    "views": "The world holds no pictures yet. Open a capture with pictures.",
    "depth": "No view of the world has depth. Open a capture with depth, or overlapping photos.",
    "clips": "The world holds no clip yet. Generate one first.",
}
REFUSED = {
    "fbx": "FBX is a closed format that only its vendor's kit writes well. Write GLB: Blender, "
    "Unity, Unreal and Maya read it, and Blender saves it as FBX.",
}


def why_not(scene: Scene, format: str) -> str:
    """Why a format cannot be written now, in one line for the person; empty where it can."""
    chosen = exporter(format)
    held = {
        "points": len(scene.cloud) > 0,
        "views": len(scene.views) > 0,
        "depth": any(bool(view.mask.any()) for view in scene.views),
        "clips": len(scene.clips) > 0,
    }
    lacking = [_MISSING[need] for need in chosen.needs if not held[need]]
    if not lacking and chosen.requires and find_spec(chosen.requires) is None:
        extra = {"pxr": "usd-core"}.get(chosen.requires, chosen.requires)
        return f"{chosen.label} needs the package {extra}: pip install {extra}."
    return lacking[0] if lacking else ""


def estimate(scene: Scene, format: str, **options: Any) -> Estimate:
    """Size in bytes and seconds on two cores of an export with these options; a guess.

    Raises:
        ExportError: unknown format, or the scene lacks what it needs.
    """
    missing = why_not(scene, format)
    if missing:
        raise ExportError(missing)
    return exporter(format).estimated(scene, **options)


def export(scene: Scene, format: str, *, on_step: OnStep = ignore, **options: Any) -> bytes:
    """The scene in one of `exporters()`; a zip where the format is several files.

    Args:
        options: of the format's writer, see `exporters()[format].options`; most take
            `generated=False` to leave out what a generator made.
        on_step: progress of formats that take long; may raise `Cancelled`.

    Raises:
        ExportError: unknown format or option, or the scene lacks what the format needs.
        Cancelled: `on_step` raised it.
    """
    chosen = exporter(format)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        known = ", ".join(chosen.options) or "none"
        raise ExportError(f"{format} has no option {unknown[0]!r}; it knows {known}.")
    missing = why_not(scene, format)
    if missing:
        raise ExportError(missing)
    if chosen.slow:
        options["on_step"] = on_step
    return chosen.write(scene, **options)


def write(
    scene: Scene, format: str, path: Path | str, *, on_step: OnStep = ignore, **options: Any
) -> Path:
    """Exports into a file that appears whole or not at all.

    Raises:
        ExportError: as `export`, or the file cannot be written.
    """
    path = Path(path)
    data = export(scene, format, on_step=on_step, **options)
    try:
        write_atomic(path, data)
    except OSError as error:
        raise ExportError(f"{path.name} could not be written: {error.strerror}.") from error
    return path


def file_name(scene: Scene, format: str) -> str:
    """A name for the download: the world's, made safe, with what is inside."""
    chosen = exporter(format)
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in scene.name).strip("-")
    inside = "" if f".{format}" == chosen.suffix else f"-{format.replace('_', '-')}"
    return f"{kept[:60] or 'world'}{inside}{chosen.suffix}"


def exporter(format: str) -> Exporter:
    """One exporter by its name.

    Raises:
        ExportError: there is none; the text lists those that there are.
    """
    found = exporters()
    if format in found:
        return found[format]
    if format.removeprefix("mesh-") in REFUSED:
        raise ExportError(REFUSED[format.removeprefix("mesh-")])
    raise ExportError(f"format must be one of {', '.join(found)}, got {format!r}.")
