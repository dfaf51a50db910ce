"""Hostile artifacts for GPUs: plans and archives of cubins, refused before a driver or a device sees them."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.attacks.craft import STATUS, Craft, poke
from tests.runtime import tiny
from tests.runtime.cuda import fake, tiny_gpu

from svdqc.compiler.artifact.read import read_artifact
from svdqc.compiler.ir.intexpr import IntExpr, symbol
from svdqc.compiler.plan.encode import encode_plan
from svdqc.compiler.plan.records import KernelEntry, Plan
from svdqc.errors import SvdqcError

Attack = Callable[[Craft], bytes]
B = symbol("batch", 1, 8)
GOOD = tiny_gpu.make_plan()


def plan(change: Callable[[Plan], Plan]) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.set_plan(encode_plan(change(GOOD)))
        return craft.build()

    return attack


def plan_bytes(change: Callable[[bytes], bytes]) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.set_plan(change(encode_plan(GOOD)))
        return craft.build()

    return attack


def code(change: Callable[[bytes], bytes]) -> Attack:
    def attack(craft: Craft) -> bytes:
        index = craft.index("code")
        craft.sections[index] = change(craft.sections[index])
        return craft.build()

    return attack


def field(at: int, form: str, value: int) -> Attack:
    """One number of the code section."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, at, value)
        return bytes(changed)

    return code(change)


def cubin_field(at: int, form: str, value: int) -> Attack:
    """One number of the first cubin."""
    return lambda craft: field(FIRST_CUBIN + at, form, value)(craft)


def target(text: str) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.manifest["variants"][0]["target"] = text
        return craft.build()

    return attack


def with_args(p: Plan, index: int, count: int) -> Plan:
    return tiny.with_launch(p, index, scalars=(IntExpr.of(1),) * count)


def same_kernel_twice(p: Plan) -> Plan:
    fewer = replace(p.launches[0], scalars=())
    return replace(p, launches=(p.launches[0], fewer, p.launches[1]))


ARCHIVE = tiny_gpu.gpu_variant().code
ENTRY, NAMES = 16, 16 + 2 * 32
FIRST_CUBIN = struct.unpack_from("<Q", ARCHIVE, ENTRY + 8)[0]

ATTACKS: dict[str, tuple[str, Attack]] = {
    # the plan
    "threads_zero": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "kernels", 1, 8, 0))),
    "threads_odd": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "kernels", 0, 8, 33))),
    "threads_many": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "kernels", 0, 8, 1056))),
    "threads_huge": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "kernels", 0, 8, 1 << 31))),
    "shared_huge": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "kernels", 0, 12, 1 << 31))),
    "grid_huge": ("BAD_PLAN", plan(lambda p: tiny.with_launch(p, 0, num_tasks=B * 2**29))),
    "scratch": ("BAD_PLAN", plan(lambda p: tiny.with_launch(p, 0, scratch_bytes=B))),
    "params_many": ("BAD_PLAN", plan(lambda p: with_args(p, 1, 509))),
    "params_differ": ("BAD_PLAN", plan(same_kernel_twice)),
    "for_cpus": (
        "BAD_PLAN",
        plan(lambda p: replace(p, kernels=tuple(KernelEntry(k.name) for k in p.kernels))),
    ),
    # the target
    "target_nothing": ("MALFORMED", target("cuda:")),
    "target_long": ("MALFORMED", target("cuda:sm_9000000000000000000")),
    "target_letters": ("MALFORMED", target("cuda:sm_9x")),
    "target_other": ("BAD_CODE", target("cuda:sm_86")),
    "target_cpu": ("BAD_PLAN", target("cpu:portable")),
    # the archive
    "code_is_text": ("BAD_CODE", code(lambda _: b"echo hello")),
    "code_is_elf": ("BAD_CODE", code(lambda _: fake.cubin(80))),
    "code_cut": ("BAD_CODE", code(lambda data: data[:-1])),
    "code_longer": ("BAD_CODE", code(lambda data: data + b"\0")),
    "code_header_only": ("BAD_CODE", code(lambda data: data[:16])),
    "interface_newer": ("BAD_CODE", field(8, "<I", 2)),
    "count_zero": ("BAD_CODE", field(12, "<I", 0)),
    "count_more": ("BAD_CODE", field(12, "<I", 3)),
    "count_huge": ("BAD_CODE", field(12, "<I", 0xFFFFFFFF)),
    "name_moved": ("BAD_CODE", field(ENTRY, "<I", NAMES + 1)),
    "name_empty": ("BAD_CODE", field(ENTRY + 4, "<I", 0)),
    "name_huge": ("BAD_CODE", field(ENTRY + 4, "<I", 0xFFFFFFFF)),
    "name_path": ("BAD_CODE", field(NAMES, "<B", ord("/"))),
    "names_descend": ("BAD_CODE", field(NAMES, "<B", ord("z"))),
    "cubin_moved": ("BAD_CODE", field(ENTRY + 8, "<Q", FIRST_CUBIN + 64)),
    "cubin_on_header": ("BAD_CODE", field(ENTRY + 8, "<Q", 0)),
    "cubin_huge": ("BAD_CODE", field(ENTRY + 16, "<Q", 2**64 - 1)),
    "cubin_empty": ("BAD_CODE", field(ENTRY + 16, "<Q", 0)),
    "entry_reserved": ("BAD_CODE", field(ENTRY + 24, "<Q", 1)),
    "padding": ("BAD_CODE", field(FIRST_CUBIN - 1, "<B", 1)),
    # the cubins
    "elf_magic": ("BAD_CODE", cubin_field(0, "<I", 0)),
    "elf_32_bit": ("BAD_CODE", cubin_field(4, "<B", 1)),
    "elf_big_endian": ("BAD_CODE", cubin_field(5, "<B", 2)),
    "elf_for_x86": ("BAD_CODE", cubin_field(18, "<H", 62)),
    "elf_other_arch": ("BAD_CODE", cubin_field(49, "<B", 90)),
    "elf_sections_outside": ("BAD_CODE", cubin_field(60, "<H", 3)),
    "elf_section_table_huge": ("BAD_CODE", cubin_field(40, "<Q", 2**64 - 1)),
    "elf_segments_outside": ("BAD_CODE", cubin_field(54, "<I", 0xFFFFFFFF)),
    "elf_section_outside": (
        "BAD_CODE",
        code(lambda _: fake.archive({"scale": section_outside(), "shift_sum": fake.cubin(80)})),
    ),
}  # fmt: skip
PLAN_ATTACKS = [
    n for n, (status, _) in ATTACKS.items() if status == "BAD_PLAN" and n not in ("for_cpus", "target_cpu")
]  # fmt: skip


