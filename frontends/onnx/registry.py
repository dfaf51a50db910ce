"""The table of operators: one decorated function per ONNX operator and version."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from svdqc.frontends.onnx.host import Host

if TYPE_CHECKING:
    from svdqc.frontends.onnx.call import Call

OpFunction: TypeAlias = "Callable[..., Any]"
F = TypeVar("F", bound="Callable[..., Any]")

OLDEST_OPSET = 13


@dataclass(frozen=True)
class OpDef:
    """An operator as implemented.

    since     first opset it is valid for
    function  `f(call, *inputs)` → a Value, or a tuple of them in the order of the outputs
    host      indices of the inputs handed over as they are; the others arrive as tensors.
              None: every input is handed over as it is.
    """

    name: str
    since: int
    function: OpFunction
    host: frozenset[int] | None


_OPS: dict[str, list[OpDef]] = {}
_FOLDS: dict[str, Callable[..., Any]] = {}


def onnx_op(
    *names: str, since: int = OLDEST_OPSET, host: Iterable[int] | str = ()
) -> Callable[[F], F]:
    """Register a function as the implementation of the operators `names` from opset `since` on.

    host    "all", or the indices of the inputs it wants unmaterialised: sizes, axes, pads, scalars.
    """
    indices = None if host == "all" else frozenset(int(index) for index in host)

    def register(function: F) -> F:
        for name in names:
            versions = _OPS.setdefault(name, [])
            assert all(version.since != since for version in versions), f"{name}-{since} twice"
            versions.append(OpDef(name, since, function, indices))
            versions.sort(key=lambda version: version.since)
        return function

    return register


def host_op(*names: str) -> Callable[[F], F]:
    """Register `f(call, *hosts)` → Host(s), tried when all inputs are host values.

    It returns NotImplemented where it cannot fold, and the operator then runs on tensors.
    """

    def register(function: F) -> F:
        for name in names:
            assert name not in _FOLDS, f"{name} folded twice"
            _FOLDS[name] = function
        return function

    return register


def find_op(name: str, opset: int) -> OpDef | None:
    """The implementation of `name` that is valid at `opset`."""
    _load_families()
    found = None
    for version in _OPS.get(name, ()):
        if version.since <= opset:
            found = version
    return found


def find_fold(name: str) -> Callable[..., Any] | None:
    _load_families()
    return _FOLDS.get(name)


def supported_ops() -> tuple[str, ...]:
    """Every operator with an implementation, sorted."""
    _load_families()
    return tuple(sorted(_OPS))


def _load_families() -> None:
    from svdqc.frontends.onnx import ops

    assert ops.FAMILIES


def fold(call: Call, inputs: list[Host]) -> Any:
    """Fold `call` on host values, or NotImplemented."""
    function = find_fold(call.node.op_type)
    return NotImplemented if function is None else function(call, *inputs)
