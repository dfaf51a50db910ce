"""The distinct kernels of a fused program, and every kernel that each could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svdqc.compiler.codegen.choice import Problem, problem_of
from svdqc.compiler.codegen.grouping import plan_launches
from svdqc.compiler.codegen.kernel import Generator, Kernel, SharedMemoryExceeded
from svdqc.compiler.codegen.lower import label_of
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.printing.backend import Backend, Block
from svdqc.compiler.codegen.region import FusionPlan, Region
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.weights import LayeredWeights


@dataclass
class Site:
    """Launches that share a tuning record, of which the first is measured; of a group the member with the most rows.

    problem  of the first region; launches: how many there are
    blocks   every block that it can have, the analytic model's choice first
    dims     the largest size of each dim: what is measured
    """

    problem: Problem
    label: str
    launches: int
    blocks: Sequence[Block]
    region: Region
    generator: Generator
    weights: LayeredWeights
    dims: Mapping[str, int]

    @property
    def memory(self) -> Memory:
        return self.generator.storages

    def kernel(self, block: Block) -> Kernel | None:
        """The kernel with this block; None where the target cannot hold it."""
        try:
            return self.generator.kernel([self.generator.printed(self.region, block)])
        except SharedMemoryExceeded:
            return None

    @property
    def name(self) -> str:
        """For people: the op, its sizes, and where it first occurs."""
        p = self.problem
        sizes = f" {p.format} {p.n}x{p.k}" if p.n else ""
        return f"{p.op}{sizes} m={p.rows}" + (f" r{p.rank}" if p.rank else "")

    @property
    def work(self) -> int:
        """About how much of the model's time it takes: to begin with what matters."""
        p = self.problem
        per_row = 2 * p.n * max(p.k, 1) + sum(int(o.split(":")[2]) for o in p.body.split(" "))
        return self.launches * p.rows * per_row


def find_sites(program: Program, fusion: FusionPlan, backend: Backend) -> list[Site]:
    """The kernels of a lowered program, those that take longest first."""
    memory = Memory(program, fusion.regions, fusion.maps.table, backend.packed_codes)
    generator = Generator(fusion.maps, memory, backend)
    dims = {dim.name: dim.hi for dim in program.dims.values()}
    found: dict[Problem, Site] = {}
    for first, *_ in plan_launches(fusion.regions, generator):
        region = first.region
        problem = problem_of(region, generator.kernel([first]).sources)
        if problem in found:
            found[problem].launches += 1
            continue
        found[problem] = Site(
            problem,
            label_of(region),
            1,
            list(generator.blocks(region)),
            region,
            generator,
            program.weights,
            dims,
        )
    return sorted(found.values(), key=lambda site: -site.work)
