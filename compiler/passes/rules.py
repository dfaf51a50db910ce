"""Tables of rewrites: an op → what replaces a node of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter

Rule = Callable[[Rewriter, Node], Node | None]
"""None: the node stays, or its users were given something else."""


class Rules(dict[Any, Rule]):
    """By op."""

    def of(self, *targets: Any) -> Callable[[Rule], Rule]:
        """Decorates the rule of these ops."""

        def register(rule: Rule) -> Rule:
            self.update(dict.fromkeys(targets, rule))
            return rule

        return register


def shape_of(node: Node) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape
