"""The CUDA back end: a task is a CTA, scratch is shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svdqc.compiler.codegen.cuda.blocks.plan import row_budget
from svdqc.compiler.codegen.cuda.blocks.table import blocks, describe
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import math_of
from svdqc.compiler.codegen.cuda.statements import CudaStatements
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import Scratch, StatementPrinter
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.plan.verify import MAX_PARAM_WORDS
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.folders import cuda_include_folders


@dataclass(frozen=True)
class CudaBackend:
    """Kernels for one architecture, within its limits."""

    target: CudaTarget

    arguments = "args."
    packed_codes = True
    param_words = MAX_PARAM_WORDS

    def blocks(self, program: RowProgram) -> Sequence[Block]:
        return blocks(program, self.target)

    def include_folders(self) -> Sequence[Path]:
        return cuda_include_folders()

    def printer(
        self, program: RowProgram, memory: Memory, params: Params, scratch: Scratch, block: Block
    ) -> StatementPrinter:
        return CudaStatements(program, memory, params, scratch, block, math_of(self.target))

    def describe(
        self, program: RowProgram, printer: StatementPrinter, params: Params, block: Block
    ) -> AnchorCode:
        return describe(self.target, program, printer, params, block)

    def shared_limit(self) -> int | None:
        return self.target.shared_bytes_per_cta

    def row_budget(self, region: Region) -> int | None:
        return row_budget(region, self.target)
