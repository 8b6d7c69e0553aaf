"""A target from remembered views: truth in closed form, origins, scale, choice, explanations."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.conftest import room, turned_cameras
from worldstereo.cameras import Cameras, look_at
from worldstereo.memory.stereo.dense import (
    SynthesisOptions,
    ViewIndex,
    choose_views,
    explain,
    synthesize,
    weights_map,
)
from worldstereo.render import render_points
from worldstereo.scene import Origin, View
from worldstereo.views import fusion, intake

W, H = 131, 97
UNIT = 3.5


def scene(n: int = 5, scale: float = 1.0) -> tuple[list[View], View]:
    """Some views of the room, and one more between them that is the truth."""
    cameras = turned_cameras(n + 1).scaled(W, H)
    color, depth = room(cameras)
    out = []
    for i in range(n + 1):
        pose = cameras.c2w[i].clone()
        pose[:3, 3] *= scale
        out.append(View.of(color[i], depth[i] * scale, Cameras(cameras.K[i], pose, W, H), frame=i))
    truth = out.pop(n // 2)
    return out, truth


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())


def test_a_target_shows_what_a_camera_there_would_see():
    views, truth = scene()
    made = synthesize(truth.cameras, views, unit=UNIT)
    seen = made.origin == Origin.STEREO
    assert float(seen.float().mean()) > 0.85
    assert float((made.color - truth.color).abs().mean(0)[seen[0]].mean()) < 0.012
    off = ((made.depth - truth.depth).abs() / truth.depth)[seen]
    assert float(off.quantile(0.95)) < 0.01
    assert torch.equal(made.known, seen)
    assert torch.equal(made.stereo_weight > 0, seen)
    assert float(made.confidence[seen].min()) > 0
    if bool((~seen).any()):
        assert float(made.confidence[~seen].mean()) < 0.7 * float(made.confidence[seen].mean())


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_scale_does_not_matter(factor: float):
    views, truth = scene()
    scaled, scaled_truth = scene(scale=factor)
    one = synthesize(truth.cameras, views, unit=UNIT)
    other = synthesize(scaled_truth.cameras, scaled, unit=UNIT * factor)
    assert float((one.color - other.color).abs().mean()) < 1e-4
    assert float((one.origin != other.origin).float().mean()) < 1e-3


@pytest.mark.parametrize("shrink", [2, 3])
def test_a_small_target_is_served_by_smaller_levels(shrink: int):
    """A preview at a fraction of the size is as much stereo as the picture itself."""
    views, truth = scene()
    camera = truth.cameras.scaled(W // shrink, H // shrink)
    made = synthesize(camera, views, unit=UNIT)
    assert float((made.origin == Origin.STEREO).float().mean()) > 0.8
    small = torch.nn.functional.interpolate(
        truth.color[None], (H // shrink, W // shrink), mode="area"
    )[0]
    assert error(made.color, small) < 0.02
    said = explain(camera, views, made.depth, (20.5, 15.5), unit=UNIT)
    for c in said:
        share = weights_map(camera, views, made.depth, c.view, unit=UNIT)
        assert c.weight == pytest.approx(float(share[15, 20]), abs=2e-3)


def test_results_are_the_same_bits_every_time():
    views, truth = scene()
    one, other = (synthesize(truth.cameras, views, unit=UNIT) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_memory_can_be_switched_off():
    views, truth = scene()
    cloud = intake.cloud_from(truth, stride=1)
    splat = render_points(cloud.points, cloud.colors, truth.cameras, radius=1)
    both = synthesize(truth.cameras, views[:1], splat=splat, unit=UNIT)
    assert {int(o) for o in both.origin.unique()} == {Origin.GLOBAL, Origin.STEREO}
    cloud_only = synthesize(truth.cameras, views, splat=splat, stereo=False, unit=UNIT)
    assert set(cloud_only.origin.unique().tolist()) == {Origin.GLOBAL}
    assert error(cloud_only.color, truth.color) < 0.05
    stereo_only = synthesize(truth.cameras, views[:1], splat=splat, geometry=False, unit=UNIT)
    assert Origin.GLOBAL not in stereo_only.origin.unique().tolist()
    assert int((stereo_only.origin == Origin.INVENTED).sum()) > 0


def test_what_nobody_knows_is_marked_and_filled_on_request():
    _, truth = scene()
    half = truth.depth.clone()
    half[..., 60:] = 0
    view = View.of(truth.color, half, truth.cameras)
    filled = synthesize(truth.cameras, [view], unit=UNIT)
    unknown = filled.origin == Origin.INVENTED
    assert float(unknown[..., 66:].float().mean()) > 0.95
    assert bool((filled.depth > 0).all())
    assert float(filled.color[:, unknown[0]].mean()) > 0.1
    bare = synthesize(truth.cameras, [view], unit=UNIT, fill=False)
    assert float(bare.color[:, ~bare.known[0]].abs().max()) == 0
    assert float(bare.depth[~bare.known].abs().max()) == 0


def test_nothing_remembered_gives_a_black_invented_picture():
    _, truth = scene()
    made = synthesize(truth.cameras, [], unit=UNIT)
    assert set(made.origin.unique().tolist()) == {Origin.INVENTED}
    assert float(made.color.max()) == 0 and bool((made.depth == 0).all())


def test_what_is_fixed_to_the_camera_is_pasted_over_the_picture():
    views, truth = scene()
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[70:, 90:] = True
    made = synthesize(
        truth.cameras, views, camera_fixed=(mask, torch.full((3, H, W), 0.25)), unit=UNIT
    )
    assert torch.equal(made.origin[0] == Origin.CAMERA_FIXED, mask)
    torch.testing.assert_close(made.color[:, mask], torch.full((3, int(mask.sum())), 0.25))


def test_what_was_generated_never_moves_what_given_views_show():
    """A generated view that lies about colour and depth changes only what nobody else shows."""
    views, truth = scene()
    before = synthesize(truth.cameras, views, unit=UNIT)
    origin = torch.full((1, H, W), int(Origin.INVENTED), dtype=torch.uint8)
    liar = intake.generated(
        torch.ones(3, H, W), truth.depth * 0.8, origin, torch.ones(1, H, W), truth.cameras,
        step=1, frame=0,
    )  # fmt: skip
    after = synthesize(truth.cameras, [*views, liar], unit=UNIT)
    reliable = (before.origin == Origin.STEREO)[0]
    reliable[:2], reliable[-2:], reliable[:, :2], reliable[:, -2:] = False, False, False, False
    inner = -torch.nn.functional.max_pool2d(-reliable[None].float(), 5, 1, 2)[0] > 0
    assert float(inner.float().mean()) > 0.7
    torch.testing.assert_close(after.color[:, inner], before.color[:, inner])


def test_remembered_inventions_come_back():
    """Where nobody else saw anything, the earlier invention is shown again as it was."""
    _, truth = scene()
    origin = torch.full((1, H, W), int(Origin.INVENTED), dtype=torch.uint8)
    made = intake.generated(
        truth.color, truth.depth, origin, torch.ones(1, H, W), truth.cameras, step=1, frame=0
    )
    again = synthesize(truth.cameras, [made], unit=UNIT, fill=False)
    assert float(again.known.float().mean()) > 0.95
    assert error(again.color[:, again.known[0]], truth.color[:, again.known[0]]) < 0.01


def test_a_dolly_to_a_third_and_to_seven_times_the_distance():
    """The picture from close up and from far away is the painted wall, without cracks."""
    K = torch.tensor([[110.0, 0.0, 65.5], [0.0, 110.0, 48.5], [0.0, 0.0, 1.0]])
    up, ahead = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 50.0])

    def at(distance: float) -> Cameras:
        return Cameras(K, look_at(torch.tensor([0.0, 0.0, 3.0 - distance]), ahead, up), W, H)

    def wall(camera: Cameras, distance: float) -> torch.Tensor:
        pixels = camera.pixel_grid()
        points = camera.unproject(pixels, torch.full((len(pixels),), distance))
        color = 0.5 + 0.4 * torch.sin(points * torch.tensor([2.0, 3.0, 0.0]))
        return color.T.reshape(3, H, W)

    source = at(3.0)
    view = View.of(wall(source, 3.0), torch.full((1, H, W), 3.0), source)
    for distance in (1.0, 21.0):
        target = at(distance)
        made = synthesize(target, [view], unit=3.0)
        rows, columns = (slice(4, -4), slice(4, -4)) if distance < 3 else (
            slice(44, 53), slice(58, 73)
        )  # fmt: skip
        assert bool((made.origin[0, rows, columns] == Origin.STEREO).all())
        truth = wall(target, distance)
        if distance < 3:
            assert error(made.color[:, rows, columns], truth[:, rows, columns]) < 0.01
        else:  # a pixel of the target is a mean over 7x7 of the view
            means = torch.nn.functional.avg_pool2d(wall(source, 3.0)[None], 7, 7)[0]
            assert abs(float(made.color[:, rows, columns].mean() - means.mean())) < 0.05


def test_eight_of_many_are_found_and_draw_the_same_bits():
    """Copies placed elsewhere do not change which views serve a target, nor one bit of it."""
    views, truth = scene(8)
    few = ViewIndex(views).choose(truth.cameras)
    away = []
    for k in range(40):
        view = views[k % len(views)]
        pose = view.cameras.c2w.clone()
        pose[:3, 3] += torch.tensor([40.0 + 10 * k, 5.0, -20.0])
        moved = Cameras(view.cameras.K, pose, W, H)
        away.append(View.of(view.color, view.depth, moved))
    many = [*away[:20], *views, *away[20:]]
    found = ViewIndex(many).choose(truth.cameras)
    assert found == tuple(i + 20 for i in few)
    one = synthesize(truth.cameras, [views[i] for i in few], unit=UNIT)
    other = synthesize(truth.cameras, [many[i] for i in found], unit=UNIT)
    assert torch.equal(one.color, other.color)


def test_a_choice_is_by_what_is_seen():
    views, truth = scene(4)
    turned = views[0].cameras.c2w.clone()
    turned[:3, :3] = turned[:3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    backwards = Cameras(views[0].cameras.K, turned, W, H)
    blind = View.of(views[0].color, views[0].depth, backwards)
    chosen = choose_views([blind, *views], truth.cameras, truth.depth, limit=3)
    assert len(chosen) == 3 and 0 not in chosen


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("first", [1, 10])
def test_given_views_serve_as_before_whatever_was_generated(first: int, asked: bool):
    """The two generated views nearest in pose serve beside them, and more where there is room."""
    views, truth = scene(first)
    known = truth.depth if asked else None
    before = choose_views(views, truth.cameras, known)
    made = []
    for k in range(9):
        pose = truth.cameras.c2w.clone()
        pose[0, 3] += 0.03 * (k - 3)
        moved = Cameras(truth.cameras.K, pose, W, H)
        near = truth.depth * 0.3  # wrong, so that a choice which believes it goes wrong too
        made.append(View.of(truth.color, truth.depth if asked else near, moved, step=1, frame=k))
    chosen = choose_views([*made[:6], *views, *made[6:]], truth.cameras, known)
    given = tuple(i - 6 for i in chosen if 6 <= i < 6 + first)
    assert given == before and len(before) == min(first, 8)
    generated = [i if i < 6 else i - first for i in chosen if not 6 <= i < 6 + first]
    assert 3 in generated and ({2, 4} & {*generated})
    assert len(generated) == (max(2, 8 - first) if asked else 2)


def test_confidence_ranks_errors_that_nobody_told_it_of():
    """Half of one view has other colours, and a strip is seen by nobody: both are doubted."""
    views, truth = scene()
    color = views[1].color.clone()
    color[:, :, : W // 2] = (color[:, :, : W // 2] * 0.4 + 0.5).clamp(0, 1)
    views[1] = View.of(color, views[1].depth, views[1].cameras, frame=1)
    made = synthesize(truth.cameras, views, unit=UNIT)
    wrong = (made.color - truth.color).abs().mean(0).flatten()
    order = made.confidence[0].flatten().argsort(descending=True)
    kept = wrong[order].cumsum(0) / torch.arange(1, len(wrong) + 1)
    best = wrong.sort().values.cumsum(0) / torch.arange(1, len(wrong) + 1)
    assert float(kept.mean() - best.mean()) < 0.6 * float(wrong.mean() - best.mean())
    assert float(made.confidence.min()) >= 0 and float(made.confidence.max()) <= 1


def test_explanations_are_the_weights_of_the_blend():
    views, truth = scene()
    made = synthesize(truth.cameras, views, unit=UNIT)
    maps = [weights_map(truth.cameras, views, made.depth, i, unit=UNIT) for i in range(len(views))]
    for u, v in ((60, 40), (30, 70), (100, 20)):
        said = explain(truth.cameras, views, made.depth, (u + 0.5, v + 0.5), unit=UNIT)
        assert [c.view for c in said] == list(range(len(views)))
        assert sum(c.weight for c in said) == pytest.approx(1, abs=1e-6)
        for c in said:
            assert c.weight == pytest.approx(float(maps[c.view][v, u]), abs=2e-3)
            there, _ = views[c.view].cameras.project(torch.tensor([c.point]))
            if c.reason != "outside":
                np.testing.assert_allclose(c.pixel, there[0].numpy(), atol=0.05)


def test_refusals_have_reasons():
    """A point in the air before the wall is looked through; one behind the wall is hidden."""
    views, truth = scene()
    depth = truth.depth.clone()
    pixel = (60.5, 40.5)
    for factor, reason in ((0.8, "looked through"), (1.3, "behind")):
        depth[0, 40, 60] = truth.depth[0, 40, 60] * factor
        said = explain(truth.cameras, views, depth, pixel, unit=UNIT)
        assert {c.reason for c in said} <= {reason, "outside"}
        assert all(c.weight == 0 for c in said)
    with pytest.raises(ValueError, match="outside the 131x97 target"):
        explain(truth.cameras, views, depth, (W + 1.0, 3.0))


def test_every_single_step_can_be_left_out():
    views, truth = scene()
    for name in vars(SynthesisOptions()).keys() - {"agree"}:
        made = synthesize(
            truth.cameras, views, unit=UNIT, options=SynthesisOptions(**{name: False})
        )
        assert error(made.color, truth.color) < 0.05


def test_bad_targets_are_refused():
    views, truth = scene()
    with pytest.raises(ValueError, match="single camera"):
        synthesize(turned_cameras(3), views)
    splat = render_points(torch.zeros(1, 3), None, truth.cameras.scaled(31, 17))
    with pytest.raises(ValueError, match="splat"):
        synthesize(truth.cameras, views, splat=splat)


def test_two_views_that_see_nothing_in_common_stay_apart():
    views, _ = scene(2)
    pose = views[1].cameras.c2w.clone()
    pose[:3, 3] += torch.tensor([300.0, 0.0, 0.0])
    far = Cameras(views[1].cameras.K, pose, W, H)
    pair = [views[0], View.of(views[1].color, views[1].depth, far, frame=1)]
    entered = intake.preprocess_views(pair)
    assert entered.registration is not None
    assert not entered.registration.agrees[1]
    for i, view in enumerate(entered.views):
        assert torch.equal(view.cameras.c2w, pair[i].cameras.c2w)
        chosen = choose_views(entered.views, view.cameras)
        assert chosen == (i,)
        made = synthesize(view.cameras, [entered.views[k] for k in chosen], unit=entered.unit)
        assert float((made.color - view.color).abs().median()) < 0.01
        assert float((made.origin == Origin.STEREO).float().mean()) > 0.9


def test_no_stage_left_out_is_worse_than_the_plain_splat():
    """Sensor-like depth, a hole, a floater and darker views; the splat is a loop over points."""
    cameras = turned_cameras(6).scaled(W, H)
    color, depth = room(cameras)
    noise = torch.Generator().manual_seed(5)
    kept = []
    for i in (0, 1, 3, 4):
        spoiled = depth[i] * (1 + 0.005 * torch.randn(depth[i].shape, generator=noise))
        spoiled[0, 20:45, 15 + 9 * i : 40 + 9 * i] = 0
        spoiled[0, 60:64, 60:64] = 1.0
        dark = 0.8 if i == 3 else 1.0
        kept.append(View.of(color[i] * dark, spoiled, cameras[i], frame=i))
    truth, target = color[2], cameras[2]

    def psnr(made: torch.Tensor) -> float:
        return float(-10 * torch.log10(((made - truth) ** 2).mean()))

    parts = [(v.cameras, v.depth, v.color) for v in kept]
    points = torch.cat([c.unproject(c.pixel_grid(), d.reshape(-1)) for c, d, _ in parts])
    known = torch.cat([d.reshape(-1) > 0 for _, d, _ in parts])
    colors = torch.cat([p.reshape(3, -1).T for _, _, p in parts])
    splat = render_points(points[known], colors[known], target, radius=0)
    plain = fusion.nearest_fill(
        splat.color.permute(1, 2, 0).contiguous().numpy(), splat.depth[0].numpy() > 0
    )
    least = psnr(torch.from_numpy(plain).permute(2, 0, 1)) - 0.1
    whole = intake.preprocess_views(kept)
    for name in (f.name for f in fields(SynthesisOptions) if f.type in (bool, "bool")):
        options = SynthesisOptions(**{name: False})
        made = synthesize(
            target, whole.views, unit=whole.unit, camera_fixed=whole.camera_fixed, options=options
        )
        assert psnr(made.color) > least, name
    for name in (f.name for f in fields(intake.IntakeOptions)):
        left = intake.preprocess_views(kept, options=intake.IntakeOptions(**{name: False}))
        made = synthesize(target, left.views, unit=left.unit, camera_fixed=left.camera_fixed)
        assert psnr(made.color) > least, name
    unregistered = intake.preprocess_views(kept, register=False)
    made = synthesize(target, unregistered.views, unit=unregistered.unit)
    assert psnr(made.color) > least


@pytest.mark.parametrize("seed", range(6))
def test_a_view_is_wholly_known_from_where_it_was_taken(seed: int):
    """Its border pixels too, whatever rounding does to them: any pose, lens and size."""
    rng = np.random.default_rng(seed)
    width, height = int(rng.integers(40, 700)), int(rng.integers(30, 500))
    focal = width * float(rng.uniform(0.5, 2))
    K = torch.tensor([[focal, 0, width * 0.47], [0, focal * 1.03, height * 0.52], [0, 0, 1]])
    eye, to = rng.normal(0, 30, 3), rng.normal(0, 30, 3)
    pose = look_at(
        torch.from_numpy(eye), torch.from_numpy(to), torch.tensor([0.0, -1, 0]).double()
    ).float()
    camera = Cameras(K, pose, width, height)
    depth = torch.full((1, height, width), float(rng.uniform(1, 9)))
    view = View.of(torch.full((3, height, width), 0.5), depth, camera)
    assert bool(synthesize(camera, [view]).known.all())
