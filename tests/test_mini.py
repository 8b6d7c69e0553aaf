"""The mini generator's structure and loading; its figures are the bench's business."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import room_capture, turned_cameras
from worldstereo import Origin, Trajectory, WarpGenerator, WeightsMissing, World
from worldstereo._mini.inputs import BINS, MiniInputs, batched, cloud_map, error_bins, make_inputs
from worldstereo._mini.network import MiniNetwork, supported
from worldstereo.explore import explore, start
from worldstereo.mini import VERSION, MiniGenerator, load_network, why_not
from worldstereo.render import render_points


def random_maps(height=48, width=64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def r(*shape):
        return torch.rand(*shape, height, width, generator=g)

    known = (r(1) < 0.7).float()
    return MiniInputs(
        anchor=2 * r(3) - 1,
        known=known,
        bins=error_bins(r(1), known > 0),
        closeness=r(1),
        splat=r(4),
        rays=r(6),
        references=r(3, 6),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in the shipped form, strong enough that every path matters."""
    torch.manual_seed(3)
    network = MiniNetwork()
    with torch.no_grad():
        for p in network.parameters():
            if float(p.abs().max()) == 0:
                p.normal_(std=0.02)
    folder = tmp_path_factory.mktemp("mini")
    save_file({k: v.half() for k, v in network.state_dict().items()}, folder / "w.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"version": VERSION, "files": ["w.safetensors"]})
    )
    return folder


def test_freshly_built_it_changes_nothing():
    """Zero-initialised branches and output: one step is the anchor, bit for bit."""
    network, maps = MiniNetwork().eval(), batched([random_maps()])
    residuals, _ = network.control(maps)
    estimate = network.sample(maps, 1, residuals, torch.randn(1, 3, 48, 64))
    torch.testing.assert_close(estimate.color, maps.anchor, atol=1e-6, rtol=0)
    torch.testing.assert_close(estimate.closeness, maps.closeness, atol=1e-6, rtol=0)


def test_noise_has_no_influence_at_one_step(folder):
    network, maps = load_network(folder), batched([random_maps()])
    residuals, _ = network.control(maps)
    first = network.sample(maps, 1, residuals, torch.randn(1, 3, 48, 64))
    second = network.sample(maps, 1, residuals, 9 * torch.ones(1, 3, 48, 64))
    assert torch.equal(first.color, second.color)
    several = network.sample(maps, 4, residuals, torch.randn(1, 3, 48, 64))
    assert bool(torch.isfinite(several.color).all())


def test_a_cell_without_correspondence_attends_to_nothing(folder):
    maps = random_maps()
    references = maps.references.clone()
    references[:, 3, :, :32] = 0  # agreement 0 on the left half
    network = load_network(folder)
    with torch.inference_mode():
        _, attention = network.control(batched([maps._replace(references=references)]))
    assert attention is not None
    assert attention.shape == (1, 4, 4, 24, 32)
    torch.testing.assert_close(attention.sum(1), torch.ones(1, 4, 24, 32))
    assert float(attention[:, :3, :, :, :16].abs().max()) == 0.0
    assert float(attention[:, :3, :, :, 16:].sum(1).min()) > 0.0


def test_a_correction_goes_as_far_as_the_references_bear_it():
    """Against loops over pixels; whole where nothing is known or nothing corresponds."""
    maps = batched([random_maps(24, 32)])
    g = torch.Generator().manual_seed(4)
    references = maps.references * (torch.rand(1, 3, 1, 24, 32, generator=g) < 0.6)
    maps = maps._replace(references=references)
    color = maps.anchor + 0.3 * torch.randn(1, 3, 24, 32, generator=g)
    assert supported(maps, color, 0.0) is color
    got = supported(maps, color, 2.0)
    told, change = np.zeros((24, 32)), (color - maps.anchor)[0].numpy()
    weights = np.zeros((24, 32))
    for r in maps.references[0].numpy():
        weight = np.maximum(r[3], 0) / (1 + np.abs(r[4]) / 0.65) ** 6
        told += weight * ((r[:3] - maps.anchor[0].numpy()) ** 2).mean(0)
        weights += weight
    squares = [told / np.maximum(weights, 1e-6), (change**2).mean(0)]
    D, C = (np.pad(s, 4, mode="edge") for s in squares)
    for y, x in ((0, 0), (5, 7), (12, 31), (23, 16), (20, 3), (9, 22)):
        d, c = D[y : y + 9, x : x + 9].mean(), C[y : y + 9, x : x + 9].mean()
        free = float(maps.known[0, 0, y, x]) == 0 or weights[y, x] == 0
        share = 1 if free else d / (d + 2 * c)
        wanted = maps.anchor[0, :, y, x].numpy() + share * change[:, y, x]
        np.testing.assert_allclose(got[0, :, y, x].numpy(), wanted, atol=1e-4)
    agree = maps.anchor[:, None].expand(1, 3, 3, 24, 32)
    same = maps._replace(references=torch.cat([agree, torch.ones(1, 3, 3, 24, 32)], 2))
    same = same._replace(known=torch.ones_like(maps.known))
    torch.testing.assert_close(supported(same, color, 2.0), maps.anchor, atol=1e-5, rtol=0)


