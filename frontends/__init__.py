"""Frontends: every kind of model becomes one functional graph of ATen ops with lazy weights.

    capture(model, inputs, dynamic="height=64:128:8,batch=1:4") -> Program

model      nn.Module | ExportedProgram | path of a .pt2, an .onnx, a diffusers folder | "package.module:factory"
inputs     keyword arguments of forward; nested dicts, lists, tuples, None and Python scalars are welcome.
           Scalars and None become constants. A diffusers folder, an ONNX file and a factory need none.
dynamic    which sizes stay open, and in which range: see `svdqc.frontends.dims`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdqc.frontends.spec import flatten_inputs

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from svdqc.compiler.ir.program import Program

__all__ = ["capture", "default_inputs", "flatten_inputs"]


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    inputs: Mapping[str, Any] | None = None,
    *,
    dynamic: str | Mapping[Any, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Program:
    """Trace a model into a Program. Every mistake is an SvdqcError that says what to do.

    A diffusers folder with neither inputs nor dynamic dims is captured with `batch=1:4`; an empty
    string as `dynamic` fixes every size.
    """
    from svdqc.frontends.capturing import capture_model

    return capture_model(model, inputs, dynamic, progress)


def default_inputs(
    model: nn.Module | str | Path, *, dynamic: str | Mapping[Any, Any] | None = None
) -> dict[str, Any]:
    """The example inputs that `capture(model, dynamic=dynamic)` makes up: the same on every call."""
    from svdqc.frontends.capturing import made_up_inputs

    return made_up_inputs(model, dynamic)
