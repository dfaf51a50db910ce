"""Each pass: the graph computes the same before and after, what changed is counted, what was skipped has a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.compiler.element_operands import floats, ints, positive
from tests.compiler.programs import Call, ProgramBuilder, call, program_of_calls
from torch import Tensor

from svdqc.compiler.ir.dialect import verify
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.base import PassReport
from svdqc.compiler.passes.decompose import decompose
from svdqc.compiler.passes.dialects import CAPTURED
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.passes.merge_linears import merge_linears
from svdqc.compiler.passes.simplify import simplify
from svdqc.compiler.passes.sink_concat import sink_concat
from svdqc.compiler.passes.widen import widen

aten = torch.ops.aten

EXACT = {"rtol": 0.0, "atol": 0.0}
REORDERED = {"rtol": 1e-5, "atol": 1e-5}
"""Sums of at most 128 terms of size 1, in another order."""


def names(program: Program) -> list[str]:
    return [str(n.target) for n in program.graph_module.graph.nodes if n.op == "call_function"]


def run_pass(
    compiler_pass: Callable[[Program], PassReport],
    program: Program,
    inputs: dict[str, Tensor],
    **tolerance: float,
) -> PassReport:
    """Apply and compare the outputs before and after."""
    before = program.run(inputs)
    report = compiler_pass(program)
    verify(program, CAPTURED)
    for got, want in zip(program.run(inputs), before, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, **(tolerance or EXACT), equal_nan=True)
    return report


# ---- simplify


def test_simplify__identities() -> None:
    b = ProgramBuilder()
    x = b.input(floats(3, 4))
    y = b.call(aten.mul.Tensor, b.call(aten.add.Tensor, b.call(aten.clone.default, x), 0), 1)
    y = b.call(aten.view.default, b.call(aten.permute.default, y, [0, 1]), [3, 4])
    y = b.call(aten.slice.Tensor, b.call(aten._to_copy.default, y, dtype=torch.float32), 0, 0, 99)
    program = b.finish(b.call(aten.neg.default, y))
    report = run_pass(simplify, program, b.inputs)
    assert names(program) == ["aten.neg.default"]
    assert sum(report.changed.values()) == 7


def test_simplify__near_identities_stay() -> None:
    b = ProgramBuilder()
    x = b.input(ints(3, 4))
    wider = b.call(aten.mul.Tensor, x, 1.0)  # i64 * 1.0 is a float
    broadcast = b.call(aten.add.Tensor, b.input(floats(4)), b.input(floats(3, 4)))
    every = b.call(aten.slice.Tensor, x, 0, 0, 99, 2)
    program = b.finish(wider, broadcast, every)
    run_pass(simplify, program, b.inputs)
    assert len(names(program)) == 3


def test_simplify__equal_ops_merge() -> None:
    b = ProgramBuilder()
    x = b.input(floats(3, 4))
    first, second = b.call(aten.exp.default, x), b.call(aten.exp.default, x)
    program = b.finish(b.call(aten.add.Tensor, first, second))
    assert run_pass(simplify, program, b.inputs).changed["equal"] == 1
    assert names(program).count("aten.exp.default") == 1


def test_simplify__equal_but_for_a_number_stay() -> None:
    b = ProgramBuilder()
    x = b.input(ints(3, 4))
    program = b.finish(*(b.call(aten.mul.Tensor, x, c) for c in (2, 2.0, True)))
    run_pass(simplify, program, b.inputs)
    assert len(names(program)) == 3


def test_simplify__weights_fold() -> None:
    b = ProgramBuilder()
    x, w = b.input(floats(4)), b.weight("w", floats(4, seed=1))
    scaled = b.call(aten.exp.default, b.call(aten.mul.Tensor, w, 3.0))
    program = b.finish(b.call(aten.add.Tensor, x, scaled))
    assert run_pass(simplify, program, b.inputs).changed["folded"] == 1
    assert names(program) == ["aten.add.Tensor"]


def test_simplify__cast_of_a_weight_stays() -> None:
    """Kernels read 16-bit weights as they are stored."""
    b = ProgramBuilder()
    x, w = b.input(floats(4)), b.weight("w", floats(4, dtype=torch.bfloat16))
    program = b.finish(
        b.call(aten.add.Tensor, x, b.call(aten._to_copy.default, w, dtype=torch.float32))
    )
    run_pass(simplify, program, b.inputs)
    assert "aten._to_copy.default" in names(program)


def test_simplify__large_expansions_stay() -> None:
    b = ProgramBuilder()
    x, w = b.input(floats(1)), b.weight("w", floats(1))
    wide = b.call(aten.exp.default, b.call(aten.expand.default, w, [8 << 20]))
    program = b.finish(b.call(aten.add.Tensor, wide, x))
    assert run_pass(simplify, program, b.inputs).changed["folded"] == 0


def _slices(b: ProgramBuilder, x: Any, *cuts: tuple[int, int]) -> list[Any]:
    return [b.call(aten.slice.Tensor, x, 1, lo, hi) for lo, hi in cuts]


def test_simplify__slices_rejoin() -> None:
    b = ProgramBuilder()
    x = b.input(floats(3, 9))
    whole = b.call(aten.cat.default, _slices(b, x, (0, 4), (4, 5), (5, 9)), 1)
    program = b.finish(b.call(aten.neg.default, whole))
    assert run_pass(simplify, program, b.inputs).changed["rejoined slices"] == 1
    assert names(program) == ["aten.neg.default"]


@pytest.mark.parametrize(
    "cuts",
    [((4, 9), (0, 4)), ((0, 4), (5, 9)), ((0, 4), (4, 8)), ((0, 5), (4, 9)), ((0, 9), (0, 9))],
    ids=["swapped", "a gap", "short", "overlap", "twice"],
)
def test_simplify__other_slices_do_not_rejoin(cuts: tuple[tuple[int, int], ...]) -> None:
    b = ProgramBuilder()
    x = b.input(floats(3, 9))
    program = b.finish(b.call(aten.cat.default, _slices(b, x, *cuts), 1))
    assert run_pass(simplify, program, b.inputs).changed["rejoined slices"] == 0


def test_simplify__slices_of_two_tensors_do_not_rejoin() -> None:
    b = ProgramBuilder()
    x, y = b.input(floats(3, 9)), b.input(floats(3, 9, seed=1))
    pieces = [b.call(aten.slice.Tensor, x, 1, 0, 4), b.call(aten.slice.Tensor, y, 1, 4, 9)]
    program = b.finish(b.call(aten.cat.default, pieces, 1))
    assert run_pass(simplify, program, b.inputs).changed["rejoined slices"] == 0


# ---- decompose

_IMAGE, _W, _B = floats(2, 6, 5, 4), floats(6, seed=1), floats(6, seed=2)
_POSITIVE = positive(6)

RULES: list[Call] = [
    call("aten.layer_norm.default", floats(3, 8), [8]),
    call(
        "aten.layer_norm.default",
        floats(3, 2, 4),
        [2, 4],
        floats(2, 4),
        floats(2, 4, seed=1),
        1e-3,
        label="two axes",
    ),
    call("aten.rms_norm.default", floats(3, 8), [8]),
    call("aten.rms_norm.default", floats(3, 8), [8], floats(8), 1e-2, label="affine"),
    call("aten.group_norm.default", _IMAGE, 3, _W, _B, 1e-4),
    call("aten.group_norm.default", _IMAGE, 1, label="plain"),
    call("aten.group_norm.default", floats(2, 6), 2, _W, _B, label="no space"),
    call("aten.batch_norm.default", _IMAGE, _W, _B, floats(6), _POSITIVE, False, 0.1, 1e-3, False),
    call("aten.softmax.int", floats(3, 5) * 9, -1),
    call("aten.softmax.int", floats(3, 5), 0, torch.float64, label="f64"),
    call("aten._softmax.default", floats(2, 3, 5), 1, False),
    call("aten.log_softmax.int", floats(3, 5), -1),
    call("aten.var.correction", floats(3, 5, 7), [1]),
    call(
        "aten.var.correction", floats(3, 5, 7), [0, -1], correction=0, keepdim=True, label="biased"
    ),
    call("aten.var.correction", floats(3, 5), correction=2, label="all"),
    call("aten.std.correction", floats(3, 5, 7), [-1], correction=1),
    call("aten.std.correction", floats(3, 5), None, correction=0, keepdim=True, label="all"),
    call("aten.addmm.default", floats(4), floats(3, 5), floats(5, 4)),
    call(
        "aten.addmm.default",
        floats(3, 4),
        floats(3, 5),
        floats(5, 4),
        beta=0.5,
        alpha=2.0,
        label="scaled",
    ),
    call("aten.mm.default", floats(3, 5), floats(5, 4)),
    call("aten.matmul.default", floats(2, 3, 5), floats(5, 4)),
    call("aten.matmul.default", floats(2, 3, 5), floats(2, 5, 4), label="batched"),
    call("aten.matmul.default", floats(2, 1, 3, 5), floats(4, 5, 6), label="broadcast"),
    call("aten.matmul.default", floats(5), floats(5, 4), label="vector left"),
    call("aten.matmul.default", floats(2, 3, 5), floats(5), label="vector right"),
    call("aten.matmul.default", floats(5), floats(5), label="vectors"),
    call("aten.baddbmm.default", floats(2, 3, 4), floats(2, 3, 5), floats(2, 5, 4)),
    call(
        "aten.baddbmm.default",
        floats(2, 1, 4),
        floats(2, 3, 5),
        floats(2, 5, 4),
        beta=0.5,
        alpha=3.0,
        label="scaled",
    ),
    call(
        "aten.baddbmm.default",
        torch.full((2, 3, 4), torch.nan),
        floats(2, 3, 5),
        floats(2, 5, 4),
        beta=0,
        label="beta 0",
    ),
    call("aten.conv1d.default", floats(2, 6, 9), floats(4, 6, 3), floats(4), [2], [1]),
    call("aten.conv2d.default", _IMAGE, floats(6, 2, 3, 3), None, [1], [1], [1], 3, label="groups"),
    call("aten.conv3d.default", floats(1, 2, 4, 4, 4), floats(3, 2, 2, 2, 2)),
    call("aten.conv_transpose1d.default", floats(2, 6, 5), floats(6, 4, 3), None, [2], [1], [1]),
    call("aten.conv_transpose2d.input", _IMAGE, floats(6, 2, 3, 3), floats(4), [2], [1], [1], 2),
    call("aten.conv_transpose3d.input", floats(1, 2, 3, 3, 3), floats(2, 3, 2, 2, 2)),
    call("aten.pad.default", floats(2, 5), [1, 2]),
    call("aten.pad.default", floats(2, 5), [1, 2, 0, 1], "constant", 3.0, label="value"),
    *(
        call("aten.pad.default", floats(2, 3, 5, 4), [1, 2, 2, 1], mode, label=mode)
        for mode in ("reflect", "replicate", "circular")
    ),
    call("aten.pad.default", floats(2, 3, 5), [2, 0], "reflect", label="reflect one side"),
    call("aten.glu.default", floats(3, 8)),
    call("aten.glu.default", floats(4, 3), 0, label="first axis"),
    call("aten.repeat_interleave.self_int", floats(3, 4), 2, 1),
    call("aten.repeat_interleave.self_int", floats(3, 4), 3, label="flat"),
    call("aten.stack.default", [floats(3), floats(3, seed=1)], -1),
    call("aten.copy.default", floats(3, 4), floats(4)),
    call("aten.copy.default", floats(3, 4), ints(3, 4), label="cast"),
    call("aten.mish.default", floats(3, 5)),
    call("aten.hardswish.default", floats(3, 5) * 4),
    call("aten.hardsigmoid.default", floats(3, 5) * 4),
]


@pytest.mark.parametrize("case", RULES, ids=lambda c: c.name)
def test_decompose(case: Call) -> None:
    program, inputs = program_of_calls([case])
    report = run_pass(decompose, program, inputs, **REORDERED)
    assert report.changed[case.target] >= 1
    torch.testing.assert_close(program.run(inputs)[0], case.expected(), **REORDERED)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("split_with_sizes.default", ([2, 3, 4], 1)),
        ("split.Tensor", (4, -1)),
        ("unbind.int", (1,)),
        ("chunk.default", (3, 1)),
    ],
)
def test_decompose__splits(target: str, args: tuple[Any, ...]) -> None:
    import operator

    packet, overload = target.split(".")
    op = getattr(getattr(aten, packet), overload)
    b = ProgramBuilder()
    x = b.input(floats(3, 9))
    split = b.call(op, x, *args)
    items = [b.call(operator.getitem, split, i) for i in range(len(split.meta["val"]))]
    program = b.finish(*(b.call(aten.neg.default, i) for i in items))
    run_pass(decompose, program, b.inputs)
    assert f"aten.{target}" not in names(program)


# ---- widen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widen(dtype: torch.dtype) -> None:
    """Within one rounding of each op in 16 bit; types of inputs, weights and outputs stay."""
    b = ProgramBuilder()
    x, w = b.input(floats(5, 8, dtype=dtype)), b.weight("w", floats(4, 8, dtype=dtype))
    y = b.call(aten.linear.default, x, w)
    cast = b.call(aten._to_copy.default, b.call(aten.exp.default, y), dtype=dtype)
    program = b.finish(cast, b.call(aten.sum.dim_IntList, y, [1]))
    eps = torch.finfo(dtype).eps
    run_pass(widen, program, b.inputs, rtol=8 * eps, atol=8 * eps)
    inner = [n for n in program.graph_module.graph.nodes if "linear" in str(n.target)]
    assert inner[0].meta["val"].dtype == torch.float32
    assert program.weights.spec("w").dtype == dtype


def test_widen__f32_and_integers_stay() -> None:
    b = ProgramBuilder()
    x, i = b.input(floats(5, 8)), b.input(ints(5, 8))
    program = b.finish(b.call(aten.exp.default, x), b.call(aten.mul.Tensor, i, 2))
    assert not run_pass(widen, program, b.inputs).changed
    assert len(names(program)) == 2


# ---- merge_linears


def _linears(b: ProgramBuilder, x: Any, *weights: tuple[str, int, torch.dtype, bool]) -> list[Any]:
    """Linears over x; weights come first in the graph, as simplify leaves them."""
    nodes = [
        (
            b.weight(f"{n}.weight", floats(out, 8, dtype=t)),
            b.weight(f"{n}.bias", floats(out)) if bias else None,
        )
        for n, out, t, bias in weights
    ]
    return [b.call(aten.linear.default, x, w, bias) for w, bias in nodes]


F32 = torch.float32


def test_merge_linears__same_input() -> None:
    b = ProgramBuilder()
    x = b.input(floats(5, 8))
    parts = [
        ("blocks.0.q", 4, F32, True),
        ("blocks.0.k", 6, F32, False),
        ("blocks.0.v", 2, F32, True),
    ]
    program = b.finish(*_linears(b, x, *parts))
    report = run_pass(merge_linears, program, b.inputs, **REORDERED)
    assert report.changed["merged"] == 3
    assert names(program).count("aten.linear.default") == 1


def test_merge_linears__other_blocks_stay() -> None:
    b = ProgramBuilder()
    x = b.input(floats(5, 8))
    program = b.finish(*_linears(b, x, ("blocks.0.q", 4, F32, True), ("blocks.1.q", 4, F32, True)))
    assert not run_pass(merge_linears, program, b.inputs).changed


def test_merge_linears__other_inputs_stay() -> None:
    b = ProgramBuilder()
    x, y = b.input(floats(5, 8)), b.input(floats(5, 8))
    (first,) = _linears(b, x, ("blocks.0.q", 4, F32, True))
    (second,) = _linears(b, y, ("blocks.0.k", 4, F32, True))
    program = b.finish(first, second)
    assert not run_pass(merge_linears, program, b.inputs).changed


# ---- sink_concat


def _joint_attention(axis: int, mixing: bool) -> tuple[Program, dict[str, Tensor]]:
    """Text and image tokens, concatenated, rotated by a table, attended to."""
    b = ProgramBuilder()
    text, image = b.input(floats(1, 2, 3, 8)), b.input(floats(1, 2, 3 if axis != 2 else 5, 8))
    joint = b.call(aten.cat.default, [text, image], axis)
    shape = joint.meta["val"].shape
    turned = b.call(aten.mul.Tensor, joint, b.input(floats(shape[2], 8)))
    if mixing:
        turned = b.call(aten.mul.Tensor, turned, b.call(aten.flip.default, joint, [2]))
    output = b.call(aten.scaled_dot_product_attention.default, turned, turned, turned)
    return b.finish(output), b.inputs


def test_sink_concat__rotation_belongs_to_the_parts() -> None:
    program, inputs = _joint_attention(axis=2, mixing=False)
    report = run_pass(sink_concat, program, inputs, **REORDERED)
    assert report.changed["sunk"] == 1
    order = names(program)
    assert order.count("aten.mul.Tensor") == 2
    assert order.index("aten.cat.default") > order.index("aten.mul.Tensor")


def test_sink_concat__mixing_is_skipped_with_a_reason() -> None:
    program, inputs = _joint_attention(axis=2, mixing=True)
    report = run_pass(sink_concat, program, inputs, **REORDERED)
    assert not report.changed["sunk"]
    assert [why for _, why in report.skipped] == ["its readers mix the parts"]


def test_sink_concat__features_stay() -> None:
    program, inputs = _feature_concat()
    report = run_pass(sink_concat, program, inputs, **REORDERED)
    assert not report.changed["sunk"]


def _feature_concat() -> tuple[Program, dict[str, Tensor]]:
    b = ProgramBuilder()
    halves = [b.input(floats(1, 2, 5, 4)), b.input(floats(1, 2, 5, 4, seed=1))]
    joint = b.call(aten.neg.default, b.call(aten.cat.default, halves, -1))
    output = b.call(aten.scaled_dot_product_attention.default, joint, joint, joint)
    return b.finish(output), b.inputs


# ---- materialize


def test_materialize__outputs_and_parts_are_copies() -> None:
    b = ProgramBuilder()
    x, y = b.input(floats(3, 5)), b.input(floats(3, 4))
    program = b.finish(b.call(aten.neg.default, b.call(aten.cat.default, [x, y], 1)), x)
    report = run_pass(materialize, program, b.inputs)
    assert report.changed == {"concat": 1, "output": 2}
    assert names(program).count("svdq.copy.default") == 4
    assert "svdq.concat.default" in names(program)


def test_materialize__stacks_are_chosen_by_index() -> None:
    b = ProgramBuilder()
    x, y = b.input(floats(3, 1)), b.input(floats(3, 1, seed=1))
    program = b.finish(b.call(aten.cat.default, [x, y], 1))
    assert run_pass(materialize, program, b.inputs).changed == {"output": 1}


def test_materialize__attention_reads_plain_strides() -> None:
    """A transposed input is plainly strided; a flipped one is copied."""
    b = ProgramBuilder()
    x = b.input(floats(1, 6, 2, 8))
    plain = b.call(aten.permute.default, x, [0, 2, 1, 3])
    rolled = b.call(aten.roll.default, plain, [1], [2])
    output = b.call(aten.scaled_dot_product_attention.default, plain, rolled, plain)
    program = b.finish(output)
    assert run_pass(materialize, program, b.inputs).changed == {"operand": 1, "output": 1}
