"""svdqc doctor"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict

import click

import svdqc
from svdqc.compiler.cli.commands.doctor_cuda import examine_cuda
from svdqc.compiler.cli.findings import Finding
from svdqc.compiler.cli.output import megabytes, output_options, print_json, print_table
from svdqc.compiler.driver.api import COMPILER_PACKAGES, missing_packages
from svdqc.compiler.driver.machine import cpu_name, package_version
from svdqc.errors import SvdqcError

HELP = """Check this machine: what svdqc can do here, what is missing, and how to get it.

Exit code 0 if artifacts can be run on the device, 1 if not; what only compiling, diffusers models or other devices need
is a note.
"""


@click.command("doctor", help=HELP)
@click.option("--device", default="cpu", show_default=True, metavar="NAME")
@output_options
def command(device: str, as_json: bool, quiet: bool) -> int:
    findings = [*examine(), *_device(device)]
    runs = all(f.state == "ok" for f in findings if f.topic in ("runtime", "CPU", "device"))
    compiles = all(
        f.state == "ok" for f in findings if f.topic in ("C++ compiler", "PyTorch", "packages")
    )
    if as_json:
        print_json({"runs": runs, "compiles": compiles, "findings": [asdict(f) for f in findings]})
    elif not quiet:
        rows = [[f.topic, f.state, f.found, f.remedy] for f in findings]
        print_table(f"svdqc {svdqc.__version__}", ("", "", "found", "what to do"), rows)
        print(
            f"run artifacts: {'yes' if runs else 'no'}; compile models: {'yes' if compiles else 'no'}"
        )
    return 0 if runs else 1


def examine() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from _runtime()
    yield from _compiler()
    yield from examine_cuda()
    yield from _state()


def _runtime() -> Iterator[Finding]:
    from svdqc.runtime import cpu_features, version
    from svdqc.runtime.library import library_path

    try:
        yield Finding("runtime", "ok", f"{version()}, {library_path()}")
        features = ", ".join(cpu_features()) or "nothing beyond the base instruction set"
        yield Finding("CPU", "ok", f"{cpu_name()}: {features}")
    except SvdqcError as error:
        yield Finding("runtime", "missing", error.found, error.remedy)


def _device(name: str) -> Iterator[Finding]:
    """Whether the runtime itself can use a device that is not the CPU."""
    from svdqc.runtime import gpus
    from svdqc.runtime.errors import UnknownDevice
    from svdqc.runtime.model import gpu_index

    if name in ("cpu", "auto"):
        return
    index = gpu_index(name)
    if index is None:
        raise UnknownDevice(name)
    found = gpus()
    if index < len(found["gpus"]):
        gpu = found["gpus"][index]
        told = f"{gpu['name']}, compute capability {gpu['compute_capability']}, driver for CUDA {found['driver']}"
        yield Finding("device", "ok", f"{gpu['device']}: {told}", f"compile for {gpu['target']}")
    else:
        why = found["reason"] or f"{name}: there are {len(found['gpus'])} GPUs"
        yield Finding("device", "missing", why, "see what nvidia-smi says, or use device 'cpu'")


def _compiler() -> Iterator[Finding]:
    install = "pip install 'svdqc[compile]'"
    missing = missing_packages()
    if missing:
        absent = f"absent: {', '.join(missing)}; needed to compile models"
        yield Finding("packages", "note", absent, install)
    else:
        versions = ", ".join(f"{name} {package_version(name)}" for name in COMPILER_PACKAGES)
        yield Finding("packages", "ok", versions)
        from svdqc.compiler.targets.toolchain import find_compiler

        try:
            compiler = find_compiler()
            told = f"{' '.join(compiler.command)}: {compiler.version}"
            yield Finding("C++ compiler", "ok", told)
        except SvdqcError as error:
            yield Finding("C++ compiler", "note", f"{error.found}; needed to compile", error.remedy)
    diffusers = package_version("diffusers")
    if diffusers is None:
        remedy = "pip install 'svdqc[diffusers]'"
        yield Finding("diffusers", "note", "absent; needed for diffusers folders", remedy)
    else:
        yield Finding("diffusers", "ok", diffusers)


def _state() -> Iterator[Finding]:
    from svdqc.runtime.trust import registry_path, trusted_digests

    try:
        num_trusted = len(trusted_digests())
        yield Finding("trust list", "ok", f"{num_trusted} entries, {registry_path()}")
    except SvdqcError as error:
        yield Finding("trust list", "note", error.found, error.remedy)
    if missing_packages():
        return
    from svdqc.compiler.targets.compile_cache import cache_folder

    cache = cache_folder()
    files = [file for file in cache.rglob("*") if file.is_file()] if cache.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    yield Finding("kernel cache", "ok", f"{len(files)} files, {megabytes(size)}, {cache}")
