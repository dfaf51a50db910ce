"""Prompts for calibration, and the diffusers pipeline that they are drawn with. Needs no torch.

prompts.txt     one prompt per line; empty lines are skipped
prompts.yaml    a list of prompts, or a mapping:

    prompts: [a red fox in the snow, …]
    steps: 20                       # of each drawing
    seed: 0
    call: {height: 512, width: 512, guidance_scale: 3.5}     # further arguments of the pipeline's call
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svdqc.errors import SvdqcError

SUFFIXES = (".txt", ".yaml", ".yml")


class BadPrompts(SvdqcError):
    """The file of prompts holds none, or cannot be read."""


class NoPipeline(SvdqcError):
    """Prompts need a diffusers pipeline to be drawn with."""


@dataclass(frozen=True)
class Prompts:
    """steps None: the caller's or the pipeline's own number; call: further arguments of the pipeline's call."""

    prompts: tuple[Any, ...]
    steps: int | None = None
    seed: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: Path) -> Prompts:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _mistake(path, f"not readable as text ({error})") from error
    if path.suffix == ".txt":
        found = Prompts(tuple(line.strip() for line in text.splitlines() if line.strip()))
    else:
        found = _from_yaml(path, text)
    if not found.prompts:
        raise _mistake(path, "no prompt")
    return found


def _from_yaml(path: Path, text: str) -> Prompts:
    try:
        import yaml
    except ImportError as error:
        raise _mistake(path, "PyYAML is not installed", "pip install pyyaml") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _mistake(path, f"no YAML ({error})") from error
    if isinstance(document, list):
        document = {"prompts": document}
    if not isinstance(document, Mapping):
        raise _mistake(path, "neither a list nor a mapping")
    unknown = set(document) - {"prompts", "steps", "seed", "call"}
    if unknown:
        raise _mistake(path, f"unknown: {', '.join(sorted(map(str, unknown)))}")
    prompts = document.get("prompts") or []
    if not isinstance(prompts, list) or not all(isinstance(p, str | int) for p in prompts):
        raise _mistake(path, "'prompts' is not a list of texts (or of class numbers)")
    steps, seed, call = document.get("steps"), document.get("seed", 0), document.get("call") or {}
    numbers = isinstance(steps, int | None) and isinstance(seed, int)
    if not numbers or not isinstance(call, Mapping) or (steps is not None and steps < 1):
        raise _mistake(path, "'steps' and 'seed' are whole numbers, 'call' is a mapping")
    return Prompts(tuple(prompts), steps, seed, dict(call))


def find_pipeline(
    pipeline: str | os.PathLike[str] | None, model: Any, prompts: Path | str = "prompts"
) -> Path:
    """The folder with the pipeline's model_index.json: as given, else the model's own folder or the one around it.

    prompts  the file that needs it, for the message
    """
    if pipeline is not None:
        candidates = [Path(pipeline).expanduser()]
    elif isinstance(model, str | os.PathLike):
        candidates = [Path(model).expanduser(), Path(model).expanduser().parent]
    else:
        candidates = []
    for folder in candidates:
        if (folder / "model_index.json").is_file():
            return folder
    raise NoPipeline(
        "calibration",
        str(prompts),
        f"prompts to draw, and no diffusers pipeline (no model_index.json in {candidates[0]})"
        if candidates
        else "prompts to draw, and no diffusers pipeline",
        "give the pipeline's folder with --pipeline FOLDER, or a .npz or .safetensors file of samples",
    )


def _mistake(path: Path, found: str, remedy: str = "") -> BadPrompts:
    return BadPrompts(
        "calibration",
        str(path),
        found,
        remedy or "give a .txt file with a prompt per line, or a .yaml file with a list of prompts",
    )
