"""Learned depth: tiny random models of the real classes, recorded maps, edges, confirmation."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import textured_room as room
from tests import tiny_depth
from tests.loopback_hub import hub
from worldstereo import depth
from worldstereo.cameras import Cameras
from worldstereo.errors import Cancelled, WeightsMissing, WorldStereoError
from worldstereo.inputs import photo
from worldstereo.inputs.limits import LOCAL
from worldstereo.scene import DepthKind, View
from worldstereo.views import intake
from worldstereo.views.intake import IntakeOptions

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No model of this machine, and none left behind."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(depth.MODEL_FOLDER, "")  # put back afterwards, also what `use` sets
    depth.forget()
    yield
    depth.forget()


def cached(tmp_path: Path, repo: str, kind: str) -> Path:
    home = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    folder = home / "snapshots" / "0a1b2c"
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0a1b2c")
    tiny_depth.save(kind, folder)
    return folder


COLOR = torch.rand(3, 37, 53, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["relative", "metric", "dpt"])
def test_models_of_several_classes_are_read(tmp_path: Path, kind: str):
    """Through one interface: size, sign, label; only a metric model is not rough."""
    tiny_depth.save(kind, tmp_path / kind)
    estimate = depth.TransformersDepth(tmp_path / kind)(COLOR)
    assert estimate.depth.shape == (1, 37, 53) and float(estimate.depth.min()) > 0
    assert estimate.rough == (kind != "metric")
    again = depth.TransformersDepth(tmp_path / kind)(COLOR)
    assert torch.equal(again.depth, estimate.depth)


def test_a_model_that_measures_the_lens_gives_the_camera(tmp_path: Path):
    """Its focal length is taken where the photo names none, and only there."""
    tiny_depth.save("pro", tmp_path / "pro")
    model = depth.TransformersDepth(tmp_path / "pro")
    estimate = model(COLOR)
    assert not estimate.rough
    pixels = (COLOR.permute(1, 2, 0) * 255 + 0.5).byte().numpy()
    inputs = model.processor(images=pixels, return_tensors="pt")
    fov = float(model.model(**inputs).field_of_view)
    focal = 53 / 2 / math.tan(min(max(math.radians(fov), 0.05), 3.0) / 2)
    assert float(estimate.cameras.K[0, 0]) == pytest.approx(focal, rel=1e-3)
    given = depth.default_camera(53, 37, 0.7)
    assert model(COLOR, given).cameras is given


def test_a_model_in_the_cache_is_found_without_network(tmp_path: Path):
    folder = cached(tmp_path, depth.SUGGESTED, "relative")
    assert depth.find("auto") == depth.find(depth.SUGGESTED) == folder
    assert isinstance(depth.best_estimator(), depth.TransformersDepth)
    assert depth.find("none") is None and depth.model_folder() == str(folder)
    depth.use("none")
    assert isinstance(depth.best_estimator(), depth.LayoutDepth)
    with pytest.raises(WeightsMissing, match="a/b: neither a folder nor a model in the local hub"):
        depth.find("a/b")


def test_a_snapshot_that_is_not_whole_is_passed_over(tmp_path: Path):
    """A download that was stopped leaves no weights, or cut ones."""
    folder = cached(tmp_path, depth.SUGGESTED, "relative")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert depth.find("auto") is None
    with pytest.raises(WeightsMissing, match=r"model.safetensors is cut off"):
        depth.TransformersDepth(folder)


def test_folders_that_hold_no_depth_model_are_told_apart(tmp_path: Path):
    other = tmp_path / "words"
    tiny_depth.save("relative", other)
    text = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(text | {"architectures": ["BertModel"]}))
    with pytest.raises(WeightsMissing, match="words: holds BertModel, which is no depth model"):
        depth.TransformersDepth(other)
    pickled = tmp_path / "old"
    shutil.copytree(other, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(WeightsMissing, match="only pickled weights, which could run code"):
        depth.TransformersDepth(pickled)
    (other / "config.json").write_text("{")
    with pytest.raises(WeightsMissing, match=r"config.json cannot be read"):
        depth.TransformersDepth(other)


def test_a_download_is_followed_stopped_and_resumed(tmp_path: Path):
    """Bytes of bytes; a stop keeps what is there, and the next try asks for the rest alone."""
    source = tmp_path / "source"
    tiny_depth.save("relative", source)
    weights = source / "model.safetensors"
    padded = load_file(weights) | {"extra.padding": torch.rand(400_000)}
    save_file(padded, weights, metadata={"format": "pt"})
    size = sum(f.stat().st_size for f in source.iterdir())
    (source / "pytorch_model.bin").write_bytes(b"never fetched")
    said: list[tuple[int, int, str]] = []

    def stop(step: int, total: int, message: str) -> None:
        said.append((step, total, message))
        if step > size / 3:
            raise Cancelled("stopped")

    with hub(depth.SUGGESTED, source) as server:
        with pytest.raises(Cancelled):
            depth.download(on_step=stop, endpoint=server.url)
        assert depth.find("auto") is None
        last = said[-1][0]
        assert size / 3 < last < size and said[-1][1] == size
        server.asked.clear()
        folder = depth.download(on_step=lambda *step: said.append(step), endpoint=server.url)
        firsts = [first for how, name, first in server.asked if (how, name)[1] == weights.name]
        assert max(firsts) > 0.9 * (last - 5000)
        assert not any(name.endswith(".bin") for _, name, _ in server.asked)
    assert said[-1][:2] == (size, size) and depth.find("auto") == folder
    assert (folder / weights.name).read_bytes() == weights.read_bytes()
    assert isinstance(depth.best_estimator(), depth.TransformersDepth)


def test_a_download_that_cannot_be_is_one_line(tmp_path: Path):
    """Nobody listens there; the hub has no such model; weights that could run code; a lie."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.bin").write_bytes(b"0")
    with hub("a/pickled", source) as server:
        url = server.url
        with pytest.raises(WorldStereoError, match="a/pickled: holds no .safetensors weights"):
            depth.download("a/pickled", endpoint=url)
        with pytest.raises(WorldStereoError, match="a/other: the hub has no such open model"):
            depth.download("a/other", endpoint=url)
    with pytest.raises(WorldStereoError, match="the hub cannot be reached from here") as refused:
        depth.download(endpoint="http://127.0.0.1:9")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="repo must be a hub id"):
        depth.download("../../etc", endpoint=url)


