"""What the viewport tells the rest of the app: frozen values, and their form on the page's socket.

Coordinates are those of the world (scene units), whatever scale the viewport is drawn in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from worldstereo.cameras import Cameras

Point = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Event:
    """Base of everything that happens in the viewport."""

    kind: ClassVar[str] = ""

    def as_json(self) -> dict[str, Any]:
        """A small dictionary for the page; never holds tokens, arrays or paths."""
        return {"kind": self.kind}


@dataclass(frozen=True, eq=False)
class Pick(Event):
    """A point of the cloud was clicked."""

    kind: ClassVar[str] = "pick"
    point: Point
    row: int
    """Row of the point in the scene's cloud."""
    revision: int
    """Revision of the scene that the row belongs to."""
    screen: tuple[float, float] = (0.5, 0.5)
    """Where in the viewport, 0 to 1 from the top left."""

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "point": [round(v, 4) for v in self.point]}


@dataclass(frozen=True, eq=False)
class ViewClicked(Event):
    """The frustum of a remembered view was clicked; the camera is already on its way there."""

    kind: ClassVar[str] = "view"
    index: int

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "index": self.index}


@dataclass(frozen=True, eq=False)
class CameraMoved(Event):
    """Where the visitor looks from; sent a few times a second while it changes."""

    kind: ClassVar[str] = "camera"
    position: Point
    forward: Point
    fov: float
    """Vertical field of view in radians."""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "position": [round(v, 4) for v in self.position],
            "forward": [round(v, 4) for v in self.forward],
            "fov": round(self.fov, 4),
        }


@dataclass(frozen=True, eq=False)
class KeyframesChanged(Event):
    """A keyframe was added, moved by its gizmo, or removed."""

    kind: ClassVar[str] = "keyframes"
    cameras: tuple[Cameras, ...]
    active: int = -1
    """The one that was added or moved, -1 for none."""
    settled: bool = True
    """False while a gizmo is being dragged."""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "count": len(self.cameras),
            "active": self.active,
            "settled": self.settled,
        }


@dataclass(frozen=True, eq=False)
class Measured(Event):
    """Two points were clicked while measuring."""

    kind: ClassVar[str] = "measure"
    start: Point
    end: Point
    length: float
    """In metres where the scene's scale is known, else in scene units."""
    unit: str

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "length": round(self.length, 4), "unit": self.unit}


@dataclass(frozen=True, eq=False)
class Selected(Event):
    """Points were boxed."""

    kind: ClassVar[str] = "selection"
    rows: np.ndarray = field(repr=False)
    """Rows of the scene's cloud, ascending, int64."""
    revision: int

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": len(self.rows)}


@dataclass(frozen=True, eq=False)
class Drawn(Event):
    """The viewport shows this revision of the scene now."""

    kind: ClassVar[str] = "scene"
    revision: int
    points: int
    notice: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "revision": self.revision,
            "points": self.points,
            "notice": self.notice,
        }


@dataclass(frozen=True, eq=False)
class Recording(Event):
    """A flight is being recorded."""

    kind: ClassVar[str] = "recording"
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "seconds": round(self.seconds, 1)}


@dataclass(frozen=True, eq=False)
class Playing(Event):
    """A path is being played; `frame` is -1 when it has ended."""

    kind: ClassVar[str] = "playing"
    frame: int

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "frame": self.frame}


@dataclass(frozen=True, eq=False)
class LiveShown(Event):
    """The viewport shows the live view from where the visitor rests."""

    kind: ClassVar[str] = "live"
    unknown: float
    """Share of its pixels that no memory knows."""
    full: bool
    """At full size; the first picture is smaller."""
    seconds: float
    """Since the camera came to rest there."""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "unknown": round(self.unknown, 3),
            "full": self.full,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, eq=False)
class GhostClicked(Event):
    """A camera that was proposed was clicked."""

    kind: ClassVar[str] = "ghost"
    index: int

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "index": self.index}


@dataclass(frozen=True, eq=False)
class FromPage(Event):
    """A message that the page sent over its event socket, e.g. the renderer's name."""

    kind: ClassVar[str] = "page"
    message: dict[str, Any]


@dataclass(frozen=True, eq=False)
class JobChanged(Event):
    """A job of this session has changed state, or the world was saved."""

    kind: ClassVar[str] = "job"
    state: str

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "state": self.state}


class Events:
    """Events on their way out, to whoever listens; nothing is kept."""

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self._on_event = on_event
        self._listeners: list[Callable[[dict[str, Any]], None]] = []

    def emit(self, event: Event) -> None:
        """Tell the listeners."""
        if self._on_event is not None:
            self._on_event(event)
        message = event.as_json()
        for listener in list(self._listeners):
            listener(message)

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Have each event's JSON form handed over; returns the undoing."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop
