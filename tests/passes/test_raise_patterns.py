"""Spelled-out attention, activations and biased products are raised, and what is raised computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.base import PassReport
from svdqc.compiler.passes.raise_linear import module_of
from svdqc.compiler.passes.raise_patterns import raise_patterns
from svdqc.compiler.passes.simplify import simplify
from svdqc.frontends import capture

# Sums of up to 16 terms below 4 in another order: 16 · 2⁻²³ · 4.
TOLERANCE = 1e-5


class Function(nn.Module):
    """A function of tensors as a model; the last of its inputs may be stored weights."""

    def __init__(self, function: Callable[..., Tensor], *weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.stored = nn.ParameterList(nn.Parameter(w) for w in weights)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.function(x, y, z, *self.stored)


def raised(
    function: Callable[..., Tensor], *weights: Tensor, shape: tuple[int, ...] = (2, 3, 5, 4)
) -> tuple[Program, PassReport]:
    """The raised program, after checking that it computes what the function does."""
    torch.manual_seed(0)
    inputs = {name: torch.randn(shape) for name in "xyz"}
    model = Function(function, *weights)
    program = capture(model, inputs)
    simplify(program)
    report = raise_patterns(program)
    inputs = {spec.name: inputs[spec.name] for spec in program.inputs}
    with torch.no_grad():
        expected = model(*(inputs.get(n, torch.zeros(shape)) for n in "xyz"))
    (found,) = program.run(inputs)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    return program, report


def targets(program: Program) -> list[str]:
    graph = program.graph_module.graph
    return [str(n.target).split(".")[1] for n in graph.nodes if n.op == "call_function"]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.5, dim=-1) @ v


def both_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * 0.7) @ (k.transpose(-1, -2) / 1.25), dim=-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.where(v[:1, :1, :, :1].transpose(-1, -2) > 0, 0.0, -10000.0)
    return torch.softmax(mask + (q @ k.transpose(-1, -2)) / 2.0, dim=-1) @ v


def bool_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept = torch.ones(5, 5, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-1, -2)).masked_fill(~kept, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def flattened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(6, 5, 4) for x in (q, k, v))
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.5, dim=-1), v)


def flattened_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As torch.onnx writes it: the batch of k is flattened for its transpose."""
    transposed = k.reshape(6, 5, 4).permute(0, 2, 1).reshape(2, 3, 4, 5)
    return torch.softmax((q * 0.7) @ (transposed * 0.7), dim=-1) @ v


def in_sixteen_bits(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.bfloat16() @ k.bfloat16().transpose(-1, -2)
    return torch.softmax(scores.float(), dim=-1).bfloat16() @ v.bfloat16()


@pytest.mark.parametrize(
    "function", [plain, both_scaled, masked, bool_masked, flattened, flattened_key]
)
def test_raise_attention(function: Callable[..., Tensor]) -> None:
    program, report = raised(function)
    assert report.changed["attention"] == 1
    names = targets(program)
    assert "scaled_dot_product_attention" in names
    assert not {"softmax", "_softmax", "matmul", "bmm"} & set(names)


def test_raise_attention__key_flattened_for_its_transpose_is_read_as_it_was() -> None:
    program, _ = raised(flattened_key)
    assert targets(program) == ["scaled_dot_product_attention"]


def test_raise_attention__through_casts() -> None:
    torch.manual_seed(0)
    inputs = {name: torch.randn(1, 2, 5, 4) for name in "xyz"}
    program = capture(Function(in_sixteen_bits), inputs)
    before = program.run(inputs)[0].float()
    simplify(program)
    assert raise_patterns(program).changed["attention"] == 1
    after = program.run(inputs)[0].float()
    # bfloat16 keeps 8 bits; probabilities are rounded to it on one side only.
    torch.testing.assert_close(after, before, rtol=0, atol=4 * 2.0**-8)


def scaled_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q @ k.transpose(-1, -2) + v[..., :1]) * 0.5, dim=-1) @ v


def other_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), dim=-2) @ v


def broadcast_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k[:1].transpose(-1, -2), dim=-1) @ v


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (scaled_mask, "the mask is scaled"),
        (other_axis, "not over the keys"),
        (broadcast_keys, "batches of q, k and v differ"),
    ],
)
def test_raise_attention__leaves_with_reason(function: Callable[..., Tensor], reason: str) -> None:
    _, report = raised(function)
    assert report.changed["attention"] == 0
    assert any(reason in why for _, why in report.skipped)


