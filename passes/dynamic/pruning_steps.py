"""Gradual pruning: the sparsity, and the number of cells, after every prune.

    exponential   s_j = 1 - (1 - S) ** (j / n)         a constant share of the survivors each time
    cubic         s_j = S (1 - (1 - j / n) ** 3)       Zhu and Gupta, ICLR workshops 2018

Counts follow from the sparsities and are never multiplied up, so that rounding does not accumulate
and the end is the target to the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from energy_model.config import Config
from energy_model.errors import ArgumentError
from passes.dynamic.schedule import Clock, is_real, is_whole

Form = Literal["cubic", "exponential"]
_FORMS = ("cubic", "exponential")
# Of all steps, those in which prunes are spread where nothing is said.
_PRUNING_SHARE = 0.75


def cubic_sparsity(
    time: float, *, final: float, initial: float = 0.0, start: float = 0.0, length: float = 1.0
) -> float:
    """Sparsity at a time: `s_f + (s_i - s_f) (1 - (t - t0) / (n dt)) ** 3`, constant outside.

    Args:
        time: t, in any unit.
        final: s_f, a share.
        initial: s_i, a share.
        start: t0, in the unit of `time`.
        length: n dt, the number of prunes times their distance, in the unit of `time`; positive.

    Raises:
        ArgumentError: The length is not positive.
    """
    if not length > 0:
        raise ArgumentError(
            f"{length!r} is not positive",
            where="cubic_sparsity.length",
            remedy="Give the number of prunes times their distance.",
        )
    left = float((1 - min(max((time - start) / length, 0.0), 1.0)) ** 3)
    return initial * left + final * (1 - left)


def exponential_sparsity(time: float, *, final: float) -> float:
    """Sparsity when a share `time` of all prunes is done, of survivors that shrink by a constant.

    Args:
        time: From 0 to 1.
        final: Sparsity at 1.
    """
    return float(1 - (1 - final) ** time)


@dataclass(frozen=True)
class PruningSteps(Config):
    """When a network is pruned on its way from dense to its budget.

    Attributes:
        number: Prunes, n.
        interval: Epochs from one prune to the next. `None` spreads them evenly over the first
            three quarters of the steps, however short the training is; then the two fields below
            say nothing.
        start_epoch: The first prune is at the end of this epoch, from 0.
        post_epochs: Epochs from the last prune to the end, as its authors count; see `epochs`.
        form: `"cubic"` or `"exponential"`.

    Raises:
        ArgumentError: A value is not allowed.
    """

    number: int = 20
    interval: int | None = None
    start_epoch: int = 0
    post_epochs: int = 10
    form: Form = "cubic"

    def __post_init__(self) -> None:
        self._require("number", is_whole(self.number), "a whole number from 1")
        interval = self.interval is None or is_whole(self.interval)
        self._require("interval", interval, "None, or a whole number from 1")
        for field in ("start_epoch", "post_epochs"):
            self._require(field, is_whole(getattr(self, field), 0), "a whole number from 0")
        self._require("form", self.form in _FORMS, f"one of {_FORMS}")

    @property
    def epochs(self) -> int | None:
        """Length of the training: the epoch that the last prune ends is one of `post_epochs`.

        `None` where the prunes follow the training rather than the other way round.
        """
        if self.interval is None:
            return None
        last = self.start_epoch + self.interval * (self.number - 1)
        return last + max(self.post_epochs, 1)

    def sparsities(self, target: float, number: int | None = None) -> tuple[float, ...]:
        """Sparsities after every prune; the last is the target itself.

        Args:
            target: Sparsity after the last prune, a share of the cells.
            number: Prunes, where a short training has fewer of them.
        """
        n = self.number if number is None else number
        law = cubic_sparsity if self.form == "cubic" else exponential_sparsity
        return (*(law(j / n, final=target) for j in range(1, n)), target)

    def steps(self, clock: Clock) -> tuple[int, ...]:
        """The steps, from 0, after which is pruned, in ascending order.

        Raises:
            ArgumentError: The last prune would come after the last epoch.
        """
        if self.interval is None:
            stop = max(1, int(_PRUNING_SHARE * clock.steps))
            number = min(self.number, stop)
            return tuple(stop * j // number - 1 for j in range(1, number + 1))
        epochs = range(
            self.start_epoch, self.start_epoch + self.interval * self.number, self.interval
        )
        if epochs[-1] >= clock.epochs:
            raise ArgumentError(
                f"the last prune is due at the end of epoch {epochs[-1]} (from 0) of "
                f"{clock.epochs}",
                where="PruningSteps",
                remedy="Train longer, or prune earlier, more often or in fewer steps.",
            )
        return tuple((epoch + 1) * clock.epoch_steps - 1 for epoch in epochs)


def target_counts(
    cells: int, sparsities: Sequence[float], final: int | None = None
) -> tuple[int, ...]:
    """Cells that are left after every prune: `round((1 - s_j) cells)`, never rising.

    Args:
        cells: Of the site.
        sparsities: Its shares after every prune; the last one is the target.
        final: Cells at the end, where a budget over several sites has rounded them otherwise.

    Raises:
        ArgumentError: A share is none, or `final` is not a number of these cells.
    """
    if not all(is_real(s) and 0 <= s <= 1 for s in sparsities) or not sparsities:
        raise ArgumentError(
            f"{list(sparsities)} are not allowed",
            where="target_counts.sparsities",
            remedy="Give one or more shares from 0 to 1.",
        )
    last = round((1 - sparsities[-1]) * cells) if final is None else final
    if not 0 <= last <= cells:
        raise ArgumentError(
            f"{last} of {cells} cells cannot stay",
            where="target_counts.final",
            remedy="Give a number from 0 to all of them.",
        )
    counts, most = [], cells
    for sparsity in sparsities[:-1]:
        most = min(most, max(round((1 - sparsity) * cells), last))
        counts.append(most)
    return (*counts, last)
