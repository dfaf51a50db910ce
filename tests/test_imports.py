"""The import rules of the design: one way between layers, no torch in the runtime, nothing at `import svdqc`.

    cli -> driver -> {frontends, passes, codegen, tune, artifact} -> {quantize, targets, plan} -> ir

A layer may import itself and every layer to its right. The runtime imports nothing of these.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Source folder -> installed name. The longest match wins.
MAPPED = {
    "runtime/python": "svdqc",
    "runtime/python/runtime": "svdqc.runtime",
    "compiler": "svdqc.compiler",
    "frontends": "svdqc.frontends",
}

LAYERS = (
    ("svdqc.compiler.cli",),
    ("svdqc.compiler.driver",),
    (
        "svdqc.frontends",
        "svdqc.compiler.passes",
        "svdqc.compiler.codegen",
        "svdqc.compiler.tune",
        "svdqc.compiler.artifact",
    ),
    ("svdqc.compiler.quantize", "svdqc.compiler.targets", "svdqc.compiler.plan"),
    ("svdqc.compiler.ir",),
)

COMPILER_ONLY = ("svdqc.compiler", "svdqc.frontends", "svdqc.templates")
HEAVY = ("torch", "onnx", "diffusers", "jinja2", "networkx", "safetensors", "rich")


@dataclass(frozen=True)
class Import:
    module: str  # the importing module, dotted
    target: str
    line: int
    deferred: bool  # inside a function, or only for type checking


def source_files() -> list[tuple[str, Path]]:
    """(dotted module name, file) of every module that is installed."""
    found: dict[Path, str] = {}
    for folder, prefix in sorted(MAPPED.items(), key=lambda item: len(item[0])):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            relative = file.relative_to(REPOSITORY / folder).with_suffix("")
            parts = [part for part in relative.parts if part != "__init__"]
            found[file] = ".".join([prefix, *parts])
    return [(name, file) for file, name in found.items()]


def imports_of(module: str, file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(), str(file))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                # `from svdqc.compiler import plan` names a package, not an attribute of one.
                yield Import(module, f"{base}.{alias.name}", node.lineno, deferred)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deferred or is_function or is_typing)

    yield from visit(tree, False)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(name: str) -> int | None:
    for rank, packages in enumerate(LAYERS):
        if any(inside(name, package) for package in packages):
            return rank
    return None


def every_import() -> list[Import]:
    return [found for name, file in source_files() for found in imports_of(name, file)]


def told(broken: list[Import]) -> str:
    return "\n".join(f"{i.module}:{i.line} imports {i.target}" for i in broken)


def test_imports__every_layer_was_found() -> None:
    present = {layer_of(name) for name, _ in source_files()}
    assert present >= set(range(len(LAYERS))), f"only layers {present} have files"


def test_imports__layers_point_one_way() -> None:
    broken = []
    for found in every_import():
        here, there = layer_of(found.module), layer_of(found.target)
        if here is not None and there is not None and there < here:
            broken.append(found)
    assert not broken, told(broken)


def test_imports__packages_have_no_cycle() -> None:
    """Neighbours in a layer may use each other, in one direction."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    packages = [package for layer in LAYERS for package in layer]
    for found in every_import():
        here = [p for p in packages if inside(found.module, p)]
        there = [p for p in packages if inside(found.target, p)]
        if here and there and here != there:
            graph.add_edge(here[0], there[0], where=f"{found.module}:{found.line}")
    cycles = list(networkx.simple_cycles(graph))
    assert not cycles, "\n".join(" -> ".join([*cycle, cycle[0]]) for cycle in cycles)


def test_imports__runtime_knows_nothing_of_the_compiler() -> None:
    runtime = [i for i in every_import() if inside(i.module, "svdqc.runtime")]
    assert runtime, "the runtime has no Python module"
    broken = [i for i in runtime if any(inside(i.target, p) for p in COMPILER_ONLY)]
    assert not broken, told(broken)


def test_imports__runtime_has_no_torch_at_module_level() -> None:
    runtime = [
        i
        for i in every_import()
        if inside(i.module, "svdqc.runtime") or i.module in ("svdqc", "svdqc.errors")
    ]
    broken = [i for i in runtime if not i.deferred and any(inside(i.target, p) for p in HEAVY)]
    assert not broken, told(broken)


def test_imports__command_line_starts_light() -> None:
    """Nothing heavy at module level in the command line or in what it imports at module level."""
    cli = [i for i in every_import() if inside(i.module, "svdqc.compiler.cli")]
    broken = [i for i in cli if not i.deferred and any(inside(i.target, p) for p in HEAVY)]
    assert not broken, told(broken)


def test_imports__sources_use_installed_names_only() -> None:
    bare = ("compiler", "runtime", "frontends", "templates")
    broken = [i for i in every_import() if i.target.split(".")[0] in bare]
    assert not broken, told(broken)


@pytest.mark.parametrize(
    "statement",
    [
        "import svdqc",
        "import svdqc; svdqc.Recipe; svdqc.ProgressEvent",
        "import svdqc; svdqc.load",
        "from svdqc.compiler.cli.app import group",
        "from svdqc.compiler.cli.commands import run, bench, verify, doctor, compile, inspect, compare",
    ],
)
def test_imports__no_torch_is_loaded_by(statement: str) -> None:
    watched = ("torch", "onnx", "diffusers", "jinja2", "networkx")
    check = f"import sys; bad = [m for m in {watched!r} if m in sys.modules]; sys.exit(str(bad) if bad else 0)"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; {check}"],
        env={"PYTHONPATH": str(REPOSITORY / "build" / "dev"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
