"""Products on tensor cores as compiled for each architecture: the instruction that must be there, nothing emulated or
spilled, and what the inner loop issues for each."""

from __future__ import annotations

import pytest
from tests.cuda.conftest import GateLoop
from tests.cuda.sass import Sass, disassembled
from tests.cuda.test_gemm_float import kernel_source
from tests.cuda.test_gemm_int import KINDS, kernel_text

from svdqc.compiler.codegen.cuda.tiles import Coded, Floats, Numbers, choose_tile
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

FLUX = (4608, 9216, 3072)
# Instructions that an SM can issue while its tensor cores are at one operation: clocks of the operation (rates in
# codegen/cuda/tiles.py) by one issue a clock and quarter. sm_80's float lanes take two clocks for each of the 8 fmas
# that scale groups of 64, so twice its 8 clocks.
S4 = {SM_75: ("IMMA.8832.S4.S4", 4.0), SM_80: ("IMMA.16864.S4.S4", 16.0)}
S4 |= {SM_86: ("IMMA.16864.S4.S4", 16.0), SM_89: ("IMMA.16864.S4.S4", 16.0)}
# Widened to bytes an operation is half of a group: 4 fmas, 2.5 to widen, and 2 of scales and loads. GeForce cards take
# 16 clocks for one.
WIDENED = dict.fromkeys((SM_90A, SM_100A), ("IMMA.16832.S8.S8", 10.0))
WIDENED |= {SM_120A: ("IMMA.16832.S8.S8", 16.0)}


def compiled_int(kind: str, group: int, target: CudaTarget) -> Sass:
    """The kernel that the compiler would choose for a FLUX layer, from the tests' source."""
    of_kind = KINDS[kind]
    product = Coded(of_kind.x_bits, of_kind.w_bits, group, of_kind.codes.startswith("S4<"))
    if kind.startswith("e4m3"):
        product = Numbers(halves=kind == "e4m3_halves")
    tile = choose_tile(target, product, *FLUX)
    sizes = tile.cpp.removeprefix("svdq::GemmTile<").removesuffix(">")
    name = f"gemm_{kind}_g{group}"
    math = "Bf16Math" if target.has_async_copies else "F16Math"
    kernel = f"{name}, {of_kind.codes}, {group}, {product.bk}, {sizes}"
    return disassembled(name, kernel_text(math, [kernel]), target)


@pytest.mark.parametrize("target", [*S4, *WIDENED], ids=lambda target: target.arch)
def test_w4a4__instructions(target: CudaTarget, gate_loop: GateLoop) -> None:
    kind = "s4" if target in S4 else "s4_widened"
    opcode, budget = (S4 | WIDENED)[target]
    kernel = compiled_int(kind, 64, target)
    kernel.require_opcode(opcode)
    kernel.require_clean()
    gate_loop(kernel, opcode, budget)


@pytest.mark.parametrize(("kind", "budget"), [("s8", 2.5), ("s8s4_64", 5.0)])
def test_8_bit_activations__instructions(kind: str, budget: float, gate_loop: GateLoop) -> None:
    """Sums of all of k are integers to the end. A column's 32 k of W4A8 take 7 instructions to be widened, for as many
    operations as a warp has tiles of rows."""
    kernel = compiled_int(kind, 0, SM_80)
    kernel.require_clean()
    gate_loop(kernel, "IMMA.16832.S8.S8", budget)


@pytest.mark.parametrize(
    ("target", "kind", "opcode", "budget"),
    [
        # A QMMA takes 16 clocks of its quarter of an SM at the rate of s8 (8 with sums in f16, which are not enough).
        (SM_89, "e4m3", "QMMA.16832.F32.E4M3.E4M3", 16.0),
        (SM_120A, "e4m3", "QMMA.16832.F32.E4M3.E4M3", 16.0),
        # An HMMA takes 8 clocks; without an instruction four numbers take 7 to become halves, which is more.
        (SM_75, "e4m3_halves", "HMMA.1688.F32", 8.0),
        (SM_80, "e4m3_halves", "HMMA.16816.F32", 9.5),
        (SM_90A, "e4m3_halves", "HMMA.16816.F32", 8.0),
        (SM_100A, "e4m3_halves", "HMMA.16816.F32", 8.0),
    ],
    ids=lambda value: value.arch if isinstance(value, CudaTarget) else "",
)
def test_fp8__instructions(
    target: CudaTarget, kind: str, opcode: str, budget: float, gate_loop: GateLoop
) -> None:
    kernel = compiled_int(kind, 0, target)
    kernel.require_opcode(opcode)
    kernel.require_clean()
    gate_loop(kernel, opcode, budget)


@pytest.mark.parametrize("target", [SM_75, SM_80], ids=lambda target: target.arch)
def test_float_linear__instructions(target: CudaTarget, gate_loop: GateLoop) -> None:
    turing = target is SM_75
    tile = choose_tile(target, Floats(2, 2), *FLUX)
    sizes = tile.cpp.removeprefix("svdq::GemmTile<").removesuffix(">")
    kind = ("F16Math" if turing else "Bf16Math", "bf16", "Vector")
    kernel = disassembled("_".join(kind), kernel_source([kind], sizes), target)
    opcode = "HMMA.1688.F32" if turing else "HMMA.16816.F32.BF16"
    kernel.require_opcode(opcode)
    kernel.require_clean()
    # Splitting 16 x 16 of x takes 24 instructions for every 2 x 4 operations of its row of tiles. Turing converts one
    # float at a time, splits weights too, and scales every 16 k.
    gate_loop(kernel, opcode, 13.0 if turing else 6.0)
