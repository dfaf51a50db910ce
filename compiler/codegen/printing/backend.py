"""What a back end adds to the shared printers: blocks, anchors, statements, and the frame of a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import Scratch, StatementPrinter
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr


@dataclass(frozen=True)
class Block:
    """Rows per task; columns per task where the anchor is split along them, else 0; a GPU block's threads, else 0.

    helpers  threads beside them, which feed the anchor and compute no statements
    slab     rows that statements see at a time, where those are fewer
    tile     what the anchor's own code is instantiated with, if that is a choice: a frozen dataclass of integers
    """

    rows: int
    columns: int = 0
    threads: int = 0
    helpers: int = 0
    slab: int = 0
    tile: Any = None

    def parameters(self) -> dict[str, int]:
        """Every number of the choice by name; blocks are equal where these are."""
        own = {"rows": self.rows, "columns": self.columns, "threads": self.threads}
        inner = {} if self.tile is None else asdict(self.tile)
        return {**own, **{f"tile_{name}": value for name, value in inner.items()}}


@dataclass
class AnchorCode:
    """An anchor's part of a kernel: the template and its parameters, and lines around the anchor's own code.

    most_ctas  that compute the tasks, each one after another; None: a CTA for each
    """

    template: str
    context: dict[str, Any]
    num_tasks: IntExpr
    headers: list[str]
    before: list[str] = field(default_factory=list)
    scratch_declarations: list[str] = field(default_factory=list)
    most_ctas: int | None = None


class Backend(Protocol):
    """How regions become kernels in one language.

    arguments     how a kernel spells what its launch hands over, as in `args->buffers`
    packed_codes  whether 4-bit codes of activations lie in memory two a byte
    param_words   of 8 bytes that the launch of a group of regions may hand over; 0: regions are launched one by one
    """

    @property
    def arguments(self) -> str: ...

    @property
    def packed_codes(self) -> bool: ...

    @property
    def param_words(self) -> int: ...

    def blocks(self, program: RowProgram) -> Iterable[Block]:
        """Every block that a region can have; the analytic model's choice first, then the better before the worse.

        Only the first is asked for where nothing was measured."""

    def include_folders(self) -> Sequence[Path]:
        """Where the headers lie that kernels include."""

    def printer(
        self, program: RowProgram, memory: Memory, params: Params, scratch: Scratch, block: Block
    ) -> StatementPrinter: ...

    def describe(
        self, program: RowProgram, printer: StatementPrinter, params: Params, block: Block
    ) -> AnchorCode: ...

    def shared_limit(self) -> int | None:
        """Bytes of shared memory that a task may take; None on CPUs."""

    def row_budget(self, region: Region) -> int | None:
        """Bytes of scratch that one row's resident values may take; None: as many as they like."""
