"""What the method `Joint` can be told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from passes.methods.config import MethodConfig

WIDEST = 8
"""Most bits of a weight with a codebook."""


@dataclass(frozen=True)
class Joint(MethodConfig):
    """Configuration of joint sparsity and quantization.

    Yang, Gui, Zhu, Liu, "Automatic Neural Network Compression by Sparsity-Quantization Joint
    Learning", CVPR 2020. The alternation of projections, duplicates and duals (ADMM) is theirs; the
    ladder of budgets, the exact inner problems and the training of the finished masks are not.

    Attributes:
        mode: `"both"`; `"prune"`: weights keep their type; `"quantize"`: no weight is removed.
        levels: `"free"`: a codebook of any values per layer, zero besides; `"uniform"`: multiples
            of one number per layer, which ONNX stores as integers, with zero among its levels.
            Under a limit on energy always uniform: what is looked up is multiplied as a word.
        bits: Bits of every weight, or `{pattern: bits}` for layers by name; `None`: chosen for
            every layer. What is given is never changed.
        min_bits: Least bits of a layer; 2 for uniform levels.
        max_bits: Most bits of a layer, up to 8.
        start_bits: Bits of every layer until they are chosen for the first time.
        allocate: How bits are chosen while training: `"price"`: what error they save in a layer
            against what the same bits save where weights are removed; `"knapsack"`: the least error
            for the weights that are kept at the moment, exactly, as in the paper. Alternated with
            projections, the second keeps few weights of many bits.
        unrepaired: Share of the quantization error that counts when bits are chosen by price:
            training through the levels repairs the rest, and few bits leave room for more weights.
        freeze_bits: Share of the steps after which bits stay as they are.
        rho: Weight of the distance to the quantized duplicate.
        rho_growth: Factor of `rho` from epoch to epoch.
        prox: Take the distance into account by its proximal step, exactly; otherwise by adding its
            gradient to that of the loss.
        project_every: Optimizer steps between sparsity projections; 0 is once an epoch. The end of
            an epoch always projects.
        dual_every: Optimizer steps between updates of duplicate and dual, a multiple of
            `project_every`; 0 is once an epoch.
        ladder: Share of the steps in which the budget falls to its target.
        start: Where the ladder begins: share of what all weights take before training.
        stages: Number of budgets on the ladder; 0 lowers it at every projection.
        momentum: At a projection the momentum of what is removed is set to zero (`"mask"`) or left
            (`"keep"`).
        finetune: Share of the steps, at the end, in which masks and bits are fixed and weights are
            trained through their levels.
        refits: How often an epoch codebooks are fitted anew in it.
        honest: Price positions and codebooks besides the bits of the weights; `None` does so for
            limits on the archive.
        structure: How much positions in rows and columns that hold many weights are cheaper, from
            0 (all alike) to 1 (as an archive that knows rows and columns codes them).
        significand: Significant bits that codebooks, biases and norms keep, up to 24, so that they
            take less room in an archive; `None` keeps all 24, and 9 under a limit on the archive.
    """

    mode: Literal["both", "prune", "quantize"] = "both"
    levels: Literal["free", "uniform"] = "free"
    bits: int | Mapping[str, int] | None = None
    min_bits: int = 1
    max_bits: int = WIDEST
    start_bits: int = 4
    allocate: Literal["price", "knapsack"] = "price"
    unrepaired: float = 1.0
    freeze_bits: float = 0.4
    rho: float = 0.05
    rho_growth: float = 1.0
    prox: bool = True
    project_every: int = 20
    dual_every: int = 0
    ladder: float = 0.4
    start: float = 0.5
    stages: int = 0
    momentum: Literal["mask", "keep"] = "mask"
    finetune: float = 0.3
    refits: int = 20
    honest: bool | None = None
    structure: float = 0.5
    significand: int | None = None

    def __post_init__(self) -> None:
        if self.levels == "uniform" and self.min_bits == 1:
            object.__setattr__(self, "min_bits", 2)
        for name, allowed in (
            ("mode", ("both", "prune", "quantize")),
            ("levels", ("free", "uniform")),
            ("momentum", ("mask", "keep")),
            ("allocate", ("price", "knapsack")),
        ):
            self._require(name, getattr(self, name) in allowed, f"one of {allowed}")
        low = 2 if self.levels == "uniform" else 1
        self._require("min_bits", _whole(self.min_bits, low, WIDEST), f"{low} to {WIDEST}")
        self._require(
            "max_bits", _whole(self.max_bits, self.min_bits, WIDEST), f"min_bits to {WIDEST}"
        )
        self._require("bits", self._bits_allowed(), f"None, {low} to {WIDEST}, or {{name: bits}}")
        inside = _whole(self.start_bits, self.min_bits, self.max_bits)
        if not inside and self.start_bits == type(self).start_bits:  # bounds move the default
            nearest = min(max(self.start_bits, self.min_bits), self.max_bits)
            object.__setattr__(self, "start_bits", nearest)
        else:
            self._require("start_bits", inside, "min_bits to max_bits")
        for name in ("freeze_bits", "ladder", "finetune", "structure", "unrepaired"):
            self._require(name, _real(getattr(self, name), 0, 1), "a share from 0 to 1")
        self._require("finetune", self.ladder + self.finetune <= 1, "up to 1 - ladder")
        self._require("rho", _real(self.rho, 0), "a number from 0")
        self._require("rho_growth", _real(self.rho_growth, 1), "a number from 1")
        self._require("start", _real(self.start, 0, 1) and self.start > 0, "a share above 0")
        for name in ("project_every", "dual_every", "stages"):
            self._require(name, _whole(getattr(self, name), 0), "a whole number from 0")
        self._require("refits", _whole(self.refits, 1), "a whole number from 1")
        step = self.project_every
        fits = not self.dual_every or (step and self.dual_every % step == 0)
        self._require("dual_every", bool(fits), "0, or a multiple of project_every")
        self._require("prox", isinstance(self.prox, bool), "True or False")
        told = self.honest is None or isinstance(self.honest, bool)
        self._require("honest", told, "None, True or False")
        kept = self.significand
        self._require("significand", kept is None or _whole(kept, 2, 24), "None, or 2 to 24")

    def _bits_allowed(self) -> bool:
        def within(bits: Any) -> bool:
            return _whole(bits, self.min_bits, self.max_bits)

        if isinstance(self.bits, Mapping):
            return all(isinstance(k, str) and within(v) for k, v in self.bits.items())
        return self.bits is None or within(self.bits)

    @property
    def widths(self) -> range:
        """Bits that a layer may have."""
        return range(self.min_bits, self.max_bits + 1)


def _whole(value: Any, low: int, high: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any, low: float, high: float = sys.float_info.max) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
