"""Tiny untrained depth models of the real classes, saved as the hub holds them.

python -m tests.tiny_depth relative|metric|dpt|pro FOLDER
"""

import sys
from pathlib import Path

import torch


def save(kind: str, folder: Path) -> None:
    """A model whose outputs mean nothing and whose files and interface are real."""
    import transformers

    torch.manual_seed(0)
    size = {"height": 28, "width": 42}
    processor = transformers.DPTImageProcessor(size=size)
    if kind in ("relative", "metric"):
        backbone = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            image_size=28, patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
        )  # fmt: skip
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind, max_depth=20,
        )  # fmt: skip
        model = transformers.DepthAnythingForDepthEstimation(config)
    elif kind == "dpt":
        config = transformers.DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        )  # fmt: skip
        model = transformers.DPTForDepthEstimation(config)
        processor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    else:
        vit = {
            "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4,
            "num_attention_heads": 2, "patch_size": 4, "image_size": 16, "mlp_ratio": 2,
            "use_mask_token": False,
        }  # fmt: skip
        config = transformers.DepthProConfig(
            fusion_hidden_size=16, patch_size=16, scaled_images_ratios=[0.5, 1],
            scaled_images_overlap_ratios=[0.0, 0.2], scaled_images_feature_dims=[16, 16],
            initializer_range=0.02, intermediate_hook_ids=[2, 0],
            intermediate_feature_dims=[16, 16], use_fov_model=True, num_fov_head_layers=0,
            image_model_config=vit, patch_model_config=vit, fov_model_config=vit,
        )  # fmt: skip
        model = transformers.DepthProForDepthEstimation(config)
        # Its own wants torchvision, which nothing else here needs.
        processor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
