"""The parts that the cost of a keep-state is the sum of: each depends on a few lines only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.energy import activation_energy, nonzero_energy
from energy_model.hardware import Hardware
from energy_model.shapes import LayerShape
from passes.graph import Use
from passes.structure.geometry import Arrangement
from passes.structure.lines import Line, Side


@dataclass(slots=True, eq=False)
class View:
    """A keep-state, and what it leaves of every line.

    Attributes:
        lines: All lines.
        state: Of every free group, by name, whether each unit stays.
        lengths: How many indices stay along every line.
    """

    lines: Sequence[Line]
    state: dict[str, NDArray[np.bool_]]
    lengths: list[int]

    def mask(self, side: Side) -> NDArray[np.bool_]:
        """Of every index along a dimension, whether it stays."""
        if side.line is None:
            return np.ones(side.size, dtype=bool)
        return self.lines[side.line].mask(self.state)


class Term(Protocol):
    """A part of the costs.

    Attributes:
        layer: Whose cost it is.
        lines: Numbers of the lines that it depends on.
        weights: What one unit of its value adds to each cost, in the order of the keys.
    """

    @property
    def layer(self) -> str: ...  # noqa: D102
    @property
    def lines(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def weights(self) -> tuple[float, ...]: ...  # noqa: D102

    def value(self, view: View) -> float:
        """Its value in a keep-state: exact, so that energies may be multiples of 1/256."""


def lines_of(sides: Sequence[Side]) -> tuple[int, ...]:
    """Numbers of the lines of some dimensions, sorted, one for each dimension that is cut."""
    return tuple(sorted(side.line for side in sides if side.line is not None))


@dataclass(frozen=True, slots=True)
class Product:
    """Elements of a tensor: the product of the kept lengths of its cut dimensions.

    Attributes:
        layer: Whose cost it is; empty where several are added up.
        lines: One for each cut dimension.
        weights: As `Term`, times the sizes of all other dimensions.
    """

    layer: str
    lines: tuple[int, ...]
    weights: tuple[float, ...]

    def value(self, view: View) -> int:
        """The product of the lengths."""
        result = 1
        for line in self.lines:
            result *= view.lengths[line]
        return result


def elements(layer: str, sides: Sequence[Side], weights: Sequence[float]) -> Product:
    """The elements of a tensor, each of which costs `weights`."""
    whole = 1
    for side in sides:
        whole *= side.size if side.line is None else 1
    return Product(layer, lines_of(sides), tuple(weight * whole for weight in weights))


@dataclass(frozen=True, slots=True, eq=False)
class Nonzeros:
    """Nonzero elements of a weight that holds zeros.

    Attributes:
        layer: Name of the site.
        sides: The first two dimensions of the weight.
        counts: Nonzeros over all further dimensions, float64 `(rows, columns)`; sums of integers
            below 2^53 are exact, and are much faster than with integers.
        weights: As `Term`.
    """

    layer: str
    sides: tuple[Side, Side]
    counts: NDArray[np.float64]
    weights: tuple[float, ...]

    @property
    def lines(self) -> tuple[int, ...]:
        """As `Term`."""
        return lines_of(self.sides)

    def value(self, view: View) -> int:
        """Nonzeros in what is kept."""
        rows, columns = (view.mask(side).astype(np.float64) for side in self.sides)
        return round(float(rows @ self.counts @ columns))


def nonzero_counts(weight: Tensor, sides: Sequence[Side]) -> NDArray[np.float64] | None:
    """`Nonzeros.counts` of a weight; `None` if it holds no zeros, or has no two dimensions."""
    if len(sides) < 2 or int(torch.count_nonzero(weight)) == weight.numel():
        return None
    blocks = weight.detach().reshape(sides[0].size, sides[1].size, -1)
    return torch.count_nonzero(blocks, dim=2).cpu().numpy().astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class LayerEnergy:
    """Relaxed energy of a layer, in the hardware's unit: see `energy_model.energy`.

    Attributes:
        layer: Name of the site.
        sides: The first two dimensions of the weight.
        uses: The uses of the weight, each with the meaning of the dimensions.
        hardware: The accelerator.
        nonzeros: Counts what stays of a weight that holds zeros; `None` for a dense one.
        weights: As `Term`.
    """

    layer: str
    sides: tuple[Side, Side]
    uses: tuple[tuple[Use, Arrangement], ...]
    hardware: Hardware
    nonzeros: Nonzeros | None
    weights: tuple[float, ...]
    _known: dict[tuple[int, int], float] = field(default_factory=dict)
    _dense: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def lines(self) -> tuple[int, ...]:
        """As `Term`."""
        return lines_of(self.sides)

    def value(self, view: View) -> float:
        """The energy of all uses."""
        size = self.sides[0].length(view.lengths), self.sides[1].length(view.lengths)
        masked = any(use.inputs is not None for use, _ in self.uses)
        if not masked and self.nonzeros is None:
            if size not in self._dense:
                self._dense[size] = self._activations(size) + self._moved(self._weights(size))
            return self._dense[size]
        kept = self._weights(size) if self.nonzeros is None else self.nonzeros.value(view)
        activations = self._masked(view, size) if masked else self._activations(size)
        return activations + self._moved(kept)

    def _weights(self, size: tuple[int, int]) -> int:
        whole = self.sides[0].size * self.sides[1].size
        return self.uses[0][0].shape.weights // whole * size[0] * size[1]

    def _activations(self, size: tuple[int, int]) -> float:
        """Energy of the activations without input masks."""
        if size not in self._known:
            self._known[size] = sum(
                self._moving(use, how.cut(use.shape, *size)) for use, how in self.uses
            )
        return self._known[size]

    def _moving(
        self, use: Use, shape: LayerShape, support: NDArray[np.bool_] | None = None
    ) -> float:
        """Energy of the activations of one use, cut to a shape."""
        energy, _ = activation_energy(shape, self.hardware, support, widths=use.widths)
        return energy * use.count

    def _moved(self, nonzeros: int) -> float:
        """Energy of the weights, and of computing with them; it does not depend on the cut."""
        total: float = 0
        for use, _ in self.uses:
            energy = nonzero_energy(use.shape, self.hardware, nonzeros, widths=use.widths)
            total += energy * use.count
        return total

    def _masked(self, view: View, size: tuple[int, int]) -> float:
        """Energy of the activations where constant masks leave some of the inputs."""
        total: float = 0
        for use, how in self.uses:
            support = use.support
            if support is not None:
                support = support[self._inputs(view, use.shape, how)]
            total += self._moving(use, how.cut(use.shape, *size), support)
        return total

    def _inputs(self, view: View, shape: LayerShape, how: Arrangement) -> NDArray[np.bool_]:
        """Which of the layer's input channels stay."""
        if how.depthwise:
            return view.mask(self.sides[0])[:: shape.out_channels // shape.in_channels]
        if how.outputs_first:
            return np.tile(view.mask(self.sides[1]), shape.groups)
        return view.mask(self.sides[0])


# The exporter stores equal tensors of up to so many elements once.
SHARED_SIZE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Elements that a file holds of tensors that were equal, each of which it stores once.

    Attributes:
        layer: Path of the first of them.
        tensors: The dimensions of each.
        constant: Whether all elements are one number, so that tensors of equal shape stay equal;
            otherwise they are taken to differ once channels are gone.
        weights: As `Term`.
    """

    layer: str
    tensors: tuple[tuple[Side, ...], ...]
    constant: bool
    weights: tuple[float, ...]

    @property
    def lines(self) -> tuple[int, ...]:
        """As `Term`."""
        return tuple(sorted({line for sides in self.tensors for line in lines_of(sides)}))

    def value(self, view: View) -> int:
        """Elements in the file."""
        stored: dict[object, int] = {}
        for number, sides in enumerate(self.tensors):
            shape = tuple(side.length(view.lengths) for side in sides)
            size = int(np.prod(shape))
            whole = all(side.size == n for side, n in zip(sides, shape, strict=True))
            if size > SHARED_SIZE:
                stored[number] = size
            elif self.constant or whole:
                stored[shape] = size
            else:
                stored[shape, lines_of(sides)] = size
        return sum(stored.values())


def merged(terms: Sequence[Term]) -> list[Term]:
    """The same sum with fewer terms: products of the same lines are one, constants left out."""
    products: dict[tuple[int, ...], tuple[float, ...]] = {}
    others: list[Term] = []
    for term in terms:
        if not term.lines:
            continue
        if isinstance(term, Product):
            before = products.get(term.lines, (0,) * len(term.weights))
            added = tuple(a + b for a, b in zip(before, term.weights, strict=True))
            products[term.lines] = added
        else:
            others.append(term)
    return [Product("", lines, weights) for lines, weights in products.items()] + others


def one_hot(keys: Sequence[str], values: Mapping[str, float]) -> tuple[float, ...]:
    """`Term.weights` that are given by key; the others are 0."""
    return tuple(values.get(key, 0) for key in keys)
