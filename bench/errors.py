"""The errors of measuring."""

from __future__ import annotations

from energy_model.errors import CompressionError


class BenchError(CompressionError):
    """A model could not be measured: missing, refused by the runtime, crashed or hanging.

    Attributes:
        model: Path of the model concerned; empty when the error concerns none.
        stderr: The last lines that the measuring process wrote to its standard error.
    """

    def __init__(self, what: str, *, model: str = "", stderr: str = "", remedy: str = "") -> None:
        message = f"{what}; it last wrote: {stderr}" if stderr else what
        super().__init__(message, where=model, remedy=remedy)
        self.model = model
        self.stderr = stderr
