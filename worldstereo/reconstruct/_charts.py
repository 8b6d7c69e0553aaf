"""A flat chart for every part of a mesh: faces that look the same way, seen from that way.

xatlas packs the charts. Its own search for charts takes 115 s of one core for 200 000 triangles of
a room and finds planes in the end; this takes 1 s.
"""

import itertools
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SMALL = 24  # faces below which a chart joins the neighbour it borders on most, where that sees it
STEEP = 0.25  # cosine below which a face must not be drawn from a direction

_AXES = np.array([d for d in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, d)) in (1, 3)])
DIRECTIONS = _AXES / np.linalg.norm(_AXES, axis=1, keepdims=True)
"""14: no face is drawn at more than 55 degrees, most below 30."""


def charts(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F,) number of each face's chart and (F, 3, 2) flat corners, scene units."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    unit = normal / np.maximum(area, 1e-30)
    pairs = neighbours(faces)
    smooth = unit.copy()
    links = _links(pairs, len(faces))
    for _ in range(4):
        smooth = links @ (smooth * np.minimum(area, np.median(area))) + 1e-12 * unit
        smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-30)
    own = unit @ DIRECTIONS.T
    score = np.where(own > STEEP, smooth @ DIRECTIONS.T, own - 2)
    direction = score.argmax(axis=1)
    for _ in range(3):
        chart = _parts(direction, pairs)
        moved = _absorbed(direction, chart, pairs, own)
        if np.array_equal(moved, direction):
            break
        direction = moved
    chart = _parts(direction, pairs)
    d = DIRECTIONS[direction]
    side = np.where(np.abs(d[:, :1]) < 0.7, [[1.0, 0, 0]], [[0.0, 1, 0]])
    u = np.cross(side, d)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(d, u)
    corners = vertices[faces].astype(np.float64)
    flat = np.stack([(corners * u[:, None]).sum(2), (corners * v[:, None]).sum(2)], axis=2)
    return chart, flat


def corners_of(
    chart: np.ndarray, faces: np.ndarray, vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices split where charts meet: (K,) the old one of each, and (F, 3) the new faces."""
    pairs = chart.astype(np.int64)[:, None] * vertices + faces  # beyond 32 bits for noisy rooms
    key, corner = np.unique(pairs, return_inverse=True)
    return key % vertices, corner.reshape(-1, 3)


def neighbours(faces: np.ndarray) -> np.ndarray:
    """(P, 2) faces that share an edge."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.sort(edges, axis=1)
    face = np.tile(np.arange(len(faces)), 3)
    key = edges[:, 0] * (int(faces.max(initial=0)) + 1) + edges[:, 1]
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order][1:] == key[order][:-1])
    return np.stack([face[order][same], face[order][same + 1]], axis=1)


def _links(pairs: np.ndarray, n: int) -> Any:
    rows = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(n)])
    columns = np.concatenate([pairs[:, 1], pairs[:, 0], np.arange(n)])
    return coo_matrix((np.ones(len(rows)), (rows, columns)), (n, n)).tocsr()


def _parts(direction: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Connected faces of one direction."""
    n = len(direction)
    same = direction[pairs[:, 0]] == direction[pairs[:, 1]]
    rows, columns = pairs[same].T
    links = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (n, n))
    return connected_components(links, directed=False)[1]


def _absorbed(
    direction: np.ndarray, chart: np.ndarray, pairs: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """Directions with each small chart turned to that of the neighbour it shares most edges with,
    where every face of it can be seen from there."""
    size = np.bincount(chart)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    border = both[(chart[both[:, 0]] != chart[both[:, 1]]) & (size[chart[both[:, 0]]] < SMALL)]
    if len(border) == 0:
        return direction
    count = np.zeros((len(size), len(DIRECTIONS)))
    np.add.at(count, (chart[border[:, 0]], direction[border[:, 1]]), 1)
    seen = np.full((len(size), len(DIRECTIONS)), np.inf)
    np.minimum.at(seen, chart, own)
    count[seen <= STEEP] = 0
    best = count.argmax(axis=1)
    moves = (count.max(axis=1) > 0) & (size < SMALL)
    return np.where(moves[chart], best[chart], direction)
