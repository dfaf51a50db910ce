"""What can go wrong with GPUs: each mistake is named, with what to do, and nothing is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime import tiny
from tests.runtime.cuda import fake, tiny_gpu

from svdqc.compiler.plan.records import KernelEntry
from svdqc.runtime import DeviceTensor, Model, inspect, load, trust
from svdqc.runtime import gpus as list_gpus
from svdqc.runtime.errors import (
    BadCode,
    BadInput,
    BadTensor,
    DeviceFailure,
    NoDevice,
    NotEnoughMemory,
    RuntimeFailure,
    UnknownDevice,
    UntrustedCode,
    WrongMachine,
)

Configure = Callable[[str], None]


def given(batch: int = 3, rows: int = 8) -> dict[str, Any]:
    x = np.random.default_rng(7).standard_normal((batch, rows), dtype=np.float32)
    return {"x": x, "gate": [np.zeros(batch, np.int64)]}


def run(path: Path, device: str = "cuda:0") -> None:
    with load(path, device=device, trust=True) as model:
        values = given()
        for _ in range(3):
            np.testing.assert_array_equal(model(**values).sample, tiny.reference(values["x"])[0])


@pytest.fixture
def other_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A driver of its own with these settings: what happens when it is loaded happens once per path."""

    def install(settings: str) -> None:
        path = tmp_path / "libcuda.so.1"
        shutil.copy(fake.build_driver(), path)
        monkeypatch.setenv("SVDQ_CUDA_DRIVER", str(path))
        monkeypatch.setenv("SVDQ_FAKE_CUDA", settings)

    return install


# ---- the driver


def test_gpu_errors__no_driver(gpu_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    with pytest.raises(NoDevice, match=r"no NVIDIA driver.*install NVIDIA's driver.*device 'cpu'"):
        load(gpu_artifact, device="cuda:0", trust=True)
    found = list_gpus()
    assert found["gpus"] == []
    assert "no NVIDIA driver" in found["reason"]
    assert "no NVIDIA driver" in inspect(gpu_artifact)["variants"][0]["unfit"]


def test_gpu_errors__a_library_that_is_no_driver(
    gpu_artifact: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", str(kernels))
    with pytest.raises(NoDevice, match=r"is no NVIDIA driver and lacks cuInit"):
        load(gpu_artifact, device="cuda:0", trust=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("version=11020", r"for CUDA 11\.2; it must be for CUDA 11\.4 or newer: update it"),
        ("devices=", r"finds no GPU; .*CUDA_VISIBLE_DEVICES"),
        ("fail=cuInit:0:803", r"does not start: CUDA_ERROR_803 .*nvidia-smi"),
        ("version=12080", r"made with CUDA 13; the driver of Fake GPU 0 \(cuda:0\) is for CUDA 12\.8; update"),
    ],
)  # fmt: skip
def test_gpu_errors__unusable_driver(
    gpu_artifact: Path, other_driver: Callable[[str], None], settings: str, message: str
) -> None:
    other_driver(settings)
    with pytest.raises(NoDevice, match=message):
        load(gpu_artifact, device="cuda:0", trust=True)


def test_gpu_errors__no_such_gpu(gpus: Configure, gpu_artifact: Path) -> None:
    gpus("devices=8.0,9.0")
    with pytest.raises(NoDevice, match=r"'cuda:2': this machine has 2 GPUs .* 'cuda:1'"):
        load(gpu_artifact, device="cuda:2", trust=True)
    for name in ("gpu", "cuda:", "cuda:x", "cuda:0 ", "CUDA:0", ""):
        with pytest.raises(UnknownDevice, match="'cpu', 'cuda:0'"):
            load(gpu_artifact, device=name, trust=True)


def test_gpu_errors__lists_what_there_is(gpus: Configure, gpu_artifact: Path) -> None:
    gpus("devices=8.6,9.0 version=12040 memory=1000000")
    found = list_gpus()
    assert found["reason"] == ""
    assert found["gpus"] == [
        {"compute_capability": "8.6", "device": "cuda:0", "memory_bytes": 1000000, "name": "Fake GPU 0",
         "target": "cuda:sm_86"},
        {"compute_capability": "9.0", "device": "cuda:1", "memory_bytes": 1000000, "name": "Fake GPU 1",
         "target": "cuda:sm_90a"},
    ]  # fmt: skip
    (variant,) = inspect(gpu_artifact)["variants"]
    assert (variant["devices"], variant["unfit"]) == (["cuda:0"], "")


# ---- the choice of a variant


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        ("8.0", "cuda:sm_80"),
        ("8.6", "cuda:sm_86"),
        ("8.9", "cuda:sm_86"),
        ("8.7", None),  # a single-board computer
        ("7.5", None),
        ("9.0", "cuda:sm_90a"),
        ("10.0", "cuda:sm_100a"),
        ("10.3", "cuda:sm_100f"),
        ("11.0", None),
        ("12.0", "cuda:sm_120a"),
        ("12.1", None),
    ],
)
def test_gpu_variant__best_for_the_gpu(
    gpus: Configure, tmp_path: Path, capability: str, chosen: str | None
) -> None:
    made = [(80, ""), (86, ""), (90, ""), (100, "f"), (90, "a"), (100, "a"), (120, "a")]
    tiny_gpu.write(tmp_path / "a.svdq", *(tiny_gpu.gpu_variant(c, s) for c, s in made))
    gpus(f"devices={capability}")
    fits = [v["target"] for v in inspect(tmp_path / "a.svdq")["variants"] if v["devices"]]
    assert fits == ([chosen] if chosen else [])
    if chosen:
        run(tmp_path / "a.svdq")
        return
    with pytest.raises(
        WrongMachine, match=rf"capability is {capability}; it holds cuda:sm_80 .*8\.0"
    ):
        run(tmp_path / "a.svdq")


