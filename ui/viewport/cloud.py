"""Draws the cloud as viser nodes and keeps them in step with the scene, sending only what is new.

viser cannot append to a node, so new points become new nodes: one per step and size class (viser
has one point size a node), or one per step as discs. Coordinates are float16 around the node's own
centre. A point that was merged a little stays where it is drawn until it is off by half its width;
a few that moved farther are drawn again, and their old places go when enough have gathered.

A cloud above the limit is drawn in part. Once the visitor's position is known, it is cut into
blocks, and each shows a share of its points that falls with its distance: near ones are whole.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import viser

from worldstereo.scene import PointCloud

from .colors import ColorMode, color_points

DrawMode = Literal["points", "surface"]
DRAW_MODES: tuple[DrawMode, ...] = get_args(DrawMode)

MAX_NODES = 250  # measured: frame time grows from here on
NODE_ROWS = 131_072  # a change re-sends one node, so nodes stay small
FIRST_POINTS = 120_000  # drawn until the page says what draws it: in software a frame costs 0.2 s
PREVIEW_POINTS = 2_000_000  # common viewers hold this many at 60 Hz on a laptop's GPU
SOFTWARE: dict[DrawMode, int] = {"points": 500_000, "surface": 60_000}
"""Shown where the page renders without a GPU: one to two frames a second. All 450,000 points of an
example as discs took eight seconds a frame, and the page stood still meanwhile."""
MAX_STALE = 0.02  # share of a node's points that may be left at an old place, drawn again nearby
WIDEST = 1.7  # of the width of a sample on a surface that faces the view
POINT_SCALE = 1.35  # of the pixel's width on the surface: closes the gaps
LOOSE = 1.3  # times wider are the points of a thinned cloud: they lie irregularly
DISC_SIGMA = 0.7  # of the sample spacing, in the surface
DISC_THICKNESS = 0.05  # of the sample spacing, across the surface
DISC_OPACITY = 0.98
BYTES = {"points": 9, "float32": 15, "surface": 32, "colors": 3}  # per point on the wire


@dataclass
class Node:
    """One viser node and the rows of the cloud it shows, ascending."""

    handle: Any
    rows: np.ndarray
    size: float
    """Width of a point in the viewport; 0 for discs."""
    stale: np.ndarray
    """True for rows that have moved since and are drawn again by another node."""
    block: int = 0
    """Of `Blocks`, to which all its rows belong."""


class CloudDrawing:
    """The cloud in the viewport. Every method runs in the viewport's thread.

    Attributes:
        bytes_sent: bytes of point data handed to viser so far, counted once however many look on.
        notice: why less than the whole cloud is shown, or "".
    """

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self._nodes: dict[str, Node] = {}
        self._serial = 0
        self._scale = 1.0
        self._eyes: np.ndarray | None = None
        self._thinned = False
        self._cloud: PointCloud | None = None
        self._drawn = np.zeros((0, 3), np.float32)  # viewport positions as drawn, per row
        self._chance = np.zeros(0, np.float32)  # a row is shown while its chance is below `share`
        self._widths = np.zeros(0, np.float32)  # spacing in the viewport, per row
        self._random = np.random.default_rng(7)
        self._shares = np.ones(1)  # of the points of each block that are shown
        self._block = np.zeros(0, np.uint8)  # of each row
        self._blocks: Blocks | None = None
        self._eye: np.ndarray | None = None  # viewport position from where it is looked at
        self._limits = dict.fromkeys(DRAW_MODES, FIRST_POINTS)
        self.mode: DrawMode = "points"
        self.color_mode: ColorMode = "photo"
        self.covered: np.ndarray | None = None
        """Colours of the coverage of each row, for the mode of that name."""
        self.bytes_sent = 0
        self.notice = ""

    @property
    def nodes(self) -> int:
        return len(self._nodes)

    @property
    def limit(self) -> int:
        """Points shown at most, as the cloud is drawn now."""
        return self._limits[self.mode]

    @property
    def shown(self) -> int:
        """Points in the viewport."""
        nodes = list(self._nodes.values())  # also asked by other threads
        return sum(int((~node.stale).sum()) for node in nodes)

    @property
    def nbytes(self) -> int:
        """Bytes of what is drawn: places, widths, chances, and the nodes as they are sent."""
        kept = self._drawn.nbytes + self._chance.nbytes + self._widths.nbytes + self._block.nbytes
        per_row = BYTES[self.mode] + 9  # the node's own row numbers, and which are stale
        return kept + per_row * sum(len(node.rows) for node in list(self._nodes.values()))

    # ---- what the viewport asks for ----------------------------------------------------------

    def draw(
        self,
        cloud: PointCloud,
        scale: float,
        eyes: np.ndarray | None = None,
        thinned: bool = False,
    ) -> None:
        """Show this cloud: keeps the nodes whose points are where they were, sends the rest.

        Args:
            eyes: (V, 3) camera positions of the views that `cloud.source` names.
            thinned: what the memory left of a full cloud, `Scene.stretch` above 1.
        """
        self._eyes, self._thinned = eyes, thinned
        stage = as_array(cloud.points) * np.float32(scale)
        widths = spacing(cloud, eyes) * np.float32(scale * (LOOSE if thinned else 1))
        if scale != self._scale:
            self._blocks = None  # its planes stand elsewhere
        before, blocks = self._shares, self._cut(stage)
        same = self._cloud is not None and blocks is self._blocks
        block = np.zeros(len(stage), np.uint8) if blocks is None else blocks.of(stage)
        shares = self._shares_of(block, blocks)
        if not same or (blocks is None and shares[0] != before[0]):
            match, moved = np.full(len(self._drawn), -1), np.zeros(len(self._drawn), bool)
        else:
            assert self._cloud is not None
            steps = as_array(self._cloud.step), as_array(cloud.step)
            match, moved = match_rows(self._drawn, stage, *steps, tolerance=widths / 2)
        still = (match >= 0) & ~moved
        fresh = np.ones(len(stage), bool)
        fresh[match[still]] = False
        drawn, chance = stage.copy(), self._random.random(len(stage), dtype=np.float32)
        drawn[match[still]] = self._drawn[still]
        chance[match[match >= 0]] = self._chance[match >= 0]
        self._cloud, self._scale, self._blocks = cloud, scale, blocks
        self._drawn, self._chance, self._widths = drawn, chance, widths
        self._block, self._shares = block, shares
        with self._server.atomic():
            self._carry_nodes(match, moved)
            if blocks is None:
                self._add(np.flatnonzero(fresh & (chance < shares[0])))
                self._merge_small()
            else:
                news = np.bincount(block[fresh], minlength=len(shares)) > 0
                self._send_blocks(news if not same else news | (shares != before))
        self.notice = self._thinning_notice()

    def look_from(self, eye: np.ndarray) -> bool:
        """The visitor rests at this viewport position (3,): near points come, far ones go.

        True where that changed what is shown.
        """
        self._eye = np.asarray(eye, np.float32)
        cloud = self._cloud
        if cloud is None or len(cloud) <= self.limit:
            return False
        if self._blocks is None:
            self.redraw()
            return True
        before, self._shares = self._shares, self._shares_of(self._block, self._blocks)
        changed = self._shares != before
        with self._server.atomic():
            self._send_blocks(changed)
        self.notice = self._thinning_notice()
        return bool(changed.any())

    @property
    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each row: its block, and the share of that block's points that is shown."""
        return self._block, self._shares[self._block]

    def show(self, visible: bool) -> None:
        """All of the cloud or nothing of it; it is kept up to date either way."""
        self._server.scene.add_frame("/cloud", show_axes=False, visible=visible)

    def draw_as(self, mode: DrawMode) -> None:
        if mode != self.mode:
            self.mode = mode
            self.redraw()

    def color_by(self, mode: ColorMode) -> None:
        """Another colouring: sends 3 bytes a point, positions stay (discs are sent whole)."""
        self.color_mode = mode
        if self._cloud is None:
            return
        with self._server.atomic():
            for name, node in list(self._nodes.items()):
                if node.size > 0:
                    node.handle.colors = self._colors(node.rows)
                    self.bytes_sent += BYTES["colors"] * len(node.rows)
                else:
                    self._put(name, node.rows, 0.0, node.block)

    def renderer(self, software: bool) -> None:
        """What draws the page, once it has said so; sends all again where that shows more."""
        count = 0 if self._cloud is None else len(self._cloud)
        before = share_shown(count, self.limit)
        self._limits = SOFTWARE if software else dict.fromkeys(DRAW_MODES, PREVIEW_POINTS)
        if share_shown(count, self.limit) != before:
            self.redraw()

    def redraw(self) -> None:
        """Send everything again."""
        cloud, scale, eyes = self._cloud, self._scale, self._eyes
        self.clear()
        if cloud is not None:
            self.draw(cloud, scale, eyes, self._thinned)

    def clear(self) -> None:
        with self._server.atomic():
            for node in self._nodes.values():
                node.handle.remove()
        self._nodes.clear()
        self._cloud = None
        self._blocks, self._shares = None, np.ones(1)
        self._block = np.zeros(0, np.uint8)
        self._drawn = np.zeros((0, 3), np.float32)
        self._chance = self._widths = np.zeros(0, np.float32)
        self.notice = ""

    # ---- nodes -------------------------------------------------------------------------------

    def _cut(self, stage: np.ndarray) -> "Blocks | None":
        """The blocks of a cloud that is shown in part; None where that is not needed or known."""
        if self._eye is None or len(stage) <= self.limit:
            return None
        held = self._blocks
        if held is not None and held.count / 2 < len(stage) < 2 * held.count:
            return held
        return Blocks(stage)

    def _shares_of(self, block: np.ndarray, blocks: "Blocks | None") -> np.ndarray:
        """Which share of each block's points is shown: all of them within the limit."""
        if blocks is None or self._eye is None:
            return np.array([share_shown(len(block), self.limit)])
        counts = np.bincount(block, minlength=blocks.number)
        return shares_by_distance(counts, blocks.distances(self._eye), self.limit)

    def _send_blocks(self, which: np.ndarray) -> None:
        """These blocks (a mask) anew, each as few nodes."""
        for name, node in list(self._nodes.items()):
            if which[node.block]:
                node.handle.remove()
                del self._nodes[name]
        shown = which[self._block] & (self._chance < self._shares[self._block])
        rows = np.flatnonzero(shown)
        rows = rows[np.argsort(self._block[rows], kind="stable")]
        ends = np.cumsum(np.bincount(self._block[rows], minlength=len(which)))
        for block, part in enumerate(np.split(rows, ends[:-1])):
            if len(part):
                self._add_part(f"/cloud/block_{block:03d}", part, block, per_octave=1)

    def _carry_nodes(self, match: np.ndarray, moved: np.ndarray) -> None:
        for name, node in list(self._nodes.items()):
            rows, stale = match[node.rows], node.stale | moved[node.rows]
            if (rows >= 0).all() and stale.mean() <= MAX_STALE:
                node.rows, node.stale = rows, stale  # perhaps at other rows, but still there
                continue
            rows = np.sort(rows[(rows >= 0) & ~stale])
            if len(rows) == 0:
                node.handle.remove()
                del self._nodes[name]
            else:
                self._put(name, rows, self._widened(node.size, rows), node.block)

    def _widened(self, size: float, rows: np.ndarray) -> float:
        """A node's point size, or what its rows need now: they grow when a cloud is thinned."""
        if size <= 0:
            return size
        needed = POINT_SCALE * float(np.median(self._wide(rows)))
        return needed if needed > 1.2 * size else size  # a class is as wide as that

    def _add(self, rows: np.ndarray) -> None:
        """New nodes for these rows: by step, then by size class, then in pieces."""
        if len(rows) == 0 or self._cloud is None:
            return
        steps = as_array(self._cloud.step)[rows]
        for step in np.unique(steps):
            self._add_part(f"/cloud/step_{int(step):04d}", rows[steps == step])

    def _add_part(self, name: str, rows: np.ndarray, block: int = 0, per_octave: int = 2) -> None:
        """New nodes for rows of one step or block."""
        parts = [(0.0, rows)]
        if self.mode != "surface":
            classes = size_classes(self._wide(rows), per_octave)
            parts = [(POINT_SCALE * size, rows[own]) for size, own in classes]
        for size, part in parts:
            for first in range(0, len(part), NODE_ROWS):
                self._put(
                    f"{name}_{self._serial:05d}", part[first : first + NODE_ROWS], size, block
                )
                self._serial += 1

    def _wide(self, rows: np.ndarray) -> np.ndarray:
        """Spacing of the rows as shown: fewer points must cover the same surface."""
        return self._widths[rows] / np.sqrt(self._shares[self._block[rows]]).astype(np.float32)

    def _put(self, name: str, rows: np.ndarray, size: float, block: int = 0) -> None:
        points, colors = self._drawn[rows], self._colors(rows)
        center = (points.min(0) + points.max(0)) / 2
        local = points - center
        position = (float(center[0]), float(center[1]), float(center[2]))
        if size <= 0:
            handle = self._put_discs(name, rows, local, colors, position)
        else:
            # float16 has 11 bits: where its steps are coarse against the point, send float32.
            coarse = float(np.abs(local).max()) * 2**-11 > 0.25 * size
            handle = self._server.scene.add_point_cloud(
                name,
                local if coarse else local.astype(np.float16),
                colors,
                point_size=size,
                point_shape="circle",
                point_shading="flat",
                precision="float32" if coarse else "float16",
                position=position,
            )
            self.bytes_sent += BYTES["float32" if coarse else "points"] * len(rows)
        self._nodes[name] = Node(handle, rows, size, np.zeros(len(rows), bool), block)

    def _put_discs(
        self,
        name: str,
        rows: np.ndarray,
        local: np.ndarray,
        colors: np.ndarray,
        position: tuple[float, float, float],
    ) -> Any:
        assert self._cloud is not None
        width = self._wide(rows)
        # Covariances travel in half precision: in units of the node's own median they are near 1.
        unit = float(np.median(width)) or 1.0
        handle = self._server.scene.add_gaussian_splats(
            name,
            centers=local / np.float32(unit),
            covariances=disc_covariances(as_array(self._cloud.normals)[rows], width / unit),
            rgbs=colors,
            opacities=np.full((len(rows), 1), DISC_OPACITY, np.float32),
            scale=unit,
            position=position,
        )
        self.bytes_sent += BYTES["surface"] * len(rows)
        return handle

    def _merge_small(self) -> None:
        """Past `MAX_NODES`, join the smallest nodes of equal point size until half are left."""
        if len(self._nodes) <= MAX_NODES:
            return
        groups: dict[float, list[str]] = {}
        for name, node in self._nodes.items():
            groups.setdefault(node.size, []).append(name)
        for size, names in groups.items():
            names.sort(key=lambda name: len(self._nodes[name].rows))
            while len(names) > 1:
                taken = [names.pop(0)]
                total = len(self._nodes[taken[0]].rows)
                while names and total + len(self._nodes[names[0]].rows) <= NODE_ROWS:
                    total += len(self._nodes[names[0]].rows)
                    taken.append(names.pop(0))
                if len(taken) == 1:
                    break  # the rest are larger still
                joined = [self._nodes.pop(name) for name in taken]
                rows = np.sort(np.concatenate([node.rows[~node.stale] for node in joined]))
                for node in joined:
                    node.handle.remove()
                self._put(taken[0], rows, size)

    def _colors(self, rows: np.ndarray) -> np.ndarray:
        assert self._cloud is not None
        return color_points(self._cloud, self.color_mode, rows, self.covered)

    def _thinning_notice(self) -> str:
        if self._cloud is None or self._shares.min() >= 1 or self.limit == FIRST_POINTS:
            return ""
        how = "evenly thinned" if self._blocks is None else "fewer the farther away"
        return (
            f"The viewport shows {self.shown:,} of {len(self._cloud):,} points, {how}; "
            f"generation and exports use all of them."
        )


