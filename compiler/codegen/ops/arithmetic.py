"""Pointwise arithmetic, comparison, logic and activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import (
    ElementContext,
    Index,
    argument,
    compute_dtype,
    dtype_of,
    element_rule,
    promoted,
)
from svdqc.compiler.codegen.scalar import FLOATS, Const, Op, Scalar, cast, where


def _unary(name: str, *targets: str) -> None:
    @element_rule(*targets)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        dtype = compute_dtype(dtype_of(node))
        return cast(Op(name, (ctx.operand(node.args[0], idx, dtype),), dtype), dtype_of(node))


def _binary(name: str, *targets: str) -> None:
    @element_rule(*targets)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        dtype = compute_dtype(dtype_of(node))
        lhs = ctx.operand(node.args[0], idx, dtype)
        rhs = ctx.operand(node.args[1], idx, dtype)
        return cast(Op(name, (lhs, rhs), dtype), dtype_of(node))


def _comparison(name: str, *targets: str) -> None:
    @element_rule(*targets)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        dtype = promoted(node, *node.args[:2])
        lhs = ctx.operand(node.args[0], idx, dtype)
        rhs = ctx.operand(node.args[1], idx, dtype)
        return Op(name, (lhs, rhs), "bool")


for _name in [
    "abs",
    "neg",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "tanh",
    "erf",
    "sigmoid",
    "silu",
    "relu",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "floor",
    "ceil",
    "trunc",
    "round",
    "sign",
]:
    _unary(_name, f"aten.{_name}.default")

_binary("mul", "aten.mul.Tensor", "aten.mul.Scalar")
_binary("fmod", "aten.fmod.Tensor", "aten.fmod.Scalar")
for _name in ("minimum", "maximum", "atan2"):
    _binary(_name, f"aten.{_name}.default")
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _binary(_name, f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")
_binary("remainder", "aten.remainder.Tensor", "aten.remainder.Scalar")
_binary("pow", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")

for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _comparison(_name, f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")


def _scaled_sum(name: str, *targets: str) -> None:
    """add and sub carry `alpha`: lhs ± alpha * rhs."""

    @element_rule(*targets)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        dtype = compute_dtype(dtype_of(node))
        lhs = ctx.operand(node.args[0], idx, dtype)
        rhs = ctx.operand(node.args[1], idx, dtype)
        alpha = argument(node, 2, "alpha", 1)
        if alpha != 1:
            rhs = Op("mul", (rhs, ctx.operand(alpha, idx, dtype)), dtype)
        if dtype == "bool":
            return Op("logical_or", (lhs, rhs), dtype)
        return cast(Op(name, (lhs, rhs), dtype), dtype_of(node))


_scaled_sum("add", "aten.add.Tensor", "aten.add.Scalar")
_scaled_sum("sub", "aten.sub.Tensor", "aten.sub.Scalar")


@element_rule("aten.rsub.Scalar", "aten.rsub.Tensor")
def _rsub(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    lhs = ctx.operand(node.args[0], idx, dtype)
    rhs = ctx.operand(node.args[1], idx, dtype)
    alpha = argument(node, 2, "alpha", 1)
    if alpha != 1:
        lhs = Op("mul", (lhs, ctx.operand(alpha, idx, dtype)), dtype)
    return cast(Op("sub", (rhs, lhs), dtype), dtype_of(node))


@element_rule("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    lhs = ctx.operand(node.args[0], idx, dtype)
    rhs = ctx.operand(node.args[1], idx, dtype)
    mode = argument(node, 3, "rounding_mode")
    if mode == "floor":
        return cast(Op("floor_divide", (lhs, rhs), dtype), dtype_of(node))
    quotient: Scalar = Op("div", (lhs, rhs), dtype)
    if mode == "trunc" and dtype in ("f32", "f64"):
        quotient = Op("trunc", (quotient,), dtype)
    return cast(quotient, dtype_of(node))


@element_rule("aten.floor_divide.default")
def _floor_divide(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    operands = (ctx.operand(node.args[0], idx, dtype), ctx.operand(node.args[1], idx, dtype))
    return cast(Op("floor_divide", operands, dtype), dtype_of(node))


@element_rule("aten.pow.Tensor_Scalar")
def _pow(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    base = ctx.operand(node.args[0], idx, dtype)
    exponent = node.args[1]
    power: Scalar
    if exponent in (2, 3):
        power = Op("mul", (base, base), dtype)
        if exponent == 3:
            power = Op("mul", (power, base), dtype)
    elif exponent == 0.5:
        power = Op("sqrt", (base,), dtype)
    elif exponent == -0.5:
        power = Op("rsqrt", (base,), dtype)
    elif exponent == -1:
        power = Op("reciprocal", (base,), dtype)
    elif exponent == 1:
        power = base
    else:
        power = Op("pow", (base, ctx.operand(exponent, idx, dtype)), dtype)
    return cast(power, dtype_of(node))


@element_rule("aten.gelu.default")
def _gelu(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    name = "gelu_tanh" if argument(node, 1, "approximate", "none") == "tanh" else "gelu_erf"
    return cast(Op(name, (ctx.operand(node.args[0], idx, dtype),), dtype), dtype_of(node))


@element_rule("aten.leaky_relu.default")
def _leaky_relu(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    x = ctx.operand(node.args[0], idx, dtype)
    slope = ctx.operand(argument(node, 1, "negative_slope", 0.01), idx, dtype)
    zero = Const(0.0, dtype)
    return cast(where(Op("gt", (x, zero), "bool"), x, Op("mul", (x, slope), dtype)), dtype_of(node))


@element_rule("aten.elu.default")
def _elu(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    x = ctx.operand(node.args[0], idx, dtype)
    alpha = ctx.operand(argument(node, 1, "alpha", 1.0), idx, dtype)
    scale = ctx.operand(argument(node, 2, "scale", 1.0), idx, dtype)
    input_scale = ctx.operand(argument(node, 3, "input_scale", 1.0), idx, dtype)
    negative = Op("mul", (alpha, Op("expm1", (Op("mul", (x, input_scale), dtype),), dtype)), dtype)
    branch = where(Op("gt", (x, Const(0.0, dtype)), "bool"), x, negative)
    return cast(Op("mul", (branch, scale), dtype), dtype_of(node))


@element_rule("aten.softplus.default")
def _softplus(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    x = ctx.operand(node.args[0], idx, dtype)
    beta = float(argument(node, 1, "beta", 1.0))
    threshold = float(argument(node, 2, "threshold", 20.0))
    scaled = Op("mul", (x, Const(beta, dtype)), dtype)
    soft = Op(
        "mul", (Op("log1p", (Op("exp", (scaled,), dtype),), dtype), Const(1 / beta, dtype)), dtype
    )
    return cast(where(Op("gt", (scaled, Const(threshold, dtype)), "bool"), x, soft), dtype_of(node))


@element_rule("aten.hardtanh.default")
def _hardtanh(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return _clamp_to(
        ctx, node, idx, argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    )


@element_rule("aten.clamp.default", "aten.clamp.Tensor")
def _clamp(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return _clamp_to(ctx, node, idx, argument(node, 1, "min"), argument(node, 2, "max"))


@element_rule("aten.clamp_min.default")
def _clamp_min(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return _clamp_to(ctx, node, idx, node.args[1], None)


@element_rule("aten.clamp_max.default")
def _clamp_max(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return _clamp_to(ctx, node, idx, None, node.args[1])


def _clamp_to(ctx: ElementContext, node: Node, idx: Index, low: object, high: object) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    value = ctx.operand(node.args[0], idx, dtype)
    if low is not None:
        value = Op("maximum", (value, ctx.operand(low, idx, dtype)), dtype)
    if high is not None:
        value = Op("minimum", (value, ctx.operand(high, idx, dtype)), dtype)
    return cast(value, dtype_of(node))


@element_rule(
    "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar"
)
def _where(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = dtype_of(node)
    condition = ctx.operand(node.args[0], idx, "bool")
    return where(
        condition, ctx.operand(node.args[1], idx, dtype), ctx.operand(node.args[2], idx, dtype)
    )


@element_rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = dtype_of(node)
    mask = ctx.operand(node.args[1], idx, "bool")
    return where(mask, ctx.operand(node.args[2], idx, dtype), ctx.operand(node.args[0], idx, dtype))


def _logical(name: str) -> None:
    @element_rule(f"aten.logical_{name}.default")
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        operands = tuple(ctx.operand(arg, idx, "bool") for arg in node.args)
        return Op(f"logical_{name}", operands, "bool")


for _name in ("and", "or", "xor", "not"):
    _logical(_name)


@element_rule("aten.bitwise_not.default")
def _bitwise_not(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = dtype_of(node)
    name = "logical_not" if dtype == "bool" else "bitwise_not"
    return Op(name, (ctx.operand(node.args[0], idx, dtype),), dtype)


def _float_test(target: str, build: Callable[[Scalar], Scalar]) -> None:
    @element_rule(target)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        source = node.args[0]
        assert isinstance(source, Node)
        return build(ctx.operand(source, idx, compute_dtype(dtype_of(source))))


_float_test("aten.isnan.default", lambda x: Op("ne", (x, x), "bool"))


def _is_infinite(x: Scalar) -> Scalar:
    if x.dtype not in FLOATS:
        return Const(False, "bool")
    return Op("eq", (Op("abs", (x,), x.dtype), Const(math.inf, x.dtype)), "bool")


_float_test("aten.isinf.default", _is_infinite)


@element_rule("aten._to_copy.default", "aten.to.dtype", "prims.convert_element_type.default")
def _to_copy(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.operand(node.args[0], idx, dtype_of(node))


@element_rule("aten.clone.default", "svdq.copy.default", "aten.contiguous.default")
def _copy(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.operand(node.args[0], idx, dtype_of(node))


@element_rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def _lerp(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    start, end, weight = (ctx.operand(arg, idx, dtype) for arg in node.args)
    return cast(
        Op("add", (start, Op("mul", (weight, Op("sub", (end, start), dtype)), dtype)), dtype),
        dtype_of(node),
    )


@element_rule("aten.addcmul.default")
def _addcmul(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    dtype = compute_dtype(dtype_of(node))
    base, lhs, rhs = (ctx.operand(arg, idx, dtype) for arg in node.args)
    product: Scalar = Op("mul", (lhs, rhs), dtype)
    value = node.kwargs.get("value", 1)
    if value != 1:
        product = Op("mul", (product, ctx.operand(value, idx, dtype)), dtype)
    return cast(Op("add", (base, product), dtype), dtype_of(node))
