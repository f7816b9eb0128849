"""Start distributions: how many cells of every sparse tensor are active before training.

Three laws for the share of a tensor, each clipped to all of it and to at least one cell:

    uniform        the same for all                           Mostafa and Wang, ICML 2019
    Erdos-Renyi    e (n_in + n_out) / (n_in n_out)            Mocanu et al., Nature Comm. 2018
    ERK            e (sum of all dimensions) / (their product)    Evci et al., ICML 2020

The factor e follows from the budget: it is solved for again whenever a tensor is clipped, and what
rounding leaves goes to the largest remainders (`allocation`), so that the sum is the budget to the
unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.dynamic.allocation import block_shares
from passes.dynamic.schedule import is_real, is_whole

# The authors' guard against `(1 - s) * cells` falling just below a whole number.
_GUARD = 0.1


@dataclass(frozen=True, slots=True)
class SparseShape:
    """The shape of one sparse tensor.

    Attributes:
        name: Of its site.
        shape: Of the weight seen as (outputs, inputs per group, *kernel).
        block: Parameters of a cell; cells are consecutive stretches of the flat weight.
        groups: Groups of a convolution; they divide the outputs.

    Raises:
        ArgumentError: A size is not a positive whole number, the weight is not a whole number of
            cells, or the outputs not a multiple of the groups.
    """

    name: str
    shape: tuple[int, ...]
    block: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (*self.shape, self.block, self.groups)
        good = len(self.shape) >= 2 and all(is_whole(size) for size in sizes)
        if not good or self.parameters % self.block or self.shape[0] % self.groups:
            raise ArgumentError(
                f"shape {self.shape} has no cells of {self.block} in {self.groups} groups",
                where=self.name,
                remedy="Give (outputs, inputs per group, *kernel), a block that divides its size "
                "and groups that divide the outputs.",
            )

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def cells(self) -> int:
        """Cells of the weight."""
        return self.parameters // self.block


def uniform(sites: Sequence[SparseShape], density: float | Mapping[str, float]) -> tuple[int, ...]:
    """The same share of every tensor, rounded as its authors do: `int(density * cells + 0.1)`.

    Args:
        sites: The sparse tensors.
        density: Share of the cells, above 0 and up to 1; or one for each name, such as another for
            convolutions than for linear layers.

    Returns:
        Active cells of each site, at least one.

    Raises:
        ArgumentError: A density is missing or no such share.
    """
    counts = []
    for site in sites:
        share = density.get(site.name) if isinstance(density, Mapping) else density
        if share is None or not is_real(share) or not 0 < share <= 1:
            raise ArgumentError(
                f"density {share!r} is not allowed",
                where=site.name,
                remedy="Give a share above 0 and up to 1 for every sparse tensor.",
            )
        counts.append(max(1, int(share * site.cells + _GUARD)))
    return tuple(counts)


def uniform_exact(sites: Sequence[SparseShape], total: int) -> tuple[int, ...]:
    """The same share of every tensor, and `total` parameters in all.

    Args:
        sites: The sparse tensors.
        total: Active parameters of all of them.

    Returns:
        Active cells of each site, at least one. Their parameters sum up to `total`; where cells
        have several they may fall short of it, by less than the smallest cell that is not active.

    Raises:
        InfeasibleBudget: `total` is less than one cell of each.
        ArgumentError: `total` is more than there are, or no whole number.
    """
    return _split(sites, [site.parameters for site in sites], total)


def erdos_renyi(
    sites: Sequence[SparseShape], total: int, *, kernel: bool = False
) -> tuple[int, ...]:
    """A share that falls with the number of inputs and outputs, and `total` parameters in all.

    Args:
        sites: The sparse tensors; inputs and outputs are those of one group.
        total: Active parameters of all of them.
        kernel: Count the dimensions of the kernel as well (ERK), so that large kernels get less.

    Returns:
        As `uniform_exact`.

    Raises:
        InfeasibleBudget: As `uniform_exact`.
        ArgumentError: As `uniform_exact`.
    """
    return _split(sites, [_connections(site, kernel) for site in sites], total)


def start_counts(
    shapes: Sequence[SparseShape],
    floors: Sequence[int],
    total: int,
    law: str,
    required: Sequence[int | None] = (),
) -> tuple[int, ...]:
    """Active cells of every layer, `total` parameters in all where cells are single weights.

    Args:
        shapes: Of the layers.
        floors: Least number of cells of each.
        total: Parameters of all layers.
        law: `"uniform"`, `"er"`, `"erk"` or `"magnitude"`, which has the shares of ERK.
        required: Cells of layers that have a number of their own, `None` for the others.

    Raises:
        InfeasibleBudget: The floors and what is required come to more than the total.
    """
    total = min(total, sum(shape.parameters for shape in shapes))
    given = list(required) or [None] * len(shapes)
    counts = [f if r is None else r for f, r in zip(floors, given, strict=True)]
    least = sum(n * shape.block for n, shape in zip(counts, shapes, strict=True))
    if least > total:
        raise InfeasibleBudget(
            f"{total:,} weights are asked for, and layers must keep {least:,}",
            limit="nonzeros",
            asked=total,
            tightest=least,
            remedy="Raise the budget, or loosen the rules for single layers.",
        )
    full = [n == shape.cells for n, shape in zip(counts, shapes, strict=True)]
    held = [r is not None or f for r, f in zip(given, full, strict=True)]
    while True:
        # Layers below their floor are held there, and the law is asked again for the others.
        pairs = zip(counts, shapes, held, strict=True)
        left = total - sum(n * shape.block for n, shape, h in pairs if h)
        free = [shape for shape, h in zip(shapes, held, strict=True) if not h]
        # What held layers leave may be more than the others can take.
        left = min(left, sum(shape.parameters for shape in free))
        found = iter(_by_law(free, left, law) if free else ())
        now = [n if h else next(found) for n, h in zip(counts, held, strict=True)]
        below = [n < floor for n, floor in zip(now, floors, strict=True)]
        if not any(below):
            return tuple(now)
        held = [h or b for h, b in zip(held, below, strict=True)]


def _by_law(shapes: Sequence[SparseShape], total: int, law: str) -> tuple[int, ...]:
    if law == "uniform":
        return uniform_exact(shapes, total)
    return erdos_renyi(shapes, total, kernel=law != "er")


def _connections(site: SparseShape, kernel: bool) -> int:
    """Parameters of a site at e = 1: its share times its size, which is a whole number."""
    outputs, inputs, *sizes = site.shape
    ends = outputs // site.groups + inputs
    if kernel:
        return site.groups * (ends + sum(sizes))
    return site.groups * ends * math.prod(sizes)


def _split(sites: Sequence[SparseShape], weights: Sequence[int], total: int) -> tuple[int, ...]:
    """Cells in proportion to weights, at least one of each site."""
    _check_total(sites, total)
    counts, spare = _shared(sites, weights, [site.cells for site in sites], total)
    # A site without a cell is given one, and the others share what is left. They get less than
    # before, never more, so that it would have been without a cell in the end as well.
    alone = [not count for count in counts]
    while not all(counts):
        single = sum(site.block for site, one in zip(sites, alone, strict=True) if one)
        caps = [0 if one else site.cells for site, one in zip(sites, alone, strict=True)]
        counts, spare = _shared(sites, weights, caps, total - single)
        counts = [1 if one else count for one, count in zip(alone, counts, strict=True)]
        alone = [one or not count for one, count in zip(alone, counts, strict=True)]
    room = [site.cells - count for site, count in zip(sites, counts, strict=True)]
    more, _ = _shared(sites, weights, room, spare)
    return tuple(count + extra for count, extra in zip(counts, more, strict=True))


def _shared(
    sites: Sequence[SparseShape], weights: Sequence[int], caps: Sequence[int], total: int
) -> tuple[list[int], int]:
    return block_shares(total, weights, caps, [site.block for site in sites])


def _check_total(sites: Sequence[SparseShape], total: int) -> None:
    least, most = sum(site.block for site in sites), sum(site.parameters for site in sites)
    if not is_whole(total, 0) or total > most:
        raise ArgumentError(
            f"{total!r} of {most} parameters cannot be active",
            where="total",
            remedy=f"Give a whole number from {least} to {most}.",
        )
    if total < least:
        raise InfeasibleBudget(
            f"one cell of every sparse tensor takes {least} parameters, of {total}",
            limit="nonzeros",
            asked=total,
            tightest=least,
            binding_layer=max(sites, key=lambda site: site.block).name,
            remedy="Raise the budget, or make cells smaller.",
        )
