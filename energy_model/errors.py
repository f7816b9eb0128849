"""The errors of the compiler: one base, a few named kinds.

Every message says what happened, where, and what to do about it. This is the lowest floor of the
house, so that every other floor can raise them.
"""

from __future__ import annotations


class CompressionError(Exception):
    """Base of every error that the compiler raises on purpose.

    Args:
        what: What happened, in one sentence without a full stop.
        where: The layer, file or argument concerned; empty when the sentence says it.
        remedy: What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        what = what.rstrip(".")
        self.what = what
        self.where = where
        self.remedy = remedy
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}. {remedy}" if remedy else message)


class ArgumentError(CompressionError, ValueError):
    """An argument is malformed, contradictory or not available."""


class BudgetError(ArgumentError):
    """A budget cannot be read: unknown key, unit or value."""


class HardwareError(ArgumentError):
    """A hardware profile is unknown or holds a bad value."""


class TraceError(CompressionError):
    """The model cannot be run or traced on the given example inputs."""


class UnsupportedLayer(CompressionError):
    """A layer has no rule for what is asked of it."""


class UnsupportedBudget(CompressionError):
    """No available method serves a limit; never answered by a silent fallback."""


class InfeasibleBudget(CompressionError):
    """A limit lies below what the method can reach on this model.

    Attributes:
        limit: The key of the limit, e.g. `"energy"`.
        asked: The absolute limit that was asked for.
        tightest: The smallest absolute value that can be reached.
        binding_layer: The layer that contributes most to `tightest`.
    """

    def __init__(
        self,
        what: str,
        *,
        limit: str,
        asked: float,
        tightest: float,
        binding_layer: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.limit = limit
        self.asked = asked
        self.tightest = tightest
        self.binding_layer = binding_layer


class PreconditionError(CompressionError):
    """A pass was given a model that it cannot accept (NaN weights, no weighted layer, ...)."""


class PostconditionError(CompressionError):
    """A pass produced something that breaks its own promise: a bug of ours, never of the user."""


class TrainingError(CompressionError):
    """Training cannot go on: the loss is not finite, or the data does not fit it."""


class ExportError(CompressionError):
    """A finished model cannot be written as ONNX."""


class ParityError(CompressionError):
    """An exported file disagrees with the model it was exported from.

    Attributes:
        max_abs_error: The largest absolute difference of any output element.
    """

    def __init__(
        self, what: str, *, max_abs_error: float, where: str = "", remedy: str = ""
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.max_abs_error = max_abs_error


class StorageError(CompressionError):
    """A folder or file cannot be written, or a saved one is damaged or of another version."""
