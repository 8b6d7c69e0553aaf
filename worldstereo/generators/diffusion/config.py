"""What a checkpoint says about itself: variants, `config.json`, and the widths its weights prove.

A variant is named by its folder, not by a field. Every width except the two head counts can be
read off the weights; a config that disagrees with them is refused by name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from worldstereo.errors import WeightsMissing
from worldstereo.generators import GeneratorLimits, StepRange

LICENCE = "Apache-2.0"
"""Licence of the public release and its base model, named before any download."""

SIZES = ((480, 768), (512, 720), (576, 640), (608, 608), (640, 576), (720, 512), (768, 480))
"""Built-in (height, width) list, used where the config's `scale_map` is null."""

DEFAULT_PROMPT = (
    "A photorealistic place, seen by a camera that moves smoothly through it. Sharp detail, "
    "natural light, consistent geometry and materials in every view."
)
STEPS, GUIDANCE = 40, 5.0
"""Of the variants that are not distilled."""

MAX_SIZE = 1 << 17
"""Of any width or count in a config or a header: ten times what any such model has."""
MAX_LAYERS = 1024
MAX_SIDE = 16_384

COND_MODES = ("full_vae", "first_frame_only")
MAX_REFERENCES = 8


@dataclass(frozen=True)
class Variant:
    """One published checkpoint: its folder name, whether it takes references, how it samples."""

    name: str
    references: bool
    """Takes reference views and pose vectors."""
    distilled: bool
    """Samples with a few Euler steps and without guidance."""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("worldstereo-camera", references=False, distilled=False),
        Variant("worldstereo-memory", references=True, distilled=False),
        Variant("worldstereo-memory-dmd", references=True, distilled=True),
    )
}


def variant_named(name: str) -> Variant:
    """The variant of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}.")
    return VARIANTS[name]


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """The control branch, `controlnet_cfg` in the file. Widths in channels."""

    conv_out_dim: int
    dim: int
    num_heads: int
    num_layers: int
    ffn_dim: int
    time_embed_dim: int
    add_channels: int = 1
    mid_channels: int = 64
    mask_downsample: int = 4
    interp: bool = False
    update_ref: bool = True
    ref_embedding: bool = False
    main_camera_embedding: bool = False
    camera_embedding_dim: int | None = None

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.dim // self.num_heads % 2:
            raise ValueError(
                f"controlnet_cfg.num_heads must divide dim {self.dim} into even parts, "
                f"got {self.num_heads}."
            )
        if self.mid_channels % 8:
            raise ValueError(
                f"controlnet_cfg.mid_channels must be a multiple of 8, got {self.mid_channels}."
            )
        if self.main_camera_embedding and self.camera_embedding_dim is None:
            raise ValueError(
                "controlnet_cfg.camera_embedding_dim is required with main_camera_embedding; "
                "the released checkpoints use 7."
            )

    @staticmethod
    def of(
        entries: "Mapping[str, Any] | ControlConfig", proven: Mapping[str, Any] | None = None
    ) -> "ControlConfig":
        """From the mapping in the file; entries this project has no use for are ignored.

        Args:
            proven: what the weights say (`derive_control`); fills what the file leaves out.

        Raises:
            ValueError: a required entry is missing or holds no usable value.
        """
        if isinstance(entries, ControlConfig):
            return entries
        said = {name: value for name, value in entries.items() if value is not None}
        entries = {**(proven or {}), **said}
        missing = [name for name in _CONTROL_REQUIRED if name not in entries]
        if missing:
            raise ValueError(f"controlnet_cfg lacks {', '.join(missing)}.")
        for name in _CONTROL_INTS:
            most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
            check_whole(f"controlnet_cfg.{name}", entries.get(name, 1), most)
        for name in _CONTROL_SWITCHES:
            check_switch(f"controlnet_cfg.{name}", entries.get(name, False))
        known = {field.name for field in fields(ControlConfig)}
        # diffusers adds private entries when it stores a config
        return ControlConfig(**{k: v for k, v in entries.items() if k in known})

    def as_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


_CONTROL_REQUIRED = ("conv_out_dim", "dim", "num_heads", "num_layers", "ffn_dim", "time_embed_dim")
_CONTROL_INTS = (
    *_CONTROL_REQUIRED,
    "add_channels",
    "mid_channels",
    "mask_downsample",
    "camera_embedding_dim",
)
_CONTROL_SWITCHES = ("interp", "update_ref", "ref_embedding", "main_camera_embedding")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`config.json` of one variant."""

    variant: Variant
    base_model: str
    """Hub id or folder of the Wan 2.1 image-to-video base."""
    control: ControlConfig
    sizes: tuple[tuple[int, int], ...] = SIZES
    """(height, width) pairs that pictures are stretched to."""
    nframe: int = 21
    """Keyframes of one clip."""
    latent_cond_mode: str = "first_frame_only"
    negative_prompt: str = ""
    dmd_start: int = 250
    dmd_end: int = 1000
    dmd_shift: float = 1.0
    dmd_steps: int = 4

    @property
    def limits(self) -> GeneratorLimits:
        """What a generator with this checkpoint accepts, and begins with."""
        distilled = self.variant.distilled
        return GeneratorLimits(
            name=self.variant.name,
            min_frames=2,
            max_frames=self.nframe,
            size_multiple=16,
            prompt=True,
            default_prompt=DEFAULT_PROMPT,
            # a single step would start in the middle of the schedule
            steps=StepRange(2, max(4, 2 * self.dmd_steps), max(2, self.dmd_steps))
            if distilled
            else StepRange(1, 100, STEPS),
            guidance=None if distilled else GUIDANCE,
            negative_prompt=self.negative_prompt,
        )


