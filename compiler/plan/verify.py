"""The proof that a plan stays inside its memory; the runtime makes the same one before it runs anything.

For all legal dims: arena buffers lie inside the arena, no two that are in use at the same launch overlap, nothing
is read before it is written, every output is written, inputs and weights never are, every dim can be read from an
input. Ranges of arguments are proved as expressions where those decide it, else at the corners of the dims' box
(the runtime checks the actual dims of every run).
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from svdqc.compiler.ir.intexpr import Apply, IntExpr, prod
from svdqc.compiler.plan.errors import PlanFormatError, PlanLifetimeError, PlanRangeError
from svdqc.compiler.plan.records import DTYPES, KernelEntry, Launch, Plan, TensorPort

ARENA_ALIGNMENT = 64
MAX_ARENA_BYTES, MAX_SCRATCH_BYTES, MAX_TASKS = 1 << 46, 1 << 36, 1 << 40
MAX_THREADS, MAX_SHARED_BYTES, MAX_GRID = 1024, 1 << 20, (1 << 31) - 1
MAX_BLOCKS, MAX_PARAM_WORDS = (1 << 31) - 1, 512
ITEM_BYTES = dict(zip(DTYPES, (4, 8, 2, 2, 1, 1, 2, 4, 8, 1), strict=True))
_MAX_CORNER_DIMS = 8


def verify_plan(plan: Plan, tensor_bytes: Sequence[int] | None = None) -> None:
    """Raise a PlanError naming the first thing that is wrong.

    tensor_bytes  size of each tensor of the artifact; None skips the check that weights fit theirs
    """
    _check_names(plan)
    _check_dims(plan)
    _check_expressions(plan)
    _check_buffers(plan, tensor_bytes)
    _check_ranges(plan)
    _check_access(plan)
    if any(kernel.threads for kernel in plan.kernels):
        _check_grids(plan)
    _check_overlaps(plan)


def port_bytes(port: TensorPort) -> IntExpr:
    """The size of a port's dense, row-major buffer."""
    return prod(IntExpr.of(s) for s in port.shape) * ITEM_BYTES[port.dtype]


def launch_name(plan: Plan, i: int) -> str:
    launch = plan.launches[i]
    return f"launch {i} ({plan.kernels[launch.kernel].name}, {launch.label})"


def _check_names(plan: Plan) -> None:
    for what, names in (
        ("dims", [d.name for d in plan.dims]),
        ("inputs", [p.name for p in plan.inputs]),
        ("outputs", [p.name for p in plan.outputs]),
        ("kernels", [k.name for k in plan.kernels]),
    ):
        if "" in names or len(set(names)) != len(names):
            raise PlanFormatError(what, "a name that is empty or appears twice")
    for kernel in plan.kernels:
        if not re.fullmatch(r"[A-Za-z0-9_]+", kernel.name):
            raise PlanFormatError(kernel.name, "not a C name")
        _check_shape(kernel, plan.kernels[0].threads > 0)
    for i, launch in enumerate(plan.launches):
        if not 0 <= launch.kernel < len(plan.kernels):
            raise PlanFormatError(f"launch {i}", f"kernel {launch.kernel} does not exist")


def _check_shape(kernel: KernelEntry, on_gpu: bool) -> None:
    """All kernels of a plan have the shape of a GPU's blocks, or none has."""
    threads, shared_bytes = kernel.threads, kernel.shared_bytes
    if (threads > 0) != on_gpu or not 0 <= threads <= MAX_THREADS or threads % 32:
        raise PlanRangeError(kernel.name, f"{threads} threads")
    if not 0 <= shared_bytes <= (MAX_SHARED_BYTES if on_gpu else 0):
        raise PlanRangeError(kernel.name, f"{shared_bytes} bytes of shared memory")


def _check_grids(plan: Plan) -> None:
    """On a GPU a launch is one grid without scratch, and a kernel's block of parameters has one size."""
    sizes: dict[int, tuple[int, int]] = {}
    for i, launch in enumerate(plan.launches):
        if launch.num_tasks.upper() > MAX_BLOCKS:
            raise PlanRangeError(launch_name(plan, i), "more tasks than a grid has blocks")
        if launch.scratch_bytes.upper() > 0:
            raise PlanRangeError(launch_name(plan, i), "scratch, which GPUs have not")
        size = len(launch.args), len(launch.scalars)
        if sum(size) > MAX_PARAM_WORDS:
            raise PlanRangeError(launch_name(plan, i), "more arguments than fit 4 KiB")
        if sizes.setdefault(launch.kernel, size) != size:
            raise PlanFormatError(launch_name(plan, i), "not as many arguments as before")


