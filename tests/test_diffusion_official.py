"""Example folders of the release: cameras, prompts and renders load as they are."""

import json

import pytest
import torch

from tests.corpus import png_header
from tests.tiny_model import SIZES, write_tiny_model
from worldstereo.errors import InputRefused
from worldstereo.generators import GenerationRequest, SamplerConfig
from worldstereo.generators.diffusion import DiffusionGenerator, read_example
from worldstereo.generators.diffusion.camera_conditions import pose_vectors

DINING = "images/photorealistic-indoor-dining_spaces-030"


def test_the_worked_example(data):
    """Section 9.8 of the published model's notes, to the printed digits."""
    example = read_example(data / "worldstereo" / DINING)
    cameras = example.trajectory.cameras
    assert (cameras.height, cameras.width, len(cameras)) == (480, 768, 21)
    K = cameras.K[0]
    assert K[0, 0].item() == pytest.approx(384.5408, abs=1e-3)
    assert K[1, 1].item() == pytest.approx(360.5070, abs=1e-3)
    assert K[:2, 2].tolist() == pytest.approx([384, 240])
    qt, _ = pose_vectors(cameras.w2c, cameras.w2c[:1])
    assert qt[0, 0].tolist() == pytest.approx([1, 0, 0, 0, 1.3107, 0, 1.5106], abs=2e-3)
    assert qt[0, -1].tolist() == pytest.approx([0.2732, 0, 0.9620, 0, -1.3303, 0, 1.5543], abs=2e-3)
    assert len(example.prompt) > 100 and example.guide is None


def test_official_renders_are_a_guide(data, tmp_path):
    folder = data / "worldstereo" / "reconstruction" / "kitchen"
    sizes = tuple((h, w) for h, w in SIZES)
    example = read_example(folder, "renders/traj_left", sizes=sizes, nframe=5)
    guide = example.guide
    assert guide is not None and len(guide) == 5 and "kitchen" in example.prompt
    stacked = guide.stacked()
    assert bool(stacked.mask[0].float().mean() > 0.9) and not bool(stacked.mask[-1].all())
    hole = stacked.color[-1][:, ~stacked.mask[-1][0]]
    assert float(hole.mean()) == pytest.approx(126 / 255, abs=0.05)  # mid grey, after the codec
    generator = DiffusionGenerator.from_pretrained(write_tiny_model(tmp_path))
    geometry, stereo = generator.new_memories(1000)
    request = GenerationRequest(
        trajectory=example.trajectory,
        guide=guide,
        geometry=geometry,
        stereo=stereo,
        views=(example.view,),
        prompt=example.prompt,
        sampler=SamplerConfig(steps=1),
    )
    frames = list(generator(request))
    assert len(frames) == 5 and frames[0].color.shape == example.image.shape
    assert bool(torch.isfinite(torch.stack([frame.color for frame in frames])).all())


def test_damaged_folders_are_refused_in_one_line(tmp_path):
    from PIL import Image

    def refused(match: str) -> None:
        with pytest.raises(InputRefused, match=match) as caught:
            read_example(tmp_path)
        assert "\n" not in str(caught.value)

    refused("holds no camera.json")
    (tmp_path / "camera.json").write_text("{")
    refused("holds no image.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
    refused("cannot be read as JSON")
    (tmp_path / "camera.json").write_text(json.dumps({"extrinsic": [], "intrinsic": []}))
    refused("are accepted")
    eye = torch.eye(4).tolist()
    (tmp_path / "camera.json").write_text(json.dumps({"extrinsic": [eye], "intrinsic": [1]}))
    refused("are accepted|must hold")
    K = [[20.0, 0, 15], [0, 20, 10], [0, 0, 1]]
    camera = {"extrinsic": [eye] * 3, "intrinsic": [K] * 3}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    (tmp_path / "prompt.json").write_text(json.dumps({"caption": 3}))
    refused("holds none of long caption")
    (tmp_path / "prompt.json").write_text(json.dumps({"short caption": "a b"}))
    assert read_example(tmp_path).prompt == "a b"
    for name in ("render.mp4", "render_mask.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    refused("cannot be read as a video")


def test_what_an_example_folder_may_not_do(tmp_path):
    """Sizes that are none, a picture too large to decode, and videos whose format is guessed."""
    import av
    from PIL import Image

    def refused(match: str) -> None:
        with pytest.raises(InputRefused, match=match) as caught:
            read_example(tmp_path)
        assert "\n" not in str(caught.value)

    eye, K = torch.eye(4).tolist(), [[20.0, 0, 15], [0, 20, 10], [0, 0, 1]]
    camera = {"extrinsic": [eye] * 3, "intrinsic": [K] * 3}
    Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
    for side in (0, -4, "x", 1.5, float("nan"), 10**30, []):
        (tmp_path / "camera.json").write_text(json.dumps(camera | {"height": side}))
        refused('"height" and "width" must be whole numbers')
    (tmp_path / "camera.json").write_text(json.dumps(camera | {"extrinsic": [[[10**400] * 4] * 4]}))
    refused("must hold")
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    assert len(read_example(tmp_path).trajectory) == 3
    for name in ("render.mp4", "render_mask.mp4"):
        with av.open(tmp_path / name, "w", format="matroska") as container:
            stream = container.add_stream("mpeg4", rate=16)
            stream.width, stream.height = 32, 16
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame(32, 16, "yuv420p")))
            container.mux(stream.encode())
    refused("render.mp4 cannot be read as a video")
    (tmp_path / "image.png").write_bytes(png_header(20_000, 20_000))
    refused("image.png: 20000 x 20000 px is above the limit")
