"""What weights cost in bits, and which of them a budget of bits keeps.

Two ways to count. Nominal, as papers do: the bits of what is not zero. In an archive: positions and
codebooks as well, where a weight is cheaper in a row and a column that hold many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from passes.joint.bit_allocation import allocate_bits
from passes.joint.codebook import WIDTHS, Kind
from passes.joint.fit import codebook_costs
from passes.joint.sizes import nominal_bits, position_bits
from passes.joint.sparsity import project_sparsity

_BISECTIONS = 30
# How much of a row's or column's share is taken from its layer: an empty one must not be closed.
_SMOOTHING = 0.3
_CODEBOOK_VALUE = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """What a rate must know of a layer beside its values.

    Attributes:
        widths: Bits that it may have; one if they are given.
        least: Weights that it keeps at least.
    """

    widths: tuple[int, ...]
    least: int = 0


class Rate(Protocol):
    """A way to count bits.

    Attributes:
        multiplier: What the last projection paid for a bit: squared error; 0 where all was kept.
        relief: By how much other limits than the budget are looser at the moment, from 1.
    """

    multiplier: float
    relief: float

    def project(
        self, weights: list[Tensor], bits: list[int], budget: int, layers: Sequence[Layer]
    ) -> list[Tensor]:
        """Masks of what is kept: within the budget at these bits, as much energy as possible."""

    def choose(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        bits: list[int],
        budget: int,
        layers: Sequence[Layer],
    ) -> list[int]:
        """New bits for the layers: `targets` are to be quantized, the zeros of `weights` count."""

    def size(self, weights: list[Tensor], bits: list[int]) -> int:
        """Bits of weights as they are."""


@dataclass(slots=True)
class NominalRate:
    """Bits of the nonzero weights, nothing else; projections and allocations are exact.

    Attributes:
        kind: Of the codebooks.
        by_price: Choose bits by what the last projection paid for a bit; otherwise by the
            multiple-choice knapsack.
        unrepaired: Share of the quantization error that counts by price.
        nominal: Bits that are allowed whatever the budget is, as beside a limit on the archive;
            `None` does not limit them.
        multiplier: Of the last projection: squared error per bit.
        relief: See `Rate`.
    """

    kind: Kind = "free"
    by_price: bool = False
    unrepaired: float = 1.0
    nominal: int | None = None
    multiplier: float = 0.0
    relief: float = 1.0

    def project(
        self, weights: list[Tensor], bits: list[int], budget: int, layers: Sequence[Layer]
    ) -> list[Tensor]:
        """See `project_sparsity`."""
        budget = self._allowed(budget)
        least = [layer.least for layer in layers]
        masks = list(project_sparsity(weights, bits, budget, least=least))
        rows = zip(weights, masks, bits, strict=True)
        kept = [float(w[m].abs().min()) ** 2 / b for w, m, b in rows if bool(m.any())]
        some_left = any(bool((w[~m] != 0).any()) for w, m in zip(weights, masks, strict=True))
        self.multiplier = min(kept, default=0.0) if some_left else 0.0
        return list(masks)

    def choose(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        bits: list[int],
        budget: int,
        layers: Sequence[Layer],
    ) -> list[int]:
        """By price, or the exact optimum for the nonzeros as they are (section 3 of the paper).

        The optimum as well where all weights fit the final budget: none of them competes for bits.
        """
        budget = self._allowed(budget)
        if self.by_price:
            last = round(budget / self.relief)
            if self.multiplier or self.size(weights, bits) > last:
                price = self.multiplier / max(self.unrepaired, 1e-9)
                return priced_bits(self.kind, weights, bits, layers, price)
            budget = last
        wide = [layer.widths[0] > WIDTHS[-1] for layer in layers]
        counts = [int(torch.count_nonzero(w)) for w in weights]
        rest = budget - sum(
            layer.widths[0] * k
            for layer, k, is_wide in zip(layers, counts, wide, strict=True)
            if is_wide
        )
        rows = [i for i, is_wide in enumerate(wide) if not is_wide]
        costs = [self._costs(targets[i], layers[i].widths) for i in rows]
        nonzeros = torch.tensor([counts[i] for i in rows])
        chosen = list(bits)
        if rows:
            found = allocate_bits(torch.stack(costs), nonzeros, rest).bits
            for i, b in zip(rows, found, strict=True):
                chosen[i] = b
        return chosen

    def _allowed(self, budget: int) -> int:
        return budget if self.nominal is None else min(budget, round(self.nominal * self.relief))

    def _costs(self, target: Tensor, widths: tuple[int, ...]) -> Tensor:
        if len(widths) == 1:
            return torch.where(torch.arange(1, 9) == widths[0], 0.0, math.inf).double()
        reserved = self.kind == "free"
        return codebook_costs(target, kind=self.kind, reserved_zero=reserved, bits=widths)

    def size(self, weights: list[Tensor], bits: list[int]) -> int:
        """Sum over layers of bits times nonzeros."""
        return nominal_bits(weights, bits)


@dataclass(slots=True)
class ArchiveRate:
    """Bits of positions, codes and codebooks, by a multiplier: keep what is worth its bits.

    A weight is kept when its square exceeds the multiplier times its price: the bits of its code
    and of its position, which is likelier where its row and its column hold many already. Rows are
    those of the first dimension. The multiplier is found by bisection.

    Attributes:
        kind: Of the codebooks.
        structure: From 0, where every position of a layer has the same price, to 1.
        nominal: Bits of the nonzero weights that are allowed besides; `None` does not limit them.
        unrepaired: Share of the quantization error that counts when bits are chosen.
        multiplier: Of the last projection: squared error per bit.
        relief: See `Rate`.
    """

    kind: Kind = "free"
    structure: float = 0.5
    nominal: int | None = None
    unrepaired: float = 1.0
    multiplier: float = 0.0
    relief: float = 1.0

    def project(
        self, weights: list[Tensor], bits: list[int], budget: int, layers: Sequence[Layer]
    ) -> list[Tensor]:
        """Priced by the positions that are kept now; the smallest multiplier that fits."""
        squares = [w.detach().double() ** 2 for w in weights]
        prices = [self._price(w, b) for w, b in zip(weights, bits, strict=True)]
        ratios = [s / p for s, p in zip(squares, prices, strict=True)]
        floors = [_floor(r, layer.least) for r, layer in zip(ratios, layers, strict=True)]
        top = max((float(r.max()) for r in ratios if r.numel()), default=0.0)
        low, high = 0.0, 2 * top
        masks = self._masks(ratios, floors, low)
        if self._fits(masks, bits, budget):
            self.multiplier = 0.0
            return masks
        low = top * 1e-12
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            found = self._masks(ratios, floors, middle)
            if self._fits(found, bits, budget):
                high, masks = middle, found
            else:
                low = middle
        masks = self._masks(ratios, floors, high)
        self.multiplier = high
        return masks

    def _fits(self, masks: list[Tensor], bits: list[int], budget: int) -> bool:
        return self._nominal_fits(masks, bits) and self._mask_bits(masks, bits) <= budget

    def _nominal_fits(self, masks: list[Tensor], bits: list[int]) -> bool:
        if self.nominal is None:
            return True
        counts = (b * int(mask.sum()) for mask, b in zip(masks, bits, strict=True))
        return sum(counts) <= self.nominal * self.relief

    @staticmethod
    def _masks(ratios: list[Tensor], floors: list[float], multiplier: float) -> list[Tensor]:
        return [
            (r > 0) & ((r > multiplier) | (r >= floor))
            for r, floor in zip(ratios, floors, strict=True)
        ]

    def _price(self, weight: Tensor, bits: int) -> Tensor:
        """Bits of every weight if it is kept, float64 in the weight's shape."""
        kept = (weight != 0).reshape(_rows(weight), -1).double()
        total, size = float(kept.sum()), max(kept.numel(), 1)
        density = (total + 1) / (size + 2)
        rows = (kept.sum(1, keepdim=True) + _SMOOTHING * density) / (kept.shape[1] + _SMOOTHING)
        cols = (kept.sum(0, keepdim=True) + _SMOOTHING * density) / (kept.shape[0] + _SMOOTHING)
        likely = (rows * cols / density) ** self.structure * density ** (1 - self.structure)
        likely = likely.clamp(1e-6, 0.9)
        positions = torch.log2((1 - likely) / likely).clamp(min=0)
        return (positions + bits).reshape(weight.shape)

    def choose(
        self,
        targets: list[Tensor],
        weights: list[Tensor],
        bits: list[int],
        budget: int,
        layers: Sequence[Layer],
    ) -> list[int]:
        """For every layer what has the least error plus multiplier times bits.

        Where nothing has to be removed, the least error that the final budget has room for.
        """
        last = budget / self.relief
        if self.multiplier or (self.relief > 1 and self.size(weights, bits) > last):
            price = self.multiplier / max(self.unrepaired, 1e-9)
            return priced_bits(self.kind, weights, bits, layers, price, _codebook_bits)
        return self._widest(weights, bits, int(last), layers)

    def _widest(
        self, weights: list[Tensor], bits: list[int], budget: int, layers: Sequence[Layer]
    ) -> list[int]:
        """Bits at the smallest price at which all weights fit; the fewest where they never do."""
        masks = [w != 0 for w in weights]
        choices = [
            _choices(self.kind, w, now, layer, partial(_sized, mask))
            for w, mask, now, layer in zip(weights, masks, bits, layers, strict=True)
        ]

        def fits(found: list[int]) -> bool:
            size = sum(options[b][1] for options, b in zip(choices, found, strict=True))
            return size <= budget and self._nominal_fits(masks, found)

        high = 2 * max((error for o in choices for error, _ in o.values()), default=0.0)
        low, found = high * 1e-12, [_cheapest(o, 0.0) for o in choices]
        if fits(found):
            return found
        found = [_cheapest(o, high) for o in choices]
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            other = [_cheapest(o, middle) for o in choices]
            if fits(other):
                high, found = middle, other
            else:
                low = middle
        return found

    def size(self, weights: list[Tensor], bits: list[int]) -> int:
        """An estimate: positions by rows and columns, codes at full width, codebooks."""
        return self._mask_bits([w != 0 for w in weights], bits)

    def _mask_bits(self, masks: list[Tensor], bits: list[int]) -> int:
        return sum(_layer_bits(mask, b) for mask, b in zip(masks, bits, strict=True))


