"""What a benchmark found: one `Measurement` per model, compared in a `Report`.

Shared machines drift and stall, so models are compared by their paired ratios: model by model
within one round, where both met the same conditions. A difference is only claimed when most rounds
agree on its direction (sign test) and the quartiles of the ratios lie clearly on one side of 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

NOISE_LIMIT = 0.25
"""Largest spread of a model's round medians at which a comparison is still believed."""

RESOLUTION = 0.05
"""Smallest relative difference that is claimed: steady rounds see smaller ones, but one file in two
processes differs by up to 4 %, as memory happens to be laid out."""

SIGNIFICANCE = 0.05
"""Largest two-sided probability that rounds agree as much by chance (sign test)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One model on one runtime. Times are of one inference (one call with the whole batch).

    Attributes:
        path: The ONNX file, or the archive that it was unpacked from.
        bytes: Size of that file.
        bytes_zstd: Size of the file compressed by zstandard (level in `bench.measure`).
        load_ms: Time to create the session, once, milliseconds.
        median_ms: Median over the rounds of each round's median wall time, milliseconds.
        minimum_ms: Shortest single inference, milliseconds.
        spread: Interquartile range of the round medians over their median.
        cpu_ms: CPU time of all threads, median over rounds of the mean in a round, milliseconds.
        peak_rss_bytes: Largest resident memory of the measuring process over its whole life; it
            includes the interpreter and the runtime, the same for every model.
        threads: Threads inside an operator.
        batch: Samples in one inference.
        runtime: Name, version and execution provider.
        machine: Model of the CPU.
        round_ms: Median wall time of each round, in the order in which they ran, milliseconds.
        runs_per_round: Inferences in one round.
        energy: Modelled energy of one sample in MAC energies, given by the caller; not measured.
        joules: Measured energy of one inference; None where no counter exists, never 0.
        options: Session options or properties that were set.
        unpack_ms: Time to unpack the archive, once, milliseconds; None for an ONNX file.
    """

    path: str
    bytes: int
    bytes_zstd: int
    load_ms: float
    median_ms: float
    minimum_ms: float
    spread: float
    cpu_ms: float
    peak_rss_bytes: int
    threads: int
    batch: int
    runtime: str
    machine: str
    round_ms: tuple[float, ...]
    runs_per_round: int
    energy: float | None = None
    joules: float | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unpack_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self) | {"round_ms": list(self.round_ms)}


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """The time of one model over that of the first, round by round.

    Attributes:
        path: The model, with its runtime and options where the two differ in them.
        first: The model that it is compared with, in the same way.
        ratio: Median over the rounds of time / time of the first; below 1 is faster.
        low: First quartile of these ratios.
        high: Third quartile.
        faster: Rounds in which the model took less time than the first.
        slower: Rounds in which it took more.
        noise: The larger spread of the two models.
    """

    path: str
    first: str
    ratio: float
    low: float
    high: float
    faster: int
    slower: int
    noise: float

    @property
    def conclusive(self) -> bool:
        """Whether the rounds are steady, agree on a direction, and do so beyond chance."""
        return self.noise <= NOISE_LIMIT and self._agrees

    @property
    def _agrees(self) -> bool:
        beyond_chance = sign_test(self.faster, self.slower) <= SIGNIFICANCE
        return beyond_chance and (self.high < 1 / (1 + RESOLUTION) or self.low > 1 + RESOLUTION)

    @property
    def verdict(self) -> str:
        """One sentence; it says "faster" or "slower" only when conclusive."""
        rounds = f"ratio {self.ratio:.3f}, quartiles {self.low:.3f} to {self.high:.3f}"
        if self.noise > NOISE_LIMIT:
            return (
                f"{self.path}: the machine is too noisy to conclude: the rounds of a model vary "
                f"by {self.noise:.0%} (limit {NOISE_LIMIT:.0%}; {rounds})"
            )
        if not self._agrees:
            return (
                f"{self.path}: not conclusive: no difference from {self.first} beyond "
                f"{RESOLUTION:.0%} and the variation of the rounds ({rounds}, shorter in "
                f"{self.faster} rounds, longer in {self.slower})"
            )
        factor = f"{1 / self.ratio:.2f}x faster" if self.ratio < 1 else f"{self.ratio:.2f}x slower"
        return f"{self.path}: {factor} than {self.first} ({rounds})"

    def to_dict(self) -> dict[str, Any]:
        """The fields, the verdict and whether it is conclusive, as plain values."""
        derived = {"conclusive": self.conclusive, "verdict": self.verdict}
        return dataclasses.asdict(self) | derived


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The measurements of one benchmark, in the order of the models.

    Attributes:
        measurements: At least one; all with the same number of rounds.
    """

    measurements: tuple[Measurement, ...]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every model but the first, compared with the first."""
        first = self.measurements[0]
        return tuple(compare(first, other) for other in self.measurements[1:])

    @property
    def conclusive(self) -> bool:
        """Whether every comparison is; for a single model, whether its rounds are steady."""
        steady = all(item.spread <= NOISE_LIMIT for item in self.measurements)
        return steady and all(item.conclusive for item in self.comparisons)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One sentence per comparison; for a single model one, when the machine is too noisy."""
        first = self.measurements[0]
        if len(self.measurements) == 1 and not self.conclusive:
            return (
                f"{first.path}: the machine is too noisy to conclude: the rounds vary by "
                f"{first.spread:.0%} (limit {NOISE_LIMIT:.0%})",
            )
        return tuple(item.verdict for item in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Measurements, comparisons and verdicts as plain values, ready for JSON."""
        return {
            "measurements": [item.to_dict() for item in self.measurements],
            "comparisons": [item.to_dict() for item in self.comparisons],
            "conclusive": self.conclusive,
            "noise_limit": NOISE_LIMIT,
            "resolution": RESOLUTION,
        }

    def __str__(self) -> str:
        from bench.report_text import format_report

        return format_report(self)


def relative_spread(values: tuple[float, ...]) -> float:
    """Interquartile range over the median; 0 for a single value."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def sign_test(successes: int, failures: int) -> float:
    """Two-sided probability of a split at least as uneven if both directions were equally likely.

    Args:
        successes: Rounds in one direction.
        failures: Rounds in the other; ties are left out, as the test prescribes.
    """
    rounds, fewer = successes + failures, min(successes, failures)
    tail = sum(math.comb(rounds, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << rounds))


def compare(first: Measurement, other: Measurement) -> Comparison:
    """Compare two models of one benchmark by the paired ratios of their rounds.

    Args:
        first: The model in the denominator.
        other: A model measured in the same rounds.

    Raises:
        ValueError: They have different numbers of rounds.
    """
    pairs = list(zip(first.round_ms, other.round_ms, strict=True))
    low, ratio, high = np.quantile([mine / base for base, mine in pairs], [0.25, 0.5, 0.75])
    return Comparison(
        path=_name(other, first),
        first=_name(first, other),
        ratio=float(ratio),
        low=float(low),
        high=float(high),
        faster=sum(mine < base for base, mine in pairs),
        slower=sum(mine > base for base, mine in pairs),
        noise=max(first.spread, other.spread),
    )


def _name(item: Measurement, other: Measurement) -> str:
    """The path, and where it ran if that tells the two apart."""
    where = "" if item.runtime == other.runtime else f" in {item.runtime}"
    if item.options != other.options and item.options:
        where += f" with {', '.join(f'{k}={v}' for k, v in item.options.items())}"
    return item.path + where
