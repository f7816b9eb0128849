"""Configuration of tied weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.dynamic.schedule import is_whole
from passes.dynamic.tied_bank import Dealing
from passes.methods.config import MethodConfig

_DEALINGS, _STARTS, _INDICES = ("balanced", "hashed"), ("draw", "mean"), ("computed", "stored")


@dataclass(frozen=True)
class TiedWeights(MethodConfig):
    """Weights that share the entries of a bank, of which the model holds nothing else.

    Attributes:
        dealing: `"balanced"`: shuffled weights are dealt to the entries in turn, so that their
            shares differ by one at most (Mostafa and Wang, ICML 2019); `"hashed"`: a hash of its
            position says which entry a weight takes, and some entries may be taken by none (Chen
            et al., ICML 2015).
        signs: Multiply what a weight takes by a random sign of its own, as Chen et al. do.
        kernels: Entries of convolutions are whole kernels, not single weights.
        rescale_gradient: Divide the gradient of a bank by the mean number of weights that take an
            entry, before the optimizer's step.
        start: First values of the banks: `"draw"`: weights of the layer, drawn at random, so that
            all weights keep its variance; `"mean"`: the mean of the weights that take an entry,
            which is nearest to a trained layer and has a smaller variance. `None`: drawn where the
            model is trained afterwards, the mean in one shot.
        index: Which entry a weight takes is `"computed"` in an exported file, of a few bytes, when
            a runtime loads it; or `"stored"`, of one, two or four bytes for each weight (of kernels
            for each kernel), for runtimes without arithmetic of 64 bits: ONNX Runtime has it,
            OpenVINO does not, and gives NaN. Saved results hold no index either way.
        min_per_layer: Least number of entries of every bank.
    """

    dealing: Dealing = "balanced"
    signs: bool = False
    kernels: bool = False
    rescale_gradient: bool = False
    start: Literal["draw", "mean"] | None = None
    index: Literal["computed", "stored"] = "computed"
    min_per_layer: int = 1

    def __post_init__(self) -> None:
        self._require("dealing", self.dealing in _DEALINGS, f"one of {_DEALINGS}")
        for field in ("signs", "kernels", "rescale_gradient"):
            self._require(field, isinstance(getattr(self, field), bool), "True or False")
        start = self.start is None or self.start in _STARTS
        self._require("start", start, f"None or one of {_STARTS}")
        self._require("index", self.index in _INDICES, f"one of {_INDICES}")
        self._require("min_per_layer", is_whole(self.min_per_layer), "a whole number from 1")
