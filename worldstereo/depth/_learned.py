"""Learned depth: a transformers model from a folder or the local hub cache, or a recorded map.

Which estimator is used follows one text, `--depth`: `auto`, `none`, one of `registry.estimators()`
as `name` or `name:argument`, or plainly a folder, a hub id or a map.

Nothing is downloaded but by `download`, which a person asks for. Only `.safetensors` are read.
"""

import contextlib
import json
import logging
import math
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.depth import registry
from worldstereo.depth._base import DepthEstimate, DepthEstimator, default_camera
from worldstereo.depth._edges import clean_edges
from worldstereo.depth._layout import LayoutDepth
from worldstereo.errors import WeightsMissing

log = logging.getLogger(__name__)

MODEL_FOLDER = "WORLDSTEREO_DEPTH_MODEL"
"""Environment variable: a folder, a hub id that is in the local cache, `auto` or `none`."""
SUGGESTED = "depth-anything/Depth-Anything-V2-Small-hf"
"""What `download` gets where nothing is named: about 100 MB, Apache-2.0."""
SUGGESTED_LABEL = "Get a depth model (about 100 MB, Apache-2.0)"
_PREFERRED = (
    "apple/DepthPro-hf",
    "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
    SUGGESTED,
)
_INVERSE = ("dpt", "depth_anything")  # predict relative inverse depth unless they say "metric"


