"""Columns of points by slot, and the differences between two states of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from worldstereo._core.resident import arrays_on_disk, is_array_on_disk

if TYPE_CHECKING:
    from worldstereo.memory.geometric._hash import BrickHash

Columns = dict[str, np.ndarray]

WIDTHS = {"point": 3, "color": 3, "normal": 3}  # the others hold one number per point
TYPES = {"count": np.int32, "seen": np.int32, "source": np.int32}
DEFAULTS = {"color": 0.5, "confidence": 1.0, "count": 1, "source": -1}


@dataclass(eq=False)
class Snapshot:
    """One remembered state: how to get here from the next newer state on the way to the present."""

    newer: "Snapshot | None" = None
    difference: "Difference | Storage | None" = None
    tick: int = 0
    stretch: float = 1.0

    def nbytes(self) -> int:
        """Bytes in memory of what this state keeps for itself."""
        return 0 if self.difference is None else self.difference.nbytes()


@dataclass(eq=False)
class Difference:
    """What to write back to get from one state to its neighbour."""

    slots: Int[np.ndarray, "n"]
    values: Columns
    """Of `slots`; a column the state did not store yet is absent."""
    revived: Int[np.ndarray, "r"]
    """Slots that are alive there and dead here."""
    killed: Int[np.ndarray, "d"]
    size: int
    """Slots in use there."""
    tail: Columns
    """Columns of the slots there beyond the size here."""
    names: tuple[str, ...]
    """Columns stored there."""

    def spill(self) -> None:
        """Moves what is kept to disk: it is read when an earlier state is restored, if ever."""
        arrays = [self.slots, self.revived, self.killed, *self.values.values(), *self.tail.values()]
        moved = iter(arrays_on_disk(arrays))
        self.slots, self.revived, self.killed = next(moved), next(moved), next(moved)
        self.values = {name: next(moved) for name in self.values}
        self.tail = {name: next(moved) for name in self.tail}

    def nbytes(self) -> int:
        """Bytes in memory."""
        arrays = (self.slots, self.revived, self.killed, *self.values.values(), *self.tail.values())
        return sum(array.nbytes for array in arrays if not is_array_on_disk(array))


class Storage:
    """Columns of one generation of slots, with the index over the living ones."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.size = len(columns["point"])
        self.alive = np.ones(self.size, np.bool_)
        self.dead = 0
        self.hash: BrickHash | None = None

    def spill(self) -> None:
        """Moves the columns to disk; the index over them is rebuilt when it is needed."""
        self.hash = None
        self.alive, *columns = arrays_on_disk([self.alive, *self.columns.values()])
        self.columns = dict(zip(self.columns, columns, strict=True))

    @property
    def living(self) -> int:
        return self.size - self.dead

    def reserve(self, slots: int) -> None:
        """Makes room for `slots` slots; doubles by half, so that a point is moved about twice."""
        room = len(self.alive)
        if slots <= room:
            return
        room = max(slots, room + room // 2, 1024)
        self.alive = _grown(self.alive, room, self.size)
        for name, column in self.columns.items():
            self.columns[name] = _grown(column, room, self.size)

    def add_column(self, name: str, width: int) -> None:
        shape = (len(self.alive), width) if name in WIDTHS or name == "feature" else len(self.alive)
        self.columns[name] = np.zeros(shape, TYPES.get(name, np.float32))

    def all_columns(self) -> list[tuple[str, np.ndarray]]:
        return [*self.columns.items(), ("alive", self.alive)]

    def nbytes(self) -> int:
        links = self.hash.nbytes() if self.hash is not None else 0
        arrays = (self.alive, *self.columns.values())
        return links + sum(array.nbytes for array in arrays if not is_array_on_disk(array))


def blank_columns(n: int) -> Columns:
    """The columns that are always stored, with their defaults."""
    columns: Columns = {}
    for name in ("point", "color", "confidence", "count", "seen", "source"):
        shape = (n, WIDTHS[name]) if name in WIDTHS else n
        columns[name] = np.full(shape, DEFAULTS.get(name, 0), TYPES.get(name, np.float32))
    return columns


def _grown(column: np.ndarray, room: int, used: int) -> np.ndarray:
    larger = np.zeros((room, *column.shape[1:]), column.dtype)
    larger[:used] = column[:used]
    return larger
