"""The spatial-stereo memory against slow loops: who corresponds, who goes, what comes back."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import room, turned_cameras
from worldstereo.cameras import Cameras
from worldstereo.memory.attention import has_numba
from worldstereo.memory.stereo import Rejection, SpatialStereoMemory
from worldstereo.memory.stereo import _matches as matching
from worldstereo.render import RenderResult

D, S = 12, 3


def cloud(cameras: Cameras, n: int, seed: int, near: float = 0.0) -> Tensor:
    """World points in and around what the first camera sees, some of them behind it."""
    g = torch.Generator().manual_seed(seed)
    one = cameras[0] if cameras.batch_shape else cameras
    size = torch.tensor([one.width, one.height])
    pixels = (torch.rand(n, 2, generator=g) * 1.4 - 0.2) * size
    depth = torch.rand(n, generator=g) * 3 + near + 1
    depth[::11] *= -1
    return one.unproject(pixels, depth)


def filled(cameras: Cameras, m: int, seed: int = 0, **options) -> SpatialStereoMemory:
    """A memory of m entries whose correspondences scatter a little, with normals and levels."""
    g = torch.Generator().manual_seed(seed + 100)
    options = {"memory_size": m + 5, "feature_dim": D, "num_correspondences": S} | options
    many = options["num_correspondences"]
    memory = SpatialStereoMemory(**options)
    points = cloud(cameras, m, seed)[:, None] + 0.03 * torch.randn(m, many, 3, generator=g)
    normal = torch.nn.functional.normalize(torch.randn(m, 3, generator=g), dim=-1)
    normal[::3] = 0
    memory.add_to_memory(
        torch.randn(m, options["feature_dim"], generator=g),
        points,
        torch.rand(m, many, generator=g),
        metadata={"normal": normal, "level": torch.randint(-1, 7, (m,), generator=g), "frame": 3},
    )
    return memory


def occluders(cameras: Cameras, h: int, w: int, seed: int) -> RenderResult:
    g = torch.Generator().manual_seed(seed)
    shape = (len(cameras), 1, h, w)
    depth = 1 + 3 * torch.rand(shape, generator=g)
    mask = (torch.rand(shape, generator=g) < 0.7).float()
    return RenderResult(depth.expand(len(cameras), 3, h, w), depth, mask, mask.long() - 1)


# ---- who corresponds: the rules, as a slow loop over floats ------------------------------------


def slow_pairs(
    memory: SpatialStereoMemory, positions: Tensor, cameras: Cameras, occluder: RenderResult | None
) -> tuple[set, dict]:
    """Accepted pairs and the reason of each near miss, one pair and one test at a time."""
    accepted, misses = set(), {}
    points, sure = memory.correspondences.tolist(), memory.confidence.tolist()
    normals, levels = memory.metadata["normal"].tolist(), memory.metadata["level"].tolist()
    for b, one in enumerate(positions.tolist()):
        camera = cameras[b] if cameras.batch_shape else cameras
        for i, query in enumerate(one):
            qu, qv, qz, _ = see(camera, query)
            if not qz > 0:
                continue
            for slot in range(memory.size):
                best = 0
                for s in range(memory.num_correspondences):
                    stage = judge(
                        memory, camera, (qu, qv, qz), points[slot][s], sure[slot][s],
                        normals[slot], levels[slot], occluder, b,
                    )  # fmt: skip
                    best = max(best, stage)
                if best == 5:
                    accepted.add((b, i, slot))
                elif best > 0:
                    misses[(b, i, slot)] = best
    return accepted, misses


def see(camera: Cameras, point: list[float]) -> tuple[float, float, float, list[float]]:
    pose, K = camera.c2w.double().tolist(), camera.K.double().tolist()
    moved = [point[a] - pose[a][3] for a in range(3)]
    x, y, z = (sum(pose[a][c] * moved[a] for a in range(3)) for c in range(3))
    if z <= 0:
        return math.nan, math.nan, z, [x, y, z]
    return K[0][0] * x / z + K[0][2], K[1][1] * y / z + K[1][2], z, [x, y, z]


def judge(memory, camera, query, point, sure, normal, level, occluder, b) -> int:
    """5 accepted, 1 to 4 the first test that fails, 0 not even near."""
    qu, qv, qz = query
    u, v, z, ray = see(camera, point)
    if not z > 0:
        return 0
    slack = 1 + (1 - sure) / 2
    half = memory.attention_window / 2 * slack * min(1 + max(level, 0) / 4, 2)
    wide, tall, share = half, half, 0.05 * slack
    if any(normal):
        pose = camera.c2w.double().tolist()
        n = [sum(pose[a][c] * normal[a] for a in range(3)) for c in range(3)]
        length = math.hypot(*ray)
        r = [x / length for x in ray]
        cosine = sum(a * c for a, c in zip(n, r, strict=True))
        extent = []
        for axis in (0, 1):
            lean = (n[axis] - r[axis] * cosine) / math.sqrt(1 - r[axis] ** 2)
            extent.append(max(half * max(math.sqrt(1 - lean**2), 0.35), min(half, 1)))
        wide, tall = extent
        focal = float((camera.K[0, 0].double() + camera.K[1, 1].double()) / 2)
        share += min(half / focal * math.sqrt(1 - cosine**2) / max(abs(cosine), 1e-6), 0.1)
    du, dv = abs(u - qu), abs(v - qv)
    if du > 2 * wide or dv > 2 * tall:
        return 0
    if sure < memory.correspondence_threshold:
        return Rejection.CONFIDENCE
    if du > wide or dv > tall:
        return Rejection.WINDOW
    if abs(z - qz) > qz * share:
        return Rejection.DEPTH
    if occluder is not None:
        h, w = occluder.depth.shape[-2:]
        column, row = math.floor(u * w / camera.width), math.floor(v * h / camera.height)
        if 0 <= column < w and 0 <= row < h and occluder.mask[b, 0, row, column] > 0:
            front = float(occluder.depth[b, 0, row, column].double())
            if z > front * (1 + share):
                return Rejection.OCCLUDED
    return 5


def as_set(triples: Tensor) -> set:
    return {tuple(t) for t in triples.T.tolist()}


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 999),
    window=st.sampled_from([1, 5, 16, 200]),
    threshold=st.sampled_from([0.0, 0.3, 0.7]),
    hide=st.booleans(),
)
def test_the_mask_is_that_of_a_slow_loop(seed, window, threshold, hide):
    cameras = turned_cameras(2)
    options = {"attention_window": window, "correspondence_threshold": threshold}
    memory = filled(cameras, 23, seed, **options)
    positions = torch.stack([cloud(cameras, 11, seed + 1), cloud(cameras, 11, seed + 2)])
    positions[:, ::2] = memory.correspondences[:6, 0] + 0.01  # queries near entries
    occluder = occluders(cameras, 13, 17, seed) if hide else None
    accepted, misses = slow_pairs(memory, positions, cameras, occluder)
    indices = memory.correspondence_mask(positions, cameras, occluder)
    assert as_set(indices) == accepted
    assert indices.T.tolist() == sorted(indices.T.tolist())
    with_reasons = memory.correspondence_mask(positions, cameras, occluder, reasons=True)
    assert torch.equal(with_reasons.indices, indices)
    found = dict(
        zip(map(tuple, with_reasons.misses.T.tolist()), with_reasons.codes.tolist(), strict=True)
    )
    assert found == misses


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
@pytest.mark.parametrize("misses", [False, True])
@pytest.mark.parametrize("m", [1, 63, 64, 65, 997])
def test_compiled_and_torch_searches_give_the_same_pairs(m, misses, monkeypatch):
    cameras = turned_cameras(1)
    memory = filled(cameras, m, 5, attention_window=7)
    occluder = occluders(cameras, 29, 37, 3)
    positions = cloud(cameras, 211, 6)[None]
    compiled = memory.correspondence_mask(positions, cameras, occluder, reasons=misses)
    monkeypatch.setattr(matching, "has_numba", lambda: False)
    monkeypatch.setattr(matching, "EXPANDED", 512)  # several pieces
    plain = memory.correspondence_mask(positions, cameras, occluder, reasons=misses)
    for a, b in zip(compiled, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_blocks_that_a_surface_hides_are_skipped_without_losing_a_pair(monkeypatch):
    """Three walls in runs of 64 neighbours; the queries see the first, the last, and past both."""
    K = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 64, 64)
    at = torch.arange(64)
    x, y = (at % 8 + 0.5) / 8, (at // 8 + 0.5) / 8  # a block of the wall is 8 by 8 entries
    corner = torch.cartesian_prod(torch.arange(6), torch.arange(6)) / 6.0 - 0.5
    flat = torch.stack([x, y], dim=-1)[None] / 6 + corner[:, None]
    walls = [torch.cat([flat * z, torch.full((36, 64, 1), z)], dim=-1) for z in (2.0, 2.09, 4.0)]
    points = torch.cat(walls).reshape(-1, 1, 3)
    memory = SpatialStereoMemory(len(points), 4, 1, attention_window=3)
    memory.add_to_memory(torch.zeros(len(points), 4), points, torch.ones(len(points), 1))
    front, back = points[::7, 0], points[2 * 36 * 64 :: 5, 0]
    seen = torch.cat([front[front[:, 0] < -0.2], back[back[:, 0] > 0.4], points[:3, 0] * 1.3])
    compiled = memory.correspondence_mask(seen[None], camera)
    monkeypatch.setattr(matching, "has_numba", lambda: False)
    plain = memory.correspondence_mask(seen[None], camera)
    assert torch.equal(compiled, plain)
    depths = points[:, 0, 2][plain[2]].unique()
    torch.testing.assert_close(depths, torch.tensor([2.0, 2.09, 4.0]))


def test_window_and_depth_reach_exactly_as_far_as_promised():
    """Confidence 1, no normal, no level: half the window each way and 5 % in depth."""
    K = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 64, 64)
    memory = SpatialStereoMemory(16, 4, 1, attention_window=8)
    steps = torch.tensor([0.0, 3.9, 4.0, 4.1, -4.0, -4.1])  # pixels; 1 px is 1/64 at depth 1
    points = torch.stack([steps / 64, torch.zeros(6), torch.ones(6)], dim=-1)
    depths = torch.tensor([0.94, 0.96, 1.04, 1.06])
    along = torch.stack([torch.zeros(4), torch.zeros(4), depths], dim=-1)
    points = torch.cat([points, along])[:, None]
    memory.add_to_memory(torch.zeros(10, 4), points, torch.ones(10, 1))
    query = torch.tensor([[[0.0, 0.0, 1.0]]])
    result = memory.correspondence_mask(query, camera, reasons=True)
    assert result.indices[2].tolist() == [0, 1, 2, 4, 7, 8]
    assert dict(zip(result.misses[2].tolist(), result.codes.tolist(), strict=True)) == {
        3: Rejection.WINDOW,
        5: Rejection.WINDOW,
        6: Rejection.DEPTH,
        9: Rejection.DEPTH,
    }


def test_the_window_grows_with_doubt_and_level_and_shrinks_with_tilt():
    K = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 64, 64)
    query = torch.tensor([[[0.0, 0.0, 1.0]]])

    def reached(offset: float, sure: float = 1.0, **metadata) -> bool:
        memory = SpatialStereoMemory(4, 4, 1, attention_window=8, correspondence_threshold=0)
        point = torch.tensor([[[offset / 64, 0.0, 1.0]]])
        memory.add_to_memory(torch.ones(1, 4), point, torch.full((1, 1), sure), metadata)
        return memory.correspondence_mask(query, camera).shape[1] == 1

    assert not reached(5) and reached(5, sure=0.2)
    assert not reached(5, level=0) and reached(5, level=2)
    assert reached(3) and not reached(3, normal=torch.tensor([[0.9, 0.0, -0.436]]))
    assert reached(3, normal=torch.tensor([[0.0, 0.0, -1.0]]))


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e6])
def test_the_mask_does_not_know_the_unit_of_length(scale):
    cameras = turned_cameras(1)
    memory, positions = filled(cameras, 101, 8), cloud(cameras, 53, 8)[None]
    expected = memory.correspondence_mask(positions, cameras)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] *= scale
    scaled = Cameras(cameras.K, c2w, cameras.width, cameras.height)
    other = filled(cameras, 101, 8)
    other._bank.write(torch.arange(101), points=other.correspondences * scale)
    found = other.correspondence_mask(positions * scale, scaled)
    different = as_set(found) ^ as_set(expected)
    assert len(different) <= 0.01 * len(as_set(expected))  # float32 coordinates round at borders


# ---- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_the_exact_masked_softmax(heads, masked):
    cameras = turned_cameras(2)
    memory = filled(cameras, 43, 1, num_heads=heads, attention_window=9)
    positions = torch.stack([cloud(cameras, 17, 1), cloud(cameras, 17, 2)])
    q = torch.randn(2, 17, D, generator=torch.Generator().manual_seed(4))
    output, weights = memory.constrained_attention(
        q, positions, cameras, use_correspondence_mask=masked
    )
    mask = torch.zeros(2, 17, memory.memory_size, dtype=torch.bool)
    if masked:
        mask[tuple(memory.correspondence_mask(positions, cameras))] = True
    else:
        mask[:, :, : memory.size] = True
    k = torch.zeros(memory.memory_size, D, dtype=torch.float64)
    k[: memory.size] = memory.features.double()
    outs, each = [], []
    for h in range(heads):
        part = slice(h * D // heads, (h + 1) * D // heads)
        score = q[..., part].double() @ k[:, part].T / math.sqrt(D // heads)
        w = score.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num()
        outs.append(w @ k[:, part])
        each.append(w)
    assert (output.double() - torch.cat(outs, -1)).abs().max() < 2e-6
    assert (weights.double() - torch.stack(each).mean(0)).abs().max() < 2e-6
    assert mask.any(-1).any() and (weights[~mask] == 0).all()
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, mask.any(-1).float())
    assert (output[~mask.any(-1)] == 0).all()

    again, (indices, values) = memory.constrained_attention(
        q, positions, cameras, use_correspondence_mask=masked, return_weights="sparse"
    )
    assert torch.equal(again, output) and indices.dtype == torch.int64
    dense = torch.sparse_coo_tensor(
        indices, values, (2, 17, memory.memory_size), check_invariants=True
    ).to_dense()
    assert torch.equal(dense, weights)


def test_one_camera_serves_the_batch():
    cameras = turned_cameras(1)
    memory, positions = filled(cameras, 31), cloud(cameras, 14, 0).reshape(2, 7, 3)
    q = torch.randn(2, 7, D)
    for single in (cameras[0], cameras):
        output, _ = memory.constrained_attention(q, positions, single)
        for b in range(2):
            alone, _ = memory.constrained_attention(q[b : b + 1], positions[b : b + 1], cameras[0])
            assert torch.equal(output[b : b + 1], alone)


def test_gradients_reach_the_queries_and_nothing_else():
    cameras = turned_cameras(1)
    memory, positions = filled(cameras, 31, attention_window=16), cloud(cameras, 9, 0)[None]
    q = torch.randn(1, 9, D, requires_grad=True)
    output, weights = memory.constrained_attention(q, positions, cameras)
    (output.sum() + (weights**2).sum()).backward()
    assert q.grad is not None and q.grad.abs().sum() > 0
    assert list(memory.parameters()) == []


def test_an_empty_memory_attends_and_retrieves_nothing():
    cameras = turned_cameras(1)
    memory, positions = SpatialStereoMemory(7, D, S), cloud(cameras, 5, 0)[None]
    for masked in (True, False):
        output, weights = memory.constrained_attention(
            torch.ones(1, 5, D), positions, cameras, use_correspondence_mask=masked
        )
        assert (output == 0).all() and weights.shape == (1, 5, 7) and (weights == 0).all()
    features, indices = memory.retrieve(positions, cameras, top_k=2)
    assert (features == 0).all() and (indices == -1).all() and memory.hit_rate == 0
    assert memory.correspondence_mask(positions, cameras).shape == (3, 0)
    assert memory.refine(torch.ones(5, D), positions[0], cameras[0], torch.ones(5))[:2] == (0, 0)
    assert memory.importance.shape == (0,) and not memory.is_full


def test_degenerate_geometry_is_survived():
    """All points equal, a camera inside a point, no queries, an empty batch."""
    cameras = turned_cameras(1)
    memory = SpatialStereoMemory(300, D, 1, correspondence_threshold=0)
    inside = cameras.position.expand(300, 3)[:, None]
    memory.add_to_memory(torch.ones(300, D), inside, torch.ones(300, 1))
    query = cloud(cameras, 3, 1)[None]
    assert memory.correspondence_mask(query, cameras).shape == (3, 0)
    assert memory.correspondence_mask(cameras.position[None], cameras).shape == (3, 0)
    same = cloud(cameras, 2, 1)[1]
    memory.add_to_memory(torch.ones(300, D), same.expand(300, 1, 3), torch.ones(300, 1))
    assert memory.correspondence_mask(same[None, None], cameras).shape == (3, 300)
    assert memory.retrieve(same[None, None], cameras, 4)[1].tolist() == [[[0, 1, 2, 3]]]
    output, weights = memory.constrained_attention(torch.ones(1, 0, D), query[:, :0], cameras)
    assert output.shape == (1, 0, D) and weights.shape == (1, 0, 300)
    output, weights = memory.constrained_attention(torch.ones(0, 3, D), query[:0], cameras[0])
    assert output.shape == (0, 3, D) and weights.shape == (0, 3, 300)


# ---- who goes ----------------------------------------------------------------------------------


class Ledger:
    """The replacement rules on a plain list of (slot, inserted, used, confidence, attention)."""

    def __init__(self, capacity: int, strategy: str) -> None:
        self.capacity, self.strategy = capacity, strategy
        self.rows: dict[int, dict] = {}
        self.clock = self.inserted = 0

    def worth(self, row: dict) -> tuple:
        if self.strategy == "fifo":
            return (row["inserted"],)
        if self.strategy == "lru":
            return (row["used"], row["inserted"])
        recency = 2 ** (-(self.clock - row["used"]) / 256)
        return (round(row["sure"] * (1 + row["got"]) * recency, 6), row["inserted"])

    def add(self, sure: list[float]) -> list[int]:
        dropped = max(0, len(sure) - self.capacity)
        victims = sorted(self.rows, key=lambda s: self.worth(self.rows[s]))
        free = [s for s in range(self.capacity) if s not in self.rows]
        slots = (free + victims)[: len(sure) - dropped]
        self.clock += 1
        for slot, value, offset in zip(
            slots, sure[dropped:], range(dropped, len(sure)), strict=True
        ):
            self.rows[slot] = {
                "inserted": self.inserted + offset, "used": self.clock, "sure": value, "got": 0.0
            }  # fmt: skip
        self.inserted += len(sure)
        return [-1] * dropped + slots

    def use(self, got: dict[int, float]) -> None:
        self.clock += 1
        for slot, weight in got.items():
            self.rows[slot]["used"] = self.clock
            self.rows[slot]["got"] += weight


@pytest.mark.parametrize("strategy", ["fifo", "lru", "importance_based"])
@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 16), min_size=3, max_size=7), seed=st.integers(0, 99))
def test_replacement_follows_the_ledger(strategy, sizes, seed):
    g = torch.Generator().manual_seed(seed)
    cameras = turned_cameras(1)
    memory = SpatialStereoMemory(11, D, 1, update_strategy=strategy, correspondence_threshold=0)
    ledger, points = Ledger(11, strategy), cloud(cameras, 200, seed)
    for n in sizes:
        sure = torch.randint(1, 4, (n, 1), generator=g) / 4  # coarse: ties happen
        start = int(torch.randint(0, 180, (1,), generator=g))
        slots = memory.add_to_memory(
            torch.randn(n, D, generator=g), points[start : start + n, None], sure
        )
        assert slots.tolist() == (ledger.add(sure[:, 0].tolist()) if n else [])
        where = points[start : start + 3][None]
        if n % 2:
            q = torch.randn(1, 3, D, generator=g)
            _, weights = memory.constrained_attention(q, where, cameras)
            taken = as_set(memory.correspondence_mask(where, cameras))
            ledger.use({s: float(weights[0, :, s].sum()) for _, _, s in taken})
        elif memory.size:
            _, indices = memory.retrieve(where, top_k=2)
            ledger.use({s: 0.0 for s in indices.flatten().tolist() if s >= 0})
    assert memory.size == len(ledger.rows)


def test_more_than_fits_keeps_the_last():
    memory = SpatialStereoMemory(5, D, 1)
    features = torch.arange(8.0)[:, None].expand(8, D)
    slots = memory.add_to_memory(features, torch.zeros(8, 1, 3), torch.ones(8, 1))
    assert slots.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4] and memory.is_full
    assert memory.features[:, 0].tolist() == [3, 4, 5, 6, 7]


def test_importance_is_confidence_times_attention_times_recency():
    cameras = turned_cameras(1)
    memory = SpatialStereoMemory(5, D, 2, correspondence_threshold=0, attention_window=4)
    far_apart = cloud(cameras, 3, 0)[1:, None].expand(2, 2, 3)
    sure = torch.tensor([[0.2, 0.6], [0.5, 0.9]])
    memory.add_to_memory(torch.ones(2, D), far_apart, sure)
    torch.testing.assert_close(memory.importance, torch.tensor([0.4, 0.7]))
    memory.constrained_attention(torch.ones(1, 1, D), far_apart[:1, :1], cameras)
    expected = torch.tensor([0.4 * (1 + 1), 0.7 * 2 ** (-1 / 256)])
    torch.testing.assert_close(memory.importance, expected)


# ---- recall and refinement ---------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), m=st.sampled_from([2, 5, 29]), top_k=st.sampled_from([1, 4]))
def test_retrieve_is_a_sort_by_distance(seed, m, top_k):
    cameras = turned_cameras(1)
    memory, positions = filled(cameras, m, seed), cloud(cameras, 7, seed + 3)[None]
    features, indices = memory.retrieve(positions, top_k=top_k)
    for i, query in enumerate(positions[0].double()):
        distance = (memory.correspondences.double() - query).norm(dim=-1)
        distance[memory.confidence < 0.5] = math.inf
        nearest = distance.amin(dim=1)
        order = sorted((float(d), s) for s, d in enumerate(nearest) if d < math.inf)
        expected = [s for _, s in order[:top_k]]
        expected += [-1] * (top_k - len(expected))
        assert indices[0, i].tolist() == expected
        for j, slot in enumerate(expected):
            wanted = memory.features[slot] if slot >= 0 else torch.zeros(D)
            assert torch.equal(features[0, i, j], wanted)


def test_a_camera_ranks_what_it_cannot_see_last():
    K = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 64, 64)
    memory = SpatialStereoMemory(8, 4, 1)
    points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 1.95], [0.3, 0.0, 2.0], [0.0, 0.0, 3.0]])
    normal = torch.tensor([[0.0, 0, -1], [0, 0, 1.0], [0, 0, 0], [0, 0, -1.0]])
    memory.add_to_memory(torch.ones(4, 4), points[:, None], torch.ones(4, 1), {"normal": normal})
    query = torch.tensor([[[0.0, 0.0, 2.6]]])
    assert memory.retrieve(query, top_k=4)[1].tolist() == [[[3, 0, 1, 2]]]
    # 1 faces away, 3 lies behind 0 and 1 on the same ray; 1 hides 0 by less than the tolerance
    assert memory.retrieve(query, camera, top_k=4)[1].tolist() == [[[0, 2, 3, 1]]]
    shown = torch.full((1, 64, 64), 1.0)
    occluder = RenderResult(shown.expand(3, 64, 64), shown, torch.ones(1, 64, 64), shown.long())
    assert memory.retrieve(query, camera, 1, occluder)[1].tolist() == [[[3]]]  # all hidden


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), m=st.sampled_from([3, 31]), top_k=st.sampled_from([1, 5]))
def test_retrieve_with_a_camera_is_a_sort_by_visibility_and_distance(seed, m, top_k):
    cameras = turned_cameras(1)
    memory, positions = filled(cameras, m, seed), cloud(cameras, 7, seed + 3)[None]
    occluder = occluders(cameras, 29, 37, seed)
    _, indices = memory.retrieve(positions, cameras, top_k, occluder)
    points, sure = memory.correspondences.tolist(), memory.confidence.tolist()
    normals = memory.metadata["normal"].tolist()
    eye = cameras.position[0].tolist()
    for i, query in enumerate(positions[0].tolist()):
        ranked = []
        for slot in range(m):
            each = []
            for point, c in zip(points[slot], sure[slot], strict=True):
                if c < 0.5:
                    continue
                away = sum(n * (a - b) for n, a, b in zip(normals[slot], point, eye, strict=True))
                u, v, z, _ = see(cameras[0], point)
                hidden = False
                if z > 0 and 0 <= u < 37 and 0 <= v < 29:
                    row, column = math.floor(v), math.floor(u)
                    front = float(occluder.depth[0, 0, row, column].double())
                    shown = occluder.mask[0, 0, row, column] > 0
                    hidden = bool(shown) and z > front * (1 + 0.05 * (1 + (1 - c) / 2))
                each.append((away > 0 or hidden, math.dist(point, query)))
            if each:
                ranked.append((*min(each), slot))
        expected = [slot for _, _, slot in sorted(ranked)[:top_k]]
        assert indices[0, i].tolist() == expected + [-1] * (top_k - len(expected))


def seen_again(n: int = 23):
    cameras = turned_cameras(1)
    g = torch.Generator().manual_seed(3)
    pixels = cameras[0].pixel_grid(7, 9)[:n]
    points = cameras[0].unproject(pixels, 2 + torch.rand(n, generator=g))
    memory = SpatialStereoMemory(50, D, 1)
    features = torch.randn(n, D, generator=g)
    memory.add_to_memory(features, points[:, None], torch.full((n, 1), 0.6))
    return memory, features, points, cameras[0]


def test_refine_blends_what_agrees_and_raises_its_confidence():
    memory, features, points, camera = seen_again()
    result = memory.refine(1.1 * features, points, camera, torch.full((23,), 0.6))
    assert result.num_blended == 23 and result.num_pruned == 0 and result.matched.all()
    torch.testing.assert_close(memory.features, 1.05 * features)
    assert (memory.confidence > 0.6).all() and (memory.confidence <= 1).all()


def test_refine_prunes_what_keeps_disagreeing_and_moves_the_last_into_the_gap():
    memory, features, points, camera = seen_again()
    wrong = features.clone()
    wrong[4] *= -1
    first = memory.refine(wrong, points, camera, torch.ones(23))
    assert (first.num_blended, first.num_pruned) == (22, 0) and not first.matched[4]
    assert memory.confidence[4] < 0.6
    second = memory.refine(wrong, points, camera, torch.ones(23))
    assert (second.num_blended, second.num_pruned) == (22, 1) and memory.size == 22
    torch.testing.assert_close(memory.features[4], features[22], rtol=1e-5, atol=1e-5)
    kept = [i for i in range(22) if i != 4]
    torch.testing.assert_close(memory.features[kept], features[kept], rtol=1e-5, atol=1e-5)


def test_refine_doubts_what_a_frame_looks_through_and_forgives_what_it_hides():
    memory, features, points, camera = seen_again()
    toward = points - camera.position
    before = memory.confidence
    through = memory.refine(features, camera.position + 2 * toward, camera, torch.ones(23))
    assert through.num_blended == 0 and not through.matched.any()
    assert (memory.confidence < before).float().mean() > 0.6
    memory, features, points, camera = seen_again()
    hidden = memory.refine(features, camera.position + 0.5 * toward, camera, torch.ones(23))
    assert hidden.num_blended == 0 and torch.equal(memory.confidence, before)


# ---- undo, files, storage ----------------------------------------------------------------------


def state(memory: SpatialStereoMemory) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in memory.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("storage", [torch.float32, "int8"])
@settings(max_examples=10, deadline=None)
@given(
    moves=st.lists(st.sampled_from("aaarrfcsgu"), min_size=4, max_size=25),
    seed=st.integers(0, 99),
)
def test_any_snapshot_can_be_restored_in_any_order(storage, moves, seed):
    """add, retrieve/attend, refine, clear, snapshot, go to a random snapshot, undo a use."""
    g = torch.Generator().manual_seed(seed)
    cameras = turned_cameras(1)
    memory = SpatialStereoMemory(
        23, D, 2, update_strategy="lru", storage_dtype=storage, correspondence_threshold=0
    )
    points = cloud(cameras, 90, seed)
    kept = [(memory.snapshot(), state(memory))]
    for move in moves:
        start, n = (int(torch.randint(0, high, (1,), generator=g)) for high in (60, 30))
        part = points[start : start + n]
        features = torch.randn(n, D, generator=g)
        if move == "a":
            sure = torch.rand(n, 2, generator=g)
            memory.add_to_memory(features, part[:, None].expand(n, 2, 3), sure)
        elif move == "r":
            memory.retrieve(part[None], top_k=2)
            memory.constrained_attention(features[None], part[None], cameras)
        elif move == "f":
            memory.refine(features, part, cameras[0], torch.ones(n))
        elif move == "c":
            memory.clear()
        elif move == "s":
            kept.append((memory.snapshot(), state(memory)))
        elif move == "u":
            kept = kept[:1] + kept[2:]  # a dropped snapshot must not harm the others
        else:
            snapshot, expected = kept[start % len(kept)]
            memory.restore(snapshot)
            assert same_state(state(memory), expected)
    for snapshot, expected in reversed(kept):
        memory.restore(snapshot)
        assert same_state(state(memory), expected)
        fresh = SpatialStereoMemory(23, D, 2, storage_dtype=storage, correspondence_threshold=0)
        fresh.load_state_dict(expected)
        mask = memory.correspondence_mask(points[None], cameras)
        assert torch.equal(mask, fresh.correspondence_mask(points[None], cameras))


def test_a_snapshot_keeps_only_what_changes_after_it():
    cameras = turned_cameras(1)
    memory = filled(cameras, 5000, memory_size=6000)
    snapshot = memory.snapshot()
    memory.add_to_memory(torch.ones(3, D), torch.ones(3, S, 3), torch.ones(3, S))
    change = snapshot.change
    assert change is not None
    rows = sum(len(slots) for _, slots, _ in change.parts)
    assert rows == 3


def test_a_foreign_snapshot_is_refused():
    cameras = turned_cameras(1)
    one, other = filled(cameras, 7), filled(cameras, 7)
    with pytest.raises(ValueError, match="snapshot belongs to another memory"):
        one.restore(other.snapshot())
    copied = copy.deepcopy(one)
    snapshot = one.snapshot()
    with pytest.raises(ValueError, match="another memory"):
        copied.restore(snapshot)
    copied.clear()
    assert one.size == 7


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "int8"])
def test_files_bring_everything_back(storage, tmp_path):
    cameras = turned_cameras(1)
    memory, positions = filled(cameras, 31, storage_dtype=storage), cloud(cameras, 9, 0)[None]
    memory.constrained_attention(torch.ones(1, 9, D), positions, cameras)
    memory.save(tmp_path / "stereo.safetensors")
    other = SpatialStereoMemory(36, D, S, storage_dtype=storage)
    other.load(tmp_path / "stereo.safetensors")
    assert same_state(state(other), state(memory))
    assert other.hit_rate == memory.hit_rate and torch.equal(other.importance, memory.importance)
    plain = SpatialStereoMemory(50, D, S)
    plain.load(tmp_path / "stereo.safetensors")
    assert torch.equal(plain.features, memory.features) and plain.size == 31


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    cameras = turned_cameras(1)
    filled(cameras, 31).save(tmp_path / "big.safetensors")
    small = SpatialStereoMemory(7, D, S)
    small.add_to_memory(torch.ones(2, D), torch.ones(2, S, 3), torch.ones(2, S))
    before = state(small)
    with pytest.raises(ValueError, match="at most 7 fit"):
        small.load(tmp_path / "big.safetensors")
    with pytest.raises(ValueError, match="must have 5 channels"):
        SpatialStereoMemory(50, 5, S).load(tmp_path / "big.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="does not fit this memory"):
        small.load(tmp_path / "torn.safetensors")
    other = filled(cameras, 5)
    more = {k: v.clone() for k, v in other.state_dict().items()} | {"x": torch.zeros(2)}
    save_file(more, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match='does not fit this memory: .*"x"'):
        small.load(tmp_path / "more.safetensors")
    good = {k: v.clone() for k, v in filled(cameras, 5).state_dict().items()}
    for name, lie, said in (
        ("scalars", torch.full((9,), float("inf")), "scalars: must be"),
        ("scalars", good["memory.scalars"] * 0 - 1, "scalars: counts begin at 0, got -1"),
        ("codes", good["memory.codes"].half() * float("nan"), "all numbers finite"),
    ):
        save_file(good | {f"memory.{name}": lie}, tmp_path / "lie.safetensors")
        with pytest.raises(ValueError, match=said):
            small.load(tmp_path / "lie.safetensors")
    assert same_state(state(small), before)


@pytest.mark.parametrize(
    ("storage", "tolerance", "share"),
    [(torch.float16, 1e-3, 0.6), (torch.bfloat16, 1e-2, 0.6), ("int8", 3e-2, 0.4)],
)
@pytest.mark.parametrize("size", [1e-5, 1.0, 1e5])
def test_compressed_features_stay_within_tolerance(storage, tolerance, share, size):
    cameras = turned_cameras(1)
    g = torch.Generator().manual_seed(2)
    wide = 192
    features = torch.randn(97, wide, generator=g) * size
    points, q = cloud(cameras, 97, 2), torch.randn(1, 61, wide, generator=g) / size
    outputs, amount = [], []
    for dtype in (torch.float32, storage):
        memory = SpatialStereoMemory(97, wide, 1, storage_dtype=dtype, attention_window=20)
        memory.add_to_memory(features, points[:, None], torch.ones(97, 1))
        outputs.append(memory.constrained_attention(q, points[None, :61], cameras)[0])
        amount.append(memory._bank.column("codes").nbytes + memory._bank.column("scale").nbytes)
        assert torch.equal(memory.correspondences[:, 0], points)
    error = (outputs[1] - outputs[0]).norm(dim=-1) / outputs[0].norm(dim=-1).clamp(min=1e-30)
    assert error.max() < tolerance
    assert amount[1] <= share * amount[0]


def test_moving_keeps_dtypes_and_rows():
    memory = filled(turned_cameras(1), 7)
    before = state(memory)
    assert memory.half().to("cpu").double() is memory
    assert same_state(state(memory), before)


# ---- errors ------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ({"memory_size": 0}, "memory_size must be at least 1, got 0"),
    ({"feature_dim": 0}, "feature_dim must be at least 1, got 0"),
    ({"num_heads": 5}, "num_heads must divide feature_dim 12, got 5"),
    ({"attention_window": 0}, "attention_window must be above 0"),
    ({"attention_window": float("nan")}, "attention_window must be at least 0 and finite"),
    ({"correspondence_threshold": -0.1}, r"correspondence_threshold must be within \[0, 1\]"),
    ({"update_strategy": "random"}, "update_strategy must be one of fifo, lru, importance_based"),
    ({"storage_dtype": "int4"}, "storage_dtype must be one of float32"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        SpatialStereoMemory(**({"memory_size": 9, "feature_dim": D} | options))
    assert "\n" not in str(caught.value)


def bad_calls():
    f, p, c = torch.ones(2, D), torch.zeros(2, S, 3), torch.ones(2, S)
    q, x = torch.ones(1, 4, D), torch.zeros(1, 4, 3)
    nan = torch.full((1, 4, 3), math.nan)
    camera = turned_cameras(1)[0]
    add, ask = "add_to_memory", "constrained_attention"
    yield add, (f[:, :5], p, c), r"features must have shape \(N, 12\), got \(2, 5\)"
    yield add, (f, p[:, :2], c), r"correspondences must have shape \(2, 3, 3\)"
    yield add, (f, p, c + 0.1), r"confidence\[0, 0\] is 1.1"
    yield add, (f, p, c * math.nan), r"confidence\[0, 0\] is nan"
    yield add, (f, p + math.inf, c), r"correspondences\[0, 0, 0\] is inf"
    yield add, (f.double(), p, c), "features must be of float32, got float64"
    yield add, (f.to("meta"), p, c), "features is on meta"
    yield add, (f, p, c, {"colour": 1}), "metadata.'colour'. is unknown"
    yield add, (f, p, c, {"frame": 1.5}), "metadata.'frame'. must hold whole numbers"
    yield add, (f, p, c, {"pixel": torch.zeros(3, 2)}), "metadata.'pixel'. must have shape"
    yield ask, (q, x[:, :2], camera), r"query_features must have shape \(1, 2, 12\)"
    yield ask, (q, nan, camera), r"query_positions\[0, 0, 0\] is nan"
    yield ask, (q, x, turned_cameras(2)), "camera_params must be one camera or a batch of 1"
    yield ask, (q, x, camera, True, "both"), "return_weights must be one of dense, sparse"
    yield "retrieve", (x, None, 0), "top_k must be at least 1, got 0"
    yield "refine", (f, p[:, 0], turned_cameras(2), c[:, 0]), "camera_params must be one camera"
    yield "refine", (f, p[:, 0], camera, c[:, 0] - 2), r"confidence\[0\] is -1"


@pytest.mark.parametrize(("method", "arguments", "message"), list(bad_calls()))
def test_an_error_is_one_line_and_changes_nothing(method, arguments, message):
    memory = filled(turned_cameras(1), 7)
    before = state(memory)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        getattr(memory, method)(*arguments)
    assert "\n" not in str(caught.value)
    assert same_state(state(memory), before)


def test_an_occluder_of_another_shape_is_refused():
    cameras = turned_cameras(2)
    memory, positions = filled(cameras, 7), torch.zeros(2, 4, 3)
    wrong = occluders(turned_cameras(3), 5, 7, 0)
    with pytest.raises(ValueError, match=r"occluder.depth and .mask must have shape"):
        memory.correspondence_mask(positions, cameras, wrong)


# ---- the dense path ----------------------------------------------------------------------------


def test_synthesis_attends_the_entries_that_correspond():
    """64x48, one entry a pixel, threshold 0, window 2 px: all that carries weight is in the mask.

    Of every pixel of the target, every view's share, and the pixels it is fetched from: the nearest
    one by count, all four around by their weight (the window reaches 1 px each way, and pixels of
    a view that is farther away lie up to 1.3 px apart).
    """
    from worldstereo.memory.stereo.dense import explain, synthesize, weights_map
    from worldstereo.scene import View

    cameras = turned_cameras(4, 64, 48)
    K = cameras.K * torch.tensor([1.7, 1.7, 1.0])[:, None]
    cameras = Cameras(K, cameras.c2w, 64, 48)
    color, depth = room(cameras)
    sources, target = [0, 1, 3], cameras[2]
    views = [View.of(color[i], depth[i], cameras[i], frame=i) for i in sources]
    memory = SpatialStereoMemory(3 * 48 * 64, 4, 1, attention_window=2, correspondence_threshold=0)
    for i in sources:
        points = cameras[i].unproject(cameras[i].pixel_grid(), depth[i].reshape(-1))
        memory.add_to_memory(torch.zeros(len(points), 4), points[:, None], torch.ones(3072, 1))
    made = synthesize(target, views)
    asked = target.unproject(target.pixel_grid(), made.depth.reshape(-1))
    mask = as_set(memory.correspondence_mask(asked[None], target)[1:])
    pairs, weights = [], []
    for k, view in enumerate(views):
        share = weights_map(target, views, made.depth, k).reshape(-1)
        uv, z = view.cameras.project(asked)
        corner = (uv - 0.5).floor().long()  # of the four pixel centres around
        for step in itertools.product((0, 1), (0, 1)):
            at = corner + torch.tensor(step)
            part = (1 - (uv - 0.5 - at).abs()).prod(1)
            u, v = at[:, 0].clamp(0, 63), at[:, 1].clamp(0, 47)
            agrees = (view.depth[0, v, u] - z).abs() <= 0.03 * z
            nearest = ((uv - 0.5 - at).abs() <= 0.5).all(1)
            for query in ((share > 1e-3) & agrees).nonzero()[:, 0].tolist():
                found = (query, k * 3072 + int(v[query]) * 64 + int(u[query])) in mask
                weights.append((float(part[query] * share[query]), found))
                if bool(nearest[query]):
                    pairs.append(found)
    assert len(pairs) > 7_000 and sum(pairs) >= 0.99 * len(pairs)
    assert sum(w for w, found in weights if found) >= 0.99 * sum(w for w, _ in weights)
    said = explain(target, views, made.depth, (31.5, 20.5))
    shares = [float(weights_map(target, views, made.depth, k)[20, 31]) for k in range(3)]
    assert [c.weight for c in said] == pytest.approx(shares, abs=1e-5)
