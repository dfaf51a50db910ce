"""Tuning for a GPU, measured through the runtime's CUDA session on the fake driver; not yet run on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.runtime.cuda import fake

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.driver.tuning import machine_for, required_machine
from svdqc.compiler.ir.rewrite import aten
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.targets import cuda_host
from svdqc.compiler.targets.cuda import SM_80, SM_86
from svdqc.compiler.targets.select import Target
from svdqc.compiler.tune.errors import CannotTune
from svdqc.compiler.tune.record import Machine, TuningRecord
from svdqc.compiler.tune.search import Setting, search
from svdqc.compiler.tune.sites import find_sites


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A fake GPU of compute capability 8.6, in this process and in its children."""
    settings = "devices=8.6"
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", str(fake.build_driver()))
    monkeypatch.setenv("SVDQ_FAKE_CUDA", settings)
    # Another test of this process may have loaded the driver, which then has that one's settings.
    assert fake.reset(settings) == 0
    yield monkeypatch
    assert fake.reset() == 0


def test_search__on_a_gpu(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels are built for the host, which the fake driver runs; what the driver is given are empty cubins."""
    builder = ProgramBuilder()
    x = builder.input(torch.zeros(40, 96))
    program = builder.finish(builder.call(aten.mul.Tensor, builder.call(aten.neg.default, x), x))
    backend = CudaBackend(SM_86)
    (site,) = find_sites(program, fuse(program, GPU_TRAITS), backend)
    assert len(site.blocks) > 2
    library = tmp_path / "kernels.so"

    def build(sources: Mapping[str, str], target: Target, jobs: int) -> bytes:
        assert target == SM_86
        # One library: what the driver looks a kernel up in. Its own table of launches' errors exists once.
        library.write_bytes(cuda_host.build_host({"unit": "\n".join(sources.values())}, 1))
        gpu.setenv("SVDQ_FAKE_CUDA", f"devices=8.6 kernels={library}")
        return fake.archive({name: fake.cubin(86) for name in sources})

    machine = Machine("fake", 1, "13.0", "none")
    setting = Setting(SM_86, machine, "cuda:0", 0, 2, 0.02, 1 << 20)
    records: list[TuningRecord] = []
    (outcome,) = search([site], setting, records.append, lambda *_: None, build=build)
    assert outcome.lost == []
    (record,) = records
    assert record.key.target == "cuda:sm_86"
    assert (record.candidates, record.complete) == (2, True)
    assert dict(record.choice) in [b.parameters() for b in site.blocks]


def test_machine__is_the_gpu_and_its_multiprocessors(gpu: pytest.MonkeyPatch) -> None:
    machine = machine_for(SM_86)
    assert machine is not None
    assert machine.device
    assert machine.units > 0
    assert machine.driver
    assert machine.toolchain.startswith("nvcc")
    assert machine_for(SM_80) is None
    with pytest.raises(CannotTune, match=r"cuda:0 .*sm_86"):
        required_machine(SM_80)


def test_machine__without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    with pytest.raises(CannotTune, match="driver"):
        required_machine(SM_80, "cuda:0")
