"""Memory on a GPU without a framework: what callers of no framework that has tensors there get and give (DLPack).

Talks to the driver that the runtime library has loaded, through ctypes.
"""

from __future__ import annotations

import ctypes as c
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from svdqc.runtime.errors import BadTensor, DeviceFailure
from svdqc.runtime.library import DTYPES

DL_CUDA, DL_CUDA_MANAGED = 2, 13
LEGACY_STREAM = 1  # CU_STREAM_LEGACY, and what DLPack calls the default stream
_DL_TYPES = {  # dtype: (DLDataTypeCode, bits)
    "f32": (2, 32),
    "f64": (2, 64),
    "f16": (2, 16),
    "bf16": (4, 16),
    "i8": (0, 8),
    "u8": (1, 8),
    "i16": (0, 16),
    "i32": (0, 32),
    "i64": (0, 64),
    "bool": (6, 8),
}
_FROM_DL_TYPE = {code: dtype for dtype, code in _DL_TYPES.items()}
assert tuple(_DL_TYPES) == DTYPES


class DLDevice(c.Structure):
    _fields_ = [("device_type", c.c_int32), ("device_id", c.c_int32)]


class DLDataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class DLTensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("device", DLDevice),
        ("ndim", c.c_int32),
        ("dtype", DLDataType),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


class DLManagedTensor(c.Structure):
    _fields_ = [("dl_tensor", DLTensor), ("manager", c.c_void_p), ("deleter", c.c_void_p)]


_NAME = b"dltensor"
_new_capsule = c.pythonapi.PyCapsule_New
_new_capsule.restype = c.py_object
_new_capsule.argtypes = [c.c_void_p, c.c_char_p, c.c_void_p]
_capsule_pointer = c.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = c.c_void_p
_capsule_pointer.argtypes = [c.py_object, c.c_char_p]
_raw_is_valid = c.PYFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p)(("PyCapsule_IsValid", c.pythonapi))
_raw_pointer = c.PYFUNCTYPE(c.c_void_p, c.c_void_p, c.c_char_p)(
    ("PyCapsule_GetPointer", c.pythonapi)
)


@cache
def _driver(path: str) -> c.CDLL:
    library = c.CDLL(path)
    pointer = c.c_uint64
    for name, arguments in {
        "cuDevicePrimaryCtxRetain": [c.POINTER(c.c_void_p), c.c_int],
        "cuDevicePrimaryCtxRelease_v2": [c.c_int],
        "cuCtxPushCurrent_v2": [c.c_void_p],
        "cuCtxPopCurrent_v2": [c.POINTER(c.c_void_p)],
        "cuMemAlloc_v2": [c.POINTER(pointer), c.c_size_t],
        "cuMemFree_v2": [pointer],
        "cuMemcpyHtoDAsync_v2": [pointer, c.c_void_p, c.c_size_t, c.c_void_p],
        "cuMemcpyDtoHAsync_v2": [c.c_void_p, pointer, c.c_size_t, c.c_void_p],
        "cuCtxSynchronize": [],
        "cuStreamSynchronize": [c.c_void_p],
    }.items():  # others are called with typed arguments
        getattr(library, name).argtypes = arguments
    return library


class Gpu:
    """A GPU's primary context, which frameworks use too; kept while this lives."""

    def __init__(self, device: int) -> None:
        self.device = device
        self._context = c.c_void_p()
        self._library = _driver(os.environ.get("SVDQ_CUDA_DRIVER") or "libcuda.so.1")
        self.call("cuDevicePrimaryCtxRetain", c.byref(self._context), device)

    def try_call(self, name: str, *arguments: Any) -> int:
        """The driver's own CUresult."""
        result: int = getattr(self._library, name)(*arguments)
        return result

    def call(self, name: str, *arguments: Any) -> None:
        result = self.try_call(name, *arguments)
        if result:
            raise DeviceFailure(
                f"[device] 'cuda': {name} failed with CUDA error {result}; see what nvidia-smi says."
            )

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context as this thread's, for a few calls."""
        self.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", c.byref(c.c_void_p()))

    def __del__(self) -> None:
        if self._context:
            self.call("cuDevicePrimaryCtxRelease_v2", self.device)


def synchronize(device: int) -> None:
    """Wait for all work of the device."""
    gpu = Gpu(device)
    with gpu.current():
        gpu.call("cuCtxSynchronize")


class _Allocation:
    def __init__(self, num_bytes: int, device: int) -> None:
        self.address = 0
        self.gpu = Gpu(device)
        address = c.c_uint64()
        with self.gpu.current():
            self.gpu.call("cuMemAlloc_v2", c.byref(address), max(1, num_bytes))
        self.address = address.value

    def __del__(self) -> None:
        if self.address:
            with self.gpu.current():
                self.gpu.call("cuMemFree_v2", self.address)


