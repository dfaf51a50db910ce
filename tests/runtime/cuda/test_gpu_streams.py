"""The caller's streams, through the C interface; uploads of many pieces; our declarations beside NVIDIA's."""

from __future__ import annotations

import ctypes as c
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime import tiny
from tests.runtime.cuda import fake, tiny_gpu

from svdqc.compiler.artifact.write import ArtifactTensor, write_artifact
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Launch, Plan, TensorPort
from svdqc.compiler.targets.cuda_toolchain import find_nvcc
from svdqc.errors import SvdqcError
from svdqc.runtime import DeviceTensor, load
from svdqc.runtime.library import GPU, ON_DEVICE, TRUST_CODE, SessionOptions, Tensor, check, library

Configure = Callable[[str], None]


class Session:
    """The C interface, and the driver's own streams."""

    def __init__(self, path: Path) -> None:
        self.model, self.pointer = c.c_void_p(), c.c_void_p()
        check(library().svdq_open(str(path).encode(), GPU | TRUST_CODE, c.byref(self.model)))
        options = SessionOptions(c.sizeof(SessionOptions), 0, 0, 0, b"cuda:0")
        check(library().svdq_session_create(self.model, c.byref(options), c.byref(self.pointer)))

    def run(
        self, stream: int, tensors: dict[str, DeviceTensor], outputs: list[DeviceTensor]
    ) -> None:
        given, taken = (Tensor * 2)(), (Tensor * 2)()
        for slot, (name, tensor) in zip(given, tensors.items(), strict=True):
            slot.name = name.encode()
            fill(slot, tensor)
        for slot, tensor in zip(taken, outputs, strict=True):
            fill(slot, tensor)
        check(library().svdq_run_on_stream(self.pointer, stream, given, 2, taken, 2))

    def close(self) -> None:
        library().svdq_session_destroy(self.pointer)
        library().svdq_close(self.model)


def fill(slot: Tensor, tensor: DeviceTensor) -> None:
    slot.data, slot.ndim = tensor.address, len(tensor.shape)
    slot.dtype = {"f32": 0, "i64": 8}[tensor.dtype] | ON_DEVICE
    slot.shape[: len(tensor.shape)] = tensor.shape


class Streams:
    """Streams of the caller, in the device's primary context as PyTorch's are."""

    def __init__(self) -> None:
        self.driver = fake.driver()
        context = c.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", c.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)
        self.made: list[c.c_void_p] = []

    def call(self, name: str, *arguments: object) -> None:
        assert getattr(self.driver, name)(*arguments) == 0, name

    def new(self) -> int:
        stream = c.c_void_p()
        self.call("cuStreamCreate", c.byref(stream), 1)
        self.made.append(stream)
        assert stream.value is not None
        return stream.value

    def fill_later(self, stream: int, tensor: DeviceTensor, source: np.ndarray) -> None:
        """Queue a copy; like all of the fake driver's work it waits until somebody waits for it."""
        to, bytes_ = c.c_uint64(tensor.address), c.c_size_t(source.nbytes)
        self.call(
            "cuMemcpyHtoDAsync_v2", to, c.c_void_p(source.ctypes.data), bytes_, c.c_void_p(stream)
        )

    def synchronize(self, stream: int) -> None:
        self.call("cuStreamSynchronize", c.c_void_p(stream))

    def close(self) -> None:
        for stream in self.made:
            self.call("cuStreamDestroy_v2", stream)
        self.call("cuCtxPopCurrent_v2", c.byref(c.c_void_p()))
        self.call("cuDevicePrimaryCtxRelease_v2", 0)


@pytest.fixture
def streams(gpus: Configure) -> Iterator[Streams]:
    made = Streams()
    yield made
    made.close()


def empty(shape: tuple[int, ...], dtype: str = "f32") -> DeviceTensor:
    return DeviceTensor(shape, dtype)


@pytest.fixture
def long_artifact(tmp_path: Path) -> Path:
    path = tmp_path / "long.svdq"
    tiny_gpu.write(path, tiny_gpu.gpu_variant(plan=tiny_gpu.make_plan(repeats=5)))
    return path


@pytest.mark.parametrize("settings", ["", "mixed=1"])
def test_gpu_stream__takes_its_place_in_the_callers(
    gpus: Configure, long_artifact: Path, settings: str
) -> None:
    """Inputs that the stream has yet to write, outputs that it reads after; runs on several streams do not mix."""
    gpus(settings)
    streams = Streams()
    session = Session(long_artifact)
    one, two = streams.new(), streams.new()
    kept = []
    for i, stream in enumerate([one, one, two, one, two, two, 1, one]):
        source = np.random.default_rng(i).standard_normal((3, 8), dtype=np.float32)
        x, gate = empty((3, 8)), empty((3,), "i64")
        outputs = [empty((3, 8)), empty((3,))]
        streams.fill_later(stream, x, source)
        session.run(stream, {"x": x, "gate.0": gate}, outputs)
        kept.append((stream, source, x, gate, outputs))
        if i == 0:  # the weights are there now
            waited = fake.report()["calls"]["cuStreamSynchronize"]
    assert fake.report()["calls"]["cuStreamSynchronize"] == waited, "a run waited"
    assert fake.report()["calls"]["cuGraphLaunch"] >= 6
    streams.synchronize(two)  # does what that stream needs, and no more
    for stream in (one, 1):
        streams.synchronize(stream)
    for _, source, _, _, outputs in kept:
        sample, total = tiny.reference(source)
        np.testing.assert_array_equal(outputs[0].numpy(), sample)
        np.testing.assert_array_equal(outputs[1].numpy(), total)
    session.close()
    del kept, outputs, x, gate
    streams.close()


