"""Callers' tensors in and out: numpy, torch, anything with DLPack. No framework is imported unless the caller has."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from svdqc.runtime import device_memory
from svdqc.runtime.errors import BadTensor
from svdqc.runtime.library import DTYPES, MAX_RANK

_NUMPY = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "bool": "bool",
}
_FROM_NAME = {**{full: short for short, full in _NUMPY.items()}, "bfloat16": "bf16"}


@dataclass(frozen=True)
class TensorMemory:
    """Dense row-major memory and who keeps it alive. device: the GPU whose memory it is; None: the host's."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    owner: object
    device: int | None = None


class Outputs(dict[str, Any]):
    """A dict of tensors by name, in order, also as attributes (`out.sample`) and by position (`out[0]`)."""

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return list(self.values())[key]
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"no output {name!r}; the outputs are {', '.join(self)}") from None


def flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Nested dicts and lists to names: {"cond": [{"mask": t}]} gives ("cond.0.mask", t). None is left out."""
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from flatten(item, f"{name}.{i}" if name else str(i))
    else:
        yield name, value


def is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def gpu_of(value: Any) -> int | None:
    """The GPU that a tensor is on; None: the host, or no tensor."""
    if is_torch(value):
        return int(value.device.index) if value.device.type == "cuda" else None
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        return None
    return device_memory.device_of(value)


def stream_for(values: Iterable[Any], device: int | None) -> int | None:
    """The CUDA stream that the caller works with: torch's current one, else the default one if some value is on the
    session's GPU; None: all are on the host."""
    if device is None:
        return None
    on_gpu = [value for value in values if gpu_of(value) is not None]
    if any(is_torch(value) for value in on_gpu):
        torch = sys.modules["torch"]
        return torch.cuda.current_stream(device).cuda_stream or device_memory.LEGACY_STREAM
    return device_memory.LEGACY_STREAM if on_gpu else None


def read_tensor(
    name: str,
    value: Any,
    expected_dtype: str | None,
    device: int | None = None,
    stream: int | None = None,
) -> TensorMemory:
    """The memory of a caller's tensor, copied only if it is not dense. Python numbers become tensors of rank 0.

    device, stream  of a session on a GPU: tensors there are used as they are, in that stream's order
    """
    here = gpu_of(value)
    if here is not None and here != device:
        wanted = "the CPU" if device is None else f"cuda:{device}"
        remedy = f"move it there, or load the model with device='cuda:{here}'"
        raise BadTensor(name, f"is on cuda:{here}, the model on {wanted}", remedy)
    if is_torch(value):
        return _read_torch(name, value, here)
    if here is not None:
        assert stream is not None
        address, dtype, shape, owner = device_memory.read_dlpack(name, value, stream)
        return TensorMemory(address, dtype, _rank_checked(name, shape), owner, here)
    if isinstance(value, np.ndarray | np.generic):
        return _read_numpy(name, np.asarray(value))
    if isinstance(value, bool | int | float) and expected_dtype in _NUMPY:
        return _read_numpy(name, np.asarray(value, _NUMPY[expected_dtype]))
    if hasattr(value, "__dlpack__"):
        try:
            return _read_numpy(name, np.from_dlpack(value))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            if not hasattr(value, "__array__"):
                raise BadTensor(
                    name, f"cannot be read through DLPack: {error}", "move it to the CPU"
                ) from error
    if hasattr(value, "__array__"):
        try:
            return _read_numpy(name, np.asarray(value))
        except (RuntimeError, TypeError, ValueError) as error:  # memory of another device
            raise BadTensor(name, f"cannot be read: {error}", "move it to the CPU") from error
    raise BadTensor(
        name, f"a {type(value).__name__}", "give a numpy array, a torch tensor or any DLPack tensor"
    )


def _read_torch(name: str, value: Any, device: int | None) -> TensorMemory:
    if device is None and value.device.type != "cpu":
        raise BadTensor(name, f"is on {value.device}", "move it to the CPU with .cpu()")
    dtype = _FROM_NAME.get(str(value.dtype).removeprefix("torch."))
    if dtype is None:
        raise BadTensor(name, f"has dtype {value.dtype}", f"use one of {', '.join(_FROM_NAME)}")
    dense = value.detach().resolve_conj().resolve_neg().contiguous()
    shape = _rank_checked(name, tuple(dense.shape))
    return TensorMemory(dense.data_ptr(), dtype, shape, dense, device)


def _read_numpy(name: str, value: np.ndarray) -> TensorMemory:
    dtype = _FROM_NAME.get(value.dtype.name)
    if dtype is None or not value.dtype.isnative:
        raise BadTensor(name, f"has dtype {value.dtype}", f"use one of {', '.join(_FROM_NAME)}")
    dense = np.require(value, requirements=["C", "A"])
    return TensorMemory(dense.ctypes.data, dtype, _rank_checked(name, value.shape), dense)


def _rank_checked(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > MAX_RANK:
        raise BadTensor(name, f"has {len(shape)} dimensions", f"at most {MAX_RANK} are supported")
    return shape


class OutputKind:
    """How outputs are made: as the kind of tensor that came in (torch before others); on the GPU if any input is."""

    def __init__(self, values: list[object]) -> None:
        self.torch = sys.modules["torch"] if any(is_torch(v) for v in values) else None
        foreign = [
            v for v in values if not isinstance(v, np.ndarray | np.generic | bool | int | float)
        ]
        self.device = next((d for d in map(gpu_of, foreign) if d is not None), None)
        self.borrows = any(gpu_of(v) is not None and not is_torch(v) for v in foreign)
        self.namespace = None
        if self.torch is None and foreign and hasattr(foreign[0], "__array_namespace__"):
            self.namespace = foreign[0].__array_namespace__()

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> TensorMemory:
        if self.torch is not None:
            tensor = self.torch.empty(
                shape,
                dtype=getattr(self.torch, "bfloat16" if dtype == "bf16" else _NUMPY[dtype]),
                device="cpu" if self.device is None else f"cuda:{self.device}",
            )
            return TensorMemory(tensor.data_ptr(), dtype, shape, tensor, self.device)
        if self.device is not None:
            memory = device_memory.DeviceTensor(shape, dtype, self.device)
            return TensorMemory(memory.address, dtype, shape, memory, self.device)
        array = np.empty(shape, np.uint16 if dtype == "bf16" else _NUMPY[dtype])
        return TensorMemory(array.ctypes.data, dtype, shape, array)

    def wait(self) -> None:
        """For tensors lent through DLPack, whose owners cannot be told when the device has done with them."""
        if self.borrows and self.device is not None:
            device_memory.synchronize(self.device)

    def finish(self, output: TensorMemory) -> Any:
        if self.torch is not None:
            return output.owner
        array: Any = output.owner
        if output.dtype == "bf16" and self.device is None:
            array = _bfloat16(array)
        if self.namespace is not None and hasattr(self.namespace, "from_dlpack"):
            try:
                return self.namespace.from_dlpack(array)
            except (BufferError, RuntimeError, TypeError, ValueError):
                return array
        return array


def _bfloat16(bits: np.ndarray) -> np.ndarray:
    """As ml_dtypes.bfloat16 if that package is here, else widened to float32, which is exact."""
    try:
        import ml_dtypes
    except ImportError:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(ml_dtypes.bfloat16)


def dtype_index(dtype: str) -> int:
    return DTYPES.index(dtype)
