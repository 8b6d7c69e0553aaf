"""The stage: what it sends, what it draws where, and what clicks, boxes and flights become."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
import viser.transforms as vtf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import room, turned_cameras
from ui.viewport.camera import Recorder
from ui.viewport.cloud import (
    MAX_NODES,
    Blocks,
    disc_covariances,
    match_rows,
    share_shown,
    shares_by_distance,
    size_classes,
    spacing,
)
from ui.viewport.colors import COLOR_MODES, color_points
from ui.viewport.events import Event, KeyframesChanged, Measured, Pick, Selected
from ui.viewport.frames import (
    COMFORT,
    blend_poses,
    camera_of,
    fitting_fov,
    pyramid_lines,
    stage_scale,
    vertical_fov,
    wxyz,
)
from ui.viewport.overlays import (
    FRAMED,
    FRUSTUM,
    MAX_MATCHES,
    MIN_FRUSTUM,
    PICTURED,
    MatchLine,
    evenly,
)
from ui.viewport.picking import pick, select
from ui.viewport.viewport import Viewport
from worldstereo.cameras import Cameras, look_at
from worldstereo.exports.conventions import to_file
from worldstereo.exports.mesh import Body
from worldstereo.exports.mesh_glb import glb
from worldstereo.reconstruct import Mesh
from worldstereo.scene import PointCloud, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.world import default_view


def recording() -> Viewport:
    """A viewport whose events are kept in `said`, for `taken`."""
    said: list[Event] = []
    viewport = Viewport(on_event=said.append)
    viewport.said = said  # type: ignore[attr-defined]
    return viewport


def taken(viewport: Viewport) -> list[Event]:
    """Events since the last call."""
    events = list(viewport.said)  # type: ignore[attr-defined]
    viewport.said.clear()  # type: ignore[attr-defined]
    return events


@pytest.fixture
def viewport():
    viewport = recording()
    yield viewport
    viewport.close()


def wall(n: int, step: int = 0, z: float = 3.0, seed: int = 3) -> PointCloud:
    """Points of a turned wall with normals and three sizes."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, generator=generator) * torch.tensor([4.0, 3.0, 0.01])
    return PointCloud(
        points=points + torch.tensor([-2.0, -1.5, z]),
        colors=torch.rand(n, 3, generator=generator),
        confidence=torch.rand(n, generator=generator),
        step=torch.full((n,), step),
        normals=torch.tensor([[0.0, 0.0, -1.0]]).repeat(n, 1),
        radii=torch.tensor([0.004, 0.008, 0.016]).repeat(n)[:n],
        source=torch.zeros(n, dtype=torch.int64),
    )


def joined(*clouds: PointCloud) -> PointCloud:
    names = ("points", "colors", "confidence", "step", "normals", "radii", "source")
    return PointCloud(**{n: torch.cat([getattr(c, n) for c in clouds]) for n in names})


def kept(cloud: PointCloud, keep: torch.Tensor) -> PointCloud:
    names = ("points", "colors", "confidence", "step", "normals", "radii", "source")
    return PointCloud(**{n: getattr(cloud, n)[keep] for n in names})


def some_views(n: int) -> tuple[View, ...]:
    cameras = turned_cameras(n)
    color, depth = room(cameras)
    return tuple(View.of(color[i], depth[i], cameras[i], frame=i) for i in range(n))


def drawn(viewport: Viewport, scene: Scene) -> int:
    """Draws a scene; returns how many bytes of points that sent."""
    before = viewport.stats["bytes_sent"]
    viewport.draw(scene)
    assert viewport.settle()
    return viewport.stats["bytes_sent"] - before


def on_wire(viewport: Viewport) -> np.ndarray:
    """World positions of every point that viser would send to a page that connects now."""
    found = []
    for node in viewport._cloud._nodes.values():
        local = np.asarray(node.handle.points, np.float64)[~node.stale]
        found.append(local + np.asarray(node.handle.position))
    return np.concatenate(found) / viewport._scale


# ---- what is sent --------------------------------------------------------------------------------


def test_growth_sends_the_new_points_and_nothing_else(viewport):
    """Nine bytes a point: three half-precision coordinates and a colour."""
    old, new = wall(5003), wall(1009, step=1, z=2.0)
    assert drawn(viewport, Scene(revision=0, cloud=old)) == 9 * 5003
    assert drawn(viewport, Scene(revision=1, cloud=joined(old, new))) == 9 * 1009
    assert drawn(viewport, Scene(revision=2, cloud=joined(old, new))) == 0
    assert viewport.stats["points"] == 6012


def test_undo_takes_nodes_away_and_sends_nothing(viewport):
    old, new = wall(5003), wall(1009, step=1, z=2.0)
    drawn(viewport, Scene(revision=0, cloud=old))
    drawn(viewport, Scene(revision=1, cloud=joined(old, new)))
    assert drawn(viewport, Scene(revision=0, cloud=old)) == 0
    assert viewport.stats["points"] == 5003


def test_points_merged_within_half_a_width_stay_and_those_that_left_are_drawn_again(viewport):
    old = wall(5003)
    drawn(viewport, Scene(revision=0, cloud=old))
    nudged = old.points.clone()
    nudged[::7] += 0.3 * old.radii[::7, None]
    assert drawn(viewport, Scene(revision=1, cloud=kept_points(old, nudged))) == 0
    nudged[:31] += 0.5
    assert drawn(viewport, Scene(revision=2, cloud=kept_points(old, nudged))) == 9 * 31
    assert viewport.stats["points"] == 5003


def kept_points(cloud: PointCloud, points: torch.Tensor) -> PointCloud:
    return PointCloud(**{**cloud.__dict__, "points": points})


