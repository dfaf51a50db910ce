"""gemm_float.h on the host back end: f32 activations times float weights, within the bound of its split products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.host_kernels import SCHEDULES, HostKernels, guarded, margins_untouched

from svdqc.compiler.targets.cuda_layouts import LAYOUTS

SOURCE = Path(__file__).resolve().parent / "cu" / "gemm_float.cu"
SEED = 6
EPS = 2.0**-24
SMALL = (64, 64)
TILE = "64, 64, 2, 2, 3, 1"  # BM, BN, warps along rows and columns, stages, tiles of a slab
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PRODUCT = {"bf16": 2.0**-17, "f32": 2.0**-16}
"""What splitting into bf16 halves costs a product of an f32 and a weight of each type (f16: exact in two halves)."""
PRODUCT["f16"] = PRODUCT["bf16"]
KINDS = [("Bf16Math", w, "Vector") for w in DTYPES] + [("F16Math", w, "Vector") for w in DTYPES]
KINDS += [("Bf16Math", "bf16", "Single"), ("Bf16Math", "bf16", "Element")]


def _name(math: str, weight: str, source: str) -> str:
    return f"{math}_{weight}_{source}"


def kernel_source(kinds: list[tuple[str, str, str]], tile: str, min_ctas: int = 1) -> str:
    lines = " ".join(
        f"X({_name(*kind)}, {kind[0]}, {kind[1].upper()}, {kind[2]}, {min_ctas}, {tile})"
        for kind in kinds
    )
    return f"#define KERNELS(X) {lines}\n" + SOURCE.read_text()


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({"gemm_float": kernel_source(KINDS, TILE)})


@pytest.fixture(scope="module")
def full() -> HostKernels:
    """The tile of large products."""
    return HostKernels({"gemm_float_full": kernel_source(KINDS[1:2], "128, 128, 2, 4, 3, 2")})


def check(
    kernels: HostKernels,
    kind: tuple[str, str, str],
    m: int,
    n: int,
    k: int,
    with_bias: bool = True,
    spread: float = 0.0,
    tile: tuple[int, int] = SMALL,
    schedule: int = 0,
) -> None:
    """One product against f64. spread: decades over which the magnitudes of x and w vary, opposed, every 16 k."""
    math, weight, source = kind
    made = torch.Generator().manual_seed(hash((SEED, m, n, k)) % (1 << 31))
    steps = 10.0 ** (spread * (torch.rand(-(-k // 16), generator=made) - 0.5))
    sizes = steps.repeat_interleave(16)[:k]
    x = torch.randn(m, k, generator=made) * sizes
    w = (torch.randn(n, k, generator=made) / sizes).to(DTYPES[weight])
    bias = torch.randn(n, generator=made) if with_bias else torch.zeros(n)
    ldx = k
    given = x
    if source == "Single":  # rows that begin anywhere
        ldx = k + 3
        given = torch.nn.functional.pad(x, (0, 3), value=float("nan"))
    elif source == "Element":  # f16, transposed
        x, ldx = x.half().float(), m
        given = x.half().T.contiguous()
    out, margins = guarded(m * (n + 3), np.float32)
    packed = LAYOUTS[f"{weight}_mma"].pack(w)
    words = packed.view(torch.int16) if packed.dtype != torch.float32 else packed
    buffers = [given.numpy(), words.numpy(), bias.numpy(), out]
    tasks = -(-m // tile[0]) * -(-n // tile[1])
    kernels.launch(_name(*kind), buffers, [m, n, k, ldx, n + 3], grid_x=tasks, schedule=schedule)
    assert margins_untouched(out, margins)
    rows = torch.from_numpy(out).reshape(m, n + 3)
    assert rows[:, n:].isnan().all()

    want = x.double() @ w.double().T + bias.double()
    size = x.double().abs() @ w.double().abs().T
    bound = EPS * (3 * k + 2) * (size + bias.double().abs())
    if math == "Bf16Math":
        bound += PRODUCT[weight] * size
    else:  # relative to the largest of 16 k
        padded = -(-k // 16) * 16 - k
        largest = [
            torch.nn.functional.pad(v.double().abs(), (0, padded)).reshape(len(v), -1, 16).amax(-1)
            for v in (x, w)
        ]
        bound += 2.0**-20 * 16 * (largest[0] @ largest[1].T)
    miss = (rows[:, :n].double() - want).abs()
    assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
    assert bound.max() < 1e-2 * want.abs().max()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: _name(*kind))
def test_gemm_float__kinds(kernels: HostKernels, kind: tuple[str, str, str]) -> None:
    check(kernels, kind, 65, 65, 132)


@pytest.mark.parametrize("kind", KINDS[:6], ids=lambda kind: _name(*kind))
def test_gemm_float__magnitudes_far_apart(kernels: HostKernels, kind: tuple[str, str, str]) -> None:
    check(kernels, kind, 16, 32, 64, spread=12.0)


@pytest.mark.parametrize("m", [1, 15, 16, 17, 63, 64, 65])
def test_gemm_float__m_tails(kernels: HostKernels, m: int) -> None:
    check(kernels, KINDS[0], m, 40, 96)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 63, 64, 65])
def test_gemm_float__n_tails(kernels: HostKernels, n: int) -> None:
    check(kernels, KINDS[0], 20, n, 96, with_bias=n % 2 == 0)


@pytest.mark.parametrize("k", [1, 5, 15, 16, 17, 31, 33, 64, 100])
@pytest.mark.parametrize("source", ["Single", "Element"])
def test_gemm_float__k_tails(kernels: HostKernels, k: int, source: str) -> None:
    check(kernels, ("Bf16Math", "bf16", source), 20, 40, k)


@pytest.mark.parametrize(
    ("n", "k"), [(3072, 64), (64, 3072), (1152, 256), (3072, 768), (320, 1280)]
)
def test_gemm_float__model_widths(full: HostKernels, n: int, k: int) -> None:
    """Layers that models keep: FLUX's first and last, PixArt's and SDXL's embeddings."""
    check(full, KINDS[1], 17, n, k, tile=(128, 128))


@pytest.mark.parametrize("m", [127, 128, 129])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gemm_float__full_tile(full: HostKernels, m: int, schedule: int) -> None:
    check(full, KINDS[1], m, m + 1, 80, tile=(128, 128), schedule=schedule)
