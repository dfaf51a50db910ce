"""What each graph op computes, element by element: one file per family, one entry per op."""

from svdqc.compiler.codegen.ops import (
    anchors,
    arithmetic,
    creation,
    indexing,
    pooling,
    reductions,
    sampling,
    views,
)
from svdqc.compiler.codegen.ops.registry import OPS, OpRule, rule_of

__all__ = [
    "OPS",
    "OpRule",
    "anchors",
    "arithmetic",
    "creation",
    "indexing",
    "pooling",
    "reductions",
    "rule_of",
    "sampling",
    "views",
]
