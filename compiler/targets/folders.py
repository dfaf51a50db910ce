"""Where the installed templates, kernel headers and runtime headers lie."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def templates_folder() -> Path:
    """Templates and, under cpu/include and cuda/include, the headers that they instantiate."""
    return Path(str(files("svdqc.templates")))


def include_folders() -> list[Path]:
    """The kernel headers and the runtime's kernel interface; the latter beside the sources in a development tree."""
    installed = Path(str(files("svdqc"))) / "include"
    beside = templates_folder().resolve().parent / "runtime" / "include"
    return [templates_folder() / "cpu" / "include", installed if installed.is_dir() else beside]


def cuda_include_folders() -> list[Path]:
    """The headers of CUDA kernels: the intrinsic layer, what stands on it, and the CPUs' elementary functions."""
    return [templates_folder() / family / "include" for family in ("cuda", "cpu")]
