"""`generate_video` and `generate_multi_view` as documented, over what runs anywhere."""

import inspect
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tests import textured_room as room
from worldstereo import (
    CameraPose,
    CameraTrajectory,
    Cancelled,
    Clip,
    ExportError,
    InputRefused,
    WarpGenerator,
    World,
    WorldStereo,
    generate_multi_view,
    generate_video,
)

T, H, W = 3, 32, 48
PATH = CameraTrajectory.circle([0, 0, 3], 3.0, T, degrees=20)


def picture():
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    color = torch.stack([u / W, v / H, 0.5 + 0.4 * torch.sin(0.4 * u + 0.2 * v)])
    return color.float()


@pytest.fixture(scope="module")
def warp():
    return WorldStereo.from_pretrained("warp", device="cpu")


@pytest.fixture(scope="module")
def compact():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return WorldStereo(
            {"layers": 1, "dim": 16, "heads": 2, "timesteps": 10},
            {"point_cloud_dim": 8, "feature_dim": 12, "num_neighbors": 3},
            {"memory_size": 500, "feature_dim": 48, "attention_window": 8},
            device="cpu",
        )


def video(model, path=PATH, **changes):
    options = {"num_frames": T, "height": H, "width": W, "num_inference_steps": 2, "seed": 5}
    return generate_video(model, picture(), path, **(options | changes))


def test_signatures_are_the_documented_ones():
    def head(f):
        found = list(inspect.signature(f).parameters.values())
        return {p.name: p.default for p in found if p.kind is not p.KEYWORD_ONLY}

    empty = inspect.Parameter.empty
    shared = {
        "num_frames": 16, "height": 512, "width": 512, "num_inference_steps": 50,
        "guidance_scale": 7.5, "point_cloud": None, "use_geometric_memory": True,
        "use_spatial_memory": True,
    }  # fmt: skip
    ends = {"seed": None, "output_format": "tensor", "save_path": None, "progress_callback": None}
    one = {"model": empty, "condition_image": empty, "camera_trajectory": empty} | shared | ends
    assert list(head(generate_video).items()) == list(one.items())
    several = {"model": empty, "condition_image": empty, "camera_trajectories": empty}
    several |= shared | {"share_memory": True} | ends
    assert list(head(generate_multi_view).items()) == list(several.items())


@pytest.mark.parametrize("name", ["warp", "compact"])
def test_every_output_has_its_documented_form(name, request, tmp_path):
    model = request.getfixturevalue(name)
    state = torch.random.get_rng_state()
    tensor = video(model)
    assert tensor.shape == (T, 3, H, W) and tensor.dtype == torch.float32
    assert float(tensor.min()) >= 0 and float(tensor.max()) <= 1 and tensor.device.type == "cpu"
    array = video(model, output_format="numpy")
    assert array.shape == (T, H, W, 3) and array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())  # same seed, same bits
    frames = video(model, output_format="pil")
    assert len(frames) == T and all(f.size == (W, H) and f.mode == "RGB" for f in frames)
    np.testing.assert_array_equal(np.asarray(frames[1]), (array[1] * 255 + 0.5).astype(np.uint8))
    path = str(tmp_path / "film.mp4")
    assert video(model, output_format="video", save_path=path) == path
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    clip = video(model, return_clip=True)
    assert isinstance(clip, Clip) and torch.equal(clip.color, tensor)
    assert model.last_seed == 5
    whole = model.generate(picture(), PATH, T, 2, 7.5, None, 5, height=H, width=W)
    assert torch.equal(whole, tensor[None])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_is_drawn_and_kept(compact):
    video(compact, seed=None)
    first = compact.last_seed
    again = video(compact, seed=first)
    video(compact, seed=None)
    assert first != compact.last_seed
    assert torch.equal(again, video(compact, seed=first))


