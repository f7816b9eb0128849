"""What the speed of a search over keep-states is measured on, and what it is to reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.dynamic_training import Task
from energy_model.errors import ArgumentError
from passes.methods.ising.config import Ising

MARGIN_TARGET, ISING_TARGET, COMPACT_TARGET, RUN_TARGET = 2.5, 1.2, 1.0, 1.0
BUDGET, TIGHT = "macs<=50%", "macs<=25%"
_LEAST_SIDE = 64

RESNET20 = Task("ResNet-20", "bench.zoo:resnet20", (3, 32, 32), batch=128)


@dataclass(frozen=True, slots=True)
class SearchSizes:
    """What is measured, and how long.

    Attributes:
        task: The network whose steps and back ends are measured.
        steps: Steps of one turn.
        run_steps: Steps of the whole training that is computed from them: five epochs of 9,000
            images, as in the recipes of ResNet-20.
        scored: Samples that back ends are compared on.
        states: Keep-states of a population.
        batch: Images of a step of the published networks.
        side: Side of these images.
        networks: Which of them, by torchvision's names; `None` is all.
    """

    task: Task = RESNET20
    steps: int = 2
    run_steps: int = 355
    scored: tuple[int, ...] = (32, 128)
    states: int = 8
    batch: int = 128
    side: int = 64
    networks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.side < _LEAST_SIDE:
            raise ArgumentError(
                f"{self.side} is too small", where="size", remedy=f"Give at least {_LEAST_SIDE}."
            )
        if self.batch < 2:
            raise ArgumentError(
                f"a batch of {self.batch} has no two samples to compare candidates on",
                where="batch",
                remedy="Give at least 2.",
            )

    @classmethod
    def quick(cls) -> SearchSizes:
        """So small that only whether everything runs can be seen."""
        small = replace(RESNET20, batch=8, input_shape=(3, 8, 8))
        return cls(small, 1, 8, (2, 4), 4, 2, _LEAST_SIDE, ("squeezenet1_1", "resnet18"))

    def search(self, energy: str, multiple: int | None = None) -> Ising:
        """The configuration of the search: the defaults, and an end that never comes by itself.

        Args:
            energy: The energy.
            multiple: Of which channel counts are multiples; `None` is the hardware's.
        """
        return Ising(states=self.states, energy=energy, patience=10**6, channel_multiple=multiple)
