"""Calls of every op with an element rule: values, types, odd sizes, negative axes and steps, broadcasting."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from tests.compiler.programs import Call, call
from torch import Tensor

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
I64, I32, I16, I8, U8, BOOL = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 1e-30, 90.0, -105.0, math.inf, -math.inf, math.nan)


def floats(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=F32).to(dtype)


def positive(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return (floats(*shape).abs() + 0.1).to(dtype)


def unit(*shape: int) -> Tensor:
    return floats(*shape).tanh() * 0.99


def ints(
    *shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = I64, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def bools(*shape: int, seed: int = 0) -> Tensor:
    return ints(*shape, low=0, high=2, seed=seed).to(BOOL)


def edges(dtype: torch.dtype = F32) -> Tensor:
    return torch.tensor(EDGES, dtype=dtype)


def nonzero(*shape: int, dtype: torch.dtype = I64) -> Tensor:
    value = ints(*shape, low=-5, high=5, seed=1)
    return torch.where(value >= 0, value + 1, value).to(dtype)


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


def views() -> Iterator[Call]:
    x = floats(2, 3, 5)
    for target in ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"):
        yield call(target, floats(4, 6), [2, 12])
        yield call(target, floats(4, 6), [3, 8], label="unaligned")
        yield call(target, floats(4, 6), [-1], label="flat")
        yield call(target, floats(4, 6), [2, 1, 2, 3, 2], label="split")
        yield call(target, floats(1, 6, 1), [6, 1], label="ones")
    yield call("aten.reshape.default", floats(1), [], label="scalar")
    yield call("aten.reshape.default", torch.tensor(3.0), [1, 1], label="from scalar")
    yield call("aten.flatten.using_ints", x, 1)
    yield call("aten.flatten.using_ints", x, -2, -1, label="negative")
    yield call("aten.permute.default", x, [2, 0, 1])
    yield call("aten.permute.default", x, [-1, 0, -2], label="negative")
    yield call("aten.transpose.int", x, 0, -1)
    yield call("aten.t.default", floats(3, 5))
    yield call("aten.t.default", floats(5), label="vector")
    yield call("aten.numpy_T.default", floats(3, 5))
    yield call("aten.alias.default", x)
    yield call("aten.detach.default", x)
    yield call("aten.unsqueeze.default", x, 0)
    yield call("aten.unsqueeze.default", x, -1, label="negative")
    one = floats(1, 3, 1, 2)
    yield call("aten.squeeze.dim", one, 0)
    yield call("aten.squeeze.dim", one, -2, label="negative")
    yield call("aten.squeeze.dim", one, 1, label="not one")
    yield call("aten.squeeze.dims", one, [0, 2])
    yield call("aten.squeeze.dims", one, [1, -2], label="one of two")
    yield call("aten.squeeze.default", one)
    yield call("aten.expand.default", floats(3, 1), [2, 3, 4])
    yield call("aten.expand.default", floats(3, 1), [-1, 4], label="keep")
    for index in (0, 2, -1, -3):
        yield call("aten.select.int", x, 1, index, label=f"{index}")
    for label, rest in {
        "all": (),
        "end": (0, 0, 2),
        "start": (2, 1),
        "negative start": (2, -2),
        "negative end": (-1, 0, -1),
        "both negative": (2, -4, -1),
        "past the end": (2, 1, 99),
        "before the start": (2, -99, 3),
        "step 2": (2, 0, 9223372036854775807, 2),
        "step 3 from 1": (2, 1, 5, 3),
        "empty": (1, 2, 1),
        "empty at end": (1, 3, 9),
        "none": (1, None, None, 2),
        "one": (1, 1, 2),
    }.items():
        yield call("aten.slice.Tensor", x, *rest, label=label)
    yield call("aten.narrow.default", x, 2, 1, 3)
    yield call("aten.narrow.default", x, -1, -4, 2, label="negative")
    yield call("aten.cat.default", [x, floats(2, 1, 5), floats(2, 4, 5)], 1)
    yield call("aten.cat.default", [x, floats(2, 3, 1)], -1, label="negative")
    yield call("aten.cat.default", [x, ints(2, 3, 2)], 2, label="f32 i64")
    yield call("aten.cat.default", [floats(3, 0), floats(3, 4)], 1, label="empty part")
    yield call("aten.cat.default", [floats(3, 1), floats(3, 1), floats(3, 1)], 1, label="stack")
    yield call("aten.cat.default", [floats(0), floats(3, 4)], 0, label="legacy empty")
    yield call("aten.stack.default", [floats(3), floats(3, seed=1), floats(3, seed=2)], -1)
    yield call("aten.stack.default", [ints(3), floats(3)], 0, label="i64 f32")
    yield call("aten.constant_pad_nd.default", x, [1, 2])
    yield call("aten.constant_pad_nd.default", x, [1, 2, 0, 3], 7.5, label="value")
    yield call("aten.constant_pad_nd.default", x, [-1, 2, 1, -1], label="crop")
    yield call("aten.constant_pad_nd.default", x, [-1, -2], label="crop only")
    yield call("aten.constant_pad_nd.default", ints(3, 4), [1, 0, 0, 1], 3, label="i64")
    yield call("aten.flip.default", x, [0, 2])
    yield call("aten.flip.default", x, [-2], label="negative")
    yield call("aten.roll.default", x, [2], [2])
    yield call("aten.roll.default", x, [-1, 7], [1, -1], label="two axes")
    yield call("aten.roll.default", x, [-12], [2], label="many times")
    yield call("aten.roll.default", x, [4], label="flat")
    yield call("aten.repeat.default", floats(3, 2), [2, 1, 3])
    yield call("aten.repeat.default", floats(1, 2), [4, 2], label="one")
    yield call("aten.repeat.default", torch.tensor(2.0), [3], label="scalar")
    yield call("aten.slice_scatter.default", x, floats(2, 3, 2), 2, 1, 3)
    yield call("aten.slice_scatter.default", x, floats(2, 3, 3), -1, 0, 99, 2, label="step")
    yield call("aten.slice_scatter.default", x, floats(2, 3, 2), 2, -2, label="negative")
    yield call("aten.slice_scatter.default", x, floats(2, 2, 5), 1, None, -1, label="end")
    yield call("aten.select_scatter.default", x, floats(2, 5), 1, 2)
    yield call("aten.select_scatter.default", x, floats(2, 3), -1, -1, label="negative")
    yield call("aten.lift_fresh_copy.default", x)
    for sizes, outs in (((5,), (10,)), ((5,), (7,)), ((6,), (4,)), ((7,), (7,))):
        source = floats(2, 3, *sizes)
        yield call("aten.upsample_nearest1d.default", source, list(outs), label=f"{sizes}{outs}")
    yield call("aten.upsample_nearest1d.vec", floats(1, 2, 5), None, [2.0])
    yield call("aten.upsample_nearest2d.default", floats(1, 3, 4, 5), [8, 15])
    yield call("aten.upsample_nearest2d.vec", floats(1, 3, 4, 5), None, [2.0, 3.0])
    yield call("aten.upsample_nearest2d.vec", floats(1, 3, 4, 5), [6, 3], None, label="size")
    yield call("aten.upsample_nearest3d.default", floats(1, 2, 3, 4, 2), [6, 4, 6])
    yield call("aten.upsample_nearest3d.vec", floats(1, 2, 3, 4, 2), None, [2.0, 2.0, 2.0])


def creation() -> Iterator[Call]:
    yield call("aten.full.default", [3, 5], 2.5)
    yield call("aten.full.default", [3, 5], 7, dtype=I32, label="i32")
    yield call("aten.full.default", [], -math.inf, label="scalar")
    yield call("aten.full_like.default", ints(3, 5), 4)
    yield call("aten.full_like.default", ints(3, 5), 1.5, dtype=F32, label="f32")
    yield call("aten.scalar_tensor.default", 1.5)
    yield call("aten.scalar_tensor.default", 3, dtype=I64, label="i64")
    yield call("aten.zeros.default", [4])
    yield call("aten.zeros.default", [0, 3], label="empty")
    yield call("aten.zeros_like.default", bools(3))
    yield call("aten.new_zeros.default", floats(3), [2, 2])
    yield call("aten.ones.default", [2, 3], dtype=BOOL)
    yield call("aten.ones_like.default", ints(3))
    yield call("aten.new_ones.default", floats(3), [2, 2])
    yield call("aten.arange.default", 7)
    yield call("aten.arange.default", 7, dtype=F32, label="f32")
    yield call("aten.arange.default", 2.5, label="float end")
    yield call("aten.arange.start", 3, 9)
    yield call("aten.arange.start", 0.5, 4.0, label="float")
    yield call("aten.arange.start_step", 9, -4, -3)
    yield call("aten.arange.start_step", 0, 9, 2, dtype=F32, label="f32")
    yield call("aten.arange.start_step", 0.0, 1.0, 0.25, label="float")
    yield call("aten.arange.start_step", 1, 9, 3, dtype=I32, label="i32")
    yield call("aten.eye.default", 5)
    yield call("aten.eye.m", 3, 5, dtype=I64)


def indexing() -> Iterator[Call]:
    x = floats(4, 5, 6)
    yield call("aten.embedding.default", floats(9, 6), ints(3, 4, low=0, high=9))
    yield call(
        "aten.embedding.default", floats(9, 6), ints(3, low=0, high=9, dtype=I32), label="i32"
    )
    yield call("aten.index_select.default", x, 1, torch.tensor([4, 0, 0, 3]))
    yield call("aten.index_select.default", x, -1, torch.tensor([5, 2]), label="negative axis")
    yield call("aten.gather.default", x, 1, ints(4, 3, 6, low=0, high=5))
    yield call("aten.gather.default", x, -1, ints(2, 3, 2, low=0, high=6), label="smaller")
    rows, columns = torch.tensor([3, -1, 0]), torch.tensor([1, -5, 4])
    yield call("aten.index.Tensor", x, [rows])
    yield call("aten.index.Tensor", x, [None, columns], label="second axis")
    yield call("aten.index.Tensor", x, [rows, columns], label="pairs")
    yield call("aten.index.Tensor", x, [rows[:, None], columns], label="grid")
    yield call("aten.index.Tensor", x, [rows, None, columns], label="apart")
    yield call("aten.index.Tensor", x, [None, rows[:2, None], columns[:1]], label="broadcast")
    yield call("aten.index.Tensor", x, [rows.to(I32)], label="i32")
    yield call("aten._unsafe_index.Tensor", x, [None, None, columns])
    for align in (False, True):
        yield call("aten.upsample_linear1d.default", floats(2, 3, 5), [11], align, label=f"{align}")
        yield call(
            "aten.upsample_linear1d.vec", floats(2, 3, 5), [3], align, None, label=f"{align}"
        )
        yield call(
            "aten.upsample_bilinear2d.default", floats(1, 3, 4, 5), [8, 10], align, label=f"{align}"
        )
        yield call(
            "aten.upsample_bilinear2d.vec",
            floats(1, 3, 4, 5),
            None,
            align,
            [2.0, 2.0],
            label=f"{align}",
        )
        yield call(
            "aten.upsample_bilinear2d.default",
            floats(1, 2, 7, 5),
            [3, 9],
            align,
            label=f"{align} down",
        )
    yield call("aten.upsample_bilinear2d.default", floats(1, 2, 7, 5), [1, 1], True, label="to one")


def pooling() -> Iterator[Call]:
    line, image, volume = floats(2, 3, 11), floats(2, 3, 7, 9), floats(1, 2, 5, 4, 6)
    yield call("aten.avg_pool1d.default", line, [3])
    yield call("aten.avg_pool1d.default", line, [3], [2], [1], label="padded")
    yield call("aten.avg_pool1d.default", line, [3], [2], [1], True, False, label="ceil, no pad")
    yield call("aten.avg_pool1d.default", line, [3], [3], [1], True, True, label="ceil")
    yield call("aten.avg_pool2d.default", image, [2, 3])
    yield call("aten.avg_pool2d.default", image, [3, 3], [2, 2], [1, 1], False, False, label="pad")
    yield call("aten.avg_pool2d.default", image, [3], [2], [1], True, True, label="ceil")
    yield call(
        "aten.avg_pool2d.default", image, [2, 2], [2, 2], [0, 0], True, False, label="ceil no pad"
    )
    yield call(
        "aten.avg_pool2d.default", image, [2, 2], [], [0, 0], False, True, 3, label="divisor"
    )
    yield call("aten.avg_pool2d.default", floats(3, 7, 9), [2, 2], label="no batch")
    yield call("aten.avg_pool3d.default", volume, [2, 2, 2])
    yield call("aten.max_pool1d.default", line, [3], [2], [1])
    yield call("aten.max_pool1d.default", line, [3], [2], [0], [2], label="dilated")
    yield call("aten.max_pool1d.default", line, [4], [3], [0], [1], True, label="ceil")
    yield call("aten.max_pool2d.default", image, [3, 3], [2, 2], [1, 1])
    yield call("aten.max_pool2d.default", image, [2, 2], [2, 2], [0, 0], [1, 1], True, label="ceil")
    yield call("aten.max_pool2d.default", image, [2, 2], [1, 1], [0, 0], [2, 3], label="dilated")
    yield call("aten.max_pool3d.default", volume, [2, 2, 2])


def reductions() -> Iterator[Call]:
    x, one = floats(3, 5, 7), floats(3, 1, 7)
    flags = bools(3, 5, 7) | bools(1, 5, 7, seed=4)
    for axes in ([1], [-1], [0, 2], [0], []):
        for keep in (False, True):
            label = f"{axes} {keep}"
            yield call("aten.sum.dim_IntList", x, axes, keep, label=label)
            yield call("aten.amax.default", x, axes, keep, label=label)
            yield call("aten.amin.default", x, axes, keep, label=label)
            yield call("aten.mean.dim", x, axes, keep, label=label)
            if axes:
                yield call("aten.any.dims", flags, axes, keep, label=label)
                yield call("aten.all.dims", flags, axes, keep, label=label)
    yield call("aten.sum.dim_IntList", x, None, label="None")
    yield call("aten.mean.dim", x, None, label="None")
    yield call("aten.sum.dim_IntList", one, [1], label="size one")
    yield call("aten.amax.default", one, [1], True, label="size one")
    yield call("aten.sum.dim_IntList", ints(3, 5), [1], label="i64")
    yield call("aten.sum.dim_IntList", ints(3, 5, dtype=I32), [0], label="i32")
    yield call("aten.sum.dim_IntList", bools(3, 5), [1], label="bool")
    yield call("aten.sum.dim_IntList", ints(3, 5), [1], dtype=F32, label="i64 as f32")
    yield call("aten.sum.dim_IntList", floats(3, 65, dtype=BF16), [1], label="bf16")
    yield call("aten.sum.dim_IntList", floats(3, 0), [1], label="empty")
    yield call("aten.mean.dim", floats(3, 65, dtype=F16), [1], label="f16")
    yield call("aten.mean.dim", floats(3, 65, dtype=F64), [1], label="f64")
    yield call("aten.mean.dim", ints(3, 5), [1], dtype=F32, label="i64 as f32")
    yield call("aten.amax.default", ints(3, 5), [1], label="i64")
    yield call("aten.amin.default", ints(3, 5, dtype=I8), [1], label="i8")
    yield call("aten.amax.default", bools(3, 5), [1], label="bool")
    yield call("aten.amin.default", bools(3, 5), [1], label="bool")
    yield call("aten.amax.default", edges().reshape(1, -1), [1], label="nan")
    yield call("aten.amin.default", edges()[:-1].reshape(2, -1), [1], label="inf")
    for target in ("aten.sum.default", "aten.mean.default", "aten.prod.default"):
        yield call(target, x)
        yield call(target, torch.tensor(2.5), label="scalar")
    yield call("aten.prod.dim_int", x, 1)
    yield call("aten.prod.dim_int", ints(3, 5), -1, True, label="i64")
    for name in ("any", "all"):
        yield call(f"aten.{name}.default", flags)
        yield call(f"aten.{name}.default", ints(3, 5, low=0, high=2), label="i64")
        yield call(f"aten.{name}.dim", flags, -1)
        yield call(f"aten.{name}.dim", floats(3, 5).round(), 0, True, label="f32")
        yield call(f"aten.{name}.dim", torch.zeros(2, 0, dtype=BOOL), 1, label="empty")
    yield call("aten.sum.dim_IntList", floats(3, 1000), [1], label="long")
    yield call("aten.sum.dim_IntList", floats(40, 3, 17), [0, 1], label="outer axes")


FAMILIES = {
    "unary": unary,
    "binary": binary,
    "comparisons": comparisons,
    "choices": choices,
    "casts": casts,
    "views": views,
    "creation": creation,
    "indexing": indexing,
    "pooling": pooling,
    "reductions": reductions,
}