def curtain(camera: depth.DepthEstimate | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A near square before a slanted floor, and the same as a model draws it: blurred."""
    rows = torch.linspace(0, 1, 240)[:, None].expand(240, 320)
    truth = 1 / (0.1 + 0.15 * rows)
    truth = truth.clone()
    truth[60:180, 100:220] = 1.5
    near = truth.reciprocal()[None, None]
    kernel = torch.ones(1, 1, 5, 5) / 25
    blurred = torch.nn.functional.conv2d(
        torch.nn.functional.pad(near, (2,) * 4, mode="replicate"), kernel
    )
    return truth[None], blurred[0].reciprocal()


def test_no_curtain_is_left_between_near_and_far():
    """Pixels between the square and the floor go to one of them; the slanted floor stays."""
    truth, blurred = curtain()
    cleaned = depth.clean_edges(blurred)
    between = ((blurred - truth).abs() / truth > 0.05).sum()
    left = ((cleaned - truth).abs() / truth > 0.05).sum()
    floor = torch.ones(240, 320, dtype=torch.bool)
    floor[45:195, 85:235] = False
    assert int(between) > 1500
    mixed = (cleaned[0] > 1.5 * 1.1) & (cleaned[0] < truth[0, 60, 50] * 0.6)
    assert int((mixed & ~floor).sum()) < 0.05 * int(between) and int(left) < 0.75 * int(between)
    torch.testing.assert_close(cleaned[0][floor], blurred[0][floor])
    holes = blurred.clone()
    holes[:, :20] = 0
    assert torch.equal(depth.clean_edges(holes)[:, :20], torch.zeros(1, 20, 320))


def test_learned_depth_is_believed_only_where_measurements_confirm_it():
    """Scale and shift are found; a region where the model is wrong is not believed."""
    truth, _ = curtain()
    guess = 1 / (truth.reciprocal() * 0.4 + 0.05)
    guess[:, :, 240:] = 2.0  # wrong on the right
    measured = truth.clone()
    measured[:, 100:140, 60:90] = 0  # a hole where it is right
    measured[:, 60:90, 270:300] = 0  # a hole where it is wrong
    fitted, believed = depth.confirmed(guess, measured)
    assert bool(believed[:, 100:140, 60:90].all()) and not bool(believed[:, 60:90, 270:300].any())
    hole = (slice(None), slice(100, 140), slice(60, 90))
    assert float((fitted[hole] / truth[hole] - 1).abs().max()) < 0.02
    nothing = depth.confirmed(guess, torch.zeros_like(measured))[1]
    assert not bool(nothing.any())


def test_a_recorded_map_is_the_depth_of_the_photo(tmp_path: Path):
    """16 bits, millimetres; another shape, another mode and a text are refused."""
    c2w = room.looking(np.array([0.0, -1.0, 1.5]), np.array([0.3, 2.0, 1.0]))
    truth = room.depth(c2w, 64, 48, 56.0)
    Image.fromarray((truth * 1000).astype(np.uint16)).save(tmp_path / "map.png")
    depth.use(str(tmp_path / "map.png"))
    estimator = depth.best_estimator()
    assert isinstance(estimator, depth.RecordedDepth)
    data = tmp_path / "photo.png"
    Image.fromarray(room.photo(c2w, 128, 96, 112.0)).save(data)
    capture = photo.read_photo("photo.png", data.read_bytes(), LOCAL)
    assert not capture.rough_depth
    found = capture.views[0].depth[0].numpy()[::2, ::2]
    assert np.median(np.abs(found / truth - 1)) < 0.01
    with pytest.raises(ValueError, match="depth is 64 x 48 and color 53 x 37"):
        estimator(COLOR)
    Image.new("L", (9, 9)).save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("depth")
    for name in ("grey.png", "text.png"):
        with pytest.raises(WeightsMissing, match=f"{name}: this is no depth map"):
            depth.RecordedDepth.read(tmp_path / name)


def holed_views(count: int = 3) -> tuple[list[View], list[torch.Tensor]]:
    """Views of the room whose sensor gave up on a patch of each, and their whole depth."""
    views, truths = [], []
    for c2w in room.walk(count, 0.3):
        truth = torch.from_numpy(room.depth(c2w, 160, 120, 140.0).astype(np.float32))[None]
        color = torch.from_numpy(room.photo(c2w, 160, 120, 140.0)).permute(2, 0, 1).float() / 255
        K = torch.tensor([[140.0, 0, 80], [0, 140.0, 60], [0, 0, 1]])
        camera = Cameras(K, torch.from_numpy(c2w).float(), 160, 120)
        measured = truth.clone()
        measured[:, 40:75, 55:105] = 0
        views.append(View.of(color, measured, camera))
        truths.append(truth)
    return views, truths


class Recorded:
    """What a model said of each picture: relative inverse depth, `wrong` in some of them."""

    def __init__(self, views: list[View], truths: list[torch.Tensor], wrong: bool) -> None:
        self.maps = {v.color_u8.numpy().tobytes(): t for v, t in zip(views, truths, strict=True)}
        self.wrong, self.calls = wrong, 0

    def __call__(self, color: torch.Tensor, cameras: Any = None) -> depth.DepthEstimate:
        self.calls += 1
        truth = self.maps[(color * 255 + 0.5).to(torch.uint8).numpy().tobytes()]
        guess = 1 / (0.3 * truth.reciprocal() + 0.04)
        if self.wrong:  # a picture of something else
            guess = guess.flip(-1) + 3 * torch.rand(
                guess.shape, generator=torch.Generator().manual_seed(0)
            )
        return depth.DepthEstimate(guess, torch.ones_like(guess), True, cameras)


def test_sensor_holes_are_completed_by_the_model_where_measured_depth_confirms_it():
    """Marked as learned, closer than what is spanned across, and never a wrong model's."""
    views, truths = holed_views()
    names = ("camera_fixed", "by_others", "stereo", "contradict", "judged")
    alone = dict.fromkeys(names, False)
    plain = intake.preprocess_views(
        views, register=False, options=IntakeOptions(**alone, learned=False)
    )
    right = Recorded(views, truths, wrong=False)
    done = intake.preprocess_views(
        views, register=False, estimator=right, options=IntakeOptions(**alone)
    )
    assert right.calls == len(views)
    for before, after, view, truth in zip(plain.views, done.views, views, truths, strict=True):
        learned = after.kind == int(DepthKind.LEARNED)
        hole = view.depth == 0
        assert float(learned[hole].float().mean()) > 0.9 and not bool(learned[~hole].any())
        off = [(v.depth[learned] / truth[learned] - 1).abs().mean() for v in (before, after)]
        assert float(off[1]) < 0.02 and float(off[1]) < 0.5 * float(off[0])
        known = view.kind == int(DepthKind.MEASURED)
        assert torch.equal(after.depth[known], before.depth[known])
    assert "comes from the depth model" in " ".join(done.notices)
    wrong = Recorded(views, truths, wrong=True)
    same = intake.preprocess_views(
        views, register=False, estimator=wrong, options=IntakeOptions(**alone)
    )
    for a, b in zip(plain.views, same.views, strict=True):
        assert torch.equal(a.depth, b.depth) and torch.equal(a.kind, b.kind)
