"""What reconstruction does, and with how much data."""

from __future__ import annotations

from dataclasses import dataclass

from energy_model.config import Config


@dataclass(frozen=True)
class Reconstruction(Config):
    """How layers are refitted to unlabelled data.

    Attributes:
        batches: Batches of inputs that are used, the first ones.
        damping: How many samples the original weight counts for: the more samples there are, the
            further a fitted weight may leave it. Over samples, it is the ridge relative to the mean
            square of a layer's inputs.
        weights: Refit weights and biases.
        batch_norm: Estimate the running statistics of batch norms anew.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    batches: int = 16
    damping: float = 16.0
    weights: bool = True
    batch_norm: bool = True

    def __post_init__(self) -> None:
        whole = type(self.batches) is int and self.batches >= 1
        self._require("batches", whole, "a whole number from 1")
        number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        self._require("damping", number and 0 <= self.damping < float("inf"), "from 0, finite")
        for name in ("weights", "batch_norm"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
