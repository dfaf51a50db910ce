"""attention_mma.h on the host back end against attention in f64, and what ptxas makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.host_kernels import SCHEDULES, HostKernels, guarded, margins_untouched
from tests.cuda.sass import disassembled

from svdqc.compiler.targets.cuda import SM_75, SM_80, SM_86, SM_90A, SM_120A, CudaTarget

SOURCE = Path(__file__).resolve().parent / "cu" / "attention_mma.cu"
SEED = 9
ERROR = {1: 2.0**-10, 2: 2.0**-19}
"""Of attention_mma.h's comment, by PARTS."""


@dataclass(frozen=True)
class Shape:
    head_dim: int
    v_dim: int
    queries: int = 64
    keys: int = 32
    parts: int = 2
    masked: bool = False

    @property
    def name(self) -> str:
        sizes = f"{self.head_dim}_{self.v_dim}_{self.queries}x{self.keys}_p{self.parts}"
        return f"attention_{sizes}{'_masked' * self.masked}"


MAIN = Shape(64, 64)
MASKED = Shape(64, 64, masked=True)
SHAPES = (
    MAIN,
    MASKED,
    Shape(64, 64, parts=1),
    Shape(32, 32, keys=64),
    Shape(40, 40),
    Shape(72, 24, queries=32),
    Shape(96, 96, keys=16),
    Shape(128, 128),
    Shape(160, 160, queries=32),
    Shape(256, 256, queries=32, keys=16),
    Shape(7, 5, queries=16, keys=16),
)


def kernel_source(shapes: tuple[Shape, ...]) -> str:
    lines = ""
    for s in shapes:
        sizes = f"{s.head_dim}, {s.v_dim}, {s.queries}, {s.keys}, {s.parts}"
        lines += f" X({s.name}, {sizes}, {str(s.masked).lower()})"
    return f"#define KERNELS(X) {lines}\n" + SOURCE.read_text()


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({"attention_mma": kernel_source(SHAPES)})


def check(
    kernels: HostKernels,
    shape: Shape,
    q_len: int,
    kv_len: int,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    spread: float = 0.0,
    transposed_v: bool = False,
    schedule: int = 0,
) -> None:
    """spread: decades over which the magnitudes of keys (downwards) and values (upwards) change along the sequence."""
    made = torch.Generator().manual_seed(hash((SEED, shape.name, q_len, kv_len)) % (1 << 31))
    q = torch.randn(q_len, shape.head_dim + 3, generator=made)
    k = torch.randn(kv_len, shape.head_dim + 1, generator=made)
    v = torch.randn(kv_len, shape.v_dim, generator=made)
    decades = spread * torch.arange(kv_len)[:, None] / kv_len
    k, v = k * 10.0**-decades, v * 10.0**decades
    scale = shape.head_dim**-0.5
    held = v.T.contiguous() if transposed_v else v
    v_row, v_col = (1, kv_len) if transposed_v else (shape.v_dim, 1)
    of_bytes = mask is not None and mask.dtype == torch.bool
    kind = 0 if mask is None else 1 if of_bytes else 2
    given = torch.zeros(1) if mask is None else mask
    out, margins = guarded(q_len * shape.v_dim, np.float32)
    bits = int(np.float32(scale).view(np.uint32))
    buffers = [q.numpy(), k.numpy(), held.numpy(), given.numpy(), out]
    kernels.launch(
        shape.name,
        buffers,
        [
            q_len,
            kv_len,
            shape.head_dim + 3,
            shape.head_dim + 1,
            v_row,
            v_col,
            kv_len,
            kind,
            causal,
            bits,
        ],
        grid_x=-(-q_len // shape.queries),
        schedule=schedule,
    )
    assert margins_untouched(out, margins)

    q, k = q[:, : shape.head_dim].double(), k[:, : shape.head_dim].double()
    scores = q @ k.T * float(np.float32(scale))
    if causal:
        scores = scores.masked_fill(~torch.ones(q_len, kv_len).tril().bool(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if of_bytes else scores + mask.double()
    want = torch.softmax(scores, -1).nan_to_num(0.0) @ v.double()
    reach = q.norm(dim=1).max() * k.norm(dim=1).max() * scale
    if mask is not None and not of_bytes:
        reach = reach + mask[mask.isfinite()].abs().max()
    bound = ERROR[shape.parts] * (1 + reach) * v.abs().max()
    miss = (torch.from_numpy(out).reshape(q_len, shape.v_dim).double() - want).abs().max()
    assert miss <= bound, (SEED, float(miss), float(bound))
    assert bound < 0.05 * want.abs().max() or shape.parts == 1


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_attention__shapes(kernels: HostKernels, shape: Shape) -> None:
    check(kernels, shape, shape.queries + 5, 2 * shape.keys + 3)


@pytest.mark.parametrize("q_len", [1, 15, 16, 17, 63, 64, 65])
def test_attention__query_tails(kernels: HostKernels, q_len: int) -> None:
    check(kernels, MAIN, q_len, 40)


@pytest.mark.parametrize("kv_len", [1, 2, 31, 32, 33, 77, 96])
def test_attention__key_tails(kernels: HostKernels, kv_len: int) -> None:
    check(kernels, MAIN, 20, kv_len)


@pytest.mark.parametrize("kv_len", [31, 64, 65])
def test_attention__masks(kernels: HostKernels, kv_len: int) -> None:
    made = torch.Generator().manual_seed(SEED)
    seen = torch.rand(65, kv_len, generator=made) > 0.5
    seen[3] = False  # a query that sees nothing
    check(kernels, MASKED, 65, kv_len, mask=seen)
    added = torch.randn(65, kv_len, generator=made).masked_fill(~seen, -torch.inf)
    check(kernels, MASKED, 65, kv_len, mask=added)


def test_attention__causal(kernels: HostKernels) -> None:
    check(kernels, MAIN, 70, 70, causal=True)
    check(kernels, MAIN, 70, 33, causal=True)


def test_attention__values_grow_along_the_keys(kernels: HostKernels) -> None:
    check(kernels, MAIN, 20, 100, spread=8.0)


def test_attention__any_strides(kernels: HostKernels) -> None:
    check(kernels, MAIN, 20, 40, transposed_v=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_attention__any_order_of_threads(kernels: HostKernels, schedule: int) -> None:
    check(kernels, MAIN, 65, 100, schedule=schedule)


GATED = [
    (SM_75, Shape(64, 64, keys=16), "HMMA.1688"),
    (SM_80, MASKED, "HMMA.16816"),
    (SM_80, Shape(128, 128, parts=1), "HMMA.16816"),
    (SM_86, Shape(128, 128), "HMMA.16816"),
    (SM_90A, Shape(128, 128), "HMMA.16816"),
    (SM_120A, Shape(256, 256, queries=32, keys=16), "HMMA.16816"),
]


@pytest.mark.parametrize(("target", "shape", "opcode"), GATED)
def test_attention__sass(target: CudaTarget, shape: Shape, opcode: str) -> None:
    sass = disassembled(shape.name, kernel_source((shape,)), target)
    sass.require_opcode(opcode)
    sass.require_clean()
    print(
        f"{shape.name} {target.arch}: {sass.inner_loop(opcode).per_op:.2f} instructions per {opcode}"
    )
