"""The driver: from a model to an artifact, and back to a reference.

The names below are fetched when they are first used: a machine that has only the runtime imports this package too, for
progress events and tensor files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdqc.compiler.driver.compile import CompiledArtifact, compile_model
    from svdqc.compiler.driver.golden import Reference
    from svdqc.compiler.driver.inspect import inspect_model

__all__ = ["CompiledArtifact", "Reference", "compile_model", "inspect_model"]

_HOMES = {
    "CompiledArtifact": "compile",
    "Reference": "golden",
    "compile_model": "compile",
    "inspect_model": "inspect",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
