"""The nouns of the graph: uses of weights, sites, and the traced model that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from energy_model.energy import Energy, activation_energy, layer_energy
from energy_model.hardware import Hardware
from energy_model.input_support import InputSupport
from energy_model.price import WeightPrice, weight_price
from energy_model.shapes import LayerShape
from energy_model.unit_prices import plain
from energy_model.widths import WORDS, Widths
from passes.inputs import Call
from passes.joint.codebook import Codebook
from passes.quantize.encoding import Encoding


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pass decided about a layer, and why.

    Attributes:
        layer: Name of a site or module path; empty for the whole model.
        what: The decision, in a few words.
        why: The reason.
        before: The state before, for people.
        after: The state after.
    """

    layer: str
    what: str
    why: str
    before: str = ""
    after: str = ""

    def to_dict(self) -> dict[str, str]:
        """As a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which a weight is multiplied with activations.

    Attributes:
        shape: Geometry at batch size 1.
        count: How often this happens in one inference.
        inputs: Inputs that a constant mask leaves; `None` is all of them.
        widths: Bits of what is multiplied and written; by default all are words of the hardware.
    """

    shape: LayerShape
    count: int = 1
    inputs: InputSupport | None = None
    widths: Widths = WORDS

    @property
    def support(self) -> NDArray[np.bool_] | None:
        """`inputs` as an array `(in_channels, *input_size)`."""
        return None if self.inputs is None else self.inputs.array


@dataclass(frozen=True, slots=True)
class Site:
    """One compressible weight, wherever and however often it is used.

    Attributes:
        name: Path of the parameter, without a final `.weight`.
        owners: Every `(module path, attribute)` that holds the parameter; tied weights have many.
        start: First element of the weight within the flattened parameter.
        size: Number of weights.
        uses: The matrix products and convolutions that the weight takes part in.
        note: What a reader of the cost table should know.
        computed: The weight is computed in every forward pass (weight normalisation and the
            like): it is costed, but has no parameter that could be compressed.
        opaque: It lies inside a leaf that could not be traced.
    """

    name: str
    owners: tuple[tuple[str, str], ...]
    start: int
    size: int
    uses: tuple[Use, ...]
    note: str = ""
    computed: bool = False
    opaque: bool = False

    @property
    def widths(self) -> Widths:
        """Bits of the operands: of each the most that any use has; `None` is a word."""
        return common_widths([use.widths for use in self.uses])

    def price(self, hardware: Hardware) -> WeightPrice:
        """Marginal energy of the weight's nonzeros, summed over all uses.

        Raises:
            ArgumentError: The uses give the weight different widths.
        """
        first, *rest = (
            weight_price(use.shape, hardware, widths=use.widths) * use.count for use in self.uses
        )
        for price in rest:
            first = first + price
        return first

    def activation_energy(self, hardware: Hardware) -> int | float:
        """Energy of the inputs and outputs of all uses, which no weight can change."""
        return plain(sum(_activations(use, hardware) * use.count for use in self.uses))

    def macs(self) -> int:
        """Multiply-accumulates of all uses, every weight counted."""
        return sum(use.shape.macs * use.count for use in self.uses)

    def macs_per_weight(self) -> int:
        """Multiply-accumulates of all uses that one weight takes part in, by the same convention.

        All weights have the same number. Of a weight that is used in part it is an upper bound.
        """
        # A view may repeat the weight within one use; every copy is multiplied.
        return sum(
            use.shape.macs // use.shape.weights * -(-use.shape.weights // self.size) * use.count
            for use in self.uses
        )

    def energy(self, hardware: Hardware, weight: Tensor) -> Energy:
        """Energy of all uses, given the weight's support.

        Args:
            hardware: The accelerator.
            weight: Tensor of `size` elements.
        """
        total = Energy.zero()
        for use in self.uses:
            support = use.support
            counted = offset_counts if support is None else channel_counts
            counts = counted(weight, use.shape)
            once = layer_energy(use.shape, hardware, counts, support, widths=use.widths)
            total = total + once * use.count
        return total


@lru_cache(maxsize=4096)
def _activations(use: Use, hardware: Hardware) -> int | float:
    return activation_energy(use.shape, hardware, use.support, widths=use.widths)[0]


def common_widths(widths: Sequence[Widths]) -> Widths:
    """Of each operand the most bits that it has anywhere; `None`, a word, where it has that once.

    Args:
        widths: At least one.
    """

    def most(bits: Iterable[int | None]) -> int | None:
        known = list(bits)
        return None if None in known else max(b for b in known if b is not None)

    return Widths(
        most(each.weights for each in widths),
        most(each.inputs for each in widths),
        most(each.outputs for each in widths),
    )


