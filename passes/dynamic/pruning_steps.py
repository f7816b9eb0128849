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
from passes.dynamic.schedule import is_real, is_whole

Form = Literal["cubic", "exponential"]
_FORMS = ("cubic", "exponential")
_DENSE_OUTPUT_ABOVE = 0.9


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
    """When to prune, and how far.

    Attributes:
        target: Sparsity after the last prune, a share of all cells.
        number: Prunes, n.
        interval: Epochs from one prune to the next.
        start_epoch: The first prune is at the end of this epoch, from 0.
        post_epochs: Epochs from the last prune to the end, as its authors count; see `epochs`.
        form: `"cubic"` or `"exponential"`.

    Raises:
        ArgumentError: A value is not allowed.
    """

    target: float
    number: int = 20
    interval: int = 2
    start_epoch: int = 0
    post_epochs: int = 10
    form: Form = "cubic"

    def __post_init__(self) -> None:
        share = is_real(self.target) and 0 <= self.target < 1
        self._require("target", share, "a share from 0 to below 1")
        for field in ("number", "interval"):
            self._require(field, is_whole(getattr(self, field)), "a whole number from 1")
        for field in ("start_epoch", "post_epochs"):
            self._require(field, is_whole(getattr(self, field), 0), "a whole number from 0")
        self._require("form", self.form in _FORMS, f"one of {_FORMS}")

    @property
    def epochs(self) -> int:
        """Length of the training: the epoch that the last prune ends is one of `post_epochs`."""
        last = self.start_epoch + self.interval * (self.number - 1)
        return last + max(self.post_epochs, 1)

    def sparsities(self, target: float | None = None) -> tuple[float, ...]:
        """Sparsities after every prune; the last is the target itself.

        Args:
            target: Of one site, where it has another than the rest.
        """
        final = self.target if target is None else target
        law = cubic_sparsity if self.form == "cubic" else exponential_sparsity
        early = tuple(law(j / self.number, final=final) for j in range(1, self.number))
        return (*early, final)

    def steps(self) -> tuple[tuple[int, float], ...]:
        """Pairs of an epoch, at whose end is pruned, and the sparsity afterwards."""
        epochs = range(
            self.start_epoch, self.start_epoch + self.interval * self.number, self.interval
        )
        return tuple(zip(epochs, self.sparsities(), strict=True))

    def check(self, epochs: int) -> None:
        """Refuse a schedule that does not fit into the training.

        Raises:
            ArgumentError: The last prune would come after the last epoch.
        """
        last, _ = self.steps()[-1]
        if last >= epochs:
            raise ArgumentError(
                f"the last prune is due at the end of epoch {last} (from 0) of {epochs}",
                where="PruningSteps",
                remedy="Train longer, or prune earlier, more often or in fewer steps.",
            )


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


def dense_output_sparsities(
    cells: Sequence[int], sparsity: float, kept: int = 100
) -> tuple[float, ...]:
    """Sparsity of every layer of a perceptron at one common target.

    Above 0.9 the last layer keeps a fixed number of weights, because it would lose whole classes,
    and the others make up for it (Mostafa and Wang, ICML 2019: 100 of the 1,000 weights).

    Args:
        cells: Of every layer; the last is the output.
        sparsity: Of all cells together.
        kept: Cells of the last layer that stay.

    Raises:
        ArgumentError: The last layer has fewer cells, or nothing would be left for the others.
    """
    if sparsity <= _DENSE_OUTPUT_ABOVE:
        return (sparsity,) * len(cells)
    others = sum(cells[:-1])
    left = (1 - sparsity) * sum(cells) - kept
    if not cells or kept > cells[-1] or left <= 0:
        raise ArgumentError(
            f"{kept} weights of the output leave nothing for the others at sparsity {sparsity}",
            where="dense_output_sparsities",
            remedy="Keep fewer in the output, or ask for a lower sparsity.",
        )
    return (*(1 - left / others for _ in cells[:-1]), 1 - kept / cells[-1])