def test_gpu_variant__none_says_what_to_compile(gpus: Configure, gpu_artifact: Path) -> None:
    gpus("devices=9.0")
    message = (
        r"no code for Fake GPU 0 \(cuda:0\), whose compute capability is 9\.0; it holds "
        r"cuda:sm_80 \(compute capability 8\.0 to 8\.9\); .*--target cuda:sm_90a"
    )
    with pytest.raises(WrongMachine, match=message):
        load(gpu_artifact, device="cuda:0", trust=True)


def test_gpu_variant__a_file_for_gpus_only_on_the_cpu(gpus: Configure, gpu_artifact: Path) -> None:
    with pytest.raises(WrongMachine, match="or use device 'cuda:0'"):
        load(gpu_artifact, trust=True)


def test_gpu_variant__a_file_for_cpus_only_on_a_gpu(gpus: Configure, artifact: Path) -> None:
    with pytest.raises(WrongMachine, match=r"it holds cpu:portable; .*--target cuda:sm_80"):
        load(artifact, device="cuda:0", trust=True)


# ---- code


def test_gpu_code__runs_only_if_trusted(gpus: Configure, tmp_path: Path) -> None:
    written = tiny_gpu.write(tmp_path / "a.svdq", tiny_gpu.gpu_variant(), tiny_gpu.gpu_variant(90))
    with pytest.raises(UntrustedCode):
        load(tmp_path / "a.svdq", device="cuda:0")
    assert "cuModuleLoadData" not in fake.report()["calls"]
    trust.register(written.trust_digests[0])
    load(tmp_path / "a.svdq", device="cuda:0").close()
    gpus("devices=9.0")
    with pytest.raises(UntrustedCode):  # the other variant is other code
        load(tmp_path / "a.svdq", device="cuda:0")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (KernelEntry("scale", 64, 164 << 10), r"'scale' needs 167936 bytes of shared memory; .* 166912"),
        (KernelEntry("nonesuch", 64, 0), r"'nonesuch' is not in its cubin"),
    ],
)  # fmt: skip
def test_gpu_code__does_not_fit_the_gpu(
    gpus: Configure, tmp_path: Path, kernel: KernelEntry, message: str
) -> None:
    plan = tiny_gpu.make_plan()
    changed = replace(plan, kernels=(kernel, plan.kernels[1]))
    tiny_gpu.write(tmp_path / "a.svdq", tiny_gpu.gpu_variant(plan=changed))
    with pytest.raises(BadCode, match=message):
        load(tmp_path / "a.svdq", device="cuda:0", trust=True)


def test_gpu_code__parameters_of_another_size(gpus: Configure, tmp_path: Path) -> None:
    plan = tiny.with_launch(tiny_gpu.make_plan(), 0, scalars=())
    tiny_gpu.write(tmp_path / "a.svdq", tiny_gpu.gpu_variant(plan=plan))
    with pytest.raises(BadCode, match="takes 32 bytes of parameters, its launches have 24"):
        load(tmp_path / "a.svdq", device="cuda:0", trust=True)


def test_gpu_code__is_not_in_the_archive(gpus: Configure, tmp_path: Path) -> None:
    code = fake.archive({"scale": fake.cubin(80)})
    tiny_gpu.write(tmp_path / "a.svdq", replace(tiny_gpu.gpu_variant(), code=code))
    with pytest.raises(BadCode, match="has no kernel 'shift_sum'"):
        load(tmp_path / "a.svdq", device="cuda:0", trust=True)


# ---- memory


def test_gpu_memory__too_little_says_need_and_free(gpus: Configure, gpu_artifact: Path) -> None:
    gpus("memory=2000")
    message = (
        r"needs 2624 bytes of GPU memory \(512 for weights, 2112 for activations .*"
        r"2000 bytes free of 2000; close what else uses the GPU"
    )
    with pytest.raises(NotEnoughMemory, match=message):
        load(gpu_artifact, device="cuda:0", trust=True)


