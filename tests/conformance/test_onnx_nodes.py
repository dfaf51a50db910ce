"""ONNX's own backend tests of single operators, run through OnnxModule.

`onnx_unsupported.txt` lists the cases that are refused, with the reason. A case that fails and is not
listed fails the test, and so does a listed one that passes: the list cannot rot.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.version_converter
import pytest
import torch

from svdqc.errors import SvdqcError
from svdqc.frontends.onnx.external import TensorReader, torch_of_numpy
from svdqc.frontends.onnx.load import all_nodes, module_of_model

LIST = Path(__file__).with_name("onnx_unsupported.txt")
REASONS = {
    "sequences": "values that are lists of tensors",
    "optional": "values that may be absent",
    "strings": "text",
    "images": "decoding of image files",
    "training": "optimizers",
    "random": "results that differ from run to run",
    "selection": "a result whose size depends on the data",
    "deformable": "convolution at computed positions",
    "classical": "the ai.onnx.ml domain: trees, encoders",
    "preview": "the ai.onnx.preview domain, not part of the standard yet",
    "opset": "Scan of opset 8, which ONNX's version converter leaves as it was",
}
OLDEST = 13


def listed() -> dict[str, str]:
    """Case → reason."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return dict(pairs)


@cache
def node_cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The generators of the expected values divide by zero and overflow on purpose.
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of an older opset at the oldest one supported, if it means the same there."""
    standard = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not standard or standard[0].version >= OLDEST:
        return model
    for node in all_nodes(model.graph):
        old = onnx.defs.get_schema(node.op_type, standard[0].version, node.domain)
        new = onnx.defs.get_schema(node.op_type, OLDEST, node.domain)
        if old.since_version != new.since_version or new.deprecated:
            try:
                return onnx.version_converter.convert_version(model, OLDEST)
            except (RuntimeError, ValueError):
                return model
    standard[0].version = OLDEST
    return model


def tensor_of(value: Any) -> torch.Tensor:
    if isinstance(value, onnx.TensorProto):
        return TensorReader(None).read(value)
    return torch_of_numpy(np.asarray(value))


def difference(found: torch.Tensor, expected: torch.Tensor, rtol: float, atol: float) -> str | None:
    """What differs, or None."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype}{list(found.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if not found.dtype.is_floating_point:
        return None if torch.equal(found, expected) else "different integers"
    # Two units in the last place of the 16-bit types, as ONNX's own runner allows for bfloat16.
    rtol = max(rtol, {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}.get(found.dtype, 0.0))
    x, y = found.to(torch.float64), expected.to(torch.float64)
    finite = y[torch.isfinite(y)]
    # A sum that cancels to 0 is off by the rounding of its terms, two units of f32 of the largest value.
    atol = max(atol, 2.0**-22 * float(finite.abs().max()) if finite.numel() else atol)
    if torch.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True):
        return None
    return f"off by {(x - y).abs().nan_to_num(float('inf')).max().item():.3g}"


def outcome(case: Any) -> str | None:
    """None if the case passes, else why not."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    try:
        module = module_of_model(raised(model), None, case.name)
        for inputs, outputs in case.data_sets:
            names = [spec.name for spec in module.graph_inputs]
            given = {n: tensor_of(v) for n, v in zip(names, inputs, strict=True)}
            results = module(**given)
            for (name, found), expected in zip(results.items(), outputs, strict=True):
                wrong = difference(found, tensor_of(expected), case.rtol, case.atol)
                if wrong is not None:
                    return f"output {name}: {wrong}"
    except SvdqcError as error:
        return f"{type(error).__name__}: {error}"
    except (TypeError, ValueError, AttributeError) as error:
        # Inputs that are no tensors at all.
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.slow
def test_onnx_node_cases(capsys: pytest.CaptureFixture[str]) -> None:
    unsupported = listed()
    results = {case.name: outcome(case) for case in node_cases()}
    passed = [name for name, why in results.items() if why is None]
    broken = {n: why for n, why in results.items() if why is not None and n not in unsupported}
    mended = [name for name in passed if name in unsupported]
    gone = sorted(unsupported.keys() - results.keys())
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(unsupported.values()).items())
    with capsys.disabled():
        print(f"\nONNX node tests: {len(passed)} of {len(results)} pass; refused: {counts}")
    assert len(passed) > 1700, "ONNX's tests were not found"
    assert not broken, "\n".join(f"{name}: {why}" for name, why in sorted(broken.items()))
    assert not mended, f"listed in {LIST.name}, but passing: {mended}"
    assert not gone, f"listed in {LIST.name}, but no such case: {gone}"


def test_onnx_unsupported_list__reasons_known() -> None:
    assert set(listed().values()) <= set(REASONS)
