"""What `svdqc doctor` says of CUDA: the driver and its GPUs, the compiler, and which targets that gives."""

from __future__ import annotations

from collections.abc import Iterator

from svdqc.compiler.cli.findings import Finding
from svdqc.compiler.driver.machine import Driver, find_driver, package_version
from svdqc.compiler.targets.cuda import CUDA_TARGETS, target_for
from svdqc.compiler.targets.cuda_toolchain import INSTALL, cutlass_include, find_nvcc
from svdqc.errors import SvdqcError


def examine_cuda() -> Iterator[Finding]:
    driver = find_driver()
    yield from _driver(driver)
    builds = False
    try:
        nvcc = find_nvcc()
        builds = True
        parts = ", ".join(f"{name} {version}" for name, version in nvcc.parts)
        yield Finding("nvcc", "ok", f"{nvcc.version}, {nvcc.path} ({parts}; calls {nvcc.host})")
    except SvdqcError as error:
        yield Finding("nvcc", "note", f"{error.found}; needed to build for GPUs", error.remedy)
    cutlass = cutlass_include()
    if cutlass is None:
        yield Finding("CUTLASS", "note", "absent; only the tests compare with it", INSTALL)
    else:
        yield Finding("CUTLASS", "ok", f"{package_version('nvidia-cutlass')}, {cutlass}")
    yield _targets(driver, builds)


def _driver(driver: Driver | None) -> Iterator[Finding]:
    if driver is None:
        remedy = "to run on an NVIDIA GPU, install its driver; to build for one, none is needed"
        yield Finding("NVIDIA driver", "note", "none; the CPU is used", remedy)
        return
    version = ".".join(map(str, driver.cuda_version))
    if driver.status != 0:
        found = f"for CUDA {version}, but it does not start (error {driver.status})"
        yield Finding("NVIDIA driver", "note", found, "see what nvidia-smi says")
        return
    yield Finding("NVIDIA driver", "ok", f"for CUDA {version}")
    for ordinal, gpu in enumerate(driver.gpus):
        major, minor = gpu.compute_capability
        target = target_for(gpu.compute_capability)
        told = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {major}.{minor}"
        if target is not None:
            yield Finding(f"GPU {ordinal}", "ok", f"{told}: target {target.name}")
        else:
            remedy = "use the CPU, or a newer svdqc"
            yield Finding(f"GPU {ordinal}", "note", f"{told}: no target runs on it", remedy)
    if not driver.gpus:
        yield Finding("GPU", "note", "the driver shows none; the CPU is used")


def _targets(driver: Driver | None, builds: bool) -> Finding:
    """Which CUDA targets artifacts can be built for here, and which of them run here."""
    gpus = driver.gpus if driver is not None else ()
    runs = [t.name for t in CUDA_TARGETS if any(t.runs_on(g.compute_capability) for g in gpus)]
    built = ", ".join(target.name for target in CUDA_TARGETS) if builds else "none"
    found = f"built here: {built}; run here: {', '.join(runs) or 'none'}"
    return Finding("CUDA targets", "ok" if builds or runs else "note", found)
