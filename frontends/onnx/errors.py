"""Everything that can be wrong with an ONNX model, one class per mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from svdqc.errors import SvdqcError


class OnnxError(SvdqcError):
    """Base of the errors of this frontend."""

    def __init__(self, subject: str, found: str, remedy: str) -> None:
        super().__init__("onnx", subject, found, remedy)


class NotAnOnnxFileError(OnnxError):
    """The file is missing, empty, truncated, or no ONNX protobuf at all."""


class OnnxOpsetError(OnnxError):
    """The opset is older than the oldest, or newer than the newest, that is understood."""


class OnnxDomainError(OnnxError):
    """The model calls operators of a domain that is not the ONNX standard."""


class MalformedOnnxError(OnnxError):
    """The graph contradicts itself: undefined or redefined values, tensors of the wrong size, …"""


class UnsupportedOnnxTypeError(OnnxError):
    """A tensor has an element type (strings), or an input a kind (sequences), that cannot be compiled."""


class ExternalDataError(OnnxError):
    """External tensor data that cannot be read."""


class ExternalDataPathError(ExternalDataError):
    """External data points outside of the model's folder."""


class ExternalDataMissingError(ExternalDataError):
    """External data points to a file that does not exist."""


class ExternalDataRangeError(ExternalDataError):
    """External data lies outside of its file, or has the wrong number of bytes."""


class DataDependentError(OnnxError):
    """A shape, an axis or a branch depends on the values of an input, so it cannot be compiled ahead."""


class OnnxNodeError(OnnxError):
    """A node cannot be executed as written: its inputs or attributes break its definition.

    `num_run` counts the nodes executed before it.
    """

    num_run: int = 0


class UnsupportedOnnxOpsError(OnnxError):
    """Operators without an implementation, all of them at once.

    `nodes` maps the operator to the names of the nodes that use it.
    """

    def __init__(self, model: str, nodes: Mapping[str, Sequence[str]]) -> None:
        self.nodes = {op_type: tuple(names) for op_type, names in nodes.items()}
        listed = ", ".join(
            f"{op_type} ×{len(names)} ({_some(names)})" for op_type, names in sorted(nodes.items())
        )
        super().__init__(
            model,
            f"operators that are not supported: {listed}",
            "export the model without them, or add one function per operator in frontends/onnx/ops",
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, …"
