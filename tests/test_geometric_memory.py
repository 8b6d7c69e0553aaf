"""The global memory against a slow reference, and every promise and error of its contract."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldstereo import neighbors as spatial_index
from worldstereo.cameras import Cameras
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.geometric import _store as store_module
from worldstereo.scene import PointCloud

POSE = torch.eye(4)
COLUMNS = ("points", "colors", "confidence", "observations", "last_seen", "sources")


def memory(**options: object) -> GlobalGeometricMemory:
    torch.manual_seed(1)
    sizes = {"point_cloud_dim": 5, "feature_dim": 7, "num_neighbors": 3, "max_points": 1000}
    return GlobalGeometricMemory(**(sizes | options))  # type: ignore[arg-type]


def noise(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * scale


def state(geometry: GlobalGeometricMemory) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in geometry.state_dict().items() if k.startswith("memory.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def slow_update(points: Tensor, count: Tensor, new: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """Positions and counts after an update, point by point in float64."""
    old, fresh = points.double(), new.double()
    total, weight, left = old * count[:, None], count.double(), []
    for i in range(len(fresh)):
        away = (old - fresh[i]).pow(2).sum(-1) if len(old) else torch.zeros(0)
        if len(old) and float(away.min()) <= r * r:
            j = int(away.argmin())
            total[j] += fresh[i]
            weight[j] += 1
        else:
            left.append(i)
    cells: dict[tuple[float, ...], list[int]] = {}
    for i in left:
        place = fresh[i] / r if r > 0 else fresh[i]
        key = tuple((place.floor() if r > 0 else place).tolist())
        cells.setdefault(key, []).append(i)
    places = []
    for members in cells.values():
        mean = fresh[members].mean(dim=0).float()
        near = len(old) and float((old - mean.double()).pow(2).sum(-1).min()) <= r * r
        places.append(new[members[0]] if near and len(members) > 1 else mean)
    merged = torch.where(weight[:, None] > count[:, None], total / weight[:, None], old).float()
    counts = torch.cat([weight, torch.tensor([len(m) for m in cells.values()]).double()])
    return torch.cat([merged, torch.stack(places) if places else torch.zeros(0, 3)]), counts


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 60),
    m=st.integers(0, 60),
    seed=st.integers(0, 1000),
    r=st.sampled_from([0.0, 1e-3, 0.05, 0.2, 3.0]),
    scale=st.sampled_from([1.0, 1e-4, 1e4]),
)
def test_an_update_is_what_a_slow_loop_makes(n, m, seed, r, scale):
    geometry = memory()
    old = torch.round(noise(n, seed) * 8) / 8 + noise(n, seed + 1) * 0.05
    new = torch.cat([torch.round(noise(m, seed + 2) * 8) / 8, old[: m // 2]])
    old, new, r = old * scale, new * scale, r * scale
    geometry.initialize(old)
    before = geometry.observations
    result = geometry.update(new, POSE, merge_threshold=r)
    points, counts = slow_update(old, before, new, r)
    assert result.num_added + result.num_merged == len(new)
    assert result.total_points == geometry.num_points == n + result.num_added
    torch.testing.assert_close(geometry.points, points)
    assert torch.equal(geometry.observations.double(), counts)
    if n and result.num_added:
        added = geometry.points[n:].double()
        assert float(torch.cdist(added, old.double()).min()) > r * (1 - 1e-12)


def test_points_of_a_frame_are_thinned_to_one_per_cell_and_stay_apart_from_the_cloud():
    from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

    geometry = memory(max_points=100_000)
    for frame in range(4):
        before = geometry.points.double().numpy()
        new = noise(5003, frame, 2.0) * torch.tensor([1.0, 1.0, 0.02])
        added, _, _ = geometry.update(new, POSE, merge_threshold=0.02)
        fresh = geometry.points[len(before) :].double().numpy()
        assert len(fresh) == added
        if len(before):
            assert cKDTree(before).query(fresh)[0].min() > 0.02 - 1e-9
        cells = np.floor(fresh / 0.02 + 1e-9)
        assert len(np.unique(cells, axis=0)) > 0.98 * len(fresh)  # a mean may round over an edge


def test_columns_become_means_weighted_by_observations():
    geometry = memory()
    point = torch.tensor([[0.5, 0.5, 0.5]])
    geometry.initialize(
        point,
        torch.full((1, 5), 2.0),
        torch.tensor([[0.2, 0.4, 0.6]]),
        normals=torch.tensor([[0.0, 0.0, 4.0]]),
        radii=torch.tensor([0.3]),
        confidence=torch.tensor([0.4]),
        source=3,
    )
    for value in (0.8, 0.5):
        geometry.update(
            point + 0.03,
            POSE,
            torch.full((1, 5), 5.0),
            torch.full((1, 3), value),
            0.1,
            torch.tensor([value]),
            normals=torch.tensor([[0.0, 1.0, 0.0]]),
            radii=torch.tensor([0.6]),
            source=9,
        )
    torch.testing.assert_close(geometry.points, point + 0.02)
    torch.testing.assert_close(geometry.features, torch.full((1, 5), 4.0))
    torch.testing.assert_close(geometry.colors, torch.tensor([[1.5, 1.7, 1.9]]) / 3)
    torch.testing.assert_close(geometry.confidence, torch.tensor([1.7 / 3]))
    torch.testing.assert_close(geometry.radii, torch.tensor([0.5]))
    torch.testing.assert_close(geometry.normals.norm(dim=-1), torch.ones(1))
    assert geometry.normals[0, 1] > geometry.normals[0, 2] > 0
    assert geometry.observations.tolist() == [3]
    assert geometry.last_seen.tolist() == [2]
    assert geometry.sources.tolist() == [3]


@pytest.mark.parametrize("compiled", [True, False])
def test_what_no_chain_can_hold_is_still_matched_exactly(compiled, monkeypatch):
    """Thousands of stored points within the threshold of each new one."""
    if not compiled:
        monkeypatch.setattr(store_module, "has_compiler", lambda: False)
    geometry = memory(max_points=20_000)
    old, new = noise(6007, 0, 1e-3), noise(53, 1, 1.2e-3)
    geometry.initialize(old)
    geometry.update(new, POSE, merge_threshold=0.01)
    points, counts = slow_update(old, torch.ones(6007), new, 0.01)
    torch.testing.assert_close(geometry.points, points)
    assert torch.equal(geometry.observations.double(), counts)


def test_a_cloud_updates_as_its_columns_do():
    """The contract's call with tensors and the call with a cloud are the same call."""
    n = 31
    new = noise(n, 3)
    columns = {
        "colors": torch.rand(n, 3),
        "confidence": torch.rand(n),
        "normals": torch.nn.functional.normalize(noise(n, 4), dim=-1),
        "radii": torch.rand(n),
    }
    source = torch.arange(n)
    by_columns, by_cloud = GlobalGeometricMemory(), GlobalGeometricMemory()
    for memory in (by_columns, by_cloud):
        memory.initialize(noise(17, 2))
    first = by_columns.update(new, POSE, merge_threshold=0.3, source=source, **columns)
    cloud = PointCloud.of(new, **columns, source=source)
    assert by_cloud.update(cloud, POSE, merge_threshold=0.3) == first
    assert first.num_merged > 0 and first.num_added > 0
    for name in ("points", "colors", "confidence", "normals", "radii", "sources"):
        assert torch.equal(getattr(by_cloud, name), getattr(by_columns, name)), name
    before = by_cloud.points.clone()
    with pytest.raises(TypeError, match="colors is given twice"):
        by_cloud.update(cloud, POSE, colors=columns["colors"])
    assert torch.equal(by_cloud.points, before)


