"""Rows of the feature bank: columns that grow, features that may be compressed, undo by journal.

Slots are rows 0 .. size-1. Every change goes through `write`, which keeps the rows it overwrites
for the snapshots that are still held: a snapshot costs what changes after it, restoring costs what
changed in between, and any number of snapshots can be visited in any order.

Source: rerooting of version trees, after Baker, "Shallow binding makes functional arrays fast",
SIGPLAN Notices 26(8), 1991.
"""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldstereo._core.resident import is_on_disk, on_disk
from worldstereo.memory.stereo._matches import BLOCK, Entries, refresh_boxes
from worldstereo.neighbors import SpatialIndex, build_index

GROUP = 64  # channels that share one scale in compressed storage
MIN_CAPACITY = 256

FLOAT, INT, LONG = torch.float32, torch.int32, torch.int64


class Snapshot:
    """One state of the bank: what `snapshot` returns. Points towards the bank's present state."""

    __slots__ = ("__weakref__", "change", "held", "next")

    def __init__(self) -> None:
        self.next: Snapshot | None = None
        self.change: Change | None = None
        self.held = False


class Change:
    """What turns the state at `Snapshot.next` back into the state at the version itself."""

    def __init__(self, scalars: "Scalars") -> None:
        self.scalars = scalars
        self.parts: list[tuple[tuple[str, ...], Tensor, list[Tensor] | None]] = []
        self.seen: dict[tuple[str, ...], Tensor] = {}

    def unseen(self, names: tuple[str, ...], slots: Tensor, room: int) -> Tensor:
        """Those of `slots` whose earlier values are not kept yet; from now on they are."""
        seen = self.seen.get(names)
        if seen is None or len(seen) < room:
            wider = torch.zeros(room, dtype=torch.bool, device=slots.device)
            if seen is not None:
                wider[: len(seen)] = seen
            seen = self.seen[names] = wider
        fresh = slots[~seen[slots]]
        seen[fresh] = True
        return fresh

    def spill(self) -> None:
        """Moves what is kept to disk: it is read when an earlier state is restored, if ever."""
        for i, (names, slots, values) in enumerate(self.parts):
            if not is_on_disk(slots):
                slots, *rest = on_disk([slots, *(values or [])])
                self.parts[i] = names, slots, None if values is None else rest


class Scalars(NamedTuple):
    size: int = 0
    clock: int = 0
    """Rises by one with every call that uses entries."""
    sequence: int = 0
    """How many entries were ever added."""
    found: int = 0
    """Queries that found something to attend or retrieve, and queries asked."""
    asked: int = 0


