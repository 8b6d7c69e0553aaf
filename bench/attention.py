"""Correspondence attention and its mask, beside what one would write instead.

Data: synthetic rooms (walls and boxes, 3 mm noise) sampled at random and stored in Morton order,
which is how surfaces arrive from a camera to within a block; `order=random` shows the worst case.
Pairs: all entries within the radius that gives a median of about 31 candidates a query, 64 at most.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Context, Row
from worldstereo.cameras import Cameras, look_at
from worldstereo.memory.attention import csr_attention, has_numba
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.memory.stereo._checks import check_view
from worldstereo.memory.stereo._matches import torch_matches
from worldstereo.render import RenderResult, render_points

CHANNELS, CAP = 128, 64
TORCH = "torch only"  # sampled_addmm + embedding_bag
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def rooms(n: int, seed: int) -> Tensor:
    """Points on four 5x4x3 rooms with boxes and balls, in random order."""
    layout, g = np.random.default_rng(12345), np.random.default_rng(seed)
    corners, edges_u, edges_v = [], [], []

    def box(p: np.ndarray, s: np.ndarray) -> None:
        x, y, z = np.diag(s)
        for corner, u, v in (
            (p, x, y), (p + z, x, y), (p, x, z), (p + y, x, z), (p, y, z), (p + x, y, z)
        ):  # fmt: skip
            corners.append(corner)
            edges_u.append(u)
            edges_v.append(v)

    for rx in (0.0, 5.0):
        for ry in (0.0, 4.0):
            origin = np.array([rx, ry, 0.0])
            box(origin, np.array([5.0, 4.0, 3.0]))
            for _ in range(10):
                place = origin + layout.uniform(0.1, 1, 3) * [3.5, 2.5, 0]
                box(place, layout.uniform(0.2, 1.2, 3))
    c, u, v = (np.array(a) for a in (corners, edges_u, edges_v))
    area = np.linalg.norm(np.cross(u, v), axis=1)
    face = g.choice(len(area), n, p=area / area.sum())
    points = c[face] + g.random((n, 1)) * u[face] + g.random((n, 1)) * v[face]
    points += g.normal(scale=0.003, size=points.shape)
    return torch.from_numpy(points.astype(np.float32))


def morton_order(points: Tensor) -> Tensor:
    cells = ((points - points.amin(0)) / 0.02).long().numpy().astype(np.uint64)
    code = np.zeros(len(points), np.uint64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return torch.from_numpy(np.argsort(code, kind="stable"))


class Problem:
    """Queries, a bank, and the pairs in the three forms that the candidates want."""

    def __init__(self, n: int, m: int, heads: int, shuffled: bool = False) -> None:
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

        g = torch.Generator().manual_seed(0)
        bank, asked = rooms(m, 11), rooms(n, 12)
        asked = asked[morton_order(asked)]
        if not shuffled:
            bank = bank[morton_order(bank)]
        self.n, self.m, self.heads = n, m, heads
        self.q, self.k = (torch.randn(x, CHANNELS, generator=g) for x in (n, m))
        self.v = torch.randn(m, CHANNELS, generator=g)
        distance, index = cKDTree(bank.numpy()).query(asked.numpy(), min(CAP, m), workers=2)
        close = distance <= np.median(distance[:, min(31, m - 1)])
        close[:, 0] = True
        self.index, self.close = torch.from_numpy(index), torch.from_numpy(close)
        counts = self.close.sum(1)
        self.offsets = F.pad(counts.cumsum(0), (1, 0))
        self.row = torch.arange(n).repeat_interleave(counts)
        self.column = self.index[self.close]
        self.scale = (CHANNELS // heads) ** -0.5

    def to(self, device: torch.device) -> "Problem":
        """The same problem with its tensors on a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    @property
    def pairs(self) -> int:
        return len(self.column)

    def ours(self, compiled: bool) -> tuple[Tensor, Tensor]:
        return csr_attention(
            self.q, self.k, self.v, self.offsets, self.column,
            num_heads=self.heads, per_head=True, compiled=compiled, checked=True,
        )  # fmt: skip

    def gather(self) -> tuple[Tensor, Tensor]:
        """The plain form: gather padded rows, einsum, softmax, einsum."""
        part = (self.n, -1, self.heads, CHANNELS // self.heads)
        k, v = self.k[self.index].view(part), self.v[self.index].view(part)
        q = self.q.view(self.n, self.heads, -1)
        score = torch.einsum("nhd,nkhd->nkh", q, k) * self.scale
        weight = score.masked_fill(~self.close[..., None], -torch.inf).softmax(dim=1)
        return torch.einsum("nkh,nkhd->nhd", weight, v).reshape(self.n, -1), weight

    def sparse(self) -> tuple[Tensor, Tensor]:
        """Edge list, torch.sparse softmax and product; one head."""
        score = (self.q[self.row] * self.k[self.column]).sum(-1) * self.scale
        indices = torch.stack([self.row, self.column])
        table = torch.sparse_coo_tensor(indices, score, (self.n, self.m), check_invariants=False)
        weight = torch.sparse.softmax(table, 1)
        return torch.sparse.mm(weight, self.v), weight

    def dense(self, rows: int) -> Tensor:
        """scaled_dot_product_attention with the mask, for the first `rows` queries."""
        outs = []
        for start in range(0, rows, 64):
            part = slice(start, min(rows, start + 64))
            index, close = self.index[part], self.close[part]
            mask = torch.zeros(len(index), self.m, dtype=torch.bool, device=index.device)
            mask.scatter_(1, torch.where(close, index, index[:, :1]), True)
            q, k, v = (
                x.view(1, len(x), self.heads, -1).transpose(1, 2)
                for x in (self.q[part], self.k, self.v)
            )
            outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return torch.cat(outs, dim=2)

    def reference(self) -> Tensor:
        """Softmax in float64, 512 queries at a time."""
        outs = []
        for rows in torch.arange(self.n).split(512):
            part = (len(rows), -1, self.heads, CHANNELS // self.heads)
            k, v = (x[self.index[rows]].double().view(part) for x in (self.k, self.v))
            q = self.q[rows].double().view(len(rows), self.heads, -1)
            score = torch.einsum("nhd,nkhd->nkh", q, k) * self.scale
            weight = score.masked_fill(~self.close[rows][..., None], -torch.inf).softmax(dim=1)
            outs.append(torch.einsum("nkh,nkhd->nhd", weight, v).reshape(len(rows), -1))
        return torch.cat(outs)


def contenders(p: Problem) -> dict[str, Callable[[], Any]]:
    """Who is measured on a problem, without the dense form."""
    found: dict[str, Callable[[], Any]] = {
        "gather + einsum": p.gather,
        TORCH: lambda: p.ours(False),
    }
    if has_numba():
        found["compiled"] = lambda: p.ours(True)
    if p.heads == 1:
        found["torch.sparse softmax"] = p.sparse
    return found


def attention(context: Context) -> list[Row]:
    """Attention over given pairs against gather + einsum, torch.sparse and dense SDPA."""
    rows = []
    n = 624 if context.quick else 6240
    sizes = [(5_000, 1)]
    if not context.quick:
        sizes = [(10_000, 1), (100_000, 1), (1_000_000, 1), (100_000, 8)]
    for m, heads in sizes:
        for shuffled in (False, True) if m == 100_000 else (False,):
            rows += _compare_attention(context, Problem(n, m, heads, shuffled), shuffled)
    return rows


def extra_memory(n: int, m: int, heads: int, shuffled: bool) -> dict[str, float]:
    """Candidate to multiples of the sparse weights; empty where this cannot be measured."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    command = [sys.executable, "-m", "bench._attention_peak", *map(str, (n, m, heads))]
    command.append("random" if shuffled else "Morton")
    run = subprocess.run(
        command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def _compare_attention(context: Context, p: Problem, shuffled: bool) -> list[Row]:
    part = max(64, min(p.n, int(6.4e7 // p.m) // 64 * 64))
    candidates = contenders(p)
    dense = "dense SDPA with mask"
    if not shuffled and p.m <= 100_000:
        candidates[dense] = lambda: p.dense(part)
    timing, reference = context.compare(candidates), p.reference()
    floors: dict[str, tuple[int, ...]] = {"compiled": (20, 25 if p.heads > 1 else 40)}
    floors[TORCH] = (8 if p.heads > 1 else 12,)
    extra_bytes = extra_memory(p.n, p.m, p.heads, shuffled)
    rows = []
    for name, t in timing.items():
        factor = p.n / part if name == dense else 1.0
        extra: dict[str, Any] = {"heads": p.heads, "order": "random" if shuffled else "Morton"}
        extra |= {"pairs": p.pairs, "against": "gather + einsum"}
        extra["ratio"] = timing["gather + einsum"].cpu_ms / (t.cpu_ms * factor)
        if name in floors and p.m == 100_000:
            extra |= dict(zip(("floor", "stretch"), floors[name], strict=False))
        if name != dense:
            result = candidates[name]()[0]
            extra["error"] = float((result.double() - reference).abs().max())
            if name in extra_bytes:
                extra["extra memory / sparse weights"] = round(extra_bytes[name], 2)
        else:
            extra["scaled from queries"] = part
            extra["compiled is faster by"] = t.cpu_ms * factor / timing["compiled"].cpu_ms
        title = f"attention, {p.n} queries, d={CHANNELS}, {p.heads} head(s), {extra['order']} order"
        rows.append(Row(title, name, p.m, t.cpu_ms * factor, t.wall_ms * factor, t.rounds, extra))
    return rows


def view(n_across: int, n_down: int) -> tuple[Cameras, Tensor, RenderResult]:
    """A camera in the rooms, one query per grid cell on the surface, and the occluder's render."""
    K = torch.tensor([[600.0, 0, 416], [0, 600, 240], [0, 0, 1]])
    eye = torch.tensor([1.2, 1.5, 1.5])
    forward = torch.tensor([np.cos(0.8), np.sin(0.8), -0.15], dtype=torch.float32)
    camera = Cameras(K, look_at(eye, eye + forward, torch.tensor([0.0, 0.0, 1.0])), 832, 480)
    shown = render_points(rooms(1_500_000, 77), None, camera, radius=2)
    pixels = camera.pixel_grid(n_down, n_across)
    depth = shown.depth[0, pixels[:, 1].long(), pixels[:, 0].long()]
    seen = depth > 0
    return camera, camera.unproject(pixels[seen], depth[seen]), shown


def mask(context: Context) -> list[Row]:
    """The correspondence mask of one view: project, bin, test depth and occlusion; then attend."""
    rows = []
    sizes = [10_000] if context.quick else [100_000, 1_000_000]
    camera, queries, shown = view(104, 60)
    for m in sizes:
        kinds = [(1, 8.0, False), (1, 8.0, True), (1, 32.0, False), (8, 8.0, False)]
        for many, window, shuffled in kinds if m == sizes[-1] else kinds[:1]:
            memory = _bank(m, many, window, shuffled)
            rows += _time_mask(context, memory, camera, queries, shown, shuffled)
    return rows


def _bank(m: int, many: int, window: float, shuffled: bool) -> SpatialStereoMemory:
    points = rooms(m, 11)
    if not shuffled:
        points = points[morton_order(points)]
    g = torch.Generator().manual_seed(1)
    memory = SpatialStereoMemory(m, 4, many, attention_window=window)
    for part in torch.arange(m).split(100_000):
        where = points[part, None] + 0.01 * torch.randn(len(part), many, 3, generator=g)
        memory.add_to_memory(torch.ones(len(part), 4), where, torch.ones(len(part), many))
    return memory


def _time_mask(
    context: Context,
    memory: SpatialStereoMemory,
    camera: Cameras,
    queries: Tensor,
    shown: RenderResult,
    shuffled: bool,
) -> list[Row]:
    where = queries[None]
    pairs = memory.correspondence_mask(where, camera, shown).shape[1]
    hidden = check_view(camera, shown, 1, memory.device)
    search = memory._search(where[0], camera, hidden, 0, False)
    candidates: dict[str, Callable[[], object]] = {
        "torch twin": lambda: torch_matches(memory._bank.entries(), search),
        "worldstereo": lambda: memory.correspondence_mask(where, camera, shown),
    }
    timing = context.compare(candidates)
    many, window = memory.num_correspondences, memory.attention_window
    order = "random" if shuffled else "Morton"
    title = f"correspondence mask, {len(queries)} queries, window {window:g} px, "
    title += f"{many} point(s) an entry, {order} order"
    rows = []
    for name, t in timing.items():
        extra: dict[str, Any] = {"pairs": pairs, "per query": round(pairs / len(queries), 1)}
        extra |= {"against": "torch twin", "ratio": timing["torch twin"].cpu_ms / t.cpu_ms}
        if memory.size == 1_000_000 and name == "worldstereo":
            extra |= {"target ms": 60, "stretch ms": 25}
        rows.append(Row(title, name, memory.size, t.cpu_ms, t.wall_ms, t.rounds, extra))
    return rows


BENCHMARKS: dict[str, Callable[[Context], list[Row]]] = {"attention": attention, "mask": mask}
