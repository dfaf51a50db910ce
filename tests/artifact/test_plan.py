"""The plan's binary form and the Python proof."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.runtime import tiny

from svdqc.compiler.ir.intexpr import IntExpr, index, maximum, minimum, symbol
from svdqc.compiler.ir.program import Dim
from svdqc.compiler.plan.encode import decode_plan, encode_plan
from svdqc.compiler.plan.errors import (
    PlanError,
    PlanFormatError,
    PlanLifetimeError,
    PlanRangeError,
)
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Launch, Plan, TensorPort
from svdqc.compiler.plan.verify import verify_plan

DIMS = (Dim("h", 8, 64, 8), Dim("w", 8, 96), Dim("batch", 1, 4))
SYMBOLS = [symbol(d.name, d.lo, d.hi) for d in DIMS]


def random_expr(rng: random.Random, depth: int) -> IntExpr:
    if depth == 0:
        return rng.choice([*SYMBOLS, IntExpr.of(rng.randint(-9, 99))])
    a, b = random_expr(rng, depth - 1), random_expr(rng, depth - 1)
    divisor = rng.choice([IntExpr.of(rng.randint(1, 16)), rng.choice(SYMBOLS)])
    choices: list[Callable[[], IntExpr]] = [
        lambda: a + b,
        lambda: a * b,
        lambda: a - b,
        lambda: a // divisor,
        lambda: a % divisor,
        lambda: minimum(a, b),
        lambda: maximum(a, b),
    ]
    return rng.choice(choices)()


def plan_with(scalars: tuple[IntExpr, ...]) -> Plan:
    h, w, batch = SYMBOLS
    size = batch * h * w * 2
    return Plan(
        dims=DIMS,
        inputs=(TensorPort("x", "bf16", (batch, h, w)),),
        outputs=(TensorPort("ÿ", "bf16", (batch, h, w)),),
        buffers=(Buffer("input", size, 0), Buffer("output", size, 0)),
        kernels=(KernelEntry("k"),),
        launches=(
            Launch(
                0,
                (
                    BufferArg(0, IntExpr.of(0), size, "read"),
                    BufferArg(1, IntExpr.of(0), size, "write"),
                ),
                scalars,
                batch,
                IntExpr.of(64),
                "",
            ),
        ),
        arena_bytes=0,
    )


def test_encode__round_trip() -> None:
    plan = tiny.make_plan()
    data = encode_plan(plan)
    assert decode_plan(data) == plan
    assert encode_plan(decode_plan(data)) == data


def gpu_plan(*kernels: KernelEntry) -> Plan:
    plan = tiny.make_plan()
    launches = tuple(replace(launch, scratch_bytes=IntExpr.of(0)) for launch in plan.launches)
    return replace(plan, kernels=kernels, launches=launches)


SHAPED = gpu_plan(KernelEntry("scale", 128, 1024), KernelEntry("shift_sum", 1024, 227 << 10))


def test_encode__lowest_version_that_can_say_it() -> None:
    without, shaped = encode_plan(tiny.make_plan()), encode_plan(SHAPED)
    assert (without[8], shaped[8]) == (1, 2)
    unshaped = encode_plan(gpu_plan(*tiny.make_plan().kernels))
    assert len(shaped) - len(unshaped) == 2 * 8  # threads and shared bytes of two kernels
    assert decode_plan(shaped) == SHAPED
    verify_plan(SHAPED, [16, 4])


def test_verify__rejects_more_tasks_than_a_grid_has() -> None:
    many = tiny.with_launch(SHAPED, 0, num_tasks=B * 2**29)
    with pytest.raises(PlanRangeError, match="too many for one launch"):
        verify_plan(many, [16, 4])
    verify_plan(tiny.with_launch(tiny.make_plan(), 0, num_tasks=B * 2**29), [16, 4])


@pytest.mark.parametrize(
    ("message", "second"),
    [
        ("0 threads", KernelEntry("shift_sum")),
        ("48 threads", KernelEntry("shift_sum", 48)),
        ("1056 threads", KernelEntry("shift_sum", 1056)),
        ("1048577 bytes of shared", KernelEntry("shift_sum", 32, (1 << 20) + 1)),
    ],
)
def test_verify__rejects_blocks(message: str, second: KernelEntry) -> None:
    with pytest.raises(PlanRangeError, match=message):
        verify_plan(gpu_plan(KernelEntry("scale", 128), second), [16, 4])


def test_encode__random_expressions_round_trip() -> None:
    rng = random.Random(11)
    scalars = tuple(random_expr(rng, rng.randint(0, 3)) for _ in range(400))
    plan = plan_with(scalars)
    decoded = decode_plan(encode_plan(plan))
    for _ in range(20):
        dims = {d.name: rng.randrange(d.lo, d.hi + 1, d.multiple) for d in DIMS}
        for before, after in zip(scalars, decoded.launches[0].scalars, strict=True):
            assert after.evaluate(dims) == before.evaluate(dims), (before, dims)
    assert decode_plan(encode_plan(decoded)) == decoded


def test_encode__equal_plans_give_equal_bytes() -> None:
    assert encode_plan(tiny.make_plan()) == encode_plan(tiny.make_plan())


def test_encode__expressions_are_stored_once() -> None:
    h, w, _ = SYMBOLS
    one = encode_plan(plan_with((h * w + 1,)))
    many = encode_plan(plan_with((h * w + 1,) * 100))
    assert len(many) - len(one) == 100 * 4 - 8  # 4 bytes for each scalar, padded to 8


@pytest.mark.parametrize(
    "scalar",
    [symbol("elsewhere", 1, 9), index("i", 4), IntExpr.of(2**63), IntExpr.of(-(2**63) - 1)],
)
def test_encode__rejects_what_has_no_form(scalar: IntExpr) -> None:
    with pytest.raises(PlanFormatError):
        encode_plan(plan_with((scalar,)))


@pytest.mark.parametrize("size", [0, 7, 79, 80, 500])
def test_decode__rejects_cut_bytes(size: int) -> None:
    with pytest.raises(PlanFormatError):
        decode_plan(encode_plan(tiny.make_plan())[:size])


def test_decode__never_fails_otherwise() -> None:
    """Any change gives a plan or a PlanError."""
    good = encode_plan(tiny.make_plan())
    rng = random.Random(3)
    refused = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
        try:
            verify_plan(decode_plan(bytes(data)), [16, 4])
        except PlanError:
            refused += 1
    assert refused > 1000


def argument(launch: int, which: int, **changes: object) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        args = list(plan.launches[launch].args)
        args[which] = replace(args[which], **changes)  # type: ignore[arg-type]
        return tiny.with_launch(plan, launch, args=tuple(args))

    return change


def test_verify__accepts_the_good() -> None:
    verify_plan(tiny.make_plan(), [16, 4])
    verify_plan(plan_with((SYMBOLS[0] // 8, SYMBOLS[1] % 7)))


B, R = symbol("batch", 1, 8), symbol("rows", 4, 64)
NARROW = symbol("batch", 1, 4)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (PlanRangeError, r"launch 0 \(scale, block.scale\) argument 0.*room", argument(0, 0, num_bytes=B * R * 4 + 4)),
        (PlanRangeError, "byte offset is -64", argument(0, 0, byte_offset=IntExpr.of(-64))),
        (PlanRangeError, "room left", argument(0, 0, num_bytes=IntExpr.of(2048))),
        (PlanRangeError, "buffer 9 does not exist", argument(0, 0, buffer=9)),
        (PlanLifetimeError, "reads buffer 2 before", argument(0, 2, access="update")),
        (PlanLifetimeError, "writes to buffer 1, a weight", argument(0, 1, access="write")),
        (PlanLifetimeError, "'total': this output is never written", argument(1, 3, buffer=4, num_bytes=IntExpr.of(4))),
        (PlanRangeError, "ends at", lambda p: replace(p, arena_bytes=2048)),
        (PlanRangeError, "divide by zero", lambda p: tiny.with_launch(p, 0, scalars=(R // (B - 1),))),
        (PlanFormatError, "'i', which is not a dim", lambda p: tiny.with_launch(p, 0, scalars=(index("i", 9),))),
        (PlanRangeError, r"'batch' to be in \[1, 4\]", lambda p: tiny.with_launch(p, 0, scalars=(NARROW,))),
        (PlanRangeError, "64 bits", lambda p: tiny.with_launch(p, 0, scalars=(B * 2**62,))),
    ],
)  # fmt: skip
def test_verify__rejects(
    error: type[PlanError], message: str, change: Callable[[Plan], Plan]
) -> None:
    with pytest.raises(error, match=message):
        verify_plan(change(tiny.make_plan()), [16, 4])


def test_verify__rejects_small_tensors() -> None:
    with pytest.raises(PlanRangeError, match="larger than tensor 0"):
        verify_plan(tiny.make_plan(), [15, 4])


def chain(offsets: list[int], length: int = 64) -> Plan:
    """buffer i is written by launch i from buffer i - 1; so i - 1 and i are in use together, i - 2 and i are not."""
    zero, size = IntExpr.of(0), IntExpr.of(length)
    buffers = [
        Buffer("input", size, 0),
        *(Buffer("arena", size, 0, at) for at in offsets),
        Buffer("output", size, 0),
    ]
    steps = [
        (BufferArg(i, zero, size, "read"), BufferArg(i + 1, zero, size, "write"))
        for i in range(len(buffers) - 1)
    ]
    launches = tuple(Launch(0, args, (), IntExpr.of(1), zero, "step") for args in steps)
    return Plan(
        (),
        (TensorPort("x", "u8", (size,)),),
        (TensorPort("y", "u8", (size,)),),
        tuple(buffers),
        (KernelEntry("k"),),
        launches,
        1 << 20,
    )


def test_verify__memory_used_again_after_its_last_reader() -> None:
    verify_plan(chain([0, 64, 0, 64, 0]))
    verify_plan(chain([128, 0, 128, 64]))


@pytest.mark.parametrize("offsets", [[0, 0], [0, 64, 64], [64, 0, 0], [0, 64, 0, 0]])
def test_verify__memory_used_again_too_early(offsets: list[int]) -> None:
    with pytest.raises(PlanLifetimeError, match="overlap while both are in use"):
        verify_plan(chain(offsets))


def test_verify__overlap_of_unequal_sizes() -> None:
    with pytest.raises(PlanLifetimeError, match="overlap"):
        verify_plan(chain([0, 64], length=128))
