"""Values of a world to JSON and safetensors members, and back with everything checked.

A value becomes a JSON skeleton in which each tensor names the members that hold it. Members are
named by the SHA-256 of their bytes, so what did not change is found again and not written twice.
The pixels of a view are one member, its original depth another; a large tensor is cut along its
first axis into chunks, so that rows that were appended touch only the last one; all small tensors
of a state share one member.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from safetensors.torch import load, save
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.scene import Clip, DepthKind, Origin, PointCloud, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.registration import Registration
from worldstereo.world import Original, PackedDepth, StepRecord

CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(Cameras, Clip, Original, PackedDepth, PointCloud),
        *(Registration, Scene, StepRecord, Trajectory, View),
    )
}
TOGETHER: dict[Any, tuple[str, ...]] = {
    View: ("color_u8", "depth", "confidence_u8", "kind"),
    PackedDepth: ("data", "levels"),
}
"""Tensors of a value that share a member of their own, however small."""
RENAMED: dict[tuple[Any, str], str] = {
    (View, "color8"): "color_u8",
    (View, "confidence8"): "confidence_u8",
    (View, "gain"): "log_gain",
    (Clip, "color8"): "color_u8",
    (Clip, "confidence8"): "confidence_u8",
    (Clip, "stereo8"): "stereo_u8",
    (Scene, "rig"): "camera_fixed",
}
"""Fields by the names that projects of before 0.1.0 were saved with."""
SMALL = 1 << 16  # bytes; below this a tensor goes into the shared member
CHUNK = 1 << 20  # bytes of a chunk, at most
HEADER = 10_000_000  # bytes of a safetensors header, at most
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}


class Unsound(ValueError):
    """Saved data that does not hold together; the text names the place."""


class Known:
    """Which members hold a tensor that was saved before, as long as that tensor lives.

    Tensors of published values are never written again, so identity is enough; the version counter
    of torch catches whoever writes all the same.
    """

    def __init__(self) -> None:
        self._names: dict[int, tuple[weakref.ref, int, list[str]]] = {}

    def get(self, tensor: Tensor) -> list[str] | None:
        found = self._names.get(id(tensor))
        if found is None or found[0]() is not tensor or found[1] != _version(tensor):
            return None
        return found[2]

    def put(self, tensor: Tensor, names: list[str]) -> None:
        key = id(tensor)
        forget = weakref.ref(tensor, lambda _: self._names.pop(key, None))
        self._names[key] = (forget, _version(tensor), names)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


# ---- to members ----------------------------------------------------------------------------------


class Writer:
    """Turns values into skeletons and hands each member to `store(name, content)` once.

    Args:
        store: called with the name and the bytes of each new member.
        size_of: bytes of a member that is stored already, else None.
        known: what earlier writers of the same store have learnt.
    """

    def __init__(
        self,
        store: Callable[[str, bytes], None],
        size_of: Callable[[str], int | None],
        known: Known,
    ) -> None:
        self.sizes: dict[str, int] = {}
        """Every member that the skeletons name, and its bytes."""
        self._store, self._size_of, self._known = store, size_of, known
        self._small: dict[str, Tensor] = {}

    def value(self, value: Any, place: str) -> Any:
        """The skeleton of a value.

        Raises:
            TypeError: something that a project cannot hold; the text names its place.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            if value - value != 0:
                raise TypeError(f"{place} is not a finite number and cannot be saved.")
            return float(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, tuple):
            return [self.value(v, f"{place}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, list):
            items = [self.value(v, f"{place}[{i}]") for i, v in enumerate(value)]
            return {"$": "list", "items": items}
        if isinstance(value, dict):
            items = {str(k): self.value(v, f"{place}.{k}") for k, v in value.items()}
            return {"$": "dict", "items": items}
        kind = type(value).__name__
        if CLASSES.get(kind) is not type(value):
            raise TypeError(f"{place} is a {kind}, which a project cannot hold.")
        skeleton = {"$": kind}
        if names := TOGETHER.get(type(value)):
            skeleton |= self._together({name: getattr(value, name) for name in names})
        for f in fields(value):
            if f.name not in skeleton:
                skeleton[f.name] = self.value(getattr(value, f.name), f"{place}.{f.name}")
        return skeleton

    def finish(self) -> str | None:
        """Stores the shared member of the small tensors; its name."""
        return self._member(self._small) if self._small else None

    def _together(self, values: dict[str, Tensor | None]) -> dict[str, Any]:
        tensors = {name: tensor for name, tensor in values.items() if tensor is not None}
        names = [self._known.get(tensor) for tensor in tensors.values()]
        first = names[0]
        if first is None or any(n != first for n in names) or not self._found(first):
            first = [self._member(_apart(tensors))]
            for tensor in tensors.values():
                self._known.put(tensor, first)
        return {name: _reference(t, first, name) for name, t in tensors.items()}

    def _tensor(self, tensor: Tensor) -> dict[str, Any]:
        if tensor.dtype not in TYPES.values():
            raise TypeError(f"A tensor of {tensor.dtype} cannot be saved in a project.")
        if tensor.nbytes < SMALL or tensor.ndim == 0:
            key = f"t{len(self._small)}"
            self._small[key] = _plain(tensor).clone()
            return _reference(tensor, ["small"], key)
        names = self._known.get(tensor)
        if names is None or not self._found(names):
            rows = _rows_per_chunk(tensor)
            names = [self._member({"data": _plain(part)}) for part in tensor.split(rows)]
            self._known.put(tensor, names)
        return _reference(tensor, names, "data")

    def _found(self, names: list[str]) -> bool:
        for name in names:
            size = self.sizes.get(name) or self._size_of(name)
            if size is None:
                return False
            self.sizes[name] = size
        return True

    def _member(self, tensors: dict[str, Tensor]) -> str:
        content = save(tensors)
        name = hashlib.sha256(content).hexdigest()
        if name not in self.sizes and self._size_of(name) != len(content):
            self._store(name, content)
        self.sizes[name] = len(content)
        return name


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory: then copies, with memory of their own."""
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    if len({tensor.untyped_storage().data_ptr() for tensor in plain.values()}) == len(plain):
        return plain
    return {name: tensor.clone() for name, tensor in plain.items()}


def _reference(tensor: Tensor, names: list[str], key: str) -> dict[str, Any]:
    kind = str(tensor.dtype).removeprefix("torch.")
    return {"$": "tensor", "type": kind, "shape": list(tensor.shape), "in": names, "key": key}


def _rows_per_chunk(tensor: Tensor) -> int:
    """A power of two, so that the cuts stay where they are as a tensor grows."""
    rows = max(1, CHUNK * len(tensor) // tensor.nbytes)
    return 1 << (rows.bit_length() - 1)


# ---- from members --------------------------------------------------------------------------------


def members_of(skeleton: Any) -> Iterator[str]:
    """Names of the members that a skeleton's tensors lie in, in the order of `Reader.value`."""
    if isinstance(skeleton, list):
        for item in skeleton:
            yield from members_of(item)
    elif isinstance(skeleton, dict):
        if skeleton.get("$") == "tensor" and isinstance(skeleton.get("in"), list):
            yield from (name for name in skeleton["in"] if isinstance(name, str))
        else:
            for item in skeleton.values():
                yield from members_of(item)


class Reader:
    """Rebuilds values from skeletons.

    Args:
        fetch: the checked bytes of a member, called with its name and the place that needs it.
        small: name of the member with the small tensors.
        most_bytes: of all tensors together; one member named a thousand times counts a thousand.
    """

    def __init__(
        self, fetch: Callable[[str, str], bytes], small: str | None, most_bytes: int
    ) -> None:
        self._fetch, self._small, self._left = fetch, small, most_bytes
        self._open: dict[str, dict[str, Tensor]] = {}

    def value(self, skeleton: Any, place: str) -> Any:
        """The value of a skeleton, built and checked.

        Raises:
            Unsound: anything that a writer would not have written.
        """
        if skeleton is None or isinstance(skeleton, bool | int | float | str):
            return skeleton
        if isinstance(skeleton, list):
            return tuple(self.value(v, f"{place}[{i}]") for i, v in enumerate(skeleton))
        kind = skeleton.get("$")
        rest = {k: v for k, v in skeleton.items() if k != "$"}
        if kind == "tensor":
            return self._tensor(rest, place)
        if kind == "list" and isinstance(rest.get("items"), list):
            return list(self.value(rest["items"], place))
        if kind == "dict" and isinstance(rest.get("items"), dict):
            return {k: self.value(v, f"{place}.{k[:60]}") for k, v in rest["items"].items()}
        if not isinstance(kind, str) or kind not in CLASSES:
            raise Unsound(f"{place} is of an unknown kind")
        values = {k: self.value(v, f"{place}.{k[:60]}") for k, v in rest.items()}
        built = build(CLASSES[kind], values, place)
        # pictures of hundreds of views lie on disk, as in the world that they become
        return built.spilled() if isinstance(built, View | Clip | PackedDepth) else built

    def _tensor(self, fields_: dict[str, Any], place: str) -> Tensor:
        kind, shape, names, key = (fields_.get(k) for k in ("type", "shape", "in", "key"))
        sound = isinstance(kind, str) and kind in TYPES and isinstance(shape, list)
        if not sound or not isinstance(names, list) or not 0 < len(names) <= 100_000:
            raise Unsound(f"{place}: the tensor is not described")
        kind, key = str(kind), str(key)
        parts = [self._member(name, place).get(key) for name in names]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            raise Unsound(f"{place}: its member does not hold it")
        self._left -= sum(part.nbytes for part in found)
        if self._left < 0:
            raise Unsound("it holds more than may be read")
        tails = {(part.dtype, part.shape[1:]) for part in found}
        if len(tails) > 1 or (len(found) > 1 and found[0].ndim == 0):
            raise Unsound(f"{place}: its parts do not fit together")
        tensor = found[0] if len(found) == 1 else torch.cat(found)
        if tensor.dtype != TYPES[kind] or list(tensor.shape) != shape:
            raise Unsound(f"{place}: is {tuple(tensor.shape)}, not {shape!r:.60}")
        return tensor

    def _member(self, name: Any, place: str) -> dict[str, Tensor]:
        if name == "small":
            name = self._small
        if not isinstance(name, str):
            raise Unsound(f"{place}: the tensor is not described")
        if name not in self._open:
            kept = {k: v for k, v in self._open.items() if k == self._small}
            self._open = kept | {name: read_member(self._fetch(name, place), place)}
        return self._open[name]


def read_member(content: bytes, place: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; its header is looked at before anything is built."""
    if len(content) < 8 or int.from_bytes(content[:8], "little") > min(HEADER, len(content) - 8):
        raise Unsound(f"{place}: its member is cut short")
    try:
        return load(content)
    except Exception as error:  # SafetensorError and what torch says of odd types
        raise Unsound(f"{place}: its member cannot be read") from error


def build(kind: Any, values: dict[str, Any], place: str) -> Any:
    """A frozen value from its fields, each checked against the type that the class declares.

    Fields that a newer class has gained take their defaults; old names are those of `RENAMED`.
    """
    declared = {f.name: f.type for f in fields(kind)}
    values = {RENAMED.get((kind, name), name): value for name, value in values.items()}
    unknown = sorted(set(values) - set(declared))
    if unknown:
        raise Unsound(f"{place}: {unknown[0][:40]!r} is not known here")
    for name, value in values.items():
        if not fits(value, declared[name]):
            raise Unsound(f"{place}.{name} is not what it should be")
    try:
        built = kind(**values)
    except (TypeError, ValueError) as error:
        raise Unsound(f"{place}: {str(error).splitlines()[0][:140]}") from None
    check = _CHECKS.get(kind)
    if check is not None and not check(built):
        raise Unsound(f"{place}: its parts do not fit together")
    return built


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; shapes are checked one tensor at a time."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if hint is None or hint is Any:
        return value is None or hint is Any
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(fits(v, inner[1]) for v in value.values())
    if origin is list:
        return isinstance(value, list) and all(fits(v, inner[0]) for v in value)
    if origin is Literal:
        return value in inner
    if hint is int or hint is float:
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


# ---- what must fit together ----------------------------------------------------------------------


def _finite(*tensors: Tensor, lowest: float = -torch.inf) -> bool:
    """No NaN, no infinity, nothing below `lowest`; one pass, and NaN fails every comparison."""
    for tensor in tensors:
        if tensor.numel() > 0:
            low, high = (float(v) for v in tensor.aminmax())
            if not (low >= lowest and -torch.inf < low and high < torch.inf):
                return False
    return True


def _view(view: View) -> bool:
    size = (view.cameras.height, view.cameras.width)
    planes = (view.color_u8, view.depth, view.confidence_u8, view.kind)
    return (
        all(tuple(t.shape) == (n, *size) for t, n in zip(planes, (3, 1, 1, 1), strict=True))
        and view.cameras.batch_shape == view.given.batch_shape == ()
        and (view.given.height, view.given.width) == size
        and _finite(view.log_gain)
        and _finite(view.depth, lowest=0.0)
        and int(view.kind.max()) <= max(DepthKind)
        and view.step >= 0
    )


def _cloud(cloud: PointCloud) -> bool:
    columns = (cloud.colors, cloud.confidence, cloud.step, cloud.normals, cloud.radii)
    columns += () if cloud.source is None else (cloud.source,)
    return all(len(c) == len(cloud.points) for c in columns) and _finite(cloud.points)


def _clip(clip: Clip) -> bool:
    frames, _, height, width = clip.color_u8.shape
    layers = (clip.depth, clip.origin, clip.confidence_u8, clip.stereo_u8)
    return (
        all(tuple(t.shape) == (frames, 1, height, width) for t in layers)
        and len(clip.trajectory) == frames
        and len(clip.references) in (0, frames)
        and (frames == 0 or int(clip.origin.max()) <= max(Origin))
        and (clip.agreement is None or 0 <= clip.agreement <= 1)
        and (clip.agreement_map is None or len(clip.agreement_map) == len(clip.agreement_frames))
        and all(0 <= t < frames for t in clip.agreement_frames)
    )


def _scene(scene: Scene) -> bool:
    metres = scene.metres_per_unit
    return (
        _finite(scene.up)
        and float(scene.up.norm()) > 0
        and scene.unit > 0
        and (metres is None or metres > 0)
        and scene.revision >= 0
        and (
            scene.camera_fixed is None
            or scene.camera_fixed[0].shape == scene.camera_fixed[1].shape[1:]
        )
    )


def _registration(found: Registration) -> bool:
    n = len(found.agrees)
    return (
        found.given.batch_shape == found.corrected.batch_shape == (n,)
        and tuple(found.moved_px.shape) == (n,)
        and _finite(found.moved_px)
        and len(found.earlier) == max(found.revision - 1, 0)
        and all(len(c.batch_shape) == 1 and len(c) > 0 for c in found.earlier)
        and 0 < found.unit < torch.inf
    )


def _record(record: StepRecord) -> bool:
    return fits(record.details.get("registration", 0), int)


_CHECKS: dict[Any, Callable[[Any], bool]] = {
    Registration: _registration,
    StepRecord: _record,
    View: _view,
    PointCloud: _cloud,
    Clip: _clip,
    Scene: _scene,
}