_REQUIRED = ("base_model", "controlnet_cfg", "scale_map", "nframe", "latent_cond_mode")
_REQUIRED_DMD = ("dmd_start_steps", "dmd_end_steps", "gen_shift", "dmd_steps")
_MAX = {"nframe": 1000, "dmd_start_steps": 1000, "dmd_end_steps": 1000, "dmd_steps": 1000}
"""The schedule has 1000 steps."""


def read_config(
    path: Path, variant: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> ModelConfig:
    """`config.json` of a checkpoint folder, checked.

    Args:
        shapes: of the tensors beside it; they prove what the file does not say.

    Raises:
        WeightsMissing: the file is not there or is not a JSON object.
        ValueError: an entry is missing or holds something else than what is accepted.
    """
    kind = variant_named(variant)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise WeightsMissing(
            f"{path} cannot be read ({error.strerror}); a folder of {variant} holds config.json "
            f"and model.safetensors."
        ) from error
    return parse_config(json_object(text, path), kind, where=str(path), shapes=shapes)


def json_object(text: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in one of a model's files.

    Raises:
        WeightsMissing: it is damaged, names something twice, or holds something else.
    """
    try:
        entries = json.loads(text, object_pairs_hook=named_once)
    except ValueError as error:
        said = str(error).splitlines()[0][:120]
        raise WeightsMissing(f"{path} is not valid JSON ({said}).") from error
    except RecursionError:
        raise WeightsMissing(f"{path} is not valid JSON (nested too deeply).") from None
    if not isinstance(entries, dict):
        raise WeightsMissing(f"{path} must hold a JSON object, got {type(entries).__name__}.")
    return entries


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Entries of a JSON object, for `object_pairs_hook`; a ValueError where a name comes twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name appears twice in one object")
    return entries


def check_whole(name: str, value: Any, most: int = MAX_SIZE) -> None:
    """Refuses what is no whole number from 1 to `most`.

    Raises:
        ValueError: names the entry, what it holds and what is accepted.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {_short(value)}.")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {_short(value)}.")


def check_switch(name: str, value: Any) -> None:
    """Refuses what is neither true nor false.

    Raises:
        ValueError: names the entry and what it holds.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {_short(value)}.")


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def parse_config(
    entries: Mapping[str, Any],
    variant: Variant,
    where: str = "config",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelConfig:
    """The entries of a `config.json` as a `ModelConfig`.

    Raises:
        ValueError: an entry is missing or holds something else than what is accepted.
    """
    missing = [
        k for k in _REQUIRED + (_REQUIRED_DMD if variant.distilled else ()) if k not in entries
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; {variant.name} needs them.")
    mode = entries["latent_cond_mode"]
    if mode not in COND_MODES:
        raise ValueError(
            f"{where}: latent_cond_mode must be one of {', '.join(COND_MODES)}, got {_short(mode)}."
        )
    if not isinstance(entries["controlnet_cfg"], Mapping):
        raise ValueError(f"{where}: controlnet_cfg must be an object.")
    named = entries["base_model"]
    if not isinstance(named, str) or not named or not named.isprintable():
        raise ValueError(f"{where}: base_model must be a hub id or a folder.")
    whole = {"nframe": entries["nframe"]}
    if variant.distilled:
        whole |= {name: entries[name] for name in _REQUIRED_DMD if name != "gen_shift"}
    for name, value in whole.items():
        check_whole(f"{where}: {name}", value, _MAX[name])
    shift = entries.get("gen_shift") if variant.distilled else 1.0
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift <= 1000:
        raise ValueError(
            f"{where}: gen_shift must be a number above 0 and up to 1000, got {_short(shift)}."
        )
    negative = entries.get("negative_prompt")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"{where}: negative_prompt must be a text, got {_short(negative)}.")
    return ModelConfig(
        variant=variant,
        base_model=named,
        control=ControlConfig.of(
            entries["controlnet_cfg"], None if shapes is None else derive_control(shapes)
        ),
        sizes=_sizes(entries["scale_map"], where),
        nframe=whole["nframe"],
        latent_cond_mode=mode,
        negative_prompt=negative or "",
        dmd_start=whole.get("dmd_start_steps", 250),
        dmd_end=whole.get("dmd_end_steps", 1000),
        dmd_shift=float(shift),
        dmd_steps=whole.get("dmd_steps", 4),
    )


def _sizes(value: Any, where: str) -> tuple[tuple[int, int], ...]:
    if value is None:
        return SIZES
    listed = isinstance(value, list | tuple) and all(
        isinstance(size, list | tuple) and len(size) == 2 for size in value
    )
    if not listed or any(type(side) is not int for size in value for side in size):
        raise ValueError(f"{where}: scale_map must be a list of [height, width].")
    sizes = tuple((h, w) for h, w in value)
    bad = [size for size in sizes if any(s % 16 or not 16 <= s <= MAX_SIDE for s in size)]
    if bad or not sizes:
        raise ValueError(
            f"{where}: scale_map sizes must be multiples of 16 up to {MAX_SIDE}, "
            f"got {_short(bad[:1] or sizes)}."
        )
    return sizes


def nearest_size(
    height: int, width: int, sizes: tuple[tuple[int, int], ...] = SIZES
) -> tuple[int, int]:
    """The (height, width) whose ratio is nearest to that of a picture; the first of equals.

    Raises:
        ValueError: height or width is below 1.

    Source: the published model's size rule (absolute difference of height/width).
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}.")
    return min(sizes, key=lambda size: abs(size[0] / size[1] - height / width))


