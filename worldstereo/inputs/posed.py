"""Posed photos: COLMAP, transforms.json, cameras.json, projection matrices."""

from collections.abc import Callable

from worldstereo.inputs.archive import Bundle
from worldstereo.scene import Capture


def read(bundle: Bundle, find: Callable[..., list[str]]) -> Capture | None:
    return None
