"""Both transformers once more, written plainly from the description of the published model.

One function per section, float64, dictionaries of weights by their published names, loops where a
loop is clearer; nothing of diffusers and nothing of
`worldstereo.generators.diffusion`. It is the oracle for widths, head counts, sizes and reference
counts that no recorded fixture has.
"""

import math
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def standardized(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()


def layer_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return standardized(x, eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms(w: Weights, name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def patches(w: Weights, name: str, latents: Tensor) -> Tensor:
    """(B, C, F, h, w) to tokens, frame by frame, row by row: a linear map of each 2 x 2 block."""
    b, c, f, h, width = latents.shape
    blocks = latents.reshape(b, c, f, h // 2, 2, width // 2, 2).permute(0, 2, 3, 5, 1, 4, 6)
    kernel = w[f"{name}.weight"].flatten(1)
    return blocks.reshape(b, -1, c * 4) @ kernel.T + w[f"{name}.bias"]


def turns(d: int, frames: list[int], rows: int, columns: range) -> Tensor:
    """Angle of each pair of a head of width d at every position, (positions, d / 2)."""
    a = 2 * (d // 6)
    out = []
    for frame in frames:
        for row in range(rows):
            for column in columns:
                angles = []
                for width, position in ((d - 2 * a, frame), (a, row), (a, column)):
                    for k in range(width // 2):
                        angles.append(position * 10000.0 ** (-2 * k / width))
                out.append(angles)
    return torch.tensor(out, dtype=torch.float64)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """(B, S, heads, d), its adjacent pairs rotated by the angles of their token."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(
        pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    ).flatten(-2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, S, heads, d) each; back to (B, S, heads * d)."""
    score = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(q.shape[-1])
    weight = torch.exp(score - score.amax(-1, keepdim=True))
    weight = weight / weight.sum(-1, keepdim=True)
    return torch.einsum("bhst,bthd->bshd", weight, v).flatten(2)


def self_attention(w: Weights, name: str, x: Tensor, heads: int, angles: Tensor) -> Tensor:
    q = rms(w, f"{name}.norm_q", linear(w, f"{name}.to_q", x)).unflatten(-1, (heads, -1))
    k = rms(w, f"{name}.norm_k", linear(w, f"{name}.to_k", x)).unflatten(-1, (heads, -1))
    v = linear(w, f"{name}.to_v", x).unflatten(-1, (heads, -1))
    return linear(w, f"{name}.to_out.0", softmax_attention(turned(q, angles), turned(k, angles), v))


def cross_attention(
    w: Weights, name: str, x: Tensor, image: Tensor, text: Tensor, heads: int
) -> Tensor:
    q = rms(w, f"{name}.norm_q", linear(w, f"{name}.to_q", x)).unflatten(-1, (heads, -1))
    out: Any = 0
    for context, k, v, norm in (
        (text, "to_k", "to_v", "norm_k"),
        (image, "add_k_proj", "add_v_proj", "norm_added_k"),
    ):
        key = rms(w, f"{name}.{norm}", linear(w, f"{name}.{k}", context))
        value = linear(w, f"{name}.{v}", context)
        out = out + softmax_attention(
            q, key.unflatten(-1, (heads, -1)), value.unflatten(-1, (heads, -1))
        )
    return linear(w, f"{name}.to_out.0", out)


def conditioning(
    w: Weights, timestep: Tensor, text: Tensor, image: Tensor, freq: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    name = "condition_embedder"
    rates = torch.exp(
        -math.log(10000.0) * torch.arange(freq // 2, dtype=torch.float64) / (freq // 2)
    )
    phase = timestep.double()[:, None] * rates
    wave = torch.cat([phase.cos(), phase.sin()], dim=-1)
    temb = linear(w, f"{name}.time_embedder.linear_1", wave)
    temb = linear(w, f"{name}.time_embedder.linear_2", silu(temb))
    six = linear(w, f"{name}.time_proj", silu(temb)).unflatten(1, (6, -1))
    text = linear(w, f"{name}.text_embedder.linear_1", text)
    text = linear(w, f"{name}.text_embedder.linear_2", tanh_gelu(text))
    image = layer_norm(w, f"{name}.image_embedder.norm1", image, 1e-5)
    image = gelu(linear(w, f"{name}.image_embedder.ff.net.0.proj", image))
    image = linear(w, f"{name}.image_embedder.ff.net.2", image)
    return temb, six, text, layer_norm(w, f"{name}.image_embedder.norm2", image, 1e-5)


def mask_tokens(w: Weights, maps: Tensor, downsample: int, interp: bool) -> Tensor:
    """Hole mask and rays: padded in time, a strided convolution, group norm, SiLU, another one."""
    name = "controlnet.controlnet_mask_embedding"
    if downsample > 1:
        front, behind = torch.zeros_like(maps[:, :, :1]).expand(-1, -1, 3, -1, -1), maps[:, :, :0]
        if interp:
            behind = front
        maps = torch.cat([front, maps, behind], dim=2)
    b, c, f, height, width = maps.shape
    f = f // downsample
    blocks = maps[:, :, : f * downsample].reshape(
        b, c, f, downsample, height // 8, 8, width // 8, 8
    )
    blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
    kernel = w[f"{name}.mask_proj.0.weight"].flatten(1)
    x = (blocks @ kernel.T + w[f"{name}.mask_proj.0.bias"]).permute(0, 4, 1, 2, 3)
    groups = x.unflatten(1, (x.shape[1] // 8, 8))  # groups of 8 channels
    mean = groups.mean((2, 3, 4, 5), keepdim=True)
    var = (groups - mean).square().mean((2, 3, 4, 5), keepdim=True)
    x = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
    scale, shift = w[f"{name}.mask_proj.1.weight"], w[f"{name}.mask_proj.1.bias"]
    x = silu(x * scale[:, None, None, None] + shift[:, None, None, None])
    return patches(w, f"{name}.mask_zero_proj", x)


def control_residuals(
    w: Weights, control: dict[str, Any], seen: Tensor, maps: Tensor, temb: Tensor
) -> list[Tensor]:
    b, _, f, h, width = seen.shape
    heads, dim = control["num_heads"], control["dim"]
    angles = turns(dim // heads, list(range(f)), h // 2, range(width // 2))
    x = patches(w, "controlnet.controlnet_patch_embedding", seen)
    x = x + mask_tokens(w, maps, control["mask_downsample"], control.get("interp", False))
    if dim != control["conv_out_dim"]:
        x = linear(w, "controlnet.proj_in", x)
    out = []
    for i in range(control["num_layers"]):
        name = f"controlnet.controlnet_blocks.{i}"
        shift, scale, gate = linear(w, f"{name}.norm1.linear", silu(temb))[:, None].chunk(3, -1)
        y = layer_norm(w, f"{name}.norm1.norm", x, 1e-5) * (1 + scale) + shift
        x = x + gate * self_attention(w, f"{name}.self_attn", y, heads, angles)
        shift, scale, gate = linear(w, f"{name}.norm2.linear", silu(temb))[:, None].chunk(3, -1)
        y = layer_norm(w, f"{name}.norm2.norm", x, 1e-5) * (1 + scale) + shift
        x = x + gate * linear(w, f"{name}.ffn.2", tanh_gelu(linear(w, f"{name}.ffn.0", y)))
        out.append(linear(w, f"controlnet.proj_out.{i}", x))
    return out


def velocity(
    weights: Weights,
    config: dict[str, Any],
    control: dict[str, Any],
    given: dict[str, Tensor],
) -> Tensor:
    """The flow velocity of either class; references where `given` has them. Float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    latents = given["hidden_states"]
    b, _, f, h, width = latents.shape
    rows, columns = h // 2, width // 2
    heads, d = config["num_attention_heads"], config["attention_head_dim"]
    temb, six, text, image = conditioning(
        w,
        given["timestep"],
        given["encoder_hidden_states"],
        given["encoder_hidden_states_image"],
        config["freq_dim"],
    )
    maps = torch.cat([given["render_mask"], given["camera_embedding"]], dim=1)
    seen = torch.cat([latents[:, :20], given["render_latent"]], dim=1)
    residuals = control_residuals(w, control, seen, maps, temb)
    x = patches(w, "patch_embedding", latents)
    angles = turns(d, list(range(f)), rows, range(columns))
    y = x[:, :0]
    if "reference_latent" in given:
        y = patches(w, "patch_embedding", given["reference_latent"])
        beside = [int(slot) + 1 for slot in given["ref_index"]]
        angles = torch.cat([turns(d, beside, rows, range(columns, 2 * columns)), angles])
        if control.get("main_camera_embedding"):
            x = x + posed(w, given.get("camera_qt"), f, rows * columns)
            y = y + posed(w, given.get("camera_qt_ref"), len(beside), rows * columns)
    first, n = y, y.shape[1]
    for i in range(config["num_layers"]):
        name = f"blocks.{i}"
        e = (w[f"{name}.scale_shift_table"] + six)[:, :, None]
        joint = torch.cat([y, x], dim=1)
        normed = standardized(joint, 1e-6) * (1 + e[:, 1]) + e[:, 0]
        joint = joint + e[:, 2] * self_attention(w, f"{name}.attn1", normed, heads, angles)
        y, x = joint[:, :n], joint[:, n:]
        normed = layer_norm(w, f"{name}.norm2", x, 1e-6)
        x = x + cross_attention(w, f"{name}.attn2", normed, image, text, heads)
        joint = torch.cat([y, x], dim=1)
        normed = standardized(joint, 1e-6) * (1 + e[:, 4]) + e[:, 3]
        inner = tanh_gelu(linear(w, f"{name}.ffn.net.0.proj", normed))
        joint = joint + e[:, 5] * linear(w, f"{name}.ffn.net.2", inner)
        y, x = joint[:, :n], joint[:, n:]
        if i < len(residuals):
            x = x + residuals[i]
        if not control.get("update_ref", True):
            y = first
    shift, scale = (w["scale_shift_table"] + temb[:, None]).chunk(2, dim=1)
    x = linear(w, "proj_out", standardized(x, 1e-6) * (1 + scale) + shift)
    x = x.reshape(b, f, rows, columns, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(b, -1, f, h, width)


def posed(w: Weights, vectors: Tensor | None, frames: int, area: int) -> Tensor | float:
    if vectors is None:
        return 0.0
    x = silu(linear(w, "camera_embedding.0", vectors))
    x = linear(w, "camera_embedding.4", silu(linear(w, "camera_embedding.2", x)))
    return torch.cat([x[:, k : k + 1].expand(-1, area, -1) for k in range(frames)], dim=1)