def test_with_and_without_a_compiler_and_with_any_threads_the_memory_is_the_same(monkeypatch):
    def build() -> dict[str, Tensor]:
        geometry = memory(max_points=3000)
        geometry.initialize(noise(1500, 0), colors=noise(1500, 1))
        for frame in range(6):
            new = noise(701, frame + 5)
            geometry.update(
                new, POSE, colors=noise(701, frame), merge_threshold=0.03 + 0.01 * frame
            )
        return state(geometry)

    expected = build()
    monkeypatch.setenv("WORLDSTEREO_THREADS", "5")
    assert same(build(), expected)
    monkeypatch.setattr(store_module, "has_compiler", lambda: False)
    monkeypatch.setattr(spatial_index, "has_compiler", lambda: False)
    assert same(build(), expected)


def test_the_points_observed_longest_ago_go_first():
    geometry = memory(max_points=5)
    grid = torch.arange(12.0)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    geometry.initialize(grid[:5])
    geometry.update(grid[:2], POSE)  # observes rows 0 and 1 again
    result = geometry.update(grid[5:7], POSE)
    assert result == (2, 0, 5)
    assert geometry.points[:, 0].tolist() == [0.0, 1.0, 4.0, 5.0, 6.0]
    geometry.update(grid[7:10], POSE)
    assert geometry.points[:, 0].tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    geometry.update(grid, POSE)  # 5 to 9 are observed again but come first in the order of adding
    assert geometry.points[:, 0].tolist() == [2.0, 3.0, 4.0, 10.0, 11.0]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_eviction_follows_a_slow_queue(seed):
    """Rows are (last seen, order of adding); the smallest go."""
    generator = np.random.default_rng(seed)
    geometry = memory(max_points=40)
    rows: list[tuple[int, float]] = []
    for tick in range(1, 30):
        names = generator.choice(200, generator.integers(1, 20), replace=False)
        batch = torch.tensor(names, dtype=torch.float32)[:, None].expand(-1, 3).contiguous()
        geometry.update(batch, POSE)
        held = {name: i for i, (_, name) in enumerate(rows)}
        for name in names.tolist():
            if name in held:
                rows[held[name]] = (tick, name)
            else:
                rows.append((tick, name))
        doomed = sorted(range(len(rows)), key=lambda i: (rows[i][0], i))[: max(0, len(rows) - 40)]
        rows = [row for i, row in enumerate(rows) if i not in set(doomed)]
        assert geometry.points[:, 0].tolist() == [name for _, name in rows]
        assert geometry.last_seen.tolist() == [seen for seen, _ in rows]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_walk_through_snapshots_gives_back_every_bit(seed):
    generator = np.random.default_rng(seed)
    geometry = memory(max_points=2500)
    geometry.initialize(noise(997, seed))
    kept = []
    for step in range(25):
        choice = generator.random()
        if choice < 0.5:
            extra = {"normals": noise(301, step)} if choice < 0.2 else {}
            new = noise(301, seed + step, 1 + step / 20)
            features = torch.rand(301, 5) if choice < 0.1 else None
            geometry.update(new, POSE, features, merge_threshold=0.03, source=step, **extra)
        elif choice < 0.6:
            geometry.prune(keep=torch.from_numpy(generator.random(geometry.num_points) > 0.4))
        elif choice < 0.65:
            geometry.initialize(noise(401, step))
        elif choice < 0.8 or not kept:
            kept.append((geometry.snapshot(), state(geometry)))
        else:
            handle, expected = kept[generator.integers(len(kept))]
            geometry.restore(handle)
            assert same(state(geometry), expected)
        queries = noise(29, step, 2.0)
        if geometry.num_points:
            _, rows = geometry.neighbors(queries[None], k=4)
            square = (queries[:, None].double() - geometry.points[None].double()).pow(2).sum(-1)
            nearest = square.argsort(dim=-1, stable=True)[:, :4]
            assert torch.equal(rows[0], nearest)


