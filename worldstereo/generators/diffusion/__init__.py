"""The published WorldStereo 2.0 model behind this project's `Generator` protocol.

Names are loaded when they are first used, so that importing this package costs nothing. The ones
to start from:

`DiffusionGenerator.from_pretrained(folder_or_repo, variant)`
    a generator for `World`, with `variant` one of worldstereo-camera, worldstereo-memory,
    worldstereo-memory-dmd.
`WorldStereoModel(**wan_arguments, controlnet_cfg=...)`
    the camera class. Forward arguments: hidden_states (B,36,F,h,w), timestep (B,),
    encoder_hidden_states (B,512,text), encoder_hidden_states_image (B,257,image), render_latent
    (B,16,F,h,w), render_mask (B,1,Fp,H,W), camera_embedding (B,6,Fp,H,W).
`WorldStereoRefSModel(...)`
    the memory class. In addition: reference_latent (B,36,N,h,w), ref_index (N,), camera_qt
    (B,F,7), camera_qt_ref (B,N,7). Both give flow velocity (B,16,F,h,w).
`sample(transformer, vae, SampleInputs(...), scheduler=flow_unipc() | FlowEuler(), ...)`
    one clip; `spacing="release"` is the noise schedule the release was made with.
`KeyframeVae(vae)`: `.encode`, `.decode`, `.condition`, `.references`.
`normalize_trajectory`, `unified_normalize`, `plucker_rays`, `pose_vectors`, `quaternions`
    cameras as the checkpoints want them (w2c, OpenCV axes).
`read_example(folder)`: an official example, its renders as a guide.
`MemoryBank`, `retrieve`, `scores`: the release's bank. `lift_depth`: its depth lifting.
"""

import importlib
from typing import Any

_HOMES = {
    "attention_inspection": ("AttentionRow", "TokenGrid", "attention_row", "attention_rows"),
    "attention": ("AttentionProbe", "ReferenceConstraint", "StitchedAttnProcessor"),
    "camera_conditions": (
        "camera_rays",
        "keyframe_indices",
        "normalize_trajectory",
        "plucker_rays",
        "pose_vectors",
        "quaternions",
        "scale_intrinsics",
        "unified_normalize",
    ),
    "config": ("ControlConfig", "ModelConfig", "VARIANTS", "nearest_size", "read_config"),
    "control_branch": ("ControlBlock", "ControlBranch", "MaskEmbedding"),
    "constraint": ("constraint_of", "correspondence_pairs"),
    "embeddings": ("StitchedRotary",),
    "generator": ("DEFAULT_PROMPT", "DiffusionGenerator", "Published"),
    "lifting": ("contract_depth", "depth_edges", "lift_depth"),
    "folders": ("find_variant", "limits_of", "pick_variant"),
    "loading": ("LoadReport", "load_transformer"),
    "memory_modes": ("MODES", "Card", "ClipSize", "ModelSize", "preflight"),
    "memory_transformer": ("ReferenceBlock", "WorldStereoRefSModel"),
    "official": ("Example", "RenderedGuide", "read_example"),
    "pipeline": ("SampleInputs", "SampleResult", "latent_frames", "sample", "to_signed"),
    "retrieval": (
        "MemoryBank",
        "Retrieval",
        "farthest_points",
        "frustum_corners",
        "panorama_order",
        "retrieve",
        "scores",
        "stored_frames",
    ),
    "samplers": ("FlowEuler", "flow_unipc", "set_steps"),
    "survey": ("Survey",),
    "transformer": ("WorldStereoModel",),
    "vae": ("KeyframeVae",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
