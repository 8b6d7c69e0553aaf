"""Procedural scenes, ray-cast in torch: colour and depth of a few views each, with known cameras.

Five kinds: cluttered rooms, corridors, shelves full of small things, open ground with buildings
under a sky, close-ups of a heap on a table. Primitives are boxes, ellipsoids and cylinders with
any rotation; slats, table legs and wall pictures are thin boxes. Surfaces are photo crops,
material maps or almost flat colour (real rooms have plain walls). One ray a pixel, four more at
object borders, mip maps for the rest. Mirrors and glass are left out on purpose: their depth is
not where their picture is.

Scene axes: x right, y down, z forward. The same seed gives the same scenes.
"""

import io
import math
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

LEFT_OUT = ("room", "buddha", "lund")
"""Crops whose places are in the development captures; training never sees them."""

BOX, ELLIPSOID, CYLINDER = 0, 1, 2
TEXTURES, FLAT = 24, 5  # surfaces of a scene; the first FLAT are almost one colour
FAR = 1e9


def load_textures(folder: Path, held_out: bool) -> Tensor:
    """(N, 3, 256, 256) uint8; every 20th file, by the hash of its name, is for held-out scenes."""
    maps = []
    for name in ("crops256.tar", "ambientcg128.tar"):
        with tarfile.open(folder / name) as archive:
            for member in archive:
                if not member.name.endswith(".jpg") or member.name.split("/")[0] in LEFT_OUT:
                    continue
                if (zlib.crc32(member.name.encode()) % 20 == 0) != held_out:
                    continue
                file = archive.extractfile(member)
                assert file is not None
                picture = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                tiles = (256 // picture.shape[0], 256 // picture.shape[1], 1)
                maps.append(np.tile(picture, tiles).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(maps))


def noise_textures(count: int, seed: int) -> Tensor:
    """(count, 3, 256, 256) uint8 without any file: coloured noise of several octaves, some striped
    or tiled, so that surfaces have edges and detail at every scale."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        base, strength = torch.rand(3, 1, 1, generator=draw), 0.5
        picture = base.expand(3, 256, 256).clone()
        for cells in (4, 8, 16, 32, 64, 128):
            noise = torch.randn(1, 3, cells, cells, generator=draw)
            noise = noise.mean(1, keepdim=True) * 0.7 + noise * 0.3
            picture += strength * F.interpolate(noise, (256, 256), mode="bicubic")[0] * 0.3
            strength *= 0.4 + 0.5 * float(torch.rand(1, generator=draw))
        if i % 3 == 0:  # planks or tiles
            period = 2 ** int(torch.randint(3, 7, (1,), generator=draw))
            lines = torch.arange(256) % period < max(1, period // 12)
            grid = lines[:, None] | (lines if i % 2 else torch.zeros_like(lines))
            picture = torch.where(grid, picture * 0.5, picture)
        made.append((picture.clamp(0, 1) * 255).round().byte())
    return torch.stack(made)


def rotation(yaw: float, tilt: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Roll, then tilt, then yaw, in radians."""
    cy, sy, cx, sx = math.cos(yaw), math.sin(yaw), math.cos(tilt), math.sin(tilt)
    cz, sz = math.cos(roll), math.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_y @ about_x @ about_z).astype(np.float32)


