"""NVFP4 linears as the compiler prints them, by warps (sm_120a) and by tcgen05 (sm_100a): on the host back end, and
what ptxas makes of them."""

from __future__ import annotations

import operator

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.conftest import GateLoop
from tests.cuda.host_kernels import has
from tests.cuda.host_runner import PlanRunner
from tests.cuda.nvfp4_linears import SEED, Case, check, lowered_linears
from tests.cuda.sass import Sass, disassembled
from tests.cuda.test_gemm_programs import EPILOGUES

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.formats import E2M1_RANGES, dequantize_groups, nvfp4_tensor_scale
from svdqc.compiler.quantize.ops_formats import linear_coded, quantize
from svdqc.compiler.targets.cuda import SM_100A, SM_120A, CudaTarget

MORE = {
    SM_120A: [
        Case(17, 40, 80, 1, range="four_over_six", bias=False),
        Case(17, 40, 240, 24, up=torch.float32),
        Case(5, 40, 1088, 8, range="six", rotate=True),  # rows in parts, the last not whole
    ],
    SM_100A: [
        Case(17, 40, 16, 0, bias=False),
        Case(130, 136, 272, 32, range="six", rotate=False),
    ],
}


@pytest.mark.parametrize("target", MORE, ids=lambda target: target.arch)
def test_linear_nvfp4__epilogues_ranks_and_k_tails(target: CudaTarget) -> None:
    if not has("tcgen05_nvfp4" if target is SM_100A else "nvfp4"):
        pytest.skip("a GPU without these tensor cores")
    cases = [Case(33, 72, 192, epilogue=epilogue) for epilogue in EPILOGUES]
    lowered = check([*cases, *MORE[target]], target)
    by_tcgen05 = [text for text in lowered.kernels.values() if "Tcgen05Gemm<Tile>" in text]
    assert bool(by_tcgen05) == (target is SM_100A)


def test_quantize_e2m1__bit_for_bit() -> None:
    """Every choice a group has, ties, zeros, subnormal and saturating scales: by linears with the unit matrix."""
    if not has("nvfp4"):
        pytest.skip("a GPU without these tensor cores")
    m, k = 20, 1152
    seen = torch.cat((torch.arange(64), torch.arange(k - 136, k)))  # both parts of a row
    made = torch.Generator().manual_seed(SEED)
    sizes = 2.0 ** torch.randint(-12, 3, (m, k // 16), generator=made)
    x = torch.randn(m, k, generator=made) * sizes.repeat_interleave(16, 1)
    x[1] = (x[1] * 4).round() / 4  # ties between codes
    x[2, :32] = 0.0
    unit = nvfp4_tensor_scale(float(x.abs().max())) / 2
    tensors = {
        "smooth": torch.ones(k),
        "down": torch.zeros(0, k),
        "w": 2 * torch.eye(k, dtype=torch.int8)[seen],
        "w_scale": torch.full((200, k // 16), 0.125).to(torch.float8_e4m3fn).view(torch.uint8),
        "up": torch.zeros(200, 0),
    }
    b = ProgramBuilder()
    weights = {name: b.weight(name, tensor) for name, tensor in tensors.items()}
    outputs, wanted = [], []
    given = b.input(x)
    for range_name, rotate in (*((name, False) for name in E2M1_RANGES), ("best_of_three", True)):
        form = (16, range_name, rotate, 0.0, "e2m1", unit)
        coded = b.call(quantize, given, weights["smooth"], weights["down"], *form)
        items = [b.call(operator.getitem, coded, i) for i in range(3)]
        of_w = [weights[name] for name in ("w", "w_scale", "up")]
        outputs.append(b.call(linear_coded, *items, *of_w, None, "nvfp4", 4.0))
        codes, scale, _ = quantize(x, tensors["smooth"], tensors["down"], *form)
        wanted.append(dequantize_groups(codes, scale)[:, seen])
    program = b.finish(*outputs)
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(SM_120A))
    results = PlanRunner(program, lowered)(b.inputs)
    for i, want in enumerate(wanted):
        assert torch.equal(results[str(i)], want), (SEED, i, int((results[str(i)] != want).sum()))


def test_linear_nvfp4__instructions(gate_loop: GateLoop) -> None:
    """By warps, as chosen for many rows. An operation takes 16 clocks of a quarter of an SM (codegen/cuda/tiles.py)."""
    kernel = _product(SM_120A)
    kernel.require_opcode("OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X")
    kernel.require_clean(max_registers=128)  # two CTAs of 256 threads
    gate_loop(kernel, "OMMA.SF.16864", 16.0)


@pytest.mark.parametrize(("rows", "columns"), [(2048, 128), (256, 64), (77, 32)])
def test_linear_nvfp4__tcgen05_instructions(rows: int, columns: int, gate_loop: GateLoop) -> None:
    """Products, scales and sums by tcgen05, in tiles of all widths. At full rate an operation of 128 columns takes 64
    clocks, in which the issuing warp does its share of everything; narrower tiles leave the SM time. The narrowest, for
    few rows, has an SM to itself."""
    kernel = _product(SM_100A, rows, together=1 if columns == 32 else 2)
    assert f"__128x{columns}_" in kernel.name
    for opcode in ("UTCOMMA.4X", "UTCCP.T.S.4x32dp128bit", "UTCBAR", "UBLKCP", "LDTM", "STTM"):
        kernel.require_opcode(opcode)
    kernel.require_clean(max_registers=128)
    gate_loop(kernel, "UTCOMMA", 64.0)


def _product(target: CudaTarget, rows: int = 2048, together: int = 2) -> Sass:
    """A linear with a branch and a residual; what codes its rows is held to the same limits. together: CTAs that an SM
    shall hold."""
    case = Case(rows, 3072, 1024, 32, epilogue="gate_residual")
    _, _, _, lowered = lowered_linears([case], target)
    found = {}
    for entry in lowered.plan.kernels:
        kernel = disassembled(entry.name, lowered.kernels[entry.name], target)
        assert kernel.stack_bytes == kernel.local_bytes == 0, entry.name
        assert target.max_ctas(entry.threads, entry.shared_bytes, kernel.registers) >= together, (
            entry.name
        )
        found[entry.name.partition("_")[0]] = kernel
    assert set(found) == {"quantize", "gemm"}
    found["quantize"].require_opcode("F2FP.SATFINITE.E2M1.F32.PACK_AB_MERGE_C")
    return found["gemm"]
