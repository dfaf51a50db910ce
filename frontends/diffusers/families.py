"""Example inputs of the diffusers classes, from their configs. One function per family, one line in FAMILIES.

Sizes are those of a usual picture (1024x1024 for the large models), so a folder compiled without
`dynamic` gives a usable artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from svdqc.frontends.diffusers.family import Family, constant, fractions, grid, normal, steps

Config = Mapping[str, Any]


def _side(config: Config, default: int) -> int:
    size = config.get("sample_size") or default
    return int(size if isinstance(size, int) else size[0])


def flux(config: Config) -> Family:
    inputs: dict[str, Any] = {
        "hidden_states": normal("batch", "tokens", config["in_channels"]),
        "encoder_hidden_states": normal("batch", "text", config["joint_attention_dim"]),
        "pooled_projections": normal("batch", config["pooled_projection_dim"]),
        "timestep": fractions("batch"),
        "img_ids": grid("tokens"),
        "txt_ids": constant(0, "text", 3),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = constant(3.5, "batch")
    return Family(inputs, {"batch": 2, "tokens": 4096, "text": 512}, packed="tokens")


def chroma(config: Config) -> Family:
    """The model's code takes the batch for a number, so it is fixed at 1."""
    inputs = {
        "hidden_states": normal(1, "tokens", config["in_channels"]),
        "encoder_hidden_states": normal(1, "text", config["joint_attention_dim"]),
        "timestep": fractions(1),
        "img_ids": grid("tokens"),
        "txt_ids": constant(0, "text", 3),
    }
    return Family(inputs, {"tokens": 4096, "text": 512}, packed="tokens")


def qwen_image(config: Config) -> Family:
    """The picture's shape is a Python argument, so its size is fixed: 64x64 patches, 1024x1024 pixels."""
    inputs = {
        "hidden_states": normal("batch", 4096, config["in_channels"]),
        "encoder_hidden_states": normal("batch", "text", config["joint_attention_dim"]),
        "encoder_hidden_states_mask": constant(1, "batch", "text", dtype=torch.int64),
        "timestep": fractions("batch"),
        "img_shapes": [(1, 64, 64), (1, 64, 64)],
    }
    return Family(inputs, {"batch": 2, "text": 256})


def _latents(config: Config, side: int, multiple: int, **inputs: Any) -> Family:
    """Latents [batch, channels, height, width] and more inputs."""
    size = _side(config, side)
    latents = {"hidden_states": normal("batch", config["in_channels"], "height", "width")}
    sizes = {"batch": 2, "height": size, "width": size, "text": 256}
    return Family({**latents, **inputs}, sizes, {"height": multiple, "width": multiple})


def pixart(config: Config) -> Family:
    conditions = {"resolution": None, "aspect_ratio": None}
    if config.get("use_additional_conditions") or (
        config.get("use_additional_conditions") is None and config.get("sample_size") == 128
    ):
        conditions = {
            "resolution": normal("batch", 2),  # type: ignore[dict-item]
            "aspect_ratio": normal("batch", 1),  # type: ignore[dict-item]
        }
    return _latents(
        config,
        128,
        config.get("patch_size", 2),
        encoder_hidden_states=normal("batch", "text", config["caption_channels"]),
        timestep=steps("batch"),
        added_cond_kwargs=conditions,
    )


def dit(config: Config) -> Family:
    """The model takes its token count for a square's, so the picture's size is fixed."""
    side = _side(config, 32)
    inputs = {
        "hidden_states": normal("batch", config["in_channels"], side, side),
        "timestep": steps("batch"),
        "class_labels": constant(1, "batch", dtype=torch.int64),
    }
    return Family(inputs, {"batch": 2})


def sana(config: Config) -> Family:
    guidance = {"guidance": constant(4.5, "batch")} if config.get("guidance_embeds") else {}
    return _latents(
        config,
        32,
        config.get("patch_size", 1),
        encoder_hidden_states=normal("batch", "text", config["caption_channels"]),
        timestep=steps("batch"),
        **guidance,
    )


def sd3(config: Config) -> Family:
    return _latents(
        config,
        128,
        config.get("patch_size", 2),
        encoder_hidden_states=normal("batch", "text", config["joint_attention_dim"]),
        pooled_projections=normal("batch", config["pooled_projection_dim"]),
        timestep=steps("batch"),
    )


def aura_flow(config: Config) -> Family:
    return _latents(
        config,
        128,
        config.get("patch_size", 2),
        encoder_hidden_states=normal("batch", "text", config["joint_attention_dim"]),
        timestep=fractions("batch"),
    )


def cogview3(config: Config) -> Family:
    return _latents(
        config,
        128,
        config.get("patch_size", 2),
        encoder_hidden_states=normal("batch", "text", config["text_embed_dim"]),
        timestep=steps("batch"),
        original_size=constant(1024, "batch", 2),
        target_size=constant(1024, "batch", 2),
        crop_coords=constant(0, "batch", 2),
    )


