"""A diffusers folder → a module without weights, and the names of its weights on disk.

The class named in config.json is built with every parameter on the meta device and every buffer really
computed (a positional table is not in the checkpoint). Parameters then become fake CPU tensors of the
checkpoint's dtype, so a 12B model is traced with no weight in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from svdqc.frontends.errors import (
    CheckpointError,
    MissingDependencyError,
    NotAModelError,
    UnknownModelClassError,
)
from svdqc.frontends.stores import SafetensorsWeights, StoredTensor, find_checkpoint

SUBFOLDERS = ("transformer", "unet")


@dataclass(frozen=True)
class FolderModel:
    """A module with fake parameters, the store that has their values, and what describes its inputs."""

    module: nn.Module
    weights: SafetensorsWeights
    class_name: str
    config: Mapping[str, Any]
    dtype: torch.dtype
    name: str


def load_folder(path: Path) -> FolderModel:
    """Build the model of a diffusers folder (or of its `transformer` or `unet` subfolder), weights lazy."""
    folder = model_folder(path)
    config = _read_config(folder)
    class_name = config["_class_name"]
    model_class = _model_class(class_name, folder)
    checkpoint = find_checkpoint(folder)
    with _parameters_on_meta():
        try:
            module = model_class.from_config(config)
        except (TypeError, ValueError, KeyError) as error:
            raise NotAModelError(
                str(folder / "config.json"),
                f"{class_name} cannot be built from it ({error})",
                "update diffusers, or save the model again with save_pretrained",
            ) from error
    module.train(False)
    dtype = _main_dtype(checkpoint)
    dtypes = _match(module, checkpoint, dtype, str(folder))
    _make_parameters_fake(module, dtypes)
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.is_floating_point() and not _keeps_fp32(module):
                child._buffers[name] = buffer.to(dtype)
    stored = {name: checkpoint[name] for name in dtypes}
    weights = SafetensorsWeights(stored, dtypes)
    name = folder.parent.name if folder.name in SUBFOLDERS else folder.name
    return FolderModel(module, weights, class_name, dict(module.config), dtype, name or class_name)


def model_folder(path: Path) -> Path:
    """The folder with the config.json of the model to compile."""
    for folder in (path, *(path / name for name in SUBFOLDERS)):
        if (folder / "config.json").is_file():
            return folder
    raise NotAModelError(
        str(path),
        "no config.json there, nor in a transformer/ or unet/ subfolder",
        "give a folder written by diffusers' save_pretrained",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise NotAModelError(str(path), f"no JSON ({error})", "download it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise NotAModelError(
            str(path),
            "no '_class_name'",
            "give a folder of a diffusers model; for another library pass package.module:factory",
        )
    return config


def _model_class(class_name: str, folder: Path) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError(
            "diffusers",
            f"not importable ({error})",
            "install it: pip install 'svdqc[compile]' diffusers",
        ) from error
    model_class = getattr(diffusers, class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise UnknownModelClassError(
            class_name,
            f"named in {folder / 'config.json'}, and no model class of diffusers {diffusers.__version__}",
            "update diffusers, or pass package.module:factory",
        )
    return model_class


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters registered in this block keep shape and dtype only; buffers are computed as ever."""
    register = nn.Module.register_parameter

    def register_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            kept = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
            module._parameters[name] = kept

    nn.Module.register_parameter = register_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _main_dtype(checkpoint: Mapping[str, StoredTensor]) -> torch.dtype:
    """The floating-point dtype that holds most of the checkpoint's bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for stored in checkpoint.values():
        if stored.spec.dtype.is_floating_point:
            sizes[stored.spec.dtype] += stored.spec.num_bytes
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _keeps_fp32(module: nn.Module) -> tuple[str, ...]:
    return tuple(getattr(module, "_keep_in_fp32_modules", None) or ())


def _match(
    module: nn.Module, checkpoint: Mapping[str, StoredTensor], dtype: torch.dtype, subject: str
) -> dict[str, torch.dtype]:
    """Check the checkpoint against the module's state; returns the dtype of each tensor of the state.

    As diffusers does: all floating-point tensors in one dtype, but for the modules kept in float32.
    """
    state = module.state_dict()
    missing = [name for name in state if name not in checkpoint]
    wrong = [
        f"{name} is {list(checkpoint[name].spec.shape)} instead of {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in checkpoint and checkpoint[name].spec.shape != tuple(tensor.shape)
    ]
    if missing or wrong:
        found = [f"{len(missing)} missing tensors: {', '.join(missing)}"] if missing else []
        found += [f"{len(wrong)} tensors of another shape: {', '.join(wrong)}"] if wrong else []
        raise CheckpointError(
            subject, "; ".join(found), "use the checkpoint that belongs to this config.json"
        )
    keep = _keeps_fp32(module)
    dtypes: dict[str, torch.dtype] = {}
    for name, tensor in state.items():
        kept = any(part in keep for part in name.split("."))
        floating = tensor.is_floating_point()
        dtypes[name] = (torch.float32 if kept else dtype) if floating else tensor.dtype
    return dtypes


def _make_parameters_fake(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give every tensor of the state a fake CPU tensor of the dtype it will be read in."""
    mode = FakeTensorMode(
        shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True, export=True
    )
    for prefix, child in module.named_modules():
        for holder in (child._parameters, child._buffers):
            for name, tensor in holder.items():
                key = f"{prefix}.{name}" if prefix else name
                if tensor is None or key not in dtypes:
                    continue
                with mode:
                    fake = torch.empty(tensor.shape, dtype=dtypes[key], device="cpu")
                is_parameter = holder is child._parameters
                holder[name] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake  # type: ignore[assignment]