def test_the_callback_sees_every_step_and_can_stop(compact, warp):
    seen = []
    video(compact, progress_callback=lambda *a: seen.append((*a[:2], tuple(a[2].shape))))
    assert seen == [(i, 2, (1, T, 3, H, W)) for i in (1, 2)]
    seen.clear()
    video(warp, progress_callback=lambda *a: seen.append((*a[:2], tuple(a[2].shape))))
    assert seen == [(i, T, (1, 1, 3, H, W)) for i in (1, 2, 3)]

    def stop(step, total, latent):
        raise Cancelled("enough")

    for model in (compact, warp):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(Cancelled):
            video(model, seed=6, progress_callback=stop)
        after = model.state_dict()
        assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_a_memory_that_is_off_is_neither_read_nor_written(compact, warp):
    for model in (compact, warp):
        video(model, use_spatial_memory=False)
        assert model.global_memory.num_points > 0 and model.spatial_memory.size == 0
        video(model, use_geometric_memory=False)
        assert model.global_memory.num_points == 0 and model.spatial_memory.size > 0
    assert video(compact, use_geometric_memory=False, use_spatial_memory=False).shape[0] == T
    with pytest.raises(ValueError, match="warp.*use_geometric_memory"):
        video(warp, use_geometric_memory=False, use_spatial_memory=False)


def test_every_kind_of_picture_is_the_same_picture(warp, tmp_path):
    bytes_ = (picture() * 255).round().byte()
    array = bytes_.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "a.png")
    kinds = [
        bytes_, bytes_[None], bytes_.float() / 255, array, Image.fromarray(array),
        str(tmp_path / "a.png"), tmp_path / "a.png",
    ]  # fmt: skip
    options = {"num_frames": T, "height": H, "width": W, "seed": 1}
    films = [generate_video(warp, kind, PATH, **options) for kind in kinds]
    assert all(torch.equal(films[0], other) for other in films[1:])
    dense = generate_video(warp, bytes_, PATH.to_trajectory(W, H), **options)
    assert torch.equal(dense, films[0])


def test_a_world_or_a_generator_is_taken_too(warp):
    world = World(WarpGenerator())
    made = video(world)
    assert made.shape == (T, 3, H, W) and len(world.scene.clips) == 1
    assert torch.equal(video(WarpGenerator()), made)


def test_the_second_path_sees_what_the_first_made(warp):
    """Equal cameras show equal surfaces: at most 2/255 apart, and nothing new is added."""
    options = {"num_frames": None, "height": H, "width": W, "seed": 5}
    films = generate_multi_view(warp, picture(), [PATH, PATH], **options)
    assert torch.equal(films[0], video(warp))
    assert float((films[0] - films[1]).abs().mean()) * 255 <= 2
    films = generate_multi_view(warp, picture(), [PATH, PATH], **options)
    added = [record.points_added for record in warp.world.history[-2:]]
    assert added[1] <= 0.05 * added[0]
    alone = generate_multi_view(warp, picture(), [PATH, PATH], share_memory=False, **options)
    assert torch.equal(alone[0], alone[1])


def test_several_films_become_files(warp, tmp_path):
    options = {"num_frames": [T, None], "height": H, "width": W, "seed": 5}
    seen = []
    found = generate_multi_view(
        warp, picture(), [PATH, PATH], output_format="video", save_path=tmp_path / "films",
        progress_callback=lambda step, total, latent: seen.append((step, total)), **options,
    )  # fmt: skip
    assert [p.name for p in sorted((tmp_path / "films").iterdir())] == [
        "view_000.mp4", "view_001.mp4",
    ]  # fmt: skip
    assert found == [str(tmp_path / "films" / f"view_00{i}.mp4") for i in (0, 1)]
    assert seen == [(i, 2 * T) for i in range(1, 2 * T + 1)]
    history = len(warp.world.history)
    count = 0

    def stop(step, total, latent):
        nonlocal count
        count = step
        if step == T + 1:
            raise ValueError("stopped here")

    with pytest.raises(ValueError, match=r"camera_trajectories\[1\].*stopped here"):
        generate_multi_view(warp, picture(), [PATH, PATH], progress_callback=stop, **options)
    assert len(warp.world.history) == history and count == T + 1

    def at_once(step, total, latent):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        generate_multi_view(
            warp, picture(), [PATH], output_format="video", save_path=tmp_path / "none",
            progress_callback=at_once, **(options | {"num_frames": T}),
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_a_prompt_that_nothing_reads_is_one_line(warp, caplog):
    video(warp, prompt="a red room", seed=3)
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "The warp generator reads no prompt."
    ]
    caplog.clear()
    video(warp, seed=3)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_cloud_gives_the_scale(warp):
    """A wall two units away, given as points: the picture's depth is that of the wall."""
    y, x = torch.meshgrid(torch.linspace(-3, 3, 120), torch.linspace(-3, 3, 120), indexing="ij")
    wall = torch.stack([x, y, torch.full_like(x, 2.0)], dim=-1).reshape(-1, 3)
    path = CameraTrajectory.circle([0, 0, 2], 2.0, T, degrees=4)
    video(warp, path, point_cloud=wall)
    depth = warp.world.scene.views[0].depth
    assert float((depth - 2).abs().median()) < 0.02