def priced_bits(
    kind: Kind,
    weights: Sequence[Tensor],
    bits: Sequence[int],
    layers: Sequence[Layer],
    multiplier: float,
    codebook: Callable[[int, int], int] = lambda b, k: 0,
) -> list[int]:
    """Bits of the least error plus multiplier times size, layer by layer.

    Args:
        kind: Of the codebooks.
        weights: What is kept is not zero.
        bits: As they are: they stay where nothing was removed yet, so that bits have no price.
        layers: Their bounds.
        multiplier: Squared error per bit.
        codebook: Bits of a codebook, from the bits of a code and the number of weights.
    """

    def size(b: int, count: int) -> int:
        return b * count + codebook(b, count)

    return [
        now
        if not multiplier and len(layer.widths) > 1
        else _cheapest(_choices(kind, weight, now, layer, size), multiplier)
        for weight, now, layer in zip(weights, bits, layers, strict=True)
    ]


# Squared error and size by width.
_Choices = dict[int, tuple[float, int]]


def _choices(
    kind: Kind, weight: Tensor, now: int, layer: Layer, size: Callable[[int, int], int]
) -> _Choices:
    """What the widths of a layer cost; only that which it has where there is nothing to choose."""
    values = weight[weight != 0]
    if len(layer.widths) == 1 or not len(values):
        only = layer.widths[0] if len(layer.widths) == 1 else now
        return {only: (0.0, size(only, len(values)))}
    costs = codebook_costs(values, kind=kind, reserved_zero=kind == "free", bits=layer.widths)
    return {b: (float(costs[b - 1]), size(b, len(values))) for b in layer.widths}


