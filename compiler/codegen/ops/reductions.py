"""Row reductions: which axes an op folds, with which operation, and how the result is finished."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import argument, compute_dtype, declare, dtype_of
from svdqc.compiler.ir.symbols import Shape, SymbolTable

_COMBINE = {
    "sum": "add",
    "mean": "add",
    "amax": "maximum",
    "amin": "minimum",
    "prod": "mul",
    "any": "logical_or",
    "all": "logical_and",
}
_TARGETS = {
    "sum": ("aten.sum.dim_IntList", "aten.sum.default"),
    "mean": ("aten.mean.dim", "aten.mean.default"),
    "amax": ("aten.amax.default",),
    "amin": ("aten.amin.default",),
    "prod": ("aten.prod.dim_int", "aten.prod.default"),
    "any": ("aten.any.dim", "aten.any.dims", "aten.any.default"),
    "all": ("aten.all.dim", "aten.all.dims", "aten.all.default"),
}
_NAME_OF = {target: name for name, targets in _TARGETS.items() for target in targets}
for _targets in _TARGETS.values():
    declare("reduce", *_targets)


@dataclass(frozen=True)
class Reduction:
    """axes of the input that are folded; `combine` is a binary scalar op; mean divides by their size at the end."""

    axes: tuple[int, ...]
    combine: str
    mean: bool
    keepdim: bool
    dtype: str


def reduction_of(node: Node, table: SymbolTable) -> Reduction:
    """The reduction that a `reduce` node performs."""
    name = _NAME_OF[str(node.target)]
    source = node.args[0]
    assert isinstance(source, Node)
    rank = len(table.shape(source))
    whole = str(node.target) in (
        "aten.sum.default",
        "aten.mean.default",
        "aten.prod.default",
        "aten.any.default",
        "aten.all.default",
    )
    dims = None if whole else argument(node, 1, "dim")
    axes = (
        range(rank) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else dims)
    )
    keepdim = False if whole else bool(argument(node, 2, "keepdim", False))
    return Reduction(
        tuple(sorted(int(a) % rank for a in axes)) if rank else (),
        _COMBINE[name],
        name == "mean",
        keepdim,
        compute_dtype(dtype_of(node)),
    )


def kept_axes(reduction: Reduction, source: Shape) -> list[int]:
    return [a for a in range(len(source)) if a not in reduction.axes]
