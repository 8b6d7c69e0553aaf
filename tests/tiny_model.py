"""Writes a tiny random-weight model with every part of the published one; it knows nothing.

    python -m tests.tiny_model FOLDER

makes FOLDER/base (text and image encoder, tokenizer, VAE, scheduler, transformer config) and one
folder per variant, under 5 MB in all. Weights are random and not trained: pictures made with them
are noise.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WAN = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": 20,
    "added_kv_proj_dim": 48,
    "rope_max_seq_len": 1024,
}
CONTROL = {
    "conv_out_dim": 48,
    "dim": 32,
    "num_heads": 2,
    "num_layers": 2,
    "ffn_dim": 48,
    "time_embed_dim": 48,
    "add_channels": 7,
    "mid_channels": 16,
    "mask_downsample": 1,
}
MEMORY = CONTROL | {
    "update_ref": True,
    "main_camera_embedding": True,
    "camera_embedding_dim": 7,
}
VAE = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
SIZES = [[64, 96], [64, 64], [96, 64]]
WORDS = [
    "a",
    "the",
    "room",
    "with",
    "wooden",
    "table",
    "and",
    "chairs",
    "in",
    "soft",
    "light",
    "bright",
    "overexposed",
    "static",
]


def write_tiny_model(folder: Path, seed: int = 5, nframe: int = 5) -> Path:
    """Writes the model; the same seed gives the same bytes."""
    torch.manual_seed(seed)
    write_base(folder / "base")
    for variant in ("worldstereo-camera", "worldstereo-memory", "worldstereo-memory-dmd"):
        write_variant(folder / variant, variant, nframe=nframe)
    return folder


def write_variant(folder: Path, variant: str, *, nframe: int = 5, **changes: object) -> None:
    from worldstereo.generators.diffusion import WorldStereoModel, WorldStereoRefSModel

    memory = variant != "worldstereo-camera"
    control = MEMORY if memory else CONTROL
    model = (WorldStereoRefSModel if memory else WorldStereoModel)(**WAN, controlnet_cfg=control)
    scramble(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )
    config = {
        "base_model": "base",
        "controlnet_cfg": control,
        "freeze_backbone": True,
        "scale_map": SIZES,
        "nframe": nframe,
        "latent_cond_mode": "first_frame_only",
        "negative_prompt": "bright overexposed static",
        "dmd_start_steps": 250,
        "dmd_end_steps": 1000,
        "gen_shift": 5.0,
        "dmd_steps": 4,
    }
    (folder / "config.json").write_text(json.dumps(config | changes, indent=1))


def scramble(model: nn.Module) -> None:
    """Random weights of a size that keeps activations near 1, zero projections included."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, fan_in**-0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.02)
            else:
                parameter.normal_(1, 0.05)


def write_base(folder: Path) -> None:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    wan = {"_class_name": "WanTransformer3DModel"} | WAN
    (folder / "transformer" / "config.json").write_text(json.dumps(wan, indent=1))

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    text = UMT5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    encoder = UMT5EncoderModel(text)
    scramble(encoder)
    encoder.save_pretrained(folder / "text_encoder")

    vision = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModel(vision).save_pretrained(folder / "image_encoder")
    (folder / "image_processor").mkdir(exist_ok=True)
    (folder / "image_processor" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}})
    )
    AutoencoderKLWan(**VAE).save_pretrained(folder / "vae")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")


def split_off_backbone(folder: Path, base: Path) -> dict[str, Tensor]:
    """Moves a variant's backbone to the base model: the checkpoint becomes a partial one."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    own = {k: v for k, v in tensors.items() if k.startswith(("controlnet.", "camera_embedding."))}
    backbone = {k: v for k, v in tensors.items() if k not in own}
    save_file(own, folder / "model.safetensors")
    save_file(backbone, base / "transformer" / "diffusion_pytorch_model.safetensors")
    return tensors


if __name__ == "__main__":
    write_tiny_model(Path(sys.argv[1]))
