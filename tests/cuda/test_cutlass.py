"""The tensor-core operations against CuTe, which says where NVIDIA's hardware has each element.

What these kernels compute was never seen on a GPU, and the host back end shares its authors' reading of the PTX ISA.
CuTe's layouts are another reading, one that runs. Operands are laid out as CuTe says, the host back end multiplies, and
the results are looked up as CuTe says. Skipped where nvcc or the headers of nvidia-cutlass are absent.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.host_kernels import HostKernels
from tests.cuda.test_mma import E2M1, OPERATIONS, SEED, kernel_source, words
from torch import Tensor

from svdqc.compiler.targets.cuda_toolchain import cutlass_include, find_nvcc
from svdqc.errors import SvdqcError

pytestmark = pytest.mark.xdist_group("cutlass")  # one compilation
HERE = Path(__file__).resolve().parent
Facts = dict[str, Tensor]
ADDRESS = 0x3FFF
"""Bits of a descriptor that say where the operand begins."""

MMA = {
    "s4_k64": "s4.m16n8k64",
    "u4_k64": "u4.m16n8k64",
    "s8": "s8.m16n8k32",
    "u8": "u8.m16n8k32",
    "bf16": "bf16.m16n8k16",
    "f16": "f16.m16n8k16",
    "e4m3": "e4m3.m16n8k32",
    "e2m1": "e2m1.m16n8k64",
}
"""Of test_mma.OPERATIONS. Not s4_k32: CuTe 4.2 gives lanes of its B 8 codes from k = 4 t, which would leave out
k >= 20."""
FLOATS = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What layouts.cpp tells, by name."""
    include = cutlass_include()
    if include is None:
        pytest.skip("the headers of nvidia-cutlass are absent")
    try:
        nvcc = find_nvcc()
    except SvdqcError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cute")
    # nvcc finds its own headers; what it is given is C++, compiled by the host's compiler.
    command = [nvcc.path, "-ccbin", nvcc.host, "-x", "c++", "-std=c++17", "-w", "-cudart", "none"]
    source, program, told = HERE / "cute" / "layouts.cpp", folder / "layouts", folder / "facts"
    subprocess.run([*command, "-I", include, source, "-o", program], check=True)
    subprocess.run([program, told], check=True, stdout=subprocess.DEVNULL)
    lines = [line.split() for line in told.read_text().splitlines()]
    return {name: torch.tensor([int(value) for value in values]) for name, *values in lines}


@pytest.fixture(scope="module")
def warps() -> HostKernels:
    return HostKernels({"mma": kernel_source(list(OPERATIONS))})


@pytest.fixture(scope="module")
def warpgroups() -> HostKernels:
    return HostKernels({"cutlass": (HERE / "cu" / "cutlass.cu").read_text()})


