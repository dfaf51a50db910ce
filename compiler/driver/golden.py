"""svdqc.reference: an artifact's own graph, executed by PyTorch on its own weights."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from svdqc.compiler.artifact.graph import load_graph
from svdqc.compiler.artifact.read import Artifact, TensorEntry, read_artifact
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.weights import WeightSpec, WeightStore
from svdqc.compiler.targets.layouts import unpack
from svdqc.runtime.tensors import flatten

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class ArtifactWeights(WeightStore):
    """The artifact's tensors in canonical form, unpacked when read."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._entries: dict[str, TensorEntry] = {}
        for entry in artifact.tensors.values():
            self._entries.setdefault(entry.name.split("#")[0], entry)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def spec(self, name: str) -> WeightSpec:
        entry = self._entries[name]
        return WeightSpec(tuple(entry.shape), _DTYPES[entry.dtype])

    def load(self, name: str) -> torch.Tensor:
        entry, spec = self._entries[name], self.spec(name)
        data = torch.from_numpy(
            np.array(self._artifact.tensor(entry.name)).reshape(-1).view(np.uint8)
        )
        return unpack(entry.layout, data, spec.shape, spec.dtype)


class Reference:
    """Call it as the model: keyword inputs, a dict of output tensors back. The definition of correct."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.artifact = read_artifact(path)
        self.program: Program = load_graph(self.artifact.graph(), ArtifactWeights(self.artifact))
        self._dtypes = {port["name"]: _DTYPES[port["dtype"]] for port in self.artifact.inputs}

    def __call__(self, **inputs: Any) -> dict[str, torch.Tensor]:
        named = {name: value for key, item in inputs.items() for name, value in flatten(item, key)}
        tensors = {
            n: torch.as_tensor(v).to(self._dtypes[n]) for n, v in named.items() if n in self._dtypes
        }
        outputs = self.program.run(tensors)
        return {spec.name: value for spec, value in zip(self.program.outputs, outputs, strict=True)}
