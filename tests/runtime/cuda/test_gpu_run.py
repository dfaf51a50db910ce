"""Running on a GPU, through the fake driver: tensors of every kind, graphs, several GPUs, memory given back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime import tiny
from tests.runtime.cuda import fake, tiny_gpu

from svdqc.runtime import DeviceTensor, Model, load

Configure = Callable[[str], None]


def given(batch: int = 3, rows: int = 8, seed: int = 7) -> dict[str, Any]:
    x = np.random.default_rng(seed).standard_normal((batch, rows), dtype=np.float32)
    return {"x": x, "gate": [np.zeros(batch, np.int64)]}


def on_gpu(values: dict[str, Any], device: int = 0) -> dict[str, Any]:
    gate = [DeviceTensor.from_numpy(values["gate"][0], device)]
    return {"x": DeviceTensor.from_numpy(values["x"], device), "gate": gate}


def check(model: Model, values: dict[str, Any]) -> None:
    out = model(**values)
    sample, total = tiny.reference(values["x"])
    np.testing.assert_array_equal(out.sample, sample)
    np.testing.assert_array_equal(out.total, total)


@pytest.mark.parametrize(("batch", "rows"), [(1, 4), (3, 8), (8, 64), (2, 60)])
def test_gpu_run__host_tensors(gpus: Configure, gpu_artifact: Path, batch: int, rows: int) -> None:
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        assert model.device == "cuda:0"
        check(model, given(batch, rows))


def test_gpu_run__shapes_change_between_calls(gpus: Configure, gpu_artifact: Path) -> None:
    with load(gpu_artifact, device="cuda", trust=True) as model:
        for seed, (batch, rows) in enumerate([(1, 4), (8, 64), (2, 12), (8, 64), (8, 64), (8, 64)]):
            check(model, given(batch, rows, seed))


def test_gpu_run__device_tensors_are_used_in_place(gpus: Configure, gpu_artifact: Path) -> None:
    values = given()
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        check(model, values)  # the weights are there now
        inputs = on_gpu(values)
        before = fake.report()["calls"]
        out = model(**inputs)
        after = fake.report()["calls"]
        for copy in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2"):
            assert after.get(copy, 0) == before.get(copy, 0), copy
        assert isinstance(out.sample, DeviceTensor)
        sample, total = tiny.reference(values["x"])
        np.testing.assert_array_equal(out.sample.numpy(), sample)
        np.testing.assert_array_equal(out.total.numpy(), total)
        del out, inputs


def test_gpu_run__host_and_device_tensors_mix(gpus: Configure, gpu_artifact: Path) -> None:
    values = given()
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        out = model(x=DeviceTensor.from_numpy(values["x"]), gate=values["gate"])
        np.testing.assert_array_equal(out.sample.numpy(), tiny.reference(values["x"])[0])
        del out


class Slice:
    """A DLPack tensor that begins in the middle of another, 4-aligned only."""

    def __init__(self, whole: DeviceTensor, first: int, shape: tuple[int, ...]) -> None:
        self.whole, self.first, self.shape = whole, first, shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.whole.__dlpack_device__()

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream == 1
        part = object.__new__(DeviceTensor)
        part.__dict__.update(self.whole.__dict__)
        part.shape = self.shape
        part._allocation = type("At", (), {"address": self.whole.address + 4 * self.first})()  # type: ignore[assignment]
        return part.__dlpack__()


def test_gpu_run__unaligned_device_memory_is_copied(gpus: Configure, gpu_artifact: Path) -> None:
    values = given()
    padded = np.concatenate([np.zeros(1, np.float32), values["x"].ravel()])
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        whole = DeviceTensor.from_numpy(padded)
        out = model(x=Slice(whole, 1, (3, 8)), gate=values["gate"])
        assert fake.report()["calls"]["cuMemcpyDtoDAsync_v2"] == 1
        np.testing.assert_array_equal(out.sample.numpy(), tiny.reference(values["x"])[0])
        del out, whole


def test_gpu_run__dlpack_capsules_are_given_back(gpus: Configure) -> None:
    from svdqc.runtime import device_memory

    tensor = DeviceTensor.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
    capsule = tensor.__dlpack__()
    assert len(device_memory._lent) == 1
    del capsule
    gc.collect()
    assert device_memory._lent == {}
    address, dtype, shape, owner = device_memory.read_dlpack("x", tensor, 1)
    assert (address, dtype, shape) == (tensor.address, "f32", (2, 3))
    del owner
    assert device_memory._lent == {}


def test_gpu_run__same_bits_every_time(gpus: Configure, gpu_artifact: Path) -> None:
    values = given(8, 64)
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        first = model(**values)
        for _ in range(4):
            again = model(**values)
            assert all(first[n].tobytes() == again[n].tobytes() for n in first)


def test_gpu_run__sessions_share_weights(gpus: Configure, gpu_artifact: Path) -> None:
    values = given()
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        check(model, values)
        copies = fake.report()["calls"]["cuMemcpyHtoDAsync_v2"]
        modules = fake.report()["live"]["modules"]
        with model.fork() as other:
            check(other, values)
            assert fake.report()["live"]["modules"] == modules
            assert (
                fake.report()["calls"]["cuMemcpyHtoDAsync_v2"] == copies + 2
            )  # its inputs, no weights
    assert fake.report()["live"]["device_bytes"] == 0


def test_gpu_run__two_gpus(gpus: Configure, gpu_artifact: Path) -> None:
    gpus("devices=8.0,8.6")
    values = given()
    with load(gpu_artifact, device="cuda:1", trust=True) as model, model.fork(device="cuda:0") as o:
        assert (model.device, o.device) == ("cuda:1", "cuda:0")
        check(model, values)
        check(o, values)
        out = model(**on_gpu(values, 1))
        assert out.sample.device == 1
        np.testing.assert_array_equal(out.sample.numpy(), tiny.reference(values["x"])[0])
        del out


def test_gpu_run__threads_take_turns(gpus: Configure, gpu_artifact: Path) -> None:
    failures: list[BaseException] = []
    with load(gpu_artifact, device="cuda:0", trust=True) as model:

        def work(seed: int) -> None:
            try:
                for i in range(10):
                    check(model, given(1 + (seed + i) % 8, 8, seed))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_gpu_run__profile(gpus: Configure, gpu_artifact: Path) -> None:
    with load(gpu_artifact, device="cuda:0", trust=True, profile=True) as model:
        check(model, given())
        assert [(p.label, p.kernel) for p in model.profile()] == [
            ("block.scale", "scale"),
            ("block.shift", "shift_sum"),
        ]
        assert all(p.microseconds > 0 for p in model.profile())


def test_gpu_run__auto_takes_the_gpu_or_the_cpu(
    gpus: Configure, code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = tiny_gpu.Variant("cpu:portable", (), code, tiny.make_plan())
    path = tmp_path / "both.svdq"
    tiny_gpu.write(path, cpu, tiny_gpu.gpu_variant())
    for device, settings in [("cuda:0", "devices=8.9"), ("cpu", "devices=9.0")]:
        gpus(settings)
        with load(path, device="auto", trust=True) as model:
            assert model.device == device
            check(model, given())
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    with load(path, device="auto", trust=True) as model:
        assert model.device == "cpu"
        check(model, given())


# ---- CUDA graphs


def test_gpu_graphs__one_launch_when_dims_come_again(gpus: Configure, tmp_path: Path) -> None:
    path = tmp_path / "long.svdq"
    tiny_gpu.write(path, tiny_gpu.gpu_variant(plan=tiny_gpu.make_plan(repeats=5)))
    with load(path, device="cuda:0", trust=True) as model:
        for seed in range(4):
            check(model, given(3, 8, seed))
        calls = fake.report()["calls"]
        assert calls["cuLaunchKernel"] == 6  # the first run
        assert calls["cuGraphInstantiateWithFlags"] == 1
        assert calls["cuGraphLaunch"] == 3
        for seed in range(3):  # tensors of other addresses in the same graph
            values = given(3, 8, seed)
            out = model(**on_gpu(values))
            np.testing.assert_array_equal(out.sample.numpy(), tiny.reference(values["x"])[0])
            del out
        assert fake.report()["calls"]["cuGraphInstantiateWithFlags"] == 1
        assert fake.report()["calls"]["cuGraphExecKernelNodeSetParams"] >= 6


def test_gpu_graphs__number_is_bounded(gpus: Configure, tmp_path: Path) -> None:
    path = tmp_path / "long.svdq"
    tiny_gpu.write(path, tiny_gpu.gpu_variant(plan=tiny_gpu.make_plan(repeats=5)))
    with load(path, device="cuda:0", trust=True) as model:
        for rows in range(4, 52, 4):
            for seed in range(3):
                check(model, given(2, rows, seed))
        assert fake.report()["live"]["graph_execs"] == 8
        for rows in (4, 48):  # one that was given up, one that was not
            check(model, given(2, rows))


def test_gpu_graphs__driver_refuses_them(gpus: Configure, tmp_path: Path) -> None:
    gpus("fail=cuGraphInstantiateWithFlags:1:801")
    path = tmp_path / "long.svdq"
    tiny_gpu.write(path, tiny_gpu.gpu_variant(plan=tiny_gpu.make_plan(repeats=5)))
    with load(path, device="cuda:0", trust=True) as model:
        for seed in range(4):
            check(model, given(3, 8, seed))
        assert fake.report()["calls"]["cuLaunchKernel"] == 4 * 6
        assert fake.report()["live"]["graphs"] == 0
