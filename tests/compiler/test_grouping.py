"""Which regions share a launch on a GPU: equal code at an equal distance from the outputs, whatever the order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import networkx as nx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.programs import ProgramBuilder, canonical
from torch import Tensor, nn
from torch.fx import Node

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.grouping import MOST_GROWTH, dependences, heights
from svdqc.compiler.codegen.lower import Lowered, label_of, lower
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.storage import BufferKey, dense
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.plan.verify import MAX_PARAM_WORDS, verify_plan
from svdqc.compiler.targets.cuda import SM_80

WIDTH = 256
"""Too wide for a softmax to be the epilogue of a linear."""
aten = torch.ops.aten


class Builder(ProgramBuilder):
    def rows(self, count: int) -> Node:
        return self.input(torch.zeros(count, WIDTH))

    def linear(self, name: str, x: Node, bias: bool = False) -> Node:
        weight = self.weight(f"{name}.weight", torch.zeros(WIDTH, WIDTH))
        more = [self.weight(f"{name}.bias", torch.zeros(WIDTH))] if bias else []
        return self.call(aten.linear.default, x, weight, *more, source=name)

    def softmax(self, name: str, x: Node) -> Node:
        largest = self.call(aten.amax.default, x, [-1], True, source=name)
        parts = self.call(aten.exp.default, self.call(aten.sub.Tensor, x, largest), source=name)
        total = self.call(aten.sum.dim_IntList, parts, [-1], True, source=name)
        return self.call(aten.div.Tensor, parts, total, source=name)

    def launches(self, *outputs: Node) -> list[list[str]]:
        """Where the regions of each launch come from."""
        program = self.finish(*outputs)
        materialize(program)
        return labels(lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(SM_80)))


def labels(lowered: Lowered) -> list[list[str]]:
    verify_plan(lowered.plan, [t.num_bytes for t in lowered.tensors])
    return [[label_of(region) for region in regions] for regions in lowered.launches]


def test_streams__members_side_by_side_the_larger_first() -> None:
    b = Builder()
    text, image = b.rows(40), b.rows(300)
    outputs = [b.softmax(n, b.linear(f"{n}.up", x)) for n, x in (("text", text), ("image", image))]
    assert b.launches(*outputs) == [["image.up", "text.up"], ["image", "text"]]


def test_launches__say_where_their_members_come_from() -> None:
    b = Builder()
    program = b.finish(b.linear("image", b.rows(300)), b.linear("text", b.rows(40)))
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(SM_80))
    (launch,) = lowered.plan.launches
    assert launch.label == "image + text"
    assert "_group2__" in lowered.plan.kernels[launch.kernel].name
    alone = lower(program, fuse(program))
    assert [launch.label for launch in alone.plan.launches] == ["image", "text"]


def test_crossing_streams__would_be_a_cycle() -> None:
    """linear → softmax and softmax → linear: whichever pair shared a launch, the other could not."""
    b = Builder()
    first = b.softmax("softmax.0", b.linear("linear.0", b.rows(40)))
    second = b.linear("linear.1", b.softmax("softmax.1", b.rows(50)))
    found = b.launches(first, second)
    assert sorted(found) == [["linear.0"], ["linear.1"], ["softmax.0"], ["softmax.1"]]


def test_chain__is_not_independent() -> None:
    b = Builder()
    assert len(b.launches(b.linear("second", b.linear("first", b.rows(40))))) == 2


def test_needed_later__is_not_computed_early() -> None:
    """Modulations of all layers depend on the same vector, but later ones would wait in memory for the first layer."""
    b = Builder()
    x, vector = b.rows(40), b.rows(1)
    for i in range(3):
        modulated = b.call(aten.mul.Tensor, x, b.linear(f"modulation.{i}", vector), source="mul")
        x = b.linear(f"layer.{i}", modulated)
    found = b.launches(x)
    assert all(len(regions) == 1 for regions in found), found
    assert len(found) == 3 + 3 + 1  # products by the next modulation are epilogues


def test_other_code__has_a_launch_of_its_own() -> None:
    """A bias is no op of the graph's, but differs in the code."""
    b = Builder()
    outputs = [b.linear("plain", b.rows(40)), b.linear("biased", b.rows(50), bias=True)]
    outputs += [b.linear("other", b.rows(60), bias=True)]
    assert sorted(b.launches(*outputs)) == [["other", "biased"], ["plain"]]


