"""What a candidate is worth: small and accurate, against the teacher.

    f(x) = C (2 - C) A,   C = 1 - cost(x) / cost(teacher),   A = accuracy(x) / accuracy(teacher)

of Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression",
ICLR 2019, section 3. There the cost is the number of parameters. Here it is any cost that is known
for every candidate, or several of them: then the ratio of the costs is their geometric mean.

C (2 - C) = 1 - (1 - C)^2 rises from 0 at the teacher to 1, ever more slowly, so that what little
is left to save near C = 1 counts for less than accuracy. A candidate that costs more than the
teacher has a negative reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from energy_model.errors import ArgumentError

Costs = Mapping[str, int | float]


def gain(compression: float) -> float:
    """C (2 - C): the factor of the reward that is known before a candidate is trained.

    Args:
        compression: C, the share of the cost that is saved, at most 1; negative if it costs more.

    Raises:
        ArgumentError: No finite number up to 1.
    """
    if not (math.isfinite(compression) and compression <= 1):
        raise ArgumentError(
            f"{compression} is no share of a cost that is saved",
            where="compression",
            remedy="It is 1 - cost / cost of the teacher, at most 1.",
        )
    return compression * (2 - compression)


@dataclass(frozen=True)
class Reward:
    """Rewards of candidates of one teacher.

    Attributes:
        metric: The cost that counts, or several.
        base: Costs of the teacher, by key; those of the metric are above 0.
        accuracy: Of the teacher, above 0, in the unit of the candidates'.

    Raises:
        ArgumentError: A cost of the metric is not among the teacher's, or a base is not positive.
    """

    metric: str | tuple[str, ...]
    base: Costs
    accuracy: float

    def __post_init__(self) -> None:
        if not self.keys:
            raise ArgumentError("no cost is named", where="metric", remedy="Name at least one.")
        for key in self.keys:
            if _read(self.base, key) == 0:
                raise ArgumentError(
                    f"the teacher's {key} is 0, so nothing can be saved of it",
                    where="metric",
                    remedy=f"Choose another cost out of {sorted(self.base)}.",
                )
        if not (math.isfinite(self.accuracy) and self.accuracy > 0):
            raise ArgumentError(
                f"the teacher's accuracy is {self.accuracy}, and no share of it can be taken",
                where="valid",
                remedy="Pass a trained model, and a metric that is positive for it.",
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """The costs that count."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    def compression(self, costs: Costs) -> float:
        """C: the share of the cost that a candidate saves; negative if it costs more.

        Raises:
            ArgumentError: A cost is missing, negative or not finite.
        """
        if len(self.keys) == 1:  # no logarithms, so that C of simple numbers is exact
            return 1 - _read(costs, self.keys[0]) / self.base[self.keys[0]]
        ratios = [_read(costs, key) / self.base[key] for key in self.keys]
        if 0 in ratios:
            return 1.0
        return 1 - math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))

    def gain(self, costs: Costs) -> float:
        """C (2 - C) of a candidate; see `gain`."""
        return gain(self.compression(costs))

    def relative(self, accuracy: float) -> float:
        """A: a candidate's accuracy as a share of the teacher's; may exceed 1.

        Raises:
            ArgumentError: It is not finite.
        """
        if not math.isfinite(accuracy):
            raise ArgumentError(f"an accuracy is {accuracy}", where="accuracy")
        return accuracy / self.accuracy

    def __call__(self, costs: Costs, accuracy: float) -> float:
        """The reward C (2 - C) A of a candidate.

        Args:
            costs: Its costs, in the units of the teacher's.
            accuracy: Its accuracy, in the unit of the teacher's.

        Raises:
            ArgumentError: A value is missing, negative or not finite.
        """
        return self.gain(costs) * self.relative(accuracy)


def _read(costs: Costs, key: str) -> int | float:
    if key not in costs:
        raise ArgumentError(
            f"there is no cost {key!r}",
            where="metric",
            remedy=f"The costs are {sorted(costs)}.",
        )
    value = costs[key]
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentError(f"the cost {key!r} is {value}", where="metric")
    return value
