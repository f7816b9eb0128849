"""A method against the baseline, paired by seed and by test sample.

Two questions, which one test cannot answer both. Over seeds (Student's t, and the sign test, which
assumes nothing): does the method differ when training is repeated? Over test samples (McNemar):
does one trained network differ from another on these images?

The runs of several seeds are judged on the same images, so their samples are not independent, and
one McNemar test of all of them added up would count every image once a seed and find far too small
a p. Each pair of runs is therefore tested by itself, and the median over the seeds is what a
typical pair of runs shows. It is no p-value of all seeds together; twice it is one, whatever the
dependence (Rueger, "Das maximale Signifikanzniveau des Tests: Lehne H0 ab, wenn k unter n gegebenen
Tests zur Ablehnung fuehren", 1978).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.statistics import mcnemar, paired_t, sign_test
from energy_model.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Correct:
    """Which test samples a run has right.

    Attributes:
        samples: Test samples.
        order: Digest of their targets: runs are paired by sample only where it is the same.
        bits: One bit a sample, 1 where the finished model is right.
    """

    samples: int
    order: str
    bits: int

    @classmethod
    def read(cls, values: Mapping[str, Any] | None, accuracy: float, where: str) -> Correct | None:
        """What `result.json` holds as `test_correct`; `None` if it holds none.

        Args:
            values: `samples`, `order`, and `after`: bits in hexadecimal, the first sample in the
                highest bit, filled up with zeros.
            accuracy: Test accuracy of the run, a fraction.
            where: The run.

        Raises:
            ArgumentError: The values are damaged, or not those of that accuracy.
        """
        if values is None:
            return None
        try:
            samples, text = int(values["samples"]), str(values["after"])
            bits, order = int.from_bytes(bytes.fromhex(text)), str(values.get("order", ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(where, f"{type(error).__name__}: {error}") from error
        filled = -samples % 8
        if samples < 1 or len(text) != (samples + filled) // 4 or bits & ((1 << filled) - 1):
            raise _damaged(where, f"{len(text)} hexadecimal digits are not {samples} samples")
        if abs(bits.bit_count() - accuracy * samples) > 0.5:
            raise _damaged(where, f"{bits.bit_count()} of {samples} right are not {accuracy:.4%}")
        return cls(samples, order, bits)

    def only_this(self, other: Correct) -> int:
        """Samples that this has right and the other wrong."""
        return (self.bits & ~other.bits).bit_count()

    def pairs_with(self, other: Correct) -> bool:
        """Whether both were read on the same samples in the same order."""
        return (self.samples, self.order) == (other.samples, other.order)


def _damaged(where: str, why: str) -> ArgumentError:
    return ArgumentError(
        f"which test samples are right cannot be read: {why}",
        where=where,
        remedy="Run the cell again: remove its result.json.",
    )


@dataclass(frozen=True, slots=True)
class Against:
    """A method against the baseline, over the seeds that both have.

    All p are two-sided, and not corrected for several tests.

    Attributes:
        difference: Mean of the method's accuracy minus the baseline's, a fraction; `None` without a
            common seed.
        spread: Sample standard deviation of that difference over seeds; `None` below two.
        pairs: Seeds that both have.
        p: Of Student's paired t test over the seeds; `None` below two.
        sign: p of the exact sign test over the seeds, at least 2^(1 - pairs); `None` below two.
        mcnemar: Median over the seeds of the exact McNemar p of a pair of runs, of an even number
            the upper; `None` where no pair says which of the same test samples are right.
        won: Test samples that only the method has right, added up over those pairs.
        lost: Test samples that only the baseline has right, added up over those pairs.
        judged: Number of those pairs.
    """

    difference: float | None = None
    spread: float | None = None
    pairs: int = 0
    p: float | None = None
    sign: float | None = None
    mcnemar: float | None = None
    won: int | None = None
    lost: int | None = None
    judged: int = 0


def against(
    first: Sequence[float],
    second: Sequence[float],
    samples: Sequence[tuple[Correct | None, Correct | None]] = (),
) -> Against:
    """Compare two methods seed by seed, and test sample by test sample.

    Args:
        first: The method's accuracy for each common seed.
        second: The baseline's, in the same order.
        samples: For each of these seeds, what the method and the baseline have right.
    """
    if not first:
        return Against()
    differences = [a - b for a, b in zip(first, second, strict=True)]
    spread = p = sign = None
    if len(differences) > 1:
        spread = statistics.stdev(differences)
        p, sign = paired_t(first, second).p, sign_test(first, second)
    counts = [
        (one.only_this(other), other.only_this(one))
        for one, other in samples
        if one is not None and other is not None and one.pairs_with(other)
    ]
    return Against(
        statistics.fmean(differences),
        spread,
        len(differences),
        p,
        sign,
        statistics.median_high([mcnemar(*count) for count in counts]) if counts else None,
        sum(won for won, _ in counts) if counts else None,
        sum(lost for _, lost in counts) if counts else None,
        len(counts),
    )