def _check_expressions(plan: Plan) -> None:
    """No expression exceeds 64 bits or divides by less than 1, for any legal dims."""
    dims = {dim.name: dim for dim in plan.dims}
    checked: set[IntExpr] = set()
    for where, expr in _expressions(plan):
        if expr in checked:
            continue
        checked.add(expr)
        for found in expr.symbols():
            dim = dims.get(found.name)
            if dim is None:
                raise PlanFormatError(where, f"{expr} uses {found.name!r}, which is not a dim")
            if found.lo > dim.lo or found.hi < dim.hi:  # or its bounds would prove nothing
                raise PlanRangeError(
                    where,
                    f"{expr} takes {found.name!r} to be in [{found.lo}, {found.hi}], "
                    f"the dim is in [{dim.lo}, {dim.hi}]",
                )
        _check_expression(where, expr)
    if not 0 <= plan.arena_bytes <= MAX_ARENA_BYTES:
        raise PlanRangeError("arena", f"{plan.arena_bytes} bytes; at most {MAX_ARENA_BYTES}")


def _expressions(plan: Plan) -> Iterator[tuple[str, IntExpr]]:
    for port in (*plan.inputs, *plan.outputs):
        yield from ((port.name, IntExpr.of(size)) for size in port.shape)
    for i, buffer in enumerate(plan.buffers):
        yield f"buffer {i}", buffer.num_bytes
    for i, launch in enumerate(plan.launches):
        name = launch_name(plan, i)
        for arg in launch.args:
            yield name, arg.byte_offset
            yield name, arg.num_bytes
        yield from ((name, scalar) for scalar in launch.scalars)
        yield name, launch.num_tasks
        yield name, launch.scratch_bytes
        if launch.num_tasks.upper() > (
            MAX_GRID if plan.kernels[launch.kernel].threads else MAX_TASKS
        ):
            raise PlanRangeError(name, f"{launch.num_tasks} tasks, too many for one launch")
        if launch.scratch_bytes.upper() > MAX_SCRATCH_BYTES:
            raise PlanRangeError(name, f"{launch.scratch_bytes} bytes of scratch")


def _check_expression(where: str, expr: IntExpr) -> None:
    for atom in expr.atoms():
        if isinstance(atom, Apply):
            _check_expression(where, atom.lhs)
            _check_expression(where, atom.rhs)
            if atom.op in ("floordiv", "mod") and atom.rhs.lower() < 1:
                raise PlanRangeError(where, f"{expr} may divide by zero or a negative number")
    if max(abs(bound) for bound in expr.range()) >= 1 << 63:
        raise PlanRangeError(where, f"{expr} may exceed 64 bits")


def _check_dims(plan: Plan) -> None:
    readable = {
        next(iter(symbols)).name
        for port in plan.inputs
        for size in port.shape
        if len(symbols := IntExpr.of(size).symbols()) == 1
    }
    for dim in plan.dims:
        lo, hi = _legal_range(dim.lo, dim.hi, dim.multiple)
        if lo > hi:
            raise PlanRangeError(dim.name, f"the dim has no legal value in [{dim.lo}, {dim.hi}]")
        if dim.name not in readable and lo != hi:
            raise PlanRangeError(dim.name, "the dim is no input's size")


def _check_buffers(plan: Plan, tensor_bytes: Sequence[int] | None) -> None:
    for i, buffer in enumerate(plan.buffers):
        name = f"buffer {i}"
        if buffer.kind == "arena":
            if buffer.arena_offset % ARENA_ALIGNMENT:
                raise PlanRangeError(name, f"arena offset {buffer.arena_offset} is not 64-aligned")
            end = buffer.arena_offset + buffer.num_bytes.upper()
            if end > plan.arena_bytes:
                raise PlanRangeError(name, f"ends at {end} in an arena of {plan.arena_bytes} bytes")
            if buffer.index:
                raise PlanRangeError(name, "an arena buffer has no index")
            continue
        if buffer.arena_offset:
            raise PlanRangeError(name, "an arena offset, but the buffer is not in the arena")
        if buffer.kind == "weight":
            if tensor_bytes is None:
                continue
            if (
                buffer.index >= len(tensor_bytes)
                or buffer.num_bytes.upper() > tensor_bytes[buffer.index]
            ):
                raise PlanRangeError(
                    name, f"is larger than tensor {buffer.index}, or there is none"
                )
            continue
        ports = plan.inputs if buffer.kind == "input" else plan.outputs
        if buffer.index >= len(ports):
            raise PlanRangeError(name, f"names {buffer.kind} {buffer.index} of {len(ports)}")
        required = port_bytes(ports[buffer.index])
        if buffer.num_bytes != required:
            raise PlanRangeError(name, f"has {buffer.num_bytes} bytes, its port has {required}")