BAD = [
    ({"num_frames": 4}, ValueError, "num_frames is 4.*3 frames"),
    ({"height": 0}, ValueError, "height"),
    ({"width": 48.0}, TypeError, "width"),
    ({"num_inference_steps": 0}, ValueError, "num_inference_steps.*at least 1"),
    ({"guidance_scale": 0.5}, ValueError, "guidance_scale"),
    ({"output_format": "gif"}, ValueError, "tensor, numpy, pil, video"),
    ({"output_format": "video"}, ValueError, "save_path"),
    ({"save_path": "nowhere/at/all.mp4"}, ExportError, "does not exist"),
    ({"seed": -1}, ValueError, "seed"),
    ({"seed": "x"}, TypeError, "seed"),
    ({"prompt": 3}, TypeError, "prompt"),
    ({"projection": "fisheye"}, ValueError, "perspective, equirectangular"),
    ({"use_spatial_memory": 1}, TypeError, "use_spatial_memory"),
    ({"point_cloud": torch.zeros(0, 3)}, ValueError, "holds no point"),
    ({"condition_image": torch.full((3, 8, 8), 255.0)}, ValueError, "Divide by 255"),
    ({"condition_image": torch.rand(2, 8, 8)}, ValueError, r"\(C, H, W\)"),
    ({"condition_image": 3}, TypeError, "condition_image"),
    ({"condition_image": "absent.png"}, InputRefused, "absent.png"),
    ({"camera_trajectory": 3}, TypeError, "camera_trajectory"),
    ({"model": 3}, TypeError, "WorldStereo"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_a_bad_argument_is_named_and_changes_nothing(index, warp):
    change, error, message = BAD[index]
    revision = warp.world.scene.revision
    good = {
        "model": warp, "condition_image": picture(), "camera_trajectory": PATH, "num_frames": T,
        "height": H, "width": W,
    }  # fmt: skip
    with pytest.raises(error, match=message) as said:
        generate_video(**(good | change))
    if error is not TypeError:  # under test the annotations speak first, in several lines
        assert "\n" not in str(said.value)
    assert warp.world.scene.revision == revision


def test_sizes_that_the_backbone_cannot_make_name_the_nearest(compact):
    with pytest.raises(ValueError, match="multiple of 8.*Use 40 or 48"):
        video(compact, width=44)
    with pytest.raises(ValueError, match="at least one path"):
        generate_multi_view(compact, picture(), [])


def test_a_picture_of_another_shape_is_cropped_and_the_log_says_so(warp, caplog):
    wide = torch.rand(3, 32, 96, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO):
        generate_video(warp, wide, PATH, T, H, W)
    assert "cropped" in caplog.text and "seed" in caplog.text


LEVEL = room.looking(np.array([0.3, -0.4, 1.4]), np.array([0.6, 2.0, 1.4]))


def turning(start: float, end: float) -> CameraTrajectory:
    """Two frames that stand where the panorama was taken; yaw in degrees."""
    poses = [CameraPose([0, 0, 0], {"yaw": a}, t, fov=90.0) for t, a in enumerate((start, end))]
    return CameraTrajectory(poses, 2)


def traced(angle: float) -> torch.Tensor:
    """What a photo shows that was taken there, turned by so many degrees."""
    c2w = LEVEL.copy()
    c2w[:3, :3] = LEVEL[:3, :3] @ CameraPose([0, 0, 0], {"yaw": angle}).matrix.numpy()[:3, :3]
    return torch.from_numpy(room.photo(c2w, 96, 96, 48.0)).permute(2, 0, 1) / 255


def test_a_panorama_is_seen_from_its_place(warp, tmp_path):
    """A camera that turns away sees what a photo traced there shows, also what lies behind."""
    Image.fromarray(room.panorama(LEVEL, 768)).save(tmp_path / "pano.png")
    frames = generate_video(warp, tmp_path / "pano.png", turning(0, 200), 2, 96, 96, seed=1)
    assert float((frames[0] - traced(0)).abs().mean()) < 0.05
    assert float((frames[1] - traced(200)).abs().mean()) < 0.05
    assert float((frames[1] - traced(0)).abs().mean()) > 0.2
    assert len(warp.world.scene.views) == 14 + 2


def test_a_panorama_turns_with_the_camera_that_took_it(warp):
    """`condition_camera` says where its middle column looks; a cloud gives its depth."""
    camera = turning(0, 0).cameras(96, 96)[0]
    ball = torch.nn.functional.normalize(torch.randn(60_000, 3), dim=1) * 2.5
    frames = generate_video(
        warp, room.panorama(LEVEL, 768), turning(40, 0), 2, 96, 96, point_cloud=ball,
        condition_camera=camera,
    )  # fmt: skip
    assert float((frames[1] - traced(0)).abs().mean()) < 0.05
    assert float((frames[0] - traced(40)).abs().mean()) < 0.05
    known = torch.cat([v.depth.flatten() for v in warp.world.scene.views[:14]])
    assert 1.2 < float(known.median()) < 2.5  # of a ball of 2.5, seen over 90 degrees


def test_what_is_no_panorama_is_named(warp, tmp_path):
    with pytest.raises(ValueError, match="48 x 32.*twice as wide as"):
        video(warp, projection="equirectangular")
    tags = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r GPano:ProjectionType="cylindrical"/></x:xmpmeta>'
    Image.new("RGB", (64, 32)).save(tmp_path / "a.jpg", xmp=tags.encode())
    with pytest.raises(ValueError, match="of kind cylindrical; equirectangular ones"):
        generate_video(warp, tmp_path / "a.jpg", PATH, T, H, W)
    with pytest.raises(ValueError, match="of kind cylindrical"):
        generate_video(warp, Image.open(tmp_path / "a.jpg"), PATH, T, H, W)
    flat = generate_video(warp, tmp_path / "a.jpg", PATH, T, H, W, projection="perspective")
    assert flat.shape == (T, 3, H, W)


def test_frames_are_remembered_by_hand(warp):
    """A wall nearer than what is known: its points join the cloud, marked as generated."""
    video(warp)
    before, history = warp.global_memory.num_points, len(warp.world.history)
    frames = picture()[None].expand(T, -1, -1, -1)
    warp.update_memory(frames, PATH, torch.full((T, H, W), 0.8))
    assert warp.global_memory.num_points > before + 100
    added = warp.world.scene.cloud.step == warp.world.history[-1].step
    assert int(added.sum()) > 100 and len(warp.world.history) == history + 1
    warp.update_memory(frames, PATH)  # depth is estimated
    warp.world.undo()
    warp.world.undo()
    assert warp.global_memory.num_points == before
    for change, message in (
        ({"frames": frames[:0]}, "at least one"),
        ({"cameras": PATH.cameras(W, H)[:2]}, "cameras must be 3"),
        ({"depth": torch.zeros(T, 3, 3)}, "depth must be"),
        ({"depth": torch.full((T, H, W), -1.0)}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            warp.update_memory(**({"frames": frames, "cameras": PATH} | change))
    assert warp.global_memory.num_points == before
