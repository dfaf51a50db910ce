"""The tensor-core operations: fragments as the PTX ISA lays them out, and what each is compiled to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.host_kernels import HostKernels
from tests.cuda.sass import disassembled
from torch import Tensor

from svdqc.compiler.targets.compile_cache import CompilationFailed
from svdqc.compiler.targets.cuda import (
    SM_75,
    SM_80,
    SM_86,
    SM_89,
    SM_90A,
    SM_100A,
    SM_120A,
    CudaTarget,
)
from svdqc.compiler.targets.cuda_build import build_cubins

SOURCE = Path(__file__).resolve().parent / "cu" / "mma.cu"
SEED = 3


@dataclass(frozen=True)
class Operation:
    """statement: the call; k, bits: of its operands; sum: type of the result; sass: opcode by architecture."""

    statement: str
    k: int
    bits: int
    sum: str
    sass: dict[str, str]
    unsigned: bool = False


ALL = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
_AMPERE = {"sm_80", "sm_86", "sm_89"}
_S4 = {"sm_75": "IMMA.8832"} | dict.fromkeys(_AMPERE, "IMMA.16864")
_S8 = {"sm_75": "IMMA.8816"} | dict.fromkeys(ALL[1:], "IMMA.16832")
_HALF = {"sm_75": "HMMA.1688"} | dict.fromkeys(ALL[1:], "HMMA.16816")
OPERATIONS = {
    "s4_k64": Operation("mma_s4_k64<false>(d, a, b, d)", 64, 4, "int32_t", _S4),
    "u4_k64": Operation("mma_s4_k64<true>(d, a, b, d)", 64, 4, "int32_t", _S4, True),
    "s4_k32": Operation(
        "mma_s4_k32<false>(d, a[0], a[1], b[0], d)", 32, 4, "int32_t",
        {"sm_75": "IMMA.8832"} | dict.fromkeys(_AMPERE, "IMMA.16832"),
    ),
    "s8": Operation("mma_s8<false>(d, a, b, d)", 32, 8, "int32_t", _S8),
    "u8": Operation("mma_s8<true>(d, a, b, d)", 32, 8, "int32_t", _S8, True),
    "bf16": Operation("mma_bf16(d, a, b)", 16, 16, "float", dict.fromkeys(ALL[1:], "HMMA.16816")),
    "f16": Operation("mma_f16(d, a, b)", 16, 16, "float", _HALF),
    "e4m3": Operation(
        "mma_e4m3(d, a, b)", 32, 8, "float", {"sm_89": "QMMA.16832", "sm_120a": "QMMA.16832"}
    ),
    "e2m1": Operation(
        "mma_e2m1(d, a, b, a_scales, b_scales)", 64, 4, "float", {"sm_120a": "OMMA.SF.16864"}
    ),
    "e2m1_next": Operation(
        "mma_e2m1_next(d, a, b, a_scales, b_scales)", 64, 4, "float", {"sm_120a": "OMMA.SF.16864"}
    ),
}  # fmt: skip
TARGETS = {t.arch: t for t in (SM_75, SM_80, SM_86, SM_89, SM_90A, SM_100A, SM_120A)}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def kernel_source(names: list[str]) -> str:
    listed = " \\\n".join(f"X({n}, {OPERATIONS[n].sum}, {OPERATIONS[n].statement})" for n in names)
    return f"#define KERNELS(X) {listed}\n" + SOURCE.read_text()


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({"mma": kernel_source(list(OPERATIONS))})


def words(codes: Tensor, bits: int) -> Tensor:
    """Bit patterns [..., 32 / bits] as int32, the first lowest."""
    shifts = torch.arange(0, 32, bits)
    whole = ((codes.long() & ((1 << bits) - 1)) << shifts).sum(-1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)


def fragments(a: Tensor, b: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Registers [32, 4] of a [16, K] and [32, 2] of b [8, K], patterns of `bits` bits: PTX ISA, "Matrix Fragments"."""
    count, k = 32 // bits, a.shape[1]
    of_a, of_b = torch.zeros(32, 4, dtype=torch.int32), torch.zeros(32, 2, dtype=torch.int32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for half in range(k // (4 * count)):
            at = slice(half * 4 * count + t * count, half * 4 * count + (t + 1) * count)
            of_a[lane, 2 * half] = words(a[g, at], bits)
            of_a[lane, 2 * half + 1] = words(a[g + 8, at], bits)
            of_b[lane, half] = words(b[g, at], bits)
    return of_a.numpy(), of_b.numpy()


def lanes_of(matrix: Tensor) -> np.ndarray:
    """[16, 8] as [32, 4]: rows g, g + 8, columns 2 t, 2 t + 1."""
    held = matrix.reshape(2, 8, 4, 2).permute(1, 2, 0, 3)
    return held.reshape(32, 4).contiguous().numpy()


def run(kernels: HostKernels, name: str, a: Tensor, b: Tensor, c: Tensor, scales: Tensor) -> Tensor:
    of_a, of_b = fragments(a, b, OPERATIONS[name].bits)
    d = np.full((32, 4), 0x7F7F7F7F, np.int32).view(c.numpy().dtype)
    kernels.launch(name, [of_a, of_b, lanes_of(c), scales.numpy(), d], grid_x=1)
    return torch.from_numpy(d).reshape(8, 4, 2, 2).permute(2, 0, 1, 3).reshape(16, 8)


NO_SCALES = torch.zeros(32, 2, dtype=torch.int32)


@pytest.mark.parametrize("name", ["s4_k64", "u4_k64", "s4_k32", "s8", "u8"])
def test_mma__integers(kernels: HostKernels, name: str) -> None:
    made, op = torch.Generator().manual_seed(SEED), OPERATIONS[name]
    half = 1 << op.bits - 1
    lo = 0 if op.unsigned else -half
    a = torch.randint(lo, lo + 2 * half, (16, op.k), generator=made)
    b = torch.randint(-half, half, (8, op.k), generator=made)
    c = torch.randint(-(1 << 20), 1 << 20, (16, 8), generator=made, dtype=torch.int32)
    assert torch.equal(run(kernels, name, a, b, c, NO_SCALES).long(), a @ b.T + c)
    a.fill_(lo if not op.unsigned else 2 * half - 1)
    b.fill_(-half)
    assert torch.equal(run(kernels, name, a, b, c, NO_SCALES).long(), a @ b.T + c)


@pytest.mark.parametrize("name", ["bf16", "f16", "e4m3"])
def test_mma__floats(kernels: HostKernels, name: str) -> None:
    made, op = torch.Generator().manual_seed(SEED), OPERATIONS[name]
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn}[name]
    a, b = (torch.randn(rows, op.k, generator=made).to(dtype) for rows in (16, 8))
    c = torch.randn(16, 8, generator=made)
    stored = torch.int16 if op.bits == 16 else torch.uint8
    got = run(kernels, name, a.view(stored), b.view(stored), c, NO_SCALES).double()
    want = a.double() @ b.double().T + c.double()
    size = a.double().abs() @ b.double().abs().T + c.double().abs()
    assert ((got - want).abs() <= op.k * 2.0**-24 * size).all()
    # The documented order: from c, by rising k, each sum rounded.
    exact = c.clone()
    for i in range(op.k):
        exact += a[:, i, None].float() * b[None, :, i].float()
    assert torch.equal(got, exact.double())


@pytest.mark.parametrize(("name", "a_pair", "b_lane"), [("e2m1", 0, 0), ("e2m1_next", 1, 2)])
def test_mma__e2m1_scaled_by_blocks(
    kernels: HostKernels, name: str, a_pair: int, b_lane: int
) -> None:
    made = torch.Generator().manual_seed(SEED)
    a, b = (torch.randint(0, 16, (rows, 64), generator=made) for rows in (16, 8))
    scales = [(torch.rand(rows, 4, generator=made) * 4).to(torch.float8_e4m3fn) for rows in (16, 8)]
    c = torch.randn(16, 8, generator=made)
    held = torch.full((32, 2), 0x7F7F7F7F, dtype=torch.int32)  # NaNs, where no scale is read
    for row in range(16):  # row g from t = 2 a_pair, row g + 8 from the next lane
        held[row % 8 * 4 + 2 * a_pair + row // 8, 0] = words(scales[0][row].view(torch.uint8), 8)
    for column in range(8):
        held[column * 4 + b_lane, 1] = words(scales[1][column].view(torch.uint8), 8)
    got = run(kernels, name, a, b, c, held).double()
    x, y = (
        E2M1[codes].double() * s.double().repeat_interleave(16, 1)
        for codes, s in zip((a, b), scales, strict=True)
    )
    want = x @ y.T + c.double()
    assert ((got - want).abs() <= 5 * 2.0**-24 * (x.abs() @ y.abs().T + c.double().abs())).all()


@pytest.mark.parametrize("name", ["matrices", "matrices_trans"])
def test_ldmatrix(kernels: HostKernels, name: str) -> None:
    matrices = torch.arange(4 * 64, dtype=torch.int32).reshape(4, 8, 8)
    d = np.full((32, 4), -1, np.int32)
    kernels.launch(name, [matrices.to(torch.int16).numpy(), d], grid_x=1)
    seen = matrices.transpose(1, 2) if name.endswith("trans") else matrices
    pairs = seen.reshape(4, 8, 4, 2)  # [matrix, g, t, which]
    want = (pairs[..., 0] | pairs[..., 1] << 16).permute(1, 2, 0).reshape(32, 4)
    assert torch.equal(torch.from_numpy(d), want)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_120a"])
def test_mma__compiled(arch: str) -> None:
    """Every operation that the architecture has, in one kernel each: its opcode, and no emulation."""
    names = [name for name, op in OPERATIONS.items() if arch in op.sass]
    assert names
    source = kernel_source(names)
    for name in names:
        kernel = disassembled(name, source, TARGETS[arch])
        kernel.require_opcode(OPERATIONS[name].sass[arch])
        kernel.require_clean()


@pytest.mark.parametrize("target", [SM_90A, SM_120A], ids=lambda target: target.arch)
def test_mma__4_bit_integers_are_refused_where_they_are_emulated(target: CudaTarget) -> None:
    with pytest.raises(CompilationFailed, match="mma_s4_k64"):
        build_cubins({"s4_k64": kernel_source(["s4_k64"])}, target, jobs=1)