def test_a_deletion_leaves_exactly_the_other_points_on_the_stage(viewport):
    cloud = joined(wall(2003), wall(1009, step=1, z=2.0))
    drawn(viewport, Scene(revision=0, cloud=cloud))
    keep = torch.rand(3012, generator=torch.Generator().manual_seed(5)) > 0.1
    drawn(viewport, Scene(revision=1, cloud=kept(cloud, keep)))
    shown = on_wire(viewport)
    wanted = cloud.points[keep].numpy()
    order = lambda p: p[np.lexsort(np.round(p, 1).T)]  # noqa: E731
    assert len(shown) == len(wanted)
    np.testing.assert_allclose(shown.sum(0), wanted.sum(0), atol=0.5)
    np.testing.assert_allclose(order(shown).mean(0), order(wanted).mean(0), atol=1e-3)


def test_points_of_a_thinned_cloud_are_as_wide_as_what_they_stand_for(viewport):
    cloud = wall(6007)
    drawn(viewport, Scene(revision=0, cloud=cloud))
    before = sorted(node.size for node in viewport._cloud._nodes.values())
    left = kept(cloud, torch.arange(len(cloud)) % 4 == 0)
    left = PointCloud(**{**left.__dict__, "radii": 2 * left.radii})
    drawn(viewport, Scene(revision=1, cloud=left, stretch=2.0))
    after = sorted(node.size for node in viewport._cloud._nodes.values())
    assert viewport.stats["points"] == len(left) and len(before) == len(after) == 3
    assert all(2.2 < new / old < 3.1 for old, new in zip(before, after, strict=True))
    assert drawn(viewport, Scene(revision=1, cloud=left, stretch=2.0)) == 0


def test_far_from_the_origin_points_keep_their_place(viewport):
    """Half precision around the node's centre, not around the origin: no error of millimetres."""
    cloud = wall(1009)
    far = kept_points(cloud, cloud.points + torch.tensor([50.0, -30.0, 20.0]))
    drawn(viewport, Scene(revision=0, cloud=far, unit=COMFORT))
    shown, wanted = on_wire(viewport), far.points.double().numpy()
    nearest = np.abs(shown[:, None] - wanted[None]).max(-1).min(1)
    assert nearest.max() < 1.5e-3  # 2 m from the centre, half a step of 11 bits


def test_recolouring_sends_three_bytes_a_point(viewport):
    drawn(viewport, Scene(revision=0, cloud=wall(5003)))
    before = viewport.stats["bytes_sent"]
    viewport.color_by("confidence")
    assert viewport.settle()
    assert viewport.stats["bytes_sent"] - before == 3 * 5003


def test_surface_draws_the_same_points_as_discs(viewport):
    drawn(viewport, Scene(revision=0, cloud=wall(1009)))
    before = viewport.stats["bytes_sent"]
    viewport.draw_as("surface")
    assert viewport.settle()
    assert viewport.stats["bytes_sent"] - before == 32 * 1009
    assert viewport.stats["points"] == 1009


def test_a_mesh_stands_where_its_points_stood_and_leaves_with_the_next_step(viewport):
    """Its file is +Y up and in metres; on the viewport its vertices are the world's, scaled."""
    up = torch.nn.functional.normalize(torch.tensor([0.2, -1.0, 0.1]), dim=0)
    scene = Scene(1, "a", cloud=wall(50), unit=2.0, up=up, metres_per_unit=0.5)
    mesh = Mesh.of(torch.rand(5, 3) + 1, torch.tensor([[0, 1, 2], [2, 3, 4]]))
    data = glb(Body(mesh, {}, scene))
    viewport.draw(scene)
    viewport.show_mesh(data, np.linalg.inv(to_file(scene, (0, 1, 0))))
    assert viewport.settle() and viewport.mesh_shown
    handle = viewport._mesh
    in_file = trimesh.load(io.BytesIO(data), file_type="glb").to_mesh().vertices
    at = handle.scale * (in_file @ vtf.SO3(np.array(handle.wxyz)).as_matrix().T)
    np.testing.assert_allclose(at, mesh.vertices.numpy() * stage_scale(2.0), atol=1e-4)
    viewport.draw(replace(scene, revision=2))
    assert viewport.settle() and not viewport.mesh_shown and viewport._mesh is None


