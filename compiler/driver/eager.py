"""A model as PyTorch itself executes it: the other side of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdqc.frontends.loading import load_subject

EagerModel = Callable[..., list[Tensor]]


def open_eager(model: nn.Module | str | Path) -> EagerModel:
    """The model with its weights in memory, as a function from keyword arguments to its output tensors in order."""
    subject = load_subject(model)
    if isinstance(subject, torch.export.ExportedProgram):
        module: Any = subject.module()
    else:
        module = subject.module
        if subject.weights is not None:
            names = {name: subject.weight_names.get(name, name) for name in module.state_dict()}
            state = {name: subject.weights.load(stored) for name, stored in names.items()}
            module.load_state_dict(state, assign=True)

    def call(**inputs: Any) -> list[Tensor]:
        with torch.inference_mode():
            return list(_tensors(module(**inputs)))

    return call


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
