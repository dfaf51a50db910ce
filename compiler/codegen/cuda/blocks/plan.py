"""What rows take of shared memory: the blocks of regions without an anchor, and how much a row may keep."""

from __future__ import annotations

from collections.abc import Sequence

from svdqc.compiler.codegen.cuda.quantizers import quantized_bytes
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import IN_TILES, Quantize, Reduce, RowProgram
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.errors import SvdqcError

ELEMENTS = 2048
"""Of a pointwise CTA: eight for each thread."""
SHARED_BYTES = 48 << 10
"""What a CTA of rows takes at most if it has a choice: several then share a multiprocessor."""
ENOUGH_CTAS = 256
"""Fewer rows per CTA where that many are not reached."""
ROWS = 8
"""Of a CTA that reduces or quantizes: a row for each warp."""
MOST_ROWS = 256
"""What tuning tries at most where rows take no shared memory."""
THREADS = (128, 256)
ROWS_PROJECTED = 16
"""Of a CTA that quantizes: a value of lora_down is read once for them all."""
ATTENTION_ROW_BYTES = 128
"""Of values kept beside attention's tile, which has most of the shared memory."""


class RowTooWide(SvdqcError):
    """One row of a region does not fit in the shared memory of a GPU."""


def row_budget(region: Region, target: CudaTarget) -> int:
    """Bytes for one row's resident values. A tile of columns keeps what many of its elements share."""
    if region.anchor is not None and str(region.anchor.target) != anchors.ATTENTION:
        return IN_TILES
    if region.anchor is not None:
        return ATTENTION_ROW_BYTES
    return max(1, _room(target) - _quantized_bytes(region))


def _room(target: CudaTarget) -> int:
    return target.shared_bytes_per_cta - 1024  # partial sums, alignment


def _half(target: CudaTarget) -> int:
    """What lets two CTAs share a multiprocessor: of rows to project down, whose weights each CTA reads whole."""
    return min(_room(target), max(SHARED_BYTES, target.shared_bytes_per_sm // 2 - 2048))


def _quantized_bytes(region: Region) -> int:
    """Of one row of each quantization's input."""
    found = [n for n in region.nodes if str(n.target) in anchors.QUANTIZERS]
    return sum(map(quantized_bytes, found))


def rows_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    """The usual block; then with fewer and more rows, as long as they fit, and with the other number of threads."""
    region = program.region
    layout, num_rows = region.layout, region.layout.num_rows.upper()
    widths = [layout.inner_elements(n).upper() for n in region.nodes if n in layout.axes]
    width = max(widths, default=1)
    resident = sum(8 * layout.inner_elements(n).upper() + 64 for n in program.resident)
    row_bytes = resident + _quantized_bytes(region)
    if row_bytes > _room(target):
        raise RowTooWide(
            "compile",
            str(region.nodes[-1]),
            f"a row takes {row_bytes} bytes, {target.name} has {target.shared_bytes_per_cta}",
            "compile it for another target, or keep the layer with --keep",
        )
    rows = max(1, ELEMENTS // max(width, 1))
    if any(isinstance(s, (Reduce, Quantize)) for s in (*program.before, *program.after)):
        rows = max(rows, ROWS)
    quantizes = _quantized_bytes(region) > 0
    if quantizes:
        rows = max(rows, ROWS_PROJECTED)
    if row_bytes:
        limit = _half(target) if quantizes else SHARED_BYTES
        rows = min(rows, max(1, limit // row_bytes))
    most = min(num_rows, _room(target) // row_bytes if row_bytes else MOST_ROWS)
    rows = max(1, min(rows, num_rows, max(1, num_rows // ENOUGH_CTAS)))
    first = Block(rows, 0, 256 if rows * width > 512 else 128)
    sizes = [rows, *(r for r in (rows // 2, 2 * rows, rows // 4, 4 * rows) if 1 <= r <= most)]
    varied = [Block(r, 0, threads) for r in sizes for threads in (first.threads, *THREADS)]
    return list(dict.fromkeys([first, *varied]))