def test_many_small_steps_end_in_few_nodes(viewport):
    clouds = [wall(70, step=i, seed=i) for i in range(MAX_NODES // 3 + 20)]
    for count in (len(clouds) - 1, len(clouds)):
        drawn(viewport, Scene(revision=count, cloud=joined(*clouds[:count])))
        assert viewport.stats["nodes"] <= MAX_NODES
    assert viewport.stats["points"] == 70 * len(clouds)


def test_a_cloud_above_the_limit_is_thinned_evenly_with_a_notice(viewport):
    viewport._cloud._limits = {"points": 1000, "surface": 500}
    cloud = wall(7001)
    drawn(viewport, Scene(revision=0, cloud=cloud))
    shown = viewport.stats["points"]
    assert 0.6 * 1000 < shown <= 1100
    assert "of 7,001 points" in viewport.notices[0]
    middle = on_wire(viewport).mean(0)
    np.testing.assert_allclose(middle, cloud.points.mean(0), atol=0.15)
    # a little growth keeps what is shown
    assert drawn(viewport, Scene(revision=1, cloud=joined(cloud, wall(53, step=1)))) < 9 * 53
    viewport.draw_as("surface")  # discs cost more: fewer of them
    assert viewport.settle() and 0.6 * 500 < viewport.stats["points"] <= 550


def shown_rows(viewport: Viewport) -> set[int]:
    nodes = viewport._cloud._nodes.values()
    return {int(row) for node in nodes for row in node.rows[~node.stale]}


def looked_at_from(viewport: Viewport, eye: np.ndarray) -> int:
    """The camera rests at a world position; returns how many bytes of points that sent."""
    before = viewport.stats["bytes_sent"]
    viewport._post(lambda: viewport._cloud.look_from(eye * viewport._scale))
    assert viewport.settle()
    return viewport.stats["bytes_sent"] - before


@pytest.mark.parametrize("mode", ["points", "surface"])
def test_near_points_are_whole_and_far_ones_few_within_the_budget(viewport, mode):
    viewport._cloud._limits = dict.fromkeys(("points", "surface"), 6007)
    viewport.draw_as(mode)
    far = wall(20_011)
    long = far.points * torch.tensor([10.0, 1.0, 1.0])  # 40 scene units
    cloud = replace(far, points=long, radii=torch.full((len(far),), 0.01))
    drawn(viewport, Scene(revision=0, cloud=cloud))
    places = cloud.points.numpy()
    seen = {}
    for x in (-20.0, 20.0):
        eye = np.array([x, 0.0, 2.0])
        looked_at_from(viewport, eye)
        seen[x] = shown_rows(viewport)
        assert 0.5 * 6007 < len(seen[x]) <= 1.05 * 30_011
        assert viewport.stats["points"] == len(seen[x]) and viewport.stats["nodes"] <= MAX_NODES
        near = set(np.flatnonzero(np.linalg.norm(places - eye, axis=1) < 2).tolist())
        assert len(near) > 500 and near <= seen[x]
        for start in range(-20, 20, 4):  # nothing has vanished
            here = (places[:, 0] >= start) & (places[:, 0] < start + 4)
            assert set(np.flatnonzero(here).tolist()) & seen[x]
        block, share = viewport._cloud.levels
        if mode == "points":  # where fewer points stand for the surface, they are wider
            few, all_ = (
                max(n.size for n in viewport._cloud._nodes.values() if n.block == block[row])
                for row in (share.argmin(), share.argmax())
            )
            assert few > 1.5 * all_
    block, share = viewport._cloud.levels
    coarsest = set(np.flatnonzero(share == share.min()).tolist())
    assert seen[20.0] & coarsest <= seen[-20.0]  # a finer level holds the coarser ones
    assert "fewer the farther away" in viewport.notices[0]


def test_a_small_move_and_a_little_growth_send_few_blocks(viewport):
    viewport._cloud._limits = {"points": 6007, "surface": 6007}
    cloud = wall(20_011)
    drawn(viewport, Scene(revision=0, cloud=cloud))
    whole = looked_at_from(viewport, np.array([-2.0, 0.0, 2.8]))
    assert looked_at_from(viewport, np.array([-2.0, 0.0, 2.8])) == 0
    assert looked_at_from(viewport, np.array([-1.99, 0.0, 2.8])) < whole / 2
    few = wall(300, step=1)
    corner = replace(few, points=few.points * 0.05 + torch.tensor([-1.8, 1.2, 2.85]))
    assert drawn(viewport, Scene(revision=1, cloud=joined(cloud, corner))) < whole / 2
    viewport._cloud._limits = {"points": 40_000, "surface": 6007}
    drawn(viewport, Scene(revision=2, cloud=joined(cloud, corner)))
    assert viewport.stats["points"] == 20_311 and not viewport.notices


@given(st.integers(1, 60_000), st.integers(1, 50_000), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_shares_of_blocks_keep_the_budget_and_fall_with_distance(count, limit, seed):
    g = np.random.default_rng(seed)
    points = (g.normal(size=(count, 3)) * g.uniform(0.1, 10, 3)).astype(np.float32)
    blocks = Blocks(points)
    block, eye = blocks.of(points), g.normal(size=3).astype(np.float32)
    counts, distance = np.bincount(block, minlength=blocks.number), blocks.distances(eye)
    shares = shares_by_distance(counts, distance, limit)
    assert (counts * shares).sum() <= max(limit, 1) and (shares > 0).all() and (shares <= 1).all()
    nearest_first = np.argsort(distance, kind="stable")
    assert (np.diff(shares[nearest_first]) <= 0).all()
    assert counts.max() <= max(16, 4 * count / blocks.number)


def test_without_a_gpu_discs_are_few_and_points_are_not(viewport):
    drawn(viewport, Scene(revision=0, cloud=wall(130_000)))
    assert viewport.stats["points"] < 125_000  # nobody has said yet what draws them
    viewport.renderer(software=True)
    assert viewport.settle() and viewport.stats["points"] == 130_000
    viewport.draw_as("surface")
    assert viewport.settle() and viewport.stats["points"] < 62_000
    viewport.renderer(software=False)
    assert viewport.settle() and viewport.stats["points"] == 130_000


@given(st.integers(1, 10**8), st.integers(1, 10**7))
def test_the_share_shown_fits_the_limit_and_wastes_at_most_a_fifth(count, limit):
    shown = count * share_shown(count, limit)
    assert shown <= max(limit, 1) * (1 + 1e-9)
    assert count <= limit or shown >= 0.8 * limit * (1 - 1e-9)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_rows_are_found_again_after_any_deletion_and_growth(steps, data):
    rng = np.random.default_rng(len(steps))
    old_step = np.sort(np.array(steps))
    old = rng.random((len(steps), 3)).astype(np.float32)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old))))
    grown = data.draw(st.integers(0, 5))
    new = np.concatenate([old[keep], rng.random((grown, 3)).astype(np.float32) + 5])
    new_step = np.concatenate([old_step[keep], np.full(grown, 4)])
    match, moved = match_rows(old, new, old_step, new_step, np.full(len(new), 1e-3))
    for row, target in enumerate(match):
        if target >= 0 and not moved[row]:
            np.testing.assert_array_equal(old[row], new[target])
    assert (match[~keep] < 0).all() or moved[~keep][match[~keep] >= 0].all()


