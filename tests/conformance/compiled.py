"""Compiling many ONNX node tests at once: each becomes an artifact of its own, all share one build of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

import svdqc
from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.graph import dump_graph
from svdqc.compiler.artifact.write import ArtifactTensor, write_artifact
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.driver.support import check_supported
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.pipeline import CANONICALIZE, run_passes
from svdqc.compiler.targets.cpu import parse_targets
from svdqc.compiler.targets.layouts import pack
from svdqc.compiler.targets.toolchain import build
from svdqc.frontends import capture
from svdqc.frontends.onnx.load import module_of_model
from svdqc.frontends.onnx.registry import find_op
from svdqc.runtime import trust
from svdqc.runtime.library import cpu_features

HEADER_LINES = 400
"""Kernels are compiled in files of about this many lines, since most of a compilation is its headers."""

STORED_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "LayerNormalization")
"""Operators whose operands after the first are parts of a model, not of its inputs."""


@dataclass
class CompiledCase:
    """inputs and expected outputs by name, in order."""

    name: str
    program: Program
    lowered: Lowered
    inputs: dict[str, torch.Tensor]
    expected: list[torch.Tensor]


def sizes_as_constants(
    model: onnx.ModelProto, inputs: Sequence[Any]
) -> tuple[onnx.ModelProto, list[int]]:
    """The model with inputs that say how (axes, sizes, pads) made part of it; returns the positions of the others.

    A compiled model has shapes that follow from those of its inputs, never from their values.
    """
    [entry] = [e.version for e in model.opset_import if e.domain in ("", "ai.onnx")] or [0]
    names = [info.name for info in model.graph.input]
    fixed: set[str] = set()
    for node in model.graph.node:
        op = find_op(node.op_type, entry)
        if op is None:
            continue
        hosts = range(1, len(node.input)) if op.host is None else op.host
        if node.op_type in STORED_WEIGHTS:
            hosts = range(1, len(node.input))
        fixed |= {node.input[i] for i in hosts if i < len(node.input)}
    kept = [i for i, name in enumerate(names) if name not in fixed]
    for i, name in enumerate(names):
        if i not in kept:
            value = inputs[i]
            tensor = (
                value
                if isinstance(value, onnx.TensorProto)
                else onnx.numpy_helper.from_array(value)
            )
            tensor.name = name
            model.graph.initializer.append(tensor)
    infos = [model.graph.input[i] for i in kept]
    del model.graph.input[:]
    model.graph.input.extend(infos)
    return model, kept


def prepare(
    name: str, model: onnx.ModelProto, inputs: Sequence[Any], outputs: Sequence[Any], tensor_of: Any
) -> CompiledCase:
    """From a case to kernels; raises the SvdqcError that says why it cannot be compiled."""
    model, kept = sizes_as_constants(model, inputs)
    module = module_of_model(model, None, name)
    names = [spec.name for spec in module.graph_inputs]
    given = {n: tensor_of(inputs[i]) for n, i in zip(names, kept, strict=True)}
    program = capture(module, given)
    run_passes(program, CANONICALIZE)
    check_supported(program)
    lowered = lower(program, plan_regions(program))
    return CompiledCase(name, program, lowered, given, [tensor_of(o) for o in outputs])


def build_together(cases: Sequence[CompiledCase]) -> bytes:
    """One shared object with the kernels of all cases, several kernels to a file."""
    kernels = {name: text for case in cases for name, text in case.lowered.kernels.items()}
    files: dict[str, str] = {}
    group: list[str] = []
    for name in sorted(kernels):
        group.append(kernels[name])
        if sum(text.count("\n") for text in group) > HEADER_LINES:
            files[f"group_{len(files)}"] = "\n".join(group)
            group = []
    if group:
        files[f"group_{len(files)}"] = "\n".join(group)
    [target] = parse_targets("native", cpu_features())
    return build(files, target)


def run_compiled(case: CompiledCase, code: bytes, folder: Path) -> list[torch.Tensor]:
    """Write the artifact, load it and run it."""
    [target] = parse_targets("native", cpu_features())
    program, lowered = case.program, case.lowered
    counts = [t.name for t in lowered.tensors]
    tensors = [
        ArtifactTensor(
            name=t.name if counts.count(t.name) == 1 else f"{t.name}#{t.layout}",
            dtype=DTYPE_NAMES[t.dtype],
            shape=t.shape,
            layout=t.layout,
            num_bytes=t.num_bytes,
            load=lambda t=t: _bytes(pack(t.layout, program.weights.load(t.name))),
        )
        for t in lowered.tensors
    ]
    written = write_artifact(
        folder / f"{case.name}.svdq",
        name=case.name,
        producer="conformance",
        tensors=tensors,
        variants=[Variant(target.name, target.isa_features, code, lowered.plan, {})],
        graph=dump_graph(program),
        quantization={},
        source_digest="",
        meta={},
    )
    trust.register(*written.trust_digests)
    with svdqc.load(written.path, threads=1) as model:
        wanted = [port.name for port in model.inputs]
        results = model(**{name: case.inputs[name] for name in wanted})
        return [torch.as_tensor(result) for result in results.values()]


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
