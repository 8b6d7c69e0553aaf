"""The inpainting generator: an oracle painter on a room in closed form, and bad painters.

The oracle answers from the true picture of the camera that it recognises by its known pixels.
"""

import threading

import numpy as np
import pytest
import torch

from tests import textured_room
from tests.conftest import room, room_capture
from worldstereo import Cameras, Capture, Guide, Origin, Trajectory, WarpGenerator, World
from worldstereo.depth import DepthEstimate, default_camera
from worldstereo.errors import Cancelled, InvalidRequest, OutOfMemory, WeightsMissing
from worldstereo.generators import SamplerConfig
from worldstereo.generators.inpaint import (
    DiffusersPainter,
    InpaintGenerator,
    InpaintOptions,
    OpenCVPainter,
    PainterFailed,
    PainterLimits,
    download,
    find_model,
    offer,
    painter_named,
    painter_names,
    register_painter,
    unregister_painter,
)
from worldstereo.generators.inpaint.choice import about_how_many
from worldstereo.generators.inpaint.compose import harmonised, painted, worth_painting
from worldstereo.generators.inpaint.depth import out_of_free_space, painted_depth
from worldstereo.generators.inpaint.painters import PaintRequest, checked
from worldstereo.progress import ignore
from worldstereo.scene import PointCloud, View
from worldstereo.world import (
    complete,
    completion_budget,
    explore,
    front_at,
    keep,
    leave_empty,
    region_of,
    start,
    takes,
    unknown_along,
)

SIZE = (96, 72)


def made_world(n: int = 3) -> World:
    world = World(WarpGenerator(), max_points=100_000)
    start(world, room_capture(n, *SIZE), register=False)
    return world


def path(world: World, frames: int = 4, amount: float = 1.5) -> Trajectory:
    camera = world.scene.views[1].cameras
    return Trajectory.preset(
        "truck", camera, distance=4.0, frames=frames, amount=amount, up=world.scene.up
    )


class Oracle:
    """Knows the true pictures; recognises which is asked for by what is known of it."""

    def __init__(self, way: Trajectory) -> None:
        self.pictures = (room(way.cameras)[0].permute(0, 2, 3, 1).numpy() * 255).round()
        self.asked: list[int] = []

    def __call__(self, image, mask, prompt, seed):
        off = [np.abs(p - image)[~mask].mean() for p in self.pictures]
        self.asked.append(int(np.argmin(off)))
        out = image.copy()
        out[mask] = self.pictures[self.asked[-1]][mask]
        return out


def error_of(color, truth, where) -> float:
    return float(-10 * torch.log10(((color - truth) ** 2).mean(1)[where].mean()))