def test_a_snapshot_costs_what_a_step_changes():
    geometry = memory(max_points=200_000)
    geometry.initialize(noise(100_003, 0, 10.0))
    handle = geometry.snapshot()
    geometry.update(noise(101, 1, 10.0), POSE)
    difference = handle.difference
    assert difference is not None and not isinstance(difference, store_module.Storage)
    held = sum(v.nbytes for v in difference.values.values()) + difference.slots.nbytes
    assert held < 20_000
    restored = noise(100_003, 0, 10.0)
    geometry.restore(handle)
    assert torch.equal(geometry.points, restored)


def test_a_snapshot_of_another_memory_is_refused():
    handle = memory().snapshot()
    with pytest.raises(ValueError, match="another memory"):
        memory().restore(handle)


def test_a_deep_copy_is_a_memory_of_its_own():
    geometry = memory()
    geometry.initialize(noise(101, 0))
    handle, other = geometry.snapshot(), copy.deepcopy(geometry)
    other.update(noise(57, 1), POSE)
    assert geometry.num_points == 101 < other.num_points
    geometry.update(noise(13, 2), POSE)
    geometry.restore(handle)
    assert torch.equal(geometry.points, noise(101, 0))
    assert other.neighbors(noise(5, 3)[None])[1].shape == (1, 5, 3)
    with pytest.raises(ValueError, match="another memory"):
        other.restore(handle)


