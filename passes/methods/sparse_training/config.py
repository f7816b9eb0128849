"""Configuration of dynamic sparse training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from passes.dynamic.pruning_steps import PruningSteps
from passes.dynamic.registry import find_rule
from passes.dynamic.rule import NewValues, Rule
from passes.dynamic.schedule import Decay, Points, Values, is_real, is_whole, read_points
from passes.dynamic.walk import Walk
from passes.methods.config import MethodConfig

Law = Literal["uniform", "er", "erk", "magnitude"]
DropName = Literal[
    "threshold",
    "proportional_threshold",
    "global",
    "layer",
    "layer_by_sign",
    "saliency",
    "layer_saliency",
]
Granularity = Literal["weights", "rows", "kernels", "filters"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "start": ("uniform", "er", "erk", "magnitude"),
    "drop": get_args(DropName),
    "allocate": ("survivors", "same_layer"),
    "grow": ("random", "gradient"),
    "decay": ("constant", "cosine", "linear"),
    "new_values": ("zero", "normal"),
}
_GRANULARITIES = ("weights", "rows", "kernels", "filters")
_SHARES = ("share", "stop", "conv_sparsity", "linear_sparsity", "damping")


@dataclass(frozen=True)
class SparseTraining(MethodConfig):
    """Networks that are sparse from the start, their number of weights constant to the unit.

    What is `None` is the rule's.

    Attributes:
        rule: Name of a rule of `passes.dynamic.rule.RULES`, or of one added by `add_rule`: which
            weights are dropped, which sites get them back and where they grow.
        start: Share of every layer at first: `"uniform"`, `"er"` or `"erk"` at random positions, or
            `"magnitude"`: the largest of the model, with the shares of ERK. Of rules that prune
            from dense: the shares in the end.
        conv_sparsity: Sparsity of every convolution at first; the other layers share the rest.
        linear_sparsity: The same of every linear layer.
        masks: Folder of an earlier result (`save`, or `out=`): its zeros are the first masks. With
            the same initial model this is a lottery ticket (Frankle and Carbin, ICLR 2019).
        granularity: Of convolutions, what is dropped and grown together: `"weights"`, kernel
            `"rows"`, whole `"kernels"` of one input and output, or `"filters"`.
        every: Steps between rewiring events, or `{first epoch: steps}`. `None` is the rule's, but
            100 become a twentieth of the training where that is less.
        cells: Cells that an event moves, all layers together; or
        share: share of the active ones.
        decay: Of that amount until the stop: `"constant"`, `"cosine"` or `"linear"`.
        stop: Share of the training after which nothing is rewired; or
        stop_epoch: the first epoch without rewiring.
        drop: `"threshold"`: below one threshold, by the authors' controller;
            `"proportional_threshold"`: by one that converges; `"global"`: exactly the smallest of
            all layers; `"layer"`: of every layer; `"layer_by_sign"`: of both signs alike;
            `"saliency"` and `"layer_saliency"`: the smallest |w dL/dw| of all or every layer.
        allocate: `"survivors"`: layers grow by what they kept; `"same_layer"`: what they lost.
        damping: Of `"survivors"`, from 0 (the same layer) to 1.
        gamma: Of `"survivors"`: how much layers whose weights cost more get less. `None` is 0 under
            a limit on nonzeros, otherwise 1.
        grow: `"random"` or `"gradient"`.
        new_values: Of what grows: `"zero"` or `"normal"`; see `Rule`.
        walk: Of a rule whose connections move at random: the noise, its temperature, the signs; a
            `Walk` or its fields.
        pruning: When a rule that prunes from dense does so.
        l1: Strength of an L1 penalty on the weights that are active.
        group_lasso: The penalty of convolutions is the sum over kernels of their 2-norm instead.
        rescale: Multiply initial values by one over the root of the layer's density, so that
            outputs keep their variance. `None`: where positions are random.
        min_per_layer: Least number of weights that every layer keeps.
        keep_units: No output channel or neuron loses its last weight to a drop.
    """

    rule: str = "dsr_plus"
    start: Law | None = None
    conv_sparsity: float | None = None
    linear_sparsity: float | None = None
    masks: str | None = None
    granularity: Granularity = "weights"
    every: Values | None = None
    cells: int | None = None
    share: float | None = None
    decay: Decay | None = None
    stop: float | None = None
    stop_epoch: int | None = None
    drop: DropName | None = None
    allocate: Literal["survivors", "same_layer"] | None = None
    damping: float | None = None
    gamma: float | None = None
    grow: Literal["random", "gradient"] | None = None
    new_values: NewValues | None = None
    walk: Walk | Mapping[str, Any] | None = None
    pruning: PruningSteps | Mapping[str, Any] | None = None
    l1: float = 0.0
    group_lasso: bool = False
    rescale: bool | None = None
    min_per_layer: int = 1
    keep_units: bool = False

    def __post_init__(self) -> None:
        rule = find_rule(self.rule)
        if isinstance(self.pruning, Mapping):
            object.__setattr__(self, "pruning", PruningSteps.from_dict(self.pruning))
        if isinstance(self.walk, Mapping):
            object.__setattr__(self, "walk", Walk.from_dict(self.walk))
        if self.every is not None and not is_whole(self.every):
            object.__setattr__(self, "every", read_points(self.every, "SparseTraining.every"))
        self._check_choices()
        self._check_numbers()
        self._check_together(rule)

    def _check_choices(self) -> None:
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            self._require(field, value is None or value in allowed, f"None or one of {allowed}")
        self._require("granularity", self.granularity in _GRANULARITIES, f"one of {_GRANULARITIES}")
        pruning = self.pruning is None or isinstance(self.pruning, PruningSteps)
        self._require("pruning", pruning, "None, a PruningSteps or its fields")
        walk = self.walk is None or isinstance(self.walk, Walk)
        self._require("walk", walk, "None, a Walk or its fields")
        folder = self.masks is None or (isinstance(self.masks, str) and bool(self.masks))
        self._require("masks", folder, "None, or the folder of a saved result")
        for field in ("group_lasso", "keep_units"):
            self._require(field, getattr(self, field) in (True, False), "True or False")
        self._require("rescale", self.rescale in (None, True, False), "None, True or False")

    def _check_numbers(self) -> None:
        for field in _SHARES:
            value = getattr(self, field)
            good = value is None or (is_real(value) and 0 <= value <= 1)
            self._require(field, good, "None, or a share from 0 to 1")
        for field in ("cells", "stop_epoch"):
            value = getattr(self, field)
            self._require(field, value is None or is_whole(value, 0), "None, or whole, from 0")
        for field in ("gamma", "l1"):
            value = getattr(self, field)
            good = (value is None and field == "gamma") or (is_real(value) and value >= 0)
            self._require(field, good, "a number from 0")
        self._require("min_per_layer", is_whole(self.min_per_layer), "a whole number from 1")
        periods = self.every if isinstance(self.every, tuple) else ()
        whole = all(is_whole(steps) for _, steps in cast(Points, periods))
        self._require("every", whole, "None, steps from 1, or {first epoch: steps}")

    def _check_together(self, rule: Rule) -> None:
        one = self.share is None or self.cells is None
        self._require("share", one, "None beside cells")
        self._require("stop", self.stop is None or self.stop_epoch is None, "None with stop_epoch")
        self._require("start", self.start is None or self.masks is None, "None beside masks")
        timed = ("every", "cells", "share", "decay", "stop", "stop_epoch", "grow", "allocate")
        for field in (*timed, "drop", "new_values", "damping", "gamma"):
            good = getattr(self, field) is None or rule.schedule is not None
            self._require(field, good, f"None: the rule {rule.name!r} rewires nothing")
        prunes = self.pruning is None or rule.prune is not None
        self._require("pruning", prunes, f"None: the rule {rule.name!r} does not prune from dense")
        dense = rule.prune is None or (self.masks is None and self.start != "magnitude")
        self._require("start", dense, f"another: the rule {rule.name!r} starts dense")
        self._check_walk(rule)
        lasso = not self.group_lasso or self.l1 > 0
        self._require("group_lasso", lasso, "False, or an l1 above 0")

    def _check_walk(self, rule: Rule) -> None:
        if rule.walk is None:
            self._require("walk", self.walk is None, f"None: the rule {rule.name!r} has none")
            return
        for field in ("drop", "cells", "share", "decay"):
            allowed = f"None: of the rule {rule.name!r}, connections end where their signs change"
            self._require(field, getattr(self, field) is None, allowed)
        zero = self.new_values in (None, "zero")
        self._require("new_values", zero, f"'zero': the rule {rule.name!r} grows there")
        single = self.granularity == "weights"
        self._require("granularity", single, "'weights': only single ones have a sign")

    @property
    def law(self) -> str:
        """Of the shares at first."""
        return find_rule(self.rule).start if self.start is None else self.start

    @property
    def rescaled(self) -> bool:
        """Whether initial values are multiplied."""
        if self.rescale is not None:
            return self.rescale
        chosen = self.masks is not None or self.law == "magnitude"
        return not chosen and find_rule(self.rule).prune is None

    @property
    def steps(self) -> PruningSteps | None:
        """When a rule that prunes does so."""
        return cast("PruningSteps | None", self.pruning) or find_rule(self.rule).prune