def _cheapest(choices: _Choices, multiplier: float) -> int:
    """The width of least error plus multiplier times bits; of equals the narrowest."""
    return min(choices, key=lambda b: (choices[b][0] + multiplier * choices[b][1], b))


def _rows(weight: Tensor) -> int:
    return weight.shape[0] if weight.dim() > 1 else 1


def _floor(ratios: Tensor, least: int) -> float:
    """The ratio of the last weight that a layer must keep; infinite if it need not keep any."""
    if not least:
        return math.inf
    flat = ratios.reshape(-1)
    return float(flat.topk(min(least, flat.numel())).values[-1]) if flat.numel() else math.inf


def _codebook_bits(bits: int, count: int) -> int:
    return _CODEBOOK_VALUE * min(1 << bits, count)


def _layer_bits(mask: Tensor, bits: int) -> int:
    """Bits of one layer: which rows and columns are in use, how many each holds, and where."""
    kept = mask.reshape(_rows(mask), -1)
    rows, cols = kept.sum(1).cpu().numpy(), kept.sum(0).cpu().numpy()
    count = int(rows.sum())
    if not count:
        return 8
    live = (rows[rows > 0].astype(np.float64), cols[cols > 0].astype(np.float64))
    plain = position_bits(mask.numel(), count)
    flags = position_bits(len(rows), len(live[0])) + position_bits(len(cols), len(live[1]))
    counts = sum(float(np.log2(side + 1).sum()) for side in live)
    spread = live[0].size * live[1].size
    # Independent rows and columns: the entropy of cells whose odds are the product of both.
    cells = position_bits(spread, count) - _mutual(live[0], count) - _mutual(live[1], count)
    positions = min(plain, flags + counts + max(cells, 0.0))
    return math.ceil(positions + bits * count + _codebook_bits(bits, count))


def _sized(mask: Tensor, bits: int, count: int) -> int:
    """`_layer_bits` of a mask that keeps so many."""
    return _layer_bits(mask, bits)


def _mutual(counts: np.ndarray, total: int) -> float:
    """Bits by which knowing how many each row holds makes their places cheaper."""
    shares = counts / total
    return float(total * (np.log2(len(counts)) + (shares * np.log2(shares)).sum()))