def registers(places: Tensor, matrix: Tensor, bits: int, count: int) -> np.ndarray:
    """Of 32 lanes, `count` words: elements of `matrix` [rows, columns] at places row + rows * column."""
    return words(matrix.T.flatten()[places].reshape(32, count, 32 // bits), bits).numpy()


@pytest.mark.parametrize("name", list(MMA))
def test_mma_sync__holds_elements_where_cute_does(
    facts: Facts, warps: HostKernels, name: str
) -> None:
    op, cute, made = OPERATIONS[name], MMA[name], torch.Generator().manual_seed(SEED)
    scales = np.zeros((32, 2), np.int32)
    if name in FLOATS:
        numbers = [torch.randint(-4, 5, (n, op.k), generator=made) for n in (16, 8)]
        stored = torch.int16 if op.bits == 16 else torch.uint8
        codes = [x.to(FLOATS[name]).view(stored) for x in numbers]
        values = [x.double() for x in numbers]
    else:
        codes = [torch.randint(0, 1 << op.bits, (n, op.k), generator=made) for n in (16, 8)]
        half = 1 << op.bits - 1
        values = [((x ^ half) - half).double() for x in codes]
        if op.unsigned:
            values[0] = codes[0].double()
    if name == "e2m1":
        powers = [torch.randint(-2, 3, (n, 4), generator=made) for n in (16, 8)]
        for i, (rows, part) in enumerate(((16, ".a_scale"), (8, ".b_scale"))):
            e4m3 = torch.exp2(powers[i].float()).to(torch.float8_e4m3fn).view(torch.uint8)
            places = facts[cute + part].reshape(32, 64)[:, ::16]  # the first k of each group
            scales[:, i] = words(e4m3.repeat_interleave(16, 1).T.flatten()[places], 8).numpy()
            assert places.remainder(rows).unique().numel() == rows
        values = [
            E2M1[x].double() * torch.exp2(p.double()).repeat_interleave(16, 1)
            for x, p in zip(codes, powers, strict=True)
        ]
    a = registers(facts[cute + ".a"], codes[0], op.bits, 4)
    b = registers(facts[cute + ".b"], codes[1], op.bits, 2)
    c = np.zeros((32, 4), np.int32 if op.sum == "int32_t" else np.float32)
    d = np.full_like(c, -1)
    warps.launch(name, [a, b, c, scales, d], grid_x=1)
    result = torch.full((16 * 8,), float("nan"), dtype=torch.float64)
    result[facts[cute + ".c"]] = torch.from_numpy(d).flatten().double()
    assert torch.equal(result.reshape(8, 16).T, values[0] @ values[1].T)


@pytest.mark.parametrize("columns", [64, 128, 192, 256])
def test_wgmma__agrees_with_cute(facts: Facts, warpgroups: HostKernels, columns: int) -> None:
    """Element [row, column] of the product is row + 64 column, the coordinate that CuTe counts by."""
    place = facts["wgmma.stage"].reshape(128, 128)
    a, b = torch.zeros(64, 128, dtype=torch.int8), torch.zeros(columns, 128, dtype=torch.int8)
    number = torch.arange(columns)
    a[:, 0], b[:, 0] = torch.arange(64, dtype=torch.int8), 1
    for k in (17, 18, 31):  # int8 holds 127 at most
        part = number.clamp(max=100)
        a[:, k], b[:, k] = 64, part.to(torch.int8)
        number = number - part
    assert not number.any()

    def laid_out(matrix: Tensor) -> np.ndarray:
        rows = 128 * -(-matrix.shape[0] // 128)
        padded = torch.nn.functional.pad(matrix, (0, 0, 0, rows - matrix.shape[0]))
        blocks = torch.empty(rows // 128, 128 * 128, dtype=torch.int8)
        blocks[:, place.flatten()] = padded.reshape(rows // 128, -1)
        return blocks.flatten().numpy()

    d = np.full((128, columns // 2), -1, np.int32)
    warpgroups.launch(f"wgmma_{columns}", [laid_out(a), laid_out(b), d], grid_x=1)
    assert torch.equal(torch.from_numpy(d).flatten().long(), facts[f"wgmma.{columns}"])
    # The left operand from registers.
    held = words(a[:, :32].T.flatten()[facts["wgmma.a"]].reshape(128, 4, 4), 8).numpy()
    nothing = np.zeros(64 * 128, np.int8)
    d[:] = -1
    warpgroups.launch(f"wgmma_held_{columns}", [nothing, laid_out(b), d, held], grid_x=1)
    assert torch.equal(torch.from_numpy(d).flatten().long(), facts[f"wgmma.{columns}"])


@pytest.mark.parametrize("columns", [64, 128])
def test_tcgen05__agrees_with_cute(facts: Facts, warpgroups: HostKernels, columns: int) -> None:
    made = torch.Generator().manual_seed(SEED)
    codes = [torch.randint(0, 16, (n, 64), generator=made) for n in (128, columns)]
    powers = [torch.randint(-2, 3, (n, 4), generator=made) for n in (128, columns)]
    scale_place = facts["tcgen05.scales"].reshape(128, 4)
    # 32 bytes of k: two core matrices; in a stage of 128 bytes row groups are four times as far apart.
    stage = facts["wgmma.stage"].reshape(128, 128)[:, :32]
    place = stage - stage // 1024 * (1024 - 256)
    buffers = []
    for x in codes:
        packed = torch.zeros(128, 32, dtype=torch.uint8)
        packed[: x.shape[0]] = (x[:, 0::2] | x[:, 1::2] << 4).to(torch.uint8)
        block = torch.empty(128 * 32, dtype=torch.uint8)
        block[place.flatten()] = packed.flatten()
        buffers.append(block.numpy())
    for p in powers:
        held = torch.full((512,), 0x7F, dtype=torch.uint8)  # NaN, where no row is
        e4m3 = torch.exp2(p.float()).to(torch.float8_e4m3fn).view(torch.uint8)
        held[scale_place[: p.shape[0]].flatten()] = e4m3.flatten()
        buffers.append(held.numpy())
    d = np.full((4, 32, 2, columns // 32, 16), np.nan, np.float32)
    warpgroups.launch(f"tcgen05_{columns}", [*buffers, d], grid_x=1)
    sums = torch.full((4, 2, columns // 32, 32 * 16), float("nan"))  # warp, half, 32 columns
    sums[..., facts["tcgen05.load.4"]] = torch.from_numpy(d).permute(0, 2, 3, 1, 4).flatten(3)
    got = sums.reshape(4, 2, -1, 32, 16).permute(0, 1, 4, 2, 3).reshape(128, columns)
    x, y = (
        E2M1[c].double() * torch.exp2(p.double()).repeat_interleave(16, 1)
        for c, p in zip(codes, powers, strict=True)
    )
    assert torch.equal(got.double(), x @ y.T)


def test_descriptors__are_those_of_cute(facts: Facts, warpgroups: HostKernels) -> None:
    found = np.zeros(4, np.uint64)
    warpgroups.launch("descriptors", [found], grid_x=1)
    ours = [int(word) for word in found]
    assert ours[0] & ~ADDRESS == int(facts["wgmma.operand"])
    assert ours[1] & ~ADDRESS == int(facts["tcgen05.operand"])
    assert ours[2:] == [int(facts["tcgen05.e2m1.64"]), int(facts["tcgen05.e2m1.128"])]
