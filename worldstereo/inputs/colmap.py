"""COLMAP models, text and binary: cameras, poses of the pictures, sparse points.

Sizes are compared with the bytes that are there before they are believed; names of pictures must
lie inside the capture. Pixels count from the corner of the first pixel, as ours do.

Source: https://colmap.github.io/format.html
"""

import posixpath
import struct
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from worldstereo.errors import InputRefused
from worldstereo.inputs import masks, poses
from worldstereo.inputs.archive import Bundle, natural
from worldstereo.inputs.assemble import Shot, assemble, cloud_of
from worldstereo.inputs.capture import captured
from worldstereo.inputs.lens import MODELS, Lens, lens_of
from worldstereo.inputs.limits import Losses, refusal, shown
from worldstereo.inputs.surface import MAX_COORDINATE
from worldstereo.scene import Capture

_BINARY = tuple(MODELS)  # COLMAP numbers its models in this order
_AGAIN = "Export the model again"
MAX_MODELS = 24  # models of one capture that are looked at


class _Picture(NamedTuple):
    where: str
    quaternion: np.ndarray
    translation: np.ndarray
    camera: int
    name: str


def models(bundle: Bundle) -> list[tuple[str, str]]:
    """Folders that hold a model, each with its form, "bin" before "txt"; the shallowest first."""
    out = []
    for name in sorted(bundle.names, key=lambda n: (n.count("/"), natural(n))):
        folder, base = posixpath.split(name)
        suffix = base.lower()[-3:]
        if base.lower() not in ("images.bin", "images.txt"):
            continue
        if bundle.found(posixpath.join(folder, f"cameras.{suffix}")) is None:
            continue
        if suffix == "txt" and (folder, "bin") in out:
            continue
        if suffix == "bin" and (folder, "txt") in out:
            out.remove((folder, "txt"))
        out.append((folder, suffix))
    return out


def read_best(bundle: Bundle) -> Capture | None:
    """The model with most pictures that are there; None where there is no model.

    Several models of one capture have coordinates of their own and cannot be joined here.
    """
    found = models(bundle)
    if not found:
        return None
    if len(found) == 1:
        return read_colmap(bundle, *found[0])
    counts: list[int] = []
    for folder, suffix in found[:MAX_MODELS]:
        try:
            pictures = _form(bundle, folder, suffix).pictures(Losses("pictures"))
            there = [_located(bundle, folder, p, f"images.{suffix}") in bundle for p in pictures]
            counts.append(sum(there))
        except InputRefused:
            counts.append(-1)
    best = max(range(len(counts)), key=lambda i: counts[i])
    capture = read_colmap(bundle, *found[best])
    left = ", ".join(
        f"{shown(found[i][0] or '.', 32)} ({max(counts[i], 0)} pictures)"
        for i in range(len(counts))
        if i != best
    )
    said = (
        f"{len(found)} COLMAP models are in it; {shown(found[best][0] or '.', 32)} with "
        f"{counts[best]} pictures was taken, left aside: {left}."
    )
    return replace(capture, notices=(said, *capture.notices))


def _form(bundle: Bundle, folder: str, suffix: str) -> "_Binary | _Text":
    return _Binary(bundle, folder) if suffix == "bin" else _Text(bundle, folder)


def read_colmap(bundle: Bundle, folder: str, suffix: str) -> Capture:
    """The model in a folder of the bundle; `suffix` is "bin" or "txt"."""
    form, losses = _form(bundle, folder, suffix), Losses("pictures")
    cameras = form.cameras()
    pictures = form.pictures(losses)
    source = f"images.{suffix}"
    if not pictures:
        losses.settle(0)
        raise refusal(source, "holds 0 pictures", "A model with at least 1 is accepted")
    shots: list[Shot] = []
    names: set[str] = set()
    for p in pictures:
        with losses.row():
            shots.append(_shot(bundle, folder, source, p, cameras, names))
    losses.settle(len(shots))
    shots.sort(key=lambda shot: shot.image)
    points, colors, lost = form.points()
    assembled = assemble(source, bundle, masks.given(bundle, shots), losses)
    cloud = cloud_of(points, colors, assembled.origin)
    return captured(bundle, "photos", assembled, cloud=cloud, notices=lost)


