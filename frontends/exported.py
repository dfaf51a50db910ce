"""A program that torch.export made elsewhere (an ExportedProgram, a .pt2 file) → Program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from svdqc.compiler.ir.program import Dim, Program
from svdqc.frontends.dims import Binding, DimRequest
from svdqc.frontends.errors import DimConstraintError, DynamicSpecError, UnknownDimError
from svdqc.frontends.exporting import decompose
from svdqc.frontends.lifting import lift
from svdqc.frontends.stores import ModuleWeights


def capture_exported(
    exported: ExportedProgram,
    requests: Mapping[str, DimRequest],
    name: str,
    report: Callable[[str], None],
) -> Program:
    """The dims are those of the export; `requests` may name them and narrow their ranges."""
    report("decomposing")
    _keep_symbols_only(exported)
    exported = decompose(exported)
    report("lifting")
    tensors: dict[str, torch.Tensor] = {**exported.state_dict, **exported.constants}
    program = lift(
        exported,
        lambda names: ModuleWeights({key: tensors[key] for key in names}),
        {},
        subject=name,
        origin="torch.export",
    )
    symbols = _input_symbols(program)
    ranges = _symbol_ranges(exported, symbols)
    for request in requests.values():
        _name(program, request, symbols, ranges)
    for symbol, (binding, step) in symbols.items():
        if symbol not in program.dims:
            lo, hi = ranges[symbol]
            if hi is None:
                raise DynamicSpecError(
                    symbol,
                    f"the size of {binding} has no upper bound in the export",
                    f"say dynamic='{binding.input.replace('.', '_')}_{binding.axis}@{binding}=lo:hi'",
                )
            program.dims[symbol] = Dim(symbol, lo * step, hi * step, step)
    return program


def _keep_symbols_only(exported: ExportedProgram) -> None:
    """Loading a .pt2 files ranges of expressions (8*s0) among those of symbols, which decomposing rejects."""
    for node in exported.graph.nodes:
        for size in getattr(node.meta.get("val"), "shape", ()):
            if isinstance(size, torch.SymInt):
                known = size.node.shape_env.var_to_range
                for expression in [key for key in known if not key.is_Symbol]:
                    del known[expression]
                return


def _symbol_ranges(
    exported: ExportedProgram, symbols: Mapping[str, tuple[Binding, int]]
) -> dict[str, tuple[int, int | None]]:
    """Symbol → its bounds, upper None if there is none.

    For a derived size the export states the bounds of the expression; the symbol's own start at 2,
    because tracing takes 0 and 1 for constants.
    """
    constraints = {str(key): _bounds(value) for key, value in exported.range_constraints.items()}
    ranges: dict[str, tuple[int, int | None]] = {}
    for symbol, (_, step) in symbols.items():
        lo, hi = constraints.get(symbol, (1, None))
        stated = constraints.get(f"{step}*{symbol}")
        if stated is not None:
            lo = -(-stated[0] // step)
            hi = hi if stated[1] is None else stated[1] // step
        ranges[symbol] = lo, hi
    return ranges


def _input_symbols(program: Program) -> dict[str, tuple[Binding, int]]:
    """Symbol → an input axis whose size is `step * symbol + offset`, and the step; the plainest axis."""
    found: dict[str, tuple[Binding, int]] = {}
    for spec in program.inputs:
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, torch.SymInt):
                continue
            expression = size.node.expr
            if len(expression.free_symbols) != 1:
                continue
            (symbol,) = expression.free_symbols
            step, offset = int(expression.coeff(symbol)), expression.subs(symbol, 0)
            known = found.get(str(symbol))
            if step >= 1 and (known is None or (offset == 0 and known[1] > step)):
                found[str(symbol)] = (Binding(spec.name, axis, 1, int(offset)), step)
    return found


def _name(
    program: Program,
    request: DimRequest,
    symbols: Mapping[str, tuple[Binding, int]],
    ranges: Mapping[str, tuple[int, int | None]],
) -> None:
    places = {str(binding): symbol for symbol, (binding, _) in symbols.items()}
    wanted = [places[str(binding)] for binding in request.bindings if str(binding) in places]
    if request.name in symbols:
        wanted.append(request.name)
    if not wanted:
        listed = ", ".join(f"{symbol} at {binding}" for symbol, (binding, _) in symbols.items())
        raise UnknownDimError(
            request.name,
            "the export has no such dynamic dim",
            f"bind it to one of: {listed}" if listed else "export the model with dynamic_shapes",
        )
    symbol = wanted[0]
    step = symbols[symbol][1]
    lo, hi = ranges[symbol]
    within = lo * step <= request.lo and (hi is None or request.hi <= hi * step)
    legal = request.lo % step == 0 and request.hi % step == 0 and step % request.multiple == 0
    if not (within and legal):
        upper = "…" if hi is None else hi * step
        raise DimConstraintError(
            request.text(),
            f"the export allows {lo * step}..{upper}, multiples of {step}",
            "narrow the range, or export the model again",
        )
    program.dims[symbol] = Dim(request.name, request.lo, request.hi, step)


def _bounds(bounds: Any) -> tuple[int, int | None]:
    """Bounds of a value range as ints; no upper bound: None."""
    lo = max(1, int(bounds.lower)) if bounds.lower.is_finite else 1
    if not bounds.upper.is_finite or int(bounds.upper) >= sys.maxsize - 1:
        return lo, None
    return lo, int(bounds.upper)