@dataclass
class Layout:
    """What stands where, before it is shaded. Primitive 0 is the shell, seen from inside."""

    random: np.random.Generator
    centre: list = field(default_factory=list)
    half: list = field(default_factory=list)
    turn: list = field(default_factory=list)
    shape: list = field(default_factory=list)
    flat: list = field(default_factory=list)
    lamps: list = field(default_factory=list)
    lamp: list = field(default_factory=lambda: [0.0, -1.0, 0.0])
    focus: list = field(default_factory=lambda: [0.0, 0.0, 1.0])
    eye: list = field(default_factory=lambda: [0.0, 0.0, -1.0])
    sky: bool = False

    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        return float(self.random.uniform(low, high))

    def some(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high))

    def add(self, centre, half, yaw=0.0, tilt=0.0, shape=BOX, flat=None, roll=0.0) -> None:  # noqa: ANN001
        self.centre.append(centre)
        self.half.append(half)
        self.turn.append(rotation(yaw, tilt, roll))
        self.shape.append(shape)
        self.flat.append(flat)

    def clutter(self, n: int, xs, zs, floor: float, size: float, tilt: float = 0.0) -> None:  # noqa: ANN001
        """`n` things on the plane at height `floor`; every fifth is thin."""
        u = self.u
        for _ in range(n):
            shape = int(self.random.choice([BOX, BOX, BOX, ELLIPSOID, CYLINDER]))
            half = [u(0.25, 1) * size, u(0.25, 1.3) * size, u(0.25, 1) * size]
            if u() < 0.2:
                half[self.some(0, 3)] *= 0.08
            y = floor - half[1] * (1 if u() < 0.85 else u(1, 4))
            turns = {"yaw": u(0, 6.3), "tilt": u(-tilt, tilt), "roll": u(-tilt, tilt)}
            self.add([u(*xs), y, u(*zs)], half, shape=shape, **turns)

    def slats(self, n: int, centre, gap: float, height: float, thick: float, yaw: float) -> None:  # noqa: ANN001
        """A fence: thin structures make the hard holes."""
        for i in range(n):
            offset = rotation(yaw) @ np.array([(i - (n - 1) / 2) * gap, 0, 0], np.float32)
            place = [centre[0] + offset[0], centre[1], centre[2] + offset[2]]
            self.add(place, [thick, height, thick], yaw)

    def table(self, x: float, z: float, floor: float, a: float, b: float, height: float) -> None:
        self.add([x, floor - height, z], [a, 0.02, b])
        for i in (-1, 1):
            for j in (-1, 1):
                leg = [x + i * a * 0.9, floor - height / 2, z + j * b * 0.9]
                self.add(leg, [0.02, height / 2, 0.02])
        top = floor - height - 0.02
        spread = (x - a * 0.8, x + a * 0.8), (z - b * 0.8, z + b * 0.8)
        self.clutter(self.some(2, 6), *spread, top, 0.13)


def room(s: Layout) -> None:
    u = s.u
    X, Y, Z = u(1.6, 3.5), u(1.15, 1.6), u(1.6, 3.5)
    s.add([0, 0, 0], [X, Y, Z], flat=None if u() < 0.5 else True)
    s.lamp = [u(-X, X) * 0.5, -Y * 0.9, u(-Z, Z) * 0.5]
    if u() < 0.5:
        s.add([s.lamp[0], -Y, s.lamp[2]], [u(0.1, 0.5), 0.05, u(0.1, 0.5)], flat=True)
        s.lamps.append(1)
    for _ in range(s.some(1, 4)):  # pictures on the wall
        s.add([u(-X, X) * 0.9, u(-0.7, 0.1), Z], [u(0.2, 0.7), u(0.2, 0.6), 0.03], flat=False)
    s.clutter(s.some(3, 9), (-X * 0.9, X * 0.9), (-0.2 * Z, Z * 0.95), Y, u(0.3, 0.6))
    if u() < 0.6:
        s.table(u(-X, X) * 0.6, u(0, Z * 0.8), Y, u(0.4, 0.9), u(0.3, 0.6), u(0.6, 0.9))
    if u() < 0.35:
        place = [u(-X, X) * 0.5, Y - 0.5, u(0, Z * 0.7)]
        s.slats(s.some(4, 9), place, u(0.1, 0.25), u(0.3, 0.8), u(0.01, 0.025), u(-0.6, 0.6))
    s.focus = [u(-0.5, 0.5) * X, u(-0.3, 0.6), u(0.3, 0.9) * Z]
    s.eye = [u(-0.6, 0.6) * X, u(-0.4, 0.4), -u(0.2, 0.9) * Z]


def corridor(s: Layout) -> None:
    u = s.u
    X, Y, Z = u(0.8, 1.5), u(1.1, 1.5), u(4, 9)
    s.add([0, 0, 0], [X, Y, Z], flat=None if u() < 0.5 else True)
    s.lamp = [0, -Y * 0.9, u(-0.5, 0.5) * Z]
    for i in range(s.some(2, 6)):  # door frames, and a lamp above some
        z = -Z * 0.8 + i * Z * 0.35
        side = float(s.random.choice([-1, 1]))
        s.add([side * X, u(-0.1, 0.3), z], [u(0.03, 0.15), Y, u(0.05, 0.5)])
        if u() < 0.6:
            s.add([0, -Y, z], [u(0.1, 0.3), 0.04, u(0.2, 0.6)], flat=True)
            s.lamps.append(len(s.centre) - 1)
    s.clutter(s.some(2, 8), (-X * 0.9, X * 0.9), (-Z * 0.5, Z * 0.9), Y, u(0.2, 0.4))
    s.focus = [u(-0.7, 0.7) * X, u(-0.3, 0.4), u(-0.3, 0.8) * Z]
    s.eye = [u(-0.5, 0.5) * X, u(-0.3, 0.3), -u(0.6, 0.95) * Z]


