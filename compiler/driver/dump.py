"""Debug aids, all in one folder: `svdqc compile --dump FOLDER`, or `dump=` of `svdqc.compile`.

00-capture.txt … 09-materialize.txt   the graph after each pass: one line per node, then what the pass
                                      changed, and what it skipped and why
regions.txt                           launches in order of execution, with their regions' nodes, stored values and rows;
                                      then every pair of regions that was tried and refused, with the reason
kernels/<name>.cpp                    the rendered code of each kernel
"""

from __future__ import annotations

from pathlib import Path

from svdqc.compiler.codegen.lower import Lowered
from svdqc.compiler.codegen.region import FusionPlan
from svdqc.compiler.ir.dump import dump_program
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.base import PassReport


class Dump:
    """Writes into `folder`, or nothing if it is None."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._count = 0

    def after(self, name: str, program: Program, report: PassReport | None = None) -> None:
        """The graph after the pass `name`; an observer for `run_passes`."""
        if self.folder is None:
            return
        text = dump_program(program)
        if report is not None:
            text += "".join(f"changed {n}: {c}\n" for n, c in sorted(report.changed.items()))
            text += "".join(f"skipped {source}: {why}\n" for source, why in report.skipped)
        self._write(f"{self._count:02}-{name}.txt", text)
        self._count += 1

    def regions(self, fusion: FusionPlan, lowered: Lowered) -> None:
        """What was fused, what was not, and the code."""
        if self.folder is None:
            return
        lines = []
        for regions, launch in zip(lowered.launches, lowered.plan.launches, strict=True):
            kernel = lowered.plan.kernels[launch.kernel]
            lines.append(f"{kernel.name}  ({launch.label}), tasks {launch.num_tasks}")
            for region in regions:
                lines.append(f"  nodes   {', '.join(n.name for n in region.nodes)}")
                lines.append(f"  stored  {', '.join(n.name for n in region.stored)}")
                lines.append(f"  rows    {region.layout.num_rows}")
        lines += [f"refused {pair}: {why}" for pair, why in fusion.refused]
        self._write("regions.txt", "\n".join(lines) + "\n")
        for name, source in lowered.kernels.items():
            self._write(f"kernels/{name}.cpp", source)

    def _write(self, name: str, text: str) -> None:
        assert self.folder is not None
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
