"""Masks beside given pictures: what a person, the sky or a hand hides, by the usual names.

COLMAP: `masks/NAME.png` for the picture `NAME`, also with the picture's own suffix left away.
instant-ngp: `dynamic_mask_NAME.png` beside the picture, white where something is hidden.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import replace

from worldstereo.inputs.archive import Bundle, folded
from worldstereo.inputs.assemble import Shot

_FOLDERS = ("masks", "mask")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def given(bundle: Bundle, shots: Sequence[Shot]) -> list[Shot]:
    """The shots with the masks that lie beside their pictures; masks they name already stay."""
    known = {folded(name) for name in bundle.names}
    folders = any(posixpath.basename(posixpath.dirname(n)) in _FOLDERS or "/masks/" in f"/{n}"
                  or "/mask/" in f"/{n}" for n in known)  # fmt: skip
    dynamic = any(posixpath.basename(n).startswith("dynamic_mask_") for n in known)
    if not folders and not dynamic:
        return list(shots)
    out = []
    for shot in shots:
        if shot.mask is None and not shot.generated:
            member = _beside(bundle, shot.image) if folders else None
            if member is not None:
                shot = replace(shot, mask=member)
            elif dynamic and (member := _dynamic(bundle, shot.image)) is not None:
                shot = replace(shot, mask=member, hides_white=True)
        out.append(shot)
    return out


def _beside(bundle: Bundle, image: str) -> str | None:
    """`masks/` instead of, or next to, any folder above the picture."""
    parts = image.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        head, below = parts[:depth], parts[depth:]
        for folder in _FOLDERS:
            for tail in (below, below[1:] if len(below) > 1 else None):
                if tail is None:
                    continue
                path = "/".join([*head, folder, *tail])
                stem = posixpath.splitext(path)[0]
                for candidate in (f"{path}.png", path, *(stem + s for s in _SUFFIXES)):
                    member = bundle.found(candidate)
                    if member is not None:
                        return member
    return None


def _dynamic(bundle: Bundle, image: str) -> str | None:
    folder, name = posixpath.split(image)
    stem = posixpath.splitext(name)[0]
    return bundle.found(posixpath.join(folder, f"dynamic_mask_{stem}.png"))