def _check_ranges(plan: Plan) -> None:
    for i, launch in enumerate(plan.launches):
        for a, arg in enumerate(launch.args):
            name = f"{launch_name(plan, i)} argument {a}"
            if not 0 <= arg.buffer < len(plan.buffers):
                raise PlanRangeError(name, f"buffer {arg.buffer} does not exist")
            room = plan.buffers[arg.buffer].num_bytes - arg.byte_offset - arg.num_bytes
            for what, value in (
                ("byte offset", arg.byte_offset),
                ("size", arg.num_bytes),
                (f"room left in buffer {arg.buffer}", room),
            ):
                _check_not_negative(plan, name, what, value)
        for what, value in (
            ("number of tasks", launch.num_tasks),
            ("scratch", launch.scratch_bytes),
        ):
            _check_not_negative(plan, launch_name(plan, i), what, value)


def _check_not_negative(plan: Plan, name: str, what: str, value: IntExpr) -> None:
    if value.lower() >= 0:
        return
    for dims in _corners(plan):
        if (found := value.evaluate(dims)) < 0:
            raise PlanRangeError(name, f"{what} is {found} for {dims}")


def _corners(plan: Plan) -> Iterator[dict[str, int]]:
    ranges = [_legal_range(d.lo, d.hi, d.multiple) for d in plan.dims]
    names = [d.name for d in plan.dims]
    if len(ranges) <= _MAX_CORNER_DIMS:
        yield from (dict(zip(names, values, strict=True)) for values in itertools.product(*ranges))
    else:
        yield {n: hi for n, (_, hi) in zip(names, ranges, strict=True)}
        yield {n: lo for n, (lo, _) in zip(names, ranges, strict=True)}


def _legal_range(lo: int, hi: int, multiple: int) -> tuple[int, int]:
    return -(-lo // multiple) * multiple, hi // multiple * multiple


def _check_access(plan: Plan) -> None:
    written: set[int] = set()
    for i, launch in enumerate(plan.launches):
        for arg in launch.args:
            kind = plan.buffers[arg.buffer].kind
            if arg.access != "write" and kind in ("arena", "output") and arg.buffer not in written:
                raise PlanLifetimeError(
                    launch_name(plan, i),
                    f"reads buffer {arg.buffer} before anything is written to it",
                )
            if arg.access != "read" and kind in ("input", "weight"):
                raise PlanLifetimeError(
                    launch_name(plan, i),
                    f"writes to buffer {arg.buffer}, an {kind}"
                    if kind == "input"
                    else f"writes to buffer {arg.buffer}, a weight",
                )
        written |= _written_by(launch)
    outputs = {plan.buffers[b].index for b in written if plan.buffers[b].kind == "output"}
    for o, port in enumerate(plan.outputs):
        if o not in outputs:
            raise PlanLifetimeError(port.name, "this output is never written")


def _written_by(launch: Launch) -> set[int]:
    return {arg.buffer for arg in launch.args if arg.access != "read"}


def _check_overlaps(plan: Plan) -> None:
    """Walk the launches with the buffers in use ordered by offset: a newcomer may overlap only its neighbours."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, launch in enumerate(plan.launches):
        for arg in launch.args:
            if (
                plan.buffers[arg.buffer].kind == "arena"
                and plan.buffers[arg.buffer].num_bytes.upper() > 0
            ):
                first.setdefault(arg.buffer, i)
                last[arg.buffer] = i
    ending = sorted(last, key=lambda b: (last[b], b))
    in_use: list[tuple[int, int, int]] = []  # (begin, end, buffer)
    for b in sorted(first, key=lambda b: (first[b], b)):
        while ending and last[ending[0]] < first[b]:
            in_use.remove(_arena_range(plan, ending.pop(0)))
        begin, end, _ = newcomer = _arena_range(plan, b)
        at = bisect_left(in_use, newcomer)
        for other_begin, other_end, other in in_use[max(at - 1, 0) : at + 1]:
            if other_begin < end and begin < other_end:
                raise PlanLifetimeError(
                    launch_name(plan, first[b]),
                    f"buffers {other} and {b} overlap while both are in use",
                )
        insort(in_use, newcomer)


def _arena_range(plan: Plan, b: int) -> tuple[int, int, int]:
    buffer = plan.buffers[b]
    return buffer.arena_offset, buffer.arena_offset + buffer.num_bytes.upper(), b
