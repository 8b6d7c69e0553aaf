"""What a reader returns: a `Capture` with its views, and what was noticed on the way."""

import posixpath

import torch

from worldstereo.inputs import registry, upright
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.assemble import Assembled, evenly
from worldstereo.inputs.limits import shown
from worldstereo.scene import Capture, PointCloud

GUESSED_UP = "Up was guessed from how the cameras were held: few straight lines point up."


def captured(
    bundle: Bundle,
    kind: str,
    assembled: Assembled,
    *,
    cloud: PointCloud | None = None,
    notices: tuple[str, ...] = (),
    metres_per_unit: float | None = None,
) -> Capture:
    """A capture of posed views; up is where upright lines vanish, or how cameras were held."""
    most = bundle.limits.kept_points
    if cloud is not None and len(cloud) > most:
        notices = (*notices, f"{len(cloud)} points were thinned evenly to {most}.")
        kept = torch.zeros(len(cloud), dtype=torch.bool)
        kept[evenly(len(cloud), most)] = True
        cloud = cloud.rows(kept)
    sky = upright.up(assembled.views)
    if sky.guessed and len(assembled.views) > 1:
        notices = (*notices, GUESSED_UP)
    return Capture(
        name=title(bundle.name),
        kind=kind,
        views=assembled.views,
        cloud=cloud,
        up=None if sky.up is None else torch.tensor(sky.up, dtype=torch.float32),
        notices=(*notices, *assembled.notices),
        metres_per_unit=metres_per_unit,
        origin=(float(assembled.origin[0]), float(assembled.origin[1]), float(assembled.origin[2])),
    )


def title(name: str) -> str:
    """The name of a capture after the file or folder it came from."""
    base = posixpath.basename(name)
    stem, suffix = posixpath.splitext(base)
    known = suffix.lower() in (".zip", *registry.suffixes())
    return shown(stem if stem and known else base or name, 60)
