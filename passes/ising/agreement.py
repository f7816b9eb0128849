"""Whether two ways of running candidates compute the same: to 1e-5, beside rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from passes.inputs import Call
from passes.ising.scoring import Scoring

# Differences are shares of the largest output of the reference.
_SAME = 1e-5
# What rounding may add in single precision: norms that divide by the spread of a few samples make
# it larger.
_ROUNDING = {"running": 1e-4, "batch": 1e-3}


@dataclass(frozen=True, slots=True)
class Trial:
    """What ways of running candidates are compared on.

    Attributes:
        population: Typical states, bool `(states, nodes)`.
        call: The samples.
        norms: See `Scoring.outputs`.
    """

    population: Tensor
    call: Call
    norms: str = "running"

    def outputs(self, scoring: Scoring) -> list[Any]:
        """What one of them returns."""
        return scoring.outputs(self.population, self.call, self.norms)

    def why_not(self, scoring: Scoring, reference: Scoring) -> str:
        """Why it cannot be used: how far it is from the reference, or its error; else empty."""
        expected = self.outputs(reference)
        try:
            found = self.outputs(scoring)
        except Exception as error:
            return told(error)
        return self.difference(scoring, reference, found, expected)

    def difference(self, scoring: Scoring, reference: Scoring, found: Any, expected: Any) -> str:
        """How far it is from the reference; empty if it computes the same.

        What may be rounding is compared again on a copy of the model in double precision; where
        the model cannot run in that, it is taken for rounding.

        Args:
            scoring: One way.
            reference: Another one.
            found: What the first has returned.
            expected: What the other has returned.
        """
        error = relative_difference(found, expected)
        if error <= _SAME:
            return ""
        if error > self._rounding():
            return _far(error)
        try:
            exact = self._in_double(scoring, reference)
        except Exception:
            return ""
        return "" if exact <= _SAME else f"{_far(exact)} in double precision"

    def _in_double(self, scoring: Scoring, reference: Scoring) -> float:
        gates = copy.deepcopy(reference.gates)
        gates.module.double()
        call = self.call.map(lambda t: t.double() if t.is_floating_point() else t)
        twin = Trial(self.population, call, self.norms)
        # One after the other, as an error of either ends it.
        expected = twin.outputs(type(reference)(gates))
        return relative_difference(twin.outputs(type(scoring)(gates)), expected)

    def _rounding(self) -> float:
        """What rounding may differ by: half precision and TensorFloat-32 know fewer digits."""
        tensors = self.call.tensors()
        types = {t.dtype for t in tensors if t.is_floating_point()}
        least = max((torch.finfo(dtype).eps for dtype in types), default=0.0)
        if any(t.is_cuda for t in tensors):
            least = max(least, torch.finfo(torch.float16).eps)
        return max(_ROUNDING[self.norms], 8 * least)


def told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _far(error: float) -> str:
    return f"differs from the reference by {error:.1e} of its largest output"


def relative_difference(found: Any, expected: Any) -> float:
    """The largest difference of any element, as a share of the largest of its tensor.

    Elements that are equal, both NaN too, do not differ; where one is not finite they differ by
    infinity, and so do outputs of another structure.
    """
    mine, theirs = list(_tensors(found)), list(_tensors(expected))
    if [t.shape for t in mine] != [t.shape for t in theirs]:
        return float("inf")
    return max(map(_difference, mine, theirs), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    a, b = found.detach().double(), expected.detach().double()
    differ = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(differ.any()):
        return 0.0
    largest = b[b.isfinite()].abs().max() if bool(b.isfinite().any()) else b.new_ones(())
    error = float((a - b)[differ].abs().max() / largest)
    return error if error == error else float("inf")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
