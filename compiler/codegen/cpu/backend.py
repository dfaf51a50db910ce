"""The CPU back end: C++ over blocks of rows, for every instruction set at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from svdqc.compiler.codegen.cpu.blocks.candidates import blocks
from svdqc.compiler.codegen.cpu.blocks.table import describe
from svdqc.compiler.codegen.cpu.statements import CpuStatements
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import Scratch, StatementPrinter
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.targets.folders import include_folders


class CpuBackend:
    arguments = "args->"
    packed_codes = False
    param_words = 0

    def blocks(self, program: RowProgram) -> Iterable[Block]:
        return blocks(program)

    def include_folders(self) -> Sequence[Path]:
        return include_folders()

    def printer(
        self, program: RowProgram, memory: Memory, params: Params, scratch: Scratch, block: Block
    ) -> StatementPrinter:
        return CpuStatements(program, memory, params, scratch, block.rows)

    def describe(
        self, program: RowProgram, printer: StatementPrinter, params: Params, block: Block
    ) -> AnchorCode:
        return describe(program, printer, params, block)

    def shared_limit(self) -> int | None:
        return None

    def row_budget(self, region: Region) -> int | None:
        return None
