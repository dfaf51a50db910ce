"""Tiny diffusers pipelines with random weights, saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def save_pixart(folder: Path) -> Path:
    """Text to image: a T5 of 8 words, a transformer of 2 blocks of width 64."""
    transformers = pytest.importorskip("transformers", reason="text pipelines need transformers")
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    torch.manual_seed(0)
    words = [(f"▁{word}", -1.0) for word in ("a", "red", "fox", "blue", "house")]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words]
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=64,
        sample_size=8,
        caption_channels=32,
    )
    pipeline: Any = PixArtSigmaPipeline(
        transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0),
        transformers.T5EncoderModel(config),
        _autoencoder(),
        transformer,
        DPMSolverMultistepScheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder


def save_dit(folder: Path) -> Path:
    """Class to image."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    pipeline: Any = DiTPipeline(transformer, _autoencoder(), DDIMScheduler())
    pipeline.save_pretrained(folder)
    return folder


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
