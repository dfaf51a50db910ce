"""Inputs for an artifact: from a file, or made up from what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from svdqc.compiler.driver.tensor_files import Array, as_port_dtype, read_tensors

if TYPE_CHECKING:
    from svdqc.runtime import Model, PortInfo

SEED = 0
INTEGERS = ("i8", "u8", "i16", "i32", "i64")


def artifact_inputs(model: Model, path: Path | None) -> dict[str, Array]:
    """The tensors of a file, or random ones of the smallest sizes that the artifact takes."""
    if path is None:
        dice = np.random.default_rng(SEED)
        return {port.name: _made_up(port, dice) for port in model.inputs}
    dtypes = {port.name: port.dtype for port in model.inputs}
    return {
        name: as_port_dtype(array, dtypes.get(name, ""))
        for name, array in read_tensors(path).items()
    }


def on_device(inputs: dict[str, Array], device: str) -> dict[str, Any]:
    """The inputs in the memory of the device: copies on a GPU, themselves on the CPU."""
    from svdqc.runtime import DeviceTensor
    from svdqc.runtime.model import gpu_index

    index = gpu_index(device)
    if index is None:
        return dict(inputs)
    return {name: DeviceTensor.from_numpy(array, index) for name, array in inputs.items()}


def shapes_text(inputs: dict[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())


def as_float(array: Any) -> Array:
    """Any output as float32 (float64 and integers of more than 24 bits: float64)."""
    values = np.asarray(array)
    wide = values.dtype.kind in "iu" and values.dtype.itemsize > 2
    return values.astype(np.float64 if wide or values.dtype == np.float64 else np.float32)


def _made_up(port: PortInfo, dice: np.random.Generator) -> Array:
    # Zeros for integers: an index that is valid in every table.
    if port.dtype in INTEGERS:
        return np.zeros(
            port.lo,
            np.dtype(port.dtype[0].replace("i", "int").replace("u", "uint") + port.dtype[1:]),
        )
    if port.dtype == "bool":
        return np.ones(port.lo, np.bool_)
    normal = dice.standard_normal(port.lo)
    if port.dtype == "f64":
        return normal
    return as_port_dtype(normal.astype(np.float32), port.dtype)
