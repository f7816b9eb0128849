"""What the method `Quantize` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.methods.config import MethodConfig
from passes.quantize.calibrate import OBSERVERS, Observer, ObserverName
from passes.quantize.encoding import WIDTHS
from passes.quantize.fit import Kind


@dataclass(frozen=True)
class Quantize(MethodConfig):
    """Configuration of uniform quantization.

    Attributes:
        weights: Bits of a weight, 2 to 8; `"auto"` is the largest width that meets the budget.
        activations: Bits of an activation, 2 to 8. `None` quantizes weights alone, which makes
            files smaller and needs no data; it also takes the weights of attention, which stays
            float where activations are quantized.
        signed: Signed activations. Unsigned ones are what ONNX Runtime on x86 runs fast.
        observer: How ranges of activations are chosen: `"minmax"`, `"percentile"` or `"mse"`.
        percentile: The share of values, in percent, within either end of the range.
        block: Inputs of a linear layer, or of attention, that share a scale, a power of two from
            16; `None` is one scale for each output channel, which other layers always have.
        batches: Batches of data that activations are calibrated with.
        fit: Scales of weights: `"mse"`, the least squared error, or `"max"`, the largest value.
        outputs: Also quantize what the model returns.
        refit: In training, fit the scales of weights anew before every epoch.
        hold: Share of the steps, at the end, in which they stay as they are.
    """

    weights: int | Literal["auto"] = 8
    activations: int | None = 8
    signed: bool = False
    observer: ObserverName = "percentile"
    percentile: float = 99.999
    block: int | None = None
    batches: int = 16
    fit: Kind = "mse"
    outputs: bool = False
    refit: bool = True
    hold: float = 0.3

    def __post_init__(self) -> None:
        widths = f"{WIDTHS[0]} to {WIDTHS[-1]}"
        weights = self.weights == "auto" or _width(self.weights)
        self._require("weights", weights, f"{widths}, or 'auto'")
        activations = self.activations is None or _width(self.activations)
        self._require("activations", activations, f"{widths}, or None")
        for name in ("signed", "outputs", "refit"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require("observer", self.observer in OBSERVERS, f"one of {OBSERVERS}")
        share = _real(self.percentile) and 50 < self.percentile <= 100
        self._require("percentile", share, "a number above 50, up to 100")
        block = self.block
        power = block is None or (_whole(block) and block >= 16 and block & (block - 1) == 0)
        self._require("block", power, "None, or a power of two from 16")
        self._require("batches", _whole(self.batches) and self.batches >= 1, "a number from 1")
        self._require("fit", self.fit in ("mse", "max"), "'mse' or 'max'")
        self._require("hold", _real(self.hold) and 0 <= self.hold <= 1, "a share from 0 to 1")

    @property
    def ranges(self) -> Observer:
        """How ranges of activations are chosen."""
        return Observer(self.observer, self.percentile)


def _width(value: object) -> bool:
    return _whole(value) and value in WIDTHS


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
