"""`Tour`: a walkthrough as a JSON file, checked before anything starts.

{"title": "A living room", "subtitle": "from six views", "size": [1920, 1080], "fps": 24,
 "steps": [{"caption": "The room as it was captured"}, {"pause": 2},
           {"fly": "orbit", "seconds": 4}, {"click": "#generate"},
           {"wait": "idle", "seconds": 6}, {"key": "g"}, {"picture": "readme.jpg"}]}
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldstereo.errors import InputRefused
from worldstereo.trajectory import PRESETS

Kind = Literal["caption", "pause", "fly", "click", "key", "wait", "picture", "animation"]
FIELDS: dict[str, tuple[str, ...]] = {
    "caption": (),
    "pause": (),
    "fly": ("seconds", "value"),
    "click": ("at",),
    "key": (),
    "wait": ("seconds", "patience"),
    "picture": (),
    "animation": ("seconds",),
}
PICTURES = {"picture": (".jpg", ".png"), "animation": (".webp",)}
MAX_BYTES = 1 << 20  # bytes of a script
MAX_SECONDS = 600.0  # seconds of one step
MAX_STEPS = 500  # steps
SIZES = (320, 3840)  # px of an edge


@dataclass(frozen=True)
class Step:
    kind: Kind
    what: str = ""
    """The caption, selector, key, preset or file name."""
    seconds: float = 0.0
    """How long it takes; of a wait, how long of it is shown; of an animation, how much of the film
    before it."""
    value: float | None = None
    """Of a flight: the preset's own number."""
    at: tuple[float, float] = (0.5, 0.5)
    """Of a click: where in the element, 0 to 1."""
    patience: float = 300.0
    """Of a wait: seconds after which it has failed."""


@dataclass(frozen=True)
class Tour:
    steps: tuple[Step, ...]
    title: str = ""
    subtitle: str = ""
    width: int = 1920
    height: int = 1080
    fps: int = 24

    @staticmethod
    def read(path: Path) -> "Tour":
        """The script in a file.

        Raises:
            InputRefused: no such file, or no tour; in one line.
        """
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise InputRefused(f"{path.name}: no script of a tour; it is a JSON file with steps.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise InputRefused(f"{path.name}: it is not JSON.") from None
        try:
            return Tour.of(found)
        except ValueError as error:
            raise InputRefused(f"{path.name}: {error}") from None

    @staticmethod
    def of(found: Any) -> "Tour":
        """The script as parsed JSON. Raises `ValueError`, in one line."""
        if not isinstance(found, dict) or not isinstance(found.get("steps"), list):
            raise ValueError("it must be an object with a list of steps.")
        _fields("the tour", found, ("title", "subtitle", "size", "fps", "steps"))
        size = found.get("size", [1920, 1080])
        if not isinstance(size, list) or len(size) != 2:
            raise ValueError("size must be [width, height].")
        width, height = (int(_number("size", edge, *SIZES)) // 2 * 2 for edge in size)
        if not 1 <= len(found["steps"]) <= MAX_STEPS:
            raise ValueError(f"it must have 1 to {MAX_STEPS} steps, got {len(found['steps'])}.")
        steps = tuple(_step(i, entry) for i, entry in enumerate(found["steps"], 1))
        fps = int(_number("fps", found.get("fps", 24), 1, 60))
        texts = (str(found.get(key, ""))[:200] for key in ("title", "subtitle"))
        return Tour(steps, *texts, width=width, height=height, fps=fps)


def _step(index: int, entry: Any) -> Step:
    name = f"step {index}"
    kinds = [key for key in entry if key in FIELDS] if isinstance(entry, dict) else []
    if len(kinds) != 1:
        raise ValueError(f"{name} must have exactly one of {', '.join(FIELDS)}.")
    kind: Any = kinds[0]
    _fields(name, entry, (kind, *FIELDS[kind]))
    what = entry[kind]
    if kind == "pause":
        return Step("pause", seconds=_number(name, what, 0, MAX_SECONDS))
    if not isinstance(what, str) or len(what) > 400:
        raise ValueError(f"{name}: {kind} must be a text.")
    if kind == "fly":
        if what not in PRESETS:
            raise ValueError(f"{name}: fly must be one of {', '.join(PRESETS)}, got {what[:40]!r}.")
        value = entry.get("value")
        value = None if value is None else _number(name, value, -1e6, 1e6)
        return Step("fly", what, _number(name, entry.get("seconds", 4), 0.1, MAX_SECONDS), value)
    if kind == "click":
        at = entry.get("at", [0.5, 0.5])
        if not isinstance(at, list) or len(at) != 2:
            raise ValueError(f"{name}: at must be [x, y], shares of the element.")
        x, y = (_number(name, share, 0, 1) for share in at)
        return Step("click", what, at=(x, y))
    if kind == "wait":
        shown = _number(name, entry.get("seconds", 3), 0, MAX_SECONDS)
        patience = _number(name, entry.get("patience", 300), 1, 3600)
        return Step("wait", what, shown, patience=patience)
    endings = PICTURES.get(kind, ())
    if endings and (Path(what).name != what or Path(what).suffix not in endings):
        raise ValueError(f"{name}: {kind} must be the name of a {' or '.join(endings)} file.")
    seconds = _number(name, entry.get("seconds", 4), 0.1, 60) if kind == "animation" else 0.0
    return Step(kind, what, seconds)


def _fields(name: str, entry: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(map(str, entry)) - set(known))
    if unknown:
        raise ValueError(f"{name} has no field {unknown[0][:40]!r}; it takes {', '.join(known)}.")


def _number(name: str, value: Any, low: float, high: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: a number from {low:g} to {high:g} is wanted, got {value!r:.40}.")
    return float(value)