def test_gpu_stream__that_is_captured(streams: Streams, long_artifact: Path) -> None:
    """torch.cuda.graph around a model: the launches go into the caller's graph, and nothing waits."""
    session = Session(long_artifact)
    x, gate = empty((3, 8)), empty((3,), "i64")
    outputs = [empty((3, 8)), empty((3,))]
    source = np.random.default_rng(1).standard_normal((3, 8), dtype=np.float32)
    stream, other = streams.new(), streams.new()
    for warm in (stream, other, other):
        session.run(warm, {"x": x, "gate.0": gate}, outputs)
        streams.synchronize(warm)
    before = fake.report()["calls"]
    streams.fill_later(stream, x, source)
    fake.driver().fake_cuda_capture(stream, 1)
    session.run(stream, {"x": x, "gate.0": gate}, outputs)
    fake.driver().fake_cuda_capture(stream, 0)
    after = fake.report()["calls"]
    assert after["cuLaunchKernel"] - before["cuLaunchKernel"] == 6
    assert after["cuGraphLaunch"] == before["cuGraphLaunch"]
    streams.synchronize(stream)
    np.testing.assert_array_equal(outputs[0].numpy(), tiny.reference(source)[0])
    session.close()
    del x, gate, outputs


COPY = r"""
#include "svdq_cuda/kernel.h"
SVDQ_CUDA_KERNEL(add_all, 32, 0, 0, 3, 1) {
  const uint64_t* a = (const uint64_t*)args.buffers[0];
  const uint64_t* b = (const uint64_t*)args.buffers[1];
  uint64_t* y = (uint64_t*)args.buffers[2];
  for (int64_t i = svdq::thread_id(); i < args.scalars[0]; i += svdq::num_threads()) y[i] = a[i] + b[i];
}
"""


def test_gpu_weights__of_many_pieces(
    gpus: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tensors larger than the staging buffers, one in two parts; one between them that the plan does not use."""
    (tmp_path / "k.cu").write_text(COPY)
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-DSVDQ_CUDA_HOST", f"-I{tiny_gpu.INCLUDE}"]
    library_path = tmp_path / "k.so"
    command = [
        fake.compiler(),
        "-x",
        "c++",
        *flags,
        str(tmp_path / "k.cu"),
        "-o",
        str(library_path),
    ]
    subprocess.run(command, check=True)
    gpus(f"kernels={library_path}")
    count = (9 << 20) // 8 + 1
    weights = {n: np.random.default_rng(i).integers(0, 2**62, count) for i, n in enumerate("abc")}
    const = IntExpr.of
    size, zero = const(8 * count), const(0)
    ends = TensorPort("x", "i64", (const(1),)), TensorPort("y", "i64", (const(count),))
    plan = Plan(
        dims=(),
        inputs=ends[:1],
        outputs=ends[1:],
        buffers=(
            Buffer("weight", size, 0),
            Buffer("weight", size, 2),
            Buffer("output", size, 0),
        ),
        kernels=(KernelEntry("add_all", 32, 0),),
        launches=(
            Launch(
                0,
                (
                    BufferArg(0, zero, size, "read"),
                    BufferArg(1, zero, size, "read"),
                    BufferArg(2, zero, size, "write"),
                ),
                (const(count),),
                const(1),
                zero,
                "add",
            ),
        ),
        arena_bytes=0,
    )
    tensors = [
        ArtifactTensor(n, "i64", (count,), "row_major", w.nbytes, lambda w=w: w, n)  # type: ignore[misc]
        for n, w in weights.items()
    ]
    write_artifact(
        tmp_path / "a.svdq",
        name="add",
        producer="svdqc tests",
        tensors=tensors,
        variants=[tiny_gpu.gpu_variant(plan=plan)],
        graph=b"",
        quantization={},
        source_digest="",
        meta={},
    )
    with load(tmp_path / "a.svdq", device="cuda:0", trust=True) as model:
        out = model(x=np.zeros(1, np.int64))
        assert fake.report()["calls"]["cuMemcpyHtoDAsync_v2"] == 2 * 2 + 1  # pieces, and x
        np.testing.assert_array_equal(out.y, weights["a"] + weights["c"])
        assert fake.report()["live"]["device_bytes"] < 3.1 * 8 * count  # a, c, y: not b


def cuda_include() -> Path | None:
    """Where nvcc's toolkit keeps cuda.h."""
    try:
        nvcc = find_nvcc().path.resolve()
    except SvdqcError:
        return None
    roots = [nvcc.parents[1], *Path("/usr/local").glob("cuda*")]
    return next((r / "include" for r in roots if (r / "include" / "cuda.h").is_file()), None)


def test_gpu_declarations__are_nvidias() -> None:
    """Every call, constant and layout of cuda_api.h, beside cuda.h."""
    include = cuda_include()
    if include is None:
        pytest.skip("no cuda.h on this machine")
    flags = ["-std=c++17", "-fsyntax-only", f"-I{fake.RUNTIME_SOURCES}", f"-I{include}"]
    command = [fake.compiler(), *flags, str(fake.HERE / "declarations.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
