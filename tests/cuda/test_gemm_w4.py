"""gemm_w4.h: few rows times 4-bit weights, on the host back end against the reference, and as compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.host_kernels import HostKernels, guarded, margins_untouched
from tests.cuda.sass import disassembled

from svdqc.compiler.quantize.reference import decode_weight
from svdqc.compiler.targets.cuda import SM_75, SM_80, SM_90A, CudaTarget
from svdqc.compiler.targets.cuda_layouts import LAYOUTS

SOURCE = Path(__file__).resolve().parent / "cu" / "gemm_w4.cu"
SEED = 7
EPS = 2.0**-24
KINDS = [
    ("Bf16Math", "s4", 64, 1),
    ("Bf16Math", "s4", 32, 2),
    ("Bf16Math", "s4", 128, 4),
    ("Bf16Math", "nf4", 64, 1),
    ("F16Math", "s4", 64, 1),
    ("F16Math", "nf4", 64, 2),
]
Kind = tuple[str, str, int, int]


def _name(kind: Kind) -> str:
    return "_".join(map(str, kind))


def kernel_source(kinds: list[Kind]) -> str:
    listed = " ".join(f"X({_name(k)}, {k[0]}, {k[1].upper()}, {k[2]}, {k[3]})" for k in kinds)
    return f"#define KERNELS(X) {listed}\n" + SOURCE.read_text()


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({"gemm_w4": kernel_source(KINDS)})


def check(kernels: HostKernels, kind: Kind, m: int, n: int, k: int) -> None:
    math, form, group, row_tiles = kind
    made = torch.Generator().manual_seed(hash((SEED, m, n, k)) % (1 << 31))
    lo, hi = (0, 15) if form == "nf4" else (-8, 7)
    codes = torch.randint(lo, hi + 1, (n, k), generator=made, dtype=torch.int8)
    scale = torch.randn(n, k // group, generator=made).bfloat16()
    x, bias = torch.randn(m, k, generator=made), torch.randn(n, generator=made)
    out, margins = guarded(m * n, np.float32)
    buffers = [
        x.numpy(),
        LAYOUTS[f"{form}_rows"].pack(codes).numpy(),
        LAYOUTS["scale_rows"].pack(scale).view(torch.int16).numpy(),
        bias.numpy(),
        out,
    ]
    kernels.launch(_name(kind), buffers, [m, n, k], grid_x=-(-m // (8 * row_tiles)) * -(-n // 32))
    assert margins_untouched(out, margins)

    w = decode_weight(codes, scale, form).double()
    want = x.double() @ w.T + bias.double()
    size = x.double().abs() @ w.abs().T
    # Sums of 64 k by three 16-bit products, then over blocks and warps; x keeps 16 bits (22 with a unit per 16 k).
    bound = EPS * (3 * 64 + k // 64 + 12) * (size + bias.double().abs())
    largest = torch.nn.functional.pad(x.double().abs(), (0, -k % 16)).reshape(m, -1, 16).amax(-1)
    if math == "Bf16Math":
        bound += (2.0**-17 if form == "s4" else 2.0**-16) * size
    else:
        tops = torch.nn.functional.pad(w.abs(), (0, -k % 16)).reshape(n, -1, 16).amax(-1)
        bound += 2.0**-20 * 16 * (largest @ tops.T)
    miss = (torch.from_numpy(out).reshape(m, n).double() - want).abs()
    assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
    assert bound.max() < 1e-2 * want.abs().max()


@pytest.mark.parametrize("kind", KINDS, ids=_name)
def test_gemm_w4__kinds(kernels: HostKernels, kind: Kind) -> None:
    check(kernels, kind, 9, 40, 640)


@pytest.mark.parametrize("m", [1, 7, 8, 9])
@pytest.mark.parametrize("n", [1, 16, 31, 32, 33])
def test_gemm_w4__tails(kernels: HostKernels, m: int, n: int) -> None:
    check(kernels, KINDS[0], m, n, 192)


@pytest.mark.parametrize(
    ("kind", "k"), [(KINDS[0], 64), (KINDS[1], 32), (KINDS[1], 96), (KINDS[2], 128)]
)
def test_gemm_w4__one_group(kernels: HostKernels, kind: Kind, k: int) -> None:
    check(kernels, kind, 2, 32, k)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 18432, 3072), (2, 6912, 1152), (2, 1280, 5120)])
def test_gemm_w4__model_widths(kernels: HostKernels, m: int, n: int, k: int) -> None:
    """Modulation of FLUX and PixArt, the time embedding of SDXL."""
    check(kernels, KINDS[0], m, n, k)


@pytest.mark.parametrize("target", [SM_75, SM_80, SM_90A], ids=lambda target: target.arch)
def test_gemm_w4__instructions(target: CudaTarget) -> None:
    kind = ("F16Math" if target is SM_75 else "Bf16Math", "s4", 64, 1)
    kernel = disassembled(_name(kind), kernel_source([kind]), target)
    kernel.require_clean(max_registers=168)
    kernel.require_opcode("HMMA")
    kernel.require_opcode("LDG.E.128")
