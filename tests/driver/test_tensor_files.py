"""Reading and writing .npz and .safetensors files with numpy alone, and calibration folders."""

from __future__ import annotations

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from svdqc.compiler.driver.calibration_files import (
    CalibrationFiles,
    NoCalibrationSamples,
    to_torch,
)
from svdqc.compiler.driver.tensor_files import (
    SUFFIXES,
    TensorFileDamaged,
    TensorFileMissing,
    TensorFileUnwritable,
    as_port_dtype,
    nest,
    read_tensors,
    write_tensors,
)

DTYPES = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")


def every_dtype() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    tensors = {f"t.{d}": (100 * dice.random((2, 3))).astype(d) for d in DTYPES}
    return {**tensors, "scalar": np.float32(7), "empty": np.zeros((0, 4), np.float32)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors__come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tensors{suffix}"
    written = every_dtype()
    write_tensors(path, written)
    read = read_tensors(path)
    assert list(read) == list(written)
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert np.array_equal(read[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write__same_tensors_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        write_tensors(tmp_path / f"{name}{suffix}", every_dtype())
    first, second = (tmp_path / f"{name}{suffix}" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_safetensors__agrees_with_the_package(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    write_tensors(path, {**every_dtype(), "bf16": values})
    loaded = load_file(path)
    assert loaded["bf16"].dtype == torch.bfloat16
    assert loaded["bf16"].tolist() == [1.5, -2.0]
    assert read_tensors(path)["bf16"].dtype == ml_dtypes.bfloat16
    save_file({"x": np.arange(6.0).reshape(2, 3)}, path)
    assert read_tensors(path)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_npz__bfloat16_is_widened_and_narrowed_again(tmp_path: Path) -> None:
    path = tmp_path / "tensors.npz"
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    write_tensors(path, {"x": values})
    widened = read_tensors(path)["x"]
    assert widened.dtype == np.float32
    assert np.array_equal(as_port_dtype(widened, "bf16"), values)
    assert as_port_dtype(widened, "f16").dtype == np.float16
    assert as_port_dtype(widened.astype(np.float64), "bf16").dtype == np.float64


def header_of(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 32,
        header_of(b"not json"),
        header_of(b'{"x":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}'),
        header_of(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}') + bytes(4),
        header_of(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}') + bytes(4),
        header_of(b'["x"]'),
        header_of(b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[8,4]}}'),
        header_of(b'{"x":{"shape":[1]}}'),
    ],
)
def test_read__damaged_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(TensorFileDamaged, match=r"damaged\.safetensors"):
        read_tensors(path)


def test_read__damaged_or_dangerous_npz(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    for content in (b"", b"PK\x03\x04 not a zip", b"text"):
        path.write_bytes(content)
        with pytest.raises(TensorFileDamaged):
            read_tensors(path)
    np.savez(path, x=np.array([{"pickled": 1}], object))
    with pytest.raises(TensorFileDamaged):
        read_tensors(path)


def test_read__missing_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(TensorFileMissing, match="no such file"):
        read_tensors(tmp_path / "absent.npz")
    with pytest.raises(TensorFileMissing, match=r"\.txt"):
        read_tensors(tmp_path / "inputs.txt")


def test_write__failures_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, {"x": np.ones(3, np.float32)})
    before = path.read_bytes()
    with pytest.raises(TensorFileUnwritable, match="complex"):
        write_tensors(path, {"x": np.ones(3, np.complex64)})
    with pytest.raises(TensorFileUnwritable, match="absent"):
        write_tensors(tmp_path / "absent" / "x.npz", {"x": np.ones(3)})
    with pytest.raises(TensorFileUnwritable, match="suffix"):
        write_tensors(tmp_path / "x.bin", {"x": np.ones(3)})
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    with pytest.raises(TensorFileUnwritable, match="ordinary"):
        write_tensors(folder, {"x": np.ones(3)})
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.npz", path.name]


def test_nest__keyword_paths() -> None:
    assert nest({"x": 1, "cond.0.mask": 2, "cond.1.mask": 3, "kw.a": 4, "kw.b.1": 5}) == {
        "x": 1,
        "cond": [{"mask": 2}, {"mask": 3}],
        "kw": {"a": 4, "b": {"1": 5}},
    }


def test_to_torch__keeps_dtype_and_rank() -> None:
    assert to_torch(np.float32(3)[...]).shape == ()
    bits = to_torch(np.array([1.5], ml_dtypes.bfloat16))
    assert bits.dtype == torch.bfloat16
    assert bits.tolist() == [1.5]


def test_calibration__folder_in_order_of_names_twice(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        write_tensors(tmp_path / f"{i}.npz", {"c.0.m": np.full(2, i, np.float32)})
    (tmp_path / "notes.txt").write_text("not a sample")
    samples = CalibrationFiles(tmp_path)
    assert len(samples) == 3
    for _ in range(2):
        assert [sample["c"][0]["m"][0].item() for sample in samples] == [0, 1, 2]
    flat = CalibrationFiles(tmp_path / "1.npz", nested=False)
    assert [list(sample) for sample in flat] == [["c.0.m"]]


def test_calibration__nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NoCalibrationSamples, match=r"no \.npz"):
        CalibrationFiles(tmp_path)
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(NoCalibrationSamples, match="no tensor"):
        CalibrationFiles(tmp_path)
