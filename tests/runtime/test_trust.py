"""Which code runs: variants for this machine, and trust."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime import tiny

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.plan.records import KernelEntry
from svdqc.runtime import cpu_features, inspect, load, trust
from svdqc.runtime.errors import BadCode, NotEnoughMemory, UntrustedCode, WrongMachine


def run(path: Path, trust: bool = False) -> np.ndarray:
    x = np.ones((2, 4), np.float32)
    sample: np.ndarray = load(path, trust=trust)(x=x, gate=[np.zeros(2, np.int64)]).sample
    return sample


def test_trust__unknown_code_is_refused_with_what_to_do(artifact: Path) -> None:
    with pytest.raises(UntrustedCode, match=r"trust=True.*svdqc/trusted") as refused:
        load(artifact)
    assert str(artifact) in str(refused.value)
    assert inspect(artifact)["variants"][0]["trusted"] is False


def test_trust__registered_code_runs(code: bytes, tmp_path: Path) -> None:
    written = tiny.write(tmp_path / "a.svdq", code)
    trust.register(*written.trust_digests)
    trust.register(*written.trust_digests)  # once is enough
    assert trust.trusted_digests() == written.trust_digests
    assert run(tmp_path / "a.svdq").shape == (2, 4)
    assert inspect(tmp_path / "a.svdq")["variants"][0]["trusted"] is True


def test_trust__covers_the_plan(code: bytes, tmp_path: Path) -> None:
    """The same code under another plan is another thing: the plan chooses the sizes it is called with."""
    trust.register(*tiny.write(tmp_path / "a.svdq", code).trust_digests)
    plan = tiny.with_launch(tiny.make_plan(), 0, label="other")
    tiny.write(tmp_path / "b.svdq", code, plan)
    with pytest.raises(UntrustedCode):
        load(tmp_path / "b.svdq")


def test_trust__registry_that_others_may_write_is_ignored(code: bytes, tmp_path: Path) -> None:
    trust.register(*tiny.write(tmp_path / "a.svdq", code).trust_digests)
    trust.registry_path().chmod(0o666)
    with pytest.raises(UntrustedCode):
        load(tmp_path / "a.svdq")
    trust.registry_path().chmod(0o600)
    run(tmp_path / "a.svdq")


def test_trust__registry_with_garbage(code: bytes, tmp_path: Path) -> None:
    path = trust.registry_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"# a comment\n\xff\n" + b"0" * 63 + b"\n")
    path.chmod(0o600)
    written = tiny.write(tmp_path / "a.svdq", code)
    with pytest.raises(UntrustedCode):
        load(tmp_path / "a.svdq")
    path.write_text("not a digest\n" + written.trust_digests[0])  # no newline at the end
    run(tmp_path / "a.svdq")


def test_trust__register_rejects_what_is_no_digest() -> None:
    with pytest.raises(trust.TrustRegistryError):
        trust.register("abc")


def test_variant__the_first_that_fits(
    code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    best = tuple(f for f in ("avx2", "neon") if f in cpu_features())

    def variants(good: Variant) -> list[Variant]:
        return [
            replace(good, target="cuda:sm_90a"),
            replace(good, target="cpu:future", isa_features=("warp9",)),
            replace(good, target="cpu:best", isa_features=best),
            good,
        ]

    tiny.write(tmp_path / "a.svdq", code, change=variants)
    described = inspect(tmp_path / "a.svdq")["variants"]
    assert [v["chosen"] for v in described] == [False, False, True, False]
    assert "no NVIDIA driver" in described[0]["unfit"]
    assert described[1]["unfit"] == "needs warp9"
    run(tmp_path / "a.svdq", trust=True)


def test_variant__none_fits(code: bytes, tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.svdq", code, change=lambda v: [replace(v, isa_features=("warp9",))])
    with pytest.raises(WrongMachine, match=r"needs warp9.*--target native"):
        load(tmp_path / "a.svdq", trust=True)
    assert inspect(tmp_path / "a.svdq")["num_launches"] == 2  # still readable


def test_variant__of_another_processor_family(code: bytes, tmp_path: Path) -> None:
    other = bytearray(code)
    here = struct.unpack_from("<H", other, 18)[0]
    struct.pack_into("<H", other, 18, 183 if here != 183 else 62)
    tiny.write(tmp_path / "a.svdq", bytes(other))
    with pytest.raises(WrongMachine, match=r"is for (aarch64|x86-64) processors"):
        load(tmp_path / "a.svdq", trust=True)


def test_code__that_is_no_library(tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.svdq", b"echo hello")
    with pytest.raises(BadCode):
        load(tmp_path / "a.svdq", trust=True)


def test_code__without_a_kernel_or_with_another_interface(code: bytes, tmp_path: Path) -> None:
    plan = replace(tiny.make_plan(), kernels=(KernelEntry("scale"), KernelEntry("nonesuch")))
    tiny.write(tmp_path / "a.svdq", code, plan)
    with pytest.raises(BadCode, match="no kernel 'nonesuch'"):
        load(tmp_path / "a.svdq", trust=True)
    source = tiny.SOURCE.replace("svdq_code_abi = SVDQ_KERNEL_ABI", "svdq_code_abi = 99")
    tiny.write(tmp_path / "b.svdq", tiny.compile_code(tmp_path, source))
    with pytest.raises(BadCode, match="interface 99"):
        load(tmp_path / "b.svdq", trust=True)


def test_code__two_artifacts_of_one_name_stay_apart(code: bytes, tmp_path: Path) -> None:
    """Loaders remember libraries by path; closing one must not give its code to the next."""
    tripled = tiny.compile_code(tmp_path, tiny.SOURCE.replace("+ bias[0]", "+ 3 * bias[0]"))
    x = {"x": np.zeros((1, 4), np.float32), "gate": [np.zeros(1, np.int64)]}
    for body, expected in [(code, 0.5), (tripled, 1.5), (code, 0.5)]:
        tiny.write(tmp_path / "a.svdq", body)
        model = load(tmp_path / "a.svdq", trust=True)
        assert model(**x).sample[0, 0] == np.float32(expected)
        del model


def test_session__does_not_fit_in_memory(code: bytes, tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.svdq", code, replace(tiny.make_plan(), arena_bytes=1 << 46))
    with pytest.raises(NotEnoughMemory, match=rf"needs {1 << 46} bytes .* smaller upper bounds"):
        load(tmp_path / "a.svdq", trust=True)


def test_open__leaves_no_file_open(artifact: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        load(artifact, trust=True).close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