def shelf(s: Layout) -> None:
    u = s.u
    W, H, D, z = u(0.5, 1.2), u(0.4, 0.9), u(0.12, 0.25), 1.2
    s.add([0, 0, 0], [3, 1.4, 2.2])
    s.lamp = [u(-1, 1), -1.2, 0]
    s.add([0, 0, z + D], [W, H, 0.015])
    rows = s.some(1, 4)
    boards = np.linspace(-H, H, rows + 1).tolist()
    for y in boards:
        s.add([0, y, z], [W, 0.015, D])
    for x in (-W, W):
        s.add([x, 0, z], [0.015, H, D])
    for y in boards[1:]:
        x = -W + 0.05
        while x < W - 0.08 and len(s.centre) < 48:
            w, h = u(0.015, 0.12), u(0.25, 0.47) * 2 * H / rows
            if u() < 0.85:
                shape = int(s.random.choice([BOX, BOX, BOX, BOX, CYLINDER, ELLIPSOID]))
                place = [x + w, y - 0.015 - h, z + u(-0.6, 0.4) * D]
                half, flat = [w, h, u(0.2, 0.7) * D], not u() < 0.8
                s.add(place, half, u(-0.3, 0.3), shape=shape, flat=flat, roll=u(-0.15, 0.15))
            x += 2 * w + u(0, 0.05)
    if u() < 0.4:
        front = [0, 0, z - D - u(0.02, 0.3)]
        s.slats(s.some(3, 8), front, u(0.06, 0.2), H, u(0.003, 0.01), 0)
    s.focus = [u(-0.5, 0.5) * W, u(-0.5, 0.5) * H, z]
    s.eye = [u(-0.6, 0.6) * W, u(-0.4, 0.4) * H, z - D - u(0.4, 1.6)]


def outdoors(s: Layout) -> None:
    u = s.u
    s.sky = True
    s.add([0, 0, 0], [40, 25, 40], shape=ELLIPSOID, flat=True)
    s.lamps, s.lamp = [0], [0, -1e3, 0]
    s.add([0, 2.0, 0], [60, 0.5, 60], flat=False)
    s.clutter(s.some(5, 14), (-6, 6), (-2, 12), 1.5, u(0.4, 1.2))
    for _ in range(s.some(1, 4)):
        s.add([u(-9, 9), -0.5, u(6, 16)], [u(1, 4), u(2, 4), u(1, 3)], u(0, 3))
    if u() < 0.5:
        place = [u(-3, 3), 0.7, u(0, 6)]
        s.slats(s.some(5, 12), place, u(0.2, 0.5), 0.8, u(0.02, 0.06), u(-1, 1))
    s.focus = [u(-3, 3), u(0, 1), u(2, 7)]
    s.eye = [u(-2, 2), u(-0.6, 0.8), -u(0.5, 5)]


def closeup(s: Layout) -> None:
    u = s.u
    s.add([0, 0, 0], [2.5, 1.5, 2.5])
    s.lamp = [u(-1, 1), -1.3, u(-1, 1)]
    s.add([0, 0.5, 0.6], [0.8, 0.02, 0.6], u(-0.5, 0.5))
    s.clutter(s.some(6, 20), (-0.5, 0.5), (0.25, 0.95), 0.48, u(0.05, 0.16), 0.4)
    s.focus = [u(-0.2, 0.2), u(0.25, 0.45), u(0.5, 0.7)]
    s.eye = [u(-0.6, 0.6), u(-0.5, 0.2), -u(-0.1, 0.6)]


KINDS = {room: 0.35, corridor: 0.12, shelf: 0.2, outdoors: 0.13, closeup: 0.2}