# ---- how points look -----------------------------------------------------------------------------


def test_size_classes_hold_every_row_once_and_are_within_a_quarter_octave():
    width = np.exp(np.random.default_rng(2).normal(-5, 1, 20_011)).astype(np.float32)
    classes = size_classes(width)
    rows = np.sort(np.concatenate([rows for _, rows in classes]))
    np.testing.assert_array_equal(rows, np.arange(len(width)))
    off = np.concatenate([np.abs(np.log2(width[rows] / size)) for size, rows in classes])
    assert np.mean(off <= 0.25 + 1e-6) > 0.95  # only rare sizes join a neighbour


def test_discs_are_flat_along_their_normal_and_round_across_it():
    normal = np.array([[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]])
    cov = disc_covariances(normal, np.array([2.0, 2.0]))
    across = np.array([0.0, 1.0, 0.0])
    assert np.sqrt(normal[0] @ cov[0] @ normal[0]) == pytest.approx(0.05 * 2, rel=1e-4)
    assert np.sqrt(across @ cov[0] @ across) == pytest.approx(0.7 * 2, rel=1e-4)
    np.testing.assert_allclose(cov[1], np.eye(3) * (0.5 * 2) ** 2)  # unknown normal: a ball


def test_widths_at_the_edges_of_things_are_capped_and_unknown_ones_estimated():
    grid = torch.stack(torch.meshgrid(torch.arange(41.0), torch.arange(43.0), indexing="ij"), -1)
    points = torch.cat([grid.reshape(-1, 2) * 0.01, torch.full((41 * 43, 1), 2.0)], dim=1)
    cloud = PointCloud.of(points, source=torch.zeros(len(points), dtype=torch.int64))
    assert spacing(cloud).max() == pytest.approx(0.01, rel=0.01)  # no radius known
    radii = torch.full((len(points),), 0.005)
    radii[7] = 0.4
    cloud = PointCloud(**{**cloud.__dict__, "radii": radii})
    assert spacing(cloud, np.zeros((1, 3), np.float32)).max() < 0.03


@pytest.mark.parametrize("mode", COLOR_MODES)
def test_every_colouring_gives_bytes_for_every_row(mode):
    cloud = joined(wall(31), wall(17, step=3))
    rows = np.arange(len(cloud))
    colors = color_points(cloud, mode, rows)
    assert colors.dtype == np.uint8 and colors.shape == (48, 3)
    if mode == "photo":
        np.testing.assert_array_equal(colors, (cloud.colors.numpy() * 255 + 0.5).astype(np.uint8))
    if mode in ("step", "age"):
        old, new = colors[:31].mean(0), colors[31:].mean(0)
        assert np.abs(old - new).max() > 20


def test_unknown_colourings_and_drawings_are_refused(viewport):
    with pytest.raises(ValueError, match="photo, step, confidence, age, source"):
        viewport.color_by("mood")
    with pytest.raises(ValueError, match="points, surface"):
        viewport.draw_as("relief")


# ---- overlays ------------------------------------------------------------------------------------


def test_frusta_stand_where_the_cameras_do_and_only_some_carry_pictures(viewport):
    views = some_views(53)
    drawn(viewport, Scene(revision=0, views=views, cloud=wall(101), unit=2.0))
    frusta = viewport._views._drawn
    assert len(frusta) == FRAMED
    assert sum(handle.image is not None for _, handle in frusta.values()) == PICTURED
    for index, (view, handle) in frusta.items():
        assert view is views[index]
        position = np.array(handle.position) / stage_scale(2.0)
        np.testing.assert_allclose(position, view.cameras.position, atol=1e-5)
        rotation = vtf.SO3(np.array(handle.wxyz)).as_matrix()
        np.testing.assert_allclose(rotation, view.cameras.c2w[:3, :3], atol=1e-5)
    assert viewport._views._lines is not None


def row_of_views(count: int, step: float) -> tuple[View, ...]:
    """One picture seen from places along a line."""
    first, *_ = some_views(1)
    views = []
    for i in range(count):
        c2w = first.cameras.c2w.clone()
        c2w[0, 3] += i * step
        camera = replace(first.cameras, c2w=c2w)
        views.append(replace(first, cameras=camera, given=camera, frame=i))
    return tuple(views)


def test_frusta_that_stand_close_together_are_smaller(viewport):
    """In a video's row each keeps clear of the next; the few of a photo set are as before."""
    for count, step in ((3, 1.0), (24, 0.1), (29, 0.001)):
        drawn(viewport, Scene(revision=count, views=row_of_views(count, step), unit=2.5))
        depths = {
            handle.scale / np.cbrt(np.tan(handle.fov / 2) ** 2 * handle.aspect / 3)  # as viser does
            for _, handle in viewport._views._drawn.values()
        }
        gap = step * viewport._scale
        assert max(depths) - min(depths) < 1e-9
        assert MIN_FRUSTUM - 1e-9 <= max(depths) <= max(gap / 2, MIN_FRUSTUM + 1e-9)
        assert (max(depths) > 0.1) == (step == 1.0)


