"""Running: tensors of every kind in and out, dims, and every mistake a caller can make."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime import tiny

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.write import ArtifactTensor, write_artifact
from svdqc.compiler.ir.intexpr import IntExpr, symbol
from svdqc.compiler.ir.program import Dim
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Launch, Plan, TensorPort
from svdqc.errors import SvdqcError
from svdqc.runtime import Outputs, load, verify
from svdqc.runtime.errors import (
    ArtifactNotFound,
    BadArgument,
    BadDim,
    BadInput,
    BadPlan,
    BadTensor,
    UnknownDevice,
)

IDENTITY = r"""
#include "svdq_kernel.h"
extern "C" {
extern SVDQ_KERNEL_EXPORT const uint32_t svdq_code_abi;
const uint32_t svdq_code_abi = SVDQ_KERNEL_ABI;
SVDQ_KERNEL_EXPORT void copy(const svdq_kernel_args* a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) ((char*)a->buffers[1])[i] = ((const char*)a->buffers[0])[i];
}
}
"""


def inputs(batch: int = 3, rows: int = 8) -> dict[str, Any]:
    x = np.random.default_rng(7).standard_normal((batch, rows), dtype=np.float32)
    return {"x": x, "gate": [np.zeros(batch, np.int64)]}


@pytest.mark.parametrize(("batch", "rows"), [(1, 4), (3, 8), (8, 64), (2, 60)])
def test_run__gives_the_numbers(artifact: Path, batch: int, rows: int) -> None:
    with load(artifact, trust=True, threads=2) as model:
        given = inputs(batch, rows)
        out = model(**given)
    sample, total = tiny.reference(given["x"])
    np.testing.assert_array_equal(out.sample, sample)
    np.testing.assert_array_equal(out["total"], total)


def test_run__shapes_change_between_calls(artifact: Path) -> None:
    with load(artifact, trust=True, threads=2) as model:
        for batch, rows in [(1, 4), (8, 64), (2, 12), (8, 64)]:
            given = inputs(batch, rows)
            np.testing.assert_array_equal(model(**given).sample, tiny.reference(given["x"])[0])


def test_run__outputs_by_name_attribute_and_position(artifact: Path) -> None:
    out = load(artifact, trust=True)(**inputs())
    assert isinstance(out, Outputs)
    assert list(out) == ["sample", "total"]
    assert out.sample is out["sample"] is out[0]
    with pytest.raises(AttributeError, match="sample, total"):
        _ = out.nothing


def test_run__describes_itself(artifact: Path) -> None:
    model = load(artifact, trust=True)
    assert [(p.name, p.dtype, p.shape, p.lo, p.hi) for p in model.inputs] == [
        ("x", "f32", ("batch", "rows"), (1, 4), (8, 64)),
        ("gate.0", "i64", ("batch",), (1,), (8,)),
    ]
    assert [p.name for p in model.outputs] == ["sample", "total"]
    assert [(d.name, d.lo, d.hi, d.multiple) for d in model.dims] == [
        ("batch", 1, 8, 1),
        ("rows", 4, 64, 4),
    ]
    description = model.describe()
    assert description["meta"] == {"text": "ü\n\x01", "scale": 0.5}
    assert description["num_launches"] == 2
    assert "tiny" in repr(model)


def test_run__torch_in_torch_out(artifact: Path) -> None:
    torch = pytest.importorskip("torch")
    given = inputs()
    x = torch.from_numpy(given["x"])
    strided = torch.empty(8, 3).t().copy_(x)  # [3, 8], not contiguous
    assert not strided.is_contiguous()
    out = load(artifact, trust=True)(x=strided, gate=[torch.zeros(3, dtype=torch.int64)])
    assert isinstance(out.sample, torch.Tensor)
    np.testing.assert_array_equal(out.sample.numpy(), tiny.reference(given["x"])[0])


def test_run__dlpack_in(artifact: Path) -> None:
    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    given = inputs()
    out = load(artifact, trust=True)(x=Foreign(given["x"]), gate=[Foreign(given["gate"][0])])
    np.testing.assert_array_equal(out.sample, tiny.reference(given["x"])[0])


def test_run__numpy_views_are_read_as_they_look(artifact: Path) -> None:
    x = inputs(6, 16)["x"][::2, ::2]
    out = load(artifact, trust=True)(x=x, gate=[np.zeros(3, np.int64)])
    np.testing.assert_array_equal(out.sample, tiny.reference(x)[0])


def test_run__profile(artifact: Path) -> None:
    model = load(artifact, trust=True, profile=True, threads=2)
    model(**inputs())
    assert [(p.label, p.kernel) for p in model.profile()] == [
        ("block.scale", "scale"),
        ("block.shift", "shift_sum"),
    ]
    assert all(p.microseconds >= 0 for p in model.profile())
    with pytest.raises(BadArgument, match="profile=1"):
        load(artifact, trust=True).profile()


def copy_artifact(path: Path, folder: Path, plan: Plan) -> Path:
    variant = Variant("cpu:portable", (), tiny.compile_code(folder, IDENTITY), plan)
    write_artifact(
        path,
        name="copy",
        producer="svdqc tests",
        tensors=[ArtifactTensor("unused", "u8", (1,), "row_major", 1, lambda: b"x")],
        variants=[variant],
        graph=b"",
        quantization={},
        source_digest="",
        meta={},
    )
    return path


def copy_plan(
    dtype: str,
    in_shape: tuple[Any, ...],
    out_shape: tuple[Any, ...],
    size: Any,
    dims: tuple[Dim, ...],
) -> Plan:
    zero, size = IntExpr.of(0), IntExpr.of(size)
    return Plan(
        dims=dims,
        inputs=(TensorPort("x", dtype, tuple(map(IntExpr.of, in_shape))),),
        outputs=(TensorPort("y", dtype, tuple(map(IntExpr.of, out_shape))),),
        buffers=(Buffer("input", size, 0), Buffer("output", size, 0)),
        kernels=(KernelEntry("copy"),),
        launches=(
            Launch(
                0,
                (BufferArg(0, zero, size, "read"), BufferArg(1, zero, size, "write")),
                (),
                size,
                zero,
                "copy",
            ),
        ),
        arena_bytes=0,
    )


@pytest.mark.parametrize("kind", ["torch", "ml_dtypes"])
def test_run__bfloat16(tmp_path: Path, kind: str) -> None:
    module = pytest.importorskip(kind)
    path = copy_artifact(
        tmp_path / "copy.svdq", tmp_path, copy_plan("bf16", (2, 3), (3, 2), 12, ())
    )
    values = np.array([[1.0, -2.5, 3.0], [0.0, 1e30, 7.0]], np.float32)
    if kind == "torch":
        out = load(path, trust=True)(x=module.tensor(values, dtype=module.bfloat16)).y
        assert out.dtype is module.bfloat16
        expected = module.tensor(values).bfloat16().float().reshape(3, 2).numpy()
        np.testing.assert_array_equal(out.float().numpy(), expected)
    else:
        x = values.astype(module.bfloat16)
        out = load(path, trust=True)(x=x).y
        assert out.dtype == x.dtype
        np.testing.assert_array_equal(out.view(np.uint16), x.reshape(3, 2).view(np.uint16))


def test_run__bfloat16_without_ml_dtypes_is_widened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = copy_artifact(tmp_path / "copy.svdq", tmp_path, copy_plan("bf16", (2,), (2,), 4, ()))
    x = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    out = load(path, trust=True)(x=x).y
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, [1.5, -3.0])


def test_run__dim_inside_an_expression(tmp_path: Path) -> None:
    """The only input's size is 2h + 1: h is found from it."""
    h = symbol("h", 1, 100)
    plan = copy_plan("u8", (h * 2 + 1,), (h * 2 + 1, 1), h * 2 + 1, (Dim("h", 1, 100),))
    model = load(copy_artifact(tmp_path / "copy.svdq", tmp_path, plan), trust=True)
    assert model(x=np.zeros(7, np.uint8)).y.shape == (7, 1)
    with pytest.raises(BadDim, match=r"'h'.* is 8; it must be 3 to 201"):
        model(x=np.zeros(8, np.uint8))


