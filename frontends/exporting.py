"""torch.export, in the two ways it has, with its complaints put in terms of the user's dims."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from svdqc.frontends.decompositions import decomposition_table
from svdqc.frontends.dims import DimRequest, dynamic_shapes, unit_name
from svdqc.frontends.errors import DimConstraintError, ExportFailedError
from svdqc.frontends.spec import walk

# What torch says about an output whose class it cannot take apart.
UNKNOWN_OUTPUT = ("register a pytree", "unrecognized type")


def export_module(
    module: nn.Module, kwargs: Mapping[str, Any], dims: Sequence[DimRequest], subject: str
) -> ExportedProgram:
    """Trace `module(**kwargs)` and decompose it: strict=False, then strict=True; modes and gradients stay as they were.

    Some graphs are only found untrue when they are decomposed (a write through `.data` of a new tensor, which
    strict=False takes for a constant's), so the two steps are tried together.
    """
    shapes = dynamic_shapes(kwargs, dims) if dims else None
    reasons: list[str] = []
    with _evaluation_mode(module):
        for strict in (False, True):
            try:
                return decompose(_export(module, kwargs, shapes, strict))
            except Exception as error:  # torch.export raises whatever the model's code raises
                _raise_if_dims_are_wrong(error, dims)
                if any(complaint in str(error) for complaint in UNKNOWN_OUTPUT):
                    with _plain_outputs(module):
                        return decompose(_export(module, kwargs, shapes, strict))
                reasons.append(f"strict={strict}: {type(error).__name__}: {_shorten(str(error))}")
    raise ExportFailedError(
        subject,
        "torch.export cannot trace it: " + "; ".join(reasons),
        "rewrite the part of forward named above without data-dependent Python, or pass a wrapper "
        "module that takes fixed arguments for it",
    )


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Core ATen plus the preserved ops; autocast and no_grad blocks are inlined."""
    with _quiet():
        decomposed: ExportedProgram = program.run_decompositions(decomposition_table())
    return decomposed


def _export(
    module: nn.Module, kwargs: Mapping[str, Any], shapes: Any, strict: bool
) -> ExportedProgram:
    # Dynamo, which strict=True uses, has its own idea of modes.
    data = nullcontext() if strict else _DataIsAnAlias()
    with _quiet(), torch.no_grad(), data:
        exported: ExportedProgram = torch.export.export(
            module, (), dict(kwargs), dynamic_shapes=shapes, strict=strict
        )
    return exported


class _DataIsAnAlias(TorchFunctionMode):
    """`x.data` is `x.detach()`: tracing takes the former for a new constant, and loses what is written to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no dumps of half-traced graphs: what matters is raised, or put into an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    training = [child for child in module.modules() if child.training]
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True


@contextmanager
def _plain_outputs(module: nn.Module) -> Iterator[None]:
    """In this block forward returns {name: tensor}, whatever class it would return otherwise."""
    own = module.__dict__.get("forward")
    forward = module.forward

    @wraps(forward)
    def plain_forward(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        outputs = walk(forward(*args, **kwargs))
        return {name: leaf for name, leaf in outputs if isinstance(leaf, torch.Tensor)}

    module.forward = plain_forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


# --- constraint violations ---------------------------------------------------------------------------

_FIX = re.compile(r"^\s*(\w+) = (.+?)\s*$", re.MULTILINE)
_FIX_RANGE = re.compile(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)")
_FIX_SCALED = re.compile(r"(\d+)\*_\w+")


def _raise_if_dims_are_wrong(error: Exception, dims: Sequence[DimRequest]) -> None:
    """Turn torch's "Suggested fixes" into legal sizes of the user's dims."""
    text = str(error)
    if not dims or "Suggested fixes:" not in text:
        return
    by_unit = {unit_name(request): request for request in dims}
    fixes = [
        (by_unit[name], fix)
        for name, fix in _FIX.findall(text.split("Suggested fixes:")[1])
        if name in by_unit
    ]
    if not fixes:
        return
    lines = [_legal_sizes(request, fix, by_unit) for request, fix in fixes]
    raise DimConstraintError(
        ", ".join(request.text() for request, _ in fixes),
        "the model does not work for all of these sizes",
        "; ".join(lines),
    ) from error


def _legal_sizes(request: DimRequest, fix: str, by_unit: Mapping[str, DimRequest]) -> str:
    name, step = request.name, request.multiple
    if fix.isdigit():
        size = int(fix) * step
        return f"{name} must be {size}: leave {name!r} out, and give example inputs of that size"
    if match := _FIX_RANGE.fullmatch(fix):
        lo = max(int(match[1]) * step if match[1] else request.lo, request.lo)
        hi = min(int(match[2]) * step if match[2] else request.hi, request.hi)
        return f"{name} must be in {lo}..{hi}: write {_write(request, lo, hi, step)}"
    if match := _FIX_SCALED.fullmatch(fix):
        step *= int(match[1])
        lo, hi = -(-request.lo // step) * step, request.hi // step * step
        return f"{name} must be a multiple of {step}: write {_write(request, lo, hi, step)}"
    for unit, other in by_unit.items():
        if re.search(rf"\b{re.escape(unit)}\b", fix):
            relation = fix.replace(unit, other.name)
            places = "+".join(map(str, request.bindings))
            return f"{name} must equal {relation}: write '{relation.replace(' ', '')}@{places}'"
    return f"{name} must satisfy {name} = {fix} (in units of {step}): narrow its range, or fix it"


def _write(request: DimRequest, lo: int, hi: int, step: int) -> str:
    if lo > hi:
        return f"a range that holds a multiple of {step}"
    return f"{request.name}={lo}:{hi}" + (f":{step}" if step > 1 else "")


def _shorten(text: str, limit: int = 500) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit] + " …"