def stepped_back(c2w: np.ndarray, scale: float, depths: float, aside: float = 0.0) -> np.ndarray:
    """A pose in the viewport behind a camera of the world, turned `aside` radians."""
    pose = c2w.copy()
    pose[:3, 3] = c2w[:3, 3] * scale - depths * FRUSTUM * c2w[:3, 2]
    turn = vtf.SO3.from_y_radians(aside).as_matrix()
    pose[:3, :3] = c2w[:3, :3] @ turn
    return pose


def test_no_large_picture_lies_over_the_middle_of_the_sight(viewport):
    """Ahead a picture of a twentieth of the view is left out; at its edge, or small, it stays."""
    drawn(viewport, Scene(revision=0, views=row_of_views(2, 1.0), unit=2.5))
    frusta = viewport._views
    view, handle = frusta._drawn[0]
    picture, c2w = handle.image, view.cameras.c2w.double().numpy()
    assert picture is not None
    for depths, aside, pictured in ((5.0, 0.0, False), (5.0, 0.6, True), (20.0, 0.0, True)):
        frusta.make_way(stepped_back(c2w, viewport._scale, depths, aside), 1.0)
        assert handle.visible
        assert (handle.image is not None) == pictured
        assert not pictured or (handle.image == picture).all()


def test_a_frustum_that_would_cover_the_picture_is_hidden(viewport):
    """Beside it, not in the eye: from two depths away its picture fills a tenth of the view."""
    drawn(viewport, Scene(revision=0, views=row_of_views(2, 1.0), unit=2.5))
    frusta = viewport._views
    c2w = frusta._drawn[0][0].cameras.c2w.double().numpy()
    for depths, seen in ((2.5, False), (12.0, True)):
        frusta.make_way(stepped_back(c2w, viewport._scale, depths), 1.0)
        assert frusta._drawn[0][1].visible == seen


def test_a_world_of_fewer_views_replaces_one_of_many(viewport):
    """Their numbers are beyond the new ones."""
    for count, revision in ((29, 0), (2, 1), (0, 2), (3, 3)):
        views = some_views(count) if count else ()
        drawn(viewport, Scene(revision=revision, views=views, cloud=wall(101), unit=2.0))
        assert len(viewport._views._drawn) == count or count > FRAMED


def test_views_from_one_spot_are_one_frustum(viewport):
    """A panorama's: their pictures would wall in the place that they show."""
    views = some_views(3)
    c2w = views[0].cameras.c2w.clone()
    c2w[:3, :3] = views[2].cameras.c2w[:3, :3]
    camera = replace(views[0].cameras, c2w=c2w)
    beside = replace(views[0], cameras=camera, given=camera)
    drawn(viewport, Scene(revision=0, views=(views[0], beside, *views[1:])))
    assert sorted(viewport._views._drawn) == [0, 2, 3]
    assert viewport._views._lines is None


def test_the_path_beyond_what_is_known_has_another_color(viewport):
    """It moves along a wall and past its edge."""
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    points[:, 2] = 2.0
    c2w = torch.eye(4).repeat(9, 1, 1)
    c2w[:, 0, 3] = torch.linspace(0.0, 4.0, 9)
    K = torch.tensor([[160.0, 0.0, 80.0], [0.0, 160.0, 60.0], [0.0, 0.0, 1.0]])
    drawn(viewport, Scene(revision=0, cloud=PointCloud.of(points), unit=2.0))
    viewport.show_plan(Trajectory(Cameras(K.expand(9, 3, 3).clone(), c2w, 160, 120)))
    assert viewport.settle()
    handle = viewport._server.scene.get_handle_by_name
    within, beyond = handle("/plan/line"), handle("/plan/beyond/line")
    assert within.points[:, 1, 0].max() <= beyond.points[:, 0, 0].min() + 1e-5
    assert len(within.points) + len(beyond.points) == 8
    assert (within.colors[0] != beyond.colors[0]).any()


def test_frusta_around_the_eye_are_hidden(viewport):
    views = some_views(3)
    drawn(viewport, Scene(revision=0, views=views))
    eye = views[1].cameras.position.numpy() * viewport._scale
    pose = np.eye(4)
    pose[:3, 3] = eye
    viewport._views.make_way(pose, 1.0)
    assert [h.visible for _, h in viewport._views._drawn.values()] == [True, False, True]
    viewport._views.show(False)
    pose[:3, 3] += 100
    viewport._views.make_way(pose, 1.0)
    assert not any(h.visible for _, h in viewport._views._drawn.values())


def test_the_planned_path_runs_through_its_cameras(viewport, cameras):
    plan = Trajectory(cameras)
    viewport.show_plan(plan)
    assert viewport.settle()
    line = viewport._server.scene.get_handle_by_name("/plan/line")
    np.testing.assert_allclose(line.points[:, 0], cameras.position[:-1], atol=1e-5)
    np.testing.assert_allclose(line.points[:, 1], cameras.position[1:], atol=1e-5)
    viewport.show_plan(None)
    assert viewport.settle()
    assert viewport._server.scene.get_handle_by_name("/plan/line") is None


def test_matches_are_capped_and_refused_ones_apart(viewport):
    matches = [MatchLine((float(i), 0.0, 0.0), 0.01, i % 2 == 0) for i in range(2 * MAX_MATCHES)]
    viewport.show_matches((0.0, 0.0, 1.0), matches)
    assert viewport.settle()
    scene = viewport._server.scene
    accepted = scene.get_handle_by_name("/marks/weak")
    refused = scene.get_handle_by_name("/marks/refused")
    assert len(accepted.points) + len(refused.points) == MAX_MATCHES
    assert refused.thickness < accepted.thickness
    assert {h.thickness_units for h in (accepted, refused)} == {"screen"}