GELU_ERF = [
    lambda x, y, z: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    lambda x, y, z: x * (0.5 * (1 + torch.erf(x * 0.7071067811865476))),
    lambda x, y, z: (torch.erf(x / 1.4142135381698608) + 1) * x * 0.5,
    lambda x, y, z: x * (torch.erf(x / 1.4142135381698608) * 0.5 + 0.5),
]
GELU_TANH = [
    lambda x, y, z: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    lambda x, y, z: x * ((torch.tanh((x + x * x * x * 0.044715) * 0.79788458) + 1) * 0.5),
    lambda x, y, z: x / 2 * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
]
SILU = [lambda x, y, z: x * torch.sigmoid(x), lambda x, y, z: torch.sigmoid(x + y) * (x + y)]


@pytest.mark.parametrize("function", GELU_ERF)
def test_raise_gelu_erf(function: Callable[..., Tensor]) -> None:
    program, _ = raised(function)
    assert targets(program) == ["gelu"]


@pytest.mark.parametrize("function", GELU_TANH)
def test_raise_gelu_tanh(function: Callable[..., Tensor]) -> None:
    program, _ = raised(function)
    assert targets(program) == ["gelu"]
    node = next(n for n in program.graph_module.graph.nodes if n.op == "call_function")
    assert node.kwargs == {"approximate": "tanh"}


@pytest.mark.parametrize("function", SILU)
def test_raise_silu(function: Callable[..., Tensor]) -> None:
    program, _ = raised(function)
    assert targets(program)[-1] == "silu"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, z: x * torch.sigmoid(1.702 * x),
        lambda x, y, z: x * torch.sigmoid(y),
        lambda x, y, z: 0.5 * x * (1 + torch.erf(y / math.sqrt(2))),
        lambda x, y, z: 0.5 * x * (1 + torch.erf(x / 2)),
        lambda x, y, z: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.05 * x**3))),
    ],
)
def test_raise_activation__leaves_other_formulas(function: Callable[..., Tensor]) -> None:
    program, report = raised(function)
    assert not report.changed
    assert not {"gelu", "silu"} & set(targets(program))


def test_raise_linear__matmul_and_bias() -> None:
    weight, bias = torch.randn(4, 6), torch.randn(6)
    program, report = raised(lambda x, y, z, w, b: b + x @ w, weight, bias)
    assert targets(program) == ["linear"]
    assert report.changed["matmul_of_weight"] + report.changed["bias_into_linear"] == 2


def test_raise_linear__bias_with_leading_ones() -> None:
    weight, bias = torch.randn(6, 4), torch.randn(1, 1, 6)
    program, _ = raised(
        lambda x, y, z, w, b: nn.functional.linear(x, w) + b, weight, bias, shape=(2, 3, 4)
    )
    assert targets(program) == ["linear"]


def test_raise_linear__bias_stays_where_the_product_has_other_readers() -> None:
    weight, bias = torch.randn(6, 4), torch.randn(6)

    def twice(x: Tensor, y: Tensor, z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        product = nn.functional.linear(x, w)
        return (product + b) * product

    program, report = raised(twice, weight, bias)
    assert not report.changed
    assert "add" in targets(program)


def test_raise_linear__bias_per_row_is_no_bias() -> None:
    weight, bias = torch.randn(6, 4), torch.randn(5, 6)
    program, _ = raised(lambda x, y, z, w, b: nn.functional.linear(x, w) + b, weight, bias)
    assert targets(program) == ["linear", "add"]


def test_raise_layer_norm__scale_of_ones_is_dropped() -> None:
    def norm(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (4,), w)

    assert raised(norm, torch.ones(4))[1].changed["drop_unit_scale"] == 1
    assert not raised(norm, torch.tensor([1.0, 1.0, 1.0, 1.5]))[1].changed


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("blocks.0.attn.to_q", "blocks.0.attn.to_q"),
        ("/blocks.0/attn/to_q/MatMul", "blocks.0.attn.to_q"),
        ("proj_out", "proj_out"),
        ("node_MatMul_12", ""),
        ("MatMul_12", ""),
        ("", ""),
    ],
)
def test_module_of(source: str, module: str) -> None:
    assert module_of(source) == module