def test_published_columns_are_never_written_again():
    geometry = memory()
    geometry.initialize(noise(50, 0), torch.rand(50, 5), noise(50, 1))
    held = {name: getattr(geometry, name) for name in (*COLUMNS, "features")}
    copies = {name: value.clone() for name, value in held.items()}
    geometry.update(noise(50, 0) + 0.001, POSE, torch.rand(50, 5), noise(50, 2), 0.01)
    assert not torch.equal(geometry.points, copies["points"])
    geometry.prune(keep=torch.arange(50) % 2 == 0)
    geometry.initialize(noise(70, 3))
    assert all(torch.equal(held[name], copies[name]) for name in held)


def test_the_callers_tensors_are_copied():
    geometry, points = memory(), noise(31, 0)
    geometry.initialize(points)
    points += 1
    assert not torch.equal(geometry.points, points)


@pytest.mark.parametrize("kind", ["kd_tree", "ball_tree", "cuda_knn", "auto"])
def test_neighbors_are_exact_for_every_index(kind):
    geometry = memory(spatial_index=kind)
    points = torch.round(noise(503, 0) * 5) / 5
    geometry.initialize(points)
    queries = noise(2 * 11, 1).reshape(2, 11, 3)
    distance, rows = geometry.neighbors(queries, k=9)
    square = (queries[:, :, None].double() - points.double()).pow(2).sum(-1)
    assert torch.equal(rows, square.argsort(dim=-1, stable=True)[..., :9])
    torch.testing.assert_close(distance, square.sort(dim=-1).values[..., :9].sqrt().float())
    assert geometry.neighbors(queries, k=1000)[1].shape == (2, 11, 503)
    geometry.initialize(torch.zeros(0, 3))
    assert geometry.neighbors(queries)[0].shape == (2, 11, 0)


@pytest.mark.parametrize("aggregation", ["mean", "max", "weighted", "attention"])
def test_query_of_an_empty_memory_is_zero_and_of_a_small_one_uses_what_is_there(
    aggregation, cameras
):
    geometry, queries = memory(), noise(2 * 11, 1).reshape(2, 11, 3)
    assert torch.equal(geometry.query(queries, aggregation=aggregation), torch.zeros(2, 11, 7))
    geometry.initialize(noise(2, 0))
    out = geometry.query(queries, cameras[0], aggregation)
    assert out.shape == (2, 11, 7)
    assert bool(torch.isfinite(out).all()) and bool(out.abs().sum() > 0)


def test_the_plain_aggregations_are_what_their_names_say():
    geometry = memory(num_neighbors=4)
    features = torch.randn(101, 5)
    geometry.initialize(noise(101, 0), features)
    queries = noise(2 * 11, 1).reshape(2, 11, 3)
    distance, rows = geometry.neighbors(queries)
    weight = 1 / distance
    weight = weight / weight.sum(dim=-1, keepdim=True)
    expected = {
        "mean": features[rows].mean(dim=2),
        "max": features[rows].amax(dim=2),
        "weighted": (features[rows] * weight[..., None]).sum(dim=2),
    }
    for name, value in expected.items():
        projected = geometry.learned.project(value)
        torch.testing.assert_close(geometry.query(queries, aggregation=name), projected)
    at = geometry.query(geometry.points[None, :7])
    torch.testing.assert_close(at[0], geometry.learned.project(features[:7]), atol=1e-4, rtol=1e-4)


