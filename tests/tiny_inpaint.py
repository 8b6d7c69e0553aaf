"""Tiny untrained inpainting models of real diffusers classes, saved as the hub holds them.

python -m tests.tiny_inpaint sd|sdxl|sd3 FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch

KINDS = ("sd", "sdxl", "sd3")
WORDS = ("the", "same", "place", "continued", "a", "room", "text", "blurry")


def save(kind: str, folder: Path) -> Path:
    """A model whose pictures mean nothing and whose files and interface are real."""
    import diffusers

    torch.manual_seed(3)
    if kind == "sd":
        parts: dict[str, Any] = {
            "unet": _unet(9),
            "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
            "vae": _vae(4),
            "text_encoder": _text(32),
            "tokenizer": _tokenizer(folder.parent / "words"),
            "safety_checker": None,
            "feature_extractor": None,
        }
        pipeline = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    elif kind == "sdxl":
        tokenizer = _tokenizer(folder.parent / "words")
        parts = {
            "unet": _unet(
                4, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=32 + 6 * 8, cross_attention_dim=64,
            ),
            "scheduler": diffusers.EulerDiscreteScheduler(),
            "vae": _vae(4),
            "text_encoder": _text(32),
            "text_encoder_2": _text(32, projected=True),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
        }  # fmt: skip
        pipeline = diffusers.StableDiffusionXLInpaintPipeline(**parts)
    else:
        tokenizer = _tokenizer(folder.parent / "words")
        parts = {
            "transformer": diffusers.SD3Transformer2DModel(
                sample_size=32, patch_size=1, in_channels=16, num_layers=1,
                attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
                joint_attention_dim=64, pooled_projection_dim=64, out_channels=16,
            ),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
            "vae": _vae(16, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            "text_encoder": _text(32, projected=True),
            "text_encoder_2": _text(32, projected=True),
            "text_encoder_3": None,
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
            "tokenizer_3": None,
        }  # fmt: skip
        pipeline = diffusers.StableDiffusion3InpaintPipeline(**parts)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet(channels: int, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    fields: dict[str, Any] = {"cross_attention_dim": 32} | more
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=16, in_channels=channels,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        use_linear_projection=True, norm_num_groups=8, **fields,
    )  # fmt: skip


def _vae(latent: int, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), in_channels=3, out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent, norm_num_groups=4, **more,
    )  # fmt: skip


def _text(width: int, projected: bool = False) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        bos_token_id=0, eos_token_id=2, pad_token_id=1, hidden_size=width, intermediate_size=37,
        num_attention_heads=4, num_hidden_layers=2, projection_dim=32, vocab_size=1000,
        hidden_act="gelu",
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def _tokenizer(folder: Path) -> Any:
    import json

    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(97, 123)]
    units = ["<|startoftext|>", "<|pad|>", "<|endoftext|>", *letters]
    units += [f"{c}</w>" for c in letters] + [f"{w}</w>" for w in WORDS if len(w) > 1]
    vocabulary = {unit: i for i, unit in enumerate(units)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