class TransformersDepth:
    """Any depth model of the `transformers` library, from a local folder.

    A model that measures the field of view (Depth Pro) gives the focal length, too.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            WeightsMissing: the folder holds no depth model that can be read; one line says why.
        """
        self.folder = Path(folder)
        check_folder(self.folder)
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        except ImportError:
            raise WeightsMissing(
                "The transformers library is not installed. Install requirements.txt."
            ) from None
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.processor = AutoImageProcessor.from_pretrained(self.folder, **options)
            self.model = AutoModelForDepthEstimation.from_pretrained(
                self.folder, use_safetensors=True, **options
            )
        except Exception as error:  # any of a dozen classes, for a damaged or foreign folder
            if "requires the Torchvision library" in str(error):
                raise WeightsMissing(
                    f"{self.folder.name}: this model prepares pictures with torchvision, which is "
                    f"not installed. Install the torchvision that fits this torch."
                ) from None
            log.warning("depth model refused: %s", error)
            raise WeightsMissing(
                f"{self.folder.name}: this is no depth model that can be read. A folder saved "
                f"with save_pretrained is accepted."
            ) from None
        self.model = self.model.to(device).eval()
        self.device = torch.device(device)
        config = self.model.config
        self.name = str(getattr(config, "_name_or_path", "") or self.folder.name)
        kind = getattr(config, "depth_estimation_type", None)
        self.metric = kind == "metric" or (kind is None and config.model_type not in _INVERSE)

    @torch.no_grad()
    def __call__(
        self, color: Float[Tensor, "3 H W"], cameras: Cameras | None = None
    ) -> DepthEstimate:
        _, H, W = color.shape
        given, cameras = cameras, default_camera(W, H) if cameras is None else cameras
        pixels = (color.permute(1, 2, 0).clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()
        inputs = self.processor(images=pixels, return_tensors="pt").to(self.device)
        outputs = self.model(**inputs)
        predicted = outputs.predicted_depth.float()
        raw = predicted.reshape(1, 1, *predicted.shape[-2:])
        raw = functional.interpolate(raw, (H, W), mode="bicubic", align_corners=False)[0].to(color)
        if (across := getattr(outputs, "field_of_view", None)) is not None:
            # Inverse depth for a picture one focal length wide, and the degrees of its width.
            angle = math.radians(min(max(float(across), 3.0), 170.0))
            focal = W / 2 / math.tan(angle / 2)
            if given is None:
                cameras = default_camera(W, H, 2 * math.atan(max(H, W) / 2 / focal))
            raw = 1 / (raw * W / float(cameras.K[0, 0])).clamp(1e-4, 1e4)
        depth = (
            clean_edges(raw.clamp_min(1e-3), color) if self.metric else relative_depth(raw, color)
        )
        confidence = torch.full_like(depth, 0.6 if self.metric else 0.4)
        return DepthEstimate(depth, confidence, not self.metric, cameras)


def relative_depth(
    inverse: Float[Tensor, "1 H W"], color: Float[Tensor, "3 H W"]
) -> Float[Tensor, "1 H W"]:
    """Depth from inverse depth of unknown scale and shift, from 1.5 to 30 units, edges kept."""
    inverse = inverse - inverse.amin()
    inverse = inverse / inverse.amax().clamp_min(1e-12)
    return clean_edges(1.5 / (0.05 + 0.95 * inverse), color)


class RecordedDepth:
    """A depth map that was made elsewhere, for the picture it belongs to.

    Args:
        depth: Scene units, 0 where unknown.
    """

    def __init__(self, depth: Float[Tensor, "1 H W"]) -> None:
        if not bool((depth > 0).any()):
            raise ValueError("depth must hold at least one value above 0, got none.")
        self.depth = depth

    @classmethod
    def read(cls, path: Path | str) -> "RecordedDepth":
        """A map as one grey picture: whole numbers are millimetres, TIFF floats are units.

        Raises:
            WeightsMissing: it is no such picture.
        """
        from PIL import Image

        path = Path(path)
        try:
            with Image.open(path, formats=("PNG", "TIFF")) as picture:
                if picture.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
                    raise ValueError(picture.mode)
                unit = 1.0 if picture.mode == "F" else 0.001
                values = np.asarray(picture).astype(np.float32) * unit
            if not np.isfinite(values).all() or values.min() < 0:
                raise ValueError("negative or infinite depth")
            return cls(torch.from_numpy(values)[None])
        except (OSError, ValueError, SyntaxError) as error:
            log.warning("depth map refused: %s", error)
            raise WeightsMissing(
                f"{path.name}: this is no depth map. One grey 16-bit PNG in millimetres, or TIFF, "
                f"is accepted."
            ) from None

    def __call__(
        self, color: Float[Tensor, "3 H W"], cameras: Cameras | None = None
    ) -> DepthEstimate:
        _, H, W = color.shape
        h, w = self.depth.shape[-2:]
        if abs(w * H / (h * W) - 1) > 0.02:
            raise ValueError(
                f"depth is {w} x {h} and color {W} x {H}; maps of the picture's shape are accepted."
            )
        depth = functional.interpolate(self.depth[None], (H, W), mode="nearest-exact")[0].to(color)
        depth = clean_edges(depth, color)
        known = depth > 0
        confidence = torch.where(known, 0.6, 0.0)
        camera = default_camera(W, H) if cameras is None else cameras
        return DepthEstimate(depth, confidence, False, camera)


def check_folder(folder: Path) -> None:
    """Says what is wrong with a folder before a library opens it.

    Raises:
        WeightsMissing
    """
    name = folder.name
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not config.is_file() or not weights:
        pickled = folder.is_dir() and any(
            f.suffix in (".bin", ".pt", ".pth", ".ckpt") for f in folder.iterdir()
        )
        if pickled and not weights:
            raise WeightsMissing(
                f"{name}: only pickled weights, which could run code. Weights as .safetensors are "
                f"accepted."
            )
        raise WeightsMissing(
            f"{name}: config.json or .safetensors is missing. A depth model saved "
            f"with save_pretrained is accepted."
        )
    try:
        kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        raise WeightsMissing(f"{name}: config.json cannot be read. Copy the model again.") from None
    if kinds and not any("DepthEstimation" in str(kind) for kind in kinds):
        raise WeightsMissing(
            f"{name}: holds {str(kinds[0])[:60]}, which is no depth model. One for depth "
            f"estimation is accepted."
        )
    for file in weights:
        if not _whole(file):
            raise WeightsMissing(f"{name}: {file.name} is cut off. Copy or download it again.")


def _whole(file: Path) -> bool:
    """Whether a .safetensors file is as long as its own header says."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            size = file.stat().st_size
            if not 2 <= length <= min(size - 8, 100 << 20):
                return False
            header = json.loads(stream.read(length))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        return 8 + length + max(ends, default=0) == size
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False


# ---- which model -------------------------------------------------------------------------------


def find(spec: str = "auto") -> Path | None:
    """The folder of a depth model on this machine; nothing is downloaded.

    Args:
        spec: "auto" takes what the local hub cache holds, "none" nothing; else a folder, the hub
            id of a model in the cache, or a recorded depth map.

    Raises:
        WeightsMissing: the model that is named is not here.
    """
    spec = spec.strip()
    if spec in ("none", ""):
        return None
    if spec != "auto":
        folder = Path(spec).expanduser()
        if folder.exists():
            return folder
        cached = _cached(spec) if spec.count("/") == 1 else None
        if cached is None:
            repo = spec[:80] if spec.count("/") == 1 else SUGGESTED
            raise WeightsMissing(
                f"{spec[:80]}: neither a folder nor a model in the local hub cache. Get one with "
                f"worldstereo depth {repo} --get."
            )
        return cached
    for repo in _PREFERRED:
        if (folder := _cached(repo)) is not None:
            return folder
    return next((f for repo in _cached_repos() if (f := _cached(repo)) is not None), None)


def cache_folder() -> Path | None:
    """Of the hub; None where its library is not installed."""
    with contextlib.suppress(Exception):
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    return None


def _cached_repos() -> list[str]:
    root = cache_folder()
    if root is None or not root.is_dir():
        return []
    found = sorted(f.name for f in root.iterdir() if f.name.startswith("models--"))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in found]


def _cached(repo: str) -> Path | None:
    """The newest snapshot in the cache that is a whole depth model."""
    root = cache_folder()
    if root is None:
        return None
    home = root / f"models--{repo.replace('/', '--')}"
    revisions = []
    with contextlib.suppress(OSError):
        revisions.append((home / "refs" / "main").read_text().strip())
        revisions += sorted(f.name for f in (home / "snapshots").iterdir())
    for revision in dict.fromkeys(revisions):
        folder = home / "snapshots" / revision
        with contextlib.suppress(WeightsMissing, OSError):
            check_folder(folder)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if any("DepthEstimation" in str(k) for k in config.get("architectures") or []):
                return folder
    return None


def best_estimator() -> DepthEstimator:
    """The model that WORLDSTEREO_DEPTH_MODEL names or the local cache holds, else the layout."""
    return _estimator_of(os.environ.get(MODEL_FOLDER, "") or "auto", str(cache_folder() or ""))


def learned_estimator() -> DepthEstimator | None:
    """The depth model in use; None where there is only the layout or one photo's recorded map."""
    estimator = best_estimator()
    return estimator if isinstance(estimator, TransformersDepth) else None


def layout(argument: str) -> DepthEstimator:
    """The estimator `layout`."""
    return LayoutDepth()


def learned(argument: str) -> DepthEstimator:
    """The estimator `transformers`: of a folder or hub id, or of the best in the cache."""
    folder = find(argument or "auto")
    if folder is None:
        raise WeightsMissing(
            f"No depth model is here. Get one with worldstereo depth {SUGGESTED} --get."
        )
    return TransformersDepth(folder)


def recorded(argument: str) -> DepthEstimator:
    """The estimator `map`: of a picture of depths."""
    return RecordedDepth.read(Path(argument).expanduser())


def use(spec: str) -> None:
    """Take this model from now on, in this process and in those that it starts; see `find`.

    Raises:
        WeightsMissing: it is not here, or cannot be read.
    """
    if (known := registry.named(spec)) is not None:
        estimator, argument = known
        path = Path(argument).expanduser()  # another process may have another working folder
        argument = str(path.resolve()) if argument and path.exists() else argument
        estimator(argument)  # says now what is missing
        os.environ[MODEL_FOLDER] = f"{estimator.name}:{argument}" if argument else estimator.name
        forget()
        return
    found = find(spec)
    if found is not None and found.is_dir():
        check_folder(found)
    os.environ[MODEL_FOLDER] = spec if found is None or spec == "auto" else str(found.resolve())
    forget()


def model_folder() -> str:
    """What `best_estimator` would load: a folder, a registered estimator's name, or "none"."""
    spec = os.environ.get(MODEL_FOLDER, "") or "auto"
    if registry.named(spec) is not None:
        return spec
    try:
        folder = find(spec)
    except WeightsMissing as error:
        log.warning("%s The rough layout is used instead.", error)
        folder = None
    return "none" if folder is None else str(folder)


@lru_cache(maxsize=1)  # a model is loaded once; both estimators keep no state between calls
def _estimator_of(spec: str, cache: str) -> DepthEstimator:
    try:
        if (known := registry.named(spec)) is not None:
            estimator, argument = known
            return estimator(argument)
        folder = find(spec)
        if folder is None:
            return LayoutDepth()
        return RecordedDepth.read(folder) if folder.is_file() else TransformersDepth(folder)
    except WeightsMissing as error:
        log.warning("%s The rough layout is used instead.", error)
        return LayoutDepth()


def forget() -> None:
    """Look for the model again: one was downloaded."""
    _estimator_of.cache_clear()
