"""capture, step by step: recognize, trace and decompose, lift, normalize, name the dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.weights import WeightStore
from svdqc.frontends.dims import DimRequest, parse_dynamic, resolve
from svdqc.frontends.errors import NotAModelError
from svdqc.frontends.exported import capture_exported
from svdqc.frontends.exporting import export_module
from svdqc.frontends.lifting import lift, name_dims
from svdqc.frontends.loading import Subject, as_keywords, example_inputs, load_subject
from svdqc.frontends.spec import flatten_inputs
from svdqc.frontends.stores import ModuleWeights

Progress = Callable[[str], None]


def capture_model(
    model: nn.Module | ExportedProgram | str | Path,
    inputs: Mapping[str, Any] | None,
    dynamic: str | Mapping[Any, Any] | None,
    progress: Progress | None,
) -> Program:
    """The body of `svdqc.frontends.capture`."""
    report: Progress = progress or (lambda text: None)
    requests = parse_dynamic(dynamic)
    report("loading")
    subject = load_subject(model)
    if isinstance(subject, ExportedProgram):
        name = Path(model).stem if isinstance(model, (str, Path)) else "model"
        return capture_exported(subject, requests, name, report)
    if inputs is None and dynamic is None and subject.default_dynamic:
        requests = parse_dynamic(subject.default_dynamic)
    return _capture_subject(subject, inputs, requests, report)


def made_up_inputs(
    model: nn.Module | str | Path, dynamic: str | Mapping[Any, Any] | None
) -> dict[str, Any]:
    """The body of `svdqc.frontends.default_inputs`."""
    subject = load_subject(model)
    if isinstance(subject, ExportedProgram):
        raise NotAModelError(str(model), "an exported program, which takes no inputs", "give none")
    return example_inputs(subject, subject.rewrite_dims(parse_dynamic(dynamic)))


def _capture_subject(
    subject: Subject,
    inputs: Mapping[str, Any] | None,
    requests: dict[str, DimRequest],
    report: Progress,
) -> Program:
    requests = subject.rewrite_dims(requests)
    given = None if inputs is None else as_keywords(subject.module, inputs)
    kwargs = example_inputs(subject, requests) if given is None else given
    shapes = {name: tuple(tensor.shape) for name, tensor in flatten_inputs(kwargs).items()}
    dims = resolve(requests, shapes, subject.axes)
    report("tracing")
    exported = export_module(subject.module, kwargs, dims, subject.name)
    report("lifting")
    constants, stored = _weights_of(subject, exported)
    program = lift(
        exported,
        stored,
        constants,
        subject=subject.name,
        origin=subject.origin,
        source_of=subject.source_of,
        output_names=subject.output_names,
        weight_names=subject.weight_names,
    )
    name_dims(program, dims)
    return program


def _weights_of(
    subject: Subject, exported: ExportedProgram
) -> tuple[Mapping[str, torch.Tensor], Callable[[Sequence[str]], WeightStore]]:
    """Constants that no store has, and a function from the used names to the store that has the rest."""
    in_export: dict[str, torch.Tensor] = {
        subject.weight_names.get(key, key): tensor
        for key, tensor in {**exported.state_dict, **exported.constants}.items()
    }
    if subject.weights is None:
        return {}, lambda names: ModuleWeights({name: in_export[name] for name in names})
    store = subject.weights
    constants = {name: tensor for name, tensor in in_export.items() if name not in store}
    return constants, lambda names: store.only(names)
