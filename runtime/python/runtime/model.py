"""Load an artifact and run it."""

from __future__ import annotations

import ctypes as c
import json
import os
import re
import threading
from dataclasses import dataclass
from typing import Any

from svdqc.runtime.errors import BadArgument, BadInput, UnknownDevice
from svdqc.runtime.library import BAD_ARGUMENT as _PAST_THE_LAST
from svdqc.runtime.library import (
    CHECK_ALL_WEIGHTS,
    DTYPES,
    GPU,
    INPUT,
    INSPECT_ONLY,
    ON_DEVICE,
    OUTPUT,
    TRUST_CODE,
    LaunchTime,
    Port,
    SessionOptions,
    Tensor,
    check,
    library,
)
from svdqc.runtime.tensors import (
    OutputKind,
    Outputs,
    TensorMemory,
    dtype_index,
    flatten,
    read_tensor,
    stream_for,
)


@dataclass(frozen=True)
class PortInfo:
    """An input or output. shape holds ints, and texts where a size depends on dims; lo and hi are its bounds."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]


@dataclass(frozen=True)
class DimInfo:
    """A size that may vary: lo <= dim <= hi, a multiple of `multiple`."""

    name: str
    lo: int
    hi: int
    multiple: int


@dataclass(frozen=True)
class LaunchProfile:
    """One launch of the last run. label says where in the model it comes from."""

    label: str
    kernel: str
    microseconds: float


class _ModelHandle:
    """Owns an svdq_model."""

    def __init__(self, path: str | os.PathLike[str], flags: int) -> None:
        self.pointer = c.c_void_p()
        self._close = library().svdq_close
        check(library().svdq_open(os.fsencode(path), flags, c.byref(self.pointer)))

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._close(self.pointer)
            self.pointer = c.c_void_p()


class Session:
    """Own memory and threads over a shared model. May be called from several threads; calls take turns."""

    def __init__(
        self,
        handle: _ModelHandle,
        inputs: tuple[PortInfo, ...],
        constants: dict[str, Any],
        threads: int,
        profile: bool,
        device: str = "cpu",
    ) -> None:
        self._handle = handle
        self._gpu = gpu_index(device)
        self._ports = {port.name: port for port in inputs}
        self._constants = constants
        self._turn = threading.Lock()  # `close` waits for a call in another thread
        self._pointer = c.c_void_p()
        self._destroy = library().svdq_session_destroy
        size = c.sizeof(SessionOptions)
        options = SessionOptions(size, max(0, threads), int(profile), 0, device.encode())
        check(
            library().svdq_session_create(handle.pointer, c.byref(options), c.byref(self._pointer))
        )

    def __call__(self, num_outputs: int, /, **inputs: Any) -> Outputs:
        named = [(n, v) for n, v in flatten(inputs) if not self._is_compiled_in(n, v)]
        stream = stream_for((v for _, v in named), self._gpu)
        tensors = [read_tensor(n, v, self._expected(n), self._gpu, stream) for n, v in named]
        arguments = _pack(tensors, [n for n, _ in named])
        results = (Tensor * num_outputs)()
        kind = OutputKind([v for _, v in named])
        with self._turn:
            self._call("svdq_output_shapes", arguments, results)
            outputs = [kind.allocate(DTYPES[r.dtype], tuple(r.shape[: r.ndim])) for r in results]
            for result, output in zip(results, outputs, strict=True):
                result.data = output.address
                if output.device is not None:
                    result.dtype |= ON_DEVICE
            if stream is None:
                self._call("svdq_run", arguments, results)
            else:
                self._call("svdq_run_on_stream", arguments, results, before=(stream,))
        kind.wait()
        return Outputs(
            (r.name.decode(), kind.finish(o)) for r, o in zip(results, outputs, strict=True)
        )

    def _is_compiled_in(self, name: str, value: Any) -> bool:
        """Whether an argument is a Python value that the model was compiled with: it may be given again, unchanged."""
        if name in self._ports or name not in self._constants:
            return False
        wanted = self._constants[name]
        if type(value) is not type(wanted) or value != wanted:
            raise BadInput(
                f"[run] '{name}': found {value!r}; the model was compiled with {wanted!r}; "
                "give that, or compile again with the new value."
            )
        return True

    def _expected(self, name: str) -> str | None:
        return self._ports[name].dtype if name in self._ports else None

    def _call(self, function: str, *arguments: Any, before: tuple[Any, ...] = ()) -> None:
        """Call with the session, what comes `before`, and each array with its length after it."""
        if not self._pointer:
            raise BadArgument("[run] 'session': it is closed; load the model again.")
        with_lengths = [part for array in arguments for part in (array, len(array))]
        check(getattr(library(), function)(self._pointer, *before, *with_lengths))

    def profile(self) -> list[LaunchProfile]:
        """The launches of the last call, in order."""
        times = c.POINTER(LaunchTime)()
        count = c.c_size_t()
        with self._turn:
            if not self._pointer:
                raise BadArgument("[profile] 'session': it is closed; load the model again.")
            check(library().svdq_profile(self._pointer, c.byref(times), c.byref(count)))
            measured = times[: count.value]
            return [
                LaunchProfile(t.label.decode(), t.kernel.decode(), t.microseconds) for t in measured
            ]

    def close(self) -> None:
        with self._turn:
            if self._pointer:
                self._destroy(self._pointer)
                self._pointer = c.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self.close()


class Model:
    """An opened artifact, ready to run.

    model = svdqc.load("flux.svdq")
    out = model(hidden_states=x, timestep=t)      # numpy, torch or DLPack in; the same kind out
    out.sample
    """

    def __init__(
        self, handle: _ModelHandle, threads: int, profile: bool, device: str = "cpu"
    ) -> None:
        self._handle = handle
        self._threads, self._profile = threads, profile
        self._description: dict[str, Any] = json.loads(library().svdq_describe(handle.pointer))
        self.inputs = _ports(handle, INPUT, self._description["inputs"])
        self.outputs = _ports(handle, OUTPUT, self._description["outputs"])
        self.dims = tuple(
            DimInfo(d["name"], d["lo"], d["hi"], d["multiple"]) for d in self._description["dims"]
        )
        constants = self._description["meta"].get("constants", {})
        self.device = _resolve(device, self._description)
        self._session = Session(handle, self.inputs, constants, threads, profile, self.device)

    def __call__(self, /, **inputs: Any) -> Outputs:
        return self._session(len(self.outputs), **inputs)

    def fork(self, threads: int | None = None, device: str | None = None) -> Model:
        """Another execution context over the same weights and code, for running in parallel with this one.

        On another GPU, or on the CPU, where `device` says so.
        """
        chosen = self._threads if threads is None else threads
        return Model(self._handle, chosen, self._profile, device or self.device)

    def describe(self) -> dict[str, Any]:
        """Everything about the artifact (runtime/FORMAT.md, "svdq_describe")."""
        return dict(self._description)

    def profile(self) -> list[LaunchProfile]:
        """Microseconds per launch of the last call. Needs `load(…, profile=True)`."""
        return self._session.profile()

    def verify(self) -> None:
        """Hash every section of the file, weights included, and prove every plan in it."""
        check(library().svdq_verify(self._handle.pointer))

    def close(self) -> None:
        """Give the memory and threads back."""
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        def text(ports: tuple[PortInfo, ...]) -> str:
            return ", ".join(f"{p.name}: {p.dtype}{list(p.shape)}" for p in ports)

        return f"Model({self._description['name']!r}, {text(self.inputs)} -> {text(self.outputs)})"


def load(
    path: str | os.PathLike[str],
    device: str = "cpu",
    threads: int = 0,
    trust: bool = False,
    *,
    profile: bool = False,
    check_weights: bool = False,
) -> Model:
    """Open an artifact for running.

    device         "cpu", "cuda:0" (or another GPU), or "auto": the first GPU if the file has code for it, else the CPU
    threads        of the CPU; 0: as many as this process may use
    trust          run the file's machine code though it was compiled elsewhere
    profile        time each launch, for `Model.profile`
    check_weights  hash the weights even of a large file (those of a small one always are)
    """
    if device not in ("cpu", "auto") and gpu_index(device) is None:
        raise UnknownDevice(device)
    flags = (TRUST_CODE if trust else 0) | (CHECK_ALL_WEIGHTS if check_weights else 0)
    flags |= GPU if device != "cpu" else 0
    return Model(_ModelHandle(path, flags), threads, profile, device)


def gpu_index(device: str) -> int | None:
    """3 for "cuda:3", 0 for "cuda"; None for what names no GPU."""
    found = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    return int(found[1] or 0) if found else None


def _resolve(device: str, description: dict[str, Any]) -> str:
    if device != "auto":
        return device
    devices = [name for variant in description["variants"] for name in variant["devices"]]
    return "cuda:0" if "cuda:0" in devices else "cpu"


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check and describe an artifact for any machine, without loading its code."""
    handle = _ModelHandle(path, INSPECT_ONLY)
    description: dict[str, Any] = json.loads(library().svdq_describe(handle.pointer))
    return description