def test_each_branch_can_be_left_out(folder):
    maps = random_maps()
    answers = [
        MiniGenerator(folder, geometric=g, stereo=s).estimate(maps)[0].color
        for g, s in ((True, True), (True, False), (False, False))
    ]
    for i in range(3):
        for j in range(i):
            assert float((answers[i] - answers[j]).abs().max()) > 1e-3


def test_tiles_agree_with_the_whole(folder, monkeypatch):
    """The network sees about 100 px: far from the seams a tiled frame is the whole one."""
    from worldstereo import mini

    maps = random_maps(64, 448)
    generator = MiniGenerator(folder, half=False)
    whole, _ = generator.estimate(maps)
    monkeypatch.setattr(mini, "TILE", (320, 64))
    tiled, found = generator.estimate(maps)
    assert tiled.color.shape == whole.color.shape
    assert found.shape == (1, 64, 448)
    torch.testing.assert_close(tiled.color[..., :96], whole.color[..., :96], atol=2e-4, rtol=0)
    assert float((tiled.color - whole.color).abs().mean()) < 0.02


def test_half_precision_says_nearly_the_same_and_repeats_its_bits(folder):
    maps = random_maps()
    exact, _ = MiniGenerator(folder, half=False).estimate(maps)
    rough = MiniGenerator(folder, half=True)
    one, two = rough.estimate(maps)[0], rough.estimate(maps)[0]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert float((one.color - exact.color).abs().max()) < 0.05
    moved = float((exact.color - maps.anchor).abs().mean())
    assert float((one.color - exact.color).abs().mean()) < 0.02 * moved


def test_photo_to_frames_same_seed_same_bits(folder):
    world = World(MiniGenerator(folder), max_points=50_000)
    start(world, room_capture(n=2, width=64, height=48), register=False)
    camera = world.scene.views[0].cameras
    path = Trajectory.preset("truck", camera, distance=4.0, frames=2, amount=0.5)
    runs = []
    for _ in range(2):
        clip = explore(world, path, seed=4)
        runs.append((clip.color8, clip.depth, clip.confidence8))
        world.undo()
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
    plain = explore(world, path, generator=WarpGenerator())
    assert torch.equal(plain.origin == int(Origin.INVENTED), clip.origin == int(Origin.INVENTED))


def test_no_reference_and_no_seen_pixel_at_all(folder):
    maps = random_maps()
    empty = maps._replace(
        known=torch.zeros_like(maps.known),
        references=torch.zeros_like(maps.references),
        splat=torch.zeros_like(maps.splat),
        bins=torch.full_like(maps.bins, BINS - 1),
    )
    estimate, found = MiniGenerator(folder).estimate(empty)
    assert bool(torch.isfinite(estimate.color).all())
    assert float(found.max()) == 0.0


def test_sizes_that_do_not_fit_are_named(folder):
    world = World(MiniGenerator(folder), max_points=50_000)
    start(world, room_capture(n=1, width=64, height=48), register=False)
    path = Trajectory.preset("dolly", world.scene.views[0].cameras, distance=4.0, frames=1)
    with pytest.raises(ValueError, match="multiples of 16 for the mini generator, got 70 x 48"):
        explore(world, path.scaled(70, 48))


