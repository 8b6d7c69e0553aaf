"""Nearest neighbours against a slow loop in float64, on clouds that break indexes."""

import logging

import numpy as np
import pytest
import torch

from worldstereo import neighbors as spatial_index
from worldstereo._core.morton import MortonTree, morton_order
from worldstereo.neighbors import KeopsIndex, ScipyIndex, build_index
from worldstereo.neighbors.compiled import CompiledIndex


def slow(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    away = points[None].astype(np.float64) - queries[:, None].astype(np.float64)
    square = away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2
    rows = np.argsort(square, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(square, rows, axis=1)), rows


def clouds() -> dict[str, np.ndarray]:
    g = np.random.default_rng(3)
    cube = g.random((2003, 3))
    outlier = cube.copy()
    outlier[7] = 1e6
    made = {
        "one": g.random((1, 3)),
        "few": g.random((47, 3)),
        "cube": cube,
        "surface": cube * [1, 1, 1e-3],
        "plane": cube * [1, 1, 0],
        "line": cube * [0, 1, 0],
        "lattice": np.round(cube * 7) / 7,
        "equal": np.full((2003, 3), 3.0),
        "outlier": outlier,
        "tiny": cube * 1e-6,
        "huge": cube * 1e6,
        "shifted": cube + 1e6,
        "stacks": np.repeat(g.random((41, 3)), 53, axis=0),
        "thinning out": cube**4 * [1, 1, 0.01],
        "two scales": np.concatenate([g.random((1009, 3)) * 1e-4, g.random((1009, 3)) * 1e4]),
    }
    return {name: points.astype(np.float32) for name, points in made.items()}


def queries_of(points: np.ndarray) -> np.ndarray:
    """Near the points, on them, between them and far outside."""
    g = np.random.default_rng(5)
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    inside = low + g.random((151, 3)) * size
    outside = points.mean(axis=0) + (g.random((41, 3)) - 0.5) * (size + 1e-3) * 9
    return np.concatenate([inside, points[:43], outside]).astype(np.float32)


@pytest.mark.parametrize("name", list(clouds()))
def test_neighbours_are_those_of_a_slow_loop(name):
    points = clouds()[name]
    queries = queries_of(points)
    for k in (1, 8, 32, 701, 3001):  # the last is larger than any of the clouds
        expected = slow(points, queries, k)
        for index in (build_index(torch.from_numpy(points)), ScipyIndex(points)):
            distance, rows = index.query(queries, k)
            np.testing.assert_array_equal(rows, expected[1])
            np.testing.assert_allclose(distance, expected[0], rtol=1e-15)


def test_the_tree_alone_and_points_removed_from_it():
    points = clouds()["lattice"]
    queries, gone = queries_of(points), np.arange(0, 2003, 3)
    index = CompiledIndex(points)
    index.remove(gone)
    kept = np.setdiff1d(np.arange(2003), gone)
    for k in (11, 1301):
        expected = kept[slow(points[kept], queries, k)[1]]
        np.testing.assert_array_equal(index.query(queries, k)[1], expected)
    index._grid = None
    expected = kept[slow(points[kept], queries, 11)[1]]
    np.testing.assert_array_equal(index.query(queries, 11)[1], expected)


def test_queries_in_order_start_from_what_the_last_ones_found():
    """Dense and sparse places, copies and points far away, one after the other; also ties."""
    g = np.random.default_rng(9)
    parts = [g.random((3001, 3)) * [2, 2, 0.01], g.random((2003, 3)) * 0.05]
    parts += [np.round(g.random((1009, 3)) * 9) / 9, np.repeat(g.random((7, 3)), 301, axis=0)]
    points = np.concatenate(parts).astype(np.float32)
    queries = np.concatenate([points[g.permutation(len(points))[:397]], g.random((101, 3)) * 4 - 1])
    queries = queries.astype(np.float32)
    for k in (1, 8, 32, 100):
        distance, rows = build_index(points).query(queries, k)
        expected = slow(points, queries, k)
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(distance, expected[0])


def test_as_many_neighbours_as_points_are_sorted_and_not_inserted():
    points = np.random.default_rng(2).random((300_007, 3)).astype(np.float32)
    distance, rows = build_index(points).query(points[:2], 10**6)
    assert rows.shape == (2, 300_007)
    np.testing.assert_array_equal(rows, slow(points, points[:2], 300_007)[1])
    assert (np.diff(distance) >= 0).all()


def test_distances_too_large_for_float32_squares_take_another_path():
    points = clouds()["cube"] * np.float32(1e18)
    distance, rows = build_index(points).query(points[:31], 3)
    np.testing.assert_array_equal(rows, slow(points, points[:31], 3)[1])
    assert np.isfinite(distance).all()
    near = clouds()["cube"]
    np.testing.assert_array_equal(
        build_index(near).query(points[:31], 3)[1], slow(near, points[:31], 3)[1]
    )


def test_many_equal_points_do_not_blow_up():
    """Each query would visit all 300 007 copies if they were not told apart by row."""
    points = np.ones((300_007, 3), np.float32)
    queries = np.random.default_rng(0).random((4001, 3)).astype(np.float32)
    for index in (build_index(points), ScipyIndex(points)):
        distance, rows = index.query(queries, 5)
        np.testing.assert_array_equal(rows, np.tile(np.arange(5), (4001, 1)))
        away = np.linalg.norm(queries.astype(np.float64) - 1, axis=1)
        np.testing.assert_allclose(distance, np.repeat(away[:, None], 5, axis=1))


def test_threads_change_nothing(monkeypatch):
    points = clouds()["surface"]
    queries = np.tile(queries_of(points), (5, 1))
    expected = build_index(points).query(queries, 9)
    monkeypatch.setenv("WORLDSTEREO_THREADS", "1")
    distance, rows = build_index(points).query(queries, 9)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(distance, expected[0])


def test_no_points_and_no_queries():
    distance, rows = build_index(torch.zeros(0, 3)).query(np.zeros((7, 3), np.float32), 3)
    assert distance.shape == rows.shape == (7, 0)
    assert build_index(torch.zeros(5, 3)).query(np.zeros((0, 3), np.float32), 3)[0].shape == (0, 3)


def test_without_a_compiler_scipy_answers(monkeypatch):
    monkeypatch.setattr(spatial_index, "has_compiler", lambda: False)
    assert isinstance(build_index(torch.zeros(5, 3)), ScipyIndex)


def test_without_keops_another_exact_index_answers_and_says_so_once(monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'pykeops_cpp_1234'")

    monkeypatch.setattr(spatial_index, "_keops_candidates", broken)
    spatial_index.keops_works.cache_clear()
    points = torch.rand(101, 3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            index = build_index(points, "cuda_knn")
            queries = points[:5].numpy()
            np.testing.assert_array_equal(
                index.query(queries, 4)[1], slow(points.numpy(), queries, 4)[1]
            )
    spatial_index.keops_works.cache_clear()
    assert len([r for r in caplog.records if "pykeops_cpp_1234" in r.getMessage()]) == 1


@pytest.mark.parametrize("name", ["cube", "lattice", "shifted", "equal"])
def test_keops_candidates_are_ranked_again_in_float64(name, monkeypatch):
    """The candidates here are those of a float32 matrix, as KeOps forms them on any device."""

    def candidates(points: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
        square = ((queries[:, None] - points[None]) ** 2).sum(dim=-1)
        return square.topk(k, largest=False).indices

    monkeypatch.setattr(spatial_index, "_keops_candidates", candidates)
    points = clouds()[name]
    queries = queries_of(points)
    distance, rows = KeopsIndex(torch.from_numpy(points)).query(queries, 8)
    expected = slow(points, queries, 8)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(distance, expected[0])


def test_the_curve_keeps_neighbours_together_and_boxes_hold_their_points():
    points = clouds()["outlier"]
    order = morton_order(points)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(points)))
    steps = np.linalg.norm(np.diff(points[order], axis=0), axis=1)
    assert np.median(steps) < 0.25 * np.median(np.linalg.norm(np.diff(points, axis=0), axis=1))
    tree = MortonTree(points)
    for leaf in range(len(points) // 16):
        inside = points[tree.order[leaf * 16 : leaf * 16 + 16]]
        np.testing.assert_array_equal(tree.box[:3, leaf], inside.min(axis=0))
        np.testing.assert_array_equal(tree.box[3:, leaf], inside.max(axis=0))


@pytest.mark.parametrize(
    ("kind", "points"), [("octree", torch.zeros(3, 3)), ("auto", torch.zeros(3, 2))]
)
def test_a_bad_argument_is_named(kind, points):
    with pytest.raises(ValueError, match=r"octree|\(3, 2\)"):
        build_index(points, kind)