def test_one_call_paints_the_clip_and_no_known_pixel_changes():
    world = made_world()
    way = path(world)
    truth, depth = room(way.cameras)
    before = list(Guide(world.scene, way))
    smooth = torch.stack([frame.color for frame in before])
    hole = torch.stack([~frame.mask[0] for frame in before])
    assert float(hole[-1].float().mean()) > 0.03
    oracle = Oracle(way)
    clip = explore(world, way, generator=InpaintGenerator(oracle))
    assert oracle.asked == [len(way) - 1]
    assert world.history[-1].details["keyframes"] == oracle.asked
    assert error_of(clip.color, truth, hole) > error_of(smooth, truth, hole) + 8
    assert float(((clip.depth - depth).abs() / depth)[:, 0][hole].median()) < 0.02
    for t, frame in enumerate(before):
        known = frame.mask.expand(3, -1, -1)
        shown = (frame.color.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        assert torch.equal(clip.color_u8[t][known], shown[known])
        assert torch.equal(clip.depth[t][frame.mask], frame.depth[frame.mask])
    assert bool((clip.origin[:, 0][hole] == int(Origin.INVENTED)).all())
    assert bool((clip.origin[:, 0][~hole] != int(Origin.INVENTED)).all())


def test_a_second_visit_after_undo_and_redo_is_the_same_bits_and_calls_nobody():
    world = made_world()
    way = path(world)
    oracle = Oracle(way)
    first = explore(world, way, generator=InpaintGenerator(oracle))
    calls, points = len(oracle.asked), len(world.scene.cloud)
    world.undo()
    world.redo()
    again = explore(world, way, generator=InpaintGenerator(oracle))
    for name in ("color_u8", "depth", "origin", "confidence_u8"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert len(oracle.asked) == calls and len(world.scene.cloud) == points
    # From another side, in the other direction and at the same cameras, too.
    back = explore(world, way.reversed(), generator=InpaintGenerator(oracle))
    assert torch.equal(back.color_u8.flip(0), first.color_u8) and len(oracle.asked) == calls


def test_the_same_invented_point_has_one_colour_in_all_frames():
    world = made_world()
    way = path(world)
    clip = explore(world, way, generator=InpaintGenerator(Oracle(way)))
    hole = clip.origin[-1, 0] == int(Origin.INVENTED)
    a, b = way.cameras[-1], way.cameras[-2]
    pixels = a.pixel_grid().reshape(a.height, a.width, 2)[hole]
    points = a.unproject(pixels, clip.depth[-1, 0][hole])
    uv, z = b.project(points)
    inside = (z > 0) & (uv >= 0).all(1) & (uv[:, 0] < b.width) & (uv[:, 1] < b.height)
    u, v = uv[inside].long().unbind(1)
    there = clip.color[-2][:, v, u]
    here = clip.color[-1][:, hole][:, inside]
    same = (clip.depth[-2, 0][v, u] / z[inside] - 1).abs() < 0.01
    assert int(same.sum()) > 50
    assert float((here - there).abs().mean(0)[same].median()) < 2.5 / 255


def test_frames_without_a_world_are_those_of_the_memories():
    """Called as any generator, it keeps its keyframes to itself and yields one frame a camera."""
    from worldstereo.generators import GenerationRequest

    world = made_world()
    way = path(world, frames=3)
    geometry, stereo = WarpGenerator().new_memories(1000)
    request = GenerationRequest(
        trajectory=way, guide=Guide(world.scene, way), geometry=geometry, stereo=stereo,
        views=world.scene.views, unit=world.scene.unit,
    )  # fmt: skip
    oracle = Oracle(way)
    frames = list(InpaintGenerator(oracle)(request))
    assert len(frames) == 3 and oracle.asked
    truth, _ = room(way.cameras)
    hole = ~Guide(world.scene, way)[2].mask[0]
    assert error_of(frames[2].color[None], truth[2:], hole[None]) > 30


def test_a_take_is_not_remembered_until_it_is_kept():
    world = made_world()
    way = path(world, frames=3)
    views, points = len(world.scene.views), len(world.scene.cloud)
    take = explore(world, way, generator=InpaintGenerator(Oracle(way)), update="manual")
    assert (len(world.scene.views), len(world.scene.cloud)) == (views, points)
    assert bool((take.origin[-1] == int(Origin.INVENTED)).any())
    keep(world, takes(world)[0])
    assert len(world.scene.cloud) > points
    assert Guide(world.scene, way)[2].unknown < 0.002


def test_no_painted_surface_stands_in_seen_space():
    """Oracle: the given views' own depth, at every point that was added."""
    world = made_world()
    way = path(world)
    explore(world, way, generator=InpaintGenerator(Oracle(way)))
    added = world.scene.cloud.points[world.scene.cloud.step > 0]
    assert len(added) > 100
    for view in world.scene.views[:3]:
        uv, z = view.cameras.project(added)
        inside = (z > 0) & (uv >= 1).all(1)
        inside &= (uv[:, 0] < view.width - 1) & (uv[:, 1] < view.height - 1)
        u, v = uv[inside].long().unbind(1)
        assert int((z[inside] < 0.94 * view.depth[0][v, u]).sum()) <= len(added) // 100


def test_a_surface_in_seen_space_is_pushed_behind_it():
    views = room_capture(3, *SIZE).views
    camera = Cameras(views[1].cameras.K, views[2].cameras.c2w, *SIZE)
    floating = torch.full((1, SIZE[1], SIZE[0]), 1.0)
    hole = torch.zeros_like(floating, dtype=torch.bool)
    hole[0, 30:60, 40:80] = True
    pushed = out_of_free_space(floating, hole, camera, views)
    truth = room(Cameras.stack([camera]))[1][0]
    assert torch.equal(pushed[~hole], floating[~hole])
    assert float((pushed[hole] / truth[hole]).min()) > 0.94


def walls() -> tuple[torch.Tensor, torch.Tensor, Cameras]:
    """Depth of a slanted wall with a box before it, the part that is unknown, and the camera."""
    camera = default_camera(97, 73)
    x = (torch.arange(97) + 0.5 - 48.5) / float(camera.K[0, 0])
    depth = (1 / (0.25 + 0.08 * x)).expand(73, 97).clone()
    depth[40:60, 20:80] = 2.0
    hole = torch.zeros(73, 97, dtype=torch.bool)
    hole[:, 30:55] = True
    return depth[None], hole[None], camera


def test_painted_surfaces_continue_surfaces_and_no_backdrop():
    truth, hole, camera = walls()
    filled = truth.clone()
    filled[hole] = 100.0
    filled[:, :, 55:60] = 100.0  # beside the hole: what a sensor could not reach
    grey = torch.full((3, 73, 97), 0.5)
    out = painted_depth(grey, filled, ~hole, hole, camera, [])
    assert torch.equal(out[~hole], filled[~hole])
    assert float(((out - truth).abs() / truth)[hole].median()) < 0.1
    assert float(out[hole].max()) < 1.5 * float(truth.max())


def test_a_learned_depth_joins_the_rim_whatever_is_wrong_there():
    """Oracle: the model's inverse depth is the truth's, times 3 and plus 0.1."""
    truth, hole, camera = walls()
    known = truth.clone()
    known[hole] = 9.0
    known[:, 10:40, 55:58] = 3.0 * truth[:, 10:40, 55:58]  # an edge beside its place

    class Model:
        def __call__(self, color: torch.Tensor, cameras: Cameras | None = None) -> DepthEstimate:
            depth = 1 / (3 / truth + 0.1)
            return DepthEstimate(depth, torch.ones_like(depth), True, camera)

    grey = torch.full((3, 73, 97), 0.5)
    out = painted_depth(grey, known, ~hole, hole, camera, [], Model())
    assert torch.equal(out[~hole], known[~hole])
    assert float(((out - truth).abs() / truth)[hole].max()) < 0.02


def test_what_is_left_empty_stays_empty():
    world = made_world()
    way = path(world)
    generator = InpaintGenerator(Oracle(way))
    explore(world, way, generator=generator)
    frame = Guide(world.scene, way)[len(way) - 1]
    assert frame.made is not None
    removed = leave_empty(world, way.cameras[-1], frame.made[0])
    assert removed > 0
    calls = len(generator.painter.asked)
    clip = explore(world, way, generator=generator)
    assert len(generator.painter.asked) == calls
    assert len(world.scene.cloud.step[world.scene.cloud.step > 0]) < 20
    assert len(clip) == len(way)
    world.undo()
    world.undo()
    assert int((world.scene.cloud.step > 0).sum()) >= removed


def test_a_region_is_painted_again_with_another_seed():
    def colored(image, mask, prompt, seed):
        out = image.copy()
        out[mask] = np.random.default_rng(seed).integers(0, 255, 3)
        return out

    world = made_world()
    way = path(world)
    generator = InpaintGenerator(colored)
    first = explore(world, way, generator=generator, seed=1)
    made = first.origin[-1, 0] == int(Origin.INVENTED)
    region = region_of(way.cameras[-1], made)
    second = explore(world, way, generator=generator, seed=2, again=region)
    apart = (first.color[-1] - second.color[-1]).abs().mean(0)
    assert float(apart[made].median()) > 0.02
    assert float(apart[~made].max()) == 0.0


# ---- painters that misbehave -------------------------------------------------------------------


def shifted(image, mask, prompt, seed):
    return np.roll(image, (2, -2), (0, 1))


BAD = {
    "another shape": lambda i, m, p, s: np.zeros((40, 200, 3), np.uint8),
    "NaN": lambda i, m, p, s: np.full(i.shape, np.nan, np.float32),
    "grey": lambda i, m, p, s: np.full_like(i, 128),
    "text": lambda i, m, p, s: "a nice room",
    "another picture": lambda i, m, p, s: i[::-1, ::-1].copy(),
    "an error": lambda i, m, p, s: 1 / 0,
    "nothing": lambda i, m, p, s: None,
    "infinite floats": lambda i, m, p, s: i.astype(np.float32) * 1e30,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_painter_is_named_and_the_world_is_unchanged(name):
    world = made_world()
    scene = world.scene
    with pytest.raises(PainterFailed, match="painter") as caught:
        explore(world, path(world, 3), generator=InpaintGenerator(BAD[name]))
    assert "\n" not in str(caught.value)
    assert world.scene is scene and not world.busy
    assert explore(world, path(world, 2)).generator == "warp"


class Silent:
    """Answers when it is told to; a test that fails to leave it ends by itself, late."""

    def __init__(self):
        self.begun, self.told, self.ended = (threading.Event() for _ in range(3))

    def __call__(self, image, mask, prompt, seed):
        self.begun.set()
        self.told.wait(60)
        self.ended.set()
        return image

    def was_left(self) -> bool:
        """Whether its call was begun and still goes on; then it may end."""
        left = self.begun.is_set() and not self.ended.is_set()
        self.told.set()
        return left and self.ended.wait(60)


def test_a_painter_that_never_answers_is_left_in_its_call():
    world = made_world()
    scene = world.scene
    silent = Silent()
    slow = InpaintGenerator(silent, options=InpaintOptions(seconds=0.3))
    with pytest.raises(PainterFailed, match=r"no picture in 0\.3 s"):
        explore(world, path(world, 3), generator=slow)
    assert silent.was_left() and world.scene is scene and not world.busy


def test_a_cancel_leaves_a_painter_in_its_call():
    world = made_world()
    scene = world.scene
    silent = Silent()

    def stop(step: int, total: int, message: str) -> None:
        if "Painting, " in message:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        explore(world, path(world, 3), generator=InpaintGenerator(silent), on_step=stop)
    assert silent.was_left() and world.scene is scene and not world.busy


FULL = {
    "of Python": MemoryError(),
    "of a card": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    "of torch on a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. "
                                      "DefaultCPUAllocator: can't allocate memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("stepwise", [False, True])
def test_a_painter_out_of_memory_keeps_the_world_and_says_the_way_out(name, stepwise):
    class Full:
        limits = PainterLimits()

        def __call__(self, image, mask, prompt, seed):
            raise FULL[name]

    class FullInSteps(Full):
        def paint(self, image, mask, prompt, seed, options, on_step):
            raise FULL[name]

    world = made_world()
    scene = world.scene
    painter = FullInSteps() if stepwise else Full()
    with pytest.raises(OutOfMemory, match="smaller size or another painter") as caught:
        explore(world, path(world, 3), generator=InpaintGenerator(painter))
    assert "\n" not in str(caught.value)
    assert world.scene is scene and not world.busy and len(world.history) == 1
    assert explore(world, path(world, 2)).generator == "warp"


def test_an_answer_of_another_size_or_moved_by_two_pixels_is_put_right():
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[20:40, 30:50] = True
    inner = np.s_[8:-8, 8:-8]
    moved = checked(shifted(image, mask, "", 0), image, mask)
    np.testing.assert_array_equal(moved[inner], image[inner])
    doubled = checked(image.repeat(2, 0).repeat(2, 1), image, mask)
    np.testing.assert_array_equal(doubled, image)
    floats = checked(image.astype(np.float32) / 255, image, mask)
    np.testing.assert_array_equal(floats, image)


ODD = {
    "moved by two pixels": lambda out: np.roll(out, (2, -2), (0, 1)),
    "twice the size": lambda out: out.repeat(2, 0).repeat(2, 1),
    "as floats": lambda out: out.astype(np.float32) / 255,
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_paints_as_well_and_no_known_pixel_changes(name):
    """Oracle: the true picture; a displaced answer that was kept as it is would miss it."""
    world = made_world()
    way = path(world)
    truth, _ = room(way.cameras)
    before = list(Guide(world.scene, way))
    hole = torch.stack([~frame.mask[0] for frame in before])
    oracle = Oracle(way)
    clip = explore(world, way, generator=InpaintGenerator(lambda *a: ODD[name](oracle(*a))))
    smooth = torch.stack([frame.color for frame in before])
    assert error_of(clip.color, truth, hole) > error_of(smooth, truth, hole) + 8
    for t, frame in enumerate(before):
        known = frame.mask.expand(3, -1, -1)
        assert torch.equal(clip.color_u8[t][known], (frame.color * 255 + 0.5).byte()[known])


def test_a_region_of_one_pixel_is_painted_again_and_emptied():
    world = made_world()
    way = path(world)
    generator = InpaintGenerator(Oracle(way))
    first = explore(world, way, generator=generator)
    one = torch.zeros((SIZE[1], SIZE[0]), dtype=torch.bool)
    v, u = invented_part(world, way).nonzero()[50].tolist()
    one[v, u] = True
    for how in ("again", "empty"):
        clip = explore(world, way, generator=generator, **{how: region_of(way.cameras[-1], one)})
        changed = (clip.color_u8[-1] != first.color_u8[-1]).any(0)
        assert int(changed.sum()) < 30
        world.undo()


def test_known_pixels_are_never_the_painters():
    """Whatever it does to them: the hole alone is taken from its answer."""
    rng = np.random.default_rng(1)
    color = rng.random((60, 80, 3), np.float32)
    hole = np.zeros((60, 80), bool)
    hole[10:30, 20:60] = True

    def brighter(image, mask, prompt, seed):
        return np.clip(image.astype(int) + 20, 0, 255).astype(np.uint8)

    out = painted(
        brighter,
        color,
        hole,
        prompt="",
        seed=0,
        options=PaintRequest(),
        on_step=ignore,
        seconds=9,
    )
    np.testing.assert_array_equal(out[~hole], color[~hole])


def test_the_rim_takes_out_a_wrong_exposure_and_gives_its_noise():
    rng = np.random.default_rng(2)
    ramp = np.linspace(0.3, 0.6, 120, dtype=np.float32)[None, :, None].repeat(90, 0).repeat(3, 2)
    noise = rng.normal(0, 0.02, (90, 120, 1)).astype(np.float32)
    hole = np.zeros((90, 120), bool)
    hole[20:70, 30:90] = True
    out = harmonised(ramp + 0.06, ramp + noise, hole, seed=0)
    inside = (out - ramp)[30:60, 40:80]
    assert abs(float(inside.mean())) < 0.01
    assert 0.012 < float(inside.std()) < 0.03


def test_a_mask_of_one_pixel_is_left_to_the_fill():
    hole = np.zeros((30, 40), bool)
    hole[10, 12] = True
    assert not worth_painting(hole).any()
    hole[15:25, 15:25] = True
    assert worth_painting(hole).sum() == 100


def test_a_path_that_sees_nothing_known_is_refused():
    world = made_world()
    scene = world.scene
    camera = scene.views[1].cameras
    c2w = camera.c2w.clone()
    c2w[:3, :2] *= -1
    c2w[:3, 0] *= -1
    c2w[:3, 2] *= -1
    away = Cameras(camera.K, c2w, camera.width, camera.height)
    way = Trajectory(Cameras.stack([away, away]))
    with pytest.raises(InvalidRequest, match="sees nothing that is known"):
        explore(world, way, generator=InpaintGenerator(OpenCVPainter()))
    assert world.scene is scene


def test_a_world_of_points_only_and_a_very_long_prompt():
    views = room_capture(1, *SIZE).views
    view = views[0]
    points = view.cameras.unproject(view.cameras.pixel_grid(), view.depth.reshape(-1))
    cloud = PointCloud.of(points, view.color.reshape(3, -1).T.contiguous())
    world = World(WarpGenerator(), max_points=50_000)
    start(world, Capture("points", "cloud", (), cloud))
    heard = []

    def listening(image, mask, prompt, seed):
        heard.append(prompt)
        return OpenCVPainter()(image, mask, prompt, seed)

    way = Trajectory.preset("truck", view.cameras, distance=4.0, frames=3, amount=1.5)
    clip = explore(world, way, generator=InpaintGenerator(listening), prompt="a room " * 1429)
    assert len(clip) == 3 and len(world.scene.cloud) > len(cloud)
    assert heard and all(len(text) <= 2000 for text in heard)


def test_no_keyframe_is_painted_where_everything_is_known():
    world = made_world()
    camera = world.scene.views[1].cameras
    way = Trajectory(Cameras.stack([camera]))
    clip = explore(world, way, generator=InpaintGenerator(BAD["an error"]))
    assert world.history[-1].details["keyframes"] == [] and len(clip) == 1


def test_painters_are_registered_by_name():
    assert painter_names()[:2] == ("telea", "navier-stokes")
    image = np.zeros((20, 24, 3), np.uint8)
    image[:] = (10, 200, 30)
    mask = np.zeros((20, 24), bool)
    mask[5:9, 5:9] = True
    for name in painter_names()[:2]:
        np.testing.assert_allclose(painter_named(name)(image, mask, "", 0), image, atol=2)
    register_painter("mine", lambda settings: shifted)
    try:
        assert painter_named("mine") is shifted
        with pytest.raises(ValueError, match="registered already"):
            register_painter("mine", lambda settings: shifted)
    finally:
        unregister_painter("mine")
    with pytest.raises(ValueError, match="painter must be one of telea"):
        painter_named("absent")


# ---- models of diffusers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("diffusers")
    from tests.tiny_inpaint import KINDS, save

    folder = tmp_path_factory.mktemp("models")
    return {kind: save(kind, folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_a_tiny_model_of_a_real_class_paints_a_world(models, kind):
    """The whole way: preflight, a generator, keyframes, memories, the same bits again."""
    from worldstereo.generators.registry import GeneratorSettings, choice

    offered = choice("inpaint", GeneratorSettings(painter=str(models[kind]), device="cpu"))
    assert not offered.why_not and offered.modes is not None and offered.limits is not None
    assert offered.limits.prompt and offered.limits.steps is not None
    (fit,) = offered.modes(25, *SIZE, SamplerConfig(steps=2))
    assert fit.fits and 0 < fit.seconds < 60 and 0 < fit.gib < 1
    runs = []
    for _ in range(2):
        world = made_world(2)
        generator = offered.make(mode="full", on_step=ignore)
        clip = explore(
            world, path(world, 2), generator=generator, prompt="a room", seed=4,
            sampler=SamplerConfig(steps=2),
        )  # fmt: skip
        runs.append(clip.color_u8)
        assert world.history[-1].details["keyframes"]
        assert Guide(world.scene, path(world, 2))[1].unknown < 0.01
    assert torch.equal(*runs)


def test_a_model_is_left_within_one_denoising_step(models):
    painter = DiffusersPainter(models["sd"], "cpu")
    seen = []

    def stop(step: int, total: int, message: str) -> None:
        seen.append(message)
        if message.startswith("step 2"):
            raise Cancelled("Cancelled.")

    image, mask = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool)
    with pytest.raises(Cancelled):
        painter.paint(image, mask, "a room", 0, PaintRequest(steps=5), stop)
    assert seen[-1] == "step 2 of 5"


def test_folders_that_are_no_model_are_refused_by_name(models, tmp_path):
    import shutil

    from worldstereo.generators.registry import GeneratorSettings, choice

    with pytest.raises(WeightsMissing, match="neither a folder"):
        find_model("nobody/nothing")
    pickled = shutil.copytree(models["sd"], tmp_path / "pickled")
    weights = next((pickled / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(WeightsMissing, match="unet holds no safetensors"):
        DiffusersPainter(pickled, "cpu")
    index = pickled / "model_index.json"
    index.write_text(index.read_text().replace('"diffusers",\n    "UNet', '"my_code",\n    "UNet'))
    offered = choice("inpaint", GeneratorSettings(painter=str(pickled)))
    assert "needs code of my_code" in offered.why_not


def test_nothing_is_fetched_before_licence_and_size_were_shown(models):
    from types import SimpleNamespace

    files = [("model_index.json", 10), ("unet/a.safetensors", 2_000_000_000), ("x.bin", 5),
             ("unet/a.bin", 7), ("pipeline.py", 3)]  # fmt: skip
    about = SimpleNamespace(
        card_data={"license": "openrail++"},
        siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files],
    )
    shown = offer("owner/model", info=lambda repo, files_metadata: about)
    assert str(shown) == "owner/model: licence openrail++, 2.00 GB in 2 files"
    fetched = []

    def fetch(repo, allow_patterns):
        fetched.extend(allow_patterns)
        return str(models["sd"])

    download(shown, fetch=fetch)
    assert fetched == ["model_index.json", "unet/a.safetensors"]
    with pytest.raises(ValueError, match="hub id"):
        offer("../etc/passwd")


# ---- around the corner ---------------------------------------------------------------------------


class Turning(InpaintGenerator):
    """Paints the truth of a closed box, traced at the camera that is painted."""

    def keyframe(self, shown, request, index, on_step):
        self.cameras = [*getattr(self, "cameras", []), shown.camera]
        camera = shown.camera
        truth = textured_room.photo(
            camera.c2w.double().numpy(), camera.width, camera.height, float(camera.K[0, 0])
        )

        def paint(image, mask, prompt, seed):
            out = image.copy()
            out[mask] = truth[mask]
            return out

        self.painter = paint
        return super().keyframe(shown, request, index, on_step)


def test_a_place_is_completed_from_one_view_within_the_budget():
    """A full turn inside a box: at most 12 keyframes, each a step, and depth near the walls."""
    width, height, focal = 120, 90, 80.0
    pose = textured_room.looking(np.array([0.0, -0.4, 1.3]), np.array([0.0, 2.0, 1.3]))
    color = textured_room.photo(pose, width, height, focal)
    depth = textured_room.depth(pose, width, height, focal)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    camera = Cameras(K, torch.from_numpy(pose).float(), width, height)
    view = View.of(
        torch.from_numpy(color).permute(2, 0, 1).float() / 255,
        torch.from_numpy(depth)[None].float(), camera,
    )  # fmt: skip
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("box", "rgbd", (view,), up=torch.tensor([0.0, 0.0, 1.0])), register=False)
    estimate = completion_budget(world.scene)
    generator = Turning(OpenCVPainter())
    clips = complete(world, 12, generator=generator, size=(width, height))
    painted = sum(len(record.details.get("keyframes", ())) for record in world.history)
    assert painted <= 12 and abs(painted - estimate) <= 2
    assert len(clips) == len(world.history) - 1
    turn = Trajectory.preset("pan", camera, frames=16, value=337.5, up=world.scene.up)
    left = [frame.unknown for frame in Guide(world.scene, turn)]
    assert sum(left) / len(left) < 0.25
    steps = len(world.history)
    world.undo()
    assert len(world.history) == steps - 1


# ---- a part chosen by a person -------------------------------------------------------------------


def invented_part(world: World, way: Trajectory) -> torch.Tensor:
    """(H, W): what the last camera of a path shows of inventions."""
    made = Guide(world.scene, way)[len(way) - 1].made
    assert made is not None and int(made.sum()) > 100
    return made[0]


@pytest.mark.parametrize("name", ["warp", "inpaint"])
def test_a_part_left_empty_along_a_path_stays_so_whoever_generates(name):
    """One step; no later visit, of any generator, puts a surface there; undo brings it back."""
    world = made_world()
    way = path(world)
    generators = {"warp": WarpGenerator(), "inpaint": InpaintGenerator(Oracle(way))}
    explore(world, way, generator=generators[name])
    part = invented_part(world, way)
    region = region_of(way.cameras[-1], part)
    with pytest.raises(ValueError, match="take"):
        explore(world, way, generator=generators[name], empty=region, update="manual")
    explore(world, way, generator=generators[name], empty=region)
    for other in generators.values():
        explore(world, way, generator=other)
        frame = Guide(world.scene, way)[len(way) - 1]
        known = frame.mask[0] if frame.made is None else frame.mask[0] & ~frame.made[0]
        still = part & ~known
        assert frame.made is None or int((frame.made[0] & still).sum()) < 0.05 * int(still.sum())
    for _ in range(3):
        world.undo()
    assert torch.equal(invented_part(world, way), part)


def test_what_was_captured_is_neither_painted_again_nor_emptied():
    world = made_world()
    way = path(world)
    painter = Oracle(way)
    explore(world, way, generator=InpaintGenerator(painter))
    frame = Guide(world.scene, way)[0]
    assert frame.made is not None
    captured = frame.mask[0] & ~frame.made[0]
    scene, region = world.scene, region_of(way.cameras[0], captured)
    for how in ({"again": region}, {"empty": region}):
        with pytest.raises(InvalidRequest, match="what was captured stays"):
            explore(world, way, generator=InpaintGenerator(painter), **how)
    with pytest.raises(InvalidRequest, match="what was captured stays"):
        leave_empty(world, way.cameras[0], captured)
    assert world.scene is scene and not world.busy


def test_a_part_painted_again_as_a_take_leaves_the_memories_as_they_were():
    world = made_world()
    way = path(world)
    explore(world, way, generator=InpaintGenerator(Oracle(way)))
    shown = [frame.color for frame in Guide(world.scene, way)]
    region = region_of(way.cameras[-1], invented_part(world, way))
    grey = InpaintGenerator(lambda i, m, p, s: np.where(m[..., None], np.uint8(90), i))
    take = explore(world, way, generator=grey, again=region, update="manual")
    assert take.take and not torch.equal(take.color[-1], shown[-1])
    assert all(torch.equal(a.color, b) for a, b in zip(Guide(world.scene, way), shown, strict=True))


def test_what_a_path_left_unknown_is_not_painted_on_a_second_visit():
    """More is unknown than one keyframe shows; the second visit is the same and calls nobody."""
    world = made_world()
    camera = world.scene.views[1].cameras
    ends = [Trajectory.preset("pan", camera, frames=2, value=v).cameras[-1] for v in (-70.0, 70.0)]
    way = Trajectory(Cameras.stack([ends[0], camera, ends[1]]), "both ways")
    calls = []

    def counted(image, mask, prompt, seed):
        calls.append(seed)
        return OpenCVPainter()(image, mask)

    generator = InpaintGenerator(counted, options=InpaintOptions(keyframes=1))
    first = explore(world, way, generator=generator)
    assert max(frame.unknown for frame in Guide(world.scene, way)) > 0.05
    second = explore(world, way, generator=generator)
    assert len(calls) == 1 and torch.equal(first.color_u8, second.color_u8)
    other = Trajectory(way.cameras, "both ways, slower", fps=12.0)
    explore(world, other, generator=generator)
    assert len(calls) == 2  # another path has keyframes of its own


def test_a_place_is_completed_from_where_a_person_looks():
    world = made_world()
    camera = world.scene.views[1].cameras
    looking = Trajectory.preset("pan", camera, frames=2, value=35.0).cameras[-1]
    front = front_at(looking, SIZE)
    (clip,) = complete(world, 1, generator=InpaintGenerator(OpenCVPainter()), to=front, size=SIZE)
    assert torch.allclose(clip.trajectory.cameras[-1].c2w, looking.c2w.float(), atol=1e-5)
    assert world.history[-1].details["keyframes"]


def test_the_share_of_a_path_that_is_unknown_is_told_quickly_and_about_right():
    world = made_world()
    way = path(world)
    unknown = np.mean([frame.unknown for frame in Guide(world.scene, way)])
    assert abs(unknown_along(world.scene, way) - unknown) < 0.05


def test_how_many_pictures_a_path_takes_is_told_about_right():
    world = made_world()
    for way in (path(world), path(world, amount=0.0), path(world, frames=9, amount=-3.0)):
        plan = InpaintGenerator(Oracle(way)).plan(lambda p: Guide(world.scene, p), way)
        assert abs(about_how_many(world.scene, way) - len(plan)) <= 1
    assert about_how_many(world.scene, path(world, amount=0.0)) == 0
