"""Calls of pointwise ops: functions, arithmetic, comparisons, choices, casts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from tests.compiler.element_operands import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    bools,
    edges,
    floats,
    ints,
    nonzero,
    positive,
    unit,
)
from tests.compiler.programs import Call, call

UNARY = [
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
]
_DOMAIN = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "log1p"), positive),
    **dict.fromkeys(("asin", "acos", "atanh"), unit),
}
_EXACT_INTEGER = ("abs", "neg", "relu", "sign", "floor", "ceil", "trunc", "round")
_FROM_INTEGER = ("exp", "sin", "sigmoid", "tanh", "reciprocal", "erf", "atan", "exp2", "cosh")


def unary() -> Iterator[Call]:
    for name in UNARY:
        target = f"aten.{name}.default"
        x = _DOMAIN[name](3, 37) if name in _DOMAIN else floats(3, 37) * 3
        x = x.abs() + 1 if name == "acosh" else x
        yield call(target, x)
        yield call(target, x.double()[:, :5].clone(), label="f64")
        x = (
            edges()[:-1] if name == "sign" else edges()
        )  # NaN has the sign NaN, as in NumPy and ONNX
        yield call(target, x, label="edges")
        if name in _EXACT_INTEGER:
            yield call(target, ints(5, 7), label="i64")
            yield call(target, ints(5, 7, dtype=I32), label="i32")
        if name in _FROM_INTEGER:
            yield call(target, ints(5, 7, low=-3, high=4), label="from i64")
    for name in ("exp", "silu", "rsqrt", "neg"):
        for dtype in (BF16, F16):
            x = positive(2, 19) if name == "rsqrt" else floats(2, 19)
            yield call(f"aten.{name}.default", x.to(dtype), label=str(dtype)[6:])
    yield call("aten.sign.default", bools(5), label="bool")
    for dtype in (F32, I64, BOOL, BF16):
        x = bools(4, 5) if dtype is BOOL else (floats(4, 5) * 4).to(dtype)
        yield call("aten.logical_not.default", x, label=str(dtype)[6:])
    for x in (ints(4, 3), ints(4, 3, dtype=I8), ints(4, 3, low=0, dtype=U8), bools(4, 3)):
        yield call("aten.bitwise_not.default", x, label=str(x.dtype)[6:])
    yield call("aten.isnan.default", edges())
    yield call("aten.isinf.default", edges())
    yield call("aten.isnan.default", ints(5), label="i64")
    yield call("aten.isinf.default", ints(5), label="i64")
    yield call("aten.gelu.default", floats(3, 33) * 3)
    yield call("aten.gelu.default", floats(3, 33) * 3, approximate="tanh", label="tanh")
    finite = edges()[
        edges().isfinite()
    ]  # at infinities PyTorch's result depends on the loop it takes
    yield call("aten.gelu.default", finite, label="edges")
    yield call("aten.gelu.default", edges(), approximate="tanh", label="tanh edges")
    yield call("aten.leaky_relu.default", floats(3, 7))
    yield call("aten.leaky_relu.default", floats(3, 7), 0.3, label="slope")
    yield call("aten.leaky_relu.default", edges(), label="edges")
    yield call("aten.elu.default", floats(3, 7))
    yield call("aten.elu.default", floats(3, 7), 1.5, 2.0, 0.7, label="scaled")
    yield call("aten.softplus.default", floats(3, 7) * 9)
    yield call("aten.softplus.default", floats(3, 7) * 9, 2.0, 3.0, label="beta")
    yield call("aten.hardtanh.default", floats(3, 7) * 2)
    yield call("aten.hardtanh.default", edges(), -0.5, 0.25, label="edges")


def binary() -> Iterator[Call]:
    pairs = {
        "f32": (floats(3, 5), floats(3, 5, seed=1)),
        "broadcast": (floats(3, 1, 5), floats(2, 1)),
        "scalar tensor": (floats(3, 5), torch.tensor(1.5)),
        "f32 i64": (floats(3, 5), nonzero(5)),
        "i64": (ints(3, 5), nonzero(3, 5)),
        "i32 i64": (ints(3, 5, dtype=I32), nonzero(3, 5)),
        "i32": (ints(3, 5, dtype=I32), nonzero(3, 5, dtype=I32)),
        "i8": (ints(3, 5, dtype=I8), nonzero(3, 5, dtype=I8)),
        "bf16": (floats(3, 5, dtype=BF16), floats(5, dtype=BF16, seed=1)),
        "f16 scalar": (floats(3, 5, dtype=F16), torch.tensor(0.25)),
        "f64": (floats(3, 5, dtype=F64), floats(3, 5, dtype=F64, seed=1)),
        "edges": (edges(), edges().flip(0)),
        "size one": (floats(1, 1), floats(1)),
        "empty": (floats(0, 5), floats(1, 5)),
    }
    for name in ("add", "sub", "mul", "div"):
        for label, (a, b) in pairs.items():
            yield call(f"aten.{name}.Tensor", a, b, label=label)
    for name in ("minimum", "maximum"):
        for label in ("f32", "broadcast", "i64", "f32 i64", "edges", "i8"):
            yield call(f"aten.{name}.default", *pairs[label], label=label)
        yield call(f"aten.{name}.default", bools(7), bools(7, seed=3), label="bool")
    for name in ("fmod", "remainder"):
        for label in ("f32", "i64", "f32 i64", "i32", "edges", "i8", "f64"):
            yield call(f"aten.{name}.Tensor", *pairs[label], label=label)
        yield call(f"aten.{name}.Scalar", floats(3, 5), -0.7)
        yield call(f"aten.{name}.Scalar", ints(3, 5), -4, label="i64")
        yield call(f"aten.{name}.Scalar", ints(3, 5), 2.5, label="i64 float")
    yield call("aten.atan2.default", *pairs["f32"])
    yield call("aten.atan2.default", *pairs["edges"], label="edges")
    yield call("aten.atan2.default", floats(3, 5), floats(3, 1), label="broadcast")
    for name in ("and", "or", "xor"):
        for label in ("i64", "i32", "i8", "i32 i64"):
            yield call(f"aten.bitwise_{name}.Tensor", *pairs[label], label=label)
        yield call(f"aten.bitwise_{name}.Tensor", bools(9), bools(9, seed=3), label="bool")
        yield call(f"aten.bitwise_{name}.Scalar", ints(3, 5), 6)
        yield call(f"aten.logical_{name}.default", bools(9), bools(9, seed=3), label="bool")
        yield call(f"aten.logical_{name}.default", ints(9, low=0, high=3), floats(9), label="mix")
    for label in ("f32", "broadcast", "i64", "f32 i64", "bf16", "i32 i64"):
        a, b = pairs[label]
        yield call("aten.add.Tensor", a, b, alpha=2, label=f"alpha {label}")
        yield call("aten.sub.Tensor", a, b, alpha=3, label=f"alpha {label}")
        yield call("aten.rsub.Tensor", a, b, alpha=2, label=f"alpha {label}")
        yield call("aten.rsub.Tensor", a, b, label=label)
    yield call("aten.add.Tensor", bools(7), bools(7, seed=3), label="bool")
    yield call("aten.mul.Tensor", bools(7), bools(7, seed=3), label="bool")
    yield call("aten.add.Tensor", bools(7), ints(7), label="bool i64")
    yield call("aten.mul.Tensor", bools(7), floats(7), label="bool f32")
    yield call(
        "aten.mul.Tensor",
        ints(4, high=100, dtype=U8, low=60),
        ints(4, low=50, high=90, dtype=U8),
        label="u8 wraps",
    )
    yield call("aten.add.Tensor", ints(4, high=128, dtype=I8, low=100), 100, label="i8 wraps")
    yield call("aten.add.Tensor", floats(3, 5), 2, label="number")
    yield call("aten.mul.Tensor", ints(3, 5), 0.5, label="i64 number")
    yield call("aten.div.Tensor", ints(3, 5), 4, label="i64 number")
    for name in ("add", "sub", "mul", "div"):
        yield call(f"aten.{name}.Scalar", floats(3, 5), 1.7)
        yield call(f"aten.{name}.Scalar", ints(3, 5), 3, label="i64")
        yield call(f"aten.{name}.Scalar", ints(3, 5), 0.3, label="i64 float")
    yield call("aten.rsub.Scalar", floats(3, 5), 1.7)
    yield call("aten.rsub.Scalar", ints(3, 5), 3, 2, label="i64 alpha")
    for mode in ("floor", "trunc", None):
        for label in ("f32", "i64", "i32", "f32 i64", "edges", "i8"):
            if label == "edges" and mode == "floor":
                continue
            yield call(
                "aten.div.Tensor_mode", *pairs[label], rounding_mode=mode, label=f"{mode} {label}"
            )
        yield call("aten.div.Scalar_mode", ints(3, 5), -4, rounding_mode=mode, label=f"{mode} i64")
        yield call("aten.div.Scalar_mode", floats(3, 5), 0.3, rounding_mode=mode, label=f"{mode}")
    for label in ("f32", "i64", "i32", "f32 i64", "i8"):
        yield call("aten.floor_divide.default", *pairs[label], label=label)
    yield call("aten.floor_divide.default", ints(3, 5), -4, label="number")
    yield call("aten.pow.Tensor_Tensor", positive(3, 5), floats(5))
    yield call("aten.pow.Tensor_Tensor", floats(3, 5), ints(3, 5, low=-2, high=4), label="f32 i64")
    yield call("aten.pow.Tensor_Tensor", ints(3, 5), ints(3, 5, low=0, high=5), label="i64")
    yield call("aten.pow.Scalar", 2.5, floats(3, 5))
    yield call("aten.pow.Scalar", -3, ints(3, 5, low=0, high=6), label="i64")
    for exponent in (0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 1.5):
        yield call("aten.pow.Tensor_Scalar", positive(3, 5), exponent, label=f"{exponent}")
    for exponent in (0, 1, 2, 3, 5):
        yield call("aten.pow.Tensor_Scalar", ints(3, 5), exponent, label=f"i64 {exponent}")
    for exponent in (2, 3, 5, 0.5, 1.5):
        yield call("aten.pow.Tensor_Scalar", edges(), exponent, label=f"edges {exponent}")
    yield call("aten.pow.Tensor_Scalar", ints(3, 5).abs() + 1, 0.5, label="i64 0.5")
    yield call("aten.pow.Tensor_Scalar", ints(3, 5).abs() + 1, 2.0, label="i64 2.0")


def comparisons() -> Iterator[Call]:
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        target = f"aten.{name}"
        yield call(f"{target}.Tensor", ints(4, 9).float(), ints(9, seed=1).float())
        yield call(f"{target}.Tensor", edges(), edges().flip(0), label="edges")
        yield call(f"{target}.Tensor", ints(4, 9, dtype=I32), ints(4, 9, seed=1), label="i32 i64")
        yield call(f"{target}.Tensor", ints(4, 9), floats(4, 1) * 5, label="i64 f32")
        yield call(f"{target}.Tensor", bools(9), bools(9, seed=3), label="bool")
        yield call(f"{target}.Scalar", ints(4, 9), 0.5, label="i64 float")
        yield call(f"{target}.Scalar", ints(4, 9), 3, label="i64")
        yield call(f"{target}.Scalar", floats(4, 9, dtype=BF16), 0.1, label="bf16")


def choices() -> Iterator[Call]:
    yield call("aten.where.Scalar", bools(3, 5), 1, 0)
    yield call("aten.where.Scalar", bools(3, 5), 0.5, -2, label="f32")
    mask = bools(3, 5)
    yield call("aten.where.self", mask, floats(3, 5), floats(5))
    yield call("aten.where.self", mask, floats(3, 5), ints(3, 1), label="f32 i64")
    yield call("aten.where.self", bools(3, 1), ints(5), torch.tensor(7), label="i64")
    yield call("aten.where.self", mask, bools(3, 5, seed=2), bools(5), label="bool")
    yield call("aten.where.ScalarOther", mask, floats(3, 5), 2.5)
    yield call("aten.where.ScalarSelf", mask, -math.inf, floats(3, 5))
    yield call("aten.masked_fill.Scalar", floats(3, 5), bools(5), -math.inf)
    yield call("aten.masked_fill.Scalar", ints(3, 5), bools(3, 1), 7, label="i64")
    yield call("aten.masked_fill.Tensor", floats(3, 5), mask, torch.tensor(2.0))
    yield call("aten.clamp.default", floats(3, 5) * 3, -1, 2.5)
    yield call("aten.clamp.default", ints(3, 5), None, 4, label="i64 max")
    yield call("aten.clamp.default", ints(3, 5), 0.5, label="i64 float")
    yield call("aten.clamp.default", edges(), -2.0, 2.0, label="edges")
    yield call("aten.clamp.default", floats(7), 2.0, -2.0, label="min above max")
    yield call("aten.clamp.Tensor", floats(3, 5), floats(5) - 1, floats(3, 1) + 1)
    yield call("aten.clamp_min.default", floats(3, 5), 0.2)
    yield call("aten.clamp_min.default", edges(), 0.0, label="edges")
    yield call("aten.clamp_max.default", ints(3, 5), 2, label="i64")
    yield call("aten.lerp.Scalar", floats(3, 5), floats(5), 0.3)
    yield call("aten.lerp.Tensor", floats(3, 5), floats(3, 5, seed=1), unit(5))
    yield call("aten.addcmul.default", floats(3, 5), floats(3, 1), floats(5))
    yield call("aten.addcmul.default", floats(3, 5), floats(3, 5), floats(5), value=-0.5, label="v")
    for diagonal in (-2, -1, 0, 1, 3, 9, -9):
        yield call("aten.tril.default", floats(4, 6), diagonal, label=f"{diagonal}")
        yield call("aten.triu.default", floats(2, 6, 4), diagonal, label=f"{diagonal}")
    yield call("aten.tril.default", bools(5, 5), label="bool")
    yield call("aten.triu.default", ints(5, 5), 1, label="i64")


def casts() -> Iterator[Call]:
    values = torch.tensor([0.0, 1.0, -1.0, 0.4, 2.5, -2.5, 3.999, 100.0, 65.0])
    for source in (F32, F64, F16, BF16, I64, I32, I16, I8, U8, BOOL):
        for target in (F32, F64, F16, BF16, I64, I32, I16, I8, U8, BOOL):
            if target is U8 and source in (F32, F64, F16, BF16):
                continue  # a negative float has no u8: any result is right
            yield call(
                "aten._to_copy.default",
                values.to(source),
                dtype=target,
                label=f"{source} to {target}".replace("torch.", ""),
            )
    yield call(
        "aten._to_copy.default", ints(9, low=250, high=300), dtype=U8, label="i64 wraps to u8"
    )
    yield call("aten._to_copy.default", edges(), dtype=BOOL, label="edges to bool")
    yield call("aten._to_copy.default", edges(), dtype=BF16, label="edges to bf16")
    yield call("aten._to_copy.default", edges(), dtype=F16, label="edges to f16")
    yield call("aten.to.dtype", floats(5) * 9, I32)
    yield call("prims.convert_element_type.default", ints(5), F32)
    yield call("aten.clone.default", floats(3, 5))
    yield call("svdq.copy.default", ints(3, 5))