def verify(path: str | os.PathLike[str]) -> None:
    """Hash every section and prove every plan. Raises a RuntimeFailure that says what is wrong."""
    handle = _ModelHandle(path, INSPECT_ONLY)
    check(library().svdq_verify(handle.pointer))


def _pack(tensors: list[TensorMemory], names: list[str]) -> Any:
    packed = (Tensor * len(tensors))()
    for slot, tensor, name in zip(packed, tensors, names, strict=True):
        slot.name = name.encode()
        slot.data = tensor.address
        slot.dtype = dtype_index(tensor.dtype) | (0 if tensor.device is None else ON_DEVICE)
        slot.ndim = len(tensor.shape)
        for axis, size in enumerate(tensor.shape):
            slot.shape[axis] = size
    return packed


def _ports(
    handle: _ModelHandle, direction: int, shown: list[dict[str, Any]]
) -> tuple[PortInfo, ...]:
    ports = []
    for index, entry in enumerate(shown):
        port = Port()
        status = library().svdq_get_port(handle.pointer, direction, index, c.byref(port))
        if status == _PAST_THE_LAST:
            break
        check(status)
        ports.append(
            PortInfo(
                port.name.decode(),
                DTYPES[port.dtype],
                tuple(entry["shape"]),
                tuple(port.lo[: port.ndim]),
                tuple(port.hi[: port.ndim]),
            )
        )
    return tuple(ports)