class Bank:
    """Columns of equal length; row i is slot i."""

    def __init__(
        self, capacity: int, width: int, many: int, threshold: float, storage: torch.dtype
    ) -> None:
        self.capacity, self.width, self.many = capacity, width, many
        self.threshold, self.storage = threshold, storage
        self.device = torch.device("cpu")
        groups = -(-width // GROUP) if storage in (torch.int8, torch.float16) else 0
        self.kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((width,), storage),
            "scale": ((groups,), FLOAT),
            "points": ((many, 3), FLOAT),
            "confidence": ((many,), FLOAT),
            "normal": ((3,), FLOAT),
            "level": ((), INT),
            "camera": ((), INT),
            "frame": ((), INT),
            "pixel": ((2,), FLOAT),
            "seen_by": ((many,), INT),
            "order": ((), LONG),
            "mass": ((), FLOAT),
            "doubt": ((), FLOAT),
            "last_used": ((), LONG),
            "received": ((), FLOAT),
        }
        self.columns = {name: self._new(name, 0) for name in self.kinds}
        self.scalars = Scalars()
        self.boxes = torch.zeros(0, 6)
        self.version = 0
        """Rises with every change of points, confidence, normals or levels."""
        self._stale = torch.zeros(0, dtype=torch.bool)
        self._written = 0
        """Rows that ever held something; nothing needs to be kept of the others."""
        self._root = Snapshot()
        self._recording: weakref.ref[Snapshot] | None = None
        self._index: tuple[int, Tensor, Tensor, SpatialIndex] | None = None
        self.oriented = self.levelled = False

    # ---- rows --------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return self.scalars.size

    def column(self, name: str) -> Tensor:
        return self.columns[name][: self.size]

    def write(self, slots: Tensor, **values: Tensor) -> None:
        """Sets columns of the given (distinct) slots, which may lie beyond the present size."""
        if len(slots) == 0:
            return
        last = int(slots.max()) + 1
        self._make_room(last)
        names = tuple(values)
        self._keep(names, slots)
        self._written = max(self._written, last)
        for name, value in values.items():
            self.columns[name][slots] = value.to(self.columns[name].dtype)
        self._touched(names, slots)

    def set(self, **scalars: int) -> None:
        self._begin()
        self._resized(scalars.get("size", self.size))
        self.scalars = self.scalars._replace(**scalars)

    def move_to(self, device: torch.device) -> None:
        """The stored rows go along; snapshots taken before do not, and are refused from then on."""
        if device == self.device:
            return
        self.device, self._index = device, None
        self.columns = {name: value.to(device) for name, value in self.columns.items()}
        self._root, self._recording = Snapshot(), None

    def entries(self) -> Entries:
        """The geometry of the stored entries, with the boxes of their blocks up to date."""
        blocks = -(-self.size // BLOCK)
        entries = Entries(
            self.column("points"),
            self.column("confidence"),
            self.column("normal") if self.oriented else self.columns["normal"][:0],
            self.column("level") if self.levelled else self.columns["level"][:0],
            self.boxes[:blocks],
        )
        stale = self._stale[:blocks].nonzero()[:, 0]
        if len(stale) > 0 and self.device.type == "cpu":
            refresh_boxes(entries, self.threshold, stale)
            self._stale[:blocks] = False
        return entries

    def index(self) -> "tuple[Tensor, Tensor, SpatialIndex]":
        """Slot and number of every accepted correspondence, and an index over their points.

        Built when asked for after a change.
        """
        if self._index is None or self._index[0] != self.version:
            trusted = self.column("confidence").double() >= self.threshold
            owner, which = trusted.nonzero(as_tuple=True)
            built = build_index(self.columns["points"][owner, which])
            self._index = (self.version, owner, which, built)
        return self._index[1:]

    def bytes(self) -> int:
        kept = sum(v.numel() * v.element_size() for v in self.columns.values())
        return kept + self.boxes.numel() * self.boxes.element_size()

    def rest(self) -> None:
        """Moves the rows to disk until they are used again, and drops the index; same rows."""
        self.columns = dict(zip(self.columns, on_disk([*self.columns.values()]), strict=True))
        self._index = None

    def replace(self, given: dict[str, Tensor]) -> None:
        """Takes over the columns of another bank, which may store features in another way.

        Raises:
            KeyError: a column is missing.
            ValueError: other widths, more entries than fit, or values that no bank holds.
        """
        parts = {name: given[name].to(self.device) for name in self.kinds}
        counts = given["scalars"]
        if counts.dtype != torch.int64 or counts.shape != (len(Scalars._fields),):
            raise ValueError(f"scalars: must be {len(Scalars._fields)} int64, got {counts.dtype}.")
        scalars = Scalars(*counts.tolist())
        if min(scalars) < 0:
            raise ValueError(f"scalars: counts begin at 0, got {min(scalars)}.")
        if scalars.size != len(parts["codes"]) or scalars.size > self.capacity:
            raise ValueError(
                f"codes: holds {len(parts['codes'])} entries; {scalars.size} are announced and at "
                f"most {self.capacity} fit."
            )
        for name, (shape, dtype) in self.kinds.items():
            wanted, kept = (scalars.size, *shape), parts[name]
            if name in ("codes", "scale"):
                continue
            if tuple(kept.shape) != wanted or kept.dtype != dtype:
                raise ValueError(
                    f"{name}: must be {dtype} of shape {wanted}, got {kept.dtype} of "
                    f"{tuple(kept.shape)}."
                )
        if parts["codes"].ndim != 2 or parts["codes"].shape[1] != self.width:
            raise ValueError(
                f"codes: must have {self.width} channels, got shape {tuple(parts['codes'].shape)}."
            )
        sure = parts["confidence"]
        floats = [part for part in parts.values() if part.is_floating_point()]
        finite = all(bool(torch.isfinite(part).all()) for part in floats)
        if not finite or not bool(((sure >= 0) & (sure <= 1)).all()):
            raise ValueError("confidence: must be within [0, 1] and all numbers finite.")
        kind = parts["codes"].dtype
        if kind not in (torch.float32, torch.float16, torch.bfloat16, torch.int8):
            raise ValueError(f"codes: {kind} is not a storage dtype.")
        other = Bank(max(scalars.size, 1), self.width, self.many, self.threshold, kind)
        if tuple(parts["scale"].shape) != (scalars.size, *other.kinds["scale"][0]):
            raise ValueError(f"scale: does not fit the codes, got {tuple(parts['scale'].shape)}.")
        if kind != self.storage:
            features = other.decode(parts["codes"], parts["scale"])
            parts |= self.encode(features)
        self.write(torch.arange(scalars.size, device=self.device), **parts)
        self.set(**scalars._asdict())

    # ---- features ----------------------------------------------------------------------------

    def encode(self, features: Tensor) -> dict[str, Tensor]:
        """Features as stored: as they are, or codes and one scale per `GROUP` channels."""
        groups = self.kinds["scale"][0][0]
        if groups == 0:
            return {
                "codes": features.to(self.storage),
                "scale": features.new_zeros(len(features), 0),
            }
        padded = torch.nn.functional.pad(features, (0, groups * GROUP - self.width))
        grouped = padded.reshape(len(features), groups, GROUP)
        peak = grouped.abs().amax(dim=-1)
        top = 127.0 if self.storage == torch.int8 else 1.0
        # A subnormal scale would lose the digits that it should keep.
        scale = torch.where(peak > 1e-30, peak / top, torch.ones_like(peak))
        codes = (grouped / scale[..., None]).flatten(1)[:, : self.width]
        if self.storage == torch.int8:
            codes = codes.round().clamp(-127, 127)
        return {"codes": codes.to(self.storage), "scale": scale}

    def features(self, slots: Tensor | None = None) -> Tensor:
        """Stored features in float32; all of them are a view where storage is float32."""
        rows = slice(0, self.size) if slots is None else slots
        return self.decode(self.columns["codes"][rows], self.columns["scale"][rows])

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        codes = codes.to(FLOAT)
        if scale.shape[1] == 0:
            return codes
        return codes * scale.repeat_interleave(GROUP, dim=1)[:, : self.width]

    def opened(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Features to attend and the row of each pair; compressed rows are opened once each."""
        if self.storage == FLOAT:
            return self.features(), column
        used = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        used[column] = True
        slots = used.nonzero()[:, 0]
        row = column.new_zeros(self.size)
        row[slots] = torch.arange(len(slots), device=self.device)
        return self.features(slots), row[column]

    # ---- undo --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        self._root.held = True
        return self._root

    def restore(self, version: Snapshot) -> None:
        """Back or forth to a version of this bank.

        Raises:
            ValueError: the version belongs to another bank, or to this one before it moved.
        """
        path, node = [], version
        while node is not self._root:
            path.append(node)
            if node.next is None:
                raise ValueError(
                    "snapshot belongs to another memory; only snapshots of this one are accepted."
                )
            node = node.next
        for node in reversed(path):
            change, ahead = node.change, node.next
            assert change is not None and ahead is not None
            back = Change(self.scalars)
            for names, slots, values in reversed(change.parts):
                # A row kept twice is put back latest first, so that the earliest value wins.
                back.parts.append((names, slots, [self.columns[n][slots] for n in names]))
                if values is not None:
                    for name, value in zip(names, values, strict=True):
                        self.columns[name][slots] = value
                self._touched(names, slots)
            self._resized(change.scalars.size)
            self.scalars = change.scalars
            ahead.change, ahead.next = back, node
            node.change, node.next = None, None
        if path:
            self._root, self._recording = version, None

    def _begin(self) -> Change | None:
        """The change that is being recorded; None when no earlier version is held."""
        if self._root.held:
            earlier = None if self._recording is None else self._recording()
            if earlier is not None and earlier.change is not None:
                earlier.change.seen.clear()  # complete: nothing more will be kept for it
                earlier.change.spill()
            node, self._root = self._root, Snapshot()
            node.next, node.change = self._root, Change(self.scalars)
            self._recording = weakref.ref(node)
        node = None if self._recording is None else self._recording()
        return None if node is None else node.change

    def _keep(self, names: tuple[str, ...], slots: Tensor) -> None:
        change = self._begin()
        if change is None:
            return
        slots = change.unseen(names, slots, len(self.columns["order"]))
        blank = slots >= self._written
        for part, empty in ((slots[~blank], False), (slots[blank], True)):
            if len(part) > 0:
                kept = None if empty else [self.columns[name][part] for name in names]
                change.parts.append((names, part, kept))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without snapshots: those belong to the original."""
        return self.__dict__ | {"_root": Snapshot(), "_recording": None, "_index": None}

    # ---- inside ------------------------------------------------------------------------------

    def _new(self, name: str, room: int) -> Tensor:
        shape, dtype = self.kinds[name]
        return torch.zeros(room, *shape, dtype=dtype, device=self.device)

    def _make_room(self, rows: int) -> None:
        """Room grows by half, so that filling the bank copies each row few times."""
        room = len(self.columns["order"])
        if rows <= room:
            return
        room = min(self.capacity, max(rows, room + room // 2, MIN_CAPACITY))
        for name, old in self.columns.items():
            self.columns[name] = self._new(name, room)
            self.columns[name][: len(old)] = old
        blocks = -(-room // BLOCK)
        boxes, stale = torch.zeros(blocks, 6), torch.ones(blocks, dtype=torch.bool)
        boxes[: len(self.boxes)], stale[: len(self._stale)] = self.boxes, self._stale
        self.boxes, self._stale = boxes, stale

    def _resized(self, size: int) -> None:
        if size != self.size:
            self.version += 1
            self._stale[min(size, self.size) // BLOCK :] = True

    def _touched(self, names: tuple[str, ...], slots: Tensor) -> None:
        if "points" in names or "confidence" in names:
            self._stale[(slots // BLOCK).cpu()] = True
            self.version += 1
        if "normal" in names and not self.oriented:
            self.oriented = bool((self.columns["normal"][slots] != 0).any())
        if "level" in names and not self.levelled:
            self.levelled = bool((self.columns["level"][slots] > 0).any())
