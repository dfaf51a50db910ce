"""What compiled kernels look like: the instructions and resources of a cubin, and the gates that hold them.

sass = disassembled("gemm", source, SM_80)        # skips the test where nvcc or a disassembler is absent
sass.require_clean(max_registers=128, max_shared_bytes=0)
sass.require_opcode("IMMA.16864.S4")
loop = sass.inner_loop("IMMA")                     # instructions per tensor-core operation
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.cuda_build import build_cubins, cubin_job
from svdqc.compiler.targets.cuda_toolchain import find_nvcc
from svdqc.errors import SvdqcError

# Instructions that read or write thread-local memory: spilled registers, or arrays indexed by a variable.
LOCAL_MEMORY = ("LDL", "STL")
EXCHANGES = {"SHFL", "VOTE", "WARPSYNC", "BAR"}
LONGEST_STUB = 8


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction: `@!P0 BRA 0x5f0` has address 0x…, opcode "BRA", text "@!P0 BRA 0x5f0"."""

    address: int
    opcode: str
    text: str

    @property
    def branch_target(self) -> int | None:
        found = re.search(r"\bBRA\S*\s.*?0x([0-9a-f]+)", self.text)
        return int(found.group(1), 16) if found else None


@dataclass(frozen=True)
class Loop:
    """An innermost loop; ops: how many of its instructions are the operation asked for."""

    instructions: tuple[Instruction, ...]
    ops: int

    @property
    def per_op(self) -> float:
        """Instructions issued per operation, itself included."""
        return len(self.instructions) / self.ops

    def opcodes(self) -> Counter[str]:
        """How often each opcode occurs, without its modifiers."""
        return Counter(instruction.opcode.partition(".")[0] for instruction in self.instructions)


@dataclass(frozen=True)
class Sass:
    """A kernel as compiled. Sizes in bytes, registers per thread; `shared_bytes` is static shared memory."""

    name: str
    arch: str
    instructions: tuple[Instruction, ...]
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_bytes: int

    def count(self, opcode: str) -> int:
        """Instructions whose opcode begins with `opcode`, whole parts of it: "IMMA.16864" but not "IMMA.1"."""
        return sum(_is(instruction.opcode, opcode) for instruction in self.instructions)

    def require_opcode(self, opcode: str) -> None:
        present = sorted({instruction.opcode for instruction in self.instructions})
        assert self.count(opcode) > 0, f"{self.name} {self.arch}: no {opcode} in {present}"

    def require_clean(self, max_registers: int = 255) -> None:
        """No emulated operation (a call), no spill, no local memory, registers within the bound."""
        where = f"{self.name} {self.arch}"
        calls = [call.text for call in self.calls()]
        assert not calls, f"{where}: emulation, division or functions not inlined: {calls[:4]}"
        local = [i.text for i in self.instructions if i.opcode.startswith(LOCAL_MEMORY)]
        assert not local, f"{where}: {len(local)} accesses of local memory: {local[:4]}"
        assert self.local_bytes == 0, f"{where}: {self.local_bytes} bytes of local memory"
        assert self.stack_bytes == 0, f"{where}: {self.stack_bytes} bytes of stack"
        assert self.registers <= max_registers, f"{where}: {self.registers} registers"

    def calls(self) -> list[Instruction]:
        """Calls of functions: not of stubs in which ptxas lets lanes meet before one exchange, or traps (it checks how
        tensor memory is allocated), and not jumps to the kernel's own end (a loop's exit may be spelled as a call that
        never returns)."""
        place = {instruction.address: i for i, instruction in enumerate(self.instructions)}
        found = []
        for call in self.instructions:
            if not call.opcode.startswith(("CALL", "JCAL")):
                continue
            target = re.search(r"0x([0-9a-f]+)$", call.text)
            begin = place.get(int(target.group(1), 16)) if target else None
            body = self.instructions[begin:] if begin is not None else ()
            names = [instruction.opcode.partition(".")[0] for instruction in body]
            end = next((i for i, name in enumerate(names) if name in ("RET", "EXIT")), len(names))
            returns = names[end : end + 1] == ["RET"]
            stub = end < LONGEST_STUB and set(names[:end]) & (EXCHANGES | {"BPT"})
            if begin is None or (returns and not stub):
                found.append(call)
        return found

    def inner_loop(self, opcode: str) -> Loop:
        """The innermost loop with most operations `opcode`; without a loop, everything from the first to the last."""
        loops = [loop for loop in self._loops() if _ops(loop, opcode)]
        innermost = [
            loop
            for loop in loops
            if not any(set(other) < set(loop) and _ops(other, opcode) for other in loops)
        ]
        if innermost:
            best = max(innermost, key=lambda loop: _ops(loop, opcode))
        else:
            places = [i for i, x in enumerate(self.instructions) if _is(x.opcode, opcode)]
            assert places, f"{self.name} {self.arch}: no {opcode}"
            best = self.instructions[places[0] : places[-1] + 1]
        return Loop(best, _ops(best, opcode))

    def _loops(self) -> list[tuple[Instruction, ...]]:
        """Runs of instructions from the target of a backward branch to the branch."""
        place = {instruction.address: i for i, instruction in enumerate(self.instructions)}
        found = []
        for i, instruction in enumerate(self.instructions):
            target = instruction.branch_target
            if target is not None and target < instruction.address and target in place:
                found.append(self.instructions[place[target] : i + 1])
        return found


