"""Modules, exports, factories: inputs and outputs of every shape, dims, weights, and every error."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdqc.compiler.ir.program import Dim
from svdqc.compiler.ir.symbols import SymbolTable
from svdqc.errors import SvdqcError
from svdqc.frontends import capture, flatten_inputs
from svdqc.frontends import errors as e


class Call(nn.Module):
    """A module around a function of tensors, with one linear layer `layer` of 8 x 8."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.body = body

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.body(self.layer, x, y)


def x_of(*shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(shape, generator=torch.Generator().manual_seed(2))}


@dataclasses.dataclass
class Result:
    sample: Tensor
    more: tuple[Tensor, None]


class Nested(nn.Module):
    """Nested inputs, a dataclass that torch does not know as the output, submodules as sources."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, cond: list[Any], scale: float = 1.0) -> Result:
        for block in self.blocks:
            x = self.drop(block(x)) * cond[0]["mask"] * scale
        return Result(x, (x + cond[1][0], None))


def nested_inputs(batch: int) -> dict[str, Any]:
    return {
        "x": torch.randn(batch, 8),
        "cond": [{"mask": torch.rand(batch, 1), "unused": None}, (torch.ones(8),)],
        "scale": 0.5,
    }


def test_nested__names_values_sources_and_training_mode() -> None:
    model = Nested().train()
    program = capture(model, nested_inputs(3), dynamic="batch@x.0+cond.0.mask.0=1:5")
    assert all(module.training for module in model.modules())
    assert program.input_names() == ["x", "cond.0.mask", "cond.1.0"]
    assert [spec.name for spec in program.outputs] == ["sample", "more.0"]
    linears = [n for n in program.graph_module.graph.nodes if "linear" in str(n.target)]
    assert [node.meta["source"] for node in linears] == ["blocks.0", "blocks.1"]
    model.eval()
    for batch in (1, 5):
        inputs = nested_inputs(batch)
        expected = model(**inputs)
        sample, more = program.run(flatten_inputs(inputs))
        assert torch.equal(sample, expected.sample)
        assert torch.equal(more, expected.more[0])


def test_weights__referenced_not_copied_and_read_where_used() -> None:
    model = Nested()
    program = capture(model, nested_inputs(2))
    weight = model.blocks[1].weight
    assert isinstance(weight, Tensor)
    assert program.weights.load("blocks.1.weight").data_ptr() == weight.data_ptr()
    nodes = list(program.graph_module.graph.nodes)
    first = next(i for i, node in enumerate(nodes) if node.op == "call_function")
    read = [i for i, n in enumerate(nodes) if n.meta.get("weight") == "blocks.1.weight"]
    assert read[0] > first
    assert set(program.weights.names()) == {
        f"blocks.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_outputs__tensor_tuple_and_dict() -> None:
    for body, names in [
        (lambda layer, x, y: layer(x), ["0"]),
        (lambda layer, x, y: (layer(x), None, x), ["0", "2"]),
        (lambda layer, x, y: {"out": layer(x), "aux": [x]}, ["out", "aux.0"]),
    ]:
        assert [spec.name for spec in capture(Call(body), x_of(2, 8)).outputs] == names


def test_inputs__positional_numpy_and_unused() -> None:
    model = Call(lambda layer, x, y: layer(x))
    program = capture(model, [torch.ones(2, 8).numpy(), torch.ones(3)])  # type: ignore[arg-type]
    assert program.input_names() == ["x", "y"]
    (found,) = program.run({"x": torch.ones(2, 8), "y": torch.ones(3)})
    assert torch.equal(found, model.layer(torch.ones(2, 8)))


def test_graph__in_place_updates_become_functional() -> None:
    def body(layer: nn.Linear, x: Tensor, y: Tensor | None) -> Tensor:
        z = x.clone()
        z[:, 1:3] = 3
        z.view(-1).mul_(2)
        return layer(z).add_(1).chunk(2, dim=-1)[1]

    model = Call(body)
    program = capture(model, x_of(3, 8))
    assert torch.equal(program.run(x_of(3, 8))[0], model(**x_of(3, 8)))
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function":
            name = str(node.target)
            assert not name.startswith(("aten._assert", "aten.clone", "aten.view")), name
            assert not node.target._schema.is_mutable


def test_graph__writes_through_data_are_kept() -> None:
    def body(layer: nn.Linear, x: Tensor, y: Tensor | None) -> Tensor:
        table = torch.zeros(1, 5, 8)
        table.data[:, 2:].copy_(torch.arange(24).reshape(1, 3, 8))
        return layer(x + table)

    model = Call(body)
    program = capture(model, x_of(2, 5, 8))
    assert torch.equal(program.run(x_of(2, 5, 8))[0], model(**x_of(2, 5, 8)))


def test_graph__complex_arithmetic_is_real() -> None:
    def body(layer: nn.Linear, x: Tensor, y: Tensor | None) -> Tensor:
        angle = torch.arange(4) * 0.1
        turn = torch.polar(torch.ones(4), angle).unsqueeze(0)
        z = torch.view_as_complex(layer(x).unflatten(-1, (4, 2)))
        padding = torch.zeros(1, 4, dtype=torch.complex64)
        z = torch.nn.functional.pad(z, (0, 0, 1, 0))
        both = torch.cat([z * turn, z * turn.conj() - z, padding], dim=0)
        return torch.view_as_real(both.permute(1, 0) * 2.0).flatten(1)

    model = Call(body)
    program = capture(model, x_of(3, 8))
    expected = model(**x_of(3, 8))
    torch.testing.assert_close(program.run(x_of(3, 8))[0], expected, rtol=1e-6, atol=1e-6)


# --- dims --------------------------------------------------------------------------------------------


def heads(layer: nn.Linear, x: Tensor, y: Tensor | None) -> Tensor:
    """Works for a multiple of 8 only."""
    return x.reshape(x.shape[0], 8, x.shape[1] // 8).sum(1)


def test_dims__multiple_counts_units() -> None:
    program = capture(Call(heads), x_of(2, 32), dynamic="width@x.1=8:64:8")
    assert list(program.dims.values()) == [Dim("width", 8, 64, 8)]
    (name,) = program.dims
    assert str(program.inputs[0].shape[1]) == f"8*{name}"
    (found,) = program.run(x_of(2, 8))
    assert torch.equal(found, heads(Call(heads).layer, x_of(2, 8)["x"], None))
    table = SymbolTable(program)
    size = table.shape(next(iter(program.graph_module.graph.nodes)))[1]
    assert size.evaluate({"width": 40}) == 40
    assert (size.lower(), size.upper()) == (8, 64)


@pytest.mark.parametrize(
    "dynamic",
    [
        "n@x.0=2:9,n+1@y.0",
        {"x": {0: ("n", 2, 9)}, "y": {0: "n+1"}},
        {"n@x.0": "2:9", "n+1@y.0": None},
    ],
)
def test_dims__derived(dynamic: Any) -> None:
    model = Call(lambda layer, x, y: layer(x) + y[1:])
    program = capture(model, {**x_of(3, 8), "y": torch.ones(4, 8)}, dynamic=dynamic)
    assert [dim.name for dim in program.dims.values()] == ["n"]
    inputs = {**x_of(9, 8), "y": torch.ones(10, 8)}
    assert torch.equal(program.run(inputs)[0], model(**inputs))


def test_dims__derived_multiple() -> None:
    model = Call(lambda layer, x, y: layer(x).flatten() + y)
    inputs = {**x_of(4, 8), "y": torch.ones(32)}
    program = capture(model, inputs, dynamic="n@x.0=2:8:2,8*n@y.0")
    assert str(program.inputs[1].shape[0]).startswith("16*")
    inputs = {**x_of(6, 8), "y": torch.ones(48)}
    assert torch.equal(program.run(inputs)[0], model(**inputs))


def test_dims__batch_binds_what_has_the_size_of_the_first() -> None:
    model = Call(lambda layer, x, y: layer(x).sum(1) + y)
    program = capture(model, {**x_of(3, 4, 8), "y": torch.ones(3, 8)}, dynamic={"batch": (1, 4)})
    assert [str(spec.shape[0]) for spec in program.inputs] == list(program.dims) * 2


def test_dims__fixed_range_is_static() -> None:
    assert capture(Call(heads), x_of(2, 32), dynamic="width@x.1=32").dims == {}


@pytest.mark.parametrize(
    ("body", "dynamic", "message"),
    [
        (heads, "w@x.1=8:64", "w must be a multiple of 8: write w=8:64:8"),
        (lambda layer, x, y: layer(x), "w@x.1=2:64", "w must be 8: leave 'w' out"),
        (lambda layer, x, y: x + y, "a@x.0=2:9,b@y.0=2:9", "b must equal a: write 'a@y.0'"),
        (lambda layer, x, y: x + y[1:], "a@x.0=2:9,b@y.0=2:9", "write 'a+1@y.0'"),
        (lambda layer, x, y: x if x.shape[0] < 20 else x * 2, "a@x.0=2:64", "write a=2:19"),
    ],
)
def test_dims__constraint_says_what_to_write(
    body: Callable[..., Any], dynamic: str, message: str
) -> None:
    inputs = {"x": torch.ones(4, 8 if body is not heads else 32)}
    if "y." in dynamic:
        inputs["y"] = torch.ones(5 if "+1" in message else 4, 8)
    with pytest.raises(e.DimConstraintError) as caught:
        capture(Call(body), inputs, dynamic=dynamic)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dynamic", "error", "message"),
    [
        ("batch", e.DynamicSpecError, "without a range"),
        ("batch=four", e.DynamicSpecError, "'four'"),
        ("batch=4:1", e.DynamicSpecError, "1 <= lo <= hi"),
        ("batch=1:2:3:4", e.DynamicSpecError, "range"),
        ("batch=1:4,batch=1:8", e.DynamicSpecError, "a second range"),
        ("2*n@x.0=1:4", e.DynamicSpecError, "derived"),
        ("n@x=1:4", e.DynamicSpecError, "input.axis"),
        ("n m@x.0=1:4", e.DynamicSpecError, "the dim 'n m'"),
        ("w@x.1=3:64:8", e.DynamicSpecError, "write w=8:64:8"),
        ("a@x.0=2:4,b@x.0=2:4", e.DynamicSpecError, "belongs to 'a'"),
        ({"x": {-1: ("n", 1, 4)}}, e.DynamicSpecError, "axis"),
        ({"x": {0: 5}}, e.DynamicSpecError, "the dim 5"),
        ({3: "1:4"}, e.DynamicSpecError, "not a string"),
        (7, e.DynamicSpecError, "int"),
        ("height=8:64", e.UnknownDimError, "'height@input.axis=8:64'"),
        ("n@z.0=1:4", e.UnknownDimError, r"no axis z.0.*x\[2, 32\]"),
        ("n@x.2=1:4", e.UnknownDimError, "no axis x.2"),
        ("w@x.1=64:128", e.UnusableInputsError, "size 32 at x.1"),
        ("w@x.1=16:32:16,2*w@x.0", e.UnusableInputsError, "size 2 at x.0"),
        ("w@x.1=32:64:32", e.UnusableInputsError, "w >= 64"),
    ],
)
def test_dims__mistakes(dynamic: Any, error: type[SvdqcError], message: str) -> None:
    with pytest.raises(error, match=message):
        capture(Call(heads), x_of(2, 32), dynamic=dynamic)


# --- exports and factories ---------------------------------------------------------------------------


def exported() -> torch.export.ExportedProgram:
    batch, unit = torch.export.Dim("b", min=1, max=6), torch.export.Dim("u", min=1, max=8)
    shapes = {"x": {0: batch, 1: 8 * unit}, "y": None}
    return torch.export.export(
        Call(heads).eval(), (), {**x_of(3, 32), "y": None}, dynamic_shapes=shapes
    )


def test_export__dims_are_its_own() -> None:
    program = capture(exported())
    assert sorted((d.lo, d.hi, d.multiple) for d in program.dims.values()) == [
        (1, 6, 1),
        (8, 64, 8),
    ]
    assert program.run(x_of(5, 64))[0].shape == (5, 8)


def test_export__file_with_dims_named_and_narrowed(tmp_path: Path) -> None:
    torch.export.save(exported(), tmp_path / "small.pt2")
    program = capture(tmp_path / "small.pt2", dynamic="batch@x.0=1:4,width@x.1=16:64:8")
    assert set(program.dims.values()) == {Dim("batch", 1, 4), Dim("width", 16, 64, 8)}
    assert program.name == "small"
    found = program.run(x_of(4, 16))[0]
    assert torch.equal(found, heads(Call(heads).layer, x_of(4, 16)["x"], None))


def test_export__wrong_dims() -> None:
    with pytest.raises(e.DimConstraintError, match=r"allows 1\.\.6"):
        capture(exported(), dynamic="batch@x.0=1:8")
    with pytest.raises(e.UnknownDimError, match=r"x\.0"):
        capture(exported(), dynamic="rows@y.0=1:8")


def test_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some_models.py").write_text(
        "import torch\n"
        "def with_inputs():\n    return torch.nn.Linear(4, 2), {'input': torch.ones(3, 4)}\n"
        "def alone():\n    return torch.nn.Linear(4, 2)\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    raise OSError('no weights here')\n"
    )
    assert capture("some_models:with_inputs").outputs[0].shape == (3, 2)
    assert capture("some_models:alone", {"input": torch.ones(1, 4)}).name == "alone"
    with pytest.raises(e.MissingInputsError, match="input"):
        capture("some_models:alone")
    for name, message in [
        ("some_models:wrong", "it made a int"),
        ("some_models:broken", "no weights here"),
        ("some_models:absent", "absent"),
        ("no_such_module:f", "no_such_module"),
    ]:
        with pytest.raises(e.FactoryError, match=message):
            capture(name)


# --- mistakes ----------------------------------------------------------------------------------------


def empty_archive(path: Path) -> Path:
    zipfile.ZipFile(path, "w").close()
    return path


def test_error__paths(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    cases: list[tuple[Any, type[SvdqcError], str]] = [
        (tmp_path / "absent.onnx", e.ModelNotFoundError, "no such file"),
        (write("model.bin", ""), e.NotAModelError, r"a \.bin file"),
        (write("broken.pt2", "x"), e.NotAModelError, r"not a \.pt2 archive"),
        (empty_archive(tmp_path / "empty.pt2"), e.NotAModelError, "no loadable export"),
        (write("empty/readme", "").parent, e.NotAModelError, "no config.json"),
        (write("text/config.json", "{").parent, e.NotAModelError, "no JSON"),
        (write("plain/config.json", "{}").parent, e.NotAModelError, "_class_name"),
        (
            write("odd/config.json", '{"_class_name": "NoSuchModel"}').parent,
            e.UnknownModelClassError,
            "NoSuchModel",
        ),
        (
            write("bare/config.json", '{"_class_name": "DiTTransformer2DModel"}').parent,
            e.NotAModelError,
            "no .safetensors file",
        ),
        (42, e.NotAModelError, "int"),
    ]
    for path, error, message in cases:
        with pytest.raises(error, match=message):
            capture(path)


def test_error__inputs() -> None:
    model = Call(lambda layer, x, y: layer(x))
    cases: list[tuple[Any, type[SvdqcError], str]] = [
        (None, e.MissingInputsError, "x, y"),
        ({}, e.UnusableInputsError, "no x"),
        ({**x_of(2, 8), "z": 1}, e.UnusableInputsError, "takes no z"),
        ({"x": object()}, e.UnusableInputsError, "object"),
        ([1, 2, 3], e.UnusableInputsError, "3 positional"),
        (3, e.UnusableInputsError, "int"),
        (x_of(2, 7), e.ExportFailedError, "strict=False.*strict=True"),
    ]
    for inputs, error, message in cases:
        with pytest.raises(error, match=message):
            capture(model, inputs)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Counter(), e.UnsupportedGraphError, "calls.*writes to it"),
        (Call(lambda layer, x, y: x if x.sum() > 0 else -x), e.ExportFailedError, "strict=True"),
        (Call(lambda layer, x, y: x[x > 0]), e.UnsupportedGraphError, "depends on the values"),
        (Call(lambda layer, x, y: 3), e.UnsupportedGraphError, "no output is a tensor"),
        (Call(lambda layer, x, y: torch.fft.fft(x)), e.UnsupportedGraphError, "complex"),
        (nn.Linear(2, 2, device="meta"), e.NotAModelError, "meta"),
    ],
)
def test_error__graphs(model: nn.Module, error: type[SvdqcError], message: str) -> None:
    with pytest.raises(error, match=message):
        capture(model, [torch.ones(2, 8)])  # type: ignore[arg-type]
