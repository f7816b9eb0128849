"""What a rule may look at when it rewires: every sparse tensor as cells, at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from energy_model.errors import PreconditionError
from passes.dynamic.schedule import Clock, Due


@dataclass(frozen=True, slots=True, eq=False)
class CellState:
    """One sparse tensor at an event; tensors are read only.

    Attributes:
        name: Of its site.
        mask: The active cells before the event; boolean, shape `(cells,)`.
        values: The weights, shape `(cells, block)`.
        gradients: Of the loss by the dense weights, shape `(cells, block)`; only if the rule asks
            for them.
        floor: Least number of cells that stay active.
        movable: Whether the tensor takes part: full tensors and those that a rule fixes do not.
        cost: Of a parameter, in any one unit, for allocations that count it.
        units: int64 `(cells,)`: the output unit of each cell, if none may lose its last.
        signs: int8 `(cells,)`: that a weight must have to stay active, -1 or 1; 0 where there is
            none, and where the cell is not active. Only if the rule asks for them.
    """

    name: str
    mask: Tensor
    values: Tensor
    gradients: Tensor | None = None
    floor: int = 1
    movable: bool = True
    cost: float = 1.0
    units: Tensor | None = None
    signs: Tensor | None = None

    @property
    def block(self) -> int:
        """Parameters of a cell."""
        return self.values.shape[1]

    @property
    def cells(self) -> int:
        """Cells of the tensor."""
        return self.mask.numel()

    @property
    def magnitudes(self) -> Tensor:
        """Mean |w| of each cell, shape `(cells,)`."""
        return strength(self.values)

    @property
    def saliency(self) -> Tensor:
        """Mean |w dL/dw| of each cell, shape `(cells,)`: what the loss would feel of its end.

        Raises:
            PreconditionError: The rule has not asked for gradients.
        """
        if self.gradients is None:
            raise PreconditionError(
                "the rule asks for gradients, and there are none",
                where=self.name,
                remedy="Say so in the rule: Rule(needs={'gradients'}).",
            )
        return strength(self.values * self.gradients)


def strength(values: Tensor) -> Tensor:
    """Mean absolute value of each cell.

    Args:
        values: Shape `(cells, block)`.

    Returns:
        Shape `(cells,)`.
    """
    return values[:, 0].abs() if values.shape[1] == 1 else values.abs().mean(dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One rewiring event.

    Attributes:
        number: Of events so far, from 1.
        step: Of the training, from 0, after which it happens.
        clock: How long training is.
        due: How much may be moved.
        seed: Of the run.
        threshold: Of rules that drop below one, as the last event has left it.
        sites: The tensors that take part.
        targets: Per site, cells that are to be left, for rules that prune to their budget.
    """

    number: int
    step: int
    clock: Clock
    due: Due
    seed: int
    threshold: float
    sites: tuple[CellState, ...]
    targets: tuple[int, ...] = ()
