"""The weights of a plan as the artifact stores them: packed one at a time, when the writer asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from svdqc.compiler.artifact.write import ArtifactTensor
from svdqc.compiler.codegen.lower import PlannedTensor
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.program import Program
from svdqc.compiler.targets.layouts import pack


def artifact_tensors(
    program: Program, planned: list[PlannedTensor], progress: Callable[[int, int, str], None]
) -> list[ArtifactTensor]:
    """In order of first use. A weight in several layouts is stored as `name#layout`."""
    names = [t.name for t in planned]
    return [
        ArtifactTensor(
            name=_stored_name(t, names.count(t.name) > 1),
            dtype=DTYPE_NAMES[t.dtype],
            shape=t.shape,
            layout=t.layout,
            num_bytes=t.num_bytes,
            load=_loader(program, t, lambda n=number, t=t: progress(n, len(planned), t.name)),  # type: ignore[misc]
        )
        for number, t in enumerate(planned)
    ]


def _stored_name(tensor: PlannedTensor, shared: bool) -> str:
    if shared and tensor.layout != "row_major":
        return f"{tensor.name}#{tensor.layout}"
    return tensor.name


def _loader(
    program: Program, tensor: PlannedTensor, begin: Callable[[], None]
) -> Callable[[], np.ndarray[Any, Any]]:
    def load() -> np.ndarray[Any, Any]:
        begin()
        packed = pack(tensor.layout, program.weights.load(tensor.name))
        return packed.contiguous().reshape(-1).view(torch.uint8).numpy()

    return load