# ---- widths that the weights prove ------------------------------------------------------------


def derive_control(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of `ControlConfig` that the shapes of a checkpoint prove; all but the head count.

    Raises:
        WeightsMissing: a tensor that any such checkpoint has is absent.
    """
    first = _shape(shapes, "controlnet.controlnet_mask_embedding.mask_proj.0.weight", 3)
    patch = _shape(shapes, "controlnet.controlnet_patch_embedding.weight", 1)
    gate = _shape(shapes, "controlnet.controlnet_blocks.0.norm1.linear.weight", 2)
    found: dict[str, Any] = {
        "conv_out_dim": patch[0],
        "mid_channels": first[0],
        "add_channels": first[1],
        "mask_downsample": first[2],
        "dim": gate[0] // 3,
        "time_embed_dim": gate[1],
        "ffn_dim": _shape(shapes, "controlnet.controlnet_blocks.0.ffn.0.weight", 1)[0],
        "num_layers": _count(shapes, "controlnet.controlnet_blocks."),
        "ref_embedding": "ref_index_embedding.weight" in shapes,
        "main_camera_embedding": "camera_embedding.0.weight" in shapes,
    }
    if found["main_camera_embedding"]:
        found["camera_embedding_dim"] = _shape(shapes, "camera_embedding.0.weight", 2)[1]
    return found


def derive_backbone(
    shapes: Mapping[str, tuple[int, ...]], heads: int | None = None
) -> dict[str, Any]:
    """Arguments of the Wan transformer that a complete checkpoint proves.

    The head count cannot be read off the weights: without `heads`, heads are 128 wide, as in every
    Wan 2.1 model.

    Raises:
        WeightsMissing: a backbone tensor is absent, so the file is not complete.
    """
    patch = _shape(shapes, "patch_embedding.weight", 5)
    width = patch[0]
    found: dict[str, Any] = {
        "patch_size": tuple(patch[2:]),
        "in_channels": patch[1],
        "out_channels": _shape(shapes, "proj_out.weight", 1)[0] // (patch[2] * patch[3] * patch[4]),
        "text_dim": _shape(shapes, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": _shape(shapes, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": _shape(shapes, "blocks.0.ffn.net.0.proj.weight", 1)[0],
        "num_layers": _count(shapes, "blocks."),
        "image_dim": _shape(shapes, "condition_embedder.image_embedder.norm1.weight", 1)[0],
        "added_kv_proj_dim": _shape(shapes, "blocks.0.attn2.add_k_proj.weight", 2)[1],
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "eps": 1e-6,
    }
    if heads is None:
        if width % 128:
            raise WeightsMissing(
                f"the backbone is {width} wide, no multiple of a 128 wide head: the base model's "
                f"transformer/config.json is needed beside the checkpoint."
            )
        heads = width // 128
    if width % heads:
        raise ValueError(
            f"num_attention_heads must divide the backbone width {width}, got {heads}."
        )
    return found | {"num_attention_heads": heads, "attention_head_dim": width // heads}


def check_agreement(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses a config that says something else than the weights.

    Raises:
        ValueError: names the field, its value in the config and the value in the weights.
    """
    found = derive_control(shapes)
    ignored = {"ref_embedding"}  # the table is dead weight: never mind
    if not config.variant.references:  # nor does the camera class read what follows
        ignored |= {"main_camera_embedding", "camera_embedding_dim"}
    for name, value in found.items():
        said = getattr(config.control, name)
        if name not in ignored and said != value:
            raise ValueError(
                f"{where}: controlnet_cfg.{name} is {said}, but the weights have {value}."
            )
    if not config.variant.references and found["main_camera_embedding"]:
        raise WeightsMissing(
            f"{where}: holds camera_embedding.*, which worldstereo-camera does not have; load it "
            f"as worldstereo-memory or worldstereo-memory-dmd."
        )


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many axes at least, none of them empty."""
    if name not in shapes:
        raise WeightsMissing(
            f"the checkpoint has no tensor {name}: it is not a WorldStereo checkpoint."
        )
    shape = tuple(shapes[name])
    if len(shape) < axes or not all(1 <= n <= MAX_SIZE for n in shape):
        raise WeightsMissing(
            f"tensor {name} has shape {_short(shape)}: it is not a WorldStereo checkpoint."
        )
    return shape


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many blocks there are; their numbers must run from 0 without a gap."""
    names = {n.removeprefix(prefix).partition(".")[0] for n in shapes if n.startswith(prefix)}
    if len(names) > MAX_LAYERS or names != {str(i) for i in range(len(names))}:
        raise WeightsMissing(
            f"the checkpoint's {prefix}* are {len(names)} and not numbered from 0 on "
            f"(at most {MAX_LAYERS})."
        )
    return len(names)