def _shot(
    bundle: Bundle, folder: str, source: str, p: _Picture, cameras: dict[int, Lens], names: set[str]
) -> Shot:
    if p.camera not in cameras:
        raise refusal(source, f"{p.where} names camera {p.camera}, which is not there", _AGAIN)
    if p.name in names:
        raise refusal(source, f"{shown(p.name, 40)} is there twice", _AGAIN)
    names.add(p.name)
    where = f"{p.where} ({shown(p.name, 32)})"
    if not np.isfinite(p.translation).all() or not np.isfinite(p.quaternion).all():
        raise refusal(source, f"{where}: the pose is not finite", "Finite numbers are accepted")
    R = poses.quaternion(source, where, p.quaternion)
    c2w = poses.pose(source, where, poses.inverse(poses.rigid(R, p.translation)))
    return Shot(where, _located(bundle, folder, p, source), c2w, cameras[p.camera])


def points_beside(bundle: Bundle, base: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The sparse points of a model below `base`, for poses that come from elsewhere."""
    for inner in ("sparse/0", "sparse", ""):
        folder = posixpath.join(base, inner).rstrip("/")
        if posixpath.join(folder, "points3D.bin") in bundle:
            return _Binary(bundle, folder).points()[:2]
        if posixpath.join(folder, "points3D.txt") in bundle:
            return _Text(bundle, folder).points()[:2]
    return None


def _located(bundle: Bundle, folder: str, picture: _Picture, source: str) -> str:
    """The member of a picture: in `images/` beside the model or above it."""
    bases = [folder]
    while bases[-1]:
        bases.append(posixpath.dirname(bases[-1]))
    top = bundle.inside("", picture.name, source, picture.where)
    for base in bases:
        for inner in ("images", "", "image", "rgb", "input", "color"):
            candidate = posixpath.join(base, inner, picture.name.replace("\\", "/").lstrip("/"))
            member = bundle.found(posixpath.normpath(candidate))
            if member is not None:
                return member
    # Not where COLMAP wants it: wherever it is, or `assemble` says that it is missing.
    return top if top in bundle else posixpath.join(bases[-1], "images", top)


def _lens(source: str, where: str, model: str, w: int, h: int, values: np.ndarray) -> Lens:
    names = MODELS[model].split()
    if not np.isfinite(values).all():
        raise refusal(source, f"{where} holds {values[~np.isfinite(values)][0]}",
                      "Only finite numbers are accepted")  # fmt: skip
    given = dict(zip(names, values.tolist(), strict=True))
    if not (1 <= w <= 1 << 20 and 1 <= h <= 1 << 20):
        raise refusal(source, f"{where} is {w} x {h} px", "A size above 0 is accepted")
    fx, fy = given.get("fx", given.get("f", 0.0)), given.get("fy", given.get("f", 0.0))
    K = poses.intrinsics(source, where, fx, fy, given["cx"], given["cy"], w, h)
    worst = max((v for key, v in given.items() if key not in ["f", "fx", "fy", "cx", "cy"]),
                key=abs, default=0.0)  # fmt: skip
    if abs(worst) > 100:
        raise refusal(source, f"{where} has distortion {worst:.3g}", "Up to 100 is accepted")
    return lens_of(model, given, K, w, h)


def _member(bundle: Bundle, folder: str, name: str) -> str:
    path = posixpath.join(folder, name)
    return bundle.found(path) or path


class _Text:
    def __init__(self, bundle: Bundle, folder: str) -> None:
        self.bundle, self.folder = bundle, folder

    def _lines(self, name: str) -> list[tuple[int, str]]:
        """Numbered lines without comments; blank ones stay, for they may be an empty list."""
        data = self.bundle.read(_member(self.bundle, self.folder, name))
        text = data.decode("utf-8", errors="replace")
        return [(i, s) for i, s in enumerate(text.splitlines(), 1) if not s.startswith("#")]

    def cameras(self) -> dict[int, Lens]:
        source, out = "cameras.txt", {}
        lines = [(line, text) for line, text in self._lines(source) if text.strip()]
        _check_count(source, len(lines), "cameras", self.bundle.limits.images)
        for line, text in lines:
            words = text.split()
            if len(words) < 5 or words[1] not in MODELS:
                model = shown(words[1], 24) if len(words) > 1 else "none"
                raise refusal(source, f"line {line}: camera model {model}",
                              "COLMAP's models are accepted")  # fmt: skip
            want = len(MODELS[words[1]].split())
            values = _floats(source, line, [words[0], *words[2:]])
            if len(values) != 3 + want:
                raise refusal(source, f"line {line}: {len(values) - 3} parameters",
                              f"{words[1]} has {want}")  # fmt: skip
            ids = _ints(source, line, values[:3])
            if ids[0] in out:
                raise refusal(source, f"camera {ids[0]} is there twice", _AGAIN)
            out[ids[0]] = _lens(source, f"camera {ids[0]}", words[1], ids[1], ids[2], values[3:])
        return out

    def pictures(self, losses: Losses) -> list[_Picture]:
        """Lines of a picture, each followed by one of its 2D points; that one may be left away."""
        source, out = "images.txt", []
        lines = self._lines(source)
        at = count = 0
        while at < len(lines):
            line, text = lines[at]
            at += 1
            if not text.strip():
                continue
            count += 1
            _check_count(source, count, "pictures", self.bundle.limits.images)
            if at < len(lines) and _are_marks(lines[at][1]):
                at += 1
            with losses.row():
                out.append(self._picture(source, line, text))
        return out

    def _picture(self, source: str, line: int, text: str) -> _Picture:
        words = text.split(maxsplit=9)
        if len(words) != 10:
            raise refusal(
                source,
                f"line {line} holds {len(words)} entries",
                "id, quaternion, translation, camera and name are expected",
            )
        values = _floats(source, line, words[:9])
        ids = _ints(source, line, values[[0, 8]])
        return _Picture(f"picture {ids[0]}", values[1:5], values[5:8], ids[1], words[9].strip())

    def points(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        source = "points3D.txt"
        if _member(self.bundle, self.folder, source) not in self.bundle:
            return np.zeros((0, 3)), np.zeros((0, 3), np.uint8), ()
        rows, losses = [], Losses("points")
        for line, text in self._lines(source):
            words = text.split(maxsplit=8)
            if not words:
                continue
            with losses.row():
                if len(words) < 7:
                    raise refusal(source, f"line {line} holds {len(words)} entries",
                                  "id, x y z, r g b and error are expected")  # fmt: skip
                rows.append(_floats(source, line, words[1:7]))
        return _points(source, np.array(rows).reshape(-1, 6), losses)


class _Binary:
    def __init__(self, bundle: Bundle, folder: str) -> None:
        self.bundle, self.folder = bundle, folder

    def _open(self, name: str) -> "_Bytes":
        return _Bytes(name, self.bundle.read(_member(self.bundle, self.folder, name)))

    def cameras(self) -> dict[int, Lens]:
        file, out = self._open("cameras.bin"), {}
        n = file.count("cameras", 24)
        _check_count(file.name, n, "cameras", self.bundle.limits.images)
        for _ in range(n):
            key, model, w, h = file.take("<iiQQ")
            if not 0 <= model < len(_BINARY):
                raise refusal(file.name, f"camera {key} has model number {model}",
                              "COLMAP's models are accepted")  # fmt: skip
            name = _BINARY[model]
            values = np.array(file.take(f"<{len(MODELS[name].split())}d"))
            if key in out:
                raise refusal(file.name, f"camera {key} is there twice", _AGAIN)
            out[key] = _lens(file.name, f"camera {key}", name, w, h, values)
        file.end()
        return out

    def pictures(self, losses: Losses) -> list[_Picture]:
        file, out = self._open("images.bin"), []
        n = file.count("pictures", 73)
        _check_count(file.name, n, "pictures", self.bundle.limits.images)
        for _ in range(n):
            values = file.take("<i7di")
            name = file.text()
            (marks,) = file.take("<Q")
            file.skip(24 * marks, f"{marks} pixels of {shown(name, 24)}")
            out.append(
                _Picture(f"picture {values[0]}", np.array(values[1:5]), np.array(values[5:8]),
                         values[8], name)
            )  # fmt: skip
        file.end()
        return out

    def points(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        if _member(self.bundle, self.folder, "points3D.bin") not in self.bundle:
            return np.zeros((0, 3)), np.zeros((0, 3), np.uint8), ()
        file = self._open("points3D.bin")
        n = file.count("points", 51)
        _check_count(file.name, n, "points", self.bundle.limits.points)
        rows = np.empty((n, 6))
        for i in range(n):
            values = file.take("<Q3d3Bd")
            rows[i] = values[1:7]
            (track,) = file.take("<Q")
            file.skip(8 * track, f"{track} sightings of point {i}")
        file.end()
        return _points(file.name, rows, Losses("points"))


class _Bytes:
    """A cursor over a binary file that never believes a count it has no bytes for."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data, self.at = name, data, 0

    def take(self, form: str) -> tuple:
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise self._cut()
        self.at += size
        return struct.unpack_from(form, self.data, self.at - size)

    def count(self, what: str, least: int) -> int:
        (n,) = self.take("<Q")
        room = (len(self.data) - self.at) // least
        if n > room:
            raise refusal(self.name, f"declares {n} {what}, the file has room for {room}", _AGAIN)
        return n

    def skip(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise refusal(self.name, f"declares {what}, which run past the end", _AGAIN)
        self.at += size

    def text(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 1024)
        if end < 0:
            raise refusal(self.name, f"a name at byte {self.at} has no end", _AGAIN)
        name = self.data[self.at : end].decode("utf-8", errors="replace")
        self.at = end + 1
        return name

    def end(self) -> None:
        if self.at != len(self.data):
            raise refusal(self.name, f"{len(self.data) - self.at} bytes are left over", _AGAIN)

    def _cut(self) -> InputRefused:
        return refusal(
            self.name, f"ends after {len(self.data)} bytes, in the middle of a record", _AGAIN
        )


def _check_count(source: str, n: int, what: str, most: int) -> None:
    if n > most:
        raise refusal(source, f"{n} {what}", f"At most {most} are accepted")


def _are_marks(text: str) -> bool:
    """A line of 2D points: nothing, or numbers in threes (x, y and the point's number)."""
    words = text.split()
    if len(words) % 3:
        return False
    try:
        return all(np.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _points(
    source: str, rows: np.ndarray, losses: Losses
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The sparse points with their colours; a bad row leaves out one point."""
    far = np.abs(rows[:, :3])
    odd = ((rows[:, 3:] != np.round(rows[:, 3:])) | (rows[:, 3:] < 0) | (rows[:, 3:] > 255)).any(1)
    for bad, wrong, way_out in (
        (~np.isfinite(rows).all(axis=1), "is not finite", "Only finite coordinates are accepted"),
        (
            (far > MAX_COORDINATE).any(axis=1),
            "is too far away",
            f"Up to {MAX_COORDINATE:.0e} is accepted",
        ),
        (odd, "has a colour that is not three bytes", "Whole numbers from 0 to 255 are accepted"),
    ):
        if bad.any():
            line = refusal(source, f"point {int(bad.argmax())} {wrong}", way_out)
            losses.lost(line, int(bad.sum()))
    good = np.isfinite(rows).all(axis=1) & ~(far > MAX_COORDINATE).any(axis=1) & ~odd
    losses.settle(int(good.sum()))
    kept = rows[good]
    return kept[:, :3], kept[:, 3:].astype(np.uint8), losses.notices(len(kept))


def _floats(source: str, line: int, words: list[str]) -> np.ndarray:
    try:
        return np.array([float(w) for w in words])
    except ValueError:
        raise refusal(
            source, f'line {line}: "{shown(" ".join(words), 32)}" is not numbers', _AGAIN
        ) from None


def _ints(source: str, line: int, values: np.ndarray) -> list[int]:
    if not np.isfinite(values).all() or (values != np.round(values)).any():
        raise refusal(source, f"line {line}: an id or size is not a whole number", _AGAIN)
    return [int(v) for v in np.clip(values, -(2.0**53), 2.0**53)]