class Blocks:
    """A cloud cut into parts of equal size by planes: a k-d tree of `DEPTH` levels.

    Planes stay when points come or go, so that most blocks keep their points.
    """

    DEPTH = 6
    number = 1 << DEPTH

    def __init__(self, points: np.ndarray) -> None:
        self.count = len(points)
        self._axis = np.zeros(self.number, np.int64)  # of the node's plane; the root is 1
        self._at = np.full(self.number, np.inf, np.float32)
        sample = points[:: max(1, len(points) // 200_000)]
        node = np.ones(len(sample), np.int64)
        for _ in range(self.DEPTH):
            for k in np.unique(node):
                mine = sample[node == k]
                self._axis[k] = np.ptp(mine, axis=0).argmax()
                self._at[k] = np.median(mine[:, self._axis[k]])
            node = self._below(sample, node)
        self._low = np.full((self.number, 3), np.inf, np.float32)
        self._high = np.full((self.number, 3), -np.inf, np.float32)
        np.minimum.at(self._low, node - self.number, sample)
        np.maximum.at(self._high, node - self.number, sample)

    def of(self, points: np.ndarray) -> np.ndarray:
        """The block of each point, (N,) uint8."""
        out = np.empty(len(points), np.uint8)
        for first in range(0, len(points), 1 << 20):
            part = points[first : first + (1 << 20)]
            node = np.ones(len(part), np.int64)
            for _ in range(self.DEPTH):
                node = self._below(part, node)
            out[first : first + len(part)] = node - self.number
        return out

    def distances(self, eye: np.ndarray) -> np.ndarray:
        """From a place to the nearest point of each block's box, (B,); inf for an empty one."""
        off = np.maximum(np.maximum(self._low - eye, eye - self._high), 0)
        return np.linalg.norm(off, axis=1)

    def _below(self, points: np.ndarray, node: np.ndarray) -> np.ndarray:
        here = points[np.arange(len(points)), self._axis[node]]
        return 2 * node + (here > self._at[node])


def shares_by_distance(counts: np.ndarray, distance: np.ndarray, limit: int) -> np.ndarray:
    """Share of each block's points shown, together at most `limit`: 1 near, less by the square of
    the distance farther off, in steps of a quarter, so that a small move changes few blocks.

    A quarter of the limit goes to all blocks alike: nothing disappears.
    """
    total = int(counts.sum())
    if total <= limit:
        return np.ones(len(counts))
    least = 0.25 * limit / total
    low, high = 1e-6, 1e6
    shares = np.full(len(counts), least)
    for _ in range(60):  # the largest reach that keeps within the limit
        reach = (low * high) ** 0.5
        wanted = np.minimum(1.0, np.square(reach / np.maximum(distance, 1e-9)))
        steps = 0.75 ** np.ceil(np.log(np.maximum(wanted, least)) / np.log(0.75) - 1e-9)
        if (counts * steps).sum() > 0.99 * limit:
            high = reach
        else:
            low, shares = reach, steps
    return shares


def as_array(tensor: Any) -> np.ndarray:
    """A tensor's numbers without a copy where it lies on the CPU."""
    return tensor.detach().cpu().numpy()


def share_shown(count: int, limit: int) -> float:
    """Share of the points within the limit, in steps of 0.8: growth rarely re-sends all."""
    if count <= limit:
        return 1.0
    return float(0.8 ** np.ceil(np.log(limit / count) / np.log(0.8) - 1e-9))


def spacing(cloud: PointCloud, eyes: np.ndarray | None = None) -> np.ndarray:
    """Width of a sample as drawn, scene units, (N,) float32; estimated where unknown.

    Samples at the edges of things and on surfaces seen from the side are far apart along the line
    of sight. Drawn so wide they would stick out as blobs, so a width is at most `WIDEST` times
    that of a surface which faces the view at this distance.
    """
    width = 2 * as_array(cloud.radii).astype(np.float32)
    points = as_array(cloud.points)
    unknown = ~(width > 0)
    if unknown.any():
        width[unknown] = typical_spacing(points[unknown])
    known = ~unknown
    if not known.any():
        return width
    if cloud.source is None or eyes is None or len(eyes) == 0:
        width[known] = np.minimum(width[known], 2 * WIDEST * np.median(width[known]))
        return width
    source = as_array(cloud.source)
    seen = known & (source >= 0) & (source < len(eyes))
    distance = np.linalg.norm(points - eyes[np.where(seen, source, 0)], axis=1)
    slope = width / np.maximum(distance, 1e-9)
    facing = (
        np.quantile(slope[seen][:: max(1, int(seen.sum()) // 20_000)], 0.15) if seen.any() else 0
    )
    return np.where(seen, np.minimum(width, WIDEST * facing * distance), width).astype(np.float32)


def typical_spacing(points: np.ndarray) -> float:
    """Median distance to the second nearest neighbour, from up to 2,000 samples."""
    if len(points) < 3:
        return 0.01
    from scipy.spatial import KDTree

    tree = KDTree(points, balanced_tree=False, compact_nodes=False)
    sample = points[:: max(1, len(points) // 2000)]
    distances = tree.query(sample, k=3)[0][:, 2]
    extent = float(np.ptp(points, axis=0).max())
    return float(max(np.median(distances), 1e-4 * extent, 1e-6))


def size_classes(width: np.ndarray, per_octave: int = 2) -> list[tuple[float, np.ndarray]]:
    """Widths in steps of an octave or a part of it: (class width, rows); rare classes join their
    nearest neighbour."""
    label = np.round(np.log2(width) * per_octave).astype(int)
    names, counts = np.unique(label, return_counts=True)
    enough = counts >= max(64, 0.01 * len(width))
    if not enough.all():
        kept = names[enough] if enough.any() else names[[counts.argmax()]]
        nearest = kept[np.abs(names[:, None] - kept[None]).argmin(axis=1)]
        label = nearest[np.searchsorted(names, label)]
        names = kept
    return [(float(2 ** (k / per_octave)), np.flatnonzero(label == k)) for k in names]


def disc_covariances(normals: np.ndarray, width: np.ndarray) -> np.ndarray:
    """(N, 3, 3) float32 of discs that lie in the surface; balls where the normal is unknown."""
    flat = (DISC_SIGMA * width) ** 2
    thin = (DISC_THICKNESS * width) ** 2
    n = normals.astype(np.float32)
    known = np.einsum("ij,ij->i", n, n) > 0.25
    flat = np.where(
        known, flat, (0.5 * width) ** 2
    )  # a ball of the same reach hides its neighbours
    outer = n[:, :, None] * n[:, None, :] * ((thin - flat) * known)[:, None, None]
    return (flat[:, None, None] * np.eye(3, dtype=np.float32) + outer).astype(np.float32)


def match_rows(
    old: np.ndarray,
    new: np.ndarray,
    old_step: np.ndarray,
    new_step: np.ndarray,
    tolerance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where each old row is among the new ones (-1: gone), and whether it moved past tolerance.

    Rows keep their order inside a step. Growth and merging keep the front rows of a step in place;
    a deletion leaves the others bit for bit, so they are found by their coordinates.

    Args:
        tolerance: per new row, how far a drawn point may be off before it is sent again.
    """
    match = np.full(len(old), -1, np.int64)
    moved = np.zeros(len(old), bool)
    if len(old) <= len(new) and np.array_equal(old_step, new_step[: len(old_step)]):
        groups = [(np.arange(len(old)), np.arange(len(old)))]
    else:
        order_old, order_new = (np.argsort(s, kind="stable") for s in (old_step, new_step))
        groups = []
        for step in np.unique(old_step):
            a = order_old[slice(*np.searchsorted(old_step[order_old], [step, step + 1]))]
            b = order_new[slice(*np.searchsorted(new_step[order_new], [step, step + 1]))]
            groups.append((a, b))
    for a, b in groups:
        if len(b) == 0:
            continue
        if len(a) <= len(b):
            target = b[: len(a)]
            far = np.abs(old[a] - new[target]).max(axis=1) > tolerance[target]
            if far.mean() < 0.25:
                match[a], moved[a] = target, far
                continue
        match[a] = find_rows(old[a], new[b], b)
    return match, moved


def find_rows(old: np.ndarray, new: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each old point the row whose coordinates are exactly the same, or -1."""
    keys_old, keys_new = point_keys(old), point_keys(new)
    order = np.argsort(keys_new, kind="stable")
    at = np.minimum(np.searchsorted(keys_new[order], keys_old), len(new) - 1)
    candidate = order[at]
    same = (new[candidate] == old).all(axis=1)
    found = np.where(same, rows[candidate], -1)
    # Two points at one place may ask for one row: the second is sent again.
    _, first = np.unique(found, return_index=True)
    unique = np.full(len(found), -1, np.int64)
    unique[first] = found[first]
    return unique


def point_keys(points: np.ndarray) -> np.ndarray:
    """A 64-bit key per point from the bits of its coordinates."""
    bits = np.ascontiguousarray(points, np.float32).view(np.uint32).astype(np.uint64)
    key = bits[:, 0] * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ bits[:, 1]) * np.uint64(0xC2B2AE3D27D4EB4F)
    key = (key ^ (key >> np.uint64(29)) ^ bits[:, 2]) * np.uint64(0x165667B19E3779F9)
    return key ^ (key >> np.uint64(32))
