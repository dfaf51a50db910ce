"""A compiled model from artifact to numbers: regions, kernels, plan and runtime together, on the fake driver.

The kernels are built for the host; cubins are headers only, as no GPU reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compiler.test_zoo import DYNAMIC, inputs, wide
from tests.runtime.cuda import fake

import svdqc
from svdqc.compiler.driver import variants
from svdqc.compiler.targets.cuda import SM_75, CudaTarget
from svdqc.compiler.targets.cuda_host import build_host
from svdqc.compiler.targets.select import Target, build_code

Configure = Callable[[str], None]
BOUND = 1e-2
"""A value on the edge between two codes may round either way, since sums are in another order; else it is 1e-5."""


class BuiltForTheHost:
    """Instead of nvcc: keeps the kernels of a CUDA target for `build_host`; CPUs get what they always get."""

    def __init__(self) -> None:
        self.kernels: Mapping[str, str] = {}

    def __call__(self, kernels: Mapping[str, str], target: Target, *rest: Any) -> bytes:
        if not isinstance(target, CudaTarget):
            return build_code(kernels, target, *rest)
        self.kernels = kernels
        major, minor = target.compute_capability
        return fake.archive({name: fake.cubin(10 * major + minor) for name in kernels})


def test_gpu_model__as_the_reference(
    gpus: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every size of one artifact, with host and device tensors, twice (the second time as a graph); on CPU and GPU."""
    trace, dims, sizes = DYNAMIC["dit"]
    built = BuiltForTheHost()
    monkeypatch.setattr(variants, "build_code", built)
    path, library = tmp_path / "dit.svdq", tmp_path / "dit.so"
    recipe = svdqc.Recipe(precision="int4", rank=16)
    svdqc.compile(
        wide("dit"), inputs("dit", **trace), output=path, target=f"{SM_75.name},cpu:portable",
        recipe=recipe, dynamic=dims,
    )  # fmt: skip
    library.write_bytes(build_host({"unit": "\n".join(built.kernels.values())}, jobs=1))
    gpus(f"devices=7.5 memory=1000000000 kernels={library}")
    reference = svdqc.reference(path)
    with svdqc.load(path, device="cuda:0") as model, svdqc.load(path) as on_cpu:
        for size in sizes:
            given = inputs("dit", **size)
            wanted = next(iter(reference(**given).values()))
            found = [model(**given)[0] for _ in range(3)]
            assert all(torch.equal(one, found[0]) for one in found)
            flat = {name: value.numpy() for name, value in given.items() if value is not None}
            tensors = {n: svdqc.runtime.DeviceTensor.from_numpy(v) for n, v in flat.items()}
            device = model(**tensors)
            np.testing.assert_array_equal(device[0].numpy(), found[0].numpy())
            del device, tensors
            assert relative(found[0], wanted) <= BOUND, size
            assert relative(on_cpu(**given)[0], wanted) <= BOUND, size
    calls = fake.report()["calls"]
    assert calls["cuGraphInstantiateWithFlags"] == len(sizes)
    assert calls["cuGraphLaunch"] == 3 * len(sizes)


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(value - wanted) / torch.linalg.vector_norm(wanted))
