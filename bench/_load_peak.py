"""Peak memory of loading, in a fresh process: writes a sparse checkpoint and loads it.

    python -m bench._load_peak FOLDER GIGABYTES [float32]

The file has the published model's names and widths (narrowed to the asked size); its pages are
holes, so that it takes no disk. Prints one line of JSON: bytes of the destination, of the largest
tensor, and the peak above the memory of the process before loading.
"""

import json
import resource
import struct
import sys
import threading
import time
from pathlib import Path

import torch

VARIANT = "worldstereo-memory"


def write_sparse(folder: Path, gigabytes: float) -> Path:
    """A complete bf16 memory checkpoint of about that size, all zeros, sparse on disk."""
    from accelerate import init_empty_weights

    from worldstereo.generators.diffusion import WorldStereoRefSModel

    full = 34e9
    heads = max(2, round(40 * (gigabytes * 1e9 / full) ** 0.5))
    width = heads * 128
    control = {
        "conv_out_dim": width,
        "dim": max(64, width // 5 // 16 * 16),
        "num_heads": 4,
        "num_layers": 20,
        "ffn_dim": max(128, width * 4 // 5 // 16 * 16),
        "time_embed_dim": width,
        "add_channels": 7,
        "mid_channels": 256,
        "mask_downsample": 1,
        "update_ref": True,
        "main_camera_embedding": True,
        "camera_embedding_dim": 7,
    }
    with init_empty_weights():
        model = WorldStereoRefSModel(
            num_attention_heads=heads,
            ffn_dim=width * 27 // 10,
            added_kv_proj_dim=width,
            controlnet_cfg=control,
        )
    offset, header = 0, {}
    for name, parameter in model.state_dict().items():
        end = offset + parameter.numel() * 2
        header[name] = {
            "dtype": "BF16",
            "shape": list(parameter.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    target = folder / VARIANT
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    with (target / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    config = {
        "base_model": "none/none",
        "controlnet_cfg": control,
        "scale_map": None,
        "nframe": 21,
        "latent_cond_mode": "full_vae",
    }
    (target / "config.json").write_text(json.dumps(config))
    return folder


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(folder: Path, gigabytes: float, control: torch.dtype) -> None:
    from worldstereo.generators.diffusion import load_transformer

    write_sparse(folder, gigabytes)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    _, _, report = load_transformer(
        folder, VARIANT, dtype=torch.bfloat16, control_dtype=control, offline=True
    )
    done.set()
    watcher.join()
    from worldstereo.generators.diffusion.checkpoint import Weights

    largest = Weights.open(folder / VARIANT / "model.safetensors").largest
    result = {
        "destination": report.bytes,
        "largest": largest,
        "peak": max(peak[0], resident()) - before,
        "seconds": report.seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    kind = torch.float32 if sys.argv[3:] == ["float32"] else torch.bfloat16
    main(Path(sys.argv[1]), float(sys.argv[2]), kind)
