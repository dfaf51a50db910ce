"""What the user hands in → a Subject: a module to trace, with its weights, example inputs and named axes."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from svdqc.frontends.dims import Binding, DimRequest, NamedAxis, example_size
from svdqc.frontends.errors import (
    FactoryError,
    MissingInputsError,
    ModelNotFoundError,
    NotAModelError,
    UnusableInputsError,
)
from svdqc.frontends.lifting import SourceOf
from svdqc.frontends.mapped_pt2 import load_mapped
from svdqc.frontends.stores import SafetensorsWeights

KINDS = "a .pt2 or .onnx file, a diffusers folder, or package.module:factory"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
DEFAULT_FOLDER_DYNAMIC = "batch=1:4"

Examples = Callable[[Mapping[str, DimRequest]], Mapping[str, Any]]


@dataclass
class Subject:
    """A model ready to be traced.

    weights           where its parameters and buffers are; None: in the module itself
    examples          makes example inputs for the requested dims; None: the user must give them
    axes              dims the model has names for
    rewrite_dims      requested dims → the dims that the model has (height and width → tokens)
    default_dynamic   dims that are dynamic when neither inputs nor dims are given
    weight_names      attribute of the module → name of the weight, where it differs
    """

    module: nn.Module
    name: str
    origin: str
    weights: SafetensorsWeights | None = None
    examples: Examples | None = None
    axes: Mapping[str, NamedAxis] = field(default_factory=dict)
    rewrite_dims: Callable[[dict[str, DimRequest]], dict[str, DimRequest]] = lambda dims: dims
    default_dynamic: str | None = None
    source_of: SourceOf | None = None
    output_names: Sequence[str] | None = None
    weight_names: Mapping[str, str] = field(default_factory=dict)


def load_subject(model: object) -> Subject | ExportedProgram:
    """Recognize what the model is. See KINDS."""
    if isinstance(model, ExportedProgram):
        return model
    if isinstance(model, nn.Module):
        return from_module(model, "torch.export")
    if isinstance(model, (str, Path)):
        path = Path(model).expanduser()
        if path.is_dir():
            return from_folder(path)
        if path.exists():
            return _from_file(path)
        if isinstance(model, str) and FACTORY.fullmatch(model):
            return _from_factory(model)
        raise ModelNotFoundError(str(model), "no such file or folder", f"give {KINDS}")
    raise NotAModelError(type(model).__name__, "not a model", f"give an nn.Module, {KINDS}")


def from_module(module: nn.Module, origin: str, inputs: Mapping[str, Any] | None = None) -> Subject:
    """A module in memory; one of a known diffusers class, or with `example_inputs`, brings its inputs."""
    subject = Subject(module, type(module).__name__, origin)
    devices = {tensor.device.type for tensor in module.state_dict().values()}
    if devices - {"cpu"}:
        raise NotAModelError(
            type(module).__name__,
            f"tensors on {', '.join(sorted(devices - {'cpu'}))}",
            "move the model to the CPU; for a model on the meta device give its folder instead",
        )
    config = getattr(module, "config", None)
    if isinstance(config, Mapping):
        from svdqc.frontends.diffusers.families import family_of

        family = family_of(type(module).__name__, config)
        if family is not None:
            floats = [p.dtype for p in module.parameters() if p.is_floating_point()]
            dtype = max(set(floats), key=floats.count) if floats else torch.float32
            subject.examples = lambda dims: family.examples(dims, dtype)
            subject.axes, subject.rewrite_dims = family.axes(), family.unpacked
    elif inputs is None and isinstance(getattr(module, "example_inputs", None), Mapping):
        inputs = module.example_inputs  # type: ignore[assignment]
    if inputs is not None:
        given = inputs
        subject.examples = lambda dims: given
    return subject


def from_folder(path: Path) -> Subject:
    """A diffusers folder, its weights left on disk."""
    from svdqc.frontends.diffusers.families import family_of
    from svdqc.frontends.diffusers.folder import load_folder

    folder = load_folder(path)
    subject = Subject(folder.module, folder.name, "diffusers", weights=folder.weights)
    family = family_of(folder.class_name, folder.config)
    if family is not None:
        subject.examples = lambda dims: family.examples(dims, folder.dtype)
        subject.axes, subject.rewrite_dims = family.axes(), family.unpacked
        if "batch" in subject.axes:
            subject.default_dynamic = DEFAULT_FOLDER_DYNAMIC
    return subject


def _from_file(path: Path) -> Subject | ExportedProgram:
    if path.suffix == ".onnx":
        return _from_onnx(path)
    if path.suffix == ".pt2":
        if not zipfile.is_zipfile(path):  # torch would log a traceback of its own
            raise NotAModelError(str(path), "not a .pt2 archive", "save it with torch.export.save")
        try:
            return load_mapped(path)
        except Exception as error:  # torch raises RuntimeError, zipfile.BadZipFile, ValueError, …
            raise NotAModelError(
                str(path), f"no loadable export ({error})", "save it with torch.export.save"
            ) from error
    raise NotAModelError(str(path), f"a {path.suffix or 'nameless'} file", f"give {KINDS}")


def _from_onnx(path: Path) -> Subject:
    from svdqc.frontends.onnx import load_onnx

    module = load_onnx(path)
    axes: dict[str, list[Binding]] = {}
    for name, dims in module.dynamic_axes.items():
        for axis, dim in dims.items():
            axes.setdefault(dim, []).append(Binding(name, axis))
    named = {name: NamedAxis(tuple(bindings)) for name, bindings in axes.items()}
    return Subject(
        module,
        path.stem,
        "onnx",
        examples=lambda dims: _resized(module.example_inputs, named, dims),
        axes=named,
        source_of=getattr(module, "source_of", None),
        output_names=module.output_names,
        weight_names=module.weight_names,
    )


def _resized(
    inputs: Mapping[str, torch.Tensor],
    axes: Mapping[str, NamedAxis],
    dims: Mapping[str, DimRequest],
) -> dict[str, torch.Tensor]:
    """The inputs with the axes of the requested dims brought into their ranges, by repeating values."""
    resized = dict(inputs)
    for name in axes.keys() & dims.keys():
        for binding in axes[name].bindings:
            tensor = resized[binding.input]
            size = example_size(dims[name], tensor.shape[binding.axis])
            index = torch.arange(size) % tensor.shape[binding.axis]
            resized[binding.input] = tensor.index_select(binding.axis, index)
    return resized


def _from_factory(text: str) -> Subject:
    module_name, _, attribute = text.partition(":")
    added = str(Path.cwd()) not in sys.path
    if added:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
        made = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:  # whatever the user's code raises
        raise FactoryError(
            text,
            f"{type(error).__name__}: {error}",
            "give an importable package.module:factory that takes no arguments",
        ) from error
    finally:
        if added:
            sys.path.remove(str(Path.cwd()))
    inputs = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, inputs = made
    if not isinstance(made, nn.Module):
        raise FactoryError(
            text, f"it made a {type(made).__name__}", "return an nn.Module, or (nn.Module, inputs)"
        )
    keywords = None if inputs is None else as_keywords(made, inputs)
    subject = from_module(made, "factory", keywords)
    subject.name = attribute.rpartition(".")[2]
    return subject


# --- inputs ------------------------------------------------------------------------------------------


def as_keywords(module: nn.Module, inputs: Any) -> dict[str, Any]:
    """Example inputs as keyword arguments of forward: a dict as it is, positional ones by the signature."""
    parameters = inspect.signature(module.forward).parameters
    free = [p for p in parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    names = [p.name for p in free if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if isinstance(inputs, (torch.Tensor, tuple, list)):
        positional = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
        if len(positional) > len(names):
            raise UnusableInputsError(
                type(module).__name__,
                f"{len(positional)} positional inputs; forward takes {', '.join(names) or 'none'}",
                "give a dict of forward's keyword arguments",
            )
        inputs = dict(zip(names, positional, strict=False))
    if not isinstance(inputs, Mapping):
        raise UnusableInputsError(
            type(module).__name__,
            f"inputs of type {type(inputs).__name__}",
            "give a dict of forward's keyword arguments",
        )
    takes_any = len(free) < len(parameters)
    unknown = [str(name) for name in inputs if name not in names]
    if unknown and not takes_any:
        raise UnusableInputsError(
            type(module).__name__,
            f"forward takes no {', '.join(unknown)}",
            f"it takes {', '.join(names)}",
        )
    required = [p.name for p in free if p.default is p.empty and p.name in names]
    absent = [name for name in required if name not in inputs]
    if absent:
        raise UnusableInputsError(
            type(module).__name__,
            f"no {', '.join(absent)} in the inputs",
            "give every required argument",
        )
    return {name: _as_tensors(inputs[name], name) for name in inputs}


def _as_tensors(value: Any, path: str) -> Any:
    """numpy arrays and tensors on a device become CPU tensors; the nesting stays as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _as_tensors(child, f"{path}.{key}") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_as_tensors(child, f"{path}.{index}") for index, child in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return items if isinstance(value, list) else tuple(items)
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return value
    if hasattr(value, "__array__"):
        return torch.as_tensor(value)
    raise UnusableInputsError(
        path, f"a {type(value).__name__}", "give tensors, numbers, None, and dicts or lists of them"
    )


def example_inputs(subject: Subject, dims: Mapping[str, DimRequest]) -> dict[str, Any]:
    """Example inputs of a model that can make them up."""
    if subject.examples is None:
        names = [n for n in inspect.signature(subject.module.forward).parameters if n != "self"]
        raise MissingInputsError(
            subject.name,
            "no example inputs",
            f"pass inputs={{...}} with the arguments of its forward: {', '.join(names)}",
        )
    return as_keywords(subject.module, subject.examples(dims))