def test_many_members__as_many_as_have_room() -> None:
    b, count = Builder(), 200
    found = b.launches(*[b.softmax(f"{i}", b.rows(2 + i)) for i in range(count)])
    assert sorted(int(n) for group in found for n in group) == list(range(count))
    assert len(found) < count / 50
    assert len(found) * MAX_PARAM_WORDS > 4 * count  # two pointers, the rows, where they end


def test_towers__are_not_kept_in_memory_side_by_side() -> None:
    """Eight towers, each with a wide hidden value that nobody else needs: together they would take eight times that."""
    b, rows, hidden = Builder(), 4096, 4096
    outputs = []
    for i in range(8):
        up = b.weight(f"up.{i}", torch.zeros(hidden, WIDTH))
        down = b.weight(f"down.{i}", torch.zeros(WIDTH, hidden))
        y = b.call(aten.linear.default, b.rows(rows), up, source="up")
        y = b.call(aten.linear.default, y, down, source="down")
        outputs.append(b.softmax("softmax", y))
    program = b.finish(*outputs)
    materialize(program)
    fusion = fuse(program, GPU_TRAITS)
    found = lower(program, fusion, backend=CudaBackend(SM_80))
    assert found.plan.arena_bytes <= MOST_GROWTH * 4 * rows * (hidden + 8 * WIDTH)
    assert labels(found) == [["up"], ["down"]] * 8 + [["softmax"] * 8]


class Joined(nn.Module):
    """Two streams that meet in a concatenation."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return torch.cat([image.softmax(-1), text.softmax(-1)], 1).softmax(1)


def test_parts_of_a_concatenation__are_written_by_one_launch() -> None:
    given = {"image": torch.zeros(1, 300, WIDTH), "text": torch.zeros(1, 40, WIDTH)}
    program = canonical(Joined(), given).program
    lowered = lower(program, plan_regions(program, SM_80), backend=backend_of(SM_80))
    assert [len(regions) for regions in labels(lowered)] == [2, 1]
    written = [arg.buffer for arg in lowered.plan.launches[0].args if arg.access == "write"]
    assert len(written) == 2
    assert len(set(written)) == 1


# ---- any accesses


def touching(reads: set[int], writes: set[int]) -> Any:
    """A launch, as far as dependences() looks at it."""
    params = Params()
    for access, numbers in (("read", reads), ("write", writes)):
        for number in sorted(numbers):
            params.buffer(dense(BufferKey("arena", str(number)), "f32", (IntExpr.of(1),)), access)
    return SimpleNamespace(params=params)


def test_part_read_while_another_is_written__keeps_its_order() -> None:
    """Buffer 0 is a concatenation: the first launch writes a part, the second reads it, the third writes another."""
    launches = [touching(set(), {0}), touching({0}, {1}), touching({2}, {0}), touching({0, 1}, {3})]
    graph = dependences(launches)
    assert set(graph.edges) == {(0, 1), (1, 2), (0, 3), (1, 3), (2, 3)}
    assert heights(graph) == {0: 4, 1: 3, 2: 2, 3: 1}


numbers = st.sets(st.integers(0, 9), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), max_size=14))
def test_equal_heights__are_independent_and_make_no_cycle(accesses: list[Any]) -> None:
    graph = dependences([touching(reads, writes) for reads, writes in accesses])
    height = heights(graph)
    merged = nx.DiGraph((height[i], height[j]) for i, j in graph.edges)
    assert all(i != j for i, j in merged.edges)
    assert nx.is_directed_acyclic_graph(merged)
    for i, (reads, writes) in enumerate(accesses):
        for j, (other_reads, other_writes) in enumerate(accesses[:i]):
            if height[i] == height[j]:
                assert not (reads - writes) & other_writes, (i, j)
                assert not (other_reads - other_writes) & writes, (i, j)