def test_pyramids_have_their_corners_on_the_rays_of_the_image_corners(cameras):
    lines = pyramid_lines(cameras[[2]], scale=1.0, size=0.5)
    assert lines.shape == (8, 2, 3)
    corners = torch.from_numpy(lines[:4, 1])
    pixels, depth = cameras[2].project(corners.to(cameras.K))
    np.testing.assert_allclose(depth, 0.5, atol=1e-5)
    middle = pixels.mean(0)  # the pyramid is centred on the axis, whatever the principal point
    np.testing.assert_allclose(middle, cameras.K[2, :2, 2], atol=1e-3)
    np.testing.assert_allclose(np.ptp(pixels.numpy(), axis=0), [37, 29], atol=1e-3)


@given(st.integers(0, 700), st.integers(2, 60))
def test_evenly_takes_both_ends_and_never_too_many(count, most):
    chosen = evenly(count, most)
    assert len(chosen) == min(count, most) or count > most >= len(chosen)
    assert chosen == sorted(set(chosen))
    if count:
        assert chosen[0] == 0 and chosen[-1] == count - 1


# ---- picking and selecting -----------------------------------------------------------------------


def test_a_ray_hits_the_first_surface_at_the_point_next_to_it():
    near, far = wall(20_011, z=2.0), wall(20_011, z=3.0)
    points = np.concatenate([near.points, far.points]).astype(np.float32)
    radii = np.full(len(points), 0.02, np.float32)
    target = points[4567]
    hit = pick(points, np.zeros(3), target, radii)
    assert hit is not None
    assert hit.row < 20_011  # not the wall behind
    assert np.linalg.norm(hit.point - target) < 0.03
    assert hit.distance == pytest.approx(np.linalg.norm(target), rel=0.02)


def test_a_ray_into_nothing_or_away_from_everything_hits_nothing():
    points = wall(1009).points.numpy()
    assert pick(points, np.zeros(3), np.array([0.0, 0.0, -1.0])) is None
    assert pick(points, np.zeros(3), np.array([1.0, 0.0, 0.0])) is None
    assert pick(np.zeros((0, 3), np.float32), np.zeros(3), np.array([0.0, 0.0, 1.0])) is None


def test_a_box_selects_what_projects_into_it_and_is_in_sight(cameras):
    camera = cameras[1]
    near, far = wall(5003, z=2.0), wall(5003, z=3.5)
    points = np.concatenate([near.points, far.points])
    K = camera.K.clone()
    K[:2, 2] = torch.tensor([camera.width / 2, camera.height / 2])  # as on the viewport
    centred = Cameras(K, camera.c2w, camera.width, camera.height)
    pixels, depth = centred.project(torch.from_numpy(points))
    u, v = pixels[:, 0] / camera.width, pixels[:, 1] / camera.height
    inside = (depth > 0) & (u >= 0.3) & (u <= 0.7) & (v >= 0.2) & (v <= 0.6)
    tan_half = (camera.width / 2 / float(K[0, 0]), camera.height / 2 / float(K[1, 1]))
    box = (camera.w2c.numpy(), tan_half, (0.3, 0.2), (0.7, 0.6))
    through = select(points, *box, through=True)
    np.testing.assert_array_equal(through, np.flatnonzero(inside))
    seen = select(points, *box)
    assert 0 < len(seen) < len(through)
    assert (seen < 5003).mean() > 0.95  # the wall behind is hidden


def fake_client(camera: Cameras, scale: float) -> SimpleNamespace:
    """A page that looks through this camera."""
    return SimpleNamespace(
        client_id=7,
        camera=SimpleNamespace(
            wxyz=wxyz(camera.c2w[:3, :3].numpy()),
            position=camera.position.numpy() * scale,
            fov=vertical_fov(camera),
            aspect=camera.width / camera.height,
        ),
    )


def test_clicks_become_picks_in_the_world_and_two_of_them_a_length(viewport):
    cloud = wall(20_011)
    drawn(viewport, Scene(revision=4, cloud=cloud, unit=0.5, metres_per_unit=3.0))
    scale = viewport._scale
    assert scale != 1

    def click(at: torch.Tensor) -> None:
        viewport._on_click(
            SimpleNamespace(
                ray_origin=(0.0, 0.0, 0.0),
                ray_direction=tuple((at / at.norm()).tolist()),
                screen_pos=(0.5, 0.5),
            )
        )
        assert viewport.settle()

    taken(viewport)
    click(cloud.points[11])
    (event,) = [e for e in taken(viewport) if isinstance(e, Pick)]
    np.testing.assert_allclose(event.point, cloud.points[event.row], atol=1e-5)
    assert event.revision == 4
    assert np.linalg.norm(np.array(event.point) - cloud.points[11].numpy()) < 0.05
    viewport.measure(True)
    click(cloud.points[11])
    click(cloud.points[12])
    (measured,) = [e for e in taken(viewport) if isinstance(e, Measured)]
    ends = np.array(measured.end) - np.array(measured.start)
    assert measured.length == pytest.approx(3 * np.linalg.norm(ends))
    assert measured.unit == "m"
    assert measured.as_json()["kind"] == "measure"