def test_the_cloud_is_drawn_once_and_read_from_the_guide():
    """What the index map says is the splat's own colour and mask, bit for bit."""
    g = torch.Generator().manual_seed(2)
    points, colors = torch.rand(3000, 3, generator=g) * 2, torch.rand(3000, 3, generator=g)
    camera = turned_cameras(1)[0]
    splat = render_points(points + torch.tensor([0.0, 0.0, 2.0]), colors, camera, radius=1)
    assert 0.1 < float(splat.mask.mean()) < 0.9
    cloud = cloud_map(colors, splat.index)
    assert torch.equal(cloud[3:], splat.mask)
    assert torch.equal(cloud[:3], (splat.color * 2 - 1) * splat.mask)
    assert float(cloud_map(torch.zeros(0, 3), torch.full((1, 4, 4), -1)).abs().max()) == 0


@pytest.mark.parametrize("count", [0, 1, 16])
def test_any_number_of_references_and_depth_that_is_not_finite(folder, count):
    """The nearest three serve, empty ones fill up, and nothing non-finite reaches the network."""
    capture = room_capture(n=max(count, 1), width=64, height=48)
    camera = capture.views[0].cameras
    frame = capture.views[0].color
    depth = capture.views[0].depth.clone()
    depth[0, :8, :8], depth[0, 8:16, :8] = float("nan"), float("inf")
    known = depth > 0
    maps = make_inputs(
        camera, frame, depth, known.float(), known, list(capture.views[:count]), None, 1.0
    )
    assert maps.references.shape == (3, 6, 48, 64)
    held = (maps.references[:, 3] > 0).flatten(1).any(1).sum()
    assert int(held) == min(count, 3)
    assert all(bool(torch.isfinite(m).all()) for m in maps)
    estimate, _ = MiniGenerator(folder).estimate(maps)
    assert all(bool(torch.isfinite(value).all()) for value in estimate)


def cut(folder):
    weights = folder / "w.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def other_version(folder):
    (folder / "config.json").write_text(json.dumps({"version": 99, "files": ["w.safetensors"]}))


def missing(folder):
    (folder / "w.safetensors").unlink()


def foreign(folder):
    tensors = load_file(folder / "w.safetensors")
    tensors.pop("sigma")
    save_file(tensors, folder / "w.safetensors")


def not_finite(folder):
    tensors = load_file(folder / "w.safetensors")
    tensors["sigma"][0] = float("nan")
    save_file(tensors, folder / "w.safetensors")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "cut short"),
        (missing, "missing or cut short"),
        (other_version, "version 99; version 1 is needed"),
        (foreign, "sigma is missing or foreign"),
        (not_finite, "not finite"),
    ],
)
def test_bad_weights_are_named_in_one_line(folder, tmp_path, harm, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    harm(tmp_path)
    with pytest.raises(WeightsMissing, match=message) as refusal:
        MiniGenerator(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[
            (f'{{"version": 1, "files": ["w.safetensors"], "caution": {value}}}', "a number from 0")
            for value in ("NaN", "Infinity", "1e308", "-1", '"4"', "true", "9" * 400, "[4]")
        ],
        ("[" * 60_000, "cannot be read"),
        ('{"version": 1, "files": ["w.safetensors"], "pad": "' + "x" * 70_000, "cannot be read"),
        ('{"version": true, "files": ["w.safetensors"]}', "cannot be read"),
        ('{"version": 1, "files": "w.safetensors"}', "cannot be read"),
        ('{"version": 1, "files": ' + json.dumps(["w.safetensors"] * 17) + "}", "cannot be read"),
        ("[]", "cannot be read"),
        ("\ud800", "cannot be read"),
    ],
)
def test_odd_configs_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert message in why_not(tmp_path) and len(why_not(tmp_path)) < 120
    with pytest.raises(WeightsMissing, match=message):
        load_network(tmp_path)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(WeightsMissing, match="use the warp generator"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("harm", "message"),
    [(None, ""), (cut, "cut short"), (missing, "missing or cut"), (other_version, "version 99")],
)
def test_the_app_offers_warp_and_says_why_mini_is_off(folder, tmp_path, monkeypatch, harm, message):
    """Harmed weights turn the choice off with the same line; a sound folder leaves it on."""
    import app
    from worldstereo import mini

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if harm is not None:
        harm(tmp_path)
    assert message in why_not(tmp_path)
    monkeypatch.setattr(mini, "why_not", lambda: why_not(tmp_path))
    config = app.sessions_config(app.AppConfig())
    choices = {choice.name: choice for choice in config.generators}
    assert (choices["mini"].why_not == "") == (harm is None)
    assert message in choices["mini"].why_not
    assert config.generator == "warp"
    assert choices["warp"].why_not == ""
    assert why_not(tmp_path / "nothing") != ""