def _is(opcode: str, prefix: str) -> bool:
    return opcode == prefix or opcode.startswith(prefix + ".")


def _ops(instructions: tuple[Instruction, ...], opcode: str) -> int:
    return sum(_is(instruction.opcode, opcode) for instruction in instructions)


def disassembled(name: str, source: str, target: CudaTarget) -> Sass:
    """Compile one kernel and look at it; skips the test where the tools for that are absent."""
    require_nvcc()
    tool = require_disassembler()
    cubin = build_cubins({name: source}, target, jobs=1)[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run(
            [str(tool), "-sass", "-res-usage", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    return next(kernel for kernel in parse(done.stdout, target.arch) if kernel.name == name)


def compiler_remarks(source: str, target: CudaTarget) -> list[str]:
    """What ptxas says of a kernel without rejecting it: "wgmma serialized", "setmaxnreg ignored". Compiles it anew."""
    require_nvcc()
    job = cubin_job("kernel", source, target, find_nvcc())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / job.source_name).write_text(source)
        done = subprocess.run(job.command, cwd=folder, capture_output=True, text=True, check=True)
    return [line for line in done.stderr.splitlines() if line.strip()]


def parse(text: str, arch: str) -> list[Sass]:
    """The kernels in what `cuobjdump -sass -res-usage` prints."""
    usage = {
        found.group(1): {key: int(value) for key, value in _USAGE.findall(found.group(2))}
        for found in re.finditer(r"Function (\S+):\s*\n\s*(REG:.*)", text)
    }
    kernels = []
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        name, _, body = part.partition("\n")
        kernels.append(
            Sass(
                name.strip(),
                arch,
                tuple(
                    Instruction(int(address, 16), _opcode(code), code.strip())
                    for address, code in _INSTRUCTION.findall(body)
                ),
                usage[name.strip()]["REG"],
                usage[name.strip()]["STACK"],
                usage[name.strip()]["SHARED"],
                usage[name.strip()]["LOCAL"],
            )
        )
    return kernels


_USAGE = re.compile(r"(\w+):(\d+)")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;\n]+?)\s*;")


def _opcode(code: str) -> str:
    words = [word for word in code.split() if not word.startswith("@") and word not in "{}"]
    return words[0]


def require_nvcc() -> None:
    """Skip the test where there is no nvcc."""
    try:
        find_nvcc()
    except SvdqcError as error:
        pytest.skip(f"nvcc: {error.found}")


def require_disassembler() -> Path:
    """cuobjdump, from the CUDA toolkit or pip; skips the test where there is none."""
    tool = find_disassembler()
    if tool is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return tool


@cache
def find_disassembler() -> Path | None:
    """pip's cuobjdump with pip's nvdisasm beside it, else that of a CUDA toolkit."""
    try:
        files = importlib.metadata.distribution("nvidia-cuda-cuobjdump").files or ()
        importlib.metadata.distribution("nvidia-cuda-nvdisasm")
        for file in files:
            if file.name == "cuobjdump":
                return Path(str(file.locate()))
    except importlib.metadata.PackageNotFoundError:
        pass
    found = shutil.which("cuobjdump") if shutil.which("nvdisasm") else None
    return Path(found) if found else None