def channel_counts(weight: Tensor, shape: LayerShape) -> NDArray[np.int64]:
    """Nonzeros of a weight per input channel and kernel offset.

    Args:
        weight: As for `offset_counts`.
        shape: The use that it serves.

    Returns:
        int64 array `(in_channels, *kernel)`, summed over the output channels of the channel's
        group.
    """
    result = (shape.in_channels, *shape.kernel)
    if weight.device.type == "meta":
        return np.full(result, shape.out_per_group, dtype=np.int64)
    outputs, inputs = shape.out_per_group, shape.in_channels // shape.groups
    rows = (inputs, outputs) if shape.transposed else (outputs, inputs)
    blocks = weight.detach().reshape(shape.groups, *rows, *shape.kernel)
    counts = torch.count_nonzero(blocks, dim=2 if shape.transposed else 1)
    return counts.cpu().numpy().astype(np.int64).reshape(result)


def offset_counts(weight: Tensor, shape: LayerShape) -> NDArray[np.int64]:
    """Nonzeros of a weight per kernel offset, summed over all channels.

    Args:
        weight: Tensor with the elements of a `(C_out, C_in / groups, *kernel)` weight (transposed:
            `(C_in, C_out / groups, *kernel)`), contiguous.
        shape: The use that it serves.

    Returns:
        int64 array of shape `kernel`.
    """
    if shape.is_linear:
        total = weight.numel() if weight.device.type == "meta" else int(torch.count_nonzero(weight))
        return np.full(shape.kernel, total, dtype=np.int64)
    offsets = int(np.prod(shape.kernel))
    rows = weight.detach().reshape(-1, offsets)
    if weight.device.type == "meta":
        return np.full(shape.kernel, rows.shape[0], dtype=np.int64)
    counts = torch.count_nonzero(rows, dim=0)
    return counts.cpu().numpy().astype(np.int64).reshape(shape.kernel)


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What every method must respect in one layer.

    Attributes:
        min_density: Least share of the weights that stay nonzero; 1 leaves the layer alone.
    """

    min_density: float = 0.0

    def least(self, size: int) -> int:
        """Least number of nonzero weights in a layer of `size` weights."""
        # A share such as 0.1 is not exact in binary: 0.1 of 30 weights is 3, not 4.
        return math.ceil(round(self.min_density * size, 6))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A submodule that is kept as it is, because it could not be traced.

    Attributes:
        path: The module's path; empty for the whole model.
        reason: What failed, with the user's file and line where it is known.
    """

    path: str
    reason: str


@dataclass
class ModelGraph:
    """A model, its traced graph and its compressible weights.

    Attributes:
        module: The model that runs. Weights live here and are shared with `graph_module`.
        graph_module: The traced graph; `None` when the whole model is one opaque leaf.
        call: Example inputs, as given.
        sites: Every weight that is multiplied with activations, in order of first use.
        leaves: What could not be traced.
        decisions: What the passes decided so far.
        rules: What every method must respect in single layers, by site name.
        rewritten: A pass put nodes into `graph_module`: the module alone no longer is the model.
        encodings: How finished weights are written, by site name; those that are not quantized
            have none.
        codebooks: The few values that finished weights have, by site name, where these are not on
            a uniform grid.
        kept: Of parameters and buffers that lost channels, by path and then by dimension, the
            indices of the original that are left, ascending int64 `(n,)`; `shrink` records them.
    """

    module: nn.Module
    graph_module: GraphModule | None
    call: Call
    sites: tuple[Site, ...]
    leaves: tuple[Leaf, ...] = ()
    decisions: list[Decision] = field(default_factory=list)
    rules: dict[str, LayerRule] = field(default_factory=dict)
    rewritten: bool = False
    encodings: dict[str, Encoding] = field(default_factory=dict)
    codebooks: dict[str, Codebook] = field(default_factory=dict)
    kept: dict[str, dict[int, NDArray[np.int64]]] = field(default_factory=dict)

    @property
    def runnable(self) -> nn.Module:
        """What is run and saved: the module, until a pass puts nodes into the graph."""
        if self.rewritten and self.graph_module is not None:
            return self.graph_module
        return self.module

    def become(self, other: ModelGraph, decisions: Iterable[Decision]) -> None:
        """Take over another model in place: whoever holds this one holds that one then.

        Args:
            other: The model; it must not be used any more.
            decisions: What led to it, after what was decided before.
        """
        known = [*self.decisions, *decisions]
        for item in fields(self):
            setattr(self, item.name, getattr(other, item.name))
        self.decisions = known

    @property
    def by_name(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.sites}

    @property
    def compressible(self) -> tuple[Site, ...]:
        """The sites that have a parameter of their own."""
        return tuple(site for site in self.sites if not site.computed)

    def parameter(self, site: Site) -> Tensor:
        """The parameter that holds the site's weight; that under a mask or quantizer, if any."""
        path, attribute = site.owners[0]
        module = self.module.get_submodule(path)
        if parametrize.is_parametrized(module, attribute):
            chain = module.get_submodule(f"parametrizations.{attribute}")
            return chain.get_parameter("original")
        value: Tensor = getattr(module, attribute)
        return value

    def weight(self, site: Site) -> Tensor:
        """The site's weight, detached: a view of shape `(size,)`, or of the parameter's shape."""
        parameter: Tensor = self.parameter(site).detach()
        if site.size == parameter.numel():
            return parameter
        part: Tensor = parameter.reshape(-1)[site.start : site.start + site.size]
        return part
