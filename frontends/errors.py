"""The mistakes a frontend can name. Each says what was found, what is required and what to do."""

from __future__ import annotations

from svdqc.errors import SvdqcError


class FrontendError(SvdqcError):
    """Base of every error raised while a model is captured."""

    def __init__(self, subject: str, found: str, remedy: str) -> None:
        super().__init__("capture", subject, found, remedy)


class ModelNotFoundError(FrontendError):
    """The path does not exist."""


class NotAModelError(FrontendError):
    """The path or object exists, and is no model that a frontend reads."""


class UnknownModelClassError(FrontendError):
    """config.json names a class that the installed diffusers lacks."""


class MissingDependencyError(FrontendError):
    """A frontend needs a Python package that is not installed."""


class FactoryError(FrontendError):
    """`package.module:factory` could not be imported or called, or returned something else."""


class CheckpointError(FrontendError):
    """The checkpoint lacks tensors, or has them with another shape; lists all of them."""


class MissingInputsError(FrontendError):
    """Example inputs are required and none can be made up."""


class UnusableInputsError(FrontendError):
    """The example inputs do not fit the model's forward."""


class DynamicSpecError(FrontendError):
    """The text or dict that describes dynamic dims does not follow the grammar."""


class UnknownDimError(FrontendError):
    """A dynamic dim names an axis that cannot be found among the inputs."""


class DimConstraintError(FrontendError):
    """The model does not work for every size that a dynamic dim was given."""


class ExportFailedError(FrontendError):
    """torch.export could not trace the model."""


class UnsupportedGraphError(FrontendError):
    """The traced graph is not functional, or its sizes depend on data."""