def unet_2d_condition(config: Config) -> Family:
    cross = config.get("cross_attention_dim", 1280)
    side = _side(config, 64)
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    inputs: dict[str, Any] = {
        "sample": normal("batch", config["in_channels"], "height", "width"),
        "timestep": steps("batch"),
        "encoder_hidden_states": normal(
            "batch", "text", cross if isinstance(cross, int) else cross[0]
        ),
    }
    if config.get("addition_embed_type") == "text_time":
        times = 6 * config["addition_time_embed_dim"]
        width = config["projection_class_embeddings_input_dim"] - times
        inputs["added_cond_kwargs"] = {
            "text_embeds": normal("batch", width),
            "time_ids": constant(1024, "batch", 6),
        }
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = normal("batch", config["time_cond_proj_dim"])
    sizes = {"batch": 2, "height": side, "width": side, "text": 77}
    return Family(inputs, sizes, {"height": multiple, "width": multiple})


def unet_2d(config: Config) -> Family:
    side = _side(config, 64)
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    inputs: dict[str, Any] = {
        "sample": normal("batch", config["in_channels"], "height", "width"),
        "timestep": steps("batch"),
    }
    if config.get("num_class_embeds"):
        inputs["class_labels"] = constant(1, "batch", dtype=torch.int64)
    sizes = {"batch": 2, "height": side, "width": side}
    return Family(inputs, sizes, {"height": multiple, "width": multiple})


def autoencoder(config: Config) -> Family:
    side = _side(config, 256)
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    inputs = {"sample": normal("batch", config["in_channels"], "height", "width")}
    sizes = {"batch": 2, "height": side, "width": side}
    return Family(inputs, sizes, {"height": multiple, "width": multiple})


def _video(
    config: Config, frames: int, side: tuple[int, int], multiple: int, **inputs: Any
) -> Family:
    """Latents [batch, channels, frames, height, width] and more inputs."""
    latents = {"hidden_states": normal("batch", config["in_channels"], "frames", "height", "width")}
    sizes = {"batch": 2, "frames": frames, "height": side[0], "width": side[1], "text": 256}
    return Family({**latents, **inputs}, sizes, {"height": multiple, "width": multiple})


def wan(config: Config) -> Family:
    return _video(
        config,
        21,
        (60, 104),
        config["patch_size"][1],
        encoder_hidden_states=normal("batch", "text", config["text_dim"]),
        timestep=steps("batch"),
    )


def hunyuan_video(config: Config) -> Family:
    guidance = {"guidance": constant(6000, "batch")} if config.get("guidance_embeds") else {}
    return _video(
        config,
        9,
        (40, 64),
        config["patch_size"],
        encoder_hidden_states=normal("batch", "text", config["text_embed_dim"]),
        encoder_attention_mask=constant(1, "batch", "text", dtype=torch.int64),
        pooled_projections=normal("batch", config["pooled_projection_dim"]),
        timestep=steps("batch"),
        **guidance,
    )


def allegro(config: Config) -> Family:
    return _video(
        config,
        config.get("sample_frames", 22),
        (config.get("sample_height", 90), config.get("sample_width", 160)),
        config.get("patch_size", 2),
        encoder_hidden_states=normal("batch", "text", config["caption_channels"]),
        timestep=steps("batch"),
    )


def cogvideox(config: Config) -> Family:
    """Positional embeddings are a table for one picture size and text length: those are fixed."""
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    height, width = config["sample_height"], config["sample_width"]
    inputs = {
        "hidden_states": normal("batch", frames, config["in_channels"], height, width),
        "encoder_hidden_states": normal(
            "batch", config["max_text_seq_length"], config["text_embed_dim"]
        ),
        "timestep": steps("batch"),
    }
    return Family(inputs, {"batch": 2})


def ltx_video(config: Config) -> Family:
    """Frames, height and width are Python arguments: fixed at 9 x 16 x 24 latents (512x768 pixels)."""
    inputs = {
        "hidden_states": normal("batch", 9 * 16 * 24, config["in_channels"]),
        "encoder_hidden_states": normal("batch", "text", config["caption_channels"]),
        "timestep": steps("batch"),
        "encoder_attention_mask": constant(1, "batch", "text", dtype=torch.bool),
        "num_frames": 9,
        "height": 16,
        "width": 24,
    }
    return Family(inputs, {"batch": 2, "text": 128})


FAMILIES: dict[str, Callable[[Config], Family]] = {
    "AllegroTransformer3DModel": allegro,
    "AuraFlowTransformer2DModel": aura_flow,
    "AutoencoderKL": autoencoder,
    "ChromaTransformer2DModel": chroma,
    "CogVideoXTransformer3DModel": cogvideox,
    "CogView3PlusTransformer2DModel": cogview3,
    "DiTTransformer2DModel": dit,
    "FluxTransformer2DModel": flux,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "LTXVideoTransformer3DModel": ltx_video,
    "PixArtTransformer2DModel": pixart,
    "QwenImageTransformer2DModel": qwen_image,
    "SD3Transformer2DModel": sd3,
    "SanaTransformer2DModel": sana,
    "UNet2DConditionModel": unet_2d_condition,
    "UNet2DModel": unet_2d,
    "WanTransformer3DModel": wan,
}


def family_of(class_name: str, config: Config) -> Family | None:
    """The description of a class's inputs, if the table has it."""
    describe = FAMILIES.get(class_name)
    return describe(config) if describe is not None else None
