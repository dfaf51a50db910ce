"""The mistakes that quantization can name, one class each; the command line maps all of them to exit code 2."""

from __future__ import annotations

from svdqc.errors import SvdqcError


class InvalidRecipe(SvdqcError):
    """A field of `Recipe` has a value that means nothing."""


class NonFiniteWeight(SvdqcError):
    """A weight holds NaN or infinity."""


class NonFiniteSamples(SvdqcError):
    """Calibration activations hold NaN or infinity."""


class SamplesDoNotFit(SvdqcError):
    """Calibration activations have another width, rank or dtype than the layer reads."""


class IndivisibleGroup(SvdqcError):
    """in_features is not a multiple of the group size."""


class MalformedWeight(SvdqcError):
    """The weight is not a non-empty matrix."""


class UnknownFormat(SvdqcError):
    """A graph names a number format that this version does not know."""


class BudgetTooSmall(SvdqcError):
    """No choice of precisions and ranks fits the bytes asked for."""