class DeviceTensor:
    """A dense tensor on a GPU: give it to a model, or to any library that knows DLPack (`cupy.from_dlpack(t)`).

    dtype   of svdqc.runtime.library.DTYPES
    device  index of the GPU
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device: int = 0) -> None:
        self.shape, self.dtype, self.device = tuple(shape), dtype, device
        self.num_bytes = math.prod(shape) * _DL_TYPES[dtype][1] // 8
        self._allocation = _Allocation(self.num_bytes, device)

    @property
    def address(self) -> int:
        return self._allocation.address

    @classmethod
    def from_numpy(
        cls, array: np.ndarray, device: int = 0, dtype: str | None = None
    ) -> DeviceTensor:
        """A copy. dtype: "bf16" for uint16 that are bfloat16's bits."""
        dense = np.ascontiguousarray(array)
        name = dtype or _dtype_of(dense)
        tensor = cls(array.shape, name, device)
        gpu, source = tensor._allocation.gpu, dense.ctypes.data
        with gpu.current():
            gpu.call("cuMemcpyHtoDAsync_v2", tensor.address, source, dense.nbytes, LEGACY_STREAM)
            gpu.call("cuStreamSynchronize", LEGACY_STREAM)
        return tensor

    def numpy(self) -> np.ndarray:
        """A copy on the host; bfloat16 as its bits in uint16."""
        names = {"bf16": "uint16", "bool": "bool"}
        kinds = {"f": "float", "i": "int", "u": "uint"}
        name = names.get(self.dtype) or f"{kinds[self.dtype[0]]}{_DL_TYPES[self.dtype][1]}"
        array = np.empty(self.shape, name)
        gpu, target = self._allocation.gpu, array.ctypes.data
        with gpu.current():
            gpu.call("cuMemcpyDtoHAsync_v2", target, self.address, array.nbytes, LEGACY_STREAM)
            gpu.call("cuStreamSynchronize", LEGACY_STREAM)
        return array

    def __dlpack_device__(self) -> tuple[int, int]:
        return DL_CUDA, self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """Its contents are complete, so there is nothing to order with `stream`."""
        shape = (c.c_int64 * len(self.shape))(*self.shape)
        managed = DLManagedTensor()
        managed.dl_tensor = DLTensor(
            self.address,
            DLDevice(DL_CUDA, self.device),
            len(self.shape),
            DLDataType(*_DL_TYPES[self.dtype], 1),
            shape,
            None,
            0,
        )
        managed.deleter = c.cast(_DELETER, c.c_void_p)
        address = c.addressof(managed)
        _lent[address] = (managed, shape, self)
        return _new_capsule(address, _NAME, c.cast(_DESTRUCTOR, c.c_void_p))


def _dtype_of(array: np.ndarray) -> str:
    if array.dtype.name in ("bool", "bfloat16"):  # ml_dtypes has the latter
        return {"bool": "bool", "bfloat16": "bf16"}[array.dtype.name]
    name = f"{array.dtype.kind}{8 * array.dtype.itemsize}"
    if name not in DTYPES:
        found = f"has dtype {array.dtype}"
        raise BadTensor("DeviceTensor", found, f"use one of {', '.join(DTYPES)}")
    return name


_lent: dict[int, tuple[object, ...]] = {}
"""What was given away through DLPack, by address, until the taker gives it back."""


def _delete(address: int) -> None:
    _lent.pop(address, None)


def _forget_capsule(capsule: int) -> None:
    """A capsule that nobody took; one that was taken has another name."""
    if _raw_is_valid(capsule, _NAME):
        _lent.pop(_raw_pointer(capsule, _NAME), None)


_DELETER = c.CFUNCTYPE(None, c.c_void_p)(_delete)
_DESTRUCTOR = c.PYFUNCTYPE(None, c.c_void_p)(_forget_capsule)


def device_of(value: Any) -> int | None:
    """The GPU that a DLPack tensor is on; None if it is on none."""
    if not hasattr(value, "__dlpack_device__"):
        return None
    kind, index = value.__dlpack_device__()
    return int(index) if int(kind) in (DL_CUDA, DL_CUDA_MANAGED) else None


def read_dlpack(name: str, value: Any, stream: int) -> tuple[int, str, tuple[int, ...], object]:
    """(address, dtype, shape, owner) of a DLPack tensor on a GPU, ready in the order of `stream`.

    The owner is the capsule itself: while it is kept, and not taken, the tensor lives.
    """
    try:
        capsule = value.__dlpack__(stream=stream)
        tensor = DLManagedTensor.from_address(_capsule_pointer(capsule, _NAME)).dl_tensor
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        found = f"cannot be read through DLPack: {error}"
        raise BadTensor(name, found, "give a dense tensor of a plain dtype") from error
    dtype = _FROM_DL_TYPE.get((tensor.dtype.code, tensor.dtype.bits))
    if dtype is None or tensor.dtype.lanes != 1:
        found = f"has DLPack dtype {tensor.dtype.code}, {tensor.dtype.bits} bits"
        raise BadTensor(name, found, f"use one of {', '.join(DTYPES)}")
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides and not _is_dense(shape, tuple(tensor.strides[: tensor.ndim])):
        raise BadTensor(name, "is not dense in row-major order", "make it contiguous")
    return (tensor.data or 0) + tensor.byte_offset, dtype, shape, capsule


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """In row-major order; strides of axes of one element mean nothing."""
    dense = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return 0 in shape or all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip(shape, strides, dense, strict=True)
    )
