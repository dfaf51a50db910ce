"""Ops of the graph that say where values lie; they compute nothing.

    svdq::copy     the value itself, in memory of its own (parts of a concatenation, outputs)
    svdq::concat   a concatenation in memory, whose parts (svdq::copy nodes) are written in place

The quantized ops are in `quantize/ops.py`.
"""

from __future__ import annotations

import torch

NAMESPACE = "svdq"

_library = torch.library.Library(NAMESPACE, "DEF")
_library.define("copy(Tensor x) -> Tensor")
_library.define("concat(Tensor[] parts, int dim) -> Tensor")
_library.impl(
    "copy", lambda x: x.clone(memory_format=torch.contiguous_format), "CompositeExplicitAutograd"
)
_library.impl("concat", lambda parts, dim: torch.cat(parts, dim), "CompositeExplicitAutograd")
torch.library.register_fake("svdq::copy", lambda x: x.new_empty(x.shape), lib=_library)
torch.library.register_fake("svdq::concat", lambda parts, dim: torch.cat(parts, dim), lib=_library)

copy = torch.ops.svdq.copy.default
concat = torch.ops.svdq.concat.default