def test_a_box_on_the_stage_becomes_rows_of_the_cloud(viewport, cameras):
    cloud = wall(5003)
    drawn(viewport, Scene(revision=2, cloud=cloud, unit=0.7))
    camera = camera_of(cameras.c2w[1].numpy(), 0.9, 64, 48)
    viewport._on_rect(
        SimpleNamespace(
            client=fake_client(camera, viewport._scale),
            screen_min=(0.25, 0.25),
            screen_max=(0.75, 0.75),
        )
    )
    assert viewport.settle()
    (event,) = [e for e in taken(viewport) if isinstance(e, Selected)]
    pixels, depth = camera.project(cloud.points)
    inside = (depth > 0) & (
        (pixels - torch.tensor([32.0, 24.0])).abs() <= torch.tensor([16.0, 12.0])
    ).all(1)
    assert set(event.rows) <= set(np.flatnonzero(inside))
    assert len(event.rows) > 0.5 * int(inside.sum())
    assert event.as_json() == {"kind": "selection", "count": len(event.rows)}


# ---- cameras and paths ---------------------------------------------------------------------------


def test_a_pose_survives_the_way_to_the_stage_and_back(cameras):
    camera = cameras[3]
    pose = camera.c2w.double().numpy().copy()
    pose[:3, 3] *= 1.7
    back = camera_of(pose, vertical_fov(camera), camera.width, camera.height, scale=1.7)
    torch.testing.assert_close(back.c2w, camera.c2w, atol=1e-6, rtol=0)
    assert vertical_fov(back) == pytest.approx(vertical_fov(camera))
    assert fitting_fov(camera, aspect=10) == pytest.approx(vertical_fov(camera))
    assert fitting_fov(camera, aspect=0.5) > vertical_fov(camera)  # a tall page shows it whole


def test_flights_go_straight_and_turn_the_short_way(cameras):
    a, b = (cameras.c2w[i].double().numpy() for i in (0, 4))
    half = blend_poses(a, b, 0.5)
    np.testing.assert_allclose(half[:3, 3], (a[:3, 3] + b[:3, 3]) / 2)
    turn = lambda p, q: np.arccos((np.trace(p[:3, :3].T @ q[:3, :3]) - 1) / 2)  # noqa: E731
    assert turn(a, half) == pytest.approx(turn(half, b), abs=1e-6)
    assert turn(a, half) + turn(half, b) == pytest.approx(turn(a, b), abs=1e-6)
    np.testing.assert_array_equal(blend_poses(a, b, 1.0), b)


def test_a_recording_becomes_the_path_that_was_flown(cameras):
    recorder = Recorder()
    assert recorder.end(1.0, 24.0) is None
    recorder.begin()
    for i in range(5):
        pose = cameras.c2w[i].double().numpy().copy()
        pose[:3, 3] *= 2.0
        recorder.add(10.0 + 0.25 * i, (pose, 0.8))
    path = recorder.end(2.0, 8.0)
    assert path is not None and len(path) == 9 and path.fps == 8
    np.testing.assert_allclose(path.cameras.position[::2], cameras.position, atol=1e-5)
    assert not recorder.on


def test_a_dragged_gizmo_moves_its_keyframe_in_the_world(viewport, cameras):
    drawn(viewport, Scene(revision=0, cloud=wall(101), unit=0.5))
    for i in (0, 2):
        assert viewport.add_keyframe(cameras[i])
    assert viewport.settle()
    taken(viewport)
    goal = cameras[4]
    at = goal.position.numpy() * viewport._scale
    viewport._on_gizmo(1, wxyz(goal.c2w[:3, :3].numpy()), at, True)
    assert viewport.settle()
    torch.testing.assert_close(viewport.keyframes[1].c2w, goal.c2w, atol=1e-5, rtol=0)
    torch.testing.assert_close(viewport.keyframes[0].c2w, cameras[0].c2w)
    (event,) = [e for e in taken(viewport) if isinstance(e, KeyframesChanged)]
    assert event.settled and event.as_json()["active"] == event.active
    viewport.remove_keyframe(0)
    assert len(viewport.keyframes) == 1
    viewport.clear_keyframes()
    assert viewport.keyframes == ()


def test_without_a_page_there_is_no_camera_and_nothing_fails(viewport, cameras):
    assert viewport.camera() is None
    assert not viewport.add_keyframe()
    viewport.fly_to(cameras[0])
    viewport.play(Trajectory(cameras))
    assert viewport.settle()
    assert not viewport.playing
    assert viewport.record(True) is None
    assert viewport.recording
    assert viewport.record(False) is None


@pytest.mark.parametrize("sky", [0, 250])
def test_a_cloud_is_looked_at_from_near_also_when_some_of_it_lies_far_away(sky):
    """All of the room is in the picture and fills it, whatever one window shows."""
    room = torch.rand(5003, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([2, 1, 3])
    points = torch.cat([room, room[:sky] + torch.tensor([0.0, 0.0, 80.0])])
    camera = default_view(Scene(cloud=PointCloud.of(points, torch.zeros_like(points))))
    pixels, depth = camera.project(room)
    assert (depth > 0).all() and (pixels >= 0).all()
    assert (pixels < torch.tensor([camera.width, camera.height])).all()
    assert (pixels.amax(0) - pixels.amin(0))[0] > camera.width / 2


def test_a_page_that_connects_stands_behind_the_first_path_and_sees_its_start(viewport):
    views = some_views(3)
    scene = Scene(revision=0, views=views, cloud=wall(5003), unit=2.0)
    drawn(viewport, scene)
    start = default_view(scene)
    initial = viewport._server.initial_camera
    eye = torch.tensor(initial.position / viewport._scale).float()
    ahead = torch.tensor(initial.look_at - initial.position).float()
    back = start.w2c[:3, :3] @ eye + start.w2c[:3, 3]  # in the frame of the path's first camera
    assert float(back[2]) < -0.2
    to_start = start.position - eye
    cosine = float(ahead @ to_start / ahead.norm() / to_start.norm())
    assert np.degrees(np.arccos(cosine)) < np.degrees(initial.fov) / 2
    assert float((eye - start.position) @ scene.up) > 0


def test_a_sketch_stands_in_until_the_scene_comes_and_the_eye_stays_in_the_world(viewport):
    views, wide = some_views(3), wall(703)
    before = Scene(revision=0, views=views[:1], cloud=wall(101), unit=0.5, name="before")
    sketch = Scene(-1, "room", views, wide, unit=2.0)
    after = Scene(1, "room", some_views(3), joined(wide, wall(311, z=2.0)), unit=2.5)
    now = [before]
    viewport.follow(lambda: now[0], lambda wake: lambda: None)
    viewport.show_plan(Trajectory(turned_cameras(4), "plan"), turned_cameras(2))
    viewport.show_sketch(sketch)
    assert viewport.settle() and viewport.stats["revision"] == -1
    assert viewport._server.scene.get_handle_by_name("/plan/frusta") is None
    assert viewport._server.scene.get_handle_by_name("/keyframes/000") is None
    assert len(viewport.keyframes) == 2
    eye = viewport._server.initial_camera.position / viewport._scale
    now[0] = after  # published, but the sketch is still shown
    viewport.wake()
    assert viewport.settle() and viewport.stats["points"] == 703
    viewport.show_sketch(None)
    assert viewport.settle() and viewport.stats["revision"] == 1
    assert on_wire(viewport).shape == (1014, 3)  # nothing of the sketch is left
    sizes = {node.size for node in viewport._cloud._nodes.values()}
    fresh = Viewport()
    drawn(fresh, after)
    assert sizes == {node.size for node in fresh._cloud._nodes.values()}
    fresh.close()
    np.testing.assert_allclose(
        viewport._server.initial_camera.position / viewport._scale, eye, atol=1e-6
    )
    assert viewport._server.scene.get_handle_by_name("/plan/frusta") is not None
    assert viewport._server.scene.get_handle_by_name("/keyframes/001") is not None


def test_a_sketch_without_depth_says_nothing_of_where_to_stand(viewport):
    guessed = Scene(-1, "room", some_views(3), unit=40.0)
    viewport.show_sketch(guessed)
    measured = Scene(1, "room", some_views(3), wall(703), unit=3.0)
    viewport.follow(lambda: measured, lambda wake: lambda: None)
    viewport.show_sketch(None)
    assert viewport.settle()
    fresh = Viewport()
    drawn(fresh, measured)
    for name in ("position", "look_at"):
        ours, theirs = (getattr(v._server.initial_camera, name) for v in (viewport, fresh))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    fresh.close()


def test_points_just_made_show_until_the_next_scene(viewport):
    drawn(viewport, Scene(revision=0, cloud=wall(101), unit=0.5))
    points = wall(53).points.numpy()
    viewport.show_draft(points, np.zeros((53, 3), np.uint8), 0.01)
    assert viewport.settle()
    handle = viewport._server.scene.get_handle_by_name("/marks/draft/0000")
    shown = (handle.points.astype(float) + handle.position) / viewport._scale
    np.testing.assert_allclose(shown, points, atol=2e-3)
    drawn(viewport, Scene(revision=1, cloud=wall(101), unit=0.5))
    assert viewport._server.scene.get_handle_by_name("/marks/draft/0000") is None


# ---- the thread and the server -------------------------------------------------------------------


def test_wakes_only_set_a_flag_and_ten_of_them_may_be_one_redraw():
    scenes = [Scene(revision=i, cloud=wall(101 + i)) for i in range(11)]
    now = [scenes[0]]
    wakes = []

    def subscribe(wake):
        wakes.append(wake)
        return lambda: wakes.remove(wake)

    viewport = Viewport()
    viewport.follow(lambda: now[0], subscribe)
    assert viewport.settle()
    for scene in scenes:
        now[0] = scene
        wakes[0]()
    assert viewport.settle()
    assert viewport.stats["revision"] == 10
    assert viewport.stats["points"] == 111
    assert not viewport._woken.is_set()
    viewport.close()
    assert wakes == []


def test_no_page_can_open_a_public_tunnel_or_reach_viser_from_outside(viewport):
    assert viewport._server.request_share_url() is None
    assert viewport._server.get_host() == "127.0.0.1"


def test_a_listener_that_came_hears_events_and_one_that_left_does_not(viewport):
    heard = []
    stop = viewport.listen(heard.append)
    viewport.from_page({"renderer": "x"})
    drawn(viewport, Scene(revision=1))
    assert {"kind": "scene", "revision": 1, "points": 0, "notice": ""} in heard
    stop()
    count = len(heard)
    drawn(viewport, Scene(revision=2))
    assert len(heard) == count


def test_an_error_in_one_drawing_does_not_end_the_thread(viewport, caplog):
    viewport.draw(None)
    assert drawn(viewport, Scene(revision=1, cloud=wall(31))) == 9 * 31
    assert "could not do" in caplog.text


def test_looking_down_the_up_axis_is_not_an_error(viewport):
    eye, target = torch.tensor([0.0, 0.0, 5.0]), torch.zeros(3)
    c2w = look_at(eye, target, torch.tensor([0.0, 1.0, 0.0]))
    camera = camera_of(c2w.numpy(), 0.8, 64, 48)
    color, depth = torch.zeros(3, 48, 64), torch.ones(1, 48, 64)
    scene = Scene(
        revision=0, views=(View.of(color, depth, camera),), up=torch.tensor([0.0, 0.0, 1.0])
    )
    drawn(viewport, scene)
    assert viewport.stats["revision"] == 0
