"""Procedural scenes against geometry: every view shows the same surfaces at the same depth."""

import pytest
import torch

from train.scenes import load_textures, make_scenes


@pytest.fixture(scope="module")
def bank(request):
    folder = request.getfixturevalue("data") / "textures"
    if not folder.is_dir():
        pytest.skip("the textures are not below WORLDSTEREO_DATA")
    torch.set_num_threads(2)
    return load_textures(folder, False)


@pytest.fixture(scope="module")
def shard(bank):
    return make_scenes(2, 11, bank, 3, 64)


def test_the_same_seed_is_the_same_scene(bank):
    first, second = (make_scenes(1, 4, bank, 2, 32) for _ in range(2))
    assert first["rgb"].shape == (1, 2, 3, 32, 32)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_views_agree_about_surfaces(shard):
    """A pixel of one view, projected into another by its depth, lies on what is drawn there.

    Where the other view's depth is within 1 %, colours must agree too but for texture filtering.
    """
    scenes = shard
    y, x = torch.meshgrid(torch.arange(64.0) + 0.5, torch.arange(64.0) + 0.5, indexing="ij")
    seen = []
    for s in range(2):
        fx, fy, cx, cy = scenes["K"][s].tolist()
        depth = scenes["dep"][s].float().reshape(3, 64, 64)
        color = scenes["rgb"][s].float() / 255
        pose = scenes["M"][s].double()
        point = torch.stack([(x - cx) / fx * depth[0], (y - cy) / fy * depth[0], depth[0]])
        world = pose[0, :3, :3] @ point.double().reshape(3, -1) + pose[0, :3, 3:]
        for other in (1, 2):
            there = pose[other, :3, :3].T @ (world - pose[other, :3, 3:])
            u = (fx * there[0] / there[2] + cx).floor().long()
            v = (fy * there[1] / there[2] + cy).floor().long()
            near = (there[2] > 0.05) & (u >= 0) & (u < 64) & (v >= 0) & (v < 64)
            near &= depth[0].reshape(-1) < 100
            if int(near.sum()) < 200:
                continue
            drawn = depth[other][v[near], u[near]]
            same = (drawn / there[2][near] - 1).abs() < 0.01
            seen.append(float(same.float().mean()))
            a = color[0].reshape(3, -1)[:, near][:, same]
            b = color[other][:, v[near], u[near]][:, same]
            swapped = b[:, torch.randperm(b.shape[1], generator=torch.Generator().manual_seed(0))]
            assert float((a - b).abs().mean()) < 0.5 * float((a - swapped).abs().mean())
    assert len(seen) >= 2
    assert sum(seen) / len(seen) > 0.4
