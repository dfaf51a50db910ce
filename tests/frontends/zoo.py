"""Tiny random-weight models of the families that users bring, with inputs; all sizes differ where they may."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": (
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 24,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 1,
            "cross_attention_dim": 32,
            "sample_size": 8,
            "caption_channels": 24,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 1,
            "sample_size": 8,
            "num_embeds_ada_norm": 10,
        },
    ),
    "unet": (
        "UNet2DConditionModel",
        {
            "sample_size": 16,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "cross_attention_dim": 24,
            "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
        },
    ),
    "sana": (
        "SanaTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "sample_size": 8,
            "patch_size": 1,
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 24,
            "out_channels": 4,
            "pos_embed_max_size": 16,
        },
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 1,
            "sample_width": 16,
            "sample_height": 16,
            "sample_frames": 9,
            "max_text_seq_length": 7,
        },
    ),
    "qwen": (
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
}


def build(name: str) -> nn.Module:
    """The model with seeded weights, in float64; none is zero (some families start with zero gates)."""
    class_name, config = SMALL[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, class_name)(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    return model.double()


def inputs_of(
    name: str, *, batch: int = 2, height: int = 8, width: int = 12, text: int = 7
) -> dict[str, Any]:
    """Inputs of the given sizes; for the families that take a sequence, height * width / 4 tokens."""
    seeded = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=seeded).double()

    tokens = height * width // 4
    steps = torch.linspace(1, 900, batch)
    latents = normal(batch, 4, height, width)
    if name == "flux":
        return {
            "hidden_states": normal(batch, tokens, 16),
            "encoder_hidden_states": normal(batch, text, 32),
            "pooled_projections": normal(batch, 24),
            "timestep": steps / 1000,
            "img_ids": torch.randint(0, 6, (tokens, 3), generator=seeded).float(),
            "txt_ids": torch.zeros(text, 3),
            "guidance": torch.full((batch,), 3.5),
        }
    if name == "qwen":
        return {
            "hidden_states": normal(batch, tokens, 16),
            "encoder_hidden_states": normal(batch, text, 32),
            "encoder_hidden_states_mask": torch.ones(batch, text, dtype=torch.int64),
            "timestep": steps / 1000,
            "img_shapes": [(1, height // 2, width // 2)] * batch,
        }
    if (
        name == "cogvideox"
    ):  # of another size than the config's: its table is computed while it runs
        return {
            "hidden_states": normal(batch, 3, 4, height, width),
            "encoder_hidden_states": normal(batch, text, 24),
            "timestep": steps,
        }
    if name == "dit":
        return {
            "hidden_states": latents,
            "timestep": steps,
            "class_labels": torch.arange(batch) % 10,
        }
    if name == "unet":
        return {
            "sample": latents,
            "timestep": steps,
            "encoder_hidden_states": normal(batch, text, 24),
        }
    if name == "sd3":
        return {
            "hidden_states": latents,
            "encoder_hidden_states": normal(batch, text, 32),
            "pooled_projections": normal(batch, 24),
            "timestep": steps,
        }
    return {
        "hidden_states": latents,
        "encoder_hidden_states": normal(batch, text, 24),
        "timestep": steps,
        **(
            {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
            if name == "pixart"
            else {}
        ),
    }