def section_outside() -> bytes:
    """A cubin with one section that goes beyond it."""
    cubin = bytearray(fake.cubin(80, bytes(64)))
    struct.pack_into("<Q", cubin, 40, 64)
    struct.pack_into("<H", cubin, 60, 1)
    struct.pack_into("<IIQQQQ", cubin, 64, 0, 1, 0, 0, 100, 64)
    return bytes(cubin)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "gpu.svdq"
    tiny_gpu.write(path)
    return path


@pytest.fixture(scope="module")
def answers(
    probe: Path, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, str, Path]]:
    folder = tmp_path_factory.mktemp("attacks")
    files = {"untouched": folder / "untouched.svdq"}
    files["untouched"].write_bytes(Craft.of(good).build())
    for name, (_, attack) in ATTACKS.items():
        files[name] = folder / f"{name}.svdq"
        files[name].write_bytes(attack(Craft.of(good)))
    command = [probe, "open", *files.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    lines = [line.split("\t", 1) for line in done.stdout.splitlines()]
    return {
        name: (STATUS[int(status)], message, file)
        for (name, file), (status, message) in zip(files.items(), lines, strict=True)
    }


def read_plan(file: Path) -> Plan:
    artifact = read_artifact(file)
    return artifact.plan(artifact.variants[0])


def test_gpu_attacks__untouched_is_accepted(answers: dict[str, tuple[str, str, Path]]) -> None:
    status, message, file = answers["untouched"]
    assert status == "OK", message
    assert read_plan(file) == GOOD


@pytest.mark.parametrize("name", ATTACKS)
def test_gpu_attacks__runtime_names(name: str, answers: dict[str, tuple[str, str, Path]]) -> None:
    status, message, file = answers[name]
    assert status == ATTACKS[name][0], message
    assert message.startswith("["), message
    assert str(file) in message, message


@pytest.mark.parametrize("name", PLAN_ATTACKS)
def test_gpu_attacks__python_reader_refuses(
    name: str, answers: dict[str, tuple[str, str, Path]]
) -> None:
    with pytest.raises(SvdqcError):
        read_plan(answers[name][2])


def test_gpu_attacks__fuzz_never_crashes(probe: Path, good: Path) -> None:
    done = subprocess.run(
        [probe, "fuzz", good, "20240608", "4"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert min(tried for tried, _ in counts) > 100, counts
    assert counts[3][1] < counts[3][0], "no change to the code was refused"


def test_gpu_attacks__sessions_under_sanitizers(probe: Path, good: Path, tmp_path: Path) -> None:
    """The runtime's GPU side under AddressSanitizer, on the fake driver."""
    extra = {
        "SVDQ_CUDA_DRIVER": str(fake.build_driver()),
        "SVDQ_FAKE_CUDA": f"kernels={tiny_gpu.build_kernels(tmp_path)}",
        "ASAN_OPTIONS": "detect_leaks=0",  # kernels' stacks are the fake driver's to keep
    }
    done = subprocess.run(
        [probe, "gpu", good],
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "fake CUDA driver" not in done.stderr