class Scene:
    """A layout with surfaces and light, ready to be ray-cast."""

    def __init__(
        self,
        random: np.random.Generator,
        bank: Tensor,
        kinds: dict[Callable[[Layout], None], float] = KINDS,
    ) -> None:
        kind = list(kinds)[int(random.choice(len(kinds), p=list(kinds.values())))]
        s = self.layout = Layout(random)
        kind(s)
        n, u = len(s.centre), s.u
        self.centre, self.half, self.turn = (
            torch.from_numpy(np.array(v, np.float32)) for v in (s.centre, s.half, s.turn)
        )
        self.shape = torch.tensor(s.shape)
        self.mips = _mips(_surfaces(s, bank))
        flat = np.array([f if f is not None else u() < 0.25 for f in s.flat])[:, None]
        flat = flat & (random.uniform(size=(n, 6)) < 0.85)
        same = random.uniform(size=(n, 1)) < 0.5  # one surface for all sides, or one per side

        def pick(low: int, high: int) -> np.ndarray:
            one, six = random.integers(low, high, (n, 1)), random.integers(low, high, (n, 6))
            return np.where(same, one, six)

        self.texture = torch.from_numpy(
            np.where(flat, pick(0, FLAT), pick(FLAT, TEXTURES))
        ).flatten()
        fitted = 0.5 / self.half.numpy().max(1, keepdims=True).clip(0.05, 2.5)
        scale = np.where(
            random.uniform(size=(n, 6)) < 0.5, fitted, random.uniform(0.3, 1.6, (n, 6))
        )
        scale = scale * random.uniform(0.6, 1.4, (n, 6))
        self.scale = torch.from_numpy(scale.astype(np.float32)).flatten()
        self.offset = torch.from_numpy(random.uniform(size=(n * 6, 2)).astype(np.float32))
        tint = random.uniform(0.75, 1.2, (n, 1, 1)) * random.uniform(0.9, 1.1, (n, 1, 3))
        self.tint = torch.from_numpy(np.repeat(tint, 6, 1).astype(np.float32)).reshape(-1, 3)
        shiny = (random.uniform(size=n) < 0.12) * random.uniform(0.1, 0.5, n)
        self.shine = torch.from_numpy(shiny.astype(np.float32))
        self.glow = torch.zeros(n)
        for i in s.lamps:
            self.glow[i] = u(0.8, 1.6)
        sun = random.normal(size=3) + [0, -1.2, -0.6]
        self.sun = torch.from_numpy((sun / np.linalg.norm(sun)).astype(np.float32))
        self.ambient, self.diffuse = u(0.35, 0.7), u(0.4, 0.9)
        self.lamp = torch.tensor(s.lamp, dtype=torch.float32)

    # ---- rays --------------------------------------------------------------------------------

    def hit(self, origin: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Depth along d, primitive, place on the unit shape, side (0..5), world normal."""
        n = len(d)
        local = torch.einsum("pji,pj->pi", self.turn, origin - self.centre) / self.half
        best, owner = torch.full((n,), FAR), torch.zeros(n, dtype=torch.long)
        for shape in (BOX, ELLIPSOID, CYLINDER):
            index = (self.shape == shape).nonzero()[:, 0]
            if len(index) == 0:
                continue
            axes = (self.turn[index] / self.half[index][:, None, :]).permute(0, 2, 1).reshape(-1, 3)
            along = (axes @ d.T).reshape(len(index), 3, n)
            inside = index == 0
            cast = _hit_boxes if shape == BOX else _hit_rounds
            t = cast(local[index], along, inside, shape)
            nearest, which = t.min(0)
            closer = nearest < best
            best = torch.where(closer, nearest, best)
            owner = torch.where(closer, index[which], owner)
        p = (
            local[owner]
            + best[:, None] * torch.einsum("nji,nj->ni", self.turn[owner], d) / self.half[owner]
        )
        return best, owner, p, *self._normal(p, owner)

    def _normal(self, p: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shape[owner]
        axis = p.abs().argmax(1)
        round_side = (shape == CYLINDER) & (axis != 1)
        axis = torch.where(round_side, torch.zeros_like(axis), axis)
        box = F.one_hot(axis, 3).float() * p.sign()
        upright = torch.tensor([1.0, 0.0, 1.0])
        curved = torch.where((shape == ELLIPSOID)[:, None], p, p * upright) / self.half[owner]
        is_round = (shape == ELLIPSOID) | ((shape == CYLINDER) & (p[:, 1].abs() < 0.999))
        normal = torch.where(is_round[:, None], F.normalize(curved, dim=-1), box)
        side = axis * 2 + (torch.gather(p, 1, axis[:, None])[:, 0] > 0).long()
        side = torch.where(shape == ELLIPSOID, torch.zeros_like(side), side)
        return side, torch.einsum("nij,nj->ni", self.turn[owner], normal)

    def shade(self, origin: Tensor, d: Tensor, hit: tuple, pixel: float) -> Tensor:
        """Colour (N, 3) in [0, 1]; `pixel` is the width of a pixel at depth 1."""
        t, owner, p, side, normal = hit
        toward = F.normalize(d, dim=-1)
        cosine = (normal * toward).sum(-1)
        color = self._textured(t, owner, p, side, cosine, pixel)
        place = origin + d * t[:, None]
        normal = torch.where((cosine > 0)[:, None], -normal, normal)
        to_lamp = self.lamp - place
        if self.layout.sky:
            light = (normal * self.sun).sum(-1).clamp(min=0)
        else:
            fall = 1 + 0.35 * (to_lamp**2).sum(-1)
            light = (normal * F.normalize(to_lamp, dim=-1)).sum(-1).clamp(min=0) * 2.2 / fall
        rim = ((1 - p.abs()) * self.half[owner]).sort(1)[0][:, 1]
        corner = 1 - 0.35 * torch.exp(-rim.clamp(min=0) / 0.25)  # contact darkening of the shell
        lit = (self.ambient + self.diffuse * light) * torch.where(owner == 0, corner, 1.0)
        half_way = F.normalize(F.normalize(to_lamp, dim=-1) - toward, dim=-1)
        shine = self.shine[owner] * (half_way * normal).sum(-1).clamp(min=0) ** 24
        glow = self.glow[owner]
        if self.layout.sky:  # brighter towards the horizon
            glow = torch.where(owner == 0, 0.7 + 0.4 * toward[:, 1].abs(), glow)
        glowing = color * 0.3 + 0.7 * glow[:, None]
        mixed = torch.where((glow > 0)[:, None], glowing, color * lit[:, None])
        return (mixed + shine[:, None]).clamp(0, 1)

    def _textured(self, t, owner, p, side, cosine, pixel: float) -> Tensor:  # noqa: ANN001
        """Trilinear look-up: a ray's footprint chooses the mip level."""
        half, shape = self.half[owner], self.shape[owner]
        q = p * half
        wrapped = torch.stack([torch.atan2(p[:, 0], p[:, 2]) * half[:, 0], q[:, 1]], -1)
        first = torch.where(side < 2, q[:, 2], q[:, 0])
        planar = torch.stack([first, torch.where(side // 2 == 1, q[:, 2], q[:, 1])], -1)
        curved = (shape == ELLIPSOID) | ((shape == CYLINDER) & (side // 2 != 1))
        uv = torch.where(curved[:, None], wrapped, planar)
        face = owner * 6 + side
        uv = uv * self.scale[face][:, None] + self.offset[face]
        uv = 1 - (uv % 2 - 1).abs()  # mirrored tiling has no seams
        foot = t * self.scale[face] * pixel / cosine.abs().clamp(min=0.12) * 256
        level = torch.log2(foot.clamp(min=1)).clamp(max=len(self.mips) - 1.01)
        color = torch.zeros(len(t), 3)
        for i, mip in enumerate(self.mips):
            share = (1 - (level - i).abs()).clamp(min=0)
            m = share > 0
            if m.any():
                found = _bilinear(mip, 256 >> i, self.texture[face[m]], uv[m])
                color[m] += found * share[m][:, None]
        return color * self.tint[face]

    def cast(self, origin: Tensor, d: Tensor, pixel: float, block: int = 4096) -> list[Tensor]:
        """Depth, face and colour of many rays."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for i in range(0, len(d), block):
            hit = self.hit(origin, d[i : i + block])
            color = self.shade(origin, d[i : i + block], hit, pixel)
            parts.append((hit[0], hit[1] * 6 + hit[3], color))
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    # ---- cameras and pictures ----------------------------------------------------------------

    def cameras(self, views: int, size: int) -> tuple[Tensor, float]:
        """Poses along a short walk with a drifting gaze, and the focal length in pixels."""
        s = self.layout
        u, focus, eye = s.u, np.array(s.focus), np.array(s.eye)
        distance = float(np.linalg.norm(focus - eye))
        focal = size * math.exp(u(math.log(0.75), math.log(2.4)))
        # The outer views are 10 to 65 % of the picture's width apart at the focus.
        span = u(0.1, 0.65) * size / focal * distance
        z = (focus - eye) / distance
        x = np.cross([0, 1, 0], z)
        x /= np.linalg.norm(x)
        y = np.cross(z, x)
        walk = s.random.normal(size=3) * [1, 0.3, 0.5]
        walk /= np.linalg.norm(walk)
        pan = s.random.normal(size=2) * [0.5, 0.25] * span
        poses = []
        for a in np.linspace(-0.5, 0.5, views) + s.random.normal(size=views) * 0.04:
            shake = s.random.normal(size=3) * 0.04 * span
            place = eye + (x * walk[0] + y * walk[1] + z * walk[2]) * span * a + shake
            gaze = focus + x * pan[0] * a * 2 + y * pan[1] * a * 2 - place
            gaze = gaze / np.linalg.norm(gaze)
            right = np.cross([math.sin(0.05 * u(-1, 1)), 1, 0], gaze)
            right /= np.linalg.norm(right)
            pose = np.eye(4, dtype=np.float32)
            pose[:3, :3] = np.stack([right, np.cross(gaze, right), gaze], 1)
            pose[:3, 3] = place
            poses.append(pose)
        return torch.from_numpy(np.stack(poses)), focal

    def render(self, views: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Colour (V, 3, S, S), depth (V, 1, S, S), poses, (fx, fy, cx, cy); None when blocked."""
        found = self._free_cameras(views, size)
        if found is None:
            return None
        poses, focal = found
        y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
        x, y = x.flatten(), y.flatten()

        def rays(x: Tensor, y: Tensor) -> Tensor:
            flat = [(x - size / 2) / focal, (y - size / 2) / focal, torch.ones_like(x)]
            return torch.stack(flat, -1)

        colors, depths = [], []
        for pose in poses:
            R, origin = pose[:3, :3], pose[:3, 3]
            depth, face, color = self.cast(origin, rays(x, y) @ R.T, 1 / focal)
            border = _borders(face.reshape(size, size)).flatten()
            if bool(border.any()):
                offsets = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))
                several = [
                    self.cast(origin, rays(x[border] + dx, y[border] + dy) @ R.T, 1 / focal)[2]
                    for dx, dy in offsets
                ]
                color[border] = torch.stack(several).mean(0)
            colors.append(color.reshape(size, size, 3).permute(2, 0, 1))
            depths.append(depth.reshape(1, size, size))
        if not all((depth > 0.02).all() for depth in depths):  # the camera left the room
            return None
        K = torch.tensor([focal, focal, size / 2, size / 2])
        return torch.stack(colors), torch.stack(depths).clamp(max=200.0), poses, K

    def _free_cameras(self, views: int, size: int) -> tuple[Tensor, float] | None:
        """Cameras that nothing stands directly in front of, after six tries."""
        for attempt in range(6):
            poses, focal = self.cameras(views, size)
            if attempt and attempt % 2 == 0:
                self.layout.eye = [e + self.layout.u(-0.3, 0.3) for e in self.layout.eye]
            g = (torch.arange(12) + 0.5) / 12 * size - size / 2
            grid = torch.stack([g[None].expand(12, 12), g[:, None].expand(12, 12)], -1) / focal
            d = F.pad(grid.reshape(-1, 2), (0, 1), value=1.0)
            some = [poses[v] for v in (0, views // 2, views - 1)]
            depth = [self.hit(pose[:3, 3], d @ pose[:3, :3].T)[0] for pose in some]
            clear = ((t > 0.25 * t.median()).float().mean() > 0.7 for t in depth)
            if all((t > 0.12).all() for t in depth) and all(clear):
                return poses, focal
        return None


def make_scenes(
    count: int,
    seed: int,
    bank: Tensor,
    views: int = 6,
    size: int = 160,
    kinds: dict[Callable[[Layout], None], float] = KINDS,
) -> dict[str, Tensor]:
    """`count` scenes as 8-bit colours and 16-bit depths."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    made: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while len(made) < count:
        rendered = Scene(random, bank, kinds).render(views, size)
        if rendered is not None:
            made.append(rendered)
    rgb, depth, poses, K = (torch.stack(column) for column in zip(*made, strict=True))
    return {"rgb": (rgb * 255).round().byte(), "dep": depth.half(), "M": poses, "K": K}


def _surfaces(s: Layout, bank: Tensor) -> Tensor:
    """The scene's textures (24, 3, 256, 256): the first are almost flat."""
    chosen = torch.from_numpy(s.random.integers(0, len(bank), TEXTURES))
    surfaces = bank[chosen].float() / 255
    base = torch.from_numpy(s.random.uniform(0.15, 0.95, (FLAT, 1, 1, 1)).astype(np.float32))
    hue = torch.from_numpy(s.random.normal(size=(FLAT, 3, 1, 1)).astype(np.float32)) * s.u(0, 0.12)
    coarse = torch.from_numpy(s.random.normal(size=(FLAT, 3, 4, 4)).astype(np.float32))
    stain = F.interpolate(coarse, (256, 256), mode="bicubic") * 0.02
    surfaces[:FLAT] = base + hue + stain + 0.02 * s.u() * torch.randn(FLAT, 3, 256, 256)
    if s.u() < 0.5:
        surfaces[FLAT : FLAT + 2] = (surfaces[FLAT : FLAT + 2] - 0.5) * 0.3 + 0.5
    return surfaces.clamp(0, 1)


def _mips(surfaces: Tensor) -> list[Tensor]:
    mips = [surfaces]
    for _ in range(6):
        mips.append(F.avg_pool2d(mips[-1], 2))
    return [mip.permute(0, 2, 3, 1).reshape(-1, 3).contiguous() for mip in mips]


def _bilinear(mip: Tensor, size: int, texture: Tensor, uv: Tensor) -> Tensor:
    c = (uv * size - 0.5).clamp(0, size - 1.001)
    corner = c.floor().long()
    fx, fy = (c - corner).split(1, dim=1)
    base = (texture * size + corner[:, 1]) * size + corner[:, 0]
    if size == 1:
        return mip[base]
    top = mip[base] * (1 - fx) + mip[base + 1] * fx
    return top * (1 - fy) + (mip[base + size] * (1 - fx) + mip[base + size + 1] * fx) * fy


def _borders(face: Tensor) -> Tensor:
    """Pixels whose 3x3 neighbourhood shows more than one face."""
    f = face[None, None].float()
    return (F.max_pool2d(f, 3, 1, 1) != -F.max_pool2d(-f, 3, 1, 1))[0, 0]


def _hit_boxes(local: Tensor, along: Tensor, inside: Tensor, shape: int) -> Tensor:
    del shape
    inverse = 1 / torch.where(along.abs() < 1e-7, torch.full_like(along, 1e-7), along)
    a, b = -local[..., None] * inverse, inverse.abs()
    preprocess_views, leave = (a - b).amax(1), (a + b).amin(1)
    t = torch.where(
        (preprocess_views < leave) & (preprocess_views > 1e-3),
        preprocess_views,
        torch.full_like(preprocess_views, FAR),
    )
    if inside.any():
        t[0] = leave[0]
    return t


def _hit_rounds(local: Tensor, along: Tensor, inside: Tensor, shape: int) -> Tensor:
    """Ellipsoids, and cylinders about y with flat caps."""
    m = torch.tensor([1.0, 1.0 if shape == ELLIPSOID else 0.0, 1.0])[None, :, None]
    a, b = (along * along * m).sum(1), (along * local[..., None] * m).sum(1)
    c = (local * local * m[..., 0]).sum(1, keepdim=True) - 1
    inner = b * b - a * c
    root = inner.clamp(min=0).sqrt()
    t = (-b - root) / a.clamp(min=1e-12)
    ok = (inner > 0) & (t > 1e-3)
    if shape == CYLINDER:
        ok &= (local[:, 1:2] + t * along[:, 1]).abs() <= 1
        safe = torch.where(
            along[:, 1].abs() < 1e-7, torch.full_like(along[:, 1], 1e-7), along[:, 1]
        )
        cap = (-along[:, 1].sign() - local[:, 1:2]) / safe
        x, z = local[:, 0:1] + cap * along[:, 0], local[:, 2:3] + cap * along[:, 2]
        on_cap = (x * x + z * z <= 1) & (cap > 1e-3)
        t = torch.where(on_cap & ((cap < t) | ~ok), cap, t)
        ok |= on_cap
    t = torch.where(ok, t, torch.full_like(t, FAR))
    if inside.any():
        t[0] = ((-b + root) / a)[0]
    return t
