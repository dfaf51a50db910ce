"""CUDA targets: their names, their limits, and which machine they run on."""

from __future__ import annotations

import pytest

from svdqc.compiler.targets.cpu import AVX2, AVX512VNNI, PORTABLE, UnknownTarget
from svdqc.compiler.targets.cuda import (
    CUDA_TARGETS,
    SM_75,
    SM_80,
    SM_86,
    SM_89,
    SM_90A,
    SM_100A,
    SM_120A,
    CudaTarget,
    NoGpu,
    UnknownCudaTarget,
    parse_cuda_target,
    target_for,
)
from svdqc.compiler.targets.select import parse_targets


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.arch)
def test_names(target: CudaTarget) -> None:
    assert parse_cuda_target(target.name) is target
    assert parse_cuda_target(target.name.removesuffix("a")) is target
    major, minor = target.compute_capability
    assert target.arch.removesuffix("a") == f"sm_{major}{minor}"
    assert target.shared_bytes_per_cta <= target.shared_bytes_per_sm


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((7, 0), None),
        ((7, 5), SM_75),
        ((8, 0), SM_80),
        ((8, 6), SM_86),
        ((8, 7), None),
        ((8, 9), SM_89),
        ((9, 0), SM_90A),
        ((10, 0), SM_100A),
        ((10, 3), None),
        ((12, 0), SM_120A),
        ((12, 1), None),
    ],
)
def test_the_target_of_a_gpu(capability: tuple[int, int], target: CudaTarget | None) -> None:
    assert target_for(capability) is target


def test_cuda_is_this_machines_gpu() -> None:
    assert parse_cuda_target("cuda", [(8, 9), (9, 0)]) is SM_89
    with pytest.raises(NoGpu, match=r"shows no GPU.*name the architecture.*cuda:sm_90a"):
        parse_cuda_target("cuda", [])
    with pytest.raises(UnknownCudaTarget, match=r"compute capability 7\.0"):
        parse_cuda_target("cuda", [(7, 0)])
    with pytest.raises(UnknownCudaTarget, match=r"cuda:sm_70.*use cuda or cuda:sm_75"):
        parse_cuda_target("cuda:sm_70")


def test_lists_of_targets() -> None:
    def no_gpu() -> list[tuple[int, int]]:
        return []

    def asked() -> list[tuple[int, int]]:
        raise AssertionError("the driver was asked without need")

    avx2 = AVX2.isa_features
    text = "cpu:portable, cuda:sm_80,cpu,cuda:sm_90a,cuda:sm_80"
    assert parse_targets(text, avx2, asked) == [SM_90A, SM_80, AVX2, PORTABLE]
    assert parse_targets("native", AVX512VNNI.isa_features, no_gpu) == [AVX512VNNI]
    assert parse_targets("cuda", avx2, lambda: [(12, 0)]) == [SM_120A]
    with pytest.raises(UnknownTarget, match=r"no such target.*use one of native, cpu, cuda"):
        parse_targets("cpu,gpu", avx2, asked)


def test_native_is_the_gpu_too_where_it_can_be_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from svdqc.compiler.targets import select
    from svdqc.compiler.targets.cuda_toolchain import NoNvcc

    monkeypatch.setattr(select, "find_nvcc", lambda: None)
    assert parse_targets("native", (), lambda: [(8, 6), (9, 0)]) == [SM_86, PORTABLE]
    assert parse_targets("native", (), lambda: [(7, 0)]) == [PORTABLE]

    def absent() -> None:
        raise NoNvcc("compile", "nvcc", "none found", "install it")

    monkeypatch.setattr(select, "find_nvcc", absent)
    assert parse_targets("native", (), lambda: [(8, 6)]) == [PORTABLE]


@pytest.mark.parametrize(
    ("target", "threads", "shared_bytes", "registers", "ctas"),
    [
        (SM_80, 256, 0, 32, 8),  # threads
        (SM_80, 256, 48 * 1024, 64, 3),  # shared memory: 49 KiB each of 164
        (SM_80, 128, 0, 128, 4),  # registers
        (SM_75, 32, 0, 16, 16),  # CTAs
        (SM_90A, 384, 200 * 1024, 168, 1),
        (SM_89, 128, 99 * 1024, 255, 1),
    ],
)
def test_resident_ctas(
    target: CudaTarget, threads: int, shared_bytes: int, registers: int, ctas: int
) -> None:
    assert target.max_ctas(threads, shared_bytes, registers) == ctas