def test_attention_looks_at_direction_distance_and_confidence(cameras):
    queries = noise(2 * 11, 1).reshape(2, 11, 3)

    def ask(camera: Cameras | None, confidence: float) -> Tensor:
        geometry = memory()
        certain = torch.where(torch.arange(101) % 2 == 0, confidence, 1.0)
        geometry.initialize(noise(101, 0), torch.rand(101, 5), confidence=certain)
        torch.manual_seed(2)
        return geometry.query(queries, camera, "attention")

    torch.manual_seed(5)
    base = ask(cameras[0], 1.0)
    torch.manual_seed(5)
    assert not torch.allclose(base, ask(cameras[3], 1.0))
    torch.manual_seed(5)
    assert not torch.allclose(base, ask(cameras[0], 0.1))
    batch = memory()
    batch.initialize(noise(101, 0))
    both = batch.query(queries, cameras[:2], "attention")
    torch.testing.assert_close(both[1:], batch.query(queries[1:], cameras[1], "attention"))


def test_gradients_reach_the_weights_and_nothing_else():
    geometry = memory()
    geometry.initialize(noise(53, 0))
    geometry.query(noise(7, 1)[None], None, "attention").square().sum().backward()
    assert geometry.learned.encoder.weight.grad is not None
    assert geometry.learned.bias.weight.grad is not None
    assert not geometry.points.requires_grad and not geometry.features.requires_grad


@pytest.mark.parametrize("method", ["addition", "concatenation", "cross_attention"])
def test_injection_is_the_identity_when_fresh_and_keeps_holes_after_training(method, cameras):
    geometry = memory(latent_channels=6)
    latent = torch.randn(2, 5, 6, 9, 11)
    assert torch.equal(geometry.inject_to_latent(latent, cameras, method), latent)
    sparse = noise(23, 0, 2.0) + torch.tensor([-0.8, -0.6, 2.0])
    geometry.initialize(sparse)
    assert torch.equal(geometry.inject_to_latent(latent, cameras, method), latent)
    for layer in (geometry.learned.add, geometry.learned.concat, geometry.learned.cross):
        torch.nn.init.normal_(layer.weight)
    for camera in (cameras, cameras[2]):
        seen = geometry.render(camera.scaled(11, 9)).mask.reshape(-1, 9, 11).bool().expand(5, 9, 11)
        out = geometry.inject_to_latent(latent, camera, method)
        changed = (out != latent).any(dim=2)
        assert 0 < int(seen.sum()) < seen.numel()
        assert torch.equal(changed, seen.expand(2, 5, 9, 11))
    one = geometry.inject_to_latent(latent, cameras, method)
    alone = geometry.inject_to_latent(latent[1:], cameras, method)
    torch.testing.assert_close(one[1:], alone)


def test_render_numbers_rows_whatever_happened_before(cameras):
    geometry = memory(max_points=700)
    geometry.initialize(noise(500, 0, 3.0) + torch.tensor([-1.5, -1.5, 1.0]), colors=noise(500, 1))
    geometry.prune(keep=torch.arange(500) % 3 > 0)
    geometry.update(noise(450, 2, 3.0) + torch.tensor([-1.5, -1.5, 1.0]), POSE)
    assert geometry.num_points == 700
    result = geometry.render(cameras, radius=2)
    seen = result.index >= 0
    assert result.color.shape == (5, 3, 29, 37) and bool(seen.any())
    rows = result.index[seen]
    shown = result.color.movedim(1, -1).unsqueeze(1)[seen]
    torch.testing.assert_close(shown, geometry.colors[rows])


def test_a_cloud_above_capacity_is_thinned_evenly_and_the_log_says_so(caplog):
    geometry = memory(max_points=100)
    with caplog.at_level("INFO"):
        geometry.initialize(torch.arange(1000.0)[:, None].expand(-1, 3).contiguous())
    assert torch.equal(geometry.points[:, 0], torch.arange(0, 1000.0, 10))
    assert "1000" in caplog.text and "100" in caplog.text


def test_prune_removes_what_is_below_either_limit():
    geometry = memory()
    points = noise(10, 0, 100.0)
    geometry.initialize(points, confidence=torch.linspace(0, 0.9, 10))
    geometry.update(points[:6], POSE, confidence=torch.linspace(0, 0.5, 6))
    assert geometry.prune() == 0
    assert geometry.prune(min_confidence=0.15, min_observations=2) == 6
    assert torch.equal(geometry.points, points[2:6])
    assert geometry.prune(keep=torch.tensor([True, False, True, True])) == 1
    assert geometry.num_points == 3


