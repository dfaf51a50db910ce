"""Run whole programs lowered for CUDA on the CPU: the plan, launch by launch, through the host back end.

    outputs = run_on_host(program, lowered, inputs)     lowered = lower(program, fusion, backend=CudaBackend(target))

Arena, outputs and scratch begin poisoned; what lies around each buffer must stay as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tests.cuda.host_kernels import HostKernels
from torch import Tensor

from svdqc.compiler.codegen.lower import Lowered
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.program import Program
from svdqc.compiler.plan.records import BufferArg, Plan
from svdqc.compiler.plan.verify import verify_plan
from svdqc.compiler.targets.layouts import pack

Bytes = np.ndarray[Any, Any]
_TORCH = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_MARGIN = 256
POISON, MARGIN_BYTE = 0xFF, 0xA5


class PlanRunner:
    """A lowered program, its kernels built for the host and its weights packed, to be run many times."""

    def __init__(self, program: Program, lowered: Lowered) -> None:
        self.plan: Plan = lowered.plan
        verify_plan(self.plan, [t.num_bytes for t in lowered.tensors])
        # One translation unit: the headers are parsed once.
        self.kernels = HostKernels({"unit": "\n".join(lowered.kernels.values())})
        self.weights = [
            _aligned(_bytes(pack(t.layout, program.weights.load(t.name)))) for t in lowered.tensors
        ]
        for weight, planned in zip(self.weights, lowered.tensors, strict=True):
            assert weight.nbytes == planned.num_bytes, planned
        for entry in self.plan.kernels:
            info = self.kernels.info(entry.name)
            assert (info.num_threads, info.shared_bytes) == (entry.threads, entry.shared_bytes)

    def __call__(self, inputs: Mapping[str, Tensor], schedule: int = 0) -> dict[str, Tensor]:
        dims = self._dims(inputs)
        given = [_aligned(_bytes(inputs[port.name])) for port in self.plan.inputs]
        shapes = [[s.evaluate(dims) for s in port.shape] for port in self.plan.outputs]
        wholes = [
            _guarded(int(np.prod(shape)) * _TORCH[port.dtype].itemsize)
            for shape, port in zip(shapes, self.plan.outputs, strict=True)
        ]
        results = [whole[_MARGIN : whole.nbytes - _MARGIN] for whole in wholes]
        arena_whole = _guarded(self.plan.arena_bytes)
        arena = arena_whole[_MARGIN : arena_whole.nbytes - _MARGIN]

        def memory(arg: BufferArg) -> Bytes:
            buffer = self.plan.buffers[arg.buffer]
            lists = {"input": given, "output": results, "weight": self.weights}
            in_arena = buffer.kind == "arena"
            whole = arena[buffer.arena_offset :] if in_arena else lists[buffer.kind][buffer.index]
            offset, size = arg.byte_offset.evaluate(dims), arg.num_bytes.evaluate(dims)
            assert offset + size <= whole.nbytes
            return whole[offset : offset + size]

        for launch in self.plan.launches:
            tasks = launch.num_tasks.evaluate(dims)
            if tasks:
                self.kernels.launch(
                    self.plan.kernels[launch.kernel].name,
                    [memory(arg) for arg in launch.args],
                    [scalar.evaluate(dims) for scalar in launch.scalars],
                    grid_x=tasks,
                    schedule=schedule,
                )
        for whole in (*wholes, arena_whole):
            margins = np.concatenate((whole[:_MARGIN], whole[whole.nbytes - _MARGIN :]))
            assert (margins == MARGIN_BYTE).all(), "written outside a buffer"
        outputs = {}
        for port, result, shape in zip(self.plan.outputs, results, shapes, strict=True):
            outputs[port.name] = torch.empty(shape, dtype=_TORCH[port.dtype])
            _bytes(outputs[port.name])[:] = result
        return outputs

    def _dims(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Each dim by the first input size that is an expression of it alone, tried in order of its values."""
        found: dict[str, int] = {}
        for port in self.plan.inputs:
            for expr, size in zip(port.shape, inputs[port.name].shape, strict=True):
                names = {symbol.name for symbol in expr.symbols()} - found.keys()
                for dim in self.plan.dims:
                    if names == {dim.name} == {s.name for s in expr.symbols()}:
                        values = range(dim.lo, dim.hi + 1)
                        found[dim.name] = next(
                            v for v in values if expr.evaluate({dim.name: v}) == size
                        )
        return found


def run_on_host(
    program: Program, lowered: Lowered, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The outputs of one run."""
    return PlanRunner(program, lowered)(inputs)


def _bytes(tensor: Tensor) -> Bytes:
    flat: Bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def _aligned(data: Bytes) -> Bytes:
    whole = np.zeros(data.nbytes + 256, np.uint8)
    begin = -whole.ctypes.data % 256
    whole[begin : begin + data.nbytes] = data
    return whole[begin : begin + data.nbytes]


def _guarded(num_bytes: int) -> Bytes:
    """Poisoned bytes with margins on both sides; 256-aligned."""
    room = np.zeros(num_bytes + 2 * _MARGIN + 256, np.uint8)
    begin = -room.ctypes.data % 256
    whole = room[begin : begin + num_bytes + 2 * _MARGIN]
    whole[:] = MARGIN_BYTE
    whole[_MARGIN : _MARGIN + num_bytes] = POISON
    return whole
