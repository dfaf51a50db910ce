"""svdqc: compile a diffusion model to one 4-bit file, and run it without PyTorch.

    artifact = svdqc.compile(model, inputs, output="flux.svdq")     # needs svdqc[compile]
    model    = svdqc.load("flux.svdq")                              # needs numpy
    outputs  = model(**inputs)
    golden   = svdqc.reference("flux.svdq")                         # needs svdqc[compile]

Importing this module loads nothing else: each name below is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svdqc.errors import SvdqcError

if TYPE_CHECKING:
    from svdqc.compiler.driver.api import compile, inspect, reference, tune
    from svdqc.compiler.driver.progress import Progress, ProgressEvent
    from svdqc.compiler.driver.report_api import report
    from svdqc.compiler.quantize.recipe import Recipe
    from svdqc.runtime import load

__version__ = "0.1.0"
__all__ = [
    "Progress",
    "ProgressEvent",
    "Recipe",
    "SvdqcError",
    "__version__",
    "compile",
    "inspect",
    "load",
    "reference",
    "report",
    "tune",
]

_HOMES = {
    "Progress": "svdqc.compiler.driver.progress",
    "ProgressEvent": "svdqc.compiler.driver.progress",
    "Recipe": "svdqc.compiler.quantize.recipe",
    "compile": "svdqc.compiler.driver.api",
    "inspect": "svdqc.compiler.driver.api",
    "load": "svdqc.runtime",
    "reference": "svdqc.compiler.driver.api",
    "report": "svdqc.compiler.driver.report_api",
    "tune": "svdqc.compiler.driver.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'svdqc' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