def test_run__scalar_input_and_empty_tensors(tmp_path: Path) -> None:
    model = load(
        copy_artifact(tmp_path / "s.svdq", tmp_path, copy_plan("f32", (), (), 4, ())), trust=True
    )
    assert model(x=2.5).y == np.float32(2.5)
    n = symbol("n", 0, 4)
    plan = copy_plan("f32", (n,), (n,), n * 4, (Dim("n", 0, 4),))
    model = load(copy_artifact(tmp_path / "e.svdq", tmp_path, plan), trust=True)
    assert model(x=np.zeros(0, np.float32)).y.shape == (0,)


X = inputs()["x"]
G = np.zeros(3, np.int64)
MISTAKES: dict[str, tuple[type[SvdqcError], dict[str, Any], str]] = {
    "missing": (BadInput, {"x": X}, r"'gate.0': this input is missing.*'x', 'gate.0'"),
    "unknown": (
        BadInput,
        {"x": X, "gate": [G], "q": X},
        r"'q': the model has no input.*'x', 'gate.0'",
    ),
    "twice": (BadInput, {"x": X, "gate": [G], "gate.0": G}, r"'gate.0': this input is given twice"),
    "dtype": (
        BadInput,
        {"x": X.astype("f8"), "gate": [G]},
        r"'x': its dtype is f64; the model takes f32",
    ),
    "rank": (
        BadInput,
        {"x": X[0], "gate": [G]},
        r"'x': it has 1 dimensions \[8\]; the model takes 2",
    ),
    "too_large": (
        BadDim,
        {"x": np.zeros((9, 8), "f4"), "gate": [G]},
        r"'x': dimension 0 \('batch'\) is 9; .* 1 to 8",
    ),
    "multiple": (
        BadDim,
        {"x": X[:, :7], "gate": [G]},
        r"\('rows'\) is 7; it must be 4 to 64, a multiple of 4",
    ),
    "zero": (BadDim, {"x": X[:0], "gate": [G[:0]]}, r"\('batch'\) is 0; it must be 1 to 8"),
    "unequal": (
        BadDim,
        {"x": X, "gate": [G[:2]]},
        r"'gate.0': dimension 0 .* 2 in \[2\]; it must be 3: 'batch' is 3",
    ),
    "text": (BadTensor, {"x": "hello", "gate": [G]}, r"'x': a str"),
    "complex": (BadTensor, {"x": X.astype("c8"), "gate": [G]}, r"'x': has dtype complex64"),
    "big_endian": (BadTensor, {"x": X.astype(">f4"), "gate": [G]}, r"'x': has dtype >f4"),
    "too_many_dimensions": (
        BadTensor,
        {"x": np.zeros((1,) * 9, "f4"), "gate": [G]},
        r"9 dimensions",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_run__names_the_mistake(artifact: Path, name: str) -> None:
    error, given, message = MISTAKES[name]
    model = load(artifact, trust=True)
    with pytest.raises(error, match=message):
        model(**given)
    assert model(x=X, gate=[G]).sample.shape == X.shape  # and goes on working


def test_run__none_inputs_are_left_out(artifact: Path) -> None:
    assert load(artifact, trust=True)(x=X, gate=[G], mask=None).sample.shape == X.shape


def test_run__closed_model(artifact: Path) -> None:
    model = load(artifact, trust=True)
    model.close()
    model.close()
    with pytest.raises(BadArgument, match="closed"):
        model(x=X, gate=[G])


def test_load__mistakes(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="No such file"):
        load(tmp_path / "nothing.svdq")
    with pytest.raises(ArtifactNotFound, match="not a regular file"):
        load(tmp_path)
    with pytest.raises(UnknownDevice, match="'tpu'"):
        load(artifact, device="tpu")
    verify(artifact)


def test_run__range_that_only_some_dims_break(code: bytes, tmp_path: Path) -> None:
    """Inside the buffer for the smallest and the largest batch, outside for those between: found when it is run."""
    batch = symbol("batch", 1, 8)
    plan = tiny.make_plan()
    first, *others = plan.launches[0].args
    shifted = replace(first, byte_offset=(batch - 1) * (8 - batch) * 4)
    tiny.write(tmp_path / "a.svdq", code, tiny.with_launch(plan, 0, args=(shifted, *others)))
    model = load(tmp_path / "a.svdq", trust=True)
    for rows, fits in [(1, True), (3, False), (8, True), (7, False), (1, True)]:
        given = inputs(rows)
        if fits:
            np.testing.assert_array_equal(model(**given).sample, tiny.reference(given["x"])[0])
        else:
            with pytest.raises(BadPlan, match=r"launch 0 \(scale, block.scale\): argument 0"):
                model(**given)