def test_files_and_state_dicts_carry_weights_and_cloud(tmp_path, cameras):
    geometry = memory()
    geometry.initialize(noise(101, 0), colors=noise(101, 1), normals=noise(101, 2), source=4)
    geometry.update(noise(57, 3), POSE, torch.rand(57, 5), merge_threshold=0.05, source=5)
    geometry.save(tmp_path / "cloud.safetensors")
    torch.manual_seed(9)
    other, third = (GlobalGeometricMemory(5, 7, 3, max_points=1000) for _ in range(2))
    other.load(tmp_path / "cloud.safetensors")
    third.load_state_dict(geometry.state_dict())
    queries = noise(11, 7)[None]
    for loaded in (other, third):
        assert same(state(loaded), state(geometry))
        expected = geometry.query(queries, cameras[0], "attention")
        assert torch.equal(loaded.query(queries, cameras[0], "attention"), expected)
        loaded.update(noise(57, 3) + 0.01, POSE, merge_threshold=0.05)
    again = geometry.update(noise(57, 3) + 0.01, POSE, merge_threshold=0.05)
    assert again.total_points == other.num_points
    assert same(state(other), state(geometry))
    with pytest.raises(ValueError, match="point_cloud_dim.*5.*6"):
        GlobalGeometricMemory(6, 7).load(tmp_path / "cloud.safetensors")
    with pytest.raises(RuntimeError, match="memory.points"):
        weights = {k: v for k, v in geometry.state_dict().items() if not k.startswith("memory.")}
        other.load_state_dict(weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("learned.seed"), 'does not fit this memory: .*"learned.seed"'),
        (lambda s: s.update({"memory.colors": s["memory.colors"] + 3}), "colors holds 3"),
        (lambda s: s.update({"memory.observations": s["memory.observations"] * 0}), "0 to 0"),
        (lambda s: s.update({"memory.radii": s["memory.radii"] - 1}), "radii holds -0"),
        (lambda s: s.update({"learned.seed": torch.zeros(3)}), "size mismatch for learned.seed"),
        (None, "is no file that a memory saved, or it is damaged"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(change, message, tmp_path):
    from safetensors.torch import save_file

    memory = GlobalGeometricMemory(5, 7, latent_channels=3)
    memory.initialize(torch.rand(11, 3))
    other = GlobalGeometricMemory(5, 7, latent_channels=3)
    other.initialize(torch.rand(13, 3), radii=torch.rand(13))
    state = {k: v.clone() for k, v in other.state_dict().items()}
    if change is None:
        (tmp_path / "x").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    else:
        change(state)
        save_file(state, tmp_path / "x")
    before = {k: v.clone() for k, v in memory.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        memory.load(tmp_path / "x")
    assert "\n" not in str(caught.value)
    after = memory.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_features_that_were_not_given_take_no_memory_and_follow_their_points():
    wide = memory(point_cloud_dim=64)
    wide.initialize(noise(997, 0))
    assert wide.memory_bytes < 997 * 100
    assert wide.features.shape == (997, 64)
    torch.testing.assert_close(
        wide.features, wide.learned.encode(wide.points, wide.colors).detach()
    )
    wide.update(noise(3, 1), POSE, torch.ones(3, 64))
    assert wide.features.shape == (wide.num_points, 64)
    assert torch.equal(wide.features[-1], torch.ones(64))


def test_properties_of_an_empty_and_of_a_filled_memory():
    geometry = memory()
    assert geometry.is_empty and geometry.num_points == 0 and geometry.capacity == 1000
    assert [geometry.bounds[i].tolist() for i in range(2)] == [[0.0] * 3] * 2
    points = noise(31, 0) - 0.5
    geometry.initialize(points)
    assert not geometry.is_empty
    assert torch.equal(geometry.bounds[0], points.amin(0))
    assert torch.equal(geometry.bounds[1], points.amax(0))
    assert geometry.observations.tolist() == [1] * 31
    assert geometry.sources.tolist() == [-1] * 31
    assert geometry.last_seen.tolist() == [0] * 31
    assert torch.equal(geometry.confidence, torch.ones(31))
    assert torch.equal(geometry.colors, torch.full((31, 3), 0.5))
    assert geometry.memory_bytes > 31 * 36


BAD = [
    ("initialize", {"points": torch.zeros(3, 2)}, r"points.*\(3, 2\)"),
    ("initialize", {"points": torch.zeros(3, 3, dtype=torch.float64)}, "points.*float64"),
    ("initialize", {"points": torch.zeros(3, 3, dtype=torch.int64)}, "points.*int64"),
    ("initialize", {"points": torch.tensor([[0.0, math.nan, 0.0]])}, r"points\[0, 1\].*nan"),
    ("initialize", {"points": torch.zeros(3, 3, device="meta")}, "points.*meta"),
    ("initialize", {"features": torch.zeros(3, 6)}, r"features.*\(3, 5\).*\(3, 6\)"),
    ("initialize", {"colors": torch.full((3, 3), 1.5)}, r"colors.*1\.5"),
    ("initialize", {"confidence": torch.full((3,), -0.5)}, r"confidence.*-0\.5"),
    ("initialize", {"normals": torch.zeros(2, 3)}, r"normals.*\(2, 3\)"),
    ("initialize", {"radii": torch.full((3,), -1.0)}, "radii.*-1"),
    ("initialize", {"source": torch.zeros(4, dtype=torch.int64)}, r"source.*\(4,\)"),
    ("update", {"merge_threshold": -0.1}, r"merge_threshold.*-0\.1"),
    ("update", {"merge_threshold": math.nan}, "merge_threshold.*nan"),
    ("update", {"camera_pose": torch.eye(4) * 2}, "camera_pose.*off the identity"),
    ("update", {"camera_pose": torch.eye(3)}, r"camera_pose.*\(3, 3\)"),
    ("update", {"camera_pose": torch.diag(torch.tensor([1.0, 1, -1, 1]))}, "camera_pose.*det"),
    ("update", {"confidence": torch.full((3,), 1.01)}, r"confidence.*1\.01"),
    ("update", {"features": torch.zeros(3, 4)}, r"features.*\(3, 4\)"),
    ("update", {"new_points": torch.full((3, 3), math.inf)}, "new_points.*inf"),
    ("query", {"aggregation": "median"}, "aggregation.*median"),
    ("query", {"query_points": torch.zeros(4, 3)}, r"query_points.*\(4, 3\)"),
    ("neighbors", {"k": 0}, "k must be at least 1"),
    ("inject_to_latent", {"injection_method": "film"}, "injection_method.*film"),
    ("inject_to_latent", {"latent": torch.zeros(1, 5, 3, 4, 4)}, r"latent.*16.*\(1, 5, 3, 4, 4\)"),
    ("inject_to_latent", {"latent": torch.zeros(1, 4, 16, 4, 4)}, r"camera_params.*\(4,\).*\(5,\)"),
    ("prune", {"keep": torch.ones(7, dtype=torch.bool)}, r"keep.*\(7,\)"),
    ("render", {"radius": -1}, "radius.*-1"),
]


@pytest.mark.parametrize(("method", "change", "message"), BAD)
def test_a_bad_argument_is_named_and_changes_nothing(method, change, message, cameras):
    geometry = memory()
    geometry.initialize(noise(5, 0), torch.rand(5, 5))
    before = state(geometry)
    good = {
        "initialize": {"points": noise(3, 1)},
        "update": {"new_points": noise(3, 1), "camera_pose": POSE},
        "query": {"query_points": noise(4, 1)[None]},
        "neighbors": {"query_points": noise(4, 1)[None]},
        "inject_to_latent": {"latent": torch.zeros(1, 5, 16, 4, 4), "camera_params": cameras},
        "prune": {},
        "render": {"camera_params": cameras},
    }[method]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        getattr(geometry, method)(**(good | change))
    assert "\n" not in str(error.value)
    assert same(state(geometry), before)


@pytest.mark.parametrize(
    "options",
    [
        {"point_cloud_dim": 0},
        {"num_neighbors": 0},
        {"max_points": -5},
        {"update_frequency": "hourly"},
        {"spatial_index": "octree"},
    ],
)
def test_a_bad_option_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        memory(**options)
