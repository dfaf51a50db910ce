"""Which linears are quantized, by rule, with the reason for each that is kept; patterns override the rule.

Kept in 16 bit: layers outside of repeated blocks (embedders, the final projection), cross-attention keys and values of
PixArt and SANA, and whatever does not divide into groups. Modulation layers (adaLN: one row per image instead of one
per token) have nothing to gain from 4-bit activations, but hold many of a model's bytes: `Recipe.modulation` says what
becomes of their weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.symbols import Shape, SymbolTable
from svdqc.compiler.passes.linear_groups import LinearGroup, block_name, layer_name, linear_groups
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import scheme_of

KEPT_NAMES = (
    "*attn2.to_k",
    "*attn2.to_v",
    "*time_emb*",
    "*shortcut*",
    "*add_embedding*",
)
MODULATION_NAMES = ("*norm*.linear", "*adaln*")
EMBEDDER_NAMES = ("*emb*",)
_CONTEXT = (anchors.LINEAR, anchors.CONVOLUTION, anchors.ATTENTION)


@dataclass(frozen=True)
class Decision:
    """A layer, its precision ("none": kept as it is), and why."""

    layer: str
    linear: Node
    precision: str
    reason: str

    @property
    def quantized(self) -> bool:
        return self.precision != "none"


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
        precision, reason = _decide(node, name, recipe, table, ancestry, named)
        decisions.append(Decision(name, node, precision, reason))
    return decisions


def quantized_groups(decisions: list[Decision], groups: list[LinearGroup]) -> list[LinearGroup]:
    """The groups reduced to their quantized linears, those of one precision together."""
    precision = {d.linear: d.precision for d in decisions if d.quantized}
    reduced = []
    for group in groups:
        pairs = [p for p in zip(group.linears, group.names, strict=True) if p[0] in precision]
        for wanted in dict.fromkeys(precision[n] for n, _ in pairs):
            chosen = [(n, name) for n, name in pairs if precision[n] == wanted]
            reduced.append(
                LinearGroup(tuple(n for n, _ in chosen), tuple(name for _, name in chosen))
            )
    return reduced


def recipes_of(
    groups: list[LinearGroup], decisions: list[Decision], recipe: Recipe
) -> dict[str, Recipe]:
    """The recipe of each group by its name: the model's, in the precision decided for its layers."""
    precision = {d.linear: d.precision for d in decisions}
    return {g.name: replace(recipe, precision=precision[g.linears[0]]) for g in groups}


def _decide(
    node: Node, name: str, recipe: Recipe, table: SymbolTable, ancestry: _Ancestry, named: bool
) -> tuple[str, str]:
    if any(fnmatchcase(name, p) for p in recipe.keep):
        return "none", "kept by --keep"
    asked = any(fnmatchcase(name, p) for p in recipe.quantize)
    if recipe.precision == "none":
        return "none", "precision none"
    x_shape = table.shape(node.args[0])  # type: ignore[arg-type]
    few_rows = len(x_shape) < 3 and not _many_rows(x_shape)
    if not asked and _is_modulation(node, name, few_rows, ancestry, named):
        if recipe.modulation == "keep":
            return "none", "a modulation layer: one row per image"
        return _divisible(recipe.modulation, x_shape, recipe, "a modulation layer: weights alone")
    if asked:
        return _divisible(recipe.precision, x_shape, recipe, "asked for by --quantize")
    if any(fnmatchcase(name.lower(), p) for p in (*KEPT_NAMES, *MODULATION_NAMES)):
        return "none", "an embedding or cross-attention context layer"
    if few_rows:
        return "none", "one row per image: an embedding layer"
    if named and not block_name(name):
        return "none", "outside of the repeated blocks: an embedder or a final projection"
    if not ancestry.has_anchor_before(node):
        return "none", "the first layer on its input: an embedder"
    if not ancestry.has_anchor_after(node):
        return "none", "the last layer: a final projection"
    return _divisible(recipe.precision, x_shape, recipe, "a linear of a repeated block")


def _divisible(precision: str, x_shape: Shape, recipe: Recipe, reason: str) -> tuple[str, str]:
    """`precision` if the layer's inputs divide into its groups."""
    in_features, multiple = x_shape[-1].const, scheme_of(precision).multiple(recipe.group_size)
    if in_features % multiple:
        return "none", f"in_features={in_features} is not divisible by {multiple}"
    return precision, reason


def _is_modulation(node: Node, name: str, few_rows: bool, ancestry: _Ancestry, named: bool) -> bool:
    """One row per image, and no embedder: by name, by its block, or because it makes several vectors of one."""
    lowered = name.lower()
    if not few_rows or any(fnmatchcase(lowered, p) for p in EMBEDDER_NAMES):
        return False
    if any(fnmatchcase(lowered, p) for p in MODULATION_NAMES) or block_name(name):
        return True
    out_features, in_features = (int(s) for s in node.args[1].meta["val"].shape)  # type: ignore[union-attr]
    return not named and out_features >= 2 * in_features and ancestry.has_anchor_before(node)


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