def test_gpu_memory__too_little_for_copies_of_the_ports(
    gpus: Configure, gpu_artifact: Path
) -> None:
    gpus("memory=3000")
    model = load(gpu_artifact, device="cuda:0", trust=True)
    with model, pytest.raises(NotEnoughMemory, match=r"bytes free of 3000"):
        model(**given())


# ---- tensors


def test_gpu_tensors__on_another_gpu_or_the_cpu(
    gpus: Configure, gpu_artifact: Path, artifact: Path
) -> None:
    gpus("devices=8.0,8.0")
    values = given()
    x = DeviceTensor.from_numpy(values["x"], 1)
    model = load(gpu_artifact, device="cuda:0", trust=True)
    with model, pytest.raises(BadTensor, match="is on cuda:1, the model on cuda:0; move it there"):
        model(x=x, gate=values["gate"])
    with pytest.raises(BadTensor, match=r"is on cuda:1, the model on the CPU.*device='cuda:1'"):
        load(artifact, trust=True)(x=x, gate=values["gate"])
    del x


class Liar:
    """Says that host memory is on a GPU."""

    def __init__(self, array: np.ndarray, device: int) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, *, stream: int) -> Any:
        return self.array.__dlpack__()


def test_gpu_tensors__whose_memory_is_none(gpus: Configure, gpu_artifact: Path) -> None:
    values = given()
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        with pytest.raises(BadInput, match="said to be a GPU's, and is not"):
            model(x=Liar(values["x"], 0), gate=values["gate"])
        np.testing.assert_array_equal(model(**values).sample, tiny.reference(values["x"])[0])


def test_gpu_tensors__that_are_not_dense(gpus: Configure, gpu_artifact: Path) -> None:
    x = given(6, 16)["x"][::2, ::2]
    model = load(gpu_artifact, device="cuda:0", trust=True)
    with model, pytest.raises(BadTensor, match="not dense in row-major order; make it contiguous"):
        model(x=Liar(x, 0), gate=[np.zeros(3, np.int64)])


# ---- errors of the device


def test_gpu_failure__of_a_kernel(
    gpus: Configure, gpu_artifact: Path, other_driver: Callable[[str], None]
) -> None:
    """The GPU is lost then, whatever is tried; closing does no harm."""
    other_driver("fail=kernel:2:700")
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        for _ in range(2):
            with pytest.raises(
                DeviceFailure, match=r"Fake GPU 0 \(cuda:0\)': cu.* failed: CUDA_ERROR_700"
            ):
                model(**given())


CALLS = [
    "cuDevicePrimaryCtxRetain", "cuDeviceGet", "cuMemGetInfo_v2", "cuMemAlloc_v2", "cuMemHostAlloc",
    "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuModuleLoadData", "cuModuleGetFunction",
    "cuFuncGetAttribute", "cuLaunchKernel", "cuStreamCreate", "cuStreamSynchronize",
    "cuEventCreate", "cuEventRecord", "cuEventSynchronize", "cuGraphLaunch", "cuCtxPushCurrent_v2",
]  # fmt: skip


def test_gpu_failure__of_any_call_leaves_nothing_behind(gpus: Configure, tmp_path: Path) -> None:
    """Every call fails once, at its first, second and third time; the session is closed all the same."""
    path = tmp_path / "long.svdq"
    tiny_gpu.write(path, tiny_gpu.gpu_variant(plan=tiny_gpu.make_plan(repeats=5)))
    failed = 0
    for call in CALLS:
        for nth in (1, 2, 3):
            gpus(f"fail={call}:{nth}:{2 if 'Alloc' in call else 999}")
            message = run_to_the_end_or_error(path)
            failed += message != ""
            assert message == "" or "999" in message or "full" in message
    assert failed > len(CALLS)


def run_to_the_end_or_error(path: Path) -> str:
    try:
        run(path)
    except RuntimeFailure as error:
        return str(error)
    return ""


def test_gpu_failure__one_run_fails_the_next_does_not(gpus: Configure, gpu_artifact: Path) -> None:
    values = given()
    gpus("fail=cuLaunchKernel:2:999")
    with load(gpu_artifact, device="cuda:0", trust=True) as model:
        with pytest.raises(DeviceFailure, match="cuLaunchKernel failed"):
            model(**values)
        np.testing.assert_array_equal(model(**values).sample, tiny.reference(values["x"])[0])


def test_gpu_failure__while_weights_are_copied(gpus: Configure, gpu_artifact: Path) -> None:
    """In the background, so the first run tells."""
    gpus("fail=cuMemHostAlloc:1:2")
    model: Model = load(gpu_artifact, device="cuda:0", trust=True)
    for _ in range(2):
        with pytest.raises(NotEnoughMemory, match="cuMemHostAlloc"):
            model(**given())
    model.close()
