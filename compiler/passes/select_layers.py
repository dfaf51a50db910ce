"""Which linears are quantized, by rule, with the reason for each that is kept; patterns override the rule.

Kept in 16 bit: layers outside of repeated blocks (embedders, the final projection), modulation layers (one row per
image instead of one per token), cross-attention keys and values of PixArt and SANA, and whatever does not divide into
groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.symbols import SymbolTable
from svdqc.compiler.passes.linear_groups import LinearGroup, block_name, layer_name, linear_groups
from svdqc.compiler.quantize.recipe import Recipe

KEPT_NAMES = (
    "*attn2.to_k",
    "*attn2.to_v",
    "*time_emb*",
    "*norm*.linear",
    "*adaln*",
    "*shortcut*",
    "*add_embedding*",
)
_CONTEXT = (anchors.LINEAR, anchors.CONVOLUTION, anchors.ATTENTION)


@dataclass(frozen=True)
class Decision:
    """A layer, whether it is quantized, and why."""

    layer: str
    linear: Node
    quantized: bool
    reason: str


def select_layers(program: Program, recipe: Recipe) -> list[Decision]:
    """A decision for every linear with a stored weight, in graph order."""
    table = SymbolTable(program)
    ancestry = _Ancestry(program)
    named = sum(bool(block_name(name)) for g in linear_groups(program) for name in g.names) > 1
    decisions = []
    for node in program.graph_module.graph.nodes:
        if str(node.target) != anchors.LINEAR or not _has_weight(node):
            continue
        name = layer_name(node)
        quantized, reason = _decide(node, name, recipe, table, ancestry, named)
        decisions.append(Decision(name, node, quantized, reason))
    return decisions


def quantized_groups(decisions: list[Decision], groups: list[LinearGroup]) -> list[LinearGroup]:
    """The groups reduced to their quantized linears."""
    chosen = {d.linear for d in decisions if d.quantized}
    reduced = []
    for group in groups:
        pairs = [
            (n, name) for n, name in zip(group.linears, group.names, strict=True) if n in chosen
        ]
        if pairs:
            reduced.append(
                LinearGroup(tuple(n for n, _ in pairs), tuple(name for _, name in pairs))
            )
    return reduced


def _decide(
    node: Node, name: str, recipe: Recipe, table: SymbolTable, ancestry: _Ancestry, named: bool
) -> tuple[bool, str]:
    x_shape = table.shape(node.args[0])  # type: ignore[arg-type]
    in_features, group = x_shape[-1].const, recipe.group_size
    divisible = in_features % group == 0
    if any(fnmatchcase(name, p) for p in recipe.keep):
        return False, "kept by --keep"
    if any(fnmatchcase(name, p) for p in recipe.quantize):
        return (
            divisible,
            "asked for by --quantize"
            if divisible
            else f"in_features={in_features} is not divisible by {group}",
        )
    if recipe.precision == "none":
        return False, "precision none"
    if not divisible:
        return False, f"in_features={in_features} is not divisible by {group}"
    if any(fnmatchcase(name.lower(), p) for p in KEPT_NAMES):
        return False, "a modulation, embedding or cross-attention context layer"
    if len(x_shape) < 3 and not _many_rows(x_shape):
        return False, "one row per image: a modulation or embedding layer"
    if named and not block_name(name):
        return False, "outside of the repeated blocks: an embedder or a final projection"
    if not ancestry.has_anchor_before(node):
        return False, "the first layer on its input: an embedder"
    if not ancestry.has_anchor_after(node):
        return False, "the last layer: a final projection"
    return True, "a linear of a repeated block"


def _many_rows(shape: object) -> bool:
    rows = shape[0]  # type: ignore[index]
    return bool(rows.lower() >= 32)


def _has_weight(node: Node) -> bool:
    from svdqc.compiler.passes.linear_groups import weight_node

    return weight_node(node) is not None


class _Ancestry:
    """Whether a linear, convolution or attention lies before or after a node."""

    def __init__(self, program: Program) -> None:
        nodes = list(program.graph_module.graph.nodes)
        self._before: dict[Node, bool] = {}
        self._after: dict[Node, bool] = {}
        for node in nodes:
            self._before[node] = any(_is_anchor(i) or self._before[i] for i in node.all_input_nodes)
        for node in reversed(nodes):
            self._after[node] = any(_is_anchor(u) or self._after[u] for u in node.users)

    def has_anchor_before(self, node: Node) -> bool:
        return self._before[node]

    def has_anchor_after(self, node: Node) -> bool:
        return self._after[node]


def _is_anchor(node: Node) -> bool:
    return str(node.target) in _CONTEXT
